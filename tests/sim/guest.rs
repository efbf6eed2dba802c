//! A guest: a station with a MAC and an IPv4 address, given or got by DHCP, that resolves by ARP, sends pings and answers
//! them.

use crate::dhcp_client::DhcpClient;
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv4Type,
    LaxPacketHeaders, NetHeaders, PacketBuilder, TransportHeader,
};
use overlay_types::MacAddr;
use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// Repeated in every ping's payload; nobody on the wire may ever see it.
pub const MARKER: &[u8; 16] = b"farlan-plaintext";

/// Pings that wait for addresses to be resolved; the oldest goes first.
const WAITING_MAX: usize = 128;

/// How long a ping waits for its address to be resolved, as long as Linux tries.
const WAITING_TIME: Duration = Duration::from_secs(3);

/// How often an unanswered ARP request is repeated.
const ARP_RETRY: Duration = Duration::from_secs(1);

/// A ping that is to leave once its address is resolved.
#[derive(Debug)]
struct Waiting {
    to: Ipv4Addr,
    sequence: u16,
    bytes: usize,
    since: Instant,
}

/// A station behind a port.
#[derive(Debug)]
pub struct Guest {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its IPv4 address; unspecified while it has none.
    pub ip: Ipv4Addr,
    dhcp: Option<DhcpClient>,
    neighbours: BTreeMap<Ipv4Addr, MacAddr>,
    waiting: VecDeque<Waiting>,
    asked_at: BTreeMap<Ipv4Addr, Instant>,
    sent_at: BTreeMap<u16, Instant>,
    /// Round-trip times of answered pings, by sequence number.
    pub answered: BTreeMap<u16, Duration>,
    next_sequence: u16,
}

impl Guest {
    /// A guest with an address, that knows nobody yet.
    pub const fn new(mac: MacAddr, ip: Ipv4Addr) -> Self {
        Self {
            mac,
            ip,
            dhcp: None,
            neighbours: BTreeMap::new(),
            waiting: VecDeque::new(),
            asked_at: BTreeMap::new(),
            sent_at: BTreeMap::new(),
            answered: BTreeMap::new(),
            next_sequence: 1,
        }
    }

    /// A guest that asks for its address at once.
    pub fn with_dhcp(mac: MacAddr, name: &str, now: Instant) -> Self {
        Self {
            dhcp: Some(DhcpClient::new(mac, name, now)),
            ..Self::new(mac, Ipv4Addr::UNSPECIFIED)
        }
    }

    /// Its address, if it has one.
    pub fn address(&self) -> Option<Ipv4Addr> {
        (!self.ip.is_unspecified()).then_some(self.ip)
    }

