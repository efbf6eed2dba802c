//! Joining by an invite, coming back, and refusals: each one clear line, exit status 1, nothing left behind.

use crate::overlay::{FARLAN, eventually, fabric, founder, host_behind, lab, member, ping};
use cli::demo::Node;
use cli::lab::{Machine, Nat};
use std::collections::BTreeSet;
use std::time::Duration;

/// Everything that a node could leave on a machine: files, interfaces, addresses, names and settings.
fn traces(machine: &Machine) -> BTreeSet<String> {
    let listing = machine
        .sh(
            "find /etc /run /var/lib /tmp /root -path /run/lab -prune -o -print
             ls /sys/class/net | sed 's/^/interface /'
             ip -o addr show scope global | sed 's/^[0-9]*: /address /; s/valid_lft.*//'
             ip route show table all | sed '/ fe80/d; s/^/route /'
             sed 's/^/hosts: /' /etc/hosts
             sed 's/^/resolver: /' /etc/resolv.conf
             sed 's/^/forwarding /' /proc/sys/net/ipv4/ip_forward
             for p in /proc/[0-9]*; do
                 ! [ \"$(cat $p/comm 2>/dev/null)\" = farlan ] || echo process ${p#/proc/}
             done",
        )
        .unwrap();
    listing.lines().map(|line| line.trim().to_owned()).collect()
}

/// What a start that failed may leave: a complete identity, in its directory.
const IDENTITY_ONLY: [&str; 2] = ["/var/lib/farlan", "/var/lib/farlan/identity"];

/// Runs `farlan` where it has to fail, and checks the manner: status 1, one line that says `needle`, and nothing left
/// behind but what `may_stay`.
fn refused(machine: &Machine, arguments: &[&str], needle: &str, may_stay: &[&str]) {
    let before = traces(machine);
    let mut argv = vec![FARLAN];
    argv.extend(arguments);
    let output = machine.try_run_for(Duration::from_secs(50), &argv).unwrap();
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}{}",
        output.stdout,
        output.stderr
    );
    let errors: Vec<&str> = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("farlan: "))
        .collect();
    assert_eq!(errors.len(), 1, "one line, not {:?}", output.stderr);
    assert!(
        errors[0].to_lowercase().contains(needle),
        "{:?} does not mention {needle:?}",
        errors[0]
    );

    let after = traces(machine);
    let left: Vec<_> = after
        .difference(&before)
        .filter(|trace| !may_stay.contains(&trace.as_str()))
        .collect();
    assert_eq!(left, Vec::<&String>::new(), "left behind");
    let gone: Vec<_> = before.difference(&after).collect();
    assert_eq!(gone, Vec::<&String>::new(), "taken away");
    let identity = machine
        .sh("cat /var/lib/farlan/identity 2>/dev/null | wc -c")
        .unwrap();
    assert!(
        ["0", "32"].contains(&identity.trim()),
        "half an identity: {identity} bytes"
    );
}

#[test]
fn members_at_three_sites_ping_each_other_by_address_and_by_name() {
    let lab = lab("joining");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(
        &host_behind(&lab, Nat::PortRestricted, "a"),
        &bootstrap,
        "lab",
        &[],
    );
    let second = member(&host_behind(&lab, Nat::PortRestricted, "b"), &first, "lab");
    let third = member(&host_behind(&lab, Nat::FullCone, "c"), &first, "lab");

    let nodes = [&first, &second, &third];
    let addresses: Vec<String> = nodes
        .iter()
        .map(|node| node.address("lab").unwrap())
        .collect();
    for node in nodes {
        for (other, address) in nodes.iter().zip(&addresses) {
            eventually(|| ping(node.machine(), address)).unwrap();
            eventually(|| ping(node.machine(), other.machine().name())).unwrap();
            eventually(|| {
                ping(
                    node.machine(),
                    &format!("{}.lab.farlan", other.machine().name()),
                )
            })
            .unwrap();
        }
    }
    let mut different = addresses.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 3, "{addresses:?}");
}

#[test]
fn a_node_that_was_killed_comes_back_with_its_address() {
    let lab = lab("restart");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(
        &host_behind(&lab, Nat::PortRestricted, "a"),
        &bootstrap,
        "lab",
        &[],
    );
    let host = host_behind(&lab, Nat::PortRestricted, "b");
    let mut second = member(&host, &first, "lab");
    let before = second.address("lab").unwrap();
    eventually(|| ping(first.machine(), &before)).unwrap();

    second.process().kill().unwrap();
    let second = Node::up(&host, FARLAN).unwrap();

    let after = eventually(|| second.address("lab")).unwrap();
    assert_eq!(after, before);
    eventually(|| ping(first.machine(), &before)).unwrap();
    eventually(|| ping(second.machine(), &first.address("lab")?)).unwrap();
}

