//! What befalls a node's own network while it is in use: another default route, another address, a NAT that forgets or is
//! another one, a cable, a sleep, a firewall that lets out less.

use crate::overlay::{
    await_path, eventually, fabric, founder, host_behind, member, ping, ssh_key, sshd,
};
use anyhow::{Context, Result};
use cli::demo::Node;
use cli::lab::{Host, Lab, Nat, Process, Site, Uplink};
use std::fmt;
use std::thread;
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

/// A laptop with two uplinks, each behind a NAT of its own, and a peer behind another, which the laptop may ssh into.
pub(crate) struct Stage<'lab> {
    pub(crate) host: Host,
    pub(crate) node: Node,
    pub(crate) peer: Node,
    /// The peer's, in the overlay.
    pub(crate) address: String,
    home: Site<'lab>,
    wifi: Uplink,
    _others: (Node, Process),
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
}

impl Event {
    /// All, in the order in which they may follow each other.
    pub(crate) const ALL: [Self; 9] = [
        Self::OtherUplink,
        Self::FirstUplink,
        Self::OutsideAddress,
        Self::Restart,
        Self::Cable,
        Self::Sleep,
        Self::Address,
        Self::Firewall,
        Self::NoFirewall,
    ];

    /// For how long the network is away by itself.
    pub(crate) const fn away(self) -> Duration {
        match self {
            Self::Restart => RESTARTED,
            Self::Cable => UNPLUGGED,
            Self::Sleep => ASLEEP,
            _ => Duration::ZERO,
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
            Self::NoFirewall => "it lets out all again",
        })
    }
}

impl<'lab> Stage<'lab> {
    /// Builds it; the path between the two is direct.
    pub(crate) fn build(lab: &'lab Lab) -> Result<Self> {
        let (fabric, bootstrap) = fabric(lab);
        let peer_host = host_behind(lab, Nat::PortRestricted, "peer");
        let peer = founder(&peer_host, &bootstrap, NETWORK, &[]);
        let home = lab.site("home", Nat::PortRestricted)?;
        let cafe = lab.site("cafe", Nat::PortRestricted)?;
        let host = home.host(LAPTOP)?;
        let wifi = cafe.second_uplink(host.machine(), "eth1")?;
        let daemon = sshd(&peer_host, &ssh_key(&host));
        let node = member(&host, &peer, NETWORK);
        let address = peer.address(NETWORK)?;
        eventually(|| ping(&host, &address))?;
        await_path(&node, NETWORK, PEER, "direct")?;
        Ok(Self {
            host,
            node,
            peer,
            address,
            home,
            wifi,
            _others: (fabric, daemon),
        })
    }

    /// Makes it happen.
    pub(crate) fn befall(&self, event: Event) -> Result<()> {
        let (host, home) = (&self.host, &self.home);
        match event {
            Event::OtherUplink => self.wifi.make_default(),
            Event::FirstUplink => host.uplink().make_default(),
            Event::OutsideAddress => home.renumber().map(drop),
            Event::Restart => home.reboot_router(RESTARTED),
            Event::Cable => {
                host.uplink().down()?;
                thread::sleep(UNPLUGGED);
                host.uplink().up()
            }
            Event::Sleep => {
                host.suspend()?;
                thread::sleep(ASLEEP);
                host.resume()
            }
            Event::Address => home.readdress(host).map(drop),
            Event::Firewall => let_out_only(home, "tcp dport 443"),
            Event::NoFirewall => let_out_all(home),
        }
        .with_context(|| event.to_string())
    }
}

/// Lets nothing out of a site but what `allowed` says, in nft's words.
pub(crate) fn let_out_only(site: &Site<'_>, allowed: &str) -> Result<()> {
    site.router().nft(&format!(
        "table inet firewall {{
  chain out {{
    type filter hook forward priority filter - 10; policy accept;
    iifname \"lan\" {allowed} accept
    iifname \"lan\" drop
    iifname \"wan\" meta l4proto udp drop
  }}
}}
"
    ))
}

/// Opens it again.
pub(crate) fn let_out_all(site: &Site<'_>) -> Result<()> {
    let words = ["nft", "delete", "table", "inet", "firewall"];
    site.router().run(&words).map(drop)
}
