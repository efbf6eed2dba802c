//! Refuses initiations that are not newer than the last one of their sender, so that a recorded one is worth nothing.

/// The greatest timestamp that an initiator has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LastTimestamp(u64);

impl LastTimestamp {
    /// Takes a timestamp that an opened initiation carried; false when it is not newer.
    #[must_use]
    pub fn accept(&mut self, timestamp: u64) -> bool {
        let newer = timestamp > self.0;
        if newer {
            self.0 = timestamp;
        }
        newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_newer_timestamp_is_accepted() {
        let mut last = LastTimestamp::default();
        assert_eq!(
            [5, 5, 4, 6].map(|t| last.accept(t)),
            [true, false, false, true]
        );
    }
}
