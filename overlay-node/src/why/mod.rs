//! What follows from how two members see the way to each other: whether a better one could be had, and by what. Pure, and only
//! from evidence: where nothing is known, nothing is advised. The facts are gathered by [`crate::node`].

use overlay_types::{
    Name, NatRule, PathKind,
    why::{Advice, AdviceKind, Outcome, Side, Way, WayKind},
};
use std::{net::IpAddr, time::Duration};
use tunnel::path::Passage;

/// Probes that a way gets in one round, or nearly: with fewer it may still answer.
const ROUND_PROBES: u32 = 6;

/// A relayed round trip beyond this is felt by people who type (200 ms is the usual bound, and sites have delays of their own).
const FELT_RTT: Duration = Duration::from_millis(100);

/// What the NATs of two sides allow.
pub fn passage(from: &Side, to: &Side) -> Passage {
    Passage::between(&from.site.nat, &to.site.nat)
}

/// What would make the way between two members better.
pub fn advise(from: &Side, to: &Side) -> Vec<Advice> {
    match worst_kind(from, to) {
        None => unreached(from, to),
        Some(PathKind::Direct) => Vec::new(),
        Some(PathKind::Stream) => carried(from, to),
        Some(PathKind::Relay) => relayed(from, to),
    }
}

/// By what the two reach each other: one may well send datagrams to the relay that the other reaches by a stream.
fn worst_kind(from: &Side, to: &Side) -> Option<PathKind> {
    let paths = [from, to].map(|side| side.way.as_ref()?.path);
    paths.into_iter().flatten().map(|path| path.kind).max()
}

fn advice(kind: AdviceKind, node: Option<&Name>, text: String) -> Advice {
    Advice {
        kind,
        node: node.cloned(),
        text,
    }
}

/// There is no path.
fn unreached(from: &Side, to: &Side) -> Vec<Advice> {
    let silent = |side: &Side, other: &Side| {
        let way = other.way.as_ref()?;
        let is_silent = side.way.is_none() && !side.is_here;
        let calls = match way.calls_unanswered {
            0 => String::new(),
            1 => " to a call".into(),
            n => format!(" to {n} calls"),
        };
        is_silent.then(|| {
            let name = &side.name;
            advice(
                AdviceKind::Start,
                Some(name),
                format!(
                    "{name} does not answer{calls}: see on its host that the node runs and reaches the fabric (`farlan status`)"
                ),
            )
        })
    };
    let found: Vec<_> = [silent(to, from), silent(from, to)]
        .into_iter()
        .flatten()
        .collect();
    if !found.is_empty() {
        return found;
    }
    let without_relay = [from, to]
        .into_iter()
        .filter(|side| side.way.is_some() && side.site.relays.is_empty());
    let missing: Vec<_> = without_relay
        .map(|side| {
            let name = &side.name;
            let text = format!(
                "{name} has no place at a relay: see that it reaches a fabric node (`farlan doctor` there)"
            );
            advice(AdviceKind::Relay, Some(name), text)
        })
        .collect();
    if missing.is_empty() {
        let text = "both run, and a path is being looked for; ask again in a few seconds".into();
        return vec![advice(AdviceKind::Wait, None, text)];
    }
    missing
}

/// Through a stream.
fn carried(from: &Side, to: &Side) -> Vec<Advice> {
    let blocked = [from, to]
        .into_iter()
        .filter(|side| side.site.udp == Some(false));
    blocked
        .map(|side| {
            let (name, port) = (&side.name, data_port(side));
            let port = port.map_or_else(String::new, |port| format!(" from its UDP port {port}"));
            advice(
                AdviceKind::AllowUdp,
                Some(name),
                format!(
                    "allow outgoing UDP at {name}{port}: its site lets none out, so all goes over TCP"
                ),
            )
        })
        .collect()
}

