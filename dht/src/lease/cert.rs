//! A lease certificate: the registrars' word that somebody was granted an address or a block, and how it followed
//! the holder before. It proves "granted", not "not released since".

use super::register::Ballot;
use super::{BLOCK_PREFIX_LEN, GUARD_SECONDS};
use crate::identity::{Domain, Identity};
use crate::network::Network;
use crate::signed::{Certified, NotCertified, NotVerified, Signable, Signed, Verified};
use overlay_types::{MacAddr, Name, NetworkId, PeerId, Subnet};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;

/// What is leased.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Subject {
    /// One address.
    Address(Ipv4Addr),
    /// A block, out of which its holder grants addresses to its guests.
    Block(Subnet),
}

impl Subject {
    /// Whether the lease gives a right to `address`.
    pub fn covers(self, address: Ipv4Addr) -> bool {
        match self {
            Self::Address(own) => own == address,
            Self::Block(block) => block.contains(address),
        }
    }

    /// Whether any address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        match (self, other) {
            (Self::Address(a), subject) | (subject, Self::Address(a)) => subject.covers(a),
            (Self::Block(a), Self::Block(b)) => a.overlaps(b),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Block(block) => write!(f, "{block}"),
        }
    }
}

/// A holder gives its lease back. It stopped using it before it signed this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// In which network.
    pub network: NetworkId,
    /// What.
    pub subject: Subject,
    /// Which of the holders in a row it was.
    pub generation: u64,
    /// Unix seconds by the holder's clock.
    pub at: u64,
}

impl Signable for Release {
    const DOMAIN: Domain = Domain::Release;
    const SIZE_MAX: usize = 128;
}

/// How the holder before ended; what makes an overlap of two certificates right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Previous {
    /// Its time and the guard had passed.
    Expired {
        /// Who it was.
        holder: PeerId,
        /// When its lease ended (unix seconds).
        expires: u64,
    },
    /// It gave the lease back.
    Released(Signed<Release>),
}

/// What the registrars certify of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// In which network.
    pub network: NetworkId,
    /// What is leased.
    pub subject: Subject,
    /// By whom.
    pub holder: PeerId,
    /// The name that goes with an address.
    pub name: Option<Name>,
    /// The station that has the address; none for a block.
    pub mac: Option<MacAddr>,
    /// Counts the holders that the subject has had; the higher refutes the lower.
    pub generation: u64,
    /// The registrar group's epoch.
    pub epoch: u64,
    /// The ballot at which a majority committed it. Signatures from different ballots never add up.
    pub ballot: Ballot,
    /// Unix seconds.
    pub issued: u64,
    /// Unix seconds. The holder stops [`GUARD_SECONDS`] earlier; registrars wait as long again.
    pub expires: u64,
    /// How the holder before ended; none for the first.
    pub previous: Option<Previous>,
}

impl Signable for Lease {
    const DOMAIN: Domain = Domain::Lease;
    const SIZE_MAX: usize = 768;
}

/// A lease with a registrar majority's signatures.
pub type LeaseCert = Certified<Lease>;

impl Lease {
    /// Until when the holder may use it (unix seconds, its own clock).
    pub const fn usable_until(&self) -> u64 {
        self.expires.saturating_sub(GUARD_SECONDS)
    }

    /// Whether the holder may use it at `unix`.
    pub const fn is_usable_at(&self, unix: u64) -> bool {
        unix < self.usable_until()
    }

    /// The holder's word that it gives this lease back.
    pub fn release(&self, holder: &Identity, unix: u64) -> Verified<Release> {
        let release = Release {
            network: self.network,
            subject: self.subject,
            generation: self.generation,
            at: unix,
        };
        Verified::sign(release, holder).expect("a release is far below its bound")
    }

    /// Whether `self` ends the claim of `other` to a common address.
    pub const fn refutes(&self, other: &Self) -> bool {
        self.generation > other.generation
    }
}

impl Network {
    /// Checks a lease certificate offline: that it was granted, properly, by a majority of its epoch's registrars.
    /// Whether it is still alive is a question of time: [`Lease::is_usable_at`].
    ///
    /// # Errors
    /// [`BadLease`] says what is wrong with it.
    pub fn verify_lease(&self, cert: &LeaseCert) -> Result<(), BadLease> {
        if cert.network != self.id() {
            return Err(BadLease::OtherNetwork);
        }
        let subject_fits = match cert.subject {
            Subject::Address(address) => self.document().subnet.contains(address),
            Subject::Block(block) => {
                block.prefix_len() == BLOCK_PREFIX_LEN
                    && self.document().subnet.contains(block.base())
            }
        };
        if !subject_fits {
            return Err(BadLease::OutsideTheSubnet);
        }
        if cert.issued >= cert.expires {
            return Err(BadLease::Times);
        }
        check_previous(cert)?;
        let group = self
            .group_of(cert.epoch)
            .ok_or(BadLease::UnknownEpoch(cert.epoch))?;
        cert.verify(&group.voters, group.majority())
            .map_err(BadLease::NotCertified)
    }
}

/// That the holder before had ended, as the certificate says itself.
pub(crate) fn check_previous(lease: &Lease) -> Result<(), BadLease> {
    match &lease.previous {
        None if lease.generation == 1 => Ok(()),
        None => Err(BadLease::Generation),
        Some(Previous::Expired { expires, .. })
            if lease.generation > 1 && lease.issued >= expires + GUARD_SECONDS =>
        {
            Ok(())
        }
        Some(Previous::Expired { .. }) => Err(BadLease::Overlap),
        Some(Previous::Released(release)) => {
            let release = release.clone().verify().map_err(BadLease::Release)?;
            let fits = release.network == lease.network
                && release.subject == lease.subject
                && release.generation.checked_add(1) == Some(lease.generation);
            if fits {
                Ok(())
            } else {
                Err(BadLease::Generation)
            }
        }
    }
}

/// Why a lease certificate is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadLease {
    /// For another network.
    #[error("the lease is in another network")]
    OtherNetwork,
    /// Not an address or block of this network.
    #[error("the lease is outside the network's subnet")]
    OutsideTheSubnet,
    /// It ends before it begins.
    #[error("the lease ends before it begins")]
    Times,
    /// Its generation does not follow from what it says of the holder before.
    #[error("the lease does not follow the generation before it")]
    Generation,
    /// It began before the holder before had ended.
    #[error("the lease began before the one before it and its guard had ended")]
    Overlap,
    /// The release inside is not the holder's.
    #[error("the release inside is not genuine: {0}")]
    Release(NotVerified),
    /// We may lack a network document: ask for newer ones.
    #[error("registrar epoch {0} is not known here; a newer network document may name it")]
    UnknownEpoch(u64),
    /// The registrars did not sign it.
    #[error("the registrars did not sign the lease: {0}")]
    NotCertified(NotCertified),
}
