//! A responder under load asks initiators to prove their address before it does public-key work (WireGuard §5.4.7),
//! and gives each address only so many handshakes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use hkdf::Hkdf;
use overlay_types::NetworkId;
use rand::RngCore;
use rand_chacha::ChaCha20Rng;
use sha2::Sha256;
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use super::{SessionSlot, mac};
use crate::wire::datagram::COOKIE_REPLY;
use crate::wire::handshake::{
    COOKIE_REPLY_BYTES, HANDSHAKE_HEADER_BYTES, HandshakeHeader, INITIATION_BYTES, MAC_BYTES,
};

/// How long the secret behind cookies lives; a cookie is good for at most twice that (WireGuard §5.4.7 has two minutes).
const SECRET_LIFE: Duration = Duration::from_secs(120);
/// How long an initiator uses a cookie.
pub(super) const COOKIE_LIFE: Duration = SECRET_LIFE;
/// Above this many initiations in a second we are under load: each costs a quarter of a millisecond.
const CALM_PER_SECOND: u32 = 200;
/// Under load a source gets this many handshakes at once ...
const BURST: u32 = 5;
/// ... and one more each time this passes.
const REFILL: Duration = Duration::from_millis(50);
/// Sources remembered; when full, quiet ones are forgotten, and without a quiet one newcomers wait.
const SOURCES_MAX: usize = 4096;
const NONCE_BYTES: usize = 24;

/// What a responder handed to us; it goes into the next initiation as mac2.
#[derive(Clone, PartialEq, Eq)]
pub struct Cookie([u8; MAC_BYTES]);

impl Cookie {
    /// How long it may be used after it was received.
    pub const LIFE: Duration = COOKIE_LIFE;

    /// mac2 over an initiation that ends with mac1.
    pub(super) fn mac2(&self, initiation: &[u8]) -> [u8; MAC_BYTES] {
        mac::keyed(&self.0, initiation)
    }
}

impl std::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cookie")
    }
}

/// What to do with an initiation whose mac1 matched.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Open it.
    Open,
    /// Send this cookie reply back to where it came from, and forget it.
    Reply(Vec<u8>),
    /// Forget it: that source has had its share.
    Drop,
}

/// What [`HandshakeGate`] counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HandshakeGateStats {
    /// Initiations let through.
    pub opened: u64,
    /// Cookie replies made.
    pub cookies: u64,
    /// Initiations refused for their source's rate.
    pub dropped_rate: u64,
    /// Initiations refused because the table of sources was full.
    pub dropped_full: u64,
}

/// Decides which initiations are worth opening.
pub struct HandshakeGate {
    secret: Zeroizing<[u8; 32]>,
    secret_before: Option<Zeroizing<[u8; 32]>>,
    secret_made_at: Instant,
    second_began_at: Instant,
    this_second: u32,
    last_second: u32,
    sources: BTreeMap<IpAddr, Bucket>,
    stats: HandshakeGateStats,
}

struct Bucket {
    tokens: u32,
    refilled_at: Instant,
}

impl HandshakeGate {
    /// A gate that is calm.
    pub fn new(rng: &mut ChaCha20Rng, now: Instant) -> Self {
        Self {
            secret: fresh_secret(rng),
            secret_before: None,
            secret_made_at: now,
            second_began_at: now,
            this_second: 0,
            last_second: 0,
            sources: BTreeMap::new(),
            stats: HandshakeGateStats::default(),
        }
    }

    /// What it counted.
    pub const fn stats(&self) -> HandshakeGateStats {
        self.stats
    }

