//! A voter's memory: for each register what it promised and accepted, ready to be written to disk before anybody
//! hears of it. It knows nothing of leases.

use super::register::{Ballot, Entry, Key, Vote};
use crate::encoding::{Undecodable, decode, encode};
use overlay_types::PeerId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Registers that a voter keeps at most: all addresses of a /16 with their names, and room.
const REGISTERS_MAX: usize = 200_000;
/// What the voter's own counts are stored under; votes are under `v` and their key.
const COUNTS_KEY: &[u8] = b"counts";

/// The voter's counts: how a node finds out that its disk was set back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Counts {
    /// Votes that this voter has cast in all.
    cast: u64,
    /// The highest such count that each other voter has told us.
    seen: BTreeMap<PeerId, u64>,
}

#[derive(Debug)]
pub(super) struct Acceptor {
    votes: BTreeMap<Key, Vote>,
    counts: Counts,
    dirty: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Why a voter does not take part.
pub(super) enum No {
    /// It promised this higher ballot.
    Promised(Ballot),
    /// It has no room for another register.
    Full,
}

impl Acceptor {
    /// What was on disk.
    pub(super) fn restore(
        records: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
    ) -> Result<Self, Undecodable> {
        let mut this = Self {
            votes: BTreeMap::new(),
            counts: Counts::default(),
            dirty: BTreeMap::new(),
        };
        for (key, value) in records {
            if key == COUNTS_KEY {
                this.counts = decode(&value, 4096)?;
            } else {
                let vote = Vote::from_bytes(&value)?;
                this.votes.insert(vote.key.clone(), vote);
            }
        }
        Ok(this)
    }

    /// Takes part in `ballot` and in none below; tells what was accepted before.
    pub(super) fn promise(
        &mut self,
        key: &Key,
        ballot: Ballot,
    ) -> Result<Option<(Ballot, Entry)>, No> {
        let vote = self.vote_to_raise(key, ballot)?;
        let accepted = vote.accepted.clone();
        if vote.promised < ballot {
            vote.promised = ballot;
            self.cast(key);
        }
        Ok(accepted)
    }

    /// Accepts `entry` at `ballot`.
    pub(super) fn accept(&mut self, key: &Key, ballot: Ballot, entry: Entry) -> Result<(), No> {
        let vote = self.vote_to_raise(key, ballot)?;
        if vote.accepted.as_ref().is_none_or(|(at, _)| *at < ballot) {
            vote.promised = ballot;
            vote.accepted = Some((ballot, entry));
            self.cast(key);
        }
        Ok(())
    }

    fn vote_to_raise(&mut self, key: &Key, ballot: Ballot) -> Result<&mut Vote, No> {
        if self.votes.len() >= REGISTERS_MAX && !self.votes.contains_key(key) {
            return Err(No::Full);
        }
        let none = || Vote {
            key: key.clone(),
            promised: Ballot::default(),
            accepted: None,
        };
        let vote = self.votes.entry(key.clone()).or_insert_with(none);
        if ballot < vote.promised {
            Err(No::Promised(vote.promised))
        } else {
            Ok(vote)
        }
    }

    fn cast(&mut self, key: &Key) {
        self.counts.cast += 1;
        let vote = &self.votes[key];
        self.dirty
            .insert([&b"v"[..], &encode(key)].concat(), vote.to_bytes());
    }

    /// What must be on disk before what was just voted is told. Empty when nothing was.
    pub(super) fn take_dirty(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut records: Vec<_> = std::mem::take(&mut self.dirty).into_iter().collect();
        if !records.is_empty() {
            records.push((COUNTS_KEY.to_vec(), encode(&self.counts)));
        }
        records
    }

    /// The highest ballot that the voter promised for `key`.
    pub(super) fn promised(&self, key: &Key) -> Ballot {
        self.votes
            .get(key)
            .map_or(Ballot::default(), |vote| vote.promised)
    }

    /// What the voter accepted for `key`; a majority may know something newer.
    pub(super) fn accepted(&self, key: &Key) -> Option<&(Ballot, Entry)> {
        self.votes.get(key)?.accepted.as_ref()
    }

    /// All keys with what was accepted for them, in order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.votes
            .values()
            .filter_map(|vote| vote.accepted.as_ref().map(|(_, entry)| (&vote.key, entry)))
    }

    /// How many votes the voter has cast.
    pub(super) const fn cast_count(&self) -> u64 {
        self.counts.cast
    }

    /// The highest count that `peer` has told.
    pub(super) fn seen_count(&self, peer: PeerId) -> u64 {
        self.counts.seen.get(&peer).copied().unwrap_or(0)
    }

    /// `voter` says it has cast so many votes. Reaches the disk with the next vote.
    pub(super) fn note_seen(&mut self, voter: PeerId, cast: u64) {
        let seen = self.counts.seen.entry(voter).or_default();
        *seen = cast.max(*seen);
    }
}
