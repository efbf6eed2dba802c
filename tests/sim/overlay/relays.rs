//! What members have from infrastructure nodes: STUN servers, places at their relays, and streams to relays that datagrams
//! do not reach. It stands for the node's `fabric_client`, with the same numbers.

use super::*;

/// Infrastructure nodes whose services are used, and further ones because peers have their places there.
const USED_MAX: usize = 4;
const WANTED_MAX: usize = 4;

/// How soon an infrastructure node is asked again that is connected and did not answer, or took its place back.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How soon one is dialled again that is gone.
const DIAL_AGAIN: Duration = Duration::from_secs(10);

/// How long it takes until a stream counts as not to be opened.
const OPENING_TIME_MAX: Duration = Duration::from_secs(5);

/// Round trips until a stream carries data: TCP's, TLS 1.3's, and one to ask for the relay.
const OPENING_ROUND_TRIPS: u32 = 3;

/// One infrastructure node as a member knows it.
#[derive(Default)]
pub(crate) struct Offer {
    grant: Option<RelayGrant>,
    is_asked: bool,
    /// Its relay answers datagrams.
    is_bound: bool,
    stream: RelayStream<SocketAddr>,
}

impl Offer {
    /// The relay's place in every way that there is.
    fn grants(&self) -> impl Iterator<Item = RelayGrant> {
        let carried = self.grant.as_ref().zip(self.stream.get());
        let carried = carried.map(|(grant, &at)| RelayGrant {
            carrier: Some(at),
            ..grant.clone()
        });
        self.grant.clone().into_iter().chain(carried)
    }
}

impl Overlay {
    /// Connects to all infrastructure nodes, as the real node's DHT does: the nearer are there earlier.
    pub(super) fn find_fabric(&mut self, id: MemberId) {
        let host = self.member(id).host;
        for place in self.infrastructure.clone() {
            let delay = self.world.random_delay(&self.terms.delay);
            let dialling = 2 * OPENING_ROUND_TRIPS * self.world.across(host, place);
            self.plan(id, delay + dialling, Errand::FabricSeen(place));
        }
    }

    /// An infrastructure node is connected: the first few serve the member, and the others are kept in mind.
    pub(super) fn fabric_seen(&mut self, id: MemberId, place: HostId) {
        if !self.world.is_connected(self.member(id).host, place) {
            return self.plan(id, DIAL_AGAIN, Errand::FabricSeen(place));
        }
        let running = self.running(id);
        if running.offers.len() < USED_MAX {
            self.ask_for_place(id, place, Duration::ZERO);
        } else if !running.offers.contains_key(&place) {
            running.spare.insert(place);
            self.replace_gone(id);
        }
    }

    /// A peer has its places there, and there are not enough that are shared with it.
    pub(super) fn relay_wanted(&mut self, id: MemberId, via: PeerId, instead_of: Option<PeerId>) {
        let place = self.place_of(via);
        let instead_of = instead_of.and_then(|via| self.place_of(via));
        let running = self.running(id);
        let Some(place) = place.filter(|place| running.spare.contains(place)) else {
            return;
        };
        if running.offers.len() >= USED_MAX + WANTED_MAX {
            let given_up = instead_of.and_then(|place| running.offers.remove_entry(&place));
            let Some((host, offer)) = given_up else {
                return;
            };
            running.spare.insert(host);
            if let Some(&stream) = offer.stream.get() {
                self.world.close_stream(stream);
            }
            self.tell_relays(id);
        }
        self.running(id).spare.remove(&place);
        self.ask_for_place(id, place, Duration::ZERO);
    }

    /// One that is gone makes room for another that is connected.
    fn replace_gone(&mut self, id: MemberId) {
        let host = self.member(id).host;
        let running = self.member(id).running.as_ref().expect("it runs");
        let is_connected = |place: &HostId| self.world.is_connected(host, *place);
        let is_gone = |(place, offer): &(&HostId, &Offer)| {
            !is_connected(place) && !offer.is_bound && offer.stream.get().is_none()
        };
        let gone = running.offers.iter().find(is_gone).map(|(place, _)| *place);
        let next = running.spare.iter().copied().find(is_connected);
        let (Some(gone), Some(next)) = (gone, next) else {
            return;
        };
        let running = self.running(id);
        running.offers.remove(&gone);
        running.spare.remove(&next);
        self.plan(id, DIAL_AGAIN, Errand::FabricSeen(gone));
        self.ask_for_place(id, next, Duration::ZERO);
        self.tell_relays(id);
    }

    fn ask_for_place(&mut self, id: MemberId, place: HostId, delay: Duration) {
        let offer = self.running(id).offers.entry(place).or_default();
        if !std::mem::replace(&mut offer.is_asked, true) {
            self.plan(id, delay, Errand::Allocate(place));
        }
    }

    /// A place at a relay; asked for again until it is got.
    pub(super) fn allocate(&mut self, id: MemberId, place: HostId) {
        let Some(offer) = self.running(id).offers.get_mut(&place) else {
            return;
        };
        offer.is_asked = false;
        let (peer, now) = (self.member(id).peer(), self.world.now());
        let relay = self.world.service_address(place);
        let reaches = self.world.is_connected(self.member(id).host, place);
        if !self.terms.fabric_relays {
            return self.tell_relays(id); // it answers STUN all the same
        }
        let granted = match self.world.infrastructure(place) {
            Some(infrastructure) if reaches => infrastructure.relay.allocate(peer, now).ok(),
            _ => None,
        };
        let grant = granted.map(|(index, key)| RelayGrant {
            via: relay_id(place),
            relay,
            index,
            key,
            carrier: None,
            through: None,
            is_member: false,
        });
        let is_sent = grant.is_some_and(|grant| self.send(id, Errand::Granted(place, grant)));
        if !is_sent {
            self.ask_for_place(id, place, if reaches { ASK_AGAIN } else { DIAL_AGAIN });
        }
    }

