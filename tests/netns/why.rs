//! `farlan why`: what it says of real pairs, and that it advises what the kinds of two sites call for.

use crate::overlay::{
    FARLAN, await_path, eventually, fabric, founder, host_behind, lab, member, path_kind, ping,
    ssh_key, sshd,
};
use crate::reachability::kinds::{Kind, Way as Expected, cells, expectation};
use anyhow::{Result, ensure};
use cli::demo::Node;
use cli::lab::{Nat, Outbound, SiteOptions};
use overlay_node::why::advise;
use overlay_types::{
    NatBehaviour, NatRule, PathKind, PeerId, PortAssignment,
    why::{
        AdviceKind, Carriage, Explanation, Outcome, PathInUse, RelayPlace, Side, Site, Tried, Way,
        WayIn, WayKind,
    },
};
use std::collections::BTreeSet;

/// What a node says of the way between two; shows, too, what people would read.
pub(crate) fn why(node: &Node, targets: &[&str]) -> Result<Explanation> {
    let arguments = [&["why"], targets].concat();
    let explanation = serde_json::from_value(node.json(&arguments)?)?;
    eprintln!("{}", node.farlan(&arguments)?);
    Ok(explanation)
}

fn kinds(explanation: &Explanation) -> Vec<AdviceKind> {
    explanation.advice.iter().map(|a| a.kind).collect()
}

fn path_of(side: &Side) -> Option<PathKind> {
    side.way.as_ref()?.path.map(|path| path.kind)
}

/// What became of the ways of a kind.
fn outcomes(side: &Side, kind: WayKind) -> Vec<Outcome> {
    let tried = side.way.iter().flat_map(|way| &way.tried);
    let of_kind = tried.filter(|tried| tried.kind == kind);
    of_kind.map(|tried| tried.outcome).collect()
}

#[test]
fn a_direct_pair_is_told_of_by_both_sides_and_by_a_third() {
    let lab = lab("why-direct");
    let (_fabric, bootstrap) = fabric(&lab);
    let nat = Nat::PortRestricted;
    let first = founder(&host_behind(&lab, nat, "a"), &bootstrap, "lab", &[]);
    let second = member(&host_behind(&lab, nat, "b"), &first, "lab");
    let third = member(&lab.public_host("c").unwrap(), &first, "lab");
    await_path(&first, "lab", "b-host", "direct").unwrap();

    let address = second.address("lab").unwrap();
    let said = eventually(|| {
        let said = why(&first, &[&address])?;
        ensure!(path_of(&said.to) == Some(PathKind::Direct), "{said:?}");
        ensure!(said.from.site.nat.mapping != NatRule::Unknown, "{said:?}");
        Ok(said)
    })
    .unwrap();
    assert!(said.from.is_here && said.to.unasked.is_none());
    assert_eq!(said.advice, []);
    assert_eq!(said.from.site.nat.mapping, NatRule::EndpointIndependent);
    assert!(outcomes(&said.from, WayKind::Reflexive).contains(&Outcome::InUse));
    assert!(outcomes(&said.from, WayKind::Relayed).contains(&Outcome::WorseKind));

    let by_third = why(&third, &["a-host", "b-host"]).unwrap();
    assert!(!by_third.from.is_here && !by_third.to.is_here);
    let paths = [&by_third.from, &by_third.to].map(path_of);
    assert_eq!(paths, [Some(PathKind::Direct); 2]);
}

#[test]
fn a_pair_that_is_met_by_chance_is_told_so_before_and_after() {
    let lab = lab("why-chance");
    let (_fabric, bootstrap) = fabric(&lab);
    let host = host_behind(&lab, Nat::PortRestricted, "a");
    let first = founder(&host, &bootstrap, "lab", &[]);
    let second = member(&host_behind(&lab, Nat::Symmetric, "b"), &first, "lab");
    let address = second.address("lab").unwrap();

    // From when both NATs are known it takes half a second to meet, on average: it may be over before anybody asks. What is said
    // on a relay is also seen in the explanation's own tests.
    let before = eventually(|| {
        let before = why(&first, &["b-host"])?;
        let known = [&before.from, &before.to].map(|side| side.site.nat.mapping);
        ensure!(!known.contains(&NatRule::Unknown), "{known:?}");
        Ok(before)
    })
    .unwrap();
    assert!(before.passage.contains("trying many ports"));
    if path_of(&before.from) == Some(PathKind::Relay) {
        assert!([AdviceKind::Use, AdviceKind::Wait].contains(&kinds(&before)[0]));
        assert!(kinds(&before).contains(&AdviceKind::MapPort));
        assert_eq!(
            outcomes(&before.from, WayKind::Reflexive),
            [Outcome::Silent]
        );
    }

    eventually(|| {
        ping(first.machine(), &address)?;
        ensure!(
            path_kind(&first, "lab", "b-host")? == "direct",
            "still relayed"
        );
        Ok(())
    })
    .unwrap();
    let after = why(&first, &["b-host"]).unwrap();
    assert_eq!(after.advice, []);
    let chance = [&after.from, &after.to].map(|s| s.way.as_ref().map_or(0, |w| w.by_chance));
    assert!(chance.iter().sum::<u32>() > 0, "{chance:?}");
    assert!(outcomes(&after.from, WayKind::Seen).contains(&Outcome::InUse));
}

