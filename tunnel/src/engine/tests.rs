//! Whole nodes (one engine, its workers) wired back to back in memory on virtual time.

use super::{Command, Engine, EngineConfig, Event, Transmit};
use crate::{
    offload::Offload,
    session::LocalKeys,
    snapshot::Snapshot,
    stats::{Counter, Counters},
    switch::{facts::Facts, testing::*},
    worker::{Output, Report, Worker},
};
use overlay_types::{
    Binding, Candidate, DataKeys, DhcpMode, Location, MacAddr, NetworkId, PathAddr, PeerId, PortId,
    PortKind,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

const NET: NetworkId = NetworkId([9; 32]);
const PORT: PortId = PortId(1);
const DELAY: Duration = Duration::from_millis(10);
const SECOND: Duration = Duration::from_secs(1);

fn addr(node: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node as u8 + 1], 4000))
}

/// A relay at which every node is bound under its own number.
fn relay() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1], 3478))
}

fn peer_id(node: usize) -> PeerId {
    PeerId([node as u8 + 1; 32])
}

fn mac(node: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, 0xa0 + node as u8])
}

fn ip(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + node as u8)
}

#[derive(Default)]
struct Outbox {
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    frames: Vec<(PortId, Vec<u8>)>,
    reports: Vec<Report>,
    handed: Vec<(u8, PathAddr, Vec<u8>)>,
}

impl Output for Outbox {
    fn transmit(&mut self, to: SocketAddr, len: usize) -> &mut [u8] {
        self.datagrams.push((to, vec![0; len]));
        &mut self.datagrams.last_mut().unwrap().1
    }
    fn deliver(&mut self, port: PortId, frame: &[u8], _offload: Offload) {
        self.frames.push((port, frame.to_vec()));
    }
    fn report(&mut self, report: Report) -> bool {
        self.reports.push(report);
        true
    }
    fn hand_over(&mut self, worker: u8, from: PathAddr, datagram: &[u8]) {
        self.handed.push((worker, from, datagram.to_vec()));
    }
}

struct Node {
    engine: Engine,
    workers: Vec<Worker>,
    snapshot: Arc<Snapshot>,
    frames: Vec<(PortId, Vec<u8>)>,
    events: Vec<Event>,
}

struct World {
    now: Instant,
    start: Instant,
    nodes: Vec<Node>,
    /// Datagrams under way, by arrival and a running number.
    wire: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
    sent_bytes: u64,
    rng: ChaCha20Rng,
    loss: f64,
    mtu: usize,
    transcript: Sha256,
    recorded: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
    wakeups: u64,
    dhcp: DhcpMode,
    eager: bool,
    /// Nodes reach only the relay, never each other.
    relay_only: bool,
}

fn keys(node: usize) -> LocalKeys {
    LocalKeys::generate(&mut ChaCha20Rng::seed_from_u64(1000 + node as u64))
}

fn public(node: usize) -> DataKeys {
    keys(node).public()
}

