//! Two workers with a session between them, without engines.

use super::*;
use crate::{
    offload::{Cutter, PartialChecksum, Segmentation, SegmentationKind, UDP_SEGMENTS_MAX},
    session::{Established, Suite},
    snapshot::{PeerView, SessionView, Way},
    switch::testing::*,
    wire::datagram::{DataHeader, RelayHeader, TO_PLACE},
};
use overlay_types::{DhcpMode, MacAddr, PeerId};
use std::time::Duration;
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

#[derive(Default)]
struct Seen {
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    /// From which socket each of them.
    sockets: Vec<u16>,
    frames: Vec<(PortId, Vec<u8>)>,
    /// What is to be done to each of the frames.
    offloads: Vec<Offload>,
    reports: Vec<Report>,
    handed: Vec<(u8, PathAddr, Vec<u8>)>,
    relayed: Vec<(PathAddr, Vec<u8>)>,
    is_full: bool,
}

impl Output for Seen {
    fn transmit(&mut self, hop: Hop, len: usize) -> &mut [u8] {
        self.datagrams.push((hop.to, vec![0; len]));
        self.sockets.push(hop.socket);
        &mut self.datagrams.last_mut().unwrap().1
    }
    fn deliver(&mut self, port: PortId, frame: &[u8], offload: Offload) {
        self.frames.push((port, frame.to_vec()));
        self.offloads.push(offload);
    }
    fn report(&mut self, report: Report) -> bool {
        if !self.is_full {
            self.reports.push(report);
        }
        !self.is_full
    }
    fn relay(&mut self, from: PathAddr, datagram: &[u8]) -> bool {
        self.relayed.push((from, datagram.to_vec()));
        !self.is_full
    }
    fn hand_over(&mut self, worker: u8, from: PathAddr, datagram: &[u8]) {
        self.handed.push((worker, from, datagram.to_vec()));
    }
}

const GUEST: PortId = PortId(2);

fn far() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 9], 4000))
}

fn established(sender: bool) -> Established {
    let (one, two) = (Zeroizing::new([1; 32]), Zeroizing::new([2; 32]));
    let (send_root, recv_root) = if sender { (one, two) } else { (two, one) };
    let (local_index, remote_index) = match sender {
        true => (
            SessionSlot::from_low_bits(10),
            SessionSlot::from_low_bits(20),
        ),
        false => (
            SessionSlot::from_low_bits(20),
            SessionSlot::from_low_bits(10),
        ),
    };
    Established {
        suite: Suite::best(true),
        send_root,
        recv_root,
        local_index,
        remote_index,
        remote_timestamp: 1,
        is_initiator: sender,
    }
}

/// A at port 1 and B behind peer 0, or the other way round at the far end; a session with that peer over `path`.
fn snapshot(sender: bool, path: PathAddr, mtu: u16) -> Arc<Snapshot> {
    let mut view = view(DhcpMode::Overlay);
    if !sender {
        view.ports[1].macs = vec![B];
        let map = Arc::make_mut(&mut view.map);
        for bound in map.bindings.values_mut() {
            bound.place = if bound.mac == A {
                Place::Peer(0)
            } else {
                Place::Port(1)
            };
        }
        for (mac, station) in &mut map.stations {
            station.place = if *mac == A {
                Place::Peer(0)
            } else {
                Place::Port(1)
            };
        }
    }
    let established = Arc::new(established(sender));
    let slot = established.local_index;
    view.peers[0] = PeerView {
        id: PeerId([2; 32]),
        way: Some(Way {
            slot,
            path,
            mtu,
            mtu_likely: mtu,
        }),
    };
    let ports = view
        .ports
        .iter()
        .enumerate()
        .map(|(at, port)| (port.id, 0, at as u16))
        .collect();
    let sessions = vec![SessionView {
        slot,
        established,
        network: 0,
        peer: 0,
    }];
    Arc::new(Snapshot {
        networks: vec![view],
        sessions,
        ports,
        relay_clients: None,
    })
}

