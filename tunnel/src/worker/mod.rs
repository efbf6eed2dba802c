//! The fast half of the data plane: one lane of every session; frames become sealed datagrams, and back.
//! Whatever needs thought (handshakes, control messages, addresses nobody bound) is reported to the engine.

mod lane;
mod limits;
mod receive;
mod report;
mod send;

pub(crate) use receive::clamp_mss;
pub use report::{Hop, Output, Report, Traffic};

use crate::{
    offload::{self, Joiner, Offload},
    session::{OpenError, SessionSlot},
    snapshot::{NetworkView, Place, Snapshot},
    split::Rejoiner,
    stats::{Counter, Counters},
    switch::{
        self, Judged, Source, Verdict,
        flood::{self, Budgets},
    },
    wire::datagram::{DatagramKind, LANE_MAX, RELAY_HEADER_BYTES, classify, wrappers},
};
use lane::Lane;
use limits::{Limits, StationsTold, TELL_EVERY};
use overlay_types::{Location, PathAddr, PortId};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Instant};

/// One worker's state.
pub struct Worker {
    snapshot: Arc<Snapshot>,
    state: State,
}

struct State {
    index: u8,
    workers: u8,
    lanes: BTreeMap<SessionSlot, Lane>,
    budgets: Budgets,
    stations_told: StationsTold,
    limits: Limits,
    /// For a datagram of a super-frame that goes in halves.
    spare: Vec<u8>,
    rejoiner: Rejoiner,
    joiner: Joiner,
    /// Network and peer of what is being joined.
    joining: (u16, u16),
    /// Halves that never met, as far as they were counted.
    unjoined_told: u64,
    next_split_id: u32,
    next_super_frame_id: u16,
    counters: Counters,
    /// Sessions with traffic that was not told yet; never longer than there are lanes.
    busy: Vec<SessionSlot>,
    tell_at: Option<Instant>,
}

impl Worker {
    /// Worker number `index` of `workers`; it owns lane `index + 1`.
    ///
    /// # Panics
    /// When there are more workers than lanes, or `index` is not one of them.
    pub fn new(index: u8, workers: u8, now: Instant) -> Self {
        assert!(
            index < workers && workers <= LANE_MAX,
            "each worker has a lane of its own"
        );
        let state = State {
            index,
            workers,
            lanes: BTreeMap::new(),
            budgets: Budgets::default(),
            stations_told: StationsTold::default(),
            limits: Limits::new(now),
            spare: Vec::new(),
            rejoiner: Rejoiner::new(),
            joiner: Joiner::new(),
            joining: (0, 0),
            unjoined_told: 0,
            next_split_id: 0,
            next_super_frame_id: 0,
            counters: Counters::default(),
            busy: Vec::new(),
            tell_at: None,
        };
        Self {
            snapshot: Arc::default(),
            state,
        }
    }

    /// How many datagrams of one flow may be joined for the ports, whose kernel must take super-frames of UDP unless that is
    /// none.
    pub fn set_joined_datagrams_max(&mut self, max: usize) {
        self.state.joiner.set_datagrams_max(max);
    }

