//! Clients and a relay together, and what strangers can do to it.

use super::{message::Message, *};
use crate::wire::datagram::RelayHeader;
use proptest::prelude::*;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const RELAY: &str = "198.51.100.1:7000";

fn addr(n: u8, port: u16) -> PathAddr {
    PathAddr::Direct(([192, 0, n, 1], port).into())
}

fn relay_addr() -> PathAddr {
    PathAddr::Direct(RELAY.parse().unwrap())
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
        through: None,
        is_member: false,
    }
}

/// Passes messages between a client seen at `from` and the relay until both are silent.
fn exchange(client: &mut RelayClient, server: &mut RelayServer, from: PathAddr, now: Instant) {
    while let Some((to, mut bytes)) = client.poll_transmit() {
        assert_eq!(to, relay_addr());
        if let Verdict::Reply(reply) = server.handle_datagram(from, &mut bytes, now) {
            assert!(
                reply.len() <= bytes.len(),
                "no answer is longer than its question"
            );
            client.handle_datagram(to, &reply, now);
        }
    }
}

fn bind(server: &mut RelayServer, n: u8, from: PathAddr, now: Instant) -> (RelayClient, u32) {
    let mut client = RelayClient::new(u64::from(n), now);
    let grant = grant(server, n, now);
    let index = grant.index;
    client.set_grants(&[grant], now);
    exchange(&mut client, server, from, now);
    (client, index)
}

fn wrapped(to: u32, payload: &[u8]) -> Vec<u8> {
    [RelayHeader::to(to).as_bytes(), payload].concat()
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
    assert_eq!((ways, observed), (vec![way], addr(1, 1).socket_addr()));

    let mut datagram = wrapped(index_b, b"sealed");
    assert_eq!(
        relay.handle_datagram(addr(1, 1), &mut datagram, t0),
        Verdict::Forward(addr(2, 2))
    );
    let expected = [RelayHeader::from(index_a).as_bytes(), b"sealed"].concat();
    assert_eq!(datagram, expected);
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
    client.start_over(t0);
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
        matches!(a.poll_event(), Some(RelayEvent::Bound { observed, .. }) if observed == addr(1, 777).socket_addr())
    );
    assert_eq!(
        relay.handle_datagram(addr(2, 2), &mut wrapped(index, b"x"), at),
        Verdict::Forward(addr(1, 777))
    );
    assert_eq!(relay.stats().bound, 2);
}

#[test]
fn a_relay_that_is_reached_another_way_is_bound_the_old_way_until_it_is_bound_the_new_way() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let mut client = RelayClient::new(1, t0);
    let old = grant(&mut relay, 1, t0);
    let new = RelayGrant {
        through: Some(5),
        ..old.clone()
    };
    client.set_grants(std::slice::from_ref(&old), t0);
    exchange(&mut client, &mut relay, addr(1, 1), t0);

    client.set_grants(std::slice::from_ref(&new), t0);

    assert_eq!(client.bound()[0].reach, old.reach());
    while let Some((to, mut bytes)) = client.poll_transmit() {
        assert_eq!(to, new.reach());
        if let Verdict::Reply(reply) = relay.handle_datagram(addr(3, 3), &mut bytes, t0) {
            client.handle_datagram(to, &reply, t0);
        }
    }
    assert_eq!(client.bound()[0].reach, new.reach());
}

#[test]
fn a_relay_whose_answers_take_long_is_late_only_once() {
    let (mut now, rtt) = (Instant::now(), Duration::from_millis(400));
    let mut relay = server(RelayLimits::default(), now);
    let mut client = RelayClient::new(1, now);
    client.set_grants(&[grant(&mut relay, 1, now)], now);
    let (mut under_way, mut late) = (Vec::new(), 0);
    let end = now + Duration::from_secs(100);
    while now < end {
        while let Some((_, mut bytes)) = client.poll_transmit() {
            if let Verdict::Reply(reply) = relay.handle_datagram(addr(1, 1), &mut bytes, now) {
                under_way.push((now + rtt, reply));
            }
        }
        while let Some(event) = client.poll_event() {
            late += usize::from(matches!(event, RelayEvent::Silent(_)));
        }
        let timeout = client.poll_timeout().unwrap().0;
        if let Some(&(at, reply)) = under_way.first().filter(|(at, _)| *at <= timeout) {
            now = at;
            under_way.remove(0);
            client.handle_datagram(relay_addr(), &reply, now);
        } else {
            now = timeout;
            client.handle_timeout(now);
        }
    }
    assert_eq!((late, client.bound().len()), (1, 1));
}

