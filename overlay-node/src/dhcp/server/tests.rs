//! The exchange as clients see it, message by message.

use super::*;
use dhcproto::{
    Decodable, Decoder, Encodable,
    v4::{DhcpOption, Flags, Message, OptionCode},
};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

const PORT: PortId = PortId(7);
const UNIX: u64 = 1_800_000_000;
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

fn config() -> DhcpConfig {
    DhcpConfig {
        subnet: "10.77.0.0/16".parse().unwrap(),
        server: SERVER,
        server_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        router: None,
        dns: vec![SERVER],
        domain: "lab.farlan".into(),
        mtu: 1400,
        lease_time: Duration::from_secs(3600),
        routes: Vec::new(),
        reservations: BTreeMap::new(),
    }
}

fn block(range: &str) -> Block {
    Block {
        range: range.parse().unwrap(),
        until: UNIX + 86_400,
    }
}

fn server(now: Instant) -> DhcpServer {
    let mut server = DhcpServer::new(config());
    server.set_blocks(&[block("10.77.0.16/28")], now, UNIX);
    server
}

fn mac(last: u8) -> MacAddr {
    MacAddr([0x52, 0x54, 0, 0, 0, last])
}

/// A client's frame: broadcast, or to the server alone when it has an address.
fn frame(kind: MessageType, mac: MacAddr, ciaddr: Ipv4Addr, options: Vec<DhcpOption>) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(42, ciaddr, none, none, none, &mac.0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option);
    }
    let to = if ciaddr == none {
        Ipv4Addr::BROADCAST
    } else {
        SERVER
    };
    in_frame(mac, ciaddr, to, &message.to_vec().unwrap())
}

fn in_frame(mac: MacAddr, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(mac.0, [0xff; 6])
        .ipv4(from.octets(), to.octets(), 64)
        .udp(68, 67);
    builder.write(&mut frame, payload).unwrap();
    frame
}

fn discover(mac: MacAddr) -> Vec<u8> {
    frame(MessageType::Discover, mac, Ipv4Addr::UNSPECIFIED, vec![])
}

fn select(mac: MacAddr, ip: Ipv4Addr) -> Vec<u8> {
    let options = vec![
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::RequestedIpAddress(ip),
    ];
    frame(MessageType::Request, mac, Ipv4Addr::UNSPECIFIED, options)
}

fn reply(server: &mut DhcpServer) -> Option<Message> {
    let (_, frame) = server.poll_frame()?;
    let packet = SlicedPacket::from_ethernet(&frame).unwrap();
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        panic!("not UDP")
    };
    Some(Message::decode(&mut Decoder::new(udp.payload())).unwrap())
}

fn kind(message: &Message) -> MessageType {
    message.opts().msg_type().unwrap()
}

/// The whole exchange; gives the address.
fn bind(server: &mut DhcpServer, mac: MacAddr, now: Instant, unix: u64) -> Ipv4Addr {
    server.handle_frame(PORT, &discover(mac), now, unix);
    let offer = reply(server).expect("an offer");
    server.handle_frame(PORT, &select(mac, offer.yiaddr()), now, unix);
    let ack = reply(server).expect("an answer");
    assert_eq!(kind(&ack), MessageType::Ack);
    assert_eq!(ack.yiaddr(), offer.yiaddr());
    ack.yiaddr()
}

fn events(server: &mut DhcpServer) -> Vec<DhcpEvent> {
    std::iter::from_fn(|| server.poll_event()).collect()
}

