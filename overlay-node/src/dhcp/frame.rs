//! Requests out of frames, and replies into frames. What to answer is decided in [`super::server`].

use super::DhcpConfig;
use dhcproto::{
    Decodable, Decoder, Encodable, Name as DnsName,
    v4::{DhcpOption, DhcpOptions, Flags, HType, Message, MessageType, Opcode, OptionCode},
};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use overlay_types::{MacAddr, Name};
use std::{net::Ipv4Addr, str, time::Duration};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Fixed fields and the magic cookie (RFC 2131 §2).
const HEADER_BYTES: usize = 240;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
/// BOOTP's message size; some clients drop anything shorter (RFC 1542 §2.1).
const MESSAGE_BYTES_MIN: usize = 300;
/// Options that matter to us. All others are dropped before decoding, so that one which a client
/// spells oddly (such as an FQDN in ASCII) does not cost it its answer.
const OPTIONS_READ: [u8; 7] = [12, 50, 51, 53, 54, 55, 61];
const OPTION_FQDN: u8 = 81;
const OPTION_HOST_NAME: u8 = 12;

/// Why a frame is no request of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("not DHCP")]
    Malformed,
    #[error("its hardware address is not the frame's source")]
    Spoofed,
    #[error("from a relay agent")]
    Relayed,
}

/// What a client asks.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) kind: MessageType,
    pub(super) mac: MacAddr,
    pub(super) xid: u32,
    pub(super) flags: Flags,
    /// The client's own address, filled in while it has one in use.
    pub(super) ciaddr: Ipv4Addr,
    /// Where the packet went: everybody, or one server.
    pub(super) to: Ipv4Addr,
    pub(super) requested: Option<Ipv4Addr>,
    pub(super) server: Option<Ipv4Addr>,
    pub(super) lease_time: Option<u32>,
    pub(super) client_id: Option<Vec<u8>>,
    pub(super) host_name: Option<Name>,
    pub(super) wanted: Option<Vec<OptionCode>>,
}

impl Request {
    /// Reads an Ethernet frame. Checksums are not looked at: a guest with offloads leaves them partial.
    pub(super) fn decode(frame: &[u8]) -> Result<Self, Refused> {
        let packet = SlicedPacket::from_ethernet(frame).map_err(|_| Refused::Malformed)?;
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) =
            (&packet.net, &packet.transport)
        else {
            return Err(Refused::Malformed);
        };
        if udp.destination_port() != SERVER_PORT || !packet.link_exts.is_empty() {
            return Err(Refused::Malformed);
        }
        let (bytes, fqdn) = relevant_options(udp.payload()).ok_or(Refused::Malformed)?;
        let message = Message::decode(&mut Decoder::new(&bytes)).map_err(|_| Refused::Malformed)?;
        if message.opcode() != Opcode::BootRequest
            || message.htype() != HType::Eth
            || message.hlen() != 6
        {
            return Err(Refused::Malformed);
        }
        let mac = MacAddr(
            message
                .chaddr()
                .try_into()
                .map_err(|_| Refused::Malformed)?,
        );
        let source = MacAddr(frame[6..12].try_into().map_err(|_| Refused::Malformed)?);
        if source != mac || !mac.is_station() {
            return Err(Refused::Spoofed);
        }
        if !message.giaddr().is_unspecified() {
            return Err(Refused::Relayed);
        }
        let options = message.opts();
        let address = |code| match options.get(code) {
            Some(DhcpOption::RequestedIpAddress(ip) | DhcpOption::ServerIdentifier(ip)) => {
                Some(*ip)
            }
            _ => None,
        };
        let host_name = match options.get(OptionCode::Hostname) {
            Some(DhcpOption::Hostname(text)) => Name::sanitized(text.trim_end_matches('\0')),
            _ => None,
        };
        Ok(Self {
            kind: options.msg_type().ok_or(Refused::Malformed)?,
            mac,
            xid: message.xid(),
            flags: message.flags(),
            ciaddr: message.ciaddr(),
            to: ip.header().destination_addr(),
            requested: address(OptionCode::RequestedIpAddress),
            server: address(OptionCode::ServerIdentifier),
            lease_time: match options.get(OptionCode::AddressLeaseTime) {
                Some(DhcpOption::AddressLeaseTime(seconds)) => Some(*seconds),
                _ => None,
            },
            client_id: match options.get(OptionCode::ClientIdentifier) {
                Some(DhcpOption::ClientIdentifier(id)) if !id.is_empty() => Some(id.clone()),
                _ => None,
            },
            host_name: host_name.or(fqdn),
            wanted: match options.get(OptionCode::ParameterRequestList) {
                Some(DhcpOption::ParameterRequestList(codes)) => Some(codes.clone()),
                _ => None,
            },
        })
    }

    fn wants(&self, code: OptionCode) -> bool {
        self.wanted
            .as_ref()
            .is_none_or(|codes| codes.contains(&code))
    }
}

/// The message with only those options that we read, and the host part of its FQDN option.
fn relevant_options(payload: &[u8]) -> Option<(Vec<u8>, Option<Name>)> {
    let (header, mut rest) = payload.split_at_checked(HEADER_BYTES)?;
    if header[HEADER_BYTES - 4..] != MAGIC_COOKIE {
        return None;
    }
    let (mut kept, mut fqdn) = (header.to_vec(), None);
    while let [code, tail @ ..] = rest {
        match code {
            0 => rest = tail,
            255 => break,
            code => {
                let (len, tail) = tail.split_first()?;
                let (value, tail) = tail.split_at_checked(usize::from(*len))?;
                let legible = *code != OPTION_HOST_NAME || str::from_utf8(value).is_ok();
                if OPTIONS_READ.contains(code) && legible {
                    kept.extend([*code, *len]);
                    kept.extend(value);
                } else if *code == OPTION_FQDN {
                    fqdn = host_of_fqdn(value);
                }
                rest = tail;
            }
        }
    }
    kept.push(255);
    Some((kept, fqdn))
}

