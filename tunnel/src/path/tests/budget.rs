//! What a search by chance costs each side, as `docs/paths.md` says it.

use super::*;
use crate::stun::{NatRule, PortAssignment};

const SYMMETRIC: NatBehaviour = NatBehaviour {
    mapping: NatRule::AddressAndPortDependent,
    filtering: NatRule::AddressAndPortDependent,
    ports: PortAssignment::Random,
    hairpin: None,
};
const PORT_RESTRICTED: NatBehaviour = NatBehaviour {
    mapping: NatRule::EndpointIndependent,
    ports: PortAssignment::Preserving,
    ..SYMMETRIC
};

/// What an agent did whose peer pays and is reached by the relay only.
#[derive(Default)]
struct Spent {
    sockets: usize,
    /// Where probes went that are no candidates, and when.
    probes: Vec<(PathAddr, Instant)>,
    /// Bytes that paid for the peer's.
    paid: u64,
    /// Flows that the node was asked for, and got back.
    flows: usize,
    unmade: usize,
    /// The numbers of runs that the peer was told.
    announced: Vec<u32>,
}

/// Under what a search begins.
struct Terms {
    kind: RelayKind,
    /// The peer announces what it is told.
    peer_takes_part: bool,
    /// The node may make flows.
    has_flows: bool,
}

const USUAL: Terms = Terms {
    kind: RelayKind::Fabric,
    peer_takes_part: true,
    has_flows: true,
};

fn spend(ours: NatBehaviour, theirs: NatBehaviour, span: Duration) -> Spent {
    spend_under(&USUAL, ours, theirs, span)
}

fn spend_under(terms: &Terms, ours: NatBehaviour, theirs: NatBehaviour, span: Duration) -> Spent {
    let relay = PathAddr::Relayed {
        relay: RELAYS[0].parse().unwrap(),
        index: 1,
    };
    let outside: SocketAddr = "203.0.113.9:40000".parse().unwrap();
    let (mut now, mut spent) = (Instant::now(), Spent::default());
    let end = now + span;
    let mut agent = PathAgent::new(1, 1600, now);
    agent.set_local_nat(ours, now);
    let at = PathAddr::Direct(relay.socket_addr());
    let kind = terms.kind;
    let reach = RelayReach { at, kind };
    agent.set_relays(&BTreeMap::from([(PeerId([1; 32]), reach)]), now);
    agent.count_received(10_000_000);
    agent.handle_session_up(relay, true, now);
    let list = ControlMessage::Candidates {
        generation: 1,
        punch: false,
        nat: theirs,
        list: vec![Candidate::Reflexive(outside)],
        relays: RelayOffer::None,
    };
    agent.handle_control(relay, list, now);
    let mut traffic_at = now;
    while now < end {
        if now >= traffic_at {
            agent.note_traffic(now);
            agent.handle_received(relay, now);
            traffic_at = now + Duration::from_secs(1);
        }
        agent.handle_timeout(now);
        while let Some(wish) = agent.poll_wish() {
            match wish {
                PathWish::Open(count) => {
                    spent.sockets += count;
                    let sockets: Vec<u16> = (1..=count as u16).collect();
                    agent.handle_sockets(&sockets, now);
                }
                PathWish::Flows(count) => {
                    spent.flows += count;
                    agent.handle_flows(terms.has_flows, now);
                }
                PathWish::Unmade(count) => spent.unmade += count,
                _ => {}
            }
        }
        while let Some(PathTransmit { to, msg, pad_to }) = agent.poll_transmit() {
            match msg {
                ControlMessage::Probe { id } if to == relay => {
                    agent.handle_control(relay, ControlMessage::Pong { id, observed: None }, now);
                }
                ControlMessage::Probe { .. } if to != PathAddr::Direct(outside) => {
                    spent.probes.push((to, now));
                }
                ControlMessage::ByChance { number } => {
                    spent.announced.push(number);
                    if terms.peer_takes_part {
                        agent.handle_control(relay, msg, now);
                    }
                }
                ControlMessage::Credit => spent.paid += credit::message_bytes(to, &msg, pad_to),
                _ => {}
            }
        }
        let due = agent.poll_timeout().map_or(end, |(at, _)| at);
        let soon = now + Duration::from_millis(1);
        now = due.max(soon).min(traffic_at).min(end);
    }
    spent
}

/// The most probes within any second.
fn rate(probes: &[(PathAddr, Instant)]) -> usize {
    let within = |from: Instant| {
        let second = from..from + Duration::from_secs(1);
        probes.iter().filter(|(_, at)| second.contains(at)).count()
    };
    probes.iter().map(|(_, at)| within(*at)).max().unwrap_or(0)
}

/// Before the second run.
const ONE_RUN: Duration = Duration::from_secs(19);

#[test]
fn the_symmetric_side_of_a_run_opens_256_sockets_and_probes_twice_from_each() {
    let spent = spend(SYMMETRIC, PORT_RESTRICTED, ONE_RUN);
    assert_eq!((spent.sockets, spent.probes.len()), (256, 512));
    let sockets: BTreeSet<u16> = spent.probes.iter().map(|(to, _)| to.socket()).collect();
    assert_eq!(sockets.len(), 256);
    assert!(rate(&spent.probes) <= 800, "{}", rate(&spent.probes));
    // Less what other messages have paid, which the path's size was looked for with.
    assert!((60_000..95_000).contains(&spent.paid), "{}", spent.paid);
}

