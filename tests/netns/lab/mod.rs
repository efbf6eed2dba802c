//! The laboratory itself: that its NATs do what they are named for, that machines have nothing in common,
//! and that nothing of a lab is left behind. What the other kinds of site do, and what may befall hosts and routers, stands
//! in the two files below.

mod mishaps;
mod sites;

use anyhow::Result;
use cli::lab::{Lab, Nat, SiteOptions};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

/// Long enough for a datagram to cross the lab on a busy machine, short enough to wait for in vain.
const PATIENCE: Duration = Duration::from_millis(300);

/// Waits for one datagram and returns its text and where it came from; `None` when none comes.
fn receive(socket: &UdpSocket) -> Option<(String, SocketAddr)> {
    let mut buffer = [0; 64];
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => Some((
            String::from_utf8_lossy(&buffer[..length]).into_owned(),
            from,
        )),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("receive: {error}"),
    }
}

/// Sends from `client` to `server` and returns the client's address as the server sees it.
fn mapping_seen(client: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    client
        .send_to(b"hello", server.local_addr().unwrap())
        .unwrap();
    receive(server).expect("a datagram from the client").1
}

/// What a NAT was seen to do.
#[derive(Debug, PartialEq, Eq)]
struct Observed {
    /// One outside port for every destination.
    mapping_is_endpoint_independent: bool,
    /// A host that was never sent to gets through.
    lets_strangers_in: bool,
    /// A port that was never sent to gets through, of a host that was.
    lets_other_ports_in: bool,
}

fn observe(nat: Nat) -> Result<Observed> {
    let lab = Lab::start("nats")?;
    let (near, far) = (lab.public_host("near")?, lab.public_host("far")?);
    let site = lab.site("site", nat)?;
    let host = site.host("host")?;
    let near_one = near.udp_socket((near.address(), 4001))?;
    let near_two = near.udp_socket((near.address(), 4002))?;
    let far_one = far.udp_socket((far.address(), 4001))?;

    let client = host.udp_socket((host.address(), 5000))?;
    let seen = mapping_seen(&client, &near_one);
    if nat != Nat::Public {
        assert_eq!(
            seen.ip(),
            SocketAddr::from((site.outside(), 0)).ip(),
            "the outside address is the router's"
        );
    }
    let same = [
        mapping_seen(&client, &near_two),
        mapping_seen(&client, &far_one),
    ]
    .iter()
    .all(|other| *other == seen);

    let client = host.udp_socket((host.address(), 5001))?;
    let seen = mapping_seen(&client, &near_one);
    near_one.send_to(b"answer", seen)?;
    assert_eq!(
        receive(&client).map(|(text, _)| text).as_deref(),
        Some("answer"),
        "the one that was sent to gets through"
    );
    near_two.send_to(b"other port", seen)?;
    let other_ports = receive(&client).is_some();
    far_one.send_to(b"stranger", seen)?;
    let strangers = receive(&client).is_some();
    Ok(Observed {
        mapping_is_endpoint_independent: same,
        lets_strangers_in: strangers,
        lets_other_ports_in: other_ports,
    })
}

#[test]
fn a_full_cone_maps_by_endpoint_and_lets_everybody_in() {
    let observed = observe(Nat::FullCone).unwrap();

    assert_eq!(
        observed,
        Observed {
            mapping_is_endpoint_independent: true,
            lets_strangers_in: true,
            lets_other_ports_in: true
        }
    );
}

#[test]
fn an_address_restricted_nat_lets_known_addresses_in() {
    let observed = observe(Nat::AddressRestricted).unwrap();

    assert_eq!(
        observed,
        Observed {
            mapping_is_endpoint_independent: true,
            lets_strangers_in: false,
            lets_other_ports_in: true
        }
    );
}

#[test]
fn a_port_restricted_nat_lets_known_addresses_and_ports_in() {
    let observed = observe(Nat::PortRestricted).unwrap();

    assert_eq!(
        observed,
        Observed {
            mapping_is_endpoint_independent: true,
            lets_strangers_in: false,
            lets_other_ports_in: false
        }
    );
}

#[test]
fn a_symmetric_nat_maps_every_destination_anew() {
    let observed = observe(Nat::Symmetric).unwrap();

    assert_eq!(
        observed,
        Observed {
            mapping_is_endpoint_independent: false,
            lets_strangers_in: false,
            lets_other_ports_in: false
        }
    );
}

