//! The node's task: takes mail, swarm events and deadlines one by one, and hands each to the file that knows it.

use super::{
    NodeError,
    admission::Joined,
    calls::{Call, refuse},
    fabric_client::{Fabric, Place},
    membership::{Member, Stored},
    nat::Nat,
    registrar::Asker,
    unix_now,
};
use crate::{
    config::{DnsMode, RunConfig},
    host::{HostNames, Netlink, NetworkWatch, SleepWatch},
    lan::LanPorts,
    state::State,
    stream::{Carrier, Carriers},
};
use dht::{
    identity::Identity,
    invite::Invite,
    lease::{LeaseCert, Reply},
    membership::MembershipCert,
    message::FabricServices,
    record::NodeRecord,
    signed::Verified,
    swarm::{SwarmEvent, SwarmHandle},
};
use overlay_types::{
    Candidate, Name, NetworkId, PathAddr, PeerId, PortId,
    api::{CreateNetwork, NetworkStatus, Pong, Status},
};
use rand_chacha::ChaCha20Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};
use tunnel::{
    engine::{Command, Event},
    io::DataPlane,
    stun::MappingLifetime,
};

/// What reaches the node's task beside swarm events.
pub(super) enum Mail {
    /// The local API asks.
    Call(Box<Call>),
    /// The data plane tells.
    Plane(Event),
    /// A job is done.
    Done(Box<Done>),
}

/// What jobs bring back.
pub(super) enum Done {
    /// Somebody let us in, or nobody did.
    Joined {
        asked: JoinAsked,
        outcome: Result<Box<Joined>, String>,
    },
    /// The fabric that a new network shall live on was reached, or was not.
    FabricReached {
        request: Box<CreateNetwork>,
        reply: oneshot::Sender<crate::api::Answer<NetworkStatus>>,
        outcome: Result<(), String>,
    },
    /// A registrar answered this node; `None`: none could be asked.
    Registrar {
        network: NetworkId,
        asker: Asker,
        reply: Option<Reply>,
    },
    /// A fabric node told what it offers.
    Fabric {
        peer: PeerId,
        services: Option<FabricServices>,
        place: Place,
    },
    /// A stream to a fabric node's UDP services was opened, or could not be.
    CarrierOpened {
        peer: PeerId,
        carrier: io::Result<Carrier>,
    },
    /// The stream that began at this address of the host has ended by itself.
    CarrierEnded { peer: PeerId, at: SocketAddr },
    /// How long mappings live was measured, in the network that shows itself so; `None`: it could not be.
    LifetimeMeasured {
        outside: IpAddr,
        lifetime: Option<MappingLifetime>,
    },
    /// News from registrars, members and the DHT.
    Synced {
        network: NetworkId,
        members: Vec<MembershipCert>,
        records: Vec<Verified<NodeRecord>>,
        next: Option<u64>,
    },
    /// A member's record was read again.
    Refreshed {
        network: NetworkId,
        records: Vec<Verified<NodeRecord>>,
    },
    /// A member that was called in vain was asked by the control plane; its answer, if it gave one.
    Spoke {
        network: NetworkId,
        record: Option<Verified<NodeRecord>>,
    },
    /// Our records were put into the DHT, or could not be.
    Published { network: NetworkId, stored: bool },
    /// What members say they hold.
    Certificates {
        network: NetworkId,
        certificates: Vec<Vec<LeaseCert>>,
    },
}

/// Who asked to join, and how.
pub(super) struct JoinAsked {
    pub(super) node_name: Name,
    pub(super) tap: Option<String>,
    pub(super) bootstrap: Vec<String>,
    pub(super) answer: Answerer,
}

/// Where it is told that a network carries our address.
pub(super) enum Answerer {
    /// To the local API.
    Api(oneshot::Sender<crate::api::Answer<NetworkStatus>>),
    /// To `farlan up --invite`, for which failing means stopping.
    Up,
}

/// What the task begins with.
pub(super) struct Parts {
    pub(super) config: RunConfig,
    pub(super) state: State,
    pub(super) identity: Identity,
    pub(super) netlink: Netlink,
    pub(super) plane: DataPlane,
    pub(super) swarm: SwarmHandle,
    pub(super) carriers: Carriers,
    pub(super) mail: mpsc::Sender<Mail>,
    pub(super) seed_rng: ChaCha20Rng,
}