#[test]
fn a_relay_that_is_reached_again_is_found_silent_as_soon_as_before() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (mut a, _) = bind(&mut relay, 1, addr(1, 1), t0);
    let silent_after = |a: &mut RelayClient, from: Instant| {
        a.refresh(from);
        let mut now = from;
        while !matches!(a.poll_event(), Some(RelayEvent::Silent(_))) {
            while a.poll_transmit().is_some() {}
            now = a.poll_timeout().unwrap().0;
            a.handle_timeout(now);
        }
        now - from
    };
    let usual = silent_after(&mut a, t0);
    // It is the third question that gets there, from another address of ours.
    let now = a.poll_timeout().unwrap().0;
    a.handle_timeout(now);
    exchange(&mut a, &mut relay, addr(2, 2), now);
    assert_eq!(silent_after(&mut a, now), usual);
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
fn a_relay_that_is_asked_for_all_the_time_is_lost_as_soon() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (mut a, _) = bind(&mut relay, 1, addr(1, 1), t0);
    a.poll_event();
    let mut now = t0;
    while !matches!(a.poll_event(), Some(RelayEvent::Lost(_))) {
        now += Duration::from_millis(500);
        a.refresh(now); // paths through it fail
        while a.poll_transmit().is_some() {}
        assert!(now - t0 < Duration::from_secs(12), "it is never lost");
    }
    assert!(a.bound().is_empty());
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
fn every_place_that_a_node_may_have_is_renewed() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let mut client = RelayClient::new(1, t0);
    // At eight fabric nodes, straight and through a stream, and at seven members.
    let grants: Vec<_> = (0..23).map(|n| grant(&mut relay, n, t0)).collect();

    client.set_grants(&grants, t0);

    let mut asked: Vec<_> = std::iter::from_fn(|| client.poll_transmit())
        .filter_map(|(_, bytes)| Some(Message::peek(&bytes)?.index()))
        .collect();
    let mut held: Vec<_> = grants.iter().map(|grant| grant.index).collect();
    asked.sort_unstable();
    held.sort_unstable();
    assert_eq!(asked, held);
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

/// Senders of a relay, each at its own address: which of four /24s, how long its datagrams are, and how many microseconds lie
/// between two.
type Senders = Vec<(u8, usize, u64)>;

/// What passed in `seconds`: when, whose, how many bytes.
fn relayed(limits: RelayLimits, senders: &Senders, seconds: u64) -> Vec<(u64, usize, u64)> {
    let t0 = Instant::now();
    let mut relay = server(limits, t0);
    let from: Vec<_> = senders
        .iter()
        .enumerate()
        .map(|(n, (subnet, ..))| addr(*subnet, n as u16 + 1))
        .collect();
    let places: Vec<_> = (0..senders.len())
        .map(|n| bind(&mut relay, n as u8, from[n], t0).1)
        .collect();
    let mut due: Vec<_> = (0..senders.len()).map(|n| (n as u64, n)).collect();
    let mut passed = Vec::new();
    while let Some((at, n)) = due
        .iter()
        .copied()
        .min()
        .filter(|d| d.0 < seconds * 1_000_000)
    {
        let (_, bytes, every_us) = senders[n];
        let mut datagram = wrapped(places[(n + 1) % places.len()], &vec![0; bytes - 8]);
        let now = t0 + Duration::from_micros(at);
        if relay.handle_datagram(from[n], &mut datagram, now) != Verdict::Drop {
            passed.push((at, n, bytes as u64));
        }
        due[n].0 += every_us;
    }
    passed
}

