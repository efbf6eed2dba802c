//! Puts an interface of the host, with the LAN behind it, on a network, and takes it off again without a trace.
//! What must be undone is written down before it is done (`journal`), so that a crash can be undone too.
//! Frames are none of its business: they pass between the bridge and the TAP.

mod journal;

use crate::host::{Link, Netlink, NetlinkError, Route, Sysctl};
use journal::{Entry, Journal, Kind};
use overlay_types::Subnet;
use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

/// The kernel's limit on interface names (IFNAMSIZ without the terminator).
const NAME_BYTES_MAX: usize = 15;
/// Routes that the kernel makes and unmakes itself along with addresses (RTPROT_KERNEL).
const PROTOCOL_KERNEL: u8 = 2;

/// Attaches and detaches; one for each node, whose state directory holds the journal.
#[derive(Debug)]
pub struct LanPorts {
    netlink: Netlink,
    journal: Journal,
    sysfs: PathBuf,
}

/// An interface that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface on the LAN.
    pub iface: String,
    /// The bridge that carries it and the TAP.
    pub bridge: String,
    /// Whether that bridge is ours.
    pub bridge_made: bool,
    /// What the user should know: the host's firewall may drop bridged traffic.
    pub warning: Option<String>,
}

/// A gateway that routes between the LAN and the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// The interface on the LAN.
    pub iface: String,
    /// The LAN's subnet there: what the overlay's guests need a route to, through this node.
    pub lan: Subnet,
    /// Our address in it.
    pub address: Ipv4Addr,
    /// The static route that the LAN's router needs, as a command for Linux.
    pub route_hint: String,
}

