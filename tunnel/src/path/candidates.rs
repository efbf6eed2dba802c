//! The ways in of both sides: what we list to the peer and whether it has the list, what the peer lists by its record
//! and in person, and which addresses come of it. Whether they work is found out elsewhere.

use super::selection::Tier;
use super::{CANDIDATES_MAX, ControlMessage, RelayKind, RelayOffer, RelayReach};
use crate::stun::NatBehaviour;
use overlay_types::{Candidate, PathAddr, PeerId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Relayed ways to one peer worth trying; two relays are common, four are plenty.
const RELAYED_MAX: usize = 4;

/// Waits between repeats of our list until the peer confirms it.
const REPEATS: [Duration; 6] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];

#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// This node.
    me: Option<PeerId>,
    local: Vec<Candidate>,
    /// How we reach the relays where we are bound.
    relays: BTreeMap<PeerId, RelayReach>,
    /// What our NAT does.
    local_nat: NatBehaviour,
    local_offer: RelayOffer,
    generation: u32,
    telling: Option<Telling>,
    /// From the signed node record.
    recorded: Vec<Candidate>,
    /// Told in person over the session, so fresher.
    told: Vec<Candidate>,
    /// What the peer's NAT does, as it said last.
    told_nat: NatBehaviour,
    told_offer: RelayOffer,
    told_generation: Option<u32>,
}

#[derive(Debug)]
struct Telling {
    repeats: usize,
    next_at: Instant,
    punch: bool,
}

impl Candidates {
    /// Who we are.
    pub(super) const fn set_me(&mut self, me: PeerId) {
        self.me = Some(me);
    }

    /// Says whether the list is a new one.
    pub(super) fn set_local(&mut self, list: &[Candidate]) -> bool {
        let mut list: Vec<_> = list.to_vec();
        list.truncate(CANDIDATES_MAX);
        let changed = list != self.local;
        if changed {
            self.generation = self.generation.wrapping_add(1);
            self.local = list;
        }
        changed
    }

    /// How we reach the relays where we are bound. Gives those that are now reached another way, with that way before.
    pub(super) fn set_relays(
        &mut self,
        relays: &BTreeMap<PeerId, RelayReach>,
    ) -> Vec<(PathAddr, PathAddr)> {
        let before = std::mem::replace(&mut self.relays, relays.clone());
        let moved = before.into_iter().filter_map(|(via, before)| {
            let now = self.relays.get(&via)?;
            (now.at != before.at).then_some((before.at, now.at))
        });
        moved.collect()
    }

    /// Says whether that is new to the peer.
    pub(super) fn set_local_nat(&mut self, nat: NatBehaviour) -> bool {
        // Whether it hairpins is known last, and tells a peer nothing.
        let nat = NatBehaviour {
            hairpin: None,
            ..nat
        };
        let changed = nat != self.local_nat;
        if changed {
            self.generation = self.generation.wrapping_add(1);
            self.local_nat = nat;
        }
        changed
    }

    /// Whether we relay; says whether that is new to the peer.
    pub(super) fn set_local_offer(&mut self, offer: RelayOffer) -> bool {
        let changed = offer != self.local_offer;
        if changed {
            self.generation = self.generation.wrapping_add(1);
            self.local_offer = offer;
        }
        changed
    }

    /// Whether the peer relays, as it said last.
    pub(super) const fn offer(&self) -> RelayOffer {
        self.told_offer
    }

    /// What our NAT does, and the peer's.
    pub(super) const fn nats(&self) -> (&NatBehaviour, &NatBehaviour) {
        (&self.local_nat, &self.told_nat)
    }

    /// How many ways in we list.
    pub(super) const fn local_count(&self) -> usize {
        self.local.len()
    }

    /// Where the outside sees the peer, if its NAT maps alike for everybody.
    pub(super) fn outside(&self) -> Vec<SocketAddr> {
        let mut found = Vec::new();
        for candidate in self.told.iter().chain(&self.recorded) {
            if let Candidate::Reflexive(addr) | Candidate::Mapped(addr) = *candidate
                && self.is_sane(addr)
                && !found.contains(&addr)
            {
                found.push(addr);
            }
        }
        if found.is_empty() {
            // A firewall instead of a NAT.
            let hosts = self.told.iter().filter_map(|candidate| match candidate {
                Candidate::Host(addr) if self.is_sane(*addr) => Some(*addr),
                _ => None,
            });
            found.extend(hosts);
        }
        found
    }

