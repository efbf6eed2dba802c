//! Where guests plug in.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Names one port of this node; never reused while the node runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PortId(pub u16);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Who may speak behind a port, which decides its anti-spoofing rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortKind {
    /// The node's own host: the node's MAC and addresses only.
    Host,
    /// Guests: their leased MACs and an explicit allow-list only.
    Guest,
    /// A LAN behind a gateway: any MAC or IP that is not bound to another port.
    Lan,
}

/// Who serves IPv4 addresses in a network.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum DhcpMode {
    /// Every node serves the guests on its own ports from leases that the registrars granted.
    #[default]
    Overlay,
    /// The attached LAN's own server serves guests too, across the tunnel.
    Lan,
    /// Nobody; guests are configured by hand.
    Off,
}
