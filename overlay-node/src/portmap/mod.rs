//! Port mappings at the routers that lead out: PCP (RFC 6887), else NAT-PMP (RFC 6886), else UPnP-IGD. This file decides
//! whom to ask for what and when; `router.rs` speaks to them.

mod router;

pub use router::run;

use std::{
    collections::{BTreeMap, VecDeque},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

/// Routers asked; a host has one or two ways out.
const UPLINKS_MAX: usize = 4;
/// How long a mapping is asked for. After a crash it is gone by itself.
const LIFETIME: Duration = Duration::from_secs(3600);
/// A mapping is asked for anew at half its life (RFC 6887 §11.2.1), and so often at least: a router that was restarted has
/// forgotten it.
const RENEW_WITHIN: Duration = Duration::from_secs(600);
/// No sooner, whatever lifetime a router grants.
const RENEW_AFTER: Duration = Duration::from_secs(10);
/// How soon a renewal that failed is tried again, while the mapping lives.
const RENEW_AGAIN: Duration = Duration::from_secs(30);
/// How soon a router that refused every protocol is asked again, doubled each time up to [`ASK_AGAIN_MAX`].
const ASK_AGAIN: Duration = Duration::from_secs(300);
const ASK_AGAIN_MAX: Duration = Duration::from_secs(3600);

/// A router that leads out, and our address towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uplink {
    /// The router.
    pub gateway: Ipv4Addr,
    /// Our own address on its network.
    pub local: Ipv4Addr,
}

/// How a router is asked, the better ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
    /// UPnP Internet Gateway Device, version 1 or 2.
    Upnp,
}

impl Protocol {
    /// As `farlan status` prints it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        }
    }

    const fn next(self) -> Option<Self> {
        match self {
            Self::Pcp => Some(Self::NatPmp),
            Self::NatPmp => Some(Self::Upnp),
            Self::Upnp => None,
        }
    }
}

/// What a router granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Where the outside reaches the data port.
    pub external: SocketAddrV4,
    /// For how long.
    pub lifetime: Duration,
}

/// A mapping that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where.
    pub uplink: Uplink,
    /// By which protocol.
    pub protocol: Protocol,
    /// Where the outside reaches the data port.
    pub external: SocketAddrV4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// An answer is awaited.
    Asking(Protocol),
    /// It speaks none of the protocols, or refuses.
    Refused { ask_at: Instant },
    /// It granted this, which is being renewed or will be.
    Mapped {
        mapping: Mapping,
        renew_at: Option<Instant>,
        ends_at: Instant,
    },
}

/// The mappings of one UDP port at all uplinks.
#[derive(Debug, Default)]
pub struct PortMapper {
    uplinks: BTreeMap<Uplink, State>,
    pauses: BTreeMap<Uplink, Duration>,
    asks: VecDeque<(Uplink, Protocol)>,
}

impl PortMapper {
    /// The ways out, replacing what was said before.
    pub fn set_uplinks(&mut self, uplinks: impl IntoIterator<Item = Uplink>) {
        let mut before = std::mem::take(&mut self.uplinks);
        for uplink in uplinks.into_iter().take(UPLINKS_MAX) {
            let state = before.remove(&uplink).unwrap_or_else(|| {
                self.asks.push_back((uplink, Protocol::Pcp));
                State::Asking(Protocol::Pcp)
            });
            self.uplinks.insert(uplink, state);
        }
        for gone in before.into_keys() {
            self.pauses.remove(&gone);
        }
    }

    /// Whether it is still a way out.
    pub fn has(&self, uplink: Uplink) -> bool {
        self.uplinks.contains_key(&uplink)
    }

