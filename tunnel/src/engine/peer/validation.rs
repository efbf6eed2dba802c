//! What may go to addresses where the peer was not seen to receive: no more than its own word brought us. Anybody can list
//! anybody's address, and a handshake is long (RFC 9000 §8.1 on amplification).

use crate::{
    path::wire_bytes,
    wire::{datagram::wrapper_bytes, path_challenge::PATH_CHALLENGE_BYTES},
};
use overlay_types::PathAddr;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Who sends much in advance cannot have more than this spent at once.
const LEFT_MAX: u64 = 16 * 1024;
/// Addresses remembered where the peer received once.
const PROVEN_MAX: usize = 8;
/// While messages go where nothing is proved, so many other addresses can still be asked.
const ASKED_TOO: usize = 6;
/// After this it may be somebody else's, and is asked again.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// What may go to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Allowed {
    /// The message itself.
    Message,
    /// The question whether the peer receives there.
    Challenge,
    /// Nothing: the peer has not paid for more.
    Nothing,
}

#[derive(Default)]
pub(super) struct Validation {
    /// Bytes that came on the peer's account, before there was a session, and were not spent on its addresses.
    left: u64,
    /// Where the peer received, and when that was last seen; the newest last.
    proven: VecDeque<(PathAddr, Instant)>,
}

impl Validation {
    /// So many bytes came that the peer signed, or itself sent.
    pub(super) fn pay(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(bytes).min(LEFT_MAX);
    }

    /// The peer was seen to receive there.
    pub(super) fn note_proven(&mut self, addr: PathAddr, now: Instant) {
        self.proven.retain(|(known, _)| *known != addr);
        if self.proven.len() == PROVEN_MAX {
            self.proven.pop_front();
        }
        self.proven.push_back((addr, now));
    }

    /// What it may be paid at most: more is not kept.
    pub(super) const fn room(&self) -> u64 {
        LEFT_MAX - self.left
    }

    /// What may go there now; it counts as sent. The message itself goes where nothing is proved if the peer has paid for all of it,
    /// and for questions to `others` addresses after that; where `others` is not said, only the question.
    pub(super) fn allow(
        &mut self,
        to: PathAddr,
        message: usize,
        others: Option<usize>,
        now: Instant,
    ) -> Allowed {
        let seen = self.proven.iter().find(|(addr, _)| *addr == to);
        let is_fresh = seen.is_some_and(|(_, at)| now.saturating_duration_since(*at) <= FRESH_FOR);
        let is_known = seen.is_some();
        let covers = |others: usize| {
            let questions = others.min(ASKED_TOO) as u64 * cost(to, PATH_CHALLENGE_BYTES);
            self.left >= cost(to, message) + questions
        };
        let is_covered = others.is_some_and(covers);
        if is_fresh || (is_covered && self.spend(to, message)) {
            Allowed::Message
        } else if is_known || self.spend(to, PATH_CHALLENGE_BYTES) {
            Allowed::Challenge
        } else {
            Allowed::Nothing
        }
    }

    fn spend(&mut self, to: PathAddr, payload: usize) -> bool {
        let bytes = cost(to, payload);
        let covered = self.left >= bytes;
        if covered {
            self.left -= bytes;
        }
        covered
    }
}

/// What so much payload is on the way there, headers included.
fn cost(to: PathAddr, payload: usize) -> u64 {
    wire_bytes(to.socket_addr(), (wrapper_bytes(to) + payload) as u64)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MESSAGE: usize = 1216;

    fn at(host: u8) -> PathAddr {
        PathAddr::Direct(([192, 0, 2, host], 7000).into())
    }

    #[test]
    fn the_first_way_gets_the_message_and_the_others_are_asked_as_long_as_that_is_paid_for() {
        let (mut validation, now) = (Validation::default(), Instant::now());
        assert_eq!(
            validation.allow(at(1), MESSAGE, Some(1), now),
            Allowed::Nothing
        );
        validation.pay((MESSAGE + 28 + PATH_CHALLENGE_BYTES + 28) as u64);
        assert_eq!(
            validation.allow(at(1), MESSAGE, Some(1), now),
            Allowed::Message
        );
        assert_eq!(
            validation.allow(at(2), MESSAGE, None, now),
            Allowed::Challenge
        );
        assert_eq!(
            validation.allow(at(3), MESSAGE, None, now),
            Allowed::Nothing
        );
    }

    #[test]
    fn where_the_peer_received_it_is_called_at_once_and_asked_again_later() {
        let (mut validation, now) = (Validation::default(), Instant::now());
        validation.note_proven(at(1), now);
        assert_eq!(
            validation.allow(at(1), MESSAGE, None, now),
            Allowed::Message
        );
        let later = now + FRESH_FOR + Duration::from_secs(1);
        assert_eq!(
            validation.allow(at(1), MESSAGE, None, later),
            Allowed::Challenge
        );
        for host in 2..=9 {
            validation.note_proven(at(host), later);
        }
        assert_eq!(
            validation.allow(at(1), MESSAGE, None, later),
            Allowed::Nothing
        );
    }

    proptest! {
        #[test]
        fn unproven_addresses_never_get_more_than_was_paid(steps in proptest::collection::vec((0..4u64, 0..3000u64, 0..6u8), 0..200)) {
            let (mut validation, now) = (Validation::default(), Instant::now());
            let (mut paid, mut spent) = (0, 0);
            for (kind, bytes, host) in steps {
                if kind == 0 {
                    validation.pay(bytes);
                    paid += bytes;
                    continue;
                }
                spent += match validation.allow(at(host), MESSAGE, (kind == 1).then_some(2), now) {
                    Allowed::Message => MESSAGE as u64 + 28,
                    Allowed::Challenge => PATH_CHALLENGE_BYTES as u64 + 28,
                    Allowed::Nothing => 0,
                };
                prop_assert!(spent <= paid);
            }
        }
    }
}