    /// A newer picture of the world. Sessions in both keep their counters.
    pub fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.state.follow(&snapshot);
        self.snapshot = snapshot;
    }

    /// A frame came from a local port, with this to be done to it.
    pub fn handle_frame(
        &mut self,
        port: PortId,
        frame: &mut [u8],
        offload: Offload,
        now: Instant,
        out: &mut impl Output,
    ) {
        let Self { snapshot, state } = self;
        state.count(Counter::FramesFromPorts, now);
        match snapshot.port(port) {
            Some((network, at)) => {
                let view = &snapshot.networks[usize::from(network)];
                state.frame_from_port(view, at, frame, offload, now, out);
            }
            None => state.count(Counter::DropUnknownPort, now),
        }
    }

    /// A datagram came from the UDP socket.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Instant,
        out: &mut impl Output,
    ) {
        let straight = PathAddr::Direct(from);
        match classify(datagram) {
            DatagramKind::FromPlace(header) => {
                let from = PathAddr::Relayed {
                    relay: from,
                    index: header.index(),
                };
                self.handle_relayed(from, &mut datagram[RELAY_HEADER_BYTES..], now, out);
            }
            DatagramKind::Stun => self.state.pass_to_engine(straight, datagram, now, out),
            _ => self.handle_from(straight, datagram, now, out),
        }
    }

    /// One relay's wrapper is off.
    fn handle_relayed(
        &mut self,
        from: PathAddr,
        datagram: &mut [u8],
        now: Instant,
        out: &mut impl Output,
    ) {
        match (classify(datagram), from) {
            (DatagramKind::FromPlace(header), PathAddr::Relayed { relay, index }) => {
                let from = PathAddr::Chained {
                    relay,
                    via: index,
                    index: header.index(),
                };
                let inner = &mut datagram[RELAY_HEADER_BYTES..];
                if wrappers(inner) > 0 {
                    return self.state.count(Counter::DropRelayNested, now);
                }
                self.handle_unwrapped(from, inner, now, out);
            }
            _ => self.handle_from(from, datagram, now, out),
        }
    }

    /// A datagram that came straight or through one relay: what relays and their clients say to each other, or anything else.
    fn handle_from(
        &mut self,
        from: PathAddr,
        datagram: &mut [u8],
        now: Instant,
        out: &mut impl Output,
    ) {
        let Self { snapshot, state } = self;
        let clients = snapshot.relay_clients.as_deref();
        match classify(datagram) {
            DatagramKind::RelayReply => state.pass_to_engine(from, datagram, now, out),
            DatagramKind::RelayRequest if clients.is_some() => {
                if state.limits.relay_requests.take(from, now) {
                    let bytes = datagram.to_vec();
                    state.report(Report::Datagram { from, bytes }, now, out);
                } else {
                    state.count(Counter::DropRelayQueue, now);
                }
            }
            DatagramKind::ToPlace(_)
                if clients.is_some_and(|known| known.binary_search(&from).is_ok()) =>
            {
                if !out.relay(from, datagram) {
                    state.count(Counter::DropRelayQueue, now);
                }
            }
            DatagramKind::RelayRequest | DatagramKind::ToPlace(_) => {
                state.count(Counter::DropRelayStranger, now);
            }
            _ => self.handle_unwrapped(from, datagram, now, out),
        }
    }

    /// A datagram came from an extra socket: relays and their wrappers have no business there.
    pub fn handle_punched(
        &mut self,
        socket: u16,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Instant,
        out: &mut impl Output,
    ) {
        let from = PathAddr::Punched { socket, addr: from };
        match classify(datagram) {
            DatagramKind::Stun => self.state.pass_to_engine(from, datagram, now, out),
            _ => self.handle_unwrapped(from, datagram, now, out),
        }
    }

    /// A datagram without a relay's wrapper: also one of our lane that reached another worker.
    pub fn handle_unwrapped(
        &mut self,
        from: PathAddr,
        datagram: &mut [u8],
        now: Instant,
        out: &mut impl Output,
    ) {
        let Self { snapshot, state } = self;
        match classify(datagram) {
            DatagramKind::Data(header) if header.lane != 0 => {
                let owner = (header.lane - 1) % state.workers;
                if owner == state.index {
                    state.sealed(
                        snapshot,
                        header.slot(),
                        header.lane,
                        from,
                        datagram,
                        now,
                        out,
                    );
                } else {
                    out.hand_over(owner, from, datagram);
                }
            }
            DatagramKind::Data(_)
            | DatagramKind::Initiation
            | DatagramKind::Response
            | DatagramKind::CookieReply
            | DatagramKind::PathChallenge
            | DatagramKind::PathResponse => {
                state.pass_to_engine(from, datagram, now, out);
            }
            _ => state.count(Counter::DropUnknownDatagram, now),
        }
    }

    /// No more datagrams are there now: delivers what was being joined.
    pub fn end_turn(&mut self, now: Instant, out: &mut impl Output) {
        let Self { snapshot, state } = self;
        state.deliver_joined(snapshot, now, out);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Output) {
        if self.state.tell_at.is_some_and(|at| now >= at) {
            self.state.tell(out);
        }
    }

    /// When to be called again, and what for; nothing while idle.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.state
            .tell_at
            .map(|at| (at, "tell the engine what passed"))
    }
}

