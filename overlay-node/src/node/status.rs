//! What the node tells of itself: status, peers, leases, invites and pings.

use super::{
    actor::{Node, PingWaiting},
    calls::refuse,
    join::answer,
    membership::Member,
    unix_now,
};
use crate::api::Answer;
use dht::{invite, lease::Subject, membership::Roles};
use overlay_types::{
    Candidate, MacAddr, Name, NetworkId, PathAddr, PathKind, PeerId,
    api::{
        ApiError, CreateInvite, FabricStatus, GuestStatus, Invite, LeaseStatus, NetworkStatus,
        NodeStatus, PathStatus, PeerStatus, Ping, Pong, RelayStatus, Status,
    },
};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tunnel::{engine::Command, relay::RelayStats};

/// Pings that may be under way.
const PINGS_MAX: usize = 256;
/// The longest that one may be waited for.
const PING_TIMEOUT_MAX: Duration = Duration::from_secs(30);
/// Bootstraps in an invite.
const BOOTSTRAPS_MAX: usize = 8;

impl Node {
    /// `farlan status`.
    pub(super) async fn status(&self) -> Status {
        let swarm = self.swarm.status().await;
        let mut networks: Vec<_> = self.networks.values().collect();
        networks.sort_by_key(|member| member.order);
        let default = self.meant(None).ok().and_then(|id| self.networks.get(&id));
        Status {
            node: NodeStatus {
                id: self.me,
                version: env!("CARGO_PKG_VERSION").into(),
                pid: std::process::id(),
                uptime_s: self.started.elapsed().as_secs(),
            },
            nat: self.nat.status(self.reflexive()),
            fabric: FabricStatus {
                connections: swarm.as_ref().map_or(0, |s| s.connected.len()),
                infrastructure: self.fabric.connected(),
                relays: self.relays_told(),
                listen: self.control_addresses.clone(),
            },
            relay: self
                .plane
                .relay_stats()
                .map(relay_status)
                .unwrap_or_default(),
            networks: networks
                .into_iter()
                .map(|member| self.network_status(member))
                .collect(),
            name: default.map(|member| member.membership.name.clone()),
            address: default.and_then(|member| member.configured),
            address6: default.map(|member| self.me.address6(member.id)),
        }
    }

    /// The relays where others reach this node, by address, and by name where a member relays.
    fn relays_told(&self) -> Vec<String> {
        let name = |via: PeerId| {
            let mut members = self.networks.values();
            members.find_map(|member| Some(member.directory.member(via)?.name.clone()))
        };
        let told = |candidate: &Candidate| match candidate {
            Candidate::Relayed { via, relay, .. } => Some(match name(*via) {
                Some(name) => format!("{relay} ({name})"),
                None => relay.to_string(),
            }),
            _ => None,
        };
        self.candidates.iter().filter_map(told).collect()
    }

    pub(super) fn network_status(&self, member: &Member) -> NetworkStatus {
        let state = match (&member.configured, &member.problem) {
            (Some(_), _) if member.is_ready() => "ready".into(),
            (Some(_), _) => "looking for the other members".into(),
            (None, Some(why)) => format!("waiting for an address: {why}"),
            (None, None) => "waiting for an address".into(),
        };
        let mut warnings = Vec::new();
        let voters = member.directory.network().group().voters.len();
        if voters < 3 {
            warnings.push("while the registrar is away, no new address is granted and nobody is admitted; what is held goes on until it expires".into());
        }
        warnings.extend(
            member
                .problem
                .clone()
                .filter(|_| member.configured.is_some()),
        );
        let peers = self
            .plane
            .peer_stats()
            .into_iter()
            .filter(|stats| stats.network == member.id && stats.session)
            .count();
        NetworkStatus {
            id: member.id,
            name: member.name().clone(),
            subnet: member.subnet(),
            dhcp: member.dhcp_mode(),
            mtu: member.mtu(),
            default: self.meant(None).is_ok_and(|id| id == member.id),
            state,
            node_name: member.membership.name.clone(),
            address: member.configured,
            address6: Some(self.me.address6(member.id)),
            tap: Some(member.tap.clone()),
            peers,
            roles: member
                .membership
                .roles
                .names()
                .into_iter()
                .map(Into::into)
                .collect(),
            warnings,
        }
    }

