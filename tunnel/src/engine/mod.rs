//! The slow half of the data plane, for all networks of a node: who the peers are, their sessions and paths, what workers
//! report. It orders the stages and holds no policy: that lives in `switch`, `session` and `path`.

mod challenges;
mod context;
mod datagram;
mod flows;
mod frame;
mod message;
mod network;
mod peer;
mod relays;
mod sockets;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests;
mod view;

pub use message::{Command, DownReason, EngineConfig, Event, PeerStats, SocketChange, Transmit};

use crate::{
    path::{self, PathAgent, RelayOffer, RelayReach},
    relay::{RelayClient, RelayEvent, RelayServer, RelayStats, Verdict},
    snapshot::Snapshot,
    split::Rejoiner,
    stats::{Counter, Counters},
    stun::{NatRule, PortSampler, StunClient, StunEvent},
    switch::flood::Budgets,
    worker::Report,
};
use context::{Context, PeerKey, Redraw};
use network::{Local, Network, Port};
use overlay_types::{
    Candidate, DataKeys, Location, MacAddr, NetworkId, PathAddr, PeerId, PortId, why::Way,
};
use peer::{Peer, Settled, YIELD};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use relays::Relays;
use sockets::Owner;
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Addresses at which peers see us, kept while no STUN server answers.
const OBSERVED_MAX: usize = 2;
/// How often the network under us is looked at again because paths fail.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);
/// After our ways in changed, more of them usually follow; unanswered handshakes are tried again after this.
const SETTLING: Duration = Duration::from_millis(100);

/// A deadline missed by this much was slept through: the machine was stopped or starved, and its NAT may have forgotten it.
const SLEPT_AFTER: Duration = Duration::from_secs(5);

/// Relays of which it is remembered where they saw us; a node has places at two or so at a time.
const RELAYS_REMEMBERED_MAX: usize = 16;

/// The engine of one node.
pub struct Engine {
    ctx: Context,
    networks: BTreeMap<NetworkId, Network>,
    port_networks: BTreeMap<PortId, NetworkId>,
    stun: StunClient,
    sampler: PortSampler,
    relays: Relays,
    /// How often our mappings at the NAT must be used so that they stay.
    keepalive: Duration,
    hosts: Vec<SocketAddr>,
    /// Where routers let the outside in.
    mapped: Vec<SocketAddr>,
    observed: VecDeque<SocketAddr>,
    /// Our ways in, as last told.
    candidates: Vec<Candidate>,
    /// Whether we relay for others, as last told.
    offer: RelayOffer,
    /// How we reach the relays where we are bound.
    reaches: BTreeMap<PeerId, RelayReach>,
    refreshed_at: Option<Instant>,
    /// When it is to be looked at again, because a path failed too soon after the last time.
    refresh_at: Option<Instant>,
    /// Where each relay saw us last: a change tells that the NAT gave us another mapping.
    seen_by_relays: BTreeMap<PeerId, SocketAddr>,
    snapshot: Arc<Snapshot>,
    is_published: bool,
    budgets: Budgets,
    rejoiner: Rejoiner,
    unjoined_told: u64,
}

impl Engine {
    /// An engine without networks.
    pub fn new(config: EngineConfig, now: Instant) -> Self {
        let mut rng = ChaCha20Rng::from_seed(config.seed);
        Self {
            stun: StunClient::new(rng.next_u64(), now),
            relays: Relays::new(RelayClient::new(rng.next_u64(), now)),
            sampler: PortSampler::new(rng.next_u64()),
            ctx: Context::new(rng, config.unix_at_start, now),
            networks: BTreeMap::new(),
            port_networks: BTreeMap::new(),
            keepalive: path::KEEPALIVE,
            hosts: Vec::new(),
            mapped: Vec::new(),
            observed: VecDeque::new(),
            candidates: Vec::new(),
            offer: RelayOffer::None,
            reaches: BTreeMap::new(),
            refreshed_at: None,
            refresh_at: None,
            seen_by_relays: BTreeMap::new(),
            snapshot: Arc::default(),
            is_published: false,
            budgets: Budgets::default(),
            rejoiner: Rejoiner::new(),
            unjoined_told: 0,
        }
    }

