//! A NAT as RFC 4787 describes one: mapping, filtering and timeouts. Pure: it is told the time.

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// What of the remote endpoint a mapping or a filter depends on (RFC 4787 §4.1 and §5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dependence {
    /// Nothing.
    Endpoint,
    /// The remote address.
    Address,
    /// The remote address and port.
    AddressAndPort,
}

impl Dependence {
    /// The part of `remote` that matters.
    fn key(self, remote: SocketAddr) -> (Option<IpAddr>, Option<u16>) {
        match self {
            Self::Endpoint => (None, None),
            Self::Address => (Some(remote.ip()), None),
            Self::AddressAndPort => (Some(remote.ip()), Some(remote.port())),
        }
    }
}

/// Which outside port a new mapping gets (RFC 4787 §4.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ports {
    /// The inside port's number, while it is free.
    Preserving,
    /// So many more than the last one's; other hosts behind the NAT take so many mappings a second in between.
    Incremental {
        /// From one to the next.
        step: i16,
        /// Mappings of others, every second.
        others: u16,
    },
    /// Any.
    Random,
}

/// How a NAT behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NatKind {
    /// When a new mapping is made.
    pub mapping: Dependence,
    /// Whose datagrams are let in.
    pub filtering: Dependence,
    /// How outside ports are chosen.
    pub ports: Ports,
    /// How long an idle mapping lives; only outbound datagrams refresh it (RFC 4787 REQ-6).
    pub timeout: Duration,
    /// Whether UDP gets out at all.
    pub passes_udp: bool,
}

impl NatKind {
    /// Endpoint-independent mapping, everybody let in.
    pub const FULL_CONE: Self = Self::new(Dependence::Endpoint, Dependence::Endpoint);
    /// Endpoint-independent mapping, filters by address.
    pub const ADDRESS_RESTRICTED: Self = Self::new(Dependence::Endpoint, Dependence::Address);
    /// Endpoint-independent mapping, filters by address and port.
    pub const PORT_RESTRICTED: Self = Self::new(Dependence::Endpoint, Dependence::AddressAndPort);
    /// A new mapping for every remote address and port, which alone is let in.
    pub const SYMMETRIC: Self = Self::new(Dependence::AddressAndPort, Dependence::AddressAndPort);
    /// The same, and each mapping gets the port after the last one's.
    pub const SYMMETRIC_INCREMENTAL: Self = Self {
        ports: Ports::Incremental { step: 1, others: 0 },
        ..Self::SYMMETRIC
    };

    const fn new(mapping: Dependence, filtering: Dependence) -> Self {
        Self {
            mapping,
            filtering,
            ports: Ports::Random,
            timeout: Duration::from_secs(60),
            passes_udp: true,
        }
    }

    /// A firewall that lets no UDP out.
    pub const UDP_BLOCKED: Self = Self {
        passes_udp: false,
        ..Self::PORT_RESTRICTED
    };
}

/// A firewall in front of a host that needs no translation: it lets in what answers.
#[derive(Debug, Default)]
pub struct Firewall {
    contacted: BTreeMap<(u16, SocketAddr), Instant>,
}

/// How long an idle flow through a firewall lives (RFC 6092 REC-14: no less than two minutes).
const FLOW_KEPT_FOR: Duration = Duration::from_secs(120);

impl Firewall {
    /// A datagram leaves from this port of the host.
    pub fn outbound(&mut self, port: u16, remote: SocketAddr, now: Instant) {
        self.contacted.insert((port, remote), now);
    }

    /// Whether a datagram from there is let in to this port.
    pub fn lets_in(&mut self, port: u16, remote: SocketAddr, now: Instant) -> bool {
        let left_at = self.contacted.get(&(port, remote));
        left_at.is_some_and(|&at| now.saturating_duration_since(at) < FLOW_KEPT_FOR)
    }
}

type MappingKey = (SocketAddr, Option<IpAddr>, Option<u16>);

#[derive(Debug)]
struct Mapping {
    inside: SocketAddr,
    refreshed: Instant,
    contacted: BTreeSet<(Option<IpAddr>, Option<u16>)>,
}

/// One NAT with its public address.
#[derive(Debug)]
pub struct Nat {
    kind: NatKind,
    public: IpAddr,
    ports: BTreeMap<MappingKey, u16>,
    mappings: BTreeMap<u16, Mapping>,
    /// The last port that was given out in turn, and when.
    last: Option<(u16, Instant)>,
    expired_at: Option<Instant>,
    /// Datagrams from outside that no mapping or filter let in.
    pub dropped: u64,
    /// Flows that were ever begun from inside, each an entry in a router's table.
    pub flows: u64,
}

