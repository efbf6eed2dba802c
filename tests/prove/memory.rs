//! What a node holds in memory: beside two peers, and with a thousand sessions in use.

use crate::measuring::resident_mib;
use crate::overlay::{eventually, fabric, founder, lab, member, ping, program};
use crate::played::{Played, TAP, address, peer_there, start_holder};
use crate::{Amount, Measured};
use anyhow::{Context, Result, ensure};
use cli::lab::{Host, Lab, Process};
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

/// Sessions that are to fit.
const SESSIONS: u16 = 1000;
const GOAL_FEW: f64 = 64.0;
const GOAL_MANY: f64 = 256.0;

/// Until every session has carried a ping and its answer; hangs only.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long nodes are left alone before they are looked at.
const SETTLING: Duration = Duration::from_secs(10);

/// Resident memory of a process now and at its most, in MiB.
#[derive(Clone, Copy)]
struct Resident {
    now: f64,
    peak: f64,
}

impl Resident {
    fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            now: resident_mib(pid, "VmRSS")?,
            peak: resident_mib(pid, "VmHWM")?,
        })
    }

    fn row(self, what: &str) -> String {
        format!("| {what} | {:.1} | {:.1} |", self.now, self.peak)
    }
}

/// Three whole nodes, each with the two others as peers; then data planes alone, with two sessions and with a thousand.
pub(crate) fn memory(_: Amount) -> Result<Measured> {
    let mut lines = vec![
        "| | MiB | at most |".to_owned(),
        "|---|---:|---:|".to_owned(),
    ];
    let mut kept = true;
    let mut node: f64 = 0.0;
    for (what, resident) in nodes_with_two_peers()? {
        lines.push(resident.row(what));
        kept &= resident.peak < GOAL_FEW;
        node = node.max(resident.peak);
    }
    let few = data_plane_with(2)?;
    let many = data_plane_with(SESSIONS)?;
    lines.push(few.row("data plane alone, 2 sessions"));
    lines.push(many.row(&format!("data plane alone, {SESSIONS} sessions")));
    let whole = node + many.peak - few.peak;
    kept &= whole < GOAL_MANY;
    lines.push(format!(
        "\nEvery session carried a ping and its answer. {SESSIONS} sessions are {:.1} KiB each; with the largest node above \
         that is {whole:.1} MiB. Goals: under {GOAL_FEW} MiB with two peers, under {GOAL_MANY} with {SESSIONS} sessions. The \
         certificates and records of {SESSIONS} members are not in it.",
        (many.peak - few.peak) * 1024.0 / f64::from(SESSIONS - 2),
    ));
    Ok(Measured { kept, lines })
}

fn nodes_with_two_peers() -> Result<Vec<(&'static str, Resident)>> {
    let lab = lab("memory");
    let (mut fabric, bootstrap) = fabric(&lab);
    let hosts = ["a", "b", "c"].map(|name| lab.public_host(name));
    let [a, b, c] = hosts.map(|host| host.map(|host| (*host).clone()));
    let mut first = founder(&a?, &bootstrap, "lab", &[]);
    let mut second = member(&b?, &first, "lab");
    let mut third = member(&c?, &first, "lab");
    for (from, to) in [(&first, &second), (&second, &third), (&third, &first)] {
        eventually(|| ping(from.machine(), &to.address("lab")?))?;
    }
    thread::sleep(SETTLING);
    let named = [
        ("founder with two peers", &mut first),
        ("member with two peers", &mut second),
        ("member with two peers", &mut third),
        ("their fabric node", &mut fabric),
    ];
    named
        .into_iter()
        .map(|(what, node)| Ok((what, Resident::of(node.process().pid().context(what)?)?)))
        .collect()
}

/// The data plane of a process of its own, and so many nodes played from here, all of which ping it.
fn data_plane_with(sessions: u16) -> Result<Resident> {
    // A descriptor for each session played from here, and some for the lab.
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files)?;
    let this = std::env::current_exe()?;
    let lab = Lab::start_with("sessions", &[&program(), &this], &[])?;
    let (near, far) = (lab.public_host("near")?, lab.public_host("far")?);
    let mut holder = hold_on(&near, &far, sessions)?;
    let mut played = (1..=sessions)
        .map(|number| Played::start(number, &near, &far, far.address()))
        .collect::<Result<Vec<_>>>()?;
    let give_up = Instant::now() + PATIENCE;
    while played.iter().any(|node| !node.is_answered()) {
        ensure!(
            Instant::now() < give_up,
            "{} of {sessions} sessions carried no ping",
            played.iter().filter(|node| !node.is_answered()).count()
        );
        for node in &mut played {
            node.turn()?;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let pid = holder.pid().context("the holder runs")?;
    let resident = Resident::of(pid)?;
    ensure!(holder.is_running(), "the holder ended");
    Ok(resident)
}

fn hold_on(near: &Host, far: &Host, sessions: u16) -> Result<Process> {
    let (count, at) = (sessions.to_string(), far.address().to_string());
    let mut holder = near.spawn("holder", &["prove", HOLD, &count, &at])?;
    holder.wait_for_line("holding", Duration::from_secs(20))?;
    near.ip(&[&format!("address add {}/16 dev {TAP}", address(0))])?;
    Ok(holder)
}

/// What makes this program [`hold`] sessions.
pub(crate) const HOLD: &str = "hold-sessions";

/// A data plane with so many peers at `far`, until it is killed.
pub(crate) fn hold(sessions: &str, far: &str) -> Result<()> {
    let (sessions, far): (u16, Ipv4Addr) = (sessions.parse()?, far.parse()?);
    let data_plane = start_holder(0..=sessions)?;
    for number in 1..=sessions {
        data_plane.command(peer_there(number, far));
    }
    println!("holding");
    loop {
        thread::park();
    }
}
