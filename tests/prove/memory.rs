//! What a node holds in memory: beside two peers, and with a thousand sessions in use.

use crate::measuring::resident_mib;
use crate::overlay::{eventually, fabric, founder, lab, member, ping, program};
use crate::{Amount, Measured};
use anyhow::{Context, Result, ensure};
use cli::lab::{Host, Lab, Process};
use overlay_types::{
    Binding, Candidate, DhcpMode, Location, MacAddr, NetworkId, PeerId, PortId, PortKind,
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use sim::guest::Guest;
use sim::host::{NodeHost, Sent};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tunnel::engine::{Command, Engine, EngineConfig};
use tunnel::io::{DataPlane, DataPlaneConfig};
use tunnel::session::LocalKeys;
use tunnel::worker::Worker;
use zeroize::Zeroizing;

const NETWORK: NetworkId = NetworkId([7; 32]);
const PORT: PortId = PortId(1);
const DATA_PORT: u16 = 7777;
/// The first of the far nodes' ports; each has one of its own.
const FAR_PORT: u16 = 20_000;
const TAP: &str = "farlan0";

/// Sessions that are to fit.
const SESSIONS: u16 = 1000;
const GOAL_FEW: f64 = 64.0;
const GOAL_MANY: f64 = 256.0;

/// Until every session has carried a ping and its answer; hangs only.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long nodes are left alone before they are looked at.
const SETTLING: Duration = Duration::from_secs(10);

/// Resident memory of a process now and at its most, in MiB.
#[derive(Clone, Copy)]
struct Resident {
    now: f64,
    peak: f64,
}

impl Resident {
    fn of(pid: u32) -> Result<Self> {
        Ok(Self {
            now: resident_mib(pid, "VmRSS")?,
            peak: resident_mib(pid, "VmHWM")?,
        })
    }

    fn row(self, what: &str) -> String {
        format!("| {what} | {:.1} | {:.1} |", self.now, self.peak)
    }
}

/// Three whole nodes, each with the two others as peers; then data planes alone, with two sessions and with a thousand.
pub(crate) fn memory(_: Amount) -> Result<Measured> {
    let mut lines = vec![
        "| | MiB | at most |".to_owned(),
        "|---|---:|---:|".to_owned(),
    ];
    let mut kept = true;
    let mut node: f64 = 0.0;
    for (what, resident) in nodes_with_two_peers()? {
        lines.push(resident.row(what));
        kept &= resident.peak < GOAL_FEW;
        node = node.max(resident.peak);
    }
    let few = data_plane_with(2)?;
    let many = data_plane_with(SESSIONS)?;
    lines.push(few.row("data plane alone, 2 sessions"));
    lines.push(many.row(&format!("data plane alone, {SESSIONS} sessions")));
    let whole = node + many.peak - few.peak;
    kept &= whole < GOAL_MANY;
    lines.push(format!(
        "\nEvery session carried a ping and its answer. {SESSIONS} sessions are {:.1} KiB each; with the largest node above \
         that is {whole:.1} MiB. Goals: under {GOAL_FEW} MiB with two peers, under {GOAL_MANY} with {SESSIONS} sessions. The \
         certificates and records of {SESSIONS} members are not in it.",
        (many.peak - few.peak) * 1024.0 / f64::from(SESSIONS - 2),
    ));
    Ok(Measured { kept, lines })
}

fn nodes_with_two_peers() -> Result<Vec<(&'static str, Resident)>> {
    let lab = lab("memory");
    let (mut fabric, bootstrap) = fabric(&lab);
    let hosts = ["a", "b", "c"].map(|name| lab.public_host(name));
    let [a, b, c] = hosts.map(|host| host.map(|host| (*host).clone()));
    let mut first = founder(&a?, &bootstrap, "lab", &[]);
    let mut second = member(&b?, &first, "lab");
    let mut third = member(&c?, &first, "lab");
    for (from, to) in [(&first, &second), (&second, &third), (&third, &first)] {
        eventually(|| ping(from.machine(), &to.address("lab")?))?;
    }
    thread::sleep(SETTLING);
    let named = [
        ("founder with two peers", &mut first),
        ("member with two peers", &mut second),
        ("member with two peers", &mut third),
        ("their fabric node", &mut fabric),
    ];
    named
        .into_iter()
        .map(|(what, node)| Ok((what, Resident::of(node.process().pid().context(what)?)?)))
        .collect()
}

/// The data plane of a process of its own, and so many nodes played from here, all of which ping it.
fn data_plane_with(sessions: u16) -> Result<Resident> {
    // A descriptor for each session played from here, and some for the lab.
    let mut files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, files)?;
    let this = std::env::current_exe()?;
    let lab = Lab::start_with("sessions", &[&program(), &this], &[])?;
    let (near, far) = (lab.public_host("near")?, lab.public_host("far")?);
    let mut holder = hold_on(&near, &far, sessions)?;
    let mut played = (1..=sessions)
        .map(|number| Played::start(number, &near, &far))
        .collect::<Result<Vec<_>>>()?;
    let give_up = Instant::now() + PATIENCE;
    while played.iter().any(|node| !node.is_answered()) {
        ensure!(
            Instant::now() < give_up,
            "{} of {sessions} sessions carried no ping",
            played.iter().filter(|node| !node.is_answered()).count()
        );
        for node in &mut played {
            node.turn()?;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let pid = holder.pid().context("the holder runs")?;
    let resident = Resident::of(pid)?;
    ensure!(holder.is_running(), "the holder ended");
    Ok(resident)
}

fn hold_on(near: &Host, far: &Host, sessions: u16) -> Result<Process> {
    let (count, at) = (sessions.to_string(), far.address().to_string());
    let mut holder = near.spawn("holder", &["prove", HOLD, &count, &at])?;
    holder.wait_for_line("holding", Duration::from_secs(20))?;
    near.ip(&[&format!("address add {}/16 dev {TAP}", address(0))])?;
    Ok(holder)
}

/// What makes this program [`hold`] sessions.
pub(crate) const HOLD: &str = "hold-sessions";

/// A data plane with so many peers at `far`, until it is killed.
pub(crate) fn hold(sessions: &str, far: &str) -> Result<()> {
    let (sessions, far): (u16, Ipv4Addr) = (sessions.parse()?, far.parse()?);
    let config = DataPlaneConfig {
        listen: (Ipv4Addr::UNSPECIFIED, DATA_PORT).into(),
        workers: 1,
        seed: [1; 32],
    };
    let data_plane = DataPlane::start(config, Box::new(|_| {}))?;
    let tap = data_plane.make_tap(Some(TAP), Some(mac(0)), 1500)?;
    data_plane.command(add_network(0));
    data_plane.add_port(NETWORK, PORT, PortKind::Host, vec![mac(0)], tap);
    data_plane.command(bindings(0, 0..=sessions));
    for number in 1..=sessions {
        data_plane.command(peer_at(number, (far, FAR_PORT + number).into()));
    }
    println!("holding");
    loop {
        thread::park();
    }
}

/// A node with one peer, the holder, played on a socket of its own.
struct Played {
    node: NodeHost,
    socket: UdpSocket,
    pinged_at: Option<Instant>,
}

impl Played {
    fn start(number: u16, near: &Host, far: &Host) -> Result<Self> {
        let socket = far.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, FAR_PORT + number))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let now = Instant::now();
        let config = EngineConfig {
            workers: 1,
            seed: seed(number),
            unix_at_start: SystemTime::now().duration_since(UNIX_EPOCH)?,
        };
        let worker = Worker::new(0, 1, now);
        let mut node = NodeHost::new(peer(number), Engine::new(config, now), vec![worker]);
        let guest = Guest::new(mac(number), address(number));
        node.guests.insert(PORT, guest);
        let port = Command::AddPort {
            network: NETWORK,
            port: PORT,
            kind: PortKind::Host,
            macs: vec![mac(number)],
        };
        let holder = peer_at(0, (near.address(), DATA_PORT).into());
        let known = bindings(number, [0, number]);
        for command in [add_network(number), port, known, holder] {
            node.engine.handle_command(command, now);
        }
        let mut played = Self {
            node,
            socket,
            pinged_at: None,
        };
        let sent = played.node.drain(now);
        played.send(sent)?;
        Ok(played)
    }

    fn is_answered(&self) -> bool {
        !self.node.guests[&PORT].answered.is_empty()
    }

    /// Takes what came, does what is due, and pings once a second.
    fn turn(&mut self) -> Result<()> {
        let mut buffer = [0; 2048];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((len, from)) => {
                    let now = Instant::now();
                    let sent = self.node.handle_datagram(0, from, &mut buffer[..len], now);
                    self.send(sent)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // About a datagram that left before anybody listened.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error.into()),
            }
        }
        let now = Instant::now();
        if self.node.poll_timeout().is_some_and(|at| at <= now) {
            let sent = self.node.handle_timeout(now);
            self.send(sent)?;
        }
        let is_due = |at: Instant| now >= at + Duration::from_secs(1);
        if !self.is_answered() && self.pinged_at.is_none_or(is_due) {
            self.pinged_at = Some(now);
            let guest = self.node.guests.get_mut(&PORT).context("it has one")?;
            let (_, frames) = guest.ping(address(0), 56, now);
            let sent = self.node.handle_frames(PORT, frames, now);
            self.send(sent)?;
        }
        Ok(())
    }

    fn send(&self, sent: Sent) -> Result<()> {
        for (hop, bytes) in sent {
            match self.socket.send_to(&bytes, hop.to) {
                Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The holder has number 0.
fn peer(number: u16) -> PeerId {
    PeerId(seed(number))
}

fn seed(number: u16) -> [u8; 32] {
    let mut seed = [9; 32];
    seed[4..6].copy_from_slice(&number.to_be_bytes()); // of these the MAC is made
    seed
}

fn mac(number: u16) -> MacAddr {
    peer(number).host_mac()
}

fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 0, 1).to_bits() + u32::from(number))
}

fn keys(number: u16) -> LocalKeys {
    LocalKeys::generate(&mut ChaCha20Rng::from_seed(seed(number)))
}

fn add_network(number: u16) -> Command {
    Command::AddNetwork {
        id: NETWORK,
        me: peer(number),
        keys: keys(number),
        psk: Zeroizing::new([9; 32]),
        dhcp: DhcpMode::Off,
        mtu: 1500,
    }
}

fn peer_at(number: u16, at: SocketAddr) -> Command {
    Command::UpsertPeer {
        network: NETWORK,
        peer: peer(number),
        keys: keys(number).public(),
        candidates: vec![Candidate::Host(at)],
        eager: true,
        paid: 2000,
    }
}

/// Where everybody is, as node `here` sees it.
fn bindings(here: u16, known: impl IntoIterator<Item = u16>) -> Command {
    let binding = |number| Binding {
        ip: IpAddr::V4(address(number)),
        mac: mac(number),
        location: if number == here {
            Location::Port(PORT)
        } else {
            Location::Peer(peer(number))
        },
    };
    Command::SetBindings {
        network: NETWORK,
        bindings: known.into_iter().map(binding).collect(),
    }
}
