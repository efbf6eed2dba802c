//! What the engine itself sends to a member over the control lane: control messages, frames that waited, echoes.

use super::Peer;
use crate::{
    engine::context::Context,
    path::ControlMessage,
    split::{self, Fit},
    stats::Counter,
    wire::{
        datagram::{DATA_HEADER_BYTES, TAG_BYTES},
        extension,
    },
};
use overlay_types::PathAddr;
use rand::Rng;
use std::time::Instant;

/// Frames that wait for a session: a guest's first questions, not its bulk.
const FRAMES_WAITING_MAX: usize = 32;
/// Pings that wait for their answer.
const PINGS_MAX: usize = 64;

impl Peer {
    /// Sends a frame over the control lane, or keeps it until there is a session.
    pub(in crate::engine) fn send_or_wait(
        &mut self,
        frame: Vec<u8>,
        ctx: &mut Context,
        now: Instant,
    ) {
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

    pub(super) fn send_frame(&mut self, frame: &[u8], ctx: &mut Context, now: Instant) {
        let Some(view) = self.agent.current() else {
            return ctx.count(Counter::DropNoSession);
        };
        ctx.count(Counter::FramesToPeers);
        self.note_data_sent(now);
        match split::fit(frame.len(), None, view.mtu) {
            Fit::Whole(len) => {
                split::write_whole(frame, None, &mut ctx.buf.spare()[..len]);
                ctx.buf.set_len(len);
                self.seal_and_send(view.addr, ctx);
            }
            Fit::Halves(lens) => {
                ctx.count(Counter::FramesSplit);
                let id = ctx.rng.random();
                for (which, len) in (0..).zip(lens) {
                    split::write_half(frame, None, id, which, &mut ctx.buf.spare()[..len]);
                    ctx.buf.set_len(len);
                    self.seal_and_send(view.addr, ctx);
                }
            }
            Fit::TooLarge => ctx.count(Counter::DropOversize),
        }
    }

    /// Sends a control message; an empty one is a keepalive.
    pub(super) fn send_control(
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
    pub(super) fn seal_and_send(&mut self, to: PathAddr, ctx: &mut Context) {
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

    /// Asks for a place at its relay.
    pub(in crate::engine) fn ask_for_place(&mut self, ctx: &mut Context) {
        if let Some(view) = self.agent.current() {
            self.send_control(view.addr, Some(&ControlMessage::RelayAsk), None, ctx);
        }
    }

    /// One echo; the answer comes as an event.
    pub(in crate::engine) fn ping(&mut self, id: u64, ctx: &mut Context, now: Instant) {
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

    pub(super) fn flush_waiting(&mut self, ctx: &mut Context, now: Instant) {
        if self.way().is_none() {
            return;
        }
        for frame in std::mem::take(&mut self.waiting) {
            ctx.count(Counter::FramesWaited);
            self.send_frame(&frame, ctx, now);
        }
    }

    pub(super) fn note_data_sent(&mut self, now: Instant) {
        self.data_at = Some(now);
        self.unanswered_since.get_or_insert(now);
        self.agent.note_traffic(now);
    }
}
