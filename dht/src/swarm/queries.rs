//! Slot reads and writes that are under way in the DHT. It decides what to ask Kademlia next and when to stop waiting;
//! [`super::task`] owns the swarm and passes it in.

use super::bundle::parse_bundle;
use super::handle::PutError;
use super::peer::from_libp2p;
use super::slots::{REPLICATION, SlotKad, unix_now};
use crate::slot::{SlotValue, Source};
use libp2p::PeerId;
use libp2p::kad::{
    GetClosestPeersError, GetRecordOk, KBucketKey, Mode, PutRecordError, QueryId, QueryResult,
    Quorum, Record, RecordKey,
};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Queries that run at a time: kad has 32 streams for each connection, and with one fabric node all go to it.
const RUNNING_MAX: usize = 24;
/// Queries that wait for their turn, or for the first DHT node; further ones are refused.
const WAITING_MAX: usize = 1024;
/// How long a query waits for the first DHT node to be connected.
const NO_PEERS_PATIENCE: Duration = Duration::from_secs(5);
/// How long a read goes on after the first node had a value. Others are asked so that no single node can hide a newer one.
const AFTER_FIRST_HIT: Duration = Duration::from_secs(1);
/// How long a read goes on while nobody had one.
const GET_PATIENCE: Duration = Duration::from_secs(5);
/// After this, a write is answered as soon as one node has stored; the others go on in the background.
const PUT_PATIENCE: Duration = Duration::from_millis(1500);
/// Distinct valid values that one read collects: every writer of a network may have one at every node.
const VALUES_MAX: usize = 32;

/// All that run or wait.
#[derive(Default)]
pub(super) struct Queries {
    waiting: VecDeque<(Job, Instant)>,
    running: Vec<Running>,
    /// Values that DHT nodes gave us and that were not valid.
    pub(super) values_invalid: u64,
}

enum Job {
    Put {
        key: [u8; 32],
        value: Vec<u8>,
        reply: oneshot::Sender<Result<usize, PutError>>,
    },
    Get {
        key: [u8; 32],
        reply: oneshot::Sender<Vec<Vec<u8>>>,
    },
}

struct Running {
    query: QueryId,
    stage: Stage,
}

enum Stage {
    /// Looking for the nodes that are to store it.
    Placing {
        key: [u8; 32],
        value: Vec<u8>,
        reply: oneshot::Sender<Result<usize, PutError>>,
    },
    /// They have been asked; `stored_here` is 1 when this node is one of them.
    Storing {
        asked: usize,
        stored_here: usize,
        answer_from: Instant,
        reply: oneshot::Sender<Result<usize, PutError>>,
    },
    /// Values are coming in.
    Reading {
        key: [u8; 32],
        values: Vec<SlotValue>,
        until: Instant,
        reply: oneshot::Sender<Vec<Vec<u8>>>,
    },
    /// Answered already; only kept so that the count of running queries is right.
    Answered,
}

impl Queries {
    pub(super) fn put(
        &mut self,
        value: Vec<u8>,
        reply: oneshot::Sender<Result<usize, PutError>>,
        kad: &mut SlotKad,
        own: Source,
        now: Instant,
    ) {
        let checked = SlotValue::decode(&value).map_err(|error| error.to_string());
        match checked.and_then(|slot| {
            slot.verify(unix_now())
                .map(|()| slot.dht_key())
                .map_err(|error| error.to_string())
        }) {
            Err(why) => drop(reply.send(Err(PutError::Invalid(why)))),
            Ok(_) if self.waiting.len() == WAITING_MAX => drop(reply.send(Err(PutError::Busy))),
            Ok(key) => {
                self.waiting
                    .push_back((Job::Put { key, value, reply }, now));
                self.start_waiting(kad, own, now);
            }
        }
    }

    pub(super) fn get(
        &mut self,
        key: [u8; 32],
        reply: oneshot::Sender<Vec<Vec<u8>>>,
        kad: &mut SlotKad,
        own: Source,
        now: Instant,
    ) {
        if self.waiting.len() == WAITING_MAX {
            return drop(reply.send(Vec::new()));
        }
        self.waiting.push_back((Job::Get { key, reply }, now));
        self.start_waiting(kad, own, now);
    }

