//! Behind what members are in the crowd. What studies say was taken where it could be read; the rest is assumed, and says so.
//!
//! | What | From |
//! |---|---|
//! | 91 % of the peers are behind NATs | ProbeLab, "Measurement Study of libp2p's DCUtR protocol", 2026 (rust-libp2p discussion 6584), of the IPFS network |
//! | 82 % of NATs map alike for every destination | Ford, Srisuresh, Kegel, "Peer-to-Peer Communication Across Network Address Translators", USENIX 2005, abstract |
//! | a few in a hundred let no UDP out | Stenberg, "HTTP/3 explained", chapter "QUIC uses UDP": Google's failure rates "in the low single-digit percentages" |
//! | how the others filter and choose ports, how many are behind a carrier's NAT or have IPv6, how long mappings live | assumed |

use crate::nat::{NatKind, Ports};
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use std::time::Duration;

/// Members behind one NAT of a carrier: few of a carrier's customers meet in one network.
pub const SUBSCRIBERS: usize = 20;

/// How many in a hundred sites have IPv6 (assumed).
pub const IPV6_PERCENT: u32 = 40;

/// How many in a hundred members are on the site of the one before (assumed).
pub const NEIGHBOURS_PERCENT: u32 = 5;

/// What is between a member and the internet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Site {
    /// Nothing.
    Public,
    /// A router that translates, or only filters.
    Router(NatKind),
    /// A port-restricted router, and a carrier's NAT behind it.
    Subscriber(NatKind),
}

/// One kind of site, and how many in a thousand members are at one.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub site: Site,
    /// In a thousand.
    pub permille: u32,
}

const fn home(kind: NatKind) -> NatKind {
    NatKind {
        ports: Ports::Preserving,
        timeout: Duration::from_secs(120),
        ..kind
    }
}

/// Mappings for 30 s: the shortest that are common (RFC 4787 asks for two minutes).
const HASTY: NatKind = NatKind {
    timeout: Duration::from_secs(30),
    ..NatKind::PORT_RESTRICTED
};

/// Other customers make mappings all the time.
const BUSY: NatKind = NatKind {
    ports: Ports::Incremental { step: 1, others: 5 },
    ..NatKind::SYMMETRIC
};

/// The mix. Of 910 behind NATs 30 get no UDP out; of the other 880, 82 in a hundred (722) map by endpoint.
pub const MIX: [Share; 10] = [
    share("public", Site::Public, 90),
    share("UDP blocked", Site::Router(NatKind::UDP_BLOCKED), 30),
    share("full cone", Site::Router(home(NatKind::FULL_CONE)), 72),
    share(
        "address-restricted",
        Site::Router(home(NatKind::ADDRESS_RESTRICTED)),
        100,
    ),
    share(
        "port-restricted",
        Site::Router(home(NatKind::PORT_RESTRICTED)),
        350,
    ),
    share("port-restricted, 30 s", Site::Router(HASTY), 60),
    share(
        "carrier, port-restricted",
        Site::Subscriber(NatKind::PORT_RESTRICTED),
        140,
    ),
    share("symmetric incremental", Site::Router(BUSY), 50),
    share("symmetric random", Site::Router(NatKind::SYMMETRIC), 68),
    share(
        "carrier, symmetric",
        Site::Subscriber(NatKind::SYMMETRIC),
        40,
    ),
];

const fn share(name: &'static str, site: Site, permille: u32) -> Share {
    Share {
        name,
        site,
        permille,
    }
}

/// One of them by chance, as its number in [`MIX`].
pub fn draw(rng: &mut ChaCha20Rng) -> usize {
    let mut left = rng.random_range(0..1000);
    for (at, share) in MIX.iter().enumerate() {
        if left < share.permille {
            return at;
        }
        left -= share.permille;
    }
    unreachable!("the shares make a thousand")
}

impl Share {
    /// Whether strangers get in without anything being sent to them first.
    pub fn lets_everybody_in(&self) -> bool {
        match self.site {
            Site::Public => true,
            Site::Router(kind) => kind.passes_udp && kind.filtering == NatKind::FULL_CONE.filtering,
            Site::Subscriber(_) => false,
        }
    }

    /// Whether UDP gets out.
    pub fn passes_udp(&self) -> bool {
        !matches!(self.site, Site::Router(kind) if !kind.passes_udp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_make_a_thousand_and_are_what_the_studies_say() {
        let of = |wanted: fn(&Share) -> bool| -> u32 {
            MIX.iter()
                .filter(|share| wanted(share))
                .map(|share| share.permille)
                .sum()
        };
        let maps_alike = |share: &Share| match share.site {
            Site::Public => false,
            Site::Router(kind) | Site::Subscriber(kind) => {
                kind.passes_udp && kind.mapping == NatKind::PORT_RESTRICTED.mapping
            }
        };
        assert_eq!(of(|_| true), 1000);
        assert_eq!(of(|share| share.site == Site::Public), 90);
        assert_eq!(of(maps_alike), 722);
    }
}
