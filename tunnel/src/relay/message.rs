//! The relay's own messages, 48 bytes each: a client asks for its place, the relay asks it to prove its address, the
//! client does, the relay says where it saw it. Who sends which when is in `client` and `server`.
//!
//! ```text
//!  0        1         2        4        8        16           32       48
//!  | type   | version | port   | index  | nonce  | token      | mac    |
//! ```
//! `port` and `token` hold the client's address in [`BOUND`], `token` the relay's proof-of-address token in
//! [`CHALLENGE`] and [`CONFIRM`]; otherwise they are zero. All are of one size, so that no answer is longer than its question.

use blake2::Blake2sMac;
use blake2::digest::consts::U16 as SixteenBytes;
use blake2::digest::{FixedOutput, Mac, Update};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "I want my place", or "I still want it".
pub const REQUEST: u8 = 0xA0;
/// "Prove that you receive there."
pub const CHALLENGE: u8 = 0xA1;
/// The token of the challenge, sent back.
pub const CONFIRM: u8 = 0xA2;
/// "It is yours, and I see you there."
pub const BOUND: u8 = 0xA3;

/// Of every message here.
pub const MESSAGE_BYTES: usize = 48;

const VERSION: u8 = 1;
const MAC_AT: usize = MESSAGE_BYTES - 16;

/// One message; believed only after [`Self::is_genuine`] checked its mac.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct Message {
    /// One of the four.
    pub kind: u8,
    version: u8,
    port: U16,
    index: U32,
    nonce: U64,
    /// What it is for depends on the kind.
    pub token: [u8; 16],
    mac: [u8; 16],
}

impl Message {
    /// A message under the key of the place's grant.
    pub fn new(kind: u8, index: u32, nonce: u64, token: [u8; 16], key: &[u8; 32]) -> Self {
        let (index, nonce) = (U32::new(index), U64::new(nonce));
        Self {
            kind,
            version: VERSION,
            port: U16::ZERO,
            index,
            nonce,
            token,
            mac: [0; 16],
        }
        .signed(key)
    }

    /// The relay's last word: the client is bound and seen at `observed`.
    pub fn bound(index: u32, nonce: u64, observed: SocketAddr, key: &[u8; 32]) -> Self {
        let ip = match observed.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let mut message = Self::new(BOUND, index, nonce, ip.octets(), key);
        message.port = U16::new(observed.port());
        message.signed(key)
    }

    /// Reads the message, still without knowing whether it is genuine: its index tells under which key it should be.
    pub fn peek(bytes: &[u8]) -> Option<Self> {
        let message = Self::read_from_bytes(bytes).ok()?;
        ((REQUEST..=BOUND).contains(&message.kind) && message.version == VERSION).then_some(message)
    }

    /// Whether whoever holds `key` wrote it.
    pub fn is_genuine(&self, key: &[u8; 32]) -> bool {
        let mac = keyed(key, &[&self.as_bytes()[..MAC_AT]]);
        aws_lc_rs::constant_time::verify_slices_are_equal(&mac, &self.mac).is_ok()
    }

    /// Which place it is about.
    pub const fn index(&self) -> u32 {
        self.index.get()
    }

    /// Ties an answer to its question.
    pub const fn nonce(&self) -> u64 {
        self.nonce.get()
    }

    /// Where the relay sees the client.
    pub fn observed(&self) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(self.token).to_canonical(), self.port.get())
    }

    /// The message on the wire.
    pub fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        zerocopy::transmute!(self)
    }

    fn signed(mut self, key: &[u8; 32]) -> Self {
        self.mac = keyed(key, &[&self.as_bytes()[..MAC_AT]]);
        self
    }
}

/// BLAKE2s-128 of the parts, in order, under `key`.
pub(super) fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 16] {
    let mut mac = <Blake2sMac<SixteenBytes> as Mac>::new_from_slice(key)
        .expect("BLAKE2s takes keys of up to 32 bytes");
    parts.iter().for_each(|part| Update::update(&mut mac, part));
    mac.finalize_fixed().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_observed_address_survives_the_way_in_both_ip_versions() {
        for addr in ["192.0.2.1:7000", "[2001:db8::1]:7000"] {
            let message = Message::bound(5, 6, addr.parse().unwrap(), &[1; 32]);
            assert!(message.is_genuine(&[1; 32]) && !message.is_genuine(&[2; 32]));
            assert_eq!(
                Message::peek(&message.to_bytes()).unwrap().observed(),
                addr.parse().unwrap()
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_the_key(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(message) = Message::peek(&bytes) {
                prop_assert!(!message.is_genuine(&[3; 32]));
            }
        }

        #[test]
        fn no_changed_byte_goes_unnoticed(at in 0..MESSAGE_BYTES, bit in 0..8u8) {
            let mut bytes = Message::new(REQUEST, 1, 2, [0; 16], &[3; 32]).to_bytes();
            bytes[at] ^= 1 << bit;
            prop_assert!(Message::peek(&bytes).is_none_or(|m| !m.is_genuine(&[3; 32])));
        }
    }
}
