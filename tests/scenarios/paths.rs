//! Which way frames go: punched, relayed, and back again after something broke.

use crate::common::{SECOND, assert_direct, direct_after, network};
use overlay_types::PathKind;
use sim::nat::NatKind;

#[test]
fn two_members_behind_port_restricted_nats_begin_over_a_relay_and_go_direct() {
    let nat = Some(NatKind::PORT_RESTRICTED);
    let (mut overlay, members) = network(2, &[nat, nat]);
    let (a, b) = (members[0], members[1]);

    let first = overlay.ping(a, b, 5 * SECOND);
    let direct = overlay.run_until(20 * SECOND, |overlay| {
        overlay.path(a, b) == Some(PathKind::Direct) && overlay.path(b, a) == Some(PathKind::Direct)
    });

    assert!(
        first.is_some() && direct.is_some(),
        "first answer {first:?}, direct {direct:?}"
    );
    assert_eq!(overlay.ping_train(a, b, 20, 1472), 20);
}

#[test]
fn two_members_behind_symmetric_nats_stay_on_a_relay() {
    let nat = Some(NatKind::SYMMETRIC);
    let (mut overlay, members) = network(3, &[nat, nat]);
    let (a, b) = (members[0], members[1]);

    assert!(overlay.ping(a, b, 5 * SECOND).is_some());
    overlay.run(60 * SECOND);

    assert_eq!(
        (overlay.path(a, b), overlay.path(b, a)),
        (Some(PathKind::Relay), Some(PathKind::Relay))
    );
    assert_eq!(overlay.ping_train(a, b, 20, 1472), 20);
}

#[test]
fn two_members_behind_port_restricted_nats_are_direct_within_three_seconds_whatever_the_seed() {
    let nats = [NatKind::PORT_RESTRICTED, NatKind::PORT_RESTRICTED];
    assert_direct(&direct_after(nats, 3 * SECOND, false), 100);
}
