//! Sockets beside the data port's: their numbers, whose they are, and how many there may be. What they are good for is
//! decided in [`crate::path`]; opening them is the shell's.

use super::{context::PeerKey, message::SocketChange};
use std::collections::{BTreeMap, VecDeque};

/// Extra sockets of a node, over all peers: one peer's search by chance (256) at a time, so that the NAT in front of us need
/// not bear two, and some for what was found. A process may have 1024 descriptors where nobody raised that.
const SOCKETS_MAX: usize = 352;

/// Who has use for a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// The node, which learns what its NAT does.
    Node,
    /// The paths to a peer.
    Peer(PeerKey),
}

/// The extra sockets of a node.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    owners: BTreeMap<u16, Owner>,
    last: u16,
    changes: VecDeque<SocketChange>,
}

impl Sockets {
    /// So many new ones for somebody, or fewer where too many are open. A number that was just closed is not used again
    /// soon: what is still under way with it must find nobody.
    pub(super) fn open(&mut self, count: usize, owner: Owner) -> Vec<u16> {
        let count = count.min(SOCKETS_MAX - self.owners.len());
        let mut opened = Vec::with_capacity(count);
        while opened.len() < count {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if !self.owners.contains_key(&self.last) {
                self.owners.insert(self.last, owner);
                self.changes.push_back(SocketChange::Open(self.last));
                opened.push(self.last);
            }
        }
        opened
    }

    /// Nobody needs it any longer.
    pub(super) fn close(&mut self, socket: u16) {
        if self.owners.remove(&socket).is_some() {
            self.changes.push_back(SocketChange::Close(socket));
        }
    }

    /// Whose it is.
    pub(super) fn owner(&self, socket: u16) -> Option<Owner> {
        self.owners.get(&socket).copied()
    }

    /// What the shell is to do next.
    pub(super) fn poll(&mut self) -> Option<SocketChange> {
        self.changes.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_types::{NetworkId, PeerId};

    const OWNER: Owner = Owner::Peer((NetworkId([1; 32]), PeerId([2; 32])));

    #[test]
    fn sockets_are_bounded_and_a_number_is_not_used_again_at_once() {
        let mut sockets = Sockets::default();
        let first = sockets.open(256, OWNER);
        assert_eq!(first.len(), 256);
        assert_eq!(sockets.open(1000, OWNER).len(), SOCKETS_MAX - 256);
        assert!(sockets.open(1, OWNER).is_empty());
        sockets.close(first[0]);
        assert_eq!(sockets.owner(first[0]), None);
        let again = sockets.open(1, OWNER);
        assert_eq!(again, [SOCKETS_MAX as u16 + 1]);
        let changes: Vec<_> = std::iter::from_fn(|| sockets.poll()).collect();
        assert_eq!(changes.len(), SOCKETS_MAX + 2);
        assert_eq!(changes[SOCKETS_MAX], SocketChange::Close(first[0]));
    }

    #[test]
    fn numbers_go_round_and_leave_out_those_in_use_and_the_data_port() {
        let mut sockets = Sockets::default();
        let kept = sockets.open(1, OWNER)[0];
        for _ in 0..70_000 {
            let socket = sockets.open(1, OWNER)[0];
            assert!(socket != 0 && socket != kept);
            sockets.close(socket);
            while sockets.poll().is_some() {}
        }
    }
}
