//! `farlan why`: gathers how two members see the way to each other, of which one may be this node. What follows is judged in
//! [`crate::why`].

use super::{actor::Node, calls::refuse, join::answer, membership::Member, unix_now};
use crate::{api::Answer, why};
use dht::{
    message::{Request, Response},
    swarm::RequestError,
};
use overlay_types::{
    Candidate, Name, NatBehaviour, NatRule, NetworkId, PeerId,
    api::ApiError,
    why::{Explanation, Side, Site, View, WAYS_IN_MAX, WayIn, WayKind, Why},
};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};
use tokio::sync::oneshot;

/// How long a member may take to say how it sees things. Its control connection may have to be opened first.
const ASK_WITHIN: Duration = Duration::from_secs(8);

/// A member as it is found by what people type.
pub(super) struct Found {
    pub(super) peer: PeerId,
    pub(super) name: Name,
    /// The address meant, which may be a guest's.
    pub(super) address: Option<IpAddr>,
}

impl Node {
    /// `farlan why`.
    pub(super) fn why(
        &self,
        network: Option<&Name>,
        request: &Why,
        reply: oneshot::Sender<Answer<Explanation>>,
    ) {
        let asked = self.pair(network, request).and_then(|(id, from, to)| {
            let sides =
                [(from, to), (to, from)].map(|(side, other)| self.ask_side(id, side, other));
            match sides {
                [Ok(from), Ok(to)] => Ok((id, from, to)),
                [Err(error), _] | [_, Err(error)] => Err(error),
            }
        });
        let (id, from, to) = match asked {
            Ok(asked) => asked,
            Err(error) => return answer(reply, Err(error)),
        };
        let member = &self.networks[&id];
        let network = member.name().clone();
        let members = member.directory.members();
        let names: BTreeMap<_, _> = members
            .map(|cert| (cert.member, cert.name.clone()))
            .collect();
        tokio::spawn(async move {
            let (mut from, mut to) = tokio::join!(from.finish(), to.finish());
            complete(&mut from, &to);
            complete(&mut to, &from);
            let ways = [&from, &to].map(|side| side.way.as_ref()?.path?.relay);
            let relays = ways.into_iter().flatten();
            let explanation = Explanation {
                network,
                relaying: relays
                    .filter_map(|relay| Some((relay, names.get(&relay)?.clone())))
                    .collect(),
                passage: why::passage(&from, &to).to_string(),
                advice: why::advise(&from, &to),
                from,
                to,
            };
            answer(reply, Ok(explanation));
        });
    }

    /// The network that both are in, and who they are: the one named or the default one, else any that has both.
    fn pair(
        &self,
        network: Option<&Name>,
        request: &Why,
    ) -> Result<(NetworkId, PeerId, PeerId), ApiError> {
        let default = self.meant(network)?;
        let mut tried = vec![default];
        if network.is_none() && self.config.network.is_none() {
            tried.extend(self.networks.keys().filter(|id| **id != default));
        }
        let in_one = |id: &NetworkId| -> Result<_, ApiError> {
            let from = match &request.from {
                Some(target) => self.find_member(*id, target)?.peer,
                None => self.me,
            };
            Ok((*id, from, self.find_member(*id, &request.to)?.peer))
        };
        let mut outcomes = tried.iter().map(in_one);
        let first = outcomes.next().unwrap_or_else(|| refuse("in no network"));
        let (id, from, to) = match first {
            Ok(found) => found,
            Err(error) => match outcomes.find_map(Result::ok) {
                Some(found) => found,
                None => return Err(self.apart(&tried, request).unwrap_or(error)),
            },
        };
        if from == to {
            let name = &self.find_member(id, &request.to)?.name;
            return refuse(format!(
                "both are the node {name}; `farlan why A B` tells of the way between two nodes"
            ));
        }
        Ok((id, from, to))
    }

    /// Both are known, and in no network together.
    fn apart(&self, tried: &[NetworkId], request: &Why) -> Option<ApiError> {
        let place = |target: &str| {
            let mut ids = tried.iter();
            let id = ids.find(|id| self.find_member(**id, target).is_ok())?;
            Some(self.networks.get(id)?.name().clone())
        };
        let from = request.from.as_deref()?;
        let (at, other) = (place(from)?, place(&request.to)?);
        Some(ApiError {
            error: format!(
                "'{from}' is in network {at} and '{}' in {other}: members of different networks do not reach each other",
                request.to
            ),
        })
    }

