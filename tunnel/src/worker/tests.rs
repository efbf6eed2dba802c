//! Two workers with a session between them, without engines.

use super::*;
use crate::{
    session::{Established, Suite},
    snapshot::{PeerView, SessionView},
    switch::testing::*,
};
use overlay_types::{DhcpMode, MacAddr, PeerId};
use std::time::Duration;
use zeroize::Zeroizing;

#[derive(Default)]
struct Seen {
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    frames: Vec<(PortId, Vec<u8>)>,
    reports: Vec<Report>,
    handed: Vec<(u8, PathAddr, Vec<u8>)>,
    is_full: bool,
}

impl Output for Seen {
    fn transmit(&mut self, to: SocketAddr, datagram: &[u8]) {
        self.datagrams.push((to, datagram.to_vec()));
    }
    fn deliver(&mut self, port: PortId, frame: &[u8]) {
        self.frames.push((port, frame.to_vec()));
    }
    fn report(&mut self, report: Report) -> bool {
        if !self.is_full {
            self.reports.push(report);
        }
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
        for bound in view.bindings.values_mut() {
            bound.place = if bound.mac == A {
                Place::Peer(0)
            } else {
                Place::Port(1)
            };
        }
        for (mac, station) in &mut view.stations {
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
        way: Some(Way { slot, path, mtu }),
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
    let (mut buf, mut seen) = (PacketBuf::new(), Seen::default());
    assert!(buf.fill(frame));
    worker.handle_frame(GUEST, &mut buf, now, &mut seen);
    seen
}

fn receive(worker: &mut Worker, datagram: &[u8], now: Instant) -> Seen {
    let mut seen = Seen::default();
    worker.handle_datagram(far(), &mut datagram.to_vec(), now, &mut seen);
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

#[test]
fn what_a_full_report_queue_refuses_is_counted_and_told_later() {
    let (mut here, _, t0) = pair(PathAddr::Direct(far()), 1472);
    let mut full = Seen {
        is_full: true,
        ..Seen::default()
    };
    let mut buf = PacketBuf::new();
    assert!(buf.fill(&arp_request(A, IP_A, IP_UNBOUND)));
    here.handle_frame(GUEST, &mut buf, t0, &mut full);
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
    let (mut buf, mut seen) = (PacketBuf::new(), Seen::default());
    assert!(buf.fill(&sized_frame(A, B, IP_A, IP_B, 100)));
    here.handle_frame(PortId(99), &mut buf, t0, &mut seen);
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