/// A ping under way.
pub(super) struct PingWaiting {
    pub(super) reply: oneshot::Sender<crate::api::Answer<Pong>>,
    pub(super) pong: Pong,
    pub(super) until: Instant,
}

/// All that the node's task owns.
pub(super) struct Node {
    pub(super) config: RunConfig,
    pub(super) state: State,
    pub(super) identity: Identity,
    pub(super) me: PeerId,
    pub(super) netlink: Netlink,
    pub(super) plane: DataPlane,
    pub(super) swarm: SwarmHandle,
    pub(super) carriers: Carriers,
    pub(super) mail: mpsc::Sender<Mail>,
    pub(super) rng: ChaCha20Rng,
    pub(super) started: Instant,
    pub(super) networks: BTreeMap<NetworkId, Member>,
    pub(super) fabric: Fabric,
    pub(super) control_addresses: Vec<String>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) nat: Nat,
    pub(super) pings: BTreeMap<u64, PingWaiting>,
    pub(super) next_ping: u64,
    pub(super) next_port: u16,
    pub(super) lan_ports: LanPorts,
    /// How names resolve on the host; `None` when it is left alone.
    pub(super) host_names: Option<HostNames>,
    ready: Option<WhenReady>,
    ready_at: Option<Instant>,
    fatal: Option<NodeError>,
}

/// What `up` does once, when the node is reachable.
type WhenReady = Box<dyn FnOnce(&Status) + Send>;

/// How long `up` waits for the networks of an earlier run before it calls itself ready without an address.
const READY_WITHIN: Duration = Duration::from_secs(10);

impl Node {
    /// Takes up what an earlier run left: heals what a crash left behind, and brings stored networks up.
    pub(super) async fn start(parts: Parts) -> Result<Self, NodeError> {
        let Parts {
            config,
            state,
            identity,
            netlink,
            plane,
            swarm,
            carriers,
            mail,
            seed_rng,
        } = parts;
        let me = identity.peer_id();
        let mut lan_ports = LanPorts::open(netlink.clone(), &state.dir().path("lan"))
            .map_err(|e| NodeError::DataPlane(e.to_string()))?;
        match lan_ports.heal().await {
            Ok(healed) if healed.is_empty() => {}
            Ok(healed) => info!(?healed, "undid what an earlier run left attached"),
            Err(error) => warn!(%error, "cannot undo what an earlier run left attached"),
        }
        let hosts = config.hosts_file.clone();
        let host_names = match config.dns {
            DnsMode::Auto => Some(HostNames::open(hosts).await),
            DnsMode::Resolved => {
                let found = HostNames::open(hosts).await;
                if !found.is_resolved() {
                    warn!("systemd-resolved does not run here: names do not resolve on this host");
                }
                Some(found).filter(HostNames::is_resolved)
            }
            DnsMode::Hosts => Some(HostNames::with_hosts_only(hosts)),
            DnsMode::Off => None,
        };
        let mut node = Self {
            config,
            state,
            identity,
            me,
            netlink,
            plane,
            swarm,
            carriers,
            mail,
            rng: seed_rng,
            started: Instant::now(),
            networks: BTreeMap::new(),
            fabric: Fabric::default(),
            control_addresses: Vec::new(),
            candidates: Vec::new(),
            nat: Nat::default(),
            pings: BTreeMap::new(),
            next_ping: 1,
            next_port: 1,
            lan_ports,
            host_names,
            ready: None,
            ready_at: None,
            fatal: None,
        };
        let mut stored = Vec::new();
        for id in node.state.networks()? {
            if let Some(network) = node.state.network(id)?.load::<Stored>("network")? {
                stored.push((id, network));
            }
        }
        stored.sort_by_key(|(_, network)| network.order);
        for (id, network) in stored {
            node.resume(id, network).await?;
        }
        node.hide_overlays().await;
        node.look_at_the_host().await;
        node.tell(Command::ServeRelay(node.config.relay));
        node.tell_services();
        Ok(node)
    }

