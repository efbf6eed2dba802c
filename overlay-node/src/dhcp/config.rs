//! What the server is given: what to tell clients, and which addresses it may grant.

use overlay_types::{MacAddr, Subnet};
use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

/// What the server tells its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpConfig {
    /// The network's subnet: gives the mask, and bounds what may be granted.
    pub subnet: Subnet,
    /// The node's overlay address, which identifies the server.
    pub server: Ipv4Addr,
    /// The node's MAC on its host port, from which replies come.
    pub server_mac: MacAddr,
    /// Default gateway; none unless the network has one.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Domain name and search list: `lab.farlan`.
    pub domain: String,
    /// Interface MTU.
    pub mtu: u16,
    /// How long a client may use its address before it must have renewed.
    pub lease_time: Duration,
    /// Classless static routes (RFC 3442).
    pub routes: Vec<Route>,
    /// Addresses kept for certain MACs; granted while they lie in one of the node's blocks.
    pub reservations: BTreeMap<MacAddr, Ipv4Addr>,
}

impl DhcpConfig {
    /// Whether `ip` may never be granted to anybody.
    pub(super) fn is_taken(&self, ip: Ipv4Addr) -> bool {
        !self.subnet.contains(ip)
            || ip == self.subnet.base()
            || ip == self.subnet.broadcast()
            || ip == self.server
            || self.router == Some(ip)
            || self.dns.contains(&ip)
    }
}

/// A static route for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Subnet,
    /// Through whom.
    pub via: Ipv4Addr,
}

/// A block lease of this node: addresses that it may grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The addresses.
    pub range: Subnet,
    /// Unix second from which on none of them may be used (the guard already taken off).
    pub until: u64,
}

impl Block {
    /// Its addresses, lowest first.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        (u32::from(self.range.base())..=u32::from(self.range.broadcast())).map(Ipv4Addr::from)
    }
}
