//! The node's own DHCPv4 server for the guests on its ports (RFC 2131), as a pure core over whole Ethernet frames.
//! Which addresses it may grant is decided by the lease protocol and handed in as blocks.

mod server;

pub use server::{Block, DhcpConfig, DhcpEvent, DhcpServer, DhcpStats, GuestBinding, Route};
