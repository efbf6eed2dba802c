//! `farlan doctor`: each thing that may be wrong is found where it is real, and not at a healthy site.

use crate::overlay::{
    FARLAN, SETTLING_TIMEOUT, await_path, eventually, fabric, fabric_named, founder, lab, member,
    ping, within,
};
use anyhow::{Result, ensure};
use cli::demo::Node;
use cli::lab::{Host, Lab, Machine, Nat, Outbound, SiteOptions};
use overlay_types::doctor::{Check, CheckKind, Diagnosis, Verdict};
use std::time::Duration;

/// Where a node takes data, so that a firewall can be told.
const DATA_PORT: u16 = 7777;

/// What `farlan doctor` says on a machine, and whether it ended as it should; shows, too, what people would read.
fn doctor(machine: &Machine, program: &str) -> Result<Diagnosis> {
    let said = machine.try_run(&[program, "doctor", "--json"])?;
    let diagnosis: Diagnosis = serde_json::from_str(&said.stdout)?;
    let expected = i32::from(diagnosis.has_findings());
    ensure!(said.status.code() == Some(expected), "{said:?}");
    eprintln!("{}", machine.try_run(&[program, "doctor"])?.stdout);
    Ok(diagnosis)
}

fn check(diagnosis: &Diagnosis, kind: CheckKind) -> &Check {
    let mut checks = diagnosis.checks.iter();
    checks
        .find(|check| check.check == kind)
        .expect("this check")
}

fn findings(diagnosis: &Diagnosis) -> Vec<CheckKind> {
    let found = diagnosis.checks.iter();
    let found = found.filter(|check| check.verdict == Verdict::Finding);
    found.map(|check| check.check).collect()
}

/// Waits until exactly these things are wrong at a node.
fn await_findings(node: &Node, expected: &[CheckKind]) -> Diagnosis {
    eventually(|| {
        let diagnosis = doctor(node.machine(), FARLAN)?;
        ensure!(findings(&diagnosis) == expected, "{diagnosis:#?}");
        Ok(diagnosis)
    })
    .unwrap()
}

/// A founder with a public address.
fn public_founder(lab: &Lab, bootstrap: &str) -> Node {
    founder(&lab.public_host("founder").unwrap(), bootstrap, "lab", &[])
}

/// A node at a known data port that joined.
fn member_at_port(host: &Host, founder: &Node) -> Node {
    let listen = format!("0.0.0.0:{DATA_PORT}");
    let invite = founder.invite("lab").unwrap();
    let options = ["--listen-data", &listen];
    Node::up_with_invite_and(host, FARLAN, &invite, &options)
        .unwrap()
        .0
}

#[test]
fn nothing_is_found_at_a_healthy_site() {
    let lab = lab("doctor-well");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = public_founder(&lab, &bootstrap);
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let second = member(&site.host("desk").unwrap(), &first, "lab");
    await_path(&second, "lab", "founder", "direct").unwrap();
    for node in [&first, &second] {
        let seen = |diagnosis: &Diagnosis| -> Vec<CheckKind> {
            let seen = diagnosis.checks.iter().filter(|c| c.verdict == Verdict::Ok);
            seen.map(|check| check.check).collect()
        };
        use CheckKind::{Clock, Fabric, Firewall, Mtu, Proxy, Subnets, Tun, Udp};
        eventually(|| {
            let diagnosis = doctor(node.machine(), FARLAN)?;
            ensure!(findings(&diagnosis).is_empty(), "{diagnosis:#?}");
            let seen = seen(&diagnosis);
            let wanted = [Fabric, Udp, Proxy, Firewall, Mtu, Clock, Subnets, Tun];
            ensure!(
                wanted.iter().all(|kind| seen.contains(kind)),
                "{diagnosis:#?}"
            );
            Ok(())
        })
        .unwrap();
    }
    // A firewall that lets answers in is no fault behind a NAT.
    second
        .machine()
        .nft(
            "table inet mine { chain in { type filter hook input priority 0; policy drop; \
              ct state established,related accept; iifname lo accept; }; }",
        )
        .unwrap();
    let diagnosis = await_findings(&second, &[]);
    assert_eq!(check(&diagnosis, CheckKind::Firewall).verdict, Verdict::Ok);
}

#[test]
fn without_a_node_the_host_is_looked_at() {
    let lab = lab("doctor-alone");
    let host = lab.public_host("alone").unwrap();
    let diagnosis = doctor(&host, FARLAN).unwrap();
    assert_eq!(findings(&diagnosis), []);
    assert_eq!(check(&diagnosis, CheckKind::Node).verdict, Verdict::Unknown);
    assert_eq!(check(&diagnosis, CheckKind::Tun).verdict, Verdict::Ok);
    host.nft("table inet mine { chain out { type filter hook output priority 0; meta l4proto udp drop; }; }")
        .unwrap();
    let diagnosis = doctor(&host, FARLAN).unwrap();
    assert_eq!(findings(&diagnosis), [CheckKind::Firewall]);
}

