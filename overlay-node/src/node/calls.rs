//! What the local API asks of the node's task, and the handle through which it asks.

use super::actor::Mail;
use crate::api::{Answer, NodeApi, NodeControl};
use overlay_types::{
    Name,
    api::{
        AddPort, ApiError, AttachLan, CreateInvite, CreateNetwork, Invite, JoinNetwork, LanStatus,
        LeaseStatus, LeaveNetwork, NetworkStatus, PeerStatus, Ping, Pong, PortStatus, RemovePort,
        Status,
    },
    doctor::Diagnosis,
    why::{Explanation, Why},
};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Answer<T>>;

/// A question to the node's task.
pub(super) enum Call {
    Status(Reply<Status>),
    Create(CreateNetwork, Reply<NetworkStatus>),
    Join(JoinNetwork, Reply<NetworkStatus>),
    Leave(LeaveNetwork, Reply<()>),
    Invite(Option<Name>, CreateInvite, Reply<Invite>),
    Peers(Option<Name>, Reply<Vec<PeerStatus>>),
    Leases(Option<Name>, Reply<Vec<LeaseStatus>>),
    Ping(Option<Name>, Ping, Reply<Pong>),
    Why(Option<Name>, Why, Reply<Explanation>),
    Doctor(Reply<Diagnosis>),
    Ports(Option<Name>, Reply<Vec<PortStatus>>),
    AddPort(Option<Name>, AddPort, Reply<PortStatus>),
    RemovePort(Option<Name>, RemovePort, Reply<()>),
    Lans(Option<Name>, Reply<Vec<LanStatus>>),
    AttachLan(Option<Name>, AttachLan, Reply<LanStatus>),
    DetachLan(Option<Name>, Reply<()>),
}

/// One line for people.
pub(super) fn refuse<T>(why: impl std::fmt::Display) -> Answer<T> {
    Err(ApiError {
        error: why.to_string(),
    })
}

/// An error as the local API tells it.
pub(super) fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError {
        error: error.to_string(),
    }
}

/// Asks the node's task.
pub(super) struct NodeHandle {
    mail: mpsc::Sender<Mail>,
    stop: CancellationToken,
}

/// Longest wait for an answer; joining, the slowest call, gives up well before.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

impl NodeHandle {
    pub(super) const fn new(mail: mpsc::Sender<Mail>, stop: CancellationToken) -> Self {
        Self { mail, stop }
    }

    async fn ask<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        if self
            .mail
            .send(Mail::Call(Box::new(call(reply))))
            .await
            .is_err()
        {
            return refuse("the node is stopping");
        }
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => refuse("the node stopped before it could answer"),
            Err(_) => refuse("the node did not answer in a minute; look at its log"),
        }
    }
}

impl NodeControl for NodeHandle {
    async fn status(&self) -> Answer<Status> {
        self.ask(Call::Status).await
    }
    async fn down(&self) -> Answer<()> {
        self.stop.cancel();
        Ok(())
    }
}

impl NodeApi for NodeHandle {
    async fn create_network(&self, request: CreateNetwork) -> Answer<NetworkStatus> {
        self.ask(|reply| Call::Create(request, reply)).await
    }
    async fn join_network(&self, request: JoinNetwork) -> Answer<NetworkStatus> {
        self.ask(|reply| Call::Join(request, reply)).await
    }
    async fn leave_network(&self, request: LeaveNetwork) -> Answer<()> {
        self.ask(|reply| Call::Leave(request, reply)).await
    }
    async fn create_invite(&self, network: Option<Name>, request: CreateInvite) -> Answer<Invite> {
        self.ask(|reply| Call::Invite(network, request, reply))
            .await
    }
    async fn peers(&self, network: Option<Name>) -> Answer<Vec<PeerStatus>> {
        self.ask(|reply| Call::Peers(network, reply)).await
    }
    async fn leases(&self, network: Option<Name>) -> Answer<Vec<LeaseStatus>> {
        self.ask(|reply| Call::Leases(network, reply)).await
    }
    async fn ping(&self, network: Option<Name>, request: Ping) -> Answer<Pong> {
        self.ask(|reply| Call::Ping(network, request, reply)).await
    }
    async fn why(&self, network: Option<Name>, request: Why) -> Answer<Explanation> {
        self.ask(|reply| Call::Why(network, request, reply)).await
    }
    async fn doctor(&self) -> Answer<Diagnosis> {
        self.ask(Call::Doctor).await
    }
    async fn ports(&self, network: Option<Name>) -> Answer<Vec<PortStatus>> {
        self.ask(|reply| Call::Ports(network, reply)).await
    }
    async fn add_port(&self, network: Option<Name>, request: AddPort) -> Answer<PortStatus> {
        self.ask(|reply| Call::AddPort(network, request, reply))
            .await
    }
    async fn remove_port(&self, network: Option<Name>, request: RemovePort) -> Answer<()> {
        self.ask(|reply| Call::RemovePort(network, request, reply))
            .await
    }
    async fn lans(&self, network: Option<Name>) -> Answer<Vec<LanStatus>> {
        self.ask(|reply| Call::Lans(network, reply)).await
    }
    async fn attach_lan(&self, network: Option<Name>, request: AttachLan) -> Answer<LanStatus> {
        self.ask(|reply| Call::AttachLan(network, request, reply))
            .await
    }
    async fn detach_lan(&self, network: Option<Name>) -> Answer<()> {
        self.ask(|reply| Call::DetachLan(network, reply)).await
    }
}
