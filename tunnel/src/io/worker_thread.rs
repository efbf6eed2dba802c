//! One worker's thread: sleeps in epoll, drains what is there in turns, hands everything to [`Worker`] and sends what
//! comes out. What frames and datagrams mean is the worker's business.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use overlay_types::{PathAddr, PortId};
use rustix::event::epoll::{self, EventData, EventFlags};
use tracing::warn;

use super::batch::{RunSink, SendBatch};
use super::moderation::Moderation;
use super::sockets::Sockets;
use super::tap::{ReadBuffer, TapQueue};
use super::udp::{ReceiveBuffers, TURN_BYTES, UdpPort, Unsent};
use super::wake::Wake;
use crate::offload::{Offload, UDP_SEGMENTS_MAX};
use crate::snapshot::Snapshot;
use crate::stats::{Counter, Counters};
use crate::worker::{Hop, Output, Report, Worker};

/// Frames of one TAP in one turn, so that no TAP starves the others or the socket.
const FRAMES_PER_TURN: usize = 128;
/// Bytes of them, about, while they are single frames; of super-frames as many as one receive call takes. Why the smallest
/// frames may be more than others stands in `docs/decisions/0014-workers-rest.md`.
const SINGLE_FRAMES_TURN_BYTES: usize = 80 << 10;
/// So many runs in the socket at once say that the worker is behind.
const BEHIND_RUNS: usize = 2;
/// So many datagrams of one flow are joined while the worker is not behind.
const JOINED_IN_TIME: usize = 8;
/// Datagrams on their way to another worker; more are dropped and counted.
pub(super) const HAND_OVER_MAX: usize = 512;
/// Relayed datagrams that wait for the engine, of all workers: about what a receive buffer holds; more are dropped and counted.
pub(super) const RELAYED_MAX: usize = 512;
/// How often the shell's own counters are told at most.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Names of descriptors in epoll: the socket, the wake, from here on the ports, and behind them further sockets.
const UDP: u64 = 0;
const WAKE: u64 = 1;
const FIRST_PORT: u64 = 2;
const FIRST_SOCKET: u64 = 1 << 32;

/// What a worker is told.
pub(super) enum ToWorker {
    /// A port has this TAP; this is the worker's queue of it.
    Attach { port: PortId, queue: TapQueue },
    /// A port is gone. `_done` is dropped once its descriptor is.
    Detach { port: PortId, _done: Sender<()> },
    /// Sockets beside the data port's, opened or (`None`) closed.
    Sockets(Vec<(u16, Option<Arc<UdpPort>>)>),
    /// End.
    Stop,
}

/// A datagram of another worker's lane, or to be relayed by the engine.
pub(super) struct HandedOver {
    pub(super) from: PathAddr,
    pub(super) bytes: Vec<u8>,
}

/// The worker's ends of the way of relayed datagrams, which the engine passes on.
#[derive(Clone)]
pub(super) struct ToRelay {
    /// At most [`RELAYED_MAX`].
    pub(super) datagrams: Sender<HandedOver>,
    /// Buffers that were sent.
    pub(super) empty: Receiver<Vec<u8>>,
}

/// How others reach a worker.
#[derive(Clone)]
pub(super) struct WorkerLink {
    inbox: Sender<ToWorker>,
    /// Makes the worker look.
    pub(super) wake: Arc<Wake>,
    /// Datagrams of its lane from other workers.
    hand_over: Sender<HandedOver>,
    /// Empty buffers to hand over in.
    empty: Receiver<Vec<u8>>,
}

impl WorkerLink {
    /// Tells it something; it never makes the teller wait long, for it waits for nobody itself.
    pub(super) fn tell(&self, message: ToWorker) {
        let _ = self.inbox.send(message); // a worker that has ended needs to know nothing
        self.wake.ring();
    }

    /// Ends it.
    pub(super) fn stop(&self) {
        self.tell(ToWorker::Stop);
    }
}

/// The worker's own ends of its [`WorkerLink`].
pub(super) struct WorkerEnds {
    inbox: Receiver<ToWorker>,
    wake: Arc<Wake>,
    handed_over: Receiver<HandedOver>,
    empty: Sender<Vec<u8>>,
}

