//! What becomes of the figures: a table, JSON, and the pictures of the performance page.

use crate::{
    Options,
    chart::{self, Bar, figure},
    measure::{COLUMNS, Figures},
    peer::Peer,
};
use anyhow::{Context, Result};
use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// One tunnel's figures over all its runs, in the order of [`COLUMNS`].
pub(crate) struct Row {
    name: String,
    version: String,
    runs: usize,
    figures: Vec<Spread>,
}

#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Row {
    pub(crate) fn new(peer: &Peer, runs: &[Figures]) -> Self {
        let spread = |at: usize| {
            let mut all: Vec<f64> = runs.iter().map(|run| run.0[at]).collect();
            all.retain(|value| !value.is_nan());
            all.sort_by(f64::total_cmp);
            let pick = |at: usize| all.get(at).copied().unwrap_or(f64::NAN);
            Spread {
                median: pick(all.len() / 2),
                least: pick(0),
                most: pick(all.len().saturating_sub(1)),
            }
        };
        Self {
            name: peer.name.clone(),
            version: peer.version.clone(),
            runs: runs.len(),
            figures: (0..COLUMNS.len()).map(spread).collect(),
        }
    }
}

/// The table in Markdown: a line for each figure, a column for each tunnel, medians with their ranges.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines = vec![String::from("| |"), String::from("|---|")];
    for row in rows {
        lines[0] += &format!(" {} {} ({} runs) |", row.name, row.version, row.runs);
        lines[1] += "---:|";
    }
    for (at, column) in COLUMNS.iter().enumerate() {
        if !is_measured(rows, at) {
            continue;
        }
        let aim = if column.more_is_better {
            "more"
        } else {
            "less"
        };
        let mut line = format!("| {}, {} ({aim} is better) |", column.name, column.unit);
        for row in rows {
            let Spread {
                median,
                least,
                most,
            } = row.figures[at];
            line += &format!(" {} ({}–{}) |", figure(median), figure(least), figure(most));
        }
        lines.push(line);
    }
    lines.join("\n") + "\n"
}

fn is_measured(rows: &[Row], at: usize) -> bool {
    rows.iter().any(|row| !row.figures[at].median.is_nan())
}

/// Everything, run by run.
pub(crate) fn json(rows: &[Row], runs: &BTreeMap<String, Vec<Figures>>) -> String {
    let names: Vec<String> = COLUMNS
        .iter()
        .map(|column| format!("{}, {}", column.name, column.unit))
        .collect();
    let peers: BTreeMap<_, _> = rows
        .iter()
        .map(|row| {
            let runs: Vec<_> = runs[&row.name].iter().map(|run| &run.0).collect();
            (&row.name, json!({"version": row.version, "runs": runs}))
        })
        .collect();
    format!("{:#}\n", json!({"columns": names, "peers": peers}))
}

/// Writes the table and the pictures into `directory`.
pub(crate) fn write(directory: &Path, rows: &[Row], table: &str, options: &Options) -> Result<()> {
    fs::create_dir_all(directory)?;
    let (kind, options) = match (options.offloads, options.only_tcp) {
        (true, false) => ("", ""),
        (true, true) => ("only-", " --tcp"),
        (false, false) => ("no-offloads-", " --no-offloads"),
        (false, true) => ("no-offloads-", " --no-offloads --tcp"),
    };
    let pictures: [(&str, usize); 5] = [
        ("tcp", 0),
        ("cpu", 3),
        ("udp-1300", 4),
        ("rtt", 9),
        ("rtt-loaded", 12),
    ];
    for (name, at) in pictures
        .into_iter()
        .filter(|(_, at)| is_measured(rows, *at))
    {
        // The bare cable is no tunnel, and would make all other bars short.
        let bars: Vec<Bar> = rows
            .iter()
            .filter(|row| row.name != "cable")
            .map(|row| Bar {
                label: row.name.clone(),
                median: row.figures[at].median,
                least: row.figures[at].least,
                most: row.figures[at].most,
                is_ours: row.name == "farlan",
            })
            .collect();
        let picture = chart::bars(COLUMNS[at].name, COLUMNS[at].unit, &bars);
        fs::write(directory.join(format!("{kind}{name}.svg")), picture)?;
    }
    let said = |program: &str, arguments: &[&str]| -> Result<String> {
        let output = Command::new(program).args(arguments).output();
        let output = output.with_context(|| format!("run {program}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let head = format!(
        "Measured on {} by `tests/bench/compare{options}`: {} processors ({}), {}, {}.\n\n",
        said("date", &["-u", "+%F"])?,
        std::thread::available_parallelism()?,
        model.trim_start_matches([' ', '\t', ':']),
        said("uname", &["-sr"])?,
        said("iperf3", &["--version"])?
            .lines()
            .next()
            .unwrap_or_default(),
    );
    fs::write(directory.join(format!("{kind}table.md")), head + table)?;
    Ok(())
}
