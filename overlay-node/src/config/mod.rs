//! What a node is told at start: the flags of `farlan up` or `farlan fabric` laid over a TOML file laid over defaults.
//! The result cannot be wrong in itself; whether a port is free or a directory usable is found out by those who use them.

mod relay;

use crate::stream::Via;
use multiaddr::Multiaddr;
use overlay_types::Name;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};
use tokio_util::sync::CancellationToken;
use tunnel::relay::RelayLimits;
use zeroize::Zeroizing;

/// Where fabric nodes take control connections, over QUIC and TCP. Members' ports are chosen at first start.
pub const FABRIC_PORT: u16 = 4077;
/// Where fabric nodes take streams: what nearly every firewall lets out.
pub const STREAM_PORT: u16 = 443;
/// `sun_path` holds 108 bytes with its closing zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// The socket's name inside the state directory.
const SOCKET: &str = "farlan.sock";
/// Longer than any invite; a file beyond it is not one.
const INVITE_BYTES_MAX: usize = 64 << 10;

/// What a member runs with.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// Where it keeps its identity and networks, for [`crate::state::State::open`].
    pub state_dir: PathBuf,
    /// The local API's socket.
    pub socket: PathBuf,
    /// An invite to join by once it runs. One for a network it is in already changes nothing.
    pub invite: Option<Invite>,
    /// Its name in networks that it joins or creates; the host's name when not given.
    pub node_name: Option<Name>,
    /// The TAP's name for the network that the invite joins; chosen when not given.
    pub tap: Option<IfName>,
    /// The default network among those it is in; the first joined when not given.
    pub network: Option<Name>,
    /// How many threads carry frames; as many as the machine has use for when not given.
    pub workers: Option<u8>,
    /// Data plane, UDP. Port 0: see [`crate::state::State::port`].
    pub data_listen: SocketAddr,
    /// Control connections, QUIC and TCP, all on one port. Port 0: see [`crate::state::State::port`].
    pub control_listen: Vec<SocketAddr>,
    /// Whether to look for the fabric, and be found, on the LAN by mDNS.
    pub mdns: bool,
    /// Whether to have the host's routers map the data port (PCP, NAT-PMP, UPnP).
    pub port_mapping: bool,
    /// What it relays for other members; nothing when not given.
    pub relay: Option<RelayLimits>,
    /// STUN servers (RFC 8489) beside the fabric nodes.
    pub stun: Vec<SocketAddr>,
    /// Through what streams may leave where neither UDP nor TLS gets out.
    pub via: Vec<Via>,
    /// How names reach the host's own resolver.
    pub dns: DnsMode,
    /// The hosts file, for [`DnsMode::Hosts`].
    pub hosts_file: PathBuf,
    /// Ways into the fabric beside those of invites.
    pub bootstrap: Vec<Multiaddr>,
    /// Cancelled when the node is to stop, by a signal or by `farlan down`.
    pub stop: CancellationToken,
}

/// What an infrastructure node runs with.
#[derive(Clone, Debug)]
pub struct FabricConfig {
    /// Where it keeps its identity, for [`crate::state::State::open`].
    pub state_dir: PathBuf,
    /// The local API's socket.
    pub socket: PathBuf,
    /// Control connections, QUIC and TCP. Never empty.
    pub listen: Vec<SocketAddr>,
    /// What its relay gives.
    pub relay: RelayLimits,
    /// STUN and relay, UDP: by default the first listening address with the next port.
    pub service_main: SocketAddr,
    /// The second socket, for STUN's CHANGE-REQUEST: the same address with the port after that.
    pub service_alternate: SocketAddr,
    /// Where it takes streams from nodes that get out by TLS only.
    pub streams: Streams,
    /// Addresses at which others reach this node, where its interfaces do not show them (1:1 NAT, cloud).
    pub external: Vec<IpAddr>,
    /// Other fabric nodes.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether members on the LAN may find it by mDNS.
    pub mdns: bool,
    /// Cancelled when the node is to stop.
    pub stop: CancellationToken,
}

