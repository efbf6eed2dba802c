//! Takes the lease holders' transactions to a registrar, and does on the host what their answers say.

use super::{
    actor::{Done, Node},
    join::{answer, dhcp_config},
    membership::{HolderId, OWN_ADDRESS},
    registrar::{Asker, ReplyTo},
    unix_now,
};
use crate::{
    dhcp::{DhcpConfig, Route},
    dns::DnsServer,
};
use dht::{
    lease::{
        HolderEvent, LeaseCert, LeaseHolder, Refusal, Reply, Subject, Transaction, holder::Want,
    },
    message::{Request, Response},
    record::ControlPoint,
    swarm::SwarmHandle,
};
use overlay_types::{NetworkId, PeerId};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// How long one registrar is waited for before the next is asked.
pub(super) const REPLY_WITHIN: Duration = Duration::from_secs(6);
/// How long before its end a membership is renewed: half of its 30 days.
const MEMBERSHIP_RENEW_BEFORE: u64 = dht::membership::MEMBERSHIP_SECONDS / 2;
/// How long after a failed renewal the next is tried.
const MEMBERSHIP_RETRY: Duration = Duration::from_secs(600);

impl Node {
    /// Sends what the holders want asked, and carries out what they say.
    pub(super) async fn drain_holders(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let holders: Vec<_> = member.holders.keys().copied().collect();
        for holder in holders {
            while let Some(core) = self
                .networks
                .get_mut(&id)
                .and_then(|m| m.holders.get_mut(&holder))
            {
                if let Some(transaction) = core.poll_transmit() {
                    self.ask_registrar(id, Asker::Holder(holder), transaction);
                } else if let Some(event) = core.poll_event() {
                    self.handle_holder_event(id, holder, event).await;
                } else {
                    break;
                }
            }
        }
    }

    /// Asks the network's registrar, which may be this node itself.
    fn ask_registrar(&mut self, id: NetworkId, asker: Asker, transaction: Transaction) {
        let me = self.me;
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        if let Some(shell) = &mut member.registrar {
            if shell.begin(me, transaction, ReplyTo::Own(asker)).is_err() {
                self.handle_registrar_reply(id, asker, None);
            }
            self.drain_registrar(id);
            return;
        }
        let request = Request::Lease {
            network: id,
            membership: Box::new(member.membership.clone()),
            transaction,
        };
        let (swarm, points) = (self.swarm.clone(), member.registrar_points());
        self.job(async move {
            Done::Registrar {
                network: id,
                asker,
                reply: ask_any(&swarm, &points, request).await,
            }
        });
    }

    /// A registrar answered what this node asked, or none did.
    pub(super) fn handle_registrar_reply(
        &mut self,
        id: NetworkId,
        asker: Asker,
        reply: Option<Reply>,
    ) {
        match asker {
            Asker::Holder(holder) => self.handle_lease_reply(id, holder, reply),
            Asker::Membership => self.handle_membership_reply(id, reply),
        }
    }