impl State {
    fn follow(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.lanes);
        for session in &snapshot.sessions {
            let mut lane = before
                .remove(&session.slot)
                .unwrap_or_else(|| Lane::new(session, self.index + 1));
            (lane.network, lane.peer) = (session.network, session.peer);
            self.lanes.insert(session.slot, lane);
        }
        self.busy.retain(|slot| self.lanes.contains_key(slot));
        self.busy.reserve(self.lanes.len());
        self.budgets.keep(|network, at| snapshot.has(network, at));
    }

    fn frame_from_port(
        &mut self,
        view: &NetworkView,
        port: u16,
        frame: &mut [u8],
        offload: Offload,
        now: Instant,
        out: &mut impl Output,
    ) {
        if let Some(why) = why_not_carried(view, frame, &offload) {
            return self.count(why, now);
        }
        let from = Source::Port(port);
        let (id, location) = (
            view.ports[usize::from(port)].id,
            location(view, Place::Port(port)),
        );
        let judged = switch::judge(view, from, frame);
        self.tell_what_was_seen(view, from, &judged, frame, now, out);
        match judged.verdict {
            Verdict::Drop(why) => self.count(why, now),
            Verdict::To(Place::Port(to)) => self.deliver(view, to, frame, offload, now, out),
            Verdict::To(Place::Peer(to)) => self.frame_to_peer(view, to, frame, offload, now, out),
            Verdict::To(Place::Elsewhere) => self.count(Counter::DropNoSession, now),
            Verdict::Flood => self.flood(view, from, location, frame, offload, now, out),
            Verdict::Answer(answer) => {
                self.count(Counter::AnsweredLocally, now);
                out.deliver(id, answer.frame(), Offload::NONE);
            }
            Verdict::Wanted(ip) => {
                self.count(Counter::AddressesWanted, now);
                if self.limits.wanted.take(now) {
                    let frame = offload::for_a_wire(frame, &offload);
                    self.report(
                        Report::AddressWanted {
                            network: view.id,
                            port: id,
                            ip,
                            frame,
                        },
                        now,
                        out,
                    );
                } else {
                    self.count(Counter::DropStorm, now);
                }
            }
            Verdict::Punt => {
                if self.limits.punted.take(now) {
                    self.report(
                        Report::Punted {
                            network: view.id,
                            port: id,
                            frame: offload::for_a_wire(frame, &offload),
                        },
                        now,
                        out,
                    );
                } else {
                    self.count(Counter::DropStorm, now);
                }
            }
            Verdict::FirstOfPort => {
                if self.limits.punted.take(now) {
                    let frame = offload::for_a_wire(frame, &offload);
                    self.report(
                        Report::GuestSpoke {
                            port: id,
                            mac: judged.src,
                            frame,
                        },
                        now,
                        out,
                    );
                } else {
                    self.count(Counter::DropStorm, now);
                }
            }
        }
    }

    /// Stations, copies for the node, addresses taken: what the engine hears beside where a frame goes.
    fn tell_what_was_seen(
        &mut self,
        view: &NetworkView,
        from: Source,
        judged: &Judged,
        frame: &[u8],
        now: Instant,
        out: &mut impl Output,
    ) {
        let Some(place) = from.place() else { return };
        let at = location(view, place);
        if let (Some(mac), Some(at)) = (judged.unseen.or(judged.learned), at)
            && self
                .stations_told
                .note(view.id, mac, at, judged.learned.is_some(), now)
            && self.limits.stations.take(now)
        {
            self.report(
                Report::StationSeen {
                    network: view.id,
                    mac,
                    at,
                },
                now,
                out,
            );
        }
        if let (true, Some(from)) = (judged.snoop, at)
            && self.limits.punted.take(now)
        {
            self.report(
                Report::Snooped {
                    network: view.id,
                    from,
                    frame: frame.to_vec(),
                },
                now,
                out,
            );
        }
        if let (Some(ip), Some(Location::Port(port))) = (judged.taken, at)
            && self.limits.wanted.take(now)
        {
            self.report(
                Report::AddressTaken {
                    network: view.id,
                    port,
                    mac: judged.src,
                    ip: ip.into(),
                },
                now,
                out,
            );
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "each is one fact of the frame that was judged"
    )]
    fn flood(
        &mut self,
        view: &NetworkView,
        from: Source,
        location: Option<Location>,
        frame: &mut [u8],
        offload: Offload,
        now: Instant,
        out: &mut impl Output,
    ) {
        if location.is_some_and(|at| !self.budgets.take(view.id, at, now)) {
            return self.count(Counter::DropStorm, now);
        }
        for port in flood::ports(view, from.place()) {
            self.deliver(view, port, frame, offload, now, out);
        }
        for peer in flood::peers(view, from.place()) {
            if view.peers[usize::from(peer)].way.is_some() {
                self.frame_to_peer(view, peer, frame, offload, now, out);
            }
        }
    }

    fn deliver(
        &mut self,
        view: &NetworkView,
        port: u16,
        frame: &[u8],
        offload: Offload,
        now: Instant,
        out: &mut impl Output,
    ) {
        self.count(Counter::FramesToPorts, now);
        out.deliver(view.ports[usize::from(port)].id, frame, offload);
    }

    fn pass_to_engine(
        &mut self,
        from: PathAddr,
        datagram: &[u8],
        now: Instant,
        out: &mut impl Output,
    ) {
        // Who floods one kind, or one session, keeps the others from nothing.
        let (is_within, otherwise) = match classify(datagram) {
            DatagramKind::Data(header) => {
                let is_within = match self.lanes.get_mut(&header.slot()) {
                    Some(lane) => lane.takes_control(now) && self.limits.control.take(now),
                    None => self.limits.unknown_control.take(from, now),
                };
                (is_within, Counter::DropControlLoad)
            }
            DatagramKind::Stun => (self.limits.stun.take(from, now), Counter::DropControlLoad),
            DatagramKind::RelayReply => {
                let is_within = self.limits.relay_replies.take(from, now);
                (is_within, Counter::DropControlLoad)
            }
            _ => {
                let is_within = self.limits.handshakes.take(from, now);
                (is_within, Counter::DropHandshakeLoad)
            }
        };
        if !is_within {
            return self.count(otherwise, now);
        }
        let bytes = datagram.to_vec();
        self.report(Report::Datagram { from, bytes }, now, out);
    }

    fn report(&mut self, report: Report, now: Instant, out: &mut impl Output) {
        if !out.report(report) {
            self.count(Counter::DropReportQueue, now);
        }
    }

    fn count(&mut self, counter: Counter, now: Instant) {
        self.counters.count(counter);
        self.tell_at.get_or_insert(now + TELL_EVERY);
    }

    fn tell(&mut self, out: &mut impl Output) {
        self.tell_at = None;
        for slot in self.busy.drain(..) {
            if let Some(lane) = self.lanes.get_mut(&slot) {
                lane.is_busy = false;
                let traffic = Traffic {
                    wants_renewal: lane.send.wants_renewal(),
                    ..std::mem::take(&mut lane.traffic)
                };
                if !out.report(Report::Traffic { slot, traffic }) {
                    self.counters.count(Counter::DropReportQueue);
                }
            }
        }
        let unjoined = unjoined(&self.rejoiner);
        self.counters.add(
            Counter::DropUnjoined,
            unjoined - std::mem::replace(&mut self.unjoined_told, unjoined),
        );
        if let Some(counted) = self.counters.take()
            && !out.report(Report::Counted(Box::new(counted.clone())))
        {
            self.counters.merge(&counted); // told next time
        }
    }
}

