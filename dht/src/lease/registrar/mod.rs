//! Decides on claims: propose to the voters, commit by a majority, then collect a majority's signatures.
//! The same at group size 1. No vote leaves before the shell has it safely on disk.
//! What may be written is `rules`' to say; what a voter remembers is `acceptor`'s; the proposer's half is in `proposing`.
//! This file is the registrar's surface, its start, its vote, and the gate before which everything waits for the disk.

mod choice;
mod proposing;

use super::CLOCK_SKEW_MAX_SECONDS;
use super::acceptor::{Acceptor, No};
use super::cert::LeaseCert;
use super::protocol::{MessageBody, Refusal, RegistrarEvent, RegistrarMessage, Reply, Transaction};
use super::register::{Ballot, Entry, Key};
use super::rules::{Body, Case, key_of};
use crate::identity::Identity;
use crate::network::Network;
use crate::signed::VoterSignature;
use overlay_types::PeerId;
use rand_chacha::ChaCha20Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long to wait for a voter before saying it again: above the round trip of any path we know, relays included.
const RESEND: Duration = Duration::from_millis(700);
/// How long a sole registrar waits for its members' certificates after a start.
const ASK_MEMBERS_TIME: Duration = Duration::from_secs(2);
/// Messages that may wait for the disk; more are dropped and counted, and their senders repeat them.
const GATED_MAX: usize = 8192;

/// Recalling ──enough have answered──▶ Voting
///     └──more was signed than is known──▶ RolledBack
#[derive(Debug)]
enum Phase {
    Recalling {
        answers: BTreeSet<PeerId>,
        resend_at: Instant,
        give_up_at: Instant,
    },
    Voting,
    RolledBack,
}

/// Waiting ──▶ Proposing ──promises──▶ Committing ──accepted──▶ next key, or Signing ──signatures──▶ reply
///    ▲────────────┴──────outbid──────────┴───────────────────────────────┘
#[derive(Debug)]
enum Stage {
    Waiting {
        retry_at: Instant,
    },
    Proposing {
        ballot: Ballot,
        promises: BTreeMap<PeerId, Option<(Ballot, Entry)>>,
    },
    Committing {
        ballot: Ballot,
        entry: Entry,
        accepted: BTreeSet<PeerId>,
    },
    Signing {
        ballot: Ballot,
        body: Box<Body>,
        signatures: BTreeMap<PeerId, VoterSignature>,
    },
}

#[derive(Debug)]
struct Running {
    /// The shell's number.
    id: u64,
    case: Case,
    /// Registers to go through, in order; the first is being worked on.
    plan: VecDeque<Key>,
    stage: Stage,
    resend_at: Instant,
    give_up_at: Instant,
    /// The highest ballot that beat us.
    outbid_by: Ballot,
    /// Addresses and extents found taken.
    tried: BTreeSet<Ipv4Addr>,
    /// Voters whose clocks differ, and by how much.
    apart: BTreeMap<PeerId, u64>,
}

#[derive(Debug)]
enum Outgoing {
    Message(PeerId, MessageBody),
    Reply(u64, Reply),
}

/// One voter of a network's registrar group, which also takes members' transactions.
#[derive(Debug)]
pub struct Registrar {
    identity: Identity,
    network: Network,
    rng: ChaCha20Rng,
    phase: Phase,
    acceptor: Acceptor,
    /// What other voters had accepted where we had nothing, or something older.
    learned: BTreeMap<Key, (Ballot, Entry)>,
    /// Extents that a majority committed to single addresses, which is for good.
    singles: BTreeSet<Ipv4Addr>,
    running: BTreeMap<u64, Running>,
    serial: u64,
    /// Said in the course of the present input; goes behind the gate at its end.
    staged: Vec<Outgoing>,
    /// What waits until the disk has persist number `.0`.
    gated: VecDeque<(u64, Outgoing)>,
    persist_issued: u64,
    persist_confirmed: u64,
    messages_dropped: u64,
    transmits: VecDeque<(PeerId, RegistrarMessage)>,
    events: VecDeque<RegistrarEvent>,
}