#[test]
fn two_random_symmetric_nats_are_told_that_the_relay_is_the_best_there_is() {
    let lab = lab("why-relay");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(
        &host_behind(&lab, Nat::Symmetric, "a"),
        &bootstrap,
        "lab",
        &[],
    );
    let _second = member(&host_behind(&lab, Nat::Symmetric, "b"), &first, "lab");
    let expected = {
        use AdviceKind::{Ipv6, MapPort, Relay};
        vec![Relay, MapPort, MapPort, Ipv6]
    };
    let said = eventually(|| {
        let said = why(&first, &["b-host"])?;
        ensure!(kinds(&said) == expected, "{said:?}");
        Ok(said)
    })
    .unwrap();
    assert_eq!(path_of(&said.from), Some(PathKind::Relay));
    assert_eq!(outcomes(&said.from, WayKind::Reflexive), [Outcome::Silent]);
    assert_eq!(outcomes(&said.to, WayKind::Reflexive), [Outcome::Silent]);
    for width in [80, 120] {
        let text = in_terminal(&first, width, "why b-host");
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(width), "{longest:?} > {width}\n{text}");
        assert!(text.contains("relay"), "{text}");
        eprintln!("{text}");
    }
}

/// What a command prints in a terminal of this width.
fn in_terminal(node: &Node, width: usize, command: &str) -> String {
    let script = format!("script -qec 'stty cols {width} rows 50; {FARLAN} {command}' /dev/null");
    node.machine().sh(&script).unwrap()
}

#[test]
fn where_udp_is_blocked_the_stream_and_the_site_are_named() {
    let lab = lab("why-stream");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("open").unwrap(), &bootstrap, "lab", &[]);
    let options = SiteOptions {
        outbound: Outbound::Tcp443,
        ..SiteOptions::default()
    };
    let site = lab.site_with("bank", Nat::Masquerade, options).unwrap();
    let second = member(&site.host("teller").unwrap(), &first, "lab");
    for (node, peer) in [(&second, "open"), (&first, "teller")] {
        let said = eventually(|| {
            let said = why(node, &[peer])?;
            ensure!(kinds(&said) == [AdviceKind::AllowUdp], "{said:?}");
            Ok(said)
        })
        .unwrap();
        assert_eq!(said.advice[0].node.as_ref().unwrap().as_str(), "teller");
        let (teller, _) = if peer == "open" {
            (&said.from, &said.to)
        } else {
            (&said.to, &said.from)
        };
        assert_eq!(path_of(teller), Some(PathKind::Stream));
        assert_eq!(teller.site.relays[0].by, Carriage::Tls);
        // The near end of the stream is of no interest.
        let to = teller.way.as_ref().unwrap().path.unwrap().to;
        assert!(!to.ip().is_loopback(), "{to}");
    }
}

#[test]
fn where_only_ssh_gets_out_the_gateway_is_named() {
    let lab = lab("why-ssh");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("open").unwrap(), &bootstrap, "lab", &[]);
    let gateway = lab.public_host("gateway").unwrap();
    let options = SiteOptions {
        outbound: Outbound::Ssh(gateway.address()),
        ..SiteOptions::default()
    };
    let site = lab.site_with("cell", Nat::Masquerade, options).unwrap();
    let host = site.host("inmate").unwrap();
    let _daemon = sshd(&gateway, &ssh_key(&host));
    let via = format!("ssh://root@{}", gateway.address());
    let invite = first.invite("lab").unwrap();
    let (second, _) = Node::up_with_invite_and(&host, FARLAN, &invite, &["--via", &via]).unwrap();

    let said = eventually(|| {
        let said = why(&second, &["open"])?;
        ensure!(kinds(&said) == [AdviceKind::AllowUdp], "{said:?}");
        Ok(said)
    })
    .unwrap();
    assert_eq!(said.from.site.relays[0].by, Carriage::Ssh);
    assert_eq!(said.from.gateway.as_deref(), Some(via.as_str()));
    let text = second.farlan(&["why", "open"]).unwrap();
    assert!(text.contains(&via), "{text}");
    // Whom its user logs in as is told to nobody else.
    let text = first.farlan(&["why", "inmate"]).unwrap();
    assert!(
        text.contains("open to inmate") && !text.contains("root@"),
        "{text}"
    );
}

