//! `farlan lan attach`: a LAN on the network, with addresses from the LAN's own server or from the overlay,
//! and off again without a trace.

use crate::overlay::{
    SETTLING_TIMEOUT, dhclient, eventually, fabric, founder, guest, host_behind, lab, member, ping,
    udhcpc,
};
use cli::lab::{Host, Lab, Machine, Nat, Process, Site};

/// A home router's DHCP server.
fn dnsmasq(site: &Site<'_>) -> Process {
    let configuration = format!(
        "interface=lan\nbind-interfaces\nno-resolv\nno-hosts\nno-ping\nuser=root\ndhcp-authoritative\nlog-facility=-\n\
         dhcp-range={},{},255.255.255.0,1h\ndhcp-leasefile=/run/dnsmasq.leases\npid-file=/run/dnsmasq.pid\n",
        site.lan_address(100),
        site.lan_address(199)
    );
    site.router()
        .write_file("/etc/dnsmasq-test.conf", configuration)
        .unwrap();
    let argv = [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/etc/dnsmasq-test.conf",
    ];
    let mut server = site.router().spawn("dnsmasq", &argv).unwrap();
    server
        .wait_for_line("DHCP, IP range", SETTLING_TIMEOUT)
        .unwrap();
    server
}

/// Addresses and routes of a host's interfaces, to compare before and after.
fn layout(machine: &Machine) -> String {
    machine
        .sh("ip -o -4 addr show scope global | awk '{print $2, $4}' | sort; ip -4 route | sort; ls /sys/class/net | sort")
        .unwrap()
}

fn home(lab: &Lab) -> (Site<'_>, Host, Machine) {
    let site = lab.site("home", Nat::PortRestricted).unwrap();
    let gateway = site.host("gateway").unwrap();
    let pc = site.bare_host("pc").unwrap();
    (site, gateway, pc)
}

#[test]
fn a_guest_at_another_site_lives_on_the_lan_with_an_address_from_its_router() {
    let lab = lab("lan");
    let (_fabric, bootstrap) = fabric(&lab);
    let (site, gateway, pc) = home(&lab);
    let _dnsmasq = dnsmasq(&site);
    let (pc_address, _client) = udhcpc(&pc);
    let first = founder(&gateway, &bootstrap, "home", &["--dhcp", "lan"]);
    first.farlan(&["lan", "attach", "eth0"]).unwrap();
    let far = host_behind(&lab, Nat::PortRestricted, "far");
    let second = member(&far, &first, "home");
    let vm = guest(&lab, &far, "br0", "vm");
    second
        .farlan(&["port", "add", "br0", "--kind", "guest"])
        .unwrap();

    let (vm_address, _vm_client) = dhclient(&vm);

    assert!(vm_address.starts_with("192.168.1."), "{vm_address}");
    eventually(|| ping(&pc, &vm_address)).unwrap();
    eventually(|| ping(&vm, &pc_address)).unwrap();
    eventually(|| ping(&vm, &site.gateway().to_string())).unwrap();
    let server = lab.public_host("server").unwrap();
    eventually(|| ping(&vm, &server.address().to_string())).unwrap();
}

#[test]
fn the_gateway_itself_keeps_its_connections_when_its_interface_is_attached_and_detached() {
    let lab = lab("undo");
    let (_fabric, bootstrap) = fabric(&lab);
    let (site, gateway, _pc) = home(&lab);
    let first = founder(&gateway, &bootstrap, "home", &["--dhcp", "lan"]);
    let before = layout(&gateway);

    first.farlan(&["lan", "attach", "eth0"]).unwrap();
    eventually(|| ping(&gateway, &site.gateway().to_string())).unwrap();
    let attached = layout(&gateway);
    first.farlan(&["lan", "detach"]).unwrap();

    assert_ne!(attached, before);
    assert_eq!(layout(&gateway), before);
    eventually(|| ping(&gateway, &site.gateway().to_string())).unwrap();
}

#[test]
fn a_second_gateway_of_a_lan_is_refused_and_one_of_another_lan_is_not() {
    let lab = lab("second-gateway");
    let (_fabric, bootstrap) = fabric(&lab);
    let (site, gateway, _pc) = home(&lab);
    let first = founder(&gateway, &bootstrap, "home", &["--dhcp", "lan"]);
    let second = member(&site.host("other").unwrap(), &first, "home");
    let far = member(&host_behind(&lab, Nat::FullCone, "far"), &first, "home");
    first.farlan(&["lan", "attach", "eth0"]).unwrap();
    let before = layout(second.machine());

    let refusal = second
        .farlan(&["lan", "attach", "eth0"])
        .unwrap_err()
        .to_string();

    assert!(refusal.contains("gateway bridges this LAN"), "{refusal}");
    assert!(refusal.contains("farlan lan detach"), "{refusal}");
    assert_eq!(layout(second.machine()), before);
    far.farlan(&["lan", "attach", "eth0"]).unwrap();
    first.farlan(&["lan", "detach"]).unwrap();
    eventually(|| second.farlan(&["lan", "attach", "eth0"])).unwrap();
}

#[test]
fn a_gateway_routes_between_the_lan_and_a_network_with_addresses_of_its_own() {
    let lab = lab("routed");
    let (_fabric, bootstrap) = fabric(&lab);
    let (site, gateway, pc) = home(&lab);
    let _dnsmasq = dnsmasq(&site);
    let (pc_address, _client) = udhcpc(&pc);
    let first = founder(&gateway, &bootstrap, "lab", &["--subnet", "10.77.0.0/16"]);
    let far = host_behind(&lab, Nat::PortRestricted, "far");
    let second = member(&far, &first, "lab");

    let said = first.json(&["lan", "attach", "eth0"]).unwrap();
    let hint = said["route_hint"].as_str().unwrap_or_default();
    assert!(
        hint.contains("10.77.0.0/16"),
        "the command tells the router's static route: {said}"
    );
    // Word for word what was told.
    site.router().run(&["sh", "-ec", hint]).unwrap();
    eventually(|| ping(second.machine(), &pc_address)).unwrap();
    eventually(|| ping(&pc, &second.address("lab")?)).unwrap();

    // Guests learn the way with their address, or when they renew it.
    let vm = guest(&lab, &far, "br0", "vm");
    second
        .farlan(&["port", "add", "br0", "--kind", "guest"])
        .unwrap();
    let (vm_address, _vm_client) = udhcpc(&vm);
    eventually(|| ping(&pc, &vm_address)).unwrap();
    eventually(|| ping(&vm, &pc_address)).unwrap();
    eventually(|| ping(&vm, &site.gateway().to_string())).unwrap();
    first.farlan(&["lan", "detach"]).unwrap();
    let routes = || -> anyhow::Result<()> {
        let routes = far.run(&["ip", "route"])?;
        anyhow::ensure!(!routes.contains("192.168.1.0/24"), "{routes}");
        Ok(())
    };
    eventually(routes).unwrap();
}
