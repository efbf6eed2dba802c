//! Answers ARP (RFC 826, RFC 5227) and neighbour solicitations (RFC 4861) from bindings, as the station itself would.
//! For an address that nobody is bound to there is never an answer here.

use crate::wire::{
    arp::{self, ArpPacket},
    ndp,
};
use overlay_types::MacAddr;
use std::net::Ipv6Addr;

/// A frame that goes back to who asked. Small enough to live on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To an ARP request.
    Arp([u8; arp::FRAME_BYTES]),
    /// To a neighbour solicitation.
    Neighbor([u8; ndp::ADVERTISEMENT_FRAME_BYTES]),
}

impl Answer {
    /// "The address you asked about is at `mac`", to the one who asked.
    pub fn arp(request: &ArpPacket, mac: MacAddr) -> Self {
        Self::Arp(arp::reply_to(request, mac))
    }

    /// "`target` is at `mac`", to `asker`; to everybody when the question was whether the address is free.
    pub fn neighbor(asker: (MacAddr, Ipv6Addr), target: Ipv6Addr, mac: MacAddr) -> Self {
        Self::Neighbor(ndp::neighbour_advertisement(target, mac, asker.0, asker.1))
    }

    /// The frame.
    pub fn frame(&self) -> &[u8] {
        match self {
            Self::Arp(frame) => frame,
            Self::Neighbor(frame) => frame,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::{
        facts::{Content, Facts},
        testing::*,
    };
    use std::net::Ipv4Addr;

    fn request(sender: Ipv4Addr) -> ArpPacket {
        ArpPacket::new(arp::REQUEST, (A, sender), (MacAddr::default(), IP_B))
    }

    #[test]
    fn an_arp_answer_says_what_was_asked() {
        let answer = Answer::arp(&request(IP_A), B);
        let facts = Facts::parse(answer.frame()).unwrap();
        assert_eq!((facts.dst, facts.src), (A, B));
        assert_eq!(facts.claim(), Some((IP_B.into(), B)));
    }

    #[test]
    fn a_probe_is_answered_to_nobodys_address() {
        let answer = Answer::arp(&request(Ipv4Addr::UNSPECIFIED), B);
        let Content::Arp(said) = Facts::parse(answer.frame()).unwrap().content else {
            panic!("not ARP")
        };
        assert_eq!(said.target_ip(), Ipv4Addr::UNSPECIFIED);
    }

    #[test]
    fn a_neighbor_answer_claims_the_address_for_its_station() {
        let answer = Answer::neighbor((A, IP6_A), IP6_B, B);
        assert_eq!(
            Facts::parse(answer.frame()).unwrap().claim(),
            Some((IP6_B.into(), B))
        );
    }
}
