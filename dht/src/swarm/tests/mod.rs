//! Real swarms on loopback: whole joins, writes, reads, requests and outages. Times are bounded by hang limits only.

mod circuits;

use super::circuits::Pace;
use super::*;
use crate::slot::{SlotKey, SlotName, SlotValue};
use overlay_types::PeerId;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Far beyond what anything here takes; reached only when something hangs.
const HANG: Duration = Duration::from_secs(30);

struct Node {
    handle: SwarmHandle,
    events: mpsc::Receiver<SwarmEvent>,
}

fn identity(seed: u64) -> Identity {
    Identity::generate(&mut ChaCha20Rng::seed_from_u64(seed))
}

fn loopback(port: u16) -> [Multiaddr; 2] {
    multiaddrs_of((Ipv4Addr::LOCALHOST, port).into())
}

fn start(seed: u64, role: Role, listen: Vec<Multiaddr>, bootstrap: Vec<Multiaddr>) -> Node {
    let config = SwarmConfig {
        identity: identity(seed),
        listen,
        external: Vec::new(),
        bootstrap,
        role,
        mdns: false,
        streams: None,
    };
    let (handle, events) = spawn(config).unwrap();
    Node { handle, events }
}

/// A fabric node on free ports, and its addresses with the identity: QUIC and TCP.
async fn start_fabric(seed: u64) -> (Node, Vec<Multiaddr>) {
    let mut node = start(seed, Role::Fabric, loopback(0).into(), Vec::new());
    let mut addresses = Vec::new();
    while addresses.len() < 2 {
        let SwarmEvent::ListenAddrs(published) = node.next().await else {
            continue;
        };
        addresses = published
            .iter()
            .map(|text| with_peer(text.parse().unwrap(), node.handle.peer_id()))
            .collect();
    }
    (node, addresses)
}

impl Node {
    async fn next(&mut self) -> SwarmEvent {
        tokio::time::timeout(HANG, self.events.recv())
            .await
            .expect("something happens")
            .expect("the swarm runs")
    }

    async fn connected_to(&mut self, peer: PeerId) {
        while !matches!(self.next().await, SwarmEvent::Connected(other) if other == peer) {}
    }

    /// The circuit address under which others reach this node.
    async fn circuit(&mut self) -> String {
        loop {
            if let SwarmEvent::ListenAddrs(published) = self.next().await
                && let Some(circuit) = published
                    .into_iter()
                    .find(|text| text.contains("p2p-circuit"))
            {
                return circuit;
            }
        }
    }

    /// Answers every request with its payload reversed, from now on.
    fn answer_backwards(mut self) -> SwarmHandle {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            while let Some(event) = self.events.recv().await {
                if let SwarmEvent::Request {
                    mut payload, reply, ..
                } = event
                {
                    payload.reverse();
                    let _gone = reply.send(payload);
                }
            }
        });
        handle
    }

    async fn status(&self) -> SwarmStatus {
        self.handle.status().await.expect("the swarm runs")
    }
}

