//! One handshake, from both sides: Noise IKpsk2 in WireGuard's shape with an ML-KEM-768 secret mixed in.
//! Retrying, answering strangers not at all, and remembering timestamps is left to the engine; load to [`super::HandshakeGate`].
//!
//! ```text
//! Initiator::start ──initiation──▶ mac1_matches, open_initiation, Initiation::respond
//!   handle_response ◀──response── ┘
//! ```

use overlay_types::{DataKeys, NetworkId};
use rand_chacha::ChaCha20Rng;
use snow::HandshakeState;
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

use super::cookie::{self, Cookie};
use super::keys::{self, LocalKeys};
use super::noise::{self, PSK_PLACE};
use super::{Established, SessionSlot, Suite, mac};
use crate::wire::datagram::{INITIATION, RESPONSE};
use crate::wire::handshake::{
    HANDSHAKE_HEADER_BYTES, HandshakeHeader, INITIATION_BYTES, INITIATION_NOISE_BYTES,
    KEM_CIPHERTEXT_BYTES, MAC_BYTES, RESPONSE_BYTES, RESPONSE_NOISE_BYTES, RESPONSE_PAYLOAD_BYTES,
};

/// Network keys have no epochs yet; the byte is on the wire so that a later version can tell them apart.
const PSK_EPOCH: u8 = 0;

/// Why a handshake message was not made or not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HandshakeError {
    /// The peer's record is unusable; ask for a newer one.
    #[error("the peer's data keys are not keys")]
    InvalidPeerKeys,
    /// Not a handshake message of our version: drop.
    #[error("not a handshake message of this version")]
    Malformed,
    /// Not meant for us, or not in this network: drop.
    #[error("not meant for this node in this network")]
    WrongMac,
    /// Forged, or from a side with another network key: drop.
    #[error("the message does not open")]
    NotAuthentic,
    /// A cookie reply that answers nothing we sent: drop.
    #[error("this cookie answers nothing that we sent")]
    UnexpectedCookie,
}

/// A handshake that we began and that waits for its answer.
pub struct Initiator {
    state: HandshakeState,
    network: NetworkId,
    local_public: [u8; 32],
    remote_public: [u8; 32],
    slot: SessionSlot,
    offered: Suite,
    mac1: [u8; MAC_BYTES],
}

impl std::fmt::Debug for Initiator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initiator")
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

