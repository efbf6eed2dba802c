//! The promised figures, measured: from `farlan up` to the first ping, what idle nodes cost, and how soon a killed node
//! is back. Each stands beside a reference of the same run. Writes `docs/measurements/DATE.md`; a part that was
//! measured already with this build is not measured again (`target/prove`, remove it to begin anew).
//!
//! `prove [PART]...` measures only these parts; `prove --short [PART]...` two of each and a minute's idling, to see that
//! it works; `prove --runs=N [PART]...` N of each. None of them writes the page.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on panics")]
#![allow(
    dead_code,
    reason = "the stage is shared with tests that use more of it"
)]

mod crowd;
mod flood;
#[path = "../flooding.rs"]
mod flooding;
mod head_of_line;
mod matrix;
#[path = "../measuring.rs"]
mod measuring;
mod memory;
mod moved;
#[path = "../netns/overlay.rs"]
mod overlay;
#[path = "../played.rs"]
mod played;
#[path = "../processor_time.rs"]
mod processor_time;
#[path = "../reachability/mod.rs"]
mod reachability;
mod ssh;
mod transfer;
mod wire;

use anyhow::{Context, Result, bail, ensure};
use cli::demo::Node;
use cli::lab::{Lab, Machine, Nat};
use measuring::{processor, said};
use overlay::{FARLAN, eventually, fabric, founder, host_behind, lab, path_kind, ping, program};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often each time is taken.
const RUNS: usize = 10;

/// How long two nodes are watched doing nothing.
const IDLE: Duration = Duration::from_secs(600);

/// How long joining takes to die down before idling begins.
const SETTLING: Duration = Duration::from_secs(30);

/// How much is measured.
#[derive(Clone, Copy)]
struct Amount {
    runs: usize,
    idle: Duration,
}

/// What the promises ask for.
const FULL: Amount = Amount {
    runs: RUNS,
    idle: IDLE,
};

/// Enough to see that measuring works.
const SHORT: Amount = Amount {
    runs: 2,
    idle: Duration::from_secs(60),
};

