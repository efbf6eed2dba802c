//! Whether this host's clock agrees with others', as far as the way there lets one tell.

use super::{finding, ok, unknown};
use overlay_types::doctor::{Check, CheckKind};
use std::time::Duration;

/// Leases need clocks within 30 s of each other: a third of it is time to act.
const APART_MAX: Duration = Duration::from_secs(10);

/// Somebody's clock, beside ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockSample {
    /// Whose.
    pub who: String,
    /// How far it is ahead of ours, in milliseconds.
    pub ahead_ms: i64,
    /// How wrong that may be: half the round trip, in milliseconds.
    pub error_ms: u64,
}

impl ClockSample {
    /// The clock showed `theirs` at some time between `asked` and `answered` of ours, all in Unix milliseconds.
    pub fn new(who: String, asked: u64, theirs: u64, answered: u64) -> Self {
        let half = answered.saturating_sub(asked) / 2;
        let ours = asked.saturating_add(half);
        let ahead = i128::from(theirs) - i128::from(ours);
        Self {
            who,
            ahead_ms: ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64,
            error_ms: half,
        }
    }

    /// Whether it is surely too far from ours.
    fn is_apart(&self) -> bool {
        let surely = self.ahead_ms.unsigned_abs().saturating_sub(self.error_ms);
        u128::from(surely) > APART_MAX.as_millis()
    }

    fn seconds(&self) -> String {
        let ahead = if self.ahead_ms < 0 {
            "behind"
        } else {
            "ahead of"
        };
        let seconds = self.ahead_ms.unsigned_abs() as f64 / 1000.0;
        format!("{seconds:.1} s {ahead}")
    }
}

/// Judges all of them: where most are apart from ours, ours is wrong.
pub(super) fn check(clocks: &[ClockSample]) -> Check {
    let kind = CheckKind::Clock;
    let apart: Vec<_> = clocks.iter().filter(|clock| clock.is_apart()).collect();
    let Some(worst) = apart
        .iter()
        .max_by_key(|clock| clock.ahead_ms.unsigned_abs())
    else {
        let Some(worst) = clocks
            .iter()
            .max_by_key(|clock| clock.ahead_ms.unsigned_abs())
        else {
            return unknown(kind, "nobody told the time");
        };
        let (seconds, error) = (worst.seconds(), worst.error_ms);
        return ok(
            kind,
            format!(
                "of {} asked, the furthest is {seconds} ours, ±{error} ms",
                clocks.len()
            ),
        );
    };
    let (who, seconds) = (&worst.who, worst.seconds());
    if apart.len() * 2 > clocks.len() {
        let evidence = format!(
            "{} of {} clocks differ from ours; that of {who} is {seconds} ours",
            apart.len(),
            clocks.len()
        );
        return finding(
            kind,
            evidence,
            "set this host's clock, best by NTP: beyond 30 s it gets and renews no addresses",
        );
    }
    let names: Vec<_> = apart.iter().map(|clock| clock.who.as_str()).collect();
    finding(
        kind,
        format!("the clock of {who} is {seconds} ours, while others agree with ours"),
        format!("set the clock at {}, best by NTP", names.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_types::doctor::Verdict;

    fn clock(who: &str, ahead_ms: i64, error_ms: u64) -> ClockSample {
        ClockSample {
            who: who.into(),
            ahead_ms,
            error_ms,
        }
    }

    #[test]
    fn half_the_round_trip_is_the_error() {
        let sample = ClockSample::new("a".into(), 1000, 5050, 1100);
        assert_eq!((sample.ahead_ms, sample.error_ms), (4000, 50));
        let behind = ClockSample::new("a".into(), 10_000, 0, 10_000);
        assert_eq!(behind.ahead_ms, -10_000);
    }

    #[test]
    fn clocks_are_judged_by_what_is_sure_and_by_the_majority() {
        let cases: [(&[ClockSample], Verdict, &str); 7] = [
            (&[], Verdict::Unknown, "nobody"),
            (&[clock("a", 9_000, 0)], Verdict::Ok, "9.0 s ahead"),
            (&[clock("a", 12_000, 5_000)], Verdict::Ok, "±5000 ms"),
            (
                &[clock("a", -12_000, 100)],
                Verdict::Finding,
                "12.0 s behind",
            ),
            (
                &[
                    clock("a", 20_000, 9),
                    clock("b", 21_000, 9),
                    clock("c", 1, 9),
                ],
                Verdict::Finding,
                "2 of 3",
            ),
            (
                &[clock("a", 20_000, 9), clock("b", 5, 9), clock("c", 1, 9)],
                Verdict::Finding,
                "of a is",
            ),
            (&[clock("a", i64::MIN, 0)], Verdict::Finding, "behind"),
        ];
        for (clocks, verdict, words) in cases {
            let check = check(clocks);
            assert_eq!(check.verdict, verdict, "{check:?}");
            assert!(check.evidence.contains(words), "{check:?}");
        }
        let one_off = [clock("a", 20_000, 9), clock("b", 5, 9)];
        let advice = check(&one_off).advice.unwrap();
        assert!(advice.contains("at a"), "{advice}");
    }
}