impl Initiator {
    /// Begins a handshake with the peer that has the keys `remote`; the initiation to send stands beside it.
    ///
    /// `slot` is where we want to receive, `unix_ns` must grow with each initiation to the same peer, `aes` tells
    /// whether this machine has AES instructions.
    ///
    /// # Errors
    /// [`HandshakeError::InvalidPeerKeys`] when `remote` holds none.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one input of the first message"
    )]
    pub fn start(
        local: &LocalKeys,
        remote: &DataKeys,
        network: NetworkId,
        psk: &[u8; 32],
        slot: SessionSlot,
        unix_ns: u64,
        cookie: Option<&Cookie>,
        aes: bool,
        rng: &mut ChaCha20Rng,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let offered = Suite::best(aes);
        let header = HandshakeHeader::new(INITIATION, offered.to_wire(), PSK_EPOCH, slot.raw());
        let (ciphertext, kem_secret) =
            keys::encapsulate(&remote.kem, rng).ok_or(HandshakeError::InvalidPeerKeys)?;
        let mut state = noise::start(local, Some(&remote.x25519), network, &header, rng)
            .map_err(|_| HandshakeError::InvalidPeerKeys)?;
        state
            .set_psk(PSK_PLACE, keys::handshake_psk(&kem_secret, psk).as_slice())
            .expect("IKpsk2 has this place, and the key has 32 bytes");

        let mut payload = [0; 8 + KEM_CIPHERTEXT_BYTES];
        payload[..8].copy_from_slice(&unix_ns.to_be_bytes());
        payload[8..].copy_from_slice(&ciphertext);
        let mut message = vec![0; INITIATION_BYTES];
        let (head, rest) = message.split_at_mut(HANDSHAKE_HEADER_BYTES);
        head.copy_from_slice(header.as_bytes());
        let written = state
            .write_message(&payload, rest)
            .map_err(|_| HandshakeError::InvalidPeerKeys)?;
        debug_assert_eq!(written, INITIATION_NOISE_BYTES);
        let mac1 = mac::mac1(
            network,
            &remote.x25519,
            &message[..INITIATION_BYTES - MAC_BYTES],
        );
        message[INITIATION_BYTES - MAC_BYTES..].copy_from_slice(&mac1);
        if let Some(cookie) = cookie {
            let mac2 = cookie.mac2(&message);
            message.extend(mac2);
        }
        let handshake = Self {
            state,
            network,
            local_public: *local.x25519(),
            remote_public: remote.x25519,
            slot,
            offered,
            mac1,
        };
        Ok((handshake, message))
    }

    /// Where we asked to receive; responses and cookie replies carry it.
    pub const fn slot(&self) -> SessionSlot {
        self.slot
    }

    /// Takes the response. After an error the handshake goes on waiting: anybody can forge one.
    ///
    /// # Errors
    /// The handshake itself and why `message` is not its response.
    #[expect(
        clippy::result_large_err,
        reason = "the caller keeps the handshake, in place"
    )]
    pub fn handle_response(
        mut self,
        message: &[u8],
    ) -> Result<Established, (Self, HandshakeError)> {
        match self.read_response(message) {
            Ok(Response {
                slot,
                suite,
                timestamp,
            }) => Ok(established(
                &mut self.state,
                suite,
                self.slot,
                slot,
                timestamp,
            )),
            Err(error) => Err((self, error)),
        }
    }

    fn read_response(&mut self, message: &[u8]) -> Result<Response, HandshakeError> {
        let header = HandshakeHeader::parse(message)
            .filter(|h| h.kind == RESPONSE && h.suite == 0 && h.psk_epoch == PSK_EPOCH)
            .ok_or(HandshakeError::Malformed)?;
        if header.index() != self.slot.raw()
            || !mac::mac1_matches(&self.local_public, self.network, message)
        {
            return Err(HandshakeError::WrongMac);
        }
        let noise_part =
            &message[HANDSHAKE_HEADER_BYTES..HANDSHAKE_HEADER_BYTES + RESPONSE_NOISE_BYTES];
        let mut payload = [0; RESPONSE_PAYLOAD_BYTES + 16];
        self.state
            .read_message(noise_part, &mut payload)
            .map_err(|_| HandshakeError::NotAuthentic)?;
        let (slot, rest) = payload.split_first_chunk().expect("it has 4 bytes");
        let (suite, rest) = rest.split_first().expect("it has a fifth");
        let timestamp = rest.first_chunk().expect("it has 8 more");
        // The responder may only step down from what we offered.
        let suite = Suite::from_wire(*suite)
            .filter(|suite| *suite >= self.offered)
            .ok_or(HandshakeError::NotAuthentic)?;
        Ok(Response {
            slot: SessionSlot::from_low_bits(u32::from_be_bytes(*slot)),
            suite,
            timestamp: u64::from_be_bytes(*timestamp),
        })
    }

    /// Takes the cookie that a responder under load wants to see in the next initiation.
    ///
    /// # Errors
    /// [`HandshakeError::UnexpectedCookie`] when it does not answer our initiation.
    pub fn handle_cookie_reply(&mut self, message: &[u8]) -> Result<Cookie, HandshakeError> {
        cookie::open_reply(
            self.network,
            &self.remote_public,
            self.slot,
            &self.mac1,
            message,
        )
        .ok_or(HandshakeError::UnexpectedCookie)
    }
}

/// What a responder says.
struct Response {
    slot: SessionSlot,
    suite: Suite,
    timestamp: u64,
}

/// An initiation that opened: its sender has the secret of the key it names. Whether we want to talk to that key, and
/// whether `timestamp` is newer than its last one, is the caller's decision.
pub struct Initiation {
    /// The initiator's X25519 key.
    pub x25519: [u8; 32],
    /// Unix nanoseconds; each initiation of one peer has a greater one.
    pub timestamp: u64,
    /// The network key's epoch that the initiator used.
    pub psk_epoch: u8,
    state: HandshakeState,
    network: NetworkId,
    kem_secret: Zeroizing<[u8; 32]>,
    offered: Suite,
    remote_index: SessionSlot,
}

impl std::fmt::Debug for Initiation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Initiation")
            .field("timestamp", &self.timestamp)
            .finish_non_exhaustive()
    }
}

