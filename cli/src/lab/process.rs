//! A program that runs in a machine: its log, its end. Finding it among the host's processes is done here
//! too, since the program has another process id inside.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How often to look whether something awaited has happened.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long a program may take to end when asked to; after that it is killed.
const TERMINATION_GRACE: Duration = Duration::from_secs(10);

/// A program running in a machine. Dropping the handle kills the program.
#[derive(Debug)]
pub struct Process {
    what: String,
    log: PathBuf,
    /// How much others wrote there before it.
    log_begins: u64,
    /// `nsenter`, which ends as the program does, with its status.
    holder: Child,
    pid: Option<Pid>,
    left_running: bool,
}

impl Process {
    pub(super) fn start(mut command: Command, what: &str, log: PathBuf) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open the log {}", log.display()))?;
        let log_begins = output.metadata()?.len();
        let holder = command
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {what}"))?;
        let mut process = Self {
            what: what.to_owned(),
            log,
            log_begins,
            holder,
            pid: None,
            left_running: false,
        };
        process.pid = only_child(process.holder.id()).ok();
        Ok(process)
    }

    /// Its process id on the host, unless it ended before that could be learnt.
    pub fn pid(&self) -> Option<u32> {
        self.pid
            .map(|pid| pid.as_raw_nonzero().get().cast_unsigned())
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its output so far, without that of programs before it of the same label.
    pub fn log(&self) -> String {
        let all = fs::read(&self.log).unwrap_or_default();
        let begins = usize::try_from(self.log_begins).unwrap_or(usize::MAX);
        String::from_utf8_lossy(all.get(begins..).unwrap_or_default()).into_owned()
    }

    /// Waits until a line of its output contains `needle` and returns that line. Ends early, with the
    /// output in the error, when the program ends.
    pub fn wait_for_line(&mut self, needle: &str, limit: Duration) -> Result<String> {
        self.wait_for(&format!("{needle:?}"), limit, |line| line.contains(needle))
    }

    /// As [`Process::wait_for_line`], for a line that satisfies `wanted`; `what` describes it in errors.
    pub fn wait_for(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let give_up_at = Instant::now() + limit;
        loop {
            let ended = self.holder.try_wait()?;
            let log = self.log();
            // A line counts once it is complete, so that nobody acts on half of it.
            let complete = &log[..log.rfind('\n').map_or(0, |end| end + 1)];
            if let Some(line) = complete.lines().find(|line| wanted(line)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = ended {
                bail!(
                    "{} ended ({status}) before it said {what}:\n{log}",
                    self.what
                );
            }
            if Instant::now() >= give_up_at {
                bail!(
                    "{} did not say {what} within {} s:\n{log}",
                    self.what,
                    limit.as_secs()
                );
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.holder.try_wait(), Ok(None))
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let give_up_at = Instant::now() + limit;
        loop {
            if let Some(status) = self.holder.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= give_up_at {
                bail!("{} still runs after {} s", self.what, limit.as_secs());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self
            .pid
            .with_context(|| format!("{} is not there to be signalled", self.what))?;
        kill_process(pid, signal).with_context(|| format!("signal {}", self.what))
    }

    /// Asks it to end (SIGTERM) and waits; returns its status.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.holder.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::TERM)?;
        self.wait(TERMINATION_GRACE).inspect_err(|_| {
            let _ = self.signal(Signal::KILL);
        })
    }

    /// Ends it without asking (SIGKILL), as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        if self.is_running() {
            self.signal(Signal::KILL)?;
            self.wait(TERMINATION_GRACE)?;
        }
        Ok(())
    }

    /// Gives the handle up and leaves the program running until its machine ends.
    pub fn leave_running(mut self) {
        self.left_running = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.left_running || !self.is_running() {
            return;
        }
        if let Some(pid) = self.pid {
            let _ = kill_process(pid, Signal::KILL);
        } else {
            let _ = self.holder.kill();
        }
        let _ = self.holder.wait();
    }
}

/// The child of a process that has exactly one, waiting a moment for it to appear.
pub(super) fn only_child(parent: u32) -> Result<Pid> {
    let give_up_at = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(child) = first_child(parent) {
            return Ok(child);
        }
        if stat_fields(parent).is_none_or(|fields| fields.first().is_some_and(|state| state == "Z"))
        {
            bail!("process {parent} ended before it had a child");
        }
        if Instant::now() >= give_up_at {
            bail!("process {parent} has no child");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn first_child(parent: u32) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    if let Ok(list) = &children {
        return Pid::from_raw(list.split_whitespace().next()?.parse().ok()?);
    }
    // Kernels without CONFIG_PROC_CHILDREN: look at everybody's parent.
    let parent = parent.to_string();
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|&pid| stat_fields(pid).is_some_and(|fields| fields.get(1) == Some(&parent)))
        .and_then(|pid| Pid::from_raw(pid.cast_signed()))
}

/// A program inside a machine.
pub(super) struct Resident {
    pub(super) pid: Pid,
    pub(super) is_stopped: bool,
    /// The process outside that waits for it.
    pub(super) starter: Option<Pid>,
}

/// Every process of the process namespace whose first process is `init`, but for that one.
pub(super) fn residents(init: Pid) -> impl Iterator<Item = Resident> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let home = namespace(init.as_raw_nonzero().get().cast_unsigned());
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(move |number| {
            let pid = Pid::from_raw(number.cast_signed())?;
            if pid == init || home.is_none() || namespace(number) != home {
                return None;
            }
            let fields = stat_fields(number)?;
            let parent: u32 = fields.get(1)?.parse().ok()?;
            let starter = Pid::from_raw(parent.cast_signed());
            Some(Resident {
                pid,
                is_stopped: matches!(fields.first()?.as_str(), "T" | "Z"),
                starter: starter.filter(|_| namespace(parent) != home),
            })
        })
}

/// When a process started, in clock ticks since boot; `None` when it is gone or only its status is left.
pub(super) fn start_time(pid: Pid) -> Option<u64> {
    let fields = stat_fields(pid.as_raw_nonzero().get().cast_unsigned())?;
    if fields[0] == "Z" {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// The fields of `/proc/PID/stat` after the program's name: state, parent, and so on (proc(5)).
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}
