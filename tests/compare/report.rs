//! What becomes of the figures: a table, JSON, and the pictures of the performance page.

use crate::{
    Options,
    chart::{self, Bar, figure},
    measure::{COLUMNS, Figures},
    measuring::{Spread, processor, said},
    peer::Peer,
};
use anyhow::Result;
use serde_json::json;
use std::{collections::BTreeMap, fs, path::Path};

/// One tunnel's figures over all its runs, in the order of [`COLUMNS`].
pub(crate) struct Row {
    name: String,
    version: String,
    runs: usize,
    figures: Vec<Spread>,
}

impl Row {
    pub(crate) fn new(peer: &Peer, runs: &[Figures]) -> Self {
        let spread = |at: usize| Spread::of(runs.iter().map(|run| run.0[at]));
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
        (true, true) => ("tcp-alone-", " --tcp"),
        (false, false) => ("no-offloads-", " --no-offloads"),
        (false, true) => ("no-offloads-", " --no-offloads --tcp"),
    };
    for (at, column) in COLUMNS.iter().enumerate() {
        let Some(name) = column.picture.filter(|_| is_measured(rows, at)) else {
            continue;
        };
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
        let picture = chart::bars(column.name, column.unit, &bars);
        fs::write(directory.join(format!("{kind}{name}.svg")), picture)?;
    }
    let head = format!(
        "Measured on {} by `tests/bench/compare{options}`: {} processors ({}), {}, {}.\n\n",
        said("date", &["-u", "+%F"])?,
        std::thread::available_parallelism()?,
        processor()?,
        said("uname", &["-sr"])?,
        said("iperf3", &["--version"])?
            .lines()
            .next()
            .unwrap_or_default(),
    );
    fs::write(directory.join(format!("{kind}table.md")), head + table)?;
    Ok(())
}
