//! Sessions between whole nodes: made, renewed, lost, found again, and closed to strangers.

use super::world::*;
use crate::{
    engine::{Command, Engine, EngineConfig, Event},
    stats::Counter,
    stun::server_answer,
    switch::testing::*,
    worker::Report,
};
use overlay_types::{Candidate, PathAddr};
use sha2::Digest;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[test]
fn two_nodes_meet_and_frames_pass_both_ways() {
    let mut world = World::met(2, 1);
    world.guest_sends(0, &frame(0, 1));
    world.guest_sends(1, &frame(1, 0));
    world.run(SECOND);
    assert_eq!(world.received(1), [frame(0, 1)]);
    assert_eq!(world.received(0), [frame(1, 0)]);
    let stats = &world.nodes[0].engine.peer_stats(world.now)[0];
    assert!(stats.session && stats.tx_bytes > 0 && stats.rx_bytes > 0 && stats.path.is_some());
}

#[test]
fn a_session_on_demand_is_made_by_the_first_frame_which_is_not_lost() {
    let mut world = World::new(2, 3);
    world.eager = false;
    world.introduce_all();
    world.run(5 * SECOND);
    assert!(!world.is_up(0, 1));
    world.guest_sends(0, &frame(0, 1));
    world.guest_sends(0, &frame(0, 1));
    world.run(SECOND / 10);
    assert_eq!(world.received(1).len(), 2);
    world.run(400 * SECOND);
    assert!(!world.is_up(0, 1), "nobody needs it any longer");
    assert!(!world.is_up(1, 0));
}

#[test]
fn frames_pass_all_the_time_while_sessions_are_renewed_under_loss() {
    let mut world = World::met(2, 4);
    world.loss = 0.2;
    let (mut sent, mut longest_gap, mut last) = (0, Duration::ZERO, world.now);
    while world.now - world.start < 600 * SECOND {
        world.guest_sends(0, &frame(0, 1));
        sent += 1;
        world.run(SECOND / 4);
        if !world.received(1).is_empty() {
            longest_gap = longest_gap.max(world.now - last);
            last = world.now;
        }
    }
    assert!(
        longest_gap < 3 * SECOND,
        "a gap of {longest_gap:?} in {sent} frames"
    );
    assert!(world.counters(0).get(Counter::Handshakes) >= 5);
}

#[test]
fn a_restarted_node_is_reached_again_within_seconds_by_itself() {
    let mut world = World::met(2, 5);
    world.guest_sends(0, &frame(0, 1));
    world.run(SECOND);
    world.received(1);
    world.restart(1);
    // It does not know its peers yet, then learns of them as members without being told to call them.
    world.eager = false;
    world.introduce(1, 0);
    world.bind_all(1);
    let down_at = world.now;
    while world.received(1).is_empty() {
        world.guest_sends(0, &frame(0, 1));
        world.run(SECOND / 10);
        assert!(world.now - down_at < 5 * SECOND);
    }
}

#[test]
fn a_node_whose_peer_restarted_finds_out_although_the_peer_cannot_know_its_address() {
    let mut world = World::met(2, 6);
    world.restart(1);
    // The restarted one knows the member's key, but no way to it.
    let (peer, keys) = (peer_id(0), public(0));
    world.command(
        1,
        Command::UpsertPeer {
            network: NET,
            peer,
            keys,
            candidates: Vec::new(),
            eager: false,
            paid: RECORD_BYTES,
        },
    );
    world.bind_all(1);
    let down_at = world.now;
    while world.received(1).is_empty() {
        world.guest_sends(0, &frame(0, 1));
        world.run(SECOND / 10);
        assert!(world.now - down_at < 6 * SECOND);
    }
}

#[test]
fn one_way_traffic_keeps_its_session() {
    let mut world = World::met(2, 7);
    let before = world.counters(0).get(Counter::HandshakesSent);
    for _ in 0..100 {
        world.guest_sends(0, &frame(0, 1));
        world.run(SECOND / 2);
    }
    assert_eq!(world.received(1).len(), 100);
    assert_eq!(world.counters(0).get(Counter::HandshakesSent), before);
}

#[test]
fn replayed_datagrams_are_dropped() {
    let mut world = World::met(2, 8);
    world.recorded = Some(Vec::new());
    world.guest_sends(0, &frame(0, 1));
    world.run(SECOND);
    assert_eq!(world.received(1).len(), 1);
    let recorded = world.recorded.take().unwrap();
    for (from, _, bytes) in recorded.into_iter().filter(|(_, to, _)| *to == addr(1)) {
        world.datagram(1, from, bytes);
    }
    assert_eq!(world.received(1), Vec::<Vec<u8>>::new());
    assert!(world.counters(1).get(Counter::DropReplayed) >= 1);
}

