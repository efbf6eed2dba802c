//! Speaks to routers: carries out what [`PortMapper`] wants, and tells what holds. The protocols are `crab_nat`'s and
//! `igd-next`'s.

use super::{Grant, LIFETIME, Mapping, PortMapper, Protocol, Uplink};
use crab_nat::{
    InternetProtocol, PortMapping, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp,
};
use igd_next::{AddPortError, PortMappingProtocol, SearchOptions, aio::Gateway, aio::tokio::Tokio};
use std::{
    collections::BTreeMap,
    future::pending,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    num::NonZeroU16,
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};
use tracing::{debug, info};

/// What shows in a router's list of mappings.
const DESCRIPTION: &str = "farlan";
/// Answers are awaited for 0.5, 1, 2 and 4 s.
const TIMES: TimeoutConfig = TimeoutConfig {
    initial_timeout: Duration::from_millis(500),
    max_retries: 3,
    max_retry_timeout: None,
};
/// How long a router's device description is searched for.
const SEARCH_WITHIN: Duration = Duration::from_secs(5);
/// How long giving everything back may take when the node stops.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(2);

/// A mapping as its protocol remembers it.
#[derive(Clone)]
enum Held {
    Crab(PortMapping),
    Upnp(Box<Gateway<Tokio>>, u16),
}

impl Held {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Crab(mapping) => match mapping.mapping_type() {
                PortMappingType::Pcp { .. } => Protocol::Pcp,
                PortMappingType::NatPmp => Protocol::NatPmp,
            },
            Self::Upnp(..) => Protocol::Upnp,
        }
    }
}

/// What a job brings back: whom it asked and how, and what came of it.
type Answer = (Uplink, Protocol, Option<(Held, Grant)>);

