//! One network's names, and what is to be answered to a question about them.

use hickory_proto::rr::{LowerName, Name as DnsName, RecordType};
use ipnet::IpNet;
use overlay_types::{Name, NetworkId, Subnet};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

/// The zone above every network's: `vm-8-1.lab.farlan`.
pub const TOP_LEVEL: &str = "farlan";

/// What can be asked for: one network's names, immutable once published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    network: Name,
    subnet: Subnet,
    prefix6: [u8; 8],
    bare: bool,
    lan_served: bool,
    addresses: BTreeMap<Name, BTreeSet<IpAddr>>,
    owners: BTreeMap<IpAddr, Name>,
}

/// What a question gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name's addresses of the kind asked for.
    Addresses(Vec<IpAddr>),
    /// The address's name, in full.
    Pointer(String),
    /// The name is there, but nothing of the kind asked for.
    Nothing,
    /// There is no such name in our zone, or no such address in use.
    NoSuchName,
    /// Not our business.
    Refused,
}

impl Names {
    /// No names yet. `bare`: whether `vm-8-1` alone is answered as well; so in the host's default network only.
    pub fn new(network: Name, id: NetworkId, subnet: Subnet, bare: bool) -> Self {
        Self {
            network,
            subnet,
            prefix6: id.ula_prefix(),
            bare,
            lan_served: false,
            addresses: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    /// The same for a network whose guests have addresses of the user's LAN: private ones (RFC 1918) may be named as well.
    pub fn lan_served(self) -> Self {
        Self {
            lan_served: true,
            ..self
        }
    }

    /// The zone: `lab.farlan`.
    pub fn zone(&self) -> String {
        format!("{}.{TOP_LEVEL}", self.network)
    }

    /// Adds a name's address. An address outside the network's subnet and IPv6 prefix is left out: nobody gets to name what is not ours.
    /// An address has one name in reverse: the first.
    pub fn insert(&mut self, name: Name, address: IpAddr) {
        if self.is_ours(address) {
            self.owners.entry(address).or_insert_with(|| name.clone());
            self.addresses.entry(name).or_default().insert(address);
        }
    }

    /// A name's addresses.
    pub fn lookup(&self, name: &Name) -> impl Iterator<Item = IpAddr> {
        self.addresses.get(name).into_iter().flatten().copied()
    }

    /// Every name with its addresses.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &BTreeSet<IpAddr>)> {
        self.addresses.iter()
    }

    /// The network that they are of.
    pub const fn network(&self) -> &Name {
        &self.network
    }

    /// Whether single labels are answered too.
    pub const fn is_bare(&self) -> bool {
        self.bare
    }

    /// The zones of our addresses in reverse, each at a whole byte (IPv4) or digit (IPv6) of the address.
    pub fn reverse_zones(&self) -> Vec<String> {
        let bytes = usize::from(self.subnet.prefix_len().div_ceil(8));
        let spare = 8 * bytes - usize::from(self.subnet.prefix_len());
        let base = u32::from(self.subnet.base()) >> (32 - 8 * bytes);
        let mut zones: Vec<String> = (0..1_u32 << spare)
            .map(|n| {
                let [.., a, b, c, d] = (base | n).to_be_bytes();
                let labels: Vec<String> = [d, c, b, a]
                    .into_iter()
                    .take(bytes)
                    .map(|byte| byte.to_string())
                    .collect();
                format!("{}.in-addr.arpa", labels.join("."))
            })
            .collect();
        let digits: Vec<String> = self
            .prefix6
            .iter()
            .rev()
            .map(|byte| format!("{:x}.{:x}", byte & 15, byte >> 4))
            .collect();
        zones.push(format!("{}.ip6.arpa", digits.join(".")));
        zones
    }

    /// The networks from which questions are answered.
    pub(super) fn own_networks(&self) -> [IpNet; 2] {
        let mut octets = [0; 16];
        octets[..8].copy_from_slice(&self.prefix6);
        let v4 = ipnet::Ipv4Net::new_assert(self.subnet.base(), self.subnet.prefix_len());
        [
            v4.into(),
            ipnet::Ipv6Net::new_assert(Ipv6Addr::from(octets), 64).into(),
        ]
    }

    /// What to answer to a question of class IN.
    pub fn answer(&self, question: &LowerName, kind: RecordType) -> Answer {
        let question = DnsName::from(question);
        let labels: Vec<&[u8]> = question.iter().collect();
        let is = |label: &[u8], text: &str| label == text.as_bytes();
        match labels[..] {
            [.., arpa] if is(arpa, "arpa") => self.answer_reverse(&question, kind),
            [network, top] if is(network, self.network.as_str()) && is(top, TOP_LEVEL) => {
                Answer::Nothing
            }
            [label, network, top] if is(network, self.network.as_str()) && is(top, TOP_LEVEL) => {
                self.answer_name(label, kind)
            }
            [.., network, top] if is(network, self.network.as_str()) && is(top, TOP_LEVEL) => {
                Answer::NoSuchName
            }
            [label] if self.bare => self.answer_name(label, kind),
            _ => Answer::Refused,
        }
    }

    fn answer_name(&self, label: &[u8], kind: RecordType) -> Answer {
        let name = std::str::from_utf8(label)
            .ok()
            .and_then(|text| text.parse().ok());
        let Some(addresses) = name.and_then(|name: Name| self.addresses.get(&name)) else {
            return Answer::NoSuchName;
        };
        let fits = |address: &&IpAddr| match kind {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            kind => kind == RecordType::ANY,
        };
        let fitting: Vec<IpAddr> = addresses.iter().filter(fits).copied().collect();
        if fitting.is_empty() {
            Answer::Nothing
        } else {
            Answer::Addresses(fitting)
        }
    }

    fn answer_reverse(&self, question: &DnsName, kind: RecordType) -> Answer {
        let asked = question
            .parse_arpa_name()
            .ok()
            .filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(|net| net.addr());
        match asked {
            Some(address) if self.is_ours(address) => match self.owners.get(&address) {
                Some(name) if matches!(kind, RecordType::PTR | RecordType::ANY) => {
                    Answer::Pointer(format!("{name}.{}.", self.zone()))
                }
                Some(_) => Answer::Nothing,
                None => Answer::NoSuchName,
            },
            _ => Answer::Refused,
        }
    }

    fn is_ours(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.subnet.contains(v4) || self.lan_served && v4.is_private(),
            IpAddr::V6(v6) => v6.octets()[..8] == self.prefix6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(bare: bool) -> Names {
        let id = NetworkId([7; 32]);
        let mut names = Names::new(
            "lab".parse().unwrap(),
            id,
            "10.77.0.0/16".parse().unwrap(),
            bare,
        );
        names.insert("vm-8-1".parse().unwrap(), "10.77.3.4".parse().unwrap());
        names.insert(
            "vm-8-1".parse().unwrap(),
            "fd07:707:707:707::5".parse().unwrap(),
        );
        names.insert("evil".parse().unwrap(), "192.0.2.1".parse().unwrap());
        names
    }

    fn ask(names: &Names, question: &str, kind: RecordType) -> Answer {
        names.answer(
            &LowerName::new(&DnsName::from_ascii(question).unwrap()),
            kind,
        )
    }

    #[test]
    fn a_name_is_answered_in_full_and_bare() {
        let names = names(true);
        let v4 = Answer::Addresses(vec!["10.77.3.4".parse().unwrap()]);
        assert_eq!(ask(&names, "VM-8-1.Lab.Farlan.", RecordType::A), v4);
        assert_eq!(ask(&names, "vm-8-1.", RecordType::A), v4);
        assert_eq!(
            ask(&names, "vm-8-1.", RecordType::AAAA),
            Answer::Addresses(vec!["fd07:707:707:707::5".parse().unwrap()])
        );
        assert_eq!(
            ask(&names, "vm-8-1.lab.farlan.", RecordType::MX),
            Answer::Nothing
        );
        assert_eq!(ask(&names, "lab.farlan.", RecordType::NS), Answer::Nothing);
    }

    #[test]
    fn what_is_not_there_is_denied_only_where_the_zone_is_ours() {
        let names = names(false);
        assert_eq!(
            ask(&names, "nobody.lab.farlan.", RecordType::A),
            Answer::NoSuchName
        );
        assert_eq!(
            ask(&names, "a.vm-8-1.lab.farlan.", RecordType::A),
            Answer::NoSuchName
        );
        assert_eq!(ask(&names, "vm-8-1.", RecordType::A), Answer::Refused);
        for foreign in ["vm-8-1.other.farlan.", "farlan.", "example.org.", "."] {
            assert_eq!(
                ask(&names, foreign, RecordType::A),
                Answer::Refused,
                "{foreign}"
            );
        }
    }

    #[test]
    fn addresses_are_named_within_the_network_only() {
        let names = names(true);
        assert_eq!(
            ask(&names, "4.3.77.10.in-addr.arpa.", RecordType::PTR),
            Answer::Pointer("vm-8-1.lab.farlan.".into())
        );
        assert_eq!(
            ask(&names, "5.3.77.10.in-addr.arpa.", RecordType::PTR),
            Answer::NoSuchName
        );
        assert_eq!(
            ask(&names, "1.2.0.192.in-addr.arpa.", RecordType::PTR),
            Answer::Refused
        );
        assert_eq!(
            ask(&names, "77.10.in-addr.arpa.", RecordType::PTR),
            Answer::Refused
        );
        let reverse6 = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.0.7.0.7.0.7.0.7.0.7.0.7.0.d.f.ip6.arpa.";
        assert_eq!(
            ask(&names, reverse6, RecordType::PTR),
            Answer::Pointer("vm-8-1.lab.farlan.".into())
        );
        assert_eq!(
            ask(&names, "evil.lab.farlan.", RecordType::A),
            Answer::NoSuchName
        );
    }

    #[test]
    fn the_reverse_zones_cover_the_network_and_no_more() {
        let zones = |subnet: &str| {
            Names::new(
                "lab".parse().unwrap(),
                NetworkId([7; 32]),
                subnet.parse().unwrap(),
                true,
            )
            .reverse_zones()
        };
        assert_eq!(
            zones("10.77.0.0/16"),
            [
                "77.10.in-addr.arpa",
                "7.0.7.0.7.0.7.0.7.0.7.0.7.0.d.f.ip6.arpa"
            ]
        );
        assert_eq!(
            zones("192.168.4.0/23")[..2],
            ["4.168.192.in-addr.arpa", "5.168.192.in-addr.arpa"]
        );
        assert_eq!(zones("10.0.0.0/8")[0], "10.in-addr.arpa");
        assert_eq!(zones("10.1.2.252/30")[3], "255.2.1.10.in-addr.arpa");
        assert_eq!(zones("10.0.0.0/9").len(), 129);
    }

    proptest! {
        #[test]
        fn any_question_gets_an_answer(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..8), kind in any::<u16>()) {
            if let Ok(name) = DnsName::from_labels(labels.iter().map(Vec::as_slice)) {
                names(true).answer(&LowerName::new(&name), RecordType::from(kind));
            }
        }
    }
}
