//! ARP over Ethernet for IPv4 (RFC 826).

use super::ethernet::{self, EthernetHeader, HEADER_BYTES};
use overlay_types::MacAddr;
use std::net::Ipv4Addr;
use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Who has this address?
pub const REQUEST: u16 = 1;
/// I have.
pub const REPLY: u16 = 2;
/// Bytes of a frame that [`frame`] makes.
pub const FRAME_BYTES: usize = HEADER_BYTES + size_of::<ArpPacket>();

/// An ARP packet for Ethernet and IPv4.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct ArpPacket {
    hardware_type: U16,
    protocol_type: U16,
    hardware_len: u8,
    protocol_len: u8,
    operation: U16,
    sender_mac: [u8; 6],
    sender_ip: [u8; 4],
    target_mac: [u8; 6],
    target_ip: [u8; 4],
}

impl ArpPacket {
    /// A packet.
    pub fn new(operation: u16, sender: (MacAddr, Ipv4Addr), target: (MacAddr, Ipv4Addr)) -> Self {
        Self {
            hardware_type: U16::new(1),
            protocol_type: U16::new(ethernet::IPV4),
            hardware_len: 6,
            protocol_len: 4,
            operation: U16::new(operation),
            sender_mac: sender.0.0,
            sender_ip: sender.1.octets(),
            target_mac: target.0.0,
            target_ip: target.1.octets(),
        }
    }

    /// The view of an Ethernet payload, if it is ARP for Ethernet and IPv4.
    pub fn parse(payload: &[u8]) -> Option<&Self> {
        let packet = Self::ref_from_prefix(payload).ok()?.0;
        let usual = packet.hardware_type.get() == 1
            && packet.protocol_type.get() == ethernet::IPV4
            && packet.hardware_len == 6
            && packet.protocol_len == 4;
        usual.then_some(packet)
    }

    /// [`REQUEST`] or [`REPLY`].
    pub const fn operation(&self) -> u16 {
        self.operation.get()
    }

    /// The sender's MAC as it says itself.
    pub const fn sender_mac(&self) -> MacAddr {
        MacAddr(self.sender_mac)
    }

    /// The sender's address; unspecified in an RFC 5227 probe.
    pub const fn sender_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.sender_ip)
    }

    /// The target's MAC; zeros in a request.
    pub const fn target_mac(&self) -> MacAddr {
        MacAddr(self.target_mac)
    }

    /// The address asked for.
    pub const fn target_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from_octets(self.target_ip)
    }

    /// Whether it announces its sender rather than asks (RFC 5227 §1.1): sender and target address are the same.
    pub fn is_gratuitous(&self) -> bool {
        self.sender_ip == self.target_ip
    }
}

/// A whole frame to `destination` around `packet`, sent by the packet's sender.
pub fn frame(destination: MacAddr, packet: &ArpPacket) -> [u8; FRAME_BYTES] {
    let mut bytes = [0; FRAME_BYTES];
    bytes[..HEADER_BYTES].copy_from_slice(
        EthernetHeader::new(destination, packet.sender_mac(), ethernet::ARP).as_bytes(),
    );
    bytes[HEADER_BYTES..].copy_from_slice(packet.as_bytes());
    bytes
}

/// The frame that answers `request` with `mac`.
pub fn reply_to(request: &ArpPacket, mac: MacAddr) -> [u8; FRAME_BYTES] {
    let packet = ArpPacket::new(
        REPLY,
        (mac, request.target_ip()),
        (request.sender_mac(), request.sender_ip()),
    );
    frame(request.sender_mac(), &packet)
}

#[cfg(test)]
mod tests {
    use super::super::ethernet::Frame;
    use super::*;
    use etherparse::{ArpOperation, EtherPayloadSlice, SlicedPacket};

    #[test]
    fn a_reply_is_what_another_codec_reads_as_one() {
        let asker = (MacAddr([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 77, 0, 1));
        let request = ArpPacket::new(
            REQUEST,
            asker,
            (MacAddr::default(), Ipv4Addr::new(10, 77, 0, 9)),
        );
        let bytes = reply_to(&request, MacAddr([2, 0, 0, 0, 0, 9]));
        let sliced = SlicedPacket::from_ethernet(&bytes).unwrap();
        let Some(etherparse::NetSlice::Arp(arp)) = sliced.net else {
            panic!(
                "not ARP: {:?}",
                sliced
                    .ether_payload()
                    .map(|p: EtherPayloadSlice<'_>| p.ether_type)
            )
        };
        assert_eq!(arp.operation(), ArpOperation::REPLY);
        assert_eq!(
            (arp.sender_hw_addr(), arp.target_protocol_addr()),
            (&[2, 0, 0, 0, 0, 9][..], &[10, 77, 0, 1][..])
        );
        assert_eq!(Frame::parse(&bytes).unwrap().destination, asker.0);
    }
}
