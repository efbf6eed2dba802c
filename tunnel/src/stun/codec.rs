//! Binding requests and answers as bytes: the few attributes we use, through `stun-rs`.

use std::net::{IpAddr, SocketAddr};
use stun_rs::attributes::discovery::{
    ChangeRequest, ChangeRequestFlags, OtherAddress, ResponseOrigin, ResponsePort,
};
use stun_rs::attributes::stun::{
    ErrorCode, MappedAddress, Software, UnknownAttributes, XorMappedAddress,
};
use stun_rs::methods::BINDING;
use stun_rs::{
    MessageClass, MessageDecoderBuilder, MessageEncoderBuilder, StunAttribute, StunMessage,
    StunMessageBuilder, TransactionId,
};

/// Ties an answer to its question; random, so that nobody off the path can answer in the server's place.
pub(super) type Transaction = [u8; 12];

/// Longer messages carry nothing that we use.
const MESSAGE_BYTES_MAX: usize = 548; // RFC 8489 §6.1 for IPv4

/// Makes each question as long as the longest answer to it, of three IPv6 addresses, since our servers answer no shorter one:
/// who forges a source must send as much as it makes them send. PADDING (RFC 5780 §7.6) would make others' answers longer.
const SOFTWARE: &str = "Farlan: a question as long as its answer makes nobody send more here";

/// From where the answer shall come (RFC 5780 §7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) ip: bool,
    pub(super) port: bool,
}

/// A client's question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) transaction: Transaction,
    pub(super) change: Change,
    /// To which port of the client the answer shall go, if not to where the question came from (RFC 5780 §7.5).
    pub(super) response_port: Option<u16>,
    /// Attributes that a server must understand or refuse.
    pub(super) unknown: Vec<u16>,
}

/// A server's answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) transaction: Transaction,
    /// Where the server saw us, or `None` when it refused the question.
    pub(super) mapped: Option<SocketAddr>,
    /// Its other address (RFC 5780 §7.4).
    pub(super) other: Option<SocketAddr>,
}

pub(super) fn encode_request(transaction: Transaction, change: Change) -> Vec<u8> {
    let mut message = question(transaction);
    if change != Change::default() {
        let flags = match (change.ip, change.port) {
            (true, true) => ChangeRequestFlags::ChangeIp | ChangeRequestFlags::ChangePort,
            (true, false) => ChangeRequestFlags::ChangeIp.into(),
            _ => ChangeRequestFlags::ChangePort.into(),
        };
        message = message.with_attribute(ChangeRequest::new(Some(flags)));
    }
    encode(&message.build())
}

/// A question whose answer shall go to another port of ours.
pub(super) fn encode_request_for_port(transaction: Transaction, port: u16) -> Vec<u8> {
    let message = question(transaction);
    encode(&message.with_attribute(ResponsePort::from(port)).build())
}

pub(super) fn encode_answer(
    transaction: Transaction,
    mapped: SocketAddr,
    origin: SocketAddr,
    other: SocketAddr,
) -> Vec<u8> {
    let message = builder(MessageClass::SuccessResponse, transaction)
        .with_attribute(XorMappedAddress::from(mapped))
        .with_attribute(ResponseOrigin::from(origin))
        .with_attribute(OtherAddress::from(other));
    encode(&message.build())
}

/// 420: the question asks for what this server cannot do.
pub(super) fn encode_refusal(transaction: Transaction, unknown: &[u16]) -> Vec<u8> {
    let code =
        stun_rs::ErrorCode::new(420, "Unknown Attribute").expect("420 is a code of RFC 8489");
    let message = builder(MessageClass::ErrorResponse, transaction)
        .with_attribute(ErrorCode::from(code))
        .with_attribute(UnknownAttributes::from(unknown));
    encode(&message.build())
}

pub(super) fn decode_request(bytes: &[u8]) -> Option<Request> {
    let message = decode(bytes).filter(|m| m.class() == MessageClass::Request)?;
    let change = message
        .get::<ChangeRequest>()
        .and_then(|a| a.as_change_request().ok())
        .map(|c| Change {
            ip: c.flags().contains(ChangeRequestFlags::ChangeIp),
            port: c.flags().contains(ChangeRequestFlags::ChangePort),
        });
    let response_port = message
        .get::<ResponsePort>()
        .and_then(|a| a.as_response_port().ok())
        .map(|port| port.as_u16());
    let unknown = message
        .attributes()
        .iter()
        .filter_map(|attribute| match attribute {
            StunAttribute::Unknown(u) if u.attribute_type().is_comprehension_required() => {
                Some(u.attribute_type().as_u16())
            }
            _ => None,
        });
    let unknown = unknown.take(8).collect();
    Some(Request {
        transaction: *message.transaction_id().as_bytes(),
        change: change.unwrap_or_default(),
        response_port,
        unknown,
    })
}

