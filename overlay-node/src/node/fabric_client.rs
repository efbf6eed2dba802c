//! What this node has from fabric nodes: STUN servers and places at UDP relays, and a stream to a relay that datagrams do not
//! reach. The straight way is tried on beside a stream, and the stream is closed when it works again; but where the user named a
//! way out, one stream stays as a spare, for a login at a gateway takes longer than a connection may pause.

use super::{
    actor::{Done, Mail, Node},
    relay_stream::RelayStream,
};
use crate::stream::{Carrier, Via};
use dht::{
    message::{FabricServices, RelayAllocation, Request, Response},
    swarm::{Multiaddr, StreamAddr},
};
use overlay_types::{
    Candidate, PeerId,
    why::{Carriage, RelayPlace},
};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tracing::{debug, info, warn};
use tunnel::{
    engine::Command,
    relay::{RelayGrant, RelayWay},
};

/// Fabric nodes whose services are used; more add nothing.
const USED_MAX: usize = 4;
/// Further ones that are used because a peer has its places there.
const WANTED_MAX: usize = 4;
/// Connected ones that are known beside those used.
const SPARE_MAX: usize = 32;
/// How soon a fabric node is asked again that did not answer, or took its place back.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How soon a relay that had no place for us is asked again.
const ASK_FULL_AGAIN: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const ASK_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Offer {
    /// Where it says it is, best for others to begin with.
    addresses: Vec<String>,
    services: Option<FabricServices>,
    grant: Option<RelayGrant>,
    connected: bool,
    asking: bool,
    ask_at: Option<Instant>,
    /// Its relay answers datagrams.
    is_bound: bool,
    /// To its relay, if that is not reached straight; a spare while it is.
    stream: RelayStream<Carrier>,
    /// The stream was a spare, and nothing has come through it since it is needed.
    is_doubtful: bool,
}

impl Offer {
    /// Of one that is connected and is to be asked.
    fn connected(addresses: Vec<String>, now: Instant) -> Self {
        Self {
            addresses,
            connected: true,
            ask_at: Some(now),
            ..Self::default()
        }
    }

    /// Whether nothing shows that it is there any more.
    fn is_gone(&self) -> bool {
        !self.connected && !self.is_bound && self.stream.get().is_none()
    }

    /// The stream, if it is in use.
    fn carrier(&self) -> Option<&Carrier> {
        self.stream.get().filter(|_| !self.is_bound)
    }

    /// Datagrams do not get to its relay any more: takes the spare stream, or wants one.
    fn unbind(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_bound) {
            self.is_doubtful = self.stream.get().is_some();
            self.stream.hurry(now);
        }
        self.stream.want(now);
    }

    /// The relay's place in every way that is in use. The relay sends where it was bound from last, so not by a spare.
    fn grants(&self) -> impl Iterator<Item = RelayGrant> {
        let carried = self.grant.as_ref().zip(self.carrier());
        let carried = carried.map(|(grant, carrier)| RelayGrant {
            carrier: Some(carrier.at),
            ..grant.clone()
        });
        self.grant.clone().into_iter().chain(carried)
    }

    /// Where the fabric node takes streams, if one is to be opened now.
    fn stream_due(&self, now: Instant) -> Option<StreamAddr> {
        self.stream.due().filter(|at| *at <= now)?;
        let grant = self.grant.as_ref()?;
        let streams = &self.services.as_ref()?.streams;
        // Of the IP version that the relay has, for that one the node has too.
        let like_relay = |addr: &&SocketAddr| addr.is_ipv4() == grant.relay.is_ipv4();
        let to = streams.iter().find(like_relay).or(streams.first())?;
        Some(StreamAddr {
            host: to.ip().to_string(),
            port: to.port(),
            peer: Some(grant.via),
        })
    }
}

/// What a fabric node said to the wish for a place at its relay.
pub(super) enum Place {
    Given(RelayAllocation),
    /// It has none, now or at all.
    Refused,
    Unanswered,
}

