//! What a fabric node's relay of control connections gives: to how many, for how long, and how much. Frames have their own relay.
//!
//! Whoever has an identity may use it, so all that is here is what a stranger gets. A circuit that has carried its bytes is
//! cut; whoever still wants the connection dials again ([`super::requests`]).

use super::peer::ip_of;
use crate::slot::{Site, site_of};
use libp2p::{Multiaddr, PeerId, relay};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What is given, in all and to each.
#[derive(Debug, Clone, Copy)]
pub(super) struct CircuitLimits {
    /// Places, by which others reach their holders.
    pub(super) reservations: usize,
    /// How long a place is kept without being asked for again; its holder asks after three quarters.
    pub(super) reservation_time: Duration,
    /// Circuits at a time.
    pub(super) circuits: usize,
    /// Circuits of one peer at a time, to it and from it, beyond which it gets no further ones.
    pub(super) circuits_per_peer: usize,
    /// What one circuit carries, both directions together.
    pub(super) circuit_bytes: u64,
    /// How long one circuit lives.
    pub(super) circuit_time: Duration,
    /// How many reservations one site may ask for, renewals included.
    pub(super) reservation_pace: Pace,
    /// How many circuits one site may ask for.
    pub(super) circuit_pace: Pace,
}

impl Default for CircuitLimits {
    fn default() -> Self {
        Self {
            // One for each connection that there can be. libp2p refuses renewals, too, when all are taken: so they never are.
            reservations: super::behaviour::FABRIC_CONNECTIONS_MAX as usize,
            reservation_time: Duration::from_secs(3600),
            circuits: 4096,
            circuits_per_peer: 256,
            circuit_bytes: CIRCUIT_BYTES,
            circuit_time: Duration::from_secs(12 * 3600),
            reservation_pace: Pace {
                at_once: 2048, // a site's members behind one NAT come back together after an outage
                per_second: 1, // their renewals, and as many again
            },
            circuit_pace: Pace {
                at_once: 1024,
                per_second: 4, // members tell each other their news, most of them straight
            },
        }
    }
}

/// A contact between two members costs 6 kB at first and, while it stands, 60 bytes a second and what they say, some kB each time:
/// 2.6 MB in the time that a circuit lives. All certificates and records of 1000 members are estimated at 1.5 MB.
const CIRCUIT_BYTES: u64 = 4 << 20;

/// So many in a burst, and so many a second after that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) at_once: u32,
    pub(super) per_second: u32,
}

/// Sites whose burst is not whole; a site is forgotten as soon as it is. Beyond that, others wait.
const SITES_MAX: usize = 4096;

/// Holds every /24 (IPv6: /48) to a pace. libp2p's own limiters go by single addresses, of which one IPv6 customer has plenty, and
/// give back one request in a whole interval. Who comes through a stream comes from this host: all of those are one site.
#[derive(Debug)]
struct SitePaces {
    pace: Pace,
    /// When each site's burst is whole again.
    whole_at: BTreeMap<Site, Instant>,
}

impl SitePaces {
    const fn new(pace: Pace) -> Self {
        let whole_at = BTreeMap::new();
        Self { pace, whole_at }
    }

    /// Whether one more is in time; if so, it is counted.
    fn admit(&mut self, site: Site, now: Instant) -> bool {
        if self.whole_at.len() >= SITES_MAX && !self.whole_at.contains_key(&site) {
            self.whole_at.retain(|_, whole_at| *whole_at > now);
            if self.whole_at.len() >= SITES_MAX {
                return false;
            }
        }
        let one = Duration::from_secs(1) / self.pace.per_second;
        let whole_at = self.whole_at.entry(site).or_insert(now);
        let after = (*whole_at).max(now) + one;
        let is_in_time = after <= now + one * self.pace.at_once;
        if is_in_time {
            *whole_at = after;
        }
        is_in_time
    }

    fn limiter(pace: Pace) -> Box<dyn relay::RateLimiter> {
        let mut paces = Self::new(pace);
        Box::new(move |_: PeerId, from: &Multiaddr, now: Instant| {
            paces.admit(site_of(ip_of(from)), now)
        })
    }
}

/// libp2p's relay with these limits. Its own are for strangers who pass by (16 circuits of 128 KiB and 2 min).
pub(super) fn relay_server(local: PeerId, limits: CircuitLimits) -> relay::Behaviour {
    let config = relay::Config {
        max_reservations: limits.reservations,
        max_reservations_per_peer: usize::MAX, // one a connection, and a peer has few of them
        reservation_duration: limits.reservation_time,
        max_circuits: limits.circuits,
        max_circuits_per_peer: limits.circuits_per_peer - 1, // libp2p refuses beyond one more than that
        max_circuit_duration: limits.circuit_time,
        max_circuit_bytes: limits.circuit_bytes,
        reservation_rate_limiters: vec![SitePaces::limiter(limits.reservation_pace)],
        circuit_src_rate_limiters: vec![SitePaces::limiter(limits.circuit_pace)],
    };
    let mut server = relay::Behaviour::new(local, config);
    server.set_status(Some(relay::Status::Enable));
    server
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn site(n: u8) -> Site {
        site_of(Some([192, 0, n, 1].into()))
    }

    #[test]
    fn a_site_has_its_burst_at_once_and_then_its_pace() {
        let pace = Pace {
            at_once: 10,
            per_second: 2,
        };
        let (mut paces, t0) = (SitePaces::new(pace), Instant::now());
        let admitted = (0..1000)
            .filter(|n| paces.admit(site(1), t0 + Duration::from_millis(100) * *n))
            .count();
        assert_eq!(admitted, 10 + 199); // in the 99.9 s after the first
        assert!(paces.admit(site(2), t0), "another site has its own");
    }

    #[test]
    fn addresses_of_one_customer_are_one_site() {
        let of = |ip: &str| site_of(Some(ip.parse().unwrap()));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.200"));
        assert_eq!(of("2001:db8:1::1"), of("2001:db8:1:ffff::1"));
        assert_ne!(of("2001:db8:1::1"), of("2001:db8:2::1"));
    }

    #[test]
    fn many_sites_cost_a_bounded_memory_and_quiet_ones_none() {
        let pace = CircuitLimits::default().circuit_pace;
        let (mut paces, t0) = (SitePaces::new(pace), Instant::now());
        let admitted = (0..10_000u16)
            .filter(|n| {
                let [a, b] = n.to_be_bytes();
                paces.admit(site_of(Some([10, a, b, 1].into())), t0)
            })
            .count();
        assert_eq!((admitted, paces.whole_at.len()), (SITES_MAX, SITES_MAX));
        assert!(paces.admit(site(7), t0 + Duration::from_secs(1)));
        assert_eq!(paces.whole_at.len(), 1);
    }

    proptest! {
        #[test]
        fn no_site_has_more_than_its_burst_and_its_pace(steps in proptest::collection::vec((0..3u8, 0..400u64), 1..400)) {
            let pace = Pace { at_once: 5, per_second: 3 };
            let (mut paces, t0) = (SitePaces::new(pace), Instant::now());
            let (mut now, mut admitted) = (t0, [const { Vec::new() }; 3]);
            for (n, wait) in steps {
                now += Duration::from_millis(wait);
                if paces.admit(site(n), now) { admitted[usize::from(n)].push(now) }
            }
            for times in admitted {
                for (i, from) in times.iter().enumerate() {
                    for (j, to) in times.iter().enumerate().skip(i) {
                        let most = 5.0 + 3.0 * (*to - *from).as_secs_f64();
                        prop_assert!((j - i + 1) as f64 <= most + 1e-6);
                    }
                }
            }
        }
    }
}
