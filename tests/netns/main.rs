//! Tests on the real kernel: machines in network namespaces, real NATs, real TAPs.
//! They need root (or a user namespace, see CONTRIBUTING.md) and the programs that
//! `tests/tools/install` names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod demo;
mod deploy;
mod doctor;
mod gateways;
mod guests;
mod guide;
mod joining;
mod lab;
mod lan;
mod matrix;
mod mdns;
mod moved;
mod mtu;
mod nat;
mod offloads;
mod overlay;
mod paths;
mod port_mapping;
#[path = "../reachability/mod.rs"]
mod reachability;
mod relays;
mod sealed;
mod static_peers;
mod streams;
mod super_frames;
mod symmetric;
mod why;