/// The fabric nodes that serve this node.
#[derive(Default)]
pub(super) struct Fabric {
    offers: BTreeMap<PeerId, Offer>,
    /// Connected, and not used, with where they say they are.
    spare: BTreeMap<PeerId, Vec<String>>,
}

impl Fabric {
    /// A connected peer serves as a fabric node: whether it is used, and that is news.
    fn see(&mut self, peer: PeerId, addresses: Vec<String>, now: Instant) -> bool {
        if let Some(offer) = self.offers.get_mut(&peer) {
            offer.addresses = addresses;
            let was_connected = std::mem::replace(&mut offer.connected, true);
            let is_known = was_connected && offer.services.is_some(); // it says so again whenever its addresses change
            if !is_known {
                offer.ask_at = Some(now);
            }
            return !is_known;
        }
        if self.offers.len() < USED_MAX {
            self.offers.insert(peer, Offer::connected(addresses, now));
            return true;
        }
        if self.spare.len() < SPARE_MAX || self.spare.contains_key(&peer) {
            self.spare.insert(peer, addresses);
        }
        self.replace_gone(now)
    }

    /// One that is gone makes room for one that is connected: whether there were both. It is used again when it comes back and
    /// there is room.
    fn replace_gone(&mut self, now: Instant) -> bool {
        let mut offers = self.offers.iter();
        let gone = offers.find(|(_, offer)| offer.is_gone());
        let Some(gone) = gone.map(|(peer, _)| *peer) else {
            return false;
        };
        let Some((peer, addresses)) = self.spare.pop_first() else {
            return false;
        };
        debug!(?gone, used = ?peer, "a fabric node is replaced");
        self.offers.remove(&gone);
        self.offers.insert(peer, Offer::connected(addresses, now));
        true
    }

    /// One that a peer has its places at is used, where that is connected and there is room, or `instead_of` makes some: whether
    /// that one was given up.
    fn want(&mut self, peer: PeerId, instead_of: Option<PeerId>, now: Instant) -> bool {
        if !self.spare.contains_key(&peer) {
            return false;
        }
        let is_full = self.offers.len() >= USED_MAX + WANTED_MAX;
        let given_up = instead_of
            .filter(|_| is_full)
            .and_then(|given_up| self.offers.remove_entry(&given_up));
        let makes_room = given_up.is_some();
        if is_full && !makes_room {
            return false;
        }
        if let Some(addresses) = self.spare.remove(&peer) {
            debug!(
                ?peer,
                ?instead_of,
                is_full,
                "a peer is reached through this fabric node"
            );
            self.offers.insert(peer, Offer::connected(addresses, now));
        }
        if let Some((peer, offer)) = given_up.filter(|(_, offer)| offer.connected) {
            self.spare.insert(peer, offer.addresses);
        }
        makes_room
    }

