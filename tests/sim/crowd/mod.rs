//! A large network as the internet has them: members behind every kind of NAT who come and go, and talk with a few others
//! each; relays that are lost. Every pair that talks is probed all the time, by frames that pass the real data planes.

mod figures;
pub mod mix;

pub use figures::{Figures, Slow, Unreached, Way};

use crate::{
    link::LinkKind,
    member::MemberId,
    overlay::Overlay,
    world::{NatId, Role},
};
use figures::Spell;
use mix::{IPV6_PERCENT, MIX, NEIGHBOURS_PERCENT, SUBSCRIBERS, Site};
use overlay_types::PathAddr;
use rand::Rng;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

const SECOND: Duration = Duration::from_secs(1);

/// How often a story says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// How often a pair that talks is probed, and how often after a loss that concerns it.
const PROBE_EVERY: Duration = SECOND;
const PROBE_AFTER_LOSS: Duration = Duration::from_millis(200);

/// An answer after this counts as none.
const ANSWER_WITHIN: Duration = SECOND;

/// What a loss may cost.
const RECOVERY: Duration = Duration::from_secs(2);

/// How long members have to join after the last was started.
const JOINING_MAX: Duration = Duration::from_secs(120);

/// How long a member that left stays away.
const AWAY: std::ops::Range<Duration> = Duration::from_secs(30)..Duration::from_secs(300);

/// What happens in a story.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Everything random follows from it.
    pub seed: u64,
    /// How many, the owner included.
    pub members: usize,
    /// Infrastructure nodes.
    pub relays: usize,
    /// Within this time all members are started.
    pub joining: Duration,
    /// How long they talk.
    pub talking: Duration,
    /// Share of the members that leave in an hour, without a word.
    pub churn_per_hour: f64,
    /// Share of the NATs that are rebooted in an hour.
    pub reboots_per_hour: f64,
    /// Share of the relays that are switched off at once, when two thirds of the time are over.
    pub relays_lost: f64,
    /// How many others each member begins to talk to; as many again begin to talk to it, on average.
    pub partners: usize,
    /// How long two talk, on average, until the one who began takes somebody else.
    pub talk: Duration,
}

/// What may befall the crowd, when it is planned.
enum Fate {
    Leaves,
    Returns(MemberId),
    Reboot,
    RelaysLost,
}

/// Two that talk.
struct Pair {
    from: MemberId,
    to: MemberId,
    until: Duration,
    spell: Option<Spell>,
    /// When a member was lost whose relay was theirs.
    relay_lost_at: Option<Duration>,
    /// Probes that may still be answered.
    asked: VecDeque<(u16, Duration)>,
}

/// A story as it is told.
struct Crowd {
    plan: Plan,
    overlay: Overlay,
    /// By member: its place in [`MIX`], and whether it has IPv6.
    kinds: Vec<(usize, bool)>,
    carriers: BTreeMap<usize, (NatId, usize)>,
    last_site: Option<(usize, Option<NatId>)>,
    pairs: Vec<Pair>,
    due: BTreeSet<(Duration, usize)>,
    fates: BTreeMap<(Duration, u64), Fate>,
    fates_planned: u64,
    /// Who is to stay away.
    gone: BTreeSet<MemberId>,
    /// When something last befell a member, its NAT, or all relays.
    lost_at: BTreeMap<MemberId, Duration>,
    relays_lost_at: Option<Duration>,
    progress_at: Duration,
    figures: Figures,
}

/// How far a story is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The time in it.
    pub at: Duration,
    /// Members that have an address.
    pub ready: usize,
    /// How many things happened.
    pub happened: u64,
    /// See [`Figures::reached`].
    pub reached: u64,
    /// See [`Figures::unreached`].
    pub unreached: u64,
}