/// Whether a fabric node takes streams, TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// There, or not at all where that port is taken or not permitted.
    IfPossible(SocketAddr),
    /// There.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// What the command line says; all of it optional, all of it stronger than the file.
#[derive(Clone, Debug, Default)]
pub struct RunFlags {
    /// `--state`.
    pub state: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--network`.
    pub network: Option<Name>,
    /// `--invite`, already read from standard input if it was `-`.
    pub invite: Option<Invite>,
    /// `--name`.
    pub name: Option<Name>,
    /// `--tap`.
    pub tap: Option<IfName>,
    /// `--workers`.
    pub workers: Option<u8>,
    /// `--listen-data`.
    pub listen_data: Option<SocketAddr>,
    /// `--listen-control`; empty means the file's.
    pub listen_control: Vec<SocketAddr>,
    /// `--no-mdns`.
    pub no_mdns: bool,
    /// `--no-port-mapping`.
    pub no_port_mapping: bool,
    /// `--no-relay`.
    pub no_relay: bool,
    /// `--stun`, added to the file's.
    pub stun: Vec<SocketAddr>,
    /// `--via`, added to the file's.
    pub via: Vec<Via>,
    /// `--dns`.
    pub dns: Option<DnsMode>,
    /// `--hosts-file`.
    pub hosts_file: Option<PathBuf>,
    /// `--bootstrap`, added to the file's.
    pub bootstrap: Vec<Multiaddr>,
}

/// What `farlan fabric` says.
#[derive(Clone, Debug, Default)]
pub struct FabricFlags {
    /// `--state`.
    pub state: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--listen`; empty means port [`FABRIC_PORT`] of every address.
    pub listen: Vec<SocketAddr>,
    /// `--service-port`.
    pub service_port: Option<u16>,
    /// `--stream-port`; 0 means none.
    pub stream_port: Option<u16>,
    /// `--relay-rate`, in Mbit/s; 0 means no relay.
    pub relay_rate: Option<u32>,
    /// `--relay-rate-member`, in Mbit/s.
    pub relay_rate_member: Option<u32>,
    /// `--external`.
    pub external: Vec<IpAddr>,
    /// `--bootstrap`.
    pub bootstrap: Vec<Multiaddr>,
    /// `--no-mdns`.
    pub no_mdns: bool,
}

/// The TOML file, as written. Unknown keys are refused: a misspelt one would be a setting silently not made.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    state: Option<PathBuf>,
    socket: Option<PathBuf>,
    name: Option<Name>,
    tap: Option<IfName>,
    network: Option<Name>,
    invite_file: Option<PathBuf>,
    workers: Option<u8>,
    listen: ListenSection,
    discovery: DiscoverySection,
    nat: NatSection,
    relay: relay::RelaySection,
    dns: DnsSection,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ListenSection {
    data: Option<SocketAddr>,
    control: Vec<SocketAddr>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DiscoverySection {
    mdns: Option<bool>,
    bootstrap: Vec<Multiaddr>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NatSection {
    port_mapping: Option<bool>,
    stun: Vec<SocketAddr>,
    via: Vec<Via>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DnsSection {
    mode: Option<DnsMode>,
    hosts_file: Option<PathBuf>,
}

/// Why there is no configuration to run with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}; check the path and its permissions")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something that is not a setting.
    #[error(
        "{path}, line {line}: {why}; see deploy/farlan.toml for every setting with its meaning"
    )]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        line: usize,
        /// What is wrong there.
        why: String,
    },
    /// Settings that are fine alone do not go together.
    #[error("{0}")]
    Contradiction(String),
}

