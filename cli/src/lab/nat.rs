//! What a site's router does to UDP, in RFC 4787's words, and what it lets out at all. How a router is made to do it is
//! said in [`super::rules`].

use std::fmt;
use std::net::Ipv4Addr;

/// How a router maps and filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nat {
    /// Endpoint-independent mapping and filtering: whoever knows the mapping may send to it.
    FullCone,
    /// Endpoint-independent mapping; only addresses that were sent to may answer.
    AddressRestricted,
    /// Endpoint-independent mapping; only addresses and ports that were sent to may answer.
    PortRestricted,
    /// What Linux routers do: the inside port's number while it is free, so that mapping is endpoint-independent until two
    /// hosts want the same one; only addresses and ports that were sent to may answer.
    Masquerade,
    /// The same on a router that answers what nobody asked for. A peer's packet that comes before ours left then takes
    /// the port that our mapping had, and ours gets another one: punching from both sides fails.
    MasqueradeOpen,
    /// A new mapping, with a random port, for every destination; only that destination may answer.
    Symmetric,
    /// The same, and each mapping gets the port after the last one's.
    SymmetricIncremental,
    /// No translation and no filter: the site's hosts have public addresses.
    Public,
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Masquerade => "masquerade",
            Self::MasqueradeOpen => "masquerade, open router",
            Self::Symmetric => "symmetric",
            Self::SymmetricIncremental => "symmetric incremental",
            Self::Public => "public",
        })
    }
}

impl Nat {
    /// Whether each inside endpoint has one outside port by rule, not by luck: then others can be told of it.
    pub(super) const fn maps_by_endpoint(self) -> bool {
        matches!(
            self,
            Self::FullCone | Self::AddressRestricted | Self::PortRestricted
        )
    }
}

/// What a site's router lets out of the LAN. What is not let out is dropped without a word, UDP to the router itself included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outbound {
    /// Everything.
    #[default]
    Everything,
    /// TCP to port 443.
    Tcp443,
    /// Nothing but the router's own HTTP proxy, at [`HTTP_PROXY_PORT`] of its address on the LAN; see
    /// [`Site::http_proxy`](super::Site::http_proxy).
    HttpProxy,
    /// TCP to port 22 of this host.
    Ssh(Ipv4Addr),
}

/// Where a site's HTTP proxy listens (the customary port of proxies).
pub const HTTP_PROXY_PORT: u16 = 3128;
