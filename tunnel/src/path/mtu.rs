//! How large a datagram one path carries: a ladder of padded probes (RFC 8899 in spirit), climbed once, then checked
//! now and then. What the probes are and how they are sent is the agent's.

use std::time::{Duration, Instant};

/// Sizes of UDP payloads worth telling apart. 1232 fits IPv6's smallest link (RFC 8200 §5) and is taken as given;
/// 1372 passes a WireGuard-like tunnel over IPv6 and 1392 over IPv4, 1432 a cloud's 1460, 1452 and 1472 a 1500-byte
/// link over IPv6 and IPv4; 1552 carries a guest's full frame whole, 8952 a jumbo frame.
const RUNGS: [u16; 8] = [1232, 1372, 1392, 1432, 1452, 1472, 1552, 8952];

/// Probes of one size before it counts as too large: loss must not be mistaken for size.
const TRIES: u8 = 3;

/// How often the size in use is checked while there is traffic, so that a shrunk path is found in about a minute.
const VERIFY_EVERY: Duration = Duration::from_secs(60);

/// One in so many checks looks whether the path has grown.
const CLIMB_EVERY: u8 = 10;

#[derive(Debug)]
pub(super) struct MtuLadder {
    /// 8 on relayed paths, for the wrapper.
    overhead: u16,
    confirmed: usize,
    asking: Option<Asking>,
    next_at: Option<Instant>,
    verified: u8,
}

#[derive(Debug)]
struct Asking {
    rung: usize,
    tries: u8,
}

impl MtuLadder {
    pub(super) fn new(overhead: u16) -> Self {
        Self {
            overhead,
            confirmed: 0,
            asking: None,
            next_at: None,
            verified: 0,
        }
    }

    /// Largest sealed datagram known to pass.
    pub(super) fn mtu(&self) -> u16 {
        RUNGS[self.confirmed] - self.overhead
    }

    /// Begins to climb, unless that was done before.
    pub(super) fn start(&mut self, now: Instant) {
        if self.next_at.is_none() {
            self.asking = Some(Asking {
                rung: self.confirmed + 1,
                tries: 0,
            });
            self.next_at = Some(now);
        }
    }

    /// Forgets what was learned: the path behind the address may be another one.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.overhead);
    }

    /// When the next probe is due. Checks of a finished ladder wait for traffic.
    pub(super) fn due(&self, in_use: impl Fn(Instant) -> bool) -> Option<Instant> {
        self.next_at
            .filter(|at| self.asking.is_some() || in_use(*at))
    }

    /// The size to ask for now, if any; `rtt` paces the tries.
    pub(super) fn handle_timeout(&mut self, now: Instant, rtt: Duration) -> Option<u16> {
        if self.next_at.is_none_or(|at| now < at) {
            return None;
        }
        let confirmed = self.confirmed;
        let asking = self.asking.get_or_insert(Asking {
            rung: confirmed,
            tries: 0,
        });
        if asking.tries == TRIES {
            let failed = asking.rung;
            if failed > confirmed || failed == 0 {
                self.rest(now); // too large, and the smallest is believed without proof
                return None;
            }
            self.confirmed = 0; // what used to pass does not any more: find out anew what does
            self.asking = Some(Asking { rung: 1, tries: 0 });
            self.next_at = Some(now);
            return self.handle_timeout(now, rtt);
        }
        asking.tries += 1;
        let size = RUNGS[asking.rung] - self.overhead;
        self.next_at = Some(now + (rtt * 2).max(Duration::from_millis(300)));
        Some(size)
    }

    /// A probe of `size` was answered; says whether [`Self::mtu`] changed.
    pub(super) fn handle_answer(&mut self, size: u16, now: Instant) -> bool {
        let Some(rung) = RUNGS.iter().position(|r| r - self.overhead == size) else {
            return false;
        };
        if self.asking.as_ref().is_none_or(|a| a.rung != rung) {
            return false; // an answer to an earlier question
        }
        let grew = rung > self.confirmed;
        self.confirmed = self.confirmed.max(rung);
        self.verified = self.verified.wrapping_add(1);
        let climb = grew || self.verified.is_multiple_of(CLIMB_EVERY);
        if climb && rung + 1 < RUNGS.len() {
            self.asking = Some(Asking {
                rung: rung + 1,
                tries: 0,
            });
            self.next_at = Some(now);
        } else {
            self.rest(now);
        }
        grew
    }

    fn rest(&mut self, now: Instant) {
        self.asking = None;
        self.next_at = Some(now + VERIFY_EVERY);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    const RTT: Duration = Duration::from_millis(50);

    /// Runs the ladder over a path that carries `limit` bytes; gives the time and the probes it took to come to rest.
    fn climb(ladder: &mut MtuLadder, limit: u16, mut now: Instant) -> (Instant, usize) {
        let mut probes = 0;
        while let Some(at) = ladder.due(|_| false) {
            now = now.max(at);
            if let Some(size) = ladder.handle_timeout(now, RTT) {
                probes += 1;
                if size + ladder.overhead <= limit {
                    now += RTT;
                    ladder.handle_answer(size, now);
                }
            }
        }
        (now, probes)
    }

    #[test]
    fn the_ladder_stops_below_what_the_path_refuses() {
        for (limit, expected) in [
            (1472, 1472),
            (1452, 1452),
            (1280, 1232),
            (1400, 1392),
            (9000, 8952),
            (1600, 1552),
        ] {
            let (mut ladder, t0) = (MtuLadder::new(0), Instant::now());
            ladder.start(t0);
            let (rest, probes) = climb(&mut ladder, limit, t0);
            assert_eq!(ladder.mtu(), expected, "limit {limit}");
            assert!(probes <= 10 && rest - t0 < Duration::from_secs(2));
        }
    }

    #[test]
    fn a_relayed_path_leaves_room_for_the_wrapper() {
        let (mut ladder, t0) = (MtuLadder::new(8), Instant::now());
        assert_eq!(ladder.mtu(), 1224);
        ladder.start(t0);
        climb(&mut ladder, 1472, t0);
        assert_eq!(ladder.mtu(), 1464);
    }

    #[test]
    fn a_path_that_shrinks_is_found_out_while_there_is_traffic_only() {
        let (mut ladder, t0) = (MtuLadder::new(0), Instant::now());
        ladder.start(t0);
        let (rest, _) = climb(&mut ladder, 1472, t0);
        assert_eq!(ladder.due(|_| false), None);
        let check = ladder.due(|_| true).unwrap();
        assert!(check <= rest + VERIFY_EVERY);
        assert_eq!(ladder.handle_timeout(check, RTT), Some(1472));
        climb(&mut ladder, 1400, check);
        assert_eq!(ladder.mtu(), 1392);
    }
}
