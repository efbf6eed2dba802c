//! What the tunnel carries where nothing but SSH gets out, beside what ssh itself forwards over the same link.

use crate::measuring::{Spread, reported, stream};
use crate::overlay::{FARLAN, fabric, founder, lab, ssh_key, sshd};
use crate::{Amount, Measured, row, table, until_answered};
use anyhow::{Context, Result};
use cli::demo::Node;
use cli::lab::{Host, Nat, Outbound, Site, SiteOptions};
use std::thread;
use std::time::{Duration, Instant};

/// The link of the site: a token bucket in either direction, with a queue of 50 ms as a router would have.
const LINK: &str = "rate 100mbit burst 64kb latency 50ms";

/// From `farlan up` to the first answer.
const JOINED_GOAL: Duration = Duration::from_secs(15);

/// Of what ssh carries.
const SHARE_GOAL: f64 = 0.7;

/// How long a path's size takes to be found out, at most.
const SETTLING: Duration = Duration::from_secs(8);

/// Where ssh's own forwarding listens.
const FORWARDED_PORT: &str = "5301";

/// Where iperf3 listens.
const SERVED_PORT: u16 = 5201;

/// Mbit/s, up and down the link.
#[derive(Default)]
struct Carried {
    up: Vec<f64>,
    down: Vec<f64>,
}

impl Carried {
    fn add(&mut self, host: &Host, target: &str, port: &str, seconds: u64) -> Result<()> {
        for (values, options) in [
            (&mut self.up, &["-p", port][..]),
            (&mut self.down, &["-p", port, "-R"]),
        ] {
            let report = stream(host, target, seconds, options)?;
            values.push(reported(&report, "/sum_received/bits_per_second")? / 1e6);
        }
        Ok(())
    }
}

fn limit(site: &Site<'_>) -> Result<()> {
    for interface in ["wan", "lan"] {
        let words = format!("tc qdisc add dev {interface} root tbf {LINK}");
        site.router().sh(&words)?;
    }
    Ok(())
}

/// Joining, and TCP both ways, through a gateway's SSH.
pub(crate) fn ssh(amount: Amount) -> Result<Measured> {
    let seconds = if amount.runs > 2 { 10 } else { 4 };
    let (mut joined, mut ready) = (Vec::new(), Vec::new());
    let (mut outside, mut inside) = (Carried::default(), Carried::default());
    for _ in 0..amount.runs {
        let lab = lab("ssh-speed");
        let (_fabric, bootstrap) = fabric(&lab);
        let far = lab.public_host("founder")?;
        let first = founder(&far, &bootstrap, "lab", &[]);
        let gateway = lab.public_host("gateway")?;
        let options = SiteOptions {
            outbound: Outbound::Ssh(gateway.address()),
            ..SiteOptions::default()
        };
        let site = lab.site_with("cell", Nat::Masquerade, options)?;
        limit(&site)?;
        let host = site.host("inmate")?;
        let _daemon = sshd(&gateway, &ssh_key(&host));
        let invite = first.invite("lab")?;
        let gateway = format!("root@{}", gateway.address());

        let began = Instant::now();
        let via = format!("ssh://{gateway}");
        let (_second, _ready) = Node::up_with_invite_and(&host, FARLAN, &invite, &["--via", &via])?;
        ready.push(began.elapsed());
        let target = first.address("lab")?;
        joined.push(until_answered(&host, &target, began)?);

        let port = SERVED_PORT.to_string();
        let _server = far.spawn("iperf3", &["iperf3", "-s", "-p", &port])?;
        let forwarded = format!("{FORWARDED_PORT}:{}:{port}", far.address());
        let words = [
            "ssh",
            "-N",
            "-o",
            "ExitOnForwardFailure=yes",
            "-L",
            &forwarded,
            &gateway,
        ];
        let _forwarding = host.spawn("ssh", &words)?;
        thread::sleep(SETTLING);
        for _ in 0..2 {
            outside.add(&host, "127.0.0.1", FORWARDED_PORT, seconds)?;
            inside.add(&host, &target, &port, seconds)?;
        }
    }
    let spread = |values: &[f64]| Spread::of(values.iter().copied());
    let cell = |values: &[f64]| {
        let Spread {
            median,
            least,
            most,
        } = spread(values);
        format!("{median:.1} ({least:.1}–{most:.1})")
    };
    let line =
        |what: &str, of: &Carried| format!("| {what} | {} | {} |", cell(&of.up), cell(&of.down));
    let share = |pick: fn(&Carried) -> &Vec<f64>| {
        spread(pick(&inside)).median / spread(pick(&outside)).median
    };
    let (up, down) = (share(|of| &of.up), share(|of| &of.down));
    let worst = *joined.iter().max().context("it ran")?;
    let mut lines = table(vec![
        row("`farlan up` to its address", &mut ready),
        row("`farlan up` to the first answer", &mut joined),
    ]);
    lines.extend([
        String::new(),
        "| TCP, Mbit/s | up | down |".to_owned(),
        "|---|---:|---:|".to_owned(),
        line("forwarded by ssh", &outside),
        line("through the overlay, by ssh", &inside),
        format!(
            "\n{} sites, each twice {seconds} s by turns, medians and ranges; a link of 100 Mbit/s each way (`tbf {LINK}`). The overlay carries {up:.2} of what ssh carries upwards, {down:.2} downwards (goal: {SHARE_GOAL}); joined within 15 s: {}.",
            amount.runs,
            if worst < JOINED_GOAL { "always" } else { "not always" },
        ),
    ]);
    Ok(Measured {
        kept: up >= SHARE_GOAL && down >= SHARE_GOAL && worst < JOINED_GOAL,
        lines,
    })
}
