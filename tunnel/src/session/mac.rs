//! mac1 and mac2 of handshake messages: proof that the sender knows whom it talks to, and that it owns its address.
//! Neither is a secret among members; they keep strangers from being answered and from costing us public-key work.

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, Mac, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use overlay_types::NetworkId;

use crate::wire::handshake::{HandshakeHeader, INITIATION_BYTES, MAC_BYTES, RESPONSE_BYTES};

/// BLAKE2s of `label`, the network and the key of whom the message goes to.
pub(super) fn label_key(label: &[u8], network: NetworkId, receiver: &[u8; 32]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    Update::update(&mut hash, label);
    Update::update(&mut hash, &network.0);
    Update::update(&mut hash, receiver);
    hash.finalize().into()
}

/// BLAKE2s-128 of `bytes` under `key` of at most 32 bytes.
pub(super) fn keyed(key: &[u8], bytes: &[u8]) -> [u8; MAC_BYTES] {
    let mut mac =
        <Blake2sMac<U16> as Mac>::new_from_slice(key).expect("keys here have 16 or 32 bytes");
    Update::update(&mut mac, bytes);
    mac.finalize_fixed().into()
}

/// mac1 over a message up to mac1, for the member of `network` with the key `receiver`.
pub fn mac1(network: NetworkId, receiver: &[u8; 32], before: &[u8]) -> [u8; MAC_BYTES] {
    keyed(&label_key(b"mac1", network, receiver), before)
}

/// Where mac1 lies in an initiation or response.
pub(super) fn mac1_at(message: &[u8]) -> Option<usize> {
    HandshakeHeader::parse(message)?;
    match message.len() {
        RESPONSE_BYTES => Some(RESPONSE_BYTES - MAC_BYTES),
        len if len >= INITIATION_BYTES => Some(INITIATION_BYTES - MAC_BYTES),
        _ => None,
    }
}

/// Whether `message`, an initiation or a response, is meant for the member of `network` with the key `local_public`.
pub fn mac1_matches(local_public: &[u8; 32], network: NetworkId, message: &[u8]) -> bool {
    let Some(at) = mac1_at(message) else {
        return false;
    };
    equal(
        &mac1(network, local_public, &message[..at]),
        &message[at..at + MAC_BYTES],
    )
}

/// Compares in constant time.
pub(super) fn equal(a: &[u8], b: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a, b).is_ok()
}
