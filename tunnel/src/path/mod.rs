//! Which way a peer is reached: one [`PathAgent`] per peer and network probes every way in, picks the best that works,
//! and moves on when it fails. It knows no keys: the engine seals what it wants to say, and tells it what arrived.

mod allowance;
mod candidates;
mod chance;
mod control;
mod credit;
mod foretell;
mod moves;
mod mtu;
mod passage;
mod probe;
mod punch;
mod quiet;
mod rounds;
mod selection;
mod sockets;
mod table;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests;
mod tried;
mod watch;
mod wish;

pub use control::{CANDIDATES_MAX, ControlMessage, RelayOffer};
pub(crate) use credit::wire_bytes;
pub use passage::Passage;
pub use wish::PathWish;

use crate::stun::NatBehaviour;
use allowance::Allowance;
use candidates::Candidates;
use chance::Chance;
use credit::Credit;
use foretell::Foretelling;
use overlay_types::{Candidate, PathAddr, PeerId};
use probe::{InFlight, Path, ProbesInFlight};
use punch::Punching;
use quiet::Quiet;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use rounds::want;
use selection::is_better;
use sockets::Sockets;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use table::PATHS_MAX;
use tried::Tries;
use watch::Watch;

/// A round over all paths, and the answers to the peer's.
const TRANSMITS_MAX: usize = 4 * PATHS_MAX;

/// The engine takes events after every call, so few are ever waiting.
const EVENTS_MAX: usize = 32;

/// How long the path in use may stay unheard after data left on it before it is doubted, beside the time of a round trip.
/// Workers tell of traffic every 250 ms, and who only receives says so as often: twice that is the usual silence. TCP inside
/// tries again 1.4 s after a loss and then after 3 s, so that the way out of doubt has to be found in half a second. Doubt
/// that was unfounded costs a probe or a few.
const SILENCE_MAX: Duration = Duration::from_millis(600);

/// How often a quiet path is refreshed while nothing is known of the NAT's patience (RFC 4787 asks for 2 min; some give
/// 30 s).
pub const KEEPALIVE: Duration = Duration::from_secs(25);

/// A path whose traffic is older than this is idle: it is kept alive, but nothing is tried for a better one.
const IN_USE_FOR: Duration = Duration::from_secs(60);

/// While traffic is younger than this, the size of the path in use is confirmed again and again.
const FLOWS_FOR: Duration = Duration::from_secs(10);

/// Peers that nobody is eager for are let go this long after the last traffic.
const KEPT_FOR: Duration = Duration::from_secs(300);

/// Smallest distance of two challenges to a source address from which more datagrams come than are worth one each.
const CHALLENGE_EVERY: Duration = Duration::from_millis(200);

/// Other addresses of ours that a peer may report; more than a few is nonsense.
const OBSERVED_MAX: usize = 4;

/// Attempts to foretell ports that may follow each other, and how fast the allowance comes back: each takes a dozen mappings
/// of our NAT, and the peer can ask for one.
const ATTEMPTS_BURST: u32 = 6;
const ATTEMPT_REFILL: Duration = Duration::from_secs(4);

/// How a relay is reached where we are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayReach {
    /// Where what is for the relay is sent.
    pub at: PathAddr,
    /// Whose relay it is.
    pub kind: RelayKind,
}

/// Relays from the most to the least able.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RelayKind {
    /// A fabric node's, which is there to relay.
    Fabric,
    /// Another member's, which gives what it can spare.
    Member,
    /// A fabric node's that is reached by a stream.
    Stream,
}

/// One control message to be sealed and sent on a given path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTransmit {
    /// The path, whether or not it is the one in use.
    pub to: PathAddr,
    /// What to say.
    pub msg: ControlMessage,
    /// Pad the sealed datagram (header to tag, a relay wrapper not counted) to exactly this size.
    pub pad_to: Option<u16>,
}

