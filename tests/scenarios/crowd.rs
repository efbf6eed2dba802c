//! A crowd as the internet has them. That everybody is reached but for two seconds after a loss is judged by `make prove`,
//! of a thousand members; here it is seen of forty.

use crate::common::{SECOND, seed};
use sim::crowd::{Plan, tell};

/// A number that the environment asks for.
fn asked(name: &str) -> Option<u32> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Forty members for two minutes in which some leave; `FARLAN_MEMBERS` asks for more. With `FARLAN_TALKING` it is the story of
/// `make prove` for so many seconds.
fn plan() -> Plan {
    let short = Plan {
        seed: seed(60),
        members: asked("FARLAN_MEMBERS").unwrap_or(40) as usize,
        relays: 10,
        joining: 20 * SECOND,
        talking: 120 * SECOND,
        churn_per_hour: 1.0, // so that somebody leaves within two minutes
        reboots_per_hour: 0.5,
        relays_lost: 0.3,
        partners: 2,
        talk: 60 * SECOND,
    };
    let Some(seconds) = asked("FARLAN_TALKING") else {
        return short;
    };
    Plan {
        talking: seconds * SECOND,
        churn_per_hour: 0.1,
        reboots_per_hour: 0.05,
        talk: 600 * SECOND,
        ..short
    }
}

#[test]
fn forty_members_behind_what_the_internet_has_all_meet_and_go_on_after_a_loss() {
    let began = std::time::Instant::now();
    let figures = tell(plan(), |_| ());

    println!("told in {:?}", began.elapsed());
    println!("{}", figures.lines().join("\n"));
    for slow in &figures.slow_first {
        println!("{slow:?}");
    }
    let again = format!(
        "FARLAN_SEED={} tells it again: {:#?}",
        figures.plan.seed, figures.unreached_first
    );
    assert!(figures.is_kept(), "{again}");
    // Idle sessions that keep each other awake show here first.
    let minutes = (figures.plan.joining + figures.plan.talking).as_secs_f64() / 60.0;
    let each = figures.happened as f64 / minutes / figures.plan.members as f64;
    assert!(
        each < 10_000.0,
        "{each:.0} datagrams to each in a minute: {again}"
    );
    assert!(
        figures.reached > 5_000 && figures.relays_lost == 3,
        "{again}"
    );
}
