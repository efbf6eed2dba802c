//! A TCP connection inside the overlay on which one byte goes to and fro, and how long that takes at worst.

use cli::lab::Machine;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a byte is sent.
const EVERY: Duration = Duration::from_millis(20);
/// A byte that takes longer means that the connection is dead.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that is in use until [`Talk::end`].
pub(crate) struct Talk {
    is_over: Arc<AtomicBool>,
    /// Milliseconds that the slowest byte took since it was last asked.
    worst: Arc<AtomicU64>,
    bytes: JoinHandle<()>,
}

impl Talk {
    /// Begins one from `from` to the overlay address of `to`.
    pub(crate) fn begin(from: &Machine, to: &Machine, address: &str) -> Self {
        let at: SocketAddr = (address.parse::<Ipv4Addr>().unwrap(), 7777).into();
        let listener = to.tcp_listener(at).unwrap();
        std::thread::spawn(move || {
            let (mut far, _) = listener.accept().unwrap();
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
        });
        let mut near = from.tcp_connect(at, Duration::from_secs(10)).unwrap();
        near.set_nodelay(true).unwrap();
        near.set_read_timeout(Some(PATIENCE)).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let worst = Arc::new(AtomicU64::new(0));
        let (stop, slowest) = (Arc::clone(&is_over), Arc::clone(&worst));
        let bytes = std::thread::spawn(move || {
            let mut byte = [7];
            while !stop.load(Ordering::Relaxed) {
                let asked = Instant::now();
                near.write_all(&byte).unwrap();
                near.read_exact(&mut byte).unwrap();
                let took = asked.elapsed().as_millis() as u64;
                slowest.fetch_max(took, Ordering::Relaxed);
                std::thread::sleep(EVERY);
            }
        });
        Self {
            is_over,
            worst,
            bytes,
        }
    }

    /// The longest time that a byte took since this was last asked. Ask a while after what may have delayed it.
    pub(crate) fn worst(&self) -> Duration {
        Duration::from_millis(self.worst.swap(0, Ordering::Relaxed))
    }

    /// Ends it; it must have lived until now.
    pub(crate) fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.bytes.join().expect("the connection broke");
    }
}