fn unix_ms() -> u64 {
    u64::try_from(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap()
}

/// A slot's key, and a value for it.
fn slot(seed: u64, content: &[u8]) -> (SlotKey, SlotValue) {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let key = SlotKey::derive(&[7; 32], &SlotName::Node(identity(seed).peer_id()));
    let value = key.seal(content, unix_ms(), 3600, &mut rng).unwrap();
    (key, value)
}

async fn put_and_get_over(transport: usize) {
    let (fabric, addresses) = start_fabric(1).await;
    let bootstrap = vec![addresses[transport].clone()];
    let started = Instant::now();
    let writer = start(2, Role::Member, Vec::new(), bootstrap.clone());
    let reader = start(3, Role::Member, Vec::new(), bootstrap);
    let (key, value) = slot(2, b"where I am");

    assert_eq!(writer.handle.put_slot(value.encode()).await, Ok(1));
    let put = started.elapsed();
    let values = reader.handle.get_slot(key.dht_key()).await;
    eprintln!(
        "put {put:?} after start, get {:?} later",
        started.elapsed() - put
    );

    assert_eq!(values, [value.encode()]);
    assert_eq!(
        key.open(&SlotValue::decode(&values[0]).unwrap(), unix_ms() / 1000)
            .unwrap(),
        b"where I am"
    );
    assert_eq!(fabric.status().await.slots_stored, 1);
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_value_put_by_one_member_is_got_by_another_over_quic() {
    put_and_get_over(0).await;
}

#[tokio::test]
async fn a_value_put_by_one_member_is_got_by_another_over_tcp() {
    put_and_get_over(1).await;
}

#[tokio::test]
async fn a_missing_slot_is_answered_at_once() {
    let (_fabric, addresses) = start_fabric(4).await;
    let reader = start(5, Role::Member, Vec::new(), addresses);
    let started = Instant::now();
    assert!(reader.handle.get_slot([9; 32]).await.is_empty());
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "it waits neither for a hit nor for a timeout"
    );
}

#[tokio::test]
async fn two_writers_of_one_slot_do_not_mask_each_other() {
    let (_fabric, addresses) = start_fabric(6).await;
    let honest = start(7, Role::Member, Vec::new(), addresses.clone());
    let griefer = start(8, Role::Member, Vec::new(), addresses.clone());
    let (key, first) = slot(7, b"true");
    let later = key
        .seal(
            b"false",
            unix_ms() + 1000,
            3600,
            &mut ChaCha20Rng::seed_from_u64(8),
        )
        .unwrap();

    honest.handle.put_slot(first.encode()).await.unwrap();
    griefer.handle.put_slot(later.encode()).await.unwrap();

    assert_eq!(
        honest.handle.get_slot(key.dht_key()).await,
        [later.encode(), first.encode()]
    );
}

#[tokio::test]
async fn a_value_that_is_not_valid_never_leaves_the_node() {
    let node = start(9, Role::Member, Vec::new(), Vec::new());
    let (_, mut value) = slot(9, b"mine");
    value.ciphertext[0] ^= 1;
    assert!(matches!(
        node.handle.put_slot(value.encode()).await,
        Err(PutError::Invalid(_))
    ));
}

#[tokio::test]
async fn a_stranger_learns_that_its_forged_value_was_refused() {
    use futures::StreamExt;
    use libp2p::kad::{self, store::MemoryStore};
    use libp2p::swarm::SwarmEvent as Libp2pEvent;
    let (fabric, addresses) = start_fabric(10).await;
    let fabric_id = to_libp2p(fabric.handle.peer_id()).unwrap();
    // A stranger with plain libp2p: it says nothing about our rules.
    let mut stranger = libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|keypair| {
            let local = keypair.public().to_peer_id();
            kad::Behaviour::with_config(
                local,
                MemoryStore::new(local),
                kad::Config::new(libp2p::StreamProtocol::new("/farlan/kad/1")),
            )
        })
        .unwrap()
        .build();
    stranger
        .behaviour_mut()
        .add_address(&fabric_id, addresses[0].clone());
    let (key, value) = slot(10, b"true");
    let mut forged = value.clone();
    forged.ciphertext[0] ^= 1;
    let (mut outcomes, started) = (Vec::new(), Instant::now());
    for bytes in [forged.encode(), vec![0; 5000], value.encode()] {
        let record = kad::Record::new(key.dht_key().to_vec(), bytes);
        stranger.behaviour_mut().put_record_to(
            record,
            std::iter::once(fabric_id),
            kad::Quorum::One,
        );
        let put = async {
            loop {
                if let Libp2pEvent::Behaviour(kad::Event::OutboundQueryProgressed {
                    result: kad::QueryResult::PutRecord(result),
                    ..
                }) = stranger.select_next_some().await
                {
                    break result.is_ok();
                }
            }
        };
        outcomes.push(tokio::time::timeout(HANG, put).await.unwrap());
    }
    eprintln!("three puts answered in {:?}", started.elapsed());

    assert_eq!(outcomes, [false, false, true]);
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "refusals are told, not left to the stranger's timeout of 10 s"
    );
    let counters = fabric.status().await.counters;
    assert_eq!((counters.values_stored, counters.values_refused), (1, 2));
}

