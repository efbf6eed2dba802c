//! Two engines with a line between them that breaks things, and a path agent whose peer says anything.

use crate::input::{AnyFrame, Edits, FAR, FAR_IP, GUEST, broken};
use crate::wire::NETWORK;
use bolero::{TypeGenerator, check};
use overlay_types::{
    Binding, Candidate, DhcpMode, Location, MacAddr, PathAddr, PeerId, PortId, PortKind,
};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tunnel::engine::{Command, Engine, EngineConfig};
use tunnel::path::{ControlMessage, PathAgent, PathWish, RelayOffer};
use tunnel::session::LocalKeys;
use tunnel::stun::{NatBehaviour, NatRule, PortAssignment, Sampled};
use tunnel::worker::Report;
use zeroize::Zeroizing;

/// Both nodes' keys, as each reads them from its file.
static KEYS: LazyLock<[Zeroizing<Vec<u8>>; 2]> = LazyLock::new(|| {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    [0, 1].map(|_| LocalKeys::generate(&mut rng).to_bytes())
});

fn keys(node: usize) -> LocalKeys {
    LocalKeys::from_bytes(&KEYS[node]).unwrap()
}

fn addr(node: usize) -> SocketAddr {
    ([192, 0, 2, node as u8], 4000).into()
}

/// More than this at one moment is a loop.
const BURST_MAX: usize = 512;

#[derive(Clone, Debug, TypeGenerator)]
enum Input {
    /// The next datagram on the line arrives, broken or not; perhaps it arrives again later.
    Arrive(Edits, bool),
    Lose,
    /// From a stranger: anything, with a first byte that means something.
    Raw(u8, Vec<u8>),
    /// A worker reports a frame.
    Frame(bool, u8, AnyFrame),
    Wait(u16),
}

struct Line {
    engines: [Engine; 2],
    datagrams: VecDeque<(usize, Vec<u8>)>,
    now: Instant,
}

impl Line {
    fn new() -> Self {
        let now = Instant::now();
        let config = |node| EngineConfig {
            workers: 1,
            seed: [node; 32],
            unix_at_start: Duration::from_secs(1_800_000_000),
        };
        let mut line = Self {
            engines: [Engine::new(config(1), now), Engine::new(config(2), now)],
            datagrams: VecDeque::new(),
            now,
        };
        for node in 0..2 {
            let other = 1 - node;
            for command in [
                Command::AddNetwork {
                    id: NETWORK,
                    me: PeerId([node as u8; 32]),
                    keys: keys(node),
                    psk: Zeroizing::new([3; 32]),
                    dhcp: DhcpMode::Overlay,
                    mtu: 1500,
                },
                Command::AddPort {
                    network: NETWORK,
                    port: PortId(1),
                    kind: PortKind::Guest,
                    macs: Vec::new(),
                },
                Command::SetBindings {
                    network: NETWORK,
                    bindings: vec![Binding {
                        ip: FAR_IP.into(),
                        mac: MacAddr(FAR),
                        location: Location::Peer(PeerId([other as u8; 32])),
                    }],
                },
                Command::UpsertPeer {
                    network: NETWORK,
                    peer: PeerId([other as u8; 32]),
                    keys: keys(other).public(),
                    candidates: vec![Candidate::Host(addr(other))],
                    eager: node == 0,
                    paid: 2000,
                },
            ] {
                line.engines[node].handle_command(command, now);
            }
        }
        line.collect();
        line
    }

    fn collect(&mut self) {
        for (node, engine) in self.engines.iter_mut().enumerate() {
            let _ = engine.take_snapshot();
            let sent = std::iter::from_fn(|| engine.poll_transmit()).take(BURST_MAX + 1);
            let sent: Vec<_> = sent.map(|t| (1 - node, t.bytes)).collect();
            assert!(sent.len() <= BURST_MAX, "an engine never sends without end");
            self.datagrams.extend(sent);
            assert!(std::iter::from_fn(|| engine.poll_frame()).count() <= BURST_MAX);
            assert!(std::iter::from_fn(|| engine.poll_event()).count() <= BURST_MAX);
        }
    }

    fn report(&mut self, node: usize, report: Report) {
        self.engines[node].handle_report(report, self.now);
        self.collect();
    }

    fn arrive(&mut self, node: usize, bytes: Vec<u8>) {
        let from = PathAddr::Direct(addr(1 - node));
        self.report(node, Report::Datagram { from, bytes });
    }

