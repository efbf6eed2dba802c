//! Ways into a network and out of it: making one, being let into one, taking one up again after a restart, leaving.

use super::{
    NodeError,
    actor::{Answerer, Done, JoinAsked, Node},
    admission::{JOIN_WITHIN, Joined, join, reach_fabric},
    calls::refuse,
    membership::{LocalGuest, Member, OWN_ADDRESS, Stored, WAITING_MAX},
    records::{SYNC_EVERY, SYNC_RETRY},
    registrar::RegistrarShell,
    unix_now,
};
use crate::{
    api::Answer,
    dhcp::{DhcpConfig, DhcpServer},
    dns::Names,
    state::StateError,
};
use arc_swap::ArcSwap;
use dht::{
    directory::Directory,
    invite::Invite,
    lease::{LeaseCert, LeaseHolder, Transaction, holder::Want},
    membership::MembershipCert,
    network::{Genesis, MTU_DEFAULT, Network, NetworkDocument, NetworkSecret},
    record::ControlPoint,
};
use overlay_types::{
    MacAddr, Name, NetworkId, PortKind, Subnet,
    api::{ApiError, CreateNetwork, JoinNetwork, NetworkStatus},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tracing::{info, warn};
use tunnel::{
    engine::Command,
    io::{DataPlane, Tap, TapError},
    session::LocalKeys,
};

/// The subnet of a network whose owner names none.
const SUBNET_DEFAULT: &str = "10.77.0.0/16";
/// How long a newcomer waits for news of the other members at most, before it calls itself ready without.
const ACQUAINTED_WITHIN: Duration = Duration::from_secs(2);
/// Everything that makes a member, fresh or from disk.
struct Membership {
    network: Network,
    secret: NetworkSecret,
    keys: LocalKeys,
    certificate: MembershipCert,
    registrars: Vec<ControlPoint>,
    bootstrap: Vec<String>,
    tap: Option<String>,
    order: u32,
}

impl Node {
    /// `farlan up --invite`.
    pub(super) fn begin_up_join(&mut self, invite: Invite) {
        let asked = JoinAsked {
            node_name: self.node_name(None),
            tap: self.config.tap.as_ref().map(|tap| tap.as_str().to_owned()),
            bootstrap: invite.bootstrap.clone(),
            answer: Answerer::Up,
        };
        match self.check_tap(asked.tap.as_deref()) {
            Ok(()) => self.begin_join(invite, asked),
            Err(reason) => self.fail(NodeError::Join(reason)),
        }
    }

    /// Whether a TAP can be made: found out before an invite is used up.
    fn check_tap(&self, wanted: Option<&str>) -> Result<(), String> {
        make_tap(
            &self.plane,
            wanted,
            self.next_order(),
            self.me.host_mac(),
            MTU_DEFAULT,
        )
        .map(drop)
        .map_err(|e| e.to_string())
    }

    /// `farlan network join`.
    pub(super) fn join_network(
        &mut self,
        request: JoinNetwork,
        reply: oneshot::Sender<Answer<NetworkStatus>>,
    ) {
        let invite = match request.token.parse::<Invite>() {
            Ok(invite) => invite,
            Err(error) => return answer(reply, refuse(error)),
        };
        if let Err(error) = invite.check_expiry(unix_now()) {
            return answer(reply, refuse(error));
        }
        if let Some(member) = self.networks.get(&invite.network) {
            let status = self.network_status(member);
            return answer(reply, Ok(status));
        }
        if let Err(reason) = self.check_tap(request.tap.as_deref()) {
            return answer(reply, refuse(format!("cannot join: {reason}")));
        }
        let asked = JoinAsked {
            node_name: self.node_name(request.node_name),
            tap: request.tap,
            bootstrap: invite.bootstrap.clone(),
            answer: Answerer::Api(reply),
        };
        self.begin_join(invite, asked);
    }

    fn begin_join(&mut self, invite: Invite, asked: JoinAsked) {
        let (swarm, name) = (self.swarm.clone(), asked.node_name.clone());
        self.job(async move {
            let outcome = join(&swarm, &invite, name).await;
            Done::Joined { asked, outcome }
        });
    }

    /// A join has ended.
    pub(super) async fn handle_joined(
        &mut self,
        asked: JoinAsked,
        outcome: Result<Box<Joined>, String>,
    ) {
        let JoinAsked {
            tap,
            bootstrap,
            answer: answerer,
            ..
        } = asked;
        let added = match outcome {
            Ok(joined) => self.add_joined(*joined, tap, bootstrap).await,
            Err(reason) => Err(reason),
        };
        match (added, answerer) {
            (Ok(id), Answerer::Api(reply)) => self.wait_until_ready(id, reply),
            (Ok(_), Answerer::Up) => self.await_ready(),
            (Err(reason), Answerer::Api(reply)) => {
                answer(reply, refuse(format!("cannot join: {reason}")))
            }
            (Err(reason), Answerer::Up) => self.fail(NodeError::Join(reason)),
        }
    }

    async fn add_joined(
        &mut self,
        joined: Joined,
        tap: Option<String>,
        bootstrap: Vec<String>,
    ) -> Result<NetworkId, String> {
        let Joined { network, admission } = joined;
        let roster = admission.roster.members;
        let membership = Membership {
            network,
            secret: admission.secret,
            keys: LocalKeys::generate(&mut self.rng),
            certificate: admission.membership,
            registrars: admission.registrars,
            bootstrap,
            tap,
            order: self.next_order(),
        };
        let id = self.add_new_member(membership).await?;
        let unix = unix_now();
        if let Some(member) = self.networks.get_mut(&id) {
            for cert in roster {
                if let Err(error) = member.directory.insert_member(cert, unix) {
                    warn!(%error, "a registrar told of a member that is none");
                }
            }
        }
        self.keep_new(id).await
    }

    /// `farlan network create`. A fabric that was named has to answer first: nobody could be invited into the network else.
    pub(super) async fn create_network(
        &mut self,
        request: CreateNetwork,
        reply: oneshot::Sender<Answer<NetworkStatus>>,
    ) {
        for address in &request.bootstrap {
            match address.parse() {
                Ok(parsed) => self.swarm.add_bootstrap(parsed).await,
                Err(error) => {
                    let why = format!(
                        "'{address}' is not a bootstrap address ({error}); copy one that `farlan fabric` prints"
                    );
                    return answer(reply, refuse(why));
                }
            }
        }
        if request.bootstrap.is_empty() {
            return self.handle_fabric_reached(request, reply, Ok(())).await;
        }
        let swarm = self.swarm.clone();
        self.job(async move {
            let outcome = reach_fabric(&swarm).await;
            Done::FabricReached {
                request: Box::new(request),
                reply,
                outcome,
            }
        });
    }

    /// The network can be made, or there is no fabric for it.
    pub(super) async fn handle_fabric_reached(
        &mut self,
        request: CreateNetwork,
        reply: oneshot::Sender<Answer<NetworkStatus>>,
        outcome: Result<(), String>,
    ) {
        let created = match outcome {
            Ok(()) => self.create(request).await,
            Err(reason) => Err(reason),
        };
        match created {
            Ok(id) => self.wait_until_ready(id, reply),
            Err(reason) => answer(reply, refuse(reason)),
        }
    }

    async fn create(&mut self, request: CreateNetwork) -> Result<NetworkId, String> {
        if self
            .networks
            .values()
            .any(|member| *member.name() == request.name)
        {
            return Err(format!(
                "this node is in a network '{}' already; choose another name",
                request.name
            ));
        }
        let subnet = match request.subnet {
            Some(subnet) => subnet,
            None => SUBNET_DEFAULT
                .parse::<Subnet>()
                .map_err(|e| e.to_string())?,
        };
        let mut bootstrap = request.bootstrap;
        bootstrap.extend(self.config.bootstrap.iter().map(ToString::to_string));
        bootstrap.sort();
        bootstrap.dedup();
        let mut genesis = Genesis::new(&mut self.rng, request.name, subnet, request.dhcp, self.me);
        genesis.mtu = request.mtu.unwrap_or(genesis.mtu);
        let network = Network::new(genesis).map_err(|e| e.to_string())?;
        self.check_subnet(subnet).await?;
        let node_name = self.node_name(request.node_name);
        let certificate = self
            .admit_myself(&network, node_name)
            .inspect_err(|_| self.forget(network.id()))?;
        let membership = Membership {
            network,
            secret: NetworkSecret::generate(&mut self.rng),
            keys: LocalKeys::generate(&mut self.rng),
            certificate,
            registrars: Vec::new(),
            bootstrap,
            tap: request.tap,
            order: self.next_order(),
        };
        let id = self.add_new_member(membership).await?;
        self.keep_new(id).await
    }

    /// As [`Self::add_member`] for a network that was not there before.
    async fn add_new_member(&mut self, membership: Membership) -> Result<NetworkId, String> {
        let id = membership.network.id();
        let added = self.add_member(membership, None).await;
        if added.is_err() {
            self.forget(id);
        }
        added
    }

    /// Nothing of a network that never was stays behind.
    fn forget(&self, id: NetworkId) {
        if let Err(error) = self.state.remove_network(id) {
            warn!(%error, "cannot remove what was begun");
        }
    }

    /// The owner is admitted as everybody else is: by its registrars, of which it is the only one.
    fn admit_myself(&mut self, network: &Network, name: Name) -> Result<MembershipCert, String> {
        let dir = self
            .state
            .network(network.id())
            .map_err(|e| e.to_string())?;
        let mut shell = RegistrarShell::open(&self.identity, network, &dir, true, &mut self.rng)?;
        let transaction = Transaction::Admit {
            token: Vec::new(),
            name,
            unix: unix_now(),
        };
        shell.transact_at_once(self.me, transaction)
    }

    /// Takes a network of an earlier run up again.
    pub(super) async fn resume(&mut self, id: NetworkId, stored: Stored) -> Result<(), NodeError> {
        let damaged = |why: String| {
            NodeError::Join(format!(
                "the stored network {} cannot be used: {why}; leave it and join again",
                id.short()
            ))
        };
        let mut network = Network::new(stored.genesis).map_err(|e| damaged(e.to_string()))?;
        for document in stored.documents {
            network
                .apply(document)
                .map_err(|e| damaged(e.to_string()))?;
        }
        for address in stored.bootstrap.iter().filter_map(|a| a.parse().ok()) {
            self.swarm.add_bootstrap(address).await;
        }
        let membership = Membership {
            network,
            secret: stored.secret,
            keys: LocalKeys::from_bytes(&stored.data_keys).map_err(|e| damaged(e.to_string()))?,
            certificate: stored.membership,
            registrars: stored.registrars,
            bootstrap: stored.bootstrap,
            tap: stored.tap,
            order: stored.order,
        };
        let leases = self
            .state
            .network(id)?
            .load::<Vec<LeaseCert>>("leases")?
            .unwrap_or_default();
        self.add_member(membership, Some(leases))
            .await
            .map_err(NodeError::Join)?;
        self.restore_peers(id);
        self.restore_ports(id).await;
        Ok(())
    }

    /// Makes the TAP, tells the data plane, and begins to hold an address.
    async fn add_member(
        &mut self,
        membership: Membership,
        stored_leases: Option<Vec<LeaseCert>>,
    ) -> Result<NetworkId, String> {
        let Membership {
            network,
            secret,
            keys,
            certificate,
            registrars,
            bootstrap,
            tap: tap_wanted,
            order,
        } = membership;
        let (id, document) = (network.id(), network.document().clone());
        self.check_subnet(document.subnet).await?;
        let dir = self.state.network(id).map_err(|e| e.to_string())?;
        let fresh = stored_leases.is_none();
        let registrar = if network.group().contains(self.me) {
            Some(RegistrarShell::open(
                &self.identity,
                &network,
                &dir,
                false,
                &mut self.rng,
            )?)
        } else {
            None
        };
        let is_registrar = registrar.is_some();
        let mac = self.me.host_mac();
        let tap = make_tap(&self.plane, tap_wanted.as_deref(), order, mac, document.mtu)
            .map_err(|e| e.to_string())?;
        let (tap_name, tap_index) = (tap.name().to_owned(), tap.ifindex());
        let address6 = self.me.address6(id);
        let addressed = async {
            self.netlink.set_up(tap_index, true).await?;
            self.netlink
                .add_address(tap_index, IpAddr::V6(address6), 64)
                .await
        };
        addressed.await.map_err(|e| e.to_string())?;

        let stored_keys = keys.to_bytes();
        let for_plane = LocalKeys::from_bytes(&stored_keys).map_err(|e| e.to_string())?;
        let host_port = self.new_port();
        self.tell(Command::AddNetwork {
            id,
            me: self.me,
            keys: for_plane,
            psk: secret.psk(id),
            dhcp: document.dhcp,
            mtu: document.mtu,
        });
        self.plane
            .add_port(id, host_port, PortKind::Host, vec![mac], tap);

        let (now, unix) = (Instant::now(), unix_now());
        let mut holders = BTreeMap::new();
        let want = Want::Address {
            mac,
            name: Some(certificate.name.clone()),
        };
        let mut stored_leases = stored_leases.unwrap_or_default().into_iter();
        let own = stored_leases.clone().find(|cert| cert.mac.is_some());
        holders.insert(
            OWN_ADDRESS,
            LeaseHolder::new(self.identity.clone(), want, own, now, unix),
        );
        let name = network.name().clone();
        let mut member = Member {
            id,
            order,
            dir,
            directory: Directory::new(self.me, network),
            secret,
            keys,
            membership: certificate.clone(),
            registrars,
            bootstrap,
            tap: tap_name,
            tap_wanted,
            tap_index,
            host_port,
            holders,
            configured: None,
            registrar,
            dhcp: DhcpServer::new(dhcp_config(&document, Ipv4Addr::UNSPECIFIED, mac)),
            names: Arc::new(ArcSwap::from_pointee(Names::new(
                name,
                id,
                document.subnet,
                order == 0,
            ))),
            dns: None,
            guests: BTreeMap::<_, LocalGuest>::new(),
            snooped_names: BTreeMap::new(),
            ports: Vec::new(),
            lan: None,
            lan_routes: BTreeMap::new(),
            mdns: None,
            changed: true,
            told_eager: true,
            told_bindings: Vec::new(),
            publish_at: None,
            peers_save_at: None,
            sync_at: now,
            syncing: false,
            sync_again: false,
            sync_retry: SYNC_RETRY,
            reread_at: now + SYNC_EVERY,
            reread_last: None,
            wanted_last: None,
            reread_after: None,
            acquainted_by: (fresh && !is_registrar).then(|| now + ACQUAINTED_WITHIN),
            roster_next: 0,
            paths: BTreeMap::new(),
            own_record: None,
            renewing: false,
            renew_retry_at: None,
            waiting: Vec::new(),
            problem: None,
        };
        if let Err(error) = member.directory.insert_member(certificate, unix) {
            warn!(%error, "this node's own membership is not in force");
        }
        let blocks: Vec<_> = stored_leases
            .by_ref()
            .filter(|cert| cert.mac.is_none())
            .collect();
        self.networks.insert(id, member);
        for block in blocks {
            self.hold_block(id, Some(block));
        }
        info!(network = ?id, fresh, "network up");
        self.hide_overlays().await;
        self.look_at_the_host().await;
        Ok(id)
    }

    /// The overlay's own addresses are no way to reach the overlay: neither published nor dialed.
    pub(super) async fn hide_overlays(&self) {
        let hidden = self.networks.values().flat_map(|member| {
            let ula = self.me.address6(member.id);
            [
                (
                    IpAddr::V4(member.subnet().base()),
                    member.subnet().prefix_len(),
                ),
                (IpAddr::V6(ula), 64),
            ]
        });
        // Nor is a link-local address, which means nothing without its link.
        let link_local = (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10);
        self.swarm
            .set_hidden(hidden.chain([link_local]).collect())
            .await;
    }

    async fn check_subnet(&self, subnet: Subnet) -> Result<(), String> {
        let own: BTreeSet<String> = BTreeSet::new();
        if let Some(other) = self
            .networks
            .values()
            .find(|member| member.subnet().overlaps(subnet))
        {
            return Err(format!(
                "its subnet {subnet} overlaps {} of the network '{}' that this node is in; leave that one first, or have the owner choose another subnet (`farlan network create --subnet`)",
                other.subnet(),
                other.name()
            ));
        }
        match self.netlink.overlapping(subnet, &own).await {
            Ok(None) => Ok(()),
            Ok(Some((interface, theirs))) => Err(format!(
                "its subnet {subnet} overlaps {theirs} on this host's {interface}; have the owner choose another subnet (`farlan network create --subnet`)"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Answers once the network carries our address, or tells why it does not.
    fn wait_until_ready(&mut self, id: NetworkId, reply: oneshot::Sender<Answer<NetworkStatus>>) {
        if let Some(member) = self.networks.get_mut(&id)
            && member.waiting.len() < WAITING_MAX
        {
            member.waiting.push(reply);
        }
    }

    /// `up --invite` is ready when the network is.
    fn await_ready(&mut self) {
        self.set_ready_at(Instant::now() + JOIN_WITHIN);
    }

    /// Saves what must outlive a restart.
    pub(super) fn keep(&self, id: NetworkId) {
        if let Err(error) = self.try_keep(id) {
            warn!(%error, "cannot keep the network's state");
        }
    }

    fn try_keep(&self, id: NetworkId) -> Result<(), StateError> {
        let Some(member) = self.networks.get(&id) else {
            return Ok(());
        };
        member.dir.save("network", &member.stored())?;
        member.dir.save("leases", &member.leases())
    }

    /// As [`Self::keep`] for a new network, which is given up where it cannot be kept: a restart would lose it.
    async fn keep_new(&mut self, id: NetworkId) -> Result<NetworkId, String> {
        if let Err(error) = self.try_keep(id) {
            self.take_down(id).await;
            self.forget(id);
            return Err(error.to_string());
        }
        Ok(id)
    }

    /// `farlan network leave`.
    pub(super) async fn leave_network(&mut self, name: &Name) -> Answer<()> {
        let id = self.meant(Some(name))?;
        self.release_leases(id).await;
        self.take_down(id).await;
        self.state.remove_network(id).map_err(|e| ApiError {
            error: e.to_string(),
        })
    }

    /// Stops a network: its names, ports and TAP go; what is on disk stays.
    pub(super) async fn take_down(&mut self, id: NetworkId) {
        self.remove_all_ports(id).await;
        let Some(mut member) = self.networks.remove(&id) else {
            return;
        };
        member.save_peers();
        if let Some(dns) = member.dns.take() {
            dns.stop().await;
        }
        self.forget_names(&member).await;
        self.plane.remove_port(member.host_port);
        self.tell(Command::RemoveNetwork(id));
        for reply in member.waiting {
            answer(reply, refuse("the network was left"));
        }
    }

    fn next_order(&self) -> u32 {
        self.networks
            .values()
            .map(|member| member.order + 1)
            .max()
            .unwrap_or(0)
    }

    fn node_name(&self, asked: Option<Name>) -> Name {
        let host = || {
            let name = rustix::system::uname();
            Name::sanitized(&name.nodename().to_string_lossy())
        };
        asked
            .or_else(|| self.config.node_name.clone())
            .or_else(host)
            .unwrap_or_else(|| {
                format!("node-{}", self.me.short())
                    .to_ascii_lowercase()
                    .parse()
                    .unwrap_or_else(|_| "node".parse().expect("'node' is a label"))
            })
    }
}

/// Names that are tried for a TAP before it is said that they are taken.
const TAP_NAMES: u32 = 64;

/// A network's TAP, of the name that was asked for; else `farlan0` for the first network, or the next name that no other
/// node on this host has.
fn make_tap(
    plane: &DataPlane,
    wanted: Option<&str>,
    order: u32,
    mac: MacAddr,
    mtu: u16,
) -> Result<Tap, TapError> {
    let create = |name: &str| plane.make_tap(Some(name), Some(mac), mtu);
    if let Some(name) = wanted {
        return create(name);
    }
    let mut number = order;
    loop {
        match create(&format!("farlan{number}")) {
            Err(TapError::NameTaken(_)) if number < order + TAP_NAMES => number += 1,
            made => return made,
        }
    }
}

/// What the DHCP server tells guests.
pub(super) fn dhcp_config(network: &NetworkDocument, server: Ipv4Addr, mac: MacAddr) -> DhcpConfig {
    let lease_seconds = network.lease_seconds.min(GUEST_LEASE_SECONDS_MAX);
    DhcpConfig {
        subnet: network.subnet,
        server,
        server_mac: mac,
        router: None,
        dns: vec![server],
        domain: network.zone.clone(),
        mtu: network.mtu,
        lease_time: Duration::from_secs(u64::from(lease_seconds)),
        routes: Vec::new(),
        reservations: BTreeMap::new(),
    }
}

/// Guests renew at least hourly, so that a changed name server or domain reaches them.
const GUEST_LEASE_SECONDS_MAX: u32 = 2 * 3600;

pub(super) fn answer<T>(reply: oneshot::Sender<Answer<T>>, answer: Answer<T>) {
    let _gone = reply.send(answer); // a caller that went away needs no answer
}
