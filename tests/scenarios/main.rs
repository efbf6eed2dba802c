//! Whole networks on virtual time: the stories that the parts must tell together. Every story is told again from its
//! seed, bit for bit; `FARLAN_SEED=7` gives it another one.

mod common;
mod crowd;
mod explore;
mod faults;
mod fifty;
mod guests;
mod joining;
mod paths;
mod relays;
mod symmetric;
