//! Super-frames that no kernel of ours makes by itself: with VLAN tags and with options. They are put onto a guest's cable
//! as they are, for whoever forwards them to cut, and looked at where they leave towards a card that can do nothing.

use crate::{
    guests::two_guests,
    offloads::{switch_offloads_off, tshark},
    overlay::{eventually, lab, ping},
};
use anyhow::{Context, Result};
use cli::lab::Machine;
use etherparse::{
    EtherType, IpNumber, Ipv4Header, Ipv6Header, TcpHeader, TcpOptionElement, UdpHeader,
};
use std::{collections::BTreeMap, net::Ipv4Addr};
use tunnel::wire::checksum;

/// Bytes of payload in each segment.
const SIZE: u16 = 1400;
/// Segments of each super-frame; the last is shorter.
const SEGMENTS: usize = 12;
/// What nobody listens at; what the far guest answers comes from there.
const DISCARD: u16 = 9;
const TAG: [u8; 4] = [0x81, 0, 0, 5];

/// Sends frames that have `struct virtio_net_hdr` in front (packet(7), `PACKET_VNET_HDR`).
const SEND: &str = "
import socket, sys
card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
card.setsockopt(263, 15, 1)
card.bind((sys.argv[1], 0))
for headers in sys.argv[3:]:
    card.send(bytes.fromhex(headers) + bytes(int(sys.argv[2])))
";

/// How a super-frame looks.
#[derive(Clone, Copy)]
struct Shape {
    /// Its source port, by which it is known again.
    port: u16,
    is_v6: bool,
    is_udp: bool,
    tags: usize,
    has_ip_options: bool,
}

const SHAPES: [Shape; 7] = [
    shape(1001, false, false, 1, false),
    shape(1002, true, false, 1, false),
    shape(1003, false, true, 1, false),
    shape(1004, false, false, 0, true),
    shape(1005, false, false, 1, true),
    shape(1006, true, false, 2, false),
    shape(1007, true, true, 0, false),
];

const fn shape(port: u16, is_v6: bool, is_udp: bool, tags: usize, has_ip_options: bool) -> Shape {
    Shape {
        port,
        is_v6,
        is_udp,
        tags,
        has_ip_options,
    }
}

const fn payload_bytes() -> usize {
    SIZE as usize * (SEGMENTS - 1) + 100
}

/// The headers of the super-frame, its own in front, as a card with offloads is given it: the checksum is the
/// pseudo-header's sum.
fn headers(shape: Shape, macs: &[u8], addresses: [Ipv4Addr; 2]) -> Result<Vec<u8>> {
    let protocol = if shape.is_udp {
        IpNumber::UDP
    } else {
        IpNumber::TCP
    };
    let mut transport = if shape.is_udp {
        let len = payload_bytes() + UdpHeader::LEN;
        UdpHeader {
            source_port: shape.port,
            destination_port: DISCARD,
            length: len as u16,
            checksum: 0,
        }
        .to_bytes()
        .to_vec()
    } else {
        let mut tcp = TcpHeader::new(shape.port, DISCARD, 1, 4096);
        (tcp.ack, tcp.psh) = (true, true);
        tcp.set_options(&[TcpOptionElement::Timestamp(7, 8)])?;
        tcp.to_bytes().to_vec()
    };
    let offset = if shape.is_udp { 6 } else { 16 };
    let len = (transport.len() + payload_bytes()) as u16;
    let tail = [&[0, protocol.0][..], &len.to_be_bytes()].concat();
    let (ether_type, network, pseudo_sum) = if shape.is_v6 {
        let header = Ipv6Header {
            payload_length: len,
            next_header: protocol,
            hop_limit: 64,
            source: [0xfd; 16],
            destination: [0xfe; 16],
            ..Ipv6Header::default()
        };
        let sum = !checksum::internet(&[&header.source, &header.destination, &tail]);
        (EtherType::IPV6, header.to_bytes().to_vec(), sum)
    } else {
        let [from, to] = addresses.map(|address| address.octets());
        let mut header = Ipv4Header::new(len, 64, protocol, from, to)?;
        header.dont_fragment = true;
        if shape.has_ip_options {
            header.options = [0x94, 4, 0, 0].into(); // router alert (RFC 2113)
            header.set_payload_len(len.into())?;
        }
        header.header_checksum = header.calc_header_checksum();
        let sum = !checksum::internet(&[&from, &to, &tail]);
        (EtherType::IPV4, header.to_bytes().to_vec(), sum)
    };
    transport[offset..offset + 2].copy_from_slice(&pseudo_sum.to_be_bytes());
    let mut frame = macs.to_vec();
    frame.extend(TAG.repeat(shape.tags));
    frame.extend(ether_type.0.to_be_bytes());
    frame.extend(network);
    let start = frame.len();
    frame.extend(&transport);
    let header_bytes = frame.len();
    let kind = match (shape.is_udp, shape.is_v6) {
        (true, _) => 5,
        (false, false) => 1,
        (false, true) => 4,
    };
    let mut with_header = vec![1, kind];
    for field in [header_bytes as u16, SIZE, start as u16, offset as u16] {
        with_header.extend(field.to_ne_bytes());
    }
    with_header.extend(frame);
    Ok(with_header)
}

