//! The thin shell around the pure cores: TAPs, UDP sockets, and the threads that carry bytes between them and the cores.
//! It decides nothing about frames: [`crate::worker`] and [`crate::engine`] do. The only `unsafe` of this crate is here.
//!
//! ```text
//!  TAP ──▶ worker thread ──▶ UDP      one thread for each worker: one socket, one epoll, run to completion
//!      ◀──       │ ▲     ◀──
//!        reports ▼ │ snapshot
//!           engine thread             sleeps until a report, a command or its own deadline
//! ```
#![expect(
    clippy::disallowed_methods,
    reason = "the shell is where the clock is read"
)]

mod batch;
mod data_plane;
mod engine_thread;
mod moderation;
pub mod service;
mod sockets;
mod steer;
mod tap;
mod tap_ioctl;
mod udp;
mod wake;
mod worker_thread;

pub use data_plane::{DataPlane, DataPlaneConfig, StartError, workers_for};
pub use tap::{Tap, TapError};
