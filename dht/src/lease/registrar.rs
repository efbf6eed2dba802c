//! Decides on claims: propose to the voters, commit by a majority, then collect a majority's signatures.
//! The same at group size 1. No vote leaves before the shell has it safely on disk.
//! What may be written is [`super::rules`]'; what a voter remembers is [`super::acceptor`]'s.

use super::CLOCK_SKEW_MAX_SECONDS;
use super::acceptor::{Acceptor, No};
use super::cert::LeaseCert;
use super::pool::Pool;
use super::protocol::{MessageBody, Refusal, RegistrarEvent, RegistrarMessage, Reply, Transaction};
use super::register::{Ballot, Entry, Key};
use super::rules::{Body, Case, Outcome, key_of};
use crate::identity::Identity;
use crate::invite;
use crate::network::Network;
use crate::signed::{Certified, VoterSignature};
use overlay_types::{MacAddr, PeerId, Subnet};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long a transaction may take; then the asker hears how many registrars answered.
const TRANSACTION_TIME_MAX: Duration = Duration::from_secs(10);
/// How long to wait for a voter before saying it again: above the round trip of any path we know, relays included.
const RESEND: Duration = Duration::from_millis(700);
/// How long a sole registrar waits for its members' certificates after a start.
const ASK_MEMBERS_TIME: Duration = Duration::from_secs(2);
/// Two proposers that outbid each other wait a random time up to this.
const BACKOFF_MAX_MS: u32 = 200;
/// Transactions at a time; more are refused as `Busy`.
const RUNNING_MAX: usize = 256;
/// Entries of other voters' that we keep to avoid asking for what is taken.
const LEARNED_MAX: usize = 4096;
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

    // ---- the proposer ----

    fn begin(
        &mut self,
        id: u64,
        from: PeerId,
        transaction: Transaction,
        now: Instant,
        unix: u64,
    ) -> Result<(), Refusal> {
        match self.phase {
            Phase::Voting => {}
            Phase::Recalling { .. } => return Err(Refusal::Starting),
            Phase::RolledBack => return Err(Refusal::RolledBack),
        }
        if !self.network.group().contains(self.me()) {
            return Err(Refusal::NotARegistrar);
        }
        if self.running.len() >= RUNNING_MAX {
            return Err(Refusal::Busy);
        }
        if let Some(seconds) = transaction
            .unix()
            .map(|theirs| theirs.abs_diff(unix))
            .filter(|s| *s > CLOCK_SKEW_MAX_SECONDS)
        {
            return Err(Refusal::ClocksApart { seconds });
        }
        let grant = match &transaction {
            Transaction::Admit { token, .. } if token.is_empty() => {
                if !self.network.document().admins.contains(&from) {
                    return Err(Refusal::NotAMember);
                }
                None
            }
            Transaction::Admit { token, .. } => {
                Some(invite::verify(token, &self.network, from, unix)?)
            }
            Transaction::Release(release) => {
                let release = release.clone().verify().map_err(|_| Refusal::NotYours)?;
                if release.author() != from || release.network != self.network.id() {
                    return Err(Refusal::NotYours);
                }
                None
            }
            _ => None,
        };
        let lease_seconds = self.network.document().lease_seconds.into();
        let case = Case {
            from,
            transaction,
            grant,
            issued: unix,
            lease_seconds,
        };
        let mut running = Running {
            id,
            plan: VecDeque::new(),
            stage: Stage::Waiting { retry_at: now },
            resend_at: now,
            give_up_at: now + TRANSACTION_TIME_MAX,
            outbid_by: Ballot::default(),
            tried: BTreeSet::new(),
            apart: BTreeMap::new(),
            case,
        };
        running.plan = self.first_plan(&running)?;
        self.serial += 1;
        self.running.insert(self.serial, running);
        self.drive(self.serial, now);
        Ok(())
    }

    /// The registers that a transaction goes through. What it consumes comes before what it grants.
    fn first_plan(&self, running: &Running) -> Result<VecDeque<Key>, Refusal> {
        let from = running.case.from;
        let mut plan = VecDeque::new();
        match &running.case.transaction {
            Transaction::Admit { name, .. } => {
                plan.extend(
                    running
                        .case
                        .grant
                        .as_ref()
                        .map(|grant| Key::Invite(grant.invite)),
                );
                plan.extend([Key::Name(name.clone()), Key::Member(from)]);
            }
            Transaction::RenewMembership { .. } => plan.push_back(Key::Member(from)),
            Transaction::ClaimAddress { name, .. } => {
                plan.extend(name.clone().map(Key::Name));
                plan.extend(self.pick(running)?);
            }
            Transaction::ClaimBlock { .. } => plan.extend(self.pick(running)?),
            Transaction::Renew { cert, .. } => {
                plan.extend(cert.name.clone().map(Key::Name));
                plan.push_back(key_of(cert.subject));
            }
            Transaction::Release(release) => {
                let release = release.clone().verify().map_err(|_| Refusal::NotYours)?;
                let key = key_of(release.subject);
                let name = match self.view(&key) {
                    Some(Entry::Lease(entry)) if entry.holder == from => entry.name.clone(),
                    _ => None,
                };
                plan.push_back(key);
                plan.extend(name.map(Key::Name));
            }
        }
        Ok(plan)
    }

    /// The next address or block to try, with the extent that must be settled before it.
    fn pick(&self, running: &Running) -> Result<Vec<Key>, Refusal> {
        let subnet = self.network.document().subnet;
        match &running.case.transaction {
            Transaction::ClaimAddress { wanted, mac, .. } => {
                let address = self
                    .pick_address(running, *wanted, *mac)
                    .ok_or(Refusal::PoolExhausted { subnet })?;
                let extent = Pool::extent_of(address);
                let settled = self.singles.contains(&extent);
                Ok((!settled)
                    .then_some(Key::Extent(extent))
                    .into_iter()
                    .chain([Key::Address(address)])
                    .collect())
            }
            Transaction::ClaimBlock { wanted, have, .. } => {
                let base = self
                    .pick_block(running, *wanted, have)
                    .ok_or(Refusal::NoBlock { subnet })?;
                Ok(vec![Key::Extent(base)])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn pick_address(
        &self,
        running: &Running,
        wanted: Option<Ipv4Addr>,
        mac: MacAddr,
    ) -> Option<Ipv4Addr> {
        let pool = Pool::new(self.network.document().subnet);
        let (from, issued) = (running.case.from, running.case.issued);
        let held_by_me = |entry: &Entry| matches!(entry, Entry::Lease(e) if e.holder == from && e.mac == Some(mac));
        let open = |address: Ipv4Addr| {
            let extent = Pool::extent_of(address);
            let block = matches!(self.view(&Key::Extent(extent)), Some(Entry::Lease(block)) if !block.is_over(issued));
            !block
                && pool.may_lease(address)
                && !running.tried.contains(&address)
                && !running.tried.contains(&extent)
        };
        let last = self
            .acceptor
            .entries()
            .filter(|(_, entry)| held_by_me(entry))
            .find_map(|(key, _)| match key {
                Key::Address(address) if open(*address) => Some(*address),
                _ => None,
            });
        let sticky = wanted.filter(|address| open(*address)).or(last);
        sticky.or_else(|| {
            let claimed = self.planned_keys(running.id);
            let free = |address: &Ipv4Addr| {
                let key = Key::Address(*address);
                let taken = matches!(self.view(&key), Some(Entry::Lease(e)) if !e.is_free(issued) && !held_by_me(&Entry::Lease(e.clone())));
                open(*address) && !taken && !claimed.contains(&key)
            };
            pool.extents_ascending().flat_map(|extent| pool.addresses(extent)).find(free)
        })
    }

    fn pick_block(
        &self,
        running: &Running,
        wanted: Option<Subnet>,
        have: &[Subnet],
    ) -> Option<Ipv4Addr> {
        let pool = Pool::new(self.network.document().subnet);
        let (from, issued) = (running.case.from, running.case.issued);
        let open = |base: &Ipv4Addr| {
            pool.may_block(*base)
                && !running.tried.contains(base)
                && have.iter().all(|block| block.base() != *base)
        };
        let last = self
            .acceptor
            .entries()
            .find_map(|(key, entry)| match (key, entry) {
                (Key::Extent(base), Entry::Lease(e)) if e.holder == from && open(base) => {
                    Some(*base)
                }
                _ => None,
            });
        wanted.map(Subnet::base).filter(open).or(last).or_else(|| {
            let claimed = self.planned_keys(running.id);
            pool.blocks_descending().find(|base| {
                let key = Key::Extent(*base);
                let taken = match self.view(&key) {
                    None => false,
                    Some(Entry::Lease(e)) => !e.is_free(issued),
                    Some(_) => true,
                };
                open(base) && !taken && !claimed.contains(&key)
            })
        })
    }

    /// What this node knows of a register without asking; enough to choose by, never to decide by.
    fn view(&self, key: &Key) -> Option<&Entry> {
        self.learned
            .get(key)
            .into_iter()
            .chain(self.acceptor.accepted(key))
            .max_by_key(|(at, _)| *at)
            .map(|(_, entry)| entry)
    }

    /// Keys that other transactions under way here are after.
    fn planned_keys(&self, except: u64) -> BTreeSet<Key> {
        self.running
            .values()
            .filter(|running| running.id != except)
            .flat_map(|running| running.plan.iter().cloned())
            .collect()
    }

    /// Starts, repeats or ends what a transaction is at.
    fn drive(&mut self, serial: u64, now: Instant) {
        let Some(running) = self.running.get(&serial) else {
            return;
        };
        if now >= running.give_up_at {
            let group = self.network.group();
            let answered = match &running.stage {
                Stage::Waiting { .. } => 0,
                Stage::Proposing { promises, .. } => promises.len(),
                Stage::Committing { accepted, .. } => accepted.len(),
                Stage::Signing { signatures, .. } => signatures.len(),
            };
            let count = |n: usize| u32::try_from(n).expect("a group has at most 7 voters");
            let (answered, needed, voters) = (
                count(answered),
                count(group.majority()),
                count(group.voters.len()),
            );
            return self.finish(
                serial,
                Reply::Refused(Refusal::NoMajority {
                    answered,
                    needed,
                    voters,
                }),
            );
        }
        match &running.stage {
            Stage::Waiting { retry_at } if now >= *retry_at => self.propose(serial, now),
            Stage::Waiting { .. } => {}
            _ if now >= running.resend_at => self.resend(serial, now),
            _ => {}
        }
    }

    fn propose(&mut self, serial: u64, now: Instant) {
        let Some(key) = self
            .running
            .get(&serial)
            .and_then(|running| running.plan.front().cloned())
        else {
            return;
        };
        // Two transactions of ours on one register would outbid each other; the younger waits its turn.
        let at_work = |other: &Running| {
            !matches!(other.stage, Stage::Waiting { .. }) && other.plan.front() == Some(&key)
        };
        let is_busy = self
            .running
            .iter()
            .any(|(other, running)| *other != serial && at_work(running));
        let me = self.me();
        let promised = self.acceptor.promised(&key);
        let running = self.running.get_mut(&serial).expect("it was there above");
        if is_busy {
            running.stage = Stage::Waiting {
                retry_at: now + RESEND,
            }; // woken before, when the other moves on
            return;
        }
        let ballot = promised.max(running.outbid_by).above(me);
        running.stage = Stage::Proposing {
            ballot,
            promises: BTreeMap::new(),
        };
        running.resend_at = now + RESEND;
        // Our own promise goes to disk before anybody hears of the ballot: so no ballot is ever used twice.
        let own = self.acceptor.promise(&key, ballot);
        let votes_cast = self.acceptor.cast_count();
        self.tell_others(&MessageBody::Propose(key.clone(), ballot));
        self.vote(me, key, ballot, own, |key, accepted| MessageBody::Promise {
            key,
            ballot,
            accepted,
            votes_cast,
        });
    }

    /// Says again what voters have not answered.
    fn resend(&mut self, serial: u64, now: Instant) {
        let Some(running) = self.running.get_mut(&serial) else {
            return;
        };
        let Some(key) = running.plan.front().cloned() else {
            return;
        };
        running.resend_at = now + RESEND;
        let (body, answered): (_, Vec<PeerId>) = match &running.stage {
            Stage::Waiting { .. } => return,
            Stage::Proposing { ballot, promises } => (
                MessageBody::Propose(key, *ballot),
                promises.keys().copied().collect(),
            ),
            Stage::Committing {
                ballot,
                entry,
                accepted,
            } => (
                MessageBody::Commit(key, *ballot, entry.clone()),
                accepted.iter().copied().collect(),
            ),
            Stage::Signing {
                ballot, signatures, ..
            } => (
                MessageBody::Sign(key, *ballot),
                signatures.keys().copied().collect(),
            ),
        };
        for voter in self
            .network
            .group()
            .voters
            .iter()
            .filter(|voter| !answered.contains(voter))
        {
            self.staged.push(Outgoing::Message(*voter, body.clone()));
        }
    }

    fn tell_others(&mut self, body: &MessageBody) {
        let me = self.me();
        for voter in self
            .network
            .group()
            .voters
            .iter()
            .filter(|voter| **voter != me)
        {
            self.staged.push(Outgoing::Message(*voter, body.clone()));
        }
    }

    fn tell_all(&mut self, body: &MessageBody) {
        self.tell_others(body);
        self.staged.push(Outgoing::Message(self.me(), body.clone()));
    }

    /// The transaction that is at `key` with `ballot`.
    fn at_ballot(&mut self, key: &Key, ballot: Ballot) -> Option<(u64, &mut Running)> {
        let fits = |running: &Running| match &running.stage {
            Stage::Waiting { .. } => false,
            Stage::Proposing { ballot: own, .. }
            | Stage::Committing { ballot: own, .. }
            | Stage::Signing { ballot: own, .. } => {
                *own == ballot && running.plan.front() == Some(key)
            }
        };
        self.running
            .iter_mut()
            .find(|(_, running)| fits(running))
            .map(|(serial, running)| (*serial, running))
    }

    fn handle_promise(
        &mut self,
        from: PeerId,
        key: &Key,
        ballot: Ballot,
        accepted: Option<(Ballot, Entry)>,
        now: Instant,
    ) {
        let majority = self.network.group().majority();
        let Some((serial, running)) = self.at_ballot(key, ballot) else {
            return;
        };
        let Stage::Proposing { promises, .. } = &mut running.stage else {
            return;
        };
        promises.insert(from, accepted);
        if promises.len() < majority {
            return;
        }
        // Whatever was chosen before is among a majority's answers, and is the highest of them.
        let current = promises
            .values()
            .flatten()
            .max_by_key(|(at, _)| *at)
            .cloned();
        match running
            .case
            .decide(key, current.clone().map(|(_, entry)| entry))
        {
            Outcome::Write(entry) => {
                running.resend_at = now + RESEND;
                running.stage = Stage::Committing {
                    ballot,
                    entry: entry.clone(),
                    accepted: BTreeSet::new(),
                };
                self.learned.remove(key);
                self.tell_all(&MessageBody::Commit(key.clone(), ballot, entry));
            }
            Outcome::Refuse(refusal) => self.finish(serial, Reply::Refused(refusal)),
            Outcome::Elsewhere => {
                let (Key::Address(place) | Key::Extent(place)) = *key else {
                    return;
                };
                running.tried.insert(place);
                if let Some(entry) = current {
                    if self.learned.len() >= LEARNED_MAX {
                        self.learned.clear(); // only a memory of what is not worth asking for
                    }
                    self.learned.insert(key.clone(), entry);
                }
                self.look_elsewhere(serial, key, now);
            }
        }
    }

    fn look_elsewhere(&mut self, serial: u64, key: &Key, now: Instant) {
        let Some(running) = self.running.get(&serial) else {
            return;
        };
        match self.pick(running) {
            Err(refusal) => self.finish(serial, Reply::Refused(refusal)),
            Ok(plan) => {
                let running = self.running.get_mut(&serial).expect("it was there above");
                running.plan = plan.into();
                running.stage = Stage::Waiting { retry_at: now };
                running.outbid_by = Ballot::default();
                self.wake(key, now);
                self.propose(serial, now);
            }
        }
    }

    fn handle_accepted(&mut self, from: PeerId, key: &Key, ballot: Ballot, now: Instant) {
        let majority = self.network.group().majority();
        let Some((serial, running)) = self.at_ballot(key, ballot) else {
            return;
        };
        let Stage::Committing {
            entry, accepted, ..
        } = &mut running.stage
        else {
            return;
        };
        accepted.insert(from);
        if accepted.len() < majority {
            return;
        }
        let entry = entry.clone();
        if let (Key::Extent(base), Entry::Singles) = (key, &entry) {
            self.singles.insert(*base);
        }
        let body = Body::of(&self.network, key, ballot, &entry);
        let running = self.running.get_mut(&serial).expect("it was found above");
        if running.plan.len() > 1 {
            running.plan.pop_front();
            running.outbid_by = Ballot::default();
            running.stage = Stage::Waiting { retry_at: now };
            self.wake(key, now);
            return self.propose(serial, now);
        }
        match body {
            _ if matches!(running.case.transaction, Transaction::Release(_)) => {
                self.finish(serial, Reply::Released)
            }
            None => self.finish(serial, Reply::Refused(Refusal::NotYours)),
            Some(body) => {
                running.resend_at = now + RESEND;
                running.stage = Stage::Signing {
                    ballot,
                    body: Box::new(body),
                    signatures: BTreeMap::new(),
                };
                self.tell_all(&MessageBody::Sign(key.clone(), ballot));
            }
        }
    }

    fn handle_signed(&mut self, key: &Key, ballot: Ballot, signature: VoterSignature) {
        let majority = self.network.group().majority();
        let Some((serial, running)) = self.at_ballot(key, ballot) else {
            return;
        };
        let Stage::Signing {
            body, signatures, ..
        } = &mut running.stage
        else {
            return;
        };
        if body.check(&signature).is_err() {
            return;
        }
        signatures.insert(signature.voter, signature);
        if signatures.len() < majority {
            return;
        }
        let signatures = signatures.values().copied().collect();
        let reply = match &**body {
            Body::Lease(lease) => Reply::Lease(Certified {
                body: lease.clone(),
                signatures,
            }),
            Body::Member(member) => Reply::Member(Certified {
                body: member.clone(),
                signatures,
            }),
        };
        self.finish(serial, reply);
    }

    fn handle_outbid(&mut self, key: &Key, ballot: Ballot, promised: Ballot, now: Instant) {
        let wait = Duration::from_millis((self.rng.next_u32() % BACKOFF_MAX_MS).into());
        let Some((_, running)) = self.at_ballot(key, ballot) else {
            return;
        };
        running.outbid_by = running.outbid_by.max(promised);
        running.stage = Stage::Waiting {
            retry_at: now + wait,
        };
    }

    fn handle_clocks_apart(&mut self, from: PeerId, key: &Key, ballot: Ballot, seconds: u64) {
        let (majority, voters) = (
            self.network.group().majority(),
            self.network.group().voters.len(),
        );
        let Some((serial, running)) = self.at_ballot(key, ballot) else {
            return;
        };
        running.apart.insert(from, seconds);
        if voters - running.apart.len() < majority {
            self.finish(serial, Reply::Refused(Refusal::ClocksApart { seconds }));
        }
    }

    fn finish(&mut self, serial: u64, reply: Reply) {
        let Some(running) = self.running.remove(&serial) else {
            return;
        };
        self.staged.push(Outgoing::Reply(running.id, reply));
        let begun = running.give_up_at - TRANSACTION_TIME_MAX; // in the past, so that whoever waited is due at once
        for key in &running.plan {
            self.wake(key, begun);
        }
    }

    /// Lets those that waited for `key` have their turn.
    fn wake(&mut self, key: &Key, now: Instant) {
        for running in self
            .running
            .values_mut()
            .filter(|running| running.plan.front() == Some(key))
        {
            if let Stage::Waiting { retry_at } = &mut running.stage {
                *retry_at = now;
            }
        }
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
mod tests {
    use super::*;
    use crate::lease::{BadLease, GUARD_SECONDS, Previous, Subject};
    use crate::membership::{NotAMember, Roles};
    use crate::testing::{Lab, NOW, name};
    use overlay_types::DhcpMode;

    const DAY: u64 = 24 * 3600;
    const OUTSIDE: Subject = Subject::Address(Ipv4Addr::new(10, 78, 0, 1));

    fn lab() -> Lab {
        Lab::new("10.77.0.0/24", DhcpMode::Overlay)
    }

    fn address(last: u8) -> Subject {
        Subject::Address(Ipv4Addr::new(10, 77, 0, last))
    }

    #[test]
    fn the_owner_admits_itself_and_gets_the_first_address() {
        let mut lab = lab();
        let owner = lab.owner.clone();

        let member = lab.admit(&owner, Vec::new(), "home").unwrap();
        let lease = lab.claim(&owner, Some("home")).unwrap();

        assert_eq!(lab.network.verify_membership(&member, NOW), Ok(()));
        assert_eq!(member.roles, Roles::OWNER);
        assert_eq!(lab.network.verify_lease(&lease), Ok(()));
        assert_eq!(
            (lease.subject, lease.generation, lease.expires),
            (address(1), 1, NOW + DAY)
        );
    }

    #[test]
    fn an_invite_admits_as_many_as_it_says_and_each_again_for_free() {
        let mut lab = lab();
        let token = lab.token(Roles::DEFAULT, 2);
        let [a, b, c] = [(); 3].map(|()| Identity::generate(&mut lab.rng));

        assert!(lab.admit(&a, token.clone(), "a").is_ok());
        assert!(
            lab.admit(&a, token.clone(), "a2").is_ok(),
            "the answer may have been lost"
        );
        assert!(lab.admit(&b, token.clone(), "b").is_ok());
        assert_eq!(
            lab.admit(&c, token, "c"),
            Err(Refusal::InviteUsedUp { uses: 2 })
        );
        assert_eq!(lab.admit(&c, Vec::new(), "c"), Err(Refusal::NotAMember));
        assert!(matches!(
            lab.admit(&c, vec![1, 2, 3], "c"),
            Err(Refusal::Token(_))
        ));
    }

    #[test]
    fn a_name_belongs_to_one_member() {
        let mut lab = lab();
        let (a, _) = lab.member("web");
        let (b, _) = lab.member("b");
        let token = lab.token(Roles::DEFAULT, 1);
        let c = Identity::generate(&mut lab.rng);
        let taken = Refusal::NameTaken {
            name: name("web"),
            holder: a.peer_id(),
        };

        assert_eq!(lab.admit(&c, token.clone(), "web"), Err(taken.clone()));
        assert!(
            lab.admit(&c, token, "c").is_ok(),
            "the use was not lost with the name"
        );
        assert_eq!(lab.claim(&b, Some("web")), Err(taken));
        assert!(lab.claim(&a, Some("web")).is_ok());
    }

    #[test]
    fn addresses_are_sticky_and_else_the_lowest_that_is_free() {
        let mut lab = lab();
        let ((a, _), (b, _)) = (lab.member("a"), lab.member("b"));
        let first = lab.claim(&a, None).unwrap();
        assert_eq!(lab.claim(&b, None).unwrap().subject, address(2));
        assert_eq!(lab.claim(&a, None).unwrap().subject, first.subject);
        // Long after it ran out, while nobody else asked for it.
        lab.unix += 10 * DAY;
        let again = lab.claim(&a, None).unwrap();
        assert_eq!((again.subject, again.generation), (first.subject, 1));
        // A wanted address is had if it is free.
        let wanted = Some(Ipv4Addr::new(10, 77, 0, 99));
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        let claim = Transaction::ClaimAddress {
            wanted,
            mac,
            name: None,
            unix: lab.unix,
        };
        assert_eq!(lab.lease(&a, claim).unwrap().subject, address(99));
    }

    #[test]
    fn an_address_changes_hands_after_expiry_and_guard_or_by_a_release() {
        let mut lab = Lab::new("10.77.0.0/30", DhcpMode::Overlay);
        let ((a, _), (b, _), (c, _)) = (lab.member("a"), lab.member("b"), lab.member("c"));
        let of_a = lab.claim(&a, None).unwrap();
        let of_b = lab.claim(&b, None).unwrap();
        let exhausted = Refusal::PoolExhausted {
            subnet: "10.77.0.0/30".parse().unwrap(),
        };
        assert_eq!(lab.claim(&c, None), Err(exhausted.clone()));

        let release = of_b.release(&b, NOW + 5).signed().clone();
        assert_eq!(
            lab.ask(&b, Transaction::Release(release.clone())),
            Reply::Released
        );
        assert_eq!(
            lab.ask(&b, Transaction::Release(release)),
            Reply::Released,
            "the answer may have been lost"
        );
        let renewal = Transaction::Renew {
            cert: Box::new(of_b.clone()),
            unix: NOW,
        };
        assert_eq!(lab.lease(&b, renewal), Err(Refusal::NotYours));
        let of_c = lab.claim(&c, None).unwrap();
        assert_eq!((of_c.subject, of_c.generation), (of_b.subject, 2));
        assert!(matches!(of_c.previous, Some(Previous::Released(_))) && of_c.refutes(&of_b));

        lab.unix = of_a.expires + GUARD_SECONDS - 1;
        assert_eq!(lab.claim(&b, None), Err(exhausted));
        lab.unix += 1;
        let after = lab.claim(&b, None).unwrap();
        assert_eq!((after.subject, after.generation), (of_a.subject, 2));
        assert_eq!(
            after.previous,
            Some(Previous::Expired {
                holder: a.peer_id(),
                expires: of_a.expires
            })
        );
        assert_eq!(lab.network.verify_lease(&after), Ok(()));
    }

    #[test]
    fn a_strangers_release_frees_nothing() {
        let mut lab = lab();
        let ((a, _), (b, _)) = (lab.member("a"), lab.member("b"));
        let of_a = lab.claim(&a, None).unwrap();
        let forged = of_a.release(&b, NOW).signed().clone();
        assert_eq!(
            lab.ask(&b, Transaction::Release(forged.clone())),
            Reply::Refused(Refusal::NotYours)
        );
        assert_eq!(
            lab.ask(&a, Transaction::Release(forged)),
            Reply::Refused(Refusal::NotYours)
        );
    }

    #[test]
    fn renewal_gives_more_time_to_the_same_generation() {
        let mut lab = lab();
        let (a, _) = lab.member("a");
        let first = lab.claim(&a, Some("a")).unwrap();
        lab.unix += DAY / 2;
        let renewed = lab
            .lease(
                &a,
                Transaction::Renew {
                    cert: Box::new(first.clone()),
                    unix: lab.unix,
                },
            )
            .unwrap();
        assert_eq!(
            (renewed.subject, renewed.generation, renewed.expires),
            (first.subject, 1, lab.unix + DAY)
        );
        assert_eq!(renewed.name, first.name);
    }

    #[test]
    fn blocks_come_from_the_far_end_and_never_meet_single_addresses() {
        let mut lab = Lab::new("10.77.0.0/27", DhcpMode::Overlay);
        let ((a, _), (b, _)) = (lab.member("a"), lab.member("b"));
        let block = lab.claim_block(&a).unwrap();
        assert_eq!(
            block.subject,
            Subject::Block("10.77.0.16/28".parse().unwrap())
        );
        assert_eq!(
            lab.claim_block(&a).unwrap().subject,
            block.subject,
            "the same once more"
        );
        assert_eq!(
            lab.claim_block(&b),
            Err(Refusal::NoBlock {
                subnet: "10.77.0.0/27".parse().unwrap()
            })
        );

        let mut count = 0;
        while let Ok(cert) = {
            let claim = Transaction::ClaimAddress {
                wanted: None,
                mac: MacAddr([2, 0, 0, 0, 1, count]),
                name: None,
                unix: lab.unix,
            };
            lab.lease(&b, claim)
        } {
            assert!(!cert.subject.overlaps(block.subject));
            count += 1;
        }
        assert_eq!(
            count, 15,
            "the first extent, without the network's own address"
        );
        // Once the block is over, its addresses serve singly, and then never again as a block.
        lab.unix = block.expires + GUARD_SECONDS;
        let claim = Transaction::ClaimAddress {
            wanted: Some(Ipv4Addr::new(10, 77, 0, 20)),
            mac: MacAddr([2, 0, 0, 0, 2, 1]),
            name: None,
            unix: lab.unix,
        };
        assert_eq!(lab.lease(&b, claim).unwrap().subject, address(20));
        assert!(matches!(lab.claim_block(&a), Err(Refusal::NoBlock { .. })));
    }

    #[test]
    fn clocks_that_differ_too_much_are_refused() {
        let mut lab = lab();
        let (a, _) = lab.member("a");
        let late = Transaction::ClaimBlock {
            wanted: None,
            have: vec![],
            unix: NOW - 31,
        };
        assert_eq!(
            lab.lease(&a, late),
            Err(Refusal::ClocksApart { seconds: 31 })
        );
        let bearable = Transaction::ClaimBlock {
            wanted: None,
            have: vec![],
            unix: NOW + 30,
        };
        assert!(lab.lease(&a, bearable).is_ok());
    }

    #[test]
    fn membership_is_renewed_while_it_lasts() {
        let mut lab = lab();
        let (a, first) = lab.member("a");
        lab.unix += 15 * DAY;
        let Reply::Member(renewed) = lab.ask(&a, Transaction::RenewMembership { unix: lab.unix })
        else {
            panic!("refused")
        };
        assert_eq!(
            (renewed.roles, renewed.expires),
            (first.roles, lab.unix + 30 * DAY)
        );
        assert_eq!(
            lab.network.verify_membership(&first, first.expires),
            Err(NotAMember::Expired)
        );
        lab.unix = renewed.expires;
        assert_eq!(
            lab.ask(&a, Transaction::RenewMembership { unix: lab.unix }),
            Reply::Refused(Refusal::NotAMember)
        );
    }

    #[test]
    fn nothing_is_said_before_the_disk_has_it() {
        let mut lab = lab();
        let owner = lab.owner.peer_id();
        let admit = Transaction::Admit {
            token: Vec::new(),
            name: name("home"),
            unix: NOW,
        };
        lab.registrar
            .handle_transaction(7, owner, admit, lab.now, NOW);
        let mut persisted = 0;
        loop {
            match lab.registrar.poll_event() {
                Some(RegistrarEvent::Persist { id, records }) => {
                    assert!(!records.is_empty());
                    assert_eq!(lab.registrar.poll_event(), None, "it must wait");
                    persisted += 1;
                    lab.registrar.handle_persisted(id, lab.now, NOW);
                }
                Some(RegistrarEvent::Reply { id: 7, .. }) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            persisted, 4,
            "a promise and an acceptance for the name and for the membership"
        );
    }

    #[test]
    fn a_changed_certificate_is_refused() {
        let mut lab = lab();
        let (a, _) = lab.member("a");
        let cert = lab.claim(&a, None).unwrap();
        let tampered = |change: fn(&mut crate::lease::Lease)| {
            let mut cert = cert.clone();
            change(&mut cert.body);
            lab.network.verify_lease(&cert)
        };
        assert!(matches!(
            tampered(|lease| lease.expires += 1),
            Err(BadLease::NotCertified(_))
        ));
        assert!(matches!(
            tampered(|lease| lease.holder = PeerId([1; 32])),
            Err(BadLease::NotCertified(_))
        ));
        assert_eq!(
            tampered(|lease| lease.generation = 2),
            Err(BadLease::Generation)
        );
        assert_eq!(
            tampered(|lease| lease.subject = OUTSIDE),
            Err(BadLease::OutsideTheSubnet)
        );
        assert_eq!(
            tampered(|lease| lease.epoch = 9),
            Err(BadLease::UnknownEpoch(9))
        );
        let unsigned = Certified {
            body: cert.body.clone(),
            signatures: Vec::new(),
        };
        assert!(matches!(
            lab.network.verify_lease(&unsigned),
            Err(BadLease::NotCertified(_))
        ));
    }
}