fn pair(path: PathAddr, mtu: u16) -> (Worker, Worker, Instant) {
    let t0 = Instant::now();
    let (mut here, mut there) = (Worker::new(0, 1, t0), Worker::new(0, 1, t0));
    here.set_snapshot(snapshot(true, path, mtu));
    there.set_snapshot(snapshot(false, PathAddr::Direct(far()), mtu));
    (here, there, t0)
}

fn send(worker: &mut Worker, frame: &[u8], now: Instant) -> Seen {
    send_offloaded(worker, frame, Offload::NONE, now)
}

fn send_offloaded(worker: &mut Worker, frame: &[u8], offload: Offload, now: Instant) -> Seen {
    let mut seen = Seen::default();
    worker.handle_frame(GUEST, &mut frame.to_vec(), offload, now, &mut seen);
    seen
}

/// As a relay passes it on, if it goes through one; the number of the sender is that of the receiver.
fn passed_on(datagram: &[u8]) -> Vec<u8> {
    match RelayHeader::parse(datagram) {
        Some((header, inner)) if header.kind == TO_PLACE => from_place(header.index(), inner),
        _ => datagram.to_vec(),
    }
}

fn receive(worker: &mut Worker, datagram: &[u8], now: Instant) -> Seen {
    let mut seen = Seen::default();
    worker.handle_datagram(far(), &mut passed_on(datagram), now, &mut seen);
    seen
}

#[test]
fn a_frame_leaves_sealed_and_comes_out_as_it_was() {
    let (mut here, mut there, t0) = pair(PathAddr::Direct(far()), 1472);
    let frame = sized_frame(A, B, IP_A, IP_B, 1000);
    let sent = send(&mut here, &frame, t0);
    assert_eq!((sent.datagrams.len(), sent.datagrams[0].0), (1, far()));
    assert!(
        !sent.datagrams[0].1.windows(6).any(|w| w == A.0),
        "nothing of the frame is readable"
    );
    let got = receive(&mut there, &sent.datagrams[0].1, t0);
    assert_eq!(got.frames, [(GUEST, frame)]);
    assert!(got.reports.iter().any(|r| matches!(
        r,
        Report::Heard {
            from: PathAddr::Direct(_),
            ..
        }
    )));
}

#[test]
fn a_connection_offers_segments_that_fit_one_datagram_of_the_path() {
    const OPTION: [u8; 3] = [2, 4, 5];
    let mut syn = sized_frame(A, B, IP_A, IP_B, 14 + 20 + 24);
    (syn[14 + 9], syn[46], syn[47]) = (6, 6 << 4, 2); // TCP, 24 bytes of header, SYN
    syn[54..57].copy_from_slice(&OPTION);
    syn[57] = 0xb4; // 1460
    let checksum = PartialChecksum {
        start: 34,
        offset: 16,
    };
    for checksum in [None, Some(checksum)] {
        let (mut here, mut there, t0) = pair(PathAddr::Direct(far()), 1472);
        let offload = Offload {
            checksum,
            segmentation: None,
        };
        let sent = send_offloaded(&mut here, &syn, offload, t0);
        let got = receive(&mut there, &sent.datagrams[0].1, t0);
        let frame = &got.frames[0].1;
        let offered = usize::from(u16::from_be_bytes([frame[56], frame[57]]));
        let longest = 14 + 20 + 20 + offered;
        for (bytes, datagrams) in [(longest, 1), (longest + 1, 2)] {
            let segment = sized_frame(A, B, IP_A, IP_B, bytes);
            let sent = send_offloaded(&mut here, &segment, offload, t0);
            let fits = checksum.is_none() || sent.datagrams.len() == datagrams;
            assert!(fits, "{bytes} bytes in {} datagrams", sent.datagrams.len());
        }
        assert!(offered > 1350, "{offered}");
    }
}

#[test]
fn a_newer_snapshot_does_not_start_counters_again() {
    let (mut here, mut there, t0) = pair(PathAddr::Direct(far()), 1472);
    let first = send(&mut here, &sized_frame(A, B, IP_A, IP_B, 100), t0)
        .datagrams
        .remove(0)
        .1;
    receive(&mut there, &first, t0);
    here.set_snapshot(snapshot(true, PathAddr::Direct(far()), 1472));
    there.set_snapshot(snapshot(false, PathAddr::Direct(far()), 1472));
    let second = send(&mut here, &sized_frame(A, B, IP_A, IP_B, 100), t0)
        .datagrams
        .remove(0)
        .1;
    assert_ne!(first[8..16], second[8..16], "a counter is never used twice");
    assert!(
        receive(&mut there, &first, t0).frames.is_empty(),
        "the replay window lasts"
    );
    assert_eq!(receive(&mut there, &second, t0).frames.len(), 1);
}

