//! What became of each way that was tried, for `farlan why`. It only counts and tells: nothing is decided by it.

use super::probe::Path;
use super::{PathAgent, selection::Tier};
use overlay_types::{
    Candidate, PathAddr, PathKind,
    why::{Outcome, PathInUse, TRIED_MAX, Tried, Way, WayKind},
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Ways of which it is remembered what became of them: all that are probed at a time, and some of before.
pub(super) const REMEMBERED_MAX: usize = 32;

/// So many probes in a row are not lost by chance: three may have asked for too large a size.
const UNANSWERED_MAX: u32 = 5;

/// What was tried since the peer was last without a session.
#[derive(Debug, Default)]
pub(super) struct Tries {
    ways: BTreeMap<PathAddr, Try>,
    foretold: u32,
    by_chance: u32,
}

/// One way.
#[derive(Debug, Default)]
struct Try {
    probes: u32,
    answers: u32,
    withheld: u32,
    first_at: Option<Instant>,
    last_at: Option<Instant>,
    answered_at: Option<Instant>,
    answered_from: Option<SocketAddr>,
    /// Probes since the last answer.
    unanswered: u32,
    failed_at: Option<Instant>,
}

impl Tries {
    /// A new beginning.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A probe was to be sent there, and was or was not.
    pub(super) fn note_probe(&mut self, to: PathAddr, was_sent: bool, now: Instant) {
        let way = self.way(to);
        way.last_at = Some(now);
        if was_sent {
            way.first_at.get_or_insert(now);
            way.probes = way.probes.saturating_add(1);
            way.unanswered = way.unanswered.saturating_add(1);
        } else {
            way.withheld = way.withheld.saturating_add(1);
        }
    }

    /// A probe that was sent to `to` was answered from `from`.
    pub(super) fn note_answer(&mut self, to: PathAddr, from: PathAddr, now: Instant) {
        let way = self.way(to);
        way.answers = way.answers.saturating_add(1);
        way.answered_at = Some(now);
        way.unanswered = 0;
        way.answered_from = (from != to).then(|| from.socket_addr());
    }

    /// It was in use and fell silent.
    pub(super) fn note_failure(&mut self, to: PathAddr, now: Instant) {
        self.way(to).failed_at = Some(now);
    }

    /// A port of ours is to be foretold.
    pub(super) const fn note_foretelling(&mut self) {
        self.foretold = self.foretold.saturating_add(1);
    }

    /// Ports are to be tried by chance.
    pub(super) const fn note_chance(&mut self) {
        self.by_chance = self.by_chance.saturating_add(1);
    }

    /// Ways that are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.ways.len()
    }

    /// What is remembered of a way; the one that was quiet for longest makes room.
    fn way(&mut self, to: PathAddr) -> &mut Try {
        if self.ways.len() >= REMEMBERED_MAX && !self.ways.contains_key(&to) {
            let oldest = self.ways.iter().min_by_key(|(_, way)| way.last_at);
            if let Some(oldest) = oldest.map(|(addr, _)| *addr) {
                self.ways.remove(&oldest);
            }
        }
        self.ways.entry(to).or_default()
    }
}

impl PathAgent {
    /// What became of every way that was tried or is listed. What the session knows is the engine's to add.
    pub fn tell_way(&self, now: Instant) -> Way {
        let (_, peer_nat) = self.candidates.nats();
        let path = self.current().map(|view| {
            let size = &self.paths[&view.addr].mtu;
            PathInUse {
                kind: self.kind_of(view.addr),
                to: view.addr.socket_addr(),
                relay: self.candidates.relay_of(view.addr),
                relays: view.addr.relays() as u8,
                rtt_us: micros(view.rtt),
                mtu: view.mtu,
                mtu_refused: size.refused(),
                black_holes: size.black_holes(),
            }
        });
        Way {
            path,
            peer_nat: *peer_nat,
            tried: self.tell_tried(now),
            foretold: self.tries.foretold,
            by_chance: self.tries.by_chance,
            ..Way::default()
        }
    }

    fn kind_of(&self, addr: PathAddr) -> PathKind {
        match self.candidates.tier_of(addr) {
            Tier::Host | Tier::Direct => PathKind::Direct,
            Tier::Relay | Tier::Member | Tier::Chain => PathKind::Relay,
            Tier::Stream => PathKind::Stream,
        }
    }

