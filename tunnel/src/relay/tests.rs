//! Clients and a relay together, and what strangers can do to it.

use super::*;
use crate::wire::datagram::RelayHeader;
use proptest::prelude::*;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const RELAY: &str = "198.51.100.1:7000";

fn addr(n: u8, port: u16) -> SocketAddr {
    ([192, 0, n, 1], port).into()
}

fn server(limits: RelayLimits, now: Instant) -> RelayServer {
    RelayServer::new([7; 32], limits, now)
}

fn grant(server: &mut RelayServer, n: u8, now: Instant) -> RelayGrant {
    let (index, key) = server.allocate(PeerId([n; 32]), now).unwrap();
    RelayGrant {
        via: PeerId([99; 32]),
        relay: RELAY.parse().unwrap(),
        index,
        key,
        carrier: None,
    }
}

/// Passes messages between a client seen at `from` and the relay until both are silent.
fn exchange(client: &mut RelayClient, server: &mut RelayServer, from: SocketAddr, now: Instant) {
    while let Some((to, mut bytes)) = client.poll_transmit() {
        assert_eq!(to, RELAY.parse().unwrap());
        if let Verdict::Reply(reply) = server.handle_datagram(from, &mut bytes, now) {
            assert!(
                reply.len() <= bytes.len(),
                "no answer is longer than its question"
            );
            client.handle_datagram(to, &reply, now);
        }
    }
}

fn bind(server: &mut RelayServer, n: u8, from: SocketAddr, now: Instant) -> (RelayClient, u32) {
    let mut client = RelayClient::new(u64::from(n), now);
    let grant = grant(server, n, now);
    let index = grant.index;
    client.set_grants(&[grant], now);
    exchange(&mut client, server, from, now);
    (client, index)
}

fn wrapped(to: u32, payload: &[u8]) -> Vec<u8> {
    [RelayHeader::new(to).as_bytes(), payload].concat()
}

#[test]
fn two_bound_clients_reach_each_other_and_see_each_others_number() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (mut a, index_a) = bind(&mut relay, 1, addr(1, 1), t0);
    let (_, index_b) = bind(&mut relay, 2, addr(2, 2), t0);
    let Some(RelayEvent::Bound { way, observed }) = a.poll_event() else {
        panic!("bound")
    };
    let ways: Vec<_> = a.bound().iter().map(|place| place.way).collect();
    assert_eq!((ways, observed), (vec![way], addr(1, 1)));

    let mut datagram = wrapped(index_b, b"sealed");
    assert_eq!(
        relay.handle_datagram(addr(1, 1), &mut datagram, t0),
        Verdict::Forward(addr(2, 2))
    );
    assert_eq!(datagram, wrapped(index_a, b"sealed"));
}

#[test]
fn a_stranger_gets_nothing() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (_, index) = bind(&mut relay, 1, addr(1, 1), t0);
    assert_eq!(
        relay.handle_datagram(addr(9, 9), &mut wrapped(index, b"x"), t0),
        Verdict::Drop
    );
    let forged = message::Message::new(message::REQUEST, index, 1, [0; 16], &[0; 32]);
    assert_eq!(
        relay.handle_datagram(addr(9, 9), &mut forged.to_bytes(), t0),
        Verdict::Drop
    );
    let stats = relay.stats();
    assert_eq!((stats.dropped_stranger, stats.dropped_forged), (1, 1));
}

#[test]
fn an_address_is_bound_only_by_who_receives_there() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (mut a, index) = bind(&mut relay, 1, addr(1, 1), t0);
    let (_, other) = bind(&mut relay, 2, addr(2, 2), t0);
    // The holder claims a victim's address by forged source, without seeing the challenge.
    a.refresh(t0);
    let (_, mut request) = a.poll_transmit().unwrap();
    assert!(matches!(
        relay.handle_datagram(addr(3, 3), &mut request, t0),
        Verdict::Reply(_)
    ));
    assert_eq!(
        relay.handle_datagram(addr(2, 2), &mut wrapped(index, b"x"), t0),
        Verdict::Forward(addr(1, 1))
    );
    assert_eq!(
        relay.handle_datagram(addr(3, 3), &mut wrapped(other, b"x"), t0),
        Verdict::Drop
    );
}

#[test]
fn an_old_confirmation_does_not_bring_an_old_address_back() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let mut client = RelayClient::new(1, t0);
    client.set_grants(&[grant(&mut relay, 1, t0)], t0);
    let (to, mut request) = client.poll_transmit().unwrap();
    let Verdict::Reply(challenge) = relay.handle_datagram(addr(1, 1), &mut request, t0) else {
        panic!("challenge")
    };
    client.handle_datagram(to, &challenge, t0);
    let (_, mut confirm) = client.poll_transmit().unwrap();
    assert!(matches!(
        relay.handle_datagram(addr(1, 1), &mut confirm, t0),
        Verdict::Reply(_)
    ));
    client.refresh(t0);
    exchange(&mut client, &mut relay, addr(4, 4), t0); // moved
    assert_eq!(
        relay.handle_datagram(addr(1, 1), &mut confirm, t0),
        Verdict::Drop
    );
}

