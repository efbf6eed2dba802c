//! How large a datagram one path carries: path MTU discovery for datagrams (RFC 8899, §5) with padded probes, so that it
//! needs no ICMP message, which networks lose and strangers forge. What the probes are and how they are sent is the
//! agent's.
//!
//! ```text
//! Base ──proved──▶ Searching ──nothing larger passes──▶ Complete ──traffic──▶ Confirming ──answer──▶ Complete
//!  ▲                   ▲                                    └──600 s──▶ Searching      │
//!  └───────────────────┴──────────────── black hole: three probes lost ◀──────────────┘
//! ```

use crate::wire::datagram::RELAY_HEADER_BYTES;
use std::time::{Duration, Instant};

/// BASE_PLPMTU and MIN_PLPMTU, as bytes of UDP payload: what fits IPv6's smallest link (RFC 8200 §5). Believed without
/// proof.
const BASE: u16 = 1232;

/// UDP payloads of common links, tried before anything between: 1252 is IPv4 over a link of 1280, 1372 and 1392 pass a
/// WireGuard-like tunnel over IPv6 and IPv4, 1412 and 1432 a cloud's or GRE's 1460, 1444 and 1464 PPPoE's 1492, 1452
/// and 1472 a link of 1500, 8952 and 8972 a jumbo link.
const COMMON: [u16; 11] = [
    1252, 1372, 1392, 1412, 1432, 1444, 1452, 1464, 1472, 8952, 8972,
];

/// What fits a link of 1500 bytes over either IP version.
const LIKELY: u16 = 1452;

/// The search ends when what is not known is smaller than this.
const GRAIN: u16 = 20;

/// MAX_PROBES: probes of one size before it counts as too large, since loss must not be mistaken for size.
const MAX_PROBES: u8 = 3;

/// PROBE_TIMER: the least wait for an answer; two round trips where that is longer.
const PROBE_TIMER: Duration = Duration::from_millis(300);

/// CONFIRMATION_TIMER: how often the size in use is confirmed while there is traffic. A black hole is found within this
/// and three probes.
const CONFIRMATION_TIMER: Duration = Duration::from_secs(5);

/// PMTU_RAISE_TIMER: how often it is looked, while there is traffic, whether the path has grown.
const PMTU_RAISE_TIMER: Duration = Duration::from_secs(600);

/// The search on one path.
#[derive(Debug)]
pub(super) struct PathMtu {
    /// For the wrappers of relayed paths, which all other sizes include.
    overhead: u16,
    wanted: u16,
    /// PLPMTU: the largest size that was answered.
    confirmed: u16,
    /// The smallest size that was not, however often it was asked for.
    refused: u16,
    /// What is asked for now: more than `confirmed` when searching, just that when confirming.
    asking: Option<Asking>,
    /// The next probe, when one is asked for, or else the next confirmation; nothing before the path was proved.
    next_at: Option<Instant>,
    raise_at: Option<Instant>,
    black_holes: u32,
}

#[derive(Clone, Copy, Debug)]
struct Asking {
    size: u16,
    since: Instant,
    probes: u8,
}

/// A question that is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SizeProbe {
    /// The datagram, from its header to its tag, is padded to this: the wrapper is not part of it.
    pub(super) size: u16,
    /// Unless it is answered the size is too large, if anything else is: ask for something small, too.
    pub(super) is_last: bool,
}

impl PathMtu {
    /// A path that takes [`BASE`], as far as is known; nothing larger than `wanted` is of use.
    pub(super) const fn new(overhead: u16, wanted: u16) -> Self {
        Self {
            overhead,
            wanted,
            confirmed: BASE,
            refused: u16::MAX,
            asking: None,
            next_at: None,
            raise_at: None,
            black_holes: 0,
        }
    }

    /// The smallest size that did not pass, once the search has ended.
    pub(super) fn refused(&self) -> Option<u16> {
        (self.refused != u16::MAX && self.larger().is_none()).then_some(self.refused)
    }

