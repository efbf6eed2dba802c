//! A first look at DHCPv4 messages (RFC 2131): enough to tell servers from clients and to snoop acknowledgements.
//! Answering them is the node's business, with a whole codec.

use super::ip::UdpView;
use overlay_types::MacAddr;
use std::net::Ipv4Addr;

/// The port that servers listen on.
pub const SERVER_PORT: u16 = 67;
/// The port that clients listen on.
pub const CLIENT_PORT: u16 = 68;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
const OPTIONS_AT: usize = 240;
const OPTION_PAD: u8 = 0;
const OPTION_LEASE_TIME: u8 = 51;
const OPTION_MESSAGE_TYPE: u8 = 53;
const OPTION_END: u8 = 255;

/// Values of option 53 (RFC 2132 §9.6).
pub mod message_type {
    /// A client looks for servers.
    pub const DISCOVER: u8 = 1;
    /// A server offers.
    pub const OFFER: u8 = 2;
    /// A client asks.
    pub const REQUEST: u8 = 3;
    /// A server grants.
    pub const ACK: u8 = 5;
    /// A client gives up its address.
    pub const RELEASE: u8 = 7;
}

/// Who a DHCPv4 datagram comes from, by its ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// To a server's port.
    Client,
    /// To a client's port.
    Server,
}

/// Whether `udp` is DHCPv4, and who sent it.
pub fn sender(udp: &UdpView<'_>) -> Option<Sender> {
    match udp.destination_port {
        SERVER_PORT => Some(Sender::Client),
        CLIENT_PORT => Some(Sender::Server),
        _ => None,
    }
}

/// The fields of a DHCPv4 message that the switch looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DhcpPeek {
    /// Option 53, see [`message_type`].
    pub message_type: u8,
    /// The client's MAC.
    pub client_mac: MacAddr,
    /// The address that the client says it has.
    pub client_ip: Ipv4Addr,
    /// The address that the server gives.
    pub your_ip: Ipv4Addr,
    /// Option 51, in seconds.
    pub lease_time_s: Option<u32>,
}

impl DhcpPeek {
    /// Reads a UDP payload, if it is DHCPv4 for Ethernet.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        if payload.len() < OPTIONS_AT
            || payload[1] != 1
            || payload[2] != 6
            || payload[236..240] != MAGIC_COOKIE
        {
            return None;
        }
        let ip_at = |at: usize| {
            Ipv4Addr::new(
                payload[at],
                payload[at + 1],
                payload[at + 2],
                payload[at + 3],
            )
        };
        let (mut message_type, mut lease_time_s) = (None, None);
        let mut options = &payload[OPTIONS_AT..];
        while let [code, rest @ ..] = options {
            match *code {
                OPTION_PAD => options = rest,
                OPTION_END => break,
                code => {
                    let (&len, rest) = rest.split_first()?;
                    let (value, rest) = rest.split_at_checked(usize::from(len))?;
                    match (code, value) {
                        (OPTION_MESSAGE_TYPE, [kind]) => message_type = Some(*kind),
                        (OPTION_LEASE_TIME, &[a, b, c, d]) => {
                            lease_time_s = Some(u32::from_be_bytes([a, b, c, d]))
                        }
                        _ => {}
                    }
                    options = rest;
                }
            }
        }
        let client_mac = MacAddr(
            payload[28..34]
                .try_into()
                .expect("six bytes of a checked range"),
        );
        Some(Self {
            message_type: message_type?,
            client_mac,
            client_ip: ip_at(12),
            your_ip: ip_at(16),
            lease_time_s,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ack() -> Vec<u8> {
        let mut message = vec![0; OPTIONS_AT];
        message[..3].copy_from_slice(&[2, 1, 6]);
        message[16..20].copy_from_slice(&[10, 0, 0, 5]);
        message[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 5]);
        message[236..240].copy_from_slice(&MAGIC_COOKIE);
        message.extend([
            OPTION_PAD,
            OPTION_MESSAGE_TYPE,
            1,
            message_type::ACK,
            OPTION_LEASE_TIME,
            4,
            0,
            0,
            14,
            16,
            OPTION_END,
        ]);
        message
    }

    #[test]
    fn an_acknowledgement_tells_who_got_what_for_how_long() {
        let peek = DhcpPeek::parse(&ack()).unwrap();
        assert_eq!(
            (peek.message_type, peek.client_mac),
            (message_type::ACK, MacAddr([2, 0, 0, 0, 0, 5]))
        );
        assert_eq!(
            (peek.your_ip, peek.lease_time_s),
            (Ipv4Addr::new(10, 0, 0, 5), Some(3600))
        );
    }

    proptest! {
        #[test]
        fn any_options_are_read_without_panic(options in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut message = ack();
            message.truncate(OPTIONS_AT);
            message.extend(options);
            let _ = DhcpPeek::parse(&message);
        }
    }
}
