//! The stage: who is where, and everything on it that is not Farlan. Routers with their DHCP server, machines
//! with their DHCP clients, sshd and avahi, all unmodified.

use super::eventually;
use crate::lab::{Host, Lab, Machine, Nat, Process, Site, Tool, require};
use anyhow::{Context, Result, bail};
use std::net::Ipv4Addr;
use std::time::Duration;

/// What the demo needs beside what the lab needs.
pub(super) const DEMO_TOOLS: &[Tool] = &[
    Tool {
        program: "ping",
        package: "iputils-ping",
    },
    Tool {
        program: "curl",
        package: "curl",
    },
    Tool {
        program: "busybox",
        package: "busybox",
    },
    Tool {
        program: "dhclient",
        package: "isc-dhcp-client",
    },
    Tool {
        program: "dnsmasq",
        package: "dnsmasq-base",
    },
    Tool {
        program: "sshd",
        package: "openssh-server",
    },
    Tool {
        program: "ssh",
        package: "openssh-client",
    },
    Tool {
        program: "ssh-keygen",
        package: "openssh-client",
    },
    Tool {
        program: "avahi-daemon",
        package: "avahi-daemon",
    },
];

/// The module by which the C library asks avahi, somewhere below these directories.
const NSS_MDNS: &str = "libnss_mdns4_minimal.so.2";
const LIBRARY_DIRECTORIES: &[&str] = &["/lib", "/usr/lib", "/usr/lib64"];

/// How long a DHCP client may take. Clients repeat a lost question after 3 s or more.
const DHCP_TIMEOUT: Duration = Duration::from_secs(40);

/// How long a daemon may take to say that it is up.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(15);

/// What busybox's udhcpc calls on events: the configuration that every distribution ships in some form.
/// The resolver's file is put together from all interfaces.
const UDHCPC_SCRIPT: &str = r#"#!/bin/sh
case $1 in
    deconfig) ip -4 addr flush dev "$interface"; ip link set "$interface" up ;;
    bound | renew)
        ip -4 addr flush dev "$interface"
        ip addr add "$ip/${mask:-24}" broadcast + dev "$interface"
        for gateway in $router; do ip route replace default via "$gateway" dev "$interface" && break; done
        {
            for server in $dns; do echo "nameserver $server"; done
            if [ -n "$search$domain" ]; then echo "search ${search:-$domain}"; fi
        } > "/run/resolv.$interface"
        cat /run/resolv.* > /etc/resolv.conf
        ;;
esac
"#;

const SSHD_CONFIG: &str = "\
HostKey /etc/ssh/demo_host_key
PidFile none
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
UseDNS no
";

/// The stage with everybody on it.
pub(super) struct World<'lab> {
    pub(super) fabric: Host,
    pub(super) home: Site<'lab>,
    /// Runs Farlan on the user's LAN.
    pub(super) gateway: Host,
    /// On the user's LAN, without Farlan.
    pub(super) pc: Machine,
    pub(super) remote: Site<'lab>,
    /// Runs Farlan at the remote site.
    pub(super) host_8: Host,
    /// Guest there; `eth0` in the LAN's network, `eth1` in the one with addresses from its node.
    pub(super) vm_8_1: Machine,
    pub(super) third: Site<'lab>,
    /// Runs Farlan at the third site.
    pub(super) host_9: Host,
    pub(super) vm_9_1: Machine,
    daemons: Vec<Process>,
}

/// Fails, naming packages, unless all that the demo runs is there.
pub(super) fn require_tools() -> Result<()> {
    let mut tools = crate::lab::LAB_TOOLS.to_vec();
    tools.extend(DEMO_TOOLS);
    if !is_nss_mdns_there() {
        tools.push(Tool {
            program: "/usr/lib/libnss_mdns4_minimal.so.2",
            package: "libnss-mdns",
        });
    }
    require(&tools)
}

fn is_nss_mdns_there() -> bool {
    LIBRARY_DIRECTORIES.iter().any(|directory| {
        let here = std::path::Path::new(directory);
        let multiarch = std::fs::read_dir(here)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        multiarch
            .chain([here.to_owned()])
            .any(|path| path.join(NSS_MDNS).exists())
    })
}