#[test]
fn a_replayed_initiation_ends_no_session() {
    let mut world = World::new(2, 9);
    world.recorded = Some(Vec::new());
    world.introduce_all();
    world.run(3 * SECOND);
    let recorded = world.recorded.take().unwrap();
    let handshakes = world.counters(1).get(Counter::Handshakes);
    for (from, _, bytes) in recorded
        .into_iter()
        .filter(|(_, to, bytes)| *to == addr(1) && bytes[0] == 0x80)
    {
        world.datagram(1, from, bytes);
    }
    assert_eq!(world.counters(1).get(Counter::Handshakes), handshakes);
    world.guest_sends(0, &frame(0, 1));
    world.run(SECOND);
    assert_eq!(world.received(1).len(), 1);
}

#[test]
fn a_stranger_is_not_answered() {
    let mut world = World::met(3, 10);
    // The third node loses its membership, here and there, and then knocks with keys that nobody knows.
    for node in 0..2 {
        world.command(
            node,
            Command::RemovePeer {
                network: NET,
                peer: peer_id(2),
            },
        );
    }
    world.run(SECOND);
    world.recorded = Some(Vec::new());
    world.guest_sends(2, &frame(2, 0));
    world.run(10 * SECOND);
    let recorded = world.recorded.take().unwrap();
    assert!(
        recorded.iter().any(|(from, ..)| *from == addr(2)),
        "it knocks"
    );
    assert!(
        recorded.iter().all(|(_, to, _)| *to != addr(2)),
        "nobody answers"
    );
    let x25519 = public(2).x25519;
    assert!(world.nodes[0].events.contains(&Event::UnknownPeer {
        network: NET,
        x25519
    }));
    // Bytes that know nothing of the network are dropped before any public-key work.
    world.datagram(0, addr(7), vec![0x80; 1248]);
    assert!(
        world.counters(0).get(Counter::DropStranger)
            + world.counters(0).get(Counter::DropUnknownDatagram)
            >= 1
    );
}

#[test]
fn a_first_message_waits_for_its_sender_to_become_known() {
    let mut world = World::new(2, 11);
    world.introduce(1, 0); // the newcomer knows us, we do not know it
    world.bind_all(1);
    world.run(SECOND / 5);
    assert!(!world.is_up(0, 1));
    world.introduce(0, 1);
    world.run(SECOND / 10);
    assert!(world.is_up(0, 1) && world.is_up(1, 0));
}

#[test]
fn both_calling_at_once_end_with_one_session() {
    let mut world = World::new(2, 12);
    world.introduce(0, 1);
    world.introduce(1, 0);
    world.run(3 * SECOND);
    assert!(world.is_up(0, 1) && world.is_up(1, 0));
    assert_eq!(world.nodes[0].snapshot.sessions.len(), 1);
    assert_eq!(world.nodes[1].snapshot.sessions.len(), 1);
}

#[test]
fn calls_that_cross_after_both_learned_new_ways_end_with_one_session_soon() {
    for seed in 0..20 {
        let mut world = World::new(2, 500 + seed);
        for (node, other) in [(0, 1), (1, 0)] {
            let (peer, keys) = (peer_id(other), public(other));
            let nowhere = SocketAddr::from(([198, 51, 100, 1], 9));
            let candidates = vec![Candidate::Host(nowhere)];
            world.command(
                node,
                Command::UpsertPeer {
                    network: NET,
                    peer,
                    keys,
                    candidates,
                    eager: true,
                    paid: RECORD_BYTES,
                },
            );
        }
        world.run(SECOND / 5);
        world.introduce(0, 1);
        world.run(SECOND / 200); // less than the way takes, so that the calls cross
        world.introduce(1, 0);
        world.run(SECOND / 2);
        assert!(world.is_up(0, 1) && world.is_up(1, 0), "seed {seed}");
    }
}

#[test]
fn a_ping_measures_the_round_trip_and_makes_the_session_it_needs() {
    let mut world = World::new(2, 19);
    world.eager = false;
    world.introduce_all();
    world.command(
        0,
        Command::Ping {
            network: NET,
            peer: peer_id(1),
            id: 77,
        },
    );
    world.run(SECOND);
    world.command(
        0,
        Command::Ping {
            network: NET,
            peer: peer_id(1),
            id: 78,
        },
    );
    world.run(SECOND);
    let rtts: Vec<_> = world.nodes[0]
        .events
        .iter()
        .filter_map(|e| {
            if let Event::Pong { id, rtt, .. } = e {
                Some((*id, *rtt))
            } else {
                None
            }
        })
        .collect();
    assert_eq!(rtts.len(), 2);
    assert_eq!(rtts[1], (78, 2 * DELAY));
}

