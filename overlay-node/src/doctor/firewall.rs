//! What the host's own firewall does with datagrams of the data port, read from `nft -j list ruleset` (libnftables-json(5)). Rules
//! of iptables stand there too where it is built on nftables, which is usual. Whatever is not understood is said to be unsure.

use serde_json::Value;
use std::collections::BTreeMap;

/// Chains that jump to chains; nftables itself allows 16.
const DEPTH_MAX: usize = 16;

/// Rules that are looked at for one datagram, those that are jumped to again included: enough for any rule set that people
/// write, and soon done.
const STEPS_MAX: usize = 100_000;

/// What becomes of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing drops it.
    Passes,
    /// This drops it.
    Dropped(String),
    /// This may drop it.
    Unsure(String),
}

/// What becomes of the data port's datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFirewall {
    /// What leaves it.
    pub output: Fate,
    /// What comes from where something was sent to.
    pub answers: Fate,
    /// What comes unasked.
    pub strangers: Fate,
}

/// One datagram as rules see it.
#[derive(Clone, Copy, Debug)]
struct Datagram<'a> {
    hook: &'static str,
    state: &'static str,
    /// The data port is this one's destination, or its source.
    is_inbound: bool,
    port: DataPort<'a>,
}

/// The data port, as far as rules tell datagrams apart by it.
#[derive(Clone, Copy, Debug)]
pub struct DataPort<'a> {
    /// Its number, if that is known.
    pub number: Option<u16>,
    /// By which IP version it is spoken to.
    pub is_ipv6: bool,
    /// The interface by which datagrams come and leave.
    pub interface: Option<&'a str>,
}

/// The rule set is no JSON as `nft` writes it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("nft did not write what it usually does")]
pub struct Unreadable;

/// Reads a rule set.
///
/// # Errors
/// [`Unreadable`] when it is none.
pub fn read(json: &str, port: DataPort<'_>) -> Result<HostFirewall, Unreadable> {
    let whole: Value = serde_json::from_str(json).map_err(|_| Unreadable)?;
    let rules = Rules::read(&whole).ok_or(Unreadable)?;
    let datagram = |hook, state| Datagram {
        hook,
        state,
        is_inbound: hook == "input",
        port,
    };
    Ok(HostFirewall {
        output: rules.fate(datagram("output", "new")),
        answers: rules.fate(datagram("input", "established")),
        strangers: rules.fate(datagram("input", "new")),
    })
}

/// Family, table and name.
type ChainName<'a> = (&'a str, &'a str, &'a str);

/// A rule set by its chains.
#[derive(Debug, Default)]
struct Rules<'a> {
    chains: BTreeMap<ChainName<'a>, Chain<'a>>,
}

#[derive(Debug, Default)]
struct Chain<'a> {
    hook: Option<&'a str>,
    /// Chains of the types `nat` and `route` do not filter.
    filters: bool,
    drops: bool,
    rules: Vec<&'a [Value]>,
}

/// How going through a chain ends.
enum End {
    Accepted,
    Dropped(String),
    /// At its end, or by `return`.
    Returned,
}

/// Whether a rule is for a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Match {
    Yes,
    No,
    Unsure,
}

impl<'a> Rules<'a> {
    fn read(whole: &'a Value) -> Option<Self> {
        let mut rules = Self::default();
        let objects = whole.get("nftables")?.as_array()?;
        for object in objects {
            let text = |of: &'a Value, key: &str| of.get(key).and_then(Value::as_str);
            if let Some(chain) = object.get("chain") {
                let name = (
                    text(chain, "family")?,
                    text(chain, "table")?,
                    text(chain, "name")?,
                );
                let found = rules.chains.entry(name).or_default();
                found.hook = text(chain, "hook");
                found.filters = text(chain, "type") == Some("filter");
                found.drops = text(chain, "policy") == Some("drop");
            } else if let Some(rule) = object.get("rule") {
                let name = (
                    text(rule, "family")?,
                    text(rule, "table")?,
                    text(rule, "chain")?,
                );
                let expressions = rule.get("expr")?.as_array()?;
                rules
                    .chains
                    .entry(name)
                    .or_default()
                    .rules
                    .push(expressions);
            }
        }
        Some(rules)
    }

