//! Multicast DNS messages out of frames and into frames. Whether to answer is decided in [`super`].

use super::Station;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use hickory_proto::{
    op::{Message, MessageType, Metadata, OpCode, Query},
    rr::{
        DNSClass, Name as DnsName, RData, Record, RecordType,
        rdata::{A, AAAA, NULL},
    },
};
use overlay_types::{MacAddr, Name};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

const PORT: u16 = 5353;
const GROUP4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP4_MAC: [u8; 6] = [1, 0, 0x5e, 0, 0, 0xfb];
const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const GROUP6_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 0xfb];
/// For records that name a host's address (RFC 6762 §10).
pub(super) const TTL_SECONDS: u32 = 120;
/// For askers that know nothing of multicast (§6.7).
const TTL_LEGACY_SECONDS: u32 = 10;
/// All messages have this (§11).
const HOP_LIMIT: u8 = 255;
/// What a question of a real asker holds at most; a longer one costs more to read than it is worth.
const QUESTIONS_MAX: u16 = 64;
const RECORDS_MAX: u16 = 256;
/// Records in one of our messages, so that it fits a frame.
const ANSWERS_MAX: usize = 32;
/// NSEC (RFC 4034 §4), which the codec reads only with DNSSEC.
const TYPE_NSEC: u16 = 47;

/// What a message says.
pub(super) enum Heard {
    Questions(Questions),
    Answers(Vec<Statement>),
}

/// A name's address, as somebody states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) name: Name,
    pub(super) address: IpAddr,
    pub(super) ttl: u32,
}

pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: RecordType,
    pub(super) wants_unicast: bool,
    query: Query,
}

pub(super) struct Questions {
    pub(super) list: Vec<Question>,
    /// Answers that the asker has.
    pub(super) known: Vec<Statement>,
    /// Addresses that the asker is about to take the name for (a probe, §8.1).
    pub(super) proposed: Vec<Statement>,
    pub(super) from: IpAddr,
    /// From another port than 5353: a resolver that does not know of multicast.
    pub(super) is_legacy: bool,
    from_mac: MacAddr,
    from_port: u16,
    id: u16,
}

/// Reads a frame; gives its source with what it says, or `None` if it is no multicast DNS.
pub(super) fn decode(frame: &[u8]) -> Option<(MacAddr, Heard)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let from = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => IpAddr::V4(ip.header().source_addr()),
        NetSlice::Ipv6(ip) => IpAddr::V6(ip.header().source_addr()),
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        return None;
    };
    if udp.destination_port() != PORT || !packet.link_exts.is_empty() {
        return None;
    }
    let payload = udp.payload();
    // The codec makes room for as many as the header promises: look before it reads.
    let count = |at: usize| {
        Some(u16::from_be_bytes(
            payload.get(at..at + 2)?.try_into().ok()?,
        ))
    };
    let records = count(6)?.checked_add(count(8)?)?.checked_add(count(10)?)?;
    if count(4)? > QUESTIONS_MAX || records > RECORDS_MAX {
        return None;
    }
    let message = Message::from_vec(payload).ok()?;
    if message.metadata.op_code != OpCode::Query {
        return None;
    }
    let from_mac = MacAddr(frame[6..12].try_into().ok()?);
    if message.metadata.message_type == MessageType::Response {
        // Only from that port is it an answer to all (§6).
        let answers = if udp.source_port() == PORT {
            addresses(&message.answers)
        } else {
            Vec::new()
        };
        return Some((from_mac, Heard::Answers(answers)));
    }
    let list = message.queries.iter().filter_map(|query| {
        let fits = matches!(query.query_class(), DNSClass::IN | DNSClass::ANY)
            && matches!(
                query.query_type(),
                RecordType::A | RecordType::AAAA | RecordType::ANY
            );
        let name = local_name(query.name()).filter(|_| fits)?;
        Some(Question {
            name,
            kind: query.query_type(),
            wants_unicast: query.mdns_unicast_response(),
            query: query.clone(),
        })
    });
    let questions = Questions {
        list: list.collect(),
        known: addresses(&message.answers),
        proposed: addresses(&message.authorities),
        from,
        is_legacy: udp.source_port() != PORT,
        from_mac,
        from_port: udp.source_port(),
        id: message.metadata.id,
    };
    Some((from_mac, Heard::Questions(questions)))
}

fn addresses(records: &[Record]) -> Vec<Statement> {
    let address = |record: &Record| {
        let address = match &record.data {
            RData::A(a) => IpAddr::V4(a.0),
            RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
            _ => return None,
        };
        Some(Statement {
            name: local_name(&record.name)?,
            address,
            ttl: record.ttl,
        })
    };
    records.iter().filter_map(address).collect()
}

/// `NAME` of `NAME.local`.
fn local_name(name: &DnsName) -> Option<Name> {
    let labels: Vec<&[u8]> = name.iter().collect();
    match labels[..] {
        [label, local] if local.eq_ignore_ascii_case(b"local") => {
            std::str::from_utf8(label).ok()?.parse().ok()
        }
        _ => None,
    }
}

/// The answer to one message.
pub(super) struct Reply {
    answers: Vec<Record>,
    additionals: Vec<Record>,
    queries: Vec<Query>,
    /// Whether everybody hears it: as soon as one of its answers is for all.
    multicast: bool,
    is_legacy: bool,
    over_ipv6: bool,
    to: (MacAddr, IpAddr, u16),
    id: u16,
}

