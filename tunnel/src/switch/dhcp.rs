//! Who may ask for addresses and who may hand them out, by the network's DHCP mode: questions go to the node, or pass
//! and are snooped; servers and routers that nobody put there are silenced. Reading the messages is the node's.

use super::{Source, Verdict, facts::Content};
use crate::{snapshot::NetworkView, stats::Counter};
use overlay_types::{DhcpMode, PortKind};

/// What becomes of a frame that has to do with configuration of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Classified {
    /// Nothing special: on to the next stage.
    Pass,
    /// On to the next stage, and a copy to the node.
    Snoop,
    /// Here it ends.
    End(Verdict),
}

/// Classifies by the network's mode and by who speaks.
pub fn classify(view: &NetworkView, from: Source, content: &Content) -> Classified {
    let is_lan =
        matches!(from, Source::Port(at) if view.ports[usize::from(at)].kind == PortKind::Lan);
    let is_own_port = matches!(from, Source::Port(_)) && !is_lan;
    let is_question = matches!(
        content,
        Content::DhcpToServer(_) | Content::RouterSolicitation(_)
    );
    let is_answer = matches!(
        content,
        Content::DhcpToClient(_) | Content::RouterAdvertisement(_)
    );
    let is_dhcp = matches!(content, Content::DhcpToServer(_) | Content::DhcpToClient(_));
    if from == Source::Node || !(is_question || is_answer) {
        return Classified::Pass;
    }
    match view.dhcp {
        // The node serves its own guests; nobody else does, and no question leaves the node.
        DhcpMode::Overlay if is_question && is_own_port => Classified::End(Verdict::Punt),
        DhcpMode::Overlay => Classified::End(Verdict::Drop(Counter::DropRogueServer)),
        // The LAN's own server and router serve: what they say comes out of a LAN port, here or at a peer.
        DhcpMode::Lan if is_answer && is_own_port => {
            Classified::End(Verdict::Drop(Counter::DropRogueServer))
        }
        DhcpMode::Lan if is_dhcp => Classified::Snoop,
        DhcpMode::Lan | DhcpMode::Off => Classified::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::switch::testing::*;
    use std::net::Ipv4Addr;

    const DISCOVER: Content = Content::DhcpToServer(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    const OFFER: Content = Content::DhcpToClient(std::net::IpAddr::V4(IP_B));
    const ROGUE: Classified = Classified::End(Verdict::Drop(Counter::DropRogueServer));

    #[test]
    fn in_overlay_mode_questions_go_to_the_node_and_no_other_server_is_heard() {
        let view = view(DhcpMode::Overlay);
        assert_eq!(
            classify(&view, GUEST_PORT, &DISCOVER),
            Classified::End(Verdict::Punt)
        );
        for from in [GUEST_PORT, HOST_PORT, LAN_PORT, PEER] {
            assert_eq!(classify(&view, from, &OFFER), ROGUE, "{from:?}");
        }
        assert_eq!(classify(&view, PEER, &DISCOVER), ROGUE);
        assert_eq!(classify(&view, Source::Node, &OFFER), Classified::Pass);
    }

    #[test]
    fn in_lan_mode_the_lans_server_is_heard_and_snooped_and_a_guests_is_not() {
        let view = view(DhcpMode::Lan);
        assert_eq!(classify(&view, GUEST_PORT, &DISCOVER), Classified::Snoop);
        assert_eq!(classify(&view, LAN_PORT, &OFFER), Classified::Snoop);
        assert_eq!(classify(&view, PEER, &OFFER), Classified::Snoop);
        assert_eq!(classify(&view, GUEST_PORT, &OFFER), ROGUE);
    }
}
