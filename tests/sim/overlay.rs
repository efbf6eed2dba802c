//! A whole overlay in the world: infrastructure, one network, its registrar, and members that join it, lease their
//! addresses and ping each other. Here is who tells whom what, and how long the telling takes; what is real and what is
//! modelled is listed in [`crate::directory`].

use crate::{
    directory::{SlotModel, Terms},
    guest::Guest,
    host::NodeHost,
    infrastructure::Infrastructure,
    link::LinkKind,
    member::{Member, MemberId, Running, STATION},
    nat::NatKind,
    world::{HostId, NatId, Role, World},
};
use dht::{
    directory::Directory,
    invite,
    lease::{
        HolderEvent, LeaseCert, LeaseHolder, Registrar, RegistrarEvent, Reply, Subject,
        Transaction, Want,
    },
    membership::Roles,
    network::{Genesis, Network, NetworkSecret},
    record::NodeRecord,
    signed::Verified,
};
use overlay_types::{Candidate, DhcpMode, PathKind, PeerId, PortKind};
use rand::Rng;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};
use tunnel::{
    engine::{Command, Engine, EngineConfig, Event},
    relay::RelayGrant,
    worker::Worker,
};

/// The wall clock when the world begins (unix seconds).
const UNIX_AT_START: u64 = 1_800_000_000;

/// How long a question to another node is waited for.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// How often what failed on the way in is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often every slot is read again, whatever was pushed.
const RESYNC: Duration = Duration::from_secs(10);

/// How long changes are gathered before they are told to the data plane.
const REFRESH_DELAY: Duration = Duration::from_millis(50);

/// How long changes are gathered before they are published.
const PUBLISH_DELAY: Duration = Duration::from_millis(100);

/// How long a registrar's disk takes.
const DISK_TIME: Duration = Duration::from_millis(5);

/// How often a pinging station sends.
const PING_EVERY: Duration = Duration::from_secs(1);

/// How finely the answers to pings are watched for.
const WATCH: Duration = Duration::from_millis(50);

/// What is under way in the control plane.
enum Errand {
    /// A member looks after its machines.
    Tick,
    /// A member asks every infrastructure node for a place at its relay.
    Allocate(HostId),
    /// Its place.
    Granted(HostId, RelayGrant),
    /// A newcomer asks to be admitted.
    Admit,
    /// A question arrives at the registrar.
    Asked {
        from: MemberId,
        from_life: u32,
        question: u64,
        transaction: Box<Transaction>,
    },
    /// Its answer arrives at the asker.
    Answered { question: u64, reply: Box<Reply> },
    /// Nobody answered in time.
    Unanswered { question: u64 },
    /// The registrar's disk has it.
    Persisted(u64),
    /// A member tells its data plane what changed.
    Refresh,
    /// A member's record reaches the DHT.
    Publish,
    /// A record reaches a member.
    Pushed(Box<Verified<NodeRecord>>),
    /// A member reads every slot.
    Resync { again: bool },
    /// A member has looked everywhere for an address.
    Sought(IpAddr),
}

/// Where a question came from.
#[derive(Clone, Copy)]
struct Question {
    number: u64,
    from: MemberId,
    from_life: u32,
}

/// The overlay and the world around it.
pub struct Overlay {
    /// The world.
    pub world: World,
    /// How well the control plane serves.
    pub terms: Terms,
    /// Every certificate that was ever handed out.
    pub certificates: Vec<LeaseCert>,
    members: Vec<Member>,
    infrastructure: Vec<HostId>,
    network: Network,
    secret: NetworkSecret,
    token: Vec<u8>,
    slots: SlotModel,
    errands: BTreeMap<u64, (MemberId, u32, Errand)>,
    next_errand: u64,
    questions: BTreeMap<u64, Question>,
    next_question: u64,
}