/// What the engine, and through it people, should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathEvent {
    /// Data goes this way from now on, or the way's size or delay changed notably.
    Changed(PathView),
    /// The path in use went silent; reflexive addresses are worth asking for again.
    Distressed,
    /// No path works; time to shake hands again over [`PathAgent::handshake_targets`].
    Lost,
    /// The peer sees us at an address that it had not seen us at before: a reflexive candidate.
    Observed(SocketAddr),
}

/// The path in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathView {
    /// Where sealed datagrams go.
    pub addr: PathAddr,
    /// Smoothed round trip; zero until the first answer.
    pub rtt: Duration,
    /// Largest UDP payload known to pass, the wrapper of one relay included but not that of a second.
    pub mtu: u16,
    /// The same as far as it is to be expected before it is known.
    pub mtu_likely: u16,
}

/// What the agent did, for `farlan why` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    /// Probes sent, padded ones included.
    pub probes_sent: u64,
    /// Answers that matched a probe.
    pub answers: u64,
    /// Rounds over all pairs.
    pub rounds: u64,
    /// Times that another path was taken.
    pub changes: u64,
    /// Times that the path in use failed.
    pub failures: u64,
    /// Source addresses not remembered because too many were.
    pub sources_refused: u64,
    /// Messages dropped because the engine did not take them.
    pub transmits_dropped: u64,
    /// Messages to addresses that proved nothing which were not sent because the peer had not paid for them.
    pub withheld: u64,
}

/// Chooses the path to one peer.
///
/// No session ──session up──▶ relayed or direct, probing ──answer──▶ better path ──silence──▶ doubt ──answer──▶ same path
///                                                                                             ├──other answers──▶ other path
///                                                                                             └──nothing──▶ lost, searching
#[derive(Debug)]
pub struct PathAgent {
    rng: ChaCha20Rng,
    /// Paths that carry larger UDP payloads are no better for it.
    datagram_bytes_max: u16,
    candidates: Candidates,
    is_up: bool,
    eager: bool,
    paths: BTreeMap<PathAddr, Path>,
    current: Option<PathAddr>,
    /// How the session came, while that is to be proved.
    first: Option<PathAddr>,
    in_flight: ProbesInFlight,
    punching: Punching,
    credit: Credit,
    foretelling: Foretelling,
    attempts: Allowance,
    chance: Chance,
    sockets: Sockets,
    wishes: VecDeque<PathWish>,
    watch: Option<Watch>,
    /// When data left on the path in use that nothing has been heard after.
    unanswered_since: Option<Instant>,
    quiet: Quiet,
    traffic_at: Option<Instant>,
    keepalive: Duration,
    keepalive_at: Option<Instant>,
    roam_check_after: Option<Instant>,
    /// The peer's path, which is to be followed to once it answers.
    courted: Option<PathAddr>,
    /// Of two paths that are as good, ours gives way to the peer's.
    follows: bool,
    announced: Option<PathView>,
    observed: VecDeque<SocketAddr>,
    transmits: VecDeque<PathTransmit>,
    events: VecDeque<PathEvent>,
    stats: PathStats,
    tries: Tries,
}

impl PathAgent {
    /// An agent that knows no way yet. `rng_seed` makes probe ids and jitter; give each peer its own. It searches for
    /// paths that carry UDP payloads of up to `datagram_bytes_max`.
    pub fn new(rng_seed: u64, datagram_bytes_max: u16, now: Instant) -> Self {
        Self {
            rng: ChaCha20Rng::seed_from_u64(rng_seed),
            datagram_bytes_max,
            candidates: Candidates::default(),
            is_up: false,
            eager: true,
            paths: BTreeMap::new(),
            current: None,
            first: None,
            in_flight: ProbesInFlight::default(),
            punching: Punching::new(now),
            credit: Credit::default(),
            foretelling: Foretelling::default(),
            attempts: Allowance::new(ATTEMPTS_BURST, ATTEMPT_REFILL, now),
            chance: Chance::default(),
            sockets: Sockets::default(),
            wishes: VecDeque::new(),
            watch: None,
            unanswered_since: None,
            quiet: Quiet::default(),
            traffic_at: None,
            keepalive: KEEPALIVE,
            keepalive_at: None,
            roam_check_after: None,
            courted: None,
            follows: false,
            announced: None,
            observed: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            stats: PathStats::default(),
            tries: Tries::default(),
        }
    }

