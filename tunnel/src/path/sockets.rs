//! Sockets beside the data port's that this peer's paths use: wished for, given by the engine, and closed once nothing
//! comes over them.

use super::{PathAgent, PathWish};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A socket over which nothing came for this long is closed: any NAT has forgotten it by then, or nobody is there.
const QUIET_MAX: Duration = Duration::from_secs(60);

/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The sockets of one peer.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: BTreeSet<u16>,
    look_at: Option<Instant>,
}

impl Sockets {
    /// When something is due.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.look_at
    }
}

impl PathAgent {
    /// These are open now: what was wished for, or fewer where the node has no more.
    pub fn handle_sockets(&mut self, sockets: &[u16], now: Instant) {
        self.sockets.open.extend(sockets);
        if !self.is_up {
            return self.close_sockets();
        }
        if let ([first, ..], true) = (sockets, self.foretelling.wants_socket()) {
            self.take_foretelling_socket(*first);
        } else {
            self.take_chance_sockets(sockets, now);
        }
        self.sockets.look_at = Some(now + LOOK_EVERY);
    }

    /// Closes what is of no use any longer.
    pub(super) fn tidy_sockets(&mut self, now: Instant) {
        let idle = self.sockets.open.iter().filter(|&&socket| {
            let carries = self.paths.iter().any(|(addr, path)| {
                let is_heard = path.silent_for(now).is_some_and(|s| s < QUIET_MAX);
                addr.socket() == socket && (is_heard || self.current == Some(*addr))
            });
            !carries && !self.foretelling.uses(socket) && !self.chance.uses(socket)
        });
        let idle: Vec<u16> = idle.copied().collect();
        self.paths.retain(|addr, _| !idle.contains(&addr.socket()));
        for socket in idle {
            self.sockets.open.remove(&socket);
            self.wish(PathWish::Close(socket));
        }
        self.sockets.look_at = (!self.sockets.open.is_empty()).then(|| now + LOOK_EVERY);
    }

    /// Closes them from time to time.
    pub(super) fn continue_sockets(&mut self, now: Instant) {
        if self.sockets.look_at.is_some_and(|at| at <= now) {
            self.tidy_sockets(now);
        }
    }

    /// Closes all.
    pub(super) fn close_sockets(&mut self) {
        self.sockets.look_at = None;
        for socket in std::mem::take(&mut self.sockets.open) {
            self.wish(PathWish::Close(socket));
        }
    }
}
