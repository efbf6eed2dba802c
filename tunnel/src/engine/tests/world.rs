//! Whole nodes (one engine, its workers) wired back to back in memory on virtual time.

use crate::engine::{Command, Engine, EngineConfig, Event, Transmit};
use crate::{
    offload::Offload,
    session::LocalKeys,
    snapshot::Snapshot,
    stats::Counters,
    switch::testing::*,
    wire::datagram::RelayHeader,
    worker::{Hop, Output, Report, Worker},
};
use overlay_types::{
    Binding, Candidate, DataKeys, DhcpMode, Location, MacAddr, NetworkId, PathAddr, PeerId, PortId,
    PortKind,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

pub(super) const NET: NetworkId = NetworkId([9; 32]);
pub(super) const PORT: PortId = PortId(1);
pub(super) const DELAY: Duration = Duration::from_millis(10);
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// What a node's record has, about.
pub(super) const RECORD_BYTES: u64 = 2000;

pub(super) fn addr(node: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node as u8 + 1], 4000))
}

/// A relay at which every node is bound under its own number.
pub(super) fn relay() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 1], 3478))
}

pub(super) fn peer_id(node: usize) -> PeerId {
    PeerId([node as u8 + 1; 32])
}

pub(super) fn mac(node: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, 0xa0 + node as u8])
}

pub(super) fn ip(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + node as u8)
}

#[derive(Default)]
struct Outbox {
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    frames: Vec<(PortId, Vec<u8>)>,
    reports: Vec<Report>,
    handed: Vec<(u8, PathAddr, Vec<u8>)>,
    relayed: Vec<(PathAddr, Vec<u8>)>,
}

impl Output for Outbox {
    fn transmit(&mut self, hop: Hop, len: usize) -> &mut [u8] {
        self.datagrams.push((hop.to, vec![0; len]));
        &mut self.datagrams.last_mut().unwrap().1
    }
    fn deliver(&mut self, port: PortId, frame: &[u8], _offload: Offload) {
        self.frames.push((port, frame.to_vec()));
    }
    fn report(&mut self, report: Report) -> bool {
        self.reports.push(report);
        true
    }
    fn relay(&mut self, from: PathAddr, datagram: &[u8]) -> bool {
        self.relayed.push((from, datagram.to_vec()));
        true
    }
    fn hand_over(&mut self, worker: u8, from: PathAddr, datagram: &[u8]) {
        self.handed.push((worker, from, datagram.to_vec()));
    }
}

pub(super) struct Node {
    pub(super) engine: Engine,
    pub(super) workers: Vec<Worker>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) frames: Vec<(PortId, Vec<u8>)>,
    pub(super) events: Vec<Event>,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) start: Instant,
    pub(super) nodes: Vec<Node>,
    /// Datagrams under way, by arrival and a running number.
    pub(super) wire: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    pub(super) sent: u64,
    pub(super) sent_bytes: u64,
    pub(super) rng: ChaCha20Rng,
    pub(super) loss: f64,
    pub(super) mtu: usize,
    pub(super) transcript: Sha256,
    pub(super) recorded: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
    pub(super) wakeups: u64,
    pub(super) dhcp: DhcpMode,
    pub(super) eager: bool,
    /// What the second node sends seems to come from here.
    pub(super) spoofed: Option<SocketAddr>,
    /// Nodes reach only the relay, never each other.
    pub(super) relay_only: bool,
    /// These two do not reach each other.
    pub(super) apart: BTreeSet<(usize, usize)>,
}

pub(super) fn keys(node: usize) -> LocalKeys {
    LocalKeys::generate(&mut ChaCha20Rng::seed_from_u64(1000 + node as u64))
}

pub(super) fn public(node: usize) -> DataKeys {
    keys(node).public()
}

