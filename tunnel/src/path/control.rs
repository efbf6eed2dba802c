//! What two path agents say to each other inside the session, on the control lane.
//! Sealing, padding and sending is the engine's.

use crate::stun::NatBehaviour;
use overlay_types::Candidate;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Most candidates that one message may carry; what a peer lists beyond it makes the message invalid.
pub const CANDIDATES_MAX: usize = 16;

/// One message of the control lane. It stands at the beginning of the plaintext; padding may follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlMessage {
    /// "Does this path work?" Padded when it asks whether this size passes.
    Probe {
        /// Repeated by the answer.
        id: u64,
    },
    /// "I got your probe": sent back on the path that brought it, never padded.
    Pong {
        /// Of the probe.
        id: u64,
        /// Where the probe came from, as its receiver saw it; absent on relayed paths.
        observed: Option<SocketAddr>,
    },
    /// The sender's ways in, replacing what it listed before.
    Candidates {
        /// Counts the sender's lists, so that an old one never replaces a newer.
        generation: u32,
        /// Asks the receiver to probe every pair now: the sender does the same at this moment.
        punch: bool,
        /// What the NAT in front of the sender does.
        nat: NatBehaviour,
        /// At most [`CANDIDATES_MAX`].
        #[serde(deserialize_with = "at_most_candidates_max")]
        list: Vec<Candidate>,
        /// Whether the sender relays for other members.
        relays: RelayOffer,
    },
    /// "I have your list of this generation."
    CandidatesSeen {
        /// Of the list.
        generation: u32,
    },
    /// A user's `farlan ping`, answered by the engine.
    Ping {
        /// Repeated by the answer.
        id: u64,
    },
    /// The answer to [`Self::Ping`].
    PingReply {
        /// Of the ping.
        id: u64,
    },
    /// "I end this session": its keys are forgotten.
    Bye,
    /// "The next mappings that my NAT gives to a socket of mine": the one after `base` is `step` further on, and so on. It
    /// holds for a second or so, and is never published.
    Foretold {
        /// Counts the sender's sockets of this kind.
        number: u32,
        /// The last mapping.
        base: SocketAddr,
        /// From one port to the next.
        step: i16,
    },
    /// "Now we try ports by chance": the sender has begun its part, and asks for the receiver's.
    ByChance {
        /// Of the try; the same on both sides.
        number: u32,
    },
    /// Nothing but its length, which pays for probes that the sender wants.
    Credit,
    /// "Give me a place at your relay", or "is it still mine?"
    RelayAsk,
    /// "Here it is": what [`crate::relay::RelayGrant`] has of it.
    RelayPlace {
        /// The place's number.
        index: u32,
        /// Proves to the relay who holds it.
        key: [u8; 32],
    },
    /// "You get none."
    RelayRefused {
        /// Whether there may be one later; otherwise the sender does not relay.
        is_full: bool,
    },
}

/// Whether a member relays for others, as far as it knows how it is reached.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub enum RelayOffer {
    /// No.
    #[default]
    None,
    /// For those with a direct path to it.
    Restricted,
    /// For everybody: nothing keeps datagrams from it.
    Open,
}

impl ControlMessage {
    /// The bytes of the message.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data of bounded size always encodes")
    }

    /// Reads a message and ignores the padding behind it; `None` when it is not one of ours.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::take_from_bytes(bytes)
            .ok()
            .map(|(message, _padding)| message)
    }
}

/// Reads a list that allocates for no more than the bound, whatever length it claims.
fn at_most_candidates_max<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Vec<Candidate>, D::Error> {
    struct Bounded;
    impl<'de> serde::de::Visitor<'de> for Bounded {
        type Value = Vec<Candidate>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "at most {CANDIDATES_MAX} candidates")
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut seq: A,
        ) -> Result<Self::Value, A::Error> {
            let mut list = Vec::with_capacity(CANDIDATES_MAX.min(seq.size_hint().unwrap_or(0)));
            while let Some(candidate) = seq.next_element()? {
                if list.len() == CANDIDATES_MAX {
                    return Err(serde::de::Error::invalid_length(CANDIDATES_MAX + 1, &self));
                }
                list.push(candidate);
            }
            Ok(list)
        }
    }
    from.deserialize_seq(Bounded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sixteen_and(more: usize) -> ControlMessage {
        let list = (0..16 + more as u16)
            .map(|p| Candidate::Host(([10, 0, 0, 1], p).into()))
            .collect();
        ControlMessage::Candidates {
            generation: 1,
            punch: true,
            nat: NatBehaviour::default(),
            list,
            relays: RelayOffer::None,
        }
    }

    #[test]
    fn padding_behind_a_message_is_ignored() {
        let mut bytes = ControlMessage::Probe { id: 7 }.encode();
        bytes.resize(1300, 0);
        assert_eq!(
            ControlMessage::decode(&bytes),
            Some(ControlMessage::Probe { id: 7 })
        );
    }

    #[test]
    fn a_list_longer_than_the_bound_is_refused() {
        assert_eq!(
            ControlMessage::decode(&sixteen_and(0).encode()),
            Some(sixteen_and(0))
        );
        assert_eq!(ControlMessage::decode(&sixteen_and(1).encode()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(message) = ControlMessage::decode(&bytes) {
                prop_assert_eq!(ControlMessage::decode(&message.encode()), Some(message));
            }
        }
    }
}
