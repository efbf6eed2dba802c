//! Super-frames that are cut, lost in part, doubled and reordered, and joined again.

use bolero::{TypeGenerator, check};
use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
use tunnel::offload::{
    Cutter, Joiner, Offload, PartialChecksum, Segmentation, SegmentationKind, for_a_wire, mss,
};
use tunnel::wire::checksum::internet;
use tunnel::wire::extension::{PIECE_HEADER_BYTES, PieceHeader};
use zerocopy::IntoBytes;

#[derive(Debug, TypeGenerator)]
struct Flow {
    is_udp: bool,
    is_v6: bool,
    tags: u8,
    options: bool,
    flags: u8,
    size: u16,
    payload_bytes: u16,
    seed: u8,
}

/// What happens to a piece on its way.
#[derive(Clone, Copy, Debug, TypeGenerator)]
enum Fate {
    Arrives,
    Arrives2,
    Arrives3,
    IsLost,
    IsDoubled,
    IsLate(u8),
    /// A byte of it is another one. (It is sealed on its way; a hostile member can do it.)
    IsBroken(u16, u8),
}

impl Flow {
    /// The super-frame, as a kernel hands it over.
    fn frame(&self) -> (Vec<u8>, Offload) {
        let payload_bytes = usize::from(self.payload_bytes).clamp(1, 64_000);
        let payload = (0..payload_bytes).map(|n| (n >> 8) as u8 ^ n as u8 ^ self.seed);
        let transport = if self.is_udp {
            let length = (8 + payload_bytes) as u16;
            UdpHeader {
                source_port: 1,
                destination_port: 2,
                length,
                checksum: 0,
            }
            .to_bytes()
            .to_vec()
        } else {
            let mut header = TcpHeader::new(1, 2, u32::MAX - 5000, 1000);
            let bit = |n: u8| self.flags & (1 << n) != 0;
            (header.fin, header.psh, header.ack, header.cwr) = (bit(0), bit(3), bit(4), bit(7));
            if self.options {
                header
                    .set_options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8])
                    .unwrap();
            }
            header.to_bytes().to_vec()
        };
        let (protocol, offset) = if self.is_udp {
            (IpNumber::UDP, 6)
        } else {
            (IpNumber::TCP, 16)
        };
        let len = (transport.len() + payload_bytes) as u16;
        let mut frame = vec![2; 12];
        for _ in 0..self.tags % 3 {
            frame.extend([0x81, 0, 0, 7]);
        }
        let addresses = if self.is_v6 {
            frame.extend(EtherType::IPV6.0.to_be_bytes());
            let header = Ipv6Header {
                payload_length: len,
                next_header: protocol,
                hop_limit: 64,
                ..Ipv6Header::default()
            };
            header.write(&mut frame).unwrap();
            vec![0; 32]
        } else {
            frame.extend(EtherType::IPV4.0.to_be_bytes());
            let mut header =
                Ipv4Header::new(len, 64, protocol, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
            header.identification = self.size;
            header.header_checksum = header.calc_header_checksum();
            header.write(&mut frame).unwrap();
            vec![10, 0, 0, 1, 10, 0, 0, 2]
        };
        let start = frame.len();
        frame.extend(transport);
        let sum = !internet(&[&addresses, &[0, protocol.0], &len.to_be_bytes()]);
        frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
        frame.extend(payload);
        let kind = match (self.is_udp, self.is_v6) {
            (true, _) => SegmentationKind::Udp,
            (false, false) => SegmentationKind::Tcp4,
            (false, true) => SegmentationKind::Tcp6,
        };
        let offload = Offload {
            checksum: Some(PartialChecksum {
                start: start as u16,
                offset: offset as u16,
            }),
            segmentation: Some(Segmentation {
                kind,
                size: self.size.max(600),
                has_ecn: self.flags & 0x20 != 0,
            }),
        };
        (frame, offload)
    }
}

/// The segments of a frame as they would be on a wire.
fn segments(frame: &[u8], offload: &Offload, len_max: usize) -> Vec<Vec<u8>> {
    match Cutter::new(frame, offload, len_max) {
        Ok(cutter) => (0..cutter.count())
            .map(|index| cutter.segment_for_a_wire(frame, index))
            .collect(),
        Err(_) => vec![for_a_wire(frame, offload)],
    }
}

