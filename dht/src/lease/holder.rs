//! Keeps one lease alive from the holder's side: claims it, renews it from half its time on, stops in time.
//! Which registrar is asked, and over which connection, is the shell's.

use super::GUARD_SECONDS;
use super::cert::{Lease, LeaseCert, Release, Subject};
use super::protocol::{Refusal, Reply, Transaction};
use crate::identity::Identity;
use crate::network::Network;
use crate::signed::Signed;
use overlay_types::{MacAddr, Name, Subnet};
use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

/// The first pause after nobody could be asked; doubled each time up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);
/// The longest pause: a newcomer whose registrar comes back is served within it.
const RETRY_MAX: Duration = Duration::from_secs(15);
/// The pause after a refusal that only people can change (a taken name, wrong clocks).
const RETRY_REFUSED: Duration = Duration::from_secs(15);
/// The pauses between attempts to renew: an eighth of what is left, within these.
const RENEW_RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// A shell that has not answered by then has lost the question: longer than a registrar takes to give up.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);

/// What to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// An address for a station.
    Address {
        /// The station.
        mac: MacAddr,
        /// The name that goes with it.
        name: Option<Name>,
    },
    /// A block for guests, besides those that `have` names.
    Block {
        /// Blocks held by other machines of this node.
        have: Vec<Subnet>,
    },
}

/// What the node ought to know.
#[derive(Clone, Debug, PartialEq)]
pub enum HolderEvent {
    /// The lease is ours (first time, renewed, or another address than before): use it, store the certificate.
    Held(Box<LeaseCert>),
    /// Stop using it now.
    Lost {
        /// What it was.
        cert: Box<LeaseCert>,
        /// In plain words.
        reason: String,
    },
    /// Not got, and why (`None`: no registrar could be reached); it is tried again by itself.
    Waiting(Option<Refusal>),
    /// The registrars know that we gave it back; the machine is done.
    Released,
}

/// A lease in use, with its deadlines on our own monotonic clock.
#[derive(Debug)]
struct Held {
    cert: Box<LeaseCert>,
    stop_at: Instant,
}

/// A question on its way.
#[derive(Debug)]
struct Asked {
    at: Instant,
    give_up_at: Instant,
}

/// Idle ──due──▶ Claiming ──granted──▶ Held ──half time──▶ Renewing ──granted──▶ Held
///   ▲──refused────┘  ▲                  ▲────refused, unreachable──┘
///   └────────────────┴───────stop time, or not ours any more───────┘      release: any ──▶ Releasing ──▶ Done
#[derive(Debug)]
enum State {
    Idle {
        try_at: Instant,
    },
    Claiming(Asked),
    Held {
        held: Held,
        renew_at: Instant,
    },
    Renewing {
        held: Held,
        asked: Asked,
    },
    Releasing {
        release: Signed<Release>,
        try_at: Option<Instant>,
        give_up_at: Instant,
    },
    Done,
}

/// One lease, seen from its holder.
#[derive(Debug)]
pub struct LeaseHolder {
    identity: Identity,
    want: Want,
    /// What we had last, to ask for it again.
    last: Option<Subject>,
    state: State,
    retry: Duration,
    transmit: Option<Transaction>,
    events: VecDeque<HolderEvent>,
}

impl LeaseHolder {
    /// Holds the lease of `stored` at once if it is still good, without asking anybody; else claims one.
    /// The certificate must have been checked when it was stored or read.
    pub fn new(
        identity: Identity,
        want: Want,
        stored: Option<LeaseCert>,
        now: Instant,
        unix: u64,
    ) -> Self {
        let last = stored.as_ref().map(|cert| cert.subject);
        let state = State::Idle { try_at: now };
        let mut this = Self {
            identity,
            want,
            last,
            state,
            retry: RETRY_MIN,
            transmit: None,
            events: VecDeque::new(),
        };
        match stored.filter(|cert| cert.is_usable_at(unix) && this.fits(cert)) {
            Some(cert) => this.hold(Box::new(cert), now, now, unix),
            None => this.claim(now, unix),
        }
        this
    }

