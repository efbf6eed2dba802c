//! Members that relay for each other on real kernels, where the fabric nodes do not, or are lost.

use crate::overlay::{
    FARLAN, await_relays, eventually, fabric_named, founder_knowing, host_behind, host_with_stack,
    lab, member, ping, within,
};
use crate::reachability::talk::Talk;
use crate::why::why;
use anyhow::{Context, Result, ensure};
use cli::demo::Node;
use cli::lab::{Lab, Machine, Nat, Stack};
use overlay_types::{PathKind, why::AdviceKind};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Members are asked for a place once no fabric node gave one for 3 s; then sessions follow.
const MEETING: Duration = Duration::from_secs(60);

/// The goal is 2 s, which the simulator holds; a busy machine may take so much longer.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// A fabric node with both IP versions that relays nothing.
fn fabric(lab: &Lab) -> (Node, Vec<String>) {
    let host = lab.public_host_with("fabric", Stack::Dual).unwrap();
    Node::fabric_everywhere_with(&host, FARLAN, &["--relay-rate", "0"]).unwrap()
}

/// Who relays between two, by the word of one of them.
fn relay_between(node: &Node, peer: &str) -> Result<String> {
    let path = node.peer("lab", peer)?["path"].clone();
    ensure!(path["kind"] == "relay", "the path to {peer} is {path}");
    let via = path["via"]
        .as_str()
        .context("it is not known through whom")?;
    Ok(via.to_owned())
}

/// Waits until two reach each other, and tells through whom.
fn meet(from: &Node, to: &Node, peer: &str) -> String {
    let address = eventually(|| to.address("lab")).unwrap();
    let began = Instant::now();
    let via = within(MEETING, || {
        ping(from.machine(), &address)?;
        relay_between(from, peer)
    });
    println!("relayed {:?} after both were up", began.elapsed());
    let large = ["ping", "-c", "5", "-i", "0.2", "-W", "2", "-s", "1400"];
    let argv = [&large[..], &[&address]].concat();
    from.machine().run(&argv).unwrap();
    via.unwrap()
}

/// `farlan why` says through which members the two reach each other, each way, and advises this.
fn told_why(from: &Node, peer: &str, relays: [&Node; 2], advice: &[AdviceKind]) {
    let by = relays.map(|relay| {
        let id = relay.status().unwrap()["node"]["id"].take();
        Some((PathKind::Relay, serde_json::from_value(id).unwrap()))
    });
    eventually(|| {
        let said = why(from, &[peer])?;
        let used = [&said.from, &said.to].map(|side| {
            let path = side.way.as_ref()?.path?;
            Some((path.kind, path.relay))
        });
        ensure!(used == by, "by {used:?}, not {by:?}");
        ensure!(!said.relaying.is_empty(), "nobody is named");
        let advised: Vec<_> = said.advice.iter().map(|given| given.kind).collect();
        ensure!(advised == advice, "{advised:?}");
        Ok(())
    })
    .unwrap();
}

/// What a node relayed for others, in bytes.
fn forwarded(node: &Node) -> u64 {
    let status = node.status().unwrap();
    assert_eq!(status["relay"]["serves"], true, "{status}");
    status["relay"]["forwarded_bytes"].as_u64().unwrap()
}

/// Sends all that a TCP connection takes for so long, and tells what arrived, in Mbit/s.
fn bulk(from: &Machine, to: &Machine, address: &str, span: Duration) -> f64 {
    let at: SocketAddr = (address.parse::<Ipv4Addr>().unwrap(), 7788).into();
    let listener = to.tcp_listener(at).unwrap();
    let reader = std::thread::spawn(move || {
        let (mut far, _) = listener.accept().unwrap();
        let (mut bytes, mut read, began) = (vec![0; 65_536], 0, Instant::now());
        while began.elapsed() < span {
            match far.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(count) => read += count,
            }
        }
        read as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e6
    });
    let mut near = from.tcp_connect(at, Duration::from_secs(10)).unwrap();
    let chunk = vec![7; 65_536];
    let began = Instant::now();
    while began.elapsed() < span + Duration::from_secs(1) && near.write_all(&chunk).is_ok() {}
    reader.join().unwrap()
}

