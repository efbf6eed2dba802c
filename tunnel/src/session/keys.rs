//! A node's own data keys in one network. The node signs their public half; storing them is the node's business.

use hkdf::Hkdf;
use ml_kem::kem::Decapsulate;
use ml_kem::{B32, EncapsulateDeterministic, Encoded, EncodedSizeUser, KemCore, MlKem768};
use overlay_types::{DataKeys, KEM_KEY_BYTES};
use rand::RngCore;
use rand_chacha::ChaCha20Rng;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use crate::wire::handshake::KEM_CIPHERTEXT_BYTES;

type KemSecret = <MlKem768 as KemCore>::DecapsulationKey;
type KemPublic = <MlKem768 as KemCore>::EncapsulationKey;

/// X25519 secret, and the seeds `d` and `z` that FIPS 203 derives the ML-KEM key from.
const STORED_BYTES: usize = 32 + 64;

/// The secret halves of a node's data keys.
pub struct LocalKeys {
    seeds: Zeroizing<[u8; STORED_BYTES]>,
    kem: KemSecret,
    public: DataKeys,
}

/// The stored bytes are not data keys.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "these are not data keys: expected {STORED_BYTES} bytes; delete the file and the node makes new ones"
)]
pub struct InvalidKeys;

impl LocalKeys {
    /// New keys.
    pub fn generate(rng: &mut ChaCha20Rng) -> Self {
        let mut seeds = Zeroizing::new([0; STORED_BYTES]);
        rng.fill_bytes(seeds.as_mut_slice());
        Self::from_seeds(seeds)
    }

    /// What to store, in a file only the node can read.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.seeds.to_vec())
    }

    /// Keys as [`Self::to_bytes`] gave them.
    ///
    /// # Errors
    /// [`InvalidKeys`] when the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidKeys> {
        let seeds: [u8; STORED_BYTES] = bytes.try_into().map_err(|_| InvalidKeys)?;
        Ok(Self::from_seeds(Zeroizing::new(seeds)))
    }

    fn from_seeds(seeds: Zeroizing<[u8; STORED_BYTES]>) -> Self {
        let mut x25519_secret = x25519_dalek::StaticSecret::from(first_32(&seeds[..32]));
        let (mut d, mut z) = (
            B32::from(first_32(&seeds[32..64])),
            B32::from(first_32(&seeds[64..])),
        );
        let (kem, kem_public) = MlKem768::generate_deterministic(&d, &z);
        let public = DataKeys {
            x25519: x25519_dalek::PublicKey::from(&x25519_secret).to_bytes(),
            kem: kem_public.as_bytes().to_vec(),
        };
        d.zeroize();
        z.zeroize();
        x25519_secret.zeroize();
        Self { seeds, kem, public }
    }

    /// The public halves, to be published under the node's signature.
    pub fn public(&self) -> DataKeys {
        self.public.clone()
    }

    /// The public X25519 key alone.
    pub const fn x25519(&self) -> &[u8; 32] {
        &self.public.x25519
    }

    pub(super) fn x25519_secret(&self) -> &[u8] {
        &self.seeds[..32]
    }

    /// The secret inside `ciphertext`. A wrong ciphertext gives a wrong secret, as FIPS 203 has it, never an error.
    pub(super) fn decapsulate(
        &self,
        ciphertext: &[u8; KEM_CIPHERTEXT_BYTES],
    ) -> Zeroizing<[u8; 32]> {
        let secret = self
            .kem
            .decapsulate(&(*ciphertext).into())
            .expect("ML-KEM rejects implicitly, by another secret");
        Zeroizing::new(secret.into())
    }
}

impl std::fmt::Debug for LocalKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalKeys").finish_non_exhaustive()
    }
}

fn first_32(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().expect("callers slice 32 bytes")
}

/// A fresh secret for the owner of `kem_key`, and the ciphertext that carries it; none when that is no ML-KEM-768 key.
pub(super) fn encapsulate(
    kem_key: &[u8],
    rng: &mut ChaCha20Rng,
) -> Option<([u8; KEM_CIPHERTEXT_BYTES], Zeroizing<[u8; 32]>)> {
    let encoded: [u8; KEM_KEY_BYTES] = kem_key.try_into().ok()?;
    let key = KemPublic::from_bytes(&Encoded::<KemPublic>::from(encoded));
    // FIPS 203 §7.2, modulus check: a key that does not encode to itself is none.
    if key.as_bytes().as_slice() != kem_key {
        return None;
    }
    let mut seed = B32::default();
    rng.fill_bytes(&mut seed);
    let (ciphertext, secret) = key.encapsulate_deterministic(&seed).ok()?;
    seed.zeroize();
    Some((ciphertext.into(), Zeroizing::new(secret.into())))
}

/// The Noise PSK: from the ML-KEM secret and the network's own key, so that whoever lacks either gets nowhere.
pub(super) fn handshake_psk(kem_secret: &[u8; 32], network_psk: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    let mut psk = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(network_psk), kem_secret)
        .expand(b"farlan psk2", psk.as_mut_slice())
        .expect("32 bytes are one block");
    psk
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn stored_keys_come_back_with_the_same_public_half() {
        let keys = LocalKeys::generate(&mut ChaCha20Rng::seed_from_u64(1));
        let again = LocalKeys::from_bytes(&keys.to_bytes()).unwrap();
        assert_eq!(keys.public(), again.public());
        assert_eq!(keys.public().kem.len(), KEM_KEY_BYTES);
        assert_eq!(LocalKeys::from_bytes(&[0; 95]).unwrap_err(), InvalidKeys);
    }

    #[test]
    fn what_is_encapsulated_to_a_key_is_decapsulated_with_it() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let keys = LocalKeys::generate(&mut rng);
        let (ciphertext, secret) = encapsulate(&keys.public().kem, &mut rng).unwrap();
        assert_eq!(keys.decapsulate(&ciphertext), secret);
    }

    #[test]
    fn a_kem_key_with_coefficients_beyond_the_modulus_is_refused() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        assert!(encapsulate(&[0xff; KEM_KEY_BYTES], &mut rng).is_none());
        assert!(encapsulate(&[0; 7], &mut rng).is_none());
    }
}
