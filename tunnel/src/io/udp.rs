//! The UDP socket of one worker: both IP versions, runs of datagrams in one call each way, never fragmented.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Kernel buffers for bursts; Linux doubles it for its own needs. All that waits there is delay for whatever comes behind:
/// why it is no larger stands in `docs/decisions/0015-bounded-queues.md`. Root gets it whatever `rmem_max` says.
const SOCKET_BUFFER_BYTES: usize = 512 << 10;
/// Buffers of one receive call, as many as one takes. Each can hold a whole GRO run, and where the interface joins nothing it
/// holds one datagram. Only what was written to is in memory.
const RECEIVE_BUFFERS: usize = 32;
/// Bytes of one receive call, about: what is behind them waits for so long.
pub(super) const TURN_BYTES: usize = 128 << 10;
/// The largest UDP payload, and so the largest GRO run.
const RUN_BYTES_MAX: usize = 65_535;

/// One socket of the data port.
pub(super) struct UdpPort {
    socket: UdpSocket,
    state: UdpSocketState,
    is_v6: bool,
}

/// Why a run did not leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unsent {
    /// The socket's buffer is full.
    Full,
    /// Larger than the interface's MTU.
    TooLarge,
    /// No route, or anything else.
    Failed,
}

impl UdpPort {
    /// Binds `listen`. `[::]` takes both IP versions, or IPv4 alone where the kernel has no IPv6. `shared` lets further
    /// workers bind the same port; without it a second node on the port is noticed.
    pub(super) fn bind(listen: SocketAddr, shared: bool) -> io::Result<Self> {
        let any_v6 = listen.is_ipv6() && listen.ip().is_unspecified();
        match Self::bind_exactly(listen, shared) {
            Err(error) if any_v6 && is_no_ipv6(&error) => {
                Self::bind_exactly((Ipv4Addr::UNSPECIFIED, listen.port()).into(), shared)
            }
            result => result,
        }
    }

