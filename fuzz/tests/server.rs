//! The whole server: whatever a client sends, it gets an answer that is not the server's fault, and the
//! server does not grow.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;

use decapod_apiserver::pki::{MASTERS, Pki};
use decapod_apiserver::{Clock, InProcess, Options, Server, SystemClock, UserInfo};
use decapod_fuzz::{SERVER, run};
use decapod_storage::{Embedded, embedded};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use tokio::runtime::Runtime;
use tower::ServiceExt;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Inputs that the server refuses with a code of its own: what it waited for did not come.
const ASKED_FOR: u16 = 504;

/// What Kubernetes, too, answers with 500: what is applied does not fit the schema.
const AS_KUBERNETES: &str = "failed to create typed patch object";

struct World {
    runtime: Runtime,
    service: InProcess,
    _dir: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let runtime = Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let service = runtime.block_on(async {
            let pki = Arc::new(Pki::open(&dir.path().join("pki"), SystemClock.now()).unwrap());
            let store = Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap();
            let options = Options { listen: ([127, 0, 0, 1], 0).into(), ..Options::default() };
            let handle = Server::start(options, Arc::new(store), pki, Arc::new(SystemClock)).await.unwrap();
            handle.service_as(UserInfo::new("system:admin", &[MASTERS]))
        });
        let world = Self { runtime, service, _dir: dir };
        let account = br#"{"metadata":{"name":"default"}}"#;
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        assert_eq!(world.send(Method::POST, accounts, "application/json", account), 201);
        let map = br#"{"metadata":{"name":"a"},"data":{"k":"v"}}"#;
        assert_eq!(world.send(Method::POST, MAPS, "application/json", map), 201);
        let pod = include_bytes!("../corpus/json/pod.json");
        assert_eq!(world.send(Method::POST, "/api/v1/namespaces/default/pods", "application/json", pod), 201);
        world
    }

    /// The code of the answer.
    fn send(&self, method: Method, uri: &str, media: &str, body: &[u8]) -> u16 {
        let body = Full::new(body.to_vec().into());
        let request = Request::builder().method(method).uri(uri).header("content-type", media);
        let request = request.header("accept", "application/json").body(body).unwrap();
        self.runtime.block_on(async {
            let response = self.service.clone().oneshot(request).await.unwrap();
            let code = response.status().as_u16();
            let answer = response.into_body().collect().await.unwrap().to_bytes();
            let value: serde_json::Value = serde_json::from_slice(&answer).unwrap();
            let told = value["message"].as_str().is_some_and(|message| message.starts_with(AS_KUBERNETES));
            assert!(code < 500 || code == ASKED_FOR || told, "{code}: {value}");
            assert_eq!(
                code >= 400,
                value["kind"] == "Status" && value["status"] == "Failure",
                "{code}: {value}"
            );
            code
        })
    }
}

/// Percent-encodes whatever it is.
fn encoded(input: &[u8]) -> String {
    input.iter().map(|byte| format!("%{byte:02X}")).collect()
}

fn bodies(target: &str, media: &str) {
    let world = World::start();
    let kinds = ["/api/v1/namespaces/default/pods", MAPS, "/apis/apps/v1/namespaces/default/deployments"];
    let mut turn = 0;
    run(target, SERVER, |input| {
        turn += 1;
        world.send(Method::POST, &format!("{}?dryRun=All", kinds[turn % kinds.len()]), media, input);
    });
}

fn patches(target: &str, object: &str, query: &str, media: &str) {
    let world = World::start();
    run(target, SERVER, |input| {
        world.send(Method::PATCH, &format!("{object}?dryRun=All{query}"), media, input);
    });
}

#[test]
fn json_bodies() {
    bodies("json", "application/json");
}

#[test]
fn yaml_bodies() {
    bodies("yaml", "application/yaml");
}

#[test]
fn protobuf_bodies() {
    bodies("protobuf", "application/vnd.kubernetes.protobuf");
}

#[test]
fn json_patches() {
    patches("json-patch", "/api/v1/namespaces/default/pods/p", "", "application/json-patch+json");
}

#[test]
fn merge_patches() {
    patches("merge-patch", "/api/v1/namespaces/default/pods/p", "", "application/merge-patch+json");
}

