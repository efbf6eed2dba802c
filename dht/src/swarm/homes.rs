//! Keeps this node connected to the fabric: which bootstrap to dial next, and when. Pure; dialing is [`super::task`]'s part.
//!
//! ```text
//! Waiting ──due──▶ Dialing ──connected──▶ Connected
//!    ▲ ◀──failed (backoff)──┘                 │
//!    └───────────lost (at once)───────────────┘
//! ```
//! Bootstraps that the user or an invite named are all kept connected. Fabric nodes that we met on the way are remembered as
//! well, and dialed only while too few others are connected.

use super::handle::{BootstrapState, BootstrapStatus};
use super::peer::{from_libp2p, split_peer};
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use std::time::{Duration, Instant};

/// How many fabric nodes we remember. Invites carry a handful; whoever names more gets the first ones.
const HOMES_MAX: usize = 32;
/// How many addresses of one fabric node we remember: two transports, two address families, twice.
const ADDRESSES_MAX: usize = 8;
/// Below this many connected homes, learned fabric nodes are dialed too: the second is there for when the first one leaves.
const CONNECTED_WANTED: usize = 2;
/// The first retry after a failure. A fabric node that restarts is back within seconds.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// For so many failures the backoff grows no further than [`BACKOFF_EAGER`]: a short outage ends within about two seconds of its end.
const EAGER_FAILURES: u32 = 12;
const BACKOFF_EAGER: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// The bootstraps, and what is known of each.
pub(super) struct Homes {
    homes: Vec<Home>,
    rng: ChaCha20Rng, // spreads the retries of many members over time
}

struct Home {
    addresses: Vec<Multiaddr>, // without /p2p
    peer: Option<PeerId>,
    is_learned: bool,
    state: State,
    failures: u32,
    last_error: Option<String>,
}

enum State {
    Waiting { due: Instant },
    Dialing { connection: ConnectionId },
    Connected,
}

/// Whom to dial, and where.
pub(super) struct Dial {
    pub(super) home: usize,
    pub(super) peer: Option<PeerId>,
    pub(super) addresses: Vec<Multiaddr>,
}

impl Homes {
    pub(super) fn new(rng: ChaCha20Rng) -> Self {
        Self {
            homes: Vec::new(),
            rng,
        }
    }

    /// A bootstrap that somebody named. Addresses of one identity are one bootstrap. False when there is no room.
    pub(super) fn add(&mut self, address: &Multiaddr, now: Instant) -> bool {
        let (bare, peer) = split_peer(address);
        let known = self
            .homes
            .iter_mut()
            .find(|home| home.addresses.contains(&bare) || (peer.is_some() && home.peer == peer));
        if let Some(home) = known {
            home.is_learned = false;
            if !home.addresses.contains(&bare) && home.addresses.len() < ADDRESSES_MAX {
                home.addresses.push(bare);
            }
            if !matches!(home.state, State::Connected | State::Dialing { .. }) {
                home.state = State::Waiting { due: now }; // being named again is a reason to try again
            }
            return true;
        }
        self.insert(Home {
            addresses: vec![bare],
            peer,
            is_learned: false,
            state: State::Waiting { due: now },
            failures: 0,
            last_error: None,
        })
    }

    /// A fabric node that we met, with the addresses it gave for itself.
    pub(super) fn learn(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        is_connected: bool,
        now: Instant,
    ) {
        if addresses.is_empty() {
            return;
        }
        if let Some(home) = self.homes.iter_mut().find(|home| home.peer == Some(peer)) {
            for address in addresses {
                if !home.addresses.contains(&address) && home.addresses.len() < ADDRESSES_MAX {
                    home.addresses.push(address);
                }
            }
            return;
        }
        let state = if is_connected {
            State::Connected
        } else {
            State::Waiting { due: now }
        };
        let addresses = addresses.into_iter().take(ADDRESSES_MAX).collect();
        self.insert(Home {
            addresses,
            peer: Some(peer),
            is_learned: true,
            state,
            failures: 0,
            last_error: None,
        });
    }

    /// Named ones push out the learned one that failed most.
    fn insert(&mut self, home: Home) -> bool {
        if self.homes.len() == HOMES_MAX {
            let worst = (0..self.homes.len())
                .filter(|&i| {
                    self.homes[i].is_learned && matches!(self.homes[i].state, State::Waiting { .. })
                })
                .max_by_key(|&i| self.homes[i].failures);
            match worst {
                Some(i) if !home.is_learned || self.homes[i].failures > 0 => self.homes[i] = home, // not dialing: no index of it is out
                _ => return false,
            }
            return true;
        }
        self.homes.push(home);
        true
    }

