//! How long an ssh session and a stream of iperf3 inside pause when the way between two nodes changes.

use crate::overlay::lab;
use crate::reachability::moved::{Scene, Stage};
use crate::reachability::talk::Talk;
use crate::{Amount, Measured, row};
use anyhow::{Context, Result, ensure};
use cli::lab::{Machine, Process};
use rustix::process::Signal;
use serde_json::{Deserializer, Value};
use std::thread;
use std::time::{Duration, Instant};

/// Beside the time that the network itself is away.
const PAUSE_GOAL: Duration = Duration::from_secs(2);

/// Between two events: paths have settled, and the stream has bytes again.
const SETTLED: Duration = Duration::from_secs(8);

/// How often iperf3 says what came.
const TOLD_EVERY: &str = "0.1";

/// Towards the node, so that the network and not the processor is what it waits for.
const RATE: &str = "20M";

/// Longer than any run, in seconds; it is ended before.
const LONG: &str = "3600";

/// A stream to the node, begun at a moment, of which iperf3 says all at its end.
struct Bulk {
    began: Instant,
    iperf: Process,
}

impl Bulk {
    fn begin(to: &Machine, from: &str) -> Result<Self> {
        let words = [
            "iperf3", "-c", from, "-R", "-J", "-i", TOLD_EVERY, "-b", RATE, "-t", LONG,
        ];
        let (began, iperf) = (Instant::now(), to.spawn("iperf3", &words)?);
        Ok(Self { began, iperf })
    }

    /// Ends it; all that it said.
    fn report(&mut self) -> Result<Value> {
        self.iperf.signal(Signal::INT)?;
        self.iperf.wait(Duration::from_secs(30))?;
        let said = self.iperf.log();
        let mut reports = Deserializer::from_str(&said).into_iter::<Value>();
        let report = reports.next().context("iperf3 said nothing")?;
        let report = report.with_context(|| format!("iperf3's report: {said}"))?;
        let end = report["error"].as_str().unwrap_or("it ended by itself");
        ensure!(end.starts_with("interrupt"), "iperf3: {end}");
        Ok(report)
    }

    /// The longest times without a byte that began within each of these spans.
    fn pauses(mut self, spans: &[(Instant, Instant)]) -> Result<Vec<Duration>> {
        let report = self.report()?;
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

/// What happened in a scene, and the pauses: of the ssh session and of the stream.
type Pauses = Vec<(String, [Vec<Duration>; 2])>;

/// The pauses of one run of a scene, added to those before.
fn run(scene: Scene, pauses: &mut Pauses) -> Result<()> {
    let lab = lab("moved");
    let mut stage = Stage::build(&lab, scene)?;
    let _server = stage.peer.machine().spawn("iperf3", &["iperf3", "-s"])?;
    thread::sleep(SETTLED);
    let talk = Talk::by_ssh(&stage.host, &stage.address)?;
    let bulk = Bulk::begin(&stage.host, &stage.address)?;
    thread::sleep(SETTLED);
    let (mut spans, mut session) = (Vec::new(), Vec::new());
    for event in scene.events() {
        stage.prepare(*event)?;
        talk.worst();
        let began = Instant::now();
        stage.befall(*event)?;
        thread::sleep(SETTLED);
        spans.push((began, Instant::now()));
        session.push(talk.worst());
    }
    talk.end()?;
    for (event, (session, stream)) in scene
        .events()
        .iter()
        .zip(session.into_iter().zip(bulk.pauses(&spans)?))
    {
        let told = scene.tells(*event);
        let pause = [session, stream].map(|pause| pause.saturating_sub(event.away()));
        println!("{told}: {pause:?}");
        let known = pauses.iter().position(|(what, _)| *what == told);
        let at = known.unwrap_or(pauses.len());
        if known.is_none() {
            pauses.push((told, Default::default()));
        }
        for (all, this) in pauses[at].1.iter_mut().zip(pause) {
            all.push(this);
        }
    }
    Ok(())
}

/// Every event, as often as is asked for.
pub(crate) fn moved(amount: Amount) -> Result<Measured> {
    let mut pauses = Pauses::new();
    for scene in Scene::ALL {
        for _ in 0..amount.runs {
            run(scene, &mut pauses)?;
        }
    }
    let mut lines = vec![
        "| | ssh session: median | worst | iperf3: median | worst |".to_owned(),
        "|---|---:|---:|---:|---:|".to_owned(),
    ];
    let all = pauses.iter().flat_map(|(_, both)| both.iter().flatten());
    let worst = all.max().copied().unwrap_or_default();
    for (told, [session, stream]) in &mut pauses {
        let stream_row = row("", stream);
        lines.push(row(told, session) + stream_row.trim_start_matches("|  |"));
    }
    lines.push(format!(
        "\n{} runs; the longest time without a byte from each event until 8 s after it, or after the path that it leads to is in use, beside the time that the network itself was away. No connection broke. iperf3 sends {RATE}bit/s and tells every {TOLD_EVERY} s. Goal: under 2 s.",
        amount.runs
    ));
    Ok(Measured {
        kept: worst < PAUSE_GOAL,
        lines,
    })
}
