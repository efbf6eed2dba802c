//! Which address is whose: offers, grants, and the memory of those that ended.
//! What to tell clients is decided in [`super::server`].

use super::{Block, DhcpConfig};
use overlay_types::{MacAddr, Name, PortId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

/// Addresses remembered or in use at once; beyond this the pool counts as empty. A host with more guests than this has several networks.
pub(super) const HELD_MAX: usize = 4096;
/// Addresses that guests behind one port may use at once, so that one guest that makes up MACs cannot eat the network.
pub(super) const GUESTS_PER_PORT_MAX: usize = 256;
/// Addresses that clients declined and that are kept out of use.
const DECLINED_MAX: usize = 1024;
/// How long an address that a client found in use (RFC 5227) is not granted again.
const DECLINED_SECONDS: u64 = 3600;
/// A block with less time than this left grants nothing: a client could not renew in time.
const LEASE_SECONDS_MIN: u64 = 30;

/// An address granted to a guest; what is kept over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestBinding {
    /// The port behind which the guest is; `None` when not known (yet) after a restart.
    pub port: Option<PortId>,
    /// The guest's MAC.
    pub mac: MacAddr,
    /// Its DHCP client identifier (option 61), if it sends one.
    pub client_id: Option<Vec<u8>>,
    /// The granted address.
    pub ip: Ipv4Addr,
    /// The guest's name.
    pub name: Option<Name>,
    /// Unix second; in the past for a guest that left, whose address is remembered.
    pub expires: u64,
}

/// ```text
/// (free) ──DISCOVER──▶ Offered ──REQUEST──▶ Bound ──release, expiry──▶ Ended ──taken over──▶ (free)
///                         └──timeout──▶ (free, or Ended if it was)     └──same client──▶ Offered
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Told to a client, which has not taken it yet. `ended`: when its last grant to that client ended.
    Offered { until: Instant, ended: Option<u64> },
    /// In use.
    Bound { expires: u64 },
    /// No longer in use; kept for the client while nobody else needs it.
    Ended { at: u64 },
}

#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) port: Option<PortId>,
    pub(super) mac: MacAddr,
    pub(super) client_id: Option<Vec<u8>>,
    pub(super) name: Option<Name>,
    pub(super) state: State,
}

impl Held {
    pub(super) fn is_bound(&self) -> bool {
        matches!(self.state, State::Bound { .. })
    }
}

/// Who asks for an address.
pub(super) struct Client<'a> {
    pub(super) mac: MacAddr,
    pub(super) client_id: Option<&'a [u8]>,
    pub(super) requested: Option<Ipv4Addr>,
}

#[derive(Default)]
pub(super) struct Pool {
    blocks: Vec<Block>,
    held: BTreeMap<Ipv4Addr, Held>,
    by_mac: BTreeMap<MacAddr, Ipv4Addr>,
    declined: BTreeMap<Ipv4Addr, u64>,
}

impl Pool {
    /// Replaces the blocks; gives the guests whose address lies in none of them any more.
    pub(super) fn set_blocks(&mut self, blocks: &[Block]) -> Vec<(Ipv4Addr, Held)> {
        self.blocks = blocks.to_vec();
        let outside: Vec<Ipv4Addr> = self
            .held
            .keys()
            .copied()
            .filter(|ip| self.block_of(*ip).is_none())
            .collect();
        outside
            .into_iter()
            .filter_map(|ip| Some((ip, self.remove(ip)?)))
            .filter(|(_, held)| held.is_bound())
            .collect()
    }

    /// Until when `ip` may be used at most, if it may be granted now.
    pub(super) fn usable_until(&self, ip: Ipv4Addr, unix: u64) -> Option<u64> {
        self.block_of(ip)
            .map(|block| block.until)
            .filter(|until| *until >= unix + LEASE_SECONDS_MIN)
    }

    fn block_of(&self, ip: Ipv4Addr) -> Option<&Block> {
        self.blocks.iter().find(|block| block.range.contains(ip))
    }

