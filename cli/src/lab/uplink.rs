//! A plug of a machine: an interface with its addresses, and the router that leads on from there. What befalls such plugs,
//! that they go down, come up, or that another one is taken, is done here.

use super::Machine;
use anyhow::Result;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

/// Which IP versions a host or a site has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Stack {
    /// IPv4 alone.
    #[default]
    Ipv4,
    /// Both.
    Dual,
    /// IPv6 alone.
    Ipv6,
}

impl Stack {
    /// Whether IPv4 is there.
    pub const fn has_ipv4(self) -> bool {
        !matches!(self, Self::Ipv6)
    }

    /// Whether IPv6 is there.
    pub const fn has_ipv6(self) -> bool {
        !matches!(self, Self::Ipv4)
    }
}

/// An address with its prefix, and the router on that network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leg<A> {
    pub(super) address: A,
    pub(super) prefix_len: u8,
    pub(super) gateway: A,
}

/// An interface of a machine that leads out. Clones mean the same interface.
#[derive(Clone, Debug)]
pub struct Uplink {
    machine: Machine,
    interface: String,
    v4: Option<Leg<Ipv4Addr>>,
    v6: Option<Leg<Ipv6Addr>>,
}

impl Uplink {
    pub(super) fn new(
        machine: &Machine,
        interface: &str,
        v4: Option<Leg<Ipv4Addr>>,
        v6: Option<Leg<Ipv6Addr>>,
    ) -> Self {
        Self {
            machine: machine.clone(),
            interface: interface.to_owned(),
            v4,
            v6,
        }
    }

    /// Its interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Its IPv4 address, if it has IPv4.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.v4.map(|leg| leg.address)
    }

    /// Its IPv6 address, if it has IPv6.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.v6.map(|leg| leg.address)
    }

    /// The same interface with another IPv4 address of the same network.
    pub(super) fn at(&self, address: Ipv4Addr) -> Self {
        Self {
            v4: self.v4.map(|leg| Leg { address, ..leg }),
            ..self.clone()
        }
    }

    /// Brings it up as a DHCP client would: addresses, then the default route by it in place of any other.
    pub fn up(&self) -> Result<()> {
        self.address_interface()?;
        self.make_default()
    }

    /// Brings the interface and its addresses up, without a route beyond its network.
    pub(super) fn address_interface(&self) -> Result<()> {
        let Self { interface, .. } = self;
        let mut lines = vec![format!("link set {interface} up")];
        if let Some(leg) = self.v4 {
            lines.push(format!(
                "addr replace {}/{} dev {interface}",
                leg.address, leg.prefix_len
            ));
        }
        if let Some(leg) = self.v6 {
            lines.push(format!(
                "addr replace {}/{} dev {interface} nodad",
                leg.address, leg.prefix_len
            ));
        }
        self.ip(&lines)
    }

    /// Makes it the way by which the machine reaches the rest of the world, whichever it was before.
    pub fn make_default(&self) -> Result<()> {
        let Self { interface, .. } = self;
        let mut lines = Vec::new();
        if let Some(leg) = self.v4 {
            lines.push(format!(
                "route replace default via {} dev {interface}",
                leg.gateway
            ));
        }
        if let Some(leg) = self.v6 {
            // A batch takes no `-6`; this says which version is meant.
            lines.push(format!(
                "route replace ::/0 via {} dev {interface}",
                leg.gateway
            ));
        }
        self.ip(&lines)
    }

    /// Pulls the plug. The kernel forgets the routes by it, and its IPv6 addresses.
    pub fn down(&self) -> Result<()> {
        self.ip(&[format!("link set {} down", self.interface)])
    }

    /// Takes every address and every route from the interface, and leaves it up.
    pub(super) fn clear(&self) -> Result<()> {
        self.ip(&[format!("addr flush dev {} scope global", self.interface)])
    }

    fn ip(&self, lines: &[String]) -> Result<()> {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        self.machine.ip(&lines)
    }
}

/// A machine that is plugged in by `eth0`.
#[derive(Clone, Debug)]
pub struct Host {
    machine: Machine,
    uplink: Uplink,
}

impl Host {
    pub(super) fn new(machine: Machine, uplink: Uplink) -> Self {
        Self { machine, uplink }
    }

    /// Its IPv4 address on `eth0`.
    ///
    /// # Panics
    /// When the host was made without IPv4; [`Uplink::ipv4`] says whether it was.
    pub fn address(&self) -> Ipv4Addr {
        self.uplink.ipv4().expect("a host that has IPv4")
    }

    /// Its IPv6 address on `eth0`.
    ///
    /// # Panics
    /// When the host was made without IPv6; [`Uplink::ipv6`] says whether it was.
    pub fn address6(&self) -> Ipv6Addr {
        self.uplink.ipv6().expect("a host that has IPv6")
    }

    /// Its `eth0`.
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// The machine itself.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }
}

impl Deref for Host {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}
