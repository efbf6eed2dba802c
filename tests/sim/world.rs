//! Moves virtual time to the next thing that happens, lets it happen, and repeats. Everything random comes from the seed.
//!
//! The world is one IPv4 internet. A host hangs on it by a link, with or without a NAT between; hosts behind one NAT share
//! a LAN. Sites number their LANs alike, as real ones do. Control connections are not simulated datagram by datagram: see
//! [`crate::directory`] for what stands in for them.

use crate::{
    guest::MARKER,
    host::{NodeHost, Sent},
    infrastructure::{Infrastructure, MAIN_PORT},
    link::{Link, LinkKind},
    nat::{Nat, NatKind},
    trace::Trace,
};
use overlay_types::PortId;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    time::{Duration, Instant},
};
use tunnel::worker::Hop;

/// The UDP port of every node's data plane, before any NAT; its further sockets have the ports after it.
const DATA_PORT: u16 = 41_000;

/// The shortest time between two wakes of a host, so that a deadline in the past cannot stop the world.
const MOMENT: Duration = Duration::from_micros(100);

/// The most datagrams that an eavesdropper keeps.
const OVERHEARD_MAX: usize = 4096;

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
    /// Relay and STUN.
    Infrastructure(Box<Infrastructure>),
    /// Somebody who only listens: what came.
    Stranger(Vec<Vec<u8>>),
    /// Switched off.
    Down,
}

struct Host {
    role: Role,
    address: SocketAddr,
    nat: Option<NatId>,
    out: Link,
    back: Link,
    is_up: bool,
}

enum Happening {
    /// A datagram leaves the host's link for the NAT or the internet.
    Leaves {
        host: HostId,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    /// A datagram comes to the host over its link.
    Arrives {
        host: HostId,
        from: SocketAddr,
        at: SocketAddr,
        bytes: Vec<u8>,
    },
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
    public_hosts: BTreeMap<IpAddr, HostId>,
    public_nats: BTreeMap<IpAddr, NatId>,
    lans: BTreeMap<(NatId, IpAddr), HostId>,
    /// Hosts cut off from all others, together.
    island: BTreeSet<HostId>,
    wakes: BTreeMap<HostId, Instant>,
    due: Vec<u64>,
    eventful: BTreeSet<HostId>,
    /// What happened.
    pub trace: Trace,
    /// Datagrams that showed the payload of a guest's frame.
    pub plaintext_seen: u64,
    /// What an eavesdropper on every wire has heard, if there is one.
    pub overheard: Option<Vec<(SocketAddr, Vec<u8>)>>,
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
            public_hosts: BTreeMap::new(),
            public_nats: BTreeMap::new(),
            lans: BTreeMap::new(),
            island: BTreeSet::new(),
            wakes: BTreeMap::new(),
            due: Vec::new(),
            eventful: BTreeSet::new(),
            trace: Trace::default(),
            plaintext_seen: 0,
            overheard: None,
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

    /// Notes something in the trace.
    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.note(self.now - self.t0, what, &[]);
    }

    // ---- building ----

    /// A NAT with a public address of its own.
    pub fn add_nat(&mut self, kind: NatKind) -> NatId {
        let id = NatId(self.nats.len());
        let public = public_address(1, id.0);
        self.nats.push(Nat::new(kind, public));
        self.public_nats.insert(public, id);
        id
    }

    /// A host, switched off, behind `nat` or with a public address.
    pub fn add_host(&mut self, nat: Option<NatId>, link: LinkKind) -> HostId {
        let id = HostId(self.hosts.len());
        let ip = match nat {
            Some(nat) => {
                let neighbours = self.lans.keys().filter(|(of, _)| *of == nat).count();
                let ip = IpAddr::V4(Ipv4Addr::new(192, 168, 1, neighbours as u8 + 2));
                self.lans.insert((nat, ip), id);
                ip
            }
            None => {
                let ip = public_address(0, id.0);
                self.public_hosts.insert(ip, id);
                ip
            }
        };
        self.hosts.push(Host {
            role: Role::Down,
            address: SocketAddr::new(ip, DATA_PORT),
            nat,
            out: Link::new(link),
            back: Link::new(link),
            is_up: true,
        });
        id
    }

    /// The host's own address and data port.
    pub fn address(&self, host: HostId) -> SocketAddr {
        self.hosts[host.0].address
    }

    /// Where the host offers relay and STUN, if it does.
    pub fn service_address(&self, host: HostId) -> SocketAddr {
        SocketAddr::new(self.hosts[host.0].address.ip(), MAIN_PORT)
    }

    /// The NAT in front of a host.
    pub fn nat_of(&self, host: HostId) -> Option<NatId> {
        self.hosts[host.0].nat
    }

    // ---- what can befall it ----

    /// Switches a host on as this, or off.
    pub fn set_role(&mut self, host: HostId, role: Role) {
        self.note(format_args!("host {} changes", host.0));
        self.hosts[host.0].role = role;
        self.reschedule(host);
    }

