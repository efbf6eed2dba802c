//! What each kind of site lets through, seen by plain sockets.

use super::{PATIENCE, mapping_seen, receive};
use crate::overlay::host_with_stack;
use anyhow::Result;
use cli::lab::{Host, INTERNET_BRIDGE, Lab, Machine, Nat, Outbound, Site, SiteOptions, Stack};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

/// A socket of a host at its address; port 0 means any.
fn at(host: &Host, port: u16) -> UdpSocket {
    host.udp_socket((host.address(), port)).unwrap()
}

/// The same by IPv6.
fn at6(host: &Host, port: u16) -> UdpSocket {
    host.udp_socket((host.address6(), port)).unwrap()
}

/// Whether a datagram from one socket reaches the other at `to`.
fn reaches(from: &UdpSocket, to: SocketAddr, receiver: &UdpSocket) -> bool {
    from.send_to(b"knock", to).is_ok() && receive(receiver).is_some()
}

/// Whether a TCP connection can be made.
fn connects(from: &Machine, to: impl Into<SocketAddr>) -> bool {
    from.tcp_connect(to, PATIENCE).is_ok()
}

/// Whether UDP leaves a host for this socket.
fn udp_leaves(host: &Host, listening: &UdpSocket) -> bool {
    let from = host
        .udp_socket(("0.0.0.0".parse::<IpAddr>().unwrap(), 0))
        .unwrap();
    reaches(&from, listening.local_addr().unwrap(), listening)
}

/// A public host that listens on these TCP ports.
fn listening(lab: &Lab, name: &str, ports: &[u16]) -> (Host, Vec<TcpListener>) {
    let host = lab.public_host(name).unwrap();
    let listeners = ports
        .iter()
        .map(|port| host.tcp_listener((host.address(), *port)).unwrap());
    let listeners = listeners.collect();
    (host, listeners)
}

#[test]
fn a_nat_that_maps_by_endpoint_gives_no_two_of_them_one_port() {
    let lab = Lab::start("ports").unwrap();
    let server = at(&lab.public_host("server").unwrap(), 4001);
    let site = lab.site("site", Nat::PortRestricted).unwrap();
    let hosts = ["one", "two"].map(|name| site.host(name).unwrap());

    let mut seen = std::collections::BTreeSet::new();
    for port in 5000..5050 {
        for host in &hosts {
            let mapped = mapping_seen(&at(host, port), &server);
            assert_ne!(mapped.port(), port, "it does not keep the port's number");
            assert!(seen.insert(mapped), "{mapped} is another's");
        }
    }
}

#[test]
fn a_symmetric_incremental_nat_gives_each_destination_the_next_port() {
    let lab = Lab::start("incremental").unwrap();
    let (near, far) = (
        lab.public_host("near").unwrap(),
        lab.public_host("far").unwrap(),
    );
    let site = lab.site("site", Nat::SymmetricIncremental).unwrap();
    let host = site.host("host").unwrap();
    let client = at(&host, 5000);

    let servers = [at(&near, 4001), at(&near, 4002), at(&far, 4001)];
    let ports = servers
        .each_ref()
        .map(|server| mapping_seen(&client, server).port());

    assert_eq!(
        [ports[1] - ports[0], ports[2] - ports[1]],
        [1, 1],
        "{ports:?}"
    );
    let again = mapping_seen(&client, &servers[0]).port();
    assert_eq!(again, ports[0], "a mapping stays as it is");
}

/// Where a second server sees a host, whose mapping that server had known of and written to before the host wrote.
fn mapping_after_an_early_knock(nat: Nat) -> (SocketAddr, SocketAddr) {
    let lab = Lab::start("early").unwrap();
    let (stun, peer) = (
        lab.public_host("stun").unwrap(),
        lab.public_host("peer").unwrap(),
    );
    let site = lab.site("site", nat).unwrap();
    let host = site.host("host").unwrap();
    let (client, stun, peer) = (at(&host, 5000), at(&stun, 3478), at(&peer, 6000));
    let told = mapping_seen(&client, &stun);

    assert!(!reaches(&peer, told, &client), "nothing was sent there yet");
    (told, mapping_seen(&client, &peer))
}

