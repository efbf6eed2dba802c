//! Frames that pass through the engine instead of a worker: the node's own, those of the control lane, and questions that
//! waited. They are judged by the same switch.

use super::{Engine, Event, context::PeerKey};
use crate::{
    snapshot::{NetworkView, Place},
    stats::Counter,
    switch::{self, Source, Verdict, flood},
    worker::{clamp_mss, location},
};
use overlay_types::{Location, MacAddr, NetworkId, PortId};
use std::{net::IpAddr, time::Instant};

impl Engine {
    /// Passes on a frame that the node made.
    pub(super) fn switch_own_frame(&mut self, network: NetworkId, frame: &[u8], now: Instant) {
        self.switch_frame(network, |_| Some(Source::Node), frame, now);
    }

    /// Passes on a frame that came from a peer over the control lane.
    pub(super) fn switch_peer_frame(&mut self, key: PeerKey, frame: &mut [u8], now: Instant) {
        self.ctx.count(Counter::FramesFromPeers);
        let snapshot = self.draw();
        if let Some(network) = snapshot.network(key.0) {
            let view = &snapshot.networks[usize::from(network)];
            if let Some(peer) = view.peer(key.1) {
                clamp_mss(view, peer, frame, false);
            }
        }
        let from = |view: &NetworkView| view.peer(key.1).map(Source::Peer);
        self.switch_frame(key.0, from, frame, now);
    }

    /// An empty guest port takes its first station, whose frame then passes.
    pub(super) fn take_guest(&mut self, port: PortId, mac: MacAddr, frame: &[u8], now: Instant) {
        let Some(&network) = self.port_networks.get(&port) else {
            return;
        };
        let Some(at) = self.port_mut(port) else {
            return;
        };
        if at.macs.is_empty() {
            at.macs.push(mac);
            self.ctx.tell(Event::GuestSeen { network, port, mac });
        }
        let place = |view: &NetworkView| {
            view.ports
                .iter()
                .position(|p| p.id == port)
                .map(|at| Source::Port(at as u16))
        };
        self.switch_frame(network, place, frame, now);
    }

    /// Keeps a question and asks the node for its address.
    pub(super) fn want_address(
        &mut self,
        network: NetworkId,
        port: PortId,
        ip: IpAddr,
        frame: Vec<u8>,
        now: Instant,
    ) {
        let Some(of) = self.networks.get_mut(&network) else {
            return;
        };
        let should_ask = of.ask(ip, port, frame, now);
        if of.bindings.contains_key(&ip) {
            self.answer_late(network, now); // bound since the worker looked
        } else if should_ask {
            self.ctx.tell(Event::AddressWanted { network, ip });
        }
    }

    /// Answers the questions whose address is bound by now.
    pub(super) fn answer_late(&mut self, network: NetworkId, now: Instant) {
        let snapshot = self.draw();
        let Some(of) = self.networks.get_mut(&network) else {
            return;
        };
        let Some(view) = snapshot
            .network(network)
            .map(|at| &snapshot.networks[usize::from(at)])
        else {
            return;
        };
        for question in of.take_answerable(now) {
            let Some(port) = view.ports.iter().position(|p| p.id == question.port) else {
                continue;
            };
            if let Some(answer) = switch::late_answer(view, port as u16, &question.frame) {
                self.ctx.count(Counter::AnsweredLocally);
                self.ctx.deliver(question.port, answer.frame().to_vec());
            }
        }
    }

    fn switch_frame(
        &mut self,
        network: NetworkId,
        from: impl FnOnce(&NetworkView) -> Option<Source>,
        frame: &[u8],
        now: Instant,
    ) {
        let snapshot = self.draw();
        let Some(view) = snapshot
            .network(network)
            .map(|at| &snapshot.networks[usize::from(at)])
        else {
            return;
        };
        let Some(from) = from(view) else { return };
        if frame.len() > view.frame_bytes_max {
            return self.ctx.count(Counter::DropOversize);
        }
        let at = from.place().and_then(|place| location(view, place));
        let judged = switch::judge(view, from, frame);
        if let (Some(mac), Some(at)) = (judged.unseen.or(judged.learned), at) {
            self.learn(network, mac, at, now);
        }
        if let (true, Some(from)) = (judged.snoop, at) {
            self.ctx.tell(Event::Snooped {
                network,
                from,
                frame: frame.to_vec(),
            });
        }
        let port = match at {
            Some(Location::Port(port)) => Some(port),
            _ => None,
        };
        match (judged.verdict, port) {
            (Verdict::Drop(why), _) => self.ctx.count(why),
            (Verdict::To(Place::Port(to)), _) => self
                .ctx
                .deliver(view.ports[usize::from(to)].id, frame.to_vec()),
            (Verdict::To(Place::Peer(to)), _) => {
                self.frame_to_peer((network, view.peers[usize::from(to)].id), frame, now)
            }
            (Verdict::To(Place::Elsewhere), _) => self.ctx.count(Counter::DropNoSession),
            (Verdict::Flood, _) => self.flood_frame(view, from, at, frame, now),
            (Verdict::Answer(answer), Some(port)) => {
                self.ctx.deliver(port, answer.frame().to_vec())
            }
            (Verdict::Wanted(ip), Some(port)) => {
                self.want_address(network, port, ip, frame.to_vec(), now)
            }
            (Verdict::Punt, Some(port)) => self.ctx.tell(Event::FramePunted {
                network,
                port,
                frame: frame.to_vec(),
            }),
            // Only a frame of a local port is a question or the first of its guest, and that port was just given one.
            _ => self.ctx.count(Counter::DropUnanswered),
        }
        if let (Some(ip), Some(port)) = (judged.taken, port) {
            self.ctx.tell(Event::AddressTaken {
                network,
                port,
                mac: judged.src,
                ip: ip.into(),
            });
        }
    }

    fn flood_frame(
        &mut self,
        view: &NetworkView,
        from: Source,
        at: Option<Location>,
        frame: &[u8],
        now: Instant,
    ) {
        if at.is_some_and(|at| !self.budgets.take(view.id, at, now)) {
            return self.ctx.count(Counter::DropStorm);
        }
        for port in flood::ports(view, from.place()) {
            self.ctx
                .deliver(view.ports[usize::from(port)].id, frame.to_vec());
        }
        for peer in flood::peers(view, from.place()).map(|at| &view.peers[usize::from(at)]) {
            if peer.way.is_some() {
                self.frame_to_peer((view.id, peer.id), frame, now);
            }
        }
    }

    fn frame_to_peer(&mut self, key: PeerKey, frame: &[u8], now: Instant) {
        self.with_peer(key, now, |peer, _, ctx| {
            peer.send_or_wait(frame.to_vec(), ctx, now)
        });
    }
}
