//! The data plane alone on the real kernel: two peers that know each other by hand, no control plane.

use anyhow::{Context, Result, ensure};
use cli::lab::{Host, Lab};
use overlay_types::{Binding, Candidate, DhcpMode, Location, NetworkId, PeerId, PortId, PortKind};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use tunnel::engine::Command;
use tunnel::io::{DataPlane, DataPlaneConfig, TapError};
use tunnel::session::LocalKeys;
use tunnel::wire::datagram::{DATA, INITIATION, PATH_RESPONSE};
use zeroize::Zeroizing;

const NETWORK: NetworkId = NetworkId([7; 32]);
const PORT: PortId = PortId(1);
const DATA_PORT: u16 = 7777;
/// What `ping -p` fills packets with: nothing of it may be seen outside.
const MARKER: &[u8] = b"PLAINTEXTPLAINTE";
/// Until the first answer; hangs only.
const PATIENCE: Duration = Duration::from_secs(20);

fn peer(number: u8) -> PeerId {
    PeerId([number; 32])
}

fn keys(number: u8) -> LocalKeys {
    LocalKeys::generate(&mut ChaCha20Rng::seed_from_u64(u64::from(number)))
}

pub(crate) fn overlay_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

/// A data plane on `host`, as number 1 or 2 of a network of two, with the TAP `farlan0`.
pub(crate) fn start(host: &Host, number: u8, remote: &Host, workers: u8) -> Result<DataPlane> {
    start_with_mtu(host, number, remote, workers, 1500)
}

/// The same in a network of this MTU.
pub(crate) fn start_with_mtu(
    host: &Host,
    number: u8,
    remote: &Host,
    workers: u8,
    mtu: u16,
) -> Result<DataPlane> {
    let data_plane = host.within(|| {
        let config = DataPlaneConfig {
            listen: (Ipv4Addr::UNSPECIFIED, DATA_PORT).into(),
            workers,
            seed: [number; 32],
        };
        let data_plane = DataPlane::start(config, Box::new(|_| {})).map_err(io::Error::other)?;
        let mac = peer(number).host_mac();
        let tap = data_plane
            .make_tap(Some("farlan0"), Some(mac), mtu)
            .map_err(io::Error::other)?;
        data_plane.command(Command::AddNetwork {
            id: NETWORK,
            me: peer(number),
            keys: keys(number),
            psk: Zeroizing::new([9; 32]),
            dhcp: DhcpMode::Off,
            mtu,
        });
        data_plane.add_port(NETWORK, PORT, PortKind::Host, vec![mac], tap);
        Ok(data_plane)
    })?;
    let bindings = [1, 2].map(|other| Binding {
        ip: IpAddr::V4(overlay_address(other)),
        mac: peer(other).host_mac(),
        location: if other == number {
            Location::Port(PORT)
        } else {
            Location::Peer(peer(other))
        },
    });
    data_plane.command(Command::SetBindings {
        network: NETWORK,
        bindings: bindings.to_vec(),
    });
    let other = 3 - number;
    data_plane.command(Command::UpsertPeer {
        network: NETWORK,
        peer: peer(other),
        keys: keys(other).public(),
        candidates: vec![Candidate::Host(SocketAddr::from((
            remote.address(),
            DATA_PORT,
        )))],
        eager: true,
        paid: u64::MAX,
    });
    host.ip(&[&format!(
        "address add {}/24 dev farlan0",
        overlay_address(number)
    )])?;
    Ok(data_plane)
}

pub(crate) fn wait_for_ping(from: &Host, to: Ipv4Addr) -> Result<()> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let answer = from.try_run(&["ping", "-c1", "-W1", &to.to_string()])?;
        if answer.is_success() {
            return Ok(());
        }
        ensure!(Instant::now() < give_up, "no answer from {to}");
    }
}

#[test]
fn full_size_frames_pass_and_the_underlay_sees_sealed_datagrams_only() -> Result<()> {
    for workers in [1, 3] {
        let lab = Lab::start("static")?;
        let (a, b) = (lab.public_host("a")?, lab.public_host("b")?);
        let _at_a = start(&a, 1, &b, workers)?;
        let _at_b = start(&b, 2, &a, workers)?;
        // Not earlier: before both listen their kernels say "port unreachable", which is no datagram of ours.
        let capture = a.capture("eth0", "", 65_535)?;
        wait_for_ping(&a, overlay_address(2))?;

        // 1472 bytes and the headers of ICMP, IP and Ethernet are 1514, over an underlay of 1500.
        let pattern: String = MARKER.iter().map(|byte| format!("{byte:02x}")).collect();
        for (from, to) in [(&a, 2), (&b, 1)] {
            let target = overlay_address(to).to_string();
            from.run(&[
                "ping", "-c5", "-i0.2", "-W5", "-M", "do", "-s1472", "-p", &pattern, &target,
            ])?;
        }

        let frames = capture.stop()?;
        let mut datagrams = 0;
        for frame in &frames {
            ensure!(
                !frame.contains(MARKER),
                "plaintext on the underlay: {frame:?}"
            );
            let Some((source, destination)) = frame.addresses() else {
                continue; // ARP and IPv6 of the underlay itself
            };
            let between = [source, destination];
            if !between.contains(&a.address()) || !between.contains(&b.address()) {
                continue;
            }
            let udp = frame.udp().context("only UDP between the two peers")?;
            ensure!(
                matches!(udp.payload.first(), Some(INITIATION..=PATH_RESPONSE)),
                "not one of our datagrams: {frame:?}"
            );
            datagrams += 1;
        }
        ensure!(
            datagrams >= 20,
            "the pings crossed the underlay: {datagrams}"
        );
    }
    Ok(())
}

