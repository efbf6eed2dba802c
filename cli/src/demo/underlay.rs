//! Watches the demo's internet and judges what crossed it: sealed datagrams, STUN, and the encrypted control
//! connections of libp2p, nothing else, and nowhere a byte of what travelled inside.

use crate::lab::{Capture, CapturedFrame, INTERNET_BRIDGE, Lab};
use anyhow::{Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddrV4,
};

/// Selects all but what carries the type of a Farlan datagram (0x80 to 0xBF, docs/wire-format.md): a download
/// would fill the disk with those.
const EVERYTHING_ELSE: &str = "not (ip and udp and (udp[8] & 0xc0) = 0x80)";

/// Selects exactly those.
const SEALED: &str = "ip and udp and (udp[8] & 0xc0) = 0x80";

/// Enough of a frame to see what it is, and to find plaintext in it.
const SNAP_BYTES: u32 = 400;

/// What would show if frames of guests crossed in the open: SSH's first line, HTTP's, the guests' names.
const PLAINTEXT: &[&[u8]] = &[
    b"SSH-2.0",
    b"GET /",
    b"HTTP/1.",
    b"vm-8-1",
    b"vm-9-1",
    b"\x06vm-8-1\x05local",
];

/// The magic cookie of STUN (RFC 8489), at byte 4 of each message.
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

/// What a frame on the internet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A datagram of a type from 0x80 to 0xBF.
    Sealed,
    /// STUN.
    Stun,
    /// A control connection over QUIC: first byte 01…… or 11…… (RFC 9000, RFC 7983).
    Quic,
    /// A control connection over TCP.
    Tcp,
    /// Neighbours finding each other on the lab's internet.
    Neighbours,
    /// A router says that a datagram could not be delivered.
    Unreachable,
}

/// A watch that goes on from the first node's start to the end.
pub(super) struct Underlay {
    rest: Capture,
}

impl Underlay {
    pub(super) fn watch(lab: &Lab) -> Result<Self> {
        Ok(Self {
            rest: lab
                .internet()
                .capture(INTERNET_BRIDGE, EVERYTHING_ELSE, SNAP_BYTES)?,
        })
    }

    /// Records sealed datagrams too, while something worth hiding travels.
    pub(super) fn sample(lab: &Lab) -> Result<Capture> {
        lab.internet().capture(INTERNET_BRIDGE, SEALED, SNAP_BYTES)
    }

    /// Judges everything seen. `control_ports` are the TCP ports of control connections.
    pub(super) fn judge(self, samples: &[CapturedFrame]) -> Result<String> {
        let rest = self.rest.stop()?;
        judge(rest.iter().chain(samples))
    }
}

fn judge<'a>(frames: impl Iterator<Item = &'a CapturedFrame>) -> Result<String> {
    let frames: Vec<_> = frames.collect();
    let is_quic = |frame: &&&CapturedFrame| classify(frame) == Some(Kind::Quic);
    let quic: BTreeSet<_> = frames
        .iter()
        .filter(is_quic)
        .filter_map(|frame| ends(frame))
        .collect();
    // QUIC may leave its fixed bit out once the peer has said that it does not mind (RFC 9287).
    let greased = |frame: &CapturedFrame| {
        ends(frame)
            .filter(|ends| quic.contains(ends))
            .map(|_| Kind::Quic)
    };
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    for frame in frames {
        let Some(kind) = classify(frame).or_else(|| greased(frame)) else {
            bail!(
                "something else than sealed datagrams crossed the internet: {}",
                describe(frame)
            );
        };
        if let Some(plain) = PLAINTEXT.iter().find(|plain| frame.contains(plain)) {
            bail!(
                "plaintext {:?} crossed the internet in {}",
                String::from_utf8_lossy(plain),
                describe(frame)
            );
        }
        *counts.entry(kind).or_default() += 1;
    }
    let count = |kind| counts.get(&kind).copied().unwrap_or_default();
    if count(Kind::Sealed) == 0 {
        bail!("no sealed datagram was seen on the internet, so nothing was proved");
    }
    Ok(format!(
        "on the internet between the sites: {} sealed datagrams looked into, {} of STUN, {} of control connections \
         (QUIC {}, TCP {}); no frame in the open",
        count(Kind::Sealed),
        count(Kind::Stun),
        count(Kind::Quic) + count(Kind::Tcp),
        count(Kind::Quic),
        count(Kind::Tcp),
    ))
}

