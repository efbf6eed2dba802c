//! The proofs. Each returns what was seen, for the user and for `--json`, or why it was not.

use super::node::Node;
use super::world::{World, mac_of};
use super::{HOME_NETWORK, LAB_NETWORK, blob, eventually};
use crate::lab::Machine;
use anyhow::{Context, Result, bail, ensure};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long what nodes tell each other may take to arrive: names, paths. A hang limit, not a goal.
const SETTLING_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a download of 1 GB may take on a slow machine.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// The nodes are each in both networks, with an address in each.
pub(super) fn several_networks(nodes: &[&Node]) -> Result<String> {
    let mut seen = Vec::new();
    for node in nodes {
        for network in [HOME_NETWORK, LAB_NETWORK] {
            let address = eventually(SETTLING_TIMEOUT, || node.address(network))?;
            seen.push(format!(
                "{} is {address} in {network}",
                node.machine().name()
            ));
        }
    }
    Ok(seen.join(", "))
}

/// The guest asks, at the remote site, and the home router's dnsmasq grants.
pub(super) fn address_from_lan(world: &mut World<'_>) -> Result<String> {
    let guest = world.vm_8_1.clone();
    let address = world.start_udhcpc(&guest, "eth0")?;
    let lease = world.dnsmasq_lease(&mac_of(&guest, "eth0")?)?;
    ensure!(
        lease == address,
        "vm-8-1 has {address}, but the home router leased {lease}"
    );
    Ok(format!(
        "vm-8-1 at the remote site has {address}, leased by dnsmasq on the home router (client: busybox udhcpc)"
    ))
}

/// Guests of the network with DHCP on every node are served by their own.
pub(super) fn addresses_from_nodes(
    world: &mut World<'_>,
    host_8: &Node,
    host_9: &Node,
) -> Result<String> {
    let (near, far) = (world.vm_8_1.clone(), world.vm_9_1.clone());
    let by_udhcpc = world.start_udhcpc(&near, "eth1")?;
    let by_dhclient = world.start_dhclient(&far, "eth0")?;
    for (address, node) in [(by_udhcpc, host_8), (by_dhclient, host_9)] {
        ensure!(
            address.octets()[..2] == [10, 77],
            "the guest behind {} has {address}, which is not of network {LAB_NETWORK}",
            node.machine().name()
        );
        let leases = node.json(&["leases", "--network", LAB_NETWORK])?;
        ensure!(
            leases.as_array().is_some_and(|list| !list.is_empty()),
            "{} shows no leases for the guests it serves",
            node.machine().name()
        );
    }
    Ok(format!(
        "vm-8-1 has {by_udhcpc} from host-8 (busybox udhcpc), vm-9-1 has {by_dhclient} from host-9 (ISC dhclient)"
    ))
}

/// The LAN machine finds the guest by multicast DNS and pings it.
pub(super) fn lan_machine_pings(world: &World<'_>) -> Result<String> {
    let said = eventually(SETTLING_TIMEOUT, || {
        world
            .pc
            .run(&["ping", "-c", "3", "-i", "0.2", "-W", "2", "vm-8-1.local"])
    })?;
    let first = said.lines().next().unwrap_or_default();
    let last = said.lines().last().unwrap_or_default();
    Ok(format!("pc: ping vm-8-1.local: {first} … {last}"))
}

/// Logs in with a key and asks the guest for its name.
pub(super) fn ssh(client: &Machine, target: &str) -> Result<String> {
    let login = format!("root@{target}");
    let argv = [
        "ssh",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=accept-new",
        "-o",
        "ConnectTimeout=5",
        &login,
        "hostname",
    ];
    let said = eventually(SETTLING_TIMEOUT, || client.run(&argv))?;
    ensure!(
        said.trim() == "vm-8-1",
        "{}: ssh {login} hostname said {said:?}",
        client.name()
    );
    Ok(format!(
        "{}: ssh {login} hostname: {}",
        client.name(),
        said.trim()
    ))
}

