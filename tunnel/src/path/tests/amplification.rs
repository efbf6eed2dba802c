//! What addresses that are not the peer's get, whatever the peer says.

use super::*;
use crate::stun::{NatRule, PortAssignment, Sampled};
use proptest::prelude::*;

/// The peer's own hosts are the first two; all others are somebody else's.
const OWN: u8 = 2;

#[derive(Clone, Debug)]
enum Step {
    /// A message of the peer, seemingly from there, padded to so much.
    Said(PathAddr, ControlMessage, u16),
    /// The peer answers a probe that reached one of its own hosts, seemingly from there.
    Answered(PathAddr),
    Record(Vec<Candidate>),
    Ours(NatBehaviour),
    Traffic,
    /// A session, and whether the peer was seen to receive there.
    Up(PathAddr, bool),
    Down,
    Wait(u16),
}

fn socket_addr() -> impl Strategy<Value = SocketAddr> {
    (0..8u8, 1024..1030u16).prop_map(|(host, port)| ([192, 0, 2, host], port).into())
}

fn path() -> impl Strategy<Value = PathAddr> {
    (socket_addr(), 0..3u16).prop_map(|(addr, kind)| match kind {
        0 => PathAddr::Direct(addr),
        1 => PathAddr::Relayed {
            relay: addr,
            index: 1,
        },
        _ => PathAddr::Punched { socket: 1, addr },
    })
}

fn nat() -> impl Strategy<Value = NatBehaviour> {
    (0..5u8, any::<bool>()).prop_map(|(kind, strict)| NatBehaviour {
        mapping: match kind {
            0 => NatRule::Unknown,
            1 => NatRule::EndpointIndependent,
            _ => NatRule::AddressAndPortDependent,
        },
        filtering: if strict {
            NatRule::AddressAndPortDependent
        } else {
            NatRule::AddressDependent
        },
        ports: match kind {
            2 | 3 => PortAssignment::Contiguous { step: 1 },
            _ => PortAssignment::Random,
        },
        hairpin: None,
    })
}

fn list() -> impl Strategy<Value = Vec<Candidate>> {
    let candidate = (socket_addr(), 0..3u8).prop_map(|(addr, kind)| match kind {
        0 => Candidate::Host(addr),
        1 => Candidate::Reflexive(addr),
        _ => Candidate::Relayed {
            via: PeerId([1; 32]),
            relay: addr,
            index: 1,
        },
    });
    proptest::collection::vec(candidate, 0..CANDIDATES_MAX)
}

fn message() -> impl Strategy<Value = ControlMessage> {
    prop_oneof![
        any::<u64>().prop_map(|id| ControlMessage::Probe { id }),
        any::<u64>().prop_map(|id| ControlMessage::Pong { id, observed: None }),
        (any::<u32>(), nat(), list()).prop_map(|(generation, nat, list)| {
            ControlMessage::Candidates {
                generation,
                punch: true,
                nat,
                list,
                relays: RelayOffer::Open,
            }
        }),
        (any::<u32>(), socket_addr()).prop_map(|(number, base)| ControlMessage::Foretold {
            number,
            base,
            step: 1
        }),
        any::<u32>().prop_map(|number| ControlMessage::ByChance { number }),
        Just(ControlMessage::Credit),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (path(), message(), 0..1400u16).prop_map(|(from, msg, size)| Step::Said(from, msg, size)),
        3 => path().prop_map(Step::Answered),
        1 => list().prop_map(Step::Record),
        1 => nat().prop_map(Step::Ours),
        1 => Just(Step::Traffic),
        1 => (path(), any::<bool>()).prop_map(|(via, is_proven)| Step::Up(via, is_proven)),
        1 => Just(Step::Down),
        4 => (0..3000u16).prop_map(Step::Wait),
    ]
}

fn is_own(to: PathAddr) -> bool {
    matches!(to.socket_addr().ip(), std::net::IpAddr::V4(ip) if ip.octets()[3] < OWN)
}

