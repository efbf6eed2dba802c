//! Links, addresses and routes of the network namespace that the node runs in, over rtnetlink.

use futures::TryStreamExt;
use overlay_types::{MacAddr, Subnet};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_core::ErrorMessage,
    packet_route::{
        address::{
            AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
        },
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
            RouteType,
        },
    },
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// There is no such link (any more).
    #[error("{0}: no such network interface; `ip link` lists those that exist")]
    NoSuchLink(String),
    /// What was to be made exists already.
    #[error("{0}: exists already")]
    Exists(String),
    /// The node lacks the right.
    #[error("{0}: not permitted; the node needs CAP_NET_ADMIN")]
    NotPermitted(String),
    /// Anything else.
    #[error("{what}: {source}")]
    Failed {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it is an Ethernet link.
    pub mac: Option<MacAddr>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Its MTU.
    pub mtu: u32,
    /// The bridge, bond or team that it is a port of.
    pub controller: Option<u32>,
    /// `bridge`, `veth`, `tun`, …; `None` for hardware.
    pub kind: Option<String>,
}

impl Link {
    /// Whether it is a bridge.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddress {
    /// The interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// Whether it reaches beyond the link.
    pub global: bool,
    /// Whether it may be used now: not tentative, not failed, not deprecated.
    pub usable: bool,
    /// Whether it is a privacy address, which goes away by itself.
    pub temporary: bool,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to; the unspecified address with length 0 is the default route.
    pub destination: IpAddr,
    /// Prefix length of `destination`.
    pub prefix_len: u8,
    /// Through whom; `None` on the link itself.
    pub gateway: Option<IpAddr>,
    /// The interface.
    pub index: u32,
    /// Lower wins.
    pub metric: Option<u32>,
    /// Which of our addresses to speak from.
    pub source: Option<IpAddr>,
    /// Who made it (rtnetlink(7): 2 kernel, 4 static, 16 DHCP, …).
    pub protocol: u8,
}