    /// The address for a client: reserved, its own, its former one, the one it asks for, a fresh one, or the longest unused one.
    pub(super) fn choose(
        &self,
        client: &Client<'_>,
        config: &DhcpConfig,
        unix: u64,
    ) -> Option<Ipv4Addr> {
        let grantable = |ip: &Ipv4Addr| self.grantable(*ip, client.mac, config, unix);
        let reserved = config.reservations.get(&client.mac).copied();
        let own = self.by_mac.get(&client.mac).copied();
        let former = client.client_id.and_then(|id| {
            let same = |held: &Held| !held.is_bound() && held.client_id.as_deref() == Some(id);
            self.held
                .iter()
                .find(|(_, held)| same(held))
                .map(|(ip, _)| *ip)
        });
        let free = |ip: &Ipv4Addr| {
            !self.held.contains_key(ip) && self.held.len() < HELD_MAX && grantable(ip)
        };
        let ended = || {
            let ended = |(ip, held): (&Ipv4Addr, &Held)| match held.state {
                State::Ended { at } if grantable(ip) => Some((at, *ip)),
                _ => None,
            };
            self.held.iter().filter_map(ended).min().map(|(_, ip)| ip)
        };
        (reserved.filter(|ip| grantable(ip)))
            .or_else(|| own.filter(grantable))
            .or_else(|| former.filter(grantable))
            .or_else(|| client.requested.filter(free))
            .or_else(|| self.blocks.iter().flat_map(Block::addresses).find(free))
            .or_else(ended)
    }

    /// Whether `mac` may have `ip` now: it lies in a live block, nobody else uses it or has it reserved or was offered it.
    pub(super) fn grantable(
        &self,
        ip: Ipv4Addr,
        mac: MacAddr,
        config: &DhcpConfig,
        unix: u64,
    ) -> bool {
        let foreign = |held: &Held| held.mac != mac && !matches!(held.state, State::Ended { .. });
        !config.is_taken(ip)
            && self.usable_until(ip, unix).is_some()
            && self.declined.get(&ip).is_none_or(|until| *until <= unix)
            && !self.held.get(&ip).is_some_and(foreign)
            && !config
                .reservations
                .iter()
                .any(|(whose, reserved)| *reserved == ip && *whose != mac)
    }

    pub(super) fn by_mac(&self, mac: MacAddr) -> Option<(Ipv4Addr, &Held)> {
        let ip = *self.by_mac.get(&mac)?;
        self.held.get(&ip).map(|held| (ip, held))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ipv4Addr, &Held)> {
        self.held.iter().map(|(ip, held)| (*ip, held))
    }

    /// Addresses in use behind a port.
    pub(super) fn guests_behind(&self, port: PortId) -> usize {
        self.held
            .values()
            .filter(|held| held.port == Some(port) && !matches!(held.state, State::Ended { .. }))
            .count()
    }

    /// Gives `ip` to a client. Gives back what that client held instead, if that was in use.
    pub(super) fn put(&mut self, ip: Ipv4Addr, held: Held) -> Option<Ipv4Addr> {
        let mac = held.mac;
        let other = self.by_mac.get(&mac).copied().filter(|other| *other != ip);
        let left = other.and_then(|other| self.remove(other).filter(Held::is_bound).map(|_| other));
        if let Some(before) = self.held.insert(ip, held)
            && before.mac != mac
        {
            self.by_mac.remove(&before.mac);
        }
        self.by_mac.insert(mac, ip);
        left
    }

    pub(super) fn remove(&mut self, ip: Ipv4Addr) -> Option<Held> {
        let held = self.held.remove(&ip)?;
        self.by_mac.remove(&held.mac);
        Some(held)
    }

    /// Ends the use of `ip`, but remembers whose it was. Tells whether it was in use.
    pub(super) fn end(&mut self, ip: Ipv4Addr, unix: u64) -> bool {
        let Some(held) = self.held.get_mut(&ip) else {
            return false;
        };
        match held.state {
            State::Bound { .. } => held.state = State::Ended { at: unix },
            State::Offered {
                ended: Some(at), ..
            } => {
                held.state = State::Ended { at };
                return false;
            }
            State::Offered { ended: None, .. } => {
                self.remove(ip);
                return false;
            }
            State::Ended { .. } => return false,
        }
        true
    }

    /// A client found `ip` in use by somebody else.
    pub(super) fn decline(&mut self, ip: Ipv4Addr, unix: u64) {
        self.declined.retain(|_, until| *until > unix);
        if self.declined.len() == DECLINED_MAX {
            self.declined.pop_first(); // any: an attacker who fills this gains an address that is probed again by its next client
        }
        self.declined.insert(ip, unix + DECLINED_SECONDS);
        self.remove(ip);
    }

    /// Ends what is over; gives the guests whose address expired.
    pub(super) fn age(&mut self, now: Instant, unix: u64) -> Vec<(Ipv4Addr, MacAddr)> {
        let over = |held: &Held| match held.state {
            State::Offered { until, .. } => until <= now,
            State::Bound { expires } => expires <= unix,
            State::Ended { .. } => false,
        };
        let over: Vec<_> = self
            .held
            .iter()
            .filter(|(_, held)| over(held))
            .map(|(ip, held)| (*ip, held.mac))
            .collect();
        over.into_iter()
            .filter(|(ip, _)| self.end(*ip, unix))
            .collect()
    }
}
