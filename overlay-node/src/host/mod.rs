//! What the node changes on its host: links, addresses and routes, and how the host resolves names.
//! Everything done here is undone at leave or stop, and healed after a crash.

pub mod hosts_file;
pub mod names;
pub mod netlink;
mod reachable;
pub mod resolved;
mod sleep;
pub mod sysctl;
mod uplinks;
mod watch;

pub use hosts_file::{HostsError, HostsFile};
pub use names::{HostNames, HostNamesError};
pub use netlink::{InterfaceAddress, Link, Netlink, NetlinkError, Route};
pub use resolved::{Resolved, ResolvedError};
pub use sleep::SleepWatch;
pub use sysctl::Sysctl;
pub use uplinks::WaysOut;
pub use watch::NetworkWatch;