    /// The peer's ways in by its signed node record.
    pub fn set_remote_candidates(&mut self, candidates: &[Candidate], now: Instant) {
        if self.candidates.set_recorded(candidates) && self.is_up {
            self.probe_everything(now);
        }
    }

    /// Our own ways in, told to the peer while there is a session.
    pub fn set_local_candidates(&mut self, candidates: &[Candidate], now: Instant) {
        if self.candidates.set_local(candidates) && self.is_up {
            self.call(now);
        }
    }

    /// How we reach the relays where we are bound. Paths through one that is now reached another way go that way at once:
    /// the relay has just told that it works.
    pub fn set_relays(&mut self, relays: &BTreeMap<PeerId, RelayReach>, now: Instant) {
        for (before, after) in self.candidates.set_relays(relays) {
            self.move_relayed_paths(before, after, now);
        }
    }

    /// What the NAT in front of us does, told to the peer while there is a session.
    pub fn set_local_nat(&mut self, nat: NatBehaviour, now: Instant) {
        if self.candidates.set_local_nat(nat) && self.is_up {
            self.chance.forgive();
            self.call(now);
        }
    }

    /// Who the two are: what we relay for the peer does not lead to it from here, and one of them follows the other where two
    /// paths are as good.
    pub fn set_ends(&mut self, me: PeerId, peer: PeerId) {
        self.candidates.set_me(me);
        self.follows = me > peer;
    }

    /// Whether we relay for other members, told to the peer while there is a session.
    pub fn set_relay_offer(&mut self, offer: RelayOffer, now: Instant) {
        if self.candidates.set_local_offer(offer) && self.is_up {
            self.tell(false, now);
        }
    }

    /// Whether the peer relays for other members.
    pub fn relay_offer(&self) -> RelayOffer {
        self.candidates.offer()
    }

    /// Relays where the peer is bound, best first: as it said last, and as its record says. Either may be the newer one.
    pub fn remote_relays(&self) -> [Vec<PeerId>; 2] {
        self.candidates.remote_relays()
    }

    /// Whose relay a path goes through last, if we are bound there.
    pub fn relay_of(&self, addr: PathAddr) -> Option<PeerId> {
        self.candidates.relay_of(addr)
    }

    /// What the two NATs allow, as far as is known.
    pub fn passage(&self) -> Passage {
        let (ours, theirs) = self.candidates.nats();
        Passage::between(ours, theirs)
    }

    /// So many bytes of the peer's came in this session, with the headers of UDP and IP: it may make us send as many to
    /// addresses that have proved nothing. Tell before the datagram itself.
    pub fn count_received(&mut self, bytes: u64) {
        self.credit.earn(bytes);
    }

    /// So many bytes went to the peer in this session beside control messages.
    pub fn count_sent(&mut self, bytes: u64) {
        self.credit.note_paid(bytes);
    }

    /// Up to so many bytes that came from the peer and were not spent on its behalf: they are spent outside the session from now on.
    pub fn take_credit(&mut self, most: u64) -> u64 {
        self.credit.take(most)
    }

    /// Whether a message may go there: an address that has proved nothing gets no more than the peer sent. If so, it
    /// counts as sent.
    pub fn afford(&mut self, to: PathAddr, msg: &ControlMessage, pad_to: Option<u16>) -> bool {
        let bytes = credit::message_bytes(to, msg, pad_to);
        if self.is_validated(to) {
            self.credit.note_paid(bytes);
            return true;
        }
        let affords = self.credit.spend(bytes);
        self.stats.withheld += u64::from(!affords);
        affords
    }

    /// How often a quiet path is to be refreshed, for the NAT in front of us.
    pub fn set_keepalive(&mut self, every: Duration) {
        self.keepalive = every;
    }