impl Nat {
    /// A NAT that shows itself as `public`.
    pub const fn new(kind: NatKind, public: IpAddr) -> Self {
        Self {
            kind,
            public,
            ports: BTreeMap::new(),
            mappings: BTreeMap::new(),
            last: None,
            expired_at: None,
            dropped: 0,
            flows: 0,
        }
    }

    /// Its address on the internet.
    pub const fn public(&self) -> IpAddr {
        self.public
    }

    /// How it behaves.
    pub const fn kind(&self) -> NatKind {
        self.kind
    }

    /// A datagram leaves from `inside` to `remote`: what the internet sees as its source.
    pub fn outbound(
        &mut self,
        inside: SocketAddr,
        remote: SocketAddr,
        now: Instant,
        rng: &mut ChaCha20Rng,
    ) -> SocketAddr {
        self.expire(now);
        let (ip, port) = self.kind.mapping.key(remote);
        let key = (inside, ip, port);
        let public_port = match self.ports.get(&key) {
            Some(&known) => known,
            None => self.make_mapping(key, now, rng),
        };
        let mapping = self
            .mappings
            .get_mut(&public_port)
            .expect("every port in `ports` has its mapping");
        mapping.refreshed = now;
        let is_new = mapping.contacted.insert(self.kind.filtering.key(remote));
        self.flows += u64::from(is_new);
        SocketAddr::new(self.public, public_port)
    }

    /// A datagram arrives from `remote` at `public_port`: which host inside gets it, if any.
    pub fn inbound(
        &mut self,
        public_port: u16,
        remote: SocketAddr,
        now: Instant,
    ) -> Option<SocketAddr> {
        self.expire(now);
        let inside = self
            .mappings
            .get(&public_port)
            .filter(|mapping| mapping.contacted.contains(&self.kind.filtering.key(remote)))
            .map(|mapping| mapping.inside);
        self.dropped += u64::from(inside.is_none());
        inside
    }

    /// Forgets every mapping, as a rebooted router does: the next datagrams get other ports.
    pub fn rebind(&mut self) {
        self.ports.clear();
        self.mappings.clear();
    }

    fn make_mapping(&mut self, key: MappingKey, now: Instant, rng: &mut ChaCha20Rng) -> u16 {
        let port = match self.kind.ports {
            Ports::Preserving if !self.mappings.contains_key(&key.0.port()) => key.0.port(),
            Ports::Preserving | Ports::Random => self.any_port(rng),
            Ports::Incremental { step, others } => self.next_port(step, others, now, rng),
        };
        self.ports.insert(key, port);
        self.mappings.insert(
            port,
            Mapping {
                inside: key.0,
                refreshed: now,
                contacted: BTreeSet::new(),
            },
        );
        port
    }

    fn any_port(&self, rng: &mut ChaCha20Rng) -> u16 {
        loop {
            let port = rng.random_range(1024..=u16::MAX);
            if !self.mappings.contains_key(&port) {
                break port;
            }
        }
    }

    fn next_port(&mut self, step: i16, others: u16, now: Instant, rng: &mut ChaCha20Rng) -> u16 {
        const PORTS: i32 = 65_536 - 1024;
        let (last, at) = self.last.unwrap_or_else(|| (self.any_port(rng), now));
        let passed = now.saturating_duration_since(at).as_secs_f64();
        // A fraction of a mapping is one as often as that.
        let skipped = (passed * f64::from(others) + rng.random::<f64>()).floor() as i32;
        let mut port = i32::from(last) - 1024 + i32::from(step) * (skipped % PORTS);
        loop {
            port = (port + i32::from(step)).rem_euclid(PORTS);
            let port = (port + 1024) as u16;
            if !self.mappings.contains_key(&port) {
                self.last = Some((port, now));
                return port;
            }
        }
    }

