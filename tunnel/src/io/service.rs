//! The UDP side of an infrastructure node: one thread that answers STUN on two sockets per IP version and relays on
//! the main ones. What it decides is in [`crate::stun`] and [`crate::relay`]; who gets a place is the control plane's.

use crate::relay::budget::Budget;
use crate::relay::{RelayLimits, RelayServer, RelayStats, Verdict};
use crate::stun::server_answer;
use crate::wire::datagram::{DatagramKind, classify};
use overlay_types::{PathAddr, PeerId};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// Buffers read at a time, each large enough for what the kernel joins (GRO).
const BATCH: usize = 8;
const BUFFER_BYTES: usize = 65_536;

/// Batches of one socket before the others have their turn.
const TURN: usize = 8;

/// Bytes of STUN answers a second for everybody together; an answer is longer than its question, so this is also all
/// that forged sources can make us send.
const STUN_RATE: u64 = 1_000_000;

/// Asked of the kernel, so that a burst waits rather than being lost; it gives what it allows.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// A place that was granted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The number of the place.
    pub index: u32,
    /// Proves that a binding is its holder's.
    pub key: [u8; 32],
}

/// What the service did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// The relay's part.
    pub relay: RelayStats,
    /// STUN questions answered.
    pub stun_answered: u64,
    /// STUN questions beyond the budget.
    pub stun_dropped_budget: u64,
    /// Datagrams that are no question of either kind.
    pub dropped_unknown: u64,
    /// Answers and relayed datagrams that the kernel did not take (full queue, too large for the link, no route).
    pub dropped_send: u64,
}

/// STUN and relay on a thread of their own, until dropped.
#[derive(Debug)]
pub struct FabricService {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    main: SocketAddr,
    alternate: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    stop: AtomicBool,
    /// Wakes the thread.
    bell: OwnedFd,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves counters a little wrong at worst.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    relay: RelayServer,
    stun_budget: Budget,
    stats: ServiceStats,
}

/// A bound socket and its offloads.
#[derive(Debug)]
struct Socket {
    udp: UdpSocket,
    offloads: UdpSocketState,
    addr: SocketAddr,
    is_main: bool,
}

impl FabricService {
    /// Binds both sockets and starts. An unspecified address serves both IP versions where the host has both.
    /// With several addresses on the host, name one: answers leave from where the question came to, but relayed
    /// datagrams from where the routing table says.
    ///
    /// # Errors
    /// Whatever the kernel says against an address, named in the text.
    pub fn start(main: SocketAddr, alternate: SocketAddr) -> io::Result<Self> {
        Self::start_with(main, alternate, RelayLimits::default())
    }

    /// The same with other limits for the relay.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        main: SocketAddr,
        alternate: SocketAddr,
        limits: RelayLimits,
    ) -> io::Result<Self> {
        let mut sockets = open_both_versions(main, true)?;
        let main = sockets[0].addr;
        sockets.extend(open_both_versions(alternate, false)?);
        let alternate = sockets
            .iter()
            .find(|s| !s.is_main)
            .map_or(alternate, |s| s.addr);

        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed)
            .map_err(|_| io::Error::other("the kernel gives no random bytes"))?;
        let now = Instant::now();
        let relay = RelayServer::new(seed, limits, now);
        let stun_budget = Budget::new(STUN_RATE, now);
        let state = Mutex::new(State {
            relay,
            stun_budget,
            stats: ServiceStats::default(),
        });
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            state,
            stop: AtomicBool::new(false),
            bell,
        });
        let thread = std::thread::Builder::new()
            .name("farlan-fabric".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || serve(&shared, &sockets)
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
            main,
            alternate,
        })
    }

    /// Where the main socket is bound.
    pub const fn main_addr(&self) -> SocketAddr {
        self.main
    }

    /// Where the alternate socket is bound.
    pub const fn alternate_addr(&self) -> SocketAddr {
        self.alternate
    }

    /// Grants `peer`, whom the control connection authenticated, its place at the relay: the same whenever it asks
    /// again. `None` when every place is taken.
    pub fn allocate(&self, peer: PeerId) -> Option<Allocation> {
        let granted = self.shared.state().relay.allocate(peer, Instant::now());
        self.ring(); // expiry is due sooner than the thread sleeps
        granted.ok().map(|(index, key)| Allocation { index, key })
    }

    /// Datagrams that come from `local`, an address of this host, were carried here by a stream from `client`.
    pub fn open_stream(&self, local: SocketAddr, client: IpAddr) {
        self.shared.state().relay.open_stream(local, client);
    }

    /// That stream has ended.
    pub fn close_stream(&self, local: SocketAddr) {
        let mut state = self.shared.state();
        state.relay.close_stream(local, Instant::now());
    }

    /// Counters.
    pub fn stats(&self) -> ServiceStats {
        let state = self.shared.state();
        ServiceStats {
            relay: state.relay.stats(),
            ..state.stats
        }
    }

    fn ring(&self) {
        // Fails only when the bell is ringing already.
        let _ringing = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
    }
}