    /// Decides about `initiation`, whose mac1 matched for the member `local_public` of `network`.
    pub fn admit(
        &mut self,
        from: SocketAddr,
        initiation: &[u8],
        local_public: &[u8; 32],
        network: NetworkId,
        now: Instant,
        rng: &mut ChaCha20Rng,
    ) -> Admission {
        self.count_second(now);
        if !self.under_load() {
            self.stats.opened += 1;
            return Admission::Open;
        }
        self.rotate_secret(now, rng);
        if !self.mac2_matches(from, initiation) {
            let Some(reply) = self.make_reply(from, initiation, local_public, network, rng) else {
                return Admission::Drop;
            };
            self.stats.cookies += 1;
            return Admission::Reply(reply);
        }
        if self.take_token(from.ip(), now) {
            self.stats.opened += 1;
            Admission::Open
        } else {
            Admission::Drop
        }
    }

    fn count_second(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.second_began_at);
        if passed >= Duration::from_secs(1) {
            self.last_second = if passed < Duration::from_secs(2) {
                self.this_second
            } else {
                0
            };
            self.this_second = 0;
            self.second_began_at = now;
        }
        self.this_second = self.this_second.saturating_add(1);
    }

    const fn under_load(&self) -> bool {
        self.this_second > CALM_PER_SECOND || self.last_second > CALM_PER_SECOND
    }

    fn rotate_secret(&mut self, now: Instant, rng: &mut ChaCha20Rng) {
        let age = now.saturating_duration_since(self.secret_made_at);
        if age < SECRET_LIFE {
            return;
        }
        let old = std::mem::replace(&mut self.secret, fresh_secret(rng));
        self.secret_before = (age < 2 * SECRET_LIFE).then_some(old);
        self.secret_made_at = now;
    }

    fn mac2_matches(&self, from: SocketAddr, initiation: &[u8]) -> bool {
        if initiation.len() != INITIATION_BYTES + MAC_BYTES {
            return false;
        }
        let (before, mac2) = initiation.split_at(INITIATION_BYTES);
        let secrets = [Some(&self.secret), self.secret_before.as_ref()];
        secrets
            .into_iter()
            .flatten()
            .any(|secret| mac::equal(&cookie_for(secret, from).mac2(before), mac2))
    }

    fn make_reply(
        &self,
        from: SocketAddr,
        initiation: &[u8],
        local_public: &[u8; 32],
        network: NetworkId,
        rng: &mut ChaCha20Rng,
    ) -> Option<Vec<u8>> {
        let receiver = HandshakeHeader::parse(initiation)?.index();
        let at = mac::mac1_at(initiation)?;
        let mut nonce = [0; NONCE_BYTES];
        rng.fill_bytes(&mut nonce);
        let mut sealed = cookie_for(&self.secret, from).0;
        let tag = reply_key(network, local_public, &nonce)
            .seal_in_place_separate_tag(
                zero_nonce(),
                Aad::from(&initiation[at..at + MAC_BYTES]),
                &mut sealed,
            )
            .expect("a cookie is far shorter than the cipher's limit");
        let mut reply = Vec::with_capacity(COOKIE_REPLY_BYTES);
        reply.extend(HandshakeHeader::new(COOKIE_REPLY, 0, 0, receiver).as_bytes());
        reply.extend(nonce);
        reply.extend(sealed);
        reply.extend(tag.as_ref());
        Some(reply)
    }

    fn take_token(&mut self, ip: IpAddr, now: Instant) -> bool {
        let source = source_of(ip);
        if !self.sources.contains_key(&source) && self.sources.len() >= SOURCES_MAX {
            self.sources.retain(|_, bucket| {
                now.saturating_duration_since(bucket.refilled_at) < REFILL * BURST
            });
            if self.sources.len() >= SOURCES_MAX {
                self.stats.dropped_full += 1;
                return false;
            }
        }
        let bucket = self.sources.entry(source).or_insert(Bucket {
            tokens: BURST,
            refilled_at: now,
        });
        let refills = now
            .saturating_duration_since(bucket.refilled_at)
            .as_millis()
            / REFILL.as_millis();
        if refills > 0 {
            bucket.tokens = BURST.min(
                bucket
                    .tokens
                    .saturating_add(u32::try_from(refills).unwrap_or(BURST)),
            );
            bucket.refilled_at = now;
        }
        if bucket.tokens == 0 {
            self.stats.dropped_rate += 1;
            return false;
        }
        bucket.tokens -= 1;
        true
    }
}

