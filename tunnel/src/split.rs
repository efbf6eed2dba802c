//! Frames too large for the path travel as two halves of equal length; this cuts them and joins them again.
//! Sealing is [`crate::session`]'s work; super-frames are cut by [`crate::offload`].

use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use crate::offload::PartialChecksum;
use crate::packet_buf::FRAME_BYTES_MAX;
use crate::wire::datagram::OVERHEAD_BYTES;
use crate::wire::extension::{
    HALF_HEADER_BYTES, HalfHeader, PIECE_HEADER_BYTES, PLAIN, PieceHeader,
};

/// Frames that wait for their other half. Halves leave back to back, so more than a few only wait when one was lost.
pub const WAITING_MAX: usize = 64;
/// How long a half waits: longer than any reordering, shorter than a TCP sender's patience.
pub const WAIT_MAX: Duration = Duration::from_millis(500);

/// How a frame goes over a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// As it is, in a plaintext of so many bytes.
    Whole(usize),
    /// In two halves, in plaintexts of so many bytes.
    Halves([usize; 2]),
    /// Not at all: drop and count.
    TooLarge,
}

/// The plaintext that a path with `path_mtu` bytes of UDP payload carries in one datagram.
pub const fn room(path_mtu: u16) -> usize {
    (path_mtu as usize).saturating_sub(OVERHEAD_BYTES)
}

/// How a frame of `frame_len` bytes goes over a path that carries `path_mtu` bytes of UDP payload.
pub const fn fit(frame_len: usize, checksum: Option<PartialChecksum>, path_mtu: u16) -> Fit {
    let room = room(path_mtu);
    let whole = frame_len + whole_header_bytes(checksum);
    let halves = [
        frame_len.div_ceil(2) + HALF_HEADER_BYTES,
        frame_len / 2 + HALF_HEADER_BYTES,
    ];
    if whole <= room {
        Fit::Whole(whole)
    } else if halves[0] <= room && frame_len <= FRAME_BYTES_MAX {
        Fit::Halves(halves)
    } else {
        Fit::TooLarge
    }
}

const fn whole_header_bytes(checksum: Option<PartialChecksum>) -> usize {
    if checksum.is_some() {
        PIECE_HEADER_BYTES
    } else {
        1
    }
}

/// Writes the plaintext of the datagram with `frame`, for which [`fit`] said [`Fit::Whole`].
pub fn write_whole(frame: &[u8], checksum: Option<PartialChecksum>, plaintext: &mut [u8]) {
    let (head, body) = plaintext.split_at_mut(whole_header_bytes(checksum));
    match checksum {
        Some(checksum) => head.copy_from_slice(PieceHeader::single(checksum).as_bytes()),
        None => head[0] = PLAIN,
    }
    body.copy_from_slice(frame);
}

/// Writes the plaintext of the datagram with half `which` (0 or 1) of `frame`, for which [`fit`] said [`Fit::Halves`].
/// `id` differs from that of the lane's other recent frames.
pub fn write_half(
    frame: &[u8],
    checksum: Option<PartialChecksum>,
    id: u32,
    which: u8,
    plaintext: &mut [u8],
) {
    let (front, back) = frame.split_at(frame.len().div_ceil(2));
    let (head, body) = plaintext.split_at_mut(HALF_HEADER_BYTES);
    let header = HalfHeader::new(id, which, frame.len() as u16, checksum);
    head.copy_from_slice(header.as_bytes());
    body.copy_from_slice(if which == 0 { front } else { back });
}

/// What [`Rejoiner`] counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RejoinStats {
    /// Frames joined.
    pub joined: u64,
    /// Halves whose other half did not come in time.
    pub dropped_late: u64,
    /// Halves pushed out because too many waited.
    pub dropped_full: u64,
    /// Halves that contradict their header or their other half.
    pub dropped_malformed: u64,
}

/// Joins halves. Its memory is bounded: [`WAITING_MAX`] frames, made when first needed and used again.
#[derive(Default)]
pub struct Rejoiner {
    waiting: Vec<Waiting>,
    stats: RejoinStats,
}

