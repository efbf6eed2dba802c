//! What the node tells the engine, what the engine tells back, and what it wants sent.

use crate::{
    path::{Passage, PathView},
    relay::{RelayGrant, RelayLimits, RelayWay},
    session::LocalKeys,
    stun::{MappingLifetime, NatBehaviour},
    worker::Hop,
};
use overlay_types::{
    Binding, Candidate, DataKeys, DhcpMode, Location, MacAddr, NetworkId, PathAddr, PeerId, PortId,
    PortKind,
};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use zeroize::Zeroizing;

/// What the engine is made with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How many workers there are (1 to 15).
    pub workers: u8,
    /// All randomness comes from it.
    pub seed: [u8; 32],
    /// Time since 1970 at the moment of [`super::Engine::new`]; it goes into handshakes as their timestamp.
    pub unix_at_start: Duration,
}

/// What the node wants.
#[expect(
    clippy::large_enum_variant,
    reason = "commands are few, and keys are moved once"
)]
pub enum Command {
    /// Be a member of a network.
    AddNetwork {
        /// Which one.
        id: NetworkId,
        /// This node in it.
        me: PeerId,
        /// This node's secret data keys there.
        keys: LocalKeys,
        /// The network's secret of this epoch.
        psk: Zeroizing<[u8; 32]>,
        /// Who serves addresses.
        dhcp: DhcpMode,
        /// Largest IP packet inside (1500); frames beyond it are dropped.
        mtu: u16,
    },
    /// Leave a network: its sessions end, its ports go.
    RemoveNetwork(NetworkId),
    /// Another member as its node record describes it. May be said again when anything changes.
    UpsertPeer {
        /// In which network.
        network: NetworkId,
        /// Who.
        peer: PeerId,
        /// Its public data keys.
        keys: DataKeys,
        /// Its ways in.
        candidates: Vec<Candidate>,
        /// Keep a session up always; otherwise one is made when a frame wants to go there.
        eager: bool,
        /// Bytes that came with this on the peer's account and were not told before: of a record that it signed, or that it
        /// sent itself. As many may go to addresses where it was not seen to receive.
        paid: u64,
    },
    /// Forget a member; its session ends at once.
    RemovePeer {
        /// In which network.
        network: NetworkId,
        /// Who.
        peer: PeerId,
    },
    /// A port where guests plug in.
    AddPort {
        /// Of which network.
        network: NetworkId,
        /// Its name.
        port: PortId,
        /// Whose frames come from it.
        kind: PortKind,
        /// Who may speak there; an empty guest port takes the first MAC that asks for an address.
        macs: Vec<MacAddr>,
    },
    /// A port is gone.
    RemovePort(PortId),
    /// Who may speak at a port, replacing what was said before.
    SetPortMacs {
        /// Which port.
        port: PortId,
        /// Its stations.
        macs: Vec<MacAddr>,
    },
    /// Which addresses belong to whom, replacing all that was said before.
    SetBindings {
        /// In which network.
        network: NetworkId,
        /// All of them.
        bindings: Vec<Binding>,
    },
    /// The answer to [`Event::AddressWanted`]: nobody is known to have it. It is not asked for again for a while.
    NoSuchAddress {
        /// In which network.
        network: NetworkId,
        /// Which address.
        ip: IpAddr,
    },
    /// Whom to ask how the outside sees us.
    SetStunServers(Vec<SocketAddr>),
    /// Where routers let the outside in to the data port.
    SetMappedAddresses(Vec<SocketAddr>),
    /// How long the NAT in front of us keeps a mapping, as far as that was measured.
    SetMappingLifetime(Option<MappingLifetime>),
    /// Our places at fabric nodes' relays, replacing what was said before. Places at members the engine gets by itself.
    SetRelays(Vec<RelayGrant>),
    /// Relay for other members within these limits, or not at all, which is how an engine begins.
    ServeRelay(Option<RelayLimits>),
    /// Addresses of our own interfaces with the data port.
    SetHostCandidates(Vec<SocketAddr>),
    /// Datagrams leave this host another way than before, or it slept: nothing that worked need work now.
    NetworkChanged,
    /// Send a frame out of a port, to the guest behind it.
    EmitFrame {
        /// Which port.
        port: PortId,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// Pass a frame on as if this node were a trusted port of the network.
    SwitchFrame {
        /// In which network.
        network: NetworkId,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// One echo to a peer inside the session, answered by [`Event::Pong`] if at all.
    Ping {
        /// In which network.
        network: NetworkId,
        /// Who.
        peer: PeerId,
        /// Repeated in the answer.
        id: u64,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Frames to this peer flow.
    SessionUp {
        /// In which network.
        network: NetworkId,
        /// Who.
        peer: PeerId,
    },
    /// Frames to this peer do not flow any longer.
    SessionDown {
        /// In which network.
        network: NetworkId,
        /// Who.
        peer: PeerId,
        /// Why.
        reason: DownReason,
    },
    /// The way to a peer is another now, or its size or delay changed notably.
    PathChanged {
        /// In which network.
        network: NetworkId,
        /// Who.
        peer: PeerId,
        /// The way.
        path: PathAddr,
        /// Smoothed round trip; zero until the first answer.
        rtt: Duration,
        /// Largest sealed datagram that passes.
        mtu: u16,
    },
    /// Somebody with the network's secret wants a session whom we do not know. If it is a member, say `UpsertPeer`:
    /// the first message waits a few seconds for it.
    UnknownPeer {
        /// In which network.
        network: NetworkId,
        /// The key it uses.
        x25519: [u8; 32],
    },
    /// A peer does not answer our calls: perhaps it is not any more where its record says. Told with each further call.
    PeerUnanswered {
        /// In which network.
        network: NetworkId,
        /// Which.
        peer: PeerId,
    },
    /// A guest asks for an address that nothing is bound to: find it and say `SetBindings` or `NoSuchAddress`.
    AddressWanted {
        /// In which network.
        network: NetworkId,
        /// Which address.
        ip: IpAddr,
    },
    /// A frame for the node itself (DHCP and router solicitations in overlay mode). It went nowhere else.
    FramePunted {
        /// In which network.
        network: NetworkId,
        /// Where it came from.
        port: PortId,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// A copy of a frame that was passed on: DHCP in `lan` mode (requests tell names, ACKs tell bindings), multicast DNS where
    /// a LAN is attached.
    Snooped {
        /// In which network.
        network: NetworkId,
        /// Where it came from.
        from: Location,
        /// The whole frame.
        frame: Vec<u8>,
    },
    /// A station says that it takes an IPv6 address (duplicate address detection) that is bound to nobody.
    AddressTaken {
        /// In which network.
        network: NetworkId,
        /// Where it is.
        port: PortId,
        /// Its Ethernet address.
        mac: MacAddr,
        /// The address.
        ip: IpAddr,
    },
    /// An empty guest port took the first station that asked for an address.
    GuestSeen {
        /// In which network.
        network: NetworkId,
        /// Where it is.
        port: PortId,
        /// Its Ethernet address.
        mac: MacAddr,
    },
    /// A station was seen at a place for the first time, or moved there.
    MacLearned {
        /// In which network.
        network: NetworkId,
        /// Its Ethernet address.
        mac: MacAddr,
        /// Where it is.
        location: Location,
    },
    /// Our ways in are others now: publish them.
    CandidatesChanged(Vec<Candidate>),
    /// What the NAT in front of us does.
    NatLearned(NatBehaviour),
    /// A relay knows where we are, this way.
    RelayBound(RelayWay),
    /// A relay's answer is late: perhaps nothing gets there this way any more.
    RelaySilent(RelayWay),
    /// A place at a relay was lost: ask its node for a new grant, or give up this way.
    RelayLost(RelayWay),
    /// A peer is reached only through a relay where we have no place, and which is no member that we know: if it is a
    /// fabric node that we are connected to, get a place there.
    RelayWanted {
        /// Which one.
        via: PeerId,
        /// A fabric node's place that can be given up for it, where there are as many as may be.
        instead_of: Option<PeerId>,
    },
    /// The answer to [`Command::Ping`].
    Pong {
        /// Of the command.
        id: u64,
        /// Round trip.
        rtt: Duration,
        /// The way in use.
        path: PathAddr,
        /// Its size.
        mtu: u16,
    },
}

/// Why frames to a peer do not flow any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownReason {
    /// It did not answer for too long.
    Silent,
    /// Its keys grew old and nobody needed new ones.
    Idle,
    /// It said so.
    Bye,
    /// The node removed the peer or the network.
    Removed,
}

/// A datagram to send, relay wrapper included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// From which socket, and where to.
    pub hop: Hop,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// A socket beside the data port's is wanted, or not any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketChange {
    /// Bind one to the data port's address and any port; datagrams that come to it are told with this number.
    Open(u16),
    /// Close it.
    Close(u16),
}

/// What is known of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    /// In which network.
    pub network: NetworkId,
    /// Who.
    pub peer: PeerId,
    /// Whether there is a session.
    pub session: bool,
    /// The path in use.
    pub path: Option<PathView>,
    /// Whose relay it goes through last.
    pub via: Option<PeerId>,
    /// What the two sides' NATs allow.
    pub passage: Passage,
    /// Bytes of sealed datagrams sent.
    pub tx_bytes: u64,
    /// Bytes of sealed datagrams received.
    pub rx_bytes: u64,
    /// Sealed datagrams sent.
    pub tx_datagrams: u64,
    /// Sealed datagrams received.
    pub rx_datagrams: u64,
    /// Since when the session in use exists.
    pub session_age: Option<Duration>,
}