impl World {
    /// Nodes that do not know each other yet, each with one guest port.
    fn new(nodes: usize, seed: u64) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            start: now,
            nodes: Vec::new(),
            wire: BTreeMap::new(),
            sent: 0,
            sent_bytes: 0,
            rng: ChaCha20Rng::seed_from_u64(seed),
            loss: 0.0,
            mtu: 1472,
            transcript: Sha256::new(),
            recorded: None,
            wakeups: 0,
            dhcp: DhcpMode::Overlay,
            eager: true,
            relay_only: false,
        };
        for node in 0..nodes {
            let fresh = world.fresh(node);
            world.nodes.push(fresh);
            world.set_up(node);
        }
        world
    }

    /// Nodes that know each other and have been up for three seconds.
    fn met(nodes: usize, seed: u64) -> Self {
        let mut world = Self::new(nodes, seed);
        world.introduce_all();
        world.run(3 * SECOND);
        world
    }

    fn fresh(&mut self, node: usize) -> Node {
        let mut seed = [node as u8; 32];
        seed[1..9].copy_from_slice(&self.rng.random::<u64>().to_be_bytes());
        let unix_at_start = Duration::from_secs(1_700_000_000) + (self.now - self.start);
        let workers = 1 + node as u8 % 2; // the second node has two
        Node {
            engine: Engine::new(
                EngineConfig {
                    workers,
                    seed,
                    unix_at_start,
                },
                self.now,
            ),
            workers: (0..workers)
                .map(|index| Worker::new(index, workers, self.now))
                .collect(),
            snapshot: Arc::default(),
            frames: Vec::new(),
            events: Vec::new(),
        }
    }

    fn set_up(&mut self, node: usize) {
        let psk = Zeroizing::new([5; 32]);
        let (me, dhcp) = (peer_id(node), self.dhcp);
        self.command(
            node,
            Command::AddNetwork {
                id: NET,
                me,
                keys: keys(node),
                psk,
                dhcp,
                mtu: 1500,
            },
        );
        self.command(
            node,
            Command::AddPort {
                network: NET,
                port: PORT,
                kind: PortKind::Guest,
                macs: vec![mac(node)],
            },
        );
        self.command(node, Command::SetHostCandidates(vec![addr(node)]));
    }

    fn introduce(&mut self, node: usize, other: usize) {
        let (peer, keys, eager) = (peer_id(other), public(other), self.eager);
        let relayed = Candidate::Relayed {
            via: peer_id(99),
            relay: relay(),
            index: other as u32,
        };
        let candidates = match self.relay_only {
            true => vec![Candidate::Host(addr(other)), relayed],
            false => vec![Candidate::Host(addr(other))],
        };
        self.command(
            node,
            Command::UpsertPeer {
                network: NET,
                peer,
                keys,
                candidates,
                eager,
            },
        );
    }

    fn bind_all(&mut self, node: usize) {
        let bindings = (0..self.nodes.len())
            .map(|n| {
                let location = if n == node {
                    Location::Port(PORT)
                } else {
                    Location::Peer(peer_id(n))
                };
                Binding {
                    ip: ip(n).into(),
                    mac: mac(n),
                    location,
                }
            })
            .collect();
        self.command(
            node,
            Command::SetBindings {
                network: NET,
                bindings,
            },
        );
    }

    fn introduce_all(&mut self) {
        for node in 0..self.nodes.len() {
            for other in (0..self.nodes.len()).filter(|&other| other != node) {
                self.introduce(node, other);
            }
            self.bind_all(node);
        }
    }

    fn command(&mut self, node: usize, command: Command) {
        self.nodes[node].engine.handle_command(command, self.now);
        self.drain(node, Outbox::default());
    }

    /// A guest sends a frame.
    fn guest_sends(&mut self, node: usize, frame: &[u8]) {
        let mut out = Outbox::default();
        let worker = &mut self.nodes[node].workers[0];
        worker.handle_frame(PORT, &mut frame.to_vec(), Offload::NONE, self.now, &mut out);
        self.drain(node, out);
    }

    fn datagram(&mut self, node: usize, from: SocketAddr, mut bytes: Vec<u8>) {
        let mut out = Outbox::default();
        // The kernel spreads datagrams over sockets as it likes.
        let worker = self.rng.random_range(0..self.nodes[node].workers.len());
        let worker = &mut self.nodes[node].workers[worker];
        worker.handle_datagram(from, &mut bytes, self.now, &mut out);
        worker.end_turn(self.now, &mut out);
        self.drain(node, out);
    }

    /// Does what workers and engine want until both are quiet.
    fn drain(&mut self, node: usize, mut out: Outbox) {
        loop {
            let now = self.now;
            for (to, bytes) in std::mem::take(&mut out.datagrams) {
                self.transmit(node, to, bytes);
            }
            let n = &mut self.nodes[node];
            n.frames.append(&mut out.frames);
            for (worker, from, mut bytes) in std::mem::take(&mut out.handed) {
                let worker = &mut n.workers[usize::from(worker)];
                worker.handle_unwrapped(from, &mut bytes, now, &mut out);
                worker.end_turn(now, &mut out);
            }
            for report in std::mem::take(&mut out.reports) {
                n.engine.handle_report(report, now);
            }
            if let Some(snapshot) = n.engine.take_snapshot() {
                n.snapshot = Arc::clone(&snapshot);
                for worker in &mut n.workers {
                    worker.set_snapshot(Arc::clone(&snapshot));
                }
            }
            n.frames
                .extend(std::iter::from_fn(|| n.engine.poll_frame()));
            n.events
                .extend(std::iter::from_fn(|| n.engine.poll_event()));
            let transmits: Vec<Transmit> =
                std::iter::from_fn(|| n.engine.poll_transmit()).collect();
            for Transmit { to, bytes } in transmits {
                self.transmit(node, to, bytes);
            }
            if out.datagrams.is_empty()
                && out.frames.is_empty()
                && out.reports.is_empty()
                && out.handed.is_empty()
            {
                return;
            }
        }
    }

    fn transmit(&mut self, node: usize, to: SocketAddr, bytes: Vec<u8>) {
        let from = addr(node);
        self.transcript
            .update(self.now.duration_since(self.start).as_nanos().to_be_bytes());
        self.transcript.update(&bytes);
        self.sent += 1;
        self.sent_bytes += bytes.len() as u64 + 28;
        if let Some(recorded) = &mut self.recorded {
            recorded.push((from, to, bytes.clone()));
        }
        let is_blocked = self.relay_only && to != relay();
        let is_lost = self.rng.random_bool(self.loss) || bytes.len() > self.mtu || is_blocked;
        if !is_lost {
            self.wire
                .insert((self.now + DELAY, self.sent), (from, to, bytes));
        }
    }

    fn relay(&mut self, from: SocketAddr, mut bytes: Vec<u8>) {
        let sender = (0..self.nodes.len()).find(|&n| addr(n) == from).unwrap();
        let receiver = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize;
        bytes[4..8].copy_from_slice(&(sender as u32).to_be_bytes());
        self.sent += 1;
        self.wire.insert(
            (self.now + DELAY, self.sent),
            (relay(), addr(receiver), bytes),
        );
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.wire.first_key_value().map(|(&(at, _), _)| at);
            let timer = (0..self.nodes.len())
                .filter_map(|n| self.timer(n).map(|at| (at.max(self.now), n)))
                .min();
            let next = [arrival, timer.map(|(at, _)| at)]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next.filter(|&next| next <= end) else {
                break;
            };
            self.now = next;
            if arrival == Some(next) {
                let (_, (from, to, bytes)) = self.wire.pop_first().unwrap();
                if to == relay() {
                    self.relay(from, bytes);
                    continue;
                }
                if let Some(node) = (0..self.nodes.len()).find(|&n| addr(n) == to) {
                    self.datagram(node, from, bytes);
                }
            } else if let Some((_, node)) = timer {
                self.wakeups += 1;
                let mut out = Outbox::default();
                for worker in &mut self.nodes[node].workers {
                    worker.handle_timeout(self.now, &mut out);
                }
                self.nodes[node].engine.handle_timeout(self.now);
                self.drain(node, out);
            }
        }
        self.now = end;
    }

    fn timer(&self, node: usize) -> Option<Instant> {
        let node = &self.nodes[node];
        let workers = node.workers.iter().filter_map(Worker::poll_timeout);
        workers
            .chain(node.engine.poll_timeout())
            .map(|(at, _)| at)
            .min()
    }

    /// Frames that came out of a node's port since the last call.
    fn received(&mut self, node: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.nodes[node].frames)
            .into_iter()
            .map(|(_, frame)| frame)
            .collect()
    }

    fn counters(&mut self, node: usize) -> Counters {
        self.run(2 * SECOND); // workers tell once a second
        self.nodes[node].engine.counters().clone()
    }

    fn restart(&mut self, node: usize) {
        self.nodes[node] = self.fresh(node);
        self.set_up(node);
    }

    fn is_up(&self, node: usize, other: usize) -> bool {
        self.nodes[node]
            .engine
            .peer_stats(self.now)
            .iter()
            .any(|s| s.peer == peer_id(other) && s.session)
    }
}

