//! The node's own DHCPv4 server for the guests on its ports (RFC 2131), as a pure core over whole Ethernet frames.
//! Which addresses it may grant is decided by the lease protocol and handed in as blocks.
//!
//! Every node serves its own guests and no others, so on a port there is never a second server that
//! could know better: where RFC 2131 §4.3.2 has a server without a record stay silent, this one says
//! no, and the client asks anew at once instead of waiting in vain.

mod config;
mod frame;
mod pool;
mod server;

pub use config::{Block, DhcpConfig, Route};
pub use pool::GuestBinding;
pub use server::{DhcpEvent, DhcpServer, DhcpStats};

/// Reads a frame as the server would and forgets it; for fuzzing. Tells whether it was a request.
pub fn is_request(frame: &[u8]) -> bool {
    frame::Request::decode(frame).is_ok()
}
