//! Getting out where UDP does not: TLS streams to a fabric node, straight, through an HTTP proxy, or through SSH.
//!
//! ```text
//! libp2p ─────────────────────────────┐                                    ┌── libp2p's TCP port
//!                                     ├─ TLS ─ (proxy, SSH) ─ TLS, 443 ────┤
//! data port ── loopback ── carrier ───┘                                    └── loopback ── STUN and relay
//! ```
//! To the data plane a relay behind a stream is a relay at an address of this host. `opener` finds the way out, `carrier`
//! moves datagrams, `server` is the fabric node's end. When which way is taken is decided in `node::fabric_client`.

mod bundle;
mod carrier;
mod opener;
mod proxy;
mod resequencer;
mod server;
mod ssh;
mod via;

pub(crate) use carrier::{Carrier, Carriers};
pub(crate) use opener::Opener;
pub(crate) use server::{StreamServer, StreamServices};
pub use via::{InvalidVia, Via};

use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// A stream of bytes, whatever it goes through.
pub(crate) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// What waits in the kernel unsent is delay for what comes behind.
const UNSENT_BYTES_MAX: u32 = 16 << 10;
/// A connection is dead when what was sent on it stays unconfirmed for so long.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(20);
/// A spare stream may say nothing for days, and must neither be forgotten by a NAT nor stay when its other end is gone.
const QUIET_MAX: Duration = Duration::from_secs(30);

/// Sets a TCP connection up for datagrams.
fn tune(tcp: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(QUIET_MAX);
    socket.set_tcp_keepalive(&keepalive.with_interval(QUIET_MAX / 3))?;
    socket.set_tcp_user_timeout(Some(UNCONFIRMED_MAX))?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}
