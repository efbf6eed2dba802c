//! Sealed values in a DHT that strangers share: whoever stores them checks a signature and learns nothing else.
//! What is inside is signed by its author once more ([`crate::record`]); moving slots about is `swarm`'s.

use crate::encoding::{Undecodable, decode, encode};
use crate::identity::{BadSignature, Domain, Identity, Signature, verify};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use hkdf::Hkdf;
use overlay_types::{MacAddr, Name, PeerId};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::RngCore;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::{fmt, mem};
use zeroize::Zeroizing;

/// The largest value that the DHT takes, encoded.
pub const SLOT_VALUE_MAX: usize = 4096;
/// Slot key, signature, two counters, nonce, tag and length.
const SLOT_OVERHEAD: usize = 32 + 64 + 10 + 10 + 12 + 16 + 3;
/// What fits inside.
pub const SLOT_CONTENT_MAX: usize = SLOT_VALUE_MAX - SLOT_OVERHEAD;
/// How long a value may ask to be kept: two days, so that what nobody renews goes away.
pub const SLOT_SECONDS_MAX: u64 = 2 * 86_400;
/// How far a sequence number (unix milliseconds) may run ahead of the storing node's clock, or a griefer could pick one that nobody can top.
const SEQ_AHEAD_MAX_MS: u64 = 5 * 60 * 1000;

/// What a slot is about. With the network's slot root it gives the slot's keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotName {
    /// A node's record.
    Node(PeerId),
    /// Which node has an address.
    Address(IpAddr),
    /// Which node has a station.
    Mac(MacAddr),
    /// Which node has a name.
    Name(Name),
    /// Where the registrars are; under a rendezvous key instead of the slot root.
    Rendezvous,
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(peer) => write!(f, "node/{peer}"),
            Self::Address(ip) => write!(f, "address/{ip}"),
            Self::Mac(mac) => write!(f, "mac/{mac}"),
            Self::Name(name) => write!(f, "name/{name}"),
            Self::Rendezvous => f.write_str("rendezvous"),
        }
    }
}

/// The right to read and write one slot: its signing key and its content key.
pub struct SlotKey {
    signing: Identity,
    content: LessSafeKey,
}

impl SlotKey {
    /// The slot of `name` under `root` ([`crate::network::NetworkSecret::slot_root`], or a rendezvous key).
    pub fn derive(root: &[u8; 32], name: &SlotName) -> Self {
        let mut okm = Zeroizing::new([0; 64]);
        Hkdf::<Sha256>::from_prk(root)
            .expect("32 bytes are a full PRK for SHA-256")
            .expand_multi_info(
                &[b"farlan-1 slot\0", name.to_string().as_bytes()],
                &mut *okm,
            )
            .expect("64 bytes are within HKDF's 255 blocks");
        let seed = Zeroizing::new(<[u8; 32]>::try_from(&okm[..32]).expect("half of 64 is 32"));
        let content = UnboundKey::new(&AES_256_GCM, &okm[32..]).expect("AES-256 keys are 32 bytes");
        Self {
            signing: Identity::from_bytes(&seed),
            content: LessSafeKey::new(content),
        }
    }

    /// Where in the DHT the slot is.
    pub fn dht_key(&self) -> [u8; 32] {
        dht_key(&self.public())
    }

    fn public(&self) -> [u8; 32] {
        self.signing.peer_id().0
    }

