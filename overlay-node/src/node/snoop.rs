//! Reads what passes between DHCP clients and the LAN's server: names in requests, bindings in acknowledgements.
//! Pure. What is learnt from it is [`super::ports`]'s to keep.

use etherparse::{SlicedPacket, TransportSlice};
use overlay_types::{MacAddr, Name};
use std::net::Ipv4Addr;

/// What a DHCP frame tells a bystander.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Snooped {
    /// A client asks, and says its name.
    Named { mac: MacAddr, name: Name },
    /// A server granted an address.
    Granted { mac: MacAddr, ip: Ipv4Addr },
    /// A client gave its address back, or refused it.
    GivenUp { mac: MacAddr },
}

/// Reads a frame and forgets it; for fuzzing. Tells whether it told anything.
pub fn tells_something(frame: &[u8]) -> bool {
    read(frame).is_some()
}

/// Reads a frame; `None` when it tells nothing.
pub(super) fn read(frame: &[u8]) -> Option<Snooped> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Udp(udp)) = packet.transport else {
        return None;
    };
    if ![(67, 68), (68, 67)].contains(&(udp.source_port(), udp.destination_port())) {
        return None;
    }
    let message = udp.payload();
    let mac = MacAddr(message.get(CLIENT_MAC..CLIENT_MAC + 6)?.try_into().ok()?);
    if message.get(2) != Some(&6)
        || message.get(COOKIE..OPTIONS) != Some(&MAGIC)
        || !mac.is_station()
    {
        return None;
    }
    let yours: [u8; 4] = message
        .get(YOUR_ADDRESS..YOUR_ADDRESS + 4)?
        .try_into()
        .ok()?;
    match option(message, MESSAGE_TYPE)?.first()? {
        1 | 3 => {
            let name = std::str::from_utf8(option(message, HOST_NAME)?).ok()?;
            Some(Snooped::Named {
                mac,
                name: Name::sanitized(name)?,
            })
        }
        5 if yours != [0; 4] => Some(Snooped::Granted {
            mac,
            ip: yours.into(),
        }),
        4 | 7 => Some(Snooped::GivenUp { mac }),
        _ => None,
    }
}

// Where RFC 2131 §2 puts what we read. A bystander must not stumble over an odd option that is none of its business, as a
// whole decoder does.
const YOUR_ADDRESS: usize = 16;
const CLIENT_MAC: usize = 28;
const COOKIE: usize = 236;
const OPTIONS: usize = 240;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Options of RFC 2132: DISCOVER 1, REQUEST 3, DECLINE 4, ACK 5, RELEASE 7.
const MESSAGE_TYPE: u8 = 53;
const HOST_NAME: u8 = 12;

/// The value of the first option with this code.
fn option(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(OPTIONS..)?;
    loop {
        match rest {
            [0, tail @ ..] => rest = tail,
            [code, length, tail @ ..] if *code != 255 => {
                let (value, tail) = tail.split_at_checked(usize::from(*length))?;
                if *code == wanted {
                    return Some(value);
                }
                rest = tail;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::{
        Encodable, Encoder,
        v4::{DhcpOption, Message, MessageType},
    };
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn frame(kind: MessageType, ip: Ipv4Addr, name: Option<&str>) -> Vec<u8> {
        let mut message = Message::default();
        message.set_chaddr(&MAC.0).set_yiaddr(ip);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(name) = name {
            message.opts_mut().insert(DhcpOption::Hostname(name.into()));
        }
        let mut payload = Vec::new();
        message.encode(&mut Encoder::new(&mut payload)).unwrap();
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], MAC.0)
            .ipv4([192, 168, 1, 1], [255; 4], 64)
            .udp(67, 68)
            .write(&mut frame, &payload)
            .unwrap();
        frame
    }

    #[test]
    fn requests_tell_names_and_acknowledgements_tell_addresses() {
        let ip = Ipv4Addr::new(192, 168, 1, 50);
        let named = read(&frame(
            MessageType::Discover,
            Ipv4Addr::UNSPECIFIED,
            Some("VM-8-1"),
        ));
        assert_eq!(
            named,
            Some(Snooped::Named {
                mac: MAC,
                name: "vm-8-1".parse().unwrap()
            })
        );
        assert_eq!(
            read(&frame(MessageType::Ack, ip, None)),
            Some(Snooped::Granted { mac: MAC, ip })
        );
        assert_eq!(
            read(&frame(MessageType::Release, ip, None)),
            Some(Snooped::GivenUp { mac: MAC })
        );
        assert_eq!(read(&frame(MessageType::Offer, ip, None)), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_tell_nothing_or_something_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = read(&bytes);
        }
    }
}
