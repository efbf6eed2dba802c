//! Guests: plugs them in and out, serves them DHCP, and keeps who they are.

use super::{
    actor::Node,
    calls::{failed, refuse},
    membership::{GuestPort, LocalGuest, Member},
    snoop::{self, Snooped},
    unix_now,
};
use crate::{
    api::Answer,
    dhcp::{DhcpEvent, GuestBinding},
};
use overlay_types::{
    DhcpMode, Location, MacAddr, Name, NetworkId, PortId, PortKind,
    api::{AddPort, ApiError, GuestStatus, PortStatus},
};
use std::{
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};
use tracing::{info, warn};
use tunnel::engine::Command;

/// Ports of one network.
const PORTS_MAX: usize = 256;
/// Names that guests gave before they had an address; the oldest is not kept beyond that.
const SNOOPED_NAMES_MAX: usize = 1024;
/// Guests remembered behind our ports.
const GUESTS_MAX: usize = 4096;
impl Node {
    /// `farlan port add`.
    pub(super) async fn add_port(
        &mut self,
        network: Option<&Name>,
        request: AddPort,
    ) -> Answer<PortStatus> {
        let id = self.meant(network)?;
        if request.kind == PortKind::Lan {
            return refuse("a LAN is attached with `farlan lan attach IFACE`");
        }
        if let Some(odd) = request.macs.iter().find(|mac| !mac.is_station()) {
            return refuse(format!(
                "{odd} cannot be a station's address; give the guest's own MAC"
            ));
        }
        let taken = self.networks.values().find(|member| {
            member
                .ports
                .iter()
                .any(|port| port.request.iface == request.iface)
        });
        if let Some(member) = taken {
            return refuse(format!(
                "{} is a port of the network '{}' already; `farlan port list` shows it",
                request.iface,
                member.name()
            ));
        }
        if self
            .networks
            .get(&id)
            .is_some_and(|member| member.ports.len() >= PORTS_MAX)
        {
            return refuse(format!(
                "this node has {PORTS_MAX} ports in the network, the most there can be; remove one first"
            ));
        }
        let port = self.plug(id, request).await?;
        self.keep_ports(id);
        let member = self
            .networks
            .get(&id)
            .ok_or_else(|| failed("the network was left"))?;
        let port = member
            .ports
            .iter()
            .find(|p| p.id == port)
            .ok_or_else(|| failed("the port was removed"))?;
        Ok(member.port_status(port))
    }

    async fn plug(&mut self, id: NetworkId, request: AddPort) -> Result<PortId, ApiError> {
        let Some(mtu) = self.networks.get(&id).map(Member::mtu) else {
            return Err(failed("the network was left"));
        };
        let existing = self.netlink.find(&request.iface).await.map_err(failed)?;
        let attached = existing.is_some();
        let port = self.new_port();
        let tap_name = if attached {
            format!("fp{}-{}", port.0, &self.me.short()[..5])
        } else {
            request.iface.clone()
        };
        let tap = self
            .plane
            .make_tap(Some(&tap_name), None, mtu)
            .map_err(failed)?;
        let (tap_name, index): (String, u32) = (tap.name().to_owned(), tap.ifindex());
        self.netlink.set_up(index, true).await.map_err(failed)?;
        if attached {
            let attached = self
                .lan_ports
                .attach(&request.iface, &tap_name)
                .await
                .map_err(failed)?;
            if let Some(warning) = attached.warning {
                warn!(%warning, iface = request.iface, "port");
            }
        }
        let (kind, mut macs, name) = (request.kind, request.macs.clone(), request.name.clone());
        if kind == PortKind::Host && macs.is_empty() {
            // The host itself speaks here: from the link that is there already, or from the TAP.
            let speaker = match existing {
                Some(link) => link.mac,
                None => self.netlink.link(&tap_name).await.map_err(failed)?.mac,
            };
            macs.extend(speaker);
        }
        self.plane.add_port(id, port, kind, macs, tap);
        let has_blocks = self
            .networks
            .get(&id)
            .is_some_and(|member| !member.blocks().is_empty());
        let Some(member) = self.networks.get_mut(&id) else {
            return Err(failed("the network was left"));
        };
        member.dhcp.set_port_name(port, name);
        member.ports.push(GuestPort {
            id: port,
            tap: tap_name,
            attached,
            request,
        });
        let wants_block =
            kind != PortKind::Lan && member.dhcp_mode() == DhcpMode::Overlay && !has_blocks;
        if wants_block && !self.awaits_block(id) {
            // Claimed now, so that the guest's first DISCOVER need not wait for a registrar.
            self.hold_block(id, None);
        }
        Ok(port)
    }