    /// Says whether the list is a new one.
    pub(super) fn set_recorded(&mut self, list: &[Candidate]) -> bool {
        let list: Vec<_> = list.iter().take(CANDIDATES_MAX).copied().collect();
        let changed = list != self.recorded;
        self.recorded = list;
        changed
    }

    /// A list came over the session; `None` when it is an old one, else whether it differs from the last.
    pub(super) fn handle_told(
        &mut self,
        generation: u32,
        nat: NatBehaviour,
        list: Vec<Candidate>,
        offer: RelayOffer,
    ) -> Option<bool> {
        if self
            .told_generation
            .is_some_and(|known| (generation.wrapping_sub(known) as i32) < 0)
        {
            return None;
        }
        self.told_generation = Some(generation);
        let changed = (&list, nat) != (&self.told, self.told_nat);
        (self.told, self.told_nat, self.told_offer) = (list, nat, offer);
        Some(changed)
    }

    /// With new keys the peer may be a new process that counts its lists from the beginning and has not seen ours.
    pub(super) fn handle_session_up(&mut self) {
        self.told_generation = None;
    }

    pub(super) fn handle_session_down(&mut self) {
        self.telling = None;
        self.told_generation = None;
    }

    /// Tells our list now, and again until it is confirmed.
    pub(super) fn tell(&mut self, punch: bool, now: Instant) -> ControlMessage {
        self.telling = Some(Telling {
            repeats: 0,
            next_at: now + REPEATS[0],
            punch,
        });
        self.message(punch)
    }

    pub(super) fn handle_seen(&mut self, generation: u32) {
        if generation == self.generation {
            self.telling = None;
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.telling.as_ref().map(|t| t.next_at)
    }

    /// Our list once more, when its confirmation is overdue.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<ControlMessage> {
        let telling = self.telling.as_mut().filter(|t| t.next_at <= now)?;
        let punch = telling.punch;
        telling.repeats += 1;
        match REPEATS.get(telling.repeats) {
            Some(wait) => telling.next_at = now + *wait,
            None => self.telling = None, // the path in use is watched by its own rules
        }
        Some(self.message(punch))
    }

    fn message(&self, punch: bool) -> ControlMessage {
        ControlMessage::Candidates {
            generation: self.generation,
            punch,
            nat: self.local_nat,
            list: self.local.clone(),
            relays: self.local_offer,
        }
    }

    /// Whether the peer's own last list has this address.
    pub(super) fn is_told(&self, addr: PathAddr) -> bool {
        self.told
            .iter()
            .any(|told| self.reachable(told) == Some(addr))
    }

    /// Every address worth trying, relays first because they work at once, at most [`CANDIDATES_MAX`].
    pub(super) fn remote(&self) -> Vec<(PathAddr, Tier)> {
        let mut found: Vec<(PathAddr, Tier)> = Vec::new();
        let listed = || self.told.iter().chain(&self.recorded);
        // Relays where we are bound ourselves are tried before others, which pass nothing on for us.
        let (shared, others): (Vec<_>, Vec<_>) =
            listed().partition(|candidate| self.shared_relay(candidate).is_some());
        for candidate in shared.into_iter().chain(others) {
            let Some(addr) = self.way_to(candidate) else {
                continue;
            };
            if found.iter().any(|(known, _)| *known == addr) {
                continue;
            }
            let tier = self.tier(addr, matches!(candidate, Candidate::Host(_)));
            let room = if tier.is_relayed() {
                RELAYED_MAX
            } else {
                CANDIDATES_MAX - RELAYED_MAX
            };
            let alike = |(_, known): &&(PathAddr, Tier)| known.is_relayed() == tier.is_relayed();
            if found.iter().filter(alike).count() < room {
                found.push((addr, tier));
            }
        }
        found.sort_by_key(|(_, tier)| !tier.is_relayed()); // stable: else in the order listed
        found
    }

    /// Whether something that the peer lists leads there.
    pub(super) fn lead_to(&self, addr: PathAddr) -> bool {
        let mut listed = self.told.iter().chain(&self.recorded);
        listed.any(|candidate| self.way_to(candidate) == Some(addr))
    }

    /// Where to send to reach the peer by what it lists, if that can lead there.
    fn way_to(&self, candidate: &Candidate) -> Option<PathAddr> {
        let addr = self.reachable(candidate)?;
        // LANs are numbered alike: what is one of ours leads nowhere else.
        let is_ours = matches!(addr, PathAddr::Direct(at) if self.is_ours(at));
        (!is_ours).then_some(addr)
    }

