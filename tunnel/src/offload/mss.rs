//! Lowers the segment size that a TCP connection's first packets offer (RFC 9293 §3.7.1), as routers before a narrower link
//! do, so that a segment fits one datagram of the path. A frame in halves is lost with either of them, twice as often.

use super::layout::{
    IPV4_BYTES_MIN, IPV6_BYTES, PROTOCOL_TCP, TCP_BYTES_MIN, TCP_CHECKSUM_OFFSET, network,
};

/// What every host takes (RFC 9293, MUST-15); nothing lower is ever asked for.
const MSS_MIN: u16 = 536;

const SYN: u8 = 0x02;
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
const MSS_BYTES: usize = 4;

/// Lowers the MSS in a frame with a TCP SYN so that the segments sent in answer make frames of `len_max` bytes at most.
/// Everything else is left alone. `is_partial` says that the checksum does not cover the header yet.
pub fn clamp(frame: &mut [u8], is_partial: bool, len_max: usize) {
    let Some((transport, at)) = find(frame) else {
        return;
    };
    // Options of later segments are taken off what is offered here (RFC 6691).
    let room = len_max.saturating_sub(transport + TCP_BYTES_MIN);
    let wanted = u16::try_from(room).unwrap_or(u16::MAX).max(MSS_MIN);
    let offered = u16::from_be_bytes([frame[at], frame[at + 1]]);
    if offered <= wanted {
        return;
    }
    frame[at..at + 2].copy_from_slice(&wanted.to_be_bytes());
    if !is_partial {
        // A word that begins at an odd place counts with its bytes swapped (RFC 1071 §2).
        let is_odd = (at - transport) % 2 == 1;
        let counted = |word: u16| if is_odd { word.swap_bytes() } else { word };
        let sum_at = transport + usize::from(TCP_CHECKSUM_OFFSET);
        super::checksum::change_sum(frame, sum_at, counted(offered), counted(wanted));
    }
}

