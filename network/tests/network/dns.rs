//! Cluster DNS as a whole: an API server in the essentials of list and watch, sockets on loopback, an
//! upstream server of the test.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::api::Api;
use crate::support::PATIENCE;
use decapod_client::clock::SystemClock;
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_network::dns::{Options, Server, Upstreams};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::json;

/// A running server.
struct Dns {
    address: SocketAddr,
    ready: SocketAddr,
    api: Api,
    supervisor: Supervisor,
}

async fn dns(upstreams: Vec<SocketAddr>) -> Dns {
    let api = Api::new();
    api.put("namespaces", "", "default", &json!({}));
    let supervisor = Supervisor::new();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::bind(Options {
        listen: any,
        upstreams: Upstreams::Servers(upstreams),
        health: None,
        ready: Some(any),
        ..Options::default()
    });
    let server = server.await.unwrap();
    let (address, ready) = (server.address().unwrap(), server.ready_address().unwrap());
    let clock = Arc::new(SystemClock::new());
    let informers = Informers::new(api.client(), supervisor.clone(), clock.clone());
    supervisor.spawn("dns", server.run(informers, supervisor.clone(), clock));
    Dns { address, ready, api, supervisor }
}

impl Dns {
    async fn is_ready(&self) -> bool {
        let ready = self.ready;
        let asked = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(ready).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer.starts_with("HTTP/1.1 200")
        });
        asked.await.unwrap()
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        let (address, question) = (self.address, question(name, kind));
        tokio::task::spawn_blocking(move || udp_ask(address, &question)).await.unwrap()
    }

    async fn data(&self, name: &str) -> BTreeSet<String> {
        let answer = self.ask(name, RecordType::A).await;
        answer.answers.iter().map(|record| record.data.to_string()).collect()
    }

    /// Waits until the answer for a name is this.
    async fn until(&self, name: &str, expected: &[&str]) {
        let expected: BTreeSet<_> = expected.iter().map(|text| (*text).to_owned()).collect();
        let mut last = BTreeSet::new();
        for _ in 0..500 {
            last = self.data(name).await;
            if last == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} is {last:?}, not {expected:?}");
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut question = Message::new(4711, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    question
}

fn udp_ask(address: SocketAddr, question: &Message) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&question.to_vec().unwrap(), address).unwrap();
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).expect("an answer in time");
    Message::from_vec(&buffer[..length]).unwrap()
}

fn tcp_ask(address: SocketAddr, questions: &[Message]) -> Vec<Message> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let ask = |question: &Message| {
        let bytes = question.to_vec().unwrap();
        stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer).unwrap();
        Message::from_vec(&answer).unwrap()
    };
    questions.iter().map(ask).collect()
}

/// An upstream server that gives every name the same address, once; it is then silent.
fn upstream() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        let (length, client) = socket.recv_from(&mut buffer).unwrap();
        let question = Message::from_vec(&buffer[..length]).unwrap();
        let mut answer = Message::response(question.id, OpCode::Query);
        answer.add_queries(question.queries.iter().cloned());
        let data = RData::A(A::new(192, 0, 2, 7));
        answer.add_answer(Record::from_rdata(question.queries[0].name.clone(), 60, data));
        // One for somebody else first: it must not be believed.
        let mut forged = answer.clone();
        forged.metadata.id = answer.id.wrapping_add(1);
        forged.answers[0].data = RData::A(A::new(192, 0, 2, 66));
        for message in [forged, answer] {
            socket.send_to(&message.to_vec().unwrap(), client).unwrap();
        }
    });
    address
}

fn service(address: &str) -> serde_json::Value {
    json!({"spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"name": "http", "port": 80}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_follow_the_cluster() {
    let dns = dns(Vec::new()).await;
    dns.api.put("services", "default", "web", &service("10.96.0.5"));
    let name = "web.default.svc.cluster.local.";
    dns.until(name, &["10.96.0.5"]).await;
    assert!(dns.is_ready().await);
    dns.api.put("services", "default", "web", &service("10.96.0.6"));
    dns.until(name, &["10.96.0.6"]).await;
    dns.api.delete("services", "default", "web");
    dns.until(name, &[]).await;
    assert_eq!(dns.ask(name, RecordType::A).await.response_code, ResponseCode::NXDomain);
    dns.api.put("services", "default", "db", &json!({"spec": {"clusterIP": "None"}}));
    dns.api.put(
        "endpointslices",
        "default",
        "db-1",
        &json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "db"}}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.0.2"], "hostname": "db-0"}], "ports": []}),
    );
    dns.until("db-0.db.default.svc.cluster.local.", &["10.244.0.2"]).await;
    assert!(dns.supervisor.shutdown(PATIENCE).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_carries_several_questions() {
    let dns = dns(Vec::new()).await;
    dns.api.put("services", "default", "web", &service("10.96.0.5"));
    dns.until("web.default.svc.cluster.local.", &["10.96.0.5"]).await;
    let questions = ["web.default.svc.cluster.local.", "no.default.svc.cluster.local."]
        .map(|name| question(name, RecordType::A));
    let address = dns.address;
    let answers = tokio::task::spawn_blocking(move || tcp_ask(address, &questions)).await.unwrap();
    let codes: Vec<_> = answers.iter().map(|answer| answer.metadata.response_code).collect();
    assert_eq!(codes, [ResponseCode::NoError, ResponseCode::NXDomain]);
    assert!(dns.supervisor.shutdown(PATIENCE).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_names_are_asked_upstream_and_kept() {
    let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let dns = dns(vec![nobody, upstream()]).await;
    for round in 0..2 {
        let answer = dns.ask("example.com.", RecordType::A).await;
        assert_eq!(answer.answers[0].data.to_string(), "192.0.2.7", "round {round}");
        assert!(!answer.metadata.authoritative && answer.metadata.recursion_available);
    }
    assert!(dns.supervisor.shutdown(PATIENCE).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_upstream_servers_other_names_fail_at_once() {
    let dns = dns(Vec::new()).await;
    assert_eq!(dns.ask("example.com.", RecordType::A).await.response_code, ResponseCode::ServFail);
    assert!(dns.supervisor.shutdown(PATIENCE).await.is_empty());
}