#[test]
fn a_public_site_hides_and_filters_nothing() {
    let observed = observe(Nat::Public).unwrap();

    assert_eq!(
        observed,
        Observed {
            mapping_is_endpoint_independent: true,
            lets_strangers_in: true,
            lets_other_ports_in: true
        }
    );
}

#[test]
fn an_idle_mapping_is_forgotten_after_the_routers_timeout() {
    let lab = Lab::start("timeout").unwrap();
    let server = lab.public_host("server").unwrap();
    let site = lab
        .site_with(
            "site",
            Nat::FullCone,
            SiteOptions {
                udp_timeout: Duration::from_secs(2),
                ..SiteOptions::default()
            },
        )
        .unwrap();
    let host = site.host("host").unwrap();
    let listening = server.udp_socket((server.address(), 4001)).unwrap();
    let client = host.udp_socket((host.address(), 5000)).unwrap();
    let seen = mapping_seen(&client, &listening);

    std::thread::sleep(Duration::from_millis(3500));
    listening.send_to(b"too late", seen).unwrap();

    assert_eq!(receive(&client), None);
}

#[test]
fn holes_can_be_punched_between_two_port_restricted_nats_even_when_one_side_knocks_early() {
    let lab = Lab::start("punch").unwrap();
    let server = lab.public_host("server").unwrap();
    let (left_site, right_site) = (
        lab.site("left", Nat::PortRestricted).unwrap(),
        lab.site("right", Nat::PortRestricted).unwrap(),
    );
    let (left_host, right_host) = (left_site.host("l").unwrap(), right_site.host("r").unwrap());
    let stun = server.udp_socket((server.address(), 3478)).unwrap();
    let left = left_host.udp_socket((left_host.address(), 5000)).unwrap();
    let right = right_host.udp_socket((right_host.address(), 5000)).unwrap();
    let (left_seen, right_seen) = (mapping_seen(&left, &stun), mapping_seen(&right, &stun));

    left.send_to(b"knock", right_seen).unwrap();
    assert_eq!(
        receive(&right),
        None,
        "nothing was sent to the left side yet"
    );
    right.send_to(b"punch", left_seen).unwrap();
    let through_to_left = receive(&left);
    left.send_to(b"again", right_seen).unwrap();
    let through_to_right = receive(&right);

    assert_eq!(through_to_left, Some(("punch".to_owned(), right_seen)));
    assert_eq!(through_to_right, Some(("again".to_owned(), left_seen)));
}

#[test]
fn machines_share_no_name_no_files_and_no_processes() {
    let lab = Lab::start("views").unwrap();
    let (one, two) = (
        lab.public_host("one").unwrap(),
        lab.public_host("two").unwrap(),
    );
    let real_hosts = std::fs::read("/etc/hosts").unwrap();

    one.write_file("/etc/hosts", "192.0.2.7 somewhere\n")
        .unwrap();
    one.write_file("/var/lib/state/key", "secret").unwrap();
    one.write_file("/tmp/note", "note").unwrap();
    let _daemon = one.spawn("sleep", &["sleep", "1000"]).unwrap();

    assert_eq!(one.run(&["hostname"]).unwrap().trim(), "one");
    assert_eq!(two.run(&["cat", "/etc/hostname"]).unwrap().trim(), "two");
    assert!(
        one.run(&["cat", "/etc/hosts"])
            .unwrap()
            .contains("somewhere")
    );
    assert!(
        !two.run(&["cat", "/etc/hosts"])
            .unwrap()
            .contains("somewhere")
    );
    assert!(
        !two.try_run(&["test", "-e", "/var/lib/state/key"])
            .unwrap()
            .is_success()
    );
    assert!(
        !two.try_run(&["test", "-e", "/tmp/note"])
            .unwrap()
            .is_success()
    );
    assert!(!two.run(&["ps", "ax"]).unwrap().contains("sleep 1000"));
    assert_ne!(
        one.read_file("/etc/machine-id").unwrap(),
        two.read_file("/etc/machine-id").unwrap()
    );
    assert_eq!(std::fs::read("/etc/hosts").unwrap(), real_hosts);
    assert!(!Path::new("/var/lib/state").exists());
}

#[test]
fn programs_of_the_caller_can_be_called_by_name_in_every_machine() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("greet");
    std::fs::write(&program, "#!/bin/sh\necho hello from $(hostname)\n").unwrap();
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let lab = Lab::start_with("tools", &[&program], &[Path::new("/opt")]).unwrap();
    let host = lab.public_host("here").unwrap();

    let said = host.run(&["greet"]).unwrap();
    host.write_file("/opt/mine", "").unwrap();

    assert_eq!(said.trim(), "hello from here");
    assert!(!Path::new("/opt/mine").exists());
}