/// Where the TCP header of a SYN begins, and where the value of its MSS option does.
fn find(frame: &[u8]) -> Option<(usize, usize)> {
    let (network, is_v6) = network(frame)?;
    let ip = &frame[network..];
    let (protocol, ip_bytes) = if is_v6 {
        (*ip.get(6)?, IPV6_BYTES)
    } else {
        let fragment = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x3fff;
        if fragment != 0 {
            return None;
        }
        (*ip.get(9)?, usize::from(ip[0] & 0xf) * 4)
    };
    if ip_bytes < IPV4_BYTES_MIN {
        return None;
    }
    let transport = network + ip_bytes;
    let tcp = frame.get(transport..)?;
    if protocol != PROTOCOL_TCP || tcp.get(13)? & SYN == 0 {
        return None;
    }
    let header = tcp.get(..usize::from(tcp[12] >> 4) * 4)?;
    let mut at = TCP_BYTES_MIN;
    loop {
        match *header.get(at)? {
            END_OF_OPTIONS => return None,
            NO_OPERATION => at += 1,
            kind => {
                let bytes = usize::from(*header.get(at + 1)?);
                let end = at + bytes;
                if bytes < 2 || end > header.len() {
                    return None;
                }
                if kind == MSS {
                    return (bytes == MSS_BYTES).then_some((transport, transport + at + 2));
                }
                at = end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum::internet;
    use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, TcpHeader};
    use proptest::prelude::*;

    /// A SYN with its checksum completed, and the places of its TCP header.
    fn syn(is_v6: bool, options: &[u8]) -> (Vec<u8>, usize) {
        let mut tcp = TcpHeader::new(40_000, 22, 7, 64_000);
        tcp.syn = true;
        tcp.set_options_raw(options).unwrap();
        let (ip, ether_type) = if is_v6 {
            let header = Ipv6Header {
                payload_length: tcp.header_len_u16(),
                next_header: IpNumber::TCP,
                hop_limit: 64,
                source: [1; 16],
                destination: [2; 16],
                ..Ipv6Header::default()
            };
            tcp.checksum = tcp.calc_checksum_ipv6(&header, &[]).unwrap();
            (header.to_bytes().to_vec(), EtherType::IPV6)
        } else {
            let header =
                Ipv4Header::new(tcp.header_len_u16(), 64, IpNumber::TCP, [1; 4], [2; 4]).unwrap();
            tcp.checksum = tcp.calc_checksum_ipv4(&header, &[]).unwrap();
            (header.to_bytes().to_vec(), EtherType::IPV4)
        };
        let ethernet = Ethernet2Header {
            source: [3; 6],
            destination: [4; 6],
            ether_type,
        };
        let transport = 14 + ip.len();
        (
            [&ethernet.to_bytes()[..], &ip, &tcp.to_bytes()].concat(),
            transport,
        )
    }

    /// The sum over the TCP header and its pseudo-header, which is zero when the checksum is right.
    fn sum(frame: &[u8], transport: usize, is_v6: bool) -> u16 {
        let addresses = if is_v6 {
            &frame[22..54]
        } else {
            &frame[26..34]
        };
        let length = (frame.len() - transport) as u16;
        internet(&[
            addresses,
            &length.to_be_bytes(),
            &[0, PROTOCOL_TCP],
            &frame[transport..],
        ])
    }

    #[test]
    fn a_syn_offers_what_fits_and_its_checksum_stays_right() {
        // The option at an even place, and at an odd one.
        for options in [
            &[2, 4, 5, 0xb4, 1, 3, 3, 7][..],
            &[1, 2, 4, 5, 0xb4, 1, 1, 1],
        ] {
            for is_v6 in [false, true] {
                let (mut frame, transport) = syn(is_v6, options);
                clamp(&mut frame, false, 1420);
                let at = transport + 20 + usize::from(options[0] == 1) + 2;
                let offered = u16::from_be_bytes([frame[at], frame[at + 1]]);
                assert_eq!(usize::from(offered), 1420 - transport - 20);
                assert_eq!(sum(&frame, transport, is_v6), 0);
            }
        }
    }

    #[test]
    fn a_partial_checksum_is_left_alone() {
        let (mut frame, transport) = syn(false, &[2, 4, 5, 0xb4]);
        let before = frame.clone();
        clamp(&mut frame, true, 1420);
        let sum_at = transport + 16;
        assert_ne!(frame, before);
        assert_eq!(frame[sum_at..sum_at + 2], before[sum_at..sum_at + 2]);
    }

    #[test]
    fn what_fits_and_what_is_no_syn_is_left_alone() {
        let (fits, transport) = syn(false, &[2, 4, 5, 0x28]);
        let mut no_syn = syn(false, &[2, 4, 5, 0xb4]).0;
        no_syn[transport + 13] = 0x10;
        let mut fragment = syn(false, &[2, 4, 5, 0xb4]).0;
        fragment[14 + 7] = 1;
        let no_mss = syn(true, &[1, 3, 3, 7]).0;
        for frame in [fits, no_syn, fragment, no_mss] {
            let mut clamped = frame.clone();
            clamp(&mut clamped, false, 1420);
            assert_eq!(clamped, frame);
        }
    }

    #[test]
    fn nothing_lower_than_every_host_takes_is_asked_for() {
        let (mut frame, transport) = syn(false, &[2, 4, 5, 0xb4]);
        clamp(&mut frame, false, 100);
        assert_eq!(frame[transport + 22..transport + 24], MSS_MIN.to_be_bytes());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_and_only_a_value_and_its_sum_change(
            mut frame in proptest::collection::vec(any::<u8>(), 0..120),
            is_tcp: bool, is_v6: bool, len_max in 0usize..2000,
        ) {
            if is_tcp && frame.len() > 60 {
                frame[12..15].copy_from_slice(if is_v6 { &[0x86, 0xdd, 0x60] } else { &[8, 0, 0x45] });
                (frame[20], frame[21], frame[23]) = if is_v6 { (6, 0, 0) } else { (0x40, 0, 6) };
                let transport = if is_v6 { 54 } else { 34 };
                if frame.len() > transport + 13 { frame[transport + 13] |= SYN; }
            }
            let before = frame.clone();
            clamp(&mut frame, false, len_max);
            let changed = before.iter().zip(&frame).filter(|(a, b)| a != b).count();
            prop_assert!(changed <= 4);
        }
    }
}
