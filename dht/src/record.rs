//! What nodes say of themselves: how to reach them, what they hold, who is behind them; and where registrars are found.
//! Signed by their author; sealing them into the DHT is [`crate::slot`]'s.

use crate::identity::Domain;
use crate::lease::LeaseCert;
use crate::membership::MembershipCert;
use crate::signed::{SIGNED_OVERHEAD, Signable, Signed, Verified};
use crate::slot::SLOT_CONTENT_MAX;
use overlay_types::{Candidate, DataKeys, KEM_KEY_BYTES, MacAddr, Name, NetworkId, PeerId, Subnet};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The most candidates in a record; each costs its peers probes.
pub const CANDIDATES_MAX: usize = 16;
/// The most control addresses in a record.
pub const CONTROL_ADDRESSES_MAX: usize = 6;
/// A multiaddress through a relay is about 150 bytes.
pub const CONTROL_ADDRESS_BYTES_MAX: usize = 256;
/// The most lease certificates in a record.
pub const LEASES_MAX: usize = 8;
/// The most guests in a record.
pub const GUESTS_MAX: usize = 32;

/// A station behind a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Guest {
    /// Its MAC.
    pub mac: MacAddr,
    /// Its address; in an overlay-served network inside one of the record's blocks.
    pub ip: IpAddr,
    /// Its name, if it has one.
    pub name: Option<Name>,
}

/// What a node says of itself in one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Itself; must be the signer.
    pub peer: PeerId,
    /// In which network.
    pub network: NetworkId,
    /// Rises with every version; unix milliseconds do.
    pub seq: u64,
    /// Unix seconds; forgotten then.
    pub expires: u64,
    /// The keys its data plane is reached by.
    pub keys: DataKeys,
    /// Where datagrams may reach it.
    pub candidates: Vec<Candidate>,
    /// Where control connections may reach it (multiaddresses).
    pub control: Vec<String>,
    /// Why it may be in the network.
    pub membership: MembershipCert,
    /// The addresses and blocks that it holds.
    pub leases: Vec<LeaseCert>,
    /// Who is behind it.
    pub guests: Vec<Guest>,
    /// What it knows of its NAT, in RFC 4787's words: mapping, filtering.
    pub nat: (String, String),
    /// The LAN behind it, if it is a gateway.
    pub lan: Option<LanRecord>,
}

/// A gateway's LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LanRecord {
    /// It is bridged into the network: a digest by which another gateway of the same segment knows it.
    Bridged([u8; 16]),
    /// It is reached by routing through the gateway's own address.
    Routed(Subnet),
}

impl Signable for NodeRecord {
    const DOMAIN: Domain = Domain::NodeRecord;
    const SIZE_MAX: usize = SLOT_CONTENT_MAX - SIGNED_OVERHEAD;
}

impl NodeRecord {
    /// The record's own bounds, and that its signer wrote it of itself.
    pub(crate) fn is_sound(&self, author: PeerId) -> bool {
        self.peer == author
            && self.membership.member == author
            && self.membership.network == self.network
            && self.keys.kem.len() == KEM_KEY_BYTES
            && self.candidates.len() <= CANDIDATES_MAX
            && self.control.len() <= CONTROL_ADDRESSES_MAX
            && self
                .control
                .iter()
                .all(|a| a.len() <= CONTROL_ADDRESS_BYTES_MAX)
            && self.leases.len() <= LEASES_MAX
            && self.guests.len() <= GUESTS_MAX
            && self.nat.0.len() <= 32
            && self.nat.1.len() <= 32
    }
}

/// Where a registrar is found, kept in the slot that an invite's rendezvous key opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RendezvousRecord {
    /// Which network's.
    pub network: NetworkId,
    /// Rises with every version; unix milliseconds do.
    pub seq: u64,
    /// Unix seconds.
    pub expires: u64,
    /// Registrars with their control addresses (multiaddresses).
    pub registrars: Vec<ControlPoint>,
}

/// A node and where control connections reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlPoint {
    /// Which node.
    pub peer: PeerId,
    /// Multiaddresses.
    pub addresses: Vec<String>,
}

impl Signable for RendezvousRecord {
    const DOMAIN: Domain = Domain::RendezvousRecord;
    const SIZE_MAX: usize = SLOT_CONTENT_MAX - SIGNED_OVERHEAD;
}

