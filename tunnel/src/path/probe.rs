//! What is known of each way to the peer: when it last answered, how long that takes, how often it failed;
//! and which probes are still unanswered. What follows from it is the agent's.

use super::mtu::PathMtu;
use super::selection::Tier;
use super::silence_max;
use super::watch::usual;
use crate::wire::datagram::{RELAY_HEADER_BYTES, wrapper_bytes};
use overlay_types::PathAddr;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A path that failed is trusted again only after this long, doubled by each failure, up to [`HOLD_DOWN_MAX`].
const HOLD_DOWN: Duration = Duration::from_secs(2);
const HOLD_DOWN_MAX: Duration = Duration::from_secs(300);

/// Failures are forgotten after the path held for this long.
const FORGIVE_AFTER: Duration = Duration::from_secs(600);

/// A peer in doubt asks so often before it leaves ([`super::watch`]); one that searches for a size asks as often, but then we
/// were answered lately, or are by the probe that this costs.
const ASKED_MAX: u32 = 3;

/// Questions of one doubt follow each other this closely: what is further apart keeps a quiet path alive.
const ASKED_AGAIN: Duration = Duration::from_millis(500);

/// Our own probes were answered within this time: nothing that we send gets lost.
const ANSWERED_LATELY: Duration = Duration::from_millis(500);

/// How often the peer asked, and when first and last.
#[derive(Clone, Copy, Debug)]
struct Asked {
    times: u32,
    first: Instant,
    last: Instant,
}

#[derive(Debug)]
pub(super) struct Path {
    pub(super) tier: Tier,
    /// Came from a datagram's source rather than from a candidate.
    pub(super) learned: bool,
    /// Somebody with the session's keys answers there.
    pub(super) proven: bool,
    /// Somebody with the session's keys has answered there at some time: what goes there hits nobody else.
    pub(super) validated: bool,
    pub(super) rtt: Option<Duration>,
    pub(super) samples: u32,
    pub(super) answered_at: Option<Instant>,
    pub(super) heard_at: Option<Instant>,
    pub(super) challenged_at: Option<Instant>,
    /// Probes of the peer's that came one soon after the other, since it answered one of ours.
    asked: Option<Asked>,
    pub(super) mtu: PathMtu,
    failures: u32,
    failed_at: Option<Instant>,
}

impl Path {
    /// One of which nothing is known but where it leads; datagrams beyond `datagram_bytes_max` are of no use.
    pub(super) fn new(addr: PathAddr, tier: Tier, learned: bool, datagram_bytes_max: u16) -> Self {
        let wrappers = wrapper_bytes(addr) as u16;
        // One wrapper is in the largest size already.
        let further = wrappers.saturating_sub(RELAY_HEADER_BYTES as u16);
        Self {
            tier,
            learned,
            proven: false,
            validated: false,
            rtt: None,
            samples: 0,
            answered_at: None,
            heard_at: None,
            challenged_at: None,
            asked: None,
            mtu: PathMtu::new(wrappers, datagram_bytes_max.saturating_add(further)),
            failures: 0,
            failed_at: None,
        }
    }

    /// A probe sent at `sent_at` was answered.
    pub(super) fn handle_answer(&mut self, sent_at: Instant, now: Instant) {
        let sample = now.saturating_duration_since(sent_at);
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8)); // RFC 6298's weight
        self.samples = self.samples.saturating_add(1);
        self.proven = true;
        self.validated = true;
        self.answered_at = Some(now);
        self.asked = None;
    }

    /// The peer probed it. Says whether it asks like one who gets no answers, while we have none of it either.
    pub(super) fn handle_asked(&mut self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        let before = self.asked.filter(|asked| since(asked.last) < ASKED_AGAIN);
        let asked = Asked {
            times: before.map_or(1, |asked| asked.times.saturating_add(1)),
            first: before.map_or(now, |asked| asked.first),
            last: now,
        };
        let is_answered = self
            .answered_at
            .is_some_and(|at| since(at) < ANSWERED_LATELY);
        // Until its first question can have been answered, it asks because it does not know yet.
        let is_late = since(asked.first) > usual(self.rtt.unwrap_or_default());
        let doubts = asked.times >= ASKED_MAX && is_late && !is_answered;
        self.asked = (!doubts).then_some(asked);
        doubts
    }

    /// It does not work any more; what was known of it must be proved again.
    pub(super) fn handle_failure(&mut self, now: Instant) {
        if self
            .failed_at
            .is_some_and(|at| now.saturating_duration_since(at) > FORGIVE_AFTER)
        {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        self.proven = false;
        self.rtt = None;
        self.samples = 0;
        self.answered_at = None;
        self.mtu.reset();
    }

    /// Whether recent failures speak against moving a working connection here.
    pub(super) fn is_held_down(&self, now: Instant) -> bool {
        let wait = HOLD_DOWN
            .saturating_mul(1 << self.failures.saturating_sub(1).min(8))
            .min(HOLD_DOWN_MAX);
        self.failed_at.is_some_and(|at| now < at + wait)
    }

    pub(super) fn answered_since(&self, since: Instant) -> bool {
        self.answered_at.is_some_and(|at| at >= since)
    }

    /// Whether nothing came for longer than is usual on a path that carries data.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.silent_for(now)
            .is_none_or(|silence| silence > silence_max(self.rtt))
    }

    pub(super) fn silent_for(&self, now: Instant) -> Option<Duration> {
        self.heard_at.map(|at| now.saturating_duration_since(at))
    }
}

