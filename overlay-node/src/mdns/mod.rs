//! Answers multicast DNS (RFC 6762) on a LAN for names whose owners are elsewhere on the overlay. Pure: frames in, frames out.
//!
//! It speaks for others, so it gives way: it never claims a name for itself alone (no cache-flush bit, no announcements), and
//! it is silent about a name that somebody on the LAN answers for differently.

mod message;

use hickory_proto::rr::RecordType;
use message::{Heard, Question, Reply};
use overlay_types::{MacAddr, Name};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// How long we are silent about a name that another station answers for. Each of its answers starts the time anew.
const GIVE_WAY_TIME: Duration = Duration::from_secs(600);
/// A record is not multicast again sooner (RFC 6762 §6); probes wait for nobody.
const MULTICAST_PAUSE: Duration = Duration::from_secs(1);
/// A question that wants a unicast answer gets a multicast one if everybody's cache is older than this: a quarter of the TTL (§5.4).
const MULTICAST_FRESH: Duration = Duration::from_secs(message::TTL_SECONDS as u64 / 4);
/// Frames not fetched yet; the oldest goes first, its question is asked again.
const FRAMES_MAX: usize = 64;
/// Names withdrawn in one message.
const GOODBYES_PER_FRAME: usize = 32;

/// Counts of what was heard and said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MdnsStats {
    /// Questions for names of ours.
    pub questions: u64,
    /// Messages sent.
    pub answers: u64,
    /// Questions whose asker knows the answer already, or heard it a moment ago.
    pub suppressed: u64,
    /// Questions left to somebody on the LAN who answers for the name.
    pub gave_way: u64,
    /// No multicast DNS, or more of it than fits a question.
    pub dropped_malformed: u64,
    /// Frames that nobody fetched.
    pub dropped_queue: u64,
}

/// The responder of one lan port.
#[derive(Debug)]
pub struct MdnsResponder {
    station: Station,
    names: BTreeMap<Name, Record>,
    frames: VecDeque<Vec<u8>>,
    stats: MdnsStats,
}

/// From whom answers come.
#[derive(Clone, Copy, Debug)]
struct Station {
    mac: MacAddr,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

#[derive(Debug, Default)]
struct Record {
    addresses: BTreeSet<IpAddr>,
    multicast_at: Option<Instant>,
    silent_until: Option<Instant>,
}

impl MdnsResponder {
    /// A responder that speaks from this station of the LAN: the gateway itself. Without an address of a family it is silent there.
    pub const fn new(mac: MacAddr, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>) -> Self {
        let station = Station { mac, ipv4, ipv6 };
        let stats = MdnsStats {
            questions: 0,
            answers: 0,
            suppressed: 0,
            gave_way: 0,
            dropped_malformed: 0,
            dropped_queue: 0,
        };
        Self {
            station,
            names: BTreeMap::new(),
            frames: VecDeque::new(),
            stats,
        }
    }

    /// Replaces the names it answers for. Addresses that are gone are withdrawn from the LAN's caches.
    pub fn set_names(&mut self, names: BTreeMap<Name, BTreeSet<IpAddr>>, now: Instant) {
        let mut gone = Vec::new();
        let mut before = std::mem::take(&mut self.names);
        for (name, addresses) in names {
            let old = before.remove(&name).unwrap_or_default();
            gone.extend(
                old.withdrawn(&addresses, now)
                    .map(|address| (name.clone(), address)),
            );
            self.names.insert(name, Record { addresses, ..old });
        }
        for (name, old) in before {
            gone.extend(
                old.withdrawn(&BTreeSet::new(), now)
                    .map(|address| (name.clone(), address)),
            );
        }
        for goodbyes in gone.chunks(GOODBYES_PER_FRAME) {
            for frame in Reply::goodbye(goodbyes, &self.station) {
                self.send(frame);
            }
        }
    }

    /// A frame from either side of the LAN port: answers of guests beyond the overlay count as well as those of LAN machines.
    pub fn handle_frame(&mut self, frame: &[u8], now: Instant) {
        match message::decode(frame) {
            Some((source, _)) if source == self.station.mac => {} // our own, come back
            Some((_, Heard::Answers(answers))) => self.hear(&answers, now),
            Some((_, Heard::Questions(questions))) => {
                let mut reply = Reply::to(&questions);
                for question in &questions.list {
                    self.answer(question, &questions, &mut reply, now);
                }
                if let Some(frame) = reply.encode(&self.station) {
                    self.stats.answers += 1;
                    self.send(frame);
                }
            }
            None => self.stats.dropped_malformed += 1,
        }
    }

