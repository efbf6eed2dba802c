//! When a stream to a relay is opened that datagrams do not reach, or may not reach one day. Pure: opening it is the node's part.
//!
//! None ──datagrams do not get there──▶ wanted ──due──▶ opening ──▶ open
//!  ▲                                     ▲◀──failed (backoff)─┘      │
//!  │                                     └──ended─────────────────────┤
//!  └──────────────datagrams get there again────────────────────────────┘

use std::time::{Duration, Instant};

/// How soon a stream that could not be opened, or ended, is opened again; doubled by each failure.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// The same while datagrams get there: a gateway may lock out who fails to log in too often.
const SPARE_AGAIN: Duration = Duration::from_secs(600);

/// The stream to one relay; `T` is what keeps it open.
#[derive(Debug, Default)]
pub enum RelayStream<T> {
    /// Not needed.
    #[default]
    None,
    /// To be opened from then on; so many tries failed.
    Wanted {
        /// When.
        at: Instant,
        /// How many.
        failures: u32,
    },
    /// Being opened.
    Opening {
        /// How many tries failed before.
        failures: u32,
    },
    /// There.
    Open(T),
}

impl<T> RelayStream<T> {
    /// Datagrams do not get to the relay, or it is to be ready for when they do not.
    pub fn want(&mut self, now: Instant) {
        if matches!(self, Self::None) {
            *self = Self::Wanted {
                at: now,
                failures: 0,
            };
        }
    }

    /// Datagrams do not get to the relay any more: one that could wait is opened now.
    pub fn hurry(&mut self, now: Instant) {
        if let Self::Wanted { at, .. } = self {
            *at = now.min(*at);
        }
    }

    /// It is of no use: whether there was or would have been one.
    pub fn close(&mut self) -> bool {
        !std::mem::take(self).is_unwanted()
    }

    /// Whether there is none and none is to be.
    pub const fn is_unwanted(&self) -> bool {
        matches!(self, Self::None)
    }

    /// When it is to be opened.
    pub const fn due(&self) -> Option<Instant> {
        match self {
            Self::Wanted { at, .. } => Some(*at),
            _ => None,
        }
    }

    /// It is being opened.
    pub fn begin(&mut self) {
        if let Self::Wanted { failures, .. } = *self {
            *self = Self::Opening { failures };
        }
    }

    /// It was opened, or could not be. How often it failed, the last time included; `None` when it did not, or is not needed any
    /// more, and what was opened is dropped then. `is_spare`: datagrams get to the relay.
    pub fn opened<E>(
        &mut self,
        outcome: Result<T, E>,
        is_spare: bool,
        now: Instant,
    ) -> Option<(u32, E)> {
        let Self::Opening { failures } = *self else {
            return None;
        };
        match outcome {
            Ok(stream) => *self = Self::Open(stream),
            Err(error) => {
                self.again(failures, is_spare, now);
                return Some((failures + 1, error));
            }
        }
        None
    }

    /// It has ended by itself, or is of no use.
    pub fn ended(&mut self, is_spare: bool, now: Instant) {
        self.again(0, is_spare, now);
    }

    /// What keeps it open.
    pub const fn get(&self) -> Option<&T> {
        match self {
            Self::Open(stream) => Some(stream),
            _ => None,
        }
    }

    fn again(&mut self, failures: u32, is_spare: bool, now: Instant) {
        let wait = AGAIN_MIN.saturating_mul(1 << failures.min(8));
        let wait = if is_spare {
            SPARE_AGAIN
        } else {
            wait.min(AGAIN_MAX)
        };
        *self = Self::Wanted {
            at: now + wait,
            failures: failures + 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_cannot_be_opened_is_tried_less_and_less_often() {
        let (mut stream, mut now) = (RelayStream::<()>::None, Instant::now());
        stream.want(now);
        assert_eq!(stream.due(), Some(now));
        let mut waits = Vec::new();
        for n in 1..=8 {
            stream.begin();
            assert_eq!(stream.due(), None);
            assert_eq!(stream.opened(Err("no"), false, now), Some((n, "no")));
            let due = stream.due().unwrap();
            waits.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn what_is_opened_too_late_is_dropped() {
        let (mut stream, now) = (RelayStream::None, Instant::now());
        stream.want(now);
        stream.begin();
        assert!(stream.close());
        assert_eq!(stream.opened(Ok::<_, ()>("open"), false, now), None);
        assert!(stream.get().is_none() && !stream.close());
    }

    #[test]
    fn a_stream_that_ends_is_opened_again_soon() {
        let (mut stream, now) = (RelayStream::None, Instant::now());
        stream.want(now);
        stream.begin();
        assert_eq!(stream.opened(Ok::<_, ()>("open"), false, now), None);
        stream.want(now);
        assert_eq!(stream.get(), Some(&"open"), "there is one already");
        stream.ended(false, now);
        assert_eq!(stream.due(), Some(now + AGAIN_MIN));
    }

    #[test]
    fn a_spare_that_cannot_be_opened_has_time_until_it_is_needed() {
        let (mut stream, now) = (RelayStream::<()>::None, Instant::now());
        stream.want(now);
        stream.begin();
        assert_eq!(stream.opened(Err("no"), true, now), Some((1, "no")));
        assert_eq!(stream.due(), Some(now + SPARE_AGAIN));
        let later = now + AGAIN_MAX;
        stream.hurry(later);
        assert_eq!(stream.due(), Some(later));
        stream.hurry(later + AGAIN_MAX);
        assert_eq!(stream.due(), Some(later), "it is due already");
    }
}
