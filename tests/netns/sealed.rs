//! Nothing of a network is read by who looks at the underlay, whichever way it goes: straight, by relay, or through a stream
//! by TLS, an HTTP proxy or SSH; while nodes join, and while they talk.

use crate::overlay::{FARLAN, await_path, eventually, fabric, founder, lab, ping, ssh_key, sshd};
use cli::demo::Node;
use cli::lab::{Host, INTERNET_BRIDGE, Nat, Outbound, SiteOptions};

/// What guests say inside.
const MARKER: &[u8] = b"between us only!";
const NETWORK: &str = "kept-between-us";

/// Pings with the marker in every packet, by `ping -p`'s hexadecimal digits.
fn whisper(from: &Node, to: &str) {
    let pattern: String = MARKER.iter().map(|byte| format!("{byte:02x}")).collect();
    let words = [
        "ping", "-c", "10", "-i", "0.05", "-W", "2", "-s", "400", "-p", &pattern, to,
    ];
    from.machine().run(&words).unwrap();
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
    let target = first.address(NETWORK).unwrap();
    for (member, path) in &members {
        eventually(|| ping(member.machine(), &target)).unwrap();
        await_path(member, NETWORK, "founder", path).unwrap();
        whisper(member, &target);
        whisper(&first, &member.address(NETWORK).unwrap());
    }
    // What is said outside is seen, so the capture does see.
    whisper(&members[0].0, &gateway.address().to_string());

    let frames = capture.stop().unwrap();
    let is_outside = |frame: &&cli::lab::CapturedFrame| {
        let outside = [street.address(), gateway.address()];
        frame
            .addresses()
            .is_some_and(|(from, to)| outside.contains(&from) && outside.contains(&to))
    };
    let (outside, others): (Vec<_>, Vec<_>) = frames.iter().partition(is_outside);
    let heard = outside.iter().filter(|frame| frame.contains(MARKER));
    assert!(heard.count() >= 20, "ten pings and their answers in clear");
    let mut secrets: Vec<&[u8]> = vec![MARKER, NETWORK.as_bytes()];
    secrets.extend(["founder", "traveller", "teller", "clerk", "inmate"].map(str::as_bytes));
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
