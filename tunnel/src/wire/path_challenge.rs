//! How an address is asked whether a member receives there before anything longer goes to it (RFC 9000 §8.2), and the answer,
//! which is as long. What they mean is [`crate::session`]'s matter.
//!
//! ```text
//! type version 0 0 │ nonce 8 │ mac 8
//! ```

use super::datagram::{PATH_CHALLENGE, PATH_RESPONSE};
use super::handshake::VERSION;
use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a challenge, and of the response.
pub const PATH_CHALLENGE_BYTES: usize = MACKED_BYTES + PATH_MAC_BYTES;
/// Bytes of the mac: it only keeps strangers from being answered.
pub const PATH_MAC_BYTES: usize = 8;
/// What the mac covers: all before it.
pub const MACKED_BYTES: usize = 12;

/// A challenge or a response.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct PathChallenge {
    kind: u8,
    version: u8,
    reserved: U16,
    /// Chosen by who asks, and repeated by who answers.
    pub nonce: [u8; 8],
    /// Over all before it.
    pub mac: [u8; PATH_MAC_BYTES],
}

impl PathChallenge {
    /// A challenge, without its mac.
    pub const fn ask(nonce: [u8; 8]) -> Self {
        Self::new(PATH_CHALLENGE, nonce)
    }

    /// The response to it, without its mac.
    pub const fn answer(&self) -> Self {
        Self::new(PATH_RESPONSE, self.nonce)
    }

    const fn new(kind: u8, nonce: [u8; 8]) -> Self {
        Self {
            kind,
            version: VERSION,
            reserved: U16::ZERO,
            nonce,
            mac: [0; PATH_MAC_BYTES],
        }
    }

    /// What the mac covers.
    pub fn macked(&self) -> &[u8] {
        &self.as_bytes()[..MACKED_BYTES]
    }

    /// Whether it asks, rather than answers.
    pub const fn is_question(&self) -> bool {
        self.kind == PATH_CHALLENGE
    }

    /// What `datagram` is, if its length, version and reserved bytes agree.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let parsed = Self::read_from_bytes(datagram).ok()?;
        let is_sound = matches!(parsed.kind, PATH_CHALLENGE | PATH_RESPONSE)
            && parsed.version == VERSION
            && parsed.reserved.get() == 0;
        is_sound.then_some(parsed)
    }
}