/// Both ends. With one worker nothing is ever handed over, and no buffers are made for it.
pub(super) fn link(workers: u8) -> io::Result<(WorkerLink, WorkerEnds)> {
    let (inbox_in, inbox) = crossbeam_channel::bounded(64);
    let (hand_over, handed_over) = crossbeam_channel::bounded(HAND_OVER_MAX);
    let (empty_in, empty) = crossbeam_channel::bounded(HAND_OVER_MAX);
    for _ in 0..if workers > 1 { HAND_OVER_MAX } else { 0 } {
        let _ = empty_in.try_send(Vec::with_capacity(2048));
    }
    let wake = Arc::new(Wake::new()?);
    let link = WorkerLink {
        inbox: inbox_in,
        wake: wake.clone(),
        hand_over,
        empty,
    };
    Ok((
        link,
        WorkerEnds {
            inbox,
            wake,
            handed_over,
            empty: empty_in,
        },
    ))
}

/// One worker's thread.
pub(super) struct WorkerThread {
    worker: Worker,
    shell: Shell,
    ends: WorkerEnds,
    snapshot: Arc<ArcSwap<Snapshot>>,
    /// The picture that the worker has.
    current: Arc<Snapshot>,
    epoll: rustix::fd::OwnedFd,
    received: ReceiveBuffers,
    frame: ReadBuffer,
    /// Whether every TAP takes super-frames of UDP.
    takes_uso: bool,
    /// The first worker receives on further sockets.
    is_first: bool,
}

/// Everything that the worker's output goes to.
struct Shell {
    udp: Arc<UdpPort>,
    sockets: Sockets,
    batch: SendBatch,
    taps: BTreeMap<PortId, TapQueue>,
    reports: Sender<Report>,
    to_relay: ToRelay,
    others: Vec<WorkerLink>,
    /// Workers that were handed something in this turn.
    to_wake: u16,
    moderation: Moderation,
    /// Datagrams that waited in vain in the socket, as far as they were counted.
    dropped_told: u32,
    counters: Counters,
    tell_at: Option<Instant>,
}

