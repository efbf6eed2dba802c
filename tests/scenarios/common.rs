//! What the stories share: seeds, and networks that are up.

use overlay_types::PathKind;
use sim::{link::LinkKind, member::MemberId, nat::NatKind, overlay::Overlay};
use std::time::Duration;

/// For a story that must not take longer, whatever is lost on the way.
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// The seed of a story: `FARLAN_SEED`, or its own.
pub(crate) fn seed(own: u64) -> u64 {
    match std::env::var("FARLAN_SEED") {
        Ok(text) => text.parse().expect("FARLAN_SEED is a number"),
        Err(_) => own,
    }
}

/// A network with two infrastructure nodes, its owner and one member behind each of `nats`, all of them ready and known
/// to each other.
pub(crate) fn network(own_seed: u64, nats: &[Option<NatKind>]) -> (Overlay, Vec<MemberId>) {
    let mut overlay = Overlay::new(seed(own_seed), 2);
    let members: Vec<_> = nats
        .iter()
        .map(|&nat| overlay.add_member(nat, LinkKind::FAST))
        .collect();
    start_all(&mut overlay);
    (overlay, members)
}

/// Starts everybody and waits until all are ready and know each other.
pub(crate) fn start_all(overlay: &mut Overlay) {
    for id in overlay.members() {
        overlay.start(id);
    }
    let others = overlay.members().count() - 1;
    let met = |overlay: &Overlay| {
        overlay
            .members()
            .all(|id| overlay.is_ready(id) && overlay.member(id).peers_known() == others)
    };
    let took = overlay.run_until(60 * SECOND, met);
    assert!(
        took.is_some(),
        "not everybody met:\n{}",
        overlay.world.trace.tail(40)
    );
}

/// Seeds of each story, if `FARLAN_SEEDS` does not ask for more.
const SEEDS: u64 = 40;

/// How many seeds a story is told with.
pub(crate) fn seeds() -> u64 {
    match std::env::var("FARLAN_SEEDS") {
        Ok(text) => text.parse().expect("FARLAN_SEEDS is a number"),
        Err(_) => SEEDS,
    }
}

/// How long until both members of a pair behind these NATs use a direct path; `None` for a seed where that took longer
/// than `bound`. Counted from when they know each other, or, for a pair that must be `used`, from its first data.
pub(crate) fn direct_after(
    nats: [NatKind; 2],
    bound: Duration,
    used: bool,
) -> Vec<Option<Duration>> {
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
pub(crate) fn assert_direct(took: &[Option<Duration>], percent: usize) {
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
