//! SSH gateways as people have them: behind a jump host, with an account that may run nothing there, and a key that only an
//! agent knows.

use crate::overlay::{
    FARLAN, SETTLING_TIMEOUT, await_path, eventually, fabric, founder, lab, ping, ssh_key, sshd_for,
};
use cli::demo::Node;
use cli::lab::{Machine, Nat, Outbound, Process, SiteOptions};

/// Somebody who may log in at gateways, and has neither a shell nor a home there.
const PORTER: &str = "porter";

/// `farlan` as it is started where an agent runs.
const WITH_AGENT: &str = "/usr/local/bin/farlan-with-agent";

/// Lets this key in as the porter, and nobody else.
fn open(gateway: &Machine, key: &str) -> Process {
    gateway
        .sh(&format!(
            "echo '{PORTER}:x:4242:4242::/nonexistent:/usr/sbin/nologin' >> /etc/passwd
             echo '{PORTER}:x:4242:' >> /etc/group
             [ ! -f /etc/shadow ] || echo '{PORTER}:*:20000::::::' >> /etc/shadow"
        ))
        .unwrap();
    sshd_for(gateway, PORTER, key)
}

/// Moves the machine's key into an agent: on the disk there is none any more.
fn into_agent(machine: &Machine) -> Process {
    let socket = "/run/agent.sock";
    let agent = machine
        .spawn("ssh-agent", &["ssh-agent", "-D", "-a", socket])
        .unwrap();
    eventually(|| machine.run(&["test", "-S", socket])).unwrap();
    machine
        .sh(&format!(
            "SSH_AUTH_SOCK={socket} ssh-add -q /root/.ssh/id_ed25519
             rm /root/.ssh/id_ed25519 /root/.ssh/id_ed25519.pub
             printf '#!/bin/sh\\nSSH_AUTH_SOCK={socket} exec {FARLAN} \"$@\"\\n' > {WITH_AGENT}
             chmod 755 {WITH_AGENT}"
        ))
        .unwrap();
    agent
}

/// The programs of a machine with their users, but for its own first ones.
fn programs(machine: &Machine) -> Vec<String> {
    let said = machine.run(&["ps", "-e", "-o", "user=,comm="]).unwrap();
    let own = ["sh", "sleep", "ps", "timeout"];
    let lines = said.lines().map(|line| line.split_whitespace().collect());
    let programs = lines.filter(|words: &Vec<_>| !own.contains(&words[1]));
    programs.map(|words| words.join(" ")).collect()
}

#[test]
fn a_gateway_behind_a_jump_host_needs_neither_root_nor_a_shell_nor_a_key_on_the_disk() {
    let lab = lab("ssh-jump");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("founder").unwrap(), &bootstrap, "lab", &[]);
    let [jump, inner] = ["jump", "inner"].map(|name| lab.public_host(name).unwrap());
    let options = SiteOptions {
        outbound: Outbound::Ssh(jump.address()),
        ..SiteOptions::default()
    };
    let site = lab.site_with("cell", Nat::Masquerade, options).unwrap();
    let host = site.host("inmate").unwrap();
    let key = ssh_key(&host);
    let _jump_daemon = open(&jump, &key);
    let mut inner_daemon = open(&inner, &key);
    let config = format!(
        "StrictHostKeyChecking accept-new
Host way-out
  HostName {}
  User {PORTER}
  ProxyJump {PORTER}@{}
",
        inner.address(),
        jump.address()
    );
    host.write_file("/root/.ssh/config", config).unwrap();
    let _agent = into_agent(&host);
    let invite = first.invite("lab").unwrap();
    let via = ["--via", "ssh://way-out"];

    let (second, _) = Node::up_with_invite_and(&host, WITH_AGENT, &invite, &via).unwrap();

    eventually(|| ping(&host, &first.address("lab")?)).unwrap();
    eventually(|| ping(first.machine(), &second.address("lab")?)).unwrap();
    await_path(&second, "lab", "founder", "stream").unwrap();
    let from_jump = format!("from {}", jump.address());
    inner_daemon
        .wait_for_line(&from_jump, SETTLING_TIMEOUT)
        .unwrap();
    for machine in [&jump, &inner] {
        let programs = programs(machine);
        assert!(programs.contains(&format!("{PORTER} sshd")), "{programs:?}");
        let strangers = programs.iter().filter(|line| !line.contains("sshd"));
        assert_eq!(strangers.count(), 0, "{programs:?}");
    }
}
