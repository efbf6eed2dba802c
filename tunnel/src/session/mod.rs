//! The keys shared with one peer for one network: how they are agreed on, and frames sealed and opened with them.
//! Whom to have a session with, and when to start one, is decided in the engine; where datagrams go, in [`crate::path`].

mod address;
mod cookie;
mod handshake;
mod keys;
mod lane;
mod mac;
mod noise;
mod rekey;
mod replay;
mod slot_table;
mod timestamp;

pub use address::{answer_challenge, answer_is_by, answered_nonce, challenge};
pub use cookie::{Admission, Cookie, HandshakeGate, HandshakeGateStats};
pub use handshake::{HandshakeError, Initiation, Initiator, open_initiation};
pub use keys::{InvalidKeys, LocalKeys};
pub use lane::{DATAGRAMS_PER_KEY, OpenError, RecvLane, SealError, SendLane};
pub use mac::{mac1, mac1_matches};
pub use rekey::{
    KEEPALIVE_AFTER, REJECT_AFTER, REKEY_AFTER, REKEY_ATTEMPT, REKEY_JITTER_MAX, REKEY_TIMEOUT,
    Rekey,
};
pub use replay::{ReplayWindow, WINDOW_BITS};
pub use slot_table::{SlotTable, SlotTableFull};
pub use timestamp::LastTimestamp;

pub use crate::wire::datagram::SessionSlot;

use zeroize::Zeroizing;

/// How frames are sealed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Suite {
    /// AES-256-GCM, where both sides have the instructions.
    Aes256Gcm,
    /// ChaCha20-Poly1305 everywhere else.
    ChaCha20Poly1305,
}

impl Suite {
    /// The number on the wire.
    pub const fn to_wire(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    /// The suite that a number on the wire means.
    pub const fn from_wire(raw: u8) -> Option<Self> {
        match raw {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    /// The best suite of a side that has, or lacks, AES instructions.
    pub const fn best(aes: bool) -> Self {
        if aes {
            Self::Aes256Gcm
        } else {
            Self::ChaCha20Poly1305
        }
    }
}

/// What a finished handshake gives. The responder must not send before it has opened a datagram of this session: only
/// that proves that the initiator is there and has the keys.
pub struct Established {
    /// How frames are sealed.
    pub suite: Suite,
    /// What the keys of our sending lanes derive from.
    pub send_root: Zeroizing<[u8; 32]>,
    /// What the keys of our receiving lanes derive from.
    pub recv_root: Zeroizing<[u8; 32]>,
    /// What the peer puts into headers.
    pub local_index: SessionSlot,
    /// What we put into headers.
    pub remote_index: SessionSlot,
    /// The peer's time when it spoke (unix nanoseconds): initiations of it that are not newer were recorded.
    pub remote_timestamp: u64,
    /// Whether we began; see [`Rekey`].
    pub is_initiator: bool,
}

impl Established {
    /// The sending half of `lane`.
    pub fn send_lane(&self, lane: u8) -> SendLane {
        SendLane::new(self.suite, &self.send_root, self.remote_index, lane)
    }

    /// The receiving half of `lane`.
    pub fn recv_lane(&self, lane: u8) -> RecvLane {
        RecvLane::new(self.suite, &self.recv_root, lane)
    }
}

impl std::fmt::Debug for Established {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Established")
            .field("suite", &self.suite)
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("is_initiator", &self.is_initiator)
            .finish_non_exhaustive()
    }
}
