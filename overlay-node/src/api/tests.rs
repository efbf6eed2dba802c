//! The API as its clients see it: over a real socket, in HTTP.

use super::*;
use overlay_types::{NetworkId, PeerId, api::*};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
};
use tokio_util::sync::CancellationToken;

/// Answers with what it was asked, or refuses.
struct Parrot(CancellationToken);

fn refused<T>(what: impl std::fmt::Debug) -> Answer<T> {
    Err(ApiError {
        error: format!("refused: {what:?}"),
    })
}

impl NodeControl for Parrot {
    async fn status(&self) -> Answer<Status> {
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
        .await
    }

    async fn down(&self) -> Answer<()> {
        self.0.cancel();
        std::future::ready(Ok(())).await
    }
}

impl NodeApi for Parrot {
    fn create_network(
        &self,
        request: CreateNetwork,
    ) -> impl Future<Output = Answer<NetworkStatus>> + Send {
        std::future::ready(Ok(NetworkStatus {
            id: NetworkId([2; 32]),
            name: request.name,
            subnet: request.subnet.unwrap_or("10.77.0.0/16".parse().unwrap()),
            dhcp: request.dhcp,
            mtu: request.mtu.unwrap_or(1500),
            default: true,
            state: "ready".into(),
            node_name: "me".parse().unwrap(),
            address: None,
            address6: None,
            tap: request.tap,
            peers: 0,
            roles: vec![],
            warnings: vec![],
        }))
    }
    fn join_network(
        &self,
        request: JoinNetwork,
    ) -> impl Future<Output = Answer<NetworkStatus>> + Send {
        std::future::ready(refused(request))
    }
    fn leave_network(&self, _: LeaveNetwork) -> impl Future<Output = Answer<()>> + Send {
        std::future::ready(Ok(()))
    }
    fn create_invite(
        &self,
        network: Option<Name>,
        _: CreateInvite,
    ) -> impl Future<Output = Answer<Invite>> + Send {
        std::future::ready(refused(network))
    }
    fn peers(&self, network: Option<Name>) -> impl Future<Output = Answer<Vec<PeerStatus>>> + Send {
        std::future::ready(if network.is_none() {
            Ok(vec![])
        } else {
            refused(network)
        })
    }
    fn leases(
        &self,
        network: Option<Name>,
    ) -> impl Future<Output = Answer<Vec<LeaseStatus>>> + Send {
        std::future::ready(refused(network))
    }
    fn ping(&self, network: Option<Name>, _: Ping) -> impl Future<Output = Answer<Pong>> + Send {
        std::future::ready(refused(network))
    }
    fn why(
        &self,
        network: Option<Name>,
        _: Why,
    ) -> impl Future<Output = Answer<Explanation>> + Send {
        std::future::ready(refused(network))
    }
    fn doctor(&self) -> impl Future<Output = Answer<Diagnosis>> + Send {
        std::future::ready(refused("doctor"))
    }
    fn ports(&self, network: Option<Name>) -> impl Future<Output = Answer<Vec<PortStatus>>> + Send {
        std::future::ready(refused(network))
    }
    fn add_port(
        &self,
        network: Option<Name>,
        _: AddPort,
    ) -> impl Future<Output = Answer<PortStatus>> + Send {
        std::future::ready(refused(network))
    }
    fn remove_port(
        &self,
        network: Option<Name>,
        _: RemovePort,
    ) -> impl Future<Output = Answer<()>> + Send {
        std::future::ready(refused(network))
    }
    fn lans(&self, network: Option<Name>) -> impl Future<Output = Answer<Vec<LanStatus>>> + Send {
        std::future::ready(refused(network))
    }
    fn attach_lan(
        &self,
        network: Option<Name>,
        _: AttachLan,
    ) -> impl Future<Output = Answer<LanStatus>> + Send {
        std::future::ready(refused(network))
    }
    fn detach_lan(&self, network: Option<Name>) -> impl Future<Output = Answer<()>> + Send {
        std::future::ready(refused(network))
    }
}

/// Status code and body.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let head = "Host: x\r\nConnection: close\r\nContent-Type: application/json";
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head[9..12].parse().unwrap(),
        serde_json::from_str(body).unwrap(),
    )
}

async fn with_member(questions: impl FnOnce(&Path) + Send + 'static) {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("s");
    let stop = CancellationToken::new();
    let server = ApiServer::bind(&socket).await.unwrap();
    let serving = tokio::spawn(server.serve(Arc::new(Parrot(stop.clone())), stop.clone()));
    tokio::task::spawn_blocking(move || questions(&socket))
        .await
        .unwrap();
    stop.cancel();
    serving.await.unwrap();
    assert_eq!(
        std::fs::read_dir(tmp.path()).unwrap().count(),
        0,
        "the socket is gone with its server"
    );
}

#[tokio::test]
async fn a_question_is_answered_in_json_and_a_refusal_is_one_line() {
    with_member(|socket| {
        let (code, status) = ask(socket, "GET", "/v1/status", "");
        assert_eq!((code, &status["node"]["version"]), (200, &"7".into()));
        let (code, made) = ask(
            socket,
            "POST",
            "/v1/networks",
            r#"{"name":"lab","dhcp":"lan","bootstrap":[]}"#,
        );
        assert_eq!(
            (code, &made["name"], &made["dhcp"]),
            (200, &"lab".into(), &"lan".into())
        );
        let (code, refusal) = ask(socket, "GET", "/v1/peers?network=lab", "");
        assert_eq!(
            (code, refusal["error"].as_str()),
            (409, Some(r#"refused: Some(Name("lab"))"#))
        );
    })
    .await;
}

#[tokio::test]
async fn what_is_no_question_is_refused_in_our_own_form() {
    with_member(|socket| {
        for (method, path, body, expected) in [
            ("GET", "/v2/status", "", 404),
            ("GET", "/v1/peers?network=a.b", "", 400),
            (
                "POST",
                "/v1/networks",
                r#"{"name":"a.b","dhcp":"lan","bootstrap":[]}"#,
                422,
            ),
            ("POST", "/v1/networks", "{", 400),
        ] {
            let (code, refusal) = ask(socket, method, path, body);
            assert_eq!(code, expected, "{path}");
            assert!(refusal["error"].is_string(), "{refusal}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_infrastructure_node_says_that_it_is_one() {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("s");
    let stop = CancellationToken::new();
    let server = ApiServer::bind(&socket).await.unwrap();
    let serving = tokio::spawn(server.serve_fabric(Arc::new(Parrot(stop.clone())), stop));
    tokio::task::spawn_blocking(move || {
        let (code, refusal) = ask(&socket, "GET", "/v1/peers", "");
        assert_eq!(code, 404);
        assert!(refusal["error"].as_str().unwrap().contains("fabric node"));
        assert_eq!(ask(&socket, "POST", "/v1/down", "null").0, 200);
    })
    .await
    .unwrap();
    serving.await.unwrap(); // `down` ended it
}