/// Tells the story, and every ten seconds of it how far it is.
pub fn tell(plan: Plan, mut on_progress: impl FnMut(Progress)) -> Figures {
    let mut crowd = Crowd::gathered(plan);
    crowd.join(&mut on_progress);
    crowd.talk(&mut on_progress);
    let mut figures = crowd.figures;
    figures.digest = crowd.overlay.world.trace.digest();
    figures.happened = crowd.overlay.world.trace.count();
    figures.plaintext = crowd.overlay.world.plaintext_seen;
    figures
}

impl Crowd {
    /// Everybody has a place, and nobody was started.
    fn gathered(plan: Plan) -> Self {
        let fresh = (plan.members as f64 * plan.churn_per_hour).ceil() as usize;
        let mut overlay = Overlay::of_size(plan.seed, plan.relays, plan.members + fresh + 250);
        for host in overlay.infrastructure().to_vec() {
            let place = somewhere(&mut overlay);
            overlay.world.set_place(host, place);
        }
        let mut crowd = Self {
            plan,
            overlay,
            kinds: vec![(0, false)],
            carriers: BTreeMap::new(),
            last_site: None,
            pairs: Vec::new(),
            due: BTreeSet::new(),
            fates: BTreeMap::new(),
            fates_planned: 0,
            gone: BTreeSet::new(),
            lost_at: BTreeMap::new(),
            relays_lost_at: None,
            progress_at: Duration::ZERO,
            figures: Figures::of(plan),
        };
        for _ in 1..plan.members {
            crowd.newcomer();
        }
        crowd
    }

    /// A member that was never started, at a site of the mix.
    fn newcomer(&mut self) -> MemberId {
        let (kind, nat) = self.site();
        let link = self.link();
        let id = self.overlay.add_member_at(nat, link);
        self.kinds.push((kind, false));
        self.settle(id, kind);
        id
    }

    /// Where a member is on the map, and whether it has IPv6.
    fn settle(&mut self, id: MemberId, kind: usize) {
        let host = self.overlay.member(id).host;
        let place = somewhere(&mut self.overlay);
        self.overlay.world.set_place(host, place);
        let has_six =
            MIX[kind].passes_udp() && self.overlay.world.rng.random_range(0..100) < IPV6_PERCENT;
        if has_six {
            self.overlay.world.add_address6(host);
        }
        self.kinds[id.0] = (kind, has_six);
    }

    fn site(&mut self) -> (usize, Option<NatId>) {
        let rng = &mut self.overlay.world.rng;
        if let Some(site) = self.last_site.take()
            && rng.random_range(0..100) < NEIGHBOURS_PERCENT
        {
            return site;
        }
        let kind = mix::draw(rng);
        let world = &mut self.overlay.world;
        let nat = match MIX[kind].site {
            Site::Public => None,
            Site::Router(of) => Some(world.add_nat(of)),
            Site::Subscriber(of) => {
                let full = self
                    .carriers
                    .get(&kind)
                    .is_none_or(|(_, n)| *n == SUBSCRIBERS);
                if full {
                    self.carriers.insert(kind, (world.add_nat(of), 0));
                }
                let (carrier, subscribers) = self.carriers.get_mut(&kind).expect("just seen to");
                *subscribers += 1;
                Some(world.add_nat_behind(*carrier, crate::nat::NatKind::PORT_RESTRICTED))
            }
        };
        self.last_site = nat.map(|nat| (kind, Some(nat)));
        (kind, nat)
    }

    /// The way from a house to the internet: what is lost there is no matter of reachability, so that nothing is.
    fn link(&mut self) -> LinkKind {
        let rng = &mut self.overlay.world.rng;
        LinkKind {
            delay: Duration::from_millis(rng.random_range(1..15)),
            jitter: Duration::from_millis(rng.random_range(0..4)),
            ..LinkKind::FAST
        }
    }

