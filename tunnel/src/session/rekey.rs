//! When a session is renewed and when it ends: WireGuard's times (§6.1 there). Running the handshakes is the engine's work.

use std::time::{Duration, Instant};

/// A session this old is renewed by its initiator when it sends.
pub const REKEY_AFTER: Duration = Duration::from_secs(120);
/// A session this old is used no more.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// An initiation without an answer is sent again after this, and up to [`REKEY_JITTER_MAX`] more.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// Spreads retries, so that two sides that begin at once do not go on doing so.
pub const REKEY_JITTER_MAX: Duration = Duration::from_millis(333);
/// Retries go on for this long.
pub const REKEY_ATTEMPT: Duration = Duration::from_secs(90);
/// A side that received but had nothing to send for this long says so, so that the other can tell silence from loss.
pub const KEEPALIVE_AFTER: Duration = Duration::from_secs(10);
/// What [`REJECT_AFTER`] leaves for a handshake with one lost message when nothing was sent for a while.
const RECEIVE_MARGIN: Duration = Duration::from_secs(15);

/// The age of one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rekey {
    established_at: Instant,
    is_initiator: bool,
}

impl Rekey {
    /// A session established now.
    pub const fn new(established_at: Instant, is_initiator: bool) -> Self {
        Self {
            established_at,
            is_initiator,
        }
    }

    /// Whether this side should begin a new handshake because it sends now. Only the initiator renews, so that both do
    /// not at once; the responder steps in when the initiator should long have done so.
    pub fn due_on_send(&self, now: Instant) -> bool {
        now >= self.due_at()
    }

    /// When [`Self::due_on_send`] becomes true.
    pub fn due_at(&self) -> Instant {
        let after = if self.is_initiator {
            REKEY_AFTER
        } else {
            REJECT_AFTER - RECEIVE_MARGIN
        };
        self.established_at + after
    }

    /// When the session ends.
    pub fn expires_at(&self) -> Instant {
        self.established_at + REJECT_AFTER
    }

    /// Whether the session has ended.
    pub fn is_expired(&self, now: Instant) -> bool {
        now >= self.expires_at()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;

    #[test]
    fn the_initiator_renews_after_two_minutes_and_the_session_ends_after_three() {
        let t0 = Instant::now();
        let session = Rekey::new(t0, true);
        assert!(!session.due_on_send(t0 + Duration::from_secs(119)));
        assert!(session.due_on_send(t0 + Duration::from_secs(120)));
        assert!(!session.is_expired(t0 + Duration::from_secs(179)));
        assert!(session.is_expired(t0 + Duration::from_secs(180)));
    }

    #[test]
    fn the_responder_leaves_the_first_try_to_the_initiator() {
        let t0 = Instant::now();
        let session = Rekey::new(t0, false);
        assert!(!session.due_on_send(t0 + Duration::from_secs(150)));
        assert!(session.due_on_send(t0 + Duration::from_secs(165)));
    }
}
