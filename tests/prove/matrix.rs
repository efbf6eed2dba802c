//! The reachability matrix, cell by cell: how soon data passes between two kinds of site, by which path, and how soon that is
//! straight. Writes the table of `docs/reachability.md`. Every try is kept as it is made, so that a run goes on where
//! another stopped.

use crate::measuring::{processor, said};
use crate::overlay::lab;
use crate::reachability::kinds::{Cell, Kind, MATRIX, Way, cells, expectation};
use crate::reachability::stage::{Stage, Tried, tour};
use crate::{Amount, Measured, SHORT, cache, is_fresh, write_page};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

/// Goals, from when both nodes are up.
const FIRST_DATA_GOAL: Duration = Duration::from_secs(1);
const DIRECT_GOAL: Duration = Duration::from_secs(3);

/// How many of a predicted cell's tries are to end straight, and in time.
const PREDICTED_GOAL: f64 = 0.95;

/// A predicted cell is a matter of chance, so it is tried so many times as often as others.
const PREDICTED_TIMES: usize = 10;

/// What a cell's line in the store says of a try that reached nobody.
const UNREACHED: &str = "unreached";

/// Two at a time, to be through in half an hour: a try is waiting for the most part. What a goal holds for two holds for one.
const AT_ONCE: usize = 2;

/// What the tries of one cell gave.
#[derive(Default)]
struct Record {
    tried: Vec<Tried>,
    unreached: usize,
}

impl Record {
    fn len(&self) -> usize {
        self.tried.len() + self.unreached
    }

    /// Those that ended on a path of this kind.
    fn by(&self, path: &str) -> usize {
        self.tried.iter().filter(|one| one.path == path).count()
    }

    fn first_data(&self) -> Option<[Duration; 2]> {
        median_and_worst(self.tried.iter().map(|one| one.first_data))
    }

    fn direct(&self) -> Option<[Duration; 2]> {
        let direct = self.tried.iter().filter(|one| one.path == "direct");
        median_and_worst(direct.map(|one| one.settled))
    }

    /// Whether it is what was promised of the cell.
    fn is_kept(&self, way: Way) -> bool {
        let expected = |one: &&Tried| {
            way.is_kept_by(&one.path) && (one.path != "direct" || one.settled < DIRECT_GOAL)
        };
        let share = self.tried.iter().filter(expected).count() as f64 / self.len().max(1) as f64;
        let enough = if way == Way::Predicted {
            share >= PREDICTED_GOAL
        } else {
            share >= 1.0
        };
        let soon = self
            .tried
            .iter()
            .all(|one| one.first_data < FIRST_DATA_GOAL);
        self.unreached == 0 && enough && soon
    }
}

fn median_and_worst(times: impl Iterator<Item = Duration>) -> Option<[Duration; 2]> {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    Some([*times.get(times.len() / 2)?, *times.last()?])
}

/// Where the tries of a cell are kept.
fn store((a, b): Cell) -> Result<PathBuf> {
    let directory = cache()?.join("matrix");
    fs::create_dir_all(&directory)?;
    Ok(directory.join(format!("{a} + {b}")))
}

/// The tries of a cell that were made with this build.
fn recorded(cell: Cell) -> Result<Record> {
    let path = store(cell)?;
    let mut record = Record::default();
    if !is_fresh(&path) {
        let _none = fs::remove_file(&path);
        return Ok(record);
    }
    for line in fs::read_to_string(&path)?.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            [first, settled, path] => record.tried.push(Tried {
                first_data: Duration::from_micros(first.parse()?),
                settled: Duration::from_micros(settled.parse()?),
                path: (*path).to_owned(),
            }),
            _ => record.unreached += 1,
        }
    }
    Ok(record)
}

fn note(cell: Cell, tried: &Result<Tried>) -> Result<()> {
    let line = match tried {
        Ok(tried) => format!(
            "{} {} {}",
            tried.first_data.as_micros(),
            tried.settled.as_micros(),
            tried.path
        ),
        Err(_) => UNREACHED.to_owned(),
    };
    let mut file = fs::File::options()
        .create(true)
        .append(true)
        .open(store(cell)?)?;
    writeln!(file, "{line}").context("keep a try")
}

