//! The kinds of site of the matrix, and for each two of them the way that RFC 4787 leaves to them.

use std::fmt;

/// A kind of site, as far as it matters to whoever wants to be reached there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Public addresses of both IP versions, nothing filtered.
    Public,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, filtering by address.
    AddressRestricted,
    /// Endpoint-independent mapping, filtering by address and port.
    PortRestricted,
    /// A mapping for each destination, its port the next one.
    SymmetricIncremental,
    /// A mapping for each destination, its port random.
    SymmetricRandom,
    /// A port-restricted NAT behind a carrier's.
    DoubleNat,
    /// Behind one port-restricted NAT, which hairpins, and hidden from each other on its LAN.
    Hairpin,
    /// TCP to port 443 gets out, nothing else.
    UdpBlocked,
    /// TCP to port 22 of a gateway gets out, nothing else.
    SshOnly,
    /// No IPv4; public IPv6 behind a firewall.
    Ipv6Only,
    /// A port-restricted NAT, and IPv6 behind a firewall beside it.
    DualStack,
    /// An HTTP proxy gets out, to port 443, nothing else.
    ProxyOnly,
    /// Two port-restricted NATs behind one carrier's NAT, which hairpins.
    OneCarrier,
    /// Behind one port-restricted NAT that does not hairpin, and hidden from each other on its LAN.
    NoHairpin,
    /// Two hosts on one LAN.
    SameLan,
    /// Linux's masquerading on a router that answers what nobody asked for.
    OpenRouter,
}

/// The kinds whose every pair is a cell.
pub(crate) const MATRIX: [Kind; 11] = [
    Kind::Public,
    Kind::FullCone,
    Kind::AddressRestricted,
    Kind::PortRestricted,
    Kind::SymmetricIncremental,
    Kind::SymmetricRandom,
    Kind::DoubleNat,
    Kind::Hairpin,
    Kind::UdpBlocked,
    Kind::SshOnly,
    Kind::Ipv6Only,
];

/// Further cells, of kinds that show something beside the matrix.
const BESIDE: [(Kind, Kind); 12] = [
    (Kind::DualStack, Kind::DualStack),
    (Kind::DualStack, Kind::Ipv6Only),
    (Kind::DualStack, Kind::SymmetricRandom),
    (Kind::OneCarrier, Kind::OneCarrier),
    (Kind::NoHairpin, Kind::NoHairpin),
    (Kind::SameLan, Kind::SameLan),
    (Kind::OpenRouter, Kind::FullCone),
    (Kind::OpenRouter, Kind::PortRestricted),
    (Kind::OpenRouter, Kind::OpenRouter),
    (Kind::ProxyOnly, Kind::Public),
    (Kind::ProxyOnly, Kind::SymmetricRandom),
    (Kind::ProxyOnly, Kind::ProxyOnly),
];

/// By what two nodes are to reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Straight.
    Direct,
    /// Straight, through ports that are foretold or guessed.
    Predicted,
    /// Straight, or through a relay where the first datagrams cross in the wrong order.
    Unsure,
    /// Through a UDP relay.
    Relay,
    /// Over TCP: TLS on port 443, or SSH.
    Stream,
}

impl Way {
    /// Whether what begins by relay may become direct, and need not.
    pub(crate) fn may_improve(self) -> bool {
        self == Self::Unsure
    }

    /// Whether a path of this kind, as `farlan peers` names it, is the way that was expected.
    pub(crate) fn is_kept_by(self, path: &str) -> bool {
        match self {
            Self::Direct | Self::Predicted => path == "direct",
            Self::Unsure => path == "direct" || path == "relay",
            Self::Relay => path == "relay",
            Self::Stream => path == "stream",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Predicted => "predicted",
            Self::Unsure => "direct or relay",
            Self::Relay => "relay",
            Self::Stream => "stream",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::SymmetricIncremental => "symmetric incremental",
            Self::SymmetricRandom => "symmetric random",
            Self::DoubleNat => "double NAT",
            Self::Hairpin => "hairpin",
            Self::UdpBlocked => "UDP blocked",
            Self::SshOnly => "SSH only",
            Self::Ipv6Only => "IPv6 only",
            Self::DualStack => "dual stack",
            Self::ProxyOnly => "HTTP proxy only",
            Self::OneCarrier => "one carrier",
            Self::NoHairpin => "no hairpin",
            Self::SameLan => "same LAN",
            Self::OpenRouter => "open router",
        })
    }
}

