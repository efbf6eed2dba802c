//! A site that nobody configured: the fabric is found by multicast DNS on the LAN.

use crate::overlay::{FARLAN, eventually, lab, member, ping};
use cli::demo::Node;
use cli::lab::{Machine, Nat};

#[test]
fn a_network_is_made_and_joined_on_a_lan_where_nobody_was_told_an_address() {
    let lab = lab("mdns");
    let site = lab.site("office", Nat::PortRestricted).unwrap();
    let fabric = site.host("fabric").unwrap();
    let (owner, newcomer) = (site.host("owner").unwrap(), site.host("newcomer").unwrap());
    let mut process = fabric.spawn("farlan", &[FARLAN, "fabric"]).unwrap();
    let started = |line: &str| line.starts_with("ready ");
    process
        .wait_for("ready", std::time::Duration::from_secs(60), started)
        .unwrap();

    let founder = Node::up(&owner, FARLAN).unwrap();
    founder.farlan(&["network", "create", "lab"]).unwrap();
    eventually(|| founder.address("lab")).unwrap();
    let second = member(&newcomer, &founder, "lab");

    let address = second.address("lab").unwrap();
    eventually(|| ping(&owner as &Machine, &address)).unwrap();
}
