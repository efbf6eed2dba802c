//! `farlan why`: asks the node, and puts its answer into words for people who have never heard of ICE.

use crate::{
    client::Client,
    output::{rtt, say, say_json, say_paragraph, say_table, span},
};
use overlay_types::{
    Name, NatRule, PathKind, PeerId, PortAssignment,
    why::{Carriage, Explanation, Outcome, PathInUse, Side, Tried, Way, WayKind, Why},
};
use std::collections::BTreeMap;

/// What was typed: one target, or two.
pub(super) async fn why(client: &Client, targets: &[String], json: bool) -> anyhow::Result<()> {
    let (from, to) = match targets {
        [to] => (None, to),
        [from, to] => (Some(from), to),
        _ => anyhow::bail!("name one node, or two"), // clap takes no other number
    };
    let request = Why {
        from: from.cloned(),
        to: to.clone(),
    };
    let explanation: Explanation = client.post("/v1/why", &request).await?;
    if json {
        return say_json(&explanation);
    }
    show(&explanation);
    Ok(())
}

fn show(explanation: &Explanation) {
    let Explanation { from, to, .. } = explanation;
    let relaying = &explanation.relaying;
    say_paragraph("", &headline(from, to, relaying));
    for (side, other) in [(from, to), (to, from)] {
        say("");
        say_paragraph("", &title(side));
        for sentence in site_sentences(side) {
            say_paragraph("  ", &sentence);
        }
        for sentence in way_sentences(side, other) {
            say_paragraph("  ", &sentence);
        }
        let path = side.way.as_ref().and_then(|way| way.path);
        if let Some(path) = path.filter(|_| side.id == to.id) {
            let words = path_words(side, &path, relaying);
            say_paragraph("  ", &format!("Reaches {} {words}.", other.name));
        }
    }
    for (side, other) in [(from, to), (to, from)] {
        let Some(way) = side.way.as_ref().filter(|way| !way.tried.is_empty()) else {
            continue;
        };
        say("");
        say(&format!("Tried by {} to reach {}:", side.name, other.name));
        say_table(
            &HEADER,
            way.tried.iter().map(|tried| row(tried, way)).collect(),
        );
    }
    say("");
    say_paragraph(
        "",
        &format!("What the two NATs allow: {}.", explanation.passage),
    );
    if explanation.advice.is_empty() {
        say("There is nothing to make better.");
        return;
    }
    say("What would make it better:");
    for advice in &explanation.advice {
        say_paragraph("- ", &format!("{}.", advice.text));
    }
}

/// By which path the two reach each other.
fn headline(from: &Side, to: &Side, relaying: &BTreeMap<PeerId, Name>) -> String {
    let names = format!("{} to {}", from.name, to.name);
    let path = |side: &Side| side.way.as_ref().and_then(|way| way.path);
    match (path(from), path(to)) {
        (Some(path), _) => format!("{names}: {}.", path_words(from, &path, relaying)),
        (None, Some(path)) if from.way.is_none() => {
            let words = path_words(to, &path, relaying);
            format!("{names}: {words}, as {} sees it.", to.name)
        }
        _ => format!("{names}: there is no path."),
    }
}

fn path_words(side: &Side, path: &PathInUse, relaying: &BTreeMap<PeerId, Name>) -> String {
    let rtt = match path.rtt_us {
        0 => "not measured yet".into(),
        us => format!("round trip {}", rtt(us)),
    };
    let figures = format!("{rtt}, datagrams of up to {} bytes", path.mtu);
    match (path.kind, path.relay) {
        (PathKind::Direct, _) => format!("direct, at {}; {figures}", path.to),
        (kind, relay) => {
            let by = carriage(side, path);
            let relay = relay.map_or_else(String::new, |id| match relaying.get(&id) {
                Some(member) => format!(" {member}"),
                None => format!(" …{}", id.short()),
            });
            let to = path.to;
            match kind {
                PathKind::Stream => format!("by a stream to relay{relay} at {to}{by}; {figures}"),
                _ if path.relays > 1 => format!("by two relays, at {to} and{relay}; {figures}"),
                _ => format!("by relay{relay} at {to}; {figures}"),
            }
        }
    }
}

/// What a stream to the relay goes through.
fn carriage(side: &Side, path: &PathInUse) -> String {
    let mut places = side.site.relays.iter();
    let place = places.find(|place| Some(place.relay) == path.relay);
    let through = side
        .gateway
        .as_ref()
        .map_or_else(String::new, |at| format!(" {at}"));
    match place.map(|place| place.by) {
        _ if path.kind != PathKind::Stream => String::new(),
        None | Some(Carriage::Udp) => String::new(),
        Some(Carriage::Tls) => ", by TLS".into(),
        Some(Carriage::Proxy) => format!(", by TLS through the proxy{through}"),
        Some(Carriage::Ssh) => format!(", by SSH through the gateway{through}"),
    }
}