#[test]
fn an_open_router_loses_the_mapping_to_a_peer_that_knocks_first() {
    let (told, seen) = mapping_after_an_early_knock(Nat::MasqueradeOpen);
    assert_eq!(told.ip(), seen.ip());
    assert_ne!(told.port(), seen.port(), "the knock took the port");

    let (told, seen) = mapping_after_an_early_knock(Nat::Masquerade);
    assert_eq!(told, seen, "a router that keeps silent keeps the mapping");
}

#[test]
fn behind_a_carrier_both_routers_translate_and_the_stricter_one_filters() {
    let lab = Lab::start("carrier").unwrap();
    let (near, far) = (
        lab.public_host("near").unwrap(),
        lab.public_host("far").unwrap(),
    );
    let options = SiteOptions {
        lan_prefix: Some([100, 64, 1]),
        ..SiteOptions::default()
    };
    let carrier = lab.site_with("carrier", Nat::FullCone, options).unwrap();
    let home = carrier.site("home", Nat::PortRestricted).unwrap();
    let neighbour = at(&carrier.host("neighbour").unwrap(), 4001);
    let host = home.host("host").unwrap();
    let client = at(&host, 5000);
    let (near, far) = (at(&near, 4001), at(&far, 4001));

    assert_eq!(mapping_seen(&client, &neighbour).ip(), home.outside());
    assert!(home.outside().octets().starts_with(&[100, 64, 1]));
    let seen = mapping_seen(&client, &near);
    assert_eq!(seen.ip(), carrier.outside());
    assert_eq!(mapping_seen(&client, &far), seen, "both map by endpoint");

    let client = at(&host, 5001);
    let seen = mapping_seen(&client, &near);
    assert!(reaches(&near, seen, &client));
    assert!(!reaches(&far, seen, &client), "the home's router filters");
}

/// Two hosts behind one NAT that keeps them from each other, and where a public server sees each.
fn two_behind_one(nat: Nat, hairpins: bool, act: impl FnOnce([(UdpSocket, SocketAddr); 2])) {
    let lab = Lab::start("hairpin").unwrap();
    let server = at(&lab.public_host("server").unwrap(), 3478);
    let options = SiteOptions {
        hairpins,
        isolates_hosts: true,
        ..SiteOptions::default()
    };
    let site = lab.site_with("site", nat, options).unwrap();
    let ends = ["one", "two"].map(|name| {
        let socket = at(&site.host(name).unwrap(), 5000);
        let seen = mapping_seen(&socket, &server);
        (socket, seen)
    });
    act(ends);
}

#[test]
fn a_nat_that_hairpins_leads_from_one_host_to_the_others_outside_address() {
    for nat in [Nat::FullCone, Nat::AddressRestricted, Nat::PortRestricted] {
        two_behind_one(nat, true, |[(one, one_seen), (two, two_seen)]| {
            one.send_to(b"to two", two_seen).unwrap();
            let got = receive(&two);
            assert_eq!(got, Some(("to two".to_owned(), one_seen)), "{nat}");
            two.send_to(b"to one", one_seen).unwrap();
            let got = receive(&one);
            assert_eq!(got, Some(("to one".to_owned(), two_seen)), "{nat}");
        });
    }
}

#[test]
fn a_nat_that_does_not_hairpin_leads_nowhere() {
    for nat in [Nat::FullCone, Nat::PortRestricted, Nat::Masquerade] {
        two_behind_one(nat, false, |[(one, one_seen), (two, two_seen)]| {
            assert!(!reaches(&one, two_seen, &two), "{nat}");
            assert!(!reaches(&two, one_seen, &one), "{nat}");
        });
    }
    let lab = Lab::start("hairpin-none").unwrap();
    let options = SiteOptions {
        hairpins: true,
        ..SiteOptions::default()
    };
    assert!(lab.site_with("site", Nat::Symmetric, options).is_err());
}

