//! A crowd as the internet has them. That everybody is reached but for two seconds after a loss is judged by `make prove`,
//! and not kept yet: a member that gets out by streams alone can take longer when its relay is lost. Here it is seen that no
//! more than that is amiss.

use crate::common::{SECOND, seed};
use sim::crowd::{Plan, tell};

#[test]
fn forty_members_behind_what_the_internet_has_all_meet_and_go_on_after_a_loss() {
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
    let again = format!(
        "FARLAN_SEED={} tells it again: {:#?}",
        figures.plan.seed, figures.unreached_first
    );
    assert_eq!((figures.never, figures.plaintext), (0, 0), "{again}");
    assert!(figures.unreached * 100 < figures.reached, "{again}");
}
