//! What may befall hosts and routers, seen by plain sockets.

use super::{PATIENCE, mapping_seen, receive};
use cli::lab::{Host, Lab, Nat, SiteOptions, Stack};
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

/// How long something takes to be seen that takes effect at once.
const SHORTLY: Duration = Duration::from_millis(500);

fn server(lab: &Lab) -> UdpSocket {
    let host = lab.public_host("server").unwrap();
    host.udp_socket((host.address(), 4001)).unwrap()
}

/// A socket that sends by whichever way the host has at the moment, as a node's does.
fn anywhere(host: &Host) -> UdpSocket {
    host.udp_socket((Ipv4Addr::UNSPECIFIED, 5000)).unwrap()
}

#[test]
fn a_host_with_two_uplinks_leaves_by_the_one_that_is_its_default_route() {
    let lab = Lab::start("uplinks").unwrap();
    let server = server(&lab);
    let home = lab.site("home", Nat::PortRestricted).unwrap();
    let mobile = lab.site("mobile", Nat::Symmetric).unwrap();
    let host = home.host("host").unwrap();
    let second = mobile.second_uplink(&host, "eth1").unwrap();
    let client = anywhere(&host);

    assert_eq!(mapping_seen(&client, &server).ip(), home.outside());
    second.make_default().unwrap();
    assert_eq!(mapping_seen(&client, &server).ip(), mobile.outside());
    host.uplink().make_default().unwrap();
    assert_eq!(mapping_seen(&client, &server).ip(), home.outside());
}

#[test]
fn a_host_that_is_readdressed_has_the_new_address_alone() {
    let lab = Lab::start("readdress").unwrap();
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let (host, other) = (site.host("host").unwrap(), site.host("other").unwrap());
    let server = server(&lab);
    let listening = other.udp_socket((other.address(), 4001)).unwrap();
    let client = anywhere(&host);
    let before = mapping_seen(&client, &listening);
    assert_eq!(before.ip(), host.address());

    let host = site.readdress(&host).unwrap();

    let after = mapping_seen(&client, &listening);
    assert_eq!(after.ip(), host.address());
    assert_ne!(after, before);
    listening.send_to(b"to the old address", before).unwrap();
    assert_eq!(receive(&client), None);
    assert_eq!(
        mapping_seen(&client, &server).ip(),
        site.outside(),
        "its route out is there too"
    );
}

#[test]
fn a_router_that_restarts_knows_no_mapping_any_more() {
    for nat in [
        Nat::FullCone,
        Nat::PortRestricted,
        Nat::Masquerade,
        Nat::Symmetric,
    ] {
        let lab = Lab::start("reboot").unwrap();
        let server = server(&lab);
        let site = lab.site("home", nat).unwrap();
        let client = anywhere(&site.host("host").unwrap());
        let seen = mapping_seen(&client, &server);
        server.send_to(b"before", seen).unwrap();
        assert!(receive(&client).is_some(), "{nat}");

        let off_for = Duration::from_millis(200);
        let began = Instant::now();
        site.reboot_router(off_for).unwrap();
        assert!(began.elapsed() >= off_for);

        server.send_to(b"after", seen).unwrap();
        assert_eq!(receive(&client), None, "{nat}");
        let again = mapping_seen(&client, &server);
        if nat == Nat::Masquerade {
            assert_eq!(again, seen, "the host's own port number is there anew");
        }
        server.send_to(b"anew", again).unwrap();
        assert!(receive(&client).is_some(), "{nat}: it works as before");
    }
}

#[test]
fn a_router_lets_nothing_pass_while_it_restarts() {
    let lab = Lab::start("off").unwrap();
    let server = server(&lab);
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let client = anywhere(&site.host("host").unwrap());
    let to = server.local_addr().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);

    // Sends all the time; the longest silence at the server is as long as the router was off.
    let silence = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _unreachable = client.send_to(b"tick", to);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let listening = scope.spawn(|| {
            server.set_read_timeout(Some(SHORTLY * 4)).unwrap();
            let (mut heard, mut longest) = (Instant::now(), Duration::ZERO);
            let mut bytes = [0; 8];
            while !stop.load(std::sync::atomic::Ordering::Relaxed)
                && server.recv(&mut bytes).is_ok()
            {
                longest = longest.max(heard.elapsed());
                heard = Instant::now();
            }
            longest
        });
        std::thread::sleep(PATIENCE);
        site.reboot_router(SHORTLY).unwrap();
        std::thread::sleep(PATIENCE);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        listening.join().unwrap()
    });

    assert!(silence >= SHORTLY && silence < SHORTLY * 4, "{silence:?}");
}

