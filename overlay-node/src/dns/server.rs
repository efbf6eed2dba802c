//! The name server's sockets. What to answer is looked up in [`super::names`].

use super::{Answer, Names};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use hickory_proto::{
    op::{Edns, Metadata, OpCode, ResponseCode},
    rr::{
        DNSClass, Name as DnsName, RData, Record,
        rdata::{A, AAAA, PTR, SOA},
    },
};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use ipnet::IpNet;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::net::{TcpListener, UdpSocket};
use tracing::debug;

/// How long an answer may be cached: a guest that moves keeps its address, one that is replaced is found again this soon.
const TTL_SECONDS: u32 = 30;
/// How long "no such name" may be cached: a guest that just booted must not stay unknown for long.
const NEGATIVE_TTL_SECONDS: u32 = 5;
/// A TCP client that is silent for so long is dropped.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers that wait for a slow TCP client.
const TCP_ANSWERS_MAX: usize = 32;
/// Largest answer over UDP that passes every path (DNS flag day 2020).
const UDP_PAYLOAD_MAX: u16 = 1232;

/// The name server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The address cannot be bound.
    #[error(
        "cannot answer names on {0}: {1}; if another name server listens on every address, have it leave this one out"
    )]
    Bind(SocketAddr, #[source] io::Error),
}

/// A running name server. Stops when dropped.
pub struct DnsServer {
    server: Server<Answerer>,
    listening: Vec<SocketAddr>,
}

impl DnsServer {
    /// Answers over UDP and TCP on each address, to stations of the network and to this host only.
    ///
    /// # Errors
    /// [`DnsError::Bind`] when an address is not there or taken.
    pub async fn start(
        listen: &[SocketAddr],
        names: Arc<ArcSwap<Names>>,
    ) -> Result<Self, DnsError> {
        let everybody = [
            IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
            IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
        ];
        let this_host = [
            IpNet::new_assert(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
            IpNet::new_assert(Ipv6Addr::LOCALHOST.into(), 128),
        ];
        let ours = names.load().own_networks();
        let mut server = Server::with_access(
            Answerer { names },
            everybody,
            ours.into_iter().chain(this_host),
        );
        let mut listening = Vec::new();
        for address in listen {
            let cannot = |error| DnsError::Bind(*address, error);
            let udp = UdpSocket::bind(address).await.map_err(cannot)?;
            let bound = udp.local_addr().map_err(cannot)?;
            let tcp = TcpListener::bind(bound).await.map_err(cannot)?;
            server.register_socket(udp);
            server.register_listener(tcp, TCP_TIMEOUT, TCP_ANSWERS_MAX);
            listening.push(bound);
        }
        Ok(Self { server, listening })
    }

    /// Where it answers.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// Stops answering, and lets go of the sockets before it returns.
    pub async fn stop(mut self) {
        if let Err(error) = self.server.shutdown_gracefully().await {
            debug!(%error, "name server stopped with an error");
        }
    }
}

struct Answerer {
    names: Arc<ArcSwap<Names>>,
}

#[async_trait]
impl RequestHandler for Answerer {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let names = self.names.load_full();
        let (code, answers, authority) = answer(&names, request);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = code;
        metadata.authoritative = code != ResponseCode::Refused;
        metadata.recursion_available = false;
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD_MAX);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if request.edns.is_some() {
            builder.edns(&edns);
        }
        match response
            .send_response(builder.build(metadata, &answers, None, &authority, None))
            .await
        {
            Ok(info) => info,
            Err(error) => {
                debug!(%error, from = %request.src(), "an answer could not be sent");
                let failed = hickory_proto::op::Header {
                    metadata,
                    counts: hickory_proto::op::HeaderCounts::default(),
                };
                failed.into()
            }
        }
    }
}

/// The response code, the answers, and for negative answers the zone's SOA, which bounds their caching (RFC 2308).
fn answer(names: &Names, request: &Request) -> (ResponseCode, Vec<Record>, Option<Record>) {
    let Ok(info) = request.request_info() else {
        return (ResponseCode::FormErr, vec![], None);
    };
    if info.metadata.op_code != OpCode::Query {
        return (ResponseCode::NotImp, vec![], None);
    }
    if info.query.query_class() != DNSClass::IN {
        return (ResponseCode::Refused, vec![], None);
    }
    let record = |data| Record::from_rdata(info.query.original().name().clone(), TTL_SECONDS, data);
    match names.answer(info.query.name(), info.query.query_type()) {
        Answer::Addresses(addresses) => (
            ResponseCode::NoError,
            addresses
                .into_iter()
                .map(|address| record(data_of(address)))
                .collect(),
            None,
        ),
        Answer::Pointer(name) => match DnsName::from_ascii(name) {
            Ok(name) => (
                ResponseCode::NoError,
                vec![record(RData::PTR(PTR(name)))],
                None,
            ),
            Err(_) => (ResponseCode::ServFail, vec![], None),
        },
        Answer::Nothing => (ResponseCode::NoError, vec![], soa(names)),
        Answer::NoSuchName => (ResponseCode::NXDomain, vec![], soa(names)),
        Answer::Refused => (ResponseCode::Refused, vec![], None),
    }
}