/// How overlay names reach the host's resolver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DnsMode {
    /// systemd-resolved where it runs, else the hosts file.
    #[default]
    Auto,
    /// systemd-resolved's per-link settings only.
    Resolved,
    /// A managed block in the hosts file only.
    Hosts,
    /// The host's resolver is left alone; the node's own DNS server still answers at its overlay address.
    Off,
}

impl FromStr for DnsMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "resolved" => Ok(Self::Resolved),
            "hosts" => Ok(Self::Hosts),
            "off" => Ok(Self::Off),
            _ => Err(format!(
                "'{text}' is no way to publish names; use auto, resolved, hosts or off"
            )),
        }
    }
}

/// A name that Linux accepts for a network interface (`dev_valid_name`): 1 to 15 bytes without `/`, `:` or spaces.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not an interface name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not an interface name; use 1 to 15 letters, digits, '-', '_' or '.'")]
pub struct InvalidIfName(String);

impl FromStr for IfName {
    type Err = InvalidIfName;

    fn from_str(text: &str) -> Result<Self, InvalidIfName> {
        let legal = (1..=15).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.@".contains(&b))
            && text != "."
            && text != "..";
        if legal {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidIfName(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for IfName {
    type Error = InvalidIfName;
    fn try_from(text: String) -> Result<Self, InvalidIfName> {
        text.parse()
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An invite's text. It is a secret: it is wiped when dropped and never shown.
#[derive(Clone)]
pub struct Invite(Zeroizing<String>);

impl Invite {
    /// Takes the text without the white space that copying adds.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.split_whitespace().collect()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(unreadable)?);
        let invite = Self::new(&text);
        if invite.0.is_empty() || invite.0.len() > INVITE_BYTES_MAX {
            return Err(ConfigError::Contradiction(format!(
                "{} holds no invite; write the output of `farlan invite` into it, or remove invite_file",
                path.display()
            )));
        }
        Ok(invite)
    }
}

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Invite(…)")
    }
}

impl FromStr for Invite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invite = Self::new(text);
        if invite.0.is_empty() {
            Err("the invite is empty".into())
        } else {
            Ok(invite)
        }
    }
}

impl ConfigFile {
    /// Reads `path`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the line that is wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|e| ConfigError::Invalid {
            path: path.to_owned(),
            line: e.span().map_or(1, |span| {
                text[..span.start.min(text.len())].matches('\n').count() + 1
            }),
            why: e.message().replace('\n', " "),
        })
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Where the state is, for commands that only need to find the node.
    pub fn state(&self) -> Option<&Path> {
        self.state.as_deref()
    }
}

impl RunConfig {
    /// Flags over file over defaults.
    ///
    /// # Errors
    /// [`ConfigError`] when what they say cannot be run.
    pub fn resolve(flags: RunFlags, file: ConfigFile) -> Result<Self, ConfigError> {
        let state_dir = absolute(flags.state.or(file.state).unwrap_or_else(default_state_dir))?;
        let socket = socket_path(flags.socket.or(file.socket), &state_dir)?;
        let control_listen = match (flags.listen_control, file.listen.control) {
            (flags, file) if flags.is_empty() && file.is_empty() => everywhere(0),
            (flags, file) if flags.is_empty() => file,
            (flags, _) => flags,
        };
        one_port(&control_listen)?;
        let invite = match (flags.invite, file.invite_file) {
            (Some(invite), _) => Some(invite),
            (None, Some(path)) => Some(Invite::from_file(&path)?),
            (None, None) => None,
        };
        let mut bootstrap = file.discovery.bootstrap;
        bootstrap.extend(flags.bootstrap);
        usable_bootstraps(&bootstrap)?;
        let mut stun = file.nat.stun;
        stun.extend(flags.stun);
        let mut via = file.nat.via;
        via.extend(flags.via);
        let relay = file.relay.resolve(flags.no_relay)?;
        Ok(Self {
            state_dir,
            socket,
            invite,
            node_name: flags.name.or(file.name),
            tap: flags.tap.or(file.tap),
            network: flags.network.or(file.network),
            workers: flags.workers.or(file.workers),
            data_listen: flags
                .listen_data
                .or(file.listen.data)
                .unwrap_or((Ipv6Addr::UNSPECIFIED, 0).into()),
            control_listen,
            mdns: !flags.no_mdns && file.discovery.mdns.unwrap_or(true),
            port_mapping: !flags.no_port_mapping && file.nat.port_mapping.unwrap_or(true),
            relay,
            stun,
            via,
            dns: flags.dns.or(file.dns.mode).unwrap_or_default(),
            hosts_file: absolute(
                flags
                    .hosts_file
                    .or(file.dns.hosts_file)
                    .unwrap_or_else(|| "/etc/hosts".into()),
            )?,
            bootstrap,
            stop: CancellationToken::new(),
        })
    }
}