/// Keeps the UDP `port` mapped at all `uplinks`, until nobody tells of them any more; then gives the mappings back.
/// `mappings` are those that hold.
pub async fn run(
    port: NonZeroU16,
    mut uplinks: watch::Receiver<Vec<Uplink>>,
    mappings: watch::Sender<Vec<Mapping>>,
) {
    let mut mapper = PortMapper::default();
    let mut held: BTreeMap<Uplink, Held> = BTreeMap::new();
    let mut jobs: JoinSet<Answer> = JoinSet::new();
    mapper.set_uplinks(uplinks.borrow_and_update().clone());
    loop {
        while let Some((uplink, protocol)) = mapper.poll_ask() {
            // What is held stays so while it is renewed: a router that does not answer once knows it all the same.
            let before = held.get(&uplink).filter(|held| held.protocol() == protocol);
            jobs.spawn(ask(uplink, protocol, port, before.cloned()));
        }
        let holds = mapper.mappings();
        mappings.send_if_modified(|told| {
            for mapping in holds.iter().filter(|mapping| !told.contains(mapping)) {
                info!(external = %mapping.external, router = %mapping.uplink.gateway,
                    protocol = mapping.protocol.as_str(), "port mapped");
            }
            let is_news = *told != holds;
            *told = holds;
            is_news
        });
        let due = async {
            match mapper.poll_timeout() {
                Some((at, _)) => tokio::time::sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = uplinks.changed() => {
                if changed.is_err() {
                    break;
                }
                let now_there = uplinks.borrow_and_update().clone();
                held.retain(|uplink, _| now_there.contains(uplink)); // nobody else is there to give it back to
                mapper.set_uplinks(now_there);
            }
            Some(Ok((uplink, protocol, outcome))) = jobs.join_next() => {
                let grant = outcome
                    .filter(|_| mapper.has(uplink))
                    .map(|(mapping, grant)| {
                        held.insert(uplink, mapping);
                        grant
                    });
                mapper.handle_outcome(uplink, protocol, grant, Instant::now());
            }
            () = due => mapper.handle_timeout(Instant::now()),
        }
    }
    jobs.shutdown().await;
    let giving_back = futures::future::join_all(held.into_values().map(give_back));
    let _late = tokio::time::timeout(GIVE_BACK_WITHIN, giving_back).await;
}

/// Asks a router by one protocol, for the mapping that is held by it if there is one.
async fn ask(uplink: Uplink, protocol: Protocol, port: NonZeroU16, before: Option<Held>) -> Answer {
    let outcome = match (protocol, before) {
        (Protocol::Pcp | Protocol::NatPmp, Some(Held::Crab(mapping))) => {
            renew(uplink, mapping).await
        }
        (Protocol::Pcp, _) => by_pcp(uplink, port).await,
        (Protocol::NatPmp, _) => by_nat_pmp(uplink, port).await,
        (Protocol::Upnp, Some(Held::Upnp(gateway, external))) => {
            add(uplink, port, *gateway, external).await
        }
        (Protocol::Upnp, _) => by_upnp(uplink, port).await,
    };
    let outcome = outcome.inspect_err(|why| {
        debug!(router = %uplink.gateway, protocol = protocol.as_str(), why, "no port mapping");
    });
    (uplink, protocol, outcome.ok())
}

const fn options(port: NonZeroU16) -> PortMappingOptions {
    PortMappingOptions {
        external_port: Some(port),
        lifetime_seconds: Some(LIFETIME.as_secs() as u32),
        timeout_config: Some(TIMES),
    }
}

async fn by_pcp(uplink: Uplink, port: NonZeroU16) -> Result<(Held, Grant), String> {
    let request = pcp::BaseMapRequest::new(
        uplink.gateway.into(),
        uplink.local.into(),
        InternetProtocol::Udp,
        port,
    );
    let mapping = pcp::port_mapping(request, None, None, options(port))
        .await
        .map_err(|error| error.to_string())?;
    granted(uplink, mapping).await
}

async fn by_nat_pmp(uplink: Uplink, port: NonZeroU16) -> Result<(Held, Grant), String> {
    let gateway = uplink.gateway.into();
    let mapping = natpmp::port_mapping(gateway, InternetProtocol::Udp, port, options(port))
        .await
        .map_err(|error| error.to_string())?;
    granted(uplink, mapping).await
}

async fn renew(uplink: Uplink, mut mapping: PortMapping) -> Result<(Held, Grant), String> {
    mapping.renew().await.map_err(|error| error.to_string())?;
    granted(uplink, mapping).await
}

async fn granted(uplink: Uplink, mapping: PortMapping) -> Result<(Held, Grant), String> {
    let ip = match mapping.mapping_type() {
        PortMappingType::Pcp { external_ip, .. } => external_ip,
        PortMappingType::NatPmp => natpmp::external_address(uplink.gateway.into(), Some(TIMES))
            .await
            .map_err(|error| error.to_string())?
            .into(),
    };
    let grant = Grant {
        external: external(ip, mapping.external_port().get())?,
        lifetime: Duration::from_secs(mapping.lifetime().into()),
    };
    Ok((Held::Crab(mapping), grant))
}

async fn by_upnp(uplink: Uplink, port: NonZeroU16) -> Result<(Held, Grant), String> {
    let mut search = SearchOptions::default();
    (search.bind_addr, search.timeout) = ((uplink.local, 0).into(), Some(SEARCH_WITHIN));
    let gateway = igd_next::aio::tokio::search_gateway(search)
        .await
        .map_err(|error| error.to_string())?;
    if gateway.addr.ip() != IpAddr::V4(uplink.gateway) {
        return Err(format!(
            "{} answered, which is not the router",
            gateway.addr
        ));
    }
    add(uplink, port, gateway, port.get()).await
}

/// The data port's own number outside if it is free, else any.
async fn add(
    uplink: Uplink,
    port: NonZeroU16,
    gateway: Gateway<Tokio>,
    external_port: u16,
) -> Result<(Held, Grant), String> {
    let local = (uplink.local, port.get()).into();
    let udp = PortMappingProtocol::UDP;
    let lifetime = LIFETIME.as_secs() as u32;
    let mut added = gateway
        .add_port(udp, external_port, local, lifetime, DESCRIPTION)
        .await;
    if matches!(added, Err(AddPortError::OnlyPermanentLeasesSupported)) {
        added = gateway
            .add_port(udp, external_port, local, 0, DESCRIPTION)
            .await;
    }
    let external_port = match added {
        Ok(()) => external_port,
        Err(AddPortError::PortInUse) => gateway
            .add_any_port(udp, local, lifetime, DESCRIPTION)
            .await
            .map_err(|error| error.to_string())?,
        Err(error) => return Err(error.to_string()),
    };
    let ip = gateway
        .get_external_ip()
        .await
        .map_err(|error| error.to_string())?;
    let grant = Grant {
        external: external(ip, external_port)?,
        lifetime: LIFETIME,
    };
    Ok((Held::Upnp(Box::new(gateway), external_port), grant))
}

/// An outside address, if it is one that others could reach.
fn external(ip: IpAddr, port: u16) -> Result<SocketAddrV4, String> {
    match ip.to_canonical() {
        IpAddr::V4(ip) if !is_nobody(ip) && port != 0 => Ok(SocketAddrV4::new(ip, port)),
        ip => Err(format!("the router calls itself {ip}")),
    }
}

/// What a router says that is not connected.
const fn is_nobody(ip: Ipv4Addr) -> bool {
    ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast()
}

async fn give_back(held: Held) {
    match held {
        Held::Crab(mapping) => {
            let _refused = mapping.try_drop().await;
        }
        Held::Upnp(gateway, external_port) => {
            let _refused = gateway
                .remove_port(PortMappingProtocol::UDP, external_port)
                .await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_without_an_address_of_its_own_grants_nothing() {
        for ip in [
            "0.0.0.0",
            "127.0.0.1",
            "255.255.255.255",
            "::",
            "2001:db8::1",
        ] {
            assert!(external(ip.parse().unwrap(), 7000).is_err(), "{ip}");
        }
        assert!(external("203.0.113.1".parse().unwrap(), 0).is_err());
        let given = external("::ffff:203.0.113.1".parse().unwrap(), 7000).unwrap();
        assert_eq!(given.to_string(), "203.0.113.1:7000");
    }
}
