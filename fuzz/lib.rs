//! Everything that reads bytes from strangers, given broken ones. A target is a test that bolero feeds: on stable Rust with
//! random input, for one second or as long as `BOLERO_RANDOM_TEST_TIME_MS` says; with `cargo bolero test NAME` under a fuzzer.
//!
//! Random bytes seldom pass a first check, so most targets begin with a sound message and break it (`input`). Where a
//! signature or checksum stands in front of a parser it is made right again afterwards: a member may be a stranger too.
//! What the parts should do with sound input is tested where they are.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a target that cannot be set up panics")
)]

#[cfg(test)]
mod cores;
#[cfg(test)]
mod handshake;
#[cfg(test)]
mod input;
#[cfg(test)]
mod invite;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod network;
#[cfg(test)]
mod offload;
#[cfg(test)]
mod records;
#[cfg(test)]
mod services;
#[cfg(test)]
mod wire;
#[cfg(test)]
mod worker;