    /// Reboots a NAT.
    pub fn rebind(&mut self, nat: NatId) {
        self.note(format_args!("nat {} forgets", nat.0));
        self.nats[nat.0].rebind();
    }

    /// Cuts or mends a host's link.
    pub fn set_link_up(&mut self, host: HostId, up: bool) {
        self.note(format_args!("host {} link up: {up}", host.0));
        self.hosts[host.0].is_up = up;
        self.hosts[host.0].out.set_up(up);
        self.hosts[host.0].back.set_up(up);
    }

    /// Changes a host's link from now on.
    pub fn set_link(&mut self, host: HostId, kind: LinkKind) {
        self.hosts[host.0].out.set_kind(kind);
        self.hosts[host.0].back.set_kind(kind);
    }

    /// Cuts these hosts off from all others, and mends whatever was cut so before.
    pub fn set_island(&mut self, island: BTreeSet<HostId>) {
        self.note(format_args!("the island is {island:?}"));
        self.island = island;
    }

    /// Whether two hosts that run could exchange anything at all.
    pub fn is_connected(&self, a: HostId, b: HostId) -> bool {
        let runs = |host: HostId| {
            self.hosts[host.0].is_up && !matches!(self.hosts[host.0].role, Role::Down)
        };
        runs(a) && runs(b) && self.on_island(a) == self.on_island(b)
    }

    /// Whether a host is cut off together with others.
    pub fn on_island(&self, host: HostId) -> bool {
        self.island.contains(&host)
    }

    /// Whether anybody is.
    pub fn is_partitioned(&self) -> bool {
        !self.island.is_empty()
    }

    // ---- what runs in it ----

    /// The node on a host.
    pub fn node(&self, host: HostId) -> Option<&NodeHost> {
        match &self.hosts[host.0].role {
            Role::Node(node) => Some(node),
            _ => None,
        }
    }

    /// Relay and STUN on a host.
    pub fn infrastructure(&mut self, host: HostId) -> Option<&mut Infrastructure> {
        match &mut self.hosts[host.0].role {
            Role::Infrastructure(infrastructure) => Some(infrastructure),
            _ => None,
        }
    }

    /// What came to a stranger.
    pub fn heard_by(&self, host: HostId) -> &[Vec<u8>] {
        match &self.hosts[host.0].role {
            Role::Stranger(heard) => heard,
            _ => &[],
        }
    }

    /// Does something with a node, then whatever follows from it.
    pub fn with_node<R>(
        &mut self,
        host: HostId,
        f: impl FnOnce(&mut NodeHost, Instant) -> R,
    ) -> Option<R> {
        let now = self.now;
        let Role::Node(node) = &mut self.hosts[host.0].role else {
            return None;
        };
        let result = f(node, now);
        let sent = node.drain(now);
        self.send_all(host, sent);
        self.reschedule(host);
        Some(result)
    }

    /// Lets the guest behind a port send frames.
    pub fn send_frames(&mut self, host: HostId, port: PortId, frames: Vec<Vec<u8>>) {
        let now = self.now;
        let Role::Node(node) = &mut self.hosts[host.0].role else {
            return;
        };
        let sent = node.handle_frames(port, frames, now);
        self.send_all(host, sent);
        self.reschedule(host);
    }

    /// Sends a datagram from a host's data port, whatever runs there.
    pub fn send_datagram(&mut self, host: HostId, to: SocketAddr, bytes: Vec<u8>) {
        self.send_all(host, vec![(Hop { socket: 0, to }, bytes)]);
    }

    // ---- time ----

    /// Has [`Self::step`] hand back `number` after `delay`: how the control plane's model keeps time.
    pub fn after(&mut self, delay: Duration, number: u64) {
        self.push(self.now + delay, Happening::Control(number));
    }

    /// Lets the next thing happen, at the latest at `until`. `false` once nothing is left before that.
    pub fn step(&mut self, until: Instant) -> bool {
        let next = self
            .queue
            .first_entry()
            .filter(|entry| entry.key().0 <= until);
        let Some(entry) = next else {
            self.now = until;
            return false;
        };
        let ((at, _), happening) = entry.remove_entry();
        self.now = at;
        match happening {
            Happening::Leaves {
                host,
                from,
                to,
                bytes,
            } => self.leaves(host, from, to, bytes),
            Happening::Arrives {
                host,
                from,
                at,
                bytes,
            } => self.arrives(host, from, at, bytes),
            Happening::Control(number) => self.due.push(number),
            Happening::Wake(host) => self.wake(host),
        }
        true
    }

