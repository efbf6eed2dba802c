//! From nothing to the first ping: admission, lease, record, session.

use crate::common::{SECOND, network};
use sim::{link::LinkKind, nat::NatKind};

#[test]
fn a_newcomer_is_admitted_leases_an_address_and_pings_within_seconds() {
    let (mut overlay, members) = network(1, &[Some(NatKind::PORT_RESTRICTED)]);
    let newcomer = overlay.add_member(Some(NatKind::PORT_RESTRICTED), LinkKind::FAST);

    overlay.start(newcomer);
    let ready = overlay.run_until(10 * SECOND, |overlay| overlay.is_ready(newcomer));
    let pinged = overlay.ping(newcomer, members[0], 10 * SECOND);

    assert!(
        ready.is_some() && pinged.is_some(),
        "ready {ready:?}, pinged {pinged:?}"
    );
    assert_ne!(
        overlay.member(newcomer).address(),
        overlay.member(members[0]).address()
    );
    assert_eq!(overlay.member(newcomer).lease().unwrap().generation, 1);
}
