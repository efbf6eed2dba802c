//! What is measured between two machines: iperf3 for throughput, ping for delay, the host's clock for CPU.

use crate::measuring::{reported, resident_mib, stream};
use crate::peer::Rig;
use anyhow::{Context, Result, ensure};
use cli::lab::Machine;
use std::{
    fmt,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

/// Pings of one measurement of delay; their 99th percentile is the fourth largest or so.
const PINGS: &str = "400";

/// With fewer answers the percentiles would be those of the lucky ones.
const ANSWERS_MIN: usize = 380;

/// How much of UDP may be lost for a rate to count as clean, in percent.
const CLEAN_LOSS: f64 = 1.0;

/// Halvings of the search for the highest clean rate, on a logarithmic scale from a hundredth of the flood.
const SEARCH_STEPS: usize = 7;

/// One rate is given up after so many tries.
const SEARCH_TRIES: usize = 3;

/// What one run over one way gave, by the names of [`COLUMNS`].
#[derive(Clone, Debug)]
pub(crate) struct Figures(pub(crate) [f64; COLUMNS.len()]);

/// A figure: what it is, its unit, whether more of it is better.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) more_is_better: bool,
    /// What its picture is called, if it has one.
    pub(crate) picture: Option<&'static str>,
}

impl Column {
    const fn more(name: &'static str, unit: &'static str) -> Self {
        Self {
            name,
            unit,
            more_is_better: true,
            picture: None,
        }
    }

    const fn less(name: &'static str, unit: &'static str) -> Self {
        Self {
            more_is_better: false,
            ..Self::more(name, unit)
        }
    }

    const fn shown(self, picture: &'static str) -> Self {
        Self {
            picture: Some(picture),
            ..self
        }
    }
}

/// Everything that is measured, in the order of [`Figures`].
pub(crate) const COLUMNS: [Column; 14] = [
    Column::more("TCP", "Gbit/s").shown("tcp"),
    Column::more("TCP, 4 flows", "Gbit/s"),
    Column::more("TCP, reverse", "Gbit/s"),
    Column::less("CPU of the whole host", "s/GB").shown("cpu"),
    Column::more("UDP 1300 bytes, clean", "Gbit/s").shown("udp-1300"),
    Column::more("UDP 1300 bytes, overload", "Gbit/s"),
    Column::more("UDP 64 bytes, clean", "kpps"),
    Column::more("UDP 64 bytes, overload", "kpps"),
    Column::more("UDP 1472 bytes, clean", "Gbit/s"),
    Column::less("RTT p50", "µs").shown("rtt"),
    Column::less("RTT p50, awake", "µs"),
    Column::less("RTT p50 under TCP", "µs"),
    Column::less("RTT p99 under TCP", "µs").shown("rtt-loaded"),
    Column::less("memory", "MiB"),
];

impl Figures {
    const fn none() -> Self {
        Self([f64::NAN; COLUMNS.len()])
    }

    /// Sets the figure of the column with this name.
    fn set(&mut self, name: &str, value: f64) {
        let at = COLUMNS.iter().position(|column| column.name == name);
        self.0[at.expect("it is one of the columns")] = value;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = COLUMNS
            .iter()
            .zip(&self.0)
            .filter(|(_, value)| !value.is_nan());
        for (column, value) in measured {
            write!(f, "{} {value:.2} {}; ", column.name, column.unit)?;
        }
        Ok(())
    }
}

/// One run. With `only_tcp` what is no throughput of TCP, or its price, is no number.
pub(crate) fn all(rig: &Rig, seconds: u64, only_tcp: bool) -> Result<Figures> {
    let mut figures = Figures::none();
    if !only_tcp {
        // Before anything else: nothing has warmed the processors yet.
        let p50 =
            || -> Result<f64> { Ok(percentile(&round_trips(&rig.a, &rig.target, "0.002")?, 50)) };
        figures.set("RTT p50", p50()?);
        let _spinning = [Spinner::start()?, Spinner::start()?];
        figures.set("RTT p50, awake", p50()?);
    }
    let (cpu_before, mut bytes) = (host_cpu_seconds()?, 0.0);
    let mut tcp = |options: &[&str]| -> Result<f64> {
        let end = stream(&rig.a, &rig.target, seconds, options)?;
        bytes += reported(&end, "/sum_received/bytes")?;
        Ok(reported(&end, "/sum_received/bits_per_second")? / 1e9)
    };
    figures.set("TCP", tcp(&[])?);
    figures.set("TCP, 4 flows", tcp(&["-P", "4"])?);
    figures.set("TCP, reverse", tcp(&["-R"])?);
    let cpu = host_cpu_seconds()? - cpu_before;
    figures.set("CPU of the whole host", cpu / (bytes / 1e9));
    if only_tcp {
        return Ok(figures);
    }
    let loaded = under_load(rig, seconds)?;
    figures.set("RTT p50 under TCP", percentile(&loaded, 50));
    figures.set("RTT p99 under TCP", percentile(&loaded, 99));
    figures.set("memory", memory(rig));
    let gigabits = |pps: f64, length: f64| pps * length * 8.0 / 1e9;
    let large = udp_figures(rig, 1300)?;
    figures.set("UDP 1300 bytes, clean", gigabits(large.clean, 1300.0));
    figures.set("UDP 1300 bytes, overload", gigabits(large.overload, 1300.0));
    let small = udp_figures(rig, 64)?;
    figures.set("UDP 64 bytes, clean", small.clean / 1e3);
    figures.set("UDP 64 bytes, overload", small.overload / 1e3);
    let split = udp_figures(rig, 1472)?;
    figures.set("UDP 1472 bytes, clean", gigabits(split.clean, 1472.0));
    Ok(figures)
}

