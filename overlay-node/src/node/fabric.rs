//! An infrastructure node: serves the DHT, STUN and relay, is a member of no network, and can read nothing.

use super::{NodeError, listeners, load_identity, unix_now};
use crate::{
    api::{Answer, ApiServer, NodeControl},
    config::{FabricConfig, Streams},
    host::Netlink,
    state::State,
    stream::{StreamServer, StreamServices},
};
use dht::{
    message::{FabricServices, RelayAllocation, Request, Response},
    swarm::{self, Multiaddr, StreamAddr, SwarmEvent, SwarmHandle, with_peer},
};
use overlay_types::{
    PeerId,
    api::{ApiError, FabricStatus, NatStatus, NodeStatus, RelayStatus, Status},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use tunnel::io::service::FabricService;

/// Runs an infrastructure node until `config.stop`. `ready` is called once with the addresses to use as bootstraps.
///
/// # Errors
/// [`NodeError`], after everything that was started is stopped again.
pub async fn run_fabric(
    config: FabricConfig,
    ready: impl FnOnce(PeerId, &[String]) + Send,
) -> Result<(), NodeError> {
    let state = State::open(&config.state_dir)?;
    let identity = load_identity(&state)?;
    let api = ApiServer::bind(&config.socket).await?;
    let (main, alternate) = (config.service_main, config.service_alternate);
    let service = FabricService::start_with(main, alternate, config.relay)
        .map_err(|e| NodeError::DataPlane(e.to_string()))?;
    let service = Arc::new(service);
    let port = config.listen.first().map_or(0, SocketAddr::port);
    let streams = bind_streams(config.streams)?;
    let reach = Reach {
        addresses: own_addresses(&config).await?,
        stream_port: streams.as_ref().map(StreamServer::port),
        relays: config.relay.places_max > 0,
    };
    let external: Vec<_> = config
        .external
        .iter()
        .map(|ip| SocketAddr::new(*ip, port))
        .collect();
    let mut external = listeners(&external, port);
    external.extend(reach.streams());
    let swarm_config = swarm::SwarmConfig {
        identity: identity.clone(),
        listen: listeners(&config.listen, port),
        external,
        bootstrap: config.bootstrap.clone(),
        role: swarm::Role::Fabric,
        mdns: config.mdns,
        streams: None,
    };
    let (swarm, mut events) =
        swarm::spawn(swarm_config).map_err(|e| NodeError::Swarm(e.to_string()))?;
    if let Some(server) = streams {
        let services = StreamServices {
            control: locally(config.listen[0]),
            udp: Arc::clone(&service),
            bundles: Arc::default(),
        };
        server
            .serve(&identity, &services, &config.stop)
            .map_err(|error| NodeError::Streams(error.to_string()))?;
    }
    let bootstraps = bootstraps(&reach, port, identity.peer_id());
    ready(identity.peer_id(), &bootstraps);
    info!(peer = %identity.peer_id(), ?bootstraps, "fabric node up");

    let stop = config.stop.clone();
    let control = FabricControl {
        peer: identity.peer_id(),
        swarm: swarm.clone(),
        stop: stop.clone(),
        started: Instant::now(),
        bootstraps,
    };
    let api_task = tokio::spawn(api.serve_fabric(Arc::new(control), stop.clone()));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            event = events.recv() => match event {
                Some(SwarmEvent::Request { peer, payload, reply }) => answer(&service, &reach, peer, &payload, reply),
                Some(_) => {}
                None => break,
            }
        }
    }
    stop.cancel();
    let _stopped = api_task.await;
    let _slow = tokio::time::timeout(Duration::from_secs(2), swarm.shutdown()).await;
    Ok(())
}

