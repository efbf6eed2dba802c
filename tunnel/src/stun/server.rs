//! What a fabric node answers to a STUN question. The sockets are in `io`.

use super::codec::{
    Change, Request, change_request_type, decode_request, encode_answer, encode_refusal,
};
use std::net::SocketAddr;

/// An answer, and from which of the two sockets it must leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StunAnswer {
    /// The datagram.
    pub bytes: Vec<u8>,
    /// Where it goes: the address that asked, and the port that did or another one that it named (RFC 5780 §7.5).
    pub to: SocketAddr,
    /// From the other socket than the one that the question came to.
    pub from_other: bool,
}

/// Answers a binding request from `from` that arrived at our address `at`, where `other` is our second socket's
/// address; `None` when it is not a request, or shorter than its answer, which goes to an address that may be forged.
///
/// RFC 5780 speaks of a second IP address; a fabric node seldom has one, so `other` may differ in the port alone, and
/// a change of the IP is then refused. With two IP addresses both must change: there are two sockets, not four.
pub fn server_answer(
    request: &[u8],
    from: SocketAddr,
    at: SocketAddr,
    other: SocketAddr,
) -> Option<StunAnswer> {
    let answer = answer_to(decode_request(request)?, from, at, other);
    (answer.bytes.len() <= request.len()).then_some(answer)
}

fn answer_to(request: Request, from: SocketAddr, at: SocketAddr, other: SocketAddr) -> StunAnswer {
    if !request.unknown.is_empty() {
        return StunAnswer {
            bytes: encode_refusal(request.transaction, &request.unknown),
            to: from,
            from_other: false,
        };
    }
    let other_differs = Change {
        ip: at.ip() != other.ip(),
        port: true,
    };
    let from_other = request.change == other_differs;
    if !from_other && request.change != Change::default() {
        return StunAnswer {
            bytes: encode_refusal(request.transaction, &[change_request_type()]),
            to: from,
            from_other,
        };
    }
    let (origin, second) = if from_other { (other, at) } else { (at, other) };
    StunAnswer {
        bytes: encode_answer(request.transaction, from, origin, second),
        to: SocketAddr::new(from.ip(), request.response_port.unwrap_or(from.port())),
        from_other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::{decode_reply, encode_request, encode_request_for_port};
    use super::*;

    const FROM: &str = "192.0.2.1:40000";
    const MAIN: &str = "198.51.100.1:3478";

    fn ask(change: Change, other: &str) -> StunAnswer {
        let request = encode_request([1; 12], change);
        server_answer(
            &request,
            FROM.parse().unwrap(),
            MAIN.parse().unwrap(),
            other.parse().unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn a_plain_question_is_answered_from_where_it_came_to() {
        let answer = ask(Change::default(), "198.51.100.1:3479");
        let reply = decode_reply(&answer.bytes).unwrap();
        assert!(!answer.from_other);
        assert_eq!(
            (reply.mapped, reply.other),
            (
                Some(FROM.parse().unwrap()),
                Some("198.51.100.1:3479".parse().unwrap())
            )
        );
    }

    #[test]
    fn a_changed_port_is_answered_from_the_other_socket() {
        assert!(
            ask(
                Change {
                    ip: false,
                    port: true
                },
                "198.51.100.1:3479"
            )
            .from_other
        );
        assert!(
            ask(
                Change {
                    ip: true,
                    port: true
                },
                "198.51.100.2:3479"
            )
            .from_other
        );
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        for (change, other) in [
            (
                Change {
                    ip: true,
                    port: true,
                },
                "198.51.100.1:3479",
            ),
            (
                Change {
                    ip: true,
                    port: false,
                },
                "198.51.100.2:3479",
            ),
        ] {
            let answer = ask(change, other);
            assert_eq!(
                (
                    answer.from_other,
                    decode_reply(&answer.bytes).unwrap().mapped
                ),
                (false, None)
            );
        }
    }

    #[test]
    fn an_answer_goes_to_the_port_that_was_named_and_never_to_another_address() {
        let request = encode_request_for_port([1; 12], 4_000);
        let [from, at, other] = [FROM, MAIN, "198.51.100.1:3479"].map(|a| a.parse().unwrap());
        let answer = server_answer(&request, from, at, other).unwrap();
        assert_eq!(
            (answer.to, answer.from_other),
            ("192.0.2.1:4000".parse().unwrap(), false)
        );
        let reply = decode_reply(&answer.bytes).unwrap();
        assert_eq!(
            reply.mapped,
            Some(from),
            "it says where the question came from all the same"
        );
    }

    #[test]
    fn a_question_that_is_shorter_than_its_answer_gets_none() {
        let bare = [
            0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        ];
        assert!(decode_request(&bare).is_some());
        let [from, at, other] = [FROM, MAIN, "198.51.100.1:3479"].map(|a| a.parse().unwrap());
        assert_eq!(server_answer(&bare, from, at, other), None);
    }

    #[test]
    fn answers_are_not_answered() {
        let answer = ask(Change::default(), "198.51.100.1:3479");
        let addr = MAIN.parse().unwrap();
        assert_eq!(server_answer(&answer.bytes, addr, addr, addr), None);
    }
}
