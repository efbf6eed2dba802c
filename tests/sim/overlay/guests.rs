//! Guests of members: plugged in and out, and served by their node.

use super::*;
use crate::service::GuestService;

impl Overlay {
    /// A guest behind a port of its own at this member, which asks for its address as soon as the member runs.
    pub fn add_guest(&mut self, id: MemberId) -> Station {
        let now = self.world.now();
        let member = &mut self.members[id.0];
        let number = member.guest_ports.len() + 1;
        let port = PortId(STATION.0 + number as u16);
        let mac = MacAddr([0x52, 0x54, 0, 0, id.0 as u8, number as u8]);
        let guest = Guest::with_dhcp(mac, &format!("vm-{}-{number}", id.0), now);
        member.guest_ports.push(port);
        member.unplugged.insert(port, guest);
        let is_on_network = member.holder(LeaseOf::Node).is_some();
        if is_on_network {
            self.plug_guests(id);
            self.settle(id);
            self.follow();
        }
        Station { member: id, port }
    }

    /// Plugs in every guest that is not; the ports take whoever asks for an address there.
    pub(super) fn plug_guests(&mut self, id: MemberId) {
        let guests = std::mem::take(&mut self.members[id.0].unplugged);
        if guests.is_empty() {
            return;
        }
        let (now, unix) = (self.world.now(), self.unix());
        let (network, host) = (self.network.clone(), self.member(id).host);
        for (port, guest) in guests {
            self.command(
                id,
                Command::AddPort {
                    network: network.id(),
                    port,
                    kind: PortKind::Guest,
                    macs: Vec::new(),
                },
            );
            self.world
                .with_node(host, |node, _| node.guests.insert(port, guest));
        }
        let member = &mut self.members[id.0];
        let (mac, address) = (member.mac(), member.address());
        let (block, bindings) = (member.disk.block.clone(), member.disk.bindings.clone());
        let identity = member.identity.clone();
        let service = self.running(id).service.get_or_insert_with(|| {
            GuestService::new(identity, &network, mac, block, bindings, now, unix)
        });
        if let Some(address) = address {
            service.set_server(&network, mac, address);
        }
    }

    /// The node stops, its guests go on.
    pub(super) fn unplug_guests(&mut self, id: MemberId) {
        let host = self.member(id).host;
        let guests = self
            .world
            .with_node(host, |node, _| std::mem::take(&mut node.guests))
            .unwrap_or_default();
        let guests = guests.into_iter().filter(|(port, _)| *port != STATION);
        self.members[id.0].unplugged.extend(guests);
    }

    /// The block is another one now.
    pub(super) fn tell_blocks(&mut self, id: MemberId) {
        let (now, unix) = (self.world.now(), self.unix());
        if let Some(service) = &mut self.running(id).service {
            service.tell_blocks(now, unix);
        }
    }

    /// A frame for the node's DHCP server.
    pub(super) fn handle_punted(&mut self, id: MemberId, port: PortId, frame: &[u8]) {
        let (now, unix) = (self.world.now(), self.unix());
        if let Some(service) = &mut self.running(id).service {
            service.dhcp.handle_frame(port, frame, now, unix);
        }
    }

    /// Carries out what the DHCP server wants: a guest may speak from its address as soon as it is told, so it is bound
    /// before.
    pub(super) fn drain_dhcp(&mut self, id: MemberId) {
        let Some(service) = &mut self.running(id).service else {
            return;
        };
        let (bound, bindings) = (service.follow_server(), service.dhcp.bindings());
        let frames: Vec<_> = std::iter::from_fn(|| service.dhcp.poll_frame()).collect();
        if let Some(bound) = bound {
            self.members[id.0].disk.bindings = bindings;
            for (port, mac) in bound {
                self.command(
                    id,
                    Command::SetPortMacs {
                        port,
                        macs: vec![mac],
                    },
                );
            }
            self.refresh(id);
            self.publish_soon(id);
        }
        for (port, frame) in frames {
            self.command(id, Command::EmitFrame { port, frame });
        }
    }
}
