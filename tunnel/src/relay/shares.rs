//! Shares what a relay carries for all together: evenly between sites, none of which has more than a site's rate, and evenly between
//! the places of a site. What a place may have at most is [`super::budget`]'s part.
//!
//! Nothing waits at the relay. What it passed on is kept as a debt of who sent it, and the relay's rate pays the debts off, always
//! evenly between those who have any. All debts together are bounded, and who sends more than its share soon has as
//! much debt as there is room left; who sends less has next to none, and is let through.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Debts of places, and of the sites where they are. It holds only those who have any, so it is bounded by the places.
#[derive(Debug)]
pub(super) struct Shares {
    all: Limit,
    each_site: Limit,
    owed: u64,
    sites: BTreeMap<IpAddr, Site>,
    paid_at: Instant,
}

/// What is paid off of debts, in bytes a second, and what they may come to.
#[derive(Debug)]
struct Limit {
    rate: u64,
    room: u64,
}

#[derive(Debug, Default)]
struct Site {
    owed: u64,
    places: BTreeMap<u16, u64>,
}

/// Debts are paid off so often at most: one burst of datagrams then costs one payment.
const PAY_EVERY: Duration = Duration::from_millis(1);

/// Three of the bursts that one budget allows: who is alone fills a third of the room.
const ROOM_MIN: u64 = 3 * 64 * 1024;

impl Shares {
    /// Rates in bytes a second; a quarter of a second may pass at once.
    pub(super) fn new(rate: u64, site_rate: u64, now: Instant) -> Self {
        Self {
            all: Limit::new(rate),
            each_site: Limit::new(site_rate),
            owed: 0,
            sites: BTreeMap::new(),
            paid_at: now,
        }
    }

    /// Whether so much more of this place is within its share now.
    pub(super) fn has(&mut self, site: IpAddr, place: u16, bytes: u64, now: Instant) -> bool {
        self.pay_off(now);
        let (of_site, of_place) = self.sites.get(&site).map_or((0, 0), |site| {
            let of_place = site.places.get(&place).copied().unwrap_or(0);
            (site.owed, of_place)
        });
        // A site owes no more than what is left of the room, and of the site's part a place no more than what is left of that.
        let left = self.all.room.saturating_sub(self.owed);
        of_place + bytes <= left.min(self.each_site.room).saturating_sub(of_site)
    }

    /// So much of this place passes.
    pub(super) fn owe(&mut self, site: IpAddr, place: u16, bytes: u64) {
        let site = self.sites.entry(site).or_default();
        *site.places.entry(place).or_default() += bytes;
        site.owed += bytes;
        self.owed += bytes;
    }

    fn pay_off(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.paid_at);
        if elapsed < PAY_EVERY {
            return;
        }
        let (paid, of_site) = (self.all.within(elapsed), self.each_site.within(elapsed));
        // What is less than a byte is kept for the next time by not moving the clock.
        if paid == 0 {
            return;
        }
        self.paid_at = now;
        let sites = self.sites.values_mut();
        let sites = sites.map(|site| (site.owed.min(of_site), site)).collect();
        self.owed -= pay_evenly(paid, sites, |site, paid| {
            site.owed -= paid;
            let places = site.places.values_mut().map(|owed| (*owed, owed));
            pay_evenly(paid, places.collect(), |owed, paid| *owed -= paid);
            site.places.retain(|_, owed| *owed > 0);
        });
        self.sites.retain(|_, site| site.owed > 0);
    }
}

impl Limit {
    fn new(rate: u64) -> Self {
        let room = (rate / 4).max(ROOM_MIN);
        Self { rate, room }
    }

