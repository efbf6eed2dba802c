//! Networks: made, joined, left, shown; and the invites that let others in.

use crate::{
    args::{Global, Network, Role},
    client::Client,
    invite::{make_invite, read_token},
    output::{note, or_dash, say, say_json, until},
};
use overlay_types::api::{CreateNetwork, JoinNetwork, LeaveNetwork, NetworkStatus, Status};
use std::time::Duration;

/// `farlan network …`.
pub(super) async fn run(global: &Global, command: Network) -> anyhow::Result<()> {
    let client = Client::new(global)?;
    match command {
        Network::Create {
            name,
            subnet,
            dhcp,
            mtu,
            bootstrap,
            node_name,
            tap,
            json,
        } => {
            let request = CreateNetwork {
                name,
                subnet,
                dhcp: dhcp.into(),
                mtu: Some(mtu),
                bootstrap: bootstrap.iter().map(ToString::to_string).collect(),
                node_name,
                tap: tap.map(Into::into),
            };
            let made: NetworkStatus = client.post("/v1/networks", &request).await?;
            if json {
                return say_json(&made);
            }
            say(&format!(
                "made network {} ({}), {}",
                made.name, made.subnet, made.id
            ));
            say(&ready_line(&made));
            note(&format!(
                "next: let another node in with `farlan invite --network {}`",
                made.name
            ));
            Ok(())
        }
        Network::Join {
            token,
            node_name,
            tap,
            json,
        } => {
            let request = JoinNetwork {
                token: read_token(&token)?,
                node_name,
                tap: tap.map(Into::into),
            };
            let joined: NetworkStatus = client.post("/v1/networks/join", &request).await?;
            if json {
                return say_json(&joined);
            }
            say(&ready_line(&joined));
            Ok(())
        }
        Network::Leave { name } => {
            let () = client
                .post("/v1/networks/leave", &LeaveNetwork { name: name.clone() })
                .await?;
            say(&format!("left network {name}"));
            Ok(())
        }
        Network::Show(read) => {
            let status: Status = client.get("/v1/status").await?;
            let mut networks = status.networks;
            if let Some(wanted) = &global.network {
                networks.retain(|n| &n.name == wanted);
                anyhow::ensure!(
                    !networks.is_empty(),
                    "this node is in no network {wanted}; see `farlan network show`"
                );
            }
            if read.json {
                return say_json(&networks);
            }
            if networks.is_empty() {
                note(
                    "in no network; make one with `farlan network create NAME`, or join with `farlan network join TOKEN`",
                );
            }
            networks.iter().for_each(show);
            Ok(())
        }
    }
}

/// What `up` prints too: the word `ready`, the name, the addresses; then what is there for people.
pub(crate) fn ready_line(network: &NetworkStatus) -> String {
    let addresses = [
        network.address.map(|a| a.to_string()),
        network.address6.map(|a| a.to_string()),
    ];
    let addresses: String = addresses
        .into_iter()
        .flatten()
        .map(|a| format!(" {a}"))
        .collect();
    let interface = network
        .tap
        .as_ref()
        .map(|tap| format!(", interface {tap}"))
        .unwrap_or_default();
    format!(
        "ready {}{addresses} (network {}{interface})",
        network.node_name, network.name
    )
}

/// One network as a block of lines.
pub(super) fn show(network: &NetworkStatus) {
    let default = if network.default { " (default)" } else { "" };
    let dhcp = format!("{:?}", network.dhcp).to_lowercase();
    say(&format!(
        "network {}{default}: {}, dhcp {dhcp}, mtu {}, {}",
        network.name, network.subnet, network.mtu, network.state
    ));
    say(&format!("  id         {}", network.id));
    say(&format!(
        "  this node  {}  {}  {}",
        network.node_name,
        or_dash(network.address),
        or_dash(network.address6)
    ));
    say(&format!("  interface  {}", or_dash(network.tap.as_ref())));
    say(&format!(
        "  roles      {}",
        if network.roles.is_empty() {
            "-".into()
        } else {
            network.roles.join(", ")
        }
    ));
    say(&format!("  peers      {} reachable", network.peers));
    for warning in &network.warnings {
        say(&format!("  warning    {warning}"));
    }
}

/// `farlan invite`. Only the token goes to standard output, so that `$(farlan invite)` is one.
pub(super) async fn invite(
    client: &Client,
    role: Role,
    expires: Duration,
    uses: u32,
    json: bool,
) -> anyhow::Result<()> {
    let invite = make_invite(client, role, expires, uses).await?;
    if json {
        return say_json(&invite);
    }
    say(&invite.token);
    let times = if invite.uses == 1 {
        "once".into()
    } else {
        format!("{} times", invite.uses)
    };
    let expires = until(invite.expires);
    note(&format!(
        "invite {} can be used {times} and expires {expires}; there: farlan up --invite TOKEN",
        invite.id
    ));
    Ok(())
}