#[test]
fn blocked_udp_is_found() {
    let lab = lab("doctor-udp");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = public_founder(&lab, &bootstrap);
    let options = SiteOptions {
        outbound: Outbound::Tcp443,
        ..SiteOptions::default()
    };
    let site = lab.site_with("bank", Nat::Masquerade, options).unwrap();
    let second = member(&site.host("teller").unwrap(), &first, "lab");
    let diagnosis = await_findings(&second, &[CheckKind::Udp]);
    let proxy = check(&diagnosis, CheckKind::Proxy);
    assert_eq!(proxy.verdict, Verdict::Ok, "{proxy:?}");
}

#[test]
fn a_hole_in_the_path_mtu_is_found() {
    let lab = lab("doctor-mtu");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = public_founder(&lab, &bootstrap);
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let second = member(&site.host("desk").unwrap(), &first, "lab");
    await_path(&second, "lab", "founder", "direct").unwrap();
    eventually(|| {
        let diagnosis = doctor(second.machine(), FARLAN)?;
        let mtu = check(&diagnosis, CheckKind::Mtu);
        ensure!(mtu.evidence.contains("at least 1472"), "{mtu:?}");
        Ok(())
    })
    .unwrap();
    // A router on the way begins to drop what is large, and says nothing.
    site.router()
        .nft("table inet hole { chain way { type filter hook forward priority 0; meta length > 1420 drop; }; }")
        .unwrap();
    let address = first.address("lab").unwrap();
    let diagnosis = eventually(|| {
        ping(second.machine(), &address)?;
        let diagnosis = doctor(second.machine(), FARLAN)?;
        let found = findings(&diagnosis);
        ensure!(found == [CheckKind::Mtu], "{diagnosis:#?}");
        let mtu = check(&diagnosis, CheckKind::Mtu);
        ensure!(mtu.evidence.contains("1392 bytes pass"), "{mtu:?}");
        Ok(diagnosis)
    })
    .unwrap();
    let advice = check(&diagnosis, CheckKind::Mtu).advice.clone().unwrap();
    assert!(advice.contains("here 1420"), "{advice}");
}

#[test]
fn a_clock_that_is_wrong_is_found() {
    let lab = lab("doctor-clock");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = public_founder(&lab, &bootstrap);
    let host = lab.public_host("late").unwrap();
    let mut second = member(&host, &first, "lab");
    second.process().terminate().unwrap();
    // What faketime shares is named after its process, and left behind by one that is killed: each has a place of its own.
    let faked = format!("exec faketime --exclude-monotonic -f +20s {FARLAN} \"$@\"");
    let later = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount -t tmpfs shm /dev/shm; {faked}' later \"$@\"\n"
    );
    host.write_file("/usr/local/bin/later", later).unwrap();
    host.run(&["chmod", "755", "/usr/local/bin/later"]).unwrap();
    let _second = Node::up(&host, "/usr/local/bin/later").unwrap();
    let diagnosis = eventually(|| {
        let diagnosis = doctor(&host, FARLAN)?;
        ensure!(findings(&diagnosis) == [CheckKind::Clock], "{diagnosis:#?}");
        let clock = check(&diagnosis, CheckKind::Clock);
        ensure!(clock.evidence.contains("2 of 2"), "{clock:?}");
        Ok(diagnosis)
    })
    .unwrap();
    let clock = check(&diagnosis, CheckKind::Clock);
    assert!(clock.evidence.contains("20.0 s behind"), "{clock:?}");
    // Who is right sees whose clock is wrong.
    let other = await_findings(&first, &[CheckKind::Clock]);
    let advice = check(&other, CheckKind::Clock).advice.clone().unwrap();
    assert!(advice.contains("at late"), "{advice}");
}