    /// Looked at every second at most, for it looks at every mapping.
    fn expire(&mut self, now: Instant) {
        let is_early = |at| now.saturating_duration_since(at) < Duration::from_secs(1);
        if self.expired_at.is_some_and(is_early) {
            return;
        }
        self.expired_at = Some(now);
        let timeout = self.kind.timeout;
        self.mappings
            .retain(|_, mapping| now.saturating_duration_since(mapping.refreshed) < timeout);
        let mappings = &self.mappings;
        self.ports.retain(|_, port| mappings.contains_key(port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const INSIDE: &str = "192.168.1.2:4000";
    const A1: &str = "198.51.100.1:1000";
    const A2: &str = "198.51.100.1:2000";
    const B1: &str = "198.51.100.2:1000";

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn nat(kind: NatKind) -> (Nat, ChaCha20Rng, Instant) {
        (
            Nat::new(kind, "203.0.113.1".parse().unwrap()),
            ChaCha20Rng::seed_from_u64(1),
            Instant::now(),
        )
    }

    #[test]
    fn a_cone_keeps_its_mapping_and_a_symmetric_nat_does_not() {
        for (kind, same) in [
            (NatKind::PORT_RESTRICTED, true),
            (NatKind::SYMMETRIC, false),
        ] {
            let (mut nat, mut rng, t0) = nat(kind);
            let first = nat.outbound(addr(INSIDE), addr(A1), t0, &mut rng);
            let second = nat.outbound(addr(INSIDE), addr(A2), t0, &mut rng);
            assert_eq!(first == second, same, "{kind:?}");
        }
    }

    #[test]
    fn ports_are_given_out_as_the_kind_says() {
        let remotes = [A1, A2, B1];
        let ports_of = |ports| {
            let (mut nat, mut rng, t0) = nat(NatKind {
                ports,
                ..NatKind::SYMMETRIC
            });
            remotes.map(|remote| {
                nat.outbound(addr(INSIDE), addr(remote), t0, &mut rng)
                    .port()
            })
        };
        let [first, second, third] = ports_of(Ports::Incremental { step: 2, others: 0 });
        assert_eq!(
            (second.wrapping_sub(first), third.wrapping_sub(second)),
            (2, 2)
        );
        assert_eq!(ports_of(Ports::Preserving)[0], addr(INSIDE).port());
        let [first, second, _] = ports_of(Ports::Random);
        assert!(first.abs_diff(second) > 16);
    }

    #[test]
    fn other_hosts_take_ports_of_an_incremental_nat_too() {
        let (mut nat, mut rng, t0) = nat(NatKind {
            ports: Ports::Incremental {
                step: 1,
                others: 10,
            },
            ..NatKind::SYMMETRIC
        });
        let first = nat.outbound(addr(INSIDE), addr(A1), t0, &mut rng).port();
        let later = t0 + Duration::from_secs(2);
        let second = nat.outbound(addr(INSIDE), addr(A2), later, &mut rng).port();
        assert!((20..=23).contains(&second.wrapping_sub(first)));
    }

    #[test]
    fn each_filter_lets_in_whom_it_should() {
        for (kind, lets_a2, lets_b1) in [
            (NatKind::FULL_CONE, true, true),
            (NatKind::ADDRESS_RESTRICTED, true, false),
            (NatKind::PORT_RESTRICTED, false, false),
        ] {
            let (mut nat, mut rng, t0) = nat(kind);
            let port = nat.outbound(addr(INSIDE), addr(A1), t0, &mut rng).port();
            assert_eq!(nat.inbound(port, addr(A1), t0), Some(addr(INSIDE)));
            assert_eq!(
                nat.inbound(port, addr(A2), t0).is_some(),
                lets_a2,
                "{kind:?}"
            );
            assert_eq!(
                nat.inbound(port, addr(B1), t0).is_some(),
                lets_b1,
                "{kind:?}"
            );
        }
    }

    #[test]
    fn an_idle_mapping_expires_and_inbound_datagrams_do_not_keep_it() {
        let (mut nat, mut rng, t0) = nat(NatKind::FULL_CONE);
        let port = nat.outbound(addr(INSIDE), addr(A1), t0, &mut rng).port();
        assert!(
            nat.inbound(port, addr(A1), t0 + Duration::from_secs(59))
                .is_some()
        );
        assert!(
            nat.inbound(port, addr(A1), t0 + Duration::from_secs(61))
                .is_none()
        );
    }

    #[test]
    fn a_reboot_forgets_every_mapping() {
        let (mut nat, mut rng, t0) = nat(NatKind::FULL_CONE);
        let port = nat.outbound(addr(INSIDE), addr(A1), t0, &mut rng).port();
        nat.rebind();
        assert!(nat.inbound(port, addr(A1), t0).is_none());
    }
}
