//! The user's LAN behind this node: attached as a bridge in a LAN-served network, routed in an overlay-served one.

use super::{actor::Node, calls::refuse, membership::LanPort};
use crate::{api::Answer, lan::LanError, mdns::MdnsResponder};
use overlay_types::{
    DhcpMode, Name, NetworkId, PortKind,
    api::{ApiError, LanStatus},
};
use tracing::warn;
use tunnel::io::Tap;

/// Largest IP packet inside every network.
const INNER_MTU: u16 = 1500;

fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError {
        error: error.to_string(),
    }
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
        if !member
            .membership
            .roles
            .contains(dht::membership::Roles::GATEWAY)
        {
            return refuse(
                "this node may not bridge a LAN into the network: it lacks the role 'gateway'; ask the owner for an invite with it",
            );
        }
        self.start_lan(id, iface).await?;
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
        let (mode, subnet) = (member.dhcp_mode(), member.subnet());
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
                }
            }
            DhcpMode::Lan | DhcpMode::Off => {
                let port = self.new_port();
                let tap_name = format!("fl{}-{}", port.0, &self.me.short()[..5]);
                let tap = Tap::create(Some(&tap_name), None, INNER_MTU).map_err(failed)?;
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
                }
            }
        };
        let me = self.me;
        let Some(member) = self.networks.get_mut(&id) else {
            return Err(failed("the network was left"));
        };
        if lan.id.is_some() {
            member.mdns = Some(MdnsResponder::new(
                me.host_mac(),
                member.configured,
                Some(me.address6(id)),
            ));
        }
        member.lan = Some(lan);
        member.changed = true;
        member.publish_soon();
        Ok(())
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
        self.stop_lan(id).await.map_err(failed)
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