    /// Its place.
    pub(super) fn granted(&mut self, id: MemberId, place: HostId, grant: RelayGrant) {
        if let Some(offer) = self.running(id).offers.get_mut(&place) {
            offer.grant = Some(grant);
            self.tell_relays(id);
        }
    }

    /// Tells the data plane where it has places, of which it chooses.
    fn tell_relays(&mut self, id: MemberId) {
        let offers = &self.member(id).running.as_ref().expect("it runs").offers;
        // All at once where they are few: what is learned of ports by asking them one after the other is another story.
        let unseen = self
            .infrastructure
            .iter()
            .filter(|host| !offers.contains_key(host));
        let servers = offers.keys().chain(unseen).take(USED_MAX.max(offers.len()));
        let servers = servers
            .map(|&host| self.world.service_address(host))
            .collect();
        let grants = offers.values().flat_map(Offer::grants).collect();
        self.command(id, Command::SetStunServers(servers));
        self.command(id, Command::SetRelays(grants));
    }

    fn place_of(&self, via: PeerId) -> Option<HostId> {
        let mut hosts = self.infrastructure.iter().copied();
        hosts.find(|&host| relay_id(host) == via)
    }

    /// The infrastructure node of a way, if it serves the member.
    fn offer_of(&mut self, id: MemberId, way: RelayWay) -> Option<(HostId, &mut Offer)> {
        let place = self.place_of(way.via)?;
        Some((place, self.running(id).offers.get_mut(&place)?))
    }

    /// The relay forgot the member, or is not reached.
    pub(super) fn relay_lost(&mut self, id: MemberId, way: RelayWay) {
        let Some((place, offer)) = self.offer_of(id, way) else {
            return;
        };
        match way.carrier {
            Some(_) => self.stream_ended(id, place),
            None => {
                offer.is_bound = false;
                self.ask_for_place(id, place, ASK_AGAIN);
                self.want_stream(id, place);
            }
        }
        self.replace_gone(id);
    }

    /// Perhaps datagrams do not get to the relay any more.
    pub(super) fn relay_silent(&mut self, id: MemberId, way: RelayWay) {
        if let Some((place, offer)) = self.offer_of(id, way)
            && way.carrier.is_none()
        {
            offer.is_bound = false;
            self.want_stream(id, place);
        }
    }

    /// The relay knows where the member is.
    pub(super) fn relay_bound(&mut self, id: MemberId, way: RelayWay) {
        let Some((_, offer)) = self.offer_of(id, way) else {
            return;
        };
        if way.carrier.is_some() {
            return;
        }
        offer.is_bound = true;
        let stream = offer.stream.get().copied();
        if offer.stream.close() {
            if let Some(stream) = stream {
                self.world.close_stream(stream);
            }
            self.tell_relays(id);
        }
    }

    fn want_stream(&mut self, id: MemberId, place: HostId) {
        let now = self.world.now();
        let Some(offer) = self.running(id).offers.get_mut(&place) else {
            return;
        };
        let was_due = offer.stream.due();
        offer.stream.want(now);
        if was_due.is_none() {
            self.plan_stream(id, place);
        }
    }

    fn stream_ended(&mut self, id: MemberId, place: HostId) {
        let now = self.world.now();
        if let Some(offer) = self.running(id).offers.get_mut(&place)
            && let Some(&stream) = offer.stream.get()
        {
            offer.stream.ended(false, now);
            self.world.close_stream(stream);
            self.tell_relays(id);
            self.plan_stream(id, place);
        }
    }

    fn plan_stream(&mut self, id: MemberId, place: HostId) {
        let now = self.world.now();
        let due = self.running(id).offers.get(&place);
        if let Some(at) = due.and_then(|offer| offer.stream.due()) {
            let wait = at.saturating_duration_since(now);
            self.plan(id, wait, Errand::OpenStream(place));
        }
    }

    /// Begins to open a stream, if it is still wanted.
    pub(super) fn open_stream(&mut self, id: MemberId, place: HostId) {
        let (now, host) = (self.world.now(), self.member(id).host);
        let Some(offer) = self.running(id).offers.get_mut(&place) else {
            return;
        };
        if offer.stream.due().is_none_or(|at| at > now) {
            return;
        }
        offer.stream.begin();
        let takes = if self.world.is_connected(host, place) {
            2 * OPENING_ROUND_TRIPS * self.world.distance(host, place)
        } else {
            OPENING_TIME_MAX
        };
        self.plan(id, takes, Errand::StreamOpened(place));
    }

    /// The stream is there, or cannot be opened.
    pub(super) fn stream_opened(&mut self, id: MemberId, place: HostId) {
        let (now, host) = (self.world.now(), self.member(id).host);
        let stream = self.world.open_stream(host, place);
        if let Some(offer) = self.running(id).offers.get_mut(&place) {
            let _failed = offer.stream.opened(stream.ok_or(()), false, now);
            if offer.stream.get().is_some() {
                return self.tell_relays(id);
            }
        }
        if let Some(stream) = stream {
            self.world.close_stream(stream); // it came too late to be of use
        }
        self.plan_stream(id, place);
    }
}

/// The identity of an infrastructure node, which does nothing here but name its relay.
fn relay_id(host: HostId) -> PeerId {
    let mut id = [0xfa; 32];
    id[..8].copy_from_slice(&(host.0 as u64).to_be_bytes());
    PeerId(id)
}
