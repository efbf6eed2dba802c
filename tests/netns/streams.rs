//! Nodes that get out by streams only: TLS on 443, an HTTP proxy, SSH. They join, talk, and go back to UDP by themselves.

use crate::overlay::{
    FARLAN, await_path, eventually, fabric, founder, lab, member, path_kind, ping, ssh_key, sshd,
};
use crate::reachability::moved::firewall::{let_out_all, let_out_only};
use crate::reachability::talk::Talk;
use anyhow::ensure;
use cli::demo::Node;
use cli::lab::{Host, Lab, Nat, Outbound, SiteOptions};
use std::time::Duration;

/// A founder with a public address, and its overlay address.
fn public_founder(lab: &Lab, bootstrap: &str) -> (Node, String) {
    let host = lab.public_host("founder").unwrap();
    let node = founder(&host, bootstrap, "lab", &[]);
    let address = node.address("lab").unwrap();
    (node, address)
}

/// Joins from a site where nothing else gets out, with further options of `farlan up`.
fn join(host: &Host, founder: &Node, options: &[&str]) -> Node {
    let invite = founder.invite("lab").unwrap();
    let joined = Node::up_with_invite_and(host, FARLAN, &invite, options);
    joined.unwrap().0
}

/// The longest pause that a connection may see while paths change; several times what it usually is.
const PAUSE_MAX: Duration = Duration::from_secs(8);

#[test]
fn a_node_that_gets_out_by_tls_only_joins_and_goes_back_to_udp_by_itself() {
    let lab = lab("tls-only");
    let (_fabric, bootstrap) = fabric(&lab);
    let (first, first_address) = public_founder(&lab, &bootstrap);
    let site = lab.site("office", Nat::PortRestricted).unwrap();
    let_out_only(&site, "tcp dport 443").unwrap();
    let host = site.host("desk").unwrap();
    let second = join(&host, &first, &[]);
    let second_address = second.address("lab").unwrap();

    eventually(|| ping(&host, &first_address)).unwrap();
    eventually(|| ping(first.machine(), &second_address)).unwrap();
    assert_eq!(path_kind(&second, "lab", "founder").unwrap(), "stream");
    assert_eq!(path_kind(&first, "lab", "desk").unwrap(), "relay");

    // A connection inside lives through the way up and down again.
    let talk = Talk::by_tcp(&host, first.machine(), &first_address).unwrap();
    let_out_all(&site).unwrap();
    await_path(&second, "lab", "founder", "direct").unwrap();
    let_out_only(&site, "tcp dport 443").unwrap();
    await_path(&second, "lab", "founder", "stream").unwrap();
    let worst = talk.worst();
    talk.end().unwrap();
    assert!(worst < PAUSE_MAX, "it paused for {worst:?}");
}

#[test]
fn two_nodes_that_get_out_by_tls_only_reach_each_other() {
    let lab = lab("tls-both");
    let (_fabric, bootstrap) = fabric(&lab);
    let (first, _) = public_founder(&lab, &bootstrap);
    let nodes = ["east", "west"].map(|name| {
        let site = lab.site(name, Nat::PortRestricted).unwrap();
        let_out_only(&site, "tcp dport 443").unwrap();
        let host = site.host(&format!("{name}-host")).unwrap();
        member(&host, &first, "lab")
    });
    let [east, west] = &nodes;
    eventually(|| ping(east.machine(), &west.address("lab")?)).unwrap();
    await_path(east, "lab", "west-host", "stream").unwrap();
    await_path(west, "lab", "east-host", "stream").unwrap();
    // Whole frames, and many at a time.
    let address = west.address("lab").unwrap();
    let sizes = [
        "-c", "20", "-i", "0.05", "-s", "1472", "-M", "do", "-W", "2",
    ];
    let mut argv = vec!["ping"];
    argv.extend(sizes);
    argv.push(&address);
    east.machine().run(&argv).unwrap();
}

#[test]
fn a_node_that_gets_out_by_a_proxy_only_joins_and_talks() {
    let lab = lab("proxy-only");
    let (_fabric, bootstrap) = fabric(&lab);
    let (first, first_address) = public_founder(&lab, &bootstrap);
    let options = SiteOptions {
        outbound: Outbound::HttpProxy,
        ..SiteOptions::default()
    };
    let site = lab.site_with("bank", Nat::PortRestricted, options).unwrap();
    let (_proxy, at) = site.http_proxy().unwrap();
    let host = site.host("teller").unwrap();
    let second = join(&host, &first, &["--via", &format!("http://{at}")]);

    eventually(|| ping(&host, &first_address)).unwrap();
    eventually(|| ping(first.machine(), &second.address("lab")?)).unwrap();
    assert_eq!(path_kind(&second, "lab", "founder").unwrap(), "stream");
}

