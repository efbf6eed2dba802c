//! What members know of each other: records, written and read, and what the data plane is told of them.

use super::*;

/// How long changes are gathered before they are told to the data plane.
const REFRESH_DELAY: Duration = Duration::from_millis(50);

/// How long changes are gathered before they are published.
const PUBLISH_DELAY: Duration = Duration::from_millis(100);

/// And so much longer for each peer that is known: who is bound where is told as a whole.
const REFRESH_DELAY_PEER: Duration = Duration::from_micros(500);

/// Up to so many peers, sessions with all of them are kept, as the real node does.
const EAGER_MAX: usize = 64;

/// How often a member asks for news, how many known records it reads again then, and how soon again when an address is
/// asked for that nobody seems to have: all as the real node does.
const SYNC_EVERY: Duration = Duration::from_secs(300);
const REREAD_MAX: usize = 16;
const REREAD_WANTED: Duration = Duration::from_secs(10);
const SYNC_WANTED: Duration = Duration::from_secs(1);

/// Members that a record is pushed to at a time, and how long each of them is waited for, as the real node does.
const AT_ONCE: usize = 8;
const PUSH_WITHIN: Duration = Duration::from_secs(5);

/// How long after a push that failed it is made again, as the real node does.
const PUSH_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

impl Overlay {
    pub(super) fn refresh_soon(&mut self, id: MemberId) {
        if !std::mem::replace(&mut self.running(id).is_refresh_planned, true) {
            let known = self.running(id).directory.peers().count() as u32;
            let delay = REFRESH_DELAY + REFRESH_DELAY_PEER * known;
            self.plan(id, delay, Errand::Refresh);
        }
    }

    /// Tells the data plane who the peers are and what is bound where.
    pub(super) fn refresh(&mut self, id: MemberId) {
        let (unix, network) = (self.unix(), self.network.id());
        let running = self.running(id);
        running.is_refresh_planned = false;
        let news = running.directory.take_news();
        let known = running.directory.peers().count().max(running.sync.roster);
        let eager = known <= EAGER_MAX;
        let is_told = std::mem::replace(&mut running.told_eager, eager) == eager;
        let paid = |record: &Verified<NodeRecord>| {
            let is_news = is_told || news.iter().any(|new| new.peer == record.peer);
            if is_news { record.signed_bytes() } else { 0 }
        };
        let upsert =
            |record: &Arc<Verified<NodeRecord>>| upsert(network, record, eager, paid(record));
        let mut commands: Vec<_> = if is_told {
            news.iter().map(upsert).collect()
        } else {
            running.directory.peers().map(upsert).collect()
        };
        let bindings = self.members[id.0].news_of_stations(unix);
        commands.extend(bindings.map(|bindings| Command::SetBindings { network, bindings }));
        let host = self.member(id).host;
        self.world.with_node(host, |node, now| {
            for command in commands {
                node.engine.handle_command(command, now);
            }
        });
    }

    pub(super) fn publish_soon(&mut self, id: MemberId) {
        if !std::mem::replace(&mut self.running(id).is_publish_planned, true) {
            let delay = PUBLISH_DELAY + self.world.random_delay(&self.terms.delay);
            self.plan(id, delay, Errand::Publish);
        }
    }

    /// Writes the member's record into its slot and pushes it to the others.
    pub(super) fn publish(&mut self, id: MemberId) {
        let unix = self.unix();
        self.running(id).is_publish_planned = false;
        if self.member(id).disk.membership.is_none() {
            return; // it is published on admission
        }
        if !self.is_on_dht(id) || self.world.rng.random_bool(self.terms.loss) {
            self.running(id).is_publish_planned = true;
            self.plan(id, RETRY, Errand::Publish);
            return;
        }
        let Some(record) = self.members[id.0].record(&self.network, unix) else {
            return;
        };
        let record = Arc::new(record);
        let host = self.member(id).host;
        let on_island = self
            .world
            .is_partitioned()
            .then(|| self.world.on_island(host));
        self.slots.write(Arc::clone(&record), on_island);
        let mut lanes = [Duration::ZERO; AT_ONCE];
        for other in self.members().filter(|&other| other != id) {
            if self.member(other).disk.membership.is_none() {
                continue;
            }
            let lane = lanes.iter_mut().min().expect("there are some");
            if !self.has_control(host, self.member(other).host) {
                *lane += PUSH_WITHIN;
                continue;
            }
            let delay = self.world.random_delay(&self.terms.delay);
            let mut at = *lane + delay;
            for pause in [Duration::ZERO].into_iter().chain(PUSH_AGAIN) {
                at += pause;
                if !self.world.rng.random_bool(self.terms.loss) {
                    self.plan(other, at, Errand::Pushed(Arc::clone(&record)));
                    break;
                }
            }
            *lane += 2 * delay;
        }
    }

    /// Asks for news now.
    pub(super) fn sync_soon(&mut self, id: MemberId) {
        self.sync_at(id, self.world.now());
    }

    fn sync_at(&mut self, id: MemberId, at: Instant) {
        self.running(id).sync.at = at;
        let wait = at.saturating_duration_since(self.world.now());
        self.plan(id, wait, Errand::Sync);
    }

