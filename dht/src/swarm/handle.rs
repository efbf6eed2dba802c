//! What the rest of the node sees of the swarm: a handle to ask it, the events it tells, its status.
//! Everything crosses a bounded channel; the swarm itself is owned by [`super::task`].

use libp2p::Multiaddr;
use overlay_types::PeerId;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Asks the swarm. Cheap to clone; the swarm stops when told to, or when the last handle is gone.
#[derive(Clone)]
pub struct SwarmHandle {
    pub(super) peer_id: PeerId,
    pub(super) commands: mpsc::Sender<Command>,
}

pub(super) enum Command {
    PutSlot {
        value: Vec<u8>,
        reply: oneshot::Sender<Result<usize, PutError>>,
    },
    GetSlot {
        key: [u8; 32],
        reply: oneshot::Sender<Vec<Vec<u8>>>,
    },
    Request {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        payload: Vec<u8>,
        reply: oneshot::Sender<Result<Vec<u8>, RequestError>>,
    },
    AddBootstrap {
        address: Multiaddr,
    },
    Dial {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
    },
    SetBlocked {
        peer: PeerId,
        blocked: bool,
    },
    SetHidden {
        ranges: Vec<(IpAddr, u8)>,
    },
    Status {
        reply: oneshot::Sender<SwarmStatus>,
    },
    Shutdown {
        reply: oneshot::Sender<()>,
    },
}

impl SwarmHandle {
    /// This node's identity.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// Writes a sealed slot value ([`crate::slot`]) to the nodes closest to its key, and says how many took it.
    ///
    /// # Errors
    /// [`PutError`]; nothing was stored then.
    pub async fn put_slot(&self, value: Vec<u8>) -> Result<usize, PutError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::PutSlot { value, reply })
            .await
            .map_err(|_| PutError::Stopped)?;
        answer.await.unwrap_or(Err(PutError::Stopped))
    }

    /// All valid values that the nodes closest to `key` hold: `key` as [`crate::slot`] derives it from the slot's public key.
    /// Empty when there are none, or nobody could be asked.
    pub async fn get_slot(&self, key: [u8; 32]) -> Vec<Vec<u8>> {
        let (reply, answer) = oneshot::channel();
        if self
            .commands
            .send(Command::GetSlot { key, reply })
            .await
            .is_err()
        {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Asks `peer`, connecting over `addresses` (multiaddrs; others than that are passed over), what is known of it, and circuits through our fabric nodes.
    /// Where a connection is lost before the answer it is asked again over another one, so it must be harmless twice.
    ///
    /// # Errors
    /// [`RequestError`]; the peer may have acted on it all the same.
    pub async fn request(
        &self,
        peer: PeerId,
        addresses: &[String],
        payload: Vec<u8>,
    ) -> Result<Vec<u8>, RequestError> {
        if payload.len() > super::codec::PAYLOAD_BYTES_MAX {
            return Err(RequestError::TooLong(payload.len()));
        }
        let addresses = addresses
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect();
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Request {
                peer,
                addresses,
                payload,
                reply,
            })
            .await
            .map_err(|_| RequestError::Stopped)?;
        answer.await.unwrap_or(Err(RequestError::Stopped))
    }

    /// One more way into the fabric; it is dialed now and kept connected from then on.
    pub async fn add_bootstrap(&self, address: Multiaddr) {
        let _stopped = self.commands.send(Command::AddBootstrap { address }).await;
    }

    /// Connects to `peer` without asking it anything.
    pub async fn dial(&self, peer: PeerId, addresses: &[String]) {
        let addresses = addresses
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect();
        let _stopped = self.commands.send(Command::Dial { peer, addresses }).await;
    }

    /// Refuses all connections with `peer` and closes those there are, or lets it in again.
    pub async fn set_blocked(&self, peer: PeerId, blocked: bool) {
        let _stopped = self
            .commands
            .send(Command::SetBlocked { peer, blocked })
            .await;
    }

    /// Ranges (base and prefix length) whose addresses are neither published nor dialed: those of the overlay's own networks.
    /// Replaces what was said before.
    pub async fn set_hidden(&self, ranges: Vec<(IpAddr, u8)>) {
        let _stopped = self.commands.send(Command::SetHidden { ranges }).await;
    }

    /// How things stand; `None` once the swarm has stopped.
    pub async fn status(&self) -> Option<SwarmStatus> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Status { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Closes all connections, so that peers learn of it now and not by a timeout, and stops.
    pub async fn shutdown(&self) {
        let (reply, answer) = oneshot::channel();
        if self
            .commands
            .send(Command::Shutdown { reply })
            .await
            .is_ok()
        {
            let _stopped = answer.await;
        }
    }
}

/// What happened. Slow readers lose events beyond a bound; [`SwarmCounters::events_dropped`] counts them.
#[derive(Debug)]
pub enum SwarmEvent {
    /// A peer asks; send the answer into `reply`, or drop it to give none.
    Request {
        /// Who asks; authenticated.
        peer: PeerId,
        /// What it asks.
        payload: Vec<u8>,
        /// Where the answer goes, at most [`super::PAYLOAD_BYTES_MAX`] bytes.
        reply: oneshot::Sender<Vec<u8>>,
    },
    /// The first connection with this peer stands.
    Connected(PeerId),
    /// The last connection with this peer is gone.
    Disconnected(PeerId),
    /// A connected peer turned out to serve as a fabric node.
    FabricSeen {
        /// Which.
        peer: PeerId,
        /// Where it says it is, with its identity appended: worth remembering as bootstraps.
        addresses: Vec<Multiaddr>,
    },
    /// Where others reach this node has changed: what to publish, best first, without the trailing identity.
    ListenAddrs(Vec<String>),
    /// A bootstrap could not be reached. Tries go on; this is said after 1, 2, 4, 8… failures.
    BootstrapUnreachable(BootstrapStatus),
}

/// Why a slot value was not stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PutError {
    /// The caller should mend the value.
    #[error("the slot value is refused: {0}")]
    Invalid(String),
    /// The caller should wait for a connection; see the bootstraps' status.
    #[error("no node of the DHT is connected; check that a bootstrap is reachable")]
    NoPeers,
    /// The caller should try again later.
    #[error("none of {asked} nodes took the slot value; try again in a moment")]
    NobodyStored {
        /// How many were asked.
        asked: usize,
    },
    /// The caller should slow down.
    #[error("too many DHT operations are under way; try again in a moment")]
    Busy,
    /// The node is going down.
    #[error("the swarm has stopped")]
    Stopped,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// The caller should find fresher addresses.
    #[error("{peer} cannot be reached: {reason}")]
    Unreachable {
        /// Whom.
        peer: PeerId,
        /// What each way of reaching it came to.
        reason: String,
    },
    /// The peer may be busy; the caller may try again.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The peer ended the stream without an answer; it may or may not have acted on the request.
    #[error("the connection broke before the answer came: {0}")]
    Interrupted(String),
    /// The peer does not speak our protocol; asking again is of no use.
    #[error("the peer does not take requests")]
    Unsupported,
    /// The caller should split it.
    #[error("a request of {0} bytes is too long, at most {max} are sent", max = super::PAYLOAD_BYTES_MAX)]
    TooLong(usize),
    /// The caller should slow down.
    #[error("too many requests are under way; try again in a moment")]
    Busy,
    /// The node is going down.
    #[error("the swarm has stopped")]
    Stopped,
}

