//! Requests of ours that are under way: connect when there is no connection, try again when connecting fails, give up in time.
//! [`super::task`] owns the swarm and does what is said here.

use super::behaviour::REQUEST_TIMEOUT;
use super::handle::RequestError;
use super::peer::from_libp2p;
use libp2p::request_response::{OutboundFailure, OutboundRequestId};
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Requests under way at a time; further ones are refused.
const REQUESTS_MAX: usize = 512;
/// Dials for one request. The peer may be reserving its circuit just now.
const DIALS_MAX: u32 = 4;
/// The pause after the first failed dial; it doubles.
const DIAL_PAUSE: Duration = Duration::from_millis(150);
/// While this node itself is not connected to the fabric: how long a request waits for that.
const HOMELESS_PAUSE: Duration = Duration::from_secs(3);

/// All that are under way.
#[derive(Default)]
pub(super) struct Requests {
    by_id: BTreeMap<u64, Outbound>,
    next: u64,
}

struct Outbound {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    payload: Vec<u8>,
    reply: oneshot::Sender<Result<Vec<u8>, RequestError>>,
    state: State,
    dials: u32,
    last_error: Option<String>,
    deadline: Instant,
}

enum State {
    /// To be sent or dialed at `due`.
    Due {
        due: Instant,
    },
    Dialing {
        connection: ConnectionId,
    },
    Sent {
        id: OutboundRequestId,
    },
}

/// One that is due: send it if connected, else dial.
pub(super) struct Due {
    pub(super) id: u64,
    pub(super) peer: PeerId,
    pub(super) addresses: Vec<Multiaddr>,
    /// Somebody dials that peer already.
    pub(super) joins: Option<ConnectionId>,
}

impl Requests {
    pub(super) fn add(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        payload: Vec<u8>,
        reply: oneshot::Sender<Result<Vec<u8>, RequestError>>,
        now: Instant,
    ) {
        if self.by_id.len() == REQUESTS_MAX {
            return drop(reply.send(Err(RequestError::Busy)));
        }
        let state = State::Due { due: now };
        self.by_id.insert(
            self.next,
            Outbound {
                peer,
                addresses,
                payload,
                reply,
                state,
                dials: 0,
                last_error: None,
                deadline: now + REQUEST_TIMEOUT,
            },
        );
        self.next += 1;
    }

    pub(super) fn poll_due(&self, now: Instant) -> Option<Due> {
        let (&id, request) = self
            .by_id
            .iter()
            .find(|(_, request)| matches!(request.state, State::Due { due } if due <= now))?;
        let joins = self.by_id.values().find_map(|other| match other.state {
            State::Dialing { connection } if other.peer == request.peer => Some(connection),
            _ => None,
        });
        Some(Due {
            id,
            peer: request.peer,
            addresses: request.addresses.clone(),
            joins,
        })
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let wakes = self.by_id.values().map(|request| match request.state {
            State::Due { due } => due.min(request.deadline),
            _ => request.deadline,
        });
        wakes.min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let late: Vec<u64> = self
            .by_id
            .iter()
            .filter(|(_, request)| request.deadline <= now)
            .map(|(&id, _)| id)
            .collect();
        for id in late {
            let Some(request) = self.by_id.remove(&id) else {
                continue;
            };
            let error = match (&request.state, &request.last_error) {
                (State::Sent { .. }, _) | (_, None) => RequestError::TimedOut(REQUEST_TIMEOUT),
                (_, Some(reason)) => unreachable(&request.peer, reason.clone()),
            };
            let _gone = request.reply.send(Err(error));
        }
    }

    pub(super) fn handle_dialing(&mut self, id: u64, connection: ConnectionId) {
        if let Some(request) = self.by_id.get_mut(&id) {
            request.state = State::Dialing { connection };
        }
    }

    /// What to send, now that it is being sent.
    pub(super) fn take_payload(&mut self, id: u64) -> Vec<u8> {
        self.by_id
            .get(&id)
            .map(|request| request.payload.clone())
            .unwrap_or_default()
    }

    pub(super) fn handle_sent(&mut self, id: u64, sent: OutboundRequestId) {
        if let Some(request) = self.by_id.get_mut(&id) {
            request.state = State::Sent { id: sent };
        }
    }

