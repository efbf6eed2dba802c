//! One member as the engine knows it: its sessions, its path agent, the handshake in flight, frames that wait.
//! When to shake hands is decided here; what the messages hold, in [`crate::session`]; which path, in [`crate::path`].

use super::{
    context::{Context, PeerKey},
    message::{DownReason, Event, PeerStats},
    network::Local,
};
use crate::{
    path::{ControlMessage, PathAgent, PathEvent, PathTransmit},
    session::{
        Cookie, Established, Initiator, LastTimestamp, REKEY_JITTER_MAX, RecvLane, Rekey, SendLane,
        SessionSlot,
    },
    snapshot::Way,
    split::{self, Fit},
    stats::Counter,
    wire::{
        datagram::{DATA_HEADER_BYTES, TAG_BYTES},
        extension,
    },
    worker::Traffic,
};
use overlay_types::{Candidate, DataKeys, PathAddr};
use rand::Rng;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// Frames that wait for a session: a guest's first questions, not its bulk.
pub(super) const FRAMES_WAITING_MAX: usize = 32;
/// Pings that wait for their answer.
const PINGS_MAX: usize = 64;
/// How long data may go unanswered before the peer is asked for a new session: it may have restarted. Both sides answer
/// within a second (by data or by a keepalive), and a datagram or two may be lost.
const DEAD_AFTER: Duration = Duration::from_secs(3);
/// The first wait for a response; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// A member that is off costs this little; it calls us itself when it comes back.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Attempts after which an unanswering peer's session is given up and, if nobody keeps it up always, the handshake too: 15 s.
const ATTEMPTS_MAX: u32 = 5;
/// No more than one handshake a second is started on account of what others send us.
const HANDSHAKE_PAUSE: Duration = Duration::from_secs(1);
/// The member with the higher id waits this long for the other's first message, so that two seldom cross.
pub(super) const YIELD: Duration = Duration::from_millis(150);
/// How long after its goodbye a peer is called again.
const BYE_PAUSE: Duration = Duration::from_secs(2);
/// A peer heard of this recently needs no new session because of a datagram that anybody may have sent in its name.
const WELL_FOR: Duration = Duration::from_secs(2);
/// A session counts as in use this long after data was sent or received over it.
const IN_USE: Duration = Duration::from_secs(120);

/// One member.
pub(super) struct Peer {
    pub(super) key: PeerKey,
    pub(super) keys: DataKeys,
    pub(super) candidates: Vec<Candidate>,
    pub(super) eager: bool,
    pub(super) agent: PathAgent,
    handshake: Handshake,
    /// Frames leave over this one.
    pub(super) current: Option<Live>,
    /// Answered by us, and not yet used by the peer: nothing is sent over it before.
    pub(super) next: Option<Live>,
    /// The one before, for datagrams still under way.
    pub(super) previous: Option<Live>,
    timestamp: LastTimestamp,
    cookie: Option<(Cookie, Instant)>,
    waiting: VecDeque<Vec<u8>>,
    pings: VecDeque<(u64, Instant)>,
    totals: Traffic,
    handshake_sent_at: Option<Instant>,
    /// Since when data that we sent is unanswered.
    unanswered_since: Option<Instant>,
    /// Whether the peer may be gone: the next session starts from nothing.
    is_suspect: bool,
    data_at: Option<Instant>,
    heard_at: Option<Instant>,
    /// What workers know of [`Self::way`].
    way_told: Option<Way>,
    wants_renewal: bool,
    deadline: Option<Instant>,
}

/// ```text
/// Idle ──wanted──▶ Due ──at──▶ Sent ──response──▶ Idle
///                   ▲            │──no response──▶ Sent (again, later and later)
///                   └─ Bye ──────┴──gave up──▶ Idle
/// ```
enum Handshake {
    Idle,
    Due {
        at: Instant,
        attempt: u32,
    },
    Sent {
        initiator: Box<Initiator>,
        attempt: u32,
        retry_at: Instant,
    },
}

