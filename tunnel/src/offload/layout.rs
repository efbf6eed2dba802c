//! Where the headers of a TCP or UDP frame lie, whatever VLAN tags, IP options and extension headers it has.

use super::{Offload, SegmentationKind};

pub(super) const TCP_CHECKSUM_OFFSET: u16 = 16;
pub(super) const UDP_CHECKSUM_OFFSET: u16 = 6;

const ETHERNET_BYTES: usize = 14;
const TAG_BYTES: usize = 4;
/// Two are in use (IEEE 802.1ad).
const TAGS_MAX: usize = 2;
pub(super) const IPV4_BYTES_MIN: usize = 20;
const IPV4_CHECKSUM_AT: usize = 10;
pub(super) const IPV6_BYTES: usize = 40;
pub(super) const TCP_BYTES_MIN: usize = 20;
pub(super) const UDP_BYTES: usize = 8;
/// The least that a TCP segment of a super-frame carries, as Linux has it (`tcp_min_snd_mss`): a guest that says less wants
/// its 64 KiB to become as many packets.
const TCP_SIZE_MIN: u16 = 48;
pub(super) const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// Places in a frame that is or may become a super-frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Where the IP header begins.
    pub network: usize,
    /// Whether it is of version 6.
    pub is_v6: bool,
    /// Where the TCP or UDP header begins.
    pub transport: usize,
    /// Where the payload begins.
    pub payload: usize,
}

impl Layout {
    /// The layout of a frame with this to be done; `None` unless it is one whole TCP or UDP packet of the kind that
    /// `offload` says, with its checksum partial.
    pub fn of(frame: &[u8], offload: &Offload) -> Option<Self> {
        let (segmentation, checksum) = (offload.segmentation?, offload.checksum?);
        let (network, is_v6) = network(frame)?;
        let ip = frame.get(network..)?;
        let transport = usize::from(checksum.start);
        let is_udp = segmentation.kind == SegmentationKind::Udp;
        let protocol = if is_udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
        if is_v6 {
            // Extension headers in between were read by the kernel that says where the transport header is.
            let direct = *ip.get(6)? == protocol && transport == network + IPV6_BYTES;
            let extended = transport > network + IPV6_BYTES;
            if ip[0] >> 4 != 6 || !(direct || extended) {
                return None;
            }
        } else {
            let header_bytes = usize::from(ip.first()? & 0xf) * 4;
            let fragment = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x3fff;
            if ip[0] >> 4 != 4
                || header_bytes < IPV4_BYTES_MIN
                || transport != network + header_bytes
                || fragment != 0
                || *ip.get(9)? != protocol
            {
                return None;
            }
        }
        let (payload, checksum_offset) = if is_udp {
            (transport + UDP_BYTES, UDP_CHECKSUM_OFFSET)
        } else {
            let header_bytes = usize::from(frame.get(transport + 12)? >> 4) * 4;
            if header_bytes < TCP_BYTES_MIN {
                return None;
            }
            (transport + header_bytes, TCP_CHECKSUM_OFFSET)
        };
        let is_kind = match segmentation.kind {
            SegmentationKind::Tcp4 => !is_v6,
            SegmentationKind::Tcp6 => is_v6,
            SegmentationKind::Udp => true,
        };
        let size_min = if is_udp { 1 } else { TCP_SIZE_MIN };
        let is_sound = is_kind
            && checksum.offset == checksum_offset
            && segmentation.size >= size_min
            && payload <= frame.len();
        is_sound.then_some(Self {
            network,
            is_v6,
            transport,
            payload,
        })
    }

    /// Whether the payload of `frame` begins where that of `first` does, which has this layout; both are pieces of one
    /// super-frame, so that the rest of their headers is the sender's word.
    pub(super) fn has_payload_where(&self, first: &[u8], frame: &[u8]) -> bool {
        // UDP's header has one length; TCP's says its own here.
        let is_udp = self.payload == self.transport + UDP_BYTES;
        let data_offset = self.transport + 12;
        frame.len() > self.payload && (is_udp || first[data_offset] >> 4 == frame[data_offset] >> 4)
    }

    /// Whether a UDP frame is one whole datagram and nothing else, and its IP identification says nothing (RFC 6864 §4.1):
    /// cut off a super-frame, it would get another one.
    pub(super) fn is_one_datagram(&self, frame: &[u8]) -> bool {
        let at = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
        let ip_fits = if self.is_v6 {
            at(self.network + 4) == frame.len() - self.network - IPV6_BYTES
        } else {
            const DONT_FRAGMENT: u8 = 0x40;
            at(self.network + 2) == frame.len() - self.network
                && frame[self.network + 6] & DONT_FRAGMENT != 0
        };
        ip_fits && at(self.transport + 4) == frame.len() - self.transport
    }

    /// Whether a UDP frame has the headers of this one, but for lengths, identification and sums.
    pub(super) fn is_same_flow(&self, first: &[u8], frame: &[u8]) -> bool {
        if frame.len() < self.payload || !self.is_one_datagram(frame) {
            return false;
        }
        let same = |from: usize, to: usize| first[from..to] == frame[from..to];
        let (network, transport) = (self.network, self.transport);
        let ip = if self.is_v6 {
            same(network, network + 4) && same(network + 6, transport)
        } else {
            same(network, network + 2)
                && same(network + 6, network + 10)
                && same(network + 12, transport)
        };
        same(0, network) && ip && same(transport, transport + 4)
    }

    /// Writes the lengths of a frame of `len` bytes into its headers, in the frame's own and the pseudo-header's sum.
    /// `len_before` is what they say now.
    pub(super) fn set_len(
        &self,
        frame: &mut [u8],
        checksum: super::PartialChecksum,
        len_before: usize,
        len: usize,
    ) {
        let ip = &mut frame[self.network..];
        if self.is_v6 {
            let payload_bytes = (len - self.network - IPV6_BYTES) as u16;
            ip[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
        } else {
            let total_bytes = (len - self.network) as u16;
            super::checksum::change_word(ip, 2, total_bytes, IPV4_CHECKSUM_AT);
        }
        if checksum.offset == UDP_CHECKSUM_OFFSET {
            let udp_bytes = (len - self.transport) as u16;
            frame[self.transport + 4..self.transport + 6].copy_from_slice(&udp_bytes.to_be_bytes());
        }
        super::checksum::change_length(
            frame,
            checksum,
            len_before - self.transport,
            len - self.transport,
        );
    }

    /// Counts an IPv4 header's identification on, as each segment of a super-frame has the next one.
    pub(super) fn count_identification(&self, frame: &mut [u8], by: u16) {
        if !self.is_v6 {
            let ip = &mut frame[self.network..];
            let next = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(by);
            super::checksum::change_word(ip, 4, next, IPV4_CHECKSUM_AT);
        }
    }
}

/// Where the IP header begins, and whether its version is 6.
pub(super) fn network(frame: &[u8]) -> Option<(usize, bool)> {
    let mut at = ETHERNET_BYTES;
    for _ in 0..=TAGS_MAX {
        match frame.get(at - 2..at)? {
            [0x81, 0x00] | [0x88, 0xa8] => at += TAG_BYTES,
            [0x08, 0x00] => return Some((at, false)),
            [0x86, 0xdd] => return Some((at, true)),
            _ => return None,
        }
    }
    None
}
