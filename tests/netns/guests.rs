//! Guests behind a node's bridge: addresses from their node, names, full-size frames, and nothing in the open.

use crate::overlay::{
    address_of, dhclient, eventually, fabric, founder, guest, host_behind, lab, member, ping,
    udhcpc,
};
use cli::demo::Node;
use cli::lab::{INTERNET_BRIDGE, Lab, Machine, Nat};

/// Two sites, a guest at each, both addressed by their own nodes.
pub(crate) struct TwoGuests {
    pub(crate) near: Machine,
    pub(crate) far: Machine,
    pub(crate) near_address: String,
    pub(crate) far_address: String,
    pub(crate) nodes: [Node; 2],
    _others: (Node, [cli::lab::Process; 2]),
}

pub(crate) fn two_guests(lab: &Lab) -> TwoGuests {
    let (fabric, bootstrap) = fabric(lab);
    let left = host_behind(lab, Nat::PortRestricted, "left");
    let right = host_behind(lab, Nat::PortRestricted, "right");
    let first = founder(&left, &bootstrap, "lab", &[]);
    let second = member(&right, &first, "lab");
    let near = guest(lab, &left, "br0", "near");
    let far = guest(lab, &right, "br0", "far");
    for node in [&first, &second] {
        node.farlan(&["port", "add", "br0", "--kind", "guest"])
            .unwrap();
    }
    let (near_address, near_client) = udhcpc(&near);
    let (far_address, far_client) = dhclient(&far);
    TwoGuests {
        near,
        far,
        near_address,
        far_address,
        nodes: [first, second],
        _others: (fabric, [near_client, far_client]),
    }
}

#[test]
fn guests_get_addresses_from_their_nodes_and_find_each_other_by_name() {
    let lab = lab("guests");
    let stage = two_guests(&lab);

    assert_ne!(stage.near_address, stage.far_address);
    eventually(|| ping(&stage.near, &stage.far_address)).unwrap();
    eventually(|| ping(&stage.far, &stage.near_address)).unwrap();
    eventually(|| ping(&stage.near, "far")).unwrap();
    eventually(|| ping(&stage.near, "far.lab.farlan")).unwrap();
    eventually(|| ping(&stage.far, "near")).unwrap();
    for node in &stage.nodes {
        eventually(|| ping(node.machine(), "near")).unwrap();
        eventually(|| ping(node.machine(), "far")).unwrap();
    }
}

#[test]
fn full_size_frames_pass_over_an_underlay_of_1500_bytes() {
    let lab = lab("mtu");
    let stage = two_guests(&lab);
    eventually(|| ping(&stage.near, &stage.far_address)).unwrap();

    // 1472 bytes of ICMP payload are an IP packet of 1500 bytes and a frame of 1514.
    let argv = [
        "ping",
        "-c",
        "5",
        "-i",
        "0.2",
        "-W",
        "2",
        "-M",
        "do",
        "-s",
        "1472",
        &stage.far_address,
    ];
    eventually(|| stage.near.run(&argv)).unwrap();
}

#[test]
fn only_sealed_datagrams_cross_the_underlay() {
    let lab = lab("sealed");
    let stage = two_guests(&lab);
    eventually(|| ping(&stage.near, &stage.far_address)).unwrap();
    let capture = lab.internet().capture(INTERNET_BRIDGE, "ip", 512).unwrap();

    let pattern = "6661726c616e2069732068657265"; // "farlan is here"
    stage
        .near
        .run(&[
            "ping",
            "-c",
            "10",
            "-i",
            "0.05",
            "-p",
            pattern,
            "-s",
            "400",
            &stage.far_address,
        ])
        .unwrap();
    let frames = capture.stop().unwrap();

    let sealed = frames
        .iter()
        .filter(|frame| {
            frame
                .udp()
                .is_some_and(|udp| udp.payload.first() == Some(&0x84))
        })
        .count();
    assert!(
        sealed >= 20,
        "{sealed} sealed datagrams for 10 pings and their answers"
    );
    for frame in &frames {
        assert!(
            !frame.contains(b"farlan is here"),
            "plaintext on the underlay"
        );
        let (source, destination) = frame.addresses().unwrap();
        for address in [source, destination] {
            assert_ne!(
                address.octets()[..2],
                [10, 77],
                "an inner address on the underlay: {frame:?}"
            );
        }
    }
}

#[test]
fn a_guest_keeps_its_address_when_its_client_and_its_node_start_again() {
    let lab = lab("sticky");
    let (_fabric, bootstrap) = fabric(&lab);
    let host = host_behind(&lab, Nat::PortRestricted, "left");
    let mut node = founder(&host, &bootstrap, "lab", &[]);
    let machine = guest(&lab, &host, "br0", "vm");
    node.farlan(&["port", "add", "br0", "--kind", "guest"])
        .unwrap();
    let (before, client) = udhcpc(&machine);

    drop(client);
    node.process().kill().unwrap();
    let node = Node::up(&host, crate::overlay::FARLAN).unwrap();
    eventually(|| node.address("lab")).unwrap();
    machine
        .run(&["ip", "addr", "flush", "dev", "eth0"])
        .unwrap();
    let (after, _client) = udhcpc(&machine);

    assert_eq!(after, before);
}

#[test]
fn a_guest_cannot_speak_for_another() {
    let lab = lab("spoof");
    let stage = two_guests(&lab);
    eventually(|| ping(&stage.near, &stage.far_address)).unwrap();

    stage
        .near
        .run(&["ip", "link", "set", "eth0", "down"])
        .unwrap();
    stage
        .near
        .run(&["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"])
        .unwrap();
    stage
        .near
        .run(&["ip", "link", "set", "eth0", "up"])
        .unwrap();
    assert_eq!(
        address_of(&stage.near, "eth0").unwrap_or_default(),
        stage.near_address
    );

    for _ in 0..3 {
        assert!(
            ping(&stage.near, &stage.far_address).is_err(),
            "frames of a MAC that was never leased get through"
        );
    }
}
