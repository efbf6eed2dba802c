//! IPv6 neighbour and router discovery (RFC 4861): what is asked, and the advertisements that we write.

use super::checksum;
use super::ethernet::{self, EthernetHeader, Frame, HEADER_BYTES};
use super::ip::{self, Ipv6Header, Packet};
use overlay_types::MacAddr;
use std::net::{IpAddr, Ipv6Addr};
use zerocopy::IntoBytes;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
/// Discovery packets with another hop limit were forwarded by a router and are void (RFC 4861 §7.1).
const HOP_LIMIT: u8 = 255;
/// Bytes of a frame that [`neighbour_advertisement`] makes.
pub const ADVERTISEMENT_FRAME_BYTES: usize =
    HEADER_BYTES + size_of::<Ipv6Header>() + ADVERTISEMENT_BYTES;
/// ICMPv6 header with flags, target, and one link-layer option.
const ADVERTISEMENT_BYTES: usize = 8 + 16 + 8;

/// One message of neighbour or router discovery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discovery {
    /// Who has `target`? From the unspecified address it is duplicate address detection (RFC 4862).
    NeighbourSolicitation {
        /// The asker's address, or unspecified.
        source: Ipv6Addr,
        /// The address asked for.
        target: Ipv6Addr,
        /// The asker's MAC, if it says so.
        source_mac: Option<MacAddr>,
    },
    /// `target` is at `target_mac`.
    NeighbourAdvertisement {
        /// The address told about.
        target: Ipv6Addr,
        /// Where it is, if it says so.
        target_mac: Option<MacAddr>,
        /// Whether it answers a question rather than announces.
        solicited: bool,
    },
    /// Is there a router?
    RouterSolicitation {
        /// The asker's address, or unspecified.
        source: Ipv6Addr,
    },
    /// I am a router.
    RouterAdvertisement {
        /// The router's link-local address.
        source: Ipv6Addr,
    },
}

impl Discovery {
    /// The discovery message in `frame`, if there is a sound one.
    pub fn in_frame(frame: &Frame<'_>) -> Option<Self> {
        if frame.ethertype != ethernet::IPV6 {
            return None;
        }
        let packet = Packet::parse_v6(frame.payload)?;
        let IpAddr::V6(source) = packet.source else {
            return None;
        };
        if packet.protocol != ip::ICMPV6 || packet.hop_limit != HOP_LIMIT {
            return None;
        }
        let (head, body) = packet.payload.split_first_chunk::<8>()?;
        match head[0] {
            NEIGHBOUR_SOLICITATION => {
                let (target, options) = body.split_first_chunk::<16>()?;
                let source_mac = link_layer_option(options, SOURCE_LINK_LAYER);
                Some(Self::NeighbourSolicitation {
                    source,
                    target: (*target).into(),
                    source_mac,
                })
            }
            NEIGHBOUR_ADVERTISEMENT => {
                let (target, options) = body.split_first_chunk::<16>()?;
                let target_mac = link_layer_option(options, TARGET_LINK_LAYER);
                Some(Self::NeighbourAdvertisement {
                    target: (*target).into(),
                    target_mac,
                    solicited: head[4] & 0x40 != 0,
                })
            }
            ROUTER_SOLICITATION => Some(Self::RouterSolicitation { source }),
            ROUTER_ADVERTISEMENT => Some(Self::RouterAdvertisement { source }),
            _ => None,
        }
    }
}

/// The first option of the given type that holds a MAC. Each option has a length in units of 8 bytes, never 0.
fn link_layer_option(mut options: &[u8], wanted: u8) -> Option<MacAddr> {
    while let [kind, units, ..] = *options {
        let len = usize::from(units) * 8;
        if len == 0 || len > options.len() {
            return None;
        }
        if kind == wanted && len == 8 {
            return options[2..8].try_into().ok().map(MacAddr);
        }
        options = &options[len..];
    }
    None
}

/// The frame that tells `to` that `target` is at `mac`. An asker without an address (duplicate detection) is told
/// through the all-nodes group, unsolicited, as RFC 4861 §7.2.4 asks.
pub fn neighbour_advertisement(
    target: Ipv6Addr,
    mac: MacAddr,
    to: MacAddr,
    to_ip: Ipv6Addr,
) -> [u8; ADVERTISEMENT_FRAME_BYTES] {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let (to, to_ip, flags) = if to_ip.is_unspecified() {
        (MacAddr([0x33, 0x33, 0, 0, 0, 1]), all_nodes, 0x20)
    } else {
        (to, to_ip, 0x60)
    };
    let mut icmp = [0; ADVERTISEMENT_BYTES];
    icmp[0] = NEIGHBOUR_ADVERTISEMENT;
    icmp[4] = flags; // solicited and override
    icmp[8..24].copy_from_slice(&target.octets());
    icmp[24] = TARGET_LINK_LAYER;
    icmp[25] = 1;
    icmp[26..32].copy_from_slice(&mac.0);
    let sum = icmpv6_checksum(target, to_ip, &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = [0; ADVERTISEMENT_FRAME_BYTES];
    let (ethernet_part, rest) = frame.split_at_mut(HEADER_BYTES);
    let (ip_part, icmp_part) = rest.split_at_mut(size_of::<Ipv6Header>());
    ethernet_part.copy_from_slice(EthernetHeader::new(to, mac, ethernet::IPV6).as_bytes());
    ip_part.copy_from_slice(
        Ipv6Header::new(
            ip::ICMPV6,
            HOP_LIMIT,
            target,
            to_ip,
            ADVERTISEMENT_BYTES as u16,
        )
        .as_bytes(),
    );
    icmp_part.copy_from_slice(&icmp);
    frame
}

/// The checksum of an ICMPv6 message with its pseudo-header (RFC 8200 §8.1); the message's own field is zero.
pub fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let len = (message.len() as u32).to_be_bytes();
    checksum::internet(&[
        &source.octets(),
        &destination.octets(),
        &len,
        &[0, 0, 0, ip::ICMPV6],
        message,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_advertisement_is_sound_and_reads_back() {
        let target = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);
        let asker = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
        let bytes = neighbour_advertisement(target, MacAddr([2; 6]), MacAddr([4; 6]), asker);
        let sliced = etherparse::SlicedPacket::from_ethernet(&bytes).unwrap();
        let Some(etherparse::TransportSlice::Icmpv6(icmp)) = sliced.transport else {
            panic!("not ICMPv6")
        };
        assert!(icmp.is_checksum_valid(asker_source(target), asker.octets()));
        assert_eq!(
            Discovery::in_frame(&Frame::parse(&bytes).unwrap()),
            Some(Discovery::NeighbourAdvertisement {
                target,
                target_mac: Some(MacAddr([2; 6])),
                solicited: true
            })
        );
    }

    fn asker_source(addr: Ipv6Addr) -> [u8; 16] {
        addr.octets()
    }

    #[test]
    fn duplicate_detection_is_answered_to_all_nodes() {
        let bytes = neighbour_advertisement(
            Ipv6Addr::LOCALHOST,
            MacAddr([2; 6]),
            MacAddr([4; 6]),
            Ipv6Addr::UNSPECIFIED,
        );
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.destination, MacAddr([0x33, 0x33, 0, 0, 0, 1]));
        assert!(matches!(
            Discovery::in_frame(&frame),
            Some(Discovery::NeighbourAdvertisement {
                solicited: false,
                ..
            })
        ));
    }

    proptest! {
        #[test]
        fn any_options_are_read_without_panic(options in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = link_layer_option(&options, SOURCE_LINK_LAYER);
        }
    }
}
