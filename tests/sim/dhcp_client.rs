//! A guest's DHCP client (RFC 2131 §4.4): it asks for an address, takes it, renews it, and asks anew when it is refused.
//! It renews by broadcast, as clients do whose unicast got no answer.

use dhcproto::{
    Decodable, Decoder, Encodable,
    v4::{DhcpOption, Message, MessageType, OptionCode},
};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use overlay_types::MacAddr;
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// The first pause before a question is repeated; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(16);

/// How often an offer is asked for before the client begins anew.
const REQUESTS_MAX: u32 = 3;

/// The shortest pause between two attempts to renew.
const RENEW_RETRY_MIN: Duration = Duration::from_secs(10);

/// An address in use.
#[derive(Clone, Copy, Debug)]
struct Bound {
    ip: Ipv4Addr,
    ends_at: Instant,
}

/// ```text
/// Selecting ──offer──▶ Requesting ──ack──▶ Bound ──half time──▶ Renewing
///     ▲ ▲─────nak, no answer──┘               ▲───────ack────────┘ │
///     └───────────────────────────────nak, expiry──────────────────┘
/// ```
#[derive(Clone, Copy, Debug)]
enum State {
    Selecting,
    Requesting {
        ip: Ipv4Addr,
        server: Ipv4Addr,
        sent: u32,
    },
    Bound(Bound),
    Renewing(Bound),
}

/// The client of one interface.
#[derive(Debug)]
pub struct DhcpClient {
    mac: MacAddr,
    name: String,
    state: State,
    xid: u32,
    retry: Duration,
    at: Instant,
}

impl DhcpClient {
    /// A client that asks at once, and says that it is called `name`.
    pub fn new(mac: MacAddr, name: &str, now: Instant) -> Self {
        let [.., a, b, c, d] = mac.0;
        Self {
            mac,
            name: name.to_owned(),
            state: State::Selecting,
            xid: u32::from_be_bytes([a, b, c, d]),
            retry: RETRY_MIN,
            at: now,
        }
    }

    /// The address it may use.
    pub const fn address(&self) -> Option<Ipv4Addr> {
        match self.state {
            State::Bound(bound) | State::Renewing(bound) => Some(bound.ip),
            State::Selecting | State::Requesting { .. } => None,
        }
    }

    /// When to be called again.
    pub const fn poll_timeout(&self) -> Instant {
        self.at
    }

