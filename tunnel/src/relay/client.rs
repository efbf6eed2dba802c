//! Binds our data port at relays and keeps the bindings alive. Which relays, and who grants places there, is the
//! control plane's.
//!
//! Asking ──challenge──▶ confirming ──bound──▶ Bound ──25 s──▶ asking again, still bound
//!    └────────────────no answer─────────▶ silent ◀───────────────┴──▶ lost, asked again now and then
//!
//! A place may be held in two ways at a time, straight and through a stream; the relay sends where it was bound from last.

use super::message::{BOUND, CHALLENGE, CONFIRM, Message, REQUEST};
use super::{BoundPlace, RelayEvent, RelayGrant};
use overlay_types::PathAddr;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Places held at a time: at four fabric nodes and four that peers want, each straight and through a stream, and at up to seven
/// members. What does not fit is not renewed.
const GRANTS_MAX: usize = 24;

/// How often a binding is renewed at least, which also keeps the NAT's mapping (RFC 4787 asks for 2 min; some give 30 s).
const RENEW_EVERY: Duration = Duration::from_secs(25);

/// First wait for an answer, doubled by each try (as in RFC 8489 §6.2.1, but shorter: the second try is also when another way
/// to the relay is looked for).
const ANSWER_WAIT: Duration = Duration::from_millis(250);

/// The same where answers take long: a quarter more than they do, up to this.
const PATIENCE_MAX: Duration = Duration::from_secs(1);

/// Unanswered tries, 7.75 s in all where answers are quick, until the relay counts as lost.
const TRIES_MAX: u32 = 5;

/// A lost relay may come back with what it knew.
const LOST_RETRY: Duration = Duration::from_secs(15);

const EVENTS_MAX: usize = 4 * GRANTS_MAX;

/// Binds our data port at relays and keeps the bindings.
#[derive(Debug)]
pub struct RelayClient {
    rng: ChaCha20Rng,
    places: Vec<Place>,
    renew_every: Duration,
    transmits: VecDeque<(PathAddr, Vec<u8>)>,
    events: VecDeque<RelayEvent>,
}

#[derive(Debug)]
struct Place {
    grant: RelayGrant,
    nonce: u64,
    tries: u32,
    next_at: Instant,
    asked_at: Instant,
    /// When that was asked first.
    began_at: Instant,
    /// When the relay's challenge was first answered. What follows that is asked once, however often we had to ask before.
    confirmed_at: Option<Instant>,
    /// How long the first answer is waited for.
    patience: Duration,
    rtt: Option<Duration>,
    bound: Option<Bound>,
    /// It was told that the answer is late.
    is_silent: bool,
}

/// What holds while a place is bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bound {
    /// How the relay was reached then: not as the grant says while that way is being tried.
    reach: PathAddr,
    /// Where the relay sees us.
    observed: SocketAddr,
}

impl Place {
    /// An answer came: learns how long they take.
    fn time(&mut self, now: Instant) {
        let since = |at| now.saturating_duration_since(at);
        let asked_once = (self.tries == 1).then_some(self.asked_at);
        if let Some(at) = self.confirmed_at.or(asked_once) {
            let sample = since(at);
            let rtt = self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8); // RFC 6298's weight
            self.rtt = Some(rtt);
            self.patience = (rtt * 5 / 4).clamp(ANSWER_WAIT, PATIENCE_MAX);
        } else {
            // Of a repeated question it is not known which one is answered (Karn's rule); perhaps the first.
            let perhaps = since(self.began_at) * 5 / 4;
            self.patience = self.patience.max(perhaps).min(PATIENCE_MAX);
        }
    }
}