    /// Every way in that the peer lists, in person and by its record, and where to send for it, if it can lead there.
    pub(super) fn listed(&self) -> impl Iterator<Item = (Candidate, Option<PathAddr>)> {
        let all = self.told.iter().chain(&self.recorded);
        all.map(|candidate| (*candidate, self.way_to(candidate)))
    }

    /// Who runs the relay that a way leads through last, if the peer or we say so.
    pub(super) fn relay_of(&self, addr: PathAddr) -> Option<PeerId> {
        let (relay, _) = addr.last_relay()?;
        let ours = self.relays.iter().find(|(_, reach)| reach.at == relay);
        let listed = self.listed().find_map(|(candidate, at)| match candidate {
            Candidate::Relayed { via, .. } if at == Some(addr) => Some(via),
            _ => None,
        });
        ours.map(|(via, _)| *via).or(listed)
    }

    /// Whether we list this address ourselves.
    pub(super) fn is_ours(&self, addr: SocketAddr) -> bool {
        self.local
            .iter()
            .any(|c| c.path_addr() == PathAddr::Direct(addr))
    }

    /// The tier of an address that datagrams came from.
    pub(super) fn tier_of(&self, addr: PathAddr) -> Tier {
        let is_host =
            |c: &Candidate| matches!(c, Candidate::Host(a) if PathAddr::Direct(*a) == addr);
        self.tier(addr, self.told.iter().chain(&self.recorded).any(is_host))
    }

    fn tier(&self, addr: PathAddr, is_remote_host: bool) -> Tier {
        if addr.relays() == 0 {
            return Tier::straight(is_remote_host);
        }
        let first = PathAddr::Direct(addr.socket_addr());
        let mut reaches = self.relays.values();
        let kind = reaches
            .find(|reach| reach.at == first)
            .map(|reach| reach.kind);
        match (kind, addr.relays()) {
            (Some(RelayKind::Stream), _) => Tier::Stream,
            (_, 2..) => Tier::Chain,
            (Some(RelayKind::Member), _) => Tier::Member,
            (Some(RelayKind::Fabric) | None, _) => Tier::Relay,
        }
    }

    /// How we reach the relay of a candidate where we are bound too.
    fn shared_relay(&self, remote: &Candidate) -> Option<&RelayReach> {
        match remote {
            Candidate::Relayed { via, .. } => self.relays.get(via),
            _ => None,
        }
    }

    /// Relays where the peer is bound, best first, but not ourselves: as it said last, and as its record says. Either may be
    /// the newer one.
    pub(super) fn remote_relays(&self) -> [Vec<PeerId>; 2] {
        [&self.told, &self.recorded].map(|list| {
            let mut relays = Vec::new();
            for candidate in list {
                if let Candidate::Relayed { via, .. } = *candidate
                    && Some(via) != self.me
                    && !relays.contains(&via)
                {
                    relays.push(via);
                }
            }
            relays
        })
    }

    /// Where to send to reach a candidate. At a relay where we are bound too, the way that we have to it is the right one:
    /// the peer may reach the same relay over the other IP version, and we by a stream.
    fn reachable(&self, remote: &Candidate) -> Option<PathAddr> {
        match *remote {
            // What we relay for the peer does not lead to it from here.
            Candidate::Relayed { via, .. } if Some(via) == self.me => None,
            Candidate::Relayed { via, index, .. } if self.relays.contains_key(&via) => {
                self.relays[&via].at.beyond(index)
            }
            _ => Some(remote.path_addr()).filter(|addr| self.is_sane(addr.socket_addr())),
        }
    }

