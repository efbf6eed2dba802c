//! Decides what becomes of one frame: anti-spoofing first, then DHCP and router guards, then answers from bindings, then
//! where it goes. It moves no bytes: workers and the engine do what a [`Judged`] says.

pub mod answer;
pub mod dhcp;
pub mod facts;
pub mod flood;
pub mod mac_table;
pub mod port_rules;

use crate::{
    snapshot::{NetworkView, Place},
    stats::Counter,
    wire::arp::{self, ArpPacket},
};
use answer::Answer;
use dhcp::Classified;
use facts::{Content, Facts};
use overlay_types::{DhcpMode, MacAddr, PortKind};
use port_rules::Refusal;
use std::net::{IpAddr, Ipv6Addr};

/// Where a frame came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A local port, by its place in the view.
    Port(u16),
    /// A peer, by its place in the view.
    Peer(u16),
    /// The node itself.
    Node,
}

impl Source {
    /// The place, which the node itself has none of.
    pub const fn place(self) -> Option<Place> {
        match self {
            Self::Port(at) => Some(Place::Port(at)),
            Self::Peer(at) => Some(Place::Peer(at)),
            Self::Node => None,
        }
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ends here, and is counted.
    Drop(Counter),
    /// It goes to one place.
    To(Place),
    /// It goes everywhere that split horizon and the source's budget allow.
    Flood,
    /// It is a question, and this goes back where it came from.
    Answer(Answer),
    /// It is a question about an address that nothing is bound to.
    Wanted(IpAddr),
    /// It is for the node itself.
    Punt,
    /// Its port waits for a guest, and this may be it.
    FirstOfPort,
}

/// The verdict, and what is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What becomes of the frame.
    pub verdict: Verdict,
    /// Who sent it.
    pub src: MacAddr,
    /// The station that sent it, if it is not where the view has it: to be learned.
    pub unseen: Option<MacAddr>,
    /// The station that sent it, if its place was learned: to be refreshed.
    pub learned: Option<MacAddr>,
    /// Whether the node wants a copy.
    pub snoop: bool,
    /// An IPv6 address that the sender takes and nobody is bound to.
    pub taken: Option<Ipv6Addr>,
}

impl Judged {
    const fn only(verdict: Verdict, src: MacAddr) -> Self {
        Self {
            verdict,
            src,
            unseen: None,
            learned: None,
            snoop: false,
            taken: None,
        }
    }
}

/// Judges a frame.
pub fn judge(view: &NetworkView, from: Source, frame: &[u8]) -> Judged {
    let Some(facts) = Facts::parse(frame) else {
        return Judged::only(Verdict::Drop(Counter::DropMalformed), MacAddr([0; 6]));
    };
    match port_rules::check(view, from, &facts) {
        Ok(()) => {}
        Err(Refusal::Drop(why)) => return Judged::only(Verdict::Drop(why), facts.src),
        Err(Refusal::FirstOfPort) => return Judged::only(Verdict::FirstOfPort, facts.src),
    }
    let mut judged = Judged::only(Verdict::Flood, facts.src);
    note_station(view, from, facts.src, &mut judged);
    judged.verdict = match dhcp::classify(view, from, &facts.content) {
        Classified::End(verdict) => verdict,
        classified => {
            judged.snoop = classified == Classified::Snoop || is_for_gateway(view, &facts);
            judged.taken = taken(view, from, &facts.content);
            question(view, from, &facts).unwrap_or_else(|| forward(view, from, facts.dst))
        }
    };
    judged
}

/// Names asked for and told: a node with a LAN behind it answers there for stations elsewhere, and must hear who else does.
fn is_for_gateway(view: &NetworkView, facts: &Facts) -> bool {
    matches!(facts.content, Content::Mdns(_))
        && facts.dst.is_group()
        && view.ports.iter().any(|port| port.kind == PortKind::Lan)
}

fn note_station(view: &NetworkView, from: Source, mac: MacAddr, judged: &mut Judged) {
    let Some(here) = from.place() else { return };
    match view.station(mac) {
        Some(station) if station.bound => {}
        Some(station) if station.place == here => judged.learned = Some(mac),
        _ => judged.unseen = Some(mac),
    }
}

