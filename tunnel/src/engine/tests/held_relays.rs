//! Which relays a node holds, by what it knows of members and fabric nodes.

use super::world::*;
use crate::{
    engine::relays::{MemberView, Relays},
    path::RelayOffer,
    relay::{RelayClient, RelayGrant, RelayLimits, RelayServer, Verdict},
};
use overlay_types::{Candidate, PathAddr, PeerId};
use std::time::{Duration, Instant};

/// Until members are asked.
const SOON: Duration = Duration::from_secs(4);
/// Until what is not needed any more is given up.
const LATER: Duration = Duration::from_secs(70);

const fn fabric(n: u8) -> PeerId {
    PeerId([200 + n; 32])
}

/// A member that relays for everybody, reached directly.
fn willing(node: usize) -> MemberView {
    MemberView {
        key: (NET, peer_id(node)),
        offer: RelayOffer::Open,
        path: Some((PathAddr::Direct(addr(node)), Duration::from_millis(20))),
        needs: Default::default(),
        through: None,
    }
}

/// A member that is reached through relays only, and has places at these by its own word and by its record.
fn needy(node: usize, told: &[PeerId], recorded: &[PeerId]) -> MemberView {
    let through = PathAddr::Relayed {
        relay: addr(90),
        index: 1,
    };
    MemberView {
        offer: RelayOffer::None,
        path: Some((through, Duration::from_millis(40))),
        needs: [told.to_vec(), recorded.to_vec()],
        ..willing(node)
    }
}

/// A node that is bound at so many fabric nodes.
fn bound_at(count: u8, now: Instant) -> Relays {
    bound_and_served(count, now).0
}

fn bound_and_served(count: u8, now: Instant) -> (Relays, Vec<RelayServer>) {
    let mut relays = Relays::new(RelayClient::new(1, now));
    let mut servers: Vec<_> = (0..count)
        .map(|n| RelayServer::new([n; 32], RelayLimits::default(), now))
        .collect();
    let at = |n: u8| addr(90 + usize::from(n));
    let grants = (0..count).zip(&mut servers).map(|(n, server)| {
        let (index, key) = server.allocate(peer_id(0), now).unwrap();
        RelayGrant {
            via: fabric(n),
            relay: at(n),
            index,
            key,
            carrier: None,
            through: None,
            is_member: false,
        }
    });
    relays.set_fabric(grants.collect(), now);
    serve(&mut relays, &mut servers, &[], now);
    assert_eq!(relays.client.bound().len(), usize::from(count));
    (relays, servers)
}

const fn via(candidate: &Candidate) -> Option<PeerId> {
    match candidate {
        Candidate::Relayed { via, .. } => Some(*via),
        _ => None,
    }
}

/// Every relay answers, but for some.
fn serve(relays: &mut Relays, servers: &mut [RelayServer], mute: &[PeerId], now: Instant) {
    while let Some((to, mut bytes)) = relays.client.poll_transmit() {
        let is_asked = |n: &usize| PathAddr::Direct(addr(90 + n)) == to;
        let n = (0..servers.len()).find(is_asked).unwrap();
        let from = PathAddr::Direct(addr(0));
        let verdict = servers[n].handle_datagram(from, &mut bytes, now);
        if let Verdict::Reply(reply) = verdict
            && !mute.contains(&fabric(n as u8))
        {
            relays.client.handle_datagram(to, &reply, now);
        }
    }
}

/// Who is asked for a place after two looks, of which the second comes later.
fn asked(relays: &mut Relays, members: &[MemberView], now: Instant) -> Vec<PeerId> {
    relays.look(members, now);
    let look = relays.look(members, now + SOON);
    look.asks.into_iter().map(|(_, peer)| peer).collect()
}

#[test]
fn a_relay_that_is_listed_twice_is_one_relay_all_the_same() {
    let now = Instant::now();
    let mut relays = Relays::new(RelayClient::new(1, now));
    let [one, two] = [1, 2].map(peer_id);
    relays.look(&[needy(3, &[one], &[one]), willing(1)], now);
    assert!(relays.uses(one));

    let both = needy(3, &[one, two], &[one, two]);
    relays.look(&[both, willing(1), willing(2)], now);

    assert!(relays.uses(one) && relays.uses(two));
}

