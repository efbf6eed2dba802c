//! The local API: what the `farlan` command asks a running node, over HTTP and JSON on a Unix socket.
//! What the answers are is decided by the node, which implements [`NodeApi`]; the types are [`overlay_types::api`]'s.

mod routes;
mod socket;
#[cfg(test)]
mod tests;

pub use socket::{ApiServer, ApiStartError};

use overlay_types::Name;
use overlay_types::api::{
    AddPort, ApiError, AttachLan, CreateInvite, CreateNetwork, Invite, JoinNetwork, LanStatus,
    LeaseStatus, LeaveNetwork, NetworkStatus, PeerStatus, Ping, Pong, PortStatus, RemovePort,
    Status,
};
use overlay_types::doctor::Diagnosis;
use overlay_types::why::{Explanation, Why};
use std::future::Future;

/// What a node answers; the error is one line that says what happened, why, and what to do next.
pub type Answer<T> = Result<T, ApiError>;

/// What every node answers, infrastructure nodes included.
pub trait NodeControl: Send + Sync + 'static {
    /// The node, its NAT, the fabric and its networks.
    fn status(&self) -> impl Future<Output = Answer<Status>> + Send;
    /// Begins to stop the node and returns at once; the process ends soon after.
    fn down(&self) -> impl Future<Output = Answer<()>> + Send;
}

/// What a member answers beside that. `network: None` means the default network, the first joined.
pub trait NodeApi: NodeControl {
    /// Makes a network with this node as its owner; returns once its TAP carries the node's address.
    fn create_network(
        &self,
        request: CreateNetwork,
    ) -> impl Future<Output = Answer<NetworkStatus>> + Send;
    /// Joins by an invite; returns once the TAP carries the node's address. For a network that the node is in already
    /// it answers that network's status and uses nothing up.
    fn join_network(
        &self,
        request: JoinNetwork,
    ) -> impl Future<Output = Answer<NetworkStatus>> + Send;
    /// Gives up the membership, its leases and its ports.
    fn leave_network(&self, request: LeaveNetwork) -> impl Future<Output = Answer<()>> + Send;
    /// Makes an invite.
    fn create_invite(
        &self,
        network: Option<Name>,
        request: CreateInvite,
    ) -> impl Future<Output = Answer<Invite>> + Send;
    /// The other members, whether a path to them is in use or not.
    fn peers(&self, network: Option<Name>) -> impl Future<Output = Answer<Vec<PeerStatus>>> + Send;
    /// The leases known here: this node's own and what it learnt of others'.
    fn leases(
        &self,
        network: Option<Name>,
    ) -> impl Future<Output = Answer<Vec<LeaseStatus>>> + Send;
    /// One echo through the tunnel.
    fn ping(
        &self,
        network: Option<Name>,
        request: Ping,
    ) -> impl Future<Output = Answer<Pong>> + Send;
    /// Why two members, of which one may be this node, reach each other as they do.
    fn why(
        &self,
        network: Option<Name>,
        request: Why,
    ) -> impl Future<Output = Answer<Explanation>> + Send;
    /// What is wrong with this node's surroundings.
    fn doctor(&self) -> impl Future<Output = Answer<Diagnosis>> + Send;
    /// This node's ports; of all networks when none is named.
    fn ports(&self, network: Option<Name>) -> impl Future<Output = Answer<Vec<PortStatus>>> + Send;
    /// Plugs a guest in.
    fn add_port(
        &self,
        network: Option<Name>,
        request: AddPort,
    ) -> impl Future<Output = Answer<PortStatus>> + Send;
    /// Unplugs it and undoes what plugging did to the host.
    fn remove_port(
        &self,
        network: Option<Name>,
        request: RemovePort,
    ) -> impl Future<Output = Answer<()>> + Send;
    /// Attached LANs; of all networks when none is named.
    fn lans(&self, network: Option<Name>) -> impl Future<Output = Answer<Vec<LanStatus>>> + Send;
    /// Puts the LAN behind an interface on the network.
    fn attach_lan(
        &self,
        network: Option<Name>,
        request: AttachLan,
    ) -> impl Future<Output = Answer<LanStatus>> + Send;
    /// Undoes that.
    fn detach_lan(&self, network: Option<Name>) -> impl Future<Output = Answer<()>> + Send;
}
