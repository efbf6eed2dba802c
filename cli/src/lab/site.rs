//! Sites: a router with its NAT, a LAN behind it, and hosts on the LAN.

use super::nat::{HTTP_PROXY_PORT, Nat, Outbound};
use super::rules::{Rules, SILENCE};
use super::uplink::{Host, Leg, Stack, Uplink};
use super::{INTERNET_ADDRESS, INTERNET_ADDRESS6, Lab, Machine, Process, next};
use anyhow::{Context, Result, bail, ensure};
use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

/// How long a proxy may take to listen.
const PROXY_START: Duration = Duration::from_secs(10);

/// What a site may have otherwise than usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteOptions {
    /// First three bytes of the LAN's /24; 192.168.N when not given, N counting sites (198.19.N when public).
    pub lan_prefix: Option<[u8; 3]>,
    /// How long an idle UDP mapping lives. RFC 4787 asks for two minutes; common routers give less.
    pub udp_timeout: Duration,
    /// Which IP versions the site has. With IPv6 its hosts have public addresses, behind a firewall that lets in only what
    /// was asked for; a [`Nat::Public`] site has none.
    pub stack: Stack,
    /// What may leave the LAN, by IPv4.
    pub outbound: Outbound,
    /// Whether the router hands what a host sends to another's outside address to that host (RFC 4787 §6). Only NATs that map
    /// by endpoint can.
    pub hairpins: bool,
    /// Whether the LAN keeps its hosts from each other, as guest networks do: they reach the router alone.
    pub isolates_hosts: bool,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            lan_prefix: None,
            udp_timeout: Duration::from_secs(60),
            stack: Stack::Ipv4,
            outbound: Outbound::Everything,
            hairpins: false,
            isolates_hosts: false,
        }
    }
}

/// A router between the internet, or another site's LAN, (`wan`) and a LAN (bridge `lan`).
pub struct Site<'lab> {
    lab: &'lab Lab,
    name: String,
    nat: Nat,
    options: SiteOptions,
    router: Machine,
    wan: RefCell<Uplink>,
    /// The outside address that it has not got: it takes turns when its provider gives it another one.
    spare: Cell<Option<Ipv4Addr>>,
    is_nested: bool,
    lan_prefix: [u8; 3],
    lan6: Ipv6Addr,
    plugs: Cell<u8>,
    hosts: Cell<u8>,
    routers: Cell<u8>,
}