/// The first label of a client FQDN, in either of its encodings (RFC 4702 §2.3).
fn host_of_fqdn(value: &[u8]) -> Option<Name> {
    const WIRE_FORMAT: u8 = 0b100;
    let (head, name) = value.split_at_checked(3)?;
    let label = if head[0] & WIRE_FORMAT != 0 {
        name.get(1..=usize::from(*name.first()?))?
    } else {
        name
    };
    Name::sanitized(str::from_utf8(label).ok()?)
}

/// What the server answers.
#[derive(Clone, Debug)]
pub(super) enum Reply<'a> {
    /// DHCPOFFER, or DHCPACK with an address.
    Address {
        kind: MessageType,
        ip: Ipv4Addr,
        time: Duration,
        name: Option<&'a Name>,
    },
    /// DHCPACK to DHCPINFORM: parameters only.
    Parameters,
    /// DHCPNAK.
    Nak { why: &'static str },
}

impl Reply<'_> {
    /// The frame to send back behind the port from which `request` came; addressed as RFC 2131 §4.1 says.
    pub(super) fn encode(&self, request: &Request, config: &DhcpConfig) -> Option<Vec<u8>> {
        let (kind, yiaddr) = match self {
            Self::Address { kind, ip, .. } => (*kind, *ip),
            Self::Parameters => (MessageType::Ack, Ipv4Addr::UNSPECIFIED),
            Self::Nak { .. } => (MessageType::Nak, Ipv4Addr::UNSPECIFIED),
        };
        let is_nak = matches!(self, Self::Nak { .. });
        let ciaddr = if is_nak {
            Ipv4Addr::UNSPECIFIED
        } else {
            request.ciaddr
        };
        let mut message = Message::new_with_id(
            request.xid,
            ciaddr,
            yiaddr,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            &request.mac.0,
        );
        message
            .set_opcode(Opcode::BootReply)
            .set_flags(request.flags)
            .set_opts(self.options(kind, request, config));
        let mut payload = message.to_vec().ok()?;
        payload.resize(payload.len().max(MESSAGE_BYTES_MIN), 0);

        let (mac, ip) = if is_nak || (ciaddr.is_unspecified() && request.flags.broadcast()) {
            (MacAddr::BROADCAST, Ipv4Addr::BROADCAST)
        } else if ciaddr.is_unspecified() {
            (request.mac, yiaddr)
        } else {
            (request.mac, ciaddr)
        };
        let builder = PacketBuilder::ethernet2(config.server_mac.0, mac.0)
            .ipv4(config.server.octets(), ip.octets(), 64)
            .udp(SERVER_PORT, CLIENT_PORT);
        let mut frame = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut frame, &payload).ok()?;
        Some(frame)
    }

    fn options(&self, kind: MessageType, request: &Request, config: &DhcpConfig) -> DhcpOptions {
        let mut options = DhcpOptions::new();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(config.server));
        if let Some(id) = &request.client_id {
            options.insert(DhcpOption::ClientIdentifier(id.clone())); // RFC 6842
        }
        match self {
            Self::Nak { why } => {
                options.insert(DhcpOption::Message((*why).to_owned()));
                return options;
            }
            Self::Parameters => {}
            Self::Address { time, name, .. } => {
                let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX - 1);
                options.insert(DhcpOption::AddressLeaseTime(seconds));
                options.insert(DhcpOption::Renewal(seconds / 2));
                options.insert(DhcpOption::Rebinding(seconds - seconds / 8));
                if let Some(name) = name.filter(|_| request.wants(OptionCode::Hostname)) {
                    options.insert(DhcpOption::Hostname(name.to_string()));
                }
            }
        }
        // The mask comes whether asked for or not: a client that makes one up from the address's class is cut off.
        let mask = u32::MAX << (32 - u32::from(config.subnet.prefix_len()));
        options.insert(DhcpOption::SubnetMask(mask.into()));
        let search = DnsName::from_ascii(&config.domain)
            .ok()
            .filter(|_| !config.domain.is_empty());
        // RFC 3442: with classless routes a client ignores the router option, so the default route is among them.
        let default = config.router.map(|via| (Ipv4Addr::UNSPECIFIED, 0, via));
        let routes: Vec<_> = (config
            .routes
            .iter()
            .map(|r| (r.destination.base(), r.destination.prefix_len(), r.via)))
        .chain(default)
        .filter_map(|(to, len, via)| Some((ipnet(to, len)?, via)))
        .collect();
        let offered = [
            Some(DhcpOption::BroadcastAddr(config.subnet.broadcast())),
            config.router.map(|router| DhcpOption::Router(vec![router])),
            Some(DhcpOption::DomainNameServer(config.dns.clone()))
                .filter(|_| !config.dns.is_empty()),
            search
                .as_ref()
                .map(|_| DhcpOption::DomainName(config.domain.clone())),
            search.map(|name| DhcpOption::DomainSearch(vec![name])),
            Some(DhcpOption::InterfaceMtu(config.mtu)),
        ];
        for option in offered
            .into_iter()
            .flatten()
            .filter(|option| request.wants(OptionCode::from(option)))
        {
            options.insert(option);
        }
        // Routes too come unasked: busybox's client does not ask, and takes them.
        if !config.routes.is_empty() {
            options.insert(DhcpOption::ClasslessStaticRoute(routes));
        }
        options
    }
}

fn ipnet(to: Ipv4Addr, len: u8) -> Option<ipnet::Ipv4Net> {
    ipnet::Ipv4Net::new(to, len).ok()
}
