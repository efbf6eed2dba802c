//! Foretold ports: a symmetric NAT that gives out one port after the other is asked, by STUN from a fresh socket, where it
//! stands; the peer is told, and both sides probe before it has moved on. Whether two NATs call for it is judged in
//! [`super::passage`]; how the question is put, in [`crate::stun`].
//!
//! A fresh socket, because the data port's mappings for servers that we know are old, and because its probes to other
//! addresses would take ports in between.

use super::chance::{PORT_MIN, PORTS};
use super::wish::PathWish;
use super::{ControlMessage, Passage, PathAgent};
use crate::path::credit::PROBE_BYTES;
use crate::stun::{PortAssignment, STEP_MAX, Sampled};
use overlay_types::PathAddr;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Ports that are probed where one side's is foretold. Other hosts' new mappings, made between question and probe, move
/// the right one further on.
const GUESSES: u16 = 12;

/// The same where both sides' are: so many mappings of others, over both NATs, may come between. See [`crossed`].
const GUESSES_CROSSED: u16 = 6;

/// Addresses of a peer whose NAT maps alike for everybody; each takes one port of ours.
const OUTSIDE_MAX: usize = 3;

/// When the probes of one attempt leave. The later ones are for what was lost, and for a peer that begins later.
const STEPS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(60),
    Duration::from_millis(150),
    Duration::from_millis(300),
    Duration::from_millis(500),
];

/// What an attempt costs the side that probes foretold ports, and the side that probes known addresses.
const GUESSES_BYTES: u64 = STEPS.len() as u64 * GUESSES as u64 * PROBE_BYTES;
const OUTSIDE_BYTES: u64 = STEPS.len() as u64 * OUTSIDE_MAX as u64 * PROBE_BYTES;

/// How long the peer's part, or its payment, is waited for.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How often it is looked whether the payment came.
const PAYMENT_CHECK: Duration = Duration::from_millis(20);

/// After an attempt that brought nothing.
const RETRY: Duration = Duration::from_millis(350);

/// Attempts in succession; then the next round over all pairs begins it anew.
const TRIES: u32 = 5;

/// Where a NAT stood a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foretold {
    base: SocketAddr,
    step: i16,
}

impl Foretold {
    /// The address of the mapping that is the `n`th from now; ports go round from 65535 to 1024.
    fn nth(self, n: u16) -> SocketAddr {
        let (min, ports) = (PORT_MIN as i32, PORTS as i32);
        let port = i32::from(self.base.port()) - min + i32::from(self.step) * i32::from(n);
        SocketAddr::new(self.base.ip(), (port.rem_euclid(ports) + min) as u16)
    }
}

/// Where to probe where both ports are foretold, in order: each probe takes a port of ours, and only the one that leaves
/// from the port at which the peer probes back opens the way. One side walks by one, the other by two; then for every
/// number of mappings that others had in between, up to the bound, exactly one pair of probes meets.
fn crossed(theirs: Foretold, ours: Foretold) -> Vec<SocketAddr> {
    if ours.base < theirs.base {
        (1..2 * GUESSES_CROSSED).map(|n| theirs.nth(n)).collect()
    } else {
        (1..=GUESSES_CROSSED)
            .map(|n| theirs.nth(2 * n - 1))
            .collect()
    }
}

/// The attempt that is under way, if one is.
#[derive(Debug, Default)]
pub(super) struct Foretelling {
    /// Counts our sockets.
    number: u32,
    ours: Option<Ours>,
    theirs: Option<Theirs>,
    probing: Option<Probing>,
    tries: u32,
    retry_at: Option<Instant>,
}

/// Our socket: opened ──▶ sampled, told ──▶ used to probe.
#[derive(Debug)]
struct Ours {
    socket: Option<u16>,
    seen: Option<Foretold>,
    is_used: bool,
    give_up_at: Instant,
}

/// What the peer said last.
#[derive(Debug)]
struct Theirs {
    number: u32,
    foretold: Foretold,
    is_used: bool,
    told_at: Instant,
}

#[derive(Debug)]
struct Probing {
    targets: Vec<PathAddr>,
    /// Set once the first probes left; they leave all together or not at all, for their order is what counts.
    began: Option<Instant>,
    step: usize,
    next_at: Instant,
    give_up_at: Instant,
}

