//! The running data plane, as the node holds it: starts the threads, passes commands on, stops them.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use crossbeam_channel::Sender;
use overlay_types::{MacAddr, NetworkId, PeerId, PortId, PortKind, why::Way};
use tracing::debug;

use super::engine_thread::{ANSWER_WITHIN, EngineThread, ToEngine};
use super::sockets::Sockets;
use super::steer;
use super::tap::{Tap, TapError};
use super::udp::{self, UdpPort};
use super::worker_thread::{self, RELAYED_MAX, ToRelay, WorkerLink, WorkerThread};
use crate::engine::{Command, Engine, EngineConfig, Event, PeerStats};
use crate::relay::RelayStats;
use crate::snapshot::Snapshot;
use crate::stats::Counters;
use crate::wire::datagram::LANE_MAX;

/// Commands that wait for the engine; when it is full, whoever commands waits.
const COMMANDS_MAX: usize = 1024;
/// Reports that wait for the engine; more are dropped and counted by the worker.
const REPORTS_MAX: usize = 4096;

/// What a data plane is started with.
#[derive(Clone, Debug)]
pub struct DataPlaneConfig {
    /// The data port: `[::]:PORT` for both IP versions; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// How many workers (1 to 15); one carries some Gbit/s. [`workers_for`] tells how many are of use.
    pub workers: u8,
    /// All randomness of the engine comes from it: take it from the operating system.
    pub seed: [u8; 32],
}

/// How many workers a machine with so many processors has use for: one up to four processors, where more only take turns
/// (`docs/decisions/0016-workers-and-queues.md`), else half of them, and no more than eight.
pub const fn workers_for(processors: usize) -> u8 {
    match processors {
        0..=4 => 1,
        5..=16 => (processors / 2) as u8,
        _ => 8,
    }
}

