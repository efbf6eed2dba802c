//! How much a relay carries for whom: token buckets of bytes. Whose bucket pays for what is decided in [`super::server`].

use std::time::{Duration, Instant};

/// Bytes that may pass now, refilled at a steady rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    bytes: u64,
    rate: u64,
    burst: u64,
    refilled_at: Instant,
}

/// Any rate may pass at least one burst of this, or a single jumbo datagram would never fit.
const BURST_MIN: u64 = 64 * 1024;

impl Budget {
    /// `rate` in bytes a second; an eighth of a second of it may come at once.
    pub(crate) fn new(rate: u64, now: Instant) -> Self {
        Self::with_burst(rate, (rate / 8).max(BURST_MIN), now)
    }

    /// `rate` in bytes a second; `burst` of them may come at once.
    pub(super) const fn with_burst(rate: u64, burst: u64, now: Instant) -> Self {
        Self {
            bytes: burst,
            rate,
            burst,
            refilled_at: now,
        }
    }

    /// The same with nothing in it yet.
    pub(super) const fn spent(self) -> Self {
        Self { bytes: 0, ..self }
    }

    /// Whether `bytes` fit now.
    pub(crate) fn has(&mut self, bytes: u64, now: Instant) -> bool {
        let elapsed = now
            .saturating_duration_since(self.refilled_at)
            .min(Duration::from_secs(60));
        let refill = u64::try_from(u128::from(self.rate) * elapsed.as_micros() / 1_000_000)
            .unwrap_or(u64::MAX);
        if refill > 0 {
            // What is less than a byte is kept for the next time by not moving the clock.
            self.bytes = self.bytes.saturating_add(refill).min(self.burst);
            self.refilled_at = now;
        }
        self.bytes >= bytes
    }

    /// Pays, as far as there is anything left.
    pub(crate) fn pay(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;

    #[test]
    fn a_budget_passes_its_rate_and_no_more() {
        let (t0, mut passed) = (Instant::now(), 0);
        let mut budget = Budget::new(1_000_000, t0);
        for ms in 0..10_000 {
            let now = t0 + Duration::from_millis(ms);
            if budget.has(1400, now) {
                budget.pay(1400);
                passed += 1400;
            }
        }
        let expected = 10_000_000 + 125_000;
        assert!((expected - 20_000..=expected).contains(&passed), "{passed}");
    }
}
