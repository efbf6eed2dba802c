//! Collects the network's names from the directory and our own guests, and gives them to the DNS server, the hosts file and
//! the mDNS responder of an attached LAN.

use super::{actor::Node, membership::Member, unix_now};
use crate::dns::Names;
use overlay_types::{Binding, DhcpMode, Location, Name, NetworkId, PeerId};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};
use tracing::warn;

impl Node {
    /// Publishes the names as they stand now.
    pub(super) async fn spread_names(&mut self, id: NetworkId) {
        let me = self.me;
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let all = member.all_names(me);
        let mut names = Names::new(
            member.name().clone(),
            id,
            member.subnet(),
            member.order == 0,
        );
        if member.dhcp_mode() == DhcpMode::Lan {
            names = names.lan_served();
        }
        for (name, addresses) in &all {
            for address in addresses {
                names.insert(name.clone(), *address);
            }
        }
        let names = Arc::new(names);
        member.names.store(Arc::clone(&names));
        if let Some(mdns) = &mut member.mdns {
            let of_others = all
                .iter()
                .filter(|(name, _)| **name != member.membership.name);
            mdns.set_names(
                of_others
                    .map(|(name, addresses)| (name.clone(), addresses.clone()))
                    .collect(),
                Instant::now(),
            );
        }
        if let (Some(host_names), Some(address)) = (&self.host_names, member.configured)
            && let Err(error) = host_names
                .publish(member.tap_index, &[IpAddr::V4(address)], &names)
                .await
        {
            warn!(%error, "names do not resolve on this host");
        }
    }

    /// Leaves the host's resolver as it was found.
    pub(super) async fn forget_names(&self, member: &Member) {
        if let Some(host_names) = &self.host_names
            && let Err(error) = host_names.withdraw(member.tap_index, member.name()).await
        {
            warn!(%error, "the network's names stay on this host");
        }
    }
}

impl Member {
    /// Every name with its addresses: this node, its guests, the other nodes, theirs.
    pub(super) fn all_names(&self, me: PeerId) -> BTreeMap<Name, BTreeSet<IpAddr>> {
        let unix = unix_now();
        let mut names: BTreeMap<Name, BTreeSet<IpAddr>> = BTreeMap::new();
        let mut add = |name: &Name, address: IpAddr| {
            names.entry(name.clone()).or_default().insert(address);
        };
        if let Some(address) = self.configured {
            add(&self.membership.name, IpAddr::V4(address));
        }
        add(&self.membership.name, IpAddr::V6(me.address6(self.id)));
        for guest in self.guests.values() {
            if let (Some(name), Some(ip)) = (&guest.name, guest.ip) {
                add(name, ip);
            }
        }
        for record in self.directory.peers() {
            if let Some(address) = self.directory.address_of(record.peer, unix) {
                add(&record.membership.name, IpAddr::V4(address));
            }
            add(
                &record.membership.name,
                IpAddr::V6(record.peer.address6(self.id)),
            );
            for guest in &record.guests {
                if let Some(name) = &guest.name {
                    add(name, guest.ip);
                }
            }
        }
        names
    }

    /// Our own stations, for ARP and neighbour discovery.
    pub(super) fn own_bindings(&self, me: PeerId) -> Vec<Binding> {
        let host = Location::Port(self.host_port);
        let mac = me.host_mac();
        let own4 = self.configured.map(|address| Binding {
            ip: IpAddr::V4(address),
            mac,
            location: host,
        });
        let own6 = Binding {
            ip: IpAddr::V6(me.address6(self.id)),
            mac,
            location: host,
        };
        let guests = self.guests.iter().filter_map(|(mac, guest)| {
            Some(Binding {
                ip: guest.ip?,
                mac: *mac,
                location: Location::Port(guest.port),
            })
        });
        own4.into_iter().chain([own6]).chain(guests).collect()
    }
}
