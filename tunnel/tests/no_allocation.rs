//! The promise of the frame path: once warm, a frame costs no allocation, whole, in halves or as a super-frame.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]

use etherparse::PacketBuilder;
use overlay_types::{DhcpMode, MacAddr, NetworkId, PathAddr, PeerId, PortId, PortKind};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};
use tunnel::{
    offload::{Offload, PartialChecksum, Segmentation, SegmentationKind, UDP_SEGMENTS_MAX},
    session::{Established, SessionSlot, Suite},
    snapshot::{
        BoundAddress, NetworkView, PeerView, Place, PortView, SessionView, Snapshot, Station,
        StationMap, Way,
    },
    worker::{Hop, Output, Report, Worker},
};
use zeroize::Zeroizing;

/// The system's allocator, which counts what this thread asks for.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is handed to the system's allocator unchanged; counting touches a thread-local `Cell` that needs no
// allocation and no destructor.
#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const PORT: PortId = PortId(1);
const MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2])];
const IPS: [[u8; 4]; 2] = [[10, 77, 0, 1], [10, 77, 0, 2]];

/// What a worker sends and delivers, in memory that is there already.
struct Wire {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    delivered: usize,
    reports: usize,
}

impl Wire {
    fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(1 << 20),
            ends: Vec::with_capacity(1024),
            delivered: 0,
            reports: 0,
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }
}

impl Output for Wire {
    fn transmit(&mut self, _hop: Hop, len: usize) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        self.ends.push(start + len);
        &mut self.bytes[start..]
    }
    fn deliver(&mut self, _port: PortId, _frame: &[u8], _offload: Offload) {
        self.delivered += 1;
    }
    fn report(&mut self, _report: Report) -> bool {
        self.reports += 1;
        true
    }
    fn relay(&mut self, _from: PathAddr, _datagram: &[u8]) -> bool {
        true
    }
    fn hand_over(&mut self, _worker: u8, _from: PathAddr, _datagram: &[u8]) {}
}

fn address(side: usize) -> SocketAddr {
    ([192, 0, 2, 1 + side as u8], 4000).into()
}

/// One side of two: its station behind port 1, the other's behind its only peer.
fn snapshot(side: usize) -> Arc<Snapshot> {
    let roots = [Zeroizing::new([1; 32]), Zeroizing::new([2; 32])];
    let slots = [10, 20].map(SessionSlot::from_low_bits);
    let [send_root, recv_root] = if side == 0 {
        roots
    } else {
        let [one, two] = roots;
        [two, one]
    };
    let established = Established {
        suite: Suite::best(true),
        send_root,
        recv_root,
        local_index: slots[side],
        remote_index: slots[1 - side],
        remote_timestamp: 1,
        is_initiator: side == 0,
    };
    let places = [0, 1].map(|of| {
        if of == side {
            Place::Port(0)
        } else {
            Place::Peer(0)
        }
    });
    let network = NetworkView {
        id: NetworkId([7; 32]),
        me: PeerId([side as u8; 32]),
        dhcp: DhcpMode::Overlay,
        frame_bytes_max: 1518,
        ports: vec![PortView {
            id: PORT,
            kind: PortKind::Guest,
            macs: vec![MACS[side]],
        }],
        peers: vec![PeerView {
            id: PeerId([9; 32]),
            way: Some(Way {
                slot: slots[side],
                path: PathAddr::Direct(address(1 - side)),
                mtu: 1472,
                mtu_likely: 1472,
            }),
        }],
        map: Arc::new(StationMap {
            bindings: [0, 1]
                .map(|of| {
                    let (mac, place) = (MACS[of], places[of]);
                    (IPS[of].into(), BoundAddress { mac, place })
                })
                .into(),
            stations: [0, 1]
                .map(|of| {
                    let (place, bound) = (places[of], true);
                    (MACS[of], Station { place, bound })
                })
                .into(),
        }),
    };
    Arc::new(Snapshot {
        networks: vec![network],
        sessions: vec![SessionView {
            slot: slots[side],
            established: Arc::new(established),
            network: 0,
            peer: 0,
        }],
        ports: vec![(PORT, 0, 0)],
        relay_clients: None,
    })
}

/// A frame from the first side's station to the second's.
fn frame(payload_bytes: usize, is_udp: bool) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(MACS[0].0, MACS[1].0).ipv4(IPS[0], IPS[1], 64);
    let (payload, mut frame) = (vec![7; payload_bytes], Vec::new());
    if is_udp {
        builder.udp(7, 7).write(&mut frame, &payload).unwrap();
    } else {
        builder
            .tcp(7, 7, 1, 4096)
            .write(&mut frame, &payload)
            .unwrap();
    }
    frame
}

#[test]
fn frames_cost_no_allocation_once_the_workers_are_warm() {
    let partial = |offset| Some(PartialChecksum { start: 34, offset });
    let segmentation = |kind, size| {
        Some(Segmentation {
            kind,
            size,
            has_ecn: false,
        })
    };
    let mut kinds = [
        ("a whole frame", frame(64, true), Offload::NONE),
        (
            "a frame with a partial checksum",
            frame(64, true),
            Offload {
                checksum: partial(6),
                segmentation: None,
            },
        ),
        ("a frame in halves", frame(1460, false), Offload::NONE),
        (
            "a super-frame of TCP",
            frame(60_000, false),
            Offload {
                checksum: partial(16),
                segmentation: segmentation(SegmentationKind::Tcp4, 1460),
            },
        ),
        (
            "a super-frame of UDP",
            frame(14_720, true),
            Offload {
                checksum: partial(6),
                segmentation: segmentation(SegmentationKind::Udp, 1472),
            },
        ),
    ];
    let now = Instant::now();
    let (mut here, mut there) = (Worker::new(0, 1, now), Worker::new(0, 1, now));
    here.set_snapshot(snapshot(0));
    there.set_snapshot(snapshot(1));
    let (mut sent, mut got) = (Wire::new(), Wire::new());
    for joins in [false, true] {
        there.set_joined_datagrams_max(if joins { UDP_SEGMENTS_MAX } else { 0 });
        for (what, frame, offload) in &mut kinds {
            let mut carry = || {
                sent.clear();
                here.handle_frame(PORT, frame, *offload, now, &mut sent);
                let mut start = 0;
                for end in sent.ends.iter().copied() {
                    there.handle_datagram(address(0), &mut sent.bytes[start..end], now, &mut got);
                    start = end;
                }
                there.end_turn(now, &mut got);
                (COUNT.get(), got.delivered)
            };
            let before = carry();
            let after = (0..100).map(|_| carry()).last().unwrap();
            assert!(after.1 >= before.1 + 100, "{what} did not arrive");
            assert_eq!(after.0 - before.0, 0, "{what} allocates");
        }
    }
}