    /// A registrar answered the transaction last polled. What it grants is checked against `network`.
    pub fn handle_reply(&mut self, reply: Reply, network: &Network, now: Instant, unix: u64) {
        match (mem::replace(&mut self.state, State::Done), reply) {
            (State::Claiming(asked) | State::Renewing { asked, .. }, Reply::Lease(cert))
                if self.fits(&cert) && network.verify_lease(&cert).is_ok() =>
            {
                self.hold(Box::new(cert), asked.at, now, unix);
            }
            (State::Claiming(_), Reply::Refused(refusal)) => {
                let pause = match refusal {
                    Refusal::NotARegistrar
                    | Refusal::Starting
                    | Refusal::Busy
                    | Refusal::NoMajority { .. } => self.back_off(),
                    _ => RETRY_REFUSED,
                };
                self.state = State::Idle {
                    try_at: now + pause,
                };
                self.events.push_back(HolderEvent::Waiting(Some(refusal)));
            }
            (State::Renewing { held, .. }, Reply::Refused(Refusal::NotYours)) => {
                self.lose(held, "the registrars gave it to somebody else", now);
            }
            (State::Renewing { held, .. }, Reply::Refused(refusal)) => {
                self.hold_on(held, now);
                self.events.push_back(HolderEvent::Waiting(Some(refusal)));
            }
            (State::Releasing { .. }, Reply::Released | Reply::Refused(Refusal::NotYours)) => {
                self.events.push_back(HolderEvent::Released);
            }
            (state, _) => {
                self.state = state;
                self.handle_unreachable(now); // an answer that makes no sense is none
            }
        }
    }

    /// No registrar could be asked, or none answered.
    pub fn handle_unreachable(&mut self, now: Instant) {
        match mem::replace(&mut self.state, State::Done) {
            State::Claiming(_) => {
                self.state = State::Idle {
                    try_at: now + self.back_off(),
                };
                self.events.push_back(HolderEvent::Waiting(None));
            }
            State::Renewing { held, .. } => self.hold_on(held, now),
            State::Releasing {
                release,
                give_up_at,
                ..
            } => {
                self.state = State::Releasing {
                    release,
                    try_at: Some(now + self.back_off()),
                    give_up_at,
                };
            }
            other => self.state = other,
        }
    }

    /// Time passed. `unix` catches what the monotonic clock does not see: a machine that slept.
    pub fn handle_timeout(&mut self, now: Instant, unix: u64) {
        match mem::replace(&mut self.state, State::Done) {
            State::Idle { try_at } if now >= try_at => self.claim(now, unix),
            State::Claiming(asked) if now >= asked.give_up_at => {
                self.state = State::Claiming(asked);
                self.handle_unreachable(now);
            }
            State::Held { held, .. } | State::Renewing { held, .. }
                if now >= held.stop_at || !held.cert.is_usable_at(unix) =>
            {
                self.lose(held, "it ran out before a registrar could be reached", now);
            }
            State::Held { held, renew_at } if now >= renew_at => {
                self.transmit = Some(Transaction::Renew {
                    cert: held.cert.clone(),
                    unix,
                });
                self.state = State::Renewing {
                    held,
                    asked: Asked {
                        at: now,
                        give_up_at: now + ANSWER_TIME_MAX,
                    },
                };
            }
            State::Renewing { held, asked } if now >= asked.give_up_at => self.hold_on(held, now),
            State::Releasing { give_up_at, .. } if now >= give_up_at => {
                self.events.push_back(HolderEvent::Released)
            }
            State::Releasing {
                release,
                try_at: Some(try_at),
                give_up_at,
            } if now >= try_at => {
                self.transmit = Some(Transaction::Release(release.clone()));
                self.state = State::Releasing {
                    release,
                    try_at: None,
                    give_up_at,
                };
            }
            other => self.state = other,
        }
    }

