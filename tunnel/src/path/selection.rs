//! Which of two working paths is the better one. When a path counts as working is decided in the agent.

use std::time::Duration;

/// Kinds of path from best to worst: fewer machines that see, slow or meter the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    /// Straight to one of the peer's own interfaces: the same LAN, or IPv6 without translation.
    Host,
    /// Straight, through NATs.
    Direct,
    /// Through a fabric node's relay.
    Relay,
    /// Through the relay of another member, which has less to give.
    Member,
    /// Through two relays.
    Chain,
    /// Through a relay that is reached by a stream.
    Stream,
}

impl Tier {
    /// The tier of a straight way, which may lead to one of the peer's own interfaces.
    pub(super) const fn straight(is_remote_host: bool) -> Self {
        if is_remote_host {
            Self::Host
        } else {
            Self::Direct
        }
    }

    /// Whether somebody between passes the datagrams on.
    pub(super) fn is_relayed(self) -> bool {
        self >= Self::Relay
    }
}

/// A path of the same tier must be faster by a quarter, and by what people could notice, or two equal paths would
/// take turns with every jitter of the network.
const RTT_GAIN_MIN: Duration = Duration::from_millis(2);

/// Whether traffic should move from a path that works to this one. An unmeasured delay convinces nobody.
pub(super) fn is_better(new: (Tier, Option<Duration>), old: (Tier, Option<Duration>)) -> bool {
    if new.0 != old.0 {
        return new.0 < old.0;
    }
    match (new.1, old.1) {
        (Some(new), Some(old)) => new + RTT_GAIN_MIN < old && new < old * 3 / 4,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const fn ms(n: u64) -> Option<Duration> {
        Some(Duration::from_millis(n))
    }

    #[test]
    fn a_better_tier_wins_whatever_its_delay() {
        assert!(is_better((Tier::Direct, ms(80)), (Tier::Relay, ms(20))));
        assert!(is_better((Tier::Host, None), (Tier::Direct, ms(1))));
        assert!(!is_better((Tier::Relay, ms(1)), (Tier::Direct, ms(80))));
    }

    #[test]
    fn within_a_tier_only_a_clear_gain_moves_traffic() {
        assert!(is_better((Tier::Direct, ms(20)), (Tier::Direct, ms(40))));
        assert!(!is_better((Tier::Direct, ms(35)), (Tier::Direct, ms(40))));
        assert!(!is_better((Tier::Direct, ms(1)), (Tier::Direct, ms(2))));
        assert!(!is_better((Tier::Direct, None), (Tier::Direct, ms(40))));
    }
}
