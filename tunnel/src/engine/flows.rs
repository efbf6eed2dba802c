//! Flows that searches by chance make at the router before this node, over all peers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many of them at a time: half of what Linux tracks in a router with 64 MB (`docs/paths.md`).
const FLOWS_MAX: usize = 2048;

/// How long a router keeps one that nobody answered, Linux' `nf_conntrack_udp_timeout` of 30 s, and what passes before the last
/// of a search is made.
const KEPT_FOR: Duration = Duration::from_secs(36);

/// The flows that the router still keeps.
#[derive(Debug, Default)]
pub(super) struct Flows {
    made: VecDeque<(Instant, usize)>,
}

impl Flows {
    /// Whether so many more may be made; if so, they count as made now.
    pub(super) fn take(&mut self, count: usize, now: Instant) -> bool {
        self.made
            .retain(|(at, _)| now.saturating_duration_since(*at) < KEPT_FOR);
        let kept: usize = self.made.iter().map(|(_, count)| count).sum();
        let may = kept + count <= FLOWS_MAX;
        if may {
            self.made.push_back((now, count));
        }
        may
    }

    /// So many of what was taken were not made.
    pub(super) fn give_back(&mut self, count: usize) {
        let mut latest = self.made.iter_mut().rev();
        if let Some((_, made)) = latest.find(|(_, made)| *made >= count) {
            *made -= count;
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;

    #[test]
    fn a_router_is_never_given_more_than_it_bears() {
        let (mut flows, now) = (Flows::default(), Instant::now());
        assert!(flows.take(1024, now) && flows.take(1024, now + KEPT_FOR / 2));
        assert!(!flows.take(256, now + KEPT_FOR / 2));
        flows.give_back(300);
        assert!(flows.take(256, now + KEPT_FOR / 2));
        assert!(!flows.take(45, now + KEPT_FOR / 2));
        assert!(flows.take(1024, now + KEPT_FOR), "the first are forgotten");
        assert!(!flows.take(FLOWS_MAX + 1, now + 10 * KEPT_FOR));
    }
}