#[test]
fn subnets_that_overlap_are_found() {
    let lab = lab("doctor-nets");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = public_founder(&lab, &bootstrap);
    await_findings(&first, &[]);
    let address = "addr add 10.77.200.1/24 dev eth0";
    first.machine().ip(&[address]).unwrap();
    let diagnosis = await_findings(&first, &[CheckKind::Subnets]);
    let evidence = &check(&diagnosis, CheckKind::Subnets).evidence;
    assert!(
        evidence.contains("eth0") && evidence.contains("10.77.0.0/16"),
        "{evidence}"
    );
    first
        .machine()
        .ip(&["addr del 10.77.200.1/24 dev eth0"])
        .unwrap();
    await_findings(&first, &[]);
    // Two networks of one node never get that far.
    let argv = [
        FARLAN,
        "network",
        "create",
        "other",
        "--subnet",
        "10.77.128.0/24",
    ];
    let refused = first.machine().try_run(&argv).unwrap();
    assert!(
        refused.stderr.contains("overlaps 10.77.0.0/16"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_nat_that_soon_forgets_is_found() {
    let lab = lab("doctor-life");
    let (_fabric, bootstrap) = fabric(&lab);
    let options = SiteOptions {
        udp_timeout: Duration::from_secs(18),
        ..SiteOptions::default()
    };
    let site = lab.site_with("home", Nat::Masquerade, options).unwrap();
    let node = founder(&site.host("one").unwrap(), &bootstrap, "lab", &[]);
    let before = doctor(node.machine(), FARLAN).unwrap();
    assert_eq!(check(&before, CheckKind::Mapping).verdict, Verdict::Unknown);
    within(Duration::from_secs(90), || {
        let diagnosis = doctor(node.machine(), FARLAN)?;
        ensure!(
            findings(&diagnosis) == [CheckKind::Mapping],
            "{diagnosis:#?}"
        );
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_firewall_on_the_host_is_found() {
    let lab = lab("doctor-wall");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = public_founder(&lab, &bootstrap);
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let host = site.host("desk").unwrap();
    let second = member_at_port(&host, &first);
    await_path(&second, "lab", "founder", "direct").unwrap();
    await_findings(&second, &[]);
    let wall = |chain: &str| format!("table inet mine {{ chain wall {{ {chain} }}; }}");
    let fall = || {
        host.run(&["nft", "delete", "table", "inet", "mine"])
            .unwrap()
    };

    host.nft(&wall(&format!(
        "type filter hook input priority 0; udp dport {DATA_PORT} drop;"
    )))
    .unwrap();
    // All paths fail, so that the relay is reached by a stream.
    let diagnosis = await_findings(&second, &[CheckKind::Udp, CheckKind::Firewall]);
    let firewall = check(&diagnosis, CheckKind::Firewall);
    assert!(
        firewall.evidence.contains("no datagram was answered"),
        "{firewall:?}"
    );
    fall();
    await_findings(&second, &[]);

    host.nft(&wall("type filter hook output priority 0; policy drop; meta l4proto tcp accept; oifname lo accept;"))
        .unwrap();
    let diagnosis = await_findings(&second, &[CheckKind::Udp, CheckKind::Firewall]);
    let firewall = check(&diagnosis, CheckKind::Firewall);
    assert!(firewall.evidence.contains("leaves"), "{firewall:?}");
}

/// Answers every request with a redirection to a login page.
const PORTAL: &str = "
import http.server
class Portal(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(302)
        self.send_header('Location', 'http://login.example/')
        self.end_headers()
http.server.HTTPServer(('', 80), Portal).serve_forever()
";

#[test]
fn a_portal_in_the_place_of_the_fabric_is_found() {
    let lab = lab("doctor-portal");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = public_founder(&lab, &bootstrap);
    let site = lab.site("hotel", Nat::Masquerade).unwrap();
    let second = member(&site.host("guest").unwrap(), &first, "lab");
    await_findings(&second, &[]);

    // Whatever speaks TLS, but is not the fabric node that was meant.
    let (other, _) = fabric_named(&lab, "inspector");
    let inspector: Host = lab.public_host("portal").unwrap();
    let redirect = |port: u16, to: &str| {
        let rule = format!("iifname lan tcp dport {port} dnat to {to}");
        site.router()
            .nft(&format!(
                "table ip portal {{ chain pre {{ type nat hook prerouting priority dstnat - 10; {rule}; }}; }}"
            ))
            .unwrap();
    };
    let address = other.machine().run(&["hostname", "-I"]).unwrap();
    let address = address.split_whitespace().next().unwrap().to_owned();
    redirect(443, &address);
    let diagnosis = await_findings(&second, &[CheckKind::Proxy]);
    let evidence = &check(&diagnosis, CheckKind::Proxy).evidence;
    assert!(evidence.contains("certificate"), "{evidence}");
    site.router()
        .run(&["nft", "delete", "table", "ip", "portal"])
        .unwrap();
    await_findings(&second, &[]);

    inspector.write_file("/run/portal.py", PORTAL).unwrap();
    let _portal = inspector
        .spawn("portal", &["python3", "/run/portal.py"])
        .unwrap();
    within(SETTLING_TIMEOUT, || {
        let _answers = inspector.tcp_connect((inspector.address(), 80), SETTLING_TIMEOUT)?;
        Ok(())
    })
    .unwrap();
    redirect(80, &inspector.address().to_string());
    let diagnosis = await_findings(&second, &[CheckKind::Proxy]);
    let evidence = &check(&diagnosis, CheckKind::Proxy).evidence;
    assert!(evidence.contains("http://login.example/"), "{evidence}");
}
