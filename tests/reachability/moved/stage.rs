//! The lab of a [`Scene`]: a laptop, a peer that it may ssh into, and all that may befall what lies between them.

use super::firewall::{drop_all, let_out_all, let_out_nothing, let_out_only};
use super::{ASLEEP, Event, LAPTOP, NETWORK, PEER, RESTARTED, Scene, UNPLUGGED};
use crate::overlay::{
    FARLAN, await_path, await_relays, eventually, founder_knowing, ping, ssh_key, sshd, within,
};
use anyhow::{Context, Result, ensure};
use cli::demo::Node;
use cli::lab::{Host, Lab, Nat, Process, Site, SiteOptions, Stack, Uplink};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

/// While data goes through a relay, a better way is looked for every 45 s, and after many rounds at once the next one waits
/// its turn.
const CLIMBING: Duration = Duration::from_secs(120);

/// How long an IP version is back before the other one is lost.
const BACK_FOR: Duration = Duration::from_secs(8);

/// A laptop with two uplinks, each behind a NAT of its own, and a peer behind another.
pub(crate) struct Stage<'lab> {
    pub(crate) host: Host,
    pub(crate) node: Node,
    pub(crate) peer: Node,
    /// The peer's, in the overlay.
    pub(crate) address: String,
    home: Site<'lab>,
    wifi: Uplink,
    peer_site: Site<'lab>,
    peer_host: Host,
    fabrics: Vec<(Host, Node)>,
    /// What gets out by itself, in nft's words, while UDP does not.
    gateway: Option<String>,
    _daemons: Vec<Process>,
}

/// By what the laptop reaches its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Way {
    kind: String,
    remote: SocketAddr,
}

impl<'lab> Stage<'lab> {
    /// Builds it; the path between the two is what the scene begins with.
    pub(crate) fn build(lab: &'lab Lab, scene: Scene) -> Result<Self> {
        let (stack, fabrics): (_, &[_]) = match scene {
            Scene::Relays => (Stack::Dual, &["fabric", "fabric-two"]),
            _ => (Stack::Ipv4, &["fabric"]),
        };
        let options = SiteOptions {
            stack,
            ..SiteOptions::default()
        };
        let site = |name: &str| lab.site_with(name, Nat::PortRestricted, options.clone());
        let (mut running, mut bootstraps) = (Vec::new(), Vec::new());
        for name in fabrics {
            let host = lab.public_host_with(name, stack)?;
            let (node, addresses) = Node::fabric_everywhere(&host, FARLAN)?;
            bootstraps.extend(addresses);
            running.push((host, node));
        }
        let peer_site = site("peer")?;
        let peer_host = peer_site.host(PEER)?;
        let peer = founder_knowing(&peer_host, &bootstraps, NETWORK);
        let (home, cafe) = (site("home")?, site("cafe")?);
        let host = home.host(LAPTOP)?;
        let wifi = cafe.second_uplink(host.machine(), "eth1")?;
        let key = ssh_key(&host);
        let mut daemons = vec![sshd(&peer_host, &key)];
        let (mut via, mut gateway) = (None, None);
        match scene {
            Scene::Ssh => {
                let outside = lab.public_host("gateway")?;
                daemons.push(sshd(&outside, &key));
                via = Some(format!("ssh://root@{}", outside.address()));
                gateway = Some(format!("ip daddr {} tcp dport 22", outside.address()));
            }
            Scene::Proxy => {
                let (proxy, at) = home.http_proxy()?;
                daemons.push(proxy);
                via = Some(format!("http://{at}"));
            }
            Scene::Uplinks | Scene::Relays => {}
        }
        if via.is_some() {
            close(&home, gateway.as_deref())?;
        }
        let invite = peer.invite(NETWORK)?;
        let options: Vec<&str> = via.iter().flat_map(|via| ["--via", via]).collect();
        let (node, _) = Node::up_with_invite_and(&host, FARLAN, &invite, &options)?;
        let address = peer.address(NETWORK)?;
        eventually(|| ping(&host, &address))?;
        let kind = if via.is_some() { "stream" } else { "direct" };
        await_path(&node, NETWORK, PEER, kind)?;
        let stage = Self {
            host,
            node,
            peer,
            address,
            home,
            wifi,
            peer_site,
            peer_host,
            fabrics: running,
            gateway,
            _daemons: daemons,
        };
        stage.await_every_relay()?;
        Ok(stage)
    }

