//! What goes in comes out: byte for byte once checksums are completed, in order, whatever is lost on the way.

use super::*;
use crate::wire::extension::{PIECE_HEADER_BYTES, PieceHeader};
use etherparse::{
    EtherType, IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, SlicedPacket,
    TcpHeader, TransportSlice, UdpHeader,
};
use proptest::prelude::*;
use zerocopy::IntoBytes;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

/// How a super-frame looks.
#[derive(Clone, Debug)]
struct Shape {
    kind: SegmentationKind,
    is_v6: bool,
    tags: usize,
    options: bool,
    fin: bool,
    size: u16,
    payload: Vec<u8>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let kind = prop_oneof![
        Just(SegmentationKind::Tcp4),
        Just(SegmentationKind::Tcp6),
        Just(SegmentationKind::Udp)
    ];
    let payload = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 1..6_000),
        1 => proptest::collection::vec(any::<u8>(), 60_000..65_000),
    ];
    (
        kind,
        any::<bool>(),
        0..3usize,
        any::<bool>(),
        any::<bool>(),
        600..1_500u16,
        payload,
    )
        .prop_map(|(kind, is_v6, tags, options, fin, size, payload)| Shape {
            kind,
            is_v6: match kind {
                SegmentationKind::Tcp4 => false,
                SegmentationKind::Tcp6 => true,
                SegmentationKind::Udp => is_v6,
            },
            tags,
            options,
            fin,
            size,
            payload,
        })
}

/// The super-frame, as a kernel hands it over.
fn super_frame(shape: &Shape) -> (Vec<u8>, Offload) {
    let transport = transport_header(shape);
    let transport_bytes = transport.len() + shape.payload.len();
    let (protocol, offset) = match shape.kind {
        SegmentationKind::Udp => (IpNumber::UDP, 6),
        _ => (IpNumber::TCP, 16),
    };
    let mut frame = [MACS[1], MACS[0]].concat();
    for _ in 0..shape.tags {
        frame.extend([0x81, 0, 0, 7]);
    }
    let pseudo_sum;
    if shape.is_v6 {
        frame.extend(EtherType::IPV6.0.to_be_bytes());
        let header = Ipv6Header {
            payload_length: transport_bytes as u16,
            next_header: protocol,
            hop_limit: 64,
            source: [0xfd; 16],
            destination: [0xfe; 16],
            ..Ipv6Header::default()
        };
        header.write(&mut frame).unwrap();
        pseudo_sum = pseudo(
            &[&header.source, &header.destination],
            protocol,
            transport_bytes,
        );
    } else {
        frame.extend(EtherType::IPV4.0.to_be_bytes());
        let mut header = Ipv4Header::new(
            transport_bytes as u16,
            64,
            protocol,
            [10, 0, 0, 1],
            [10, 0, 0, 2],
        )
        .unwrap();
        (header.identification, header.dont_fragment) = (0xfffe, true);
        header.fragment_offset = IpFragOffset::ZERO;
        header.header_checksum = header.calc_header_checksum();
        header.write(&mut frame).unwrap();
        pseudo_sum = pseudo(
            &[&header.source, &header.destination],
            protocol,
            transport_bytes,
        );
    }
    let start = frame.len();
    frame.extend(&transport);
    frame[start + offset..start + offset + 2].copy_from_slice(&pseudo_sum.to_be_bytes());
    frame.extend(&shape.payload);
    let offload = Offload {
        checksum: Some(PartialChecksum {
            start: start as u16,
            offset: offset as u16,
        }),
        segmentation: Some(Segmentation {
            kind: shape.kind,
            size: shape.size,
            has_ecn: false,
        }),
    };
    (frame, offload)
}

fn transport_header(shape: &Shape) -> Vec<u8> {
    if shape.kind == SegmentationKind::Udp {
        let header = UdpHeader {
            source_port: 1000,
            destination_port: 2000,
            length: (8 + shape.payload.len()) as u16,
            checksum: 0,
        };
        return header.to_bytes().to_vec();
    }
    let mut header = TcpHeader::new(1000, 2000, u32::MAX - 1000, 4096);
    (header.ack, header.psh, header.fin, header.cwr) = (true, true, shape.fin, true);
    if shape.options {
        header
            .set_options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8])
            .unwrap();
    }
    header.to_bytes().to_vec()
}