fn frame(from: usize, to: usize) -> Vec<u8> {
    sized_frame(mac(from), mac(to), ip(from), ip(to), 98)
}

#[test]
fn two_nodes_meet_and_frames_pass_both_ways() {
    let mut world = World::met(2, 1);
    world.guest_sends(0, &frame(0, 1));
    world.guest_sends(1, &frame(1, 0));
    world.run(SECOND);
    assert_eq!(world.received(1), [frame(0, 1)]);
    assert_eq!(world.received(0), [frame(1, 0)]);
    let stats = &world.nodes[0].engine.peer_stats(world.now)[0];
    assert!(stats.session && stats.tx_bytes > 0 && stats.rx_bytes > 0 && stats.path.is_some());
}

#[test]
fn a_full_frame_crosses_a_narrow_path() {
    let mut world = World::met(2, 2);
    let large = sized_frame(mac(0), mac(1), ip(0), ip(1), 1514);
    world.guest_sends(0, &large);
    world.run(SECOND);
    assert_eq!(world.received(1), [large]);
    assert_eq!(world.counters(0).get(Counter::FramesSplit), 1);
}

#[test]
fn a_session_on_demand_is_made_by_the_first_frame_which_is_not_lost() {
    let mut world = World::new(2, 3);
    world.eager = false;
    world.introduce_all();
    world.run(5 * SECOND);
    assert!(!world.is_up(0, 1));
    world.guest_sends(0, &frame(0, 1));
    world.guest_sends(0, &frame(0, 1));
    world.run(SECOND / 10);
    assert_eq!(world.received(1).len(), 2);
    world.run(400 * SECOND);
    assert!(!world.is_up(0, 1), "nobody needs it any longer");
    assert!(!world.is_up(1, 0));
}

