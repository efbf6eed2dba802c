//! Where the parts of handshake messages lie. What they mean is [`crate::session`]'s matter.
//!
//! ```text
//! initiation  type version suite psk_epoch sender_index │ e 32 │ s 32+16 │ time 8, kem 1088, tag 16 │ mac1 16 │ [mac2 16]
//! response    type version 0     psk_epoch receiver_index │ e 32 │ sender_index 4, suite 1, tag 16 │ mac1 16
//! cookie      type version 0     0         receiver_index │ nonce 24 │ cookie 16, tag 16
//! ```

use super::datagram::{COOKIE_REPLY, INITIATION, RESPONSE};
use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The protocol version that we speak.
pub const VERSION: u8 = 1;
/// Bytes of [`HandshakeHeader`].
pub const HANDSHAKE_HEADER_BYTES: usize = 8;
/// Bytes of mac1, and of mac2.
pub const MAC_BYTES: usize = 16;
/// Bytes of an ML-KEM-768 ciphertext (FIPS 203).
pub const KEM_CIPHERTEXT_BYTES: usize = 1088;
/// The Noise part of an initiation.
pub const INITIATION_NOISE_BYTES: usize = 32 + 48 + 8 + KEM_CIPHERTEXT_BYTES + 16;
/// An initiation without a cookie: with a relay wrapper it fits an IPv6 path of 1280 bytes (1232 of UDP payload).
pub const INITIATION_BYTES: usize = HANDSHAKE_HEADER_BYTES + INITIATION_NOISE_BYTES + MAC_BYTES;
/// What a response says: the responder's slot, suite and time.
pub const RESPONSE_PAYLOAD_BYTES: usize = 4 + 1 + 8;
/// The Noise part of a response.
pub const RESPONSE_NOISE_BYTES: usize = 32 + RESPONSE_PAYLOAD_BYTES + 16;
/// A response.
pub const RESPONSE_BYTES: usize = HANDSHAKE_HEADER_BYTES + RESPONSE_NOISE_BYTES + MAC_BYTES;
/// A cookie reply.
pub const COOKIE_REPLY_BYTES: usize = HANDSHAKE_HEADER_BYTES + 24 + 16 + 16;

/// How each handshake message begins.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct HandshakeHeader {
    /// Which message it is.
    pub kind: u8,
    /// [`VERSION`].
    pub version: u8,
    /// What the initiator can do, see [`crate::session::Suite`]; zero in other messages.
    pub suite: u8,
    /// The network key's epoch, modulo 256.
    pub psk_epoch: u8,
    index: U32,
}

impl HandshakeHeader {
    /// A header; `index` is the sender's in an initiation and the receiver's in the answers.
    pub const fn new(kind: u8, suite: u8, psk_epoch: u8, index: u32) -> Self {
        Self {
            kind,
            version: VERSION,
            suite,
            psk_epoch,
            index: U32::new(index),
        }
    }

    /// The sender's index in an initiation, the receiver's in the answers.
    pub const fn index(&self) -> u32 {
        self.index.get()
    }

    /// The header of `message`, if its type, version and length agree.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let header = Self::read_from_prefix(message).ok()?.0;
        let length_fits = match header.kind {
            INITIATION => {
                message.len() == INITIATION_BYTES || message.len() == INITIATION_BYTES + MAC_BYTES
            }
            RESPONSE => message.len() == RESPONSE_BYTES,
            COOKIE_REPLY => message.len() == COOKIE_REPLY_BYTES,
            _ => false,
        };
        (header.version == VERSION && length_fits).then_some(header)
    }
}

const _: () = assert!(
    INITIATION_BYTES + super::datagram::RELAY_HEADER_BYTES <= 1232,
    "fits a 1280-byte IPv6 path through a relay"
);
