//! Decides whose connections are let in and which stay open while idle: peers without an Ed25519 identity are refused, pinned
//! peers (our way into the fabric) are kept. How many connections there may be is `libp2p-connection-limits`' part.

use super::peer::from_libp2p;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::DeniedUpgrade;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::handler::ConnectionEvent;
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
    NetworkBehaviour, NotifyHandler, SubstreamProtocol, ToSwarm,
};
use libp2p::{PeerId, swarm};
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::task::{Context, Poll, Waker};

/// The behaviour; its handlers speak no protocol.
#[derive(Default)]
pub(super) struct Gate {
    pinned: BTreeSet<PeerId>,
    commands: VecDeque<(PeerId, ConnectionId, KeepOpen)>,
    waker: Option<Waker>,
}

/// Said to a handler: stay open, or close when nobody else wants the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeepOpen(bool);

impl Gate {
    /// Keeps connections with `peer` open from now on: those to come, and `open`, which already is.
    pub(super) fn pin(&mut self, peer: PeerId, open: ConnectionId) {
        self.pinned.insert(peer);
        self.commands.push_back((peer, open, KeepOpen(true)));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// New connections with `peer` are ordinary ones again.
    pub(super) fn unpin(&mut self, peer: &PeerId) {
        self.pinned.remove(peer);
    }

    fn admit(&self, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        from_libp2p(&peer).map_err(ConnectionDenied::new)?;
        Ok(Handler {
            keep_open: self.pinned.contains(&peer),
        })
    }
}

impl NetworkBehaviour for Gate {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.admit(peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.admit(peer)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, KeepOpen>> {
        if let Some((peer_id, connection, event)) = self.commands.pop_front() {
            return Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::One(connection),
                event,
            });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// One connection's part.
pub(super) struct Handler {
    keep_open: bool,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = KeepOpen;
    type ToBehaviour = Infallible;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_open
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), Infallible>> {
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, KeepOpen(keep_open): KeepOpen) {
        self.keep_open = keep_open;
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, DeniedUpgrade, DeniedUpgrade>) {
        // The two that carry a stream cannot happen: no protocol is spoken. The others do not matter here.
        match event {
            ConnectionEvent::FullyNegotiatedInbound(swarm::handler::FullyNegotiatedInbound {
                protocol,
                ..
            }) => match protocol {},
            ConnectionEvent::FullyNegotiatedOutbound(swarm::handler::FullyNegotiatedOutbound {
                protocol,
                ..
            }) => match protocol {},
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::identity::Keypair;

    #[test]
    fn only_peers_with_an_ed25519_identity_are_let_in() {
        let gate = Gate::default();
        assert!(
            gate.admit(Keypair::generate_ed25519().public().to_peer_id())
                .is_ok()
        );
        assert!(gate.admit(PeerId::random()).is_err());
    }

    #[test]
    fn connections_with_pinned_peers_stay_open_while_idle() {
        let (mut gate, home) = (
            Gate::default(),
            Keypair::generate_ed25519().public().to_peer_id(),
        );
        assert!(!gate.admit(home).unwrap().connection_keep_alive());
        gate.pin(home, ConnectionId::new_unchecked(1));
        assert!(gate.admit(home).unwrap().connection_keep_alive());
        gate.unpin(&home);
        assert!(!gate.admit(home).unwrap().connection_keep_alive());
    }
}
