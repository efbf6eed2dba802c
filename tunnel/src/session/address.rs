//! Whether a member receives at an address, asked and answered before there is a session: only the member with the key that is
//! meant answers, in as many bytes. An answer proves that its sender received the question, and nothing about who that is.

use overlay_types::NetworkId;
use zerocopy::IntoBytes;

use super::mac;
use crate::wire::path_challenge::{PATH_CHALLENGE_BYTES, PATH_MAC_BYTES, PathChallenge};

/// Asks whether the member of `network` with the key `receiver` receives where this is sent.
pub fn challenge(
    network: NetworkId,
    receiver: &[u8; 32],
    nonce: [u8; 8],
) -> [u8; PATH_CHALLENGE_BYTES] {
    finish(network, receiver, PathChallenge::ask(nonce))
}

/// The answer of the member with the key `local_public`, if `datagram` asks for it.
pub fn answer_challenge(
    local_public: &[u8; 32],
    network: NetworkId,
    datagram: &[u8],
) -> Option<[u8; PATH_CHALLENGE_BYTES]> {
    let asked = PathChallenge::parse(datagram).filter(PathChallenge::is_question)?;
    is_by(network, local_public, &asked).then(|| finish(network, local_public, asked.answer()))
}

/// The nonce of the question that `datagram` answers. Whose key it must be made for is known by the nonce; see
/// [`answer_is_by`].
pub fn answered_nonce(datagram: &[u8]) -> Option<[u8; 8]> {
    let answer = PathChallenge::parse(datagram).filter(|parsed| !parsed.is_question())?;
    Some(answer.nonce)
}

/// Whether an answer is made for the member that was asked.
pub fn answer_is_by(remote_public: &[u8; 32], network: NetworkId, datagram: &[u8]) -> bool {
    PathChallenge::parse(datagram).is_some_and(|answer| is_by(network, remote_public, &answer))
}

fn finish(
    network: NetworkId,
    key: &[u8; 32],
    mut message: PathChallenge,
) -> [u8; PATH_CHALLENGE_BYTES] {
    message.mac = path_mac(network, key, &message);
    let mut bytes = [0; PATH_CHALLENGE_BYTES];
    bytes.copy_from_slice(message.as_bytes());
    bytes
}

fn is_by(network: NetworkId, key: &[u8; 32], message: &PathChallenge) -> bool {
    mac::equal(&path_mac(network, key, message), &message.mac)
}

fn path_mac(network: NetworkId, key: &[u8; 32], message: &PathChallenge) -> [u8; PATH_MAC_BYTES] {
    let whole = mac::keyed(&mac::label_key(b"path", network, key), message.macked());
    *whole.first_chunk().expect("a mac is twice as long")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NETWORK: NetworkId = NetworkId([1; 32]);
    const KEY: [u8; 32] = [2; 32];

    #[test]
    fn only_the_member_that_is_meant_answers_and_in_as_many_bytes() {
        let asked = challenge(NETWORK, &KEY, [7; 8]);
        let answer = answer_challenge(&KEY, NETWORK, &asked).unwrap();
        assert_eq!(answer.len(), asked.len());
        assert_eq!(answered_nonce(&answer), Some([7; 8]));
        assert!(answer_is_by(&KEY, NETWORK, &answer));
        assert!(!answer_is_by(&[3; 32], NETWORK, &answer));
        assert_eq!(answer_challenge(&[3; 32], NETWORK, &asked), None);
        assert_eq!(answer_challenge(&KEY, NetworkId([9; 32]), &asked), None);
    }

    #[test]
    fn an_answer_is_not_answered_and_an_echo_is_no_answer() {
        let asked = challenge(NETWORK, &KEY, [7; 8]);
        let answer = answer_challenge(&KEY, NETWORK, &asked).unwrap();
        assert_eq!(answer_challenge(&KEY, NETWORK, &answer), None);
        assert_eq!(answered_nonce(&asked), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40), kind in 0x80u8..0x90) {
            let mut bytes = bytes;
            if let [first, version, ..] = &mut bytes[..] {
                (*first, *version) = (kind, 1);
            }
            prop_assert_eq!(answer_challenge(&KEY, NETWORK, &bytes), None);
            prop_assert!(!answer_is_by(&KEY, NETWORK, &bytes));
        }

        #[test]
        fn a_flipped_bit_is_refused(bit in 0..PATH_CHALLENGE_BYTES * 8) {
            let mut asked = challenge(NETWORK, &KEY, [7; 8]);
            asked[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(answer_challenge(&KEY, NETWORK, &asked), None);
        }
    }
}
