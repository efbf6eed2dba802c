//! The fabric node's end of streams: takes TLS on one port, and joins each stream to the control port or to the UDP services.

use super::{
    bundle::{Bundle, BundleId, Waiting},
    carrier::loopback_socket,
    tune,
};
use dht::{
    identity::Identity,
    swarm::{StreamService, tls_server},
};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use tunnel::io::service::{FabricService, twin_of};

/// Streams at a time; each costs some 200 kB.
const STREAMS_MAX: usize = 2048;
/// Streams of one IPv4 address or IPv6 /64 at a time: two for each member of a large site.
const STREAMS_OF_ONE_MAX: usize = 512;
/// How long a newcomer may take to say hello.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait when the system has no more descriptors, which others have to give back.
const PAUSE: Duration = Duration::from_millis(100);

/// Where streams end.
#[derive(Clone)]
pub(crate) struct StreamServices {
    /// libp2p's TCP port.
    pub(crate) control: SocketAddr,
    /// STUN and relay.
    pub(crate) udp: Arc<FabricService>,
    pub(crate) bundles: Arc<Bundles>,
}

/// Takes streams.
pub(crate) struct StreamServer {
    listeners: Vec<TcpListener>,
}

impl StreamServer {
    /// Listens on `addr`; an unspecified address serves both IP versions where the host has both.
    ///
    /// # Errors
    /// Whatever the kernel says against it.
    pub(crate) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let first = listen(addr)?;
        let port = first.local_addr()?.port();
        // A host may well have only one IP version.
        let twin = twin_of(addr, port).map(listen);
        let listeners = std::iter::once(first)
            .chain(twin.and_then(Result::ok))
            .collect();
        Ok(Self { listeners })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        let first = self.listeners.first();
        first
            .and_then(|listener| listener.local_addr().ok())
            .map_or(0, |addr| addr.port())
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// When there can be no TLS.
    pub(crate) fn serve(
        self,
        identity: &Identity,
        services: &StreamServices,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        let config = tls_server(identity).map_err(io::Error::other)?;
        let tls = TlsAcceptor::from(Arc::new(config));
        let room = Arc::new(Room::default());
        for listener in self.listeners {
            let accept = accept(listener, tls.clone(), services.clone(), Arc::clone(&room));
            let stop = stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(accept).await });
        }
        Ok(())
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(addr),
        socket2::Type::STREAM.nonblocking().cloexec(),
        None,
    )?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?; // a restart must not wait for the last connections to be forgotten
    socket.bind(&addr.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Ends, with all its streams, when dropped.
async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    services: StreamServices,
    room: Arc<Room>,
) {
    let mut streams = tokio::task::JoinSet::new();
    loop {
        while streams.try_join_next().is_some() {}
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot take a stream");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some(place) = room.enter(from.ip()) else {
            debug!(%from, "too many streams");
            continue;
        };
        let (tls, services) = (tls.clone(), services.clone());
        streams.spawn(async move {
            let outcome = serve_one(tcp, from, &tls, &services).await;
            debug!(%from, ?outcome, "a stream ended");
            drop(place);
        });
    }
}

/// Who has streams here, and how many.
#[derive(Default)]
struct Room(Mutex<BTreeMap<IpAddr, usize>>);

impl Room {
    /// Lets one more stream in, if there is room for it, until the guard is dropped.
    fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Entered> {
        let from = match from.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !0 << 64).into(),
            v4 => v4,
        };
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = streams.values().sum();
        let of_one = streams.get(&from).copied().unwrap_or(0);
        if all >= STREAMS_MAX || of_one >= STREAMS_OF_ONE_MAX {
            return None;
        }
        streams.insert(from, of_one + 1);
        Some(Entered {
            room: Arc::clone(self),
            from,
        })
    }
}

struct Entered {
    room: Arc<Room>,
    from: IpAddr,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut streams = self.room.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = streams.get_mut(&self.from) {
            *of_one -= 1;
            if *of_one == 0 {
                streams.remove(&self.from);
            }
        }
    }
}

async fn serve_one(
    tcp: TcpStream,
    from: SocketAddr,
    tls: &TlsAcceptor,
    services: &StreamServices,
) -> io::Result<()> {
    tune(&tcp)?;
    let stream = timeout(HELLO_WITHIN, tls.accept(tcp))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let service = stream.get_ref().1.alpn_protocol();
    match service.and_then(StreamService::from_alpn) {
        Some(StreamService::Control) => serve_control(stream, services.control).await,
        Some(StreamService::Datagrams) => serve_datagrams(stream, from, services).await,
        None => Err(io::Error::other("it does not say what it is for")),
    }
}

