//! Remembers where each MAC address of a network was last seen, and forgets the quiet ones.
//! Where to send frames for unknown addresses is decided in [`super::flood`]; bound stations never stand here.

use overlay_types::{Location, MacAddr};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long a station may be quiet (IEEE 802.1Q's default).
pub const AGEING_TIME: Duration = Duration::from_secs(300);
/// Stations per network; more than a /20 of LAN machines, and under a megabyte.
pub const CAPACITY: usize = 8192;
/// Stations at one place, so that one port or peer cannot push out the others.
pub const PER_PLACE_MAX: usize = 2048;
/// Moves of one station within [`MOVE_WINDOW`] before it is held where it is: a loop, or two stations with one MAC.
const MOVES_MAX: u8 = 4;
/// See [`MOVES_MAX`].
const MOVE_WINDOW: Duration = Duration::from_secs(10);

/// What became of a sighting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Never seen before.
    New,
    /// It was elsewhere until now.
    Moved,
    /// It is where it was.
    Refreshed,
    /// It moves too often and stays where it was.
    Held,
    /// The table, or its place's share of it, is full.
    Full,
}

#[derive(Debug)]
struct Entry {
    at: Location,
    seen_at: Instant,
    moves: u8,
    window_start: Instant,
}

/// The learned stations of one network.
#[derive(Debug, Default)]
pub struct MacTable {
    entries: BTreeMap<MacAddr, Entry>,
    per_place: BTreeMap<Location, usize>,
    /// No station is quiet for too long before then.
    age_at: Option<Instant>,
}

impl MacTable {
    /// Notes that a frame from `mac` came from `at`.
    pub fn learn(&mut self, mac: MacAddr, at: Location, now: Instant) -> Learned {
        let at_place = self.per_place.get(&at).copied().unwrap_or(0);
        let Some(entry) = self.entries.get_mut(&mac) else {
            if self.entries.len() >= CAPACITY || at_place >= PER_PLACE_MAX {
                return Learned::Full;
            }
            self.entries.insert(
                mac,
                Entry {
                    at,
                    seen_at: now,
                    moves: 0,
                    window_start: now,
                },
            );
            *self.per_place.entry(at).or_default() += 1;
            self.age_at.get_or_insert(now + AGEING_TIME);
            return Learned::New;
        };
        if entry.at == at {
            entry.seen_at = now;
            return Learned::Refreshed;
        }
        if now.duration_since(entry.window_start) >= MOVE_WINDOW {
            (entry.window_start, entry.moves) = (now, 0);
        }
        if entry.moves >= MOVES_MAX {
            return Learned::Held;
        }
        if at_place >= PER_PLACE_MAX {
            return Learned::Full;
        }
        entry.moves += 1;
        entry.seen_at = now;
        let was = std::mem::replace(&mut entry.at, at);
        *self.per_place.entry(at).or_default() += 1;
        self.leave(was);
        Learned::Moved
    }

    /// Where a station is.
    pub fn lookup(&self, mac: MacAddr, now: Instant) -> Option<Location> {
        self.entries
            .get(&mac)
            .filter(|e| now.duration_since(e.seen_at) < AGEING_TIME)
            .map(|e| e.at)
    }

    /// Forgets quiet stations; `true` if there were any.
    pub fn age(&mut self, now: Instant) -> bool {
        if self.age_at.is_none_or(|at| now < at) {
            return false;
        }
        let forgot = self.forget_if(|_, entry| now.duration_since(entry.seen_at) >= AGEING_TIME);
        self.age_at = self.entries.values().map(|e| e.seen_at + AGEING_TIME).min();
        forgot
    }

    /// Forgets all stations at a place that is gone.
    pub fn forget_place(&mut self, at: Location) -> bool {
        self.forget_if(|_, entry| entry.at == at)
    }

    /// Forgets one station, which is bound from now on.
    pub fn forget(&mut self, mac: MacAddr) -> bool {
        self.forget_if(|&m, _| m == mac)
    }

    /// When the next station may have been quiet for too long.
    pub const fn age_at(&self) -> Option<Instant> {
        self.age_at
    }

    /// Every station with its place.
    pub fn iter(&self) -> impl Iterator<Item = (MacAddr, Location)> + '_ {
        self.entries.iter().map(|(&mac, e)| (mac, e.at))
    }

    fn forget_if(&mut self, quiet: impl Fn(&MacAddr, &Entry) -> bool) -> bool {
        let before = self.entries.len();
        let per_place = &mut self.per_place;
        self.entries.retain(|mac, entry| {
            let goes = quiet(mac, entry);
            if goes {
                decrement(per_place, entry.at);
            }
            !goes
        });
        self.entries.len() != before
    }

    fn leave(&mut self, place: Location) {
        decrement(&mut self.per_place, place);
    }
}

fn decrement(per_place: &mut BTreeMap<Location, usize>, place: Location) {
    if let Some(count) = per_place.get_mut(&place) {
        *count -= 1;
        if *count == 0 {
            per_place.remove(&place);
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use overlay_types::{PeerId, PortId};

    const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const PORT: Location = Location::Port(PortId(1));
    const PEER: Location = Location::Peer(PeerId([7; 32]));

    #[test]
    fn a_quiet_mac_is_forgotten_after_the_ageing_time() {
        let (mut table, t0) = (MacTable::default(), Instant::now());
        assert_eq!(table.learn(GUEST, PORT, t0), Learned::New);
        assert_eq!(table.lookup(GUEST, t0 + AGEING_TIME / 2), Some(PORT));
        assert_eq!(table.lookup(GUEST, t0 + AGEING_TIME), None);
        assert_eq!(table.age_at(), Some(t0 + AGEING_TIME));
        assert!(table.age(t0 + AGEING_TIME));
        assert_eq!(table.iter().count(), 0);
        assert!(table.per_place.is_empty());
    }

    #[test]
    fn a_station_moves_and_a_flapping_one_is_held() {
        let (mut table, t0) = (MacTable::default(), Instant::now());
        table.learn(GUEST, PORT, t0);
        for n in 0..MOVES_MAX {
            let to = if n % 2 == 0 { PEER } else { PORT };
            assert_eq!(table.learn(GUEST, to, t0), Learned::Moved);
        }
        assert_eq!(table.learn(GUEST, PEER, t0), Learned::Held);
        assert_eq!(table.learn(GUEST, PEER, t0 + MOVE_WINDOW), Learned::Moved);
        assert_eq!(table.lookup(GUEST, t0 + MOVE_WINDOW), Some(PEER));
    }

    #[test]
    fn one_place_cannot_fill_the_table() {
        let (mut table, t0) = (MacTable::default(), Instant::now());
        for n in 0..PER_PLACE_MAX as u32 {
            let [a, b, c, d] = n.to_be_bytes();
            assert_eq!(
                table.learn(MacAddr([2, 9, a, b, c, d]), PORT, t0),
                Learned::New
            );
        }
        assert_eq!(table.learn(GUEST, PORT, t0), Learned::Full);
        assert_eq!(table.learn(GUEST, PEER, t0), Learned::New);
        assert!(table.forget_place(PORT));
        assert_eq!(table.learn(GUEST, PORT, t0), Learned::Moved);
    }
}
