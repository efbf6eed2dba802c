//! The one task that owns the libp2p swarm. It turns commands into libp2p calls and libp2p events into ours, and leaves every
//! decision that takes memory to [`super::homes`], [`super::queries`] and [`super::requests`]. It never waits inside the loop.

use super::behaviour::{Behaviour, BehaviourEvent};
use super::handle::{Command, ConnectedPeer, SwarmCounters, SwarmEvent, SwarmStatus};
use super::homes::Homes;
use super::peer::{
    from_libp2p, is_circuit, is_loopback, is_public, is_tcp, is_unspecified, is_worth_keeping,
    split_peer, to_libp2p,
};
use super::queries::Queries;
use super::requests::Requests;
use super::{Role, SpawnError, SwarmConfig};
use crate::slot::Source;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent as Libp2pEvent};
use libp2p::{Multiaddr, PeerId, Swarm, identify, kad, mdns, ping, relay};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Events kept for a reader that is slow, beyond the channel's own bound; then they are dropped and counted.
const PENDING_EVENTS_MAX: usize = 1024;
/// Requests of others that wait for their answer; further ones are dropped, which their senders see at once.
const ANSWERS_MAX: usize = 512;
/// Fabric nodes at which circuits to this node can be had: two may leave.
const RESERVATIONS_MAX: usize = 3;
/// The pause after a refused reservation; it doubles up to [`RESERVE_PAUSE_MAX`].
const RESERVE_PAUSE_MIN: Duration = Duration::from_millis(500);
const RESERVE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Addresses of this node that are published: they go into a record of 4 KiB with much else.
const PUBLISHED_MAX: usize = 8;
/// Addresses tried for one request.
const DIAL_ADDRESSES_MAX: usize = 12;
/// Addresses that one peer may tell of itself.
const TOLD_ADDRESSES_MAX: usize = 8;
/// Peers on the LAN whose addresses are remembered.
const LAN_PEERS_MAX: usize = 64;
/// How often slots that are over are swept out.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(120);
/// How long closing may take at the end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_millis(500);

/// The swarm with all that is kept beside it.
pub(super) struct SwarmTask {
    swarm: Swarm<Behaviour>,
    own: Source,
    role: Role,
    speaks_on_loopback: bool,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<SwarmEvent>,
    pending_events: VecDeque<SwarmEvent>,
    answers: FuturesUnordered<BoxFuture<'static, (ResponseChannel<Vec<u8>>, Option<Vec<u8>>)>>,
    homes: Homes,
    queries: Queries,
    requests: Requests,
    peers: BTreeMap<PeerId, Peer>,
    reservations: BTreeMap<PeerId, Reservation>,
    lan: BTreeMap<PeerId, Vec<Multiaddr>>,
    published: Vec<String>,
    counters: SwarmCounters,
    expire_at: Instant,
}

/// A peer with which there is a connection.
#[derive(Default)]
struct Peer {
    connections: BTreeMap<ConnectionId, Connection>,
    fabric_addresses: Option<Vec<Multiaddr>>, // told by a node that relays
    rtt: Option<Duration>,
}

struct Connection {
    address: Multiaddr,
    is_relayed: bool,
}

impl Peer {
    fn direct(&self) -> Option<&Connection> {
        self.connections
            .values()
            .find(|connection| !connection.is_relayed)
    }
}

/// Our place at a fabric node's relay. libp2p renews it as long as its listener lives.
struct Reservation {
    listener: Option<ListenerId>,
    is_held: bool,
    failures: u32,
    retry_at: Instant,
}