    /// Seals `content` into a value. `unix_ms` becomes its sequence number; it lives for `seconds`.
    ///
    /// # Errors
    /// [`Undecodable::TooLarge`] when it would not fit a slot.
    pub fn seal(
        &self,
        content: &[u8],
        unix_ms: u64,
        seconds: u64,
        rng: &mut ChaCha20Rng,
    ) -> Result<SlotValue, Undecodable> {
        if content.len() > SLOT_CONTENT_MAX {
            return Err(Undecodable::TooLarge {
                size: content.len(),
                max: SLOT_CONTENT_MAX,
            });
        }
        let expires = unix_ms / 1000 + seconds.min(SLOT_SECONDS_MAX);
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce); // a slot is written thousands of times at most; 96 random bits do not meet
        let mut ciphertext = content.to_vec();
        let aad = Aad::from(header(&self.public(), unix_ms, expires));
        self.content
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut ciphertext)
            .expect("AES-GCM seals any 4 KiB");
        ciphertext.extend_from_slice(&nonce);
        let mut value = SlotValue {
            slot_pk: self.public(),
            seq: unix_ms,
            expires,
            ciphertext,
            sig: Signature([0; 64]),
        };
        value.sig = self.signing.sign(Domain::Slot, &value.signed_bytes());
        Ok(value)
    }

    /// The content of a value of this slot, its signature and expiry checked.
    ///
    /// # Errors
    /// [`SlotError`]; the reader looks at the next value.
    pub fn open(&self, value: &SlotValue, unix: u64) -> Result<Vec<u8>, SlotError> {
        value.verify(unix)?;
        if value.slot_pk != self.public() {
            return Err(SlotError::Signature(BadSignature));
        }
        let split = value
            .ciphertext
            .len()
            .checked_sub(NONCE_LEN)
            .ok_or(SlotError::Sealed)?;
        let (sealed, nonce) = value.ciphertext.split_at(split);
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SlotError::Sealed)?;
        let mut content = sealed.to_vec();
        let aad = Aad::from(header(&value.slot_pk, value.seq, value.expires));
        let len = self
            .content
            .open_in_place(nonce, aad, &mut content)
            .map_err(|_| SlotError::Sealed)?
            .len();
        content.truncate(len);
        Ok(content)
    }
}

impl fmt::Debug for SlotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlotKey({:02x?}…)", &self.dht_key()[..4])
    }
}

/// Where in the DHT the slot of `slot_pk` is.
fn dht_key(slot_pk: &[u8; 32]) -> [u8; 32] {
    Sha256::new()
        .chain_update("farlan-1 slot key\0")
        .chain_update(slot_pk)
        .finalize()
        .into()
}

fn header(slot_pk: &[u8; 32], seq: u64, expires: u64) -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes[..32].copy_from_slice(slot_pk);
    bytes[32..40].copy_from_slice(&seq.to_be_bytes());
    bytes[40..].copy_from_slice(&expires.to_be_bytes());
    bytes
}

/// A value as the DHT stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotValue {
    /// The slot's public key; its hash is the DHT key.
    pub slot_pk: [u8; 32],
    /// Unix milliseconds of writing; the highest is the newest.
    pub seq: u64,
    /// Unix seconds; nobody keeps it longer.
    pub expires: u64,
    /// Sealed content, tag, nonce.
    pub ciphertext: Vec<u8>,
    /// By the slot's key over all of the above.
    pub sig: Signature,
}

impl SlotValue {
    /// The bytes that the DHT stores.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads them back, unchecked.
    ///
    /// # Errors
    /// [`Undecodable`] when they are not a slot value of at most 4 KiB.
    pub fn decode(bytes: &[u8]) -> Result<Self, Undecodable> {
        decode(bytes, SLOT_VALUE_MAX)
    }

    /// Where in the DHT it belongs.
    pub fn dht_key(&self) -> [u8; 32] {
        dht_key(&self.slot_pk)
    }

    /// What anyone can check: signature, expiry, and that it does not come from the future.
    ///
    /// # Errors
    /// [`SlotError`]; the caller drops it and counts.
    pub fn verify(&self, unix: u64) -> Result<(), SlotError> {
        if self.expires <= unix {
            return Err(SlotError::Expired);
        }
        if self.expires - unix > SLOT_SECONDS_MAX + SEQ_AHEAD_MAX_MS / 1000
            || self.seq > unix.saturating_mul(1000).saturating_add(SEQ_AHEAD_MAX_MS)
        {
            return Err(SlotError::TooFarAhead);
        }
        Ok(verify(
            PeerId(self.slot_pk),
            Domain::Slot,
            &self.signed_bytes(),
            &self.sig,
        )?)
    }

