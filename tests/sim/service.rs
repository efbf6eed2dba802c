//! What a member's node does for the guests on its ports: it holds a block, answers their DHCP out of it with the real
//! server, and knows who is where.

use dht::{
    identity::Identity,
    lease::{LeaseCert, LeaseHolder, Subject, Want},
    network::Network,
    record,
};
use overlay_node::dhcp::{Block, DhcpConfig, DhcpEvent, DhcpServer, GuestBinding};
use overlay_types::{Binding, Location, MacAddr, PortId};
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// How long guests may use their addresses, as the real node tells them.
const GUEST_LEASE: Duration = Duration::from_secs(2 * 3600);

/// Block, server, and who is bound where.
pub(crate) struct GuestService {
    pub(crate) block: LeaseHolder,
    pub(crate) dhcp: DhcpServer,
    bound: BTreeMap<MacAddr, (PortId, Ipv4Addr)>,
}

impl GuestService {
    /// The service with what an earlier life wrote to disk.
    pub(crate) fn new(
        identity: Identity,
        network: &Network,
        mac: MacAddr,
        block: Option<LeaseCert>,
        bindings: Vec<GuestBinding>,
        now: Instant,
        unix: u64,
    ) -> Self {
        let want = Want::Block { have: Vec::new() };
        let mut service = Self {
            block: LeaseHolder::new(identity, want, block, now, unix),
            dhcp: DhcpServer::new(config(network, mac, Ipv4Addr::UNSPECIFIED)),
            bound: BTreeMap::new(),
        };
        service.tell_blocks(now, unix);
        service.dhcp.restore(bindings, now, unix);
        service
    }

    /// The node has another address now.
    pub(crate) fn set_server(&mut self, network: &Network, mac: MacAddr, server: Ipv4Addr) {
        self.dhcp.set_config(config(network, mac, server));
    }

    /// The block is another one now, or renewed, or gone.
    pub(crate) fn tell_blocks(&mut self, now: Instant, unix: u64) {
        let block = self.block.lease().and_then(|cert| match cert.subject {
            Subject::Block(range) => Some(Block {
                range,
                until: cert.usable_until(),
            }),
            Subject::Address(_) => None,
        });
        self.dhcp.set_blocks(block.as_slice(), now, unix);
    }

    /// Time passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant, unix: u64) {
        self.block.handle_timeout(now, unix);
        self.dhcp.handle_timeout(now, unix);
    }

    /// When to be called again.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let (block, dhcp) = (self.block.poll_timeout(), self.dhcp.poll_timeout());
        block.into_iter().chain(dhcp).map(|(at, _)| at).min()
    }

    /// Takes in what the server did: `None` when that was nothing, else the ports on which a guest is bound now.
    pub(crate) fn follow_server(&mut self) -> Option<Vec<(PortId, MacAddr)>> {
        let mut bound = None;
        while let Some(event) = self.dhcp.poll_event() {
            let bound = bound.get_or_insert_with(Vec::new);
            match event {
                DhcpEvent::GuestBound { port, mac, ip, .. } => {
                    self.bound.insert(mac, (port, ip));
                    bound.push((port, mac));
                }
                DhcpEvent::GuestGone { mac, ip } => {
                    if self.bound.get(&mac).is_some_and(|(_, held)| *held == ip) {
                        self.bound.remove(&mac);
                    }
                }
                DhcpEvent::BlockWanted => {} // one is being claimed for as long as there is none; nobody has more guests than it
            }
        }
        bound
    }

    /// Where its guests' addresses are.
    pub(crate) fn bindings(&self) -> impl Iterator<Item = Binding> + use<'_> {
        self.bound.iter().map(|(&mac, &(port, ip))| Binding {
            ip: ip.into(),
            mac,
            location: Location::Port(port),
        })
    }

    /// Its guests, as its node's record names them.
    pub(crate) fn records(&self) -> Vec<record::Guest> {
        let guest = |(&mac, &(_, ip)): (&MacAddr, &(PortId, Ipv4Addr))| record::Guest {
            mac,
            ip: ip.into(),
            name: None,
        };
        self.bound.iter().map(guest).collect()
    }
}

fn config(network: &Network, mac: MacAddr, server: Ipv4Addr) -> DhcpConfig {
    DhcpConfig {
        subnet: network.document().subnet,
        server,
        server_mac: mac,
        router: None,
        dns: Vec::new(),
        domain: network.document().zone.clone(),
        mtu: 1500,
        lease_time: GUEST_LEASE,
        routes: Vec::new(),
        reservations: BTreeMap::new(),
    }
}
