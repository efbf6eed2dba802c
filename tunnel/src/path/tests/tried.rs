//! What `farlan why` is told of the ways that were tried.

use super::*;
use overlay_types::{
    PathKind,
    why::{Outcome, Tried, Way, WayKind},
};

fn way(w: &World, side: usize) -> Way {
    w.sides[side].agent.tell_way(w.now)
}

fn of_kind(way: &Way, kind: WayKind) -> &Tried {
    let mut found = way.tried.iter().filter(|tried| tried.kind == kind);
    found.next().expect("a way of this kind")
}

#[test]
fn a_relayed_pair_tells_which_addresses_never_answered() {
    let mut w = World::new(Nat::Symmetric, Nat::Symmetric);
    w.session_up();
    w.settle(10);
    let way = way(&w, 0);
    assert_eq!(way.path.map(|path| path.kind), Some(PathKind::Relay));
    assert_eq!(way.tried[0].outcome, Outcome::InUse);
    assert_eq!(way.tried[0].relay, Some(PeerId([0; 32])));
    let reflexive = of_kind(&way, WayKind::Reflexive);
    assert_eq!(reflexive.outcome, Outcome::Silent);
    assert!(reflexive.probes + reflexive.withheld >= 9 && reflexive.answers == 0);
    assert!(reflexive.first_ms > reflexive.last_ms && reflexive.last_ms.is_some());
    let other_relay = way
        .tried
        .iter()
        .find(|tried| tried.relay == Some(PeerId([1; 32])));
    assert_eq!(
        other_relay.map(|tried| tried.outcome),
        Some(Outcome::NotFaster)
    );
}

#[test]
fn a_direct_pair_tells_why_the_relay_is_not_used_and_later_when_it_fell_silent() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.settle(10);
    let before = way(&w, 0);
    assert_eq!(before.path.map(|path| path.kind), Some(PathKind::Direct));
    let relayed = of_kind(&before, WayKind::Relayed);
    assert_eq!(relayed.outcome, Outcome::WorseKind);
    assert_eq!(relayed.rtt_us, Some(80_000));
    w.direct_up = false;
    w.talk();
    w.settle(5);
    let after = way(&w, 0);
    let reflexive = of_kind(&after, WayKind::Reflexive);
    assert_eq!(reflexive.outcome, Outcome::Lost);
    assert!(reflexive.failed_ms.is_some_and(|ms| ms < 5000));
}

#[test]
fn what_can_be_no_peers_address_and_what_is_too_much_is_said_to_be_left_alone() {
    let mut w = World::new(Nat::None, Nat::None);
    w.session_up();
    let mut list: Vec<_> = (1..16)
        .map(|n| Candidate::Host(([192, 0, 2, n], 7000).into()))
        .collect();
    list.push(Candidate::Host("127.0.0.1:53".parse().unwrap()));
    list[0] = Candidate::Host(w.sides[0].inside); // LANs are numbered alike
    w.sides[0].agent.set_remote_candidates(&list, w.now);
    let way = way(&w, 0);
    let count = |outcome| way.tried.iter().filter(|t| t.outcome == outcome).count();
    assert_eq!(count(Outcome::Refused), 2);
    assert_eq!(count(Outcome::Excess), 2, "{:#?}", way.tried);
}

#[test]
fn an_answer_from_elsewhere_is_told_as_such() {
    let now = Instant::now();
    let mut agent = PathAgent::new(1, 1600, now);
    let [asked, other] = [1, 2].map(|n| PathAddr::Direct(([192, 0, 2, n], 7000).into()));
    agent.count_received(10_000);
    agent.handle_session_up(asked, true, now);
    agent.set_remote_candidates(&[Candidate::Host(asked.socket_addr())], now);
    agent.probe(asked, None, now);
    let probes = std::iter::from_fn(|| agent.poll_transmit());
    let id = probes
        .filter_map(|t| match t.msg {
            ControlMessage::Probe { id } => Some(id),
            _ => None,
        })
        .last();
    let pong = ControlMessage::Pong {
        id: id.unwrap(),
        observed: None,
    };
    agent.handle_control(other, pong, now);
    let way = agent.tell_way(now);
    assert_eq!(way.tried[0].answered_from, Some(other.socket_addr()));
}

#[test]
fn a_session_that_comes_back_begins_a_new_account_and_one_that_goes_leaves_it() {
    let mut w = World::new(Nat::PortRestricted, Nat::PortRestricted);
    w.session_up();
    w.settle(10);
    w.sides[0].agent.handle_session_down(w.now);
    let gone = way(&w, 0);
    assert_eq!(gone.path, None);
    assert_eq!(of_kind(&gone, WayKind::Reflexive).outcome, Outcome::Lost);
    let via = w.relayed(0, 1);
    w.sides[0].agent.handle_session_up(via, true, w.now);
    assert_eq!(of_kind(&way(&w, 0), WayKind::Reflexive).answers, 0);
}