fn punched(socket: u16) -> PathAddr {
    PathAddr::Punched {
        socket,
        addr: far(),
    }
}

#[test]
fn a_punched_path_leaves_from_its_socket_and_is_heard_on_it() {
    let (mut here, mut there, t0) = pair(punched(7), 1472);
    let sent = send(&mut here, &sized_frame(A, B, IP_A, IP_B, 100), t0);
    assert_eq!((&sent.sockets[..], sent.datagrams[0].0), (&[7][..], far()));

    let (mut got, mut datagram) = (Seen::default(), sent.datagrams[0].1.clone());
    there.handle_punched(9, far(), &mut datagram, t0, &mut got);
    assert_eq!(got.frames.len(), 1);
    assert!(
        got.reports
            .iter()
            .any(|r| matches!(r, Report::Heard { from, .. } if *from == punched(9)))
    );
}

#[test]
fn a_further_socket_takes_stun_and_no_relays_wrapper() {
    let (mut here, _, t0) = pair(PathAddr::Direct(far()), 1472);
    let (mut got, mut question) = (Seen::default(), [0; 20]);
    question[4..8].copy_from_slice(&0x2112_a442_u32.to_be_bytes()); // RFC 8489's magic cookie
    here.handle_punched(9, far(), &mut question, t0, &mut got);
    assert!(matches!(&got.reports[..], [Report::Datagram { from, .. }] if *from == punched(9)));

    let (relay, index) = (far(), 7);
    let (mut sender, mut there, _) = pair(PathAddr::Relayed { relay, index }, 1472);
    let sent = send(&mut sender, &sized_frame(A, B, IP_A, IP_B, 100), t0);
    let (mut got, mut wrapped) = (Seen::default(), sent.datagrams[0].1.clone());
    there.handle_punched(9, far(), &mut wrapped, t0, &mut got);
    assert!(got.frames.is_empty() && got.reports.is_empty());
}

#[test]
fn a_relayed_path_wraps_and_the_wrapper_comes_off() {
    let relay = SocketAddr::from(([203, 0, 113, 1], 3478));
    let (mut here, mut there, t0) = pair(PathAddr::Relayed { relay, index: 7 }, 1472);
    let (to, datagram) = send(&mut here, &sized_frame(A, B, IP_A, IP_B, 1514), t0)
        .datagrams
        .remove(0);
    assert_eq!(
        (to, &datagram[..8]),
        (relay, &[0xA4, 0, 0, 0, 0, 0, 0, 7][..])
    );
    let got = receive(&mut there, &datagram, t0);
    assert!(got.frames.is_empty(), "this is the first half");
    assert!(got.reports.iter().any(|r| matches!(
        r,
        Report::Heard {
            from: PathAddr::Relayed { index: 7, .. },
            ..
        }
    )));
}

/// All that was counted, as it was told.
fn counted(seen: &Seen) -> Counters {
    let mut sum = Counters::default();
    for report in &seen.reports {
        if let Report::Counted(counted) = report {
            sum.merge(counted);
        }
    }
    sum
}

fn from_place(index: u32, inner: &[u8]) -> Vec<u8> {
    [RelayHeader::from(index).as_bytes(), inner].concat()
}

