//! This node's place in one network: what it keeps on disk, and the cores and services that it runs for it.

use super::registrar::RegistrarShell;
use crate::{
    dhcp::{Block, DhcpServer},
    dns::{DnsServer, Names},
    mdns::MdnsResponder,
    state::Dir,
};
use arc_swap::ArcSwap;
use dht::{
    directory::Directory,
    lease::{LeaseCert, LeaseHolder, Subject},
    membership::MembershipCert,
    network::{Genesis, NetworkSecret, SignedDocument},
    record::{ControlPoint, LanRecord, NodeRecord},
    signed::Signed,
};
use overlay_types::{
    Binding, DhcpMode, MacAddr, Name, NetworkId, PathAddr, PeerId, PortId, PortKind, Subnet,
    api::{AddPort, NetworkStatus},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tunnel::session::LocalKeys;

/// What outlives a restart, in the file `network`.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) genesis: Genesis,
    pub(super) documents: Vec<SignedDocument>,
    pub(super) secret: NetworkSecret,
    pub(super) membership: MembershipCert,
    pub(super) data_keys: Vec<u8>,
    pub(super) registrars: Vec<ControlPoint>,
    pub(super) bootstrap: Vec<String>,
    pub(super) tap: Option<String>,
    /// The first joined is the default network.
    pub(super) order: u32,
}

/// Names one of the node's leases in a network: 0 is its own address, the others are blocks for guests.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct HolderId(pub(super) u16);

/// The node's own address.
pub(super) const OWN_ADDRESS: HolderId = HolderId(0);

/// A guest behind one of our ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalGuest {
    pub(super) port: PortId,
    pub(super) ip: Option<IpAddr>,
    pub(super) name: Option<Name>,
}

/// A port that the user plugged in.
pub(super) struct GuestPort {
    pub(super) id: PortId,
    pub(super) request: AddPort,
    pub(super) tap: String,
    /// Joined to the TAP by a bridge, to be undone.
    pub(super) attached: bool,
}

/// The LAN behind this gateway.
pub(super) struct LanPort {
    pub(super) id: Option<PortId>,
    pub(super) iface: String,
    pub(super) tap: Option<String>,
    pub(super) bridge: String,
    pub(super) bridge_made: bool,
    pub(super) route_hint: Option<String>,
    /// What other nodes are told of it.
    pub(super) record: LanRecord,
}

/// This node in one network.
pub(super) struct Member {
    pub(super) id: NetworkId,
    pub(super) order: u32,
    pub(super) dir: Dir,
    pub(super) directory: Directory,
    pub(super) secret: NetworkSecret,
    pub(super) keys: LocalKeys,
    pub(super) membership: MembershipCert,
    pub(super) registrars: Vec<ControlPoint>,
    pub(super) bootstrap: Vec<String>,
    pub(super) tap: String,
    pub(super) tap_wanted: Option<String>,
    pub(super) tap_index: u32,
    pub(super) host_port: PortId,
    pub(super) holders: BTreeMap<HolderId, LeaseHolder>,
    /// The address that the TAP carries now.
    pub(super) configured: Option<Ipv4Addr>,
    pub(super) registrar: Option<RegistrarShell>,
    pub(super) dhcp: DhcpServer,
    pub(super) names: Arc<ArcSwap<Names>>,
    pub(super) dns: Option<DnsServer>,
    pub(super) guests: BTreeMap<MacAddr, LocalGuest>,
    /// Names that guests of a LAN-served network gave when they asked for an address.
    pub(super) snooped_names: BTreeMap<MacAddr, Name>,
    pub(super) ports: Vec<GuestPort>,
    pub(super) lan: Option<LanPort>,
    /// LANs behind other gateways, and through whom.
    pub(super) lan_routes: BTreeMap<Subnet, Ipv4Addr>,
    /// Answers the LAN's questions for names of the network.
    pub(super) mdns: Option<MdnsResponder>,
    /// Somebody's address, name or way in changed: bindings and names must be told anew.
    pub(super) changed: bool,
    /// Whether the data plane was told to keep sessions with everybody.
    pub(super) told_eager: bool,
    /// What the data plane was last told of the stations.
    pub(super) told_bindings: Vec<Binding>,
    pub(super) publish_at: Option<Instant>,
    /// When what is known of the peers is written.
    pub(super) peers_save_at: Option<Instant>,
    pub(super) sync_at: Instant,
    pub(super) syncing: bool,
    pub(super) sync_again: bool,
    /// How long to wait before asking again for what is missing.
    pub(super) sync_retry: Duration,
    /// When records that are known are read again, in case a push was lost.
    pub(super) reread_at: Instant,
    pub(super) reread_last: Option<Instant>,
    /// When an address that nobody seems to have last made us ask for those of whom none is known.
    pub(super) wanted_last: Option<Instant>,
    /// Until where that was done last; the others are next.
    pub(super) reread_after: Option<PeerId>,
    /// Until then a newcomer waits for the first news of the other members before it calls itself ready.
    pub(super) acquainted_by: Option<Instant>,
    pub(super) roster_next: u64,
    /// The path that was last in use to each peer.
    pub(super) paths: BTreeMap<PeerId, PathAddr>,
    pub(super) own_record: Option<Signed<NodeRecord>>,
    pub(super) renewing: bool,
    pub(super) renew_retry_at: Option<Instant>,
    pub(super) waiting: Vec<oneshot::Sender<crate::api::Answer<NetworkStatus>>>,
    /// Why there is no address yet.
    pub(super) problem: Option<String>,
}

