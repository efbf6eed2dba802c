//! One member: what it keeps on disk, and what it knows while it runs. Messages between members, and when anything of
//! this happens, are [`crate::overlay`]'s.

use crate::{guest::Guest, overlay::Offer, service::GuestService, world::HostId};
use dht::{
    directory::Directory,
    identity::Identity,
    lease::{HolderEvent, LeaseCert, LeaseHolder, Registrar, Subject},
    membership::MembershipCert,
    network::Network,
    record::NodeRecord,
    signed::Verified,
};
use overlay_node::dhcp::GuestBinding;
use overlay_types::{Binding, Candidate, DataKeys, Location, MacAddr, Name, PeerId, PortId};
use rand_chacha::ChaCha20Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};
use tunnel::session::LocalKeys;

/// The port of the member's own station.
pub const STATION: PortId = PortId(1);

/// Names a member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(pub usize);

/// Names a station: a member's own, or a guest of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Station {
    /// Whose.
    pub member: MemberId,
    /// Behind which of its ports.
    pub port: PortId,
}

impl From<MemberId> for Station {
    fn from(member: MemberId) -> Self {
        Self {
            member,
            port: STATION,
        }
    }
}

/// Which of a member's leases a question to the registrar is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LeaseOf {
    /// Its own address (and, before that, its admission).
    Node,
    /// The block for its guests.
    Guests,
}

/// A member, running or not.
pub struct Member {
    /// Where it is.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// Ports for guests, in the order in which they were plugged in.
    pub guest_ports: Vec<PortId>,
    /// Guests that are not plugged in, for the node does not run; they are machines of their own and go on.
    pub(crate) unplugged: BTreeMap<PortId, Guest>,
    pub(crate) identity: Identity,
    pub(crate) disk: Disk,
    pub(crate) running: Option<Running>,
    /// Rises with every start: what was meant for an earlier life is dropped.
    pub(crate) life: u32,
}

/// What survives a crash.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) keys: Vec<u8>,
    pub(crate) membership: Option<MembershipCert>,
    pub(crate) lease: Option<LeaseCert>,
    pub(crate) block: Option<LeaseCert>,
    pub(crate) bindings: Vec<GuestBinding>,
    pub(crate) votes: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) has_voted: bool,
    pub(crate) record_seq: u64,
    /// The others' records, so that a restarted node finds them without the DHT.
    pub(crate) peers: Vec<Arc<Verified<NodeRecord>>>,
}

/// What does not.
pub(crate) struct Running {
    pub(crate) holder: Option<LeaseHolder>,
    pub(crate) service: Option<GuestService>,
    pub(crate) registrar: Option<Registrar>,
    pub(crate) directory: Directory,
    pub(crate) candidates: Vec<Candidate>,
    /// Infrastructure nodes that serve it, and others that are connected.
    pub(crate) offers: BTreeMap<HostId, Offer>,
    pub(crate) spare: BTreeSet<HostId>,
    /// Questions to the registrar that were not answered yet.
    pub(crate) asked: BTreeMap<u64, LeaseOf>,
    pub(crate) sync: Sync,
    /// Whether the data plane was told to keep sessions with everybody.
    pub(crate) told_eager: bool,
    /// What the data plane was last told of the stations.
    pub(crate) told_bindings: Vec<Binding>,
    pub(crate) is_refresh_planned: bool,
    pub(crate) is_publish_planned: bool,
    pub(crate) tick_at: Option<Instant>,
}

/// When a member asks for news that no push brought, and for what.
pub(crate) struct Sync {
    pub(crate) at: Instant,
    /// How long to wait before asking again for what is missing.
    pub(crate) retry: Duration,
    /// When records that are known are read again, and when that was done last.
    pub(crate) reread_at: Instant,
    pub(crate) reread_last: Option<Instant>,
    /// When an address that nobody seems to have last made it ask.
    pub(crate) wanted_last: Option<Instant>,
    /// Until where that was done; the others are next.
    pub(crate) reread_after: Option<PeerId>,
    pub(crate) missing: usize,
    /// How many members there are, by the roster.
    pub(crate) roster: usize,
}

impl Sync {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            at: now,
            retry: SYNC_RETRY,
            reread_at: now,
            reread_last: None,
            wanted_last: None,
            reread_after: None,
            missing: 0,
            roster: 0,
        }
    }
}

/// How soon a member asks again while records are missing, at first; then after twice as long each time.
pub(crate) const SYNC_RETRY: Duration = Duration::from_millis(500);