/// A session with its control lane, which is the engine's own.
pub(super) struct Live {
    pub(super) slot: SessionSlot,
    pub(super) established: Arc<Established>,
    pub(super) established_at: Instant,
    send: SendLane,
    pub(super) recv: RecvLane,
    rekey_at: Instant,
    expires_at: Instant,
}

impl Live {
    fn new(established: Established, jitter: Duration, now: Instant) -> Self {
        let times = Rekey::new(now, established.is_initiator);
        Self {
            slot: established.local_index,
            send: established.send_lane(0),
            recv: established.recv_lane(0),
            established: Arc::new(established),
            established_at: now,
            rekey_at: times.due_at() - jitter,
            expires_at: times.expires_at(),
        }
    }
}

impl Peer {
    pub(super) fn new(key: PeerKey, keys: DataKeys, agent: PathAgent) -> Self {
        Self {
            key,
            keys,
            candidates: Vec::new(),
            eager: false,
            agent,
            handshake: Handshake::Idle,
            current: None,
            next: None,
            previous: None,
            timestamp: LastTimestamp::default(),
            cookie: None,
            waiting: VecDeque::new(),
            pings: VecDeque::new(),
            totals: Traffic::default(),
            handshake_sent_at: None,
            unanswered_since: None,
            is_suspect: false,
            data_at: None,
            heard_at: None,
            way_told: None,
            wants_renewal: false,
            deadline: None,
        }
    }