    /// What becomes of a datagram: every base chain must let it pass.
    fn fate(&self, datagram: Datagram<'_>) -> Fate {
        let bases = self.chains.iter().filter(|((family, ..), chain)| {
            let is_of_family = *family == "inet" || *family == datagram.port.family();
            is_of_family && chain.filters && chain.hook == Some(datagram.hook)
        });
        let mut fate = Fate::Passes;
        for (name, base) in bases {
            let mut walk = Walk {
                datagram,
                doubt: None,
                steps: 0,
            };
            let end = self.walk(*name, &mut walk, 0);
            let (_, table, chain) = name;
            let dropped = match end {
                End::Accepted => None,
                End::Dropped(rule) => Some(rule),
                End::Returned => base
                    .drops
                    .then(|| format!("the policy of chain {chain} in table {table} is drop")),
            };
            match (dropped, walk.doubt) {
                (Some(rule), None) => return Fate::Dropped(rule),
                (_, Some(rule)) => fate = Fate::Unsure(rule),
                (None, None) => {}
            }
        }
        fate
    }

    /// Goes through a chain.
    fn walk(&self, name: ChainName<'a>, walk: &mut Walk<'_>, depth: usize) -> End {
        let (Some(chain), true) = (self.chains.get(&name), depth < DEPTH_MAX) else {
            return End::Returned;
        };
        for rule in &chain.rules {
            walk.steps += 1;
            if walk.steps > STEPS_MAX {
                walk.doubt.get_or_insert_with(|| place(name, rule));
                return End::Returned;
            }
            let mut matched = Match::Yes;
            for expression in *rule {
                if let Some(condition) = expression.get("match") {
                    matched = matched.and(holds(condition, walk.datagram));
                } else if is_odd(expression) {
                    matched = matched.and(Match::Unsure);
                }
                if matched == Match::No {
                    break;
                }
                let Some(end) = self.verdict(expression, name, walk, depth) else {
                    continue;
                };
                if matched == Match::Yes {
                    return end;
                }
                walk.doubt.get_or_insert_with(|| place(name, rule));
                break;
            }
        }
        End::Returned
    }

    /// What an expression decides, if it is a verdict.
    fn verdict(
        &self,
        expression: &Value,
        (family, table, chain): ChainName<'a>,
        walk: &mut Walk<'_>,
        depth: usize,
    ) -> Option<End> {
        let (kind, what) = expression.as_object()?.iter().next()?;
        match kind.as_str() {
            "accept" => Some(End::Accepted),
            "drop" | "reject" => {
                let rule = format!("a rule of chain {chain} in table {table}");
                Some(End::Dropped(rule))
            }
            "return" => Some(End::Returned),
            "jump" | "goto" => {
                let target = what.get("target")?.as_str()?;
                let (target, ..) = self.chains.get_key_value(&(family, table, target))?;
                match self.walk(*target, walk, depth + 1) {
                    End::Returned if kind == "jump" => None,
                    end => Some(end),
                }
            }
            _ => None,
        }
    }
}

/// One datagram's way through a base chain.
struct Walk<'d> {
    datagram: Datagram<'d>,
    /// The first rule of which it is unsure whether it decides.
    doubt: Option<String>,
    steps: usize,
}

impl Match {
    const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Unsure, _) | (_, Self::Unsure) => Self::Unsure,
            (Self::Yes, Self::Yes) => Self::Yes,
        }
    }

    const fn from(is_so: bool) -> Self {
        if is_so { Self::Yes } else { Self::No }
    }

    const fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Unsure => Self::Unsure,
        }
    }
}

/// Expressions that decide by what cannot be known here: rates, extensions of iptables, lookups.
fn is_odd(expression: &Value) -> bool {
    ["limit", "xt", "vmap", "quota", "ct count", "queue"]
        .iter()
        .any(|kind| expression.get(kind).is_some())
}

