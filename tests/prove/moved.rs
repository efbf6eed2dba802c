//! How long an ssh session and a stream of iperf3 inside pause when the network under a node changes.

use crate::overlay::lab;
use crate::reachability::moved::{Event, Stage};
use crate::reachability::talk::Talk;
use crate::{Amount, Measured, row};
use anyhow::{Context, Result};
use cli::lab::Machine;
use serde_json::Value;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Beside the time that the network itself is away.
const PAUSE_GOAL: Duration = Duration::from_secs(2);

/// Between two events: paths have settled, and the stream has bytes again.
const SETTLED: Duration = Duration::from_secs(8);

/// How often iperf3 says what came.
const TOLD_EVERY: &str = "0.1";

/// Towards the node, so that the network and not the processor is what it waits for.
const RATE: &str = "20M";

/// A stream to the node, begun at a moment, with all that iperf3 says at its end.
struct Bulk {
    began: Instant,
    report: JoinHandle<Result<Value>>,
}

impl Bulk {
    fn begin(to: &Machine, from: &str, span: Duration) -> Self {
        let (to, from) = (to.clone(), from.to_owned());
        let began = Instant::now();
        let report = thread::spawn(move || {
            let seconds = span.as_secs().to_string();
            let words = [
                "iperf3", "-c", &from, "-R", "-J", "-i", TOLD_EVERY, "-b", RATE, "-t", &seconds,
            ];
            let said = to.run_for(span + Duration::from_secs(60), &words)?;
            let report: Value = serde_json::from_str(&said).context("iperf3's report")?;
            anyhow::ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
            Ok(report)
        });
        Self { began, report }
    }

    /// The longest times without a byte that began within each of these spans.
    fn pauses(self, spans: &[(Instant, Instant)]) -> Result<Vec<Duration>> {
        let report = self.report.join().expect("it does not panic")?;
        let intervals = report["intervals"].as_array().context("no intervals")?;
        let mut silences: Vec<(f64, f64)> = Vec::new();
        let every: f64 = TOLD_EVERY.parse()?;
        for interval in intervals {
            let of = |name: &str| interval["sum"][name].as_f64().context("no number");
            let (start, end) = (of("start")?, of("end")?);
            // One that is long was stopped itself: with its machine, while that slept.
            if of("bytes")? > 0.0 && end - start < 2.0 * every {
                continue;
            }
            match silences.last_mut() {
                Some(last) if start - last.1 < every / 2.0 => last.1 = end,
                _ => silences.push((start, end)),
            }
        }
        let longest = |(from, to): &(Instant, Instant)| {
            let at = |moment: &Instant| moment.duration_since(self.began).as_secs_f64();
            // The interval in which the last byte came may have begun before.
            let within =
                |silence: &&(f64, f64)| (at(from)..at(to)).contains(&(silence.0 + 2.0 * every));
            let lengths = silences
                .iter()
                .filter(within)
                .map(|(start, end)| end - start);
            Duration::from_secs_f64(lengths.fold(0.0, f64::max))
        };
        Ok(spans.iter().map(longest).collect())
    }
}

/// The pauses of one run: of the ssh session and of the stream, for each event.
fn run(stage: &Stage<'_>) -> Result<Vec<[Duration; 2]>> {
    let _server = stage.peer.machine().spawn("iperf3", &["iperf3", "-s"])?;
    thread::sleep(SETTLED);
    let away: Duration = Event::ALL.into_iter().map(Event::away).sum();
    let span = (SETTLED + Duration::from_secs(2)) * (Event::ALL.len() as u32) + away;
    let talk = Talk::by_ssh(&stage.host, &stage.address)?;
    let bulk = Bulk::begin(&stage.host, &stage.address, span);
    thread::sleep(SETTLED);
    let (mut spans, mut session) = (Vec::new(), Vec::new());
    for event in Event::ALL {
        talk.worst();
        let began = Instant::now();
        stage.befall(event)?;
        thread::sleep(SETTLED);
        spans.push((began, Instant::now()));
        session.push(talk.worst().saturating_sub(event.away()));
    }
    talk.end()?;
    let stream = bulk.pauses(&spans)?.into_iter();
    let stream = stream
        .zip(Event::ALL)
        .map(|(pause, event)| pause.saturating_sub(event.away()));
    Ok(session
        .into_iter()
        .zip(stream)
        .map(|(a, b)| [a, b])
        .collect())
}

/// Every event, as often as is asked for.
pub(crate) fn moved(amount: Amount) -> Result<Measured> {
    let mut pauses: [[Vec<Duration>; 2]; Event::ALL.len()] = Default::default();
    for _ in 0..amount.runs {
        let lab = lab("moved");
        let stage = Stage::build(&lab)?;
        for (of, [session, stream]) in pauses.iter_mut().zip(run(&stage)?) {
            of[0].push(session);
            of[1].push(stream);
        }
    }
    let mut lines = vec![
        "| | ssh session: median | worst | iperf3: median | worst |".to_owned(),
        "|---|---:|---:|---:|---:|".to_owned(),
    ];
    let mut worst = Duration::ZERO;
    for (event, [session, stream]) in Event::ALL.into_iter().zip(&mut pauses) {
        let stream_row = row("", stream);
        lines.push(row(&event.to_string(), session) + stream_row.trim_start_matches("|  |"));
        worst = worst.max(
            session
                .iter()
                .chain(stream.iter())
                .max()
                .copied()
                .unwrap_or_default(),
        );
    }
    lines.push(format!(
        "\n{} runs; the longest time without a byte in 8 s after each event, beside the time that the network itself was away. No connection broke. iperf3 sends {RATE}bit/s and tells every {TOLD_EVERY} s. Goal: under 2 s.",
        amount.runs
    ));
    Ok(Measured {
        kept: worst < PAUSE_GOAL,
        lines,
    })
}
