//! Ethernet frames, with up to two VLAN tags (IEEE 802.3, 802.1Q).

use overlay_types::MacAddr;
use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of an untagged header.
pub const HEADER_BYTES: usize = 14;
/// IPv4.
pub const IPV4: u16 = 0x0800;
/// ARP.
pub const ARP: u16 = 0x0806;
/// Reverse ARP, which a migrated guest announces itself with.
pub const RARP: u16 = 0x8035;
/// IPv6.
pub const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const PROVIDER_VLAN: u16 = 0x88a8;

/// The fourteen bytes in front.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct EthernetHeader {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: U16,
}

impl EthernetHeader {
    /// A header.
    pub const fn new(destination: MacAddr, source: MacAddr, ethertype: u16) -> Self {
        Self {
            destination: destination.0,
            source: source.0,
            ethertype: U16::new(ethertype),
        }
    }
}

/// A frame that is long enough for its headers.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// To whom.
    pub destination: MacAddr,
    /// From whom.
    pub source: MacAddr,
    /// The outermost VLAN, if the frame is tagged.
    pub vlan: Option<u16>,
    /// What the payload is, tags skipped.
    pub ethertype: u16,
    /// What follows the headers.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The view of `bytes`, or none when they end too soon.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, mut payload) = EthernetHeader::ref_from_prefix(bytes).ok()?;
        let mut ethertype = header.ethertype.get();
        let mut vlan = None;
        for _ in 0..2 {
            if ethertype != VLAN && ethertype != PROVIDER_VLAN {
                break;
            }
            let (tag, rest) = payload.split_first_chunk::<4>()?;
            vlan = vlan.or(Some(u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff));
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            payload = rest;
        }
        Some(Self {
            destination: MacAddr(header.destination),
            source: MacAddr(header.source),
            vlan,
            ethertype,
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_are_skipped_and_the_outer_vlan_is_told() {
        let mut bytes = EthernetHeader::new(MacAddr([1; 6]), MacAddr([2; 6]), PROVIDER_VLAN)
            .as_bytes()
            .to_vec();
        bytes.extend([0x20, 7, 0x81, 0, 0, 9, 0x08, 0, 42]);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(
            (frame.vlan, frame.ethertype, frame.payload),
            (Some(7), IPV4, &[42][..])
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let frame = Frame::parse(&bytes);
            prop_assert_eq!(frame.is_none() , bytes.len() < HEADER_BYTES || (frame.is_none() && bytes.len() < HEADER_BYTES + 8));
        }
    }
}
