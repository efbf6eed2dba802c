//! What the switch needs to know of a frame, read once where it enters. What to do about it is up to the stages.

use crate::wire::arp::{self, ArpPacket};
use overlay_types::MacAddr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Destination, source and type of an Ethernet frame.
const ETHERNET_BYTES: usize = 14;
/// IPv6 extension headers that are walked through; more are not seen in practice, and refused.
const EXTENSIONS_MAX: usize = 6;

/// One frame as the switch sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whom it is for.
    pub dst: MacAddr,
    /// Who sent it.
    pub src: MacAddr,
    /// What it carries.
    pub content: Content,
}

/// What a frame carries, as far as the switch cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// ARP (RFC 826) for IPv4 over Ethernet.
    Arp(ArpPacket),
    /// A neighbour solicitation (RFC 4861).
    NeighborSolicitation {
        /// Who asks; unspecified for duplicate address detection.
        source: Ipv6Addr,
        /// Whom it looks for.
        target: Ipv6Addr,
        /// The asker's Ethernet address by its own word.
        link_layer: Option<MacAddr>,
    },
    /// A neighbour advertisement.
    NeighborAdvertisement {
        /// The IPv6 source.
        source: Ipv6Addr,
        /// Whose address it advertises.
        target: Ipv6Addr,
        /// The Ethernet address that it advertises.
        link_layer: Option<MacAddr>,
    },
    /// A router solicitation, from this source.
    RouterSolicitation(Ipv6Addr),
    /// A router advertisement, from this source.
    RouterAdvertisement(Ipv6Addr),
    /// A DHCP client speaks to a server (v4 or v6), from this source.
    DhcpToServer(IpAddr),
    /// A DHCP server speaks to a client (v4 or v6), from this source.
    DhcpToClient(IpAddr),
    /// Multicast DNS (RFC 6762), from this source.
    Mdns(IpAddr),
    /// Any other IP packet, from this source.
    Ip(IpAddr),
    /// Anything else, VLAN-tagged frames included: their addresses are not this network's.
    Other,
}

impl Facts {
    /// Reads a frame; `None` when it is shorter than it says, or its source cannot be a station.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let dst = mac_at(frame, 0)?;
        let src = mac_at(frame, 6)?;
        let payload = frame.get(ETHERNET_BYTES..)?;
        if !src.is_station() {
            return None;
        }
        let content = match u16_at(frame, 12)? {
            0x0806 => Content::Arp(arp_packet(payload)?),
            0x0800 => ipv4(payload)?,
            0x86dd => ipv6(payload)?,
            _ => Content::Other,
        };
        Some(Self { dst, src, content })
    }

    /// The IP source of the packet inside, unless that is "nobody yet".
    pub fn source_ip(&self) -> Option<IpAddr> {
        let ip = match self.content {
            Content::Arp(_) | Content::Other => return None,
            Content::NeighborSolicitation { source, .. }
            | Content::NeighborAdvertisement { source, .. } => source.into(),
            Content::RouterSolicitation(source) | Content::RouterAdvertisement(source) => {
                source.into()
            }
            Content::DhcpToServer(source)
            | Content::DhcpToClient(source)
            | Content::Mdns(source)
            | Content::Ip(source) => source,
        };
        (!ip.is_unspecified()).then_some(ip)
    }

    /// "This address is at that MAC": what ARP and neighbour discovery would make others believe.
    pub fn claim(&self) -> Option<(IpAddr, MacAddr)> {
        match self.content {
            Content::Arp(arp) => (!arp.sender_ip().is_unspecified())
                .then_some((arp.sender_ip().into(), arp.sender_mac())),
            Content::NeighborSolicitation {
                source, link_layer, ..
            } => (!source.is_unspecified())
                .then_some((source.into(), link_layer.unwrap_or(self.src))),
            Content::NeighborAdvertisement {
                target, link_layer, ..
            } => Some((target.into(), link_layer.unwrap_or(self.src))),
            _ => None,
        }
    }
}

fn arp_packet(payload: &[u8]) -> Option<ArpPacket> {
    let packet = ArpPacket::parse(payload)?;
    matches!(packet.operation(), arp::REQUEST | arp::REPLY).then_some(*packet)
}

fn ipv4(packet: &[u8]) -> Option<Content> {
    let &first = packet.first()?;
    let header_bytes = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_bytes < 20 || packet.len() < header_bytes {
        return None;
    }
    let source = ipv4_at(packet, 12)?.into();
    let is_first_fragment = u16_at(packet, 6)? & 0x1fff == 0;
    if packet[9] == 17 && is_first_fragment {
        return Some(match u16_at(packet, header_bytes + 2)? {
            67 => Content::DhcpToServer(source),
            68 => Content::DhcpToClient(source),
            5353 => Content::Mdns(source),
            _ => Content::Ip(source),
        });
    }
    Some(Content::Ip(source))
}