/// A member that shakes hands in somebody else's name: what that somebody gets, and what the member sent for it.
#[test]
fn an_address_that_a_member_only_claims_gets_no_more_than_the_member_sent() {
    let victim = SocketAddr::from(([198, 51, 100, 66], 4000));
    for first in [0, 1] {
        let mut world = World::new(2, 7);
        (world.spoofed, world.recorded) = (Some(victim), Some(Vec::new()));
        world.introduce(first, 1 - first);
        world.introduce(1 - first, first);
        world.bind_all(0);
        for _ in 0..40 {
            world.guest_sends(0, &sized_frame(mac(0), mac(1), ip(0), ip(1), 1400));
            world.run(SECOND / 4);
        }
        let bytes = |datagrams: &[(SocketAddr, SocketAddr, Vec<u8>)],
                     is_it: &dyn Fn(_, _) -> bool| {
            let chosen = datagrams.iter().filter(|(from, to, _)| is_it(*from, *to));
            chosen.map(|(_, _, bytes)| bytes.len() + 28).sum::<usize>()
        };
        let recorded = world.recorded.take().unwrap();
        let sent = bytes(&recorded, &|from, _| from == victim);
        let suffered = bytes(&recorded, &|_, to| to == victim);
        assert!(sent > 0 && suffered <= sent, "{suffered} bytes for {sent}");
    }
}

#[test]
fn a_removed_network_says_goodbye() {
    let mut world = World::met(2, 20);
    world.command(0, Command::RemoveNetwork(NET));
    world.run(SECOND / 10);
    assert!(!world.is_up(1, 0));
    assert!(
        world.nodes[0].snapshot.networks.is_empty() && world.nodes[0].snapshot.sessions.is_empty()
    );
}

#[test]
fn idle_peers_cost_little() {
    let mut world = World::met(2, 21);
    world.run(60 * SECOND);
    let (bytes, wakeups) = (world.sent_bytes, world.wakeups);
    world.run(600 * SECOND);
    let per_second = (world.sent_bytes - bytes) / 600;
    assert!(per_second < 500, "both together send {per_second} B/s");
    assert!(
        world.wakeups - wakeups < 1200,
        "{} wakeups in ten minutes",
        world.wakeups - wakeups
    );
    assert!(world.is_up(0, 1) && world.is_up(1, 0));
}

#[test]
fn the_same_seed_gives_the_same_datagrams_bit_for_bit() {
    let transcript = |seed| {
        let mut world = World::met(3, seed);
        world.loss = 0.1;
        for _ in 0..50 {
            world.guest_sends(0, &frame(0, 1));
            world.guest_sends(2, &sized_frame(mac(2), mac(0), ip(2), ip(0), 1514));
            world.run(SECOND * 5);
        }
        (world.sent, world.transcript.finalize())
    };
    assert_eq!(transcript(42), transcript(42));
    assert_ne!(transcript(42), transcript(43));
}

#[test]
fn nodes_that_reach_only_a_relay_talk_through_it() {
    let mut world = World::new(2, 22);
    world.relay_only = true;
    world.introduce_all();
    world.run(3 * SECOND);
    let large = sized_frame(mac(0), mac(1), ip(0), ip(1), 1514);
    world.guest_sends(0, &large);
    world.guest_sends(1, &frame(1, 0));
    world.run(SECOND);
    assert_eq!(world.received(1), [large]);
    assert_eq!(world.received(0), [frame(1, 0)]);
    let path = world.nodes[0].engine.peer_stats(world.now)[0].path.unwrap();
    assert_eq!(
        path.addr,
        PathAddr::Relayed {
            relay: relay(),
            index: 1
        }
    );
}

#[test]
fn a_mapped_port_is_a_way_in_and_stands_once_if_servers_see_us_there_too() {
    let now = Instant::now();
    let mut engine = Engine::new(
        EngineConfig {
            workers: 1,
            seed: [1; 32],
            unix_at_start: Duration::ZERO,
        },
        now,
    );
    let (server, other, outside) = (addr(1), addr(2), addr(9));
    let ways_in = |engine: &mut Engine| {
        std::iter::from_fn(|| engine.poll_event())
            .filter_map(|event| match event {
                Event::CandidatesChanged(list) => Some(list),
                _ => None,
            })
            .last()
    };
    engine.handle_command(Command::SetMappedAddresses(vec![outside]), now);
    assert_eq!(ways_in(&mut engine), Some(vec![Candidate::Mapped(outside)]));

    engine.handle_command(Command::SetStunServers(vec![server]), now);
    let question = engine.poll_transmit().unwrap();
    let answer = server_answer(&question.bytes, outside, server, other).unwrap();
    let report = Report::Datagram {
        from: PathAddr::Direct(server),
        bytes: answer.bytes,
    };
    engine.handle_report(report, now);
    assert_eq!(
        ways_in(&mut engine),
        Some(vec![Candidate::Reflexive(outside)])
    );
}
