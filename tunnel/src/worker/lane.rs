//! One worker's share of a session: its keys, what went over it, and by which ways its datagrams come.

use super::{
    Traffic,
    limits::{CONTROL_BURST, CONTROL_PER_SECOND, TELL_EVERY},
};
use crate::{
    session::{RecvLane, SendLane, SessionSlot},
    snapshot::SessionView,
    switch::flood::TokenBucket,
    wire::datagram::LANE_MAX,
};
use overlay_types::PathAddr;
use std::time::Instant;

/// Ways by which a session's datagrams come that are told apart; a third one takes the place of the older.
const WAYS_HEARD: usize = 2;

/// Our lane of one session.
pub(super) struct Lane {
    pub(super) network: u16,
    pub(super) peer: u16,
    pub(super) send: SendLane,
    /// By the sender's lane; made when the first datagram of a lane comes, so that a peer with few workers costs little.
    pub(super) recv: [Option<Box<RecvLane>>; LANE_MAX as usize + 1],
    heard: [Option<(PathAddr, Instant)>; WAYS_HEARD],
    control: Option<TokenBucket>,
    pub(super) traffic: Traffic,
    /// Whether the engine is still to be told of that traffic.
    pub(super) is_busy: bool,
}

impl Lane {
    /// Our lane of a session, as worker of this lane.
    pub(super) fn new(session: &SessionView, lane: u8) -> Self {
        Self {
            network: session.network,
            peer: session.peer,
            send: session.established.send_lane(lane),
            recv: [const { None }; LANE_MAX as usize + 1],
            heard: [None; WAYS_HEARD],
            control: None,
            traffic: Traffic::default(),
            is_busy: false,
        }
    }

    /// Whether one more control datagram of the session may go to the engine.
    pub(super) fn takes_control(&mut self, now: Instant) -> bool {
        let fresh = || TokenBucket::new(CONTROL_PER_SECOND, CONTROL_BURST, now);
        self.control.get_or_insert_with(fresh).take(now)
    }

    /// Notes that there is traffic to tell of, in the worker's list too.
    pub(super) fn mark_busy(
        &mut self,
        slot: SessionSlot,
        busy: &mut Vec<SessionSlot>,
        tell_at: &mut Option<Instant>,
        now: Instant,
    ) {
        if !self.is_busy {
            self.is_busy = true;
            busy.push(slot);
            tell_at.get_or_insert(now + TELL_EVERY);
        }
    }

    /// Notes the way a datagram came; true when the engine should hear of it.
    pub(super) fn hear(&mut self, from: PathAddr, now: Instant) -> bool {
        if let Some((_, told_at)) = self
            .heard
            .iter_mut()
            .flatten()
            .find(|(way, _)| *way == from)
        {
            let is_due = now.saturating_duration_since(*told_at) >= TELL_EVERY;
            if is_due {
                *told_at = now;
            }
            return is_due;
        }
        let oldest = self
            .heard
            .iter_mut()
            .min_by_key(|way| way.map(|(_, told_at)| told_at))
            .expect("there are two");
        *oldest = Some((from, now));
        true
    }
}
