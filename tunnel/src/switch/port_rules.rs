//! The first stage, anti-spoofing: who may speak behind a port, or as a peer's station, and with which addresses.
//! It never looks at where a frame goes.

use super::{
    Source,
    facts::{Content, Facts},
};
use crate::{
    snapshot::{NetworkView, Place, PortView},
    stats::Counter,
};
use overlay_types::{DhcpMode, MacAddr, PortKind};
use std::net::IpAddr;

/// What the rules say of a frame that may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Drop it and count why.
    Drop(Counter),
    /// The port is waiting for its guest, and this may be it.
    FirstOfPort,
}

/// Checks the source of a frame.
///
/// # Errors
/// [`Refusal`] says what to do with the frame instead.
pub fn check(view: &NetworkView, from: Source, facts: &Facts) -> Result<(), Refusal> {
    match from {
        Source::Node => return Ok(()),
        Source::Port(at) => {
            let port = &view.ports[usize::from(at)];
            match port.kind {
                PortKind::Guest if port.macs.is_empty() => {
                    return Err(empty_port(view.dhcp, facts));
                }
                PortKind::Host | PortKind::Guest => listed(port, facts.src)?,
                PortKind::Lan => not_bound_elsewhere(view, Place::Port(at), facts.src)?,
            }
            if port.kind == PortKind::Guest && view.dhcp == DhcpMode::Overlay {
                leased(view, facts)?;
            }
        }
        Source::Peer(at) => not_bound_elsewhere(view, Place::Peer(at), facts.src)?,
    }
    addresses(view, facts)
}

/// While an empty guest port waits, what asks for an address (or, where nobody serves any, speaks at all) may become its guest.
fn empty_port(dhcp: DhcpMode, facts: &Facts) -> Refusal {
    let asks = matches!(facts.content, Content::DhcpToServer(_));
    if asks || dhcp == DhcpMode::Off {
        Refusal::FirstOfPort
    } else {
        Refusal::Drop(Counter::DropSpoofedMac)
    }
}

fn listed(port: &PortView, mac: MacAddr) -> Result<(), Refusal> {
    if port.macs.binary_search(&mac).is_ok() {
        Ok(())
    } else {
        Err(Refusal::Drop(Counter::DropSpoofedMac))
    }
}

fn not_bound_elsewhere(view: &NetworkView, here: Place, mac: MacAddr) -> Result<(), Refusal> {
    match view.station(mac) {
        Some(station) if station.bound && station.place != here => {
            Err(Refusal::Drop(Counter::DropSpoofedMac))
        }
        _ => Ok(()),
    }
}

/// Where every address is leased, a guest uses a leased one. (IPv6 addresses come from the /64 without a lease.)
fn leased(view: &NetworkView, facts: &Facts) -> Result<(), Refusal> {
    let used = facts.source_ip().or(facts.claim().map(|(ip, _)| ip));
    match used {
        Some(IpAddr::V4(ip)) if view.binding(ip.into()).is_none() => {
            Err(Refusal::Drop(Counter::DropSpoofedAddress))
        }
        _ => Ok(()),
    }
}

