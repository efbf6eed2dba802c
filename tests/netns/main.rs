//! Tests on the real kernel: machines in network namespaces, real NATs, real TAPs.
//! They need root (or a user namespace, see CONTRIBUTING.md) and the programs that
//! `tests/tools/install` names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod demo;
mod deploy;
mod doctor;
mod flood;
#[path = "../flooding.rs"]
#[allow(dead_code, reason = "shared with programs that use more of it")]
mod flooding;
mod gateways;
mod guests;
mod guide;
mod joining;
mod lab;
mod lan;
mod matrix;
mod mdns;
#[path = "../measuring.rs"]
#[allow(dead_code, reason = "shared with programs that use more of it")]
mod measuring;
mod moved;
mod mtu;
mod nat;
mod offloads;
mod overlay;
mod paths;
#[path = "../played.rs"]
#[allow(dead_code, reason = "shared with programs that use more of it")]
mod played;
mod port_mapping;
#[path = "../processor_time.rs"]
#[allow(dead_code, reason = "shared with programs that use more of it")]
mod processor_time;
#[path = "../reachability/mod.rs"]
mod reachability;
mod relays;
mod sealed;
mod static_peers;
mod streams;
mod super_frames;
mod symmetric;
mod why;
