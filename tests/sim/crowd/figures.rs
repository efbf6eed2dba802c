//! What a crowd's story came to.

use super::{Plan, mix::MIX};
use std::{collections::BTreeMap, fmt::Write, time::Duration};

/// How two members reach each other, from best to worst.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// On one LAN.
    Lan,
    /// Straight by IPv6.
    Six,
    /// Straight by IPv4.
    Four,
    /// Through a relay.
    Relay,
    /// Through a relay that one of them reaches by a stream.
    Stream,
}

/// The time in which a pair talks without either having been away.
pub(super) struct Spell {
    pub(super) began: Duration,
    /// Whether something had befallen either before.
    pub(super) is_again: bool,
    /// From the beginning to the first answer.
    pub(super) first: Option<Duration>,
    pub(super) direct_after: Option<Duration>,
    pub(super) was_relayed: bool,
}

impl Spell {
    pub(super) const fn new(began: Duration, is_again: bool) -> Self {
        Self {
            began,
            is_again,
            first: None,
            direct_after: None,
            was_relayed: false,
        }
    }
}

/// A probe that was not answered and should have been.
#[derive(Clone, Debug)]
pub struct Unreached {
    /// When it was sent.
    pub at: Duration,
    /// From whom to whom.
    pub pair: (usize, usize),
    /// Behind what they are.
    pub kinds: (&'static str, &'static str),
    /// Which way was in use when it was found out.
    pub way: Option<Way>,
    /// How long before something had befallen either.
    pub after_loss: Option<Duration>,
    /// How long they had talked.
    pub after_beginning: Duration,
}

/// A pair whose first answer took long.
#[derive(Clone, Debug)]
pub struct Slow {
    /// From the beginning to the answer.
    pub first: Duration,
    /// When they began.
    pub began: Duration,
    /// From whom to whom.
    pub pair: (usize, usize),
    /// Behind what they are.
    pub kinds: (&'static str, &'static str),
    /// Which way was in use then.
    pub way: Option<Way>,
}

/// How many pairs, and which way they came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ways {
    /// By [`Way`].
    pub by: [usize; 5],
}

impl Ways {
    /// All of them.
    pub fn total(&self) -> usize {
        self.by.iter().sum()
    }

    /// Those that need no relay.
    pub fn direct(&self) -> usize {
        self.by[..3].iter().sum()
    }
}

/// What a story came to.
#[derive(Clone, Debug)]
pub struct Figures {
    /// What was told.
    pub plan: Plan,
    /// Probes answered within a second, outside the time after a loss.
    pub reached: u64,
    /// Probes that were not, and how it came: the first few.
    pub unreached: u64,
    /// See [`Self::unreached`].
    pub unreached_first: Vec<Unreached>,
    /// In the two seconds after a loss.
    pub reached_in_recovery: u64,
    /// In the two seconds after a loss.
    pub lost_in_recovery: u64,
    /// Probes lost before a pair's first answer.
    pub before_first: u64,
    /// The longest silence after a loss.
    pub silence_max: Duration,
    /// Pairs that waited for more than two seconds: the first few.
    pub slow_first: Vec<Slow>,
    /// Times to first data of pairs that began to talk.
    pub first_data: Vec<Duration>,
    /// The same of pairs of which one had been away.
    pub first_data_again: Vec<Duration>,
    /// Pairs that had no answer in their first ten seconds.
    pub never: usize,
    /// Times until pairs that had to punch were direct.
    pub punched_after: Vec<Duration>,
    /// Pairs of which both only let in whom they sent to, and that are relayed at first: what DCUtR was measured by.
    pub punching: Ways,
    /// The same, of those that have no IPv6 in common.
    pub punching_four: Ways,
    /// The same without those behind firewalls that let no UDP out.
    pub punching_udp: Ways,
    /// Pairs of which one lets everybody in.
    pub open: Ways,
    /// By the kinds of both sides.
    pub by_kinds: BTreeMap<(usize, usize), Ways>,
    /// Members that left.
    pub left: usize,
    /// NATs that were rebooted.
    pub reboots: usize,
    /// Relays that were switched off.
    pub relays_lost: usize,
    /// Datagrams on the wire that showed a guest's payload.
    pub plaintext: u64,
    /// Of the whole run.
    pub digest: String,
    /// How many things happened in it.
    pub happened: u64,
}

/// Unreached probes that are told one by one.
const UNREACHED_MAX: usize = 40;

/// A pair that waits longer for its first answer is told of.
const SLOW_AFTER: Duration = Duration::from_secs(2);

/// A pair that talked for less says nothing of where it would have come to.
const TALKED_MIN: Duration = Duration::from_secs(30);

/// A pair without an answer for so long has none.
const NEVER_AFTER: Duration = Duration::from_secs(10);

