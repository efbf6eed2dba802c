//! Who holds which address, block, name and membership, and for how long: never two at once.
//!
//! [`registrar`] decides, by a quorum register per key (propose, commit, sign) that is the same code at group size 1;
//! [`cert`] is its word, which anybody checks offline; [`holder`] keeps a lease alive from the other side.

mod acceptor;
pub mod cert;
pub mod holder;
mod pool;
pub mod protocol;
pub mod register;
pub mod registrar;
mod rules;

pub use cert::{BadLease, Lease, LeaseCert, Previous, Release, Subject};
pub use holder::{HolderEvent, LeaseHolder, Want};
pub use protocol::{MessageBody, Refusal, RegistrarEvent, RegistrarMessage, Reply, Transaction};
pub use register::{Ballot, Entry, Key, Vote};
pub use registrar::Registrar;

/// How long nobody has an address after its lease expired: twice the clock difference we tolerate (DESIGN: the guard).
pub const GUARD_SECONDS: u64 = 60;
/// How far two clocks may differ. Beyond that registrars and holders refuse to deal with each other.
pub const CLOCK_SKEW_MAX_SECONDS: u64 = 30;
/// A block lease's size: 16 addresses.
pub const BLOCK_PREFIX_LEN: u8 = 28;