/// Nobody sends from, or claims, an address that belongs to another station.
fn addresses(view: &NetworkView, facts: &Facts) -> Result<(), Refusal> {
    if let Content::Arp(arp) = facts.content
        && (arp.sender_mac() != facts.src
            || arp.sender_ip().is_broadcast()
            || arp.sender_ip().is_multicast())
    {
        return Err(Refusal::Drop(Counter::DropSpoofedMac));
    }
    let belongs = |ip: IpAddr, mac: MacAddr| view.binding(ip).is_none_or(|bound| bound.mac == mac);
    let source_is_own = facts.source_ip().is_none_or(|ip| belongs(ip, facts.src));
    let claim_is_own = facts.claim().is_none_or(|(ip, mac)| belongs(ip, mac));
    if source_is_own && claim_is_own {
        Ok(())
    } else {
        Err(Refusal::Drop(Counter::DropSpoofedAddress))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::testing::*;
    use std::net::Ipv4Addr;

    const SPOOFED_MAC: Result<(), Refusal> = Err(Refusal::Drop(Counter::DropSpoofedMac));
    const SPOOFED_ADDRESS: Result<(), Refusal> = Err(Refusal::Drop(Counter::DropSpoofedAddress));

    fn checked(view: &NetworkView, from: Source, frame: &[u8]) -> Result<(), Refusal> {
        check(view, from, &Facts::parse(frame).unwrap())
    }

    #[test]
    fn a_guest_speaks_with_its_own_mac_and_address_only() {
        let view = view(DhcpMode::Overlay);
        assert_eq!(
            checked(&view, GUEST_PORT, &udp_frame(A, B, IP_A, IP_B, 1, 2)),
            Ok(())
        );
        assert_eq!(
            checked(&view, GUEST_PORT, &udp_frame(B, A, IP_B, IP_A, 1, 2)),
            SPOOFED_MAC
        );
        assert_eq!(
            checked(&view, GUEST_PORT, &udp_frame(A, B, IP_B, IP_B, 1, 2)),
            SPOOFED_ADDRESS
        );
        assert_eq!(
            checked(&view, GUEST_PORT, &udp_frame(A, B, IP_UNBOUND, IP_B, 1, 2)),
            SPOOFED_ADDRESS
        );
        assert_eq!(
            checked(&view, GUEST_PORT, &arp_request(A, IP_B, IP_A)),
            SPOOFED_ADDRESS
        );
        assert_eq!(
            checked(
                &view,
                GUEST_PORT,
                &arp_request(A, Ipv4Addr::UNSPECIFIED, IP_A)
            ),
            Ok(())
        );
    }

    #[test]
    fn a_lan_port_speaks_for_anybody_not_bound_elsewhere() {
        let view = view(DhcpMode::Lan);
        assert_eq!(
            checked(
                &view,
                LAN_PORT,
                &udp_frame(STRANGER, B, IP_UNBOUND, IP_B, 1, 2)
            ),
            Ok(())
        );
        assert_eq!(
            checked(&view, LAN_PORT, &udp_frame(A, B, IP_A, IP_B, 1, 2)),
            SPOOFED_MAC
        );
        assert_eq!(
            checked(&view, LAN_PORT, &udp_frame(STRANGER, B, IP_A, IP_B, 1, 2)),
            SPOOFED_ADDRESS
        );
    }

    #[test]
    fn a_peer_speaks_for_its_own_stations_only() {
        let view = view(DhcpMode::Overlay);
        assert_eq!(
            checked(&view, PEER, &udp_frame(B, A, IP_B, IP_A, 1, 2)),
            Ok(())
        );
        assert_eq!(
            checked(&view, PEER, &udp_frame(A, B, IP_A, IP_B, 1, 2)),
            SPOOFED_MAC
        );
        assert_eq!(
            checked(&view, OTHER_PEER, &udp_frame(B, A, IP_B, IP_A, 1, 2)),
            SPOOFED_MAC
        );
        assert_eq!(
            checked(&view, OTHER_PEER, &arp_request(STRANGER, IP_B, IP_A)),
            SPOOFED_ADDRESS
        );
    }

    #[test]
    fn an_empty_guest_port_takes_who_asks_for_an_address() {
        let mut view = view(DhcpMode::Overlay);
        view.ports[1].macs.clear();
        let discover = udp_frame(
            STRANGER,
            MacAddr::BROADCAST,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            68,
            67,
        );
        assert_eq!(
            checked(&view, GUEST_PORT, &discover),
            Err(Refusal::FirstOfPort)
        );
        assert_eq!(
            checked(&view, GUEST_PORT, &udp_frame(STRANGER, B, IP_A, IP_B, 1, 2)),
            SPOOFED_MAC
        );
    }

    #[test]
    fn an_advertisement_for_anothers_address_is_spoofed() {
        let view = view(DhcpMode::Overlay);
        let forged = neighbor_advertisement(A, IP6_B, A);
        assert_eq!(checked(&view, GUEST_PORT, &forged), SPOOFED_ADDRESS);
        assert_eq!(
            checked(&view, GUEST_PORT, &neighbor_advertisement(A, IP6_A, A)),
            Ok(())
        );
    }
}