impl Figures {
    pub(super) fn of(plan: Plan) -> Self {
        Self {
            plan,
            reached: 0,
            unreached: 0,
            unreached_first: Vec::new(),
            reached_in_recovery: 0,
            lost_in_recovery: 0,
            before_first: 0,
            silence_max: Duration::ZERO,
            slow_first: Vec::new(),
            first_data: Vec::new(),
            first_data_again: Vec::new(),
            never: 0,
            punched_after: Vec::new(),
            punching: Ways::default(),
            punching_four: Ways::default(),
            punching_udp: Ways::default(),
            open: Ways::default(),
            by_kinds: BTreeMap::new(),
            left: 0,
            reboots: 0,
            relays_lost: 0,
            plaintext: 0,
            digest: String::new(),
            happened: 0,
        }
    }

    pub(super) fn note_unreached(&mut self, unreached: Unreached) {
        self.unreached += 1;
        if self.unreached_first.len() < UNREACHED_MAX {
            self.unreached_first.push(unreached);
        }
    }

    pub(super) fn note_slow(&mut self, slow: Slow) {
        if slow.first > SLOW_AFTER && self.slow_first.len() < UNREACHED_MAX {
            self.slow_first.push(slow);
        }
    }

    pub(super) fn note_spell(
        &mut self,
        spell: &Spell,
        (a, b): (usize, usize),
        six: bool,
        way: Option<Way>,
        now: Duration,
    ) {
        let lasted = now.saturating_sub(spell.began);
        self.never += usize::from(spell.first.unwrap_or(lasted) > NEVER_AFTER);
        match spell.first {
            Some(first) if spell.is_again => self.first_data_again.push(first),
            Some(first) => self.first_data.push(first),
            None => {}
        }
        let Some(way) = way.filter(|_| lasted >= TALKED_MIN) else {
            return;
        };
        let count = |ways: &mut Ways| ways.by[way as usize] += 1;
        count(self.by_kinds.entry((a.min(b), a.max(b))).or_default());
        let (one, other) = (&MIX[a], &MIX[b]);
        if way == Way::Lan || one.lets_everybody_in() || other.lets_everybody_in() {
            return count(&mut self.open);
        }
        count(&mut self.punching);
        if !six {
            count(&mut self.punching_four);
        }
        if one.passes_udp() && other.passes_udp() {
            count(&mut self.punching_udp);
        }
        self.punched_after.extend(spell.direct_after);
    }

    /// Share of the probes outside the time after losses that were answered.
    pub fn reachability(&self) -> f64 {
        self.reached as f64 / (self.reached + self.unreached).max(1) as f64
    }

    /// Whether everybody reached everybody, but for what a loss may cost, and nothing showed on the wire.
    pub const fn is_kept(&self) -> bool {
        self.unreached == 0 && self.never == 0 && self.plaintext == 0
    }

    /// What happened, in lines for people; the seed tells it again.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{} members, {} relays, {} s of talk; {} left, {} NATs were rebooted, {} relays were lost at once. Seed {}: {} things happened, digest {}.",
                self.plan.members,
                self.plan.relays,
                self.plan.talking.as_secs(),
                self.left,
                self.reboots,
                self.relays_lost,
                self.plan.seed,
                self.happened,
                &self.digest[..16.min(self.digest.len())]
            ),
            String::new(),
            "| | |".to_owned(),
            "|---|---:|".to_owned(),
            format!(
                "| probes outside the 2 s after a loss | {} |",
                self.reached + self.unreached
            ),
            format!(
                "| of these answered within a second | {:.4} % |",
                100.0 * self.reachability()
            ),
            format!("| not answered | {} |", self.unreached),
            format!(
                "| probes within the 2 s after a loss, answered and not | {} and {} |",
                self.reached_in_recovery, self.lost_in_recovery
            ),
            format!(
                "| pairs without an answer in their first ten seconds | {} |",
                self.never
            ),
            times("first data of a new pair", &self.first_data),
            times("first data after one was away", &self.first_data_again),
            times(
                "until direct, where punching was needed",
                &self.punched_after,
            ),
            rate(
                "pairs that had to punch (as DCUtR counts: 70 % ± 7.1)",
                &self.punching,
            ),
            rate("the same, without IPv6 in common", &self.punching_four),
            rate("the same, where both get UDP out", &self.punching_udp),
            rate("pairs of which one lets everybody in", &self.open),
            String::new(),
            "| Sites | Pairs | LAN | IPv6 | IPv4 | relay | stream |".to_owned(),
            "|---|---:|---:|---:|---:|---:|---:|".to_owned(),
        ];
        for ((a, b), ways) in &self.by_kinds {
            let mut line = format!(
                "| {} with {} | {} |",
                MIX[*a].name,
                MIX[*b].name,
                ways.total()
            );
            for count in ways.by {
                let _infallible = write!(line, " {count} |");
            }
            lines.push(line);
        }
        lines
    }
}

fn times(what: &str, times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |share: f64| {
        let at = (sorted.len() as f64 * share) as usize;
        sorted
            .get(at.min(sorted.len().saturating_sub(1)))
            .map_or(0, Duration::as_millis)
    };
    format!(
        "| {what}: median, 99 in a hundred, worst of {} | {} ms, {} ms, {} ms |",
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

fn rate(what: &str, ways: &Ways) -> String {
    let share = 100.0 * ways.direct() as f64 / ways.total().max(1) as f64;
    format!(
        "| {what}: direct in the end, of {} | {share:.1} % |",
        ways.total()
    )
}
