//! Frames between whole nodes: where they go, what is answered on the spot, and what is dropped.

use super::world::*;
use crate::{
    engine::{Command, Event},
    stats::Counter,
    switch::{facts::Facts, testing::*},
};
use overlay_types::{Binding, DhcpMode, Location, MacAddr, PortKind};
use std::net::{IpAddr, Ipv4Addr};
use zeroize::Zeroizing;

#[test]
fn a_full_frame_crosses_a_narrow_path() {
    let mut world = World::met(2, 2);
    let large = sized_frame(mac(0), mac(1), ip(0), ip(1), 1514);
    world.guest_sends(0, &large);
    world.run(SECOND);
    assert_eq!(world.received(1), [large]);
    assert_eq!(world.counters(0).get(Counter::FramesSplit), 1);
}

#[test]
fn a_spoofed_source_is_dropped_at_both_ends() {
    let mut world = World::met(3, 13);
    world.guest_sends(0, &sized_frame(mac(2), mac(1), ip(2), ip(1), 98));
    // A node that lies about its own port: its engine lets the frame out, the receiver does not let it in.
    world.command(
        0,
        Command::SetPortMacs {
            port: PORT,
            macs: vec![mac(0), mac(2)],
        },
    );
    world.command(
        0,
        Command::SetBindings {
            network: NET,
            bindings: Vec::new(),
        },
    );
    let lie = Command::SwitchFrame {
        network: NET,
        frame: sized_frame(mac(2), mac(1), ip(2), ip(1), 98),
    };
    world.command(0, lie);
    world.run(SECOND);
    assert_eq!(world.received(1), Vec::<Vec<u8>>::new());
    assert!(world.counters(0).get(Counter::DropSpoofedMac) >= 1);
    assert!(world.counters(1).get(Counter::DropSpoofedMac) >= 1);
}

#[test]
fn arp_is_answered_from_bindings_without_a_datagram() {
    let mut world = World::met(2, 14);
    let sent = world.sent;
    world.guest_sends(0, &arp_request(mac(0), ip(0), ip(1)));
    let answer = world.received(0).pop().expect("answered at once");
    assert_eq!(
        Facts::parse(&answer).unwrap().claim(),
        Some((IpAddr::from(ip(1)), mac(1)))
    );
    assert_eq!(world.sent, sent);
}

#[test]
fn an_unbound_address_is_looked_up_and_the_question_answered_late() {
    for is_absent_at_first in [false, true] {
        an_unbound_address_is_answered_late(is_absent_at_first);
    }
}

fn an_unbound_address_is_answered_late(is_absent_at_first: bool) {
    let mut world = World::met(2, 15);
    let (unknown, at) = (Ipv4Addr::new(10, 77, 0, 99), MacAddr([2, 0, 0, 0, 9, 9]));
    for _ in 0..5 {
        world.guest_sends(0, &arp_request(mac(0), ip(0), unknown));
    }
    assert!(world.received(0).is_empty());
    let wanted = Event::AddressWanted {
        network: NET,
        ip: unknown.into(),
    };
    assert_eq!(
        world.nodes[0]
            .events
            .iter()
            .filter(|&e| *e == wanted)
            .count(),
        1
    );
    if is_absent_at_first {
        let ip = unknown.into();
        world.command(0, Command::NoSuchAddress { network: NET, ip });
    }
    let mine = Binding {
        ip: ip(0).into(),
        mac: mac(0),
        location: Location::Port(PORT),
    };
    let found = Binding {
        ip: unknown.into(),
        mac: at,
        location: Location::Peer(peer_id(1)),
    };
    world.command(
        0,
        Command::SetBindings {
            network: NET,
            bindings: vec![mine, found],
        },
    );
    let answers = world.received(0);
    assert_eq!(answers.len(), 1);
    assert_eq!(
        Facts::parse(&answers[0]).unwrap().claim(),
        Some((unknown.into(), at))
    );
}

#[test]
fn an_address_that_nobody_has_is_not_asked_for_again_at_once() {
    let mut world = World::met(2, 16);
    let unknown = Ipv4Addr::new(10, 77, 0, 99);
    world.guest_sends(0, &arp_request(mac(0), ip(0), unknown));
    world.command(
        0,
        Command::NoSuchAddress {
            network: NET,
            ip: unknown.into(),
        },
    );
    for _ in 0..3 {
        world.run(SECOND);
        world.guest_sends(0, &arp_request(mac(0), ip(0), unknown));
    }
    let asked = world.nodes[0]
        .events
        .iter()
        .filter(|e| matches!(e, Event::AddressWanted { .. }))
        .count();
    assert_eq!(asked, 1);
}

#[test]
fn an_address_that_many_ask_for_is_sought_as_often_as_one_that_one_asks_for() {
    let mut world = World::met(2, 16);
    let unknown = Ipv4Addr::new(10, 77, 0, 99);
    let mut asked = 0;
    for _ in 0..60 {
        for asker in 0..20 {
            let mut question = arp_request(mac(0), ip(0), unknown);
            question.resize(question.len() + asker, 0); // none is like another
            world.guest_sends(0, &question);
            let wanted = |e: &&Event| matches!(e, Event::AddressWanted { .. });
            let before = std::mem::replace(
                &mut asked,
                world.nodes[0].events.iter().filter(wanted).count(),
            );
            if asked > before {
                let ip = unknown.into();
                world.command(0, Command::NoSuchAddress { network: NET, ip });
            }
        }
        world.run(SECOND);
    }
    assert!((10..=12).contains(&asked), "{asked} times in a minute");
}