/// Opens an initiation whose mac1 matched. `rng` gives the ephemeral key of a later [`Initiation::respond`].
///
/// # Errors
/// Why it does not open; every error means: drop and count.
pub fn open_initiation(
    local: &LocalKeys,
    network: NetworkId,
    message: &[u8],
    rng: &mut ChaCha20Rng,
) -> Result<Initiation, HandshakeError> {
    let header = HandshakeHeader::parse(message)
        .filter(|h| h.kind == INITIATION)
        .ok_or(HandshakeError::Malformed)?;
    let offered = Suite::from_wire(header.suite).ok_or(HandshakeError::Malformed)?;
    if !mac::mac1_matches(local.x25519(), network, message) {
        return Err(HandshakeError::WrongMac);
    }
    let mut state =
        noise::start(local, None, network, &header, rng).map_err(|_| HandshakeError::Malformed)?;
    let noise_part =
        &message[HANDSHAKE_HEADER_BYTES..HANDSHAKE_HEADER_BYTES + INITIATION_NOISE_BYTES];
    let mut payload = [0; 8 + KEM_CIPHERTEXT_BYTES + 16];
    state
        .read_message(noise_part, &mut payload)
        .map_err(|_| HandshakeError::NotAuthentic)?;
    let (timestamp, rest) = payload
        .split_first_chunk::<8>()
        .expect("the payload has 8 bytes and more");
    let ciphertext = rest
        .first_chunk::<KEM_CIPHERTEXT_BYTES>()
        .expect("the payload holds a ciphertext");
    let x25519 = state
        .get_remote_static()
        .and_then(|key| key.try_into().ok())
        .ok_or(HandshakeError::NotAuthentic)?;
    Ok(Initiation {
        x25519,
        timestamp: u64::from_be_bytes(*timestamp),
        psk_epoch: header.psk_epoch,
        kem_secret: local.decapsulate(ciphertext),
        state,
        network,
        offered,
        remote_index: SessionSlot::from_low_bits(header.index()),
    })
}

impl Initiation {
    /// Answers it: the response to send, and the session, to be used for sending once a datagram of it has opened.
    ///
    /// `unix_ns` is our own time: no initiation that we sent earlier is good at the other side any more.
    ///
    /// # Errors
    /// [`HandshakeError::NotAuthentic`] when the initiator's keys are degenerate.
    pub fn respond(
        mut self,
        psk: &[u8; 32],
        slot: SessionSlot,
        unix_ns: u64,
        aes: bool,
    ) -> Result<(Vec<u8>, Established), HandshakeError> {
        let suite = self.offered.max(Suite::best(aes));
        self.state
            .set_psk(
                PSK_PLACE,
                keys::handshake_psk(&self.kem_secret, psk).as_slice(),
            )
            .expect("IKpsk2 has this place, and the key has 32 bytes");
        let header = HandshakeHeader::new(RESPONSE, 0, self.psk_epoch, self.remote_index.raw());
        let mut payload = [0; RESPONSE_PAYLOAD_BYTES];
        payload[..4].copy_from_slice(&slot.raw().to_be_bytes());
        payload[4] = suite.to_wire();
        payload[5..].copy_from_slice(&unix_ns.to_be_bytes());
        let mut message = vec![0; RESPONSE_BYTES];
        let (head, rest) = message.split_at_mut(HANDSHAKE_HEADER_BYTES);
        head.copy_from_slice(header.as_bytes());
        let written = self
            .state
            .write_message(&payload, rest)
            .map_err(|_| HandshakeError::NotAuthentic)?;
        debug_assert_eq!(written, RESPONSE_NOISE_BYTES);
        let mac1 = mac::mac1(
            self.network,
            &self.x25519,
            &message[..RESPONSE_BYTES - MAC_BYTES],
        );
        message[RESPONSE_BYTES - MAC_BYTES..].copy_from_slice(&mac1);
        let established = established(
            &mut self.state,
            suite,
            slot,
            self.remote_index,
            self.timestamp,
        );
        Ok((message, established))
    }
}

