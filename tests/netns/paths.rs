//! Which path two nodes end up on, for every pair of NATs; and that a path's loss is survived.

use crate::overlay::{await_path, eventually, fabric, founder, host_behind, lab, member, ping};
use crate::why::why;
use cli::lab::Nat;
use overlay_types::why::WayKind;

/// Builds a pair behind these NATs, pings both ways, and waits for the path to be what it should.
fn pair(name: &str, left: Nat, right: Nat, expected: &str) {
    let lab = lab(name);
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&host_behind(&lab, left, "a"), &bootstrap, "lab", &[]);
    let second = member(&host_behind(&lab, right, "b"), &first, "lab");
    let (first_address, second_address) = (
        first.address("lab").unwrap(),
        second.address("lab").unwrap(),
    );

    eventually(|| ping(first.machine(), &second_address)).unwrap();
    eventually(|| ping(second.machine(), &first_address)).unwrap();

    await_path(&first, "lab", "b-host", expected).unwrap();
    await_path(&second, "lab", "a-host", expected).unwrap();
    ping(first.machine(), &second_address).unwrap();
}

#[test]
fn two_port_restricted_nats_are_punched() {
    pair(
        "port-port",
        Nat::PortRestricted,
        Nat::PortRestricted,
        "direct",
    );
}

#[test]
fn two_full_cones_are_punched() {
    pair("full-full", Nat::FullCone, Nat::FullCone, "direct");
}

#[test]
fn an_address_restricted_and_a_symmetric_nat_are_punched() {
    pair("addr-sym", Nat::AddressRestricted, Nat::Symmetric, "direct");
}

#[test]
fn a_full_cone_and_a_symmetric_nat_are_punched() {
    pair("full-sym", Nat::FullCone, Nat::Symmetric, "direct");
}

#[test]
fn a_public_host_and_a_symmetric_nat_talk_directly() {
    pair("pub-sym", Nat::Public, Nat::Symmetric, "direct");
}

#[test]
fn two_symmetric_nats_are_relayed() {
    pair("sym-sym", Nat::Symmetric, Nat::Symmetric, "relay");
}

#[test]
fn two_hosts_on_one_lan_talk_over_it() {
    let lab = lab("same-lan");
    let (_fabric, bootstrap) = fabric(&lab);
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let (one, two) = (site.host("one").unwrap(), site.host("two").unwrap());
    let first = founder(&one, &bootstrap, "lab", &[]);
    let second = member(&two, &first, "lab");

    eventually(|| ping(first.machine(), &second.address("lab")?)).unwrap();
    await_path(&first, "lab", "two", "direct").unwrap();

    eventually(|| {
        let peer = first.peer("lab", "two")?;
        let remote = peer["path"]["remote"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        anyhow::ensure!(remote.starts_with("192.168."), "the path goes by {remote}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn networks_of_guests_and_other_overlays_are_no_ways_to_a_host() {
    let lab = lab("inner-networks");
    let (_fabric, bootstrap) = fabric(&lab);
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let (one, two) = (site.host("one").unwrap(), site.host("two").unwrap());
    // Whatever their names are; one bridge has no guest yet, the other a container.
    let inner = "ip link add lxdbr0 type bridge && ip addr add 10.99.1.1/24 dev lxdbr0
        ip link add br-lan type bridge && ip addr add 10.99.2.1/24 dev br-lan
        ip link add guest type veth peer name guest-end && ip link set guest master br-lan
        ip tuntap add dev vpn0 mode tun && ip addr add 10.99.3.1/24 dev vpn0
        for link in lxdbr0 br-lan guest guest-end vpn0; do ip link set $link up; done";
    one.sh(inner).unwrap();
    let first = founder(&one, &bootstrap, "lab", &[]);
    let second = member(&two, &first, "lab");
    eventually(|| ping(second.machine(), &first.address("lab")?)).unwrap();
    await_path(&second, "lab", "one", "direct").unwrap();

    let explanation = why(&second, &["one"]).unwrap();
    let ways_in: Vec<_> = explanation.to.site.ways_in.iter().collect();
    let hosts: Vec<_> = ways_in
        .iter()
        .filter(|way| way.kind == WayKind::Host)
        .collect();
    assert_eq!(hosts.len(), 1, "{ways_in:?}");
    assert!(hosts[0].addr.ip().to_string().starts_with("192.168."));
}
