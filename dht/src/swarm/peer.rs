//! Turns libp2p's peer ids and addresses into ours and back.
//! libp2p knows several key types; the overlay knows Ed25519 only, so the way in can fail.

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId as Libp2pPeerId};
use overlay_types::{InvalidPeerId, PeerId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The overlay's name of a libp2p peer.
///
/// # Errors
/// [`InvalidPeerId`] when its key is not an Ed25519 key, or not a key at all.
pub fn from_libp2p(peer: &Libp2pPeerId) -> Result<PeerId, InvalidPeerId> {
    PeerId::from_multihash(&peer.to_bytes())
}

/// libp2p's name of a peer of ours.
///
/// # Errors
/// [`InvalidPeerId`] never happens for ids of real keys: any 32 bytes make a well-formed multihash.
pub fn to_libp2p(peer: PeerId) -> Result<Libp2pPeerId, InvalidPeerId> {
    Libp2pPeerId::from_bytes(&peer.to_multihash()).map_err(|_| InvalidPeerId)
}

/// What to listen on, and what to write into an invite, for one UDP and TCP port: QUIC first, because it needs fewer round trips.
pub fn multiaddrs_of(socket: SocketAddr) -> [Multiaddr; 2] {
    let ip = Multiaddr::from(socket.ip());
    [
        ip.clone()
            .with(Protocol::Udp(socket.port()))
            .with(Protocol::QuicV1),
        ip.with(Protocol::Tcp(socket.port())),
    ]
}

/// The address as an invite carries it: with the identity that must answer there.
pub fn with_peer(address: Multiaddr, peer: PeerId) -> Multiaddr {
    match to_libp2p(peer) {
        Ok(peer) => address
            .with_p2p(peer)
            .unwrap_or_else(|already_another| already_another),
        Err(_) => address,
    }
}

/// Splits a trailing `/p2p/…` off: where to dial, and who must answer.
pub(super) fn split_peer(address: &Multiaddr) -> (Multiaddr, Option<Libp2pPeerId>) {
    let mut bare = address.clone();
    match bare.pop() {
        Some(Protocol::P2p(peer)) => (bare, Some(peer)),
        _ => (address.clone(), None),
    }
}

/// The address's IP, that of the relay for a circuit.
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    })
}

pub(super) fn is_circuit(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

pub(super) fn is_tcp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Tcp(_)))
}

pub(super) fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

pub(super) fn is_unspecified(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_unspecified())
}

/// Whether anybody on the internet could route to it. Documentation ranges count as public: test beds use them as such.
pub(super) fn is_public(address: &Multiaddr) -> bool {
    if is_circuit(address) {
        return false;
    }
    match ip_of(address) {
        Some(IpAddr::V4(ip)) => is_public4(ip),
        Some(IpAddr::V6(ip)) => is_public6(ip),
        None => false, // a name: who knows where it leads
    }
}

fn is_public4(ip: Ipv4Addr) -> bool {
    let carrier_grade_nat = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64; // 100.64.0.0/10, RFC 6598
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_unspecified()
        || ip.is_multicast()
        || ip.is_broadcast()
        || carrier_grade_nat)
}

fn is_public6(ip: Ipv6Addr) -> bool {
    !(ip.is_unique_local()
        || ip.is_loopback()
        || ip.is_unicast_link_local()
        || ip.is_unspecified()
        || ip.is_multicast())
}

/// Whether an address that a peer tells of itself is worth remembering, given over which address it told us:
/// loopback addresses mean something only to who already speaks over loopback.
pub(super) fn is_worth_keeping(told: &Multiaddr, over: &Multiaddr) -> bool {
    !is_unspecified(told) && !is_circuit(told) && (!is_loopback(told) || is_loopback(over))
}

/// Address ranges that are no way to reach a node: those of the overlay itself, which only works once nodes have reached each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hidden(Vec<(IpAddr, u8)>);

impl Hidden {
    pub(super) fn new(ranges: Vec<(IpAddr, u8)>) -> Self {
        Self(ranges)
    }

    /// Whether the address, or for a circuit its relay's, lies in one of the ranges.
    pub(super) fn contains(&self, address: &Multiaddr) -> bool {
        ip_of(address).is_some_and(|ip| {
            self.0
                .iter()
                .any(|(base, length)| lies_in(ip, *base, *length))
        })
    }
}

fn lies_in(ip: IpAddr, base: IpAddr, length: u8) -> bool {
    let differing_from = |differ: u128, bits: u32| {
        differ.leading_zeros() + bits - 128 >= u32::from(length).min(bits)
    };
    match (ip, base) {
        (IpAddr::V4(ip), IpAddr::V4(base)) => {
            differing_from((ip.to_bits() ^ base.to_bits()).into(), 32)
        }
        (IpAddr::V6(ip), IpAddr::V6(base)) => differing_from(ip.to_bits() ^ base.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::identity::Keypair;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_id_survives_the_way_to_libp2p_and_back() {
        let theirs = Keypair::generate_ed25519().public().to_peer_id();
        let ours = from_libp2p(&theirs).unwrap();
        assert_eq!(ours.to_string(), theirs.to_string());
        assert_eq!(to_libp2p(ours).unwrap(), theirs);
    }

    #[test]
    fn a_peer_id_without_an_ed25519_key_is_refused() {
        assert!(from_libp2p(&Libp2pPeerId::random()).is_err());
    }

    #[test]
    fn private_shared_and_circuit_addresses_are_not_public() {
        for text in [
            "/ip4/10.1.2.3/tcp/1",
            "/ip4/100.64.0.1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/203.0.113.1/tcp/1/p2p-circuit",
        ] {
            assert!(!is_public(&address(text)), "{text}");
        }
        assert!(is_public(&address("/ip4/203.0.113.1/udp/1/quic-v1")));
        assert!(is_public(&address("/ip6/2001:db8::1/tcp/1")));
    }

    #[test]
    fn addresses_of_the_overlay_itself_are_hidden() {
        let hidden = Hidden::new(vec![
            ("10.77.0.0".parse().unwrap(), 16),
            ("fd12:3456:789a::".parse().unwrap(), 64),
        ]);
        for text in [
            "/ip4/10.77.255.1/tcp/1",
            "/ip6/fd12:3456:789a::5/udp/1/quic-v1",
        ] {
            assert!(hidden.contains(&address(text)), "{text}");
        }
        for text in [
            "/ip4/10.78.0.1/tcp/1",
            "/ip6/fd12:3456:789a:1::5/tcp/1",
            "/dns4/example.org/tcp/1",
        ] {
            assert!(!hidden.contains(&address(text)), "{text}");
        }
        assert!(
            Hidden::new(vec![("0.0.0.0".parse().unwrap(), 0)])
                .contains(&address("/ip4/8.8.8.8/tcp/1"))
        );
    }

    #[test]
    fn the_identity_is_split_off_and_put_back() {
        let peer = from_libp2p(&Keypair::generate_ed25519().public().to_peer_id()).unwrap();
        let full = with_peer(address("/ip4/192.0.2.1/tcp/4001"), peer);
        assert!(full.to_string().ends_with(&peer.to_string()));
        let (bare, expected) = split_peer(&full);
        assert_eq!(bare, address("/ip4/192.0.2.1/tcp/4001"));
        assert_eq!(expected, to_libp2p(peer).ok());
    }
}
