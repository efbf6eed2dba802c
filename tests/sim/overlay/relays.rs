//! What members have from infrastructure nodes: STUN servers, places at their relays, and streams to relays that datagrams
//! do not reach. It stands for the node's `fabric_client`, with the same numbers.

use super::*;

/// Infrastructure nodes whose services are used.
const USED_MAX: usize = 4;

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
    /// Asks the first few infrastructure nodes for places.
    pub(super) fn find_relays(&mut self, id: MemberId) {
        for place in self.infrastructure.clone().into_iter().take(USED_MAX) {
            self.running(id).offers.insert(place, Offer::default());
            let delay = self.world.random_delay(&self.terms.delay);
            self.ask_for_place(id, place, delay);
        }
    }

    fn ask_for_place(&mut self, id: MemberId, place: HostId, delay: Duration) {
        let offer = self.running(id).offers.entry(place).or_default();
        if !std::mem::replace(&mut offer.is_asked, true) {
            self.plan(id, delay, Errand::Allocate(place));
        }
    }

    /// A place at a relay; asked for again until it is got.
    pub(super) fn allocate(&mut self, id: MemberId, place: HostId) {
        self.running(id).offers.entry(place).or_default().is_asked = false;
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
        let offer = self.running(id).offers.entry(place).or_default();
        offer.grant = Some(grant);
        self.tell_relays(id);
    }

    /// Tells the data plane where it has places, of which it chooses.
    fn tell_relays(&mut self, id: MemberId) {
        let used: Vec<_> = self.infrastructure.iter().copied().take(USED_MAX).collect();
        let servers = used
            .iter()
            .map(|&host| self.world.service_address(host))
            .collect();
        let offers = &self.running(id).offers;
        let granted = used.iter().filter_map(|host| offers.get(host));
        let grants = granted.flat_map(Offer::grants).collect();
        self.command(id, Command::SetStunServers(servers));
        self.command(id, Command::SetRelays(grants));
    }

    fn place_of(&self, way: RelayWay) -> Option<HostId> {
        let mut hosts = self.infrastructure.iter().copied();
        hosts.find(|&host| relay_id(host) == way.via)
    }

    /// The relay forgot the member, or is not reached.
    pub(super) fn relay_lost(&mut self, id: MemberId, way: RelayWay) {
        let Some(place) = self.place_of(way) else {
            return;
        };
        if way.carrier.is_some() {
            return self.stream_ended(id, place);
        }
        self.ask_for_place(id, place, ASK_AGAIN);
        self.want_stream(id, place);
    }

    /// Perhaps datagrams do not get to the relay any more.
    pub(super) fn relay_silent(&mut self, id: MemberId, way: RelayWay) {
        if let (Some(place), None) = (self.place_of(way), way.carrier) {
            self.want_stream(id, place);
        }
    }

    /// The relay knows where the member is.
    pub(super) fn relay_bound(&mut self, id: MemberId, way: RelayWay) {
        let Some(place) = self.place_of(way).filter(|_| way.carrier.is_none()) else {
            return;
        };
        let offer = self.running(id).offers.entry(place).or_default();
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
        let offer = self.running(id).offers.entry(place).or_default();
        let was_due = offer.stream.due();
        offer.stream.want(now);
        if was_due.is_none() {
            self.plan_stream(id, place);
        }
    }

    fn stream_ended(&mut self, id: MemberId, place: HostId) {
        let now = self.world.now();
        let offer = self.running(id).offers.entry(place).or_default();
        if let Some(&stream) = offer.stream.get() {
            offer.stream.ended(now);
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
        let offer = self.running(id).offers.entry(place).or_default();
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
        let offer = self.running(id).offers.entry(place).or_default();
        let _failed = offer.stream.opened(stream.ok_or(()), now);
        if offer.stream.get().is_none() {
            if let Some(stream) = stream {
                self.world.close_stream(stream); // it came too late to be of use
            }
            return self.plan_stream(id, place);
        }
        self.tell_relays(id);
    }
}

/// The identity of an infrastructure node, which does nothing here but name its relay.
fn relay_id(host: HostId) -> PeerId {
    let mut id = [0xfa; 32];
    id[..8].copy_from_slice(&(host.0 as u64).to_be_bytes());
    PeerId(id)
}
