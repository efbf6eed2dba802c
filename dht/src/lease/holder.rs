//! Keeps one lease alive from the holder's side: claims it, renews it from half its time on, stops in time.

use super::cert::LeaseCert;
use super::registrar::{Refusal, Reply, Transaction};
use crate::identity::Identity;
use overlay_types::{MacAddr, Name, Subnet};
use std::collections::VecDeque;
use std::time::Instant;

/// What to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// An address for a station.
    Address {
        /// The station.
        mac: MacAddr,
        /// The name that goes with it.
        name: Option<Name>,
    },
    /// A block for guests, besides those that `have` names.
    Block {
        /// Blocks held by other machines of this node.
        have: Vec<Subnet>,
    },
}

/// What the node ought to know.
#[derive(Clone, Debug, PartialEq)]
pub enum HolderEvent {
    /// The lease is ours (first time, renewed, or another address than before): use it, store the certificate.
    Held(Box<LeaseCert>),
    /// Stop using it now.
    Lost {
        /// What it was.
        cert: Box<LeaseCert>,
        /// In plain words.
        reason: String,
    },
    /// Not got, and why; it is tried again by itself.
    Waiting(Refusal),
}

/// One lease, seen from its holder.
#[derive(Debug)]
pub struct LeaseHolder {
    identity: Identity,
    want: Want,
    events: VecDeque<HolderEvent>,
}

impl LeaseHolder {
    /// Holds the lease of `stored` at once if it is still good, else claims one.
    pub fn new(
        identity: Identity,
        want: Want,
        stored: Option<LeaseCert>,
        now: Instant,
        unix: u64,
    ) -> Self {
        let _ = (stored, now, unix);
        Self {
            identity,
            want,
            events: VecDeque::new(),
        }
    }

    /// A registrar answered the transaction last polled.
    pub fn handle_reply(&mut self, reply: Reply, now: Instant, unix: u64) {
        let _ = (reply, now, unix, &self.identity, &self.want);
    }

    /// No registrar could be asked.
    pub fn handle_unreachable(&mut self, now: Instant) {
        let _ = now;
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant, unix: u64) {
        let _ = (now, unix);
    }

    /// Gives the lease back. `Lost` follows at once, and the release is the next transaction to send.
    pub fn release(&mut self, now: Instant, unix: u64) {
        let _ = (now, unix);
    }

    /// What to ask a registrar; one at a time, each to be answered by `handle_reply` or `handle_unreachable`.
    pub fn poll_transmit(&mut self) -> Option<Transaction> {
        None
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<HolderEvent> {
        self.events.pop_front()
    }

    /// When to call [`LeaseHolder::handle_timeout`].
    pub const fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }

    /// The lease, while it may be used.
    pub const fn lease(&self) -> Option<&LeaseCert> {
        None
    }
}
