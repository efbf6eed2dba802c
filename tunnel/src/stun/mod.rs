//! How the outside sees our data port: STUN (RFC 8489) as client and server, and what the NAT in front of us does
//! (RFC 5780). The codec is `stun-rs`; whose answer to trust, and when to ask, is decided here.

mod client;
mod codec;
mod server;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests;

pub use client::StunClient;
pub use server::{StunAnswer, server_answer};

use std::net::SocketAddr;

/// What a NAT does, in RFC 4787's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NatRule {
    /// Not known yet.
    #[default]
    Unknown,
    /// No NAT in front of us.
    None,
    /// The same for every remote endpoint.
    EndpointIndependent,
    /// Per remote address.
    AddressDependent,
    /// Per remote address and port.
    AddressAndPortDependent,
}

impl NatRule {
    /// As `farlan status` prints it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }
}

/// How the NAT in front of us makes mappings and which datagrams it lets in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatBehaviour {
    /// Which outside port one inside port gets.
    pub mapping: NatRule,
    /// Whose datagrams pass a mapping.
    pub filtering: NatRule,
}

/// What the client learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StunEvent {
    /// A server saw us here (again only when it changes).
    Reflexive(SocketAddr),
    /// No server sees us there any longer.
    ReflexiveGone(SocketAddr),
    /// What the NAT does (again only when it changes).
    Behaviour(NatBehaviour),
}
