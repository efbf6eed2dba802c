//! The reachability matrix: which kinds of site there are and what two of them are to reach each other by ([`kinds`]), the
//! lab that has them all, and one try of one cell ([`stage`]). Beside it, what befalls a node's network ([`moved`]), and a
//! conversation that has to live through it ([`talk`]).

pub(crate) mod kinds;
pub(crate) mod moved;
pub(crate) mod stage;
pub(crate) mod talk;