    /// Who is meant: a name, an address or a node id; for a guest the node that it is behind.
    pub(super) fn find_member(&self, id: NetworkId, target: &str) -> Result<Found, ApiError> {
        let Some(member) = self.networks.get(&id) else {
            return refuse("the network was left");
        };
        let unix = unix_now();
        let found = if let Ok(peer) = target.parse::<PeerId>() {
            let address = member.directory.address_of(peer, unix).map(IpAddr::V4);
            Some((peer, address))
        } else if let Ok(address) = target.parse::<IpAddr>() {
            let found = member.directory.by_address(address, unix);
            found.map(|found| (found.peer, Some(address)))
        } else {
            let label = target
                .strip_suffix(&format!(".{}", member.directory.network().document().zone))
                .unwrap_or(target);
            let name = label.parse::<Name>().map_err(|e| ApiError {
                error: e.to_string(),
            })?;
            let by_name = member.directory.by_name(&name, unix);
            let by_name = by_name.map(|found| (found.peer, Some(found.address)));
            by_name.or_else(|| Some((named_member(member, &name)?, None)))
        };
        let found = found.and_then(|(peer, address)| {
            let name = member.directory.member(peer)?.name.clone();
            Some(Found {
                peer,
                name,
                address,
            })
        });
        found.ok_or_else(|| ApiError {
            error: format!(
                "nobody in the network {} is called '{target}'; `farlan peers` lists nodes and their guests",
                member.name()
            ),
        })
    }

    /// How this node sees things, for a member that asks.
    pub(super) fn view(&self, id: NetworkId, peer: PeerId) -> Option<View> {
        let mut way = self.plane.way_to(id, peer)?;
        // What is carried by a stream goes to an address of this host, which tells others nothing.
        let outside = |addr: &mut _| {
            if let Some(relay) = self.fabric.behind_stream(*addr) {
                *addr = relay;
            }
        };
        way.path.iter_mut().for_each(|path| outside(&mut path.to));
        for tried in &mut way.tried {
            outside(&mut tried.to);
            tried.answered_from.iter_mut().for_each(outside);
        }
        let site = self.site();
        Some(View { site, way })
    }

    fn site(&self) -> Site {
        Site {
            nat: self.nat.behaviour,
            udp: self.fabric.udp(),
            ways_in: ways_in(&self.candidates),
            relays: self.fabric.relay_places(),
        }
    }

    /// Begins to ask one side.
    fn ask_side(&self, id: NetworkId, peer: PeerId, other: PeerId) -> Result<AskedSide, ApiError> {
        let member = self.networks.get(&id);
        let cert = member.and_then(|member| member.directory.member(peer));
        let (Some(member), Some(cert)) = (member, cert) else {
            return refuse("the member has left the network");
        };
        let side = Side {
            id: peer,
            name: cert.name.clone(),
            address: member.directory.address_of(peer, unix_now()),
            is_here: peer == self.me,
            unasked: None,
            site: recorded_site(member, peer),
            way: None,
            gateway: None,
        };
        if peer == self.me {
            let side = Side {
                address: member.configured,
                site: self.site(),
                gateway: self.fabric.gateway(),
                ..side
            };
            let view = self.view(id, other);
            let view = view.ok_or_else(|| "it knows no way to the other yet".into());
            return Ok(AskedSide::Known(Box::new(take(side, view))));
        }
        let (swarm, addresses) = (self.swarm.clone(), member.control_addresses(peer));
        let request = Request::View {
            network: id,
            membership: Box::new(member.membership.clone()),
            peer: other,
        };
        let asking = tokio::spawn(async move {
            let asked = swarm.request(peer, &addresses, request.encode());
            match tokio::time::timeout(ASK_WITHIN, asked).await {
                Ok(Ok(bytes)) => read_view(&bytes),
                Ok(Err(RequestError::Unreachable { .. })) => {
                    Err("no control connection to it can be opened".into())
                }
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {} s", ASK_WITHIN.as_secs())),
            }
        });
        Ok(AskedSide::Asking(Box::new(side), asking))
    }
}

/// A side that is being asked.
enum AskedSide {
    /// It is this node.
    Known(Box<Side>),
    /// As far as it is known, and what it will say.
    Asking(Box<Side>, tokio::task::JoinHandle<Result<View, String>>),
}