#[test]
fn a_path_through_two_relays_has_two_wrappers_and_no_more() {
    let relay = SocketAddr::from(([203, 0, 113, 1], 3478));
    let path = PathAddr::Chained {
        relay,
        via: 7,
        index: 8,
    };
    let (mut here, mut there, t0) = pair(path, 1472);
    let (to, datagram) = send(&mut here, &sized_frame(A, B, IP_A, IP_B, 500), t0)
        .datagrams
        .remove(0);
    let wrappers = [RelayHeader::to(7).as_bytes(), RelayHeader::to(8).as_bytes()].concat();
    assert_eq!((to, &datagram[..16]), (relay, &wrappers[..]));

    let sealed = &datagram[16..];
    let deep = from_place(7, &from_place(8, &from_place(9, sealed)));
    let mut got = Seen::default();
    there.handle_datagram(far(), &mut deep.clone(), t0, &mut got);
    there.handle_timeout(t0 + Duration::from_secs(1), &mut got);
    assert!(got.frames.is_empty());
    assert_eq!(counted(&got).get(Counter::DropRelayNested), 1);

    let got = receive(&mut there, &from_place(7, &from_place(8, sealed)), t0);
    assert_eq!(got.frames.len(), 1);
    let heard = |r: &Report| matches!(r, Report::Heard { from, .. } if *from == PathAddr::Chained { relay: far(), via: 7, index: 8 });
    assert!(got.reports.iter().any(heard));
}

#[test]
fn only_clients_of_our_relay_have_anything_passed_on() {
    let (client, far_client) = (
        PathAddr::Direct(far()),
        PathAddr::Direct(far()).beyond(5).unwrap(),
    );
    let wrapped = [RelayHeader::to(3).as_bytes(), b"sealed"].concat();
    let nested = from_place(5, &wrapped);
    let asked = crate::relay::message::Message::new(0xA0, 3, 1, [0; 16], &[1; 32]).to_bytes();
    for (clients, passed, asks) in [
        (None, 0, 0),
        (Some(vec![]), 0, 1),
        (Some(vec![client]), 1, 1),
        (Some(vec![client, far_client]), 2, 1),
    ] {
        let (mut here, _, t0) = pair(client, 1472);
        let mut picture = snapshot(false, client, 1472);
        Arc::get_mut(&mut picture).unwrap().relay_clients = clients;
        here.set_snapshot(picture);
        let mut got = Seen::default();
        for datagram in [&wrapped[..], &nested, &asked] {
            here.handle_datagram(far(), &mut datagram.to_vec(), t0, &mut got);
        }
        here.handle_timeout(t0 + Duration::from_secs(1), &mut got);
        assert_eq!(got.relayed.len(), passed);
        assert!(got.relayed.iter().all(|(_, bytes)| *bytes == wrapped));
        let told = |r: &&Report| matches!(r, Report::Datagram { .. });
        assert_eq!(got.reports.iter().filter(told).count(), asks);
        let dropped = counted(&got).get(Counter::DropRelayStranger);
        assert_eq!(dropped as usize, 3 - passed - asks);
    }
}

#[test]
fn a_full_queue_of_relayed_datagrams_is_counted() {
    let client = PathAddr::Direct(far());
    let (mut here, _, t0) = pair(client, 1472);
    let mut picture = snapshot(false, client, 1472);
    Arc::get_mut(&mut picture).unwrap().relay_clients = Some(vec![client]);
    here.set_snapshot(picture);
    let mut got = Seen {
        is_full: true,
        ..Seen::default()
    };
    let mut wrapped = [RelayHeader::to(3).as_bytes(), b"sealed"].concat();
    here.handle_datagram(far(), &mut wrapped, t0, &mut got);
    got.is_full = false;
    here.handle_timeout(t0 + Duration::from_secs(1), &mut got);
    assert_eq!(counted(&got).get(Counter::DropRelayQueue), 1);
}

#[test]
fn a_datagram_of_anothers_lane_is_handed_over_unopened_and_the_engines_is_reported() {
    let (mut here, _, t0) = pair(PathAddr::Direct(far()), 1472);
    let datagram = send(&mut here, &sized_frame(A, B, IP_A, IP_B, 100), t0)
        .datagrams
        .remove(0)
        .1;
    let mut second_of_two = Worker::new(1, 2, t0);
    second_of_two.set_snapshot(snapshot(false, PathAddr::Direct(far()), 1472));
    let got = receive(&mut second_of_two, &datagram, t0);
    assert_eq!(got.handed, [(0, PathAddr::Direct(far()), datagram.clone())]);
    let mut control = datagram;
    (control[1], control[7]) = (0, control[7] & 0xf0);
    let got = receive(&mut second_of_two, &control, t0);
    assert_eq!(
        got.reports,
        [Report::Datagram {
            from: PathAddr::Direct(far()),
            bytes: control
        }]
    );
}