    /// Gives the lease back: `Lost` follows at once, then the release is sent until a registrar has it or gives no
    /// answer for a while. Without a lease the machine is done at once.
    pub fn release(&mut self, now: Instant, unix: u64) {
        self.transmit = None;
        match mem::replace(&mut self.state, State::Done) {
            State::Held { held, .. } | State::Renewing { held, .. } => {
                // An answer to a renewal that is still under way would be of the same generation, and is given back with it.
                let release = held.cert.release(&self.identity, unix).signed().clone();
                self.transmit = Some(Transaction::Release(release.clone()));
                self.state = State::Releasing {
                    release,
                    try_at: None,
                    give_up_at: now + ANSWER_TIME_MAX,
                };
                self.events.push_back(HolderEvent::Lost {
                    cert: held.cert,
                    reason: "it was given back".into(),
                });
            }
            _ => self.events.push_back(HolderEvent::Released),
        }
    }

    /// What to ask a registrar; one at a time, each to be answered by `handle_reply` or `handle_unreachable`.
    pub const fn poll_transmit(&mut self) -> Option<Transaction> {
        self.transmit.take()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<HolderEvent> {
        self.events.pop_front()
    }

    /// When to call [`LeaseHolder::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            State::Idle { try_at } => Some((*try_at, "claim")),
            State::Claiming(asked) => Some((asked.give_up_at, "claim unanswered")),
            State::Held { held, renew_at } if *renew_at < held.stop_at => {
                Some((*renew_at, "renew"))
            }
            State::Held { held, .. } => Some((held.stop_at, "lease ends")),
            State::Renewing { held, asked } => {
                Some((held.stop_at.min(asked.give_up_at), "renewal unanswered"))
            }
            State::Releasing {
                try_at, give_up_at, ..
            } => Some((try_at.unwrap_or(*give_up_at).min(*give_up_at), "release")),
            State::Done => None,
        }
    }

    /// The lease, while it may be used.
    pub const fn lease(&self) -> Option<&LeaseCert> {
        match &self.state {
            State::Held { held, .. } | State::Renewing { held, .. } => Some(&held.cert),
            _ => None,
        }
    }

    /// Whether `lease` is one that this machine asked for.
    fn fits(&self, lease: &Lease) -> bool {
        lease.holder == self.identity.peer_id()
            && match (&self.want, lease.subject) {
                (Want::Address { mac, .. }, Subject::Address(_)) => lease.mac == Some(*mac),
                (Want::Block { have }, Subject::Block(block)) => !have.contains(&block),
                _ => false,
            }
    }

    fn claim(&mut self, now: Instant, unix: u64) {
        self.transmit = Some(match &self.want {
            Want::Address { mac, name } => {
                let wanted = match self.last {
                    Some(Subject::Address(address)) => Some(address),
                    _ => None,
                };
                Transaction::ClaimAddress {
                    wanted,
                    mac: *mac,
                    name: name.clone(),
                    unix,
                }
            }
            Want::Block { have } => {
                let wanted = match self.last {
                    Some(Subject::Block(block)) => Some(block),
                    _ => None,
                };
                Transaction::ClaimBlock {
                    wanted,
                    have: have.clone(),
                    unix,
                }
            }
        });
        self.state = State::Claiming(Asked {
            at: now,
            give_up_at: now + ANSWER_TIME_MAX,
        });
    }

    /// The registrars counted from when they heard of us, which is after we asked: counting the same span from
    /// `asked_at` ends earlier, whatever the clocks say. The wall clock bounds it too, for a certificate from the disk.
    fn hold(&mut self, cert: Box<LeaseCert>, asked_at: Instant, now: Instant, unix: u64) {
        let span = Duration::from_secs(cert.expires - cert.issued);
        let by_clock = now + Duration::from_secs(cert.usable_until().saturating_sub(unix));
        let by_request = asked_at + span.saturating_sub(Duration::from_secs(GUARD_SECONDS));
        let stop_at = by_clock.min(by_request);
        let age = Duration::from_secs(unix.saturating_sub(cert.issued));
        let renew_at = (now + (span / 2).saturating_sub(age)).min(stop_at);
        self.retry = RETRY_MIN;
        self.last = Some(cert.subject);
        self.events.push_back(HolderEvent::Held(cert.clone()));
        self.state = State::Held {
            held: Held { cert, stop_at },
            renew_at,
        };
    }

    /// Renewal failed for now; the lease is good until its stop time.
    fn hold_on(&mut self, held: Held, now: Instant) {
        let left = held.stop_at.saturating_duration_since(now);
        let renew_at = now + (left / 8).clamp(RENEW_RETRY.0, RENEW_RETRY.1);
        self.state = State::Held { held, renew_at };
    }

    fn lose(&mut self, held: Held, reason: &str, now: Instant) {
        self.state = State::Idle { try_at: now };
        self.events.push_back(HolderEvent::Lost {
            cert: held.cert,
            reason: reason.into(),
        });
    }

    fn back_off(&mut self) -> Duration {
        let pause = self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::CLOCK_SKEW_MAX_SECONDS;
    use crate::testing::{Lab, name};
    use overlay_types::DhcpMode;

    const DAY: u64 = 24 * 3600;

    fn lab() -> (Lab, Identity, Want) {
        let mut lab = Lab::new("10.77.0.0/24", DhcpMode::Overlay);
        let (node, _) = lab.member("a");
        let want = Want::Address {
            mac: node.peer_id().host_mac(),
            name: Some(name("a")),
        };
        (lab, node, want)
    }

    fn pass(lab: &mut Lab, holder: &mut LeaseHolder, seconds: u64) {
        lab.now += Duration::from_secs(seconds);
        lab.unix += seconds;
        holder.handle_timeout(lab.now, lab.unix);
    }

    fn serve(lab: &mut Lab, node: &Identity, holder: &mut LeaseHolder) {
        let transaction = holder.poll_transmit().expect("something is asked");
        let reply = lab.ask(node, transaction);
        holder.handle_reply(reply, &lab.network.clone(), lab.now, lab.unix);
    }

    #[test]
    fn a_lease_is_claimed_renewed_at_half_its_time_and_never_lost() {
        let (mut lab, node, want) = lab();
        let mut holder = LeaseHolder::new(node.clone(), want, None, lab.now, lab.unix);
        serve(&mut lab, &node, &mut holder);
        assert!(matches!(holder.poll_event(), Some(HolderEvent::Held(_))));

        for _ in 0..3 {
            let (due, why) = holder.poll_timeout().unwrap();
            assert_eq!(
                (due, why),
                (lab.now + Duration::from_secs(DAY / 2), "renew")
            );
            pass(&mut lab, &mut holder, DAY / 2);
            serve(&mut lab, &node, &mut holder);
            assert!(matches!(holder.poll_event(), Some(HolderEvent::Held(_))));
        }
        assert_eq!(holder.lease().unwrap().generation, 1);
    }

    #[test]
    fn without_a_registrar_it_stops_a_guard_before_expiry_counted_from_the_request() {
        let (mut lab, node, want) = lab();
        let mut holder = LeaseHolder::new(node.clone(), want, None, lab.now, lab.unix);
        let asked_at = lab.now;
        let transaction = holder.poll_transmit().unwrap();
        pass(&mut lab, &mut holder, 9);
        let reply = lab.ask(&node, transaction);
        // The holder's own clock is behind by as much as may be; the span since its request still binds it.
        let behind = lab.unix - CLOCK_SKEW_MAX_SECONDS;
        holder.handle_reply(reply, &lab.network, lab.now, behind);
        assert!(matches!(holder.poll_event(), Some(HolderEvent::Held(_))));

        while let Some((due, _)) = holder.poll_timeout() {
            if holder.lease().is_none() {
                break;
            }
            lab.now = due;
            holder.handle_timeout(lab.now, lab.unix);
            if holder.poll_transmit().is_some() {
                holder.handle_unreachable(lab.now);
            }
        }

        assert!(matches!(
            holder.poll_event(),
            Some(HolderEvent::Lost { .. })
        ));
        assert_eq!(lab.now, asked_at + Duration::from_secs(DAY - GUARD_SECONDS));
        pass(&mut lab, &mut holder, 0);
        assert!(
            matches!(
                holder.poll_transmit(),
                Some(Transaction::ClaimAddress {
                    wanted: Some(_),
                    ..
                })
            ),
            "it tries again"
        );
    }

    #[test]
    fn a_restart_goes_on_with_the_stored_certificate_and_asks_nobody() {
        let (mut lab, node, want) = lab();
        let cert = lab.claim(&node, Some("a")).unwrap();

        let mut holder = LeaseHolder::new(
            node.clone(),
            want.clone(),
            Some(cert.clone()),
            lab.now,
            lab.unix + 100,
        );
        assert_eq!(
            holder.poll_event(),
            Some(HolderEvent::Held(Box::new(cert.clone())))
        );
        assert_eq!(holder.poll_transmit(), None);

        let mut late =
            LeaseHolder::new(node, want, Some(cert.clone()), lab.now, cert.usable_until());
        assert_eq!(late.poll_event(), None);
        assert!(matches!(
            late.poll_transmit(),
            Some(Transaction::ClaimAddress {
                wanted: Some(_),
                ..
            })
        ));
    }

    #[test]
    fn a_machine_that_slept_over_the_end_stops_when_it_wakes() {
        let (mut lab, node, want) = lab();
        let mut holder = LeaseHolder::new(node.clone(), want, None, lab.now, lab.unix);
        serve(&mut lab, &node, &mut holder);
        holder.poll_event();
        lab.unix += DAY; // the monotonic clock stood still
        holder.handle_timeout(lab.now, lab.unix);
        assert!(matches!(
            holder.poll_event(),
            Some(HolderEvent::Lost { .. })
        ));
        assert_eq!(holder.lease(), None);
    }

    #[test]
    fn a_released_lease_is_out_of_use_before_anybody_hears_of_it() {
        let (mut lab, node, want) = lab();
        let mut holder = LeaseHolder::new(node.clone(), want, None, lab.now, lab.unix);
        serve(&mut lab, &node, &mut holder);
        holder.poll_event();

        holder.release(lab.now, lab.unix);
        assert!(matches!(
            holder.poll_event(),
            Some(HolderEvent::Lost { .. })
        ));
        assert_eq!(holder.lease(), None);
        serve(&mut lab, &node, &mut holder);
        assert_eq!(holder.poll_event(), Some(HolderEvent::Released));
        assert_eq!(holder.poll_timeout(), None);
    }

    #[test]
    fn an_unreachable_registrar_is_tried_again_ever_more_slowly() {
        let (mut lab, node, want) = lab();
        let mut holder = LeaseHolder::new(node, want, None, lab.now, lab.unix);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(holder.poll_transmit().is_some());
            holder.handle_unreachable(lab.now);
            assert_eq!(holder.poll_event(), Some(HolderEvent::Waiting(None)));
            let (due, _) = holder.poll_timeout().unwrap();
            pauses.push(due - lab.now);
            lab.now = due;
            holder.handle_timeout(lab.now, lab.unix);
        }
        assert!(pauses.is_sorted() && pauses[0] == RETRY_MIN && pauses[7] == RETRY_MAX);
    }

    #[test]
    fn a_certificate_that_proves_nothing_is_not_used() {
        let (mut lab, node, want) = lab();
        let mut holder = LeaseHolder::new(node.clone(), want, None, lab.now, lab.unix);
        let transaction = holder.poll_transmit().unwrap();
        let Reply::Lease(mut cert) = lab.ask(&node, transaction) else {
            panic!("refused")
        };
        cert.body.expires += 1;
        holder.handle_reply(Reply::Lease(cert), &lab.network, lab.now, lab.unix);
        assert_eq!(
            (holder.poll_event(), holder.lease()),
            (Some(HolderEvent::Waiting(None)), None)
        );
    }
}
