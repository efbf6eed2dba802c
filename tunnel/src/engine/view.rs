//! Draws the picture of the world that workers work from.

use super::network::{Local, Network};
use crate::relay::RelayServer;
use crate::snapshot::{
    BoundAddress, NetworkView, PeerView, Place, PortView, SessionView, Snapshot, Station,
    StationMap,
};
use crate::wire::{datagram::OVERHEAD_BYTES, extension::PIECE_HEADER_BYTES};
use overlay_types::{Location, MacAddr, NetworkId, PortId};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// An Ethernet header and two VLAN tags around the largest IP packet.
const FRAME_OVERHEAD: usize = 22;

/// The largest frame of a network.
pub(super) fn frame_bytes_max(local: &Local) -> usize {
    usize::from(local.mtu) + FRAME_OVERHEAD
}

/// The datagram that carries such a frame whole, as UDP's payload.
pub(super) fn datagram_bytes_max(local: &Local) -> u16 {
    let bytes = frame_bytes_max(local) + PIECE_HEADER_BYTES + OVERHEAD_BYTES;
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

/// The whole picture. Where the stations are is taken from `known`, a picture of the same networks, ports, peers and
/// stations, if there is one.
pub(super) fn snapshot(
    networks: &BTreeMap<NetworkId, Network>,
    relay: Option<&RelayServer>,
    known: Option<&Snapshot>,
) -> Snapshot {
    let mut snapshot = Snapshot {
        relay_clients: relay.map(|relay| relay.clients().collect()),
        ..Snapshot::default()
    };
    for (at, network) in networks.values().enumerate() {
        let map = known.map(|known| Arc::clone(&known.networks[at].map));
        let at = at as u16;
        for (peer, member) in network.peers.values().enumerate() {
            snapshot
                .sessions
                .extend(member.sessions().map(|live| SessionView {
                    slot: live.slot,
                    established: Arc::clone(&live.established),
                    network: at,
                    peer: peer as u16,
                }));
        }
        snapshot.ports.extend(
            network
                .ports
                .keys()
                .enumerate()
                .map(|(place, &id)| (id, at, place as u16)),
        );
        snapshot.networks.push(view(network, map));
    }
    snapshot.ports.sort_unstable();
    snapshot
}

fn view(network: &Network, map: Option<Arc<StationMap>>) -> NetworkView {
    let ports = network
        .ports
        .iter()
        .map(|(&id, port)| PortView {
            id,
            kind: port.kind,
            macs: port.macs.clone(),
        })
        .collect();
    let peers = network.peers.iter().map(|(&id, peer)| PeerView {
        id,
        way: peer.way(),
    });
    let mut view = NetworkView {
        id: network.local.id,
        me: network.local.me,
        dhcp: network.local.dhcp,
        frame_bytes_max: frame_bytes_max(&network.local),
        ports,
        peers: peers.collect(),
        map: Arc::default(),
    };
    view.map = map.unwrap_or_else(|| {
        Arc::new(StationMap {
            bindings: bindings(network, &view),
            stations: stations(network, &view),
        })
    });
    view
}

fn bindings(network: &Network, view: &NetworkView) -> HashMap<IpAddr, BoundAddress> {
    let bound = network.bindings.iter().map(|(&ip, &(mac, at))| {
        let place = place(network, view, mac, at);
        (ip, BoundAddress { mac, place })
    });
    bound.collect()
}

/// Later ones win: what is bound is stronger than what a port lists, a member's own MAC, and what was learned.
fn stations(network: &Network, view: &NetworkView) -> HashMap<MacAddr, Station> {
    let learned = network.stations.iter().map(|(mac, at)| (mac, at, false));
    let members = network
        .peers
        .keys()
        .map(|&peer| (peer.host_mac(), Location::Peer(peer), true));
    let listed = network.ports.iter().flat_map(|(&id, port)| {
        port.macs
            .iter()
            .map(move |&mac| (mac, Location::Port(id), true))
    });
    let bound = network.bindings.values().map(|&(mac, at)| (mac, at, true));
    learned
        .chain(members)
        .chain(listed)
        .chain(bound)
        .map(|(mac, at, bound)| {
            (
                mac,
                Station {
                    place: place(network, view, mac, at),
                    bound,
                },
            )
        })
        .collect()
}

fn place(network: &Network, view: &NetworkView, mac: MacAddr, at: Location) -> Place {
    let port_place = |id: PortId| {
        view.ports
            .binary_search_by_key(&id, |p| p.id)
            .ok()
            .map(|at| Place::Port(at as u16))
    };
    let place = match at {
        Location::Port(id) => port_place(id),
        // Our own stations, as other members see them: behind the port that lists them.
        Location::Peer(peer) if peer == view.me => network
            .ports
            .iter()
            .find(|(_, port)| port.macs.contains(&mac))
            .and_then(|(&id, _)| port_place(id)),
        Location::Peer(peer) => view.peer(peer).map(Place::Peer),
    };
    place.unwrap_or(Place::Elsewhere)
}
