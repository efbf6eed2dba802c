//! Control connections where only byte streams get out: a transport for addresses as `/ip4/192.0.2.1/tcp/443/tls`, which are
//! TLS (RFC 8446) from the first byte. How a stream gets there (straight, through a proxy, through SSH) is decided by whoever
//! opens it; both ends prove their identities by their certificates (the libp2p TLS specification).

use super::peer::{from_libp2p, split_peer, to_libp2p};
use crate::identity::Identity;
use futures::future::{BoxFuture, FutureExt, Pending};
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, Transport};
use overlay_types::PeerId;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// What a stream carries, told by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamService {
    /// A control connection.
    Control,
    /// Datagrams for the UDP services.
    Datagrams,
}

impl StreamService {
    /// Its name in ALPN.
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Control => b"farlan-control/1",
            Self::Datagrams => b"farlan-datagrams/2",
        }
    }

    /// The one of this name.
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        [Self::Control, Self::Datagrams]
            .into_iter()
            .find(|service| service.alpn() == name)
    }
}

/// Where a fabric node takes streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamAddr {
    /// Its address, or a name that whoever connects resolves.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// Who must answer there.
    pub peer: Option<PeerId>,
}

impl StreamAddr {
    /// Reads `/ip4/…/tcp/…/tls`, and the same with `ip6`, `dns`, `dns4` or `dns6`, with or without `/p2p/…` at the end.
    pub fn from_multiaddr(address: &Multiaddr) -> Option<Self> {
        let (bare, peer) = split_peer(address);
        let peer = peer.and_then(|peer| from_libp2p(&peer).ok());
        let mut parts = bare.iter();
        let host = match parts.next()? {
            Protocol::Ip4(ip) => ip.to_string(),
            Protocol::Ip6(ip) => ip.to_string(),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
            _ => return None,
        };
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Protocol::Tcp(port)), Some(Protocol::Tls), None) => {
                Some(Self { host, port, peer })
            }
            _ => None,
        }
    }

    /// As others are told of it.
    pub fn to_multiaddr(ip: IpAddr, port: u16) -> Multiaddr {
        Multiaddr::from(ip)
            .with(Protocol::Tcp(port))
            .with(Protocol::Tls)
    }
}

/// A byte stream.
pub trait ByteStream: futures::AsyncRead + futures::AsyncWrite + Send + Unpin {}

impl<T: futures::AsyncRead + futures::AsyncWrite + Send + Unpin> ByteStream for T {}

/// Opens a stream to where a fabric node takes control connections.
pub type StreamDialer =
    Arc<dyn Fn(StreamAddr) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>> + Send + Sync>;

/// Ways that need no stream are quicker; with this head start they also win.
const HEAD_START: Duration = Duration::from_millis(500);

/// Dials by [`StreamDialer`]; listens nowhere.
pub(super) struct StreamTransport {
    pub(super) dialer: Option<StreamDialer>,
}

impl Transport for StreamTransport {
    type Output = Box<dyn ByteStream>;
    type Error = io::Error;
    type ListenerUpgrade = Pending<io::Result<Self::Output>>;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let (Some(dialer), Some(at)) = (&self.dialer, StreamAddr::from_multiaddr(&address)) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let dialer = Arc::clone(dialer);
        Ok(async move {
            tokio::time::sleep(HEAD_START).await;
            dialer(at).await
        }
        .boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Poll::Pending
    }
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate: {0}")]
pub struct TlsError(String);

/// TLS towards a fabric node, which must be `server` if that is known.
///
/// # Errors
/// [`TlsError`] when no certificate can be made.
pub fn tls_client(
    identity: &Identity,
    server: Option<PeerId>,
    service: StreamService,
) -> Result<rustls::ClientConfig, TlsError> {
    let server = server.and_then(|peer| to_libp2p(peer).ok());
    let mut config = libp2p::tls::make_client_config(&keypair(identity), server)
        .map_err(|error| TlsError(error.to_string()))?;
    config.alpn_protocols = vec![service.alpn().to_vec()];
    config.key_log = Arc::new(rustls::NoKeyLog {}); // keys go nowhere, whatever the environment says
    Ok(config)
}

/// TLS for nodes that come; each has to prove who it is.
///
/// # Errors
/// [`TlsError`] when no certificate can be made.
pub fn tls_server(identity: &Identity) -> Result<rustls::ServerConfig, TlsError> {
    let mut config = libp2p::tls::make_server_config(&keypair(identity))
        .map_err(|error| TlsError(error.to_string()))?;
    config.alpn_protocols = [StreamService::Control, StreamService::Datagrams]
        .map(|service| service.alpn().to_vec())
        .into();
    config.key_log = Arc::new(rustls::NoKeyLog {});
    Ok(config)
}

pub(super) fn keypair(identity: &Identity) -> Keypair {
    Keypair::ed25519_from_bytes(*identity.to_bytes()).expect("32 bytes are an Ed25519 seed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_streams_are_read_and_others_are_left_to_others() {
        let peer = Identity::from_bytes(&[1; 32]).peer_id();
        let read = |text: String| StreamAddr::from_multiaddr(&text.parse().unwrap());
        let at = |host: &str, peer| StreamAddr {
            host: host.to_owned(),
            port: 443,
            peer,
        };
        assert_eq!(
            read(format!("/ip4/192.0.2.1/tcp/443/tls/p2p/{peer}")),
            Some(at("192.0.2.1", Some(peer)))
        );
        assert_eq!(
            read("/ip6/2001:db8::1/tcp/443/tls".into()),
            Some(at("2001:db8::1", None))
        );
        assert_eq!(
            read("/dns4/fabric.example/tcp/443/tls".into()),
            Some(at("fabric.example", None))
        );
        for other in [
            "/ip4/192.0.2.1/tcp/443",
            "/ip4/192.0.2.1/udp/443/quic-v1",
            "/ip4/192.0.2.1/tcp/443/tls/ws",
        ] {
            assert_eq!(read(other.into()), None, "{other}");
        }
        let ip = "192.0.2.1".parse().unwrap();
        assert_eq!(
            StreamAddr::from_multiaddr(&StreamAddr::to_multiaddr(ip, 443)),
            Some(at("192.0.2.1", None))
        );
    }
}
