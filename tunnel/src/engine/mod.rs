//! The slow half of the data plane, for all networks of a node: who the peers are, their sessions and paths, what workers
//! report. It orders the stages and holds no policy: that lives in `switch`, `session` and `path`.

mod message;

pub use message::{Command, DownReason, EngineConfig, Event, PeerStats, Transmit};

use crate::{snapshot::Snapshot, stats::Counters, worker::Report};
use overlay_types::PortId;
use std::{sync::Arc, time::Instant};

/// The engine of one node.
pub struct Engine {
    counters: Counters,
}

impl Engine {
    /// An engine without networks.
    pub fn new(_config: EngineConfig, _now: Instant) -> Self {
        Self {
            counters: Counters::default(),
        }
    }
    /// The node wants something.
    pub fn handle_command(&mut self, _command: Command, _now: Instant) {}
    /// A worker tells something.
    pub fn handle_report(&mut self, _report: Report, _now: Instant) {}
    /// Time passed.
    pub fn handle_timeout(&mut self, _now: Instant) {}
    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        None
    }
    /// The next frame to write to a local port.
    pub fn poll_frame(&mut self) -> Option<(PortId, Vec<u8>)> {
        None
    }
    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }
    /// A newer picture for the workers, if anything changed since the last call. Take it after every `handle_*`.
    pub fn take_snapshot(&mut self, _now: Instant) -> Option<Arc<Snapshot>> {
        None
    }
    /// Every peer, in the order of networks and ids.
    pub fn peer_stats(&self, _now: Instant) -> Vec<PeerStats> {
        Vec::new()
    }
    /// Everything that was counted, by the engine and by the workers as far as they told.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
