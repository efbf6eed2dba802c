//! Values with a signature: by their author ([`Signed`] until checked, [`Verified`] after), or by several voters of a
//! group ([`Certified`]). Who the voters are, and whether the content makes sense, is for each kind's own module.

use crate::encoding::{Undecodable, decode, encode};
use crate::identity::{BadSignature, Domain, Identity, Signature, verify};
use overlay_types::PeerId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

/// A kind of value that is signed.
pub trait Signable: Serialize + DeserializeOwned {
    /// What such a signature is for.
    const DOMAIN: Domain;
    /// The most bytes that one encodes to.
    const SIZE_MAX: usize;
}

/// A value that claims to be from its author: the bytes as they came, so that what was signed is what is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Signed<T> {
    author: PeerId,
    body: Vec<u8>,
    signature: Signature,
    #[serde(skip)]
    kind: PhantomData<T>,
}

impl<T: Signable> Signed<T> {
    /// Who is said to have signed.
    pub const fn claimed_author(&self) -> PeerId {
        self.author
    }

    /// Checks size, signature and form, in this order.
    ///
    /// # Errors
    /// [`NotVerified`]; the caller drops it and counts.
    pub fn verify(self) -> Result<Verified<T>, NotVerified> {
        if self.body.len() > T::SIZE_MAX {
            return Err(Undecodable::TooLarge {
                size: self.body.len(),
                max: T::SIZE_MAX,
            }
            .into());
        }
        verify(self.author, T::DOMAIN, &self.body, &self.signature)?;
        let value = decode(&self.body, T::SIZE_MAX)?;
        Ok(Verified(Arc::new(Checked {
            value,
            signed: self,
        })))
    }

    /// The bytes for a slot or a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads them back, unchecked.
    ///
    /// # Errors
    /// [`Undecodable`] when they are not a signed value.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Undecodable> {
        decode(bytes, T::SIZE_MAX + SIGNED_OVERHEAD)
    }
}

/// What the author and signature add to a body: two keys' worth, and the length.
pub const SIGNED_OVERHEAD: usize = 32 + 64 + 5;

/// A value whose author's signature was checked. There is no other way to get one. Copies share it.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified<T>(Arc<Checked<T>>);

#[derive(Debug, PartialEq, Eq)]
struct Checked<T> {
    value: T,
    signed: Signed<T>,
}

impl<T> Clone for Verified<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Signable> Verified<T> {
    /// Signs our own value.
    ///
    /// # Errors
    /// [`Undecodable::TooLarge`] when it is larger than others will read.
    pub fn sign(value: T, identity: &Identity) -> Result<Self, Undecodable> {
        let body = encode(&value);
        if body.len() > T::SIZE_MAX {
            return Err(Undecodable::TooLarge {
                size: body.len(),
                max: T::SIZE_MAX,
            });
        }
        let signature = identity.sign(T::DOMAIN, &body);
        Ok(Self(Arc::new(Checked {
            value,
            signed: Signed {
                author: identity.peer_id(),
                body,
                signature,
                kind: PhantomData,
            },
        })))
    }

    /// Who signed.
    pub fn author(&self) -> PeerId {
        self.0.signed.author
    }

    /// About how many bytes it has with its signature: no more than came.
    pub fn signed_bytes(&self) -> u64 {
        (self.0.signed.body.len() + SIGNED_OVERHEAD - 5) as u64
    }

    /// The value with its signature, to send on.
    pub fn signed(&self) -> &Signed<T> {
        &self.0.signed
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// Why a signed value is not believed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotVerified {
    /// Wrong signature.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// Right signature, wrong form.
    #[error(transparent)]
    Form(#[from] Undecodable),
}

/// One voter's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterSignature {
    /// Who signed.
    pub voter: PeerId,
    /// Its signature over the body.
    pub signature: Signature,
}

/// A value that several voters signed. Being one proves nothing: ask [`Certified::verify`], with the group it should be of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified<T> {
    /// What they signed.
    pub body: T,
    /// Their signatures.
    pub signatures: Vec<VoterSignature>,
}

impl<T: Signable> Certified<T> {
    /// One voter's signature over `body`.
    pub fn sign(body: &T, identity: &Identity) -> VoterSignature {
        VoterSignature {
            voter: identity.peer_id(),
            signature: identity.sign(T::DOMAIN, &encode(body)),
        }
    }

    /// Checks one voter's signature over `body`.
    ///
    /// # Errors
    /// [`BadSignature`] when it does not fit.
    pub fn check(body: &T, by: &VoterSignature) -> Result<(), BadSignature> {
        verify(by.voter, T::DOMAIN, &encode(body), &by.signature)
    }

    /// Checks that at least `needed` different `voters` signed. Signatures by others are ignored; a wrong one by a voter is not.
    ///
    /// # Errors
    /// [`NotCertified`] when they did not.
    pub fn verify(&self, voters: &[PeerId], needed: usize) -> Result<(), NotCertified> {
        if self.signatures.len() > SIGNATURES_MAX {
            return Err(NotCertified::TooManySignatures);
        }
        let message = encode(&self.body);
        if message.len() > T::SIZE_MAX {
            return Err(NotCertified::Form(Undecodable::TooLarge {
                size: message.len(),
                max: T::SIZE_MAX,
            }));
        }
        let mut signers: Vec<PeerId> = Vec::new();
        for by in &self.signatures {
            if voters.contains(&by.voter) && !signers.contains(&by.voter) {
                verify(by.voter, T::DOMAIN, &message, &by.signature)?;
                signers.push(by.voter);
            }
        }
        if signers.len() < needed.max(1) {
            return Err(NotCertified::TooFew {
                signed: signers.len(),
                needed,
            });
        }
        Ok(())
    }

    /// The bytes for a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads them back, unchecked.
    ///
    /// # Errors
    /// [`Undecodable`] when they are not such a value.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Undecodable> {
        decode(bytes, T::SIZE_MAX + SIGNATURES_MAX * 96 + 5)
    }
}

impl<T> Deref for Certified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.body
    }
}

/// The largest registrar group has 7 voters; admins may be a few more.
pub const SIGNATURES_MAX: usize = 16;

/// Why a certificate is not believed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotCertified {
    /// Not enough of the group signed.
    #[error("{signed} of the group signed, {needed} are needed")]
    TooFew {
        /// Voters whose signature is right.
        signed: usize,
        /// How many it takes.
        needed: usize,
    },
    /// More signatures than any group has voters.
    #[error("more signatures than any group has voters")]
    TooManySignatures,
    /// Some voter's signature is wrong.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// Wrong form.
    #[error(transparent)]
    Form(Undecodable),
}
