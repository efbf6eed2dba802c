//! What members may rely on, with a sole registrar.

use crate::identity::Identity;
use crate::lease::{BadLease, GUARD_SECONDS, Previous, Subject};
use crate::lease::{Refusal, RegistrarEvent, Reply, Transaction};
use crate::membership::{NotAMember, Roles};
use crate::signed::Certified;
use crate::testing::{Lab, NOW, name};
use overlay_types::{DhcpMode, MacAddr, PeerId};
use std::net::Ipv4Addr;

const DAY: u64 = 24 * 3600;
const OUTSIDE: Subject = Subject::Address(Ipv4Addr::new(10, 78, 0, 1));

fn lab() -> Lab {
    Lab::new("10.77.0.0/24", DhcpMode::Overlay)
}

fn address(last: u8) -> Subject {
    Subject::Address(Ipv4Addr::new(10, 77, 0, last))
}

#[test]
fn the_owner_admits_itself_and_gets_the_first_address() {
    let mut lab = lab();
    let owner = lab.owner.clone();

    let member = lab.admit(&owner, Vec::new(), "home").unwrap();
    let lease = lab.claim(&owner, Some("home")).unwrap();

    assert_eq!(lab.network.verify_membership(&member, NOW), Ok(()));
    assert_eq!(member.roles, Roles::OWNER);
    assert_eq!(lab.network.verify_lease(&lease), Ok(()));
    assert_eq!(
        (lease.subject, lease.generation, lease.expires),
        (address(1), 1, NOW + DAY)
    );
}

#[test]
fn an_invite_admits_as_many_as_it_says_and_each_again_for_free() {
    let mut lab = lab();
    let token = lab.token(Roles::DEFAULT, 2);
    let [a, b, c] = [(); 3].map(|()| Identity::generate(&mut lab.rng));

    assert!(lab.admit(&a, token.clone(), "a").is_ok());
    assert!(
        lab.admit(&a, token.clone(), "a2").is_ok(),
        "the answer may have been lost"
    );
    assert!(lab.admit(&b, token.clone(), "b").is_ok());
    assert_eq!(
        lab.admit(&c, token, "c"),
        Err(Refusal::InviteUsedUp { uses: 2 })
    );
    assert_eq!(lab.admit(&c, Vec::new(), "c"), Err(Refusal::NotAMember));
    assert!(matches!(
        lab.admit(&c, vec![1, 2, 3], "c"),
        Err(Refusal::Token(_))
    ));
}

#[test]
fn a_name_belongs_to_one_member() {
    let mut lab = lab();
    let (a, _) = lab.member("web");
    let (b, _) = lab.member("b");
    let token = lab.token(Roles::DEFAULT, 1);
    let c = Identity::generate(&mut lab.rng);
    let taken = Refusal::NameTaken {
        name: name("web"),
        holder: a.peer_id(),
    };

    assert_eq!(lab.admit(&c, token.clone(), "web"), Err(taken.clone()));
    assert!(
        lab.admit(&c, token, "c").is_ok(),
        "the use was not lost with the name"
    );
    assert_eq!(lab.claim(&b, Some("web")), Err(taken));
    assert!(lab.claim(&a, Some("web")).is_ok());
}

#[test]
fn addresses_are_sticky_and_else_the_lowest_that_is_free() {
    let mut lab = lab();
    let ((a, _), (b, _)) = (lab.member("a"), lab.member("b"));
    let first = lab.claim(&a, None).unwrap();
    assert_eq!(lab.claim(&b, None).unwrap().subject, address(2));
    assert_eq!(lab.claim(&a, None).unwrap().subject, first.subject);
    // Long after it ran out, while nobody else asked for it.
    lab.unix += 10 * DAY;
    let again = lab.claim(&a, None).unwrap();
    assert_eq!((again.subject, again.generation), (first.subject, 1));
    // A wanted address is had if it is free.
    let wanted = Some(Ipv4Addr::new(10, 77, 0, 99));
    let mac = MacAddr([2, 0, 0, 0, 0, 9]);
    let claim = Transaction::ClaimAddress {
        wanted,
        mac,
        name: None,
        unix: lab.unix,
    };
    assert_eq!(lab.lease(&a, claim).unwrap().subject, address(99));
}

