//! A small network and frames for the tests of the switch and of what stands on it.

use super::Source;
use crate::snapshot::{BoundAddress, NetworkView, PeerView, Place, PortView, Station, StationMap};
use overlay_types::{DhcpMode, MacAddr, NetworkId, PeerId, PortId, PortKind};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

pub(crate) const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
pub(crate) const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
pub(crate) const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xc]);
pub(crate) const STRANGER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xd]);
pub(crate) const IP_A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);
pub(crate) const IP_B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
pub(crate) const IP_UNBOUND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);
pub(crate) const IP6_A: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xa);
pub(crate) const IP6_B: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xb);
pub(crate) const HOST_PORT: Source = Source::Port(0);
pub(crate) const GUEST_PORT: Source = Source::Port(1);
pub(crate) const LAN_PORT: Source = Source::Port(2);
pub(crate) const PEER: Source = Source::Peer(0);
pub(crate) const OTHER_PEER: Source = Source::Peer(1);

/// Guest A behind port 1, B behind peer 0, the host behind port 0, a LAN behind port 2.
pub(crate) fn view(dhcp: DhcpMode) -> NetworkView {
    let port = |id, kind, macs| PortView {
        id: PortId(id),
        kind,
        macs,
    };
    let peer = |byte| PeerView {
        id: PeerId([byte; 32]),
        way: None,
    };
    let bound = |mac, place| BoundAddress { mac, place };
    let station = |place| Station { place, bound: true };
    NetworkView {
        id: NetworkId([9; 32]),
        me: PeerId([1; 32]),
        dhcp,
        frame_bytes_max: 1522,
        ports: vec![
            port(1, PortKind::Host, vec![HOST]),
            port(2, PortKind::Guest, vec![A]),
            port(3, PortKind::Lan, Vec::new()),
        ],
        peers: vec![peer(2), peer(3)],
        map: Arc::new(StationMap {
            bindings: [
                (IpAddr::from(IP_A), bound(A, Place::Port(1))),
                (IP6_A.into(), bound(A, Place::Port(1))),
                (IP_B.into(), bound(B, Place::Peer(0))),
                (IP6_B.into(), bound(B, Place::Peer(0))),
            ]
            .into(),
            stations: [
                (A, station(Place::Port(1))),
                (HOST, station(Place::Port(0))),
                (B, station(Place::Peer(0))),
            ]
            .into(),
        }),
    }
}

fn ethernet(src: MacAddr, dst: MacAddr, kind: u16) -> Vec<u8> {
    [&dst.0[..], &src.0, &kind.to_be_bytes()].concat()
}

pub(crate) fn udp_frame(
    src: MacAddr,
    dst: MacAddr,
    from: Ipv4Addr,
    to: Ipv4Addr,
    sport: u16,
    dport: u16,
) -> Vec<u8> {
    let packet = etherparse::PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(sport, dport);
    let mut frame = ethernet(src, dst, 0x0800);
    packet.write(&mut frame, b"farlan").unwrap();
    frame
}

/// A UDP frame of exactly this size.
pub(crate) fn sized_frame(
    src: MacAddr,
    dst: MacAddr,
    from: Ipv4Addr,
    to: Ipv4Addr,
    bytes: usize,
) -> Vec<u8> {
    let packet = etherparse::PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(7, 7);
    let mut frame = ethernet(src, dst, 0x0800);
    let payload: Vec<u8> = (0..bytes - 14 - 28).map(|n| n as u8).collect();
    packet.write(&mut frame, &payload).unwrap();
    frame
}

pub(crate) fn arp_request(src: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(src, MacAddr::BROADCAST, 0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([&src.0[..], &sender.octets(), &[0; 6], &target.octets()].concat());
    frame
}

pub(crate) fn icmpv6_frame(src: MacAddr, dst: MacAddr, from: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(src, dst, 0x86dd);
    frame.extend([0x60, 0, 0, 0, 0, message.len() as u8, 58, 255]);
    frame.extend(from.octets());
    frame.extend(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets());
    frame.extend(message);
    frame
}

pub(crate) fn neighbor_solicitation(src: MacAddr, from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if !from.is_unspecified() {
        message.extend([&[1, 1][..], &src.0].concat());
    }
    icmpv6_frame(src, MacAddr([0x33, 0x33, 0xff, 0, 0, 1]), from, &message)
}

pub(crate) fn neighbor_advertisement(src: MacAddr, target: Ipv6Addr, says: MacAddr) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target.octets());
    message.extend([&[2, 1][..], &says.0].concat());
    icmpv6_frame(src, MacAddr([0x33, 0x33, 0, 0, 0, 1]), target, &message)
}
