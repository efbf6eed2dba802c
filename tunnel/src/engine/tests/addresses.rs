//! What goes to addresses where a peer only says that it is, and how it is found there all the same.

use super::world::*;
use crate::{
    engine::Command, session::SessionSlot, switch::testing::sized_frame, wire::datagram::DataHeader,
};
use overlay_types::{Candidate, PathAddr};
use std::net::SocketAddr;
use zerocopy::IntoBytes;

const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);

fn victim(number: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number], 4000))
}

/// Tells a node of another, by a record with these ways in.
fn tell(world: &mut World, node: usize, other: usize, candidates: Vec<Candidate>, paid: u64) {
    let (peer, keys, eager) = (peer_id(other), public(other), world.eager);
    let upsert = Command::UpsertPeer {
        network: NET,
        peer,
        keys,
        candidates,
        eager,
        paid,
    };
    world.command(node, upsert);
    world.bind_all(node);
}

/// Bytes that left for these addresses, headers included.
fn bytes_to(world: &World, is_it: impl Fn(&SocketAddr) -> bool) -> u64 {
    let recorded = world.recorded.as_ref().expect("it is recorded");
    let chosen = recorded.iter().filter(|(_, to, _)| is_it(to));
    chosen.map(|(_, _, bytes)| bytes.len() as u64 + 28).sum()
}

#[test]
fn addresses_in_a_record_get_no_more_than_the_record_had() {
    for is_relayed in [false, true] {
        let mut world = World::new(1, 31);
        world.recorded = Some(Vec::new());
        let listed = (1..=12).map(|number| match is_relayed {
            true => Candidate::Relayed {
                via: peer_id(50 + usize::from(number)),
                relay: victim(number),
                index: 1,
            },
            false => Candidate::Reflexive(victim(number)),
        });
        tell(&mut world, 0, 1, listed.collect(), RECORD_BYTES);
        for _ in 0..60 {
            world.guest_sends(0, &frame(0, 1)); // a guest that goes on asking
            world.run(MINUTE);
        }
        let suffered = bytes_to(&world, |_| true);
        assert!(suffered > RECORD_BYTES / 2, "it was tried: {suffered}");
        assert!(suffered <= RECORD_BYTES, "{suffered} bytes");
    }
}

#[test]
fn the_same_record_said_again_pays_for_nothing() {
    let mut world = World::new(1, 32);
    world.recorded = Some(Vec::new());
    tell(
        &mut world,
        0,
        1,
        vec![Candidate::Host(victim(1))],
        RECORD_BYTES,
    );
    for _ in 0..60 {
        world.run(MINUTE);
        tell(&mut world, 0, 1, vec![Candidate::Host(victim(1))], 0);
    }
    assert!(bytes_to(&world, |_| true) <= RECORD_BYTES);
}

#[test]
fn a_peer_behind_the_last_of_its_addresses_is_found_there() {
    let mut world = World::new(2, 33);
    let mut listed: Vec<_> = (1..=6).map(|n| Candidate::Host(victim(n))).collect();
    listed.push(Candidate::Host(addr(1)));
    tell(&mut world, 0, 1, listed, RECORD_BYTES);
    tell(&mut world, 1, 0, Vec::new(), RECORD_BYTES);
    world.run(SECOND / 2);
    assert!(world.is_up(0, 1) && world.is_up(1, 0));
}

#[test]
fn a_peer_that_was_away_until_all_was_spent_is_found_once_it_says_a_word_or_calls() {
    for calls in [false, true] {
        let mut world = World::new(2, 34);
        world.cut_off(1);
        tell(
            &mut world,
            0,
            1,
            vec![Candidate::Host(addr(1))],
            RECORD_BYTES,
        );
        tell(
            &mut world,
            1,
            0,
            vec![Candidate::Host(addr(0))],
            RECORD_BYTES,
        );
        world.run(120 * MINUTE);
        world.apart.clear();
        let (node, other) = if calls { (1, 0) } else { (0, 1) };
        tell(
            &mut world,
            node,
            other,
            vec![Candidate::Host(addr(other))],
            RECORD_BYTES,
        );
        world.run(MINUTE + MINUTE / 2); // who is away is called once in so long
        assert!(world.is_up(0, 1) && world.is_up(1, 0));
    }
}