#[test]
fn a_site_that_is_renumbered_is_seen_at_another_address() {
    let lab = Lab::start("renumber").unwrap();
    let server = server(&lab);
    let options = SiteOptions {
        lan_prefix: Some([100, 64, 1]),
        ..SiteOptions::default()
    };
    let carrier = lab
        .site_with("carrier", Nat::PortRestricted, options)
        .unwrap();
    for site in [
        lab.site("home", Nat::FullCone).unwrap(),
        carrier.site("nested", Nat::FullCone).unwrap(),
    ] {
        let client = anywhere(&site.host(&format!("{}-host", site.name())).unwrap());
        let (before, seen) = (site.outside(), mapping_seen(&client, &server));

        let now = site.renumber().unwrap();

        assert_eq!(site.outside(), now);
        assert_ne!(before, now);
        server.send_to(b"to the old address", seen).unwrap();
        assert_eq!(receive(&client), None);
        let again = mapping_seen(&client, &server);
        assert_ne!(again, seen);
        if site.name() == "home" {
            assert_eq!((seen.ip(), again.ip()), (before.into(), now.into()));
        }
        server.send_to(b"answer", again).unwrap();
        assert!(receive(&client).is_some());
        assert_eq!(site.renumber().unwrap(), before, "there and back");
        assert!(receive_after(&client, &server));
    }
}

/// Whether an answer comes to what is sent now.
fn receive_after(client: &UdpSocket, server: &UdpSocket) -> bool {
    let seen = mapping_seen(client, server);
    server.send_to(b"answer", seen).unwrap();
    receive(client).is_some()
}

#[test]
fn an_interface_that_was_down_has_its_addresses_and_routes_again() {
    let lab = Lab::start("down-up").unwrap();
    let public = lab.public_host_with("server", Stack::Dual).unwrap();
    let options = SiteOptions {
        stack: Stack::Dual,
        ..SiteOptions::default()
    };
    let site = lab.site_with("home", Nat::PortRestricted, options).unwrap();
    let host = site.host("host").unwrap();
    let server = public.udp_socket((public.address(), 4001)).unwrap();
    let server6 = public.udp_socket((public.address6(), 4001)).unwrap();
    let client = anywhere(&host);
    assert_eq!(mapping_seen(&client, &server).ip(), site.outside());

    host.uplink().down().unwrap();
    let sent = client.send_to(b"lost", server.local_addr().unwrap());
    assert!(sent.is_err() && receive(&server).is_none());

    host.uplink().up().unwrap();
    assert_eq!(mapping_seen(&client, &server).ip(), site.outside());
    let client = host.udp_socket((host.address6(), 5000)).unwrap();
    assert_eq!(
        mapping_seen(&client, &server6),
        client.local_addr().unwrap()
    );
}

#[test]
fn a_machine_that_sleeps_does_nothing_and_hears_nothing() {
    let lab = Lab::start("sleep").unwrap();
    let host = lab.public_host("sleeper").unwrap();
    let other = lab.public_host("other").unwrap();
    let ticking = "while :; do echo tick >> /run/ticks; sleep 0.02; done";
    let mut program = host.spawn("ticking", &["sh", "-c", ticking]).unwrap();
    let ticks = || host.read_file("/run/ticks").unwrap_or_default().len();
    let address = host.address().to_string();
    let answers = || {
        let ping = ["ping", "-c", "1", "-W", "0.3", &address];
        other.try_run(&ping).unwrap().is_success()
    };
    std::thread::sleep(SHORTLY);
    assert!(ticks() > 0 && answers());

    host.suspend().unwrap();
    let asleep = ticks();
    std::thread::sleep(SHORTLY);
    assert_eq!(ticks(), asleep);
    assert!(!answers());

    host.resume().unwrap();
    std::thread::sleep(SHORTLY);
    assert!(ticks() > asleep && answers());
    assert!(program.is_running());
    program.terminate().unwrap();
}
