//! What the NATs of two sides allow, by what each does with ports (RFC 4787). Both sides judge alike, and so know what
//! the other one is about to do.

use crate::stun::{NatBehaviour, NatRule, PortAssignment, STEP_MAX};
use std::fmt;

/// How a direct path between two sides can come to be, judged by their NATs. Whatever it says, the addresses that both
/// list are always probed: a judgement may be wrong or old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    /// What one of the NATs does is not known yet.
    #[default]
    Unknown,
    /// By probing the addresses that both list.
    Plain,
    /// By foretelling the port that a symmetric NAT gives out next.
    Predicted {
        /// Whether ours is to be foretold.
        ours: bool,
        /// Whether the peer's is.
        theirs: bool,
    },
    /// By chance: the side behind a symmetric NAT opens many mappings, the other side tries many ports (birthday paradox).
    ByChance {
        /// Whether the symmetric NAT is ours.
        ours: bool,
    },
    /// Not at all: neither side can know or guess the other's port.
    None,
}

impl Passage {
    /// Judges by what both NATs do.
    pub fn between(ours: &NatBehaviour, theirs: &NatBehaviour) -> Self {
        use Filter::{Address, Open, Strict};
        use Mapping::{Foretellable, Steady, Unknown, Wild};
        let (our_filter, their_filter) = (Filter::of(ours), Filter::of(theirs));
        match (Mapping::of(ours), Mapping::of(theirs)) {
            (Unknown, _) | (_, Unknown) => Self::Unknown,
            (Steady, Steady) => Self::Plain,
            // Who filters by address alone, or not at all, hears a symmetric NAT's side from whatever port.
            (Steady, _) if our_filter != Strict => Self::Plain,
            (_, Steady) if their_filter != Strict => Self::Plain,
            (Steady, Foretellable) => Self::Predicted {
                ours: false,
                theirs: true,
            },
            (Foretellable, Steady) => Self::Predicted {
                ours: true,
                theirs: false,
            },
            (Steady, Wild) => Self::ByChance { ours: false },
            (Wild, Steady) => Self::ByChance { ours: true },
            // Here both are symmetric. A mapping made for a STUN server is of use only where everybody is let in.
            _ if our_filter == Open || their_filter == Open => Self::Plain,
            (Foretellable, Foretellable) if our_filter == their_filter => Self::Predicted {
                ours: true,
                theirs: true,
            },
            // One foretold port is enough where its filter asks for the address only.
            (Foretellable, _) if our_filter == Address => Self::Predicted {
                ours: true,
                theirs: false,
            },
            (_, Foretellable) if their_filter == Address => Self::Predicted {
                ours: false,
                theirs: true,
            },
            // Both ports would have to be right at once: 2^32 pairs.
            (Foretellable | Wild, Foretellable | Wild) => Self::None,
        }
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "not known yet what the NATs do",
            Self::Plain => "direct by probing",
            Self::Predicted {
                ours: true,
                theirs: true,
            } => "direct by foretelling the ports of both NATs",
            Self::Predicted { .. } => "direct by foretelling the ports of the symmetric NAT",
            Self::ByChance { .. } => "direct by trying many ports of the symmetric NAT",
            Self::None => "relayed: both NATs are symmetric, and the ports cannot be foretold",
        })
    }
}

/// What a NAT's mappings mean to a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mapping {
    Unknown,
    /// A peer sees the address that STUN servers see.
    Steady,
    /// A peer sees another one, which can be foretold.
    Foretellable,
    /// A peer sees another one.
    Wild,
}

impl Mapping {
    fn of(nat: &NatBehaviour) -> Self {
        match (nat.mapping, nat.ports) {
            (NatRule::Unknown, _) => Self::Unknown,
            (NatRule::None | NatRule::EndpointIndependent, _) => Self::Steady,
            // A peer tells what its NAT does, so it may tell anything.
            (_, PortAssignment::Contiguous { step })
                if step != 0 && u32::from(step.unsigned_abs()) <= STEP_MAX =>
            {
                Self::Foretellable
            }
            _ => Self::Wild,
        }
    }
}

