//! Slot reads and writes that are under way in the DHT: what to ask Kademlia next, and when to stop waiting.
//! [`super::task`] owns the swarm and lends its Kademlia part.

use super::bundle::parse_bundle;
use super::handle::PutError;
use super::peer::{from_libp2p, to_libp2p};
use super::slots::{REPLICATION, SlotKad, unix_now};
use crate::slot::{SlotValue, Source};
use libp2p::PeerId;
use libp2p::kad::{GetClosestPeersError, GetRecordOk, KBucketKey, Mode};
use libp2p::kad::{QueryId, QueryResult, Quorum, Record, RecordKey};
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Jobs that run at a time: kad has 32 streams for each connection, and with one fabric node all go to it.
const RUNNING_MAX: usize = 24;
/// Jobs that wait for their turn, or for the first DHT node; further ones are refused.
const WAITING_MAX: usize = 1024;
/// How long a job waits for its turn.
const WAITING_PATIENCE: Duration = Duration::from_secs(5);
/// How long a read goes on after the first node had a value: others are asked too, so that no single one can hide a newer value.
const AFTER_FIRST_HIT: Duration = Duration::from_secs(1);
/// How long a read goes on while nobody had one.
const GET_PATIENCE: Duration = Duration::from_secs(5);
/// After this, a write is answered as soon as one node has stored; the others go on in the background.
const PUT_PATIENCE: Duration = Duration::from_millis(800);
/// Distinct valid values that one read collects: every writer of a network may have one at every node.
const VALUES_MAX: usize = 32;

/// What a job needs of the swarm.
pub(super) struct Dht<'a> {
    pub(super) kad: &'a mut SlotKad,
    pub(super) own: Source,
}

/// All that run or wait.
#[derive(Default)]
pub(super) struct Queries {
    waiting: VecDeque<(Job, Instant)>,
    running: Vec<Running>,
    /// Values that DHT nodes gave us and that were not valid.
    pub(super) values_invalid: u64,
}

enum Job {
    Put(Put),
    Get(Get),
}

struct Put {
    key: [u8; 32],
    value: Vec<u8>,
    reply: oneshot::Sender<Result<usize, PutError>>,
}

struct Get {
    key: [u8; 32],
    reply: oneshot::Sender<Vec<Vec<u8>>>,
}

/// Put: Placing ──closest nodes known──▶ Storing ──all answered, or one and time is up──▶ answered.
/// Get: Reading ──all closest answered, or a hit and time is up──▶ answered.
enum Running {
    Placing {
        query: QueryId,
        put: Put,
    },
    Storing {
        queries: Vec<QueryId>,
        asked: usize,
        stored: usize,
        answer_from: Instant,
        put: Put,
    },
    Reading {
        query: QueryId,
        values: Vec<SlotValue>,
        until: Instant,
        get: Get,
    },
}

impl Running {
    fn is_of(&self, id: QueryId) -> bool {
        match self {
            Self::Placing { query, .. } | Self::Reading { query, .. } => *query == id,
            Self::Storing { queries, .. } => queries.contains(&id),
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        match self {
            Self::Placing { .. } => false, // kad's own timeout ends it
            Self::Storing {
                queries,
                stored,
                answer_from,
                ..
            } => queries.is_empty() || (*stored > 0 && *answer_from <= now),
            Self::Reading { until, .. } => *until <= now,
        }
    }

    /// Tells who asked.
    fn answer(self) {
        match self {
            Self::Placing { put, .. } => drop(put.reply.send(Err(PutError::NoPeers))),
            Self::Storing {
                asked, stored, put, ..
            } => {
                let answer = if stored > 0 {
                    Ok(stored)
                } else {
                    Err(PutError::NobodyStored { asked })
                };
                let _gone = put.reply.send(answer);
            }
            Self::Reading {
                mut values, get, ..
            } => {
                values.sort_by_key(|value| Reverse(value.seq));
                let _gone = get
                    .reply
                    .send(values.iter().map(SlotValue::encode).collect());
            }
        }
    }
}

impl Queries {
    pub(super) fn put(
        &mut self,
        value: Vec<u8>,
        reply: oneshot::Sender<Result<usize, PutError>>,
        dht: Dht<'_>,
        now: Instant,
    ) {
        let checked = SlotValue::decode(&value)
            .map_err(|error| error.to_string())
            .and_then(|slot| {
                slot.verify(unix_now())
                    .map(|()| slot.dht_key())
                    .map_err(|error| error.to_string())
            });
        match checked {
            Err(why) => drop(reply.send(Err(PutError::Invalid(why)))),
            Ok(_) if self.waiting.len() == WAITING_MAX => drop(reply.send(Err(PutError::Busy))),
            Ok(key) => {
                self.waiting
                    .push_back((Job::Put(Put { key, value, reply }), now));
                self.start_waiting(dht, now);
            }
        }
    }

