//! What can be typed, with its help. What it does is in `commands`.

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use multiaddr::Multiaddr;
use overlay_node::{
    config::{DnsMode, IfName},
    stream::Via,
};
use overlay_types::{DhcpMode, MacAddr, Name, PortKind, Subnet};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// Your far machines, on your LAN: a peer-to-peer Ethernet.
#[derive(Parser, Debug)]
#[command(
    name = "farlan",
    version,
    max_term_width = 100,
    propagate_version = true
)]
pub struct Args {
    /// Which node is meant.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(ClapArgs, Debug, Clone, Default)]
pub struct Global {
    /// The node's state directory [default: /var/lib/farlan, or ~/.local/state/farlan without root]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The node's API socket [default: farlan.sock in the state directory]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The network that is meant [default: the first joined]
    #[arg(long, global = true, value_name = "NAME")]
    pub network: Option<Name>,
}

/// Every command.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the whole system on this machine, in network namespaces
    Demo {
        /// Leave everything up, and say how to enter each site
        #[arg(long)]
        keep: bool,
        /// Print `{"ok":…, "checks":[…]}`
        #[arg(long)]
        json: bool,
    },
    /// Run an infrastructure node: DHT, STUN, relay; no network, no TAP
    Fabric(Fabric),
    /// Make, join, leave or show networks, on a running node
    #[command(subcommand)]
    Network(Network),
    /// Make an invite: one string that lets other nodes join
    Invite {
        /// What the newcomer becomes; a leaf never votes on leases
        #[arg(long, value_enum, default_value_t = Role::Member)]
        role: Role,
        /// How long it can be used, like 30m, 24h or 7d
        #[arg(long, default_value = "24h", value_parser = parse_duration, value_name = "TIME")]
        expires: Duration,
        /// How many nodes may use it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Print the invite with its id and expiry as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a node until SIGTERM or Ctrl-C; prints `ready` once its interface carries its address
    Up(Up),
    /// Stop the node
    Down,
    /// Plug guests in and out
    #[command(subcommand)]
    Port(Port),
    /// The node, its NAT, the fabric and its networks
    Status(Read),
    /// The other members, and the path to each
    Peers(Read),
    /// Who holds which address
    Leases(Read),
    /// Send echoes through the tunnel
    Ping {
        /// A name, an address or a node id
        target: String,
        /// How many
        #[arg(short, long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        /// Time between them
        #[arg(short, long, default_value = "1s", value_parser = parse_duration, value_name = "TIME")]
        interval: Duration,
        /// How long to wait for each answer
        #[arg(short = 'W', long, default_value = "2s", value_parser = parse_duration, value_name = "TIME")]
        timeout: Duration,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say by which path two nodes reach each other, and what would make it better
    Why {
        /// A name, an address or a node id; with one of them, the way from this node
        #[arg(num_args = 1..=2, required = true, value_name = "NODE")]
        targets: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look for what is wrong around this node; exit status 1 when something is
    Doctor(Read),
    /// Put the LAN behind an interface on the network
    #[command(subcommand)]
    Lan(Lan),
    /// Bring nodes up on many hosts over plain SSH
    #[command(subcommand)]
    Deploy(Deploy),
}

impl Command {
    /// Whether this process becomes a node, rather than asking one.
    pub const fn runs_a_node(&self) -> bool {
        matches!(self, Self::Up(_) | Self::Fabric(_))
    }
}

/// For commands that only read.
#[derive(ClapArgs, Debug, Clone, Copy)]
pub struct Read {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `farlan up`.
#[derive(ClapArgs, Debug)]
pub struct Up {
    /// Join by this invite; `-` reads it from standard input
    #[arg(long, value_name = "TOKEN")]
    pub invite: Option<String>,
    /// This node's name in networks that it joins [default: the host's name]
    #[arg(long, value_name = "N")]
    pub name: Option<Name>,
    /// Name of the network interface [default: chosen]
    #[arg(long, value_name = "IFNAME")]
    pub tap: Option<IfName>,
    /// Settings; flags win over them
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Return once the node is ready, and leave it running
    #[arg(long)]
    pub detach: bool,
    /// Threads that carry frames, 1 to 15 [default: by the number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=15))]
    pub workers: Option<u8>,
    /// Where to take tunnel traffic, UDP [default: a port chosen at first start]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen_data: Option<SocketAddr>,
    /// Where to take control connections [default: a port chosen at first start]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen_control: Vec<SocketAddr>,
    /// A fabric node, beside those that the invite names
    #[arg(long, value_name = "MULTIADDR")]
    pub bootstrap: Vec<Multiaddr>,
    /// Neither look for the fabric on the LAN nor be found there
    #[arg(long)]
    pub no_mdns: bool,
    /// Do not ask routers to map the data port (PCP, NAT-PMP, UPnP)
    #[arg(long)]
    pub no_port_mapping: bool,
    /// Relay for no other member
    #[arg(long)]
    pub no_relay: bool,
    /// A STUN server, beside the fabric nodes
    #[arg(long, value_name = "ADDR:PORT")]
    pub stun: Vec<SocketAddr>,
    /// A way out where neither UDP nor TLS gets out: an SSH gateway, `ssh://USER@HOST:PORT`, or a proxy, `http://HOST:PORT`
    #[arg(long, value_name = "URL")]
    pub via: Vec<Via>,
    /// How names reach this host's resolver: auto, resolved, hosts or off [default: auto]
    #[arg(long, value_name = "HOW")]
    pub dns: Option<DnsMode>,
    /// The hosts file for `--dns hosts` [default: /etc/hosts]
    #[arg(long, value_name = "FILE")]
    pub hosts_file: Option<PathBuf>,
    /// The node half of `--detach`
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub detached: bool,
}

/// `farlan fabric`.
#[derive(ClapArgs, Debug)]
pub struct Fabric {
    /// Where to take control connections, QUIC and TCP [default: port 4077 of every address]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<SocketAddr>,
    /// UDP port of STUN and relay; the one after it is used too [default: the port after --listen's]
    #[arg(long, value_name = "PORT")]
    pub service_port: Option<u16>,
    /// TCP port for nodes that get out by TLS only; 0: none [default: 443, if it is free]
    #[arg(long, value_name = "PORT")]
    pub stream_port: Option<u16>,
    /// What the relay carries for all members together, in Mbit/s; 0: no relay [default: 1000]
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub relay_rate: Option<u32>,
    /// What it carries for one member, in Mbit/s [default: 256]
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub relay_rate_member: Option<u32>,
    /// An address at which others reach this node, where its interfaces do not show it
    #[arg(long, value_name = "IP")]
    pub external: Vec<IpAddr>,
    /// Another fabric node
    #[arg(long, value_name = "MULTIADDR")]
    pub bootstrap: Vec<Multiaddr>,
    /// Do not let members on the LAN find this node
    #[arg(long)]
    pub no_mdns: bool,
    /// Return once the node is ready, and leave it running
    #[arg(long)]
    pub detach: bool,
    /// The node half of `--detach`
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub detached: bool,
}

/// `farlan network …`.
#[derive(Subcommand, Debug)]
pub enum Network {
    /// Make a network; this node is its owner
    Create {
        /// Its name
        name: Name,
        /// Where its addresses come from [default: 10.77.0.0/16]
        #[arg(long, value_name = "CIDR")]
        subnet: Option<Subnet>,
        /// Who serves addresses to guests
        #[arg(long, value_enum, default_value_t = Dhcp::Overlay)]
        dhcp: Dhcp,
        /// Largest IP packet of its stations, in bytes; up to 9000 where the links between members carry it
        #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1280..=9000))]
        mtu: u16,
        /// A fabric node, as `farlan fabric` prints it; goes into every invite
        #[arg(long, value_name = "MULTIADDR")]
        bootstrap: Vec<Multiaddr>,
        /// This node's name in it [default: the host's name]
        #[arg(long = "name", value_name = "N")]
        node_name: Option<Name>,
        /// Name of the network interface [default: chosen]
        #[arg(long, value_name = "IFNAME")]
        tap: Option<IfName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Join a network by an invite
    Join {
        /// The invite; `-` reads it from standard input
        token: String,
        /// This node's name in it [default: the host's name]
        #[arg(long = "name", value_name = "N")]
        node_name: Option<Name>,
        /// Name of the network interface [default: chosen]
        #[arg(long, value_name = "IFNAME")]
        tap: Option<IfName>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Leave a network, giving its addresses back
    Leave {
        /// Which one
        name: Name,
    },
    /// Show the networks that this node is in
    Show(Read),
}

/// `farlan port …`.
#[derive(Subcommand, Debug)]
pub enum Port {
    /// Plug a guest in: a bridge, a link, or the name of a TAP to make
    Add {
        /// The interface
        iface: IfName,
        /// Who may speak behind it
        #[arg(long, value_enum)]
        kind: Kind,
        /// A MAC that may speak there [default: the first that asks for an address]
        #[arg(long)]
        mac: Vec<MacAddr>,
        /// The guest's name [default: what its DHCP client says]
        #[arg(long, value_name = "N")]
        name: Option<Name>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Unplug it
    Remove {
        /// The interface
        iface: IfName,
    },
    /// What is plugged in
    List(Read),
}

/// `farlan lan …`.
#[derive(Subcommand, Debug)]
pub enum Lan {
    /// Make the LAN's machines and the network's members see each other
    Attach {
        /// The interface on the LAN
        iface: IfName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Undo that
    Detach,
    /// What is attached
    Status(Read),
}

/// `farlan deploy …`.
#[derive(Subcommand, Debug)]
pub enum Deploy {
    /// Install, start and join a node on each host; what is done already stays as it is
    Apply(Apply),
}

/// `farlan deploy apply`.
#[derive(ClapArgs, Debug)]
pub struct Apply {
    /// One host a line: `user@host[:port] [name=N] [tap=IFNAME] [dir=DIR] [state=DIR] [service=auto|systemd|detach]`
    pub hosts: PathBuf,
    /// Join by this invite; `-` reads it from standard input [default: one made by the node on this machine]
    #[arg(long, value_name = "TOKEN")]
    pub invite: Option<String>,
    /// The private key to log in with [default: what ssh finds]
    #[arg(short = 'i', long = "identity", value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Host keys; unknown hosts are added to it, changed ones refused [default: ssh's own file and rule]
    #[arg(long, value_name = "FILE")]
    pub known_hosts: Option<PathBuf>,
    /// A setting for ssh, as in ssh_config
    #[arg(short = 'o', long = "ssh-option", value_name = "KEY=VALUE")]
    pub ssh_options: Vec<String>,
    /// Where the binary goes, unless the host's line says
    #[arg(long, default_value = "/usr/local/bin", value_name = "DIR")]
    pub dir: PathBuf,
    /// The node's state directory there, unless the host's line says [default: the node's own default]
    #[arg(long, value_name = "DIR")]
    pub remote_state: Option<PathBuf>,
    /// What keeps the node running there, unless the host's line says
    #[arg(long, value_enum, default_value_t = Service::Auto)]
    pub service: Service,
    /// The binary to push [default: this one]
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// How many hosts at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub parallel: u16,
    /// How long one host may take
    #[arg(long, default_value = "5m", value_parser = parse_duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What an invite makes of a newcomer.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// May be asked to vote on leases
    Member,
    /// Never votes
    Leaf,
}

/// Who serves addresses.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dhcp {
    /// Every node, to the guests on its own ports
    Overlay,
    /// The attached LAN's own server, across the tunnel
    Lan,
    /// Nobody
    Off,
}

impl From<Dhcp> for DhcpMode {
    fn from(typed: Dhcp) -> Self {
        match typed {
            Dhcp::Overlay => Self::Overlay,
            Dhcp::Lan => Self::Lan,
            Dhcp::Off => Self::Off,
        }
    }
}

/// Who may speak behind a port.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This host itself
    Host,
    /// Guests: VMs, containers
    Guest,
}

impl From<Kind> for PortKind {
    fn from(typed: Kind) -> Self {
        match typed {
            Kind::Host => Self::Host,
            Kind::Guest => Self::Guest,
        }
    }
}

/// What keeps a deployed node running.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Service {
    /// systemd where it runs, else detached
    #[default]
    Auto,
    /// A systemd unit
    Systemd,
    /// A process of its own, which a reboot ends
    Detach,
}

/// `90s`, `30m`, `24h`, `7d`, `500ms`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("'{text}' is no length of time; write it like 500ms, 90s, 30m, 24h or 7d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => {
            return Some(Duration::from_millis(number))
                .filter(|d| !d.is_zero())
                .ok_or_else(wrong);
        }
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = number
        .checked_mul(seconds)
        .filter(|s| (1..=10 * 365 * 86_400).contains(s))
        .ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn times_are_written_as_people_write_them() {
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in [
            "",
            "24",
            "h",
            "0s",
            "0ms",
            "1w",
            "-1s",
            "99999999999999999999s",
            "9999999d",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_flags_that_say_which_node_stand_before_or_after_the_command() {
        for line in [
            "farlan --state /s status --json",
            "farlan status --state /s --json",
        ] {
            let typed = Args::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(typed.global.state, Some("/s".into()));
        }
    }

    #[test]
    fn what_is_wrong_in_itself_is_wrong_usage() {
        for line in [
            "farlan",
            "farlan network create a.b",
            "farlan network create lab --subnet 10.77.0.1/16",
            "farlan invite --uses 0",
            "farlan up --tap far/lan",
            "farlan port add br0",
            "farlan port add br0 --kind lan",
            "farlan up --bootstrap nonsense",
        ] {
            let error = Args::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
