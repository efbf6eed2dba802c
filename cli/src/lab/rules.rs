//! A router's nftables rules. Its interfaces are `wan` and `lan`.

use super::nat::{HTTP_PROXY_PORT, Nat, Outbound};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Makes a router, or a machine that sleeps, silent: what arrives is gone before connection tracking sees it.
pub(super) const SILENCE: &str = "table inet silence {
  chain arriving {
    type filter hook prerouting priority raw; policy drop;
  }
  chain leaving {
    type filter hook output priority raw; policy drop;
  }
}
";

/// Ends [`SILENCE`].
pub(super) const SILENCE_ENDS: &str = "delete table inet silence\n";

/// What a router is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) nat: Nat,
    /// Its outside address; without one there is no IPv4.
    pub(super) outside: Option<Ipv4Addr>,
    /// How long an idle mapping lives.
    pub(super) lifetime: Duration,
    /// Whether a host of the LAN reaches another at its outside address (RFC 4787 §6).
    pub(super) hairpins: bool,
    pub(super) outbound: Outbound,
    pub(super) has_ipv6: bool,
}

impl Rules {
    /// As `nft -f` reads it.
    pub(super) fn ruleset(&self) -> String {
        let mut out = String::new();
        if let Some(outside) = self.outside {
            out += &format!(
                "table ip guard {{\n{}{}}}\n",
                self.input_chain(),
                self.forward_chain()
            );
            if self.nat != Nat::Public {
                out += &format!("table ip translate {{\n{}}}\n", self.translation(outside));
            }
        }
        if self.has_ipv6 {
            out += &self.guard6();
        }
        out
    }

    /// What reaches the router itself. A stranger's packet must die here unconfirmed: were it answered, its
    /// conntrack entry would take the port that the host's own mapping is about to need.
    fn input_chain(&self) -> String {
        let policy = if self.nat == Nat::MasqueradeOpen {
            "accept"
        } else {
            "drop"
        };
        let lan = match self.outbound {
            Outbound::Everything => "    iifname \"lan\" accept\n".to_owned(),
            Outbound::HttpProxy => {
                format!("    iifname \"lan\" tcp dport {HTTP_PROXY_PORT} accept\n")
            }
            Outbound::Tcp443 | Outbound::Ssh(_) => String::new(),
        };
        format!(
            "  chain to_router {{
    type filter hook input priority filter; policy {policy};
    ct state established,related accept
    iifname \"lo\" accept
{lan}    icmp type echo-request accept
  }}
"
        )
    }

    /// What passes through it.
    fn forward_chain(&self) -> String {
        if self.nat == Nat::Public {
            return "  chain through {
    type filter hook forward priority filter; policy accept;
  }
"
            .to_owned();
        }
        let what = match self.outbound {
            Outbound::Everything => "    iifname \"lan\" accept\n".to_owned(),
            Outbound::Tcp443 => "    iifname \"lan\" tcp dport 443 accept\n".to_owned(),
            Outbound::HttpProxy => String::new(),
            Outbound::Ssh(gateway) => {
                format!("    iifname \"lan\" ip daddr {gateway} tcp dport 22 accept\n")
            }
        };
        format!(
            "  chain through {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct status dnat accept
{what}  }}
"
        )
    }

    /// IPv6 as home routers have it: no translation, and nothing comes in that was not asked for (RFC 6092).
    fn guard6(&self) -> String {
        let policy = if self.nat == Nat::Public {
            "accept"
        } else {
            "drop"
        };
        format!(
            "table ip6 guard6 {{
  chain to_router {{
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname {{ \"lo\", \"lan\" }} accept
    meta l4proto ipv6-icmp accept
  }}
  chain through {{
    type filter hook forward priority filter; policy {policy};
    ct state established,related accept
    iifname \"lan\" accept
  }}
}}
"
        )
    }

    fn translation(&self, outside: Ipv4Addr) -> String {
        let endpoint_independent = outbound_by_endpoint(outside, self.hairpins);
        let timeout = self.lifetime.as_secs().max(1);
        match self.nat {
            Nat::Public => String::new(),
            Nat::Symmetric => "  chain outbound {
    type nat hook postrouting priority srcnat;
    oifname \"wan\" masquerade random,fully-random
  }
"
            .to_owned(),
            Nat::SymmetricIncremental => outbound_by_turns(outside),
            Nat::Masquerade | Nat::MasqueradeOpen => "  chain outbound {
    type nat hook postrouting priority srcnat;
    oifname \"wan\" masquerade
  }
