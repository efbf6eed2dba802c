//! The DHCP exchange (RFC 2131 §4.3): what each request gets for an answer.

use super::{
    Block, DhcpConfig, GuestBinding,
    frame::{Refused, Reply, Request},
    pool::{Client, GUESTS_PER_PORT_MAX, HELD_MAX, Held, Pool, State},
};
use dhcproto::v4::MessageType;
use overlay_types::{MacAddr, Name, PortId};
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// How long an address stays set aside for a client that was offered it.
const OFFER_TIME: Duration = Duration::from_secs(30);
/// Clients that wait for a block; more are dropped and ask again by themselves.
const WAITING_MAX: usize = 64;
/// How long a request waits for a block before the client has long asked again.
const WAITING_TIME: Duration = Duration::from_secs(15);
/// How often a block is asked for while clients wait.
const BLOCK_WANTED_EVERY: Duration = Duration::from_secs(5);
/// A port's requests at once and per second: a guest's whole boot takes four.
const REQUESTS_BURST: u32 = 64;
const REQUESTS_PER_SECOND: u32 = 16;
/// Replies and events not fetched yet.
const QUEUE_MAX: usize = 1024;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DhcpEvent {
    /// A guest was granted (or renewed) an address.
    GuestBound {
        /// Where it is.
        port: PortId,
        /// Its MAC.
        mac: MacAddr,
        /// Its address.
        ip: Ipv4Addr,
        /// Its name, if it has one.
        name: Option<Name>,
        /// Unix second.
        expires: u64,
    },
    /// A guest's address ended: released, declined, expired, or its block is gone.
    GuestGone {
        /// Its MAC.
        mac: MacAddr,
        /// The address it had.
        ip: Ipv4Addr,
    },
    /// Clients wait and no address is free: a further block is needed.
    BlockWanted,
}

/// Counts of what was answered, and of what was dropped and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DhcpStats {
    /// DHCPOFFER sent.
    pub offers: u64,
    /// DHCPACK sent.
    pub acks: u64,
    /// DHCPNAK sent.
    pub naks: u64,
    /// DHCPDECLINE received: an address was in use already.
    pub declines: u64,
    /// Not a DHCP request.
    pub dropped_malformed: u64,
    /// In another station's name.
    pub dropped_spoofed: u64,
    /// Through a relay agent: each node serves its own guests.
    pub dropped_relayed: u64,
    /// For another server.
    pub dropped_foreign: u64,
    /// More than a port may ask.
    pub dropped_rate: u64,
    /// No room among those that wait for a block.
    pub dropped_waiting: u64,
    /// No address for this client: the port or the node has its fill.
    pub dropped_full: u64,
    /// Replies or events that nobody fetched.
    pub dropped_queue: u64,
}

/// The server.
pub struct DhcpServer {
    config: DhcpConfig,
    pool: Pool,
    port_names: BTreeMap<PortId, Name>,
    budgets: BTreeMap<PortId, Budget>,
    waiting: BTreeMap<MacAddr, Waiting>,
    block_wanted_at: Option<Instant>,
    frames: VecDeque<(PortId, Vec<u8>)>,
    events: VecDeque<DhcpEvent>,
    /// The last pair of clocks we were given: relates expiries in Unix seconds to deadlines.
    clocks: Option<(Instant, u64)>,
    stats: DhcpStats,
}

struct Waiting {
    port: PortId,
    request: Request,
    give_up_at: Instant,
}

struct Budget {
    left: u32,
    filled_at: Instant,
}

impl DhcpServer {
    /// A server without addresses.
    pub fn new(config: DhcpConfig) -> Self {
        Self {
            config,
            pool: Pool::default(),
            port_names: BTreeMap::new(),
            budgets: BTreeMap::new(),
            waiting: BTreeMap::new(),
            block_wanted_at: None,
            frames: VecDeque::new(),
            events: VecDeque::new(),
            clocks: None,
            stats: DhcpStats::default(),
        }
    }

    /// Replaces what clients are told; they learn of it when they renew.
    pub fn set_config(&mut self, config: DhcpConfig) {
        self.config = config;
    }

