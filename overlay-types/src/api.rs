//! The local API: what `farlan` asks a running node over its Unix socket, and what it is told.
//! HTTP and JSON; each request type names its method and path. Fields that scripts may rely on never change meaning.

use crate::{DhcpMode, MacAddr, Name, NetworkId, PathKind, PeerId, PortKind, Subnet};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node itself.
    pub node: NodeStatus,
    /// What is known of the NAT in front of it.
    pub nat: NatStatus,
    /// The fabric as seen from here.
    pub fabric: FabricStatus,
    /// What it relays for other members.
    #[serde(default)]
    pub relay: RelayStatus,
    /// Every network the node is in.
    pub networks: Vec<NetworkStatus>,
    /// The default network's name for this node.
    pub name: Option<Name>,
    /// The default network's IPv4 address.
    pub address: Option<Ipv4Addr>,
    /// The default network's IPv6 address.
    pub address6: Option<Ipv6Addr>,
}

/// The node itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its identity.
    pub id: PeerId,
    /// The program's version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
}

/// What a NAT does with our data port, in RFC 4787's words.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NatStatus {
    /// `none`, `endpoint-independent`, `address-dependent`, `address-and-port-dependent` or `unknown`.
    pub mapping: String,
    /// `none`, `endpoint-independent`, `address-dependent`, `address-and-port-dependent` or `unknown`.
    pub filtering: String,
    /// `preserving`, `contiguous by N`, `random` or `unknown`.
    pub ports: String,
    /// Whether hosts behind it reach each other at their outside addresses; null while unknown, or without a NAT.
    pub hairpin: Option<bool>,
    /// For how many seconds at least an unused mapping lives; null until that was measured, which takes minutes.
    pub lifetime_at_least_s: Option<u64>,
    /// After how many seconds it was gone; null if it outlived the longest wait, or is not known.
    pub lifetime_less_than_s: Option<u64>,
    /// What STUN servers saw.
    pub reflexive: Option<String>,
    /// Ports that routers map to the data port.
    pub mapped: Vec<PortMappingStatus>,
}

/// A port that a router maps to our data port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMappingStatus {
    /// Where the outside comes in.
    pub external: SocketAddr,
    /// Which router.
    pub router: Ipv4Addr,
    /// `PCP`, `NAT-PMP` or `UPnP`.
    pub protocol: String,
}

/// The fabric as seen from here.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FabricStatus {
    /// Control connections that are open.
    pub connections: usize,
    /// Infrastructure nodes among them.
    pub infrastructure: usize,
    /// The UDP relays where others reach us: `ADDR:PORT`, with the name behind it in brackets where a member relays.
    pub relays: Vec<String>,
    /// Addresses where control connections reach us.
    pub listen: Vec<String>,
}

/// What a member relays for others.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Whether it does.
    pub serves: bool,
    /// Members that have a place here.
    pub places: usize,
    /// Those of them that use it.
    pub bound: usize,
    /// Bytes passed on since it started.
    pub forwarded_bytes: u64,
    /// Datagrams passed on.
    pub forwarded: u64,
    /// Datagrams that were not, because somebody's rate was spent.
    pub dropped_rate: u64,
    /// Datagrams that were not for any other reason.
    pub dropped_other: u64,
}

/// One network the node is in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Hash of the genesis document.
    pub id: NetworkId,
    /// The owner's name for it.
    pub name: Name,
    /// Where its addresses come from.
    pub subnet: Subnet,
    /// Who serves them.
    pub dhcp: DhcpMode,
    /// The largest IP packet of its stations, in bytes.
    pub mtu: u16,
    /// Whether commands mean this one when they name none.
    pub default: bool,
    /// `waiting for admission: …`, `waiting for an address: …` or `ready`.
    pub state: String,
    /// This node's name here.
    pub node_name: Name,
    /// This node's IPv4 address here.
    pub address: Option<Ipv4Addr>,
    /// This node's IPv6 address here.
    pub address6: Option<Ipv6Addr>,
    /// The TAP interface.
    pub tap: Option<String>,
    /// How many other members are reachable through the tunnel now.
    pub peers: usize,
    /// This node's roles.
    pub roles: Vec<String>,
    /// What would stop allocation, in plain words; empty while one failure is survivable.
    pub warnings: Vec<String>,
}

/// `GET /v1/peers`: a list of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its identity.
    pub id: PeerId,
    /// Its name in the network.
    pub name: Name,
    /// Its IPv4 address.
    pub address: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub address6: Option<Ipv6Addr>,
    /// The path in use, or null while there is none.
    pub path: Option<PathStatus>,
    /// Bytes of sealed datagrams sent to it.
    pub tx_bytes: u64,
    /// Bytes of sealed datagrams received from it.
    pub rx_bytes: u64,
    /// Guests that it announces.
    pub guests: Vec<GuestStatus>,
    /// The peer's own word on its NAT mapping, from its node record.
    pub nat: String,
}

/// A guest behind some node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Its name, if it has one.
    pub name: Option<Name>,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its address.
    pub address: IpAddr,
}

