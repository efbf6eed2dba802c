//! The relay itself: passes sealed datagrams between places, for whoever proved to hold one, within budgets.
//! Granting places over authenticated control connections is the control plane's; sockets are in `io`.

use super::budget::Budget;
use super::message::{CHALLENGE, CONFIRM, MESSAGE_BYTES, Message, REQUEST, keyed};
use super::shares::Shares;
use crate::wire::datagram::{DatagramKind, RelayHeader, WRAPPERS_MAX, classify, wrappers};
use overlay_types::{PathAddr, PeerId};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// What the relay gives, in bytes a second and places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayLimits {
    /// For one identity.
    pub identity_rate: u64,
    /// For all of one /24 (IPv4) or /48 (IPv6), where these have shares.
    pub subnet_rate: u64,
    /// For all together. Whoever wants of it has an even share.
    pub total_rate: u64,
    /// Whether the shares are those of a /24 or /48, and within it those of its identities: where anybody may come with as many
    /// identities as he likes.
    pub shared_by_subnet: bool,
    /// What every identity has in any case, so that a heavy neighbour silences nobody. It is part of the two above: where one of these
    /// does not suffice for all places, it is a place's even part of it.
    pub floor_rate: u64,
    /// Places in all.
    pub places_max: usize,
    /// Bound places of one /24 or /48.
    pub places_per_subnet_max: usize,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            identity_rate: 32_000_000,
            subnet_rate: 64_000_000,
            total_rate: 125_000_000, // a gigabit, the usual uplink of whoever has a public address
            shared_by_subnet: true,
            floor_rate: 16_000,
            places_max: 4096,
            places_per_subnet_max: 256,
        }
    }
}

/// Renewed every 25 s by the client; three may be lost.
const BINDING_KEPT_FOR: Duration = Duration::from_secs(90);

/// A granted place that nobody is bound to is kept this long: for the first binding, or for a node that restarts.
const PLACE_KEPT_FOR: Duration = Duration::from_secs(600);

/// A challenge must be answered within one to two of these.
const TOKEN_EPOCH: Duration = Duration::from_secs(15);

/// What may pass at once of an identity's floor: ten segments, the first window of a TCP connection (RFC 6928).
const FLOOR_BURST: u64 = 16 * 1024;

/// The one site of all, where subnets are not told apart.
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// How often expired bindings and places are swept.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// What became of datagrams; every drop has its reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayStats {
    /// Places granted now.
    pub places: usize,
    /// Places bound now.
    pub bound: usize,
    /// Datagrams passed on.
    pub forwarded: u64,
    /// Their bytes.
    pub forwarded_bytes: u64,
    /// Bind messages answered.
    pub answered: u64,
    /// Not a relay's business.
    pub dropped_unknown: u64,
    /// From somebody without a place here.
    pub dropped_stranger: u64,
    /// To a place that nobody is bound to.
    pub dropped_absent: u64,
    /// Bind messages that are forged, stale or out of place.
    pub dropped_forged: u64,
    /// Bind messages beyond what one subnet may hold.
    pub dropped_crowded: u64,
    /// Beyond the sender's own budget.
    pub dropped_identity_budget: u64,
    /// Beyond its share of what its subnet or all together may have, and beyond the floor.
    pub dropped_shared_budget: u64,
    /// Through more relays than two.
    pub dropped_nested: u64,
}

/// What to do with a datagram that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it on, as it is now in the buffer, in the wrapper of that relay if it goes to one.
    Forward(PathAddr),
    /// Send this back to where it came from.
    Reply([u8; MESSAGE_BYTES]),
    /// Nothing; it is counted.
    Drop,
}

/// Every place is taken and in use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the relay has no place left; ask another fabric node")]
pub struct RelayFull;

/// The relay's state.
#[derive(Debug)]
pub struct RelayServer {
    rng: ChaCha20Rng,
    /// Makes keys and tokens; never leaves.
    secret: [u8; 32],
    limits: RelayLimits,
    began: Instant,
    /// A place's number is its slot here in the low half, and chance in the high half.
    places: Vec<Option<Place>>,
    free: Vec<u16>,
    by_peer: BTreeMap<PeerId, u32>,
    by_addr: BTreeMap<PathAddr, u32>,
    /// Whether [`Self::clients`] are others than when that was asked last.
    has_news: bool,
    /// Who is behind addresses of this host: the other ends of streams.
    streams: BTreeMap<SocketAddr, IpAddr>,
    /// Bound places of each /24 or /48.
    subnets: BTreeMap<IpAddr, usize>,
    total: Shares,
    sweep_at: Instant,
    stats: RelayStats,
}

