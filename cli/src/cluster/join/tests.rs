//! Joining a real API server with its controllers, in this process and over TLS.

use std::net::SocketAddr;

use decapod_apiserver::pki::share;
use decapod_apiserver::{Handle, Options, Server, UserInfo};
use decapod_client::clock::{ManualClock, SystemClock};
use decapod_client::informer::Informers;
use decapod_client::task::Supervisor;
use decapod_storage::{Embedded, embedded};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

use super::*;
use crate::cluster::authority::Keys;
use crate::cluster::settings::Which;

const TOKEN: &str = "abcdef.0123456789abcdef";

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 8, 7));

/// A control plane with one bootstrap token.
struct World {
    api: Handle,
    admin: kube::Client,
    supervisor: Supervisor,
    place: Place,
    _dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        // Fails only where another test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let pki = Arc::new(pki::Pki::open(&dir.path().join("pki"), Timestamp::now()).unwrap());
        let store =
            Arc::new(Embedded::open(&dir.path().join("store"), embedded::Options::default()).unwrap());
        let encryption = dir.path().join("pki").join(share::ENCRYPTION);
        std::fs::write(&encryption, "{kind: EncryptionConfiguration}").unwrap();
        let shared = Some(share::Shared { folder: dir.path().join("pki"), encryption });
        let options = Options { listen: ([127, 0, 0, 1], 0).into(), shared, ..Options::default() };
        let clock = Arc::new(decapod_apiserver::SystemClock);
        let api = Server::start(options, store, pki, clock).await.unwrap();
        let client = |user: &str, groups: &[&str]| {
            kube::Client::new(api.service_as(UserInfo::new(user, groups)), "default")
        };
        let admin = client("system:admin", &["system:masters"]);
        let roles: Vec<serde_json::Value> =
            serde_saphyr::from_multiple(crate::cluster::addons::NODES).unwrap();
        for object in roles.iter().filter(|object| object.is_object()) {
            crate::cluster::addons::one(&admin, object).await.unwrap();
        }
        settled(&admin).await;
        token(&admin, "abcdef", "system:bootstrappers:decapod:default-node-token").await;
        let supervisor = Supervisor::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let manager = client("system:kube-controller-manager", &[]);
        let informers = Informers::new(manager.clone(), supervisor.clone(), clock.clone());
        let controllers = decapod_controllers::Options {
            authority: Some(Arc::new(Keys(api.clone()))),
            ..decapod_controllers::Options::default()
        };
        decapod_controllers::run(&controllers, manager, informers, supervisor.clone(), clock);
        let which = Which { name: "x".to_owned(), data_dir: dir.path().join("node") };
        Self { api, admin, supervisor, place: which.place().unwrap(), _dir: dir }
    }

    fn url(&self) -> String {
        let address: SocketAddr = self.api.address();
        format!("https://{address}")
    }

    /// The cluster as a node finds it that knows the hash of its authority.
    async fn found(&self) -> Cluster {
        let hash = pki::pin(self.api.pki().ca_pem()).unwrap();
        Cluster::find(&[self.url()], None, Some(&hash), &self.place).await.unwrap()
    }

    async fn join(&self, clock: Arc<dyn Clock>) -> Result<Member, Failure> {
        Member::join(self.found().await, Some(TOKEN), ("n1", HERE), &self.place, clock).await
    }

    /// The node with its address, as its kubelet would register it.
    async fn register(&self, address: &str) {
        let api: Api<Node> = Api::all(self.admin.clone());
        api.create(&PostParams::default(), &node()).await.unwrap();
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        let patch = kube::api::Patch::Merge(status);
        api.patch_status("n1", &kube::api::PatchParams::default(), &patch).await.unwrap();
    }

    async fn end(&self) {
        self.supervisor.shutdown(Duration::from_secs(5)).await;
        self.api.shutdown().await;
    }
}