    /// The node wants something.
    pub fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::AddNetwork {
                id,
                me,
                keys,
                psk,
                dhcp,
                mtu,
            } => {
                self.remove_network(id, now);
                self.networks.insert(
                    id,
                    Network::new(Local {
                        id,
                        me,
                        keys,
                        psk,
                        dhcp,
                        mtu,
                    }),
                );
                self.ctx.redraw(Redraw::Whole);
            }
            Command::RemoveNetwork(id) => self.remove_network(id, now),
            Command::UpsertPeer {
                network,
                peer,
                keys,
                candidates,
                eager,
                paid,
            } => {
                self.upsert_peer((network, peer), keys, candidates, eager, paid, now);
            }
            Command::RemovePeer { network, peer } => self.remove_peer((network, peer), now),
            Command::AddPort {
                network,
                port,
                kind,
                mut macs,
            } => {
                macs.sort_unstable();
                self.remove_port(port);
                if let Some(of) = self.networks.get_mut(&network) {
                    of.ports.insert(port, Port { kind, macs });
                    self.port_networks.insert(port, network);
                }
            }
            Command::RemovePort(port) => self.remove_port(port),
            Command::SetPortMacs { port, mut macs } => {
                macs.sort_unstable();
                if let Some(at) = self.port_mut(port) {
                    at.macs = macs;
                }
            }
            Command::SetBindings { network, bindings } => {
                let of = self.networks.get_mut(&network);
                if of.is_some_and(|of| of.set_bindings(&bindings)) {
                    self.ctx.redraw(Redraw::Whole);
                    self.answer_late(network, now);
                }
            }
            Command::NoSuchAddress { network, ip } => {
                if let Some(of) = self.networks.get_mut(&network) {
                    of.note_absent(ip, now);
                }
            }
            Command::SetStunServers(servers) => self.stun.set_servers(&servers, now),
            Command::SetMappedAddresses(mapped) => self.mapped = mapped,
            Command::SetMappingLifetime(lifetime) => {
                self.keepalive = lifetime.map_or(path::KEEPALIVE, |known| known.keepalive());
                self.stun.set_keepalive(self.keepalive);
                self.relays.client.set_keepalive(self.keepalive);
                for network in self.networks.values_mut() {
                    for peer in network.peers.values_mut() {
                        peer.agent.set_keepalive(self.keepalive);
                    }
                }
            }
            Command::SetRelays(grants) => self.relays.set_fabric(grants, now),
            Command::ServeRelay(limits) => {
                let ctx = &mut self.ctx;
                ctx.relay = limits.map(|limits| RelayServer::new(ctx.rng.random(), limits, now));
                ctx.redraw(Redraw::Ways);
            }
            Command::SetHostCandidates(hosts) => {
                self.stun.set_host_candidates(&hosts, now);
                if hosts != self.hosts {
                    self.hosts = hosts;
                    self.start_over(now);
                }
            }
            Command::NetworkChanged => self.start_over(now),
            Command::EmitFrame { port, frame } => self.ctx.deliver(port, frame),
            Command::SwitchFrame { network, frame } => self.switch_own_frame(network, &frame, now),
            Command::Ping { network, peer, id } => {
                self.with_peer((network, peer), now, |peer, _, ctx| peer.ping(id, ctx, now));
            }
        }
        self.settle_node(now);
    }

    /// A worker tells something.
    pub fn handle_report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Datagram { from, mut bytes } => self.handle_datagram(from, &mut bytes, now),
            Report::UnknownSession { from, bytes } => self.handle_unknown_session(from, bytes, now),
            Report::Heard { slot, from } => {
                if let Some(&key) = self.ctx.slots.get(slot) {
                    self.with_peer(key, now, |peer, _, ctx| peer.heard(slot, from, ctx, now));
                }
            }
            Report::Traffic { slot, traffic } => {
                if let Some(&key) = self.ctx.slots.get(slot) {
                    self.with_peer(key, now, |peer, _, ctx| {
                        peer.handle_traffic(traffic, ctx, now)
                    });
                }
            }
            Report::StationSeen { network, mac, at } => self.learn(network, mac, at, now),
            Report::GuestSpoke { port, mac, frame } => self.take_guest(port, mac, &frame, now),
            Report::AddressWanted {
                network,
                port,
                ip,
                frame,
            } => self.want_address(network, port, ip, frame, now),
            Report::AddressTaken {
                network,
                port,
                mac,
                ip,
            } => {
                self.ctx.tell(Event::AddressTaken {
                    network,
                    port,
                    mac,
                    ip,
                });
            }
            Report::Punted {
                network,
                port,
                frame,
            } => self.ctx.tell(Event::FramePunted {
                network,
                port,
                frame,
            }),
            Report::Snooped {
                network,
                from,
                frame,
            } => self.ctx.tell(Event::Snooped {
                network,
                from,
                frame,
            }),
            Report::NoSession {
                network,
                peer,
                frame,
            } => {
                self.with_peer((network, peer), now, |peer, _, ctx| {
                    peer.send_or_wait(frame, ctx, now)
                });
            }
            Report::Counted(counted) => self.ctx.counters.merge(&counted),
        }
        self.settle_node(now);
    }

    /// Another member wants a datagram passed on. Nothing else is looked at, for there may be many.
    pub fn handle_to_place(&mut self, from: PathAddr, mut bytes: Vec<u8>, now: Instant) {
        let Some(server) = &mut self.ctx.relay else {
            return self.ctx.count(Counter::DropRelayStranger);
        };
        if let Verdict::Forward(to) = server.handle_datagram(from, &mut bytes, now) {
            self.ctx.pass_on(to, bytes);
        }
    }

    /// What this node relayed for others; `None` when it does not.
    pub fn relay_stats(&self) -> Option<RelayStats> {
        self.ctx.relay.as_ref().map(RelayServer::stats)
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self
            .poll_timeout()
            .is_some_and(|(due, _)| now >= due + SLEPT_AFTER)
        {
            self.start_over(now);
        }
        let due: Vec<PeerKey> = self
            .ctx
            .timers
            .iter()
            .take_while(|&&(at, _)| at <= now)
            .map(|&(_, key)| key)
            .collect();
        for key in due {
            self.with_peer(key, now, |_, _, _| ());
        }
        self.refresh_if_due(now);
        self.stun.handle_timeout(now);
        self.sampler.handle_timeout(now);
        self.relays.client.handle_timeout(now);
        if let Some(server) = &mut self.ctx.relay {
            server.handle_timeout(now);
        }
        for network in self.networks.values_mut() {
            if network.stations.age(now) {
                self.ctx.redraw(Redraw::Whole);
            }
        }
        self.settle_node(now);
    }

    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let peer = self.ctx.timers.first().map(|&(at, _)| (at, "peer"));
        let ageing = self
            .networks
            .values()
            .filter_map(|n| n.stations.age_at())
            .min()
            .map(|at| (at, "age stations"));
        [
            peer,
            ageing,
            self.stun.poll_timeout(),
            self.sampler.poll_timeout(),
            self.relays.poll_timeout(),
            self.ctx.relay.as_ref().and_then(RelayServer::poll_timeout),
            self.refresh_at.map(|at| (at, "look at the network again")),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|&(at, _)| at)
    }

    /// Which socket beside the data port's to open or close next: before a snapshot is published that may name it, and
    /// before datagrams are sent.
    pub fn poll_socket(&mut self) -> Option<SocketChange> {
        self.ctx.sockets.poll()
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.ctx.transmits.pop_front()
    }

    /// The next frame to write to a local port.
    pub fn poll_frame(&mut self) -> Option<(PortId, Vec<u8>)> {
        self.ctx.frames.pop_front()
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.ctx.events.pop_front()
    }

    /// A newer picture for the workers, if anything changed since the last call. Take it after every `handle_*`, and give
    /// it to the workers before anything from [`Self::poll_transmit`] is sent: what is sent may be answered at once.
    pub fn take_snapshot(&mut self) -> Option<Arc<Snapshot>> {
        self.draw();
        (!std::mem::replace(&mut self.is_published, true)).then(|| Arc::clone(&self.snapshot))
    }

    /// Every peer, in the order of networks and ids.
    pub fn peer_stats(&self, now: Instant) -> Vec<PeerStats> {
        self.networks
            .values()
            .flat_map(|network| network.peers.values())
            .map(|peer| peer.stats(now))
            .collect()
    }

    /// One peer.
    pub fn stats_of(&self, network: NetworkId, peer: PeerId, now: Instant) -> Option<PeerStats> {
        let peer = self.networks.get(&network)?.peers.get(&peer)?;
        Some(peer.stats(now))
    }

    /// How this node sees the way to a peer, for `farlan why`.
    pub fn way_to(&self, network: NetworkId, peer: PeerId, now: Instant) -> Option<Way> {
        let peer = self.networks.get(&network)?.peers.get(&peer)?;
        Some(peer.tell_way(now))
    }

    /// Everything that was counted, by the engine and by the workers as far as they told.
    pub fn counters(&self) -> &Counters {
        &self.ctx.counters
    }

    /// The picture of now.
    fn draw(&mut self) -> Arc<Snapshot> {
        let redraw = self.ctx.take_redraw();
        if redraw == Redraw::Nothing {
            return Arc::clone(&self.snapshot);
        }
        let known = (redraw == Redraw::Ways).then_some(&*self.snapshot);
        self.snapshot = Arc::new(view::snapshot(
            &self.networks,
            self.ctx.relay.as_ref(),
            known,
        ));
        self.is_published = false;
        if redraw == Redraw::Whole {
            let snapshot = &self.snapshot;
            self.budgets.keep(|network, at| snapshot.has(network, at));
        }
        Arc::clone(&self.snapshot)
    }

    fn upsert_peer(
        &mut self,
        key: PeerKey,
        keys: DataKeys,
        candidates: Vec<Candidate>,
        eager: bool,
        paid: u64,
        now: Instant,
    ) {
        let Some(network) = self.networks.get_mut(&key.0) else {
            return;
        };
        if key.1 == network.local.me {
            return;
        }
        let x25519 = keys.x25519;
        let ctx = &mut self.ctx;
        let peer = network.peers.entry(key.1).or_insert_with(|| {
            ctx.redraw(Redraw::Whole);
            let mut agent = PathAgent::new(
                ctx.rng.next_u64(),
                view::datagram_bytes_max(&network.local),
                now,
            );
            agent.set_ends(network.local.me, key.1);
            agent.set_relays(&self.reaches, now);
            agent.set_local_candidates(&self.candidates, now);
            agent.set_local_nat(self.stun.behaviour(), now);
            agent.set_relay_offer(self.offer, now);
            agent.set_keepalive(self.keepalive);
            Peer::new(key, keys.clone(), agent)
        });
        let is_news = peer.keys != keys || peer.candidates != candidates || peer.eager != eager;
        network.by_key.remove(&peer.keys.x25519);
        network.by_key.insert(x25519, key.1);
        peer.keys = keys;
        peer.pay(paid);
        peer.set_eager(eager);
        if peer.candidates != candidates {
            peer.candidates = candidates;
            peer.agent.set_remote_candidates(&peer.candidates, now);
            peer.retry_handshake(now);
            self.relays.look_soon(now);
        }
        if eager && peer.current.is_none() && is_news {
            let wait = if network.local.me < key.1 {
                Duration::ZERO
            } else {
                YIELD
            };
            peer.want_handshake(now + wait);
        }
        let stranger = network.take_stranger(&x25519, now);
        self.with_peer(key, now, |_, _, _| ());
        if let Some(mut stranger) = stranger {
            self.handle_datagram(stranger.from, &mut stranger.bytes, now);
        }
    }

    fn remove_peer(&mut self, key: PeerKey, now: Instant) {
        let Some(network) = self.networks.get_mut(&key.0) else {
            return;
        };
        let Some(mut peer) = network.peers.remove(&key.1) else {
            return;
        };
        peer.remove(&mut self.ctx, now);
        network.by_key.remove(&peer.keys.x25519);
        network.stations.forget_place(Location::Peer(key.1));
        self.ctx.redraw(Redraw::Whole);
        let is_member_still = self.networks.values().any(|n| n.peers.contains_key(&key.1));
        if let Some(server) = self.ctx.relay.as_mut().filter(|_| !is_member_still) {
            server.forget(key.1);
        }
    }

    fn remove_network(&mut self, id: NetworkId, now: Instant) {
        let Some(network) = self.networks.get(&id) else {
            return;
        };
        let peers: Vec<PeerId> = network.peers.keys().copied().collect();
        for peer in peers {
            self.remove_peer((id, peer), now);
        }
        self.networks.remove(&id);
        self.port_networks.retain(|_, of| *of != id);
        self.ctx.redraw(Redraw::Whole);
    }

    fn remove_port(&mut self, port: PortId) {
        if let Some(network) = self
            .port_networks
            .remove(&port)
            .and_then(|of| self.networks.get_mut(&of))
        {
            network.ports.remove(&port);
            network.stations.forget_place(Location::Port(port));
        }
        self.ctx.redraw(Redraw::Whole);
    }

    fn port_mut(&mut self, port: PortId) -> Option<&mut Port> {
        let of = self.port_networks.get(&port)?;
        self.ctx.redraw(Redraw::Whole);
        self.networks.get_mut(of)?.ports.get_mut(&port)
    }

    fn learn(&mut self, network: NetworkId, mac: MacAddr, at: Location, now: Instant) {
        use crate::switch::mac_table::Learned;
        let Some(of) = self.networks.get_mut(&network) else {
            return;
        };
        let is_there = match at {
            Location::Port(port) => of.ports.contains_key(&port),
            Location::Peer(peer) => of.peers.contains_key(&peer),
        };
        if !is_there || of.bindings.values().any(|&(bound, _)| bound == mac) {
            return;
        }
        match of.stations.learn(mac, at, now) {
            Learned::New | Learned::Moved => {
                self.ctx.redraw(Redraw::Whole);
                self.ctx.tell(Event::MacLearned {
                    network,
                    mac,
                    location: at,
                });
            }
            Learned::Refreshed => {}
            Learned::Held | Learned::Full => self.ctx.count(Counter::DropMacTable),
        }
    }

    /// Does something with a peer, what is due because of it, and lets it settle.
    fn with_peer<T>(
        &mut self,
        key: PeerKey,
        now: Instant,
        act: impl FnOnce(&mut Peer, &Local, &mut Context) -> T,
    ) -> Option<T> {
        let network = self.networks.get_mut(&key.0)?;
        let peer = network.peers.get_mut(&key.1)?;
        let done = act(peer, &network.local, &mut self.ctx);
        peer.handle_timeout(&network.local, &mut self.ctx, now);
        let settled = peer.settle(&mut self.ctx, now);
        self.handle_settled(settled, now);
        Some(done)
    }

    fn handle_settled(&mut self, settled: Settled, now: Instant) {
        for socket in settled.samples {
            let servers = self.stun.sample_servers();
            self.sampler.sample(socket, &servers, now);
        }
        if let Some(addr) = settled.observed {
            self.observed.retain(|&known| known != addr);
            self.observed.push_front(addr);
            self.observed.truncate(OBSERVED_MAX);
        }
        if let Some((of, place)) = settled.place {
            self.relays.handle_place(of, place, now);
        }
        if let Some(peer) = settled.session_up {
            self.relays.handle_session_up(peer, now);
        }
        if settled.has_moved {
            self.relays.look_soon(now);
        }
        if settled.is_distressed {
            let earliest = self.refreshed_at.map_or(now, |at| at + REFRESH_PAUSE);
            self.refresh_at.get_or_insert(earliest.max(now));
            self.refresh_if_due(now);
        }
    }

    /// Asks STUN servers and relays whether they still reach us.
    fn refresh_if_due(&mut self, now: Instant) {
        if self.refresh_at.is_some_and(|at| at <= now) {
            (self.refresh_at, self.refreshed_at) = (None, Some(now));
            self.stun.refresh(now);
            self.relays.client.refresh(now);
        }
    }

    /// The network under us is another one: asks STUN servers, relays and peers whether they still reach us, and where.
    fn start_over(&mut self, now: Instant) {
        self.stun.start_over(now);
        self.relays.client.start_over(now);
        self.refreshed_at = Some(now);
        let of = |(id, network): (&NetworkId, &Network)| {
            let peers = network.peers.keys();
            peers.map(|peer| (*id, *peer)).collect::<Vec<_>>()
        };
        let peers: Vec<PeerKey> = self.networks.iter().flat_map(of).collect();
        for key in peers {
            self.with_peer(key, now, |peer, _, _| {
                peer.agent.handle_network_changed(now)
            });
        }
    }

    /// Sends and tells what the STUN and relay clients want, and makes our ways in known where they changed.
    fn settle_node(&mut self, now: Instant) {
        let mut settled = Vec::new();
        loop {
            if let Some((to, bytes)) = self
                .stun
                .poll_transmit()
                .map(|(to, bytes)| (PathAddr::Direct(to), bytes))
                .or_else(|| self.relays.client.poll_transmit())
            {
                self.ctx.send(to, &bytes);
            } else if let Some((socket, to, bytes)) = self.sampler.poll_transmit() {
                let to = PathAddr::Punched { socket, addr: to };
                self.ctx.send(to, &bytes);
            } else if let Some((socket, sampled)) = self.sampler.poll_sampled() {
                match self.ctx.sockets.owner(socket) {
                    Some(Owner::Peer(key)) => {
                        self.with_peer(key, now, |peer, _, _| {
                            peer.agent.handle_sampled(socket, sampled, now);
                        });
                    }
                    Some(Owner::Node) => {
                        self.ctx.sockets.close(socket);
                        self.stun.handle_sampled(sampled, now);
                    }
                    None => {}
                }
            } else if self.stun.poll_sample() {
                match self.ctx.sockets.open(1, Owner::Node).first() {
                    Some(&socket) => {
                        let servers = self.stun.sample_servers();
                        self.sampler.sample(socket, &servers, now);
                    }
                    None => self.stun.handle_sampled(None, now),
                }
            } else if let Some(event) = self.stun.poll_event() {
                if let StunEvent::Behaviour(behaviour) = event {
                    self.ctx.tell(Event::NatLearned(behaviour));
                    for network in self.networks.values_mut() {
                        for peer in network.peers.values_mut() {
                            peer.agent.set_local_nat(behaviour, now);
                            settled.push(peer.settle(&mut self.ctx, now));
                        }
                    }
                    for settled in settled.drain(..) {
                        self.handle_settled(settled, now);
                    }
                }
            } else if let Some(event) = self.relays.client.poll_event() {
                self.handle_relay_event(event, now);
            } else {
                break;
            }
        }
        if self.relays.is_due(now) {
            self.choose_relays(now);
            return self.settle_node(now);
        }
        if self.ctx.relay.as_mut().is_some_and(RelayServer::has_news) {
            self.ctx.redraw(Redraw::Ways);
        }
        let (candidates, reaches, offer) = (self.ways_in(), self.relays.reaches(), self.offer());
        if (&candidates, &reaches, offer) == (&self.candidates, &self.reaches, self.offer) {
            return;
        }
        self.offer = offer;
        if candidates != self.candidates {
            self.ctx.tell(Event::CandidatesChanged(candidates.clone()));
        }
        (self.candidates, self.reaches) = (candidates, reaches);
        for network in self.networks.values_mut() {
            for peer in network.peers.values_mut() {
                peer.agent.set_relays(&self.reaches, now);
                peer.agent.set_local_candidates(&self.candidates, now);
                peer.agent.set_relay_offer(offer, now);
                peer.retry_handshake(now + SETTLING);
                settled.push(peer.settle(&mut self.ctx, now));
            }
        }
        let asks = settled.iter().any(|settled| !settled.samples.is_empty());
        for settled in settled {
            self.handle_settled(settled, now);
        }
        if asks {
            self.settle_node(now);
        }
    }

    fn handle_relay_event(&mut self, event: RelayEvent, now: Instant) {
        match event {
            RelayEvent::Lost(way) => {
                self.relays.handle_lost(way, now);
                self.ctx.tell(Event::RelayLost(way));
            }
            RelayEvent::Silent(way) => {
                self.relays.look_soon(now);
                self.ctx.tell(Event::RelaySilent(way));
            }
            RelayEvent::Bound { way, observed } => {
                self.relays.look_soon(now);
                self.ctx.tell(Event::RelayBound(way));
                if way.carrier.is_some() {
                    return; // it sees the other end of the stream
                }
                let before = self.seen_by_relays.insert(way.via, observed);
                if before.is_some_and(|before| before != observed) {
                    self.stun.refresh(now);
                }
                if self.seen_by_relays.len() > RELAYS_REMEMBERED_MAX {
                    self.seen_by_relays.pop_first();
                }
            }
        }
    }

    /// Sees to it that there are places at the right relays.
    fn choose_relays(&mut self, now: Instant) {
        let members: Vec<_> = self
            .networks
            .values()
            .flat_map(|network| network.peers.values())
            .map(Peer::as_relay)
            .collect();
        let look = self.relays.look(&members, now);
        for network in self.networks.values_mut() {
            for (id, peer) in &mut network.peers {
                peer.set_relays_for_us(self.relays.uses(*id));
            }
        }
        for key in look.asks {
            self.with_peer(key, now, |peer, _, ctx| peer.ask_for_place(ctx));
        }
        let mut idle = look.idle.into_iter();
        for via in look.seeks {
            let instead_of = idle.next();
            self.ctx.tell(Event::RelayWanted { via, instead_of });
        }
    }

    /// Whether this node relays for others, and who reaches it.
    fn offer(&self) -> RelayOffer {
        let nat = self.stun.behaviour();
        let lets_in = |rule| matches!(rule, NatRule::None | NatRule::EndpointIndependent);
        let is_open = !self.mapped.is_empty() || (lets_in(nat.mapping) && lets_in(nat.filtering));
        match (&self.ctx.relay, is_open) {
            (None, _) => RelayOffer::None,
            (Some(_), true) => RelayOffer::Open,
            (Some(_), false) => RelayOffer::Restricted,
        }
    }

    /// Relays first: they are what always works, and what a bounded list must not lose.
    fn ways_in(&self) -> Vec<Candidate> {
        let mut reflexive = self.stun.reflexive();
        if reflexive.is_empty() {
            reflexive.extend(&self.observed);
        }
        let mut candidates = self.relays.candidates();
        candidates.extend(self.hosts.iter().map(|&addr| Candidate::Host(addr)));
        let mapped = self.mapped.iter();
        candidates.extend(
            mapped
                .filter(|addr| !reflexive.contains(addr))
                .map(|&addr| Candidate::Mapped(addr)),
        );
        candidates.extend(
            reflexive
                .into_iter()
                .filter(|addr| !self.hosts.contains(addr))
                .map(Candidate::Reflexive),
        );
        candidates.dedup();
        candidates.truncate(crate::path::CANDIDATES_MAX);
        candidates
    }
}
