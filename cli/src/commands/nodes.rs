//! What a node knows: itself, its peers, the leases; and echoes through the tunnel.

use super::networks::show;
use crate::{
    args::Read,
    client::{Client, ClientError},
    output::{bytes, note, or_dash, rtt, say, say_json, say_table, span, until},
};
use overlay_types::{
    PathKind,
    api::{LeaseStatus, NatStatus, PathStatus, PeerStatus, Ping, Pong, RelayStatus, Status},
};
use serde::Serialize;
use std::time::Duration;
use tokio::time::Instant;

/// `farlan status`.
pub(super) async fn status(client: &Client, read: Read) -> anyhow::Result<()> {
    let status: Status = client.get("/v1/status").await?;
    if read.json {
        return say_json(&status);
    }
    let Status {
        node,
        nat,
        fabric,
        relay,
        networks,
        ..
    } = status;
    say(&format!("node    {}", node.id));
    say(&format!(
        "        farlan {}, process {}, up {}",
        node.version,
        node.pid,
        span(node.uptime_s)
    ));
    say(&format!(
        "nat     mapping {}, filtering {}",
        nat.mapping, nat.filtering
    ));
    for more in nat_text(&nat) {
        say(&format!("        {more}"));
    }
    for mapped in &nat.mapped {
        let (external, router, how) = (mapped.external, mapped.router, &mapped.protocol);
        say(&format!("        mapped at {external} by {router} ({how})"));
    }
    say(&format!(
        "fabric  {} connections, {} of them infrastructure",
        fabric.connections, fabric.infrastructure
    ));
    for relay in &fabric.relays {
        say(&format!("        relay {relay}"));
    }
    for address in &fabric.listen {
        say(&format!("        listens at {address}"));
    }
    say(&format!("relay   {}", relay_text(&relay)));
    for network in &networks {
        say("");
        show(network);
    }
    if networks.is_empty() {
        note("in no network");
    }
    Ok(())
}

/// What is relayed for others.
fn relay_text(relay: &RelayStatus) -> String {
    if !relay.serves {
        return "for no other member".into();
    }
    let mut text = format!(
        "for other members: {} places, {} passed on",
        relay.bound,
        bytes(relay.forwarded_bytes)
    );
    if relay.dropped_rate > 0 {
        text += &format!(", {} datagrams dropped beyond the rate", relay.dropped_rate);
    }
    text
}

/// What is known of a NAT beside its rules, a line for each kind of thing.
fn nat_text(nat: &NatStatus) -> Vec<String> {
    let seen = nat.reflexive.as_ref().map(|addr| format!("seen as {addr}"));
    let ports = (nat.ports != "unknown").then(|| format!("ports {}", nat.ports));
    let hairpin = nat
        .hairpin
        .map(|does| if does { "hairpins" } else { "no hairpin" }.into());
    let how: Vec<String> = [seen, ports, hairpin].into_iter().flatten().collect();
    let lifetime = match (nat.lifetime_at_least_s, nat.lifetime_less_than_s) {
        (None, _) => None,
        (Some(least), None) => Some(format!("unused mappings live {least} s and longer")),
        (Some(least), Some(most)) => Some(format!("unused mappings live {least} to {most} s")),
    };
    let how = (!how.is_empty()).then(|| how.join(", "));
    [how, lifetime].into_iter().flatten().collect()
}

/// `farlan peers`.
pub(super) async fn peers(client: &Client, read: Read) -> anyhow::Result<()> {
    let peers: Vec<PeerStatus> = client.get("/v1/peers").await?;
    if read.json {
        return say_json(&peers);
    }
    if peers.is_empty() {
        note("no other member is known; let one in with `farlan invite`");
        return Ok(());
    }
    let rows = peers.iter().map(peer_row).collect();
    say_table(
        &[
            "NAME", "ADDRESS", "PATH", "RTT", "MTU", "SENT", "RECEIVED", "NAT",
        ],
        rows,
    );
    Ok(())
}

fn peer_row(peer: &PeerStatus) -> Vec<String> {
    let path = peer.path.as_ref();
    vec![
        peer.name.to_string(),
        or_dash(peer.address),
        path.map_or_else(|| "none yet".into(), path_text),
        or_dash(path.map(|p| rtt(p.rtt_us))),
        or_dash(path.map(|p| p.mtu)),
        bytes(peer.tx_bytes),
        bytes(peer.rx_bytes),
        peer.nat.clone(),
    ]
}

fn path_text(path: &PathStatus) -> String {
    let kind = match path.kind {
        PathKind::Direct => "direct",
        PathKind::Relay => "relay",
        PathKind::Stream => "stream",
    };
    // A relayed path's remote may say so itself.
    let text = format!("{kind} {}", path.remote.trim_start_matches("relay "));
    match &path.via {
        Some(via) => format!("{text} ({via})"),
        None => text,
    }
}