    /// What a router answered; `None`: nothing, or no.
    pub fn handle_outcome(
        &mut self,
        uplink: Uplink,
        protocol: Protocol,
        grant: Option<Grant>,
        now: Instant,
    ) {
        let Some(state) = self.uplinks.get_mut(&uplink) else {
            return;
        };
        match (grant, *state) {
            (Some(grant), _) => {
                self.pauses.remove(&uplink);
                let renew_in = (grant.lifetime / 2).clamp(RENEW_AFTER, RENEW_WITHIN);
                *state = State::Mapped {
                    mapping: Mapping {
                        uplink,
                        protocol,
                        external: grant.external,
                    },
                    renew_at: Some(now + renew_in),
                    ends_at: now + grant.lifetime.max(RENEW_AFTER),
                };
            }
            (
                None,
                State::Mapped {
                    mapping, ends_at, ..
                },
            ) => {
                let renew_at = Some(now + RENEW_AGAIN);
                *state = State::Mapped {
                    mapping,
                    renew_at,
                    ends_at,
                };
            }
            (None, _) => match protocol.next() {
                Some(next) => {
                    *state = State::Asking(next);
                    self.asks.push_back((uplink, next));
                }
                None => {
                    let pause = self.pauses.entry(uplink).or_insert(ASK_AGAIN);
                    *state = State::Refused {
                        ask_at: now + *pause,
                    };
                    *pause = (*pause * 2).min(ASK_AGAIN_MAX);
                }
            },
        }
        self.handle_timeout(now);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for (&uplink, state) in &mut self.uplinks {
            match state {
                State::Mapped {
                    mapping,
                    renew_at,
                    ends_at,
                } if *ends_at <= now => {
                    let is_asked = renew_at.is_none();
                    *state = State::Asking(if is_asked {
                        mapping.protocol
                    } else {
                        Protocol::Pcp
                    });
                    if !is_asked {
                        self.asks.push_back((uplink, Protocol::Pcp));
                    }
                }
                State::Mapped {
                    mapping, renew_at, ..
                } => {
                    if renew_at.is_some_and(|at| at <= now) {
                        *renew_at = None;
                        self.asks.push_back((uplink, mapping.protocol));
                    }
                }
                State::Refused { ask_at } if *ask_at <= now => {
                    *state = State::Asking(Protocol::Pcp);
                    self.asks.push_back((uplink, Protocol::Pcp));
                }
                State::Refused { .. } | State::Asking(_) => {}
            }
        }
    }