    /// The user's name for the guest on a port; wins over DHCP option 12.
    pub fn set_port_name(&mut self, port: PortId, name: Option<Name>) {
        match name {
            Some(name) => self.port_names.insert(port, name),
            None => self.port_names.remove(&port),
        };
    }

    /// Replaces the blocks that may be granted from, and serves clients that waited for one.
    pub fn set_blocks(&mut self, blocks: &[Block], now: Instant, unix: u64) {
        self.clocks = Some((now, unix));
        for (ip, held) in self.pool.set_blocks(blocks) {
            self.tell(DhcpEvent::GuestGone { mac: held.mac, ip });
        }
        for (_, Waiting { port, request, .. }) in std::mem::take(&mut self.waiting) {
            self.discover(port, request, now, unix);
        }
    }

    /// The port is gone, and with it the guests behind it; their addresses are remembered.
    pub fn remove_port(&mut self, port: PortId, unix: u64) {
        self.port_names.remove(&port);
        self.budgets.remove(&port);
        self.waiting.retain(|_, waiting| waiting.port != port);
        let behind: Vec<_> = self
            .pool
            .iter()
            .filter(|(_, held)| held.port == Some(port))
            .map(|(ip, held)| (ip, held.mac))
            .collect();
        for (ip, mac) in behind {
            if self.pool.end(ip, unix) {
                self.tell(DhcpEvent::GuestGone { mac, ip });
            }
        }
    }

    /// A frame from a guest.
    pub fn handle_frame(&mut self, port: PortId, frame: &[u8], now: Instant, unix: u64) {
        self.clocks = Some((now, unix));
        self.age(now, unix);
        if !self.spend(port, now) {
            self.stats.dropped_rate += 1;
            return;
        }
        let request = match Request::decode(frame) {
            Ok(request) => request,
            Err(refused) => {
                match refused {
                    Refused::Malformed => self.stats.dropped_malformed += 1,
                    Refused::Spoofed => self.stats.dropped_spoofed += 1,
                    Refused::Relayed => self.stats.dropped_relayed += 1,
                }
                return;
            }
        };
        match request.kind {
            MessageType::Discover => self.discover(port, request, now, unix),
            MessageType::Request => self.request(port, &request, unix),
            MessageType::Decline => self.decline(&request, unix),
            MessageType::Release => self.release(&request, unix),
            MessageType::Inform => self.reply(port, &Reply::Parameters, &request),
            _ => self.stats.dropped_malformed += 1,
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant, unix: u64) {
        self.clocks = Some((now, unix));
        self.age(now, unix);
        self.waiting.retain(|_, waiting| waiting.give_up_at > now);
        self.want_block(now);
    }

    /// When to be called again.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let (now, unix) = self.clocks?;
        let ends = self.pool.iter().filter_map(|(_, held)| match held.state {
            State::Offered { until, .. } => Some((until, "an offer lapses")),
            State::Bound { expires } => Some((
                now + Duration::from_secs(expires.saturating_sub(unix)),
                "a guest's address expires",
            )),
            State::Ended { .. } => None,
        });
        let waits = self
            .waiting
            .values()
            .map(|waiting| (waiting.give_up_at, "a guest waited too long for a block"));
        let wants = self
            .block_wanted_at
            .filter(|_| !self.waiting.is_empty())
            .map(|at| (at + BLOCK_WANTED_EVERY, "a block is wanted again"));
        ends.chain(waits).chain(wants).min_by_key(|(at, _)| *at)
    }