#[test]
fn frames_pass_all_the_time_while_sessions_are_renewed_under_loss() {
    let mut world = World::met(2, 4);
    world.loss = 0.2;
    let (mut sent, mut longest_gap, mut last) = (0, Duration::ZERO, world.now);
    while world.now - world.start < 600 * SECOND {
        world.guest_sends(0, &frame(0, 1));
        sent += 1;
        world.run(SECOND / 4);
        if !world.received(1).is_empty() {
            longest_gap = longest_gap.max(world.now - last);
            last = world.now;
        }
    }
    assert!(
        longest_gap < 3 * SECOND,
        "a gap of {longest_gap:?} in {sent} frames"
    );
    assert!(world.counters(0).get(Counter::Handshakes) >= 5);
}

#[test]
fn a_restarted_node_is_reached_again_within_seconds_by_itself() {
    let mut world = World::met(2, 5);
    world.guest_sends(0, &frame(0, 1));
    world.run(SECOND);
    world.received(1);
    world.restart(1);
    // It does not know its peers yet, then learns of them as members without being told to call them.
    world.eager = false;
    world.introduce(1, 0);
    world.bind_all(1);
    let down_at = world.now;
    while world.received(1).is_empty() {
        world.guest_sends(0, &frame(0, 1));
        world.run(SECOND / 10);
        assert!(world.now - down_at < 5 * SECOND);
    }
}

#[test]
fn a_node_whose_peer_restarted_finds_out_although_the_peer_cannot_know_its_address() {
    let mut world = World::met(2, 6);
    world.restart(1);
    // The restarted one knows the member's key, but no way to it.
    let (peer, keys) = (peer_id(0), public(0));
    world.command(
        1,
        Command::UpsertPeer {
            network: NET,
            peer,
            keys,
            candidates: Vec::new(),
            eager: false,
        },
    );
    world.bind_all(1);
    let down_at = world.now;
    while world.received(1).is_empty() {
        world.guest_sends(0, &frame(0, 1));
        world.run(SECOND / 10);
        assert!(world.now - down_at < 6 * SECOND);
    }
}