    /// When to be called again, and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.uplinks
            .values()
            .filter_map(|state| match *state {
                State::Asking(_) => None,
                State::Refused { ask_at } => Some((ask_at, "ask a router again")),
                State::Mapped {
                    renew_at, ends_at, ..
                } => Some((
                    renew_at.map_or(ends_at, |at| at.min(ends_at)),
                    "renew a port mapping",
                )),
            })
            .min()
    }

    /// Whom to ask next, for a mapping or for the one that is held anew; [`Self::handle_outcome`] wants to hear.
    pub fn poll_ask(&mut self) -> Option<(Uplink, Protocol)> {
        self.asks.pop_front()
    }

    /// The mappings that hold.
    pub fn mappings(&self) -> Vec<Mapping> {
        self.uplinks
            .values()
            .filter_map(|state| match state {
                State::Mapped { mapping, .. } => Some(*mapping),
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOME: Uplink = Uplink {
        gateway: Ipv4Addr::new(192, 168, 1, 1),
        local: Ipv4Addr::new(192, 168, 1, 2),
    };
    const CAFE: Uplink = Uplink {
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        local: Ipv4Addr::new(10, 0, 0, 2),
    };
    const OUTSIDE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 7000);

    fn granted(lifetime_s: u64) -> Option<Grant> {
        Some(Grant {
            external: OUTSIDE,
            lifetime: Duration::from_secs(lifetime_s),
        })
    }

    fn mapped(lifetime_s: u64, now: Instant) -> PortMapper {
        let mut mapper = PortMapper::default();
        mapper.set_uplinks([HOME]);
        assert_eq!(mapper.poll_ask(), Some((HOME, Protocol::Pcp)));
        mapper.handle_outcome(HOME, Protocol::Pcp, granted(lifetime_s), now);
        mapper
    }

    #[test]
    fn protocols_are_tried_in_turn_and_all_again_later_and_later() {
        let mut now = Instant::now();
        let mut mapper = PortMapper::default();
        mapper.set_uplinks([HOME]);
        for pause_s in [300, 600, 1200, 2400, 3600, 3600] {
            for protocol in [Protocol::Pcp, Protocol::NatPmp, Protocol::Upnp] {
                assert_eq!(mapper.poll_ask(), Some((HOME, protocol)));
                assert_eq!(mapper.poll_ask(), None);
                mapper.handle_outcome(HOME, protocol, None, now);
            }
            let (at, _) = mapper.poll_timeout().unwrap();
            assert_eq!(at - now, Duration::from_secs(pause_s));
            now = at;
            mapper.handle_timeout(now);
        }
        assert_eq!(mapper.mappings(), []);
    }

    #[test]
    fn a_mapping_is_renewed_by_half_its_life_and_by_ten_minutes() {
        for (lifetime_s, renewed_s) in [(3600, 600), (120, 60), (1, 10)] {
            let now = Instant::now();
            let mapper = mapped(lifetime_s, now);
            assert_eq!(mapper.mappings()[0].external, OUTSIDE);
            let (at, _) = mapper.poll_timeout().unwrap();
            assert_eq!(at - now, Duration::from_secs(renewed_s), "{lifetime_s}");
        }
    }

    #[test]
    fn a_mapping_outlives_a_silent_router_until_it_ends_and_is_then_sought_anew() {
        let began = Instant::now();
        let mut mapper = mapped(1200, began);
        let mut now = began;
        let mut asked = 0;
        while !mapper.mappings().is_empty() {
            now = mapper.poll_timeout().unwrap().0;
            mapper.handle_timeout(now);
            if mapper.poll_ask() == Some((HOME, Protocol::Pcp)) && !mapper.mappings().is_empty() {
                asked += 1;
                mapper.handle_outcome(HOME, Protocol::Pcp, None, now);
            }
        }
        assert_eq!(now - began, Duration::from_secs(1200));
        assert!((10..=25).contains(&asked), "{asked}");
        mapper.handle_outcome(HOME, Protocol::Pcp, None, now);
        assert_eq!(mapper.poll_ask(), Some((HOME, Protocol::NatPmp)));
    }

    #[test]
    fn another_network_is_asked_at_once_and_the_last_one_forgotten() {
        let now = Instant::now();
        let mut mapper = mapped(3600, now);
        mapper.set_uplinks([CAFE]);
        assert_eq!(mapper.mappings(), []);
        assert_eq!(mapper.poll_ask(), Some((CAFE, Protocol::Pcp)));
        assert!(!mapper.has(HOME));
        mapper.handle_outcome(HOME, Protocol::Pcp, granted(3600), now);
        assert_eq!(mapper.mappings(), [], "an answer that comes too late");
    }

    proptest! {
        /// Whatever happens, an uplink is being asked, or its turn comes.
        #[test]
        fn no_uplink_is_ever_left_alone(steps in proptest::collection::vec((0..4u8, 0..8000u64), 1..60)) {
            let mut now = Instant::now();
            let mut mapper = PortMapper::default();
            mapper.set_uplinks([HOME]);
            let mut asked = None;
            for (what, value) in steps {
                while let Some((_, protocol)) = mapper.poll_ask() {
                    prop_assert_eq!(asked.replace(protocol), None, "asked twice at once");
                }
                match (what, asked) {
                    (0, Some(protocol)) => {
                        asked = None;
                        mapper.handle_outcome(HOME, protocol, granted(value), now);
                    }
                    (1, Some(protocol)) => {
                        asked = None;
                        mapper.handle_outcome(HOME, protocol, None, now);
                    }
                    (2, _) => now += Duration::from_secs(value),
                    _ => {}
                }
                mapper.handle_timeout(now);
                prop_assert!(asked.is_some() || mapper.poll_timeout().is_some() || !mapper.asks.is_empty());
            }
        }
    }
}