    /// Time passed: what to send now, if anything.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.at {
            return None;
        }
        match self.state {
            State::Requesting { sent, .. } if sent >= REQUESTS_MAX => self.begin(now),
            State::Renewing(bound) if now >= bound.ends_at => self.begin(now),
            State::Bound(bound) => self.state = State::Renewing(bound),
            _ => {}
        }
        match &mut self.state {
            State::Requesting { sent, .. } => {
                *sent += 1;
                self.at = now + RETRY_MIN;
            }
            State::Renewing(bound) => {
                let left = bound.ends_at.saturating_duration_since(now);
                self.at = bound.ends_at.min(now + RENEW_RETRY_MIN.max(left / 2));
            }
            State::Selecting => {
                self.at = now + self.retry;
                self.retry = (self.retry * 2).min(RETRY_MAX);
            }
            State::Bound(_) => {}
        }
        Some(self.question())
    }

    /// A frame for the client arrives: what it sends upon it, if anything.
    pub fn handle_frame(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(TransportSlice::Udp(udp)) = packet.transport else {
            return None;
        };
        if udp.destination_port() != CLIENT_PORT {
            return None;
        }
        let message = Message::decode(&mut Decoder::new(udp.payload())).ok()?;
        if message.xid() != self.xid {
            return None;
        }
        match (message.opts().msg_type()?, self.state) {
            (MessageType::Offer, State::Selecting) => {
                let Some(DhcpOption::ServerIdentifier(server)) =
                    message.opts().get(OptionCode::ServerIdentifier)
                else {
                    return None;
                };
                self.state = State::Requesting {
                    ip: message.yiaddr(),
                    server: *server,
                    sent: 0,
                };
                self.at = now;
                self.handle_timeout(now)
            }
            (MessageType::Ack, State::Requesting { .. } | State::Renewing(_)) => {
                let Some(DhcpOption::AddressLeaseTime(seconds)) =
                    message.opts().get(OptionCode::AddressLeaseTime)
                else {
                    return None;
                };
                let time = Duration::from_secs(u64::from(*seconds));
                self.state = State::Bound(Bound {
                    ip: message.yiaddr(),
                    ends_at: now + time,
                });
                self.at = now + time / 2;
                None
            }
            (MessageType::Nak, State::Requesting { .. } | State::Renewing(_)) => {
                self.begin(now);
                self.handle_timeout(now)
            }
            _ => None,
        }
    }

    /// Forgets what it was told and asks anew.
    fn begin(&mut self, now: Instant) {
        self.state = State::Selecting;
        self.xid = self.xid.wrapping_add(1);
        self.retry = RETRY_MIN;
        self.at = now;
    }

    fn question(&self) -> Vec<u8> {
        let none = Ipv4Addr::UNSPECIFIED;
        let ciaddr = self.address().unwrap_or(none);
        let mut message = Message::new_with_id(self.xid, ciaddr, none, none, none, &self.mac.0);
        let options = message.opts_mut();
        options.insert(DhcpOption::Hostname(self.name.clone()));
        let kind = match self.state {
            State::Selecting => MessageType::Discover,
            State::Requesting { ip, server, .. } => {
                options.insert(DhcpOption::RequestedIpAddress(ip));
                options.insert(DhcpOption::ServerIdentifier(server));
                MessageType::Request
            }
            State::Bound(_) | State::Renewing(_) => MessageType::Request,
        };
        options.insert(DhcpOption::MessageType(kind));
        let payload = message.to_vec().expect("a short message");
        let builder = PacketBuilder::ethernet2(self.mac.0, MacAddr::BROADCAST.0)
            .ipv4(ciaddr.octets(), Ipv4Addr::BROADCAST.octets(), 64)
            .udp(CLIENT_PORT, SERVER_PORT);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder
            .write(&mut frame, &payload)
            .expect("writing to a Vec cannot fail");
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_node::dhcp::{Block, DhcpConfig, DhcpServer};
    use overlay_types::PortId;
    use std::collections::BTreeMap;

    const PORT: PortId = PortId(1);
    const UNIX: u64 = 1_800_000_000;

    fn server(range: &str, now: Instant) -> DhcpServer {
        let mut server = DhcpServer::new(DhcpConfig {
            subnet: "10.0.0.0/24".parse().unwrap(),
            server: Ipv4Addr::new(10, 0, 0, 1),
            server_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            router: None,
            dns: Vec::new(),
            domain: String::new(),
            mtu: 1500,
            lease_time: Duration::from_secs(3600),
            routes: Vec::new(),
            reservations: BTreeMap::new(),
        });
        let block = Block {
            range: range.parse().unwrap(),
            until: UNIX + 86_400,
        };
        server.set_blocks(&[block], now, UNIX);
        server
    }

    /// Lets client and server talk until neither has anything to say.
    fn talk(client: &mut DhcpClient, server: &mut DhcpServer, now: Instant, unix: u64) {
        let mut said = client.handle_timeout(now);
        while let Some(frame) = said.take() {
            server.handle_frame(PORT, &frame, now, unix);
            while let Some((_, answer)) = server.poll_frame() {
                said = client.handle_frame(&answer, now).or(said);
            }
        }
    }

    #[test]
    fn it_takes_an_address_renews_it_and_asks_anew_when_refused() {
        let t0 = Instant::now();
        let mut client = DhcpClient::new(MacAddr([2, 0, 0, 0, 0, 9]), "guest", t0);
        let mut first = server("10.0.0.16/28", t0);
        talk(&mut client, &mut first, t0, UNIX);
        let address = client.address();
        assert_eq!(address, Some(Ipv4Addr::new(10, 0, 0, 16)));

        let half = client.poll_timeout();
        assert_eq!(half, t0 + Duration::from_secs(1800));
        talk(&mut client, &mut first, half, UNIX + 1800);
        assert_eq!(client.address(), address);
        assert_eq!(client.poll_timeout(), half + Duration::from_secs(1800));

        let mut other = server("10.0.0.32/28", t0);
        let end = client.poll_timeout();
        talk(&mut client, &mut other, end, UNIX + 3600);
        assert_eq!(client.address(), Some(Ipv4Addr::new(10, 0, 0, 32)));
    }

    #[test]
    fn it_stops_in_time_when_nobody_renews() {
        let t0 = Instant::now();
        let mut client = DhcpClient::new(MacAddr([2, 0, 0, 0, 0, 9]), "guest", t0);
        talk(&mut client, &mut server("10.0.0.16/28", t0), t0, UNIX);
        while client.poll_timeout() < t0 + Duration::from_secs(3600) {
            assert!(client.address().is_some());
            let at = client.poll_timeout();
            assert!(client.handle_timeout(at).is_some());
        }
        client.handle_timeout(t0 + Duration::from_secs(3600));
        assert_eq!(client.address(), None);
    }
}