#[test]
fn a_frame_for_a_peer_without_a_session_goes_to_the_engine() {
    let mut here = Worker::new(0, 1, Instant::now());
    let mut snapshot = Arc::into_inner(snapshot(true, PathAddr::Direct(far()), 1472)).unwrap();
    snapshot.networks[0].peers[0].way = None;
    here.set_snapshot(Arc::new(snapshot));
    let sent = send(
        &mut here,
        &sized_frame(A, B, IP_A, IP_B, 100),
        Instant::now(),
    );
    assert!(sent.datagrams.is_empty());
    assert!(matches!(&sent.reports[..], [Report::NoSession { .. }]));
}

#[test]
fn data_of_an_unknown_session_is_told_but_not_without_limit() {
    let (mut here, _, t0) = pair(PathAddr::Direct(far()), 1472);
    let datagram = send(&mut here, &sized_frame(A, B, IP_A, IP_B, 100), t0)
        .datagrams
        .remove(0)
        .1;
    let mut empty = Worker::new(0, 1, t0);
    let told: usize = (0..1000)
        .map(|_| receive(&mut empty, &datagram, t0).reports.len())
        .sum();
    assert!((1..1000).contains(&told), "{told} reports of 1000");
}

/// A sealed control datagram as far as a worker looks at it.
fn control(slot: SessionSlot) -> Vec<u8> {
    [DataHeader::new(slot, 0, 0, 0).as_bytes(), &[0; 20]].concat()
}

#[test]
fn a_flood_of_one_kind_or_session_keeps_no_other_from_the_engine() {
    let (_, mut here, t0) = pair(PathAddr::Direct(far()), 1472);
    let own = established(false).local_index;
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42][..], &[0; 12]].concat();
    let relay = [&[0xA1][..], &[0; 47]].concat();
    let first = [&[0x80][..], &[0; 1215]].concat();
    let strange = control(SessionSlot::from_low_bits(99));
    let kinds = [control(own), stun, relay, first, strange];
    for (flood, flooding) in kinds.iter().enumerate() {
        let at = t0 + Duration::from_secs(60) * (flood as u32 + 1);
        let told = |worker: &mut Worker, datagram: &[u8]| {
            let reports = receive(worker, datagram, at).reports;
            let is_datagram = |report: &&Report| matches!(report, Report::Datagram { .. });
            reports.iter().filter(is_datagram).count()
        };
        let passed: usize = (0..5000).map(|_| told(&mut here, flooding)).sum();
        assert!((1..=1100).contains(&passed), "{passed} of {flood} passed");
        for (other, datagram) in kinds.iter().enumerate().filter(|(n, _)| *n != flood) {
            assert_eq!(told(&mut here, datagram), 1, "{other} while {flood} floods");
        }
    }
}

/// What of these many datagrams from one address goes to the engine.
fn told(
    worker: &mut Worker,
    from: SocketAddr,
    datagram: &[u8],
    times: usize,
    at: Instant,
) -> usize {
    let mut seen = Seen::default();
    for _ in 0..times {
        worker.handle_datagram(from, &mut datagram.to_vec(), at, &mut seen);
    }
    let is_datagram = |report: &&Report| matches!(report, Report::Datagram { .. });
    seen.reports.iter().filter(is_datagram).count()
}

#[test]
fn a_flood_from_one_address_keeps_nobody_elsewhere_from_the_engine() {
    let t0 = Instant::now();
    let mut here = Worker::new(0, 1, t0);
    here.set_snapshot(Arc::new(Snapshot {
        relay_clients: Some(Vec::new()),
        ..Snapshot::default()
    }));
    let stun = [&[0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42][..], &[0; 12]].concat();
    let kinds = [
        [&[0x80][..], &[0; 1215]].concat(),
        [&[0x86][..], &[0; 19]].concat(),
        [&[0xA0][..], &[0; 47]].concat(),
        [&[0xA1][..], &[0; 47]].concat(),
        stun,
        control(SessionSlot::from_low_bits(99)),
    ];
    for (kind, datagram) in kinds.iter().enumerate() {
        let at = t0 + Duration::from_secs(60) * (kind as u32 + 1);
        let passed = told(&mut here, far(), datagram, 100_000, at);
        assert!((1..=1100).contains(&passed), "{passed} of {kind} passed");
        let elsewhere = SocketAddr::from(([198, 51, 100, 7], 4000));
        assert_eq!(told(&mut here, elsewhere, datagram, 4, at), 4, "{kind}");
    }
}

