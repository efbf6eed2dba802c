//! Random walks through what may befall a small network; after every step, what must always hold is checked.

use crate::common::SECOND;
use dht::lease::LeaseCert;
use rand::Rng;
use sim::{link::LinkKind, member::MemberId, nat::NatKind, overlay::Overlay, world::Role};
use std::collections::BTreeMap;

const STEPS: usize = 10;
const MEMBERS_MAX: usize = 8;
const GUESTS_MAX: usize = 3;

/// How long after the last fault two members may need to find each other: longer than any retry in the control plane,
/// the relays' renewal and a path's distress together.
const RECOVERY: u32 = 90;

const KINDS: [Option<NatKind>; 5] = [
    None,
    Some(NatKind::FULL_CONE),
    Some(NatKind::ADDRESS_RESTRICTED),
    Some(NatKind::PORT_RESTRICTED),
    Some(NatKind::SYMMETRIC),
];

fn walk(seed: u64) {
    let mut overlay = Overlay::new(seed, 2);
    for id in overlay.members() {
        overlay.start(id);
    }
    for n in 0..STEPS {
        let what = step(&mut overlay);
        assert_always(&overlay, seed, n, &what);
        assert_answers(&mut overlay, seed, n, &what);
    }
}

/// Something happens to somebody: what it was.
fn step(overlay: &mut Overlay) -> String {
    let count = overlay.members().count();
    let id = MemberId(overlay.world.rng.random_range(0..count));
    let host = overlay.member(id).host;
    let seconds = overlay.world.rng.random_range(1..40);
    match overlay.world.rng.random_range(0..8) {
        0 | 1 if count < MEMBERS_MAX => {
            let kind = KINDS[overlay.world.rng.random_range(0..KINDS.len())];
            let loss = overlay.world.rng.random_range(0.0..0.03);
            let newcomer = overlay.add_member(kind, LinkKind::FAST.lossy(loss));
            overlay.start(newcomer);
            format!("member {} joins behind {kind:?}", newcomer.0)
        }
        2 => {
            overlay.world.set_link_up(host, false);
            overlay.run(seconds * SECOND);
            overlay.world.set_link_up(host, true);
            format!("member {} is cut off for {seconds} s", id.0)
        }
        3 => {
            if let Some(nat) = overlay.world.nat_of(host) {
                overlay.world.rebind(nat);
            }
            format!("the NAT of member {} forgets", id.0)
        }
        4 => {
            overlay.kill(id);
            overlay.run(seconds * SECOND);
            overlay.start(id);
            format!("member {} restarts after {seconds} s", id.0)
        }
        5 => {
            let which = overlay.world.rng.random_range(0..2);
            let lost = overlay.infrastructure()[which];
            overlay.world.set_role(lost, Role::Down);
            overlay.run(seconds * SECOND);
            overlay.start_infrastructure(lost);
            format!("{lost:?} is lost for {seconds} s")
        }
        6 if overlay.member(id).guest_ports.len() < GUESTS_MAX => {
            overlay.add_guest(id);
            format!("a guest is plugged in at member {}", id.0)
        }
        _ => {
            overlay.run(seconds * SECOND);
            format!("nothing for {seconds} s")
        }
    }
}

/// No address is held twice, by what the stations think and by what was certified; nothing shows on the wire.
fn assert_always(overlay: &Overlay, seed: u64, n: usize, what: &str) {
    let mut holders = BTreeMap::new();
    for station in overlay.stations() {
        if let Some(address) = overlay.address(station) {
            let other = holders.insert(address, station);
            assert_eq!(
                other, None,
                "seed {seed}, step {n}, {what}: {address} is held twice"
            );
        }
    }
    let overlaps = |a: &LeaseCert, b: &LeaseCert| {
        a.subject.overlaps(b.subject) && a.issued < b.expires && b.issued < a.expires
    };
    for (i, a) in overlay.certificates.iter().enumerate() {
        for b in &overlay.certificates[..i] {
            assert!(
                !overlaps(a, b) || a.holder == b.holder,
                "seed {seed}, step {n}, {what}: certified twice:\n{a:#?}\n{b:#?}"
            );
        }
    }
    assert_eq!(
        overlay.world.plaintext_seen, 0,
        "seed {seed}, step {n}, {what}: plaintext on the wire"
    );
}

/// Everything works again, so everybody gets an address and two stations chosen at random find each other.
fn assert_answers(overlay: &mut Overlay, seed: u64, n: usize, what: &str) {
    let stations = overlay.stations();
    let is_ready = |overlay: &Overlay| {
        stations
            .iter()
            .all(|&station| overlay.address(station).is_some())
    };
    assert!(
        overlay.run_until(RECOVERY * SECOND, is_ready).is_some(),
        "seed {seed}, step {n}, {what}: somebody has no address\n{}",
        overlay.world.trace.tail(60)
    );
    let count = stations.len();
    if count < 2 {
        return;
    }
    let a = overlay.world.rng.random_range(0..count);
    let b = (a + overlay.world.rng.random_range(1..count)) % count;
    let (a, b) = (stations[a], stations[b]);
    let answer = overlay.ping(a, b, RECOVERY * SECOND);
    assert!(
        answer.is_some(),
        "seed {seed}, step {n}, {what}: {b:?} does not answer {a:?}\n{}",
        overlay.world.trace.tail(60)
    );
}

/// A quarter of the hundred seeds, so that the quarters run side by side; or `FARLAN_SEED` alone.
fn explore(quarter: u64) {
    match std::env::var("FARLAN_SEED") {
        Ok(text) => walk(text.parse().expect("FARLAN_SEED is a number")),
        Err(_) => (quarter * 25..(quarter + 1) * 25).for_each(walk),
    }
}

#[test]
fn whatever_befalls_a_network_its_promises_hold_seeds_0_to_24() {
    explore(0);
}

#[test]
fn whatever_befalls_a_network_its_promises_hold_seeds_25_to_49() {
    explore(1);
}

#[test]
fn whatever_befalls_a_network_its_promises_hold_seeds_50_to_74() {
    explore(2);
}

#[test]
fn whatever_befalls_a_network_its_promises_hold_seeds_75_to_99() {
    explore(3);
}
