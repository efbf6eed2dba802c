//! Symmetric NATs: what each pair comes to, over many seeds.

use crate::common::{SECOND, network};
use overlay_types::PathKind;
use sim::{
    nat::{NatKind, Ports},
    overlay::Overlay,
};
use std::time::Duration;
use tunnel::path::Passage;

/// Seeds of each story, if `FARLAN_SEEDS` does not ask for more.
const SEEDS: u64 = 40;

fn seeds() -> u64 {
    match std::env::var("FARLAN_SEEDS") {
        Ok(text) => text.parse().expect("FARLAN_SEEDS is a number"),
        Err(_) => SEEDS,
    }
}

/// How long until both members of a pair behind these NATs use a direct path; `None` for a seed where that took longer
/// than `bound`. Counted from when they know each other, or, for a pair that must be `used`, from its first data.
fn direct_after(nats: [NatKind; 2], bound: Duration, used: bool) -> Vec<Option<Duration>> {
    let one = |n: u64| {
        let (mut overlay, members) = network(1000 + n, &nats.map(Some));
        let (a, b) = (members[0], members[1]);
        // An address that nobody has yet when it is asked for is not sought again for a while.
        let reaches = |overlay: &mut Overlay| overlay.ping(a, b, 15 * SECOND).is_some();
        assert!(!used || reaches(&mut overlay), "seed {n}");
        let took = overlay.run_until(bound, |overlay| {
            let is_direct = |from, to| overlay.path(from, to) == Some(PathKind::Direct);
            is_direct(a, b) && is_direct(b, a)
        });
        assert!(reaches(&mut overlay), "seed {n}");
        assert_eq!(overlay.ping_train(a, b, 10, 1472), 10, "seed {n}");
        assert_eq!(overlay.ping_train(b, a, 10, 1472), 10, "seed {n}");
        took
    };
    (0..seeds()).map(one).collect()
}

/// Asserts that so many of a hundred are direct in time.
fn assert_direct(took: &[Option<Duration>], percent: usize) {
    let mut direct: Vec<_> = took.iter().flatten().collect();
    direct.sort_unstable();
    println!(
        "{} of {}, half of them after {:?}, the last after {:?}",
        direct.len(),
        took.len(),
        direct.get(direct.len() / 2),
        direct.last()
    );
    assert!(direct.len() * 100 >= took.len() * percent, "{took:?}");
}

/// Asserts that a pair stays relayed, works, and says why.
fn assert_relayed(nats: [NatKind; 2]) {
    let (mut overlay, members) = network(4, &nats.map(Some));
    let (a, b) = (members[0], members[1]);
    assert!(overlay.ping(a, b, 5 * SECOND).is_some());

    overlay.run(60 * SECOND);

    for (from, to) in [(a, b), (b, a)] {
        assert_eq!(overlay.path(from, to), Some(PathKind::Relay));
        assert_eq!(overlay.passage(from, to), Some(Passage::None));
    }
    assert_eq!(overlay.ping_train(a, b, 20, 1472), 20);
}

const INCREMENTAL: NatKind = NatKind::SYMMETRIC_INCREMENTAL;

/// Other hosts behind the NAT open connections, as in a home in the evening or a small office.
const BUSY: NatKind = NatKind {
    ports: Ports::Incremental { step: 1, others: 5 },
    ..NatKind::SYMMETRIC
};

#[test]
fn a_symmetric_nat_against_an_address_restricted_one_needs_no_tricks() {
    for symmetric in [NatKind::SYMMETRIC, INCREMENTAL] {
        assert_direct(
            &direct_after([symmetric, NatKind::ADDRESS_RESTRICTED], 3 * SECOND, false),
            100,
        );
    }
}

#[test]
fn an_incremental_nat_against_a_port_restricted_one_is_foretold() {
    assert_direct(
        &direct_after([INCREMENTAL, NatKind::PORT_RESTRICTED], 3 * SECOND, false),
        95,
    );
}

#[test]
fn an_incremental_nat_that_others_use_is_foretold() {
    assert_direct(
        &direct_after([NatKind::PORT_RESTRICTED, BUSY], 3 * SECOND, false),
        95,
    );
}

#[test]
fn two_incremental_nats_are_foretold() {
    assert_direct(
        &direct_after([INCREMENTAL, INCREMENTAL], 3 * SECOND, false),
        95,
    );
}

#[test]
fn two_incremental_nats_that_others_use_are_foretold() {
    assert_direct(&direct_after([BUSY, BUSY], 3 * SECOND, false), 95);
}

#[test]
fn a_symmetric_nat_meets_a_port_restricted_one_by_chance() {
    let nats = [NatKind::SYMMETRIC, NatKind::PORT_RESTRICTED];
    assert_direct(&direct_after(nats, 4 * SECOND, true), 90);
}

#[test]
fn a_random_symmetric_nat_is_no_match_for_another_symmetric_one() {
    assert_relayed([NatKind::SYMMETRIC, NatKind::SYMMETRIC]);
    assert_relayed([NatKind::SYMMETRIC, INCREMENTAL]);
}

#[test]
fn a_path_that_was_found_by_chance_is_kept_while_idle_and_found_again_when_the_nat_forgets() {
    let nats = [NatKind::SYMMETRIC, NatKind::PORT_RESTRICTED];
    let (mut overlay, members) = network(5, &nats.map(Some));
    let (a, b) = (members[0], members[1]);
    let is_direct = |overlay: &Overlay| {
        overlay.path(a, b) == Some(PathKind::Direct) && overlay.path(b, a) == Some(PathKind::Direct)
    };
    let direct_while_pinging = |overlay: &mut Overlay| {
        (0..60).any(|_| {
            overlay.ping_train(a, b, 1, 56);
            is_direct(overlay)
        })
    };
    let further_sockets = |overlay: &Overlay| {
        let node = overlay.world.node(overlay.member(a).host);
        node.expect("it runs").further_sockets()
    };
    assert!(direct_while_pinging(&mut overlay));

    overlay.run(600 * SECOND);
    assert!(is_direct(&overlay));
    assert_eq!(overlay.ping_train(a, b, 20, 1472), 20);
    assert!((1..=2).contains(&further_sockets(&overlay)));

    let host = overlay.member(a).host;
    let nat = overlay.world.nat_of(host).expect("it has one");
    overlay.world.rebind(nat);
    assert!(overlay.ping(a, b, 10 * SECOND).is_some(), "over the relay");
    assert!(direct_while_pinging(&mut overlay));

    overlay.kill(b);
    overlay.run(600 * SECOND);
    assert_eq!(further_sockets(&overlay), 0);
}
