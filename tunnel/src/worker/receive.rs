//! The way of a datagram from a peer: opened, its piece or half joined to others, and on to the ports.

use super::{Output, Report, State, location, why_not_carried, why_not_opened};
use crate::{
    offload::{Joiner, Offload, mss},
    session::{OpenError, RecvLane, SessionSlot},
    snapshot::{NetworkView, Place, Snapshot},
    split,
    stats::Counter,
    switch::{self, Source, Verdict, flood},
    wire::{
        datagram::{DATA_HEADER_BYTES, TAG_BYTES},
        extension::{self, PIECE_HEADER_BYTES, PieceHeader},
    },
};
use overlay_types::PathAddr;
use std::time::Instant;

impl State {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one fact of the datagram that was classified"
    )]
    pub(super) fn sealed(
        &mut self,
        snapshot: &Snapshot,
        slot: SessionSlot,
        remote_lane: u8,
        from: PathAddr,
        datagram: &mut [u8],
        now: Instant,
        out: &mut impl Output,
    ) {
        let bytes = datagram.len() as u64;
        let established = || {
            snapshot
                .sessions
                .iter()
                .find(|s| s.slot == slot)
                .map(|s| &s.established)
        };
        let Some(lane) = self.lanes.get_mut(&slot) else {
            self.count(Counter::DropUnknownSession, now);
            if self.limits.unknown_sessions.take(now) {
                let bytes = datagram.len();
                self.report(Report::UnknownSession { from, bytes }, now, out);
            }
            return;
        };
        let recv = &mut lane.recv[usize::from(remote_lane)];
        if recv.is_none() {
            *recv = established().map(|e| Box::new(e.recv_lane(remote_lane)));
        }
        let Some(recv) = recv else {
            return self.count(Counter::DropUnknownSession, now);
        };
        let source = u64::from(slot.index(remote_lane));
        let opened = open(recv, &mut self.joiner, source, datagram);
        let plaintext = match opened {
            Ok(plaintext) => plaintext,
            Err(error) => return self.count(why_not_opened(&error), now),
        };
        lane.traffic.rx_bytes += bytes;
        lane.traffic.rx_datagrams += 1;
        lane.mark_busy(slot, &mut self.busy, &mut self.tell_at, now);
        let is_news = lane.hear(from, now);
        let (lane_network, peer) = (lane.network, lane.peer);
        let view = &snapshot.networks[usize::from(lane_network)];
        if is_news && self.limits.heard.take(now) {
            self.report(Report::Heard { slot, from }, now, out);
        }
        let Some(plaintext) = plaintext else {
            return; // the next piece of what is being joined, and joined to it already
        };
        match plaintext.first() {
            Some(&extension::PIECE) => {
                self.piece_from_peer(snapshot, (lane_network, peer), source, plaintext, now, out)
            }
            Some(&extension::PLAIN) => {
                self.deliver_joined(snapshot, now, out);
                clamp_mss(view, peer, &mut plaintext[1..], false);
                self.frame_from_peer(view, peer, &plaintext[1..], Offload::NONE, now, out);
            }
            Some(&extension::HALF) => {
                let mut rejoiner = std::mem::take(&mut self.rejoiner);
                if let Some((frame, checksum)) = rejoiner.accept(source, plaintext, now) {
                    let offload = Offload {
                        checksum,
                        segmentation: None,
                    };
                    let place = (lane_network, peer);
                    self.offloaded_frame(snapshot, place, source, frame, offload, now, out);
                }
                self.rejoiner = rejoiner;
            }
            _ => self.count(Counter::DropUnknownExtension, now),
        }
    }

    /// A frame with a partial checksum: of its own, or a piece of a super-frame.
    fn piece_from_peer(
        &mut self,
        snapshot: &Snapshot,
        (network, peer): (u16, u16),
        source: u64,
        plaintext: &mut [u8],
        now: Instant,
        out: &mut impl Output,
    ) {
        let Some((header, frame)) = PieceHeader::parse(plaintext) else {
            return self.count(Counter::DropMalformed, now);
        };
        let offload = header.offload();
        if offload.segmentation.is_none() {
            let view = &snapshot.networks[usize::from(network)];
            let frame = &mut plaintext[PIECE_HEADER_BYTES..];
            clamp_mss(view, peer, frame, true);
            return self.offloaded_frame(
                snapshot,
                (network, peer),
                source,
                frame,
                offload,
                now,
                out,
            );
        }
        if self.joiner.append(source, &header, frame) {
            return;
        }
        self.deliver_joined(snapshot, now, out);
        if self.joiner.begin(source, &header, frame) {
            self.joining = (network, peer);
        } else {
            self.count(Counter::DropMalformed, now);
        }
    }

    /// A frame of its own, with a partial checksum perhaps: joined to its neighbours if it is a datagram like them.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one fact of the frame that came"
    )]
    fn offloaded_frame(
        &mut self,
        snapshot: &Snapshot,
        (network, peer): (u16, u16),
        source: u64,
        frame: &[u8],
        offload: Offload,
        now: Instant,
        out: &mut impl Output,
    ) {
        if let Some(checksum) = offload.checksum {
            if self.joiner.append_datagram(source, checksum, frame) {
                return;
            }
            self.deliver_joined(snapshot, now, out);
            if self.joiner.begin_datagram(source, checksum, frame) {
                self.joining = (network, peer);
                return;
            }
        } else {
            self.deliver_joined(snapshot, now, out);
        }
        let view = &snapshot.networks[usize::from(network)];
        self.frame_from_peer(view, peer, frame, offload, now, out);
    }

    /// Passes on what was joined so far.
    pub(super) fn deliver_joined(
        &mut self,
        snapshot: &Snapshot,
        now: Instant,
        out: &mut impl Output,
    ) {
        if self.joiner.is_empty() {
            return;
        }
        let mut joiner = std::mem::take(&mut self.joiner);
        if let Some(joined) = joiner.take() {
            if joined.offload.segmentation.is_some() {
                self.count(Counter::SuperFramesJoined, now);
            }
            let (network, peer) = self.joining;
            let view = &snapshot.networks[usize::from(network)];
            self.frame_from_peer(view, peer, joined.frame, joined.offload, now, out);
        }
        self.joiner = joiner;
    }

    fn frame_from_peer(
        &mut self,
        view: &NetworkView,
        peer: u16,
        frame: &[u8],
        offload: Offload,
        now: Instant,
        out: &mut impl Output,
    ) {
        self.count(Counter::FramesFromPeers, now);
        if let Some(why) = why_not_carried(view, frame, &offload) {
            return self.count(why, now);
        }
        let from = Source::Peer(peer);
        let judged = switch::judge(view, from, frame);
        self.tell_what_was_seen(view, from, &judged, frame, now, out);
        match judged.verdict {
            Verdict::Drop(why) => self.count(why, now),
            Verdict::To(Place::Port(to)) => self.deliver(view, to, frame, offload, now, out),
            Verdict::Flood => {
                if location(view, Place::Peer(peer))
                    .is_some_and(|at| !self.budgets.take(view.id, at, now))
                {
                    return self.count(Counter::DropStorm, now);
                }
                for port in flood::ports(view, from.place()) {
                    self.deliver(view, port, frame, offload, now, out);
                }
            }
            // Questions are answered where they are asked, and no peer's frame goes on to another peer.
            _ => self.count(Counter::DropHairpin, now),
        }
    }
}

