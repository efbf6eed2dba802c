//! How the outside sees our data port: STUN (RFC 8489) as client and server, and what the NAT in front of us does
//! (RFC 5780). The codec is `stun-rs`; whose answer to trust, and when to ask, is decided here.

mod client;
mod codec;
mod lifetime;
mod nat;
mod sampler;
mod server;
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests;

pub use client::StunClient;
pub use lifetime::{LifetimeProbe, MappingLifetime, ProbeSocket};
pub use overlay_types::{NatBehaviour, NatRule, PortAssignment};
pub(crate) use sampler::STEP_MAX;
pub use sampler::{PortSampler, Sampled};
pub use server::{StunAnswer, server_answer};

use std::net::SocketAddr;

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