#[test]
fn one_way_traffic_keeps_its_session() {
    let mut world = World::met(2, 7);
    let before = world.counters(0).get(Counter::HandshakesSent);
    for _ in 0..100 {
        world.guest_sends(0, &frame(0, 1));
        world.run(SECOND / 2);
    }
    assert_eq!(world.received(1).len(), 100);
    assert_eq!(world.counters(0).get(Counter::HandshakesSent), before);
}

#[test]
fn replayed_datagrams_are_dropped() {
    let mut world = World::met(2, 8);
    world.recorded = Some(Vec::new());
    world.guest_sends(0, &frame(0, 1));
    world.run(SECOND);
    assert_eq!(world.received(1).len(), 1);
    let recorded = world.recorded.take().unwrap();
    for (from, _, bytes) in recorded.into_iter().filter(|(_, to, _)| *to == addr(1)) {
        world.datagram(1, from, bytes);
    }
    assert_eq!(world.received(1), Vec::<Vec<u8>>::new());
    assert!(world.counters(1).get(Counter::DropReplayed) >= 1);
}

#[test]
fn a_replayed_initiation_ends_no_session() {
    let mut world = World::new(2, 9);
    world.recorded = Some(Vec::new());
    world.introduce_all();
    world.run(3 * SECOND);
    let recorded = world.recorded.take().unwrap();
    let handshakes = world.counters(1).get(Counter::Handshakes);
    for (from, _, bytes) in recorded
        .into_iter()
        .filter(|(_, to, bytes)| *to == addr(1) && bytes[0] == 0x80)
    {
        world.datagram(1, from, bytes);
    }
    assert_eq!(world.counters(1).get(Counter::Handshakes), handshakes);
    world.guest_sends(0, &frame(0, 1));
    world.run(SECOND);
    assert_eq!(world.received(1).len(), 1);
}

#[test]
fn a_stranger_is_not_answered() {
    let mut world = World::met(3, 10);
    // The third node loses its membership, here and there, and then knocks with keys that nobody knows.
    for node in 0..2 {
        world.command(
            node,
            Command::RemovePeer {
                network: NET,
                peer: peer_id(2),
            },
        );
    }
    world.run(SECOND);
    world.recorded = Some(Vec::new());
    world.guest_sends(2, &frame(2, 0));
    world.run(10 * SECOND);
    let recorded = world.recorded.take().unwrap();
    assert!(
        recorded.iter().any(|(from, ..)| *from == addr(2)),
        "it knocks"
    );
    assert!(
        recorded.iter().all(|(_, to, _)| *to != addr(2)),
        "nobody answers"
    );
    let x25519 = public(2).x25519;
    assert!(world.nodes[0].events.contains(&Event::UnknownPeer {
        network: NET,
        x25519
    }));
    // Bytes that know nothing of the network are dropped before any public-key work.
    world.datagram(0, addr(7), vec![0x80; 1248]);
    assert!(
        world.counters(0).get(Counter::DropStranger)
            + world.counters(0).get(Counter::DropUnknownDatagram)
            >= 1
    );
}

#[test]
fn a_first_message_waits_for_its_sender_to_become_known() {
    let mut world = World::new(2, 11);
    world.introduce(1, 0); // the newcomer knows us, we do not know it
    world.bind_all(1);
    world.run(SECOND / 5);
    assert!(!world.is_up(0, 1));
    world.introduce(0, 1);
    world.run(SECOND / 10);
    assert!(world.is_up(0, 1) && world.is_up(1, 0));
}