/// Opens a datagram: where it lies, or where its payload is to go if it may be the next piece of what is being joined; then
/// there is no plaintext left to look at.
fn open<'d>(
    recv: &mut RecvLane,
    joiner: &mut Joiner,
    source: u64,
    datagram: &'d mut [u8],
) -> Result<Option<&'d mut [u8]>, OpenError> {
    let len = datagram.len().saturating_sub(DATA_HEADER_BYTES + TAG_BYTES);
    let Some(room) = joiner.room_for_next(source, len) else {
        return recv.open(datagram).map(Some);
    };
    if let Err(error) = recv.open_into(datagram, room) {
        joiner.refuse();
        return Err(error);
    }
    let plaintext = &mut datagram[DATA_HEADER_BYTES..DATA_HEADER_BYTES + len];
    Ok(if joiner.keep(plaintext) {
        None
    } else {
        Some(plaintext)
    })
}

/// A connection that a peer's guest opens, or accepts, is told what our way to that peer carries in one datagram.
pub(crate) fn clamp_mss(view: &NetworkView, peer: u16, frame: &mut [u8], is_partial: bool) {
    if let Some(way) = view.peers[usize::from(peer)].way {
        let room = split::room(way.mtu_likely).saturating_sub(PIECE_HEADER_BYTES);
        mss::clamp(frame, is_partial, room);
    }
}