    /// The next one to dial; the caller must then say how it went.
    pub(super) fn poll_dial(&self, now: Instant) -> Option<Dial> {
        (0..self.homes.len())
            .find(|&i| self.due(&self.homes[i]).is_some_and(|due| due <= now))
            .map(|i| Dial {
                home: i,
                peer: self.homes[i].peer,
                addresses: self.homes[i].addresses.clone(),
            })
    }

    /// When [`Self::poll_dial`] has something again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.homes.iter().filter_map(|home| self.due(home)).min()
    }

    fn due(&self, home: &Home) -> Option<Instant> {
        match home.state {
            State::Waiting { due } if !home.is_learned || self.connected() < CONNECTED_WANTED => {
                Some(due)
            }
            _ => None,
        }
    }

    fn connected(&self) -> usize {
        self.homes
            .iter()
            .filter(|home| matches!(home.state, State::Connected))
            .count()
    }

    pub(super) fn handle_dialing(&mut self, home: usize, connection: ConnectionId) {
        self.homes[home].state = State::Dialing { connection };
    }

    /// A connection stands. True when it should be kept open: it is with one of ours, and named or needed.
    pub(super) fn handle_connected(&mut self, peer: PeerId, connection: ConnectionId) -> bool {
        let is_needed = self.connected() < CONNECTED_WANTED;
        let mut keep = false;
        for home in &mut self.homes {
            let by_dial =
                matches!(home.state, State::Dialing { connection: dialed } if dialed == connection);
            if by_dial || home.peer == Some(peer) {
                home.peer = Some(peer);
                home.state = State::Connected;
                home.failures = 0;
                home.last_error = None;
                keep |= is_needed || !home.is_learned;
            }
        }
        keep
    }

    /// The last connection with `peer` is gone. True when it was one of ours; it is then due at once.
    pub(super) fn handle_disconnected(&mut self, peer: PeerId, now: Instant) -> bool {
        let mut is_home = false;
        for home in &mut self.homes {
            if home.peer == Some(peer) && matches!(home.state, State::Connected) {
                // Not in the same instant as all the others who lost it.
                home.state = State::Waiting {
                    due: now + Duration::from_millis(self.rng.random_range(10..150)),
                };
                is_home = true;
            }
        }
        is_home
    }

    /// A dial came to nothing. Says which bootstrap is unreachable now, at its first failure and then at every doubling.
    pub(super) fn handle_dial_failed(
        &mut self,
        connection: ConnectionId,
        reason: String,
        now: Instant,
    ) -> Option<BootstrapStatus> {
        let home = self.homes.iter_mut().find(|home| matches!(home.state, State::Dialing { connection: dialed } if dialed == connection))?;
        home.failures = home.failures.saturating_add(1);
        home.last_error = Some(reason);
        let pause = backoff(home.failures);
        home.state = State::Waiting {
            due: now + pause.mul_f64(self.rng.random_range(0.75..1.0)),
        };
        (!home.is_learned && home.failures.is_power_of_two()).then(|| home.status(now))
    }

    /// Whether `peer` is one of ours.
    pub(super) fn is_home(&self, peer: &PeerId) -> bool {
        self.homes
            .iter()
            .any(|home| home.peer.as_ref() == Some(peer))
    }

    pub(super) fn status(&self, now: Instant) -> Vec<BootstrapStatus> {
        self.homes.iter().map(|home| home.status(now)).collect()
    }
}

impl Home {
    fn status(&self, now: Instant) -> BootstrapStatus {
        let state = match (&self.state, &self.last_error) {
            (State::Connected, _) => BootstrapState::Connected,
            (State::Waiting { due }, Some(reason)) => BootstrapState::Unreachable {
                reason: reason.clone(),
                attempts: self.failures,
                retry_in: due.saturating_duration_since(now),
            },
            (State::Dialing { .. }, Some(reason)) => BootstrapState::Unreachable {
                reason: reason.clone(),
                attempts: self.failures,
                retry_in: Duration::ZERO,
            },
            _ => BootstrapState::Connecting,
        };
        BootstrapStatus {
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            peer: self.peer.as_ref().and_then(|peer| from_libp2p(peer).ok()),
            is_learned: self.is_learned,
            state,
        }
    }
}

