//! What the programs that measure share: streams of iperf3, medians with their ranges, and what the host tells of itself.

use anyhow::{Context, Result, bail};
use cli::lab::Machine;
use serde_json::Value;
use std::{fs, process::Command, time::Duration};

/// What iperf3 says at the end of a stream of so many seconds.
pub(crate) fn stream(
    from: &Machine,
    target: &str,
    seconds: u64,
    options: &[&str],
) -> Result<Value> {
    let time = seconds.to_string();
    let mut words = vec!["iperf3", "-c", target, "-J", "-t", &time];
    words.extend(options);
    let said = from.run_for(Duration::from_secs(seconds + 20), &words)?;
    let mut report: Value = serde_json::from_str(&said).context("iperf3's report")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    Ok(report["end"].take())
}

/// A number of such a report.
pub(crate) fn reported(report: &Value, at: &str) -> Result<f64> {
    let value = report.pointer(at).and_then(Value::as_f64);
    value.with_context(|| format!("iperf3 tells no {at}"))
}

/// Median, least and most of several runs; no numbers when there were none.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of all values that are numbers.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
        all.sort_by(f64::total_cmp);
        let pick = |at: usize| all.get(at).copied().unwrap_or(f64::NAN);
        Self {
            median: pick(all.len() / 2),
            least: pick(0),
            most: pick(all.len().saturating_sub(1)),
        }
    }
}

/// Resident memory of a process in MiB: now (`VmRSS`) or at its most (`VmHWM`).
pub(crate) fn resident_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = line.with_context(|| format!("no {field} in status"))?;
    Ok(kilobytes.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// What the processor calls itself.
pub(crate) fn processor() -> Result<String> {
    let all = fs::read_to_string("/proc/cpuinfo")?;
    let model = all.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.unwrap_or_default();
    Ok(model.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// What a program says.
pub(crate) fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