#[test]
fn both_calling_at_once_end_with_one_session() {
    let mut world = World::new(2, 12);
    world.introduce(0, 1);
    world.introduce(1, 0);
    world.run(3 * SECOND);
    assert!(world.is_up(0, 1) && world.is_up(1, 0));
    assert_eq!(world.nodes[0].snapshot.sessions.len(), 1);
    assert_eq!(world.nodes[1].snapshot.sessions.len(), 1);
}

#[test]
fn a_spoofed_source_is_dropped_at_both_ends() {
    let mut world = World::met(3, 13);
    world.guest_sends(0, &sized_frame(mac(2), mac(1), ip(2), ip(1), 98));
    // A node that lies about its own port: its engine lets the frame out, the receiver does not let it in.
    world.command(
        0,
        Command::SetPortMacs {
            port: PORT,
            macs: vec![mac(0), mac(2)],
        },
    );
    world.command(
        0,
        Command::SetBindings {
            network: NET,
            bindings: Vec::new(),
        },
    );
    let lie = Command::SwitchFrame {
        network: NET,
        frame: sized_frame(mac(2), mac(1), ip(2), ip(1), 98),
    };
    world.command(0, lie);
    world.run(SECOND);
    assert_eq!(world.received(1), Vec::<Vec<u8>>::new());
    assert!(world.counters(0).get(Counter::DropSpoofedMac) >= 1);
    assert!(world.counters(1).get(Counter::DropSpoofedMac) >= 1);
}

#[test]
fn arp_is_answered_from_bindings_without_a_datagram() {
    let mut world = World::met(2, 14);
    let sent = world.sent;
    world.guest_sends(0, &arp_request(mac(0), ip(0), ip(1)));
    let answer = world.received(0).pop().expect("answered at once");
    assert_eq!(
        Facts::parse(&answer).unwrap().claim(),
        Some((IpAddr::from(ip(1)), mac(1)))
    );
    assert_eq!(world.sent, sent);
}

#[test]
fn an_unbound_address_is_looked_up_and_the_question_answered_late() {
    let mut world = World::met(2, 15);
    let (unknown, at) = (Ipv4Addr::new(10, 77, 0, 99), MacAddr([2, 0, 0, 0, 9, 9]));
    for _ in 0..5 {
        world.guest_sends(0, &arp_request(mac(0), ip(0), unknown));
    }
    assert!(world.received(0).is_empty());
    let wanted = Event::AddressWanted {
        network: NET,
        ip: unknown.into(),
    };
    assert_eq!(
        world.nodes[0]
            .events
            .iter()
            .filter(|&e| *e == wanted)
            .count(),
        1
    );
    let mine = Binding {
        ip: ip(0).into(),
        mac: mac(0),
        location: Location::Port(PORT),
    };
    let found = Binding {
        ip: unknown.into(),
        mac: at,
        location: Location::Peer(peer_id(1)),
    };
    world.command(
        0,
        Command::SetBindings {
            network: NET,
            bindings: vec![mine, found],
        },
    );
    let answers = world.received(0);
    assert_eq!(answers.len(), 1);
    assert_eq!(
        Facts::parse(&answers[0]).unwrap().claim(),
        Some((unknown.into(), at))
    );
}

#[test]
fn an_address_that_nobody_has_is_not_asked_for_again_at_once() {
    let mut world = World::met(2, 16);
    let unknown = Ipv4Addr::new(10, 77, 0, 99);
    world.guest_sends(0, &arp_request(mac(0), ip(0), unknown));
    world.command(
        0,
        Command::NoSuchAddress {
            network: NET,
            ip: unknown.into(),
        },
    );
    for _ in 0..3 {
        world.run(SECOND);
        world.guest_sends(0, &arp_request(mac(0), ip(0), unknown));
    }
    let asked = world.nodes[0]
        .events
        .iter()
        .filter(|e| matches!(e, Event::AddressWanted { .. }))
        .count();
    assert_eq!(asked, 1);
}

