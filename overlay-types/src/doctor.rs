//! What `farlan doctor` is told: what was looked at, and what is wrong.

use serde::{Deserialize, Serialize};

/// `GET /v1/doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Each once, in the order of [`CheckKind`].
    pub checks: Vec<Check>,
}

impl Diagnosis {
    /// Whether anything is wrong.
    pub fn has_findings(&self) -> bool {
        let mut checks = self.checks.iter();
        checks.any(|check| check.verdict == Verdict::Finding)
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Which one.
    pub check: CheckKind,
    /// What it came to.
    pub verdict: Verdict,
    /// What was seen; or why nothing could be.
    pub evidence: String,
    /// What to do, where something is wrong.
    pub advice: Option<String>,
}

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Nothing is wrong.
    Ok,
    /// Something is.
    Finding,
    /// It could not be looked at.
    Unknown,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// Whether the node runs.
    Node,
    /// Whether fabric nodes are reached.
    Fabric,
    /// Whether datagrams get out.
    Udp,
    /// Whether something answers in place of a fabric node.
    Proxy,
    /// Whether this host's own firewall lets datagrams through.
    Firewall,
    /// For how long the NAT keeps a mapping.
    Mapping,
    /// Whether paths carry what the host's interface does.
    Mtu,
    /// Whether this host's clock agrees with others'.
    Clock,
    /// Whether the overlay's addresses are used elsewhere.
    Subnets,
    /// Whether interfaces can be made.
    Tun,
}

impl CheckKind {
    /// As people read it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Fabric => "fabric nodes",
            Self::Udp => "UDP",
            Self::Proxy => "captive proxy",
            Self::Firewall => "host firewall",
            Self::Mapping => "NAT mappings",
            Self::Mtu => "path MTU",
            Self::Clock => "clock",
            Self::Subnets => "subnets",
            Self::Tun => "/dev/net/tun",
        }
    }
}