    fn join(&mut self, on_progress: &mut impl FnMut(Progress)) {
        self.overlay.start(Overlay::OWNER);
        let wait = self.plan.joining / self.plan.members as u32;
        for id in (1..self.plan.members).map(MemberId) {
            self.overlay.run(wait);
            self.overlay.start(id);
            self.say(on_progress);
        }
        let ready = |overlay: &Overlay| overlay.members().all(|id| overlay.is_ready(id));
        let took = self.overlay.run_until(JOINING_MAX, ready);
        assert!(
            took.is_some(),
            "seed {}: not everybody joined:\n{}",
            self.plan.seed,
            self.overlay.world.trace.tail(40)
        );
        self.overlay.run(10 * SECOND); // the last records are on their way
    }

    /// Says how far the story is, when it is time to.
    fn say(&mut self, on_progress: &mut impl FnMut(Progress)) {
        let at = self.now();
        if at < self.progress_at {
            return;
        }
        self.progress_at = at + PROGRESS_EVERY;
        on_progress(Progress {
            at,
            ready: self
                .overlay
                .members()
                .filter(|&id| self.overlay.is_ready(id))
                .count(),
            happened: self.overlay.world.trace.count(),
            reached: self.figures.reached,
            unreached: self.figures.unreached,
        });
    }

    fn now(&self) -> Duration {
        self.overlay.world.elapsed()
    }

    fn plan_fate(&mut self, at: Duration, fate: Fate) {
        self.fates_planned += 1;
        self.fates.insert((at, self.fates_planned), fate);
    }

    /// So many of them at random times.
    fn plan_fates(&mut self, count: f64, fate: impl Fn() -> Fate) {
        let (began, talking) = (self.now(), self.plan.talking);
        for _ in 0..count.round() as usize {
            let at = began + talking.mul_f64(self.overlay.world.rng.random::<f64>());
            self.plan_fate(at, fate());
        }
    }

    fn talk(&mut self, on_progress: &mut impl FnMut(Progress)) {
        let (began, plan) = (self.now(), self.plan);
        let end = began + plan.talking;
        let hours = plan.talking.as_secs_f64() / 3600.0;
        self.plan_fates(plan.members as f64 * plan.churn_per_hour * hours, || {
            Fate::Leaves
        });
        self.plan_fates(plan.members as f64 * plan.reboots_per_hour * hours, || {
            Fate::Reboot
        });
        self.plan_fate(began + plan.talking * 2 / 3, Fate::RelaysLost);
        for id in (0..plan.members).map(MemberId) {
            for _ in 0..plan.partners {
                self.begin_pair(id);
            }
        }
        loop {
            let fate = self.fates.first_key_value().map(|((at, _), _)| *at);
            let probe = self.due.first().map(|(at, _)| *at);
            let Some(at) = fate.into_iter().chain(probe).min().filter(|at| *at < end) else {
                break;
            };
            self.overlay.run(at.saturating_sub(self.now()));
            self.say(on_progress);
            if fate == Some(at) {
                let (_, fate) = self.fates.pop_first().expect("it was there");
                self.befall(fate);
            } else if let Some((_, pair)) = self.due.pop_first() {
                self.probe(pair);
            }
        }
        self.overlay.run(ANSWER_WITHIN);
        for pair in 0..self.pairs.len() {
            self.end_pair(pair);
        }
    }

    // ---- who talks with whom ----

    fn begin_pair(&mut self, from: MemberId) {
        let (to, until) = self.partner(from);
        let pair = self.pairs.len();
        self.pairs.push(Pair {
            from,
            to,
            until,
            spell: None,
            relay_lost_at: None,
            asked: VecDeque::new(),
        });
        let phase = SECOND.mul_f64(self.overlay.world.rng.random::<f64>());
        self.due.insert((self.now() + phase, pair));
    }

    /// Somebody else, and until when they talk.
    fn partner(&mut self, from: MemberId) -> (MemberId, Duration) {
        let count = self.overlay.members().count();
        let now = self.now();
        loop {
            let to = MemberId(self.overlay.world.rng.random_range(0..count));
            if to != from && !self.gone.contains(&to) {
                let lasts = -self.overlay.world.rng.random::<f64>().max(1e-6).ln();
                return (to, now + self.plan.talk.mul_f64(lasts.clamp(0.1, 5.0)));
            }
        }
    }

