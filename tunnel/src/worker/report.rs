//! What a worker wants done and what it tells the engine. Carrying it out, and the queue between the two, is the shell's.

use crate::{offload::Offload, session::SessionSlot, stats::Counters};
use overlay_types::{Location, MacAddr, NetworkId, PathAddr, PeerId, PortId};
use std::net::{IpAddr, SocketAddr};

/// From which of our sockets to which address a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// 0 is the data port's, others are opened by [`crate::engine::Engine::poll_socket`].
    pub socket: u16,
    /// Where to.
    pub to: SocketAddr,
}

impl From<PathAddr> for Hop {
    fn from(path: PathAddr) -> Self {
        Self {
            socket: path.socket(),
            to: path.socket_addr(),
        }
    }
}

/// What a worker wants done; the shell does it at once or drops it.
pub trait Output {
    /// Room for a datagram of so many bytes, which is written at once and leaves at the end of the turn: sealed, and
    /// wrapped if it goes to a relay.
    fn transmit(&mut self, hop: Hop, len: usize) -> &mut [u8];
    /// Write a frame to a local port, with what is still to be done to it.
    fn deliver(&mut self, port: PortId, frame: &[u8], offload: Offload);
    /// Tell the engine; `false` when its queue is full, which the worker counts.
    fn report(&mut self, report: Report) -> bool;
    /// Give a datagram to the engine to be passed on to another member; `false` when too many wait, which the worker counts.
    /// They have a queue of their own, so that nothing of ours waits behind them.
    fn relay(&mut self, from: PathAddr, datagram: &[u8]) -> bool;
    /// Give a datagram, still sealed, to the worker that owns its lane. `from` says how it came: a relay's wrapper is off.
    fn hand_over(&mut self, worker: u8, from: PathAddr, datagram: &[u8]);
}

/// What a worker tells the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A datagram that is not a worker's: handshakes, the control lane, STUN, relay control.
    Datagram {
        /// How it came; a relay's wrapper is off.
        from: PathAddr,
        /// All of it.
        bytes: Vec<u8>,
    },
    /// Data for a session that we do not have: its sender should shake hands again.
    UnknownSession {
        /// How it came.
        from: PathAddr,
        /// How long it was, without a relay's wrapper.
        bytes: usize,
    },
    /// Authenticated datagrams come this way (at most four times a second per session and way).
    Heard {
        /// The session.
        slot: SessionSlot,
        /// How they came.
        from: PathAddr,
    },
    /// Traffic since the last such report (at most four times a second per session).
    Traffic {
        /// The session.
        slot: SessionSlot,
        /// What went over it.
        traffic: Traffic,
    },
    /// A station speaks at a place where the snapshot does not have it, or a while after it was last told.
    StationSeen {
        /// In which network.
        network: NetworkId,
        /// The station.
        mac: MacAddr,
        /// Where.
        at: Location,
    },
    /// A station speaks at a guest port that has none yet.
    GuestSpoke {
        /// Which port.
        port: PortId,
        /// The station.
        mac: MacAddr,
        /// What it said.
        frame: Vec<u8>,
    },
    /// A question about an address that nothing is bound to.
    AddressWanted {
        /// In which network.
        network: NetworkId,
        /// Who asks.
        port: PortId,
        /// Which address.
        ip: IpAddr,
        /// The question, to be answered once the address is bound.
        frame: Vec<u8>,
    },
    /// A station takes an IPv6 address that is bound to nobody.
    AddressTaken {
        /// In which network.
        network: NetworkId,
        /// Where.
        port: PortId,
        /// The station.
        mac: MacAddr,
        /// The address.
        ip: IpAddr,
    },
    /// A frame for the node itself.
    Punted {
        /// In which network.
        network: NetworkId,
        /// Where it came from.
        port: PortId,
        /// All of it.
        frame: Vec<u8>,
    },
    /// A copy of a DHCP or multicast DNS frame that was passed on.
    Snooped {
        /// In which network.
        network: NetworkId,
        /// Where it came from.
        from: Location,
        /// All of it.
        frame: Vec<u8>,
    },
    /// A frame for a peer to which there is no session yet.
    NoSession {
        /// In which network.
        network: NetworkId,
        /// Whom it is for.
        peer: PeerId,
        /// All of it.
        frame: Vec<u8>,
    },
    /// What was counted since the last such report.
    Counted(Box<Counters>),
}

/// What went over one lane of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of sealed datagrams sent.
    pub tx_bytes: u64,
    /// Bytes of sealed datagrams received.
    pub rx_bytes: u64,
    /// Sealed datagrams sent.
    pub tx_datagrams: u64,
    /// Sealed datagrams received.
    pub rx_datagrams: u64,
    /// Whether the lane's keys near their end.
    pub wants_renewal: bool,
}
