//! A crowd as the internet has them. That everybody is reached but for two seconds after a loss is judged by `make prove`,
//! of a thousand members; here it is seen of forty.

use crate::common::{SECOND, seed};
use sim::crowd::{Plan, tell};

/// How many there are, if `FARLAN_MEMBERS` does not ask for more.
const MEMBERS: usize = 40;

fn members() -> usize {
    match std::env::var("FARLAN_MEMBERS") {
        Ok(text) => text.parse().expect("FARLAN_MEMBERS is a number"),
        Err(_) => MEMBERS,
    }
}

#[test]
fn forty_members_behind_what_the_internet_has_all_meet_and_go_on_after_a_loss() {
    let figures = tell(Plan {
        seed: seed(60),
        members: members(),
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
    assert!(figures.is_kept(), "{again}");
    assert!(
        figures.reached > 5_000 && figures.relays_lost == 3,
        "{again}"
    );
}
