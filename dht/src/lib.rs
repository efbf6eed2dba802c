//! The control plane: who is who, which networks there are, who may be in them, and who holds which address.
//!
//! Every module but `swarm` is pure: it takes bytes, `now` and unix seconds, and hands back what to do. Nothing that came
//! from the DHT or from a peer is believed before its signature is checked, and the types say which side of that check a
//! value is on: [`signed::Signed`] before, [`signed::Verified`] after.

#![forbid(unsafe_code)]

pub mod directory;
mod encoding;
pub mod identity;
pub mod invite;
pub mod lease;
pub mod membership;
pub mod message;
pub mod network;
pub mod record;
pub mod signed;
pub mod slot;
#[cfg(feature = "swarm")]
pub mod swarm;
#[cfg(test)]
mod testing;

pub use encoding::Undecodable;
