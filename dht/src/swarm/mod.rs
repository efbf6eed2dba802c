//! The shell around libp2p: reaches other nodes, moves slot values in and out of the DHT, and carries requests between peers.
//! It decides nothing about networks: what a value or a request means is for the pure modules beside it.
//!
//! One task owns the swarm (`task`); everybody else holds a [`SwarmHandle`] and a receiver of [`SwarmEvent`]s.
#![expect(
    clippy::disallowed_methods,
    reason = "a shell: it reads the clocks that the cores are given"
)]

mod behaviour;
mod bundle;
mod circuits;
mod codec;
mod gate;
mod handle;
mod homes;
mod peer;
mod queries;
mod requests;
mod slots;
mod streams;
mod task;
#[cfg(test)]
mod tests;

pub use bundle::parse_bundle;
pub use codec::PAYLOAD_BYTES_MAX;
pub use handle::{
    BootstrapState, BootstrapStatus, ConnectedPeer, PutError, RequestError, SwarmCounters,
    SwarmEvent, SwarmHandle, SwarmStatus,
};
pub use libp2p::Multiaddr;
pub use peer::{from_libp2p, multiaddrs_of, to_libp2p, with_peer};
pub use streams::{
    ByteStream, StreamAddr, StreamDialer, StreamService, TlsError, tls_client, tls_server,
};

use crate::identity::Identity;
use circuits::CircuitLimits;
use std::net::{Ipv4Addr, Ipv6Addr};
use tokio::sync::mpsc;

/// Commands that wait for the task; senders wait beyond that.
const COMMANDS_MAX: usize = 256;
/// Events that wait for the reader; the task keeps a few more, then drops.
const EVENTS_MAX: usize = 256;

/// What a node does for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Uses the DHT, and serves it once a public address of its own is confirmed.
    Member,
    /// Serves the DHT, relays circuits and confirms addresses, whoever asks.
    Fabric,
}

/// How to start a swarm.
pub struct SwarmConfig {
    /// Who this node is.
    pub identity: Identity,
    /// What to listen on; [`multiaddrs_of`] gives both transports of a port. Empty: nobody can dial this node directly.
    pub listen: Vec<Multiaddr>,
    /// Addresses under which the internet reaches this node although no interface has them (a cloud's 1:1 NAT, a forwarded port).
    pub external: Vec<Multiaddr>,
    /// Ways into the fabric, best with the identity at the end.
    pub bootstrap: Vec<Multiaddr>,
    /// What it does for others.
    pub role: Role,
    /// Whether to look for nodes on the LAN, and be found there.
    pub mdns: bool,
    /// Opens streams to bootstraps that end in `/tls`, which are not dialed without it.
    pub streams: Option<StreamDialer>,
}

impl SwarmConfig {
    /// A member's usual listeners: `port` on all interfaces, over QUIC and TCP; 0 picks free ones.
    pub fn member_listeners(port: u16) -> Vec<Multiaddr> {
        let v4 = multiaddrs_of((Ipv4Addr::UNSPECIFIED, port).into());
        let v6 = multiaddrs_of((Ipv6Addr::UNSPECIFIED, port).into());
        v4.into_iter().chain(v6).collect()
    }
}

/// Why no swarm was started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The operator should choose another address or port.
    #[error("cannot listen on {address}: {reason}; is another node running there?")]
    Listen {
        /// On what.
        address: Multiaddr,
        /// Why not.
        reason: String,
    },
    /// The machine lacks something.
    #[error("cannot set up the transports: {0}")]
    Transport(String),
}

/// Starts a swarm. To be called within a tokio runtime; the swarm runs until [`SwarmHandle::shutdown`], or until all handles are gone.
///
/// # Errors
/// [`SpawnError`] when it cannot listen. Missing IPv6 is no error: what remains is listened on.
pub fn spawn(config: SwarmConfig) -> Result<(SwarmHandle, mpsc::Receiver<SwarmEvent>), SpawnError> {
    spawn_with(config, CircuitLimits::default())
}

fn spawn_with(
    config: SwarmConfig,
    circuits: CircuitLimits,
) -> Result<(SwarmHandle, mpsc::Receiver<SwarmEvent>), SpawnError> {
    let peer_id = config.identity.peer_id();
    let keypair = streams::keypair(&config.identity);
    let (commands, commands_rx) = mpsc::channel(COMMANDS_MAX);
    let (events, events_rx) = mpsc::channel(EVENTS_MAX);
    let swarm = behaviour::build(&config, keypair, circuits)?;
    let task = task::SwarmTask::new(swarm, config, commands_rx, events)?;
    tokio::spawn(task.run());
    Ok((SwarmHandle { peer_id, commands }, events_rx))
}
