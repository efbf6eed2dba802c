//! Symmetric NATs on real kernels: foretold ports, and ports met by chance. That two random ones are relayed is in
//! [`crate::paths`].

use crate::overlay::{eventually, fabric, founder, host_behind, lab, member, path_kind, ping};
use anyhow::ensure;
use cli::demo::Node;
use cli::lab::{Machine, Nat, Site};
use std::time::{Duration, Instant};

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

/// Flows that a small router bears: what Linux tracks in 64 MB. It refuses further ones, where Linux would first drop those that
/// nobody answered. Only the kernel's own namespace may set Linux's bound, so a rule of the router's does it.
const FLOWS_MAX: usize = 4096;

/// How often a neighbour opens a connection, each of which stays a flow for two minutes.
const NEIGHBOUR_EVERY: Duration = Duration::from_millis(30);

/// What a run by chance may take of them, and what the nodes have there beside.
const RUN_FLOWS_MAX: usize = 1024;
const OTHER_FLOWS_MAX: usize = 256;

/// So many flows pass a site's router, and no more.
fn bound_flows(site: &Site<'_>) {
    let rule = format!("ct state new ct count over {FLOWS_MAX} drop");
    let chain =
        format!("chain through {{\n type filter hook forward priority filter + 5;\n {rule}\n}}");
    let table = format!("table inet small {{\n{chain}\n}}\n");
    site.router().nft(&table).unwrap();
}

#[test]
fn a_small_router_bears_two_runs_by_chance_at_once_and_a_neighbour_goes_on() {
    let lab = lab("small");
    let (_fabric, bootstrap) = fabric(&lab);
    let server = lab.public_host("server").unwrap();
    let listener = server.tcp_listener((server.address(), 80)).unwrap();
    let at = listener.local_addr().unwrap();
    let home = lab.site("home", Nat::PortRestricted).unwrap();
    bound_flows(&home);
    let neighbour = home.host("neighbour").unwrap();
    let first = founder(&home.host("a-host").unwrap(), &bootstrap, "lab", &[]);
    let others = ["b", "c"].map(|name| {
        let host = host_behind(&lab, Nat::Symmetric, name);
        (member(&host, &first, "lab"), format!("{name}-host"))
    });
    let (mut flows_max, mut connections) = (0, 0);
    std::thread::scope(|scope| {
        let runs = others.each_ref().map(|(other, name)| {
            let first = &first;
            scope.spawn(move || {
                let address = other.address("lab").unwrap();
                await_direct_while_used((first, "a-host"), (other, name), &address);
            })
        });
        while runs.iter().any(|run| !run.is_finished()) {
            neighbour.tcp_connect(at, Duration::from_secs(2)).unwrap();
            listener.accept().unwrap();
            connections += 1;
            let flows = home.router().run(&["conntrack", "-C"]).unwrap();
            flows_max = flows_max.max(flows.trim().parse().unwrap());
            std::thread::sleep(NEIGHBOUR_EVERY);
        }
    });
    eprintln!("{flows_max} flows at most, {connections} connections beside");
    assert!(flows_max <= others.len() * RUN_FLOWS_MAX + connections + OTHER_FLOWS_MAX);
    assert!(connections > 0);
}
