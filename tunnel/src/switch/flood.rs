//! Says where a frame for many goes, and how many such frames a place may send: split horizon, and a budget per
//! port and per peer, so that a loop or a storm behind one of them never becomes everybody's.

use crate::snapshot::{NetworkView, Place};
use overlay_types::{Location, NetworkId};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Frames a second that one place may have flooded. A busy /24 LAN shows some dozens; a storm, thousands.
pub const FLOODS_PER_SECOND: u32 = 500;
/// How many it may save up: a host that boots with many services speaks in bursts.
pub const FLOOD_BURST: u32 = 1000;

/// Allows so many events a second and saves up a burst. Starts full.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    tokens_nano: u64,
    filled_at: Instant,
    per_second: u32,
    burst: u32,
}

/// Tokens are kept in billionths, so that a nanosecond times a rate is a count of them.
const TOKEN: u64 = 1_000_000_000;

impl TokenBucket {
    /// A full bucket.
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            tokens_nano: u64::from(burst) * TOKEN,
            filled_at: now,
            per_second,
            burst,
        }
    }

    /// Takes one token; `false` when there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        let gone = now
            .saturating_duration_since(self.filled_at)
            .min(Duration::from_secs(3600));
        self.filled_at = self.filled_at.max(now);
        let gained = gone.as_nanos() as u64 * u64::from(self.per_second);
        self.tokens_nano = self
            .tokens_nano
            .saturating_add(gained)
            .min(u64::from(self.burst) * TOKEN);
        let has = self.tokens_nano >= TOKEN;
        if has {
            self.tokens_nano -= TOKEN;
        }
        has
    }
}

/// The storm budgets of every place that a worker hears frames from.
#[derive(Debug, Default)]
pub struct Budgets(BTreeMap<(NetworkId, Location), TokenBucket>);

impl Budgets {
    /// Takes one flood from the budget of a place; `false` when it is spent. New places start with a full burst.
    pub fn take(&mut self, network: NetworkId, from: Location, now: Instant) -> bool {
        self.0
            .entry((network, from))
            .or_insert_with(|| TokenBucket::new(FLOODS_PER_SECOND, FLOOD_BURST, now))
            .take(now)
    }

    /// Forgets places that are gone, which bounds the map by the ports and members there are.
    pub fn keep(&mut self, is_there: impl Fn(NetworkId, Location) -> bool) {
        self.0.retain(|&(network, at), _| is_there(network, at));
    }
}

/// The local ports that a frame for many goes out of: all but where it came from.
pub fn ports(view: &NetworkView, from: Option<Place>) -> impl Iterator<Item = u16> + use<> {
    (0..view.ports.len() as u16).filter(move |&port| from != Some(Place::Port(port)))
}

/// The members that a frame for many goes to: those with a way, and none for a frame that came from one (split horizon:
/// every member reaches every other by itself, so nobody passes floods on).
pub fn peers(view: &NetworkView, from: Option<Place>) -> impl Iterator<Item = u16> + use<> {
    let count = if matches!(from, Some(Place::Peer(_))) {
        0
    } else {
        view.peers.len() as u16
    };
    0..count
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use overlay_types::PortId;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let t0 = Instant::now();
        let mut bucket = TokenBucket::new(10, 5, t0);
        assert_eq!((0..20).filter(|_| bucket.take(t0)).count(), 5);
        assert_eq!(
            (0..20)
                .filter(|_| bucket.take(t0 + Duration::from_millis(300)))
                .count(),
            3
        );
        assert_eq!(
            (0..20)
                .filter(|_| bucket.take(t0 + Duration::from_secs(3600 * 24)))
                .count(),
            5
        );
    }

    #[test]
    fn each_place_has_its_own_budget() {
        let (mut budgets, t0, net) = (Budgets::default(), Instant::now(), NetworkId([1; 32]));
        let (one, two) = (Location::Port(PortId(1)), Location::Port(PortId(2)));
        let passed = (0..FLOOD_BURST * 2)
            .filter(|_| budgets.take(net, one, t0))
            .count();
        assert_eq!(passed, FLOOD_BURST as usize);
        assert!(budgets.take(net, two, t0));
        budgets.keep(|_, at| at == two);
        assert_eq!(budgets.0.len(), 1);
    }
}
