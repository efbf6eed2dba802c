//! Datagrams that workers do not open: handshakes, the control lane, STUN, relay control.

use super::{
    Engine, Event,
    context::PeerKey,
    peer::{HEADERS_BYTES, Peer},
};
use crate::{
    path::ControlMessage,
    relay::Verdict,
    session::{
        Admission, SessionSlot, answer_challenge, answer_is_by, answered_nonce, mac1_matches,
        open_initiation,
    },
    stats::Counter,
    wire::{
        datagram::{DataHeader, DatagramKind, classify},
        extension,
        handshake::HandshakeHeader,
        path_challenge::PATH_CHALLENGE_BYTES,
    },
    worker,
};
use overlay_types::PathAddr;
use rand::seq::SliceRandom;
use std::time::Instant;

/// Members that may be behind one address: LANs are numbered alike, and not everybody who lists it is to be called.
const AT_ONE_ADDRESS_MAX: usize = 4;

impl Engine {
    /// Takes a datagram whose relay wrapper is off.
    pub(super) fn handle_datagram(&mut self, from: PathAddr, bytes: &mut [u8], now: Instant) {
        match (classify(bytes), from) {
            (DatagramKind::Data(header), _) => self.handle_control_lane(from, header, bytes, now),
            (DatagramKind::Initiation, _) => self.handle_initiation(from, bytes, now),
            (DatagramKind::Response, _) => {
                self.with_handshake(bytes, now, |peer, bytes, ctx| {
                    peer.handle_response(from, bytes, ctx, now)
                });
            }
            (DatagramKind::PathChallenge, _) => self.handle_path_challenge(from, bytes),
            (DatagramKind::PathResponse, _) => self.handle_path_response(from, bytes, now),
            (DatagramKind::CookieReply, _) => {
                self.with_handshake(bytes, now, |peer, bytes, ctx| {
                    peer.handle_cookie_reply(bytes, ctx, now)
                });
            }
            (DatagramKind::Stun, PathAddr::Direct(addr)) => {
                self.stun.handle_datagram(addr, bytes, now)
            }
            (DatagramKind::Stun, PathAddr::Punched { socket, addr }) => {
                self.sampler.handle_datagram(socket, addr, bytes, now)
            }
            (DatagramKind::RelayReply, PathAddr::Direct(_) | PathAddr::Relayed { .. }) => {
                self.relays.client.handle_datagram(from, bytes, now)
            }
            (DatagramKind::RelayRequest, _) => self.handle_relay_request(from, bytes, now),
            _ => self.ctx.count(Counter::DropUnknownDatagram),
        }
    }

    /// A member binds its place at our relay.
    fn handle_relay_request(&mut self, from: PathAddr, bytes: &mut [u8], now: Instant) {
        let Some(server) = &mut self.ctx.relay else {
            return self.ctx.count(Counter::DropRelayStranger);
        };
        if let Verdict::Reply(reply) = server.handle_datagram(from, bytes, now) {
            self.ctx.send(from, &reply);
        }
    }

    /// Somebody who knows one of our members' keys asks whether it is at the address where this came in.
    fn handle_path_challenge(&mut self, from: PathAddr, bytes: &[u8]) {
        let mut locals = self.networks.values().map(|network| &network.local);
        let answer = locals.find_map(|of| answer_challenge(of.keys.x25519(), of.id, bytes));
        match answer {
            Some(answer) => self.ctx.send(from, &answer),
            None => self.ctx.count(Counter::DropStranger),
        }
    }

    /// A member received what we asked there.
    fn handle_path_response(&mut self, from: PathAddr, bytes: &[u8], now: Instant) {
        let nonce = answered_nonce(bytes);
        let key = nonce.and_then(|nonce| self.ctx.challenges.take_answered(nonce, from, now));
        let Some(key) = key else {
            return self.ctx.count(Counter::DropPathResponse);
        };
        self.with_peer(key, now, |peer, _, ctx| {
            if answer_is_by(&peer.keys.x25519, key.0, bytes) {
                peer.handle_path_response(from, ctx, now);
            } else {
                ctx.count(Counter::DropPathResponse);
            }
        });
    }

    /// Finds the peer whose handshake an answer names.
    fn with_handshake(
        &mut self,
        bytes: &[u8],
        now: Instant,
        act: impl FnOnce(&mut Peer, &[u8], &mut super::context::Context),
    ) {
        let slot =
            HandshakeHeader::parse(bytes).map(|header| SessionSlot::from_low_bits(header.index()));
        let Some(&key) = slot.and_then(|slot| self.ctx.slots.get(slot)) else {
            return self.ctx.count(Counter::DropHandshake);
        };
        self.with_peer(key, now, |peer, _, ctx| act(peer, bytes, ctx));
    }