/// Doubles from [`BACKOFF_MIN`]; stays at [`BACKOFF_EAGER`] for a while; ends at [`BACKOFF_MAX`].
fn backoff(failures: u32) -> Duration {
    let doubled = |from: Duration, times: u32| from.saturating_mul(1 << times.min(16));
    if failures <= EAGER_FAILURES {
        doubled(BACKOFF_MIN, failures.saturating_sub(1)).min(BACKOFF_EAGER)
    } else {
        doubled(BACKOFF_EAGER, failures - EAGER_FAILURES).min(BACKOFF_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    fn homes() -> (Homes, Instant) {
        #[expect(clippy::disallowed_methods, reason = "the tests' epoch")]
        let t0 = Instant::now();
        (Homes::new(ChaCha20Rng::seed_from_u64(7)), t0)
    }

    fn address(last: u8) -> Multiaddr {
        format!("/ip4/192.0.2.{last}/tcp/4001").parse().unwrap()
    }

    fn fail_next(homes: &mut Homes, connection: usize, now: Instant) -> Option<BootstrapStatus> {
        let dial = homes.poll_dial(now).expect("one is due");
        homes.handle_dialing(dial.home, ConnectionId::new_unchecked(connection));
        homes.handle_dial_failed(
            ConnectionId::new_unchecked(connection),
            "connection refused".into(),
            now,
        )
    }

    #[test]
    fn two_addresses_of_one_identity_are_dialed_together() {
        let (mut homes, t0) = homes();
        let peer = PeerId::random();
        homes.add(&address(1).with_p2p(peer).unwrap(), t0);
        homes.add(&address(2).with_p2p(peer).unwrap(), t0);
        let dial = homes.poll_dial(t0).unwrap();
        assert_eq!(
            (dial.peer, dial.addresses),
            (Some(peer), vec![address(1), address(2)])
        );
    }

    #[test]
    fn retries_come_quickly_at_first_and_every_half_minute_in_the_end() {
        let (mut homes, mut now) = homes();
        homes.add(&address(1), now);
        let mut pauses = Vec::new();
        for connection in 0..24 {
            fail_next(&mut homes, connection, now);
            let due = homes.poll_timeout().unwrap();
            pauses.push(due - now);
            now = due;
        }
        assert!(pauses[0] <= BACKOFF_MIN);
        assert!(pauses[..12].iter().all(|pause| *pause <= BACKOFF_EAGER));
        assert!(pauses.iter().all(|pause| *pause <= BACKOFF_MAX));
        assert!(pauses[23] > BACKOFF_MAX / 2);
    }

    #[test]
    fn an_unreachable_bootstrap_is_reported_with_its_reason_and_not_at_every_try() {
        let (mut homes, mut now) = homes();
        homes.add(&address(1), now);
        let mut reports = 0;
        for connection in 0..8 {
            reports += usize::from(fail_next(&mut homes, connection, now).is_some());
            now = homes.poll_timeout().unwrap();
        }
        assert_eq!(reports, 4); // after 1, 2, 4 and 8 failures
        assert!(
            matches!(&homes.status(now)[0].state, BootstrapState::Unreachable { attempts: 8, reason, .. } if reason == "connection refused")
        );
    }

    #[test]
    fn a_lost_home_is_dialed_again_at_once() {
        let (mut homes, t0) = homes();
        let (peer, connection) = (PeerId::random(), ConnectionId::new_unchecked(1));
        homes.add(&address(1), t0);
        homes.handle_dialing(0, connection);
        assert!(homes.handle_connected(peer, connection));
        assert!(homes.poll_timeout().is_none());
        assert!(homes.handle_disconnected(peer, t0));
        assert!(homes.poll_timeout().unwrap() <= t0 + Duration::from_millis(150));
    }

    #[test]
    fn learned_fabric_nodes_are_dialed_only_while_too_few_are_connected() {
        let (mut homes, t0) = homes();
        homes.add(&address(1), t0);
        homes.handle_dialing(0, ConnectionId::new_unchecked(1));
        homes.handle_connected(PeerId::random(), ConnectionId::new_unchecked(1));
        homes.learn(PeerId::random(), vec![address(2)], true, t0);
        homes.learn(PeerId::random(), vec![address(3)], false, t0);
        assert!(homes.poll_dial(t0).is_none());
        let second = homes.homes[1].peer.unwrap();
        homes.handle_disconnected(second, t0);
        assert!(homes.poll_dial(t0).is_some());
    }

    #[test]
    fn memory_is_bounded_and_named_homes_win_over_learned_ones() {
        let (mut homes, t0) = homes();
        for last in 0..100 {
            homes.learn(PeerId::random(), vec![address(last)], false, t0);
        }
        assert_eq!(homes.homes.len(), HOMES_MAX);
        assert!(homes.add(&address(200), t0));
        assert_eq!(homes.homes.len(), HOMES_MAX);
        assert!(homes.homes.iter().any(|home| !home.is_learned));
    }
}
