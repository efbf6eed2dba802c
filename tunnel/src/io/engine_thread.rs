//! The engine's thread: sleeps until a command, a report or the engine's own deadline, and carries out what it says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, at, never, select};
use overlay_types::{NetworkId, PeerId, PortId, why::Way};
use tracing::warn;

use super::sockets::Sockets;
use super::tap::{Tap, TapQueue};
use super::udp::UdpPort;
use super::worker_thread::{HandedOver, ToWorker, WorkerLink};
use crate::engine::{Command, Engine, Event, PeerStats, SocketChange};
use crate::offload::Offload;
use crate::relay::RelayStats;
use crate::snapshot::Snapshot;
use crate::stats::{Counter, Counters};
use crate::worker::Report;

/// Messages taken before the outputs are looked at: a burst of reports makes one snapshot, not hundreds.
const MESSAGES_PER_TURN: usize = 256;

/// What the node tells the engine's thread.
pub(super) enum ToEngine {
    /// A command for the engine.
    Command(Box<Command>),
    /// A port's TAP; its [`Command::AddPort`] came before.
    Attach(PortId, Tap),
    /// A port is gone. The sender is dropped once every descriptor of its TAP is closed.
    Detach(PortId, Sender<()>),
    /// What is known of peers.
    PeerStats(Sender<Vec<PeerStats>>),
    /// What is relayed for others.
    RelayStats(Sender<Option<RelayStats>>),
    WayTo(NetworkId, PeerId, Sender<Option<Way>>),
    /// What was counted.
    Counters(Sender<Counters>),
    /// End.
    Stop,
}

/// The engine's thread.
pub(super) struct EngineThread {
    pub(super) engine: Engine,
    pub(super) inbox: Receiver<ToEngine>,
    pub(super) reports: Receiver<Report>,
    /// Datagrams to be passed on for others.
    pub(super) relayed: Receiver<HandedOver>,
    /// Takes their buffers back.
    pub(super) relay_empty: Sender<Vec<u8>>,
    pub(super) udp: Arc<UdpPort>,
    pub(super) sockets: Sockets,
    pub(super) workers: Vec<WorkerLink>,
    pub(super) snapshot: Arc<ArcSwap<Snapshot>>,
    pub(super) sink: Box<dyn FnMut(Event) + Send>,
    pub(super) taps: BTreeMap<PortId, TapQueue>,
    pub(super) counters: Counters,
}

impl EngineThread {
    /// Runs until told to stop, or until nobody is left to tell.
    pub(super) fn run(mut self) {
        loop {
            let deadline = self
                .engine
                .poll_timeout()
                .map_or_else(never, |(deadline, _)| at(deadline));
            select! {
                recv(self.inbox) -> message => match message {
                    Ok(message) => if self.handle(message).is_break() { break },
                    Err(_) => break,
                },
                recv(self.reports) -> report => match report {
                    Ok(report) => self.engine.handle_report(report, Instant::now()),
                    Err(_) => break,
                },
                recv(self.relayed) -> relayed => match relayed {
                    Ok(HandedOver { from, bytes }) => self.engine.handle_to_place(from, bytes, Instant::now()),
                    Err(_) => break,
                },
                recv(deadline) -> _ => {},
            }
            if self.drain().is_break() {
                break;
            }
            let now = Instant::now();
            if self
                .engine
                .poll_timeout()
                .is_some_and(|(deadline, _)| deadline <= now)
            {
                self.engine.handle_timeout(now);
            }
            self.carry_out();
        }
        self.carry_out();
    }

