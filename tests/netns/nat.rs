//! What a node learns of the NAT in front of it: from fabric nodes, and from coturn, which nobody here wrote.

use crate::overlay::{FARLAN, eventually, fabric, founder, host_behind, lab, within};
use cli::demo::Node;
use cli::lab::{Host, Lab, Nat, Process, SiteOptions};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use tunnel::stun::{
    LifetimeProbe, MappingLifetime, NatBehaviour, NatRule, PortAssignment, PortSampler,
    ProbeSocket, StunClient,
};

/// What `farlan status` says of the NAT, once it is known.
fn nat_of(node: &Node, key: &str) -> serde_json::Value {
    eventually(|| {
        let seen = node.status()?["nat"][key].clone();
        anyhow::ensure!(
            !seen.is_null() && seen != "unknown",
            "{key} is not known yet"
        );
        Ok(seen)
    })
    .unwrap()
}

#[test]
fn nodes_see_what_their_nat_does() {
    let lab = lab("behaviour");
    let (_fabric, bootstrap) = fabric(&lab);
    let nats = [
        (Nat::PortRestricted, "endpoint-independent", "random"),
        (Nat::Masquerade, "endpoint-independent", "preserving"),
        (Nat::Symmetric, "address-and-port-dependent", "random"),
        (
            Nat::SymmetricIncremental,
            "address-and-port-dependent",
            "contiguous by 1",
        ),
    ];
    let nodes = nats.map(|(nat, ..)| {
        let name = format!("{nat:?}").to_lowercase();
        founder(&host_behind(&lab, nat, &name), &bootstrap, "lab", &[])
    });
    for (node, (nat, mapping, ports)) in nodes.iter().zip(nats) {
        assert_eq!(nat_of(node, "mapping"), mapping, "{nat}");
        assert_eq!(
            nat_of(node, "filtering"),
            "address-and-port-dependent",
            "{nat}"
        );
        assert_eq!(nat_of(node, "ports"), ports, "{nat}");
        assert_eq!(nat_of(node, "hairpin"), false, "{nat}");
    }
    let open = founder(
        &host_behind(&lab, Nat::FullCone, "cone"),
        &bootstrap,
        "lab",
        &[],
    );
    assert_ne!(nat_of(&open, "filtering"), "address-and-port-dependent");
    let options = SiteOptions {
        hairpins: true,
        ..SiteOptions::default()
    };
    let site = lab.site_with("hairpin", Nat::PortRestricted, options);
    let host = site.unwrap().host("hairpin-host").unwrap();
    let hairpinned = founder(&host, &bootstrap, "lab", &[]);
    assert_eq!(nat_of(&hairpinned, "hairpin"), true);
}

#[test]
fn a_node_measures_how_long_its_nat_keeps_a_mapping() {
    let lab = lab("lifetime");
    let (_fabric, bootstrap) = fabric(&lab);
    let options = SiteOptions {
        udp_timeout: Duration::from_secs(18),
        ..SiteOptions::default()
    };
    let site = lab.site_with("home", Nat::Masquerade, options).unwrap();
    let node = founder(&site.host("one").unwrap(), &bootstrap, "lab", &[]);
    within(Duration::from_secs(90), || {
        let nat = node.status()?["nat"].clone();
        let bounds = (&nat["lifetime_at_least_s"], &nat["lifetime_less_than_s"]);
        anyhow::ensure!(bounds == (&15.into(), &20.into()), "{nat}");
        Ok(())
    })
    .unwrap();
}

/// coturn with two addresses, as RFC 5780 wants it.
fn coturn(lab: &Lab) -> (Host, Process, SocketAddr) {
    let host = lab.public_host("coturn").unwrap();
    let second = "198.18.200.1";
    host.ip(&[&format!("addr add {second}/16 dev eth0")])
        .unwrap();
    let first = host.address().to_string();
    let argv = [
        "turnserver",
        "-n",
        "--no-tls",
        "--no-dtls",
        "--no-cli",
        "--no-auth",
        "--log-file=stdout",
        "-L",
        &first,
        "-L",
        second,
        "-E",
        &first,
    ];
    let server = host.spawn("turnserver", &argv).unwrap();
    let at = (host.address(), 3478).into();
    (host, server, at)
}

#[test]
fn a_node_learns_from_coturn_what_its_nat_does() {
    let lab = lab("coturn-node");
    let (_machine, _server, at) = coturn(&lab);
    let stun = at.to_string();
    // There is no fabric node: whatever they know is from there.
    let nats = [
        (
            Nat::AddressRestricted,
            "endpoint-independent",
            "address-dependent",
        ),
        (
            Nat::PortRestricted,
            "endpoint-independent",
            "address-and-port-dependent",
        ),
        (
            Nat::Symmetric,
            "address-and-port-dependent",
            "address-and-port-dependent",
        ),
    ];
    let nodes = nats.map(|(nat, ..)| {
        let host = host_behind(&lab, nat, &format!("{nat:?}").to_lowercase());
        Node::up_with(&host, FARLAN, &["--stun", &stun]).unwrap()
    });
    for (node, (nat, mapping, filtering)) in nodes.iter().zip(nats) {
        assert_eq!(nat_of(node, "mapping"), mapping, "{nat}");
        assert_eq!(nat_of(node, "filtering"), filtering, "{nat}");
    }
}