impl Registrar {
    /// A registrar with what it had on disk. `fresh` says that there never was anything, because the network was just
    /// made; otherwise it first makes sure that nothing was forgotten.
    ///
    /// # Errors
    /// [`crate::Undecodable`] when the records are not a registrar's.
    pub fn new(
        identity: Identity,
        network: Network,
        records: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
        fresh: bool,
        rng: ChaCha20Rng,
        now: Instant,
    ) -> Result<Self, crate::Undecodable> {
        let acceptor = Acceptor::restore(records)?;
        let alone = network.group().voters == [identity.peer_id()];
        let (phase, events) = if alone && fresh {
            (Phase::Voting, VecDeque::new())
        } else {
            let phase = Phase::Recalling {
                answers: BTreeSet::new(),
                resend_at: now,
                give_up_at: now + ASK_MEMBERS_TIME,
            };
            (
                phase,
                if alone {
                    VecDeque::from([RegistrarEvent::AskMembers])
                } else {
                    VecDeque::new()
                },
            )
        };
        Ok(Self {
            identity,
            network,
            rng,
            phase,
            acceptor,
            learned: BTreeMap::new(),
            singles: BTreeSet::new(),
            running: BTreeMap::new(),
            serial: 0,
            staged: Vec::new(),
            gated: VecDeque::new(),
            persist_issued: 0,
            persist_confirmed: 0,
            messages_dropped: 0,
            transmits: VecDeque::new(),
            events,
        })
    }

    /// A newer network document is in force. Transactions under way under another group are refused, to be asked again.
    pub fn set_network(&mut self, network: Network, now: Instant, unix: u64) {
        if network.group() != self.network.group() {
            for serial in self.running.keys().copied().collect::<Vec<_>>() {
                self.finish(serial, Reply::Refused(Refusal::Busy));
            }
        }
        self.network = network;
        self.settle(now, unix);
    }

    /// A transaction came from `from`, whose membership the shell checked. The outcome is a [`RegistrarEvent::Reply`] with `id`.
    pub fn handle_transaction(
        &mut self,
        id: u64,
        from: PeerId,
        transaction: Transaction,
        now: Instant,
        unix: u64,
    ) {
        if let Err(refusal) = self.begin(id, from, transaction, now, unix) {
            self.staged
                .push(Outgoing::Reply(id, Reply::Refused(refusal)));
        }
        self.settle(now, unix);
    }

    /// A message came from `from`.
    pub fn handle_message(
        &mut self,
        from: PeerId,
        message: RegistrarMessage,
        now: Instant,
        unix: u64,
    ) {
        let group = self.network.group();
        if message.network == self.network.id()
            && message.epoch == group.epoch
            && group.contains(from)
        {
            self.dispatch(from, message.unix, message.body, now, unix);
            self.settle(now, unix);
        }
    }

    /// Everything up to [`RegistrarEvent::Persist`] number `id` is on disk.
    pub fn handle_persisted(&mut self, id: u64, now: Instant, unix: u64) {
        self.persist_confirmed = self.persist_confirmed.max(id.min(self.persist_issued));
        self.settle(now, unix);
    }

    /// A member's certificates, on [`RegistrarEvent::AskMembers`]. One that we signed and do not know of shows that our
    /// disk was set back.
    pub fn handle_certificates(&mut self, certificates: &[LeaseCert]) {
        if !matches!(self.phase, Phase::Recalling { .. }) {
            return;
        }
        let epoch = self.network.group().epoch;
        for cert in certificates
            .iter()
            .filter(|cert| cert.epoch == epoch && self.network.verify_lease(cert).is_ok())
        {
            let known = self
                .acceptor
                .accepted(&key_of(cert.subject))
                .map(|(ballot, _)| *ballot);
            if known.is_none_or(|ballot| ballot < cert.ballot) {
                self.phase = Phase::RolledBack;
                self.events.push_back(RegistrarEvent::RolledBack);
                return;
            }
        }
    }

