//! Asks whoever answers where a fabric node should: in TLS, and in plain HTTP. What the answers mean is in [`super::proxy`].

use super::{
    HttpAnswer, TlsAnswer,
    proxy::{judge_failure, judge_http},
};
use dht::{
    identity::Identity,
    swarm::{StreamService, tls_client},
};
use overlay_types::PeerId;
use rustls::pki_types::ServerName;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Plain HTTP's port, where portals answer for everybody.
const HTTP_PORT: u16 = 80;

/// How long an answer is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// A status line and the headers that matter are shorter.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Who answers at `to` in TLS; it should be `peer`.
pub(crate) async fn ask_tls(identity: &Identity, to: SocketAddr, peer: PeerId) -> TlsAnswer {
    let nobody = |error: &dyn std::fmt::Display| TlsAnswer::Nobody(error.to_string());
    let config = match tls_client(identity, Some(peer), StreamService::Control) {
        Ok(config) => config,
        Err(error) => return nobody(&error),
    };
    let tcp = match timeout(ANSWER_WITHIN, TcpStream::connect(to)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return nobody(&error),
        Err(_) => return nobody(&"no answer"),
    };
    let connecting = TlsConnector::from(Arc::new(config)).connect(ServerName::from(to.ip()), tcp);
    match timeout(ANSWER_WITHIN, connecting).await {
        Ok(Ok(_)) => TlsAnswer::Itself,
        Ok(Err(error)) => judge_failure(&error),
        Err(_) => nobody(&"a connection, but no TLS"),
    }
}

/// What answers plain HTTP at `ip`.
pub(crate) async fn ask_http(ip: IpAddr) -> (SocketAddr, HttpAnswer) {
    let at = SocketAddr::new(ip, HTTP_PORT);
    let answer = match timeout(ANSWER_WITHIN, exchange(at)).await {
        Ok(Ok(text)) => judge_http(&text, ip),
        _ => HttpAnswer::Nobody,
    };
    (at, answer)
}

async fn exchange(at: SocketAddr) -> io::Result<String> {
    let mut tcp = TcpStream::connect(at).await?;
    let host = at.ip();
    let question = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    tcp.write_all(question.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut limited = tcp.take(ANSWER_BYTES_MAX);
    let read = limited.read_to_end(&mut answer).await;
    if answer.is_empty() {
        read?;
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
