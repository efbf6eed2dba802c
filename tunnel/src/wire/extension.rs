//! The first plaintext byte of a sealed datagram, which says what the other bytes are.

use super::offload::{Offload, PartialChecksum, Segmentation, SegmentationKind};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One whole frame follows.
pub const PLAIN: u8 = 0x00;
/// A frame with a partial checksum follows a [`PieceHeader`]: one piece of a super-frame, or a frame of its own.
pub const PIECE: u8 = 0x01;
/// Bytes of [`PieceHeader`], the extension byte included.
pub const PIECE_HEADER_BYTES: usize = 12;
/// One half of a frame that was too large for the path follows a [`HalfHeader`].
pub const HALF: u8 = 0x02;
/// A control message follows; in lane 0 only.
pub const CONTROL: u8 = 0x03;
/// Bytes of [`HalfHeader`], the extension byte included.
pub const HALF_HEADER_BYTES: usize = 12;
/// No checksum is to be completed.
const COMPLETE: u16 = 0xffff;

/// The header of one half of a frame.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct HalfHeader {
    extension: u8,
    id: U32,
    /// 0 for the front, 1 for the back.
    pub which: u8,
    total: U16,
    checksum_start: U16,
    checksum_offset: U16,
}

impl HalfHeader {
    /// The header of half `which` of the frame `id`, which has `total` bytes.
    pub fn new(id: u32, which: u8, total: u16, checksum: Option<PartialChecksum>) -> Self {
        let checksum = checksum.unwrap_or(PartialChecksum {
            start: COMPLETE,
            offset: COMPLETE,
        });
        Self {
            extension: HALF,
            id: U32::new(id),
            which,
            total: U16::new(total),
            checksum_start: checksum.start.into(),
            checksum_offset: checksum.offset.into(),
        }
    }

    /// The header at the front of an opened datagram, and the half behind it.
    pub fn parse(plaintext: &[u8]) -> Option<(Self, &[u8])> {
        let (header, half) = Self::read_from_prefix(plaintext).ok()?;
        (header.extension == HALF && header.which < 2).then_some((header, half))
    }

    /// Which frame of the sender's lane it belongs to.
    pub const fn id(&self) -> u32 {
        self.id.get()
    }

    /// Length of the whole frame.
    pub const fn total(&self) -> u16 {
        self.total.get()
    }

    /// Which checksum of the whole frame is to be completed.
    pub fn checksum(&self) -> Option<PartialChecksum> {
        let (start, offset) = (self.checksum_start.get(), self.checksum_offset.get());
        (start != COMPLETE).then_some(PartialChecksum { start, offset })
    }
}

/// The header of a frame with a partial checksum.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct PieceHeader {
    extension: u8,
    kind: u8,
    id: U16,
    index: U16,
    size: U16,
    checksum_start: U16,
    checksum_offset: U16,
}

const SINGLE: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 2;
const UDP: u8 = 3;
const KIND_MASK: u8 = 0x0f;
const LAST: u8 = 0x40;
const ECN: u8 = 0x80;

impl PieceHeader {
    /// The header of a frame of its own.
    pub fn single(checksum: PartialChecksum) -> Self {
        Self {
            extension: PIECE,
            kind: SINGLE,
            id: U16::ZERO,
            index: U16::ZERO,
            size: U16::ZERO,
            checksum_start: checksum.start.into(),
            checksum_offset: checksum.offset.into(),
        }
    }

    /// The header of piece `index` of the super-frame `id`, whose pieces but the last have the payload that
    /// `segmentation` says.
    pub fn piece(
        id: u16,
        index: u16,
        is_last: bool,
        segmentation: Segmentation,
        checksum: PartialChecksum,
    ) -> Self {
        let kind = match segmentation.kind {
            SegmentationKind::Tcp4 => TCP4,
            SegmentationKind::Tcp6 => TCP6,
            SegmentationKind::Udp => UDP,
        };
        let last = if is_last { LAST } else { 0 };
        let ecn = if segmentation.has_ecn { ECN } else { 0 };
        Self {
            kind: kind | last | ecn,
            id: id.into(),
            index: index.into(),
            size: segmentation.size.into(),
            ..Self::single(checksum)
        }
    }

    /// The header at the front of an opened datagram, and the frame behind it.
    pub fn parse(plaintext: &[u8]) -> Option<(Self, &[u8])> {
        let (header, frame) = Self::read_from_prefix(plaintext).ok()?;
        let is_known = header.extension == PIECE && header.kind & KIND_MASK <= UDP;
        is_known.then_some((header, frame))
    }

    /// What is to be done to the super-frame; for a frame of its own, no segmentation.
    pub fn offload(&self) -> Offload {
        let kind = match self.kind & KIND_MASK {
            TCP4 => Some(SegmentationKind::Tcp4),
            TCP6 => Some(SegmentationKind::Tcp6),
            UDP => Some(SegmentationKind::Udp),
            _ => None,
        };
        let checksum = PartialChecksum {
            start: self.checksum_start.get(),
            offset: self.checksum_offset.get(),
        };
        let segmentation = kind.map(|kind| Segmentation {
            kind,
            size: self.size.get(),
            has_ecn: self.kind & ECN != 0,
        });
        Offload {
            checksum: Some(checksum),
            segmentation,
        }
    }

    /// Which super-frame of the sender's lane it belongs to; numbers come again after 65536.
    pub const fn id(&self) -> u16 {
        self.id.get()
    }

    /// Which piece of it.
    pub const fn index(&self) -> u16 {
        self.index.get()
    }

    /// Whether no piece follows.
    pub const fn is_last(&self) -> bool {
        self.kind & LAST != 0
    }
}