fn data_of(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn soa(names: &Names) -> Option<Record> {
    let zone = DnsName::from_ascii(format!("{}.", names.zone())).ok()?;
    let mailbox = zone.prepend_label("hostmaster").ok()?;
    // Nobody transfers this zone, so that serial and timers say nothing; the minimum is what resolvers read.
    let soa = SOA::new(
        zone.clone(),
        mailbox,
        1,
        3600,
        600,
        86_400,
        NEGATIVE_TTL_SECONDS,
    );
    Some(Record::from_rdata(
        zone,
        NEGATIVE_TTL_SECONDS,
        RData::SOA(soa),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::{
        op::{Message, Query},
        rr::RecordType,
    };
    use overlay_types::NetworkId;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(DnsName::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    async fn over_udp(server: SocketAddr, name: &str, kind: RecordType) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&question(name, kind), server).await.unwrap();
        let mut answer = [0; 1500];
        let n = socket.recv(&mut answer).await.unwrap();
        Message::from_vec(&answer[..n]).unwrap()
    }

    async fn server() -> (DnsServer, Arc<ArcSwap<Names>>) {
        let mut names = Names::new(
            "lab".parse().unwrap(),
            NetworkId([7; 32]),
            "10.77.0.0/16".parse().unwrap(),
            true,
        );
        names.insert("vm-8-1".parse().unwrap(), "10.77.3.4".parse().unwrap());
        let names = Arc::new(ArcSwap::from_pointee(names));
        (
            DnsServer::start(&["127.0.0.1:0".parse().unwrap()], names.clone())
                .await
                .unwrap(),
            names,
        )
    }

    #[tokio::test]
    async fn names_are_answered_over_udp_and_tcp() {
        let (server, _) = server().await;
        let at = server.local_addrs()[0];

        let answer = over_udp(at, "vm-8-1.lab.farlan.", RecordType::A).await;
        assert_eq!(answer.answers[0].data, RData::A(A::new(10, 77, 3, 4)));
        assert!(answer.metadata.authoritative);

        let mut tcp = tokio::net::TcpStream::connect(at).await.unwrap();
        let query = question("vm-8-1.", RecordType::A);
        tcp.write_u16(u16::try_from(query.len()).unwrap())
            .await
            .unwrap();
        tcp.write_all(&query).await.unwrap();
        let mut answer = vec![0; usize::from(tcp.read_u16().await.unwrap())];
        tcp.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
        server.stop().await;
    }

    #[tokio::test]
    async fn unknown_names_are_denied_briefly_and_foreign_ones_refused() {
        let (server, _) = server().await;
        let at = server.local_addrs()[0];

        let unknown = over_udp(at, "nobody.lab.farlan.", RecordType::A).await;
        assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(unknown.authorities[0].ttl, NEGATIVE_TTL_SECONDS);
        assert_eq!(
            over_udp(at, "vm-8-1.", RecordType::AAAA)
                .await
                .metadata
                .response_code,
            ResponseCode::NoError
        );
        assert_eq!(
            over_udp(at, "example.org.", RecordType::A)
                .await
                .metadata
                .response_code,
            ResponseCode::Refused
        );
        server.stop().await;
    }

    #[tokio::test]
    async fn a_new_snapshot_is_answered_from_at_once() {
        let (server, names) = server().await;
        let mut next = Names::clone(&names.load());
        next.insert("late".parse().unwrap(), "10.77.9.9".parse().unwrap());

        names.store(Arc::new(next));

        assert_eq!(
            over_udp(server.local_addrs()[0], "late.lab.farlan.", RecordType::A)
                .await
                .answers
                .len(),
            1
        );
    }

    #[tokio::test]
    async fn after_stop_the_address_is_free_again() {
        let (server, names) = server().await;
        let at = server.local_addrs()[0];
        server.stop().await;
        assert!(DnsServer::start(&[at], names).await.is_ok());
    }
}
