//! What a NAT does, in the words of RFC 4787.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a NAT's mapping or filtering depends on (RFC 4787 §4.1 and §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatRule {
    /// Not known yet.
    #[default]
    Unknown,
    /// No NAT in front of us.
    None,
    /// The same for every remote endpoint.
    EndpointIndependent,
    /// Per remote address.
    AddressDependent,
    /// Per remote address and port.
    AddressAndPortDependent,
}

impl NatRule {
    /// As `farlan status` prints it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address-and-port-dependent",
        }
    }

    /// Reads what [`Self::as_str`] says; anything else is unknown.
    pub fn from_text(text: &str) -> Self {
        [
            Self::None,
            Self::EndpointIndependent,
            Self::AddressDependent,
            Self::AddressAndPortDependent,
        ]
        .into_iter()
        .find(|rule| rule.as_str() == text)
        .unwrap_or_default()
    }

    /// Whether another remote endpoint may see another mapping.
    pub const fn is_dependent(self) -> bool {
        matches!(self, Self::AddressDependent | Self::AddressAndPortDependent)
    }
}

/// Which outside port a new mapping gets (RFC 4787 §4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortAssignment {
    /// Not known, or there is no NAT.
    #[default]
    Unknown,
    /// The inside port's number.
    Preserving,
    /// The last mapping's and so many more: it can be foretold.
    Contiguous {
        /// Never 0; the smallest distance that was seen.
        step: i16,
    },
    /// Any other.
    Random,
}

impl fmt::Display for PortAssignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Preserving => f.write_str("preserving"),
            Self::Contiguous { step } => write!(f, "contiguous by {step}"),
            Self::Random => f.write_str("random"),
        }
    }
}

/// What the NAT in front of a node does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatBehaviour {
    /// Which outside port one inside port gets.
    pub mapping: NatRule,
    /// Whose datagrams pass a mapping.
    pub filtering: NatRule,
    /// How outside ports are chosen.
    pub ports: PortAssignment,
    /// Whether two hosts behind it reach each other at their outside addresses (RFC 4787 §6); `None` while it is not known,
    /// or nothing is to be known without a NAT.
    pub hairpin: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_back_from_its_text() {
        for rule in [
            NatRule::Unknown,
            NatRule::None,
            NatRule::EndpointIndependent,
            NatRule::AddressDependent,
            NatRule::AddressAndPortDependent,
        ] {
            assert_eq!(NatRule::from_text(rule.as_str()), rule);
        }
        assert_eq!(NatRule::from_text("\u{1b}[31m"), NatRule::Unknown);
    }
}