#[test]
fn ports_are_tried_by_chance_whoever_relays_but_not_where_udp_does_not_get_out() {
    for (kind, sockets) in [(RelayKind::Member, 256), (RelayKind::Stream, 0)] {
        let terms = Terms { kind, ..USUAL };
        let spent = spend_under(&terms, SYMMETRIC, PORT_RESTRICTED, ONE_RUN);
        assert_eq!(spent.sockets, sockets, "{kind:?}");
    }
}

#[test]
fn the_other_side_of_a_run_probes_1024_ports_once_each() {
    let spent = spend(PORT_RESTRICTED, SYMMETRIC, ONE_RUN);
    assert_eq!((spent.sockets, spent.probes.len()), (0, 1024));
    let ports: BTreeSet<PathAddr> = spent.probes.iter().map(|(to, _)| *to).collect();
    assert_eq!(ports.len(), 1024);
    assert!(rate(&spent.probes) <= 408, "{}", rate(&spent.probes));
    assert!((25_000..48_000).contains(&spent.paid), "{}", spent.paid);
}

#[test]
fn a_run_costs_nothing_until_the_peer_takes_part() {
    let terms = Terms {
        peer_takes_part: false,
        ..USUAL
    };
    for (ours, theirs, flows) in [
        (SYMMETRIC, PORT_RESTRICTED, 256),
        (PORT_RESTRICTED, SYMMETRIC, 1024),
    ] {
        let spent = spend_under(&terms, ours, theirs, Duration::from_secs(60));
        assert_eq!(spent.probes, []);
        let runs = spent.flows / flows;
        assert!((5..=9).contains(&runs), "every 7 to 12 s, but {runs} in 60");
        assert!(spent.unmade + flows >= spent.flows, "but for one under way");
        assert_eq!(spent.announced.len().div_ceil(10), runs);
        let first = spent.announced[0];
        assert!(spent.announced.iter().all(|number| *number == first));
    }
}

#[test]
fn a_run_for_which_the_node_has_no_flows_waits_and_nobody_hears_of_it() {
    let terms = Terms {
        has_flows: false,
        ..USUAL
    };
    for (ours, theirs, flows) in [
        (SYMMETRIC, PORT_RESTRICTED, 256),
        (PORT_RESTRICTED, SYMMETRIC, 1024),
    ] {
        let spent = spend_under(&terms, ours, theirs, Duration::from_secs(60));
        assert_eq!((spent.sockets, spent.unmade), (0, 0));
        assert!(spent.probes.is_empty() && spent.announced.is_empty());
        let runs = spent.flows / flows;
        assert!(
            (6..=12).contains(&runs),
            "every 5 to 10 s, but {runs} in 60"
        );
    }
}

#[test]
fn a_flood_of_requests_is_answered_at_its_own_pace() {
    let (mut now, mut paid, mut probes) = (Instant::now(), 0, 0);
    let relay = PathAddr::Relayed {
        relay: RELAYS[0].parse().unwrap(),
        index: 1,
    };
    let mut agent = PathAgent::new(1, 1600, now);
    let local: Vec<_> = (1..5)
        .map(|n| Candidate::Host(([10, 0, 0, n], 7000).into()))
        .collect();
    agent.set_local_candidates(&local, now);
    agent.set_local_nat(PORT_RESTRICTED, now);
    agent.count_received(10_000_000);
    agent.handle_session_up(relay, true, now);
    for n in 0..1000 {
        now += Duration::from_millis(10);
        let contiguous = n % 2 == 0;
        let ports = match contiguous {
            true => PortAssignment::Contiguous { step: 1 },
            false => PortAssignment::Random,
        };
        let nat = NatBehaviour { ports, ..SYMMETRIC };
        let list = vec![Candidate::Reflexive(
            ([203, 0, 113, 9], 1024 + n as u16).into(),
        )];
        let (generation, punch) = (n, true);
        let messages = [
            ControlMessage::Candidates {
                generation,
                punch,
                nat,
                list,
                relays: RelayOffer::None,
            },
            ControlMessage::Foretold {
                number: n,
                base: ([203, 0, 113, 9], 40_000).into(),
                step: 1,
            },
            ControlMessage::ByChance { number: n },
        ];
        for message in messages {
            agent.handle_control(relay, message, now);
            agent.handle_timeout(now);
            while let Some(PathTransmit { to, msg, pad_to }) = agent.poll_transmit() {
                match msg {
                    ControlMessage::Credit => paid += credit::message_bytes(to, &msg, pad_to),
                    ControlMessage::Probe { .. } => probes += 1,
                    _ => {}
                }
            }
            while let Some(wish) = agent.poll_wish() {
                if let PathWish::Flows(_) = wish {
                    agent.handle_flows(true, now);
                }
            }
        }
    }
    // Ten seconds: six rounds, eight attempts, one run by chance.
    assert!(probes < 2500, "{probes} probes");
    assert!(paid < 90_000, "{paid} bytes");
}

#[test]
fn runs_that_bring_nothing_become_rare() {
    let spent = spend(PORT_RESTRICTED, SYMMETRIC, Duration::from_secs(3 * 3600));
    // At once, after 20 s, 2 min, 10 min, and then every hour: 6 or 7 in three hours.
    let runs = spent.probes.len() / 1024;
    assert!((5..=7).contains(&runs), "{runs}");
}
