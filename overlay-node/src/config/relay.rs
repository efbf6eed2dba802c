//! What relays give: a fabric node's, which is there for it, and a member's, which lives on somebody's uplink.

use super::ConfigError;
use serde::Deserialize;
use tunnel::relay::RelayLimits;

const BYTES_OF_MBIT: u64 = 1_000_000 / 8;

/// What a member relays for all others, in Mbit/s, unless it is told: each byte leaves by its uplink once. A quarter of the
/// 20 Mbit/s upload that the FCC calls broadband since 2024, so that relaying does not fill what people share with it.
const MEMBER_RATE_MBIT: u32 = 5;

/// What it relays for one member: enough for a shell, a call or a web page, and never all that there is.
const MEMBER_RATE_EACH_MBIT: u32 = 3;

/// Places at a member: each costs an exchange of 96 bytes in 25 s. All may be of one subnet, for members are known.
const MEMBER_PLACES_MAX: usize = 64;

/// What everyone keeps when the rest is spent, in bytes a second: all 64 together have 1 Mbit/s.
const MEMBER_FLOOR_RATE: u64 = 2_000;

/// `[relay]` of a member's file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RelaySection {
    serve: Option<bool>,
    rate: Option<u32>,
    rate_member: Option<u32>,
}

impl RelaySection {
    /// What a member relays for others; `None`: nothing.
    pub(super) fn resolve(&self, no_relay: bool) -> Result<Option<RelayLimits>, ConfigError> {
        let all = self.rate.unwrap_or(MEMBER_RATE_MBIT);
        if no_relay || self.serve == Some(false) || all == 0 {
            return Ok(None);
        }
        let each = self.rate_member.unwrap_or(MEMBER_RATE_EACH_MBIT.min(all));
        let (total_rate, identity_rate) = rates(all, each, "rate under [relay]", "rate_member")?;
        Ok(Some(RelayLimits {
            identity_rate,
            subnet_rate: total_rate, // who is behind one relay or NAT is known as a member all the same
            total_rate,
            shared_by_subnet: false,
            floor_rate: MEMBER_FLOOR_RATE,
            places_max: MEMBER_PLACES_MAX,
            places_per_subnet_max: MEMBER_PLACES_MAX,
        }))
    }
}

/// What a fabric node's relay gives of so many Mbit/s for all together and for one member: nothing at all of 0. Without a word
/// about members, none has more than all.
pub(super) fn of_fabric(all: Option<u32>, each: Option<u32>) -> Result<RelayLimits, ConfigError> {
    let usual = RelayLimits::default();
    if all == Some(0) {
        return Ok(RelayLimits {
            places_max: 0,
            ..usual
        });
    }
    let mbit = |rate: u64| (rate / BYTES_OF_MBIT) as u32;
    let all = all.unwrap_or(mbit(usual.total_rate));
    let each = each.unwrap_or(mbit(usual.identity_rate).min(all));
    let (total_rate, identity_rate) = rates(all, each, "--relay-rate", "--relay-rate-member")?;
    Ok(RelayLimits {
        total_rate,
        identity_rate,
        // Two members at one place, or neighbours, are as much as one may ask for and its peer.
        subnet_rate: (identity_rate * 2).min(total_rate),
        ..usual
    })
}

/// Both in bytes a second. `all_is` and `each_is` are what the settings are called.
fn rates(all: u32, each: u32, all_is: &str, each_is: &str) -> Result<(u64, u64), ConfigError> {
    if each > all {
        return Err(ConfigError::Contradiction(format!(
            "one member may not have more of the relay than all together, {all} Mbit/s; give more to {all_is}, or less to {each_is}"
        )));
    }
    Ok((
        u64::from(all) * BYTES_OF_MBIT,
        u64::from(each) * BYTES_OF_MBIT,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_member(text: &str) -> Result<Option<RelayLimits>, ConfigError> {
        toml::from_str::<RelaySection>(text).unwrap().resolve(false)
    }

    #[test]
    fn a_member_relays_a_little_unless_it_is_told() {
        let usual = of_member("").unwrap().unwrap();
        assert_eq!((usual.total_rate, usual.identity_rate), (625_000, 375_000));
        let more = of_member("rate = 80\nrate_member = 40").unwrap().unwrap();
        assert_eq!(
            (more.total_rate, more.identity_rate),
            (10_000_000, 5_000_000)
        );
        let less = of_member("rate = 1").unwrap().unwrap();
        assert_eq!((less.total_rate, less.identity_rate), (125_000, 125_000));
        for nothing in ["serve = false", "rate = 0"] {
            assert_eq!(of_member(nothing).unwrap(), None);
        }
        assert_eq!(RelaySection::default().resolve(true).unwrap(), None);
        assert!(of_member("rate = 2\nrate_member = 3").is_err());
    }

    #[test]
    fn a_fabric_nodes_relay_gives_what_was_said_and_nobody_more_than_all() {
        assert_eq!(of_fabric(None, None).unwrap(), RelayLimits::default());
        let narrow = of_fabric(Some(80), None).unwrap();
        assert_eq!(
            (narrow.total_rate, narrow.identity_rate),
            (10_000_000, 10_000_000)
        );
        let wide = of_fabric(Some(8000), Some(800)).unwrap();
        assert_eq!(
            (wide.identity_rate, wide.subnet_rate),
            (100_000_000, 200_000_000)
        );
        assert!(of_fabric(Some(100), Some(101)).is_err());
        assert_eq!(of_fabric(Some(0), None).unwrap().places_max, 0);
    }
}
