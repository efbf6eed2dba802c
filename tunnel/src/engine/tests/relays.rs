//! Members that relay for each other: where two do not meet, when a relay is gone, through two of them, and what strangers
//! and members can make a relay do.

use super::world::*;
use crate::{
    engine::{Command, Event},
    relay::{RelayLimits, RelayStats},
    stats::Counter,
    wire::datagram::RelayHeader,
};
use overlay_types::{Candidate, PathAddr, PeerId};
use std::time::Duration;
use zerocopy::IntoBytes;

/// So many nodes, of which some do not reach each other, and some relay; each has read the others' newest records.
fn world(nodes: usize, apart: &[(usize, usize)], relays: &[usize], seed: u64) -> World {
    let mut world = World::new(nodes, seed);
    world.apart.extend(apart);
    for &relay in relays {
        world.command(relay, Command::ServeRelay(Some(RelayLimits::default())));
    }
    world.introduce_all();
    for _ in 0..10 {
        world.run(SECOND);
        publish(&mut world);
    }
    world
}

/// Everybody reads what everybody's ways in are now.
fn publish(world: &mut World) {
    for node in 0..world.nodes.len() {
        let told = world.nodes[node]
            .events
            .iter()
            .rev()
            .find_map(|event| match event {
                Event::CandidatesChanged(list) => Some(list.clone()),
                _ => None,
            });
        let candidates = told.unwrap_or_else(|| vec![Candidate::Host(addr(node))]);
        for other in (0..world.nodes.len()).filter(|&other| other != node) {
            let upsert = Command::UpsertPeer {
                network: NET,
                peer: peer_id(node),
                keys: public(node),
                candidates: candidates.clone(),
                eager: true,
                paid: RECORD_BYTES,
            };
            world.command(other, upsert);
        }
    }
}

fn path(world: &World, from: usize, to: usize) -> (Option<PathAddr>, Option<PeerId>) {
    let stats = world.nodes[from].engine.peer_stats(world.now);
    let stats = stats.iter().find(|s| s.peer == peer_id(to)).unwrap();
    (stats.path.map(|view| view.addr), stats.via)
}

fn relayed(world: &World, node: usize) -> RelayStats {
    world.nodes[node].engine.relay_stats().unwrap()
}

/// How many of a hundred frames, one every 20 ms, arrive.
fn hundred(world: &mut World, from: usize, to: usize) -> usize {
    world.received(to);
    for _ in 0..100 {
        world.guest_sends(from, &frame(from, to));
        world.run(SECOND / 50);
    }
    world.run(SECOND);
    world.received(to).len()
}

#[test]
fn a_member_relays_for_two_that_do_not_meet() {
    let mut world = world(3, &[(0, 1)], &[2], 1);
    for (from, to) in [(0, 1), (1, 0)] {
        assert_eq!(hundred(&mut world, from, to), 100);
        let (addr_used, via) = path(&world, from, to);
        assert_eq!(via, Some(peer_id(2)));
        assert_eq!(addr_used.unwrap().socket_addr(), addr(2));
    }
    let stats = relayed(&world, 2);
    assert!(stats.bound >= 2 && stats.forwarded > 200, "{stats:?}");
    assert_eq!(path(&world, 0, 2).0, Some(PathAddr::Direct(addr(2))));
}

#[test]
fn nobody_relays_who_is_not_willing() {
    let mut world = world(3, &[(0, 1)], &[], 2);
    assert_eq!(hundred(&mut world, 0, 1), 0);
    assert_eq!(world.nodes[2].engine.relay_stats(), None);
}

