//! Answers multicast DNS (RFC 6762) on a LAN for names whose owners are elsewhere on the overlay. Pure.

use overlay_types::{MacAddr, Name};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Instant,
};

/// The responder of one lan port.
pub struct MdnsResponder;

impl MdnsResponder {
    /// A responder that speaks from this station.
    pub fn new(mac: MacAddr, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Self {
        let _ = (mac, ipv4, ipv6);
        Self
    }
    /// Replaces the names it answers for; new ones are announced, lost ones withdrawn.
    pub fn set_names(&mut self, names: BTreeMap<Name, BTreeSet<IpAddr>>, now: Instant) {
        let _ = (names, now);
    }
    /// A frame from the LAN.
    pub fn handle_frame(&mut self, frame: &[u8], now: Instant) {
        let _ = (frame, now);
    }
    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }
    /// When to be called again.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    /// A frame for the LAN.
    pub fn poll_frame(&mut self) -> Option<Vec<u8>> {
        None
    }
}