    fn handle_lease_reply(&mut self, id: NetworkId, holder: HolderId, reply: Option<Reply>) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let Some(core) = member.holders.get_mut(&holder) else {
            return;
        };
        match reply {
            Some(reply) => core.handle_reply(
                reply,
                member.directory.network(),
                Instant::now(),
                unix_now(),
            ),
            None => core.handle_unreachable(Instant::now()),
        }
    }

    async fn handle_holder_event(&mut self, id: NetworkId, holder: HolderId, event: HolderEvent) {
        match event {
            HolderEvent::Held(cert) => {
                info!(network = ?id, subject = %cert.subject, generation = cert.generation, "lease held");
                self.keep(id);
                if holder == OWN_ADDRESS {
                    self.configure_address(id).await
                } else {
                    self.tell_dhcp_blocks(id)
                }
            }
            HolderEvent::Lost { cert, reason } => {
                warn!(network = ?id, subject = %cert.subject, %reason, "lease lost");
                self.keep(id);
                if holder == OWN_ADDRESS {
                    self.unconfigure_address(id).await
                } else {
                    self.tell_dhcp_blocks(id)
                }
            }
            HolderEvent::Waiting(refusal) => self.holder_waits(id, holder, refusal.as_ref()),
            HolderEvent::Released => {
                if let Some(member) = self.networks.get_mut(&id) {
                    member.holders.remove(&holder);
                }
            }
        }
        if let Some(member) = self.networks.get_mut(&id) {
            member.changed = true;
            member.publish_soon();
        }
    }

    fn holder_waits(&mut self, id: NetworkId, holder: HolderId, refusal: Option<&Refusal>) {
        let why = refusal.map_or_else(
            || "no registrar of the network answers".into(),
            ToString::to_string,
        );
        warn!(network = ?id, ?holder, why, "lease not granted");
        if let Some(member) = self.networks.get_mut(&id)
            && holder == OWN_ADDRESS
        {
            member.problem = Some(why);
        }
    }

    /// Puts the node's address on its TAP and starts what speaks from it.
    async fn configure_address(&mut self, id: NetworkId) {
        let me = self.me;
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let Some(address) = member.address() else {
            return;
        };
        if member.configured == Some(address) {
            return;
        }
        if let Some(old) = member.configured.take() {
            let prefix = member.subnet().prefix_len();
            if let Err(error) = self
                .netlink
                .remove_address(member.tap_index, IpAddr::V4(old), prefix)
                .await
            {
                warn!(%error, "cannot remove the former address");
            }
        }
        let subnet = member.subnet();
        if let Err(error) = self
            .netlink
            .add_address(member.tap_index, IpAddr::V4(address), subnet.prefix_len())
            .await
        {
            member.problem = Some(format!("the address cannot be set: {error}"));
            return;
        }
        member.configured = Some(address);
        member.problem = None;
        let listen = [
            (IpAddr::V4(address), 53).into(),
            (IpAddr::V6(me.address6(id)), 53).into(),
        ];
        match DnsServer::start(&listen, member.names.clone()).await {
            Ok(dns) => member.dns = Some(dns),
            Err(error) => warn!(%error, "names are not served"),
        }
        self.configure_dhcp(id);
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        info!(network = ?id, %address, tap = member.tap, "address set");
    }

    /// Tells those who wait for it that the network is ready.
    pub(super) fn answer_if_ready(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        if !member.is_ready() || member.waiting.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut member.waiting);
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        for reply in waiting {
            answer(reply, Ok(self.network_status(member)));
        }
    }

    /// What guests are told when they ask for an address.
    pub(super) fn configure_dhcp(&mut self, id: NetworkId) {
        let mac = self.me.host_mac();
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let Some(address) = member.configured else {
            return;
        };
        let config = dhcp_config(member.directory.network().document(), address, mac);
        let routes = member.lan_routes.iter();
        let routes = routes
            .map(|(subnet, via)| Route {
                destination: *subnet,
                via: *via,
            })
            .collect();
        member.dhcp.set_config(DhcpConfig { routes, ..config });
    }

    async fn unconfigure_address(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let Some(old) = member.configured.take() else {
            return;
        };
        member.problem = Some("the address lease ended; a new one is being claimed".into());
        member.dns = None;
        let prefix = member.subnet().prefix_len();
        if let Err(error) = self
            .netlink
            .remove_address(member.tap_index, IpAddr::V4(old), prefix)
            .await
        {
            warn!(%error, "cannot remove the address whose lease ended");
        }
    }

    /// Begins to hold a block for guests: `stored` from an earlier run, or a new one.
    pub(super) fn hold_block(&mut self, id: NetworkId, stored: Option<LeaseCert>) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let have = member.blocks().iter().map(|block| block.range).collect();
        let key = HolderId(member.holders.keys().last().map_or(1, |last| last.0 + 1));
        let holder = LeaseHolder::new(
            self.identity.clone(),
            Want::Block { have },
            stored,
            Instant::now(),
            unix_now(),
        );
        member.holders.insert(key, holder);
    }

    /// Whether a block is being claimed that is not held yet.
    pub(super) fn awaits_block(&self, id: NetworkId) -> bool {
        let Some(member) = self.networks.get(&id) else {
            return false;
        };
        member
            .holders
            .iter()
            .any(|(key, holder)| *key != OWN_ADDRESS && holder.lease().is_none())
    }

    fn tell_dhcp_blocks(&mut self, id: NetworkId) {
        if let Some(member) = self.networks.get_mut(&id) {
            let blocks = member.blocks();
            member.dhcp.set_blocks(&blocks, Instant::now(), unix_now());
        }
    }

    /// Gives everything back, on leaving.
    pub(super) async fn release_leases(&mut self, id: NetworkId) {
        let (now, unix) = (Instant::now(), unix_now());
        if let Some(member) = self.networks.get_mut(&id) {
            for holder in member.holders.values_mut() {
                holder.release(now, unix);
            }
        }
        self.drain_holders(id).await;
    }

    /// Asks for a new membership certificate from half of the old one's time on.
    pub(super) fn renew_membership_if_due(&mut self, id: NetworkId, now: Instant, unix: u64) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let due = unix + MEMBERSHIP_RENEW_BEFORE >= member.membership.expires;
        if !due || member.renewing || member.renew_retry_at.is_some_and(|at| at > now) {
            return;
        }
        member.renewing = true;
        let transaction = Transaction::RenewMembership { unix };
        self.ask_registrar(id, Asker::Membership, transaction);
    }

    /// A registrar renewed our membership, or did not.
    fn handle_membership_reply(&mut self, id: NetworkId, reply: Option<Reply>) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        member.renewing = false;
        member.renew_retry_at = Some(Instant::now() + MEMBERSHIP_RETRY);
        let Some(Reply::Member(cert)) = reply else {
            return;
        };
        let sound = member
            .directory
            .network()
            .verify_membership(&cert, unix_now())
            .is_ok()
            && cert.member == self.me;
        if sound {
            member.membership = cert;
            member.publish_soon();
            self.keep(id);
        }
    }

    /// Leases of this node and what it learnt of others'.
    pub(super) fn known_leases(&self, id: NetworkId) -> Vec<LeaseCert> {
        let Some(member) = self.networks.get(&id) else {
            return Vec::new();
        };
        let others = member
            .directory
            .peers()
            .flat_map(|record| record.leases.iter().cloned());
        let mut leases: Vec<_> = member.leases().into_iter().chain(others).collect();
        leases.sort_by_key(|cert| match cert.subject {
            Subject::Address(address) => (address, 0),
            Subject::Block(block) => (block.base(), 1),
        });
        leases
    }
}

