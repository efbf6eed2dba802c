//! The data plane: frames in, sealed datagrams out, and back. Who may join and who holds an address is decided elsewhere.
//!
//! A frame's way down this folder: [`io`] reads it from a TAP, the [`switch`] decides where it goes, [`session`] seals it,
//! [`path`] says by which way, [`io`] sends it. Everything but [`io`] is pure: it takes bytes and `now` and hands back
//! what to do, so the simulator runs the very same code.

pub mod engine;
#[cfg(feature = "io")]
pub mod io;
pub mod offload;
pub mod packet_buf;
pub mod path;
pub mod relay;
pub mod session;
pub mod snapshot;
pub mod split;
pub mod stats;
pub mod stun;
pub mod switch;
pub mod wire;
pub mod worker;