    fn handle_initiation(&mut self, from: PathAddr, bytes: &[u8], now: Instant) {
        let ours = self
            .networks
            .values_mut()
            .find(|n| mac1_matches(n.local.keys.x25519(), n.local.id, bytes));
        let Some(network) = ours else {
            return self.ctx.count(Counter::DropStranger);
        };
        let (local, ctx) = (&network.local, &mut self.ctx);
        match ctx.gate.admit(
            from.socket_addr(),
            bytes,
            local.keys.x25519(),
            local.id,
            now,
            &mut ctx.rng,
        ) {
            Admission::Open => {}
            Admission::Reply(reply) => return ctx.send(from, &reply),
            Admission::Drop => return ctx.count(Counter::DropHandshakeLoad),
        }
        let Ok(initiation) = open_initiation(&local.keys, local.id, bytes, &mut ctx.rng) else {
            return ctx.count(Counter::DropHandshake);
        };
        let id = local.id;
        let Some(&peer) = network.by_key.get(&initiation.x25519) else {
            ctx.count(Counter::DropUnknownPeer);
            if network.keep_stranger(initiation.x25519, from, bytes.to_vec(), now) {
                ctx.tell(Event::UnknownPeer {
                    network: id,
                    x25519: initiation.x25519,
                });
            }
            return;
        };
        self.with_peer((id, peer), now, |peer, local, ctx| {
            if peer.outranks(local) {
                return; // ours is under way, and the other side answers it
            }
            if !peer.accept_timestamp(initiation.timestamp) {
                return ctx.count(Counter::DropHandshake);
            }
            let Ok(slot) = ctx.slots.insert(peer.key, &mut ctx.rng) else {
                return ctx.count(Counter::DropHandshakeLoad);
            };
            match initiation.respond(&local.psk, slot, ctx.unix_ns(now), ctx.aes) {
                Ok((message, established)) => {
                    peer.handle_responded(established, from, bytes.len(), ctx, now);
                    ctx.count(Counter::HandshakesSent);
                    ctx.send(from, &message);
                }
                Err(_) => {
                    ctx.slots.remove(slot);
                    ctx.count(Counter::DropHandshake);
                }
            }
        });
    }

    fn handle_control_lane(
        &mut self,
        from: PathAddr,
        header: DataHeader,
        bytes: &mut [u8],
        now: Instant,
    ) {
        let (slot, size) = (header.slot(), bytes.len());
        let Some(&key) = self.ctx.slots.get(slot) else {
            self.ctx.count(Counter::DropUnknownSession);
            return self.handle_unknown_session(from, size, now);
        };
        let opened = self.with_peer(key, now, |peer, _, ctx| {
            let live = peer.session_mut(slot)?;
            let plaintext = match live.recv.open(bytes) {
                Ok(plaintext) => plaintext,
                Err(error) => {
                    ctx.count(worker::why_not_opened(&error));
                    return None;
                }
            };
            peer.count_received(from, size);
            peer.heard(slot, from, ctx, now);
            match plaintext.first() {
                Some(&extension::CONTROL) => {
                    let message = ControlMessage::decode(&plaintext[1..]);
                    peer.handle_control(from, message, ctx, now);
                    None
                }
                Some(&extension::PLAIN | &extension::HALF) => {
                    peer.note_data_received(ctx, now);
                    Some(plaintext)
                }
                _ => {
                    ctx.count(Counter::DropUnknownExtension);
                    None
                }
            }
        });
        if let Some(Some(plaintext)) = opened {
            self.handle_lane_frame(key, slot, plaintext, now);
        }
    }

    fn handle_lane_frame(
        &mut self,
        key: PeerKey,
        slot: SessionSlot,
        plaintext: &mut [u8],
        now: Instant,
    ) {
        if plaintext[0] == extension::PLAIN {
            return self.switch_peer_frame(key, &mut plaintext[1..], now);
        }
        let mut rejoiner = std::mem::take(&mut self.rejoiner);
        if let Some((frame, checksum)) = rejoiner.accept(u64::from(slot.index(0)), plaintext, now) {
            if checksum.is_none_or(|checksum| crate::offload::checksum::complete(frame, checksum)) {
                self.switch_peer_frame(key, frame, now);
            } else {
                self.ctx.count(Counter::DropMalformed);
            }
        }
        self.rejoiner = rejoiner;
        let unjoined = worker::unjoined(&self.rejoiner);
        self.ctx.counters.add(
            Counter::DropUnjoined,
            unjoined - std::mem::replace(&mut self.unjoined_told, unjoined),
        );
    }

    /// Somebody uses a session that we do not have: probably one from before our restart. If its address is a known
    /// peer's, that peer is asked whether it is there, in no more bytes than came, and then for a new one; anybody else gets
    /// no answer.
    pub(super) fn handle_unknown_session(&mut self, from: PathAddr, bytes: usize, now: Instant) {
        let covered = (HEADERS_BYTES + bytes) / (HEADERS_BYTES + PATH_CHALLENGE_BYTES);
        let mut known: Vec<PeerKey> = self
            .networks
            .values()
            .flat_map(|network| network.peers.values())
            .filter(|peer| !peer.is_well(now) && peer.may_be_at(from))
            .map(|peer| peer.key)
            .take(AT_ONE_ADDRESS_MAX)
            .collect();
        known.shuffle(&mut self.ctx.rng);
        for key in known.into_iter().take(covered) {
            self.with_peer(key, now, |peer, _, ctx| peer.ask_back(from, ctx, now));
        }
    }
}