#[test]
fn a_node_in_two_networks_keeps_them_apart() {
    let lab = lab("networks");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(
        &host_behind(&lab, Nat::FullCone, "a"),
        &bootstrap,
        "red",
        &["--subnet", "10.81.0.0/16"],
    );
    let second = founder(
        &host_behind(&lab, Nat::FullCone, "b"),
        &bootstrap,
        "blue",
        &["--subnet", "10.82.0.0/16"],
    );
    let both = member(&host_behind(&lab, Nat::FullCone, "c"), &first, "red");
    both.farlan(&["network", "join", &second.invite("blue").unwrap()])
        .unwrap();

    eventually(|| ping(both.machine(), &first.address("red")?)).unwrap();
    eventually(|| ping(both.machine(), &second.address("blue")?)).unwrap();

    let names = |node: &Node, network: &str| -> Vec<String> {
        node.peers(network)
            .unwrap()
            .iter()
            .map(|peer| peer["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(names(&both, "red"), ["a-host"]);
    assert_eq!(names(&both, "blue"), ["b-host"]);
    assert_eq!(names(&first, "red"), ["c-host"]);
    both.farlan(&["network", "leave", "blue"]).unwrap();
    assert!(both.network("blue").is_err());
    eventually(|| ping(both.machine(), &first.address("red")?)).unwrap();
}

#[test]
fn a_wrong_invite_is_refused_in_one_line() {
    let lab = lab("wrong");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("first").unwrap(), &bootstrap, "lab", &[]);
    let good = first.invite("lab").unwrap();
    let host = lab.public_host("host").unwrap();

    refused(
        &host,
        &["up", "--invite", "this-is-no-invite"],
        "invite",
        &[],
    );
    let cut = &good[..good.len() - 7];
    refused(&host, &["up", "--invite", cut], "invite", &[]);
    // Made for another network, whose registrars are of course not to be found.
    let other = {
        let (_fabric, bootstrap) = crate::overlay::fabric_named(&lab, "elsewhere");
        let alone = founder(&lab.public_host("alone").unwrap(), &bootstrap, "lab", &[]);
        alone.invite("lab").unwrap()
    };
    refused(
        &host,
        &["up", "--invite", &other],
        "cannot join",
        &IDENTITY_ONLY,
    );
}

#[test]
fn an_expired_invite_is_refused_in_one_line() {
    let lab = lab("expired");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("first").unwrap(), &bootstrap, "lab", &[]);
    let said = first.farlan(&["invite", "--expires", "1s"]).unwrap();
    let token = said
        .split_whitespace()
        .max_by_key(|word| word.len())
        .unwrap()
        .to_owned();
    std::thread::sleep(Duration::from_millis(2500));
    let late = lab.public_host("late").unwrap();

    refused(
        &late,
        &["up", "--invite", &token],
        "expired",
        &IDENTITY_ONLY,
    );
}

#[test]
fn an_invite_for_one_admits_one() {
    let lab = lab("uses");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("first").unwrap(), &bootstrap, "lab", &[]);
    let invite = first.invite("lab").unwrap();
    let (_second, _) =
        Node::up_with_invite(&lab.public_host("second").unwrap(), FARLAN, &invite).unwrap();

    refused(
        &lab.public_host("third").unwrap(),
        &["up", "--invite", &invite],
        "invite",
        &IDENTITY_ONLY,
    );
}

#[test]
fn an_unreachable_bootstrap_is_told_in_one_line() {
    let lab = lab("unreachable");
    let (invite, bootstrap) = {
        let (_fabric, bootstrap) = fabric(&lab);
        let first = founder(&lab.public_host("first").unwrap(), &bootstrap, "lab", &[]);
        (first.invite("lab").unwrap(), bootstrap)
    };
    let late = lab.public_host("late").unwrap();

    refused(&late, &["up", "--invite", &invite], "reach", &IDENTITY_ONLY);

    let node = Node::up(&late, FARLAN).unwrap();
    refused(
        &late,
        &["network", "create", "lab", "--bootstrap", &bootstrap],
        "reach",
        &[],
    );
    assert!(node.network("lab").is_err());
}

#[test]
fn a_second_node_on_the_same_state_directory_is_refused() {
    let lab = lab("second");
    let host = lab.public_host("host").unwrap();
    let node = Node::up(&host, FARLAN).unwrap();

    refused(&host, &["up"], "state directory", &[]);

    assert!(node.status().is_ok(), "the first node is not disturbed");
}

#[test]
fn a_subnet_that_overlaps_a_local_one_is_refused_by_the_owner_s_node() {
    let lab = lab("overlap");
    let (_fabric, bootstrap) = fabric(&lab);
    let host = host_behind(&lab, Nat::PortRestricted, "a");
    let node = Node::up(&host, FARLAN).unwrap();

    let create = ["network", "create", "lab", "--subnet", "192.168.0.0/16"];
    let arguments = [&create[..], &["--bootstrap", &bootstrap]].concat();
    refused(&host, &arguments, "overlap", &[]);

    assert!(node.network("lab").is_err());
}

#[test]
fn a_subnet_that_overlaps_a_local_one_is_refused_by_a_newcomer() {
    let lab = lab("overlap-join");
    let (_fabric, bootstrap) = fabric(&lab);
    let subnet = ["--subnet", "192.168.0.0/16"];
    let public = lab.public_host("first").unwrap();
    let first = founder(&public, &bootstrap, "lab", &subnet);
    let host = host_behind(&lab, Nat::PortRestricted, "a");

    let invite = first.invite("lab").unwrap();
    refused(
        &host,
        &["up", "--invite", &invite],
        "overlap",
        &IDENTITY_ONLY,
    );
}

