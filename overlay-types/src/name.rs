//! Names of networks, nodes and guests: one DNS label (RFC 1035 §2.3.1), lower case.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// One DNS label: 1 to 63 of `a-z 0-9 -`, not beginning or ending with `-`; stored in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The nearest legal label to arbitrary text (a host name, DHCP option 12), or `None` where nothing is left of it.
    pub fn sanitized(text: &str) -> Option<Self> {
        let label: String = text
            .split('.')
            .next()
            .unwrap_or_default()
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .take(63)
            .collect();
        label.trim_matches('-').parse().ok()
    }
}

/// The text is not one DNS label.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a name; use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'")]
pub struct InvalidName(String);

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let lower = text.to_ascii_lowercase();
        let legal = (1..=63).contains(&lower.len())
            && lower
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !lower.starts_with('-')
            && !lower.ends_with('-');
        if legal {
            Ok(Self(lower))
        } else {
            Err(InvalidName(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Serde for a noun: its text where people read (JSON, TOML), its bytes on the wire.
macro_rules! serde_as_text {
    ($noun:ty, $raw:ty, $to_raw:expr, $from_raw:expr) => {
        impl Serialize for $noun {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() {
                    s.collect_str(self)
                } else {
                    Serialize::serialize(&$to_raw(self), s)
                }
            }
        }
        impl<'de> Deserialize<'de> for $noun {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                use serde::de::Error;
                if d.is_human_readable() {
                    String::deserialize(d)?.parse().map_err(D::Error::custom)
                } else {
                    $from_raw(<$raw as Deserialize>::deserialize(d)?).map_err(D::Error::custom)
                }
            }
        }
    };
}
pub(crate) use serde_as_text;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_lower_case_label() {
        assert_eq!("VM-8-1".parse::<Name>().unwrap().as_str(), "vm-8-1");
        for bad in ["", "-a", "a-", "a.b", "a_b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_name_becomes_the_nearest_label() {
        assert_eq!(
            Name::sanitized("My_Host.example.org").unwrap().as_str(),
            "my-host"
        );
        assert_eq!(Name::sanitized("___"), None);
    }
}
