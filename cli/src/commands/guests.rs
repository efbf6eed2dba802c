//! What hangs on a node: guests at ports, and LANs.

use crate::{
    args::{Lan, Port},
    client::Client,
    output::{note, or_dash, say, say_json, say_table},
};
use overlay_types::api::{AddPort, AttachLan, LanStatus, PortStatus, RemovePort};

/// `farlan port …`.
pub(super) async fn port(client: &Client, command: Port) -> anyhow::Result<()> {
    match command {
        Port::Add {
            iface,
            kind,
            mac,
            name,
            json,
        } => {
            let request = AddPort {
                iface: iface.into(),
                kind: kind.into(),
                macs: mac,
                name,
            };
            let added: PortStatus = client.post("/v1/ports", &request).await?;
            if json {
                return say_json(&added);
            }
            say(&format!(
                "port {} added to network {}, through TAP {}",
                added.iface, added.network, added.tap
            ));
            Ok(())
        }
        Port::Remove { iface } => {
            let () = client
                .post(
                    "/v1/ports/remove",
                    &RemovePort {
                        iface: iface.to_string(),
                    },
                )
                .await?;
            say(&format!("port {iface} removed"));
            Ok(())
        }
        Port::List(read) => {
            let ports: Vec<PortStatus> = client.get("/v1/ports").await?;
            if read.json {
                return say_json(&ports);
            }
            if ports.is_empty() {
                note("no guests are plugged in; do it with `farlan port add IFACE --kind guest`");
                return Ok(());
            }
            let rows = ports.iter().map(port_row).collect();
            say_table(
                &["IFACE", "NETWORK", "KIND", "TAP", "NAME", "MAC", "GUESTS"],
                rows,
            );
            Ok(())
        }
    }
}

fn port_row(port: &PortStatus) -> Vec<String> {
    let lines = |items: Vec<String>| {
        if items.is_empty() {
            "-".to_owned()
        } else {
            items.join("\n")
        }
    };
    vec![
        port.iface.clone(),
        port.network.to_string(),
        format!("{:?}", port.kind).to_lowercase(),
        port.tap.clone(),
        or_dash(port.name.as_ref()),
        lines(port.macs.iter().map(ToString::to_string).collect()),
        lines(
            port.guests
                .iter()
                .map(|g| format!("{} {}", or_dash(g.name.as_ref()), g.address))
                .collect(),
        ),
    ]
}

/// `farlan lan …`.
pub(super) async fn lan(client: &Client, command: Lan) -> anyhow::Result<()> {
    match command {
        Lan::Attach { iface, json } => {
            let lan: LanStatus = client
                .post(
                    "/v1/lan/attach",
                    &AttachLan {
                        iface: iface.into(),
                    },
                )
                .await?;
            if json {
                return say_json(&lan);
            }
            say(&format!(
                "LAN at {} attached to network {}, through bridge {}",
                lan.iface, lan.network, lan.bridge
            ));
            if let Some(route) = &lan.route_hint {
                note(
                    "next: give the LAN's router this one static route, so that its machines find the network:",
                );
                say(route);
            }
            Ok(())
        }
        Lan::Detach => {
            let () = client.post("/v1/lan/detach", &()).await?;
            say("LAN detached");
            Ok(())
        }
        Lan::Status(read) => {
            let lans: Vec<LanStatus> = client.get("/v1/lan").await?;
            if read.json {
                return say_json(&lans);
            }
            if lans.is_empty() {
                note("no LAN is attached; do it with `farlan lan attach IFACE`");
                return Ok(());
            }
            let rows = lans.iter().map(lan_row).collect();
            say_table(
                &[
                    "IFACE",
                    "NETWORK",
                    "BRIDGE",
                    "MADE BY",
                    "DHCP",
                    "ROUTE FOR THE ROUTER",
                ],
                rows,
            );
            Ok(())
        }
    }
}

fn lan_row(lan: &LanStatus) -> Vec<String> {
    let made_by = if lan.bridge_made {
        "farlan"
    } else {
        "the host"
    };
    let dhcp = format!("{:?}", lan.dhcp).to_lowercase();
    let route = or_dash(lan.route_hint.as_ref());
    vec![
        lan.iface.clone(),
        lan.network.to_string(),
        lan.bridge.clone(),
        made_by.into(),
        dhcp,
        route,
    ]
}