#[test]
fn an_address_changes_hands_after_expiry_and_guard_or_by_a_release() {
    let mut lab = Lab::new("10.77.0.0/30", DhcpMode::Overlay);
    let ((a, _), (b, _), (c, _)) = (lab.member("a"), lab.member("b"), lab.member("c"));
    let of_a = lab.claim(&a, None).unwrap();
    let of_b = lab.claim(&b, None).unwrap();
    let exhausted = Refusal::PoolExhausted {
        subnet: "10.77.0.0/30".parse().unwrap(),
    };
    assert_eq!(lab.claim(&c, None), Err(exhausted.clone()));

    let release = of_b.release(&b, NOW + 5).signed().clone();
    assert_eq!(
        lab.ask(&b, Transaction::Release(release.clone())),
        Reply::Released
    );
    assert_eq!(
        lab.ask(&b, Transaction::Release(release)),
        Reply::Released,
        "the answer may have been lost"
    );
    let renewal = Transaction::Renew {
        cert: Box::new(of_b.clone()),
        unix: NOW,
    };
    assert_eq!(lab.lease(&b, renewal), Err(Refusal::NotYours));
    let of_c = lab.claim(&c, None).unwrap();
    assert_eq!((of_c.subject, of_c.generation), (of_b.subject, 2));
    assert!(matches!(of_c.previous, Some(Previous::Released(_))) && of_c.refutes(&of_b));

    lab.unix = of_a.expires + GUARD_SECONDS - 1;
    assert_eq!(lab.claim(&b, None), Err(exhausted));
    lab.unix += 1;
    let after = lab.claim(&b, None).unwrap();
    assert_eq!((after.subject, after.generation), (of_a.subject, 2));
    assert_eq!(
        after.previous,
        Some(Previous::Expired {
            holder: a.peer_id(),
            expires: of_a.expires
        })
    );
    assert_eq!(lab.network.verify_lease(&after), Ok(()));
}

#[test]
fn a_strangers_release_frees_nothing() {
    let mut lab = lab();
    let ((a, _), (b, _)) = (lab.member("a"), lab.member("b"));
    let of_a = lab.claim(&a, None).unwrap();
    let forged = of_a.release(&b, NOW).signed().clone();
    assert_eq!(
        lab.ask(&b, Transaction::Release(forged.clone())),
        Reply::Refused(Refusal::NotYours)
    );
    assert_eq!(
        lab.ask(&a, Transaction::Release(forged)),
        Reply::Refused(Refusal::NotYours)
    );
}

#[test]
fn renewal_gives_more_time_to_the_same_generation() {
    let mut lab = lab();
    let (a, _) = lab.member("a");
    let first = lab.claim(&a, Some("a")).unwrap();
    lab.unix += DAY / 2;
    let renewed = lab
        .lease(
            &a,
            Transaction::Renew {
                cert: Box::new(first.clone()),
                unix: lab.unix,
            },
        )
        .unwrap();
    assert_eq!(
        (renewed.subject, renewed.generation, renewed.expires),
        (first.subject, 1, lab.unix + DAY)
    );
    assert_eq!(renewed.name, first.name);
}

#[test]
fn blocks_come_from_the_far_end_and_never_meet_single_addresses() {
    let mut lab = Lab::new("10.77.0.0/27", DhcpMode::Overlay);
    let ((a, _), (b, _)) = (lab.member("a"), lab.member("b"));
    let block = lab.claim_block(&a).unwrap();
    assert_eq!(
        block.subject,
        Subject::Block("10.77.0.16/28".parse().unwrap())
    );
    assert_eq!(
        lab.claim_block(&a).unwrap().subject,
        block.subject,
        "the same once more"
    );
    assert_eq!(
        lab.claim_block(&b),
        Err(Refusal::NoBlock {
            subnet: "10.77.0.0/27".parse().unwrap()
        })
    );

    let mut count = 0;
    while let Ok(cert) = {
        let claim = Transaction::ClaimAddress {
            wanted: None,
            mac: MacAddr([2, 0, 0, 0, 1, count]),
            name: None,
            unix: lab.unix,
        };
        lab.lease(&b, claim)
    } {
        assert!(!cert.subject.overlaps(block.subject));
        count += 1;
    }
    assert_eq!(
        count, 15,
        "the first extent, without the network's own address"
    );
    // Once the block is over, its addresses serve singly, and then never again as a block.
    lab.unix = block.expires + GUARD_SECONDS;
    let claim = Transaction::ClaimAddress {
        wanted: Some(Ipv4Addr::new(10, 77, 0, 20)),
        mac: MacAddr([2, 0, 0, 0, 2, 1]),
        name: None,
        unix: lab.unix,
    };
    assert_eq!(lab.lease(&b, claim).unwrap().subject, address(20));
    assert!(matches!(lab.claim_block(&a), Err(Refusal::NoBlock { .. })));
}

