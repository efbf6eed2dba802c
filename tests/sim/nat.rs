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

/// How a NAT behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NatKind {
    /// When a new mapping is made.
    pub mapping: Dependence,
    /// Whose datagrams are let in.
    pub filtering: Dependence,
    /// How long an idle mapping lives; only outbound datagrams refresh it (RFC 4787 REQ-6).
    pub timeout: Duration,
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

    const fn new(mapping: Dependence, filtering: Dependence) -> Self {
        Self {
            mapping,
            filtering,
            timeout: Duration::from_secs(60),
        }
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
    /// Datagrams from outside that no mapping or filter let in.
    pub dropped: u64,
}

impl Nat {
    /// A NAT that shows itself as `public`.
    pub const fn new(kind: NatKind, public: IpAddr) -> Self {
        Self {
            kind,
            public,
            ports: BTreeMap::new(),
            mappings: BTreeMap::new(),
            dropped: 0,
        }
    }

    /// Its address on the internet.
    pub const fn public(&self) -> IpAddr {
        self.public
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
        mapping.contacted.insert(self.kind.filtering.key(remote));
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
        let port = loop {
            let port = rng.random_range(20_000..60_000);
            if !self.mappings.contains_key(&port) {
                break port;
            }
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

    fn expire(&mut self, now: Instant) {
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