/// A probe on its way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InFlight {
    pub(super) id: u64,
    pub(super) path: PathAddr,
    pub(super) sent_at: Instant,
    /// Set when it asks whether this size passes.
    pub(super) size: Option<u16>,
}

/// Probes whose answers are still believed. The oldest goes first when the bound is met: its answer is the least useful.
#[derive(Debug, Default)]
pub(super) struct ProbesInFlight(VecDeque<InFlight>);

/// A full round over all paths fits several times.
const IN_FLIGHT_MAX: usize = 256;

/// An answer later than this says nothing about now.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

impl ProbesInFlight {
    pub(super) fn push(&mut self, probe: InFlight) {
        while self
            .0
            .front()
            .is_some_and(|old| probe.sent_at.saturating_duration_since(old.sent_at) > ANSWER_WITHIN)
        {
            self.0.pop_front();
        }
        if self.0.len() == IN_FLIGHT_MAX {
            self.0.pop_front();
        }
        self.0.push_back(probe);
    }

    /// The probe that an answer belongs to, once.
    pub(super) fn take(&mut self, id: u64, now: Instant) -> Option<InFlight> {
        let at = self.0.iter().position(|probe| probe.id == id)?;
        self.0
            .remove(at)
            .filter(|probe| now.saturating_duration_since(probe.sent_at) <= ANSWER_WITHIN)
    }

    /// Whether a probe of that path was sent within this time, and has no answer yet.
    pub(super) fn asks(&self, path: PathAddr, within: Duration, now: Instant) -> bool {
        let is_young = |probe: &&InFlight| now.saturating_duration_since(probe.sent_at) < within;
        let mut young = self.0.iter().rev().take_while(is_young);
        young.any(|probe| probe.path == path)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    const ADDR: PathAddr = PathAddr::Direct(std::net::SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        9,
    ));

    #[test]
    fn an_answer_counts_once_and_not_late() {
        let (mut flight, t0) = (ProbesInFlight::default(), Instant::now());
        for id in [1, 2] {
            flight.push(InFlight {
                id,
                path: ADDR,
                sent_at: t0,
                size: None,
            });
        }
        assert!(flight.take(1, t0).is_some());
        assert!(flight.take(1, t0).is_none());
        assert!(flight.take(2, t0 + ANSWER_WITHIN * 2).is_none());
    }

    #[test]
    fn unanswered_probes_are_bounded() {
        let (mut flight, t0) = (ProbesInFlight::default(), Instant::now());
        for id in 0..1000 {
            flight.push(InFlight {
                id,
                path: ADDR,
                sent_at: t0,
                size: None,
            });
        }
        assert_eq!(flight.0.len(), IN_FLIGHT_MAX);
    }

    #[test]
    fn a_path_that_keeps_failing_is_held_down_longer_each_time() {
        let (mut path, t0) = (Path::new(ADDR, Tier::Direct, false, 1500), Instant::now());
        path.handle_failure(t0);
        assert!(path.is_held_down(t0 + HOLD_DOWN / 2) && !path.is_held_down(t0 + HOLD_DOWN));
        path.handle_failure(t0);
        assert!(path.is_held_down(t0 + HOLD_DOWN) && !path.is_held_down(t0 + HOLD_DOWN * 2));
    }
}
