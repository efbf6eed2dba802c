//! Remembers which counters of a lane were seen, so that no datagram is taken twice (RFC 6479).

/// Width of the window in bits. Several workers and GRO bursts reorder by thousands; gotatun went from 1024 to this.
pub const WINDOW_BITS: u64 = 8192;
/// One word more than the window needs, so that the word being filled is never one that is still asked about.
const WORDS: usize = (WINDOW_BITS / 64) as usize + 1;

/// Which counters were seen, as a ring of words.
pub struct ReplayWindow {
    /// One more than the greatest counter seen; 0 when none was.
    next: u64,
    words: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for ReplayWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplayWindow")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl ReplayWindow {
    /// A window that has seen nothing.
    pub const fn new() -> Self {
        Self {
            next: 0,
            words: [0; WORDS],
        }
    }

    /// Whether `counter` is new; asked before a datagram is opened.
    pub const fn is_fresh(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        if self.next - counter > WINDOW_BITS {
            return false;
        }
        let (word, bit) = place(counter);
        self.words[word] & bit == 0
    }

    /// Marks `counter` as seen; done only once its datagram has opened. False when it was not fresh.
    pub fn mark(&mut self, counter: u64) -> bool {
        if !self.is_fresh(counter) {
            return false;
        }
        if counter >= self.next {
            // Words between the old front and the new one hold bits of counters that are out of the window now.
            let front = if self.next == 0 {
                0
            } else {
                (self.next - 1) / 64
            };
            let steps = (counter / 64 - front).min(WORDS as u64);
            for step in 0..steps {
                self.words[((counter / 64 - step) % WORDS as u64) as usize] = 0;
            }
            self.next = counter + 1;
        }
        let (word, bit) = place(counter);
        self.words[word] |= bit;
        true
    }
}

const fn place(counter: u64) -> (usize, u64) {
    ((counter / 64 % WORDS as u64) as usize, 1 << (counter % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_counter_is_taken_once_also_out_of_order() {
        let mut window = ReplayWindow::new();
        assert_eq!(
            [3, 1, 3, 2, 1, 0].map(|c| window.mark(c)),
            [true, true, false, true, false, true]
        );
    }

    #[test]
    fn a_counter_older_than_the_window_is_refused() {
        let mut window = ReplayWindow::new();
        assert!(window.mark(WINDOW_BITS));
        assert!(!window.is_fresh(0));
        assert!(window.is_fresh(1));
        assert!(window.mark(u64::MAX - 1));
        assert!(!window.is_fresh(u64::MAX));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_of_everything_seen(steps in proptest::collection::vec((0u64..3, 0u64..20_000), 1..400)) {
            let (mut window, mut seen, mut greatest) = (ReplayWindow::new(), BTreeSet::new(), 0u64);
            for (kind, amount) in steps {
                let counter = match kind {
                    0 => greatest + amount % 70,
                    1 => greatest.saturating_sub(amount % 9000),
                    _ => greatest + amount,
                };
                let expected = !seen.contains(&counter) && counter + WINDOW_BITS > greatest;
                prop_assert_eq!(window.is_fresh(counter), expected, "counter {} greatest {}", counter, greatest);
                prop_assert_eq!(window.mark(counter), expected);
                seen.insert(counter);
                greatest = greatest.max(counter);
            }
        }
    }
}
