//! Guests behind members: addressed by their own node out of its block, known to everybody, and unharmed by what befalls
//! their node or the registrar.

use crate::common::{SECOND, network};
use sim::{
    link::LinkKind,
    member::{MemberId, Station},
    nat::NatKind,
    overlay::Overlay,
};
use std::{collections::BTreeSet, net::Ipv4Addr};

const PUNCHABLE: Option<NatKind> = Some(NatKind::PORT_RESTRICTED);

/// Plugs in guests and waits until all have their addresses.
fn plug(overlay: &mut Overlay, members: &[MemberId]) -> Vec<Station> {
    let guests: Vec<_> = members.iter().map(|&id| overlay.add_guest(id)).collect();
    let took = overlay.run_until(30 * SECOND, |overlay| {
        guests.iter().all(|&guest| overlay.address(guest).is_some())
    });
    assert!(
        took.is_some(),
        "somebody has no address:\n{}",
        overlay.world.trace.tail(40)
    );
    guests
}

/// What they use now.
fn addresses(overlay: &Overlay, stations: &[Station]) -> Vec<Option<Ipv4Addr>> {
    stations
        .iter()
        .map(|&station| overlay.address(station))
        .collect()
}

#[test]
fn guests_get_addresses_of_their_nodes_blocks_and_ping_across_nats() {
    let symmetric = Some(NatKind::SYMMETRIC);
    let (mut overlay, members) = network(20, &[PUNCHABLE, symmetric, symmetric]);
    let (a, b, c) = (members[0], members[1], members[2]);
    let guests = plug(&mut overlay, &[a, a, b, c]);

    let addresses: BTreeSet<_> = overlay
        .stations()
        .into_iter()
        .filter_map(|station| overlay.address(station))
        .collect();
    assert_eq!(addresses.len(), 8, "the owner, three members, four guests");
    let block_of = |guest: Station| overlay.address(guest).unwrap().octets()[3] / 16;
    assert_eq!(block_of(guests[0]), block_of(guests[1]));
    assert_ne!(block_of(guests[0]), block_of(guests[2]));
    assert_ne!(block_of(guests[2]), block_of(guests[3]));
    for from in overlay.stations() {
        for to in overlay.stations() {
            let answer = (from == to).then_some(SECOND);
            let answer = answer.or_else(|| overlay.ping(from, to, 30 * SECOND));
            assert!(answer.is_some(), "{from:?} does not reach {to:?}");
        }
    }
    assert_eq!(overlay.world.plaintext_seen, 0);
}

#[test]
fn guests_keep_their_addresses_while_their_node_is_killed_and_started() {
    let (mut overlay, members) = network(21, &[PUNCHABLE, PUNCHABLE]);
    let guests = plug(&mut overlay, &members);
    let before = addresses(&overlay, &guests);
    assert!(overlay.ping(guests[0], guests[1], 30 * SECOND).is_some());

    for _ in 0..5 {
        overlay.restart(members[1]);
        let again = overlay.ping(guests[0], guests[1], 5 * SECOND);
        assert!(again.is_some(), "{}", overlay.world.trace.tail(40));
    }

    assert_eq!(addresses(&overlay, &guests), before);
}

#[test]
fn without_a_registrar_new_guests_are_served_and_old_ones_renew() {
    let (mut overlay, members) = network(22, &[PUNCHABLE, PUNCHABLE]);
    let (a, b) = (members[0], members[1]);
    let old = plug(&mut overlay, &[a, b]);
    let before = addresses(&overlay, &old);

    overlay.kill(Overlay::OWNER);
    let new = plug(&mut overlay, &[a]);
    overlay.run(3 * 3600 * SECOND); // a guest's lease is two hours long

    let answer = overlay.ping(new[0], old[1], 30 * SECOND);
    assert!(answer.is_some(), "{}", overlay.world.trace.tail(40));
    assert_eq!(addresses(&overlay, &old), before);
}

#[test]
fn a_guest_waits_while_its_node_cannot_get_a_block() {
    let (mut overlay, members) = network(23, &[PUNCHABLE]);
    overlay.kill(Overlay::OWNER);
    let guest = overlay.add_guest(members[0]);

    overlay.run(60 * SECOND);
    assert_eq!(overlay.address(guest), None);

    overlay.start(Overlay::OWNER);
    let served = overlay.run_until(60 * SECOND, |overlay| overlay.address(guest).is_some());
    assert!(served.is_some(), "{}", overlay.world.trace.tail(40));
    let newcomer = overlay.add_member(PUNCHABLE, LinkKind::FAST);
    overlay.start(newcomer);
    let other = plug(&mut overlay, &[newcomer])[0];
    assert!(overlay.ping(other, guest, 30 * SECOND).is_some());
}