/// How things stand.
#[derive(Debug, Clone)]
pub struct SwarmStatus {
    /// This node.
    pub peer: PeerId,
    /// What the sockets are bound to.
    pub listening: Vec<Multiaddr>,
    /// What [`SwarmEvent::ListenAddrs`] said last.
    pub published: Vec<String>,
    /// Whether this node serves the DHT: fabric nodes do, members only with a confirmed public address.
    pub is_dht_server: bool,
    /// How many DHT nodes are in the routing table.
    pub dht_peers: usize,
    /// At which fabric nodes circuits to this node can be had.
    pub reserved_at: Vec<PeerId>,
    /// The connected peers.
    pub connected: Vec<ConnectedPeer>,
    /// The ways into the fabric.
    pub bootstraps: Vec<BootstrapStatus>,
    /// How many slots are stored here.
    pub slots_stored: usize,
    /// What was counted since the start.
    pub counters: SwarmCounters,
}

/// One peer with which there is a connection.
#[derive(Debug, Clone)]
pub struct ConnectedPeer {
    /// Who.
    pub peer: PeerId,
    /// Where, over its best connection.
    pub address: Multiaddr,
    /// Whether that runs through a relay.
    pub is_relayed: bool,
    /// Whether it serves as a fabric node.
    pub is_fabric: bool,
    /// The last ping.
    pub rtt: Option<Duration>,
}

/// One way into the fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapStatus {
    /// Where, without the identity.
    pub addresses: Vec<String>,
    /// Who, once known.
    pub peer: Option<PeerId>,
    /// Whether nobody named it: we met it.
    pub is_learned: bool,
    /// How it stands.
    pub state: BootstrapState,
}

/// How a bootstrap stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootstrapState {
    /// Not tried yet, or the first try is under way.
    Connecting,
    /// Connected.
    Connected,
    /// The last try failed.
    Unreachable {
        /// Why.
        reason: String,
        /// Tries in a row that failed.
        attempts: u32,
        /// When the next one is made.
        retry_in: Duration,
    },
}

/// What was counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SwarmCounters {
    /// Slot values of others that were stored.
    pub values_stored: u64,
    /// Slot values of others that were refused: bad signature, old, expired, too long, over a quota.
    pub values_refused: u64,
    /// Values that DHT nodes gave us and that were not valid.
    pub values_invalid: u64,
    /// Requests answered.
    pub requests_answered: u64,
    /// Requests of others that were dropped because too many waited.
    pub requests_dropped: u64,
    /// Events that nobody took in time.
    pub events_dropped: u64,
    /// Times a connection into the fabric was lost.
    pub homes_lost: u64,
}
