//! A whole overlay in the world: infrastructure, one network, its registrar, and members that join it, lease their
//! addresses and ping each other. Here is who tells whom what, and how long the telling takes; what is real and what is
//! modelled is listed in [`crate::directory`].

mod guests;
mod leases;
mod records;
mod relays;
mod stations;

use crate::{
    directory::{SlotModel, Terms},
    guest::Guest,
    host::NodeHost,
    infrastructure::Infrastructure,
    link::LinkKind,
    member::{LeaseOf, Member, MemberId, Running, STATION, SYNC_RETRY, Station, Sync},
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
use overlay_node::node::RelayStream;
use overlay_types::{DhcpMode, MacAddr, NetworkId, PathKind, PeerId, PortId, PortKind};
use rand::Rng;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
pub(crate) use relays::Offer;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tunnel::{
    engine::{Command, Engine, EngineConfig, Event},
    relay::{RelayGrant, RelayLimits, RelayWay},
    worker::Worker,
};

/// The wall clock when the world begins (unix seconds).
const UNIX_AT_START: u64 = 1_800_000_000;

/// How long a question to another node is waited for.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// How often what failed on the way in is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Members let in by one invite, with some left for those who ask twice.
const TOKEN_USES: usize = invite::INVITE_USES_MAX as usize - 6;

/// How finely the answers to pings are watched for.
const WATCH: Duration = Duration::from_millis(50);

/// What is under way in the control plane.
enum Errand {
    /// A member looks after its machines.
    Tick,
    /// An infrastructure node is connected.
    FabricSeen(HostId),
    /// A member asks an infrastructure node for a place at its relay.
    Allocate(HostId),
    /// Its place.
    Granted(HostId, RelayGrant),
    /// A member begins to open a stream to a relay.
    OpenStream(HostId),
    /// That has taken its time.
    StreamOpened(HostId),
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
    Pushed(Arc<Verified<NodeRecord>>),
    /// A member that was called in vain answers by the control plane.
    Spoke(PeerId),
    /// A member asks for news that no push brought.
    Sync,
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
    by_host: BTreeMap<HostId, MemberId>,
    by_peer: BTreeMap<PeerId, MemberId>,
    network: Network,
    secret: NetworkSecret,
    /// Each lets so many in as an invite may.
    tokens: Vec<Vec<u8>>,
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
        Self::of_size(seed, infrastructure, 250)
    }

    /// The same with room for this many members.
    pub fn of_size(seed: u64, infrastructure: usize, members_max: usize) -> Self {
        let mut world = World::seeded(seed);
        let owner_host = world.add_host(None, LinkKind::FAST);
        let name = "n0".parse().expect("a sound name");
        let owner = Member::new(owner_host, name, &mut world.rng);
        let genesis = Genesis::new(
            &mut world.rng,
            "lab".parse().expect("a sound name"),
            if members_max > 250 {
                "10.77.0.0/16"
            } else {
                "10.77.0.0/24"
            }
            .parse()
            .expect("a sound subnet"),
            DhcpMode::Overlay,
            owner.peer(),
        );
        let network = Network::new(genesis).expect("a fresh genesis is sound");
        let secret = NetworkSecret::generate(&mut world.rng);
        let mut token = || {
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
            token
        };
        let tokens = (0..members_max.div_ceil(TOKEN_USES))
            .map(|_| token())
            .collect();
        let mut overlay = Self {
            world,
            terms: Terms::default(),
            certificates: Vec::new(),
            by_host: BTreeMap::from([(owner_host, Self::OWNER)]),
            by_peer: BTreeMap::from([(owner.peer(), Self::OWNER)]),
            members: vec![owner],
            infrastructure: Vec::new(),
            network,
            secret,
            tokens,
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
        let member = Member::new(host, name, &mut self.world.rng);
        self.by_host.insert(host, id);
        self.by_peer.insert(member.peer(), id);
        self.members.push(member);
        id
    }

    /// Puts a member's machine, which does not run, on another site.
    pub fn move_member(&mut self, id: MemberId, nat: Option<NatId>, link: LinkKind) {
        assert!(!self.member(id).is_running(), "it is moved while it is off");
        let host = self.world.add_host(nat, link);
        let before = self.member(id).host;
        self.by_host.remove(&before);
        self.by_host.insert(host, id);
        self.members[id.0].host = host;
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
        let mut directory = Directory::new(self.member(id).peer(), self.network.clone());
        for record in self.member(id).disk.peers.clone() {
            let _expired = directory.insert(record, self.unix());
        }
        let member = &mut self.members[id.0];
        let (peer, host) = (member.peer(), member.host);
        member.life += 1;
        member.running = Some(Running {
            holder: None,
            service: None,
            registrar,
            directory,
            candidates: Vec::new(),
            offers: BTreeMap::new(),
            spare: BTreeSet::new(),
            asked: BTreeMap::new(),
            sync: Sync::new(self.world.now()),
            told_eager: true,
            told_bindings: Vec::new(),
            is_refresh_planned: false,
            is_publish_planned: false,
            tick_at: None,
        });
        self.world.set_role(
            host,
            Role::Node(Box::new(NodeHost::new(peer, engine, lanes))),
        );
        let addresses = self.world.addresses(host);
        self.command(id, Command::SetHostCandidates(addresses));
        let limits = self.terms.members_relay.then(RelayLimits::default);
        self.command(id, Command::ServeRelay(limits));
        self.find_fabric(id);
        match self.member(id).disk.membership {
            Some(_) => self.enter(id),
            None => self.plan(id, Duration::ZERO, Errand::Admit),
        }
        self.settle(id);
        self.follow();
    }

    /// The power goes; the node's guests are machines of their own and go on.
    pub fn kill(&mut self, id: MemberId) {
        self.unplug_guests(id);
        let member = &mut self.members[id.0];
        if let Some(running) = member.running.take() {
            member.disk.peers = running.directory.peers().cloned().collect();
        }
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

    // ---- the control plane ----

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
                let Some(&id) = self.by_host.get(&host) else {
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
                if let Some(service) = &mut running.service {
                    service.handle_timeout(now, unix);
                }
                if let Some(registrar) = &mut running.registrar {
                    registrar.handle_timeout(now, unix);
                }
            }
            Errand::FabricSeen(place) => self.fabric_seen(id, place),
            Errand::Allocate(place) => self.allocate(id, place),
            Errand::Granted(place, grant) => self.granted(id, place, grant),
            Errand::OpenStream(place) => self.open_stream(id, place),
            Errand::StreamOpened(place) => self.stream_opened(id, place),
            Errand::Admit => {
                let (name, unix) = (self.member(id).name.clone(), self.unix());
                let token = if id == Self::OWNER {
                    Vec::new()
                } else {
                    self.tokens[id.0 / TOKEN_USES].clone()
                };
                self.ask(id, LeaseOf::Node, Transaction::Admit { token, name, unix });
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
                if let Some(of) = self.running(id).asked.remove(&question) {
                    self.answer(id, of, *reply);
                }
            }
            Errand::Unanswered { question } => {
                if let Some(of) = self.running(id).asked.remove(&question) {
                    match self.members[id.0].holder(of) {
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
                if self.running(id).directory.insert(record, unix) == Ok(true) {
                    self.refresh_soon(id);
                }
            }
            Errand::Spoke(peer) => self.spoke(id, peer),
            Errand::Sync => self.sync_if_due(id),
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
            Event::RelayLost(way) => self.relay_lost(id, way),
            Event::RelaySilent(way) => self.relay_silent(id, way),
            Event::RelayBound(way) => self.relay_bound(id, way),
            Event::RelayWanted { via, instead_of } => self.relay_wanted(id, via, instead_of),
            Event::UnknownPeer { x25519, .. } => self.find_by_data_key(id, x25519),
            Event::AddressWanted { ip, .. } => self.find_address(id, ip),
            Event::SessionDown { peer, .. } => self.read_slot(id, peer),
            Event::PeerUnanswered { peer, .. } => {
                self.read_slot(id, peer);
                self.ask_itself(id, peer);
            }
            Event::FramePunted { port, frame, .. } => self.handle_punted(id, port, &frame),
            _ => {}
        }
    }

    /// Carries out what the member's machines want, and sees to it that they are called in time.
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
        for (of, event) in self.members[id.0].holder_events() {
            self.hold(id, of, event);
        }
        for of in [LeaseOf::Node, LeaseOf::Guests] {
            while let Some(transaction) = self.members[id.0]
                .holder(of)
                .and_then(LeaseHolder::poll_transmit)
            {
                self.ask(id, of, transaction);
            }
        }
        self.drain_dhcp(id);
        let now = self.world.now();
        if let Some(at) = self.member(id).poll_timeout()
            && self.running(id).tick_at.is_none_or(|planned| at < planned)
        {
            self.running(id).tick_at = Some(at);
            self.plan(id, at.saturating_duration_since(now), Errand::Tick);
        }
    }

    fn running(&mut self, id: MemberId) -> &mut Running {
        self.members[id.0]
            .running
            .as_mut()
            .expect("errands reach running members only")
    }
}
