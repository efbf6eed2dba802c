//! Which ways to the peer are kept track of: all its candidates, and some that its datagrams came from.

use super::probe::Path;
use super::{CANDIDATES_MAX, PathAgent};
use overlay_types::PathAddr;
use std::time::Instant;

/// Ways to one peer that are kept track of: all its candidates, and some that its datagrams came from.
pub(super) const PATHS_MAX: usize = CANDIDATES_MAX + 8;

impl PathAgent {
    /// Brings the table in line with the candidates; what works stays even if the peer stopped listing it.
    pub(super) fn sync_paths(&mut self) {
        let listed = self.candidates.remote();
        let is_listed = |addr: &PathAddr| listed.iter().any(|(a, _)| a == addr);
        self.paths.retain(|addr, path| {
            path.learned || path.proven || self.current == Some(*addr) || is_listed(addr)
        });
        for (addr, path) in &mut self.paths {
            path.tier = self.candidates.tier_of(*addr);
            path.learned = !is_listed(addr);
        }
        for (addr, tier) in listed {
            if !self.paths.contains_key(&addr) && self.make_room() {
                let path = Path::new(addr, tier, false, self.datagram_bytes_max);
                self.paths.insert(addr, path);
            }
        }
    }

    /// Remembers an address that an authenticated datagram came from.
    pub(super) fn learn(&mut self, from: PathAddr) {
        if self.paths.contains_key(&from) {
            return;
        }
        if self.make_room() {
            let tier = self.candidates.tier_of(from);
            let path = Path::new(from, tier, true, self.datagram_bytes_max);
            self.paths.insert(from, path);
        } else {
            self.stats.sources_refused += 1;
        }
    }

    /// The relay at `before` is now reached at `after`.
    pub(super) fn move_relayed_paths(&mut self, before: PathAddr, after: PathAddr, now: Instant) {
        let moved = |addr: &PathAddr| match addr.last_relay() {
            Some((relay, index)) if relay == before => after.beyond(index),
            _ => None,
        };
        let old: Vec<_> = self
            .paths
            .keys()
            .filter_map(|addr| Some((*addr, moved(addr)?)))
            .collect();
        for (addr, moved) in old {
            let Some(path) = self.paths.remove(&addr) else {
                continue;
            };
            let tier = self.candidates.tier_of(moved);
            let fresh = Path::new(moved, tier, path.learned, self.datagram_bytes_max);
            let known = self.paths.entry(moved).or_insert(fresh);
            known.tier = tier;
            known.proven |= path.proven;
            known.validated |= path.validated;
            if self.first == Some(addr) {
                self.first = Some(moved);
            }
            if self.current == Some(addr) {
                known.heard_at = Some(now);
                self.switch_to(moved, now);
                self.doubt(now);
            }
        }
    }

    /// Makes room for one more path: an address that was only seen goes before one that works, and the longest quiet first.
    pub(super) fn make_room(&mut self) -> bool {
        if self.paths.len() < PATHS_MAX {
            return true;
        }
        let spare = self
            .paths
            .iter()
            .filter(|(addr, path)| path.learned && self.current != Some(**addr));
        let oldest = spare
            .min_by_key(|(_, path)| (path.proven, path.heard_at))
            .map(|(addr, _)| *addr);
        oldest.is_some_and(|addr| self.paths.remove(&addr).is_some())
    }
}
