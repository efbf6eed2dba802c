//! Who a node is: its Ed25519 public key, spelled as libp2p spells it.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A node's identity, an Ed25519 public key. Its text is the libp2p peer id `12D3KooW…`: the base58 of an
/// identity multihash over the protobuf-encoded key (libp2p specs, peer-ids).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

/// Multihash "identity" of 36 bytes; protobuf field 1 = Ed25519, field 2 = 32 bytes of key.
const MULTIHASH_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl PeerId {
    /// The multihash bytes, as libp2p's own `PeerId::to_bytes` gives them.
    pub fn to_multihash(self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&MULTIHASH_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// Reads libp2p's multihash bytes.
    ///
    /// # Errors
    /// [`InvalidPeerId`] when they are not an inlined Ed25519 key.
    pub fn from_multihash(bytes: &[u8]) -> Result<Self, InvalidPeerId> {
        let key = bytes.strip_prefix(&MULTIHASH_PREFIX).ok_or(InvalidPeerId)?;
        key.try_into().map(Self).map_err(|_| InvalidPeerId)
    }

    /// The last eight characters, for logs and tables.
    pub fn short(self) -> String {
        let text = self.to_string();
        text[text.len() - 8..].to_owned()
    }

    /// The node's own MAC on its host port: local, and the same after every restart.
    pub fn host_mac(self) -> crate::MacAddr {
        let [a, b, c, d, e, f, ..] = self.0;
        crate::MacAddr::local_from([a, b, c, d, e, f])
    }

    /// The node's own IPv6 address in `network`: its /64 with an interface id from the key (RFC 7217 in spirit).
    pub fn address6(self, network: crate::NetworkId) -> std::net::Ipv6Addr {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&network.ula_prefix());
        octets[8..].copy_from_slice(&self.0[8..16]);
        octets[8] &= 0xfd; // not a universal EUI-64
        octets.into()
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&bs58::encode(self.to_multihash()).into_string())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// Not the peer id of an Ed25519 key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a node id: expected 12D3KooW… (an Ed25519 peer id)")]
pub struct InvalidPeerId;

impl FromStr for PeerId {
    type Err = InvalidPeerId;

    fn from_str(text: &str) -> Result<Self, InvalidPeerId> {
        let bytes = bs58::decode(text).into_vec().map_err(|_| InvalidPeerId)?;
        Self::from_multihash(&bytes)
    }
}

crate::name::serde_as_text!(PeerId, [u8; 32], |id: &PeerId| id.0, |raw| Ok::<_, String>(
    PeerId(raw)
));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_begins_as_libp2p_peer_ids_do_and_reads_back() {
        let id = PeerId([9; 32]);
        assert!(id.to_string().starts_with("12D3KooW"));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("12D3KooW".parse::<PeerId>(), Err(InvalidPeerId));
    }
}
