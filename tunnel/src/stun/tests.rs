//! A client before every kind of NAT, and servers that behave, are silent, or lie.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

const INSIDE: &str = "10.0.0.2:7000";
const A: &str = "198.51.100.1:3478";
const A_OTHER: &str = "198.51.100.1:3479";
const B: &str = "198.51.100.2:3478";
const B_OTHER: &str = "198.51.100.2:3479";
const A_OTHER_IP: &str = "198.51.100.7:3479";

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A NAT of the given rules, with the servers behind it in the world.
struct World {
    client: StunClient,
    now: Instant,
    mapping: NatRule,
    filtering: NatRule,
    ports: BTreeMap<String, u16>,
    sent_to: Vec<SocketAddr>,
    silent: Vec<SocketAddr>,
    sent: usize,
    first_port: u16,
    step: u16,
    /// Ports that others took between the mappings of each sample; no more samples are answered.
    others: VecDeque<u16>,
    samples: usize,
    answers_samples: bool,
    hairpins: bool,
    /// Whether servers have both ports at both addresses, as RFC 5780 wants it.
    has_four_sockets: bool,
    other_of_a: &'static str,
}

impl World {
    fn new(mapping: NatRule, filtering: NatRule) -> Self {
        let now = Instant::now();
        let mut client = StunClient::new(1, now);
        client.set_host_candidates(&[addr(INSIDE)], now);
        let (ports, sent_to, silent) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self {
            client,
            now,
            mapping,
            filtering,
            ports,
            sent_to,
            silent,
            sent: 0,
            first_port: 40_000,
            step: 1,
            others: [0; 9].into(),
            samples: 0,
            answers_samples: true,
            hairpins: false,
            has_four_sockets: false,
            other_of_a: A_OTHER,
        }
    }

    fn mapped(&mut self, to: SocketAddr) -> SocketAddr {
        let key = match self.mapping {
            NatRule::None => return addr(INSIDE),
            NatRule::AddressDependent => to.ip().to_string(),
            NatRule::AddressAndPortDependent => to.to_string(),
            _ => String::new(),
        };
        let next = self.first_port + self.step * self.ports.len() as u16;
        ([203, 0, 113, 1], *self.ports.entry(key).or_insert(next)).into()
    }

    fn lets_in(&self, from: SocketAddr) -> bool {
        match self.filtering {
            NatRule::AddressDependent => self.sent_to.iter().any(|to| to.ip() == from.ip()),
            NatRule::AddressAndPortDependent => self.sent_to.contains(&from),
            _ => true,
        }
    }

    /// What servers see of a fresh socket: two more mappings of this NAT, of which others may have had some between.
    fn sample(&mut self) -> Option<Sampled> {
        let others = self.others.pop_front()?;
        let before = self.first_port + self.step * self.ports.len() as u16;
        let port = before + self.step * (1 + others);
        let step = i16::try_from(port - before).ok();
        Some(Sampled {
            last: ([203, 0, 113, 1], port).into(),
            step: step.filter(|step| u32::from(step.unsigned_abs()) <= STEP_MAX),
            are_compared: true,
        })
    }