    /// Asks the registrar who is there, and reads the slots of those of whom no record is known, or one without an address;
    /// and those of a few others, for a push may have been lost.
    pub(super) fn sync_if_due(&mut self, id: MemberId) {
        let (now, unix) = (self.world.now(), self.unix());
        if self.running(id).sync.at > now {
            return; // it was planned anew
        }
        let (me, host) = (self.member(id).peer(), self.member(id).host);
        let owner = self.member(Self::OWNER).host;
        let has_roster = id == Self::OWNER || self.has_control(host, owner);
        let roster = if has_roster {
            self.slots.writers()
        } else {
            Vec::new()
        };
        let running = self.running(id);
        running.sync.roster = running.sync.roster.max(roster.len());
        let directory = &running.directory;
        let is_missing = |peer: &PeerId| {
            *peer != me
                && directory
                    .get(*peer)
                    .is_none_or(|_| directory.address_of(*peer, unix).is_none())
        };
        let mut wanted: Vec<_> = roster.into_iter().filter(is_missing).collect();
        let missing = wanted.len();
        let sync = &mut running.sync;
        if sync.reread_at <= now {
            (sync.reread_at, sync.reread_last) = (now + SYNC_EVERY, Some(now));
            let mut again: Vec<_> = directory.peers().map(|record| record.peer).collect();
            let done = again.partition_point(|peer| Some(*peer) <= sync.reread_after);
            again.rotate_left(done);
            again.truncate(REREAD_MAX);
            sync.reread_after = again.last().copied();
            wanted.extend(again);
        }
        let waits = missing > 0 || !has_roster;
        if !waits || missing < sync.missing {
            sync.retry = SYNC_RETRY;
        }
        sync.missing = missing;
        let next = if waits { sync.retry } else { SYNC_EVERY };
        if waits {
            sync.retry = (sync.retry * 2).min(SYNC_EVERY);
        }
        self.sync_at(id, now + next);
        for peer in wanted {
            self.read_slot(id, peer);
        }
    }

    /// Reads a member's slot; some reads fail and some are stale.
    pub(super) fn read_slot(&mut self, id: MemberId, peer: PeerId) {
        if !self.is_on_dht(id) {
            return;
        }
        let side = self.world.on_island(self.member(id).host);
        let read = self
            .slots
            .read(peer, side, &self.terms, &mut self.world.rng);
        let known = self.running(id).directory.get(peer).map(|known| known.seq);
        if let Some(record) = read.filter(|record| known.is_none_or(|seq| seq < record.seq)) {
            self.send(id, Errand::Pushed(record));
        }
    }

    /// Calls a member that does not answer in the data plane; it sends its record again.
    pub(super) fn ask_itself(&mut self, id: MemberId, peer: PeerId) {
        let there = self.by_peer.get(&peer).map(|other| self.member(*other));
        let host = there
            .filter(|there| there.is_running())
            .map(|there| there.host);
        if host.is_some_and(|host| self.has_control(self.member(id).host, host)) {
            let there = self.world.random_delay(&self.terms.delay);
            let back = self.world.random_delay(&self.terms.delay);
            self.plan(id, there + back, Errand::Spoke(peer));
        }
    }

    /// It did.
    pub(super) fn spoke(&mut self, id: MemberId, peer: PeerId) {
        let network = self.network.id();
        let running = self.running(id);
        if let Some(record) = running.directory.get(peer) {
            let (eager, paid) = (running.told_eager, record.signed_bytes());
            let command = upsert(network, record, eager, paid);
            self.command(id, command);
        }
    }

    /// Somebody with the network's secret wants a session whom the data plane does not know.
    pub(super) fn find_by_data_key(&mut self, id: MemberId, x25519: [u8; 32]) {
        match self.running(id).directory.by_data_key(&x25519) {
            Some(_) => self.refresh(id),
            None => self.sync_soon(id),
        }
    }

    /// Nothing is bound to an address that a guest asks for.
    pub(super) fn find_address(&mut self, id: MemberId, ip: IpAddr) {
        let (now, unix, network) = (self.world.now(), self.unix(), self.network.id());
        let running = self.running(id);
        if running.directory.by_address(ip, unix).is_some() {
            return self.refresh(id);
        }
        let is_past = |last: Option<Instant>, pause| last.is_none_or(|last| last + pause <= now);
        if is_past(running.sync.reread_last, REREAD_WANTED) {
            running.sync.reread_at = now;
            self.sync_soon(id);
        }
        let running = self.running(id);
        if let IpAddr::V4(ip) = ip
            && is_past(running.sync.wanted_last, SYNC_WANTED)
        {
            running.sync.wanted_last = Some(now);
            for peer in running.directory.likely_holders(ip, unix) {
                self.read_slot(id, peer);
            }
            self.sync_soon(id);
        }
        self.command(id, Command::NoSuchAddress { network, ip });
    }
}

/// What the data plane is told of a peer, for whose record so many bytes came since the last time.
fn upsert(network: NetworkId, record: &NodeRecord, eager: bool, paid: u64) -> Command {
    Command::UpsertPeer {
        network,
        peer: record.peer,
        keys: record.keys.clone(),
        candidates: record.candidates.clone(),
        eager,
        paid,
    }
}
