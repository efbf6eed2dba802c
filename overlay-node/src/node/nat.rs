//! What is known of the NAT in front of this node, and the ports that it maps to us. How it maps and filters is learned by the data plane; how long it keeps
//! a mapping is measured here, on sockets of their own, because it takes minutes of silence.

use super::actor::{Done, Node};
use crate::{
    host::{Route, WaysOut},
    portmap::{self, Mapping, Uplink},
};
use overlay_types::{
    Candidate,
    api::{NatStatus, PortMappingStatus},
};
use rand::RngCore;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    time::{Duration, Instant},
};
use tokio::{net::UdpSocket, sync::watch, task::JoinHandle};
use tracing::{debug, info, warn};
use tunnel::{
    engine::Command,
    stun::{LifetimeProbe, MappingLifetime, NatBehaviour, NatRule, ProbeSocket},
};

/// Longer STUN messages carry nothing that is looked at.
const MESSAGE_BYTES_MAX: usize = 576;
/// How soon it is tried again without a server to ask, or while the last network is still being measured.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How soon a measurement that brought nothing is made again: no server could help.
const MEASURE_AGAIN: Duration = Duration::from_secs(600);

/// The NAT in front of this node.
#[derive(Debug, Default)]
pub(super) struct Nat {
    pub(super) behaviour: NatBehaviour,
    /// Where the outside sees us.
    outside: Option<IpAddr>,
    lifetime: Option<MappingLifetime>,
    is_measuring: bool,
    measure_at: Option<Instant>,
    /// Default routes, once they were looked at.
    routes: Option<Vec<Route>>,
    /// The routers that lead out; whoever speaks to them listens.
    uplinks: watch::Sender<Vec<Uplink>>,
    mappings: Vec<Mapping>,
}

impl Nat {
    /// For how long mappings live, once that was measured.
    pub(super) const fn lifetime(&self) -> Option<MappingLifetime> {
        self.lifetime
    }

    /// When a measurement is due.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.measure_at
    }

    /// As `farlan status` says it.
    pub(super) fn status(&self, reflexive: Option<SocketAddr>) -> NatStatus {
        let seconds = |span: Duration| span.as_secs();
        NatStatus {
            mapping: self.behaviour.mapping.as_str().into(),
            filtering: self.behaviour.filtering.as_str().into(),
            ports: self.behaviour.ports.to_string(),
            hairpin: self.behaviour.hairpin,
            lifetime_at_least_s: self.lifetime.map(|known| seconds(known.at_least)),
            lifetime_less_than_s: self.lifetime.and_then(|known| known.less_than).map(seconds),
            reflexive: reflexive.map(|addr| addr.to_string()),
            mapped: self.mappings.iter().map(mapping_status).collect(),
        }
    }

    /// Whether these default routes are others than the last ones.
    fn takes_other_routes(&mut self, routes: Vec<Route>) -> bool {
        let before = self.routes.replace(routes);
        before.is_some() && before != self.routes
    }

    /// Looks at the network as it is now; a measurement is due when it is another one.
    fn note(&mut self, outside: Option<IpAddr>, now: Instant) {
        let has_nat = !matches!(self.behaviour.mapping, NatRule::Unknown | NatRule::None);
        let outside = outside.filter(|_| has_nat);
        if outside != self.outside {
            self.outside = outside;
            self.lifetime = None;
            self.measure_at = outside.map(|_| now);
        }
    }
}

fn mapping_status(mapping: &Mapping) -> PortMappingStatus {
    PortMappingStatus {
        external: mapping.external.into(),
        router: mapping.uplink.gateway,
        protocol: mapping.protocol.as_str().into(),
    }
}

impl Node {
    /// Begins to have the data port mapped, if that is wanted: what is mapped, and the task that ends once uplinks are told
    /// no more and everything is given back.
    pub(super) fn start_port_mapping(&self) -> (watch::Receiver<Vec<Mapping>>, JoinHandle<()>) {
        let (tell, mappings) = watch::channel(Vec::new());
        let port = NonZeroU16::new(self.plane.local_addr().port());
        let uplinks = self.nat.uplinks.subscribe();
        let wanted = port.filter(|_| self.config.port_mapping);
        let task = tokio::spawn(async move {
            if let Some(port) = wanted {
                portmap::run(port, uplinks, tell).await;
            }
        });
        (mappings, task)
    }

    /// The ways out of the host may be others.
    pub(super) async fn look_at_ways_out(&mut self) {
        let WaysOut { routes, routers } = match self.netlink.ways_out(&self.own_interfaces()).await
        {
            Ok(now) => now,
            Err(error) => return warn!(%error, "cannot list the host's routes"),
        };
        if self.nat.takes_other_routes(routes) {
            info!("other ways out of this host");
            self.tell(Command::NetworkChanged);
        }
        self.nat.uplinks.send_if_modified(|before| {
            let is_news = *before != routers;
            *before = routers;
            is_news
        });
    }

    /// Routers map other ports to us than before.
    pub(super) fn ports_mapped(&mut self, mappings: Vec<Mapping>) {
        let external = mappings.iter().map(|mapping| mapping.external.into());
        self.tell(Command::SetMappedAddresses(external.collect()));
        self.nat.mappings = mappings;
    }

    /// The data plane learned something of the NAT.
    pub(super) fn nat_learned(&mut self, behaviour: NatBehaviour) {
        info!(
            mapping = behaviour.mapping.as_str(),
            filtering = behaviour.filtering.as_str(),
            ports = %behaviour.ports,
            hairpin = behaviour.hairpin,
            "NAT learned"
        );
        self.nat.behaviour = behaviour;
        self.note_outside();
    }