/// Duplicate address detection for an address that is nobody's: RFC 6620 binds by it.
fn taken(view: &NetworkView, from: Source, content: &Content) -> Option<Ipv6Addr> {
    match *content {
        Content::NeighborSolicitation { source, target, .. }
            if source.is_unspecified()
                && matches!(from, Source::Port(_))
                && !target.is_unicast_link_local() =>
        {
            view.binding(target.into()).is_none().then_some(target)
        }
        _ => None,
    }
}

/// Questions about addresses, asked at a local port.
fn question(view: &NetworkView, from: Source, facts: &Facts) -> Option<Verdict> {
    let Source::Port(port) = from else {
        return None;
    };
    match facts.content {
        Content::Arp(packet) if packet.operation() == arp::REQUEST && !packet.is_gratuitous() => {
            arp_question(view, port, &packet)
        }
        Content::NeighborSolicitation { source, target, .. } => {
            neighbor_question(view, port, (facts.src, source), target)
        }
        _ => None,
    }
}

fn arp_question(view: &NetworkView, port: u16, request: &ArpPacket) -> Option<Verdict> {
    match view.binding(request.target_ip().into()) {
        Some(bound) if bound.place == Place::Port(port) || bound.mac == request.sender_mac() => {
            Some(UNANSWERED)
        }
        Some(bound) => Some(Verdict::Answer(Answer::arp(request, bound.mac))),
        None if view.dhcp == DhcpMode::Overlay => Some(Verdict::Wanted(request.target_ip().into())),
        None => None,
    }
}

fn neighbor_question(
    view: &NetworkView,
    port: u16,
    asker: (MacAddr, Ipv6Addr),
    target: Ipv6Addr,
) -> Option<Verdict> {
    let is_detection = asker.1.is_unspecified();
    match view.binding(target.into()) {
        Some(bound) if bound.place == Place::Port(port) || bound.mac == asker.0 => Some(UNANSWERED),
        Some(bound) => Some(Verdict::Answer(Answer::neighbor(asker, target, bound.mac))),
        None if view.dhcp == DhcpMode::Overlay
            && !is_detection
            && !target.is_unicast_link_local() =>
        {
            Some(Verdict::Wanted(target.into()))
        }
        None => None,
    }
}

/// The station itself answers behind its own port, and nobody answers an asker about its own address.
const UNANSWERED: Verdict = Verdict::Drop(Counter::DropUnanswered);

fn forward(view: &NetworkView, from: Source, dst: MacAddr) -> Verdict {
    if let [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f] = dst.0 {
        return Verdict::Drop(Counter::DropLinkLocal); // IEEE 802.1D table 7-10
    }
    if dst.is_group() {
        return Verdict::Flood;
    }
    match view.station(dst).map(|station| station.place) {
        Some(place) if from.place() == Some(place) => Verdict::Drop(Counter::DropHairpin),
        // Split horizon: every peer reaches every other by itself.
        Some(Place::Peer(_)) if matches!(from, Source::Peer(_)) => {
            Verdict::Drop(Counter::DropHairpin)
        }
        Some(Place::Elsewhere) => Verdict::Drop(Counter::DropNoSession),
        Some(place) => Verdict::To(place),
        None => Verdict::Flood,
    }
}

