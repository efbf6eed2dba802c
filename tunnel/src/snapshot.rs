//! What workers know of the world: an immutable picture that the engine draws anew when anything changes.
//! Places are small numbers that hold within one picture only; names that last are `PortId`, `PeerId` and slots.

use crate::session::{Established, SessionSlot};
use overlay_types::{DhcpMode, Location, MacAddr, NetworkId, PathAddr, PeerId, PortId, PortKind};
use std::{collections::HashMap, net::IpAddr, sync::Arc};

/// Everything that a worker needs to pass frames.
#[derive(Default)]
pub struct Snapshot {
    /// Networks in the order of their ids.
    pub networks: Vec<NetworkView>,
    /// Every session whose datagrams are to be opened.
    pub sessions: Vec<SessionView>,
    /// Ports of all networks in the order of their ids: network and place there.
    pub ports: Vec<(PortId, u16, u16)>,
    /// For whom this node passes datagrams on, in order; `None` when it is no relay.
    pub relay_clients: Option<Vec<PathAddr>>,
}

/// One network.
pub struct NetworkView {
    /// Which one.
    pub id: NetworkId,
    /// This node in it.
    pub me: PeerId,
    /// Who serves addresses.
    pub dhcp: DhcpMode,
    /// Largest frame that may pass.
    pub frame_bytes_max: usize,
    /// Local ports in the order of their ids.
    pub ports: Vec<PortView>,
    /// The other members that we know, in the order of their ids.
    pub peers: Vec<PeerView>,
    /// Who is where: the same in many pictures, for there may be thousands of stations and ways change often.
    pub map: Arc<StationMap>,
}

/// Where the stations of a network are.
#[derive(Clone, Default)]
pub struct StationMap {
    /// What ARP and neighbour discovery are answered from.
    pub bindings: HashMap<IpAddr, BoundAddress>,
    /// Where stations are, bound or learned.
    pub stations: HashMap<MacAddr, Station>,
}

/// A local port.
pub struct PortView {
    /// Which one.
    pub id: PortId,
    /// Whose frames come from it.
    pub kind: PortKind,
    /// Who may speak there, in order.
    pub macs: Vec<MacAddr>,
}

/// Another member.
pub struct PeerView {
    /// Which one.
    pub id: PeerId,
    /// How frames get there; `None` until a session and a path are up.
    pub way: Option<Way>,
}

/// How frames get to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// Our number of the session to seal with.
    pub slot: SessionSlot,
    /// Where the datagrams go.
    pub path: PathAddr,
    /// Largest sealed datagram that passes, a relay wrapper not counted.
    pub mtu: u16,
    /// The same as far as it is to be expected before it is known.
    pub mtu_likely: u16,
}

/// A session; from it each worker makes the keys of its own lane.
pub struct SessionView {
    /// Our number of it.
    pub slot: SessionSlot,
    /// What the handshake agreed.
    pub established: Arc<Established>,
    /// Place of the network in [`Snapshot::networks`].
    pub network: u16,
    /// Place of the peer in [`NetworkView::peers`].
    pub peer: u16,
}

/// Where something is, within one network of one snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// Behind a local port.
    Port(u16),
    /// Behind another member.
    Peer(u16),
    /// Behind a port or member that we do not (any longer) know.
    Elsewhere,
}

/// The station that an address belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BoundAddress {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Where it is.
    pub place: Place,
}

/// Where a station is, and how we know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Station {
    /// Where it is.
    pub place: Place,
    /// By a binding, which frames cannot move; otherwise learned from frames, which can.
    pub bound: bool,
}

impl Snapshot {
    /// The network of a port, and the port's place in it.
    pub fn port(&self, id: PortId) -> Option<(u16, u16)> {
        let at = self.ports.binary_search_by_key(&id, |&(id, ..)| id).ok()?;
        let (_, network, port) = self.ports[at];
        Some((network, port))
    }

    /// Whether a port or member of a network is in the picture.
    pub fn has(&self, network: NetworkId, at: Location) -> bool {
        let Some(network) = self.network(network) else {
            return false;
        };
        match at {
            Location::Port(port) => self.port(port).is_some_and(|(of, _)| of == network),
            Location::Peer(peer) => self.networks[usize::from(network)].peer(peer).is_some(),
        }
    }

    /// The place of a network.
    pub fn network(&self, id: NetworkId) -> Option<u16> {
        self.networks
            .binary_search_by_key(&id, |n| n.id)
            .ok()
            .map(|at| at as u16)
    }
}

impl NetworkView {
    /// Where a station is.
    pub fn station(&self, mac: MacAddr) -> Option<Station> {
        self.map.stations.get(&mac).copied()
    }

    /// Whom an address belongs to.
    pub fn binding(&self, ip: IpAddr) -> Option<BoundAddress> {
        self.map.bindings.get(&ip).copied()
    }

    /// The place of a member.
    pub fn peer(&self, id: PeerId) -> Option<u16> {
        self.peers
            .binary_search_by_key(&id, |p| p.id)
            .ok()
            .map(|at| at as u16)
    }
}