    /// Starts what can start. To be called whenever a DHT node was met or a query ended.
    pub(super) fn start_waiting(&mut self, kad: &mut SlotKad, own: Source, now: Instant) {
        let has_peers = kad.kbuckets().next().is_some();
        if !has_peers && kad.mode() == Mode::Client {
            return; // nobody to ask, and nothing is kept here
        }
        while self.running.len() < RUNNING_MAX
            && let Some((job, _)) = self.waiting.pop_front()
        {
            match job {
                Job::Put { value, reply, .. } if !has_peers => {
                    let stored = kad.store_mut().put_own(&value, own);
                    let _gone = reply.send(
                        stored
                            .map(|_| 1)
                            .map_err(|error| PutError::Invalid(error.to_string())),
                    );
                }
                Job::Put { key, value, reply } => {
                    let query = kad.get_n_closest_peers(key.to_vec(), REPLICATION);
                    self.running.push(Running {
                        query,
                        stage: Stage::Placing { key, value, reply },
                    });
                }
                Job::Get { key, reply } => {
                    let query = kad.get_record(RecordKey::new(&key));
                    self.running.push(Running {
                        query,
                        stage: Stage::Reading {
                            key,
                            values: Vec::new(),
                            until: now + GET_PATIENCE,
                            reply,
                        },
                    });
                }
            }
        }
    }

    /// Kademlia tells how a query goes.
    pub(super) fn handle_progress(
        &mut self,
        query: QueryId,
        result: QueryResult,
        is_last: bool,
        kad: &mut SlotKad,
        own: Source,
        now: Instant,
    ) {
        let Some(at) = self
            .running
            .iter()
            .position(|running| running.query == query)
        else {
            return;
        };
        if let (
            Stage::Reading {
                key, values, until, ..
            },
            QueryResult::GetRecord(Ok(GetRecordOk::FoundRecord(found))),
        ) = (&mut self.running[at].stage, &result)
        {
            for bytes in parse_bundle(&found.record.value) {
                self.values_invalid += u64::from(!collect(values, key, bytes));
            }
            if found.peer.is_some() && !values.is_empty() {
                *until = (*until).min(now + AFTER_FIRST_HIT);
            }
        }
        if !is_last {
            return;
        }
        match (self.running.swap_remove(at).stage, result) {
            (Stage::Placing { key, value, reply }, QueryResult::GetClosestPeers(closest)) => {
                let peers = closest.map_or_else(
                    |GetClosestPeersError::Timeout { peers, .. }| peers,
                    |ok| ok.peers,
                );
                let peers = peers.into_iter().map(|info| info.peer_id).collect();
                self.store(key, value, peers, reply, kad, own, now);
            }
            (
                Stage::Storing {
                    asked,
                    stored_here,
                    reply,
                    ..
                },
                QueryResult::PutRecord(stored),
            ) => {
                let stored = match stored {
                    Ok(_) => asked,
                    Err(
                        PutRecordError::QuorumFailed { success, .. }
                        | PutRecordError::Timeout { success, .. },
                    ) => success.len(),
                };
                let _gone = reply.send(put_answer(stored + stored_here, asked));
            }
            (Stage::Reading { values, reply, .. }, _) => drop(reply.send(newest_first(values))),
            _ => {}
        }
        self.start_waiting(kad, own, now);
    }

