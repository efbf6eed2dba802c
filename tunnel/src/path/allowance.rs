//! How often something may begin that a peer can ask for: some times in quick succession, then at a steady pace.

use std::time::{Duration, Instant};

/// Comes back by one every `every`, up to `most`.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    most: u32,
    every: Duration,
    refilled_at: Instant,
}

impl Allowance {
    /// A full one.
    pub(super) const fn new(most: u32, every: Duration, now: Instant) -> Self {
        Self {
            left: most,
            most,
            every,
            refilled_at: now,
        }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.refilled_at);
        let refills = passed.as_nanos() / self.every.as_nanos();
        if refills > 0 {
            let refills = u32::try_from(refills).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(refills).min(self.most);
            self.refilled_at = now;
        }
        let has_one = self.left > 0;
        self.left -= u32::from(has_one);
        has_one
    }
}