/// Everything that an agent does, seen from outside.
struct Account {
    agent: PathAgent,
    now: Instant,
    received: u64,
    /// What went to addresses of which the peer proved nothing.
    spent: u64,
    validated: BTreeSet<PathAddr>,
    /// Probes that reached the peer.
    reached: Vec<(PathAddr, u64)>,
    next_socket: u16,
}

impl Account {
    fn do_step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Said(from, msg, size) => self.receive(from, msg, Some(size)),
            Step::Answered(from) => {
                if let Some((to, id)) = self.reached.pop() {
                    self.validated.insert(to);
                    self.receive(from, ControlMessage::Pong { id, observed: None }, None);
                }
            }
            Step::Record(list) => self.agent.set_remote_candidates(&list, now),
            Step::Ours(nat) => self.agent.set_local_nat(nat, now),
            Step::Traffic => self.agent.note_traffic(now),
            Step::Up(via, is_proven) => {
                if is_proven {
                    self.validated.insert(via);
                }
                self.agent.handle_session_up(via, is_proven, now);
            }
            Step::Down => {
                self.agent.handle_session_down(now);
                (self.received, self.spent) = (0, 0);
                self.validated.clear();
                self.reached.clear();
            }
            Step::Wait(ms) => {
                let until = now + Duration::from_millis(ms.into());
                while let Some((at, _)) = self.agent.poll_timeout().filter(|(at, _)| *at <= until) {
                    self.now = self.now.max(at);
                    self.agent.handle_timeout(self.now);
                    self.drain();
                }
                self.now = until;
            }
        }
        self.drain();
    }

    fn receive(&mut self, from: PathAddr, msg: ControlMessage, pad_to: Option<u16>) {
        let bytes = credit::message_bytes(from, &msg, pad_to);
        self.received += bytes;
        self.agent.count_received(bytes);
        self.agent.handle_control(from, msg, self.now);
    }

    fn drain(&mut self) {
        while let Some(wish) = self.agent.poll_wish() {
            match wish {
                PathWish::Open(count) => {
                    let count = count as u16;
                    let sockets: Vec<u16> = (0..count).map(|n| self.next_socket + n).collect();
                    self.next_socket = (self.next_socket + count) % 50_000;
                    self.agent.handle_sockets(&sockets, self.now);
                }
                PathWish::Sample(socket) => {
                    let last = ([203, 0, 113, 1], 40_000).into();
                    let sampled = Sampled {
                        last,
                        step: Some(1),
                        are_compared: true,
                    };
                    self.agent.handle_sampled(socket, Some(sampled), self.now);
                }
                PathWish::Flows(_) => self.agent.handle_flows(true, self.now),
                PathWish::Close(_) | PathWish::Unmade(_) => {}
            }
        }
        while let Some(PathTransmit { to, msg, pad_to }) = self.agent.poll_transmit() {
            if !self.validated.contains(&to) {
                self.spent += credit::message_bytes(to, &msg, pad_to);
            }
            if let (true, ControlMessage::Probe { id }) = (is_own(to), msg) {
                self.reached.push((to, id));
            }
        }
        while self.agent.poll_event().is_some() {}
    }
}

proptest! {
    /// Whatever a member says, and from wherever it seems to come.
    #[test]
    fn nobody_who_proved_nothing_is_sent_more_than_the_peer_sent_us(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let now = Instant::now();
        let mut account = Account {
            agent: PathAgent::new(1, 1600, now),
            now,
            received: 0,
            spent: 0,
            validated: BTreeSet::new(),
            reached: Vec::new(),
            next_socket: 1,
        };
        for step in steps {
            account.do_step(step);
            prop_assert!(account.spent <= account.received, "{} for {}", account.spent, account.received);
            let told = account.agent.tell_way(account.now).tried;
            prop_assert!(told.len() <= overlay_types::why::TRIED_MAX);
            prop_assert!(account.agent.tries.len() <= super::super::tried::REMEMBERED_MAX);
        }
    }
}