#[test]
fn broadcasts_reach_everybody_once_and_a_storm_is_cut() {
    let mut world = World::met(3, 17);
    let broadcast = sized_frame(mac(0), MacAddr::BROADCAST, ip(0), Ipv4Addr::BROADCAST, 98);
    world.guest_sends(0, &broadcast);
    world.run(SECOND);
    assert_eq!(
        (
            world.received(1).len(),
            world.received(2).len(),
            world.received(0).len()
        ),
        (1, 1, 0)
    );
    for _ in 0..5000 {
        world.guest_sends(0, &broadcast);
    }
    world.run(SECOND);
    let passed = world.received(1).len();
    assert!((500..=1100).contains(&passed), "{passed} of 5000 passed");
    assert!(world.counters(0).get(Counter::DropStorm) >= 3000);
}

#[test]
fn an_empty_guest_port_takes_the_first_station_that_asks_for_an_address() {
    let mut world = World::met(2, 18);
    world.command(
        0,
        Command::SetPortMacs {
            port: PORT,
            macs: Vec::new(),
        },
    );
    let guest = MacAddr([2, 0, 0, 0, 7, 7]);
    let discover = udp_frame(
        guest,
        MacAddr::BROADCAST,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        68,
        67,
    );
    world.guest_sends(0, &discover);
    let events = &world.nodes[0].events;
    assert!(events.contains(&Event::GuestSeen {
        network: NET,
        port: PORT,
        mac: guest
    }));
    assert!(events.contains(&Event::FramePunted {
        network: NET,
        port: PORT,
        frame: discover
    }));
}

#[test]
fn a_ping_measures_the_round_trip_and_makes_the_session_it_needs() {
    let mut world = World::new(2, 19);
    world.eager = false;
    world.introduce_all();
    world.command(
        0,
        Command::Ping {
            network: NET,
            peer: peer_id(1),
            id: 77,
        },
    );
    world.run(SECOND);
    world.command(
        0,
        Command::Ping {
            network: NET,
            peer: peer_id(1),
            id: 78,
        },
    );
    world.run(SECOND);
    let rtts: Vec<_> = world.nodes[0]
        .events
        .iter()
        .filter_map(|e| {
            if let Event::Pong { id, rtt, .. } = e {
                Some((*id, *rtt))
            } else {
                None
            }
        })
        .collect();
    assert_eq!(rtts.len(), 2);
    assert_eq!(rtts[1], (78, 2 * DELAY));
}

#[test]
fn a_removed_network_says_goodbye() {
    let mut world = World::met(2, 20);
    world.command(0, Command::RemoveNetwork(NET));
    world.run(SECOND / 10);
    assert!(!world.is_up(1, 0));
    assert!(
        world.nodes[0].snapshot.networks.is_empty() && world.nodes[0].snapshot.sessions.is_empty()
    );
}

#[test]
fn idle_peers_cost_little() {
    let mut world = World::met(2, 21);
    world.run(60 * SECOND);
    let (bytes, wakeups) = (world.sent_bytes, world.wakeups);
    world.run(600 * SECOND);
    let per_second = (world.sent_bytes - bytes) / 600;
    assert!(per_second < 500, "both together send {per_second} B/s");
    assert!(
        world.wakeups - wakeups < 1200,
        "{} wakeups in ten minutes",
        world.wakeups - wakeups
    );
    assert!(world.is_up(0, 1) && world.is_up(1, 0));
}

#[test]
fn the_same_seed_gives_the_same_datagrams_bit_for_bit() {
    let transcript = |seed| {
        let mut world = World::met(3, seed);
        world.loss = 0.1;
        for _ in 0..50 {
            world.guest_sends(0, &frame(0, 1));
            world.guest_sends(2, &sized_frame(mac(2), mac(0), ip(2), ip(0), 1514));
            world.run(SECOND * 5);
        }
        (world.sent, world.transcript.finalize())
    };
    assert_eq!(transcript(42), transcript(42));
    assert_ne!(transcript(42), transcript(43));
}

