//! A worker between a guest who sends what it likes and a member who seals what it likes.

use crate::input::{AnyFrame, Edits, FAR, FAR_IP, GUEST, GUEST_IP, broken};
use crate::wire::NETWORK;
use bolero::{TypeGenerator, check};
use overlay_types::{DhcpMode, MacAddr, PathAddr, PeerId, PortId, PortKind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tunnel::offload::{Offload, PartialChecksum, Segmentation, SegmentationKind, longest_segment};
use tunnel::packet_buf::PacketBuf;
use tunnel::session::{Established, SendLane, SessionSlot, Suite};
use tunnel::snapshot::{
    BoundAddress, NetworkView, PeerView, Place, PortView, SessionView, Snapshot, Station,
    StationMap, Way,
};
use tunnel::wire::datagram::wrappers;
use tunnel::wire::extension::{HalfHeader, PieceHeader};
use tunnel::worker::{Hop, Output, Report, Worker};
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

const FRAME_MAX: usize = 1514;
const PORTS: [PortId; 3] = [PortId(1), PortId(2), PortId(3)];

#[derive(Clone, Debug, TypeGenerator)]
enum Input {
    /// A frame from a port.
    Frame(u8, AnyFrame),
    /// A frame that a member sealed; and what became of the datagram on its way.
    Sealed(AnyFrame, Edits),
    /// Half of a frame, sealed.
    Half(u8, bool, u16, Vec<u8>),
    /// A frame from a guest with something to be done to it.
    Offloaded(u8, AnyFrame, Vnet),
    /// A piece of a super-frame, sealed.
    Piece(Vnet, u8, u8, bool, AnyFrame),
    /// Anything at all, sealed.
    Plaintext(u8, Vec<u8>),
    Raw(Vec<u8>),
    Wait(u16),
    /// The report queue fills up, or empties.
    Full(bool),
}

/// What a kernel, or a member, says is to be done to a frame.
#[derive(Clone, Debug, TypeGenerator)]
struct Vnet {
    kind: u8,
    size: u16,
    /// Mostly where the transport header is.
    start: u8,
    offset: u8,
}

impl Vnet {
    fn offload(&self) -> Offload {
        let kind = match self.kind % 5 {
            0 => None,
            1 => Some(SegmentationKind::Tcp6),
            2 => Some(SegmentationKind::Udp),
            _ => Some(SegmentationKind::Tcp4),
        };
        let is_odd = self.start >= 0x80;
        let (start, offset) = match (is_odd, kind) {
            (true, _) => (self.start.into(), self.offset.into()),
            (_, Some(SegmentationKind::Udp) | None) => (34, 6),
            (_, Some(SegmentationKind::Tcp4)) => (34, 16),
            (_, Some(SegmentationKind::Tcp6)) => (54, 16),
        };
        let size = self.size % 2000;
        Offload {
            checksum: Some(PartialChecksum { start, offset }),
            segmentation: kind.map(|kind| Segmentation {
                kind,
                size,
                has_ecn: self.offset & 1 != 0,
            }),
        }
    }
}

#[derive(Default)]
struct Sink {
    full: bool,
    done: usize,
    datagram: Vec<u8>,
}

impl Output for Sink {
    fn transmit(&mut self, _hop: Hop, len: usize) -> &mut [u8] {
        self.done += 1;
        assert!(len <= 1280, "no more than the path carries");
        self.datagram.resize(len, 0);
        &mut self.datagram
    }
    fn deliver(&mut self, port: PortId, frame: &[u8], offload: Offload) {
        self.done += 1;
        assert!(PORTS.contains(&port));
        assert!(frame.len() >= 14);
        assert!(longest_segment(frame, &offload).is_some_and(|len| len <= FRAME_MAX));
    }
    fn report(&mut self, _report: Report) -> bool {
        self.done += 1;
        !self.full
    }
    fn relay(&mut self, _from: PathAddr, datagram: &[u8]) -> bool {
        assert!(wrappers(datagram) > 0, "only what is wrapped is relayed");
        !self.full
    }
    fn hand_over(&mut self, worker: u8, _from: PathAddr, _datagram: &[u8]) {
        self.done += 1;
        assert_eq!(worker, 1, "its own are not handed over");
    }
}

fn established(here: bool) -> Established {
    let (one, two) = (Zeroizing::new([1; 32]), Zeroizing::new([2; 32]));
    let (send_root, recv_root) = if here { (one, two) } else { (two, one) };
    let (a, b) = (
        SessionSlot::from_low_bits(10),
        SessionSlot::from_low_bits(20),
    );
    let (local_index, remote_index) = if here { (a, b) } else { (b, a) };
    Established {
        suite: Suite::best(true),
        send_root,
        recv_root,
        local_index,
        remote_index,
        remote_timestamp: 1,
        is_initiator: here,
    }
}

fn snapshot(dhcp: DhcpMode) -> Snapshot {
    let (guest, far) = (MacAddr(GUEST), MacAddr(FAR));
    let (slot, way) = (
        SessionSlot::from_low_bits(10),
        ([192, 0, 2, 9], 4000).into(),
    );
    let path = PathAddr::Direct(way);
    let kinds = [PortKind::Guest, PortKind::Host, PortKind::Lan];
    let port = |(id, kind)| PortView {
        id,
        kind,
        macs: if kind == PortKind::Guest {
            vec![guest]
        } else {
            Vec::new()
        },
    };
    let station = |place| Station { place, bound: true };
    let bound = |mac, place| BoundAddress { mac, place };
    let network = NetworkView {
        id: NETWORK,
        me: PeerId([1; 32]),
        dhcp,
        frame_bytes_max: FRAME_MAX,
        ports: PORTS.into_iter().zip(kinds).map(port).collect(),
        peers: vec![
            PeerView {
                id: PeerId([2; 32]),
                way: Some(Way {
                    slot,
                    path,
                    mtu: 1280,
                    mtu_likely: 1280,
                }),
            },
            PeerView {
                id: PeerId([3; 32]),
                way: None,
            },
        ],
        map: Arc::new(StationMap {
            bindings: [
                (GUEST_IP.into(), bound(guest, Place::Port(0))),
                (FAR_IP.into(), bound(far, Place::Peer(0))),
            ]
            .into(),
            stations: [
                (guest, station(Place::Port(0))),
                (far, station(Place::Peer(0))),
            ]
            .into(),
        }),
    };
    let established = Arc::new(established(true));
    Snapshot {
        networks: vec![network],
        sessions: vec![SessionView {
            slot,
            established,
            network: 0,
            peer: 0,
        }],
        ports: PORTS
            .into_iter()
            .zip(0..)
            .map(|(id, at)| (id, 0, at))
            .collect(),
        relay_clients: Some(vec![PathAddr::Direct(([192, 0, 2, 9], 4000).into())]),
    }
}

fn sealed(lane: &mut SendLane, plaintext: &[u8]) -> Vec<u8> {
    let mut buf = PacketBuf::new();
    assert!(buf.fill(plaintext));
    lane.seal(&mut buf).unwrap();
    buf.payload().to_vec()
}

#[test]
fn a_worker_takes_anything_from_guests_and_members() {
    check!()
        .with_type()
        .for_each(|(lan, inputs): &(bool, Vec<Input>)| {
            let mut now = Instant::now();
            let mut worker = Worker::new(0, 2, now);
            let dhcp = if *lan {
                DhcpMode::Lan
            } else {
                DhcpMode::Overlay
            };
            worker.set_snapshot(Arc::new(snapshot(dhcp)));
            worker.set_joined_datagrams_max(inputs.len() % 20);
            let mut member = established(false).send_lane(1);
            let mut out = Sink::default();
            for input in inputs.iter().take(64) {
                out.done = 0;
                let mut datagram = match input {
                    Input::Frame(port, frame) => {
                        let port = PortId((port % 4).into());
                        worker.handle_frame(port, &mut frame.bytes(), Offload::NONE, now, &mut out);
                        Vec::new()
                    }
                    Input::Offloaded(port, frame, vnet) => {
                        let port = PortId((port % 4).into());
                        worker.handle_frame(
                            port,
                            &mut frame.bytes(),
                            vnet.offload(),
                            now,
                            &mut out,
                        );
                        Vec::new()
                    }
                    Input::Piece(vnet, id, index, is_last, frame) => {
                        let offload = vnet.offload();
                        let (Some(checksum), Some(segmentation)) =
                            (offload.checksum, offload.segmentation)
                        else {
                            continue;
                        };
                        let (id, index) = ((*id % 2).into(), (*index % 4).into());
                        let header =
                            PieceHeader::piece(id, index, *is_last, segmentation, checksum);
                        let plaintext = [header.as_bytes(), &frame.bytes()].concat();
                        sealed(&mut member, &plaintext)
                    }
                    Input::Sealed(frame, edits) => {
                        let plaintext = [&[0][..], &frame.bytes()].concat();
                        broken(&sealed(&mut member, &plaintext), edits)
                    }
                    Input::Half(id, back, total, bytes) => {
                        // Mostly totals that fit, so that halves meet.
                        let total = if *total < 0x8000 {
                            2 * bytes.len() as u16
                        } else {
                            *total
                        };
                        let header =
                            HalfHeader::new((*id % 4).into(), u8::from(*back), total, None);
                        sealed(&mut member, &[header.as_bytes(), bytes].concat())
                    }
                    Input::Plaintext(first, bytes) => {
                        sealed(&mut member, &[&[first % 5][..], bytes].concat())
                    }
                    Input::Raw(bytes) => bytes.clone(),
                    Input::Wait(ms) => {
                        now += Duration::from_millis((*ms).into());
                        worker.handle_timeout(now, &mut out);
                        Vec::new()
                    }
                    Input::Full(full) => {
                        out.full = *full;
                        Vec::new()
                    }
                };
                let from = ([192, 0, 2, 9], 4000).into();
                worker.handle_datagram(from, &mut datagram, now, &mut out);
                worker.end_turn(now, &mut out);
                assert!(out.done < 300, "one input does not make many outputs");
            }
        });
}