#[test]
fn a_tap_that_cannot_be_made_is_told_in_one_line_and_the_invite_is_still_good() {
    let lab = lab("tap");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("first").unwrap(), &bootstrap, "lab", &[]);
    let host = lab.public_host("host").unwrap();
    let invite = first.invite("lab").unwrap();
    host.sh("mkdir -p /run/nothing; mount --bind /run/nothing /dev/net")
        .unwrap();

    refused(
        &host,
        &["up", "--invite", &invite],
        "/dev/net/tun",
        &IDENTITY_ONLY,
    );
    host.sh("umount /dev/net").unwrap();
    host.ip(&["link add taken type bridge"]).unwrap();
    let arguments = ["up", "--invite", &invite, "--tap", "taken"];
    refused(&host, &arguments, "'taken' is in use", &IDENTITY_ONLY);

    Node::up_with_invite(&host, FARLAN, &invite).unwrap();
}

#[test]
fn a_full_disk_at_first_start_is_told_in_one_line_and_leaves_no_half_identity() {
    let lab = lab("full");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("first").unwrap(), &bootstrap, "lab", &[]);
    let invite = first.invite("lab").unwrap();
    let host = lab.public_host("host").unwrap();

    // The disk is full from the beginning; or after the identity; or when the network is to be written down.
    for free in [0, 1, 2, 3] {
        let disk = format!("/root/disk-{free}");
        host.sh(&format!(
            "mkdir {disk}; mount -t tmpfs -o size=32k,nr_inodes=64 small {disk}
             head -c $((32768 - {free} * 4096)) /dev/zero > {disk}/fill"
        ))
        .unwrap();
        let state = format!("{disk}/state");
        let may_stay = [state.clone(), format!("{state}/identity")];
        let may_stay = if free == 0 { &[][..] } else { &may_stay[..] };
        let may_stay: Vec<&str> = may_stay.iter().map(String::as_str).collect();

        let arguments = ["up", "--state", &state, "--invite", &invite];
        refused(&host, &arguments, "space", &may_stay);

        let identity = host
            .sh(&format!(
                "! [ -e {state}/identity ] || wc -c < {state}/identity"
            ))
            .unwrap();
        let whole = if free == 0 { "" } else { "32" };
        assert_eq!(identity.trim(), whole, "with {free} pages free");
    }
}

#[test]
fn a_network_that_cannot_be_written_down_is_not_made() {
    let lab = lab("full-later");
    let (_fabric, bootstrap) = fabric(&lab);
    let host = lab.public_host("host").unwrap();
    host.sh("mkdir /root/disk; mount -t tmpfs -o size=64k,nr_inodes=64 small /root/disk")
        .unwrap();
    let state = ["--state", "/root/disk/state"];
    let _node = host
        .spawn("farlan", &[&[FARLAN], &state[..], &["up"]].concat())
        .unwrap();
    let status = [&[FARLAN], &state[..], &["status"]].concat();
    eventually(|| host.run(&status)).unwrap();

    for free in 0..4 {
        host.sh(&format!(
            "rm -f /root/disk/fill; cat /dev/zero > /root/disk/fill 2>/dev/null || :
             truncate -s -$(({free} * 4096)) /root/disk/fill"
        ))
        .unwrap();
        let create = ["network", "create", "lab", "--bootstrap", &bootstrap];
        refused(&host, &[&state[..], &create].concat(), "space", &[]);
    }
}

#[test]
fn the_owner_s_node_too_comes_back_after_a_kill_and_what_it_left_is_healed() {
    let lab = lab("owner-restart");
    let (_fabric, bootstrap) = fabric(&lab);
    let host = host_behind(&lab, Nat::PortRestricted, "a");
    let mut first = founder(&host, &bootstrap, "lab", &[]);
    let second = member(&host_behind(&lab, Nat::PortRestricted, "b"), &first, "lab");
    let before = first.address("lab").unwrap();
    eventually(|| ping(second.machine(), &before)).unwrap();
    eventually(|| ping(first.machine(), "b-host")).unwrap();
    host.bridge("br0", &[]).unwrap();
    first
        .farlan(&["port", "add", "br0", "--kind", "guest"])
        .unwrap();

    first.process().kill().unwrap();
    let mut first = Node::up(&host, FARLAN).unwrap();

    assert_eq!(eventually(|| first.address("lab")).unwrap(), before);
    eventually(|| ping(second.machine(), &before)).unwrap();
    eventually(|| ping(first.machine(), "b-host")).unwrap();
    member(&lab.public_host("third").unwrap(), &first, "lab");

    first.process().terminate().unwrap();
    let left = host
        .sh("ls /sys/class/net; grep farlan /etc/hosts || :")
        .unwrap();
    let left: Vec<&str> = left.split_whitespace().collect();
    assert_eq!(left, ["br0", "eth0", "lo"], "nothing of ours is left");
}
