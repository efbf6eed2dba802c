//! Publishes this node's record and learns the others': through sealed slots of the DHT, by pushes between members, and by
//! asking the registrars who is in the network.

use super::{
    actor::{Done, Node},
    membership::Member,
    unix_ms, unix_now,
};
use dht::{
    membership::MembershipCert,
    message::{Request, Response},
    record::{
        CANDIDATES_MAX, CONTROL_ADDRESSES_MAX, ControlPoint, GUESTS_MAX, Guest, LEASES_MAX,
        NodeRecord, RendezvousRecord, decode_node_record,
    },
    signed::{Signable, Signed, Verified},
    slot::{SlotKey, SlotName, SlotValue},
    swarm::SwarmHandle,
};
use overlay_types::{Candidate, NetworkId, PeerId};
use std::{
    net::IpAddr,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tracing::{debug, warn};
use tunnel::engine::Command;

/// How long a record is believed.
const RECORD_SECONDS: u64 = 2 * 3600;
/// How often it is put again, so that the DHT's churn cannot lose it.
const REPUBLISH: Duration = Duration::from_secs(20 * 60);
/// How soon it is tried again when nobody took it.
const REPUBLISH_RETRY: Duration = Duration::from_secs(2);
/// How often the registrars are asked for news that no push brought.
pub(super) const SYNC_EVERY: Duration = Duration::from_secs(300);
/// How soon again while members' records are missing, at first; then after twice as long each time.
pub(super) const SYNC_RETRY: Duration = Duration::from_millis(500);
/// So many known records are read again at a time: a push may have been lost.
const REREAD_MAX: usize = 16;
/// How soon again when an address is asked for that nobody seems to have.
const REREAD_WANTED: Duration = Duration::from_secs(10);
/// And how soon members are asked for again of whom no address is known: it may be theirs.
const SYNC_WANTED: Duration = Duration::from_secs(1);
/// Members asked at the same time.
const AT_ONCE: usize = 8;
/// How long after a push that failed it is made again: a member that is there may have been hard to reach for a moment.
const PUSH_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// How long a member is waited for.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// How long changes of what is known of the peers are gathered before they are written: each write is synced, 14 ms where it was
/// measured, and in a network of 64 everybody's news come at once.
const PEERS_SAVE_DELAY: Duration = Duration::from_secs(1);
/// Up to so many members, sessions with all of them are kept; beyond that they are made when frames want to go there.
const EAGER_MAX: usize = 64;

impl Node {
    /// Something in the records of all networks changed.
    pub(super) fn publish_soon(&mut self) {
        for member in self.networks.values_mut() {
            member.publish_soon();
        }
    }

    /// Signs and spreads the record once its time has come.
    pub(super) fn publish_if_due(&mut self, id: NetworkId, now: Instant) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        if member.publish_at.is_none_or(|at| at > now) {
            return;
        }
        if let Some(published) = self.publish(id, now) {
            self.job(published);
        }
    }

    /// Signs the record and tells the members we know; what is returned puts it into the DHT.
    fn publish(
        &mut self,
        id: NetworkId,
        now: Instant,
    ) -> Option<impl Future<Output = Done> + use<>> {
        self.networks.get_mut(&id)?.publish_at = Some(now + REPUBLISH);
        let record = self.make_record(id)?;
        let me = self.me;
        let member = self.networks.get_mut(&id)?;
        member.own_record = Some(record.signed().clone());
        let root = member.secret.slot_root(id);
        let mut values = vec![(
            SlotKey::derive(&root, &SlotName::Node(me)),
            record.signed().to_bytes(),
            RECORD_SECONDS,
        )];
        if member.registrar.is_some() {
            values.extend(rendezvous(
                &self.identity,
                member,
                me,
                &self.control_addresses,
            ));
        }
        let sealed: Vec<_> = values
            .iter()
            .filter_map(|(key, content, seconds)| {
                key.seal(content, unix_ms(), *seconds, &mut self.rng).ok()
            })
            .map(|value| value.encode())
            .collect();
        let swarm = self.swarm.clone();
        self.push_to_members(
            id,
            me,
            &Request::PushRecord {
                network: id,
                record: Box::new(record.signed().clone()),
            },
        );
        Some(async move {
            let puts = sealed.into_iter().map(|value| swarm.put_slot(value));
            let results = futures::future::join_all(puts).await;
            if let Some(Err(error)) = results.iter().find(|result| result.is_err()) {
                debug!(%error, "a record was not stored");
            }
            Done::Published {
                network: id,
                stored: results.iter().all(Result::is_ok),
            }
        })
    }

    /// Waits until the record as it is now is where everybody can read it, so that what it claims is seen by whoever looks.
    pub(super) async fn publish_and_wait(&mut self, id: NetworkId) {
        let Some(published) = self.publish(id, Instant::now()) else {
            return;
        };
        if let Ok(Done::Published { network, stored }) =
            tokio::time::timeout(ASK_WITHIN, published).await
        {
            self.handle_published(network, stored);
        }
    }

    /// Reads everybody's record anew before something is decided by them.
    pub(super) async fn reread_now(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let root = member.secret.slot_root(id);
        let peers = member.directory.members().map(|cert| cert.member);
        let slots = peers
            .filter(|peer| *peer != self.me)
            .take(EAGER_MAX)
            .map(|peer| (peer, SlotKey::derive(&root, &SlotName::Node(peer))))
            .collect();
        let reading = read_slots(&self.swarm, slots);
        if let Ok(records) = tokio::time::timeout(ASK_WITHIN, reading).await {
            self.take_records(id, records);
        }
    }

    /// The DHT took our records, or did not.
    pub(super) fn handle_published(&mut self, id: NetworkId, stored: bool) {
        if let Some(member) = self.networks.get_mut(&id)
            && !stored
        {
            let retry = Instant::now() + REPUBLISH_RETRY;
            member.publish_at = Some(member.publish_at.map_or(retry, |at| at.min(retry)));
        }
    }

    /// The record as things stand; `None` while there is nothing that others could use.
    fn make_record(&self, id: NetworkId) -> Option<Verified<NodeRecord>> {
        let member = self.networks.get(&id)?;
        let mut guests: Vec<_> = member
            .guests
            .iter()
            .filter(|(_, guest)| {
                member
                    .lan
                    .as_ref()
                    .is_none_or(|lan| lan.id != Some(guest.port))
            })
            .filter_map(|(mac, guest)| {
                Some(Guest {
                    mac: *mac,
                    ip: guest.ip?,
                    name: guest.name.clone(),
                })
            })
            .collect();
        guests.truncate(GUESTS_MAX);
        let mut leases = member.leases();
        leases.truncate(LEASES_MAX);
        let unix_ms = unix_ms();
        let mut record = NodeRecord {
            peer: self.me,
            network: id,
            seq: unix_ms,
            expires: unix_ms / 1000 + RECORD_SECONDS,
            keys: member.keys.public(),
            candidates: self
                .candidates
                .iter()
                .copied()
                .take(CANDIDATES_MAX)
                .collect::<Vec<Candidate>>(),
            control: self
                .control_addresses
                .iter()
                .take(CONTROL_ADDRESSES_MAX)
                .cloned()
                .collect(),
            membership: member.membership.clone(),
            leases,
            guests,
            nat: (
                self.nat.behaviour.mapping.as_str().into(),
                self.nat.behaviour.filtering.as_str().into(),
            ),
            lan: member.lan.as_ref().map(|lan| lan.record),
        };
        loop {
            match Verified::sign(record.clone(), &self.identity) {
                Ok(signed) => return Some(signed),
                // Guests are what grows; those left out are still found by the address they ask from.
                Err(error) if record.guests.is_empty() => {
                    warn!(%error, max = NodeRecord::SIZE_MAX, "this node's record is too large");
                    return None;
                }
                Err(_) => {
                    record.guests.pop();
                }
            }
        }
    }

    /// Sends a request to every other member, a few at a time, and forgets who did not take it: the DHT has it too.
    pub(super) fn push_to_members(&self, id: NetworkId, except: PeerId, request: &Request) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let peers = member
            .directory
            .members()
            .map(|cert| cert.member)
            .filter(|peer| *peer != self.me && *peer != except);
        self.push(id, peers.collect(), request);
    }

    fn push(&self, id: NetworkId, peers: Vec<PeerId>, request: &Request) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let targets: Vec<_> = peers
            .into_iter()
            .map(|peer| (peer, member.control_addresses(peer)))
            .collect();
        let (swarm, payload) = (self.swarm.clone(), request.encode());
        tokio::spawn(async move {
            let mut missed = push_once(&swarm, targets, &payload).await;
            for pause in PUSH_AGAIN {
                if missed.is_empty() {
                    return;
                }
                tokio::time::sleep(pause).await;
                missed = push_once(&swarm, missed, &payload).await;
            }
        });
    }

    /// Asks registrars and the DHT for news once it is time.
    pub(super) fn sync_if_due(&mut self, id: NetworkId, now: Instant) {
        let me = self.me;
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        if member.sync_at > now {
            return;
        }
        member.sync_at = now + SYNC_EVERY;
        if member.syncing {
            member.sync_again = true;
            return;
        }
        member.syncing = true;
        let mut unknown = member.missing(unix_now());
        if member.reread_at <= now {
            member.reread_at = now + SYNC_EVERY;
            member.reread_last = Some(now);
            let again = member.to_read_again();
            member.reread_after = again.last().copied();
            unknown.extend(again);
            unknown.sort();
            unknown.dedup();
        }
        let root = member.secret.slot_root(id);
        let slots: Vec<_> = unknown
            .iter()
            .map(|peer| (*peer, SlotKey::derive(&root, &SlotName::Node(*peer))))
            .collect();
        let roster = Request::Roster {
            network: id,
            membership: Box::new(member.membership.clone()),
            since: member.roster_next,
        };
        let points: Vec<_> = member
            .registrar_points()
            .into_iter()
            .filter(|point| point.peer != me)
            .collect();
        let known: Vec<_> = member.directory.members().map(|cert| cert.member).collect();
        let (swarm, membership) = (self.swarm.clone(), member.membership.clone());
        self.job(async move {
            let (page, mut records) = tokio::join!(
                ask_roster(&swarm, &points, &roster),
                read_slots(&swarm, slots)
            );
            let (members, next) =
                page.map_or((Vec::new(), None), |page| (page.members, Some(page.next)));
            let newcomers: Vec<_> = members
                .iter()
                .map(|cert| cert.member)
                .filter(|peer| *peer != me && !known.contains(peer))
                .collect();
            let slots = newcomers
                .iter()
                .map(|peer| (*peer, SlotKey::derive(&root, &SlotName::Node(*peer))))
                .collect();
            records.extend(read_slots(&swarm, slots).await);
            // Whoever's slot was empty may have told a registrar.
            let found: Vec<_> = records.iter().map(Verified::author).collect();
            let missing: Vec<_> = unknown
                .into_iter()
                .chain(newcomers)
                .filter(|peer| !found.contains(peer))
                .take(AT_ONCE)
                .collect();
            records.extend(ask_records(&swarm, &points, id, &membership, &missing).await);
            Done::Synced {
                network: id,
                members,
                records,
                next,
            }
        });
    }

    /// News came.
    pub(super) fn handle_synced(
        &mut self,
        id: NetworkId,
        members: Vec<MembershipCert>,
        records: Vec<Verified<NodeRecord>>,
        next: Option<u64>,
    ) {
        let (now, unix) = (Instant::now(), unix_now());
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        for cert in members {
            member.changed |= member.directory.insert_member(cert, unix).unwrap_or(false);
        }
        let missing_before = member.missing(unix).len();
        self.take_records(id, records);
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        member.syncing = false;
        let missing = member.missing(unix).len();
        let waits = missing > 0 || next.is_none() && member.registrar.is_none();
        member.roster_next = next.unwrap_or(member.roster_next);
        if !waits || missing < missing_before {
            member.sync_retry = SYNC_RETRY;
        }
        if next.is_some() && member.directory.unknown().next().is_none() {
            member.acquainted_by = None;
        }
        if std::mem::take(&mut member.sync_again) {
            member.sync_at = now;
        } else if waits {
            member.sync_at = member.sync_at.min(now + member.sync_retry);
            member.sync_retry = (member.sync_retry * 2).min(SYNC_EVERY);
        }
    }

    /// Members told of themselves. Whoever was unknown until now may not know us either: it is told.
    pub(super) fn take_records(&mut self, id: NetworkId, records: Vec<Verified<NodeRecord>>) {
        let unix = unix_now();
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let mut new = Vec::new();
        for record in records {
            let author = record.author();
            let was_known = member.directory.get(author).is_some();
            let taken = member.directory.insert(record, unix).unwrap_or(false);
            member.changed |= taken;
            if taken && !was_known {
                new.push(author);
            }
        }
        if let Some(record) = member.own_record.clone().filter(|_| !new.is_empty()) {
            let request = Request::PushRecord {
                network: id,
                record: Box::new(record),
            };
            self.push(id, new, &request);
        }
    }

    /// Somebody with the network's secret wants a session whom the data plane does not know.
    pub(super) fn find_by_data_key(&mut self, id: NetworkId, x25519: [u8; 32]) {
        if let Some(member) = self.networks.get_mut(&id) {
            if member.directory.by_data_key(&x25519).is_some() {
                member.changed = true; // told to the data plane in a moment
            } else {
                member.sync_at = Instant::now();
            }
        }
    }

    /// Nothing is bound to an address that a guest asks for.
    pub(super) fn find_address(&mut self, id: NetworkId, ip: IpAddr) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        if member.directory.by_address(ip, unix_now()).is_some() {
            member.changed = true;
            return;
        }
        // Perhaps its holder's word was lost on the way to us; whoever asks will ask again.
        let (now, unix) = (Instant::now(), unix_now());
        let ours = match ip {
            IpAddr::V4(ip) if member.subnet().contains(ip) => Some(ip),
            _ => None,
        };
        let is_past = |last: Option<Instant>, pause| last.is_none_or(|last| last + pause <= now);
        let mut likely = Vec::new();
        if let Some(ip) = ours {
            if is_past(member.reread_last, REREAD_WANTED) {
                member.reread_at = now;
                member.sync_at = now;
            }
            if is_past(member.wanted_last, SYNC_WANTED) {
                member.wanted_last = Some(now);
                likely = member.directory.likely_holders(ip, unix);
                if !member.missing(unix).is_empty() {
                    member.sync_at = now;
                }
            }
        }
        for peer in likely {
            self.refresh_record(id, peer);
        }
        self.tell(Command::NoSuchAddress { network: id, ip });
    }

    /// A session ended: perhaps the peer has other ways in now, which its slot tells.
    pub(super) fn refresh_record(&mut self, id: NetworkId, peer: PeerId) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let key = SlotKey::derive(&member.secret.slot_root(id), &SlotName::Node(peer));
        let swarm = self.swarm.clone();
        self.job(async move {
            let records = read_slots(&swarm, vec![(peer, key)]).await;
            Done::Refreshed {
                network: id,
                records,
            }
        });
    }

    /// Calls a member that does not answer in the data plane: it sends its record again if it is there. That is as good as
    /// another record for what may go to the addresses in it.
    pub(super) fn ask_itself(&mut self, id: NetworkId, peer: PeerId) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let point = ControlPoint {
            peer,
            addresses: member.control_addresses(peer),
        };
        let (swarm, membership) = (self.swarm.clone(), member.membership.clone());
        self.job(async move {
            let records = ask_records(&swarm, &[point], id, &membership, &[peer]).await;
            Done::Spoke {
                network: id,
                record: records.into_iter().find(|record| record.author() == peer),
            }
        });
    }

    /// A member sent its record itself.
    pub(super) fn handle_spoke(&mut self, id: NetworkId, record: Verified<NodeRecord>) {
        let Some(member) = self.networks.get(&id) else {
            return;
        };
        let known = member.directory.get(record.author()).map(|known| known.seq);
        if known == Some(record.seq) {
            let (eager, paid) = (member.told_eager, record.signed_bytes());
            self.tell(upsert(id, &record, eager, paid));
        } else {
            self.take_records(id, vec![record]);
        }
    }

    /// Tells the data plane who the peers are and which addresses are bound, and spreads the names.
    pub(super) async fn refresh_if_changed(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        if !std::mem::take(&mut member.changed) {
            return;
        }
        let news = member.directory.take_news();
        let eager = member.directory.members().count() <= EAGER_MAX;
        let is_told = std::mem::replace(&mut member.told_eager, eager) == eager;
        let records = if is_told {
            news.clone()
        } else {
            member.directory.peers().cloned().collect()
        };
        let is_news =
            |record: &Verified<NodeRecord>| news.iter().any(|new| new.peer == record.peer);
        let commands: Vec<_> = records
            .iter()
            .map(|record| {
                let is_paid = is_told || is_news(record);
                let paid = if is_paid { record.signed_bytes() } else { 0 };
                upsert(id, record, eager, paid)
            })
            .collect();
        member
            .peers_save_at
            .get_or_insert_with(|| Instant::now() + PEERS_SAVE_DELAY);
        for command in commands {
            self.tell(command);
        }
        self.tell_bindings(id);
        self.spread_names(id).await;
        self.follow_lan_routes(id).await;
    }

    /// Tells the data plane who has which address, where it does not know.
    pub(super) fn tell_bindings(&mut self, id: NetworkId) {
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let mut bindings = member.directory.bindings(unix_now()).to_vec();
        bindings.extend(member.own_bindings(self.me));
        if bindings != member.told_bindings {
            member.told_bindings.clone_from(&bindings);
            self.tell(Command::SetBindings {
                network: id,
                bindings,
            });
        }
    }

    /// What was known of the peers before a restart; their word still holds if it has not expired.
    pub(super) fn restore_peers(&mut self, id: NetworkId) {
        let unix = unix_now();
        let Some(member) = self.networks.get_mut(&id) else {
            return;
        };
        let stored = match member
            .dir
            .load::<(Vec<MembershipCert>, Vec<Signed<NodeRecord>>)>("peers")
        {
            Ok(stored) => stored.unwrap_or_default(),
            Err(error) => {
                warn!(%error, "what was known of the peers is lost; they are looked up again");
                return;
            }
        };
        for cert in stored.0 {
            let _expired = member.directory.insert_member(cert, unix);
        }
        for record in stored
            .1
            .into_iter()
            .filter_map(|record| record.verify().ok())
        {
            let _expired = member.directory.insert(record, unix);
        }
        member.changed = true;
    }
}

