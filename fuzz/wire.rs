//! Views over frames and datagrams, STUN, the relay's messages, and halves of frames.

use crate::input::{AnyFrame, Edits, broken, one};
use bolero::{TypeGenerator, check};
use overlay_types::{NetworkId, PathAddr, PeerId};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tunnel::relay::message::{self, MESSAGE_BYTES, Message};
use tunnel::relay::{RelayClient, RelayGrant, RelayLimits, RelayServer, Verdict};
use tunnel::split::Rejoiner;
use tunnel::stun::{LifetimeProbe, ProbeSocket, StunClient, server_answer};
use tunnel::switch::facts::Facts;
use tunnel::wire::arp::ArpPacket;
use tunnel::wire::datagram::{
    DataHeader, DatagramKind, RelayHeader, WRAPPERS_MAX, classify, wrappers,
};
use tunnel::wire::ethernet::Frame;
use tunnel::wire::extension::HalfHeader;
use tunnel::wire::handshake::HandshakeHeader;
use tunnel::wire::ip::Packet;
use tunnel::wire::ndp::Discovery;
use tunnel::wire::{arp, dhcp};
use zerocopy::IntoBytes;

const RELAY: &str = "198.51.100.1:3478";

fn addr(n: u8) -> SocketAddr {
    ([192, 0, 2, n], 4000).into()
}

#[test]
fn datagrams_are_classified() {
    check!()
        .with_type()
        .for_each(|(kind, bytes): &(u8, Vec<u8>)| {
            let mut bytes = bytes.clone();
            if let Some(first) = bytes.first_mut() {
                *first = *one(
                    &[
                        0x00, 0x80, 0x81, 0x82, 0x84, 0x85, 0x86, 0xA0, 0xA3, 0xA4, 0xA5, *first,
                    ],
                    *kind,
                );
            }
            let _ = HandshakeHeader::parse(&bytes);
            match classify(&bytes) {
                DatagramKind::Data(header) => {
                    assert_eq!(DataHeader::parse(&bytes), Some(header));
                    assert_eq!(header.as_bytes(), &bytes[..16]);
                }
                DatagramKind::ToPlace(header) | DatagramKind::FromPlace(header) => {
                    let (parsed, inner) = RelayHeader::parse(&bytes).unwrap();
                    assert_eq!((parsed, inner.len()), (header, bytes.len() - 8));
                }
                _ => {}
            }
        });
}

#[test]
fn frames_are_read() {
    check!().with_type().for_each(|frame: &AnyFrame| {
        let bytes = frame.bytes();
        if let Some(facts) = Facts::parse(&bytes) {
            let _ = (facts.source_ip(), facts.claim());
        }
        let Some(view) = Frame::parse(&bytes) else {
            return;
        };
        if let Some(request) = ArpPacket::parse(view.payload) {
            let answer = arp::reply_to(request, request.target_mac());
            assert!(Frame::parse(&answer).is_some(), "what we write is readable");
        }
        let _ = Discovery::in_frame(&view);
        let Some(packet) = Packet::in_frame(&view) else {
            return;
        };
        assert!(packet.payload.len() < bytes.len());
        let Some(udp) = packet.udp() else { return };
        if let Some(sender) = dhcp::sender(&udp) {
            let _ = format!("{sender:?}");
        }
        let _ = dhcp::DhcpPeek::parse(udp.payload);
    });
}

#[test]
fn stun_questions_are_answered_no_longer_than_bounded() {
    check!()
        .with_type()
        .for_each(|(edits, bytes): &(Edits, Vec<u8>)| {
            let mut client = StunClient::new(1, Instant::now());
            client.set_servers(&[RELAY.parse().unwrap()], Instant::now());
            let (_, question) = client
                .poll_transmit()
                .expect("a new server is asked at once");
            for request in [broken(&question, edits), bytes.clone()] {
                let (at, other) = (addr(1), SocketAddr::from(([192, 0, 2, 1], 4001)));
                if let Some(answer) = server_answer(&request, addr(9), at, other) {
                    assert_eq!(answer.to.ip(), addr(9).ip(), "never to a third");
                    assert!(answer.bytes.len() <= request.len(), "no amplification");
                }
            }
        });
}

#[test]
fn stun_answers_are_read() {
    check!()
        .with_type()
        .for_each(|answers: &Vec<(Edits, bool, u16)>| {
            let mut now = Instant::now();
            let (main, other) = (addr(1), SocketAddr::from(([192, 0, 2, 1], 4001)));
            let mut client = StunClient::new(1, now);
            client.set_servers(&[main, addr(2)], now);
            client.set_host_candidates(&[addr(9)], now);
            for (edits, from_other, wait) in answers.iter().take(16) {
                let Some((to, question)) = client.poll_transmit() else {
                    now += Duration::from_millis((*wait).into());
                    client.handle_timeout(now);
                    continue;
                };
                let answer = server_answer(&question, addr(77), to, other).unwrap();
                let from = if *from_other { other } else { to };
                client.handle_datagram(from, &broken(&answer.bytes, edits), now);
                while client.poll_event().is_some() {}
                assert!(client.reflexive().len() <= 16);
            }
        });
}