    /// When a fabric node is to be asked again, or a stream to be opened.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let asks = self
            .offers
            .values()
            .filter(|offer| !offer.asking)
            .filter_map(|offer| offer.ask_at);
        let streams = self.offers.values().filter_map(|offer| {
            let at = offer.stream.due()?;
            offer.stream_due(at).map(|_| at)
        });
        asks.chain(streams).min()
    }

    /// Whether this address of the host stands for a relay at the other end of a stream.
    pub(super) fn is_stream(&self, addr: SocketAddr) -> bool {
        let mut open = self.offers.values().filter_map(|offer| offer.stream.get());
        open.any(|carrier| carrier.at == addr)
    }

    /// How many are connected.
    pub(super) fn connected(&self) -> usize {
        self.offers.values().filter(|offer| offer.connected).count()
    }

    /// Where the connected fabric nodes say they are: streams first, for they get through where the others do not.
    pub(super) fn addresses(&self) -> Vec<String> {
        let connected = self.offers.values().filter(|offer| offer.connected);
        let mut addresses: Vec<_> = connected
            .flat_map(|offer| offer.addresses.clone())
            .collect();
        addresses.sort_by_key(|address| !address.contains("/tls/"));
        addresses
    }

    /// Whether datagrams get out, judged by relays: where all are silent, a stream that is open shows that they are there.
    pub(super) fn udp(&self) -> Option<bool> {
        let mut offers = self.offers.values();
        let is_bound = self.offers.values().any(|offer| offer.is_bound);
        let is_carried = offers.any(|offer| offer.carrier().is_some());
        (is_bound || is_carried).then_some(is_bound)
    }

    /// The relays where this node has a place and that it reaches, and by what.
    pub(super) fn relay_places(&self) -> Vec<RelayPlace> {
        let place = |offer: &Offer| {
            let grant = offer.grant.as_ref()?;
            let by = match offer.stream.get() {
                _ if offer.is_bound => Carriage::Udp,
                Some(carrier) => match carrier.via {
                    None => Carriage::Tls,
                    Some(Via::Proxy { .. }) => Carriage::Proxy,
                    Some(Via::Ssh { .. }) => Carriage::Ssh,
                },
                None => return None,
            };
            Some(RelayPlace {
                relay: grant.via,
                addr: grant.relay,
                by,
            })
        };
        let places = self.offers.values().filter_map(place);
        places.collect()
    }

    /// Fabric nodes that are connected.
    pub(super) fn connected_peers(&self) -> impl Iterator<Item = PeerId> {
        let connected = self.offers.iter().filter(|(_, offer)| offer.connected);
        connected.map(|(peer, _)| *peer)
    }

    /// Where they take streams.
    pub(super) fn stream_addrs(&self) -> impl Iterator<Item = (SocketAddr, PeerId)> {
        self.offers.iter().flat_map(|(peer, offer)| {
            let services = offer.services.iter();
            services.flat_map(|services| services.streams.iter().map(|at| (*at, *peer)))
        })
    }

    /// The gateway or proxy that streams leave through.
    pub(super) fn gateway(&self) -> Option<String> {
        let mut carriers = self.offers.values().filter_map(Offer::carrier);
        carriers.find_map(|carrier| Some(carrier.via.as_ref()?.to_string()))
    }

    /// The relay that this address of the host stands for, where a stream leads to it.
    pub(super) fn behind_stream(&self, addr: SocketAddr) -> Option<SocketAddr> {
        let mut offers = self.offers.values();
        let leads_there = |offer: &&Offer| offer.stream.get().is_some_and(|c| c.at == addr);
        offers
            .find(leads_there)?
            .grant
            .as_ref()
            .map(|grant| grant.relay)
    }
}

impl Node {
    /// A connected peer serves as a fabric node.
    pub(super) fn fabric_seen(&mut self, peer: PeerId, addresses: &[Multiaddr]) {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        if !self.fabric.see(peer, addresses, Instant::now()) {
            return;
        }
        for member in self.networks.values_mut() {
            // What could not be put or asked without a fabric can be now.
            member.publish_soon();
            member.sync_at = Instant::now();
        }
    }

    pub(super) fn peer_disconnected(&mut self, peer: PeerId) {
        self.fabric.spare.remove(&peer);
        if let Some(offer) = self.fabric.offers.get_mut(&peer) {
            // Its UDP services may well be there still; a place that is lost is told by the data plane.
            offer.connected = false;
            self.replace_gone();
        }
    }

    fn replace_gone(&mut self) {
        if self.fabric.replace_gone(Instant::now()) {
            self.tell_services();
        }
    }

