//! Frames through a third node that both peers reach: the relay passes sealed datagrams on and can read nothing.
//! Who may have a place at a relay is agreed over the control plane, which hands both sides a [`RelayGrant`].

pub(crate) mod budget;
mod client;
pub mod message;
mod server;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests;

pub use client::RelayClient;
pub use server::{RelayFull, RelayLimits, RelayServer, RelayStats, Verdict};

use overlay_types::{Candidate, PeerId};
use std::fmt;
use std::net::SocketAddr;

/// A place at a relay, as its node granted it over an authenticated control connection.
#[derive(Clone, PartialEq, Eq)]
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

impl fmt::Debug for RelayGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RelayGrant {{ {:?} at {}, index {} }}",
            self.via, self.relay, self.index
        ) // not the key
    }
}

/// What the client wants known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// Peers reach us there now. `observed` is where the relay sees us.
    Bound {
        /// The place, to be published.
        candidate: Candidate,
        /// Where the relay sees us: a reflexive address. When it changes, a NAT moved us.
        observed: SocketAddr,
    },
    /// The relay does not answer or does not know us: ask its node for a new grant.
    Lost(Candidate),
}