#[derive(Debug)]
struct Place {
    index: u32,
    peer: PeerId,
    key: [u8; 32],
    bound: Option<Bound>,
    /// Counts bindings, so that no old confirmation brings an old address back.
    generation: u64,
    expires_at: Instant,
    budget: Budget,
    floor: Budget,
}

#[derive(Clone, Copy, Debug)]
struct Bound {
    addr: PathAddr,
    /// Whose budget pays.
    subnet: IpAddr,
    expires_at: Instant,
}

impl RelayServer {
    /// A relay without places. `seed` must be secret: keys come from it.
    pub fn new(seed: [u8; 32], limits: RelayLimits, now: Instant) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let places_max = limits.places_max.min(1 << 16);
        let subnet_rate = if limits.shared_by_subnet {
            limits.subnet_rate
        } else {
            limits.total_rate
        };
        let even = |rate: u64, places: usize| rate / places.max(1) as u64;
        let floor_rate = limits
            .floor_rate
            .min(even(limits.total_rate, places_max))
            .min(even(subnet_rate, limits.places_per_subnet_max));
        let limits = RelayLimits {
            floor_rate,
            ..limits
        };
        Self {
            secret: rng.random(),
            rng,
            limits,
            began: now,
            places: (0..places_max).map(|_| None).collect(),
            free: (0..places_max).rev().map(|slot| slot as u16).collect(),
            by_peer: BTreeMap::new(),
            by_addr: BTreeMap::new(),
            has_news: false,
            streams: BTreeMap::new(),
            subnets: BTreeMap::new(),
            total: Shares::new(limits.total_rate, subnet_rate, now),
            sweep_at: now + SWEEP_EVERY,
            stats: RelayStats::default(),
        }
    }

    /// Grants `peer`, who is authenticated, its place: number and key. Asking again gives the same.
    ///
    /// # Errors
    /// [`RelayFull`] when every place is bound.
    pub fn allocate(&mut self, peer: PeerId, now: Instant) -> Result<(u32, [u8; 32]), RelayFull> {
        if let Some(place) = self
            .by_peer
            .get(&peer)
            .and_then(|index| self.places[slot(*index)].as_mut())
        {
            place.expires_at = now + PLACE_KEPT_FOR;
            return Ok((place.index, place.key));
        }
        if self.free.is_empty() {
            self.evict_longest_unbound();
        }
        let slot = self.free.pop().ok_or(RelayFull)?;
        let index = self.rng.random::<u32>() << 16 | u32::from(slot);
        let mut key = [0; 32];
        self.rng.fill(&mut key);
        self.places[usize::from(slot)] = Some(Place {
            index,
            peer,
            key,
            bound: None,
            generation: 0,
            expires_at: now + PLACE_KEPT_FOR,
            budget: Budget::new(self.limits.identity_rate, now),
            // Empty at first, or each new identity would be a burst.
            floor: Budget::with_burst(self.limits.floor_rate, FLOOR_BURST, now).spent(),
        });
        self.by_peer.insert(peer, index);
        Ok((index, key))
    }

    /// `peer` is to be relayed for no longer.
    pub fn forget(&mut self, peer: PeerId) {
        let Some(&index) = self.by_peer.get(&peer) else {
            return;
        };
        if let Some(bound) = self.places[slot(index)].as_ref().and_then(|p| p.bound) {
            self.release(bound);
        }
        self.remove(slot(index));
    }

    /// What comes from `local`, an address of this host, was carried here by a stream from `client`: its budgets are those of
    /// the client's network.
    pub fn open_stream(&mut self, local: SocketAddr, client: IpAddr) {
        self.streams.insert(local, client);
    }

    /// Whether what comes from there was carried here by a stream.
    pub fn is_stream(&self, local: SocketAddr) -> bool {
        self.streams.contains_key(&local)
    }

    /// That stream has ended, and with it what was bound through it.
    pub fn close_stream(&mut self, local: SocketAddr, now: Instant) {
        self.streams.remove(&local);
        let Some(index) = self.by_addr.get(&PathAddr::Direct(local)).copied() else {
            return;
        };
        if let Some(place) = self.places[slot(index)].as_mut() {
            let bound = place.bound.take();
            place.expires_at = now + PLACE_KEPT_FOR;
            bound.into_iter().for_each(|bound| self.release(bound));
        }
    }

    /// A datagram for a relay arrived from `from`, perhaps through another one. What is to be forwarded is changed in place.
    pub fn handle_datagram(
        &mut self,
        from: PathAddr,
        datagram: &mut [u8],
        now: Instant,
    ) -> Verdict {
        match classify(datagram) {
            _ if from.beyond(0).is_none() => {
                self.stats.dropped_nested += 1;
                Verdict::Drop
            }
            DatagramKind::ToPlace(header) => self.forward(from, header.index(), datagram, now),
            DatagramKind::RelayRequest => self.bind(from, datagram, now),
            _ => {
                self.stats.dropped_unknown += 1;
                Verdict::Drop
            }
        }
    }

    /// Time passed: forgets bindings and places that were not renewed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.sweep_at {
            return;
        }
        self.sweep_at = now + SWEEP_EVERY;
        for slot in 0..self.places.len() {
            let Some(place) = &mut self.places[slot] else {
                continue;
            };
            if let Some(bound) = place.bound.filter(|b| b.expires_at <= now) {
                place.bound = None;
                place.expires_at = now + PLACE_KEPT_FOR;
                self.release(bound);
            } else if place.bound.is_none() && place.expires_at <= now {
                self.remove(slot);
            }
        }
    }

    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        (!self.by_peer.is_empty()).then_some((self.sweep_at, "relay expiry"))
    }

    /// From where datagrams are passed on, in order.
    pub fn clients(&self) -> impl Iterator<Item = PathAddr> {
        self.by_addr.keys().copied()
    }

    /// Whether the clients are others than when this was asked last.
    pub fn has_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// Counters.
    pub fn stats(&self) -> RelayStats {
        RelayStats {
            places: self.by_peer.len(),
            bound: self.by_addr.len(),
            ..self.stats
        }
    }

    fn forward(&mut self, from: PathAddr, to: u32, datagram: &mut [u8], now: Instant) -> Verdict {
        let Some(&sender) = self.by_addr.get(&from) else {
            self.stats.dropped_stranger += 1;
            return Verdict::Drop;
        };
        let Some(target) = self.place(to).and_then(|p| p.bound).map(|b| b.addr) else {
            self.stats.dropped_absent += 1;
            return Verdict::Drop;
        };
        // Two members may have bound their places at two relays through each other: only this ends such a circle.
        if wrappers(datagram) + target.relays() > WRAPPERS_MAX {
            self.stats.dropped_nested += 1;
            return Verdict::Drop;
        }
        let bytes = datagram.len() as u64;
        let place = self.places[slot(sender)]
            .as_mut()
            .expect("whoever is bound has a place");
        let site = match place.bound {
            Some(bound) if self.limits.shared_by_subnet => bound.subnet,
            _ => ANYWHERE,
        };
        if !place.budget.has(bytes, now) {
            self.stats.dropped_identity_budget += 1;
            return Verdict::Drop;
        }
        let number = slot(sender) as u16;
        if !self.total.has(site, number, bytes, now) {
            if !place.floor.has(bytes, now) {
                self.stats.dropped_shared_budget += 1;
                return Verdict::Drop;
            }
            place.floor.pay(bytes);
        }
        self.total.owe(site, number, bytes);
        place.budget.pay(bytes);
        let header = RelayHeader::from(sender);
        datagram[..size_of::<RelayHeader>()].copy_from_slice(header.as_bytes());
        self.stats.forwarded += 1;
        self.stats.forwarded_bytes += bytes;
        Verdict::Forward(target)
    }

    fn bind(&mut self, from: PathAddr, datagram: &[u8], now: Instant) -> Verdict {
        let genuine = |message: &Message| {
            self.place(message.index())
                .is_some_and(|p| message.is_genuine(&p.key))
        };
        let Some(message) = Message::peek(datagram).filter(genuine) else {
            self.stats.dropped_forged += 1;
            return Verdict::Drop;
        };
        let place = self.places[slot(message.index())]
            .as_mut()
            .expect("its key was just used");
        let (index, nonce, key) = (place.index, message.nonce(), place.key);
        let is_there = place.bound.is_some_and(|b| b.addr == from);
        let confirms =
            message.kind == CONFIRM && self.tokens(from, &message, now).contains(&message.token);
        let place = self.places[slot(index)].as_mut().expect("as above");
        match message.kind {
            REQUEST | CONFIRM if is_there => {
                // A repeat from the proven address: only the time is renewed.
                let expires_at = now + BINDING_KEPT_FOR;
                place.bound = place.bound.map(|bound| Bound {
                    expires_at,
                    ..bound
                });
            }
            REQUEST => {
                let [token, _] = self.tokens(from, &message, now);
                self.stats.answered += 1;
                return Verdict::Reply(
                    Message::new(CHALLENGE, index, nonce, token, &key).to_bytes(),
                );
            }
            CONFIRM if confirms => {
                if !self.occupy(index, from, now) {
                    self.stats.dropped_crowded += 1;
                    return Verdict::Drop;
                }
            }
            _ => {
                self.stats.dropped_forged += 1;
                return Verdict::Drop;
            }
        }
        self.stats.answered += 1;
        Verdict::Reply(Message::bound(index, nonce, from.socket_addr(), &key).to_bytes())
    }

    /// Binds the place to a proven address, in the place of its old one; `false` when its subnet holds enough already.
    fn occupy(&mut self, index: u32, addr: PathAddr, now: Instant) -> bool {
        let ip = addr.socket_addr();
        let subnet = subnet_of(self.streams.get(&ip).map_or(ip.ip(), |client| *client));
        let held = self.subnets.get(&subnet).copied().unwrap_or(0);
        let before = self.place(index).and_then(|place| place.bound);
        let makes_room =
            before.is_some_and(|b| b.subnet == subnet) || self.by_addr.contains_key(&addr);
        if held >= self.limits.places_per_subnet_max && !makes_room {
            return false;
        }
        if let Some(&other) = self.by_addr.get(&addr) {
            // The NAT gave this port to somebody else since.
            let bound = self.places[slot(other)]
                .as_mut()
                .expect("whoever is bound has a place")
                .bound
                .take();
            bound.into_iter().for_each(|bound| self.release(bound));
        }
        let place = self.places[slot(index)]
            .as_mut()
            .expect("the caller looked it up");
        let old = place.bound.replace(Bound {
            addr,
            subnet,
            expires_at: now + BINDING_KEPT_FOR,
        });
        place.generation += 1;
        if let Some(old) = old {
            self.release(old);
        }
        self.by_addr.insert(addr, index);
        self.has_news = true;
        *self.subnets.entry(subnet).or_default() += 1;
        true
    }

    #[cfg(test)]
    pub(super) fn occupy_for_tests(&mut self, index: u32, addr: PathAddr, now: Instant) -> bool {
        self.occupy(index, addr, now)
    }

    /// The proof of address that is valid now, and the one before it.
    fn tokens(&self, from: PathAddr, message: &Message, now: Instant) -> [[u8; 16]; 2] {
        let generation = self.place(message.index()).map_or(0, |p| p.generation);
        let epoch = now.saturating_duration_since(self.began).as_secs() / TOKEN_EPOCH.as_secs();
        let addr = from.socket_addr();
        let (ip, port) = (canonical(addr.ip()), addr.port().to_be_bytes());
        let through = from.last_relay().map_or(0, |(_, index)| index);
        let token = |epoch: u64| {
            let numbers = [
                epoch,
                generation,
                message.nonce(),
                u64::from(message.index()),
                (from.relays() as u64) << 32 | u64::from(through),
            ]
            .map(u64::to_be_bytes)
            .concat();
            keyed(
                &self.secret,
                &[b"farlan relay token", &ip.octets(), &port, &numbers],
            )
        };
        [token(epoch), token(epoch.wrapping_sub(1))]
    }

    fn place(&self, index: u32) -> Option<&Place> {
        self.places
            .get(slot(index))?
            .as_ref()
            .filter(|p| p.index == index)
    }

    fn release(&mut self, bound: Bound) {
        self.by_addr.remove(&bound.addr);
        self.has_news = true;
        if let Some(held) = self.subnets.get_mut(&bound.subnet) {
            *held -= 1;
            if *held == 0 {
                self.subnets.remove(&bound.subnet);
            }
        }
    }

    fn remove(&mut self, slot: usize) {
        if let Some(place) = self.places[slot].take() {
            self.by_peer.remove(&place.peer);
            self.free.push(slot as u16);
        }
    }

    fn evict_longest_unbound(&mut self) {
        let unbound = self.places.iter().enumerate().filter_map(|(slot, place)| {
            place
                .as_ref()
                .filter(|p| p.bound.is_none())
                .map(|p| (p.expires_at, slot))
        });
        if let Some((_, slot)) = unbound.min() {
            self.remove(slot);
        }
    }
}

const fn slot(index: u32) -> usize {
    (index & 0xffff) as usize
}

fn canonical(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// The /24 or /48 that an address belongs to: about what one customer controls.
fn subnet_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & 0xffff_ff00).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & !0u128 << 80).into(),
    }
}
