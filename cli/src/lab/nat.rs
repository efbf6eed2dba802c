//! What a site's router does to UDP, in RFC 4787's words, as nftables rules for a router whose interfaces
//! are `wan` and `lan`.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

/// How a router maps and filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nat {
    /// Endpoint-independent mapping and filtering: whoever knows the mapping may send to it.
    FullCone,
    /// Endpoint-independent mapping; only addresses that were sent to may answer.
    AddressRestricted,
    /// Endpoint-independent mapping; only addresses and ports that were sent to may answer.
    PortRestricted,
    /// What Linux routers do: the inside port's number while it is free, so that mapping is endpoint-independent until two
    /// hosts want the same one; only addresses and ports that were sent to may answer.
    Masquerade,
    /// A new mapping, with a random port, for every destination; only that destination may answer.
    Symmetric,
    /// The same, and each mapping gets the port after the last one's.
    SymmetricIncremental,
    /// No translation and no filter: the site's hosts have public addresses.
    Public,
}

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Masquerade => "masquerade",
            Self::Symmetric => "symmetric",
            Self::SymmetricIncremental => "symmetric incremental",
            Self::Public => "public",
        })
    }
}

impl Nat {
    /// The rules for a router whose outside address is `outside` and whose mappings live for `lifetime`.
    pub(super) fn ruleset(self, outside: Ipv4Addr, lifetime: Duration) -> String {
        let guard = format!(
            "table ip guard {{\n{}{}}}\n",
            self.input_chain(),
            self.forward_chain()
        );
        if self == Self::Public {
            return guard;
        }
        format!(
            "{guard}table ip translate {{\n{}}}\n",
            self.translation(outside, lifetime)
        )
    }

    /// What reaches the router itself. A stranger's packet must die here unconfirmed: were it answered, its
    /// conntrack entry would take the port that the host's own mapping is about to need.
    fn input_chain(self) -> &'static str {
        "  chain to_router {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname { \"lo\", \"lan\" } accept
    icmp type echo-request accept
  }
"
    }

    /// What passes through it.
    fn forward_chain(self) -> &'static str {
        match self {
            Self::Public => {
                "  chain through {
    type filter hook forward priority filter; policy accept;
  }
"
            }
            _ => {
                "  chain through {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    ct status dnat accept
    iifname \"lan\" accept
  }
"
            }
        }
    }

    fn translation(self, outside: Ipv4Addr, lifetime: Duration) -> String {
        // The hash gives an inside endpoint the same outside port whatever the destination.
        let endpoint_independent = outbound(outside, "jhash ip saddr . udp sport");
        let timeout = lifetime.as_secs().max(1);
        match self {
            Self::Public => String::new(),
            Self::Symmetric => "  chain outbound {
    type nat hook postrouting priority srcnat;
    oifname \"wan\" masquerade random,fully-random
  }
"
            .to_owned(),
            Self::SymmetricIncremental => outbound(outside, "numgen inc"),
            Self::Masquerade => "  chain outbound {
    type nat hook postrouting priority srcnat;
    oifname \"wan\" masquerade
  }
"
            .to_owned(),
            // Connection tracking alone lets in exactly those who were sent to.
            Self::PortRestricted => endpoint_independent,
            // Others find their way in by what was remembered when the mapping was made or used.
            Self::FullCone => format!(
                "{}{endpoint_independent}{}{}",
                mappings(timeout),
                inbound(outside, ""),
                remembering("")
            ),
            Self::AddressRestricted => format!(
                "{}  set contacted {{
    type ipv4_addr . inet_service; flags dynamic,timeout; timeout {timeout}s; size 65535;
  }}
{endpoint_independent}{}{}",
                mappings(timeout),
                inbound(outside, "ip saddr . udp dport @contacted"),
                remembering(
                    "    oifname \"wan\" meta l4proto udp update @contacted { ip daddr . udp sport }\n"
                )
            ),
        }
    }
}

/// The outside ports of a NAT that maps by endpoint: two of a site's few endpoints hardly ever get the same, and without root no
/// longer map fits into a netlink message.
const OUTSIDE_PORTS: u16 = 2048;
const OUTSIDE_PORT_MIN: u16 = 16384;

/// Gives each new mapping the outside port that `number` says.
fn outbound(outside: Ipv4Addr, number: &str) -> String {
    // The map only says that the number is a port: nft of 2023 and later wants to be told.
    let ports: Vec<_> = (0..OUTSIDE_PORTS)
        .map(|n| format!("{n} : {}", OUTSIDE_PORT_MIN + n))
        .collect();
    let ports = ports.join(", ");
    format!(
        "  chain outbound {{
    type nat hook postrouting priority srcnat;
    oifname \"wan\" meta l4proto udp snat ip to {outside}:{number} mod {OUTSIDE_PORTS} map {{ {ports} }}
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

fn inbound(outside: Ipv4Addr, condition: &str) -> String {
    format!(
        "  chain inbound {{
    type nat hook prerouting priority dstnat;
    iifname \"wan\" ip daddr {outside} {condition} dnat ip to udp dport map @mappings
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
