//! What libp2p tells, and what follows from it. Where others reach this node is [`super::reach`]'s part.

use super::*;
use crate::swarm::behaviour::SILENCE_MAX;

/// Requests of others that wait for their answer; further ones are dropped, which their senders see at once.
const ANSWERS_MAX: usize = 512;
/// Addresses that one peer may tell of itself.
const TOLD_ADDRESSES_MAX: usize = 8;
/// Peers on the LAN whose addresses are remembered.
const LAN_PEERS_MAX: usize = 64;

impl SwarmTask {
    pub(super) fn handle_swarm_event(&mut self, event: Libp2pEvent<BehaviourEvent>, now: Instant) {
        match event {
            Libp2pEvent::Behaviour(event) => self.handle_behaviour_event(event, now),
            Libp2pEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                num_established,
                ..
            } => {
                let address = split_peer_of(endpoint.get_remote_address(), &peer_id).0;
                let connection = Connection {
                    address: address.clone(),
                    is_relayed: endpoint.is_relayed(),
                    heard_at: Some(now),
                };
                let is_relayed = connection.is_relayed;
                self.peers
                    .entry(peer_id)
                    .or_default()
                    .connections
                    .insert(connection_id, connection);
                if num_established.get() == 1
                    && let Ok(peer) = from_libp2p(&peer_id)
                {
                    self.emit(SwarmEvent::Connected(peer));
                }
                if !is_relayed && self.homes.handle_connected(peer_id, connection_id) {
                    let behaviour = self.swarm.behaviour_mut();
                    behaviour.gate.pin(peer_id, connection_id);
                    if endpoint.is_dialer() {
                        // A home serves the DHT; identify would say so a round trip later.
                        behaviour.kad.add_address(&peer_id, address);
                    }
                    self.reserve_where_needed(now);
                }
                self.requests.handle_connected(peer_id, now);
                self.queries.start_waiting(
                    Dht {
                        kad: &mut self.swarm.behaviour_mut().kad,
                        own: self.own,
                    },
                    now,
                );
            }
            Libp2pEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                cause,
                ..
            } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                self.handle_closed(peer_id, connection_id, num_established, now);
            }
            Libp2pEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => self.handle_dial_error(connection_id, peer_id, &error, now),
            Libp2pEvent::NewListenAddr { address, .. } => {
                // A fabric node is where it was told to listen: its relay must name addresses to who reserves.
                if self.role == Role::Fabric
                    && !is_circuit(&address)
                    && (!is_loopback(&address) || self.speaks_on_loopback)
                {
                    self.swarm.add_external_address(address);
                }
                self.publish();
            }
            Libp2pEvent::ExpiredListenAddr { address, .. } => {
                if self.role == Role::Fabric {
                    self.swarm.remove_external_address(&address);
                }
                self.publish();
            }
            Libp2pEvent::ListenerClosed {
                listener_id,
                reason,
                ..
            } => self.handle_listener_closed(listener_id, reason.err(), now),
            Libp2pEvent::ExternalAddrConfirmed { .. } | Libp2pEvent::ExternalAddrExpired { .. } => {
                self.set_dht_mode();
                self.reserve_where_needed(now);
                self.publish();
            }
            other => tracing::trace!(event = ?other, "swarm"),
        }
    }

    pub(super) fn handle_closed(
        &mut self,
        peer_id: PeerId,
        connection: ConnectionId,
        remaining: u32,
        now: Instant,
    ) {
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.connections.remove(&connection);
        }
        if self
            .peers
            .get(&peer_id)
            .is_none_or(|peer| peer.direct().is_none())
        {
            self.reservations.remove(&peer_id);
            self.swarm.behaviour_mut().gate.unpin(&peer_id);
            if self.homes.handle_disconnected(peer_id, now) {
                self.counters.homes_lost += 1;
            }
        }
        if remaining == 0 {
            self.peers.remove(&peer_id);
            if let Ok(peer) = from_libp2p(&peer_id) {
                self.emit(SwarmEvent::Disconnected(peer));
            }
        }
        self.publish();
    }

    pub(super) fn handle_dial_error(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        error: &DialError,
        now: Instant,
    ) {
        if let (DialError::DialPeerConditionFalse(_), Some(peer)) = (error, peer) {
            // Connected already, by another's doing.
            if self.homes.handle_connected(peer, connection)
                && let Some(open) = self
                    .peers
                    .get(&peer)
                    .and_then(|peer| peer.connections.keys().next())
            {
                self.swarm.behaviour_mut().gate.pin(peer, *open);
            }
            return;
        }
        let reason = describe(error);
        tracing::debug!(peer = ?peer, reason, "dial failed");
        let is_homeless = self.is_homeless();
        self.requests
            .handle_dial_failed(connection, &reason, is_homeless, now);
        if let Some(status) = self.homes.handle_dial_failed(connection, reason, now) {
            self.emit(SwarmEvent::BootstrapUnreachable(status));
        }
    }

    pub(super) fn handle_behaviour_event(&mut self, event: BehaviourEvent, now: Instant) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                info,
                connection_id,
            }) => self.handle_identified(peer_id, connection_id, info, now),
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                id, result, step, ..
            }) => {
                self.queries.handle_progress(
                    id,
                    result,
                    step.last,
                    Dht {
                        kad: &mut self.swarm.behaviour_mut().kad,
                        own: self.own,
                    },
                    now,
                );
            }
            BehaviourEvent::Kad(kad::Event::RoutingUpdated { .. }) => {
                self.queries.start_waiting(
                    Dht {
                        kad: &mut self.swarm.behaviour_mut().kad,
                        own: self.own,
                    },
                    now,
                );
            }
            BehaviourEvent::Requests(event) => self.handle_request_event(event, now),
            BehaviourEvent::RelayClient(relay::client::Event::ReservationReqAccepted {
                relay_peer_id,
                renewal,
                ..
            }) => {
                if let Some(place) = self.reservations.get_mut(&relay_peer_id) {
                    place.is_held = true;
                    place.failures = 0;
                }
                tracing::debug!(relay = %relay_peer_id, renewal, "circuits can be had");
                self.publish();
            }
            BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result,
            }) => {
                let Some(peer) = self.peers.get_mut(&peer) else {
                    return;
                };
                let Some(pinged) = peer.connections.get_mut(&connection) else {
                    return;
                };
                match result {
                    Ok(rtt) => {
                        pinged.heard_at = Some(now);
                        peer.rtt = Some(rtt);
                    }
                    Err(ping::Failure::Unsupported) => pinged.heard_at = None,
                    Err(_) => {} // its silence counts, see `close_silent_connections`
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.handle_found_on_lan(peer, address);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Expired(gone)) => {
                for (peer, address) in gone {
                    if let Some(addresses) = self.lan.get_mut(&peer) {
                        addresses.retain(|other| *other != address);
                    }
                    self.lan.retain(|_, addresses| !addresses.is_empty());
                }
            }
            other => tracing::trace!(event = ?other, "behaviour"),
        }
    }

    /// Peers that crashed, or that a network lost, say nothing; QUIC alone would wait 90 s for them.
    pub(super) fn close_silent_connections(&mut self, now: Instant) {
        let connections = self.peers.iter().flat_map(|(peer, known)| {
            known
                .connections
                .iter()
                .map(move |(id, connection)| (*peer, *id, connection.heard_at))
        });
        let silent: Vec<_> = connections
            .filter(|(_, _, heard_at)| {
                heard_at.is_some_and(|heard_at| heard_at + SILENCE_MAX <= now)
            })
            .collect();
        for (peer, connection, _) in silent {
            tracing::debug!(%peer, "peer does not answer; closing");
            self.swarm.close_connection(connection);
        }
    }

    pub(super) fn handle_identified(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        info: identify::Info,
        now: Instant,
    ) {
        let Some(known) = self.peers.get_mut(&peer) else {
            return;
        };
        let Some(over) = known
            .connections
            .get(&connection)
            .map(|connection| connection.address.clone())
        else {
            return;
        };
        let told = info
            .listen_addrs
            .into_iter()
            .filter(|told| is_worth_keeping(told, &over) && !self.hidden.contains(told))
            .map(|told| split_peer_of(&told, &peer).0);
        let told: Vec<Multiaddr> = told.take(TOLD_ADDRESSES_MAX).collect();
        let speaks = |protocol: &str| {
            info.protocols
                .iter()
                .any(|spoken| spoken.as_ref() == protocol)
        };
        if speaks("/farlan/kad/1") {
            for address in &told {
                self.swarm
                    .behaviour_mut()
                    .kad
                    .add_address(&peer, address.clone());
            }
        }
        if !speaks(relay::HOP_PROTOCOL_NAME.as_ref()) {
            return;
        }
        let is_news = known.fabric_addresses.as_ref() != Some(&told);
        let is_direct = known.direct().is_some();
        known.fabric_addresses = Some(told.clone());
        self.homes.learn(peer, told.clone(), is_direct, now);
        if is_news && let Ok(id) = from_libp2p(&peer) {
            let addresses = told
                .into_iter()
                .map(|address| address.with(Protocol::P2p(peer)))
                .collect();
            self.emit(SwarmEvent::FabricSeen {
                peer: id,
                addresses,
            });
        }
        self.requests.handle_home_found(now);
        self.reserve_where_needed(now);
    }

    pub(super) fn handle_found_on_lan(&mut self, peer: PeerId, address: Multiaddr) {
        let address = split_peer_of(&address, &peer).0;
        if self.lan.len() == LAN_PEERS_MAX && !self.lan.contains_key(&peer) {
            return;
        }
        let addresses = self.lan.entry(peer).or_default();
        if addresses.len() < TOLD_ADDRESSES_MAX && !addresses.contains(&address) {
            addresses.push(address.clone());
        }
        // Whether it is a fabric node, identify will tell.
        let options = DialOpts::peer_id(peer)
            .addresses(vec![address])
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .build();
        if let Err(error) = self.swarm.dial(options) {
            tracing::trace!(%peer, %error, "found on the LAN, not dialed");
        }
    }

    pub(super) fn handle_request_event(
        &mut self,
        event: request_response::Event<Vec<u8>, Vec<u8>>,
        now: Instant,
    ) {
        match event {
            request_response::Event::Message {
                peer,
                message:
                    request_response::Message::Request {
                        request, channel, ..
                    },
                ..
            } => {
                let Ok(peer) = from_libp2p(&peer) else { return };
                if self.answers.len() >= ANSWERS_MAX
                    || self.pending_events.len() >= PENDING_EVENTS_MAX
                {
                    self.counters.requests_dropped += 1; // the dropped channel closes the stream, which the peer sees
                    return;
                }
                let (reply, answer) = oneshot::channel();
                self.answers
                    .push(Box::pin(async move { (channel, answer.await.ok()) }));
                self.emit(SwarmEvent::Request {
                    peer,
                    payload: request,
                    reply,
                });
            }
            request_response::Event::Message {
                message:
                    request_response::Message::Response {
                        request_id,
                        response,
                    },
                ..
            } => {
                self.requests.handle_response(request_id, response);
            }
            request_response::Event::OutboundFailure {
                request_id, error, ..
            } => {
                let is_homeless = self.is_homeless();
                self.requests
                    .handle_failure(request_id, &error, is_homeless, now);
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "answer not delivered")
            }
            request_response::Event::ResponseSent { .. } => self.counters.requests_answered += 1,
        }
    }

    pub(super) fn handle_answer(
        &mut self,
        channel: ResponseChannel<Vec<u8>>,
        answer: Option<Vec<u8>>,
    ) {
        match answer {
            Some(answer) if answer.len() <= crate::swarm::PAYLOAD_BYTES_MAX => {
                let _gone = self
                    .swarm
                    .behaviour_mut()
                    .requests
                    .send_response(channel, answer);
            }
            Some(answer) => {
                tracing::warn!(bytes = answer.len(), "an answer is too long to be sent")
            }
            None => {} // dropping the channel tells the peer that there is no answer
        }
    }
}

/// What went wrong, address by address, in one line.
pub(super) fn describe(error: &DialError) -> String {
    match error {
        DialError::Transport(failures) => {
            let each = failures
                .iter()
                .map(|(address, error)| format!("{address}: {}", innermost(error)));
            each.collect::<Vec<_>>().join("; ")
        }
        DialError::NoAddresses => {
            "no address of it is known, and no fabric node is connected through which to reach it"
                .into()
        }
        DialError::WrongPeerId { obtained, .. } => {
            format!("another node answers there: {obtained}")
        }
        other => other.to_string(),
    }
}

/// The last cause in the chain says what the system said.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