    /// Whether to keep the path alive without traffic (on by default).
    pub fn set_eager(&mut self, eager: bool) {
        self.eager = eager;
    }

    /// A session was established over `via`, and everything else is probed. `is_proven` says whether the peer was seen to
    /// receive there: then it carries data at once, else after it answered a probe. Called again for every new session that
    /// replaces one.
    pub fn handle_session_up(&mut self, via: PathAddr, is_proven: bool, now: Instant) {
        let was_up = std::mem::replace(&mut self.is_up, true);
        if !was_up {
            self.tries.clear();
        }
        let had_path = was_up && self.current.is_some();
        self.candidates.handle_session_up();
        self.foretelling.forget_peer();
        self.sync_paths();
        self.learn(via);
        let Some(path) = self.paths.get_mut(&via) else {
            return;
        }; // refused only when all are proven: one is in use
        path.heard_at = Some(now);
        path.validated |= is_proven;
        path.proven |= path.validated;
        if !path.validated {
            return self.prove_first(via, now);
        }
        match self.current {
            None => self.switch_to(via, now),
            Some(current) if current == via => self.watch = None,
            Some(current) => {
                let old = &self.paths[&current];
                let new = &self.paths[&via];
                if old.is_silent(now) || is_better((new.tier, new.rtt), (old.tier, old.rtt)) {
                    self.switch_to(via, now);
                } else {
                    self.doubt(now); // the handshake took another way; ask whether ours still works
                }
            }
        }
        if had_path {
            self.tell(false, now); // the peer may have been restarted and know nothing
        } else {
            self.call(now);
        }
    }

    /// A session came from an address that may be somebody else's: it is asked before anything else goes there.
    fn prove_first(&mut self, via: PathAddr, now: Instant) {
        self.probe(via, None, now);
        if self.current.is_some() {
            self.doubt(now);
            self.tell(false, now);
        } else {
            self.first = Some(via);
            self.probe_everything(now);
        }
    }

    /// The session is gone, and with it all that was proved.
    pub fn handle_session_down(&mut self, _now: Instant) {
        self.is_up = false;
        self.candidates.handle_session_down();
        self.paths.clear();
        (self.current, self.first) = (None, None);
        self.in_flight.clear();
        self.punching.stop();
        self.foretelling.stop();
        self.chance.stop();
        self.close_sockets();
        self.credit = Credit::default();
        self.watch = None;
        self.unanswered_since = None;
        self.quiet = Quiet::default();
        self.keepalive_at = None;
        self.announced = None;
        self.transmits.clear();
    }

    /// An authenticated datagram came from there. Tell at least four times a second per address while any come.
    pub fn handle_received(&mut self, from: PathAddr, now: Instant) {
        if !self.is_up {
            return;
        }
        self.learn(from);
        let Some(path) = self.paths.get_mut(&from) else {
            return;
        };
        path.heard_at = Some(now);
        self.quiet.note_heard(now);
        if self.current == Some(from) {
            self.unanswered_since = None;
            return;
        }
        let (is_proven, has_moved) = (path.proven, self.suggests_a_move(from, now));
        if is_proven && has_moved {
            self.begin_watch(Watch::of_a_move(from, now), now);
        }
        let is_news = !is_proven || has_moved;
        let path = self.paths.get_mut(&from).expect("looked up above");
        if is_news
            && path
                .challenged_at
                .is_none_or(|at| now.saturating_duration_since(at) >= CHALLENGE_EVERY)
        {
            path.challenged_at = Some(now);
            self.probe(from, None, now);
        }
    }