    fn signed_bytes(&self) -> Vec<u8> {
        [
            &header(&self.slot_pk, self.seq, self.expires)[..],
            &self.ciphertext,
        ]
        .concat()
    }

    fn size(&self) -> usize {
        mem::size_of::<Self>() + self.ciphertext.len()
    }
}

/// Why a value is not taken or not read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SlotError {
    /// Not by the slot's key.
    #[error(transparent)]
    Signature(#[from] BadSignature),
    /// It is over.
    #[error("the value has expired")]
    Expired,
    /// Its times are beyond what anyone may ask for; or a clock is wrong.
    #[error("the value's times lie too far ahead; is a clock wrong?")]
    TooFarAhead,
    /// Signed by the slot's key, but sealed with another.
    #[error("the value does not open with this slot's key")]
    Sealed,
}

/// Who hands in a value: the authenticated peer, and the address it connects from where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The connection's peer.
    pub peer: PeerId,
    /// Where it connects from; `None` through a relay.
    pub ip: Option<IpAddr>,
}

/// A /24 (IPv4) or /48 (IPv6): about what one customer controls.
pub(crate) type Site = [u8; 7];

/// The site of an address; relayed connections, which have none here, are one.
pub(crate) fn site_of(ip: Option<IpAddr>) -> Site {
    match ip.map(|ip| ip.to_canonical()) {
        None => [0; 7],
        Some(IpAddr::V4(v4)) => {
            let [a, b, c, _] = v4.octets();
            [4, a, b, c, 0, 0, 0]
        }
        Some(IpAddr::V6(v6)) => {
            let o = v6.octets();
            [6, o[0], o[1], o[2], o[3], o[4], o[5]]
        }
    }
}

/// Values that one slot keeps, each from another source, so that one member cannot mask another.
pub const VALUES_PER_SLOT: usize = 4;

/// How much a store keeps.
#[derive(Clone, Copy, Debug)]
pub struct SlotLimits {
    /// Values that one peer may have here at a time.
    pub values_per_peer: usize,
    /// Values that one /24 (or IPv6 /48) may have here at a time.
    pub values_per_site: usize,
    /// Bytes in total.
    pub bytes_max: usize,
}

impl Default for SlotLimits {
    /// A node in ten networks with a dozen names each needs a few hundred; 64 MiB hold some 20,000 records.
    fn default() -> Self {
        Self {
            values_per_peer: 512,
            values_per_site: 4096,
            bytes_max: 64 << 20,
        }
    }
}

/// What became of the values handed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounters {
    /// Taken.
    pub stored: u64,
    /// Older than what the same source wrote before, or than all four there.
    pub refused_old: u64,
    /// Wrong signature, expired, from the future, undecodable.
    pub refused_invalid: u64,
    /// The peer or its site has too many here.
    pub refused_quota: u64,
    /// The store is full.
    pub refused_full: u64,
    /// Gone with their time.
    pub expired: u64,
    /// Replaced by newer ones when a slot had four.
    pub replaced: u64,
}

/// Why a store does not take a value.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PutError {
    /// The value itself is wrong.
    #[error(transparent)]
    Invalid(#[from] SlotError),
    /// Not a slot value, or too large.
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    /// A newer one is here.
    #[error("a newer value is here already")]
    Old,
    /// The peer or its site has too many here.
    #[error("this peer or its site has as many values here as it may")]
    Quota,
    /// The store is full.
    #[error("the store is full")]
    Full,
}

#[derive(Debug)]
struct Kept {
    value: SlotValue,
    source: Source,
}

/// The values that a node keeps for the DHT. In memory only: their authors write them again.
#[derive(Debug)]
pub struct SlotStore {
    limits: SlotLimits,
    slots: BTreeMap<[u8; 32], Vec<Kept>>,
    by_peer: BTreeMap<PeerId, usize>,
    by_site: BTreeMap<Site, usize>,
    bytes: usize,
    counters: SlotCounters,
}