    /// `farlan peers`.
    pub(super) fn peers(&self, network: Option<&Name>) -> Answer<Vec<PeerStatus>> {
        let id = self.meant(network)?;
        let Some(member) = self.networks.get(&id) else {
            return refuse("the network was left");
        };
        let stats = self.plane.peer_stats();
        let unix = unix_now();
        let others = member
            .directory
            .members()
            .filter(|cert| cert.member != self.me);
        let one = |cert: &dht::membership::MembershipCert| {
            let stats = stats
                .iter()
                .find(|stats| stats.network == id && stats.peer == cert.member);
            let record = member.directory.get(cert.member);
            let path = stats
                .filter(|stats| stats.session)
                .and_then(|stats| stats.path);
            let guests = record
                .map(|record| record.guests.as_slice())
                .unwrap_or_default();
            PeerStatus {
                id: cert.member,
                name: cert.name.clone(),
                address: member.directory.address_of(cert.member, unix),
                address6: Some(cert.member.address6(id)),
                path: path.map(|view| PathStatus {
                    via: stats.and_then(|stats| stats.via).map(|via| {
                        match member.directory.member(via) {
                            Some(relay) => relay.name.to_string(),
                            None => via.to_string(),
                        }
                    }),
                    ..self.path_status(view.addr, view.rtt, view.mtu)
                }),
                tx_bytes: stats.map_or(0, |stats| stats.tx_bytes),
                rx_bytes: stats.map_or(0, |stats| stats.rx_bytes),
                guests: guests
                    .iter()
                    .map(|guest| GuestStatus {
                        name: guest.name.clone(),
                        mac: guest.mac,
                        address: guest.ip,
                    })
                    .collect(),
                nat: record
                    .map(|record| record.nat.0.clone())
                    .unwrap_or_default(),
            }
        };
        let mut peers: Vec<_> = others.map(one).collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(peers)
    }

    /// `farlan leases`.
    pub(super) fn leases(&self, network: Option<&Name>) -> Answer<Vec<LeaseStatus>> {
        let id = self.meant(network)?;
        let one = |cert: dht::lease::LeaseCert| LeaseStatus {
            address: cert.subject.to_string(),
            holder: cert.holder,
            name: cert.name.clone(),
            mac: cert
                .mac
                .filter(|_| matches!(cert.subject, Subject::Address(_))),
            expires: cert.expires,
            generation: cert.generation,
            epoch: cert.epoch,
            signatures: cert.signatures.len(),
        };
        let certificates = self.known_leases(id);
        let in_block = |holder: PeerId, mac: MacAddr, ip: IpAddr, name: Option<&Name>| {
            let IpAddr::V4(v4) = ip else { return None };
            let block = certificates
                .iter()
                .find(|cert| cert.holder == holder && cert.subject.covers(v4))?;
            Some(LeaseStatus {
                address: ip.to_string(),
                name: name.cloned(),
                mac: Some(mac),
                ..one(block.clone())
            })
        };
        let Some(member) = self.networks.get(&id) else {
            return refuse("the network was left");
        };
        let own = member
            .guests
            .iter()
            .filter_map(|(mac, guest)| in_block(self.me, *mac, guest.ip?, guest.name.as_ref()));
        let of_others = member.directory.peers().flat_map(|record| {
            let guests = record.guests.iter();
            guests
                .filter_map(|guest| in_block(record.peer, guest.mac, guest.ip, guest.name.as_ref()))
        });
        let guests: Vec<_> = own.chain(of_others).collect();
        Ok(certificates
            .iter()
            .cloned()
            .map(one)
            .chain(guests)
            .collect())
    }

