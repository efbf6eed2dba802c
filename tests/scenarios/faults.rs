//! What breaks, and how soon frames flow again.

use crate::common::{SECOND, network, start_all};
use overlay_types::PathKind;
use sim::{link::LinkKind, nat::NatKind, overlay::Overlay, world::Role};
use std::collections::BTreeSet;
use tunnel::wire::datagram::{
    FROM_PLACE, PATH_CHALLENGE, PATH_RESPONSE, RELAY_HEADER_BYTES, TO_PLACE,
};

const PUNCHABLE: Option<NatKind> = Some(NatKind::PORT_RESTRICTED);

#[test]
fn after_its_nat_forgot_every_mapping_a_member_is_pinged_again() {
    let (mut overlay, members) = network(10, &[PUNCHABLE, PUNCHABLE]);
    let (a, b) = (members[0], members[1]);
    let is_direct = |overlay: &Overlay| overlay.path(a, b) == Some(PathKind::Direct);
    assert!(overlay.run_until(20 * SECOND, is_direct).is_some());
    let nat = overlay.world.nat_of(overlay.member(b).host).unwrap();

    overlay.world.rebind(nat);
    let again = overlay.ping(a, b, 30 * SECOND);
    let direct = overlay.run_until(60 * SECOND, is_direct);

    assert!(
        again.is_some() && direct.is_some(),
        "answered after {again:?}, direct after {direct:?}"
    );
    assert_eq!(overlay.ping_train(a, b, 20, 56), 20);
}

#[test]
fn a_nat_that_forgets_after_thirty_seconds_does_not_part_idle_members() {
    let hasty = NatKind {
        timeout: 30 * SECOND,
        ..NatKind::PORT_RESTRICTED
    };
    let (mut overlay, members) = network(11, &[Some(hasty), Some(hasty)]);
    let (a, b) = (members[0], members[1]);
    assert!(overlay.ping(a, b, 5 * SECOND).is_some());

    overlay.run(600 * SECOND);

    let answer = overlay.ping(b, a, 5 * SECOND);
    assert!(
        answer.is_some_and(|took| took < SECOND),
        "answered after {answer:?}"
    );
}

#[test]
fn a_member_that_was_killed_has_its_old_address_and_is_pinged_within_seconds() {
    let (mut overlay, members) = network(12, &[PUNCHABLE, PUNCHABLE]);
    let (a, b) = (members[0], members[1]);
    assert!(overlay.ping(a, b, 5 * SECOND).is_some());
    let address = overlay.member(b).address();

    overlay.restart(b);
    let again = overlay.ping(a, b, 5 * SECOND);

    assert_eq!(overlay.member(b).address(), address);
    assert!(
        again.is_some(),
        "no answer:\n{}",
        overlay.world.trace.tail(40)
    );
}

#[test]
fn when_the_relay_in_use_is_lost_the_other_takes_over() {
    let symmetric = Some(NatKind::SYMMETRIC);
    let (mut overlay, members) = network(13, &[symmetric, symmetric]);
    let (a, b) = (members[0], members[1]);
    assert!(overlay.ping(a, b, 5 * SECOND).is_some());

    for lost in overlay.infrastructure().to_vec() {
        overlay.world.set_role(lost, Role::Down);
        let again = overlay.ping(a, b, 30 * SECOND);
        assert!(again.is_some(), "no answer without {lost:?}");
        overlay.start_infrastructure(lost);
        overlay.run(60 * SECOND); // long enough for places at the new relay
    }

    assert_eq!(overlay.ping_train(a, b, 10, 56), 10);
}

#[test]
fn sessions_are_rekeyed_under_loss_and_pings_go_on() {
    let (mut overlay, members) = network(14, &[PUNCHABLE, PUNCHABLE]);
    let (a, b) = (members[0], members[1]);
    assert!(overlay.ping(a, b, 5 * SECOND).is_some());
    for id in [a, b] {
        let host = overlay.member(id).host;
        overlay.world.set_link(host, LinkKind::FAST.lossy(0.2));
    }

    let (mut rekeys, mut age) = (0, overlay.session_age(a, b));
    let (mut sent, mut answered, mut silence, mut silence_max) = (0, 0, 0, 0);
    for _ in 0..600 {
        let is_answered = overlay.ping_train(a, b, 1, 56) == 1;
        let next = overlay.session_age(a, b);
        rekeys += u32::from(next < age);
        age = next;
        sent += 1;
        answered += u32::from(is_answered);
        silence = if is_answered { 0 } else { silence + 1 };
        silence_max = silence_max.max(silence);
    }

    assert!(rekeys >= 3, "rekeyed only {rekeys} times");
    // Each ping crosses four lossy links (0.8⁴ = 41 %).
    assert!(answered > sent / 3, "{answered} of {sent} answered");
    assert!(silence_max < 20, "silent for {silence_max} pings in a row");
}

