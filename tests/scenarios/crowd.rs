//! A crowd as the internet has them: everybody reaches everybody, but for two seconds after a loss.

use crate::common::seed;
use sim::crowd::{Plan, tell};
use std::time::Duration;

#[test]
fn a_hundred_members_behind_what_the_internet_has_reach_each_other_but_for_two_seconds_after_a_loss()
 {
    let env = |name: &str, own: u64| std::env::var(name).map_or(own, |text| text.parse().unwrap());
    let figures = tell(Plan {
        seed: seed(60),
        members: env("CROWD", 100) as usize,
        relays: 10,
        joining: Duration::from_secs(env("JOINING", 20)),
        talking: Duration::from_secs(env("TALKING", 180)),
        churn_per_hour: env("CHURN", 100) as f64 / 100.0,
        reboots_per_hour: env("REBOOTS", 50) as f64 / 100.0,
        relays_lost: 0.3,
        partners: 2,
        talk: Duration::from_secs(env("TALK", 60)),
    });

    println!("{}", figures.lines().join("\n"));
    println!(
        "{:#?}",
        figures.unreached_first.iter().take(10).collect::<Vec<_>>()
    );
    assert_eq!(figures.unreached, 0);
    assert_eq!(figures.never, 0);
    assert_eq!(figures.plaintext, 0);
}
