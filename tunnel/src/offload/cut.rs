//! Cuts a super-frame into pieces, each the frame that a kernel's own segmentation would have made of that part, but with
//! its checksum left partial.

use super::{Layout, Offload, PartialChecksum, SegmentationKind, UDP_SEGMENTS_MAX};

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

/// A super-frame on its way to pieces.
pub struct Cutter<'a> {
    frame: &'a [u8],
    layout: Layout,
    checksum: PartialChecksum,
    kind: SegmentationKind,
    /// Bytes of payload in each piece but the last.
    size: usize,
}

impl<'a> Cutter<'a> {
    /// Cuts so that no piece has more than `len_max` bytes; a stream's segments may become shorter for that, UDP's
    /// datagrams may not, so that [`Self::piece_len_max`] may exceed it.
    ///
    /// # Errors
    /// Why not.
    pub fn new(frame: &'a [u8], offload: &Offload, len_max: usize) -> Result<Self, CutError> {
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
            frame,
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
        if cutter.payload().len().div_ceil(size) > count_max {
            return Err(CutError::Malformed);
        }
        Ok(cutter)
    }

    /// How many pieces there are; one at least.
    pub fn count(&self) -> u16 {
        self.payload().len().div_ceil(self.size).max(1) as u16
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

    /// Writes piece `index` into `out`, which has [`Self::piece_len`] bytes.
    pub fn write(&self, index: u16, out: &mut [u8]) {
        let Self {
            layout, checksum, ..
        } = self;
        let part = self.part(index);
        let (headers, payload) = out.split_at_mut(layout.payload);
        headers.copy_from_slice(&self.frame[..layout.payload]);
        payload.copy_from_slice(part);

        let is_last = index + 1 == self.count();
        layout.count_identification(out, index);
        if self.kind != SegmentationKind::Udp {
            let tcp = &mut out[layout.transport..];
            let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            let sequence = sequence.wrapping_add((usize::from(index) * self.size) as u32);
            tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !is_last {
                tcp[13] &= !FIN_AND_PSH;
            }
            if index > 0 {
                tcp[13] &= !CWR;
            }
        }
        let len = out.len();
        layout.set_len(out, *checksum, self.frame.len(), len);
    }

    /// Piece `index` with its checksum completed.
    pub fn segment_for_a_wire(&self, index: u16) -> Vec<u8> {
        let mut segment = vec![0; self.piece_len(index)];
        self.write(index, &mut segment);
        let is_complete = super::checksum::complete(&mut segment, self.checksum);
        debug_assert!(is_complete, "the layout has the field inside the headers");
        segment
    }

    fn payload(&self) -> &'a [u8] {
        &self.frame[self.layout.payload..]
    }

    fn part(&self, index: u16) -> &'a [u8] {
        let payload = self.payload();
        let start = (usize::from(index) * self.size).min(payload.len());
        &payload[start..(start + self.size).min(payload.len())]
    }
}
