//! Which libp2p protocols a node speaks, and with which limits. What is done with their events is [`super::task`]'s part.

use super::circuits::{CircuitLimits, relay_server};
use super::codec::BytesCodec;
use super::gate::Gate;
use super::slots::SlotKad;
use super::streams::StreamTransport;
use super::{Role, SpawnError, SwarmConfig};
use libp2p::core::upgrade;
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, Transport, autonat, dcutr, identify, kad, mdns, noise,
    ping, relay, request_response, tcp, yamux,
};
use libp2p_allow_block_list::{self as allow_block_list, BlockedPeers};
use libp2p_connection_limits::{self as connection_limits, ConnectionLimits};
use std::time::Duration;

const REQUEST_PROTOCOL: StreamProtocol = StreamProtocol::new("/farlan/req/1");
/// Told by identify; peers of another major version are not ours.
const IDENTIFY_PROTOCOL: &str = "/farlan/1";

/// How long a request may take, dialing included.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of one peer that are worked on at a time.
const REQUEST_STREAMS_MAX: usize = 64;

/// A member's other connections close after this much silence; those into the fabric are pinned.
const MEMBER_IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// A fabric node waits for its members to close: they know which connections they want.
const FABRIC_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Keeps NAT mappings alive (RFC 4787 asks for 2 min, some give 30 s) at a few bytes per second.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(25);
const QUIC_IDLE_TIMEOUT_MS: u32 = 90_000;
/// Some 100 bytes per second and connection over QUIC, 200 over TCP, both directions together.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer whose last pong is so old is gone without a word: one ping was due and had its time, and we look every few seconds.
/// libp2p's ping tells of the second failure only, half a minute later.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(22);
const IDENTIFY_INTERVAL: Duration = Duration::from_secs(300);

/// Connections with one peer: two transports and a circuit, while one replaces another.
const CONNECTIONS_PER_PEER: u32 = 6;
/// A fabric node's connections cost some 60 kB each.
pub(super) const FABRIC_CONNECTIONS_MAX: u32 = 10_000;
const MEMBER_CONNECTIONS_MAX: u32 = 1_000;
const PENDING_MAX: u32 = 512;

/// Everything a node speaks. Those that refuse connections come first: a later one must not have acted on what is refused.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(super) gate: Gate,
    pub(super) relay_client: relay::client::Behaviour,
    pub(super) relay_server: Toggle<relay::Behaviour>,
    pub(super) dcutr: Toggle<dcutr::Behaviour>,
    pub(super) autonat_client: Toggle<autonat::v2::client::Behaviour>,
    pub(super) autonat_server: Toggle<autonat::v2::server::Behaviour>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) kad: SlotKad,
    pub(super) requests: request_response::Behaviour<BytesCodec>,
}

/// A swarm that listens nowhere yet. To be called within a tokio runtime.
pub(super) fn build(
    config: &SwarmConfig,
    keypair: Keypair,
    circuits: CircuitLimits,
) -> Result<Swarm<Behaviour>, SpawnError> {
    let failed = |what: &'static str| {
        move |error: &dyn std::fmt::Display| SpawnError::Transport(format!("{what}: {error}"))
    };
    let (role, with_mdns) = (config.role, config.mdns);
    let builder = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )
        .map_err(|error| failed("TCP")(&error))?
        .with_quic_config(|mut quic| {
            quic.keep_alive_interval = QUIC_KEEP_ALIVE;
            quic.max_idle_timeout = QUIC_IDLE_TIMEOUT_MS;
            quic.max_stream_data = 1 << 20; // no bulk data here: memory is better kept
            quic.max_connection_data = 4 << 20;
            quic
        })
        .with_other_transport(|keypair| {
            let dialer = config.streams.clone();
            Ok(StreamTransport { dialer }
                .upgrade(upgrade::Version::V1Lazy)
                .authenticate(noise::Config::new(keypair)?)
                .multiplex(yamux::Config::default()))
        })
        .map_err(|error| failed("streams")(&error))?;
    macro_rules! finish {
        ($builder:expr) => {
            $builder
                .with_relay_client(noise::Config::new, yamux::Config::default)
                .map_err(|error| failed("relay client")(&error))?
                .with_behaviour(|keypair, relay_client| {
                    Behaviour::new(keypair, relay_client, role, with_mdns, circuits)
                })
                .map_err(|error| failed("behaviour")(&error))?
                .with_swarm_config(|swarm| {
                    let idle = if role == Role::Fabric {
                        FABRIC_IDLE_TIMEOUT
                    } else {
                        MEMBER_IDLE_TIMEOUT
                    };
                    swarm.with_idle_connection_timeout(idle).with_smart_dial()
                })
                .build()
        };
    }
    // Without a usable /etc/resolv.conf (a bare container, a namespace) names do not resolve, and addresses work all the same.
    // The two differ in type only.
    Ok(match libp2p::dns::tokio::Transport::system(()) {
        Ok(_) => finish!(builder.with_dns().map_err(|error| failed("DNS")(&error))?),
        Err(error) => {
            tracing::warn!(%error, "the system's resolver is not usable: bootstraps given by name cannot be reached");
            finish!(builder)
        }
    })
}

impl Behaviour {
    fn new(
        keypair: &Keypair,
        relay_client: relay::client::Behaviour,
        role: Role,
        with_mdns: bool,
        circuits: CircuitLimits,
    ) -> Self {
        let local = keypair.public().to_peer_id();
        let is_fabric = role == Role::Fabric;
        let connections = if is_fabric {
            FABRIC_CONNECTIONS_MAX
        } else {
            MEMBER_CONNECTIONS_MAX
        };
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(PENDING_MAX))
            .with_max_pending_outgoing(Some(PENDING_MAX))
            .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER))
            .with_max_established(Some(connections));
        let identify = identify::Config::new(IDENTIFY_PROTOCOL.into(), keypair.public())
            .with_agent_version(concat!("farlan/", env!("CARGO_PKG_VERSION")).into())
            .with_interval(IDENTIFY_INTERVAL)
            .with_push_listen_addr_updates(true);
        let mode = if is_fabric {
            kad::Mode::Server
        } else {
            kad::Mode::Client
        };
        let requests = request_response::Config::default()
            .with_request_timeout(REQUEST_TIMEOUT)
            .with_max_concurrent_streams(REQUEST_STREAMS_MAX);
        let mdns = with_mdns.then(|| mdns::tokio::Behaviour::new(mdns::Config::default(), local));
        let mdns = mdns.and_then(|started| {
            started
                .inspect_err(|error| tracing::warn!(%error, "not looking for nodes on the LAN"))
                .ok()
        });
        Self {
            limits: connection_limits::Behaviour::new(limits),
            blocked: allow_block_list::Behaviour::default(),
            gate: Gate::default(),
            relay_client,
            relay_server: is_fabric.then(|| relay_server(local, circuits)).into(),
            dcutr: (!is_fabric).then(|| dcutr::Behaviour::new(local)).into(),
            autonat_client: (!is_fabric)
                .then(autonat::v2::client::Behaviour::default)
                .into(),
            autonat_server: is_fabric
                .then(autonat::v2::server::Behaviour::default)
                .into(),
            mdns: mdns.into(),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(
                ping::Config::new()
                    .with_interval(PING_INTERVAL)
                    .with_timeout(PING_TIMEOUT),
            ),
            kad: SlotKad::new(local, mode),
            requests: request_response::Behaviour::new(
                [(REQUEST_PROTOCOL, request_response::ProtocolSupport::Full)],
                requests,
            ),
        }
    }
}
