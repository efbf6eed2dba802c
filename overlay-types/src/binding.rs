//! Which MAC and IP addresses belong together, and where they are.

use crate::{MacAddr, PeerId, PortId};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Where a MAC is to be reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Location {
    /// Behind one of our own ports.
    Port(PortId),
    /// Behind another node.
    Peer(PeerId),
}

/// A MAC with its IP at a location: what ARP and neighbour discovery are answered from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Binding {
    /// The station's address on the network.
    pub ip: IpAddr,
    /// The station's Ethernet address.
    pub mac: MacAddr,
    /// Where it is.
    pub location: Location,
}