impl<'lab> Site<'lab> {
    pub(super) fn build(
        lab: &'lab Lab,
        name: &str,
        nat: Nat,
        options: SiteOptions,
        carrier: Option<&Self>,
    ) -> Result<Self> {
        check(nat, &options, carrier)?;
        let index = next(&lab.sites, "sites")?;
        let stack = options.stack;
        let router = lab.machine_with(&format!("{name}-router"), stack)?;
        let (v4, spare) = match carrier {
            None => {
                lab.plug_into_internet(&router, "wan", &format!("s{index}"))?;
                let leg = Leg {
                    address: Ipv4Addr::new(198, 18, 1, index),
                    prefix_len: 16,
                    gateway: INTERNET_ADDRESS,
                };
                (leg, Ipv4Addr::new(198, 18, 2, index))
            }
            Some(carrier) => carrier.plug_router(&router)?,
        };
        let v6 = Leg {
            address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, index.into()),
            prefix_len: 64,
            gateway: INTERNET_ADDRESS6,
        };
        let wan = Uplink::new(
            &router,
            "wan",
            stack.has_ipv4().then_some(v4),
            stack.has_ipv6().then_some(v6),
        );
        let usual = match (nat, carrier) {
            (Nat::Public, _) => [198, 19, index],
            _ => [192, 168, index],
        };
        let site = Self {
            lab,
            name: name.to_owned(),
            nat,
            lan_prefix: options.lan_prefix.unwrap_or(usual),
            lan6: Ipv6Addr::new(0x2001, 0xdb8, 1, index.into(), 0, 0, 0, 0),
            options,
            router,
            wan: RefCell::new(wan),
            spare: Cell::new(stack.has_ipv4().then_some(spare)),
            is_nested: carrier.is_some(),
            plugs: Cell::new(0),
            hosts: Cell::new(0),
            routers: Cell::new(0),
        };
        site.start()?;
        Ok(site)
    }

    /// Everything about the router that is not a cable.
    fn start(&self) -> Result<()> {
        let stack = self.options.stack;
        self.router.bridge("lan", &[])?;
        if stack.has_ipv4() {
            self.router
                .ip(&[&format!("addr add {}/24 dev lan", self.gateway())])?;
            self.router.forward_packets()?;
        }
        if stack.has_ipv6() {
            self.router.ip(&[&format!(
                "addr add {}/64 dev lan nodad",
                self.lan_address6(1)
            )])?;
            self.router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        }
        if self.options.hairpins {
            // What comes back by the interface on which it came is meant to here.
            for interface in ["all", "lan"] {
                let key = format!("net/ipv4/conf/{interface}/send_redirects");
                self.router.sysctl(&key, "0")?;
            }
        }
        self.wan.borrow().up()?;
        self.router.nft(&self.rules())?;
        // The rules are what loads connection tracking on kernels where it is a module.
        for key in [
            "nf_conntrack_udp_timeout",
            "nf_conntrack_udp_timeout_stream",
        ] {
            if self.nat != Nat::Public {
                self.router.sysctl(
                    &format!("net/netfilter/{key}"),
                    &self.options.udp_timeout.as_secs().to_string(),
                )?;
            }
        }
        self.route_from_the_internet()
    }

    fn rules(&self) -> String {
        Rules {
            nat: self.nat,
            outside: self.wan.borrow().ipv4(),
            lifetime: self.options.udp_timeout,
            hairpins: self.options.hairpins,
            outbound: self.options.outbound,
            has_ipv6: self.options.stack.has_ipv6(),
        }
        .ruleset()
    }

    /// Tells the internet where the site's public addresses are.
    fn route_from_the_internet(&self) -> Result<()> {
        let wan = self.wan.borrow();
        let mut lines = Vec::new();
        if let (Nat::Public, Some(outside)) = (self.nat, wan.ipv4()) {
            lines.push(format!("route replace {} via {outside}", self.subnet()));
        }
        if let Some(outside) = wan.ipv6() {
            lines.push(format!("route replace {}/64 via {outside}", self.lan6));
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        self.lab.internet().ip(&lines)
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

    /// The address that the internet sees, or for a site behind a carrier's the carrier.
    ///
    /// # Panics
    /// When the site has no IPv4.
    pub fn outside(&self) -> Ipv4Addr {
        self.wan.borrow().ipv4().expect("a site that has IPv4")
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

    /// The LAN's IPv6 address that ends in `last`.
    pub fn lan_address6(&self, last: u8) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.lan6) | u128::from(last))
    }

    /// A site behind this one: its router's outside is on this site's LAN, as behind a provider that has too few addresses
    /// (RFC 6598). It has IPv4 alone.
    pub fn site(&self, name: &str, nat: Nat) -> Result<Self> {
        self.site_with(name, nat, SiteOptions::default())
    }

    /// The same with other than the usual options.
    pub fn site_with(&self, name: &str, nat: Nat, options: SiteOptions) -> Result<Self> {
        Self::build(self.lab, name, nat, options, Some(self))
    }

    /// A host on the LAN with fixed addresses (.11 and up) and default routes.
    pub fn host(&self, name: &str) -> Result<Host> {
        let machine = self.bare_host(name)?;
        let uplink = self.next_uplink(&machine, "eth0")?;
        uplink.up()?;
        Ok(Host::new(machine, uplink))
    }

    /// Plugs a host of another site in here too, with addresses of this LAN. Its default routes stay where they are until
    /// [`Uplink::make_default`].
    pub fn second_uplink(&self, machine: &Machine, interface: &str) -> Result<Uplink> {
        self.plug(machine, interface)?;
        let uplink = self.next_uplink(machine, interface)?;
        uplink.address_interface()?;
        Ok(uplink)
    }

    /// Takes a host's addresses away and gives it the next free ones, as a DHCP server might; the host as it is from then on.
    pub fn readdress(&self, host: &Host) -> Result<Host> {
        let uplink = self.next_uplink(host.machine(), host.uplink().interface())?;
        host.uplink().clear()?;
        uplink.up()?;
        Ok(Host::new(host.machine().clone(), uplink))
    }

    /// The next free addresses, for an interface that is plugged in here.
    fn next_uplink(&self, machine: &Machine, interface: &str) -> Result<Uplink> {
        let count = self.hosts.get() + 1;
        if count > 80 {
            bail!(
                "site {} has at most 80 hosts with fixed addresses",
                self.name
            );
        }
        self.hosts.set(count);
        let last = 10 + count;
        let v4 = Leg {
            address: self.lan_address(last),
            prefix_len: 24,
            gateway: self.gateway(),
        };
        let v6 = Leg {
            address: self.lan_address6(last),
            prefix_len: 64,
            gateway: self.lan_address6(1),
        };
        let stack = self.options.stack;
        Ok(Uplink::new(
            machine,
            interface,
            stack.has_ipv4().then_some(v4),
            stack.has_ipv6().then_some(v6),
        ))
    }

    /// A machine plugged into the LAN by `eth0`, without an address.
    pub fn bare_host(&self, name: &str) -> Result<Machine> {
        let machine = self.lab.machine_with(name, self.options.stack)?;
        self.plug(&machine, "eth0")?;
        Ok(machine)
    }

    /// Plugs one more interface of a machine into the LAN.
    pub fn plug(&self, machine: &Machine, interface: &str) -> Result<()> {
        let port = self.plugs.get() + 1;
        self.plugs.set(port);
        let port = format!("lan{port}");
        self.lab.cable(machine, interface, &self.router, &port)?;
        self.router.ip(&[&format!("link set {port} master lan")])?;
        if self.options.isolates_hosts {
            self.router
                .ip(&[&format!("link set {port} type bridge_slave isolated on")])?;
        }
        Ok(())
    }

    /// Plugs another site's router in by its `wan`: the address that it gets, and one that it may get instead.
    fn plug_router(&self, router: &Machine) -> Result<(Leg<Ipv4Addr>, Ipv4Addr)> {
        let count = self.routers.get() + 1;
        ensure!(count <= 50, "site {} carries at most 50 others", self.name);
        self.routers.set(count);
        self.plug(router, "wan")?;
        let leg = Leg {
            address: self.lan_address(100 + count),
            prefix_len: 24,
            gateway: self.gateway(),
        };
        Ok((leg, self.lan_address(150 + count)))
    }

    /// Switches the router off, and on again after so long. It then knows nothing of any mapping or connection.
    pub fn reboot_router(&self, off_for: Duration) -> Result<()> {
        self.router.nft(&format!("flush ruleset\n{SILENCE}"))?;
        self.router
            .run(&["conntrack", "-F"])
            .context("forget every connection")?;
        std::thread::sleep(off_for);
        self.router.nft(&format!("flush ruleset\n{}", self.rules()))
    }

    /// The provider gives the router another outside address, by IPv4: nothing that used the old one goes on. Returns the new
    /// one. Done again, the site is back at the first.
    pub fn renumber(&self) -> Result<Ipv4Addr> {
        let spare = self.spare.get().context("a site that has IPv4")?;
        let before = self.wan.borrow().clone();
        self.spare.set(before.ipv4());
        let now = before.at(spare);
        before.clear()?;
        now.up()?;
        *self.wan.borrow_mut() = now;
        self.reboot_router(Duration::ZERO)?;
        if !self.is_nested {
            self.route_from_the_internet()?;
        }
        Ok(spare)
    }

    /// Runs an HTTP proxy (tinyproxy) on the router, which gives hosts of the LAN connections to port 443 (CONNECT, RFC 9110
    /// §9.3.6) and nothing else. It ends with the handle.
    pub fn http_proxy(&self) -> Result<(Process, SocketAddrV4)> {
        let at = SocketAddrV4::new(self.gateway(), HTTP_PROXY_PORT);
        let config = format!(
            "Port {HTTP_PROXY_PORT}\nListen {}\nAllow {}\nConnectPort 443\nTimeout 600\nMaxClients 100\n\
             LogLevel Info\n",
            at.ip(),
            self.subnet()
        );
        self.router.write_file("/run/tinyproxy.conf", config)?;
        let argv = ["tinyproxy", "-d", "-c", "/run/tinyproxy.conf"];
        let mut proxy = self.router.spawn("tinyproxy", &argv)?;
        proxy.wait_for_line("Accepting connections", PROXY_START)?;
        Ok((proxy, at))
    }
}

/// Whether such a site can be.
fn check(nat: Nat, options: &SiteOptions, carrier: Option<&Site<'_>>) -> Result<()> {
    let stack = options.stack;
    ensure!(
        !options.hairpins || nat.maps_by_endpoint(),
        "a NAT that is {nat} cannot hairpin: no port is another host's for good"
    );
    ensure!(
        options.outbound == Outbound::Everything || stack == Stack::Ipv4 && nat != Nat::Public,
        "what leaves a site is restricted only behind IPv4 with translation"
    );
    ensure!(
        stack.has_ipv4() || nat == Nat::Public || nat == Nat::PortRestricted,
        "a NAT that is {nat} translates IPv4, which the site has not got"
    );
    if let Some(carrier) = carrier {
        ensure!(
            stack == Stack::Ipv4 && carrier.options.stack.has_ipv4() && nat != Nat::Public,
            "a site behind {} has IPv4 alone, and translates it",
            carrier.name
        );
    }
    Ok(())
}