/// Through a relay.
fn relayed(from: &Side, to: &Side) -> Vec<Advice> {
    let versions = [Versions::of(from), Versions::of(to)];
    if versions.iter().all(Versions::is_known) && !versions[0].meet(versions[1]) {
        let (four, six) = if versions[0].four {
            (from, to)
        } else {
            (to, from)
        };
        let text = format!(
            "{} has IPv4 alone and {} IPv6 alone, so that only a relay reaches both: IPv6 at {}, or IPv4 at {}, would do",
            four.name, six.name, four.name, six.name
        );
        return vec![advice(AdviceKind::CommonIp, None, text)];
    }
    let ipv6 = (!(versions[0].six && versions[1].six)).then(|| {
        let text = "IPv6 at both sites would do: it is not translated".into();
        advice(AdviceKind::Ipv6, None, text)
    });
    let mut found = match (shared_outside(from, to), passage(from, to)) {
        (Some(outside), _) if does_not_hairpin(from, to) => {
            let text = format!(
                "both are behind one NAT at {outside}, which does not let them reach each other at its outside address: turn on NAT loopback (hairpinning) there, or let its LAN's hosts talk to each other"
            );
            vec![advice(AdviceKind::Hairpin, None, text)]
        }
        (_, Passage::None) => {
            let text =
                "both NATs give every destination another port, and nobody can foretell both: with these two NATs a relay is the best there is".into();
            [
                vec![advice(AdviceKind::Relay, None, text)],
                map_ports(from, to),
            ]
            .concat()
        }
        (_, passage @ (Passage::ByChance { .. } | Passage::Predicted { .. })) => [
            vec![still_searching(from, to, passage)],
            map_ports(from, to),
        ]
        .concat(),
        (_, Passage::Plain) if is_silent(from, to) => {
            [dropped(from, to), map_ports(from, to)].concat()
        }
        (_, Passage::Plain) => vec![wait("a direct path is being tried")],
        (_, Passage::Unknown) => {
            vec![wait("it is not known yet what the NATs of both do")]
        }
    };
    let settled = !found.iter().any(|a| a.kind == AdviceKind::Wait);
    found.extend(ipv6.filter(|_| settled));
    found.extend(nearer_relay(from, to).filter(|_| settled));
    found
}

fn wait(what: &str) -> Advice {
    advice(
        AdviceKind::Wait,
        None,
        format!("{what}; ask again in a few seconds"),
    )
}

/// Ports of a symmetric NAT are foretold or met by chance, or will be.
fn still_searching(from: &Side, to: &Side, passage: Passage) -> Advice {
    let sum = |count: fn(&Way) -> u32| -> u32 {
        let ways = [from, to].into_iter().filter_map(|side| side.way.as_ref());
        ways.map(count).fold(0, u32::saturating_add) // whatever a member tells
    };
    let (tries, what) = match passage {
        Passage::ByChance { .. } => (sum(|way| way.by_chance), "ports are tried by chance"),
        _ => (sum(|way| way.foretold), "the next port is foretold"),
    };
    if tries > 0 {
        let times = if tries == 1 { "once" } else { "times" };
        let count = if tries == 1 {
            String::new()
        } else {
            format!("{tries} ")
        };
        let text = format!(
            "{what}: that was tried {count}{times} and is repeated while the two send to each other"
        );
        return advice(AdviceKind::Wait, None, text);
    }
    let text = format!("send something (`ping`): {what} only for pairs that are in use");
    advice(AdviceKind::Use, None, text)
}

/// A port that a router maps lets everybody in; one side's is enough.
fn map_ports(from: &Side, to: &Side) -> Vec<Advice> {
    let translated = [from, to].into_iter().filter(|side| {
        let is_translated = !matches!(side.site.nat.mapping, NatRule::None | NatRule::Unknown);
        is_translated
            && !side
                .site
                .ways_in
                .iter()
                .any(|way| way.kind == WayKind::Mapped)
    });
    translated
        .map(|side| {
            let (name, port) = (&side.name, data_port(side));
            let port = port.map_or_else(|| "its data port".into(), |port| format!("UDP port {port}"));
            advice(
                AdviceKind::MapPort,
                Some(name),
                format!(
                    "turn on UPnP, NAT-PMP or PCP at the router of {name}, or forward {port} there to {name}: one side is enough"
                ),
            )
        })
        .collect()
}