    pub(super) fn get(
        &mut self,
        key: [u8; 32],
        reply: oneshot::Sender<Vec<Vec<u8>>>,
        dht: Dht<'_>,
        now: Instant,
    ) {
        if self.waiting.len() == WAITING_MAX {
            return drop(reply.send(Vec::new()));
        }
        self.waiting.push_back((Job::Get(Get { key, reply }), now));
        self.start_waiting(dht, now);
    }

    /// Starts what can start. To be called whenever a DHT node was met.
    pub(super) fn start_waiting(&mut self, dht: Dht<'_>, now: Instant) {
        let has_peers = dht.kad.kbuckets().next().is_some();
        if !has_peers && dht.kad.mode() == Mode::Client {
            return; // nobody to ask, and nothing is kept here
        }
        while self.running.len() < RUNNING_MAX
            && let Some((job, _)) = self.waiting.pop_front()
        {
            match job {
                Job::Put(put) if !has_peers => {
                    let stored = dht.kad.store_mut().put_own(&put.value, dht.own);
                    let _gone = put.reply.send(
                        stored
                            .map(|_| 1)
                            .map_err(|error| PutError::Invalid(error.to_string())),
                    );
                }
                Job::Put(put) => {
                    let query = dht.kad.get_n_closest_peers(put.key.to_vec(), REPLICATION);
                    self.running.push(Running::Placing { query, put });
                }
                Job::Get(get) => {
                    let query = dht.kad.get_record(RecordKey::new(&get.key));
                    let until = now + GET_PATIENCE;
                    self.running.push(Running::Reading {
                        query,
                        values: Vec::new(),
                        until,
                        get,
                    });
                }
            }
        }
    }

