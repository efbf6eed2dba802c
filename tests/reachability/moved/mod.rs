//! What befalls the way between two nodes while it is in use: another default route, another address, a NAT that forgets or
//! is another one, a cable, a sleep, a firewall that lets out less and then more again, an IP version or a relay that is
//! lost. The lab in which it happens is [`stage`].

pub(crate) mod firewall;
mod stage;

pub(crate) use stage::Stage;

use std::fmt;
use std::time::Duration;

/// The network that the two nodes make.
pub(crate) const NETWORK: &str = "lab";
/// The peer, as its node calls itself.
pub(crate) const PEER: &str = "peer-host";
/// The one to which all happens.
pub(crate) const LAPTOP: &str = "laptop";

/// How long the network itself is away, where it is.
const RESTARTED: Duration = Duration::from_millis(500);
const UNPLUGGED: Duration = Duration::from_secs(1);
const ASLEEP: Duration = Duration::from_secs(6);

/// A lab of its own, with all that happens there, in the order in which it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scene {
    /// Two uplinks behind port-restricted NATs, one fabric node; straight at first.
    Uplinks,
    /// Both IP versions everywhere, and two fabric nodes; straight at first.
    Relays,
    /// Nothing but an SSH gateway gets out at first.
    Ssh,
    /// Nothing but an HTTP proxy gets out at first.
    Proxy,
}

impl Scene {
    pub(crate) const ALL: [Self; 4] = [Self::Uplinks, Self::Relays, Self::Ssh, Self::Proxy];

    /// What happens there.
    pub(crate) const fn events(self) -> &'static [Event] {
        match self {
            Self::Uplinks => &[
                Event::OtherUplink,
                Event::FirstUplink,
                Event::OutsideAddress,
                Event::Restart,
                Event::Cable,
                Event::Sleep,
                Event::Address,
                Event::Firewall,
                Event::NoFirewall,
            ],
            Self::Relays => &[
                Event::IpVersion,
                Event::OtherIpVersion,
                Event::NotStraight,
                Event::RelayUnplugged,
                Event::RelayKilled,
                Event::Straight,
            ],
            Self::Ssh | Self::Proxy => &[Event::UdpOpens, Event::UdpCloses],
        }
    }

    /// What happened there, in words.
    pub(crate) fn tells(self, event: Event) -> String {
        match self {
            Self::Uplinks | Self::Relays => event.to_string(),
            Self::Ssh => format!("where SSH alone got out, {event}"),
            Self::Proxy => format!("where an HTTP proxy alone got out, {event}"),
        }
    }
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    OtherUplink,
    FirstUplink,
    OutsideAddress,
    Restart,
    Cable,
    Sleep,
    Address,
    Firewall,
    NoFirewall,
    IpVersion,
    OtherIpVersion,
    NotStraight,
    RelayUnplugged,
    RelayKilled,
    Straight,
    UdpOpens,
    UdpCloses,
}

impl Event {
    /// For how long the network is away by itself.
    pub(crate) const fn away(self) -> Duration {
        match self {
            Self::Restart => RESTARTED,
            Self::Cable => UNPLUGGED,
            Self::Sleep => ASLEEP,
            _ => Duration::ZERO,
        }
    }

    /// The kind of path that is waited for, where a change of it is what is to be lived through.
    const fn path_after(self) -> Option<&'static str> {
        match self {
            Self::NoFirewall
            | Self::IpVersion
            | Self::OtherIpVersion
            | Self::Straight
            | Self::UdpOpens => Some("direct"),
            Self::NotStraight | Self::RelayUnplugged | Self::RelayKilled => Some("relay"),
            Self::UdpCloses => Some("stream"),
            _ => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherUplink => "the default route goes by the other uplink",
            Self::FirstUplink => "and back",
            Self::OutsideAddress => "the NAT gets another outside address",
            Self::Restart => "the NAT is restarted",
            Self::Cable => "the cable is pulled and put back",
            Self::Sleep => "the machine sleeps",
            Self::Address => "the host gets another address",
            Self::Firewall => "a firewall lets out TCP 443 only",
            Self::NoFirewall => "it lets out all again, until the path is straight",
            Self::IpVersion => "the IP version in use is lost, the other one stays",
            Self::OtherIpVersion => "it is back, then the other one is lost",
            Self::NotStraight => "a firewall keeps the two apart, their relays remain",
            Self::RelayUnplugged => "the cable of the relay in use is pulled, one of two",
            Self::RelayKilled => "the relay in use is killed, one of two",
            Self::Straight => "the firewall lets the two together, until the path is straight",
            Self::UdpOpens => "UDP gets out, until the path is straight",
            Self::UdpCloses => "and no longer",
        })
    }
}
