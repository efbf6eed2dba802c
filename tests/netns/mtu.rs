//! Path MTU on the real kernel: guests' frames cross whatever the underlay is, and a black hole is found and left.

use crate::{
    offloads::{await_count, carry, content},
    static_peers::{overlay_address, start_with_mtu, wait_for_ping},
};
use anyhow::{Result, ensure};
use cli::lab::{Host, Lab};
use std::{
    thread,
    time::{Duration, Instant},
};
use tunnel::{io::DataPlane, stats::Counter};

/// What IPv4 and UDP take of a packet.
const UNDERLAY_HEADERS: u16 = 28;

/// Longer than any search takes.
const SEARCH: Duration = Duration::from_secs(30);

/// Two hosts whose every link has this MTU.
fn hosts(lab: &Lab, underlay: u16) -> Result<(Host, Host)> {
    let (a, b) = (lab.public_host("a")?, lab.public_host("b")?);
    for host in [&a, &b] {
        host.ip(&[&format!("link set eth0 mtu {underlay}")])?;
    }
    let all = format!("for link in /sys/class/net/*; do echo {underlay} > $link/mtu; done");
    lab.internet().sh(&all)?;
    Ok((a, b))
}

/// Waits until datagrams of just this size are in use.
fn await_path_mtu(data_plane: &DataPlane, is_found: impl Fn(u16) -> bool) -> Result<Duration> {
    let began = Instant::now();
    let mut mtu = 0;
    while began.elapsed() < SEARCH {
        let path = data_plane.peer_stats().first().and_then(|peer| peer.path);
        mtu = path.map_or(0, |path| path.mtu);
        if is_found(mtu) {
            return Ok(began.elapsed());
        }
        thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("the path carries {mtu} bytes, as far as is known");
}

/// Pings with so many bytes inside, which may not be fragmented.
fn full_pings(from: &Host, to: u8, bytes: u16) -> Result<()> {
    let (bytes, target) = (bytes.to_string(), overlay_address(to).to_string());
    from.run(&[
        "ping", "-c5", "-i0.1", "-W5", "-M", "do", "-s", &bytes, &target,
    ])?;
    Ok(())
}

#[test]
fn full_frames_and_streams_cross_any_underlay_from_1280_bytes_up() -> Result<()> {
    for underlay in [1280, 1400, 1492, 1500] {
        let lab = Lab::start("mtu")?;
        let (a, b) = hosts(&lab, underlay)?;
        let at_a = start_with_mtu(&a, 1, &b, 1, 1500)?;
        let at_b = start_with_mtu(&b, 2, &a, 1, 1500)?;
        wait_for_ping(&a, overlay_address(2))?;
        full_pings(&a, 2, 1472)?; // also while the search goes on
        let exact = underlay - UNDERLAY_HEADERS;
        for at in [&at_a, &at_b] {
            await_path_mtu(at, |mtu| mtu <= exact && mtu + 20 >= exact)?;
        }
        full_pings(&a, 2, 1472)?;
        full_pings(&b, 1, 1472)?;
        carry(&a, &b, (overlay_address(2), 5000).into(), &content(4 << 20))?;
    }
    Ok(())
}

#[test]
fn jumbo_frames_cross_where_the_underlay_allows_and_streams_anywhere() -> Result<()> {
    for (underlay, is_jumbo) in [(9000, true), (1500, false)] {
        let lab = Lab::start("jumbo")?;
        let (a, b) = hosts(&lab, underlay)?;
        let at_a = start_with_mtu(&a, 1, &b, 1, 9000)?;
        let _at_b = start_with_mtu(&b, 2, &a, 1, 9000)?;
        wait_for_ping(&a, overlay_address(2))?;
        await_path_mtu(&at_a, |mtu| mtu == underlay - UNDERLAY_HEADERS)?;
        full_pings(&a, 2, 1472)?;
        let is_through = full_pings(&a, 2, 8972).is_ok();
        ensure!(is_through == is_jumbo, "{underlay}: {is_through}");
        // A stream's segments are cut where they do not fit; its odd ends are no super-frames.
        for bytes in [4 << 20, 7_000, 5_001] {
            carry(&a, &b, (overlay_address(2), 5000).into(), &content(bytes))?;
        }
        if !is_jumbo {
            await_count(&at_a, Counter::DropOversize, 5)?;
        }
    }
    Ok(())
}

#[test]
fn a_black_hole_is_found_and_left() -> Result<()> {
    let lab = Lab::start("hole")?;
    let (a, b) = hosts(&lab, 1500)?;
    for host in [&a, &b] {
        // Or else the kernel has no single datagrams to drop.
        host.sh("ethtool -K eth0 gro off tx-udp-segmentation off gso off")?;
    }
    let at_a = start_with_mtu(&a, 1, &b, 1, 1500)?;
    let at_b = start_with_mtu(&b, 2, &a, 1, 1500)?;
    wait_for_ping(&a, overlay_address(2))?;
    for at in [&at_a, &at_b] {
        await_path_mtu(at, |mtu| mtu == 1472)?;
    }
    full_pings(&a, 2, 1372)?;

    // Somewhere on the way a router begins to drop what is large, and says nothing.
    for host in [&a, &b] {
        host.nft(
            "table inet hole { chain input { type filter hook input priority 0; \
             iif eth0 meta length > 1420 drop; }; }",
        )?;
    }
    let target = overlay_address(2).to_string();
    let began = Instant::now();
    let ping = ["ping", "-c1", "-W0.3", "-M", "do", "-s1372", &target];
    ensure!(!a.try_run(&ping)?.is_success(), "the hole is not one");
    while !a.try_run(&ping)?.is_success() {
        ensure!(began.elapsed() < SEARCH, "still in the hole");
    }
    for at in [&at_a, &at_b] {
        await_path_mtu(at, |mtu| mtu == 1392)?;
    }
    carry(&a, &b, (overlay_address(2), 5000).into(), &content(4 << 20))
}
