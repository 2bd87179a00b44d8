//! A snapshot of either store, restored into the other: the same objects, and revisions that nobody has seen.

#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use decapod_storage::etcd::{Options, Tls};
use decapod_storage::snapshot::{self, AHEAD_EMBEDDED, Header, Summary};
use decapod_storage::{Embedded, Entry, Error, Etcd, Precondition, Store, embedded};
use decapod_tests::etcd as server;

type Objects = BTreeMap<String, Bytes>;

async fn objects(store: &dyn Store) -> Objects {
    let (entries, _) = snapshot::take(store).await.unwrap();
    entries.iter().map(|entry| (entry.key.to_string(), entry.value.clone())).collect()
}

async fn save(store: &dyn Store, kind: &str, file: &Path) -> Summary {
    let (entries, revision) = snapshot::take(store).await.unwrap();
    let header = Header {
        cluster: "c".to_owned(),
        taken: "2026-11-22T18:00:00Z".to_owned(),
        store: kind.to_owned(),
        revision,
    };
    snapshot::write(std::fs::File::create(file).unwrap(), &header, &entries).unwrap()
}

fn load(file: &Path) -> (Summary, Vec<Entry>) {
    let mut entries = Vec::new();
    let summary = snapshot::read(std::fs::File::open(file).unwrap(), |entry| entries.push(entry)).unwrap();
    (summary, entries)
}

fn open(path: &Path) -> Embedded {
    Embedded::open(path, embedded::Options::default()).unwrap()
}

/// Some objects, of which some were changed or deleted.
async fn fill(store: &dyn Store) {
    for n in 0..300 {
        let key = format!("/registry/things/{n:03}");
        let made = store.create(&key, Bytes::from(vec![n as u8; n])).await.unwrap();
        let when = Precondition::ModifiedAt(made.modified);
        match n % 3 {
            0 => drop(store.update(&key, Bytes::from(format!("changed {n}")), when).await.unwrap()),
            1 => drop(store.delete(&key, when).await.unwrap()),
            _ => {}
        }
    }
}

/// Who watched the old store lists anew.
async fn is_refused(store: &dyn Store, revision: u64) -> bool {
    matches!(store.watch("/registry/", revision).await.map(drop), Err(Error::Compacted { .. }))
}

#[tokio::test]
async fn from_embedded_to_etcd_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let first = open(&path("first"));
    fill(&first).await;
    let before = objects(&first).await;
    let saved = save(&first, "embedded", &path("one")).await;
    // What happens after it is not in it.
    first.create("/registry/later", Bytes::new()).await.unwrap();

    let (read, entries) = load(&path("one"));
    assert_eq!((read.clone(), entries.len()), (saved, before.len()));
    let etcd = server::Etcd::start(1, None).unwrap();
    let options = Options { compact_every: None, ..Options::new(&etcd.endpoints(), Tls::default()).unwrap() };
    let second = Etcd::open(&options).await.unwrap();
    let above = read.header.revision + 2_000;
    let revision = snapshot::restore(&second, entries.clone(), above, false).await.unwrap();
    assert!(revision >= above, "{revision}");
    assert_eq!(objects(&second).await, before);
    assert!(is_refused(&second, read.header.revision).await);

    // What is there already is not mixed with it, unless that is asked for; then nothing of it stays.
    second.create("/registry/other", Bytes::new()).await.unwrap();
    let refused = snapshot::restore(&second, entries.clone(), above, false).await.unwrap_err().to_string();
    assert!(refused.contains("objects already"), "{refused}");
    snapshot::restore(&second, entries, above, true).await.unwrap();
    assert_eq!(objects(&second).await, before);

    save(&second, "etcd", &path("two")).await;
    let (read, entries) = load(&path("two"));
    let above = read.header.revision + AHEAD_EMBEDDED;
    let third = path("third");
    Embedded::replace(&third, &path("aside"), &entries, above).unwrap();
    let store = open(&third);
    assert_eq!(objects(&store).await, before);
    assert_eq!(store.revision().await.unwrap(), above);
    assert!(is_refused(&store, read.header.revision).await);
    let made = store.create("/registry/new", Bytes::new()).await.unwrap();
    assert_eq!(made.modified, above + 1);
    drop(store);
    assert_eq!(objects(&open(&third)).await.len(), before.len() + 1);
}

#[tokio::test]
async fn the_store_that_is_replaced_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (path, aside) = (folder.path().join("store"), folder.path().join("store.before"));
    let old = open(&path);
    fill(&old).await;
    let before = objects(&old).await;
    drop(old);
    Embedded::replace(&path, &aside, &[], 7).unwrap();
    let new = open(&path);
    assert_eq!((objects(&new).await.len(), new.revision().await.unwrap()), (0, 7));
    assert_eq!(objects(&open(&aside)).await, before);
}