/// Callers of `create` and `join` wait at most so many at a time.
pub(super) const WAITING_MAX: usize = 16;

impl Member {
    /// The network's name.
    pub(super) fn name(&self) -> &Name {
        self.directory.network().name()
    }

    /// Where its addresses come from.
    pub(super) fn subnet(&self) -> Subnet {
        self.directory.network().document().subnet
    }

    /// Who serves them.
    pub(super) fn dhcp_mode(&self) -> DhcpMode {
        self.directory.network().document().dhcp
    }

    /// The largest IP packet of its stations.
    pub(super) fn mtu(&self) -> u16 {
        self.directory.network().document().mtu
    }

    /// The lease of the node's own address, while it may be used.
    pub(super) fn own_lease(&self) -> Option<&LeaseCert> {
        self.holders.get(&OWN_ADDRESS)?.lease()
    }

    /// The node's own address.
    pub(super) fn address(&self) -> Option<Ipv4Addr> {
        match self.own_lease()?.subject {
            Subject::Address(address) => Some(address),
            Subject::Block(_) => None,
        }
    }

    /// Whether the TAP carries the node's address and others can be reached by name.
    pub(super) fn is_ready(&self) -> bool {
        self.configured.is_some() && self.acquainted_by.is_none()
    }

    /// Every lease that may be used now.
    pub(super) fn leases(&self) -> Vec<LeaseCert> {
        self.holders
            .values()
            .filter_map(|holder| holder.lease().cloned())
            .collect()
    }

    /// The blocks among them, as the DHCP server wants them.
    pub(super) fn blocks(&self) -> Vec<Block> {
        let block = |cert: &LeaseCert| match cert.subject {
            Subject::Block(subnet) => Some(Block {
                range: subnet,
                until: cert.usable_until(),
            }),
            Subject::Address(_) => None,
        };
        self.leases().iter().filter_map(block).collect()
    }

    /// Interfaces that are ours.
    pub(super) fn interfaces(&self) -> Vec<String> {
        let ports = self.ports.iter().map(|port| port.tap.clone());
        let lan = self.lan.iter().filter_map(|lan| lan.tap.clone());
        std::iter::once(self.tap.clone())
            .chain(ports)
            .chain(lan)
            .collect()
    }

    /// Time passed, for every core.
    pub(super) fn handle_timeout(&mut self, now: Instant, unix: u64) {
        for holder in self.holders.values_mut() {
            if holder.poll_timeout().is_some_and(|(at, _)| at <= now) {
                holder.handle_timeout(now, unix);
            }
        }
        if let Some(shell) = &mut self.registrar
            && shell.core.poll_timeout().is_some_and(|(at, _)| at <= now)
        {
            shell.core.handle_timeout(now, unix);
        }
        if self.dhcp.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.dhcp.handle_timeout(now, unix);
        }
        if self.acquainted_by.is_some_and(|at| at <= now) {
            self.acquainted_by = None;
        }
        self.changed |= self.directory.expire(unix);
    }

    /// When to be called again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let holders = self
            .holders
            .values()
            .filter_map(|holder| holder.poll_timeout().map(|(at, _)| at));
        let registrar = self
            .registrar
            .as_ref()
            .and_then(|shell| shell.core.poll_timeout().map(|(at, _)| at));
        let dhcp = self.dhcp.poll_timeout().map(|(at, _)| at);
        holders
            .chain(registrar)
            .chain(dhcp)
            .chain(self.publish_at)
            .chain(self.peers_save_at)
            .chain(self.acquainted_by)
            .chain([self.sync_at])
            .min()
    }

    /// What the `network` file holds.
    pub(super) fn stored(&self) -> Stored {
        let network = self.directory.network();
        Stored {
            genesis: network.genesis().clone(),
            documents: network.documents().to_vec(),
            secret: self.secret.clone(),
            membership: self.membership.clone(),
            data_keys: self.keys.to_bytes().to_vec(),
            registrars: self.registrars.clone(),
            bootstrap: self.bootstrap.clone(),
            tap: self.tap_wanted.clone(),
            order: self.order,
        }
    }

    /// Has the node's record published in a moment, together with whatever else changes until then.
    pub(super) fn publish_soon(&mut self) {
        let at = Instant::now() + PUBLISH_DELAY;
        self.publish_at = Some(self.publish_at.map_or(at, |planned| planned.min(at)));
    }

    /// The port that carries this kind of frames for `mac`.
    pub(super) fn guest_port(&self, id: PortId) -> Option<&GuestPort> {
        self.ports
            .iter()
            .find(|port| port.id == id && port.request.kind == PortKind::Guest)
    }
}

/// Changes within this time travel in one record.
const PUBLISH_DELAY: Duration = Duration::from_millis(100);
