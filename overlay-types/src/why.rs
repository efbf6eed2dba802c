//! What `farlan why` is told: how each of two nodes sees the way to the other, and what follows from it.
//! Members tell it each other ([`View`]) and the local API tells it people ([`Explanation`]). Times are lengths, counted
//! back from when the node was asked, so that no clocks need agree.

use crate::{Name, NatBehaviour, PathKind, PeerId};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

/// Ways in that a node lists.
pub const WAYS_IN_MAX: usize = 16;

/// Ways to a peer that are told of: those it lists by its record and in person, and some that were seen.
pub const TRIED_MAX: usize = 48;

/// Relays at which a node has a place.
pub const RELAYS_MAX: usize = 8;

/// `POST /v1/why?network=NAME`. Answers [`Explanation`]. Both are names, addresses or node ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// One side; this node when not given.
    pub from: Option<String>,
    /// The other side.
    pub to: String,
}

/// Why two members reach each other as they do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// In which network.
    pub network: Name,
    /// The side that was named first, or this node.
    pub from: Side,
    /// The other one.
    pub to: Side,
    /// Members that relay between the two, by the relays' ids; relays of fabric nodes have no names.
    pub relaying: BTreeMap<PeerId, Name>,
    /// What the two NATs allow, in words.
    pub passage: String,
    /// What would make it better; empty where nothing would.
    pub advice: Vec<Advice>,
}

/// One of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Its identity.
    pub id: PeerId,
    /// Its name in the network.
    pub name: Name,
    /// Its IPv4 address in the network.
    pub address: Option<Ipv4Addr>,
    /// Whether it is the node that was asked.
    pub is_here: bool,
    /// Why it could not be asked; what is told of it then comes from its signed record and from the other side.
    pub unasked: Option<String>,
    /// Where it is.
    pub site: Site,
    /// How it sees the way to the other side; null where it could not be asked.
    pub way: Option<Way>,
    /// The gateway or proxy through which its streams leave, where that is known: of this node only.
    pub gateway: Option<String>,
}

/// One node's view: where it is, and of the way to one peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Where it is.
    pub site: Site,
    /// How it sees the way.
    pub way: Way,
}

impl View {
    /// Its bounds: who answers is a member, and may tell anything.
    pub fn is_sound(&self) -> bool {
        self.site.ways_in.len() <= WAYS_IN_MAX
            && self.site.relays.len() <= RELAYS_MAX
            && self.way.tried.len() <= TRIED_MAX
    }
}

/// Where a node is, as far as that matters to whoever wants to reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// What the NAT in front of it does.
    pub nat: NatBehaviour,
    /// Whether its datagrams get out, judged by relays and STUN servers; null while that is not known.
    pub udp: Option<bool>,
    /// Where it may be reached, as it lists it: at most [`WAYS_IN_MAX`].
    pub ways_in: Vec<WayIn>,
    /// Relays at which it has a place: at most [`RELAYS_MAX`].
    pub relays: Vec<RelayPlace>,
}

/// Of what kind an address of a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WayKind {
    /// Of an interface of its own.
    Host,
    /// Where STUN servers see it.
    Reflexive,
    /// A port that its router maps to it.
    Mapped,
    /// A place at a relay.
    Relayed,
    /// Listed by nobody: its datagrams came from there.
    Seen,
}

/// One way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayIn {
    /// Of which kind.
    pub kind: WayKind,
    /// Where.
    pub addr: SocketAddr,
    /// Who runs the relay.
    pub relay: Option<PeerId>,
}

/// A place at a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayPlace {
    /// Who runs it.
    pub relay: PeerId,
    /// Its UDP address.
    pub addr: SocketAddr,
    /// By what it is reached.
    pub by: Carriage,
}

/// By what datagrams get to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carriage {
    /// As they are.
    Udp,
    /// Through TLS to TCP 443 or so.
    Tls,
    /// The same through an HTTP proxy.
    Proxy,
    /// The same through an SSH gateway.
    Ssh,
}

