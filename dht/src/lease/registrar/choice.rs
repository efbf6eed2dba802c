//! Which registers a transaction goes through, and which address or block it tries next.
//! Chosen by what this registrar happens to know; the registers decide.

use super::{Registrar, Running};
use crate::lease::pool::Pool;
use crate::lease::protocol::{Refusal, Transaction};
use crate::lease::register::{Entry, Key};
use crate::lease::rules::key_of;
use overlay_types::{MacAddr, Subnet};
use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;

impl Registrar {
    /// The registers that a transaction goes through. What it consumes comes before what it grants.
    pub(super) fn first_plan(&self, running: &Running) -> Result<VecDeque<Key>, Refusal> {
        let from = running.case.from;
        let mut plan = VecDeque::new();
        match &running.case.transaction {
            Transaction::Admit { name, .. } => {
                plan.extend(
                    running
                        .case
                        .grant
                        .as_ref()
                        .map(|grant| Key::Invite(grant.invite)),
                );
                plan.extend([Key::Name(name.clone()), Key::Member(from)]);
            }
            Transaction::RenewMembership { .. } => plan.push_back(Key::Member(from)),
            Transaction::ClaimAddress { name, .. } => {
                plan.extend(name.clone().map(Key::Name));
                plan.extend(self.pick(running)?);
            }
            Transaction::ClaimBlock { .. } => plan.extend(self.pick(running)?),
            Transaction::Renew { cert, .. } => {
                plan.extend(cert.name.clone().map(Key::Name));
                plan.push_back(key_of(cert.subject));
            }
            Transaction::Release(release) => {
                let release = release.clone().verify().map_err(|_| Refusal::NotYours)?;
                let key = key_of(release.subject);
                let name = match self.view(&key) {
                    Some(Entry::Lease(entry)) if entry.holder == from => entry.name.clone(),
                    _ => None,
                };
                plan.push_back(key);
                plan.extend(name.map(Key::Name));
            }
        }
        Ok(plan)
    }

    /// The next address or block to try, with the extent that must be settled before it.
    pub(super) fn pick(&self, running: &Running) -> Result<Vec<Key>, Refusal> {
        let subnet = self.network.document().subnet;
        match &running.case.transaction {
            Transaction::ClaimAddress { wanted, mac, .. } => {
                let address = self
                    .pick_address(running, *wanted, *mac)
                    .ok_or(Refusal::PoolExhausted { subnet })?;
                let extent = Pool::extent_of(address);
                let settled = self.singles.contains(&extent);
                Ok((!settled)
                    .then_some(Key::Extent(extent))
                    .into_iter()
                    .chain([Key::Address(address)])
                    .collect())
            }
            Transaction::ClaimBlock { wanted, have, .. } => {
                let base = self
                    .pick_block(running, *wanted, have)
                    .ok_or(Refusal::NoBlock { subnet })?;
                Ok(vec![Key::Extent(base)])
            }
            _ => Ok(Vec::new()),
        }
    }

    pub(super) fn pick_address(
        &self,
        running: &Running,
        wanted: Option<Ipv4Addr>,
        mac: MacAddr,
    ) -> Option<Ipv4Addr> {
        let pool = Pool::new(self.network.document().subnet);
        let (from, issued) = (running.case.from, running.case.issued);
        let held_by_me = |entry: &Entry| matches!(entry, Entry::Lease(e) if e.holder == from && e.mac == Some(mac));
        let open = |address: Ipv4Addr| {
            let extent = Pool::extent_of(address);
            let block = matches!(self.view(&Key::Extent(extent)), Some(Entry::Lease(block)) if !block.is_over(issued));
            !block
                && pool.may_lease(address)
                && !running.tried.contains(&address)
                && !running.tried.contains(&extent)
        };
        let last = self
            .acceptor
            .entries()
            .filter(|(_, entry)| held_by_me(entry))
            .find_map(|(key, _)| match key {
                Key::Address(address) if open(*address) => Some(*address),
                _ => None,
            });
        let sticky = wanted.filter(|address| open(*address)).or(last);
        sticky.or_else(|| {
            let claimed = self.planned_keys(running.id);
            let free = |address: &Ipv4Addr| {
                let key = Key::Address(*address);
                let taken = matches!(self.view(&key), Some(Entry::Lease(e)) if !e.is_free(issued) && !held_by_me(&Entry::Lease(e.clone())));
                open(*address) && !taken && !claimed.contains(&key)
            };
            pool.extents_ascending().flat_map(|extent| pool.addresses(extent)).find(free)
        })
    }

    pub(super) fn pick_block(
        &self,
        running: &Running,
        wanted: Option<Subnet>,
        have: &[Subnet],
    ) -> Option<Ipv4Addr> {
        let pool = Pool::new(self.network.document().subnet);
        let (from, issued) = (running.case.from, running.case.issued);
        let open = |base: &Ipv4Addr| {
            pool.may_block(*base)
                && !running.tried.contains(base)
                && have.iter().all(|block| block.base() != *base)
        };
        let last = self
            .acceptor
            .entries()
            .find_map(|(key, entry)| match (key, entry) {
                (Key::Extent(base), Entry::Lease(e)) if e.holder == from && open(base) => {
                    Some(*base)
                }
                _ => None,
            });
        wanted.map(Subnet::base).filter(open).or(last).or_else(|| {
            let claimed = self.planned_keys(running.id);
            pool.blocks_descending().find(|base| {
                let key = Key::Extent(*base);
                let taken = match self.view(&key) {
                    None => false,
                    Some(Entry::Lease(e)) => !e.is_free(issued),
                    Some(_) => true,
                };
                open(base) && !taken && !claimed.contains(&key)
            })
        })
    }

    /// What this node knows of a register without asking; enough to choose by, never to decide by.
    pub(super) fn view(&self, key: &Key) -> Option<&Entry> {
        self.learned
            .get(key)
            .into_iter()
            .chain(self.acceptor.accepted(key))
            .max_by_key(|(at, _)| *at)
            .map(|(_, entry)| entry)
    }

    /// Keys that other transactions under way here are after.
    pub(super) fn planned_keys(&self, except: u64) -> BTreeSet<Key> {
        self.running
            .values()
            .filter(|running| running.id != except)
            .flat_map(|running| running.plan.iter().cloned())
            .collect()
    }
}
