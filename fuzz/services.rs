//! What guests and LAN machines say to the node's services, and what comes over its local socket.

use crate::input::{AnyFrame, Edits, FAR, FAR_IP, GUEST, broken, one, one_broken, udp};
use bolero::{TypeGenerator, check};
use dhcproto::v4::{DhcpOption, Message as Dhcp, MessageType};
use dhcproto::{Encodable, Encoder};
use hickory_proto::op::{Message as Dns, MessageType as DnsKind, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{LowerName, Name as DnsName, RData, Record, RecordType};
use overlay_node::dhcp::{Block, DhcpConfig, DhcpServer, is_request};
use overlay_node::dns::Names;
use overlay_node::mdns::MdnsResponder;
use overlay_node::node::tells_something;
use overlay_types::{MacAddr, Name, NetworkId, PeerId, PortId, Subnet, api};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

fn dhcp_frame(kind: MessageType, mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    let mut message = Dhcp::default();
    message.set_chaddr(&mac).set_ciaddr(ip).set_xid(7);
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::Hostname("vm-8-1".into()));
    options.insert(DhcpOption::ClientIdentifier(vec![1, 2, 3]));
    if ip.is_unspecified() {
        options.insert(DhcpOption::RequestedIpAddress([10, 77, 1, 1].into()));
    }
    let mut payload = Vec::new();
    message.encode(&mut Encoder::new(&mut payload)).unwrap();
    udp((mac, ip.octets(), 68), ([0xff; 6], [255; 4], 67), &payload)
}

static DHCP: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let none = Ipv4Addr::UNSPECIFIED;
    let held = Ipv4Addr::new(10, 77, 1, 1);
    let other = [2, 0, 0, 0, 0, 0xc];
    vec![
        dhcp_frame(MessageType::Discover, GUEST, none),
        dhcp_frame(MessageType::Request, GUEST, none),
        dhcp_frame(MessageType::Request, GUEST, held),
        dhcp_frame(MessageType::Discover, other, none),
        dhcp_frame(MessageType::Request, other, none),
        dhcp_frame(MessageType::Release, GUEST, held),
        dhcp_frame(MessageType::Decline, GUEST, none),
        dhcp_frame(MessageType::Inform, GUEST, held),
    ]
});

#[derive(Clone, Debug, TypeGenerator)]
enum Guests {
    Says(u8, u8, Edits),
    SaysAnything(u8, AnyFrame),
    Blocks(u8),
    Unplugged(u8),
    Wait(u16),
}

#[test]
fn the_dhcp_server_takes_anything_from_guests() {
    check!().with_type().for_each(|guests: &Vec<Guests>| {
        let subnet: Subnet = "10.77.0.0/16".parse().unwrap();
        let mut server = DhcpServer::new(DhcpConfig {
            subnet,
            server: [10, 77, 0, 1].into(),
            server_mac: MacAddr(FAR),
            router: None,
            dns: vec![[10, 77, 0, 1].into()],
            domain: "lab.farlan".into(),
            mtu: 1500,
            lease_time: Duration::from_secs(600),
            routes: Vec::new(),
            reservations: BTreeMap::new(),
        });
        let (mut now, mut unix) = (Instant::now(), 1_800_000_000);
        let block = |n: u8| Block {
            range: Subnet::new([10, 77, 1, 16 * (n % 4)].into(), 28).unwrap(),
            until: 1_800_003_600,
        };
        server.set_blocks(&[block(0)], now, unix);
        for guest in guests.iter().take(64) {
            let port = |n: u8| PortId((n % 3).into());
            match guest {
                Guests::Says(at, choice, edits) => {
                    let frame = one_broken(&DHCP, *choice, edits);
                    let _ = is_request(&frame);
                    server.handle_frame(port(*at), &frame, now, unix);
                }
                Guests::SaysAnything(at, frame) => {
                    server.handle_frame(port(*at), &frame.bytes(), now, unix);
                }
                Guests::Blocks(n) => {
                    let blocks: Vec<Block> = (0..n % 3).map(block).collect();
                    server.set_blocks(&blocks, now, unix);
                }
                Guests::Unplugged(at) => server.remove_port(port(*at), unix),
                Guests::Wait(ds) => {
                    now += Duration::from_millis(u64::from(*ds) * 100);
                    unix += u64::from(*ds) / 10;
                    server.handle_timeout(now, unix);
                }
            }
            while let Some((_, frame)) = server.poll_frame() {
                assert!(frame.len() <= 1514, "a reply fits a frame");
            }
            while server.poll_event().is_some() {}
            let bindings = server.bindings();
            assert!(bindings.iter().all(|b| subnet.contains(b.ip)));
            let addresses: BTreeSet<_> = bindings.iter().map(|b| b.ip).collect();
            assert_eq!(addresses.len(), bindings.len(), "an address has one guest");
        }
        let (bindings, _) = (server.bindings(), server.poll_timeout());
        server.restore(bindings, now, unix);
    });
}

#[test]
fn dhcp_passing_by_is_read() {
    check!()
        .with_type()
        .for_each(|(choice, edits, frame): &(u8, Edits, AnyFrame)| {
            let _ = tells_something(&frame.bytes());
            let _ = tells_something(&one_broken(&DHCP, *choice, edits));
        });
}