#[test]
fn a_peer_that_was_met_before_is_found_again_without_a_word() {
    let mut world = World::met(2, 35);
    world.cut_off(1);
    world.run(120 * MINUTE);
    assert!(!world.is_up(0, 1) && !world.is_up(1, 0));
    world.apart.clear();
    world.run(MINUTE + MINUTE / 2);
    assert!(world.is_up(0, 1) && world.is_up(1, 0));
}

/// Anybody can send something in a peer's name that looks like data of a session that was lost.
#[test]
fn what_seems_to_come_from_a_peer_brings_that_peer_no_more_bytes_than_it_had() {
    let mut world = World::new(1, 36);
    world.eager = false;
    for other in 1..=4 {
        tell(
            &mut world,
            0,
            other,
            vec![Candidate::Host(victim(1))],
            RECORD_BYTES,
        ); // all at one address
    }
    world.recorded = Some(Vec::new());
    let header = DataHeader::new(SessionSlot::from_low_bits(7), 0, 0, 0);
    let datagram = [header.as_bytes(), &[0; 16]].concat();
    let mut sent = 0;
    for _ in 0..200 {
        world.datagram(0, victim(1), datagram.clone());
        sent += datagram.len() as u64 + 28;
        world.run(SECOND / 10);
        let suffered = bytes_to(&world, |_| true);
        assert!(suffered <= sent, "{suffered} bytes for {sent}");
    }
    assert!(bytes_to(&world, |_| true) > 0);
}

#[test]
fn an_answer_from_elsewhere_or_of_somebody_else_proves_nothing() {
    let mut world = World::new(2, 37);
    world.recorded = Some(Vec::new());
    // The address is another member's, who does not answer for the one that is asked for.
    tell(
        &mut world,
        0,
        2,
        vec![Candidate::Host(addr(1))],
        RECORD_BYTES,
    );
    world.run(MINUTE);
    let (asked, answered) = {
        let recorded = world.recorded.as_ref().unwrap();
        let is = |kind: u8| {
            recorded
                .iter()
                .filter(|(.., bytes)| bytes[0] == kind)
                .count()
        };
        (is(0x85), is(0x86))
    };
    assert!(asked > 3 && answered == 0, "{asked} {answered}");
    assert!(bytes_to(&world, |to| *to == addr(1)) <= RECORD_BYTES);
    let way = PathAddr::Direct(addr(1));
    assert!(
        !world.nodes[0]
            .engine
            .peer_stats(world.now)
            .iter()
            .any(|peer| { peer.path.is_some_and(|view| view.addr == way) })
    );
}

/// What a peer sent in its sessions pays for calling it everywhere at once when they are lost.
#[test]
fn a_peer_that_sent_much_is_called_at_all_its_addresses_at_once() {
    let mut world = World::met(2, 38);
    for _ in 0..40 {
        world.guest_sends(1, &sized_frame(mac(1), mac(0), ip(1), ip(0), 1400));
        world.run(SECOND / 10);
    }
    world.cut_off(1);
    world.run(400 * SECOND); // both let go
    assert!(!world.is_up(0, 1));
    let mut listed: Vec<_> = (1..=3).map(|n| Candidate::Host(victim(n))).collect();
    listed.push(Candidate::Host(addr(1)));
    world.recorded = Some(Vec::new());
    tell(&mut world, 0, 1, listed, 0);
    world.run(SECOND / 10);
    let called = bytes_to(&world, |to| *to == victim(3));
    assert!(called > 1216, "{called} bytes");
}