/// The folded sum of a pseudo-header.
fn pseudo(addresses: &[&[u8]; 2], protocol: IpNumber, bytes: usize) -> u16 {
    let rest = [0, 0, 0, protocol.0, (bytes >> 8) as u8, bytes as u8];
    !crate::wire::checksum::internet(&[addresses[0], addresses[1], &rest])
}

/// The segments of a super-frame, as they would be on a wire.
fn segments(frame: &[u8], offload: &Offload, len_max: usize) -> Vec<Vec<u8>> {
    match Cutter::new(frame, offload, len_max) {
        Ok(cutter) => (0..cutter.count())
            .map(|index| cutter.segment_for_a_wire(frame, index))
            .collect(),
        Err(_) => vec![for_a_wire(frame, offload)],
    }
}

/// The plaintexts of the pieces that travel.
fn pieces(frame: &[u8], offload: &Offload, id: u16, len_max: usize) -> Vec<Vec<u8>> {
    let cutter = Cutter::new(frame, offload, len_max).unwrap();
    let segmentation = Segmentation {
        size: cutter.size(),
        ..offload.segmentation.unwrap()
    };
    (0..cutter.count())
        .map(|index| {
            let is_last = index + 1 == cutter.count();
            let header =
                PieceHeader::piece(id, index, is_last, segmentation, offload.checksum.unwrap());
            let mut plaintext = vec![0; PIECE_HEADER_BYTES + cutter.piece_len(index)];
            let (head, piece) = plaintext.split_at_mut(PIECE_HEADER_BYTES);
            head.copy_from_slice(header.as_bytes());
            cutter.write(frame, index, piece);
            let mut lender = frame.to_vec();
            let lent = cutter.lend(&mut lender, index, header.as_bytes(), <[u8]>::to_vec);
            if let Some(lent) = lent {
                assert_eq!(lent, plaintext);
            } else {
                let front_bytes = PIECE_HEADER_BYTES + super_frame_headers(frame, offload);
                assert!(index == 0 || usize::from(cutter.size()) < front_bytes);
            }
            assert_eq!(lender, frame, "lending leaves no trace");
            plaintext
        })
        .collect()
}

fn super_frame_headers(frame: &[u8], offload: &Offload) -> usize {
    Layout::of(frame, offload).unwrap().payload
}

/// What a receiver of these pieces hands to its TAP. Some datagrams do not open.
fn joined(pieces: &[Vec<u8>]) -> Vec<(Vec<u8>, Offload)> {
    let (mut joiner, mut frames) = (Joiner::new(), Vec::new());
    for (n, plaintext) in pieces.iter().enumerate() {
        if n % 3 == 0
            && let Some(room) = joiner.room_for_next(1, plaintext.len())
        {
            room.fill(0xee);
            joiner.refuse();
        }
        if let Some(room) = joiner.room_for_next(1, plaintext.len()) {
            room.copy_from_slice(plaintext);
            let mut moved = vec![0; plaintext.len()];
            if joiner.keep(&mut moved) {
                continue;
            }
            assert_eq!(moved, *plaintext);
        }
        let (header, piece) = PieceHeader::parse(plaintext).unwrap();
        if !joiner.append(1, &header, piece) {
            frames.extend(joiner.take().map(|j| (j.frame.to_vec(), j.offload)));
            assert!(joiner.begin(1, &header, piece));
        }
    }
    frames.extend(joiner.take().map(|j| (j.frame.to_vec(), j.offload)));
    frames
}

#[track_caller]
fn assert_sound(segment: &[u8]) -> (Option<u32>, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(segment).unwrap();
    if let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net {
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }
    let ip_payload = packet
        .net
        .as_ref()
        .and_then(|net| net.ip_payload_ref())
        .unwrap();
    match packet.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            let checksum = match packet.net.as_ref().unwrap() {
                etherparse::NetSlice::Ipv4(ip) => header
                    .calc_checksum_ipv4(&ip.header().to_header(), tcp.payload())
                    .unwrap(),
                etherparse::NetSlice::Ipv6(ip) => header
                    .calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())
                    .unwrap(),
                _ => unreachable!(),
            };
            assert_eq!(header.checksum, checksum);
            assert_eq!(ip_payload.payload.len(), tcp.slice().len());
            (Some(header.sequence_number), tcp.payload().to_vec())
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let checksum = match packet.net.as_ref().unwrap() {
                etherparse::NetSlice::Ipv4(ip) => header
                    .calc_checksum_ipv4(&ip.header().to_header(), udp.payload())
                    .unwrap(),
                etherparse::NetSlice::Ipv6(ip) => header
                    .calc_checksum_ipv6(&ip.header().to_header(), udp.payload())
                    .unwrap(),
                _ => unreachable!(),
            };
            assert_eq!(header.checksum, checksum);
            (None, udp.payload().to_vec())
        }
        _ => unreachable!(),
    }
}