/// The path in use to a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStatus {
    /// `direct`, `relay` or `stream`.
    pub kind: PathKind,
    /// Where datagrams go.
    pub remote: String,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: u64,
    /// Largest UDP payload that the path carries.
    pub mtu: u16,
    /// Who relays: a member's name, or a fabric node's id. Null on direct paths, and where it is not known.
    #[serde(default)]
    pub via: Option<String>,
}

/// `GET /v1/leases`: a list of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// The address, or the block as `10.77.0.16/28`.
    pub address: String,
    /// The node that holds it.
    pub holder: PeerId,
    /// Its name, if it has one.
    pub name: Option<Name>,
    /// The station's MAC; null for a block.
    pub mac: Option<MacAddr>,
    /// Unix seconds.
    pub expires: u64,
    /// Counts the holders that this address has had.
    pub generation: u64,
    /// The registrar group's epoch that granted it.
    pub epoch: u64,
    /// How many registrars signed the certificate.
    pub signatures: usize,
}

/// `POST /v1/networks`: makes a network with this node as its owner. Answers [`NetworkStatus`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateNetwork {
    /// The network's name.
    pub name: Name,
    /// Its subnet; 10.77.0.0/16 when not given.
    pub subnet: Option<Subnet>,
    /// Who serves addresses.
    pub dhcp: DhcpMode,
    /// The largest IP packet of its stations, in bytes, 1280 to 9000; 1500 when not given.
    pub mtu: Option<u16>,
    /// Fabric addresses to put into invites and to join by.
    pub bootstrap: Vec<String>,
    /// This node's name in it; the host's name when not given.
    pub node_name: Option<Name>,
    /// The TAP interface's name; chosen when not given.
    pub tap: Option<String>,
}

/// `POST /v1/networks/join`. Answers [`NetworkStatus`] once admitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinNetwork {
    /// The invite string.
    pub token: String,
    /// This node's name in it; the host's name when not given.
    pub node_name: Option<Name>,
    /// The TAP interface's name; chosen when not given.
    pub tap: Option<String>,
}

/// `POST /v1/networks/leave`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaveNetwork {
    /// Which one.
    pub name: Name,
}

/// `POST /v1/invites?network=NAME`. Answers [`Invite`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CreateInvite {
    /// `member` or `leaf`.
    pub role: String,
    /// Seconds until it expires.
    pub expires_s: u64,
    /// How many nodes may use it.
    pub uses: u32,
}

/// An invite that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// The string to hand over.
    pub token: String,
    /// Names it in `farlan invite list`.
    pub id: String,
    /// Unix seconds.
    pub expires: u64,
    /// How many nodes may use it.
    pub uses: u32,
}

/// `POST /v1/ports?network=NAME`. Answers [`PortStatus`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddPort {
    /// An interface: a bridge or link that is there, or the name of a TAP to make.
    pub iface: String,
    /// `host` or `guest`.
    pub kind: PortKind,
    /// MACs that may speak; empty lets the first MAC that asks for an address be the guest.
    pub macs: Vec<MacAddr>,
    /// The guest's name; else its DHCP option 12.
    pub name: Option<Name>,
}

/// `POST /v1/ports/remove?network=NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RemovePort {
    /// Which one.
    pub iface: String,
}

/// `GET /v1/ports`: a list of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortStatus {
    /// The network it is a port of.
    pub network: Name,
    /// What the user named.
    pub iface: String,
    /// The TAP that carries its frames.
    pub tap: String,
    /// Who may speak behind it.
    pub kind: PortKind,
    /// MACs that may speak.
    pub macs: Vec<MacAddr>,
    /// The guest's name.
    pub name: Option<Name>,
    /// Addresses granted behind it.
    pub guests: Vec<GuestStatus>,
}

/// `POST /v1/ping?network=NAME`: one echo through the tunnel. Answers [`Pong`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// A name, an address, or a node id.
    pub target: String,
    /// Milliseconds to wait.
    pub timeout_ms: u64,
}

/// The answer to [`Ping`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The node that answered (for a guest: the node it is behind).
    pub peer: PeerId,
    /// Its name.
    pub name: Name,
    /// The address meant.
    pub address: Option<IpAddr>,
    /// Round-trip time in microseconds.
    pub rtt_us: u64,
    /// The path the echo took.
    pub path: PathStatus,
}

/// `POST /v1/lan/attach?network=NAME`. Answers [`LanStatus`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttachLan {
    /// The interface on the LAN.
    pub iface: String,
}

/// `GET /v1/lan`: a list of these. `POST /v1/lan/detach?network=NAME` undoes an attach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LanStatus {
    /// The network it is attached to.
    pub network: Name,
    /// The interface on the LAN.
    pub iface: String,
    /// The bridge that carries it.
    pub bridge: String,
    /// Whether Farlan made that bridge.
    pub bridge_made: bool,
    /// Who serves addresses.
    pub dhcp: DhcpMode,
    /// In `overlay` mode, the static route that the LAN's router needs.
    pub route_hint: Option<String>,
}

/// Every refusal: what happened, why, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// One line for people.
    pub error: String,
}
