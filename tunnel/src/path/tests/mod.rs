//! Two agents in a small virtual world of NATs and relays: what they reach together.

mod amplification;
mod budget;
mod tried;

use super::selection::Tier;
use super::*;
use overlay_types::PeerId;
use std::collections::{BTreeMap, BTreeSet};

const DELAY: Duration = Duration::from_millis(20);
const RELAYS: [&str; 2] = ["198.51.100.1:7000", "198.51.100.2:7000"];
/// UDP's and IPv4's.
const HEADERS: u64 = 28;
/// What a link of 1500 bytes carries.
const LINK: u16 = 1472;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Nat {
    None,
    PortRestricted,
    /// Address and port dependent mapping and filtering.
    Symmetric,
}

/// One side: a host and the NAT before it.
struct Side {
    agent: PathAgent,
    nat: Nat,
    inside: SocketAddr,
    public: [u8; 4],
    next_port: u16,
    /// Outside port by destination (any destination counts as one unless symmetric).
    mappings: BTreeMap<Option<SocketAddr>, u16>,
    /// Which remote endpoints an outside port lets in.
    allowed: BTreeSet<(u16, SocketAddr)>,
    talks: bool,
    events: Vec<PathEvent>,
    sent: usize,
    heard_data: usize,
}

impl Side {
    fn new(n: u8, nat: Nat, now: Instant) -> Self {
        let public = [203, 0, 113, n];
        let inside = if nat == Nat::None {
            (public, 7000).into()
        } else {
            ([10, 0, n, 2], 7000).into()
        };
        let (mappings, allowed, events) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let mut agent = PathAgent::new(u64::from(n), 1600, now);
        agent.set_ends(PeerId([100 + n; 32]), PeerId([103 - n; 32]));
        Self {
            agent,
            nat,
            inside,
            public,
            next_port: 40_000,
            mappings,
            allowed,
            talks: false,
            events,
            sent: 0,
            heard_data: 0,
        }
    }

    /// What the world sees as the source of a datagram to `to`.
    fn outbound(&mut self, to: SocketAddr) -> SocketAddr {
        if self.nat == Nat::None {
            return self.inside;
        }
        let key = (self.nat == Nat::Symmetric).then_some(to);
        let next = &mut self.next_port;
        let port = *self.mappings.entry(key).or_insert_with(|| {
            *next += 7;
            *next
        });
        self.allowed.insert((port, to));
        (self.public, port).into()
    }

    fn lets_in(&self, from: SocketAddr, to: SocketAddr) -> bool {
        match self.nat {
            Nat::None => to == self.inside,
            _ => {
                to.ip() == SocketAddr::from((self.public, 0)).ip()
                    && self.allowed.contains(&(to.port(), from))
            }
        }
    }

    /// The NAT forgets everything, as after its restart: from now on other ports.
    fn rebind(&mut self) {
        self.mappings.clear();
        self.allowed.clear();
        self.next_port += 1000;
    }
}

#[derive(Clone, Debug)]
enum Payload {
    Control(ControlMessage),
    Data,
}

struct World {
    now: Instant,
    start: Instant,
    sides: [Side; 2],
    relay_up: [bool; 2],
    /// From one side to the other.
    relay_delay: Duration,
    direct_up: bool,
    /// What this side sends is lost, though it hears the other: straight for good, and at the relays until it asks them where
    /// they see it.
    mute: Option<usize>,
    same_lan: bool,
    /// The largest UDP payload that passes.
    carries: u16,
    /// By arrival: to whom, from where, what, and how many bytes.
    queue: BTreeMap<(Instant, u64), (usize, PathAddr, Payload, u16)>,
    sequence: u64,
    next_talk: Instant,
}

impl World {
    fn new(a: Nat, b: Nat) -> Self {
        let now = Instant::now();
        let sides = [Side::new(1, a, now), Side::new(2, b, now)];
        let queue = BTreeMap::new();
        let mut world = Self {
            now,
            start: now,
            sides,
            relay_up: [true; 2],
            relay_delay: DELAY * 2,
            direct_up: true,
            mute: None,
            same_lan: false,
            carries: LINK,
            queue,
            sequence: 0,
            next_talk: now,
        };
        world.publish();
        world
    }

