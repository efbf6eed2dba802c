//! Carries datagrams through a stream, each with its length in two bytes before it (RFC 4571), between a UDP socket on the
//! loopback at either end.

use super::{
    Opener, Via,
    bundle::{Bundle, BundleId, Waiting},
    opener::Opened,
};
use dht::swarm::{StreamAddr, StreamService};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::UdpSocket,
    task::{AbortHandle, JoinHandle, JoinSet},
    time::Instant,
};
use tracing::debug;

/// What waits here while the stream is full is delay for what comes behind, so the rest is dropped.
const WAITING_BYTES: usize = 128 << 10;

/// Connections of ssh to one relay.
const SSH_STREAMS_MAX: usize = 4;
/// Another is opened when there was so much to carry since the last look, both ways: 4 Mbit/s.
const BUSY_BYTES: u64 = 500_000;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// When one was refused or ended, the gateway may not want more.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// A stream to a fabric node's UDP services; closed when dropped.
#[derive(Debug)]
pub(crate) struct Carrier {
    /// The address of this host that stands for the services.
    pub(crate) at: SocketAddr,
    /// Through what the stream leaves this site; `None` is straight.
    pub(crate) via: Option<Via>,
    task: AbortHandle,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens carriers for the data port.
#[derive(Clone)]
pub(crate) struct Carriers {
    pub(crate) opener: Opener,
    pub(crate) data_port: SocketAddr,
}

impl Carriers {
    /// Opens a stream to where a fabric node takes them, and more beside it when there is much to carry through SSH. The task
    /// ends with the last of them.
    ///
    /// # Errors
    /// What went wrong in each way.
    pub(crate) async fn open(&self, to: &StreamAddr) -> io::Result<(Carrier, JoinHandle<()>)> {
        let id = rand::random();
        let (first, via) = self.open_one(to, id).await?;
        let bundle = Arc::new(Bundle::new(
            loopback_socket(self.data_port).await?,
            Waiting::default(),
        ));
        let at = bundle.local_addr()?;
        let streams_max = match via {
            Some(Via::Ssh { .. }) => SSH_STREAMS_MAX,
            _ => 1,
        };
        let (carriers, to) = (self.clone(), to.clone());
        let task = async move { carriers.carry(&bundle, first, &to, id, streams_max).await };
        let carrying = tokio::spawn(task);
        let task = carrying.abort_handle();
        Ok((Carrier { at, via, task }, carrying))
    }

    /// Carries by the first stream, and by more as long as there is much to carry, until all have ended.
    async fn carry(
        &self,
        bundle: &Arc<Bundle>,
        first: Opened,
        to: &StreamAddr,
        id: BundleId,
        streams_max: usize,
    ) {
        let mut streams = JoinSet::new();
        let one = Arc::clone(bundle);
        streams.spawn(async move { one.carry(first).await });
        let mut look = tokio::time::interval(LOOK_EVERY);
        let (mut moved, mut another_from) = (0, Instant::now());
        while !streams.is_empty() {
            tokio::select! {
                Some(outcome) = streams.join_next() => {
                    debug!(?to, ?outcome, "a stream ended");
                    another_from = Instant::now() + AGAIN_AFTER;
                }
                now = look.tick() => {
                    let so_far = bundle.moved_bytes();
                    let is_busy = so_far - std::mem::replace(&mut moved, so_far) > BUSY_BYTES;
                    if is_busy && streams.len() < streams_max && now >= another_from {
                        let (carriers, to, one) = (self.clone(), to.clone(), Arc::clone(bundle));
                        streams.spawn(async move {
                            let (stream, _way) = carriers.open_one(&to, id).await?;
                            one.carry(stream).await
                        });
                    }
                }
            }
        }
    }

    /// One stream, which has said to which bundle it belongs.
    async fn open_one(&self, to: &StreamAddr, id: BundleId) -> io::Result<(Opened, Option<Via>)> {
        let (mut stream, via) = self.opener.open(to, StreamService::Datagrams).await?;
        stream.write_all(&id).await?;
        stream.flush().await?;
        Ok((stream, via))
    }
}

/// A UDP socket that speaks with `service` of this host only.
pub(super) async fn loopback_socket(service: SocketAddr) -> io::Result<UdpSocket> {
    // A service on all addresses is reached at the loopback; one at a certain address only there.
    let (local, service): (IpAddr, SocketAddr) = match service {
        SocketAddr::V6(v6) if !v6.ip().is_unspecified() => (Ipv6Addr::UNSPECIFIED.into(), service),
        SocketAddr::V4(v4) if !v4.ip().is_unspecified() => (Ipv4Addr::UNSPECIFIED.into(), service),
        any => (
            Ipv4Addr::LOCALHOST.into(),
            (Ipv4Addr::LOCALHOST, any.port()).into(),
        ),
    };
    let udp = UdpSocket::bind((local, 0)).await?;
    udp.connect(service).await?;
    socket2::SockRef::from(&udp).set_recv_buffer_size(WAITING_BYTES)?;
    Ok(udp)
}