#[test]
fn lifetimes_are_measured() {
    check!()
        .with_type()
        .for_each(|answers: &Vec<(Edits, bool, u16)>| {
            let mut now = Instant::now();
            let (server, other) = (addr(1), SocketAddr::from(([192, 0, 2, 1], 4001)));
            let mut probe = LifetimeProbe::new(1, server, now);
            for (edits, quiet, wait) in answers.iter().take(64) {
                let Some((_, to, question)) = probe.poll_transmit() else {
                    let Some((at, _)) = probe.poll_timeout() else {
                        break;
                    };
                    now = at + Duration::from_millis((*wait).into());
                    probe.handle_timeout(now);
                    continue;
                };
                let answer = server_answer(&question, addr(77), to, other).unwrap();
                let socket = if *quiet {
                    ProbeSocket::Quiet
                } else {
                    ProbeSocket::Asking
                };
                probe.handle_datagram(socket, to, &broken(&answer.bytes, edits), now);
                if let Some(known) = probe.lifetime() {
                    assert!(known.less_than.is_none_or(|less| known.at_least < less));
                }
            }
        });
}

/// Straight, through another relay, and through more than are allowed.
fn way(n: u8) -> PathAddr {
    let straight = PathAddr::Direct(addr(n % 3));
    let through = straight.beyond(u32::from(n % 2)).unwrap();
    match n / 64 {
        0 | 1 => straight,
        2 => through,
        _ => through.beyond(1).unwrap(),
    }
}

#[derive(Clone, Debug, TypeGenerator)]
enum RelayInput {
    /// What the client says, broken or not, from one of a few addresses.
    Bind(u8, Edits),
    /// What the relay answered, broken or not.
    Answer(Edits),
    /// A datagram to pass on, to a number that is or is not there.
    Forward(u8, u8, Vec<u8>),
    Raw(u8, Vec<u8>),
    Allocate(u8),
    Wait(u16),
}

#[test]
fn relay_and_client_speak_through_noise() {
    check!().with_type().for_each(|inputs: &Vec<RelayInput>| {
        let mut now = Instant::now();
        let limits = RelayLimits {
            places_max: 4,
            ..RelayLimits::default()
        };
        let mut server = RelayServer::new([1; 32], limits, now);
        let mut client = RelayClient::new(2, now);
        let relay = RELAY.parse().unwrap();
        let (index, key) = server.allocate(PeerId([1; 32]), now).unwrap();
        client.set_grants(
            &[RelayGrant {
                via: PeerId([9; 32]),
                relay,
                index,
                key,
                carrier: None,
                through: None,
                is_member: false,
            }],
            now,
        );
        let mut answer = None;
        for input in inputs.iter().take(64) {
            let mut verdict = |from: u8, mut bytes: Vec<u8>| {
                let asked = bytes.len();
                let from = way(from);
                let verdict = server.handle_datagram(from, &mut bytes, now);
                if let Verdict::Forward(to) = verdict {
                    let sent = wrappers(&bytes) + to.relays();
                    assert!(bytes.len() == asked && sent <= WRAPPERS_MAX);
                }
                if let Verdict::Reply(reply) = verdict {
                    assert!(
                        reply.len() <= asked,
                        "no answer is longer than its question"
                    );
                    answer = Some(reply);
                }
            };
            match input {
                RelayInput::Bind(from, edits) => {
                    if let Some((_, bytes)) = client.poll_transmit() {
                        verdict(*from, broken(&bytes, edits));
                    }
                }
                RelayInput::Answer(edits) => {
                    if let Some(reply) = answer.take() {
                        client.handle_datagram(
                            PathAddr::Direct(relay),
                            &broken(&reply, edits),
                            now,
                        );
                    }
                }
                RelayInput::Forward(from, to, inner) => {
                    let to = if to.is_multiple_of(2) {
                        index
                    } else {
                        u32::from(*to)
                    };
                    let datagram = [RelayHeader::to(to).as_bytes(), inner].concat();
                    verdict(*from, datagram);
                }
                RelayInput::Raw(from, bytes) => verdict(*from, bytes.clone()),
                RelayInput::Allocate(peer) => {
                    let _ = server.allocate(PeerId([*peer; 32]), now);
                }
                RelayInput::Wait(ms) => {
                    now += Duration::from_millis(u64::from(*ms) * 4);
                    server.handle_timeout(now);
                    client.handle_timeout(now);
                }
            }
            while client.poll_event().is_some() {}
            assert!(server.stats().places <= 4);
        }
    });
}

#[test]
fn relay_messages_are_believed_only_whole() {
    check!()
        .with_type()
        .for_each(|(kind, edits): &(u8, Edits)| {
            let key = [5; 32];
            let kind = message::REQUEST + kind % 4;
            let sound = Message::new(kind, 7, 8, [9; 16], &key).to_bytes();
            let bytes = broken(&sound, edits);
            if let Some(message) = Message::peek(&bytes) {
                let _ = message.observed();
                assert_eq!(bytes.len(), MESSAGE_BYTES);
                assert_eq!(message.is_genuine(&key), bytes == sound);
            }
        });
}

#[test]
fn halves_of_frames_are_rejoined_within_bounds() {
    type Half = (u8, u8, u8, u16, Vec<u8>);
    check!().with_type().for_each(|halves: &Vec<(Half, u16)>| {
        let (mut rejoiner, mut now) = (Rejoiner::new(), Instant::now());
        for ((source, id, which, total, bytes), wait) in halves {
            now += Duration::from_micros((*wait).into());
            // Mostly totals that fit, so that halves meet.
            let total = if *which < 128 {
                2 * bytes.len() as u16
            } else {
                *total
            };
            let header = HalfHeader::new((*id % 4).into(), which % 2, total, None);
            let plaintext = [header.as_bytes(), bytes].concat();
            if let Some((frame, _)) = rejoiner.accept((*source % 2).into(), &plaintext, now) {
                assert_eq!(frame.len(), usize::from(total));
            }
            let _ = rejoiner.accept(0, bytes, now);
        }
    });
}

/// Where the targets of this crate are members.
pub(crate) const NETWORK: NetworkId = NetworkId([9; 32]);