/// Why the data plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Somebody has the port.
    #[error(
        "UDP port {0} is in use; stop the other program (`ss -lunp` shows it), or choose another port"
    )]
    PortTaken(SocketAddr),
    /// Lanes are numbered with four bits.
    #[error("{0} workers are not possible; choose 1 to {LANE_MAX}")]
    Workers(u8),
    /// Anything else.
    #[error("cannot start the data plane on {listen}")]
    Io {
        /// Where it should have listened.
        listen: SocketAddr,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// A running data plane. Dropping it stops it.
pub struct DataPlane {
    to_engine: Sender<ToEngine>,
    engine: Option<JoinHandle<()>>,
    workers: Vec<(WorkerLink, JoinHandle<()>)>,
    local_addr: SocketAddr,
}

impl DataPlane {
    /// Binds the data port and starts the threads. `sink` is called on the engine's thread and must not wait.
    ///
    /// # Errors
    /// Why not; nothing runs then.
    pub fn start(
        config: DataPlaneConfig,
        sink: Box<dyn FnMut(Event) + Send>,
    ) -> Result<Self, StartError> {
        let DataPlaneConfig {
            listen,
            workers,
            seed,
        } = config;
        if workers == 0 || workers > LANE_MAX {
            return Err(StartError::Workers(workers));
        }
        let failed = |cause: io::Error| match cause.kind() {
            io::ErrorKind::AddrInUse => StartError::PortTaken(listen),
            _ => StartError::Io { listen, cause },
        };
        let sockets = bind_all(listen, workers).map_err(failed)?;
        let local_addr = udp::normalised(sockets[0].local_addr().map_err(failed)?);

        let (to_engine, inbox) = crossbeam_channel::bounded(COMMANDS_MAX);
        let (reports_in, reports) = crossbeam_channel::bounded(REPORTS_MAX);
        let (datagrams, relayed) = crossbeam_channel::bounded(RELAYED_MAX);
        let (relay_empty, empty) = crossbeam_channel::bounded(RELAYED_MAX);
        let to_relay = ToRelay { datagrams, empty };
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let ends = (0..workers)
            .map(|_| worker_thread::link(workers))
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;
        let (links, ends): (Vec<_>, Vec<_>) = ends.into_iter().unzip();

        let unix_at_start = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let engine_thread = EngineThread {
            engine: Engine::new(
                EngineConfig {
                    workers,
                    seed,
                    unix_at_start,
                },
                Instant::now(),
            ),
            inbox,
            reports,
            relayed,
            relay_empty,
            udp: sockets[0].clone(),
            sockets: Sockets::default(),
            workers: links.clone(),
            snapshot: snapshot.clone(),
            sink,
            taps: BTreeMap::new(),
            counters: Counters::default(),
        };
        let worker_threads = sockets
            .iter()
            .zip(ends)
            .zip(0..)
            .map(|((udp, ends), index)| {
                WorkerThread::new(
                    (index, workers),
                    udp.clone(),
                    ends,
                    links.clone(),
                    (reports_in.clone(), to_relay.clone()),
                    snapshot.clone(),
                )
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed)?;

        let mut running = Self {
            to_engine,
            engine: None,
            workers: Vec::new(),
            local_addr,
        };
        let spawned = thread::Builder::new()
            .name("farlan-engine".to_owned())
            .spawn(move || engine_thread.run());
        running.engine = Some(spawned.map_err(failed)?);
        for ((index, worker), link) in worker_threads.into_iter().enumerate().zip(links) {
            let spawned = thread::Builder::new()
                .name(format!("farlan-w{index}"))
                .spawn(move || worker.run());
            running.workers.push((link, spawned.map_err(failed)?));
        }
        Ok(running)
    }

    /// Where it listens; IPv4 looks like IPv4.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Tells the engine something. Waits only while very many commands are ahead.
    pub fn command(&self, command: Command) {
        self.tell(ToEngine::Command(Box::new(command)));
    }

    /// Makes a TAP with a queue for each worker and brings it up. Without a `name` the kernel chooses `tapN`, without a `mac`
    /// one at random.
    ///
    /// # Errors
    /// Why it could not be made; nothing is left behind then.
    pub fn make_tap(
        &self,
        name: Option<&str>,
        mac: Option<MacAddr>,
        mtu: u16,
    ) -> Result<Tap, TapError> {
        Tap::create(name, mac, mtu, self.workers.len() as u8)
    }

    /// Plugs a TAP in as a port. The data plane keeps the TAP until [`Self::remove_port`].
    pub fn add_port(
        &self,
        network: NetworkId,
        port: PortId,
        kind: PortKind,
        macs: Vec<MacAddr>,
        tap: Tap,
    ) {
        self.command(Command::AddPort {
            network,
            port,
            kind,
            macs,
        });
        self.tell(ToEngine::Attach(port, tap));
    }

    /// Takes a port away; its TAP is gone when this returns.
    pub fn remove_port(&self, port: PortId) {
        let (done, gone) = crossbeam_channel::bounded(0);
        self.tell(ToEngine::Detach(port, done));
        // Nothing is ever sent: the channel closes when the last holder of a descriptor has dropped it.
        let _ = gone.recv_timeout(ANSWER_WITHIN);
    }

    /// What is known of every peer.
    pub fn peer_stats(&self) -> Vec<PeerStats> {
        self.ask(ToEngine::PeerStats).unwrap_or_default()
    }

    /// What this node relays for others; `None` when it does not.
    pub fn relay_stats(&self) -> Option<RelayStats> {
        self.ask(ToEngine::RelayStats).flatten()
    }

    /// How this node sees the way to a peer, for `farlan why`.
    pub fn way_to(&self, network: NetworkId, peer: PeerId) -> Option<Way> {
        let ask = |answer| ToEngine::WayTo(network, peer, answer);
        self.ask(ask).flatten()
    }

    /// What was counted, over all threads; workers tell theirs once a second.
    pub fn counters(&self) -> Counters {
        self.ask(ToEngine::Counters).unwrap_or_default()
    }

    /// Stops it and waits until the threads have ended.
    pub fn stop(self) {
        drop(self);
    }

    fn tell(&self, message: ToEngine) {
        if self.to_engine.send(message).is_err() {
            debug!("the data plane has stopped");
        }
    }

    fn ask<T>(&self, question: impl FnOnce(Sender<T>) -> ToEngine) -> Option<T> {
        let (answer, answered) = crossbeam_channel::bounded(1);
        self.tell(question(answer));
        answered.recv_timeout(ANSWER_WITHIN).ok()
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.tell(ToEngine::Stop);
        if let Some(engine) = self.engine.take() {
            let _ = engine.join();
        }
        for (link, thread) in self.workers.drain(..) {
            link.stop();
            let _ = thread.join();
        }
    }
}

/// One socket for each worker, all on the same port.
fn bind_all(listen: SocketAddr, workers: u8) -> io::Result<Vec<Arc<UdpPort>>> {
    let shared = workers > 1;
    let first = UdpPort::bind(listen, shared)?;
    let bound = first.local_addr()?;
    let mut sockets = vec![Arc::new(first)];
    for _ in 1..workers {
        sockets.push(Arc::new(UdpPort::bind(bound, shared)?));
    }
    if shared && let Err(error) = steer::by_lane(sockets[0].socket().as_fd(), workers) {
        debug!(%error, "the kernel does not steer lanes; workers hand more over");
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str, workers: u8) -> DataPlaneConfig {
        DataPlaneConfig {
            listen: listen.parse().unwrap(),
            workers,
            seed: [1; 32],
        }
    }

    #[test]
    fn it_starts_answers_and_stops_with_one_worker_and_with_many() {
        for workers in [1, 4] {
            let running = DataPlane::start(config("[::]:0", workers), Box::new(|_| {})).unwrap();
            assert_ne!(running.local_addr().port(), 0);
            assert!(running.peer_stats().is_empty());
            running.remove_port(PortId(7));
            running.stop();
        }
    }

    #[test]
    fn a_port_in_use_and_a_senseless_number_of_workers_are_refused() {
        let running = DataPlane::start(config("127.0.0.1:0", 1), Box::new(|_| {})).unwrap();
        let again = DataPlane::start(
            config(&running.local_addr().to_string(), 1),
            Box::new(|_| {}),
        );
        assert!(matches!(again, Err(StartError::PortTaken(_))));
        for workers in [0, 16] {
            let refused = DataPlane::start(config("127.0.0.1:0", workers), Box::new(|_| {}));
            assert!(matches!(refused, Err(StartError::Workers(_))));
        }
    }

    #[test]
    fn nonsense_on_the_port_is_dropped_and_counted() {
        use crate::stats::Counter;
        let running = DataPlane::start(config("127.0.0.1:0", 1), Box::new(|_| {})).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"nonsense", running.local_addr()).unwrap();
        let give_up = Instant::now() + std::time::Duration::from_secs(10);
        while running.counters().get(Counter::DropUnknownDatagram) == 0 && Instant::now() < give_up
        {
            thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(running.counters().get(Counter::DropUnknownDatagram), 1);
    }
}