/// Waits until others leave the machine alone for a second, but not for ever.
pub(crate) fn wait_until_quiet(limit: Duration) {
    let began = Instant::now();
    while began.elapsed() < limit {
        let before = host_cpu_seconds().unwrap_or_default();
        thread::sleep(Duration::from_secs(1));
        if host_cpu_seconds().unwrap_or_default() - before < 0.15 {
            return;
        }
    }
}

/// Packets per second that arrive, at the highest rate that loses little, and when the sender does what it can.
struct Udp {
    clean: f64,
    overload: f64,
}

fn udp_figures(rig: &Rig, length: u32) -> Result<Udp> {
    let flood = udp(rig, length, 0.0)?;
    let (mut low, mut high) = (flood.sent / 100.0, flood.sent);
    for _ in 0..SEARCH_STEPS {
        let rate = (low * high).sqrt();
        let is_clean = (0..SEARCH_TRIES).any(|_| {
            udp(rig, length, rate)
                .is_ok_and(|got| got.loss < CLEAN_LOSS && got.received > 0.9 * rate)
        });
        if is_clean {
            low = rate;
        } else {
            high = rate;
        }
    }
    Ok(Udp {
        clean: low,
        overload: flood.received,
    })
}

struct Datagrams {
    sent: f64,
    received: f64,
    loss: f64,
}

/// A second of datagrams at this rate of packets, or as fast as the sender can.
fn udp(rig: &Rig, length: u32, rate: f64) -> Result<Datagrams> {
    let bits = format!("{:.0}", rate * f64::from(length) * 8.0);
    let options = ["-u", "-l", &length.to_string(), "-b", &bits];
    let end = stream(&rig.a, &rig.target, 1, &options)?;
    let seconds = reported(&end, "/sum/seconds")?;
    let packets = reported(&end, "/sum/packets")?;
    let lost = reported(&end, "/sum/lost_packets")?;
    Ok(Datagrams {
        sent: packets / seconds,
        received: (packets - lost) / seconds,
        loss: reported(&end, "/sum/lost_percent")?,
    })
}

/// Round trips in microseconds, sorted.
fn round_trips(from: &Machine, target: &str, interval: &str) -> Result<Vec<f64>> {
    let words = ["ping", "-c", PINGS, "-i", interval, "-W", "1", target];
    let said = from.run_for(Duration::from_secs(60), &words)?;
    let mut times: Vec<f64> = said
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok())
        .map(|milliseconds: f64| milliseconds * 1e3)
        .collect();
    ensure!(
        times.len() >= ANSWERS_MIN,
        "only {} pings were answered",
        times.len()
    );
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Round trips while one TCP stream takes what it can.
fn under_load(rig: &Rig, seconds: u64) -> Result<Vec<f64>> {
    let time = (seconds.max(3) + 3).to_string();
    let words = ["iperf3", "-c", &rig.target, "-t", &time];
    let mut stream = rig.a.spawn("load", &words)?;
    thread::sleep(Duration::from_secs(1));
    let times = round_trips(&rig.a, &rig.target, "0.01");
    let ended = stream.wait(Duration::from_secs(60))?;
    ensure!(ended.success(), "the load was none: {}", stream.log());
    times
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// What all processors together have worked, in seconds.
fn host_cpu_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq; USER_HZ is 100 on every architecture that is still built.
    let idle = ticks.get(3).unwrap_or(&0.0) + ticks.get(4).unwrap_or(&0.0);
    Ok((ticks.iter().take(7).sum::<f64>() - idle) / 100.0)
}

/// The resident memory of the tunnel's processes, without the shells that hold them, in MiB.
fn memory(rig: &Rig) -> f64 {
    let mut wanted: Vec<u32> = rig.tunnels.iter().filter_map(|p| p.pid()).collect();
    let mut total = 0.0;
    while let Some(pid) = wanted.pop() {
        let read =
            |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let children = read(&format!("task/{pid}/children"));
        wanted.extend(
            children
                .split_whitespace()
                .filter_map(|p| p.parse::<u32>().ok()),
        );
        if !["bash", "sh", "sleep"].contains(&read("comm").trim()) {
            // One that has ended meanwhile has none.
            total += resident_mib(pid, "VmRSS").unwrap_or_default();
        }
    }
    total
}

/// Keeps a processor from sleeping, and gives way to everything else.
struct Spinner(Child);

impl Spinner {
    fn start() -> Result<Self> {
        let spin = ["-i", "0", "sh", "-c", "while :; do :; done"];
        let child = Command::new("chrt").args(spin).spawn();
        Ok(Self(child.context("start chrt")?))
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
