//! Asks STUN servers from the data port: where they see us, and once per network what the NAT does.
//!
//! The filtering test must come before anything is sent to the server's other address, or the NAT would let its answers
//! in for that reason. So: plain question ──▶ "answer from your other socket" ──▶ question to the other socket ──▶ question
//! to ourselves, at the address where the server saw us, which comes back to us if the NAT hairpins. Where mappings differ
//! by destination, a fresh socket is then sampled, which shows how ports follow each other. What the NAT does is told when
//! all but the hairpin is known: peers judge by it what is worth trying.

use super::codec::{
    Change, Reply, Request, Transaction, decode_reply, decode_request, encode_request,
};
use super::nat::{Observations, Sighting};
use super::{NatBehaviour, NatRule, PortAssignment, Sampled, StunEvent};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Servers asked; two on different hosts show all there is to see.
const SERVERS_MAX: usize = 8;

/// First wait for an answer, doubled by each try, and the tries (RFC 8489 §6.2.1 with fewer of them: 7.5 s in all).
const ANSWER_WAIT: Duration = Duration::from_millis(500);
const TRIES_MAX: u32 = 4;

/// For the questions of the test, to a server that has just answered another one: twice as long as that one took, within
/// these bounds. The usual answer of the first is silence, so that what the NAT does is known 0.7 s to 2.1 s later.
const TEST_WAIT_MIN: Duration = Duration::from_millis(100);
const TEST_WAIT_MAX: Duration = Duration::from_millis(300);
const FILTERING_TRIES_MAX: u32 = 3;

/// Samples of how ports follow each other, of which one that shows it is enough.
const SAMPLES_MAX: u8 = 3;

/// The first server that answered is asked this often at least, which keeps the NAT's mapping and notices a new one.
const KEEP_EVERY: Duration = Duration::from_secs(25);

/// The other servers, and those that did not answer.
const ASK_EVERY: Duration = Duration::from_secs(300);
const RETRY_EVERY: Duration = Duration::from_secs(30);

const EVENTS_MAX: usize = 4 * SERVERS_MAX;

/// Asks STUN servers from the data port, for the whole node.
#[derive(Debug)]
pub struct StunClient {
    rng: ChaCha20Rng,
    servers: Vec<Server>,
    host: Vec<SocketAddr>,
    questions: BTreeMap<Transaction, Question>,
    test: Test,
    filtering: NatRule,
    tested: Option<Tested>,
    /// Where the tested server's other socket saw us.
    other: Option<Sighting>,
    hairpin: Option<bool>,
    sampling: Sampling,
    /// As far as it was told.
    behaviour: NatBehaviour,
    /// Whether servers see us at different addresses, told or not.
    is_varied: bool,
    keep_every: Duration,
    transmits: VecDeque<(SocketAddr, Vec<u8>)>,
    events: VecDeque<StunEvent>,
}

#[derive(Debug)]
struct Server {
    addr: SocketAddr,
    seen: Option<Sighting>,
    /// Its other address (RFC 5780 §7.4).
    other: Option<SocketAddr>,
    next_at: Instant,
}

impl Server {
    fn reflexive(&self) -> Option<SocketAddr> {
        self.seen.map(|seen| seen.reflexive)
    }
}

/// A filtering test after which we sent to the server's other socket ourselves: through the same mapping, the NAT may let in
/// its answers for that reason alone.
#[derive(Debug)]
struct Tested {
    other: SocketAddr,
    /// Where the server saw us.
    reflexive: SocketAddr,
    told: NatRule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// Where are we?
    Plain,
    /// Does an answer from there reach us, which is the server's other address, or its main one with the other port?
    Filtering { from: SocketAddr, other: SocketAddr },
    /// Where are we, seen from the server's other port?
    Mapping { main: SocketAddr },
    /// Does what we send to where we are seen come back to us?
    Hairpin,
}

#[derive(Debug)]
struct Question {
    to: SocketAddr,
    aim: Aim,
    tries: u32,
    next_at: Instant,
    /// For the first answer; doubled by each try.
    wait: Duration,
    asked_at: Instant,
}

/// Waiting ──first answer──▶ running ──filtering, mapping──▶ told ──hairpin──▶ done ──other network──▶ waiting
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Waiting,
    Running,
    Told,
    Done,
}

