//! When to shake hands with a member, how often to try again, and what the answers change.
//! What the messages hold is [`crate::session`]'s; where they go, the path agent's.

use super::{HEADERS_BYTES, Live, Peer, release, validation::Allowed};
use crate::{
    engine::{
        context::{Context, Redraw},
        message::{DownReason, Event},
        network::Local,
    },
    session::{self, Cookie, Established, Initiator, REKEY_JITTER_MAX},
    stats::Counter,
};
use overlay_types::PathAddr;
use rand::Rng;
use std::time::{Duration, Instant};

/// The first wait for a response; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// A member that is off costs this little; it calls us itself when it comes back.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Attempts after which an unanswering peer's session is given up and, if nobody keeps it up always, the handshake too: 15 s.
const TRIES_MAX: u32 = 5;
/// No more than one handshake a second is started on account of what others send us.
const HANDSHAKE_PAUSE: Duration = Duration::from_secs(1);
/// The member with the higher id waits this long for the other's first message, so that two seldom cross.
pub(in crate::engine) const YIELD: Duration = Duration::from_millis(150);

/// ```text
/// Idle ──wanted──▶ Due ──at──▶ Sent ──response──▶ Idle
///                   ▲            │──no response──▶ Sent (again, later and later)
///                   └─ Bye ──────┴──gave up──▶ Idle
/// ```
pub(super) enum Handshake {
    Idle,
    Due {
        at: Instant,
        /// Unanswered so far, over the ways that there are now.
        tries: u32,
    },
    Sent {
        initiator: Box<Initiator>,
        /// The initiation, for addresses that prove that the peer receives there.
        message: Vec<u8>,
        /// Whether it went anywhere.
        is_out: bool,
        /// The same, with the one under way; none when it went out before there were the ways of now.
        tries: u32,
        retry_at: Instant,
    },
}

impl Handshake {
    /// Whether none is wanted.
    pub(super) const fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// Messages of this one, over the ways that there are now, none of which was answered.
    pub(super) const fn unanswered(&self) -> u32 {
        match self {
            Self::Idle => 0,
            Self::Due { tries, .. } | Self::Sent { tries, .. } => *tries,
        }
    }

    /// When to go on with it.
    pub(super) const fn due_at(&self) -> Option<Instant> {
        match self {
            Self::Idle => None,
            Self::Due { at, .. } => Some(*at),
            Self::Sent { retry_at, .. } => Some(*retry_at),
        }
    }
}

impl Peer {
    /// Asks for a handshake at `at`, or earlier if one is due earlier.
    pub(in crate::engine) fn want_handshake(&mut self, at: Instant) {
        match &mut self.handshake {
            Handshake::Idle => self.handshake = Handshake::Due { at, tries: 0 },
            Handshake::Due { at: due, .. } => *due = at.min(*due),
            Handshake::Sent {
                tries, retry_at, ..
            } if *tries > TRIES_MAX && at < *retry_at => {
                (*tries, *retry_at) = (0, at); // it is worth trying afresh
            }
            Handshake::Sent { .. } => {}
        }
    }

    /// There are new ways to reach the peer, or to be reached: a handshake that nobody answered is tried over them at once.
    pub(in crate::engine) fn retry_handshake(&mut self, at: Instant) {
        if self.current.is_none()
            && let Handshake::Due { tries, at: due }
            | Handshake::Sent {
                tries,
                retry_at: due,
                ..
            } = &mut self.handshake
        {
            (*tries, *due) = (0, at.min(*due));
        }
    }

    /// Somebody at this peer's address does not know our session, or the other way round: shake hands, but seldom.
    pub(in crate::engine) fn want_handshake_seldom(&mut self, now: Instant) {
        let earliest = self
            .handshake_sent_at
            .map_or(now, |at| at + HANDSHAKE_PAUSE);
        self.want_handshake(now.max(earliest));
    }

    /// Whether this initiation loses against ours, which crosses it: the lower id's goes first, as long as it is the first
    /// over these ways. After that it may be that only the other side's arrive.
    pub(in crate::engine) fn outranks(&self, local: &Local) -> bool {
        let is_first = matches!(
            self.handshake,
            Handshake::Sent {
                tries: 0..=1,
                is_out: true,
                ..
            }
        );
        is_first && local.me < self.key.1
    }

    /// So many bytes came from the peer outside its sessions: the initiation may go to addresses that prove nothing for them.
    pub(in crate::engine) fn pay(&mut self, bytes: u64) {
        self.validation.pay(bytes);
    }

