//! Frames through a third node that both peers reach: the relay passes sealed datagrams on and can read nothing.
//! Who may have a place at a relay is agreed over the control plane, which hands both sides a [`RelayGrant`].

use overlay_types::{Candidate, PeerId};
use std::{net::SocketAddr, time::Instant};

/// A place at a relay, as its node granted it over an authenticated control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayGrant {
    /// Who runs the relay.
    pub via: PeerId,
    /// The relay's UDP address.
    pub relay: SocketAddr,
    /// Our number there.
    pub index: u32,
    /// Proves to the relay that it is us; shared with nobody else.
    pub key: [u8; 32],
}

/// What the client wants known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// Peers reach us there now. `observed` is where the relay sees us.
    Bound {
        /// The place, to be published.
        candidate: Candidate,
        /// Where the relay sees us: a reflexive address.
        observed: SocketAddr,
    },
    /// The relay does not answer or does not know us: ask its node for a new grant.
    Lost(Candidate),
}

/// Binds our data port at relays and keeps the bindings.
#[derive(Debug)]
pub struct RelayClient {}

impl RelayClient {
    /// A client without grants.
    pub fn new(_rng_seed: u64, _now: Instant) -> Self {
        Self {}
    }
    /// The places we hold, replacing what was said before; unchanged ones keep their binding.
    pub fn set_grants(&mut self, _grants: &[RelayGrant], _now: Instant) {}
    /// Bind again at once: the network under us changed.
    pub fn refresh(&mut self, _now: Instant) {}
    /// A relay control datagram (0xA0–0xA3) arrived on the data port.
    pub fn handle_datagram(&mut self, _from: SocketAddr, _bytes: &[u8], _now: Instant) {}
    /// Time passed.
    pub fn handle_timeout(&mut self, _now: Instant) {}
    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        None
    }
    /// What happened.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        None
    }
    /// The places where we are bound now.
    pub fn bound(&self) -> Vec<Candidate> {
        Vec::new()
    }
    /// Whether datagrams from this address may be a relay's.
    pub fn is_relay(&self, _addr: SocketAddr) -> bool {
        false
    }
}