    fn flush(&mut self) {
        loop {
            if self.client.poll_sample() {
                self.samples += 1;
                if self.answers_samples {
                    let sampled = self.sample();
                    self.client.handle_sampled(sampled, self.now);
                }
                continue;
            }
            let Some((to, bytes)) = self.client.poll_transmit() else {
                return;
            };
            self.sent += 1;
            self.sent_to.push(to);
            if to.ip() == addr("203.0.113.1:1").ip() {
                if self.hairpins {
                    self.client.handle_datagram(to, &bytes, self.now);
                }
                continue;
            }
            let source = self.mapped(to);
            let other = [
                (A, self.other_of_a),
                (self.other_of_a, A),
                (B, B_OTHER),
                (B_OTHER, B),
            ]
            .into_iter()
            .find(|(at, _)| addr(at) == to);
            let Some((_, other)) = other.filter(|_| !self.silent.contains(&to)) else {
                continue;
            };
            let mut other = addr(other);
            let mut answer = server_answer(&bytes, source, to, other).unwrap();
            if self.has_four_sockets && codec::decode_reply(&answer.bytes).unwrap().mapped.is_none()
            {
                other.set_ip(to.ip());
                answer = server_answer(&bytes, source, to, other).unwrap();
            }
            let from = if answer.from_other { other } else { to };
            if self.lets_in(from) {
                self.client.handle_datagram(from, &answer.bytes, self.now);
            }
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        self.flush();
        while let Some((at, _)) = self.client.poll_timeout().filter(|(at, _)| *at <= end) {
            self.now = self.now.max(at);
            self.client.handle_timeout(self.now);
            self.flush();
        }
        self.now = end;
    }

    fn learn(mut self, servers: &[&str]) -> Self {
        self.client.set_servers(
            &servers.iter().map(|s| addr(s)).collect::<Vec<_>>(),
            self.now,
        );
        self.run(Duration::from_secs(30));
        self
    }

    fn behaviour(&self) -> (NatRule, NatRule) {
        (
            self.client.behaviour().mapping,
            self.client.behaviour().filtering,
        )
    }
}

#[test]
fn every_nat_of_rfc_4787_is_told_by_two_servers() {
    use NatRule::{
        AddressAndPortDependent as Apd, AddressDependent as Ad, EndpointIndependent as Ei,
        None as No,
    };
    // The servers' other sockets differ in the port alone, so filtering that is laxer than by address cannot be seen.
    for (mapping, filtering, told) in [
        (Ei, Apd, (Ei, Apd)),
        (Ei, Ad, (Ei, Ad)),
        (Ei, Ei, (Ei, Ad)),
        (Ad, Apd, (Ad, Apd)),
        (Apd, Apd, (Apd, Apd)),
        (No, No, (No, No)),
        (No, Apd, (No, Apd)),
    ] {
        let world = World::new(mapping, filtering).learn(&[A, B]);
        assert_eq!(world.behaviour(), told, "{mapping:?} {filtering:?}");
    }
}

#[test]
fn a_server_with_two_addresses_tells_open_filtering_apart_and_one_with_four_sockets_all() {
    use NatRule::{
        AddressAndPortDependent as Apd, AddressDependent as Ad, EndpointIndependent as Ei,
    };
    for (has_four_sockets, filtering, told) in [
        (false, Ei, Ei),
        (false, Ad, Apd),
        (false, Apd, Apd),
        (true, Ei, Ei),
        (true, Ad, Ad),
        (true, Apd, Apd),
    ] {
        let mut world = World::new(Ei, filtering);
        (world.other_of_a, world.has_four_sockets) = (A_OTHER_IP, has_four_sockets);
        assert_eq!(world.learn(&[A]).behaviour(), (Ei, told), "{filtering:?}");
    }
}

#[test]
fn a_symmetric_nat_is_told_by_one_server() {
    let world = World::new(
        NatRule::AddressAndPortDependent,
        NatRule::AddressAndPortDependent,
    )
    .learn(&[A]);
    assert_eq!(world.behaviour().0, NatRule::AddressAndPortDependent);
}

#[test]
fn it_is_told_how_ports_are_chosen() {
    use NatRule::{AddressAndPortDependent as Apd, EndpointIndependent as Ei, None as No};
    use PortAssignment::{Contiguous, Preserving, Random, Unknown};
    for (mapping, first_port, step, told) in [
        (Ei, 7_000, 1, Preserving),
        (Ei, 40_000, 1, Random),
        (Apd, 40_000, 1, Contiguous { step: 1 }),
        (Apd, 40_000, 2, Contiguous { step: 2 }),
        (Apd, 40_000, 4_001, Random),
        (No, 40_000, 1, Unknown),
    ] {
        let mut world = World::new(mapping, Apd);
        (world.first_port, world.step) = (first_port, step);
        let world = world.learn(&[A, B]);
        assert_eq!(
            world.client.behaviour().ports,
            told,
            "{mapping:?} {first_port} {step}"
        );
    }
}

#[test]
fn samples_are_taken_until_one_shows_how_ports_follow_or_three_did_not() {
    use NatRule::AddressAndPortDependent as Apd;
    use PortAssignment::{Contiguous, Random, Unknown};
    let step = Contiguous { step: 1 };
    for (others, samples, told) in [
        (&[0][..], 1, step),
        (&[500, 0], 2, step),
        (&[500, 500, 500, 0], 3, Random),
        (&[], 1, Unknown), // nothing was asked
        (&[500], 2, Unknown),
    ] {
        let mut world = World::new(Apd, Apd);
        world.others = others.iter().copied().collect();
        let world = world.learn(&[A]);
        let seen = (world.samples, world.client.behaviour().ports);
        assert_eq!(seen, (samples, told), "{others:?}");
    }
    assert_eq!(
        World::new(NatRule::EndpointIndependent, Apd)
            .learn(&[A])
            .samples,
        0
    );
}

#[test]
fn what_the_nat_does_is_told_once_and_soon_after_the_first_answer() {
    use NatRule::AddressAndPortDependent as Apd;
    for mapping in [NatRule::EndpointIndependent, Apd] {
        let mut world = World::new(mapping, Apd);
        world.client.set_servers(&[addr(A), addr(B)], world.now);
        let mut told = Vec::new();
        for _ in 0..8 {
            world.run(Duration::from_millis(100));
            while let Some(event) = world.client.poll_event() {
                told.extend(matches!(event, StunEvent::Behaviour(_)).then_some(world.now));
            }
        }
        assert_eq!(told.len(), 1, "{mapping:?}");
    }
}

#[test]
fn what_was_under_way_in_another_network_is_not_believed() {
    use NatRule::AddressAndPortDependent as Apd;
    let mut world = World::new(Apd, Apd);
    world.answers_samples = false;
    let mut world = world.learn(&[A]);
    assert_eq!(
        (world.samples, world.behaviour()),
        (1, (NatRule::Unknown, NatRule::Unknown))
    );
    world.client.start_over(world.now);
    world.run(Duration::from_secs(1));
    let old = world.sample();
    world.client.handle_sampled(old, world.now);
    world.answers_samples = true;
    (world.step, world.others) = (4_001, [0; 9].into());
    world.run(Duration::from_secs(30));
    assert_eq!(world.client.behaviour().ports, PortAssignment::Random);
}

#[test]
fn a_link_that_was_away_for_a_while_takes_nothing_from_what_is_known_after() {
    use NatRule::AddressAndPortDependent as Apd;
    let mut world = World::new(Apd, Apd).learn(&[A, B]);
    let before = world.client.behaviour();
    world.silent = vec![addr(A), addr(B), addr(A_OTHER), addr(B_OTHER)];
    world.others.clear();
    world.client.start_over(world.now);
    world.run(Duration::from_secs(60));
    world.silent.clear();
    world.sent_to.clear(); // the NAT has forgotten by now whom it lets in
    world.others = [0; 9].into();
    world.run(Duration::from_secs(60));
    assert_eq!(world.client.behaviour(), before);
}

#[test]
fn a_sample_without_anything_to_compare_is_taken_again_but_not_often() {
    use NatRule::AddressAndPortDependent as Apd;
    let mut world = World::new(Apd, Apd);
    world.others.clear();
    let mut world = world.learn(&[A]);
    for (samples, told) in [
        (2, PortAssignment::Unknown),
        (3, PortAssignment::Contiguous { step: 1 }),
    ] {
        world.run(ASKED_AGAIN_AFTER);
        assert_eq!(
            (world.samples, world.client.behaviour().ports),
            (samples, told)
        );
        world.others = [0; 9].into();
    }
}

/// Five minutes and the next answer.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(330);

#[test]
fn a_nat_that_gives_out_another_port_is_no_symmetric_one() {
    use NatRule::{AddressAndPortDependent as Apd, EndpointIndependent as Ei};
    let mut world = World::new(Ei, Apd).learn(&[A, B]);
    let before = world.client.behaviour();
    (world.ports, world.first_port) = (BTreeMap::new(), 50_000);
    world.sent_to.clear();
    for _ in 0..60 {
        world.run(Duration::from_secs(1));
        assert_eq!(world.client.behaviour().mapping, Ei);
    }
    assert_eq!(world.client.behaviour(), before);
}

#[test]
fn a_test_that_is_repeated_through_the_same_mapping_is_not_fooled_by_the_one_before() {
    use NatRule::{AddressAndPortDependent as Apd, EndpointIndependent as Ei};
    for filtering in [Apd, NatRule::AddressDependent] {
        let mut world = World::new(Ei, filtering).learn(&[A, B]);
        world.client.start_over(world.now); // the NAT still lets in whom the last test asked
        world.run(Duration::from_secs(30));
        assert_eq!(world.behaviour(), (Ei, filtering));
    }
}

#[test]
fn a_question_that_the_old_network_swallowed_is_asked_anew_at_once() {
    use NatRule::{AddressAndPortDependent as Apd, EndpointIndependent as Ei};
    for starts_over in [true, false] {
        let mut world = World::new(Ei, Apd).learn(&[A, B]);
        world.silent = vec![addr(A), addr(B)];
        world.client.refresh(world.now);
        world.run(Duration::from_secs(4));
        world.silent.clear();
        world.first_port = 50_000;
        world.ports.clear();
        if starts_over {
            world.client.start_over(world.now);
        } else {
            world.client.refresh(world.now);
        }
        world.run(Duration::from_millis(100));
        assert_eq!(world.client.reflexive(), [addr("203.0.113.1:50000")]);
    }
}

#[test]
fn a_hairpin_is_told_from_none_and_is_nothing_without_a_nat() {
    let rule = NatRule::EndpointIndependent;
    for hairpins in [true, false] {
        let mut world = World::new(rule, NatRule::AddressAndPortDependent);
        world.hairpins = hairpins;
        assert_eq!(
            world.learn(&[A, B]).client.behaviour().hairpin,
            Some(hairpins)
        );
    }
    let world = World::new(NatRule::None, NatRule::None).learn(&[A, B]);
    assert_eq!(world.client.behaviour().hairpin, None);
}

#[test]
fn a_short_lived_mapping_is_used_more_often() {
    let rule = NatRule::AddressAndPortDependent;
    let mut world = World::new(NatRule::EndpointIndependent, rule).learn(&[A, B]);
    for (every, sent) in [(13, 44..=54), (108, 24..=30)] {
        world.client.set_keepalive(Duration::from_secs(every));
        world.run(Duration::from_secs(30));
        let before = world.sent;
        world.run(Duration::from_secs(600));
        assert!(
            sent.contains(&(world.sent - before)),
            "{every} s: {}",
            world.sent - before
        );
    }
}

#[test]
fn reflexive_addresses_come_once_and_change_with_the_nat() {
    let mut world = World::new(
        NatRule::EndpointIndependent,
        NatRule::AddressAndPortDependent,
    )
    .learn(&[A, B]);
    let mut reflexive = Vec::new();
    while let Some(event) = world.client.poll_event() {
        reflexive.extend(matches!(event, StunEvent::Reflexive(_)).then_some(event));
    }
    assert_eq!(reflexive, [StunEvent::Reflexive(addr("203.0.113.1:40000"))]);

    (world.ports, world.first_port) = (BTreeMap::new(), 50_000);
    world.run(Duration::from_secs(30));
    assert_eq!(world.client.reflexive(), [addr("203.0.113.1:50000")]);
    assert_eq!(
        world.client.poll_event(),
        Some(StunEvent::Reflexive(addr("203.0.113.1:50000")))
    );
    assert_eq!(
        world.client.poll_event(),
        Some(StunEvent::ReflexiveGone(addr("203.0.113.1:40000")))
    );
}

#[test]
fn before_a_symmetric_nat_the_reflexive_candidate_is_one_and_stays() {
    let rule = NatRule::AddressAndPortDependent;
    let mut world = World::new(rule, rule).learn(&[A, B]);
    let before = world.client.reflexive();
    world.ports.retain(|server, _| server == A); // mappings that nobody keeps alive expire
    world.first_port = 50_000;
    world.run(Duration::from_secs(600));
    assert_eq!((before.len(), world.client.reflexive()), (1, before));
}

#[test]
fn without_a_nat_there_is_no_reflexive_candidate() {
    let world = World::new(NatRule::None, NatRule::None).learn(&[A, B]);
    assert_eq!(world.client.reflexive(), []);
}

#[test]
fn a_silent_server_is_asked_seldom_and_does_not_hold_the_others_up() {
    let mut world = World::new(
        NatRule::EndpointIndependent,
        NatRule::AddressAndPortDependent,
    );
    world.silent = vec![addr(B)];
    let mut world = world.learn(&[B, A]);
    assert_eq!(world.client.reflexive(), [addr("203.0.113.1:40000")]);
    let before = world.sent;
    world.run(Duration::from_secs(600));
    assert!(
        world.sent - before < 110,
        "{} datagrams in ten minutes",
        world.sent - before
    );
}

#[test]
fn an_idle_client_asks_one_server_every_25_seconds() {
    let mut world = World::new(
        NatRule::EndpointIndependent,
        NatRule::AddressAndPortDependent,
    )
    .learn(&[A, B]);
    let before = world.sent;
    world.run(Duration::from_secs(600));
    assert!(
        (24..=30).contains(&(world.sent - before)),
        "{}",
        world.sent - before
    );
}

#[test]
fn an_answer_from_elsewhere_is_not_believed() {
    let now = Instant::now();
    let mut client = StunClient::new(1, now);
    client.set_servers(&[addr(A)], now);
    let (to, request) = client.poll_transmit().unwrap();
    let lie = server_answer(&request, addr("192.0.2.66:66"), to, addr(A_OTHER)).unwrap();
    client.handle_datagram(addr(B), &lie.bytes, now);
    assert_eq!((client.reflexive(), client.poll_event()), (vec![], None));
}

proptest! {
    #[test]
    fn any_bytes_from_a_server_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let now = Instant::now();
        let mut client = StunClient::new(1, now);
        client.set_servers(&[addr(A)], now);
        client.handle_datagram(addr(A), &bytes, now);
        server_answer(&bytes, addr(B), addr(A), addr(A_OTHER));
        prop_assert_eq!(client.poll_event(), None);
    }
}

#[test]
fn a_host_with_both_ip_versions_is_tested_by_ipv4_whoever_answers_first() {
    let now = Instant::now();
    let inside6 = "[2001:db8::2]:7000";
    let mut client = StunClient::new(1, now);
    client.set_host_candidates(&[addr(INSIDE), addr(inside6)], now);
    client.set_servers(&[addr("[2001:db8::1]:3478"), addr(A)], now);
    let asked: Vec<_> = std::iter::from_fn(|| client.poll_transmit()).collect();
    let mut answer = |at: usize, seen: &str| {
        let (to, question) = &asked[at];
        let other = SocketAddr::new(to.ip(), 3479);
        let answer = server_answer(question, addr(seen), *to, other).unwrap();
        client.handle_datagram(*to, &answer.bytes, now);
        std::iter::from_fn(|| client.poll_transmit().map(|(to, _)| to)).collect::<Vec<_>>()
    };

    assert_eq!(answer(0, inside6), []);
    assert_eq!(
        answer(1, "203.0.113.1:40000"),
        [addr(A)],
        "the filtering test"
    );
}