#[test]
fn a_new_client_gets_an_address_of_the_block_and_what_it_needs_to_know() {
    let now = Instant::now();
    let mut server = server(now);
    let name = DhcpOption::Hostname("VM-8-1.example.org".into());
    server.handle_frame(
        PORT,
        &frame(
            MessageType::Discover,
            mac(1),
            Ipv4Addr::UNSPECIFIED,
            vec![name.clone()],
        ),
        now,
        UNIX,
    );
    let offer = reply(&mut server).unwrap();
    let mut options = vec![
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::RequestedIpAddress(offer.yiaddr()),
        name,
    ];
    options.push(DhcpOption::ClientIdentifier(vec![1, 2, 3]));
    server.handle_frame(
        PORT,
        &frame(MessageType::Request, mac(1), Ipv4Addr::UNSPECIFIED, options),
        now,
        UNIX,
    );

    let ack = reply(&mut server).unwrap();
    assert_eq!(kind(&offer), MessageType::Offer);
    assert_eq!(offer.yiaddr(), Ipv4Addr::new(10, 77, 0, 16));
    let option = |code| ack.opts().get(code).cloned();
    assert_eq!(
        option(OptionCode::SubnetMask),
        Some(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 0, 0)))
    );
    assert_eq!(
        option(OptionCode::DomainNameServer),
        Some(DhcpOption::DomainNameServer(vec![SERVER]))
    );
    assert_eq!(
        option(OptionCode::DomainName),
        Some(DhcpOption::DomainName("lab.farlan".into()))
    );
    assert!(option(OptionCode::DomainSearch).is_some());
    assert_eq!(
        option(OptionCode::InterfaceMtu),
        Some(DhcpOption::InterfaceMtu(1400))
    );
    assert_eq!(
        option(OptionCode::AddressLeaseTime),
        Some(DhcpOption::AddressLeaseTime(3600))
    );
    assert_eq!(option(OptionCode::Renewal), Some(DhcpOption::Renewal(1800)));
    assert_eq!(
        option(OptionCode::Rebinding),
        Some(DhcpOption::Rebinding(3150))
    );
    assert_eq!(
        option(OptionCode::Hostname),
        Some(DhcpOption::Hostname("vm-8-1".into()))
    );
    assert_eq!(
        option(OptionCode::ClientIdentifier),
        Some(DhcpOption::ClientIdentifier(vec![1, 2, 3]))
    );
    assert_eq!(option(OptionCode::Router), None);
    let name = "vm-8-1".parse().ok();
    let bound = DhcpEvent::GuestBound {
        port: PORT,
        mac: mac(1),
        ip: ack.yiaddr(),
        name,
        expires: UNIX + 3600,
    };
    assert_eq!(events(&mut server), [bound]);
}

#[test]
fn a_client_keeps_its_address_over_reboot_release_and_restart() {
    let now = Instant::now();
    let mut server = server(now);
    bind(&mut server, mac(1), now, UNIX);
    let ip = bind(&mut server, mac(2), now, UNIX);

    assert_eq!(bind(&mut server, mac(2), now, UNIX + 10), ip);
    server.handle_frame(
        PORT,
        &frame(MessageType::Release, mac(2), ip, vec![]),
        now,
        UNIX + 20,
    );
    assert!(events(&mut server).contains(&DhcpEvent::GuestGone { mac: mac(2), ip }));
    assert_eq!(
        bind(&mut server, mac(3), now, UNIX + 30),
        Ipv4Addr::new(10, 77, 0, 18)
    );
    assert_eq!(bind(&mut server, mac(2), now, UNIX + 40), ip);

    let kept = server.bindings();
    let mut restarted = self::server(now);
    restarted.restore(kept, now, UNIX + 50);
    assert_eq!(events(&mut restarted).len(), 3);
    assert_eq!(bind(&mut restarted, mac(2), now, UNIX + 60), ip);
}

#[test]
fn a_new_nic_with_the_old_client_id_gets_the_old_address_once_that_is_free() {
    let now = Instant::now();
    let mut server = server(now);
    let id = || vec![DhcpOption::ClientIdentifier(b"\xffduid".to_vec())];
    let ask = |kind, mac, ciaddr| frame(kind, mac, ciaddr, id());
    server.handle_frame(
        PORT,
        &ask(MessageType::Discover, mac(1), Ipv4Addr::UNSPECIFIED),
        now,
        UNIX,
    );
    let ip = reply(&mut server).unwrap().yiaddr();
    let mut options = id();
    options.extend([
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::RequestedIpAddress(ip),
    ]);
    server.handle_frame(
        PORT,
        &frame(MessageType::Request, mac(1), Ipv4Addr::UNSPECIFIED, options),
        now,
        UNIX,
    );
    reply(&mut server).unwrap();

    server.handle_frame(
        PORT,
        &ask(MessageType::Discover, mac(2), Ipv4Addr::UNSPECIFIED),
        now,
        UNIX,
    );
    assert_ne!(
        reply(&mut server).unwrap().yiaddr(),
        ip,
        "a clone must not share the address in use"
    );
    server.handle_frame(PORT, &ask(MessageType::Release, mac(1), ip), now, UNIX);
    server.handle_frame(
        PORT,
        &ask(MessageType::Discover, mac(3), Ipv4Addr::UNSPECIFIED),
        now,
        UNIX,
    );
    assert_eq!(reply(&mut server).unwrap().yiaddr(), ip);
}