impl Member {
    /// Writes what is known of the peers, where that changed since it was written last.
    pub(super) fn save_peers(&mut self) {
        if self.peers_save_at.take().is_none() {
            return;
        }
        let records = self.directory.peers();
        let records: Vec<_> = records.map(|record| record.signed().clone()).collect();
        let members: Vec<_> = self.directory.members().cloned().collect();
        if let Err(error) = self.dir.save("peers", &(members, records)) {
            warn!(%error, "what is known of the peers is not kept");
        }
    }

    /// Members of whom no record is known, or one from before they held their address.
    fn missing(&self, unix: u64) -> Vec<PeerId> {
        let addressless = self
            .directory
            .peers()
            .map(|record| record.peer)
            .filter(|peer| self.directory.address_of(*peer, unix).is_none());
        let mut missing: Vec<_> = self.directory.unknown().chain(addressless).collect();
        missing.sort();
        missing
    }

    /// The next few whose records are read again.
    fn to_read_again(&self) -> Vec<PeerId> {
        let mut peers: Vec<_> = self.directory.peers().map(|record| record.peer).collect();
        peers.sort();
        let done = peers.partition_point(|peer| Some(*peer) <= self.reread_after);
        peers.rotate_left(done);
        peers.truncate(REREAD_MAX);
        peers
    }
}

