//! Counts what happens to frames and datagrams: one counter for every reason to drop.
//! Who sums them over workers, and shows them, is decided by the callers.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// One thing that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// Every counter, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name, as metrics spell it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Frames that came from ports.
    FramesFromPorts => "frames_from_ports",
    /// Frames that went out of ports.
    FramesToPorts => "frames_to_ports",
    /// Frames that came from peers.
    FramesFromPeers => "frames_from_peers",
    /// Frames that went to peers.
    FramesToPeers => "frames_to_peers",
    /// Frames cut in two for a narrow path.
    FramesSplit => "frames_split",
    /// Super-frames that were cut for a peer.
    SuperFramesCut => "super_frames_cut",
    /// Super-frames that were joined from a peer's pieces.
    SuperFramesJoined => "super_frames_joined",
    /// ARP and neighbour questions that were answered from bindings.
    AnsweredLocally => "answered_locally",
    /// Questions about addresses that nothing is bound to.
    AddressesWanted => "addresses_wanted",
    /// Frames that waited for a session and then left.
    FramesWaited => "frames_waited",
    /// Handshakes that ended in a session.
    Handshakes => "handshakes",
    /// Handshake messages sent.
    HandshakesSent => "handshakes_sent",
    /// Addresses asked whether the peer that they are said to be receives there.
    AddressesAsked => "addresses_asked",
    /// Drop: a frame shorter than its headers say.
    DropMalformed => "drop_malformed",
    /// Drop: a port that is not (any longer) there.
    DropUnknownPort => "drop_unknown_port",
    /// Drop: a source MAC that may not speak here.
    DropSpoofedMac => "drop_spoofed_mac",
    /// Drop: a source address that belongs to another station.
    DropSpoofedAddress => "drop_spoofed_address",
    /// Drop: a DHCP server or router speaking from where none may be.
    DropRogueServer => "drop_rogue_server",
    /// Drop: link-local control frames (STP, LLDP, pause), which no bridge forwards.
    DropLinkLocal => "drop_link_local",
    /// Drop: a question that the asker's own port or nobody is to answer.
    DropUnanswered => "drop_unanswered",
    /// Drop: the station sits where the frame came from.
    DropHairpin => "drop_hairpin",
    /// Drop: the storm budget of a port or peer is spent.
    DropStorm => "drop_storm",
    /// Drop: a frame too large for the tunnel.
    DropOversize => "drop_oversize",
    /// Drop: no session to the peer yet, and the queue for the engine is limited.
    DropNoSession => "drop_no_session",
    /// Drop: a frame that waited for a session was pushed out by a newer one, or the peer never answered.
    DropWaiting => "drop_waiting",
    /// Drop: a lane has sealed all that its key may.
    DropExhausted => "drop_exhausted",
    /// Drop: the report queue to the engine was full.
    DropReportQueue => "drop_report_queue",
    /// Drop: a datagram of no kind that we know.
    DropUnknownDatagram => "drop_unknown_datagram",
    /// Drop: a datagram for a session that we do not have.
    DropUnknownSession => "drop_unknown_session",
    /// Drop: a counter that was seen before, or is too old to tell.
    DropReplayed => "drop_replayed",
    /// Drop: bytes that their key does not open.
    DropForged => "drop_forged",
    /// Drop: an opened datagram that holds nothing we know.
    DropUnknownExtension => "drop_unknown_extension",
    /// Drop: halves of frames that never met.
    DropUnjoined => "drop_unjoined",
    /// Drop: a first message whose mac1 names no network of ours.
    DropStranger => "drop_stranger",
    /// Drop: a first message by a key that we do not know as a member's.
    DropUnknownPeer => "drop_unknown_peer",
    /// Drop: a handshake message that is forged, repeated or of another version.
    DropHandshake => "drop_handshake",
    /// Drop: a first message beyond what handshakes may cost.
    DropHandshakeLoad => "drop_handshake_load",
    /// Drop: an answer from an address that was not asked, or too late.
    DropPathResponse => "drop_path_response",
    /// Drop: what was not sent to an address of a peer that has proved nothing and paid for no more.
    DropUnpaid => "drop_unpaid",
    /// Drop: control datagrams, STUN or relays' answers beyond what one session, or all together, may send the engine.
    DropControlLoad => "drop_control_load",
    /// Drop: what the engine wanted sent, delivered or told was not fetched in time.
    DropEngineQueue => "drop_engine_queue",
    /// Drop: a MAC that could not be learned because its table or its place is full.
    DropMacTable => "drop_mac_table",
    /// Drop: a datagram that the full UDP socket did not take.
    DropUdpFull => "drop_udp_full",
    /// Drop: a datagram that waited in a full UDP socket for us.
    DropUdpBehind => "drop_udp_behind",
    /// Drop: a datagram larger than the interface's MTU.
    DropUdpTooLarge => "drop_udp_too_large",
    /// Drop: a datagram with no route, or another error of the UDP socket.
    DropUdpFailed => "drop_udp_failed",
    /// Drop: a frame that a TAP did not take: full, down or gone.
    DropTap => "drop_tap",
    /// Drop: a datagram for another worker, which had too many waiting.
    DropHandOver => "drop_hand_over",
    /// Drop: a datagram to be relayed, or a wish for that, from who has no place here, or to a node that is no relay.
    DropRelayStranger => "drop_relay_stranger",
    /// Drop: a datagram to be relayed, when too many were waiting.
    DropRelayQueue => "drop_relay_queue",
    /// Drop: a datagram through more relays than two.
    DropRelayNested => "drop_relay_nested",
    /// Datagrams of the engine that did not leave: mostly probes larger than the interface's MTU.
    EngineUnsent => "engine_unsent",
}

/// All counters of one worker or of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; Counter::ALL.len()])
    }
}

impl Counters {
    /// Counts one.
    pub fn count(&mut self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts several.
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.0[counter as usize] += n;
    }

    /// How often it happened.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Adds everything that `other` counted.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Takes what was counted and starts again at zero; `None` while nothing was.
    pub fn take(&mut self) -> Option<Self> {
        (*self != Self::default()).then(|| std::mem::take(self))
    }

    /// Every counter with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&c| (c, self.get(c)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_summed_and_taken() {
        let (mut sum, mut one) = (Counters::default(), Counters::default());
        one.count(Counter::DropStorm);
        one.add(Counter::DropStorm, 2);
        sum.merge(&one);
        sum.merge(&one.take().unwrap());
        assert_eq!(sum.get(Counter::DropStorm), 6);
        assert_eq!(one.take(), None);
    }

    #[test]
    fn every_counter_stands_at_its_own_number_with_its_own_name() {
        let names: std::collections::BTreeSet<_> = Counter::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Counter::ALL.len());
        assert!(
            Counter::ALL
                .iter()
                .enumerate()
                .all(|(i, &c)| c as usize == i)
        );
    }
}