    /// Both sides ask STUN where they are, and tell their agents.
    fn publish(&mut self) {
        let lists = [0, 1].map(|i| {
            let stun = self.sides[i].outbound("198.51.100.9:3478".parse().unwrap());
            let mut list = vec![
                Candidate::Host(self.sides[i].inside),
                Candidate::Reflexive(stun),
            ];
            list.extend((0..2).map(|r| Candidate::Relayed {
                via: PeerId([r as u8; 32]),
                relay: RELAYS[r].parse().unwrap(),
                index: 100 + i as u32,
            }));
            list
        });
        for i in 0..2 {
            self.sides[i]
                .agent
                .set_local_candidates(&lists[i], self.now);
            self.sides[i]
                .agent
                .set_remote_candidates(&lists[1 - i], self.now);
        }
        self.flush();
    }

    fn relayed(&self, relay: usize, to: usize) -> PathAddr {
        PathAddr::Relayed {
            relay: RELAYS[relay].parse().unwrap(),
            index: 100 + to as u32,
        }
    }

    /// The handshake went through the first relay.
    fn session_up(&mut self) {
        for i in 0..2 {
            let via = self.relayed(0, 1 - i);
            self.sides[i].agent.handle_session_up(via, true, self.now);
        }
        self.flush();
    }

    fn send(&mut self, from: usize, to: PathAddr, payload: Payload, size: u16) {
        self.sides[from].sent += 1;
        let other = 1 - from;
        if self.mute == Some(from) {
            let asked = self.sides[from].events.contains(&PathEvent::Distressed);
            if !asked || !matches!(to, PathAddr::Relayed { .. }) {
                return;
            }
        }
        let (seen_from, delay) = match to {
            PathAddr::Relayed { relay, index } => {
                let up = (0..2).any(|r| RELAYS[r] == relay.to_string() && self.relay_up[r]);
                if !up || index != 100 + other as u32 {
                    return;
                }
                (
                    PathAddr::Relayed {
                        relay,
                        index: 100 + from as u32,
                    },
                    self.relay_delay,
                )
            }
            PathAddr::Chained { .. } => return, // there is no second relay behind one
            PathAddr::Direct(addr) | PathAddr::Punched { addr, .. } => {
                let in_lan = self.same_lan && addr == self.sides[other].inside;
                let source = if in_lan {
                    self.sides[from].inside
                } else {
                    self.sides[from].outbound(addr)
                };
                if !self.direct_up || !(in_lan || self.sides[other].lets_in(source, addr)) {
                    return;
                }
                (
                    PathAddr::Direct(source),
                    if in_lan { DELAY / 20 } else { DELAY },
                )
            }
        };
        let wrapper = crate::wire::datagram::wrapper_bytes(to) as u16;
        if size + wrapper <= self.carries {
            self.sequence += 1;
            self.queue.insert(
                (self.now + delay, self.sequence),
                (other, seen_from, payload, size + wrapper),
            );
        }
    }

    fn flush(&mut self) {
        for i in 0..2 {
            while let Some(t) = self.sides[i].agent.poll_transmit() {
                self.send(i, t.to, Payload::Control(t.msg), t.pad_to.unwrap_or(60));
            }
            while let Some(event) = self.sides[i].agent.poll_event() {
                self.sides[i].events.push(event);
            }
        }
    }

