//! When traffic moves: to a path that is better, away from one that fell silent, after a peer that moved itself.
//! What is measured to decide it is in [`super::probe`], which of two paths is better in [`super::selection`].

use super::selection::is_better;
use super::watch::Watch;
use super::{PathAgent, PathEvent, silence_max};
use overlay_types::PathAddr;
use std::time::{Duration, Instant};

/// When doubt was unfounded, the two sides simply prefer different paths; this long before the next doubt of that kind. A
/// path that dies in the meantime is still left within 2 s.
const ROAM_CHECK_EVERY: Duration = Duration::from_millis(1500);

/// Only a path that answered this lately is followed to.
const ANSWERED_FOR: Duration = Duration::from_millis(500);

impl PathAgent {
    /// Takes the path that just answered into use if that is an improvement.
    pub(super) fn consider(&mut self, addr: PathAddr, now: Instant) {
        let Some(current) = self.current else {
            self.switch_to(addr, now);
            return self.call(now); // found again after a loss: the peer may not know our ways in now
        };
        if addr == current {
            let theirs = self.watch.take().and_then(|watch| watch.moved_to());
            self.unanswered_since = None;
            self.announce();
            if let Some(theirs) = theirs {
                self.roam_check_after = Some(now + ROAM_CHECK_EVERY);
                self.agree_on(theirs, now);
            }
            return;
        }
        if self.watch.is_none() && self.courted.take_if(|path| *path == addr).is_some() {
            self.agree_on(addr, now);
            if self.current == Some(addr) {
                return;
            }
        }
        let (old, new) = (&self.paths[&current], &self.paths[&addr]);
        let rtt = old.rtt.unwrap_or_default();
        if self
            .watch
            .as_ref()
            .is_some_and(|w| w.leave_for(rtt, now).is_some())
        {
            return self.leave(current, addr, now);
        }
        let is_settled = new.tier != old.tier || new.samples >= 2;
        if is_settled
            && !new.is_held_down(now)
            && is_better((new.tier, new.rtt), (old.tier, old.rtt))
        {
            self.switch_to(addr, now);
        } else if self.suggests_a_move(addr, now) {
            self.begin_watch(Watch::of_a_move(addr, now), now);
        }
    }

    /// Ours works, and the peer's datagrams come another way. Where that one is as good, one of the two gives way, so that each
    /// hears on its path what it sends on it.
    fn agree_on(&mut self, theirs: PathAddr, now: Instant) {
        let (Some(current), Some(new)) = (self.current, self.paths.get(&theirs)) else {
            return;
        };
        let old = &self.paths[&current];
        let is_as_good =
            new.tier == old.tier && !is_better((old.tier, old.rtt), (new.tier, new.rtt));
        if !self.follows || !is_as_good || !new.proven || new.is_held_down(now) {
            return;
        }
        let is_recent = |at| now.saturating_duration_since(at) < ANSWERED_FOR;
        if new.answered_at.is_some_and(is_recent) {
            self.switch_to(theirs, now);
        } else {
            self.courted = Some(theirs); // it was asked just now
        }
    }

    /// Whether the peer seems to have moved there: its datagrams come over a path that is no worse than ours, or known to work,
    /// and ours is silent.
    pub(super) fn suggests_a_move(&self, addr: PathAddr, now: Instant) -> bool {
        let (Some(current), Some(new)) = (self.current, self.paths.get(&addr)) else {
            return false;
        };
        let old = &self.paths[&current];
        let is_fresh = new
            .silent_for(now)
            .is_some_and(|s| s < silence_max(new.rtt));
        let is_time = self.roam_check_after.is_none_or(|at| now >= at);
        let is_likely = new.proven || new.tier <= old.tier;
        self.watch.is_none() && is_time && is_fresh && old.is_silent(now) && is_likely
    }

    /// The peer probed a path. Who is asked again and again on the path in use hears the peer, which may not hear it: what we
    /// send is lost.
    pub(super) fn handle_asked(&mut self, addr: PathAddr, now: Instant) {
        let path = self.paths.get_mut(&addr);
        if self.current == Some(addr) && path.is_some_and(|path| path.handle_asked(now)) {
            self.doubt(now);
        }
    }