    /// Time to probe a pair: whoever has no answer yet, or whose time is over, is seen to first.
    fn probe(&mut self, at: usize) {
        let now = self.now();
        self.judge(at);
        let (from, to) = (self.pairs[at].from, self.pairs[at].to);
        let is_over = now >= self.pairs[at].until || self.gone.contains(&to);
        if is_over {
            self.end_pair(at);
            (self.pairs[at].to, self.pairs[at].until) = self.partner(from);
            (self.pairs[at].spell, self.pairs[at].asked) = (None, VecDeque::new());
            self.pairs[at].relay_lost_at = None;
        }
        if self.gone.contains(&from) {
            return; // for good
        }
        let (from, to) = (self.pairs[at].from, self.pairs[at].to);
        if !self.overlay.is_ready(from) || !self.overlay.is_ready(to) {
            self.end_spell(at);
            self.due.insert((now + PROBE_EVERY, at));
            return;
        }
        let is_again =
            !is_over && self.lost_at.contains_key(&from) | self.lost_at.contains_key(&to);
        let pair = &mut self.pairs[at];
        pair.spell.get_or_insert_with(|| Spell::new(now, is_again));
        if let Some(sequence) = self.overlay.send_ping(from, to, 56) {
            self.pairs[at].asked.push_back((sequence, now));
        }
        self.note_way(at);
        let lost = self.loss_before(at, now);
        let pause = match lost {
            Some(lost) if now < lost + 2 * RECOVERY => PROBE_AFTER_LOSS,
            _ => PROBE_EVERY,
        };
        self.due.insert((now + pause, at));
    }

    /// The last thing that befell either of two, or their relay.
    fn loss_before(&self, pair: usize, at: Duration) -> Option<Duration> {
        let pair = &self.pairs[pair];
        let own = [pair.from, pair.to]
            .into_iter()
            .filter_map(|id| self.lost_at.get(&id).copied());
        own.chain(self.relays_lost_at)
            .chain(pair.relay_lost_at)
            .filter(|lost| *lost <= at)
            .max()
    }

    /// Counts the probes whose time is over.
    fn judge(&mut self, at: usize) {
        let now = self.now();
        while let Some(&(sequence, sent)) = self.pairs[at].asked.front() {
            let (from, to) = (self.pairs[at].from, self.pairs[at].to);
            let answered = self.overlay.answered(from, sequence);
            if answered.is_none() && now < sent + ANSWER_WITHIN {
                return;
            }
            self.pairs[at].asked.pop_front();
            self.overlay.forget_ping(from, sequence);
            let Some(spell) = &mut self.pairs[at].spell else {
                continue;
            };
            let began = spell.began;
            // What waited for the first answer with the probe that got it was sent before it, too.
            let is_first = spell.first.is_none_or(|first| sent < began + first);
            let in_time = answered.is_some_and(|took| took <= ANSWER_WITHIN);
            if let (Some(took), None) = (answered, spell.first) {
                let first = sent + took - began;
                spell.first = Some(first);
                let slow = Slow {
                    first,
                    began,
                    pair: (from.0, to.0),
                    kinds: (self.name(from), self.name(to)),
                    way: self.way(from, to),
                };
                self.figures.note_slow(slow);
            }
            let lost = self.loss_before(at, now);
            // What was under way when it happened is lost with it.
            let is_excused =
                lost.is_some_and(|lost| sent < lost + RECOVERY && sent + ANSWER_WITHIN > lost);
            match (in_time, is_first, is_excused) {
                (true, _, false) => self.figures.reached += 1,
                (true, _, true) => {
                    self.figures.reached_in_recovery += 1;
                }
                (false, true, _) => self.figures.before_first += 1,
                (false, false, true) => self.figures.lost_in_recovery += 1,
                (false, false, false) => {
                    let unreached = Unreached {
                        at: sent,
                        pair: (from.0, to.0),
                        kinds: (self.name(from), self.name(to)),
                        way: self.way(from, to),
                        after_loss: lost.map(|lost| sent.saturating_sub(lost)),
                        after_beginning: sent - began,
                    };
                    self.figures.note_unreached(unreached);
                }
            }
            if let (true, Some(lost)) = (!in_time && !is_first, lost) {
                let silence = sent.saturating_sub(lost) + PROBE_AFTER_LOSS;
                if sent > lost && silence < 10 * SECOND {
                    let worst = self.figures.silence_max.max(silence);
                    self.figures.silence_max = worst;
                }
            }
        }
    }