impl super::membership::Member {
    /// Where the registrars are, best first: whoever let us in, then by their records.
    pub(super) fn registrar_points(&self) -> Vec<ControlPoint> {
        let group = &self.directory.network().group().voters;
        group
            .iter()
            .map(|peer| ControlPoint {
                peer: *peer,
                addresses: self.control_addresses(*peer),
            })
            .collect()
    }

    /// How control connections reach a member.
    pub(super) fn control_addresses(&self, peer: PeerId) -> Vec<String> {
        let mut addresses = self
            .directory
            .get(peer)
            .map(|record| record.control.clone())
            .unwrap_or_default();
        let stored = self
            .registrars
            .iter()
            .filter(|point| point.peer == peer)
            .flat_map(|point| &point.addresses);
        for address in stored {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }
}

/// The first answer of any registrar.
async fn ask_any(swarm: &SwarmHandle, points: &[ControlPoint], request: Request) -> Option<Reply> {
    let payload = request.encode();
    for point in points {
        let asked = tokio::time::timeout(
            REPLY_WITHIN,
            swarm.request(point.peer, &point.addresses, payload.clone()),
        )
        .await;
        let Ok(Ok(bytes)) = asked else { continue };
        match Response::decode(&bytes) {
            Ok(Response::Lease(reply)) => return Some(*reply),
            Ok(Response::Refused(refusal)) => return Some(Reply::Refused(refusal)),
            Ok(_) | Err(_) => {}
        }
    }
    None
}
