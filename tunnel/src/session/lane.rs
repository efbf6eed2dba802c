//! One worker's share of a session: frames sealed and opened in place, each lane with keys and counters of its own, so
//! that workers share nothing. The key ratchets by count; sessions are renewed by [`super::Rekey`].

use aws_lc_rs::aead::{
    AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::error::Unspecified;
use hkdf::Hkdf;
use sha2::Sha256;
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use super::replay::ReplayWindow;
use super::{SessionSlot, Suite};
use crate::packet_buf::PacketBuf;
use crate::wire::datagram::{DATA_HEADER_BYTES, DataHeader, TAG_BYTES};

/// How many datagrams one key seals: the confidentiality limit of AES-GCM for full-size packets (RFC 9001 §6.6).
/// ChaCha20 has no such limit within reach, but one rule for both is simpler.
pub const DATAGRAMS_PER_KEY: u64 = 1 << 23;
/// From this phase on a lane asks for a new session, long before it has none left.
const RENEW_FROM_PHASE: u8 = 192;

/// No more frames in this session: the lane's phases are used up.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the lane's keys are used up; the session must be renewed")]
pub struct SealError;

/// Why a datagram was not opened; all mean drop and count.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpenError {
    /// Not a sealed datagram of this lane.
    #[error("not a datagram of this lane")]
    Malformed,
    /// A key that is not ours any more, or not yet.
    #[error("key phase {0} is neither the last, the current nor the next one")]
    UnknownPhase(u8),
    /// Seen before, or too old to tell.
    #[error("counter {0} was seen before or is too old")]
    Replayed(u64),
    /// Forged or damaged.
    #[error("the datagram does not open")]
    NotAuthentic,
}

/// Seals what one worker sends in one session.
pub struct SendLane {
    suite: Suite,
    root: Zeroizing<[u8; 32]>,
    remote_index: SessionSlot,
    lane: u8,
    phase: u8,
    counter: u64,
    key: LessSafeKey,
    exhausted: bool,
}

impl SendLane {
    /// The sending half of `lane` under the direction's `root`.
    pub fn new(suite: Suite, root: &[u8; 32], remote_index: SessionSlot, lane: u8) -> Self {
        let key = lane_key(suite, root, lane, 0);
        Self {
            suite,
            root: Zeroizing::new(*root),
            remote_index,
            lane,
            phase: 0,
            counter: 0,
            key,
            exhausted: false,
        }
    }

    /// Turns the plaintext in `buf` into a datagram, in place: header in front, tag behind.
    ///
    /// # Errors
    /// [`SealError`] when the session has to be renewed first.
    pub fn seal(&mut self, buf: &mut PacketBuf) -> Result<(), SealError> {
        self.prepare()?;
        buf.push_front(&[0; DATA_HEADER_BYTES]);
        buf.push_back(&[0; TAG_BYTES]);
        self.seal_in(buf.payload_mut(), |_| ());
        Ok(())
    }

    /// Sees to it that one more datagram can be sealed.
    ///
    /// # Errors
    /// [`SealError`] when the session has to be renewed first.
    pub fn prepare(&mut self) -> Result<(), SealError> {
        if self.counter == DATAGRAMS_PER_KEY {
            self.ratchet()?;
        }
        if self.exhausted {
            return Err(SealError);
        }
        Ok(())
    }