    /// Asks whether the path in use still works, and what else does.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.begin_watch(Watch::new(now), now);
    }

    /// The path in use is silent. A peer that was heard on another one in the meantime may only prefer that, as two whose relays
    /// differ do all the time.
    pub(super) fn doubt_silence(&mut self, now: Instant) {
        let Some(since) = self.unanswered_since.take() else {
            return; // set again by the next traffic
        };
        let elsewhere = self.paths.iter().filter(|(addr, path)| {
            Some(**addr) != self.current && path.heard_at.is_some_and(|at| at >= since)
        });
        let theirs = elsewhere.max_by_key(|(_, path)| path.heard_at);
        match theirs.map(|(addr, _)| *addr) {
            Some(theirs) => self.begin_watch(Watch::of_a_move(theirs, now), now),
            None => self.doubt(now),
        }
    }

    /// Begins to doubt the path in use, unless that is under way.
    pub(super) fn begin_watch(&mut self, watch: Watch, now: Instant) {
        if self.current.is_some() && self.watch.is_none() {
            self.watch = Some(watch);
            self.continue_watch(now);
        }
    }

    pub(super) fn continue_watch(&mut self, now: Instant) {
        let (Some(current), Some(watch)) = (self.current, &mut self.watch) else {
            return;
        };
        let rtt = self.paths[&current].rtt.unwrap_or_default();
        let Some(step) = watch.handle_timeout(rtt, now) else {
            return;
        };
        if step.distressed {
            self.push_event(PathEvent::Distressed);
        }
        if let Some(since) = step.leave_for {
            let others = self
                .paths
                .iter()
                .filter(|(addr, p)| **addr != current && p.answered_since(since));
            if let Some((best, _)) = others.min_by_key(|(_, p)| (p.tier, p.rtt)) {
                let best = *best;
                return self.leave(current, best, now);
            }
        }
        if step.give_up {
            return self.lose(current, now);
        }
        self.probe(current, None, now);
        if step.probe_others {
            // What failed before may work again, and where the peer received once nobody else is hit.
            let others = self
                .paths
                .iter()
                .filter(|(addr, p)| **addr != current && (p.validated || p.tier.is_relayed()));
            let others: Vec<_> = others.map(|(addr, _)| *addr).collect();
            for addr in others {
                self.probe(addr, None, now);
            }
        }
    }

    /// The path in use failed and another works.
    pub(super) fn leave(&mut self, failed: PathAddr, best: PathAddr, now: Instant) {
        self.fail(failed, now);
        self.switch_to(best, now);
        if self.paths[&best].tier.is_relayed() {
            self.call(now);
        }
    }

    /// The path in use failed and nothing answers.
    pub(super) fn lose(&mut self, failed: PathAddr, now: Instant) {
        self.fail(failed, now);
        self.current = None;
        self.watch = None;
        self.unanswered_since = None;
        self.keepalive_at = None;
        self.announced = None;
        self.push_event(PathEvent::Lost);
        self.punching.forgive();
        self.probe_everything(now);
    }

    pub(super) fn fail(&mut self, failed: PathAddr, now: Instant) {
        self.stats.failures += 1;
        self.tries.note_failure(failed, now);
        if let Some(path) = self.paths.get_mut(&failed) {
            path.handle_failure(now);
        }
    }

    pub(super) fn switch_to(&mut self, addr: PathAddr, now: Instant) {
        (self.current, self.first) = (Some(addr), None);
        self.stats.changes += 1;
        self.watch = None;
        self.courted = None;
        self.unanswered_since = None;
        self.refresh_keepalive(now);
        self.announce();
    }

    /// Says which path is in use, where that or its figures changed enough to matter.
    pub(super) fn announce(&mut self) {
        let Some(view) = self.current() else { return };
        let is_notable = self.announced.is_none_or(|old| {
            let (low, high) = (old.rtt.min(view.rtt), old.rtt.max(view.rtt));
            old.addr != view.addr
                || old.mtu != view.mtu
                || (high - low > low / 4 && high - low > Duration::from_millis(2))
        });
        if is_notable
            || self
                .announced
                .is_some_and(|old| old.rtt.is_zero() && !view.rtt.is_zero())
        {
            self.announced = Some(view);
            self.push_event(PathEvent::Changed(view));
        }
    }
}
