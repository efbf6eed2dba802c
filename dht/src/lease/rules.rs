//! What a transaction may write into a register, given what is in it. Pure functions: the heart of "never twice".

use super::GUARD_SECONDS;
use super::cert::{Lease, Previous, Subject};
use super::pool::Pool;
use super::protocol::{Refusal, Transaction};
use super::register::{Ballot, Entry, Key, LeaseEntry, MemberEntry};
use crate::identity::{BadSignature, Identity};
use crate::invite::Grant;
use crate::membership::{MEMBERSHIP_SECONDS, Membership, Roles};
use crate::network::Network;
use crate::signed::{Certified, VoterSignature};
use overlay_types::{MacAddr, Name, PeerId};
use std::collections::BTreeSet;

/// A transaction under way, as far as the rules care.
#[derive(Debug)]
pub(super) struct Case {
    /// Who asks.
    pub(super) from: PeerId,
    /// For what.
    pub(super) transaction: Transaction,
    /// What an invite gives; owners need none.
    pub(super) grant: Option<Grant>,
    /// When it began, in unix seconds. All that it writes counts from here, so that a lease never outlives its name.
    pub(super) issued: u64,
    /// How long a lease lasts.
    pub(super) lease_seconds: u64,
}

/// What follows for one register.
#[derive(Debug)]
pub(super) enum Outcome {
    /// This is to be committed.
    Write(Entry),
    /// Somebody has it; look for another address or block.
    Elsewhere,
    /// The transaction ends here.
    Refuse(Refusal),
}

use Outcome::{Elsewhere, Refuse, Write};

impl Case {
    /// The function of the value before that the register is to become.
    pub(super) fn decide(&self, key: &Key, current: Option<Entry>) -> Outcome {
        match (key, &self.transaction) {
            (Key::Invite(_), Transaction::Admit { .. }) => self.use_invite(current),
            (Key::Name(_), Transaction::Release(_)) => self.free_name(current),
            (Key::Name(name), _) => self.claim_name(name, current),
            (Key::Member(_), Transaction::Admit { name, .. }) => self.admit(name, current),
            (Key::Member(_), Transaction::RenewMembership { .. }) => self.renew_membership(current),
            (Key::Extent(_), Transaction::ClaimAddress { .. }) => self.take_singles(current),
            (Key::Address(_), Transaction::ClaimAddress { mac, name, .. }) => {
                self.claim(current, Some(*mac), name.clone())
            }
            (Key::Extent(_), Transaction::ClaimBlock { .. }) => self.claim(current, None, None),
            (Key::Address(_) | Key::Extent(_), Transaction::Renew { cert, .. }) => {
                self.renew(current, cert.generation)
            }
            (Key::Address(_) | Key::Extent(_), Transaction::Release(_)) => self.release(current),
            _ => Refuse(Refusal::NotYours),
        }
    }

    fn lease_expires(&self) -> u64 {
        self.issued + self.lease_seconds
    }

    fn use_invite(&self, current: Option<Entry>) -> Outcome {
        let uses = self.grant.as_ref().map_or(0, |grant| grant.uses);
        let mut used = match current {
            None => BTreeSet::new(),
            Some(Entry::Invite(used)) => used,
            Some(_) => return Refuse(Refusal::NotYours),
        };
        if used.insert(self.from) && used.len() > uses as usize {
            return Refuse(Refusal::InviteUsedUp { uses });
        }
        Write(Entry::Invite(used))
    }

    fn claim_name(&self, name: &Name, current: Option<Entry>) -> Outcome {
        let wanted = match self.transaction {
            Transaction::Admit { .. } | Transaction::RenewMembership { .. } => {
                self.issued + MEMBERSHIP_SECONDS
            }
            _ => self.lease_expires(),
        };
        match current {
            Some(Entry::Name { holder, expires }) if holder == self.from => Write(Entry::Name {
                holder,
                expires: expires.max(wanted),
            }),
            Some(Entry::Name { holder, expires })
                if self.issued < expires.saturating_add(GUARD_SECONDS) =>
            {
                Refuse(Refusal::NameTaken {
                    name: name.clone(),
                    holder,
                })
            }
            _ => Write(Entry::Name {
                holder: self.from,
                expires: wanted,
            }),
        }
    }

    /// A released lease's name goes with it, unless it is the member's own, which membership holds for longer.
    fn free_name(&self, current: Option<Entry>) -> Outcome {
        match current {
            Some(Entry::Name { holder, expires })
                if holder == self.from && expires <= self.issued + self.lease_seconds =>
            {
                Write(Entry::Name {
                    holder,
                    expires: expires.min(self.issued),
                })
            }
            Some(entry) => Write(entry),
            None => Write(Entry::Name {
                holder: self.from,
                expires: self.issued,
            }),
        }
    }

    fn admit(&self, name: &Name, current: Option<Entry>) -> Outcome {
        let given = self
            .grant
            .as_ref()
            .map_or(Roles::OWNER, |grant| grant.roles);
        let roles = match current {
            Some(Entry::Member(before)) => before.roles.with(given),
            _ => given,
        };
        let expires = self.issued + MEMBERSHIP_SECONDS;
        Write(Entry::Member(MemberEntry {
            name: name.clone(),
            roles,
            issued: self.issued,
            expires,
        }))
    }