#[test]
fn renewing_extends_and_rebinding_too() {
    let now = Instant::now();
    let mut server = server(now);
    let ip = bind(&mut server, mac(1), now, UNIX);
    events(&mut server);

    server.handle_frame(
        PORT,
        &frame(MessageType::Request, mac(1), ip, vec![]),
        now,
        UNIX + 1800,
    );
    let (_, renewed) = server.frames[0].clone();
    assert_eq!(
        renewed[..6],
        mac(1).0,
        "a client in use of its address is answered alone"
    );
    assert_eq!(kind(&reply(&mut server).unwrap()), MessageType::Ack);
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(1, ip, none, none, none, &mac(1).0);
    message
        .opts_mut()
        .insert(DhcpOption::MessageType(MessageType::Request));
    let rebinding = in_frame(mac(1), ip, Ipv4Addr::BROADCAST, &message.to_vec().unwrap());
    server.handle_frame(PORT, &rebinding, now, UNIX + 3000);
    assert_eq!(kind(&reply(&mut server).unwrap()), MessageType::Ack);
    let expiries: Vec<_> = events(&mut server)
        .into_iter()
        .map(|event| {
            if let DhcpEvent::GuestBound { expires, .. } = event {
                expires
            } else {
                0
            }
        })
        .collect();
    assert_eq!(expiries, [UNIX + 5400, UNIX + 6600]);
}

#[test]
fn a_client_that_remembers_an_address_of_elsewhere_is_told_no() {
    let now = Instant::now();
    let mut server = server(now);
    for foreign in [
        Ipv4Addr::new(192, 168, 1, 5),
        Ipv4Addr::new(10, 77, 9, 9),
        SERVER,
    ] {
        let reboot = frame(
            MessageType::Request,
            mac(1),
            Ipv4Addr::UNSPECIFIED,
            vec![DhcpOption::RequestedIpAddress(foreign)],
        );
        server.handle_frame(PORT, &reboot, now, UNIX);
        let (_, nak) = server.frames[0].clone();
        assert_eq!(nak[..6], [0xff; 6]);
        assert_eq!(kind(&reply(&mut server).unwrap()), MessageType::Nak);
    }
    let free = frame(
        MessageType::Request,
        mac(1),
        Ipv4Addr::UNSPECIFIED,
        vec![DhcpOption::RequestedIpAddress(Ipv4Addr::new(10, 77, 0, 20))],
    );
    server.handle_frame(PORT, &free, now, UNIX);
    assert_eq!(kind(&reply(&mut server).unwrap()), MessageType::Ack);
}

#[test]
fn nobody_gets_what_another_uses() {
    let now = Instant::now();
    let mut server = server(now);
    let ip = bind(&mut server, mac(1), now, UNIX);

    server.handle_frame(PORT, &select(mac(2), ip), now, UNIX);

    assert_eq!(kind(&reply(&mut server).unwrap()), MessageType::Nak);
}

#[test]
fn a_renewal_at_another_server_is_left_to_it() {
    let now = Instant::now();
    let mut server = server(now);
    let none = Ipv4Addr::UNSPECIFIED;
    let foreign = Ipv4Addr::new(10, 77, 4, 4);
    let mut message = Message::new_with_id(1, foreign, none, none, none, &mac(1).0);
    message
        .opts_mut()
        .insert(DhcpOption::MessageType(MessageType::Request));

    server.handle_frame(
        PORT,
        &in_frame(
            mac(1),
            foreign,
            Ipv4Addr::new(10, 77, 4, 1),
            &message.to_vec().unwrap(),
        ),
        now,
        UNIX,
    );

    assert!(server.poll_frame().is_none());
    assert_eq!(server.stats().dropped_foreign, 1);
}

#[test]
fn without_a_free_address_clients_wait_until_a_block_comes() {
    let now = Instant::now();
    let mut server = DhcpServer::new(config());
    server.handle_frame(PORT, &discover(mac(1)), now, UNIX);
    server.handle_frame(PORT, &discover(mac(2)), now, UNIX);
    assert_eq!(events(&mut server), [DhcpEvent::BlockWanted]);
    assert!(server.poll_frame().is_none());
    let (at, _) = server.poll_timeout().unwrap();
    assert_eq!(at, now + BLOCK_WANTED_EVERY);
    server.handle_timeout(at, UNIX + 5);
    assert_eq!(events(&mut server), [DhcpEvent::BlockWanted]);

    server.set_blocks(&[block("10.77.0.32/28")], at, UNIX + 6);

    assert_eq!(kind(&reply(&mut server).unwrap()), MessageType::Offer);
    assert_eq!(kind(&reply(&mut server).unwrap()), MessageType::Offer);
}

