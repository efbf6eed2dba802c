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
    /// An address of this host from where a stream carries datagrams to the relay; they go straight there without one.
    pub carrier: Option<SocketAddr>,
}

impl RelayGrant {
    /// Where the data port sends what is for the relay.
    pub fn reach(&self) -> SocketAddr {
        self.carrier.unwrap_or(self.relay)
    }

    /// The place, as peers are told of it.
    pub const fn candidate(&self) -> Candidate {
        Candidate::Relayed {
            via: self.via,
            relay: self.relay,
            index: self.index,
        }
    }

    const fn way(&self) -> RelayWay {
        RelayWay {
            via: self.via,
            carrier: self.carrier,
        }
    }
}

/// How a relay is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayWay {
    /// Who runs the relay.
    pub via: PeerId,
    /// Through the stream that begins at this address of the host, or straight.
    pub carrier: Option<SocketAddr>,
}

/// A place where we are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundPlace {
    /// As peers are told of it.
    pub candidate: Candidate,
    /// How we reach its relay.
    pub way: RelayWay,
    /// Where the data port sends what is for the relay.
    pub reach: SocketAddr,
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
        /// How.
        way: RelayWay,
        /// Where the relay sees us: a reflexive address, unless a stream carries us. When it changes, a NAT moved us.
        observed: SocketAddr,
    },
    /// The relay's answer is late; perhaps datagrams do not get there this way.
    Silent(RelayWay),
    /// The relay does not answer this way, or does not know us.
    Lost(RelayWay),
}