/// avahi in the guest, at the remote site, asks the LAN for `pc.local`; avahi on the LAN machine answers.
pub(super) fn mdns_across_sites(world: &World<'_>, pc_address: Ipv4Addr) -> Result<String> {
    let said = eventually(SETTLING_TIMEOUT, || {
        world.vm_8_1.run(&["getent", "ahostsv4", "pc.local"])
    })?;
    let answer = said.split_whitespace().next().unwrap_or_default();
    ensure!(
        answer == pc_address.to_string(),
        "vm-8-1 resolved pc.local to {answer}, but pc is {pc_address}"
    );
    Ok(format!(
        "avahi in vm-8-1 at the remote site asked for pc.local; avahi on the home LAN answered {answer}"
    ))
}

/// Between two port-restricted NATs the path is direct; towards the symmetric one there is some path.
pub(super) fn paths(gateway: &Node) -> Result<String> {
    let kind = |network: &str, name: &str| -> Result<String> {
        let peer = gateway.peer(network, name)?;
        let kind = peer["path"]["kind"]
            .as_str()
            .with_context(|| format!("no path to {name} in {network}"))?;
        Ok(kind.to_owned())
    };
    // The path is made when it is wanted.
    for name in ["host-8", "host-9"] {
        eventually(SETTLING_TIMEOUT, || {
            gateway.farlan(&["ping", name, "--count", "1", "--network", LAB_NETWORK])
        })?;
    }
    eventually(SETTLING_TIMEOUT, || {
        for network in [HOME_NETWORK, LAB_NETWORK] {
            let to_host_8 = kind(network, "host-8")?;
            ensure!(
                to_host_8 == "direct",
                "the path to host-8 in {network} is {to_host_8}, though its NAT can be punched"
            );
        }
        Ok(())
    })?;
    let to_host_9 = kind(LAB_NETWORK, "host-9")?;
    ensure!(
        ["direct", "relay"].contains(&to_host_9.as_str()),
        "the path to host-9 is {to_host_9}"
    );
    Ok(format!(
        "gateway to host-8 (both port-restricted): direct; gateway to host-9 (symmetric): {to_host_9}"
    ))
}

/// The LAN machine downloads from the guest, and what arrives is what was sent, through the tunnel.
pub(super) fn download(world: &World<'_>, gateway: &Node, checksum: &str) -> Result<String> {
    let received = || -> Result<u64> {
        let peer = gateway.peer(HOME_NETWORK, "host-8")?;
        peer["rx_bytes"]
            .as_u64()
            .context("the gateway counts no bytes from host-8")
    };
    let before = received()?;
    let began = Instant::now();
    let script = "set -o pipefail; curl --silent --show-error --fail --retry 5 --retry-connrefused \
                  http://vm-8-1.local/blob | sha256sum";
    let said = world
        .pc
        .run_for(DOWNLOAD_TIMEOUT, &["bash", "-c", script])?;
    let took = began.elapsed();
    let arrived = said.split_whitespace().next().unwrap_or_default();
    if arrived != checksum {
        bail!("the download's SHA-256 is {arrived}, the file's {checksum}");
    }
    // The counters are told by the workers once in a while.
    let through_tunnel = eventually(SETTLING_TIMEOUT, || {
        let bytes = received()?.saturating_sub(before);
        ensure!(
            bytes > blob::BLOB_BYTES,
            "only {bytes} bytes came from host-8 through the tunnel"
        );
        Ok(bytes)
    })?;
    let rate = blob::BLOB_BYTES as f64 * 8.0 / took.as_secs_f64() / 1e6;
    Ok(format!(
        "pc: curl http://vm-8-1.local/blob: 1 GB in {:.1} s ({rate:.0} Mbit/s), SHA-256 {}… as it should be; \
         {through_tunnel} bytes of sealed datagrams",
        took.as_secs_f64(),
        &checksum[..16],
    ))
}
