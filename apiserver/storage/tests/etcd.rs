//! The etcd store: the contract on real etcd with TLS, what its own failures are, and the loss of members.

#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod suite;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use decapod_storage::etcd::{Login, OpenError, Options, Tls};
use decapod_storage::{Change, Error, Etcd, Event, List, Precondition, Store};
use decapod_tests::etcd as server;
use futures::StreamExt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;

/// Certificates of one authority: for the members, and for us.
struct Certificates {
    folder: TempDir,
}

impl Certificates {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.path().join("ca.pem"), ca.pem()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        std::fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), key.serialize_pem()).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn server(&self) -> server::Tls {
        let file = |name| self.path().join(name);
        server::Tls { ca: file("ca.pem"), certificate: file("cert.pem"), key: file("key.pem") }
    }

    fn client(&self) -> Tls {
        let file = |name| Some(self.path().join(name));
        Tls { ca: file("ca.pem"), certificate: file("cert.pem"), key: file("key.pem") }
    }
}

/// Nothing is compacted but by the test.
fn options(etcd: &server::Etcd, tls: Tls) -> Options {
    Options { compact_every: None, ..Options::new(&etcd.endpoints(), tls).unwrap() }
}

async fn open(etcd: &server::Etcd) -> Etcd {
    Etcd::open(&options(etcd, Tls::default())).await.unwrap()
}

async fn secured() -> (suite::Any, (server::Etcd, Certificates)) {
    let certificates = Certificates::new();
    let etcd = server::Etcd::start(1, Some(certificates.server())).unwrap();
    let store = Etcd::open(&options(&etcd, certificates.client())).await.unwrap();
    (Arc::new(store), (etcd, certificates))
}

store_contract!(secured);

/// Reads changes until this key is put; returns what was seen.
async fn until(watch: &mut decapod_storage::Watch, key: &str) -> Vec<Change> {
    let mut seen = Vec::new();
    loop {
        let event = tokio::time::timeout(suite::PATIENCE * 2, watch.next()).await;
        match event.expect("an event comes").expect("no silent end").unwrap() {
            Event::Changes(changes) => seen.extend(changes),
            Event::Progress(_) => {}
        }
        if seen.last().is_some_and(|change| &**change.key() == key) {
            return seen;
        }
    }
}

#[tokio::test]
async fn what_lies_in_etcd_is_where_kubernetes_puts_it() {
    let etcd = server::Etcd::start(1, None).unwrap();
    let store = open(&etcd).await;
    let entry = store.create("/registry/pods/default/a", Bytes::from_static(b"{}")).await.unwrap();
    let seen = etcd.ctl(&["get", "--prefix", "/registry/"]).unwrap();
    assert_eq!(seen, "/registry/pods/default/a\n{}\n");
    let json = etcd.ctl(&["get", "/registry/pods/default/a", "-w", "json"]).unwrap();
    assert!(json.contains(&format!("\"mod_revision\":{}", entry.modified)), "{json}");
}