async fn request_over_circuit(transport: usize) {
    let (_fabric, addresses) = start_fabric(11).await;
    let bootstrap = vec![addresses[transport].clone()];
    let started = Instant::now();
    let mut callee = start(12, Role::Member, Vec::new(), bootstrap.clone());
    let caller = start(13, Role::Member, Vec::new(), bootstrap);
    let circuit = callee.circuit().await;
    let reserved = started.elapsed();
    let callee = callee.answer_backwards();

    let answer = caller
        .handle
        .request(callee.peer_id(), &[circuit], b"straw".to_vec())
        .await;
    eprintln!(
        "circuit {reserved:?} after start, first answer {:?} later",
        started.elapsed() - reserved
    );
    assert_eq!(answer, Ok(b"warts".to_vec()));
    let again = Instant::now();
    caller
        .handle
        .request(callee.peer_id(), &[], b"again".to_vec())
        .await
        .unwrap();
    eprintln!("second answer {:?}", again.elapsed());

    let status = caller.status().await;
    assert!(
        status
            .connected
            .iter()
            .any(|peer| peer.peer == callee.peer_id() && peer.is_relayed)
    );
}

#[tokio::test]
async fn members_without_listeners_ask_each_other_through_a_circuit_over_quic() {
    request_over_circuit(0).await;
}

#[tokio::test]
async fn members_without_listeners_ask_each_other_through_a_circuit_over_tcp() {
    request_over_circuit(1).await;
}

#[tokio::test]
async fn a_peer_is_found_through_the_fabric_when_no_address_is_known() {
    let (_fabric, addresses) = start_fabric(14).await;
    let callee = start(15, Role::Member, Vec::new(), addresses.clone()).answer_backwards();
    let caller = start(16, Role::Member, Vec::new(), addresses);
    // Both have only just started: the caller waits for its own way in, and for the callee's place at the relay.
    assert_eq!(
        caller
            .handle
            .request(callee.peer_id(), &[], b"ab".to_vec())
            .await,
        Ok(b"ba".to_vec())
    );
}

#[tokio::test]
async fn a_member_that_listens_is_asked_directly() {
    let mut callee = start(17, Role::Member, loopback(0).into(), Vec::new());
    let caller = start(18, Role::Member, Vec::new(), Vec::new());
    let SwarmEvent::ListenAddrs(addresses) = callee.next().await else {
        panic!("a listener comes first")
    };
    let callee = callee.answer_backwards();
    assert_eq!(
        caller
            .handle
            .request(callee.peer_id(), &addresses, b"ab".to_vec())
            .await,
        Ok(b"ba".to_vec())
    );
    assert!(
        caller
            .status()
            .await
            .connected
            .iter()
            .all(|peer| !peer.is_relayed)
    );
}

#[tokio::test]
async fn an_unreachable_peer_is_named_with_the_reason() {
    let (_fabric, addresses) = start_fabric(19).await;
    let mut caller = start(20, Role::Member, Vec::new(), addresses);
    caller.circuit().await;
    let nobody = identity(21).peer_id();
    let error = caller
        .handle
        .request(nobody, &["/ip4/127.0.0.1/tcp/1".into()], Vec::new())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RequestError::Unreachable { peer, reason } if *peer == nobody && reason.contains("refused")),
        "{error}"
    );
}

#[tokio::test]
async fn a_dropped_reply_is_told_from_an_empty_one() {
    let (_fabric, addresses) = start_fabric(22).await;
    let mut callee = start(23, Role::Member, Vec::new(), addresses.clone());
    let caller = start(24, Role::Member, Vec::new(), addresses);
    let circuit = vec![callee.circuit().await];
    let peer = callee.handle.peer_id();
    tokio::spawn(async move {
        let mut is_first = true;
        while let Some(event) = callee.events.recv().await {
            if let SwarmEvent::Request { reply, .. } = event
                && !std::mem::take(&mut is_first)
            {
                let _gone = reply.send(Vec::new());
            }
        }
    });
    assert!(matches!(
        caller.handle.request(peer, &circuit, vec![1]).await,
        Err(RequestError::Interrupted(_))
    ));
    assert_eq!(
        caller.handle.request(peer, &circuit, vec![1]).await,
        Ok(Vec::new())
    );
    assert!(matches!(
        caller
            .handle
            .request(peer, &circuit, vec![0; PAYLOAD_BYTES_MAX + 1])
            .await,
        Err(RequestError::TooLong(_))
    ));
    assert_eq!(
        caller
            .handle
            .request(peer, &circuit, vec![0; PAYLOAD_BYTES_MAX])
            .await,
        Ok(Vec::new())
    );
}

