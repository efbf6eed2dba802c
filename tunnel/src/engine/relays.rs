//! The relays that this node uses: places at members are asked for and given up here, those at fabric nodes come from the
//! node. Which two are held ready is decided in [`crate::relay::choice`]; a member is held in reserve beside two fabric nodes; a
//! few more are had where a peer has its places and no relay is shared with it otherwise.

use super::PeerKey;
use crate::{
    path::{RelayKind, RelayOffer, RelayReach},
    relay::{
        BoundPlace, RelayClient, RelayGrant, RelayWay,
        choice::{self, Class, Offer, READY},
    },
};
use overlay_types::{Candidate, PathAddr, PeerId};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Places at members had because peers have theirs there. A peer may list what it likes, so they are few, and never with strangers.
const WANTED_MAX: usize = 4;
/// Ways in that lead through relays and are told to peers, who try four.
const LISTED_MAX: usize = 4;
/// Relays of fabric nodes shared with a peer without a direct path: they have places to give, and several may be lost at once.
const SHARED_MAX: usize = 3;
/// A place that was wanted is kept this long after it was last of use.
const WANTED_FOR: Duration = Duration::from_secs(60);
/// Smallest distance of two looks at all peers.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Fabric nodes take a moment to be found; members are asked only if two relays are still not there after this.
const SHORT_FOR: Duration = Duration::from_secs(3);
/// An unanswered question is asked again after this, and counts as refused after so many.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const ASKS_MAX: u32 = 5;
/// Who had no place for us, or took it back, is not asked again before this.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// Fabric nodes that the node was asked to get a place at, remembered so that it is not asked all the time.
const SOUGHT_MAX: usize = 16;
/// It is asked again after this, then after twice as long and so on up to [`REFUSED_FOR`], as long as there is need: it may not
/// have been connected to that one yet.
const SEEK_AGAIN: Duration = Duration::from_secs(3);

/// Another member, as far as relays are concerned.
pub(super) struct MemberView {
    pub(super) key: PeerKey,
    /// Whether and for whom it relays.
    pub(super) offer: RelayOffer,
    /// The path in use, with its round trip.
    pub(super) path: Option<(PathAddr, Duration)>,
    /// Where it has places, best first, as it said last and as its record says; empty where no relay is needed to reach it.
    pub(super) needs: [Vec<PeerId>; 2],
    /// Whose relay the path in use goes through last.
    pub(super) through: Option<PeerId>,
}

impl MemberView {
    /// Whether it is reached through relays only.
    fn is_needy(&self) -> bool {
        self.needs.iter().any(|list| !list.is_empty())
    }
}

/// Asked ──place──▶ Held ──lost──▶ Refused ──30 s──▶ asked again, if still of use
///    └──────no, or no answer────────▲
enum Place {
    Asked {
        of: PeerKey,
        asks: u32,
        next_at: Instant,
    },
    Held {
        of: PeerKey,
        index: u32,
        key: [u8; 32],
    },
    Refused {
        until: Instant,
    },
}

/// The relays that this node uses.
pub(super) struct Relays {
    pub(super) client: RelayClient,
    /// Places at fabric nodes, as the node told.
    fabric: Vec<RelayGrant>,
    /// Places at members.
    places: BTreeMap<PeerId, Place>,
    /// Held ready, best first.
    ready: Vec<PeerId>,
    /// A member, held beside fabric nodes while relays are needed: those may all be lost at once, and with them the way to
    /// tell a peer of other relays.
    reserve: Option<PeerId>,
    need: Option<Need>,
    /// Had because peers are there, and until when.
    wanted: BTreeMap<PeerId, Instant>,
    /// Fabric nodes the node was asked for.
    sought: BTreeMap<PeerId, Sought>,
    /// Those whose places are shared with peers that are reached through relays only, and until when they are kept for that.
    shared: BTreeMap<PeerId, Instant>,
    /// When members are asked, because there are too few fabric nodes.
    ask_members_at: Option<Instant>,
    /// Whether there were enough of them at some time.
    had_enough: bool,
    grants: Vec<RelayGrant>,
    looked_at: Option<Instant>,
    look_at: Option<Instant>,
}

/// When the node is asked for a fabric node's relay again, and how long it is left alone then.
struct Sought {
    again_at: Instant,
    pause: Duration,
}