#[test]
fn nodes_that_reach_only_a_relay_talk_through_it() {
    let mut world = World::new(2, 22);
    world.relay_only = true;
    world.introduce_all();
    world.run(3 * SECOND);
    let large = sized_frame(mac(0), mac(1), ip(0), ip(1), 1514);
    world.guest_sends(0, &large);
    world.guest_sends(1, &frame(1, 0));
    world.run(SECOND);
    assert_eq!(world.received(1), [large]);
    assert_eq!(world.received(0), [frame(1, 0)]);
    let path = world.nodes[0].engine.peer_stats(world.now)[0].path.unwrap();
    assert_eq!(
        path.addr,
        PathAddr::Relayed {
            relay: relay(),
            index: 1
        }
    );
}

#[test]
fn in_lan_mode_dhcp_crosses_the_tunnel_and_both_ends_hear_of_it() {
    let mut world = World::met(2, 23);
    let lan = Command::AddPort {
        network: NET,
        port: PORT,
        kind: PortKind::Lan,
        macs: Vec::new(),
    };
    for node in 0..2 {
        let (me, psk) = (peer_id(node), Zeroizing::new([5; 32]));
        let again = Command::AddNetwork {
            id: NET,
            me,
            keys: keys(node),
            psk,
            dhcp: DhcpMode::Lan,
            mtu: 1500,
        };
        world.command(node, again);
    }
    world.command(0, lan);
    world.command(
        1,
        Command::AddPort {
            network: NET,
            port: PORT,
            kind: PortKind::Guest,
            macs: vec![mac(1)],
        },
    );
    world.introduce(0, 1);
    world.introduce(1, 0);
    world.run(5 * SECOND);
    let nobody = Ipv4Addr::UNSPECIFIED;
    let discover = udp_frame(
        mac(1),
        MacAddr::BROADCAST,
        nobody,
        Ipv4Addr::BROADCAST,
        68,
        67,
    );
    let server = MacAddr([2, 0, 0, 0, 8, 8]);
    let offer = udp_frame(server, mac(1), Ipv4Addr::new(192, 168, 1, 1), ip(1), 67, 68);
    world.guest_sends(1, &discover);
    world.run(SECOND);
    world.guest_sends(0, &offer);
    world.run(SECOND);
    assert_eq!(world.received(0), [discover]);
    assert_eq!(world.received(1), std::slice::from_ref(&offer));
    let snooped = |node: usize, from| {
        let event = Event::Snooped {
            network: NET,
            from,
            frame: offer.clone(),
        };
        world.nodes[node].events.contains(&event)
    };
    assert!(snooped(0, Location::Port(PORT)) && snooped(1, Location::Peer(peer_id(0))));
}

#[test]
fn a_station_is_learned_and_then_frames_for_it_go_to_its_node_only() {
    let mut world = World::met(3, 24);
    let lan = |port| Command::AddPort {
        network: NET,
        port,
        kind: PortKind::Lan,
        macs: Vec::new(),
    };
    for node in 0..3 {
        world.command(node, lan(PORT));
    }
    let (here, there) = (MacAddr([2, 0, 0, 0, 5, 1]), MacAddr([2, 0, 0, 0, 5, 2]));
    let (from, to) = (Ipv4Addr::new(192, 168, 1, 7), Ipv4Addr::new(192, 168, 1, 8));
    world.guest_sends(0, &udp_frame(here, there, from, to, 1, 2)); // unknown: floods
    world.run(SECOND);
    assert_eq!((world.received(1).len(), world.received(2).len()), (1, 1));
    world.guest_sends(1, &udp_frame(there, here, to, from, 2, 1)); // both are known from now on
    world.run(SECOND);
    world.guest_sends(0, &udp_frame(here, there, from, to, 1, 2));
    world.run(SECOND);
    assert_eq!(
        (
            world.received(0).len(),
            world.received(1).len(),
            world.received(2).len()
        ),
        (1, 1, 0)
    );
}