#[test]
fn relays_of_the_record_are_shared_too_for_what_the_peer_said_may_be_old() {
    let now = Instant::now();
    let mut relays = bound_at(2, now);
    let fabrics = [fabric(0), fabric(1)];
    let lists = needy(3, &fabrics, &[1, 2].map(peer_id));
    relays.look(&[lists, willing(1), willing(2)], now);
    assert!([1, 2].iter().all(|node| relays.uses(peer_id(*node))));
}

#[test]
fn fabric_relays_are_sought_also_while_as_many_members_as_may_be_give_places() {
    let now = Instant::now();
    let mut relays = bound_at(2, now);
    let givers = [1, 2, 3, 4].map(peer_id);
    let mut members = vec![needy(5, &givers[..2], &[]), needy(6, &givers[2..], &[])];
    members.extend((1..=4).map(willing));
    assert_eq!(relays.look(&members, now).seeks, []);
    assert!(givers.iter().all(|via| relays.uses(*via)));

    let away = MemberView {
        path: None,
        ..needy(7, &[], &[fabric(5), fabric(6), peer_id(8)])
    };
    members.extend([away, willing(8)]);

    let seeks = relays.look(&members, now + SOON).seeks;
    assert_eq!(seeks, [fabric(5), fabric(6)]);
    assert!(!relays.uses(peer_id(8)), "members' places are few");
}

#[test]
fn a_relay_that_does_not_answer_any_more_is_not_shared() {
    let now = Instant::now();
    let mut relays = bound_at(3, now);
    let all = [0, 1, 2, 5].map(fabric);
    let members = [needy(3, &[], &all)];
    assert_eq!(relays.look(&members, now).seeks, []);
    relays.client.refresh(now);
    let silent_at = now + Duration::from_millis(300);
    relays.client.handle_timeout(silent_at);
    assert!(relays.client.bound().iter().all(|place| place.is_silent));

    assert_eq!(relays.look(&members, silent_at).seeks, [fabric(5)]);
}

#[test]
fn a_place_that_is_neither_told_nor_of_use_makes_room_for_one_that_is_wanted() {
    let now = Instant::now();
    let mut relays = bound_at(8, now);
    let shares = [4, 5].map(fabric);
    relays.look(&[needy(3, &[], &shares)], now);
    let all = [4, 5, 9].map(fabric);
    let look = relays.look(&[needy(3, &[], &all)], now + SOON);

    let listed: Vec<PeerId> = relays.candidates().iter().filter_map(via).collect();
    assert_eq!((look.seeks, listed.len()), (vec![fabric(9)], 4));
    let mut kept = listed;
    kept.extend(shares);
    assert!(!look.idle.is_empty() && look.idle.iter().all(|via| !kept.contains(via)));

    let nobody = relays.look(&[], now + LATER);
    assert_eq!(nobody.idle.len(), 4, "all that are not told");
}

#[test]
fn relays_that_do_not_answer_any_more_are_told_only_where_there_are_no_others() {
    let now = Instant::now();
    let told = |relays: &Relays| {
        relays
            .candidates()
            .iter()
            .filter_map(via)
            .collect::<Vec<_>>()
    };
    for count in [4, 8] {
        let (mut relays, mut servers) = bound_and_served(count, now);
        relays.look(&[], now);
        let before = told(&relays);
        relays.client.refresh(now);
        serve(&mut relays, &mut servers, &before[..2], now);
        let late = now + Duration::from_millis(300);
        relays.client.handle_timeout(late);

        relays.look(&[], late);

        let after = told(&relays);
        let still = before[..2].iter().filter(|via| after.contains(via));
        assert_eq!(
            (after.len(), still.count()),
            (4, if count == 4 { 2 } else { 0 })
        );
    }
}

