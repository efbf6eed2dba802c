//! Stands in for the DHT under the cores: one record per member, written and read with delay, loss and staleness.
//!
//! What is real here: node records are signed, membership and leases in them are verified by the real
//! [`dht::directory::Directory`] of every node, and the registrar and the lease holders are the real cores.
//! Departures from the real one, each on purpose:
//!
//! - One store instead of the copies at the nodes nearest to a key: no lookup paths, no churn of those who store, no
//!   quotas. [`Terms`] stands for all of it: a delay per operation, a share of operations that fail, and a share of reads
//!   that return the version before the newest. The real DHT fails in longer bursts than this.
//! - Values are not sealed, and a record's own signature is checked once, when it is written, not by every reader.
//! - A push of a changed record goes to all members, a few at a time as in the real one, and may be lost; the real one goes
//!   to the members that are known, and opens control connections first. What was lost is made up for as in the real one:
//!   by reading again the slots of those who are missing, of a few others every five minutes, of whoever's session ended,
//!   and on account of addresses that are asked for.
//! - The roster is everybody who wrote a record; the real registrars tell it in pages.
//! - A control connection is up whenever both ends and at least one infrastructure node on their side of a partition are,
//!   and dies without a trace otherwise; the real one takes time to find out.
//! - When a partition heals, what was written on either side is visible on both at once.

use dht::{record::NodeRecord, signed::Verified};
use overlay_types::PeerId;
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

/// How well the control plane serves.
#[derive(Clone, Debug)]
pub struct Terms {
    /// How long each message or operation takes.
    pub delay: Range<Duration>,
    /// Share of messages and operations that fail, 0.0 to 1.0.
    pub loss: f64,
    /// Share of reads that return the version before the newest, 0.0 to 1.0.
    pub stale: f64,
    /// Whether infrastructure nodes give places at their relays; STUN they answer always.
    pub fabric_relays: bool,
    /// Whether members relay for each other.
    pub members_relay: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(20)..Duration::from_millis(200),
            loss: 0.05,
            stale: 0.1,
            fabric_relays: true,
            members_relay: true,
        }
    }
}

/// Versions kept of each record: the newest and the one before.
const VERSIONS_MAX: usize = 2;

#[derive(Clone)]
struct Version {
    record: Arc<Verified<NodeRecord>>,
    /// Written on the island of a partition that still lasts, or off it; `None` for both.
    on_island: Option<bool>,
}

/// The store.
#[derive(Default)]
pub struct SlotModel {
    slots: BTreeMap<PeerId, VecDeque<Version>>,
}

impl SlotModel {
    /// Writes a record where a partition, if there is one, lets it be seen.
    pub fn write(&mut self, record: Arc<Verified<NodeRecord>>, on_island: Option<bool>) {
        let versions = self.slots.entry(record.author()).or_default();
        if versions.len() == VERSIONS_MAX {
            versions.pop_front();
        }
        versions.push_back(Version { record, on_island });
    }

    /// Reads one member's record.
    pub fn read(
        &self,
        peer: PeerId,
        on_island: bool,
        terms: &Terms,
        rng: &mut ChaCha20Rng,
    ) -> Option<Arc<Verified<NodeRecord>>> {
        let seen = |version: &&Version| version.on_island.is_none_or(|side| side == on_island);
        let mut versions = self.slots.get(&peer)?.iter().filter(seen).rev();
        let newest = versions.next()?;
        let version = if rng.random_bool(terms.stale) {
            versions.next().unwrap_or(newest)
        } else {
            newest
        };
        Some(Arc::clone(&version.record))
    }

    /// Everybody who ever wrote a record.
    pub fn writers(&self) -> Vec<PeerId> {
        self.slots.keys().copied().collect()
    }

    /// The partition is over: everything is seen everywhere.
    pub fn heal(&mut self) {
        for version in self.slots.values_mut().flatten() {
            version.on_island = None;
        }
    }
}