fn title(side: &Side) -> String {
    let address = side
        .address
        .map_or_else(String::new, |address| format!(" ({address})"));
    let how = match &side.unasked {
        Some(why) if side.is_here => format!(", this node: {why}"),
        _ if side.is_here => ", this node".into(),
        Some(why) => format!(", could not be asked: {why}"),
        None => String::new(),
    };
    format!("{}{address}{how}", side.name)
}

/// Where a side is.
fn site_sentences(side: &Side) -> Vec<String> {
    let mut sentences = Vec::new();
    if side.unasked.is_some() && !side.is_here {
        sentences.push("As it said of itself before:".into());
    }
    if side.site.udp == Some(false) {
        sentences.push("Its site lets no UDP out.".into());
    } else {
        sentences.push(nat_sentence(side));
    }
    let seen: Vec<_> = outside(side).iter().map(ToString::to_string).collect();
    if !seen.is_empty() {
        sentences.push(format!("The outside sees it at {}.", seen.join(" and ")));
    }
    let mapped = |kind| side.site.ways_in.iter().any(|way| way.kind == kind);
    if mapped(WayKind::Mapped) {
        sentences.push("Its router maps a port to it, which lets everybody in.".into());
    }
    sentences
}

/// Addresses by which it is known outside, beside those of its own interfaces.
fn outside(side: &Side) -> Vec<std::net::SocketAddr> {
    let is_outside = |kind| matches!(kind, WayKind::Reflexive | WayKind::Mapped);
    let ways = side.site.ways_in.iter();
    ways.filter(|way| is_outside(way.kind))
        .map(|way| way.addr)
        .collect()
}

/// What a NAT does, in a sentence.
fn nat_sentence(side: &Side) -> String {
    let nat = &side.site.nat;
    let lets_in = match nat.filtering {
        NatRule::None | NatRule::EndpointIndependent => "lets everybody in",
        NatRule::AddressDependent => "lets in only addresses that were sent to",
        NatRule::AddressAndPortDependent => "lets in only those ports that were sent to",
        NatRule::Unknown => "lets in it is not known whom",
    };
    match nat.mapping {
        NatRule::Unknown => "What the NAT in front of it does is not known.".into(),
        NatRule::None if matches!(nat.filtering, NatRule::AddressAndPortDependent) => {
            "No NAT, but a firewall that lets in only who was sent to.".into()
        }
        NatRule::None => "No NAT.".into(),
        NatRule::EndpointIndependent => {
            format!("Its NAT shows one port to everybody and {lets_in}.")
        }
        NatRule::AddressDependent | NatRule::AddressAndPortDependent => {
            let ports = match nat.ports {
                PortAssignment::Contiguous { .. } => "another port, the next one,",
                PortAssignment::Random => "another, random port",
                PortAssignment::Preserving | PortAssignment::Unknown => "another port",
            };
            format!("Its NAT shows each destination {ports} and {lets_in}.")
        }
    }
}

/// How a side sees the other one.
fn way_sentences(side: &Side, other: &Side) -> Vec<String> {
    let Some(way) = &side.way else {
        return Vec::new();
    };
    let mut sentences = Vec::new();
    let name = &other.name;
    match way.session_s.filter(|_| way.path.is_some()) {
        Some(seconds) => sentences.push(format!("In touch with {name} for {}.", span(seconds))),
        None => {
            let heard = match way.heard_ms {
                Some(ms) => format!("last heard {} ago", span(ms / 1000)),
                None => "never heard".into(),
            };
            let calls = match way.calls_unanswered {
                0 => String::new(),
                1 => ", called once".into(),
                n => format!(", called {n} times"),
            };
            sentences.push(format!("Not in touch with {name}: {heard}{calls}."));
        }
    }
    let tries = [
        (way.foretold, "foretell a port"),
        (way.by_chance, "meet a port by chance"),
    ];
    for (count, what) in tries.into_iter().filter(|(count, _)| *count > 0) {
        let times = if count == 1 {
            "once".into()
        } else {
            format!("{count} times")
        };
        sentences.push(format!("Tried {times} to {what}."));
    }
    sentences
}

const HEADER: [&str; 6] = ["KIND", "TO", "PROBES", "ANSWERS", "RTT", "RESULT"];

fn row(tried: &Tried, way: &Way) -> Vec<String> {
    let kind = match tried.kind {
        WayKind::Host => "own address",
        WayKind::Reflexive => "outside",
        WayKind::Mapped => "mapped port",
        WayKind::Relayed if tried.by_stream => "stream",
        WayKind::Relayed => "relay",
        WayKind::Seen => "seen",
    };
    let dash = |count: u32| {
        if count == 0 {
            "-".into()
        } else {
            count.to_string()
        }
    };
    vec![
        kind.into(),
        tried.to.to_string(),
        dash(tried.probes),
        dash(tried.answers),
        tried.rtt_us.map_or_else(|| "-".into(), rtt),
        result(tried, way),
    ]
}

