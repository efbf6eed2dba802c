//! Carries datagrams through a stream, each with its length in two bytes before it (RFC 4571), between a UDP socket on the
//! loopback at either end.

use super::{Opener, Via};
use bytes::{BufMut, BytesMut};
use dht::swarm::{StreamAddr, StreamService};
use futures::StreamExt;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::UdpSocket,
    task::{AbortHandle, JoinHandle},
};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tracing::debug;

/// The largest datagram, and so the largest number its length needs.
const DATAGRAM_BYTES_MAX: usize = u16::MAX as usize;
/// Datagrams are gathered up to this before they are encrypted: four TLS records.
const GATHER_BYTES: usize = 64 << 10;
/// What waits here while the stream is full is delay for what comes behind, so the rest is dropped.
const WAITING_BYTES: usize = 128 << 10;

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
    /// Opens a stream to where a fabric node takes them. The task ends with the stream.
    ///
    /// # Errors
    /// What went wrong in each way.
    pub(crate) async fn open(&self, to: &StreamAddr) -> io::Result<(Carrier, JoinHandle<()>)> {
        let (stream, via) = self.opener.open(to, StreamService::Datagrams).await?;
        let udp = loopback_socket(self.data_port).await?;
        let at = udp.local_addr()?;
        let carrying = tokio::spawn(async move {
            let outcome = carry(&udp, stream).await;
            debug!(%at, ?outcome, "a stream ended");
        });
        let task = carrying.abort_handle();
        Ok((Carrier { at, via, task }, carrying))
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

/// Moves datagrams both ways until the stream ends.
///
/// # Errors
/// Why it ended, if not by its other end's wish.
pub(super) async fn carry(udp: &UdpSocket, stream: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(stream);
    tokio::select! {
        ended = unpack(udp, reader) => ended,
        ended = pack(udp, writer) => ended,
    }
}

async fn unpack(udp: &UdpSocket, reader: impl AsyncRead) -> io::Result<()> {
    let codec = LengthDelimitedCodec::builder()
        .length_field_type::<u16>()
        .max_frame_length(DATAGRAM_BYTES_MAX)
        .new_codec();
    let mut datagrams = std::pin::pin!(FramedRead::new(reader, codec));
    while let Some(datagram) = datagrams.next().await {
        // What the service does not take is lost, as on any network.
        let _unsent = udp.send(&datagram?).await;
    }
    Ok(())
}

async fn pack(udp: &UdpSocket, mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut gathered = BytesMut::with_capacity(GATHER_BYTES + 2 + DATAGRAM_BYTES_MAX);
    let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        udp.readable().await?;
        gathered.clear();
        while gathered.len() < GATHER_BYTES {
            match udp.try_recv(&mut datagram) {
                Ok(len) => {
                    gathered.put_u16(len as u16);
                    gathered.put_slice(&datagram[..len]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // An earlier datagram found nobody at the service: not this stream's end.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
        }
        if !gathered.is_empty() {
            writer.write_all(&gathered).await?;
            writer.flush().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    /// A service's socket, and what speaks with it through a carried stream.
    async fn carried() -> (UdpSocket, UdpSocket) {
        let service = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let far = loopback_socket(service.local_addr().unwrap())
            .await
            .unwrap();
        let near = loopback_socket(client.local_addr().unwrap()).await.unwrap();
        client.connect(near.local_addr().unwrap()).await.unwrap();
        let (a, b) = tokio::io::duplex(64 << 10);
        tokio::spawn(async move { carry(&far, a).await });
        tokio::spawn(async move { carry(&near, b).await });
        (service, client)
    }

    #[tokio::test]
    async fn datagrams_of_any_size_cross_whole_and_in_order() {
        let (service, client) = carried().await;
        let sizes = [0, 1, 1400, 9000, 40_000, 2];
        for size in sizes {
            client.send(&vec![size as u8; size]).await.unwrap();
        }
        let mut bytes = vec![0; DATAGRAM_BYTES_MAX];
        let mut from = None;
        for size in sizes {
            let (len, source) = timeout(Duration::from_secs(5), service.recv_from(&mut bytes))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(len, size);
            assert!(bytes[..len].iter().all(|byte| *byte == size as u8));
            from = Some(source);
        }
        service.send_to(b"back", from.unwrap()).await.unwrap();
        let len = timeout(Duration::from_secs(5), client.recv(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&bytes[..len], b"back");
    }

    #[tokio::test]
    async fn strangers_of_this_host_are_not_heard_and_a_closed_stream_is_the_end() {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let local = loopback_socket(near.local_addr().unwrap()).await.unwrap();
        drop(near);
        client.connect(local.local_addr().unwrap()).await.unwrap();
        client.send(b"stranger").await.unwrap();
        let (stream, mut far) = tokio::io::duplex(1024);
        let task = tokio::spawn(async move { carry(&local, stream).await });
        let mut byte = [0; 1];
        let heard = timeout(
            Duration::from_millis(200),
            tokio::io::AsyncReadExt::read(&mut far, &mut byte),
        );
        assert!(heard.await.is_err());
        drop(far);
        timeout(Duration::from_secs(5), task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