    /// All reachable members have been asked.
    pub fn handle_members_asked(&mut self, now: Instant, unix: u64) {
        if matches!(self.phase, Phase::Recalling { .. }) && self.is_alone() {
            self.phase = Phase::Voting;
            self.settle(now, unix);
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant, unix: u64) {
        self.recall(now);
        for serial in self.running.keys().copied().collect::<Vec<_>>() {
            self.drive(serial, now);
        }
        self.settle(now, unix);
    }

    /// What to send to another voter.
    pub fn poll_transmit(&mut self) -> Option<(PeerId, RegistrarMessage)> {
        self.transmits.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<RegistrarEvent> {
        self.events.pop_front()
    }

    /// When to call [`Registrar::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let recall = match self.phase {
            Phase::Recalling {
                resend_at,
                give_up_at,
                ..
            } => Some(if self.is_alone() {
                (give_up_at, "members asked")
            } else {
                (resend_at, "recall")
            }),
            Phase::Voting | Phase::RolledBack => None,
        };
        let running = self.running.values().map(|running| match running.stage {
            Stage::Waiting { retry_at } => (retry_at.min(running.give_up_at), "transaction retry"),
            _ => (
                running.resend_at.min(running.give_up_at),
                "transaction resend",
            ),
        });
        running.chain(recall).min()
    }

    /// Whether it takes transactions now.
    pub const fn is_voting(&self) -> bool {
        matches!(self.phase, Phase::Voting)
    }

    /// Messages dropped because the disk was too slow for them.
    pub const fn messages_dropped(&self) -> u64 {
        self.messages_dropped
    }

    fn me(&self) -> PeerId {
        self.identity.peer_id()
    }

    fn is_alone(&self) -> bool {
        self.network.group().voters == [self.me()]
    }

    // ---- after a start ----

    fn recall(&mut self, now: Instant) {
        let alone = self.is_alone();
        let Phase::Recalling {
            resend_at,
            give_up_at,
            ..
        } = &mut self.phase
        else {
            return;
        };
        if alone && now >= *give_up_at {
            self.phase = Phase::Voting;
        } else if !alone && now >= *resend_at {
            *resend_at = now + RESEND;
            self.tell_others(&MessageBody::Recall);
        }
    }

    fn handle_recalled(&mut self, from: PeerId, votes_seen: u64) {
        let Phase::Recalling { answers, .. } = &mut self.phase else {
            return;
        };
        if votes_seen > self.acceptor.cast_count() {
            self.phase = Phase::RolledBack;
            self.events.push_back(RegistrarEvent::RolledBack);
            return;
        }
        answers.insert(from);
        let others = self.network.group().voters.len() - 1;
        if answers.len() > others / 2 {
            self.phase = Phase::Voting;
        }
    }

    // ---- the voter ----