async fn serve_control(mut stream: TlsStream<TcpStream>, control: SocketAddr) -> io::Result<()> {
    let mut tcp = TcpStream::connect(control).await?;
    tcp.set_nodelay(true)?;
    copy_bidirectional(&mut stream, &mut tcp).await?;
    Ok(())
}

async fn serve_datagrams(
    mut stream: TlsStream<TcpStream>,
    from: SocketAddr,
    services: &StreamServices,
) -> io::Result<()> {
    let mut id = BundleId::default();
    timeout(HELLO_WITHIN, stream.read_exact(&mut id))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let joined = services.bundles.join(id, from, &services.udp).await?;
    joined.bundle.carry(stream).await
}

/// The bundles whose streams end here.
#[derive(Default)]
pub(crate) struct Bundles {
    open: Mutex<BTreeMap<BundleId, Weak<OpenBundle>>>,
    waiting: Waiting,
}

impl Bundles {
    /// The bundle of this name, which is opened by its first stream.
    async fn join(
        self: &Arc<Self>,
        id: BundleId,
        from: SocketAddr,
        udp: &Arc<FabricService>,
    ) -> io::Result<Arc<OpenBundle>> {
        let socket = loopback_socket(udp.main_addr()).await?;
        let mut bundles = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = bundles.get(&id).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let local = socket.local_addr()?;
        udp.open_stream(local, from.ip().to_canonical());
        let open = Arc::new(OpenBundle {
            bundle: Bundle::new(socket, Arc::clone(&self.waiting)),
            id,
            local,
            services: Arc::clone(udp),
            bundles: Arc::clone(self),
        });
        bundles.insert(id, Arc::downgrade(&open));
        Ok(open)
    }
}

/// The relay knows who is behind a bundle of streams while this lives.
struct OpenBundle {
    bundle: Bundle,
    id: BundleId,
    local: SocketAddr,
    services: Arc<FabricService>,
    bundles: Arc<Bundles>,
}

impl Drop for OpenBundle {
    fn drop(&mut self) {
        self.services.close_stream(self.local);
        let mut bundles = self
            .bundles
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if bundles
            .get(&self.id)
            .is_some_and(|open| open.strong_count() == 0)
        {
            bundles.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Carriers, Opener, Via};
    use dht::swarm::StreamAddr;
    use overlay_types::PathAddr;
    use overlay_types::PeerId;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use std::net::Ipv4Addr;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UdpSocket,
    };
    use tunnel::relay::{RelayClient, RelayEvent, RelayGrant};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn identity(n: u64) -> Identity {
        Identity::generate(&mut ChaCha20Rng::seed_from_u64(n))
    }

