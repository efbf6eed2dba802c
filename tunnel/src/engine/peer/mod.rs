//! One member as the engine knows it: its sessions, its path agent, what is heard of it, and when it counts as gone.
//! Which path it is reached by is decided in [`crate::path`].

mod handshake;
mod live;
mod send;
mod validation;

pub(super) use handshake::YIELD;
pub(super) use live::Live;

use handshake::Handshake;
use validation::Validation;

use super::{
    context::{Context, PeerKey, Redraw},
    message::{DownReason, Event, PeerStats},
    network::Local,
    relays::{Given, MemberView},
    sockets::Owner,
};
use crate::{
    path::{ControlMessage, PathAgent, PathEvent, PathTransmit, PathWish},
    relay::RelayFull,
    session::{Cookie, LastTimestamp, SessionSlot},
    snapshot,
    wire::datagram::wrapper_bytes,
    worker::Traffic,
};
use overlay_types::{Candidate, DataKeys, PathAddr, PeerId, why::Way};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How long data may go unanswered before the peer is asked for a new session: it may have restarted. Both sides answer
/// within a second (by data or by a keepalive), and a datagram or two may be lost.
const DEAD_AFTER: Duration = Duration::from_secs(3);
/// How long after its goodbye a peer is called again.
const BYE_PAUSE: Duration = Duration::from_secs(2);
/// A peer heard of this recently needs no new session because of a datagram that anybody may have sent in its name.
const WELL_FOR: Duration = Duration::from_secs(2);
/// A session counts as in use this long after data was sent or received over it.
const IN_USE: Duration = Duration::from_secs(120);

/// UDP's and IPv4's, which count where bytes received pay for bytes sent. IPv6's are longer, so that the peer has a little
/// less of it.
pub(super) const HEADERS_BYTES: usize = 28;

/// One member.
pub(super) struct Peer {
    pub(super) key: PeerKey,
    pub(super) keys: DataKeys,
    pub(super) candidates: Vec<Candidate>,
    pub(super) eager: bool,
    relays_for_us: bool,
    pub(super) agent: PathAgent,
    handshake: Handshake,
    validation: Validation,
    /// Frames leave over this one.
    pub(super) current: Option<Box<Live>>,
    /// Answered by us, and not yet used by the peer: nothing is sent over it before.
    pub(super) next: Option<Box<Live>>,
    /// The one before, for datagrams still under way.
    pub(super) previous: Option<Box<Live>>,
    timestamp: LastTimestamp,
    cookie: Option<(Cookie, Instant)>,
    waiting: VecDeque<Vec<u8>>,
    pings: VecDeque<(u64, Instant)>,
    totals: Traffic,
    handshake_sent_at: Option<Instant>,
    asked_back_at: Option<Instant>,
    /// Since when data that we sent is unanswered.
    unanswered_since: Option<Instant>,
    /// Whether the peer may be gone: the next session starts from nothing.
    is_suspect: bool,
    data_at: Option<Instant>,
    heard_at: Option<Instant>,
    /// What workers know of [`Self::way`].
    way_told: Option<snapshot::Way>,
    wants_renewal: bool,
    deadline: Option<Instant>,
    /// The answer to our question for a place at its relay, until the engine takes it.
    place_told: Option<Option<Given>>,
    /// Whether its path, its ways in or its word on relaying changed, until the engine knows.
    has_moved: bool,
    /// Whether a way to it was wanted when that was last looked at: then it may take relays that we do not have yet.
    was_sought: bool,
    is_new_session: bool,
    /// Our first call was not answered.
    is_unheard: bool,
}

impl Peer {
    pub(super) fn new(key: PeerKey, keys: DataKeys, agent: PathAgent) -> Self {
        Self {
            key,
            keys,
            candidates: Vec::new(),
            eager: false,
            relays_for_us: false,
            agent,
            handshake: Handshake::Idle,
            validation: Validation::default(),
            current: None,
            next: None,
            previous: None,
            timestamp: LastTimestamp::default(),
            cookie: None,
            waiting: VecDeque::new(),
            pings: VecDeque::new(),
            totals: Traffic::default(),
            handshake_sent_at: None,
            asked_back_at: None,
            unanswered_since: None,
            is_suspect: false,
            data_at: None,
            heard_at: None,
            way_told: None,
            wants_renewal: false,
            deadline: None,
            place_told: None,
            has_moved: false,
            was_sought: false,
            is_new_session: false,
            is_unheard: false,
        }
    }