impl WorkerThread {
    pub(super) fn new(
        (index, workers): (u8, u8),
        udp: Arc<UdpPort>,
        ends: WorkerEnds,
        others: Vec<WorkerLink>,
        (reports, to_relay): (Sender<Report>, ToRelay),
        snapshot: Arc<ArcSwap<Snapshot>>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            udp.socket(),
            EventData::new_u64(UDP),
            EventFlags::IN,
        )?;
        epoll::add(
            &epoll,
            &*ends.wake,
            EventData::new_u64(WAKE),
            EventFlags::IN,
        )?;
        let batch = SendBatch::new(udp.segments_max());
        let shell = Shell {
            udp,
            sockets: Sockets::default(),
            batch,
            taps: BTreeMap::new(),
            reports,
            to_relay,
            others,
            to_wake: 0,
            dropped_told: 0,
            moderation: Moderation::new(thread::available_parallelism().map_or(1, Into::into)),
            counters: Counters::default(),
            tell_at: None,
        };
        Ok(Self {
            worker: Worker::new(index, workers, Instant::now()),
            shell,
            ends,
            current: snapshot.load_full(),
            snapshot,
            epoll,
            received: ReceiveBuffers::new(),
            frame: ReadBuffer::new(),
            takes_uso: false,
            is_first: index == 0,
        })
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) {
        // Rests are as long as they say; a kernel that refuses makes them a little longer.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let quiet = epoll::Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        };
        let mut events = [quiet; 32];
        loop {
            let timeout = self.sleep_at_most();
            let ready = match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
                Ok(ready) => ready,
                Err(rustix::io::Errno::INTR) => 0,
                Err(errno) => {
                    warn!(%errno, "epoll failed; this worker ends");
                    return;
                }
            };
            let now = Instant::now();
            for event in &events[..ready] {
                match event.data.u64() {
                    UDP => self.drain_socket(0, now),
                    WAKE => {
                        if self.drain_inbox(now).is_break() {
                            return;
                        }
                    }
                    port @ FIRST_PORT..FIRST_SOCKET => {
                        self.drain_tap(PortId((port - FIRST_PORT) as u16), now);
                    }
                    socket => self.drain_socket((socket - FIRST_SOCKET) as u16, now),
                }
            }
            if self.worker.poll_timeout().is_some_and(|(at, _)| at <= now) {
                self.worker.handle_timeout(now, &mut self.shell);
            }
            self.shell.end_turn(now);
            if let Some(rest) = self.shell.moderation.end_turn() {
                thread::sleep(rest);
            }
        }
    }

    /// Until the next deadline, rounded up so that we never wake just before it; for ever when there is none.
    fn sleep_at_most(&self) -> Option<rustix::event::Timespec> {
        let deadlines = [
            self.worker.poll_timeout().map(|(at, _)| at),
            self.shell.tell_at,
        ];
        let next = deadlines.into_iter().flatten().min()?;
        let rest = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Some(rustix::event::Timespec {
            tv_sec: rest.as_secs().min(3600) as i64,
            tv_nsec: i64::from(rest.subsec_nanos()),
        })
    }

    /// Receives on the data port's socket, which is number 0, or on a further one.
    fn drain_socket(&mut self, number: u16, now: Instant) {
        let Self {
            worker,
            shell,
            received,
            takes_uso,
            ..
        } = self;
        let result = if number == 0 {
            shell.udp.receive(received)
        } else if let Some(socket) = shell.sockets.get(number) {
            socket.receive(received)
        } else {
            return; // closed in this turn
        };
        match result {
            Ok(count) => {
                if count >= BEHIND_RUNS {
                    shell.moderation.note_more();
                    // What the full socket dropped, if it was, is asked for when the counters are told.
                    shell.tell_at.get_or_insert(now + TELL_EVERY);
                }
                // In time, few datagrams are joined: many at once would overflow the socket of whoever reads them.
                // Behind, all that fit are, so that what is delivered does not shrink when more is sent.
                worker.set_joined_datagrams_max(match (*takes_uso, count) {
                    (false, _) => 0,
                    (true, BEHIND_RUNS..) => UDP_SEGMENTS_MAX,
                    (true, _) => JOINED_IN_TIME,
                });
                received.for_each(count, |from, datagram| match number {
                    0 => worker.handle_datagram(from, datagram, now, shell),
                    _ => worker.handle_punched(number, from, datagram, now, shell),
                });
                worker.end_turn(now, shell);
            }
            // Errors of a UDP socket are about datagrams that left earlier.
            Err(_) => shell.count(Counter::DropUdpFailed, 1, now),
        }
    }

    fn drain_tap(&mut self, port: PortId, now: Instant) {
        let mut bytes = 0;
        for _ in 0..FRAMES_PER_TURN {
            let Some(queue) = self.shell.taps.get(&port) else {
                return;
            };
            match queue.read(&mut self.frame) {
                Ok(Some((frame, offload))) => {
                    self.shell.moderation.note(&offload);
                    bytes += frame.len();
                    let bytes_max = match offload.segmentation {
                        None => SINGLE_FRAMES_TURN_BYTES,
                        Some(_) => TURN_BYTES,
                    };
                    self.worker
                        .handle_frame(port, frame, offload, now, &mut self.shell);
                    if bytes >= bytes_max {
                        break;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    // Somebody deleted the interface: it would be readable for ever.
                    warn!(%port, %error, "a TAP is gone");
                    self.stop_reading(port);
                    return;
                }
            }
        }
        self.shell.moderation.note_more();
    }

    fn drain_inbox(&mut self, now: Instant) -> std::ops::ControlFlow<()> {
        self.ends.wake.hear();
        let newest = self.snapshot.load();
        if !Arc::ptr_eq(&newest, &self.current) {
            self.current = Arc::clone(&newest);
            self.worker.set_snapshot(self.current.clone());
        }
        while let Ok(message) = self.ends.inbox.try_recv() {
            match message {
                ToWorker::Attach { port, queue } => self.attach(port, queue),
                ToWorker::Detach { port, .. } => {
                    self.stop_reading(port);
                    self.shell.taps.remove(&port);
                }
                ToWorker::Sockets(changes) => {
                    let epoll = self
                        .is_first
                        .then_some((&self.epoll, |socket| FIRST_SOCKET + u64::from(socket)));
                    self.shell.sockets.apply(changes, epoll);
                }
                ToWorker::Stop => return std::ops::ControlFlow::Break(()),
            }
        }
        while let Ok(mut handed) = self.ends.handed_over.try_recv() {
            self.worker
                .handle_unwrapped(handed.from, &mut handed.bytes, now, &mut self.shell);
            let _ = self.ends.empty.try_send(handed.bytes);
        }
        self.worker.end_turn(now, &mut self.shell);
        std::ops::ControlFlow::Continue(())
    }

    fn attach(&mut self, port: PortId, queue: TapQueue) {
        let name = EventData::new_u64(FIRST_PORT + u64::from(port.0));
        if let Err(errno) = epoll::add(&self.epoll, &queue, name, EventFlags::IN) {
            warn!(%port, %errno, "cannot wait for a TAP's frames");
        }
        self.shell.taps.insert(port, queue);
        self.takes_uso = self.shell.taps.values().all(TapQueue::takes_uso);
    }

    fn stop_reading(&mut self, port: PortId) {
        if let Some(queue) = self.shell.taps.get(&port) {
            // One that is gone was stopped before.
            let _ = epoll::delete(&self.epoll, queue.as_fd());
        }
    }
}