    /// Runs until `until` holds or `span` is over; gives the time that it took.
    fn run(&mut self, span: Duration, until: impl Fn(&Self) -> bool) -> Option<Duration> {
        let (began, end) = (self.now, self.now + span);
        while !until(self) {
            let wake = [0, 1].map(|i| self.sides[i].agent.poll_timeout().map(|(at, _)| at));
            let talk = self.sides.iter().any(|s| s.talks).then_some(self.next_talk);
            let arrival = self.queue.keys().next().map(|(at, _)| *at);
            let next = wake
                .into_iter()
                .chain([talk, arrival])
                .flatten()
                .min()
                .unwrap_or(end);
            if next > end {
                self.now = end;
                return None;
            }
            self.now = self.now.max(next);
            while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= self.now) {
                let (to, from, payload, size) = entry.remove();
                self.sides[to]
                    .agent
                    .count_received(u64::from(size) + HEADERS);
                match payload {
                    Payload::Control(msg) => {
                        self.sides[to].agent.handle_control(from, msg, self.now)
                    }
                    Payload::Data => {
                        self.sides[to].heard_data += 1;
                        self.sides[to].agent.handle_received(from, self.now);
                    }
                }
                self.flush();
            }
            if talk.is_some_and(|at| at <= self.now) {
                self.next_talk = self.now + Duration::from_millis(100);
                for i in 0..2 {
                    if let Some(view) = self.sides[i]
                        .agent
                        .current()
                        .filter(|_| self.sides[i].talks)
                    {
                        self.sides[i].agent.note_traffic(self.now);
                        self.send(i, view.addr, Payload::Data, 100);
                    }
                }
            }
            for i in 0..2 {
                self.sides[i].agent.handle_timeout(self.now);
            }
            self.flush();
        }
        Some(self.now - began)
    }

    fn settle(&mut self, secs: u64) {
        self.run(Duration::from_secs(secs), |_| false);
    }

    fn talk(&mut self) {
        self.next_talk = self.now;
        self.sides.iter_mut().for_each(|s| s.talks = true);
    }

    fn kind(&self, side: usize) -> Option<Tier> {
        let agent = &self.sides[side].agent;
        agent.current.map(|addr| agent.paths[&addr].tier)
    }

    fn both(&self, tier: Tier) -> bool {
        (0..2).all(|i| self.kind(i) == Some(tier))
    }

    fn lost(&self) -> bool {
        self.sides
            .iter()
            .any(|s| s.events.contains(&PathEvent::Lost))
    }
}

#[test]
fn data_flows_over_the_relay_at_once() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    assert!(w.both(Tier::Relay));
    assert_eq!(w.now, w.start);
}

#[test]
fn two_port_restricted_nats_are_punched_within_three_seconds() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    let took = w
        .run(Duration::from_secs(3), |w| w.both(Tier::Direct))
        .expect("a direct path");
    assert!(took < Duration::from_secs(1), "{took:?}");
    w.settle(5);
    let view = w.sides[0].agent.current().unwrap();
    assert_eq!((view.rtt, view.mtu), (DELAY * 2, LINK));
}

#[test]
fn the_way_by_the_relay_is_measured_too_before_it_is_needed() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.talk();
    w.settle(10);
    assert!(w.both(Tier::Direct));
    w.direct_up = false;
    w.run(Duration::from_secs(10), |w| w.both(Tier::Relay))
        .expect("the relay again");
    let view = w.sides[0].agent.current().unwrap();
    assert_eq!(view.mtu, LINK, "full datagrams from the first one on");
}

#[test]
fn a_black_hole_is_left_within_seven_seconds_and_the_path_is_kept() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.settle(10);
    w.talk();
    w.settle(10);
    w.carries = 1400;
    let shrunk = |w: &World| {
        w.sides
            .iter()
            .all(|s| s.agent.current().unwrap().mtu <= 1400)
    };
    w.run(Duration::from_secs(7), shrunk)
        .expect("smaller datagrams");
    w.settle(10);
    for side in &w.sides {
        let view = side.agent.current().unwrap();
        assert_eq!((view.mtu, side.agent.stats().failures), (1392, 0));
    }
    w.carries = LINK;
    w.settle(620);
    assert!(
        w.sides
            .iter()
            .all(|s| s.agent.current().unwrap().mtu == LINK)
    );
}

#[test]
fn a_short_outage_does_not_shrink_the_path() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.settle(10);
    w.talk();
    for _ in 0..20 {
        w.direct_up = false;
        w.settle(2);
        w.direct_up = true;
        w.settle(7);
    }
    assert!(
        w.sides
            .iter()
            .all(|s| s.agent.current().unwrap().mtu == LINK)
    );
}