    fn dispatch(
        &mut self,
        from: PeerId,
        their_unix: u64,
        body: MessageBody,
        now: Instant,
        unix: u64,
    ) {
        let apart = their_unix.abs_diff(unix);
        match body {
            MessageBody::Recall => {
                let votes_seen = self.acceptor.seen_count(from);
                self.staged.push(Outgoing::Message(
                    from,
                    MessageBody::Recalled { votes_seen },
                ));
            }
            MessageBody::Recalled { votes_seen } if from != self.me() => {
                self.handle_recalled(from, votes_seen)
            }
            _ if !self.is_voting() => {}
            MessageBody::Propose(key, ballot) | MessageBody::Commit(key, ballot, _)
                if apart > CLOCK_SKEW_MAX_SECONDS =>
            {
                self.staged.push(Outgoing::Message(
                    from,
                    MessageBody::ClocksApart(key, ballot),
                ));
            }
            MessageBody::Propose(key, ballot) if ballot.voter == from => {
                let promise = self.acceptor.promise(&key, ballot);
                let votes_cast = self.acceptor.cast_count();
                self.vote(from, key, ballot, promise, |key, accepted| {
                    MessageBody::Promise {
                        key,
                        ballot,
                        accepted,
                        votes_cast,
                    }
                });
            }
            MessageBody::Commit(key, ballot, entry) if ballot.voter == from => {
                let accepted = self.acceptor.accept(&key, ballot, entry);
                let votes_cast = self.acceptor.cast_count();
                self.vote(from, key, ballot, accepted, |key, ()| {
                    MessageBody::Accepted {
                        key,
                        ballot,
                        votes_cast,
                    }
                });
            }
            MessageBody::Sign(key, ballot) if ballot.voter == from => {
                let body = match self.acceptor.accepted(&key) {
                    Some((at, entry)) if *at == ballot => {
                        Body::of(&self.network, &key, ballot, entry)
                    }
                    _ => None,
                };
                self.staged.push(Outgoing::Message(
                    from,
                    match body {
                        Some(body) => MessageBody::Signed {
                            key,
                            ballot,
                            signature: body.sign(&self.identity),
                        },
                        None => MessageBody::Outbid {
                            promised: self.acceptor.promised(&key),
                            key,
                            ballot,
                        },
                    },
                ));
            }
            MessageBody::Promise {
                key,
                ballot,
                accepted,
                votes_cast,
            } => {
                self.acceptor.note_seen(from, votes_cast);
                self.handle_promise(from, &key, ballot, accepted, now);
            }
            MessageBody::Accepted {
                key,
                ballot,
                votes_cast,
            } => {
                self.acceptor.note_seen(from, votes_cast);
                self.handle_accepted(from, &key, ballot, now);
            }
            MessageBody::Signed {
                key,
                ballot,
                signature,
            } if signature.voter == from => {
                self.handle_signed(&key, ballot, signature);
            }
            MessageBody::Outbid {
                key,
                ballot,
                promised,
            } => self.handle_outbid(&key, ballot, promised, now),
            MessageBody::ClocksApart(key, ballot) => {
                self.handle_clocks_apart(from, &key, ballot, apart)
            }
            _ => {}
        }
    }

    fn vote<T>(
        &mut self,
        to: PeerId,
        key: Key,
        ballot: Ballot,
        vote: Result<T, No>,
        yes: impl FnOnce(Key, T) -> MessageBody,
    ) {
        let body = match vote {
            Ok(vote) => yes(key, vote),
            Err(No::Promised(promised)) => MessageBody::Outbid {
                key,
                ballot,
                promised,
            },
            Err(No::Full) => return, // the proposer will hear of it as a missing answer
        };
        self.staged.push(Outgoing::Message(to, body));
    }

    // ---- the gate ----

    /// Puts what was said behind the disk, and lets go what the disk has.
    fn settle(&mut self, now: Instant, unix: u64) {
        loop {
            let records = self.acceptor.take_dirty();
            if !records.is_empty() {
                self.persist_issued += 1;
                self.events.push_back(RegistrarEvent::Persist {
                    id: self.persist_issued,
                    records,
                });
            }
            let gate = self.persist_issued;
            for outgoing in self.staged.drain(..) {
                if self.gated.len() >= GATED_MAX && matches!(outgoing, Outgoing::Message(..)) {
                    self.messages_dropped += 1;
                } else {
                    self.gated.push_back((gate, outgoing));
                }
            }
            match self.gated.pop_front() {
                None => return,
                Some((gate, outgoing)) if gate > self.persist_confirmed => {
                    self.gated.push_front((gate, outgoing));
                    return;
                }
                Some((_, Outgoing::Reply(id, reply))) => {
                    self.events.push_back(RegistrarEvent::Reply {
                        id,
                        reply: Box::new(reply),
                    });
                }
                Some((_, Outgoing::Message(to, body))) if to == self.me() => {
                    self.dispatch(to, unix, body, now, unix)
                }
                Some((_, Outgoing::Message(to, body))) => {
                    let (network, epoch) = (self.network.id(), self.network.group().epoch);
                    self.transmits.push_back((
                        to,
                        RegistrarMessage {
                            network,
                            epoch,
                            unix,
                            body,
                        },
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