/// Answers a question that waited for its address to be bound; `None` if it is still unbound, or no question.
pub fn late_answer(view: &NetworkView, port: u16, frame: &[u8]) -> Option<Answer> {
    match question(view, Source::Port(port), &Facts::parse(frame)?)? {
        Verdict::Answer(answer) => Some(answer),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::{testing::*, *};
    use std::net::Ipv4Addr;

    fn verdict(view: &NetworkView, from: Source, frame: &[u8]) -> Verdict {
        judge(view, from, frame).verdict
    }

    #[test]
    fn arp_is_answered_from_bindings_and_never_for_unbound_addresses() {
        let view = view(DhcpMode::Overlay);
        let Verdict::Answer(answer) = verdict(&view, GUEST_PORT, &arp_request(A, IP_A, IP_B))
        else {
            panic!("no answer")
        };
        assert_eq!(
            Facts::parse(answer.frame()).unwrap().claim(),
            Some((IP_B.into(), B))
        );
        assert_eq!(
            verdict(&view, GUEST_PORT, &arp_request(A, IP_A, IP_UNBOUND)),
            Verdict::Wanted(IP_UNBOUND.into())
        );
    }

    #[test]
    fn a_probe_for_the_askers_own_address_is_not_answered_and_one_for_anothers_is() {
        let view = view(DhcpMode::Overlay);
        let nobody = Ipv4Addr::UNSPECIFIED;
        assert_eq!(
            verdict(&view, GUEST_PORT, &arp_request(A, nobody, IP_A)),
            UNANSWERED
        );
        assert!(matches!(
            verdict(&view, GUEST_PORT, &arp_request(A, nobody, IP_B)),
            Verdict::Answer(_)
        ));
    }

    #[test]
    fn in_lan_mode_a_question_about_an_unbound_address_floods() {
        let view = view(DhcpMode::Lan);
        assert_eq!(
            verdict(&view, GUEST_PORT, &arp_request(A, IP_A, IP_UNBOUND)),
            Verdict::Flood
        );
        assert_eq!(
            verdict(&view, PEER, &arp_request(B, IP_B, IP_A)),
            Verdict::Flood
        );
    }

    #[test]
    fn neighbors_are_answered_like_arp() {
        let view = view(DhcpMode::Overlay);
        assert!(matches!(
            verdict(&view, GUEST_PORT, &neighbor_solicitation(A, IP6_A, IP6_B)),
            Verdict::Answer(_)
        ));
        let unbound: Ipv6Addr = "fd00::99".parse().unwrap();
        assert_eq!(
            verdict(&view, GUEST_PORT, &neighbor_solicitation(A, IP6_A, unbound)),
            Verdict::Wanted(unbound.into())
        );
        let detection = judge(
            &view,
            GUEST_PORT,
            &neighbor_solicitation(A, Ipv6Addr::UNSPECIFIED, unbound),
        );
        assert_eq!(
            (detection.verdict, detection.taken),
            (Verdict::Flood, Some(unbound))
        );
        let own = judge(
            &view,
            GUEST_PORT,
            &neighbor_solicitation(A, Ipv6Addr::UNSPECIFIED, IP6_A),
        );
        assert_eq!((own.verdict, own.taken), (UNANSWERED, None));
    }

    #[test]
    fn frames_go_where_their_station_is_and_unknown_ones_flood() {
        let view = view(DhcpMode::Overlay);
        assert_eq!(
            verdict(&view, GUEST_PORT, &udp_frame(A, B, IP_A, IP_B, 1, 2)),
            Verdict::To(Place::Peer(0))
        );
        assert_eq!(
            verdict(&view, PEER, &udp_frame(B, A, IP_B, IP_A, 1, 2)),
            Verdict::To(Place::Port(1))
        );
        assert_eq!(
            verdict(&view, GUEST_PORT, &udp_frame(A, STRANGER, IP_A, IP_B, 1, 2)),
            Verdict::Flood
        );
        let hairpin = udp_frame(B, B, IP_B, IP_B, 1, 2);
        assert_eq!(
            verdict(&view, PEER, &hairpin),
            Verdict::Drop(Counter::DropHairpin)
        );
    }

    #[test]
    fn a_new_station_is_to_be_learned_and_a_bound_one_is_not() {
        let view = view(DhcpMode::Lan);
        assert_eq!(
            judge(
                &view,
                LAN_PORT,
                &udp_frame(STRANGER, B, IP_UNBOUND, IP_B, 1, 2)
            )
            .unseen,
            Some(STRANGER)
        );
        assert_eq!(
            judge(&view, GUEST_PORT, &udp_frame(A, B, IP_A, IP_B, 1, 2)).unseen,
            None
        );
    }

    #[test]
    fn bridge_control_frames_stay_on_their_segment() {
        let view = view(DhcpMode::Lan);
        let stp = udp_frame(
            STRANGER,
            MacAddr([1, 0x80, 0xc2, 0, 0, 0]),
            IP_UNBOUND,
            IP_B,
            1,
            2,
        );
        assert_eq!(
            verdict(&view, LAN_PORT, &stp),
            Verdict::Drop(Counter::DropLinkLocal)
        );
    }

    #[test]
    fn a_question_that_waited_is_answered_once_its_address_is_bound() {
        let mut view = view(DhcpMode::Overlay);
        let question = arp_request(A, IP_A, IP_UNBOUND);
        assert_eq!(late_answer(&view, 1, &question), None);
        std::sync::Arc::make_mut(&mut view.map).bindings.insert(
            IP_UNBOUND.into(),
            crate::snapshot::BoundAddress {
                mac: STRANGER,
                place: Place::Peer(1),
            },
        );
        assert!(late_answer(&view, 1, &question).is_some());
    }
}