    /// Somebody at an address that may be the peer's, or at its relay's, does not know our session: is it the peer? Seldom, and
    /// no longer than what came from there.
    pub(in crate::engine) fn ask_back(&mut self, from: PathAddr, ctx: &mut Context, now: Instant) {
        let last = self.asked_back_at;
        if last.is_none_or(|at| now.saturating_duration_since(at) >= HANDSHAKE_PAUSE) {
            self.asked_back_at = Some(now);
            self.challenge(from, ctx, now);
        }
    }

    /// What came in the session pays for finding the peer again.
    pub(super) fn keep_credit(&mut self) {
        let kept = self.agent.take_credit(self.validation.room());
        self.validation.pay(kept);
    }

    fn challenge(&self, to: PathAddr, ctx: &mut Context, now: Instant) {
        let nonce = ctx.rng.random();
        ctx.challenges.note_asked(nonce, self.key, to, now);
        ctx.count(Counter::AddressesAsked);
        ctx.send(
            to,
            &session::challenge(self.key.0, &self.keys.x25519, nonce),
        );
    }

    /// The peer receives there: it answered our question.
    pub(in crate::engine) fn handle_path_response(
        &mut self,
        from: PathAddr,
        ctx: &mut Context,
        now: Instant,
    ) {
        self.validation.note_proven(from, now);
        if let Handshake::Sent {
            message, is_out, ..
        } = &mut self.handshake
        {
            *is_out = true;
            ctx.count(Counter::HandshakesSent);
            ctx.send(from, message);
        } else if self.next.is_none() && !self.is_well(now) {
            self.want_handshake_seldom(now);
        }
    }

    /// Whether an initiation is newer than the last one; it is the last one from then on.
    pub(in crate::engine) fn accept_timestamp(&mut self, timestamp: u64) -> bool {
        self.timestamp.accept(timestamp)
    }

    /// We answered an initiation; the peer shows by the first datagram that it got the answer.
    pub(in crate::engine) fn handle_responded(
        &mut self,
        established: Established,
        from: PathAddr,
        initiation_len: usize,
        ctx: &mut Context,
        now: Instant,
    ) {
        let was_wanted = !self.handshake.is_idle();
        self.stop_handshake(ctx);
        if was_wanted && self.current.is_none() {
            // The other side's may have crossed ours, and then each answers and drops what the other answered.
            let pause = ctx.rng.random_range(RETRY_FIRST..=2 * RETRY_FIRST);
            self.want_handshake(now + pause);
        }
        release(self.next.take(), ctx);
        let bytes = (HEADERS_BYTES + initiation_len) as u64;
        self.next = Some(Box::new(Live {
            responded_to: Some(from),
            ..Live::new(established, bytes, Duration::ZERO, now)
        }));
        ctx.count(Counter::Handshakes);
        ctx.redraw(Redraw::Ways);
    }

    /// A response to the handshake in flight.
    pub(in crate::engine) fn handle_response(
        &mut self,
        from: PathAddr,
        message: &[u8],
        ctx: &mut Context,
        now: Instant,
    ) {
        let Handshake::Sent {
            initiator,
            message: initiation,
            is_out,
            tries,
            retry_at,
        } = std::mem::replace(&mut self.handshake, Handshake::Idle)
        else {
            return ctx.count(Counter::DropHandshake);
        };
        match initiator.handle_response(message) {
            Ok(established) => {
                ctx.count(Counter::Handshakes);
                // What the peer sent before it answered us, to this life of ours or an earlier one, is worth nothing now.
                let _newer = self.timestamp.accept(established.remote_timestamp);
                let jitter = ctx.rng.random_range(Duration::ZERO..=REKEY_JITTER_MAX);
                let bytes = (HEADERS_BYTES + message.len()) as u64;
                let live = Live::new(established, bytes, jitter, now);
                self.begin(Box::new(live), from, ctx, now);
                if let Some(view) = self.agent.current() {
                    self.agent.handle_received(from, now);
                    self.send_control(view.addr, None, None, ctx); // tells the responder that it may send
                } else {
                    // The agent's probe does. There is credit for one; were it lost, another response brings more.
                    self.want_handshake(now + RETRY_FIRST);
                }
            }
            Err((initiator, _)) => {
                self.handshake = Handshake::Sent {
                    initiator: Box::new(initiator),
                    message: initiation,
                    is_out,
                    tries,
                    retry_at,
                };
                ctx.count(Counter::DropHandshake);
            }
        }
    }