    /// Addresses that a confused or hostile peer could list to make us talk to what is not a peer.
    pub(super) fn is_sane(&self, addr: SocketAddr) -> bool {
        let ip = addr.ip();
        let is_link_local = matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
        let is_broadcast = matches!(ip, std::net::IpAddr::V4(v4) if v4.is_broadcast());
        let speaks_loopback = || {
            self.local
                .iter()
                .any(|c| c.path_addr().socket_addr().ip().is_loopback())
        };
        addr.port() != 0
            && !ip.is_unspecified()
            && !ip.is_multicast()
            && !is_broadcast
            && !is_link_local // means nothing without our interface's number
            && (!ip.is_loopback() || speaks_loopback())
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use overlay_types::PeerId;

    fn host(n: u8) -> Candidate {
        Candidate::Host(([192, 0, 2, n], 7000).into())
    }
    fn relayed(relay: &str, index: u32) -> Candidate {
        Candidate::Relayed {
            via: PeerId([9; 32]),
            relay: relay.parse().unwrap(),
            index,
        }
    }

    #[test]
    fn ways_in_are_bounded_and_relays_come_first() {
        let mut c = Candidates::default();
        c.set_recorded(&(0..16).map(host).collect::<Vec<_>>());
        c.handle_told(
            1,
            NatBehaviour::default(),
            vec![host(1), relayed("198.51.100.1:7000", 5)],
            RelayOffer::None,
        );
        let remote = c.remote();
        assert_eq!(remote[0].1, Tier::Relay);
        assert_eq!(remote.len(), 1 + CANDIDATES_MAX - RELAYED_MAX);
    }

    #[test]
    fn an_address_that_is_ours_as_well_is_no_way_to_the_peer() {
        let mut c = Candidates::default();
        c.set_local(&[host(1), relayed("198.51.100.1:7000", 4)]);
        c.set_recorded(&[host(1), host(2), relayed("198.51.100.1:7000", 5)]);
        let remote: Vec<_> = c.remote().into_iter().map(|(addr, _)| addr).collect();
        let [relayed, direct] = [relayed("198.51.100.1:7000", 5), host(2)].map(|c| c.path_addr());
        assert_eq!(remote, [relayed, direct]);
    }

    #[test]
    fn a_shared_relay_is_reached_at_the_address_that_we_use() {
        let mut c = Candidates::default();
        c.set_recorded(&[relayed("[2001:db8::1]:7000", 5)]);
        let ways = [
            ("198.51.100.1:7000", RelayKind::Fabric, Tier::Relay),
            ("127.0.0.1:40000", RelayKind::Stream, Tier::Stream),
            ("198.51.100.9:41000", RelayKind::Member, Tier::Member),
        ];
        let mut before = None;
        for (at, kind, tier) in ways {
            let at = at.parse().unwrap();
            let reach = RelayReach {
                at: PathAddr::Direct(at),
                kind,
            };
            let moved = c.set_relays(&[(PeerId([9; 32]), reach)].into());
            assert_eq!(
                moved,
                before
                    .map(|b| (b, reach.at))
                    .into_iter()
                    .collect::<Vec<_>>()
            );
            before = Some(reach.at);
            let addr = PathAddr::Relayed {
                relay: at,
                index: 5,
            };
            assert_eq!(c.remote(), [(addr, tier)]);
        }
    }

    #[test]
    fn addresses_that_cannot_be_a_peer_are_left_alone() {
        let mut c = Candidates::default();
        let list = [
            "0.0.0.0:1",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "192.0.2.1:0",
            "127.0.0.1:53",
            "[fe80::1]:1",
        ];
        c.set_recorded(&list.map(|a| Candidate::Host(a.parse().unwrap())));
        assert_eq!(c.remote(), []);
        c.set_local(&[Candidate::Host("127.0.0.1:7000".parse().unwrap())]);
        assert_eq!(c.remote().len(), 1); // whoever runs on loopback may meet others there
    }

    #[test]
    fn an_old_list_does_not_replace_a_newer_one() {
        let mut c = Candidates::default();
        assert_eq!(
            c.handle_told(7, NatBehaviour::default(), vec![host(1)], RelayOffer::None),
            Some(true)
        );
        assert_eq!(
            c.handle_told(6, NatBehaviour::default(), vec![host(2)], RelayOffer::None),
            None
        );
        assert_eq!(
            c.handle_told(7, NatBehaviour::default(), vec![host(1)], RelayOffer::None),
            Some(false)
        );
        c.handle_session_up();
        assert_eq!(
            c.handle_told(1, NatBehaviour::default(), vec![host(3)], RelayOffer::None),
            Some(true)
        );
    }

    #[test]
    fn our_list_is_repeated_until_confirmed_and_not_for_ever() {
        let (mut c, mut now) = (Candidates::default(), Instant::now());
        c.set_local(&[host(1)]);
        c.tell(true, now);
        let mut repeats = 0;
        while let Some(at) = c.due() {
            now = at;
            assert!(c.handle_timeout(now).is_some());
            repeats += 1;
        }
        assert_eq!(repeats, REPEATS.len());
        let ControlMessage::Candidates { generation, .. } = c.tell(false, now) else {
            unreachable!()
        };
        c.handle_seen(generation);
        assert_eq!(c.due(), None);
    }
}
