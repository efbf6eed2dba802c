use super::*;
use overlay_types::{
    NatBehaviour, PeerId, PortAssignment,
    why::{Carriage, PathInUse, RelayPlace, Site, Tried, WayIn},
};
use std::net::SocketAddr;

const RELAY: PeerId = PeerId([9; 32]);

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn nat(mapping: NatRule, filtering: NatRule, ports: PortAssignment) -> NatBehaviour {
    NatBehaviour {
        mapping,
        filtering,
        ports,
        hairpin: Some(false),
    }
}

fn symmetric() -> NatBehaviour {
    let strict = NatRule::AddressAndPortDependent;
    nat(strict, strict, PortAssignment::Random)
}

fn port_restricted() -> NatBehaviour {
    let strict = NatRule::AddressAndPortDependent;
    nat(NatRule::EndpointIndependent, strict, PortAssignment::Random)
}

fn side(name: &str, nat: NatBehaviour, ways_in: &[(WayKind, &str)]) -> Side {
    let ways_in = ways_in.iter().map(|(kind, at)| WayIn {
        kind: *kind,
        addr: addr(at),
        relay: None,
    });
    Side {
        id: PeerId([1; 32]),
        name: name.parse().unwrap(),
        address: None,
        is_here: false,
        unasked: None,
        site: Site {
            nat,
            udp: Some(true),
            ways_in: ways_in.collect(),
            relays: vec![RelayPlace {
                relay: RELAY,
                addr: addr("198.51.100.1:4078"),
                by: Carriage::Udp,
            }],
        },
        way: Some(Way {
            session_s: Some(60),
            tried: vec![tried(9, 0)],
            ..Way::default()
        }),
        gateway: None,
    }
}

fn tried(probes: u32, answers: u32) -> Tried {
    Tried {
        kind: WayKind::Reflexive,
        to: addr("203.0.113.9:40000"),
        relay: None,
        by_stream: false,
        socket: 0,
        probes,
        answers,
        withheld: 0,
        first_ms: None,
        last_ms: None,
        answered_ms: None,
        failed_ms: None,
        rtt_us: None,
        answered_from: None,
        outcome: Outcome::Silent,
    }
}

fn by(side: &mut Side, kind: PathKind, rtt_us: u64) {
    if let Some(way) = &mut side.way {
        way.path = Some(PathInUse {
            kind,
            to: addr("198.51.100.1:4078"),
            relay: Some(RELAY),
            relays: 1,
            rtt_us,
            mtu: 1400,
            mtu_refused: None,
            black_holes: 0,
        });
    }
}

fn kinds(from: &Side, to: &Side) -> Vec<AdviceKind> {
    advise(from, to).into_iter().map(|a| a.kind).collect()
}

const HOME: &[(WayKind, &str)] = &[
    (WayKind::Host, "192.168.1.2:7000"),
    (WayKind::Reflexive, "203.0.113.1:40001"),
];
const OFFICE: &[(WayKind, &str)] = &[
    (WayKind::Host, "192.168.2.2:7001"),
    (WayKind::Reflexive, "203.0.113.2:40002"),
];

fn relayed_pair(a: NatBehaviour, b: NatBehaviour) -> (Side, Side) {
    let (mut from, mut to) = (side("a", a, HOME), side("b", b, OFFICE));
    by(&mut from, PathKind::Relay, 30_000);
    by(&mut to, PathKind::Relay, 30_000);
    (from, to)
}

#[test]
fn a_direct_path_needs_no_advice() {
    let (mut from, mut to) = relayed_pair(symmetric(), symmetric());
    by(&mut from, PathKind::Direct, 1);
    by(&mut to, PathKind::Direct, 1);
    assert_eq!(kinds(&from, &to), []);
}

#[test]
fn two_symmetric_nats_are_told_that_a_relay_is_best_and_what_would_change_it() {
    let (from, to) = relayed_pair(symmetric(), symmetric());
    let given = advise(&from, &to);
    let found: Vec<_> = given.iter().map(|a| a.kind).collect();
    use AdviceKind::{Ipv6, MapPort, Relay};
    assert_eq!(found, [Relay, MapPort, MapPort, Ipv6]);
    assert!(given[1].text.contains("UDP port 7000"), "{}", given[1].text);
    assert!(given[2].text.contains("UDP port 7001"), "{}", given[2].text);
}

#[test]
fn a_distant_relay_is_only_named_where_its_delay_is_felt() {
    let (mut from, to) = relayed_pair(symmetric(), symmetric());
    assert!(!kinds(&from, &to).contains(&AdviceKind::NearerRelay));
    by(&mut from, PathKind::Relay, 180_000);
    assert!(kinds(&from, &to).contains(&AdviceKind::NearerRelay));
}

