//! What members ask of registrars, what registrars tell each other, and what a registrar asks of its shell.
//! What follows from it is decided in [`super::registrar`].

use super::cert::{LeaseCert, Release};
use super::register::{Ballot, Entry, Key};
use crate::invite::BadToken;
use crate::membership::MembershipCert;
use crate::signed::{Signed, VoterSignature};
use overlay_types::{MacAddr, Name, NetworkId, PeerId, Subnet};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// What a member (or for `Admit`, a newcomer) asks of the registrars.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Transaction {
    /// Become a member: consumes one use of the invite, claims the name, answers with a certificate.
    Admit {
        /// The invite's right; empty from an admin.
        token: Vec<u8>,
        /// The node's name.
        name: Name,
        /// The asker's clock (unix seconds).
        unix: u64,
    },
    /// A new certificate for a member.
    RenewMembership {
        /// The asker's clock (unix seconds).
        unix: u64,
    },
    /// An address for a station: the wanted one, else the one it had last, else the lowest that is free.
    ClaimAddress {
        /// The address it has a stored certificate for.
        wanted: Option<Ipv4Addr>,
        /// The station.
        mac: MacAddr,
        /// The name that is to go with it.
        name: Option<Name>,
        /// The asker's clock (unix seconds).
        unix: u64,
    },
    /// A block of 16 addresses for guests.
    ClaimBlock {
        /// The block it has a stored certificate for.
        wanted: Option<Subnet>,
        /// Blocks that the asker knows it holds; it means another one.
        have: Vec<Subnet>,
        /// The asker's clock (unix seconds).
        unix: u64,
    },
    /// More time for what the asker holds.
    Renew {
        /// What it holds.
        cert: Box<LeaseCert>,
        /// The asker's clock (unix seconds).
        unix: u64,
    },
    /// The asker gives it back; it stopped using it already.
    Release(Signed<Release>),
}

impl Transaction {
    /// The asker's clock when it asked (unix seconds).
    pub(super) fn unix(&self) -> Option<u64> {
        match self {
            Self::Admit { unix, .. }
            | Self::RenewMembership { unix }
            | Self::ClaimAddress { unix, .. }
            | Self::ClaimBlock { unix, .. }
            | Self::Renew { unix, .. } => Some(*unix),
            Self::Release(_) => None, // a release may have been signed long ago, and is as good as new
        }
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// A membership certificate.
    Member(MembershipCert),
    /// A lease certificate.
    Lease(LeaseCert),
    /// Given back.
    Released,
    /// Not done, and why.
    Refused(Refusal),
}

/// Why a transaction was not done.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Ask another node.
    #[error("this node is not a registrar of the network")]
    NotARegistrar,
    /// Ask again in a moment.
    #[error("the registrar has just started and is still making sure that nothing was forgotten")]
    Starting,
    /// It must not vote any more.
    #[error(
        "this registrar's vote state is older than what it has signed (a restored backup?); it votes no more, so that no address is granted twice; put the newest copy of its state directory back"
    )]
    RolledBack,
    /// Ask again later.
    #[error("{answered} of {voters} registrars answered, {needed} are needed")]
    NoMajority {
        /// How many answered.
        answered: u32,
        /// How many it takes.
        needed: u32,
        /// How many there are.
        voters: u32,
    },
    /// Somebody must set a clock.
    #[error("clocks differ by {seconds} s, more than 30 s; set them (NTP) and try again")]
    ClocksApart {
        /// How much.
        seconds: u64,
    },
    /// The asker is not a member.
    #[error("not a member of this network, or not any more; join with an invite")]
    NotAMember,
    /// The invite does not give that right.
    #[error(transparent)]
    Token(#[from] BadToken),
    /// All uses are used.
    #[error(
        "the invite has been used by all {uses} nodes it was made for; ask for a new one (`farlan invite`)"
    )]
    InviteUsedUp {
        /// How many it was for.
        uses: u32,
    },
    /// Choose another name.
    #[error("the name '{name}' belongs to {holder}; choose another (`--name`)")]
    NameTaken {
        /// The name.
        name: Name,
        /// Whose it is.
        holder: PeerId,
    },
    /// Nothing is free.
    #[error(
        "no address of {subnet} is free; leases that nobody renews come back after they expire"
    )]
    PoolExhausted {
        /// Where it was looked for.
        subnet: Subnet,
    },
    /// Nothing is free.
    #[error("no block of {subnet} is free for guests; use a larger subnet")]
    NoBlock {
        /// Where it was looked for.
        subnet: Subnet,
    },
    /// Claim afresh.
    #[error("the lease is not the asker's any more; claim another")]
    NotYours,
    /// Ask again in a moment.
    #[error("the registrar has too much to do")]
    Busy,
}

/// What registrars tell each other; one-way, repeated until answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegistrarMessage {
    /// Which network's.
    pub network: NetworkId,
    /// Which group's.
    pub epoch: u64,
    /// The sender's clock (unix seconds).
    pub unix: u64,
    /// What it says.
    pub body: MessageBody,
}

/// What a registrar says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MessageBody {
    /// Will you take part in this ballot, and what did you accept before?
    Propose(Key, Ballot),
    /// Yes, and this.
    Promise {
        /// Which register.
        key: Key,
        /// Which ballot.
        ballot: Ballot,
        /// What was accepted before.
        accepted: Option<(Ballot, Entry)>,
        /// How many votes the sender has cast in all; others remember it for the day it forgets.
        votes_cast: u64,
    },
    /// Accept this.
    Commit(Key, Ballot, Entry),
    /// Accepted.
    Accepted {
        /// Which register.
        key: Key,
        /// Which ballot.
        ballot: Ballot,
        /// As in `Promise`.
        votes_cast: u64,
    },
    /// A majority accepted: sign the certificate that follows from it.
    Sign(Key, Ballot),
    /// The signature.
    Signed {
        /// Which register.
        key: Key,
        /// Which ballot.
        ballot: Ballot,
        /// Over the certificate.
        signature: VoterSignature,
    },
    /// No: I promised a higher one.
    Outbid {
        /// Which register.
        key: Key,
        /// The ballot refused.
        ballot: Ballot,
        /// The ballot promised.
        promised: Ballot,
    },
    /// No: our clocks differ too much.
    ClocksApart(Key, Ballot),
    /// I started: how many votes of mine do you know of?
    Recall,
    /// So many.
    Recalled {
        /// The highest count seen from the asker.
        votes_seen: u64,
    },
}

/// What the shell must do, or ought to know.
#[derive(Clone, Debug, PartialEq)]
pub enum RegistrarEvent {
    /// Write these to disk, fsync, then call [`Registrar::handle_persisted`](super::Registrar::handle_persisted) with the id.
    Persist {
        /// Rises by one.
        id: u64,
        /// Keys and values; a value replaces the one under its key.
        records: Vec<(Vec<u8>, Vec<u8>)>,
    },
    /// The outcome of a transaction.
    Reply {
        /// The shell's number for it.
        id: u64,
        /// The outcome.
        reply: Box<Reply>,
    },
    /// Ask every reachable member for its highest certificates, hand them to [`Registrar::handle_certificates`](super::Registrar::handle_certificates), then
    /// call [`Registrar::handle_members_asked`](super::Registrar::handle_members_asked).
    AskMembers,
    /// The vote state is older than what this node has signed. It votes no more.
    RolledBack,
}