impl RelayClient {
    /// A client without grants.
    pub fn new(rng_seed: u64, _now: Instant) -> Self {
        let rng = ChaCha20Rng::seed_from_u64(rng_seed);
        Self {
            rng,
            places: Vec::new(),
            renew_every: RENEW_EVERY,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// How often a mapping must be used so that it stays.
    pub fn set_keepalive(&mut self, every: Duration) {
        self.renew_every = every.min(RENEW_EVERY);
    }

    /// The places we hold, replacing what was said before; unchanged ones keep their binding. One that is reached another way
    /// from now on is bound the old way until it is bound the new way.
    pub fn set_grants(&mut self, grants: &[RelayGrant], now: Instant) {
        let mut before = std::mem::take(&mut self.places);
        for grant in grants.iter().take(GRANTS_MAX) {
            let known = before.iter().position(|p| p.grant.is_place_of(grant));
            let known = known.map(|at| before.swap_remove(at));
            let place = match known {
                Some(place) if place.grant == *grant => place,
                known => Place {
                    grant: grant.clone(),
                    nonce: self.rng.random(),
                    tries: 0,
                    next_at: now,
                    asked_at: now,
                    began_at: now,
                    confirmed_at: None,
                    patience: ANSWER_WAIT,
                    rtt: None,
                    bound: known.and_then(|place| place.bound),
                    is_silent: false,
                },
            };
            self.places.push(place);
        }
        self.handle_timeout(now);
    }

    /// Ask now whether we are still bound: something seems to be wrong. Where that is being asked, it goes on, so that a relay
    /// which does not answer is lost in the end.
    pub fn refresh(&mut self, now: Instant) {
        for place in self.places.iter_mut().filter(|place| place.tries == 0) {
            (place.nonce, place.next_at) = (self.rng.random(), now);
        }
        self.handle_timeout(now);
    }

    /// Bind again from the beginning: the network under us is another one.
    pub fn start_over(&mut self, now: Instant) {
        for place in &mut self.places {
            place.tries = 0;
        }
        self.refresh(now);
    }

    /// A relay's answer (0xA1 or 0xA3) arrived on the data port, perhaps through another relay.
    pub fn handle_datagram(&mut self, from: PathAddr, bytes: &[u8], now: Instant) {
        let Some(message) = Message::peek(bytes) else {
            return;
        };
        let answers = |p: &&mut Place| {
            p.grant.reach() == from
                && p.grant.index == message.index()
                && p.nonce == message.nonce()
        };
        let Some(place) = self.places.iter_mut().find(answers) else {
            return;
        };
        if !message.is_genuine(&place.grant.key) {
            return;
        }
        let is_repeated = message.kind == CHALLENGE && place.confirmed_at.is_some();
        if matches!(message.kind, CHALLENGE | BOUND) && !is_repeated {
            place.time(now);
        }
        match message.kind {
            CHALLENGE => {
                place.confirmed_at.get_or_insert(now);
                let confirm = Message::new(
                    CONFIRM,
                    place.grant.index,
                    place.nonce,
                    message.token,
                    &place.grant.key,
                );
                self.transmits
                    .push_back((from, confirm.to_bytes().to_vec()));
            }
            BOUND => {
                let observed = message.observed();
                let was_silent = std::mem::take(&mut place.is_silent);
                let bound = Bound {
                    reach: from,
                    observed,
                };
                let is_news = place.bound.replace(bound) != Some(bound) || was_silent;
                let early = self.renew_every.mul_f64(self.rng.random_range(0.0..0.1)); // many nodes must not come in step
                (place.nonce, place.tries, place.next_at) =
                    (self.rng.random(), 0, now + self.renew_every - early);
                place.confirmed_at = None;
                let way = place.grant.way();
                if is_news {
                    self.push_event(RelayEvent::Bound { way, observed });
                }
            }
            _ => {} // what only a relay should get
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut events = Vec::new();
        for place in self.places.iter_mut().filter(|p| p.next_at <= now) {
            if place.tries == TRIES_MAX {
                place.bound = None;
                (place.nonce, place.tries, place.next_at) =
                    (self.rng.random(), 0, now + LOST_RETRY);
                events.push(RelayEvent::Lost(place.grant.way()));
                continue;
            }
            if place.tries > 0 && !std::mem::replace(&mut place.is_silent, true) {
                events.push(RelayEvent::Silent(place.grant.way()));
            }
            let request = Message::new(
                REQUEST,
                place.grant.index,
                place.nonce,
                [0; 16],
                &place.grant.key,
            );
            self.transmits
                .push_back((place.grant.reach(), request.to_bytes().to_vec()));
            if place.tries == 0 {
                (place.began_at, place.confirmed_at) = (now, None);
            }
            (place.asked_at, place.next_at) = (now, now + place.patience * (1 << place.tries));
            place.tries += 1;
        }
        events.into_iter().for_each(|event| self.push_event(event));
        while self.transmits.len() > 4 * GRANTS_MAX {
            self.transmits.pop_front(); // only if nobody takes them; each is repeated anyway
        }
    }

    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.places
            .iter()
            .map(|p| (p.next_at, "relay binding"))
            .min()
    }

    /// What to send next.
    pub fn poll_transmit(&mut self) -> Option<(PathAddr, Vec<u8>)> {
        self.transmits.pop_front()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// The places where we are bound now, each once, with the better way to it.
    pub fn bound(&self) -> Vec<BoundPlace> {
        let places = self.places.iter();
        let mut bound: Vec<_> = places
            .filter_map(|place| Some((place, place.bound?)))
            .collect();
        // What answers comes before what is late, and straight before carried.
        bound.sort_by_key(|(place, _)| (place.grant.via, place.is_silent, place.grant.carrier));
        bound.dedup_by_key(|(place, _)| place.grant.via);
        let tell = |(place, bound): (&Place, Bound)| BoundPlace {
            candidate: place.grant.candidate(),
            way: place.grant.way(),
            reach: bound.reach,
            is_member: place.grant.is_member,
            is_silent: place.is_silent,
            rtt: place.rtt,
        };
        bound.into_iter().map(tell).collect()
    }

    fn push_event(&mut self, event: RelayEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front(); // a later one says where things stand
        }
        self.events.push_back(event);
    }
}