    /// Works until told to stop.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Mail>,
        mut swarm_events: mpsc::Receiver<SwarmEvent>,
        invite: Option<Invite>,
        ready: WhenReady,
    ) -> Result<(), NodeError> {
        let stop = self.config.stop.clone();
        let mut network = NetworkWatch::open()?;
        let mut sleep = SleepWatch::open().map_err(|e| NodeError::DataPlane(e.to_string()))?;
        let (mut mapped, mapping) = self.start_port_mapping();
        self.ready = Some(ready);
        match invite {
            Some(invite) if !self.networks.contains_key(&invite.network) => {
                self.begin_up_join(invite)
            }
            _ if self.networks.is_empty() => self.ready_at = Some(Instant::now()),
            _ => self.ready_at = Some(Instant::now() + READY_WITHIN),
        }
        self.settle().await;
        while self.fatal.is_none() {
            let wake = self.next_wake();
            tokio::select! {
                () = stop.cancelled() => break,
                Some(mail) = inbox.recv() => self.handle_mail(mail).await,
                Some(event) = swarm_events.recv() => self.handle_swarm(event),
                Some(()) = network.changed() => self.look_at_the_host().await,
                Ok(slept) = sleep.slept() => {
                    info!(?slept, "woken up");
                    self.tell(Command::NetworkChanged);
                }
                Ok(()) = mapped.changed() => {
                    let mappings = mapped.borrow_and_update().clone();
                    self.ports_mapped(mappings);
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            // Work through what has piled up before the slower settling.
            while let Ok(mail) = inbox.try_recv() {
                self.handle_mail(mail).await;
            }
            self.handle_timeout().await;
            self.settle().await;
        }
        self.shut_down().await;
        let Self {
            plane, fatal, nat, ..
        } = self;
        drop(nat); // nobody tells of uplinks any more: the mappings are given back
        let _panicked = mapping.await;
        plane.stop();
        fatal.map_or(Ok(()), Err)
    }

    async fn handle_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Call(call) => self.handle_call(*call).await,
            Mail::Plane(event) => self.handle_plane(event),
            Mail::Done(done) => self.handle_done(*done).await,
        }
    }

    async fn handle_call(&mut self, call: Call) {
        // A caller that went away needs no answer.
        macro_rules! answer {
            ($reply:expr, $answer:expr) => {{
                let answer = $answer;
                let _gone = $reply.send(answer);
            }};
        }
        match call {
            Call::Status(reply) => answer!(reply, Ok(self.status().await)),
            Call::Create(request, reply) => self.create_network(request, reply).await,
            Call::Join(request, reply) => self.join_network(request, reply),
            Call::Leave(request, reply) => answer!(reply, self.leave_network(&request.name).await),
            Call::Invite(network, request, reply) => {
                answer!(reply, self.create_invite(network.as_ref(), &request))
            }
            Call::Peers(network, reply) => answer!(reply, self.peers(network.as_ref())),
            Call::Leases(network, reply) => answer!(reply, self.leases(network.as_ref())),
            Call::Ping(network, request, reply) => self.ping(network.as_ref(), &request, reply),
            Call::Why(network, request, reply) => self.why(network.as_ref(), &request, reply),
            Call::Doctor(reply) => self.doctor(reply),
            Call::Ports(network, reply) => answer!(reply, self.ports(network.as_ref())),
            Call::AddPort(network, request, reply) => {
                answer!(reply, self.add_port(network.as_ref(), request).await)
            }
            Call::RemovePort(network, request, reply) => {
                answer!(
                    reply,
                    self.remove_port(network.as_ref(), &request.iface).await
                );
            }
            Call::Lans(network, reply) => answer!(reply, self.lans(network.as_ref())),
            Call::AttachLan(network, request, reply) => {
                answer!(
                    reply,
                    self.attach_lan(network.as_ref(), &request.iface).await
                );
            }
            Call::DetachLan(network, reply) => {
                answer!(reply, self.detach_lan(network.as_ref()).await)
            }
        }
    }

    fn handle_plane(&mut self, event: Event) {
        match event {
            Event::CandidatesChanged(candidates) => {
                self.candidates = candidates;
                self.note_outside();
                self.publish_soon();
            }
            Event::NatLearned(behaviour) => {
                self.nat_learned(behaviour);
                self.publish_soon();
            }
            Event::RelayBound(way) => self.relay_bound(way),
            Event::RelaySilent(way) => self.relay_silent(way),
            Event::RelayLost(way) => self.relay_lost(way),
            Event::RelayWanted { via, instead_of } => self.relay_wanted(via, instead_of),
            Event::UnknownPeer { network, x25519 } => self.find_by_data_key(network, x25519),
            Event::PeerUnanswered { network, peer } => {
                self.refresh_record(network, peer);
                self.ask_itself(network, peer);
            }
            Event::AddressWanted { network, ip } => self.find_address(network, ip),
            Event::FramePunted {
                network,
                port,
                frame,
            } => self.handle_punted(network, port, &frame),
            Event::Snooped {
                network,
                from,
                frame,
            } => self.handle_snooped(network, from, &frame),
            Event::Pong { id, rtt, path, mtu } => self.handle_pong(id, rtt, path, mtu),
            Event::SessionUp { network, peer } => info!(?network, ?peer, "session up"),
            Event::SessionDown {
                network,
                peer,
                reason,
            } => {
                info!(?network, ?peer, ?reason, "session down");
                self.refresh_record(network, peer);
            }
            Event::PathChanged {
                network,
                peer,
                path,
                rtt,
                mtu,
            } => self.note_path(network, peer, path, rtt, mtu),
            Event::GuestSeen { network, port, mac } => self.guest_seen(network, port, mac),
            Event::AddressTaken { .. } | Event::MacLearned { .. } => {}
        }
    }

    /// Another path is worth a line; that it was measured anew is not.
    fn note_path(
        &mut self,
        network: NetworkId,
        peer: PeerId,
        path: PathAddr,
        rtt: Duration,
        mtu: u16,
    ) {
        let Some(member) = self.networks.get_mut(&network) else {
            return;
        };
        if member.paths.insert(peer, path) == Some(path) {
            debug!(?network, ?peer, %path, ?rtt, mtu, "path measured");
        } else {
            info!(?network, ?peer, %path, "path changed");
        }
    }

    async fn handle_done(&mut self, done: Done) {
        match done {
            Done::Joined { asked, outcome } => self.handle_joined(asked, outcome).await,
            Done::FabricReached {
                request,
                reply,
                outcome,
            } => self.handle_fabric_reached(*request, reply, outcome).await,
            Done::Registrar {
                network,
                asker,
                reply,
            } => self.handle_registrar_reply(network, asker, reply),
            Done::Fabric {
                peer,
                services,
                place,
            } => self.handle_fabric(peer, services, place),
            Done::CarrierOpened { peer, carrier } => self.carrier_opened(peer, carrier),
            Done::CarrierEnded { peer, at } => self.carrier_ended(peer, at),
            Done::LifetimeMeasured { outside, lifetime } => {
                self.lifetime_measured(outside, lifetime)
            }
            Done::Synced {
                network,
                members,
                records,
                next,
            } => self.handle_synced(network, members, records, next),
            Done::Refreshed { network, records } => self.take_records(network, records),
            Done::Spoke { network, record } => {
                if let Some(record) = record {
                    self.handle_spoke(network, record);
                }
            }
            Done::Published { network, stored } => self.handle_published(network, stored),
            Done::Certificates {
                network,
                certificates,
            } => self.handle_certificates(network, &certificates),
        }
    }

    fn handle_swarm(&mut self, event: SwarmEvent) {
        match event {
            SwarmEvent::Request {
                peer,
                payload,
                reply,
            } => self.handle_request(peer, &payload, reply),
            SwarmEvent::Connected(_) => {} // what it is to us, it tells next
            SwarmEvent::Disconnected(peer) => self.peer_disconnected(peer),
            SwarmEvent::FabricSeen { peer, addresses } => self.fabric_seen(peer, &addresses),
            SwarmEvent::ListenAddrs(addresses) => {
                self.control_addresses = addresses;
                self.publish_soon();
            }
            SwarmEvent::BootstrapUnreachable(status) => {
                warn!(addresses = ?status.addresses, state = ?status.state, "bootstrap unreachable")
            }
        }
    }

    /// Drives whatever has a deadline.
    async fn handle_timeout(&mut self) {
        let (now, unix) = (Instant::now(), unix_now());
        self.expire_pings(now);
        self.fabric_timeout(now);
        self.nat_timeout(now);
        let ids: Vec<_> = self.networks.keys().copied().collect();
        for id in ids {
            let Some(member) = self.networks.get_mut(&id) else {
                continue;
            };
            member.handle_timeout(now, unix);
            if member.peers_save_at.is_some_and(|at| at <= now) {
                member.save_peers();
            }
            self.publish_if_due(id, now);
            self.sync_if_due(id, now);
            self.renew_membership_if_due(id, now, unix);
        }
        if self.ready_at.is_some_and(|at| at <= now) {
            self.say_ready().await;
        }
    }

    /// Drains every core until nothing is left to do.
    async fn settle(&mut self) {
        let ids: Vec<_> = self.networks.keys().copied().collect();
        for id in ids {
            self.drain_registrar(id);
            self.drain_holders(id).await;
            self.drain_dhcp(id);
            self.refresh_if_changed(id).await;
            self.answer_if_ready(id);
        }
        if self.ready_at.is_some()
            && !self.networks.is_empty()
            && self.networks.values().all(Member::is_ready)
        {
            self.say_ready().await;
        }
    }

    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let members = self.networks.values().filter_map(Member::poll_timeout);
        let pings = self.pings.values().map(|ping| ping.until);
        members
            .chain(pings)
            .chain(self.ready_at)
            .chain(self.fabric.poll_timeout())
            .chain(self.nat.poll_timeout())
            .fold(far, Instant::min)
    }

    /// Tells whoever waits that the node runs; once.
    pub(super) async fn say_ready(&mut self) {
        self.ready_at = None;
        if let Some(ready) = self.ready.take() {
            let status = self.status().await;
            ready(&status);
        }
    }

    /// Calls itself ready by then at the latest.
    pub(super) fn set_ready_at(&mut self, at: Instant) {
        self.ready_at = Some(at);
    }

    /// Stops the node with this error.
    pub(super) fn fail(&mut self, error: NodeError) {
        self.fatal.get_or_insert(error);
    }

    /// Runs a job and has its result mailed.
    pub(super) fn job(&self, job: impl Future<Output = Done> + Send + 'static) {
        let mail = self.mail.clone();
        tokio::spawn(async move {
            let done = job.await;
            let _stopping = mail.send(Mail::Done(Box::new(done))).await;
        });
    }

    /// Tells the data plane; a full queue is waited for, as commands must not be lost.
    pub(super) fn tell(&self, command: Command) {
        self.plane.command(command);
    }

    pub(super) fn new_port(&mut self) -> PortId {
        let port = PortId(self.next_port);
        self.next_port = self.next_port.wrapping_add(1).max(1);
        port
    }

    /// Interfaces that are the overlay's own: never candidates, never in the way of a subnet.
    pub(super) fn own_interfaces(&self) -> BTreeSet<String> {
        self.networks
            .values()
            .flat_map(Member::interfaces)
            .collect()
    }

    /// Tells the data plane of the host's addresses and ways out.
    pub(super) async fn look_at_the_host(&mut self) {
        let port = self.plane.local_addr().port();
        match self.netlink.host_addresses(&self.own_interfaces()).await {
            Ok(addresses) => {
                let candidates = addresses.into_iter().map(|ip| (ip, port).into()).collect();
                self.tell(Command::SetHostCandidates(candidates));
            }
            Err(error) => warn!(%error, "cannot list the host's addresses"),
        }
        self.look_at_ways_out().await;
    }

    async fn shut_down(&mut self) {
        let ids: Vec<_> = self.networks.keys().copied().collect();
        for id in ids {
            self.take_down(id).await;
        }
    }

    /// The network meant by a command: the one named, else the default one.
    pub(super) fn meant(
        &self,
        name: Option<&Name>,
    ) -> Result<NetworkId, overlay_types::api::ApiError> {
        let wanted = name.or(self.config.network.as_ref());
        let found = match wanted {
            Some(name) => self.networks.values().find(|member| member.name() == name),
            None => self.networks.values().min_by_key(|member| member.order),
        };
        match (found, wanted) {
            (Some(member), _) => Ok(member.id),
            (None, Some(name)) => {
                let known: Vec<_> = self
                    .networks
                    .values()
                    .map(|member| member.name().as_str())
                    .collect();
                refuse(format!(
                    "this node is in no network '{name}'; it is in: {}",
                    if known.is_empty() {
                        "none".into()
                    } else {
                        known.join(", ")
                    }
                ))
            }
            (None, None) => refuse(
                "this node is in no network; join one with `farlan network join TOKEN` or make one with `farlan network create NAME`",
            ),
        }
    }
}
