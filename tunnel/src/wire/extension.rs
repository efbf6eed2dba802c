//! The first plaintext byte of a sealed datagram, which says what the other bytes are.

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One whole frame follows.
pub const PLAIN: u8 = 0x00;
/// One piece of a super-frame follows: id u32, index u16, GSO type and size, checksum start and offset.
/// The number is taken; no node sends it yet and a receiver counts it as unknown.
pub const SUPER_FRAME_PIECE: u8 = 0x01;
/// One half of a frame that was too large for the path follows a [`HalfHeader`].
pub const HALF: u8 = 0x02;
/// A control message follows; in lane 0 only.
pub const CONTROL: u8 = 0x03;
/// Bytes of [`HalfHeader`], the extension byte included.
pub const HALF_HEADER_BYTES: usize = 8;

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
}

impl HalfHeader {
    /// The header of half `which` of the frame `id`, which has `total` bytes.
    pub const fn new(id: u32, which: u8, total: u16) -> Self {
        Self {
            extension: HALF,
            id: U32::new(id),
            which,
            total: U16::new(total),
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
}