#[test]
fn a_program_in_a_machine_is_heard_asked_to_end_and_killed() {
    let lab = Lab::start("programs").unwrap();
    let host = lab.public_host("host").unwrap();

    let mut polite = host
        .spawn(
            "polite",
            &[
                "sh",
                "-c",
                "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
            ],
        )
        .unwrap();
    let line = polite
        .wait_for_line("ready", Duration::from_secs(10))
        .unwrap();
    let status = polite.terminate().unwrap();
    let mut stubborn = host
        .spawn(
            "stubborn",
            &[
                "sh",
                "-c",
                "trap '' TERM; echo ready; while :; do sleep 1; done",
            ],
        )
        .unwrap();
    stubborn
        .wait_for_line("ready", Duration::from_secs(10))
        .unwrap();
    let pid = stubborn.pid().unwrap();
    drop(stubborn);

    assert_eq!((line.as_str(), status.code()), ("ready", Some(3)));
    assert!(polite.log().contains("bye"));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_capture_shows_what_crosses_the_internet() {
    let lab = Lab::start("capture").unwrap();
    let server = lab.public_host("server").unwrap();
    let home = lab.site("home", Nat::PortRestricted).unwrap();
    let host = home.host("host").unwrap();
    let listening = server.udp_socket((server.address(), 4001)).unwrap();
    let client = host.udp_socket((Ipv4Addr::UNSPECIFIED, 5000)).unwrap();
    let capture = lab
        .internet()
        .capture(cli::lab::INTERNET_BRIDGE, "udp", 128)
        .unwrap();

    let seen = mapping_seen(&client, &listening);
    std::thread::sleep(Duration::from_millis(200));
    let frames = capture.stop().unwrap();

    assert_eq!(frames.len(), 1);
    let datagram = frames[0].udp().unwrap();
    assert_eq!(SocketAddr::from(datagram.source), seen);
    assert_eq!(
        datagram.destination,
        std::net::SocketAddrV4::new(server.address(), 4001)
    );
    assert_eq!(datagram.payload, b"hello");
}

#[test]
fn nothing_of_a_lab_is_left_when_it_is_dropped() {
    let lab = Lab::start("traces").unwrap();
    let host = lab
        .site("site", Nat::Symmetric)
        .unwrap()
        .host("host")
        .unwrap();
    let daemon = host.spawn("daemon", &["setsid", "sleep", "1000"]).unwrap();
    let (directory, init) = (lab.directory().to_owned(), lab.init());
    let inside = host.pid();
    daemon.leave_running();

    drop(lab);

    assert!(!directory.exists());
    for pid in [init, inside] {
        assert!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "process {pid} is still there"
        );
    }
}

/// Not a test of its own: what [`nothing_of_a_lab_is_left_when_its_maker_is_killed`] runs as another process.
#[test]
fn helper_makes_a_lab_and_waits() {
    if std::env::var_os("LAB_HELPER").is_none() {
        return;
    }
    let lab = Lab::start("orphan").unwrap();
    let host = lab.public_host("host").unwrap();
    host.spawn("daemon", &["sleep", "1000"])
        .unwrap()
        .leave_running();
    println!(
        "\nlab {} {} {}",
        lab.init(),
        host.pid(),
        lab.directory().display()
    );
    std::thread::sleep(Duration::from_secs(1000));
}

#[test]
fn nothing_of_a_lab_is_left_when_its_maker_is_killed() {
    use std::io::BufRead;
    let mut maker = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "lab::helper_makes_a_lab_and_waits",
            "--nocapture",
        ])
        .env("LAB_HELPER", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(maker.stdout.take().unwrap()).lines();
    let line = lines
        .find_map(|line| line.unwrap().strip_prefix("lab ").map(str::to_owned))
        .unwrap();
    let words: Vec<&str> = line.split(' ').collect();

    maker.kill().unwrap();
    maker.wait().unwrap();

    let give_up_at = std::time::Instant::now() + Duration::from_secs(10);
    for pid in &words[..2] {
        while Path::new(&format!("/proc/{pid}")).exists() {
            assert!(
                std::time::Instant::now() < give_up_at,
                "process {pid} is still there"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    drop(Lab::start("sweeper").unwrap());
    assert!(!Path::new(words[2]).exists(), "the next lab sweeps up");
}