impl Shell {
    fn count(&mut self, counter: Counter, n: u64, now: Instant) {
        self.counters.add(counter, n);
        self.tell_at.get_or_insert(now + TELL_EVERY);
    }

    /// Sends what was gathered, wakes who was handed something, and tells the counters when it is time.
    fn end_turn(&mut self, now: Instant) {
        let Self {
            udp,
            sockets,
            batch,
            counters,
            ..
        } = self;
        batch.flush(&mut CountingSink {
            udp,
            sockets,
            counters,
        });
        for (index, other) in self.others.iter().enumerate() {
            if self.to_wake & (1 << index) != 0 {
                other.wake.ring();
            }
        }
        self.to_wake = 0;
        if self.tell_at.is_none() && self.counters != Counters::default() {
            self.tell_at = Some(now + TELL_EVERY);
        }
        if self.tell_at.is_some_and(|at| at <= now) {
            self.tell_at = None;
            let dropped = self.udp.dropped();
            let before = std::mem::replace(&mut self.dropped_told, dropped);
            let behind = dropped.wrapping_sub(before) + self.sockets.newly_dropped();
            self.counters.add(Counter::DropUdpBehind, behind.into());
            if let Some(counted) = self.counters.take()
                && let Err(TrySendError::Full(Report::Counted(kept))) =
                    self.reports.try_send(Report::Counted(Box::new(counted)))
            {
                self.counters.merge(&kept);
                self.tell_at = Some(now + TELL_EVERY);
            }
        }
    }
}

impl Output for Shell {
    fn transmit(&mut self, hop: Hop, len: usize) -> &mut [u8] {
        let Self {
            udp,
            sockets,
            batch,
            counters,
            ..
        } = self;
        let mut sink = CountingSink {
            udp,
            sockets,
            counters,
        };
        batch.push(hop, len, &mut sink)
    }

    fn deliver(&mut self, port: PortId, frame: &[u8], offload: Offload) {
        self.moderation.note(&offload);
        let queue = self.taps.get(&port);
        if !queue.is_some_and(|queue| queue.write(frame, offload)) {
            self.counters.count(Counter::DropTap);
        }
    }

    fn report(&mut self, report: Report) -> bool {
        self.reports.try_send(report).is_ok()
    }

    fn relay(&mut self, from: PathAddr, datagram: &[u8]) -> bool {
        // A buffer is made only while fewer than the queue may hold are about.
        let mut bytes = self.to_relay.empty.try_recv().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(datagram);
        let passed = HandedOver { from, bytes };
        self.to_relay.datagrams.try_send(passed).is_ok()
    }

    fn hand_over(&mut self, worker: u8, from: PathAddr, datagram: &[u8]) {
        let other = &self.others[usize::from(worker)];
        let Ok(mut bytes) = other.empty.try_recv() else {
            self.counters.count(Counter::DropHandOver);
            return;
        };
        bytes.clear();
        bytes.extend_from_slice(datagram);
        // There are no more buffers than places.
        let _ = other.hand_over.try_send(HandedOver { from, bytes });
        self.to_wake |= 1 << worker;
    }
}

/// Sends runs and counts those that do not leave.
struct CountingSink<'a> {
    udp: &'a UdpPort,
    sockets: &'a Sockets,
    counters: &'a mut Counters,
}

impl RunSink for CountingSink<'_> {
    fn send_run(&mut self, hop: Hop, bytes: &[u8], segment: usize) {
        let Some(socket) = self.sockets.of(hop, self.udp) else {
            let lost = bytes.len().div_ceil(segment.max(1)) as u64;
            return self.counters.add(Counter::DropUdpFailed, lost); // just closed
        };
        if let Err((lost, why)) = socket.send_run(hop.to, bytes, segment) {
            let counter = match why {
                Unsent::Full => Counter::DropUdpFull,
                Unsent::TooLarge => Counter::DropUdpTooLarge,
                Unsent::Failed => Counter::DropUdpFailed,
            };
            self.counters.add(counter, lost);
        }
    }
}
