//! Compares the tunnel with the bare cable and with the other tunnels that are on this machine, each between two machines
//! of the lab that one cable joins. Everything runs on the same processors, so the ratios are the claim, not the figures.
//! How it is called: `tests/bench/compare`.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]

mod chart;
mod measure;
#[path = "../measuring.rs"]
mod measuring;
mod peer;
mod report;

use anyhow::{Context, Result, bail};
use measure::Figures;
use peer::{Peer, Rig};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// What is asked for.
struct Options {
    runs: usize,
    seconds: u64,
    only: Vec<String>,
    offloads: bool,
    only_tcp: bool,
    json: Option<String>,
    write: bool,
}

fn main() -> Result<()> {
    let options = options()?;
    let peers: Vec<Peer> = peer::found()
        .into_iter()
        .filter(|peer| options.only.is_empty() || options.only.contains(&peer.name))
        .collect();
    let mut runs: BTreeMap<String, Vec<Figures>> = BTreeMap::new();
    for run in 1..=options.runs {
        for peer in &peers {
            measure::wait_until_quiet(Duration::from_secs(60));
            let figures = Rig::start(peer, options.offloads)
                .and_then(|rig| measure::all(&rig, options.seconds, options.only_tcp))
                .with_context(|| format!("measure {}", peer.name));
            match figures {
                Ok(figures) => {
                    println!("[{run}] {:<14} {figures}", peer.name);
                    runs.entry(peer.name.clone()).or_default().push(figures);
                }
                Err(error) => eprintln!("[{run}] {}: {error:#}", peer.name),
            }
        }
    }
    let rows: Vec<report::Row> = peers
        .iter()
        .filter_map(|peer| Some(report::Row::new(peer, runs.get(&peer.name)?)))
        .collect();
    let table = report::table(&rows);
    println!("\n{table}");
    if let Some(file) = &options.json {
        std::fs::write(file, report::json(&rows, &runs))
            .with_context(|| format!("write {file}"))?;
    }
    if options.write {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/performance");
        report::write(&directory, &rows, &table, &options)?;
    }
    Ok(())
}

fn options() -> Result<Options> {
    let mut options = Options {
        runs: 3,
        seconds: 3,
        only: Vec::new(),
        offloads: true,
        only_tcp: false,
        json: None,
        write: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word} wants a value"))
        };
        match word.as_str() {
            "--runs" => options.runs = value()?.parse().context("--runs wants a number")?,
            "--seconds" => {
                options.seconds = value()?.parse().context("--seconds wants a number")?
            }
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            "--no-offloads" => options.offloads = false,
            "--tcp" => options.only_tcp = true,
            "--json" => options.json = Some(value()?),
            "--write" => options.write = true,
            _ => bail!(
                "usage: compare [--runs N] [--seconds N] [--only NAME,...] [--no-offloads] [--tcp] [--json FILE] [--write]"
            ),
        }
    }
    Ok(options)
}
