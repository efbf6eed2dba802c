//! Finds what belongs to a receiver index. Slots are random, so that an outsider cannot guess one, and bounded in number.

use std::collections::BTreeMap;

use rand::RngCore;
use rand_chacha::ChaCha20Rng;

use super::SessionSlot;

/// Every slot that we may hold is taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("all session slots are taken; try again when old sessions have ended")]
pub struct SlotTableFull;

/// Things found by the slot that the peer names in its headers.
#[derive(Debug)]
pub struct SlotTable<T> {
    entries: BTreeMap<SessionSlot, T>,
    entries_max: usize,
}

impl<T> SlotTable<T> {
    /// An empty table for at most `entries_max` things.
    pub const fn new(entries_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            entries_max,
        }
    }

    /// Puts `value` into a random free slot.
    ///
    /// # Errors
    /// [`SlotTableFull`] at the bound.
    pub fn insert(
        &mut self,
        value: T,
        rng: &mut ChaCha20Rng,
    ) -> Result<SessionSlot, SlotTableFull> {
        if self.entries.len() >= self.entries_max {
            return Err(SlotTableFull);
        }
        let slot = loop {
            let slot = SessionSlot::from_low_bits(rng.next_u32());
            if !self.entries.contains_key(&slot) {
                break slot;
            }
        };
        self.entries.insert(slot, value);
        Ok(slot)
    }

    /// What is in `slot`.
    pub fn get(&self, slot: SessionSlot) -> Option<&T> {
        self.entries.get(&slot)
    }

    /// What is in `slot`, to be changed.
    pub fn get_mut(&mut self, slot: SessionSlot) -> Option<&mut T> {
        self.entries.get_mut(&slot)
    }

    /// Takes out what is in `slot`.
    pub fn remove(&mut self, slot: SessionSlot) -> Option<T> {
        self.entries.remove(&slot)
    }

    /// Everything, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (SessionSlot, &T)> {
        self.entries.iter().map(|(slot, value)| (*slot, value))
    }

    /// How many slots are taken.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_full_table_refuses_until_a_slot_is_free_again() {
        let (mut table, mut rng) = (SlotTable::new(1), ChaCha20Rng::seed_from_u64(1));
        let slot = table.insert('a', &mut rng).unwrap();
        assert_eq!(table.insert('b', &mut rng), Err(SlotTableFull));
        assert_eq!(table.remove(slot), Some('a'));
        assert!(table.insert('b', &mut rng).is_ok());
    }
}