/// A connection to the kernel. Cheap to clone; closed with the last clone.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Connects, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetlinkError::Failed {
                what: "open netlink".into(),
                source,
            })?;
        tokio::spawn(connection); // ends when the last handle is dropped
        Ok(Self { handle })
    }

    /// Every interface.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list interfaces", e))?;
        Ok(messages.iter().map(read_link).collect())
    }

    /// The interface of this name, or `None`.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn find(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        // A dump and a search: a lookup by name of a name too long for the kernel is an error of another kind.
        Ok(self
            .links()
            .await?
            .into_iter()
            .find(|link| link.name == name))
    }

    /// The interface of this name.
    ///
    /// # Errors
    /// [`NetlinkError::NoSuchLink`] when there is none.
    pub async fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        self.find(name)
            .await?
            .ok_or_else(|| NetlinkError::NoSuchLink(name.to_owned()))
    }

    /// Sets an interface up or down.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_up(&self, index: u32, up: bool) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index);
        self.change(
            if up { message.up() } else { message.down() }.build(),
            "set interface up or down",
        )
        .await
    }

    /// Sets an interface's MTU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.change(
            LinkUnspec::new_with_index(index).mtu(mtu).build(),
            "set MTU",
        )
        .await
    }

    /// Sets an interface's Ethernet address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mac(&self, index: u32, mac: MacAddr) -> Result<(), NetlinkError> {
        self.change(
            LinkUnspec::new_with_index(index)
                .address(mac.0.to_vec())
                .build(),
            "set Ethernet address",
        )
        .await
    }

    /// Every address, or those of one interface.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn addresses(
        &self,
        index: Option<u32>,
    ) -> Result<Vec<InterfaceAddress>, NetlinkError> {
        let mut get = self.handle.address().get();
        if let Some(index) = index {
            get = get.set_link_index_filter(index);
        }
        let messages: Vec<AddressMessage> = get
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list addresses", e))?;
        Ok(messages.iter().filter_map(read_address).collect())
    }

    /// Adds an address; one that is there already is left as it is. An IPv6 address is usable at once (`nodad`): whether it is
    /// unique is settled by whoever hands it in.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<(), NetlinkError> {
        let mut add = self.handle.address().add(index, address, prefix_len);
        if address.is_ipv6() {
            add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        match add
            .execute()
            .await
            .map_err(|e| failed(&format!("add address {address}/{prefix_len}"), e))
        {
            Err(NetlinkError::Exists(_)) => Ok(()),
            other => other,
        }
    }

    /// Removes an address; one that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_address(
        &self,
        index: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<(), NetlinkError> {
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("list addresses", e))?;
        for message in messages {
            if read_address(&message)
                .is_some_and(|a| a.address == address && a.prefix_len == prefix_len)
            {
                self.handle
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .map_err(|e| failed(&format!("remove address {address}/{prefix_len}"), e))?;
            }
        }
        Ok(())
    }

    /// Makes a bridge without spanning tree, down, and gives its interface. It is transparent: it neither delays a new port
    /// nor filters multicast, nor does it ask for its frames to pass the host's IP firewall (`nf_call_*`).
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when the name is taken.
    pub async fn create_bridge(
        &self,
        name: &str,
        mac: Option<MacAddr>,
    ) -> Result<Link, NetlinkError> {
        let mut message = LinkMessageBuilder::<LinkBridge>::new(name)
            .forward_delay(0)
            .mcast_snooping(false)
            .nf_call_iptables(false)
            .nf_call_ip6tables(false)
            .nf_call_arptables(false);
        if let Some(mac) = mac {
            message = message.address(mac.0.to_vec());
        }
        self.handle
            .link()
            .add(message.build())
            .execute()
            .await
            .map_err(|e| failed(&format!("make bridge {name}"), e))?;
        self.link(name).await
    }

    /// Deletes an interface that software made (a bridge, a TAP); one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn delete_link(&self, index: u32) -> Result<(), NetlinkError> {
        match self
            .handle
            .link()
            .del(index)
            .execute()
            .await
            .map_err(|e| failed("delete interface", e))
        {
            Err(NetlinkError::NoSuchLink(_)) => Ok(()),
            other => other,
        }
    }

    /// Makes an interface a port of a bridge, or of none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_controller(
        &self,
        index: u32,
        bridge: Option<u32>,
    ) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index)
            .controller(bridge.unwrap_or(0))
            .build();
        self.change(message, "put interface into a bridge").await
    }

    /// Every unicast route of the main table (IPv4 and IPv6).
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for ask in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let messages: Vec<RouteMessage> = self
                .handle
                .route()
                .get(ask)
                .execute()
                .try_collect()
                .await
                .map_err(|e| failed("list routes", e))?;
            routes.extend(messages.iter().filter_map(read_route));
        }
        Ok(routes)
    }

    /// Adds a route, replacing the one with the same destination and metric.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.handle
            .route()
            .add(write_route(route))
            .replace()
            .execute()
            .await
            .map_err(|e| failed(&route_text("add", route), e))
    }

    /// Removes a route; one that is not there is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_route(&self, route: &Route) -> Result<(), NetlinkError> {
        match self
            .handle
            .route()
            .del(write_route(route))
            .execute()
            .await
            .map_err(|e| failed(&route_text("remove", route), e))
        {
            Err(NetlinkError::NoSuchLink(_)) => Ok(()),
            other => other,
        }
    }

    /// The first interface, apart from `except`, whose own network or route overlaps `subnet`: `(interface, its network)`.
    /// Default routes do not count.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn overlapping(
        &self,
        subnet: Subnet,
        except: &BTreeSet<String>,
    ) -> Result<Option<(String, String)>, NetlinkError> {
        let links = self.links().await?;
        let name_of = |index| {
            links
                .iter()
                .find(|l| l.index == index)
                .map(|l| l.name.clone())
                .filter(|name| !except.contains(name))
        };
        let addresses = self
            .addresses(None)
            .await?
            .into_iter()
            .map(|a| (a.index, a.address, a.prefix_len));
        let routes = self
            .routes()
            .await?
            .into_iter()
            .map(|r| (r.index, r.destination, r.prefix_len));
        for (index, address, prefix_len) in addresses.chain(routes) {
            let IpAddr::V4(address) = address else {
                continue;
            };
            if prefix_len == 0 || !overlaps(subnet, address, prefix_len) {
                continue;
            }
            if let Some(name) = name_of(index) {
                return Ok(Some((name, format!("{address}/{prefix_len}"))));
            }
        }
        Ok(None)
    }

    async fn change(&self, message: LinkMessage, what: &str) -> Result<(), NetlinkError> {
        self.handle
            .link()
            .change(message)
            .execute()
            .await
            .map_err(|e| failed(what, e))
    }
}