    fn within(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.rate) * time.as_micros() / 1_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// Pays debtors of so much each: all alike, but none more than it owes, and all together no more than `amount`. Gives what was paid.
fn pay_evenly<D>(amount: u64, mut debtors: Vec<(u64, D)>, mut pay: impl FnMut(D, u64)) -> u64 {
    debtors.sort_by_key(|(owed, _)| *owed);
    let (mut left, mut others) = (amount, debtors.len() as u64);
    for (owed, debtor) in debtors {
        // Rounded up, so that nothing is left over while somebody owes more.
        let paid = owed.min(left.div_ceil(others));
        pay(debtor, paid);
        left -= paid;
        others -= 1;
    }
    amount - left
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: u64 = 1_000_000;

    fn site(n: u8) -> IpAddr {
        [192, 0, n, 0].into()
    }

    /// One who sends: where, who, how long its datagrams are, and how many microseconds lie between two.
    #[derive(Clone, Copy, Debug)]
    struct Sender {
        site: u8,
        place: u16,
        bytes: u64,
        every_us: u64,
    }

    impl Sender {
        fn rate(&self) -> f64 {
            self.bytes as f64 * 1e6 / self.every_us as f64
        }
    }

    /// What passed of each, as times and bytes.
    fn passed(senders: &[Sender], seconds: u64) -> Vec<Vec<(u64, u64)>> {
        passed_of(Shares::new(RATE, RATE, Instant::now()), senders, seconds)
    }

    fn passed_of(mut shares: Shares, senders: &[Sender], seconds: u64) -> Vec<Vec<(u64, u64)>> {
        let (t0, mut passed) = (shares.paid_at, vec![Vec::new(); senders.len()]);
        let mut due: Vec<(u64, usize)> = (0..senders.len()).map(|n| (n as u64, n)).collect();
        while let Some(first) = due
            .iter()
            .copied()
            .min()
            .filter(|(at, _)| *at < seconds * 1_000_000)
        {
            let (at, n) = first;
            let sender = senders[n];
            let (site, now) = (site(sender.site), t0 + Duration::from_micros(at));
            if shares.has(site, sender.place, sender.bytes, now) {
                shares.owe(site, sender.place, sender.bytes);
                passed[n].push((at, sender.bytes));
            }
            due[n].0 += sender.every_us;
        }
        passed
    }

    fn rates(senders: &[Sender], seconds: u64) -> Vec<f64> {
        rates_of(passed(senders, seconds), seconds)
    }

    fn rates_of(passed: Vec<Vec<(u64, u64)>>, seconds: u64) -> Vec<f64> {
        let sums = passed
            .iter()
            .map(|of| of.iter().map(|(_, bytes)| bytes).sum::<u64>());
        sums.map(|sum| sum as f64 / seconds as f64).collect()
    }

    fn flood(site: u8, place: u16) -> Sender {
        Sender {
            site,
            place,
            bytes: 1300,
            every_us: 400,
        } // 3.25 MB/s
    }

    fn assert_near(rates: &[f64], expected: &[f64]) {
        for (rate, expected) in rates.iter().zip(expected) {
            let is_near = (rate / expected - 1.0).abs() < 0.1;
            assert!(is_near, "{rates:?}, and not {expected:?}");
        }
    }

    #[test]
    fn who_is_alone_has_all_of_it() {
        assert_near(&rates(&[flood(1, 1)], 10), &[1e6]);
    }

    #[test]
    fn sites_share_evenly_however_many_they_send_from_and_so_do_those_of_a_site() {
        let senders = [
            flood(1, 1),
            flood(2, 2),
            flood(2, 3),
            flood(2, 4),
            flood(2, 5),
        ];
        assert_near(&rates(&senders, 10), &[500e3, 125e3, 125e3, 125e3, 125e3]);
    }

    #[test]
    fn what_one_leaves_the_others_have() {
        let modest = Sender {
            site: 3,
            place: 3,
            bytes: 1000,
            every_us: 10_000,
        };
        let senders = [flood(1, 1), flood(2, 2), modest];
        assert_near(&rates(&senders, 10), &[450e3, 450e3, 100e3]);
    }

    #[test]
    fn who_sends_ten_times_as_fast_has_no_more() {
        let faster = Sender {
            every_us: 40,
            ..flood(2, 2)
        };
        assert_near(&rates(&[flood(1, 1), faster], 10), &[500e3, 500e3]);
    }

    #[test]
    fn a_site_has_no_more_than_its_rate_and_shares_that_evenly_too() {
        let shares = Shares::new(RATE, RATE / 5, Instant::now());
        let faster = Sender {
            every_us: 40,
            ..flood(1, 2)
        };
        let modest = Sender {
            bytes: 300,
            every_us: 10_000,
            ..flood(1, 3)
        };
        let senders = [flood(1, 1), faster, modest, flood(2, 4)];
        let passed = passed_of(shares, &senders, 20);
        assert_near(&rates_of(passed, 20), &[85e3, 85e3, 30e3, 200e3]);
    }

    fn senders() -> impl Strategy<Value = Vec<Sender>> {
        let one = (0..4u8, 0..6u16, 100..9000u64, 100..100_000u64);
        proptest::collection::vec(one, 1..12).prop_map(|all| {
            let mut senders: Vec<Sender> = Vec::new();
            for (site, place, bytes, every_us) in all {
                // A place is at one site, and is one sender here.
                let place = place * 4 + u16::from(site);
                if senders.iter().all(|other| other.place != place) {
                    senders.push(Sender {
                        site,
                        place,
                        bytes,
                        every_us,
                    });
                }
            }
            senders
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn all_together_have_no_more_than_the_rate_and_one_burst(senders in senders()) {
            let mut all: Vec<(u64, u64)> = passed(&senders, 4).concat();
            all.sort_unstable();
            for first in (0..all.len()).step_by(50) {
                for window_us in [1_000, 100_000, 1_000_000, 3_000_000] {
                    let until = all[first].0 + window_us;
                    let sum: u64 = all[first..].iter().take_while(|(at, _)| *at <= until).map(|(_, bytes)| bytes).sum();
                    // Debts are paid off in steps of a millisecond.
                    let most = RATE * (window_us + 1_000) / 1_000_000 + RATE / 4;
                    prop_assert!(sum <= most, "{} in {} us", sum, window_us);
                }
            }
        }

        #[test]
        fn who_asks_for_less_than_its_even_part_gets_it_all(mut senders in senders(), places in 1..5u16) {
            // A site of its own, and small datagrams: 60 % of the part that it has even if all the others flood.
            let sites = 5.0;
            let part = RATE as f64 / sites / f64::from(places);
            for place in 0..places {
                let every_us = (200.0 * 1e6 / (0.6 * part)) as u64;
                senders.push(Sender { site: 9, place: 100 + place, bytes: 200, every_us });
            }
            for (sender, rate) in senders.iter().zip(rates(&senders, 5)).filter(|(sender, _)| sender.site == 9) {
                prop_assert!(rate >= sender.rate() * 0.99, "{} of {}", rate, sender.rate());
            }
        }
    }
}