impl Overlay {
    /// A network whose owner has a public address and is its only registrar, with this many infrastructure nodes.
    /// Nothing runs but these.
    pub fn new(seed: u64, infrastructure: usize) -> Self {
        let mut world = World::seeded(seed);
        let owner_host = world.add_host(None, LinkKind::FAST);
        let name = "n0".parse().expect("a sound name");
        let owner = Member::new(owner_host, name, &mut world.rng);
        let genesis = Genesis::new(
            &mut world.rng,
            "lab".parse().expect("a sound name"),
            "10.77.0.0/24".parse().expect("a sound subnet"),
            DhcpMode::Overlay,
            owner.peer(),
        );
        let network = Network::new(genesis).expect("a fresh genesis is sound");
        let secret = NetworkSecret::generate(&mut world.rng);
        let (_, token) = invite::issue(
            &owner.identity,
            &network,
            Roles::DEFAULT,
            invite::INVITE_USES_MAX,
            UNIX_AT_START + 86_400,
            UNIX_AT_START,
            &mut world.rng,
        )
        .expect("the owner may invite");
        let mut overlay = Self {
            world,
            terms: Terms::default(),
            certificates: Vec::new(),
            members: vec![owner],
            infrastructure: Vec::new(),
            network,
            secret,
            token,
            slots: SlotModel::default(),
            errands: BTreeMap::new(),
            next_errand: 0,
            questions: BTreeMap::new(),
            next_question: 0,
        };
        for _ in 0..infrastructure {
            let host = overlay.world.add_host(None, LinkKind::FAST);
            overlay.infrastructure.push(host);
            overlay.start_infrastructure(host);
        }
        overlay
    }

    // ---- who is there ----

    /// The owner, who is the registrar.
    pub const OWNER: MemberId = MemberId(0);

    /// A machine behind a NAT of its own, or with a public address; it does not run yet.
    pub fn add_member(&mut self, nat: Option<NatKind>, link: LinkKind) -> MemberId {
        let nat = nat.map(|kind| self.world.add_nat(kind));
        self.add_member_at(nat, link)
    }

    /// A machine on an existing site.
    pub fn add_member_at(&mut self, nat: Option<NatId>, link: LinkKind) -> MemberId {
        let id = MemberId(self.members.len());
        let host = self.world.add_host(nat, link);
        let name = format!("n{}", id.0).parse().expect("a sound name");
        self.members
            .push(Member::new(host, name, &mut self.world.rng));
        id
    }

    /// A member.
    pub fn member(&self, id: MemberId) -> &Member {
        &self.members[id.0]
    }

    /// All of them.
    pub fn members(&self) -> impl Iterator<Item = MemberId> + use<> {
        (0..self.members.len()).map(MemberId)
    }

    /// Hosts of the infrastructure nodes.
    pub fn infrastructure(&self) -> &[HostId] {
        &self.infrastructure
    }

    /// Whether a member runs, is on the network and has an address.
    pub fn is_ready(&self, id: MemberId) -> bool {
        self.member(id).address().is_some()
    }

    /// The wall clock (unix seconds).
    pub fn unix(&self) -> u64 {
        UNIX_AT_START + self.world.elapsed().as_secs()
    }

    // ---- starting and stopping ----

    /// Starts relay and STUN on a host, with no memory of an earlier life.
    pub fn start_infrastructure(&mut self, host: HostId) {
        let (seed, main) = (self.world.rng.random(), self.world.service_address(host));
        let role =
            Role::Infrastructure(Box::new(Infrastructure::new(seed, main, self.world.now())));
        self.world.set_role(host, role);
    }

    /// Starts a member: the first time it joins by invite, later it goes on from its disk.
    pub fn start(&mut self, id: MemberId) {
        let (now, unix_at_start) = (
            self.world.now(),
            Duration::from_secs(UNIX_AT_START) + self.world.elapsed(),
        );
        let seed = self.world.rng.random();
        let workers = 1 + (id.0 % 2) as u8;
        let engine = Engine::new(
            EngineConfig {
                workers,
                seed,
                unix_at_start,
            },
            now,
        );
        let lanes = (0..workers)
            .map(|index| Worker::new(index, workers, now))
            .collect();
        let registrar = (id == Self::OWNER).then(|| self.registrar());
        let network = self.network.clone();
        let member = &mut self.members[id.0];
        let (peer, host) = (member.peer(), member.host);
        member.life += 1;
        member.running = Some(Running {
            holder: None,
            registrar,
            directory: Directory::new(peer, network),
            candidates: Vec::new(),
            grants: BTreeMap::new(),
            asked: BTreeSet::new(),
            is_refresh_planned: false,
            is_publish_planned: false,
            tick_at: None,
        });
        self.world.set_role(
            host,
            Role::Node(Box::new(NodeHost::new(peer, engine, lanes))),
        );
        let address = self.world.address(host);
        self.command(id, Command::SetHostCandidates(vec![address]));
        for place in self.infrastructure.clone() {
            self.send(id, Errand::Allocate(place));
        }
        match self.member(id).disk.membership {
            Some(_) => self.enter(id),
            None => self.plan(id, Duration::ZERO, Errand::Admit),
        }
        self.settle(id);
        self.follow();
    }

