//! What can be looked at on the host without a node: its firewall, and `/dev/net/tun`. Reading only.

use super::{DataPort, Facts, HostFirewall, firewall};
use std::{fs, process::Stdio, time::Duration};
use tokio::{process::Command, time::timeout};

/// Where interfaces are made.
const TUN: &str = "/dev/net/tun";

/// A large rule set takes `nft` a second.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// Everything that can be seen without a node, whose data port nobody knows then.
pub async fn without_node() -> Facts {
    let any = DataPort {
        number: None,
        is_ipv6: false,
        interface: None,
    };
    Facts {
        node: None,
        firewall: Some(read_firewall(any).await),
        tun: Some(open_tun()),
    }
}

/// What the host's firewall does with datagrams of the data port.
///
/// # Errors
/// Why it cannot be told.
pub(crate) async fn read_firewall(port: DataPort<'_>) -> Result<HostFirewall, String> {
    let mut nft = Command::new("nft");
    nft.args(["-j", "list", "ruleset"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let said = match timeout(READ_WITHIN, nft.output()).await {
        Ok(Ok(said)) => said,
        Ok(Err(error)) => return Err(format!("nft: {error}")),
        Err(_) => return Err("nft does not end".into()),
    };
    if !said.status.success() {
        let why = String::from_utf8_lossy(&said.stderr);
        let why = why.lines().next().unwrap_or("it says nothing of why");
        return Err(format!("nft: {why}"));
    }
    let rules = String::from_utf8_lossy(&said.stdout);
    firewall::read(&rules, port).map_err(|error| error.to_string())
}

/// Whether interfaces can be made.
pub(crate) fn open_tun() -> Result<(), String> {
    let opened = fs::OpenOptions::new().read(true).write(true).open(TUN);
    opened.map(drop).map_err(|error| error.to_string())
}