/// The two ends of a UDP conversation, the same in both directions.
fn ends(frame: &CapturedFrame) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let udp = frame.udp()?;
    Some((
        udp.source.min(udp.destination),
        udp.source.max(udp.destination),
    ))
}

fn classify(frame: &CapturedFrame) -> Option<Kind> {
    match frame.ethertype()? {
        0x0806 => return Some(Kind::Neighbours),
        // The lab's internet is IPv4; kernels greet each other over link-local IPv6 all the same.
        0x86dd => {
            return (frame.bytes.get(20) == Some(&0) || frame.bytes.get(20) == Some(&58))
                .then_some(Kind::Neighbours);
        }
        _ => {}
    }
    let (source, _) = frame.addresses()?;
    // Addresses of sites and overlays have no business out here. A node does try its peer's own addresses, which a router that
    // knows no better sends here; what it tries them with is judged like all else.
    if source.is_private() {
        return None;
    }
    match frame.protocol()? {
        1 => Some(Kind::Unreachable),
        6 => Some(Kind::Tcp),
        17 => {
            let payload = frame.udp()?.payload;
            match payload.first()? >> 6 {
                0b00 if payload.get(4..8) == Some(&STUN_COOKIE) => Some(Kind::Stun),
                0b10 => Some(Kind::Sealed),
                0b01 | 0b11 => Some(Kind::Quic),
                _ => None,
            }
        }
        _ => None,
    }
}

fn describe(frame: &CapturedFrame) -> String {
    let hexadecimal: String = frame
        .bytes
        .iter()
        .take(64)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    match frame.addresses() {
        Some((source, destination)) => {
            format!("a packet from {source} to {destination}: {hexadecimal}")
        }
        None => format!("a frame: {hexadecimal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(source: [u8; 4], payload: &[u8]) -> CapturedFrame {
        let mut bytes = vec![0; 12];
        bytes.extend([0x08, 0x00, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
        bytes.extend(source);
        bytes.extend([198, 18, 1, 2, 0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0]);
        bytes.extend(payload);
        CapturedFrame {
            length: bytes.len(),
            bytes,
        }
    }

    const ROUTER: [u8; 4] = [198, 18, 1, 1];

    #[test]
    fn sealed_datagrams_stun_and_quic_may_cross() {
        let mut stun = vec![0, 1, 0, 0];
        stun.extend(STUN_COOKIE);
        let frames = [
            datagram(ROUTER, &[0x84; 40]),
            datagram(ROUTER, &stun),
            datagram(ROUTER, &[0x45; 40]),
        ];

        assert!(judge(frames.iter()).is_ok());
    }

    #[test]
    fn a_name_in_the_open_is_found() {
        let mut payload = vec![0x84; 20];
        payload.extend(b"vm-8-1");
        let frames = [datagram(ROUTER, &[0x84; 40]), datagram(ROUTER, &payload)];

        assert!(judge(frames.iter()).is_err());
    }

    #[test]
    fn what_is_neither_sealed_nor_control_is_found() {
        for odd in [
            datagram(ROUTER, &[0x01; 40]),
            datagram([192, 168, 1, 11], &[0x84; 40]),
        ] {
            assert!(judge([datagram(ROUTER, &[0x84; 40]), odd].iter()).is_err());
        }
    }

    #[test]
    fn seeing_nothing_proves_nothing() {
        assert!(judge([].iter()).is_err());
    }
}
