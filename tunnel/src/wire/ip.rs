//! The addresses and ports of IPv4, IPv6 and UDP: as much as the switch asks about. ICMPv6 is in [`super::ndp`].

use super::ethernet::{self, Frame};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// UDP (RFC 768).
pub const UDP: u8 = 17;
/// ICMPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;

/// The fixed part of an IPv4 header (RFC 791).
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct Ipv4Header {
    version_and_length: u8,
    service: u8,
    total_len: U16,
    id: U16,
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

/// The fixed part of an IPv6 header (RFC 8200).
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct Ipv6Header {
    version_class_flow: U32,
    payload_len: U16,
    next_header: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

impl Ipv6Header {
    /// A header in front of `payload_len` bytes of `next_header`.
    pub fn new(
        next_header: u8,
        hop_limit: u8,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        payload_len: u16,
    ) -> Self {
        Self {
            version_class_flow: U32::new(6 << 28),
            payload_len: U16::new(payload_len),
            next_header,
            hop_limit,
            source: source.octets(),
            destination: destination.octets(),
        }
    }
}

/// An IP packet's addresses and what it carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// From whom.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// Protocol, or IPv6's next header; extension headers are not followed.
    pub protocol: u8,
    /// IPv6 hop limit or IPv4 TTL.
    pub hop_limit: u8,
    /// Whether this is a later fragment, whose payload has no transport header.
    pub later_fragment: bool,
    /// What follows the header, without Ethernet padding.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The IP packet in `frame`, if there is a sound one.
    pub fn in_frame(frame: &Frame<'a>) -> Option<Self> {
        match frame.ethertype {
            ethernet::IPV4 => Self::parse_v4(frame.payload),
            ethernet::IPV6 => Self::parse_v6(frame.payload),
            _ => None,
        }
    }

    /// Reads an IPv4 packet.
    pub fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let header = Ipv4Header::ref_from_prefix(bytes).ok()?.0;
        let header_len = usize::from(header.version_and_length & 0x0f) * 4;
        let total_len = usize::from(header.total_len.get());
        if header.version_and_length >> 4 != 4
            || header_len < size_of::<Ipv4Header>()
            || total_len < header_len
        {
            return None;
        }
        Some(Self {
            source: Ipv4Addr::from(header.source).into(),
            destination: Ipv4Addr::from(header.destination).into(),
            protocol: header.protocol,
            hop_limit: header.ttl,
            later_fragment: header.fragment.get() & 0x1fff != 0,
            payload: bytes.get(header_len..total_len)?,
        })
    }

    /// Reads an IPv6 packet.
    pub fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = Ipv6Header::ref_from_prefix(bytes).ok()?;
        if header.version_class_flow.get() >> 28 != 6 {
            return None;
        }
        Some(Self {
            source: Ipv6Addr::from(header.source).into(),
            destination: Ipv6Addr::from(header.destination).into(),
            protocol: header.next_header,
            hop_limit: header.hop_limit,
            later_fragment: false,
            payload: rest.get(..usize::from(header.payload_len.get()))?,
        })
    }

    /// The UDP datagram that it carries.
    pub fn udp(&self) -> Option<UdpView<'a>> {
        let carries = self.protocol == UDP && !self.later_fragment;
        carries.then(|| UdpView::parse(self.payload)).flatten()
    }
}

/// A UDP header and what follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpView<'a> {
    /// From which port.
    pub source_port: u16,
    /// To which port.
    pub destination_port: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> UdpView<'a> {
    /// Reads a UDP datagram; one cut by fragmentation gives as much as there is.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<8>()?;
        let len = usize::from(u16::from_be_bytes([header[4], header[5]])).checked_sub(8)?;
        Some(Self {
            source_port: u16::from_be_bytes([header[0], header[1]]),
            destination_port: u16::from_be_bytes([header[2], header[3]]),
            payload: &rest[..len.min(rest.len())],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    #[test]
    fn addresses_and_ports_are_those_that_another_codec_wrote() {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(68, 67)
            .write(&mut bytes, b"hello")
            .unwrap();
        bytes.extend([0; 9]); // Ethernet padding is not payload
        let packet = Packet::in_frame(&Frame::parse(&bytes).unwrap()).unwrap();
        let udp = packet.udp().unwrap();
        assert_eq!(packet.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(
            (udp.source_port, udp.destination_port, udp.payload),
            (68, 67, &b"hello"[..])
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), v4: bool) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = if v4 { 0x45 } else { 0x60 };
            }
            for packet in [Packet::parse_v4(&bytes), Packet::parse_v6(&bytes)].into_iter().flatten() {
                let _ = packet.udp();
                prop_assert!(packet.payload.len() <= bytes.len());
            }
        }
    }
}