    /// Asks whoever is due, and opens the streams that are.
    pub(super) fn fabric_timeout(&mut self, now: Instant) {
        self.open_streams(now);
        let due: Vec<_> = self
            .fabric
            .offers
            .iter_mut()
            .filter(|(_, offer)| !offer.asking && offer.ask_at.is_some_and(|at| at <= now))
            .map(|(peer, offer)| {
                (offer.asking, offer.ask_at) = (true, None);
                *peer
            })
            .collect();
        for peer in due {
            let swarm = self.swarm.clone();
            self.job(async move {
                let ask = async |request: Request| {
                    let bytes = tokio::time::timeout(
                        ASK_WITHIN,
                        swarm.request(peer, &[], request.encode()),
                    )
                    .await
                    .ok()?
                    .ok()?;
                    Response::decode(&bytes).ok()
                };
                let (info, relay) =
                    tokio::join!(ask(Request::FabricInfo), ask(Request::RelayAllocate));
                let services = match info {
                    Some(Response::Fabric(services)) => Some(services),
                    _ => None,
                };
                let place = match relay {
                    Some(Response::Relay(allocation)) => Place::Given(allocation),
                    Some(_) => Place::Refused,
                    None => Place::Unanswered,
                };
                Done::Fabric {
                    peer,
                    services,
                    place,
                }
            });
        }
    }

    /// A fabric node answered, or did not.
    pub(super) fn handle_fabric(
        &mut self,
        peer: PeerId,
        services: Option<FabricServices>,
        place: Place,
    ) {
        let Some(offer) = self.fabric.offers.get_mut(&peer) else {
            return;
        };
        offer.asking = false;
        let again = match (&services, &place) {
            (None, _) | (_, Place::Unanswered) => Some(ASK_AGAIN),
            (Some(services), Place::Refused) if !services.relay.is_empty() => Some(ASK_FULL_AGAIN),
            _ => None,
        };
        if let Some(pause) = again.filter(|_| offer.connected) {
            offer.ask_at = Some(Instant::now() + pause);
        }
        if services.is_some() {
            offer.services = services;
        }
        if let Place::Given(allocation) = place {
            let relay = reachable(&allocation.relay, &self.candidates);
            offer.grant = relay.map(|relay| RelayGrant {
                via: peer,
                relay,
                index: allocation.index,
                key: allocation.key,
                carrier: None,
                through: None,
                is_member: false,
            });
            info!(?peer, relay = ?offer.grant.as_ref().map(|grant| grant.relay), "place at a relay");
        }
        self.tell_services();
    }

    /// The relay forgot us, or is not reached: ask its node for another place.
    pub(super) fn relay_lost(&mut self, way: RelayWay) {
        let Some(offer) = self.fabric.offers.get_mut(&way.via) else {
            return;
        };
        debug!(?way, "relay lost");
        let now = Instant::now();
        offer.ask_at.get_or_insert_with(|| now + ASK_AGAIN);
        match way.carrier {
            None => offer.unbind(now),
            Some(at) => self.carrier_ended(way.via, at),
        }
        self.replace_gone();
    }

    /// Perhaps datagrams do not get to the relay any more: a stream may, and costs little until it is known. A spare may have
    /// died since it was opened.
    pub(super) fn relay_silent(&mut self, way: RelayWay) {
        let Some(offer) = self.fabric.offers.get_mut(&way.via) else {
            return;
        };
        let now = Instant::now();
        if way.carrier.is_none() {
            offer.unbind(now);
        } else if std::mem::take(&mut offer.is_doubtful) {
            debug!(peer = ?way.via, "the spare stream is silent");
            offer.stream.close();
            offer.stream.want(now);
        } else {
            return;
        }
        self.tell_services();
    }

    /// The relay knows where we are.
    pub(super) fn relay_bound(&mut self, way: RelayWay) {
        let is_named = !self.config.via.is_empty();
        let mut others = self
            .fabric
            .offers
            .iter()
            .filter(|(peer, _)| **peer != way.via);
        let is_spare = is_named && others.all(|(_, offer)| offer.stream.is_unwanted());
        let Some(offer) = self.fabric.offers.get_mut(&way.via) else {
            return;
        };
        offer.is_doubtful = false;
        if way.carrier.is_some() {
            info!(peer = ?way.via, "relay reached through a stream");
            return;
        }
        let was_carried = offer.carrier().is_some();
        offer.is_bound = true;
        if is_spare {
            offer.stream.want(Instant::now());
        } else if offer.stream.close() {
            debug!(peer = ?way.via, "no stream is needed");
        }
        if was_carried {
            self.tell_services();
        }
    }

