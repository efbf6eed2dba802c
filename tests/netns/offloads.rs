//! Super-frames between real TAPs: they cross as such, and what leaves towards a card that can do nothing is right.

use crate::{
    guests::two_guests,
    overlay::{eventually, lab, ping},
    static_peers::{overlay_address, start, wait_for_ping},
};
use anyhow::{Context, Result, ensure};
use cli::lab::{Lab, Machine};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::Duration,
};
use tunnel::{io::DataPlane, stats::Counter};

/// Longer than any transfer here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is carried: no two of its pages are alike.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u32 / 4)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect()
}

/// Carries `content` over TCP from one machine to an address of another, and compares.
pub(crate) fn carry(
    from: &Machine,
    to: &Machine,
    address: SocketAddr,
    content: &[u8],
) -> Result<()> {
    let listener = to.tcp_listener(address)?;
    let target = listener.local_addr()?;
    thread::scope(|scope| {
        let received = scope.spawn(move || -> Result<Vec<u8>> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all)?;
            Ok(all)
        });
        let mut stream = from.tcp_connect(target, PATIENCE)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(content)?;
        drop(stream);
        let received = received.join().expect("the receiver does not panic")?;
        ensure!(received == content, "what arrived is not what was sent");
        Ok(())
    })
}

/// Waits until the workers, who tell once a second, have told that they counted so much.
pub(crate) fn await_count(data_plane: &DataPlane, counter: Counter, least: u64) -> Result<()> {
    let mut count = 0;
    for _ in 0..50 {
        count = data_plane.counters().get(counter);
        if count >= least {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("{counter:?}: {count}, not {least}");
}

#[test]
fn streams_cross_as_super_frames_over_both_ip_versions() -> Result<()> {
    for workers in [1, 3] {
        let lab = Lab::start("super")?;
        let (a, b) = (lab.public_host("a")?, lab.public_host("b")?);
        let at_a = start(&a, 1, &b, workers)?;
        let at_b = start(&b, 2, &a, workers)?;
        wait_for_ping(&a, overlay_address(2))?;
        for (host, number) in [(&a, 1), (&b, 2)] {
            host.ip(&[&format!("address add fd77::{number}/64 dev farlan0 nodad")])?;
        }
        let content = content(16 << 20);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
        for address in [
            SocketAddr::from((overlay_address(2), 5000)),
            SocketAddr::from((v6, 5000)),
        ] {
            let what = format!("{address} with {workers} workers");
            carry(&a, &b, address, &content).with_context(|| what.clone())?;
        }
        // 32 MiB in super-frames of at most 64 KiB; in single frames there would be none.
        await_count(&at_a, Counter::SuperFramesCut, 250)?;
        await_count(&at_b, Counter::SuperFramesJoined, 250)?;
    }
    Ok(())
}

/// Lets no network card of a machine do anything for the kernel. TAPs and bridges are none.
pub(crate) fn switch_offloads_off(machine: &Machine) {
    let off = "for card in $(ls /sys/class/net); do case $card in lo|br*|farlan*) ;; *)
        ethtool -K $card tx off rx off sg off tso off gso off gro off 2>/dev/null || : ;; esac; done";
    machine.sh(off).unwrap();
}

/// These fields of the recorded frames that `filter` selects, a line each, with every checksum verified.
pub(crate) fn tshark(
    machine: &Machine,
    file: &str,
    filter: &str,
    fields: &[&str],
) -> Result<String> {
    let mut argv = vec!["tshark", "-r", file, "-Y", filter, "-T", "fields"];
    for option in [
        "ip.check_checksum:TRUE",
        "tcp.check_checksum:TRUE",
        "udp.check_checksum:TRUE",
    ] {
        argv.extend(["-o", option]);
    }
    for field in fields {
        argv.extend(["-e", field]);
    }
    machine.run_for(PATIENCE, &argv)
}

#[test]
fn checksums_are_right_towards_a_network_card_without_offloads() {
    let lab = lab("checksums");
    let stage = two_guests(&lab);
    eventually(|| ping(&stage.near, &stage.far_address)).unwrap();
    // The far guest's card, and the bridge's side of its cable: whatever arrives there is as it would be on a wire.
    switch_offloads_off(&stage.far);
    switch_offloads_off(stage.nodes[1].machine());
    let capture = stage.far.capture("eth0", "", 65_535).unwrap();

    let content = content(4 << 20);
    let far: Ipv4Addr = stage.far_address.parse().unwrap();
    let near: Ipv4Addr = stage.near_address.parse().unwrap();
    carry(&stage.near, &stage.far, (far, 5000).into(), &content).unwrap();
    carry(&stage.far, &stage.near, (near, 5000).into(), &content).unwrap();
    udp_bursts(&stage.near, far);
    thread::sleep(Duration::from_millis(500));
    let file = capture.into_file().unwrap();

    let tshark = |filter: &str| {
        let fields = ["frame.number", "ip.src", "ip.proto", "frame.len"];
        tshark(&stage.far, &file, filter, &fields).unwrap()
    };
    let bad =
        tshark("ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0");
    let good = [("tcp", 5000), ("udp", 60)].map(|(protocol, least)| {
        (
            protocol,
            tshark(&format!("{protocol}.checksum.status == 1"))
                .lines()
                .count(),
            least,
        )
    });
    assert_eq!(bad, "");
    for (protocol, count, least) in good {
        assert!(count >= least, "only {count} of {protocol} were looked at");
    }
    assert_eq!(tshark("frame.len > 1514"), "", "a super-frame on a wire");
}

/// Datagrams that a kernel hands over as one super-frame where it can (UDP_SEGMENT).
fn udp_bursts(from: &Machine, to: Ipv4Addr) {
    let socket = from.udp_socket((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let state = quinn_udp::UdpSocketState::new((&socket).into()).unwrap();
    for segment in [100, 1300, 1472] {
        let contents = vec![7; segment * 20];
        let transmit = quinn_udp::Transmit {
            destination: (to, 9999).into(),
            ecn: None,
            contents: &contents,
            segment_size: Some(segment),
            src_ip: None,
        };
        state.try_send((&socket).into(), &transmit).unwrap();
        thread::sleep(Duration::from_millis(50));
    }
}