impl Reply {
    pub(super) fn to(asked: &Questions) -> Self {
        Self {
            answers: Vec::new(),
            additionals: Vec::new(),
            queries: Vec::new(),
            multicast: false,
            is_legacy: asked.is_legacy,
            over_ipv6: asked.from.is_ipv6(),
            to: (asked.from_mac, asked.from, asked.from_port),
            id: if asked.is_legacy { asked.id } else { 0 },
        }
    }

    /// Answers `question` with `addresses`; where `all` the name's addresses have none of the family asked for, it says so (§6.1).
    pub(super) fn add(
        &mut self,
        question: &Question,
        addresses: Vec<IpAddr>,
        all: &BTreeSet<IpAddr>,
        unicast: bool,
    ) {
        if self.answers.len() + addresses.len() >= ANSWERS_MAX {
            return; // it asks again for what is missing
        }
        self.multicast |= !unicast;
        let ttl = if self.is_legacy {
            TTL_LEGACY_SECONDS
        } else {
            TTL_SECONDS
        };
        let name = question.query.name();
        let denial = Record::from_rdata(name.clone(), ttl, nsec(name, all));
        if addresses.is_empty() {
            self.answers.push(denial);
        } else {
            self.answers.extend(
                addresses
                    .into_iter()
                    .map(|address| record(name, ttl, address)),
            );
            self.additionals.push(denial);
        }
        if self.is_legacy {
            self.queries.push(question.query.clone());
        }
    }

    /// The frame, unless there is nothing to say or nobody to say it.
    pub(super) fn encode(self, station: &Station) -> Option<Vec<u8>> {
        if self.answers.is_empty() {
            return None;
        }
        let mut message = response(self.id);
        message
            .add_queries(self.queries)
            .add_answers(self.answers)
            .add_additionals(self.additionals);
        let to = (!self.multicast).then_some(self.to);
        in_frame(&message, station, self.over_ipv6, to)
    }

    /// Frames that take addresses out of caches (§10.1), over each family that we speak.
    pub(super) fn goodbye(gone: &[(Name, IpAddr)], station: &Station) -> Vec<Vec<u8>> {
        let mut message = response(0);
        let full = |name: &Name| DnsName::from_ascii(format!("{name}.local.")).ok();
        message.add_answers(
            gone.iter()
                .filter_map(|(name, address)| Some(record(&full(name)?, 0, *address))),
        );
        [false, true]
            .into_iter()
            .filter_map(|over_ipv6| in_frame(&message, station, over_ipv6, None))
            .collect()
    }
}

fn response(id: u16) -> Message {
    let mut message = Message::new(id, MessageType::Response, OpCode::Query);
    let metadata: &mut Metadata = &mut message.metadata;
    metadata.authoritative = true;
    message
}

fn record(name: &DnsName, ttl: u32, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(name.clone(), ttl, data)
}

/// "These kinds of record there are, and no others": the name itself, then the bitmap of its types (RFC 4034 §4.1).
fn nsec(name: &DnsName, all: &BTreeSet<IpAddr>) -> RData {
    let mut data = Vec::new();
    for label in name {
        data.push(u8::try_from(label.len()).unwrap_or_default()); // a label has at most 63 bytes
        data.extend(label);
    }
    let mut bitmap = [0_u8; 4];
    if all.iter().any(IpAddr::is_ipv4) {
        bitmap[0] |= 0x80 >> 1; // A = 1
    }
    if all.iter().any(IpAddr::is_ipv6) {
        bitmap[3] |= 0x80 >> 4; // AAAA = 28
    }
    data.extend([0, 0, 4]);
    data.extend(bitmap);
    RData::Unknown {
        code: RecordType::Unknown(TYPE_NSEC),
        rdata: NULL::with(data),
    }
}

/// To everybody, or to one asker.
fn in_frame(
    message: &Message,
    station: &Station,
    over_ipv6: bool,
    to: Option<(MacAddr, IpAddr, u16)>,
) -> Option<Vec<u8>> {
    let payload = message.to_vec().ok()?;
    let mac = to.map(|(mac, ..)| mac.0);
    let port = to.map_or(PORT, |(_, _, port)| port);
    let mut frame = Vec::new();
    let built = if over_ipv6 {
        let to = match to.map(|(_, ip, _)| ip) {
            None => GROUP6,
            Some(IpAddr::V6(ip)) => ip,
            Some(IpAddr::V4(_)) => return None,
        };
        let from = station.ipv6?;
        let builder = PacketBuilder::ethernet2(station.mac.0, mac.unwrap_or(GROUP6_MAC)).ipv6(
            from.octets(),
            to.octets(),
            HOP_LIMIT,
        );
        builder.udp(PORT, port).write(&mut frame, &payload)
    } else {
        let to = match to.map(|(_, ip, _)| ip) {
            None => GROUP4,
            Some(IpAddr::V4(ip)) => ip,
            Some(IpAddr::V6(_)) => return None,
        };
        let from = station.ipv4?;
        let builder = PacketBuilder::ethernet2(station.mac.0, mac.unwrap_or(GROUP4_MAC)).ipv4(
            from.octets(),
            to.octets(),
            HOP_LIMIT,
        );
        builder.udp(PORT, port).write(&mut frame, &payload)
    };
    built.ok().map(|()| frame)
}