/// `farlan leases`.
pub(super) async fn leases(client: &Client, read: Read) -> anyhow::Result<()> {
    let leases: Vec<LeaseStatus> = client.get("/v1/leases").await?;
    if read.json {
        return say_json(&leases);
    }
    if leases.is_empty() {
        note("no leases are known here");
        return Ok(());
    }
    let rows = leases.iter().map(lease_row).collect();
    say_table(
        &[
            "ADDRESS", "NAME", "MAC", "HOLDER", "EXPIRES", "GEN", "EPOCH", "SIGS",
        ],
        rows,
    );
    Ok(())
}

fn lease_row(lease: &LeaseStatus) -> Vec<String> {
    vec![
        lease.address.clone(),
        or_dash(lease.name.as_ref()),
        or_dash(lease.mac),
        format!("…{}", lease.holder.short()),
        until(lease.expires),
        lease.generation.to_string(),
        lease.epoch.to_string(),
        lease.signatures.to_string(),
    ]
}

/// What to ping, and how often.
pub(super) struct PingPlan {
    pub(super) target: String,
    pub(super) count: u32,
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
    pub(super) json: bool,
}

/// One echo, as JSON tells it.
#[derive(Serialize)]
struct Reply {
    seq: u32,
    #[serde(flatten)]
    pong: Option<Pong>,
    error: Option<String>,
}

/// The whole, as JSON tells it.
#[derive(Serialize)]
struct PingReport {
    target: String,
    sent: u32,
    received: u32,
    rtt_us_min: Option<u64>,
    rtt_us_avg: Option<u64>,
    rtt_us_max: Option<u64>,
    replies: Vec<Reply>,
}

/// `farlan ping`: fails when nothing came back.
pub(super) async fn ping(client: &Client, plan: &PingPlan) -> anyhow::Result<()> {
    let timeout_ms = u64::try_from(plan.timeout.as_millis()).unwrap_or(u64::MAX);
    let mut replies = Vec::new();
    for seq in 1..=plan.count {
        let asked = Instant::now();
        let next = asked + plan.interval;
        let request = Ping {
            target: plan.target.clone(),
            timeout_ms,
        };
        let reply = match client.post::<Pong>("/v1/ping", &request).await {
            Ok(pong) => Reply {
                seq,
                pong: Some(pong),
                error: None,
            },
            // Refused at once: there is nobody to wait for, and asking again changes nothing.
            Err(ClientError::Refused(why))
                if replies.is_empty() && asked.elapsed() < plan.timeout / 2 =>
            {
                anyhow::bail!(why)
            }
            Err(ClientError::Refused(why)) => Reply {
                seq,
                pong: None,
                error: Some(why),
            },
            Err(other) => return Err(other.into()),
        };
        if !plan.json {
            say(&reply_line(&reply));
        }
        replies.push(reply);
        if seq < plan.count {
            tokio::time::sleep_until(next).await;
        }
    }
    let report = PingReport::new(plan, replies);
    if plan.json {
        say_json(&report)?;
    } else if let (Some(min), Some(avg), Some(max)) =
        (report.rtt_us_min, report.rtt_us_avg, report.rtt_us_max)
    {
        let (min, avg, max) = (rtt(min), rtt(avg), rtt(max));
        say(&format!(
            "{} of {} answered; {min} at least, {avg} in the mean, {max} at most",
            report.received, report.sent
        ));
    }
    let last_word = report
        .replies
        .last()
        .and_then(|r| r.error.as_deref())
        .unwrap_or_default();
    anyhow::ensure!(
        report.received > 0,
        "{} did not answer: {last_word}",
        plan.target
    );
    Ok(())
}

impl PingReport {
    fn new(plan: &PingPlan, replies: Vec<Reply>) -> Self {
        let times: Vec<u64> = replies
            .iter()
            .filter_map(|r| r.pong.as_ref().map(|p| p.rtt_us))
            .collect();
        Self {
            target: plan.target.clone(),
            sent: plan.count,
            received: u32::try_from(times.len()).unwrap_or(u32::MAX),
            rtt_us_min: times.iter().min().copied(),
            rtt_us_avg: times.iter().sum::<u64>().checked_div(times.len() as u64),
            rtt_us_max: times.iter().max().copied(),
            replies,
        }
    }
}

fn reply_line(reply: &Reply) -> String {
    match (&reply.pong, &reply.error) {
        (Some(pong), _) => {
            let address = pong.address.map(|a| format!(" ({a})")).unwrap_or_default();
            format!(
                "{} from {}{address}, {}",
                rtt(pong.rtt_us),
                pong.name,
                path_text(&pong.path)
            )
        }
        (None, Some(why)) => why.clone(),
        (None, None) => "no answer".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_of_a_nat_is_not_said() {
        let mut nat = NatStatus {
            ports: "unknown".into(),
            ..NatStatus::default()
        };
        assert!(nat_text(&nat).is_empty());
        nat.ports = "preserving".into();
        nat.hairpin = Some(false);
        assert_eq!(nat_text(&nat), ["ports preserving, no hairpin"]);
        nat.lifetime_at_least_s = Some(28);
        assert_eq!(nat_text(&nat)[1], "unused mappings live 28 s and longer");
        nat.lifetime_less_than_s = Some(40);
        assert_eq!(nat_text(&nat)[1], "unused mappings live 28 to 40 s");
    }
}