/// Makes a token with an id of its own.
async fn token(admin: &kube::Client, id: &str, group: &str) {
    let secret: Secret = serde_json::from_value(json!({
        "metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token",
        "stringData": {"token-id": id, "token-secret": "0123456789abcdef",
            "usage-bootstrap-authentication": "true", "auth-extra-groups": group}}))
    .unwrap();
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), "kube-system");
    secrets.create(&PostParams::default(), &secret).await.unwrap();
}

/// Bindings count once the authorizer has seen them, in the order in which they were made: the last is waited
/// for.
async fn settled(admin: &kube::Client) {
    let review = json!({"spec": {"user": "system:kube-controller-manager", "resourceAttributes": {
        "group": "certificates.k8s.io", "resource": "signers", "name": "kubernetes.io/kubelet-serving",
        "verb": "approve"}}});
    let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
    let api: Api<SubjectAccessReview> = Api::all(admin.clone());
    for _ in 0..12_000 {
        let answer = api.create(&PostParams::default(), &review).await.unwrap();
        if answer.status.is_some_and(|status| status.allowed) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the bindings have no effect");
}

fn node() -> Node {
    serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap()
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_token_buys_a_nodes_certificate_and_nothing_else() {
    let world = World::start().await;
    let clock = Arc::new(SystemClock::new());
    let bearer = world.found().await.with_token(TOKEN, clock.clone()).unwrap().client();
    let all = ListParams::default();
    assert_eq!(code(Api::<Node>::all(bearer.clone()).list(&all).await), 403);
    assert_eq!(code(Api::<Node>::all(bearer.clone()).create(&PostParams::default(), &node()).await), 403);
    assert_eq!(code(Api::<Secret>::namespaced(bearer, "kube-system").list(&all).await), 403);

    let member = world.join(Arc::new(SystemClock::new())).await.unwrap();
    let nodes: Api<Node> = Api::all(member.client());
    assert_eq!(code(nodes.create(&PostParams::default(), &node()).await), 200);
    assert_eq!(code(nodes.get("n1").await), 200);
    assert_eq!(code(nodes.delete("n1", &DeleteParams::default()).await), 403);
    assert_eq!(code(Api::<Secret>::namespaced(member.client(), "kube-system").list(&all).await), 403);

    // Who has joined needs no token, and knows the cluster.
    let again = Cluster::find(&[world.url()], None, None, &world.place).await.unwrap();
    let again = Member::join(again, None, ("n1", HERE), &world.place, clock).await.unwrap();
    assert_eq!(again.credentials.certificate, member.credentials.certificate);
    world.end().await;
}

#[tokio::test]
async fn a_server_of_another_cluster_gets_no_token() {
    let world = World::start().await;
    let other = format!("sha256:{}", "0".repeat(64));
    let error = Cluster::find(&[world.url()], None, Some(&other), &world.place).await.err().unwrap();
    assert!(error.to_string().contains("belongs to another cluster"), "{error}");
    assert!(Cluster::find(&[world.url()], None, None, &world.place).await.is_err());
    world.end().await;
}

#[tokio::test]
async fn a_nodes_server_gets_a_certificate_for_its_own_addresses() {
    let world = World::start().await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let member = world.join(clock.clone()).await.unwrap();
    world.register("10.9.8.7").await;

    let hosts = ["n1".to_owned(), "10.9.8.7".to_owned()];
    let got = obtain(&member.client(), SERVING, "n1", &hosts, &*clock).await.unwrap();
    let held = Held::default();
    held.put(got.certified().unwrap());
    assert!(held.0.read().unwrap().is_some());

    // What is not its own is left to people; here one says no.
    let client = member.client();
    let foreign = ["kubernetes.default".to_owned()];
    let asking = obtain(&client, SERVING, "n1", &foreign, &*clock);
    let refusing = async {
        let requests: Api<CertificateSigningRequest> = Api::all(world.admin.clone());
        loop {
            let all = requests.list(&ListParams::default()).await.unwrap();
            let decided = |r: &CertificateSigningRequest| {
                r.status.as_ref().is_some_and(|s| s.conditions.as_ref().is_some_and(|c| !c.is_empty()))
            };
            if let Some(mut pending) = all.items.into_iter().find(|request| !decided(request)) {
                let denied = json!({"conditions": [{"type": "Denied", "status": "True", "reason": "Foreign",
                    "message": "not yours"}]});
                pending.status = serde_json::from_value(denied).unwrap();
                let name = pending.name_any();
                let written =
                    requests.replace_subresource("approval", &name, &PostParams::default(), &pending).await;
                written.unwrap();
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let both = async { tokio::join!(asking, refusing) };
    let both = tokio::time::timeout(Duration::from_secs(120), both).await;
    let (refused, ()) = both.expect("the request is there, and is refused");
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("Denied: not yours"), "{error}");
    world.end().await;
}

/// The newest of the certificates that the node's server was given, once it is another than `before`.
async fn served(held: &Held, before: Option<&CertifiedKey>, clock: &ManualClock) -> Arc<CertifiedKey> {
    let wanted = async {
        loop {
            let current = held.0.read().unwrap().clone();
            if let Some(current) = current.filter(|c| before.is_none_or(|before| before.cert != c.cert)) {
                return current;
            }
            // The manual clock stands still: each look at the request has to be let pass.
            tokio::time::sleep(Duration::from_millis(10)).await;
            clock.advance(LOOK);
        }
    };
    tokio::time::timeout(Duration::from_secs(120), wanted).await.expect("the server gets a certificate")
}

#[tokio::test]
async fn a_nodes_server_gets_a_new_certificate_before_the_old_one_ends() {
    let world = World::start().await;
    let member = world.join(Arc::new(SystemClock::new())).await.unwrap();
    world.register("10.9.8.7").await;
    let clock = Arc::new(ManualClock::new(Timestamp::now()));
    let held = Arc::new(Held::default());
    let address = "10.9.8.7".parse().unwrap();
    let keeping = keep_serving(member.client(), held.clone(), "n1".to_owned(), address, clock.clone());
    let keeping = tokio::spawn(keeping);
    let first = served(&held, None, &clock).await;
    clock.advance(Duration::from_secs(300 * 24 * 60 * 60));
    served(&held, Some(&first), &clock).await;
    keeping.abort();
    world.end().await;
}

#[tokio::test]
async fn a_nodes_certificate_is_renewed_before_it_ends() {
    let world = World::start().await;
    let clock = Arc::new(ManualClock::new(Timestamp::now()));
    let asking = world.join(clock.clone());
    tokio::pin!(asking);
    let member = loop {
        // The manual clock stands still: each look at the request has to be let pass.
        tokio::select! {
            member = &mut asking => break member.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(10)) => clock.advance(LOOK),
        }
    };
    let (file, client) = (member.file.clone(), member.client());
    let first = std::fs::read_to_string(&file).unwrap();
    let keeping = tokio::spawn(member.keep());
    clock.sleepers(1).await;
    clock.advance(Duration::from_secs(300 * 24 * 60 * 60));
    let renewed = async {
        while std::fs::read_to_string(&file).unwrap() == first {
            tokio::time::sleep(Duration::from_millis(10)).await;
            clock.advance(LOOK);
        }
    };
    tokio::time::timeout(Duration::from_secs(120), renewed).await.expect("the certificate is renewed");
    assert_eq!(code(Api::<Node>::all(client).create(&PostParams::default(), &node()).await), 200);
    keeping.abort();
    world.end().await;
}

#[tokio::test]
async fn a_name_that_a_living_node_bears_is_refused() {
    let world = World::start().await;
    let clock = SystemClock::new();
    let look = || duplicate::refuse(&world.admin, "n1", HERE, &clock);
    look().await.unwrap();
    world.register("10.1.1.1").await;
    look().await.unwrap();
    let nodes: Api<Node> = Api::all(world.admin.clone());
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let patch = kube::api::Patch::Merge(ready);
    nodes.patch_status("n1", &kube::api::PatchParams::default(), &patch).await.unwrap();
    let error = look().await.unwrap_err().to_string();
    assert!(error.contains("\"n1\" is Ready at 10.1.1.1") && error.contains("--node-name"), "{error}");
    // The same machine, and one whose lease ended without anybody having said so yet.
    duplicate::refuse(&world.admin, "n1", IpAddr::from([10, 1, 1, 1]), &clock).await.unwrap();
    let lease = json!({"metadata": {"name": "n1"}, "spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}});
    let leases: Api<Lease> = Api::namespaced(world.admin.clone(), "kube-node-lease");
    leases.create(&PostParams::default(), &serde_json::from_value(lease).unwrap()).await.unwrap();
    look().await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_token_that_nobody_knows_is_said() {
    let world = World::start().await;
    let token = Some("abcdef.aaaaaaaaaaaaaaaa");
    let clock = Arc::new(SystemClock::new());
    let joined = Member::join(world.found().await, token, ("n1", HERE), &world.place, clock).await;
    let error = joined.err().unwrap().to_string();
    assert!(error.contains("does not know the token") && error.contains("token create"), "{error}");
    world.end().await;
}

/// What `decapod server` is told of the cluster that it joins.
#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    further: Further,
    #[command(flatten)]
    settings: crate::cluster::settings::Settings,
}

impl World {
    /// Joins as a further server with these flags beside those that say where the cluster is.
    async fn further(&self, flags: &[&str], place: &Place) -> Result<(), Failure> {
        use clap::Parser;
        let clock = Arc::new(ManualClock::new(Timestamp::now()));
        let flags = Flags::parse_from([&["x", "--server", &self.url()], flags].concat());
        let shared: Arc<dyn Clock> = clock.clone();
        let joining = flags.further.join(place, &flags.settings, &shared);
        tokio::pin!(joining);
        loop {
            tokio::select! {
                result = &mut joining => return result,
                // A refusal counts once the cluster has settled.
                () = clock.sleepers(2) => clock.advance(SOON),
            }
        }
    }
}

#[tokio::test]
async fn a_further_server_gets_the_keys_by_a_token_for_servers() {
    let world = World::start().await;
    token(&world.admin, "server", share::SERVERS).await;
    let dir = tempfile::tempdir().unwrap();
    let place = Which { name: "second".to_owned(), data_dir: dir.path().to_owned() }.place().unwrap();
    let pin = pki::pin(world.api.pki().ca_pem()).unwrap();
    let other = format!("sha256:{}", "0".repeat(64));
    let (store, hash) = ("--datastore=etcd=https://10.0.0.1:2379", format!("--ca-cert-hash={pin}"));
    let good = "--token=server.0123456789abcdef";
    for (flags, words) in [
        (vec![good, &hash], ["they share an etcd", "--datastore etcd="]),
        (vec![store, &hash], ["no token to get them", "--role server"]),
        (vec![store, &hash, "--token=abc"], ["--token is no bootstrap token", "--role server"]),
        (vec![store, good], ["authority is not known", "--ca-cert-hash"]),
        (vec![store, good, "--ca-cert-hash", &other], ["belongs to another cluster", &other]),
        (vec![store, &hash, "--token=server.aaaaaaaaaaaaaaaa"], ["does not know the token", "token create"]),
        (vec![store, &hash, "--token=abcdef.0123456789abcdef"], ["not one for servers", "--role server"]),
    ] {
        let error = world.further(&flags, &place).await.unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{flags:?}: {error}");
        assert!(!share::has_keys(&place.data().join("pki")), "{flags:?}");
    }
    world.further(&[store, &hash, good], &place).await.unwrap();
    let theirs = pki::Pki::open(&place.data().join("pki"), Timestamp::now()).unwrap();
    assert_eq!(theirs.ca_pem(), world.api.pki().ca_pem());
    // Who has joined needs no token; who has other keys is told so.
    world.further(&[store, &hash], &place).await.unwrap();
    let error = world.further(&[store, "--ca-cert-hash", &other], &place).await.unwrap_err().to_string();
    assert!(error.contains("holds the keys of another cluster") && error.contains(&other), "{error}");
    // An administrator may do everything in the cluster, and has not its keys.
    let request = http::Request::get(share::PATH).body(Vec::new()).unwrap();
    assert_eq!(code(world.admin.request_text(request).await), 403);
    world.end().await;
}

#[tokio::test]
async fn a_node_with_other_ranges_is_refused() {
    use crate::cluster::settings::tests::settings;
    let world = World::start().await;
    let same = settings(&[]);
    let info = crate::cluster::addons::cluster_info(&world.url(), world.api.pki().ca_pem(), &same);
    crate::cluster::addons::one(&world.admin, &info).await.unwrap();
    let found = world.found().await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    found.agrees(TOKEN, &same, &clock).await.unwrap();
    let other = settings(&["--pod-cidr", "10.7.0.0/16"]);
    let error = found.agrees(TOKEN, &other, &clock).await.unwrap_err().to_string();
    assert!(error.starts_with("--pod-cidr 10.7.0.0/16: the cluster has 10.244.0.0/16"), "{error}");
    world.end().await;
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_said_with_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let place = Which { name: "x".to_owned(), data_dir: dir.path().join("node") }.place().unwrap();
    let then: Timestamp = "2024-06-01T00:00:00Z".parse().unwrap();
    let pki = pki::Pki::open(&dir.path().join("pki"), then).unwrap();
    let authority = CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).unwrap();
    let named = vec!["https://127.0.0.1:1".parse().unwrap()];
    let cluster = Cluster { named, told: Vec::new(), authority };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let join = || Member::join(cluster.clone(), None, ("n1", HERE), &place, clock.clone());
    let error = join().await.err().unwrap().to_string();
    assert!(error.starts_with("this node has no certificate, and there is no token"), "{error}");
    let pair =
        pki.issue(&pki::CertificateRequest::client("system:node:n1", &["system:nodes"]), then).unwrap();
    let ended = Credentials { certificate: pair.certificate_pem, key: pair.key_pem };
    ended.write(&certificate(&place)).unwrap();
    let error = join().await.err().unwrap().to_string();
    assert!(error.contains("node-client.pem) ended on 2025-") && error.contains("--token"), "{error}");
}

#[test]
fn tokens_for_bootstrapping_are_told_by_their_form() {
    assert!(is_bootstrap("abcdef.0123456789abcdef"));
    for other in ["secret", "abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "eyJhbGciOi.J9.x"] {
        assert!(!is_bootstrap(other), "{other}");
    }
}

#[test]
fn credentials_are_kept_and_known_to_age() {
    let dir = tempfile::tempdir().unwrap();
    let now: Timestamp = "2026-06-01T00:00:00Z".parse().unwrap();
    let pki = pki::Pki::open(&dir.path().join("pki"), now).unwrap();
    let pair = pki.issue(&pki::CertificateRequest::client("system:node:n", &["system:nodes"]), now).unwrap();
    let credentials = Credentials { certificate: pair.certificate_pem, key: pair.key_pem };
    let file = dir.path().join("node/client.pem");
    credentials.write(&file).unwrap();
    let read = Credentials::read(&file, now).unwrap();
    assert_eq!((read.certificate, read.key), (credentials.certificate.clone(), credentials.key.clone()));
    assert!(credentials.certified().is_ok());
    let day = jiff::SignedDuration::from_hours(24);
    assert!(!credentials.is_due(now + day * 200) && credentials.is_due(now + day * 300));
    assert!(Credentials::read(&file, now + day * 366).is_none());
}
