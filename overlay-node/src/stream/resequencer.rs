//! Puts datagrams that came by several streams back in order: a TCP connection inside takes what comes out of order for
//! lost (RFC 5681, section 3.2), and slows down.

use bytes::Bytes;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// So long a datagram waits for those before it. A stream repeats what its link lost within a round trip or two; after this it
/// has stalled or ended.
pub(super) const WAIT_MAX: Duration = Duration::from_millis(500);
/// A number further ahead is no datagram of this flow.
const AHEAD_MAX: u64 = 1 << 20;

/// The receiving end of a numbered flow of datagrams. Pure: time is passed in.
#[derive(Debug, Default)]
pub(super) struct Resequencer {
    /// The number that is due.
    next: u64,
    /// Those that came early, and when they came.
    waiting: BTreeMap<u64, (Instant, Bytes)>,
    waiting_bytes: usize,
}

/// A number that no datagram of the flow can have by now.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("datagram {0} is not of this flow")]
pub(super) struct Foreign(u64);

impl Resequencer {
    /// Takes a datagram; what can go on now is given to `deliver`, in order. One that comes when it was given up goes on at
    /// once. No more than `room` bytes wait.
    ///
    /// # Errors
    /// When its number is far ahead.
    pub(super) fn push(
        &mut self,
        number: u64,
        datagram: Bytes,
        now: Instant,
        room: usize,
        mut deliver: impl FnMut(&[u8]),
    ) -> Result<(), Foreign> {
        if number > self.next.saturating_add(AHEAD_MAX) {
            return Err(Foreign(number));
        }
        if number < self.next {
            deliver(&datagram);
        } else if number == self.next {
            deliver(&datagram);
            self.next += 1;
        } else {
            self.waiting_bytes += datagram.len();
            let twice = self.waiting.insert(number, (now, datagram));
            self.waiting_bytes -= twice.map_or(0, |(_, datagram)| datagram.len());
        }
        self.go_on(now, room, deliver);
        Ok(())
    }

    /// Lets go on what has waited long enough for what is missing.
    pub(super) fn tick(&mut self, now: Instant, deliver: impl FnMut(&[u8])) {
        self.go_on(now, usize::MAX, deliver);
    }

    /// What waits, in bytes.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    fn go_on(&mut self, now: Instant, room: usize, mut deliver: impl FnMut(&[u8])) {
        while let Some(entry) = self.waiting.first_entry() {
            let is_given_up = self.waiting_bytes > room
                || now.saturating_duration_since(entry.get().0) >= WAIT_MAX;
            if *entry.key() != self.next && !is_given_up {
                return;
            }
            let (number, (_, datagram)) = entry.remove_entry();
            self.waiting_bytes -= datagram.len();
            deliver(&datagram);
            self.next = number + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOM: usize = 1 << 20;
    const STEP: Duration = Duration::from_millis(1);

    fn bytes(number: u64) -> Bytes {
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    /// What comes out when these come in, one each millisecond.
    fn passed(numbers: &[u64]) -> Vec<u64> {
        let (mut flow, began) = (Resequencer::default(), Instant::now());
        let mut out = Vec::new();
        for (at, number) in (0..).zip(numbers) {
            let deliver = |datagram: &[u8]| {
                out.push(u64::from_be_bytes(datagram.try_into().unwrap()));
            };
            let _foreign = flow.push(*number, bytes(*number), began + STEP * at, ROOM, deliver);
        }
        out
    }

    #[test]
    fn what_overtook_waits_for_what_it_overtook() {
        assert_eq!(passed(&[0, 3, 2, 1, 4]), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn nothing_waits_longer_than_it_may_and_what_comes_too_late_goes_on_at_once() {
        let (mut flow, began) = (Resequencer::default(), Instant::now());
        let mut out = Vec::new();
        let mut deliver = |datagram: &[u8]| out.push(datagram.to_vec());
        flow.push(1, bytes(1), began, ROOM, &mut deliver).unwrap();
        flow.push(3, bytes(3), began + STEP, ROOM, &mut deliver)
            .unwrap();
        flow.tick(began + WAIT_MAX - STEP, &mut deliver);
        flow.push(5, bytes(5), began + WAIT_MAX, ROOM, &mut deliver)
            .unwrap();
        flow.push(0, bytes(0), began + WAIT_MAX, ROOM, &mut deliver)
            .unwrap();
        flow.tick(began + WAIT_MAX + STEP, &mut deliver);
        assert_eq!(out, [bytes(1), bytes(0), bytes(3)]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut flow, now) = (Resequencer::default(), Instant::now());
        let large = Bytes::from(vec![0; 60_000]);
        let mut count = 0;
        for number in 1..1000 {
            flow.push(number, large.clone(), now, ROOM, |_| count += 1)
                .unwrap();
            assert!(flow.waiting_bytes <= ROOM);
        }
        assert!(count > 900);
        let refused = flow.push(u64::MAX, large, now, ROOM, |_| count += 1);
        assert_eq!(refused, Err(Foreign(u64::MAX)));
    }

    proptest! {
        #[test]
        fn every_datagram_of_a_shuffled_flow_comes_once_and_in_order(
            order in Just((0..100_u64).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            prop_assert_eq!(passed(&order), (0..100).collect::<Vec<_>>());
        }

        #[test]
        fn whatever_the_numbers_are_nothing_comes_out_twice(
            numbers in prop::collection::hash_set(0..2 * AHEAD_MAX, 0..200),
        ) {
            let numbers: Vec<u64> = numbers.into_iter().collect();
            let mut out = passed(&numbers);
            out.sort_unstable();
            out.dedup();
            prop_assert!(out.iter().all(|number| numbers.contains(number)));
            prop_assert_eq!(passed(&numbers).len(), out.len());
        }
    }
}