    /// Brings back what an earlier event took and this one needs, so that nothing is measured but this one.
    pub(crate) fn prepare(&self, event: Event) -> Result<()> {
        match event {
            Event::OtherIpVersion => {
                let_out_all(&self.home)?;
                thread::sleep(BACK_FOR);
                Ok(())
            }
            Event::RelayUnplugged | Event::RelayKilled => {
                for (host, _) in &self.fabrics {
                    host.uplink().up()?;
                }
                self.await_every_relay()
            }
            _ => Ok(()),
        }
    }

    /// Makes it happen, and waits for the path that is to come of it.
    pub(crate) fn befall(&mut self, event: Event) -> Result<()> {
        let before = self.way()?;
        self.bring_about(event, &before)
            .with_context(|| event.to_string())?;
        let Some(kind) = event.path_after() else {
            return Ok(());
        };
        within(CLIMBING, || {
            let now = self.way()?;
            let is_it = match event {
                Event::IpVersion | Event::OtherIpVersion => {
                    now.remote.is_ipv6() != before.remote.is_ipv6()
                }
                Event::RelayUnplugged | Event::RelayKilled => {
                    self.relay_of(&now)? != self.relay_of(&before)?
                }
                _ => true,
            };
            ensure!(now.kind == kind && is_it, "from {before:?} to {now:?}");
            Ok(())
        })
        .with_context(|| format!("what follows when {event}"))
    }

    fn bring_about(&mut self, event: Event, before: &Way) -> Result<()> {
        let (host, home) = (&self.host, &self.home);
        match event {
            Event::OtherUplink => self.wifi.make_default(),
            Event::FirstUplink => host.uplink().make_default(),
            Event::OutsideAddress => home.renumber().map(drop),
            Event::Restart => home.reboot_router(RESTARTED),
            Event::Cable => {
                host.uplink().down()?;
                thread::sleep(UNPLUGGED);
                host.uplink().up()
            }
            Event::Sleep => {
                host.suspend()?;
                thread::sleep(ASLEEP);
                host.resume()
            }
            Event::Address => home.readdress(host).map(drop),
            Event::Firewall => let_out_only(home, "tcp dport 443"),
            Event::NoFirewall | Event::Straight | Event::UdpOpens => let_out_all(home),
            Event::UdpCloses => close(home, self.gateway.as_deref()),
            Event::IpVersion | Event::OtherIpVersion => {
                let version = if before.remote.is_ipv6() { 6 } else { 4 };
                drop_all(home, &[format!("meta nfproto ipv{version}")])
            }
            Event::NotStraight => {
                let four = self.peer_site.outside();
                let mut what = ["saddr", "daddr"]
                    .map(|end| format!("ip {end} {four}"))
                    .to_vec();
                if let Some(six) = self.peer_host.uplink().ipv6() {
                    what.extend(["saddr", "daddr"].map(|end| format!("ip6 {end} {six}")));
                }
                drop_all(home, &what)
            }
            Event::RelayUnplugged => {
                let at = self.relay_of(before)?;
                self.fabrics[at].0.uplink().down()
            }
            Event::RelayKilled => {
                let at = self.relay_of(before)?;
                self.fabrics[at].1.process().kill()
            }
        }
    }

    fn way(&self) -> Result<Way> {
        let path = self.node.peer(NETWORK, PEER)?["path"].clone();
        let of = |name: &str| path[name].as_str().context("there is no path");
        Ok(Way {
            kind: of("kind")?.to_owned(),
            remote: of("remote")?.parse()?,
        })
    }

    /// Which of the fabric nodes relays.
    fn relay_of(&self, way: &Way) -> Result<usize> {
        let is_at = |(host, _): &(Host, Node)| {
            let (four, six) = (host.uplink().ipv4(), host.uplink().ipv6());
            let at = way.remote.ip();
            four.map(IpAddr::from) == Some(at) || six.map(IpAddr::from) == Some(at)
        };
        let at = self.fabrics.iter().position(is_at);
        at.with_context(|| format!("{way:?} is by no fabric node"))
    }

    /// Waits until both have a place at each relay.
    fn await_every_relay(&self) -> Result<()> {
        for node in [&self.node, &self.peer] {
            await_relays(node, self.fabrics.len())?;
        }
        Ok(())
    }
}

/// Lets nothing out of a site but its gateway, if it has one.
fn close(site: &Site<'_>, gateway: Option<&str>) -> Result<()> {
    match gateway {
        Some(gateway) => let_out_only(site, gateway),
        None => let_out_nothing(site),
    }
}