impl SlotStore {
    /// An empty store.
    pub const fn new(limits: SlotLimits) -> Self {
        let counters = SlotCounters {
            stored: 0,
            refused_old: 0,
            refused_invalid: 0,
            refused_quota: 0,
            refused_full: 0,
            expired: 0,
            replaced: 0,
        };
        Self {
            limits,
            slots: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            by_site: BTreeMap::new(),
            bytes: 0,
            counters,
        }
    }

    /// Takes an encoded value from `source`, or says why not. Answers its DHT key.
    ///
    /// # Errors
    /// [`PutError`]; the writer counts it as not stored.
    pub fn put(&mut self, bytes: &[u8], source: Source, unix: u64) -> Result<[u8; 32], PutError> {
        let checked = SlotValue::decode(bytes)
            .map_err(PutError::from)
            .and_then(|value| value.verify(unix).map(|()| value).map_err(PutError::from));
        let result = checked.and_then(|value| self.put_checked(value, source, unix));
        match &result {
            Ok(_) => self.counters.stored += 1,
            Err(PutError::Invalid(_) | PutError::Undecodable(_)) => {
                self.counters.refused_invalid += 1
            }
            Err(PutError::Old) => self.counters.refused_old += 1,
            Err(PutError::Quota) => self.counters.refused_quota += 1,
            Err(PutError::Full) => self.counters.refused_full += 1,
        }
        result
    }

    fn put_checked(
        &mut self,
        value: SlotValue,
        source: Source,
        unix: u64,
    ) -> Result<[u8; 32], PutError> {
        let key = value.dht_key();
        let slot = self.slots.get(&key).map_or(&[][..], Vec::as_slice);
        // What makes room: the same source's older value; else, in a full slot, the oldest of all.
        let own = slot.iter().position(|kept| kept.source.peer == source.peer);
        let oldest = || (0..slot.len()).min_by_key(|&i| slot[i].value.seq);
        let replaces = own.or_else(|| {
            if slot.len() == VALUES_PER_SLOT {
                oldest()
            } else {
                None
            }
        });
        if let Some(i) = replaces {
            if slot[i].value == value {
                return Ok(key); // the same once more: a retransmission
            }
            if slot[i].value.seq >= value.seq {
                return Err(PutError::Old);
            }
        }
        if own.is_none() {
            let of_peer = self.by_peer.get(&source.peer).copied().unwrap_or(0);
            let of_site = self.by_site.get(&site_of(source.ip)).copied().unwrap_or(0);
            if of_peer >= self.limits.values_per_peer || of_site >= self.limits.values_per_site {
                return Err(PutError::Quota);
            }
        }
        if self.bytes + value.size() > self.limits.bytes_max {
            self.expire(unix);
            if self.bytes + value.size() > self.limits.bytes_max {
                return Err(PutError::Full);
            }
            // Expiry may have moved places within the slot, so the choice is made afresh; there is room for it now.
            return self.put_checked(value, source, unix);
        }
        if let Some(i) = replaces {
            let was = self
                .slots
                .get_mut(&key)
                .expect("the place was found in it")
                .swap_remove(i);
            self.uncount(&was);
            self.counters.replaced += u64::from(own.is_none());
        }
        self.bytes += value.size();
        *self.by_peer.entry(source.peer).or_default() += 1;
        *self.by_site.entry(site_of(source.ip)).or_default() += 1;
        self.slots
            .entry(key)
            .or_default()
            .push(Kept { value, source });
        Ok(key)
    }