    /// `farlan invite`.
    pub(super) fn create_invite(
        &mut self,
        network: Option<&Name>,
        request: &CreateInvite,
    ) -> Answer<Invite> {
        let id = self.meant(network)?;
        let unix = unix_now();
        let roles = Roles::of_invite(&request.role).map_err(|e| ApiError {
            error: e.to_string(),
        })?;
        let Some(member) = self.networks.get_mut(&id) else {
            return refuse("the network was left");
        };
        let expires = unix.saturating_add(request.expires_s);
        let issued = invite::issue(
            &self.identity,
            member.directory.network(),
            roles,
            request.uses,
            expires,
            unix,
            &mut self.rng,
        );
        let (grant, token) = issued.map_err(|e| ApiError {
            error: e.to_string(),
        })?;
        // Those that somebody named, and other ways to the same nodes: a newcomer may get out by one of them only.
        let mut bootstrap = member.bootstrap.clone();
        for address in self.fabric.addresses() {
            if !bootstrap.contains(&address) {
                bootstrap.push(address);
            }
        }
        bootstrap.truncate(BOOTSTRAPS_MAX);
        let invite = invite::Invite {
            network: id,
            name: member.name().clone(),
            bootstrap,
            rendezvous: *member.secret.rendezvous_key(id, expires),
            expires,
            token,
        };
        Ok(Invite {
            token: invite.to_string(),
            id: grant.invite.to_string(),
            expires: grant.expires,
            uses: grant.uses,
        })
    }

    /// `farlan ping`.
    pub(super) fn ping(
        &mut self,
        network: Option<&Name>,
        request: &Ping,
        reply: oneshot::Sender<Answer<Pong>>,
    ) {
        let found = self
            .meant(network)
            .and_then(|id| Ok((id, self.ping_target(id, &request.target)?)));
        let (network, (peer, name, address)) = match found {
            Ok(found) => found,
            Err(error) => return answer(reply, Err(error)),
        };
        if self.pings.len() >= PINGS_MAX {
            return answer(
                reply,
                refuse("too many pings are under way; wait for some to end"),
            );
        }
        let id = self.next_ping;
        self.next_ping += 1;
        let wait = Duration::from_millis(request.timeout_ms).min(PING_TIMEOUT_MAX);
        let unknown = self.path_status(
            PathAddr::Direct((IpAddr::from([0, 0, 0, 0]), 0).into()),
            Duration::ZERO,
            0,
        );
        let pong = Pong {
            peer,
            name,
            address,
            rtt_us: 0,
            path: unknown,
        };
        self.pings.insert(
            id,
            PingWaiting {
                reply,
                pong,
                until: Instant::now() + wait,
            },
        );
        self.tell(Command::Ping { network, peer, id });
    }

    /// Who is meant, which must be somebody else.
    fn ping_target(
        &self,
        id: NetworkId,
        target: &str,
    ) -> Result<(PeerId, Name, Option<IpAddr>), ApiError> {
        let found = self.find_member(id, target)?;
        if found.peer == self.me {
            return refuse(format!("'{target}' is this node itself"));
        }
        Ok((found.peer, found.name, found.address))
    }

    fn path_status(&self, addr: PathAddr, rtt: Duration, mtu: u16) -> PathStatus {
        let remote = addr.socket_addr();
        PathStatus {
            kind: if self.fabric.is_stream(remote) {
                PathKind::Stream
            } else {
                addr.kind()
            },
            remote: remote.to_string(),
            rtt_us: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
            mtu,
            via: None,
        }
    }

    /// An echo came back.
    pub(super) fn handle_pong(&mut self, id: u64, rtt: Duration, path: PathAddr, mtu: u16) {
        if let Some(waiting) = self.pings.remove(&id) {
            let path = self.path_status(path, rtt, mtu);
            answer(
                waiting.reply,
                Ok(Pong {
                    rtt_us: path.rtt_us,
                    path,
                    ..waiting.pong
                }),
            );
        }
    }

    /// Gives up on echoes that did not come.
    pub(super) fn expire_pings(&mut self, now: Instant) {
        let over: Vec<_> = self
            .pings
            .iter()
            .filter(|(_, ping)| ping.until <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            if let Some(waiting) = self.pings.remove(&id) {
                answer(
                    waiting.reply,
                    refuse(format!(
                        "no answer from {}; `farlan peers` shows whether there is a path",
                        waiting.pong.name
                    )),
                );
            }
        }
    }
}

fn relay_status(stats: RelayStats) -> RelayStatus {
    RelayStatus {
        serves: true,
        places: stats.places,
        bound: stats.bound,
        forwarded_bytes: stats.forwarded_bytes,
        forwarded: stats.forwarded,
        dropped_rate: stats.dropped_identity_budget + stats.dropped_shared_budget,
        dropped_other: stats.dropped_unknown
            + stats.dropped_stranger
            + stats.dropped_absent
            + stats.dropped_forged
            + stats.dropped_crowded
            + stats.dropped_nested,
    }
}