impl Member {
    /// A machine on which nothing was ever started.
    pub(crate) fn new(host: HostId, name: Name, rng: &mut ChaCha20Rng) -> Self {
        let keys = LocalKeys::generate(rng).to_bytes().to_vec();
        Self {
            host,
            name,
            guest_ports: Vec::new(),
            unplugged: BTreeMap::new(),
            identity: Identity::generate(rng),
            disk: Disk {
                keys,
                ..Disk::default()
            },
            running: None,
            life: 0,
        }
    }

    /// Who it is.
    pub fn peer(&self) -> PeerId {
        self.identity.peer_id()
    }

    /// The Ethernet address of its station.
    pub fn mac(&self) -> MacAddr {
        self.peer().host_mac()
    }

    /// Whether it runs.
    pub const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The lease it may use now.
    pub fn lease(&self) -> Option<&LeaseCert> {
        self.running.as_ref()?.holder.as_ref()?.lease()
    }

    /// The address it may use now.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self.lease()?.subject {
            Subject::Address(address) => Some(address),
            Subject::Block(_) => None,
        }
    }

    /// How many other members it knows by their records.
    pub fn peers_known(&self) -> usize {
        self.running
            .as_ref()
            .map_or(0, |running| running.directory.peers().count())
    }

    pub(crate) fn keys(&self) -> LocalKeys {
        LocalKeys::from_bytes(&self.disk.keys).expect("they were written by `to_bytes`")
    }

    fn public(&self) -> DataKeys {
        self.keys().public()
    }

    /// What it says of itself, once it is a member.
    pub(crate) fn record(&mut self, network: &Network, unix: u64) -> Option<Verified<NodeRecord>> {
        let membership = self.disk.membership.clone()?;
        let candidates = self.running.as_ref()?.candidates.clone();
        self.disk.record_seq = (self.disk.record_seq + 1).max(unix * 1000);
        let service = self
            .running
            .as_ref()
            .and_then(|running| running.service.as_ref());
        let block = service.and_then(|service| service.block.lease());
        let leases = self.lease().into_iter().chain(block).cloned().collect();
        let guests = service.map_or_else(Vec::new, GuestService::records);
        let record = NodeRecord {
            peer: self.peer(),
            network: network.id(),
            seq: self.disk.record_seq,
            expires: unix + 7200,
            keys: self.public(),
            candidates,
            control: Vec::new(),
            membership,
            leases,
            guests,
            nat: (String::new(), String::new()),
            lan: None,
        };
        Some(
            Verified::sign(record, &self.identity)
                .expect("a record with two leases and few guests is small"),
        )
    }

    /// Which addresses are where, as it knows it, if that is not what its data plane was told last.
    pub(crate) fn news_of_stations(&mut self, unix: u64) -> Option<Vec<Binding>> {
        let (mac, location) = (self.mac(), Location::Port(STATION));
        let own = self.address().map(|ip| Binding {
            ip: ip.into(),
            mac,
            location,
        });
        let running = self.running.as_mut()?;
        let mut bindings = running.directory.bindings(unix).to_vec();
        bindings.extend(own);
        bindings.extend(running.service.iter().flat_map(GuestService::bindings));
        (bindings != running.told_bindings).then(|| {
            running.told_bindings.clone_from(&bindings);
            bindings
        })
    }

    /// What its lease machines said since they were last asked.
    pub(crate) fn holder_events(&mut self) -> Vec<(LeaseOf, HolderEvent)> {
        let mut events = Vec::new();
        for of in [LeaseOf::Node, LeaseOf::Guests] {
            while let Some(event) = self.holder(of).and_then(LeaseHolder::poll_event) {
                events.push((of, event));
            }
        }
        events
    }

    /// One of its lease machines, if it has it now.
    pub(crate) fn holder(&mut self, of: LeaseOf) -> Option<&mut LeaseHolder> {
        let running = self.running.as_mut()?;
        match of {
            LeaseOf::Node => running.holder.as_mut(),
            LeaseOf::Guests => running.service.as_mut().map(|service| &mut service.block),
        }
    }

    /// When one of its machines wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        let holder = running.holder.as_ref().and_then(LeaseHolder::poll_timeout);
        let registrar = running.registrar.as_ref().and_then(Registrar::poll_timeout);
        let service = running
            .service
            .as_ref()
            .and_then(GuestService::poll_timeout);
        holder
            .into_iter()
            .chain(registrar)
            .map(|(at, _)| at)
            .chain(service)
            .min()
    }
}