#[test]
fn one_lan_is_preferred_to_everything() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.same_lan = true;
    w.session_up();
    w.run(Duration::from_secs(3), |w| w.both(Tier::Host))
        .expect("the path inside the LAN");
}

#[test]
fn a_symmetric_nat_reaches_an_open_host_directly() {
    let mut w = World::new(Nat::Symmetric, Nat::None);
    w.session_up();
    w.run(Duration::from_secs(3), |w| {
        w.sides
            .iter()
            .all(|s| matches!(s.agent.current, Some(PathAddr::Direct(_))))
    })
    .expect("the open host sees where the other comes from");
}

#[test]
fn symmetric_to_symmetric_stays_on_the_relay_and_probes_within_a_budget() {
    let mut w = World::new(Nat::Symmetric, Nat::Symmetric);
    w.session_up();
    w.talk();
    w.settle(600);
    assert!(w.both(Tier::Relay) && !w.lost());
    for side in &w.sides {
        // 4 paths, 9 steps, about 15 rounds in ten minutes; the data itself is not counted here.
        assert!(
            side.agent.stats().probes_sent < 1000,
            "{:?}",
            side.agent.stats()
        );
    }
}

#[test]
fn a_dead_relay_is_left_for_the_other_one() {
    let mut w = World::new(Nat::Symmetric, Nat::Symmetric);
    w.session_up();
    w.talk();
    w.settle(20);
    let used = w.sides[0].agent.current.unwrap();
    let dead = (0..2).find(|r| w.relayed(*r, 1) == used).unwrap();
    w.relay_up[dead] = false;
    let took = w.run(Duration::from_secs(8), |w| {
        w.sides
            .iter()
            .all(|s| s.agent.current.unwrap().socket_addr().to_string() == RELAYS[1 - dead])
    });
    assert!(
        took.expect("the other relay") < Duration::from_secs(5),
        "{took:?}"
    );
    assert!(!w.lost());
}

#[test]
fn who_only_answers_follows_the_peer_away_from_a_way_that_is_lost() {
    for nat in [Nat::Symmetric, Nat::PortRestricted] {
        let mut w = World::new(nat, nat);
        w.session_up();
        w.settle(20);
        w.next_talk = w.now;
        w.sides[0].talks = true;
        w.settle(20);
        let used = w.sides[1].agent.current.unwrap();
        w.direct_up = false;
        for relay in 0..2 {
            w.relay_up[relay] = w.relayed(relay, 0) != used;
        }
        let took = w.run(Duration::from_secs(8), |w| {
            let current = w.sides[1].agent.current;
            (0..2).any(|relay| w.relay_up[relay] && current == Some(w.relayed(relay, 0)))
        });
        let took = took.expect("a relay that is there");
        assert!(took < Duration::from_millis(1300), "{nat:?}: {took:?}");
        assert!(!w.lost());
    }
}

#[test]
fn a_way_that_failed_before_is_tried_at_once_when_the_other_fails() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.settle(20);
    w.talk();
    w.settle(20);
    assert!(w.both(Tier::Direct));
    w.direct_up = false;
    assert!(
        w.run(Duration::from_secs(2), |w| w.both(Tier::Relay))
            .is_some()
    );
    w.settle(8);
    w.direct_up = true;
    w.relay_up = [false; 2];
    let took = w.run(Duration::from_secs(8), |w| w.both(Tier::Direct));
    let took = took.expect("the way is there again");
    assert!(took < Duration::from_millis(1300), "{took:?}");
    assert!(!w.lost());
}

/// Two whose relays are far away, and who prefer different ones.
#[test]
fn a_path_that_falls_quiet_is_asked_once() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.settle(20);
    let path = w.sides[1].agent.current.unwrap();
    let answered_at = |w: &World| w.sides[1].agent.paths[&path].answered_at;
    let before = answered_at(&w);

    w.sides[1].agent.note_data(w.now);
    w.run(Duration::from_millis(1000), |_| false);
    assert_eq!(answered_at(&w), before);

    w.run(Duration::from_secs(1), |_| false);
    let once = answered_at(&w);
    assert!(once > before);
    w.settle(10);
    assert_eq!(answered_at(&w), once);
    assert!(!w.sides[1].events.contains(&PathEvent::Distressed));
}