fn overlaps(subnet: Subnet, address: Ipv4Addr, prefix_len: u8) -> bool {
    let shorter = prefix_len.min(subnet.prefix_len());
    let mask = u32::MAX.checked_shl(32 - u32::from(shorter)).unwrap_or(0);
    u32::from(address) & mask == u32::from(subnet.base()) & mask
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        mtu: 0,
        controller: None,
        kind: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok().map(MacAddr),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.controller = Some(*index).filter(|i| *i != 0),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| {
                    if let LinkInfo::Kind(kind) = info {
                        Some(kind_text(kind))
                    } else {
                        None
                    }
                });
            }
            _ => {}
        }
    }
    link
}

fn kind_text(kind: &InfoKind) -> String {
    kind.to_string()
}

fn read_address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    Some(InterfaceAddress {
        index: message.header.index,
        address: local.or(address)?, // on a point-to-point link `Address` is the other end
        prefix_len: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe
            || message.header.scope == AddressScope::Site,
        usable: !flags.intersects(unusable),
        // For IPv6, "secondary" means temporary (if_addr.h).
        temporary: address.is_some_and(|a| a.is_ipv6()) && flags.contains(AddressFlags::Secondary),
    })
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let (mut destination, mut gateway, mut source, mut metric, mut index) =
        (None, None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = ip_of(to),
            RouteAttribute::Gateway(via) => gateway = ip_of(via),
            RouteAttribute::PrefSource(from) => source = ip_of(from),
            RouteAttribute::Priority(priority) => metric = Some(*priority),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Table(id) => table = *id,
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) || header.kind != RouteType::Unicast {
        return None;
    }
    let unspecified = if header.address_family == rtnetlink::packet_route::AddressFamily::Inet6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    Some(Route {
        destination: destination.unwrap_or(unspecified),
        prefix_len: header.destination_prefix_length,
        gateway,
        index: index?, // multipath routes are nobody's we move
        metric,
        source,
        protocol: header.protocol.into(),
    })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

fn write_route(route: &Route) -> RouteMessage {
    let mut message = match route.destination {
        IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to, route.prefix_len)
            .output_interface(route.index)
            .build(),
        IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to, route.prefix_len)
            .output_interface(route.index)
            .build(),
    };
    message.header.protocol = RouteProtocol::from(route.protocol);
    let on_link = route.gateway.is_none() && route.destination.is_ipv4();
    message.header.scope = if on_link {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    if let Some(via) = route.gateway {
        message
            .attributes
            .push(RouteAttribute::Gateway(address_of(via)));
    }
    if let Some(source) = route.source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(address_of(source)));
    }
    if let Some(metric) = route.metric {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message
}

fn address_of(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn route_text(verb: &str, route: &Route) -> String {
    format!("{verb} route {}/{}", route.destination, route.prefix_len)
}

fn failed(what: &str, error: rtnetlink::Error) -> NetlinkError {
    let source = match error {
        rtnetlink::Error::NetlinkError(ErrorMessage {
            code: Some(code), ..
        }) => io::Error::from_raw_os_error(code.get().abs()),
        other => io::Error::other(other),
    };
    let what = what.to_owned();
    match source.raw_os_error() {
        Some(libc::EEXIST) => NetlinkError::Exists(what),
        Some(libc::ENODEV | libc::ESRCH) => NetlinkError::NoSuchLink(what),
        Some(libc::EPERM | libc::EACCES) => NetlinkError::NotPermitted(what),
        _ => NetlinkError::Failed { what, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_when_one_contains_the_other() {
        let subnet: Subnet = "10.77.0.0/16".parse().unwrap();
        assert!(overlaps(subnet, Ipv4Addr::new(10, 77, 9, 1), 24));
        assert!(overlaps(subnet, Ipv4Addr::new(10, 0, 0, 0), 8));
        assert!(!overlaps(subnet, Ipv4Addr::new(10, 78, 0, 0), 16));
    }
}
