//! Which relays a node holds ready: one to use and one for when it fails. Relays that are there to relay come before members,
//! and of those the ones that everybody reaches before those that only some do; among equals the nearer. How a place is
//! asked for is decided by those who call.

use overlay_types::PeerId;
use std::time::Duration;

/// Relays held ready.
pub(crate) const READY: usize = 2;

/// Among equals one must be nearer by a quarter, and by what people could notice: each change is told to every peer.
const RTT_GAIN_MIN: Duration = Duration::from_millis(2);

/// Kinds of relay from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A fabric node's.
    Fabric,
    /// That of a member whom everybody reaches.
    Open,
    /// That of a member whom some reach.
    Restricted,
}

/// A relay that works, or that would give a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Whose.
    pub(crate) via: PeerId,
    /// Of which kind.
    pub(crate) class: Class,
    /// How far, if that is known.
    pub(crate) rtt: Option<Duration>,
}

impl Offer {
    fn is_better_than(&self, other: &Self) -> bool {
        if self.class != other.class {
            return self.class < other.class;
        }
        match (self.rtt, other.rtt) {
            (Some(new), Some(old)) => new + RTT_GAIN_MIN < old && new < old * 3 / 4,
            _ => false,
        }
    }

    /// What is not measured is taken for far.
    fn rank(&self) -> (Class, Duration, PeerId) {
        (self.class, self.rtt.unwrap_or(Duration::MAX), self.via)
    }
}

/// Which of `offers` to hold ready, where `held` was up to now: what is held stays unless another is clearly better.
pub(crate) fn choose(held: &[PeerId], offers: &[Offer]) -> Vec<PeerId> {
    let mut ranked = offers.to_vec();
    ranked.sort_by_key(Offer::rank);
    let (mut chosen, mut others): (Vec<_>, Vec<_>) = ranked
        .into_iter()
        .partition(|offer| held.contains(&offer.via));
    others.extend(chosen.drain(READY.min(chosen.len())..));
    others.sort_by_key(Offer::rank);
    for other in others {
        if chosen.len() < READY {
            chosen.push(other);
            continue;
        }
        let Some(worst) = chosen.iter_mut().max_by_key(|offer| offer.rank()) else {
            break;
        };
        if !other.is_better_than(worst) {
            break;
        }
        *worst = other;
    }
    chosen.sort_by_key(Offer::rank);
    chosen.into_iter().map(|offer| offer.via).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Class::*;
    use proptest::prelude::*;

    const fn offer(n: u8, class: Class, ms: u64) -> Offer {
        Offer {
            via: PeerId([n; 32]),
            class,
            rtt: Some(Duration::from_millis(ms)),
        }
    }
    fn ids<const N: usize>(n: [u8; N]) -> Vec<PeerId> {
        n.map(|n| PeerId([n; 32])).to_vec()
    }

    #[test]
    fn fabric_nodes_come_first_then_whom_everybody_reaches_then_the_near() {
        let all = [
            offer(1, Restricted, 1),
            offer(2, Open, 9),
            offer(3, Open, 5),
            offer(4, Fabric, 90),
        ];
        assert_eq!(choose(&[], &all), ids([4, 3]));
        assert_eq!(choose(&[], &all[..3]), ids([3, 2]));
        assert_eq!(choose(&[], &all[..2]), ids([2, 1]));
        assert_eq!(choose(&[], &[]), ids([]));
    }

    #[test]
    fn what_is_held_stays_until_another_is_clearly_better() {
        let near = [
            offer(1, Fabric, 20),
            offer(2, Fabric, 20),
            offer(3, Fabric, 18),
        ];
        assert_eq!(choose(&ids([1, 2]), &near), ids([1, 2]));
        let nearer = [
            offer(1, Fabric, 20),
            offer(2, Fabric, 30),
            offer(3, Fabric, 10),
        ];
        assert_eq!(choose(&ids([1, 2]), &nearer), ids([3, 1]));
        let abler = [offer(1, Open, 1), offer(2, Open, 2), offer(3, Fabric, 100)];
        assert_eq!(choose(&ids([1, 2]), &abler), ids([3, 1]));
    }

    #[test]
    fn a_third_takes_the_place_of_one_that_is_gone() {
        let left = [offer(2, Fabric, 20), offer(3, Restricted, 50)];
        assert_eq!(choose(&ids([1, 2]), &left), ids([2, 3]));
    }

    proptest! {
        #[test]
        fn a_choice_is_of_what_is_offered_and_stays(offers in proptest::collection::vec((0..9u8, 0..3u8, 0..50u64), 0..9), held in proptest::collection::vec(0..9u8, 0..4)) {
            let mut offers: Vec<_> = offers
                .into_iter()
                .map(|(n, class, ms)| offer(n, [Fabric, Open, Restricted][usize::from(class)], ms))
                .collect();
            offers.sort_by_key(|o| o.via);
            offers.dedup_by_key(|o| o.via);
            let held: Vec<_> = held.into_iter().map(|n| PeerId([n; 32])).collect();
            let chosen = choose(&held, &offers);
            prop_assert_eq!(chosen.len(), READY.min(offers.len()));
            prop_assert!(chosen.iter().all(|via| offers.iter().any(|o| o.via == *via)));
            prop_assert_eq!(choose(&chosen, &offers), chosen);
        }
    }
}