#[test]
fn a_partition_parts_its_sides_only_and_heals() {
    let (mut overlay, members) = network(15, &[PUNCHABLE, PUNCHABLE, PUNCHABLE, PUNCHABLE]);
    let (here, there) = ([members[0], members[1]], [members[2], members[3]]);
    for a in members.clone() {
        for b in members.clone() {
            assert!(a == b || overlay.ping(a, b, 10 * SECOND).is_some());
        }
    }
    let mut island: Vec<_> = there.iter().map(|&id| overlay.member(id).host).collect();
    island.push(overlay.infrastructure()[1]);
    let newcomer = overlay.add_member(PUNCHABLE, LinkKind::FAST);
    island.push(overlay.member(newcomer).host);

    overlay.set_island(island.into_iter().collect());
    overlay.start(newcomer);
    overlay.run(60 * SECOND);

    assert!(overlay.ping(here[0], here[1], 5 * SECOND).is_some());
    assert!(overlay.ping(there[0], there[1], 5 * SECOND).is_some());
    assert!(overlay.ping(here[0], there[0], 5 * SECOND).is_none());
    assert!(
        !overlay.is_ready(newcomer),
        "a side without the registrar allocates nothing"
    );

    overlay.set_island(BTreeSet::new());
    let healed = overlay.ping(here[0], there[0], 30 * SECOND);
    let joined = overlay.run_until(30 * SECOND, |overlay| overlay.is_ready(newcomer));
    assert!(
        healed.is_some() && joined.is_some(),
        "healed {healed:?}, joined {joined:?}"
    );
}

#[test]
fn an_eavesdropper_sees_no_plaintext_and_a_stranger_gets_no_answer() {
    let mut overlay = Overlay::new(crate::common::seed(16), 2);
    let (a, b) = (
        overlay.add_member(None, LinkKind::FAST),
        overlay.add_member(None, LinkKind::FAST),
    );
    start_all(&mut overlay);
    let stranger = overlay.world.add_host(None, LinkKind::FAST);
    overlay.world.set_role(stranger, Role::Stranger(Vec::new()));
    overlay.world.overheard = Some(Vec::new());
    assert_eq!(overlay.ping_train(a, b, 20, 1472), 20);
    overlay.restart(b); // handshakes are overheard as well
    assert!(overlay.ping(a, b, 10 * SECOND).is_some());
    let overheard = overlay.world.overheard.take().unwrap();
    let members: Vec<_> = overlay
        .members()
        .map(|id| overlay.world.address(overlay.member(id).host))
        .collect();
    let own: Vec<_> = overheard
        .into_iter()
        .filter(|(to, _)| members.contains(to))
        .collect();

    for (to, mut bytes) in own.clone() {
        overlay.world.send_datagram(stranger, to, bytes.clone());
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        overlay.world.send_datagram(stranger, to, bytes);
    }
    overlay.run(10 * SECOND);

    assert!(
        own.len() > 40,
        "only {} datagrams were overheard",
        own.len()
    );
    assert_eq!(overlay.world.plaintext_seen, 0);
    // Whether a member receives somewhere may be asked with an overheard question, which may have come by a relay: the answer
    // says nothing else, in as many bytes.
    let kind = |bytes: &[u8]| match bytes[0] {
        TO_PLACE | FROM_PLACE => bytes[RELAY_HEADER_BYTES],
        kind => kind,
    };
    let questions = own
        .iter()
        .filter(|(_, bytes)| kind(bytes) == PATH_CHALLENGE);
    let answers = overlay.world.heard_by(stranger);
    assert!(
        answers.len() <= questions.count()
            && answers.iter().all(|bytes| kind(bytes) == PATH_RESPONSE),
        "a stranger was answered"
    );
    assert_eq!(overlay.ping_train(a, b, 5, 56), 5);
}