struct Waiting {
    /// None once joined or given up; the memory stays for the next frame.
    key: Option<(u64, u32)>,
    total: usize,
    which: u8,
    checksum: Option<PartialChecksum>,
    since: Instant,
    bytes: Vec<u8>,
}

impl Rejoiner {
    /// One with nothing waiting.
    pub fn new() -> Self {
        Self::default()
    }

    /// What it counted.
    pub const fn stats(&self) -> RejoinStats {
        self.stats
    }

    /// Takes the plaintext of a datagram with a half, from the lane of a peer that `source` stands for. Gives the whole
    /// frame once both halves are there, and which checksum of it is to be completed.
    pub fn accept(
        &mut self,
        source: u64,
        plaintext: &[u8],
        now: Instant,
    ) -> Option<(&mut [u8], Option<PartialChecksum>)> {
        let Some((header, half)) =
            HalfHeader::parse(plaintext).filter(|(header, half)| is_sound(header, half))
        else {
            self.stats.dropped_malformed += 1;
            return None;
        };
        let key = (source, header.id());
        let Some(at) = self
            .waiting
            .iter()
            .position(|waiting| waiting.key == Some(key))
        else {
            let at = self.make_room(now);
            self.waiting[at].begin(key, &header, half, now);
            return None;
        };
        let waiting = &mut self.waiting[at];
        if now.saturating_duration_since(waiting.since) >= WAIT_MAX {
            self.stats.dropped_late += 1;
            waiting.begin(key, &header, half, now);
            return None;
        }
        if waiting.total != usize::from(header.total())
            || waiting.which == header.which
            || waiting.checksum != header.checksum()
        {
            self.stats.dropped_malformed += 1;
            return None;
        }
        self.stats.joined += 1;
        waiting.key = None;
        waiting.put(header.which, half);
        Some((&mut waiting.bytes[..], waiting.checksum))
    }

    /// A place for one more: a free one, a new one, or that of the half which has waited longest.
    fn make_room(&mut self, now: Instant) -> usize {
        if let Some(free) = self
            .waiting
            .iter()
            .position(|waiting| waiting.key.is_none())
        {
            return free;
        }
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push(Waiting {
                key: None,
                total: 0,
                which: 0,
                checksum: None,
                since: now,
                bytes: Vec::new(),
            });
            return self.waiting.len() - 1;
        }
        let (oldest, waiting) = self
            .waiting
            .iter()
            .enumerate()
            .min_by_key(|(_, waiting)| waiting.since)
            .expect("the table is full, not empty");
        if now.saturating_duration_since(waiting.since) >= WAIT_MAX {
            self.stats.dropped_late += 1;
        } else {
            self.stats.dropped_full += 1;
        }
        oldest
    }
}

impl Waiting {
    fn begin(&mut self, key: (u64, u32), header: &HalfHeader, half: &[u8], now: Instant) {
        self.key = Some(key);
        self.total = usize::from(header.total());
        self.which = header.which;
        self.checksum = header.checksum();
        self.since = now;
        self.bytes.resize(self.total, 0);
        self.put(header.which, half);
    }

    fn put(&mut self, which: u8, half: &[u8]) {
        let middle = self.total.div_ceil(2);
        let place = if which == 0 {
            &mut self.bytes[..middle]
        } else {
            &mut self.bytes[middle..]
        };
        place.copy_from_slice(half);
    }
}

