//! Nothing of a network is read by who looks at the underlay, whichever way it goes: straight by either IP version, through
//! ports that were foretold or met by chance, by a relay, a member's or two, or through a stream by TLS, an HTTP proxy or SSH;
//! while nodes join, and while they talk.

use crate::overlay::{
    FARLAN, await_path, eventually, fabric, founder, founder_knowing, host_behind, host_with_stack,
    lab, member, ping, ssh_key, sshd, within,
};
use anyhow::{Result, ensure};
use cli::demo::Node;
use cli::lab::{
    Capture, CapturedFrame, Host, INTERNET_BRIDGE, Machine, Nat, Outbound, SiteOptions, Stack,
};
use std::net::Ipv4Addr;
use std::time::Duration;

/// What guests say inside.
const MARKER: &[u8] = b"between us only!";
const NETWORK: &str = "kept-between-us";

/// Members are asked for a place once no fabric node gave one for 3 s; then sessions follow.
const MEETING: Duration = Duration::from_secs(60);

/// Pings with the marker in every packet, by `ping -p`'s hexadecimal digits.
fn whisper(from: &Machine, to: &str) {
    let pattern: String = MARKER.iter().map(|byte| format!("{byte:02x}")).collect();
    let words = [
        "ping", "-c", "10", "-i", "0.05", "-W", "2", "-s", "400", "-p", &pattern, to,
    ];
    from.run(&words).unwrap();
}

/// The same between two nodes.
fn whisper_both_ways(one: &Node, other: &Node) {
    for (from, to) in [(one, other), (other, one)] {
        whisper(from.machine(), &to.address(NETWORK).unwrap());
    }
}

#[test]
fn nothing_is_read_on_the_underlay_by_whatever_path() {
    let lab = lab("sealed-ways");
    let capture = lab.internet().capture(INTERNET_BRIDGE, "", 65_535).unwrap();
    let (_fabric, bootstrap) = fabric(&lab);
    let home = lab.site("home", Nat::Symmetric).unwrap();
    let first = founder(&home.host("founder").unwrap(), &bootstrap, NETWORK, &[]);
    let gateway = lab.public_host("gateway").unwrap();
    let restricted = |outbound: Outbound| SiteOptions {
        outbound,
        ..SiteOptions::default()
    };
    let join = |host: &Host, via: Option<String>| {
        let invite = first.invite(NETWORK).unwrap();
        let via = via.iter().flat_map(|via| ["--via", via]);
        let options: Vec<&str> = via.collect();
        Node::up_with_invite_and(host, FARLAN, &invite, &options)
            .unwrap()
            .0
    };

    let street = lab.public_host("street").unwrap();
    let away = lab.site("away", Nat::Symmetric).unwrap();
    let bank = lab
        .site_with("bank", Nat::Masquerade, restricted(Outbound::Tcp443))
        .unwrap();
    let ministry = lab
        .site_with(
            "ministry",
            Nat::PortRestricted,
            restricted(Outbound::HttpProxy),
        )
        .unwrap();
    let (_proxy, proxy_at) = ministry.http_proxy().unwrap();
    let cell = restricted(Outbound::Ssh(gateway.address()));
    let cell = lab.site_with("cell", Nat::Masquerade, cell).unwrap();
    let inmate = cell.host("inmate").unwrap();
    let _daemon = sshd(&gateway, &ssh_key(&inmate));
    let members = [
        (join(&street, None), "direct"),
        (join(&away.host("traveller").unwrap(), None), "relay"),
        (join(&bank.host("teller").unwrap(), None), "stream"),
        (
            join(
                &ministry.host("clerk").unwrap(),
                Some(format!("http://{proxy_at}")),
            ),
            "stream",
        ),
        (
            join(&inmate, Some(format!("ssh://root@{}", gateway.address()))),
            "stream",
        ),
    ];
    for (member, path) in &members {
        await_path(member, NETWORK, "founder", path).unwrap();
        whisper_both_ways(member, &first);
    }
    // The founder's ports are met by chance, the other's are foretold.
    let join_behind = |name: &str, nat: Nat| join(&host_behind(&lab, nat, name), None);
    let steady = join_behind("steady", Nat::PortRestricted);
    let stepping = join_behind("stepping", Nat::SymmetricIncremental);
    for (node, peer) in [(&first, "steady-host"), (&stepping, "steady-host")] {
        eventually(|| ping(node.machine(), &steady.address(NETWORK)?)).unwrap();
        await_path(node, NETWORK, peer, "direct").unwrap();
        whisper_both_ways(node, &steady);
    }
    let outside = [&street, &gateway].map(Host::address);
    let names = [
        "founder",
        "traveller",
        "teller",
        "clerk",
        "inmate",
        "steady",
        "stepping",
    ];
    nothing_was_read(capture, members[0].0.machine(), outside, &names);
}