    /// A fabric node's streams, with a control port that says back what it hears.
    async fn server(stop: &CancellationToken) -> (StreamAddr, Arc<FabricService>) {
        let any = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let udp = Arc::new(FabricService::start(any(0), any(0)).unwrap());
        let echo = TcpListener::bind(any(0)).await.unwrap();
        let services = StreamServices {
            control: echo.local_addr().unwrap(),
            udp: Arc::clone(&udp),
            bundles: Arc::default(),
        };
        tokio::spawn(async move {
            while let Ok((mut tcp, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = tcp.split();
                    tokio::io::copy(&mut reader, &mut writer).await
                });
            }
        });
        let server = StreamServer::bind(any(0)).unwrap();
        let at = StreamAddr {
            host: "127.0.0.1".into(),
            port: server.port(),
            peer: Some(identity(1).peer_id()),
        };
        server.serve(&identity(1), &services, stop).unwrap();
        (at, udp)
    }

    #[tokio::test]
    async fn a_control_stream_reaches_the_control_port_and_only_the_right_node() {
        let stop = CancellationToken::new();
        let (at, _udp) = server(&stop).await;
        let opener = Opener::new(identity(2), &[]);
        let opened = opener.open(&at, StreamService::Control).await;
        let (mut stream, way) = opened.unwrap();
        assert_eq!(way, None, "straight");
        stream.write_all(b"hello").await.unwrap();
        stream.flush().await.unwrap();
        let mut heard = [0; 5];
        timeout(PATIENCE, stream.read_exact(&mut heard))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&heard, b"hello");

        let other = StreamAddr {
            peer: Some(identity(3).peer_id()),
            ..at
        };
        let refused = opener.open(&other, StreamService::Control).await;
        assert!(refused.is_err(), "another node answered");
        stop.cancel();
    }

    #[tokio::test]
    async fn a_place_at_the_relay_is_held_through_a_stream_and_ends_with_it() {
        let stop = CancellationToken::new();
        let (at, udp) = server(&stop).await;
        let data = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let carriers = Carriers {
            opener: Opener::new(identity(2), &[]),
            data_port: data.local_addr().unwrap(),
        };
        let carrier = carriers.open(&at).await.unwrap().0;
        let place = udp.allocate(PeerId([2; 32])).unwrap();
        let began = std::time::Instant::now();
        let mut client = RelayClient::new(1, began);
        let grant = RelayGrant {
            via: identity(1).peer_id(),
            relay: udp.main_addr(),
            through: None,
            is_member: false,
            index: place.index,
            key: place.key,
            carrier: Some(carrier.at),
        };
        client.set_grants(&[grant], began);
        let mut bytes = [0; 2048];
        while !matches!(client.poll_event(), Some(RelayEvent::Bound { .. })) {
            while let Some((to, message)) = client.poll_transmit() {
                data.send_to(&message, to.socket_addr()).await.unwrap();
            }
            let (len, from) = timeout(PATIENCE, data.recv_from(&mut bytes))
                .await
                .unwrap()
                .unwrap();
            client.handle_datagram(
                PathAddr::Direct(from),
                &bytes[..len],
                std::time::Instant::now(),
            );
        }
        assert_eq!(udp.stats().relay.bound, 1);

        // A question of STUN would be answered to an address of the fabric node's own host.
        let stun = [
            0, 1, 0, 0, 0x21, 0x12, 0xA4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        data.send_to(&stun, carrier.at).await.unwrap();
        let began = std::time::Instant::now();
        while udp.stats().dropped_unknown == 0 && began.elapsed() < PATIENCE {
            sleep(Duration::from_millis(10)).await;
        }
        let stats = udp.stats();
        assert_eq!((stats.dropped_unknown, stats.stun_answered), (1, 0));
        drop(carrier);
        let began = std::time::Instant::now();
        while udp.stats().relay.bound > 0 && began.elapsed() < PATIENCE {
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(udp.stats().relay.bound, 0);
        stop.cancel();
    }

    #[test]
    fn one_network_does_not_take_all_the_room() {
        let room = Arc::new(Room::default());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut crowd: Vec<_> = (0..STREAMS_OF_ONE_MAX)
            .map(|n| room.enter(ip(&format!("2001:db8::{n:x}"))).unwrap())
            .collect();
        assert!(room.enter(ip("2001:db8::ffff:1")).is_none());
        let other = room.enter(ip("192.0.2.1"));
        assert!(other.is_some());
        crowd.pop();
        assert!(room.enter(ip("2001:db8::ffff:1")).is_some());
        drop((crowd, other));
        assert!(room.0.lock().unwrap().is_empty());
        let full: Vec<_> = (0..STREAMS_MAX)
            .map(|n| room.enter(Ipv4Addr::from_bits(n as u32).into()))
            .collect();
        assert!(full.iter().all(Option::is_some));
        assert!(room.enter(ip("2001:db8::1")).is_none());
    }

    #[tokio::test]
    async fn what_is_no_tls_costs_little_and_an_unreachable_way_is_explained() {
        let stop = CancellationToken::new();
        let (at, _udp) = server(&stop).await;
        let mut tcp = TcpStream::connect((at.host.as_str(), at.port))
            .await
            .unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // An alert and the end, not a wait.
        let _closed = timeout(PATIENCE, tcp.read_to_end(&mut answer))
            .await
            .unwrap();

        let nowhere = StreamAddr { port: 1, ..at };
        let via: Via = "http://127.0.0.1:1".parse().unwrap();
        let opener = Opener::new(identity(2), &[via]);
        let opened = opener.open(&nowhere, StreamService::Control).await;
        let text = opened.err().unwrap().to_string();
        assert!(text.contains("straight: "), "{text}");
        assert!(text.contains("http://127.0.0.1:1: "), "{text}");
        stop.cancel();
    }
}