fn going_two_ways() -> World {
    let mut w = World::new(Nat::Symmetric, Nat::Symmetric);
    w.relay_delay = Duration::from_millis(150);
    w.session_up();
    w.settle(30);
    for i in 0..2 {
        let way = w.relayed(i, 1 - i);
        w.sides[i].agent.switch_to(way, w.now);
    }
    w
}

#[test]
fn an_idle_pair_that_goes_two_ways_does_not_keep_itself_in_doubt() {
    let mut w = going_two_ways();
    let before = w.sides[0].sent + w.sides[1].sent;
    w.settle(600);
    // Each refreshes its path every 25 s or so.
    let sent = w.sides[0].sent + w.sides[1].sent - before;
    assert!(sent < 1000, "{sent} datagrams in ten minutes");
    assert!(!w.lost());
}

#[test]
fn two_that_talk_agree_on_one_of_two_relays_that_are_as_good() {
    let mut w = going_two_ways();
    w.talk();
    let used = |w: &World| [0, 1].map(|i| w.sides[i].agent.current.unwrap().socket_addr());
    let is_agreed = |w: &World| used(w)[0] == used(w)[1];
    w.run(Duration::from_secs(5), is_agreed).expect("one relay");
    let before = [0, 1].map(|i| w.sides[i].agent.stats().changes);
    w.settle(60);
    assert_eq!(before, [0, 1].map(|i| w.sides[i].agent.stats().changes));
    assert!(is_agreed(&w) && !w.lost());
}

#[test]
fn a_relay_that_dies_under_a_direct_path_is_not_missed() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.talk();
    w.settle(10);
    w.relay_up = [false; 2];
    w.settle(120);
    assert!(w.both(Tier::Direct) && !w.lost());
}

#[test]
fn a_broken_direct_path_falls_back_to_the_relay_and_climbs_up_again() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.talk();
    w.settle(10);
    w.direct_up = false;
    let took = w
        .run(Duration::from_secs(8), |w| w.both(Tier::Relay))
        .expect("the relay");
    assert!(took < Duration::from_secs(5), "{took:?}");
    w.direct_up = true;
    w.run(Duration::from_secs(90), |w| w.both(Tier::Direct))
        .expect("the direct path again");
    assert!(!w.lost());
}

#[test]
fn a_side_whose_datagrams_are_all_lost_learns_it_from_the_other_ones_doubt() {
    for mute in [0, 1] {
        let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
        w.session_up();
        w.talk();
        w.settle(10);
        w.mute = Some(mute);
        let heard = w.sides[1 - mute].heard_data;
        let took = w
            .run(Duration::from_secs(10), |w| {
                w.sides[1 - mute].heard_data > heard + 5
            })
            .expect("data again");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(!w.lost());
    }
}

#[test]
fn a_new_nat_port_towards_an_open_host_is_followed_within_seconds() {
    let mut w = World::new(Nat::PortRestricted, Nat::None);
    w.session_up();
    w.talk();
    w.settle(10);
    w.sides[0].rebind();
    let heard = w.sides[0].heard_data;
    let took = w
        .run(Duration::from_secs(10), |w| {
            w.sides[0].heard_data > heard + 5
        })
        .expect("data reaches the new port");
    assert!(took < Duration::from_secs(4), "{took:?}");
    w.settle(5);
    assert!(
        w.sides
            .iter()
            .all(|s| matches!(s.agent.current, Some(PathAddr::Direct(_))))
            && !w.lost()
    );
}

