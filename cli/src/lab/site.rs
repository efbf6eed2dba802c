//! Sites: a router with its NAT, a LAN behind it, and hosts on the LAN.

use super::{Lab, Machine, Nat};
use anyhow::{Result, bail};
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::time::Duration;

/// What a site may have otherwise than usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteOptions {
    /// First three bytes of the LAN's /24; 192.168.N when not given, N counting sites (198.19.N when public).
    pub lan_prefix: Option<[u8; 3]>,
    /// How long an idle UDP mapping lives. RFC 4787 asks for two minutes; common routers give less.
    pub udp_timeout: Duration,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            lan_prefix: None,
            udp_timeout: Duration::from_secs(60),
        }
    }
}

/// A machine with an IPv4 address on `eth0`.
#[derive(Clone, Debug)]
pub struct Host {
    machine: Machine,
    address: Ipv4Addr,
}

impl Host {
    pub(super) fn new(machine: Machine, address: Ipv4Addr) -> Self {
        Self { machine, address }
    }

    /// Its address on `eth0`.
    pub fn address(&self) -> Ipv4Addr {
        self.address
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

/// A router between the internet (`wan`) and a LAN (bridge `lan`).
pub struct Site<'lab> {
    lab: &'lab Lab,
    name: String,
    nat: Nat,
    router: Machine,
    outside: Ipv4Addr,
    lan_prefix: [u8; 3],
    plugs: Cell<u8>,
    hosts: Cell<u8>,
}

impl<'lab> Site<'lab> {
    pub(super) fn build(
        lab: &'lab Lab,
        name: &str,
        index: u8,
        nat: Nat,
        options: SiteOptions,
    ) -> Result<Self> {
        let outside = Ipv4Addr::new(198, 18, 1, index);
        let usual = if nat == Nat::Public {
            [198, 19, index]
        } else {
            [192, 168, index]
        };
        let lan_prefix = options.lan_prefix.unwrap_or(usual);
        let router = lab.machine(&format!("{name}-router"))?;
        lab.plug_into_internet(&router, "wan", &format!("s{index}"), outside)?;
        let site = Self {
            lab,
            name: name.to_owned(),
            nat,
            router,
            outside,
            lan_prefix,
            plugs: Cell::new(0),
            hosts: Cell::new(0),
        };
        site.router.bridge("lan", &[])?;
        site.router
            .ip(&[&format!("addr add {}/24 dev lan", site.gateway())])?;
        site.router.forward_packets()?;
        site.router
            .nft(&nat.ruleset(outside, options.udp_timeout))?;
        // The rules are what loads connection tracking on kernels where it is a module.
        for key in [
            "nf_conntrack_udp_timeout",
            "nf_conntrack_udp_timeout_stream",
        ] {
            if nat != Nat::Public {
                site.router.sysctl(
                    &format!("net/netfilter/{key}"),
                    &options.udp_timeout.as_secs().to_string(),
                )?;
            }
        }
        if nat == Nat::Public {
            lab.internet()
                .ip(&[&format!("route add {} via {outside}", site.subnet())])?;
        }
        Ok(site)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its router does.
    pub fn nat(&self) -> Nat {
        self.nat
    }

    /// Its router, with interfaces `wan` and `lan`.
    pub fn router(&self) -> &Machine {
        &self.router
    }

    /// The address that the internet sees.
    pub fn outside(&self) -> Ipv4Addr {
        self.outside
    }

    /// The router's address on the LAN.
    pub fn gateway(&self) -> Ipv4Addr {
        self.lan_address(1)
    }

    /// The LAN's subnet, as `192.168.1.0/24`.
    pub fn subnet(&self) -> String {
        format!("{}/24", self.lan_address(0))
    }

    /// The LAN's address that ends in `last`.
    pub fn lan_address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.lan_prefix;
        Ipv4Addr::new(a, b, c, last)
    }

    /// A host on the LAN with a fixed address (.11 and up) and a default route.
    pub fn host(&self, name: &str) -> Result<Host> {
        let machine = self.bare_host(name)?;
        let count = self.hosts.get() + 1;
        if count > 80 {
            bail!(
                "site {} has at most 80 hosts with fixed addresses",
                self.name
            );
        }
        self.hosts.set(count);
        let address = self.lan_address(10 + count);
        machine.ip(&[
            &format!("addr add {address}/24 dev eth0"),
            &format!("route add default via {}", self.gateway()),
        ])?;
        Ok(Host::new(machine, address))
    }

    /// A machine plugged into the LAN by `eth0`, without an address.
    pub fn bare_host(&self, name: &str) -> Result<Machine> {
        let machine = self.lab.machine(name)?;
        self.plug(&machine, "eth0")?;
        Ok(machine)
    }

    /// Plugs one more interface of a machine into the LAN.
    pub fn plug(&self, machine: &Machine, interface: &str) -> Result<()> {
        let port = self.plugs.get() + 1;
        self.plugs.set(port);
        let port = format!("lan{port}");
        self.lab.cable(machine, interface, &self.router, &port)?;
        self.router.ip(&[&format!("link set {port} master lan")])
    }
}
