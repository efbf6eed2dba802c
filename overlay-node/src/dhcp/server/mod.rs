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
mod tests;