/// The NATs would let probes through, and none arrived.
fn dropped(from: &Side, to: &Side) -> Vec<Advice> {
    let closed: Vec<_> = [from, to]
        .into_iter()
        .filter(|side| side.site.nat.mapping == NatRule::None)
        .collect();
    if closed.is_empty() {
        let text = format!(
            "the NATs would let a direct path through, but no probe arrives: a firewall at the site or on the host of {} or {} drops them (`farlan doctor` at both)",
            from.name, to.name
        );
        return vec![advice(AdviceKind::OpenFirewall, None, text)];
    }
    closed
        .into_iter()
        .map(|side| {
            let (name, port) = (&side.name, data_port(side));
            let port = port.map_or_else(|| "its data port".into(), |port| format!("UDP port {port}"));
            advice(
                AdviceKind::OpenFirewall,
                Some(name),
                format!(
                    "{name} has a public address, but no probe gets through: let {port} in and out in the firewall there (`farlan doctor` on it)"
                ),
            )
        })
        .collect()
}

/// Whether a whole round of probes to the other's own addresses brought nothing, at every side that could be asked.
fn is_silent(from: &Side, to: &Side) -> bool {
    let mut ways = [from, to].into_iter().filter_map(|side| side.way.as_ref());
    ways.all(|way| {
        let mut straight = way.tried.iter().filter(|tried| {
            matches!(
                tried.kind,
                WayKind::Host | WayKind::Reflexive | WayKind::Mapped
            )
        });
        let tried_enough = way
            .tried
            .iter()
            .any(|t| t.probes >= ROUND_PROBES && t.relay.is_none());
        tried_enough && straight.all(|tried| tried.answers == 0 && tried.outcome != Outcome::InUse)
    })
}

/// A relay nearer to both.
fn nearer_relay(from: &Side, to: &Side) -> Option<Advice> {
    let paths = [from, to].map(|side| side.way.as_ref()?.path);
    let rtt_us = paths.into_iter().flatten().map(|path| path.rtt_us).max()?;
    (Duration::from_micros(rtt_us) >= FELT_RTT).then(|| {
        let text = format!(
            "the round trip by this relay takes {} ms: a fabric node nearer to both would shorten it",
            rtt_us / 1000
        );
        advice(AdviceKind::NearerRelay, None, text)
    })
}

/// The address that the outside sees both at.
fn shared_outside(from: &Side, to: &Side) -> Option<IpAddr> {
    let outside = |side: &Side| {
        let is_outside = |kind| matches!(kind, WayKind::Reflexive | WayKind::Mapped);
        let ways = side.site.ways_in.iter();
        let mut outside = ways.filter(|way| is_outside(way.kind) && way.addr.is_ipv4());
        outside.next().map(|way| way.addr.ip())
    };
    outside(from).filter(|addr| outside(to) == Some(*addr))
}

fn does_not_hairpin(from: &Side, to: &Side) -> bool {
    [from, to]
        .iter()
        .any(|side| side.site.nat.hairpin == Some(false))
}

/// The UDP port of a node's data plane, on its own host.
fn data_port(side: &Side) -> Option<u16> {
    let mut ways = side.site.ways_in.iter();
    ways.find(|way| way.kind == WayKind::Host)
        .map(|way| way.addr.port())
}

/// IP versions by which a site may be reached straight.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Versions {
    four: bool,
    six: bool,
}

impl Versions {
    fn of(side: &Side) -> Self {
        let straight = side.site.ways_in.iter().filter(|way| way.relay.is_none());
        let mut versions = straight.map(|way| way.addr.is_ipv4());
        Self {
            four: versions.clone().any(|is_ipv4| is_ipv4),
            six: versions.any(|is_ipv4| !is_ipv4),
        }
    }

    fn is_known(&self) -> bool {
        self.four || self.six
    }

    fn meet(self, other: Self) -> bool {
        (self.four && other.four) || (self.six && other.six)
    }
}

#[cfg(test)]
mod tests;
