//! A stream through an HTTP proxy: CONNECT (RFC 9110 §9.3.6).

use super::Bytes;
use data_encoding::BASE64;
use http_body_util::Empty;
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1,
    header::{HOST, HeaderValue, PROXY_AUTHORIZATION},
};
use hyper_util::rt::TokioIo;
use std::io;
use tokio::net::TcpStream;

/// Asks the proxy at the other end of `tcp` to connect to `to`, written `host:port`.
pub(super) async fn connect(
    tcp: TcpStream,
    to: &str,
    credentials: Option<&str>,
) -> io::Result<Box<dyn Bytes>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(tcp))
        .await
        .map_err(io::Error::other)?;
    // Ends with the stream it becomes, or with an error that the request shows as well.
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(to)
        .header(HOST, to)
        .body(Empty::<bytes::Bytes>::new())
        .map_err(io::Error::other)?;
    if let Some(credentials) = credentials {
        let text = format!("Basic {}", BASE64.encode(credentials.as_bytes()));
        let mut value = HeaderValue::try_from(text).map_err(io::Error::other)?;
        value.set_sensitive(true);
        request.headers_mut().insert(PROXY_AUTHORIZATION, value);
    }
    let response = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    match response.status() {
        status if status.is_success() => {}
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the proxy asks for a user and a password; write http://USER:PASSWORD@HOST:PORT",
            ));
        }
        status => {
            return Err(io::Error::other(format!("the proxy says {status}")));
        }
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(io::Error::other)?;
    Ok(Box::new(TokioIo::new(upgraded)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// A proxy that answers one request so; what it was asked.
    async fn ask(answer: &'static str, credentials: Option<&str>) -> (io::Result<Vec<u8>>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let proxy = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(tcp.read_u8().await.unwrap());
            }
            tcp.write_all(answer.as_bytes()).await.unwrap();
            let mut bytes = [0; 5];
            if tcp.read_exact(&mut bytes).await.is_ok() {
                tcp.write_all(&bytes).await.unwrap();
            }
            String::from_utf8(asked).unwrap()
        });
        let tcp = TcpStream::connect(at).await.unwrap();
        let outcome = async {
            let mut stream = connect(tcp, "[2001:db8::1]:443", credentials).await?;
            stream.write_all(b"hello").await?;
            let mut back = vec![0; 5];
            stream.read_exact(&mut back).await?;
            Ok(back)
        };
        (outcome.await, proxy.await.unwrap())
    }

    #[tokio::test]
    async fn what_follows_the_answer_is_the_stream() {
        let (back, asked) = ask("HTTP/1.1 200 OK\r\n\r\n", Some("me:secret")).await;
        assert_eq!(back.unwrap(), b"hello");
        assert!(
            asked.starts_with("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n"),
            "{asked}"
        );
        let asked = asked.to_ascii_lowercase();
        assert!(
            asked.contains("\r\nproxy-authorization: basic bwu6c2vjcmv0\r\n"),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn a_refusal_says_what_to_do() {
        let refused = "HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (error, _) = ask(refused, None).await;
        assert!(error.unwrap_err().to_string().contains("USER:PASSWORD"));
        let refused = "HTTP/1.1 403 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (error, _) = ask(refused, None).await;
        assert!(error.unwrap_err().to_string().contains("403"));
    }
}
