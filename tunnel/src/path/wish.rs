//! What the agents of all peers have in common, and each wishes for: the node's sockets, and flows at the router before it.

use super::PathAgent;

/// What an agent wishes for. Each wish is answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathWish {
    /// Sockets beside the data port's: open so many, and say which by [`PathAgent::handle_sockets`].
    Open(usize),
    /// Ask STUN servers where they see this one, and tell [`PathAgent::handle_sampled`].
    Sample(u16),
    /// Close it.
    Close(u16),
    /// May so many flows be made at the router? Say it by [`PathAgent::handle_flows`].
    Flows(usize),
    /// So many that might have been made were not.
    Unmade(usize),
}

impl PathAgent {
    /// What is wished for next.
    pub fn poll_wish(&mut self) -> Option<PathWish> {
        self.wishes.pop_front()
    }

    pub(super) fn wish(&mut self, wish: PathWish) {
        self.wishes.push_back(wish);
    }
}
