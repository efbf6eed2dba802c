//! `farlan doctor`: gathers what [`crate::doctor`] judges. What takes time is asked beside the node's task.

use super::{actor::Node, join::answer, unix_ms};
use crate::{
    api::Answer,
    doctor::{
        ClockSample, DataPort, Facts, NetworkFacts, NodeFacts, PathFacts, ask_http, ask_tls,
        host::{open_tun, read_firewall},
        judge,
    },
    host::{Link, Netlink, Route},
};
use dht::{
    identity::Identity,
    message::{Request, Response},
    swarm::{Multiaddr, StreamAddr, SwarmHandle},
};
use ipnet::IpNet;
use overlay_types::{
    Candidate, NetworkId, PathKind, PeerId, Subnet, doctor::Diagnosis, why::PathInUse,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::sync::oneshot;

/// How long somebody may take to tell the time.
const CLOCK_WITHIN: Duration = Duration::from_secs(4);

/// Members that are asked for the time, beside all fabric nodes: enough for a majority.
const CLOCKS_MAX: usize = 5;

/// Paths that are looked at; what is wrong with this host shows on the first few.
const PATHS_MAX: usize = 64;

/// Fabric nodes that are looked at in TLS and plain HTTP.
const SERVERS_MAX: usize = 4;

/// What is still to be asked.
struct Questions {
    swarm: SwarmHandle,
    netlink: Netlink,
    identity: Identity,
    clocks: Vec<(PeerId, String, Vec<String>)>,
    servers: Vec<(SocketAddr, PeerId)>,
    subnets: Vec<(String, Subnet)>,
    own_interfaces: BTreeSet<String>,
    /// Whether the host has IPv6 alone.
    is_ipv6: bool,
}

impl Node {
    /// `farlan doctor`.
    pub(super) fn doctor(&self, reply: oneshot::Sender<Answer<Diagnosis>>) {
        let facts = self.known_facts();
        let questions = self.questions();
        tokio::spawn(async move {
            let facts = questions.ask(facts).await;
            answer(reply, Ok(judge(&facts)));
        });
    }

    /// What the node knows already.
    fn known_facts(&self) -> NodeFacts {
        NodeFacts {
            fabric_connected: self.fabric.connected(),
            fabric_known: self.known_fabric().len().max(self.fabric.connected()),
            udp: self.fabric.udp(),
            data_port: self.plane.local_addr().port(),
            mapping: self.nat.behaviour.mapping,
            lifetime: self.nat.lifetime(),
            paths: self.paths_in_use(),
            ..NodeFacts::default()
        }
    }

    fn paths_in_use(&self) -> Vec<PathFacts> {
        let stats = self.plane.peer_stats();
        let used = stats
            .iter()
            .filter(|peer| peer.session && peer.path.is_some());
        let one = |(network, peer): (NetworkId, PeerId)| {
            let path = self.plane.way_to(network, peer)?.path?;
            let name = self
                .networks
                .get(&network)?
                .directory
                .member(peer)?
                .name
                .to_string();
            // The near end of a stream is an interface that nobody else has.
            (path.kind != PathKind::Stream).then(|| path_facts(name, &path))
        };
        used.take(PATHS_MAX)
            .filter_map(|peer| one((peer.network, peer.peer)))
            .collect()
    }

    /// Where fabric nodes are known to be, by what networks and people say.
    fn known_fabric(&self) -> BTreeSet<String> {
        let named = self.networks.values().flat_map(|member| &member.bootstrap);
        let given = self.config.bootstrap.iter().map(ToString::to_string);
        named
            .cloned()
            .chain(given)
            .chain(self.fabric.addresses())
            .collect()
    }

    fn questions(&self) -> Questions {
        let streams = self.known_fabric().into_iter().filter_map(|text| {
            let address: Multiaddr = text.parse().ok()?;
            let at = StreamAddr::from_multiaddr(&address)?;
            let ip: IpAddr = at.host.parse().ok()?;
            Some((SocketAddr::new(ip, at.port), at.peer?))
        });
        let servers: BTreeMap<_, _> = streams.chain(self.fabric.stream_addrs()).collect();
        let fabric = self.fabric.connected_peers();
        let mut clocks: Vec<_> = fabric
            .map(|peer| (peer, format!("fabric node …{}", peer.short()), Vec::new()))
            .collect();
        let fabric_count = clocks.len();
        for member in self.networks.values() {
            let others = member
                .directory
                .peers()
                .filter(|record| record.peer != self.me);
            clocks.extend(others.map(|record| {
                let name = record.membership.name.to_string();
                (record.peer, name, member.control_addresses(record.peer))
            }));
        }
        clocks.truncate(fabric_count + CLOCKS_MAX);
        let subnets = self.networks.values();
        Questions {
            swarm: self.swarm.clone(),
            netlink: self.netlink.clone(),
            identity: self.identity.clone(),
            clocks,
            servers: servers.into_iter().take(SERVERS_MAX).collect(),
            subnets: subnets
                .map(|member| (member.name().to_string(), member.subnet()))
                .collect(),
            own_interfaces: self.own_interfaces(),
            is_ipv6: self.candidates.iter().any(is_host_of(false))
                && !self.candidates.iter().any(is_host_of(true)),
        }
    }
}

impl Questions {
    /// Asks everybody at the same time.
    async fn ask(self, node: NodeFacts) -> Facts {
        let port = node.data_port;
        let ((kernel, networks), clocks, tls, http) = tokio::join!(
            self.ask_kernel(),
            self.ask_clocks(),
            self.ask_streams(),
            self.ask_web(),
        );
        let interface = kernel.default_link().map(|link| link.name.as_str());
        let port = DataPort {
            number: Some(port),
            is_ipv6: self.is_ipv6,
            interface,
        };
        let firewall = read_firewall(port).await;
        Facts {
            node: Some(NodeFacts {
                tls,
                http,
                paths: kernel.complete(node.paths),
                clocks,
                networks,
                ..node
            }),
            firewall: Some(firewall),
            tun: Some(open_tun()),
        }
    }

    /// The links by which datagrams leave, and what overlaps the overlay's subnets.
    async fn ask_kernel(&self) -> (Kernel, Vec<NetworkFacts>) {
        let own = &self.own_interfaces;
        let mut kernel = Kernel {
            links: self.netlink.links().await.unwrap_or_default(),
            routes: self.netlink.routes().await.unwrap_or_default(),
        };
        kernel
            .links
            .retain(|link| link.up && !own.contains(&link.name));
        let mut networks = Vec::new();
        for (name, subnet) in &self.subnets {
            let overlapping = self.netlink.overlapping(*subnet, own).await;
            networks.push(NetworkFacts {
                name: name.clone(),
                subnet: *subnet,
                overlapping: overlapping.unwrap_or_default(),
            });
        }
        (kernel, networks)
    }

    async fn ask_clocks(&self) -> Vec<ClockSample> {
        let asking = self.clocks.iter().map(|(peer, who, addresses)| async move {
            let asked = unix_ms();
            let request = Request::Clock.encode();
            let answer = self.swarm.request(*peer, addresses, request);
            let bytes = tokio::time::timeout(CLOCK_WITHIN, answer)
                .await
                .ok()?
                .ok()?;
            match Response::decode(&bytes) {
                Ok(Response::Clock { unix_ms: theirs }) => {
                    Some(ClockSample::new(who.clone(), asked, theirs, unix_ms()))
                }
                _ => None,
            }
        });
        let samples = futures::future::join_all(asking).await;
        samples.into_iter().flatten().collect()
    }

    async fn ask_streams(&self) -> Vec<(SocketAddr, crate::doctor::TlsAnswer)> {
        let asking = self
            .servers
            .iter()
            .map(|(at, peer)| async { (*at, ask_tls(&self.identity, *at, *peer).await) });
        futures::future::join_all(asking).await
    }

    async fn ask_web(&self) -> Vec<(SocketAddr, crate::doctor::HttpAnswer)> {
        let hosts: BTreeSet<_> = self.servers.iter().map(|(at, _)| at.ip()).collect();
        futures::future::join_all(hosts.into_iter().map(ask_http)).await
    }
}

/// The host's links, and which of them leads where.
#[derive(Debug, Default)]
struct Kernel {
    links: Vec<Link>,
    routes: Vec<Route>,
}

impl Kernel {
    /// The link of the most special route there, and of the preferred one among several (RFC 1812 §5.2.4.3).
    fn link_towards(&self, to: IpAddr) -> Option<&Link> {
        let leads_there = |route: &&Route| {
            let net = IpNet::new(route.destination, route.prefix_len);
            net.is_ok_and(|net| net.contains(&to)) && self.link(route).is_some()
        };
        let routes = self.routes.iter().filter(leads_there);
        let best =
            routes.min_by_key(|route| (Reverse(route.prefix_len), route.metric.unwrap_or(0)));
        self.link(best?)
    }

    /// The link by which most of the world is reached.
    fn default_link(&self) -> Option<&Link> {
        let defaults = self.routes.iter().filter(|route| route.prefix_len == 0);
        let usable = defaults.filter(|route| self.link(route).is_some());
        self.link(usable.min_by_key(|route| route.metric.unwrap_or(0))?)
    }

    fn link(&self, route: &Route) -> Option<&Link> {
        self.links.iter().find(|link| link.index == route.index)
    }

    fn complete(&self, mut paths: Vec<PathFacts>) -> Vec<PathFacts> {
        for path in &mut paths {
            path.link_mtu = self.link_towards(path.to.ip()).map(|link| link.mtu);
        }
        paths
    }
}

/// Whether a way in is an address of the host, of that IP version.
fn is_host_of(is_ipv4: bool) -> impl Fn(&Candidate) -> bool {
    move |candidate| matches!(candidate, Candidate::Host(addr) if addr.is_ipv4() == is_ipv4)
}

fn path_facts(peer: String, path: &PathInUse) -> PathFacts {
    PathFacts {
        peer,
        to: path.to,
        link_mtu: None,
        mtu: path.mtu,
        refused: path.mtu_refused,
        black_holes: path.black_holes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, mtu: u32) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            mac: None,
            up: true,
            loopback: false,
            mtu,
            controller: None,
            kind: None,
        }
    }

    fn route(net: &str, index: u32, metric: Option<u32>) -> Route {
        let net: IpNet = net.parse().unwrap();
        Route {
            destination: net.addr(),
            prefix_len: net.prefix_len(),
            gateway: None,
            index,
            metric,
            source: None,
            protocol: 2,
        }
    }

    #[test]
    fn a_path_leaves_by_the_link_of_its_most_special_route() {
        let kernel = Kernel {
            links: vec![link(1, 1500), link(2, 1400), link(3, 9000)],
            routes: vec![
                route("0.0.0.0/0", 1, Some(100)),
                route("0.0.0.0/0", 3, Some(600)),
                route("10.0.0.0/8", 3, None),
                route("10.1.0.0/16", 2, None),
                route("10.1.2.0/24", 9, None), // of a link that is down
                route("2001:db8::/32", 2, None),
            ],
        };
        let mtu = |to: &str| Some(kernel.link_towards(to.parse().unwrap())?.mtu);
        assert_eq!(mtu("192.0.2.1"), Some(1500));
        assert_eq!(mtu("10.9.0.1"), Some(9000));
        assert_eq!(mtu("10.1.2.3"), Some(1400));
        assert_eq!(mtu("2001:db8::1"), Some(1400));
        assert_eq!(mtu("2001:db9::1"), None);
        assert_eq!(kernel.default_link().map(|link| link.mtu), Some(1500));
    }
}
