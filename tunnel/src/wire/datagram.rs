//! The first bytes of a datagram: which of our messages it is, and the header of sealed frames.
//! Opening it is [`crate::session`]'s work, wrapping for relays [`crate::relay`]'s.

use crate::relay::message::{BOUND, CHALLENGE, CONFIRM, REQUEST};
use overlay_types::PathAddr;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Handshake initiation.
pub const INITIATION: u8 = 0x80;
/// Handshake response.
pub const RESPONSE: u8 = 0x81;
/// A responder under load asks the initiator to prove its address.
pub const COOKIE_REPLY: u8 = 0x82;
/// A sealed frame or control message.
pub const DATA: u8 = 0x84;
/// Asks whether a member receives at an address.
pub const PATH_CHALLENGE: u8 = 0x85;
/// Says so.
pub const PATH_RESPONSE: u8 = 0x86;
/// In a relay's wrapper, on its way to the relay.
pub const TO_PLACE: u8 = 0xA4;
/// In a relay's wrapper, on its way from the relay.
pub const FROM_PLACE: u8 = 0xA5;
/// Wrappers around a datagram; deeper ones are dropped.
pub const WRAPPERS_MAX: usize = 2;

/// Bytes of [`DataHeader`].
pub const DATA_HEADER_BYTES: usize = 16;
/// Bytes of the authentication tag behind the sealed bytes; both suites have the same.
pub const TAG_BYTES: usize = 16;
/// Bytes of [`RelayHeader`].
pub const RELAY_HEADER_BYTES: usize = 8;
/// What a sealed datagram costs beyond its plaintext. The relay wrapper is always reserved, so that a path may turn
/// into a relayed one without any frame becoming too large.
pub const OVERHEAD_BYTES: usize = RELAY_HEADER_BYTES + DATA_HEADER_BYTES + TAG_BYTES;
/// The largest number of a lane; lane 0 is the engine's, the others belong to workers.
pub const LANE_MAX: u8 = 15;
/// RFC 8489 §5.
const STUN_MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];

/// One side's number for a session, 28 bits, chosen at random by the side that receives under it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionSlot(u32);

impl SessionSlot {
    /// The largest slot.
    pub const MAX: u32 = (1 << 28) - 1;

    /// A slot from the low 28 bits of `raw`.
    pub const fn from_low_bits(raw: u32) -> Self {
        Self(raw & Self::MAX)
    }

    /// The slot and the lane of a receiver index.
    pub const fn split(receiver_index: u32) -> (Self, u8) {
        (Self(receiver_index >> 4), (receiver_index & 0xf) as u8)
    }

    /// The receiver index of `lane`, which is at most [`LANE_MAX`].
    pub const fn index(self, lane: u8) -> u32 {
        self.0 << 4 | (lane & LANE_MAX) as u32
    }

    /// The bare number.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// The header of a sealed datagram; all of it is authenticated.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct DataHeader {
    /// [`DATA`].
    pub kind: u8,
    /// Whose share of the session it is.
    pub lane: u8,
    /// How many times the lane's key was ratcheted, modulo 256.
    pub key_phase: u8,
    /// Zero.
    pub reserved: u8,
    receiver_index: U32,
    counter: U64,
}

impl DataHeader {
    /// The header of the datagram `counter` in `lane` for whoever receives under `slot`.
    pub const fn new(slot: SessionSlot, lane: u8, key_phase: u8, counter: u64) -> Self {
        Self {
            kind: DATA,
            lane,
            key_phase,
            reserved: 0,
            receiver_index: U32::new(slot.index(lane)),
            counter: U64::new(counter),
        }
    }

    /// The header at the front of `datagram`, if it is one: type, reserved byte and the repeated lane must agree,
    /// and a tag must fit behind it.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        let header = Self::read_from_prefix(datagram).ok()?.0;
        let sound = header.kind == DATA
            && header.reserved == 0
            && header.lane == (header.receiver_index.get() & 0xf) as u8
            && datagram.len() >= DATA_HEADER_BYTES + TAG_BYTES;
        sound.then_some(header)
    }

    /// The receiver's slot.
    pub const fn slot(&self) -> SessionSlot {
        SessionSlot::split(self.receiver_index.get()).0
    }

    /// The lane's count of datagrams, from 0.
    pub const fn counter(&self) -> u64 {
        self.counter.get()
    }
}

/// A relay's wrapper: to the relay `index` names the receiver, from the relay the sender. The two have types of their own,
/// so that a node which has a relay and is one never has to guess.
#[derive(
    FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy, PartialEq, Eq, Debug,
)]
#[repr(C)]
pub struct RelayHeader {
    /// [`TO_PLACE`] or [`FROM_PLACE`].
    pub kind: u8,
    /// Zero.
    pub flags: u8,
    reserved: U16,
    index: U32,
}

impl RelayHeader {
    /// Asks a relay to pass on to place `index`.
    pub const fn to(index: u32) -> Self {
        Self::new(TO_PLACE, index)
    }

    /// Says that place `index` sent it.
    pub const fn from(index: u32) -> Self {
        Self::new(FROM_PLACE, index)
    }

    const fn new(kind: u8, index: u32) -> Self {
        Self {
            kind,
            flags: 0,
            reserved: U16::ZERO,
            index: U32::new(index),
        }
    }

    /// The wrapper at the front of `datagram` and what it wraps.
    pub fn parse(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (header, inner) = Self::read_from_prefix(datagram).ok()?;
        matches!(header.kind, TO_PLACE | FROM_PLACE).then_some((header, inner))
    }

