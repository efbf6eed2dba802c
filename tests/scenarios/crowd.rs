//! A crowd as the internet has them: everybody reaches everybody, but for two seconds after a loss.

use crate::common::{SECOND, seed};
use sim::crowd::{Plan, tell};

#[test]
fn forty_members_behind_what_the_internet_has_reach_each_other_but_for_two_seconds_after_a_loss() {
    let figures = tell(Plan {
        seed: seed(60),
        members: 40,
        relays: 10,
        joining: 20 * SECOND,
        talking: 120 * SECOND,
        churn_per_hour: 1.0, // so that somebody leaves within two minutes
        reboots_per_hour: 0.5,
        relays_lost: 0.3,
        partners: 2,
        talk: 60 * SECOND,
    });

    println!("{}", figures.lines().join("\n"));
    assert!(
        figures.is_kept(),
        "FARLAN_SEED={} tells it again: {:#?}",
        figures.plan.seed,
        figures.unreached_first
    );
}
