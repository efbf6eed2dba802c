//! The way of a frame to a peer: whole, in halves, or as the pieces of a super-frame, sealed where it leaves from.

use super::{Output, Report, State};
use crate::{
    offload::{self, CutError, Cutter, Offload, PartialChecksum, Segmentation},
    session::{SealError, SendLane},
    snapshot::{NetworkView, Way},
    split::{self, Fit},
    stats::Counter,
    wire::{
        datagram::{DATA_HEADER_BYTES, TAG_BYTES, wrapper_bytes, write_wrappers},
        extension::{PIECE_HEADER_BYTES, PieceHeader},
    },
};
use std::time::Instant;
use zerocopy::IntoBytes;

impl State {
    pub(super) fn frame_to_peer(
        &mut self,
        view: &NetworkView,
        peer: u16,
        frame: &mut [u8],
        offload: Offload,
        now: Instant,
        out: &mut impl Output,
    ) {
        let Some(way) = view.peers[usize::from(peer)].way else {
            return self.wait_for_session(view, peer, frame, offload, now, out);
        };
        self.count(Counter::FramesToPeers, now);
        if offload.segmentation.is_none() {
            return self.one_frame(way, frame, offload.checksum, now, out);
        }
        match self.super_frame(way, frame, offload, now, out) {
            Ok(()) => {}
            Err(CutError::Malformed) => self.count(Counter::DropMalformed, now),
            Err(CutError::TooLarge) => self.count(Counter::DropOversize, now),
        }
    }

    /// The engine keeps frames until there is a session; it knows no offloads.
    fn wait_for_session(
        &mut self,
        view: &NetworkView,
        peer: u16,
        frame: &[u8],
        offload: Offload,
        now: Instant,
        out: &mut impl Output,
    ) {
        let id = view.peers[usize::from(peer)].id;
        let mut tell = |state: &mut Self, frame: Vec<u8>| {
            if state.limits.waiting.take(now) {
                state.report(
                    Report::NoSession {
                        network: view.id,
                        peer: id,
                        frame,
                    },
                    now,
                    out,
                );
            } else {
                state.count(Counter::DropNoSession, now);
            }
        };
        match Cutter::new(frame, &offload, view.frame_bytes_max) {
            Ok(cutter) => {
                for index in 0..cutter.count() {
                    tell(self, cutter.segment_for_a_wire(frame, index));
                }
            }
            Err(_) => tell(self, offload::for_a_wire(frame, &offload)),
        }
    }

    fn one_frame(
        &mut self,
        way: Way,
        frame: &mut [u8],
        checksum: Option<PartialChecksum>,
        now: Instant,
        out: &mut impl Output,
    ) {
        match split::fit(frame.len(), checksum, way.mtu) {
            Fit::Whole(len) => self.send(way, len, now, out, |lane, datagram| {
                lane.seal_in(datagram, |plaintext| {
                    split::write_whole(frame, checksum, plaintext);
                });
            }),
            Fit::Halves(lens) => {
                self.count(Counter::FramesSplit, now);
                let id = self.next_split_id;
                self.next_split_id = id.wrapping_add(1);
                for (which, len) in (0..).zip(lens) {
                    self.send(way, len, now, out, |lane, datagram| {
                        lane.seal_in(datagram, |plaintext| {
                            split::write_half(frame, checksum, id, which, plaintext);
                        });
                    });
                }
            }
            Fit::TooLarge => {
                let stream = checksum.and_then(|sum| offload::as_super_frame(frame, sum));
                let sent = stream.map(|offload| self.super_frame(way, frame, offload, now, out));
                if sent != Some(Ok(())) {
                    self.count(Counter::DropOversize, now);
                }
            }
        }
    }

    fn super_frame(
        &mut self,
        way: Way,
        frame: &mut [u8],
        offload: Offload,
        now: Instant,
        out: &mut impl Output,
    ) -> Result<(), CutError> {
        let (Some(segmentation), Some(checksum)) = (offload.segmentation, offload.checksum) else {
            return Err(CutError::Malformed);
        };
        let len_max = split::room(way.mtu).saturating_sub(PIECE_HEADER_BYTES);
        let cutter = Cutter::new(frame, &offload, len_max)?;
        self.count(Counter::SuperFramesCut, now);
        if cutter.piece_len_max() > len_max {
            // Datagrams that do not fit the path: each goes as a frame of its own, in halves.
            let mut spare = std::mem::take(&mut self.spare);
            for index in 0..cutter.count() {
                spare.resize(cutter.piece_len(index), 0);
                cutter.write(frame, index, &mut spare);
                self.one_frame(way, &mut spare, Some(checksum), now, out);
            }
            self.spare = spare;
            return Ok(());
        }
        let id = self.next_super_frame_id;
        self.next_super_frame_id = id.wrapping_add(1);
        let segmentation = Segmentation {
            size: cutter.size(),
            ..segmentation
        };
        let count = cutter.count();
        for index in 0..count {
            let is_last = index + 1 == count;
            let header = PieceHeader::piece(id, index, is_last, segmentation, checksum);
            let len = PIECE_HEADER_BYTES + cutter.piece_len(index);
            self.send(way, len, now, out, |lane, datagram| {
                let header = header.as_bytes();
                let lent = cutter.lend(frame, index, header, |piece| {
                    lane.seal_from(piece, datagram);
                });
                if lent.is_none() {
                    lane.seal_in(datagram, |plaintext| {
                        let (head, piece) = plaintext.split_at_mut(PIECE_HEADER_BYTES);
                        head.copy_from_slice(header);
                        cutter.write(frame, index, piece);
                    });
                }
            });
        }
        Ok(())
    }

    /// Sends one datagram with a plaintext of `len` bytes, which `seal` makes where it leaves from.
    fn send(
        &mut self,
        way: Way,
        len: usize,
        now: Instant,
        out: &mut impl Output,
        seal: impl FnOnce(&mut SendLane, &mut [u8]),
    ) {
        let Some(lane) = self.lanes.get_mut(&way.slot) else {
            return self.count(Counter::DropNoSession, now);
        };
        if lane.send.prepare() == Err(SealError) {
            return self.count(Counter::DropExhausted, now);
        }
        let wrapper = wrapper_bytes(way.path);
        let sealed_bytes = DATA_HEADER_BYTES + len + TAG_BYTES;
        let datagram = out.transmit(way.path.into(), wrapper + sealed_bytes);
        let (head, sealed) = datagram.split_at_mut(wrapper);
        write_wrappers(way.path, head);
        seal(&mut lane.send, sealed);
        lane.traffic.tx_bytes += sealed_bytes as u64;
        lane.traffic.tx_datagrams += 1;
        lane.mark_busy(way.slot, &mut self.busy, &mut self.tell_at, now);
    }
}
