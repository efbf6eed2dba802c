//! One member: what it keeps on disk, and what it knows while it runs. Messages between members, and when anything of
//! this happens, are [`crate::overlay`]'s.

use crate::world::HostId;
use dht::{
    directory::Directory,
    identity::Identity,
    lease::{HolderEvent, LeaseCert, LeaseHolder, Registrar, Subject},
    membership::MembershipCert,
    network::Network,
    record::NodeRecord,
    signed::Verified,
};
use overlay_types::{Binding, Candidate, DataKeys, Location, MacAddr, Name, PeerId, PortId};
use rand_chacha::ChaCha20Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Instant,
};
use tunnel::{relay::RelayGrant, session::LocalKeys};

/// The port of the member's own station.
pub const STATION: PortId = PortId(1);

/// Names a member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(pub usize);

/// A member, running or not.
pub struct Member {
    /// Where it is.
    pub host: HostId,
    /// Its name.
    pub name: Name,
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
    pub(crate) votes: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) has_voted: bool,
    pub(crate) record_seq: u64,
}

/// What does not.
pub(crate) struct Running {
    pub(crate) holder: Option<LeaseHolder>,
    pub(crate) registrar: Option<Registrar>,
    pub(crate) directory: Directory,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) grants: BTreeMap<HostId, RelayGrant>,
    /// Questions to the registrar that were not answered yet.
    pub(crate) asked: BTreeSet<u64>,
    pub(crate) is_refresh_planned: bool,
    pub(crate) is_publish_planned: bool,
    pub(crate) tick_at: Option<Instant>,
}

impl Member {
    /// A machine on which nothing was ever started.
    pub(crate) fn new(host: HostId, name: Name, rng: &mut ChaCha20Rng) -> Self {
        let keys = LocalKeys::generate(rng).to_bytes().to_vec();
        Self {
            host,
            name,
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
        let record = NodeRecord {
            peer: self.peer(),
            network: network.id(),
            seq: self.disk.record_seq,
            expires: unix + 7200,
            keys: self.public(),
            candidates,
            control: Vec::new(),
            membership,
            leases: self.lease().cloned().into_iter().collect(),
            guests: Vec::new(),
            nat: (String::new(), String::new()),
            lan: None,
        };
        Some(Verified::sign(record, &self.identity).expect("a record with one lease is small"))
    }

    /// Which addresses are where, as it knows it.
    pub(crate) fn bindings(&self, unix: u64) -> Vec<Binding> {
        let Some(running) = &self.running else {
            return Vec::new();
        };
        let mut bindings = running.directory.bindings(unix);
        let (mac, location) = (self.mac(), Location::Port(STATION));
        bindings.extend(self.address().map(|ip| Binding {
            ip: ip.into(),
            mac,
            location,
        }));
        bindings
    }

    /// What its lease machine said since it was last asked.
    pub(crate) fn holder_events(&mut self) -> Vec<HolderEvent> {
        let holder = self
            .running
            .as_mut()
            .and_then(|running| running.holder.as_mut());
        holder.map_or_else(Vec::new, |holder| {
            std::iter::from_fn(|| holder.poll_event()).collect()
        })
    }

    /// When its lease machine or its registrar wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let running = self.running.as_ref()?;
        let holder = running.holder.as_ref().and_then(LeaseHolder::poll_timeout);
        let registrar = running.registrar.as_ref().and_then(Registrar::poll_timeout);
        holder.into_iter().chain(registrar).map(|(at, _)| at).min()
    }
}