/// The roots of a finished handshake; Noise gives the initiator's sending key first.
fn established(
    state: &mut HandshakeState,
    suite: Suite,
    local_index: SessionSlot,
    remote_index: SessionSlot,
    remote_timestamp: u64,
) -> Established {
    let is_initiator = state.is_initiator();
    let (first, second) = state.dangerously_get_raw_split();
    let (first, second) = (Zeroizing::new(first), Zeroizing::new(second));
    let (send_root, recv_root) = if is_initiator {
        (first, second)
    } else {
        (second, first)
    };
    Established {
        suite,
        send_root,
        recv_root,
        local_index,
        remote_index,
        remote_timestamp,
        is_initiator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet_buf::PacketBuf;
    use crate::session::mac1_matches;
    use proptest::prelude::*;
    use rand::SeedableRng;

    const NETWORK: NetworkId = NetworkId([1; 32]);
    const PSK: [u8; 32] = [7; 32];

    struct Pair {
        rng: ChaCha20Rng,
        a: LocalKeys,
        b: LocalKeys,
    }

    fn pair() -> Pair {
        let mut rng = ChaCha20Rng::seed_from_u64(42);
        let (a, b) = (LocalKeys::generate(&mut rng), LocalKeys::generate(&mut rng));
        Pair { rng, a, b }
    }

    fn slot(raw: u32) -> SessionSlot {
        SessionSlot::from_low_bits(raw)
    }

    impl Pair {
        fn start(&mut self, aes: bool) -> (Initiator, Vec<u8>) {
            let to = self.b.public();
            Initiator::start(
                &self.a,
                &to,
                NETWORK,
                &PSK,
                slot(1),
                1000,
                None,
                aes,
                &mut self.rng,
            )
            .unwrap()
        }

        fn respond(
            &mut self,
            initiation: &[u8],
            psk: &[u8; 32],
            aes: bool,
        ) -> (Vec<u8>, Established) {
            let opened = open_initiation(&self.b, NETWORK, initiation, &mut self.rng).unwrap();
            assert_eq!((opened.x25519, opened.timestamp), (*self.a.x25519(), 1000));
            opened.respond(psk, slot(2), 2000, aes).unwrap()
        }
    }

    fn passes(from: &Established, to: &Established, lane: u8) {
        let mut buf = PacketBuf::new();
        assert!(buf.fill(b"a frame"));
        from.send_lane(lane).seal(&mut buf).unwrap();
        assert_eq!(
            to.recv_lane(lane).open(buf.payload_mut()).unwrap(),
            b"a frame"
        );
    }

    #[test]
    fn two_members_agree_on_keys_for_both_directions() {
        let mut pair = pair();
        let (initiator, initiation) = pair.start(true);
        assert_eq!(initiation.len(), INITIATION_BYTES);
        let (response, at_b) = pair.respond(&initiation, &PSK, true);
        let at_a = initiator.handle_response(&response).unwrap();
        assert_eq!(
            (at_a.suite, at_b.suite),
            (Suite::Aes256Gcm, Suite::Aes256Gcm)
        );
        assert_eq!((at_a.remote_index, at_b.remote_index), (slot(2), slot(1)));
        assert_eq!((at_a.is_initiator, at_b.is_initiator), (true, false));
        assert_eq!((at_a.remote_timestamp, at_b.remote_timestamp), (2000, 1000));
        passes(&at_a, &at_b, 1);
        passes(&at_b, &at_a, 0);
    }

    #[test]
    fn a_side_without_aes_instructions_brings_both_to_chacha() {
        for (a_has, b_has) in [(true, false), (false, true), (false, false)] {
            let mut pair = pair();
            let (initiator, initiation) = pair.start(a_has);
            let (response, at_b) = pair.respond(&initiation, &PSK, b_has);
            let at_a = initiator.handle_response(&response).unwrap();
            assert_eq!(
                (at_a.suite, at_b.suite),
                (Suite::ChaCha20Poly1305, Suite::ChaCha20Poly1305)
            );
            passes(&at_a, &at_b, 1);
        }
    }

    #[test]
    fn another_network_key_gives_no_session() {
        let mut pair = pair();
        let (initiator, initiation) = pair.start(true);
        let (response, _) = pair.respond(&initiation, &[8; 32], true);
        assert_eq!(
            initiator.handle_response(&response).unwrap_err().1,
            HandshakeError::NotAuthentic
        );
    }

    #[test]
    fn an_initiation_for_another_network_or_node_is_not_opened() {
        let mut pair = pair();
        let (_, initiation) = pair.start(true);
        let other = NetworkId([2; 32]);
        assert!(mac1_matches(pair.b.x25519(), NETWORK, &initiation));
        assert!(!mac1_matches(pair.b.x25519(), other, &initiation));
        assert!(!mac1_matches(pair.a.x25519(), NETWORK, &initiation));
        let opened = open_initiation(&pair.b, other, &initiation, &mut pair.rng);
        assert_eq!(opened.unwrap_err(), HandshakeError::WrongMac);
    }

    #[test]
    fn an_initiation_that_somebody_changed_does_not_open() {
        let mut pair = pair();
        let (_, initiation) = pair.start(true);
        // Byte 2 offers the suite, byte 7 is the sender's index, 200 lies in the ML-KEM ciphertext; an attacker who knows
        // the network id can make mac1 fit again.
        for at in [2, 7, 20, 50, 100, 200] {
            let mut changed = initiation.clone();
            changed[at] ^= 3;
            let end = INITIATION_BYTES - MAC_BYTES;
            let mac1 = mac::mac1(NETWORK, pair.b.x25519(), &changed[..end]);
            changed[end..].copy_from_slice(&mac1);
            let opened = open_initiation(&pair.b, NETWORK, &changed, &mut pair.rng);
            assert_eq!(
                opened.unwrap_err(),
                HandshakeError::NotAuthentic,
                "byte {at}"
            );
        }
    }

    #[test]
    fn a_forged_response_does_not_end_the_handshake() {
        let mut pair = pair();
        let (initiator, initiation) = pair.start(true);
        let (response, at_b) = pair.respond(&initiation, &PSK, true);
        let mut forged = response.clone();
        forged[40] ^= 1;
        let end = RESPONSE_BYTES - MAC_BYTES;
        let mac1 = mac::mac1(NETWORK, pair.a.x25519(), &forged[..end]);
        forged[end..].copy_from_slice(&mac1);

        let (initiator, error) = initiator.handle_response(&forged).unwrap_err();
        assert_eq!(error, HandshakeError::NotAuthentic);
        let at_a = initiator.handle_response(&response).unwrap();
        passes(&at_a, &at_b, 3);
    }

    #[test]
    fn a_response_to_another_handshake_is_not_taken() {
        let mut pair = pair();
        let (_, first) = pair.start(true);
        let (second_initiator, _) = pair.start(true);
        let (response, _) = pair.respond(&first, &PSK, true);
        assert_eq!(
            second_initiator.handle_response(&response).unwrap_err().1,
            HandshakeError::NotAuthentic
        );
    }

    #[test]
    fn the_right_noise_key_with_another_kem_key_gives_no_session() {
        let mut pair = pair();
        let mut mixed = pair.b.public();
        mixed.kem = pair.a.public().kem;
        let started = Initiator::start(
            &pair.a,
            &mixed,
            NETWORK,
            &PSK,
            slot(1),
            1000,
            None,
            true,
            &mut pair.rng,
        );
        let (initiator, initiation) = started.unwrap();
        let (response, _) = pair.respond(&initiation, &PSK, true);
        assert_eq!(
            initiator.handle_response(&response).unwrap_err().1,
            HandshakeError::NotAuthentic
        );
    }

    #[test]
    fn a_peer_record_without_keys_is_refused() {
        let mut pair = pair();
        let nonsense = DataKeys {
            x25519: [0; 32],
            kem: vec![1; 10],
        };
        let started = Initiator::start(
            &pair.a,
            &nonsense,
            NETWORK,
            &PSK,
            slot(1),
            1,
            None,
            true,
            &mut pair.rng,
        );
        assert_eq!(started.unwrap_err(), HandshakeError::InvalidPeerKeys);
        let degenerate = DataKeys {
            x25519: [0; 32],
            kem: pair.b.public().kem,
        };
        let started = Initiator::start(
            &pair.a,
            &degenerate,
            NETWORK,
            &PSK,
            slot(1),
            1,
            None,
            true,
            &mut pair.rng,
        );
        assert_eq!(started.unwrap_err(), HandshakeError::InvalidPeerKeys);
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let run = || {
            let mut pair = pair();
            let (_, initiation) = pair.start(true);
            let (response, _) = pair.respond(&initiation, &PSK, true);
            (initiation, response)
        };
        assert_eq!(run(), run());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn any_bytes_are_refused_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), INITIATION_BYTES), kind in 0x80u8..0x83, len in 0..INITIATION_BYTES) {
            let mut pair = pair();
            bytes[0] = kind;
            bytes[1] = 1;
            for message in [&bytes[..], &bytes[..len], &bytes[..RESPONSE_BYTES]] {
                prop_assert!(open_initiation(&pair.b, NETWORK, message, &mut pair.rng).is_err());
                let (initiator, _) = pair.start(true);
                prop_assert!(initiator.handle_response(message).is_err());
            }
        }
    }
}