    /// Makes `datagram` one, where it lies: `write` writes the plaintext, between the room for the header and that for the
    /// tag.
    ///
    /// # Panics
    /// Without [`Self::prepare`] before, and when there is no such room.
    pub fn seal_in(&mut self, datagram: &mut [u8], write: impl FnOnce(&mut [u8])) {
        let header = self.next_header();
        let (head, rest) = datagram.split_at_mut(DATA_HEADER_BYTES);
        let (plaintext, tail) = rest.split_at_mut(rest.len() - TAG_BYTES);
        write(plaintext);
        head.copy_from_slice(header.as_bytes());
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(&header), Aad::from(header.as_bytes()), plaintext)
            .expect("a datagram is shorter than any cipher's limit");
        tail.copy_from_slice(tag.as_ref());
    }

    /// Makes `datagram` one of this plaintext, which lies elsewhere.
    ///
    /// # Panics
    /// Without [`Self::prepare`] before, and when `datagram` has not just the room for the header, it and the tag.
    pub fn seal_from(&mut self, plaintext: &[u8], datagram: &mut [u8]) {
        let header = self.next_header();
        let (head, rest) = datagram.split_at_mut(DATA_HEADER_BYTES);
        let (sealed, tag) = rest.split_at_mut(plaintext.len());
        head.copy_from_slice(header.as_bytes());
        let aad = Aad::from(header.as_bytes());
        self.key
            .seal_out_of_place_scatter(nonce(&header), aad, plaintext, sealed, &[], tag)
            .expect("a datagram is shorter than any cipher's limit, and has room for its tag");
    }

    fn next_header(&mut self) -> DataHeader {
        assert!(
            self.counter < DATAGRAMS_PER_KEY && !self.exhausted,
            "one more datagram was prepared for"
        );
        let header = DataHeader::new(self.remote_index, self.lane, self.phase, self.counter);
        self.counter += 1;
        header
    }

    fn ratchet(&mut self) -> Result<(), SealError> {
        let Some(phase) = self.phase.checked_add(1) else {
            self.exhausted = true;
            return Err(SealError);
        };
        self.key = lane_key(self.suite, &self.root, self.lane, phase);
        self.phase = phase;
        self.counter = 0;
        Ok(())
    }

    /// How many datagrams it has sealed.
    pub const fn sealed_count(&self) -> u64 {
        self.phase as u64 * DATAGRAMS_PER_KEY + self.counter
    }

    /// Whether the session should be renewed because of how much was sealed.
    pub const fn wants_renewal(&self) -> bool {
        self.phase >= RENEW_FROM_PHASE
    }
}

/// Opens what one worker receives in one session.
pub struct RecvLane {
    suite: Suite,
    root: Zeroizing<[u8; 32]>,
    lane: u8,
    current: Phase,
    /// The one before, for datagrams overtaken by the ratchet.
    before: Option<Phase>,
    /// The one after, derived when the first datagram claims it; a forged claim costs one derivation, once.
    after: Option<Phase>,
}

struct Phase {
    number: u8,
    key: LessSafeKey,
    window: ReplayWindow,
}

impl RecvLane {
    /// The receiving half of `lane` under the direction's `root`.
    pub fn new(suite: Suite, root: &[u8; 32], lane: u8) -> Self {
        let current = Phase::new(suite, root, lane, 0);
        Self {
            suite,
            root: Zeroizing::new(*root),
            lane,
            current,
            before: None,
            after: None,
        }
    }

    /// Opens `datagram` where it lies and gives its plaintext. A datagram is marked as seen only once it has opened.
    ///
    /// # Errors
    /// Why not; then the bytes are of no more use.
    pub fn open<'b>(&mut self, datagram: &'b mut [u8]) -> Result<&'b mut [u8], OpenError> {
        let header = self.header_of(datagram)?;
        let (_, sealed) = datagram.split_at_mut(DATA_HEADER_BYTES);
        let plaintext_bytes = sealed.len() - TAG_BYTES;
        self.accept(&header, |key, nonce, aad| {
            key.open_in_place(nonce, aad, sealed).map(drop)
        })?;
        Ok(&mut sealed[..plaintext_bytes])
    }

    /// Opens `datagram` into `plaintext`, which has its length without header and tag; otherwise as [`Self::open`] does.
    ///
    /// # Errors
    /// Why not; then what `plaintext` holds is of no use.
    pub fn open_into(&mut self, datagram: &[u8], plaintext: &mut [u8]) -> Result<(), OpenError> {
        let header = self.header_of(datagram)?;
        let (sealed, tag) = datagram[DATA_HEADER_BYTES..]
            .split_last_chunk::<TAG_BYTES>()
            .ok_or(OpenError::Malformed)?;
        self.accept(&header, |key, nonce, aad| {
            key.open_separate_gather(nonce, aad, sealed, tag, plaintext)
        })
    }

    fn header_of(&self, datagram: &[u8]) -> Result<DataHeader, OpenError> {
        DataHeader::parse(datagram)
            .filter(|h| h.lane == self.lane)
            .ok_or(OpenError::Malformed)
    }

    /// Finds the key of a datagram with this header, has it opened, and marks it as seen.
    fn accept(&mut self, header: &DataHeader, open: impl Open) -> Result<(), OpenError> {
        let number = header.key_phase;
        if self.current.number == number {
            return self.current.accept(header, open);
        }
        if let Some(before) = self.before.as_mut().filter(|phase| phase.number == number) {
            return before.accept(header, open);
        }
        if self.current.number.checked_add(1) != Some(number) {
            return Err(OpenError::UnknownPhase(number));
        }
        let after = self
            .after
            .get_or_insert_with(|| Phase::new(self.suite, &self.root, self.lane, number));
        after.accept(header, open)?;
        if let Some(after) = self.after.take() {
            self.before = Some(std::mem::replace(&mut self.current, after));
        }
        Ok(())
    }
}