#[test]
fn a_full_block_asks_for_another_and_takes_back_what_is_no_longer_used() {
    let now = Instant::now();
    let mut server = server(now);
    for last in 0..16 {
        bind(&mut server, mac(last), now, UNIX);
    }
    server.handle_frame(PORT, &discover(mac(99)), now, UNIX);
    assert!(server.poll_frame().is_none());
    assert!(events(&mut server).contains(&DhcpEvent::BlockWanted));

    let later = now + Duration::from_secs(3601);
    server.handle_timeout(later, UNIX + 3601);
    assert_eq!(
        events(&mut server)
            .iter()
            .filter(|event| matches!(event, DhcpEvent::GuestGone { .. }))
            .count(),
        16
    );
    assert_eq!(
        bind(&mut server, mac(99), later, UNIX + 3602),
        Ipv4Addr::new(10, 77, 0, 16)
    );
}

#[test]
fn no_grant_outlives_its_block_and_a_lost_block_ends_its_guests() {
    let now = Instant::now();
    let mut server = DhcpServer::new(config());
    server.set_blocks(
        &[Block {
            until: UNIX + 100,
            ..block("10.77.0.16/28")
        }],
        now,
        UNIX,
    );
    let ip = bind(&mut server, mac(1), now, UNIX);
    let DhcpEvent::GuestBound { expires, .. } = events(&mut server)[0] else {
        panic!("not bound")
    };
    assert_eq!(expires, UNIX + 100);

    server.set_blocks(&[], now, UNIX + 50);

    assert_eq!(
        events(&mut server),
        [DhcpEvent::GuestGone { mac: mac(1), ip }]
    );
    server.handle_frame(
        PORT,
        &frame(MessageType::Request, mac(1), ip, vec![]),
        now,
        UNIX + 60,
    );
    assert_eq!(kind(&reply(&mut server).unwrap()), MessageType::Nak);
}

#[test]
fn a_declined_address_is_left_alone_for_a_while() {
    let now = Instant::now();
    let mut server = server(now);
    let ip = bind(&mut server, mac(1), now, UNIX);
    let decline = |mac| {
        frame(
            MessageType::Decline,
            mac,
            Ipv4Addr::UNSPECIFIED,
            vec![DhcpOption::RequestedIpAddress(ip)],
        )
    };

    server.handle_frame(PORT, &decline(mac(2)), now, UNIX);
    assert_eq!(
        server.stats().declines,
        0,
        "only the guest itself may decline"
    );
    server.handle_frame(PORT, &decline(mac(1)), now, UNIX);

    assert_eq!(
        bind(&mut server, mac(1), now, UNIX + 1),
        Ipv4Addr::new(10, 77, 0, 17)
    );
    assert!(
        !server
            .pool
            .grantable(ip, mac(1), &server.config, UNIX + 3599)
    );
    assert!(
        server
            .pool
            .grantable(ip, mac(1), &server.config, UNIX + 3600)
    );
}

#[test]
fn a_reservation_wins_and_is_kept_for_its_guest() {
    let now = Instant::now();
    let mut server = server(now);
    let before = bind(&mut server, mac(1), now, UNIX);
    let reserved = Ipv4Addr::new(10, 77, 0, 17);
    server.set_config(DhcpConfig {
        reservations: [(mac(1), reserved)].into(),
        ..config()
    });

    assert_eq!(
        bind(&mut server, mac(2), now, UNIX),
        Ipv4Addr::new(10, 77, 0, 18)
    );
    server.handle_frame(
        PORT,
        &frame(MessageType::Request, mac(1), before, vec![]),
        now,
        UNIX + 1,
    );
    assert_eq!(
        kind(&reply(&mut server).unwrap()),
        MessageType::Nak,
        "at renewal it is sent to its new address"
    );
    assert_eq!(bind(&mut server, mac(1), now, UNIX + 2), reserved);
    assert!(events(&mut server).contains(&DhcpEvent::GuestGone {
        mac: mac(1),
        ip: before
    }));
}