    /// An authenticated control message came from there. Includes [`Self::handle_received`].
    pub fn handle_control(&mut self, from: PathAddr, msg: ControlMessage, now: Instant) {
        if !self.is_up {
            return;
        }
        match msg {
            ControlMessage::Probe { id } => {
                // An address that proved nothing yet gets an answer no longer than the question.
                let is_proven = self.paths.get(&from).is_some_and(|p| p.proven);
                let observed = match from {
                    PathAddr::Direct(addr) if is_proven => Some(addr),
                    _ => None,
                };
                self.send(from, ControlMessage::Pong { id, observed }, None, now);
                self.handle_received(from, now);
                self.handle_asked(from, now);
            }
            ControlMessage::Pong { id, observed } => {
                self.handle_received(from, now);
                self.handle_pong(from, id, observed, now);
            }
            ControlMessage::Candidates {
                generation,
                punch,
                nat,
                list,
                relays,
            } => {
                self.handle_received(from, now);
                self.send(
                    from,
                    ControlMessage::CandidatesSeen { generation },
                    None,
                    now,
                );
                let (passage, was_listed) = (self.passage(), self.is_listed());
                let changed = self.candidates.handle_told(generation, nat, list, relays);
                if self.passage() != passage {
                    self.chance.forgive();
                }
                if was_listed && !self.is_listed() {
                    self.doubt(now); // the peer is not there any more, by its own account
                }
                if changed == Some(true) || (punch && changed.is_some()) {
                    self.probe_everything(now);
                }
            }
            ControlMessage::CandidatesSeen { generation } => {
                self.handle_received(from, now);
                self.candidates.handle_seen(generation);
            }
            ControlMessage::Foretold { number, base, step } => {
                self.handle_received(from, now);
                self.handle_foretold(number, base, step, now);
            }
            ControlMessage::ByChance { number } => {
                self.handle_received(from, now);
                self.handle_by_chance(number, now);
            }
            ControlMessage::Ping { .. }
            | ControlMessage::PingReply { .. }
            | ControlMessage::Credit
            | ControlMessage::RelayAsk
            | ControlMessage::RelayPlace { .. }
            | ControlMessage::RelayRefused { .. }
            | ControlMessage::Bye => {
                self.handle_received(from, now);
            }
        }
    }

    /// The network under us is another one: what works there still, and are there better ways now?
    pub fn handle_network_changed(&mut self, now: Instant) {
        if !self.is_up {
            return;
        }
        self.watch = None; // its probes went another way
        self.doubt(now);
        self.punching.forgive();
        self.call(now);
    }

    /// Data came from the peer and none went there. Tell at least four times a second while any comes.
    pub fn note_data(&mut self, now: Instant) {
        self.quiet.note_data(now);
    }