    /// The number of the receiver, or of the sender.
    pub const fn index(&self) -> u32 {
        self.index.get()
    }
}

/// Bytes of the wrappers on the way to `path`.
pub const fn wrapper_bytes(path: PathAddr) -> usize {
    path.relays() * RELAY_HEADER_BYTES
}

/// Writes the wrappers on the way to `path` into `head`, which has [`wrapper_bytes`] of room.
pub fn write_wrappers(path: PathAddr, head: &mut [u8]) {
    match path {
        PathAddr::Direct(_) | PathAddr::Punched { .. } => {}
        PathAddr::Relayed { index, .. } => {
            head.copy_from_slice(RelayHeader::to(index).as_bytes());
        }
        PathAddr::Chained { via, index, .. } => {
            let (first, second) = head.split_at_mut(RELAY_HEADER_BYTES);
            first.copy_from_slice(RelayHeader::to(via).as_bytes());
            second.copy_from_slice(RelayHeader::to(index).as_bytes());
        }
    }
}

/// How many wrappers are around a datagram; it looks at one more than [`WRAPPERS_MAX`].
pub fn wrappers(mut datagram: &[u8]) -> usize {
    let mut count = 0;
    while count <= WRAPPERS_MAX
        && let Some((_, inner)) = RelayHeader::parse(datagram)
    {
        (count, datagram) = (count + 1, inner);
    }
    count
}

/// What a datagram claims to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DatagramKind {
    /// RFC 8489; it shares the port (RFC 7983).
    Stun,
    /// A handshake initiation.
    Initiation,
    /// A handshake response.
    Response,
    /// A cookie reply.
    CookieReply,
    /// A sealed datagram.
    Data(DataHeader),
    /// Somebody asks whether we receive here.
    PathChallenge,
    /// Somebody says that it received our question there.
    PathResponse,
    /// A relay's client asks for its place, or proves its address.
    RelayRequest,
    /// A relay answers its client.
    RelayReply,
    /// To be passed on by a relay, to this place.
    ToPlace(RelayHeader),
    /// Passed on by a relay, from this place; the inner one is classified on its own.
    FromPlace(RelayHeader),
    /// None of ours: drop and count.
    Unknown,
}

/// Tells what `datagram` claims to be, without believing it.
pub fn classify(datagram: &[u8]) -> DatagramKind {
    let Some(&first) = datagram.first() else {
        return DatagramKind::Unknown;
    };
    match first {
        INITIATION => DatagramKind::Initiation,
        RESPONSE => DatagramKind::Response,
        COOKIE_REPLY => DatagramKind::CookieReply,
        DATA => DataHeader::parse(datagram).map_or(DatagramKind::Unknown, DatagramKind::Data),
        PATH_CHALLENGE => DatagramKind::PathChallenge,
        PATH_RESPONSE => DatagramKind::PathResponse,
        REQUEST | CONFIRM => DatagramKind::RelayRequest,
        CHALLENGE | BOUND => DatagramKind::RelayReply,
        TO_PLACE | FROM_PLACE => match RelayHeader::parse(datagram) {
            Some((header, _)) if first == TO_PLACE => DatagramKind::ToPlace(header),
            Some((header, _)) => DatagramKind::FromPlace(header),
            None => DatagramKind::Unknown,
        },
        0x00..=0x3f if datagram.len() >= 20 && datagram[4..8] == STUN_MAGIC_COOKIE => {
            DatagramKind::Stun
        }
        _ => DatagramKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_data_header_reads_back_as_it_was_written() {
        let header = DataHeader::new(SessionSlot::from_low_bits(0x0abc_def1), 3, 7, 99);
        let datagram = [header.as_bytes(), &[0; TAG_BYTES]].concat();
        assert_eq!(classify(&datagram), DatagramKind::Data(header));
        assert_eq!((header.slot().raw(), header.counter()), (0x0abc_def1, 99));
        assert_eq!(datagram[4..8], [0xab, 0xcd, 0xef, 0x13]);
    }

    #[test]
    fn a_lane_that_its_index_does_not_repeat_is_refused() {
        let mut datagram = [
            DataHeader::new(SessionSlot::from_low_bits(5), 3, 0, 0).as_bytes(),
            &[0; TAG_BYTES],
        ]
        .concat();
        datagram[1] = 4;
        assert_eq!(classify(&datagram), DatagramKind::Unknown);
    }

    #[test]
    fn the_wrappers_of_a_path_are_as_many_as_its_relays() {
        let relay = ([192, 0, 2, 1], 7).into();
        for path in [
            PathAddr::Direct(relay),
            PathAddr::Relayed { relay, index: 5 },
            PathAddr::Chained {
                relay,
                via: 5,
                index: 6,
            },
        ] {
            let mut datagram = vec![0; wrapper_bytes(path)];
            write_wrappers(path, &mut datagram);
            datagram.push(INITIATION);
            assert_eq!(wrappers(&datagram), path.relays());
        }
        let deep = [RelayHeader::to(1).as_bytes(); 9].concat();
        assert_eq!(wrappers(&deep), WRAPPERS_MAX + 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_classified_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let kind = classify(&bytes);
            if let DatagramKind::Data(header) = kind {
                prop_assert_eq!(header.as_bytes(), &bytes[..DATA_HEADER_BYTES]);
            }
        }
    }
}
