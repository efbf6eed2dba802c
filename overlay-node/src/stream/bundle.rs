//! Streams that carry datagrams together, between a UDP socket on the loopback at either end. They take turns, so that one that
//! waits for its link's repetitions holds up no more than its share, and the other end puts all back in order.

use super::resequencer::{Resequencer, WAIT_MAX};
use bytes::{Buf, BufMut, BytesMut};
use futures::StreamExt;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::UdpSocket,
    time::timeout,
};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

/// What each stream says first, so that the fabric node knows which belong together: made by chance.
pub(super) type BundleId = [u8; 16];

/// The largest datagram that is carried: its number and its bytes have one length of two bytes.
const DATAGRAM_BYTES_MAX: usize = u16::MAX as usize - NUMBER_BYTES;
const NUMBER_BYTES: usize = 8;
/// Datagrams are gathered up to this before they are encrypted: one TLS record.
const GATHER_BYTES: usize = 16 << 10;

/// What may wait for what is missing in one bundle, more than a few streams of a long link have under way, and in all.
const WAITING_BYTES_MAX: usize = 4 << 20;
const WAITING_BYTES_OF_ALL_MAX: usize = 64 << 20;

/// What waits in bundles that have their memory in common, in bytes.
pub(super) type Waiting = Arc<AtomicUsize>;

/// What the streams share.
pub(super) struct Bundle {
    udp: UdpSocket,
    /// The number of the next datagram, and whose turn it is to take some.
    sending: tokio::sync::Mutex<u64>,
    arriving: Mutex<Resequencer>,
    /// Of this bundle and others.
    waiting: Waiting,
    moved_bytes: AtomicU64,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let arriving = self
            .arriving
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(arriving.waiting_bytes(), Relaxed);
    }
}

