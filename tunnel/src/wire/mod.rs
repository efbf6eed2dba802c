//! What bytes mean: views over frames and datagrams, and the few frames that we write ourselves.
//! Views borrow and never copy; a view exists only where the bytes are long enough. What to do about them is decided elsewhere.

pub mod arp;
pub mod checksum;
pub mod datagram;
pub mod dhcp;
pub mod ethernet;
pub mod extension;
pub mod handshake;
pub mod ip;
pub mod ndp;
pub mod offload;
pub mod path_challenge;
pub mod vnet;
