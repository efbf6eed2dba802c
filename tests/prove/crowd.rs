//! A thousand members in the simulator, behind what the internet has. Writes the figures of
//! `docs/reachability-at-scale.md`.

use crate::measuring::{processor, said};
use crate::{Amount, FULL, Measured, write_page};
use anyhow::Result;
use sim::crowd::{Plan, tell};
use std::time::{Duration, Instant};

/// The story that is promised, and the one of `--short`.
const MEMBERS: usize = 1000;
const MEMBERS_SHORT: usize = 40;

/// Within this time they all join: ten in a second, or two.
const JOINING: Duration = Duration::from_secs(100);
const JOINING_SHORT: Duration = Duration::from_secs(20);

/// How long the members talk: long enough for some of them to leave and come back, and for relays to be lost.
const TALKING: Duration = Duration::from_secs(900);
const TALKING_SHORT: Duration = Duration::from_secs(120);

/// Tells the story once; the same seed tells it again, bit for bit.
pub(crate) fn crowd(amount: Amount) -> Result<Measured> {
    let is_full = amount.runs >= FULL.runs;
    let began = Instant::now();
    let plan = Plan {
        seed: 1,
        members: if is_full { MEMBERS } else { MEMBERS_SHORT },
        relays: 10,
        joining: if is_full { JOINING } else { JOINING_SHORT },
        talking: if is_full { TALKING } else { TALKING_SHORT },
        churn_per_hour: 0.1,
        reboots_per_hour: 0.05,
        relays_lost: 0.3,
        partners: 2,
        talk: Duration::from_secs(600),
    };
    let figures = tell(plan, |progress| {
        eprintln!(
            "  {:4} s of the story after {:5} s: {} members are in, {} things happened, {} probes answered and {} not",
            progress.at.as_secs(),
            began.elapsed().as_secs(),
            progress.ready,
            progress.happened,
            progress.reached,
            progress.unreached
        );
    });
    let mut lines = vec![format!(
        "Told on {} by `make prove ARGS=crowd` in {:.0} s, {} x{}.\n",
        said("date", &["-u", "+%F"])?,
        began.elapsed().as_secs_f64(),
        processor()?,
        std::thread::available_parallelism()?,
    )];
    lines.extend(figures.lines());
    lines.extend(
        figures
            .unreached_first
            .iter()
            .map(|one| format!("\n{one:?}")),
    );
    lines.extend(figures.slow_first.iter().map(|one| format!("\n{one:?}")));
    if is_full {
        write_page("reachability-at-scale.md", &lines.join("\n"))?;
    }
    Ok(Measured {
        kept: figures.is_kept(),
        lines,
    })
}