fn ipv6(packet: &[u8]) -> Option<Content> {
    if packet.len() < 40 || packet[0] >> 4 != 6 {
        return None;
    }
    let source = ipv6_at(packet, 8)?;
    let (mut next, mut at, mut fragment) = (packet[6], 40, false);
    for _ in 0..EXTENSIONS_MAX {
        match next {
            // Hop-by-hop, routing and destination options say their length in units of 8 bytes after the first 8.
            0 | 43 | 60 => {
                next = *packet.get(at)?;
                at += (usize::from(*packet.get(at + 1)?) + 1) * 8;
            }
            44 => {
                next = *packet.get(at)?;
                if u16_at(packet, at + 2)? >> 3 != 0 {
                    return Some(Content::Ip(source.into())); // a later fragment: its beginning was judged
                }
                (fragment, at) = (true, at + 8);
            }
            58 => {
                let content = icmpv6(source, packet.get(at..)?)?;
                // Neighbour discovery in fragments is how RA guards are evaded; RFC 6980 forbids it.
                return (!fragment || content == Content::Ip(source.into())).then_some(content);
            }
            17 => {
                return Some(match u16_at(packet, at + 2)? {
                    547 => Content::DhcpToServer(source.into()),
                    546 => Content::DhcpToClient(source.into()),
                    5353 => Content::Mdns(source.into()),
                    _ => Content::Ip(source.into()),
                });
            }
            _ => return Some(Content::Ip(source.into())),
        }
    }
    None
}

fn icmpv6(source: Ipv6Addr, message: &[u8]) -> Option<Content> {
    Some(match *message.first()? {
        133 => Content::RouterSolicitation(source),
        134 => Content::RouterAdvertisement(source),
        135 => Content::NeighborSolicitation {
            source,
            target: ipv6_at(message, 8)?,
            link_layer: link_layer(message.get(24..)?, 1)?,
        },
        136 => Content::NeighborAdvertisement {
            source,
            target: ipv6_at(message, 8)?,
            link_layer: link_layer(message.get(24..)?, 2)?,
        },
        _ => Content::Ip(source.into()),
    })
}

/// Finds the link-layer address option of this type; `None` when the options are malformed.
fn link_layer(mut options: &[u8], wanted: u8) -> Option<Option<MacAddr>> {
    while let [kind, units, ..] = *options {
        let bytes = usize::from(units) * 8;
        if bytes == 0 || options.len() < bytes {
            return None;
        }
        if kind == wanted {
            return mac_at(options, 2).map(Some);
        }
        options = &options[bytes..];
    }
    Some(None)
}

fn mac_at(bytes: &[u8], at: usize) -> Option<MacAddr> {
    bytes.get(at..at + 6)?.try_into().ok().map(MacAddr)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)?
        .try_into()
        .ok()
        .map(u16::from_be_bytes)
}

fn ipv4_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn ipv6_at(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::testing::*;
    use proptest::prelude::*;

    #[test]
    fn dhcp_is_told_by_its_ports() {
        let to_server = udp_frame(
            A,
            MacAddr::BROADCAST,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            68,
            67,
        );
        let content = Facts::parse(&to_server).unwrap().content;
        assert_eq!(content, Content::DhcpToServer(Ipv4Addr::UNSPECIFIED.into()));
        let to_client = udp_frame(A, B, IP_A, IP_B, 67, 68);
        assert_eq!(
            Facts::parse(&to_client).unwrap().content,
            Content::DhcpToClient(IP_A.into())
        );
        let dns = udp_frame(A, B, IP_A, IP_B, 4000, 53);
        assert_eq!(Facts::parse(&dns).unwrap().source_ip(), Some(IP_A.into()));
    }

    #[test]
    fn a_router_advertisement_behind_extension_headers_is_still_seen_and_a_fragmented_one_refused()
    {
        let mut frame = icmpv6_frame(
            A,
            B,
            "fe80::1".parse().unwrap(),
            &[134, 0, 0, 0, 0, 0, 0, 0],
        );
        frame[14 + 6] = 60; // destination options first
        frame.splice(54..54, [58, 0, 1, 4, 0, 0, 0, 0]);
        assert!(matches!(
            Facts::parse(&frame).unwrap().content,
            Content::RouterAdvertisement(_)
        ));
        frame[14 + 6] = 44; // the same bytes as a fragment header
        frame[56..58].copy_from_slice(&[0, 1]);
        assert_eq!(Facts::parse(&frame), None);
    }

    #[test]
    fn a_group_address_is_no_source() {
        assert_eq!(
            Facts::parse(&udp_frame(MacAddr::BROADCAST, B, IP_A, IP_B, 1, 2)),
            None
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in proptest::option::of(prop_oneof![Just(0x0806u16), Just(0x0800), Just(0x86dd)]),
        ) {
            if let (Some(kind), true) = (kind, bytes.len() > 14) {
                bytes[12..14].copy_from_slice(&kind.to_be_bytes());
                bytes[6] &= 0xfe;
            }
            if let Some(facts) = Facts::parse(&bytes) {
                prop_assert!(facts.src.is_station());
            }
        }
    }
}