    /// Data was sent to the peer. Tell at least four times a second while any is.
    pub fn note_traffic(&mut self, now: Instant) {
        self.traffic_at = Some(now);
        self.note_data(now);
        let Some(current) = self.current else { return };
        self.unanswered_since.get_or_insert(now);
        self.refresh_keepalive(now);
        self.note_relayed_traffic(now);
        // Nothing kept this path alive: it may have died long ago.
        if self.paths[&current]
            .silent_for(now)
            .is_some_and(|s| s > self.keepalive * 2)
        {
            self.doubt(now);
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.is_up {
            return;
        }
        if self.silent_at().is_some_and(|at| now >= at) {
            self.doubt_silence(now);
        }
        if self.quiet.take_due(now) {
            self.begin_watch(Watch::of_quiet(now), now);
        }
        self.continue_watch(now);
        self.continue_round(now);
        self.continue_foretelling(now);
        self.continue_chance(now);
        self.continue_sockets(now);
        if let Some(list) = self.candidates.handle_timeout(now)
            && let Some(current) = self.current
        {
            self.send(current, list, None, now);
        }
        self.continue_mtu(now);
        self.keep_alive(now);
    }

    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if !self.is_up {
            return None;
        }
        let tier = self.current.map(|addr| self.paths[&addr].tier);
        let sizes = self.sized_paths().into_iter().flatten();
        let sizes = sizes.filter_map(|addr| self.size_due(addr)).min();
        [
            (self.silent_at(), "path silent"),
            (self.quiet.due(), "path quiet"),
            (self.watch.as_ref().map(Watch::due), "path doubted"),
            (
                self.punching.due(|at| want(tier, self.traffic_at, at)),
                "probe candidates",
            ),
            (self.foretelling.due(), "foretell ports"),
            (self.chance.due(), "try ports by chance"),
            (self.sockets.due(), "close sockets"),
            (self.candidates.due(), "repeat candidates"),
            (sizes, "probe path size"),
            (self.keepalive_at, "keep path alive"),
        ]
        .into_iter()
        .filter_map(|(at, what)| Some((at?, what)))
        .min_by_key(|(at, _)| *at)
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<PathTransmit> {
        self.transmits.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    /// The path in use.
    pub fn current(&self) -> Option<PathView> {
        let addr = self.current?;
        let path = &self.paths[&addr];
        Some(PathView {
            addr,
            rtt: path.rtt.unwrap_or_default(),
            mtu: path.mtu.mtu(),
            mtu_likely: path.mtu.likely(),
        })
    }

    /// Where to send handshake messages now: the path in use first, then every candidate.
    pub fn handshake_targets(&self) -> Vec<PathAddr> {
        let mut targets: Vec<_> = self.current.into_iter().collect();
        let learned = self
            .paths
            .iter()
            .filter(|(_, p)| p.proven && p.learned)
            .map(|(addr, _)| *addr);
        for addr in self
            .candidates
            .remote()
            .into_iter()
            .map(|(addr, _)| addr)
            .chain(learned)
        {
            if !targets.contains(&addr) {
                targets.push(addr);
            }
        }
        targets
    }

    /// Whether the peer was seen to receive there, in this session.
    pub fn is_validated(&self, addr: PathAddr) -> bool {
        self.paths.get(&addr).is_some_and(|path| path.validated)
    }

    /// Where the peer was seen to receive, in this session.
    pub fn validated(&self) -> impl Iterator<Item = PathAddr> {
        let validated = self.paths.iter().filter(|(_, path)| path.validated);
        validated.map(|(addr, _)| *addr)
    }

    /// Whether the peer may be what sends from there: one of [`Self::handshake_targets`], or another that it listed.
    pub fn may_lead_to(&self, addr: PathAddr) -> bool {
        let is_learned = |path: &Path| path.proven && path.learned;
        self.current == Some(addr)
            || self.paths.get(&addr).is_some_and(is_learned)
            || self.candidates.lead_to(addr)
    }

    /// What the agent did so far.
    pub fn stats(&self) -> PathStats {
        self.stats
    }

    /// Whether the path in use is one that the peer told us.
    fn is_listed(&self) -> bool {
        self.current
            .is_some_and(|addr| self.candidates.is_told(addr))
    }

    /// When the path in use is to be doubted, unless it is heard.
    fn silent_at(&self) -> Option<Instant> {
        let current = self.current.and_then(|addr| self.paths.get(&addr))?;
        Some(self.unanswered_since? + silence_max(current.rtt))
    }

    fn handle_pong(&mut self, from: PathAddr, id: u64, observed: Option<SocketAddr>, now: Instant) {
        let Some(probe) = self.in_flight.take(id, now) else {
            return;
        };
        self.stats.answers += 1;
        self.tries.note_answer(probe.path, from, now);
        let Some(path) = self.paths.get_mut(&probe.path) else {
            return;
        };
        path.handle_answer(probe.sent_at, now);
        path.mtu.start(now);
        if let Some(size) = probe.size {
            path.mtu.handle_answer(size, now);
        }
        // Another socket's mapping is of no use to others.
        if let (Some(addr), PathAddr::Direct(_)) = (observed, probe.path) {
            self.note_observed(addr);
        }
        self.consider(probe.path, now);
    }

    /// Paths whose size matters: the one in use, and the relayed one that is taken when it fails.
    fn sized_paths(&self) -> [Option<PathAddr>; 2] {
        let spare = self.paths.iter().filter(|(addr, path)| {
            path.proven && path.tier.is_relayed() && self.current != Some(**addr)
        });
        let spare = spare.min_by_key(|(_, path)| (path.tier, path.rtt));
        [self.current, spare.map(|(addr, _)| *addr)]
    }

    /// When the size of such a path is to be probed next. Of the spare one it is asked while there is traffic.
    fn size_due(&self, addr: PathAddr) -> Option<Instant> {
        let is_current = self.current == Some(addr);
        let at = self.paths[&addr]
            .mtu
            .due(|at| is_current && flows(self.traffic_at, at))?;
        (is_current || is_in_use(self.traffic_at, at)).then_some(at)
    }

    /// Searches for the size of paths, and confirms what was found on the one in use.
    fn continue_mtu(&mut self, now: Instant) {
        for addr in self.sized_paths().into_iter().flatten() {
            if self.size_due(addr).is_none_or(|at| at > now) {
                continue;
            }
            let path = self.paths.get_mut(&addr).expect("it was found there");
            let (rtt, heard_at) = (path.rtt.unwrap_or_default(), path.heard_at);
            let Some(probe) = path.mtu.handle_timeout(now, rtt, heard_at) else {
                continue;
            };
            self.probe(addr, Some(probe.size), now);
            if probe.is_last {
                self.probe(addr, None, now);
            }
        }
        self.announce();
    }

    fn keep_alive(&mut self, now: Instant) {
        let (Some(current), Some(at)) = (self.current, self.keepalive_at) else {
            return;
        };
        if now < at {
            return;
        }
        let is_wanted = self.eager
            || self
                .traffic_at
                .is_some_and(|t| now.saturating_duration_since(t) < KEPT_FOR);
        if is_wanted {
            self.probe(current, None, now);
            self.unanswered_since.get_or_insert(now);
        } else {
            self.keepalive_at = None;
        }
    }

    fn refresh_keepalive(&mut self, now: Instant) {
        // Up to a tenth earlier, so that the two sides differ and the later one finds it done.
        let early = self.keepalive.mul_f64(self.rng.random_range(0.0..0.1));
        self.keepalive_at = Some(now + self.keepalive - early);
    }

    fn note_observed(&mut self, addr: SocketAddr) {
        if self.candidates.is_ours(addr) || self.observed.contains(&addr) {
            return;
        }
        if self.observed.len() == OBSERVED_MAX {
            self.observed.pop_front();
        }
        self.observed.push_back(addr);
        self.push_event(PathEvent::Observed(addr));
    }

    fn probe(&mut self, path: PathAddr, size: Option<u16>, now: Instant) {
        let id = self.rng.random();
        let is_sent = self.send(path, ControlMessage::Probe { id }, size, now);
        self.tries.note_probe(path, is_sent, now);
        if is_sent {
            self.stats.probes_sent += 1;
            self.in_flight.push(InFlight {
                id,
                path,
                sent_at: now,
                size,
            });
        }
    }

    /// Says whether it may be sent.
    fn send(
        &mut self,
        to: PathAddr,
        msg: ControlMessage,
        pad_to: Option<u16>,
        now: Instant,
    ) -> bool {
        if !self.afford(to, &msg, pad_to) {
            return false;
        }
        if self.current == Some(to) {
            self.refresh_keepalive(now);
        }
        if self.transmits.len() == TRANSMITS_MAX {
            self.transmits.pop_front(); // the newest message is the one that still matters
            self.stats.transmits_dropped += 1;
        }
        self.transmits.push_back(PathTransmit { to, msg, pad_to });
        true
    }

    fn push_event(&mut self, event: PathEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front(); // a later one says where things stand
        }
        self.events.push_back(event);
    }
}

fn silence_max(rtt: Option<Duration>) -> Duration {
    SILENCE_MAX + rtt.unwrap_or_default()
}

fn flows(traffic_at: Option<Instant>, at: Instant) -> bool {
    traffic_at.is_some_and(|traffic| at < traffic + FLOWS_FOR)
}

fn is_in_use(traffic_at: Option<Instant>, at: Instant) -> bool {
    traffic_at.is_some_and(|traffic| at < traffic + IN_USE_FOR)
}