/// Bytes a second of that sender, but for the first second, in which floors fill.
fn rate_of(passed: &[(u64, usize, u64)], sender: usize, seconds: u64) -> u64 {
    let of = passed
        .iter()
        .filter(|(at, n, _)| *n == sender && *at >= 1_000_000);
    of.map(|(.., bytes)| bytes).sum::<u64>() / (seconds - 1)
}

const TIGHT: RelayLimits = RelayLimits {
    identity_rate: 1_000_000,
    subnet_rate: 2_000_000,
    total_rate: 1_000_000,
    shared_by_subnet: true,
    floor_rate: 16_000,
    places_max: 60,
    places_per_subnet_max: 60,
};

#[test]
fn a_subnet_full_of_floods_leaves_another_its_half() {
    let flood = |subnet| (subnet, 1300, 2_000); // 650 kB/s
    let mut senders: Senders = (0..20).map(|_| flood(1)).collect();
    senders.push(flood(2));
    let passed = relayed(TIGHT, &senders, 6);
    let alone = rate_of(&passed, 20, 6);
    assert!((450_000..=520_000).contains(&alone), "{alone}");
    let of_many: Vec<_> = (0..20).map(|n| rate_of(&passed, n, 6)).collect();
    assert!(
        of_many.iter().all(|rate| (20_000..=30_000).contains(rate)),
        "{of_many:?}"
    );
}

#[test]
fn members_share_alike_wherever_they_are() {
    let limits = RelayLimits {
        shared_by_subnet: false,
        ..TIGHT
    };
    let senders = vec![
        (1, 1300, 2_000),
        (1, 1300, 2_000),
        (1, 1300, 2_000),
        (2, 1300, 2_000),
    ];
    let passed = relayed(limits, &senders, 6);
    let rates: Vec<_> = (0..4).map(|n| rate_of(&passed, n, 6)).collect();
    assert!(
        rates.iter().all(|rate| (225_000..=275_000).contains(rate)),
        "{rates:?}"
    );
}

