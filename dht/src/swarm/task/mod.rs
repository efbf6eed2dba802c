//! The one task that owns the libp2p swarm. It turns commands into libp2p calls and libp2p events into ours, and leaves every
//! decision that takes memory to [`crate::swarm::homes`], [`crate::swarm::queries`] and [`crate::swarm::requests`]. It never waits inside the loop.

mod events;
mod reach;

use crate::slot::Source;
use crate::swarm::behaviour::{Behaviour, BehaviourEvent};
use crate::swarm::handle::{Command, ConnectedPeer, SwarmCounters, SwarmEvent, SwarmStatus};
use crate::swarm::homes::Homes;
use crate::swarm::peer::{
    Hidden, from_libp2p, is_circuit, is_loopback, is_public, is_tcp, is_unspecified,
    is_worth_keeping, split_peer, to_libp2p,
};
use crate::swarm::queries::{Dht, Queries};
use crate::swarm::requests::Requests;
use crate::swarm::{Role, SpawnError, SwarmConfig};
use events::describe;
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
use reach::{RESERVATIONS_MAX, Reservation};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Events kept for a reader that is slow, beyond the channel's own bound; then they are dropped and counted.
const PENDING_EVENTS_MAX: usize = 1024;
/// Addresses tried for one peer.
const DIAL_ADDRESSES_MAX: usize = 12;
/// How often slots that are over are swept out.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(120);
/// How often we look for connections that have gone silent.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
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
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    homes: Homes,
    queries: Queries,
    requests: Requests,
    peers: BTreeMap<PeerId, Peer>,
    reservations: BTreeMap<PeerId, Reservation>,
    lan: BTreeMap<PeerId, Vec<Multiaddr>>,
    hidden: Hidden,
    published: Vec<String>,
    counters: SwarmCounters,
    expire_at: Instant,
    look_at: Instant,
}

/// What goes back to a peer that asked; nothing, when our side gave no answer.
type Answer = (ResponseChannel<Vec<u8>>, Option<Vec<u8>>);

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
    heard_at: Option<Instant>, // the last pong; none when the peer does not speak ping
}

impl Peer {
    fn direct(&self) -> Option<&Connection> {
        self.connections
            .values()
            .find(|connection| !connection.is_relayed)
    }
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
        let mut task = Self {
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
            hidden: Hidden::default(),
            published: Vec::new(),
            counters: SwarmCounters::default(),
            expire_at: now + EXPIRE_INTERVAL,
            look_at: now + LOOK_INTERVAL,
        };
        task.set_dht_mode(); // an address that the operator names counts as confirmed
        Ok(task)
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
            .fold(self.expire_at.min(self.look_at), Instant::min)
    }

    fn do_what_is_due(&mut self, now: Instant) {
        self.queries.handle_timeout(
            Dht {
                kad: &mut self.swarm.behaviour_mut().kad,
                own: self.own,
            },
            now,
        );
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
        if self.look_at <= now {
            self.close_silent_connections(now);
            self.look_at = now + LOOK_INTERVAL;
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
                Dht {
                    kad: &mut self.swarm.behaviour_mut().kad,
                    own: self.own,
                },
                now,
            ),
            Command::GetSlot { key, reply } => self.queries.get(
                key,
                reply,
                Dht {
                    kad: &mut self.swarm.behaviour_mut().kad,
                    own: self.own,
                },
                now,
            ),
            Command::Request {
                peer,
                addresses,
                payload,
                reply,
            } => match to_libp2p(peer) {
                Ok(peer) => self.requests.add(peer, addresses, payload, reply, now),
                Err(_) => drop(reply.send(Err(crate::swarm::RequestError::Unsupported))),
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
            Command::SetHidden { ranges } => {
                self.hidden = Hidden::new(ranges);
                self.publish();
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
            .chain(self.lan.get(&peer).into_iter().flatten().cloned())
            .filter(|address| !self.hidden.contains(address));
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