#[test]
fn a_lan_that_isolates_its_hosts_lets_them_reach_the_router_alone() {
    let reach_each_other = |isolates_hosts: bool| {
        let lab = Lab::start("isolated").unwrap();
        let options = SiteOptions {
            isolates_hosts,
            ..SiteOptions::default()
        };
        let site = lab.site_with("site", Nat::PortRestricted, options).unwrap();
        let (one, two) = (site.host("one").unwrap(), site.host("two").unwrap());
        let gateway = site.gateway().to_string();
        one.run(&["ping", "-c", "1", "-W", "1", &gateway]).unwrap();
        let (one, two) = (at(&one, 5000), at(&two, 5000));
        reaches(&one, two.local_addr().unwrap(), &two)
    };

    assert!(reach_each_other(false));
    assert!(!reach_each_other(true));
}

/// A site whose router lets only this out, and a host there.
fn restricted(lab: &Lab, outbound: Outbound) -> Result<(Site<'_>, Host)> {
    let options = SiteOptions {
        outbound,
        ..SiteOptions::default()
    };
    let site = lab.site_with("site", Nat::Masquerade, options)?;
    let host = site.host("host")?;
    Ok((site, host))
}

#[test]
fn a_site_without_udp_lets_out_tcp_443_and_nothing_else() {
    let lab = Lab::start("udp-blocked").unwrap();
    let (server, _listeners) = listening(&lab, "server", &[22, 53, 80, 443, 4077]);
    let (dns, data) = (at(&server, 53), at(&server, 4078));
    let (site, host) = restricted(&lab, Outbound::Tcp443).unwrap();

    assert!(connects(&host, (server.address(), 443)));
    for port in [22, 53, 80, 4077] {
        assert!(!connects(&host, (server.address(), port)), "TCP to {port}");
    }
    assert!(!udp_leaves(&host, &dns));
    assert!(!udp_leaves(&host, &data));
    let pinged = host.try_run(&["ping", "-c", "1", "-W", "1", &server.address().to_string()]);
    assert!(!pinged.unwrap().is_success());
    let resolver = site.router().udp_socket((site.gateway(), 53)).unwrap();
    assert!(
        !udp_leaves(&host, &resolver),
        "not even the router is asked"
    );
}

/// Asks a proxy for a connection and returns what it said and the connection.
fn connect_through(
    host: &Machine,
    proxy: SocketAddr,
    target: SocketAddr,
) -> (String, std::net::TcpStream) {
    let mut stream = host.tcp_connect(proxy, PATIENCE).unwrap();
    stream
        .set_read_timeout(Some(std::time::Duration::from_secs(5)))
        .unwrap();
    write!(
        stream,
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"
    )
    .unwrap();
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        said.push(byte[0]);
    }
    (String::from_utf8(said).unwrap(), stream)
}

#[test]
fn a_site_with_a_proxy_lets_out_what_asks_the_proxy_for_port_443() {
    let lab = Lab::start("proxy").unwrap();
    let (server, listeners) = listening(&lab, "server", &[443, 22]);
    let data = at(&server, 4078);
    let (site, host) = restricted(&lab, Outbound::HttpProxy).unwrap();
    let (_proxy, proxy) = site.http_proxy().unwrap();

    assert!(
        !connects(&host, (server.address(), 443)),
        "only the proxy gets out"
    );
    assert!(!udp_leaves(&host, &data));
    let (said, mut near) = connect_through(&host, proxy.into(), (server.address(), 443).into());
    assert!(said.split(' ').nth(1) == Some("200"), "{said}");
    let (mut far, from) = listeners[0].accept().unwrap();
    assert_eq!(from.ip(), site.outside());
    near.write_all(b"there").unwrap();
    far.write_all(b"back ").unwrap();
    let mut bytes = [0; 5];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"there");
    near.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"back ");
    let (said, _refused) = connect_through(&host, proxy.into(), (server.address(), 22).into());
    assert!(said.split(' ').nth(1) == Some("403"), "{said}");
}