    /// Takes what else is waiting.
    fn drain(&mut self) -> std::ops::ControlFlow<()> {
        let now = Instant::now();
        for _ in 0..MESSAGES_PER_TURN {
            let mut idle = true;
            if let Ok(message) = self.inbox.try_recv() {
                self.handle(message)?;
                idle = false;
            }
            if let Ok(report) = self.reports.try_recv() {
                self.engine.handle_report(report, now);
                idle = false;
            }
            if let Ok(HandedOver { from, bytes }) = self.relayed.try_recv() {
                self.engine.handle_to_place(from, bytes, now);
                idle = false;
            }
            if idle {
                break;
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn handle(&mut self, message: ToEngine) -> std::ops::ControlFlow<()> {
        match message {
            ToEngine::Command(command) => self.engine.handle_command(*command, Instant::now()),
            ToEngine::Attach(port, tap) => self.attach(port, &tap),
            ToEngine::Detach(port, done) => {
                self.engine
                    .handle_command(Command::RemovePort(port), Instant::now());
                self.taps.remove(&port);
                for worker in &self.workers {
                    worker.tell(ToWorker::Detach {
                        port,
                        _done: done.clone(),
                    });
                }
            }
            ToEngine::PeerStats(answer) => {
                let _ = answer.send(self.engine.peer_stats(Instant::now()));
            }
            ToEngine::RelayStats(answer) => {
                let _ = answer.send(self.engine.relay_stats());
            }
            ToEngine::WayTo(network, peer, answer) => {
                let _ = answer.send(self.engine.way_to(network, peer, Instant::now()));
            }
            ToEngine::Counters(answer) => {
                let mut all = self.engine.counters().clone();
                all.merge(&self.counters);
                let _ = answer.send(all);
            }
            ToEngine::Stop => return std::ops::ControlFlow::Break(()),
        }
        std::ops::ControlFlow::Continue(())
    }

    /// Gives every worker a queue of its own.
    fn attach(&mut self, port: PortId, tap: &Tap) {
        // The workers must know the port before its first frame comes.
        self.carry_out();
        for (index, worker) in self.workers.iter().enumerate() {
            match tap.queue(index) {
                Ok(queue) => worker.tell(ToWorker::Attach { port, queue }),
                Err(error) => warn!(%port, %error, "a worker gets no descriptor of a TAP"),
            }
        }
        match tap.queue(0) {
            Ok(queue) => drop(self.taps.insert(port, queue)),
            Err(error) => warn!(%port, %error, "the engine gets no descriptor of a TAP"),
        }
    }

    fn carry_out(&mut self) {
        // Opened before a snapshot names them, closed when the last of them was sent.
        let changes = std::iter::from_fn(|| self.engine.poll_socket());
        let (open, close): (Vec<_>, Vec<_>) =
            changes.partition(|change| matches!(change, SocketChange::Open(_)));
        self.sockets.follow(&open, &self.udp, &self.workers);
        if let Some(snapshot) = self.engine.take_snapshot() {
            self.snapshot.store(snapshot);
            for worker in &self.workers {
                worker.wake.ring();
            }
        }
        while let Some(transmit) = self.engine.poll_transmit() {
            // Probes that are too large for the interface are how its size is found out; nothing to count.
            let socket = self.sockets.of(transmit.hop, &self.udp);
            let sent = socket.is_some_and(|socket| {
                socket
                    .send_run(transmit.hop.to, &transmit.bytes, transmit.bytes.len())
                    .is_ok()
            });
            if !sent {
                self.counters.count(Counter::EngineUnsent);
            }
            // Other datagrams' buffers do as well; when there are enough, this one goes.
            let _ = self.relay_empty.try_send(transmit.bytes);
        }
        self.sockets.follow(&close, &self.udp, &self.workers);
        while let Some((port, frame)) = self.engine.poll_frame() {
            if !self
                .taps
                .get(&port)
                .is_some_and(|queue| queue.write(&frame, Offload::NONE))
            {
                self.counters.count(Counter::DropTap);
            }
        }
        while let Some(event) = self.engine.poll_event() {
            (self.sink)(event);
        }
    }
}

/// How long the node waits for an answer of the engine's thread, which answers within a turn unless the machine hangs.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(5);