impl SwarmTask {
    pub(super) fn new(
        mut swarm: Swarm<Behaviour>,
        config: SwarmConfig,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<SwarmEvent>,
    ) -> Result<Self, SpawnError> {
        let now = Instant::now();
        let me = config.identity.peer_id();
        for address in &config.listen {
            if let Err(error) = swarm.listen_on(address.clone()) {
                let is_ipv6_wildcard = is_unspecified(address)
                    && address.iter().any(|part| matches!(part, Protocol::Ip6(_)));
                if !is_ipv6_wildcard {
                    return Err(SpawnError::Listen {
                        address: address.clone(),
                        reason: error.to_string(),
                    });
                }
                tracing::debug!(%address, %error, "no IPv6 here");
            }
        }
        for address in &config.external {
            swarm.add_external_address(address.clone());
        }
        // Seeded by the identity: nodes differ from each other, and one node does the same every time.
        let mut homes = Homes::new(ChaCha20Rng::from_seed(me.0));
        for address in &config.bootstrap {
            if split_peer(address).1.as_ref() != Some(swarm.local_peer_id()) {
                homes.add(address, now);
            }
        }
        Ok(Self {
            swarm,
            own: Source { peer: me, ip: None },
            role: config.role,
            speaks_on_loopback: config.listen.iter().any(is_loopback),
            commands,
            events,
            pending_events: VecDeque::new(),
            answers: FuturesUnordered::new(),
            homes,
            queries: Queries::default(),
            requests: Requests::default(),
            peers: BTreeMap::new(),
            reservations: BTreeMap::new(),
            lan: BTreeMap::new(),
            published: Vec::new(),
            counters: SwarmCounters::default(),
            expire_at: now + EXPIRE_INTERVAL,
        })
    }

