//! The embedded store: the contract, and what is its own.

#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

mod suite;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use decapod_storage::embedded::{History, OpenError, Options};
use decapod_storage::{Change, Embedded, Error, Event, List, Precondition, Store};
use futures::StreamExt;
use tempfile::TempDir;

async fn temporary() -> (suite::Any, TempDir) {
    let folder = TempDir::new().unwrap();
    let store = open(&folder, Options::default());
    (Arc::new(store), folder)
}

store_contract!(temporary);

fn open(folder: &TempDir, options: Options) -> Embedded {
    Embedded::open(&folder.path().join("db/state.redb"), options).unwrap()
}

fn keeping(changes: usize) -> Options {
    let history = History { changes, ..History::default() };
    Options { history, ..Options::default() }
}

async fn create(store: &Embedded, number: u64) -> u64 {
    let value = Bytes::from(vec![b'x'; 100]);
    store.create(&format!("/registry/{number:05}"), value).await.unwrap().modified
}

/// Everything that the store tells of each kept revision.
async fn everything(store: &Embedded, oldest: u64) -> (Vec<Vec<String>>, Vec<Change>) {
    let newest = store.revision().await.unwrap();
    let mut lists = Vec::new();
    for revision in oldest..=newest {
        let page = store.list("/", List { at: Some(revision), ..List::default() }).await.unwrap();
        lists.push(page.entries.iter().map(|entry| format!("{entry:?}")).collect());
    }
    let mut changes = Vec::new();
    let mut watch = store.watch("/", oldest).await.unwrap();
    while changes.len() < (newest - oldest) as usize {
        match watch.next().await.unwrap().unwrap() {
            Event::Changes(more) => changes.extend(more),
            Event::Progress(_) => {}
        }
    }
    (lists, changes)
}

#[tokio::test]
async fn history_survives_reopening() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder, Options::default());
    for number in 0..10 {
        let modified = create(&store, number).await;
        let key = format!("/registry/{number:05}");
        let when = Precondition::ModifiedAt(modified);
        if number % 3 == 0 {
            store.delete(&key, when).await.unwrap();
        } else {
            store.update(&key, Bytes::from_static(b"new"), when).await.unwrap();
        }
    }
    store.compact(7).await.unwrap();
    let before = everything(&store, 7).await;
    drop(store);
    let store = open(&folder, Options::default());
    assert_eq!(everything(&store, 7).await, before);
    assert!(matches!(store.watch("/", 6).await.map(|_| ()), Err(Error::Compacted { oldest: 7, .. })));
    // Compacted to the newest, where the last change was a deletion: the revision does not go back.
    let last = create(&store, 100).await;
    let last = store.delete("/registry/00100", Precondition::ModifiedAt(last)).await.unwrap();
    store.compact(last).await.unwrap();
    drop(store);
    let store = open(&folder, Options::default());
    assert_eq!(store.revision().await.unwrap(), last);
    assert_eq!(create(&store, 100).await, last + 1);
}

#[tokio::test]
async fn old_history_is_forgotten_by_count() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder, keeping(80));
    for number in 0..200 {
        create(&store, number).await;
    }
    match store.watch("/", 100).await.map(|_| ()) {
        Err(Error::Compacted { oldest, .. }) => assert!((110..=120).contains(&oldest), "{oldest}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.list("/", List::default()).await.unwrap().entries.len(), 200);
    assert!(store.watch("/", 120).await.is_ok());
}

#[tokio::test]
async fn old_history_is_forgotten_by_size() {
    let folder = TempDir::new().unwrap();
    let history = History { bytes: 100_000, ..History::default() };
    let store = open(&folder, Options { history, ..Options::default() });
    let mut modified = store.create("/a", Bytes::from(vec![0; 10_000])).await.unwrap().modified;
    for _ in 0..100 {
        let when = Precondition::ModifiedAt(modified);
        modified = store.update("/a", Bytes::from(vec![0; 10_000]), when).await.unwrap().modified;
    }
    assert!(matches!(store.watch("/", modified - 12).await.map(|_| ()), Err(Error::Compacted { .. })));
}

#[tokio::test]
async fn old_history_is_forgotten_by_age() {
    let folder = TempDir::new().unwrap();
    let now = Arc::new(AtomicU64::new(0));
    let clock = {
        let now = Arc::clone(&now);
        Arc::new(move || Duration::from_secs(now.load(Ordering::SeqCst)))
    };
    let history = History { age: Duration::from_secs(300), ..History::default() };
    let store = open(&folder, Options { history, clock });
    for number in 0..10 {
        create(&store, number).await;
        now.fetch_add(100, Ordering::SeqCst);
    }
    // At 900 s the tenth was written; what was there at 600 s is due: six changes.
    assert!(matches!(store.watch("/", 5).await.map(|_| ()), Err(Error::Compacted { oldest: 6, .. })));
}

#[tokio::test]
async fn a_slow_watcher_is_ended_and_a_quiet_one_is_not() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder, keeping(40));
    let mut slow = store.watch("/registry/", 0).await.unwrap();
    let mut quiet = store.watch("/quiet/", 0).await.unwrap();
    create(&store, 0).await;
    assert!(matches!(slow.next().await, Some(Ok(Event::Changes(changes))) if changes.len() == 1));
    for number in 1..100 {
        create(&store, number).await;
    }
    assert!(matches!(slow.next().await, Some(Err(Error::Lagged))));
    assert!(slow.next().await.is_none());
    let entry = store.create("/quiet/a", Bytes::new()).await.unwrap();
    match quiet.next().await {
        Some(Ok(Event::Changes(changes))) => assert_eq!(changes[0].revision(), entry.modified),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_long_replay_comes_in_parts_without_gap() {
    let folder = TempDir::new().unwrap();
    let store = Arc::new(open(&folder, Options::default()));
    let tasks: Vec<_> = (0..2_500)
        .map(|number| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { create(&store, number).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut watch = store.watch("/", 0).await.unwrap();
    let mut seen = 0;
    while seen < 2_500 {
        match watch.next().await.unwrap().unwrap() {
            Event::Changes(changes) => {
                assert!(changes.len() <= 1_000);
                for change in changes {
                    seen += 1;
                    assert_eq!(change.revision(), seen);
                }
            }
            Event::Progress(_) => panic!("nobody asked"),
        }
    }
}

#[tokio::test]
async fn closing_ends_watches() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder, Options::default());
    let mut watch = store.watch("/", 0).await.unwrap();
    create(&store, 1).await;
    drop(store);
    assert!(matches!(watch.next().await, Some(Ok(Event::Changes(_)))));
    assert!(matches!(watch.next().await, Some(Err(Error::Unavailable(_)))));
    assert!(watch.next().await.is_none());
}

#[test]
fn only_one_has_the_file_open_and_only_its_owner_reads_it() {
    let folder = TempDir::new().unwrap();
    let store = open(&folder, Options::default());
    let path = folder.path().join("db/state.redb");
    for path in [path.clone(), path.with_extension("redb.journal")] {
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
    }
    assert!(matches!(Embedded::open(&path, Options::default()), Err(OpenError::Database { .. })));
    drop(store);
    Embedded::open(&path, Options::default()).unwrap();
}

#[test]
fn what_is_no_store_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.redb");
    std::fs::write(&path, vec![b'?'; 10_000]).unwrap();
    let error = Embedded::open(&path, Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Database { .. }), "{error:?}");
    let error = Embedded::open(Path::new("/proc/none/state.redb"), Options::default()).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
}