impl Foretelling {
    /// When something is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let waiting = self.ours.as_ref().filter(|ours| !ours.is_used);
        let waiting = waiting.map(|ours| ours.give_up_at);
        let probing = self.probing.as_ref().map(|probing| probing.next_at);
        [waiting, probing, self.retry_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether a socket belongs to the attempt.
    pub(super) fn uses(&self, socket: u16) -> bool {
        self.is_busy()
            && self
                .ours
                .as_ref()
                .is_some_and(|ours| ours.socket == Some(socket))
    }

    /// Whether it waits for a socket.
    pub(super) fn wants_socket(&self) -> bool {
        self.ours.as_ref().is_some_and(|ours| ours.socket.is_none())
    }

    /// Stops whatever is under way.
    pub(super) fn stop(&mut self) {
        (self.ours, self.probing, self.retry_at) = (None, None, None);
        self.tries = 0;
    }

    /// With new keys the peer may be a new process that counts from the beginning.
    pub(super) fn forget_peer(&mut self) {
        self.theirs = None;
    }

    fn is_busy(&self) -> bool {
        self.probing.is_some()
            || self.retry_at.is_some()
            || self.ours.as_ref().is_some_and(|ours| !ours.is_used)
    }
}

impl PathAgent {
    /// A round begins in which ports of ours are to be foretold.
    pub(super) fn begin_foretelling(&mut self, now: Instant) {
        if !self.foretelling.is_busy() {
            self.foretelling.tries = 0;
            self.attempt(now);
        }
    }

    /// Opens a fresh socket to ask from.
    fn attempt(&mut self, now: Instant) {
        self.foretelling.retry_at = None;
        if !self.attempts.take(now) {
            return;
        }
        self.foretelling.number = self.foretelling.number.wrapping_add(1);
        self.foretelling.tries += 1;
        self.tries.note_foretelling();
        self.foretelling.probing = None;
        self.foretelling.ours = Some(Ours {
            socket: None,
            seen: None,
            is_used: false,
            give_up_at: now + PATIENCE,
        });
        self.tidy_sockets(now);
        self.wish(PathWish::Open(1));
    }

    /// The socket is there; a number too many is closed with the next attempt.
    pub(super) fn take_foretelling_socket(&mut self, socket: u16) {
        if let Some(ours) = &mut self.foretelling.ours {
            ours.socket = Some(socket);
            self.wish(PathWish::Sample(socket));
        }
    }

    /// What servers saw of a socket of ours; `None` when none of them answered.
    pub fn handle_sampled(&mut self, socket: u16, sampled: Option<Sampled>, now: Instant) {
        let known = match self.candidates.nats().0.ports {
            PortAssignment::Contiguous { step } => Some(step),
            _ => None,
        };
        let Some(ours) = self.foretelling.ours.as_mut() else {
            return;
        };
        if ours.socket != Some(socket) || ours.seen.is_some() {
            return;
        }
        let step = sampled.and_then(|sampled| smaller_step(sampled.step, known));
        let (Some(sampled), Some(step)) = (sampled, step) else {
            ours.give_up_at = now; // the next attempt may find a server
            return;
        };
        let base = sampled.last;
        ours.seen = Some(Foretold { base, step });
        self.credit.ask(GUESSES_BYTES);
        let number = self.foretelling.number;
        self.tell_peer(ControlMessage::Foretold { number, base, step }, now);
        self.pay(now);
        self.probe_foretold(now);
    }

    /// The peer says where its NAT stands.
    pub(super) fn handle_foretold(
        &mut self,
        number: u32,
        base: SocketAddr,
        step: i16,
        now: Instant,
    ) {
        let is_known = self
            .foretelling
            .theirs
            .as_ref()
            .is_some_and(|theirs| theirs.number == number);
        let is_sane = self.candidates.is_sane(base)
            && u32::from(base.port()) >= PORT_MIN
            && step != 0
            && u32::from(step.unsigned_abs()) <= STEP_MAX;
        let Passage::Predicted { ours, theirs: true } = self.passage() else {
            return;
        };
        if is_known || !is_sane || !self.wants_passage() {
            return;
        }
        if !ours && !self.attempts.take(now) {
            return; // each costs us what we pay for the peer's part
        }
        self.foretelling.theirs = Some(Theirs {
            number,
            foretold: Foretold { base, step },
            is_used: false,
            told_at: now,
        });
        let has_fresh = self
            .foretelling
            .ours
            .as_ref()
            .is_some_and(|ours| !ours.is_used);
        if ours && !has_fresh {
            self.foretelling.tries = 0; // the peer counts them
            self.attempt(now);
        }
        if !ours {
            self.credit.ask(OUTSIDE_BYTES);
            self.pay(now);
        }
        self.probe_foretold(now);
    }