#[test]
fn a_port_that_is_mapped_already_is_not_asked_for() {
    let (mut from, to) = relayed_pair(symmetric(), symmetric());
    from.site.ways_in.push(WayIn {
        kind: WayKind::Mapped,
        addr: addr("203.0.113.1:7000"),
        relay: None,
    });
    let given = advise(&from, &to);
    let mapped: Vec<_> = given
        .iter()
        .filter(|a| a.kind == AdviceKind::MapPort)
        .filter_map(|a| a.node.as_ref().map(ToString::to_string))
        .collect();
    assert_eq!(mapped, ["b"]);
}

#[test]
fn a_pair_that_could_be_met_by_chance_is_told_to_talk_and_then_to_wait() {
    let (mut from, to) = relayed_pair(symmetric(), port_restricted());
    assert_eq!(kinds(&from, &to)[0], AdviceKind::Use);
    from.way.as_mut().unwrap().by_chance = 2;
    let given = advise(&from, &to);
    assert_eq!(given[0].kind, AdviceKind::Wait);
    assert!(given[0].text.contains("2 times"), "{}", given[0].text);
}

#[test]
fn a_firewall_is_suspected_only_after_a_whole_round_of_silence() {
    let (mut from, mut to) = relayed_pair(port_restricted(), port_restricted());
    assert_eq!(kinds(&from, &to)[0], AdviceKind::OpenFirewall);
    for side in [&mut from, &mut to] {
        side.way.as_mut().unwrap().tried = vec![tried(2, 0)];
    }
    assert_eq!(kinds(&from, &to), [AdviceKind::Wait]);
    for side in [&mut from, &mut to] {
        side.way.as_mut().unwrap().tried = vec![tried(9, 1)];
    }
    assert_eq!(kinds(&from, &to), [AdviceKind::Wait]);
}

#[test]
fn a_firewall_at_a_public_host_is_named_with_its_port() {
    let open = nat(NatRule::None, NatRule::None, PortAssignment::Unknown);
    let (mut from, to) = relayed_pair(open, port_restricted());
    from.site.ways_in.truncate(1);
    let given = advise(&from, &to);
    assert_eq!(given[0].kind, AdviceKind::OpenFirewall);
    assert!(given[0].text.contains("UDP port 7000"), "{}", given[0].text);
}

#[test]
fn one_nat_before_both_that_does_not_hairpin_is_named() {
    let (from, mut to) = relayed_pair(port_restricted(), port_restricted());
    to.site.ways_in[1].addr = addr("203.0.113.1:40009");
    assert_eq!(kinds(&from, &to)[0], AdviceKind::Hairpin);
}

#[test]
fn sites_without_a_common_ip_version_are_told_so_and_nothing_else() {
    let (mut from, to) = relayed_pair(symmetric(), symmetric());
    from.site.ways_in = vec![WayIn {
        kind: WayKind::Host,
        addr: addr("[2001:db8::1]:7000"),
        relay: None,
    }];
    let given = advise(&from, &to);
    assert_eq!(given.len(), 1);
    assert_eq!(given[0].kind, AdviceKind::CommonIp);
    assert!(
        given[0].text.starts_with("b has IPv4 alone"),
        "{}",
        given[0].text
    );
}

#[test]
fn udp_is_asked_for_where_it_is_blocked_and_only_there() {
    let (mut from, mut to) = relayed_pair(symmetric(), symmetric());
    by(&mut from, PathKind::Stream, 30_000);
    from.site.udp = Some(false);
    let given = advise(&from, &to);
    assert_eq!(given.len(), 1);
    assert_eq!(given[0].node, Some(from.name.clone()));
    to.site.udp = Some(false);
    assert_eq!(kinds(&from, &to), [AdviceKind::AllowUdp; 2]);
}

#[test]
fn a_peer_that_is_off_is_to_be_started() {
    let (mut from, mut to) = relayed_pair(symmetric(), symmetric());
    to.way = None;
    from.way = Some(Way {
        calls_unanswered: 5,
        ..Way::default()
    });
    let given = advise(&from, &to);
    assert_eq!(given.len(), 1);
    assert_eq!(
        (given[0].kind, &given[0].node),
        (AdviceKind::Start, &Some(to.name.clone()))
    );
    assert!(given[0].text.contains("5 calls"), "{}", given[0].text);
}

#[test]
fn without_a_relay_the_side_that_has_none_is_named() {
    let (mut from, mut to) = relayed_pair(symmetric(), symmetric());
    for side in [&mut from, &mut to] {
        side.way = Some(Way::default());
    }
    assert_eq!(kinds(&from, &to), [AdviceKind::Wait]);
    to.site.relays.clear();
    let given = advise(&from, &to);
    assert_eq!(
        (given[0].kind, &given[0].node),
        (AdviceKind::Relay, &Some(to.name))
    );
}
