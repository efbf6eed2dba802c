//! What a fabric node's relay of control connections gives, and what becomes of those that had all of it.

use super::*;

/// A fabric node with these limits on one free port, and its address with the identity.
async fn start_relay(seed: u64, circuits: CircuitLimits) -> (Node, Vec<Multiaddr>) {
    let config = SwarmConfig {
        identity: identity(seed),
        listen: vec![loopback(0)[1].clone()],
        external: Vec::new(),
        bootstrap: Vec::new(),
        role: Role::Fabric,
        mdns: false,
        streams: None,
    };
    let (handle, events) = spawn_with(config, circuits).unwrap();
    let mut node = Node { handle, events };
    let address = loop {
        if let SwarmEvent::ListenAddrs(published) = node.next().await
            && let Some(first) = published.first()
        {
            break with_peer(first.parse().unwrap(), node.handle.peer_id());
        }
    };
    (node, vec![address])
}

/// Counts how often the connection with `peer` was lost, from now on.
fn count_losses(mut node: Node, peer: PeerId) -> (SwarmHandle, Arc<AtomicUsize>) {
    let (handle, losses) = (node.handle.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&losses);
    tokio::spawn(async move {
        while let Some(event) = node.events.recv().await {
            if matches!(event, SwarmEvent::Disconnected(other) if other == peer) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    (handle, losses)
}

#[tokio::test]
async fn a_circuit_that_had_its_bytes_is_cut_and_nothing_that_was_asked_is_lost() {
    let limits = CircuitLimits {
        circuit_bytes: 60_000,
        ..CircuitLimits::default()
    };
    let (_fabric, addresses) = start_relay(70, limits).await;
    let mut callee = start(71, Role::Member, Vec::new(), addresses.clone());
    let caller = start(72, Role::Member, Vec::new(), addresses);
    let circuit = [callee.circuit().await];
    let callee = callee.answer_backwards();
    let (caller, losses) = count_losses(caller, callee.peer_id());

    // 1.2 MB at least: twenty circuits full, four requests at a time.
    for round in 0..30u8 {
        let asked = (0..4u8).map(|n| {
            let mut payload = vec![n; 5_000];
            payload[0] = round;
            let (caller, callee, circuit) = (&caller, callee.peer_id(), &circuit);
            async move {
                let answer = caller.request(callee, circuit, payload.clone()).await;
                payload.reverse();
                (answer, payload)
            }
        });
        for (answer, expected) in futures::future::join_all(asked).await {
            assert_eq!(answer, Ok(expected), "round {round}");
        }
    }
    let losses = losses.load(Ordering::Relaxed);
    assert!(losses >= 10, "{losses}");
}

#[tokio::test]
async fn a_place_at_a_relay_is_asked_for_again_before_its_end() {
    let time = Duration::from_secs(4);
    let limits = CircuitLimits {
        reservation_time: time,
        ..CircuitLimits::default()
    };
    let (fabric, addresses) = start_relay(73, limits).await;
    let mut callee = start(74, Role::Member, Vec::new(), addresses.clone());
    let caller = start(75, Role::Member, Vec::new(), addresses);
    let circuit = [callee.circuit().await];

    // For two and a half times what a place is kept, its holder has it all the time.
    let looked_until = Instant::now() + time * 5 / 2;
    while Instant::now() < looked_until {
        assert_eq!(callee.status().await.reserved_at, [fabric.handle.peer_id()]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let callee = callee.answer_backwards();
    let asked = caller
        .handle
        .request(callee.peer_id(), &circuit, b"ab".to_vec());
    assert_eq!(asked.await, Ok(b"ba".to_vec()));
}

#[tokio::test]
async fn a_relay_keeps_no_more_places_than_it_has() {
    let limits = CircuitLimits {
        reservations: 1,
        ..CircuitLimits::default()
    };
    let (fabric, addresses) = start_relay(76, limits).await;
    let mut first = start(77, Role::Member, Vec::new(), addresses.clone());
    first.circuit().await;
    let mut second = start(78, Role::Member, Vec::new(), addresses);
    second.connected_to(fabric.handle.peer_id()).await;
    tokio::time::sleep(Duration::from_millis(700)).await; // it was refused, and asked again
    assert!(second.status().await.reserved_at.is_empty());

    first.handle.shutdown().await;
    second.circuit().await; // asks until there is one
}

#[tokio::test]
async fn a_peer_has_no_more_circuits_than_it_may_and_the_others_go_on() {
    let limits = CircuitLimits {
        circuits_per_peer: 2,
        ..CircuitLimits::default()
    };
    let (_fabric, addresses) = start_relay(79, limits).await;
    let mut callees = Vec::new();
    for seed in 80..83 {
        let mut callee = start(seed, Role::Member, Vec::new(), addresses.clone());
        let circuit = callee.circuit().await;
        callees.push((callee.answer_backwards(), [circuit]));
    }
    let caller = start(83, Role::Member, Vec::new(), addresses.clone());
    let other = start(84, Role::Member, Vec::new(), addresses);
    let ask = async |from: &Node, n: usize| {
        let (callee, circuit) = &callees[n];
        let asked = from
            .handle
            .request(callee.peer_id(), circuit, b"ab".to_vec());
        asked.await
    };

    assert!(ask(&caller, 0).await.is_ok() && ask(&caller, 1).await.is_ok());
    let refused = ask(&caller, 2).await;
    assert!(
        matches!(&refused, Err(RequestError::Unreachable { reason, .. }) if reason.contains("limit")),
        "{refused:?}"
    );
    assert!(ask(&caller, 0).await.is_ok(), "what stands is not touched");
    assert!(ask(&other, 2).await.is_ok());
}

#[tokio::test]
async fn a_site_that_asks_for_circuits_too_fast_waits() {
    let limits = CircuitLimits {
        circuit_pace: Pace {
            at_once: 1,
            per_second: 1,
        },
        ..CircuitLimits::default()
    };
    let (_fabric, addresses) = start_relay(85, limits).await;
    let mut callees = Vec::new();
    for seed in 86..88 {
        let mut callee = start(seed, Role::Member, Vec::new(), addresses.clone());
        let circuit = callee.circuit().await;
        callees.push((callee.answer_backwards(), [circuit]));
    }
    let caller = start(88, Role::Member, Vec::new(), addresses);
    let started = Instant::now();
    for (callee, circuit) in &callees {
        let asked = caller
            .handle
            .request(callee.peer_id(), circuit, b"ab".to_vec());
        assert_eq!(asked.await, Ok(b"ba".to_vec())); // dials again until it may
    }
    assert!(started.elapsed() >= Duration::from_millis(900));
}
