//! Runs the registrar core: puts its votes on disk before they count, carries its messages, and takes its answers to
//! whoever asked.

use super::{
    actor::{Done, Node},
    membership::HolderId,
    unix_now,
};
use crate::state::Dir;
use dht::{
    identity::Identity,
    lease::{LeaseCert, Refusal, Registrar, RegistrarEvent, Reply, Transaction},
    membership::MembershipCert,
    message::{Admission, Request, Response},
    network::Network,
    record::ControlPoint,
};
use overlay_types::{NetworkId, PeerId};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

/// Votes by register.
const VOTES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("votes");
/// The file's name in the network's directory.
const FILE: &str = "registrar.redb";
/// Transactions of others that may be under way.
const PENDING_MAX: usize = 256;
/// How long members are asked what they hold, after a start.
const ASK_WITHIN: Duration = Duration::from_secs(2);

/// Who gets the outcome of a transaction.
pub(super) enum ReplyTo {
    /// A newcomer.
    Admission(oneshot::Sender<Vec<u8>>),
    /// Another member.
    Member(oneshot::Sender<Vec<u8>>),
    /// This node.
    Own(Asker),
}

/// What in this node asks a registrar.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asker {
    /// One of its lease holders.
    Holder(HolderId),
    /// Its membership, which is to be renewed.
    Membership,
}

/// The registrar core with its disk.
pub(super) struct RegistrarShell {
    pub(super) core: Registrar,
    store: Database,
    pending: BTreeMap<u64, ReplyTo>,
    next_id: u64,
}

impl RegistrarShell {
    /// Opens the votes on disk. `fresh`: the network was just made.
    pub(super) fn open(
        identity: &Identity,
        network: &Network,
        dir: &Dir,
        fresh: bool,
        rng: &mut ChaCha20Rng,
    ) -> Result<Self, String> {
        let path = dir.path(FILE);
        let damaged = |why: String| {
            format!(
                "the registrar's votes in {} cannot be read ({why}); they are never guessed: restore the file from the newest backup",
                path.display()
            )
        };
        let store = Database::create(&path).map_err(|e| damaged(e.to_string()))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))
            .map_err(|e| damaged(e.to_string()))?;
        let records = read_all(&store).map_err(|e| damaged(e.to_string()))?;
        let rng = ChaCha20Rng::from_rng(rng);
        let core = Registrar::new(
            identity.clone(),
            network.clone(),
            records,
            fresh,
            rng,
            Instant::now(),
        )
        .map_err(|e| damaged(e.to_string()))?;
        Ok(Self {
            core,
            store,
            pending: BTreeMap::new(),
            next_id: 1,
        })
    }

    /// Runs one transaction of a group of one to its end.
    pub(super) fn transact_at_once(
        &mut self,
        from: PeerId,
        transaction: Transaction,
    ) -> Result<MembershipCert, String> {
        self.core
            .handle_transaction(0, from, transaction, Instant::now(), unix_now());
        while let Some(event) = self.core.poll_event() {
            match event {
                RegistrarEvent::Persist { id, records } => self.persist(id, &records)?,
                RegistrarEvent::Reply { reply, .. } => {
                    return match *reply {
                        Reply::Member(cert) => Ok(cert),
                        Reply::Refused(refusal) => Err(refusal.to_string()),
                        Reply::Lease(_) | Reply::Released => {
                            Err("the registrar answered something else".into())
                        }
                    };
                }
                RegistrarEvent::AskMembers | RegistrarEvent::RolledBack => {}
            }
        }
        Err("the registrar did not answer".into())
    }

    /// On disk, then told so.
    fn persist(&mut self, id: u64, records: &[Entry]) -> Result<(), String> {
        write_all(&self.store, records)
            .map_err(|e| format!("cannot write the registrar's votes: {e}"))?;
        self.core.handle_persisted(id, Instant::now(), unix_now());
        Ok(())
    }

    /// Begins a transaction; `Err` gives the reply-to back when too many are under way.
    pub(super) fn begin(
        &mut self,
        from: PeerId,
        transaction: Transaction,
        reply_to: ReplyTo,
    ) -> Result<(), ReplyTo> {
        if self.pending.len() >= PENDING_MAX {
            return Err(reply_to);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.pending.insert(id, reply_to);
        self.core
            .handle_transaction(id, from, transaction, Instant::now(), unix_now());
        Ok(())
    }
}

/// A key of the store with what it holds.
type Entry = (Vec<u8>, Vec<u8>);