/// A lab with two members behind random symmetric NATs, and a public one that relays, with these settings.
fn relayed_pair(lab: &Lab, settings: &str) -> (Node, [Node; 3]) {
    let (fabric, bootstraps) = fabric(lab);
    let relay_host = lab.public_host("relay").unwrap();
    relay_host.write_file("/etc/relay.toml", settings).unwrap();
    let relay = Node::up_with(&relay_host, FARLAN, &["--config", "/etc/relay.toml"]).unwrap();
    let mut words = vec!["network", "create", "lab"];
    words.extend(
        bootstraps
            .iter()
            .flat_map(|address| ["--bootstrap", address]),
    );
    relay.farlan(&words).unwrap();
    eventually(|| relay.address("lab")).unwrap();
    let a = member(&host_behind(lab, Nat::Symmetric, "a"), &relay, "lab");
    let b = member(&host_behind(lab, Nat::Symmetric, "b"), &relay, "lab");
    (fabric, [relay, a, b])
}

#[test]
fn a_public_member_relays_for_two_behind_symmetric_nats_and_no_more_than_it_gives() {
    let lab = lab("relays");
    let (_fabric, [relay, a, b]) = relayed_pair(&lab, "");

    assert_eq!(meet(&a, &b, "b-host"), "relay");
    use AdviceKind::{Ipv6, MapPort, Relay};
    let best = [Relay, MapPort, MapPort, Ipv6];
    told_why(&a, "b-host", [&relay, &relay], &best);

    let address = b.address("lab").unwrap();
    let mbit = bulk(a.machine(), b.machine(), &address, Duration::from_secs(6));
    println!("at the usual rate: {mbit:.2} Mbit/s");
    // 3 Mbit/s for each member, and a burst of 64 KiB; less what wrappers and losses take.
    assert!((0.5..3.3).contains(&mbit), "{mbit} Mbit/s");
    assert!(forwarded(&relay) > 500_000);
    let said = relay.farlan(&["status"]).unwrap();
    assert!(said.contains("for other members: 2 places"), "{said}");
}

#[test]
fn a_member_relays_as_much_as_it_is_told_and_its_own_traffic_goes_on() {
    let lab = lab("relays-more");
    let settings = "[relay]\nrate = 100000\nrate_member = 100000\n";
    let (_fabric, [relay, a, b]) = relayed_pair(&lab, settings);
    assert_eq!(meet(&a, &b, "b-host"), "relay");
    let (to_a, to_b) = (a.address("lab").unwrap(), b.address("lab").unwrap());

    let span = Duration::from_secs(5);
    let own = bulk(relay.machine(), a.machine(), &to_a, span);
    let relayed = bulk(a.machine(), b.machine(), &to_b, span);
    let (own_beside, relayed_beside) = std::thread::scope(|scope| {
        let others = scope.spawn(|| bulk(a.machine(), b.machine(), &to_b, span));
        std::thread::sleep(Duration::from_millis(500));
        let own = bulk(
            relay.machine(),
            a.machine(),
            &to_a,
            span - Duration::from_secs(1),
        );
        (own, others.join().unwrap())
    });
    println!(
        "its own: {own:.0} Mbit/s, relayed: {relayed:.0} Mbit/s; together: {own_beside:.0} and {relayed_beside:.0} Mbit/s"
    );
    assert!(relayed > 20.0, "{relayed} Mbit/s");
    assert!(own_beside > 5.0, "{own_beside} Mbit/s");
}