    /// `farlan port remove`.
    pub(super) async fn remove_port(&mut self, network: Option<&Name>, iface: &str) -> Answer<()> {
        let id = self.meant(network)?;
        let Some(member) = self.networks.get_mut(&id) else {
            return refuse("the network was left");
        };
        let Some(index) = member
            .ports
            .iter()
            .position(|port| port.request.iface == iface)
        else {
            return refuse(format!(
                "{iface} is no port of the network '{}'; `farlan port list` lists them",
                member.name()
            ));
        };
        let port = member.ports.remove(index);
        self.unplug(id, &port).await.map_err(failed)?;
        self.keep_ports(id);
        Ok(())
    }

    async fn unplug(
        &mut self,
        id: NetworkId,
        port: &GuestPort,
    ) -> Result<(), crate::lan::LanError> {
        let unix = unix_now();
        if let Some(member) = self.networks.get_mut(&id) {
            member.dhcp.remove_port(port.id, unix);
            member.guests.retain(|_, guest| guest.port != port.id);
            member.changed = true;
            member.publish_soon();
        }
        self.plane.remove_port(port.id);
        if port.attached {
            self.lan_ports.detach(&port.request.iface).await
        } else {
            Ok(())
        }
    }

    /// The network stops: every port goes, but is remembered on disk.
    pub(super) async fn remove_all_ports(&mut self, id: NetworkId) {
        let ports = self
            .networks
            .get_mut(&id)
            .map(|member| std::mem::take(&mut member.ports))
            .unwrap_or_default();
        for port in ports {
            if let Err(error) = self.unplug(id, &port).await {
                warn!(%error, iface = port.request.iface, "the port was not undone");
            }
        }
        if let Err(error) = self.stop_lan(id).await {
            warn!(%error, "the LAN was not detached");
        }
    }

