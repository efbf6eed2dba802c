//! What all networks and peers of an engine share: randomness, slots, the clock, and the queues to the outside.

use super::{
    challenges::Challenges,
    flows::Flows,
    message::{Event, Transmit},
    sockets::Sockets,
};
use crate::{
    packet_buf::PacketBuf,
    relay::RelayServer,
    session::{HandshakeGate, SlotTable},
    stats::{Counter, Counters},
    wire::datagram::{RELAY_HEADER_BYTES, WRAPPERS_MAX, wrapper_bytes, write_wrappers},
};
use overlay_types::{NetworkId, PathAddr, PeerId, PortId};
use rand_chacha::ChaCha20Rng;
use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

/// A peer in a network.
pub(super) type PeerKey = (NetworkId, PeerId);

/// Sessions of all networks together, those being agreed on included.
const SESSIONS_MAX: usize = 16_384;
/// Datagrams, frames and events that wait to be fetched. Shells fetch after every call, so only a stuck one meets these.
const QUEUE_MAX: usize = 8192;

/// What of a snapshot is out of date.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(super) enum Redraw {
    #[default]
    Nothing,
    /// Sessions, ways and clients of the relay. Networks, ports, peers and stations are where they were.
    Ways,
    Whole,
}

pub(super) struct Context {
    pub(super) rng: ChaCha20Rng,
    /// Whose a session slot is.
    pub(super) slots: SlotTable<PeerKey>,
    pub(super) gate: HandshakeGate,
    pub(super) challenges: Challenges,
    /// Whether this machine has AES instructions.
    pub(super) aes: bool,
    pub(super) counters: Counters,
    /// How much of the snapshot workers need anew.
    redraw: Redraw,
    /// When which peer wants to be looked at.
    pub(super) timers: BTreeSet<(Instant, PeerKey)>,
    /// What this node relays for other members, if it does.
    pub(super) relay: Option<RelayServer>,
    /// Sockets beside the data port's.
    pub(super) sockets: Sockets,
    pub(super) flows: Flows,
    pub(super) transmits: VecDeque<Transmit>,
    pub(super) frames: VecDeque<(PortId, Vec<u8>)>,
    pub(super) events: VecDeque<Event>,
    /// For sealing on the control lane.
    pub(super) buf: PacketBuf,
    started_at: Instant,
    unix_at_start: Duration,
}

impl Context {
    pub(super) fn new(mut rng: ChaCha20Rng, unix_at_start: Duration, now: Instant) -> Self {
        Self {
            gate: HandshakeGate::new(&mut rng, now),
            rng,
            slots: SlotTable::new(SESSIONS_MAX),
            challenges: Challenges::default(),
            aes: has_aes(),
            counters: Counters::default(),
            redraw: Redraw::Whole,
            timers: BTreeSet::new(),
            relay: None,
            sockets: Sockets::default(),
            flows: Flows::default(),
            transmits: VecDeque::new(),
            frames: VecDeque::new(),
            events: VecDeque::new(),
            buf: PacketBuf::new(),
            started_at: now,
            unix_at_start,
        }
    }

    /// Nanoseconds since 1970, as far as the node knows.
    pub(super) fn unix_ns(&self, now: Instant) -> u64 {
        let unix = self.unix_at_start + now.saturating_duration_since(self.started_at);
        u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Workers need a newer snapshot, of which so much is new.
    pub(super) fn redraw(&mut self, what: Redraw) {
        self.redraw = self.redraw.max(what);
    }

    /// What to draw anew; nothing is out of date then.
    pub(super) fn take_redraw(&mut self) -> Redraw {
        std::mem::take(&mut self.redraw)
    }

    pub(super) fn count(&mut self, counter: Counter) {
        self.counters.count(counter);
    }

    /// Queues a datagram, wrapped if it goes to a relay.
    pub(super) fn send(&mut self, to: PathAddr, datagram: &[u8]) {
        if self.buf.fill(datagram) {
            self.send_buf(to);
        }
    }

    /// Queues the datagram in `buf`, wrapped if it goes to a relay.
    pub(super) fn send_buf(&mut self, to: PathAddr) {
        let mut wrappers = [0; WRAPPERS_MAX * RELAY_HEADER_BYTES];
        let wrappers = &mut wrappers[..wrapper_bytes(to)];
        write_wrappers(to, wrappers);
        self.buf.push_front(wrappers);
        self.queue(to, self.buf.payload().to_vec());
    }

    /// Queues a whole datagram, wrapped if it goes to a relay.
    pub(super) fn pass_on(&mut self, to: PathAddr, datagram: Vec<u8>) {
        if to.relays() == 0 {
            return self.queue(to, datagram);
        }
        self.send(to, &datagram);
    }

    fn queue(&mut self, to: PathAddr, bytes: Vec<u8>) {
        if self.transmits.len() < QUEUE_MAX {
            self.transmits.push_back(Transmit {
                hop: to.into(),
                bytes,
            });
        } else {
            self.count(Counter::DropEngineQueue);
        }
    }

    /// Queues a frame for a local port.
    pub(super) fn deliver(&mut self, port: PortId, frame: Vec<u8>) {
        if self.frames.len() < QUEUE_MAX {
            self.count(Counter::FramesToPorts);
            self.frames.push_back((port, frame));
        } else {
            self.count(Counter::DropEngineQueue);
        }
    }

    /// Queues an event.
    pub(super) fn tell(&mut self, event: Event) {
        if self.events.len() < QUEUE_MAX {
            self.events.push_back(event);
        } else {
            self.count(Counter::DropEngineQueue);
        }
    }
}

/// AES without its instructions is slow and leaks time; ChaCha20 is used then.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}
