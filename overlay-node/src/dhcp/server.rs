//! placeholder
use overlay_types::{MacAddr, Name, PortId, Subnet};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::Ipv4Addr, time::{Duration, Instant}};

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
    /// Addresses kept for certain MACs.
    pub reservations: BTreeMap<MacAddr, Ipv4Addr>,
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

/// An address granted to a guest; what is kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestBinding {
    /// The port behind which the guest is; `None` when not known (yet) after a restart.
    pub port: Option<PortId>,
    /// The guest's MAC.
    pub mac: MacAddr,
    /// Its DHCP client identifier (option 61), if it sends one.
    pub client_id: Option<Vec<u8>>,
    /// The granted address.
    pub ip: Ipv4Addr,
    /// The guest's name.
    pub name: Option<Name>,
    /// Unix second; in the past for a guest that left, whose address is remembered.
    pub expires: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DhcpEvent {
    /// A guest was granted (or renewed) an address.
    GuestBound {
        /// Where it is.
        port: PortId,
        /// Its MAC.
        mac: MacAddr,
        /// Its address.
        ip: Ipv4Addr,
        /// Its name, if it has one.
        name: Option<Name>,
        /// Unix second.
        expires: u64,
    },
    /// A guest's address ended: released, declined, expired, or its block is gone.
    GuestGone {
        /// Its MAC.
        mac: MacAddr,
        /// The address it had.
        ip: Ipv4Addr,
    },
    /// Clients wait and no address is free: a further block is needed.
    BlockWanted,
}

/// Counts of what was dropped and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DhcpStats {
    /// Not a DHCP request at all.
    pub dropped_malformed: u64,
}

/// The server.
pub struct DhcpServer;

impl DhcpServer {
    /// A server without addresses.
    pub fn new(config: DhcpConfig) -> Self { let _ = config; Self }
    /// Replaces what clients are told.
    pub fn set_config(&mut self, config: DhcpConfig) { let _ = config; }
    /// The user's name for the guest on a port; wins over DHCP option 12.
    pub fn set_port_name(&mut self, port: PortId, name: Option<Name>) { let _ = (port, name); }
    /// Replaces the blocks that may be granted from, and serves clients that waited for one.
    pub fn set_blocks(&mut self, blocks: &[Block], now: Instant, unix: u64) { let _ = (blocks, now, unix); }
    /// The port is gone, and with it the guests behind it; their addresses are remembered.
    pub fn remove_port(&mut self, port: PortId, unix: u64) { let _ = (port, unix); }
    /// A frame from a guest.
    pub fn handle_frame(&mut self, port: PortId, frame: &[u8], now: Instant, unix: u64) { let _ = (port, frame, now, unix); }
    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant, unix: u64) { let _ = (now, unix); }
    /// When to be called again.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> { None }
    /// A frame for the guest behind a port.
    pub fn poll_frame(&mut self) -> Option<(PortId, Vec<u8>)> { None }
    /// What happened.
    pub fn poll_event(&mut self) -> Option<DhcpEvent> { None }
    /// All that must outlive a restart.
    pub fn bindings(&self) -> Vec<GuestBinding> { Vec::new() }
    /// Takes up what [`Self::bindings`] gave, after `set_blocks`. Live ones with a port are announced by [`DhcpEvent::GuestBound`].
    pub fn restore(&mut self, bindings: Vec<GuestBinding>, now: Instant, unix: u64) { let _ = (bindings, now, unix); }
    /// Counters.
    pub fn stats(&self) -> DhcpStats { DhcpStats::default() }
}