    fn keep_ports(&self, id: NetworkId) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let requests: Vec<_> = member.ports.iter().map(|port| &port.request).collect();
        if let Err(error) = member.dir.save("ports", &requests) {
            warn!(%error, "ports are not kept over a restart");
        }
    }

    /// Plugs in what was plugged in before a restart.
    pub(super) async fn restore_ports(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let requests = member
            .dir
            .load::<Vec<AddPort>>("ports")
            .unwrap_or_else(|error| {
                warn!(%error, "ports of before the restart are lost; add them again");
                None
            });
        let bindings = member
            .dir
            .load::<Vec<GuestBinding>>("guests")
            .ok()
            .flatten()
            .unwrap_or_default();
        let mut macs_of_port = Vec::new();
        for request in requests.unwrap_or_default() {
            let (iface, macs) = (request.iface.clone(), request.macs.clone());
            match self.plug(id, request).await {
                Ok(port) => macs_of_port.push((port, macs)),
                Err(error) => warn!(
                    iface,
                    error = error.error,
                    "a port of before the restart cannot be plugged in"
                ),
            }
        }
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let blocks = member.blocks();
        let (now, unix) = (Instant::now(), unix_now());
        member.dhcp.set_blocks(&blocks, now, unix);
        // A guest is behind the port that allows its MAC; with one port it can only be there.
        let port_of = |mac: MacAddr| {
            let allowed = macs_of_port.iter().find(|(_, macs)| macs.contains(&mac));
            let only = macs_of_port.first().filter(|_| macs_of_port.len() == 1);
            allowed.or(only).map(|(port, _)| *port)
        };
        let bindings = bindings.into_iter().map(|binding| GuestBinding {
            port: port_of(binding.mac),
            ..binding
        });
        member.dhcp.restore(bindings.collect(), now, unix);
        self.restore_lan(id).await;
    }

    /// A frame for the node itself.
    pub(super) fn handle_punted(&mut self, id: NetworkId, port: PortId, frame: &[u8]) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        if crate::dhcp::is_request(frame) {
            member
                .dhcp
                .handle_frame(port, frame, Instant::now(), unix_now());
        }
    }

    /// Carries out what the DHCP server and the mDNS responder want.
    pub(super) fn drain_dhcp(&mut self, id: NetworkId) {
        let mut keep = false;
        // Events first: a guest may speak from its address as soon as it has the acknowledgement, so it is bound before.
        while let Some(event) = self
            .networks
            .get_mut(&id)
            .and_then(|member| member.dhcp.poll_event())
        {
            keep = true;
            self.handle_dhcp_event(id, event);
        }
        if keep {
            self.tell_bindings(id);
        }
        loop {
            let Some(member) = self.networks.get_mut(&id) else {
                return;
            };
            let lan_port = member.lan.as_ref().and_then(|lan| lan.id);
            if let Some((port, frame)) = member.dhcp.poll_frame() {
                self.tell(Command::EmitFrame { port, frame });
            } else if let (Some(port), Some(frame)) = (
                lan_port,
                member.mdns.as_mut().and_then(|mdns| mdns.poll_frame()),
            ) {
                self.tell(Command::EmitFrame { port, frame });
            } else {
                break;
            }
        }
        if keep
            && let Some(member) = self.networks.get(&id)
            && let Err(error) = member.dir.save("guests", &member.dhcp.bindings())
        {
            warn!(%error, "guests' addresses are not kept over a restart");
        }
    }

    fn handle_dhcp_event(&mut self, id: NetworkId, event: DhcpEvent) {
        match event {
            DhcpEvent::GuestBound {
                port,
                mac,
                ip,
                name,
                ..
            } => {
                info!(network = ?id, %mac, %ip, name = name.as_ref().map(Name::as_str), "guest has its address");
                self.bind_guest(
                    id,
                    mac,
                    LocalGuest {
                        port,
                        ip: Some(IpAddr::V4(ip)),
                        name,
                    },
                );
            }
            DhcpEvent::GuestGone { mac, ip } => {
                info!(network = ?id, %mac, %ip, "guest gave up its address");
                self.unbind_guest(id, mac);
            }
            DhcpEvent::BlockWanted => {
                if !self.awaits_block(id) {
                    self.hold_block(id, None);
                }
            }
        }
    }

    fn bind_guest(&mut self, id: NetworkId, mac: MacAddr, guest: LocalGuest) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        if member.guests.len() >= GUESTS_MAX && !member.guests.contains_key(&mac) {
            warn!(%mac, max = GUESTS_MAX, "too many guests; this one gets no name and no binding");
            return;
        }
        if member.guests.get(&mac) == Some(&guest) {
            return;
        }
        let port = guest.port;
        member.guests.insert(mac, guest);
        member.changed = true;
        member.publish_soon();
        if let Some(plugged) = member.guest_port(port) {
            let mut macs = plugged.request.macs.clone();
            let others = member
                .guests
                .iter()
                .filter(|(_, guest)| guest.port == port)
                .map(|(mac, _)| *mac);
            macs.extend(others);
            macs.sort();
            macs.dedup();
            self.tell(Command::SetPortMacs { port, macs });
        }
    }

    fn unbind_guest(&mut self, id: NetworkId, mac: MacAddr) {
        if let Some(member) = self.networks.get_mut(&id)
            && member.guests.remove(&mac).is_some()
        {
            member.changed = true;
            member.publish_soon();
        }
    }

    /// An empty port took the first station that spoke.
    pub(super) fn guest_seen(&mut self, id: NetworkId, port: PortId, mac: MacAddr) {
        info!(network = ?id, %port, %mac, "guest seen");
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let name = member
            .guest_port(port)
            .and_then(|port| port.request.name.clone());
        if !member.guests.contains_key(&mac) {
            self.bind_guest(
                id,
                mac,
                LocalGuest {
                    port,
                    ip: None,
                    name,
                },
            );
        }
    }

    /// DHCP between a guest and the LAN's server passed by, or multicast DNS.
    pub(super) fn handle_snooped(&mut self, id: NetworkId, from: Location, frame: &[u8]) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let Some(snooped) = snoop::read(frame) else {
            if let Some(mdns) = &mut member.mdns {
                mdns.handle_frame(frame, Instant::now());
            }
            return;
        };
        match snooped {
            Snooped::Named { mac, name } => {
                if let Location::Port(port) = from {
                    let name = member
                        .guest_port(port)
                        .and_then(|port| port.request.name.clone())
                        .unwrap_or(name);
                    if member.snooped_names.len() >= SNOOPED_NAMES_MAX {
                        member.snooped_names.pop_first();
                    }
                    member.snooped_names.insert(mac, name);
                    let known = member.guests.get(&mac).cloned();
                    self.bind_guest(
                        id,
                        mac,
                        LocalGuest {
                            port,
                            ip: known.and_then(|guest| guest.ip),
                            name: self.snooped_name(id, mac),
                        },
                    );
                }
            }
            Snooped::Granted { mac, ip } => self.snooped_grant(id, mac, ip),
            Snooped::GivenUp { mac } => self.unbind_guest(id, mac),
        }
    }

    fn snooped_name(&self, id: NetworkId, mac: MacAddr) -> Option<Name> {
        self.networks.get(&id)?.snooped_names.get(&mac).cloned()
    }

    /// The LAN's server granted an address: to one of our own stations, if it asked behind one of our ports.
    fn snooped_grant(&mut self, id: NetworkId, mac: MacAddr, ip: Ipv4Addr) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let Some(known) = member.guests.get(&mac).cloned() else {
            return;
        };
        info!(network = ?id, %mac, %ip, "guest has its address from the LAN");
        let name = known.name.or_else(|| self.snooped_name(id, mac));
        self.bind_guest(
            id,
            mac,
            LocalGuest {
                ip: Some(IpAddr::V4(ip)),
                name,
                ..known
            },
        );
    }

    /// `farlan port list`.
    pub(super) fn ports(&self, network: Option<&Name>) -> Answer<Vec<PortStatus>> {
        let only = network.map(|_| self.meant(network)).transpose()?;
        let members = self
            .networks
            .values()
            .filter(|member| only.is_none_or(|id| id == member.id));
        Ok(members
            .flat_map(|member| member.ports.iter().map(|port| member.port_status(port)))
            .collect())
    }
}

impl super::membership::Member {
    fn port_status(&self, port: &GuestPort) -> PortStatus {
        let guests = self
            .guests
            .iter()
            .filter(|(_, guest)| guest.port == port.id);
        PortStatus {
            network: self.name().clone(),
            iface: port.request.iface.clone(),
            tap: port.tap.clone(),
            kind: port.request.kind,
            macs: port.request.macs.clone(),
            name: port.request.name.clone(),
            guests: guests
                .filter_map(|(mac, guest)| {
                    Some(GuestStatus {
                        name: guest.name.clone(),
                        mac: *mac,
                        address: guest.ip?,
                    })
                })
                .collect(),
        }
    }
}