/// How a node sees the way to one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// For how long there has been a session, in seconds.
    pub session_s: Option<u64>,
    /// Since when nothing authentic was heard of the peer, in milliseconds; null if nothing ever was.
    pub heard_ms: Option<u64>,
    /// Handshakes since the last one that was answered.
    pub calls_unanswered: u32,
    /// The path in use.
    pub path: Option<PathInUse>,
    /// What the peer's NAT does, as it said last.
    pub peer_nat: NatBehaviour,
    /// Each way that was tried or is listed: at most [`TRIED_MAX`].
    pub tried: Vec<Tried>,
    /// Attempts to foretell a port, made here.
    pub foretold: u32,
    /// Runs that tried ports by chance, begun here.
    pub by_chance: u32,
}

/// The path in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathInUse {
    /// Of which kind.
    pub kind: PathKind,
    /// Where datagrams go; the first relay's address where there is one.
    pub to: SocketAddr,
    /// Who runs the relay; the one after it where two follow each other.
    pub relay: Option<PeerId>,
    /// How many relays stand between.
    pub relays: u8,
    /// Smoothed round trip in microseconds; 0 until it was measured.
    pub rtt_us: u64,
    /// Largest UDP payload known to pass.
    pub mtu: u16,
    /// The smallest that does not, once that was searched for.
    pub mtu_refused: Option<u16>,
    /// How often what had passed did not pass any more.
    pub black_holes: u32,
}

/// What became of one way to the peer since the session began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Of which kind.
    pub kind: WayKind,
    /// Where probes go; the relay's address where there is one.
    pub to: SocketAddr,
    /// Who runs the relay.
    pub relay: Option<PeerId>,
    /// Whether a relay is reached by a stream.
    pub by_stream: bool,
    /// The local socket; 0 is the data port's.
    pub socket: u16,
    /// Probes that were sent.
    pub probes: u32,
    /// Those that were answered.
    pub answers: u32,
    /// Probes that were not sent because the peer had not paid for them.
    pub withheld: u32,
    /// How long ago the first probe left, in milliseconds.
    pub first_ms: Option<u64>,
    /// How long ago the last one did, or was to leave and was withheld, in milliseconds.
    pub last_ms: Option<u64>,
    /// How long ago the last answer came, in milliseconds.
    pub answered_ms: Option<u64>,
    /// How long ago it failed while it was in use, in milliseconds.
    pub failed_ms: Option<u64>,
    /// Smoothed round trip in microseconds.
    pub rtt_us: Option<u64>,
    /// Where the last answer came from, if not from where the probe went.
    pub answered_from: Option<SocketAddr>,
    /// What it comes to.
    pub outcome: Outcome,
}

/// What trying a way came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is the path in use.
    InUse,
    /// It answers, and one of a better kind is in use.
    WorseKind,
    /// It answers, and is not so much faster than the one in use that moving there would pay.
    NotFaster,
    /// It answers, and failed a while ago: it is not trusted yet.
    HeldDown,
    /// It has answered, and is about to be taken.
    Unconfirmed,
    /// It worked, and does not any more.
    Lost,
    /// Probes were sent, and none was answered.
    Silent,
    /// Probes could not be sent: the peer had not paid for them.
    Withheld,
    /// Nothing was sent there yet.
    Untried,
    /// No peer can have this address here: nothing is sent there.
    Refused,
    /// More ways are listed than are tried.
    Excess,
}

/// Something that would make it better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// What kind of thing, for scripts.
    pub kind: AdviceKind,
    /// Where to do it: one of the two sides, or null for either or both.
    pub node: Option<Name>,
    /// In words.
    pub text: String,
}

/// Kinds of advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdviceKind {
    /// A node does not answer: start it, or connect it.
    Start,
    /// Let datagrams out at a site.
    AllowUdp,
    /// Have a port mapped or forwarded by a router.
    MapPort,
    /// Let datagrams in at a firewall.
    OpenFirewall,
    /// Have an IP version in common.
    CommonIp,
    /// Have both sides get IPv6.
    Ipv6,
    /// Have the router hairpin, or let hosts of its LAN talk.
    Hairpin,
    /// A relay is the best there is.
    Relay,
    /// A nearer relay would be faster.
    NearerRelay,
    /// A direct path is still being looked for.
    Wait,
    /// Only used pairs are searched for.
    Use,
}