    fn name(&self, id: MemberId) -> &'static str {
        MIX[self.kinds[id.0].0].name
    }

    /// Sees whether a pair is direct by now.
    fn note_way(&mut self, at: usize) {
        let now = self.now();
        let (from, to) = (self.pairs[at].from, self.pairs[at].to);
        if self.pairs[at]
            .spell
            .as_ref()
            .is_some_and(|spell| spell.direct_after.is_some())
        {
            return;
        }
        let way = self.way(from, to);
        if let Some(spell) = &mut self.pairs[at].spell {
            spell.was_relayed |= way.is_some_and(|way| way >= Way::Relay);
            if way.is_some_and(|way| way < Way::Relay) {
                spell.direct_after = Some(now - spell.began);
            }
        }
    }

    /// The worse of the two directions.
    fn way(&self, a: MemberId, b: MemberId) -> Option<Way> {
        let one = |from, to| {
            self.overlay
                .way(from, to)
                .map(|way| self.judge_way(way, from, to))
        };
        Some(one(a, b)?.max(one(b, a)?))
    }

    fn judge_way(&self, way: PathAddr, from: MemberId, to: MemberId) -> Way {
        match way {
            PathAddr::Relayed { relay, .. } | PathAddr::Chained { relay, .. }
                if relay.ip().is_loopback() =>
            {
                Way::Stream
            }
            PathAddr::Relayed { .. } | PathAddr::Chained { .. } => Way::Relay,
            PathAddr::Direct(addr) if addr.is_ipv6() => Way::Six,
            PathAddr::Direct(addr)
                if self.overlay.world.address(self.overlay.member(to).host) == addr
                    && self
                        .overlay
                        .world
                        .nat_of(self.overlay.member(from).host)
                        .is_some()
                    && self.overlay.world.nat_of(self.overlay.member(from).host)
                        == self.overlay.world.nat_of(self.overlay.member(to).host) =>
            {
                Way::Lan
            }
            PathAddr::Direct(_) | PathAddr::Punched { .. } => Way::Four,
        }
    }

    fn end_pair(&mut self, at: usize) {
        self.judge(at);
        self.note_way(at);
        self.end_spell(at);
    }

    /// The pair does not talk any more, or cannot: what came of it is counted.
    fn end_spell(&mut self, at: usize) {
        let (from, to) = (self.pairs[at].from, self.pairs[at].to);
        let Some(spell) = self.pairs[at].spell.take() else {
            return;
        };
        self.pairs[at].asked.clear();
        let now = self.now();
        let (a, b) = (self.kinds[from.0].0, self.kinds[to.0].0);
        let six = self.kinds[from.0].1 && self.kinds[to.0].1;
        let way = self.way(from, to);
        self.figures.note_spell(&spell, (a, b), six, way, now);
    }

    // ---- what befalls them ----

    fn befall(&mut self, fate: Fate) {
        match fate {
            Fate::Leaves => self.leave(),
            Fate::Returns(id) => self.come_back(id),
            Fate::Reboot => self.reboot(),
            Fate::RelaysLost => self.lose_relays(),
        }
        self.probe_soon();
    }

    /// Whoever is concerned by what has just befallen them is probed more often from now on.
    fn probe_soon(&mut self) {
        let now = self.now();
        let (soon, late): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.due)
                .into_iter()
                .partition(|&(at, pair)| {
                    at > now + PROBE_AFTER_LOSS && self.loss_before(pair, now) == Some(now)
                });
        // What is left of a second becomes what is left of the shorter time, so that they stay spread.
        let share = PROBE_AFTER_LOSS.div_duration_f64(PROBE_EVERY);
        let sooner = soon
            .into_iter()
            .map(|(at, pair)| (now + (at - now).mul_f64(share), pair));
        self.due = late.into_iter().chain(sooner).collect();
    }

    /// Somebody who runs, but not the owner, who is the only registrar.
    fn anybody(&mut self) -> Option<MemberId> {
        let count = self.overlay.members().count();
        let id = MemberId(self.overlay.world.rng.random_range(1..count));
        self.overlay.is_ready(id).then_some(id)
    }

    fn leave(&mut self) {
        let Some(id) = self.anybody() else { return };
        self.figures.left += 1;
        for at in 0..self.pairs.len() {
            if self.pairs[at].from == id || self.pairs[at].to == id {
                self.end_pair(at);
            }
        }
        self.lose_relay_of(id);
        self.overlay.kill(id);
        self.lost_at.insert(id, self.now());
        let away = self.overlay.world.random_delay(&AWAY);
        self.plan_fate(self.now() + away, Fate::Returns(id));
    }

    /// Half of them come back somewhere else, a quarter where they were, and a quarter are somebody new.
    fn come_back(&mut self, id: MemberId) {
        match self.overlay.world.rng.random_range(0..4) {
            0 => {
                self.gone.insert(id);
                let newcomer = self.newcomer();
                self.overlay.start(newcomer);
                self.lost_at.insert(newcomer, self.now());
                for _ in 0..self.plan.partners {
                    self.begin_pair(newcomer);
                }
            }
            1 => self.overlay.start(id),
            _ => {
                let (kind, nat) = self.site();
                let link = self.link();
                self.overlay.move_member(id, nat, link);
                self.settle(id, kind);
                self.overlay.start(id);
            }
        }
        self.lost_at.insert(id, self.now());
    }

    fn reboot(&mut self) {
        let Some(id) = self.anybody() else { return };
        let Some(nat) = self.overlay.world.nat_of(self.overlay.member(id).host) else {
            return;
        };
        self.figures.reboots += 1;
        self.lose_relay_of(id);
        self.overlay.world.rebind(nat);
        let now = self.now();
        for other in self.overlay.members() {
            if self.overlay.world.nat_of(self.overlay.member(other).host) == Some(nat) {
                self.lost_at.insert(other, now);
            }
        }
    }

    /// A member is not reached any more, and whoever it relays for has lost a relay.
    fn lose_relay_of(&mut self, id: MemberId) {
        let now = self.now();
        for pair in &mut self.pairs {
            let (from, to) = (pair.from, pair.to);
            let relay = |a, b| self.overlay.relay_between(a, b);
            if [relay(from, to), relay(to, from)].contains(&Some(id)) {
                pair.relay_lost_at = Some(now);
            }
        }
    }

    fn lose_relays(&mut self) {
        let mut relays = self.overlay.infrastructure().to_vec();
        let count = (relays.len() as f64 * self.plan.relays_lost).round() as usize;
        let mut lost = Vec::new();
        while lost.len() < count {
            let at = self.overlay.world.rng.random_range(0..relays.len());
            lost.push(relays.remove(at));
        }
        for host in lost {
            self.figures.relays_lost += 1;
            self.overlay.world.set_role(host, Role::Down);
        }
        self.relays_lost_at = Some(self.now());
    }
}

/// A place on the map, 120 ms wide and 50 ms high: about three continents.
fn somewhere(overlay: &mut Overlay) -> (i32, i32) {
    let rng = &mut overlay.world.rng;
    (rng.random_range(-60..=60), rng.random_range(-25..=25))
}
