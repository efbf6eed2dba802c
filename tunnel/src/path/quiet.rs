//! Who only answers cannot tell a peer that has said all from one that is not let in any more, as when a NAT was restarted:
//! a path over which data went is asked once when it falls quiet.

use std::time::{Duration, Instant};

/// This much quiet is more than the distance of what programs repeat each second.
const QUIET: Duration = Duration::from_millis(1100);

#[derive(Debug, Default)]
pub(super) struct Quiet {
    ask_at: Option<Instant>,
}

impl Quiet {
    /// Data went to the peer or came from it.
    pub(super) fn note_data(&mut self, now: Instant) {
        self.ask_at = Some(now + QUIET);
    }

    /// Anything came from the peer.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.ask_at = self.ask_at.map(|_| now + QUIET);
    }

    pub(super) const fn due(&self) -> Option<Instant> {
        self.ask_at
    }

    /// Whether it is time to ask; only once for the data that was.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        self.ask_at.take_if(|at| *at <= now).is_some()
    }
}