/// What became of a way.
fn result(tried: &Tried, way: &Way) -> String {
    let ago =
        |ms: Option<u64>| ms.map_or_else(String::new, |ms| format!(" {} ago", span(ms / 1000)));
    let mut text = match tried.outcome {
        Outcome::InUse => "in use".into(),
        Outcome::WorseKind => "works; a better kind is in use".into(),
        Outcome::NotFaster => "works; the one in use is as good".into(),
        Outcome::HeldDown => format!("works, but failed{}", ago(tried.failed_ms)),
        Outcome::Unconfirmed => "works, about to be used".into(),
        Outcome::Lost if tried.failed_ms.is_some() => format!("lost{}", ago(tried.failed_ms)),
        Outcome::Lost => format!("lost: last answer{}", ago(tried.answered_ms)),
        Outcome::Silent => format!("no answer, tried{}", ago(tried.last_ms)),
        Outcome::Withheld => "not tried: the peer has sent too little to pay for it".into(),
        Outcome::Untried if way.session_s.is_none() && way.calls_unanswered > 0 => {
            "called, no answer".into()
        }
        Outcome::Untried => "not tried yet".into(),
        Outcome::Refused => "left alone: no peer can have this address".into(),
        Outcome::Excess => "left alone: too many are listed".into(),
    };
    if let Some(from) = tried.answered_from {
        text.push_str(&format!("; answers came from {from}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::table;

    fn tried(outcome: Outcome) -> Tried {
        Tried {
            kind: WayKind::Host,
            to: "[2001:db8:1:22:5054:ff:fe12:3456]:40000".parse().unwrap(),
            relay: None,
            by_stream: false,
            socket: 0,
            probes: 1234,
            answers: 1100,
            withheld: 0,
            first_ms: Some(90_000),
            last_ms: Some(41_000),
            answered_ms: Some(41_000),
            failed_ms: Some(3000),
            rtt_us: Some(123_400),
            answered_from: Some("198.51.100.123:40000".parse().unwrap()),
            outcome,
        }
    }

    #[test]
    fn every_outcome_has_words_that_fit_the_terminal() {
        let way = Way::default();
        let outcomes = [
            Outcome::InUse,
            Outcome::WorseKind,
            Outcome::NotFaster,
            Outcome::HeldDown,
            Outcome::Unconfirmed,
            Outcome::Lost,
            Outcome::Silent,
            Outcome::Withheld,
            Outcome::Untried,
            Outcome::Refused,
            Outcome::Excess,
        ];
        let rows: Vec<_> = outcomes.map(|outcome| row(&tried(outcome), &way)).into();
        for width in [80, 120] {
            let text = table(&HEADER, rows.clone(), Some(width));
            let longest = text.lines().map(|line| line.chars().count()).max();
            assert!(
                longest <= Some(usize::from(width)),
                "{longest:?} > {width}\n{text}"
            );
        }
        let said: std::collections::BTreeSet<_> = rows.iter().map(|row| &row[5]).collect();
        assert_eq!(said.len(), outcomes.len());
    }

    #[test]
    fn relays_are_named_where_they_have_names() {
        let side = Side {
            id: PeerId([1; 32]),
            name: "a".parse().unwrap(),
            address: None,
            is_here: true,
            unasked: None,
            site: overlay_types::why::Site::default(),
            way: None,
            gateway: None,
        };
        let path = |relays, relay| PathInUse {
            kind: PathKind::Relay,
            to: "198.51.100.1:4078".parse().unwrap(),
            relay: Some(relay),
            relays,
            rtt_us: 20_000,
            mtu: 1472,
            mtu_refused: None,
            black_holes: 0,
        };
        let (member, other) = (PeerId([2; 32]), PeerId([3; 32]));
        let relaying = BTreeMap::from([(member, "vm-8".parse().unwrap())]);
        let words = |path| path_words(&side, &path, &relaying);
        let start = "by relay vm-8 at 198.51.100.1:4078; ";
        assert!(words(path(1, member)).starts_with(start));
        let start = "by two relays, at 198.51.100.1:4078 and vm-8; ";
        assert!(words(path(2, member)).starts_with(start));
        let start = format!("by relay …{} at ", other.short());
        assert!(words(path(1, other)).starts_with(&start));
    }

    #[test]
    fn a_way_that_was_only_called_is_told_so() {
        let fresh = Tried {
            answered_from: None,
            ..tried(Outcome::Untried)
        };
        let called = Way {
            calls_unanswered: 3,
            ..Way::default()
        };
        assert_eq!(result(&fresh, &called), "called, no answer");
        assert_eq!(result(&fresh, &Way::default()), "not tried yet");
    }
}
