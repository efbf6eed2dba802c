//! The DHCP server against unmodified clients of the kinds that guests run: busybox udhcpc and ISC dhclient, over a real TAP.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails where something is not as it should be"
)]

mod common;

use common::{in_namespace, run};
use overlay_node::dhcp::{Block, DhcpConfig, DhcpEvent, DhcpServer, Route};
use overlay_types::{MacAddr, PortId};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime},
};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const SERVER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
/// Writes down what it is told, and takes the address.
const SCRIPT: &str = "#!/bin/sh\n\
    env > /run/told.${1:-$reason}\n\
    address=${ip:-$new_ip_address}\n\
    case ${1:-$reason} in bound|BOUND|REBOOT) ip addr add $address/16 dev guest0;; deconfig|PREINIT) ip link set guest0 up;; esac\n\
    exit 0\n";

/// A server behind the TAP `guest0`, of which this namespace is the guest. Gives what happened so far.
fn serve(lease: Duration, blocks: &'static [&'static str]) -> Arc<Mutex<Vec<DhcpEvent>>> {
    let mut config = tun::Configuration::default();
    config.layer(tun::Layer::L2).tun_name("guest0").up();
    let mut tap = tun::create(&config).expect("a TAP (needs root)");
    run(&format!(
        "ip link set guest0 address 52:54:00:00:08:01; ip neigh add {SERVER} lladdr {SERVER_MAC} dev guest0"
    ));
    fs::write("/run/script", SCRIPT).unwrap();
    fs::set_permissions("/run/script", fs::Permissions::from_mode(0o755)).unwrap();
    let mut server = DhcpServer::new(DhcpConfig {
        subnet: "10.77.0.0/16".parse().unwrap(),
        server: SERVER,
        server_mac: SERVER_MAC,
        router: None,
        dns: vec![SERVER],
        domain: "lab.farlan".into(),
        mtu: 1400,
        lease_time: lease,
        routes: vec![Route {
            destination: "192.168.1.0/24".parse().unwrap(),
            via: SERVER,
        }],
        reservations: BTreeMap::new(),
    });
    let unix = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let grant = move |server: &mut DhcpServer| {
        let blocks: Vec<_> = blocks
            .iter()
            .map(|range| Block {
                range: range.parse().unwrap(),
                until: unix() + 3600,
            })
            .collect();
        server.set_blocks(&blocks, Instant::now(), unix());
    };
    let events = Arc::new(Mutex::new(Vec::new()));
    let told = events.clone();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok(n) = tap.read(&mut buffer) {
            server.handle_frame(PortId(1), &buffer[..n], Instant::now(), unix());
            while let Some(event) = server.poll_event() {
                if event == DhcpEvent::BlockWanted {
                    grant(&mut server);
                }
                told.lock().unwrap().push(event);
            }
            while let Some((_, frame)) = server.poll_frame() {
                tap.write_all(&frame).unwrap();
            }
        }
    });
    events
}

/// Waits until `what` is so.
fn until(what: &str, so: impl Fn() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "not so after a minute: {what}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// The environment that the client's script was given for `reason`.
fn told(reason: &str) -> BTreeSet<String> {
    let path = format!("/run/told.{reason}");
    until(&path, || {
        fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))
    });
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn bound(events: &Arc<Mutex<Vec<DhcpEvent>>>) -> usize {
    events
        .lock()
        .unwrap()
        .iter()
        .filter(|event| matches!(event, DhcpEvent::GuestBound { .. }))
        .count()
}

/// Sends udhcpc a signal until what it asks for has happened: one that comes while its script runs is lost.
fn signal_until(signal: &str, what: &str, done: impl Fn() -> bool) {
    until(what, || {
        if !done() {
            run(&format!("kill -{signal} $(cat /run/pid)"));
            std::thread::sleep(Duration::from_millis(500));
        }
        done()
    });
}