    /// Time passes, through every deadline on the way.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..BURST_MAX {
            let due = self.engines.iter().filter_map(|e| e.poll_timeout());
            let next = due.map(|(at, _)| at).min().filter(|at| *at <= until);
            self.now = next.unwrap_or(until).max(self.now);
            for engine in &mut self.engines {
                engine.handle_timeout(self.now);
            }
            self.collect();
            if next.is_none() {
                return;
            }
        }
        panic!(
            "deadlines never end: {:?}",
            self.engines.each_ref().map(|e| e.poll_timeout())
        );
    }
}

#[test]
fn engines_live_through_a_line_that_breaks_things() {
    check!().with_type().for_each(|inputs: &Vec<Input>| {
        let mut line = Line::new();
        for input in inputs.iter().take(48) {
            match input {
                Input::Arrive(edits, again) => {
                    if let Some((node, bytes)) = line.datagrams.pop_front() {
                        if *again {
                            line.datagrams.push_back((node, bytes.clone()));
                        }
                        line.arrive(node, broken(&bytes, edits));
                    }
                }
                Input::Lose => {
                    line.datagrams.pop_front();
                }
                Input::Raw(first, bytes) => {
                    let kinds = [
                        0x00, 0x80, 0x81, 0x82, 0x84, 0x85, 0x86, 0xA0, 0xA1, 0xA3, 0xA4,
                    ];
                    let first = *crate::input::one(&kinds, *first);
                    line.arrive(0, [&[first][..], bytes].concat());
                }
                Input::Frame(second, how, frame) => {
                    let (network, port, frame) = (NETWORK, PortId(1), frame.bytes());
                    let (node, mac) = (usize::from(*second), MacAddr(GUEST));
                    let report = match how % 4 {
                        0 => Report::NoSession {
                            network,
                            peer: PeerId([1 - node as u8; 32]),
                            frame,
                        },
                        1 => Report::GuestSpoke { port, mac, frame },
                        2 => Report::AddressWanted {
                            network,
                            port,
                            ip: FAR_IP.into(),
                            frame,
                        },
                        _ => Report::Punted {
                            network,
                            port,
                            frame,
                        },
                    };
                    line.report(node, report);
                }
                Input::Wait(ms) => line.wait(Duration::from_millis((*ms).into())),
            }
            line.datagrams.truncate(BURST_MAX);
        }
    });
}

#[derive(Clone, Debug, TypeGenerator)]
enum Said {
    /// A control message by its kind and numbers, broken or not, on one of a few ways.
    Message(u8, u8, u32, Vec<(bool, u8, u16)>, Edits),
    Raw(u8, Vec<u8>),
    /// What was asked last is answered.
    Pong(u8, Option<u8>),
    Traffic,
    /// Our NAT turns out to be another one.
    Nat(u8),
    Up(u8),
    Down,
    Wait(u16),
}

fn way(n: u8) -> PathAddr {
    let relay = ([198, 51, 100, 1], 3478).into();
    match n % 4 {
        0 if n < 128 => PathAddr::Relayed { relay, index: 7 },
        0 => PathAddr::Chained {
            relay,
            via: 7,
            index: 8,
        },
        n => PathAddr::Direct(addr(n.into())),
    }
}

fn message(kind: u8, id: u32, list: &[(bool, u8, u16)]) -> ControlMessage {
    let candidate = |&(reflexive, host, port): &(bool, u8, u16)| {
        let addr = ([10, 0, 0, host], port).into();
        if reflexive {
            Candidate::Reflexive(addr)
        } else {
            Candidate::Host(addr)
        }
    };
    let id = u64::from(id);
    match kind % 13 {
        10 => ControlMessage::RelayAsk,
        11 => ControlMessage::RelayPlace {
            index: id as u32,
            key: [kind; 32],
        },
        12 => ControlMessage::RelayRefused { is_full: true },
        0 => ControlMessage::Probe { id },
        1 => ControlMessage::Pong {
            id,
            observed: Some(addr(9)),
        },
        2 => ControlMessage::CandidatesSeen {
            generation: id as u32,
        },
        3 => ControlMessage::Ping { id },
        4 => ControlMessage::Bye,
        5 => ControlMessage::Foretold {
            number: id as u32,
            base: addr(9),
            step: id as i16,
        },
        6 => ControlMessage::ByChance { number: id as u32 },
        7 => ControlMessage::Credit,
        _ => ControlMessage::Candidates {
            generation: id as u32,
            punch: kind.is_multiple_of(2),
            nat: nat(id as u8),
            list: list.iter().map(candidate).collect(),
            relays: RelayOffer::None,
        },
    }
}

