//! Members that relay for each other where no fabric node does.

use crate::common::{SECOND, seed, seeds, start_all};
use overlay_types::PathKind;
use sim::{link::LinkKind, member::MemberId, nat::NatKind, overlay::Overlay};
use std::time::Duration;

/// How often a station pings while it is watched for gaps.
const PING_EVERY: Duration = Duration::from_millis(50);

/// A network whose fabric nodes do not relay, with members behind these NATs beside its owner, who has a public address.
fn without_fabric_relays(own_seed: u64, nats: &[Option<NatKind>]) -> (Overlay, Vec<MemberId>) {
    let mut overlay = Overlay::new(seed(own_seed), 2);
    overlay.terms.fabric_relays = false;
    let members: Vec<_> = nats
        .iter()
        .map(|&nat| overlay.add_member(nat, LinkKind::FAST))
        .collect();
    (overlay, members)
}

const SYMMETRIC: Option<NatKind> = Some(NatKind::SYMMETRIC);

#[test]
fn two_symmetric_members_are_relayed_by_a_public_member() {
    for n in 0..seeds() {
        let (mut overlay, members) = without_fabric_relays(2000 + n, &[SYMMETRIC, SYMMETRIC]);
        start_all(&mut overlay);
        let (a, b) = (members[0], members[1]);

        let took = overlay.ping(a, b, 30 * SECOND);

        assert!(took.is_some(), "seed {n}");
        for (from, to) in [(a, b), (b, a)] {
            assert_eq!(overlay.path(from, to), Some(PathKind::Relay), "seed {n}");
            let via = overlay.relay_between(from, to);
            assert_eq!(via, Some(Overlay::OWNER), "seed {n}");
        }
        assert_eq!(overlay.ping_train(a, b, 10, 1472), 10, "seed {n}");
    }
}

#[test]
fn nobody_relays_where_nobody_is_willing() {
    let (mut overlay, members) = without_fabric_relays(2100, &[SYMMETRIC, SYMMETRIC]);
    overlay.terms.members_relay = false;
    start_all(&mut overlay);
    assert_eq!(overlay.ping(members[0], members[1], 60 * SECOND), None);
}

/// Pings all the time for `span`: the longest time from one ping that was answered to the next such.
fn longest_gap(overlay: &mut Overlay, from: MemberId, to: MemberId, span: Duration) -> Duration {
    let began = overlay.world.elapsed();
    let mut sent = Vec::new();
    while overlay.world.elapsed() - began < span {
        let at = overlay.world.elapsed();
        sent.extend(overlay.send_ping(from, to, 56).map(|ping| (at, ping)));
        overlay.run(PING_EVERY);
    }
    overlay.run(2 * SECOND);
    let answered = sent
        .iter()
        .filter(|(_, ping)| overlay.answered(from, *ping).is_some());
    let mut times: Vec<_> = answered.map(|(at, _)| *at).collect();
    times.insert(0, began);
    times.push(began + span);
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or(span)
}

#[test]
fn the_loss_of_the_relay_in_use_costs_less_than_two_seconds_where_another_is_shared() {
    let mut gaps = Vec::new();
    for n in 0..seeds() {
        let nats = [SYMMETRIC, SYMMETRIC, None, None, None];
        let (mut overlay, members) = without_fabric_relays(2200 + n, &nats);
        start_all(&mut overlay);
        let (a, b) = (members[0], members[1]);
        assert!(overlay.ping(a, b, 30 * SECOND).is_some(), "seed {n}");
        overlay.ping_train(a, b, 20, 56);
        // The owner is the registrar: what its loss costs beside is another story.
        let used = overlay.relay_between(a, b).expect("a member relays");
        let host = overlay.member(used).host;
        overlay.world.set_link_up(host, false);

        gaps.push((longest_gap(&mut overlay, a, b, 10 * SECOND), n));

        overlay.run(20 * SECOND);
        let next = overlay.relay_between(a, b).expect("a member relays");
        assert_ne!(next, used, "seed {n}");
        let host = overlay.member(next).host;
        overlay.world.set_link_up(host, false);
        gaps.push((longest_gap(&mut overlay, a, b, 10 * SECOND), n));
    }
    gaps.sort_unstable();
    println!(
        "gaps: half under {:?}, the longest {:?}",
        gaps[gaps.len() / 2],
        gaps.last()
    );
    let slow: Vec<_> = gaps.iter().filter(|(gap, _)| *gap >= 2 * SECOND).collect();
    assert!(slow.is_empty(), "{slow:?}");
}

#[test]
fn members_take_over_when_no_fabric_node_relays_any_more() {
    let mut gaps = Vec::new();
    for n in 0..seeds() {
        let mut overlay = Overlay::new(seed(2400 + n), 2);
        let nats = [SYMMETRIC, SYMMETRIC, None];
        let members = nats.map(|nat| overlay.add_member(nat, LinkKind::FAST));
        start_all(&mut overlay);
        let (a, b) = (members[0], members[1]);
        assert!(overlay.ping(a, b, 30 * SECOND).is_some(), "seed {n}");
        overlay.ping_train(a, b, 10, 56);
        assert_eq!(overlay.relay_between(a, b), None, "by the fabric, seed {n}");

        // They relay no more, or are gone altogether, and the control plane with them.
        overlay.terms.fabric_relays = false;
        for host in overlay.infrastructure().to_vec() {
            if n % 2 == 0 {
                overlay.start_infrastructure(host); // with no memory of places
            } else {
                overlay.world.set_link_up(host, false);
            }
        }

        let gap = longest_gap(&mut overlay, a, b, 60 * SECOND);
        assert!(overlay.relay_between(a, b).is_some(), "seed {n}");
        gaps.push((gap, n));
    }
    gaps.sort_unstable();
    println!(
        "gaps: half under {:?}, the longest {:?}",
        gaps[gaps.len() / 2],
        gaps.last()
    );
    let slow: Vec<_> = gaps.iter().filter(|(gap, _)| *gap >= 2 * SECOND).collect();
    assert!(slow.is_empty(), "{slow:?}");
}

#[test]
fn members_that_share_no_relay_meet_through_two() {
    let mut apart = Vec::new();
    for n in 0..seeds() {
        // The first reaches only the third, the second only the fourth, which are behind NATs and reach each other.
        let restricted = Some(NatKind::PORT_RESTRICTED);
        let nats = [SYMMETRIC, restricted, None, restricted];
        let (mut overlay, members) = without_fabric_relays(2300 + n, &nats);
        let [a, b, one, two] = members[..] else {
            unreachable!("four were asked for")
        };
        let owner = Overlay::OWNER;
        for (x, y) in [(a, b), (a, two), (b, one), (owner, a), (owner, b)] {
            let hosts = [x, y].map(|id| overlay.member(id).host);
            overlay.world.set_apart(hosts[0], hosts[1]);
        }
        for id in overlay.members() {
            overlay.start(id);
        }

        let took = overlay.ping(a, b, 180 * SECOND);

        if took.is_none() {
            apart.push(n);
            continue;
        }
        assert_eq!(overlay.ping_train(a, b, 10, 1472), 10, "seed {n}");
        assert_eq!(overlay.ping_train(b, a, 10, 1472), 10, "seed {n}");
        let relayed = |id: MemberId| {
            let node = overlay.world.node(overlay.member(id).host);
            node.and_then(|node| node.engine.relay_stats())
                .map_or(0, |stats| stats.forwarded)
        };
        assert!(relayed(one) > 20 && relayed(two) > 20, "seed {n}");
    }
    assert!(apart.is_empty(), "seeds {apart:?}");
}