#[test]
fn a_tap_has_what_was_asked_for_and_is_gone_with_its_port() -> Result<()> {
    let lab = Lab::start("tap")?;
    let (a, b) = (lab.public_host("a")?, lab.public_host("b")?);
    let data_plane = start(&a, 1, &b, 2)?;
    let shown = a.run(&["ip", "link", "show", "farlan0"])?;
    ensure!(shown.contains("mtu 1500"), "{shown}");
    ensure!(shown.contains(&peer(1).host_mac().to_string()), "{shown}");
    ensure!(shown.contains("UP"), "{shown}");
    let again = a.within(|| Ok(data_plane.make_tap(Some("farlan0"), None, 1500)))?;
    ensure!(matches!(&again, Err(TapError::NameTaken(_))), "{again:?}");
    let taken = a.within(|| Ok(data_plane.make_tap(Some("eth0"), None, 1500)))?;
    ensure!(matches!(&taken, Err(TapError::NameTaken(_))), "{taken:?}");

    data_plane.remove_port(PORT);
    let gone = a.try_run(&["ip", "link", "show", "farlan0"])?;
    ensure!(!gone.is_success(), "the TAP is still there");
    Ok(())
}

#[test]
fn each_worker_has_a_queue_of_the_tap_and_a_lane_of_the_session() -> Result<()> {
    const WORKERS: u8 = 3;
    /// So many that none of the queues is likely to get none of them: 3 × (2/3)^64 is less than 10^-10.
    const FLOWS: usize = 64;
    let lab = Lab::start("queues")?;
    let (a, b) = (lab.public_host("a")?, lab.public_host("b")?);
    let at_a = start(&a, 1, &b, WORKERS)?;
    let _at_b = start(&b, 2, &a, WORKERS)?;
    let queues = a.run(&["ls", "/sys/class/net/farlan0/queues"])?;
    ensure!(
        queues.matches("tx-").count() == usize::from(WORKERS),
        "{queues}"
    );
    wait_for_ping(&a, overlay_address(2))?;

    let capture = a.capture("eth0", "udp", 200)?;
    let receiver = b.within(|| UdpSocket::bind((overlay_address(2), 9000)))?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    a.within(|| {
        for flow in 0..FLOWS {
            let socket = UdpSocket::bind((overlay_address(1), 0))?;
            socket.send_to(&[flow as u8], (overlay_address(2), 9000))?;
        }
        Ok(())
    })?;
    let mut arrived = BTreeSet::new();
    while arrived.len() < FLOWS {
        let mut byte = [0];
        receiver
            .recv(&mut byte)
            .with_context(|| format!("only {arrived:?}"))?;
        ensure!(arrived.insert(byte[0]), "{byte:?} came twice");
    }
    let frames = capture.stop()?;
    let lanes: BTreeSet<u8> = frames
        .iter()
        .filter(|frame| {
            frame
                .addresses()
                .is_some_and(|(from, _)| from == a.address())
        })
        .filter_map(|frame| frame.udp())
        .filter_map(|udp| Some((*udp.payload.first()?, *udp.payload.get(1)?)))
        .filter_map(|(kind, lane)| (kind == DATA && lane != 0).then_some(lane))
        .collect();
    ensure!(lanes == (1..=WORKERS).collect(), "lanes {lanes:?}");

    at_a.remove_port(PORT);
    let gone = a.try_run(&["ip", "link", "show", "farlan0"])?;
    ensure!(!gone.is_success(), "the TAP is still there");
    Ok(())
}

#[test]
fn a_peer_that_was_killed_is_back_as_soon_as_it_runs_again() -> Result<()> {
    let lab = Lab::start("restart")?;
    let (a, b) = (lab.public_host("a")?, lab.public_host("b")?);
    let _at_a = start(&a, 1, &b, 1)?;
    let at_b = start(&b, 2, &a, 1)?;
    wait_for_ping(&a, overlay_address(2))?;
    at_b.stop();
    let _at_b = start(&b, 2, &a, 1)?;
    wait_for_ping(&a, overlay_address(2))
}
