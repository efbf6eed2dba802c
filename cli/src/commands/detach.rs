//! `--detach`: the same command line again as a process of its own, which this one leaves once it is ready.
//!
//! The child tells by lines on its standard output: what it would print anyway, then `settled`, or `failed` with the
//! reason. It logs to `farlan.log` in the state directory.

use crate::output::{explain, say};
use anyhow::Context;
use std::{
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::io::{AsyncBufReadExt, BufReader};

/// The log's name in the state directory.
const LOG: &str = "farlan.log";
/// A log beyond this is put aside as `farlan.log.1` at the next start.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How long to wait for `settled`. Admission may have to wait longer; the node then goes on without us.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// The child's last word when it runs: what it says later is for the log.
const SETTLED: &str = "settled";
/// The child's last word when it does not.
const FAILED: &str = "failed ";

/// Starts the child and waits until it has settled.
pub(super) async fn run(state_dir: PathBuf) -> anyhow::Result<()> {
    let log = Log::open(&state_dir)?;
    // clap takes no value that begins with `--`, so this is the flag and nothing else.
    let arguments = std::env::args_os().skip(1).map(|a| {
        if a == "--detach" {
            "--detached".into()
        } else {
            a
        }
    });
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::inherit()) // for `--invite -`
        .stdout(Stdio::piped())
        .stderr(log.file.try_clone()?)
        .spawn()
        .context("cannot start the node")?;
    let mut lines = BufReader::new(child.stdout.take().context("the node has no output")?).lines();
    let last_word = tokio::time::timeout(READY_PATIENCE, async {
        while let Some(line) = lines.next_line().await? {
            match line.strip_prefix(FAILED) {
                _ if line == SETTLED => return Ok(()),
                Some(why) => anyhow::bail!("{why}"),
                None => say(&line),
            }
        }
        anyhow::bail!(
            "the node ended before it was ready; its log is {}",
            log.path.display()
        )
    });
    match last_word.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => {
            let _ = child.wait().await;
            log.discard();
            Err(why)
        }
        Err(_) => anyhow::bail!(
            "the node runs but is not ready after {} s and keeps trying; `farlan status` says what it waits for, `farlan down` stops it",
            READY_PATIENCE.as_secs()
        ),
    }
}

/// The log, and what had to be made for it, innermost first.
struct Log {
    path: PathBuf,
    file: File,
    made: Vec<PathBuf>,
}

impl Log {
    fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join(LOG);
        let made: Vec<PathBuf> = path
            .ancestors()
            .take_while(|p| !p.exists())
            .map(Path::to_owned)
            .collect();
        let open = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(state_dir)?;
            if path.metadata().is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
                std::fs::rename(&path, path.with_extension("log.1"))?;
            }
            OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(&path)
        };
        match open() {
            Ok(file) => Ok(Self { path, file, made }),
            Err(error) => {
                remove(&made);
                let path = path.display();
                Err(error).with_context(|| {
                    format!("cannot write {path}; check the disk, or give another --state DIR")
                })
            }
        }
    }

    /// A start that failed leaves nothing behind that was not there before.
    fn discard(self) {
        remove(&self.made);
    }
}

fn remove(made: &[PathBuf]) {
    for path in made {
        // A directory that holds something by now, such as a complete identity, stays.
        let _ = if path.is_dir() {
            std::fs::remove_dir(path)
        } else {
            std::fs::remove_file(path)
        };
    }
}

/// The child's side.
#[derive(Debug)]
pub(super) struct Detached {
    told: AtomicBool,
}

impl Detached {
    /// Leaves the terminal, so that closing it does not end the node.
    pub(super) fn begin() -> anyhow::Result<Self> {
        rustix::process::setsid().context("cannot leave the terminal")?;
        Ok(Self {
            told: AtomicBool::new(false),
        })
    }

    /// Tells the parent that it may go, once; nobody reads our output after that.
    pub(super) fn let_go(this: Option<&Self>) {
        let Some(this) = this else { return };
        if this.told.swap(true, Ordering::Relaxed) {
            return;
        }
        say(SETTLED);
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        let silenced = null.and_then(|null| {
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
            Ok(())
        });
        if let Err(error) = silenced {
            tracing::warn!(%error, "cannot leave standard output");
        }
    }

    /// Tells the parent why there is no node, where it still listens.
    pub(super) fn tell_failure(this: Option<&Self>, result: &anyhow::Result<()>) {
        if let (Some(this), Err(error)) = (this, result)
            && !this.told.load(Ordering::Relaxed)
        {
            say(&format!("{FAILED}{}", explain(error)));
        }
    }
}