proptest! {
    #[test]
    fn segments_are_sound_frames_that_carry_the_whole_payload(shape in shape(), len_max in 200..1_500usize) {
        let (frame, offload) = super_frame(&shape);
        let segments = segments(&frame, &offload, len_max);
        let mut payload = Vec::new();
        for (n, segment) in segments.iter().enumerate() {
            let (sequence, part) = assert_sound(segment);
            if let Some(sequence) = sequence {
                prop_assert!(segment.len() <= len_max);
                prop_assert_eq!(sequence, (u32::MAX - 1000).wrapping_add(payload.len() as u32));
                let flags = segment[usize::from(offload.checksum.unwrap().start) + 13];
                let is_last = n + 1 == segments.len();
                prop_assert_eq!(flags & 0x01 != 0, is_last && shape.fin);
                prop_assert_eq!((flags & 0x08 != 0, flags & 0x80 != 0), (is_last, n == 0));
            } else {
                prop_assert!(part.len() <= usize::from(shape.size));
            }
            payload.extend(part);
        }
        prop_assert_eq!(payload, shape.payload);
    }

    #[test]
    fn what_is_cut_joins_to_the_same_bytes(shape in shape(), len_max in 200..1_500usize) {
        let (frame, offload) = super_frame(&shape);
        let mut frames = joined(&pieces(&frame, &offload, 7, len_max));
        prop_assert_eq!(frames.len(), 1);
        let (joined, joined_offload) = frames.remove(0);
        prop_assert_eq!(joined, frame);
        prop_assert_eq!(joined_offload.checksum, offload.checksum);
    }

    #[test]
    fn whatever_is_lost_doubled_or_late_what_comes_out_was_sent(
        shapes in proptest::collection::vec(shape(), 1..4),
        len_max in 300..1_500usize,
        fate in proptest::collection::vec(0..100u8, 300),
    ) {
        let (mut sent, mut wire) = (Vec::new(), Vec::new());
        for (id, shape) in shapes.iter().enumerate() {
            let (frame, offload) = super_frame(shape);
            sent.extend(segments(&frame, &offload, len_max));
            wire.extend(pieces(&frame, &offload, id as u16, len_max));
        }
        let is_kept_in_order = fate.iter().all(|fate| *fate < 90);
        let mut arrived = Vec::new();
        for (piece, fate) in wire.into_iter().zip(fate.iter().cycle()) {
            match fate {
                0..5 => {}
                5..90 => arrived.push(piece),
                90..95 => arrived.extend([piece.clone(), piece]),
                _ => arrived.insert(arrived.len().saturating_sub(2), piece),
            }
        }
        let mut next = 0;
        for (frame, offload) in joined(&arrived) {
            for segment in segments(&frame, &offload, usize::MAX) {
                let found = sent.iter().position(|sent| *sent == segment);
                prop_assert!(found.is_some(), "a segment that nobody sent");
                if is_kept_in_order {
                    let later = sent[next..].iter().position(|sent| *sent == segment);
                    prop_assert!(later.is_some(), "out of order");
                    next += later.unwrap_or(0) + 1;
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_taken_without_panic(
        plaintexts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20),
    ) {
        let mut joiner = Joiner::new();
        for mut plaintext in plaintexts {
            if let Some(first) = plaintext.first_mut() { *first = crate::wire::extension::PIECE; }
            let len = plaintext.len();
            if let Some(room) = joiner.room_for_next(1, len) {
                room.copy_from_slice(&plaintext);
                if joiner.keep(&mut plaintext) { continue; }
            }
            let Some((header, frame)) = PieceHeader::parse(&plaintext) else { continue };
            let _ = Cutter::new(frame, &header.offload(), 100).map(|cutter| cutter.count());
            if !joiner.append(1, &header, frame) {
                let _ = joiner.take();
                let _ = joiner.begin(1, &header, frame);
            }
        }
    }
}

#[test]
fn a_kernels_own_checksum_is_what_completing_gives() {
    let builder = PacketBuilder::ethernet2(MACS[0], MACS[1])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, 2000);
    let mut whole = Vec::new();
    builder.write(&mut whole, b"some payload").unwrap();
    let mut partial = whole.clone();
    let sum = pseudo(&[&[10, 0, 0, 1], &[10, 0, 0, 2]], IpNumber::UDP, 20);
    partial[40..42].copy_from_slice(&sum.to_be_bytes());
    let checksum = PartialChecksum {
        start: 34,
        offset: 6,
    };
    assert!(checksum::complete(&mut partial, checksum));
    assert_eq!(partial, whole);
    assert!(!checksum::complete(&mut [0; 41], checksum));
}

/// A datagram as a kernel hands it over, with its checksum partial.
fn datagram(is_v6: bool, port: u16, payload_bytes: usize, seed: u8) -> (Vec<u8>, PartialChecksum) {
    let shape = Shape {
        kind: SegmentationKind::Udp,
        is_v6,
        tags: 0,
        options: false,
        fin: false,
        size: 1500,
        payload: vec![seed; payload_bytes],
    };
    let (mut frame, offload) = super_frame(&shape);
    let checksum = offload.checksum.unwrap();
    // Ports are no part of the pseudo-header.
    let at = usize::from(checksum.start);
    frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
    (frame, checksum)
}

/// What a receiver of frames of their own hands to its TAP.
fn joined_datagrams(frames: &[(Vec<u8>, PartialChecksum)]) -> Vec<(Vec<u8>, Offload)> {
    let (mut joiner, mut out) = (Joiner::new(), Vec::new());
    joiner.set_datagrams_max(UDP_SEGMENTS_MAX);
    for (frame, checksum) in frames {
        if joiner.append_datagram(1, *checksum, frame) {
            continue;
        }
        out.extend(joiner.take().map(|j| (j.frame.to_vec(), j.offload)));
        if !joiner.begin_datagram(1, *checksum, frame) {
            let offload = Offload {
                checksum: Some(*checksum),
                segmentation: None,
            };
            out.push((frame.clone(), offload));
        }
    }
    out.extend(joiner.take().map(|j| (j.frame.to_vec(), j.offload)));
    out
}

/// The frame without what says nothing: the identification of a packet that may not be fragmented, and the sum over it.
fn without_identification(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [8, 0] {
        frame[18..20].fill(0);
        frame[24..26].fill(0);
    }
    frame
}

proptest! {
    #[test]
    fn datagrams_of_one_flow_are_joined_and_every_one_comes_out(
        is_v6: bool,
        datagrams in proptest::collection::vec((0..2u16, prop_oneof![Just(64usize), 1..1400usize], any::<u8>()), 1..300),
    ) {
        let frames: Vec<_> = datagrams
            .iter()
            .map(|(port, bytes, seed)| datagram(is_v6, *port, *bytes, *seed))
            .collect();
        let joined = joined_datagrams(&frames);
        let came: Vec<_> = joined
            .iter()
            .flat_map(|(frame, offload)| segments(frame, offload, usize::MAX))
            .inspect(|segment| { assert_sound(segment); })
            .map(without_identification)
            .collect();
        let sent: Vec<_> = frames
            .iter()
            .map(|(frame, checksum)| {
                let offload = Offload { checksum: Some(*checksum), segmentation: None };
                without_identification(for_a_wire(frame, &offload))
            })
            .collect();
        prop_assert_eq!(came, sent);
    }
}

#[test]
fn equal_datagrams_make_one_super_frame_and_those_that_may_be_fragmented_none() {
    let frames = vec![datagram(false, 9, 64, 1); 300];
    let joined = joined_datagrams(&frames);
    let counts: Vec<_> = joined
        .iter()
        .map(|(frame, offload)| segments(frame, offload, usize::MAX).len())
        .collect();
    assert_eq!(counts, [128, 128, 44]);

    let fragmentable: Vec<_> = frames
        .into_iter()
        .map(|(mut frame, checksum)| {
            frame[20] &= !0x40;
            (frame, checksum)
        })
        .collect();
    assert_eq!(joined_datagrams(&fragmentable).len(), 300);
}
