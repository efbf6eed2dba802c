//! The node: owns every part, starts and stops them in order, and passes messages between them. It decides nothing
//! that a core can decide: each file here drives one core or one service.
//!
//! One task, `actor::Node::run`, owns all state. Slow work (asking peers, reading the DHT) runs in jobs that send
//! their result back as `actor::Mail`.

mod actor;
mod admission;
mod calls;
mod doctor;
mod fabric;
mod fabric_client;
mod join;
mod lan;
mod leases;
mod membership;
mod names;
mod nat;
mod ports;
mod records;
mod registrar;
mod relay_stream;
mod requests;
mod snoop;
mod status;
mod why;

pub use fabric::run_fabric;
pub use relay_stream::RelayStream;
pub use snoop::tells_something;

use crate::{
    api::{ApiServer, ApiStartError},
    config::RunConfig,
    host::{Netlink, NetlinkError},
    state::{State, StateError},
    stream::{Carriers, Opener},
};
use dht::{
    identity::Identity,
    invite::{InvalidInvite, Invite},
    swarm,
};
use overlay_types::api::Status;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

/// Why a node cannot start, or had to stop. Each is one line that says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The identity file.
    #[error(
        "the identity in {0} is damaged; restore it from a backup, or remove it to become a new node"
    )]
    Identity(String),
    /// The invite.
    #[error("cannot join: {0}")]
    Invite(#[from] InvalidInvite),
    /// Joining failed.
    #[error("cannot join: {0}")]
    Join(String),
    /// The local API.
    #[error(transparent)]
    Api(#[from] ApiStartError),
    /// The kernel's network configuration.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The data port.
    #[error("{0}")]
    DataPlane(String),
    /// The control ports.
    #[error("{0}")]
    Swarm(String),
    /// The port where a fabric node takes streams.
    #[error("{0}")]
    Streams(String),
}

/// Mail that may wait for the node's task. Senders of the data plane drop and count beyond it; others wait.
const MAIL_MAX: usize = 4096;

/// Runs a member until `config.stop`. `ready` is called once: when the network that was asked for carries this node's
/// address, or at once when none was.
///
/// # Errors
/// [`NodeError`], after everything that was started is stopped again and nothing new but the identity is left behind.
pub async fn run(
    config: RunConfig,
    ready: impl FnOnce(&Status) + Send + 'static,
) -> Result<(), NodeError> {
    let invite = config
        .invite
        .as_ref()
        .map(|text| text.as_str().parse::<Invite>())
        .transpose()?;
    if let Some(invite) = &invite {
        invite.check_expiry(unix_now())?;
    }
    let state = State::open(&config.state_dir)?;
    let outcome = run_in(state.clone(), config, invite, ready).await;
    if outcome.is_err()
        && let Err(error) = state.abandon()
    {
        tracing::warn!(%error, "what the failed start wrote stays");
    }
    outcome
}

/// As [`run`], in a state directory that is ours.
async fn run_in(
    state: State,
    config: RunConfig,
    invite: Option<Invite>,
    ready: impl FnOnce(&Status) + Send + 'static,
) -> Result<(), NodeError> {
    let identity = load_identity(&state)?;
    let api = ApiServer::bind(&config.socket).await?;
    let netlink = Netlink::open()?;

    let (mail, inbox) = mpsc::channel(MAIL_MAX);
    let data_port = state.port("data", config.data_listen.port())?;
    let plane = start_plane(
        SocketAddr::new(config.data_listen.ip(), data_port),
        config.workers,
        mail.clone(),
    )?;
    let control_port = state.port(
        "control",
        config.control_listen.first().map_or(0, SocketAddr::port),
    )?;
    let mut bootstrap = config.bootstrap.clone();
    bootstrap.extend(
        invite
            .iter()
            .flat_map(|invite| &invite.bootstrap)
            .filter_map(|a| a.parse().ok()),
    );
    let carriers = Carriers {
        opener: Opener::new(identity.clone(), &config.via),
        data_port: plane.local_addr(),
    };
    let swarm_config = swarm::SwarmConfig {
        identity: identity.clone(),
        listen: listeners(&config.control_listen, control_port),
        external: Vec::new(),
        bootstrap,
        role: swarm::Role::Member,
        mdns: config.mdns,
        streams: Some(carriers.opener.dialer()),
    };
    let (swarm, swarm_events) =
        swarm::spawn(swarm_config).map_err(|e| NodeError::Swarm(e.to_string()))?;

    let stop = config.stop.clone();
    let handle = Arc::new(calls::NodeHandle::new(mail.clone(), stop.clone()));
    let api_task = tokio::spawn(api.serve(handle, stop.clone()));
    let parts = actor::Parts {
        config,
        state,
        identity,
        netlink,
        plane,
        swarm: swarm.clone(),
        carriers,
        mail,
        seed_rng: entropy_rng(),
    };
    let outcome = actor::Node::start(parts).await;
    let outcome = match outcome {
        Ok(node) => node.run(inbox, swarm_events, invite, Box::new(ready)).await,
        Err(error) => Err(error),
    };
    stop.cancel();
    let _stopped = api_task.await;
    let _slow = tokio::time::timeout(Duration::from_secs(2), swarm.shutdown()).await;
    outcome
}

fn load_identity(state: &State) -> Result<Identity, NodeError> {
    let bytes = state.identity(|| {
        let identity = Identity::generate(&mut entropy_rng());
        Zeroizing::new(identity.to_bytes().to_vec())
    })?;
    let secret = <&[u8; 32]>::try_from(bytes.as_slice())
        .map_err(|_| NodeError::Identity(state.dir().path("identity").display().to_string()))?;
    Ok(Identity::from_bytes(secret))
}

fn start_plane(
    listen: SocketAddr,
    workers: Option<u8>,
    mail: mpsc::Sender<actor::Mail>,
) -> Result<tunnel::io::DataPlane, NodeError> {
    let mut seed = [0; 32];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut seed);
    let mut dropped = 0_u64;
    let sink = Box::new(move |event| {
        // A full inbox means that the node is far behind; the data plane must not wait for it.
        if mail.try_send(actor::Mail::Plane(event)).is_err() {
            dropped += 1;
            tracing::warn!(
                dropped,
                "the node is too busy to hear of the data plane's event"
            );
        }
    });
    let config = tunnel::io::DataPlaneConfig {
        listen,
        workers: workers.unwrap_or_else(|| {
            let processors = std::thread::available_parallelism().map_or(1, Into::into);
            tunnel::io::workers_for(processors)
        }),
        seed,
    };
    tunnel::io::DataPlane::start(config, sink).map_err(|e| NodeError::DataPlane(e.to_string()))
}

/// Both transports of every listening address, with the port that was chosen.
fn listeners(addresses: &[SocketAddr], port: u16) -> Vec<swarm::Multiaddr> {
    addresses
        .iter()
        .flat_map(|addr| swarm::multiaddrs_of(SocketAddr::new(addr.ip(), port)))
        .collect()
}

/// The one place where the cores' randomness begins.
fn entropy_rng() -> ChaCha20Rng {
    let mut seed = [0; 32];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut seed);
    ChaCha20Rng::from_seed(seed)
}

/// Unix seconds.
pub(crate) fn unix_now() -> u64 {
    since_epoch().as_secs()
}

/// Unix milliseconds.
fn unix_ms() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