    /// A frame for the LAN.
    pub fn poll_frame(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    /// Counters.
    pub const fn stats(&self) -> MdnsStats {
        self.stats
    }

    /// Somebody else's answers: whoever names other addresses than ours owns the name there, until it says goodbye.
    fn hear(&mut self, answers: &[message::Statement], now: Instant) {
        for answer in answers {
            let Some(record) = self.names.get_mut(&answer.name) else {
                continue;
            };
            match (record.addresses.contains(&answer.address), answer.ttl) {
                (false, 0) => record.silent_until = None,
                (false, _) => record.silent_until = Some(now + GIVE_WAY_TIME),
                (true, _) => record.multicast_at = Some(now), // said already
            }
        }
    }

    fn answer(
        &mut self,
        question: &Question,
        asked: &message::Questions,
        reply: &mut Reply,
        now: Instant,
    ) {
        let Some(record) = self.names.get_mut(&question.name) else {
            return;
        };
        self.stats.questions += 1;
        if record.silent_until.is_some_and(|until| until > now) {
            self.stats.gave_way += 1;
            return;
        }
        let proposed = || {
            asked
                .proposed
                .iter()
                .filter(|proposed| proposed.name == question.name)
        };
        let is_probe = proposed().next().is_some();
        let owner_itself = record.addresses.contains(&asked.from)
            || proposed().any(|proposed| record.addresses.contains(&proposed.address));
        if is_probe && owner_itself {
            self.stats.gave_way += 1; // the guest takes its own name, and may
            return;
        }
        let known = |address: &IpAddr| {
            asked.known.iter().any(|known| {
                known.name == question.name
                    && known.address == *address
                    && known.ttl >= message::TTL_SECONDS / 2
            })
        };
        let fits = |address: &&IpAddr| match question.kind {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            _ => true,
        };
        let wanted: Vec<IpAddr> = record.addresses.iter().filter(fits).copied().collect();
        let unknown: Vec<IpAddr> = wanted
            .iter()
            .filter(|address| !known(address))
            .copied()
            .collect();
        let since = record
            .multicast_at
            .map(|at| now.saturating_duration_since(at));
        let unicast = asked.is_legacy
            || (question.wants_unicast && since.is_some_and(|since| since < MULTICAST_FRESH));
        let just_said = !is_probe && !unicast && since.is_some_and(|since| since < MULTICAST_PAUSE);
        if just_said || (unknown.is_empty() && !wanted.is_empty()) {
            self.stats.suppressed += 1;
            return;
        }
        if !unicast {
            record.multicast_at = Some(now);
        }
        reply.add(question, unknown, &record.addresses, unicast);
    }

    fn send(&mut self, frame: Vec<u8>) {
        if self.frames.len() == FRAMES_MAX {
            self.frames.pop_front();
            self.stats.dropped_queue += 1;
        }
        self.frames.push_back(frame);
    }
}

impl Record {
    /// What caches may hold from us and is no longer so.
    fn withdrawn(&self, kept: &BTreeSet<IpAddr>, now: Instant) -> impl Iterator<Item = IpAddr> {
        let silent = self.silent_until.is_some_and(|until| until > now);
        let cached = !silent
            && self.multicast_at.is_some_and(|at| {
                now.saturating_duration_since(at) < Duration::from_secs(message::TTL_SECONDS.into())
            });
        self.addresses
            .difference(kept)
            .copied()
            .filter(move |_| cached)
            .collect::<Vec<_>>()
            .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use hickory_proto::{
        op::{Message, Query},
        rr::{Name as DnsName, RData, Record as DnsRecord, rdata::A},
    };
    use proptest::prelude::*;

    const ASKER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 9);
    const ASKER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);
    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 3, 4);
    const STATION: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn responder() -> MdnsResponder {
        let mut responder = MdnsResponder::new(STATION, Some(Ipv4Addr::new(192, 168, 1, 5)), None);
        responder.set_names(names(GUEST), Instant::now());
        responder
    }

    fn names(address: Ipv4Addr) -> BTreeMap<Name, BTreeSet<IpAddr>> {
        [("vm-8-1".parse().unwrap(), [address.into()].into())].into()
    }

    fn dns_name() -> DnsName {
        DnsName::from_ascii("VM-8-1.local.").unwrap()
    }

    fn a(address: Ipv4Addr, ttl: u32) -> DnsRecord {
        DnsRecord::from_rdata(dns_name(), ttl, RData::A(A(address)))
    }

    fn question(kind: RecordType, wants_unicast: bool) -> Message {
        let mut query = Query::query(dns_name(), kind);
        query.set_mdns_unicast_response(wants_unicast);
        let mut message = Message::query();
        message.metadata.id = 7;
        message.add_query(query);
        message
    }