/// The counter for a frame that is not what its offload says, or larger than any station of the network takes.
fn why_not_carried(view: &NetworkView, frame: &[u8], offload: &Offload) -> Option<Counter> {
    match offload::longest_segment(frame, offload) {
        None => Some(Counter::DropMalformed),
        Some(len) => (len > view.frame_bytes_max).then_some(Counter::DropOversize),
    }
}

/// Halves that were given up.
pub(crate) const fn unjoined(rejoiner: &Rejoiner) -> u64 {
    let stats = rejoiner.stats();
    stats.dropped_late + stats.dropped_full + stats.dropped_malformed
}

/// The counter for a datagram that did not open.
pub(crate) fn why_not_opened(error: &OpenError) -> Counter {
    match error {
        OpenError::Replayed(_) => Counter::DropReplayed,
        OpenError::Malformed | OpenError::UnknownPhase(_) | OpenError::NotAuthentic => {
            Counter::DropForged
        }
    }
}

/// The name that lasts of a place that holds within one view.
pub(crate) fn location(view: &NetworkView, place: Place) -> Option<Location> {
    match place {
        Place::Port(at) => Some(Location::Port(view.ports[usize::from(at)].id)),
        Place::Peer(at) => Some(Location::Peer(view.peers[usize::from(at)].id)),
        Place::Elsewhere => None,
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests;