#[test]
fn a_flood_from_everywhere_is_bounded_too() {
    let (_, mut here, t0) = pair(PathAddr::Direct(far()), 1472);
    let first = [&[0x80][..], &[0; 1215]].concat();
    let sources = (0..50_000u32).map(|n| SocketAddr::from(((n << 8).to_be_bytes(), 4000)));
    let passed: usize = sources
        .map(|from| told(&mut here, from, &first, 1, t0))
        .sum();
    assert!((1000..=3048).contains(&passed), "{passed} passed");
}

#[test]
fn what_a_full_report_queue_refuses_is_counted_and_told_later() {
    let (mut here, _, t0) = pair(PathAddr::Direct(far()), 1472);
    let mut full = Seen {
        is_full: true,
        ..Seen::default()
    };
    let mut question = arp_request(A, IP_A, IP_UNBOUND);
    here.handle_frame(GUEST, &mut question, Offload::NONE, t0, &mut full);
    let (at, _) = here.poll_timeout().unwrap();
    let mut seen = Seen::default();
    here.handle_timeout(at, &mut seen);
    let [Report::Counted(counted)] = &seen.reports[..] else {
        panic!("{:?}", seen.reports)
    };
    assert_eq!(counted.get(Counter::DropReportQueue), 1);
    assert_eq!(here.poll_timeout(), None, "an idle worker sleeps");
}

#[test]
fn an_oversized_frame_and_one_of_an_unknown_port_are_dropped() {
    let (mut here, _, t0) = pair(PathAddr::Direct(far()), 1472);
    assert!(
        send(&mut here, &sized_frame(A, B, IP_A, IP_B, 1600), t0)
            .datagrams
            .is_empty()
    );
    let mut seen = Seen::default();
    let mut frame = sized_frame(A, B, IP_A, IP_B, 100);
    here.handle_frame(PortId(99), &mut frame, Offload::NONE, t0, &mut seen);
    here.handle_timeout(t0 + Duration::from_secs(1), &mut seen);
    let [Report::Counted(counted)] = &seen.reports[..] else {
        panic!("{:?}", seen.reports)
    };
    assert_eq!(
        (
            counted.get(Counter::DropOversize),
            counted.get(Counter::DropUnknownPort)
        ),
        (1, 1)
    );
}

#[test]
fn a_peers_group_source_is_malformed() {
    let (mut here, mut there, t0) = pair(PathAddr::Direct(far()), 1472);
    let mut frame = sized_frame(A, B, IP_A, IP_B, 100);
    frame[6..12].copy_from_slice(&MacAddr::BROADCAST.0);
    assert!(send(&mut here, &frame, t0).datagrams.is_empty());
    assert!(receive(&mut there, &[0x84; 40], t0).frames.is_empty());
}

#[test]
fn a_peers_frame_larger_than_the_network_allows_reaches_no_port() {
    let (mut here, mut there, t0) = pair(PathAddr::Direct(far()), 1472);
    let mut wider = Arc::into_inner(snapshot(true, PathAddr::Direct(far()), 1472)).unwrap();
    wider.networks[0].frame_bytes_max = 9000;
    here.set_snapshot(Arc::new(wider));
    let sent = send(&mut here, &sized_frame(A, B, IP_A, IP_B, 2000), t0);
    assert_eq!(sent.datagrams.len(), 2, "it left in halves");
    for (_, datagram) in &sent.datagrams {
        assert!(receive(&mut there, datagram, t0).frames.is_empty());
    }
}