/// Why an interface cannot be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// There is none of that name.
    #[error("there is no interface {0}; `ip link` lists those that exist")]
    NoSuchInterface(String),
    /// Already done.
    #[error(
        "{0} is attached already; `farlan lan status` shows where, `farlan lan detach` ends it"
    )]
    AlreadyAttached(String),
    /// Never done, or done by another node.
    #[error("{0} is not attached by this node; `farlan lan status` lists what is")]
    NotAttached(String),
    /// It carries no Ethernet frames.
    #[error("{0} is not an Ethernet interface; attach one that is (`ip link` shows link/ether)")]
    NotEthernet(String),
    /// An access point takes frames of its own stations only.
    #[error(
        "{0} is a wireless interface, which cannot carry other stations' frames; attach a wired one, or create the network with `--dhcp overlay` to route instead"
    )]
    Wireless(String),
    /// Part of something else than a bridge.
    #[error("{iface} is part of {controller}, which is no bridge; attach {controller}")]
    PartOf {
        /// The interface.
        iface: String,
        /// The bond or team.
        controller: String,
    },
    /// There is nothing to route to.
    #[error("{0} has no IPv4 address, so there is no LAN subnet to route to; give it one first")]
    NoAddress(String),
    /// Routing would be ambiguous.
    #[error(
        "the LAN's subnet {lan} on {iface} overlaps the network's {overlay}; make the network with another one (`farlan network create --subnet`)"
    )]
    Overlaps {
        /// The interface.
        iface: String,
        /// The LAN's.
        lan: Subnet,
        /// Ours.
        overlay: Subnet,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The journal or a setting cannot be written, so that nothing was changed.
    #[error("cannot write {path}: {source}", path = path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl LanPorts {
    /// Keeps its journal in the folder `journal`, and reads what is left there from a process that is gone. Call [`Self::heal`] next.
    ///
    /// # Errors
    /// [`LanError::Io`] when the folder cannot be made or read.
    pub fn open(netlink: Netlink, journal: &Path) -> Result<Self, LanError> {
        Ok(Self {
            netlink,
            journal: Journal::open(journal)?,
            sysfs: PathBuf::from("/sys"),
        })
    }

    /// Reads interface properties below `sysfs` instead of `/sys`, for tests.
    #[must_use]
    pub fn with_sysfs(mut self, sysfs: &Path) -> Self {
        sysfs.clone_into(&mut self.sysfs);
        self
    }

    /// Undoes what a process that is gone left attached; gives the interfaces.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same, and what failed is tried again next time.
    pub async fn heal(&mut self) -> Result<Vec<String>, LanError> {
        let mut failed = None;
        let mut healed = Vec::new();
        for entry in self.journal.leftovers() {
            match self.undo(&entry).await {
                Ok(()) => healed.push(entry.iface),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(healed), Err)
    }

    /// Joins `iface` and `tap` in a bridge: `iface` itself if it is one, the one it is in, or one of ours, which then carries the
    /// addresses and routes of `iface`.
    ///
    /// # Errors
    /// [`LanError`]; nothing is changed then.
    pub async fn attach(&mut self, iface: &str, tap: &str) -> Result<Attached, LanError> {
        self.check_free(iface).await?;
        let links = self.netlink.links().await?;
        let find = |name: &str| {
            links
                .iter()
                .find(|link| link.name == name)
                .ok_or_else(|| LanError::NoSuchInterface(name.to_owned()))
        };
        let (link, tap) = (find(iface)?, find(tap)?);
        self.check_ethernet(link)?;
        let controller = link
            .controller
            .and_then(|index| links.iter().find(|other| other.index == index));
        let kind = match controller {
            _ if link.is_bridge() => Kind::Joined {
                bridge: iface.to_owned(),
                tap: tap.name.clone(),
            },
            Some(bridge) if bridge.is_bridge() => Kind::Joined {
                bridge: bridge.name.clone(),
                tap: tap.name.clone(),
            },
            Some(other) => {
                return Err(LanError::PartOf {
                    iface: iface.to_owned(),
                    controller: other.name.clone(),
                });
            }
            None => Kind::Bridged {
                bridge: bridge_name(iface, &links),
                tap: tap.name.clone(),
                was_up: link.up,
                complete: false,
                addresses: self.movable_addresses(link.index).await?,
                routes: self.movable_routes(link.index).await?,
            },
        };
        let entry = Entry::new(iface, kind);
        self.journal.write(&entry)?;
        let done = match &entry.kind {
            Kind::Joined { bridge, .. } => self
                .join(bridge, tap)
                .await
                .map(|()| (bridge.clone(), false)),
            Kind::Bridged {
                bridge,
                addresses,
                routes,
                ..
            } => self
                .build_bridge(bridge, link, tap, addresses, routes)
                .await
                .map(|()| (bridge.clone(), true)),
            Kind::Routed { .. } => unreachable!("made above as one of the other two"),
        };
        match done {
            Ok((bridge, bridge_made)) => {
                self.journal.complete(entry)?;
                Ok(Attached {
                    iface: iface.to_owned(),
                    bridge,
                    bridge_made,
                    warning: firewall_warning(),
                })
            }
            Err(error) => {
                self.undo(&entry).await?;
                Err(error.into())
            }
        }
    }

    /// Routes between `iface`'s subnet and the overlay's instead of bridging them: turns forwarding on, and says what the LAN's router
    /// needs to know. The interface may be a wireless one.
    ///
    /// # Errors
    /// [`LanError`]; nothing is changed then.
    pub async fn route(&mut self, iface: &str, overlay: Subnet) -> Result<Routed, LanError> {
        self.check_free(iface).await?;
        let link = self
            .netlink
            .find(iface)
            .await?
            .ok_or_else(|| LanError::NoSuchInterface(iface.to_owned()))?;
        let v4 = |a: crate::host::InterfaceAddress| match a.address {
            IpAddr::V4(v4) if a.global => Some((v4, subnet_of(v4, a.prefix_len)?)),
            _ => None,
        };
        let addresses = self.netlink.addresses(Some(link.index)).await?;
        let (address, lan) = addresses
            .into_iter()
            .find_map(v4)
            .ok_or_else(|| LanError::NoAddress(iface.to_owned()))?;
        if lan.overlaps(overlay) {
            return Err(LanError::Overlaps {
                iface: iface.to_owned(),
                lan,
                overlay,
            });
        }
        let forwarding = Sysctl::new(FORWARDING);
        let cannot = |source| LanError::Io {
            path: forwarding.path().to_owned(),
            source,
        };
        let before = forwarding.read().map_err(cannot)?;
        let entry = Entry::new(
            iface,
            Kind::Routed {
                forwarding_before: before,
            },
        );
        self.journal.write(&entry)?;
        if let Err(error) = forwarding.set("1") {
            self.journal.remove(iface)?;
            return Err(cannot(error));
        }
        self.journal.complete(entry)?;
        Ok(Routed {
            iface: iface.to_owned(),
            lan,
            address,
            route_hint: format!("ip route add {overlay} via {address}"),
        })
    }

    /// Undoes an attach or a route.
    ///
    /// # Errors
    /// [`LanError::NotAttached`], or that the kernel refused; then it may be tried again.
    pub async fn detach(&mut self, iface: &str) -> Result<(), LanError> {
        let entry = self
            .journal
            .get(iface)
            .ok_or_else(|| LanError::NotAttached(iface.to_owned()))?;
        self.undo(&entry).await
    }

    /// Undoes everything, at stop.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub async fn detach_all(&mut self) -> Result<(), LanError> {
        let mut failed = None;
        for entry in self.journal.entries() {
            if let Err(error) = self.undo(&entry).await {
                failed = failed.or(Some(error));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// A leftover of an earlier process is undone, what this one attached is refused.
    async fn check_free(&mut self, iface: &str) -> Result<(), LanError> {
        if let Some(leftover) = self
            .journal
            .leftovers()
            .into_iter()
            .find(|entry| entry.iface == iface)
        {
            self.undo(&leftover).await?;
        }
        if self.journal.get(iface).is_some() {
            Err(LanError::AlreadyAttached(iface.to_owned()))
        } else {
            Ok(())
        }
    }

    fn check_ethernet(&self, link: &Link) -> Result<(), LanError> {
        if link.loopback || link.mac.is_none() {
            return Err(LanError::NotEthernet(link.name.clone()));
        }
        let properties = self.sysfs.join("class/net").join(&link.name);
        if ["wireless", "phy80211"]
            .iter()
            .any(|sign| properties.join(sign).exists())
        {
            return Err(LanError::Wireless(link.name.clone()));
        }
        Ok(())
    }

    async fn join(&self, bridge: &str, tap: &Link) -> Result<(), NetlinkError> {
        let bridge = self.netlink.link(bridge).await?;
        self.netlink
            .set_controller(tap.index, Some(bridge.index))
            .await?;
        self.netlink.set_up(tap.index, true).await
    }

    async fn build_bridge(
        &self,
        name: &str,
        link: &Link,
        tap: &Link,
        addresses: &[(IpAddr, u8)],
        routes: &[Route],
    ) -> Result<(), NetlinkError> {
        // With the interface's own MAC, neighbours and the LAN's DHCP server see no change.
        let bridge = self.netlink.create_bridge(name, link.mac).await?;
        self.netlink.set_up(bridge.index, true).await?;
        self.netlink
            .set_controller(link.index, Some(bridge.index))
            .await?;
        self.netlink.set_up(link.index, true).await?;
        self.netlink
            .set_controller(tap.index, Some(bridge.index))
            .await?;
        self.netlink.set_up(tap.index, true).await?;
        self.move_to(link.index, bridge.index, addresses, routes)
            .await
    }

    /// Takes addresses from one interface and puts them, with the routes, on another. An address is on neither for a moment: on both,
    /// the kernel would pick a route by age.
    async fn move_to(
        &self,
        from: u32,
        to: u32,
        addresses: &[(IpAddr, u8)],
        routes: &[Route],
    ) -> Result<(), NetlinkError> {
        for (address, prefix_len) in addresses {
            self.netlink
                .remove_address(from, *address, *prefix_len)
                .await?;
            self.netlink.add_address(to, *address, *prefix_len).await?;
        }
        // Routes through a gateway need the one that reaches the gateway.
        let (on_link, through): (Vec<_>, Vec<_>) =
            routes.iter().partition(|route| route.gateway.is_none());
        for route in on_link.into_iter().chain(through) {
            self.netlink
                .remove_route(&Route {
                    index: from,
                    ..route.clone()
                })
                .await?;
            self.netlink
                .add_route(&Route {
                    index: to,
                    ..route.clone()
                })
                .await?;
        }
        Ok(())
    }

    async fn undo(&mut self, entry: &Entry) -> Result<(), LanError> {
        match &entry.kind {
            Kind::Joined { tap, .. } => {
                if let Some(tap) = self.netlink.find(tap).await? {
                    self.netlink.set_controller(tap.index, None).await?;
                }
            }
            Kind::Bridged {
                bridge,
                was_up,
                complete,
                addresses,
                routes,
                ..
            } => {
                self.undo_bridge(&entry.iface, bridge, *was_up, *complete, addresses, routes)
                    .await?;
            }
            Kind::Routed { forwarding_before } => {
                let others = self.journal.entries().iter().any(|other| {
                    other.iface != entry.iface && matches!(other.kind, Kind::Routed { .. })
                });
                if let Some(before) = forwarding_before.as_deref().filter(|_| !others) {
                    let forwarding = Sysctl::new(FORWARDING);
                    forwarding.set(before).map_err(|source| LanError::Io {
                        path: forwarding.path().to_owned(),
                        source,
                    })?;
                }
            }
        }
        self.journal.remove(&entry.iface)
    }

    /// What the bridge carries now goes back; it may have changed since. After a crash half way, what was noted down goes back as well.
    async fn undo_bridge(
        &self,
        iface: &str,
        bridge: &str,
        was_up: bool,
        complete: bool,
        addresses: &[(IpAddr, u8)],
        routes: &[Route],
    ) -> Result<(), LanError> {
        let bridge = self.netlink.find(bridge).await?.filter(Link::is_bridge);
        let (mut addresses, mut routes) = (addresses.to_vec(), routes.to_vec());
        if let Some(bridge) = &bridge {
            let (now, routes_now) = (
                self.movable_addresses(bridge.index).await?,
                self.movable_routes(bridge.index).await?,
            );
            if complete {
                (addresses, routes) = (now, routes_now);
            } else {
                addresses.extend(now);
                routes.extend(routes_now);
            }
        }
        let link = self.netlink.find(iface).await?; // it may have been pulled out
        if let Some(link) = link.as_ref().filter(|link| {
            bridge
                .as_ref()
                .is_some_and(|bridge| link.controller == Some(bridge.index))
        }) {
            self.netlink.set_controller(link.index, None).await?;
        }
        if let Some(bridge) = &bridge {
            self.netlink.delete_link(bridge.index).await?;
        }
        if let Some(link) = link {
            for (address, prefix_len) in addresses {
                self.netlink
                    .add_address(link.index, address, prefix_len)
                    .await?;
            }
            let (on_link, through): (Vec<_>, Vec<_>) = routes
                .into_iter()
                .partition(|route| route.gateway.is_none());
            for route in on_link.into_iter().chain(through) {
                self.netlink
                    .add_route(&Route {
                        index: link.index,
                        ..route
                    })
                    .await?;
            }
            if !was_up {
                self.netlink.set_up(link.index, false).await?;
            }
        }
        Ok(())
    }

    /// All but link-local ones, which every interface makes for itself.
    async fn movable_addresses(&self, index: u32) -> Result<Vec<(IpAddr, u8)>, NetlinkError> {
        let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let addresses = self.netlink.addresses(Some(index)).await?;
        Ok(addresses
            .into_iter()
            .filter(|a| !link_local(&a.address))
            .map(|a| (a.address, a.prefix_len))
            .collect())
    }

    /// All but those that come and go with addresses.
    async fn movable_routes(&self, index: u32) -> Result<Vec<Route>, NetlinkError> {
        let routes = self.netlink.routes().await?;
        Ok(routes
            .into_iter()
            .filter(|route| route.index == index && route.protocol != PROTOCOL_KERNEL)
            .collect())
    }
}

const FORWARDING: &str = "net/ipv4/ip_forward";

/// `fl-eth1`, within the kernel's limit, and not taken.
fn bridge_name(iface: &str, links: &[Link]) -> String {
    let free = |name: &String| links.iter().all(|link| link.name != *name);
    let cut = |len: usize| iface.chars().take(len).collect::<String>();
    let plain = format!("fl-{}", cut(NAME_BYTES_MAX - 3));
    (std::iter::once(plain.clone())
        .chain((0..100).map(|n| format!("fl{n}-{}", cut(NAME_BYTES_MAX - 5)))))
    .find(free)
    .unwrap_or(plain)
}

fn subnet_of(address: Ipv4Addr, prefix_len: u8) -> Option<Subnet> {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix_len.min(32)))
        .unwrap_or(0);
    Subnet::new((u32::from(address) & mask).into(), prefix_len).ok()
}

/// Where br_netfilter is on, the FORWARD chain judges bridged packets; Docker sets that chain to drop. It is the host's setting (other
/// bridges' isolation may hang on it, and a bridge cannot opt out alone), so it is reported, not changed.
fn firewall_warning() -> Option<String> {
    let on = Sysctl::new("net/bridge/bridge-nf-call-iptables")
        .read()
        .ok()??
        == "1";
    on.then(|| {
        "this host's IP firewall also judges bridged packets (net.bridge.bridge-nf-call-iptables = 1); if its FORWARD chain drops, \
         accept the bridge there, or set that to 0"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridges_name_fits_the_kernel_and_is_free() {
        let taken = Link {
            index: 1,
            name: "fl-eth1".into(),
            mac: None,
            up: true,
            loopback: false,
            mtu: 1500,
            controller: None,
            kind: None,
        };
        assert_eq!(bridge_name("eth1", &[]), "fl-eth1");
        assert_eq!(bridge_name("eth1", &[taken]), "fl0-eth1");
        assert_eq!(bridge_name("enp0s31f6u1u3u4", &[]).len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_subnet_is_read_off_an_address() {
        assert_eq!(
            subnet_of(Ipv4Addr::new(192, 168, 1, 5), 24),
            "192.168.1.0/24".parse().ok()
        );
        assert_eq!(subnet_of(Ipv4Addr::new(192, 168, 1, 5), 32), None);
    }
}
