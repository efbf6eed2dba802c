//! Cuts a super-frame into pieces, each the frame that a kernel's own segmentation would have made of that part, but with
//! its checksum left partial.

use std::ops::Range;

use super::{
    FRONT_BYTES_MAX, Layout, Offload, PartialChecksum, SegmentationKind, UDP_SEGMENTS_MAX,
};

const FIN_AND_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;

/// Why a super-frame cannot be cut; drop and count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CutError {
    /// Not what its offload says.
    #[error("not a TCP or UDP packet as its offload describes it")]
    Malformed,
    /// Not even one byte of payload fits behind the headers.
    #[error("its headers do not fit the path")]
    TooLarge,
}

/// How a super-frame is cut. Its methods are given that very frame again.
pub struct Cutter {
    frame_bytes: usize,
    layout: Layout,
    checksum: PartialChecksum,
    kind: SegmentationKind,
    /// Bytes of payload in each piece but the last.
    size: usize,
}

impl Cutter {
    /// Cuts so that no piece has more than `len_max` bytes; a stream's segments may become shorter for that, UDP's
    /// datagrams may not, so that [`Self::piece_len_max`] may exceed it.
    ///
    /// # Errors
    /// Why not.
    pub fn new(frame: &[u8], offload: &Offload, len_max: usize) -> Result<Self, CutError> {
        let layout = Layout::of(frame, offload).ok_or(CutError::Malformed)?;
        let (Some(checksum), Some(segmentation)) = (offload.checksum, offload.segmentation) else {
            return Err(CutError::Malformed);
        };
        let size = usize::from(segmentation.size);
        let room = len_max.saturating_sub(layout.payload);
        let size = match segmentation.kind {
            SegmentationKind::Udp => size,
            SegmentationKind::Tcp4 | SegmentationKind::Tcp6 if room == 0 => {
                return Err(CutError::TooLarge);
            }
            SegmentationKind::Tcp4 | SegmentationKind::Tcp6 => size.min(room),
        };
        let cutter = Self {
            frame_bytes: frame.len(),
            layout,
            checksum,
            kind: segmentation.kind,
            size,
        };
        let count_max = match segmentation.kind {
            SegmentationKind::Udp => UDP_SEGMENTS_MAX,
            // The index of a piece has 16 bits; a path leaves room for a few hundred pieces at most.
            SegmentationKind::Tcp4 | SegmentationKind::Tcp6 => usize::from(u16::MAX),
        };
        if cutter.payload_bytes().div_ceil(size) > count_max {
            return Err(CutError::Malformed);
        }
        Ok(cutter)
    }

    /// How many pieces there are; one at least.
    pub fn count(&self) -> u16 {
        self.payload_bytes().div_ceil(self.size).max(1) as u16
    }

    /// Bytes of payload in each piece but the last.
    pub const fn size(&self) -> u16 {
        self.size as u16
    }

    /// The length of the longest piece.
    pub fn piece_len_max(&self) -> usize {
        self.piece_len(0)
    }

    /// The length of piece `index`.
    pub fn piece_len(&self, index: u16) -> usize {
        self.layout.payload + self.part(index).len()
    }

    /// Writes piece `index` of `frame` into `out`, which has [`Self::piece_len`] bytes.
    pub fn write(&self, frame: &[u8], index: u16, out: &mut [u8]) {
        let (headers, payload) = out.split_at_mut(self.layout.payload);
        payload.copy_from_slice(&frame[self.part(index)]);
        self.write_headers(frame, index, headers);
    }

    /// Lends piece `index`, with `prefix` in front, where its payload lies in `frame`, so that no payload is copied. The
    /// end of the piece before makes room for that and is as it was afterwards. `None` when there is no such room, as for
    /// the first piece: then [`Self::write`] does.
    pub fn lend<T>(
        &self,
        frame: &mut [u8],
        index: u16,
        prefix: &[u8],
        borrow: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        let part = self.part(index);
        let front_bytes = prefix.len() + self.layout.payload;
        let (first, payloads) = frame.split_at_mut(self.layout.payload);
        let start = (part.start - first.len()).checked_sub(front_bytes)?;
        let piece = &mut payloads[start..part.end - first.len()];
        let mut kept = [0; FRONT_BYTES_MAX];
        let kept = kept.get_mut(..front_bytes)?;
        kept.copy_from_slice(&piece[..front_bytes]);
        let (before, headers) = piece[..front_bytes].split_at_mut(prefix.len());
        before.copy_from_slice(prefix);
        self.write_headers(first, index, headers);
        let done = borrow(piece);
        piece[..front_bytes].copy_from_slice(kept);
        Some(done)
    }

    /// The headers of piece `index` of a super-frame that begins with `first`.
    fn write_headers(&self, first: &[u8], index: u16, headers: &mut [u8]) {
        let Self {
            layout, checksum, ..
        } = self;
        let part = self.part(index);
        headers.copy_from_slice(&first[..layout.payload]);
        layout.count_identification(headers, index);
        if self.kind != SegmentationKind::Udp {
            let tcp = &mut headers[layout.transport..];
            let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            let sequence = sequence.wrapping_add((usize::from(index) * self.size) as u32);
            tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
            let is_last = part.end == self.frame_bytes;
            if !is_last {
                tcp[13] &= !FIN_AND_PSH;
            }
            if index > 0 {
                tcp[13] &= !CWR;
            }
        }
        let len = layout.payload + part.len();
        layout.set_len(headers, *checksum, self.frame_bytes, len);
    }

    /// Piece `index` of `frame` with its checksum completed.
    pub fn segment_for_a_wire(&self, frame: &[u8], index: u16) -> Vec<u8> {
        let mut segment = vec![0; self.piece_len(index)];
        self.write(frame, index, &mut segment);
        let is_complete = super::checksum::complete(&mut segment, self.checksum);
        debug_assert!(is_complete, "the layout has the field inside the headers");
        segment
    }

    const fn payload_bytes(&self) -> usize {
        self.frame_bytes - self.layout.payload
    }

    /// Where the payload of piece `index` lies in the frame.
    fn part(&self, index: u16) -> Range<usize> {
        let start = (usize::from(index) * self.size).min(self.payload_bytes());
        let end = (start + self.size).min(self.payload_bytes());
        self.layout.payload + start..self.layout.payload + end
    }
}
