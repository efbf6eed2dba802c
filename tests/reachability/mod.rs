//! The reachability matrix: which kinds of site there are and what two of them are to reach each other by ([`kinds`]), the
//! lab that has them all, and one try of one cell ([`stage`]).

pub(crate) mod kinds;
pub(crate) mod stage;
