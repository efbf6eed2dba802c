//! An IPv4 subnet: where a network's addresses come from.

use serde::{Deserialize, Serialize};
use std::{fmt, net::Ipv4Addr, str::FromStr};

/// An IPv4 network address and its prefix length (/8 to /30), written `10.77.0.0/16`. Host bits are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: Ipv4Addr,
    prefix_len: u8,
}

impl Subnet {
    /// A subnet from its base address and prefix length.
    ///
    /// # Errors
    /// [`InvalidSubnet`] when the prefix is not within 8..=30 or host bits are set.
    pub fn new(base: Ipv4Addr, prefix_len: u8) -> Result<Self, InvalidSubnet> {
        let subnet = Self { base, prefix_len };
        if !(8..=30).contains(&prefix_len) || u32::from(base) & !subnet.mask_bits() != 0 {
            return Err(InvalidSubnet(subnet.to_string()));
        }
        Ok(subnet)
    }

    /// The lowest address, with all host bits zero.
    pub const fn base(self) -> Ipv4Addr {
        self.base
    }

    /// Length of the network part in bits.
    pub const fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The netmask, as `255.255.0.0`.
    pub fn mask(self) -> Ipv4Addr {
        self.mask_bits().into()
    }

    /// The highest address, which reaches every station of the subnet.
    pub fn broadcast(self) -> Ipv4Addr {
        (u32::from(self.base) | !self.mask_bits()).into()
    }

    /// Whether `address` lies inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask_bits() == u32::from(self.base)
    }

    /// Whether any address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }

    const fn mask_bits(self) -> u32 {
        // A prefix of 8..=30 keeps the shift in range; the fields are private.
        u32::MAX << (32 - self.prefix_len as u32)
    }
}

/// The text is not a usable IPv4 subnet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is not a subnet; write it like 10.77.0.0/16, with a prefix of 8 to 30 and no host bits set"
)]
pub struct InvalidSubnet(String);

impl FromStr for Subnet {
    type Err = InvalidSubnet;

    fn from_str(text: &str) -> Result<Self, InvalidSubnet> {
        let invalid = || InvalidSubnet(text.chars().take(80).collect());
        let (base, len) = text.split_once('/').ok_or_else(invalid)?;
        let base = base.parse().map_err(|_| invalid())?;
        let prefix_len = len
            .parse()
            .ok()
            .filter(|len| (8..=30).contains(len))
            .ok_or_else(invalid)?;
        Self::new(base, prefix_len)
    }
}

impl TryFrom<String> for Subnet {
    type Error = InvalidSubnet;
    fn try_from(text: String) -> Result<Self, InvalidSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.base, self.prefix_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_knows_its_edges() {
        let s: Subnet = "10.77.0.0/16".parse().unwrap();
        assert_eq!(s.broadcast(), Ipv4Addr::new(10, 77, 255, 255));
        assert!(s.contains(Ipv4Addr::new(10, 77, 3, 4)));
        assert!(s.overlaps("10.77.8.0/24".parse().unwrap()));
        assert!(!s.overlaps("10.78.0.0/16".parse().unwrap()));
    }

    #[test]
    fn host_bits_and_odd_prefixes_are_refused() {
        for bad in [
            "10.77.0.1/16",
            "10.0.0.0/7",
            "10.0.0.0/31",
            "10.0.0.0",
            "x/16",
            "10.0.0.0/99",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