#[test]
fn another_nat_in_front_is_learned_when_the_default_route_flips() {
    let lab = lab("flip");
    let (_fabric, bootstrap) = fabric(&lab);
    let home = lab.site("home", Nat::PortRestricted).unwrap();
    let cafe = lab.site("cafe", Nat::Symmetric).unwrap();
    let host = home.host("laptop").unwrap();
    let wifi = cafe.second_uplink(host.machine(), "eth1").unwrap();
    let node = founder(&host, &bootstrap, "lab", &[]);
    assert_eq!(nat_of(&node, "mapping"), "endpoint-independent");

    for (uplink, mapping) in [
        (&wifi, "address-and-port-dependent"),
        (host.uplink(), "endpoint-independent"),
    ] {
        uplink.make_default().unwrap();
        eventually(|| {
            let nat = node.status()?["nat"].clone();
            anyhow::ensure!(nat["mapping"] == mapping, "{nat}");
            Ok(())
        })
        .unwrap();
        assert_eq!(nat_of(&node, "ports"), "random");
    }
}

/// Runs a client on the first socket until its tests are done; the others are fresh, for samples.
fn learn(sockets: &[UdpSocket], server: SocketAddr) -> NatBehaviour {
    let (socket, fresh) = sockets.split_first().unwrap();
    let (mut fresh, mut sampled) = (fresh.iter(), None);
    let mut sampler = PortSampler::new(1);
    let address = socket.local_addr().unwrap();
    let mut client = StunClient::new(1, Instant::now());
    client.set_host_candidates(&[address], Instant::now());
    client.set_servers(&[server], Instant::now());
    let give_up_at = Instant::now() + Duration::from_secs(40);
    let mut bytes = [0; 1024];
    while client.behaviour().hairpin.is_none() {
        assert!(Instant::now() < give_up_at, "{:?}", client.behaviour());
        while let Some((to, question)) = client.poll_transmit() {
            socket.send_to(&question, to).unwrap();
        }
        if let Some((len, from)) = receive(socket, &mut bytes) {
            client.handle_datagram(from, &bytes[..len], Instant::now());
        }
        client.handle_timeout(Instant::now());
        if client.poll_sample() {
            sampled = fresh.next();
            sampler.sample(1, &client.sample_servers(), Instant::now());
        }
        let Some(sampled) = sampled else { continue };
        while let Some((_, to, question)) = sampler.poll_transmit() {
            sampled.send_to(&question, to).unwrap();
        }
        if let Some((len, from)) = receive(sampled, &mut bytes) {
            sampler.handle_datagram(1, from, &bytes[..len], Instant::now());
        }
        sampler.handle_timeout(Instant::now());
        while let Some((_, seen)) = sampler.poll_sampled() {
            client.handle_sampled(seen, Instant::now());
        }
    }
    client.behaviour()
}

fn receive(socket: &UdpSocket, bytes: &mut [u8]) -> Option<(usize, SocketAddr)> {
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    socket.recv_from(bytes).ok()
}

#[test]
fn coturn_shows_every_nat_as_it_is() {
    use NatRule::{
        AddressAndPortDependent as Apd, AddressDependent as Ad, EndpointIndependent as Ei,
    };
    let lab = lab("coturn");
    let (_machine, _server, at) = coturn(&lab);
    let step = PortAssignment::Contiguous { step: 1 };
    let nats = [
        (Nat::FullCone, Ei, Ei, PortAssignment::Random),
        (Nat::AddressRestricted, Ei, Ad, PortAssignment::Random),
        (Nat::PortRestricted, Ei, Apd, PortAssignment::Random),
        (Nat::Masquerade, Ei, Apd, PortAssignment::Preserving),
        (Nat::Symmetric, Apd, Apd, PortAssignment::Random),
        (Nat::SymmetricIncremental, Apd, Apd, step),
    ];
    let sockets = nats.map(|(nat, ..)| {
        let host = host_behind(&lab, nat, &format!("{nat:?}").to_lowercase());
        [7000, 7001, 7002, 7003].map(|port| host.udp_socket((host.address(), port)).unwrap())
    });
    let seen = std::thread::scope(|scope| {
        let learning = sockets
            .each_ref()
            .map(|sockets| scope.spawn(move || learn(sockets, at)));
        learning.map(|thread| thread.join().unwrap())
    });
    for ((nat, mapping, filtering, ports), seen) in nats.into_iter().zip(seen) {
        let told = NatBehaviour {
            mapping,
            filtering,
            ports,
            hairpin: Some(false),
        };
        assert_eq!(seen, told, "{nat}");
    }
}

#[test]
fn coturn_helps_to_measure_a_mappings_lifetime() {
    let lab = lab("coturn-life");
    let (_machine, _server, at) = coturn(&lab);
    let options = SiteOptions {
        udp_timeout: Duration::from_secs(18),
        ..SiteOptions::default()
    };
    let site = lab.site_with("home", Nat::Masquerade, options).unwrap();
    let host = site.host("one").unwrap();
    let [quiet, asking] = [7001, 7002].map(|port| host.udp_socket((host.address(), port)).unwrap());
    let mut probe = LifetimeProbe::new(1, at, Instant::now());
    let mut bytes = [0; 1024];
    while probe.poll_timeout().is_some() {
        while let Some((socket, to, question)) = probe.poll_transmit() {
            let socket = if socket == ProbeSocket::Quiet {
                &quiet
            } else {
                &asking
            };
            socket.send_to(&question, to).unwrap();
        }
        for (socket, of) in [(ProbeSocket::Quiet, &quiet), (ProbeSocket::Asking, &asking)] {
            if let Some((len, from)) = receive(of, &mut bytes) {
                probe.handle_datagram(socket, from, &bytes[..len], Instant::now());
            }
        }
        probe.handle_timeout(Instant::now());
    }
    let told = MappingLifetime {
        at_least: Duration::from_secs(15),
        less_than: Some(Duration::from_secs(20)),
    };
    assert_eq!(probe.lifetime(), Some(told));
}
