//! How others reach this node: its places at relays, whether it is public, and the addresses it publishes.

use super::*;

/// Fabric nodes at which circuits to this node can be had: two may leave.
pub(super) const RESERVATIONS_MAX: usize = 3;
/// The pause after a refused reservation; it doubles up to [`RESERVE_PAUSE_MAX`].
const RESERVE_PAUSE_MIN: Duration = Duration::from_millis(500);
const RESERVE_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Addresses of this node that are published: they go into a record of 4 KiB with much else.
const PUBLISHED_MAX: usize = 8;

/// Our place at a fabric node's relay. libp2p renews it as long as its listener lives.
pub(super) struct Reservation {
    pub(super) listener: Option<ListenerId>,
    pub(super) is_held: bool,
    pub(super) failures: u32,
    pub(super) retry_at: Instant,
}

impl SwarmTask {
    /// Members that nobody can reach directly take places at the relays of the fabric nodes they are connected to. At once and
    /// without waiting for a verdict on their reachability: a place costs little, and joining must be quick.
    pub(super) fn reserve_where_needed(&mut self, now: Instant) {
        if self.role == Role::Fabric || self.is_public() {
            return;
        }
        let candidates: Vec<(PeerId, Multiaddr)> = self
            .peers
            .iter()
            .filter(|(peer, known)| known.fabric_addresses.is_some() || self.homes.is_home(peer))
            .filter_map(|(peer, known)| Some((*peer, known.direct()?.address.clone())))
            .collect();
        for (peer, address) in candidates {
            let places = self
                .reservations
                .values()
                .filter(|place| place.listener.is_some())
                .count();
            let is_wanted = self
                .reservations
                .get(&peer)
                .is_none_or(|place| place.listener.is_none() && place.retry_at <= now);
            if places >= RESERVATIONS_MAX || !is_wanted {
                continue;
            }
            let place = self.reservations.entry(peer).or_insert(Reservation {
                listener: None,
                is_held: false,
                failures: 0,
                retry_at: now,
            });
            match self
                .swarm
                .listen_on(address.with(Protocol::P2p(peer)).with(Protocol::P2pCircuit))
            {
                Ok(listener) => place.listener = Some(listener),
                Err(error) => {
                    tracing::debug!(relay = %peer, %error, "no place at the relay");
                    place.failures += 1;
                    place.retry_at = now + RESERVE_PAUSE_MAX;
                }
            }
        }
    }

    pub(super) fn handle_listener_closed(
        &mut self,
        listener: ListenerId,
        error: Option<std::io::Error>,
        now: Instant,
    ) {
        let mut was_place = false;
        for (relay, place) in self
            .reservations
            .iter_mut()
            .filter(|(_, place)| place.listener == Some(listener))
        {
            tracing::debug!(%relay, ?error, "no place at the relay");
            place.listener = None;
            place.is_held = false;
            place.retry_at =
                now + (RESERVE_PAUSE_MIN * 2u32.pow(place.failures.min(8))).min(RESERVE_PAUSE_MAX);
            place.failures += 1;
            was_place = true;
        }
        if !was_place && let Some(error) = error {
            tracing::warn!(%error, "a listener closed");
        }
        self.publish();
    }

    /// Whether a public address of ours was confirmed by somebody who dialed it.
    pub(super) fn is_public(&self) -> bool {
        self.swarm.external_addresses().any(is_public)
    }

    pub(super) fn set_dht_mode(&mut self) {
        let mode = if self.role == Role::Fabric || self.is_public() {
            kad::Mode::Server
        } else {
            kad::Mode::Client
        };
        let kad = &mut self.swarm.behaviour_mut().kad;
        if kad.mode() != mode {
            tracing::info!(
                serves = (mode == kad::Mode::Server),
                "part in the DHT changed"
            );
            kad.set_mode(Some(mode));
        }
    }

    /// Tells when the addresses worth publishing have changed: confirmed ones, then circuits, then what is listened on.
    pub(super) fn publish(&mut self) {
        let me = *self.swarm.local_peer_id();
        let listening = self
            .swarm
            .listeners()
            .filter(|address| !is_circuit(address) && !is_unspecified(address))
            .filter(|address| !self.hidden.contains(address));
        let mut found: Vec<Multiaddr> = self
            .swarm
            .external_addresses()
            .chain(listening)
            .cloned()
            .collect();
        // Stable: confirmed before listened on, as they were found. libp2p's own order changes from call to call.
        found.sort_by_cached_key(|address| {
            (
                !self
                    .swarm
                    .external_addresses()
                    .any(|confirmed| confirmed == address),
                is_circuit(address),
                is_tcp(address),
                address.to_vec(),
            )
        });
        let mut addresses: Vec<String> = Vec::new();
        for address in found {
            let text = split_peer_of(&address, &me).0.to_string();
            if (!is_loopback(&address) || self.speaks_on_loopback || is_circuit(&address))
                && !addresses.contains(&text)
            {
                addresses.push(text);
            }
        }
        addresses.truncate(PUBLISHED_MAX);
        if addresses != self.published {
            self.published.clone_from(&addresses);
            self.emit(SwarmEvent::ListenAddrs(addresses));
        }
    }
}