    /// How often what had passed did not pass any more.
    pub(super) const fn black_holes(&self) -> u32 {
        self.black_holes
    }

    /// Largest UDP payload known to pass, one relay's wrapper included: frames leave room for that one always.
    pub(super) const fn mtu(&self) -> u16 {
        self.confirmed - self.further_wrapper()
    }

    /// What it most likely carries: [`Self::mtu`], but a link of 1500 bytes as long as nothing was refused.
    pub(super) fn likely(&self) -> u16 {
        let hoped_for = if self.refused == u16::MAX { LIKELY } else { 0 };
        self.confirmed.max(hoped_for.min(self.wanted)) - self.further_wrapper()
    }

    const fn further_wrapper(&self) -> u16 {
        self.overhead.saturating_sub(RELAY_HEADER_BYTES as u16)
    }

    /// Begins to search, unless that was done before.
    pub(super) fn start(&mut self, now: Instant) {
        if self.next_at.is_none() {
            self.search(now);
        }
    }

    /// Forgets what was learned: the path behind the address may be another one.
    pub(super) const fn reset(&mut self) {
        let black_holes = self.black_holes;
        *self = Self::new(self.overhead, self.wanted);
        self.black_holes = black_holes;
    }

    /// When the next probe is due. Confirming, and searching again, wait for traffic.
    pub(super) fn due(&self, in_use: impl Fn(Instant) -> bool) -> Option<Instant> {
        self.next_at
            .filter(|at| self.asking.is_some() || in_use(*at))
    }

