//! What a NAT does, in the words of RFC 4787, judged from where STUN servers saw us (RFC 5780 §4).

use overlay_types::{NatBehaviour, NatRule, PortAssignment};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Mappings made within so long of each other show how ports follow; between others, other hosts may have had some.
const BURST: Duration = Duration::from_secs(20);

/// Those made within this time of each other show it best, and are believed alone: our own probes to new peers take ports, too.
const TOGETHER: Duration = Duration::from_millis(500);

/// The largest distance between ports that were handed out one after the other. Other hosts' connections may lie between.
pub(crate) const STEP_MAX: u32 = 16;

/// Where somebody saw us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) server: SocketAddr,
    pub(super) reflexive: SocketAddr,
    /// When the question was first sent that made this mapping, and its place among all questions.
    pub(super) asked: (Instant, u64),
}

/// All that was seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observations<'a> {
    /// Our own interfaces' addresses with the data port.
    pub(super) host: &'a [SocketAddr],
    /// By each server's main address, in the order in which servers are preferred; of one IP version.
    pub(super) servers: &'a [Sighting],
    /// By the tested server's other socket.
    pub(super) other: Option<Sighting>,
    /// What the filtering test said.
    pub(super) filtering: NatRule,
    /// What the hairpin test said.
    pub(super) hairpin: Option<bool>,
}

