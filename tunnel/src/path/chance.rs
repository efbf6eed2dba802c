//! Ports by chance: one side is behind a symmetric NAT that gives out any port, the other behind one that maps alike for
//! everybody but lets in only whom it sent to. The first opens many sockets and so many mappings towards the second; the
//! second probes many ports of the first. With 256 mappings and 1024 probes among 64,512 ports, some probe meets a mapping
//! in 98 of 100 tries, after 252 probes on average (birthday paradox).
//!
//! What it costs home routers, and why they survive it, is in `docs/paths.md`.

use super::credit::PROBE_BYTES;
use super::wish::PathWish;
use super::{ControlMessage, Passage, PathAgent};
use overlay_types::PathAddr;
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Sockets of the side behind the symmetric NAT; each takes one mapping there.
const SOCKETS: usize = 256;

/// Probes of the other side in one run.
const PROBES: usize = 1024;

/// A run goes in ticks, so that neither side's probes come as a burst that a small router drops.
const TICK: Duration = Duration::from_millis(20);
const PROBES_PER_TICK: usize = 8;
const SOCKETS_PER_TICK: usize = 16;

/// Each socket probes at the beginning and once more, for what was lost.
const SALVOS: usize = 2;
const SECOND_SALVO: u32 = 60;

/// The end of a run, a second after the last probe: a hit takes a few round trips to become a path.
const TICKS: u32 = 180;

/// How often a run is announced to the peer, which may not have heard.
const ANNOUNCE_TICKS: u32 = 10;
/// How long the peer is waited for, which may have other runs to do: 2 s.
const MEETING_TICKS: u32 = 100;

/// Before the next run, by how many there were; a path that stays relayed is not worth more.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(20),
    Duration::from_secs(120),
    Duration::from_secs(600),
    Duration::from_secs(3600),
];

/// How soon it is tried again where one of both nodes does the same for other peers.
const BUSY_PAUSE: Duration = Duration::from_secs(5);

/// Ports that a NAT gives out: all but those below 1024.
pub(super) const PORT_MIN: u32 = 1024;
pub(super) const PORTS: u32 = 65_536 - PORT_MIN;

/// All ports, each once, in an order of our own that goes on where the last run ended.
#[derive(Debug, Default)]
struct Walk {
    at: u32,
    stride: u32,
}

impl Walk {
    fn next(&mut self, rng: &mut ChaCha20Rng) -> u16 {
        if self.stride == 0 {
            self.at = rng.random_range(0..PORTS);
            // Coprime to 64,512 = 2^10 * 3^2 * 7, so that every port comes before any comes again.
            self.stride = loop {
                let stride = rng.random_range(1..PORTS);
                if stride % 2 != 0 && stride % 3 != 0 && stride % 7 != 0 {
                    break stride;
                }
            };
        }
        self.at = (self.at + self.stride) % PORTS;
        (PORT_MIN + self.at) as u16
    }
}

/// What is tried by chance, and when that may be again.
#[derive(Debug, Default)]
pub(super) struct Chance {
    /// Of the last run, the same on both sides.
    number: u32,
    run: Option<Run>,
    runs: usize,
    /// The last run says when the next may be.
    not_before: Option<Instant>,
    /// When we may ask the peer again, if one of us had no time for it.
    ask_at: Option<Instant>,
    walk: Walk,
}

#[derive(Debug)]
struct Run {
    /// Whether the sockets are ours; else the probes are.
    is_ours: bool,
    target: SocketAddr,
    sockets: Vec<u16>,
    /// The run before.
    number_before: u32,
    /// The node gave what was wished for.
    is_ready: bool,
    /// The peer has announced it as well.
    is_met: bool,
    /// Since it was begun, and from then on since both are there.
    ticks: u32,
    next_at: Instant,
    /// Probes that left.
    sent: usize,
}

impl Run {
    /// Flows that it makes at our router.
    const fn flows(&self) -> usize {
        if self.is_ours { SOCKETS } else { PROBES }
    }
}