#[test]
fn strategic_patches() {
    let media = "application/strategic-merge-patch+json";
    patches("strategic-patch", "/api/v1/namespaces/default/pods/p", "&fieldValidation=Strict", media);
}

#[test]
fn applied_bodies() {
    let object = format!("{MAPS}/a");
    patches("apply", &object, "&fieldManager=fuzz&force=true", "application/apply-patch+yaml");
}

#[test]
fn continue_tokens_and_selectors() {
    use base64_url::encode;
    let world = World::start();
    run("continue", SERVER, |input| {
        world.send(Method::GET, &format!("{MAPS}?limit=1&continue={}", encode(input)), "", b"");
        world.send(Method::GET, &format!("{MAPS}?limit=1&continue={}", encoded(input)), "", b"");
    });
    for target in ["labels", "fields"] {
        run(target, SERVER, |input| {
            world.send(Method::GET, &format!("{MAPS}?{}Selector={}", &target[..5], encoded(input)), "", b"");
        });
    }
}

mod base64_url {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

    /// Base64 as in URLs, without padding.
    pub(super) fn encode(input: &[u8]) -> String {
        let mut text = String::new();
        for chunk in input.chunks(3) {
            let bits = (0..3).fold(0, |bits, i| bits << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
            for digit in 0..=chunk.len() {
                text.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
            }
        }
        text
    }
}

/// What is resident at most so far, in MiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[test]
fn bombs() {
    let world = World::start();
    let (json, yaml) = ("application/json", "application/yaml");
    let levels =
        |open: &str, count: usize, close: &str| format!("{}{}", open.repeat(count), close.repeat(count));
    let laughs: String = ('b'..='z')
        .zip('a'..='y')
        .map(|(next, last)| format!("{next}: &{next} [{}*{last}]\n", format!("*{last},").repeat(9)))
        .collect();
    let chain: String = (0..20_000).map(|i| format!("{}a:\n", " ".repeat(i.min(60)))).collect();
    let before = peak();
    let large = format!(r#"{{"metadata":{{"name":"x"}},"data":{{"k":"{}"}}}}"#, "x".repeat(4 << 20));
    assert_eq!(world.send(Method::POST, MAPS, json, large.as_bytes()), 413);
    for (media, body) in [
        (json, levels("[", 1_000_000, "]")),
        (json, levels("{\"a\":", 500_000, "}")),
        (json, format!("[{}1]", "1,".repeat(1_400_000))),
        (
            json,
            format!(
                "{{\"data\":{{{}\"z\":\"\"}}}}",
                (0..150_000).map(|i| format!("\"k{i}\":\"\",")).collect::<String>()
            ),
        ),
        (yaml, format!("a: &a [l,l]\n{laughs}")),
        (yaml, levels("[", 1_000_000, "]")),
        (yaml, levels("{a: ", 500_000, "}")),
        (yaml, format!("- {}", "- ".repeat(500_000))),
        (yaml, chain),
        (yaml, format!("a: \"{}\"", "\\x".repeat(700_000))),
        ("application/vnd.kubernetes.protobuf", format!("k8s\0{}", "\n\u{7f}".repeat(700_000))),
    ] {
        let code = world.send(Method::POST, &format!("{MAPS}?dryRun=All"), media, body.as_bytes());
        assert!((400..500).contains(&code), "{code}: {}…", &body[..40]);
    }
    let copies = |from: &str, path: &str| {
        let one = format!(r#"{{"op":"copy","from":"{from}","path":"{path}"}}"#);
        format!("[{}]", vec![one; 9_000].join(","))
    };
    let bomb = copies("/metadata", "/metadata/x");
    let code = world.send(
        Method::PATCH,
        &format!("{MAPS}/a?dryRun=All"),
        "application/json-patch+json",
        bomb.as_bytes(),
    );
    assert_eq!(code, 422);
    let token = "A".repeat(60_000);
    assert_eq!(world.send(Method::GET, &format!("{MAPS}?continue={token}"), "", b""), 400);
    // Other tests of this process run beside this one; a bomb that went off would take gigabytes.
    let grown = peak() - before;
    assert!(grown < 512, "{grown} MiB");
}
