//! Questions and answers, as bytes on the wire.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use decapod_client::ObjectKey;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use serde_json::{Value, json};

use super::index::Index;
use super::message::{Outcome, Transport, respond};
use crate::world::World;

/// A cluster whose Services can be changed one by one.
struct Cluster {
    world: World,
    index: Index,
}

impl Cluster {
    fn new() -> Self {
        let mut index = Index::new(&Name::from_str("cluster.local.").unwrap()).unwrap();
        index.synced = true;
        index.namespace_set("default", true).unwrap();
        Self { world: World::default(), index }
    }

    fn service(&mut self, name: &str, spec: Option<Value>) {
        let key = ObjectKey::new("default", name);
        let service = spec.map(|spec| {
            let metadata = json!({"namespace": "default", "name": name});
            Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
        });
        self.world.service_set(key.clone(), service);
        self.index.service_set(&self.world, &key).unwrap();
    }

    fn endpoints(&mut self, service: &str, endpoints: &Value) {
        let slice = json!({
            "metadata": {"namespace": "default", "name": service,
                "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "db", "port": 5432, "protocol": "TCP"}],
        });
        let key = ObjectKey::new("default", service);
        let old = self.world.slices(&key).next().cloned();
        drop(self.world.slice_set(old.as_ref(), Some(Arc::new(serde_json::from_value(slice).unwrap()))));
        self.index.service_set(&self.world, &key).unwrap();
    }

    fn ask(&self, name: &str, kind: RecordType) -> Message {
        let mut question = question(name, kind);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        question.set_edns(edns);
        self.exchange(&question, Transport::Udp).expect("an answer")
    }

    fn exchange(&self, question: &Message, transport: Transport) -> Option<Message> {
        let Outcome::Reply(reply) = respond(&self.index, &question.to_vec().unwrap(), transport, 0) else {
            return None;
        };
        let mut bytes = Vec::new();
        reply.encode(&mut bytes).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!((answer.id, answer.message_type), (question.id, MessageType::Response));
        Some(answer)
    }

    /// The data of the answer's records, in order of their text.
    fn data(&self, name: &str, kind: RecordType) -> BTreeSet<String> {
        self.ask(name, kind).answers.iter().map(|record| record.data.to_string()).collect()
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut question = Message::new(77, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    question
}

fn web() -> Value {
    json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00::5"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "UDP"}]})
}

fn headless() -> Value {
    json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "db", "port": 5432}]})
}

fn set<const N: usize>(items: [&str; N]) -> BTreeSet<String> {
    items.map(str::to_owned).into()
}

#[test]
fn a_service_is_found_by_name_port_and_address() {
    let mut cluster = Cluster::new();
    cluster.service("web", Some(web()));
    assert_eq!(cluster.data("web.default.svc.cluster.local.", RecordType::A), set(["10.96.0.5"]));
    assert_eq!(cluster.data("WEB.Default.svc.Cluster.LOCAL.", RecordType::AAAA), set(["fd00::5"]));
    let port = cluster.ask("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV);
    assert_eq!(port.answers[0].data.to_string(), "0 100 80 web.default.svc.cluster.local.");
    assert_eq!(port.additionals.len(), 2, "the target's addresses");
    let ports = cluster.data("web.default.svc.cluster.local.", RecordType::SRV);
    assert_eq!(ports.len(), 2, "{ports:?}");
    let name = set(["web.default.svc.cluster.local."]);
    assert_eq!(cluster.data("5.0.96.10.in-addr.arpa.", RecordType::PTR), name);
    let answer = cluster.ask("web.default.svc.cluster.local.", RecordType::A);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.answers[0].ttl, 5);
}

