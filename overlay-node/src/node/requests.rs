//! Answers what other nodes ask over their authenticated control connections. Whoever is no member of a network is told
//! nothing of it, not even that it is here.

use super::{actor::Node, registrar::ReplyTo, unix_ms, unix_now};
use dht::{
    lease::{Refusal, Transaction},
    membership::MembershipCert,
    message::{Request, Response},
};
use overlay_types::{NetworkId, PeerId};
use std::time::Instant;
use tokio::sync::oneshot;
use tracing::debug;

impl Node {
    /// One question.
    pub(super) fn handle_request(
        &mut self,
        from: PeerId,
        payload: &[u8],
        reply: oneshot::Sender<Vec<u8>>,
    ) {
        let Ok(request) = Request::decode(payload) else {
            debug!(?from, "a request that cannot be read");
            return;
        };
        let response = match request {
            Request::Admit {
                network,
                token,
                name,
                unix,
            } => {
                return self.handle_admit(
                    from,
                    network,
                    Transaction::Admit { token, name, unix },
                    reply,
                );
            }
            Request::Lease {
                network,
                membership,
                transaction,
            } => {
                return self.handle_lease(from, network, *membership, transaction, reply);
            }
            Request::Registrar(message) => self.handle_voter(from, *message),
            Request::Roster {
                network,
                membership,
                since,
            } => self.for_member(from, network, *membership, |node| {
                node.networks
                    .get(&network)
                    .map(|member| Response::Roster(member.directory.roster(since)))
            }),
            Request::GetRecord {
                network,
                membership,
                peer,
            } => self.for_member(from, network, *membership, |node| {
                let me = node.me;
                let member = node.networks.get_mut(&network)?;
                let record = if peer == me {
                    member.own_record.clone()
                } else {
                    member.directory.get(peer).map(|r| r.signed().clone())
                };
                Some(Response::Record(record.map(Box::new)))
            }),
            Request::Documents {
                network,
                membership,
                after,
            } => self.for_member(from, network, *membership, |node| {
                let documents = node.networks.get(&network)?.directory.network().documents();
                let newer = documents
                    .iter()
                    .filter(|document| document.version > after)
                    .take(DOCUMENTS_MAX);
                Some(Response::Documents(newer.cloned().collect()))
            }),
            Request::View {
                network,
                membership,
                peer,
            } => self.for_member(from, network, *membership, |node| {
                let view = node.view(network, peer)?;
                Some(Response::View(Box::new(view)))
            }),
            Request::PushMembers { network, members } => {
                self.handle_push_members(from, network, members)
            }
            Request::PushRecord { network, record } => {
                self.handle_push_record(from, network, *record)
            }
            Request::HighestCertificates { network } => self.highest_certificates(from, network),
            Request::Clock => Response::Clock { unix_ms: unix_ms() },
            Request::FabricInfo | Request::RelayAllocate => Response::NotHere,
        };
        let _gone = reply.send(response.encode());
    }

    /// Runs `f` for an asker that proves to be a member now.
    fn for_member(
        &mut self,
        from: PeerId,
        id: NetworkId,
        cert: MembershipCert,
        f: impl FnOnce(&mut Self) -> Option<Response>,
    ) -> Response {
        if !self.takes_as_member(from, id, cert) {
            return Response::NotHere;
        }
        f(self).unwrap_or(Response::NotHere)
    }

    fn takes_as_member(&mut self, from: PeerId, id: NetworkId, cert: MembershipCert) -> bool {
        let Some(member) = self.networks.get_mut(&id) else {
            return false;
        };
        if cert.member != from {
            return false;
        }
        let known = member
            .directory
            .member(from)
            .is_some_and(|known| known.expires >= cert.expires);
        known || member.directory.insert_member(cert, unix_now()).is_ok()
    }

    fn handle_admit(
        &mut self,
        from: PeerId,
        id: NetworkId,
        transaction: Transaction,
        reply: oneshot::Sender<Vec<u8>>,
    ) {
        let Some(shell) = self
            .networks
            .get_mut(&id)
            .and_then(|member| member.registrar.as_mut())
        else {
            let _gone = reply.send(Response::NotHere.encode());
            return;
        };
        if let Err(ReplyTo::Admission(reply)) =
            shell.begin(from, transaction, ReplyTo::Admission(reply))
        {
            let _gone = reply.send(Response::Busy.encode());
        }
    }

    fn handle_lease(
        &mut self,
        from: PeerId,
        id: NetworkId,
        cert: MembershipCert,
        transaction: Transaction,
        reply: oneshot::Sender<Vec<u8>>,
    ) {
        if !self.takes_as_member(from, id, cert) {
            let _gone = reply.send(Response::Refused(Refusal::NotAMember).encode());
            return;
        }
        let Some(shell) = self
            .networks
            .get_mut(&id)
            .and_then(|member| member.registrar.as_mut())
        else {
            let _gone = reply.send(Response::Refused(Refusal::NotARegistrar).encode());
            return;
        };
        if let Err(ReplyTo::Member(reply)) = shell.begin(from, transaction, ReplyTo::Member(reply))
        {
            let _gone = reply.send(Response::Busy.encode());
        }
    }

    fn handle_voter(&mut self, from: PeerId, message: dht::lease::RegistrarMessage) -> Response {
        let Some(member) = self.networks.get_mut(&message.network) else {
            return Response::NotHere;
        };
        if !member.directory.network().group().contains(from) {
            return Response::NotHere;
        }
        let Some(shell) = &mut member.registrar else {
            return Response::NotHere;
        };
        shell
            .core
            .handle_message(from, message, Instant::now(), unix_now());
        Response::Done
    }

    fn handle_push_members(
        &mut self,
        from: PeerId,
        id: NetworkId,
        members: Vec<MembershipCert>,
    ) -> Response {
        let Some(member) = self.networks.get_mut(&id) else {
            return Response::NotHere;
        };
        if member.directory.member(from).is_none() {
            return Response::NotHere;
        }
        let mut news = false;
        for cert in members {
            news |= member
                .directory
                .insert_member(cert, unix_now())
                .unwrap_or(false);
        }
        if news {
            member.sync_at = Instant::now(); // their records are in the DHT
            member.changed = true;
        }
        Response::Done
    }

    fn handle_push_record(
        &mut self,
        from: PeerId,
        id: NetworkId,
        record: dht::signed::Signed<dht::record::NodeRecord>,
    ) -> Response {
        let Some(member) = self.networks.get_mut(&id) else {
            return Response::NotHere;
        };
        let Ok(record) = record.verify() else {
            return Response::NotHere;
        };
        let author = record.author();
        match member.directory.insert(record, unix_now()) {
            Ok(news) => {
                member.changed |= news;
                if news {
                    debug!(?from, ?author, "record pushed");
                }
                Response::Done
            }
            Err(error) => {
                debug!(?from, ?author, %error, "a pushed record is not taken");
                Response::NotHere
            }
        }
    }

    fn highest_certificates(&self, from: PeerId, id: NetworkId) -> Response {
        match self.networks.get(&id) {
            Some(member) if member.directory.network().group().contains(from) => {
                Response::Certificates(member.leases())
            }
            _ => Response::NotHere,
        }
    }
}

/// Documents in one answer; the asker asks again for more.
const DOCUMENTS_MAX: usize = 8;
