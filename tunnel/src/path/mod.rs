//! Which way a peer is reached: one [`PathAgent`] per peer and network probes every way in, picks the best that works,
//! and moves on when it fails. It knows no keys: the engine seals what it wants to say, and tells it what arrived.

mod control;

pub use control::{CANDIDATES_MAX, ControlMessage};

use overlay_types::{Candidate, PathAddr};
use std::time::{Duration, Instant};

/// One control message to be sealed and sent on a given path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTransmit {
    /// The path, whether or not it is the one in use.
    pub to: PathAddr,
    /// What to say.
    pub msg: ControlMessage,
    /// Pad the sealed datagram (header to tag, a relay wrapper not counted) to exactly this size.
    pub pad_to: Option<u16>,
}

/// What the engine, and through it people, should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathEvent {
    /// Data goes this way from now on, or the way's size or delay changed notably.
    Changed(PathView),
    /// The path in use went silent and nothing else answers yet; reflexive addresses are worth asking for again.
    Distressed,
    /// No path works; time to shake hands again over [`PathAgent::handshake_targets`].
    Lost,
    /// The peer sees us at an address that it had not seen us at before: a reflexive candidate.
    Observed(std::net::SocketAddr),
}

/// The path in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathView {
    /// Where sealed datagrams go.
    pub addr: PathAddr,
    /// Smoothed round trip; zero until the first answer.
    pub rtt: Duration,
    /// Largest sealed datagram (header to tag, a relay wrapper not counted) known to pass.
    pub mtu: u16,
}

/// Chooses the path to one peer.
#[derive(Debug)]
pub struct PathAgent {}

impl PathAgent {
    /// An agent that knows no way yet. `rng_seed` makes probe ids and jitter; give each peer its own.
    pub fn new(_rng_seed: u64, _now: Instant) -> Self {
        Self {}
    }
    /// The peer's ways in by its signed node record.
    pub fn set_remote_candidates(&mut self, _candidates: &[Candidate], _now: Instant) {}
    /// Our own ways in, told to the peer while there is a session.
    pub fn set_local_candidates(&mut self, _candidates: &[Candidate], _now: Instant) {}
    /// Whether to keep the path alive without traffic (on by default).
    pub fn set_eager(&mut self, _eager: bool) {}
    /// A session was established over `via`: it carries data at once, and everything else is probed.
    pub fn handle_session_up(&mut self, _via: PathAddr, _now: Instant) {}
    /// The session is gone, and with it all that was proved.
    pub fn handle_session_down(&mut self, _now: Instant) {}
    /// An authenticated datagram came from there. Tell at least once a second per address while any come.
    pub fn handle_received(&mut self, _from: PathAddr, _now: Instant) {}
    /// An authenticated control message came from there.
    pub fn handle_control(&mut self, _from: PathAddr, _msg: ControlMessage, _now: Instant) {}
    /// Data was sent to the peer. Tell at least once a second while any is.
    pub fn note_traffic(&mut self, _now: Instant) {}
    /// Time passed.
    pub fn handle_timeout(&mut self, _now: Instant) {}
    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<PathTransmit> {
        None
    }
    /// What happened.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        None
    }
    /// The path in use.
    pub fn current(&self) -> Option<PathView> {
        None
    }
    /// Where to send handshake messages now: the path in use first, then every candidate.
    pub fn handshake_targets(&self) -> Vec<PathAddr> {
        Vec::new()
    }
}