impl Bundle {
    /// Carries for what is connected to `udp`.
    pub(super) fn new(udp: UdpSocket, waiting: Waiting) -> Self {
        Self {
            udp,
            sending: tokio::sync::Mutex::default(),
            arriving: Mutex::default(),
            waiting,
            moved_bytes: AtomicU64::default(),
        }
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    /// What was carried so far, both ways.
    pub(super) fn moved_bytes(&self) -> u64 {
        self.moved_bytes.load(Relaxed)
    }

    /// Moves datagrams both ways until this stream ends.
    ///
    /// # Errors
    /// Why it ended, if not by its other end's wish.
    pub(super) async fn carry(&self, stream: impl AsyncRead + AsyncWrite) -> io::Result<()> {
        let (reader, writer) = tokio::io::split(stream);
        tokio::select! {
            ended = self.unpack(reader) => ended,
            ended = self.pack(writer) => ended,
        }
    }

    async fn unpack(&self, reader: impl AsyncRead) -> io::Result<()> {
        let codec = LengthDelimitedCodec::builder()
            .length_field_type::<u16>()
            .max_frame_length(NUMBER_BYTES + DATAGRAM_BYTES_MAX)
            .new_codec();
        let mut frames = std::pin::pin!(FramedRead::new(reader, codec));
        // What the service does not take is lost, as on any network.
        let deliver = |datagram: &[u8]| drop(self.udp.try_send(datagram));
        loop {
            let frame = timeout(WAIT_MAX, frames.next()).await;
            let now = Instant::now();
            let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
            let before = arriving.waiting_bytes();
            match frame {
                Err(_) => arriving.tick(now, deliver),
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => {
                    let mut frame = frame?.freeze();
                    let number = frame.try_get_u64().map_err(io::Error::other)?;
                    self.moved_bytes.fetch_add(frame.len() as u64, Relaxed);
                    let taken = self.waiting.load(Relaxed) - before;
                    let room = WAITING_BYTES_OF_ALL_MAX
                        .saturating_sub(taken)
                        .min(WAITING_BYTES_MAX);
                    let pushed = arriving.push(number, frame, now, room, deliver);
                    pushed.map_err(io::Error::other)?;
                }
            }
            // Under the lock: nobody else changes what waits here.
            self.waiting.fetch_add(arriving.waiting_bytes(), Relaxed);
            self.waiting.fetch_sub(before, Relaxed);
        }
    }

    async fn pack(&self, mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut gathered = BytesMut::with_capacity(GATHER_BYTES + 2 + u16::MAX as usize);
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            gathered.clear();
            {
                let mut number = self.sending.lock().await;
                self.udp.readable().await?;
                while gathered.len() < GATHER_BYTES {
                    match self.udp.try_recv(&mut datagram) {
                        Ok(len) => {
                            gathered.put_u16((NUMBER_BYTES + len) as u16);
                            gathered.put_u64(*number);
                            gathered.put_slice(&datagram[..len]);
                            *number += 1;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        // An earlier datagram found nobody at the service: not this stream's end.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            if !gathered.is_empty() {
                self.moved_bytes.fetch_add(gathered.len() as u64, Relaxed);
                writer.write_all(&gathered).await?;
                writer.flush().await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::carrier::loopback_socket;
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::{io::DuplexStream, task::JoinHandle};

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A socket, and a bundle that speaks with it.
    async fn end() -> (UdpSocket, Arc<Bundle>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let bundled = loopback_socket(socket.local_addr().unwrap()).await.unwrap();
        socket.connect(bundled.local_addr().unwrap()).await.unwrap();
        (socket, Arc::new(Bundle::new(bundled, Waiting::default())))
    }

    fn carry(bundle: &Arc<Bundle>, stream: DuplexStream) -> JoinHandle<io::Result<()>> {
        let bundle = Arc::clone(bundle);
        tokio::spawn(async move { bundle.carry(stream).await })
    }

    /// Two sockets that speak with each other through so many streams, and the streams.
    async fn carried(streams: usize) -> ([UdpSocket; 2], Vec<JoinHandle<io::Result<()>>>) {
        let ((a, at_a), (b, at_b)) = (end().await, end().await);
        let mut tasks = Vec::new();
        for _ in 0..streams {
            let (near, far) = tokio::io::duplex(64 << 10);
            tasks.push(carry(&at_a, near));
            tasks.push(carry(&at_b, far));
        }
        ([a, b], tasks)
    }

    async fn received(socket: &UdpSocket) -> Vec<u8> {
        let mut bytes = vec![0; u16::MAX.into()];
        let len = timeout(PATIENCE, socket.recv(&mut bytes)).await;
        bytes.truncate(len.unwrap().unwrap());
        bytes
    }

    #[tokio::test]
    async fn datagrams_of_any_size_cross_whole_and_in_order_through_one_stream_or_several() {
        for streams in [1, 4] {
            let ([a, b], _tasks) = carried(streams).await;
            let sizes = [0, 1, 1400, 9000, 40_000, 2];
            for size in sizes {
                a.send(&vec![size as u8; size]).await.unwrap();
            }
            for size in sizes {
                assert_eq!(received(&b).await, vec![size as u8; size]);
            }
            b.send(b"back").await.unwrap();
            assert_eq!(received(&a).await, b"back");
        }
    }

    #[tokio::test]
    async fn streams_take_turns_and_the_end_of_some_is_not_the_end_of_all() {
        let ([a, b], tasks) = carried(4).await;
        for number in 0..400_u32 {
            a.send(&number.to_be_bytes()).await.unwrap();
            assert_eq!(received(&b).await, number.to_be_bytes());
        }
        for task in &tasks[..6] {
            task.abort();
        }
        tokio::time::sleep(Duration::from_millis(50)).await; // they are gone
        for number in 0..40_u32 {
            a.send(&number.to_be_bytes()).await.unwrap();
            assert_eq!(received(&b).await, number.to_be_bytes());
        }
    }

    #[tokio::test]
    async fn a_stream_that_takes_nothing_more_holds_up_its_share_only() {
        let ((a, at_a), (b, at_b)) = (end().await, end().await);
        let (stalled, _nobody_reads) = tokio::io::duplex(4 << 10);
        let _stalled = carry(&at_a, stalled);
        let (near, far) = tokio::io::duplex(64 << 10);
        let _others = [carry(&at_a, near), carry(&at_b, far)];
        let mut arrived = 0;
        for _ in 0..100 {
            a.send(&[7; 1000]).await.unwrap();
            let mut bytes = [0; 2000];
            arrived += usize::from(timeout(2 * WAIT_MAX, b.recv(&mut bytes)).await.is_ok());
        }
        assert!(arrived >= 90, "{arrived} of 100");
    }

    #[tokio::test]
    async fn strangers_of_this_host_are_not_heard_and_a_closed_stream_is_the_end() {
        let (_socket, bundle) = end().await;
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = bundle.local_addr().unwrap();
        stranger.send_to(b"stranger", to).await.unwrap();
        let (stream, mut far) = tokio::io::duplex(1024);
        let task = carry(&bundle, stream);
        let mut byte = [0; 1];
        let heard = tokio::io::AsyncReadExt::read(&mut far, &mut byte);
        assert!(timeout(Duration::from_millis(200), heard).await.is_err());
        drop(far);
        timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    }

    proptest! {
        #[test]
        fn whatever_a_stream_says_it_is_read_to_its_end_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..4000),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (_socket, bundle) = end().await;
                let (mut near, far) = tokio::io::duplex(8 << 10);
                near.write_all(&bytes).await.unwrap();
                drop(near);
                let _outcome = timeout(PATIENCE, bundle.carry(far)).await.expect("it ends");
            });
        }
    }
}
