//! What the stories share: seeds, and networks that are up.

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