/// Opens one datagram with its key, its nonce and what else is authenticated.
trait Open: FnOnce(&LessSafeKey, Nonce, Aad<&[u8]>) -> Result<(), Unspecified> {}

impl<F: FnOnce(&LessSafeKey, Nonce, Aad<&[u8]>) -> Result<(), Unspecified>> Open for F {}

impl Phase {
    fn new(suite: Suite, root: &[u8; 32], lane: u8, number: u8) -> Self {
        Self {
            number,
            key: lane_key(suite, root, lane, number),
            window: ReplayWindow::new(),
        }
    }

    fn accept(&mut self, header: &DataHeader, open: impl Open) -> Result<(), OpenError> {
        let counter = header.counter();
        if !self.window.is_fresh(counter) {
            return Err(OpenError::Replayed(counter));
        }
        open(&self.key, nonce(header), Aad::from(header.as_bytes()))
            .map_err(|_| OpenError::NotAuthentic)?;
        self.window.mark(counter);
        Ok(())
    }
}

/// HKDF of the direction's root: one key for each lane and phase.
fn lane_key(suite: Suite, root: &[u8; 32], lane: u8, phase: u8) -> LessSafeKey {
    let algorithm: &'static Algorithm = match suite {
        Suite::Aes256Gcm => &AES_256_GCM,
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::from_prk(root)
        .expect("a root has the hash's length")
        .expand_multi_info(&[b"farlan lane", &[lane, phase]], key.as_mut_slice())
        .expect("32 bytes are one block");
    LessSafeKey::new(
        UnboundKey::new(algorithm, key.as_slice()).expect("both suites have keys of 32 bytes"),
    )
}