/// Reads the plaintext of a node's slot.
pub fn decode_node_record(plaintext: &[u8]) -> Option<Verified<NodeRecord>> {
    let record = Signed::<NodeRecord>::from_bytes(plaintext)
        .ok()?
        .verify()
        .ok()?;
    record.is_sound(record.author()).then_some(record)
}

/// Reads the plaintext of a rendezvous slot. A newcomer cannot know yet whether its author is a registrar; it learns
/// that from the genesis which the registrars send, whose hash must be the invite's network id.
pub fn decode_rendezvous_record(plaintext: &[u8]) -> Option<Verified<RendezvousRecord>> {
    let record = Signed::<RendezvousRecord>::from_bytes(plaintext)
        .ok()?
        .verify()
        .ok()?;
    let sound = record.registrars.len() <= crate::network::VOTERS_MAX
        && record.registrars.iter().all(|r| {
            r.addresses.len() <= CONTROL_ADDRESSES_MAX
                && r.addresses
                    .iter()
                    .all(|a| a.len() <= CONTROL_ADDRESS_BYTES_MAX)
        });
    sound.then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::{SlotKey, SlotName};
    use crate::testing::{Lab, NOW, name, signed};
    use overlay_types::DhcpMode;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    /// What it pays for at addresses that proved nothing: an initiation has 1244 bytes with its headers, a question 48.
    #[test]
    fn a_record_with_one_lease_pays_for_a_call_and_several_questions() {
        let mut lab = Lab::new("10.77.0.0/16", DhcpMode::Overlay);
        let (peer, membership) = lab.member("n");
        let lease = lab.claim(&peer, None).unwrap();
        let record = signed(
            lab.record(&peer, &membership, vec![lease], Vec::new()),
            &peer,
        );
        let (paid, came) = (
            record.signed_bytes(),
            record.signed().to_bytes().len() as u64,
        );
        assert!(paid <= came && came < paid + 8, "{paid} of {came}");
        assert!(paid > 1244 + 8 * 48, "only {paid}");
    }

    #[test]
    fn a_full_record_fits_its_slot() {
        let mut lab = Lab::new("10.77.0.0/16", DhcpMode::Overlay);
        let (peer, membership) = lab.member("a-rather-long-name-for-a-node");
        let leases = vec![
            lab.claim(&peer, Some("a-rather-long-name-for-a-node"))
                .unwrap(),
            lab.claim_block(&peer).unwrap(),
        ];
        let guests = (0..13).map(|n| Guest {
            mac: MacAddr([2, 0, 0, 0, 0, n]),
            ip: Ipv4Addr::new(10, 77, 255, 240 + n).into(),
            name: Some(name(&format!("virtual-machine-{n}"))),
        });
        let mut record = lab.record(&peer, &membership, leases, guests.collect());
        record.candidates = vec![
            Candidate::Relayed {
                via: peer.peer_id(),
                relay: "[2001:db8::1]:4001".parse().unwrap(),
                index: u32::MAX
            };
            10
        ];
        record.control = vec!["/ip4/198.51.100.100/udp/40001/quic-v1/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo/p2p-circuit".into(); 4];

        let record = signed(record, &peer);
        let key = SlotKey::derive(&[1; 32], &SlotName::Node(peer.peer_id()));
        let value = key
            .seal(&record.signed().to_bytes(), NOW * 1000, 3600, &mut lab.rng)
            .unwrap();

        assert_eq!(
            decode_node_record(&key.open(&value, NOW).unwrap()),
            Some(record)
        );
    }

    #[test]
    fn a_record_about_somebody_else_is_none() {
        let mut lab = Lab::new("10.77.0.0/16", DhcpMode::Overlay);
        let ((a, member_a), (b, _)) = (lab.member("a"), lab.member("b"));
        let about_a = lab.record(&a, &member_a, vec![], vec![]);
        assert!(decode_node_record(&signed(about_a.clone(), &a).signed().to_bytes()).is_some());
        assert_eq!(
            decode_node_record(&signed(about_a, &b).signed().to_bytes()),
            None
        );
    }

    proptest! {
        #[test]
        fn no_bytes_pass_for_a_record(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert_eq!(decode_node_record(&bytes), None);
            prop_assert_eq!(decode_rendezvous_record(&bytes), None);
        }
    }
}
