//! Questions to addresses that proved nothing, until they are answered from there. Which address is asked, and what an answer
//! is good for, is [`super::peer`]'s.

use super::context::PeerKey;
use overlay_types::PathAddr;
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// Questions remembered; the oldest is forgotten for a new one.
const ASKED_MAX: usize = 4096;
/// Answers that take longer come from somewhere else.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

struct Asked {
    peer: PeerKey,
    to: PathAddr,
    at: Instant,
}

#[derive(Default)]
pub(super) struct Challenges {
    asked: BTreeMap<[u8; 8], Asked>,
    /// Oldest first, those that were answered included.
    order: VecDeque<[u8; 8]>,
}

impl Challenges {
    /// A question with this nonce, which is random, went to an address.
    pub(super) fn note_asked(&mut self, nonce: [u8; 8], peer: PeerKey, to: PathAddr, now: Instant) {
        if self.order.len() >= ASKED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.asked.remove(&oldest);
        }
        self.order.push_back(nonce);
        self.asked.insert(nonce, Asked { peer, to, at: now });
    }

    /// Whom an answer is about, if it comes from where that one was asked. It is good once.
    pub(super) fn take_answered(
        &mut self,
        nonce: [u8; 8],
        from: PathAddr,
        now: Instant,
    ) -> Option<PeerKey> {
        self.asked.get(&nonce).filter(|asked| {
            asked.to == from && now.saturating_duration_since(asked.at) <= ANSWER_WITHIN
        })?;
        self.asked.remove(&nonce).map(|asked| asked.peer)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use overlay_types::{NetworkId, PeerId};

    fn at(host: u8) -> PathAddr {
        PathAddr::Direct(([192, 0, 2, host], 7000).into())
    }

    fn key(number: u8) -> PeerKey {
        (NetworkId([1; 32]), PeerId([number; 32]))
    }

    #[test]
    fn an_answer_counts_once_and_only_from_where_it_was_asked_for() {
        let (mut challenges, now) = (Challenges::default(), Instant::now());
        challenges.note_asked([1; 8], key(1), at(1), now);
        assert_eq!(challenges.take_answered([1; 8], at(2), now), None);
        assert_eq!(challenges.take_answered([2; 8], at(1), now), None);
        assert_eq!(challenges.take_answered([1; 8], at(1), now), Some(key(1)));
        assert_eq!(challenges.take_answered([1; 8], at(1), now), None);
    }

    #[test]
    fn an_answer_that_comes_late_counts_no_more() {
        let (mut challenges, now) = (Challenges::default(), Instant::now());
        challenges.note_asked([1; 8], key(1), at(1), now);
        let late = now + ANSWER_WITHIN + Duration::from_millis(1);
        assert_eq!(challenges.take_answered([1; 8], at(1), late), None);
    }

    #[test]
    fn no_more_than_so_many_are_remembered() {
        let (mut challenges, now) = (Challenges::default(), Instant::now());
        for n in 0..2 * ASKED_MAX as u64 {
            challenges.note_asked(n.to_be_bytes(), key(1), at(1), now);
        }
        assert_eq!(challenges.asked.len(), ASKED_MAX);
        assert_eq!(challenges.order.len(), ASKED_MAX);
        let first = 0u64.to_be_bytes();
        assert_eq!(challenges.take_answered(first, at(1), now), None);
    }
}
