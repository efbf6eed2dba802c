//! Moves virtual time to the next thing that happens, lets it happen, and repeats. Everything random comes from the seed.
//!
//! The world is one IPv4 internet. A host hangs on it by a link, with or without a NAT between. Control connections are
//! not simulated datagram by datagram: see [`crate::directory`] for what stands in for them, and how it differs.

use crate::{
    host::{NodeHost, Sent},
    link::{Link, LinkKind},
    nat::{Nat, NatKind},
    trace::Trace,
};
use overlay_types::{PeerId, PortId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use tunnel::relay::RelayServer;

/// The UDP port of every node's data plane, before any NAT.
const DATA_PORT: u16 = 41_000;

/// A host in the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HostId(pub usize);

/// A NAT in the world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NatId(pub usize);

/// What runs on a host.
pub enum Role {
    /// A member.
    Node(Box<NodeHost>),
    /// An infrastructure node: relay and STUN.
    Relay(Box<RelayServer>),
    /// Switched off.
    Down,
}

struct Host {
    role: Role,
    address: SocketAddr,
    nat: Option<NatId>,
    out: Link,
    back: Link,
}

enum Happening {
    /// A datagram leaves the host's link for the NAT or the internet.
    Leaves { host: HostId, to: SocketAddr, bytes: Vec<u8> },
    /// A datagram comes to the host over its link.
    Arrives { host: HostId, from: SocketAddr, bytes: Vec<u8> },
    /// Something of the control plane: the number names it.
    Control(u64),
    /// A host wants to be woken.
    Wake(HostId),
}

/// One simulated internet with everything on it.
pub struct World {
    t0: Instant,
    now: Instant,
    /// The world's own randomness.
    pub rng: ChaCha20Rng,
    queue: BTreeMap<(Instant, u64), Happening>,
    next_event: u64,
    hosts: Vec<Host>,
    nats: Vec<Nat>,
    wakes: BTreeMap<HostId, Instant>,
    /// What happened.
    pub trace: Trace,
    due: Vec<u64>,
}

impl World {
    /// An empty world; its whole future follows from `seed` and what is asked of it.
    pub fn seeded(seed: u64) -> Self {
        let t0 = Instant::now();
        Self {
            t0,
            now: t0,
            rng: ChaCha20Rng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            next_event: 0,
            hosts: Vec::new(),
            nats: Vec::new(),
            wakes: BTreeMap::new(),
            trace: Trace::default(),
            due: Vec::new(),
        }
    }

    /// The virtual time.
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// How long the world has existed.
    pub fn elapsed(&self) -> Duration {
        self.now - self.t0
    }

    /// A NAT with a public address of its own.
    pub fn add_nat(&mut self, kind: NatKind) -> NatId {
        let id = NatId(self.nats.len());
        self.nats.push(Nat::new(kind, public_address(1, id.0)));
        id
    }

    /// A host, switched off, behind `nat` or with a public address.
    pub fn add_host(&mut self, nat: Option<NatId>, link: LinkKind) -> HostId {
        let id = HostId(self.hosts.len());
        let ip = match nat {
            Some(_) => IpAddr::V4(Ipv4Addr::new(192, 168, (id.0 / 250) as u8, (id.0 % 250 + 2) as u8)),
            None => public_address(0, id.0),
        };
        self.hosts.push(Host {
            role: Role::Down,
            address: SocketAddr::new(ip, DATA_PORT),
            nat,
            out: Link::new(link),
            back: Link::new(link),
        });
        id
    }

    /// The host's own address and data port.
    pub fn address(&self, host: HostId) -> SocketAddr {
        self.hosts[host.0].address
    }

    /// Switches a host on as this, or off.
    pub fn set_role(&mut self, host: HostId, role: Role) {
        self.trace.note(self.now - self.t0, format_args!("host {} changes", host.0), &[]);
        self.hosts[host.0].role = role;
        self.reschedule(host);
    }

    /// The node on a host.
    pub fn node(&mut self, host: HostId) -> Option<&mut NodeHost> {
        match &mut self.hosts[host.0].role {
            Role::Node(node) => Some(node),
            Role::Relay(_) | Role::Down => None,
        }
    }

    /// The relay on a host.
    pub fn relay(&mut self, host: HostId) -> Option<&mut RelayServer> {
        match &mut self.hosts[host.0].role {
            Role::Relay(relay) => Some(relay),
            Role::Node(_) | Role::Down => None,
        }
    }

    /// Every host that runs a node, with who it is.
    pub fn nodes(&self) -> Vec<(HostId, PeerId)> {
        let node = |(i, host): (usize, &Host)| match &host.role {
            Role::Node(node) => Some((HostId(i), node.peer)),
            Role::Relay(_) | Role::Down => None,
        };
        self.hosts.iter().enumerate().filter_map(node).collect()
    }

    /// Reboots a NAT.
    pub fn rebind(&mut self, nat: NatId) {
        self.trace.note(self.now - self.t0, format_args!("nat {} forgets", nat.0), &[]);
        self.nats[nat.0].rebind();
    }

    /// Cuts or mends a host's link.
    pub fn set_link_up(&mut self, host: HostId, up: bool) {
        self.trace.note(self.now - self.t0, format_args!("host {} link up: {up}", host.0), &[]);
        self.hosts[host.0].out.set_up(up);
        self.hosts[host.0].back.set_up(up);
    }

    /// Changes a host's link from now on.
    pub fn set_link(&mut self, host: HostId, kind: LinkKind) {
        self.hosts[host.0].out.set_kind(kind);
        self.hosts[host.0].back.set_kind(kind);
    }

    /// Does something with a node, then whatever follows from it.
    pub fn with_node<R>(&mut self, host: HostId, f: impl FnOnce(&mut NodeHost, Instant) -> R) -> Option<R> {
        let now = self.now;
        let node = self.node(host)?;
        let result = f(node, now);
        let sent = node.drain(now);
        self.send_all(host, sent);
        self.reschedule(host);
        Some(result)
    }

    /// Lets the guest behind a port send frames.
    pub fn send_frames(&mut self, host: HostId, port: PortId, frames: Vec<Vec<u8>>) {
        let now = self.now;
        let Some(node) = self.node(host) else { return };
        let sent = node.handle_frames(port, frames, now);
        self.send_all(host, sent);
        self.reschedule(host);
    }

    /// Has [`Self::step`] hand back `number` after `delay`: how the control plane's model keeps time.
    pub fn after(&mut self, delay: Duration, number: u64) {
        self.push(self.now + delay, Happening::Control(number));
    }

    /// Lets the next thing happen, at the latest at `until`. `false` once nothing is left before that.
    pub fn step(&mut self, until: Instant) -> bool {
        let Some(entry) = self.queue.first_entry() else {
            self.now = until;
            return false;
        };
        if entry.key().0 > until {
            self.now = until;
            return false;
        }
        let ((at, _), happening) = entry.remove_entry();
        self.now = at;
        match happening {
            Happening::Leaves { host, to, bytes } => self.leaves(host, to, bytes),
            Happening::Arrives { host, from, bytes } => self.arrives(host, from, bytes),
            Happening::Control(number) => self.due.push(number),
            Happening::Wake(host) => self.wake(host),
        }
        true
    }

    /// Control-plane numbers whose time has come.
    pub fn take_due(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.due)
    }

    fn push(&mut self, at: Instant, happening: Happening) {
        self.next_event += 1;
        self.queue.insert((at, self.next_event), happening);
    }

    fn send_all(&mut self, host: HostId, sent: Sent) {
        for (to, bytes) in sent {
            let arrival = self.hosts[host.0].out.send(bytes.len(), self.now, &mut self.rng);
            if let Some(at) = arrival {
                self.push(at, Happening::Leaves { host, to, bytes });
            }
        }
    }

    fn leaves(&mut self, host: HostId, to: SocketAddr, bytes: Vec<u8>) {
        let inside = self.hosts[host.0].address;
        let from = match self.hosts[host.0].nat {
            Some(nat) => self.nats[nat.0].outbound(inside, to, self.now, &mut self.rng),
            None => inside,
        };
        let Some(receiver) = self.route(host, from, to) else { return };
        // On one site's LAN both see each other's own addresses.
        let from = if self.hosts[receiver.0].address == to && self.hosts[receiver.0].nat.is_some() { inside } else { from };
        if let Some(at) = self.hosts[receiver.0].back.send(bytes.len(), self.now, &mut self.rng) {
            self.push(at, Happening::Arrives { host: receiver, from, bytes });
        }
    }

    /// Which host a datagram reaches: by its public address, through its NAT, or on the same LAN.
    fn route(&mut self, sender: HostId, from: SocketAddr, to: SocketAddr) -> Option<HostId> {
        let sender_nat = self.hosts[sender.0].nat;
        let inside = match self.nats.iter_mut().find(|nat| nat.public() == to.ip()) {
            Some(nat) => nat.inbound(to.port(), from, self.now)?,
            None => to,
        };
        let through_nat = inside != to;
        let reached = |host: &Host| {
            host.address == inside && (host.nat.is_none() || through_nat || (host.nat == sender_nat && sender_nat.is_some()))
        };
        self.hosts.iter().position(reached).map(HostId)
    }

    fn arrives(&mut self, host: HostId, from: SocketAddr, mut bytes: Vec<u8>) {
        let (at, now) = (self.now - self.t0, self.now);
        self.trace.note(at, format_args!("{from} -> host {}: {} bytes, type {:#04x}", host.0, bytes.len(), bytes.first().copied().unwrap_or(0)), &bytes);
        let sent = match &mut self.hosts[host.0].role {
            Role::Node(node) => node.handle_datagram(from, &mut bytes, now),
            Role::Relay(relay) => crate::infrastructure::answer(relay, from, &mut bytes, now),
            Role::Down => Vec::new(),
        };
        self.send_all(host, sent);
        self.reschedule(host);
    }

    fn wake(&mut self, host: HostId) {
        let now = self.now;
        if self.wakes.get(&host) != Some(&now) {
            return; // an earlier wake was planned since, and has been
        }
        self.wakes.remove(&host);
        if let Role::Node(node) = &mut self.hosts[host.0].role {
            let sent = node.handle_timeout(now);
            self.send_all(host, sent);
        }
        self.reschedule(host);
    }

    /// Sees to it that a host is woken in time; a wake that comes too early does no harm.
    fn reschedule(&mut self, host: HostId) {
        let Role::Node(node) = &self.hosts[host.0].role else { return };
        let Some(at) = node.poll_timeout().map(|at| at.max(self.now + MOMENT)) else { return };
        if self.wakes.get(&host).is_none_or(|&planned| at < planned) {
            self.wakes.insert(host, at);
            self.push(at, Happening::Wake(host));
        }
    }

    /// A random delay between the two.
    pub fn random_delay(&mut self, from: Duration, to: Duration) -> Duration {
        self.rng.random_range(from..to)
    }
}

/// The shortest time between two wakes of a host, so that a deadline in the past cannot stop the world.
const MOMENT: Duration = Duration::from_micros(100);

/// Public addresses: hosts out of 198.18.0.0/16, NATs out of 198.19.0.0/16 (RFC 2544).
fn public_address(block: u8, index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 18 + block, (index / 250) as u8, (index % 250 + 1) as u8))
}
