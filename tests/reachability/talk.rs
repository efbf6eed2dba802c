//! A conversation inside the overlay in which one byte goes to and fro, by TCP or in an ssh session, and how long that takes
//! at worst.

use anyhow::{Context, Result};
use cli::lab::Machine;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a byte is sent.
const EVERY: Duration = Duration::from_millis(20);
/// A byte that takes longer means that the connection is dead.
const PATIENCE: Duration = Duration::from_secs(60);
const TCP_PORT: u16 = 7777;

/// A conversation that goes on until [`Talk::end`].
pub(crate) struct Talk {
    is_over: Arc<AtomicBool>,
    waits: Arc<Mutex<Waits>>,
    bytes: JoinHandle<Result<()>>,
    ssh: Option<Child>,
}

/// How long bytes take.
struct Waits {
    /// When the byte was sent that is on its way.
    asked: Instant,
    /// The slowest since it was last asked.
    worst: Duration,
}

impl Talk {
    /// Over a TCP connection from `from` to the overlay address of `to`.
    pub(crate) fn by_tcp(from: &Machine, to: &Machine, address: &str) -> Result<Self> {
        let at: SocketAddr = (address.parse::<Ipv4Addr>()?, TCP_PORT).into();
        let listener = to.tcp_listener(at)?;
        std::thread::spawn(move || {
            let Ok((mut far, _)) = listener.accept() else {
                return;
            };
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
        });
        let near = from.tcp_connect(at, Duration::from_secs(10))?;
        near.set_nodelay(true)?;
        near.set_read_timeout(Some(PATIENCE))?;
        let writer = near.try_clone()?;
        Ok(Self::begin(near, writer, None))
    }

    /// In a session of the machine's ssh, whose key is welcome at `address`.
    pub(crate) fn by_ssh(from: &Machine, address: &str) -> Result<Self> {
        let patience = format!("ServerAliveCountMax={}", PATIENCE.as_secs() / 10);
        let options = ["-T", "-o", "ServerAliveInterval=10", "-o", &patience];
        let mut command = from.command("ssh");
        command.args(options).args([address, "cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut ssh = command.spawn().context("start ssh")?;
        let writer = ssh.stdin.take().context("ssh's input")?;
        let reader = ssh.stdout.take().context("ssh's output")?;
        Ok(Self::begin(reader, writer, Some(ssh)))
    }

    fn begin(
        mut reader: impl Read + Send + 'static,
        mut writer: impl Write + Send + 'static,
        ssh: Option<Child>,
    ) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let waits = Arc::new(Mutex::new(Waits {
            asked: Instant::now(),
            worst: Duration::ZERO,
        }));
        let (stop, told) = (Arc::clone(&is_over), Arc::clone(&waits));
        let bytes = std::thread::spawn(move || {
            let mut byte = [7];
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                told.lock().unwrap().asked = asked;
                writer.write_all(&byte)?;
                reader.read_exact(&mut byte)?;
                let mut waits = told.lock().unwrap();
                waits.worst = waits.worst.max(asked.elapsed());
                drop(waits);
                std::thread::sleep(EVERY);
            }
            Ok(())
        });
        Self {
            is_over,
            waits,
            bytes,
            ssh,
        }
    }

    /// The longest time that a byte took since this was last asked, the one on its way included. Ask a while after what may
    /// have delayed it.
    pub(crate) fn worst(&self) -> Duration {
        let mut waits = self.waits.lock().unwrap();
        let on_its_way = waits.asked.elapsed().saturating_sub(EVERY);
        std::mem::take(&mut waits.worst).max(on_its_way)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it did not live until now.
    pub(crate) fn end(self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        let outcome = self.bytes.join().expect("it does not panic");
        if let Some(mut ssh) = self.ssh {
            let _ended = ssh.kill();
            ssh.wait()?;
        }
        outcome.context("the connection broke")
    }
}
