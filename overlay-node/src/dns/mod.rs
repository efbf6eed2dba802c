//! Answers for the network's own names and addresses, for the host and the guests, and for nothing else.
//! Which names there are is decided by the leases; the answers are looked up in `names` and carried by `server`.

mod names;
mod server;

pub use names::{Answer, Names, TOP_LEVEL};
pub use server::{DnsError, DnsServer};
