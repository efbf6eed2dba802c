//! Where other hosts may reach this one: the addresses that are candidates.

use super::{InterfaceAddress, Link, Netlink, NetlinkError, Route};
use std::{collections::BTreeSet, net::IpAddr};

/// The host's ends of links to containers, which no kind tells from a container's own way out.
const CONTAINER_ENDS: [&str; 5] = ["veth", "ve-", "vb-", "cali", "lxc"];

impl Netlink {
    /// Addresses where other hosts may reach this one: global ones of interfaces that are up, but not of `except` (the overlay's
    /// own), nor of networks that only virtual machines or containers of this host are on, nor of other overlays and VPNs.
    /// IPv6 privacy addresses come last.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn host_addresses(
        &self,
        except: &BTreeSet<String>,
    ) -> Result<Vec<IpAddr>, NetlinkError> {
        let (links, routes) = (self.links().await?, self.routes().await?);
        let mut addresses = self.addresses(None).await?;
        let leads_out = |index: u32| {
            let mut of_that = links.iter().filter(|link| link.index == index);
            of_that.any(|link| !except.contains(&link.name) && leads_out(link, &links, &routes))
        };
        addresses.retain(|of| of.global && of.usable && !of.address.is_loopback());
        addresses.retain(|of| leads_out(of.index));
        addresses.sort_by_key(|of: &InterfaceAddress| (of.temporary, of.address));
        addresses.dedup_by_key(|of| of.address);
        Ok(addresses.into_iter().map(|of| of.address).collect())
    }
}

/// Whether other hosts may be behind a link.
fn leads_out(link: &Link, links: &[Link], routes: &[Route]) -> bool {
    let is_container_end = || CONTAINER_ENDS.iter().any(|end| link.name.starts_with(end));
    let has_gateway = || {
        let mut of_link = routes.iter().filter(|route| route.index == link.index);
        of_link.any(|route| route.gateway.is_some())
    };
    link.up
        && !link.loopback
        && match link.kind.as_deref() {
            // A guest's TAP, or what carries us a second time: others see such an address by STUN, if it leads anywhere.
            Some("tun" | "wireguard") => false,
            Some("veth") => has_gateway() || !is_container_end(),
            Some("bridge") => {
                let mut ports = links
                    .iter()
                    .filter(|port| port.controller == Some(link.index));
                has_gateway() || ports.any(|port| !is_guests(port))
            }
            _ => true,
        }
}

/// Whether a bridge's port is a virtual machine's or a container's.
fn is_guests(port: &Link) -> bool {
    matches!(port.kind.as_deref(), Some("tun" | "veth" | "dummy"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const BRIDGE: u32 = 1;
    const PORT: u32 = 2;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: None,
            up: true,
            loopback: false,
            mtu: 1500,
            controller: (index == PORT).then_some(BRIDGE),
            kind: kind.map(str::to_owned),
        }
    }

    fn route(gateway: Option<Ipv4Addr>) -> Route {
        Route {
            destination: Ipv4Addr::UNSPECIFIED.into(),
            prefix_len: 0,
            gateway: gateway.map(IpAddr::V4),
            index: BRIDGE,
            metric: None,
            source: None,
            protocol: 4,
        }
    }

    #[test]
    fn a_bridge_leads_out_by_hardware_or_a_gateway_and_not_to_guests_alone() {
        let bridge = link(BRIDGE, "whatever0", Some("bridge"));
        let leads = |port: Option<Option<&str>>, routes: &[Route]| {
            let port = port.map(|kind| link(PORT, "port", kind));
            let links: Vec<_> = port.into_iter().chain([bridge.clone()]).collect();
            leads_out(&bridge, &links, routes)
        };
        for guests in [
            None,
            Some(Some("tun")),
            Some(Some("veth")),
            Some(Some("dummy")),
        ] {
            assert!(!leads(guests, &[]), "{guests:?}");
            assert!(!leads(guests, &[route(None)]), "{guests:?}");
            assert!(leads(guests, &[route(Some(Ipv4Addr::new(10, 0, 0, 1)))]));
        }
        for uplink in [None, Some("bond"), Some("vlan"), Some("vxlan")] {
            assert!(leads(Some(uplink), &[]), "{uplink:?}");
        }
    }

    #[test]
    fn hardware_leads_out_and_other_overlays_and_guests_do_not() {
        let leads = |name, kind| leads_out(&link(BRIDGE, name, kind), &[], &[]);
        assert!(leads("eth0", None) && leads("eth0", Some("veth")) && leads("vlan7", Some("vlan")));
        assert!(!leads("tailscale0", Some("tun")) && !leads("wg0", Some("wireguard")));
        assert!(!leads("vnet3", Some("tun")) && !leads("vethab12", Some("veth")));
        let down = Link {
            up: false,
            ..link(BRIDGE, "eth0", None)
        };
        assert!(!leads_out(&down, &[], &[]));
    }
}
