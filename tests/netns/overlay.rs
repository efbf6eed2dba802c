//! What most tests here begin with: a lab, a fabric node, and a network that others can be invited into.

use anyhow::{Context, Result, ensure};
use cli::demo::Node;
use cli::lab::{Host, Lab, Machine, Nat, SiteOptions, Stack};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where the fabric node listens.
const FABRIC_PORT: u16 = 4077;

/// How long what nodes tell each other may take to arrive. A hang limit, not a goal.
pub(crate) const SETTLING_TIMEOUT: Duration = Duration::from_secs(30);

/// The name by which machines call the program under test.
pub(crate) const FARLAN: &str = "farlan";

/// The program under test, built beside this one (`make` sees to it).
pub(crate) fn program() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    // Tests are in target/debug/deps, other programs in target/debug.
    let found = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(FARLAN))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {FARLAN} beside {}: cargo build -p cli", this.display()))
}

/// A lab whose machines can call `farlan`, and in which `deploy` finds a `/usr/local/bin` of its own.
pub(crate) fn lab(name: &str) -> Lab {
    Lab::start_with(
        name,
        &[&program()],
        &[std::path::Path::new("/usr/local/bin")],
    )
    .unwrap()
}

/// A fabric node on a public host of its own, with the address to bootstrap from.
pub(crate) fn fabric(lab: &Lab) -> (Node, String) {
    fabric_named(lab, "fabric")
}

/// Another fabric than the usual one.
pub(crate) fn fabric_named(lab: &Lab, name: &str) -> (Node, String) {
    let host = lab.public_host(name).unwrap();
    Node::fabric(&host, FARLAN, &format!("{}:{FABRIC_PORT}", host.address())).unwrap()
}

/// A host behind a NAT of this kind, at a site of its own.
pub(crate) fn host_behind(lab: &Lab, nat: Nat, name: &str) -> Host {
    host_with_stack(lab, name, nat, Stack::Ipv4)
}

/// A host at a site of its own, `NAME-host`, with these IP versions.
pub(crate) fn host_with_stack(lab: &Lab, name: &str, nat: Nat, stack: Stack) -> Host {
    let options = SiteOptions {
        stack,
        ..SiteOptions::default()
    };
    let site = lab.site_with(name, nat, options).unwrap();
    site.host(&format!("{name}-host")).unwrap()
}

/// A node that made a network; `options` are those of `farlan network create`.
pub(crate) fn founder(machine: &Machine, bootstrap: &str, network: &str, options: &[&str]) -> Node {
    let node = Node::up(machine, FARLAN).unwrap();
    let mut arguments = vec!["network", "create", network, "--bootstrap", bootstrap];
    arguments.extend(options);
    node.farlan(&arguments).unwrap();
    eventually(|| node.address(network)).unwrap();
    node
}

/// The same, knowing all of these ways to fabric nodes.
pub(crate) fn founder_knowing(machine: &Machine, bootstraps: &[String], network: &str) -> Node {
    let more = bootstraps[1..].iter();
    let more: Vec<_> = more.flat_map(|address| ["--bootstrap", address]).collect();
    founder(machine, &bootstraps[0], network, &more)
}

/// A node that joined by a fresh invite from `host`.
pub(crate) fn member(machine: &Machine, founder: &Node, network: &str) -> Node {
    let invite = founder.invite(network).unwrap();
    Node::up_with_invite(machine, FARLAN, &invite).unwrap().0
}

/// Pings an overlay address from a machine, through its kernel.
pub(crate) fn ping(from: &Machine, to: &str) -> Result<()> {
    from.run(&["ping", "-c", "1", "-W", "1", to]).map(drop)
}

/// Tries until it works or the settling time is up; then the last failure is the error.
pub(crate) fn eventually<T>(attempt: impl FnMut() -> Result<T>) -> Result<T> {
    within(SETTLING_TIMEOUT, attempt)
}