/// A super-frame of A's for B, as a kernel hands it over: TCP, or UDP datagrams of `size` bytes.
fn super_frame(kind: SegmentationKind, payload_bytes: usize, size: u16) -> (Vec<u8>, Offload) {
    let payload: Vec<u8> = (0..payload_bytes).map(|n| (n / 7) as u8).collect();
    let builder =
        etherparse::PacketBuilder::ethernet2(A.0, B.0).ipv4(IP_A.octets(), IP_B.octets(), 64);
    let mut frame = Vec::new();
    let offset = if kind == SegmentationKind::Udp {
        builder.udp(7, 7).write(&mut frame, &payload).unwrap();
        6
    } else {
        builder
            .tcp(7, 7, 1, 4096)
            .write(&mut frame, &payload)
            .unwrap();
        16
    };
    // From the complete checksum to the pseudo-header's sum: take off what lies behind it.
    let at = 34 + offset;
    frame[at..at + 2].fill(0);
    let protocol = frame[23];
    let len = (frame.len() - 34) as u16;
    let sum = !crate::wire::checksum::internet(&[
        &IP_A.octets(),
        &IP_B.octets(),
        &[0, protocol],
        &len.to_be_bytes(),
    ]);
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let offload = Offload {
        checksum: Some(PartialChecksum {
            start: 34,
            offset: offset as u16,
        }),
        segmentation: Some(Segmentation {
            kind,
            size,
            has_ecn: false,
        }),
    };
    (frame, offload)
}

/// What comes out at the far end in one turn.
fn receive_all(worker: &mut Worker, datagrams: &[(SocketAddr, Vec<u8>)], now: Instant) -> Seen {
    let mut seen = Seen::default();
    for (_, datagram) in datagrams {
        worker.handle_datagram(far(), &mut passed_on(datagram), now, &mut seen);
    }
    worker.end_turn(now, &mut seen);
    seen
}

#[test]
fn a_super_frame_leaves_in_pieces_that_fit_and_comes_out_whole() {
    for path in [
        PathAddr::Direct(far()),
        PathAddr::Relayed {
            relay: far(),
            index: 9,
        },
    ] {
        let (mut here, mut there, t0) = pair(path, 1400);
        let (frame, offload) = super_frame(SegmentationKind::Tcp4, 20_000, 1460);
        let sent = send_offloaded(&mut here, &frame, offload, t0);
        assert!(sent.datagrams.len() >= 20_000 / 1400);
        assert!(
            sent.datagrams
                .iter()
                .all(|(_, datagram)| datagram.len() <= 1400)
        );

        let got = receive_all(&mut there, &sent.datagrams, t0);
        let [(_, joined)] = &got.frames[..] else {
            panic!("{} frames", got.frames.len())
        };
        assert_eq!(*joined, frame);
        let size = got.offloads[0].segmentation.unwrap().size;
        assert!((1000..1460).contains(&size), "cut for the path: {size}");
    }
}

#[test]
fn a_lost_piece_costs_itself_alone_and_what_comes_between_keeps_its_place() {
    let (mut here, mut there, t0) = pair(PathAddr::Direct(far()), 1400);
    let (frame, offload) = super_frame(SegmentationKind::Tcp4, 20_000, 1000);
    let plain = sized_frame(A, B, IP_A, IP_B, 300);
    let mut sent = send_offloaded(&mut here, &frame, offload, t0).datagrams;
    sent.remove(5);
    let between = send(&mut here, &plain, t0).datagrams;
    sent.splice(12..12, between);

    let got = receive_all(&mut there, &sent, t0);
    let lens: Vec<_> = got
        .frames
        .iter()
        .map(|(_, frame)| frame.len() - 54)
        .collect();
    assert_eq!(lens, [5 * 1000, 7 * 1000, 300 - 54, 7 * 1000]);
    assert_eq!(got.frames[2].1, plain);
}