/// One of the NATs that call for each of the ways through.
fn nat(n: u8) -> NatBehaviour {
    let (steady, dependent) = (
        NatRule::EndpointIndependent,
        NatRule::AddressAndPortDependent,
    );
    let (mapping, ports) = match n % 4 {
        0 => (NatRule::Unknown, PortAssignment::Unknown),
        1 => (steady, PortAssignment::Preserving),
        2 => (dependent, PortAssignment::Contiguous { step: i16::from(n) }),
        _ => (dependent, PortAssignment::Random),
    };
    NatBehaviour {
        mapping,
        filtering: dependent,
        ports,
        hairpin: None,
    }
}

/// Does what the agent wants of sockets, as an engine would; gives how many it asked for.
fn serve_sockets(agent: &mut PathAgent, last: &mut u16, now: Instant) -> usize {
    let mut opened = 0;
    while let Some(wish) = agent.poll_wish() {
        match wish {
            PathWish::Open(count) => {
                opened += count;
                let sockets: Vec<u16> = (0..count).map(|n| last.wrapping_add(n as u16)).collect();
                *last = last.wrapping_add(count as u16);
                agent.handle_sockets(&sockets, now);
            }
            PathWish::Sample(socket) => {
                let last = ([203, 0, 113, 1], 40_000).into();
                let sampled = Sampled {
                    last,
                    step: Some(1),
                    are_compared: true,
                };
                agent.handle_sampled(socket, Some(sampled), now);
            }
            PathWish::Flows(count) => agent.handle_flows(count > usize::from(*last % 1024), now),
            PathWish::Close(_) | PathWish::Unmade(_) => {}
        }
    }
    opened
}

#[test]
fn a_path_agent_lives_with_a_peer_that_says_anything() {
    check!().with_type().for_each(|said: &Vec<Said>| {
        let mut now = Instant::now();
        let mut agent = PathAgent::new(1, 1600, now);
        agent.set_local_candidates(&[Candidate::Host(addr(8))], now);
        agent.set_remote_candidates(&[Candidate::Host(addr(1))], now);
        agent.handle_session_up(way(1), true, now);
        let (mut asked, mut last) = (None, 1);
        for said in said.iter().take(96) {
            match said {
                Said::Message(kind, from, id, list, edits) => {
                    let bytes = broken(&message(*kind, *id, list).encode(), edits);
                    if let Some(message) = ControlMessage::decode(&bytes) {
                        agent.handle_control(way(*from), message, now);
                    }
                }
                Said::Raw(from, bytes) => {
                    if let Some(message) = ControlMessage::decode(bytes) {
                        assert_eq!(
                            ControlMessage::decode(&message.encode()).as_ref(),
                            Some(&message)
                        );
                        agent.handle_control(way(*from), message, now);
                    }
                }
                Said::Pong(from, observed) => {
                    if let Some(id) = asked {
                        let observed = observed.map(|n| addr(n.into()));
                        agent.handle_control(
                            way(*from),
                            ControlMessage::Pong { id, observed },
                            now,
                        );
                    }
                }
                Said::Traffic => {
                    agent.count_received(100_000);
                    agent.note_traffic(now);
                }
                Said::Nat(n) => agent.set_local_nat(nat(*n), now),
                Said::Up(via) => agent.handle_session_up(way(*via), via % 2 == 0, now),
                Said::Down => agent.handle_session_down(now),
                Said::Wait(ms) => {
                    let until = now + Duration::from_millis((*ms).into());
                    let mut turns = 0;
                    while let Some((at, why)) = agent.poll_timeout().filter(|(at, _)| *at <= until)
                    {
                        now = now.max(at);
                        agent.handle_timeout(now);
                        let opened = serve_sockets(&mut agent, &mut last, now);
                        assert!(opened <= 257, "few sockets at a time");
                        turns += 1;
                        assert!(turns < 4 * BURST_MAX, "deadlines never end: {why}");
                        let sent = std::iter::from_fn(|| agent.poll_transmit()).count();
                        assert!(sent <= BURST_MAX);
                    }
                    now = until;
                }
            }
            serve_sockets(&mut agent, &mut last, now);
            let mut sent = 0;
            while let Some(transmit) = agent.poll_transmit() {
                if let ControlMessage::Probe { id } = transmit.msg {
                    asked = Some(id);
                }
                sent += 1;
                assert!(sent <= BURST_MAX, "one word does not cause a flood");
            }
            while agent.poll_event().is_some() {}
            let _ = (agent.current(), agent.handshake_targets());
        }
    });
}