/// Untaken ──mappings differ──▶ wanted ──▶ under way ──▶ taken
///    ▲                           └◀──no step was shown──┘  │
///    └──another network, or nothing to compare for five minutes┘
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sampling {
    Untaken,
    /// After so many.
    Wanted {
        before: u8,
    },
    UnderWay {
        before: u8,
    },
    /// Under way in a network that we have left: what it shows is of no use.
    Stale,
    Taken {
        ports: PortAssignment,
        at: Instant,
    },
}

impl StunClient {
    /// A client with nobody to ask.
    pub fn new(rng_seed: u64, _now: Instant) -> Self {
        Self {
            rng: ChaCha20Rng::seed_from_u64(rng_seed),
            servers: Vec::new(),
            host: Vec::new(),
            questions: BTreeMap::new(),
            test: Test::Waiting,
            filtering: NatRule::Unknown,
            tested: None,
            other: None,
            hairpin: None,
            sampling: Sampling::Untaken,
            behaviour: NatBehaviour::default(),
            is_varied: false,
            keep_every: KEEP_EVERY,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Whom to ask: fabric nodes, and any RFC 8489 server.
    pub fn set_servers(&mut self, servers: &[SocketAddr], now: Instant) {
        let mut before = std::mem::take(&mut self.servers);
        for &addr in servers {
            if self.servers.len() == SERVERS_MAX || self.servers.iter().any(|s| s.addr == addr) {
                continue;
            }
            let known = before
                .iter()
                .position(|s| s.addr == addr)
                .map(|at| before.swap_remove(at));
            self.servers.push(known.unwrap_or(Server {
                addr,
                seen: None,
                other: None,
                next_at: now,
            }));
        }
        let addrs: Vec<_> = self.servers.iter().map(|s| s.addr).collect();
        self.questions
            .retain(|_, q| q.aim != Aim::Plain || addrs.contains(&q.to));
        for gone in before.iter().filter_map(Server::reflexive) {
            self.note_gone(gone);
        }
        self.handle_timeout(now);
        self.judge();
    }

    /// Our own interfaces' addresses with the data port, to recognise that there is no NAT.
    pub fn set_host_candidates(&mut self, host: &[SocketAddr], now: Instant) {
        if self.host != host {
            self.host = host.to_vec();
            self.start_over(now);
        }
    }

    /// Learn all anew: the network under us is another one. Until that is done, what was known is likelier than nothing, but
    /// for whom the NAT lets in.
    pub fn start_over(&mut self, now: Instant) {
        self.forget_test();
        self.questions.clear();
        self.tell(NatBehaviour {
            filtering: NatRule::Unknown,
            ..self.behaviour
        });
        self.refresh(now);
    }

    /// How often a mapping must be used so that it stays.
    pub fn set_keepalive(&mut self, every: Duration) {
        self.keep_every = every.min(KEEP_EVERY);
    }

    /// Ask again soon: a path broke.
    pub fn refresh(&mut self, now: Instant) {
        self.servers.iter_mut().for_each(|s| s.next_at = now);
        let questions = self.questions.values_mut();
        for question in questions.filter(|q| q.aim == Aim::Plain) {
            (question.tries, question.next_at, question.asked_at) = (0, now, now);
        }
        self.handle_timeout(now);
    }

    /// A STUN datagram arrived on the data port.
    pub fn handle_datagram(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        let Some(reply) = decode_reply(bytes) else {
            return self.handle_question(bytes, now);
        };
        let Some(question) = self.questions.get(&reply.transaction) else {
            return;
        };
        let (to, aim, wait) = (question.to, question.aim, question.wait);
        let rtt = (question.tries == 1).then(|| now.saturating_duration_since(question.asked_at));
        let is_expected =
            from == to || matches!(aim, Aim::Filtering { from: wanted, .. } if wanted == from);
        if !is_expected {
            return;
        }
        self.questions.remove(&reply.transaction);
        match aim {
            Aim::Plain => self.handle_plain(to, &reply, rtt, now),
            Aim::Filtering {
                from: wanted,
                other,
            } => {
                let seen = self.reflexive_by(to);
                let tested = self.tested.as_ref();
                let tested = tested.filter(|t| t.other == other && seen == Some(t.reflexive));
                self.filtering = if from == wanted
                    && let Some(tested) = tested
                {
                    tested.told
                } else if from == wanted && wanted.ip() == to.ip() {
                    NatRule::AddressDependent // or laxer, if nothing else could be asked for
                } else if from == wanted {
                    NatRule::EndpointIndependent
                } else if wanted.ip() == other.ip() {
                    NatRule::Unknown // refused, or it does not know the attribute
                } else {
                    // Another address is not let in; whether another port is, this server cannot show.
                    NatRule::AddressAndPortDependent
                };
                self.ask_for_mapping(other, to, wait, now);
            }
            Aim::Mapping { main } => {
                self.other = reply.mapped.map(|reflexive| Sighting {
                    server: to,
                    reflexive,
                });
                self.ask_ourselves(main, now);
            }
            // Somebody else is there.
            Aim::Hairpin => (self.hairpin, self.test) = (Some(false), Test::Done),
        }
        self.handle_timeout(now);
        self.judge();
    }

    /// Our own question came back to us.
    fn handle_question(&mut self, bytes: &[u8], now: Instant) {
        let Some(Request { transaction, .. }) = decode_request(bytes) else {
            return;
        };
        let question = self.questions.get(&transaction);
        if question.is_some_and(|question| question.aim == Aim::Hairpin) {
            self.questions.remove(&transaction);
            (self.hairpin, self.test) = (Some(true), Test::Done);
            self.handle_timeout(now);
            self.judge();
        }
    }

    /// Whether a fresh socket is to be opened and sampled; to be answered with [`Self::handle_sampled`].
    pub fn poll_sample(&mut self) -> bool {
        match self.sampling {
            Sampling::Wanted { before } => {
                self.sampling = Sampling::UnderWay { before };
                true
            }
            _ => false,
        }
    }

    /// What servers saw of a fresh socket; `None` when there was none, or no answer.
    pub fn handle_sampled(&mut self, sampled: Option<Sampled>, now: Instant) {
        let taken = match self.sampling {
            Sampling::UnderWay { before } => before + 1,
            Sampling::Stale => {
                self.sampling = Sampling::Untaken;
                return self.judge();
            }
            _ => return,
        };
        let ports = match sampled {
            Some(Sampled {
                step: Some(step), ..
            }) => PortAssignment::Contiguous { step },
            // Other hosts may have taken ports between, and answers may be lost.
            Some(_) if taken < SAMPLES_MAX => {
                self.sampling = Sampling::Wanted { before: taken };
                return;
            }
            Some(Sampled {
                are_compared: true, ..
            }) => PortAssignment::Random,
            _ => PortAssignment::Unknown,
        };
        self.sampling = Sampling::Taken { ports, at: now };
        self.judge();
    }

    /// Where this server sees us.
    fn reflexive_by(&self, server: SocketAddr) -> Option<SocketAddr> {
        let known = self.servers.iter().find(|s| s.addr == server);
        known.and_then(Server::reflexive)
    }

    /// The test after that of filtering.
    fn ask_for_mapping(
        &mut self,
        other: SocketAddr,
        main: SocketAddr,
        wait: Duration,
        now: Instant,
    ) {
        let told = self.filtering;
        self.tested = self.reflexive_by(main).map(|reflexive| Tested {
            other,
            reflexive,
            told,
        });
        self.ask(other, Aim::Mapping { main }, wait, now);
    }

    /// The last of the tests, if the server sees us at an address that is not our own.
    fn ask_ourselves(&mut self, main: SocketAddr, now: Instant) {
        let outside = self
            .reflexive_by(main)
            .filter(|outside| !self.host.contains(outside));
        match outside {
            Some(outside) => {
                self.test = Test::Told;
                self.ask(outside, Aim::Hairpin, ANSWER_WAIT, now);
            }
            None => self.test = Test::Done,
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for at in 0..self.servers.len() {
            let addr = self.servers[at].addr;
            let is_asked = self
                .questions
                .values()
                .any(|q| q.to == addr && q.aim == Aim::Plain);
            if self.servers[at].next_at <= now {
                self.servers[at].next_at = now + RETRY_EVERY; // an answer sets it anew
                if !is_asked {
                    self.ask(addr, Aim::Plain, ANSWER_WAIT, now);
                }
            }
        }
        let due: Vec<_> = self
            .questions
            .iter()
            .filter(|(_, q)| q.next_at <= now)
            .map(|(t, _)| *t)
            .collect();
        for transaction in due {
            let question = self.questions.get_mut(&transaction).expect("listed above");
            let tries_max = match question.aim {
                Aim::Filtering { .. } => FILTERING_TRIES_MAX,
                Aim::Plain | Aim::Mapping { .. } | Aim::Hairpin => TRIES_MAX,
            };
            if question.tries < tries_max {
                question.next_at = now + question.wait * (1 << question.tries);
                question.tries += 1;
                let bytes = encode_request(transaction, change_of(question));
                self.transmits.push_back((question.to, bytes));
            } else {
                let question = self.questions.remove(&transaction).expect("listed above");
                self.handle_silence(&question, now);
            }
        }
        while self.transmits.len() > 4 * SERVERS_MAX {
            self.transmits.pop_front(); // only if nobody takes them; each is repeated anyway
        }
    }

    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let servers = self.servers.iter().map(|s| s.next_at);
        servers
            .chain(self.questions.values().map(|q| q.next_at))
            .min()
            .map(|at| (at, "ask STUN servers"))
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<StunEvent> {
        self.events.pop_front()
    }

    /// The addresses at which servers see us and peers may reach us, host candidates excepted. Where every server sees
    /// another one, peers will too; then only the one that is kept alive is told, for the others change all the time.
    pub fn reflexive(&self) -> Vec<SocketAddr> {
        let mut seen: Vec<SocketAddr> = Vec::new();
        for addr in self.servers.iter().filter_map(Server::reflexive) {
            let has_its_like = seen.iter().any(|a| a.is_ipv4() == addr.is_ipv4());
            if !(self.host.contains(&addr)
                || seen.contains(&addr)
                || self.is_varied && has_its_like)
            {
                seen.push(addr);
            }
        }
        seen
    }

    /// Where to ask from other sockets: IPv4 servers that answered, first by their main addresses, then by their others.
    pub fn sample_servers(&self) -> Vec<SocketAddr> {
        let answered = self.servers.iter().filter(|s| s.seen.is_some());
        let main = answered.clone().map(|s| s.addr);
        let other = answered.filter_map(|s| s.other);
        let mut servers: Vec<SocketAddr> = Vec::new();
        for addr in main.chain(other) {
            if addr.is_ipv4() && !servers.contains(&addr) {
                servers.push(addr);
            }
        }
        servers
    }

    /// What is known of the NAT.
    pub fn behaviour(&self) -> NatBehaviour {
        self.behaviour
    }

    fn ask(&mut self, to: SocketAddr, aim: Aim, wait: Duration, now: Instant) {
        let transaction: Transaction = self.rng.random();
        self.questions.insert(
            transaction,
            Question {
                to,
                aim,
                tries: 0,
                next_at: now,
                wait,
                asked_at: now,
            },
        );
    }

    fn handle_plain(&mut self, to: SocketAddr, reply: &Reply, rtt: Option<Duration>, now: Instant) {
        let is_keeper = self
            .servers
            .iter()
            .find(|s| s.seen.is_some())
            .is_none_or(|s| s.addr == to);
        let Some(server) = self.servers.iter_mut().find(|s| s.addr == to) else {
            return;
        };
        if let Sampling::Taken { ports, at } = self.sampling
            && ports == PortAssignment::Unknown
            && now >= at + ASK_EVERY
        {
            self.sampling = Sampling::Untaken; // it may go better now
        }
        server.next_at = now
            + if is_keeper {
                self.keep_every
            } else {
                ASK_EVERY
            };
        let Some(mapped) = reply.mapped else { return };
        server.other = reply.other.map(|mut other| {
            if other.ip().is_unspecified() {
                other.set_ip(to.ip());
            }
            other
        });
        let before = server.reflexive();
        if before != Some(mapped) {
            server.seen = Some(Sighting {
                server: to,
                reflexive: mapped,
            });
            let is_news = self
                .servers
                .iter()
                .filter(|s| s.reflexive() == Some(mapped))
                .count()
                == 1;
            if is_news {
                self.push_event(StunEvent::Reflexive(mapped));
            }
            if before.is_some() && is_keeper {
                // The mapping that is kept alive moved, so what the others saw is history.
                for server in self.servers.iter_mut().filter(|s| s.addr != to) {
                    (server.seen, server.next_at) = (None, now);
                }
            }
            if let Some(gone) = before {
                self.note_gone(gone);
            }
            // Another network, so perhaps another NAT; or the NAT forgot, and what was compared is history.
            if before.is_some_and(|b| is_keeper || b.ip() != mapped.ip()) {
                self.forget_test();
            }
        }
        // NATs are IPv4's: a host that has it is tested by it, whichever server answers first.
        let shows_nat = to.is_ipv4() || !self.host.iter().any(SocketAddr::is_ipv4);
        let is_due = shows_nat && self.test == Test::Waiting;
        let server = self.servers.iter().find(|s| s.addr == to);
        let other = server.and_then(|server| server.other);
        if let Some(other) = other.filter(|_| is_due) {
            self.test = Test::Running;
            let wait = rtt.map_or(TEST_WAIT_MAX, |rtt| {
                (2 * rtt).clamp(TEST_WAIT_MIN, TEST_WAIT_MAX)
            });
            self.ask(to, Aim::Filtering { from: other, other }, wait, now);
        }
    }

    fn handle_silence(&mut self, question: &Question, now: Instant) {
        match question.aim {
            Aim::Plain => {
                if let Some(server) = self.servers.iter_mut().find(|s| s.addr == question.to) {
                    server.next_at = now + RETRY_EVERY;
                    if let Some(gone) = server.seen.take() {
                        self.note_gone(gone.reflexive);
                    }
                }
            }
            Aim::Filtering { from, other } if from.ip() != question.to.ip() => {
                // Not from another address; perhaps from another port of this one.
                let from = SocketAddr::new(question.to.ip(), other.port());
                self.ask(
                    question.to,
                    Aim::Filtering { from, other },
                    question.wait,
                    now,
                );
            }
            Aim::Filtering { other, .. } => {
                self.filtering = NatRule::AddressAndPortDependent;
                self.ask_for_mapping(other, question.to, question.wait, now);
            }
            Aim::Mapping { main } => self.ask_ourselves(main, now),
            Aim::Hairpin => (self.hairpin, self.test) = (Some(false), Test::Done),
        }
        self.judge();
    }

    /// Puts together what the answers say, and tells it once they say enough.
    fn judge(&mut self) {
        let behaviour = self.behaviour_now();
        self.is_varied = behaviour.mapping.is_dependent();
        // Whoever has not answered may still begin the test, or have gone with the network that it saw us in.
        let is_asked = self.questions.values().any(|q| q.aim == Aim::Plain);
        if self.test == Test::Running || self.test == Test::Waiting && is_asked {
            return;
        }
        match self.sampling {
            Sampling::Untaken if self.is_varied => {
                self.sampling = Sampling::Wanted { before: 0 };
            }
            Sampling::Wanted { .. } | Sampling::UnderWay { .. } | Sampling::Stale => {}
            Sampling::Untaken | Sampling::Taken { .. } => self.tell(behaviour),
        }
    }

    fn tell(&mut self, behaviour: NatBehaviour) {
        if behaviour != self.behaviour {
            self.behaviour = behaviour;
            self.push_event(StunEvent::Behaviour(behaviour));
        }
    }

    fn behaviour_now(&self) -> NatBehaviour {
        // NATs are IPv4's; with IPv6 alone, what is seen there counts.
        let is_v4 = self
            .servers
            .iter()
            .any(|s| s.addr.is_ipv4() && s.seen.is_some());
        let servers: Vec<Sighting> = self
            .servers
            .iter()
            .filter(|s| s.addr.is_ipv4() == is_v4)
            .filter_map(|s| s.seen)
            .collect();
        Observations {
            host: &self.host,
            servers: &servers,
            other: self.other,
            filtering: self.filtering,
            ports: match self.sampling {
                Sampling::Taken { ports, .. } => ports,
                _ => PortAssignment::Unknown,
            },
            hairpin: self.hairpin,
        }
        .judge()
    }

    fn forget_test(&mut self) {
        self.test = Test::Waiting;
        self.filtering = NatRule::Unknown;
        (self.other, self.hairpin) = (None, None);
        self.sampling = match self.sampling {
            Sampling::UnderWay { .. } | Sampling::Stale => Sampling::Stale,
            _ => Sampling::Untaken,
        };
        self.questions.retain(|_, q| q.aim == Aim::Plain);
    }

    fn note_gone(&mut self, addr: SocketAddr) {
        if !self.servers.iter().any(|s| s.reflexive() == Some(addr)) {
            self.push_event(StunEvent::ReflexiveGone(addr));
        }
    }

    fn push_event(&mut self, event: StunEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front(); // `reflexive` and `behaviour` say where things stand
        }
        self.events.push_back(event);
    }
}

fn change_of(question: &Question) -> Change {
    match question.aim {
        Aim::Filtering { from, .. } => Change {
            ip: from.ip() != question.to.ip(),
            port: true,
        },
        Aim::Plain | Aim::Mapping { .. } | Aim::Hairpin => Change::default(),
    }
}