impl FabricConfig {
    /// Flags over defaults.
    ///
    /// # Errors
    /// [`ConfigError`] when what they say cannot be run.
    pub fn resolve(flags: FabricFlags) -> Result<Self, ConfigError> {
        let state_dir = absolute(flags.state.unwrap_or_else(default_fabric_state_dir))?;
        let socket = socket_path(flags.socket, &state_dir)?;
        let listen = if flags.listen.is_empty() {
            everywhere(FABRIC_PORT)
        } else {
            flags.listen
        };
        one_port(&listen)?;
        // One socket serves both families where any listening address is IPv6's "every address".
        let service_ip = listen
            .iter()
            .map(SocketAddr::ip)
            .find(|ip| ip.is_ipv6() && ip.is_unspecified())
            .unwrap_or_else(|| listen[0].ip());
        let (main, alternate) = service_ports(listen[0].port(), flags.service_port)?;
        if let Some(odd) = flags
            .external
            .iter()
            .find(|ip| ip.is_unspecified() || ip.is_multicast())
        {
            return Err(ConfigError::Contradiction(format!(
                "nobody can reach this node at {odd}; give --external an address of one host"
            )));
        }
        usable_bootstraps(&flags.bootstrap)?;
        let relay = relay::of_fabric(flags.relay_rate, flags.relay_rate_member)?;
        let streams = match flags.stream_port {
            None => Streams::IfPossible((service_ip, STREAM_PORT).into()),
            Some(0) => Streams::Off,
            Some(port) => Streams::At((service_ip, port).into()),
        };
        Ok(Self {
            state_dir,
            socket,
            listen,
            relay,
            service_main: (service_ip, main).into(),
            service_alternate: (service_ip, alternate).into(),
            streams,
            external: flags.external,
            bootstrap: flags.bootstrap,
            mdns: !flags.no_mdns,
            stop: CancellationToken::new(),
        })
    }
}

/// `/var/lib/farlan` for root, else `$XDG_STATE_HOME/farlan` or `~/.local/state/farlan`.
pub fn default_state_dir() -> PathBuf {
    state_base().join("farlan")
}

/// A fabric node's, so that one machine can run both without a flag.
pub fn default_fabric_state_dir() -> PathBuf {
    state_base().join("farlan-fabric")
}

