//! A data plane of the real program with many peers, and these peers, played from elsewhere: the real engine and worker of
//! each on a socket of its own, with a guest that pings.

use anyhow::{Context, Result};
use cli::lab::Host;
use overlay_types::{
    Binding, Candidate, DhcpMode, Location, MacAddr, NetworkId, PeerId, PortId, PortKind,
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use sim::guest::Guest;
use sim::host::{NodeHost, Sent};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tunnel::engine::{Command, Engine, EngineConfig};
use tunnel::io::{DataPlane, DataPlaneConfig};
use tunnel::session::LocalKeys;
use tunnel::worker::Worker;
use zeroize::Zeroizing;

pub(crate) const NETWORK: NetworkId = NetworkId([7; 32]);
pub(crate) const PSK: [u8; 32] = [9; 32];
const PORT: PortId = PortId(1);
/// Where the holder listens.
pub(crate) const DATA_PORT: u16 = 7777;
/// The first of the far nodes' ports; each has one of its own.
const FAR_PORT: u16 = 20_000;
/// The holder's interface.
pub(crate) const TAP: &str = "farlan0";

/// The data plane that holds the sessions: number 0 of the network, where these numbers have addresses. Its peers are told
/// to it afterwards.
pub(crate) fn start_holder(numbers: impl IntoIterator<Item = u16>) -> Result<DataPlane> {
    let config = DataPlaneConfig {
        listen: (Ipv4Addr::UNSPECIFIED, DATA_PORT).into(),
        workers: 1,
        seed: [1; 32],
    };
    let data_plane = DataPlane::start(config, Box::new(|_| {}))?;
    let tap = data_plane.make_tap(Some(TAP), Some(mac(0)), 1500)?;
    data_plane.command(add_network(0));
    data_plane.add_port(NETWORK, PORT, PortKind::Host, vec![mac(0)], tap);
    data_plane.command(bindings(0, numbers));
    Ok(data_plane)
}

/// A played node on the host with this address, as the holder is told of it.
pub(crate) fn peer_there(number: u16, far: Ipv4Addr) -> Command {
    let at = SocketAddr::from((far, FAR_PORT + number));
    upsert(number, vec![Candidate::Host(at)], true)
}

/// A node with one peer, the holder, played on a socket of its own.
pub(crate) struct Played {
    pub(crate) node: NodeHost,
    socket: UdpSocket,
    pinged_at: Option<Instant>,
}

impl Played {
    /// A node on the host `far`, at this address of it, with a session to `near` soon.
    pub(crate) fn start(number: u16, near: &Host, far: &Host, from: Ipv4Addr) -> Result<Self> {
        let socket = far.within(|| {
            let socket = UdpSocket::bind((from, FAR_PORT + number))?;
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
        let at = SocketAddr::from((near.address(), DATA_PORT));
        let holder = upsert(0, vec![Candidate::Host(at)], true);
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

    pub(crate) fn is_answered(&self) -> bool {
        !self.guest().answered.is_empty()
    }

    /// Takes what came, does what is due, and pings once a second until there was an answer.
    pub(crate) fn turn(&mut self) -> Result<()> {
        self.pump()?;
        let now = Instant::now();
        let is_due = |at: Instant| now >= at + Duration::from_secs(1);
        if !self.is_answered() && self.pinged_at.is_none_or(is_due) {
            self.pinged_at = Some(now);
            self.ping(now)?;
        }
        Ok(())
    }

    /// Pings the holder; its answer is noted under this number in [`Self::guest`].
    pub(crate) fn ping(&mut self, now: Instant) -> Result<u16> {
        let guest = self.node.guests.get_mut(&PORT).context("it has one")?;
        let (sequence, frames) = guest.ping(address(0), 56, now);
        let sent = self.node.handle_frames(PORT, frames, now);
        self.send(sent)?;
        Ok(sequence)
    }

    /// Who pings.
    pub(crate) fn guest(&self) -> &Guest {
        &self.node.guests[&PORT]
    }

    /// Takes what came, and does what is due.
    pub(crate) fn pump(&mut self) -> Result<()> {
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
pub(crate) fn peer(number: u16) -> PeerId {
    PeerId(seed(number))
}

fn seed(number: u16) -> [u8; 32] {
    let mut seed = [9; 32];
    seed[4..6].copy_from_slice(&number.to_be_bytes()); // of these the MAC is made
    seed
}

pub(crate) fn mac(number: u16) -> MacAddr {
    peer(number).host_mac()
}

pub(crate) fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 0, 1).to_bits() + u32::from(number))
}

pub(crate) fn keys(number: u16) -> LocalKeys {
    LocalKeys::generate(&mut ChaCha20Rng::from_seed(seed(number)))
}

fn add_network(number: u16) -> Command {
    Command::AddNetwork {
        id: NETWORK,
        me: peer(number),
        keys: keys(number),
        psk: Zeroizing::new(PSK),
        dhcp: DhcpMode::Off,
        mtu: 1500,
    }
}

/// A node with these ways in, as others are told of it.
pub(crate) fn upsert(number: u16, candidates: Vec<Candidate>, eager: bool) -> Command {
    Command::UpsertPeer {
        network: NETWORK,
        peer: peer(number),
        keys: keys(number).public(),
        candidates,
        eager,
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