    fn framed(message: &Message, from: Ipv4Addr, port: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(ASKER_MAC.0, [1, 0, 0x5e, 0, 0, 0xfb])
            .ipv4(from.octets(), [224, 0, 0, 251], 255)
            .udp(port, 5353);
        builder
            .write(&mut frame, &message.to_vec().unwrap())
            .unwrap();
        frame
    }

    /// The only frame, as destination MAC, destination IP and port, and message.
    fn said(responder: &mut MdnsResponder) -> Option<(MacAddr, Ipv4Addr, u16, Message)> {
        let frame = responder.poll_frame()?;
        assert_eq!(responder.poll_frame(), None);
        let packet = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Udp(udp))) =
            (packet.net, packet.transport)
        else {
            panic!("not UDP")
        };
        assert_eq!((ip.header().ttl(), udp.source_port()), (255, 5353));
        let message = Message::from_vec(udp.payload()).unwrap();
        Some((
            MacAddr(frame[..6].try_into().unwrap()),
            ip.header().destination_addr(),
            udp.destination_port(),
            message,
        ))
    }

    #[test]
    fn a_question_is_answered_to_everybody_once_a_second() {
        let (mut responder, now) = (responder(), Instant::now());
        let asked = framed(&question(RecordType::A, false), ASKER, 5353);

        responder.handle_frame(&asked, now);

        let (mac, ip, port, message) = said(&mut responder).unwrap();
        assert_eq!(
            (mac, ip, port),
            (
                MacAddr([1, 0, 0x5e, 0, 0, 0xfb]),
                Ipv4Addr::new(224, 0, 0, 251),
                5353
            )
        );
        assert_eq!(
            (
                message.metadata.id,
                message.queries.len(),
                message.metadata.authoritative
            ),
            (0, 0, true)
        );
        assert_eq!(
            (&message.answers[0].data, message.answers[0].ttl),
            (&RData::A(A(GUEST)), 120)
        );
        assert!(
            !message.answers[0].mdns_cache_flush,
            "others may have the name too"
        );
        responder.handle_frame(&asked, now + Duration::from_millis(500));
        assert!(said(&mut responder).is_none());
        responder.handle_frame(&asked, now + Duration::from_millis(1500));
        assert!(said(&mut responder).is_some());
    }

    #[test]
    fn a_unicast_answer_is_given_where_asked_for_and_all_have_heard_lately() {
        let (mut responder, now) = (responder(), Instant::now());
        let asked = framed(&question(RecordType::A, true), ASKER, 5353);
        responder.handle_frame(&asked, now);
        assert_eq!(
            said(&mut responder).unwrap().1,
            Ipv4Addr::new(224, 0, 0, 251),
            "nobody has heard it yet"
        );

        responder.handle_frame(&asked, now + Duration::from_secs(5));

        let (mac, ip, port, _) = said(&mut responder).unwrap();
        assert_eq!((mac, ip, port), (ASKER_MAC, ASKER, 5353));
    }

    #[test]
    fn a_simple_resolver_is_answered_in_its_own_way() {
        let (mut responder, now) = (responder(), Instant::now());
        responder.handle_frame(
            &framed(&question(RecordType::ANY, false), ASKER, 40000),
            now,
        );

        let (_, ip, port, message) = said(&mut responder).unwrap();
        assert_eq!(
            (ip, port, message.metadata.id, message.queries.len()),
            (ASKER, 40000, 7, 1)
        );
        assert_eq!(message.answers[0].ttl, 10);
    }

    #[test]
    fn an_answer_that_the_asker_has_is_not_repeated() {
        let (mut responder, now) = (responder(), Instant::now());
        let mut asked = question(RecordType::A, false);
        asked.add_answer(a(GUEST, 60));
        responder.handle_frame(&framed(&asked, ASKER, 5353), now);
        assert!(said(&mut responder).is_none());

        asked.answers[0].ttl = 59; // less than half of its life
        responder.handle_frame(&framed(&asked, ASKER, 5353), now);
        assert!(said(&mut responder).is_some());
    }

    #[test]
    fn a_kind_of_address_that_is_not_there_is_denied() {
        let (mut responder, now) = (responder(), Instant::now());
        responder.handle_frame(
            &framed(&question(RecordType::AAAA, false), ASKER, 5353),
            now,
        );

        let (.., message) = said(&mut responder).unwrap();
        assert_eq!(u16::from(message.answers[0].record_type()), 47);
        let other = Message::query()
            .add_query(Query::query(
                DnsName::from_ascii("other.local.").unwrap(),
                RecordType::A,
            ))
            .clone();
        responder.handle_frame(&framed(&other, ASKER, 5353), now);
        assert!(said(&mut responder).is_none());
    }

    #[test]
    fn a_strangers_probe_is_answered_at_once_but_the_owners_is_not() {
        let (mut responder, now) = (responder(), Instant::now());
        let probe = |address, from| {
            let mut probe = question(RecordType::ANY, true);
            probe.add_authority(a(address, 120));
            framed(&probe, from, 5353)
        };

        responder.handle_frame(&probe(GUEST, GUEST), now);
        responder.handle_frame(&probe(Ipv4Addr::new(192, 168, 1, 77), GUEST), now);
        assert!(
            said(&mut responder).is_none(),
            "the guest takes its own name"
        );
        responder.handle_frame(&probe(ASKER, ASKER), now);
        assert!(said(&mut responder).is_some());
        responder.handle_frame(&probe(ASKER, ASKER), now + Duration::from_millis(250));
        assert!(said(&mut responder).is_some(), "a probe does not wait");
    }

    #[test]
    fn a_lan_machine_of_that_name_has_it_until_it_says_goodbye() {
        let (mut responder, now) = (responder(), Instant::now());
        let theirs = |ttl| {
            let mut message = message_of_answers();
            message.add_answer(a(ASKER, ttl));
            framed(&message, ASKER, 5353)
        };
        let asked = framed(&question(RecordType::A, false), ASKER, 5353);

        responder.handle_frame(&theirs(120), now);
        responder.handle_frame(&asked, now + Duration::from_secs(300));
        assert!(said(&mut responder).is_none());
        assert_eq!(responder.stats().gave_way, 1);
        responder.handle_frame(&theirs(0), now + Duration::from_secs(301));
        responder.handle_frame(&asked, now + Duration::from_secs(302));
        assert!(said(&mut responder).is_some());
    }

    fn message_of_answers() -> Message {
        Message::response(0, hickory_proto::op::OpCode::Query)
    }

    #[test]
    fn what_was_said_and_is_no_longer_so_is_withdrawn() {
        let (mut responder, now) = (responder(), Instant::now());
        responder.set_names(names(Ipv4Addr::new(10, 77, 3, 5)), now);
        assert!(said(&mut responder).is_none(), "nobody heard of it");
        responder.handle_frame(&framed(&question(RecordType::A, false), ASKER, 5353), now);
        said(&mut responder).unwrap();

        responder.set_names(BTreeMap::new(), now + Duration::from_secs(3));

        let (.., message) = said(&mut responder).unwrap();
        assert_eq!(
            (&message.answers[0].data, message.answers[0].ttl),
            (&RData::A(A(Ipv4Addr::new(10, 77, 3, 5))), 0)
        );
    }

    #[test]
    fn over_ipv6_it_speaks_from_its_ipv6_address() {
        let now = Instant::now();
        let from = "fe80::1".parse().unwrap();
        let mut responder = MdnsResponder::new(STATION, None, Some(from));
        responder.set_names(names(GUEST), now);
        let mut frame = Vec::new();
        let asker: Ipv6Addr = "fe80::9".parse().unwrap();
        let group: Ipv6Addr = "ff02::fb".parse().unwrap();
        let builder = PacketBuilder::ethernet2(ASKER_MAC.0, [0x33, 0x33, 0, 0, 0, 0xfb])
            .ipv6(asker.octets(), group.octets(), 255)
            .udp(5353, 5353);
        builder
            .write(
                &mut frame,
                &question(RecordType::A, false).to_vec().unwrap(),
            )
            .unwrap();

        responder.handle_frame(&frame, now);
        let answer = responder.poll_frame().unwrap();

        assert_eq!(answer[..6], [0x33, 0x33, 0, 0, 0, 0xfb]);
        assert_eq!(answer[22..38], from.octets());
        responder.handle_frame(
            &framed(&question(RecordType::A, false), ASKER, 5353),
            now + Duration::from_secs(9),
        );
        assert!(
            responder.poll_frame().is_none(),
            "without an IPv4 address there is no answer over IPv4"
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall(bytes in proptest::collection::vec(any::<u8>(), 0..300), damage in proptest::collection::vec((0..120_usize, any::<u8>()), 0..8)) {
            let mut responder = responder();
            responder.handle_frame(&bytes, Instant::now());
            let mut frame = framed(&question(RecordType::ANY, false), ASKER, 5353);
            for (at, byte) in damage {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            responder.handle_frame(&frame, Instant::now());
            prop_assert!(responder.frames.len() <= 2);
        }
    }
}
