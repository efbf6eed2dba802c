//! How a deployment is told: progress while it runs, a table or JSON at the end.

use super::hosts::Host;
use crate::output::{note, or_dash, say_json, say_table};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use overlay_types::{
    Name, PeerId,
    api::{NetworkStatus, Status},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::IsTerminal,
    net::{Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How one host went.
#[derive(Debug, Serialize)]
pub(crate) struct HostReport {
    pub(crate) host: String,
    pub(crate) ok: bool,
    /// Whether anything was different before.
    pub(crate) changed: bool,
    pub(crate) name: Option<Name>,
    pub(crate) id: Option<PeerId>,
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) address6: Option<Ipv6Addr>,
    pub(crate) seconds: f64,
    pub(crate) error: Option<String>,
}

impl HostReport {
    pub(crate) fn new(host: &Host) -> Self {
        Self {
            host: host.to_string(),
            ok: false,
            changed: false,
            name: host.name.clone(),
            id: None,
            address: None,
            address6: None,
            seconds: 0.0,
            error: None,
        }
    }

    /// Takes over what the node there says of itself.
    pub(crate) fn describe(&mut self, status: &Status, network: &NetworkStatus) {
        self.id = Some(status.node.id);
        self.name = Some(network.node_name.clone());
        self.address = network.address;
        self.address6 = network.address6;
    }

    fn result(&self) -> &'static str {
        match (self.ok, self.changed) {
            (true, true) => "deployed",
            (true, false) => "unchanged",
            (false, _) => "failed",
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.host.clone(),
            self.result().into(),
            or_dash(self.name.as_ref()),
            or_dash(self.address),
            format!("{:.1} s", self.seconds),
            or_dash(self.error.as_ref()),
        ]
    }
}

/// How all went, in the order of the hosts file.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    ok: bool,
    hosts: Vec<HostReport>,
}

impl Report {
    pub(crate) fn new(hosts: Vec<HostReport>) -> Self {
        Self {
            ok: hosts.iter().all(|host| host.ok),
            hosts,
        }
    }

    pub(crate) fn failed(&self) -> usize {
        self.hosts.iter().filter(|host| !host.ok).count()
    }

    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }

    pub(crate) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            return say_json(self);
        }
        let rows = self.hosts.iter().map(HostReport::row).collect();
        say_table(&["HOST", "RESULT", "NAME", "ADDRESS", "TIME", "WHY"], rows);
        Ok(())
    }
}

/// What people see meanwhile: bars on a terminal, lines elsewhere; always on standard error.
pub(crate) struct Progress {
    bars: Option<Bars>,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    /// Those at work now. A lock, not a channel: hosts' tasks only touch their own for a moment.
    hosts: Mutex<BTreeMap<usize, ProgressBar>>,
}

impl Progress {
    pub(crate) fn new(hosts: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bars: None };
        }
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{bar:30} {pos} of {len} hosts, {elapsed}");
        let total = all.add(
            ProgressBar::new(hosts as u64)
                .with_style(style.expect("a template without unknown keys")),
        );
        total.enable_steady_tick(Duration::from_secs(1));
        Self {
            bars: Some(Bars {
                all,
                total,
                hosts: Mutex::default(),
            }),
        }
    }

    pub(crate) fn say(&self, number: usize, host: &str, doing: &str) {
        let Some(Bars { all, total, hosts }) = &self.bars else {
            note(&format!("{host}: {doing}"));
            return;
        };
        let mut hosts = hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = hosts.entry(number).or_insert_with(|| {
            let bar = all.insert_before(total, ProgressBar::new_spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        bar.set_message(format!("{host}: {doing}"));
    }

    pub(crate) fn done(&self, number: usize, report: &HostReport) {
        let line = match &report.error {
            Some(why) => format!("{}: failed: {why}", report.host),
            None => format!(
                "{}: {} in {:.1} s",
                report.host,
                report.result(),
                report.seconds
            ),
        };
        let Some(Bars { all, total, hosts }) = &self.bars else {
            note(&line);
            return;
        };
        if let Some(bar) = hosts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number)
        {
            bar.finish_and_clear();
        }
        let _ = all.println(line);
        total.inc(1);
    }

    pub(crate) fn finish(&self) {
        if let Some(Bars { total, .. }) = &self.bars {
            total.finish_and_clear();
        }
    }
}