    /// A peer has its places at this relay, and there are too few that we share with it.
    pub(super) fn relay_wanted(&mut self, via: PeerId, instead_of: Option<PeerId>) {
        if self.fabric.want(via, instead_of, Instant::now()) {
            self.tell_services();
        }
    }

    fn open_streams(&mut self, now: Instant) {
        for (peer, offer) in &mut self.fabric.offers {
            let Some(to) = offer.stream_due(now) else {
                continue;
            };
            offer.stream.begin();
            let (peer, carriers, mail) = (*peer, self.carriers.clone(), self.mail.clone());
            tokio::spawn(async move {
                let (carrier, carrying) = match carriers.open(&to).await {
                    Ok((carrier, carrying)) => (Ok(carrier), Some(carrying)),
                    Err(error) => (Err(error), None),
                };
                let at = carrier.as_ref().ok().map(|carrier| carrier.at);
                let opened = Done::CarrierOpened { peer, carrier };
                let _stopping = mail.send(Mail::Done(Box::new(opened))).await;
                if let (Some(carrying), Some(at)) = (carrying, at) {
                    let _ended = carrying.await;
                    let ended = Done::CarrierEnded { peer, at };
                    let _stopping = mail.send(Mail::Done(Box::new(ended))).await;
                }
            });
        }
    }

    /// A stream was opened, or could not be.
    pub(super) fn carrier_opened(&mut self, peer: PeerId, carrier: io::Result<Carrier>) {
        let Some(offer) = self.fabric.offers.get_mut(&peer) else {
            return;
        };
        let is_spare = offer.is_bound;
        match offer.stream.opened(carrier, is_spare, Instant::now()) {
            None => self.tell_services(),
            Some((_, error)) if is_spare => info!(?peer, %error, "no spare stream"),
            Some((failures, error)) if failures.is_power_of_two() => {
                warn!(?peer, %error, failures, "neither datagrams nor streams reach this relay");
            }
            Some(_) => {}
        }
    }

    /// A stream has ended by itself.
    pub(super) fn carrier_ended(&mut self, peer: PeerId, at: SocketAddr) {
        if let Some(offer) = self.fabric.offers.get_mut(&peer)
            && offer.stream.get().is_some_and(|carrier| carrier.at == at)
        {
            offer.stream.ended(offer.is_bound, Instant::now());
            self.tell_services();
        }
    }

    /// Where STUN questions are answered: at fabric nodes, and where the configuration says.
    pub(super) fn stun_servers(&self) -> Vec<SocketAddr> {
        let offers = self.fabric.offers.values();
        offers
            .filter_map(|offer| offer.services.as_ref())
            .flat_map(|services| &services.stun)
            .chain(&self.config.stun)
            .copied()
            .collect()
    }

    pub(super) fn tell_services(&self) {
        self.tell(Command::SetStunServers(self.stun_servers()));
        let used = self.fabric.offers.values();
        self.tell(Command::SetRelays(used.flat_map(Offer::grants).collect()));
    }
}