    /// Every session whose datagrams are opened.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &Live> {
        [&self.current, &self.next, &self.previous]
            .into_iter()
            .filter_map(|live| live.as_deref())
    }

    /// The session of a slot.
    pub(super) fn session_mut(&mut self, slot: SessionSlot) -> Option<&mut Live> {
        [&mut self.current, &mut self.next, &mut self.previous]
            .into_iter()
            .filter_map(|live| live.as_deref_mut())
            .find(|live| live.slot == slot)
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
                let reply = ControlMessage::PingReply { id };
                if self.agent.afford(from, &reply, None) {
                    self.send_control(from, Some(&reply), None, ctx);
                }
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
            Some(ControlMessage::RelayAsk) => {
                let answer = match &mut ctx.relay {
                    None => ControlMessage::RelayRefused { is_full: false },
                    Some(relay) => match relay.allocate(self.key.1, now) {
                        Ok((index, key)) => ControlMessage::RelayPlace { index, key },
                        Err(RelayFull) => ControlMessage::RelayRefused { is_full: true },
                    },
                };
                if self.agent.afford(from, &answer, None) {
                    self.send_control(from, Some(&answer), None, ctx);
                }
            }
            Some(ControlMessage::RelayPlace { index, key }) => {
                self.place_told = Some(Some((index, key)));
            }
            Some(ControlMessage::RelayRefused { .. }) => self.place_told = Some(None),
            Some(ControlMessage::Bye) => {
                self.end_sessions(DownReason::Bye, ctx, now);
                if self.is_kept() {
                    self.want_handshake(now + BYE_PAUSE);
                }
            }
            Some(message) => {
                self.has_moved |= matches!(message, ControlMessage::Candidates { .. });
                self.agent.handle_control(from, message, now);
            }
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
    pub(super) fn count_received(&mut self, from: PathAddr, bytes: usize) {
        self.totals.rx_bytes += bytes as u64;
        self.totals.rx_datagrams += 1;
        self.agent
            .count_received((bytes + wrapper_bytes(from) + HEADERS_BYTES) as u64);
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
        self.agent.may_lead_to(from)
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
        let headers = HEADERS_BYTES as u64;
        self.agent
            .count_received(traffic.rx_bytes + headers * traffic.rx_datagrams);
        self.agent
            .count_sent(traffic.tx_bytes + headers * traffic.tx_datagrams);
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
        } else {
            self.agent.note_data(now);
        }
    }

    /// Frames leave over `live` from now on.
    fn begin(&mut self, live: Box<Live>, from: PathAddr, ctx: &mut Context, now: Instant) {
        self.stop_handshake(ctx);
        release(self.next.take(), ctx);
        let was_up = self.current.is_some();
        release(
            std::mem::replace(&mut self.previous, self.current.replace(live)),
            ctx,
        );
        (self.wants_renewal, self.unanswered_since) = (false, None);
        ctx.redraw(Redraw::Ways);
        let handshake = self.current.as_ref().map_or(0, |live| live.handshake_bytes);
        self.agent.count_received(handshake);
        let responded_to = self.current.as_ref().and_then(|live| live.responded_to);
        let is_proven = responded_to == Some(from);
        self.agent.handle_session_up(from, is_proven, now);
        self.is_suspect = false;
        self.is_new_session = true;
        if !was_up {
            let (network, peer) = self.key;
            ctx.tell(Event::SessionUp { network, peer });
        }
        if was_up {
            self.repeat_pings(ctx);
        }
    }

    fn repeat_pings(&mut self, ctx: &mut Context) {
        let Some(view) = self.agent.current() else {
            return;
        };
        for id in self.pings.iter().map(|&(id, _)| id).collect::<Vec<_>>() {
            self.send_control(view.addr, Some(&ControlMessage::Ping { id }), None, ctx);
        }
    }

    /// How frames get there.
    pub(super) fn way(&self) -> Option<snapshot::Way> {
        let (live, path) = self.current.as_ref().zip(self.agent.current())?;
        Some(snapshot::Way {
            slot: live.slot,
            path: path.addr,
            mtu: path.mtu,
            mtu_likely: path.mtu_likely,
        })
    }

    /// Ends all sessions.
    pub(super) fn end_sessions(&mut self, reason: DownReason, ctx: &mut Context, now: Instant) {
        let was_up = self.current.is_some();
        for live in [self.current.take(), self.next.take(), self.previous.take()] {
            release(live, ctx);
        }
        self.unanswered_since = None;
        self.wants_renewal = false;
        ctx.redraw(Redraw::Ways);
        for addr in self.agent.validated() {
            self.validation.note_proven(addr, now);
        }
        self.keep_credit();
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
        self.settle(ctx, now); // closes its sockets
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
        self.continue_handshake(local, ctx, now);
    }

    fn expire(&mut self, ctx: &mut Context, now: Instant) {
        for live in [&mut self.next, &mut self.previous] {
            if live.as_ref().is_some_and(|live| now >= live.expires_at) {
                release(live.take(), ctx);
                ctx.redraw(Redraw::Ways);
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
            if self.is_kept() {
                self.want_handshake_seldom(now);
            }
        }
    }

    /// Whether its session is kept up without traffic.
    fn is_kept(&self) -> bool {
        self.eager || self.relays_for_us
    }

    /// Says whether its session is kept up without traffic.
    pub(super) fn set_eager(&mut self, eager: bool) {
        self.eager = eager;
        self.agent.set_eager(self.is_kept());
    }

    /// Says whether we have a place at its relay, or ask for one.
    pub(super) fn set_relays_for_us(&mut self, does: bool) {
        if does != self.relays_for_us {
            self.relays_for_us = does;
            self.agent.set_eager(self.is_kept());
        }
    }

    fn is_wanted(&self, now: Instant) -> bool {
        self.is_kept()
            || self
                .data_at
                .is_some_and(|at| now.saturating_duration_since(at) < IN_USE)
    }

    /// Sends what the path agent wants sent, passes on what it says, and sets the timer anew. To be called after every change.
    pub(super) fn settle(&mut self, ctx: &mut Context, now: Instant) -> Settled {
        let (network, peer) = self.key;
        let mut settled = Settled {
            place: self.place_told.take().map(|place| (self.key, place)),
            is_distressed: std::mem::take(&mut self.is_unheard),
            ..Settled::default()
        };
        loop {
            if let Some(PathTransmit { to, msg, pad_to }) = self.agent.poll_transmit() {
                if self.current.is_some() {
                    self.send_control(to, Some(&msg), pad_to, ctx);
                }
            } else if let Some(wish) = self.agent.poll_wish() {
                match wish {
                    PathWish::Open(count) => {
                        let sockets = ctx.sockets.open(count, Owner::Peer(self.key));
                        self.agent.handle_sockets(&sockets, now);
                    }
                    PathWish::Sample(socket) => settled.samples.push(socket),
                    PathWish::Close(socket) => ctx.sockets.close(socket),
                    PathWish::Flows(count) => {
                        let may_be_made = ctx.flows.take(count, now);
                        self.agent.handle_flows(may_be_made, now);
                    }
                    PathWish::Unmade(count) => ctx.flows.give_back(count),
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
        settled.session_up = std::mem::take(&mut self.is_new_session).then_some(peer);
        settled.has_moved = std::mem::take(&mut self.has_moved);
        let is_sought = self.current.is_some() || !self.handshake.is_idle();
        settled.has_moved |= std::mem::replace(&mut self.was_sought, is_sought) != is_sought;
        self.flush_waiting(ctx, now);
        let way = self.way();
        if way != self.way_told {
            settled.has_moved |= way.map(|way| way.path) != self.way_told.map(|way| way.path);
            if self.way_told.is_none() {
                self.unplan_handshake();
                self.repeat_pings(ctx);
            }
            self.way_told = way;
            ctx.redraw(Redraw::Ways);
        }
        self.set_timer(ctx, now);
        settled
    }

    fn set_timer(&mut self, ctx: &mut Context, now: Instant) {
        let is_idle = self.handshake.is_idle();
        let renewal = self
            .current
            .as_ref()
            .filter(|_| is_idle && self.next.is_none());
        // Where nobody wants the session any longer, its next deadline is its end.
        let renew_at = renewal.filter(|live| self.is_wanted(now.max(live.rekey_at)));
        let deadline = [
            self.agent.poll_timeout().map(|(at, _)| at),
            self.handshake.due_at(),
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

    /// As far as relays are concerned.
    pub(super) fn as_relay(&self) -> MemberView {
        let path = self.agent.current().filter(|_| self.current.is_some());
        let is_sought = path.is_some() || !self.handshake.is_idle();
        let is_direct = path.is_some_and(|view| view.addr.relays() == 0);
        MemberView {
            key: self.key,
            offer: self.agent.relay_offer(),
            path: path.map(|view| (view.addr, view.rtt)),
            needs: if is_sought && !is_direct {
                self.agent.remote_relays()
            } else {
                Default::default()
            },
            through: path.and_then(|view| self.agent.relay_of(view.addr)),
        }
    }

    /// How this node sees the way there, for `farlan why`.
    pub(super) fn tell_way(&self, now: Instant) -> Way {
        let since = |at: Instant| now.saturating_duration_since(at);
        let live = self.current.as_ref();
        Way {
            session_s: live.map(|live| since(live.established_at).as_secs()),
            heard_ms: self
                .heard_at
                .map(|at| u64::try_from(since(at).as_millis()).unwrap_or(u64::MAX)),
            calls_unanswered: self.handshake.unanswered(),
            ..self.agent.tell_way(now)
        }
    }

    pub(super) fn stats(&self, now: Instant) -> PeerStats {
        let (network, peer) = self.key;
        PeerStats {
            network,
            peer,
            session: self.current.is_some(),
            path: self.agent.current().filter(|_| self.current.is_some()),
            via: self
                .agent
                .current()
                .and_then(|view| self.agent.relay_of(view.addr)),
            passage: self.agent.passage(),
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
    /// Sockets of which STUN servers are to say where they see them.
    pub(super) samples: Vec<u16>,
    /// What it answered to our question for a place at its relay.
    pub(super) place: Option<(PeerKey, Option<Given>)>,
    /// Whose session is a new one.
    pub(super) session_up: Option<PeerId>,
    /// Its path, its ways in or its word on relaying changed, or whether a way there is wanted.
    pub(super) has_moved: bool,
}

fn release(live: Option<Box<Live>>, ctx: &mut Context) {
    if let Some(live) = live {
        ctx.slots.remove(live.slot);
    }
}
