//! From an invite to a membership: finds the fabric, the network's door, a registrar, and is admitted.
//! Runs as a job beside the node's task. What a new member then sets up is [`super::join`]'s.

use super::{leases::REPLY_WITHIN, unix_now};
use dht::{
    invite::Invite,
    message::{Admission, Request, Response},
    network::Network,
    record::{ControlPoint, decode_rendezvous_record},
    slot::{SlotKey, SlotName, SlotValue},
    swarm::{BootstrapState, SwarmHandle},
};
use overlay_types::{Name, NetworkId, PeerId};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long joining may take before it is given up with a reason.
pub(super) const JOIN_WITHIN: Duration = Duration::from_secs(15);
/// How often the network's door is looked for meanwhile.
const DOOR_RETRY: Duration = Duration::from_millis(250);

/// What a registrar let us in with, checked.
pub(super) struct Joined {
    pub(super) network: Network,
    pub(super) admission: Admission,
}

/// From an invite to a membership: find the fabric, the network's door, a registrar; be admitted.
pub(super) async fn join(
    swarm: &SwarmHandle,
    invite: &Invite,
    name: Name,
) -> Result<Box<Joined>, String> {
    for address in invite.bootstrap.iter().filter_map(|a| a.parse().ok()) {
        swarm.add_bootstrap(address).await;
    }
    let give_up = Instant::now() + JOIN_WITHIN;
    let door = SlotKey::derive(&invite.rendezvous, &SlotName::Rendezvous);
    let mut refusal = None;
    while Instant::now() < give_up {
        for point in registrars_behind(swarm, &door, invite.network).await {
            match ask_admission(swarm, &point, invite, &name).await {
                Ok(joined) => return Ok(joined),
                Err(Refused::Final(reason)) => return Err(reason),
                Err(Refused::Later(reason)) => refusal = Some(reason),
            }
        }
        if let Some(reason) = unreachable(swarm, BOOTSTRAP_TRIES).await {
            return Err(reason);
        }
        tokio::time::sleep(DOOR_RETRY).await;
    }
    // Where everything is dropped without a word, one try takes as long as a few that are refused.
    Err(refusal.or(unreachable(swarm, 1).await).unwrap_or_else(|| {
        "no registrar of the network is to be found; is the owner's node running and connected to the same fabric?".into()
    }))
}

/// Who announces itself behind the rendezvous key, newest first.
async fn registrars_behind(
    swarm: &SwarmHandle,
    door: &SlotKey,
    network: NetworkId,
) -> Vec<ControlPoint> {
    let mut newest: BTreeMap<PeerId, (u64, ControlPoint)> = BTreeMap::new();
    for bytes in swarm.get_slot(door.dht_key()).await {
        let content = SlotValue::decode(&bytes)
            .ok()
            .and_then(|value| door.open(&value, unix_now()).ok());
        let Some(record) = content.and_then(|content| decode_rendezvous_record(&content)) else {
            continue;
        };
        if record.network != network {
            continue;
        }
        for point in &record.registrars {
            let entry = newest
                .entry(point.peer)
                .or_insert_with(|| (record.seq, point.clone()));
            if entry.0 < record.seq {
                *entry = (record.seq, point.clone());
            }
        }
    }
    newest.into_values().map(|(_, point)| point).collect()
}

enum Refused {
    Final(String),
    Later(String),
}

async fn ask_admission(
    swarm: &SwarmHandle,
    point: &ControlPoint,
    invite: &Invite,
    name: &Name,
) -> Result<Box<Joined>, Refused> {
    let request = Request::Admit {
        network: invite.network,
        token: invite.token.clone(),
        name: name.clone(),
        unix: unix_now(),
    };
    let asked = tokio::time::timeout(
        REPLY_WITHIN,
        swarm.request(point.peer, &point.addresses, request.encode()),
    )
    .await;
    let bytes = match asked {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => {
            return Err(Refused::Later(format!(
                "the network's registrar cannot be asked: {error}"
            )));
        }
        Err(_) => {
            return Err(Refused::Later(
                "the network's registrar does not answer".into(),
            ));
        }
    };
    match Response::decode(&bytes) {
        Ok(Response::Admitted(admission)) => {
            check_admission(*admission, invite, swarm.peer_id()).map_err(Refused::Later)
        }
        Ok(Response::Refused(refusal)) if is_passing(&refusal) => {
            Err(Refused::Later(refusal.to_string()))
        }
        Ok(Response::Refused(refusal)) => Err(Refused::Final(refusal.to_string())),
        Ok(_) | Err(_) => Err(Refused::Later(
            "what should be a registrar does not know the network".into(),
        )),
    }
}

/// Whether asking again later may help.
fn is_passing(refusal: &dht::lease::Refusal) -> bool {
    use dht::lease::Refusal::{Busy, NoMajority, NotARegistrar, Starting};
    matches!(refusal, Busy | NoMajority { .. } | NotARegistrar | Starting)
}

/// Nothing a registrar says is believed before it follows from the invite's network id.
fn check_admission(
    admission: Admission,
    invite: &Invite,
    me: PeerId,
) -> Result<Box<Joined>, String> {
    let mut network = Network::new(admission.genesis.clone()).map_err(|e| e.to_string())?;
    if network.id() != invite.network {
        return Err("somebody posed as the network's registrar".into());
    }
    for document in admission.documents.clone() {
        network.apply(document).map_err(|e| e.to_string())?;
    }
    network
        .verify_membership(&admission.membership, unix_now())
        .map_err(|e| e.to_string())?;
    if admission.membership.member != me {
        return Err("the registrar certified somebody else".into());
    }
    Ok(Box::new(Joined { network, admission }))
}

/// Waits for a connection to anybody of the fabric.
pub(super) async fn reach_fabric(swarm: &SwarmHandle) -> Result<(), String> {
    let give_up = Instant::now() + JOIN_WITHIN;
    loop {
        if let Some(reason) = unreachable(swarm, BOOTSTRAP_TRIES).await {
            return Err(reason);
        }
        match swarm.status().await {
            Some(status) if !status.connected.is_empty() => return Ok(()),
            _ if Instant::now() < give_up => tokio::time::sleep(FABRIC_ASKED_EVERY).await,
            _ => {
                return Err(
                    "the fabric does not answer; check the network and that the fabric node runs"
                        .into(),
                );
            }
        }
    }
}

/// How often it is looked whether the fabric is connected.
const FABRIC_ASKED_EVERY: Duration = Duration::from_millis(20);

/// How often a bootstrap must have failed before joining is given up.
const BOOTSTRAP_TRIES: u32 = 2;

/// Why the fabric cannot be reached, once every bootstrap has failed so often and nobody else is connected.
async fn unreachable(swarm: &SwarmHandle, tries: u32) -> Option<String> {
    let status = swarm.status().await?;
    if !status.connected.is_empty() || status.bootstraps.is_empty() {
        return None;
    }
    let mut why = Vec::new();
    for bootstrap in &status.bootstraps {
        match &bootstrap.state {
            BootstrapState::Unreachable {
                reason, attempts, ..
            } if *attempts >= tries => {
                why.push(format!("{} ({reason})", bootstrap.addresses.join(", ")));
            }
            BootstrapState::Unreachable { .. }
            | BootstrapState::Connecting
            | BootstrapState::Connected => return None,
        }
    }
    Some(format!(
        "cannot reach the fabric at {}; check the network and that the fabric node runs",
        why.join("; ")
    ))
}