#[test]
fn a_new_nat_port_between_two_restricted_nats_is_followed_within_seconds() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.talk();
    w.settle(10);
    w.sides[0].rebind();
    let heard = [0, 1].map(|i| w.sides[i].heard_data);
    let took = w
        .run(Duration::from_secs(10), |w| {
            (0..2).all(|i| w.sides[i].heard_data > heard[i] + 5)
        })
        .expect("data again");
    assert!(took < Duration::from_secs(6), "{took:?}");
    w.publish(); // STUN was asked again on the event
    w.run(Duration::from_secs(60), |w| w.both(Tier::Direct))
        .expect("a direct path again");
    assert!(!w.lost() && w.sides[0].events.contains(&PathEvent::Distressed));
}

#[test]
fn an_idle_pair_costs_next_to_nothing_and_keeps_its_path() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.settle(20);
    let sent: usize = w.sides.iter().map(|s| s.sent).sum();
    w.settle(600);
    let idle = w.sides.iter().map(|s| s.sent).sum::<usize>() - sent;
    assert!(w.both(Tier::Direct) && !w.lost());
    assert!(
        (40..=60).contains(&idle),
        "{idle} datagrams of both sides in ten minutes"
    );
}

#[test]
fn an_idle_path_is_used_as_often_as_the_nat_in_front_asks_for() {
    for (every, at_least) in [(10, 9), (25, 22), (108, 48)] {
        let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
        w.session_up();
        w.settle(20);
        for (side, seconds) in w.sides.iter_mut().zip([every, 108]) {
            side.agent.set_keepalive(Duration::from_secs(seconds));
        }
        w.settle(30); // what was planned before
        let (mut quiet, mut longest) = (0, 0);
        for _ in 0..1200 {
            let before = w.sides[0].sent;
            w.settle(1);
            quiet = if w.sides[0].sent == before {
                quiet + 1
            } else {
                0
            };
            longest = longest.max(quiet);
        }
        assert!(w.both(Tier::Direct) && !w.lost());
        assert!(
            (at_least - 2..=every).contains(&longest),
            "{longest} s of {every}"
        );
    }
}

#[test]
fn when_nothing_works_the_peer_is_lost_and_found_again() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.talk();
    w.settle(10);
    (w.direct_up, w.relay_up) = (false, [false; 2]);
    let took = w
        .run(Duration::from_secs(10), World::lost)
        .expect("a verdict");
    assert!(
        took > Duration::from_secs(2) && took < Duration::from_secs(4),
        "{took:?}"
    );
    assert!(w.sides[0].agent.handshake_targets().len() >= 4);
    w.settle(120);
    w.relay_up = [true; 2];
    w.run(Duration::from_secs(45), |w| {
        (0..2).all(|i| w.kind(i).is_some())
    })
    .expect("found over the relay");
}

#[test]
fn a_source_address_gets_no_data_before_it_answers_a_challenge() {
    let mut w = World::new(Nat::None, Nat::None);
    w.session_up();
    w.settle(10);
    let before = w.sides[0].agent.current();
    let stray = PathAddr::Direct("192.0.2.66:6666".parse().unwrap());
    let mut challenges = 0;
    for _ in 0..50 {
        w.now += Duration::from_millis(10);
        w.sides[0].agent.handle_received(stray, w.now);
        while let Some(t) = w.sides[0].agent.poll_transmit() {
            challenges += usize::from(t.to == stray);
        }
    }
    assert_eq!(w.sides[0].agent.current(), before);
    assert!((1..=3).contains(&challenges), "{challenges}");
}

#[test]
fn sources_without_end_are_bounded() {
    let mut w = World::new(Nat::None, Nat::None);
    w.session_up();
    w.settle(10);
    let before = w.sides[0].agent.current();
    for port in 1..5000 {
        w.sides[0]
            .agent
            .handle_received(PathAddr::Direct(([192, 0, 2, 66], port).into()), w.now);
    }
    let agent = &w.sides[0].agent;
    assert!(agent.paths.len() <= PATHS_MAX && agent.transmits.len() <= TRANSMITS_MAX);
    assert_eq!(agent.current(), before);
}

#[test]
fn a_session_that_replaces_another_keeps_the_better_path() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.talk();
    w.settle(10);
    let used = w.sides[0].agent.current.unwrap();
    w.session_up(); // rekeyed over the relay
    w.settle(5);
    assert_eq!(w.sides[0].agent.current, Some(used));
}