/// What of a kind decides, strictest last. The order is that in which [`expectation`] looks at a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Lets everybody in, by both IP versions.
    Public,
    /// Lets everybody in.
    Open,
    /// Maps by endpoint, filters by address.
    Address,
    /// Maps by endpoint, filters by address and port.
    Port,
    /// As [`Class::Port`], and by IPv6 a firewall.
    PortAndIpv6,
    /// As [`Class::Port`] unless the peer's first datagram comes before ours has left.
    Fragile,
    /// Maps by destination, to the next port.
    Incremental,
    /// Maps by destination, to a random port.
    Random,
    /// IPv6 with a firewall, and nothing else.
    Ipv6,
    /// No UDP.
    Blocked,
}

impl Kind {
    fn class(self) -> Class {
        match self {
            Self::Public => Class::Public,
            Self::FullCone => Class::Open,
            Self::AddressRestricted => Class::Address,
            Self::PortRestricted
            | Self::DoubleNat
            | Self::Hairpin
            | Self::OneCarrier
            | Self::NoHairpin
            | Self::SameLan => Class::Port,
            Self::DualStack => Class::PortAndIpv6,
            Self::OpenRouter => Class::Fragile,
            Self::SymmetricIncremental => Class::Incremental,
            Self::SymmetricRandom => Class::Random,
            Self::Ipv6Only => Class::Ipv6,
            Self::UdpBlocked | Self::SshOnly | Self::ProxyOnly => Class::Blocked,
        }
    }
}

/// By what nodes at two such sites are to reach each other, and why.
pub(crate) fn expectation(a: Kind, b: Kind) -> (Way, &'static str) {
    use Class::{
        Address, Blocked, Fragile, Incremental, Ipv6, Open, Port, PortAndIpv6, Public, Random,
    };
    match (a, b) {
        (Kind::SameLan, Kind::SameLan) => return (Way::Direct, "they share a LAN"),
        (Kind::Hairpin, Kind::Hairpin) | (Kind::OneCarrier, Kind::OneCarrier) => {
            return (Way::Direct, "the NAT that both share hairpins");
        }
        (Kind::NoHairpin, Kind::NoHairpin) => {
            return (Way::Relay, "the NAT that both share does not hairpin");
        }
        _ => {}
    }
    let (a, b) = (a.class(), b.class());
    match (a.min(b), a.max(b)) {
        (_, Blocked) => (Way::Stream, "no UDP leaves one of them"),
        (Public | PortAndIpv6 | Ipv6, Ipv6) => (
            Way::Direct,
            "IPv6 is not translated, and firewalls open from inside",
        ),
        (_, Ipv6) => (
            Way::Relay,
            "they have no IP version in common; the relay has both",
        ),
        (PortAndIpv6, PortAndIpv6) => (
            Way::Direct,
            "IPv6 is not translated, and firewalls open from inside",
        ),
        (Public | Open, _) => (Way::Direct, "one of them lets everybody in"),
        (Address, Incremental | Random) => (
            Way::Direct,
            "the filter knows the address, whatever port the mapping has",
        ),
        (Address | Port | PortAndIpv6, Address | Port | PortAndIpv6) => (
            Way::Direct,
            "both map by endpoint: each knows where to send, and opens its filter by sending",
        ),
        (Address | Port | PortAndIpv6 | Fragile, Fragile) => (
            Way::Unsure,
            "a peer that knocks first takes the port of the mapping that it knocks at",
        ),
        (Incremental, Incremental) => (Way::Predicted, "both next ports can be foretold"),
        (_, Incremental) => (Way::Predicted, "the next port can be foretold"),
        (Incremental | Random, Random) => (
            Way::Relay,
            "the filter of one waits for a port of the other that nobody can foretell",
        ),
        (_, Random) => (
            Way::Predicted,
            "many sockets on one side and many probes on the other soon meet",
        ),
        _ => unreachable!("the smaller class comes first"),
    }
}

/// A cell: two kinds.
pub(crate) type Cell = (Kind, Kind);

/// Every cell: each two kinds of the matrix in its order, then those beside it.
pub(crate) fn cells() -> Vec<Cell> {
    let pairs = MATRIX
        .iter()
        .enumerate()
        .flat_map(|(at, a)| MATRIX[at..].iter().map(|b| (*a, *b)));
    pairs.chain(BESIDE).collect()
}