/// Tries for so long.
pub(crate) fn within<T>(span: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let give_up_at = Instant::now() + span;
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(error) if Instant::now() >= give_up_at => {
                return Err(error).with_context(|| format!("not within {span:?}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The kind of path that `node` uses to `peer`.
pub(crate) fn path_kind(node: &Node, network: &str, peer: &str) -> Result<String> {
    let peer = node.peer(network, peer)?;
    let kind = peer["path"]["kind"]
        .as_str()
        .context("there is no path yet")?;
    Ok(kind.to_owned())
}

/// Waits until the path from `node` to `peer` is of this kind.
pub(crate) fn await_path(node: &Node, network: &str, peer: &str, expected: &str) -> Result<()> {
    eventually(|| {
        let kind = path_kind(node, network, peer)?;
        ensure!(
            kind == expected,
            "the path to {peer} is {kind}, not {expected}"
        );
        Ok(())
    })
}

/// Waits until others can reach `node` through so many relays.
pub(crate) fn await_relays(node: &Node, count: usize) -> Result<()> {
    within(2 * SETTLING_TIMEOUT, || {
        let status = node.status()?;
        let ready = status["fabric"]["relays"].as_array().map_or(0, Vec::len);
        ensure!(ready >= count, "only {ready} relays are ready");
        Ok(())
    })
}

/// A guest of a node: a machine behind a bridge on the node's host. Not plugged into any network yet.
pub(crate) fn guest(lab: &Lab, host: &Machine, bridge: &str, name: &str) -> Machine {
    let machine = lab.machine(name).unwrap();
    let port = format!("p-{name}");
    lab.cable(&machine, "eth0", host, &port).unwrap();
    if host.run(&["ip", "link", "show", bridge]).is_ok() {
        host.ip(&[&format!("link set {port} master {bridge}")])
            .unwrap();
    } else {
        host.bridge(bridge, &[&port]).unwrap();
    }
    machine
}

/// Gets an address with busybox's udhcpc and keeps it running.
pub(crate) fn udhcpc(machine: &Machine) -> (String, cli::lab::Process) {
    machine
        .write_file(
            "/etc/udhcpc.script",
            "#!/bin/sh\ncase $1 in bound|renew) ip addr replace $ip/$mask dev $interface\n\
             for s in $dns; do echo nameserver $s; done > /etc/resolv.conf\n\
             [ -z \"$search$domain\" ] || echo search ${search:-$domain} >> /etc/resolv.conf\n\
             for r in $router; do ip route replace default via $r; done\n\
             set -- $staticroutes; while [ $# -ge 2 ]; do ip route replace $1 via $2; shift 2; done\n\
             echo \"mtu=$mtu hostname=$hostname staticroutes=$staticroutes\" > /run/udhcpc.options;; esac\n",
        )
        .unwrap();
    machine
        .run(&["chmod", "755", "/etc/udhcpc.script"])
        .unwrap();
    let hostname = format!("hostname:{}", machine.name());
    let argv = [
        "busybox",
        "udhcpc",
        "-f",
        "-i",
        "eth0",
        "-s",
        "/etc/udhcpc.script",
        "-x",
        &hostname,
        "-t",
        "20",
        "-T",
        "2",
    ];
    let mut client = machine.spawn("udhcpc", &argv).unwrap();
    client.wait_for_line("lease of", SETTLING_TIMEOUT).unwrap();
    let address = eventually(|| address_of(machine, "eth0")).unwrap();
    (address, client)
}

/// Gets an address with ISC's dhclient and keeps it running.
pub(crate) fn dhclient(machine: &Machine) -> (String, cli::lab::Process) {
    let argv = [
        "dhclient",
        "-d",
        "-v",
        "-lf",
        "/var/lib/dhcp/leases",
        "-pf",
        "/run/dhclient.pid",
        "eth0",
    ];
    let mut client = machine.spawn("dhclient", &argv).unwrap();
    client.wait_for_line("bound to", SETTLING_TIMEOUT).unwrap();
    let address = eventually(|| address_of(machine, "eth0")).unwrap();
    (address, client)
}

/// The IPv4 address on an interface.
pub(crate) fn address_of(machine: &Machine, interface: &str) -> Result<String> {
    let said = machine.run(&[
        "ip", "-4", "-o", "addr", "show", "dev", interface, "scope", "global",
    ])?;
    let address = said
        .split_whitespace()
        .skip_while(|word| *word != "inet")
        .nth(1)
        .context("no address yet")?;
    Ok(address.split('/').next().unwrap_or_default().to_owned())
}

/// A key that `machine` logs in with as root elsewhere, where it is asked nothing; returns the public half.
pub(crate) fn ssh_key(machine: &Machine) -> String {
    machine
        .sh("mkdir -p -m 700 /root/.ssh
             ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
             echo 'StrictHostKeyChecking accept-new' > /root/.ssh/config")
        .unwrap();
    let key = machine.read_file("/root/.ssh/id_ed25519.pub").unwrap();
    String::from_utf8(key).unwrap()
}

/// A real sshd on `machine` that lets this key in as root.
pub(crate) fn sshd(machine: &Machine, authorized_key: &str) -> cli::lab::Process {
    sshd_for(machine, "root", authorized_key)
}

/// The same for another user, and nobody else.
pub(crate) fn sshd_for(machine: &Machine, user: &str, authorized_key: &str) -> cli::lab::Process {
    let config = format!(
        "HostKey /etc/ssh/test_host_key\nPidFile none\nUsePAM no\nPasswordAuthentication no\n\
         PermitRootLogin prohibit-password\nAllowUsers {user}\nUseDNS no\n\
         AuthorizedKeysFile /etc/ssh/test_authorized_keys\n"
    );
    machine
        .write_file("/etc/ssh/sshd_test_config", config)
        .unwrap();
    machine
        .write_file("/etc/ssh/test_authorized_keys", authorized_key)
        .unwrap();
    // Without PAM, sshd takes a root whose password field begins with '!' for a locked account.
    machine
        .sh(
            "mkdir -p -m 755 /run/sshd; chmod 644 /etc/ssh/test_authorized_keys
             ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/test_host_key
             [ ! -f /etc/shadow ] || sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow",
        )
        .unwrap();
    // sshd starts itself again for each connection, so it wants its full path.
    let path = machine.sh("command -v sshd").unwrap();
    let argv = [path.trim(), "-D", "-e", "-f", "/etc/ssh/sshd_test_config"];
    let mut sshd = machine.spawn("sshd", &argv).unwrap();
    sshd.wait_for_line("Server listening on 0.0.0.0", SETTLING_TIMEOUT)
        .unwrap();
    sshd
}
