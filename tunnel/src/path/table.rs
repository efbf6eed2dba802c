//! Which ways to the peer are kept track of: all its candidates, and some that its datagrams came from.

use super::probe::Path;
use super::{CANDIDATES_MAX, PathAgent};
use overlay_types::PathAddr;

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