#[test]
fn the_loss_of_a_relay_costs_less_than_two_seconds_and_a_third_takes_its_place() {
    for seed in 0..20 {
        let mut world = world(5, &[(0, 1)], &[2, 3, 4], 100 + seed);
        assert_eq!(hundred(&mut world, 0, 1), 100);
        let used = path(&world, 0, 1).1.unwrap();
        let relay = (2..5).find(|&n| peer_id(n) == used).unwrap();
        world.cut_off(relay);
        let (lost_at, mut last, mut gap) = (world.now, world.now, Duration::ZERO);
        while world.now < lost_at + 5 * SECOND {
            world.guest_sends(0, &frame(0, 1));
            world.guest_sends(1, &frame(1, 0));
            world.run(SECOND / 50);
            world.received(0);
            if !world.received(1).is_empty() {
                gap = gap.max(world.now - last);
                last = world.now;
            }
        }
        gap = gap.max(world.now - last);
        assert!(gap < 2 * SECOND, "seed {seed}: a gap of {gap:?}");
        world.run(15 * SECOND);
        let told = world.nodes[0]
            .events
            .iter()
            .rev()
            .find_map(|event| match event {
                Event::CandidatesChanged(list) => Some(list.clone()),
                _ => None,
            });
        let vias: Vec<_> = told
            .unwrap()
            .iter()
            .filter_map(|candidate| match candidate {
                Candidate::Relayed { via, .. } => Some(*via),
                _ => None,
            })
            .collect();
        assert!(
            vias.len() >= 2 && !vias.contains(&used),
            "seed {seed}: {vias:?}"
        );
    }
}

#[test]
fn two_members_that_share_no_relay_meet_through_two() {
    // 0 reaches 2, 2 reaches 3, 3 reaches 1: nothing else.
    let mut world = world(4, &[(0, 1), (0, 3), (1, 2)], &[2, 3], 3);
    world.run(20 * SECOND);
    publish(&mut world);
    world.run(10 * SECOND);
    assert_eq!(hundred(&mut world, 0, 1), 100);
    assert_eq!(hundred(&mut world, 1, 0), 100);
    for relay in [2, 3] {
        let stats = relayed(&world, relay);
        assert!(stats.forwarded >= 200, "both carry all of it: {stats:?}");
    }
    // Full frames pass, too, whatever room two wrappers take.
    let full = crate::switch::testing::sized_frame(mac(0), mac(1), ip(0), ip(1), 1514);
    world.received(1);
    world.guest_sends(0, &full);
    world.run(SECOND);
    assert_eq!(world.received(1), [full]);
}

#[test]
fn a_relay_passes_nothing_on_for_strangers_and_for_who_is_no_member_any_more() {
    let mut world = world(3, &[(0, 1)], &[2], 4);
    let before = relayed(&world, 2).forwarded;
    for index in 0..1000u32 {
        let wrapped = [RelayHeader::to(index).as_bytes(), &[0; 100]].concat();
        world.datagram(2, ([203, 0, 113, 77], 7).into(), wrapped);
    }
    let dropped = world.counters(2).get(Counter::DropRelayStranger);
    assert_eq!(dropped, 1000);
    assert!(relayed(&world, 2).forwarded - before < 100, "control only");

    let peer = peer_id(0);
    world.command(2, Command::RemovePeer { network: NET, peer });
    world.run(SECOND);
    assert_eq!(hundred(&mut world, 0, 1), 0);
}

#[test]
fn a_member_that_lists_relays_everywhere_has_us_ask_few_of_them() {
    let mut world = world(2, &[(0, 1)], &[], 5);
    let listed = |n: u8| Candidate::Relayed {
        via: PeerId([100 + n; 32]),
        relay: ([203, 0, 113, n], 7).into(),
        index: 1,
    };
    for round in 0..20u8 {
        let upsert = Command::UpsertPeer {
            network: NET,
            peer: peer_id(1),
            keys: public(1),
            candidates: (0..16).map(|n| listed(n + 7 * round)).collect(),
            eager: true,
            paid: RECORD_BYTES,
        };
        world.command(0, upsert);
        world.run(SECOND / 2);
    }
    let wanted = world.nodes[0].events.iter();
    let wanted = wanted.filter(|event| matches!(event, Event::RelayWanted { .. }));
    assert!(wanted.count() <= 32, "16 in half a minute");
}