impl Chance {
    /// When something is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.run.as_ref().map(|run| run.next_at)
    }

    /// Whether a socket belongs to the run.
    pub(super) fn uses(&self, socket: u16) -> bool {
        self.run
            .as_ref()
            .is_some_and(|run| run.sockets.contains(&socket))
    }

    /// Stops whatever is under way.
    pub(super) fn stop(&mut self) {
        self.run = None;
    }

    /// New addresses or NATs: failures so far say nothing any more.
    pub(super) fn forgive(&mut self) {
        self.runs = 0;
    }
}

impl PathAgent {
    /// A round begins in which a port of ours or of the peer is to be met by chance. `asked` is the peer's number, if it
    /// began. Who begins waits until the peer has announced it too, so that no run is in vain because only one side had time.
    pub(super) fn begin_chance(&mut self, is_ours: bool, asked: Option<u32>, now: Instant) {
        let is_before = |at: Option<Instant>| at.is_some_and(|at| now < at);
        let is_early =
            is_before(self.chance.not_before) || asked.is_none() && is_before(self.chance.ask_at);
        let targets = self.candidates.outside();
        let target = targets.iter().find(|addr| addr.is_ipv4()).copied();
        let Some(target) = target.filter(|_| self.chance.run.is_none() && !is_early) else {
            return;
        };
        let number_before = self.chance.number;
        self.chance.number = asked.unwrap_or(number_before.wrapping_add(1));
        let run = Run {
            is_ours,
            target,
            sockets: Vec::new(),
            number_before,
            is_ready: false,
            is_met: asked.is_some(),
            ticks: 0,
            next_at: now,
            sent: 0,
        };
        self.wish(PathWish::Flows(run.flows()));
        self.chance.run = Some(run);
    }

    /// Whether the node may make the flows that were wished for. Where it may not, other peers have them.
    pub fn handle_flows(&mut self, may_be_made: bool, now: Instant) {
        match &mut self.chance.run {
            Some(_) if !may_be_made => self.put_chance_off(now),
            Some(run) if run.is_ours => self.wish(PathWish::Open(SOCKETS)),
            Some(run) => {
                run.is_ready = true;
                self.continue_chance(now);
            }
            None => {}
        }
    }

    /// The sockets are there, or as many as the node has: few are not worth the peer's probes.
    pub(super) fn take_chance_sockets(&mut self, sockets: &[u16], now: Instant) {
        let Some(run) = self.chance.run.as_mut().filter(|run| run.is_ours) else {
            return;
        };
        if sockets.len() >= SOCKETS / 2 {
            (run.sockets, run.is_ready) = (sockets.to_vec(), true);
            return self.continue_chance(now);
        }
        self.wish(PathWish::Unmade(SOCKETS));
        self.put_chance_off(now);
        self.tidy_sockets(now);
    }

    /// There is no run for now, and nothing of it happened.
    fn put_chance_off(&mut self, now: Instant) {
        if let Some(run) = self.chance.run.take() {
            self.chance.number = run.number_before;
        }
        let pause = BUSY_PAUSE.mul_f64(self.rng.random_range(1.0..2.0));
        self.chance.ask_at = Some(now + pause);
    }

    /// Both are there: from now on it costs something.
    fn enter_chance(&mut self, now: Instant) {
        let pause = PAUSES[self.chance.runs.min(PAUSES.len() - 1)];
        self.chance.runs += 1;
        self.chance.not_before = Some(now + pause);
        self.tries.note_chance();
    }

    /// Data goes by a relay; a pair that nobody uses is not worth a run.
    pub(super) fn note_relayed_traffic(&mut self, now: Instant) {
        if let Passage::ByChance { ours } = self.passage()
            && self.wants_passage()
        {
            self.begin_chance(ours, None, now);
        }
    }

    /// The peer has begun a run.
    pub(super) fn handle_by_chance(&mut self, number: u32, now: Instant) {
        let Passage::ByChance { ours } = self.passage() else {
            return;
        };
        if !self.wants_passage() {
            return;
        }
        if let Some(run) = &mut self.chance.run {
            self.chance.number = number; // ours, or both began
            if !std::mem::replace(&mut run.is_met, true) {
                (run.ticks, run.next_at) = (0, now);
            }
        } else if number != self.chance.number {
            self.begin_chance(ours, Some(number), now);
        }
    }