/// Who shares a bucket: one IPv4 address, or one IPv6 /64, which a single host can fill.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

fn fresh_secret(rng: &mut ChaCha20Rng) -> Zeroizing<[u8; 32]> {
    let mut secret = Zeroizing::new([0; 32]);
    rng.fill_bytes(secret.as_mut_slice());
    secret
}

/// The cookie of one address and port.
fn cookie_for(secret: &[u8; 32], from: SocketAddr) -> Cookie {
    let mut bytes = [0; 18];
    match from.ip() {
        IpAddr::V4(v4) => bytes[..16].copy_from_slice(&v4.to_ipv6_mapped().octets()),
        IpAddr::V6(v6) => bytes[..16].copy_from_slice(&v6.octets()),
    }
    bytes[16..].copy_from_slice(&from.port().to_be_bytes());
    Cookie(mac::keyed(secret, &bytes))
}

/// Each reply has a key of its own, from a nonce too long to repeat; so its cipher's nonce may be zero.
fn reply_key(network: NetworkId, responder: &[u8; 32], nonce: &[u8; NONCE_BYTES]) -> LessSafeKey {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(nonce), &mac::label_key(b"cookie", network, responder))
        .expand(b"farlan cookie", key.as_mut_slice())
        .expect("32 bytes are one block");
    LessSafeKey::new(
        UnboundKey::new(&CHACHA20_POLY1305, key.as_slice()).expect("the key has 32 bytes"),
    )
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// The cookie in `reply`, if it answers our initiation under `slot` with `mac1` to `responder`.
pub(super) fn open_reply(
    network: NetworkId,
    responder: &[u8; 32],
    slot: SessionSlot,
    mac1: &[u8; MAC_BYTES],
    reply: &[u8],
) -> Option<Cookie> {
    let header = HandshakeHeader::parse(reply)
        .filter(|h| h.kind == COOKIE_REPLY && h.index() == slot.raw())?;
    debug_assert_eq!(header.kind, COOKIE_REPLY);
    let (nonce, sealed) = reply[HANDSHAKE_HEADER_BYTES..].split_first_chunk::<NONCE_BYTES>()?;
    let mut sealed = sealed.to_vec();
    let cookie = reply_key(network, responder, nonce)
        .open_in_place(zero_nonce(), Aad::from(mac1), &mut sealed)
        .ok()?;
    (*cookie).try_into().ok().map(Cookie)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test's time begins somewhere")]
mod tests {
    use super::*;
    use crate::session::{Initiator, LocalKeys, open_initiation};
    use rand::SeedableRng;

    const NETWORK: NetworkId = NetworkId([1; 32]);
    const PSK: [u8; 32] = [7; 32];

    struct Party {
        rng: ChaCha20Rng,
        initiator: LocalKeys,
        responder: LocalKeys,
        gate: HandshakeGate,
        now: Instant,
        from: SocketAddr,
    }

    fn party() -> Party {
        let (mut rng, now) = (ChaCha20Rng::seed_from_u64(3), Instant::now());
        let (initiator, responder) = (LocalKeys::generate(&mut rng), LocalKeys::generate(&mut rng));
        let gate = HandshakeGate::new(&mut rng, now);
        Party {
            rng,
            initiator,
            responder,
            gate,
            now,
            from: "198.51.100.7:4000".parse().unwrap(),
        }
    }

    impl Party {
        fn start(&mut self, cookie: Option<&Cookie>) -> (Initiator, Vec<u8>) {
            let (to, slot) = (self.responder.public(), SessionSlot::from_low_bits(1));
            Initiator::start(
                &self.initiator,
                &to,
                NETWORK,
                &PSK,
                slot,
                1,
                cookie,
                true,
                &mut self.rng,
            )
            .unwrap()
        }

        fn admit(&mut self, from: SocketAddr, initiation: &[u8]) -> Admission {
            self.gate.admit(
                from,
                initiation,
                self.responder.x25519(),
                NETWORK,
                self.now,
                &mut self.rng,
            )
        }

        fn bring_under_load(&mut self) {
            let (_, initiation) = self.start(None);
            for _ in 0..=CALM_PER_SECOND {
                self.admit(self.from, &initiation);
            }
        }

        fn cookie(&mut self) -> Cookie {
            let (mut initiator, initiation) = self.start(None);
            let Admission::Reply(reply) = self.admit(self.from, &initiation) else {
                panic!("not under load")
            };
            initiator.handle_cookie_reply(&reply).unwrap()
        }
    }

    #[test]
    fn a_calm_responder_opens_everything() {
        let mut party = party();
        let (_, initiation) = party.start(None);
        assert_eq!(party.admit(party.from, &initiation), Admission::Open);
    }

    #[test]
    fn under_load_only_who_shows_its_cookie_is_opened() {
        let mut party = party();
        party.bring_under_load();
        let cookie = party.cookie();
        let (_, initiation) = party.start(Some(&cookie));
        assert_eq!(party.admit(party.from, &initiation), Admission::Open);
        assert!(open_initiation(&party.responder, NETWORK, &initiation, &mut party.rng).is_ok());
        let elsewhere = "198.51.100.8:4000".parse().unwrap();
        assert!(matches!(
            party.admit(elsewhere, &initiation),
            Admission::Reply(_)
        ));
    }

    #[test]
    fn a_source_with_a_cookie_still_gets_only_its_share() {
        let mut party = party();
        party.bring_under_load();
        let cookie = party.cookie();
        let (_, initiation) = party.start(Some(&cookie));
        let opened = (0..50)
            .filter(|_| party.admit(party.from, &initiation) == Admission::Open)
            .count();
        assert_eq!(
            (opened, party.gate.stats().dropped_rate),
            (BURST as usize, 45)
        );
        party.now += REFILL;
        assert_eq!(party.admit(party.from, &initiation), Admission::Open);
    }

    #[test]
    fn a_cookie_outlives_one_change_of_the_secret_but_not_two() {
        let mut party = party();
        party.bring_under_load();
        let cookie = party.cookie();
        let (_, initiation) = party.start(Some(&cookie));
        party.now += SECRET_LIFE;
        party.bring_under_load();
        assert_eq!(party.admit(party.from, &initiation), Admission::Open);
        party.now += SECRET_LIFE;
        party.bring_under_load();
        assert!(matches!(
            party.admit(party.from, &initiation),
            Admission::Reply(_)
        ));
    }

    #[test]
    fn a_forged_cookie_reply_is_not_taken() {
        let mut party = party();
        party.bring_under_load();
        let (mut initiator, initiation) = party.start(None);
        let Admission::Reply(mut reply) = party.admit(party.from, &initiation) else {
            panic!("not under load")
        };
        reply[40] ^= 1;
        assert!(initiator.handle_cookie_reply(&reply).is_err());
        reply[40] ^= 1;
        let (mut other, _) = party.start(None);
        assert!(
            other.handle_cookie_reply(&reply).is_err(),
            "it answers another initiation"
        );
        assert!(initiator.handle_cookie_reply(&reply).is_ok());
    }

    #[test]
    fn sources_are_bounded_and_an_ipv6_subnet_is_one_source() {
        let mut party = party();
        for host in 0..u32::try_from(SOURCES_MAX).unwrap() + 50 {
            party
                .gate
                .take_token(IpAddr::from(host.to_be_bytes()), party.now);
        }
        assert_eq!(
            (party.gate.sources.len(), party.gate.stats().dropped_full),
            (SOURCES_MAX, 50)
        );
        party.now += Duration::from_secs(1);
        let taken = (0..20u16).filter(|host| {
            party.gate.take_token(
                std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, *host, 0, 0, 1).into(),
                party.now,
            )
        });
        assert_eq!(taken.count(), BURST as usize);
        assert_eq!(party.gate.sources.len(), 1);
    }
}
