//! The public keys that a node's data plane is reached by, certified in its node record.

use serde::{Deserialize, Serialize};

/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203).
pub const KEM_KEY_BYTES: usize = 1184;

/// A node's public data keys in one network: X25519 for Noise, ML-KEM-768 against quantum adversaries.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct DataKeys {
    /// X25519 public key (RFC 7748).
    pub x25519: [u8; 32],
    /// ML-KEM-768 encapsulation key, [`KEM_KEY_BYTES`] long; whoever uses it checks that.
    pub kem: Vec<u8>,
}