fn place((_, table, chain): ChainName<'_>, rule: &[Value]) -> String {
    /// Longer rules are told by their beginning.
    const CHARS_MAX: usize = 160;
    let text = Value::from(rule).to_string();
    let text: String = text.chars().take(CHARS_MAX).collect();
    format!("chain {chain} in table {table}: {text}")
}

impl DataPort<'_> {
    /// The family whose rules are for one IP version alone.
    const fn family(&self) -> &'static str {
        if self.is_ipv6 { "ip6" } else { "ip" }
    }

    /// The other one.
    const fn other_family(&self) -> &'static str {
        if self.is_ipv6 { "ip" } else { "ip6" }
    }
}

/// Whether a condition holds for the datagram.
fn holds(condition: &Value, datagram: Datagram<'_>) -> Match {
    let (Some(left), Some(right)) = (condition.get("left"), condition.get("right")) else {
        return Match::Unsure;
    };
    let found = left_holds(left, right, datagram);
    match condition.get("op").and_then(Value::as_str) {
        Some("==" | "in") => found,
        Some("!=") => found.not(),
        _ => Match::Unsure,
    }
}

fn left_holds(left: &Value, right: &Value, datagram: Datagram<'_>) -> Match {
    let key = |of: &str| left.get(of)?.get("key")?.as_str();
    let field = |name: &str| left.get("payload")?.get(name)?.as_str();
    let Datagram {
        is_inbound, port, ..
    } = datagram;
    let is_udp = |value: &Value| is_word(value, "udp") || value.as_u64() == Some(UDP);
    let version = if port.is_ipv6 { "ipv6" } else { "ipv4" };
    match (key("meta"), key("ct"), field("protocol"), field("field")) {
        (Some("l4proto"), ..) => is_any(right, is_udp),
        (Some("protocol"), ..) => is_any(right, |value| is_word(value, port.family())),
        (Some("nfproto"), ..) => is_any(right, |value| is_word(value, version)),
        (Some("iifname" | "iif"), ..) if is_inbound => is_interface(right, port),
        (Some("oifname" | "oif"), ..) if !is_inbound => is_interface(right, port),
        (_, Some("state"), ..) => is_any(right, |value| is_word(value, datagram.state)),
        (.., Some("ip"), Some("protocol")) | (.., Some("ip6"), Some("nexthdr")) => {
            is_any(right, is_udp)
        }
        (.., Some(of), _) if of == port.other_family() => Match::No,
        (.., Some("tcp" | "icmp" | "icmpv6" | "sctp" | "dccp"), _) => Match::No,
        (.., Some("udp" | "th"), Some("dport")) if is_inbound => is_port(right, port.number),
        (.., Some("udp" | "th"), Some("sport")) if !is_inbound => is_port(right, port.number),
        _ => Match::Unsure,
    }
}

/// UDP's number (RFC 768), where rules do not name it.
const UDP: u64 = 17;

fn is_word(value: &Value, word: &str) -> bool {
    value.as_str() == Some(word)
}

/// The values of a right side: one, a list or a set.
fn is_any(right: &Value, is_it: impl Fn(&Value) -> bool) -> Match {
    let list = right.as_array().or_else(|| right.get("set")?.as_array());
    match list {
        Some(list) => Match::from(list.iter().any(is_it)),
        None if is_it(right) => Match::Yes,
        // A name begins with '@' where it is a set's.
        None if right.as_str().is_some_and(|text| !text.starts_with('@')) => Match::No,
        None if right.is_number() => Match::No,
        None => Match::Unsure,
    }
}

fn is_port(right: &Value, port: Option<u16>) -> Match {
    let Some(port) = port.map(u64::from) else {
        return Match::Unsure;
    };
    let is_it = |value: &Value| {
        let range = value.get("range").and_then(Value::as_array);
        let bounds = range.and_then(|r| Some((r.first()?.as_u64()?, r.get(1)?.as_u64()?)));
        value.as_u64() == Some(port)
            || bounds.is_some_and(|(low, high)| (low..=high).contains(&port))
    };
    if right.get("range").is_some() {
        return Match::from(is_it(right));
    }
    is_any(right, is_it)
}