impl Drop for FabricService {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.ring();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn serve(shared: &Shared, sockets: &[Socket]) {
    let mut buffers = vec![0; BATCH * BUFFER_BYTES];
    while !shared.stop.load(Ordering::Acquire) {
        let deadline = shared.state().relay.poll_timeout().map(|(at, _)| at);
        wait(shared, sockets, deadline);
        for socket in sockets {
            serve_turn(shared, sockets, socket, &mut buffers);
        }
        shared.state().relay.handle_timeout(Instant::now());
    }
}

/// Sleeps until a socket has something, the bell rings or the deadline is there.
fn wait(shared: &Shared, sockets: &[Socket], deadline: Option<Instant>) {
    let timeout = deadline.map(|at| {
        let left = at.saturating_duration_since(Instant::now());
        Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        }
    });
    let mut fds: Vec<_> = sockets
        .iter()
        .map(|s| PollFd::new(&s.udp, PollFlags::IN))
        .collect();
    fds.push(PollFd::new(&shared.bell, PollFlags::IN));
    // An interrupted wait is only a short one.
    let _woken = poll(&mut fds, timeout.as_ref());
    let _count = rustix::io::read(&shared.bell, &mut [0; 8]);
}

fn serve_turn(shared: &Shared, sockets: &[Socket], socket: &Socket, buffers: &mut [u8]) {
    for _ in 0..TURN {
        let mut slices: Vec<_> = buffers
            .chunks_mut(BUFFER_BYTES)
            .map(IoSliceMut::new)
            .collect();
        let mut metas = [RecvMeta::default(); BATCH];
        match socket
            .offloads
            .recv(UdpSockRef::from(&socket.udp), &mut slices, &mut metas)
        {
            Ok(received) => {
                let mut state = shared.state();
                for (buffer, meta) in buffers.chunks_mut(BUFFER_BYTES).zip(&metas).take(received) {
                    handle_batch(&mut state, sockets, socket, meta, &mut buffer[..meta.len]);
                }
            }
            // Nothing left; other errors concern one earlier datagram (an ICMP answer) and are counted where it was sent.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Handles what the kernel joined into one buffer: datagrams of one source and, but for the last, one size. Neighbours
/// that go to the same place leave joined as they came.
fn handle_batch(
    state: &mut State,
    sockets: &[Socket],
    socket: &Socket,
    meta: &RecvMeta,
    bytes: &mut [u8],
) {
    let now = Instant::now();
    let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
    let stride = meta.stride.max(1);
    let mut run: Option<(SocketAddr, usize)> = None;
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + stride).min(bytes.len());
        let target = match classify(&bytes[at..end]) {
            // Out of a stream a question would be answered to an address of this host, and could name others (RESPONSE-PORT).
            DatagramKind::Stun if !state.relay.is_stream(from) => {
                answer_stun(state, sockets, socket, meta, &bytes[at..end], now);
                None
            }
            DatagramKind::RelayRequest | DatagramKind::ToPlace(_) if socket.is_main => {
                let path = PathAddr::Direct(from);
                match state.relay.handle_datagram(path, &mut bytes[at..end], now) {
                    // Places here are bound straight: what comes out of another relay's wrapper is not taken.
                    Verdict::Forward(to) => Some(to.socket_addr()),
                    Verdict::Reply(reply) => {
                        send(state, socket, from, &reply, reply.len(), meta.dst_ip);
                        None
                    }
                    Verdict::Drop => None,
                }
            }
            _ => {
                state.stats.dropped_unknown += 1;
                None
            }
        };
        if let Some((to, start)) = run.filter(|(to, _)| target != Some(*to)) {
            forward(state, sockets, to, &bytes[start..at], stride);
            run = None;
        }
        if let Some(to) = target {
            run.get_or_insert((to, at));
        }
        at = end;
    }
    if let Some((to, start)) = run {
        forward(state, sockets, to, &bytes[start..], stride);
    }
}

fn answer_stun(
    state: &mut State,
    sockets: &[Socket],
    socket: &Socket,
    meta: &RecvMeta,
    question: &[u8],
    now: Instant,
) {
    let from = SocketAddr::new(meta.addr.ip().to_canonical(), meta.addr.port());
    let reached = meta
        .dst_ip
        .unwrap_or_else(|| socket.addr.ip())
        .to_canonical();
    let second = sockets
        .iter()
        .find(|s| s.is_main != socket.is_main && s.addr.is_ipv4() == socket.addr.is_ipv4());
    let second = second.unwrap_or(socket);
    let at = SocketAddr::new(reached, socket.addr.port());
    let second_ip = if second.addr.ip().is_unspecified() {
        reached
    } else {
        second.addr.ip()
    };
    let other = SocketAddr::new(second_ip, second.addr.port());
    let Some(answer) = server_answer(question, from, at, other) else {
        state.stats.dropped_unknown += 1;
        return;
    };
    let bytes = answer.bytes.len() as u64;
    if !state.stun_budget.has(bytes, now) {
        state.stats.stun_dropped_budget += 1;
        return;
    }
    state.stun_budget.pay(bytes);
    state.stats.stun_answered += 1;
    let (leaves, source) = if answer.from_other {
        (second, other.ip())
    } else {
        (socket, reached)
    };
    send(
        state,
        leaves,
        answer.to,
        &answer.bytes,
        answer.bytes.len(),
        Some(source),
    );
}

fn forward(state: &mut State, sockets: &[Socket], to: SocketAddr, bytes: &[u8], stride: usize) {
    let Some(socket) = sockets
        .iter()
        .find(|s| s.is_main && s.addr.is_ipv4() == to.is_ipv4())
    else {
        state.stats.dropped_send += 1;
        return;
    };
    let segments = socket.offloads.max_gso_segments().max(1);
    for chunk in bytes.chunks(stride * segments) {
        send(state, socket, to, chunk, stride, None);
    }
}

fn send(
    state: &mut State,
    socket: &Socket,
    to: SocketAddr,
    bytes: &[u8],
    stride: usize,
    source: Option<IpAddr>,
) {
    let segment_size = (bytes.len() > stride).then_some(stride);
    let transmit = Transmit {
        destination: to,
        ecn: None,
        contents: bytes,
        segment_size,
        src_ip: source,
    };
    if socket
        .offloads
        .try_send(UdpSockRef::from(&socket.udp), &transmit)
        .is_err()
    {
        state.stats.dropped_send += bytes.len().div_ceil(stride) as u64;
    }
}

/// For an unspecified address the same of the other IP version, with this port.
pub fn twin_of(addr: SocketAddr, port: u16) -> Option<SocketAddr> {
    let twin: IpAddr = if addr.is_ipv4() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    addr.ip()
        .is_unspecified()
        .then(|| SocketAddr::new(twin, port))
}

/// The socket at `addr`, and for an unspecified address its twin of the other IP version where there is one.
fn open_both_versions(addr: SocketAddr, is_main: bool) -> io::Result<Vec<Socket>> {
    let first = open(addr, is_main)?;
    let twin = twin_of(addr, first.addr.port()).map(|twin| open(twin, is_main));
    // A host may well have only one IP version.
    Ok(std::iter::once(first)
        .chain(twin.and_then(Result::ok))
        .collect())
}

fn open(addr: SocketAddr, is_main: bool) -> io::Result<Socket> {
    let named = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("cannot listen on UDP {addr}: {error}"),
        )
    };
    let open = || -> io::Result<Socket> {
        let family = if addr.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let fd = socket_with(
            family,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        if addr.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, true)?;
        }
        bind(&fd, &addr)?;
        let udp = UdpSocket::from(fd);
        let offloads = UdpSocketState::new(UdpSockRef::from(&udp))?;
        // Smaller buffers lose more in bursts, nothing else.
        let _granted = offloads.set_recv_buffer_size(UdpSockRef::from(&udp), SOCKET_BUFFER_BYTES);
        let _granted = offloads.set_send_buffer_size(UdpSockRef::from(&udp), SOCKET_BUFFER_BYTES);
        let addr = udp.local_addr()?;
        Ok(Socket {
            udp,
            offloads,
            addr,
            is_main,
        })
    };
    open().map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::{RelayClient, RelayEvent, RelayGrant};
    use crate::stun::{NatRule, StunClient};
    use crate::wire::datagram::RelayHeader;
    use std::time::Duration;
    use zerocopy::IntoBytes;

    /// How long a loopback answer may take on a machine that is busy with other things.
    const PATIENCE: Duration = Duration::from_secs(5);

    fn service() -> FabricService {
        FabricService::start(
            "127.0.0.1:0".parse().unwrap(),
            "127.0.0.1:0".parse().unwrap(),
        )
        .unwrap()
    }

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        socket
    }

    fn receive(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
        let mut bytes = [0; 2048];
        let (len, from) = socket.recv_from(&mut bytes).ok()?;
        Some((bytes[..len].to_vec(), from))
    }

    /// Binds a socket at the relay; gives its index there.
    fn bound(service: &FabricService, socket: &UdpSocket, n: u8) -> u32 {
        let Allocation { index, key } = service.allocate(PeerId([n; 32])).unwrap();
        let began = Instant::now();
        let mut client = RelayClient::new(u64::from(n), began);
        let grant = RelayGrant {
            via: PeerId([9; 32]),
            relay: service.main_addr(),
            index,
            key,
            carrier: None,
            through: None,
            is_member: false,
        };
        client.set_grants(&[grant], began);
        while began.elapsed() < PATIENCE {
            while let Some((to, bytes)) = client.poll_transmit() {
                socket.send_to(&bytes, to.socket_addr()).unwrap();
            }
            if let Some((bytes, from)) = receive(socket) {
                client.handle_datagram(PathAddr::Direct(from), &bytes, Instant::now());
            }
            if let Some(RelayEvent::Bound { observed, .. }) = client.poll_event() {
                assert_eq!(observed, socket.local_addr().unwrap());
                return index;
            }
            client.handle_timeout(Instant::now());
        }
        panic!("not bound: {:?}", service.stats());
    }

    #[test]
    fn stun_is_answered_and_a_changed_port_comes_from_the_alternate() {
        let (service, socket) = (service(), socket());
        let began = Instant::now();
        let mut client = StunClient::new(1, began);
        client.set_host_candidates(&[socket.local_addr().unwrap()], began);
        client.set_servers(&[service.main_addr()], began);
        let mut sources = Vec::new();
        while client.behaviour().mapping == NatRule::Unknown || sources.len() < 3 {
            assert!(
                began.elapsed() < PATIENCE,
                "{sources:?} {:?}",
                service.stats()
            );
            while let Some((to, bytes)) = client.poll_transmit() {
                socket.send_to(&bytes, to).unwrap();
            }
            if let Some((bytes, from)) = receive(&socket) {
                sources.push(from);
                client.handle_datagram(from, &bytes, Instant::now());
            }
            client.handle_timeout(Instant::now());
        }
        let (main, alternate) = (service.main_addr(), service.alternate_addr());
        assert_eq!(sources[..3], [main, alternate, alternate]); // plain, changed port, asked there
        assert_eq!(
            (client.behaviour().mapping, client.behaviour().filtering),
            (NatRule::None, NatRule::None)
        );
    }

    #[test]
    fn two_bound_clients_reach_each_other_and_a_stranger_nobody() {
        let (service, a, b, stranger) = (service(), socket(), socket(), socket());
        let (index_a, index_b) = (bound(&service, &a, 1), bound(&service, &b, 2));

        stranger
            .send_to(
                &[RelayHeader::to(index_b).as_bytes(), b"stray"].concat(),
                service.main_addr(),
            )
            .unwrap();
        a.send_to(
            &[RelayHeader::to(index_b).as_bytes(), b"sealed"].concat(),
            service.main_addr(),
        )
        .unwrap();
        let began = Instant::now();
        let received = loop {
            if let Some(received) = receive(&b) {
                break received;
            }
            assert!(began.elapsed() < PATIENCE, "{:?}", service.stats());
        };
        assert_eq!(
            received,
            (
                [RelayHeader::from(index_a).as_bytes(), b"sealed"].concat(),
                service.main_addr()
            )
        );
        assert_eq!((receive(&b), receive(&stranger)), (None, None));
        assert_eq!(service.stats().relay.dropped_stranger, 1);
    }

    #[test]
    fn what_the_kernel_joined_arrives_whole_and_in_order() {
        let (service, a, b) = (service(), socket(), socket());
        bound(&service, &a, 1);
        let index = bound(&service, &b, 2);
        let offloads = UdpSocketState::new(UdpSockRef::from(&a)).unwrap();
        let datagram = |n: u8| {
            [
                RelayHeader::to(index).as_bytes(),
                &vec![n; if n % 10 == 9 { 300 } else { 1200 }],
            ]
            .concat()
        };
        for batch in 0..4u8 {
            let contents = (batch * 10..batch * 10 + 10)
                .flat_map(datagram)
                .collect::<Vec<_>>();
            let destination = service.main_addr();
            let transmit = Transmit {
                destination,
                ecn: None,
                contents: &contents,
                segment_size: Some(1208),
                src_ip: None,
            };
            offloads.try_send(UdpSockRef::from(&a), &transmit).unwrap();
        }
        let received: Vec<_> = std::iter::from_fn(|| receive(&b))
            .map(|(bytes, _)| (bytes[8], bytes.len()))
            .collect();
        let expected: Vec<_> = (0..40u8).map(|n| (n, datagram(n).len())).collect();
        assert_eq!(received, expected);
        assert_eq!(service.stats().relay.forwarded, 40);
    }

    #[test]
    fn an_unspecified_address_serves_both_ip_versions() {
        let Ok(six) = UdpSocket::bind("[::1]:0") else {
            return;
        }; // a host without IPv6
        six.set_read_timeout(Some(PATIENCE)).unwrap();
        let unspecified = "0.0.0.0:0".parse().unwrap();
        let service = FabricService::start(unspecified, unspecified).unwrap();
        let mut client = StunClient::new(1, Instant::now());
        client.set_servers(
            &[SocketAddr::new(
                Ipv6Addr::LOCALHOST.into(),
                service.main_addr().port(),
            )],
            Instant::now(),
        );
        let (to, bytes) = client.poll_transmit().unwrap();
        six.send_to(&bytes, to).unwrap();
        let (bytes, from) = receive(&six).expect("an answer over IPv6");
        client.handle_datagram(from, &bytes, Instant::now());
        assert_eq!(client.reflexive(), [six.local_addr().unwrap()]);
    }

    #[test]
    fn a_taken_port_is_named_in_the_error() {
        let taken = socket();
        let addr = taken.local_addr().unwrap();
        let error = FabricService::start(addr, "127.0.0.1:0".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
    }
}