#[test]
fn clocks_that_differ_too_much_are_refused() {
    let mut lab = lab();
    let (a, _) = lab.member("a");
    let late = Transaction::ClaimBlock {
        wanted: None,
        have: vec![],
        unix: NOW - 31,
    };
    assert_eq!(
        lab.lease(&a, late),
        Err(Refusal::ClocksApart { seconds: 31 })
    );
    let bearable = Transaction::ClaimBlock {
        wanted: None,
        have: vec![],
        unix: NOW + 30,
    };
    assert!(lab.lease(&a, bearable).is_ok());
}

#[test]
fn membership_is_renewed_while_it_lasts() {
    let mut lab = lab();
    let (a, first) = lab.member("a");
    lab.unix += 15 * DAY;
    let Reply::Member(renewed) = lab.ask(&a, Transaction::RenewMembership { unix: lab.unix })
    else {
        panic!("refused")
    };
    assert_eq!(
        (renewed.roles, renewed.expires),
        (first.roles, lab.unix + 30 * DAY)
    );
    assert_eq!(
        lab.network.verify_membership(&first, first.expires),
        Err(NotAMember::Expired)
    );
    lab.unix = renewed.expires;
    assert_eq!(
        lab.ask(&a, Transaction::RenewMembership { unix: lab.unix }),
        Reply::Refused(Refusal::NotAMember)
    );
}

#[test]
fn nothing_is_said_before_the_disk_has_it() {
    let mut lab = lab();
    let owner = lab.owner.peer_id();
    let admit = Transaction::Admit {
        token: Vec::new(),
        name: name("home"),
        unix: NOW,
    };
    lab.registrar
        .handle_transaction(7, owner, admit, lab.now, NOW);
    let mut persisted = 0;
    loop {
        match lab.registrar.poll_event() {
            Some(RegistrarEvent::Persist { id, records }) => {
                assert!(!records.is_empty());
                assert_eq!(lab.registrar.poll_event(), None, "it must wait");
                persisted += 1;
                lab.registrar.handle_persisted(id, lab.now, NOW);
            }
            Some(RegistrarEvent::Reply { id: 7, .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        persisted, 4,
        "a promise and an acceptance for the name and for the membership"
    );
}

#[test]
fn a_changed_certificate_is_refused() {
    let mut lab = lab();
    let (a, _) = lab.member("a");
    let cert = lab.claim(&a, None).unwrap();
    let tampered = |change: fn(&mut crate::lease::Lease)| {
        let mut cert = cert.clone();
        change(&mut cert.body);
        lab.network.verify_lease(&cert)
    };
    assert!(matches!(
        tampered(|lease| lease.expires += 1),
        Err(BadLease::NotCertified(_))
    ));
    assert!(matches!(
        tampered(|lease| lease.holder = PeerId([1; 32])),
        Err(BadLease::NotCertified(_))
    ));
    assert_eq!(
        tampered(|lease| lease.generation = 2),
        Err(BadLease::Generation)
    );
    assert_eq!(
        tampered(|lease| lease.subject = OUTSIDE),
        Err(BadLease::OutsideTheSubnet)
    );
    assert_eq!(
        tampered(|lease| lease.epoch = 9),
        Err(BadLease::UnknownEpoch(9))
    );
    let unsigned = Certified {
        body: cert.body.clone(),
        signatures: Vec::new(),
    };
    assert!(matches!(
        lab.network.verify_lease(&unsigned),
        Err(BadLease::NotCertified(_))
    ));
}