fn read_all(store: &Database) -> Result<Vec<Entry>, redb::Error> {
    let write = store.begin_write()?;
    write.open_table(VOTES)?;
    write.commit()?;
    let read = store.begin_read()?;
    let table = read.open_table(VOTES)?;
    let mut records = Vec::new();
    for entry in table.iter()? {
        let (key, value) = entry?;
        records.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(records)
}

fn write_all(store: &Database, records: &[Entry]) -> Result<(), redb::Error> {
    let mut write = store.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    {
        let mut table = write.open_table(VOTES)?;
        for (key, value) in records {
            table.insert(key.as_slice(), value.as_slice())?;
        }
    }
    write.commit()?;
    Ok(())
}

impl Node {
    /// Does what the registrar of a network wants done.
    pub(super) fn drain_registrar(&mut self, id: NetworkId) {
        loop {
            let Some(shell) = self
                .networks
                .get_mut(&id)
                .and_then(|member| member.registrar.as_mut())
            else {
                return;
            };
            if let Some((to, message)) = shell.core.poll_transmit() {
                self.send_to_voter(id, to, Request::Registrar(Box::new(message)));
            } else if let Some(event) = shell.core.poll_event() {
                self.handle_registrar_event(id, event);
            } else {
                return;
            }
        }
    }

    fn send_to_voter(&self, id: NetworkId, to: PeerId, request: Request) {
        let addresses = self
            .networks
            .get(&id)
            .map(|member| member.control_addresses(to))
            .unwrap_or_default();
        let swarm = self.swarm.clone();
        tokio::spawn(async move {
            // One-way: the core repeats what is not answered.
            let _unanswered = swarm.request(to, &addresses, request.encode()).await;
        });
    }

    fn handle_registrar_event(&mut self, id: NetworkId, event: RegistrarEvent) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let Some(shell) = &mut member.registrar else {
            return;
        };
        match event {
            RegistrarEvent::Persist { id, records } => {
                if let Err(why) = shell.persist(id, &records) {
                    error!(%why, "the registrar stops: its votes cannot be kept");
                    member.registrar = None;
                    member.problem = Some(why);
                }
            }
            RegistrarEvent::Reply {
                id: transaction,
                reply,
            } => {
                if let Some(reply_to) = shell.pending.remove(&transaction) {
                    self.answer_transaction(id, reply_to, *reply);
                }
            }
            RegistrarEvent::AskMembers => self.ask_members(id),
            RegistrarEvent::RolledBack => {
                error!("the registrar's votes are older than what it has signed; it votes no more");
                member.problem = Some("this registrar's votes are older than what it has signed (a restored backup?), so it grants nothing; put the newest copy of its state directory back".into());
            }
        }
    }

    fn answer_transaction(&mut self, id: NetworkId, reply_to: ReplyTo, reply: Reply) {
        match reply_to {
            ReplyTo::Own(asker) => self.handle_registrar_reply(id, asker, Some(reply)),
            ReplyTo::Member(to) => {
                let _gone = to.send(Response::Lease(Box::new(reply)).encode());
            }
            ReplyTo::Admission(to) => {
                let response = match reply {
                    Reply::Member(cert) => self.welcome(id, cert),
                    Reply::Refused(refusal) => Response::Refused(refusal),
                    Reply::Lease(_) | Reply::Released => Response::Refused(Refusal::Busy),
                };
                let _gone = to.send(response.encode());
            }
        }
    }

    /// A newcomer was certified: give it what members share, and tell the others.
    fn welcome(&mut self, id: NetworkId, cert: MembershipCert) -> Response {
        let me = ControlPoint {
            peer: self.me,
            addresses: self.control_addresses.clone(),
        };
        let Some(member) = self.networks.get_mut(&id) else {
            return Response::NotHere;
        };
        let newcomer = cert.member;
        if let Err(error) = member.directory.insert_member(cert.clone(), unix_now()) {
            warn!(%error, "our own certificate does not hold");
            return Response::Refused(Refusal::Busy);
        }
        info!(network = ?id, peer = ?newcomer, name = %cert.name, "admitted");
        let network = member.directory.network();
        let admission = Admission {
            genesis: network.genesis().clone(),
            documents: network.documents().to_vec(),
            membership: cert.clone(),
            secret: member.secret.clone(),
            roster: member.directory.roster(0),
            registrars: vec![me],
        };
        self.push_to_members(
            id,
            newcomer,
            &Request::PushMembers {
                network: id,
                members: vec![cert],
            },
        );
        Response::Admitted(Box::new(admission))
    }

    /// A registrar that started again asks the members what it granted them.
    fn ask_members(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let peers: Vec<_> = member
            .directory
            .members()
            .map(|cert| cert.member)
            .filter(|peer| *peer != self.me)
            .collect();
        let targets: Vec<_> = peers
            .into_iter()
            .map(|peer| (peer, member.control_addresses(peer)))
            .collect();
        let swarm = self.swarm.clone();
        self.job(async move {
            let ask = |(peer, addresses): (PeerId, Vec<String>)| {
                let swarm = swarm.clone();
                async move {
                    let request = Request::HighestCertificates { network: id }.encode();
                    let bytes =
                        tokio::time::timeout(ASK_WITHIN, swarm.request(peer, &addresses, request))
                            .await
                            .ok()?
                            .ok()?;
                    match Response::decode(&bytes) {
                        Ok(Response::Certificates(certificates)) => Some(certificates),
                        _ => None,
                    }
                }
            };
            let answers = futures::future::join_all(targets.into_iter().map(ask)).await;
            Done::Certificates {
                network: id,
                certificates: answers.into_iter().flatten().collect(),
            }
        });
    }

    /// Members told what they hold.
    pub(super) fn handle_certificates(&mut self, id: NetworkId, certificates: &[Vec<LeaseCert>]) {
        if let Some(shell) = self
            .networks
            .get_mut(&id)
            .and_then(|member| member.registrar.as_mut())
        {
            for of_one in certificates {
                shell.core.handle_certificates(of_one);
            }
            shell.core.handle_members_asked(Instant::now(), unix_now());
        }
    }
}