impl World {
    /// Nodes that do not know each other yet, each with one guest port.
    pub(super) fn new(nodes: usize, seed: u64) -> Self {
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
            apart: BTreeSet::new(),
            spoofed: None,
        };
        for node in 0..nodes {
            let fresh = world.fresh(node);
            world.nodes.push(fresh);
            world.set_up(node);
        }
        world
    }

    /// Nodes that know each other and have been up for three seconds.
    pub(super) fn met(nodes: usize, seed: u64) -> Self {
        let mut world = Self::new(nodes, seed);
        world.introduce_all();
        world.run(3 * SECOND);
        world
    }

    pub(super) fn fresh(&mut self, node: usize) -> Node {
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

    pub(super) fn set_up(&mut self, node: usize) {
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

    pub(super) fn introduce(&mut self, node: usize, other: usize) {
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
                paid: RECORD_BYTES,
            },
        );
    }

    pub(super) fn bind_all(&mut self, node: usize) {
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

    pub(super) fn introduce_all(&mut self) {
        for node in 0..self.nodes.len() {
            for other in (0..self.nodes.len()).filter(|&other| other != node) {
                self.introduce(node, other);
            }
            self.bind_all(node);
        }
    }

    pub(super) fn command(&mut self, node: usize, command: Command) {
        self.nodes[node].engine.handle_command(command, self.now);
        self.drain(node, Outbox::default());
    }

    /// A guest sends a frame.
    pub(super) fn guest_sends(&mut self, node: usize, frame: &[u8]) {
        let mut out = Outbox::default();
        let worker = &mut self.nodes[node].workers[0];
        worker.handle_frame(PORT, &mut frame.to_vec(), Offload::NONE, self.now, &mut out);
        self.drain(node, out);
    }

    pub(super) fn datagram(&mut self, node: usize, from: SocketAddr, mut bytes: Vec<u8>) {
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
            for (from, bytes) in std::mem::take(&mut out.relayed) {
                n.engine.handle_to_place(from, bytes, now);
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
            for Transmit { hop, bytes } in transmits {
                self.transmit(node, hop.to, bytes);
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
        let from = self.spoofed.filter(|_| node == 1).unwrap_or(addr(node));
        self.transcript
            .update(self.now.duration_since(self.start).as_nanos().to_be_bytes());
        self.transcript.update(&bytes);
        self.sent += 1;
        self.sent_bytes += bytes.len() as u64 + 28;
        if let Some(recorded) = &mut self.recorded {
            recorded.push((from, to, bytes.clone()));
        }
        let is_apart = |n: usize| addr(n) == to && self.are_apart(node, n);
        let is_blocked = (self.relay_only && to != relay()) || (0..self.nodes.len()).any(is_apart);
        let is_lost = self.rng.random_bool(self.loss) || bytes.len() > self.mtu || is_blocked;
        if !is_lost {
            self.wire
                .insert((self.now + DELAY, self.sent), (from, to, bytes));
        }
    }

    fn are_apart(&self, a: usize, b: usize) -> bool {
        self.apart.contains(&(a.min(b), a.max(b)))
    }

    /// A node reaches nobody any more.
    pub(super) fn cut_off(&mut self, node: usize) {
        let others = (0..self.nodes.len()).filter(|&other| other != node);
        self.apart
            .extend(others.map(|other| (node.min(other), node.max(other))));
    }

    fn relay(&mut self, from: SocketAddr, mut bytes: Vec<u8>) {
        let sender = (0..self.nodes.len()).find(|&n| addr(n) == from).unwrap();
        let receiver = u32::from_be_bytes(bytes[4..8].try_into().unwrap()) as usize;
        bytes[..8].copy_from_slice(RelayHeader::from(sender as u32).as_bytes());
        self.sent += 1;
        self.wire.insert(
            (self.now + DELAY, self.sent),
            (relay(), addr(receiver), bytes),
        );
    }

    pub(super) fn run(&mut self, time: Duration) {
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

    pub(super) fn timer(&self, node: usize) -> Option<Instant> {
        let node = &self.nodes[node];
        let workers = node.workers.iter().filter_map(Worker::poll_timeout);
        workers
            .chain(node.engine.poll_timeout())
            .map(|(at, _)| at)
            .min()
    }

    /// Frames that came out of a node's port since the last call.
    pub(super) fn received(&mut self, node: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.nodes[node].frames)
            .into_iter()
            .map(|(_, frame)| frame)
            .collect()
    }

    pub(super) fn counters(&mut self, node: usize) -> Counters {
        self.run(2 * SECOND); // workers tell once a second
        self.nodes[node].engine.counters().clone()
    }

    pub(super) fn restart(&mut self, node: usize) {
        self.nodes[node] = self.fresh(node);
        self.set_up(node);
    }

    pub(super) fn is_up(&self, node: usize, other: usize) -> bool {
        self.nodes[node]
            .engine
            .peer_stats(self.now)
            .iter()
            .any(|s| s.peer == peer_id(other) && s.session)
    }
}

pub(super) fn frame(from: usize, to: usize) -> Vec<u8> {
    sized_frame(mac(from), mac(to), ip(from), ip(to), 98)
}