/// Where others reach this node: what the operator says, else the addresses it listens at.
async fn own_addresses(config: &FabricConfig) -> Result<Vec<IpAddr>, NodeError> {
    if !config.external.is_empty() {
        return Ok(config.external.clone());
    }
    let host = Netlink::open()?.host_addresses(&BTreeSet::new()).await?;
    let listens = |ip: &IpAddr| {
        config.listen.iter().any(|addr| {
            addr.ip() == *ip || addr.ip().is_unspecified() && addr.is_ipv4() == ip.is_ipv4()
        })
    };
    let mut found: Vec<_> = host.into_iter().filter(listens).collect();
    let named = config
        .listen
        .iter()
        .map(SocketAddr::ip)
        .filter(|ip| !ip.is_unspecified());
    for ip in named {
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    Ok(found)
}

/// Where others reach this node.
struct Reach {
    addresses: Vec<IpAddr>,
    /// Where it takes streams, if it does.
    stream_port: Option<u16>,
    /// Whether it relays.
    relays: bool,
}

impl Reach {
    /// The addresses of streams.
    fn streams(&self) -> impl Iterator<Item = Multiaddr> {
        let ports = self.stream_port.into_iter();
        ports.flat_map(|port| {
            let ips = self.addresses.iter();
            ips.map(move |ip| StreamAddr::to_multiaddr(*ip, port))
        })
    }
}

/// Listens for streams, if the operator wants that or the port is there to be had.
fn bind_streams(wanted: Streams) -> Result<Option<StreamServer>, NodeError> {
    let (at, is_demanded) = match wanted {
        Streams::Off => return Ok(None),
        Streams::IfPossible(at) => (at, false),
        Streams::At(at) => (at, true),
    };
    match StreamServer::bind(at) {
        Ok(server) => Ok(Some(server)),
        Err(error) if is_demanded => Err(NodeError::Streams(format!(
            "cannot listen on TCP {at}: {error}; choose another --stream-port"
        ))),
        Err(error) => {
            info!(%at, %error, "nodes that get out by TLS only cannot come here; --stream-port takes another port");
            Ok(None)
        }
    }
}

/// Where this host reaches its own listener.
fn locally(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

fn bootstraps(reach: &Reach, port: u16, peer: PeerId) -> Vec<String> {
    let one = |ip: &IpAddr| {
        let family = if ip.is_ipv4() { "ip4" } else { "ip6" };
        [
            format!("/{family}/{ip}/udp/{port}/quic-v1/p2p/{peer}"),
            format!("/{family}/{ip}/tcp/{port}/p2p/{peer}"),
        ]
    };
    let streams = reach.streams().map(|address| with_peer(address, peer));
    let streams = streams.map(|address| address.to_string());
    reach
        .addresses
        .iter()
        .flat_map(one)
        .chain(streams)
        .collect()
}

fn answer(
    service: &FabricService,
    reach: &Reach,
    peer: PeerId,
    payload: &[u8],
    reply: oneshot::Sender<Vec<u8>>,
) {
    let at = |port: u16| {
        let addresses = reach.addresses.iter();
        addresses
            .map(|ip| SocketAddr::new(*ip, port))
            .collect::<Vec<_>>()
    };
    let main = service.main_addr().port();
    let response = match Request::decode(payload) {
        Ok(Request::FabricInfo) => Response::Fabric(FabricServices {
            stun: at(main),
            stun_alternate: at(service.alternate_addr().port()),
            relay: if reach.relays { at(main) } else { Vec::new() },
            streams: reach.stream_port.map(at).unwrap_or_default(),
        }),
        Ok(Request::RelayAllocate) => match service.allocate(peer) {
            Some(grant) => Response::Relay(RelayAllocation {
                relay: at(main),
                index: grant.index,
                key: grant.key,
            }),
            None => Response::Busy,
        },
        Ok(Request::Clock) => Response::Clock {
            unix_ms: super::unix_ms(),
        },
        Ok(_) => Response::NotHere,
        Err(error) => {
            debug!(?peer, %error, "a request that cannot be read");
            return;
        }
    };
    let _gone = reply.send(response.encode());
}

struct FabricControl {
    peer: PeerId,
    swarm: SwarmHandle,
    stop: CancellationToken,
    started: Instant,
    bootstraps: Vec<String>,
}

impl NodeControl for FabricControl {
    async fn status(&self) -> Answer<Status> {
        let swarm = self.swarm.status().await.ok_or_else(|| ApiError {
            error: "the node is stopping".into(),
        })?;
        Ok(Status {
            node: NodeStatus {
                id: self.peer,
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                uptime_s: self.started.elapsed().as_secs(),
            },
            nat: NatStatus {
                mapping: "unknown".into(),
                filtering: "unknown".into(),
                ports: "unknown".into(),
                ..NatStatus::default()
            },
            fabric: FabricStatus {
                connections: swarm.connected.len(),
                infrastructure: swarm.connected.iter().filter(|peer| peer.is_fabric).count(),
                relays: Vec::new(),
                listen: self.bootstraps.clone(),
            },
            relay: RelayStatus::default(),
            networks: Vec::new(),
            name: None,
            address: None,
            address6: None,
        })
    }

    async fn down(&self) -> Answer<()> {
        debug!(unix = unix_now(), "asked to stop");
        self.stop.cancel();
        Ok(())
    }
}