fn is_interface(right: &Value, port: DataPort<'_>) -> Match {
    let Some(name) = port.interface else {
        // Whatever it is, the outside is not behind the loopback.
        return is_any(right, |v| !is_word(v, "lo")).and(Match::Unsure);
    };
    is_any(right, |value| {
        let pattern = value.as_str().unwrap_or_default();
        let begins = pattern.strip_suffix('*');
        pattern == name || begins.is_some_and(|begin| name.starts_with(begin))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const PORT: u16 = 7000;
    const PORT_4: DataPort<'_> = DataPort {
        number: Some(PORT),
        is_ipv6: false,
        interface: Some("eth0"),
    };

    fn chain(name: &str, hook: &str, policy: &str) -> Value {
        json!({"chain": {"family": "inet", "table": "filter", "name": name, "type": "filter",
               "hook": hook, "prio": 0, "policy": policy}})
    }

    fn rule(chain: &str, expressions: Value) -> Value {
        json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "expr": expressions}})
    }

    fn judged(objects: &[Value]) -> HostFirewall {
        let text = json!({ "nftables": objects }).to_string();
        read(&text, PORT_4).unwrap()
    }

    fn matches(left: Value, right: Value) -> Value {
        json!({"match": {"op": "==", "left": left, "right": right}})
    }

    fn state(words: Value) -> Value {
        json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": words}})
    }

    fn udp_port(right: Value) -> Value {
        matches(
            json!({"payload": {"protocol": "udp", "field": "dport"}}),
            right,
        )
    }

    fn is_dropped(fate: &Fate) -> bool {
        matches!(fate, Fate::Dropped(_))
    }

    #[test]
    fn without_rules_everything_passes() {
        let open = judged(&[chain("input", "input", "accept")]);
        assert_eq!(open.output, Fate::Passes);
        assert_eq!((open.answers, open.strangers), (Fate::Passes, Fate::Passes));
    }

    #[test]
    fn a_stateful_firewall_is_closed_to_strangers_only() {
        let found = judged(&[
            chain("input", "input", "drop"),
            rule(
                "input",
                json!([state(json!(["established", "related"])), {"accept": null}]),
            ),
            rule(
                "input",
                json!([matches(json!({"meta": {"key": "iifname"}}), json!("lo")), {"accept": null}]),
            ),
            rule(
                "input",
                json!([matches(json!({"payload": {"protocol": "tcp", "field": "dport"}}), json!(22)), {"accept": null}]),
            ),
        ]);
        assert_eq!(found.answers, Fate::Passes);
        assert!(is_dropped(&found.strangers), "{found:?}");
        assert_eq!(found.output, Fate::Passes);
    }

    #[test]
    fn the_port_is_found_as_a_number_a_range_and_in_a_set() {
        for right in [
            json!(PORT),
            json!({"range": [6000, 8000]}),
            json!({"set": [53, PORT]}),
            json!({"set": [53, {"range": [6999, 7001]}]}),
        ] {
            let found = judged(&[
                chain("input", "input", "accept"),
                rule(
                    "input",
                    json!([udp_port(right.clone()), {"counter": {"packets": 0}}, {"drop": null}]),
                ),
            ]);
            assert!(is_dropped(&found.answers), "{right}");
        }
        for right in [json!(53), json!({"range": [1, 2]}), json!({"set": [53]})] {
            let found = judged(&[
                chain("input", "input", "accept"),
                rule("input", json!([udp_port(right.clone()), {"drop": null}])),
            ]);
            assert_eq!(found.answers, Fate::Passes, "{right}");
        }
    }

    #[test]
    fn without_the_ports_number_its_rules_are_unsure_and_others_are_not() {
        let base = chain("input", "input", "accept");
        let port = DataPort {
            number: None,
            ..PORT_4
        };
        let fate = |objects: &[Value]| {
            let text = json!({ "nftables": objects }).to_string();
            read(&text, port).unwrap().answers
        };
        let of_port = rule("input", json!([udp_port(json!(PORT)), {"drop": null}]));
        assert!(matches!(fate(&[base.clone(), of_port]), Fate::Unsure(_)));
        assert!(is_dropped(&fate(&[
            base,
            rule("input", json!([{"drop": null}]))
        ])));
    }

    #[test]
    fn what_leaves_is_dropped_by_its_protocol() {
        let udp = matches(json!({"meta": {"key": "l4proto"}}), json!("udp"));
        let found = judged(&[
            chain("output", "output", "accept"),
            rule("output", json!([udp, {"reject": {"type": "icmp"}}])),
        ]);
        assert!(is_dropped(&found.output));
        assert_eq!(found.answers, Fate::Passes);
    }

    #[test]
    fn chains_are_gone_through_and_come_back_from() {
        let jump = |to: &str| json!([{"jump": {"target": to}}]);
        let base = || chain("input", "input", "accept");
        let named = json!({"chain": {"family": "inet", "table": "filter", "name": "mine"}});
        let found = judged(&[
            base(),
            named.clone(),
            rule("input", jump("mine")),
            rule("mine", json!([{"drop": null}])),
        ]);
        assert!(is_dropped(&found.strangers));
        let found = judged(&[
            base(),
            named.clone(),
            rule("input", jump("mine")),
            rule("mine", json!([{"return": null}])),
            rule("mine", json!([{"drop": null}])),
        ]);
        assert_eq!(found.strangers, Fate::Passes);
        let found = judged(&[
            base(),
            named,
            rule("input", jump("mine")),
            rule("mine", jump("mine")),
        ]);
        assert_eq!(found.strangers, Fate::Passes, "a loop ends");
    }

    #[test]
    fn what_is_not_understood_is_unsure_where_it_decides_and_only_there() {
        let base = || chain("input", "input", "accept");
        let from = matches(
            json!({"payload": {"protocol": "ip", "field": "saddr"}}),
            json!("192.0.2.1"),
        );
        let found = judged(&[base(), rule("input", json!([from, {"drop": null}]))]);
        assert!(matches!(found.answers, Fate::Unsure(_)));
        let found = judged(&[base(), rule("input", json!([from, {"counter": null}]))]);
        assert_eq!(found.answers, Fate::Passes);
        let xt = json!([{"xt": null}, {"drop": null}]);
        let found = judged(&[base(), rule("input", xt)]);
        assert!(matches!(found.answers, Fate::Unsure(_)));
    }

    #[test]
    fn chains_of_the_other_ip_version_and_of_nat_do_not_count() {
        let six = json!({"chain": {"family": "ip6", "table": "f", "name": "i", "type": "filter",
                         "hook": "input", "prio": 0, "policy": "drop"}});
        let nat = json!({"chain": {"family": "ip", "table": "n", "name": "i", "type": "nat",
                         "hook": "input", "prio": 0, "policy": "accept"}});
        assert_eq!(judged(&[six.clone(), nat]).strangers, Fate::Passes);
        let port = DataPort {
            is_ipv6: true,
            ..PORT_4
        };
        let text = json!({ "nftables": [six] }).to_string();
        assert!(is_dropped(&read(&text, port).unwrap().strangers));
        assert_eq!(read("no json", PORT_4), Err(Unreadable));
        assert_eq!(read("{}", PORT_4), Err(Unreadable));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let word = prop::sample::select(vec![
            "input", "filter", "drop", "udp", "inet", "match", "jump", "target", "mine", "@set",
            "lo*",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<u16>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(word.clone().prop_map(str::to_owned), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_expressions_are_judged(expressions in prop::collection::vec(any_json(), 0..4), right in any_json()) {
            let objects = [
                chain("input", "input", "drop"),
                rule("input", Value::from(expressions)),
                rule("input", json!([udp_port(right), {"accept": null}])),
            ];
            judged(&objects);
        }
    }
}