/// Of a relay's addresses, the one to use: the IPv4 address, unless this host has addresses and none by IPv4. Others who have
/// a place there are reached whichever version they use.
fn reachable(relay: &[SocketAddr], ours: &[Candidate]) -> Option<SocketAddr> {
    let mut hosts = ours.iter().filter_map(|candidate| match candidate {
        Candidate::Host(addr) => Some(addr.is_ipv4()),
        _ => None,
    });
    // Empty at first: what is wrong is found out when nothing answers there, and the place is asked for anew.
    let has_ipv4 = hosts
        .next()
        .is_none_or(|first| first || hosts.any(|has| has));
    let wanted = relay.iter().find(|addr| addr.is_ipv4() == has_ipv4);
    wanted.or(relay.first()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_with_both_ip_versions_is_reached_by_the_one_that_the_host_has() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (four, six) = (addr("198.51.100.1:7"), addr("[2001:db8::1]:7"));
        let host = |text: &str| Candidate::Host(addr(text));
        let ours = [host("192.0.2.1:9"), host("[2001:db8::2]:9")];

        assert_eq!(reachable(&[four, six], &[]), Some(four));
        assert_eq!(reachable(&[four, six], &ours), Some(four));
        assert_eq!(reachable(&[six, four], &ours[..1]), Some(four));
        assert_eq!(reachable(&[four, six], &ours[1..]), Some(six));
        let translated = reachable(&[four], &ours[1..]);
        assert_eq!(translated, Some(four), "a translator may lead there");
        assert_eq!(reachable(&[], &ours), None);
    }

    #[test]
    fn a_fabric_node_that_is_gone_makes_room_for_one_that_is_there() {
        let (mut fabric, now) = (Fabric::default(), Instant::now());
        let peer = |n: usize| PeerId([n as u8; 32]);
        for n in 0..USED_MAX {
            assert!(fabric.see(peer(n), Vec::new(), now));
            fabric.offers.get_mut(&peer(n)).unwrap().is_bound = true;
        }
        let new = peer(USED_MAX);
        assert!(!fabric.see(new, Vec::new(), now), "nobody is gone");
        let first = fabric.offers.get_mut(&peer(0)).unwrap();
        first.connected = false;
        assert!(!fabric.replace_gone(now), "its relay works");
        fabric.offers.get_mut(&peer(0)).unwrap().is_bound = false;

        assert!(fabric.replace_gone(now));

        let used: Vec<_> = fabric.offers.keys().copied().collect();
        assert_eq!(used, (1..=USED_MAX).map(peer).collect::<Vec<_>>());
        assert!(fabric.offers[&new].ask_at.is_some() && fabric.spare.is_empty());
        assert!(!fabric.see(peer(0), Vec::new(), now), "there is no room");
        fabric.offers.get_mut(&peer(1)).unwrap().connected = false;
        fabric.offers.get_mut(&peer(1)).unwrap().is_bound = false;
        assert!(fabric.see(peer(9), Vec::new(), now), "one of the two");
        assert_eq!((fabric.offers.len(), fabric.spare.len()), (USED_MAX, 1));
    }

    #[test]
    fn a_fabric_node_that_a_peer_needs_takes_the_place_of_one_that_is_of_no_use() {
        let (mut fabric, now) = (Fabric::default(), Instant::now());
        let peer = |n: usize| PeerId([n as u8; 32]);
        let full = USED_MAX + WANTED_MAX;
        for n in 0..full + 2 {
            fabric.see(peer(n), vec![n.to_string()], now);
        }
        for n in USED_MAX..full {
            assert!(!fabric.want(peer(n), Some(peer(0)), now), "there is room");
        }
        let wanted = peer(full);
        assert!(!fabric.want(wanted, None, now) && !fabric.offers.contains_key(&wanted));
        assert!(
            !fabric.want(peer(99), Some(peer(5)), now),
            "it is not connected"
        );
        assert!(
            !fabric.want(wanted, Some(peer(full + 1)), now),
            "it is not used"
        );
        assert_eq!(fabric.offers.len(), full);

        assert!(fabric.want(wanted, Some(peer(5)), now));

        assert!(fabric.offers[&wanted].ask_at.is_some() && !fabric.offers.contains_key(&peer(5)));
        assert_eq!((fabric.offers.len(), fabric.spare.len()), (full, 2));
        assert!(fabric.want(peer(5), Some(wanted), now), "it is still known");
    }
}
