//! The user's LAN behind this node: attached as a bridge in a LAN-served network, routed in an overlay-served one.

use super::{
    actor::Node,
    calls::{failed, refuse},
    membership::LanPort,
    unix_now,
};
use crate::{api::Answer, host::Route, lan::LanError, mdns::MdnsResponder};
use dht::{membership::Roles, record::LanRecord};
use overlay_types::{
    DhcpMode, Name, NetworkId, PortKind, Subnet,
    api::{ApiError, LanStatus},
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};
use tracing::warn;

/// A route that an administrator made (rtnetlink(7), RTPROT_STATIC).
const STATIC: u8 = 4;

/// The router's Ethernet address, asked for if the kernel does not have it yet: it tells two LANs of one address range apart.
async fn neighbour_mac(router: Ipv4Addr) -> Option<[u8; 6]> {
    for _ in 0..10 {
        let table = tokio::fs::read_to_string("/proc/net/arp").await.ok()?;
        let line = table
            .lines()
            .find(|line| line.split_whitespace().next() == Some(&router.to_string()));
        let mac = line.and_then(|line| {
            line.split_whitespace()
                .nth(3)?
                .parse::<overlay_types::MacAddr>()
                .ok()
        });
        if let Some(mac) = mac.filter(|mac| mac.is_station()) {
            return Some(mac.0);
        }
        // Any datagram makes the kernel ask; port 9 discards it (RFC 863).
        let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))
            .await
            .ok()?;
        let _unreachable = socket.send_to(&[], (router, 9)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

impl Node {
    /// `farlan lan attach`.
    pub(super) async fn attach_lan(
        &mut self,
        network: Option<&Name>,
        iface: &str,
    ) -> Answer<LanStatus> {
        let id = self.meant(network)?;
        let Some(member) = self.networks.get(&id) else {
            return refuse("the network was left");
        };
        if let Some(lan) = &member.lan {
            return refuse(format!(
                "this node is the gateway of {} already; `farlan lan detach` ends that first",
                lan.iface
            ));
        }
        if !member.membership.roles.contains(Roles::GATEWAY) {
            return refuse(
                "this node may not bridge a LAN into the network: it lacks the role 'gateway'; ask the owner for an invite with it",
            );
        }
        self.reread_now(id).await;
        self.start_lan(id, iface).await?;
        self.publish_and_wait(id).await;
        let Some(member) = self.networks.get_mut(&id) else {
            return refuse("the network was left");
        };
        if let Err(error) = member.dir.save("lan", &Some(iface)) {
            warn!(%error, "the LAN is not attached again after a restart");
        }
        member
            .lan_status()
            .ok_or_else(|| failed("the LAN was detached"))
    }

    async fn start_lan(&mut self, id: NetworkId, iface: &str) -> Result<(), ApiError> {
        let Some(member) = self.networks.get(&id) else {
            return Err(failed("the network was left"));
        };
        let (mode, subnet, mtu) = (member.dhcp_mode(), member.subnet(), member.mtu());
        let lan = match mode {
            DhcpMode::Overlay => {
                let routed = self.lan_ports.route(iface, subnet).await.map_err(failed)?;
                LanPort {
                    id: None,
                    iface: iface.into(),
                    tap: None,
                    bridge: String::new(),
                    bridge_made: false,
                    route_hint: Some(routed.route_hint),
                    record: LanRecord::Routed(routed.lan),
                }
            }
            DhcpMode::Lan | DhcpMode::Off => {
                let segment = self.segment_of(id, iface).await?;
                let port = self.new_port();
                let tap_name = format!("fl{}-{}", port.0, &self.me.short()[..5]);
                let tap = self
                    .plane
                    .make_tap(Some(&tap_name), None, mtu)
                    .map_err(failed)?;
                self.netlink
                    .set_up(tap.ifindex(), true)
                    .await
                    .map_err(failed)?;
                let attached = self
                    .lan_ports
                    .attach(iface, &tap_name)
                    .await
                    .map_err(failed)?;
                if let Some(warning) = &attached.warning {
                    warn!(%warning, iface, "LAN");
                }
                self.plane
                    .add_port(id, port, PortKind::Lan, Vec::new(), tap);
                LanPort {
                    id: Some(port),
                    iface: iface.into(),
                    tap: Some(tap_name),
                    bridge: attached.bridge,
                    bridge_made: attached.bridge_made,
                    route_hint: None,
                    record: LanRecord::Bridged(segment),
                }
            }
        };
        let me = self.me;
        let speaks_from = self.lan_address(&lan.bridge).await;
        let Some(member) = self.networks.get_mut(&id) else {
            return Err(failed("the network was left"));
        };
        if lan.id.is_some() {
            member.mdns = Some(MdnsResponder::new(
                me.host_mac(),
                speaks_from.or(member.configured),
                Some(me.address6(id)),
            ));
        }
        member.lan = Some(lan);
        member.changed = true;
        member.publish_soon();
        Ok(())
    }

    /// This host's address on the LAN, from which it answers for names.
    async fn lan_address(&self, bridge: &str) -> Option<Ipv4Addr> {
        let link = self.netlink.find(bridge).await.ok().flatten()?;
        let addresses = self.netlink.addresses(Some(link.index)).await.ok()?;
        addresses.iter().find_map(|found| match found.address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
    }

    /// What every gateway of the segment behind `iface` can tell of it: its subnet and its router. Refuses a segment that
    /// another node bridges already, as two bridges make a loop.
    async fn segment_of(&self, id: NetworkId, iface: &str) -> Result<[u8; 16], ApiError> {
        let Some(link) = self.netlink.find(iface).await.map_err(failed)? else {
            return Err(failed(LanError::NoSuchInterface(iface.into())));
        };
        let (index, mut digest) = (link.controller.unwrap_or(link.index), Sha256::new());
        digest.update(id.0);
        for found in self.netlink.addresses(Some(index)).await.map_err(failed)? {
            if let IpAddr::V4(address) = found.address {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(found.prefix_len))
                    .unwrap_or(0);
                digest.update((u32::from(address) & mask).to_be_bytes());
            }
        }
        for route in self.netlink.routes().await.map_err(failed)? {
            if let (Some(IpAddr::V4(router)), true) = (route.gateway, route.index == index) {
                digest.update(router.octets());
                digest.update(neighbour_mac(router).await.unwrap_or_default());
            }
        }
        let digest: [u8; 32] = digest.finalize().into();
        let mut segment = [0; 16];
        segment.copy_from_slice(&digest[..16]);
        let Some(member) = self.networks.get(&id) else {
            return Err(failed("the network was left"));
        };
        let other = member
            .directory
            .peers()
            .find(|record| record.lan == Some(LanRecord::Bridged(segment)));
        match other {
            None => Ok(segment),
            Some(record) => Err(failed(format!(
                "{} bridges this LAN into the network '{}' already, and a second bridge would make a loop; use that one, or run `farlan lan detach` there first",
                record.membership.name,
                member.name()
            ))),
        }
    }

    /// Routes to the LANs behind other gateways, for this host and its guests.
    pub(super) async fn follow_lan_routes(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        if member.configured.is_none() {
            return;
        }
        let unix = unix_now();
        let routed = member
            .directory
            .peers()
            .filter_map(|record| match record.lan {
                Some(LanRecord::Routed(subnet))
                    if record.membership.roles.contains(Roles::GATEWAY) =>
                {
                    Some((subnet, member.directory.address_of(record.peer, unix)?))
                }
                _ => None,
            });
        let wanted: BTreeMap<_, _> = routed.collect();
        let (have, index) = (member.lan_routes.clone(), member.tap_index);
        if wanted == have {
            return;
        }
        let route = |subnet: Subnet, via: Ipv4Addr| Route {
            destination: IpAddr::V4(subnet.base()),
            prefix_len: subnet.prefix_len(),
            gateway: Some(IpAddr::V4(via)),
            index,
            metric: None,
            source: None,
            protocol: STATIC,
        };
        let mut routes = BTreeMap::new();
        for (subnet, via) in have
            .iter()
            .filter(|(subnet, via)| wanted.get(subnet) != Some(via))
        {
            if let Err(error) = self.netlink.remove_route(&route(*subnet, *via)).await {
                warn!(%error, %subnet, "the route to a LAN stays");
            }
        }
        let own = BTreeSet::from([member.tap.clone()]);
        for (subnet, via) in wanted {
            if have.get(&subnet) != Some(&via) {
                match self.netlink.overlapping(subnet, &own).await {
                    Ok(None) => {}
                    Ok(Some((interface, theirs))) => {
                        warn!(%subnet, interface, theirs, "no route to a gateway's LAN: this host has a network of that address range itself");
                        continue;
                    }
                    Err(error) => {
                        warn!(%error, "cannot tell whether a LAN's subnet is in use here")
                    }
                }
                if let Err(error) = self.netlink.add_route(&route(subnet, via)).await {
                    warn!(%error, %subnet, "no route to a gateway's LAN");
                    continue;
                }
            }
            routes.insert(subnet, via);
        }
        if let Some(member) = self.networks.get_mut(&id) {
            member.lan_routes = routes;
        }
        self.configure_dhcp(id);
    }

    /// `farlan lan detach`.
    pub(super) async fn detach_lan(&mut self, network: Option<&Name>) -> Answer<()> {
        let id = self.meant(network)?;
        let Some(member) = self.networks.get(&id) else {
            return refuse("the network was left");
        };
        if member.lan.is_none() {
            return refuse(format!(
                "no LAN is attached to the network '{}'",
                member.name()
            ));
        }
        if let Err(error) = member.dir.remove("lan") {
            warn!(%error, "the LAN would be attached again after a restart");
        }
        self.stop_lan(id).await.map_err(failed)?;
        self.publish_and_wait(id).await;
        Ok(())
    }

    /// Undoes an attach on the host; it stays on disk.
    pub(super) async fn stop_lan(&mut self, id: NetworkId) -> Result<(), LanError> {
        let Some(member) = self.networks.get_mut(&id) else {
            return Ok(());
        };
        let Some(lan) = member.lan.take() else {
            return Ok(());
        };
        member.mdns = None;
        member.changed = true;
        member.guests.retain(|_, guest| Some(guest.port) != lan.id);
        if let Some(port) = lan.id {
            self.plane.remove_port(port);
        }
        self.lan_ports.detach(&lan.iface).await
    }

    /// Attaches what was attached before a restart.
    pub(super) async fn restore_lan(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let iface = member
            .dir
            .load::<Option<String>>("lan")
            .ok()
            .flatten()
            .flatten();
        if let Some(iface) = iface
            && let Err(error) = self.start_lan(id, &iface).await
        {
            warn!(
                iface,
                error = error.error,
                "the LAN of before the restart cannot be attached"
            );
        }
    }

    /// `farlan lan status`.
    pub(super) fn lans(&self, network: Option<&Name>) -> Answer<Vec<LanStatus>> {
        let only = network.map(|_| self.meant(network)).transpose()?;
        let members = self
            .networks
            .values()
            .filter(|member| only.is_none_or(|id| id == member.id));
        Ok(members
            .filter_map(super::membership::Member::lan_status)
            .collect())
    }
}

impl super::membership::Member {
    fn lan_status(&self) -> Option<LanStatus> {
        let lan = self.lan.as_ref()?;
        Some(LanStatus {
            network: self.name().clone(),
            iface: lan.iface.clone(),
            bridge: lan.bridge.clone(),
            bridge_made: lan.bridge_made,
            dhcp: self.dhcp_mode(),
            route_hint: lan.route_hint.clone(),
        })
    }
}
