//! A 48-bit Ethernet address (IEEE 802).

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// An Ethernet address, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// The all-ones address that every station listens to.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the group bit is set: broadcast or multicast.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether this can be a station's own address: not a group and not all zeros.
    pub fn is_station(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }

    /// A locally administered station address made from `seed` bytes (IEEE 802 local bit set).
    pub const fn local_from(seed: [u8; 6]) -> Self {
        let [first, rest @ ..] = seed;
        let [b, c, d, e, f] = rest;
        Self([(first & 0xfc) | 0x02, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six hexadecimal bytes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a MAC address; write it like 52:54:00:12:34:56")]
pub struct InvalidMac(String);

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() {
            return Err(invalid());
        }
        Ok(Self(bytes))
    }
}

crate::name::serde_as_text!(
    MacAddr,
    [u8; 6],
    |mac: &MacAddr| mac.0,
    |raw| Ok::<_, String>(MacAddr(raw))
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_address_are_inverse() {
        let mac: MacAddr = "52:54:00:ab:cd:ef".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
        assert!("52:54:00:ab:cd".parse::<MacAddr>().is_err());
        assert!("52:54:00:ab:cd:ef:00".parse::<MacAddr>().is_err());
        assert!("52:54:00:ab:cd:+f".parse::<MacAddr>().is_err());
    }

    #[test]
    fn a_local_address_is_a_station() {
        let mac = MacAddr::local_from([0xff; 6]);
        assert!(mac.is_station());
        assert_eq!(mac.0[0] & 2, 2);
    }
}