    /// Sends one ping with `bytes` of payload: its sequence number and the frames to put on the port.
    pub fn ping(&mut self, to: Ipv4Addr, bytes: usize, now: Instant) -> (u16, Vec<Vec<u8>>) {
        let sequence = self.next_sequence;
        self.next_sequence = self.next_sequence.wrapping_add(1);
        self.sent_at.insert(sequence, now);
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Waiting {
            to,
            sequence,
            bytes,
            since: now,
        });
        (sequence, self.flush(now))
    }

    /// Nobody will ask for this ping again.
    pub fn forget(&mut self, sequence: u16) {
        self.sent_at.remove(&sequence);
        self.answered.remove(&sequence);
    }

    /// A frame arrives at the guest: the frames with which it answers.
    pub fn handle_frame(&mut self, frame: &[u8], now: Instant) -> Vec<Vec<u8>> {
        let Ok(packet) = LaxPacketHeaders::from_ethernet(frame) else {
            return Vec::new();
        };
        let Some(etherparse::LinkHeader::Ethernet2(ethernet)) = packet.link else {
            return Vec::new();
        };
        if ethernet.destination != self.mac.0 && !MacAddr(ethernet.destination).is_group() {
            return Vec::new();
        }
        if let (Some(dhcp), Some(TransportHeader::Udp(_))) = (&mut self.dhcp, &packet.transport) {
            let answer = dhcp.handle_frame(frame, now);
            return self.follow_dhcp(answer, now);
        }
        match (&packet.net, &packet.transport) {
            (Some(NetHeaders::Arp(arp)), _) => self.handle_arp(arp, now),
            (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Icmpv4(icmp)))
                if ip.destination == self.ip.octets() =>
            {
                let etherparse::LaxPayloadSlice::Icmpv4 { payload, .. } = packet.payload else {
                    return Vec::new();
                };
                match &icmp.icmp_type {
                    Icmpv4Type::EchoRequest(echo) => {
                        vec![self.echo(
                            ethernet.source,
                            ip.source,
                            false,
                            echo.id,
                            echo.seq,
                            payload,
                        )]
                    }
                    Icmpv4Type::EchoReply(echo) => {
                        if let Some(sent) = self.sent_at.remove(&echo.seq) {
                            self.answered.insert(echo.seq, now - sent);
                        }
                        Vec::new()
                    }
                    _ => Vec::new(),
                }
            }
            _ => Vec::new(),
        }
    }

    /// Repeats an ARP request that nobody answered, and lets the DHCP client do what is due.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let question = self.dhcp.as_mut().and_then(|dhcp| dhcp.handle_timeout(now));
        self.follow_dhcp(question, now)
    }

    /// When to be called again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let asked = |waiting: &Waiting| self.asked_at.get(&waiting.to).map(|&at| at + ARP_RETRY);
        let resolving = self.waiting.iter().filter(|_| self.address().is_some());
        let dhcp = self.dhcp.as_ref().map(DhcpClient::poll_timeout);
        resolving.filter_map(asked).chain(dhcp).min()
    }

    /// Takes the address that the DHCP client has now, and sends what it says and what the address lets go.
    fn follow_dhcp(&mut self, said: Option<Vec<u8>>, now: Instant) -> Vec<Vec<u8>> {
        if let Some(dhcp) = &self.dhcp {
            self.ip = dhcp.address().unwrap_or(Ipv4Addr::UNSPECIFIED);
        }
        said.into_iter().chain(self.flush(now)).collect()
    }

    fn handle_arp(&mut self, arp: &ArpPacket, now: Instant) -> Vec<Vec<u8>> {
        let (Ok(sender_mac), Ok(sender_ip), Ok(target_ip)) = (
            <[u8; 6]>::try_from(arp.sender_hw_addr()),
            <[u8; 4]>::try_from(arp.sender_protocol_addr()),
            <[u8; 4]>::try_from(arp.target_protocol_addr()),
        ) else {
            return Vec::new();
        };
        if self.address() != Some(target_ip.into()) {
            return Vec::new();
        }
        self.neighbours
            .insert(sender_ip.into(), MacAddr(sender_mac));
        let mut frames = self.flush(now);
        if arp.operation == ArpOperation::REQUEST {
            frames.push(self.arp(ArpOperation::REPLY, sender_mac, sender_mac, sender_ip));
        }
        frames
    }

    /// Lets go what waits for an address that is known now, and asks for those that are not.
    fn flush(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        if self.address().is_none() {
            return frames;
        }
        for waiting in std::mem::take(&mut self.waiting) {
            let to = waiting.to;
            if let Some(&mac) = self.neighbours.get(&to) {
                let payload: Vec<u8> = MARKER.iter().copied().cycle().take(waiting.bytes).collect();
                let octets = to.octets();
                frames.push(self.echo(mac.0, octets, true, 7, waiting.sequence, &payload));
            } else if now < waiting.since + WAITING_TIME {
                let asked = self.asked_at.get(&to);
                if asked.is_none_or(|&at| now >= at + ARP_RETRY) {
                    self.asked_at.insert(to, now);
                    let everybody = MacAddr::BROADCAST.0;
                    frames.push(self.arp(ArpOperation::REQUEST, everybody, [0; 6], to.octets()));
                }
                self.waiting.push_back(waiting);
            }
        }
        frames
    }

    fn arp(
        &self,
        operation: ArpOperation,
        to: [u8; 6],
        target_mac: [u8; 6],
        target_ip: [u8; 4],
    ) -> Vec<u8> {
        let arp = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            operation,
            &self.mac.0,
            &self.ip.octets(),
            &target_mac,
            &target_ip,
        )
        .expect("address lengths agree");
        let ethernet = Ethernet2Header {
            source: self.mac.0,
            destination: to,
            ether_type: EtherType::ARP,
        };
        let mut frame = ethernet.to_bytes().to_vec();
        frame.extend_from_slice(&arp.to_bytes());
        frame
    }

    fn echo(
        &self,
        to: [u8; 6],
        ip: [u8; 4],
        request: bool,
        id: u16,
        sequence: u16,
        payload: &[u8],
    ) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.mac.0, to).ipv4(self.ip.octets(), ip, 64);
        let builder = if request {
            builder.icmpv4_echo_request(id, sequence)
        } else {
            builder.icmpv4_echo_reply(id, sequence)
        };
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder
            .write(&mut frame, payload)
            .expect("writing to a Vec cannot fail");
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_guests_on_one_wire_resolve_and_ping() {
        let t0 = Instant::now();
        let mut a = Guest::new(MacAddr([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 1));
        let mut b = Guest::new(MacAddr([2, 0, 0, 0, 0, 2]), Ipv4Addr::new(10, 0, 0, 2));

        let (sequence, mut to_b) = a.ping(b.ip, 1472, t0);
        for _ in 0..3 {
            let to_a: Vec<_> = to_b.iter().flat_map(|f| b.handle_frame(f, t0)).collect();
            to_b = to_a.iter().flat_map(|f| a.handle_frame(f, t0)).collect();
        }

        assert!(a.answered.contains_key(&sequence));
    }
}
