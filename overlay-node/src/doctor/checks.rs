//! The checks that are judged by a few figures each.

use super::{Fate, HostFirewall, NodeFacts, PathFacts, counted, finding, ok, unknown};
use overlay_types::{
    NatRule, Subnet,
    doctor::{Check, CheckKind},
};
use std::{net::SocketAddr, time::Duration};

/// UDP's and IPv4's, and UDP's and IPv6's.
const IPV4_HEADERS: u32 = 28;
const IPV6_HEADERS: u32 = 48;

/// RFC 4787 asks for two minutes, and many NATs give 30 s. With less, keeping mappings alive costs a datagram every few
/// seconds, and what is quiet for a moment is cut off.
const LIFETIME_MIN: Duration = Duration::from_secs(30);

/// A network that the node is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFacts {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub subnet: Subnet,
    /// An interface of the host that has some of them, too, and its addresses.
    pub overlapping: Option<(String, String)>,
}

/// Whether fabric nodes are reached.
pub(super) fn fabric(node: &NodeFacts) -> Check {
    let kind = CheckKind::Fabric;
    match (node.fabric_connected, node.fabric_known) {
        (0, 0) => unknown(kind, "no fabric node is known; networks name them"),
        (0, known) => finding(
            kind,
            format!(
                "of {} that are known none is reached",
                counted(known, "fabric address")
            ),
            "see that this host is connected, and that its site lets out UDP 4077 to 4079 or TCP 443; `farlan up --via` names a proxy or an SSH gateway",
        ),
        (connected, _) => ok(kind, format!("{connected} connected")),
    }
}

/// Whether datagrams get out.
pub(super) fn udp(node: &NodeFacts) -> Check {
    let kind = CheckKind::Udp;
    match node.udp {
        Some(true) => ok(kind, "a relay answers datagrams"),
        Some(false) => finding(
            kind,
            "no relay answers datagrams, while streams reach them",
            format!(
                "let outgoing UDP through, from port {} of this host; until then all goes over TCP, which is slower",
                node.data_port
            ),
        ),
        None => unknown(kind, "no relay could be asked"),
    }
}

/// Whether this host's own firewall lets datagrams through.
pub(super) fn firewall(node: Option<&NodeFacts>, read: &Result<HostFirewall, String>) -> Check {
    let kind = CheckKind::Firewall;
    let firewall = match read {
        Ok(firewall) => firewall,
        Err(why) => return unknown(kind, format!("the rule set cannot be read: {why}")),
    };
    let port = node.map(|node| node.data_port).filter(|port| *port != 0);
    let port = port.map_or_else(
        || "the data port".to_owned(),
        |port| format!("UDP port {port}"),
    );
    if let Fate::Dropped(rule) = &firewall.output {
        return finding(
            kind,
            format!("nftables drops what leaves {port}: {rule}"),
            format!("let what leaves {port} through"),
        );
    }
    if let Fate::Dropped(rule) = &firewall.answers {
        return finding(
            kind,
            format!(
                "nftables drops what comes to {port}, answers too: {rule}{}",
                unheard(node)
            ),
            format!(
                "let in what comes to {port}, or at least answers (`ct state established,related accept`)"
            ),
        );
    }
    let has_nat = node.is_none_or(|node| node.mapping != NatRule::None);
    let is_sure = firewall.output == Fate::Passes && firewall.answers == Fate::Passes;
    match &firewall.strangers {
        Fate::Dropped(rule) if !has_nat => finding(
            kind,
            format!(
                "nftables drops what comes to {port} unasked, and no NAT is in front of this host: {rule}"
            ),
            format!("let in what comes to {port}: every member reaches this node straight then"),
        ),
        Fate::Dropped(_) if is_sure => ok(
            kind,
            format!("{port} is closed to strangers; answers get in, which is enough behind a NAT"),
        ),
        Fate::Passes if is_sure => ok(kind, format!("nothing drops datagrams of {port}")),
        _ => {
            let doubts = [&firewall.output, &firewall.answers, &firewall.strangers];
            let rule = doubts.iter().find_map(|fate| match fate {
                Fate::Unsure(rule) => Some(rule.as_str()),
                _ => None,
            });
            let rule = rule.unwrap_or_default();
            unknown(
                kind,
                format!("whether this rule drops datagrams cannot be told: {rule}"),
            )
        }
    }
}

