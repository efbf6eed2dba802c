//! What is known of a network's members: their certificates and newest records, and from these who has which address
//! and name. Only verified input gets in; conflicting claims go by the certificates' generations.

use crate::lease::{LeaseCert, Subject};
use crate::membership::MembershipCert;
use crate::message::{ROSTER_PAGE, RosterPage};
use crate::network::Network;
use crate::record::{Guest, NodeRecord};
use crate::signed::Verified;
use overlay_types::{Binding, DhcpMode, Location, MacAddr, Name, PeerId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;

/// The most members that a node keeps track of.
pub const MEMBERS_MAX: usize = 4096;

/// What became of what was offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectoryCounters {
    /// Records taken.
    pub records: u64,
    /// Records no newer than the one we have.
    pub records_old: u64,
    /// Records or certificates that prove nothing.
    pub refused: u64,
    /// Dropped because [`MEMBERS_MAX`] are known.
    pub full: u64,
}

/// Why something is not taken.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotTaken {
    /// For another network, or against its own bounds.
    #[error("the record is not a sound record of this network")]
    Unsound,
    /// No membership.
    #[error(transparent)]
    NotAMember(#[from] crate::membership::NotAMember),
    /// A lease inside is not genuine or not the author's.
    #[error("a lease in the record is not its author's")]
    Lease,
    /// Over.
    #[error("the record has expired")]
    Expired,
    /// Too many members.
    #[error("the directory is full")]
    Full,
}

#[derive(Debug)]
struct Member {
    cert: MembershipCert,
    /// The roster's version at which it came or changed.
    version: u64,
    record: Option<Arc<Verified<NodeRecord>>>,
}

/// A network's members as this node knows them.
#[derive(Debug)]
pub struct Directory {
    me: PeerId,
    network: Network,
    members: BTreeMap<PeerId, Member>,
    version: u64,
    /// Whose records came since somebody asked for news.
    news: BTreeSet<PeerId>,
    /// `None` when it has to be made out anew.
    stations: Option<Stations>,
    counters: DirectoryCounters,
}

/// Where the stations of other nodes are.
#[derive(Debug)]
struct Stations {
    bindings: Vec<Binding>,
    /// The Unix seconds in which the same leases are usable.
    holds: Range<u64>,
    /// Whether two nodes claim an address: then a newer record may win though it claims what it did before.
    are_contested: bool,
}

/// Who has an address or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The node that has it, or that the guest is behind.
    pub peer: PeerId,
    /// The address.
    pub address: IpAddr,
    /// The station.
    pub mac: MacAddr,
    /// The name.
    pub name: Option<Name>,
    /// The guest, where it is one.
    pub guest: Option<Guest>,
}

/// One address of one station, as a record says.
#[derive(Clone)]
struct Claim<'a> {
    ip: IpAddr,
    mac: MacAddr,
    name: Option<&'a Name>,
    generation: u64,
    guest: Option<&'a Guest>,
    record: &'a NodeRecord,
}

impl Claim<'_> {
    /// The higher generation refutes the lower; where nothing is leased, the last word counts.
    const fn strength(&self) -> (u64, u64, PeerId) {
        (self.generation, self.record.seq, self.record.peer)
    }

    fn found(self) -> Found {
        Found {
            peer: self.record.peer,
            address: self.ip,
            mac: self.mac,
            name: self.name.cloned(),
            guest: self.guest.cloned(),
        }
    }
}

impl Directory {
    /// An empty directory of `network`, kept by `me`.
    pub const fn new(me: PeerId, network: Network) -> Self {
        let counters = DirectoryCounters {
            records: 0,
            records_old: 0,
            refused: 0,
            full: 0,
        };
        Self {
            me,
            network,
            members: BTreeMap::new(),
            version: 0,
            news: BTreeSet::new(),
            stations: None,
            counters,
        }
    }

    /// The network.
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// Takes a membership certificate. `Ok(true)` when it is news.
    ///
    /// # Errors
    /// [`NotTaken`]; counted.
    pub fn insert_member(&mut self, cert: MembershipCert, unix: u64) -> Result<bool, NotTaken> {
        if let Some(known) = self.members.get(&cert.member)
            && known.cert.expires >= cert.expires
        {
            return Ok(false);
        }
        if let Err(reason) = self.network.verify_membership(&cert, unix) {
            self.counters.refused += 1;
            return Err(reason.into());
        }
        self.keep_member(cert)
    }