fn mac(machine: &Machine) -> Result<Vec<u8>> {
    let text = machine.run(&["cat", "/sys/class/net/eth0/address"])?;
    text.trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).context("a byte of a MAC"))
        .collect()
}

fn send(from: &Machine, macs: &[u8], addresses: [Ipv4Addr; 2]) -> Result<()> {
    let payload = payload_bytes().to_string();
    let mut words = ["python3", "-c", SEND, "eth0", &payload]
        .map(str::to_owned)
        .to_vec();
    for shape in SHAPES {
        let hexadecimal = headers(shape, macs, addresses)?
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        words.push(hexadecimal);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    from.run(&words).map(drop)
}

#[test]
fn tagged_and_optioned_super_frames_leave_as_whole_frames_with_right_checksums() {
    let lab = lab("tagged");
    let stage = two_guests(&lab);
    eventually(|| ping(&stage.near, &stage.far_address)).unwrap();
    switch_offloads_off(&stage.far);
    switch_offloads_off(stage.nodes[1].machine());
    let macs = [mac(&stage.far).unwrap(), mac(&stage.near).unwrap()].concat();
    let capture = stage.far.capture("eth0", "", 65_535).unwrap();
    let near_node = stage.nodes[0].machine();
    let taps = near_node
        .sh("ls /sys/class/net/br0/brif | grep -v '^p-'")
        .unwrap();
    let at_tap = near_node.capture(taps.trim(), "", 65_535).unwrap();
    // The near node lets its guest speak with its own address only.
    let addresses = [&stage.near_address, &stage.far_address].map(|text| text.parse().unwrap());
    send(&stage.near, &macs, addresses).unwrap();
    let whole = at_tap.stop().unwrap();
    let whole = whole
        .iter()
        .filter(|frame| frame.bytes.len() > payload_bytes());
    assert_eq!(
        whole.count(),
        SHAPES.len(),
        "super-frames reach the TAP as such"
    );
    let file = capture.into_file().unwrap();

    let fields = [
        "tcp.srcport",
        "udp.srcport",
        "tcp.len",
        "udp.length",
        "tcp.checksum.status",
        "udp.checksum.status",
        "ip.checksum.status",
        "vlan.id",
        "ip.hdr_len",
    ];
    let said = tshark(&stage.far, &file, "tcp || udp", &fields).unwrap();
    let mut seen: BTreeMap<u16, (usize, usize)> = BTreeMap::new();
    for line in said.lines() {
        let cells: Vec<&str> = line.split('\t').collect();
        let port: u16 = [cells[0], cells[1]].concat().parse().unwrap_or_default();
        let Some(shape) = SHAPES.iter().find(|shape| shape.port == port) else {
            continue; // what the guests say by themselves
        };
        let bytes: usize = if shape.is_udp {
            cells[3].parse::<usize>().unwrap() - UdpHeader::LEN
        } else {
            cells[2].parse().unwrap()
        };
        assert_eq!([cells[4], cells[5]].concat(), "1", "the checksum of {line}");
        assert_eq!(
            cells[6],
            if shape.is_v6 { "" } else { "1" },
            "the IP checksum of {line}"
        );
        assert_eq!(
            cells[7],
            vec!["5"; shape.tags].join(","),
            "the tags of {line}"
        );
        let ip_bytes = if shape.is_v6 {
            ""
        } else if shape.has_ip_options {
            "24"
        } else {
            "20"
        };
        assert_eq!(cells[8], ip_bytes, "{line}");
        let (count, total) = seen.entry(port).or_default();
        (*count, *total) = (*count + 1, *total + bytes);
    }
    let expected: BTreeMap<u16, (usize, usize)> = SHAPES
        .iter()
        .map(|shape| (shape.port, (SEGMENTS, payload_bytes())))
        .collect();
    assert_eq!(seen, expected, "segments and bytes of each");
}