    fn bind_exactly(listen: SocketAddr, shared: bool) -> io::Result<Self> {
        let family = if listen.is_ipv6() {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        if listen.is_ipv6() {
            sockopt::set_ipv6_v6only(&fd, !listen.ip().is_unspecified())?;
        }
        if shared {
            sockopt::set_socket_reuseport(&fd, true)?;
        }
        // Smaller buffers than asked for cost drops under load, nothing else.
        if sockopt::set_socket_recv_buffer_size_force(&fd, SOCKET_BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&fd, SOCKET_BUFFER_BYTES);
        }
        if sockopt::set_socket_send_buffer_size_force(&fd, SOCKET_BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&fd, SOCKET_BUFFER_BYTES);
        }
        rustix::net::bind(&fd, &listen)?;
        let socket = UdpSocket::from(fd);
        // Sets IP_PMTUDISC_PROBE, so that nothing is ever fragmented, and UDP_GRO.
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self {
            socket,
            state,
            is_v6: listen.is_ipv6(),
        })
    }

    /// Another one at the same address, on any port.
    pub(super) fn bind_beside(&self) -> io::Result<Self> {
        let mut listen = self.local_addr()?;
        listen.set_port(0);
        Self::bind_exactly(listen, false)
    }

    /// The socket itself, for epoll.
    pub(super) const fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Where it is bound.
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// How many datagrams a run may have.
    pub(super) fn segments_max(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Sends datagrams that lie one after the other, all but the last `segment` bytes long. Gives how many did not
    /// leave, and why.
    pub(super) fn send_run(
        &self,
        to: SocketAddr,
        bytes: &[u8],
        segment: usize,
    ) -> Result<(), (u64, Unsent)> {
        let destination = self.on_the_socket(to);
        let has_gso = || self.state.max_gso_segments() > 1;
        send_run(bytes, segment, has_gso, |contents, segment_size| {
            let transmit = Transmit {
                destination,
                ecn: None,
                contents,
                segment_size,
                src_ip: None,
            };
            self.state
                .try_send(UdpSockRef::from(&self.socket), &transmit)
        })
    }

    /// Receives what is there into `buffers`; 0 when nothing is.
    pub(super) fn receive(&self, buffers: &mut ReceiveBuffers) -> io::Result<usize> {
        let ReceiveBuffers {
            bytes,
            metas,
            wanted,
        } = buffers;
        let mut slices: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
            bytes.each_mut().map(|buffer| IoSliceMut::new(buffer));
        match self.state.recv(
            UdpSockRef::from(&self.socket),
            &mut slices[..*wanted],
            metas,
        ) {
            Ok(count) => {
                let received: usize = metas[..count].iter().map(|meta| meta.len).sum();
                *wanted = (TURN_BYTES * count / received.max(1)).clamp(1, RECEIVE_BUFFERS);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// How many datagrams the kernel dropped so far because nobody received them in time; it counts round after 2^32.
    pub(super) fn dropped(&self) -> u32 {
        use std::os::fd::AsRawFd;
        /// Where that stands in what `SO_MEMINFO` tells (`SK_MEMINFO_DROPS` of `linux/sock_diag.h`), and how much it tells.
        const DROPS: usize = 8;
        const VALUES: usize = 9;
        let mut info = [0u32; VALUES];
        let mut len = size_of_val(&info) as libc::socklen_t;
        // SAFETY: the descriptor is open while `self.socket` lives; the kernel writes at most `len` bytes into `info`, which
        // has that many and where any bytes are numbers, and keeps no reference to either.
        #[expect(unsafe_code, reason = "no safe wrapper reads a socket's drops")]
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result == 0 { info[DROPS] } else { 0 }
    }

    /// An IPv6 socket wants IPv4 destinations in mapped form.
    fn on_the_socket(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.is_v6 => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            to => to,
        }
    }
}

/// Sends a run by `send`, which takes datagrams and the size of each unless it is one. A run that the kernel refuses because
/// a driver cannot segment leaves one by one, and so does every later one: `has_gso` tells what `send` has learned.
fn send_run(
    bytes: &[u8],
    segment: usize,
    has_gso: impl Fn() -> bool,
    mut send: impl FnMut(&[u8], Option<usize>) -> io::Result<()>,
) -> Result<(), (u64, Unsent)> {
    let count = bytes.len().div_ceil(segment.max(1)) as u64;
    if count <= 1 || has_gso() {
        match send(bytes, (count > 1).then_some(segment)) {
            Ok(()) => return Ok(()),
            Err(error) if count <= 1 || has_gso() => return Err((count, reason(&error))),
            Err(_) => {}
        }
    }
    let (mut lost, mut why) = (0, None);
    for datagram in bytes.chunks(segment) {
        if let Err(error) = send(datagram, None) {
            lost += 1;
            why = Some(reason(&error));
        }
    }
    why.map_or(Ok(()), |why| Err((lost, why)))
}

/// Inside the node an IPv4 address is an IPv4 address, however the socket tells it.
pub(super) fn normalised(from: SocketAddr) -> SocketAddr {
    match from.ip() {
        IpAddr::V6(v6) => v6
            .to_ipv4_mapped()
            .map_or(from, |v4| (v4, from.port()).into()),
        IpAddr::V4(_) => from,
    }
}

fn is_no_ipv6(error: &io::Error) -> bool {
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn reason(error: &io::Error) -> Unsent {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::AGAIN | Errno::NOBUFS) => Unsent::Full,
        Some(Errno::MSGSIZE) => Unsent::TooLarge,
        _ => Unsent::Failed,
    }
}

/// Memory for one receive call, used again and again.
pub(super) struct ReceiveBuffers {
    bytes: [Box<[u8]>; RECEIVE_BUFFERS],
    metas: [RecvMeta; RECEIVE_BUFFERS],
    /// How many of them the next call uses: as many as make a turn, if what comes is as long as what came last.
    wanted: usize,
}

impl ReceiveBuffers {
    pub(super) fn new() -> Self {
        Self {
            bytes: std::array::from_fn(|_| vec![0; RUN_BYTES_MAX].into_boxed_slice()),
            metas: [RecvMeta::default(); RECEIVE_BUFFERS],
            wanted: RECEIVE_BUFFERS,
        }
    }

    /// Gives each datagram of the first `count` runs to `take`.
    pub(super) fn for_each(&mut self, count: usize, mut take: impl FnMut(SocketAddr, &mut [u8])) {
        for (run, meta) in self.bytes.iter_mut().zip(&self.metas).take(count) {
            let from = normalised(meta.addr);
            for datagram in run[..meta.len].chunks_mut(meta.stride.max(1)) {
                take(from, datagram);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const RUN: &[u8] = b"aaaabbbbcc";

    /// A driver that refuses to segment, as Linux says it: `EIO`. What it sent, and what was asked of it.
    fn send_by_a_driver_without_gso(runs: usize) -> (Vec<Vec<u8>>, usize) {
        let (has_gso, mut sent, mut refused) = (Cell::new(true), Vec::new(), 0);
        for _ in 0..runs {
            let result = send_run(
                RUN,
                4,
                || has_gso.get(),
                |contents, segment_size| {
                    if segment_size.is_some() {
                        has_gso.set(false);
                        refused += 1;
                        return Err(io::Error::from_raw_os_error(libc::EIO));
                    }
                    sent.push(contents.to_vec());
                    Ok(())
                },
            );
            assert_eq!(result, Ok(()));
        }
        (sent, refused)
    }

    #[test]
    fn a_run_that_a_driver_refuses_is_sent_again_one_by_one_and_nothing_is_lost() {
        let (sent, refused) = send_by_a_driver_without_gso(2);
        let run: [&[u8]; 3] = [b"aaaa", b"bbbb", b"cc"];
        assert_eq!(sent, [run, run].concat());
        assert_eq!(refused, 1, "it is asked once");
    }

    #[test]
    fn what_does_not_leave_is_counted_with_the_reason() {
        let fail = |errno| move |_: &[u8], _| Err(io::Error::from_raw_os_error(errno));
        for (errno, why) in [
            (libc::EAGAIN, Unsent::Full),
            (libc::EMSGSIZE, Unsent::TooLarge),
            (libc::ENETUNREACH, Unsent::Failed),
        ] {
            assert_eq!(send_run(RUN, 4, || true, fail(errno)), Err((3, why)));
            assert_eq!(send_run(RUN, 4, || false, fail(errno)), Err((3, why)));
            assert_eq!(send_run(b"aa", 4, || true, fail(errno)), Err((1, why)));
        }
        let mut left = 1;
        let mut one_of_three = |_: &[u8], _| {
            left -= 1;
            if left == 0 {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::EAGAIN))
            }
        };
        assert_eq!(
            send_run(RUN, 4, || false, &mut one_of_three),
            Err((2, Unsent::Full))
        );
    }

    #[test]
    fn datagrams_that_nobody_receives_in_time_are_counted() {
        let port = UdpPort::bind((Ipv4Addr::LOCALHOST, 0).into(), false).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert_eq!(port.dropped(), 0);
        for _ in 0..2000 {
            socket
                .send_to(&[0; 1400], port.local_addr().unwrap())
                .unwrap();
        }
        assert!(port.dropped() > 0);
    }
    use std::time::{Duration, Instant};

    fn receive_all(port: &UdpPort, wanted: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let (mut buffers, mut got) = (ReceiveBuffers::new(), Vec::new());
        let give_up = Instant::now() + Duration::from_secs(10);
        while got.len() < wanted && Instant::now() < give_up {
            let count = port.receive(&mut buffers).unwrap();
            buffers.for_each(count, |from, datagram| got.push((from, datagram.to_vec())));
        }
        got
    }

    #[test]
    fn a_run_arrives_as_the_datagrams_it_was_made_of() {
        let receiver = UdpPort::bind("[::]:0".parse().unwrap(), false).unwrap();
        let sender = UdpPort::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let to = (Ipv4Addr::LOCALHOST, receiver.local_addr().unwrap().port()).into();
        let run: Vec<u8> = (0..2500u32).map(|n| (n / 1000) as u8).collect();
        sender.send_run(to, &run, 1000).unwrap();
        let got = receive_all(&receiver, 3);
        assert_eq!(
            got.iter()
                .map(|(_, datagram)| datagram.len())
                .collect::<Vec<_>>(),
            [1000, 1000, 500]
        );
        assert!(
            got.iter()
                .all(|(from, _)| *from == sender.local_addr().unwrap()),
            "IPv4 looks like IPv4: {got:?}"
        );
        assert_eq!(got[2].1, [2; 500]);
    }

    #[test]
    fn a_socket_for_both_versions_sends_to_ipv4() {
        let sender = UdpPort::bind("[::]:0".parse().unwrap(), false).unwrap();
        let receiver = UdpPort::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        sender
            .send_run(receiver.local_addr().unwrap(), b"hello", 5)
            .unwrap();
        assert_eq!(receive_all(&receiver, 1)[0].1, b"hello");
    }

    #[test]
    fn a_taken_port_is_noticed_unless_it_is_shared() {
        let first = UdpPort::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let addr = first.local_addr().unwrap();
        assert_eq!(
            UdpPort::bind(addr, false).err().map(|e| e.kind()),
            Some(io::ErrorKind::AddrInUse)
        );
        let shared = UdpPort::bind("127.0.0.1:0".parse().unwrap(), true).unwrap();
        assert!(UdpPort::bind(shared.local_addr().unwrap(), true).is_ok());
    }

    #[test]
    fn a_datagram_beyond_the_mtu_is_refused_not_fragmented() {
        let sender = UdpPort::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let to = "127.0.0.1:9".parse().unwrap();
        // The loopback's MTU is 65536, and a UDP payload has at most 65507 bytes.
        assert_eq!(
            sender.send_run(to, &[0; 65_530], 65_530),
            Err((1, Unsent::TooLarge))
        );
    }
}