/// Every cell, as often as is asked for.
pub(crate) fn matrix(amount: Amount) -> Result<Measured> {
    let wanted = |cell: Cell| match expectation(cell.0, cell.1).0 {
        Way::Predicted => amount.runs * PREDICTED_TIMES,
        _ => amount.runs,
    };
    let tried: Vec<Cell> = cells();
    let mut left = BTreeMap::new();
    for cell in &tried {
        left.insert(*cell, wanted(*cell).saturating_sub(recorded(*cell)?.len()));
    }
    // A round tries each cell once, in a lab of its own: what nodes of earlier rounds left behind is gone.
    let fault = Mutex::new(None);
    while left.values().any(|count| *count > 0) {
        let round: Vec<Cell> = left
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(cell, _)| *cell)
            .collect();
        println!(
            "matrix: {} cells, {} tries to go",
            round.len(),
            left.values().sum::<usize>()
        );
        let lab = lab("matrix");
        let stage = Stage::build(&lab, &round)?;
        tour(&stage, round, AT_ONCE, |cell, tried| {
            if let Err(error) = &tried {
                println!("{error:#}");
            }
            if let Err(error) = note(cell, &tried) {
                *fault.lock().unwrap() = Some(error);
            }
        });
        if let Some(error) = fault.lock().unwrap().take() {
            return Err(error);
        }
        left.values_mut()
            .for_each(|count| *count = count.saturating_sub(1));
    }
    let mut records = BTreeMap::new();
    for cell in tried {
        records.insert(cell, recorded(cell)?);
    }
    let lines = page(&records)?;
    let kept = records
        .iter()
        .all(|(cell, record)| record.is_kept(expectation(cell.0, cell.1).0));
    if amount.runs > SHORT.runs {
        write_page("reachability.md", &lines.join("\n"))?;
    }
    Ok(Measured { kept, lines })
}

fn page(records: &BTreeMap<Cell, Record>) -> Result<Vec<String>> {
    let tries: usize = records.values().map(Record::len).sum();
    let reached: usize = records.values().map(|record| record.tried.len()).sum();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut lines = vec![format!(
        "Measured on {} by `make prove ARGS=\"{}\"`, {} x{}, Linux {}: {reached} of {tries} tries reached the other node, {AT_ONCE} at a time.\n",
        said("date", &["-u", "+%F"])?,
        arguments.join(" "),
        processor()?,
        std::thread::available_parallelism()?,
        said("uname", &["-r"])?,
    )];
    lines.extend(grid(records));
    lines.push(String::new());
    lines.push("| Sites | Expected | Why | Tries | Seen | First data: median | worst | Direct: median | worst | |".to_owned());
    lines.push("|---|---|---|---:|---|---:|---:|---:|---:|---|".to_owned());
    for cell in cells() {
        let (way, why) = expectation(cell.0, cell.1);
        let sites = format!("{} with {}", cell.0, cell.1);
        let record = &records[&cell];
        let times = |times: Option<[Duration; 2]>| {
            let cell = |d: Duration| format!("{} ms", d.as_millis());
            times.map_or_else(
                || " | ".to_owned(),
                |[median, worst]| format!("{} | {}", cell(median), cell(worst)),
            )
        };
        let verdict = if record.is_kept(way) {
            "kept"
        } else {
            "NOT KEPT"
        };
        lines.push(format!(
            "| {sites} | {way} | {why} | {} | {} | {} | {} | {verdict} |",
            record.len(),
            seen(record),
            times(record.first_data()),
            times(record.direct()),
        ));
    }
    Ok(lines)
}

/// The paths that the tries ended on, as `direct 9, relay 1`.
fn seen(record: &Record) -> String {
    let kinds = ["direct", "relay", "stream", "mixed", "none"].map(|path| (path, record.by(path)));
    let all = kinds.into_iter().chain([(UNREACHED, record.unreached)]);
    let some = all.filter(|(_, count)| *count > 0);
    some.map(|(path, count)| format!("{path} {count}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The matrix at a glance: the share of tries that ended straight, or what else was seen.
fn grid(records: &BTreeMap<Cell, Record>) -> Vec<String> {
    let mut lines = vec![
        format!("| |{}|", MATRIX.map(|kind| format!(" {kind} ")).join("|")),
        format!("|---|{}|", MATRIX.map(|_| "---").join("|")),
    ];
    for (at, row) in MATRIX.iter().enumerate() {
        let one = |column: &Kind| {
            let record = &records[&(*row, *column)];
            if record.by("direct") == record.len() {
                "direct".to_owned()
            } else {
                seen(record)
            }
        };
        let before = vec![String::new(); at];
        let cells = before.into_iter().chain(MATRIX[at..].iter().map(one));
        lines.push(format!(
            "| {row} | {} |",
            cells.collect::<Vec<_>>().join(" | ")
        ));
    }
    lines
}