/// Lane, three zeros, counter: never the same twice for one key, which belongs to one lane and phase.
fn nonce(header: &DataHeader) -> Nonce {
    let mut bytes = [0; 12];
    bytes[0] = header.lane;
    bytes[4..].copy_from_slice(&header.counter().to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: [u8; 32] = [9; 32];

    fn slot() -> SessionSlot {
        SessionSlot::from_low_bits(77)
    }

    fn sealed(lane: &mut SendLane, plaintext: &[u8]) -> Vec<u8> {
        let mut buf = PacketBuf::new();
        assert!(buf.fill(plaintext));
        lane.seal(&mut buf).unwrap();
        buf.payload().to_vec()
    }

    fn lanes(suite: Suite, lane: u8) -> (SendLane, RecvLane) {
        (
            SendLane::new(suite, &ROOT, slot(), lane),
            RecvLane::new(suite, &ROOT, lane),
        )
    }

    #[test]
    fn a_datagram_is_opened_once() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let (mut send, mut recv) = lanes(suite, 1);
            let datagram = sealed(&mut send, b"hello");
            assert_eq!(recv.open(&mut datagram.clone()).unwrap(), b"hello");
            assert_eq!(
                recv.open(&mut datagram.clone()),
                Err(OpenError::Replayed(0))
            );
            assert_eq!(
                recv.open(&mut sealed(&mut send, b"again")).unwrap(),
                b"again"
            );
        }
    }

    #[test]
    fn two_lanes_count_alone_and_never_open_each_others_datagrams() {
        let (mut send_1, mut recv_1) = lanes(Suite::Aes256Gcm, 1);
        let (mut send_2, mut recv_2) = lanes(Suite::Aes256Gcm, 2);
        let (in_1, in_2) = (sealed(&mut send_1, b"one"), sealed(&mut send_2, b"two"));
        assert_ne!(in_1[DATA_HEADER_BYTES..], in_2[DATA_HEADER_BYTES..]);
        assert_eq!(recv_2.open(&mut in_1.clone()), Err(OpenError::Malformed));
        assert_eq!(recv_1.open(&mut in_1.clone()).unwrap(), b"one");
        assert_eq!(recv_2.open(&mut in_2.clone()).unwrap(), b"two");
        let mut relabelled = in_1;
        relabelled[1] = 2;
        relabelled[7] = relabelled[7] & 0xf0 | 2;
        assert!(recv_2.open(&mut relabelled).is_err());
    }

    #[test]
    fn a_forged_datagram_does_not_use_its_counter_up() {
        let (mut send, mut recv) = lanes(Suite::Aes256Gcm, 1);
        let datagram = sealed(&mut send, b"hello");
        for at in [2, 15, 16, datagram.len() - 1] {
            let mut forged = datagram.clone();
            forged[at] ^= 1;
            assert!(recv.open(&mut forged).is_err(), "byte {at}");
        }
        assert_eq!(recv.open(&mut datagram.clone()).unwrap(), b"hello");
    }

    #[test]
    fn the_key_ratchets_by_count_and_overtaken_datagrams_still_open() {
        let (mut send, mut recv) = lanes(Suite::Aes256Gcm, 1);
        let first = sealed(&mut send, b"first");
        send.counter = DATAGRAMS_PER_KEY - 1;
        let last = sealed(&mut send, b"last of the old key");
        let next = sealed(&mut send, b"first of the new key");
        assert_eq!(
            (last[2], next[2], send.sealed_count()),
            (0, 1, DATAGRAMS_PER_KEY + 1)
        );
        assert_eq!(recv.open(&mut first.clone()).unwrap(), b"first");
        assert_eq!(
            recv.open(&mut next.clone()).unwrap(),
            b"first of the new key"
        );
        assert_eq!(
            recv.open(&mut last.clone()).unwrap(),
            b"last of the old key"
        );
        assert_eq!(recv.open(&mut next.clone()), Err(OpenError::Replayed(0)));
        assert_eq!(recv.open(&mut first.clone()), Err(OpenError::Replayed(0)));
    }

    #[test]
    fn a_lane_without_keys_left_seals_no_more() {
        let (mut send, _) = lanes(Suite::Aes256Gcm, 1);
        assert!(!send.wants_renewal());
        (send.phase, send.counter) = (u8::MAX, DATAGRAMS_PER_KEY);
        let mut buf = PacketBuf::new();
        assert!(send.wants_renewal());
        assert_eq!(send.seal(&mut buf), Err(SealError));
    }

    proptest! {
        #[test]
        fn whatever_is_sealed_opens_and_any_changed_byte_is_noticed(plaintext in proptest::collection::vec(any::<u8>(), 0..2000), at: proptest::sample::Index, bit in 0u8..8) {
            let (mut send, mut recv) = lanes(Suite::Aes256Gcm, 4);
            let mut datagram = sealed(&mut send, &plaintext);
            let mut forged = datagram.clone();
            forged[at.index(datagram.len())] ^= 1 << bit;
            prop_assert!(recv.open(&mut forged).is_err());
            prop_assert_eq!(&*recv.open(&mut datagram).unwrap(), &plaintext[..]);
        }

        #[test]
        fn any_bytes_are_refused_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (_, mut recv) = lanes(Suite::Aes256Gcm, 0);
            if let [kind, lane, phase, reserved, ..] = bytes.as_mut_slice() {
                (*kind, *lane, *reserved) = (crate::wire::datagram::DATA, 0, 0);
                *phase %= 3;
            }
            prop_assert!(recv.open(&mut bytes).is_err());
        }
    }
}