#[test]
fn udhcpc_gets_renews_and_releases_its_address() {
    in_namespace("udhcpc_gets_renews_and_releases_its_address", || {
        let events = serve(Duration::from_secs(600), &["10.77.0.16/28"]);
        run(
            "busybox udhcpc -i guest0 -s /run/script -p /run/pid -t 10 -T 1 -x hostname:vm-8-1 -F vm-8-1 \
             -O search -O mtu -O staticroutes -R >/run/log 2>&1 &",
        );

        let env = told("bound");
        for line in [
            "ip=10.77.0.16",
            "mask=16",
            "subnet=255.255.0.0",
            "dns=10.77.0.2",
            "domain=lab.farlan",
            "search=lab.farlan",
            "mtu=1400",
            "lease=600",
            "serverid=10.77.0.2",
            "staticroutes=192.168.1.0/24 10.77.0.2",
        ] {
            assert!(env.contains(line), "{line} is missing: {env:?}");
        }
        until("bound once", || bound(&events) >= 1);
        let DhcpEvent::GuestBound { mac, name, .. } =
            events.lock().unwrap().last().cloned().unwrap()
        else {
            panic!("not bound")
        };
        assert_eq!(
            (mac.to_string().as_str(), name),
            ("52:54:00:00:08:01", "vm-8-1".parse().ok())
        );

        signal_until("USR1", "bound again", || bound(&events) >= 2);
        told("renew");
        signal_until("USR2", "released", || {
            matches!(
                events.lock().unwrap().last(),
                Some(DhcpEvent::GuestGone { .. })
            )
        });
    });
}

#[test]
fn dhclient_gets_renews_and_releases_its_address() {
    in_namespace("dhclient_gets_renews_and_releases_its_address", || {
        let events = serve(Duration::from_secs(8), &["10.77.0.16/28"]);
        fs::write("/run/conf", "send host-name \"vm-8-2\"; send dhcp-client-identifier \"an-id\"; send fqdn.fqdn \"vm-8-2.example.org.\";\n\
             request subnet-mask, broadcast-address, domain-name, domain-name-servers, domain-search, host-name, interface-mtu;\n").unwrap();
        run(
            "dhclient -cf /run/conf -sf /run/script -lf /run/leases -pf /run/pid guest0 >/run/log 2>&1",
        );

        let env = told("BOUND");
        for line in [
            "new_ip_address=10.77.0.16",
            "new_subnet_mask=255.255.0.0",
            "new_broadcast_address=10.77.255.255",
            "new_domain_name_servers=10.77.0.2",
            "new_domain_name=lab.farlan",
            "new_domain_search=lab.farlan.",
            "new_interface_mtu=1400",
            "new_host_name=vm-8-2",
            "new_dhcp_server_identifier=10.77.0.2",
        ] {
            assert!(env.contains(line), "{line} is missing: {env:?}");
        }
        told("RENEW");
        assert!(bound(&events) >= 2);
        run("dhclient -r -cf /run/conf -sf /run/script -lf /run/leases -pf /run/pid guest0");
        until("released", || {
            matches!(
                events.lock().unwrap().last(),
                Some(DhcpEvent::GuestGone { .. })
            )
        });
        // It remembers its address (INIT-REBOOT), and so does the server.
        run("dhclient -1 -cf /run/conf -sf /run/script -lf /run/leases -pf /run/pid guest0");
        assert!(run("ip addr show dev guest0").contains("10.77.0.16"));
    });
}

#[test]
fn a_client_that_comes_before_any_block_is_served_when_one_comes() {
    in_namespace(
        "a_client_that_comes_before_any_block_is_served_when_one_comes",
        || {
            let events = serve(Duration::from_secs(600), &["10.77.3.0/28"]);
            run("busybox udhcpc -i guest0 -s /run/script -q -n -t 10 -T 1");

            assert!(told("bound").contains("ip=10.77.3.0"));
            assert_eq!(events.lock().unwrap()[0], DhcpEvent::BlockWanted);
        },
    );
}