pub(super) fn decode_reply(bytes: &[u8]) -> Option<Reply> {
    let message = decode(bytes)?;
    let transaction = *message.transaction_id().as_bytes();
    match message.class() {
        MessageClass::SuccessResponse => {
            let xored = message
                .get::<XorMappedAddress>()
                .and_then(|a| a.as_xor_mapped_address().ok());
            let plain = || {
                message
                    .get::<MappedAddress>()
                    .and_then(|a| a.as_mapped_address().ok())
            }; // RFC 3489 servers
            let mapped = xored
                .map(|a| *a.socket_address())
                .or_else(|| plain().map(|a| *a.socket_address()))?;
            let other = message
                .get::<OtherAddress>()
                .and_then(|a| a.as_other_address().ok());
            let other = other
                .map(|a| canonical(*a.socket_address()))
                .filter(|a| a.port() != 0);
            Some(Reply {
                transaction,
                mapped: Some(canonical(mapped)),
                other,
            })
        }
        MessageClass::ErrorResponse => Some(Reply {
            transaction,
            mapped: None,
            other: None,
        }),
        _ => None,
    }
}

/// The attribute that asks for an answer from elsewhere, by number.
pub(super) fn change_request_type() -> u16 {
    use stun_rs::attributes::StunAttributeType;
    ChangeRequest::get_type().as_u16()
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::to_canonical(&addr.ip()), addr.port())
}

fn question(transaction: Transaction) -> StunMessageBuilder {
    let software = Software::new(SOFTWARE).expect("far shorter than 763 bytes");
    builder(MessageClass::Request, transaction).with_attribute(software)
}

fn builder(class: MessageClass, transaction: Transaction) -> StunMessageBuilder {
    StunMessageBuilder::new(BINDING, class).with_transaction_id(TransactionId::from(transaction))
}

fn encode(message: &StunMessage) -> Vec<u8> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let size = MessageEncoderBuilder::default()
        .build()
        .encode(&mut bytes, message);
    bytes.truncate(size.expect("three small attributes fit"));
    bytes
}

fn decode(bytes: &[u8]) -> Option<StunMessage> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return None;
    }
    let (message, size) = MessageDecoderBuilder::default()
        .build()
        .decode(bytes)
        .ok()?;
    (message.method() == BINDING && size == bytes.len()).then_some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_answer_is_longer_than_its_question() {
        let longest = "[2001:db8::1]:40000".parse().unwrap();
        let answers = [
            encode_answer([2; 12], longest, longest, longest),
            encode_refusal([2; 12], &[1, 2, 3, 4, 5, 6, 7, 8]),
        ];
        for answer in answers.map(|bytes| bytes.len()) {
            let question = encode_request([1; 12], Change::default()).len();
            assert!(answer <= question, "{answer} and {question}");
        }
    }

    #[test]
    fn question_and_answer_survive_the_way() {
        let both = Change {
            ip: true,
            port: true,
        };
        let request = decode_request(&encode_request([1; 12], both)).unwrap();
        assert_eq!(
            request,
            Request {
                transaction: [1; 12],
                change: both,
                response_port: None,
                unknown: vec![]
            }
        );
        let elsewhere = decode_request(&encode_request_for_port([1; 12], 4_000)).unwrap();
        assert_eq!(elsewhere.response_port, Some(4_000));
        for (mapped, other) in [
            ("192.0.2.1:40000", "198.51.100.1:3479"),
            ("[2001:db8::1]:40000", "[2001:db8::2]:3479"),
        ] {
            let (mapped, other) = (mapped.parse().unwrap(), other.parse().unwrap());
            let reply = decode_reply(&encode_answer([2; 12], mapped, other, other)).unwrap();
            assert_eq!(
                reply,
                Reply {
                    transaction: [2; 12],
                    mapped: Some(mapped),
                    other: Some(other)
                }
            );
        }
        assert_eq!(
            decode_reply(&encode_refusal([3; 12], &[3])).unwrap().mapped,
            None
        );
    }

    #[test]
    fn the_test_vector_of_rfc_5769_is_read() {
        let response = [
            0x01, 0x01, 0x00, 0x3c, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34,
            0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x0b, 0x74, 0x65, 0x73, 0x74,
            0x20, 0x76, 0x65, 0x63, 0x74, 0x6f, 0x72, 0x20, 0x00, 0x20, 0x00, 0x08, 0x00, 0x01,
            0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43, 0x00, 0x08, 0x00, 0x14, 0x2b, 0x91, 0xf5, 0x99,
            0xfd, 0x9e, 0x90, 0xc3, 0x8c, 0x74, 0x89, 0xf9, 0x2a, 0xf9, 0xba, 0x53, 0xf0, 0x6b,
            0xe7, 0xd7, 0x80, 0x28, 0x00, 0x04, 0xc0, 0x7d, 0x4c, 0x96,
        ];
        assert_eq!(
            decode_reply(&response).unwrap().mapped,
            Some("192.0.2.1:32853".parse().unwrap())
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(kind in 0..4u8, body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut bytes = vec![kind & 1, if kind & 2 == 0 { 1 } else { 0x11 }, 0, body.len() as u8, 0x21, 0x12, 0xa4, 0x42];
            bytes.extend([5; 12]);
            bytes.extend(body);
            decode_request(&bytes);
            decode_reply(&bytes);
        }

        #[test]
        fn any_damage_is_read_or_refused(at in 0..60usize, value: u8) {
            let addr = "192.0.2.1:40000".parse().unwrap();
            let mut bytes = encode_answer([2; 12], addr, addr, addr);
            let len = bytes.len();
            bytes[at % len] = value;
            decode_request(&bytes);
            decode_reply(&bytes);
        }
    }
}