    fn tell_tried(&self, now: Instant) -> Vec<Tried> {
        let mut all: BTreeMap<PathAddr, WayKind> = BTreeMap::new();
        let mut refused = Vec::new();
        for (candidate, addr) in self.candidates.listed() {
            let kind = match candidate {
                Candidate::Host(_) => WayKind::Host,
                Candidate::Reflexive(_) => WayKind::Reflexive,
                Candidate::Mapped(_) => WayKind::Mapped,
                Candidate::Relayed { .. } => WayKind::Relayed,
            };
            match addr {
                Some(addr) => {
                    all.entry(addr).or_insert(kind);
                }
                None => refused.push((candidate.path_addr(), kind)),
            }
        }
        let probed = self.candidates.remote();
        let is_probed = |addr: &PathAddr| probed.iter().any(|(probed, _)| probed == addr);
        let seen = self.paths.keys().chain(self.tries.ways.keys());
        for addr in seen {
            all.entry(*addr).or_insert(WayKind::Seen);
        }
        let mut told: Vec<_> = all
            .into_iter()
            .map(|(addr, kind)| {
                let is_excess = kind != WayKind::Seen && !is_probed(&addr);
                self.tell_one(addr, kind, is_excess.then_some(Outcome::Excess), now)
            })
            .collect();
        told.extend(
            refused
                .into_iter()
                .map(|(addr, kind)| self.tell_one(addr, kind, Some(Outcome::Refused), now)),
        );
        // The one in use first, then what answered.
        told.sort_by_key(|way| {
            let is_in_use = way.outcome == Outcome::InUse;
            (!is_in_use, way.answered_ms.is_none(), way.kind)
        });
        told.truncate(TRIED_MAX);
        told
    }

    fn tell_one(
        &self,
        addr: PathAddr,
        kind: WayKind,
        left: Option<Outcome>,
        now: Instant,
    ) -> Tried {
        let (path, way) = (self.paths.get(&addr), self.tries.ways.get(&addr));
        let ago = |at: Option<Instant>| at.map(|at| millis(now.saturating_duration_since(at)));
        let judged = || {
            let current = self.current.and_then(|current| self.paths.get(&current));
            judge(path, way, self.current == Some(addr), current, now)
        };
        let relay = self.candidates.relay_of(addr);
        Tried {
            kind,
            to: addr.socket_addr(),
            relay,
            by_stream: self.candidates.tier_of(addr) == Tier::Stream,
            socket: addr.socket(),
            probes: way.map_or(0, |way| way.probes),
            answers: way.map_or(0, |way| way.answers),
            withheld: way.map_or(0, |way| way.withheld),
            first_ms: ago(way.and_then(|way| way.first_at)),
            last_ms: ago(way.and_then(|way| way.last_at)),
            answered_ms: ago(way.and_then(|way| way.answered_at)),
            failed_ms: ago(way.and_then(|way| way.failed_at)),
            rtt_us: path.and_then(|path| path.rtt).map(micros),
            answered_from: way.and_then(|way| way.answered_from),
            outcome: left
                .filter(|_| path.is_none_or(|path| !path.proven))
                .unwrap_or_else(judged),
        }
    }
}

/// What trying a way came to. `current` is the path in use.
fn judge(
    path: Option<&Path>,
    way: Option<&Try>,
    is_current: bool,
    current: Option<&Path>,
    now: Instant,
) -> Outcome {
    if is_current {
        return Outcome::InUse;
    }
    let is_silent = way.is_some_and(|way| way.unanswered > UNANSWERED_MAX);
    if let Some(path) = path.filter(|path| path.proven && !is_silent) {
        return match current {
            _ if path.is_held_down(now) => Outcome::HeldDown,
            Some(current) if path.tier > current.tier => Outcome::WorseKind,
            Some(current) if path.tier == current.tier => Outcome::NotFaster,
            _ => Outcome::Unconfirmed,
        };
    }
    match way {
        Some(way) if way.answers > 0 || way.failed_at.is_some() => Outcome::Lost,
        Some(way) if way.probes > 0 => Outcome::Silent,
        Some(way) if way.withheld > 0 => Outcome::Withheld,
        _ => Outcome::Untried,
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