    fn renew_membership(&self, current: Option<Entry>) -> Outcome {
        match current {
            Some(Entry::Member(before)) if self.issued < before.expires => {
                Write(Entry::Member(MemberEntry {
                    issued: self.issued,
                    expires: self.issued + MEMBERSHIP_SECONDS,
                    ..before
                }))
            }
            _ => Refuse(Refusal::NotAMember),
        }
    }

    /// Before an address is leased singly, its extent must be nobody's block; that it was released is not enough, for
    /// certificates of addresses do not embed the releases of blocks.
    fn take_singles(&self, current: Option<Entry>) -> Outcome {
        match current {
            None | Some(Entry::Singles) => Write(Entry::Singles),
            Some(Entry::Lease(block)) if block.is_over(self.issued) => Write(Entry::Singles),
            _ => Elsewhere,
        }
    }

    fn claim(&self, current: Option<Entry>, mac: Option<MacAddr>, name: Option<Name>) -> Outcome {
        let fresh = LeaseEntry {
            holder: self.from,
            name,
            mac,
            generation: 1,
            issued: self.issued,
            expires: self.lease_expires(),
            previous: None,
            released: None,
        };
        match current {
            None => Write(Entry::Lease(Box::new(fresh))),
            // The same once more: a lost answer, or the holder is back after a while and nobody came between.
            Some(Entry::Lease(own))
                if own.holder == self.from && own.mac == mac && own.released.is_none() =>
            {
                let expires = fresh.expires.max(own.expires);
                Write(Entry::Lease(Box::new(LeaseEntry {
                    issued: fresh.issued.max(own.issued), // this registrar's clock may be behind the last one's
                    expires,
                    generation: own.generation,
                    previous: own.previous,
                    ..fresh
                })))
            }
            Some(Entry::Lease(before)) if before.is_free(self.issued) => {
                let previous = match before.released {
                    Some(release) => Previous::Released(release),
                    None => Previous::Expired {
                        holder: before.holder,
                        expires: before.expires,
                    },
                };
                Write(Entry::Lease(Box::new(LeaseEntry {
                    generation: before.generation + 1,
                    previous: Some(previous),
                    ..fresh
                })))
            }
            Some(_) => Elsewhere,
        }
    }

    fn renew(&self, current: Option<Entry>, generation: u64) -> Outcome {
        match current {
            Some(Entry::Lease(own))
                if own.holder == self.from
                    && own.generation == generation
                    && own.released.is_none() =>
            {
                // Never shorter than a certificate that is out already.
                let expires = self.lease_expires().max(own.expires);
                Write(Entry::Lease(Box::new(LeaseEntry {
                    issued: self.issued.max(own.issued),
                    expires,
                    ..*own
                })))
            }
            _ => Refuse(Refusal::NotYours),
        }
    }

    fn release(&self, current: Option<Entry>) -> Outcome {
        let Transaction::Release(release) = &self.transaction else {
            return Refuse(Refusal::NotYours);
        };
        let generation = release.clone().verify().map(|release| release.generation);
        match current {
            Some(Entry::Lease(own))
                if own.holder == self.from && Ok(own.generation) == generation =>
            {
                let released = own.released.or_else(|| Some(release.clone()));
                Write(Entry::Lease(Box::new(LeaseEntry { released, ..*own })))
            }
            _ => Refuse(Refusal::NotYours),
        }
    }
}

/// The register that decides on `subject`.
pub(super) fn key_of(subject: Subject) -> Key {
    match subject {
        Subject::Address(address) => Key::Address(address),
        Subject::Block(block) => Key::Extent(block.base()),
    }
}

/// What is signed once an entry is committed.
#[derive(Debug)]
pub(super) enum Body {
    Lease(Lease),
    Member(Membership),
}

impl Body {
    /// The certificate that follows from a committed entry; `None` for entries that nobody needs a certificate of.
    pub(super) fn of(network: &Network, key: &Key, ballot: Ballot, entry: &Entry) -> Option<Self> {
        let (id, epoch) = (network.id(), network.group().epoch);
        match (key, entry) {
            (Key::Address(_) | Key::Extent(_), Entry::Lease(e)) => {
                let subject = match key {
                    Key::Address(address) => Subject::Address(*address),
                    Key::Extent(base) => Subject::Block(Pool::block(*base)),
                    _ => return None,
                };
                Some(Self::Lease(Lease {
                    network: id,
                    subject,
                    holder: e.holder,
                    name: e.name.clone(),
                    mac: e.mac,
                    generation: e.generation,
                    epoch,
                    ballot,
                    issued: e.issued,
                    expires: e.expires,
                    previous: e.previous.clone(),
                }))
            }
            (Key::Member(member), Entry::Member(e)) => Some(Self::Member(Membership {
                network: id,
                member: *member,
                name: e.name.clone(),
                roles: e.roles,
                epoch,
                issued: e.issued,
                expires: e.expires,
            })),
            _ => None,
        }
    }

    pub(super) fn sign(&self, identity: &Identity) -> VoterSignature {
        match self {
            Self::Lease(lease) => Certified::sign(lease, identity),
            Self::Member(member) => Certified::sign(member, identity),
        }
    }

    pub(super) fn check(&self, by: &VoterSignature) -> Result<(), BadSignature> {
        match self {
            Self::Lease(lease) => Certified::check(lease, by),
            Self::Member(member) => Certified::check(member, by),
        }
    }
}
