//! The daemon: wires the data plane, the control plane and the services of a node together.

pub mod api;
pub mod config;
pub mod dhcp;
pub mod dns;
pub mod doctor;
pub mod host;
pub mod lan;
pub mod mdns;
pub mod node;
pub mod portmap;
pub mod state;
pub mod stream;
pub mod why;