#[test]
fn datagrams_larger_than_the_path_go_in_halves_each() {
    let (mut here, mut there, t0) = pair(PathAddr::Direct(far()), 1400);
    let (super_frame, offload) = super_frame(SegmentationKind::Udp, 14_720, 1472);
    let sent = send_offloaded(&mut here, &super_frame, offload, t0).datagrams;
    assert_eq!(sent.len(), 20);
    let got = receive_all(&mut there, &sent, t0);
    let cutter = Cutter::new(&super_frame, &offload, usize::MAX).unwrap();
    assert_eq!(got.frames.len(), 10);
    for (index, ((_, frame), offload)) in got.frames.iter().zip(&got.offloads).enumerate() {
        let whole = offload::for_a_wire(frame, offload);
        assert_eq!(whole, cutter.segment_for_a_wire(&super_frame, index as u16));
    }
}

#[test]
fn the_engine_gets_frames_as_they_would_be_on_a_wire() {
    let (mut here, _, t0) = pair(PathAddr::Direct(far()), 1400);
    let mut alone = Arc::into_inner(snapshot(true, PathAddr::Direct(far()), 1400)).unwrap();
    alone.networks[0].peers[0].way = None;
    here.set_snapshot(Arc::new(alone));
    let (frame, offload) = super_frame(SegmentationKind::Tcp4, 3000, 1460);
    let waiting: Vec<_> = send_offloaded(&mut here, &frame, offload, t0)
        .reports
        .into_iter()
        .filter_map(|report| match report {
            Report::NoSession { frame, .. } => Some(frame),
            _ => None,
        })
        .collect();
    let cutter = Cutter::new(&frame, &offload, usize::MAX).unwrap();
    let segments: Vec<_> = (0..3)
        .map(|n| cutter.segment_for_a_wire(&frame, n))
        .collect();
    assert_eq!(waiting, segments);
}

#[test]
fn what_is_not_what_its_header_says_is_dropped_and_counted() {
    let (mut here, mut there, t0) = pair(PathAddr::Direct(far()), 1400);
    let (mut frame, offload) = super_frame(SegmentationKind::Tcp4, 3000, 1460);
    frame[23] = 17; // UDP, says IP
    assert!(
        send_offloaded(&mut here, &frame, offload, t0)
            .datagrams
            .is_empty()
    );
    let (frame, offload) = super_frame(SegmentationKind::Tcp4, 3000, 9000);
    assert!(
        send_offloaded(&mut here, &frame, offload, t0)
            .datagrams
            .is_empty()
    );

    let (frame, offload) = super_frame(SegmentationKind::Tcp4, 3000, 1460);
    let mut sent = send_offloaded(&mut here, &frame, offload, t0).datagrams;
    sent.truncate(1);
    let got = receive_all(&mut there, &sent, t0);
    assert_eq!(got.frames.len(), 1, "a piece alone is an ordinary frame");
    assert_eq!(got.offloads[0].segmentation, None);
    let mut told = Seen::default();
    here.handle_timeout(t0 + Duration::from_secs(1), &mut told);
    let counted = told.reports.iter().find_map(|report| match report {
        Report::Counted(counted) => Some(counted),
        _ => None,
    });
    let counted = counted.unwrap();
    assert_eq!(
        (
            counted.get(Counter::DropMalformed),
            counted.get(Counter::SuperFramesCut)
        ),
        (1, 1)
    );
}

#[test]
fn datagrams_of_one_flow_come_out_as_one_only_when_asked_for() {
    for (joins, frames) in [(false, 10), (true, 1)] {
        let (mut here, mut there, t0) = pair(PathAddr::Direct(far()), 1400);
        there.set_joined_datagrams_max(if joins { UDP_SEGMENTS_MAX } else { 0 });
        let (frame, offload) = super_frame(SegmentationKind::Udp, 640, 64);
        let cutter = Cutter::new(&frame, &offload, usize::MAX).unwrap();
        let mut sent = Vec::new();
        for index in 0..cutter.count() {
            let mut datagram = vec![0; cutter.piece_len(index)];
            cutter.write(&frame, index, &mut datagram);
            datagram[20] |= 0x40; // it may not be fragmented, so its identification says nothing
            let alone = Offload {
                segmentation: None,
                ..offload
            };
            sent.extend(send_offloaded(&mut here, &datagram, alone, t0).datagrams);
        }
        assert_eq!(receive_all(&mut there, &sent, t0).frames.len(), frames);
    }
}
