//! Kademlia over our slot store: what others PUT is checked and merged while they wait for the answer, so that a refusal reaches
//! them as a failure. The rules are [`SlotStore`]'s.
//!
//! Kademlia tells a store what is put but not by whom, and the quotas are per peer and site. So the behaviour is wrapped: the
//! wrapper notes whose message is being handled, and the store reads the note.

use super::bundle;
use super::peer::{from_libp2p, ip_of, is_circuit};
use crate::slot::{SLOT_VALUE_MAX, SlotLimits, SlotStore, SlotValue, Source};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::kad::store::{Error as StoreError, RecordStore};
use libp2p::kad::{self, ProviderRecord, Record, RecordKey};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/farlan/kad/1");
/// Four values of 4 KiB, twenty peers with a few addresses each.
const PACKET_BYTES_MAX: usize = 24 * 1024;
/// On how many nodes a slot value is stored. Fabric nodes stay; eight of them do not go at once.
pub(super) const REPLICATION: NonZeroUsize = NonZeroUsize::new(8).expect("8 > 0");
/// Gives up on a query; the answers that came until then were used already.
const QUERY_TIMEOUT: Duration = Duration::from_secs(12);
/// Gives up on one peer within a query.
const SUBSTREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// The kad behaviour, with a note of who is speaking.
pub(super) struct SlotKad {
    kad: kad::Behaviour<KadStore>,
    ips: BTreeMap<ConnectionId, Option<IpAddr>>, // as many as the connection limits allow
}

impl SlotKad {
    pub(super) fn new(local: PeerId, mode: kad::Mode) -> Self {
        let mut config = kad::Config::new(PROTOCOL);
        config
            .set_max_packet_size(PACKET_BYTES_MAX)
            .set_replication_factor(REPLICATION)
            .disjoint_query_paths(true)
            .set_query_timeout(QUERY_TIMEOUT)
            .set_substreams_timeout(SUBSTREAM_TIMEOUT)
            // Filtering would acknowledge every PUT, refused ones too; the store itself refuses instead.
            .set_record_filtering(kad::StoreInserts::Unfiltered)
            // Authors write their slots again; kad's own republishing can be suppressed by anybody who PUTs to the same key.
            .set_replication_interval(None)
            .set_publication_interval(None)
            .set_provider_publication_interval(None)
            .set_record_ttl(None) // a value carries its expiry, signed
            .set_caching(kad::Caching::Disabled);
        let mut kad = kad::Behaviour::with_config(local, KadStore::new(), config);
        kad.set_mode(Some(mode));
        Self {
            kad,
            ips: BTreeMap::new(),
        }
    }
}

impl Deref for SlotKad {
    type Target = kad::Behaviour<KadStore>;
    fn deref(&self) -> &Self::Target {
        &self.kad
    }
}

impl DerefMut for SlotKad {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.kad
    }
}

impl NetworkBehaviour for SlotKad {
    type ConnectionHandler = <kad::Behaviour<KadStore> as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = kad::Event;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.kad
            .handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.kad
            .handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.kad
            .handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match &event {
            FromSwarm::ConnectionEstablished(established) => {
                let remote = established.endpoint.get_remote_address();
                let is_relayed = established.endpoint.is_relayed() || is_circuit(remote);
                self.ips.insert(
                    established.connection_id,
                    ip_of(remote).filter(|_| !is_relayed),
                );
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.ips.remove(&closed.connection_id);
            }
            _ => {}
        }
        self.kad.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        let ip = self.ips.get(&connection).copied().flatten();
        self.kad.store_mut().speaker = from_libp2p(&peer).ok().map(|peer| Source { peer, ip });
        self.kad
            .on_connection_handler_event(peer, connection, event);
        self.kad.store_mut().speaker = None;
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.kad.poll(cx).map(answer_refusals)
    }
}

type HandlerIn = THandlerInEvent<SlotKad>;

/// kad refuses a PUT by resetting its stream, but libp2p-kad 0.49 does not wake the stream for that (`handler.rs`,
/// `InboundSubstreamState::close`), so that the putter learns of it by its own timeout, 10 s later. An answer of another
/// kind than the one a PUT asks for wakes it, and counts as a failure with every putter.
fn answer_refusals(event: ToSwarm<kad::Event, HandlerIn>) -> ToSwarm<kad::Event, HandlerIn> {
    event.map_in(|to_handler| match to_handler {
        HandlerIn::Reset(request_id) => HandlerIn::FindNodeRes {
            closer_peers: Vec::new(),
            request_id,
        },
        other => other,
    })
}

/// The slot store as kad wants to see one.
pub(super) struct KadStore {
    slots: SlotStore,
    speaker: Option<Source>,
    misplaced: u64,
}

impl KadStore {
    fn new() -> Self {
        Self {
            slots: SlotStore::new(SlotLimits::default()),
            speaker: None,
            misplaced: 0,
        }
    }

    /// A value of this node's own, kept here because it is among the closest to the key.
    pub(super) fn put_own(
        &mut self,
        value: &[u8],
        own: Source,
    ) -> Result<[u8; 32], crate::slot::PutError> {
        self.slots.put(value, own, unix_now())
    }

    pub(super) fn expire(&mut self) {
        self.slots.expire(unix_now());
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Values stored and refused so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        let counters = self.slots.counters();
        let refused = counters.refused_old
            + counters.refused_invalid
            + counters.refused_quota
            + counters.refused_full;
        (counters.stored, refused + self.misplaced)
    }
}

impl RecordStore for KadStore {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>; // asked for by republishing only, which is off
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Record>> {
        let slot = <[u8; 32]>::try_from(key.as_ref()).ok()?;
        let values: Vec<Vec<u8>> = self
            .slots
            .get(&slot, unix_now())
            .into_iter()
            .map(SlotValue::encode)
            .collect();
        let record = Record {
            key: key.clone(),
            value: bundle::encode(values.iter().map(Vec::as_slice)),
            publisher: None,
            expires: None,
        };
        (!values.is_empty()).then_some(Cow::Owned(record))
    }

    fn put(&mut self, record: Record) -> Result<(), StoreError> {
        // What the error says stays here; the putter sees its stream reset.
        if record.value.len() > SLOT_VALUE_MAX {
            self.misplaced += 1;
            return Err(StoreError::ValueTooLarge);
        }
        let belongs = SlotValue::decode(&record.value)
            .is_ok_and(|value| value.dht_key()[..] == *record.key.as_ref());
        let Some(source) = self.speaker.filter(|_| belongs) else {
            self.misplaced += 1;
            return Err(StoreError::ValueTooLarge);
        };
        match self.slots.put(&record.value, source, unix_now()) {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::debug!(peer = %source.peer, %error, "slot value refused");
                Err(StoreError::MaxRecords)
            }
        }
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, _: ProviderRecord) -> Result<(), StoreError> {
        Err(StoreError::MaxProvidedKeys) // nothing here is provided
    }

    fn providers(&self, _: &RecordKey) -> Vec<ProviderRecord> {
        Vec::new()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, _: &RecordKey, _: &PeerId) {}
}

/// Unix seconds, as slot values count them.
pub(super) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
