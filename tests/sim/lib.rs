//! A deterministic world for the cores: links, NATs, hosts and guests on virtual time.
//! The promise: one seed, one run, bit for bit.

pub mod crowd;
pub mod dhcp_client;
pub mod directory;
pub mod guest;
pub mod host;
pub mod infrastructure;
pub mod link;
pub mod member;
pub mod nat;
pub mod overlay;
mod service;
pub mod trace;
pub mod world;
