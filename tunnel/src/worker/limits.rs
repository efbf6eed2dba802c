//! How much a worker tells the engine, so that no stranger and no guest can drown it.

use crate::switch::flood::TokenBucket;
use overlay_types::{Location, MacAddr, NetworkId, PathAddr};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

/// How often a session's traffic, a way that datagrams come, and the counters are told at most.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(250);
/// Reports a second for each reason that a stranger or a guest can cause, and the burst: the engine must not drown.
const REPORTS_PER_SECOND: u32 = 500;
/// See [`REPORTS_PER_SECOND`].
const REPORT_BURST: u32 = 250;
/// Control datagrams a second of one session, and the burst: the probes of a run by chance come at once, all others are few.
pub(super) const CONTROL_PER_SECOND: u32 = 250;
/// See [`CONTROL_PER_SECOND`].
pub(super) const CONTROL_BURST: u32 = 500;
/// Places for sources of a kind of datagram; sources that share one share what it has.
const SOURCES: usize = 256;
/// What a source has in any case of each kind, whatever others send: some tries of a handshake, or to bind at a relay. All places
/// together have as much as one kind is reported otherwise, and 2048 at once.
const SOURCE_PER_SECOND: u32 = 2;
/// See [`SOURCE_PER_SECOND`].
const SOURCE_BURST: u32 = 8;
/// How often a learned station is told again; well below the ageing time.
const STATION_TOLD_EVERY: Duration = Duration::from_secs(60);
/// Stations whose last telling is remembered. Two that share a place are told more often, which is harmless.
const STATIONS_TOLD: usize = 1024;

/// One budget per reason to report, so that none starves the others.
pub(super) struct Limits {
    /// The control lanes of all sessions; each has its own budget beside that.
    pub(super) control: TokenBucket,
    /// What says that it is a control lane's, of no session that this worker knows: it may have begun just now.
    pub(super) unknown_control: Shared,
    pub(super) handshakes: Shared,
    pub(super) stun: Shared,
    pub(super) relay_replies: Shared,
    pub(super) relay_requests: Shared,
    pub(super) unknown_sessions: TokenBucket,
    pub(super) heard: TokenBucket,
    pub(super) stations: TokenBucket,
    pub(super) wanted: TokenBucket,
    pub(super) punted: TokenBucket,
    pub(super) waiting: TokenBucket,
}

impl Limits {
    pub(super) fn new(now: Instant) -> Self {
        let bucket = || TokenBucket::new(REPORTS_PER_SECOND, REPORT_BURST, now);
        Self {
            control: TokenBucket::new(4 * REPORTS_PER_SECOND, 4 * REPORT_BURST, now),
            unknown_control: Shared::new(bucket()),
            handshakes: Shared::new(TokenBucket::new(
                2 * REPORTS_PER_SECOND,
                4 * REPORT_BURST,
                now,
            )),
            stun: Shared::new(bucket()),
            relay_replies: Shared::new(bucket()),
            relay_requests: Shared::new(bucket()),
            unknown_sessions: bucket(),
            heard: bucket(),
            stations: bucket(),
            wanted: bucket(),
            punted: bucket(),
            waiting: bucket(),
        }
    }
}

/// The budget of what anybody may send, with a small part for each source: who floods keeps others from nothing, as long as he
/// does not send from everywhere.
pub(super) struct Shared {
    all: TokenBucket,
    sources: Box<[Option<TokenBucket>; SOURCES]>,
}

impl Shared {
    fn new(all: TokenBucket) -> Self {
        Self {
            all,
            sources: Box::new([const { None }; SOURCES]),
        }
    }

    /// Takes one of the source's own part, or else of what there is for all.
    pub(super) fn take(&mut self, from: PathAddr, now: Instant) -> bool {
        let fresh = || TokenBucket::new(SOURCE_PER_SECOND, SOURCE_BURST, now);
        let source = self.sources[place_of(from)].get_or_insert_with(fresh);
        source.take(now) || self.all.take(now)
    }
}

/// The place of an IPv4 address, or of an IPv6 /64, which a single host can fill; through relays, of whom these name.
fn place_of(from: PathAddr) -> usize {
    let mut hash = 0xcbf2_9ce4_8422_2325; // FNV-1a
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match from.socket_addr().ip().to_canonical() {
        IpAddr::V4(ip) => add(&ip.octets()),
        IpAddr::V6(ip) => add(&ip.octets()[..8]),
    }
    match from {
        PathAddr::Direct(_) | PathAddr::Punched { .. } => {}
        PathAddr::Relayed { index, .. } => add(&index.to_be_bytes()),
        PathAddr::Chained { via, index, .. } => {
            add(&via.to_be_bytes());
            add(&index.to_be_bytes());
        }
    }
    (hash ^ hash >> 32) as usize % SOURCES
}

/// Which stations were told lately, in bounded memory.
pub(super) struct StationsTold(Box<[Option<Told>; STATIONS_TOLD]>);

#[derive(Clone, Copy)]
struct Told {
    network: NetworkId,
    mac: MacAddr,
    at: Location,
    told_at: Instant,
}

impl Default for StationsTold {
    fn default() -> Self {
        Self(Box::new([None; STATIONS_TOLD]))
    }
}

impl StationsTold {
    /// Whether a sighting is to be told: the first one, and then again after a while. A station that was not where the
    /// engine has it is told more often than one whose place is only to be refreshed.
    pub(super) fn note(
        &mut self,
        network: NetworkId,
        mac: MacAddr,
        at: Location,
        is_known: bool,
        now: Instant,
    ) -> bool {
        let every = if is_known {
            STATION_TOLD_EVERY
        } else {
            TELL_EVERY
        };
        let hash = mac.0.iter().fold(0usize, |hash, &byte| {
            hash.wrapping_mul(31).wrapping_add(usize::from(byte))
        });
        let told = &mut self.0[hash % STATIONS_TOLD];
        let is_fresh = told.is_some_and(|t| {
            (t.network, t.mac, t.at) == (network, mac, at)
                && now.saturating_duration_since(t.told_at) < every
        });
        if !is_fresh {
            *told = Some(Told {
                network,
                mac,
                at,
                told_at: now,
            });
        }
        !is_fresh
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use overlay_types::PortId;

    #[test]
    fn a_sighting_is_told_once_and_again_after_a_while_or_elsewhere() {
        let (mut told, t0) = (StationsTold::default(), Instant::now());
        let (network, mac) = (NetworkId([1; 32]), MacAddr([2, 0, 0, 0, 0, 1]));
        let (here, there) = (Location::Port(PortId(1)), Location::Port(PortId(2)));
        assert!(told.note(network, mac, here, false, t0));
        assert!(!told.note(network, mac, here, false, t0));
        assert!(!told.note(network, mac, here, true, t0 + TELL_EVERY));
        assert!(told.note(network, mac, here, true, t0 + STATION_TOLD_EVERY));
        assert!(told.note(network, mac, there, true, t0 + STATION_TOLD_EVERY));
    }
}