#[tokio::test]
async fn a_member_finds_its_way_back_when_the_fabric_node_restarts() {
    let (fabric, addresses) = start_fabric(25).await;
    let mut member = start(26, Role::Member, Vec::new(), addresses.clone());
    member.circuit().await;
    let fabric_id = fabric.handle.peer_id();

    fabric.handle.shutdown().await;
    let stopped = Instant::now();
    while !matches!(member.next().await, SwarmEvent::Disconnected(peer) if peer == fabric_id) {}
    let noticed = stopped.elapsed();
    let (key, value) = slot(26, b"back again");
    tokio::time::sleep(Duration::from_millis(700)).await; // an outage, longer than the first retries
    let listen = addresses
        .iter()
        .map(|address| peer::split_peer(address).0)
        .collect();
    let again = Instant::now();
    let fabric = start(25, Role::Fabric, listen, Vec::new());
    member.connected_to(fabric_id).await;
    let connected = again.elapsed();
    member.circuit().await;
    eprintln!(
        "loss noticed after {noticed:?}; connected {connected:?} after the restart, circuit {:?}",
        again.elapsed()
    );

    assert_eq!(member.handle.put_slot(value.encode()).await, Ok(1));
    assert_eq!(
        member.handle.get_slot(key.dht_key()).await,
        [value.encode()]
    );
    assert_eq!(member.status().await.counters.homes_lost, 1);
    drop(fabric);
}

#[tokio::test]
async fn an_unreachable_bootstrap_is_reported_and_a_second_one_used() {
    let (fabric, mut addresses) = start_fabric(27).await;
    addresses.insert(0, "/ip4/127.0.0.1/tcp/1".parse().unwrap());
    let mut member = start(28, Role::Member, Vec::new(), addresses);
    let (mut reported, mut connected) = (None, false);
    while reported.is_none() || !connected {
        match member.next().await {
            SwarmEvent::BootstrapUnreachable(status) => reported = Some(status),
            SwarmEvent::Connected(peer) => connected = peer == fabric.handle.peer_id(),
            _ => {}
        }
    }
    let reported = reported.unwrap();
    assert_eq!(reported.addresses, ["/ip4/127.0.0.1/tcp/1"]);
    assert!(
        matches!(reported.state, BootstrapState::Unreachable { attempts: 1, reason, .. } if reason.contains("refused"))
    );
    let status = member.status().await;
    assert!(
        status
            .bootstraps
            .iter()
            .any(|bootstrap| bootstrap.state == BootstrapState::Connected)
    );
}

#[tokio::test]
async fn a_member_with_a_public_address_serves_the_dht_and_takes_no_place_at_a_relay() {
    let (fabric, addresses) = start_fabric(62).await;
    let public: Multiaddr = "/ip4/203.0.113.9/udp/7654/quic-v1".parse().unwrap();
    let (identity, role) = (identity(63), Role::Member);
    let config = SwarmConfig {
        identity,
        listen: Vec::new(),
        external: vec![public],
        bootstrap: addresses,
        role,
        mdns: false,
        streams: None,
    };
    let (handle, events) = spawn(config).unwrap();
    let mut member = Node { handle, events };
    while !matches!(member.next().await, SwarmEvent::FabricSeen { peer, .. } if peer == fabric.handle.peer_id())
    {
    }
    let status = member.status().await;
    assert!(status.is_dht_server);
    assert!(status.reserved_at.is_empty());
    let (_, value) = slot(63, b"kept here and there");
    assert_eq!(member.handle.put_slot(value.encode()).await, Ok(2));
    assert_eq!(member.status().await.slots_stored, 1);
}