/// What the data plane saw of a firewall.
fn unheard(node: Option<&NodeFacts>) -> &'static str {
    match node {
        Some(node) if node.udp != Some(true) => "; and no datagram was answered",
        _ => "",
    }
}

/// For how long the NAT keeps a mapping.
pub(super) fn mapping(node: &NodeFacts) -> Check {
    let kind = CheckKind::Mapping;
    match (node.mapping, node.lifetime) {
        (NatRule::None, _) => ok(kind, "no NAT"),
        (NatRule::Unknown, _) => unknown(kind, "what the NAT does is not known"),
        (_, None) => unknown(kind, "not measured yet, which takes some minutes"),
        (_, Some(lifetime)) => {
            let least = lifetime.at_least.as_secs();
            match lifetime.less_than {
                Some(most) if most <= LIFETIME_MIN => finding(
                    kind,
                    format!(
                        "the NAT forgets an unused mapping after {least} to {} s",
                        most.as_secs()
                    ),
                    "raise the router's UDP timeout to 60 s or more, or have it map the data port (UPnP, NAT-PMP, PCP); the node keeps its mappings alive meanwhile",
                ),
                _ => ok(kind, format!("an unused one lives {least} s or longer")),
            }
        }
    }
}

/// Whether paths carry what the interface does.
pub(super) fn mtu(node: &NodeFacts) -> Check {
    let kind = CheckKind::Mtu;
    if node.paths.is_empty() {
        return unknown(kind, "no path is in use");
    }
    let is_small = |path: &&PathFacts| {
        let known = path.refused.zip(path.full());
        known.is_some_and(|(refused, full)| u32::from(refused) <= full)
    };
    let narrow: Vec<_> = node.paths.iter().filter(is_small).collect();
    if let Some(worst) = narrow.iter().min_by_key(|path| path.mtu) {
        let to = &worst.peer;
        return finding(
            kind,
            format!(
                "to {to} {} bytes pass and {} do not, though this host's interface, whose MTU is {}, allows {}; so it is on {} of {}",
                worst.mtu,
                worst.refused.unwrap_or_default(),
                worst.link_mtu.unwrap_or_default(),
                worst.full().unwrap_or_default(),
                narrow.len(),
                counted(node.paths.len(), "path")
            ),
            format!(
                "nothing breaks, for datagrams are cut to fit; set the MTU of the link that is narrow (PPPoE, a tunnel) on this host's interface, here {}, or raise it there",
                u32::from(worst.mtu) + headers(worst.to)
            ),
        );
    }
    if let Some(path) = node.paths.iter().find(|path| path.black_holes > 0) {
        return finding(
            kind,
            format!(
                "what had passed to {} did not pass any more, {}",
                path.peer,
                counted(path.black_holes as usize, "time")
            ),
            "a link on the way has changed or drops large datagrams without a word; look at routers and tunnels between the two",
        );
    }
    let least = node
        .paths
        .iter()
        .map(|path| path.mtu)
        .min()
        .unwrap_or_default();
    ok(
        kind,
        format!(
            "{}: at least {least} bytes pass",
            counted(node.paths.len(), "path")
        ),
    )
}

impl PathFacts {
    /// What the interface carries as one datagram's payload.
    fn full(&self) -> Option<u32> {
        self.link_mtu
            .map(|mtu| mtu.saturating_sub(headers(self.to)))
    }
}

fn headers(to: SocketAddr) -> u32 {
    if to.is_ipv4() {
        IPV4_HEADERS
    } else {
        IPV6_HEADERS
    }
}

