//! When to probe every pair: in rounds that both sides begin together, dense at first so that both NATs open, then
//! rarely, within a budget. What is probed is the agent's.

use super::allowance::Allowance;
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use std::time::{Duration, Instant};

/// When the probes of one round leave, after its beginning. The peer's round begins within a one-way delay of ours,
/// so some of the first find both NATs open; the last ones are for NATs that hold a first refusal against us.
pub(super) const STEPS: [Duration; 9] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_millis(3000),
    Duration::from_millis(4500),
    Duration::from_millis(6000),
];

/// Rounds that may begin in quick succession (candidates trickle in), and how fast the allowance comes back.
/// A peer can ask for rounds, so this also bounds what it can make us send.
const ROUNDS_BURST: u32 = 4;
const ROUND_REFILL: Duration = Duration::from_secs(5);

/// Tries for a better path while data goes through a relay: at first about every 45 s, and when that many failed,
/// these NATs will not be friends soon.
const RETRY_MIN: Duration = Duration::from_secs(30);
const RETRIES_QUICK: u32 = 10;
const RETRY_SLOW: Duration = Duration::from_secs(600);

/// With no path at all, rounds follow each other at growing distance up to this.
const SEARCH_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Punching {
    round: Option<Round>,
    retry_at: Option<Instant>,
    retries: u32,
    searches: u32,
    allowance: Allowance,
}

#[derive(Debug)]
struct Round {
    started: Instant,
    step: usize,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Probe whatever has not answered since the round began then.
    Probe { since: Instant },
    /// Ask the peer for a common round.
    Call,
    /// Begin a round alone: there is no way to ask.
    Search,
}

/// Why rounds are repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// The path in use is good enough, or nobody uses it.
    Nothing,
    /// Data goes through a relay.
    Better,
    /// There is no path.
    Any,
}

impl Punching {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            round: None,
            retry_at: None,
            retries: 0,
            searches: 0,
            allowance: Allowance::new(ROUNDS_BURST, ROUND_REFILL, now),
        }
    }

    /// Begins a round unless the allowance is spent, in which case a running one goes on.
    pub(super) fn start(&mut self, now: Instant) -> bool {
        if !self.allowance.take(now) {
            return false;
        }
        self.round = Some(Round {
            started: now,
            step: 0,
        });
        self.retry_at = None;
        true
    }

    /// New addresses or new proof: failures so far say nothing any more.
    pub(super) fn forgive(&mut self) {
        self.retries = 0;
        self.searches = 0;
    }

    pub(super) fn stop(&mut self) {
        self.round = None;
        self.retry_at = None;
        self.forgive();
    }

    /// When something is due, given what is wanted at that time. A retry that nobody wants waits for its user.
    pub(super) fn due(&self, want: impl Fn(Instant) -> Want) -> Option<Instant> {
        match &self.round {
            Some(round) => Some(round.started + STEPS[round.step]),
            None => self.retry_at.filter(|at| want(*at) != Want::Nothing),
        }
    }

    /// Does what is due. A retry that is met late is judged by its own time, as [`Self::due`] judged it: met and not
    /// done, it would be due for ever.
    pub(super) fn handle_timeout(
        &mut self,
        want: impl Fn(Instant) -> Want,
        now: Instant,
        rng: &mut ChaCha20Rng,
    ) -> Option<Due> {
        if let Some(round) = &mut self.round {
            if now < round.started + STEPS[round.step] {
                return None;
            }
            let since = round.started;
            while round.step < STEPS.len() && round.started + STEPS[round.step] <= now {
                round.step += 1; // steps that a late call missed are not made up for
            }
            if round.step == STEPS.len() {
                self.round = None;
                self.plan_retry(want(now), now, rng);
            }
            return Some(Due::Probe { since });
        }
        let at = self.retry_at.filter(|at| *at <= now)?;
        let want = want(at);
        if want == Want::Nothing {
            return None;
        }
        self.plan_retry(want, now, rng); // in case the round is refused
        match want {
            Want::Any => {
                self.searches += 1;
                Some(Due::Search)
            }
            _ => {
                self.retries += 1;
                Some(Due::Call)
            }
        }
    }

    fn plan_retry(&mut self, want: Want, now: Instant, rng: &mut ChaCha20Rng) {
        let wait = match want {
            Want::Any => Duration::from_secs(1 << self.searches.min(5)).min(SEARCH_MAX),
            _ if self.retries < RETRIES_QUICK => RETRY_MIN.mul_f64(rng.random_range(1.0..2.0)),
            _ => RETRY_SLOW.mul_f64(rng.random_range(1.0..1.5)),
        };
        self.retry_at = Some(now + wait);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn run(punching: &mut Punching, want: Want, from: Instant, span: Duration) -> (usize, usize) {
        let (mut rng, mut probes, mut calls) = (ChaCha20Rng::seed_from_u64(1), 0, 0);
        while let Some(at) = punching.due(|_| want).filter(|at| *at < from + span) {
            match punching.handle_timeout(|_| want, at, &mut rng) {
                Some(Due::Probe { .. }) => probes += 1,
                Some(Due::Call | Due::Search) => {
                    calls += 1;
                    punching.start(at);
                }
                None => unreachable!("a deadline without work"),
            }
        }
        (probes, calls)
    }

    #[test]
    fn a_round_is_dense_then_over() {
        let t0 = Instant::now();
        let mut punching = Punching::new(t0);
        punching.start(t0);
        assert_eq!(
            run(&mut punching, Want::Nothing, t0, Duration::from_secs(3600)),
            (STEPS.len(), 0)
        );
    }

    #[test]
    fn a_relayed_pair_tries_again_within_a_budget() {
        let t0 = Instant::now();
        let mut punching = Punching::new(t0);
        punching.start(t0);
        let (_, calls) = run(&mut punching, Want::Better, t0, Duration::from_secs(7200));
        assert!((15..=23).contains(&calls), "{calls} calls in two hours");
    }

    #[test]
    fn rounds_on_request_are_bounded() {
        let t0 = Instant::now();
        let mut punching = Punching::new(t0);
        let started = (0..1000)
            .filter(|i| punching.start(t0 + Duration::from_millis(*i * 10)))
            .count();
        assert!(started <= 6, "{started} rounds in ten seconds");
    }
}