#[test]
fn a_member_is_held_beside_fabric_nodes_as_long_as_relays_are_needed() {
    let now = Instant::now();
    let mut relays = bound_at(2, now);
    let fabrics = [fabric(0), fabric(1)];
    let members = [needy(3, &fabrics, &fabrics), willing(1), willing(2)];

    let asked = asked(&mut relays, &members, now);

    let [held] = asked[..] else {
        panic!("one is enough: {asked:?}")
    };
    let place = Some((7, [7; 32]));
    relays.handle_place((NET, held), place, now + SOON);
    relays.look(&members, now + SOON);
    let listed = relays.candidates().into_iter().map(|way| match way {
        Candidate::Relayed { via, .. } => via,
        other => panic!("{other:?}"),
    });
    assert!(
        listed.eq(fabrics),
        "it is listed once it is bound, and last"
    );

    relays.look(&members[1..], now + SOON);
    assert!(relays.uses(held), "the need may come back");
    relays.look(&members[1..], now + LATER);
    assert!(!relays.uses(held));
}

#[test]
fn the_reserve_is_had_where_the_peer_has_its_own() {
    let now = Instant::now();
    let fabrics = [fabric(0), fabric(1)];
    for theirs in [1, 2] {
        let mut relays = bound_at(2, now);
        let list = [&fabrics[..], &[peer_id(theirs)]].concat();
        let members = [needy(3, &list, &list), willing(1), willing(2)];
        relays.look(&members, now);
        relays.look(&members, now + SOON);
        let held = [1, 2].map(|node| relays.uses(peer_id(node)));
        assert_eq!(held, [theirs == 1, theirs == 2]);
    }
}

#[test]
fn no_member_is_held_where_nobody_needs_a_relay_or_nobody_gives_one() {
    let now = Instant::now();
    let fabrics = [fabric(0), fabric(1)];
    let mut relays = bound_at(2, now);
    assert!(asked(&mut relays, &[willing(1), willing(2)], now).is_empty());
    let mut relays = bound_at(2, now);
    let unwilling = MemberView {
        offer: RelayOffer::None,
        ..willing(1)
    };
    let members = [needy(3, &fabrics, &fabrics), unwilling];
    assert!(asked(&mut relays, &members, now).is_empty());
}

#[test]
fn a_relay_that_carried_until_the_direct_path_was_found_is_no_need() {
    let now = Instant::now();
    let mut relays = bound_at(2, now);
    let fabrics = [fabric(0), fabric(1)];
    relays.look(&[needy(3, &fabrics, &fabrics), willing(1)], now);
    relays.look(&[willing(3), willing(1)], now + Duration::from_millis(300));
    let look = relays.look(&[willing(3), willing(1)], now + SOON);
    assert!(look.asks.is_empty() && !relays.uses(peer_id(1)));
}

#[test]
fn a_member_that_a_path_goes_through_is_kept_when_nearer_ones_are_found() {
    let now = Instant::now();
    let mut relays = bound_at(0, now);
    let held = [1, 2].map(peer_id);
    let talking = MemberView {
        through: Some(held[0]),
        ..needy(5, &[fabric(0)], &[])
    };
    let mut members = vec![talking, willing(1), willing(2)];
    let place = Some((7, [7; 32]));
    asked(&mut relays, &members, now);
    for via in held {
        relays.handle_place((NET, via), place, now + SOON);
    }
    for node in [3, 4] {
        let near = Some((PathAddr::Direct(addr(node)), Duration::from_millis(1)));
        members.push(MemberView {
            path: near,
            ..willing(node)
        });
    }

    for seconds in 0..200 {
        let now = now + SOON + Duration::from_secs(seconds);
        for of in relays.look(&members, now).asks {
            relays.handle_place(of, place, now);
        }
    }

    assert!([3, 4].iter().all(|node| relays.uses(peer_id(*node))));
    assert!(relays.uses(held[0]), "a path goes through it");
    let later = now + SOON + Duration::from_secs(200) + LATER;
    relays.look(&members[1..], later);
    assert!(!held.iter().any(|via| relays.uses(*via)));
}