    /// The values at a DHT key that are still alive, newest first.
    pub fn get(&self, key: &[u8; 32], unix: u64) -> Vec<&SlotValue> {
        let slot = self.slots.get(key).map_or(&[][..], Vec::as_slice);
        let mut values: Vec<_> = slot
            .iter()
            .map(|kept| &kept.value)
            .filter(|value| value.expires > unix)
            .collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.seq));
        values
    }

    /// Forgets what is over. To be called every few minutes.
    pub fn expire(&mut self, unix: u64) {
        let mut gone = Vec::new();
        self.slots.retain(|_, slot| {
            gone.extend(slot.extract_if(.., |kept| kept.value.expires <= unix));
            !slot.is_empty()
        });
        for kept in &gone {
            self.uncount(kept);
            self.counters.expired += 1;
        }
    }

    /// How many values are here.
    pub fn len(&self) -> usize {
        self.slots.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What became of the values handed in.
    pub const fn counters(&self) -> SlotCounters {
        self.counters
    }

    fn uncount(&mut self, kept: &Kept) {
        self.bytes -= kept.value.size();
        decrement(&mut self.by_peer, kept.source.peer);
        decrement(&mut self.by_site, site_of(kept.source.ip));
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    if let std::collections::btree_map::Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand_chacha::rand_core::SeedableRng;

    const NOW: u64 = 1_800_000_000;
    const NOW_MS: u64 = NOW * 1000;

    fn key(name: &str) -> SlotKey {
        SlotKey::derive(&[3; 32], &SlotName::Name(name.parse().unwrap()))
    }

    fn rng() -> ChaCha20Rng {
        ChaCha20Rng::seed_from_u64(1)
    }

    fn source(n: u8) -> Source {
        Source {
            peer: PeerId([n; 32]),
            ip: Some(IpAddr::from([10, 0, n, 1])),
        }
    }

    fn put(store: &mut SlotStore, value: &SlotValue, from: u8) -> Result<[u8; 32], PutError> {
        store.put(&value.encode(), source(from), NOW)
    }

    #[test]
    fn a_sealed_value_opens_with_its_slots_key_only() {
        let value = key("a").seal(b"hello", NOW_MS, 3600, &mut rng()).unwrap();
        assert_eq!(key("a").open(&value, NOW).unwrap(), b"hello");
        assert!(key("b").open(&value, NOW).is_err());
        assert_eq!(key("a").open(&value, NOW + 3600), Err(SlotError::Expired));
        assert_ne!(key("a").dht_key(), key("b").dht_key());
        assert_eq!(value.dht_key(), key("a").dht_key());
    }

    #[test]
    fn the_largest_content_fits_a_value_and_one_byte_more_does_not() {
        let content = vec![7; SLOT_CONTENT_MAX];
        let value = key("a")
            .seal(&content, NOW_MS, SLOT_SECONDS_MAX, &mut rng())
            .unwrap();
        assert!(value.encode().len() <= SLOT_VALUE_MAX);
        assert_eq!(SlotValue::decode(&value.encode()).unwrap(), value);
        assert!(
            key("a")
                .seal(&[content, vec![7]].concat(), NOW_MS, 1, &mut rng())
                .is_err()
        );
    }

    #[test]
    fn a_store_takes_the_newest_of_each_source_and_forgets_the_expired() {
        let mut store = SlotStore::new(SlotLimits::default());
        let old = key("a").seal(b"1", NOW_MS, 60, &mut rng()).unwrap();
        let new = key("a").seal(b"2", NOW_MS + 1, 120, &mut rng()).unwrap();

        let at = put(&mut store, &old, 1).unwrap();
        assert!(
            put(&mut store, &old, 1).is_ok(),
            "a retransmission is no error"
        );
        put(&mut store, &new, 1).unwrap();
        assert_eq!(put(&mut store, &old, 1), Err(PutError::Old));
        assert_eq!(store.get(&at, NOW), [&new]);

        store.expire(NOW + 120);
        assert!(store.is_empty() && store.get(&at, NOW).is_empty());
        assert_eq!(store.counters().expired, 1);
    }

    #[test]
    fn one_writer_cannot_mask_another_and_newer_values_win_a_full_slot() {
        let mut store = SlotStore::new(SlotLimits::default());
        for n in 0..4 {
            put(
                &mut store,
                &key("a")
                    .seal(&[n], NOW_MS + u64::from(n), 60, &mut rng())
                    .unwrap(),
                n,
            )
            .unwrap();
        }
        let masked = key("a").seal(b"low", NOW_MS - 1, 60, &mut rng()).unwrap();
        assert_eq!(put(&mut store, &masked, 9), Err(PutError::Old));
        let new = key("a").seal(b"new", NOW_MS + 9, 60, &mut rng()).unwrap();
        put(&mut store, &new, 9).unwrap();

        let values = store.get(&new.dht_key(), NOW);
        assert_eq!((values.len(), values[0]), (VALUES_PER_SLOT, &new));
    }

    #[test]
    fn values_from_the_future_or_with_a_wrong_signature_are_refused() {
        let mut store = SlotStore::new(SlotLimits::default());
        let future = key("a")
            .seal(b"x", NOW_MS + SEQ_AHEAD_MAX_MS + 1, 60, &mut rng())
            .unwrap();
        assert_eq!(
            put(&mut store, &future, 1),
            Err(PutError::Invalid(SlotError::TooFarAhead))
        );
        let mut forged = key("a").seal(b"x", NOW_MS, 60, &mut rng()).unwrap();
        forged.seq += 1;
        assert_eq!(
            put(&mut store, &forged, 1),
            Err(PutError::Invalid(SlotError::Signature(BadSignature)))
        );
        assert_eq!(store.counters().refused_invalid, 2);
    }

    #[test]
    fn quotas_hold_for_a_peer_its_site_and_the_whole_store() {
        let value = |name: &str| key(name).seal(b"x", NOW_MS, 60, &mut rng()).unwrap();
        let limits = SlotLimits {
            values_per_peer: 1,
            values_per_site: 2,
            bytes_max: 4 * value("a").size(),
        };
        let mut store = SlotStore::new(limits);
        let same_site = |peer: u8| Source {
            peer: PeerId([peer; 32]),
            ip: Some(IpAddr::from([10, 0, 0, peer])),
        };

        assert!(store.put(&value("a").encode(), same_site(1), NOW).is_ok());
        assert_eq!(
            store.put(&value("b").encode(), same_site(1), NOW),
            Err(PutError::Quota)
        );
        assert!(store.put(&value("b").encode(), same_site(2), NOW).is_ok());
        assert_eq!(
            store.put(&value("c").encode(), same_site(3), NOW),
            Err(PutError::Quota)
        );
        put(&mut store, &value("c"), 30).unwrap();
        put(&mut store, &value("d"), 40).unwrap();
        assert_eq!(put(&mut store, &value("e"), 50), Err(PutError::Full));
        // What expired makes room by itself.
        let late = key("e")
            .seal(b"x", (NOW + 60) * 1000, 60, &mut rng())
            .unwrap();
        assert!(store.put(&late.encode(), source(50), NOW + 60).is_ok());
        assert_eq!(store.len(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_break_decoding(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            if let Ok(value) = SlotValue::decode(&bytes) {
                prop_assert!(value.verify(NOW).is_err());
                prop_assert!(key("a").open(&value, NOW).is_err());
            }
        }

        #[test]
        fn a_store_never_exceeds_its_bounds(writes in proptest::collection::vec((0u8..6, 0u8..6, 0u64..50), 1..60)) {
            let limits = SlotLimits { values_per_peer: 3, values_per_site: 5, bytes_max: 3000 };
            let mut store = SlotStore::new(limits);
            for (slot, from, seq) in writes {
                let value = key(&format!("n{slot}")).seal(&[slot], NOW_MS + seq, 10 + seq, &mut rng()).unwrap();
                let _ = store.put(&value.encode(), source(from), NOW + seq % 12);
            }
            prop_assert!(store.bytes <= limits.bytes_max);
            prop_assert!(store.by_peer.values().all(|n| (1..=3).contains(n)));
            prop_assert!(store.slots.values().all(|slot| (1..=VALUES_PER_SLOT).contains(&slot.len())));
            prop_assert_eq!(store.by_peer.values().sum::<usize>(), store.len());
            store.expire(u64::MAX);
            prop_assert!(store.is_empty() && store.bytes == 0 && store.by_site.is_empty());
        }
    }
}