#[test]
fn a_site_with_ssh_alone_lets_out_tcp_22_to_its_gateway() {
    let lab = Lab::start("ssh-only").unwrap();
    let (gateway, _gateway) = listening(&lab, "gateway", &[22, 443]);
    let (other, _other) = listening(&lab, "other", &[22, 443]);
    let data = at(&gateway, 22);
    let (_site, host) = restricted(&lab, Outbound::Ssh(gateway.address())).unwrap();

    assert!(connects(&host, (gateway.address(), 22)));
    assert!(!connects(&host, (gateway.address(), 443)));
    for port in [22, 443] {
        assert!(!connects(&host, (other.address(), port)), "TCP to {port}");
    }
    assert!(!udp_leaves(&host, &data));
}

#[test]
fn a_site_with_ipv6_alone_has_no_way_to_ipv4_and_a_firewall_to_ipv6() {
    let lab = Lab::start("ipv6-only").unwrap();
    let public = lab.public_host_with("public", Stack::Dual).unwrap();
    let stranger = lab.public_host_with("stranger", Stack::Ipv6).unwrap();
    let host = host_with_stack(&lab, "six", Nat::PortRestricted, Stack::Ipv6);
    let other = host_with_stack(&lab, "other", Nat::PortRestricted, Stack::Ipv6);

    let (four, six) = (at(&public, 4001), at6(&public, 4001));
    assert!(!udp_leaves(&host, &four));
    let routes = host.run(&["ip", "-4", "route"]).unwrap();
    assert_eq!(routes.trim(), "", "no IPv4 at all");
    let client = at6(&host, 5000);
    assert_eq!(
        mapping_seen(&client, &six),
        client.local_addr().unwrap(),
        "nothing is translated"
    );
    assert!(reaches(&six, client.local_addr().unwrap(), &client));
    let another_port = at6(&public, 4002);
    for unasked in [another_port, at6(&stranger, 4001)] {
        assert!(
            !reaches(&unasked, client.local_addr().unwrap(), &client),
            "{unasked:?}"
        );
    }

    // Both firewalls are opened from inside.
    let peer = at6(&other, 5000);
    let addresses = [&client, &peer].map(|socket| socket.local_addr().unwrap());
    assert!(!reaches(&peer, addresses[0], &client));
    assert!(reaches(&client, addresses[1], &peer));
    assert!(reaches(&peer, addresses[0], &client));
}

#[test]
fn a_public_site_with_ipv6_filters_nothing() {
    let lab = Lab::start("ipv6-public").unwrap();
    let stranger = at6(
        &lab.public_host_with("stranger", Stack::Dual).unwrap(),
        4001,
    );
    let host = host_with_stack(&lab, "open", Nat::Public, Stack::Dual);

    let client = at6(&host, 5000);
    assert!(reaches(&stranger, client.local_addr().unwrap(), &client));
}

#[test]
fn a_dual_stack_site_translates_ipv4_and_not_ipv6() {
    let lab = Lab::start("dual").unwrap();
    let public = lab.public_host_with("public", Stack::Dual).unwrap();
    let options = SiteOptions {
        stack: Stack::Dual,
        ..SiteOptions::default()
    };
    let site = lab.site_with("home", Nat::PortRestricted, options).unwrap();
    let host = site.host("host").unwrap();

    let seen = mapping_seen(&at(&host, 5000), &at(&public, 4001));
    assert_eq!(seen.ip(), site.outside());
    let client = at6(&host, 5000);
    let seen = mapping_seen(&client, &at6(&public, 4001));
    assert_eq!(seen, client.local_addr().unwrap());
    assert!(
        !reaches(&at6(&public, 4002), seen, &client),
        "IPv6 has a firewall"
    );
}

#[test]
fn the_internet_keeps_its_ethernet_address_whoever_is_plugged_in() {
    let lab = Lab::start("address").unwrap();
    let path = format!("/sys/class/net/{INTERNET_BRIDGE}/address");
    let address = || lab.internet().read_file(&path).unwrap();
    let before = address();
    for name in ["one", "two"] {
        lab.public_host(name).unwrap();
        assert_eq!(address(), before, "after {name}");
    }
}
