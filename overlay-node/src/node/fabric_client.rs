//! What this node has from fabric nodes: STUN servers and places at UDP relays.

use super::actor::{Done, Node};
use dht::message::{FabricServices, RelayAllocation, Request, Response};
use overlay_types::{Candidate, PeerId};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};
use tracing::{debug, info};
use tunnel::{engine::Command, relay::RelayGrant};

/// Fabric nodes whose services are used; more add nothing.
const USED_MAX: usize = 4;
/// Relays at which a place is kept.
const RELAYS_MAX: usize = 2;
/// How soon a fabric node is asked again that did not answer, or took its place back.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How soon a relay that had no place for us is asked again.
const ASK_FULL_AGAIN: Duration = Duration::from_secs(30);
/// How long it may take to answer.
const ASK_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Offer {
    services: Option<FabricServices>,
    grant: Option<RelayGrant>,
    connected: bool,
    asking: bool,
    ask_at: Option<Instant>,
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
}

impl Fabric {
    /// When a fabric node is to be asked again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.offers
            .values()
            .filter(|offer| !offer.asking)
            .filter_map(|offer| offer.ask_at)
            .min()
    }

    /// How many are connected.
    pub(super) fn connected(&self) -> usize {
        self.offers.values().filter(|offer| offer.connected).count()
    }

    /// The relays where this node has a place.
    pub(super) fn relays(&self) -> Vec<SocketAddr> {
        self.offers
            .values()
            .filter_map(|offer| offer.grant.as_ref().map(|grant| grant.relay))
            .collect()
    }
}

impl Node {
    /// A connected peer serves as a fabric node.
    pub(super) fn fabric_seen(&mut self, peer: PeerId) {
        if self.fabric.offers.len() >= USED_MAX && !self.fabric.offers.contains_key(&peer) {
            return;
        }
        let offer = self.fabric.offers.entry(peer).or_default();
        if std::mem::replace(&mut offer.connected, true) && offer.services.is_some() {
            return; // it says so again whenever its addresses change
        }
        offer.ask_at = Some(Instant::now());
        for member in self.networks.values_mut() {
            // What could not be put or asked without a fabric can be now.
            member.publish_soon();
            member.sync_at = Instant::now();
        }
    }

    pub(super) fn peer_disconnected(&mut self, peer: PeerId) {
        if let Some(offer) = self.fabric.offers.get_mut(&peer) {
            // Its UDP services may well be there still; a place that is lost is told by the data plane.
            offer.connected = false;
        }
    }

    /// Asks whoever is due.
    pub(super) fn fabric_timeout(&mut self, now: Instant) {
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
            });
            info!(?peer, relay = ?offer.grant.as_ref().map(|grant| grant.relay), "place at a relay");
        }
        self.tell_services();
    }

    /// The relay forgot us: ask its node for another place.
    pub(super) fn relay_lost(&mut self, candidate: Candidate) {
        if let Candidate::Relayed { via, .. } = candidate
            && let Some(offer) = self.fabric.offers.get_mut(&via)
        {
            debug!(?via, "relay lost");
            offer
                .ask_at
                .get_or_insert_with(|| Instant::now() + ASK_AGAIN);
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
        let offers = self.fabric.offers.values();
        let grants = offers
            .filter_map(|offer| offer.grant.clone())
            .take(RELAYS_MAX);
        self.tell(Command::SetRelays(grants.collect()));
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
}