mod any_input {
    use super::*;
    use proptest::prelude::*;

    fn addr() -> impl Strategy<Value = PathAddr> {
        (0..4u8, 0..3u16, any::<bool>()).prop_map(|(host, port, relayed)| {
            let addr = SocketAddr::from(([192, 0, 2, host], 7000 + port));
            if relayed {
                PathAddr::Relayed {
                    relay: addr,
                    index: u32::from(port),
                }
            } else {
                PathAddr::Direct(addr)
            }
        })
    }

    proptest! {
        #[test]
        fn no_order_of_events_breaks_the_agent(steps in proptest::collection::vec((0..9u8, addr(), any::<u8>()), 1..200)) {
            let mut now = Instant::now();
            let mut agent = PathAgent::new(1, 1600, now);
            let mut asked = Vec::new();
            for (what, addr, n) in steps {
                now += Duration::from_millis(u64::from(n) * 20);
                let list: Vec<_> = (0..n).map(|p| Candidate::Host(([192, 0, 2, n], 1 + u16::from(p)).into())).collect();
                match what {
                    0 => agent.handle_session_up(addr, n % 2 == 0, now),
                    1 => agent.handle_session_down(now),
                    2 => agent.handle_received(addr, now),
                    3 => agent.set_remote_candidates(&list, now),
                    4 => agent.handle_control(addr, ControlMessage::Candidates { generation: u32::from(n), punch: true, nat: NatBehaviour::default(), list, relays: RelayOffer::None }, now),
                    5 => agent.note_traffic(now),
                    6 => if let Some(id) = asked.pop() {
                        agent.handle_control(addr, ControlMessage::Pong { id, observed: None }, now);
                    },
                    7 => agent.handle_control(addr, ControlMessage::Probe { id: u64::from(n) }, now),
                    _ => agent.set_local_candidates(&list, now),
                }
                for _ in 0..1000 {
                    let Some((at, _)) = agent.poll_timeout() else { break };
                    if at > now { break }
                    agent.handle_timeout(now);
                }
                prop_assert!(agent.poll_timeout().is_none_or(|(at, _)| at > now), "a deadline that work does not move");
                prop_assert!(agent.paths.len() <= PATHS_MAX);
                while let Some(t) = agent.poll_transmit() {
                    if let ControlMessage::Probe { id } = t.msg { asked.push(id) }
                }
                while agent.poll_event().is_some() {}
            }
        }
    }
}

/// A machine that slept, or was busy, finds all its deadlines in the past.
#[test]
fn a_deadline_that_is_met_late_is_met_once() {
    let relay = PathAddr::Relayed {
        relay: RELAYS[0].parse().unwrap(),
        index: 1,
    };
    for seed in 0..200 {
        let mut now = Instant::now();
        let mut agent = PathAgent::new(seed, 1600, now);
        agent.set_remote_candidates(&[Candidate::Host(([10, 0, 0, 1], 7000).into())], now);
        agent.handle_session_up(relay, true, now);
        agent.note_traffic(now);
        let asleep_at = now + Duration::from_secs(seed);
        while let Some((at, _)) = agent.poll_timeout().filter(|(at, _)| *at < asleep_at) {
            now = now.max(at);
            agent.handle_timeout(now);
            while let Some(transmit) = agent.poll_transmit() {
                if let (true, ControlMessage::Probe { id }) = (transmit.to == relay, transmit.msg) {
                    agent.handle_control(relay, ControlMessage::Pong { id, observed: None }, now);
                }
            }
            if seed % 3 > 0 {
                agent.note_traffic(now);
            }
        }
        now = asleep_at + Duration::from_secs(1 + 100 * (seed % 40));
        let mut turns = 0;
        while let Some((_, why)) = agent.poll_timeout().filter(|(at, _)| *at <= now) {
            agent.handle_timeout(now);
            turns += 1;
            assert!(turns < 20, "{why} is due for ever (seed {seed})");
        }
    }
}