/// Whom a mapping lets in, once something was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filter {
    /// Everybody.
    Open,
    /// Whoever has an address that was sent to.
    Address,
    /// Only the address and port that was sent to.
    Strict,
}

impl Filter {
    fn of(nat: &NatBehaviour) -> Self {
        match nat.filtering {
            NatRule::None | NatRule::EndpointIndependent => Self::Open,
            NatRule::AddressDependent => Self::Address,
            // Not every server can show it, and most are strict.
            NatRule::AddressAndPortDependent | NatRule::Unknown => Self::Strict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use NatRule::{
        AddressAndPortDependent as Apd, AddressDependent as Ad, EndpointIndependent as Ei,
    };

    const fn nat(mapping: NatRule, filtering: NatRule, ports: PortAssignment) -> NatBehaviour {
        NatBehaviour {
            mapping,
            filtering,
            ports,
            hairpin: None,
        }
    }

    const STEP: PortAssignment = PortAssignment::Contiguous { step: 1 };
    const PUBLIC: NatBehaviour = nat(NatRule::None, NatRule::None, PortAssignment::Unknown);
    const FULL_CONE: NatBehaviour = nat(Ei, Ei, PortAssignment::Preserving);
    const ADDRESS: NatBehaviour = nat(Ei, Ad, PortAssignment::Random);
    const PORT: NatBehaviour = nat(Ei, Apd, PortAssignment::Random);
    const WILD: NatBehaviour = nat(Apd, Apd, PortAssignment::Random);
    const STEPS: NatBehaviour = nat(Apd, Apd, STEP);
    /// Linux' and others' symmetric NATs filter strictly; one that does not gives one side a chance.
    const STEPS_ADDRESS: NatBehaviour = nat(Apd, Ad, STEP);

    #[test]
    fn every_pair_of_nats_is_judged_alike_by_both_sides() {
        let (plain, none) = (Passage::Plain, Passage::None);
        let chance = |ours| Passage::ByChance { ours };
        let foretold = |ours, theirs| Passage::Predicted { ours, theirs };
        let pairs = [
            (PUBLIC, WILD, plain),
            (FULL_CONE, WILD, plain),
            (ADDRESS, WILD, plain),
            (ADDRESS, STEPS, plain),
            (PORT, PORT, plain),
            (PORT, ADDRESS, plain),
            (PORT, STEPS, foretold(false, true)),
            (PORT, WILD, chance(false)),
            (STEPS, STEPS, foretold(true, true)),
            (STEPS, WILD, none),
            (WILD, WILD, none),
            (STEPS_ADDRESS, WILD, foretold(true, false)),
            (STEPS_ADDRESS, STEPS, foretold(true, false)),
            (STEPS_ADDRESS, STEPS_ADDRESS, foretold(true, true)),
            (PORT, NatBehaviour::default(), Passage::Unknown),
        ];
        for (ours, theirs, expected) in pairs {
            assert_eq!(
                Passage::between(&ours, &theirs),
                expected,
                "{ours:?} {theirs:?}"
            );
            let mirrored = match expected {
                Passage::Predicted { ours, theirs } => foretold(theirs, ours),
                Passage::ByChance { ours } => chance(!ours),
                same => same,
            };
            assert_eq!(
                Passage::between(&theirs, &ours),
                mirrored,
                "{theirs:?} {ours:?}"
            );
        }
    }

    #[test]
    fn a_step_that_makes_no_sense_foretells_nothing() {
        for step in [0, 17, -17, i16::MIN] {
            let told = nat(Apd, Apd, PortAssignment::Contiguous { step });
            assert_eq!(
                Passage::between(&PORT, &told),
                Passage::ByChance { ours: false }
            );
        }
    }
}