impl<'lab> World<'lab> {
    /// Builds sites and machines, and cables guests to bridges of their hosts.
    pub(super) fn build(lab: &'lab Lab) -> Result<Self> {
        let fabric = lab.public_host("fabric")?;
        let home = lab.site("home", Nat::PortRestricted)?;
        let gateway = home.host("gateway")?;
        let pc = home.bare_host("pc")?;
        let remote = lab.site("remote", Nat::PortRestricted)?;
        let host_8 = remote.host("host-8")?;
        let vm_8_1 = lab.machine("vm-8-1")?;
        lab.cable(&vm_8_1, "eth0", &host_8, "vm81-home")?;
        lab.cable(&vm_8_1, "eth1", &host_8, "vm81-lab")?;
        host_8.bridge("br-home", &["vm81-home"])?;
        host_8.bridge("br-lab", &["vm81-lab"])?;
        let third = lab.site("third", Nat::Symmetric)?;
        let host_9 = third.host("host-9")?;
        let vm_9_1 = lab.machine("vm-9-1")?;
        lab.cable(&vm_9_1, "eth0", &host_9, "vm91-lab")?;
        host_9.bridge("br-lab", &["vm91-lab"])?;
        Ok(Self {
            fabric,
            home,
            gateway,
            pc,
            remote,
            host_8,
            vm_8_1,
            third,
            host_9,
            vm_9_1,
            daemons: Vec::new(),
        })
    }

    /// The home router's DHCP server, as on any home router.
    pub(super) fn start_dnsmasq(&mut self) -> Result<()> {
        let router = self.home.router().clone();
        let configuration = format!(
            "interface=lan\nbind-interfaces\nno-resolv\nno-hosts\nno-ping\nuser=root\nlog-dhcp\nlog-facility=-\n\
             domain=home.example\ndhcp-authoritative\ndhcp-range={},{},255.255.255.0,1h\n\
             dhcp-leasefile=/run/dnsmasq.leases\npid-file=/run/dnsmasq.pid\n",
            self.home.lan_address(100),
            self.home.lan_address(199),
        );
        router.write_file("/etc/dnsmasq-demo.conf", configuration)?;
        let mut dnsmasq = router.spawn(
            "dnsmasq",
            &[
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/etc/dnsmasq-demo.conf",
            ],
        )?;
        dnsmasq.wait_for_line("DHCP, IP range", DAEMON_TIMEOUT)?;
        self.daemons.push(dnsmasq);
        Ok(())
    }