/// A part: its name, what it measures.
type Part = (&'static str, fn(Amount) -> Result<Measured>);

/// What a part gave: lines for the page, and whether the promise is kept.
struct Measured {
    kept: bool,
    lines: Vec<String>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [what, sessions, far] = arguments.as_slice()
        && what == memory::HOLD
    {
        return memory::hold(sessions, far);
    }
    if let [what, far] = arguments.as_slice()
        && what == flood::HOLD
    {
        return flood::hold(far);
    }
    let parts: [Part; 14] = [
        ("first-ping-direct", |amount| {
            let goal = Duration::from_secs(3);
            first_ping(amount, Nat::PortRestricted, "direct", goal)
        }),
        ("first-ping-by-relay", |amount| {
            first_ping(amount, Nat::Symmetric, "relay", Duration::from_secs(5))
        }),
        ("restart-after-sigkill", |amount| {
            restart(amount, Duration::from_secs(5))
        }),
        ("idle", idle),
        ("memory", memory::memory),
        ("flood", flood::flood),
        ("relay", transfer::relay),
        ("lossy-path", transfer::lossy),
        ("ssh", ssh::ssh),
        ("ssh-lossy", ssh::ssh_lossy),
        ("head-of-line", head_of_line::head_of_line),
        ("moved", moved::moved),
        ("matrix", matrix::matrix),
        ("crowd", crowd::crowd),
    ];
    let (flags, only): (Vec<String>, Vec<String>) = arguments
        .into_iter()
        .partition(|argument| argument.starts_with("--"));
    let amount = match flags.as_slice() {
        [] => FULL,
        [flag] if flag == "--short" => SHORT,
        [flag] if flag.starts_with("--runs=") => Amount {
            runs: flag["--runs=".len()..].parse().context("--runs=N")?,
            ..FULL
        },
        _ => bail!("usage: prove [--short | --runs=N] [PART]..."),
    };
    let is_full = flags.is_empty();
    let cache = cache()?;
    let mut all_kept = true;
    let mut page = heading()?;
    for (name, measure) in parts {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let file = cache.join(format!("{name}.md"));
        if !is_full {
            let measured = measure(amount).with_context(|| format!("measure {name}"))?;
            println!("## {name}\n\n{}\n", measured.lines.join("\n"));
            all_kept &= measured.kept;
            continue;
        }
        if !is_fresh(&file) {
            println!("measuring {name}");
            let measured = measure(amount).with_context(|| format!("measure {name}"))?;
            let verdict = if measured.kept { "kept" } else { "NOT KEPT" };
            std::fs::write(
                &file,
                format!("## {name}: {verdict}\n\n{}\n", measured.lines.join("\n")),
            )?;
        }
        let text = std::fs::read_to_string(&file)?;
        println!("{text}");
        all_kept &= !text.contains("NOT KEPT");
        page += &format!("\n{text}");
    }
    if only.is_empty() && is_full {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/measurements");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(format!("{}.md", said("date", &["-u", "+%F"])?));
        std::fs::write(&path, page)?;
        println!("written: {}", path.display());
    }
    ensure!(all_kept, "not every promise was kept");
    Ok(())
}

/// Where what was measured is kept.
fn cache() -> Result<PathBuf> {
    let cache = program().parent().unwrap().join("../prove");
    std::fs::create_dir_all(&cache)?;
    Ok(cache)
}

/// Whether a part was measured after the program was built.
fn is_fresh(file: &Path) -> bool {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    changed(file).is_some_and(|measured| changed(&program()).is_some_and(|built| measured > built))
}

/// Puts figures between the marks of a page under `docs/`.
fn write_page(name: &str, figures: &str) -> Result<()> {
    const BEGIN: &str = "<!-- measured -->\n";
    const END: &str = "\n<!-- end -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(name);
    let page = std::fs::read_to_string(&path)?;
    let (before, rest) = page
        .split_once(BEGIN)
        .context("the page has a place for figures")?;
    let (_, after) = rest.split_once(END).context("the page's figures end")?;
    std::fs::write(&path, format!("{before}{BEGIN}{figures}{END}{after}"))?;
    println!("written: {}", path.display());
    Ok(())
}

fn heading() -> Result<String> {
    Ok(format!(
        "# Measured on {}\n\n{} x{}, Linux {}, load {} at the start; built without link-time optimisation.\n",
        said("date", &["-u", "+%F"])?,
        processor()?,
        std::thread::available_parallelism()?,
        said("uname", &["-r"])?,
        std::fs::read_to_string("/proc/loadavg")?
            .split(' ')
            .next()
            .unwrap_or_default(),
    ))
}

/// Pings until an answer comes; returns how long that took since `began`.
fn until_answered(from: &Machine, to: &str, began: Instant) -> Result<Duration> {
    loop {
        if from
            .try_run(&["ping", "-c", "1", "-W", "0.2", to])?
            .is_success()
        {
            return Ok(began.elapsed());
        }
        ensure!(
            began.elapsed() < Duration::from_secs(60),
            "no answer from {to} within a minute"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Median and worst of some times, in a table row.
fn row(what: &str, times: &mut [Duration]) -> String {
    times.sort();
    let ms = |d: Duration| format!("{:.0} ms", d.as_secs_f64() * 1e3);
    format!(
        "| {what} | {} | {} |",
        ms(times[times.len() / 2]),
        ms(times[times.len() - 1])
    )
}

fn table(rows: Vec<String>) -> Vec<String> {
    let mut lines = vec![
        "| | median | worst |".to_owned(),
        "|---|---:|---:|".to_owned(),
    ];
    lines.extend(rows);
    lines
}

/// From `farlan up --invite` on a machine without any state to the first answer from the founder.
fn first_ping(amount: Amount, nat: Nat, path: &str, goal: Duration) -> Result<Measured> {
    let (mut times, mut reference) = (Vec::new(), Vec::new());
    let mut kinds = Vec::new();
    for _ in 0..amount.runs {
        let lab = lab("first-ping");
        let (_fabric, bootstrap) = fabric(&lab);
        let first = founder(&host_behind(&lab, nat, "a"), &bootstrap, "lab", &[]);
        let target = first.address("lab")?;
        let host = host_behind(&lab, nat, "b");
        let invite = first.invite("lab")?;
        reference.push(bare_start(&host, &lab)?);

        let began = Instant::now();
        let _node = host.spawn("farlan", &[FARLAN, "up", "--invite", &invite])?;
        times.push(until_answered(&host, &target, began)?);
        // Which path carried it can change within the second; what it settles on is told.
        kinds.push(eventually(|| path_kind(&first, "lab", "b-host"))?);
    }
    let worst = times.iter().max().copied().unwrap_or_default();
    let mut lines = table(vec![
        row("`farlan up` to the first ping", &mut times),
        row(
            "reference: `farlan --version`, then a ping to a public host, no tunnel",
            &mut reference,
        ),
    ]);
    lines.push(format!("\n{} runs between two {nat} NATs; paths seen just after: {}. Goal: under {} s, expected path {path}.", amount.runs, kinds.join(", "), goal.as_secs()));
    Ok(Measured {
        kept: worst < goal,
        lines,
    })
}

/// What starting the program and one ping over the underlay cost here.
fn bare_start(host: &Machine, lab: &Lab) -> Result<Duration> {
    let public = lab.public_host("reference")?;
    let began = Instant::now();
    host.run(&[FARLAN, "--version"])?;
    until_answered(host, &public.address().to_string(), began)
}

/// From the start of a node that had been killed to the first ping that it answers at its old address.
fn restart(amount: Amount, goal: Duration) -> Result<Measured> {
    let lab = lab("restart");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(
        &host_behind(&lab, Nat::PortRestricted, "a"),
        &bootstrap,
        "lab",
        &[],
    );
    let host = host_behind(&lab, Nat::PortRestricted, "b");
    let mut second = overlay::member(&host, &first, "lab");
    let address = second.address("lab")?;
    let mut reference = vec![bare_start(&host, &lab)?];
    let mut times = Vec::new();
    for _ in 0..amount.runs {
        eventually(|| ping(first.machine(), &address))?;
        second.process().kill()?;
        let began = Instant::now();
        let running = Node::up(&host, FARLAN)?;
        times.push(until_answered(first.machine(), &address, began)?);
        ensure!(
            eventually(|| running.address("lab"))? == address,
            "the node came back with another address"
        );
        second = running;
    }
    let worst = times.iter().max().copied().unwrap_or_default();
    let mut lines = table(vec![
        row("start after SIGKILL to the first ping answered", &mut times),
        row(
            "reference: `farlan --version`, then a ping to a public host, no tunnel",
            &mut reference,
        ),
    ]);
    lines.push(format!(
        "\n{} restarts, the same address each time. Goal: under {} s.",
        amount.runs,
        goal.as_secs()
    ));
    Ok(Measured {
        kept: worst < goal,
        lines,
    })
}

/// Two members that nobody uses.
fn idle(amount: Amount) -> Result<Measured> {
    let lab = lab("idle");
    let (_fabric, bootstrap) = fabric(&lab);
    let sites = [
        lab.site("a", Nat::PortRestricted)?,
        lab.site("b", Nat::PortRestricted)?,
    ];
    let hosts = [sites[0].host("a-host")?, sites[1].host("b-host")?];
    let empty = lab.site("empty", Nat::PortRestricted)?;
    let mut first = founder(&hosts[0], &bootstrap, "lab", &[]);
    let mut second = overlay::member(&hosts[1], &first, "lab");
    eventually(|| ping(first.machine(), &second.address("lab")?))?;
    std::thread::sleep(SETTLING);
    let pids = [
        first.process().pid().context("running")?,
        second.process().pid().context("running")?,
    ];
    let routers = [sites[0].router(), sites[1].router(), empty.router()];
    let snapshot = || -> Result<(Vec<f64>, Vec<f64>)> {
        Ok((
            pids.iter()
                .map(|pid| processor_time::of_process(*pid))
                .collect::<Result<_>>()?,
            routers
                .iter()
                .map(|router| wan_bytes(router))
                .collect::<Result<_>>()?,
        ))
    };
    let (began, before) = (Instant::now(), snapshot()?);
    std::thread::sleep(amount.idle);
    let (took, after) = (began.elapsed().as_secs_f64(), snapshot()?);
    let mut lines = vec![
        "| | CPU | sent and received |".to_owned(),
        "|---|---:|---:|".to_owned(),
    ];
    let mut kept = true;
    for (index, name) in ["founder", "member", "reference: a site without a node"]
        .iter()
        .enumerate()
    {
        let bytes = (after.1[index] - before.1[index]) / took;
        let cpu = after
            .0
            .get(index)
            .map(|now| (now - before.0[index]) / took * 100.0);
        kept &= index == 2 || (bytes < 1000.0 && cpu.is_some_and(|percent| percent < 1.0));
        let cpu = cpu.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.2} %"));
        lines.push(format!("| {name} | {cpu} | {bytes:.0} B/s |"));
    }
    lines.push(format!(
        "\nOver {took:.0} s. Goal: under 1 % of a core and under 1 kB/s each."
    ));
    Ok(Measured { kept, lines })
}

/// What crossed a router's outside so far, both ways.
fn wan_bytes(router: &Machine) -> Result<f64> {
    let said = router.run(&[
        "cat",
        "/sys/class/net/wan/statistics/rx_bytes",
        "/sys/class/net/wan/statistics/tx_bytes",
    ])?;
    said.lines()
        .map(|line| Ok(line.trim().parse::<f64>()?))
        .sum()
}
