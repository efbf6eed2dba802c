//! Slot values and the store that keeps them for others, bundles of values, and signed records.

use crate::input::{Edits, broken, one};
use crate::network::{NOW, WORLD};
use bolero::{TypeGenerator, check};
use dht::directory::Directory;
use dht::identity::{Domain, Identity};
use dht::lease::LeaseCert;
use dht::membership::MembershipCert;
use dht::record::{
    ControlPoint, NodeRecord, RendezvousRecord, decode_node_record, decode_rendezvous_record,
};
use dht::signed::{Signed, Verified};
use dht::slot::{SLOT_VALUE_MAX, SlotKey, SlotLimits, SlotName, SlotStore, SlotValue, Source};
use dht::swarm::parse_bundle;
use overlay_types::PeerId;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::sync::LazyLock;

fn slot(n: u8) -> SlotKey {
    SlotKey::derive(&[n % 4; 32], &SlotName::Node(WORLD.member.peer_id()))
}

fn value(n: u8, seq: u64, content: &[u8]) -> Vec<u8> {
    let mut rng = ChaCha20Rng::seed_from_u64(seq);
    slot(n).seal(content, seq, 7200, &mut rng).unwrap().encode()
}

#[test]
fn slot_values_are_read() {
    static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| value(0, NOW * 1000, b"content"));
    check!()
        .with_type()
        .for_each(|(edits, bytes, unix): &(Edits, Vec<u8>, u64)| {
            for bytes in [broken(&SOUND, edits), bytes.clone()] {
                let Ok(value) = SlotValue::decode(&bytes) else {
                    continue;
                };
                assert!(bytes.len() <= SLOT_VALUE_MAX);
                let _ = value.verify(*unix);
                if slot(0).open(&value, NOW).is_ok() {
                    assert_eq!(value.encode(), *SOUND, "only the sound one opens");
                }
            }
        });
}

#[derive(Clone, Debug, TypeGenerator)]
enum Put {
    Sealed {
        slot: u8,
        seq: u16,
        size: u16,
        from: u8,
        edits: Edits,
    },
    /// A few bytes of edits seldom leave the signature right.
    Sound {
        slot: u8,
        seq: u16,
        size: u16,
        from: u8,
    },
    Raw(Vec<u8>),
    Get(u8),
    Wait(u16),
}

#[test]
fn a_slot_store_stays_within_its_bounds() {
    check!().with_type().for_each(|puts: &Vec<Put>| {
        let mut unix = NOW;
        let limits = SlotLimits {
            values_per_peer: 3,
            values_per_site: 5,
            bytes_max: 8192,
        };
        let mut store = SlotStore::new(limits);
        for put in puts.iter().take(64) {
            let source = |from: u8| Source {
                peer: PeerId([from % 4; 32]),
                ip: (!from.is_multiple_of(5)).then(|| [10, 0, from % 3, from].into()),
            };
            let sealed = |slot: u8, seq: u16, size: u16| {
                value(
                    slot,
                    unix * 1000 + u64::from(seq),
                    &vec![0; usize::from(size % 3000)],
                )
            };
            let (bytes, from) = match put {
                Put::Sealed {
                    slot,
                    seq,
                    size,
                    from,
                    edits,
                } => (broken(&sealed(*slot, *seq, *size), edits), *from),
                Put::Sound {
                    slot,
                    seq,
                    size,
                    from,
                } => (sealed(*slot, *seq, *size), *from),
                Put::Raw(bytes) => (bytes.clone(), 0),
                Put::Get(n) => {
                    assert!(store.get(&slot(*n).dht_key(), unix).len() <= 4);
                    continue;
                }
                Put::Wait(seconds) => {
                    unix += u64::from(*seconds);
                    store.expire(unix);
                    continue;
                }
            };
            if let Ok(key) = store.put(&bytes, source(from), unix) {
                assert!(!store.get(&key, unix).is_empty(), "what is taken is there");
            }
            assert!(store.len() <= 12, "three of each of four peers");
        }
        store.expire(u64::MAX);
        assert!(store.is_empty());
    });
}