#[test]
fn a_new_nat_port_is_followed_by_the_next_renewal() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (mut a, index) = bind(&mut relay, 1, addr(1, 1), t0);
    let (_, _) = bind(&mut relay, 2, addr(2, 2), t0);
    a.poll_event();
    let (at, _) = a.poll_timeout().unwrap();
    a.handle_timeout(at);
    exchange(&mut a, &mut relay, addr(1, 777), at);
    assert!(
        matches!(a.poll_event(), Some(RelayEvent::Bound { observed, .. }) if observed == addr(1, 777))
    );
    assert_eq!(
        relay.handle_datagram(addr(2, 2), &mut wrapped(index, b"x"), at),
        Verdict::Forward(addr(1, 777))
    );
    assert_eq!(relay.stats().bound, 2);
}

#[test]
fn a_relay_that_stops_answering_is_lost_in_seconds_and_found_again() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (mut a, _) = bind(&mut relay, 1, addr(1, 1), t0);
    a.poll_event();
    let mut now = t0;
    while !matches!(a.poll_event(), Some(RelayEvent::Lost(_))) {
        now = a.poll_timeout().unwrap().0;
        a.handle_timeout(now);
        while a.poll_transmit().is_some() {}
    }
    assert!(now - t0 < Duration::from_secs(35) && a.bound().is_empty());
    now = a.poll_timeout().unwrap().0;
    a.handle_timeout(now);
    exchange(&mut a, &mut relay, addr(1, 1), now);
    assert_eq!(a.bound().len(), 1);
}

#[test]
fn an_idle_binding_costs_one_exchange_in_25_seconds() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (mut a, _) = bind(&mut relay, 1, addr(1, 1), t0);
    let (mut now, mut wakes) = (t0, 0);
    while now < t0 + Duration::from_secs(600) {
        now = a.poll_timeout().unwrap().0;
        a.handle_timeout(now);
        exchange(&mut a, &mut relay, addr(1, 1), now);
        relay.handle_timeout(now);
        wakes += 1;
    }
    assert!(wakes <= 28 && relay.stats().bound == 1, "{wakes}");
}

#[test]
fn places_nobody_renews_are_forgotten() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    bind(&mut relay, 1, addr(1, 1), t0);
    let mut now = t0;
    while let Some((at, _)) = relay.poll_timeout() {
        now = at;
        relay.handle_timeout(now);
    }
    assert!(now - t0 < Duration::from_secs(720));
    assert_eq!((relay.stats().places, relay.stats().bound), (0, 0));
}

#[test]
fn asking_again_gives_the_same_place_and_a_full_relay_says_so() {
    let t0 = Instant::now();
    let mut relay = server(
        RelayLimits {
            places_max: 2,
            ..RelayLimits::default()
        },
        t0,
    );
    let (_, first) = bind(&mut relay, 1, addr(1, 1), t0);
    assert_eq!(grant(&mut relay, 1, t0).index, first);
    bind(&mut relay, 2, addr(2, 2), t0);
    assert_eq!(relay.allocate(PeerId([3; 32]), t0), Err(RelayFull));
}

#[test]
fn one_subnet_does_not_take_all_places() {
    let t0 = Instant::now();
    let mut relay = server(
        RelayLimits {
            places_per_subnet_max: 3,
            ..RelayLimits::default()
        },
        t0,
    );
    for n in 1..=5 {
        bind(&mut relay, n, addr(1, n.into()), t0);
    }
    bind(&mut relay, 6, addr(2, 6), t0);
    assert_eq!(
        (relay.stats().bound, relay.stats().dropped_crowded > 0),
        (4, true)
    );
}

#[test]
fn budgets_hold_per_identity_and_the_floor_holds_for_its_neighbours() {
    let t0 = Instant::now();
    let limits = RelayLimits {
        identity_rate: 400_000,
        subnet_rate: 100_000,
        floor_rate: 16_000,
        ..RelayLimits::default()
    };
    let mut relay = server(limits, t0);
    let (_, heavy) = bind(&mut relay, 1, addr(1, 1), t0);
    let (_, light) = bind(&mut relay, 2, addr(1, 2), t0);
    let (mut heavy_passed, mut light_passed) = (0u64, 0);
    for ms in 0..10_000u64 {
        let now = t0 + Duration::from_millis(ms);
        heavy_passed += u64::from(
            relay.handle_datagram(addr(1, 1), &mut wrapped(light, &[0; 992]), now) != Verdict::Drop,
        ) * 1000;
        if ms % 100 == 0 {
            light_passed += u64::from(
                relay.handle_datagram(addr(1, 2), &mut wrapped(heavy, &[0; 92]), now)
                    != Verdict::Drop,
            );
        }
    }
    // 10 s of the subnet's rate and of the floor, and the bursts.
    assert!(
        (1_000_000..=1_400_000).contains(&heavy_passed),
        "{heavy_passed}"
    );
    assert_eq!(light_passed, 100);
}

