//! Frames through a third node that both peers reach: the relay passes sealed datagrams on and can read nothing.
//! Who may have a place at a relay is agreed over the control plane, which hands both sides a [`RelayGrant`].

pub(crate) mod budget;
pub(crate) mod choice;
mod client;
pub mod message;
mod server;
mod shares;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests;

pub use client::RelayClient;
pub use server::{RelayFull, RelayLimits, RelayServer, RelayStats, Verdict};

use overlay_types::{Candidate, PathAddr, PeerId};
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

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
    /// The relay is reached through another one at `relay`, where it has this number.
    pub through: Option<u32>,
    /// Whether another member relays rather than a fabric node.
    pub is_member: bool,
}

impl RelayGrant {
    /// Where the data port sends what is for the relay.
    pub fn reach(&self) -> PathAddr {
        match (self.carrier, self.through) {
            (Some(carrier), _) => PathAddr::Direct(carrier),
            (None, Some(index)) => PathAddr::Relayed {
                relay: self.relay,
                index,
            },
            (None, None) => PathAddr::Direct(self.relay),
        }
    }

    /// The place, as peers are told of it.
    pub const fn candidate(&self) -> Candidate {
        Candidate::Relayed {
            via: self.via,
            relay: self.relay,
            index: self.index,
        }
    }

    /// Whether both are of one place, however its relay is reached.
    fn is_place_of(&self, other: &Self) -> bool {
        let place = |grant: &Self| (grant.via, grant.index, grant.key, grant.carrier);
        place(self) == place(other)
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
    pub reach: PathAddr,
    /// Whether another member relays rather than a fabric node.
    pub is_member: bool,
    /// Whether the relay's answer is late.
    pub is_silent: bool,
    /// How long its answers take, if one was timed.
    pub rtt: Option<Duration>,
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
