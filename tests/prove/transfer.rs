//! What the tunnel carries where the way is not straight: through a relay, and over a path that loses.

use crate::measuring::{Spread, reported, stream};
use crate::overlay::{FARLAN, await_path, eventually, founder, lab, member, ping};
use crate::{Amount, Measured, processor_time, wire};
use anyhow::{Context, Result, ensure};
use cli::demo::Node;
use std::thread;
use std::time::Duration;

const FABRIC_PORT: u16 = 4077;

/// How long a path's size takes to be found out, at most.
const SETTLING: Duration = Duration::from_secs(8);

/// Mbit/s for the relay: more than this machine can carry.
const RELAY_RATE: &str = "100000";

/// Median and range in a table cell.
fn cell(values: &[f64]) -> String {
    let Spread {
        median,
        least,
        most,
    } = spread(values);
    format!("{median:.2} ({least:.2}–{most:.2})")
}

fn spread(values: &[f64]) -> Spread {
    Spread::of(values.iter().copied())
}

/// What one stream carried, and what that cost whom.
struct Carried {
    gigabits: f64,
    /// CPU seconds for each GB: of both end hosts together, and of the relay.
    ends: f64,
    relay: f64,
}

fn carried(nodes: [&mut Node; 3], target: &str, seconds: u64) -> Result<Carried> {
    let mut pids = Vec::new();
    let from = nodes[0].machine().clone();
    for node in nodes {
        pids.push(node.process().pid().context("running")?);
    }
    let used = || {
        pids.iter()
            .map(|pid| processor_time::of_process(*pid))
            .collect::<Result<Vec<f64>>>()
    };
    let before = used()?;
    let report = stream(&from, target, seconds, &[])?;
    let after = used()?;
    let of = |index: usize| after[index] - before[index];
    let gigabytes = reported(&report, "/sum_received/bytes")? / 1e9;
    let programs = reported(&report, "/cpu_utilization_percent/host_total")?
        + reported(&report, "/cpu_utilization_percent/remote_total")?;
    let programs = programs / 100.0 * seconds as f64;
    Ok(Carried {
        gigabits: reported(&report, "/sum_received/bits_per_second")? / 1e9,
        ends: (of(0) + of(1) + programs) / gigabytes,
        relay: of(2) / gigabytes,
    })
}

/// The same stream straight and through a relay.
pub(crate) fn relay(amount: Amount) -> Result<Measured> {
    let seconds = if amount.runs > 2 { 10 } else { 4 };
    let (mut straight, mut relayed): (Vec<Carried>, Vec<Carried>) = (Vec::new(), Vec::new());
    for _ in 0..amount.runs {
        let lab = lab("relay-load");
        let host = lab.public_host("fabric")?;
        let listen = format!("{}:{FABRIC_PORT}", host.address());
        let rates = [
            "--relay-rate",
            RELAY_RATE,
            "--relay-rate-member",
            RELAY_RATE,
        ];
        let (mut fabric, bootstrap) = Node::fabric_with(&host, FARLAN, &listen, &rates)?;
        let (a, b) = (lab.public_host("a")?, lab.public_host("b")?);
        let mut first = founder(&a, &bootstrap, "lab", &[]);
        let mut second = member(&b, &first, "lab");
        let target = second.address("lab")?;
        let _server = b.spawn("iperf3", &["iperf3", "-s"])?;
        for (path, to) in [("direct", &mut straight), ("relay", &mut relayed)] {
            if path == "relay" {
                for (here, there) in [(&a, &b), (&b, &a)] {
                    here.nft(&format!(
                        "table inet apart {{\n chain in {{\n type filter hook input priority 0\n ip saddr {} udp dport 1-65535 drop\n }}\n}}",
                        there.address()
                    ))?;
                }
            }
            eventually(|| ping(&a, &target))?;
            await_path(&first, "lab", "b", path)?;
            thread::sleep(SETTLING);
            let nodes = [&mut first, &mut second, &mut fabric];
            to.push(carried(nodes, &target, seconds)?);
        }
    }
    let column =
        |of: &[Carried], pick: fn(&Carried) -> f64| of.iter().map(pick).collect::<Vec<_>>();
    let row = |what: &str, of: &[Carried]| {
        format!(
            "| {what} | {} | {} | {} |",
            cell(&column(of, |c| c.gigabits)),
            cell(&column(of, |c| c.ends)),
            cell(&column(of, |c| c.relay)),
        )
    };
    let mut lines = vec![
        "| | Gbit/s | CPU of both end hosts, s/GB | CPU of the relay, s/GB |".to_owned(),
        "|---|---:|---:|---:|".to_owned(),
        row("straight", &straight),
        row("through the relay", &relayed),
    ];
    let ends = |of: &[Carried]| spread(&column(of, |c| c.ends)).median;
    let share = ends(&straight) / ends(&relayed);
    let relay = spread(&column(&relayed, |c| c.relay)).median / (ends(&relayed) / 2.0);
    lines.push(format!(
        "\n{} runs of {seconds} s, medians and ranges; all of it on the same processors. Through the relay each CPU second of the end hosts carries {share:.2} of what it carries straight (goal: 0.6); the relay's CPU for each GB is {relay:.2} of an end host's (goal: under 0.5).",
        amount.runs
    ));
    Ok(Measured {
        kept: share >= 0.6 && relay < 0.5,
        lines,
    })
}