proptest! {
    #[test]
    fn strangers_bytes_neither_panic_nor_grow_the_relay(datagrams in proptest::collection::vec(
        (any::<u16>(), 0xA0..=0xA5u8, proptest::collection::vec(any::<u8>(), 0..64)), 0..50)) {
        let t0 = Instant::now();
        let mut relay = server(RelayLimits::default(), t0);
        let (_, index) = bind(&mut relay, 1, addr(1, 1), t0);
        for (port, kind, mut bytes) in datagrams {
            if let Some(first) = bytes.first_mut() { *first = kind }
            if bytes.len() >= 8 { bytes[4..8].copy_from_slice(&index.to_be_bytes()) }
            prop_assert_eq!(relay.handle_datagram(addr(9, port), &mut bytes, t0), Verdict::Drop);
        }
        prop_assert_eq!((relay.stats().places, relay.stats().bound), (1, 1));
    }

    #[test]
    fn a_client_ignores_what_its_relay_did_not_write(bytes in proptest::collection::vec(any::<u8>(), 48..=48), kind in 0xA0..=0xA3u8) {
        let t0 = Instant::now();
        let mut relay = server(RelayLimits::default(), t0);
        let (mut a, _) = bind(&mut relay, 1, addr(1, 1), t0);
        while a.poll_event().is_some() {}
        let mut bytes = bytes;
        (bytes[0], bytes[1]) = (kind, 1);
        a.handle_datagram(RELAY.parse().unwrap(), &bytes, t0);
        prop_assert!(a.poll_transmit().is_none() && a.poll_event().is_none());
    }
}

#[test]
fn a_late_answer_is_told_once_and_its_coming_too() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (mut a, _) = bind(&mut relay, 1, addr(1, 1), t0);
    assert!(matches!(a.poll_event(), Some(RelayEvent::Bound { .. })));
    let mut now = t0;
    for _ in 0..3 {
        now = a.poll_timeout().unwrap().0;
        a.handle_timeout(now);
    }
    assert!(matches!(a.poll_event(), Some(RelayEvent::Silent(_))));
    assert_eq!(a.poll_event(), None);
    exchange(&mut a, &mut relay, addr(1, 1), now);
    assert!(matches!(a.poll_event(), Some(RelayEvent::Bound { .. })));
    assert_eq!(a.poll_event(), None);
}

#[test]
fn a_place_held_in_two_ways_counts_once_and_straight_is_preferred() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let straight = grant(&mut relay, 1, t0);
    let carrier = "127.0.0.1:40000".parse().unwrap();
    let carried = RelayGrant {
        carrier: Some(carrier),
        ..straight.clone()
    };
    let mut client = RelayClient::new(1, t0);
    client.set_grants(&[straight.clone(), carried], t0);
    let mut bound_by = |client: &mut RelayClient, only: SocketAddr, now| {
        while let Some((to, mut bytes)) = client.poll_transmit() {
            // The stream's far end is another address than ours.
            let from = if to == carrier {
                addr(9, 9)
            } else {
                addr(1, 1)
            };
            let verdict = relay.handle_datagram(from, &mut bytes, now);
            if let (true, Verdict::Reply(reply)) = (to == only, verdict) {
                client.handle_datagram(to, &reply, now);
            }
        }
        let bound = client.bound();
        (bound.len(), bound.first().map(|place| place.reach))
    };
    assert_eq!(bound_by(&mut client, carrier, t0), (1, Some(carrier)));
    let later = t0 + Duration::from_secs(1);
    client.handle_timeout(later);
    let reach = straight.reach();
    assert_eq!(bound_by(&mut client, reach, later), (1, Some(reach)));
}

#[test]
fn a_streams_place_is_paid_for_by_the_network_behind_it_and_ends_with_it() {
    let t0 = Instant::now();
    let limits = RelayLimits {
        places_per_subnet_max: 1,
        ..RelayLimits::default()
    };
    let mut relay = server(limits, t0);
    let local = |n: u16| SocketAddr::from(([127, 0, 0, 1], n));
    for (n, client) in [
        (1, [192, 0, 5, 1]),
        (2, [192, 0, 5, 2]),
        (3, [192, 0, 6, 1]),
    ] {
        relay.open_stream(local(n), client.into());
    }
    let (a, _) = bind(&mut relay, 1, local(1), t0);
    let (crowded, _) = bind(&mut relay, 2, local(2), t0);
    let (b, index_b) = bind(&mut relay, 3, local(3), t0);
    let counts = [&a, &crowded, &b].map(|client| client.bound().len());
    assert_eq!(
        counts,
        [1, 0, 1],
        "two of one network, of which one is let in"
    );

    let pass = |relay: &mut RelayServer| {
        relay.handle_datagram(local(1), &mut wrapped(index_b, b"sealed"), t0)
    };
    assert_eq!(pass(&mut relay), Verdict::Forward(local(3)));
    relay.close_stream(local(3), t0);
    assert_eq!(pass(&mut relay), Verdict::Drop);
    relay.close_stream(local(1), t0);
    assert_eq!(relay.stats().bound, 0);
}
