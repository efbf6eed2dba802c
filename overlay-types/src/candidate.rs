//! Ways in which a node may be reached (RFC 8445's word, without the rest of ICE).

use crate::PeerId;
use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr};

/// Where a datagram goes: straight, or through a relay which is given the receiver's index there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PathAddr {
    /// UDP straight to this address.
    Direct(SocketAddr),
    /// UDP straight to `addr`, from a local socket beside the data port's: it has another mapping at our NAT.
    Punched {
        /// The number of the socket; 0 is the data port's own and never stands here.
        socket: u16,
        /// Where to.
        addr: SocketAddr,
    },
    /// Wrapped, to `relay`, for whoever is bound there as `index`.
    Relayed {
        /// The relay's UDP address.
        relay: SocketAddr,
        /// The receiver's number at that relay.
        index: u32,
    },
    /// Wrapped twice: to `relay`, for another relay that is bound there as `via`, for whoever is bound at that one as
    /// `index`. There are no longer chains.
    Chained {
        /// The first relay's UDP address.
        relay: SocketAddr,
        /// The second relay's number at the first.
        via: u32,
        /// The receiver's number at the second.
        index: u32,
    },
}

impl PathAddr {
    /// How many relays stand between, each with a wrapper of its own.
    pub const fn relays(self) -> usize {
        match self {
            Self::Direct(_) | Self::Punched { .. } => 0,
            Self::Relayed { .. } => 1,
            Self::Chained { .. } => 2,
        }
    }

    /// Where whoever is bound as `index` is reached at a relay that is itself reached here. `None` where the chain would be
    /// too long, or would begin at a socket that relays do not know.
    pub const fn beyond(self, index: u32) -> Option<Self> {
        match self {
            Self::Direct(relay) => Some(Self::Relayed { relay, index }),
            Self::Relayed { relay, index: via } => Some(Self::Chained { relay, via, index }),
            Self::Punched { .. } | Self::Chained { .. } => None,
        }
    }

    /// The inverse of [`Self::beyond`]: where the last relay is reached, and the receiver's number there.
    pub const fn last_relay(self) -> Option<(Self, u32)> {
        match self {
            Self::Direct(_) | Self::Punched { .. } => None,
            Self::Relayed { relay, index } => Some((Self::Direct(relay), index)),
            Self::Chained { relay, via, index } => {
                Some((Self::Relayed { relay, index: via }, index))
            }
        }
    }

    /// The address that the UDP socket sends to.
    pub const fn socket_addr(self) -> SocketAddr {
        match self {
            Self::Direct(addr)
            | Self::Punched { addr, .. }
            | Self::Relayed { relay: addr, .. }
            | Self::Chained { relay: addr, .. } => addr,
        }
    }

    /// The number of the local socket that sends there; 0 is the data port's.
    pub const fn socket(self) -> u16 {
        match self {
            Self::Punched { socket, .. } => socket,
            Self::Direct(_) | Self::Relayed { .. } | Self::Chained { .. } => 0,
        }
    }

    /// What people are told about such a path.
    pub const fn kind(self) -> PathKind {
        match self {
            Self::Direct(_) | Self::Punched { .. } => PathKind::Direct,
            Self::Relayed { .. } | Self::Chained { .. } => PathKind::Relay,
        }
    }
}

impl fmt::Display for PathAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(addr) | Self::Punched { addr, .. } => write!(f, "{addr}"),
            Self::Relayed { relay, .. } => write!(f, "relay {relay}"),
            Self::Chained { relay, .. } => write!(f, "two relays from {relay}"),
        }
    }
}

/// The kind of a path, as `farlan peers` shows it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// UDP between the two nodes with nobody between.
    Direct,
    /// Through another node's UDP relay.
    Relay,
    /// Over a TCP, TLS or SSH stream.
    Stream,
}

/// One way a node says it may be reached. Signed as part of its node record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Candidate {
    /// An address of one of the node's own interfaces (never the overlay's).
    Host(SocketAddr),
    /// What a STUN server saw (RFC 8489), server-reflexive.
    Reflexive(SocketAddr),
    /// A binding at a relay.
    Relayed {
        /// Who runs the relay.
        via: PeerId,
        /// The relay's UDP address.
        relay: SocketAddr,
        /// Our number there.
        index: u32,
    },
    /// A port that our router maps to us (PCP, NAT-PMP, UPnP): open to everybody.
    Mapped(SocketAddr),
}

impl Candidate {
    /// Where to send to reach it.
    pub const fn path_addr(self) -> PathAddr {
        match self {
            Self::Host(addr) | Self::Reflexive(addr) | Self::Mapped(addr) => PathAddr::Direct(addr),
            Self::Relayed { relay, index, .. } => PathAddr::Relayed { relay, index },
        }
    }
}
