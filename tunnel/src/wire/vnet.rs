//! The header that a TAP with `IFF_VNET_HDR` puts in front of each frame (`struct virtio_net_hdr`, virtio 1.2 §5.1.6): what
//! the kernel left to be done, and what it may leave to the next one.

use super::offload::{Offload, PartialChecksum, Segmentation, SegmentationKind};
use zerocopy::byteorder::{NativeEndian, U16};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of [`VnetHeader`]: the kernel's size unless `TUNSETVNETHDRSZ` says otherwise.
pub const VNET_HEADER_BYTES: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// The header itself, in the machine's byte order as legacy virtio has it.
#[derive(
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
)]
#[repr(C)]
pub struct VnetHeader {
    flags: u8,
    gso_type: u8,
    header_len: U16<NativeEndian>,
    gso_size: U16<NativeEndian>,
    checksum_start: U16<NativeEndian>,
    checksum_offset: U16<NativeEndian>,
}

impl VnetHeader {
    /// The header of a frame with this to be done, whose headers have `header_len` bytes.
    pub fn new(offload: Offload, header_len: u16) -> Self {
        let mut header = Self::default();
        if let Some(checksum) = offload.checksum {
            header.flags = NEEDS_CSUM;
            header.checksum_start = checksum.start.into();
            header.checksum_offset = checksum.offset.into();
        }
        if let Some(segmentation) = offload.segmentation {
            let kind = match segmentation.kind {
                SegmentationKind::Tcp4 => GSO_TCPV4,
                SegmentationKind::Tcp6 => GSO_TCPV6,
                SegmentationKind::Udp => GSO_UDP_L4,
            };
            header.gso_type = kind | if segmentation.has_ecn { GSO_ECN } else { 0 };
            header.gso_size = segmentation.size.into();
            header.header_len = header_len.into();
        }
        header
    }

    /// What is to be done; `None` when that is something we do not know (nothing that we asked the kernel for).
    pub fn offload(&self) -> Option<Offload> {
        let checksum = (self.flags & NEEDS_CSUM != 0).then(|| PartialChecksum {
            start: self.checksum_start.get(),
            offset: self.checksum_offset.get(),
        });
        let kind = match self.gso_type & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(SegmentationKind::Tcp4),
            GSO_TCPV6 => Some(SegmentationKind::Tcp6),
            GSO_UDP_L4 => Some(SegmentationKind::Udp),
            _ => return None,
        };
        let segmentation = kind.map(|kind| Segmentation {
            kind,
            size: self.gso_size.get(),
            has_ecn: self.gso_type & GSO_ECN != 0,
        });
        Some(Offload {
            checksum,
            segmentation,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(start: u16, offset: u16, size: u16, kind in 0u8..4, has_ecn: bool, has_checksum: bool) {
            let kind = match kind {
                0 => None,
                1 => Some(SegmentationKind::Tcp4),
                2 => Some(SegmentationKind::Tcp6),
                _ => Some(SegmentationKind::Udp),
            };
            let offload = Offload {
                checksum: has_checksum.then_some(PartialChecksum { start, offset }),
                segmentation: kind.map(|kind| Segmentation { kind, size, has_ecn }),
            };
            prop_assert_eq!(VnetHeader::new(offload, 54).offload(), Some(offload));
        }

        #[test]
        fn any_bytes_are_read(bytes: [u8; VNET_HEADER_BYTES]) {
            let _ = VnetHeader::read_from_bytes(&bytes).unwrap().offload();
        }
    }
}
