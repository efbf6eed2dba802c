//! What peers ask and answer over control connections, and what becomes of it.

use crate::input::{Edits, one_broken};
use crate::network::{NOW, WORLD, World, ask, registrar};
use bolero::check;
use dht::lease::{MessageBody, Refusal, RegistrarMessage, Reply, Transaction};
use dht::message::{Admission, FabricServices, RelayAllocation, Request, Response, RosterPage};
use dht::network::Network;
use dht::record::ControlPoint;
use dht::signed::Verified;
use overlay_node::why::advise;
use overlay_types::{
    NatBehaviour, NatRule, PathKind, PortAssignment,
    why::{Carriage, Outcome, PathInUse, RelayPlace, Side, Site, Tried, View, Way, WayIn, WayKind},
};
use std::sync::LazyLock;

static REQUESTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let World {
        member,
        network,
        token,
        membership,
        lease,
        block,
        ..
    } = &*WORLD;
    let (id, unix) = (network.id(), NOW);
    let membership = || Box::new(membership.clone());
    let lease_request = |transaction| Request::Lease {
        network: id,
        membership: membership(),
        transaction,
    };
    let record = Verified::sign(WORLD.record(), member).unwrap();
    let name: overlay_types::Name = "bob".parse().unwrap();
    let release = lease.release(member, NOW).signed().clone();
    [
        Request::FabricInfo,
        Request::RelayAllocate,
        Request::Admit {
            network: id,
            token: token.clone(),
            name: name.clone(),
            unix,
        },
        lease_request(Transaction::RenewMembership { unix }),
        lease_request(Transaction::ClaimAddress {
            wanted: Some([10, 77, 0, 9].into()),
            mac: member.peer_id().host_mac(),
            name: Some(name),
            unix,
        }),
        lease_request(Transaction::ClaimBlock {
            wanted: Some("10.77.1.16/28".parse().unwrap()),
            have: vec!["10.77.1.0/28".parse().unwrap()],
            unix,
        }),
        lease_request(Transaction::Renew {
            cert: Box::new(lease.clone()),
            unix,
        }),
        lease_request(Transaction::Renew {
            cert: Box::new(block.clone()),
            unix,
        }),
        lease_request(Transaction::Release(release)),
        Request::Registrar(Box::new(RegistrarMessage {
            network: id,
            epoch: 1,
            unix,
            body: MessageBody::Recall,
        })),
        Request::Roster {
            network: id,
            membership: membership(),
            since: 0,
        },
        Request::PushMembers {
            network: id,
            members: vec![*membership()],
        },
        Request::PushRecord {
            network: id,
            record: Box::new(record.signed().clone()),
        },
        Request::GetRecord {
            network: id,
            membership: membership(),
            peer: member.peer_id(),
        },
        Request::HighestCertificates { network: id },
        Request::Documents {
            network: id,
            membership: membership(),
            after: 0,
        },
        Request::Clock,
        Request::View {
            network: id,
            membership: membership(),
            peer: member.peer_id(),
        },
    ]
    .iter()
    .map(Request::encode)
    .collect()
});

/// How a member sees a relayed way.
fn view() -> View {
    let relay = Some(WORLD.owner.peer_id());
    let [to, outside] = [
        ([192, 0, 2, 1], 4078).into(),
        ([203, 0, 113, 1], 40_000).into(),
    ];
    let nat = NatBehaviour {
        mapping: NatRule::AddressAndPortDependent,
        filtering: NatRule::AddressAndPortDependent,
        ports: PortAssignment::Contiguous { step: 1 },
        hairpin: Some(false),
    };
    let way_in = |kind, addr, relay| WayIn { kind, addr, relay };
    let tried = Tried {
        kind: WayKind::Reflexive,
        to: outside,
        relay: None,
        by_stream: false,
        socket: 0,
        probes: 9,
        answers: 0,
        withheld: 1,
        first_ms: Some(6000),
        last_ms: Some(10),
        answered_ms: None,
        failed_ms: None,
        rtt_us: None,
        answered_from: None,
        outcome: Outcome::Silent,
    };
    View {
        site: Site {
            nat,
            udp: Some(true),
            ways_in: vec![
                way_in(WayKind::Relayed, to, relay),
                way_in(WayKind::Reflexive, outside, None),
            ],
            relays: vec![RelayPlace {
                relay: WORLD.owner.peer_id(),
                addr: to,
                by: Carriage::Udp,
            }],
        },
        way: Way {
            session_s: Some(60),
            path: Some(PathInUse {
                kind: PathKind::Relay,
                to,
                relay,
                relays: 1,
                rtt_us: 20_000,
                mtu: 1472,
                mtu_refused: Some(1473),
                black_holes: 0,
            }),
            peer_nat: nat,
            tried: vec![tried],
            foretold: 3,
            ..Way::default()
        },
    }
}

