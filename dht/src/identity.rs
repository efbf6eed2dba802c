//! A node's long-lived key: what it signs with, and how others check that.
//! Where the key is kept, and whether this is still the same machine, is the node's to know.

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use overlay_types::PeerId;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use zeroize::Zeroizing;

/// What a signature is for. A signature made for one purpose says nothing in another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Domain {
    /// A node record.
    NodeRecord,
    /// Where the registrars are.
    RendezvousRecord,
    /// A version of the network document.
    NetworkDocument,
    /// A registrar's share of a membership certificate.
    Membership,
    /// A registrar's share of an address or block certificate.
    Lease,
    /// A holder giving its lease back.
    Release,
    /// A value in the DHT, signed with the slot's own key.
    Slot,
}

impl Domain {
    const fn label(self) -> &'static str {
        match self {
            Self::NodeRecord => "farlan-1 node record",
            Self::RendezvousRecord => "farlan-1 rendezvous record",
            Self::NetworkDocument => "farlan-1 network document",
            Self::Membership => "farlan-1 membership",
            Self::Lease => "farlan-1 lease",
            Self::Release => "farlan-1 release",
            Self::Slot => "farlan-1 slot",
        }
    }

    /// What is really signed: the label, a zero byte that no label contains, the message.
    fn framed(self, message: &[u8]) -> Vec<u8> {
        [self.label().as_bytes(), &[0], message].concat()
    }
}

/// An Ed25519 signature (RFC 8032).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

// serde has no arrays of 64; two of 32 are the same bytes on our wire.
impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let (r, t) = self.0.split_at(32);
        let halves: (&[u8; 32], &[u8; 32]) = (
            r.try_into().expect("half of 64 is 32"),
            t.try_into().expect("half of 64 is 32"),
        );
        halves.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (r, t) = <([u8; 32], [u8; 32])>::deserialize(d)?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&r);
        bytes[32..].copy_from_slice(&t);
        Ok(Self(bytes))
    }
}

/// A node's Ed25519 key. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey, // zeroizes itself (feature `zeroize`)
}

impl Identity {
    /// A new identity.
    pub fn generate(rng: &mut ChaCha20Rng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        Self::from_bytes(&seed)
    }

    /// The identity with this secret (RFC 8032's 32-byte seed).
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        Self {
            key: SigningKey::from_bytes(secret),
        }
    }

    /// The secret, to be stored with mode 0600 or handed to libp2p.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.key.to_bytes())
    }

    /// What others know this node by.
    pub fn peer_id(&self) -> PeerId {
        PeerId(self.key.verifying_key().to_bytes())
    }

    /// Signs `message` for one purpose.
    pub fn sign(&self, domain: Domain, message: &[u8]) -> Signature {
        Signature(self.key.sign(&domain.framed(message)).to_bytes())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.peer_id())
    }
}

/// Checks that `author` signed `message` for this purpose (strictly: no small-order keys, no malleable signatures).
///
/// # Errors
/// [`BadSignature`] when it did not.
pub fn verify(
    author: PeerId,
    domain: Domain,
    message: &[u8],
    signature: &Signature,
) -> Result<(), BadSignature> {
    let key = VerifyingKey::from_bytes(&author.0).map_err(|_| BadSignature)?;
    key.verify_strict(
        &domain.framed(message),
        &ed25519_dalek::Signature::from_bytes(&signature.0),
    )
    .map_err(|_| BadSignature)
}

/// The signature is not of this author over these bytes for this purpose.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the signature does not fit")]
pub struct BadSignature;

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn a_signature_holds_for_its_purpose_author_and_bytes_only() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let (a, b) = (Identity::generate(&mut rng), Identity::generate(&mut rng));
        let signature = a.sign(Domain::Lease, b"x");

        assert_eq!(verify(a.peer_id(), Domain::Lease, b"x", &signature), Ok(()));
        assert!(verify(a.peer_id(), Domain::Membership, b"x", &signature).is_err());
        assert!(verify(b.peer_id(), Domain::Lease, b"x", &signature).is_err());
        assert!(verify(a.peer_id(), Domain::Lease, b"y", &signature).is_err());
    }

    #[test]
    fn an_identity_survives_being_stored() {
        let a = Identity::generate(&mut ChaCha20Rng::seed_from_u64(2));
        assert_eq!(Identity::from_bytes(&a.to_bytes()).peer_id(), a.peer_id());
    }
}
