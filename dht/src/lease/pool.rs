//! Which addresses and blocks of a subnet may be handed out, and in which order they are tried.

use super::BLOCK_PREFIX_LEN;
use overlay_types::Subnet;
use std::net::Ipv4Addr;

/// Addresses in an extent.
const EXTENT: u32 = 1 << (32 - BLOCK_PREFIX_LEN);

/// A subnet as the registrars divide it: single addresses from below, blocks from above, and in the middle of larger
/// subnets a sixteenth that only an emergency epoch may hand out (the recovery pool).
#[derive(Clone, Copy, Debug)]
pub(super) struct Pool {
    subnet: Subnet,
}

impl Pool {
    pub(super) const fn new(subnet: Subnet) -> Self {
        Self { subnet }
    }

    /// The extent that `address` is in.
    pub(super) fn extent_of(address: Ipv4Addr) -> Ipv4Addr {
        (u32::from(address) & !(EXTENT - 1)).into()
    }

    /// Whether `address` may be leased to a station.
    pub(super) fn may_lease(self, address: Ipv4Addr) -> bool {
        self.subnet.contains(address)
            && address != self.subnet.base()
            && address != self.subnet.broadcast()
            && !self.is_recovery(Self::extent_of(address))
    }

    /// Whether the extent at `base` may be leased as a block: not the first, which is for single addresses.
    pub(super) fn may_block(self, base: Ipv4Addr) -> bool {
        Self::extent_of(base) == base
            && self.subnet.contains(base)
            && base != Self::extent_of(self.subnet.base())
            && !self.is_recovery(base)
    }

    /// Extents in the order in which single addresses are looked for.
    pub(super) fn extents_ascending(self) -> impl Iterator<Item = Ipv4Addr> {
        let (first, last) = (
            u32::from(Self::extent_of(self.subnet.base())),
            u32::from(self.subnet.broadcast()),
        );
        (0..=(last - first) / EXTENT)
            .map(move |i| Ipv4Addr::from(first + i * EXTENT))
            .filter(move |base| !self.is_recovery(*base))
    }

    /// Extents in the order in which blocks are looked for.
    pub(super) fn blocks_descending(self) -> impl Iterator<Item = Ipv4Addr> {
        let (first, last) = (
            u32::from(Self::extent_of(self.subnet.base())),
            u32::from(self.subnet.broadcast()),
        );
        (0..=(last - first) / EXTENT)
            .rev()
            .map(move |i| Ipv4Addr::from(first + i * EXTENT))
            .filter(move |base| self.may_block(*base))
    }

    /// The addresses of an extent that may be leased singly.
    pub(super) fn addresses(self, extent: Ipv4Addr) -> impl Iterator<Item = Ipv4Addr> {
        (0..EXTENT)
            .map(move |i| Ipv4Addr::from(u32::from(extent) + i))
            .filter(move |address| self.may_lease(*address))
    }

    /// The block at `base`.
    pub(super) fn block(base: Ipv4Addr) -> Subnet {
        Subnet::new(base, BLOCK_PREFIX_LEN).expect("an extent's base has no host bits")
    }

    fn is_recovery(self, extent: Ipv4Addr) -> bool {
        if self.subnet.prefix_len() > 24 {
            return false; // too small to set any aside
        }
        let size = 1u32 << (32 - u32::from(self.subnet.prefix_len()));
        let offset = u32::from(extent).wrapping_sub(self.subnet.base().into());
        (size / 2..size / 2 + size / 16).contains(&offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> Pool {
        Pool::new(text.parse().unwrap())
    }

    #[test]
    fn the_edges_of_the_subnet_are_nobodys() {
        let pool = pool("10.77.0.0/24");
        assert!(!pool.may_lease(Ipv4Addr::new(10, 77, 0, 0)));
        assert!(!pool.may_lease(Ipv4Addr::new(10, 77, 0, 255)));
        assert!(pool.may_lease(Ipv4Addr::new(10, 77, 0, 1)));
        assert!(!pool.may_lease(Ipv4Addr::new(10, 77, 1, 1)));
    }

    #[test]
    fn addresses_grow_from_below_blocks_from_above_and_the_middle_is_kept_for_emergencies() {
        let pool = pool("10.77.0.0/24");
        assert_eq!(
            pool.extents_ascending().next(),
            Some(Ipv4Addr::new(10, 77, 0, 0))
        );
        assert_eq!(
            pool.blocks_descending().next(),
            Some(Ipv4Addr::new(10, 77, 0, 240))
        );
        assert_eq!(pool.blocks_descending().count(), 14);
        assert!(!pool.may_lease(Ipv4Addr::new(10, 77, 0, 130)));
    }

    #[test]
    fn a_tiny_subnet_has_addresses_but_no_block() {
        let pool = pool("10.0.0.8/30");
        let all: Vec<_> = pool
            .extents_ascending()
            .flat_map(|e| pool.addresses(e))
            .collect();
        assert_eq!(
            all,
            [Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 10)]
        );
        assert_eq!(pool.blocks_descending().count(), 0);
    }
}
