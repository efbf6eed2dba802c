//! What a NAT does, in the words of RFC 4787, judged from where STUN servers saw us (RFC 5780 §4).

use overlay_types::{NatBehaviour, NatRule, PortAssignment};
use std::net::SocketAddr;

/// Where somebody saw us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sighting {
    pub(super) server: SocketAddr,
    pub(super) reflexive: SocketAddr,
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
    /// How a fresh socket's mappings followed each other.
    pub(super) ports: PortAssignment,
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
            NatRule::AddressDependent | NatRule::AddressAndPortDependent => self.ports,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_mapping_for_all_shows_whether_the_port_is_preserved() {
        for (port, told) in [
            (7000, PortAssignment::Preserving),
            (7001, PortAssignment::Random),
        ] {
            let servers = [1, 2].map(|n| Sighting {
                server: ([198, 51, 100, n], 3478).into(),
                reflexive: ([203, 0, 113, 1], port).into(),
            });
            let seen = Observations {
                host: &[([10, 0, 0, 2], 7000).into()],
                servers: &servers,
                other: None,
                filtering: NatRule::AddressAndPortDependent,
                ports: PortAssignment::Unknown,
                hairpin: None,
            };
            assert_eq!(seen.judge().ports, told);
        }
    }
}