    /// Does what is due of a run.
    pub(super) fn continue_chance(&mut self, now: Instant) {
        let Some(mut run) = self.chance.run.take() else {
            return;
        };
        if run.next_at > now || !run.is_ready {
            run.next_at = run.next_at.max(now + TICK * u32::from(!run.is_ready));
            self.chance.run = Some(run);
            return;
        }
        let ticks_max = if run.is_met { TICKS } else { MEETING_TICKS };
        if run.ticks == ticks_max || !self.wants_passage() {
            self.wish(PathWish::Unmade(run.flows().saturating_sub(run.sent)));
            if !run.is_met {
                self.chance.run = Some(run);
                self.put_chance_off(now);
            }
            return self.tidy_sockets(now);
        }
        if run.is_met && run.ticks == 0 {
            self.enter_chance(now);
        }
        if run.ticks.is_multiple_of(ANNOUNCE_TICKS) {
            let number = self.chance.number;
            self.tell_peer(ControlMessage::ByChance { number }, now);
        }
        if run.is_met {
            self.try_by_chance(&mut run, now);
        }
        run.ticks += 1;
        run.next_at = now + TICK;
        self.chance.run = Some(run);
    }

    fn try_by_chance(&mut self, run: &mut Run, now: Instant) {
        self.ask_for_chance(run);
        self.pay(now);
        if run.is_ours {
            self.probe_from_sockets(run, now);
        } else {
            self.probe_ports(run, now);
        }
    }

    /// Pays for what the peer is to send in this tick.
    fn ask_for_chance(&mut self, run: &Run) {
        let ticks = |count: usize, per_tick: usize| (count / per_tick) as u32;
        let probes = if run.is_ours {
            (run.ticks < ticks(PROBES, PROBES_PER_TICK)).then_some(PROBES_PER_TICK)
        } else {
            let salvo = ticks(SOCKETS, SOCKETS_PER_TICK);
            let is_first = run.ticks < salvo;
            let is_second = (SECOND_SALVO..SECOND_SALVO + salvo).contains(&run.ticks);
            (is_first || is_second).then_some(SOCKETS_PER_TICK)
        };
        self.credit.ask(probes.unwrap_or(0) as u64 * PROBE_BYTES);
    }

    fn probe_from_sockets(&mut self, run: &mut Run, now: Instant) {
        let salvos = if run.ticks < SECOND_SALVO { 1 } else { SALVOS };
        for _ in 0..SOCKETS_PER_TICK {
            if run.sent == salvos * run.sockets.len() || !self.credit.covers(PROBE_BYTES) {
                return;
            }
            let socket = run.sockets[run.sent % run.sockets.len()];
            let addr = run.target;
            self.probe_blindly(PathAddr::Punched { socket, addr }, now);
            run.sent += 1;
        }
    }

    fn probe_ports(&mut self, run: &mut Run, now: Instant) {
        for _ in 0..PROBES_PER_TICK {
            if run.sent == PROBES || !self.credit.covers(PROBE_BYTES) {
                return;
            }
            let port = self.chance.walk.next(&mut self.rng);
            let addr = SocketAddr::new(run.target.ip(), port);
            self.probe_blindly(PathAddr::Direct(addr), now);
            run.sent += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    #[test]
    fn every_port_is_tried_once_before_any_is_tried_again() {
        for seed in 0..5 {
            let (mut walk, mut rng) = (Walk::default(), ChaCha20Rng::seed_from_u64(seed));
            let tried: BTreeSet<u16> = (0..PORTS).map(|_| walk.next(&mut rng)).collect();
            assert_eq!(tried.len() as u32, PORTS);
            assert_eq!(tried.first(), Some(&1024));
        }
    }

    #[test]
    fn a_run_meets_a_mapping_in_ninety_eight_of_a_hundred() {
        let missed = (1.0 - SOCKETS as f64 / f64::from(PORTS)).powi(PROBES as i32);
        assert!((0.016..0.018).contains(&missed), "{missed}");
    }
}