#[test]
fn bundles_of_values_are_read() {
    check!()
        .with_type()
        .for_each(|(sizes, edits): &(Vec<u8>, Edits)| {
            let bundle: Vec<u8> = sizes
                .iter()
                .flat_map(|&n| [&u16::from(n).to_be_bytes()[..], &vec![n; n.into()]].concat())
                .collect();
            let bundle = broken(&bundle, edits);
            let values = parse_bundle(&bundle);
            let total: usize = values.iter().map(|value| value.len() + 2).sum();
            assert!(values.len() <= 4 && total <= bundle.len());
        });
}

/// `body` under a true signature of `author`, as [`Signed`] is written.
fn signed(author: &Identity, domain: Domain, body: &[u8]) -> Vec<u8> {
    let mut bytes = author.peer_id().0.to_vec();
    let mut length = body.len();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(&author.sign(domain, body).0);
    bytes
}

/// The body within the bytes of a signed value: behind the author and a length of two bytes, before the signature.
fn body(signed: &[u8]) -> &[u8] {
    &signed[34..signed.len() - 64]
}

#[test]
fn signed_node_records_are_read_and_looked_up() {
    static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let record = Verified::sign(WORLD.record(), &WORLD.member).unwrap();
        record.signed().to_bytes()
    });
    assert!(decode_node_record(&signed(&WORLD.member, Domain::NodeRecord, body(&SOUND))).is_some());
    check!()
        .with_type()
        .for_each(|(edits, whole, unix): &(Edits, bool, u16)| {
            let bytes = if *whole {
                broken(&SOUND, edits)
            } else {
                signed(
                    &WORLD.member,
                    Domain::NodeRecord,
                    &broken(body(&SOUND), edits),
                )
            };
            if let Ok(read) = Signed::<NodeRecord>::from_bytes(&bytes) {
                assert_eq!(Signed::from_bytes(&read.to_bytes()), Ok(read));
            }
            let Some(record) = decode_node_record(&bytes) else {
                return;
            };
            let mut directory = Directory::new(PeerId([0; 32]), WORLD.network.clone());
            let unix = NOW + u64::from(*unix);
            if directory.insert(record, unix).is_ok() {
                for binding in directory.bindings(unix).to_vec() {
                    let _ = directory.by_address(binding.ip, unix);
                }
                let _ = (directory.roster(0), directory.expire(u64::MAX));
            }
        });
}

#[test]
fn rendezvous_records_are_read() {
    static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let record = RendezvousRecord {
            network: WORLD.network.id(),
            seq: 1,
            expires: NOW,
            registrars: vec![ControlPoint {
                peer: WORLD.owner.peer_id(),
                addresses: vec!["/ip4/192.0.2.1/tcp/1".into(); 2],
            }],
        };
        let record = Verified::sign(record, &WORLD.owner).unwrap();
        record.signed().to_bytes()
    });
    check!()
        .with_type()
        .for_each(|(edits, whole): &(Edits, bool)| {
            let bytes = if *whole {
                broken(&SOUND, edits)
            } else {
                signed(
                    &WORLD.owner,
                    Domain::RendezvousRecord,
                    &broken(body(&SOUND), edits),
                )
            };
            let _ = decode_rendezvous_record(&bytes);
        });
}

#[test]
fn certificates_are_believed_only_whole() {
    check!()
        .with_type()
        .for_each(|(choice, edits, unix): &(u8, Edits, u64)| {
            let membership = WORLD.membership.to_bytes();
            let sound = one(
                &[membership, WORLD.lease.to_bytes(), WORLD.block.to_bytes()],
                *choice,
            )
            .clone();
            let bytes = broken(&sound, edits);
            if let Ok(cert) = MembershipCert::from_bytes(&bytes) {
                let _ = WORLD.network.verify_membership(&cert, *unix);
                if WORLD.network.verify_membership(&cert, NOW).is_ok() {
                    assert_eq!(*cert, *WORLD.membership);
                }
            }
            if let Ok(cert) = LeaseCert::from_bytes(&bytes)
                && WORLD.network.verify_lease(&cert).is_ok()
            {
                assert!(*cert == *WORLD.lease || *cert == *WORLD.block);
            }
        });
}
