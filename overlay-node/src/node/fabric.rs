//! An infrastructure node: serves the DHT, STUN and relay, is a member of no network, and can read nothing.

use super::{NodeError, listeners, load_identity, unix_now};
use crate::{
    api::{Answer, ApiServer, NodeControl},
    config::FabricConfig,
    host::Netlink,
    state::State,
};
use dht::{
    message::{FabricServices, RelayAllocation, Request, Response},
    swarm::{self, SwarmEvent, SwarmHandle},
};
use overlay_types::{
    PeerId,
    api::{ApiError, FabricStatus, NatStatus, NodeStatus, Status},
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
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
    let port = config.listen.first().map_or(0, SocketAddr::port);
    let external: Vec<_> = config
        .external
        .iter()
        .map(|ip| SocketAddr::new(*ip, port))
        .collect();
    let swarm_config = swarm::SwarmConfig {
        identity: identity.clone(),
        listen: listeners(&config.listen, port),
        external: listeners(&external, port),
        bootstrap: config.bootstrap.clone(),
        role: swarm::Role::Fabric,
        mdns: config.mdns,
    };
    let (swarm, mut events) =
        swarm::spawn(swarm_config).map_err(|e| NodeError::Swarm(e.to_string()))?;
    let addresses = own_addresses(&config).await?;
    let bootstraps = bootstraps(&addresses, port, identity.peer_id());
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
                Some(SwarmEvent::Request { peer, payload, reply }) => answer(&service, &addresses, peer, &payload, reply),
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

fn bootstraps(addresses: &[IpAddr], port: u16, peer: PeerId) -> Vec<String> {
    let one = |ip: &IpAddr| {
        let family = if ip.is_ipv4() { "ip4" } else { "ip6" };
        [
            format!("/{family}/{ip}/udp/{port}/quic-v1/p2p/{peer}"),
            format!("/{family}/{ip}/tcp/{port}/p2p/{peer}"),
        ]
    };
    addresses.iter().flat_map(one).collect()
}

fn answer(
    service: &FabricService,
    addresses: &[IpAddr],
    peer: PeerId,
    payload: &[u8],
    reply: oneshot::Sender<Vec<u8>>,
) {
    let at = |port: u16| {
        addresses
            .iter()
            .map(|ip| SocketAddr::new(*ip, port))
            .collect::<Vec<_>>()
    };
    let main = service.main_addr().port();
    let response = match Request::decode(payload) {
        Ok(Request::FabricInfo) => Response::Fabric(FabricServices {
            stun: at(main),
            stun_alternate: at(service.alternate_addr().port()),
            relay: at(main),
        }),
        Ok(Request::RelayAllocate) => match service.allocate(peer) {
            Some(grant) => Response::Relay(RelayAllocation {
                relay: at(main),
                index: grant.index,
                key: grant.key,
            }),
            None => Response::Busy,
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
