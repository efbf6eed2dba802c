//! What stations, members' own and their guests, do: they ping each other; and what can be seen of it.

use super::*;
use overlay_types::PathAddr;
use tunnel::{engine::PeerStats, path::Passage};

/// How often a pinging station sends.
const PING_EVERY: Duration = Duration::from_secs(1);

impl Overlay {
    /// Every member's own station, and every guest.
    pub fn stations(&self) -> Vec<Station> {
        let of = |id: MemberId| {
            let guests = self.member(id).guest_ports.iter();
            std::iter::once(id.into()).chain(guests.map(move |&port| Station { member: id, port }))
        };
        self.members().flat_map(of).collect()
    }

    /// The address that a station uses now.
    pub fn address(&self, station: impl Into<Station>) -> Option<Ipv4Addr> {
        let station = station.into();
        if station.port == STATION {
            return self.member(station.member).address();
        }
        self.guest(station)?.address()
    }

    /// Sends one ping from station to station: its number, to be asked for with [`Self::answered`].
    pub fn send_ping(
        &mut self,
        from: impl Into<Station>,
        to: impl Into<Station>,
        bytes: usize,
    ) -> Option<u16> {
        let (from, target) = (from.into(), self.address(to)?);
        let host = self.member(from.member).host;
        let ping = |node: &mut NodeHost, now| {
            node.guests
                .get_mut(&from.port)
                .map(|guest| guest.ping(target, bytes, now))
        };
        let (sequence, frames) = self.world.with_node(host, ping)??;
        self.world.send_frames(host, from.port, frames);
        Some(sequence)
    }

    /// The round trip of a ping, once it was answered.
    pub fn answered(&self, from: impl Into<Station>, sequence: u16) -> Option<Duration> {
        self.guest(from.into())?.answered.get(&sequence).copied()
    }

    /// Pings once a second until an answer comes: how long that took, or `None` after `bound`.
    pub fn ping(
        &mut self,
        from: impl Into<Station>,
        to: impl Into<Station>,
        bound: Duration,
    ) -> Option<Duration> {
        let (from, to) = (from.into(), to.into());
        let start = self.world.elapsed();
        let mut sent: Vec<u16> = Vec::new();
        let mut next = start;
        loop {
            let elapsed = self.world.elapsed();
            if sent
                .iter()
                .any(|&sequence| self.answered(from, sequence).is_some())
            {
                return Some(elapsed - start);
            }
            if elapsed - start >= bound {
                return None;
            }
            if elapsed >= next {
                sent.extend(self.send_ping(from, to, 56));
                next = elapsed + PING_EVERY;
            }
            self.run(WATCH);
        }
    }

    /// One ping a second for `count` seconds: how many were answered.
    pub fn ping_train(
        &mut self,
        from: impl Into<Station>,
        to: impl Into<Station>,
        count: usize,
        bytes: usize,
    ) -> usize {
        let (from, to) = (from.into(), to.into());
        let mut sent = Vec::new();
        for _ in 0..count {
            sent.extend(self.send_ping(from, to, bytes));
            self.run(PING_EVERY);
        }
        self.run(PING_EVERY);
        sent.iter()
            .filter(|&&sequence| self.answered(from, sequence).is_some())
            .count()
    }

    /// A station as it is now, plugged in or not.
    fn guest(&self, station: Station) -> Option<&Guest> {
        let member = self.member(station.member);
        let plugged = self
            .world
            .node(member.host)
            .and_then(|node| node.guests.get(&station.port));
        plugged.or_else(|| member.unplugged.get(&station.port))
    }

    fn peer_stats(&self, from: MemberId, to: MemberId) -> Option<PeerStats> {
        let (network, peer) = (self.network.id(), self.member(to).peer());
        let node = self.world.node(self.member(from).host)?;
        node.engine.stats_of(network, peer, self.world.now())
    }

    /// The way in use between two members.
    pub fn way(&self, from: MemberId, to: MemberId) -> Option<PathAddr> {
        Some(self.peer_stats(from, to)?.path?.addr)
    }

    /// The kind of way in use between two members.
    pub fn path(&self, from: MemberId, to: MemberId) -> Option<PathKind> {
        Some(self.way(from, to)?.kind())
    }

    /// The member whose relay the way between two others goes through last.
    pub fn relay_between(&self, from: MemberId, to: MemberId) -> Option<MemberId> {
        let via = self.peer_stats(from, to)?.via?;
        self.by_peer.get(&via).copied()
    }

    /// What the NATs of two members allow, as one of them judges it.
    pub fn passage(&self, from: MemberId, to: MemberId) -> Option<Passage> {
        Some(self.peer_stats(from, to)?.passage)
    }

    /// Since when the session in use between two members exists.
    pub fn session_age(&self, from: MemberId, to: MemberId) -> Option<Duration> {
        self.peer_stats(from, to)?.session_age
    }

    /// Nobody will ask for this ping again.
    pub fn forget_ping(&mut self, from: impl Into<Station>, sequence: u16) {
        let from = from.into();
        let host = self.member(from.member).host;
        if let Some(guest) = self.world.guest_mut(host, from.port) {
            guest.forget(sequence);
        }
    }
}
