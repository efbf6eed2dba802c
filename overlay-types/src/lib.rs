//! The shared vocabulary: nouns that the data plane, the control plane, the services and the
//! command line must spell alike. No I/O, no async, no clock.
//!
//! Every noun that people type or read has one spelling, by `FromStr` and `Display`.

#![forbid(unsafe_code)]

pub mod api;
mod binding;
mod candidate;
mod data_keys;
pub mod doctor;
mod mac_addr;
mod name;
mod nat;
mod network_id;
mod peer_id;
mod port;
mod subnet;
pub mod why;

pub use binding::{Binding, Location};
pub use candidate::{Candidate, PathAddr, PathKind};
pub use data_keys::{DataKeys, KEM_KEY_BYTES};
pub use mac_addr::{InvalidMac, MacAddr};
pub use name::{InvalidName, Name};
pub use nat::{NatBehaviour, NatRule, PortAssignment};
pub use network_id::{InvalidNetworkId, NetworkId};
pub use peer_id::{InvalidPeerId, PeerId};
pub use port::{DhcpMode, PortId, PortKind};
pub use subnet::{InvalidSubnet, Subnet};