#[test]
fn a_connection_lives_through_the_loss_of_the_member_that_relays_it() {
    let lab = lab("relays-loss");
    let (_fabric, [first, a, b]) = relayed_pair(&lab, "");
    let second = member(&lab.public_host("second").unwrap(), &first, "lab");
    let third = member(&lab.public_host("third").unwrap(), &first, "lab");
    let mut relays = vec![("relay", first), ("second", second), ("third", third)];
    meet(&a, &b, "b-host");
    // Both need the second of their pair as well.
    for node in [&a, &b] {
        await_relays(node, 2).unwrap();
    }
    let address = b.address("lab").unwrap();
    let talk = Talk::by_tcp(a.machine(), b.machine(), &address).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let used = relay_between(&a, "b-host").unwrap();
    let at = relays.iter().position(|(name, _)| *name == used).unwrap();
    talk.worst();

    let (_, mut killed) = relays.remove(at);
    killed.process().kill().unwrap();
    std::thread::sleep(Duration::from_secs(8));

    let pause = talk.worst();
    println!("the relay in use is killed: {pause:?}");
    talk.end().unwrap();
    assert!(pause < PAUSE_MAX, "{pause:?}");
    assert_ne!(relay_between(&a, "b-host").unwrap(), used);
}

#[test]
fn a_connection_lives_through_the_loss_of_every_fabric_node() {
    let lab = lab("relays-fabric");
    let mut fabrics = ["fabric", "other"].map(|name| fabric_named(&lab, name));
    let bootstraps = fabrics.each_ref().map(|(_, address)| address.clone());
    let relay = founder_knowing(&lab.public_host("relay").unwrap(), &bootstraps, "lab");
    let [a, b] =
        ["a", "b"].map(|name| member(&host_behind(&lab, Nat::Symmetric, name), &relay, "lab"));
    let by = meet(&a, &b, "b-host");
    assert_ne!(by, "relay", "fabric nodes come first");
    // Both hold a place at the member meanwhile.
    within(MEETING, || {
        let places = &relay.status()?["relay"]["bound"];
        ensure!(places == 2, "{places} places of the member are bound");
        Ok(())
    })
    .unwrap();
    let talk = Talk::by_tcp(a.machine(), b.machine(), &b.address("lab").unwrap()).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    talk.worst();

    for (fabric, _) in &mut fabrics {
        fabric.process().kill().unwrap();
    }
    std::thread::sleep(Duration::from_secs(8));

    let pause = talk.worst();
    println!("every fabric node is killed: {pause:?}");
    talk.end().unwrap();
    assert!(pause < PAUSE_MAX, "{pause:?}");
    assert_eq!(relay_between(&a, "b-host").unwrap(), "relay");
}

#[test]
fn ipv4_alone_and_ipv6_alone_meet_through_a_member_with_both() {
    let lab = lab("relays-dual");
    let (_fabric, bootstraps) = fabric(&lab);
    let relay_host = lab.public_host_with("relay", Stack::Dual).unwrap();
    let relay = founder_knowing(&relay_host, &bootstraps, "lab");
    let four = host_with_stack(&lab, "four", Nat::PortRestricted, Stack::Ipv4);
    let six = host_with_stack(&lab, "six", Nat::PortRestricted, Stack::Ipv6);
    let (a, b) = (member(&four, &relay, "lab"), member(&six, &relay, "lab"));

    assert_eq!(meet(&a, &b, "six-host"), "relay");
    assert!(forwarded(&relay) > 0);
}

#[test]
fn members_that_share_no_relay_meet_through_two() {
    let lab = lab("relays-two");
    let (_fabric, bootstraps) = fabric(&lab);
    // The first has IPv4 alone and reaches the public relay, the last IPv6 alone; who has both is behind NATs.
    let one = founder_knowing(&lab.public_host("one").unwrap(), &bootstraps, "lab");
    let two_host = host_with_stack(&lab, "two", Nat::Symmetric, Stack::Dual);
    let two = member(&two_host, &one, "lab");
    let four = host_with_stack(&lab, "four", Nat::Symmetric, Stack::Ipv4);
    let six = host_with_stack(&lab, "six", Nat::PortRestricted, Stack::Ipv6);
    let (a, b) = (member(&four, &one, "lab"), member(&six, &one, "lab"));

    let via = meet(&a, &b, "six-host");
    println!("the last relay is {via}");
    assert!(forwarded(&one) > 0 && forwarded(&two) > 0);
    told_why(&a, "six-host", [&one, &two], &[AdviceKind::CommonIp]);
}
