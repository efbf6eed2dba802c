//! A session as the engine holds it.

use crate::session::{Established, RecvLane, Rekey, SendLane, SessionSlot};
use overlay_types::PathAddr;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A session with its control lane, which is the engine's own.
pub(in crate::engine) struct Live {
    pub(in crate::engine) slot: SessionSlot,
    pub(in crate::engine) established: Arc<Established>,
    pub(in crate::engine) established_at: Instant,
    pub(super) send: SendLane,
    pub(in crate::engine) recv: RecvLane,
    pub(super) rekey_at: Instant,
    pub(super) expires_at: Instant,
    /// Bytes of the handshake message that it came by, headers included.
    pub(super) handshake_bytes: u64,
    /// Where our response went: whoever uses the session from there has received it.
    pub(super) responded_to: Option<PathAddr>,
}

impl Live {
    pub(super) fn new(
        established: Established,
        handshake_bytes: u64,
        jitter: Duration,
        now: Instant,
    ) -> Self {
        let times = Rekey::new(now, established.is_initiator);
        Self {
            slot: established.local_index,
            send: established.send_lane(0),
            recv: established.recv_lane(0),
            established: Arc::new(established),
            established_at: now,
            rekey_at: times.due_at() - jitter,
            expires_at: times.expires_at(),
            handshake_bytes,
            responded_to: None,
        }
    }
}