    /// The nodes closest to the key are known: they are to store it, and so is this node when it is one of them.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of one job, with all that the job carries"
    )]
    fn store(
        &mut self,
        key: [u8; 32],
        value: Vec<u8>,
        mut peers: Vec<PeerId>,
        reply: oneshot::Sender<Result<usize, PutError>>,
        kad: &mut SlotKad,
        own: Source,
        now: Instant,
    ) {
        let record_key = RecordKey::new(&key);
        let target = KBucketKey::new(key.to_vec());
        peers.retain(|peer| from_libp2p(peer).is_ok());
        peers.sort_by_cached_key(|peer| KBucketKey::from(*peer).distance(&target));
        peers.truncate(REPLICATION.get());
        let is_close = kad.mode() == Mode::Server
            && super::peer::to_libp2p(own.peer).is_ok_and(|me| {
                let mine = KBucketKey::from(me).distance(&target);
                peers.len() < REPLICATION.get()
                    || peers
                        .last()
                        .is_some_and(|last| mine < KBucketKey::from(*last).distance(&target))
            });
        let stored_here = usize::from(is_close && kad.store_mut().put_own(&value, own).is_ok());
        if peers.is_empty() {
            return drop(reply.send(if stored_here > 0 {
                Ok(stored_here)
            } else {
                Err(PutError::NoPeers)
            }));
        }
        let asked = peers.len();
        let record = Record {
            key: record_key,
            value,
            publisher: None,
            expires: None,
        };
        let query = kad.put_record_to(record, peers.into_iter(), Quorum::All);
        self.running.push(Running {
            query,
            stage: Stage::Storing {
                asked,
                stored_here,
                answer_from: now + PUT_PATIENCE,
                reply,
            },
        });
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let running = self
            .running
            .iter()
            .filter_map(|running| match &running.stage {
                Stage::Storing { answer_from, .. } => Some(*answer_from),
                Stage::Reading { until, .. } => Some(*until),
                Stage::Placing { .. } | Stage::Answered => None, // kad's own timeout ends it
            });
        running
            .chain(
                self.waiting
                    .front()
                    .map(|(_, since)| *since + NO_PEERS_PATIENCE),
            )
            .min()
    }

    pub(super) fn handle_timeout(&mut self, kad: &mut SlotKad, own: Source, now: Instant) {
        while let Some((_, since)) = self.waiting.front()
            && *since + NO_PEERS_PATIENCE <= now
        {
            match self.waiting.pop_front() {
                Some((Job::Put { reply, .. }, _)) if self.running.is_empty() => {
                    drop(reply.send(Err(PutError::NoPeers)))
                }
                Some((Job::Put { reply, .. }, _)) => drop(reply.send(Err(PutError::Busy))),
                Some((Job::Get { reply, .. }, _)) => drop(reply.send(Vec::new())),
                None => {}
            }
        }
        for running in &mut self.running {
            match &mut running.stage {
                Stage::Reading { until, .. } if *until <= now => {
                    let Stage::Reading { values, reply, .. } =
                        std::mem::replace(&mut running.stage, Stage::Answered)
                    else {
                        continue;
                    };
                    let _gone = reply.send(newest_first(values));
                    if let Some(mut query) = kad.query_mut(&running.query) {
                        query.finish();
                    }
                }
                Stage::Storing {
                    asked,
                    stored_here,
                    answer_from,
                    ..
                } if *answer_from <= now => {
                    let stored = *stored_here
                        + kad
                            .query(&running.query)
                            .map_or(0, |query| query.stats().num_successes() as usize);
                    if stored == 0 {
                        *answer_from = now + PUT_PATIENCE;
                        continue;
                    }
                    let asked = *asked;
                    let Stage::Storing { reply, .. } =
                        std::mem::replace(&mut running.stage, Stage::Answered)
                    else {
                        continue;
                    };
                    let _gone = reply.send(put_answer(stored, asked)); // the query itself goes on
                }
                _ => {}
            }
        }
        self.running
            .retain(|running| !matches!(running.stage, Stage::Answered));
        self.start_waiting(kad, own, now);
    }
}

fn put_answer(stored: usize, asked: usize) -> Result<usize, PutError> {
    if stored > 0 {
        Ok(stored)
    } else {
        Err(PutError::NobodyStored { asked })
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

fn newest_first(mut values: Vec<SlotValue>) -> Vec<Vec<u8>> {
    values.sort_by_key(|value| std::cmp::Reverse(value.seq));
    values.iter().map(SlotValue::encode).collect()
}
