//! Rounds over all pairs, and what goes with them: what plain probes cannot do, and what the peer's probes are paid with.
//! When a round begins is in [`super::punch`].

use super::credit::{PAYMENT_BYTES_MAX, PROBE_BYTES};
use super::probe::Path;
use super::punch::{self, Due, Want};
use super::selection::Tier;
use super::watch::usual;
use super::{ControlMessage, Passage, PathAgent, is_in_use};
use overlay_types::PathAddr;
use rand::Rng;
use std::time::{Duration, Instant};

/// Payments for one round: three pay for the probes of a host with four ways in.
const PAYMENTS_MAX: usize = 12;

/// Relays need no simultaneous open: such a path is asked again only when its answer is late.
const RELAY_ANSWERS_WITHIN: Duration = Duration::from_millis(350);

impl PathAgent {
    /// Does what is due of a round.
    pub(super) fn continue_round(&mut self, now: Instant) {
        let tier = self.current.map(|addr| self.paths[&addr].tier);
        let traffic_at = self.traffic_at;
        let due = self
            .punching
            .handle_timeout(|at| want(tier, traffic_at, at), now, &mut self.rng);
        match due {
            Some(Due::Probe { since }) => {
                // One that answered and is still not in use may be waiting for its hold-down to end.
                let is_open =
                    |p: &Path| !p.answered_since(since) || tier.is_some_and(|t| p.tier < t);
                let first = self.first;
                let open = self.paths.iter().filter(|(addr, p)| {
                    is_open(p) && (!p.learned || p.proven || first == Some(**addr))
                });
                let open: Vec<_> = open.map(|(addr, p)| (*addr, p.tier, p.rtt)).collect();
                for (addr, tier, rtt) in open {
                    let wait = RELAY_ANSWERS_WITHIN.max(usual(rtt.unwrap_or_default()));
                    if !tier.is_relayed() || !self.in_flight.asks(addr, wait, now) {
                        self.probe(addr, None, now);
                    }
                }
            }
            Some(Due::Call) => self.call(now),
            Some(Due::Search) => self.probe_everything(now),
            None => {}
        }
    }

    /// Tells the peer our ways in, and both begin a round.
    pub(super) fn call(&mut self, now: Instant) {
        self.tell(true, now);
        self.probe_everything(now);
    }

    /// Tells the peer our ways in.
    pub(super) fn tell(&mut self, punch: bool, now: Instant) {
        let list = self.candidates.tell(punch, now);
        if let Some(current) = self.current {
            self.send(current, list, None, now);
        }
    }

    /// Begins a round, as far as rounds are allowed.
    pub(super) fn probe_everything(&mut self, now: Instant) {
        self.sync_paths();
        if self.punching.start(now) {
            self.stats.rounds += 1;
            self.continue_round(now);
            let probes = self.candidates.local_count() * punch::STEPS.len();
            self.credit.ask(probes as u64 * PROBE_BYTES);
        }
        // Last, for the probes before may take new ports of our NAT.
        self.begin_passage(now);
        self.pay(now);
    }

    /// Whether there is anything to gain from what NATs must be tricked into.
    pub(super) fn wants_passage(&self) -> bool {
        let tier = self.current.map(|addr| self.paths[&addr].tier);
        let is_relayed = matches!(tier, Some(Tier::Relay | Tier::Member | Tier::Chain));
        self.is_up && is_relayed
    }

    /// What plain probes cannot do, as far as the two NATs call for it.
    fn begin_passage(&mut self, now: Instant) {
        if !self.wants_passage() {
            return;
        }
        match self.passage() {
            Passage::Predicted { ours: true, .. } => self.begin_foretelling(now),
            Passage::ByChance { ours } if is_in_use(self.traffic_at, now) => {
                self.begin_chance(ours, None, now);
            }
            _ => {}
        }
    }

    /// Sends a message on the path in use, if there is one.
    pub(super) fn tell_peer(&mut self, msg: ControlMessage, now: Instant) {
        if let Some(current) = self.current {
            self.send(current, msg, None, now);
        }
    }

    /// Pays for what the peer is to send on our behalf, if what it got from us so far is not enough.
    pub(super) fn pay(&mut self, now: Instant) {
        let Some(current) = self.current else { return };
        for _ in 0..PAYMENTS_MAX {
            let owed = self.credit.owed();
            if owed == 0 {
                return;
            }
            let size = u16::try_from(owed).map_or(PAYMENT_BYTES_MAX, |o| o.min(PAYMENT_BYTES_MAX));
            self.send(current, ControlMessage::Credit, Some(size), now);
        }
    }

    /// Probes an address that is only a guess: it becomes a path once something comes from there.
    pub(super) fn probe_blindly(&mut self, to: PathAddr, now: Instant) {
        let id = self.rng.random();
        self.stats.probes_sent += u64::from(self.send(to, ControlMessage::Probe { id }, None, now));
    }
}

/// What more rounds at that time would be good for, on a path of `tier`.
pub(super) fn want(tier: Option<Tier>, traffic_at: Option<Instant>, at: Instant) -> Want {
    match tier {
        None => Want::Any,
        Some(tier) if tier.is_relayed() && is_in_use(traffic_at, at) => Want::Better,
        Some(_) => Want::Nothing,
    }
}