#[test]
fn no_such_name_and_no_such_record_are_told_apart() {
    let mut cluster = Cluster::new();
    cluster.service("web", Some(web()));
    let code = |name: &str, kind| {
        let answer = cluster.ask(name, kind);
        assert!(answer.answers.is_empty(), "{name}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "{name}");
        answer.metadata.response_code
    };
    assert_eq!(code("web.default.svc.cluster.local.", RecordType::TXT), ResponseCode::NoError);
    for exists in ["default.svc", "svc", "default.pod", "pod", "_tcp.web.default.svc"] {
        let name = format!("{exists}.cluster.local.");
        assert_eq!(code(&name, RecordType::A), ResponseCode::NoError, "{name}");
    }
    for absent in
        ["web.other.svc", "none.default.svc", "example.com.default.svc", "x.web.default.svc", "other.svc"]
    {
        let name = format!("{absent}.cluster.local.");
        assert_eq!(code(&name, RecordType::A), ResponseCode::NXDomain, "{name}");
    }
}

#[test]
fn a_service_that_is_gone_leaves_no_name() {
    let mut cluster = Cluster::new();
    cluster.service("web", Some(web()));
    cluster.service("other", Some(json!({"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.6"]})));
    cluster.service("web", Some(json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"]})));
    assert_eq!(cluster.data("web.default.svc.cluster.local.", RecordType::A), set(["10.96.0.7"]));
    let port = cluster.ask("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV);
    assert_eq!(port.metadata.response_code, ResponseCode::NXDomain);
    for name in ["web", "other"] {
        cluster.service(name, None);
        let answer = cluster.ask(&format!("{name}.default.svc.cluster.local."), RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(cluster.ask("default.svc.cluster.local.", RecordType::A).response_code, ResponseCode::NoError);
    cluster.index.namespace_set("default", false).unwrap();
    assert_eq!(
        cluster.ask("default.svc.cluster.local.", RecordType::A).response_code,
        ResponseCode::NXDomain
    );
    assert_eq!(cluster.ask("svc.cluster.local.", RecordType::A).response_code, ResponseCode::NoError);
}

#[test]
fn a_headless_service_is_its_ready_endpoints() {
    let mut cluster = Cluster::new();
    cluster.service("db", Some(headless()));
    let name = "db.default.svc.cluster.local.";
    assert_eq!(
        cluster.ask(name, RecordType::A).response_code,
        ResponseCode::NXDomain,
        "no endpoint is ready"
    );
    cluster.endpoints(
        "db",
        &json!([
        {"addresses": ["10.244.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.244.0.3"], "conditions": {"ready": true}},
        {"addresses": ["10.244.0.4"], "hostname": "db-2", "conditions": {"ready": false}}]),
    );
    assert_eq!(cluster.data(name, RecordType::A), set(["10.244.0.2", "10.244.0.3"]));
    assert_eq!(cluster.data("db-0.db.default.svc.cluster.local.", RecordType::A), set(["10.244.0.2"]));
    assert_eq!(cluster.data("10-244-0-3.db.default.svc.cluster.local.", RecordType::A), set(["10.244.0.3"]));
    let ports = cluster.ask("_db._tcp.db.default.svc.cluster.local.", RecordType::SRV);
    assert_eq!((ports.answers.len(), ports.additionals.len()), (2, 2));
    let pointer = cluster.data("2.0.244.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(pointer, set(["db-0.db.default.svc.cluster.local."]));
    cluster.endpoints("db", &json!([]));
    assert_eq!(cluster.ask(name, RecordType::A).response_code, ResponseCode::NXDomain);
    assert!(
        cluster.exchange(&question("2.0.244.10.in-addr.arpa.", RecordType::PTR), Transport::Udp).is_none()
    );
}

#[test]
fn equal_answers_take_turns() {
    let mut cluster = Cluster::new();
    cluster.service("db", Some(headless()));
    let endpoints = [2, 3, 4].map(|n| json!({"addresses": [format!("10.244.0.{n}")]}));
    cluster.endpoints("db", &Value::from(endpoints.to_vec()));
    let bytes = question("db.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let firsts: BTreeSet<_> = (0..3)
        .map(|rotation| {
            let Outcome::Reply(reply) = respond(&cluster.index, &bytes, Transport::Udp, rotation) else {
                panic!()
            };
            let mut bytes = Vec::new();
            reply.encode(&mut bytes).unwrap();
            Message::from_vec(&bytes).unwrap().answers[0].data.to_string()
        })
        .collect();
    assert_eq!(firsts.len(), 3);
}

#[test]
fn pods_are_found_by_their_dashed_address() {
    let cluster = Cluster::new();
    assert_eq!(cluster.data("10-244-0-9.default.pod.cluster.local.", RecordType::A), set(["10.244.0.9"]));
    assert_eq!(cluster.data("fd00--9.default.pod.cluster.local.", RecordType::AAAA), set(["fd00::9"]));
    let other_kind = cluster.ask("10-244-0-9.default.pod.cluster.local.", RecordType::AAAA);
    assert_eq!((other_kind.response_code, other_kind.answers.len()), (ResponseCode::NoError, 0));
    for absent in ["10-244-0.default", "nonsense.default", "10-244-0-9.other", "x.10-244-0-9.default"] {
        let answer = cluster.ask(&format!("{absent}.pod.cluster.local."), RecordType::A);
        assert_eq!(answer.response_code, ResponseCode::NXDomain, "{absent}");
    }
}

#[test]
fn the_zone_describes_itself() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.data("dns-version.cluster.local.", RecordType::TXT), set(["1.1.0"]));
    assert_eq!(cluster.data("cluster.local.", RecordType::NS), set(["ns.dns.cluster.local."]));
    let key = ObjectKey::new("kube-system", "kube-dns");
    let spec = json!({"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ports": []});
    cluster
        .world
        .service_set(key.clone(), Some(Arc::new(serde_json::from_value(json!({"spec": spec})).unwrap())));
    cluster.index.service_set(&cluster.world, &key).unwrap();
    assert_eq!(cluster.data("ns.dns.cluster.local.", RecordType::A), set(["10.96.0.10"]));
}

#[test]
fn an_external_name_is_an_alias() {
    let mut cluster = Cluster::new();
    cluster.service("web", Some(web()));
    let alias = |target: &str| Some(json!({"type": "ExternalName", "externalName": target}));
    cluster.service("inside", alias("web.default.svc.cluster.local"));
    let answer = cluster.ask("inside.default.svc.cluster.local.", RecordType::A);
    let kinds: Vec<_> = answer.answers.iter().map(|record| record.record_type()).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
    cluster.service("outside", alias("example.com"));
    let bytes = question("outside.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let Outcome::Resolve(pending) = respond(&cluster.index, &bytes, Transport::Udp, 0) else { panic!() };
    assert_eq!(pending.query.name.to_string(), "example.com.");
    cluster.service("loop", alias("loop.default.svc.cluster.local"));
    let looping = cluster.ask("loop.default.svc.cluster.local.", RecordType::A);
    assert_eq!(looping.response_code, ResponseCode::ServFail);
}

#[test]
fn an_answer_that_does_not_fit_is_cut_over_udp_and_whole_over_tcp() {
    let mut cluster = Cluster::new();
    cluster.service("db", Some(headless()));
    let endpoints: Vec<_> = (2..102).map(|n| json!({"addresses": [format!("10.244.0.{n}")]})).collect();
    cluster.endpoints("db", &Value::from(endpoints));
    let plain = question("db.default.svc.cluster.local.", RecordType::A);
    let cut = cluster.exchange(&plain, Transport::Udp).unwrap();
    assert!(cut.metadata.truncation && cut.answers.len() < 100 && !cut.answers.is_empty());
    let whole = cluster.exchange(&plain, Transport::Tcp).unwrap();
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
}

#[test]
fn what_is_no_proper_question_is_refused_or_ignored() {
    let cluster = Cluster::new();
    let code = |question: &Message| {
        cluster.exchange(question, Transport::Udp).map(|answer| answer.metadata.response_code)
    };
    let base = || question("svc.cluster.local.", RecordType::A);
    let mut chaos = base();
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(code(&chaos), Some(ResponseCode::Refused));
    let mut update = base();
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&update), Some(ResponseCode::NotImp));
    let mut two = base();
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&two), Some(ResponseCode::FormErr));
    let mut future = base();
    let mut edns = Edns::new();
    edns.set_version(1);
    future.set_edns(edns);
    // The same number means BADSIG elsewhere.
    assert_eq!(code(&future).map(u16::from), Some(ResponseCode::BADVERS.into()));
    let mut answer = base();
    answer.metadata.message_type = MessageType::Response;
    assert_eq!(code(&answer), None);
    let mut torn = base().to_vec().unwrap();
    torn.truncate(20);
    assert!(matches!(respond(&cluster.index, &torn, Transport::Udp, 0), Outcome::Reply(_)));
    assert!(matches!(respond(&cluster.index, &torn[..5], Transport::Udp, 0), Outcome::Ignore));
}

#[test]
fn before_the_cluster_is_known_its_names_fail() {
    let mut cluster = Cluster::new();
    cluster.index.synced = false;
    for name in ["web.default.svc.cluster.local.", "default.svc.cluster.local."] {
        assert_eq!(cluster.ask(name, RecordType::A).response_code, ResponseCode::ServFail);
    }
}