#[test]
fn two_guests_never_share_a_name_and_the_users_word_wins() {
    let now = Instant::now();
    let mut server = server(now);
    server.set_port_name(PORT, "web".parse().ok());
    let ask = |mac, ip| {
        let options = vec![
            DhcpOption::ServerIdentifier(SERVER),
            DhcpOption::RequestedIpAddress(ip),
            DhcpOption::Hostname("debian".into()),
        ];
        frame(MessageType::Request, mac, Ipv4Addr::UNSPECIFIED, options)
    };
    for last in 1..=3 {
        server.handle_frame(
            PORT,
            &ask(mac(last), Ipv4Addr::new(10, 77, 0, 16 + last)),
            now,
            UNIX,
        );
    }
    let names: Vec<_> = server
        .bindings()
        .into_iter()
        .map(|binding| binding.name.unwrap().to_string())
        .collect();
    assert_eq!(names, ["web", "debian", "debian-000003"]);
}

#[test]
fn a_client_without_an_address_that_wants_broadcasts_gets_them() {
    let now = Instant::now();
    let mut server = server(now);
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(1, none, none, none, none, &mac(1).0);
    message.set_flags(Flags::default().set_broadcast());
    message
        .opts_mut()
        .insert(DhcpOption::MessageType(MessageType::Discover));
    server.handle_frame(
        PORT,
        &in_frame(
            mac(1),
            none,
            Ipv4Addr::BROADCAST,
            &message.to_vec().unwrap(),
        ),
        now,
        UNIX,
    );

    let (_, frame) = server.poll_frame().unwrap();
    let packet = SlicedPacket::from_ethernet(&frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = packet.net else {
        panic!("not IPv4")
    };
    assert_eq!(ip.header().destination_addr(), Ipv4Addr::BROADCAST);
    assert_eq!(frame[..6], [0xff; 6]);
}

#[test]
fn an_oddly_spelled_option_costs_no_answer() {
    let now = Instant::now();
    let mut server = server(now);
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(1, none, none, none, none, &mac(1).0);
    message
        .opts_mut()
        .insert(DhcpOption::MessageType(MessageType::Discover));
    let mut payload = message.to_vec().unwrap();
    payload.pop(); // the end option
    payload.extend(*b"\x51\x08\x01\x00\x00guest\x0c\x02\xff\xfe\xff"); // FQDN in ASCII as udhcpc sends it; a name that is no UTF-8
    server.handle_frame(
        PORT,
        &in_frame(mac(1), none, Ipv4Addr::BROADCAST, &payload),
        now,
        UNIX,
    );

    assert_eq!(kind(&reply(&mut server).unwrap()), MessageType::Offer);
    assert_eq!(
        server.pool.by_mac(mac(1)).unwrap().1.name,
        "guest".parse().ok()
    );
}

#[test]
fn a_guest_that_makes_up_stations_is_held_to_its_share() {
    let now = Instant::now();
    let mut server = DhcpServer::new(config());
    server.set_blocks(&[block("10.77.64.0/18")], now, UNIX);
    for n in 0..600_u16 {
        let [high, low] = n.to_be_bytes();
        let at = now + Duration::from_secs(n.into());
        server.handle_frame(
            PORT,
            &select(
                MacAddr([2, 0, 0, 9, high, low]),
                Ipv4Addr::new(10, 77, 100 + high, low),
            ),
            at,
            UNIX,
        );
        server.handle_frame(PORT, &discover(MacAddr([2, 0, 0, 9, high, low])), at, UNIX);
        while server.poll_frame().is_some() {}
    }
    assert!(server.pool.guests_behind(PORT) <= GUESTS_PER_PORT_MAX);
    assert!(server.stats().dropped_full > 0);
}

proptest! {
    #[test]
    fn no_bytes_make_it_fall(mut frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..20)) {
        let now = Instant::now();
        let mut server = server(now);
        for frame in &mut frames {
            server.handle_frame(PORT, frame, now, UNIX);
            // The same bytes where a DHCP payload is read.
            let framed = in_frame(mac(1), Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, frame);
            server.handle_frame(PORT, &framed, now, UNIX);
        }
        prop_assert!(server.frames.len() <= QUEUE_MAX);
    }

    #[test]
    fn no_damaged_request_makes_it_fall(damage in proptest::collection::vec((0..400_usize, any::<u8>()), 0..12), cut in 0..400_usize) {
        let now = Instant::now();
        let mut server = server(now);
        let mut frame = select(mac(1), Ipv4Addr::new(10, 77, 0, 20));
        for (at, byte) in damage {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        server.handle_frame(PORT, &frame, now, UNIX);
        server.handle_frame(PORT, &frame[..cut.min(frame.len())], now, UNIX);
        prop_assert!(server.pool.iter().count() <= 1);
    }
}
