//! Writes: compare-and-swap, revisions.

use super::{Any, at, put, remove, value};
use decapod_storage::Error;

/// A create finds the key there and says what it found.
pub(crate) async fn create_is_exclusive(store: Any) {
    let key = "/t/create/a";
    let entry = store.create(key, value("1")).await.unwrap();
    assert_eq!((&*entry.key, &entry.value[..]), (key, &b"1"[..]));
    assert_eq!(entry.created, entry.modified);
    match store.create(key, value("2")).await {
        Err(Error::Exists(there)) => assert_eq!(there, entry),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.get(key).await.unwrap().unwrap(), entry);
    assert_eq!(store.get("/t/create/b").await.unwrap(), None);
}

/// An update of another revision, or of nothing, is refused with what is there.
pub(crate) async fn update_demands_the_revision(store: Any) {
    let key = "/t/update/a";
    let first = store.create(key, value("1")).await.unwrap();
    let second = store.update(key, value("2"), at(first.modified)).await.unwrap();
    assert_eq!(second.created, first.created);
    assert!(second.modified > first.modified);
    match store.update(key, value("3"), at(first.modified)).await {
        Err(Error::Conflict(Some(there))) => assert_eq!(there, second),
        other => panic!("{other:?}"),
    }
    match store.update("/t/update/b", value("3"), at(first.modified)).await {
        Err(Error::Conflict(None)) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(store.get(key).await.unwrap().unwrap(), second);
    assert_eq!(store.revision().await.unwrap(), second.modified);
}

/// As for updates.
pub(crate) async fn delete_demands_the_revision(store: Any) {
    let key = "/t/delete/a";
    let first = store.create(key, value("1")).await.unwrap();
    let second = store.update(key, value("2"), at(first.modified)).await.unwrap();
    match store.delete(key, at(first.modified)).await {
        Err(Error::Conflict(Some(there))) => assert_eq!(there, second),
        other => panic!("{other:?}"),
    }
    let revision = store.delete(key, at(second.modified)).await.unwrap();
    assert!(revision > second.modified);
    assert_eq!(store.get(key).await.unwrap(), None);
    match store.delete(key, at(second.modified)).await {
        Err(Error::Conflict(None)) => {}
        other => panic!("{other:?}"),
    }
}

/// A key that was deleted has no past: its creation is the new one.
pub(crate) async fn a_key_that_comes_again_is_created_anew(store: Any) {
    let key = "/t/again/a";
    let first = put(&store, key, "1").await;
    remove(&store, key).await;
    let entry = store.create(key, value("2")).await.unwrap();
    assert!(entry.created > first);
    // Whoever knew the first one cannot change the second.
    assert!(matches!(store.update(key, value("3"), at(first)).await, Err(Error::Conflict(Some(_)))));
}

/// Revisions count successful writes, whichever key; refused ones make none.
pub(crate) async fn each_write_makes_the_next_revision(store: Any) {
    let before = store.revision().await.unwrap();
    assert_eq!(put(&store, "/t/next/a", "1").await, before + 1);
    assert_eq!(put(&store, "/t/next/b", "1").await, before + 2);
    assert_eq!(put(&store, "/t/next/a", "2").await, before + 3);
    assert!(store.create("/t/next/a", value("x")).await.is_err());
    assert_eq!(remove(&store, "/t/next/b").await, before + 4);
    assert_eq!(store.revision().await.unwrap(), before + 4);
}

/// Sixteen that count one number up, each by compare-and-swap: every count arrives.
pub(crate) async fn sixteen_writers_lose_no_update(store: Any) {
    const WRITERS: u64 = 16;
    const EACH: u64 = 40;
    let key = "/t/count/a";
    store.create(key, value("0")).await.unwrap();
    let tasks: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = Any::clone(&store);
            tokio::spawn(async move {
                for _ in 0..EACH {
                    count_up(&store, key).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let entry = store.get(key).await.unwrap().unwrap();
    assert_eq!(entry.value, value((WRITERS * EACH).to_string()));
    assert_eq!(entry.modified, entry.created + WRITERS * EACH);
}

async fn count_up(store: &Any, key: &str) {
    let mut entry = store.get(key).await.unwrap().unwrap();
    loop {
        let count: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
        match store.update(key, value((count + 1).to_string()), at(entry.modified)).await {
            Ok(_) => return,
            Err(Error::Conflict(Some(there))) => entry = there,
            Err(other) => panic!("{other}"),
        }
    }
}

/// The store tells how much room it takes: at least that of the values.
pub(crate) async fn what_is_written_takes_room(store: Any) {
    const VALUE: usize = 100_000;
    for n in 0..4 {
        put(&store, &format!("/t/room/{n}"), &"x".repeat(VALUE)).await;
    }
    // etcd writes its database a moment later.
    let last = std::time::Instant::now() + super::PATIENCE * 3;
    loop {
        let size = store.size().await.unwrap();
        if size >= 4 * VALUE as u64 {
            return;
        }
        assert!(std::time::Instant::now() < last, "{size}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
