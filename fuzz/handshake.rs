//! Handshake messages, with their mac1 made right again: whoever knows the network can do that.

use crate::input::{Edits, broken};
use crate::wire::NETWORK;
use bolero::check;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use std::sync::LazyLock;
use std::time::Instant;
use tunnel::session::{
    Admission, HandshakeGate, Initiator, LocalKeys, SessionSlot, answer_challenge, answer_is_by,
    answered_nonce, challenge, mac1, mac1_matches, open_initiation,
};
use tunnel::wire::handshake::{INITIATION_BYTES, MAC_BYTES, RESPONSE_BYTES};

static ALICE: LazyLock<LocalKeys> = LazyLock::new(|| LocalKeys::generate(&mut rng(1)));
static BOB: LazyLock<LocalKeys> = LazyLock::new(|| LocalKeys::generate(&mut rng(2)));
const PSK: [u8; 32] = [3; 32];

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn begin() -> (Initiator, Vec<u8>) {
    let slot = SessionSlot::from_low_bits(1);
    let bob = BOB.public();
    Initiator::start(
        &ALICE,
        &bob,
        NETWORK,
        &PSK,
        slot,
        5,
        None,
        true,
        &mut rng(4),
    )
    .unwrap()
}

static INITIATION: LazyLock<Vec<u8>> = LazyLock::new(|| begin().1);

/// Makes mac1 fit the rest, where there is room for one.
fn remacked(mut message: Vec<u8>, usual: usize, receiver: &[u8; 32]) -> Vec<u8> {
    if let Some(at) = usual
        .checked_sub(MAC_BYTES)
        .filter(|_| message.len() >= usual)
    {
        let mac = mac1(NETWORK, receiver, &message[..at]);
        message[at..usual].copy_from_slice(&mac);
    }
    message
}

#[test]
fn path_challenges_are_answered() {
    check!()
        .with_type()
        .for_each(|(edits, nonce): &(Edits, [u8; 8])| {
            let bob = BOB.public().x25519;
            let asked = challenge(NETWORK, &bob, *nonce);
            let message = broken(&asked, edits);
            assert_eq!(answered_nonce(&asked), None);
            let Some(answer) = answer_challenge(&bob, NETWORK, &message) else {
                assert_ne!(message, asked, "what is right is answered");
                let _ = (
                    answered_nonce(&message),
                    answer_is_by(&bob, NETWORK, &message),
                );
                return;
            };
            assert_eq!(answer.len(), message.len(), "in no more bytes");
            assert_eq!(answered_nonce(&answer), Some(*nonce));
            assert!(answer_is_by(&bob, NETWORK, &answer));
            assert!(!answer_is_by(&ALICE.public().x25519, NETWORK, &answer));
            let answer = broken(&answer, edits);
            let _ = (
                answered_nonce(&answer),
                answer_is_by(&bob, NETWORK, &answer),
            );
        });
}

#[test]
fn initiations_are_opened() {
    check!()
        .with_type()
        .for_each(|(edits, remac, load): &(Edits, bool, bool)| {
            let bob = BOB.public().x25519;
            let mut message = broken(&INITIATION, edits);
            if *remac {
                message = remacked(message, INITIATION_BYTES, &bob);
            }
            if !mac1_matches(&bob, NETWORK, &message) {
                assert_ne!(message, *INITIATION);
                return;
            }
            if *load {
                let (now, mut rng) = (Instant::now(), rng(6));
                let mut gate = HandshakeGate::new(&mut rng, now);
                let from = ([192, 0, 2, 1], 4000).into();
                for _ in 0..300 {
                    if let Admission::Reply(reply) =
                        gate.admit(from, &message, &bob, NETWORK, now, &mut rng)
                    {
                        assert!(reply.len() < message.len());
                        break;
                    }
                }
            }
            let opened = open_initiation(&BOB, NETWORK, &message, &mut rng(7));
            assert_eq!(
                opened.is_ok(),
                message[..INITIATION_BYTES] == INITIATION[..]
            );
            if let Ok(initiation) = opened {
                let slot = SessionSlot::from_low_bits(2);
                assert!(initiation.respond(&PSK, slot, 2000, true).is_ok());
            }
        });
}

#[test]
fn responses_and_cookies_are_read() {
    let (response, _) = open_initiation(&BOB, NETWORK, &INITIATION, &mut rng(7))
        .unwrap()
        .respond(&PSK, SessionSlot::from_low_bits(2), 2000, true)
        .unwrap();
    check!().with_type().for_each(|(edits, remac, cookie): &(Edits, bool, Vec<u8>)| {
        thread_local!(static WAITING: std::cell::Cell<Option<Initiator>> = const { std::cell::Cell::new(None) });
        let alice = ALICE.public().x25519;
        let mut message = broken(&response, edits);
        if *remac {
            message = remacked(message, RESPONSE_BYTES, &alice);
        }
        // One handshake waits through all forgeries, as it does in life.
        let mut waiting = WAITING.take().unwrap_or_else(|| begin().0);
        assert!(waiting.handle_cookie_reply(&broken(cookie, edits)).is_err());
        match waiting.handle_response(&message) {
            Ok(_) => assert_eq!(message, response, "only the true response makes a session"),
            Err((waiting, _)) => WAITING.set(Some(waiting)),
        }
    });
}
