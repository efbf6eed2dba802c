//! One quorum register per key, in the manner of CASPaxos: a voter's promises and what it accepted.
//! A key's value changes only as a function of the value before, so a claim always sees whoever holds now.
//! Who may write what is [`super::registrar`]'s to decide.

use super::GUARD_SECONDS;
use super::cert::{Previous, Release};
use crate::encoding::{Undecodable, decode, encode};
use crate::invite::InviteId;
use crate::membership::Roles;
use crate::signed::Signed;
use overlay_types::{MacAddr, Name, PeerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// What a voter votes at. Unique to its proposer, which persists its own promise before anybody hears of the ballot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Ballot {
    /// Compared first.
    pub round: u64,
    /// Who proposes.
    pub voter: PeerId,
}

impl Default for Ballot {
    /// Below every ballot that anybody proposes.
    fn default() -> Self {
        Self {
            round: 0,
            voter: PeerId([0; 32]),
        }
    }
}

impl Ballot {
    /// A ballot above `self`.
    pub const fn above(self, voter: PeerId) -> Self {
        Self {
            round: self.round.saturating_add(1),
            voter,
        }
    }
}

/// What is decided on by its own register.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Key {
    /// One address.
    Address(Ipv4Addr),
    /// Sixteen addresses from this one on: whether they are leased singly, or as one block and by whom.
    /// This is what keeps an address and a block from ever overlapping.
    Extent(Ipv4Addr),
    /// A name.
    Name(Name),
    /// The uses of an invite.
    Invite(InviteId),
    /// A membership.
    Member(PeerId),
}

/// A register's value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// An address, or an extent as a block.
    Lease(Box<LeaseEntry>),
    /// An extent whose addresses are leased singly. It stays so.
    Singles,
    /// A name.
    Name {
        /// Whose.
        holder: PeerId,
        /// Unix seconds.
        expires: u64,
    },
    /// Who used an invite.
    Invite(BTreeSet<PeerId>),
    /// A membership.
    Member(MemberEntry),
}

/// Who holds an address or block, or held it last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseEntry {
    /// Who.
    pub holder: PeerId,
    /// The name that goes with it.
    pub name: Option<Name>,
    /// The station; none for a block.
    pub mac: Option<MacAddr>,
    /// Counts the holders.
    pub generation: u64,
    /// Unix seconds.
    pub issued: u64,
    /// Unix seconds.
    pub expires: u64,
    /// How the holder before ended.
    pub previous: Option<Previous>,
    /// The holder's word that it gave it back.
    pub released: Option<Signed<Release>>,
}

impl LeaseEntry {
    /// Whether its time and the guard are over.
    pub const fn is_over(&self, unix: u64) -> bool {
        unix >= self.expires.saturating_add(GUARD_SECONDS)
    }

    /// Whether somebody else may have it now.
    pub const fn is_free(&self, unix: u64) -> bool {
        self.released.is_some() || self.is_over(unix)
    }
}

/// A member, as the registrars remember it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberEntry {
    /// Its name.
    pub name: Name,
    /// Its roles.
    pub roles: Roles,
    /// Unix seconds.
    pub issued: u64,
    /// Unix seconds.
    pub expires: u64,
}

/// The largest entry: a used-up invite of 256 uses.
const VOTE_MAX: usize = 16 * 1024;

/// A voter's state of one register: what it keeps on disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Vote {
    /// Which register.
    pub key: Key,
    /// It takes part in no lower ballot.
    pub promised: Ballot,
    /// What it last accepted, and at which ballot.
    pub accepted: Option<(Ballot, Entry)>,
}

impl Vote {
    /// The bytes for the disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads them back.
    ///
    /// # Errors
    /// [`Undecodable`] when they are not a vote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Undecodable> {
        decode(bytes, VOTE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_vote_survives_the_disk() {
        let ballot = Ballot::default().above(PeerId([1; 32]));
        let used = BTreeSet::from([PeerId([2; 32]), PeerId([3; 32])]);
        let vote = Vote {
            key: Key::Invite(InviteId([9; 8])),
            promised: ballot,
            accepted: Some((ballot, Entry::Invite(used))),
        };
        assert_eq!(Vote::from_bytes(&vote.to_bytes()), Ok(vote));
    }

    #[test]
    fn a_used_up_invite_fits_a_vote() {
        let used = (0..crate::invite::INVITE_USES_MAX).map(|n| {
            let mut id = [7; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            PeerId(id)
        });
        let entry = Entry::Invite(used.collect());
        let vote = Vote {
            key: Key::Invite(InviteId([9; 8])),
            promised: Ballot::default(),
            accepted: Some((Ballot::default(), entry)),
        };
        assert!(Vote::from_bytes(&vote.to_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_break_decoding(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Vote::from_bytes(&bytes);
            let _ = crate::lease::LeaseCert::from_bytes(&bytes);
            let _ = crate::membership::MembershipCert::from_bytes(&bytes);
            let _ = crate::network::SignedDocument::from_bytes(&bytes);
        }
    }
}
