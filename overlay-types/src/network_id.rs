//! Which virtual Ethernet is meant.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The SHA-256 of a network's genesis document, written in base32 without padding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub [u8; 32]);

impl NetworkId {
    /// The first ten characters, for people who compare by eye.
    pub fn short(self) -> String {
        self.to_string().chars().take(10).collect()
    }

    /// The network's IPv6 prefix: a unique local /64 (RFC 4193) taken from the id.
    pub fn ula_prefix(self) -> [u8; 8] {
        let mut prefix = [0; 8];
        prefix.copy_from_slice(&self.0[..8]);
        prefix[0] = 0xfd;
        prefix
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(
            &data_encoding::BASE32_NOPAD
                .encode(&self.0)
                .to_ascii_lowercase(),
        )
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// The text is not a network id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a network id: expected 52 characters of base32")]
pub struct InvalidNetworkId;

impl FromStr for NetworkId {
    type Err = InvalidNetworkId;

    fn from_str(text: &str) -> Result<Self, InvalidNetworkId> {
        let raw = data_encoding::BASE32_NOPAD
            .decode(text.to_ascii_uppercase().as_bytes())
            .map_err(|_| InvalidNetworkId)?;
        raw.try_into().map(Self).map_err(|_| InvalidNetworkId)
    }
}

crate::name::serde_as_text!(NetworkId, [u8; 32], |id: &NetworkId| id.0, |raw| Ok::<
    _,
    String,
>(
    NetworkId(raw)
));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_id_are_inverse() {
        let id = NetworkId([7; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("abc".parse::<NetworkId>(), Err(InvalidNetworkId));
    }
}
