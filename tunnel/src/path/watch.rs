//! Doubt about the path in use: probes it quickly, and the ways to fall back on, until it answers or is given up.

use overlay_types::PathAddr;
use std::time::{Duration, Instant};

/// Distance of the probes while in doubt.
const STEP: Duration = Duration::from_millis(100);

/// With an alternative that answers, this much silence is enough to leave: three probes, so that loss alone seldom does it.
/// Where answers take longer, the first one or two are waited for, and a quarter more than they usually take.
const LEAVE_AFTER: Duration = Duration::from_millis(300);

/// Help is called for this long after doubt began: before any path is left, for that needs a round trip or two as well, and is
/// in vain where our NAT forgot us.
const DISTRESS_AFTER: Duration = STEP;

/// Without an alternative, the path is dead after this.
const GIVE_UP_AFTER: Duration = Duration::from_secs(2);

/// An alternative that answered this long before the doubt began counts as answering.
const JUST_BEFORE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Watch {
    since: Instant,
    next_at: Instant,
    steps: u32,
    is_distressed: bool,
    /// There is little cause: the path in use is asked alone until it is late.
    is_mild: bool,
    /// Where the peer seems to have moved, if that is the cause.
    moved_to: Option<PathAddr>,
}

/// What doubt asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Probe the ways to fall back on, too.
    pub(super) probe_others: bool,
    /// The first time that this is more than a moment.
    pub(super) distressed: bool,
    /// Leave for the best path that answered since then.
    pub(super) leave_for: Option<Instant>,
    /// Nothing helps.
    pub(super) give_up: bool,
}

impl Watch {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            next_at: now,
            steps: 0,
            is_distressed: false,
            is_mild: false,
            moved_to: None,
        }
    }

    /// One that has little cause: data went, and nothing more comes.
    pub(super) fn of_quiet(now: Instant) -> Self {
        Self {
            is_mild: true,
            ..Self::new(now)
        }
    }

    /// The same for datagrams of the peer's over another path. Two sides that prefer different ways would give each other cause
    /// without end if each asked on both.
    pub(super) fn of_a_move(to: PathAddr, now: Instant) -> Self {
        Self {
            moved_to: Some(to),
            ..Self::of_quiet(now)
        }
    }

    /// Where the peer seems to have moved, if that is the cause.
    pub(super) const fn moved_to(&self) -> Option<PathAddr> {
        self.moved_to
    }

    pub(super) fn due(&self) -> Instant {
        self.next_at
    }

    /// Whether the path has been silent for long enough to leave it, given its usual delay, and for whom.
    pub(super) fn leave_for(&self, rtt: Duration, now: Instant) -> Option<Instant> {
        let wait = LEAVE_AFTER.max(usual(rtt));
        let is_over = now.saturating_duration_since(self.since) >= wait;
        is_over.then(|| self.since.checked_sub(JUST_BEFORE).unwrap_or(self.since))
    }

    pub(super) fn handle_timeout(&mut self, rtt: Duration, now: Instant) -> Option<Step> {
        if now < self.next_at {
            return None;
        }
        self.next_at = now + STEP;
        self.steps += 1;
        let was_distressed = self.is_distressed;
        let waited = now.saturating_duration_since(self.since);
        let help_after = if self.is_mild {
            DISTRESS_AFTER.max(usual(rtt))
        } else {
            DISTRESS_AFTER
        };
        self.is_distressed |= waited >= help_after;
        Some(Step {
            probe_others: self.steps > 1 && (!self.is_mild || waited > usual(rtt)),
            distressed: self.is_distressed && !was_distressed,
            leave_for: self.leave_for(rtt, now),
            give_up: waited >= GIVE_UP_AFTER.max(rtt * 4),
        })
    }
}

/// What an answer takes, and a quarter more.
pub(super) fn usual(rtt: Duration) -> Duration {
    rtt * 5 / 4
}