    /// Control-plane numbers whose time has come.
    pub fn take_due(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.due)
    }

    /// Hosts whose engine had something to say.
    pub fn take_eventful(&mut self) -> BTreeSet<HostId> {
        std::mem::take(&mut self.eventful)
    }

    /// A random duration out of `range`.
    pub fn random_delay(&mut self, range: &Range<Duration>) -> Duration {
        self.rng.random_range(range.clone())
    }

    fn push(&mut self, at: Instant, happening: Happening) {
        self.next_event += 1;
        self.queue.insert((at, self.next_event), happening);
    }

    fn send_all(&mut self, host: HostId, sent: Sent) {
        let address = self.hosts[host.0].address;
        for (Hop { socket, to }, bytes) in sent {
            let from = SocketAddr::new(address.ip(), DATA_PORT.wrapping_add(socket));
            self.send_from(host, from, to, bytes);
        }
    }

    fn send_from(&mut self, host: HostId, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let arrival = self.hosts[host.0]
            .out
            .send(bytes.len(), self.now, &mut self.rng);
        if let Some(at) = arrival {
            self.push(
                at,
                Happening::Leaves {
                    host,
                    from,
                    to,
                    bytes,
                },
            );
        }
    }

    fn leaves(&mut self, host: HostId, inside: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.plaintext_seen +=
            u64::from(bytes.windows(MARKER.len()).any(|window| window == MARKER));
        if let Some(overheard) = self
            .overheard
            .as_mut()
            .filter(|heard| heard.len() < OVERHEARD_MAX)
        {
            overheard.push((to, bytes.clone()));
        }
        let Some((receiver, from, at)) = self.route(host, inside, to) else {
            return;
        };
        if self.on_island(host) != self.on_island(receiver) {
            return;
        }
        if let Some(arrival) =
            self.hosts[receiver.0]
                .back
                .send(bytes.len(), self.now, &mut self.rng)
        {
            self.push(
                arrival,
                Happening::Arrives {
                    host: receiver,
                    from,
                    at,
                    bytes,
                },
            );
        }
    }

    /// Which host a datagram reaches, where it seems to come from, and at which of the host's own addresses it arrives.
    fn route(
        &mut self,
        sender: HostId,
        inside: SocketAddr,
        to: SocketAddr,
    ) -> Option<(HostId, SocketAddr, SocketAddr)> {
        let mut from = inside;
        if let Some(nat) = self.hosts[sender.0].nat {
            if let Some(&neighbour) = self.lans.get(&(nat, to.ip())) {
                return Some((neighbour, inside, to));
            }
            from = self.nats[nat.0].outbound(inside, to, self.now, &mut self.rng);
        }
        if let Some(&nat) = self.public_nats.get(&to.ip()) {
            let at = self.nats[nat.0].inbound(to.port(), from, self.now)?;
            return Some((*self.lans.get(&(nat, at.ip()))?, from, at));
        }
        Some((*self.public_hosts.get(&to.ip())?, from, to))
    }

    fn arrives(&mut self, host: HostId, from: SocketAddr, at: SocketAddr, mut bytes: Vec<u8>) {
        let (elapsed, now) = (self.now - self.t0, self.now);
        let (length, kind) = (bytes.len(), bytes.first().copied().unwrap_or(0));
        self.trace.note(
            elapsed,
            format_args!(
                "{from} -> host {}: {length} bytes, type {kind:#04x}",
                host.0
            ),
            &bytes,
        );
        match &mut self.hosts[host.0].role {
            Role::Node(node) => {
                let socket = at.port().wrapping_sub(DATA_PORT);
                let sent = node.handle_datagram(socket, from, &mut bytes, now);
                self.send_all(host, sent);
                self.reschedule(host);
            }
            Role::Infrastructure(infrastructure) => {
                if let Some(answer) = infrastructure.handle_datagram(from, at, bytes, now) {
                    self.send_from(host, answer.from, answer.to, answer.bytes);
                }
            }
            Role::Stranger(heard) => heard.push(bytes),
            Role::Down => {}
        }
    }

    fn wake(&mut self, host: HostId) {
        let now = self.now;
        if self.wakes.get(&host) != Some(&now) {
            return; // an earlier wake was planned since, and has been
        }
        self.wakes.remove(&host);
        match &mut self.hosts[host.0].role {
            Role::Node(node) => {
                let sent = node.handle_timeout(now);
                self.send_all(host, sent);
            }
            Role::Infrastructure(infrastructure) => infrastructure.relay.handle_timeout(now),
            Role::Stranger(_) | Role::Down => {}
        }
        self.reschedule(host);
    }

    /// Sees to it that a host is woken in time; a wake that comes too early does no harm.
    fn reschedule(&mut self, host: HostId) {
        let at = match &self.hosts[host.0].role {
            Role::Node(node) => {
                if !node.events.is_empty() {
                    self.eventful.insert(host);
                }
                node.poll_timeout()
            }
            Role::Infrastructure(infrastructure) => {
                infrastructure.relay.poll_timeout().map(|(at, _)| at)
            }
            Role::Stranger(_) | Role::Down => None,
        };
        let Some(at) = at.map(|at| at.max(self.now + MOMENT)) else {
            return;
        };
        if self.wakes.get(&host).is_none_or(|&planned| at < planned) {
            self.wakes.insert(host, at);
            self.push(at, Happening::Wake(host));
        }
    }
}

/// Public addresses: hosts out of 198.18.0.0/16, NATs out of 198.19.0.0/16 (RFC 2544).
fn public_address(block: u8, index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(
        198,
        18 + block,
        (index / 250) as u8,
        (index % 250 + 1) as u8,
    ))
}