    /// The responder is under load and wants its cookie back with the next attempt, which is made at once.
    pub(in crate::engine) fn handle_cookie_reply(
        &mut self,
        message: &[u8],
        ctx: &mut Context,
        now: Instant,
    ) {
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

    /// The session has a path: a handshake that was planned for want of one is not needed.
    pub(super) fn unplan_handshake(&mut self) {
        if matches!(self.handshake, Handshake::Due { .. }) && !self.is_suspect {
            self.handshake = Handshake::Idle;
        }
    }

    pub(super) fn stop_handshake(&mut self, ctx: &mut Context) {
        if let Handshake::Sent { initiator, .. } =
            std::mem::replace(&mut self.handshake, Handshake::Idle)
            && !self.sessions().any(|live| live.slot == initiator.slot())
        {
            ctx.slots.remove(initiator.slot());
        }
    }

    pub(super) fn is_renewal_due(&self, now: Instant) -> bool {
        let is_idle = self.handshake.is_idle();
        let current = self
            .current
            .as_ref()
            .filter(|_| is_idle && self.next.is_none());
        current
            .is_some_and(|live| self.wants_renewal || (now >= live.rekey_at && self.is_wanted(now)))
    }

    /// Starts the handshake that is due, or makes the next attempt.
    pub(super) fn continue_handshake(&mut self, local: &Local, ctx: &mut Context, now: Instant) {
        let tries = match self.handshake {
            Handshake::Due { at, tries } if now >= at => tries,
            Handshake::Sent {
                tries, retry_at, ..
            } if now >= retry_at => tries,
            _ => return,
        };
        if tries > 0 {
            let (network, peer) = self.key;
            ctx.tell(Event::PeerUnanswered { network, peer });
            self.is_unheard |= tries == 1; // perhaps because no relay of ours is there any more
        }
        if tries >= TRIES_MAX {
            self.give_up(ctx, now);
        }
        if tries < TRIES_MAX || self.is_kept() {
            self.initiate(local, tries, ctx, now);
        }
    }

    /// Nobody answers.
    pub(super) fn give_up(&mut self, ctx: &mut Context, now: Instant) {
        ctx.counters
            .add(Counter::DropWaiting, self.waiting.len() as u64);
        self.waiting.clear();
        self.pings.clear();
        self.stop_handshake(ctx);
        if self.is_suspect {
            self.end_sessions(DownReason::Silent, ctx, now);
        }
    }

    pub(super) fn initiate(&mut self, local: &Local, tries: u32, ctx: &mut Context, now: Instant) {
        self.stop_handshake(ctx);
        let mut targets = self.agent.handshake_targets();
        let is_renewal = self.current.is_some() && !self.is_suspect;
        if is_renewal && tries == 0 {
            targets.truncate(1); // the path in use comes first
        }
        let wait = RETRY_FIRST
            .saturating_mul(1 << tries.min(10))
            .min(RETRY_MAX);
        let retry_at = now + wait + ctx.rng.random_range(Duration::ZERO..=wait / 4);
        let Ok(slot) = ctx.slots.insert(self.key, &mut ctx.rng) else {
            self.handshake = Handshake::Due {
                at: retry_at,
                tries,
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
                tries,
            }; // its keys are no keys until it says better ones
            return;
        };
        if !is_renewal {
            self.keep_credit();
        }
        let (mut is_out, count) = (false, targets.len());
        for (place, to) in targets.into_iter().enumerate() {
            // Relays stand first. As many as the peer has paid for are called at once, so that data flows after one round trip.
            let others = (tries == 0).then_some(count - 1 - place);
            let allowed = if self.agent.is_validated(to) {
                Allowed::Message
            } else {
                self.validation.allow(to, message.len(), others, now)
            };
            match allowed {
                Allowed::Message => {
                    is_out = true;
                    ctx.count(Counter::HandshakesSent);
                    ctx.send(to, &message);
                }
                Allowed::Challenge => self.challenge(to, ctx, now),
                Allowed::Nothing => ctx.count(Counter::DropUnpaid),
            }
        }
        self.handshake_sent_at = Some(now);
        self.handshake = Handshake::Sent {
            initiator: Box::new(initiator),
            message,
            is_out,
            tries: tries + 1,
            retry_at,
        };
    }
}
