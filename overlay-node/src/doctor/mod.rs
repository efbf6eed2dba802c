//! What is wrong with a node's surroundings, judged by facts that were gathered elsewhere (the node's part is in
//! [`crate::node`], the host's in [`host`]). Each check is pure, and says what it could not see.

mod ask;
mod checks;
mod clock;
pub mod firewall;
pub mod host;
mod proxy;

pub(crate) use ask::{ask_http, ask_tls};
pub use checks::NetworkFacts;
pub use clock::ClockSample;
pub use firewall::{DataPort, Fate, HostFirewall};
pub use proxy::{HttpAnswer, TlsAnswer};

use overlay_types::{
    NatRule,
    doctor::{Check, CheckKind, Diagnosis, Verdict},
};
use std::net::SocketAddr;
use tunnel::stun::MappingLifetime;

/// Everything that is judged.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What the running node sees; `None` where none runs.
    pub node: Option<NodeFacts>,
    /// The host's firewall, or why it could not be read.
    pub firewall: Option<Result<HostFirewall, String>>,
    /// Whether `/dev/net/tun` opens, or why not.
    pub tun: Option<Result<(), String>>,
}

/// What a running node sees.
#[derive(Clone, Debug, Default)]
pub struct NodeFacts {
    /// Fabric nodes that are connected.
    pub fabric_connected: usize,
    /// Where fabric nodes are known to be.
    pub fabric_known: usize,
    /// Whether datagrams get out, judged by relays.
    pub udp: Option<bool>,
    /// The UDP port of the data plane.
    pub data_port: u16,
    /// What the NAT in front of it does with mappings.
    pub mapping: NatRule,
    /// For how long it keeps them.
    pub lifetime: Option<MappingLifetime>,
    /// Fabric nodes' ports for streams, and who answered there.
    pub tls: Vec<(SocketAddr, TlsAnswer)>,
    /// The same at plain HTTP's port.
    pub http: Vec<(SocketAddr, HttpAnswer)>,
    /// Paths that are in use.
    pub paths: Vec<PathFacts>,
    /// Others' clocks.
    pub clocks: Vec<ClockSample>,
    /// Networks that the node is in.
    pub networks: Vec<NetworkFacts>,
}

/// One path in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathFacts {
    /// To whom.
    pub peer: String,
    /// Where datagrams go.
    pub to: SocketAddr,
    /// The MTU of this host's interface that leads there.
    pub link_mtu: Option<u32>,
    /// The largest UDP payload that passes.
    pub mtu: u16,
    /// The smallest that does not, once that is known.
    pub refused: Option<u16>,
    /// How often what had passed did not pass any more.
    pub black_holes: u32,
}

/// Judges everything.
pub fn judge(facts: &Facts) -> Diagnosis {
    let Some(node) = &facts.node else {
        let text = "no node runs here, so that only the host itself could be looked at";
        let advice = "start it with `farlan up`, and ask again";
        let mut checks = vec![Check {
            advice: Some(advice.into()),
            ..unknown(CheckKind::Node, text)
        }];
        checks.extend(facts.firewall.as_ref().map(|of| checks::firewall(None, of)));
        checks.extend(facts.tun.as_ref().map(checks::tun));
        return Diagnosis { checks };
    };
    let mut checks = vec![
        checks::fabric(node),
        checks::udp(node),
        proxy::check(&node.tls, &node.http),
    ];
    checks.extend(
        facts
            .firewall
            .as_ref()
            .map(|of| checks::firewall(Some(node), of)),
    );
    checks.extend([
        checks::mapping(node),
        checks::mtu(node),
        clock::check(&node.clocks),
        checks::subnets(&node.networks),
    ]);
    checks.extend(facts.tun.as_ref().map(checks::tun));
    Diagnosis { checks }
}

/// `1 path`, `3 paths`.
fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn ok(check: CheckKind, evidence: impl Into<String>) -> Check {
    Check {
        check,
        verdict: Verdict::Ok,
        evidence: evidence.into(),
        advice: None,
    }
}

fn unknown(check: CheckKind, evidence: impl Into<String>) -> Check {
    Check {
        verdict: Verdict::Unknown,
        ..ok(check, evidence)
    }
}

fn finding(check: CheckKind, evidence: impl Into<String>, advice: impl Into<String>) -> Check {
    Check {
        verdict: Verdict::Finding,
        advice: Some(advice.into()),
        ..ok(check, evidence)
    }
}