#[test]
fn floors_that_all_places_want_at_once_are_no_more_than_the_total() {
    let limits = RelayLimits {
        floor_rate: 1_000_000,
        ..TIGHT
    };
    let senders: Senders = (0..60).map(|n| (n % 4, 600, 5_000)).collect();
    let passed = relayed(limits, &senders, 6);
    let all: u64 = (0..60).map(|n| rate_of(&passed, n, 6)).sum();
    assert!((900_000..=1_000_000).contains(&all), "{all}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn floods_neither_pass_the_total_nor_take_a_floor(
        mut senders in proptest::collection::vec((0..4u8, 100..9000usize, 200..20_000u64), 1..30),
        at in 0..4u8,
        bytes in 100..1400usize,
    ) {
        // Beside whatever others send, one who sends 15 of the 16 kB/s that are its floor.
        senders.push((at, bytes, bytes as u64 * 1_000_000 / 15_000));
        let quiet = senders.len() - 1;
        let passed = relayed(TIGHT, &senders, 5);
        let rate = rate_of(&passed, quiet, 5);
        prop_assert!(rate >= 14_000, "{} bytes/s of its floor", rate);

        for first in (0..passed.len()).step_by(200) {
            let until = passed[first].0 + 1_000_000;
            let sum: u64 = passed[first..].iter().take_while(|(at, ..)| *at <= until).map(|(.., bytes)| bytes).sum();
            let bursts = 250_000 + 16_384 * senders.len() as u64;
            prop_assert!(sum <= 1_001_000 + bursts, "{} in a second", sum);
        }
    }
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
        a.handle_datagram(relay_addr(), &bytes, t0);
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
    let through = PathAddr::Direct(carrier);
    let carried = RelayGrant {
        carrier: Some(carrier),
        ..straight.clone()
    };
    let mut client = RelayClient::new(1, t0);
    client.set_grants(&[straight.clone(), carried], t0);
    let mut bound_by = |client: &mut RelayClient, only: PathAddr, now| {
        while let Some((to, mut bytes)) = client.poll_transmit() {
            // The stream's far end is another address than ours.
            let from = if to == through {
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
    assert_eq!(bound_by(&mut client, through, t0), (1, Some(through)));
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
    let at = |n: u16| PathAddr::Direct(local(n));
    for (n, client) in [
        (1, [192, 0, 5, 1]),
        (2, [192, 0, 5, 2]),
        (3, [192, 0, 6, 1]),
    ] {
        relay.open_stream(local(n), client.into());
    }
    let (a, _) = bind(&mut relay, 1, at(1), t0);
    let (crowded, _) = bind(&mut relay, 2, at(2), t0);
    let (b, index_b) = bind(&mut relay, 3, at(3), t0);
    let counts = [&a, &crowded, &b].map(|client| client.bound().len());
    assert_eq!(
        counts,
        [1, 0, 1],
        "two of one network, of which one is let in"
    );

    let pass = |relay: &mut RelayServer| {
        relay.handle_datagram(at(1), &mut wrapped(index_b, b"sealed"), t0)
    };
    assert_eq!(pass(&mut relay), Verdict::Forward(at(3)));
    relay.close_stream(local(3), t0);
    assert_eq!(pass(&mut relay), Verdict::Drop);
    relay.close_stream(local(1), t0);
    assert_eq!(relay.stats().bound, 0);
}

#[test]
fn who_is_bound_in_a_crowded_network_may_get_another_address_there() {
    let t0 = Instant::now();
    let limits = RelayLimits {
        places_per_subnet_max: 1,
        ..RelayLimits::default()
    };
    let mut relay = server(limits, t0);
    let (mut mover, _) = bind(&mut relay, 1, addr(7, 1), t0);
    let moved = t0 + Duration::from_secs(25);
    mover.handle_timeout(moved);
    exchange(&mut mover, &mut relay, addr(7, 2), moved);

    let clients: Vec<_> = relay.clients().collect();
    assert_eq!(clients, [addr(7, 2)], "its own place makes room for it");
    let (late, _) = bind(&mut relay, 2, addr(7, 3), moved);
    assert_eq!((late.bound().len(), relay.stats().dropped_crowded), (0, 1));
}

#[test]
fn a_place_is_bound_through_another_relay_by_who_receives_there() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let beyond = addr(7, 7).beyond(3).unwrap();
    let (_, far) = bind(&mut relay, 1, beyond, t0);
    let (_, near) = bind(&mut relay, 2, addr(2, 2), t0);

    let mut to_far = wrapped(far, b"sealed");
    assert_eq!(
        relay.handle_datagram(addr(2, 2), &mut to_far, t0),
        Verdict::Forward(beyond)
    );
    let mut to_near = wrapped(near, b"sealed");
    assert_eq!(
        relay.handle_datagram(beyond, &mut to_near, t0),
        Verdict::Forward(addr(2, 2))
    );
    // Another number at the same relay is another address.
    let other = addr(7, 7).beyond(4).unwrap();
    assert_eq!(
        relay.handle_datagram(other, &mut wrapped(near, b"x"), t0),
        Verdict::Drop
    );
    // No chain is longer than two.
    let deep = beyond.beyond(1).unwrap();
    assert_eq!(
        relay.handle_datagram(deep, &mut wrapped(near, b"x"), t0),
        Verdict::Drop
    );
    assert_eq!(relay.stats().dropped_nested, 1);
}

#[test]
fn places_bound_in_a_circle_carry_nothing_around_it() {
    let t0 = Instant::now();
    let mut relays = [1u8, 2].map(|n| RelayServer::new([n; 32], RelayLimits::default(), t0));
    // Each relay has a place at the other. A place of one member at the first is bound through the second, where that
    // member's other place is bound through the first.
    let places = relays.each_mut().map(|relay| {
        let other_relay = relay.allocate(PeerId([50; 32]), t0).unwrap().0;
        let member = relay.allocate(PeerId([51; 32]), t0).unwrap().0;
        (other_relay, member)
    });
    let relay_at = |n: usize| addr(100 + n as u8, 1);
    for n in 0..2 {
        let other = 1 - n;
        assert!(relays[n].occupy_for_tests(places[n].0, relay_at(other), t0));
        let around = relay_at(other).beyond(places[other].1).unwrap();
        assert!(relays[n].occupy_for_tests(places[n].1, around, t0));
    }
    let (_, sender) = bind(&mut relays[0], 9, addr(9, 9), t0);
    assert_ne!(sender, 0);

    let (mut at, mut from) = (0, addr(9, 9));
    let mut datagram = wrapped(places[0].1, b"sealed");
    let mut hops = 0;
    while let Verdict::Forward(to) = relays[at].handle_datagram(from, &mut datagram, t0) {
        hops += 1;
        assert!(hops < 4, "it goes round");
        let (relay, index) = to.last_relay().unwrap();
        assert_eq!(relay, relay_at(1 - at));
        datagram = [RelayHeader::to(index).as_bytes(), &datagram[..]].concat();
        (from, at) = (relay_at(at), 1 - at);
    }
    assert_eq!(hops, 1);
    assert_eq!(relays[1].stats().dropped_nested, 1);
}

#[test]
fn who_is_no_member_any_more_has_no_place() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let (_, index) = bind(&mut relay, 1, addr(1, 1), t0);
    bind(&mut relay, 2, addr(2, 2), t0);
    assert!(relay.has_news() && !relay.has_news());

    relay.forget(PeerId([1; 32]));

    assert!(relay.has_news());
    assert_eq!(relay.clients().collect::<Vec<_>>(), [addr(2, 2)]);
    assert_eq!(
        relay.handle_datagram(addr(2, 2), &mut wrapped(index, b"x"), t0),
        Verdict::Drop
    );
}

#[test]
fn the_way_to_a_relay_is_timed() {
    let t0 = Instant::now();
    let mut relay = server(RelayLimits::default(), t0);
    let mut client = RelayClient::new(1, t0);
    client.set_grants(&[grant(&mut relay, 1, t0)], t0);
    let mut now = t0;
    while let Some((to, mut bytes)) = client.poll_transmit() {
        let verdict = relay.handle_datagram(addr(1, 1), &mut bytes, now);
        now += Duration::from_millis(30);
        if let Verdict::Reply(reply) = verdict {
            client.handle_datagram(to, &reply, now);
        }
    }
    assert_eq!(client.bound()[0].rtt, Some(Duration::from_millis(30)));
}

proptest! {
    #[test]
    fn what_a_relay_sends_is_no_more_than_it_got(steps in proptest::collection::vec(
        (0..4usize, 0..5usize, 0..1500usize, 0..200u64), 0..200)) {
        let t0 = Instant::now();
        let limits = RelayLimits {
            identity_rate: 100_000,
            subnet_rate: 150_000,
            total_rate: 200_000,
            floor_rate: 1_000,
            ..RelayLimits::default()
        };
        let mut relay = server(limits, t0);
        let from = [addr(1, 1), addr(1, 2), addr(2, 1), addr(7, 7).beyond(3).unwrap()];
        let mut places: Vec<u32> = (0..4).map(|n| bind(&mut relay, n as u8, from[n], t0).1).collect();
        places.push(77); // nobody's
        let (mut now, mut bytes_in, mut bytes_out) = (t0, 0, 0);
        for (sender, to, len, wait) in steps {
            now += Duration::from_millis(wait);
            let mut datagram = wrapped(places[to], &vec![0; len]);
            bytes_in += datagram.len() as u64;
            if let Verdict::Forward(_) = relay.handle_datagram(from[sender], &mut datagram, now) {
                bytes_out += datagram.len() as u64;
            }
        }
        prop_assert!(bytes_out <= bytes_in);
        let seconds = (now - t0).as_secs_f64();
        // What all share may begin with 192 KiB at once, and each floor with 16 KiB, which is paid back.
        let most = limits.total_rate as f64 * seconds + 196_608.0 + 4.0 * 16_384.0;
        prop_assert!(bytes_out as f64 <= most, "{} in {} s", bytes_out, seconds);
        prop_assert_eq!(relay.stats().forwarded_bytes, bytes_out);
        prop_assert_eq!((relay.stats().places, relay.stats().bound), (4, 4));
    }
}