"
            .to_owned(),
            // Connection tracking alone lets in exactly those who were sent to.
            Nat::PortRestricted if !self.hairpins => endpoint_independent,
            Nat::PortRestricted => format!(
                "{}{endpoint_independent}{}{}",
                mappings(timeout),
                self.inbound(outside, None),
                remembering("")
            ),
            // Others find their way in by what was remembered when the mapping was made or used.
            Nat::FullCone => format!(
                "{}{endpoint_independent}{}{}",
                mappings(timeout),
                self.inbound(outside, Some("")),
                remembering("")
            ),
            Nat::AddressRestricted => format!(
                "{}  set contacted {{
    type ipv4_addr . inet_service; flags dynamic,timeout; timeout {timeout}s; size 65535;
  }}
{endpoint_independent}{}{}",
                mappings(timeout),
                self.inbound(outside, Some("ip saddr . udp dport @contacted")),
                remembering(
                    "    oifname \"wan\" meta l4proto udp update @contacted { ip daddr . udp sport }\n"
                )
            ),
        }
    }

    /// Who comes in by what was remembered: from outside those who meet `condition`, if there is one, and hosts of the LAN
    /// where the router hairpins.
    fn inbound(&self, outside: Ipv4Addr, condition: Option<&str>) -> String {
        let line = |from: &str, condition: &str| {
            format!(
                "    iifname \"{from}\" ip daddr {outside} {condition} dnat ip to udp dport map @mappings\n"
            )
        };
        let strangers = condition.map_or_else(String::new, |condition| line("wan", condition));
        let hairpin = if self.hairpins {
            line("lan", "")
        } else {
            String::new()
        };
        format!(
            "  chain inbound {{
    type nat hook prerouting priority dstnat;
{strangers}{hairpin}  }}
"
        )
    }
}

/// Sets an outside port off from the inside one. Below 1024 it leaves alone what ports of users and ports of services differ in.
const PORT_SHIFT: u16 = 0x155;

/// Hosts whose addresses end in the same three bits share a shift.
const HOST_CLASSES: u8 = 8;

/// Gives each inside endpoint one outside port, whatever the destination. No two ports of a host get the same, as they now and then
/// would by a hash, and the later one's datagrams would be dropped. What is hairpinned shows its outside address to the host
/// that gets it, as RFC 4787 §6 wants.
fn outbound_by_endpoint(outside: Ipv4Addr, hairpins: bool) -> String {
    let from = if hairpins {
        "iifname \"lan\""
    } else {
        "oifname \"wan\""
    };
    let last = HOST_CLASSES - 1;
    let lines: String = (0..HOST_CLASSES)
        .map(|class| {
            let shift = PORT_SHIFT ^ u16::from(class) << 6;
            format!(
                "    {from} ip saddr & 0.0.0.{last} == 0.0.0.{class} meta l4proto udp snat ip to {outside}:udp sport ^ {shift}\n"
            )
        })
        .collect();
    format!(
        "  chain outbound {{
    type nat hook postrouting priority srcnat;
{lines}    oifname \"wan\" masquerade
  }}
"
    )
}

/// The outside ports of a NAT that hands them out by turns. Without root no longer map fits into a netlink message.
const OUTSIDE_PORTS: u16 = 2048;
const OUTSIDE_PORT_MIN: u16 = 16384;

/// Gives each new mapping the outside port after the last one's.
fn outbound_by_turns(outside: Ipv4Addr) -> String {
    // The map only says that the number is a port: nft of 2023 and later wants to be told.
    let ports: Vec<_> = (0..OUTSIDE_PORTS)
        .map(|n| format!("{n} : {}", OUTSIDE_PORT_MIN + n))
        .collect();
    let ports = ports.join(", ");
    format!(
        "  chain outbound {{
    type nat hook postrouting priority srcnat;
    oifname \"wan\" meta l4proto udp snat ip to {outside}:numgen inc mod {OUTSIDE_PORTS} map {{ {ports} }}
    oifname \"wan\" masquerade
  }}
"
    )
}

/// Outside port → inside endpoint.
fn mappings(timeout: u64) -> String {
    format!(
        "  map mappings {{
    type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout {timeout}s; size 65535;
  }}
"
    )
}

/// Runs after translation, where a packet shows its outside port and conntrack still knows the inside.
/// Every packet out renews what is remembered.
fn remembering(more: &str) -> String {
    format!(
        "  chain remember {{
    type filter hook postrouting priority srcnat + 10;
    oifname \"wan\" meta l4proto udp ct direction original update @mappings {{ udp sport : ct original ip saddr . ct original proto-src }}
    oifname \"wan\" meta l4proto udp ct direction reply update @mappings {{ udp sport : ct reply ip saddr . ct reply proto-src }}
{more}  }}
"
    )
}