impl Observations<'_> {
    /// What they show.
    pub(super) fn judge(&self) -> NatBehaviour {
        let Some(first) = self.servers.first() else {
            return NatBehaviour::default();
        };
        if self
            .servers
            .iter()
            .all(|seen| self.host.contains(&seen.reflexive))
        {
            // Without a NAT there may still be a firewall that filters.
            let filtering = match self.filtering {
                NatRule::AddressAndPortDependent => NatRule::AddressAndPortDependent,
                _ => NatRule::None,
            };
            return NatBehaviour {
                mapping: NatRule::None,
                filtering,
                ..NatBehaviour::default()
            };
        }
        let mapping = self.mapping(first);
        NatBehaviour {
            mapping,
            filtering: self.filtering,
            ports: self.ports(mapping, first),
            hairpin: self.hairpin,
        }
    }

    fn mapping(&self, first: &Sighting) -> NatRule {
        let other_host = self
            .servers
            .iter()
            .find(|seen| seen.server.ip() != first.server.ip());
        let same_host_differs = self
            .servers
            .iter()
            .any(|seen| seen.server.ip() == first.server.ip() && seen.reflexive != first.reflexive);
        match (
            self.is_port_dependent(),
            other_host.map(|seen| seen.reflexive != first.reflexive),
        ) {
            _ if same_host_differs => NatRule::AddressAndPortDependent,
            (Some(true), _) => NatRule::AddressAndPortDependent,
            (Some(false), Some(true)) => NatRule::AddressDependent,
            (None, Some(true)) => NatRule::AddressAndPortDependent, // far more common than the other
            (_, Some(false)) => NatRule::EndpointIndependent,
            // One host to compare with: a mapping by address alone would look the same, but few NATs do that.
            (Some(false), None) => NatRule::EndpointIndependent,
            (None, None) => NatRule::Unknown,
        }
    }

    /// Whether the tested server's other socket saw another port. A second IP address that sees one proves less: it may be
    /// the address that matters.
    fn is_port_dependent(&self) -> Option<bool> {
        let other = self.other?;
        let main = self
            .servers
            .iter()
            .find(|seen| seen.server.ip() == other.server.ip())
            .or(self.servers.first())?;
        Some(main.reflexive != other.reflexive)
    }

    fn ports(&self, mapping: NatRule, first: &Sighting) -> PortAssignment {
        let inside = self.host.first().map(SocketAddr::port);
        match mapping {
            NatRule::Unknown | NatRule::None => PortAssignment::Unknown,
            NatRule::EndpointIndependent if inside == Some(first.reflexive.port()) => {
                PortAssignment::Preserving
            }
            // One mapping shows no more than that it has another port.
            NatRule::EndpointIndependent => PortAssignment::Random,
            NatRule::AddressDependent | NatRule::AddressAndPortDependent => self.step(),
        }
    }

    /// How the ports of mappings that were made one after the other differ.
    fn step(&self) -> PortAssignment {
        let mut seen: Vec<_> = self.servers.iter().chain(&self.other).collect();
        seen.sort_unstable_by_key(|seen| seen.asked.1);
        seen.dedup_by_key(|seen| seen.reflexive); // by address only: two servers on one host share a mapping
        let within = |apart: Duration| -> Vec<i32> {
            seen.windows(2)
                .filter(|pair| {
                    pair[1].asked.0.saturating_duration_since(pair[0].asked.0) <= apart
                        && pair[0].reflexive.ip() == pair[1].reflexive.ip()
                })
                .map(|pair| {
                    i32::from(pair[1].reflexive.port()) - i32::from(pair[0].reflexive.port())
                })
                .collect()
        };
        let mut steps = within(TOGETHER);
        if steps.is_empty() {
            steps = within(BURST);
        }
        let are_near = steps
            .iter()
            .all(|step| step.signum() == steps[0].signum() && step.unsigned_abs() <= STEP_MAX);
        match steps.iter().min_by_key(|step| step.unsigned_abs()) {
            None => PortAssignment::Unknown,
            Some(&step) if are_near => PortAssignment::Contiguous { step: step as i16 },
            Some(_) => PortAssignment::Random,
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;

    const INSIDE: &str = "10.0.0.2:7000";

    fn sightings(ports: &[(&str, u16)], apart: Duration) -> Vec<Sighting> {
        let t0 = Instant::now();
        ports
            .iter()
            .zip(0u32..)
            .map(|(&(server, port), n)| Sighting {
                server: server.parse().unwrap(),
                reflexive: ([203, 0, 113, 1], port).into(),
                asked: (t0 + apart * n, n.into()),
            })
            .collect()
    }

    fn ports(of: &[(&str, u16)], apart: Duration) -> PortAssignment {
        let servers = sightings(of, apart);
        Observations {
            host: &[INSIDE.parse().unwrap()],
            servers: &servers,
            other: None,
            filtering: NatRule::AddressAndPortDependent,
            hairpin: None,
        }
        .judge()
        .ports
    }

    const A: &str = "198.51.100.1:3478";
    const B: &str = "198.51.100.2:3478";
    const C: &str = "198.51.100.3:3478";

    #[test]
    fn ports_that_follow_each_other_are_told_from_others() {
        let soon = Duration::from_millis(1);
        for (seen, told) in [
            (
                [40_000, 40_001, 40_002],
                PortAssignment::Contiguous { step: 1 },
            ),
            (
                [40_000, 40_002, 40_006],
                PortAssignment::Contiguous { step: 2 },
            ),
            (
                [40_000, 39_999, 39_998],
                PortAssignment::Contiguous { step: -1 },
            ),
            ([40_000, 40_001, 40_000 - 1], PortAssignment::Random),
            ([40_000, 52_117, 33_000], PortAssignment::Random),
        ] {
            let of = [(A, seen[0]), (B, seen[1]), (C, seen[2])];
            assert_eq!(ports(&of, soon), told, "{seen:?}");
        }
    }

    #[test]
    fn mappings_made_long_after_each_other_say_nothing_of_ports() {
        let of = [(A, 40_000), (B, 40_001)];
        assert_eq!(ports(&of, BURST * 2), PortAssignment::Unknown);
    }

    #[test]
    fn mappings_that_others_came_between_do_not_speak_against_those_made_together() {
        let (now, later) = (Instant::now(), Instant::now() + BURST / 2);
        let mut servers = sightings(&[(A, 40_000), (B, 40_001)], Duration::from_millis(1));
        servers.push(Sighting {
            server: C.parse().unwrap(),
            reflexive: ([203, 0, 113, 1], 40_500).into(),
            asked: (later, 2),
        });
        let judged = |servers: &[Sighting]| {
            let seen = Observations {
                host: &[INSIDE.parse().unwrap()],
                servers,
                other: None,
                filtering: NatRule::AddressAndPortDependent,
                hairpin: None,
            };
            seen.judge().ports
        };
        assert_eq!(judged(&servers), PortAssignment::Contiguous { step: 1 });
        servers[2].asked.0 = now;
        assert_eq!(judged(&servers), PortAssignment::Random);
    }

    #[test]
    fn one_mapping_for_all_shows_whether_the_port_is_preserved() {
        let soon = Duration::from_millis(1);
        assert_eq!(
            ports(&[(A, 7000), (B, 7000)], soon),
            PortAssignment::Preserving
        );
        assert_eq!(ports(&[(A, 7001), (B, 7001)], soon), PortAssignment::Random);
    }
}
