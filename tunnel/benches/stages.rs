//! The stages of the frame path, each alone: what a frame costs by stage. `cargo bench -p tunnel`.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]
#![expect(
    clippy::disallowed_methods,
    reason = "a measurement's time begins somewhere"
)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use etherparse::PacketBuilder;
use overlay_types::{Location, MacAddr, PortId};
use std::{hint::black_box, time::Instant};
use tunnel::{
    offload::{Cutter, Joiner, Offload, PartialChecksum, Segmentation, SegmentationKind},
    session::{RecvLane, ReplayWindow, SendLane, SessionSlot, Suite},
    split::{self, Rejoiner},
    switch::mac_table::MacTable,
    wire::{
        datagram::{DATA_HEADER_BYTES, TAG_BYTES},
        extension::{PIECE_HEADER_BYTES, PieceHeader},
    },
};
use zerocopy::IntoBytes;

const ROOT: [u8; 32] = [7; 32];
/// What a path of 1472 bytes leaves for a piece.
const PIECE_BYTES: usize = 1420;
/// Ethernet, IPv4 and TCP without options.
const HEADER_BYTES: usize = 14 + 20 + 20;

fn sealing(c: &mut Criterion) {
    for (name, suite) in [
        ("AES-256-GCM", Suite::Aes256Gcm),
        ("ChaCha20-Poly1305", Suite::ChaCha20Poly1305),
    ] {
        for bytes in [64, 1400] {
            let mut group = c.benchmark_group(format!("{name}, {bytes} bytes"));
            group.throughput(Throughput::Bytes(bytes as u64));
            let mut datagram = vec![0; DATA_HEADER_BYTES + bytes + TAG_BYTES];
            let mut send = SendLane::new(suite, &ROOT, SessionSlot::from_low_bits(1), 1);
            group.bench_function("seal", |b| {
                b.iter(|| {
                    send.prepare().unwrap();
                    send.seal_in(black_box(&mut datagram), |_| ());
                });
            });
            let plaintext = vec![0; bytes];
            group.bench_function("seal from elsewhere", |b| {
                b.iter(|| {
                    send.prepare().unwrap();
                    send.seal_from(black_box(&plaintext), &mut datagram);
                });
            });
            let mut recv = RecvLane::new(suite, &ROOT, 1);
            let mut sealed = || {
                send.prepare().unwrap();
                send.seal_in(&mut datagram, |_| ());
                datagram.clone()
            };
            group.bench_function("open", |b| {
                b.iter_batched_ref(
                    &mut sealed,
                    |datagram| recv.open(datagram).unwrap().len(),
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

/// The two libraries that have AES-GCM in assembler: why it is the one that it is.
macro_rules! seal_with {
    ($group:expr, $library:ident) => {{
        use $library::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &ROOT).unwrap());
        let mut bytes = vec![0; 1400];
        $group.bench_function(stringify!($library), |b| {
            b.iter(|| {
                let nonce = Nonce::assume_unique_for_key([1; 12]);
                key.seal_in_place_separate_tag(nonce, Aad::from([0; 16]), black_box(&mut bytes))
                    .unwrap()
            });
        });
    }};
}

fn libraries(c: &mut Criterion) {
    let mut group = c.benchmark_group("sealing 1400 bytes with AES-256-GCM by");
    group.throughput(Throughput::Bytes(1400));
    seal_with!(group, aws_lc_rs);
    seal_with!(group, ring);
}

/// A super-frame of TCP with so much payload.
fn super_frame(payload_bytes: usize) -> (Vec<u8>, Offload) {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 77, 0, 1], [10, 77, 0, 2], 64)
        .tcp(7, 7, 1, 4096);
    let mut frame = Vec::new();
    builder.write(&mut frame, &vec![7; payload_bytes]).unwrap();
    let offload = Offload {
        checksum: Some(PartialChecksum {
            start: 34,
            offset: 16,
        }),
        segmentation: Some(Segmentation {
            kind: SegmentationKind::Tcp4,
            size: 1460,
            has_ecn: false,
        }),
    };
    (frame, offload)
}

fn super_frames(c: &mut Criterion) {
    let (mut frame, offload) = super_frame(60_000);
    let cutter = Cutter::new(&frame, &offload, PIECE_BYTES).unwrap();
    let (checksum, segmentation) = (offload.checksum.unwrap(), offload.segmentation.unwrap());
    let count = cutter.count();
    let mut pieces: Vec<(PieceHeader, Vec<u8>)> = (0..count)
        .map(|index| {
            let header = PieceHeader::piece(1, index, index + 1 == count, segmentation, checksum);
            (header, vec![0; cutter.piece_len(index)])
        })
        .collect();
    let mut group = c.benchmark_group("a super-frame of 60,000 bytes");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function("cut", |b| {
        b.iter(|| {
            let cutter = Cutter::new(black_box(&frame), &offload, PIECE_BYTES).unwrap();
            for (index, (header, piece)) in (0..).zip(&mut pieces) {
                let lent = cutter.lend(&mut frame, index, header.as_bytes(), |piece| {
                    black_box(piece.len())
                });
                if lent.is_none() {
                    cutter.write(&frame, index, piece);
                }
            }
        });
    });
    let mut plaintexts: Vec<Vec<u8>> = pieces
        .iter()
        .map(|(header, piece)| [header.as_bytes(), piece].concat())
        .collect();
    for (index, plaintext) in (0..).zip(&mut plaintexts) {
        cutter.write(&frame, index, &mut plaintext[PIECE_HEADER_BYTES..]);
    }
    // What opening writes is the seal's cost; that of a piece's headers stands for it.
    let front = PIECE_HEADER_BYTES + HEADER_BYTES;
    let mut joiner = Joiner::new();
    group.bench_function("join", |b| {
        b.iter(|| {
            for ((header, _), plaintext) in pieces.iter().zip(black_box(&mut plaintexts)) {
                let is_joined = match joiner.room_for_next(1, plaintext.len()) {
                    Some(room) => {
                        room[..front].copy_from_slice(&plaintext[..front]);
                        joiner.keep(plaintext)
                    }
                    None => joiner.append(1, header, &plaintext[PIECE_HEADER_BYTES..]),
                };
                if !is_joined {
                    assert!(joiner.begin(1, header, &plaintext[PIECE_HEADER_BYTES..]));
                }
            }
            joiner.take().map(|joined| joined.frame.len())
        });
    });
}

fn halves(c: &mut Criterion) {
    let frame = vec![7; 1514];
    let split::Fit::Halves(lens) = split::fit(frame.len(), None, 1472) else {
        panic!("a full frame does not fit a path of 1472 bytes");
    };
    let mut halves = lens.map(|len| vec![0; len]);
    let (mut rejoiner, mut id, now) = (Rejoiner::new(), 0, Instant::now());
    c.bench_function("a full frame in halves, split and joined again", |b| {
        b.iter(|| {
            id += 1;
            for (which, half) in (0..).zip(&mut halves) {
                split::write_half(black_box(&frame), None, id, which, half);
            }
            halves
                .iter()
                .filter_map(|half| rejoiner.accept(1, half, now).map(|(frame, _)| frame.len()))
                .count()
        });
    });
}

fn tables(c: &mut Criterion) {
    let (mut window, mut counter) = (ReplayWindow::default(), 0);
    c.bench_function("a counter against the replay window", |b| {
        b.iter(|| {
            counter += 1;
            window.mark(black_box(counter))
        });
    });
    let (mut table, now) = (MacTable::default(), Instant::now());
    let mac = |n: u16| MacAddr([2, 0, 0, 0, (n >> 8) as u8, n as u8]);
    for n in 0..1000 {
        table.learn(mac(n), Location::Port(PortId(n % 8)), now);
    }
    let mut n = 0;
    c.bench_function("a station in a table of 1,000", |b| {
        b.iter(|| {
            n = (n + 1) % 1000;
            table.lookup(black_box(mac(n)), now)
        });
    });
}

criterion_group!(stages, sealing, libraries, super_frames, halves, tables);
criterion_main!(stages);
