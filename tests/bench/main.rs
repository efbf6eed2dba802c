//! How fast it is here: a TCP stream and pings through the tunnel between two machines of the lab, beside the same
//! over the bare cable in the same run. Absolute figures on a shared machine mean little; the ratios are the claim.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]
#![allow(
    dead_code,
    reason = "the stage is shared with tests that use more of it"
)]

#[path = "../netns/overlay.rs"]
mod overlay;

use cli::lab::{Machine, Tool, require};
use overlay::{FARLAN, eventually, fabric, founder, lab, member, ping};
use std::time::Duration;

/// How long each stream runs.
const STREAM_SECONDS: &str = "5";

/// How many times each figure is taken, alternating between tunnel and cable; the median is told.
const PASSES: usize = 3;

fn main() -> anyhow::Result<()> {
    require(&[Tool {
        program: "iperf3",
        package: "iperf3",
    }])?;
    let lab = lab("bench");
    let (_fabric, bootstrap) = fabric(&lab);
    let (left, right) = (lab.public_host("left")?, lab.public_host("right")?);
    let first = founder(&left, &bootstrap, "bench", &[]);
    let second = member(&right, &first, "bench");
    let inside = second.address("bench")?;
    let outside = right.address().to_string();
    eventually(|| ping(&left, &inside))?;
    overlay::await_path(&first, "bench", "right", "direct")?;
    let mut server = right.spawn("iperf3", &["iperf3", "--server", "--forceflush"])?;
    server.wait_for_line("Server listening", Duration::from_secs(10))?;

    let ways = [("tunnel", inside.as_str()), ("cable", outside.as_str())];
    println!(
        "{:<8} {:>12} {:>12} {:>14} {:>14}",
        "", "TCP Gbit/s", "RTT ms", "loaded RTT ms", "node CPU s/GB"
    );
    let mut rows = vec![Vec::new(); ways.len()];
    for _ in 0..PASSES {
        for (rows, (_, target)) in rows.iter_mut().zip(ways) {
            rows.push(measure(&left, target)?);
        }
    }
    let median = |runs: &[Figures], pick: fn(&Figures) -> f64| {
        let mut all: Vec<f64> = runs.iter().map(pick).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    for ((name, _), runs) in ways.iter().zip(&rows) {
        println!(
            "{name:<8} {:>12.2} {:>12.3} {:>14.3} {:>14.2}",
            median(runs, |f| f.gigabits),
            median(runs, |f| f.rtt_ms),
            median(runs, |f| f.loaded_rtt_ms),
            median(runs, |f| f.cpu_per_gigabyte),
        );
    }
    Ok(())
}

/// What one pass over one way gave.
#[derive(Clone, Debug)]
struct Figures {
    gigabits: f64,
    rtt_ms: f64,
    loaded_rtt_ms: f64,
    cpu_per_gigabyte: f64,
}

fn measure(from: &Machine, target: &str) -> anyhow::Result<Figures> {
    let rtt_ms = round_trip(from, target)?;
    let before = cpu_seconds();
    let mut stream = from.spawn(
        "iperf3",
        &[
            "iperf3",
            "--client",
            target,
            "--time",
            STREAM_SECONDS,
            "--json",
        ],
    )?;
    let already = stream.log().len();
    let loaded_rtt_ms = round_trip(from, target)?;
    stream.wait(Duration::from_secs(30))?;
    let log = stream.log();
    // The log holds the reports of earlier passes too; ours is the last.
    let report: serde_json::Value = serde_json::from_str(log[already.min(log.len())..].trim())
        .or_else(|_| serde_json::from_str(&log[log.rfind("\n{").map_or(0, |at| at + 1)..]))?;
    let bits = report["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap_or_default();
    let bytes = report["end"]["sum_received"]["bytes"]
        .as_f64()
        .unwrap_or_default();
    Ok(Figures {
        gigabits: bits / 1e9,
        rtt_ms,
        loaded_rtt_ms,
        cpu_per_gigabyte: (cpu_seconds() - before) / (bytes / 1e9),
    })
}

/// The average of a second of pings, in milliseconds.
fn round_trip(from: &Machine, target: &str) -> anyhow::Result<f64> {
    let said = from.run(&["ping", "-q", "-c", "100", "-i", "0.01", target])?;
    // rtt min/avg/max/mdev = 0.030/0.045/0.101/0.012 ms
    let average = said
        .lines()
        .find_map(|line| line.split_once(" = ")?.1.split('/').nth(1)?.parse().ok());
    Ok(average.unwrap_or(f64::NAN))
}

/// What all farlan processes of this machine have used, in seconds.
fn cpu_seconds() -> f64 {
    let mut ticks = 0.0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some((name, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        if name.ends_with(&format!("({FARLAN}")) {
            let fields: Vec<&str> = rest.split_whitespace().collect();
            ticks +=
                fields[11].parse::<f64>().unwrap_or(0.0) + fields[12].parse::<f64>().unwrap_or(0.0);
        }
    }
    // USER_HZ is 100 on every Linux architecture that is still built.
    ticks / 100.0
}
