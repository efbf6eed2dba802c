//! Joining by an invite, coming back, and refusals: each one clear line, exit status 1, nothing left behind.

use crate::overlay::{FARLAN, eventually, fabric, founder, host_behind, lab, member, ping};
use cli::demo::Node;
use cli::lab::{Machine, Nat};
use std::time::Duration;

/// Runs `farlan` where it has to fail, and checks the manner: status 1, one line that says `needle`.
fn refused(machine: &Machine, arguments: &[&str], needle: &str) -> String {
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
    errors[0].to_owned()
}

/// The files of a state directory.
fn files(machine: &Machine, state: &str) -> Vec<String> {
    let listing = machine
        .sh(&format!("[ ! -e {state} ] || find {state} -type f"))
        .unwrap();
    listing.lines().map(str::to_owned).collect()
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
    let host = lab.public_host("host").unwrap();

    refused(&host, &["up", "--invite", "this-is-no-invite"], "invite");

    assert!(
        files(&host, "/var/lib/farlan").len() <= 1,
        "at most the identity is left"
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

    refused(&late, &["up", "--invite", &token], "expired");

    assert!(
        files(&late, "/var/lib/farlan").len() <= 1,
        "at most the identity is left"
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
    );
}

#[test]
fn an_unreachable_bootstrap_is_told_in_one_line() {
    let lab = lab("unreachable");
    let invite = {
        let (_fabric, bootstrap) = fabric(&lab);
        let first = founder(&lab.public_host("first").unwrap(), &bootstrap, "lab", &[]);
        first.invite("lab").unwrap()
    };
    let late = lab.public_host("late").unwrap();

    refused(&late, &["up", "--invite", &invite], "reach");

    assert!(
        files(&late, "/var/lib/farlan").len() <= 1,
        "at most the identity is left"
    );
}

#[test]
fn a_second_node_on_the_same_state_directory_is_refused() {
    let lab = lab("second");
    let host = lab.public_host("host").unwrap();
    let node = Node::up(&host, FARLAN).unwrap();

    refused(&host, &["up"], "state directory");

    assert!(node.status().is_ok(), "the first node is not disturbed");
}

#[test]
fn a_subnet_that_overlaps_a_local_one_is_refused() {
    let lab = lab("overlap");
    let (_fabric, bootstrap) = fabric(&lab);
    let host = host_behind(&lab, Nat::PortRestricted, "a");
    let node = Node::up(&host, FARLAN).unwrap();

    refused(
        &host,
        &[
            "network",
            "create",
            "lab",
            "--subnet",
            "192.168.0.0/16",
            "--bootstrap",
            &bootstrap,
        ],
        "overlap",
    );

    assert!(node.network("lab").is_err());
}

#[test]
fn a_tap_that_cannot_be_made_is_told_in_one_line() {
    let lab = lab("tap");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("first").unwrap(), &bootstrap, "lab", &[]);
    let host = lab.public_host("host").unwrap();
    host.sh("mkdir -p /run/nothing; mount --bind /run/nothing /dev/net")
        .unwrap();

    refused(
        &host,
        &["up", "--invite", &first.invite("lab").unwrap()],
        "/dev/net/tun",
    );

    assert!(
        files(&host, "/var/lib/farlan").len() <= 1,
        "at most the identity is left"
    );
}

#[test]
fn a_full_disk_at_first_start_is_told_in_one_line_and_leaves_no_half_identity() {
    let lab = lab("full");
    let host = lab.public_host("host").unwrap();
    host.sh("mkdir /root/small; mount -t tmpfs -o size=4k,nr_inodes=64 small /root/small; head -c 4096 /dev/zero > /root/small/fill")
        .unwrap();

    refused(&host, &["up", "--state", "/root/small/state"], "space");

    assert_eq!(files(&host, "/root/small/state"), Vec::<String>::new());
}