    /// A frame for the guest behind a port.
    pub fn poll_frame(&mut self) -> Option<(PortId, Vec<u8>)> {
        self.frames.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<DhcpEvent> {
        self.events.pop_front()
    }

    /// All that must outlive a restart.
    pub fn bindings(&self) -> Vec<GuestBinding> {
        let kept = |(ip, held): (Ipv4Addr, &Held)| {
            let expires = match held.state {
                State::Bound { expires } => expires,
                State::Ended { at }
                | State::Offered {
                    ended: Some(at), ..
                } => at,
                State::Offered { ended: None, .. } => return None,
            };
            Some(GuestBinding {
                port: held.port,
                mac: held.mac,
                client_id: held.client_id.clone(),
                ip,
                name: held.name.clone(),
                expires,
            })
        };
        self.pool.iter().filter_map(kept).collect()
    }

    /// Takes up what [`Self::bindings`] gave, after [`Self::set_blocks`]. Ports do not keep their numbers over a restart, so the
    /// caller puts in the present ones; live guests whose port is known are announced by [`DhcpEvent::GuestBound`].
    pub fn restore(&mut self, bindings: Vec<GuestBinding>, now: Instant, unix: u64) {
        self.clocks = Some((now, unix));
        for GuestBinding {
            port,
            mac,
            client_id,
            ip,
            name,
            expires,
        } in bindings.into_iter().take(HELD_MAX)
        {
            let Some(until) = self.pool.usable_until(ip, unix) else {
                continue;
            };
            if !self.pool.grantable(ip, mac, &self.config, unix) {
                continue;
            }
            let expires = expires.min(until);
            let state = if expires > unix {
                State::Bound { expires }
            } else {
                State::Ended { at: expires }
            };
            self.pool.put(
                ip,
                Held {
                    port,
                    mac,
                    client_id,
                    name: name.clone(),
                    state,
                },
            );
            if let (Some(port), true) = (port, expires > unix) {
                self.tell(DhcpEvent::GuestBound {
                    port,
                    mac,
                    ip,
                    name,
                    expires,
                });
            }
        }
    }

    /// Counters.
    pub const fn stats(&self) -> DhcpStats {
        self.stats
    }

    fn discover(&mut self, port: PortId, request: Request, now: Instant, unix: u64) {
        let own = self
            .pool
            .by_mac(request.mac)
            .map(|(ip, held)| (ip, held.state));
        if own.is_none() && self.pool.guests_behind(port) >= GUESTS_PER_PORT_MAX {
            self.stats.dropped_full += 1;
            return;
        }
        let client = Client {
            mac: request.mac,
            client_id: request.client_id.as_deref(),
            requested: request.requested,
        };
        let Some(ip) = self.pool.choose(&client, &self.config, unix) else {
            self.wait_for_block(port, request, now);
            return;
        };
        let Some(time) = self.lease_time(ip, &request, unix) else {
            return;
        };
        let name = self.name_for(port, &request);
        // A client in use of its address that asks anew (it rebooted) keeps it until it takes the offer.
        if !matches!(own, Some((_, State::Bound { .. }))) {
            let ended = match own {
                Some((
                    own_ip,
                    State::Ended { at }
                    | State::Offered {
                        ended: Some(at), ..
                    },
                )) if own_ip == ip => Some(at),
                _ => None,
            };
            let state = State::Offered {
                until: now + OFFER_TIME,
                ended,
            };
            self.pool.put(
                ip,
                Held {
                    port: Some(port),
                    mac: request.mac,
                    client_id: request.client_id.clone(),
                    name: name.clone(),
                    state,
                },
            );
        }
        self.stats.offers += 1;
        self.reply(
            port,
            &Reply::Address {
                kind: MessageType::Offer,
                ip,
                time,
                name: name.as_ref(),
            },
            &request,
        );
    }

    /// The four states in which a client sends DHCPREQUEST (RFC 2131 §4.3.2, table 4).
    fn request(&mut self, port: PortId, request: &Request, unix: u64) {
        match (request.server, request.requested) {
            // SELECTING: the client took an offer; another server's, or ours.
            (Some(server), _) if server != self.config.server => {
                self.stats.dropped_foreign += 1;
                if let Some((ip, held)) = self.pool.by_mac(request.mac)
                    && !held.is_bound()
                {
                    self.pool.end(ip, unix);
                }
            }
            (Some(_), Some(ip)) => self.grant(
                port,
                request,
                ip,
                "that address was not offered to you, or no longer",
                unix,
            ),
            // INIT-REBOOT: the client remembers an address.
            (None, Some(ip)) => {
                self.grant(port, request, ip, "that address is not yours here", unix)
            }
            // RENEWING (to its server alone) or REBINDING (to everybody): the client uses its address.
            (None | Some(_), None) if !request.ciaddr.is_unspecified() => {
                let to_another =
                    request.to != Ipv4Addr::BROADCAST && request.to != self.config.server;
                if to_another
                    && self
                        .pool
                        .by_mac(request.mac)
                        .is_none_or(|(ip, _)| ip != request.ciaddr)
                {
                    self.stats.dropped_foreign += 1; // its own server may still answer
                } else {
                    self.grant(
                        port,
                        request,
                        request.ciaddr,
                        "that address is not yours here, or no longer",
                        unix,
                    );
                }
            }
            _ => self.stats.dropped_malformed += 1,
        }
    }

    /// Says yes to `ip` if the client has it or may have it; else no, for `why`.
    fn grant(
        &mut self,
        port: PortId,
        request: &Request,
        ip: Ipv4Addr,
        why: &'static str,
        unix: u64,
    ) {
        let own = self.pool.by_mac(request.mac).map(|(ip, _)| ip);
        let room = own.is_some() || self.pool.guests_behind(port) < GUESTS_PER_PORT_MAX;
        let reserved_elsewhere =
            (self.config.reservations.get(&request.mac)).is_some_and(|other| {
                *other != ip && self.pool.grantable(*other, request.mac, &self.config, unix)
            });
        let may =
            room && !reserved_elsewhere && self.pool.grantable(ip, request.mac, &self.config, unix);
        // A client whose address is kept for it asks for another one: it gets its own by asking anew.
        let reserved_here = self.config.reservations.get(&request.mac) == Some(&ip);
        let confused = !reserved_here
            && own.is_some_and(|own| {
                own != ip && self.pool.grantable(own, request.mac, &self.config, unix)
            });
        let Some(time) = self
            .lease_time(ip, request, unix)
            .filter(|_| may && !confused)
        else {
            self.stats.naks += 1;
            self.reply(port, &Reply::Nak { why }, request);
            return;
        };
        let name = self.name_for(port, request);
        let expires = unix + time.as_secs();
        let held = Held {
            port: Some(port),
            mac: request.mac,
            client_id: request.client_id.clone(),
            name: name.clone(),
            state: State::Bound { expires },
        };
        if let Some(left) = self.pool.put(ip, held) {
            self.tell(DhcpEvent::GuestGone {
                mac: request.mac,
                ip: left,
            });
        }
        self.stats.acks += 1;
        self.reply(
            port,
            &Reply::Address {
                kind: MessageType::Ack,
                ip,
                time,
                name: name.as_ref(),
            },
            request,
        );
        self.tell(DhcpEvent::GuestBound {
            port,
            mac: request.mac,
            ip,
            name,
            expires,
        });
    }

    fn decline(&mut self, request: &Request, unix: u64) {
        // Only its own: else one guest could take any address out of use.
        let own = self
            .pool
            .by_mac(request.mac)
            .filter(|(ip, _)| Some(*ip) == request.requested)
            .map(|(ip, held)| (ip, held.is_bound()));
        let Some((ip, was_bound)) = own else {
            self.stats.dropped_foreign += 1;
            return;
        };
        self.stats.declines += 1;
        self.pool.decline(ip, unix);
        if was_bound {
            self.tell(DhcpEvent::GuestGone {
                mac: request.mac,
                ip,
            });
        }
    }

    fn release(&mut self, request: &Request, unix: u64) {
        let own = self
            .pool
            .by_mac(request.mac)
            .filter(|(ip, _)| *ip == request.ciaddr)
            .map(|(ip, _)| ip);
        match own {
            Some(ip) if self.pool.end(ip, unix) => self.tell(DhcpEvent::GuestGone {
                mac: request.mac,
                ip,
            }),
            _ => self.stats.dropped_foreign += 1,
        }
    }

    /// As long as the network says, the client asks at most, and the block lasts.
    fn lease_time(&self, ip: Ipv4Addr, request: &Request, unix: u64) -> Option<Duration> {
        /// Clients that ask for less would renew without pause.
        const ASKED_MIN: Duration = Duration::from_secs(60);
        let block = Duration::from_secs(self.pool.usable_until(ip, unix)? - unix);
        let asked = request.lease_time.map_or(Duration::MAX, |seconds| {
            Duration::from_secs(seconds.into()).max(ASKED_MIN)
        });
        Some(self.config.lease_time.min(asked).min(block))
    }

    /// The user's name for the port (for the first guest behind it), else what the guest calls itself or was called before; made
    /// different from every other guest's.
    fn name_for(&self, port: PortId, request: &Request) -> Option<Name> {
        let taken = |name: &Name| {
            self.pool.iter().any(|(_, held)| {
                held.mac != request.mac && held.is_bound() && held.name.as_ref() == Some(name)
            })
        };
        let given = self
            .port_names
            .get(&port)
            .filter(|name| !taken(name))
            .cloned();
        let before = || {
            self.pool
                .by_mac(request.mac)
                .and_then(|(_, held)| held.name.clone())
        };
        let name = given
            .or_else(|| request.host_name.clone())
            .or_else(before)?;
        if !taken(&name) {
            return Some(name);
        }
        let [.., a, b, c] = request.mac.0;
        let stem: String = name.as_str().chars().take(63 - "-aabbcc".len()).collect();
        format!("{stem}-{a:02x}{b:02x}{c:02x}").parse().ok()
    }

    fn wait_for_block(&mut self, port: PortId, request: Request, now: Instant) {
        if self.waiting.len() >= WAITING_MAX && !self.waiting.contains_key(&request.mac) {
            self.stats.dropped_waiting += 1;
            return;
        }
        self.waiting.insert(
            request.mac,
            Waiting {
                port,
                request,
                give_up_at: now + WAITING_TIME,
            },
        );
        self.want_block(now);
    }

    fn want_block(&mut self, now: Instant) {
        let due = self
            .block_wanted_at
            .is_none_or(|at| now >= at + BLOCK_WANTED_EVERY);
        if !self.waiting.is_empty() && due {
            self.block_wanted_at = Some(now);
            self.tell(DhcpEvent::BlockWanted);
        }
    }

    fn age(&mut self, now: Instant, unix: u64) {
        for (ip, mac) in self.pool.age(now, unix) {
            self.tell(DhcpEvent::GuestGone { mac, ip });
        }
    }

    fn spend(&mut self, port: PortId, now: Instant) -> bool {
        let budget = self.budgets.entry(port).or_insert(Budget {
            left: REQUESTS_BURST,
            filled_at: now,
        });
        let seconds = u32::try_from(now.saturating_duration_since(budget.filled_at).as_secs())
            .unwrap_or(u32::MAX);
        if seconds > 0 {
            budget.left = budget
                .left
                .saturating_add(seconds.saturating_mul(REQUESTS_PER_SECOND))
                .min(REQUESTS_BURST);
            budget.filled_at = now;
        }
        let enough = budget.left > 0;
        budget.left = budget.left.saturating_sub(1);
        enough
    }

    fn reply(&mut self, port: PortId, reply: &Reply<'_>, request: &Request) {
        let Some(frame) = reply.encode(request, &self.config) else {
            return;
        };
        if self.frames.len() == QUEUE_MAX {
            self.frames.pop_front(); // its client asks again
            self.stats.dropped_queue += 1;
        }
        self.frames.push_back((port, frame));
    }

    fn tell(&mut self, event: DhcpEvent) {
        if self.events.len() == QUEUE_MAX {
            self.events.pop_front();
            self.stats.dropped_queue += 1;
        }
        self.events.push_back(event);
    }
}

#[cfg(test)]
mod tests {
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
    fn frame(
        kind: MessageType,
        mac: MacAddr,
        ciaddr: Ipv4Addr,
        options: Vec<DhcpOption>,
    ) -> Vec<u8> {
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
        let mut restarted = super::tests::server(now);
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
}