    /// Runs until told to stop, or until nobody holds a handle any more.
    pub(super) async fn run(mut self) {
        let events = self.events.clone(); // lent to the loop, which lends the rest of itself to what it calls
        let stopped = loop {
            self.do_what_is_due(Instant::now());
            let wake_at = self.poll_timeout().into();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown { reply }) => break Some(reply),
                    Some(command) => self.handle_command(command, Instant::now()),
                    None => break None,
                },
                event = self.swarm.select_next_some() => self.handle_swarm_event(event, Instant::now()),
                Some((channel, answer)) = self.answers.next() => self.handle_answer(channel, answer),
                permit = events.reserve(), if !self.pending_events.is_empty() => {
                    match (permit, self.pending_events.pop_front()) {
                        (Ok(permit), Some(event)) => permit.send(event),
                        _ => self.pending_events.clear(), // nobody reads any more
                    }
                }
                () = tokio::time::sleep_until(wake_at) => {}
            }
        };
        self.close().await;
        if let Some(reply) = stopped {
            let _gone = reply.send(());
        }
    }

    /// Says goodbye, so that peers do not have to wait for a timeout.
    async fn close(mut self) {
        let connected: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            let _already_gone = self.swarm.disconnect_peer_id(peer);
        }
        let closing = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _late = tokio::time::timeout(SHUTDOWN_PATIENCE, closing).await;
    }

    fn poll_timeout(&self) -> Instant {
        let reserve_at = self
            .reservations
            .values()
            .filter(|place| place.listener.is_none())
            .map(|place| place.retry_at)
            .min();
        let wakes = [
            self.homes.poll_timeout(),
            self.queries.poll_timeout(),
            self.requests.poll_timeout(),
            reserve_at,
        ];
        wakes
            .into_iter()
            .flatten()
            .fold(self.expire_at, Instant::min)
    }

    fn do_what_is_due(&mut self, now: Instant) {
        self.queries
            .handle_timeout(&mut self.swarm.behaviour_mut().kad, self.own, now);
        self.requests.handle_timeout(now);
        while let Some(dial) = self.homes.poll_dial(now) {
            let options = match dial.peer {
                Some(peer) => DialOpts::peer_id(peer)
                    .addresses(dial.addresses)
                    .condition(PeerCondition::Disconnected)
                    .build(),
                None => DialOpts::unknown_peer_id()
                    .address(dial.addresses[0].clone())
                    .build(),
            };
            let connection = options.connection_id();
            self.homes.handle_dialing(dial.home, connection);
            if let Err(error) = self.swarm.dial(options) {
                self.handle_dial_error(connection, dial.peer, &error, now);
            }
        }
        while let Some(due) = self.requests.poll_due(now) {
            if self.swarm.is_connected(&due.peer) {
                let payload = self.requests.take_payload(due.id);
                let sent = self
                    .swarm
                    .behaviour_mut()
                    .requests
                    .send_request(&due.peer, payload);
                self.requests.handle_sent(due.id, sent);
            } else if let Some(connection) = due.joins {
                self.requests.handle_dialing(due.id, connection);
            } else {
                match self.dial_peer(due.peer, due.addresses) {
                    Ok(connection) => self.requests.handle_dialing(due.id, connection),
                    Err(error) => {
                        let is_homeless = self.is_homeless();
                        self.requests
                            .dial_again(due.id, &describe(&error), is_homeless, now);
                    }
                }
            }
        }
        if self
            .reservations
            .values()
            .any(|place| place.listener.is_none() && place.retry_at <= now)
        {
            self.reserve_where_needed(now);
        }
        if self.expire_at <= now {
            self.swarm.behaviour_mut().kad.store_mut().expire();
            self.expire_at = now + EXPIRE_INTERVAL;
        }
    }

    fn handle_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::PutSlot { value, reply } => self.queries.put(
                value,
                reply,
                &mut self.swarm.behaviour_mut().kad,
                self.own,
                now,
            ),
            Command::GetSlot { key, reply } => self.queries.get(
                key,
                reply,
                &mut self.swarm.behaviour_mut().kad,
                self.own,
                now,
            ),
            Command::Request {
                peer,
                addresses,
                payload,
                reply,
            } => match to_libp2p(peer) {
                Ok(peer) => self.requests.add(peer, addresses, payload, reply, now),
                Err(_) => drop(reply.send(Err(super::RequestError::Unsupported))),
            },
            Command::AddBootstrap { address } => {
                if split_peer(&address).1.as_ref() != Some(self.swarm.local_peer_id())
                    && !self.homes.add(&address, now)
                {
                    tracing::warn!(%address, "too many bootstraps; this one is not used");
                }
            }
            Command::Dial { peer, addresses } => {
                if let Ok(peer) = to_libp2p(peer)
                    && let Err(error) = self.dial_peer(peer, addresses)
                {
                    tracing::debug!(%peer, %error, "not dialed");
                }
            }
            Command::SetBlocked { peer, blocked } => {
                let Ok(peer) = to_libp2p(peer) else { return };
                let list = &mut self.swarm.behaviour_mut().blocked;
                let _changed = if blocked {
                    list.block_peer(peer)
                } else {
                    list.unblock_peer(peer)
                };
            }
            Command::Status { reply } => drop(reply.send(self.status(now))),
            Command::Shutdown { .. } => {} // ends the loop, see there
        }
    }

    /// Dials over `addresses`, what else is known of the peer, and circuits through the fabric nodes we are connected to.
    fn dial_peer(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    ) -> Result<ConnectionId, DialError> {
        let mut tries: Vec<Multiaddr> = Vec::new();
        let given = addresses
            .into_iter()
            .chain(self.lan.get(&peer).into_iter().flatten().cloned());
        let circuits = self
            .peers
            .iter()
            .filter(|(relay, known)| known.fabric_addresses.is_some() && **relay != peer)
            .filter_map(|(relay, known)| {
                let through = split_peer(&known.direct()?.address).0;
                Some(
                    through
                        .with(Protocol::P2p(*relay))
                        .with(Protocol::P2pCircuit),
                )
            });
        for address in given
            .take(DIAL_ADDRESSES_MAX - RESERVATIONS_MAX)
            .chain(circuits.take(RESERVATIONS_MAX))
        {
            let (address, _) = split_peer_of(&address, &peer);
            let same_relay = |other: &Multiaddr| {
                is_circuit(other) && is_circuit(&address) && relay_of(other) == relay_of(&address)
            };
            // One circuit through each relay: it is the same connection whatever the relay's address.
            if !tries
                .iter()
                .any(|other| *other == address || same_relay(other))
            {
                tries.push(address);
            }
        }
        let options = DialOpts::peer_id(peer)
            .addresses(tries)
            .extend_addresses_through_behaviour()
            .condition(PeerCondition::Disconnected)
            .build();
        let connection = options.connection_id();
        self.swarm.dial(options).map(|()| connection)
    }

    fn is_homeless(&self) -> bool {
        !self
            .peers
            .values()
            .any(|peer| peer.fabric_addresses.is_some() && peer.direct().is_some())
    }

    fn handle_swarm_event(&mut self, event: Libp2pEvent<BehaviourEvent>, now: Instant) {
        match event {
            Libp2pEvent::Behaviour(event) => self.handle_behaviour_event(event, now),
            Libp2pEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                num_established,
                ..
            } => {
                let address = split_peer_of(endpoint.get_remote_address(), &peer_id).0;
                let connection = Connection {
                    address: address.clone(),
                    is_relayed: endpoint.is_relayed(),
                };
                let is_relayed = connection.is_relayed;
                self.peers
                    .entry(peer_id)
                    .or_default()
                    .connections
                    .insert(connection_id, connection);
                if num_established.get() == 1
                    && let Ok(peer) = from_libp2p(&peer_id)
                {
                    self.emit(SwarmEvent::Connected(peer));
                }
                if !is_relayed && self.homes.handle_connected(peer_id, connection_id) {
                    let behaviour = self.swarm.behaviour_mut();
                    behaviour.gate.pin(peer_id, connection_id);
                    if endpoint.is_dialer() {
                        // A home serves the DHT; identify would say so a round trip later.
                        behaviour.kad.add_address(&peer_id, address);
                    }
                    self.reserve_where_needed(now);
                }
                self.requests.handle_connected(peer_id, now);
                self.queries
                    .start_waiting(&mut self.swarm.behaviour_mut().kad, self.own, now);
            }
            Libp2pEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                cause,
                ..
            } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                self.handle_closed(peer_id, connection_id, num_established, now);
            }
            Libp2pEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => self.handle_dial_error(connection_id, peer_id, &error, now),
            Libp2pEvent::NewListenAddr { address, .. } => {
                // A fabric node is where it was told to listen: its relay must name addresses to who reserves.
                if self.role == Role::Fabric
                    && !is_circuit(&address)
                    && (!is_loopback(&address) || self.speaks_on_loopback)
                {
                    self.swarm.add_external_address(address);
                }
                self.publish();
            }
            Libp2pEvent::ExpiredListenAddr { address, .. } => {
                if self.role == Role::Fabric {
                    self.swarm.remove_external_address(&address);
                }
                self.publish();
            }
            Libp2pEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => self.handle_listener_closed(listener_id, reason.err(), now),
            Libp2pEvent::ExternalAddrConfirmed { .. } | Libp2pEvent::ExternalAddrExpired { .. } => {
                self.set_dht_mode();
                self.reserve_where_needed(now);
                self.publish();
            }
            other => tracing::trace!(event = ?other, "swarm"),
        }
    }

    fn handle_closed(
        &mut self,
        peer_id: PeerId,
        connection: ConnectionId,
        remaining: u32,
        now: Instant,
    ) {
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.connections.remove(&connection);
        }
        if self
            .peers
            .get(&peer_id)
            .is_none_or(|peer| peer.direct().is_none())
        {
            self.reservations.remove(&peer_id);
            self.swarm.behaviour_mut().gate.unpin(&peer_id);
            if self.homes.handle_disconnected(peer_id, now) {
                self.counters.homes_lost += 1;
            }
        }
        if remaining == 0 {
            self.peers.remove(&peer_id);
            if let Ok(peer) = from_libp2p(&peer_id) {
                self.emit(SwarmEvent::Disconnected(peer));
            }
        }
        self.publish();
    }

    fn handle_dial_error(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        error: &DialError,
        now: Instant,
    ) {
        if let (DialError::DialPeerConditionFalse(_), Some(peer)) = (error, peer) {
            // Connected already, by another's doing.
            if self.homes.handle_connected(peer, connection)
                && let Some(open) = self
                    .peers
                    .get(&peer)
                    .and_then(|peer| peer.connections.keys().next())
            {
                self.swarm.behaviour_mut().gate.pin(peer, *open);
            }
            return;
        }
        let reason = describe(error);
        tracing::debug!(peer = ?peer, reason, "dial failed");
        let is_homeless = self.is_homeless();
        self.requests
            .handle_dial_failed(connection, &reason, is_homeless, now);
        if let Some(status) = self.homes.handle_dial_failed(connection, reason, now) {
            self.emit(SwarmEvent::BootstrapUnreachable(status));
        }
    }

    fn handle_behaviour_event(&mut self, event: BehaviourEvent, now: Instant) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                connection_id,
            }) => self.handle_identified(peer_id, connection_id, info, now),
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id, result, step, ..
            }) => {
                self.queries.handle_progress(
                    id,
                    result,
                    step.last,
                    &mut self.swarm.behaviour_mut().kad,
                    self.own,
                    now,
                );
            }
            BehaviourEvent::Kad(kad::Event::RoutingUpdated { .. }) => {
                self.queries
                    .start_waiting(&mut self.swarm.behaviour_mut().kad, self.own, now);
            }
            BehaviourEvent::Requests(event) => self.handle_request_event(event, now),
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                renewal,
                ..
            }) => {
                if let Some(place) = self.reservations.get_mut(&relay_peer_id) {
                    place.is_held = true;
                    place.failures = 0;
                }
                tracing::debug!(relay = %relay_peer_id, renewal, "circuits can be had");
                self.publish();
            }
            BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result,
            }) => match result {
                Ok(rtt) => {
                    if let Some(peer) = self.peers.get_mut(&peer) {
                        peer.rtt = Some(rtt);
                    }
                }
                Err(ping::Failure::Unsupported) => {}
                Err(error) => {
                    tracing::debug!(%peer, %error, "peer does not answer; closing");
                    self.swarm.close_connection(connection);
                }
            },
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.handle_found_on_lan(peer, address);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Expired(gone)) => {
                for (peer, address) in gone {
                    if let Some(addresses) = self.lan.get_mut(&peer) {
                        addresses.retain(|other| *other != address);
                    }
                    self.lan.retain(|_, addresses| !addresses.is_empty());
                }
            }
            other => tracing::trace!(event = ?other, "behaviour"),
        }
    }

    fn handle_identified(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        info: identify::Info,
        now: Instant,
    ) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some(over) = known
            .connections
            .get(&connection)
            .map(|connection| connection.address.clone())
        else {
            return;
        };
        let told = info
            .listen_addrs
            .into_iter()
            .filter(|told| is_worth_keeping(told, &over))
            .map(|told| split_peer_of(&told, &peer).0);
        let told: Vec<Multiaddr> = told.take(TOLD_ADDRESSES_MAX).collect();
        let speaks = |protocol: &str| {
            info.protocols
                .iter()
                .any(|spoken| spoken.as_ref() == protocol)
        };
        if speaks("/farlan/kad/1") {
            for address in &told {
                self.swarm
                    .behaviour_mut()
                    .kad
                    .add_address(&peer, address.clone());
            }
        }
        if !speaks(relay::HOP_PROTOCOL_NAME.as_ref()) {
            return;
        }
        let is_news = known.fabric_addresses.as_ref() != Some(&told);
        let is_direct = known.direct().is_some();
        known.fabric_addresses = Some(told.clone());
        self.homes.learn(peer, told.clone(), is_direct, now);
        if is_news && let Ok(id) = from_libp2p(&peer) {
            let addresses = told
                .into_iter()
                .map(|address| address.with(Protocol::P2p(peer)))
                .collect();
            self.emit(SwarmEvent::FabricSeen {
                peer: id,
                addresses,
            });
        }
        self.requests.handle_home_found(now);
        self.reserve_where_needed(now);
    }

    fn handle_found_on_lan(&mut self, peer: PeerId, address: Multiaddr) {
        let address = split_peer_of(&address, &peer).0;
        if self.lan.len() == LAN_PEERS_MAX && !self.lan.contains_key(&peer) {
            return;
        }
        let addresses = self.lan.entry(peer).or_default();
        if addresses.len() < TOLD_ADDRESSES_MAX && !addresses.contains(&address) {
            addresses.push(address.clone());
        }
        // Whether it is a fabric node, identify will tell.
        let options = DialOpts::peer_id(peer)
            .addresses(vec![address])
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .build();
        if let Err(error) = self.swarm.dial(options) {
            tracing::trace!(%peer, %error, "found on the LAN, not dialed");
        }
    }

    fn handle_request_event(
        &mut self,
        event: request_response::Event<Vec<u8>, Vec<u8>>,
        now: Instant,
    ) {
        match event {
            request_response::Event::Message {
                peer,
                message:
                    request_response::Message::Request {
                        request, channel, ..
                    },
                ..
            } => {
                let Ok(peer) = from_libp2p(&peer) else { return };
                if self.answers.len() >= ANSWERS_MAX
                    || self.pending_events.len() >= PENDING_EVENTS_MAX
                {
                    self.counters.requests_dropped += 1; // the dropped channel closes the stream, which the peer sees
                    return;
                }
                let (reply, answer) = oneshot::channel();
                self.answers
                    .push(Box::pin(async move { (channel, answer.await.ok()) }));
                self.emit(SwarmEvent::Request {
                    peer,
                    payload: request,
                    reply,
                });
            }
            request_response::Event::Message {
                message:
                    request_response::Message::Response {
                        request_id,
                        response,
                    },
                ..
            } => {
                self.requests.handle_response(request_id, response);
            }
            request_response::Event::OutboundFailure {
                request_id, error, ..
            } => {
                let is_homeless = self.is_homeless();
                self.requests
                    .handle_failure(request_id, &error, is_homeless, now);
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "answer not delivered")
            }
            request_response::Event::ResponseSent { .. } => self.counters.requests_answered += 1,
        }
    }

    fn handle_answer(&mut self, channel: ResponseChannel<Vec<u8>>, answer: Option<Vec<u8>>) {
        match answer {
            Some(answer) if answer.len() <= super::PAYLOAD_BYTES_MAX => {
                let _gone = self
                    .swarm
                    .behaviour_mut()
                    .requests
                    .send_response(channel, answer);
            }
            Some(answer) => {
                tracing::warn!(bytes = answer.len(), "an answer is too long to be sent")
            }
            None => {} // dropping the channel tells the peer that there is no answer
        }
    }

    /// Members that nobody can reach directly take places at the relays of the fabric nodes they are connected to. At once and
    /// without waiting for a verdict on their reachability: a place costs little, and joining must be quick.
    fn reserve_where_needed(&mut self, now: Instant) {
        if self.role == Role::Fabric || self.is_public() {
            return;
        }
        let candidates: Vec<(PeerId, Multiaddr)> = self
            .peers
            .iter()
            .filter(|(peer, known)| known.fabric_addresses.is_some() || self.homes.is_home(peer))
            .filter_map(|(peer, known)| Some((*peer, known.direct()?.address.clone())))
            .collect();
        for (peer, address) in candidates {
            let places = self
                .reservations
                .values()
                .filter(|place| place.listener.is_some())
                .count();
            let is_wanted = self
                .reservations
                .get(&peer)
                .is_none_or(|place| place.listener.is_none() && place.retry_at <= now);
            if places >= RESERVATIONS_MAX || !is_wanted {
                continue;
            }
            let place = self.reservations.entry(peer).or_insert(Reservation {
                listener: None,
                is_held: false,
                failures: 0,
                retry_at: now,
            });
            match self
                .swarm
                .listen_on(address.with(Protocol::P2p(peer)).with(Protocol::P2pCircuit))
            {
                Ok(listener) => place.listener = Some(listener),
                Err(error) => {
                    tracing::debug!(relay = %peer, %error, "no place at the relay");
                    place.failures += 1;
                    place.retry_at = now + RESERVE_PAUSE_MAX;
                }
            }
        }
    }

    fn handle_listener_closed(
        &mut self,
        listener: ListenerId,
        error: Option<std::io::Error>,
        now: Instant,
    ) {
        let mut was_place = false;
        for (relay, place) in self
            .reservations
            .iter_mut()
            .filter(|(_, place)| place.listener == Some(listener))
        {
            tracing::debug!(%relay, ?error, "no place at the relay");
            place.listener = None;
            place.is_held = false;
            place.retry_at =
                now + (RESERVE_PAUSE_MIN * 2u32.pow(place.failures.min(8))).min(RESERVE_PAUSE_MAX);
            place.failures += 1;
            was_place = true;
        }
        if !was_place && let Some(error) = error {
            tracing::warn!(%error, "a listener closed");
        }
        self.publish();
    }

    /// Whether a public address of ours was confirmed by somebody who dialed it.
    fn is_public(&self) -> bool {
        self.swarm.external_addresses().any(is_public)
    }

    fn set_dht_mode(&mut self) {
        let mode = if self.role == Role::Fabric || self.is_public() {
            kad::Mode::Server
        } else {
            kad::Mode::Client
        };
        let kad = &mut self.swarm.behaviour_mut().kad;
        if kad.mode() != mode {
            tracing::info!(
                serves = (mode == kad::Mode::Server),
                "part in the DHT changed"
            );
            kad.set_mode(Some(mode));
        }
    }

    /// Tells when the addresses worth publishing have changed: confirmed ones, then circuits, then what is listened on.
    fn publish(&mut self) {
        let me = *self.swarm.local_peer_id();
        let listening = self
            .swarm
            .listeners()
            .filter(|address| !is_circuit(address) && !is_unspecified(address));
        let mut found: Vec<Multiaddr> = self
            .swarm
            .external_addresses()
            .chain(listening)
            .cloned()
            .collect();
        // Stable: confirmed before listened on, as they were found. libp2p's own order changes from call to call.
        found.sort_by_cached_key(|address| {
            (
                !self
                    .swarm
                    .external_addresses()
                    .any(|confirmed| confirmed == address),
                is_circuit(address),
                is_tcp(address),
                address.to_vec(),
            )
        });
        let mut addresses: Vec<String> = Vec::new();
        for address in found {
            let text = split_peer_of(&address, &me).0.to_string();
            if (!is_loopback(&address) || self.speaks_on_loopback || is_circuit(&address))
                && !addresses.contains(&text)
            {
                addresses.push(text);
            }
        }
        addresses.truncate(PUBLISHED_MAX);
        if addresses != self.published {
            self.published.clone_from(&addresses);
            self.emit(SwarmEvent::ListenAddrs(addresses));
        }
    }

    fn emit(&mut self, event: SwarmEvent) {
        if self.pending_events.len() >= PENDING_EVENTS_MAX {
            self.counters.events_dropped += 1;
            return;
        }
        self.pending_events.push_back(event); // order is kept: the loop sends from the front
    }

    fn status(&mut self, now: Instant) -> SwarmStatus {
        let connected = self.peers.iter().filter_map(|(id, peer)| {
            let connection = peer.direct().or_else(|| peer.connections.values().next())?;
            Some(ConnectedPeer {
                peer: from_libp2p(id).ok()?,
                address: connection.address.clone(),
                is_relayed: connection.is_relayed,
                is_fabric: peer.fabric_addresses.is_some(),
                rtt: peer.rtt,
            })
        });
        let connected = connected.collect();
        let listening = self
            .swarm
            .listeners()
            .filter(|address| !is_circuit(address))
            .cloned()
            .collect();
        let reserved = self.reservations.iter().filter(|(_, place)| place.is_held);
        let reserved_at = reserved
            .filter_map(|(relay, _)| from_libp2p(relay).ok())
            .collect();
        let kad = &mut self.swarm.behaviour_mut().kad;
        let (values_stored, values_refused) = kad.store_mut().counts();
        let values_invalid = self.queries.values_invalid;
        SwarmStatus {
            peer: self.own.peer,
            listening,
            published: self.published.clone(),
            is_dht_server: kad.mode() == kad::Mode::Server,
            dht_peers: kad.kbuckets().map(|bucket| bucket.num_entries()).sum(),
            reserved_at,
            connected,
            bootstraps: self.homes.status(now),
            slots_stored: kad.store_mut().len(),
            counters: SwarmCounters {
                values_stored,
                values_refused,
                values_invalid,
                ..self.counters
            },
        }
    }
}

/// `address` without `peer` at its end. Another peer's id stays: the dial is to fail then.
fn split_peer_of(address: &Multiaddr, peer: &PeerId) -> (Multiaddr, bool) {
    match split_peer(address) {
        (bare, Some(named)) if named == *peer => (bare, true),
        _ => (address.clone(), false),
    }
}

/// The relay of a circuit address.
fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    address.iter().find_map(|part| {
        if let Protocol::P2p(peer) = part {
            Some(peer)
        } else {
            None
        }
    })
}

/// What went wrong, address by address, in one line.
fn describe(error: &DialError) -> String {
    match error {
        DialError::Transport(failures) => {
            let each = failures
                .iter()
                .map(|(address, error)| format!("{address}: {}", innermost(error)));
            each.collect::<Vec<_>>().join("; ")
        }
        DialError::NoAddresses => {
            "no address of it is known, and no fabric node is connected through which to reach it"
                .into()
        }
        DialError::WrongPeerId { obtained, .. } => {
            format!("another node answers there: {obtained}")
        }
        other => other.to_string(),
    }
}

/// The last cause in the chain says what the system said.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