    /// Where STUN servers see the data port.
    pub(super) fn reflexive(&self) -> Option<SocketAddr> {
        self.candidates
            .iter()
            .find_map(|candidate| match candidate {
                Candidate::Reflexive(addr) => Some(*addr),
                _ => None,
            })
    }

    /// The address at which we are seen may be another one.
    pub(super) fn note_outside(&mut self) {
        let outside = self.reflexive().map(|addr| addr.ip());
        let had_lifetime = self.nat.lifetime.is_some();
        self.nat.note(outside, Instant::now());
        if had_lifetime && self.nat.lifetime.is_none() {
            self.tell(Command::SetMappingLifetime(None));
        }
    }

    /// Measures, when it is time.
    pub(super) fn nat_timeout(&mut self, now: Instant) {
        if self.nat.measure_at.is_none_or(|at| now < at) {
            return;
        }
        let servers = self.stun_servers();
        let server = servers.iter().find(|server| server.is_ipv4()).copied();
        let (Some(server), Some(outside), false) =
            (server, self.nat.outside, self.nat.is_measuring)
        else {
            self.nat.measure_at = Some(now + LOOK_AGAIN);
            return;
        };
        self.nat.measure_at = Some(now + MEASURE_AGAIN);
        self.nat.is_measuring = true;
        let seed = self.rng.next_u64();
        self.job(async move {
            let lifetime = measure(server, seed).await.unwrap_or_else(|error| {
                debug!(%error, "cannot measure how long mappings live");
                None
            });
            Done::LifetimeMeasured { outside, lifetime }
        });
    }

    /// A measurement of the network that shows itself as `outside` has ended.
    pub(super) fn lifetime_measured(&mut self, outside: IpAddr, lifetime: Option<MappingLifetime>) {
        self.nat.is_measuring = false;
        if self.nat.outside != Some(outside) {
            return; // another network by now, whose measurement is due
        }
        if let Some(lifetime) = lifetime {
            info!(at_least = ?lifetime.at_least, less_than = ?lifetime.less_than, "how long mappings live");
            self.nat.lifetime = Some(lifetime);
            self.nat.measure_at = None;
            self.tell(Command::SetMappingLifetime(Some(lifetime)));
        }
    }
}

/// One measurement with the help of `server`, on two sockets of its own.
async fn measure(server: SocketAddr, seed: u64) -> io::Result<Option<MappingLifetime>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let (quiet, asking) = (
        UdpSocket::bind((any, 0)).await?,
        UdpSocket::bind((any, 0)).await?,
    );
    let (mut at_quiet, mut at_asking) = ([0; MESSAGE_BYTES_MAX], [0; MESSAGE_BYTES_MAX]);
    let mut probe = LifetimeProbe::new(seed, server, Instant::now());
    loop {
        while let Some((socket, to, bytes)) = probe.poll_transmit() {
            let socket = match socket {
                ProbeSocket::Quiet => &quiet,
                ProbeSocket::Asking => &asking,
            };
            // What does not leave is sent again.
            let _unsent = socket.send_to(&bytes, to).await;
        }
        let Some((at, _)) = probe.poll_timeout() else {
            return Ok(probe.lifetime());
        };
        let (socket, bytes, from) = tokio::select! {
            got = quiet.recv_from(&mut at_quiet) => {
                let (len, from) = got?;
                (ProbeSocket::Quiet, &at_quiet[..len], from)
            }
            got = asking.recv_from(&mut at_asking) => {
                let (len, from) = got?;
                (ProbeSocket::Asking, &at_asking[..len], from)
            }
            () = tokio::time::sleep_until(at.into()) => {
                probe.handle_timeout(Instant::now());
                continue;
            }
        };
        probe.handle_datagram(socket, from, bytes, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
    const CAFE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));

    #[test]
    fn another_network_is_measured_anew_and_none_without_a_nat() {
        let now = Instant::now();
        let mut nat = Nat::default();
        nat.note(Some(HOME), now);
        assert_eq!(nat.poll_timeout(), None, "nothing known of a NAT yet");
        nat.behaviour.mapping = NatRule::EndpointIndependent;
        nat.note(Some(HOME), now);
        assert_eq!(nat.poll_timeout(), Some(now));
        nat.measure_at = None;
        nat.lifetime = Some(MappingLifetime {
            at_least: Duration::from_secs(28),
            less_than: None,
        });
        nat.note(Some(HOME), now);
        assert_eq!(nat.poll_timeout(), None);
        nat.note(Some(CAFE), now);
        assert_eq!((nat.poll_timeout(), nat.lifetime), (Some(now), None));
        nat.behaviour.mapping = NatRule::None;
        nat.note(Some(CAFE), now);
        assert_eq!(nat.poll_timeout(), None);
    }

    #[test]
    fn other_default_routes_are_another_network_and_the_first_ones_are_not() {
        let by = |index| Route {
            destination: Ipv4Addr::UNSPECIFIED.into(),
            prefix_len: 0,
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1).into()),
            index,
            metric: None,
            source: None,
            protocol: 16,
        };
        let mut nat = Nat::default();
        assert!(!nat.takes_other_routes(vec![by(2)]));
        assert!(!nat.takes_other_routes(vec![by(2)]));
        assert!(nat.takes_other_routes(vec![by(3), by(2)]));
        assert!(nat.takes_other_routes(vec![]));
    }

    #[tokio::test]
    async fn a_server_that_is_silent_leaves_it_unknown() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let began = Instant::now();
        let lifetime = measure(silent.local_addr().unwrap(), 1).await.unwrap();
        assert_eq!(lifetime, None);
        assert!(began.elapsed() > Duration::from_secs(5));
    }
}
