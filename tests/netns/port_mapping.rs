//! Ports that a router maps to a node: miniupnpd, by each of its protocols.

use crate::overlay::{await_path, eventually, fabric, founder, host_behind, lab, member, ping};
use cli::demo::Node;
use cli::lab::{Lab, Nat, Process, Site};
use std::net::SocketAddr;

/// miniupnpd maps ports of addresses that are routed only; nothing ever leaves the lab.
const OUTSIDE: &str = "5.1.1.1";

/// Where miniupnpd keeps its rules.
const TABLE: &str = "table inet filter {
  chain forward {
    type filter hook forward priority filter; policy accept;
    jump miniupnpd
  }
  chain miniupnpd { }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    jump prerouting_miniupnpd
  }
  chain postrouting {
    type nat hook postrouting priority srcnat - 1; policy accept;
    jump postrouting_miniupnpd
  }
  chain prerouting_miniupnpd { }
  chain postrouting_miniupnpd { }
}
";

/// Runs miniupnpd on a site's router, which gets a routed address for it.
fn miniupnpd(lab: &Lab, site: &Site<'_>, settings: &str) -> Process {
    let router = site.router();
    router
        .ip(&[&format!("addr add {OUTSIDE}/32 dev wan")])
        .unwrap();
    lab.internet()
        .ip(&[&format!("route add {OUTSIDE}/32 via {}", site.outside())])
        .unwrap();
    router.nft(TABLE).unwrap();
    let config = format!(
        "ext_ifname=wan\next_ip={OUTSIDE}\nlistening_ip=lan\nsecure_mode=yes\nsystem_uptime=yes\n\
         uuid=6b2d7f6a-0000-4000-8000-000000000001\nallow 1024-65535 0.0.0.0/0 1024-65535\n\
         deny 0-65535 0.0.0.0/0 0-65535\n{settings}\n"
    );
    router.write_file("/run/miniupnpd.conf", config).unwrap();
    let argv = [
        "miniupnpd",
        "-d",
        "-f",
        "/run/miniupnpd.conf",
        "-P",
        "/run/miniupnpd.pid",
    ];
    router.spawn("miniupnpd", &argv).unwrap()
}

/// The mapping that `farlan status` shows.
fn mapped(node: &Node) -> (String, SocketAddr) {
    eventually(|| {
        let mapped = node.status()?["nat"]["mapped"][0].clone();
        let text = |key: &str| mapped[key].as_str().unwrap_or_default().to_owned();
        Ok((text("protocol"), text("external").parse()?))
    })
    .unwrap()
}

/// A node behind a NAT that is punched by nobody symmetric is reached straight, because its port is mapped; when it stops
/// the mapping is gone.
fn is_reached_by(name: &str, settings: &str, drop_pcp: bool, protocol: &str) {
    let lab = lab(name);
    let (_fabric, bootstrap) = fabric(&lab);
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let daemon = miniupnpd(&lab, &site, settings);
    if drop_pcp {
        // Version 2 in the first byte is PCP, 0 is NAT-PMP.
        site.router()
            .nft("table ip old { chain in { type filter hook input priority -10; udp dport 5351 @th,64,8 2 drop; }\n}\n")
            .unwrap();
    }
    let first = founder(&site.host("one").unwrap(), &bootstrap, "lab", &[]);
    let (by, external) = mapped(&first);
    assert_eq!(
        (by.as_str(), external.ip().to_string().as_str()),
        (protocol, OUTSIDE),
        "{}",
        daemon.log()
    );

    let second = member(&host_behind(&lab, Nat::Symmetric, "b"), &first, "lab");
    eventually(|| ping(second.machine(), &first.address("lab")?)).unwrap();
    await_path(&second, "lab", "one", "direct").unwrap();
    await_path(&first, "lab", "b-host", "direct").unwrap();
    let path = second.peer("lab", "one").unwrap()["path"]["remote"].clone();
    assert_eq!(path, external.to_string());

    let rules = || {
        site.router()
            .sh("nft list chain inet filter prerouting_miniupnpd")
            .unwrap()
    };
    assert!(rules().contains("dnat"), "{}", rules());
    first.farlan(&["down"]).unwrap();
    eventually(|| {
        anyhow::ensure!(!rules().contains("dnat"), "{}", rules());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_port_mapped_by_pcp_is_reached_by_everybody() {
    is_reached_by("map-pcp", "enable_natpmp=yes\nenable_upnp=no", false, "PCP");
}

#[test]
fn a_port_mapped_by_nat_pmp_is_reached_by_everybody() {
    is_reached_by(
        "map-pmp",
        "enable_natpmp=yes\nenable_upnp=no",
        true,
        "NAT-PMP",
    );
}

#[test]
fn a_port_mapped_by_upnp_is_reached_by_everybody() {
    is_reached_by(
        "map-upnp",
        "enable_natpmp=no\nenable_upnp=yes",
        false,
        "UPnP",
    );
}