fn pieces(frame: &[u8], offload: &Offload, id: u16, len_max: usize) -> Vec<Vec<u8>> {
    let cutter = Cutter::new(frame, offload, len_max).unwrap();
    let segmentation = Segmentation {
        size: cutter.size(),
        ..offload.segmentation.unwrap()
    };
    let piece = |index| {
        let is_last = index + 1 == cutter.count();
        let header =
            PieceHeader::piece(id, index, is_last, segmentation, offload.checksum.unwrap());
        let mut plaintext = vec![0; PIECE_HEADER_BYTES + cutter.piece_len(index)];
        plaintext[..PIECE_HEADER_BYTES].copy_from_slice(header.as_bytes());
        cutter.write(frame, index, &mut plaintext[PIECE_HEADER_BYTES..]);
        let mut lender = frame.to_vec();
        let lent = cutter.lend(&mut lender, index, header.as_bytes(), <[u8]>::to_vec);
        assert!(lent.is_none_or(|lent| lent == plaintext));
        assert_eq!(lender, frame, "lending leaves no trace");
        plaintext
    };
    (0..cutter.count()).map(piece).collect()
}

#[test]
fn super_frames_come_out_as_they_were_or_in_part() {
    check!()
        .with_type()
        .for_each(|(flows, len_max, fates): &(Vec<Flow>, u16, Vec<Fate>)| {
            let len_max = usize::from(*len_max).clamp(200, 9000);
            let (mut sent, mut arrived, mut is_honest) = (Vec::new(), Vec::new(), true);
            let mut fates = fates.iter().cycle();
            for (id, flow) in flows.iter().take(3).enumerate() {
                let (frame, offload) = flow.frame();
                sent.extend(segments(&frame, &offload, len_max));
                for mut piece in pieces(&frame, &offload, id as u16, len_max) {
                    match fates.next().copied().unwrap_or(Fate::Arrives) {
                        Fate::IsLost => {}
                        Fate::IsDoubled => arrived.extend([piece.clone(), piece]),
                        Fate::IsLate(by) => {
                            arrived.insert(arrived.len().saturating_sub(by.into()), piece)
                        }
                        Fate::IsBroken(at, bits) => {
                            let at = 1 + usize::from(at) % (piece.len() - 1);
                            piece[at] ^= bits;
                            is_honest &= bits == 0;
                            arrived.push(piece);
                        }
                        _ => arrived.push(piece),
                    }
                }
            }
            let mut joiner = Joiner::new();
            let mut out = Vec::new();
            for (n, plaintext) in arrived.iter().enumerate() {
                // Now and then a forged datagram comes first, and does not open.
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
                let Some((header, piece)) = PieceHeader::parse(plaintext) else {
                    continue;
                };
                if !joiner.append(1, &header, piece) {
                    out.extend(
                        joiner
                            .take()
                            .map(|joined| (joined.frame.to_vec(), joined.offload)),
                    );
                    let _malformed = joiner.begin(1, &header, piece);
                }
            }
            out.extend(
                joiner
                    .take()
                    .map(|joined| (joined.frame.to_vec(), joined.offload)),
            );
            for (frame, offload) in out {
                for segment in segments(&frame, &offload, usize::MAX) {
                    assert!(
                        !is_honest || sent.contains(&segment),
                        "a segment that nobody sent"
                    );
                }
            }
        });
}

#[test]
fn any_frame_is_looked_through_for_a_segment_size() {
    check!()
        .with_type::<(Vec<u8>, bool, u16)>()
        .for_each(|(bytes, is_partial, len_max)| {
            let mut frame = bytes.clone();
            mss::clamp(&mut frame, *is_partial, usize::from(*len_max));
            assert_eq!(frame.len(), bytes.len());
            let changed = bytes.iter().zip(&frame).filter(|(a, b)| a != b).count();
            assert!(changed <= 4, "a value and a checksum");
        });
}