/// Whether the overlay's addresses are used elsewhere.
pub(super) fn subnets(networks: &[NetworkFacts]) -> Check {
    let kind = CheckKind::Subnets;
    for (at, network) in networks.iter().enumerate() {
        let (name, subnet) = (&network.name, network.subnet);
        if let Some((interface, addresses)) = &network.overlapping {
            return finding(
                kind,
                format!(
                    "{interface} has {addresses}, which overlaps {subnet} of the network {name}"
                ),
                format!(
                    "renumber {interface}'s network, or make the overlay's anew with another --subnet: what one has, the other does not reach"
                ),
            );
        }
        let others = &networks[at + 1..];
        if let Some(other) = others.iter().find(|other| other.subnet.overlaps(subnet)) {
            return finding(
                kind,
                format!(
                    "{subnet} of the network {name} overlaps {} of {}",
                    other.subnet, other.name
                ),
                "leave one of the two, or make it anew with another --subnet: the kernel sends each address to one of them only",
            );
        }
    }
    if networks.is_empty() {
        return unknown(kind, "the node is in no network");
    }
    ok(kind, "the overlay's addresses are used nowhere else here")
}

/// Whether interfaces can be made.
pub(super) fn tun(opened: &Result<(), String>) -> Check {
    let kind = CheckKind::Tun;
    match opened {
        Ok(()) => ok(kind, "it opens"),
        Err(why) => finding(
            kind,
            format!("it does not open: {why}"),
            "run the node as root or with CAP_NET_ADMIN; a container needs the device, too",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_types::doctor::Verdict;
    use tunnel::stun::MappingLifetime;

    fn node() -> NodeFacts {
        NodeFacts {
            fabric_connected: 1,
            fabric_known: 1,
            udp: Some(true),
            data_port: 7000,
            mapping: NatRule::EndpointIndependent,
            ..NodeFacts::default()
        }
    }

    fn path(mtu: u16, refused: Option<u16>, black_holes: u32) -> PathFacts {
        PathFacts {
            peer: "b".into(),
            to: ([192, 0, 2, 1], 7000).into(),
            link_mtu: Some(1500),
            mtu,
            refused,
            black_holes,
        }
    }

    #[test]
    fn a_path_is_too_small_when_it_refuses_what_the_interface_carries() {
        let six = PathFacts {
            to: "[2001:db8::1]:7000".parse().unwrap(),
            ..path(1452, Some(1453), 0)
        };
        let through = |link_mtu| PathFacts {
            link_mtu: Some(link_mtu),
            ..path(1372, Some(1392), 0)
        };
        let cases = [
            (vec![], Verdict::Unknown),
            (vec![path(1232, None, 0)], Verdict::Ok), // still searching
            (vec![path(1472, Some(1473), 0)], Verdict::Ok),
            (vec![six], Verdict::Ok),
            (vec![through(1400)], Verdict::Ok),
            (vec![through(1430)], Verdict::Finding),
            (
                vec![path(1472, Some(1473), 0), path(1372, Some(1392), 0)],
                Verdict::Finding,
            ),
            (vec![path(1472, Some(1473), 1)], Verdict::Finding),
        ];
        for (paths, verdict) in cases {
            let facts = NodeFacts { paths, ..node() };
            let check = mtu(&facts);
            assert_eq!(check.verdict, verdict, "{check:?}");
        }
        let facts = NodeFacts {
            paths: vec![path(1372, Some(1392), 0)],
            ..node()
        };
        assert!(mtu(&facts).advice.unwrap().contains("here 1400"));
    }

    #[test]
    fn mappings_are_judged_by_what_was_measured() {
        let lived = |at_least, less_than: Option<u64>| {
            Some(MappingLifetime {
                at_least: Duration::from_secs(at_least),
                less_than: less_than.map(Duration::from_secs),
            })
        };
        let independent = NatRule::EndpointIndependent;
        for (mapping, lifetime, verdict) in [
            (NatRule::None, None, Verdict::Ok),
            (NatRule::Unknown, None, Verdict::Unknown),
            (independent, None, Verdict::Unknown),
            (independent, lived(15, Some(20)), Verdict::Finding),
            (independent, lived(20, Some(28)), Verdict::Finding),
            (independent, lived(28, Some(40)), Verdict::Ok),
            (independent, lived(120, None), Verdict::Ok),
        ] {
            let facts = NodeFacts {
                mapping,
                lifetime,
                ..node()
            };
            assert_eq!(super::mapping(&facts).verdict, verdict, "{lifetime:?}");
        }
    }

    #[test]
    fn a_host_firewall_matters_by_what_it_drops_and_where_the_host_is() {
        let dropped = || Fate::Dropped("rule".into());
        let unsure = || Fate::Unsure("rule".into());
        let all = |output, answers, strangers| HostFirewall {
            output,
            answers,
            strangers,
        };
        for (firewall, mapping, verdict) in [
            (
                all(Fate::Passes, Fate::Passes, Fate::Passes),
                NatRule::None,
                Verdict::Ok,
            ),
            (
                all(dropped(), Fate::Passes, Fate::Passes),
                NatRule::None,
                Verdict::Finding,
            ),
            (
                all(Fate::Passes, dropped(), dropped()),
                NatRule::EndpointIndependent,
                Verdict::Finding,
            ),
            (
                all(Fate::Passes, Fate::Passes, dropped()),
                NatRule::None,
                Verdict::Finding,
            ),
            (
                all(Fate::Passes, Fate::Passes, dropped()),
                NatRule::EndpointIndependent,
                Verdict::Ok,
            ),
            (
                all(Fate::Passes, Fate::Passes, unsure()),
                NatRule::None,
                Verdict::Unknown,
            ),
            (
                all(Fate::Passes, unsure(), dropped()),
                NatRule::EndpointIndependent,
                Verdict::Unknown,
            ),
            (
                all(unsure(), Fate::Passes, Fate::Passes),
                NatRule::None,
                Verdict::Unknown,
            ),
        ] {
            let facts = NodeFacts { mapping, ..node() };
            let check = super::firewall(Some(&facts), &Ok(firewall));
            assert_eq!(check.verdict, verdict, "{check:?}");
        }
        let unread = super::firewall(None, &Err("no nft here".into()));
        assert_eq!(unread.verdict, Verdict::Unknown);
        assert!(unread.evidence.contains("no nft here"));
    }

    #[test]
    fn subnets_overlap_with_the_hosts_and_with_each_other() {
        let network = |name: &str, subnet: &str| NetworkFacts {
            name: name.into(),
            subnet: subnet.parse().unwrap(),
            overlapping: None,
        };
        let lab = network("lab", "10.77.0.0/16");
        let taken = NetworkFacts {
            overlapping: Some(("eth0".into(), "10.77.5.0/24".into())),
            ..lab.clone()
        };
        for (networks, verdict) in [
            (vec![], Verdict::Unknown),
            (vec![lab.clone(), network("b", "10.78.0.0/16")], Verdict::Ok),
            (
                vec![lab.clone(), network("b", "10.77.8.0/24")],
                Verdict::Finding,
            ),
            (vec![network("b", "10.78.0.0/16"), taken], Verdict::Finding),
        ] {
            let check = subnets(&networks);
            assert_eq!(check.verdict, verdict, "{check:?}");
        }
    }

    #[test]
    fn udp_and_the_fabric_are_judged_by_who_answers() {
        for (answers, verdict) in [
            (Some(true), Verdict::Ok),
            (Some(false), Verdict::Finding),
            (None, Verdict::Unknown),
        ] {
            let facts = NodeFacts {
                udp: answers,
                ..node()
            };
            assert_eq!(udp(&facts).verdict, verdict);
        }
        for (connected, known, verdict) in [
            (1, 2, Verdict::Ok),
            (0, 2, Verdict::Finding),
            (0, 0, Verdict::Unknown),
        ] {
            let facts = NodeFacts {
                fabric_connected: connected,
                fabric_known: known,
                ..node()
            };
            assert_eq!(fabric(&facts).verdict, verdict);
        }
    }
}