    /// A connection with `peer` stands: all that waited for one are due.
    pub(super) fn handle_connected(&mut self, peer: PeerId, now: Instant) {
        for request in self
            .by_id
            .values_mut()
            .filter(|request| request.peer == peer)
        {
            if !matches!(request.state, State::Sent { .. }) {
                request.state = State::Due { due: now };
            }
        }
    }

    /// This node has a way into the fabric now: who waited for circuits can have them.
    pub(super) fn handle_home_found(&mut self, now: Instant) {
        for request in self.by_id.values_mut() {
            if matches!(request.state, State::Due { .. }) {
                request.state = State::Due { due: now };
            }
        }
    }

    pub(super) fn handle_dial_failed(
        &mut self,
        connection: ConnectionId,
        reason: &str,
        is_homeless: bool,
        now: Instant,
    ) {
        let failed: Vec<u64> = self
            .by_id
            .iter()
            .filter(|(_, request)| matches!(request.state, State::Dialing { connection: dialed } if dialed == connection))
            .map(|(&id, _)| id)
            .collect();
        for id in failed {
            self.dial_again(id, reason, is_homeless, now);
        }
    }

    /// The dial for `id` came to nothing: once more after a pause, or that was it.
    pub(super) fn dial_again(&mut self, id: u64, reason: &str, is_homeless: bool, now: Instant) {
        let Some(request) = self.by_id.get_mut(&id) else {
            return;
        };
        request.dials += 1;
        request.last_error = Some(reason.to_owned());
        if request.dials < DIALS_MAX {
            let pause = if is_homeless {
                HOMELESS_PAUSE
            } else {
                DIAL_PAUSE * 2u32.pow(request.dials - 1)
            };
            request.state = State::Due { due: now + pause };
            return;
        }
        if let Some(request) = self.by_id.remove(&id) {
            let error = unreachable(&request.peer, reason.to_owned());
            let _gone = request.reply.send(Err(error));
        }
    }

    pub(super) fn handle_response(&mut self, sent: OutboundRequestId, payload: Vec<u8>) {
        if let Some(request) = self.remove_sent(sent) {
            let _gone = request.reply.send(Ok(payload));
        }
    }

    pub(super) fn handle_failure(
        &mut self,
        sent: OutboundRequestId,
        failure: &OutboundFailure,
        is_homeless: bool,
        now: Instant,
    ) {
        if is_lost_connection(failure) {
            let id = self
                .by_id
                .iter()
                .find(|(_, request)| matches!(request.state, State::Sent { id } if id == sent))
                .map(|(&id, _)| id);
            return id.map_or((), |id| {
                self.dial_again(id, "the connection was lost", is_homeless, now)
            });
        }
        let Some(request) = self.remove_sent(sent) else {
            return;
        };
        let error = match failure {
            OutboundFailure::Timeout => RequestError::TimedOut(REQUEST_TIMEOUT),
            OutboundFailure::UnsupportedProtocols => RequestError::Unsupported,
            OutboundFailure::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                RequestError::Interrupted("the peer gave no answer".into())
            }
            other => RequestError::Interrupted(other.to_string()),
        };
        let _gone = request.reply.send(Err(error));
    }

    fn remove_sent(&mut self, sent: OutboundRequestId) -> Option<Outbound> {
        let id = self
            .by_id
            .iter()
            .find(|(_, request)| matches!(request.state, State::Sent { id } if id == sent))
            .map(|(&id, _)| id)?;
        self.by_id.remove(&id)
    }
}

/// Whether the connection went, before the request was sent or before it was answered: then it is asked again over another one. The
/// peer may thus be asked twice, as by every caller that repeats what got no answer.
fn is_lost_connection(failure: &OutboundFailure) -> bool {
    match failure {
        OutboundFailure::DialFailure | OutboundFailure::ConnectionClosed => true,
        OutboundFailure::Io(error) => {
            // A stream that ends early is an answer, and one that breaks a rule is none that another connection would better.
            !matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
            )
        }
        OutboundFailure::Timeout | OutboundFailure::UnsupportedProtocols => false,
    }
}

fn unreachable(peer: &PeerId, reason: String) -> RequestError {
    // Only peers with our kind of identity are ever asked.
    from_libp2p(peer).map_or(RequestError::Unsupported, |peer| {
        RequestError::Unreachable { peer, reason }
    })
}