    /// Begins to probe as soon as everything that it takes is known.
    fn probe_foretold(&mut self, now: Instant) {
        let Passage::Predicted { ours, theirs } = self.passage() else {
            return;
        };
        let sample = self.foretelling.ours.as_ref().filter(|ours| !ours.is_used);
        let sample = sample.and_then(|ours| Some((ours.socket?, ours.seen?)));
        let told = self.foretelling.theirs.as_ref().filter(|theirs| {
            !theirs.is_used && now.saturating_duration_since(theirs.told_at) < PATIENCE
        });
        let told = told.map(|theirs| theirs.foretold);
        let targets: Vec<PathAddr> = match (ours, theirs, sample, told) {
            (true, false, Some((socket, seen)), _) => {
                let outside = self.candidates.outside().into_iter();
                let alike = outside.filter(|addr| addr.is_ipv4() == seen.base.is_ipv4());
                let from_it = |addr| PathAddr::Punched { socket, addr };
                alike.take(OUTSIDE_MAX).map(from_it).collect()
            }
            (false, true, _, Some(told)) => (1..=GUESSES)
                .map(|n| PathAddr::Direct(told.nth(n)))
                .collect(),
            (true, true, Some((socket, seen)), Some(told)) => crossed(told, seen)
                .into_iter()
                .map(|addr| PathAddr::Punched { socket, addr })
                .collect(),
            _ => return,
        };
        if let Some(sample) = &mut self.foretelling.ours {
            sample.is_used = true;
        }
        if let Some(told) = &mut self.foretelling.theirs {
            told.is_used = true;
        }
        self.foretelling.probing = Some(Probing {
            targets,
            began: None,
            step: 0,
            next_at: now,
            give_up_at: now + PATIENCE,
        });
        self.continue_foretelling(now);
    }

    /// Does what is due of an attempt.
    pub(super) fn continue_foretelling(&mut self, now: Instant) {
        if !self.wants_passage() {
            self.foretelling.stop();
            return;
        }
        let is_overdue = |ours: &Ours| !ours.is_used && ours.give_up_at <= now;
        if self.foretelling.ours.as_ref().is_some_and(is_overdue) {
            self.foretelling.ours = None;
            self.plan_attempt(now);
        }
        if self.foretelling.retry_at.is_some_and(|at| at <= now) {
            self.attempt(now);
        }
        let Some(mut probing) = self.foretelling.probing.take() else {
            return;
        };
        if probing.next_at > now {
            self.foretelling.probing = Some(probing);
            return;
        }
        let cost = probing.targets.len() as u64 * PROBE_BYTES;
        if probing.began.is_none() && !self.credit.covers(cost) {
            if probing.give_up_at <= now {
                self.plan_attempt(now);
            } else {
                probing.next_at = now + PAYMENT_CHECK;
                self.foretelling.probing = Some(probing);
            }
            return;
        }
        let began = *probing.began.get_or_insert(now);
        for target in &probing.targets {
            self.probe_blindly(*target, now);
        }
        probing.step += 1;
        if let Some(after) = STEPS.get(probing.step) {
            probing.next_at = began + *after;
            self.foretelling.probing = Some(probing);
        } else {
            self.plan_attempt(now);
        }
    }

    /// What was tried brought nothing so far.
    fn plan_attempt(&mut self, now: Instant) {
        self.foretelling.probing = None;
        let is_ours = matches!(self.passage(), Passage::Predicted { ours: true, .. });
        let again = is_ours && self.foretelling.tries < TRIES;
        self.foretelling.retry_at = again.then(|| now + RETRY);
    }
}

/// Between two mappings another host may have had one, so the smaller distance is the NAT's.
fn smaller_step(seen: Option<i16>, known: Option<i16>) -> Option<i16> {
    seen.into_iter()
        .chain(known)
        .min_by_key(|step| step.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn at(host: u8, port: u16, step: i16) -> Foretold {
        Foretold {
            base: ([203, 0, 113, host], port).into(),
            step,
        }
    }

    #[test]
    fn ports_are_counted_on_and_go_round() {
        assert_eq!(at(1, 5000, 2).nth(3).port(), 5006);
        assert_eq!(at(1, 5000, -1).nth(3).port(), 4997);
        assert_eq!(at(1, 65_534, 1).nth(3).port(), 1025);
        assert_eq!(at(1, 1025, -2).nth(1).port(), 65_535);
    }

    /// Whether a probe of one side leaves from the port that a probe of the other goes to, and the other way round, where
    /// others had so many mappings in between.
    fn meet(skipped: (u16, u16)) -> bool {
        let (one, two) = (at(1, 40_000, 1), at(2, 50_000, 3));
        // By the port that each probe leaves from: where it goes.
        let leave = |ours: Foretold, theirs, skipped| -> BTreeMap<SocketAddr, SocketAddr> {
            let ports = (1..).map(|n| ours.nth(n + skipped));
            ports.zip(crossed(theirs, ours)).collect()
        };
        let (there, back) = (leave(one, two, skipped.0), leave(two, one, skipped.1));
        there.iter().any(|(from, to)| back.get(to) == Some(from))
    }

    #[test]
    fn probes_of_both_sides_meet_whatever_few_mappings_others_had() {
        for first in 0..GUESSES_CROSSED {
            for second in 0..GUESSES_CROSSED {
                let few = first + second < GUESSES_CROSSED;
                assert_eq!(meet((first, second)), few, "{first} and {second}");
            }
        }
    }
}