/// Whether the half is as long as its header says.
fn is_sound(header: &HalfHeader, half: &[u8]) -> bool {
    let total = usize::from(header.total());
    let expected = if header.which == 0 {
        total.div_ceil(2)
    } else {
        total / 2
    };
    (2..=FRAME_BYTES_MAX).contains(&total) && half.len() == expected
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PARTIAL: Option<PartialChecksum> = Some(PartialChecksum {
        start: 34,
        offset: 6,
    });

    fn halves(frame: &[u8], id: u32) -> [Vec<u8>; 2] {
        [0, 1].map(|which| {
            let half = if which == 0 {
                frame.len().div_ceil(2)
            } else {
                frame.len() / 2
            };
            let mut plaintext = vec![0; HALF_HEADER_BYTES + half];
            write_half(frame, PARTIAL, id, which, &mut plaintext);
            plaintext
        })
    }

    #[test]
    fn a_full_ethernet_frame_crosses_an_ethernet_underlay_in_halves() {
        assert_eq!(fit(1514, None, 1472), Fit::Halves([769, 769]));
        assert_eq!(fit(1431, None, 1472), Fit::Whole(1432));
        assert_eq!(fit(1432, None, 1472), Fit::Halves([728, 728]));
        assert_eq!(fit(1420, PARTIAL, 1472), Fit::Whole(1432));
        assert_eq!(fit(1421, PARTIAL, 1472), Fit::Halves([723, 722]));
        assert_eq!(fit(1514, PARTIAL, 1232), Fit::Halves([769, 769]));
        assert_eq!(fit(9014, None, 1472), Fit::TooLarge);
    }

    #[test]
    fn a_half_whose_other_half_is_lost_is_forgotten() {
        let (mut rejoiner, t0) = (Rejoiner::new(), Instant::now());
        let [front, back] = halves(&[7; 1514], 1);
        assert!(rejoiner.accept(9, &front, t0).is_none());
        assert!(rejoiner.accept(9, &back, t0 + WAIT_MAX).is_none());
        assert_eq!(
            rejoiner.stats(),
            RejoinStats {
                dropped_late: 1,
                ..RejoinStats::default()
            }
        );
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_half_makes_room() {
        let (mut rejoiner, t0) = (Rejoiner::new(), Instant::now());
        for id in 0..WAITING_MAX as u32 + 10 {
            let at = t0 + Duration::from_micros(u64::from(id));
            assert!(rejoiner.accept(9, &halves(&[7; 100], id)[0], at).is_none());
        }
        assert_eq!(
            (rejoiner.waiting.len(), rejoiner.stats().dropped_full),
            (WAITING_MAX, 10)
        );
        let newest = WAITING_MAX as u32 + 9;
        assert!(
            rejoiner
                .accept(
                    9,
                    &halves(&[7; 100], newest)[1],
                    t0 + Duration::from_millis(1)
                )
                .is_some()
        );
    }

    #[test]
    fn halves_of_two_peers_are_never_joined() {
        let (mut rejoiner, t0) = (Rejoiner::new(), Instant::now());
        let [front, back] = halves(&[7; 1514], 1);
        assert!(rejoiner.accept(1, &front, t0).is_none());
        assert!(rejoiner.accept(2, &back, t0).is_none());
    }

    #[test]
    fn the_same_half_twice_is_not_a_frame() {
        let (mut rejoiner, t0) = (Rejoiner::new(), Instant::now());
        let [front, back] = halves(&[7; 100], 1);
        assert!(rejoiner.accept(1, &front, t0).is_none());
        assert!(rejoiner.accept(1, &front, t0).is_none());
        assert_eq!(rejoiner.stats().dropped_malformed, 1);
        assert!(rejoiner.accept(1, &back, t0).is_some());
    }

    proptest! {
        #[test]
        fn any_frame_comes_back_whichever_half_is_first(frame in proptest::collection::vec(any::<u8>(), 2..3000), back_first: bool) {
            let mut rejoiner = Rejoiner::new();
            let t0 = Instant::now();
            let [front, back] = halves(&frame, 5);
            let (first, second) = if back_first { (back, front) } else { (front, back) };
            prop_assert!(rejoiner.accept(1, &first, t0).is_none());
            let (joined, checksum) = rejoiner.accept(1, &second, t0).unwrap();
            prop_assert_eq!((&*joined, checksum), (&frame[..], PARTIAL));
        }

        #[test]
        fn any_bytes_are_taken_without_panic(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut rejoiner = Rejoiner::new();
            for mut part in parts {
                if let [first, .., ] = part.as_mut_slice() { *first = crate::wire::extension::HALF; }
                let _ = rejoiner.accept(0, &part, Instant::now());
            }
        }
    }
}
