//! What floods cost a data plane in a process of its own, and what its honest peers notice of them.

use crate::flooding::{Outcome, Stage, bounds, start_flooded};
use crate::overlay::program;
use crate::{Amount, FULL, Measured};
use anyhow::{Context, Result, ensure};
use cli::lab::Lab;
use std::thread;
use std::time::Duration;

/// How long each flood lasts.
const SPAN: Duration = Duration::from_secs(10);
const SPAN_SHORT: Duration = Duration::from_secs(3);

/// What makes this program [`hold`] a data plane to be flooded.
pub(crate) const HOLD: &str = "be-flooded";

/// A data plane with its honest peers at `far`, until it is killed.
pub(crate) fn hold(far: &str) -> Result<()> {
    let _data_plane = start_flooded(far.parse()?)?;
    println!("holding");
    loop {
        thread::park();
    }
}

/// Every flood once.
pub(crate) fn flood(amount: Amount) -> Result<Measured> {
    let span = if amount.runs >= FULL.runs {
        SPAN
    } else {
        SPAN_SHORT
    };
    let this = std::env::current_exe()?;
    let lab = Lab::start_with("flood", &[&program(), &this], &[])?;
    let stage = Stage::build(&lab)?;
    let far = stage.far.address().to_string();
    let mut holder = stage.near.spawn("holder", &["prove", HOLD, &far])?;
    holder.wait_for_line("holding", Duration::from_secs(20))?;
    stage.assign_addresses()?;
    let pid = holder.pid().context("the holder runs")?;
    let outcomes = stage.flood_all(pid, span)?;
    ensure!(holder.is_running(), "the holder ended");
    let mut lines: Vec<String> = Outcome::HEADING.map(str::to_owned).into();
    lines.extend(outcomes.iter().map(Outcome::row));
    let breaches: Vec<String> = outcomes.iter().flat_map(Outcome::breaches).collect();
    lines.push(format!(
        "\nEach for {} s, from one thread that sends as fast as it can on the same machine; processor time of the flooded \
         process's threads, in parts of one processor. {}",
        span.as_secs(),
        bounds()
    ));
    lines.extend(
        breaches
            .iter()
            .map(|breach| format!("\nBroken by {breach}")),
    );
    Ok(Measured {
        kept: breaches.is_empty(),
        lines,
    })
}
