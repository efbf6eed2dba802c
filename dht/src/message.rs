//! What nodes ask each other over control connections, and the answers. The connection authenticates the asker.

use crate::encoding::{Undecodable, decode, encode};
use crate::lease::{LeaseCert, Refusal, RegistrarMessage, Reply, Transaction};
use crate::membership::MembershipCert;
use crate::network::{Genesis, NetworkSecret, SignedDocument};
use crate::record::{ControlPoint, NodeRecord};
use crate::signed::Signed;
use overlay_types::{Name, NetworkId, PeerId, why::View};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The largest message either way.
pub const MESSAGE_MAX: usize = 64 * 1024;
/// Membership certificates in one page of a roster: of at most about 1 KiB each, they stay within a message.
pub const ROSTER_PAGE: usize = 48;

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// To a fabric node: which UDP services do you run?
    FabricInfo,
    /// To a fabric node: a number at your relay, please.
    RelayAllocate,
    /// To a registrar: may I become a member?
    Admit {
        /// Of which network.
        network: NetworkId,
        /// The invite's right; empty from an admin.
        token: Vec<u8>,
        /// The name I would like.
        name: Name,
        /// My clock, in unix seconds.
        unix: u64,
    },
    /// To a registrar, from a member.
    Lease {
        /// In which network.
        network: NetworkId,
        /// Why I may ask.
        membership: Box<MembershipCert>,
        /// What for.
        transaction: Transaction,
    },
    /// Between registrars.
    Registrar(Box<RegistrarMessage>),
    /// To a member, from a member: who is in the network?
    Roster {
        /// Which network.
        network: NetworkId,
        /// Why I may ask.
        membership: Box<MembershipCert>,
        /// Only what changed after this version of the answerer's roster; 0 for all.
        since: u64,
    },
    /// To a member: here are newcomers or renewed memberships.
    PushMembers {
        /// Which network.
        network: NetworkId,
        /// At most [`ROSTER_PAGE`].
        members: Vec<MembershipCert>,
    },
    /// To a member: here is my, or somebody's, newest record.
    PushRecord {
        /// Which network.
        network: NetworkId,
        /// The record.
        record: Box<Signed<NodeRecord>>,
    },
    /// To a member, from a member: what is your newest record?
    GetRecord {
        /// Which network.
        network: NetworkId,
        /// Why I may ask.
        membership: Box<MembershipCert>,
        /// Whose record.
        peer: PeerId,
    },
    /// To a member, from the sole registrar after a start: what did I grant you?
    HighestCertificates {
        /// Which network.
        network: NetworkId,
    },
    /// To a member, from a member: network documents after this version.
    Documents {
        /// Which network.
        network: NetworkId,
        /// Why I may ask.
        membership: Box<MembershipCert>,
        /// The version I have.
        after: u64,
    },
    /// To anybody: what is the time?
    Clock,
    /// To a member, from a member: how do you see the way to this one?
    View {
        /// Which network.
        network: NetworkId,
        /// Why I may ask.
        membership: Box<MembershipCert>,
        /// The way to whom.
        peer: PeerId,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// Taken note of.
    Done,
    /// To [`Request::FabricInfo`].
    Fabric(FabricServices),
    /// To [`Request::RelayAllocate`].
    Relay(RelayAllocation),
    /// To [`Request::Admit`].
    Admitted(Box<Admission>),
    /// To [`Request::Lease`].
    Lease(Box<Reply>),
    /// To [`Request::Roster`].
    Roster(RosterPage),
    /// To [`Request::GetRecord`].
    Record(Option<Box<Signed<NodeRecord>>>),
    /// To [`Request::HighestCertificates`].
    Certificates(Vec<LeaseCert>),
    /// To [`Request::Documents`].
    Documents(Vec<SignedDocument>),
    /// A registrar's refusal.
    Refused(Refusal),
    /// No member of that network, or the asker is not one and is told nothing else.
    NotHere,
    /// Too much to do.
    Busy,
    /// To [`Request::Clock`].
    Clock {
        /// Unix milliseconds.
        unix_ms: u64,
    },
    /// To [`Request::View`]; check that it [is sound](View::is_sound).
    View(Box<View>),
}

/// The UDP services of a fabric node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricServices {
    /// STUN (RFC 8489).
    pub stun: Vec<SocketAddr>,
    /// STUN from another port of the same address (RFC 5780).
    pub stun_alternate: Vec<SocketAddr>,
    /// The relay.
    pub relay: Vec<SocketAddr>,
    /// Where streams to all of these are taken, TCP.
    pub streams: Vec<SocketAddr>,
}

/// A number at a relay.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayAllocation {
    /// The relay's UDP addresses.
    pub relay: Vec<SocketAddr>,
    /// The asker's number there.
    pub index: u32,
    /// Proves to the relay that a binding is the asker's.
    pub key: [u8; 32],
}

impl std::fmt::Debug for RelayAllocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelayAllocation({:?}, index {})", self.relay, self.index)
    }
}