#[test]
fn one_nat_that_does_not_hairpin_is_named() {
    let lab = lab("why-hairpin");
    let (_fabric, bootstrap) = fabric(&lab);
    let options = SiteOptions {
        isolates_hosts: true,
        ..SiteOptions::default()
    };
    let site = lab.site_with("home", Nat::PortRestricted, options).unwrap();
    let first = founder(&site.host("one").unwrap(), &bootstrap, "lab", &[]);
    let _second = member(&site.host("two").unwrap(), &first, "lab");
    let said = eventually(|| {
        let said = why(&first, &["two"])?;
        ensure!(
            kinds(&said).first() == Some(&AdviceKind::Hairpin),
            "{said:?}"
        );
        Ok(said)
    })
    .unwrap();
    assert_eq!(path_of(&said.from), Some(PathKind::Relay));
    assert!(said.advice[0].text.contains(&site.outside().to_string()));
}

#[test]
fn a_peer_that_is_off_and_targets_that_make_no_sense_are_told_plainly() {
    let lab = lab("why-off");
    let (_fabric, bootstrap) = fabric(&lab);
    let first = founder(&lab.public_host("one").unwrap(), &bootstrap, "lab", &[]);
    let mut second = member(&lab.public_host("two").unwrap(), &first, "lab");
    await_path(&first, "lab", "two", "direct").unwrap();
    second.process().kill().unwrap();
    let said = eventually(|| {
        let said = why(&first, &["two"])?;
        ensure!(kinds(&said) == [AdviceKind::Start], "{said:?}");
        Ok(said)
    })
    .unwrap();
    assert!(said.to.unasked.is_some() && said.to.way.is_none());
    assert!(said.from.way.as_ref().unwrap().heard_ms.is_some());
    let sites = said.to.site.ways_in.iter().map(|way| way.kind);
    assert!(
        sites.collect::<BTreeSet<_>>().contains(&WayKind::Host),
        "as its record says"
    );

    let refusal = |targets: &[&str]| {
        let argv = [&[FARLAN, "why"], targets].concat();
        let said = first.machine().try_run(&argv).unwrap();
        assert!(!said.is_success());
        said.stderr
    };
    let unknown = refusal(&["nobody"]);
    assert!(
        unknown.contains("nobody in the network lab is called 'nobody'"),
        "{unknown}"
    );
    let same = refusal(&["one"]);
    assert!(same.contains("both are the node one"), "{same}");

    first
        .farlan(&[
            "network",
            "create",
            "other",
            "--name",
            "uno",
            "--subnet",
            "10.78.0.0/16",
            "--bootstrap",
            &bootstrap,
        ])
        .unwrap();
    let apart = refusal(&["uno", "two"]);
    assert!(apart.contains("different networks"), "{apart}");
}

/// A host at a kind of site, as it would tell of itself.
fn site(kind: Kind, other: Kind, name: &str, number: u8) -> Side {
    use NatRule::{
        AddressAndPortDependent as Apd, AddressDependent as Ad, EndpointIndependent as Ei,
    };
    let nat = |mapping, filtering, ports| NatBehaviour {
        mapping,
        filtering,
        ports,
        hairpin: (mapping != NatRule::None)
            .then_some(matches!(kind, Kind::Hairpin | Kind::OneCarrier)),
    };
    let (step, random) = (
        PortAssignment::Contiguous { step: 1 },
        PortAssignment::Random,
    );
    let is_blocked = matches!(kind, Kind::UdpBlocked | Kind::SshOnly | Kind::ProxyOnly);
    let nat = match kind {
        Kind::Public => nat(NatRule::None, NatRule::None, PortAssignment::Unknown),
        Kind::Ipv6Only => nat(NatRule::None, Apd, PortAssignment::Unknown),
        Kind::FullCone => nat(Ei, Ei, random),
        Kind::AddressRestricted => nat(Ei, Ad, random),
        Kind::SymmetricIncremental => nat(Apd, Apd, step),
        Kind::SymmetricRandom => nat(Apd, Apd, random),
        _ if is_blocked => NatBehaviour::default(),
        _ => nat(Ei, Apd, random),
    };
    let is_shared = matches!(
        kind,
        Kind::Hairpin | Kind::NoHairpin | Kind::SameLan | Kind::OneCarrier
    );
    let outside = if is_shared && other == kind {
        100
    } else {
        number
    };
    let mut ways_in = Vec::new();
    let mut list = |kind, addr: String| {
        let addr = addr.parse().unwrap();
        ways_in.push(WayIn {
            kind,
            addr,
            relay: None,
        });
    };
    if kind != Kind::Ipv6Only {
        list(WayKind::Host, format!("192.168.{number}.2:7000"));
    }
    if nat.mapping.is_dependent() || nat.mapping == Ei {
        list(
            WayKind::Reflexive,
            format!("203.0.113.{outside}:{}", 40_000 + u16::from(number)),
        );
    }
    if matches!(kind, Kind::Public | Kind::Ipv6Only | Kind::DualStack) {
        list(WayKind::Host, format!("[2001:db8:{number}::2]:7000"));
    }
    let relay = PeerId([9; 32]);
    Side {
        id: PeerId([number; 32]),
        name: name.parse().unwrap(),
        address: None,
        is_here: false,
        unasked: None,
        site: Site {
            nat,
            udp: Some(!is_blocked),
            ways_in,
            relays: vec![RelayPlace {
                relay,
                addr: "198.51.100.1:4078".parse().unwrap(),
                by: if is_blocked {
                    Carriage::Tls
                } else {
                    Carriage::Udp
                },
            }],
        },
        way: None,
        gateway: None,
    }
}

