//! One network as the engine knows it: this node's part in it, ports, bindings, learned stations, and what waits for an
//! answer from the node. Peers stand in [`super::peer`].

use super::peer::Peer;
use crate::{session::LocalKeys, switch::mac_table::MacTable};
use overlay_types::{
    Binding, DhcpMode, Location, MacAddr, NetworkId, PathAddr, PeerId, PortId, PortKind,
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};
use zeroize::Zeroizing;

/// Questions that wait for their address to be found.
const QUESTIONS_MAX: usize = 64;
/// How long a question waits; its asker repeats it sooner.
const QUESTION_LIFE: Duration = Duration::from_secs(5);
/// How often the node is asked for the same address; and how long a stranger must have been silent to be told of again.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// For how long it is not asked for an address that it knows to be nobody's.
const ABSENT_FOR: Duration = Duration::from_secs(5);
/// Addresses that it is not asked for yet; one more takes the place of the one whose time comes first.
const NOT_BEFORE_MAX: usize = 256;
/// First messages by unknown keys that wait for the node to know them.
const STRANGERS_MAX: usize = 16;
/// How long they wait; their sender repeats them sooner.
const STRANGER_LIFE: Duration = Duration::from_secs(10);

/// This node's part in a network.
pub(super) struct Local {
    pub(super) id: NetworkId,
    pub(super) me: PeerId,
    pub(super) keys: LocalKeys,
    pub(super) psk: Zeroizing<[u8; 32]>,
    pub(super) dhcp: DhcpMode,
    pub(super) mtu: u16,
}

/// A local port.
pub(super) struct Port {
    pub(super) kind: PortKind,
    /// In order.
    pub(super) macs: Vec<MacAddr>,
}

/// A question about an address that nothing is bound to.
pub(super) struct Question {
    pub(super) ip: IpAddr,
    pub(super) port: PortId,
    pub(super) frame: Vec<u8>,
    at: Instant,
}

/// A first message by a key that we do not know.
pub(super) struct Stranger {
    pub(super) x25519: [u8; 32],
    pub(super) from: PathAddr,
    pub(super) bytes: Vec<u8>,
    at: Instant,
}

/// One network.
pub(super) struct Network {
    pub(super) local: Local,
    pub(super) peers: BTreeMap<PeerId, Peer>,
    /// Which member uses a key.
    pub(super) by_key: BTreeMap<[u8; 32], PeerId>,
    pub(super) ports: BTreeMap<PortId, Port>,
    pub(super) bindings: BTreeMap<IpAddr, (MacAddr, Location)>,
    pub(super) stations: MacTable,
    questions: VecDeque<Question>,
    /// When the node may be asked again for an address that nothing is bound to.
    not_before: BTreeMap<IpAddr, Instant>,
    strangers: VecDeque<Stranger>,
}

impl Network {
    pub(super) fn new(local: Local) -> Self {
        Self {
            local,
            peers: BTreeMap::new(),
            by_key: BTreeMap::new(),
            ports: BTreeMap::new(),
            bindings: BTreeMap::new(),
            stations: MacTable::default(),
            questions: VecDeque::new(),
            not_before: BTreeMap::new(),
            strangers: VecDeque::new(),
        }
    }

    /// Replaces the bindings; what is bound is not learned any longer. `false` when they are what they were.
    pub(super) fn set_bindings(&mut self, bindings: &[Binding]) -> bool {
        let bound = bindings.iter().map(|b| (b.ip, (b.mac, b.location)));
        let bound: BTreeMap<_, _> = bound.collect();
        if bound == self.bindings {
            return false;
        }
        self.bindings = bound;
        for binding in bindings {
            self.stations.forget(binding.mac);
        }
        self.not_before
            .retain(|ip, _| !self.bindings.contains_key(ip));
        true
    }

    /// Keeps a question; true when the node should be asked for its address.
    pub(super) fn ask(&mut self, ip: IpAddr, port: PortId, frame: Vec<u8>, now: Instant) -> bool {
        let at = now;
        self.questions.retain(|q| {
            let is_same = q.ip == ip && q.port == port && q.frame == frame;
            !is_same && now.saturating_duration_since(q.at) < QUESTION_LIFE
        });
        if self.questions.len() == QUESTIONS_MAX {
            self.questions.pop_front();
        }
        self.questions.push_back(Question {
            ip,
            port,
            frame,
            at,
        });
        let is_due = self.not_before.get(&ip).is_none_or(|&until| until <= now);
        if is_due {
            self.ask_not_before(ip, now + ASK_EVERY, now);
        }
        is_due
    }

