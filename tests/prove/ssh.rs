//! What the tunnel carries where nothing but SSH gets out, beside what ssh itself forwards over the same link.

use crate::measuring::{Spread, reported, stream};
use crate::overlay::{FARLAN, fabric, founder, lab, ssh_key, sshd};
use crate::{Amount, Measured, row, table, until_answered, wire};
use anyhow::{Context, Result};
use cli::demo::Node;
use cli::lab::{Machine, Nat, Outbound, Site, SiteOptions};
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

/// A link over which one connection is slow (Mathis et al. 1997: 12 Mbit/s or so).
const LONG_DELAY: Duration = Duration::from_millis(20);
const LONG_LOSS: f64 = 0.001;
const LONG_ADDRESSES: [&str; 2] = ["198.18.200.1", "198.18.200.2"];

/// Of what ssh carries by one connection.
const LONG_SHARE_GOAL: f64 = 1.5;

/// What an earlier stream left in ssh's buffers is out of them by then, and its server free again.
const DRAINING: Duration = Duration::from_secs(3);

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
    fn add(&mut self, host: &Machine, target: &str, port: &str, seconds: u64) -> Result<()> {
        for (values, options) in [
            (&mut self.up, &["-C", "cubic", "-p", port][..]),
            (&mut self.down, &["-C", "cubic", "-p", port, "-R"]),
        ] {
            thread::sleep(DRAINING);
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

/// What came of joining through gateways, and of TCP both ways.
#[derive(Default)]
struct Seen {
    joined: Vec<Duration>,
    ready: Vec<Duration>,
    /// By ssh's own forwarding.
    outside: Carried,
    inside: Carried,
}

impl Seen {
    /// Joins from `host` through the gateway at `gateway`, whose sshd runs, and measures by turns.
    fn add(
        &mut self,
        first: &Node,
        host: &Machine,
        gateway: &str,
        far: &str,
        seconds: u64,
    ) -> Result<()> {
        let invite = first.invite("lab")?;
        let login = format!("root@{gateway}");
        let via = format!("ssh://{login}");
        let began = Instant::now();
        let (_second, _ready) = Node::up_with_invite_and(host, FARLAN, &invite, &["--via", &via])?;
        self.ready.push(began.elapsed());
        let target = first.address("lab")?;
        self.joined.push(until_answered(host, &target, began)?);

        let port = SERVED_PORT.to_string();
        let _server = first
            .machine()
            .spawn("iperf3", &["iperf3", "-s", "-p", &port])?;
        let forwarded = format!("{FORWARDED_PORT}:{far}:{port}");
        let option = "ExitOnForwardFailure=yes";
        let words = ["ssh", "-N", "-o", option, "-L", &forwarded, &login];
        let _forwarding = host.spawn("ssh", &words)?;
        thread::sleep(SETTLING);
        for _ in 0..2 {
            self.outside
                .add(host, "127.0.0.1", FORWARDED_PORT, seconds)?;
            self.inside.add(host, &target, &port, seconds)?;
        }
        Ok(())
    }

    /// The shares of what ssh carries that the overlay does, up and down.
    fn shares(&self) -> [f64; 2] {
        let share = |pick: fn(&Carried) -> &Vec<f64>| {
            let median = |of| Spread::of(pick(of).iter().copied()).median;
            median(&self.inside) / median(&self.outside)
        };
        [share(|of| &of.up), share(|of| &of.down)]
    }

    /// What it says, and whether the overlay carries such a share of what one connection of ssh does.
    fn measured(mut self, amount: Amount, seconds: u64, link: &str, goal: f64) -> Result<Measured> {
        let [up, down] = self.shares();
        let worst = *self.joined.iter().max().context("it ran")?;
        let is_soon = worst < JOINED_GOAL;
        let cell = |values: &[f64]| {
            let Spread {
                median,
                least,
                most,
            } = Spread::of(values.iter().copied());
            format!("{median:.1} ({least:.1}–{most:.1})")
        };
        let line = |what: &str, of: &Carried| {
            format!("| {what} | {} | {} |", cell(&of.up), cell(&of.down))
        };
        let mut lines = table(vec![
            row("`farlan up` to its address", &mut self.ready),
            row("`farlan up` to the first answer", &mut self.joined),
        ]);
        lines.extend([
            String::new(),
            "| TCP, Mbit/s | up | down |".to_owned(),
            "|---|---:|---:|".to_owned(),
            line("forwarded by ssh", &self.outside),
            line("through the overlay, by ssh", &self.inside),
            format!(
                "\n{} sites, each twice {seconds} s by turns, medians and ranges; {link}. The overlay carries {up:.2} of what a connection of ssh carries upwards, {down:.2} downwards (goal: {goal}); joined within 15 s: {}.",
                amount.runs,
                if is_soon { "always" } else { "not always" },
            ),
        ]);
        Ok(Measured {
            kept: up >= goal && down >= goal && is_soon,
            lines,
        })
    }
}

fn seconds(amount: Amount) -> u64 {
    if amount.runs > 2 { 10 } else { 4 }
}

/// Joining, and TCP both ways, through a gateway's SSH.
pub(crate) fn ssh(amount: Amount) -> Result<Measured> {
    let (mut seen, seconds) = (Seen::default(), seconds(amount));
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
        let [gateway, far] = [gateway, far].map(|host| host.address().to_string());
        seen.add(&first, &host, &gateway, &far, seconds)?;
    }
    let link = format!("a link of 100 Mbit/s each way (`tbf {LINK}`)");
    seen.measured(amount, seconds, &link, SHARE_GOAL)
}

/// The same over a long link that loses, where one connection cannot carry what the link could.
pub(crate) fn ssh_lossy(amount: Amount) -> Result<Measured> {
    let (mut seen, seconds) = (Seen::default(), 2 * seconds(amount));
    for _ in 0..amount.runs {
        let lab = lab("ssh-lossy");
        let (_fabric, bootstrap) = fabric(&lab);
        let far = lab.public_host("founder")?;
        let first = founder(&far, &bootstrap, "lab", &[]);
        let (gateway, host) = (lab.public_host("gateway")?, lab.machine("inmate")?);
        wire::lay((&gateway, &host), "wire", LONG_DELAY, LONG_LOSS)?;
        for (machine, address) in [(&*gateway, LONG_ADDRESSES[0]), (&host, LONG_ADDRESSES[1])] {
            machine.ip(&[
                &format!("address add {address}/24 dev wire"),
                "link set wire up",
            ])?;
            machine.sh(&format!("tc qdisc add dev wire root tbf {LINK}"))?;
            machine.ip(&["route change 198.18.200.0/24 dev wire congctl cubic"])?; // what Linux has where nobody chose
        }
        let _daemon = sshd(&gateway, &ssh_key(&host));
        seen.add(
            &first,
            &host,
            LONG_ADDRESSES[0],
            &far.address().to_string(),
            seconds,
        )?;
    }
    let link = format!(
        "100 Mbit/s each way (`tbf {LINK}`), {} ms there and back, {} % of the frames lost each way",
        2 * LONG_DELAY.as_millis(),
        100.0 * LONG_LOSS,
    );
    seen.measured(amount, seconds, &link, LONG_SHARE_GOAL)
}