    /// Takes a certificate that was checked, if it is news.
    fn keep_member(&mut self, cert: MembershipCert) -> Result<bool, NotTaken> {
        if let Some(known) = self.members.get(&cert.member)
            && known.cert.expires >= cert.expires
        {
            return Ok(false);
        }
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&cert.member) {
            self.counters.full += 1;
            return Err(NotTaken::Full);
        }
        self.version += 1;
        let version = self.version;
        match self.members.get_mut(&cert.member) {
            Some(known) => {
                known.cert = cert;
                known.version = version;
            }
            None => {
                self.members.insert(
                    cert.member,
                    Member {
                        cert,
                        version,
                        record: None,
                    },
                );
            }
        }
        Ok(true)
    }

    /// Takes a node record and the membership inside. `Ok(true)` when it is news.
    ///
    /// # Errors
    /// [`NotTaken`]; counted.
    pub fn insert(
        &mut self,
        record: impl Into<Arc<Verified<NodeRecord>>>,
        unix: u64,
    ) -> Result<bool, NotTaken> {
        let record = record.into();
        let author = record.author();
        if let Some(known) = self.get(author)
            && known.seq >= record.seq
        {
            self.counters.records_old += 1;
            return Ok(false);
        }
        if let Err(reason) = self.check(&record, unix) {
            self.counters.refused += 1;
            return Err(reason);
        }
        self.keep_member(record.membership.clone())?;
        let claims_as_before = self
            .get(author)
            .is_some_and(|known| known.leases == record.leases && known.guests == record.guests);
        self.stations
            .take_if(|stations| stations.are_contested || !claims_as_before);
        self.news.insert(author);
        let member = self
            .members
            .get_mut(&author)
            .expect("it was inserted, or was there already");
        member.record = Some(record);
        self.counters.records += 1;
        Ok(true)
    }

    fn check(&self, record: &Verified<NodeRecord>, unix: u64) -> Result<(), NotTaken> {
        if record.network != self.network.id() || !record.is_sound(record.author()) {
            return Err(NotTaken::Unsound);
        }
        if record.expires <= unix {
            return Err(NotTaken::Expired);
        }
        // Certificates that stood in the record before were checked then: signatures are what a record costs.
        let known = self.get(record.author());
        let is_known_member = known.is_some_and(|known| {
            known.membership == record.membership && record.membership.expires > unix
        });
        if !is_known_member {
            self.network.verify_membership(&record.membership, unix)?;
        }
        let own = |cert: &LeaseCert| {
            let is_known = known.is_some_and(|known| known.leases.contains(cert));
            is_known || cert.holder == record.author() && self.network.verify_lease(cert).is_ok()
        };
        if record.leases.iter().all(own) {
            Ok(())
        } else {
            Err(NotTaken::Lease)
        }
    }

    /// Forgets members whose certificate is over, and records that are. `true` when something went.
    pub fn expire(&mut self, unix: u64) -> bool {
        let before = self.members.len();
        let mut dropped = false;
        self.members.retain(|_, member| member.cert.expires > unix);
        for member in self.members.values_mut() {
            if member
                .record
                .as_ref()
                .is_some_and(|record| record.expires <= unix)
            {
                member.record = None;
                dropped = true;
            }
        }
        let went = dropped || self.members.len() != before;
        self.stations.take_if(|_| went);
        went
    }

    /// Forgets one member, on its revocation.
    pub fn remove(&mut self, peer: PeerId) -> bool {
        self.news.remove(&peer);
        self.stations = None;
        self.members.remove(&peer).is_some()
    }

    /// The newest record of `peer`.
    pub fn get(&self, peer: PeerId) -> Option<&Verified<NodeRecord>> {
        self.members.get(&peer)?.record.as_deref()
    }

    /// The membership of `peer`.
    pub fn member(&self, peer: PeerId) -> Option<&MembershipCert> {
        self.members.get(&peer).map(|member| &member.cert)
    }

    /// Every member, this node too if it is known.
    pub fn members(&self) -> impl Iterator<Item = &MembershipCert> {
        self.members.values().map(|member| &member.cert)
    }

    /// The newest records of all other members.
    pub fn peers(&self) -> impl Iterator<Item = &Arc<Verified<NodeRecord>>> {
        self.records().filter(|record| record.peer != self.me)
    }

    /// The newest records of all members.
    fn records(&self) -> impl Iterator<Item = &Arc<Verified<NodeRecord>>> {
        let members = self.members.values();
        members.filter_map(|member| member.record.as_ref())
    }

    /// The records of other members that came since the last call, as far as they are still there.
    pub fn take_news(&mut self) -> Vec<Arc<Verified<NodeRecord>>> {
        let news = std::mem::take(&mut self.news);
        let others = news.into_iter().filter(|peer| *peer != self.me);
        let record = |peer| self.members.get(&peer)?.record.clone();
        others.filter_map(record).collect()
    }

    /// Members of whom no record is known: their slots are to be looked up.
    pub fn unknown(&self) -> impl Iterator<Item = PeerId> {
        self.members
            .iter()
            .filter(|(peer, member)| **peer != self.me && member.record.is_none())
            .map(|(peer, _)| *peer)
    }

    /// Whose data key this is.
    pub fn by_data_key(&self, x25519: &[u8; 32]) -> Option<PeerId> {
        self.peers()
            .find(|record| record.keys.x25519 == *x25519)
            .map(|record| record.peer)
    }

    /// One page of the roster.
    pub fn roster(&self, since: u64) -> RosterPage {
        let mut changed: Vec<_> = self
            .members
            .values()
            .filter(|member| member.version > since)
            .collect();
        changed.sort_by_key(|member| member.version);
        let more = changed.len() > ROSTER_PAGE;
        changed.truncate(ROSTER_PAGE);
        let next = changed
            .last()
            .map_or(since.min(self.version), |member| member.version);
        RosterPage {
            members: changed
                .into_iter()
                .map(|member| member.cert.clone())
                .collect(),
            next,
            more,
        }
    }

    /// The address of the node `peer` itself.
    pub fn address_of(&self, peer: PeerId, unix: u64) -> Option<Ipv4Addr> {
        let record = self.get(peer)?;
        let own = |cert: &&LeaseCert| cert.mac == Some(peer.host_mac()) && cert.is_usable_at(unix);
        record
            .leases
            .iter()
            .filter(own)
            .find_map(|cert| match cert.subject {
                Subject::Address(address) => Some(address),
                Subject::Block(_) => None,
            })
    }

    /// Where every known station of other nodes is; of two claims to one address the better one. Made out anew only where a
    /// claim came, went or changed since: most records say the same of stations as the ones before them.
    pub fn bindings(&mut self, unix: u64) -> &[Binding] {
        self.stations
            .take_if(|stations| !stations.holds.contains(&unix));
        let stations = match self.stations.take() {
            Some(stations) => stations,
            None => self.stations_at(unix),
        };
        &self.stations.insert(stations).bindings
    }

    fn stations_at(&self, unix: u64) -> Stations {
        let mut best: BTreeMap<IpAddr, Claim<'_>> = BTreeMap::new();
        let mut are_contested = false;
        for claim in self.claims(unix) {
            match best.entry(claim.ip) {
                Entry::Vacant(free) => {
                    free.insert(claim);
                }
                Entry::Occupied(mut held) => {
                    are_contested |= claim.record.peer != held.get().record.peer;
                    if claim.strength() > held.get().strength() {
                        held.insert(claim);
                    }
                }
            }
        }
        let others = best
            .into_values()
            .filter(|claim| claim.record.peer != self.me);
        let bindings = others.map(|claim| Binding {
            ip: claim.ip,
            mac: claim.mac,
            location: Location::Peer(claim.record.peer),
        });
        let ends = self
            .records()
            .flat_map(|record| record.leases.iter().map(|cert| cert.usable_until()))
            .filter(|end| unix < *end);
        Stations {
            bindings: bindings.collect(),
            holds: unix..ends.min().unwrap_or(u64::MAX),
            are_contested,
        }
    }

    /// Who has `address`.
    pub fn by_address(&self, address: IpAddr, unix: u64) -> Option<Found> {
        self.claims(unix)
            .filter(|claim| claim.ip == address)
            .max_by_key(Claim::strength)
            .map(Claim::found)
    }

    /// Whose leases cover `address`, by the records we have: whoever has it, though no binding is known, is likely among them.
    pub fn likely_holders(&self, address: Ipv4Addr, unix: u64) -> Vec<PeerId> {
        let covers = |cert: &LeaseCert| {
            cert.is_usable_at(unix)
                && match cert.subject {
                    Subject::Address(leased) => leased == address,
                    Subject::Block(block) => block.contains(address),
                }
        };
        let covering = self
            .peers()
            .filter(|record| record.leases.iter().any(covers));
        covering.map(|record| record.peer).collect()
    }

    /// Who has `name`: a node before a guest, an IPv4 address before an IPv6 one.
    pub fn by_name(&self, name: &Name, unix: u64) -> Option<Found> {
        let rank = |claim: &Claim<'_>| {
            (
                claim.guest.is_none(),
                claim.ip.is_ipv4(),
                claim.generation,
                Reverse(claim.record.peer),
            )
        };
        self.claims(unix)
            .filter(|claim| claim.name == Some(name))
            .max_by_key(rank)
            .map(Claim::found)
    }

    /// Everything that the records claim and their certificates bear out.
    fn claims(&self, unix: u64) -> impl Iterator<Item = Claim<'_>> {
        self.records().flat_map(move |record| {
            let peer = record.peer;
            let own6 = Claim {
                ip: peer.address6(self.network.id()).into(),
                mac: peer.host_mac(),
                name: Some(&record.membership.name),
                generation: u64::MAX, // from its key: nobody else's
                guest: None,
                record,
            };
            let usable = move |cert: &&LeaseCert| cert.is_usable_at(unix);
            let leased = record.leases.iter().filter(usable).filter_map(move |cert| {
                match (cert.subject, cert.mac) {
                    (Subject::Address(address), Some(mac)) => Some(Claim {
                        ip: address.into(),
                        mac,
                        name: cert.name.as_ref(),
                        generation: cert.generation,
                        guest: None,
                        record,
                    }),
                    _ => None,
                }
            });
            let guests = record.guests.iter().filter_map(move |guest| {
                let generation = self.right_to(record, guest, unix)?;
                let (ip, mac, name) = (guest.ip.to_canonical(), guest.mac, guest.name.as_ref());
                Some(Claim {
                    ip,
                    mac,
                    name,
                    generation,
                    guest: Some(guest),
                    record,
                })
            });
            std::iter::once(own6).chain(leased).chain(guests)
        })
    }

    /// The generation of the lease that lets `guest` have its address; 0 where addresses are not leased by us.
    fn right_to(&self, record: &NodeRecord, guest: &Guest, unix: u64) -> Option<u64> {
        if !guest.mac.is_station() {
            return None;
        }
        match guest.ip.to_canonical() {
            IpAddr::V6(ip) => (ip.octets()[..8] == self.network.id().ula_prefix()).then_some(0),
            IpAddr::V4(ip) => {
                let covers = |cert: &&LeaseCert| {
                    cert.is_usable_at(unix)
                        && cert.subject.covers(ip)
                        && cert.mac.is_none_or(|mac| mac == guest.mac)
                };
                let leased = record
                    .leases
                    .iter()
                    .find(covers)
                    .map(|cert| cert.generation);
                leased.or_else(|| (self.network.document().dhcp != DhcpMode::Overlay).then_some(0))
            }
        }
    }

    /// What became of what was offered.
    pub const fn counters(&self) -> DirectoryCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::testing::{Lab, NOW, name, signed};

    fn guest(n: u8, ip: Ipv4Addr) -> Guest {
        Guest {
            mac: MacAddr([2, 0, 0, 0, 0, n]),
            ip: ip.into(),
            name: Some(name(&format!("vm-{n}"))),
        }
    }

    #[test]
    fn a_peers_record_tells_its_addresses_and_those_of_its_guests() {
        let mut lab = Lab::new("10.77.0.0/16", DhcpMode::Overlay);
        let (peer, membership) = lab.member("a");
        let leases = vec![
            lab.claim(&peer, Some("a")).unwrap(),
            lab.claim_block(&peer).unwrap(),
        ];
        let Subject::Block(block) = leases[1].subject else {
            panic!("asked for a block")
        };
        let inside = guest(1, Ipv4Addr::from(u32::from(block.base()) + 3));
        let outside = guest(2, Ipv4Addr::new(10, 77, 9, 9));
        let record = lab.record(
            &peer,
            &membership,
            leases,
            vec![inside.clone(), outside.clone()],
        );
        let mut directory = Directory::new(lab.owner.peer_id(), lab.network.clone());

        assert_eq!(
            directory.insert(signed(record.clone(), &peer), NOW),
            Ok(true)
        );
        assert_eq!(directory.insert(signed(record, &peer), NOW), Ok(false));

        let address = Ipv4Addr::new(10, 77, 0, 1);
        assert_eq!(directory.address_of(peer.peer_id(), NOW), Some(address));
        assert_eq!(
            directory.by_address(address.into(), NOW).unwrap().peer,
            peer.peer_id()
        );
        assert_eq!(directory.by_name(&name("a"), NOW).unwrap().address, address);
        assert_eq!(
            directory.by_name(&name("vm-1"), NOW).unwrap().guest,
            Some(inside)
        );
        assert_eq!(
            directory.by_address(outside.ip, NOW),
            None,
            "no certificate covers it"
        );
        assert_eq!(
            directory.bindings(NOW).len(),
            3,
            "host IPv4 and IPv6, one guest"
        );
        assert_eq!(
            directory.by_data_key(&peer.peer_id().0),
            Some(peer.peer_id())
        );
        // A lease that ran out says nothing any more.
        assert_eq!(directory.by_address(address.into(), NOW + 24 * 3600), None);
    }

    #[test]
    fn of_two_claims_the_higher_generation_wins() {
        let mut lab = Lab::new("10.77.0.0/30", DhcpMode::Overlay);
        let ((a, member_a), (b, member_b)) = (lab.member("a"), lab.member("b"));
        let (first, other) = (
            lab.claim(&a, None).unwrap(),
            lab.claim(&lab.owner.clone(), None).unwrap(),
        );
        assert_ne!(first.subject, other.subject);
        let release = first.release(&a, NOW).signed().clone();
        lab.ask(&a, crate::lease::Transaction::Release(release));
        let second = lab.claim(&b, None).unwrap();
        assert_eq!((second.subject, second.generation), (first.subject, 2));
        let mut directory = Directory::new(lab.owner.peer_id(), lab.network.clone());

        let old = signed(lab.record(&a, &member_a, vec![first.clone()], vec![]), &a);
        let new = signed(lab.record(&b, &member_b, vec![second], vec![]), &b);
        directory.insert(new, NOW).unwrap();
        directory.insert(old, NOW).unwrap();

        let Subject::Address(address) = first.subject else {
            panic!("asked for an address")
        };
        assert_eq!(
            directory.by_address(address.into(), NOW).unwrap().peer,
            b.peer_id()
        );
        let binding = directory
            .bindings(NOW)
            .iter()
            .find(|binding| binding.ip == address)
            .unwrap();
        assert_eq!(binding.location, Location::Peer(b.peer_id()));
    }

    #[test]
    fn where_the_lan_serves_addresses_the_last_word_counts() {
        let mut lab = Lab::new("192.168.7.0/24", DhcpMode::Lan);
        let ((a, member_a), (b, member_b)) = (lab.member("a"), lab.member("b"));
        let moved = guest(1, Ipv4Addr::new(192, 168, 7, 50));
        let mut directory = Directory::new(lab.owner.peer_id(), lab.network.clone());
        directory
            .insert(
                signed(lab.record(&b, &member_b, vec![], vec![moved.clone()]), &b),
                NOW,
            )
            .unwrap();
        lab.unix += 5;
        directory
            .insert(
                signed(lab.record(&a, &member_a, vec![], vec![moved.clone()]), &a),
                NOW,
            )
            .unwrap();

        assert_eq!(
            directory.by_address(moved.ip, NOW).unwrap().peer,
            a.peer_id()
        );
    }

    #[test]
    fn what_was_made_out_of_the_stations_follows_every_claim() {
        let mut lab = Lab::new("192.168.7.0/24", DhcpMode::Lan);
        let ((a, member_a), (b, member_b)) = (lab.member("a"), lab.member("b"));
        let shared = guest(1, Ipv4Addr::new(192, 168, 7, 50));
        let mut directory = Directory::new(lab.owner.peer_id(), lab.network.clone());
        let mut say =
            |directory: &mut Directory, who: &Identity, of, leases: Vec<LeaseCert>, guests| {
                lab.unix += 5;
                let record = signed(lab.record(who, of, leases, guests), who);
                assert_eq!(directory.insert(record, NOW), Ok(true));
            };
        let holder = |directory: &mut Directory| {
            let bindings = directory.bindings(NOW);
            let found = bindings.iter().find(|binding| binding.ip == shared.ip)?;
            match found.location {
                Location::Peer(peer) => Some(peer),
                Location::Port(_) => None,
            }
        };

        say(&mut directory, &a, &member_a, vec![], vec![]);
        assert_eq!(holder(&mut directory), None);
        let guests = || vec![shared.clone()];
        say(&mut directory, &a, &member_a, vec![], guests());
        assert_eq!(holder(&mut directory), Some(a.peer_id()));
        say(&mut directory, &b, &member_b, vec![], guests());
        assert_eq!(holder(&mut directory), Some(b.peer_id()), "the last word");
        say(&mut directory, &a, &member_a, vec![], guests());
        assert_eq!(holder(&mut directory), Some(a.peer_id()), "said once more");
        say(&mut directory, &a, &member_a, vec![], vec![]);
        assert_eq!(holder(&mut directory), Some(b.peer_id()));
        assert!(directory.remove(b.peer_id()));
        assert_eq!(holder(&mut directory), None);
    }

    #[test]
    fn a_lease_that_runs_out_binds_nothing_any_more() {
        let mut lab = Lab::new("10.77.0.0/16", DhcpMode::Overlay);
        let (peer, membership) = lab.member("a");
        let lease = lab.claim(&peer, Some("a")).unwrap();
        let end = lease.usable_until();
        let mut record = lab.record(&peer, &membership, vec![lease], vec![]);
        record.expires = end + 3600;
        let mut directory = Directory::new(lab.owner.peer_id(), lab.network.clone());
        directory.insert(signed(record, &peer), NOW).unwrap();

        assert_eq!(directory.bindings(NOW).len(), 2, "IPv4 and IPv6");
        assert_eq!(directory.bindings(end - 1).len(), 2);
        assert_eq!(directory.bindings(end).len(), 1);
        assert_eq!(
            directory.bindings(end - 1).len(),
            2,
            "a clock that was set back"
        );
        assert!(directory.expire(end + 3600));
        assert_eq!(directory.bindings(NOW).len(), 0);
    }

    #[test]
    fn what_is_not_borne_out_stays_outside() {
        let mut lab = Lab::new("10.77.0.0/16", DhcpMode::Overlay);
        let ((a, member_a), (b, member_b)) = (lab.member("a"), lab.member("b"));
        let of_a = lab.claim(&a, None).unwrap();
        let mut directory = Directory::new(lab.owner.peer_id(), lab.network.clone());

        let stolen_lease = lab.record(&b, &member_b, vec![of_a], vec![]);
        assert_eq!(
            directory.insert(signed(stolen_lease, &b), NOW),
            Err(NotTaken::Lease)
        );
        let stolen_membership = lab.record(&b, &member_a, vec![], vec![]);
        assert_eq!(
            directory.insert(signed(stolen_membership, &b), NOW),
            Err(NotTaken::Unsound)
        );
        let mut promoted = member_b.clone();
        promoted.body.roles = crate::membership::Roles::OWNER;
        let refused = directory.insert(signed(lab.record(&b, &promoted, vec![], vec![]), &b), NOW);
        assert!(matches!(refused, Err(NotTaken::NotAMember(_))));
        let late = signed(lab.record(&b, &member_b, vec![], vec![]), &b);
        assert_eq!(directory.insert(late, NOW + 7200), Err(NotTaken::Expired));
        assert_eq!(
            (directory.counters().refused, directory.members().count()),
            (4, 0)
        );
    }

    #[test]
    fn a_roster_is_read_page_by_page_and_then_only_what_changed() {
        let mut lab = Lab::new("10.77.0.0/16", DhcpMode::Overlay);
        let mut directory = Directory::new(lab.owner.peer_id(), lab.network.clone());
        let token = lab.token(crate::membership::Roles::DEFAULT, 200);
        for n in 0..ROSTER_PAGE + 2 {
            let who = crate::identity::Identity::generate(&mut lab.rng);
            let cert = lab.admit(&who, token.clone(), &format!("n{n}")).unwrap();
            directory.insert_member(cert, NOW).unwrap();
        }

        let first = directory.roster(0);
        let second = directory.roster(first.next);
        assert_eq!((first.members.len(), first.more), (ROSTER_PAGE, true));
        assert_eq!((second.members.len(), second.more), (2, false));
        assert_eq!(directory.roster(second.next).members, []);
        assert_eq!(directory.unknown().count(), ROSTER_PAGE + 2);
        let page = crate::message::Response::Roster(first).encode();
        assert!(
            page.len() < crate::message::MESSAGE_MAX,
            "{} bytes",
            page.len()
        );

        assert!(directory.expire(NOW + crate::membership::MEMBERSHIP_SECONDS));
        assert_eq!(directory.members().count(), 0);
    }
}