fn state_base() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib".into();
    }
    let home = |var| {
        std::env::var_os(var)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    home("XDG_STATE_HOME")
        .or_else(|| home("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
}

/// The API socket for a state directory, unless another was named.
///
/// # Errors
/// [`ConfigError`] when the path is longer than the system allows.
pub fn socket_path(named: Option<PathBuf>, state_dir: &Path) -> Result<PathBuf, ConfigError> {
    let path = absolute(named.unwrap_or_else(|| state_dir.join(SOCKET)))?;
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_MAX {
        return Err(ConfigError::Contradiction(format!(
            "the socket's path {} is {len} bytes long and the system allows {SOCKET_PATH_MAX}; give a shorter one with --socket PATH",
            path.display()
        )));
    }
    Ok(path)
}

/// Node and commands may be started in different directories.
fn absolute(path: PathBuf) -> Result<PathBuf, ConfigError> {
    std::path::absolute(&path).map_err(|source| ConfigError::Unreadable { path, source })
}

fn everywhere(port: u16) -> Vec<SocketAddr> {
    vec![
        (Ipv4Addr::UNSPECIFIED, port).into(),
        (Ipv6Addr::UNSPECIFIED, port).into(),
    ]
}

fn one_port(listen: &[SocketAddr]) -> Result<(), ConfigError> {
    match listen.iter().find(|addr| addr.port() != listen[0].port()) {
        None => Ok(()),
        Some(other) => Err(ConfigError::Contradiction(format!(
            "{} and {other} have different ports; listen on one port, at as many addresses as you like",
            listen[0]
        ))),
    }
}

/// The two service ports follow the control port, unless one is named; 0 leaves both to the system.
fn service_ports(control: u16, named: Option<u16>) -> Result<(u16, u16), ConfigError> {
    let main = match (named, control) {
        (Some(port), _) => port,
        (None, 0) => 0,
        (None, port) => port.saturating_add(1),
    };
    match main {
        0 => Ok((0, 0)),
        u16::MAX => Err(ConfigError::Contradiction(
            "no port is left above for STUN and relay; use a lower --listen port, or name one with --service-port".into(),
        )),
        main if main == control => Err(ConfigError::Contradiction(format!(
            "port {main} is already used for control connections; give --service-port another"
        ))),
        main => Ok((main, main + 1)),
    }
}

fn usable_bootstraps(addresses: &[Multiaddr]) -> Result<(), ConfigError> {
    use multiaddr::Protocol::{Dns, Dns4, Dns6, Ip4, Ip6};
    let begins_well = |a: &Multiaddr| {
        matches!(
            a.iter().next(),
            Some(Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_))
        )
    };
    match addresses.iter().find(|a| !begins_well(a)) {
        None => Ok(()),
        Some(odd) => Err(ConfigError::Contradiction(format!(
            "'{odd}' is no way into the fabric; copy an address that `farlan fabric` prints, like /ip4/203.0.113.5/udp/{FABRIC_PORT}/quic-v1/p2p/12D3KooW…"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_a_node_that_runs() {
        let config = RunConfig::resolve(RunFlags::default(), ConfigFile::default()).unwrap();
        assert_eq!(config.socket, config.state_dir.join(SOCKET));
        assert_eq!(config.control_listen, everywhere(0));
        assert!(config.mdns && config.port_mapping && config.invite.is_none());
        assert_eq!(config.dns, DnsMode::Auto);
    }

    #[test]
    fn flags_win_over_the_file_and_bootstraps_add_up() {
        let file = ConfigFile::parse(
            "name = 'file'\ntap = 'tap7'\n[discovery]\nmdns = false\nbootstrap = ['/ip4/192.0.2.1/udp/4077/quic-v1']\n[nat]\nport_mapping = false\nstun = ['192.0.2.9:3478']\n[dns]\nmode = 'hosts'",
        )
        .unwrap();
        let flags = RunFlags {
            name: "flag".parse().ok(),
            bootstrap: vec!["/ip4/192.0.2.2/tcp/4077".parse().unwrap()],
            stun: vec!["192.0.2.8:3478".parse().unwrap()],
            ..RunFlags::default()
        };
        let config = RunConfig::resolve(flags, file).unwrap();
        assert_eq!(config.node_name.unwrap().as_str(), "flag");
        assert_eq!(config.tap.unwrap().as_str(), "tap7");
        assert_eq!(
            (config.mdns, config.dns, config.bootstrap.len()),
            (false, DnsMode::Hosts, 2)
        );
        assert_eq!((config.port_mapping, config.stun.len()), (false, 2));
    }

    #[test]
    fn a_wrong_file_names_its_line() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("farlan.toml");
        for (text, line) in [
            ("name = 'a'\ntapp = 'x'\n", 2),
            ("\n\nname = 'a.b'", 3),
            ("tap = 'much-too-long-for-linux'", 1),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = ConfigFile::load(&path).unwrap_err();
            assert!(
                matches!(&error, ConfigError::Invalid { line: l, .. } if *l == line),
                "{error}"
            );
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn the_example_file_is_silent_as_it_comes_and_right_where_it_is_uncommented() {
        let text = include_str!("../../../deploy/farlan.toml");
        let bare = RunConfig::resolve(RunFlags::default(), ConfigFile::default()).unwrap();
        let as_it_comes =
            RunConfig::resolve(RunFlags::default(), ConfigFile::parse(text).unwrap()).unwrap();
        assert_eq!(
            format!(
                "{:?}",
                RunConfig {
                    stop: bare.stop.clone(),
                    ..as_it_comes
                }
            ),
            format!("{bare:?}")
        );

        let is_setting = |line: &&str| line.starts_with("# ") && line.contains(" = ");
        assert!(text.lines().filter(is_setting).count() >= 12);
        let uncommented: Vec<&str> = text
            .lines()
            .map(|line| if is_setting(&line) { &line[2..] } else { line })
            .filter(|line| !line.contains("bootstrap") && !line.contains("invite_file"))
            .collect();
        let file = ConfigFile::parse(&uncommented.join("\n")).unwrap();
        let config = RunConfig::resolve(RunFlags::default(), file).unwrap();
        assert_eq!(config.control_listen, bare.control_listen);
        assert_eq!(
            (
                config.data_listen,
                config.mdns,
                config.dns,
                config.port_mapping
            ),
            (bare.data_listen, bare.mdns, bare.dns, bare.port_mapping)
        );
    }

    #[test]
    fn a_fabric_node_derives_its_service_ports() {
        let flags = FabricFlags {
            listen: vec!["203.0.113.5:9000".parse().unwrap()],
            ..FabricFlags::default()
        };
        let config = FabricConfig::resolve(flags).unwrap();
        assert_eq!(config.service_main, "203.0.113.5:9001".parse().unwrap());
        assert_eq!(
            config.service_alternate,
            "203.0.113.5:9002".parse().unwrap()
        );
        let dual = FabricConfig::resolve(FabricFlags::default()).unwrap();
        assert_eq!(dual.service_main, "[::]:4078".parse().unwrap());
    }

    #[test]
    fn what_cannot_be_run_is_refused_in_one_line() {
        let listen = |addrs: &[&str]| {
            addrs
                .iter()
                .map(|a| a.parse().unwrap())
                .collect::<Vec<SocketAddr>>()
        };
        let long = FabricFlags {
            state: Some(format!("/{}", "x".repeat(200)).into()),
            ..FabricFlags::default()
        };
        let two = FabricFlags {
            listen: listen(&["0.0.0.0:1000", "[::]:1001"]),
            ..FabricFlags::default()
        };
        let top = FabricFlags {
            listen: listen(&["0.0.0.0:65535"]),
            ..FabricFlags::default()
        };
        let same = FabricFlags {
            listen: listen(&["0.0.0.0:900"]),
            service_port: Some(900),
            ..FabricFlags::default()
        };
        let odd = FabricFlags {
            bootstrap: vec!["/udp/4077".parse().unwrap()],
            ..FabricFlags::default()
        };
        for flags in [long, two, top, same, odd] {
            let error = FabricConfig::resolve(flags).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn an_invite_loses_the_line_breaks_of_a_mail_and_is_never_shown() {
        let invite: Invite = " far\n lan1abc \n".parse().unwrap();
        assert_eq!(invite.as_str(), "farlan1abc");
        assert!(!format!("{invite:?}").contains("abc"));
    }
}
