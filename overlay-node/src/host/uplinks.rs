//! The ways out of this host: its default routes, and the routers behind them.

use super::{InterfaceAddress, Netlink, NetlinkError, Route};
use crate::portmap::Uplink;
use ipnet::Ipv4Net;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

/// How datagrams leave this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaysOut {
    /// Default routes of both IP versions, the preferred one first.
    pub routes: Vec<Route>,
    /// The IPv4 routers that they lead to, in the same order.
    pub routers: Vec<Uplink>,
}

impl Netlink {
    /// The ways out of this host. Interfaces named in `except` lead nowhere.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn ways_out(&self, except: &BTreeSet<String>) -> Result<WaysOut, NetlinkError> {
        let mut links = self.links().await?;
        links.retain(|link| link.up && !link.loopback && !except.contains(&link.name));
        let indices: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
        let mut routes = self.routes().await?;
        routes.retain(|route| route.prefix_len == 0 && indices.contains(&route.index));
        routes.sort_by_key(|route| route.metric.unwrap_or(0));
        let routers = uplinks(&routes, &self.addresses(None).await?);
        Ok(WaysOut { routes, routers })
    }
}

fn uplinks(routes: &[Route], addresses: &[InterfaceAddress]) -> Vec<Uplink> {
    let mut found: Vec<Uplink> = Vec::new();
    for route in routes {
        let Some(IpAddr::V4(gateway)) = route.gateway else {
            continue;
        };
        let local = match route.source {
            Some(IpAddr::V4(source)) => Some(source),
            _ => address_towards(gateway, route.index, addresses),
        };
        if let Some(local) = local.filter(|_| found.iter().all(|known| known.gateway != gateway)) {
            found.push(Uplink { gateway, local });
        }
    }
    found
}

/// Our address on the gateway's network.
fn address_towards(
    gateway: Ipv4Addr,
    index: u32,
    addresses: &[InterfaceAddress],
) -> Option<Ipv4Addr> {
    let mut of_link = addresses.iter().filter(|of| of.index == index && of.usable);
    of_link.find_map(|of| match of.address {
        IpAddr::V4(address) => {
            let network = Ipv4Net::new(address, of.prefix_len).ok()?;
            network.contains(&gateway).then_some(address)
        }
        IpAddr::V6(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, gateway: Option<&str>, index: u32, metric: Option<u32>) -> Route {
        let (destination, prefix_len) = destination.split_once('/').unwrap();
        Route {
            destination: destination.parse().unwrap(),
            prefix_len: prefix_len.parse().unwrap(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            index,
            metric,
            source: None,
            protocol: 4,
        }
    }

    fn address(index: u32, address: &str) -> InterfaceAddress {
        let (address, prefix_len) = address.split_once('/').unwrap();
        InterfaceAddress {
            index,
            address: address.parse().unwrap(),
            prefix_len: prefix_len.parse().unwrap(),
            global: true,
            usable: true,
            temporary: false,
        }
    }

    #[test]
    fn each_router_is_found_once_with_our_address_towards_it() {
        let routes = [
            route("0.0.0.0/0", None, 4, None),
            route("0.0.0.0/0", Some("192.168.1.1"), 3, Some(100)),
            route("0.0.0.0/0", Some("10.0.0.1"), 2, Some(600)),
            route("0.0.0.0/0", Some("192.168.1.1"), 3, Some(700)),
            route("::/0", Some("fe80::1"), 3, None),
        ];
        let addresses = [
            address(2, "172.16.0.9/24"),
            address(2, "10.0.0.7/24"),
            address(3, "192.168.1.7/24"),
        ];
        let found: Vec<_> = uplinks(&routes, &addresses)
            .into_iter()
            .map(|uplink| (uplink.gateway.to_string(), uplink.local.to_string()))
            .collect();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            found,
            [
                pair("192.168.1.1", "192.168.1.7"),
                pair("10.0.0.1", "10.0.0.7")
            ]
        );
    }
}
