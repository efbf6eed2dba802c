//! Fifty members behind every kind of NAT; and that a seed is a run.

use crate::common::{SECOND, seed};
use sim::{link::LinkKind, member::MemberId, nat::NatKind, overlay::Overlay};
use std::collections::BTreeSet;

const MEMBERS: usize = 50;

/// Every so many members, one has a guest.
const GUEST_EVERY: usize = 10;

/// Every kind of NAT, public addresses, two members on one site, and links of all lengths with a little loss.
fn fifty(seed: u64) -> Overlay {
    let mut overlay = Overlay::new(seed, 3);
    let kinds = [
        None,
        Some(NatKind::FULL_CONE),
        Some(NatKind::ADDRESS_RESTRICTED),
        Some(NatKind::PORT_RESTRICTED),
        Some(NatKind::SYMMETRIC),
    ];
    for n in 1..MEMBERS {
        let link = LinkKind {
            delay: SECOND / 1000 * (2 + n as u32),
            jitter: SECOND / 200,
            ..LinkKind::FAST.lossy(0.005)
        };
        if n % 10 == 9 {
            let neighbour = overlay.member(MemberId(n - 1)).host;
            let nat = overlay.world.nat_of(neighbour);
            overlay.add_member_at(nat, link);
        } else {
            overlay.add_member(kinds[n % kinds.len()], link);
        }
    }
    for id in overlay.members() {
        if id.0 % GUEST_EVERY == 0 {
            overlay.add_guest(id);
        }
        overlay.start(id);
        overlay.run(SECOND / 10);
    }
    overlay
}

#[test]
fn fifty_members_behind_mixed_nats_and_their_guests_all_ping_each_other() {
    let mut overlay = fifty(seed(50));
    let met = |overlay: &Overlay| {
        overlay
            .members()
            .all(|id| overlay.is_ready(id) && overlay.member(id).peers_known() == MEMBERS - 1)
            && (overlay.stations().into_iter()).all(|station| overlay.address(station).is_some())
    };
    assert!(
        overlay.run_until(60 * SECOND, met).is_some(),
        "not everybody met"
    );

    let stations = overlay.stations();
    let mut open: BTreeSet<_> = stations
        .iter()
        .flat_map(|&a| stations.iter().map(move |&b| (a, b)))
        .filter(|(a, b)| a != b)
        .collect();
    for _ in 0..10 {
        let sent: Vec<_> = open
            .iter()
            .filter_map(|&(a, b)| Some((a, b, overlay.send_ping(a, b, 56)?)))
            .collect();
        overlay.run(3 * SECOND);
        for (a, b, sequence) in sent {
            if overlay.answered(a, sequence).is_some() {
                open.remove(&(a, b));
            }
        }
    }

    assert!(
        open.is_empty(),
        "{} pairs never answered: {open:?}",
        open.len()
    );
    assert_eq!(overlay.world.plaintext_seen, 0);
}

#[test]
fn the_same_seed_gives_the_same_run_bit_for_bit() {
    let run = |seed| {
        let mut overlay = fifty(seed);
        overlay.run(5 * SECOND);
        overlay.restart(MemberId(7));
        for station in overlay.stations().into_iter().skip(1) {
            overlay.send_ping(MemberId(0), station, 1472);
        }
        overlay.run(5 * SECOND);
        (overlay.world.trace.count(), overlay.world.trace.digest())
    };

    assert_eq!(run(seed(51)), run(seed(51)));
}