/// Since when some peer is reached through relays only, and how long a member is held in reserve for that.
#[derive(Clone, Copy)]
struct Need {
    since: Instant,
    until: Instant,
}

impl Need {
    /// Whether it was more than the moment until a direct path is found.
    fn lasted(&self) -> bool {
        self.until >= self.since + SHORT_FOR + WANTED_FOR
    }
}

/// A place that a member gave: its number, and the key that proves whose it is.
pub(super) type Given = (u32, [u8; 32]);

/// What is to be done after a look.
#[derive(Default)]
pub(super) struct Look {
    /// Members to ask for a place.
    pub(super) asks: Vec<PeerKey>,
    /// Fabric nodes to get a place at.
    pub(super) seeks: Vec<PeerId>,
    /// Those whose places we can do without, the best to give up first.
    pub(super) idle: Vec<PeerId>,
}

impl Relays {
    pub(super) const fn new(client: RelayClient) -> Self {
        Self {
            client,
            fabric: Vec::new(),
            places: BTreeMap::new(),
            ready: Vec::new(),
            reserve: None,
            need: None,
            wanted: BTreeMap::new(),
            sought: BTreeMap::new(),
            shared: BTreeMap::new(),
            ask_members_at: None,
            had_enough: false,
            grants: Vec::new(),
            looked_at: None,
            look_at: None,
        }
    }

    /// The node's places at fabric nodes, replacing what was said before.
    pub(super) fn set_fabric(&mut self, grants: Vec<RelayGrant>, now: Instant) {
        self.fabric = grants;
        self.look_soon(now);
        // At once, for nothing else may be there yet.
        self.tell_grants(&[], now);
    }

    /// Something changed that may make other relays the right ones.
    pub(super) fn look_soon(&mut self, now: Instant) {
        let earliest = self.looked_at.map_or(now, |at| now.max(at + LOOK_PAUSE));
        self.look_at = Some(self.look_at.map_or(earliest, |at| at.min(earliest)));
    }