    /// What to ask for now, if anything. `rtt` paces the probes; `heard_at`, when anything came over this path last, tells
    /// a size that does not pass from a path that does not.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        rtt: Duration,
        heard_at: Option<Instant>,
    ) -> Option<SizeProbe> {
        if self.next_at.is_none_or(|at| now < at) {
            return None;
        }
        match self.asking {
            Some(asking) if asking.probes < MAX_PROBES => {}
            Some(asking) if heard_at.is_none_or(|at| at < asking.since) => {
                // The path is down, not small: nothing is asked of it until it carries traffic again.
                let again_at = now + CONFIRMATION_TIMER;
                if asking.size > self.confirmed {
                    self.raise_at = Some(again_at);
                }
                (self.asking, self.next_at) = (None, Some(again_at));
                return None;
            }
            Some(asking) => {
                if asking.size == self.confirmed {
                    // A black hole. Data goes on in small datagrams while it is found out anew what passes.
                    self.confirmed = BASE;
                    self.black_holes = self.black_holes.saturating_add(1);
                }
                self.refused = asking.size;
                self.search(now);
            }
            None if self.raise_at.is_some_and(|at| now >= at) => {
                self.refused = u16::MAX;
                self.search(now);
            }
            None => self.ask(self.confirmed, now),
        }
        let asking = self.asking.as_mut()?;
        asking.probes += 1;
        self.next_at = Some(now + (rtt * 2).max(PROBE_TIMER));
        Some(SizeProbe {
            size: asking.size - self.overhead,
            is_last: asking.probes == MAX_PROBES,
        })
    }

    /// A probe of `size` was answered.
    pub(super) fn handle_answer(&mut self, size: u16, now: Instant) {
        let Some(size) = size.checked_add(self.overhead) else {
            return;
        };
        let Some(asking) = self.asking.filter(|asking| asking.size == size) else {
            return; // an answer to an earlier question
        };
        if asking.size > self.confirmed {
            self.confirmed = asking.size;
            self.search(now);
        } else {
            self.rest(now);
        }
    }

    /// Asks for a larger size at once, or rests when there is none that could pass.
    fn search(&mut self, now: Instant) {
        match self.larger() {
            Some(size) => {
                self.ask(size, now);
                self.next_at = Some(now);
            }
            None => {
                self.raise_at = Some(now + PMTU_RAISE_TIMER);
                self.rest(now);
            }
        }
    }

    const fn ask(&mut self, size: u16, now: Instant) {
        self.asking = Some(Asking {
            size,
            since: now,
            probes: 0,
        });
    }

    /// The next size worth asking for: a common one, what is wanted at most, or the middle of what is not known.
    fn larger(&self) -> Option<u16> {
        let is_open = |size: &u16| (self.confirmed + 1..self.refused).contains(size);
        let common = COMMON.iter().copied().filter(|size| *size < self.wanted);
        common.chain([self.wanted]).find(is_open).or_else(|| {
            let unknown = self.refused.min(self.wanted).saturating_sub(self.confirmed);
            (unknown > GRAIN).then(|| self.confirmed + unknown / 2)
        })
    }

    fn rest(&mut self, now: Instant) {
        self.asking = None;
        // The base needs no proof, and is left by searching only.
        self.next_at = if self.confirmed > BASE {
            Some(now + CONFIRMATION_TIMER)
        } else {
            self.raise_at.or(Some(now + PMTU_RAISE_TIMER))
        };
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RTT: Duration = Duration::from_millis(50);
    /// A guest's full frame, whole.
    const FULL: u16 = 1558;

    /// Searches over a path that carries `limit` bytes, until it rests; gives the time and how many probes it took.
    fn search(mtu: &mut PathMtu, limit: u16, mut now: Instant) -> (Instant, usize) {
        let mut probes = 0;
        while let Some(at) = mtu.due(|_| false) {
            now = now.max(at);
            if let Some(probe) = mtu.handle_timeout(now, RTT, Some(now)) {
                probes += 1;
                if probe.size + mtu.overhead <= limit {
                    now += RTT;
                    mtu.handle_answer(probe.size, now);
                }
            }
            assert!(probes < 100, "the search ends");
        }
        (now, probes)
    }

    fn found(limit: u16) -> (PathMtu, Instant) {
        let (mut mtu, t0) = (PathMtu::new(0, FULL), Instant::now());
        mtu.start(t0);
        let (rest, _) = search(&mut mtu, limit, t0);
        (mtu, rest)
    }

    #[test]
    fn what_is_likely_is_a_common_link_until_it_is_known_better() {
        assert_eq!(PathMtu::new(0, FULL).likely(), LIKELY);
        assert_eq!(PathMtu::new(0, 1300).likely(), 1300);
        for limit in [1252, 1400, 1472] {
            let (mtu, _) = found(limit);
            assert_eq!(mtu.likely(), mtu.mtu(), "a link of {limit}");
        }
    }

    #[test]
    fn common_links_are_found_exactly_and_soon() {
        for limit in [
            1252, 1372, 1392, 1412, 1432, 1444, 1452, 1464, 1472, 1558, 8972,
        ] {
            let (mut mtu, t0) = (PathMtu::new(0, 8972), Instant::now());
            mtu.start(t0);
            let (rest, probes) = search(&mut mtu, limit, t0);
            if COMMON.contains(&limit) {
                assert_eq!(mtu.mtu(), limit);
            }
            assert!(
                probes <= 45 && rest - t0 < Duration::from_secs(15),
                "{probes} {:?}",
                rest - t0
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_found_passes_and_little_more_would(limit in BASE..9000, wanted in 1300u16..9000, overhead in prop::sample::select(vec![0u16, 8, 16])) {
            let (mut mtu, t0) = (PathMtu::new(overhead, wanted), Instant::now());
            mtu.start(t0);
            search(&mut mtu, limit, t0);
            let best = limit.min(wanted);
            let found = mtu.mtu() + mtu.further_wrapper();
            prop_assert!(found <= best && best - found <= GRAIN, "{found} of {best}");
        }
    }

    #[test]
    fn what_is_refused_is_told_once_it_is_known_and_black_holes_are_counted() {
        assert_eq!(PathMtu::new(0, FULL).refused(), None);
        let (mut mtu, mut now) = found(1472);
        let refused = mtu.refused().unwrap();
        assert!((1473..=1472 + GRAIN + 1).contains(&refused), "{refused}");
        assert_eq!(found(FULL).0.refused(), None, "all that is wanted passes");
        for _ in 0..20 {
            if let Some(at) = mtu.due(|_| true) {
                now = now.max(at);
            }
            if let Some(probe) = mtu.handle_timeout(now, RTT, Some(now))
                && probe.size <= 1400
            {
                mtu.handle_answer(probe.size, now);
            }
        }
        assert_eq!((mtu.mtu() <= 1400, mtu.black_holes()), (true, 1));
    }

    #[test]
    fn nothing_larger_than_wanted_is_asked_for() {
        let (mtu, _) = found(9000);
        assert_eq!(mtu.mtu(), FULL);
    }

    #[test]
    fn a_relayed_path_s_probes_leave_room_for_the_wrapper() {
        let (mut mtu, t0) = (PathMtu::new(8, FULL), Instant::now());
        mtu.start(t0);
        assert_eq!(
            mtu.handle_timeout(t0, RTT, None).map(|p| p.size),
            Some(1252 - 8)
        );
        search(&mut mtu, 1472, t0);
        assert_eq!(mtu.mtu(), 1472);
    }

    #[test]
    fn a_black_hole_is_found_within_seconds_while_there_is_traffic_only() {
        let (mut mtu, rest) = found(1472);
        assert_eq!(mtu.due(|_| false), None);
        let check = mtu.due(|_| true).unwrap();
        assert_eq!(check, rest + CONFIRMATION_TIMER);
        let mut now = check;
        for lost in 1..=MAX_PROBES {
            let probe = mtu.handle_timeout(now, RTT, Some(now)).unwrap();
            assert_eq!((probe.size, probe.is_last), (1472, lost == MAX_PROBES));
            assert_eq!(mtu.mtu(), 1472, "a lost probe alone says nothing");
            now = mtu.due(|_| true).unwrap();
        }
        mtu.handle_timeout(now, RTT, Some(now));
        assert_eq!(mtu.mtu(), BASE, "small datagrams at once");
        assert!(now - rest < Duration::from_secs(7));
        search(&mut mtu, 1400, now);
        assert_eq!(mtu.mtu(), 1392);
    }

    #[test]
    fn a_path_on_which_nothing_is_heard_says_nothing_about_size() {
        let (mut mtu, rest) = found(1472);
        let mut now = rest + CONFIRMATION_TIMER;
        for _ in 0..20 {
            mtu.handle_timeout(now, RTT, Some(rest));
            now = mtu.due(|_| true).unwrap();
        }
        assert_eq!(mtu.mtu(), 1472);
    }

    #[test]
    fn a_path_that_falls_silent_in_its_search_is_asked_again_only_for_traffic() {
        let (mut mtu, mut now) = (PathMtu::new(0, FULL), Instant::now());
        mtu.start(now);
        let mut probes = 0;
        while let Some(at) = mtu.due(|_| false) {
            now = at;
            probes += usize::from(mtu.handle_timeout(now, RTT, None).is_some());
            assert!(
                probes <= usize::from(MAX_PROBES),
                "a dead path is asked for ever"
            );
        }
        now = mtu.due(|_| true).unwrap();
        let probe = mtu.handle_timeout(now, RTT, Some(now)).unwrap();
        mtu.handle_answer(probe.size, now);
        search(&mut mtu, 1472, now);
        assert_eq!(mtu.mtu(), 1472);
    }

    #[test]
    fn a_path_that_grew_is_noticed_in_time() {
        let (mut mtu, rest) = found(1400);
        let mut now = rest;
        while now < rest + PMTU_RAISE_TIMER + CONFIRMATION_TIMER {
            now = mtu.due(|_| true).unwrap();
            if let Some(probe) = mtu
                .handle_timeout(now, RTT, Some(now))
                .filter(|p| p.size <= 1472)
            {
                mtu.handle_answer(probe.size, now + RTT);
            }
        }
        search(&mut mtu, 1472, now);
        assert_eq!(mtu.mtu(), 1472);
    }
}