impl AskedSide {
    async fn finish(self) -> Side {
        match self {
            Self::Known(side) => *side,
            Self::Asking(side, asking) => {
                let view = asking.await;
                take(*side, view.unwrap_or_else(|error| Err(error.to_string())))
            }
        }
    }
}

/// A side with what it said, or why it said nothing.
fn take(side: Side, view: Result<View, String>) -> Side {
    match view {
        Ok(View { site, way }) => Side {
            site,
            way: Some(way),
            ..side
        },
        Err(why) => Side {
            unasked: Some(why),
            ..side
        },
    }
}

fn read_view(bytes: &[u8]) -> Result<View, String> {
    match Response::decode(bytes) {
        Ok(Response::View(view)) if view.is_sound() => Ok(*view),
        Ok(Response::NotHere) => Err("it does not know this node, or the other one, yet".into()),
        Ok(Response::Busy) => Err("it has too much to do".into()),
        _ => Err("its version does not tell".into()),
    }
}

/// What a side that could not be asked has told the other one in person is fresher than its record.
fn complete(side: &mut Side, other: &Side) {
    let told = other.way.as_ref().map(|way| way.peer_nat);
    if side.way.is_none()
        && let Some(nat) = told.filter(|nat| nat.mapping != NatRule::Unknown)
    {
        side.site.nat = nat;
    }
}

/// Where a member is, by its signed record.
fn recorded_site(member: &Member, peer: PeerId) -> Site {
    let Some(record) = member.directory.get(peer) else {
        return Site::default();
    };
    Site {
        nat: NatBehaviour {
            mapping: NatRule::from_text(&record.nat.0),
            filtering: NatRule::from_text(&record.nat.1),
            ..NatBehaviour::default()
        },
        ways_in: ways_in(&record.candidates),
        ..Site::default()
    }
}

/// A member that has no address yet, or any longer, is found by its certificate.
fn named_member(member: &Member, name: &Name) -> Option<PeerId> {
    let mut members = member.directory.members();
    members
        .find(|cert| cert.name == *name)
        .map(|cert| cert.member)
}

fn ways_in(candidates: &[Candidate]) -> Vec<WayIn> {
    let one = |candidate: &Candidate| {
        let (kind, relay) = match candidate {
            Candidate::Host(_) => (WayKind::Host, None),
            Candidate::Reflexive(_) => (WayKind::Reflexive, None),
            Candidate::Mapped(_) => (WayKind::Mapped, None),
            Candidate::Relayed { via, .. } => (WayKind::Relayed, Some(*via)),
        };
        let addr = candidate.path_addr().socket_addr();
        WayIn { kind, addr, relay }
    };
    candidates.iter().take(WAYS_IN_MAX).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_types::why::Way;

    fn side(way: Option<Way>) -> Side {
        Side {
            id: PeerId([1; 32]),
            name: "a".parse().unwrap(),
            address: None,
            is_here: false,
            unasked: None,
            site: Site::default(),
            way,
            gateway: None,
        }
    }

    #[test]
    fn what_was_said_in_person_is_believed_of_a_side_that_cannot_be_asked() {
        let told = NatBehaviour {
            mapping: NatRule::EndpointIndependent,
            ..NatBehaviour::default()
        };
        let heard = Way {
            peer_nat: told,
            ..Way::default()
        };
        let (mut quiet, other) = (side(None), side(Some(heard)));
        complete(&mut quiet, &other);
        assert_eq!(quiet.site.nat, told);
        let mut asked = side(Some(Way::default()));
        complete(&mut asked, &other);
        assert_eq!(asked.site.nat, NatBehaviour::default());
    }

    #[test]
    fn a_view_beyond_its_bounds_is_not_taken() {
        let way_in = WayIn {
            kind: WayKind::Host,
            addr: ([192, 0, 2, 1], 1).into(),
            relay: None,
        };
        let view = |count| {
            let ways_in = vec![way_in; count];
            let site = Site {
                ways_in,
                ..Site::default()
            };
            let way = Way::default();
            Response::View(Box::new(View { site, way })).encode()
        };
        assert!(read_view(&view(WAYS_IN_MAX)).is_ok());
        assert!(read_view(&view(WAYS_IN_MAX + 1)).is_err());
        assert!(read_view(&Response::NotHere.encode()).is_err());
        assert!(read_view(b"nonsense").is_err());
    }
}
