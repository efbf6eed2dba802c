//! Answers for the network's own names and addresses, for the host and the guests, and for nothing else.

use arc_swap::ArcSwap;
use overlay_types::{Name, NetworkId, Subnet};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// What can be asked for: one network's names, immutable once published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names;

impl Names {
    /// No names yet. `bare`: whether `vm-8-1` alone is answered as well.
    pub fn new(network: Name, id: NetworkId, subnet: Subnet, bare: bool) -> Self {
        let _ = (network, id, subnet, bare);
        Self
    }
    /// Adds a name's address; addresses outside the network's subnet and ULA prefix are left out.
    pub fn insert(&mut self, name: Name, address: IpAddr) {
        let _ = (name, address);
    }
}

/// A running name server. Stops when dropped.
pub struct DnsServer;

/// The name server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The address cannot be bound.
    #[error("cannot answer names on {0}: {1}")]
    Bind(SocketAddr, #[source] std::io::Error),
}

impl DnsServer {
    /// Answers over UDP and TCP on each address.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn start(
        listen: &[SocketAddr],
        names: Arc<ArcSwap<Names>>,
    ) -> Result<Self, DnsError> {
        let _ = (listen, names);
        Ok(Self)
    }
    /// Stops answering.
    #[expect(clippy::unused_async, reason = "skeleton")]
    pub async fn stop(self) {}
}
