//! A node's data plane in the simulated world: the real engine and workers on simulated I/O, with guests behind its ports.
//! Who its peers are and what is bound where it is told by [`crate::member`]; infrastructure is in [`crate::infrastructure`].

use crate::guest::Guest;
use overlay_types::{PathAddr, PeerId, PortId};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};
use tunnel::{
    engine::{Engine, Event, SocketChange},
    offload::Offload,
    worker::{Hop, Output, Report, Worker},
};

/// A node's data plane on simulated I/O.
pub struct NodeHost {
    /// Who it is.
    pub peer: PeerId,
    /// The slow half.
    pub engine: Engine,
    /// The fast halves.
    pub workers: Vec<Worker>,
    /// Who is behind which port.
    pub guests: BTreeMap<PortId, Guest>,
    /// What the engine said since it was last asked.
    pub events: Vec<Event>,
    /// Sockets beside the data port's.
    sockets: BTreeSet<u16>,
}

/// What a node wants sent.
pub type Sent = Vec<(Hop, Vec<u8>)>;

/// What a worker wants done, until the host does it.
#[derive(Default)]
struct Wishes {
    sent: Sent,
    delivered: Vec<(PortId, Vec<u8>)>,
    reports: Vec<Report>,
    handed_over: Vec<(u8, PathAddr, Vec<u8>)>,
    relayed: Vec<(PathAddr, Vec<u8>)>,
}

/// Reports that may wait for the engine; more are dropped, as on a real host.
const REPORTS_MAX: usize = 1024;

impl Output for Wishes {
    fn transmit(&mut self, hop: Hop, len: usize) -> &mut [u8] {
        self.sent.push((hop, vec![0; len]));
        &mut self.sent.last_mut().expect("it was just pushed").1
    }
    fn deliver(&mut self, port: PortId, frame: &[u8], _offload: Offload) {
        self.delivered.push((port, frame.to_vec()));
    }
    fn report(&mut self, report: Report) -> bool {
        let room = self.reports.len() < REPORTS_MAX;
        if room {
            self.reports.push(report);
        }
        room
    }
    fn relay(&mut self, from: PathAddr, datagram: &[u8]) -> bool {
        self.relayed.push((from, datagram.to_vec()));
        true
    }
    fn hand_over(&mut self, worker: u8, from: PathAddr, datagram: &[u8]) {
        self.handed_over.push((worker, from, datagram.to_vec()));
    }
}

impl NodeHost {
    /// A node with this data plane and no guests.
    pub fn new(peer: PeerId, engine: Engine, workers: Vec<Worker>) -> Self {
        Self {
            peer,
            engine,
            workers,
            guests: BTreeMap::new(),
            events: Vec::new(),
            sockets: BTreeSet::new(),
        }
    }

    /// How many sockets beside the data port's are open.
    pub fn further_sockets(&self) -> usize {
        self.sockets.len()
    }

    /// A datagram arrives on a socket: on the data port's own (0) the kernel spreads flows over the workers by source, and
    /// so does this; the first worker reads all others.
    pub fn handle_datagram(
        &mut self,
        socket: u16,
        from: SocketAddr,
        bytes: &mut [u8],
        now: Instant,
    ) -> Sent {
        let mut wishes = Wishes::default();
        if socket != 0 {
            if !self.sockets.contains(&socket) {
                return Sent::new();
            }
            self.workers[0].handle_punched(socket, from, bytes, now, &mut wishes);
            self.workers[0].end_turn(now, &mut wishes);
            return self.settle(wishes, now);
        }
        let worker = usize::from(from.port()) % self.workers.len();
        self.workers[worker].handle_datagram(from, bytes, now, &mut wishes);
        self.workers[worker].end_turn(now, &mut wishes);
        self.settle(wishes, now)
    }

    /// The guest behind `port` sends frames.
    pub fn handle_frames(&mut self, port: PortId, frames: Vec<Vec<u8>>, now: Instant) -> Sent {
        let mut wishes = Wishes::default();
        self.feed(port, frames, now, &mut wishes);
        self.settle(wishes, now)
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) -> Sent {
        let mut wishes = Wishes::default();
        if self.engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.engine.handle_timeout(now);
        }
        for worker in &mut self.workers {
            if worker.poll_timeout().is_some_and(|(at, _)| at <= now) {
                worker.handle_timeout(now, &mut wishes);
            }
        }
        for port in self.guests.keys().copied().collect::<Vec<_>>() {
            let guest = self.guests.get_mut(&port).expect("its key was just listed");
            if guest.poll_timeout().is_some_and(|at| at <= now) {
                let frames = guest.handle_timeout(now);
                self.feed(port, frames, now, &mut wishes);
            }
        }
        self.settle(wishes, now)
    }

    /// Something was told to the engine: do what follows from it.
    pub fn drain(&mut self, now: Instant) -> Sent {
        self.settle(Wishes::default(), now)
    }

    /// When to be called again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let engine = self.engine.poll_timeout().map(|(at, _)| at);
        let workers = self
            .workers
            .iter()
            .filter_map(|worker| worker.poll_timeout().map(|(at, _)| at));
        let guests = self.guests.values().filter_map(Guest::poll_timeout);
        engine.into_iter().chain(workers).chain(guests).min()
    }

    fn feed(&mut self, port: PortId, frames: Vec<Vec<u8>>, now: Instant, wishes: &mut Wishes) {
        let worker = usize::from(port.0) % self.workers.len();
        for mut frame in frames {
            self.workers[worker].handle_frame(port, &mut frame, Offload::NONE, now, wishes);
        }
    }

    /// Carries out what is wanted until nothing more is.
    fn settle(&mut self, mut wishes: Wishes, now: Instant) -> Sent {
        let mut sent = Vec::new();
        loop {
            sent.append(&mut wishes.sent);
            for report in std::mem::take(&mut wishes.reports) {
                self.engine.handle_report(report, now);
            }
            for (from, bytes) in std::mem::take(&mut wishes.relayed) {
                self.engine.handle_to_place(from, bytes, now);
            }
            for (worker, from, mut bytes) in std::mem::take(&mut wishes.handed_over) {
                self.workers[usize::from(worker)].handle_unwrapped(
                    from,
                    &mut bytes,
                    now,
                    &mut wishes,
                );
                self.workers[usize::from(worker)].end_turn(now, &mut wishes);
            }
            // Before anything is sent: what is sent may be answered at once.
            if let Some(snapshot) = self.engine.take_snapshot() {
                for worker in &mut self.workers {
                    worker.set_snapshot(Arc::clone(&snapshot));
                }
            }
            while let Some(change) = self.engine.poll_socket() {
                match change {
                    SocketChange::Open(socket) => drop(self.sockets.insert(socket)),
                    SocketChange::Close(socket) => drop(self.sockets.remove(&socket)),
                }
            }
            while let Some(transmit) = self.engine.poll_transmit() {
                sent.push((transmit.hop, transmit.bytes));
            }
            while let Some((port, frame)) = self.engine.poll_frame() {
                wishes.delivered.push((port, frame));
            }
            while let Some(event) = self.engine.poll_event() {
                self.events.push(event);
            }
            for (port, frame) in std::mem::take(&mut wishes.delivered) {
                if let Some(guest) = self.guests.get_mut(&port) {
                    let answers = guest.handle_frame(&frame, now);
                    self.feed(port, answers, now, &mut wishes);
                }
            }
            let idle = wishes.sent.is_empty()
                && wishes.reports.is_empty()
                && wishes.handed_over.is_empty()
                && wishes.delivered.is_empty();
            if idle {
                return sent;
            }
        }
    }
}
