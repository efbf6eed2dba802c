//! Asks a running node over its Unix socket. What is asked and answered is [`overlay_types::api`]'s.

use crate::args::Global;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, body::Bytes, header};
use hyper_util::rt::TokioIo;
use overlay_node::config;
use overlay_types::{Name, api::ApiError};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::net::UnixStream;

/// A thousand peers with their guests are under a tenth of it.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens; a node may be started.
    #[error(
        "no node answers at {0}; start one with `farlan up`, or say which with --state DIR or --socket PATH"
    )]
    NotRunning(PathBuf),
    /// Somebody else's node.
    #[error("not allowed to use {0}; run as the user who runs the node (root, with sudo)")]
    Denied(PathBuf),
    /// The node's own words.
    #[error("{0}")]
    Refused(String),
    /// The node went away, or is of another version.
    #[error(
        "the node at {socket} did not answer as expected: {why}; check that it is of this version with `farlan status`"
    )]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What went wrong.
        why: String,
    },
}

/// One node's API.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    socket: PathBuf,
    network: Option<Name>,
}

impl Client {
    /// The node that the flags mean.
    pub(crate) fn new(global: &Global) -> anyhow::Result<Self> {
        let state = global
            .state
            .clone()
            .unwrap_or_else(config::default_state_dir);
        let socket = config::socket_path(global.socket.clone(), &state)?;
        Ok(Self {
            socket,
            network: global.network.clone(),
        })
    }

    /// The node that serves `socket`.
    pub(crate) fn at(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            network: None,
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|e| self.broken(&e))?;
        self.ask(Method::POST, path, body.into()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| match e.kind() {
                io::ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NotRunning(self.socket.clone())
                }
                _ => self.broken(&e),
            })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(&e))?;
        let driver = tokio::spawn(connection);
        // A name is a DNS label, so it needs no escaping in a query.
        let query = self
            .network
            .as_ref()
            .map(|name| format!("?network={name}"))
            .unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("{path}{query}"))
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| self.broken(&e))?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|e| self.broken(&e))?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|e| self.broken(&e.as_ref()))?
            .to_bytes();
        driver.abort();
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| self.broken(&e));
        }
        match serde_json::from_slice::<ApiError>(&bytes) {
            Ok(refusal) => Err(ClientError::Refused(refusal.error)),
            Err(_) => Err(self.broken(&status)),
        }
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Broken {
            socket: self.socket.clone(),
            why: why.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_node::api::{Answer, ApiServer, NodeControl};
    use overlay_types::{
        PeerId,
        api::{FabricStatus, NatStatus, NodeStatus, PeerStatus, Status},
    };
    use std::sync::Arc;
    use tokio_util::sync::CancellationToken;

    struct Fabric(CancellationToken);

    impl NodeControl for Fabric {
        fn status(&self) -> impl Future<Output = Answer<Status>> + Send {
            std::future::ready(Ok(Status {
                node: NodeStatus {
                    id: PeerId([1; 32]),
                    version: "7".into(),
                    pid: 1,
                    uptime_s: 1,
                },
                nat: NatStatus::default(),
                fabric: FabricStatus::default(),
                relay: overlay_types::api::RelayStatus::default(),
                networks: vec![],
                name: None,
                address: None,
                address6: None,
            }))
        }

        fn down(&self) -> impl Future<Output = Answer<()>> + Send {
            self.0.cancel();
            std::future::ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_node_is_asked_answers_refuses_and_is_gone() {
        let tmp = tempfile::tempdir().unwrap();
        let global = Global {
            state: Some(tmp.path().into()),
            network: "lab".parse().ok(),
            ..Global::default()
        };
        let client = Client::new(&global).unwrap();
        let stop = CancellationToken::new();
        let server = ApiServer::bind(&tmp.path().join("farlan.sock"))
            .await
            .unwrap();
        let serving = tokio::spawn(server.serve_fabric(Arc::new(Fabric(stop.clone())), stop));

        assert_eq!(
            client
                .get::<Status>("/v1/status")
                .await
                .unwrap()
                .node
                .version,
            "7"
        );
        let refused = client
            .get::<Vec<PeerStatus>>("/v1/peers")
            .await
            .unwrap_err();
        assert!(
            matches!(&refused, ClientError::Refused(why) if why.contains("fabric node")),
            "{refused}"
        );
        let () = client.post("/v1/down", &()).await.unwrap();
        serving.await.unwrap();
        let gone = client.get::<Status>("/v1/status").await.unwrap_err();
        assert!(matches!(gone, ClientError::NotRunning(_)), "{gone}");
    }
}