    /// Every session whose datagrams are opened.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Live> {
        [&self.current, &self.next, &self.previous]
            .into_iter()
            .flatten()
    }

    /// The session of a slot.
    pub(super) fn session_mut(&mut self, slot: SessionSlot) -> Option<&mut Live> {
        [&mut self.current, &mut self.next, &mut self.previous]
            .into_iter()
            .flatten()
            .find(|live| live.slot == slot)
    }

    /// Asks for a handshake at `at`, or earlier if one is due earlier.
    pub(super) fn want_handshake(&mut self, at: Instant) {
        match &mut self.handshake {
            Handshake::Idle => self.handshake = Handshake::Due { at, attempt: 0 },
            Handshake::Due { at: due, .. } => *due = at.min(*due),
            Handshake::Sent {
                attempt, retry_at, ..
            } if *attempt >= ATTEMPTS_MAX && at < *retry_at => {
                (*attempt, *retry_at) = (0, at); // it is worth trying afresh
            }
            Handshake::Sent { .. } => {}
        }
    }

    /// Somebody at this peer's address does not know our session, or the other way round: shake hands, but seldom.
    pub(super) fn want_handshake_seldom(&mut self, now: Instant) {
        let earliest = self
            .handshake_sent_at
            .map_or(now, |at| at + HANDSHAKE_PAUSE);
        self.want_handshake(now.max(earliest));
    }

    /// Sends a frame over the control lane, or keeps it until there is a session.
    pub(super) fn send_or_wait(&mut self, frame: Vec<u8>, ctx: &mut Context, now: Instant) {
        if self.way().is_some() {
            self.send_frame(&frame, ctx, now);
            return;
        }
        if self.waiting.len() == FRAMES_WAITING_MAX {
            self.waiting.pop_front(); // the newest frame is the one the guest still wants answered
            ctx.count(Counter::DropWaiting);
        }
        self.waiting.push_back(frame);
        self.want_handshake_seldom(now);
    }

    fn send_frame(&mut self, frame: &[u8], ctx: &mut Context, now: Instant) {
        let Some(view) = self.agent.current() else {
            return ctx.count(Counter::DropNoSession);
        };
        ctx.count(Counter::FramesToPeers);
        self.note_data_sent(now);
        match split::fit(frame.len(), view.mtu) {
            Fit::Whole => {
                if ctx.buf.fill(frame) {
                    split::whole(&mut ctx.buf);
                    self.seal_and_send(view.addr, ctx);
                }
            }
            Fit::Halves => {
                ctx.count(Counter::FramesSplit);
                let id = ctx.rng.random();
                for which in 0..2 {
                    split::half(frame, id, which, &mut ctx.buf);
                    self.seal_and_send(view.addr, ctx);
                }
            }
            Fit::TooLarge => ctx.count(Counter::DropOversize),
        }
    }

    /// Sends a control message; an empty one is a keepalive.
    fn send_control(
        &mut self,
        to: PathAddr,
        message: Option<&ControlMessage>,
        pad_to: Option<u16>,
        ctx: &mut Context,
    ) {
        let mut plaintext = vec![extension::CONTROL];
        if let Some(message) = message {
            plaintext.extend(message.encode());
        }
        if let Some(pad_to) = pad_to {
            let wanted = usize::from(pad_to).saturating_sub(DATA_HEADER_BYTES + TAG_BYTES);
            plaintext.resize(wanted.max(plaintext.len()), 0);
        }
        if ctx.buf.fill(&plaintext) {
            self.seal_and_send(to, ctx);
        }
    }

    /// Seals what `ctx.buf` holds on the control lane and queues it.
    fn seal_and_send(&mut self, to: PathAddr, ctx: &mut Context) {
        let Some(live) = &mut self.current else {
            return ctx.count(Counter::DropNoSession);
        };
        if live.send.seal(&mut ctx.buf).is_err() {
            return ctx.count(Counter::DropExhausted);
        }
        self.totals.tx_bytes += ctx.buf.len() as u64;
        self.totals.tx_datagrams += 1;
        ctx.send_buf(to);
    }

    /// One echo; the answer comes as an event.
    pub(super) fn ping(&mut self, id: u64, ctx: &mut Context, now: Instant) {
        if self.pings.len() == PINGS_MAX {
            self.pings.pop_front();
        }
        self.pings.push_back((id, now));
        match self.agent.current() {
            Some(view) if self.current.is_some() => {
                self.send_control(view.addr, Some(&ControlMessage::Ping { id }), None, ctx);
                self.note_data_sent(now);
            }
            _ => self.want_handshake_seldom(now),
        }
    }

    /// A control message of this peer was opened; `None` is a keepalive, or of a kind that we do not know.
    pub(super) fn handle_control(
        &mut self,
        from: PathAddr,
        message: Option<ControlMessage>,
        ctx: &mut Context,
        now: Instant,
    ) {
        match message {
            None => {}
            Some(ControlMessage::Ping { id }) => {
                self.send_control(from, Some(&ControlMessage::PingReply { id }), None, ctx)
            }
            Some(ControlMessage::PingReply { id }) => {
                let Some(at) = self.pings.iter().position(|&(asked, _)| asked == id) else {
                    return;
                };
                let Some((_, sent_at)) = self.pings.remove(at) else {
                    return;
                };
                if let Some(view) = self.agent.current() {
                    let rtt = now.saturating_duration_since(sent_at);
                    ctx.tell(Event::Pong {
                        id,
                        rtt,
                        path: view.addr,
                        mtu: view.mtu,
                    });
                }
            }
            Some(ControlMessage::Bye) => {
                self.end_sessions(DownReason::Bye, ctx, now);
                if self.eager {
                    self.want_handshake(now + BYE_PAUSE);
                }
            }
            Some(message) => self.agent.handle_control(from, message, now),
        }
    }

    /// An authenticated datagram of this session came.
    pub(super) fn heard(
        &mut self,
        slot: SessionSlot,
        from: PathAddr,
        ctx: &mut Context,
        now: Instant,
    ) {
        self.unanswered_since = None;
        if self.next.as_ref().is_some_and(|next| next.slot == slot)
            && let Some(next) = self.next.take()
        {
            self.begin(next, from, ctx, now);
        }
        self.is_suspect = false;
        self.heard_at = Some(now);
        self.agent.handle_received(from, now);
    }

    /// A datagram of the control lane was opened.
    pub(super) fn count_received(&mut self, bytes: usize) {
        self.totals.rx_bytes += bytes as u64;
        self.totals.rx_datagrams += 1;
    }

    /// A frame came over the control lane; if nothing else does, a keepalive says that we live.
    pub(super) fn note_data_received(&mut self, ctx: &mut Context, now: Instant) {
        self.data_at = Some(now);
        if let Some(view) = self.agent.current() {
            self.send_control(view.addr, None, None, ctx);
        }
    }

    /// Whether the peer may be what sends from this address.
    pub(super) fn may_be_at(&self, from: PathAddr) -> bool {
        self.agent.handshake_targets().contains(&from)
    }

    /// Whether its session works: it was heard of just now.
    pub(super) fn is_well(&self, now: Instant) -> bool {
        self.current.is_some()
            && self
                .heard_at
                .is_some_and(|at| now.saturating_duration_since(at) < WELL_FOR)
    }

    /// What a worker's lane passed.
    pub(super) fn handle_traffic(&mut self, traffic: Traffic, ctx: &mut Context, now: Instant) {
        self.totals.tx_bytes += traffic.tx_bytes;
        self.totals.rx_bytes += traffic.rx_bytes;
        self.totals.tx_datagrams += traffic.tx_datagrams;
        self.totals.rx_datagrams += traffic.rx_datagrams;
        self.wants_renewal |= traffic.wants_renewal;
        self.data_at = Some(now);
        if traffic.rx_datagrams > 0 {
            self.unanswered_since = None;
            if traffic.tx_datagrams == 0
                && let Some(view) = self.agent.current()
            {
                self.send_control(view.addr, None, None, ctx); // so that a one-way sender knows that we live
            }
        } else {
            self.unanswered_since.get_or_insert(now);
        }
        if traffic.tx_datagrams > 0 {
            self.agent.note_traffic(now);
        }
    }

    fn note_data_sent(&mut self, now: Instant) {
        self.data_at = Some(now);
        self.unanswered_since.get_or_insert(now);
        self.agent.note_traffic(now);
    }

    /// Whether this initiation loses against ours, which crosses it: the lower id's goes first.
    pub(super) fn outranks(&self, local: &Local) -> bool {
        matches!(self.handshake, Handshake::Sent { attempt: 0, .. }) && local.me < self.key.1
    }

    /// Whether an initiation is newer than the last one; it is the last one from then on.
    pub(super) fn accept_timestamp(&mut self, timestamp: u64) -> bool {
        self.timestamp.accept(timestamp)
    }

    /// We answered an initiation; the peer shows by the first datagram that it got the answer.
    pub(super) fn handle_responded(
        &mut self,
        established: Established,
        ctx: &mut Context,
        now: Instant,
    ) {
        self.stop_handshake(ctx);
        release(self.next.take(), ctx);
        self.next = Some(Live::new(established, Duration::ZERO, now));
        ctx.count(Counter::Handshakes);
        ctx.is_dirty = true;
    }

    /// A response to the handshake in flight.
    pub(super) fn handle_response(
        &mut self,
        from: PathAddr,
        message: &[u8],
        ctx: &mut Context,
        now: Instant,
    ) {
        let Handshake::Sent {
            initiator,
            attempt,
            retry_at,
        } = std::mem::replace(&mut self.handshake, Handshake::Idle)
        else {
            return ctx.count(Counter::DropHandshake);
        };
        match initiator.handle_response(message) {
            Ok(established) => {
                ctx.count(Counter::Handshakes);
                let jitter = ctx.rng.random_range(Duration::ZERO..=REKEY_JITTER_MAX);
                self.begin(Live::new(established, jitter, now), from, ctx, now);
                self.agent.handle_received(from, now);
                self.send_control(from, None, None, ctx); // tells the responder that it may send
            }
            Err((initiator, _)) => {
                self.handshake = Handshake::Sent {
                    initiator: Box::new(initiator),
                    attempt,
                    retry_at,
                };
                ctx.count(Counter::DropHandshake);
            }
        }
    }

    /// The responder is under load and wants its cookie back with the next attempt, which is made at once.
    pub(super) fn handle_cookie_reply(&mut self, message: &[u8], ctx: &mut Context, now: Instant) {
        let Handshake::Sent {
            initiator,
            retry_at,
            ..
        } = &mut self.handshake
        else {
            return ctx.count(Counter::DropHandshake);
        };
        match initiator.handle_cookie_reply(message) {
            Ok(cookie) => {
                self.cookie = Some((cookie, now));
                *retry_at = now;
            }
            Err(_) => ctx.count(Counter::DropHandshake),
        }
    }

    /// Frames leave over `live` from now on.
    fn begin(&mut self, live: Live, from: PathAddr, ctx: &mut Context, now: Instant) {
        self.stop_handshake(ctx);
        release(self.next.take(), ctx);
        let was_up = self.current.is_some();
        release(
            std::mem::replace(&mut self.previous, self.current.replace(live)),
            ctx,
        );
        (self.wants_renewal, self.unanswered_since) = (false, None);
        ctx.is_dirty = true;
        self.agent.handle_session_up(from, now);
        self.is_suspect = false;
        if !was_up {
            let (network, peer) = self.key;
            ctx.tell(Event::SessionUp { network, peer });
        }
        for id in self.pings.iter().map(|&(id, _)| id).collect::<Vec<_>>() {
            self.send_control(from, Some(&ControlMessage::Ping { id }), None, ctx);
        }
    }

    fn flush_waiting(&mut self, ctx: &mut Context, now: Instant) {
        if self.way().is_none() {
            return;
        }
        for frame in std::mem::take(&mut self.waiting) {
            ctx.count(Counter::FramesWaited);
            self.send_frame(&frame, ctx, now);
        }
    }

    /// How frames get there.
    pub(super) fn way(&self) -> Option<Way> {
        let (live, path) = self.current.as_ref().zip(self.agent.current())?;
        Some(Way {
            slot: live.slot,
            path: path.addr,
            mtu: path.mtu,
        })
    }

    fn stop_handshake(&mut self, ctx: &mut Context) {
        if let Handshake::Sent { initiator, .. } =
            std::mem::replace(&mut self.handshake, Handshake::Idle)
            && !self.sessions().any(|live| live.slot == initiator.slot())
        {
            ctx.slots.remove(initiator.slot());
        }
    }

    /// Ends all sessions.
    pub(super) fn end_sessions(&mut self, reason: DownReason, ctx: &mut Context, now: Instant) {
        let was_up = self.current.is_some();
        for live in [self.current.take(), self.next.take(), self.previous.take()] {
            release(live, ctx);
        }
        self.unanswered_since = None;
        self.wants_renewal = false;
        ctx.is_dirty = true;
        self.agent.handle_session_down(now);
        if was_up {
            let (network, peer) = self.key;
            ctx.tell(Event::SessionDown {
                network,
                peer,
                reason,
            });
        }
    }

    /// Says goodbye and leaves nothing behind.
    pub(super) fn remove(&mut self, ctx: &mut Context, now: Instant) {
        if let Some(view) = self.agent.current() {
            self.send_control(view.addr, Some(&ControlMessage::Bye), None, ctx);
        }
        self.stop_handshake(ctx);
        self.end_sessions(DownReason::Removed, ctx, now);
        if let Some(at) = self.deadline.take() {
            ctx.timers.remove(&(at, self.key));
        }
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, local: &Local, ctx: &mut Context, now: Instant) {
        self.agent.handle_timeout(now);
        self.expire(ctx, now);
        if self
            .unanswered_since
            .is_some_and(|since| now >= since + DEAD_AFTER)
        {
            self.unanswered_since = None; // data sent from now on starts the wait again
            self.is_suspect = true;
            self.want_handshake_seldom(now);
        }
        if self.is_renewal_due(now) {
            self.want_handshake_seldom(now);
        }
        let attempt = match self.handshake {
            Handshake::Due { at, attempt } if now >= at => attempt,
            Handshake::Sent {
                attempt, retry_at, ..
            } if now >= retry_at => attempt + 1,
            _ => return,
        };
        if attempt >= ATTEMPTS_MAX {
            self.give_up(ctx, now);
        }
        if attempt < ATTEMPTS_MAX || self.eager {
            self.initiate(local, attempt, ctx, now);
        }
    }

    fn expire(&mut self, ctx: &mut Context, now: Instant) {
        for live in [&mut self.next, &mut self.previous] {
            if live.as_ref().is_some_and(|live| now >= live.expires_at) {
                release(live.take(), ctx);
                ctx.is_dirty = true;
            }
        }
        if self
            .current
            .as_ref()
            .is_some_and(|live| now >= live.expires_at)
        {
            let reason = if self.is_wanted(now) {
                DownReason::Silent
            } else {
                DownReason::Idle
            };
            self.end_sessions(reason, ctx, now);
            if self.eager {
                self.want_handshake_seldom(now);
            }
        }
    }

    fn is_wanted(&self, now: Instant) -> bool {
        self.eager
            || self
                .data_at
                .is_some_and(|at| now.saturating_duration_since(at) < IN_USE)
    }

    fn is_renewal_due(&self, now: Instant) -> bool {
        let is_idle = matches!(self.handshake, Handshake::Idle);
        let current = self
            .current
            .as_ref()
            .filter(|_| is_idle && self.next.is_none());
        current
            .is_some_and(|live| self.wants_renewal || (now >= live.rekey_at && self.is_wanted(now)))
    }

    /// Nobody answers.
    fn give_up(&mut self, ctx: &mut Context, now: Instant) {
        ctx.counters
            .add(Counter::DropWaiting, self.waiting.len() as u64);
        self.waiting.clear();
        self.pings.clear();
        self.stop_handshake(ctx);
        if self.is_suspect {
            self.end_sessions(DownReason::Silent, ctx, now);
        }
    }

    fn initiate(&mut self, local: &Local, attempt: u32, ctx: &mut Context, now: Instant) {
        self.stop_handshake(ctx);
        let mut targets = self.agent.handshake_targets();
        let is_renewal = self.current.is_some() && !self.is_suspect;
        if is_renewal && attempt == 0 {
            targets.truncate(1); // the path in use comes first
        }
        let wait = RETRY_FIRST
            .saturating_mul(1 << attempt.min(10))
            .min(RETRY_MAX);
        let retry_at = now + wait + ctx.rng.random_range(Duration::ZERO..=wait / 4);
        let Ok(slot) = ctx.slots.insert(self.key, &mut ctx.rng) else {
            self.handshake = Handshake::Due {
                at: retry_at,
                attempt,
            };
            return;
        };
        let cookie = self
            .cookie
            .as_ref()
            .filter(|(_, at)| now.saturating_duration_since(*at) < Cookie::LIFE);
        let (unix_ns, aes) = (ctx.unix_ns(now), ctx.aes);
        let cookie = cookie.map(|(cookie, _)| cookie);
        let started = Initiator::start(
            &local.keys,
            &self.keys,
            local.id,
            &local.psk,
            slot,
            unix_ns,
            cookie,
            aes,
            &mut ctx.rng,
        );
        let Ok((initiator, message)) = started else {
            ctx.slots.remove(slot);
            self.handshake = Handshake::Due {
                at: now + RETRY_MAX,
                attempt,
            }; // its keys are no keys until it says better ones
            return;
        };
        for to in targets {
            ctx.count(Counter::HandshakesSent);
            ctx.send(to, &message);
        }
        self.handshake_sent_at = Some(now);
        self.handshake = Handshake::Sent {
            initiator: Box::new(initiator),
            attempt,
            retry_at,
        };
    }

    /// Sends what the path agent wants sent, passes on what it says, and sets the timer anew. To be called after every change.
    pub(super) fn settle(&mut self, ctx: &mut Context, now: Instant) -> Settled {
        let mut settled = Settled::default();
        let (network, peer) = self.key;
        loop {
            if let Some(PathTransmit { to, msg, pad_to }) = self.agent.poll_transmit() {
                if self.current.is_some() {
                    self.send_control(to, Some(&msg), pad_to, ctx);
                }
            } else if let Some(event) = self.agent.poll_event() {
                match event {
                    PathEvent::Changed(view) => ctx.tell(Event::PathChanged {
                        network,
                        peer,
                        path: view.addr,
                        rtt: view.rtt,
                        mtu: view.mtu,
                    }),
                    PathEvent::Distressed => settled.is_distressed = true,
                    PathEvent::Lost => {
                        (settled.is_distressed, self.is_suspect) = (true, true);
                        self.want_handshake_seldom(now);
                    }
                    PathEvent::Observed(addr) => settled.observed = Some(addr),
                }
            } else {
                break;
            }
        }
        self.flush_waiting(ctx, now);
        let way = self.way();
        if way != self.way_told {
            self.way_told = way;
            ctx.is_dirty = true;
        }
        self.set_timer(ctx, now);
        settled
    }

    fn set_timer(&mut self, ctx: &mut Context, now: Instant) {
        let handshake_at = match self.handshake {
            Handshake::Idle => None,
            Handshake::Due { at, .. } => Some(at),
            Handshake::Sent { retry_at, .. } => Some(retry_at),
        };
        let is_idle = matches!(self.handshake, Handshake::Idle);
        let renewal = self
            .current
            .as_ref()
            .filter(|_| is_idle && self.next.is_none());
        // Where nobody wants the session any longer, its next deadline is its end.
        let renew_at = renewal.filter(|live| self.is_wanted(now.max(live.rekey_at)));
        let deadline = [
            self.agent.poll_timeout().map(|(at, _)| at),
            handshake_at,
            self.unanswered_since.map(|since| since + DEAD_AFTER),
            renew_at.map(|live| live.rekey_at),
            self.current.as_ref().map(|live| live.expires_at),
            self.next.as_ref().map(|live| live.expires_at),
            self.previous.as_ref().map(|live| live.expires_at),
        ]
        .into_iter()
        .flatten()
        .min();
        if deadline != self.deadline {
            if let Some(was) = std::mem::replace(&mut self.deadline, deadline) {
                ctx.timers.remove(&(was, self.key));
            }
            if let Some(at) = deadline {
                ctx.timers.insert((at, self.key));
            }
        }
    }

    pub(super) fn stats(&self, now: Instant) -> PeerStats {
        let (network, peer) = self.key;
        PeerStats {
            network,
            peer,
            session: self.current.is_some(),
            path: self.agent.current().filter(|_| self.current.is_some()),
            tx_bytes: self.totals.tx_bytes,
            rx_bytes: self.totals.rx_bytes,
            tx_datagrams: self.totals.tx_datagrams,
            rx_datagrams: self.totals.rx_datagrams,
            session_age: self
                .current
                .as_ref()
                .map(|live| now.saturating_duration_since(live.established_at)),
        }
    }
}

/// What the engine should see to after a peer settled.
#[derive(Default)]
pub(super) struct Settled {
    /// The network under us may have changed.
    pub(super) is_distressed: bool,
    /// Where the peer sees us.
    pub(super) observed: Option<std::net::SocketAddr>,
}

fn release(live: Option<Live>, ctx: &mut Context) {
    if let Some(live) = live {
        ctx.slots.remove(live.slot);
    }
}