    /// The lease that the home router's server gave to a MAC, from its own lease file.
    pub(super) fn dnsmasq_lease(&self, mac: &str) -> Result<Ipv4Addr> {
        let leases = self.home.router().read_file("/run/dnsmasq.leases")?;
        let leases = String::from_utf8_lossy(&leases);
        // Each line: expiry, MAC, address, name, client id.
        leases
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|words| words.get(1) == Some(&mac))
            .and_then(|words| words.get(2)?.parse().ok())
            .with_context(|| {
                format!("dnsmasq on the home router has no lease for {mac}:\n{leases}")
            })
    }

    /// Gets an address with busybox's udhcpc, which goes on running and renews it.
    pub(super) fn start_udhcpc(&mut self, machine: &Machine, interface: &str) -> Result<Ipv4Addr> {
        machine.write_file("/etc/udhcpc.script", UDHCPC_SCRIPT)?;
        machine.run(&["chmod", "755", "/etc/udhcpc.script"])?;
        let hostname = format!("hostname:{}", machine.name());
        let argv = [
            "busybox",
            "udhcpc",
            "-f",
            "-i",
            interface,
            "-s",
            "/etc/udhcpc.script",
            "-x",
            &hostname,
            "-t",
            "20",
            "-T",
            "2",
        ];
        let mut client = machine.spawn(&format!("udhcpc-{interface}"), &argv)?;
        client.wait_for_line("lease of", DHCP_TIMEOUT)?;
        self.daemons.push(client);
        // The client's script sets the address a moment after the client has said so.
        eventually(DAEMON_TIMEOUT, || address_of(machine, interface))
    }

    /// Gets an address with ISC's dhclient, in the configuration that its package ships.
    pub(super) fn start_dhclient(
        &mut self,
        machine: &Machine,
        interface: &str,
    ) -> Result<Ipv4Addr> {
        let leases = format!("/var/lib/dhcp/dhclient.{interface}.leases");
        let pid_file = format!("/run/dhclient.{interface}.pid");
        let argv = [
            "dhclient", "-d", "-v", "-lf", &leases, "-pf", &pid_file, interface,
        ];
        let mut client = machine.spawn(&format!("dhclient-{interface}"), &argv)?;
        client.wait_for_line("bound to", DHCP_TIMEOUT)?;
        self.daemons.push(client);
        // The client's script sets the address a moment after the client has said so.
        eventually(DAEMON_TIMEOUT, || address_of(machine, interface))
    }

    /// Gives a machine a key of its own to log in with, and returns the public half.
    pub(super) fn make_ssh_key(machine: &Machine) -> Result<String> {
        machine.sh(
            "mkdir -p -m 700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519",
        )?;
        Ok(String::from_utf8_lossy(&machine.read_file("/root/.ssh/id_ed25519.pub")?).into_owned())
    }

    /// A real sshd that lets these keys in as root.
    pub(super) fn start_sshd(&mut self, machine: &Machine, authorized_keys: &str) -> Result<()> {
        machine.write_file("/etc/ssh/sshd_demo_config", SSHD_CONFIG)?;
        machine.write_file("/root/.ssh/authorized_keys", authorized_keys)?;
        // Without PAM, sshd takes a root whose password field begins with '!' for a locked account; where the user who runs
        // this may not read the real file, another source of accounts (nss-systemd) says the same.
        machine.sh(
            "mkdir -p -m 755 /run/sshd; chmod 700 /root/.ssh; chmod 600 /root/.ssh/authorized_keys
             ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/demo_host_key
             [ -f /etc/shadow ] || echo 'root:!:1:0:99999:7:::' > /etc/shadow
             sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow",
        )?;
        // sshd starts itself again for each connection, so it wants its full path.
        let path = machine.sh("command -v sshd")?;
        let mut sshd = machine.spawn(
            "sshd",
            &[path.trim(), "-D", "-e", "-f", "/etc/ssh/sshd_demo_config"],
        )?;
        sshd.wait_for_line("Server listening on 0.0.0.0", DAEMON_TIMEOUT)?;
        self.daemons.push(sshd);
        Ok(())
    }

    /// avahi without D-Bus, on one interface, with the C library set to ask it for names in `.local`.
    pub(super) fn start_avahi(
        &mut self,
        machine: &Machine,
        interface: &str,
        publishes: bool,
    ) -> Result<()> {
        let publishing = if publishes { "no" } else { "yes" };
        let configuration = format!(
            "[server]\nuse-ipv4=yes\nuse-ipv6=no\nallow-interfaces={interface}\nenable-dbus=no\n\
             [publish]\ndisable-publishing={publishing}\npublish-hinfo=no\npublish-workstation=no\n"
        );
        machine.write_file("/etc/avahi/demo.conf", configuration)?;
        machine.sh(
            "touch /etc/nsswitch.conf; sed -i '/^hosts:/d' /etc/nsswitch.conf
             echo 'hosts: files mdns4_minimal [NOTFOUND=return] dns' >> /etc/nsswitch.conf
             mkdir -p -m 755 /run/avahi-daemon",
        )?;
        let argv = [
            "avahi-daemon",
            "-f",
            "/etc/avahi/demo.conf",
            "--no-drop-root",
            "--no-chroot",
            "--no-rlimits",
            "--debug",
        ];
        let mut avahi = machine.spawn("avahi", &argv)?;
        avahi.wait_for_line("Server startup complete", DAEMON_TIMEOUT)?;
        self.daemons.push(avahi);
        Ok(())
    }

    /// busybox's web server on port 80, serving a directory of the real file system.
    pub(super) fn start_httpd(
        &mut self,
        machine: &Machine,
        directory: &std::path::Path,
    ) -> Result<()> {
        let httpd = machine.spawn_at(
            "httpd",
            directory,
            &["busybox", "httpd", "-f", "-p", "80", "-h", "."],
        )?;
        self.daemons.push(httpd);
        Ok(())
    }

    /// Gives all daemons up; they run until their machines end.
    pub(super) fn leave_running(self) {
        for daemon in self.daemons {
            daemon.leave_running();
        }
    }
}

/// What the machine of this name is on the stage.
pub(super) fn role(machine: &str) -> &'static str {
    match machine {
        "internet" => "the internet: a bridge",
        "fabric" => "infrastructure node with a public address",
        "home-router" => "home: router with dnsmasq, port-restricted NAT",
        "gateway" => "home: runs Farlan, attaches the LAN",
        "pc" => "home: LAN machine without Farlan",
        "remote-router" => "remote: router, port-restricted NAT",
        "host-8" => "remote: runs Farlan",
        "vm-8-1" => "remote: guest",
        "third-router" => "third: router, symmetric NAT",
        "host-9" => "third: runs Farlan",
        "vm-9-1" => "third: guest",
        _ => "",
    }
}

/// The IPv4 address on an interface.
pub(super) fn address_of(machine: &Machine, interface: &str) -> Result<Ipv4Addr> {
    let said = machine.run(&[
        "ip", "-4", "-o", "addr", "show", "dev", interface, "scope", "global",
    ])?;
    // 3: eth0    inet 192.168.1.100/24 brd ...
    let Some(address) = said
        .split_whitespace()
        .skip_while(|word| *word != "inet")
        .nth(1)
    else {
        bail!("{} has no address on {interface}", machine.name());
    };
    Ok(address.split('/').next().unwrap_or_default().parse()?)
}

/// The MAC of an interface, as dnsmasq writes it.
pub(super) fn mac_of(machine: &Machine, interface: &str) -> Result<String> {
    let said = machine.run(&["ip", "-o", "link", "show", "dev", interface])?;
    said.split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1)
        .map(str::to_owned)
        .with_context(|| format!("{} has no MAC on {interface}", machine.name()))
}
