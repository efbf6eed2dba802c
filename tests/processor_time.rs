//! The processor time that a process and its threads have used so far.

use anyhow::{Context, Result};
use std::fs;

/// Of a whole process, in seconds.
pub(crate) fn of_process(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, seconds) = used(&stat).context("stat")?;
    Ok(seconds)
}

/// Name and processor seconds so far of each thread of a process.
pub(crate) fn of_threads(pid: u32) -> Result<Vec<(String, f64)>> {
    let mut threads = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has just ended has nothing to read.
        let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else {
            continue;
        };
        let (name, seconds) = used(&stat).context("stat")?;
        threads.push((name.to_owned(), seconds));
    }
    Ok(threads)
}

/// Name and processor seconds in a `stat` of proc(5). USER_HZ is 100 on every Linux architecture that is still built.
fn used(stat: &str) -> Option<(&str, f64)> {
    let (before, after) = stat.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = after.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((name, (ticks()? + ticks()?) / 100.0))
}