/// All that a new member needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Admission {
    /// The network's beginning; hashes to the invite's network id.
    pub genesis: Genesis,
    /// What followed.
    pub documents: Vec<SignedDocument>,
    /// The newcomer's certificate.
    pub membership: MembershipCert,
    /// The key that members share.
    pub secret: NetworkSecret,
    /// Other members, the first page.
    pub roster: RosterPage,
    /// Where the registrars are.
    pub registrars: Vec<ControlPoint>,
}

/// Some of a network's members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterPage {
    /// At most [`ROSTER_PAGE`], oldest change first.
    pub members: Vec<MembershipCert>,
    /// Ask again with this.
    pub next: u64,
    /// Whether there is more now.
    pub more: bool,
}

impl Request {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a question.
    ///
    /// # Errors
    /// [`Undecodable`]; the caller drops it and counts.
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        decode(bytes, MESSAGE_MAX)
    }
}

impl Response {
    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// [`Undecodable`]; the caller asks somebody else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        decode(bytes, MESSAGE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Lab, NOW, name};
    use overlay_types::DhcpMode;
    use proptest::prelude::*;

    #[test]
    fn messages_read_back_as_they_were() {
        let mut lab = Lab::new("10.77.0.0/16", DhcpMode::Overlay);
        let (peer, membership) = lab.member("a");
        let network = lab.network.id();
        let cert = lab.claim(&peer, Some("a")).unwrap();
        let transaction = Transaction::Renew {
            cert: Box::new(cert.clone()),
            unix: NOW,
        };
        for request in [
            Request::FabricInfo,
            Request::Clock,
            Request::Admit {
                network,
                token: lab.token(crate::membership::Roles::DEFAULT, 1),
                name: name("b"),
                unix: NOW,
            },
            Request::Lease {
                network,
                membership: Box::new(membership.clone()),
                transaction,
            },
            Request::Roster {
                network,
                membership: Box::new(membership.clone()),
                since: 3,
            },
            Request::View {
                network,
                membership: Box::new(membership.clone()),
                peer: lab.owner.peer_id(),
            },
        ] {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        let admission = Admission {
            genesis: lab.network.genesis().clone(),
            documents: Vec::new(),
            membership: membership.clone(),
            secret: NetworkSecret::generate(&mut lab.rng),
            roster: RosterPage {
                members: vec![membership],
                next: 1,
                more: false,
            },
            registrars: vec![ControlPoint {
                peer: lab.owner.peer_id(),
                addresses: vec!["/ip4/127.0.0.1/tcp/1".into()],
            }],
        };
        for response in [
            Response::Admitted(Box::new(admission)),
            Response::Lease(Box::new(Reply::Lease(cert))),
            Response::Refused(Refusal::Starting),
            Response::Clock { unix_ms: u64::MAX },
            Response::View(Box::new(full_view(peer.peer_id()))),
        ] {
            assert_eq!(Response::decode(&response.encode()), Ok(response));
        }
    }

    /// As large as it may be.
    fn full_view(relay: PeerId) -> View {
        use overlay_types::why::{
            Outcome, RELAYS_MAX, RelayPlace, Site, TRIED_MAX, Tried, WAYS_IN_MAX, Way, WayIn,
            WayKind,
        };
        let (addr, relay) = ("[2001:db8::1]:40000".parse().unwrap(), Some(relay));
        let (kind, most) = (WayKind::Relayed, Some(u64::MAX));
        let way_in = WayIn { kind, addr, relay };
        let tried = Tried {
            kind,
            to: addr,
            relay,
            by_stream: true,
            socket: u16::MAX,
            probes: u32::MAX,
            answers: u32::MAX,
            withheld: u32::MAX,
            first_ms: most,
            last_ms: most,
            answered_ms: most,
            failed_ms: most,
            rtt_us: most,
            answered_from: Some(addr),
            outcome: Outcome::Lost,
        };
        let place = RelayPlace {
            relay: relay.unwrap(),
            addr,
            by: overlay_types::why::Carriage::Ssh,
        };
        View {
            site: Site {
                ways_in: vec![way_in; WAYS_IN_MAX],
                relays: vec![place; RELAYS_MAX],
                ..Site::default()
            },
            way: Way {
                tried: vec![tried; TRIED_MAX],
                ..Way::default()
            },
        }
    }

    #[test]
    fn nothing_larger_than_the_bound_is_even_looked_at() {
        let bytes = vec![0; MESSAGE_MAX + 1];
        assert_eq!(
            Request::decode(&bytes),
            Err(Undecodable::TooLarge {
                size: bytes.len(),
                max: MESSAGE_MAX
            })
        );
    }

    proptest! {
        #[test]
        fn no_bytes_break_decoding(bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0u8..16) {
            let tagged = [&[kind][..], &bytes].concat();
            for message in [&bytes, &tagged] {
                if let Ok(request) = Request::decode(message) {
                    prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
                }
                if let Ok(response) = Response::decode(message) {
                    prop_assert_eq!(Response::decode(&response.encode()), Ok(response));
                }
            }
        }
    }
}
