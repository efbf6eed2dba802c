//! What a peer may make us send to addresses that have proved nothing: never more than came from it in this session. So
//! nobody can have us attack a third address at less than its own cost; whoever wants to be probed pays in advance, by
//! messages that are nothing but long.

use super::ControlMessage;
use crate::wire::datagram::{DATA_HEADER_BYTES, TAG_BYTES, wrapper_bytes};
use overlay_types::PathAddr;
use std::net::SocketAddr;

/// IP and UDP headers, without which many small datagrams would seem cheaper than the few large ones that paid for them.
const IPV4_HEADERS_BYTES: u64 = 28;
const IPV6_HEADERS_BYTES: u64 = 48;

/// A sealed probe over IPv4: its random number takes up to ten bytes.
pub(super) const PROBE_BYTES: u64 =
    IPV4_HEADERS_BYTES + (DATA_HEADER_BYTES + 1 + 11 + TAG_BYTES) as u64;

/// The longest message that only pays: it fits every path, a relay's wrapper included.
pub(super) const PAYMENT_BYTES_MAX: u16 = 1200;

/// The account of one session.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Bytes that came from the peer and were not spent on its behalf.
    left: u64,
    /// Bytes that went to the peer.
    paid: u64,
    /// Bytes that we want the peer to spend, with something on top for what is lost.
    asked: u64,
}

impl Credit {
    /// So many bytes came from the peer, headers included.
    pub(super) const fn earn(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(bytes);
    }

    /// Whether so many bytes may be spent.
    pub(super) const fn covers(&self, bytes: u64) -> bool {
        self.left >= bytes
    }

    /// Spends so many bytes, or refuses.
    pub(super) const fn spend(&mut self, bytes: u64) -> bool {
        let covered = self.covers(bytes);
        if covered {
            self.left -= bytes;
        }
        covered
    }

    /// Gives up to so many bytes away, to be spent elsewhere on the peer's behalf.
    pub(super) fn take(&mut self, most: u64) -> u64 {
        let taken = self.left.min(most);
        self.left -= taken;
        taken
    }

    /// So many bytes went to the peer, headers included.
    pub(super) const fn note_paid(&mut self, bytes: u64) {
        self.paid = self.paid.saturating_add(bytes);
    }

    /// The peer is to spend so many bytes for us.
    pub(super) const fn ask(&mut self, bytes: u64) {
        self.asked = self.asked.saturating_add(bytes + bytes / 4);
    }

    /// What is still to be paid for that.
    pub(super) const fn owed(&self) -> u64 {
        self.asked.saturating_sub(self.paid)
    }
}

/// A datagram with so many bytes of UDP payload, as the network carries it.
pub(crate) const fn wire_bytes(addr: SocketAddr, payload: u64) -> u64 {
    payload
        + if addr.is_ipv4() {
            IPV4_HEADERS_BYTES
        } else {
            IPV6_HEADERS_BYTES
        }
}

/// The same for a control message that goes there.
pub(super) fn message_bytes(to: PathAddr, message: &ControlMessage, pad_to: Option<u16>) -> u64 {
    let sealed = DATA_HEADER_BYTES + 1 + message.encode().len() + TAG_BYTES;
    let sealed = sealed.max(pad_to.map_or(0, usize::from));
    wire_bytes(to.socket_addr(), (wrapper_bytes(to) + sealed) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_earned_is_not_spent() {
        let mut credit = Credit::default();
        assert!(!credit.spend(1));
        credit.earn(100);
        assert!(credit.spend(60) && !credit.spend(41) && credit.spend(40));
    }

    #[test]
    fn what_is_asked_for_is_owed_until_it_is_paid() {
        let mut credit = Credit::default();
        credit.note_paid(500);
        credit.ask(400);
        assert_eq!(credit.owed(), 0);
        credit.ask(400);
        assert_eq!(credit.owed(), 500);
        credit.note_paid(1228);
        assert_eq!(credit.owed(), 0);
    }

    #[test]
    fn a_probe_costs_what_it_is_said_to_cost() {
        let to = PathAddr::Direct(([192, 0, 2, 1], 1).into());
        let bytes = message_bytes(to, &ControlMessage::Probe { id: u64::MAX }, None);
        assert_eq!(bytes, PROBE_BYTES);
    }
}
