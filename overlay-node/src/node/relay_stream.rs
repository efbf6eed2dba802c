//! When a stream to a relay is opened that datagrams do not reach. Pure: opening it is the node's part.
//!
//! None ──datagrams do not get there──▶ wanted ──due──▶ opening ──▶ open
//!  ▲                                     ▲◀──failed (backoff)─┘      │
//!  │                                     └──ended─────────────────────┤
//!  └──────────────datagrams get there again────────────────────────────┘

use std::time::{Duration, Instant};

/// How soon a stream that could not be opened, or ended, is opened again; doubled by each failure.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

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
    /// Datagrams do not get to the relay.
    pub fn want(&mut self, now: Instant) {
        if matches!(self, Self::None) {
            *self = Self::Wanted {
                at: now,
                failures: 0,
            };
        }
    }

    /// Datagrams get to the relay: closes the stream. Whether there was or would have been one.
    pub fn close(&mut self) -> bool {
        !matches!(std::mem::take(self), Self::None)
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
    /// more, and what was opened is dropped then.
    pub fn opened<E>(&mut self, outcome: Result<T, E>, now: Instant) -> Option<(u32, E)> {
        let Self::Opening { failures } = *self else {
            return None;
        };
        match outcome {
            Ok(stream) => *self = Self::Open(stream),
            Err(error) => {
                self.again(failures, now);
                return Some((failures + 1, error));
            }
        }
        None
    }

    /// It has ended by itself, or is of no use.
    pub fn ended(&mut self, now: Instant) {
        self.again(0, now);
    }

    /// What keeps it open.
    pub const fn get(&self) -> Option<&T> {
        match self {
            Self::Open(stream) => Some(stream),
            _ => None,
        }
    }

    fn again(&mut self, failures: u32, now: Instant) {
        let wait = AGAIN_MIN.saturating_mul(1 << failures.min(8));
        *self = Self::Wanted {
            at: now + wait.min(AGAIN_MAX),
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
            assert_eq!(stream.opened(Err("no"), now), Some((n, "no")));
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
        assert_eq!(stream.opened(Ok::<_, ()>("open"), now), None);
        assert!(stream.get().is_none() && !stream.close());
    }

    #[test]
    fn a_stream_that_ends_is_opened_again_soon() {
        let (mut stream, now) = (RelayStream::None, Instant::now());
        stream.want(now);
        stream.begin();
        assert_eq!(stream.opened(Ok::<_, ()>("open"), now), None);
        stream.want(now);
        assert_eq!(stream.get(), Some(&"open"), "there is one already");
        stream.ended(now);
        assert_eq!(stream.due(), Some(now + AGAIN_MIN));
    }
}