#[tokio::test]
async fn a_list_of_many_is_one_snapshot_in_parts() {
    let etcd = server::Etcd::start(1, None).unwrap();
    let store = Arc::new(open(&etcd).await);
    let tasks: Vec<_> = (0..2_100)
        .map(|number| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                store.create(&format!("/registry/{number:05}"), Bytes::from_static(b"x")).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let page = store.list("/registry/", List::default()).await.unwrap();
    assert_eq!((page.entries.len(), page.remaining), (2_100, 0));
    assert!(page.entries.windows(2).all(|pair| pair[0].key < pair[1].key));
    let list = List { limit: Some(1_500), ..List::default() };
    let page = store.list("/registry/", list).await.unwrap();
    assert_eq!((page.entries.len(), page.remaining), (1_500, 600));
}

#[tokio::test]
async fn etcd_that_is_not_there_or_not_ours_is_said_plainly() {
    let mut nobody = Options::new("http://127.0.0.1:1", Tls::default()).unwrap();
    nobody.patience = Duration::from_millis(500);
    match Etcd::open(&nobody).await {
        Err(OpenError::Unusable(failure)) => {
            let text = failure.to_string();
            assert!(text.contains("http://127.0.0.1:1") && text.contains("refused"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let (ours, theirs) = (Certificates::new(), Certificates::new());
    let etcd = server::Etcd::start(1, Some(ours.server())).unwrap();
    // Another authority: we do not trust them. Waiting would not help, so nothing is waited for.
    let start = std::time::Instant::now();
    let error = Etcd::open(&options(&etcd, theirs.client())).await.unwrap_err();
    let OpenError::Unusable(failure) = error else { panic!("{error:?}") };
    assert!(failure.to_string().contains("certificate"), "{failure}");
    // No certificate: they do not trust us.
    let anonymous = Tls { ca: ours.client().ca, ..Tls::default() };
    let patient = Options { patience: Duration::from_secs(2), ..options(&etcd, anonymous) };
    assert!(matches!(Etcd::open(&patient).await, Err(OpenError::Unusable(_))));
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lost_member_loses_nothing_and_watches_go_on() {
    let mut etcd = server::Etcd::start(3, None).unwrap();
    let store = open(&etcd).await;
    let start = store.revision().await.unwrap();
    let mut watch = store.watch("/registry/", start).await.unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        // The store asks the members in their order: this is the one that serves it.
        etcd.kill(round).unwrap();
        for number in 0..40 {
            let key = format!("/registry/{round}/{number:03}");
            match store.create(&key, Bytes::from_static(b"x")).await {
                Ok(entry) => acknowledged.push((key, entry.modified)),
                // Whether it was written is not known; the member was killed meanwhile.
                Err(Error::Unavailable(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
        let last = format!("/registry/{round}/last");
        let entry = loop {
            match store.create(&last, Bytes::from_static(b"x")).await {
                Ok(entry) => break entry,
                Err(Error::Exists(entry)) => break entry,
                Err(error) => eprintln!("{error:?}"),
            }
        };
        acknowledged.push((last.clone(), entry.modified));
        etcd.restart(round).unwrap();
        let seen = until(&mut watch, &last).await;
        assert!(seen.windows(2).all(|pair| pair[0].revision() < pair[1].revision()));
        let seen: std::collections::BTreeMap<String, u64> =
            seen.iter().map(|change| (change.key().to_string(), change.revision())).collect();
        for (key, revision) in acknowledged.drain(..) {
            assert_eq!(seen.get(&key), Some(&revision), "{key}");
        }
    }
    let page = store.list("/registry/", List::default()).await.unwrap();
    let mut replay = store.watch("/registry/", start).await.unwrap();
    assert_eq!(until(&mut replay, "/registry/2/last").await.len(), page.entries.len());
}

#[tokio::test]
async fn a_watch_waits_for_etcd_to_come_back_and_has_no_gap() {
    let mut etcd = server::Etcd::start(1, None).unwrap();
    let store = open(&etcd).await;
    let first = store.create("/registry/a", Bytes::from_static(b"1")).await.unwrap();
    let mut watch = store.watch("/registry/", first.modified).await.unwrap();
    etcd.kill(0).unwrap();
    assert!(matches!(store.get("/registry/a").await, Err(Error::Unavailable(_))));
    etcd.restart(0).unwrap();
    let when = Precondition::ModifiedAt(first.modified);
    let second = loop {
        match store.update("/registry/a", Bytes::from_static(b"2"), when).await {
            Ok(entry) => break entry,
            Err(Error::Unavailable(_)) => {}
            Err(other) => panic!("{other}"),
        }
    };
    let seen = until(&mut watch, "/registry/a").await;
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].revision(), second.modified);
    assert_eq!(seen[0].previous().unwrap().modified, first.modified);
}

/// As the cache follows the store: everything, and where it is without being told of a key of its own.
#[tokio::test]
async fn a_watch_of_everything_says_how_far_it_is() {
    let etcd = server::Etcd::start(1, None).unwrap();
    let store = open(&etcd).await;
    let start = store.revision().await.unwrap();
    let mut all = store.watch("", start).await.unwrap();
    // Somebody else's key, and no text.
    etcd.ctl(&["put", "other", "x"]).unwrap();
    let entry = store.create("/registry/a", Bytes::new()).await.unwrap();
    let mut quiet = store.watch("/quiet/", start).await.unwrap();
    store.progress().await.unwrap();
    for watch in [&mut all, &mut quiet] {
        let reached = async {
            loop {
                if let Event::Progress(revision) = watch.next().await.unwrap().unwrap() {
                    return revision;
                }
            }
        };
        assert_eq!(tokio::time::timeout(suite::PATIENCE, reached).await.unwrap(), entry.modified);
    }
}

/// A key that goes and one that comes and goes leave no trace but the number of keys.
#[tokio::test]
async fn progress_never_comes_before_a_deletion() {
    let etcd = server::Etcd::start(1, None).unwrap();
    let store = open(&etcd).await;
    for round in 0..30 {
        let kept = store.create(&format!("/registry/{round}/kept"), Bytes::new()).await.unwrap();
        let mut watch = store.watch(&format!("/registry/{round}/"), kept.modified).await.unwrap();
        let passing = store.create(&format!("/registry/{round}/passing"), Bytes::new()).await.unwrap();
        store.delete(&passing.key, Precondition::ModifiedAt(passing.modified)).await.unwrap();
        let last = store.delete(&kept.key, Precondition::ModifiedAt(kept.modified)).await.unwrap();
        store.progress().await.unwrap();
        let mut seen = 0;
        loop {
            match watch.next().await.unwrap().unwrap() {
                Event::Changes(changes) => seen += changes.len(),
                Event::Progress(revision) => {
                    assert_eq!((seen, revision), (3, last), "round {round}");
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn history_is_compacted_at_the_interval() {
    let etcd = server::Etcd::start(1, None).unwrap();
    let every = Some(Duration::from_millis(200));
    let options = Options { compact_every: every, ..options(&etcd, Tls::default()) };
    let store = Etcd::open(&options).await.unwrap();
    let other = Etcd::open(&options).await.unwrap();
    let first = store.create("/registry/a", Bytes::new()).await.unwrap().modified;
    let compacted = async {
        while !matches!(store.watch("/", first).await, Err(Error::Compacted { .. })) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(suite::PATIENCE, compacted).await.expect("history is compacted");
    assert_eq!(other.get("/registry/a").await.unwrap().unwrap().modified, first);
    // As kube-apiserver notes it, so that both can take turns.
    let noted = etcd.ctl(&["get", "compact_rev_key", "--print-value-only"]).unwrap();
    assert!(noted.trim().parse::<u64>().unwrap() >= first, "{noted}");
}

#[tokio::test]
async fn what_is_too_large_for_etcd_is_said() {
    let etcd = server::Etcd::start(1, None).unwrap();
    let store = open(&etcd).await;
    let large = Bytes::from(vec![b'x'; 2 << 20]);
    assert!(matches!(store.create("/registry/a", large).await, Err(Error::TooLarge)));
    assert!(store.get("/registry/a").await.unwrap().is_none());
}

/// etcd that asks for a name and a password: ours are `crab` and `shell`.
fn guarded() -> server::Etcd {
    let etcd = server::Etcd::start(1, None).unwrap();
    for arguments in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "crab:shell"],
        &["role", "add", "keys"],
        &["role", "grant-permission", "keys", "readwrite", "--prefix=true", ""],
        &["user", "grant-role", "crab", "keys"],
        &["auth", "enable"],
    ] {
        etcd.ctl(arguments).unwrap();
    }
    etcd
}

#[tokio::test]
async fn etcd_that_asks_for_a_name_gets_one_also_after_it_forgot_who_we_are() {
    let mut etcd = guarded();
    let folder = TempDir::new().unwrap();
    let login = |password: &str| {
        let file = folder.path().join("password");
        std::fs::write(&file, password).unwrap();
        let login = Some(Login { user: "crab".to_owned(), password_file: file });
        Options { login, ..options(&etcd, Tls::default()) }
    };
    let nameless = Etcd::open(&options(&etcd, Tls::default())).await.unwrap_err();
    let OpenError::Unusable(failure) = nameless else { panic!("{nameless:?}") };
    assert!(failure.to_string().contains("user name is empty"), "{failure}");
    let wrong = Etcd::open(&login("claw\n")).await.unwrap_err();
    let OpenError::Unusable(failure) = wrong else { panic!("{wrong:?}") };
    assert!(failure.to_string().contains("invalid user ID or password"), "{failure}");

    let store = Etcd::open(&login("shell\n")).await.unwrap();
    let value = || Bytes::from_static(b"x");
    let first = store.create("/registry/a", value()).await.unwrap();
    let mut watch = store.watch("", first.modified - 1).await.unwrap();
    until(&mut watch, "/registry/a").await;
    assert!(store.size().await.unwrap() > 0);
    // Its tokens are in its memory.
    etcd.kill(0).unwrap();
    etcd.restart(0).unwrap();
    // A write on the broken connection might fail; a read is tried again.
    assert!(store.get("/registry/a").await.unwrap().is_some());
    store.create("/registry/b", value()).await.unwrap();
    until(&mut watch, "/registry/b").await;
}
