//! Moderation of wake-ups, as network cards have it for interrupts: a worker that handled many small frames in one turn, or
//! all that there was of a bulk transfer, rests for a moment, so that the next turn finds many again. What is measured of it
//! stands in `docs/decisions/0014-workers-rest.md`.

use crate::offload::{Offload, SegmentationKind};
use std::time::Duration;

/// So many small frames in one turn are a stream of them; a few of a conversation are never kept waiting.
const STREAM_FRAMES: u32 = 6;

/// How long a rest is: what a network card with many frames takes, too (`rx-usecs` of Linux's adaptive drivers).
const REST: Duration = Duration::from_micros(200);

/// How long a worker rests that has caught up with a bulk transfer. The sleep that would follow ends on whichever processor
/// the next frame's sender runs, and often waits for it there while the other one is idle; a rest ends where it began.
const REST_IN_BULK: Duration = Duration::from_micros(30);

/// With more processors than this the threads at both ends do not wait for the worker's.
const PROCESSORS_MAX: usize = 4;

/// Counts what a turn handled, and says whether to rest after it.
pub(super) struct Moderation {
    is_of_use: bool,
    small: u32,
    has_super_frame: bool,
    has_more: bool,
}

impl Moderation {
    /// Moderation on a machine with so many processors.
    pub(super) const fn new(processors: usize) -> Self {
        Self {
            is_of_use: processors <= PROCESSORS_MAX,
            small: 0,
            has_super_frame: false,
            has_more: false,
        }
    }

    /// A frame was read from a port, or written to one. A stream's super-frames are few and large anyway; datagrams that
    /// were joined are still small ones.
    pub(super) fn note(&mut self, offload: &Offload) {
        match offload.segmentation.map(|segmentation| segmentation.kind) {
            None | Some(SegmentationKind::Udp) => self.small += 1,
            Some(SegmentationKind::Tcp4 | SegmentationKind::Tcp6) => self.has_super_frame = true,
        }
    }

    /// The turn ends although more may be there to be handled.
    pub(super) const fn note_more(&mut self) {
        self.has_more = true;
    }

    /// The turn is over: how long to rest, if at all.
    pub(super) fn end_turn(&mut self) -> Option<Duration> {
        let small = std::mem::take(&mut self.small);
        let has_super_frame = std::mem::take(&mut self.has_super_frame);
        let has_more = std::mem::take(&mut self.has_more);
        match (has_super_frame, has_more) {
            _ if !self.is_of_use => None,
            (true, true) => None,
            (true, false) => Some(REST_IN_BULK),
            (false, _) => (small >= STREAM_FRAMES).then_some(REST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Segmentation;

    fn super_frame(kind: SegmentationKind) -> Offload {
        Offload {
            checksum: None,
            segmentation: Some(Segmentation {
                kind,
                size: 1400,
                has_ecn: false,
            }),
        }
    }

    #[test]
    fn only_a_stream_of_small_frames_is_rested_after() {
        let mut moderation = Moderation::new(2);
        for _ in 1..STREAM_FRAMES {
            moderation.note(&Offload::NONE);
        }
        assert_eq!(moderation.end_turn(), None, "a conversation");
        assert_eq!(moderation.end_turn(), None);
        for _ in 0..STREAM_FRAMES {
            moderation.note(&super_frame(SegmentationKind::Udp));
        }
        assert_eq!(moderation.end_turn(), Some(REST));
        assert_eq!(moderation.end_turn(), None, "each turn for itself");
    }

    #[test]
    fn a_bulk_transfer_is_rested_in_only_when_it_was_caught_up_with() {
        let mut moderation = Moderation::new(2);
        for has_more in [false, true] {
            for _ in 0..100 {
                moderation.note(&Offload::NONE);
            }
            moderation.note(&super_frame(SegmentationKind::Tcp4));
            if has_more {
                moderation.note_more();
            }
            let rest = (!has_more).then_some(REST_IN_BULK);
            assert_eq!(moderation.end_turn(), rest);
        }
    }

    #[test]
    fn large_machines_need_no_rest() {
        let mut moderation = Moderation::new(8);
        for _ in 0..100 {
            moderation.note(&Offload::NONE);
        }
        assert_eq!(moderation.end_turn(), None);
        moderation.note(&super_frame(SegmentationKind::Tcp6));
        assert_eq!(moderation.end_turn(), None);
    }
}
