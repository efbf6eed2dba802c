//! What members know of each other: records, written and read, and what the data plane is told of them.

use super::*;

/// How long changes are gathered before they are told to the data plane.
const REFRESH_DELAY: Duration = Duration::from_millis(50);

/// How long changes are gathered before they are published.
const PUBLISH_DELAY: Duration = Duration::from_millis(100);

/// Up to so many peers, sessions with all of them are kept, as the real node does.
const EAGER_MAX: usize = 64;

impl Overlay {
    pub(super) fn refresh_soon(&mut self, id: MemberId) {
        if !std::mem::replace(&mut self.running(id).is_refresh_planned, true) {
            self.plan(id, REFRESH_DELAY, Errand::Refresh);
        }
    }

    /// Tells the data plane who the peers are and what is bound where.
    pub(super) fn refresh(&mut self, id: MemberId) {
        let (unix, network) = (self.unix(), self.network.id());
        let running = self.running(id);
        running.is_refresh_planned = false;
        let eager = running.directory.peers().count() <= EAGER_MAX;
        let upsert = |record: &Verified<NodeRecord>| Command::UpsertPeer {
            network,
            peer: record.peer,
            keys: record.keys.clone(),
            candidates: record.candidates.clone(),
            eager,
        };
        let mut commands: Vec<_> = running.directory.peers().map(upsert).collect();
        let peers = running.directory.peers().cloned().collect();
        self.members[id.0].disk.peers = peers;
        let bindings = self.member(id).bindings(unix);
        commands.push(Command::SetBindings { network, bindings });
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
        let host = self.member(id).host;
        let on_island = self
            .world
            .is_partitioned()
            .then(|| self.world.on_island(host));
        self.slots.write(record.clone(), on_island);
        for other in self.members().filter(|&other| other != id) {
            if self.member(other).disk.membership.is_some()
                && self.has_control(host, self.member(other).host)
            {
                self.send(other, Errand::Pushed(Box::new(record.clone())));
            }
        }
    }

    /// Reads every slot, of which some reads fail and some are stale.
    pub(super) fn read_slots(&mut self, id: MemberId) {
        if !self.is_on_dht(id) {
            return;
        }
        let (me, side) = (
            self.member(id).peer(),
            self.world.on_island(self.member(id).host),
        );
        for peer in self.slots.writers().into_iter().filter(|&peer| peer != me) {
            let Some(record) = self
                .slots
                .read(peer, side, &self.terms, &mut self.world.rng)
            else {
                continue;
            };
            let known = self.running(id).directory.get(peer).map(|known| known.seq);
            if known.is_none_or(|seq| seq < record.seq) {
                self.send(id, Errand::Pushed(Box::new(record)));
            }
        }
    }
}
