//! How the outside sees our data port: STUN (RFC 8489) as client and server, and what the NAT in front of us does
//! (RFC 5780). The codec is `stun-rs`; whose answer to trust, and when to ask, is decided here.

use std::{net::SocketAddr, time::Instant};

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

/// Asks STUN servers from the data port, for the whole node.
#[derive(Debug)]
pub struct StunClient {}

impl StunClient {
    /// A client with nobody to ask.
    pub fn new(_rng_seed: u64, _now: Instant) -> Self {
        Self {}
    }
    /// Whom to ask: fabric nodes, and any RFC 8489 server.
    pub fn set_servers(&mut self, _servers: &[SocketAddr], _now: Instant) {}
    /// Our own interfaces' addresses with the data port, to recognise that there is no NAT.
    pub fn set_host_candidates(&mut self, _host: &[SocketAddr], _now: Instant) {}
    /// Ask again soon: the network changed, or a path broke.
    pub fn refresh(&mut self, _now: Instant) {}
    /// A STUN datagram arrived on the data port.
    pub fn handle_response(&mut self, _from: SocketAddr, _bytes: &[u8], _now: Instant) {}
    /// Time passed.
    pub fn handle_timeout(&mut self, _now: Instant) {}
    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        None
    }
    /// What happened.
    pub fn poll_event(&mut self) -> Option<StunEvent> {
        None
    }
    /// Every address at which servers see us.
    pub fn reflexive(&self) -> Vec<SocketAddr> {
        Vec::new()
    }
    /// What is known of the NAT.
    pub fn behaviour(&self) -> NatBehaviour {
        NatBehaviour::default()
    }
}