/// What a side knows that is reached by `path`, and from elsewhere by nothing after a round of probes.
fn way(path: PathKind) -> Way {
    let tried = Tried {
        kind: WayKind::Reflexive,
        to: "203.0.113.77:40000".parse().unwrap(),
        relay: None,
        by_stream: false,
        socket: 0,
        probes: 9,
        answers: 0,
        withheld: 0,
        first_ms: Some(6000),
        last_ms: Some(100),
        answered_ms: None,
        failed_ms: None,
        rtt_us: None,
        answered_from: None,
        outcome: Outcome::Silent,
    };
    Way {
        session_s: Some(10),
        path: Some(PathInUse {
            kind: path,
            to: "198.51.100.1:4078".parse().unwrap(),
            relay: Some(PeerId([9; 32])),
            relays: 1,
            rtt_us: 20_000,
            mtu: 1472,
            mtu_refused: None,
            black_holes: 0,
        }),
        tried: vec![tried],
        ..Way::default()
    }
}

/// What is to be advised where two such sites reach each other by a path of this kind.
fn called_for(a: Kind, b: Kind, path: PathKind) -> BTreeSet<AdviceKind> {
    use AdviceKind::{AllowUdp, CommonIp, Hairpin, Ipv6, MapPort, OpenFirewall, Relay, Use};
    let is = |kind| a == kind || b == kind;
    let (way, _) = expectation(a, b);
    let all: &[AdviceKind] = match (path, way) {
        (PathKind::Direct, _) => &[],
        (PathKind::Stream, _) => &[AllowUdp],
        _ if a == Kind::NoHairpin && b == a => &[Hairpin, Ipv6],
        (PathKind::Relay, Expected::Relay) if is(Kind::Ipv6Only) => &[CommonIp],
        (PathKind::Relay, Expected::Relay) => &[Relay, MapPort, Ipv6],
        // Not used yet.
        (PathKind::Relay, Expected::Predicted) => &[Use, MapPort, Ipv6],
        // A datagram that came first has taken the port.
        (PathKind::Relay, _) => &[OpenFirewall, MapPort, Ipv6],
    };
    all.iter().copied().collect()
}

#[test]
fn every_two_kinds_of_site_get_the_advice_that_they_call_for() {
    for (a, b) in cells() {
        let (expected, _) = expectation(a, b);
        let paths: &[PathKind] = match expected {
            Expected::Direct => &[PathKind::Direct],
            Expected::Predicted | Expected::Unsure => &[PathKind::Direct, PathKind::Relay],
            Expected::Relay => &[PathKind::Relay],
            Expected::Stream => &[PathKind::Stream],
        };
        for path in paths {
            let sides =
                [(a, b, "left", 1), (b, a, "right", 2)].map(|(kind, other, name, number)| Side {
                    way: Some(way(*path)),
                    ..site(kind, other, name, number)
                });
            let given = advise(&sides[0], &sides[1]);
            let kinds: BTreeSet<_> = given.iter().map(|advice| advice.kind).collect();
            let text = format!("{a} with {b} by {path:?}: {given:#?}");
            assert_eq!(kinds, called_for(a, b, *path), "{text}");
            let mirrored = advise(&sides[1], &sides[0]);
            let mirrored: BTreeSet<_> = mirrored.iter().map(|advice| advice.kind).collect();
            assert_eq!(kinds, mirrored, "{text}");
            let is_blocked =
                |kind: &Kind| matches!(kind, Kind::UdpBlocked | Kind::SshOnly | Kind::ProxyOnly);
            let blocked = usize::from(is_blocked(&a)) + usize::from(is_blocked(&b));
            if *path == PathKind::Stream {
                assert_eq!(given.len(), blocked, "{text}");
            }
        }
    }
}