    /// Kademlia tells how a query goes.
    pub(super) fn handle_progress(
        &mut self,
        id: QueryId,
        result: QueryResult,
        is_last: bool,
        dht: Dht<'_>,
        now: Instant,
    ) {
        let Some(at) = self.running.iter().position(|running| running.is_of(id)) else {
            return;
        };
        match (self.running.swap_remove(at), result) {
            (Running::Placing { put, .. }, QueryResult::GetClosestPeers(closest)) if is_last => {
                let closest = closest.map_or_else(
                    |GetClosestPeersError::Timeout { peers, .. }| peers,
                    |ok| ok.peers,
                );
                let peers = closest.into_iter().map(|info| info.peer_id).collect();
                self.store(
                    put,
                    peers,
                    Dht {
                        kad: &mut *dht.kad,
                        own: dht.own,
                    },
                    now,
                );
            }
            (
                Running::Storing {
                    mut queries,
                    asked,
                    mut stored,
                    answer_from,
                    put,
                },
                QueryResult::PutRecord(one),
            ) => {
                queries.retain(|query| *query != id);
                stored += usize::from(one.is_ok());
                self.keep_or_answer(
                    Running::Storing {
                        queries,
                        asked,
                        stored,
                        answer_from,
                        put,
                    },
                    now,
                );
            }
            (
                Running::Reading {
                    query,
                    mut values,
                    mut until,
                    get,
                },
                result,
            ) => {
                if let QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))) = &result {
                    for bytes in parse_bundle(&found.record.value) {
                        self.values_invalid += u64::from(!collect(&mut values, &get.key, bytes));
                    }
                    if found.peer.is_some() && !values.is_empty() {
                        until = until.min(now + AFTER_FIRST_HIT);
                    }
                }
                let until = if is_last { now } else { until };
                self.keep_or_answer(
                    Running::Reading {
                        query,
                        values,
                        until,
                        get,
                    },
                    now,
                );
            }
            (other, _) => self.running.push(other),
        }
        self.start_waiting(dht, now);
    }

    fn keep_or_answer(&mut self, job: Running, now: Instant) {
        if job.is_over(now) {
            job.answer()
        } else {
            self.running.push(job)
        }
    }

    /// The nodes closest to the key are known: they are to store it, and so is this node when it is one of them.
    fn store(&mut self, put: Put, mut peers: Vec<PeerId>, dht: Dht<'_>, now: Instant) {
        let target = KBucketKey::new(put.key.to_vec());
        let distance_of = |peer: PeerId| KBucketKey::from(peer).distance(&target);
        peers.retain(|peer| from_libp2p(peer).is_ok());
        peers.sort_by_cached_key(|peer| distance_of(*peer));
        peers.truncate(REPLICATION.get());
        let is_close = dht.kad.mode() == Mode::Server
            && (peers.len() < REPLICATION.get()
                || to_libp2p(dht.own.peer).is_ok_and(|me| {
                    peers
                        .last()
                        .is_some_and(|last| distance_of(me) < distance_of(*last))
                }));
        let is_stored_here = is_close && dht.kad.store_mut().put_own(&put.value, dht.own).is_ok();
        if peers.is_empty() && !is_stored_here {
            return drop(put.reply.send(Err(PutError::NoPeers)));
        }
        let asked = peers.len();
        // One query for each node: kad would ask three at a time and tell the outcome of all at the end.
        let ask = |peer| {
            let record = Record {
                key: RecordKey::new(&put.key),
                value: put.value.clone(),
                publisher: None,
                expires: None,
            };
            dht.kad
                .put_record_to(record, std::iter::once(peer), Quorum::One)
        };
        let queries = peers.into_iter().map(ask).collect();
        let stored = usize::from(is_stored_here);
        let answer_from = now + PUT_PATIENCE;
        self.keep_or_answer(
            Running::Storing {
                queries,
                asked,
                stored,
                answer_from,
                put,
            },
            now,
        );
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let running = self.running.iter().filter_map(|running| match running {
            Running::Storing {
                stored,
                answer_from,
                ..
            } => (*stored > 0).then_some(*answer_from),
            Running::Reading { until, .. } => Some(*until),
            Running::Placing { .. } => None,
        });
        let waiting = self
            .waiting
            .front()
            .map(|(_, since)| *since + WAITING_PATIENCE);
        running.chain(waiting).min()
    }

    pub(super) fn handle_timeout(&mut self, dht: Dht<'_>, now: Instant) {
        let mut is_any_over = false;
        while let Some((_, since)) = self.waiting.front()
            && *since + WAITING_PATIENCE <= now
        {
            // Nothing runs: the wait was for a DHT node. Else it was for a turn.
            let why = if self.running.is_empty() {
                PutError::NoPeers
            } else {
                PutError::Busy
            };
            match self.waiting.pop_front() {
                Some((Job::Put(put), _)) => drop(put.reply.send(Err(why))),
                Some((Job::Get(get), _)) => drop(get.reply.send(Vec::new())),
                None => {}
            }
        }
        for job in self.running.extract_if(.., |job| job.is_over(now)) {
            is_any_over = true;
            if let Running::Reading { query, .. } = &job
                && let Some(mut query) = dht.kad.query_mut(query)
            {
                query.finish();
            }
            job.answer();
        }
        if is_any_over {
            self.start_waiting(dht, now);
        }
    }
}

/// Takes a value of the slot at `key` that is not there yet. False when it is not a valid value of that slot.
fn collect(values: &mut Vec<SlotValue>, key: &[u8; 32], bytes: &[u8]) -> bool {
    let Ok(value) = SlotValue::decode(bytes) else {
        return false;
    };
    if values.contains(&value) {
        return true;
    }
    let is_valid = value.dht_key() == *key && value.verify(unix_now()).is_ok();
    if is_valid && values.len() < VALUES_MAX {
        values.push(value);
    }
    is_valid
}