    /// The power goes.
    pub fn kill(&mut self, id: MemberId) {
        self.members[id.0].running = None;
        let host = self.members[id.0].host;
        self.world.set_role(host, Role::Down);
    }

    /// Power off and on again.
    pub fn restart(&mut self, id: MemberId) {
        self.kill(id);
        self.start(id);
    }

    /// Cuts these hosts off from all others, or mends that with an empty set.
    pub fn set_island(&mut self, island: BTreeSet<HostId>) {
        if island.is_empty() {
            self.slots.heal();
        }
        self.world.set_island(island);
    }

    // ---- time ----

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.world.now() + time;
        while self.world.step(until) {
            self.follow();
        }
    }

    /// Lets time pass until something holds: how long that took, or `None` when it did not hold within `bound`.
    pub fn run_until(
        &mut self,
        bound: Duration,
        mut holds: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let start = self.world.elapsed();
        while !holds(self) {
            if self.world.elapsed() - start >= bound {
                return None;
            }
            self.run(WATCH);
        }
        Some(self.world.elapsed() - start)
    }

    // ---- what stations do ----

    /// Sends one ping from station to station: its number, to be asked for with [`Self::answered`].
    pub fn send_ping(&mut self, from: MemberId, to: MemberId, bytes: usize) -> Option<u16> {
        let (host, target) = (self.member(from).host, self.member(to).address()?);
        let ping = |node: &mut NodeHost, now| {
            node.guests
                .get_mut(&STATION)
                .map(|guest| guest.ping(target, bytes, now))
        };
        let (sequence, frames) = self.world.with_node(host, ping)??;
        self.world.send_frames(host, STATION, frames);
        Some(sequence)
    }

    /// The round trip of a ping, once it was answered.
    pub fn answered(&self, from: MemberId, sequence: u16) -> Option<Duration> {
        self.world
            .node(self.member(from).host)?
            .guests
            .get(&STATION)?
            .answered
            .get(&sequence)
            .copied()
    }

    /// Pings once a second until an answer comes: how long that took, or `None` after `bound`.
    pub fn ping(&mut self, from: MemberId, to: MemberId, bound: Duration) -> Option<Duration> {
        let start = self.world.elapsed();
        let mut sent: Vec<u16> = Vec::new();
        let mut next = start;
        loop {
            let elapsed = self.world.elapsed();
            if sent
                .iter()
                .any(|&sequence| self.answered(from, sequence).is_some())
            {
                return Some(elapsed - start);
            }
            if elapsed - start >= bound {
                return None;
            }
            if elapsed >= next {
                sent.extend(self.send_ping(from, to, 56));
                next = elapsed + PING_EVERY;
            }
            self.run(WATCH);
        }
    }

    /// One ping a second for `count` seconds: how many were answered.
    pub fn ping_train(
        &mut self,
        from: MemberId,
        to: MemberId,
        count: usize,
        bytes: usize,
    ) -> usize {
        let mut sent = Vec::new();
        for _ in 0..count {
            sent.extend(self.send_ping(from, to, bytes));
            self.run(PING_EVERY);
        }
        self.run(PING_EVERY);
        sent.iter()
            .filter(|&&sequence| self.answered(from, sequence).is_some())
            .count()
    }

    /// The kind of way in use between two members.
    pub fn path(&self, from: MemberId, to: MemberId) -> Option<PathKind> {
        let peer = self.member(to).peer();
        let stats = self
            .world
            .node(self.member(from).host)?
            .engine
            .peer_stats(self.world.now());
        let stats = stats.into_iter().find(|stats| stats.peer == peer)?;
        stats.path.map(|path| path.addr.kind())
    }

    /// Since when the session in use between two members exists.
    pub fn session_age(&self, from: MemberId, to: MemberId) -> Option<Duration> {
        let peer = self.member(to).peer();
        let stats = self
            .world
            .node(self.member(from).host)?
            .engine
            .peer_stats(self.world.now());
        stats
            .into_iter()
            .find(|stats| stats.peer == peer)?
            .session_age
    }

    // ---- the control plane ----

    fn registrar(&mut self) -> Registrar {
        let rng = ChaCha20Rng::seed_from_u64(self.world.rng.random());
        let owner = &mut self.members[Self::OWNER.0];
        let is_fresh = !std::mem::replace(&mut owner.disk.has_voted, true);
        let votes = owner.disk.votes.clone();
        Registrar::new(
            owner.identity.clone(),
            self.network.clone(),
            votes,
            is_fresh,
            rng,
            self.world.now(),
        )
        .expect("its disk holds what it wrote")
    }

    fn command(&mut self, id: MemberId, command: Command) {
        let host = self.member(id).host;
        self.world
            .with_node(host, |node, now| node.engine.handle_command(command, now));
    }

    /// Has a member see to something later, in its present life.
    fn plan(&mut self, id: MemberId, delay: Duration, errand: Errand) {
        self.next_errand += 1;
        self.errands
            .insert(self.next_errand, (id, self.member(id).life, errand));
        self.world.after(delay, self.next_errand);
    }

    /// Sends something to a member; `false` when it is lost on the way.
    fn send(&mut self, to: MemberId, errand: Errand) -> bool {
        let delay = self.world.random_delay(&self.terms.delay);
        let is_lost = self.world.rng.random_bool(self.terms.loss);
        if !is_lost {
            self.plan(to, delay, errand);
        }
        !is_lost
    }

    /// Whether a control connection from a host to another works.
    fn has_control(&self, from: HostId, to: HostId) -> bool {
        let is_served = self
            .infrastructure
            .iter()
            .any(|&host| self.world.is_connected(from, host));
        self.world.is_connected(from, to) && (is_served || from == to)
    }

    fn is_on_dht(&self, id: MemberId) -> bool {
        let host = self.member(id).host;
        self.infrastructure
            .iter()
            .any(|&served| self.world.is_connected(host, served))
    }

    /// Does what follows from what happened in the world.
    fn follow(&mut self) {
        loop {
            let (due, eventful) = (self.world.take_due(), self.world.take_eventful());
            if due.is_empty() && eventful.is_empty() {
                return;
            }
            for number in due {
                if let Some((id, life, errand)) = self.errands.remove(&number)
                    && self.member(id).life == life
                    && self.member(id).is_running()
                {
                    self.handle(id, errand);
                    self.settle(id);
                }
            }
            for host in eventful {
                let Some(id) = self
                    .members
                    .iter()
                    .position(|member| member.host == host)
                    .map(MemberId)
                else {
                    continue;
                };
                let events = self
                    .world
                    .with_node(host, |node, _| std::mem::take(&mut node.events));
                for event in events.unwrap_or_default() {
                    self.handle_event(id, event);
                }
                self.settle(id);
            }
        }
    }

    fn handle(&mut self, id: MemberId, errand: Errand) {
        let (now, unix) = (self.world.now(), self.unix());
        match errand {
            Errand::Tick => {
                let running = self.running(id);
                running.tick_at = None;
                if let Some(holder) = &mut running.holder {
                    holder.handle_timeout(now, unix);
                }
                if let Some(registrar) = &mut running.registrar {
                    registrar.handle_timeout(now, unix);
                }
            }
            Errand::Allocate(place) => self.allocate(id, place),
            Errand::Granted(place, grant) => {
                self.running(id).grants.insert(place, grant);
                let grants: Vec<_> = self.running(id).grants.values().cloned().collect();
                let servers = grants.iter().map(|grant| grant.relay).collect();
                self.command(id, Command::SetStunServers(servers));
                self.command(id, Command::SetRelays(grants));
            }
            Errand::Admit => {
                let (name, unix) = (self.member(id).name.clone(), self.unix());
                let token = if id == Self::OWNER {
                    Vec::new()
                } else {
                    self.token.clone()
                };
                self.ask(id, Transaction::Admit { token, name, unix });
            }
            Errand::Asked {
                from,
                from_life,
                question,
                transaction,
            } => {
                let peer = self.member(from).peer();
                self.next_question += 1;
                let number = self.next_question;
                self.questions.insert(
                    number,
                    Question {
                        number: question,
                        from,
                        from_life,
                    },
                );
                if let Some(registrar) = &mut self.running(id).registrar {
                    registrar.handle_transaction(number, peer, *transaction, now, unix);
                }
            }
            Errand::Answered { question, reply } => {
                if self.running(id).asked.remove(&question) {
                    self.answer(id, *reply);
                }
            }
            Errand::Unanswered { question } => {
                if self.running(id).asked.remove(&question) {
                    match &mut self.running(id).holder {
                        Some(holder) => holder.handle_unreachable(now),
                        None => self.plan(id, RETRY, Errand::Admit),
                    }
                }
            }
            Errand::Persisted(persist) => {
                if let Some(registrar) = &mut self.running(id).registrar {
                    registrar.handle_persisted(persist, now, unix);
                }
            }
            Errand::Refresh => self.refresh(id),
            Errand::Publish => self.publish(id),
            Errand::Pushed(record) => {
                if self.running(id).directory.insert(*record, unix) == Ok(true) {
                    self.refresh_soon(id);
                }
            }
            Errand::Resync { again } => {
                if again {
                    self.plan(id, RESYNC, Errand::Resync { again });
                }
                self.read_slots(id);
            }
            Errand::Sought(ip) => {
                if self.running(id).directory.by_address(ip, unix).is_none() {
                    let network = self.network.id();
                    self.command(id, Command::NoSuchAddress { network, ip });
                }
            }
        }
    }

    fn handle_event(&mut self, id: MemberId, event: Event) {
        if !self.member(id).is_running() {
            return;
        }
        match event {
            Event::CandidatesChanged(candidates) => {
                self.running(id).candidates = candidates;
                self.publish_soon(id);
            }
            Event::RelayLost(Candidate::Relayed { via, .. }) => {
                if let Some(place) = self
                    .infrastructure
                    .iter()
                    .copied()
                    .find(|&host| relay_id(host) == via)
                {
                    self.plan(id, RETRY, Errand::Allocate(place));
                }
            }
            Event::UnknownPeer { .. } => {
                self.plan(id, Duration::ZERO, Errand::Resync { again: false })
            }
            Event::AddressWanted { ip, .. } => {
                self.plan(id, Duration::ZERO, Errand::Resync { again: false });
                self.plan(id, ANSWER_TIME_MAX, Errand::Sought(ip));
            }
            _ => {}
        }
    }

    /// A place at a relay; asked for again until it is got.
    fn allocate(&mut self, id: MemberId, place: HostId) {
        let (peer, now) = (self.member(id).peer(), self.world.now());
        let relay = self.world.service_address(place);
        let reaches = self.world.is_connected(self.member(id).host, place);
        let granted = match self.world.infrastructure(place) {
            Some(infrastructure) if reaches => infrastructure.relay.allocate(peer, now).ok(),
            _ => None,
        };
        let grant = granted.map(|(index, key)| RelayGrant {
            via: relay_id(place),
            relay,
            index,
            key,
        });
        let is_sent = grant.is_some_and(|grant| self.send(id, Errand::Granted(place, grant)));
        if !is_sent {
            self.plan(id, RETRY, Errand::Allocate(place));
        }
    }

    /// Asks the registrar.
    fn ask(&mut self, id: MemberId, transaction: Transaction) {
        self.next_question += 1;
        let question = self.next_question;
        self.running(id).asked.insert(question);
        self.plan(id, ANSWER_TIME_MAX, Errand::Unanswered { question });
        let (host, owner, from_life) = (
            self.member(id).host,
            self.member(Self::OWNER).host,
            self.member(id).life,
        );
        let asked = Errand::Asked {
            from: id,
            from_life,
            question,
            transaction: Box::new(transaction),
        };
        if id == Self::OWNER {
            self.plan(id, Duration::ZERO, asked);
        } else if self.has_control(host, owner) {
            self.send(Self::OWNER, asked);
        }
    }

    /// The registrar's answer is here.
    fn answer(&mut self, id: MemberId, reply: Reply) {
        let (now, unix) = (self.world.now(), self.unix());
        match reply {
            Reply::Member(cert) => {
                self.members[id.0].disk.membership = Some(cert);
                self.enter(id);
            }
            reply => {
                let network = self.network.clone();
                match &mut self.running(id).holder {
                    Some(holder) => holder.handle_reply(reply, &network, now, unix),
                    None => self.plan(id, RETRY, Errand::Admit),
                }
            }
        }
    }

    /// A member that has its certificate goes onto the network.
    fn enter(&mut self, id: MemberId) {
        let (now, unix, network) = (self.world.now(), self.unix(), self.network.id());
        let member = &mut self.members[id.0];
        let want = Want::Address {
            mac: member.mac(),
            name: Some(member.name.clone()),
        };
        let holder = LeaseHolder::new(
            member.identity.clone(),
            want,
            member.disk.lease.clone(),
            now,
            unix,
        );
        let (me, keys, mac) = (member.peer(), member.keys(), member.mac());
        self.running(id).holder = Some(holder);
        let psk = self.secret.psk(network);
        self.command(
            id,
            Command::AddNetwork {
                id: network,
                me,
                keys,
                psk,
                dhcp: DhcpMode::Overlay,
                mtu: 1500,
            },
        );
        self.command(
            id,
            Command::AddPort {
                network,
                port: STATION,
                kind: PortKind::Host,
                macs: vec![mac],
            },
        );
        self.plan(id, Duration::ZERO, Errand::Resync { again: true });
        self.publish_soon(id);
    }

    /// Carries out what the lease machine and the registrar want, and sees to it that they are called in time.
    fn settle(&mut self, id: MemberId) {
        if !self.member(id).is_running() {
            return;
        }
        while let Some(event) = self
            .running(id)
            .registrar
            .as_mut()
            .and_then(Registrar::poll_event)
        {
            self.serve(event);
        }
        for event in self.members[id.0].holder_events() {
            self.hold(id, event);
        }
        while let Some(transaction) = self
            .running(id)
            .holder
            .as_mut()
            .and_then(LeaseHolder::poll_transmit)
        {
            self.ask(id, transaction);
        }
        let now = self.world.now();
        if let Some(at) = self.member(id).poll_timeout()
            && self.running(id).tick_at.is_none_or(|planned| at < planned)
        {
            self.running(id).tick_at = Some(at);
            self.plan(id, at.saturating_duration_since(now), Errand::Tick);
        }
    }

    /// The lease machine said something: the station follows its lease.
    fn hold(&mut self, id: MemberId, event: HolderEvent) {
        let (host, mac) = (self.member(id).host, self.member(id).mac());
        match event {
            HolderEvent::Held(cert) => {
                if let Subject::Address(address) = cert.subject {
                    self.world
                        .note(format_args!("member {} holds {address}", id.0));
                    self.world.with_node(host, |node, _| {
                        if node
                            .guests
                            .get(&STATION)
                            .is_none_or(|guest| guest.ip != address)
                        {
                            node.guests.insert(STATION, Guest::new(mac, address));
                        }
                    });
                }
                self.members[id.0].disk.lease = Some(*cert);
            }
            HolderEvent::Lost { .. } => {
                self.world
                    .note(format_args!("member {} has no lease", id.0));
                self.world
                    .with_node(host, |node, _| node.guests.remove(&STATION));
            }
            HolderEvent::Waiting(_) | HolderEvent::Released => return,
        }
        self.refresh_soon(id);
        self.publish_soon(id);
    }

    /// The registrar wants something done.
    fn serve(&mut self, event: RegistrarEvent) {
        let (now, unix) = (self.world.now(), self.unix());
        match event {
            RegistrarEvent::Persist { id, records } => {
                self.members[Self::OWNER.0].disk.votes.extend(records);
                self.plan(Self::OWNER, DISK_TIME, Errand::Persisted(id));
            }
            RegistrarEvent::Reply { id, reply } => self.reply(id, *reply),
            RegistrarEvent::AskMembers => {
                let certificates = self.certificates.clone();
                if let Some(registrar) = &mut self.running(Self::OWNER).registrar {
                    registrar.handle_certificates(&certificates);
                    registrar.handle_members_asked(now, unix);
                }
            }
            RegistrarEvent::RolledBack => panic!("no disk was ever set back"),
        }
    }

    fn reply(&mut self, number: u64, reply: Reply) {
        let Some(question) = self.questions.remove(&number) else {
            return;
        };
        if let Reply::Lease(cert) = &reply {
            self.certificates.push(cert.clone());
        }
        let to = question.from;
        let answered = Errand::Answered {
            question: question.number,
            reply: Box::new(reply),
        };
        let (host, owner) = (self.member(to).host, self.member(Self::OWNER).host);
        if question.from_life != self.member(to).life || !self.has_control(owner, host) {
            return;
        }
        if to == Self::OWNER {
            self.plan(to, Duration::ZERO, answered);
        } else {
            self.send(to, answered);
        }
    }

    fn refresh_soon(&mut self, id: MemberId) {
        if !std::mem::replace(&mut self.running(id).is_refresh_planned, true) {
            self.plan(id, REFRESH_DELAY, Errand::Refresh);
        }
    }

    /// Tells the data plane who the peers are and what is bound where.
    fn refresh(&mut self, id: MemberId) {
        let (unix, network) = (self.unix(), self.network.id());
        let running = self.running(id);
        running.is_refresh_planned = false;
        let eager = running.directory.peers().count() <= EAGER_MAX;
        let upsert = |record: &Verified<NodeRecord>| Command::UpsertPeer {
            network,
            peer: record.peer,
            keys: record.keys.clone(),
            candidates: record.candidates.clone(),
            eager,
        };
        let mut commands: Vec<_> = running.directory.peers().map(upsert).collect();
        let bindings = self.member(id).bindings(unix);
        commands.push(Command::SetBindings { network, bindings });
        let host = self.member(id).host;
        self.world.with_node(host, |node, now| {
            for command in commands {
                node.engine.handle_command(command, now);
            }
        });
    }

    fn publish_soon(&mut self, id: MemberId) {
        if !std::mem::replace(&mut self.running(id).is_publish_planned, true) {
            let delay = PUBLISH_DELAY + self.world.random_delay(&self.terms.delay);
            self.plan(id, delay, Errand::Publish);
        }
    }

    /// Writes the member's record into its slot and pushes it to the others.
    fn publish(&mut self, id: MemberId) {
        let unix = self.unix();
        self.running(id).is_publish_planned = false;
        if self.member(id).disk.membership.is_none() {
            return; // it is published on admission
        }
        if !self.is_on_dht(id) || self.world.rng.random_bool(self.terms.loss) {
            self.running(id).is_publish_planned = true;
            self.plan(id, RETRY, Errand::Publish);
            return;
        }
        let Some(record) = self.members[id.0].record(&self.network, unix) else {
            return;
        };
        let host = self.member(id).host;
        let on_island = self
            .world
            .is_partitioned()
            .then(|| self.world.on_island(host));
        self.slots.write(record.clone(), on_island);
        for other in self.members().filter(|&other| other != id) {
            if self.member(other).disk.membership.is_some()
                && self.has_control(host, self.member(other).host)
            {
                self.send(other, Errand::Pushed(Box::new(record.clone())));
            }
        }
    }

    /// Reads every slot, of which some reads fail and some are stale.
    fn read_slots(&mut self, id: MemberId) {
        if !self.is_on_dht(id) {
            return;
        }
        let (me, side) = (
            self.member(id).peer(),
            self.world.on_island(self.member(id).host),
        );
        for peer in self.slots.writers().into_iter().filter(|&peer| peer != me) {
            let Some(record) = self
                .slots
                .read(peer, side, &self.terms, &mut self.world.rng)
            else {
                continue;
            };
            let known = self.running(id).directory.get(peer).map(|known| known.seq);
            if known.is_none_or(|seq| seq < record.seq) {
                self.send(id, Errand::Pushed(Box::new(record)));
            }
        }
    }

    fn running(&mut self, id: MemberId) -> &mut Running {
        self.members[id.0]
            .running
            .as_mut()
            .expect("errands reach running members only")
    }
}

/// Up to so many peers, sessions with all of them are kept, as the real node does.
const EAGER_MAX: usize = 64;

/// The identity of an infrastructure node, which does nothing here but name its relay.
fn relay_id(host: HostId) -> PeerId {
    PeerId([host.0 as u8 + 1; 32])
}