    /// Whether [`Self::look`] is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.look_at.is_some_and(|at| at <= now)
    }

    /// When to be called again, and what for.
    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let look = self.look_at.map(|at| (at, "choose relays"));
        let client = self.client.poll_timeout();
        look.into_iter().chain(client).min_by_key(|&(at, _)| at)
    }

    /// A member answered: with its place's number and key, or without.
    pub(super) fn handle_place(&mut self, of: PeerKey, place: Option<Given>, now: Instant) {
        let Some(known @ Place::Asked { .. }) = self.places.get_mut(&of.1) else {
            return; // nobody asked
        };
        *known = match place {
            Some((index, key)) => Place::Held { of, index, key },
            None => Place::Refused {
                until: now + REFUSED_FOR,
            },
        };
        self.look_soon(now);
    }

    /// A relay does not answer, or does not know us any more.
    pub(super) fn handle_lost(&mut self, way: RelayWay, now: Instant) {
        if let Some(place @ Place::Held { .. }) = self.places.get_mut(&way.via) {
            *place = Place::Refused {
                until: now + REFUSED_FOR,
            };
        }
        self.look_soon(now);
    }

    /// With a new session a member may be a new process, which knows nothing of places and may have some.
    pub(super) fn handle_session_up(&mut self, peer: PeerId, now: Instant) {
        if matches!(self.places.get(&peer), Some(Place::Refused { .. })) {
            self.places.remove(&peer);
        }
        self.look_soon(now);
    }

    /// Decides anew, from all that there is.
    pub(super) fn look(&mut self, members: &[MemberView], now: Instant) -> Look {
        self.looked_at = Some(now);
        let mut look = Look::default();
        let bound = self.client.bound();
        self.want(&bound, members, &mut look, now);
        let offers = self.offers(&bound, members, now);
        let held: Vec<PeerId> = self.ready.iter().copied().chain(self.reserve).collect();
        self.ready = choice::choose(&held, &offers);
        self.keep_reserve(&held, members, now);
        // Who is replaced while a path goes through it is kept until none does: it would forget us without a word.
        let in_use = |via: &PeerId| members.iter().any(|member| member.through == Some(*via));
        for via in held {
            if !self.uses(via) && self.places.contains_key(&via) && in_use(&via) {
                self.wanted.insert(via, now + WANTED_FOR);
            }
        }
        let mut places = std::mem::take(&mut self.places);
        places.retain(|via, place| {
            self.uses(*via) || matches!(place, Place::Refused { until } if *until > now)
        });
        self.places = places;
        let used: Vec<PeerId> = self
            .ready
            .iter()
            .chain(&self.reserve)
            .chain(self.wanted.keys())
            .copied()
            .collect();
        for via in used {
            self.ask(via, members, &mut look, now);
        }
        self.tell_grants(members, now);
        look.idle = self.idle(&bound);
        self.look_at = self.next_look(now);
        look
    }

    /// Whether this relay is held ready or in reserve, or had because peers are there.
    pub(super) fn uses(&self, via: PeerId) -> bool {
        self.ready.contains(&via) || self.reserve == Some(via) || self.wanted.contains_key(&via)
    }

    /// The ways in that lead through relays, best first. Those of fabric nodes that are not held ready cost nothing more, and peers
    /// know them already when others are lost.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let listed = self.listed(self.client.bound()).into_iter();
        listed.map(|place| place.candidate).collect()
    }

    /// Where there are more places than are told, those at relays that do not answer any more make room for others.
    fn listed(&self, mut bound: Vec<BoundPlace>) -> Vec<BoundPlace> {
        bound.retain(|place| !place.is_member || self.uses(place.way.via));
        let rank = |place: &BoundPlace| {
            let mut held = self.ready.iter().chain(&self.reserve);
            held.position(|via| *via == place.way.via)
                .unwrap_or(usize::MAX)
        };
        bound.sort_by_key(|place| (place.is_silent, rank(place)));
        bound.truncate(LISTED_MAX);
        bound.sort_by_key(rank);
        bound
    }

    /// Fabric nodes' places that are neither told to peers nor of use for one.
    fn idle(&self, bound: &[BoundPlace]) -> Vec<PeerId> {
        let listed = self.listed(bound.to_vec());
        let is_idle = |place: &&BoundPlace| {
            let via = place.way.via;
            let is_listed = listed.iter().any(|place| place.way.via == via);
            !place.is_member && !is_listed && !self.uses(via) && !self.shared.contains_key(&via)
        };
        let mut idle: Vec<_> = bound.iter().filter(is_idle).collect();
        idle.sort_by_key(|place| std::cmp::Reverse((place.is_silent, place.rtt)));
        idle.into_iter().map(|place| place.way.via).collect()
    }

    /// How the relays are reached where we are bound.
    pub(super) fn reaches(&self) -> BTreeMap<PeerId, RelayReach> {
        let bound = self.client.bound().into_iter();
        let reach = |place: BoundPlace| {
            let kind = match (place.is_member, place.way.carrier) {
                (true, _) => RelayKind::Member,
                (false, Some(_)) => RelayKind::Stream,
                (false, None) => RelayKind::Fabric,
            };
            (
                place.way.via,
                RelayReach {
                    at: place.reach,
                    kind,
                },
            )
        };
        bound.map(reach).collect()
    }

    /// Which relays may be held ready: those of fabric nodes that work, and members that could be asked.
    fn offers(&mut self, bound: &[BoundPlace], members: &[MemberView], now: Instant) -> Vec<Offer> {
        let fabric = bound.iter().filter(|place| !place.is_member);
        let mut offers: Vec<_> = fabric
            .map(|place| Offer {
                via: place.way.via,
                class: Class::Fabric,
                rtt: place.rtt,
            })
            .collect();
        if offers.len() >= READY {
            (self.ask_members_at, self.had_enough) = (None, true);
            return offers;
        }
        let wait = if self.had_enough {
            Duration::ZERO
        } else {
            SHORT_FOR
        };
        let ask_at = *self.ask_members_at.get_or_insert(now + wait);
        let is_held = |via: &PeerId| self.ready.contains(via) || self.reserve == Some(*via);
        let willing = self.willing(members, now);
        let due = willing.filter(|offer| now >= ask_at || is_held(&offer.via));
        offers.extend(due);
        offers
    }

    /// Members that would give a place, as far as is known, and that are reached directly; each once.
    fn willing(&self, members: &[MemberView], now: Instant) -> impl Iterator<Item = Offer> {
        let offer = |member: &MemberView| {
            let class = match member.offer {
                RelayOffer::None => return None,
                RelayOffer::Restricted => Class::Restricted,
                RelayOffer::Open => Class::Open,
            };
            let via = member.key.1;
            let (addr, rtt) = member.path?;
            let is_asked = matches!(addr, PathAddr::Direct(_)) && !self.is_refused(via, now);
            let rtt = (!rtt.is_zero()).then_some(rtt);
            is_asked.then_some((via, Offer { via, class, rtt }))
        };
        let offers: BTreeMap<_, _> = members.iter().rev().filter_map(offer).collect();
        offers.into_values()
    }

    /// While a peer is reached through relays only, and those are all fabric nodes': one of `held` if that can be, else a member
    /// that everybody reaches, best one where such a peer has its place already.
    fn keep_reserve(&mut self, held: &[PeerId], members: &[MemberView], now: Instant) {
        let needy: Vec<_> = members.iter().filter(|peer| peer.is_needy()).collect();
        self.need = if needy.iter().any(|peer| peer.path.is_some()) {
            let since = self.need.map_or(now, |need| need.since);
            let until = now + WANTED_FOR;
            Some(Need { since, until })
        } else {
            self.need.filter(|need| now < need.until && need.lasted())
        };
        let is_due = self.need.is_some_and(|need| now >= need.since + SHORT_FOR);
        let has_member = members
            .iter()
            .any(|member| self.ready.contains(&member.key.1));
        let is_there = |via| {
            needy
                .iter()
                .any(|peer| peer.needs.iter().flatten().any(|at| *at == via))
        };
        let rank = |offer: &Offer| {
            let (via, rtt) = (offer.via, offer.rtt.unwrap_or(Duration::MAX));
            (offer.class, !held.contains(&via), !is_there(via), rtt, via)
        };
        let best = self.willing(members, now).min_by_key(rank);
        self.reserve = best
            .filter(|_| is_due && !has_member)
            .map(|offer| offer.via);
    }

    fn is_refused(&self, via: PeerId, now: Instant) -> bool {
        matches!(self.places.get(&via), Some(Place::Refused { until }) if *until > now)
    }

    /// Which relays of peers we should have, too: without a direct path there should be two that are shared, a member's among
    /// them, for fabric nodes may all be lost at once, and of the fabric nodes' three.
    fn want(
        &mut self,
        bound: &[BoundPlace],
        members: &[MemberView],
        look: &mut Look,
        now: Instant,
    ) {
        self.sought
            .retain(|_, sought| now < sought.again_at + REFUSED_FOR);
        let mut needy: Vec<_> = members.iter().filter(|peer| peer.is_needy()).collect();
        needy.sort_by_key(|peer| peer.path.is_none()); // those who are there before those who may be away
        let is_member = |via: &PeerId| members.iter().any(|member| member.key.1 == *via);
        for peer in needy {
            let mut shared: Vec<PeerId> = peer.through.into_iter().collect();
            for list in &peer.needs {
                let (theirs, fabric): (Vec<_>, Vec<_>) =
                    list.iter().partition(|via| is_member(via));
                for (list, count) in [(list, READY), (&theirs, 1), (&fabric, SHARED_MAX)] {
                    shared.extend(self.share(list, count, bound, members, look, now));
                }
            }
            // What is shared is kept as long as it is needed.
            for via in shared {
                if let Some(until) = self.wanted.get_mut(&via) {
                    *until = now + WANTED_FOR;
                } else if bound.iter().any(|place| place.way.via == via) {
                    self.shared.insert(via, now + WANTED_FOR);
                }
            }
        }
        self.wanted.retain(|_, until| now < *until);
        self.shared.retain(|_, until| now < *until);
    }

    /// Sees to it that so many relays of a list are ours as well, as far as can be; gives those that are, or will be.
    fn share(
        &mut self,
        list: &[PeerId],
        count: usize,
        bound: &[BoundPlace],
        members: &[MemberView],
        look: &mut Look,
        now: Instant,
    ) -> Vec<PeerId> {
        let is_ours = |via: &&PeerId| match bound.iter().find(|place| place.way.via == **via) {
            Some(place) => !place.is_silent,
            None => self.uses(**via) && !self.is_refused(**via, now),
        };
        let mut shared: Vec<PeerId> = list.iter().filter(is_ours).copied().collect();
        for via in list {
            if shared.len() >= count {
                break;
            }
            if shared.contains(via) || bound.iter().any(|place| place.way.via == *via) {
                continue; // it is ours already, or does not answer
            }
            let relay = |member: &&MemberView| member.key.1 == *via;
            let mut relays = members.iter().filter(relay).peekable();
            let is_member = relays.peek().is_some();
            if relays.any(|relay| self.could_give(relay, now)) {
                if self.wanted.len() < WANTED_MAX {
                    self.wanted.insert(*via, now + WANTED_FOR);
                    shared.push(*via);
                }
            } else if !is_member {
                let was_sought = self.sought.contains_key(via);
                if !was_sought && self.sought.len() == SOUGHT_MAX {
                    continue;
                }
                let sought = self.sought.entry(*via).or_insert(Sought {
                    again_at: now,
                    pause: SEEK_AGAIN,
                });
                if sought.again_at <= now {
                    look.seeks.push(*via);
                    sought.again_at = now + sought.pause;
                    sought.pause = (sought.pause * 2).min(REFUSED_FOR);
                }
            }
        }
        shared
    }

    fn could_give(&self, member: &MemberView, now: Instant) -> bool {
        let path = member.path.and_then(|(addr, _)| addr.beyond(0));
        member.offer != RelayOffer::None && path.is_some() && !self.is_refused(member.key.1, now)
    }

    /// Asks a member for its place, where that is due.
    fn ask(&mut self, via: PeerId, members: &[MemberView], look: &mut Look, now: Instant) {
        let of = |member: &&MemberView| member.key.1 == via && self.could_give(member, now);
        let Some(member) = members.iter().find(of) else {
            return;
        };
        let fresh = Place::Asked {
            of: member.key,
            asks: 0,
            next_at: now,
        };
        let place = self.places.entry(via).or_insert(fresh);
        if matches!(place, Place::Refused { until } if *until <= now) {
            *place = Place::Asked {
                of: member.key,
                asks: 0,
                next_at: now,
            };
        }
        match place {
            Place::Asked { of, asks, next_at } if *next_at <= now && *asks < ASKS_MAX => {
                look.asks.push(*of);
                (*asks, *next_at) = (*asks + 1, now + ASK_AGAIN);
            }
            Place::Asked { next_at, .. } if *next_at <= now => {
                *place = Place::Refused {
                    until: now + REFUSED_FOR,
                };
            }
            _ => {}
        }
    }

    /// Has the client bound wherever there is a place for us.
    fn tell_grants(&mut self, members: &[MemberView], now: Instant) {
        let mut grants = self.fabric.clone();
        for (via, place) in &self.places {
            let Place::Held { of, index, key } = place else {
                continue;
            };
            let path = members.iter().find(|member| member.key == *of);
            let path = path.and_then(|member| member.path).map(|(addr, _)| addr);
            let before = self.grants.iter().find(|grant| grant.via == *via);
            let (relay, through) = match path {
                Some(PathAddr::Direct(relay)) => (relay, None),
                Some(PathAddr::Relayed { relay, index }) => (relay, Some(index)),
                // While the member's path is sought, the place is where it was.
                _ => match before {
                    Some(grant) => (grant.relay, grant.through),
                    None => continue,
                },
            };
            grants.push(RelayGrant {
                via: *via,
                relay,
                index: *index,
                key: *key,
                carrier: None,
                through,
                is_member: true,
            });
        }
        if grants != self.grants {
            self.client.set_grants(&grants, now);
            self.grants = grants;
        }
    }

    fn next_look(&self, now: Instant) -> Option<Instant> {
        let asks = self.places.values().filter_map(|place| match place {
            Place::Asked { next_at, .. } => Some(*next_at),
            Place::Refused { until } => Some(*until),
            Place::Held { .. } => None,
        });
        let need = self.need.map(|need| [need.since + SHORT_FOR, need.until]);
        let sought = self.sought.values().map(|sought| sought.again_at);
        asks.chain(self.ask_members_at)
            .chain(sought)
            .chain(need.into_iter().flatten())
            .chain(self.wanted.values().copied())
            .filter(|at| *at > now)
            .min()
    }
}