/// What a registrar puts behind the rendezvous keys of all invites that may be alive.
fn rendezvous(
    identity: &dht::identity::Identity,
    member: &Member,
    me: PeerId,
    control: &[String],
) -> Vec<(SlotKey, Vec<u8>, u64)> {
    let unix_ms = unix_ms();
    let record = RendezvousRecord {
        network: member.id,
        seq: unix_ms,
        expires: unix_ms / 1000 + RECORD_SECONDS,
        registrars: vec![ControlPoint {
            peer: me,
            addresses: control
                .iter()
                .take(CONTROL_ADDRESSES_MAX)
                .cloned()
                .collect(),
        }],
    };
    let Ok(signed) = Verified::sign(record, identity) else {
        return Vec::new();
    };
    let content = signed.signed().to_bytes();
    let keys = member.secret.rendezvous_keys(member.id, unix_ms / 1000);
    keys.iter()
        .map(|key| {
            (
                SlotKey::derive(key, &SlotName::Rendezvous),
                content.clone(),
                RECORD_SECONDS,
            )
        })
        .collect()
}

async fn ask_roster(
    swarm: &SwarmHandle,
    points: &[ControlPoint],
    request: &Request,
) -> Option<dht::message::RosterPage> {
    for point in points {
        let asked = tokio::time::timeout(
            ASK_WITHIN,
            swarm.request(point.peer, &point.addresses, request.encode()),
        )
        .await;
        if let Ok(Ok(bytes)) = asked
            && let Ok(Response::Roster(page)) = Response::decode(&bytes)
        {
            return Some(page);
        }
    }
    None
}