#[test]
fn a_node_that_gets_out_by_ssh_only_joins_and_goes_back_to_udp_by_itself() {
    let lab = lab("ssh-only");
    let (_fabric, bootstrap) = fabric(&lab);
    let (first, first_address) = public_founder(&lab, &bootstrap);
    let gateway = lab.public_host("gateway").unwrap();
    let site = lab.site("cell", Nat::PortRestricted).unwrap();
    let allowed = format!("ip daddr {} tcp dport 22", gateway.address());
    let_out_only(&site, &allowed).unwrap();
    let host = site.host("inmate").unwrap();
    let _daemon = sshd(&gateway, &ssh_key(&host));
    let via = format!("ssh://root@{}", gateway.address());
    let second = join(&host, &first, &["--via", &via]);
    let second_address = second.address("lab").unwrap();

    eventually(|| ping(&host, &first_address)).unwrap();
    eventually(|| ping(first.machine(), &second_address)).unwrap();
    assert_eq!(path_kind(&second, "lab", "founder").unwrap(), "stream");
    let_out_all(&site).unwrap();
    await_path(&second, "lab", "founder", "direct").unwrap();
    // Nothing was put on the gateway, and no shell was run there.
    let processes = gateway.run(&["ps", "-e", "-o", "comm="]).unwrap();
    assert!(!processes.contains("farlan"), "{processes}");
}

/// The processes of `ssh -W`, oldest first.
fn connections(host: &Host) -> Vec<String> {
    let found = host.sh("pgrep -f '^ssh .* -W ' || true").unwrap();
    let mut ids: Vec<u32> = found
        .lines()
        .map(|line| line.trim().parse().unwrap())
        .collect();
    ids.sort_unstable();
    ids.iter().map(u32::to_string).collect()
}

#[test]
fn much_traffic_through_ssh_takes_several_connections_and_the_end_of_one_is_no_end() {
    let lab = lab("ssh-several");
    let (_fabric, bootstrap) = fabric(&lab);
    let (first, first_address) = public_founder(&lab, &bootstrap);
    let gateway = lab.public_host("gateway").unwrap();
    let options = SiteOptions {
        outbound: Outbound::Ssh(gateway.address()),
        ..SiteOptions::default()
    };
    let site = lab.site_with("cell", Nat::Masquerade, options).unwrap();
    let host = site.host("inmate").unwrap();
    let _daemon = sshd(&gateway, &ssh_key(&host));
    let via = format!("ssh://root@{}", gateway.address());
    let _second = join(&host, &first, &["--via", &via]);
    eventually(|| ping(&host, &first_address)).unwrap();
    let quiet = connections(&host);

    // 5.6 Mbit/s each way.
    let busy = ["ping", "-q", "-i", "0.002", "-c", "4000", "-s", "1400"];
    let argv = [&busy[..], &[&first_address]].concat();
    let said = host.run(&argv).unwrap();
    assert!(said.contains(" 0% packet loss"), "{said}");
    let many = connections(&host);
    assert_eq!(many.len(), quiet.len() + 3, "{quiet:?}, then {many:?}");

    let talk = Talk::by_tcp(&host, first.machine(), &first_address).unwrap();
    host.run(&["kill", "-KILL", many.last().unwrap()]).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let worst = talk.worst();
    talk.end().unwrap();
    assert!(worst < PAUSE_MAX, "it paused for {worst:?}");
    assert_eq!(connections(&host).len(), many.len() - 1);
}

#[test]
fn a_way_out_that_was_named_is_ready_before_it_is_needed() {
    let lab = lab("ssh-spare");
    let (_fabric, bootstrap) = fabric(&lab);
    let (first, first_address) = public_founder(&lab, &bootstrap);
    let gateway = lab.public_host("gateway").unwrap();
    let site = lab.site("cell", Nat::PortRestricted).unwrap();
    let by_ssh = format!("ip daddr {} tcp dport 22", gateway.address());
    let by_udp = || let_out_only(&site, &format!("{by_ssh} accept; meta l4proto udp"));
    by_udp().unwrap();
    let host = site.host("inmate").unwrap();
    let _daemon = sshd(&gateway, &ssh_key(&host));
    let via = format!("ssh://root@{}", gateway.address());
    let second = join(&host, &first, &["--via", &via]);
    await_path(&second, "lab", "founder", "direct").unwrap();
    eventually(|| {
        ensure!(!connections(&host).is_empty(), "no spare");
        Ok(())
    })
    .unwrap();

    let talk = Talk::by_tcp(&host, first.machine(), &first_address).unwrap();
    for _ in 0..2 {
        // What is open stays, and nobody can log in any more.
        let_out_only(&site, &format!("{by_ssh} ct state established")).unwrap();
        await_path(&second, "lab", "founder", "stream").unwrap();
        eventually(|| ping(&host, &first_address)).unwrap();
        by_udp().unwrap();
        await_path(&second, "lab", "founder", "direct").unwrap();
    }
    let worst = talk.worst();
    talk.end().unwrap();
    assert!(worst < PAUSE_MAX, "it paused for {worst:?}");
}

#[test]
fn an_ssh_gateway_that_refuses_is_named_with_its_reason() {
    let lab = lab("ssh-refused");
    let (_fabric, bootstrap) = fabric(&lab);
    let (first, _) = public_founder(&lab, &bootstrap);
    let gateway = lab.public_host("gateway").unwrap();
    let site = lab.site("cell", Nat::PortRestricted).unwrap();
    let_out_only(&site, "tcp dport 22").unwrap();
    let (host, other) = (site.host("inmate").unwrap(), site.host("other").unwrap());
    let _daemon = sshd(&gateway, &ssh_key(&other));
    let _unused = ssh_key(&host);
    let via = format!("ssh://root@{}", gateway.address());
    let invite = first.invite("lab").unwrap();
    let said = host
        .try_run_for(
            Duration::from_secs(60),
            &[FARLAN, "up", "--invite", &invite, "--via", &via],
        )
        .unwrap();
    assert!(!said.is_success());
    let last = said.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("Permission denied"), "{}", said.stderr);
}
