//! Moves virtual time to the next thing that happens, lets it happen, and repeats. Everything random comes from the seed.
//!
//! The world is one internet. A host hangs on it by a link, with or without a NAT between, which may be behind a carrier's;
//! hosts behind one NAT share a LAN. Sites number their LANs alike, as real ones do. A host may have an IPv6 address as
//! well, behind a firewall, and streams to infrastructure, which pass where UDP does not. Control connections are not simulated datagram by datagram: see
//! [`crate::directory`] for what stands in for them.

use crate::{
    guest::{Guest, MARKER},
    host::{NodeHost, Sent},
    infrastructure::{Infrastructure, MAIN_PORT},
    link::{Link, LinkKind},
    nat::{Firewall, Nat, NatKind},
    trace::Trace,
};
use overlay_types::PortId;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
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

/// Where a host is, in milliseconds from the middle of the world, as packets go.
pub type Place = (i32, i32);

/// A TCP connection between a member's host and an infrastructure node; one address of either host names it there.
#[derive(Clone, Copy)]
struct Stream {
    client: HostId,
    server: HostId,
}

struct Host {
    role: Role,
    address: SocketAddr,
    address6: Option<IpAddr>,
    firewall: Firewall,
    nat: Option<NatId>,
    place: Place,
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
    /// A datagram has crossed the internet.
    Nears {
        host: HostId,
        from: SocketAddr,
        at: SocketAddr,
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
    /// NATs behind a carrier's, by the address that it gave them, and who their carrier is.
    subscribers: BTreeMap<(NatId, IpAddr), NatId>,
    carriers: BTreeMap<NatId, NatId>,
    hosts6: BTreeMap<IpAddr, HostId>,
    streams: BTreeMap<SocketAddr, Stream>,
    streams_opened: u32,
    /// These two have no way to each other, whatever their NATs do.
    apart: BTreeSet<(HostId, HostId)>,
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
            subscribers: BTreeMap::new(),
            carriers: BTreeMap::new(),
            hosts6: BTreeMap::new(),
            streams: BTreeMap::new(),
            streams_opened: 0,
            apart: BTreeSet::new(),
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

    /// A NAT behind a carrier's.
    pub fn add_nat_behind(&mut self, carrier: NatId, kind: NatKind) -> NatId {
        let id = NatId(self.nats.len());
        // RFC 6598
        let inside = IpAddr::V4(Ipv4Addr::from(0x6440_0000 + id.0 as u32));
        self.nats.push(Nat::new(kind, inside));
        self.subscribers.insert((carrier, inside), id);
        self.carriers.insert(id, carrier);
        id
    }

    /// Gives a host an IPv6 address behind a firewall: what it is.
    pub fn add_address6(&mut self, host: HostId) -> SocketAddr {
        let ip = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, host.0 as u16, 0, 0, 0, 1));
        self.hosts6.insert(ip, host);
        self.hosts[host.0].address6 = Some(ip);
        SocketAddr::new(ip, DATA_PORT)
    }

    /// Puts a host somewhere else than in the middle of the world.
    pub fn set_place(&mut self, host: HostId, place: Place) {
        self.hosts[host.0].place = place;
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
            address6: None,
            firewall: Firewall::default(),
            nat,
            place: Place::default(),
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

    /// Every address of the host with its data port.
    pub fn addresses(&self, host: HostId) -> Vec<SocketAddr> {
        let at = &self.hosts[host.0];
        let six = at.address6.map(|ip| SocketAddr::new(ip, DATA_PORT));
        std::iter::once(at.address).chain(six).collect()
    }

    /// How long a small packet takes from host to host when nothing is in its way.
    pub fn distance(&self, a: HostId, b: HostId) -> Duration {
        let links = self.hosts[a.0].out.kind().delay + self.hosts[b.0].back.kind().delay;
        links + self.across(a, b)
    }

    /// The part of it between the two links.
    pub fn across(&self, a: HostId, b: HostId) -> Duration {
        let (a, b) = (self.hosts[a.0].place, self.hosts[b.0].place);
        let (x, y) = (f64::from(a.0 - b.0), f64::from(a.1 - b.1));
        Duration::from_micros((x.hypot(y) * 1000.0) as u64)
    }

    /// Where the host offers relay and STUN, if it does.
    pub fn service_address(&self, host: HostId) -> SocketAddr {
        SocketAddr::new(self.hosts[host.0].address.ip(), MAIN_PORT)
    }

    /// The NAT in front of a host.
    pub fn nat_of(&self, host: HostId) -> Option<NatId> {
        self.hosts[host.0].nat
    }

    /// Flows that a NAT was ever asked for from inside.
    pub fn flows(&self, nat: NatId) -> u64 {
        self.nats[nat.0].flows
    }

    /// Opens a stream from a member's host to an infrastructure node that runs: which address stands for it on either host.
    pub fn open_stream(&mut self, client: HostId, server: HostId) -> Option<SocketAddr> {
        if !self.is_connected(client, server) {
            return None;
        }
        self.streams_opened += 1;
        let near = IpAddr::V4(Ipv4Addr::from(0x7f00_0000 + self.streams_opened));
        let near = SocketAddr::new(near, 1);
        let seen_as = match self.hosts[client.0].nat {
            Some(nat) => self.nats[self.carriers.get(&nat).unwrap_or(&nat).0].public(),
            None => self.hosts[client.0].address.ip(),
        };
        let infrastructure = self.infrastructure(server)?;
        infrastructure.relay.open_stream(near, seen_as);
        self.streams.insert(near, Stream { client, server });
        Some(near)
    }

    /// Closes a stream.
    pub fn close_stream(&mut self, stream: SocketAddr) {
        let now = self.now;
        let server = self.streams.remove(&stream).map(|stream| stream.server);
        if let Some(infrastructure) = server.and_then(|host| self.infrastructure(host)) {
            infrastructure.relay.close_stream(stream, now);
        }
    }

    // ---- what can befall it ----

    /// Switches a host on as this, or off.
    pub fn set_role(&mut self, host: HostId, role: Role) {
        self.note(format_args!("host {} changes", host.0));
        self.hosts[host.0].role = role;
        let of_it = |stream: &Stream| stream.client == host || stream.server == host;
        self.streams.retain(|_, stream| !of_it(stream)); // the other end is not told
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

    /// Two hosts have no way to each other, as if each had another IP version.
    pub fn set_apart(&mut self, a: HostId, b: HostId) {
        self.note(format_args!("hosts {} and {} are apart", a.0, b.0));
        self.apart.insert((a.min(b), a.max(b)));
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

    /// The guest behind a port of the node on a host.
    pub fn guest_mut(&mut self, host: HostId, port: PortId) -> Option<&mut Guest> {
        match &mut self.hosts[host.0].role {
            Role::Node(node) => node.guests.get_mut(&port),
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
            Happening::Nears {
                host,
                from,
                at,
                bytes,
            } => self.nears(host, from, at, bytes),
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
        let (four, six) = (self.hosts[host.0].address.ip(), self.hosts[host.0].address6);
        for (Hop { socket, to }, bytes) in sent {
            let own = if to.is_ipv6() { six } else { Some(four) };
            let Some(own) = own else { continue };
            let from = SocketAddr::new(own, DATA_PORT.wrapping_add(socket));
            self.send_from(host, from, to, bytes);
        }
    }

    fn send_from(&mut self, host: HostId, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let link = &mut self.hosts[host.0].out;
        let arrival = if is_stream(to) {
            link.send_reliably(bytes.len(), self.now, &mut self.rng)
        } else {
            link.send(bytes.len(), self.now, &mut self.rng)
        };
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
        let pair = (host.min(receiver), host.max(receiver));
        if self.on_island(host) != self.on_island(receiver) || self.apart.contains(&pair) {
            return;
        }
        let across = self.across(host, receiver);
        if across.is_zero() {
            return self.nears(receiver, from, at, bytes);
        }
        self.push(
            self.now + across,
            Happening::Nears {
                host: receiver,
                from,
                at,
                bytes,
            },
        );
    }

    fn nears(&mut self, host: HostId, from: SocketAddr, at: SocketAddr, bytes: Vec<u8>) {
        let link = &mut self.hosts[host.0].back;
        let arrival = if is_stream(from) {
            link.send_reliably(bytes.len(), self.now, &mut self.rng)
        } else {
            link.send(bytes.len(), self.now, &mut self.rng)
        };
        if let Some(arrival) = arrival {
            self.push(
                arrival,
                Happening::Arrives {
                    host,
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
        if is_stream(to) {
            let stream = self.streams.get(&to)?;
            return if stream.client == sender {
                Some((stream.server, to, self.service_address(stream.server)))
            } else {
                Some((stream.client, to, self.address(stream.client)))
            };
        }
        if to.is_ipv6() {
            let (now, receiver) = (self.now, *self.hosts6.get(&to.ip())?);
            let out = &mut self.hosts[sender.0].firewall;
            out.outbound(inside.port(), to, now);
            let back = &mut self.hosts[receiver.0].firewall;
            let is_let_in = back.lets_in(to.port(), inside, now);
            return is_let_in.then_some((receiver, inside, to));
        }
        let (mut from, mut next) = (inside, self.hosts[sender.0].nat);
        while let Some(nat) = next {
            if let Some(&neighbour) = self.lans.get(&(nat, to.ip())) {
                return Some((neighbour, from, to));
            }
            if let Some(&subscriber) = self.subscribers.get(&(nat, to.ip())) {
                return self.inward(subscriber, from, to.port());
            }
            if !self.nats[nat.0].kind().passes_udp {
                return None;
            }
            from = self.nats[nat.0].outbound(from, to, self.now, &mut self.rng);
            next = self.carriers.get(&nat).copied();
        }
        match self.public_nats.get(&to.ip()) {
            Some(&nat) => self.inward(nat, from, to.port()),
            None => Some((*self.public_hosts.get(&to.ip())?, from, to)),
        }
    }

    /// Through a NAT from outside, and through the one behind it, if there is one.
    fn inward(
        &mut self,
        nat: NatId,
        from: SocketAddr,
        port: u16,
    ) -> Option<(HostId, SocketAddr, SocketAddr)> {
        let at = self.nats[nat.0].inbound(port, from, self.now)?;
        match self.subscribers.get(&(nat, at.ip())) {
            Some(&subscriber) => self.inward(subscriber, from, at.port()),
            None => Some((*self.lans.get(&(nat, at.ip()))?, from, at)),
        }
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

/// Whether a loopback address stands for a stream.
const fn is_stream(addr: SocketAddr) -> bool {
    addr.ip().is_loopback()
}

/// Public addresses: hosts out of 198.18.0.0/16, NATs out of 198.19.0.0/16 (RFC 2544), neighbours in different /24s, as sites are.
fn public_address(block: u8, index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(
        198,
        18 + block,
        (index % 250) as u8,
        (index / 250 + 1) as u8,
    ))
}