/// Questions and answers, for the names that are there and for others.
static DNS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let kinds = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::ANY,
        RecordType::PTR,
    ];
    let names = [
        "vm-8-1.local.",
        "vm-8-1.lab.farlan.",
        "nobody.lab.farlan.",
        "10.1.77.10.in-addr.arpa.",
        "vm-8-1.",
        "1.0.0.2.ip6.arpa.",
    ];
    let mut messages = Vec::new();
    for name in names {
        let name = DnsName::from_ascii(name).unwrap();
        for kind in kinds {
            let mut question = Dns::new(7, DnsKind::Query, OpCode::Query);
            question.add_query(Query::query(name.clone(), kind));
            messages.push(question.to_vec().unwrap());
        }
        let mut answer = Dns::new(0, DnsKind::Response, OpCode::Query);
        answer.add_answer(Record::from_rdata(
            name,
            120,
            RData::A(A::new(10, 77, 1, 10)),
        ));
        messages.push(answer.to_vec().unwrap());
    }
    messages
});

#[test]
fn the_mdns_responder_takes_anything_from_the_lan() {
    type Heard = (u8, Edits, AnyFrame, u16);
    check!().with_type().for_each(|heard: &Vec<Heard>| {
        let mut now = Instant::now();
        let mut responder =
            MdnsResponder::new(MacAddr([2; 6]), Some([192, 168, 1, 2].into()), None);
        let address = IpAddr::from([10, 77, 1, 10]);
        let names = |there: bool| {
            let names = ["vm-8-1", "vm-8-2"].map(|name| (name.parse().unwrap(), [address].into()));
            names.into_iter().take(1 + usize::from(there)).collect()
        };
        responder.set_names(names(true), now);
        for (choice, edits, frame, wait) in heard.iter().take(32) {
            now += Duration::from_millis((*wait).into());
            let group = ([1, 0, 0x5e, 0, 0, 0xfb], [224, 0, 0, 251], 5353);
            let message = one_broken(&DNS, *choice, edits);
            let port = if wait.is_multiple_of(7) { 40_000 } else { 5353 };
            responder.handle_frame(&udp((FAR, FAR_IP, port), group, &message), now);
            responder.handle_frame(&frame.bytes(), now);
            responder.set_names(names(wait.is_multiple_of(2)), now);
            while let Some(frame) = responder.poll_frame() {
                assert!(frame.len() <= 1514, "an answer fits a frame");
            }
        }
    });
}

#[test]
fn dns_questions_are_answered() {
    let (lab, id): (Name, _) = ("lab".parse().unwrap(), NetworkId([7; 32]));
    let mut names = Names::new(lab, id, "10.77.0.0/16".parse().unwrap(), true);
    names.insert("vm-8-1".parse().unwrap(), [10, 77, 1, 10].into());
    check!()
        .with_type()
        .for_each(|(choice, edits, bytes): &(u8, Edits, Vec<u8>)| {
            for bytes in [one_broken(&DNS, *choice, edits), bytes.clone()] {
                let Ok(message) = Dns::from_vec(&bytes) else {
                    continue;
                };
                for query in &message.queries {
                    let name = LowerName::from(query.name());
                    for kind in [query.query_type(), RecordType::A, RecordType::PTR] {
                        let _ = names.answer(&name, kind);
                    }
                }
            }
        });
}

fn json<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(bytes) {
        let again = serde_json::to_vec(&value).unwrap();
        assert_eq!(serde_json::from_slice::<T>(&again).unwrap(), value);
    }
}

#[test]
fn questions_to_the_local_socket_are_read() {
    let texts = [
        r#"{"name":"lab","subnet":"10.77.0.0/16","dhcp":"overlay","bootstrap":["/ip4/1.2.3.4/tcp/1"],"node_name":null,"tap":"f0"}"#,
        r#"{"token":"farlan1_abc","node_name":"alice","tap":null}"#,
        r#"{"name":"lab"}"#,
        r#"{"role":"member","expires_s":3600,"uses":1}"#,
        r#"{"iface":"br0","kind":"guest","macs":["02:00:00:00:00:0a"],"name":"vm-8-1"}"#,
        r#"{"iface":"eth0"}"#,
        r#"{"target":"vm-8-1","timeout_ms":1000}"#,
        r#"{"error":"no"}"#,
    ];
    check!()
        .with_type()
        .for_each(|(choice, edits): &(u8, Edits)| {
            let bytes = broken(one(&texts, *choice).as_bytes(), edits);
            json::<api::CreateNetwork>(&bytes);
            json::<api::JoinNetwork>(&bytes);
            json::<api::LeaveNetwork>(&bytes);
            json::<api::CreateInvite>(&bytes);
            json::<api::AddPort>(&bytes);
            json::<api::RemovePort>(&bytes);
            json::<api::AttachLan>(&bytes);
            json::<api::Ping>(&bytes);
            json::<api::ApiError>(&bytes);
        });
}

fn spelled<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse().ok(), Some(value), "{text:?}");
    }
}

#[test]
fn words_that_people_type_are_read() {
    let words = [
        "vm-8-1".to_owned(),
        "10.77.0.0/16".to_owned(),
        "02:00:00:00:00:0a".to_owned(),
        PeerId([9; 32]).to_string(),
        NetworkId([9; 32]).to_string(),
    ];
    check!()
        .with_type()
        .for_each(|(choice, edits, any): &(u8, Edits, String)| {
            let bytes = broken(one(&words, *choice).as_bytes(), edits);
            for text in [&*String::from_utf8_lossy(&bytes), any] {
                spelled::<Name>(text);
                spelled::<Subnet>(text);
                spelled::<MacAddr>(text);
                spelled::<PeerId>(text);
                spelled::<NetworkId>(text);
                if let Some(name) = Name::sanitized(text) {
                    spelled::<Name>(name.as_str());
                }
            }
        });
}
