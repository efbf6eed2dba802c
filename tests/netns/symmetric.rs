//! Symmetric NATs on real kernels: foretold ports, and ports met by chance. That two random ones are relayed is in
//! [`crate::paths`].

use crate::overlay::{eventually, fabric, founder, host_behind, lab, member, path_kind, ping};
use anyhow::ensure;
use cli::demo::Node;
use cli::lab::{Machine, Nat};
use std::time::Instant;

/// Pings from `from` until both nodes use a direct path: a pair that nobody uses is not worth much searching.
fn await_direct_while_used(from: (&Node, &str), to: (&Node, &str), address: &str) {
    let began = Instant::now();
    eventually(|| {
        ping(from.0.machine(), address)?;
        for (node, peer) in [(from.0, to.1), (to.0, from.1)] {
            let kind = path_kind(node, "lab", peer)?;
            ensure!(kind == "direct", "the path to {peer} is {kind}");
        }
        Ok(())
    })
    .unwrap();
    eprintln!("direct {:?} after both were up", began.elapsed());
}

/// The sockets of UDP that a node has open.
fn udp_sockets(machine: &Machine) -> usize {
    let list = machine.run(&["ss", "-Hlunp"]).unwrap();
    list.lines().filter(|line| line.contains("farlan")).count()
}

/// Builds a pair behind these NATs, and waits for a direct path that carries large and small packets both ways.
fn pair(name: &str, left: Nat, right: Nat) {
    let lab = lab(name);
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&host_behind(&lab, left, "a"), &bootstrap, "lab", &[]);
    let second = member(&host_behind(&lab, right, "b"), &first, "lab");
    let addresses = [&first, &second].map(|node| eventually(|| node.address("lab")).unwrap());

    await_direct_while_used((&first, "a-host"), (&second, "b-host"), &addresses[1]);

    let large = ["ping", "-c", "3", "-i", "0.2", "-W", "2", "-s", "1400"];
    for (machine, to) in [
        (first.machine(), &addresses[1]),
        (second.machine(), &addresses[0]),
    ] {
        machine.run(&[&large[..], &[to.as_str()]].concat()).unwrap();
    }
    eventually(|| {
        for node in [&first, &second] {
            let open = udp_sockets(node.machine());
            ensure!(open < 16, "{open} sockets are still open");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_incremental_nat_against_a_port_restricted_one_is_foretold() {
    pair("inc-port", Nat::SymmetricIncremental, Nat::PortRestricted);
}

#[test]
fn two_incremental_nats_are_foretold() {
    pair(
        "inc-inc",
        Nat::SymmetricIncremental,
        Nat::SymmetricIncremental,
    );
}

#[test]
fn an_incremental_nat_against_an_address_restricted_one_is_punched() {
    pair(
        "inc-addr",
        Nat::SymmetricIncremental,
        Nat::AddressRestricted,
    );
}

#[test]
fn a_random_symmetric_nat_meets_a_port_restricted_one_by_chance() {
    pair("sym-port", Nat::Symmetric, Nat::PortRestricted);
}
