//! Who is in a network, in which roles, and how anybody checks that offline.
//! Deciding on an admission is the registrars' work ([`crate::lease::Registrar`]).

use crate::identity::Domain;
use crate::network::Network;
use crate::signed::{Certified, NotCertified, Signable};
use overlay_types::{Name, NetworkId, PeerId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How long a membership certificate is valid; it is renewed by itself from half of that on.
pub const MEMBERSHIP_SECONDS: u64 = 30 * 86_400;

/// What a member may do. A set.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Roles(u16);

impl Roles {
    /// May be in the network at all.
    pub const MEMBER: Self = Self(1);
    /// A member that never votes.
    pub const LEAF: Self = Self(1 << 1);
    /// May vote on leases.
    pub const REGISTRAR: Self = Self(1 << 2);
    /// May bridge a LAN.
    pub const GATEWAY: Self = Self(1 << 3);
    /// May run VMs for others.
    pub const VMHOST: Self = Self(1 << 4);
    /// Relays datagrams for others.
    pub const RELAY: Self = Self(1 << 5);
    /// May change the network.
    pub const ADMIN: Self = Self(1 << 6);

    const NAMES: [(Self, &'static str); 7] = [
        (Self::MEMBER, "member"),
        (Self::LEAF, "leaf"),
        (Self::REGISTRAR, "registrar"),
        (Self::GATEWAY, "gateway"),
        (Self::VMHOST, "vmhost"),
        (Self::RELAY, "relay"),
        (Self::ADMIN, "admin"),
    ];

    /// What a default invite gives: all but administration.
    pub const DEFAULT: Self = Self::MEMBER
        .with(Self::REGISTRAR)
        .with(Self::GATEWAY)
        .with(Self::VMHOST)
        .with(Self::RELAY);
    /// What an owner has.
    pub const OWNER: Self = Self::DEFAULT.with(Self::ADMIN);

    /// Both sets together.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits, as they are written into an invite.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The set with these bits; unknown ones are dropped.
    pub fn from_bits(bits: u16) -> Self {
        Self::NAMES
            .iter()
            .filter(|(role, _)| bits & role.0 != 0)
            .fold(Self::default(), |set, (role, _)| set.with(*role))
    }

    /// The roles an invite for `role` gives.
    ///
    /// # Errors
    /// [`UnknownRole`] when there is no such role.
    pub fn of_invite(role: &str) -> Result<Self, UnknownRole> {
        match role {
            "member" => Ok(Self::DEFAULT),
            "leaf" => Ok(Self::MEMBER.with(Self::LEAF)),
            other => Ok(Self::MEMBER.with(other.parse()?)),
        }
    }

    /// Their names.
    pub fn names(self) -> Vec<&'static str> {
        Self::NAMES
            .iter()
            .filter(|(role, _)| self.contains(*role))
            .map(|(_, name)| *name)
            .collect()
    }
}

impl FromStr for Roles {
    type Err = UnknownRole;
    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let known = Self::NAMES.iter().find(|(_, name)| *name == text);
        known
            .map(|(role, _)| *role)
            .ok_or_else(|| UnknownRole(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.names().join(", "))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roles({self})")
    }
}

/// There is no such role.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a role; there are member, leaf, registrar, gateway, vmhost, relay and admin")]
pub struct UnknownRole(String);

/// What the registrars certify of a member. Bound to its key: only it can use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// In which network.
    pub network: NetworkId,
    /// Whose.
    pub member: PeerId,
    /// The node's name there.
    pub name: Name,
    /// What it may do.
    pub roles: Roles,
    /// The registrar group's epoch.
    pub epoch: u64,
    /// Unix seconds.
    pub issued: u64,
    /// Unix seconds.
    pub expires: u64,
}

impl Signable for Membership {
    const DOMAIN: Domain = Domain::Membership;
    const SIZE_MAX: usize = 256;
}

/// A membership with a registrar majority's signatures.
pub type MembershipCert = Certified<Membership>;

impl Network {
    /// Checks a membership certificate offline.
    ///
    /// # Errors
    /// [`NotAMember`] when it proves nothing, or nothing any more at `unix`.
    pub fn verify_membership(&self, cert: &MembershipCert, unix: u64) -> Result<(), NotAMember> {
        if cert.network != self.id() {
            return Err(NotAMember::OtherNetwork);
        }
        if unix >= cert.expires {
            return Err(NotAMember::Expired);
        }
        if cert
            .expires
            .checked_sub(cert.issued)
            .is_none_or(|valid| valid > MEMBERSHIP_SECONDS)
        {
            return Err(NotAMember::Unsound);
        }
        let group = self
            .group_of(cert.epoch)
            .ok_or(NotAMember::UnknownEpoch(cert.epoch))?;
        cert.verify(&group.voters, group.majority())
            .map_err(NotAMember::NotCertified)
    }
}

/// Why a membership certificate proves nothing.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotAMember {
    /// It is for another network.
    #[error("the membership is in another network")]
    OtherNetwork,
    /// It is over; its holder renews it.
    #[error("the membership has expired")]
    Expired,
    /// It contradicts itself.
    #[error("the membership's times contradict each other")]
    Unsound,
    /// We may lack a network document: ask for newer ones.
    #[error("registrar epoch {0} is not known here; a newer network document may name it")]
    UnknownEpoch(u64),
    /// The registrars did not sign it.
    #[error("the registrars did not sign the membership: {0}")]
    NotCertified(NotCertified),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invited_leaf_never_votes() {
        assert!(
            Roles::of_invite("member")
                .unwrap()
                .contains(Roles::REGISTRAR)
        );
        let leaf = Roles::of_invite("leaf").unwrap();
        assert!(leaf.contains(Roles::LEAF) && !leaf.contains(Roles::REGISTRAR));
        assert!(Roles::of_invite("king").is_err());
    }

    #[test]
    fn unknown_bits_are_dropped() {
        assert_eq!(Roles::from_bits(0xffff).names().len(), 7);
        assert_eq!(Roles::from_bits(Roles::OWNER.bits()), Roles::OWNER);
    }
}
