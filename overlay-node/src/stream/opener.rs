//! Opens a TLS stream to a fabric node: straight, and through each way out that the user named. They are begun one after the
//! other, as RFC 8305 has it, and the first that works is taken, so that the best way is used whenever it opens.

use super::{Bytes, Via, proxy, ssh::SshStream, tune};
use dht::{
    identity::Identity,
    swarm::{ByteStream, StreamAddr, StreamDialer, StreamService, tls_client},
};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use rustls::pki_types::ServerName;
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::compat::TokioAsyncReadCompatExt;
use tracing::debug;

/// How long the ways before it have for themselves, as RFC 8305 §5 advises.
const STAGGER: Duration = Duration::from_millis(250);
/// How long all ways together may take: an SSH gateway that looks up names and asks an agent takes seconds. libp2p gives up a
/// dial after ten, and could not say why a way failed.
const OPEN_WITHIN: Duration = Duration::from_secs(9);

/// For so long the way that worked last comes first: a node's control connection and its datagrams are opened in one go.
/// Later a better way may work.
const REMEMBERED_FOR: Duration = Duration::from_secs(15);

/// An open stream.
pub(crate) type Opened = TlsStream<Box<dyn Bytes>>;

/// A way that worked, and when; `None` is straight.
type LastWay = (Option<Via>, Instant);

/// Knows the ways out of this host.
#[derive(Clone)]
pub(crate) struct Opener {
    identity: Identity,
    vias: Arc<[Via]>,
    /// The way that worked last, and when.
    last: Arc<Mutex<Option<LastWay>>>,
}

impl Opener {
    /// Opens streams as `identity`, straight or through `vias`.
    pub(crate) fn new(identity: Identity, vias: &[Via]) -> Self {
        Self {
            identity,
            vias: vias.into(),
            last: Arc::default(),
        }
    }

    /// The way for control connections.
    pub(crate) fn dialer(&self) -> StreamDialer {
        let opener = self.clone();
        Arc::new(move |to| {
            let opener = opener.clone();
            async move {
                let (stream, _way) = opener.open(&to, StreamService::Control).await?;
                Ok(Box::new(stream.compat()) as Box<dyn ByteStream>)
            }
            .boxed()
        })
    }

    /// Opens a stream, and says through what; `None` is straight.
    ///
    /// # Errors
    /// What went wrong in each way.
    pub(crate) async fn open(
        &self,
        to: &StreamAddr,
        service: StreamService,
    ) -> io::Result<(Opened, Option<Via>)> {
        let give_up_at = Instant::now() + OPEN_WITHIN;
        let mut ways: VecDeque<Option<&Via>> = VecDeque::from([None]);
        ways.extend(self.vias.iter().map(Some));
        if let Some(last) = self.last_way() {
            let at = ways.iter().position(|way| way.cloned() == last);
            let first = at.and_then(|at| ways.remove(at));
            first.into_iter().for_each(|way| ways.push_front(way));
        }
        let (mut begun, mut errors) = (FuturesUnordered::new(), Vec::new());
        loop {
            if let Some(via) = ways.pop_front() {
                begun.push(self.open_by(via, to, service, give_up_at));
            }
            let result = tokio::select! {
                result = begun.next() => result,
                () = tokio::time::sleep(STAGGER), if !ways.is_empty() => None,
            };
            match result {
                Some(Ok(opened)) => return Ok(opened),
                Some(Err(error)) => errors.push(error.to_string()),
                None => {}
            }
            if begun.is_empty() && ways.is_empty() {
                return Err(io::Error::other(errors.join("; ")));
            }
        }
    }

    /// The way that worked a moment ago.
    fn last_way(&self) -> Option<Option<Via>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (way, at) = last.as_ref()?;
        (at.elapsed() < REMEMBERED_FOR).then(|| way.clone())
    }

    async fn open_by(
        &self,
        via: Option<&Via>,
        to: &StreamAddr,
        service: StreamService,
        give_up_at: Instant,
    ) -> io::Result<(Opened, Option<Via>)> {
        let name = via.map_or_else(|| "straight".to_owned(), ToString::to_string);
        let opened = timeout_at(give_up_at, self.connect(via, to, service));
        let opened = opened
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")));
        if opened.is_ok() {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            *last = Some((via.cloned(), Instant::now()));
        }
        let opened = opened.map(|stream| (stream, via.cloned()));
        opened.map_err(|error| {
            debug!(to = to.host, port = to.port, way = name, %error, "no stream");
            io::Error::new(error.kind(), format!("{name}: {error}"))
        })
    }

    async fn connect(
        &self,
        via: Option<&Via>,
        to: &StreamAddr,
        service: StreamService,
    ) -> io::Result<Opened> {
        let place = at(&to.host, to.port);
        let config = tls_client(&self.identity, to.peer, service).map_err(io::Error::other)?;
        let tls = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(to.host.clone()).map_err(io::Error::other)?;
        let encrypt = |stream: Box<dyn Bytes>| tls.connect(name, stream);
        match via {
            None => {
                let tcp = TcpStream::connect(&place).await?;
                tune(&tcp)?;
                encrypt(Box::new(tcp)).await
            }
            Some(Via::Proxy {
                host,
                port,
                credentials,
            }) => {
                let tcp = TcpStream::connect(at(host, *port)).await?;
                tune(&tcp)?;
                let credentials = credentials.as_ref().map(|text| text.as_str());
                encrypt(proxy::connect(tcp, &place, credentials).await?).await
            }
            Some(Via::Ssh { destination }) => {
                let (ssh, complaint) = SshStream::open(destination, &place)?;
                match encrypt(Box::new(ssh)).await {
                    Ok(stream) => Ok(stream),
                    Err(error) => Err(complaint.explain(error).await),
                }
            }
        }
    }
}

/// `host:port`, an IPv6 address in brackets.
fn at(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