#[tokio::test]
async fn addresses_of_the_overlays_own_networks_are_not_published() {
    let mut member = start(64, Role::Member, loopback(0).into(), Vec::new());
    let SwarmEvent::ListenAddrs(_) = member.next().await else {
        panic!("a listener comes first")
    };
    member
        .handle
        .set_hidden(vec![("127.0.0.0".parse().unwrap(), 8)])
        .await;
    while !matches!(member.next().await, SwarmEvent::ListenAddrs(published) if published.is_empty())
    {
    }
}

#[tokio::test]
async fn a_blocked_peer_is_disconnected_and_stays_out_until_let_in() {
    let (_fabric, addresses) = start_fabric(29).await;
    let callee = start(30, Role::Member, Vec::new(), addresses.clone()).answer_backwards();
    let caller = start(31, Role::Member, Vec::new(), addresses);
    let ask = || caller.handle.request(callee.peer_id(), &[], b"ab".to_vec());
    ask().await.unwrap();
    callee.set_blocked(caller.handle.peer_id(), true).await;
    assert!(ask().await.is_err());
    callee.set_blocked(caller.handle.peer_id(), false).await;
    ask().await.unwrap();
}

#[tokio::test]
async fn two_fabric_nodes_share_the_slots_of_their_members() {
    let (first, first_addresses) = start_fabric(32).await;
    let mut second = start(
        33,
        Role::Fabric,
        loopback(0).into(),
        first_addresses.clone(),
    );
    let mut second_addresses = Vec::new();
    while second_addresses.len() < 2 {
        let SwarmEvent::ListenAddrs(published) = second.next().await else {
            continue;
        };
        second_addresses = published
            .iter()
            .map(|text| with_peer(text.parse().unwrap(), second.handle.peer_id()))
            .collect();
    }
    second.connected_to(first.handle.peer_id()).await;
    let mut reader = start(35, Role::Member, Vec::new(), second_addresses);
    reader.circuit().await;
    let (key, value) = slot(34, b"everywhere");
    let writer = start(34, Role::Member, Vec::new(), first_addresses);

    assert!(writer.handle.put_slot(value.encode()).await.unwrap() >= 1);
    assert_eq!(
        reader.handle.get_slot(key.dht_key()).await,
        [value.encode()]
    );
    // And each reaches the other's members, by the addresses these publish.
    let mut callee = start(36, Role::Member, Vec::new(), vec![]);
    for address in &loopback(1) {
        callee.handle.add_bootstrap(address.clone()).await; // nobody there
    }
    for address in first.status().await.published {
        callee
            .handle
            .add_bootstrap(with_peer(address.parse().unwrap(), first.handle.peer_id()))
            .await;
    }
    let circuit = callee.circuit().await;
    let callee = callee.answer_backwards();
    assert_eq!(
        reader
            .handle
            .request(callee.peer_id(), &[circuit], b"ab".to_vec())
            .await,
        Ok(b"ba".to_vec())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_members_write_and_read_each_others_slots() {
    let (fabric, addresses) = start_fabric(40).await;
    let started = Instant::now();
    let members: Vec<Node> = (41..61)
        .map(|seed| start(seed, Role::Member, Vec::new(), addresses.clone()))
        .collect();
    let slots: Vec<_> = (41..61)
        .map(|seed| slot(seed, format!("member {seed}").as_bytes()))
        .collect();

    let puts = members
        .iter()
        .zip(&slots)
        .map(|(member, (_, value))| member.handle.put_slot(value.encode()));
    assert!(
        futures::future::join_all(puts)
            .await
            .into_iter()
            .all(|stored| stored == Ok(1))
    );
    let put = started.elapsed();
    let reads = members.iter().flat_map(|member| {
        slots.iter().map(|(key, value)| async {
            member.handle.get_slot(key.dht_key()).await == [value.encode()]
        })
    });
    let read = futures::future::join_all(reads).await;
    eprintln!(
        "20 joins and puts {put:?}, 400 gets {:?}",
        started.elapsed() - put
    );

    assert_eq!(read.iter().filter(|ok| **ok).count(), 400);
    assert_eq!(fabric.status().await.slots_stored, 20);
    assert_eq!(
        members[0].status().await.reserved_at,
        [fabric.handle.peer_id()]
    );
}