/// What a capture of the underlay must not hold: what guests said, the network's name, its nodes' names. That it does see
/// shows what a public machine now says to another in clear.
fn nothing_was_read(capture: Capture, speaker: &Machine, outside: [Ipv4Addr; 2], names: &[&str]) {
    whisper(speaker, &outside[1].to_string());
    let frames = capture.stop().unwrap();
    let is_outside = |frame: &&CapturedFrame| {
        frame
            .addresses()
            .is_some_and(|(from, to)| outside.contains(&from) && outside.contains(&to))
    };
    let (outside, others): (Vec<_>, Vec<_>) = frames.iter().partition(is_outside);
    let heard = outside.iter().filter(|frame| frame.contains(MARKER));
    assert!(heard.count() >= 20, "ten pings and their answers in clear");
    let mut secrets: Vec<&[u8]> = vec![MARKER, NETWORK.as_bytes()];
    secrets.extend(names.iter().map(|name| name.as_bytes()));
    for frame in others {
        for secret in &secrets {
            assert!(
                !frame.contains(secret),
                "{} on the underlay: {frame:?}",
                String::from_utf8_lossy(secret)
            );
        }
    }
}

/// By which way a node reaches a peer: its kind, where datagrams go, and who relays.
fn way(node: &Node, peer: &str) -> Result<String> {
    let path = node.peer(NETWORK, peer)?["path"].clone();
    let of = |name: &str| path[name].as_str().unwrap_or("straight");
    Ok(format!("{} {} {}", of("kind"), of("via"), of("remote")))
}

#[test]
fn nothing_is_read_on_the_underlay_where_members_relay_or_ipv6_is_there() {
    let lab = lab("sealed-more");
    let capture = lab.internet().capture(INTERNET_BRIDGE, "", 65_535).unwrap();
    let fabric = lab.public_host_with("fabric", Stack::Dual).unwrap();
    let (_fabric, bootstraps) =
        Node::fabric_everywhere_with(&fabric, FARLAN, &["--relay-rate", "0"]).unwrap();
    // Who has IPv4 alone reaches the public member, who has IPv6 alone the one that has both, behind NATs.
    let public = lab.public_host("public-member").unwrap();
    let relay = founder_knowing(&public, &bootstraps, NETWORK);
    let join = |name: &str, nat: Nat, stack: Stack| {
        let host = host_with_stack(&lab, name, nat, stack);
        (member(&host, &relay, NETWORK), format!("{name}-host"))
    };
    let both = join("with-both", Nat::Symmetric, Stack::Dual);
    let six = join("with-six", Nat::PortRestricted, Stack::Ipv6);
    let random = join("random", Nat::Symmetric, Stack::Ipv4);
    let another = join("another", Nat::Symmetric, Stack::Ipv4);
    // Where the two go through different relays there are two in a row: one's place at the first is reached by the other.
    let pairs = [
        (&both, &six, ["direct straight ["; 2]),
        (&random, &another, ["relay public-member"; 2]),
        (
            &random,
            &six,
            ["relay public-member", "relay with-both-host"],
        ),
    ];
    for ((one, one_name), (other, other_name), ways) in pairs {
        let seen = || -> Result<()> {
            for ((node, peer), expected) in
                [(one, other_name), (other, one_name)].into_iter().zip(ways)
            {
                let way = way(node, peer)?;
                ensure!(
                    way.starts_with(expected),
                    "to {peer}: {way}, not {expected}"
                );
            }
            Ok(())
        };
        within(MEETING, || {
            ping(one.machine(), &other.address(NETWORK)?)?;
            seen()
        })
        .unwrap();
        whisper_both_ways(one, other);
        seen().unwrap();
    }
    let names = [&both, &six, &random, &another].map(|(_, name)| name.as_str());
    let names = [&names[..], &["public-member"]].concat();
    nothing_was_read(
        capture,
        &public,
        [&public, &fabric].map(Host::address),
        &names,
    );
}