async fn ask_records(
    swarm: &SwarmHandle,
    points: &[ControlPoint],
    network: NetworkId,
    membership: &MembershipCert,
    peers: &[PeerId],
) -> Vec<Verified<NodeRecord>> {
    let mut records = Vec::new();
    let Some(point) = points.first() else {
        return records;
    };
    for peer in peers {
        let request = Request::GetRecord {
            network,
            membership: Box::new(membership.clone()),
            peer: *peer,
        };
        let asked = tokio::time::timeout(
            ASK_WITHIN,
            swarm.request(point.peer, &point.addresses, request.encode()),
        )
        .await;
        let Ok(Ok(bytes)) = asked else { break };
        if let Ok(Response::Record(Some(record))) = Response::decode(&bytes) {
            records.extend(record.verify());
        }
    }
    records
}

/// What the data plane is told of a peer, for whose record so many bytes came since the last time.
fn upsert(id: NetworkId, record: &NodeRecord, eager: bool, paid: u64) -> Command {
    Command::UpsertPeer {
        network: id,
        peer: record.peer,
        keys: record.keys.clone(),
        candidates: record.candidates.clone(),
        eager,
        paid,
    }
}

/// A member, and where its control connection is had.
type Target = (PeerId, Vec<String>);

/// Makes a request of each; gives those who did not answer.
async fn push_once(swarm: &SwarmHandle, targets: Vec<Target>, payload: &[u8]) -> Vec<Target> {
    let (mut running, mut missed) = (JoinSet::new(), Vec::new());
    let mut note = |done: Option<Result<Option<Target>, _>>| {
        missed.extend(
            done.and_then(Result::<_, tokio::task::JoinError>::ok)
                .flatten(),
        );
    };
    for (peer, addresses) in targets {
        if running.len() >= AT_ONCE {
            note(running.join_next().await);
        }
        let (swarm, payload) = (swarm.clone(), payload.to_vec());
        running.spawn(async move {
            let answer =
                tokio::time::timeout(ASK_WITHIN, swarm.request(peer, &addresses, payload)).await;
            (!matches!(answer, Ok(Ok(_)))).then_some((peer, addresses))
        });
    }
    while let Some(done) = running.join_next().await {
        note(Some(done));
    }
    missed
}

/// Reads members' slots; of each, the newest record that its owner signed.
async fn read_slots(
    swarm: &SwarmHandle,
    slots: Vec<(PeerId, SlotKey)>,
) -> Vec<Verified<NodeRecord>> {
    let read = |(peer, key): (PeerId, SlotKey)| async move {
        let values = swarm.get_slot(key.dht_key()).await;
        let contents = values
            .iter()
            .filter_map(|bytes| key.open(&SlotValue::decode(bytes).ok()?, unix_now()).ok());
        let records = contents
            .filter_map(|content| decode_node_record(&content))
            .filter(|record| record.author() == peer);
        records.max_by_key(|record| record.seq)
    };
    futures::future::join_all(slots.into_iter().map(read))
        .await
        .into_iter()
        .flatten()
        .collect()
}
