//! The proposer's half of a registrar: takes a transaction through its registers, one ballot after another.

use super::{Outgoing, Phase, RESEND, Registrar, Running, Stage};
use crate::invite;
use crate::lease::CLOCK_SKEW_MAX_SECONDS;
use crate::lease::protocol::{MessageBody, Refusal, Reply, Transaction};
use crate::lease::register::{Ballot, Entry, Key};
use crate::lease::rules::{Body, Case, Outcome};
use crate::signed::{Certified, VoterSignature};
use overlay_types::PeerId;
use rand_chacha::rand_core::RngCore;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How long a transaction may take; then the asker hears how many registrars answered.
const TRANSACTION_TIME_MAX: Duration = Duration::from_secs(10);
/// Two proposers that outbid each other wait a random time up to this.
const BACKOFF_MAX_MS: u32 = 200;
/// Transactions at a time; more are refused as `Busy`.
const RUNNING_MAX: usize = 256;
/// Entries of other voters' that we keep to avoid asking for what is taken.
const LEARNED_MAX: usize = 4096;

impl Registrar {
    pub(super) fn begin(
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

    /// Starts, repeats or ends what a transaction is at.
    pub(super) fn drive(&mut self, serial: u64, now: Instant) {
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

    pub(super) fn propose(&mut self, serial: u64, now: Instant) {
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
    pub(super) fn resend(&mut self, serial: u64, now: Instant) {
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

    pub(super) fn tell_others(&mut self, body: &MessageBody) {
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

    pub(super) fn tell_all(&mut self, body: &MessageBody) {
        self.tell_others(body);
        self.staged.push(Outgoing::Message(self.me(), body.clone()));
    }

    /// The transaction that is at `key` with `ballot`.
    pub(super) fn at_ballot(&mut self, key: &Key, ballot: Ballot) -> Option<(u64, &mut Running)> {
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

    pub(super) fn handle_promise(
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

    pub(super) fn look_elsewhere(&mut self, serial: u64, key: &Key, now: Instant) {
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

    pub(super) fn handle_accepted(
        &mut self,
        from: PeerId,
        key: &Key,
        ballot: Ballot,
        now: Instant,
    ) {
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

    pub(super) fn handle_signed(&mut self, key: &Key, ballot: Ballot, signature: VoterSignature) {
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

    pub(super) fn handle_outbid(
        &mut self,
        key: &Key,
        ballot: Ballot,
        promised: Ballot,
        now: Instant,
    ) {
        let wait = Duration::from_millis((self.rng.next_u32() % BACKOFF_MAX_MS).into());
        let Some((_, running)) = self.at_ballot(key, ballot) else {
            return;
        };
        running.outbid_by = running.outbid_by.max(promised);
        running.stage = Stage::Waiting {
            retry_at: now + wait,
        };
    }

    pub(super) fn handle_clocks_apart(
        &mut self,
        from: PeerId,
        key: &Key,
        ballot: Ballot,
        seconds: u64,
    ) {
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

    pub(super) fn finish(&mut self, serial: u64, reply: Reply) {
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
    pub(super) fn wake(&mut self, key: &Key, now: Instant) {
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
}