/// A side that said this of itself.
fn side(view: View) -> Side {
    let View { site, way } = view;
    Side {
        id: WORLD.member.peer_id(),
        name: "bob".parse().unwrap(),
        address: None,
        is_here: false,
        unasked: None,
        site,
        way: Some(way),
        gateway: None,
    }
}

static RESPONSES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let relay = vec![([192, 0, 2, 1], 3478).into()];
    let World {
        network,
        membership,
        lease,
        ..
    } = &*WORLD;
    let roster = RosterPage {
        members: vec![membership.clone()],
        next: 1,
        more: false,
    };
    let record = Verified::sign(WORLD.record(), &WORLD.member).unwrap();
    [
        Response::Done,
        Response::Fabric(FabricServices {
            stun: relay.clone(),
            stun_alternate: relay.clone(),
            relay: relay.clone(),
            streams: Vec::new(),
        }),
        Response::Relay(RelayAllocation {
            relay,
            index: 7,
            key: [1; 32],
        }),
        Response::Admitted(Box::new(Admission {
            genesis: network.genesis().clone(),
            documents: network.documents().to_vec(),
            membership: membership.clone(),
            secret: WORLD.secret.clone(),
            roster: roster.clone(),
            registrars: vec![ControlPoint {
                peer: WORLD.owner.peer_id(),
                addresses: Vec::new(),
            }],
        })),
        Response::Lease(Box::new(Reply::Lease(lease.clone()))),
        Response::Lease(Box::new(Reply::Refused(Refusal::InviteUsedUp { uses: 1 }))),
        Response::Roster(roster),
        Response::Record(Some(Box::new(record.signed().clone()))),
        Response::Certificates(vec![lease.clone()]),
        Response::Refused(Refusal::ClocksApart { seconds: 40 }),
        Response::NotHere,
        Response::Busy,
        Response::Clock {
            unix_ms: NOW * 1000,
        },
        Response::View(Box::new(view())),
    ]
    .iter()
    .map(Response::encode)
    .collect()
});

#[test]
fn requests_are_read_and_transactions_answered() {
    check!()
        .with_type()
        .for_each(|steps: &Vec<(u8, Edits, u8)>| {
            let (mut registrar, mut unix) = (registrar(&WORLD.owner, &WORLD.network), NOW);
            for (choice, edits, wait) in steps.iter().take(12) {
                unix += u64::from(*wait);
                let bytes = one_broken(&REQUESTS, *choice, edits);
                let Ok(request) = Request::decode(&bytes) else {
                    continue;
                };
                assert_eq!(Request::decode(&request.encode()).as_ref(), Ok(&request));
                match request {
                    Request::Admit {
                        token,
                        name,
                        unix: told,
                        ..
                    } => {
                        let admit = Transaction::Admit {
                            token,
                            name,
                            unix: told,
                        };
                        assert!(ask(&mut registrar, &WORLD.member, admit, unix).is_some());
                    }
                    Request::Lease { transaction, .. } => {
                        let answer = ask(&mut registrar, &WORLD.member, transaction, unix);
                        if let Some(Reply::Lease(cert)) = &answer {
                            assert!(WORLD.network.verify_lease(cert).is_ok());
                            assert_eq!(cert.holder, WORLD.member.peer_id());
                        }
                        assert!(answer.is_some(), "a registrar alone answers at once");
                    }
                    Request::Registrar(message) => {
                        let from = WORLD.owner.peer_id();
                        registrar.handle_message(from, *message, std::time::Instant::now(), unix);
                        while registrar.poll_transmit().is_some() {}
                    }
                    _ => {}
                }
            }
        });
}

#[test]
fn responses_are_read_and_admissions_checked() {
    check!()
        .with_type()
        .for_each(|(choice, edits, bytes): &(u8, Edits, Vec<u8>)| {
            let _ = Response::decode(bytes);
            let Ok(response) = Response::decode(&one_broken(&RESPONSES, *choice, edits)) else {
                return;
            };
            assert_eq!(Response::decode(&response.encode()).as_ref(), Ok(&response));
            match response {
                Response::Admitted(admission) => {
                    let Ok(mut network) = Network::new(admission.genesis) else {
                        return;
                    };
                    for document in admission.documents {
                        let _ = network.apply(document);
                    }
                    let verified = network.verify_membership(&admission.membership, NOW);
                    assert!(verified.is_err() || *admission.membership == *WORLD.membership);
                }
                Response::View(told) if told.is_sound() => {
                    let sides = [side(*told), side(view())];
                    for advice in advise(&sides[0], &sides[1]) {
                        assert!(advice.text.len() < 400);
                    }
                }
                Response::Refused(refusal) => assert!(refusal.to_string().len() < 400),
                _ => {}
            }
        });
}