    /// Takes the questions whose address is bound by now.
    pub(super) fn take_answerable(&mut self, now: Instant) -> Vec<Question> {
        let (ready, wait): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.questions)
            .into_iter()
            .filter(|q| now.saturating_duration_since(q.at) < QUESTION_LIFE)
            .partition(|q| self.bindings.contains_key(&q.ip));
        self.questions = wait;
        ready.into()
    }

    /// Nobody is known to have this address; the node is not asked for it for a while. Whoever asked still gets an answer if
    /// the holder's word comes in time: the system behind a port asks again only after a second.
    pub(super) fn note_absent(&mut self, ip: IpAddr, now: Instant) {
        self.ask_not_before(ip, now + ABSENT_FOR, now);
    }

    fn ask_not_before(&mut self, ip: IpAddr, until: Instant, now: Instant) {
        self.not_before.retain(|_, until| *until > now);
        if self.not_before.len() == NOT_BEFORE_MAX && !self.not_before.contains_key(&ip) {
            let soonest = self.not_before.iter().min_by_key(|(_, until)| **until);
            let soonest = soonest.map(|(ip, _)| *ip);
            soonest.map(|ip| self.not_before.remove(&ip));
        }
        self.not_before.insert(ip, until);
    }

    /// Keeps a first message of an unknown key; true when the node should hear of the key.
    pub(super) fn keep_stranger(
        &mut self,
        x25519: [u8; 32],
        from: PathAddr,
        bytes: Vec<u8>,
        now: Instant,
    ) -> bool {
        self.strangers
            .retain(|s| now.saturating_duration_since(s.at) < STRANGER_LIFE);
        let is_news = !self
            .strangers
            .iter()
            .any(|s| s.x25519 == x25519 && now.saturating_duration_since(s.at) < ASK_EVERY);
        self.strangers.retain(|s| s.x25519 != x25519); // only the newest one can still be answered
        if self.strangers.len() == STRANGERS_MAX {
            self.strangers.pop_front();
        }
        self.strangers.push_back(Stranger {
            x25519,
            from,
            bytes,
            at: now,
        });
        is_news
    }

    /// Takes the first message that a member sent before we knew it.
    pub(super) fn take_stranger(&mut self, x25519: &[u8; 32], now: Instant) -> Option<Stranger> {
        let at = self.strangers.iter().position(|s| s.x25519 == *x25519)?;
        self.strangers
            .remove(at)
            .filter(|s| now.saturating_duration_since(s.at) < STRANGER_LIFE)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::net::Ipv4Addr;

    fn network() -> Network {
        let keys = LocalKeys::generate(&mut rand_chacha::ChaCha20Rng::seed_from_u64(1));
        let (id, me, psk) = (NetworkId([1; 32]), PeerId([2; 32]), Zeroizing::new([3; 32]));
        Network::new(Local {
            id,
            me,
            keys,
            psk,
            dhcp: DhcpMode::Overlay,
            mtu: 1500,
        })
    }

    fn ip(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a4d_0000 + n).into()
    }

    #[test]
    fn questions_are_bounded_and_the_newest_are_kept() {
        let (mut network, t0) = (network(), Instant::now());
        for n in 0..QUESTIONS_MAX as u32 + 10 {
            assert!(network.ask(ip(n), PortId(1), vec![n as u8], t0));
        }
        network.bindings = (0..1000)
            .map(|n| (ip(n), (MacAddr([2; 6]), Location::Port(PortId(1)))))
            .collect();
        let ready = network.take_answerable(t0);
        assert_eq!(ready.len(), QUESTIONS_MAX);
        assert_eq!(ready[0].ip, ip(10));
        assert!(network.take_answerable(t0).is_empty());
    }

    #[test]
    fn a_question_grows_old() {
        let (mut network, t0) = (network(), Instant::now());
        network.ask(ip(1), PortId(1), Vec::new(), t0);
        network
            .bindings
            .insert(ip(1), (MacAddr([2; 6]), Location::Port(PortId(1))));
        assert!(network.take_answerable(t0 + QUESTION_LIFE).is_empty());
    }

    #[test]
    fn strangers_are_bounded_and_each_keeps_only_its_newest_message() {
        let (mut network, t0) = (network(), Instant::now());
        let from = PathAddr::Direct(([192, 0, 2, 1], 1).into());
        for n in 0..40 {
            assert!(network.keep_stranger([n; 32], from, vec![1], t0));
        }
        assert_eq!(network.strangers.len(), STRANGERS_MAX);
        assert!(!network.keep_stranger([39; 32], from, vec![2], t0));
        assert_eq!(network.take_stranger(&[39; 32], t0).unwrap().bytes, [2]);
        assert!(network.take_stranger(&[0; 32], t0).is_none());
    }
}
