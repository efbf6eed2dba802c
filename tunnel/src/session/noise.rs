//! The Noise protocol that we speak, by `snow`, fed with our seeded randomness so that a run repeats.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};

use super::keys::LocalKeys;
use crate::wire::handshake::{HANDSHAKE_HEADER_BYTES, HandshakeHeader};
use overlay_types::NetworkId;
use zerocopy::IntoBytes;
use zeroize::Zeroize;

/// WireGuard's pattern and primitives; the PSK is mixed in with the second message.
const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// Where IKpsk2 takes its PSK.
pub(super) const PSK_PLACE: usize = 2;
const PROTOCOL: &[u8; 8] = b"farlan-1";

/// One side of a handshake; `remote` is known to the initiator only.
///
/// The prologue holds the network id, so that sessions of two networks never mix, and the initiation's header, so that
/// nobody can change the offered suite on the way.
pub(super) fn start(
    local: &LocalKeys,
    remote: Option<&[u8; 32]>,
    network: NetworkId,
    header: &HandshakeHeader,
    rng: &mut ChaCha20Rng,
) -> Result<HandshakeState, snow::Error> {
    let mut prologue = [0; 8 + 32 + HANDSHAKE_HEADER_BYTES];
    prologue[..8].copy_from_slice(PROTOCOL);
    prologue[8..40].copy_from_slice(&network.0);
    prologue[40..].copy_from_slice(header.as_bytes());
    let params: NoiseParams = PATTERN.parse()?;
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    let resolver = SeededResolver {
        seed,
        standard: DefaultResolver,
    };
    seed.zeroize();
    let builder = Builder::with_resolver(params, Box::new(resolver))
        .local_private_key(local.x25519_secret())?
        .prologue(&prologue)?;
    match remote {
        Some(key) => builder.remote_public_key(key)?.build_initiator(),
        None => builder.build_responder(),
    }
}

/// The standard primitives, but randomness from a seed.
struct SeededResolver {
    seed: [u8; 32],
    standard: DefaultResolver,
}

impl Drop for SeededResolver {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

impl CryptoResolver for SeededResolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SeededRandom(ChaCha20Rng::from_seed(self.seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        Some(Box::new(ContributoryDh(self.standard.resolve_dh(choice)?)))
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        self.standard.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        self.standard.resolve_cipher(choice)
    }
}

struct SeededRandom(ChaCha20Rng);

impl Random for SeededRandom {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(dest);
        Ok(())
    }
}

/// X25519 that refuses to agree on nothing: `snow` lets a key of small order pass, which makes the secret all zeros
/// whatever our own key is (RFC 7748 §6.1).
struct ContributoryDh(Box<dyn Dh>);

impl Dh for ContributoryDh {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn pub_len(&self) -> usize {
        self.0.pub_len()
    }

    fn priv_len(&self) -> usize {
        self.0.priv_len()
    }

    fn set(&mut self, privkey: &[u8]) {
        self.0.set(privkey);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        self.0.generate(rng)
    }

    fn pubkey(&self) -> &[u8] {
        self.0.pubkey()
    }

    fn privkey(&self) -> &[u8] {
        self.0.privkey()
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        self.0.dh(pubkey, out)?;
        let gathered = out
            .iter()
            .take(self.dh_len())
            .fold(0, |all, byte| all | byte);
        if gathered == 0 {
            Err(snow::Error::Dh)
        } else {
            Ok(())
        }
    }

    fn dh_len(&self) -> usize {
        self.0.dh_len()
    }
}