#[test]
fn broadcasts_reach_everybody_once_and_a_storm_is_cut() {
    let mut world = World::met(3, 17);
    let broadcast = sized_frame(mac(0), MacAddr::BROADCAST, ip(0), Ipv4Addr::BROADCAST, 98);
    world.guest_sends(0, &broadcast);
    world.run(SECOND);
    assert_eq!(
        (
            world.received(1).len(),
            world.received(2).len(),
            world.received(0).len()
        ),
        (1, 1, 0)
    );
    for _ in 0..5000 {
        world.guest_sends(0, &broadcast);
    }
    world.run(SECOND);
    let passed = world.received(1).len();
    assert!((500..=1100).contains(&passed), "{passed} of 5000 passed");
    assert!(world.counters(0).get(Counter::DropStorm) >= 3000);
}

#[test]
fn an_empty_guest_port_takes_the_first_station_that_asks_for_an_address() {
    let mut world = World::met(2, 18);
    world.command(
        0,
        Command::SetPortMacs {
            port: PORT,
            macs: Vec::new(),
        },
    );
    let guest = MacAddr([2, 0, 0, 0, 7, 7]);
    let discover = udp_frame(
        guest,
        MacAddr::BROADCAST,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        68,
        67,
    );
    world.guest_sends(0, &discover);
    let events = &world.nodes[0].events;
    assert!(events.contains(&Event::GuestSeen {
        network: NET,
        port: PORT,
        mac: guest
    }));
    assert!(events.contains(&Event::FramePunted {
        network: NET,
        port: PORT,
        frame: discover
    }));
}

#[test]
fn in_lan_mode_dhcp_crosses_the_tunnel_and_both_ends_hear_of_it() {
    let mut world = World::met(2, 23);
    let lan = Command::AddPort {
        network: NET,
        port: PORT,
        kind: PortKind::Lan,
        macs: Vec::new(),
    };
    for node in 0..2 {
        let (me, psk) = (peer_id(node), Zeroizing::new([5; 32]));
        let again = Command::AddNetwork {
            id: NET,
            me,
            keys: keys(node),
            psk,
            dhcp: DhcpMode::Lan,
            mtu: 1500,
        };
        world.command(node, again);
    }
    world.command(0, lan);
    world.command(
        1,
        Command::AddPort {
            network: NET,
            port: PORT,
            kind: PortKind::Guest,
            macs: vec![mac(1)],
        },
    );
    world.introduce(0, 1);
    world.introduce(1, 0);
    world.run(5 * SECOND);
    let nobody = Ipv4Addr::UNSPECIFIED;
    let discover = udp_frame(
        mac(1),
        MacAddr::BROADCAST,
        nobody,
        Ipv4Addr::BROADCAST,
        68,
        67,
    );
    let server = MacAddr([2, 0, 0, 0, 8, 8]);
    let offer = udp_frame(server, mac(1), Ipv4Addr::new(192, 168, 1, 1), ip(1), 67, 68);
    world.guest_sends(1, &discover);
    world.run(SECOND);
    world.guest_sends(0, &offer);
    world.run(SECOND);
    assert_eq!(world.received(0), [discover]);
    assert_eq!(world.received(1), std::slice::from_ref(&offer));
    let snooped = |node: usize, from| {
        let event = Event::Snooped {
            network: NET,
            from,
            frame: offer.clone(),
        };
        world.nodes[node].events.contains(&event)
    };
    assert!(snooped(0, Location::Port(PORT)) && snooped(1, Location::Peer(peer_id(0))));
}

#[test]
fn a_station_is_learned_and_then_frames_for_it_go_to_its_node_only() {
    let mut world = World::met(3, 24);
    let lan = |port| Command::AddPort {
        network: NET,
        port,
        kind: PortKind::Lan,
        macs: Vec::new(),
    };
    for node in 0..3 {
        world.command(node, lan(PORT));
    }
    let (here, there) = (MacAddr([2, 0, 0, 0, 5, 1]), MacAddr([2, 0, 0, 0, 5, 2]));
    let (from, to) = (Ipv4Addr::new(192, 168, 1, 7), Ipv4Addr::new(192, 168, 1, 8));
    world.guest_sends(0, &udp_frame(here, there, from, to, 1, 2)); // unknown: floods
    world.run(SECOND);
    assert_eq!((world.received(1).len(), world.received(2).len()), (1, 1));
    world.guest_sends(1, &udp_frame(there, here, to, from, 2, 1)); // both are known from now on
    world.run(SECOND);
    world.guest_sends(0, &udp_frame(here, there, from, to, 1, 2));
    world.run(SECOND);
    assert_eq!(
        (
            world.received(0).len(),
            world.received(1).len(),
            world.received(2).len()
        ),
        (1, 1, 0)
    );
}