/// TCP inside and outside of the tunnel over the same cable, which loses.
pub(crate) fn lossy(amount: Amount) -> Result<Measured> {
    const DELAY: Duration = Duration::from_millis(20);
    const LOSS: f64 = 0.01;
    const ADDRESSES: [&str; 2] = ["198.18.200.1", "198.18.200.2"];
    let (runs, seconds) = if amount.runs > 2 { (5, 60) } else { (1, 20) };
    let lab = lab("lossy");
    let (a, b) = (lab.machine("a")?, lab.machine("b")?);
    wire::lay((&a, &b), "wire", DELAY, LOSS)?;
    for (machine, address) in [(&a, ADDRESSES[0]), (&b, ADDRESSES[1])] {
        machine.ip(&[
            &format!("address add {address}/24 dev wire"),
            "link set wire up",
        ])?;
    }
    let listen = format!("{}:{FABRIC_PORT}", ADDRESSES[0]);
    let (_fabric, bootstrap) = Node::fabric(&a, FARLAN, &listen)?;
    let first = founder(&a, &bootstrap, "lab", &[]);
    let second = member(&b, &first, "lab");
    let inside = second.address("lab")?;
    let _server = b.spawn("iperf3", &["iperf3", "-s"])?;
    eventually(|| ping(&a, &inside))?;
    await_path(&first, "lab", "b", "direct")?;
    thread::sleep(SETTLING);
    let mut goodput = [Vec::new(), Vec::new()];
    for _ in 0..runs {
        for (values, target) in goodput.iter_mut().zip([ADDRESSES[1], &inside]) {
            let report = stream(&a, target, seconds, &["-C", "cubic"])?;
            values.push(reported(&report, "/sum_received/bits_per_second")? / 1e6);
        }
    }
    let [outside, inside] = goodput;
    ensure!(outside.len() == runs, "every run was measured");
    let share = spread(&inside).median / spread(&outside).median;
    let lines = vec![
        "| TCP (CUBIC) | Mbit/s |".to_owned(),
        "|---|---:|".to_owned(),
        format!("| outside | {} |", cell(&outside)),
        format!("| inside | {} |", cell(&inside)),
        format!(
            "\n{runs} runs of {seconds} s each, by turns, medians and ranges; 1 % of the frames lost each way, 40 ms there and back, no offloads on the cable. Inside has {share:.2} of the goodput outside (goal: 0.9)."
        ),
    ];
    Ok(Measured {
        kept: share >= 0.9,
        lines,
    })
}
