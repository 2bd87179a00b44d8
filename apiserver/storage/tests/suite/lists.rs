//! Lists: snapshots, pages, compaction.

use std::sync::Arc;

use super::{Any, put, remove, text};
use decapod_storage::{Error, List, Revision};

async fn listed(store: &Any, prefix: &str, at: Option<Revision>) -> Vec<String> {
    let page = store.list(prefix, List { at, ..List::default() }).await.unwrap();
    assert_eq!(page.remaining, 0);
    page.entries.iter().map(|entry| text(entry)).collect()
}

/// In the order of the keys' bytes, all of the prefix and nothing else.
pub(crate) async fn list_is_by_key_and_by_prefix(store: Any) {
    for key in ["/t/list/b/2", "/t/list/a", "/t/list/b/10", "/t/list/b", "/t/list/bc", "/t/lis"] {
        put(&store, key, "x").await;
    }
    let keys = listed(&store, "/t/list/", None).await;
    assert_eq!(keys, ["/t/list/a=x", "/t/list/b=x", "/t/list/b/10=x", "/t/list/b/2=x", "/t/list/bc=x"]);
    assert_eq!(listed(&store, "/t/list/b/", None).await, ["/t/list/b/10=x", "/t/list/b/2=x"]);
    assert_eq!(listed(&store, "/t/list/c", None).await, [""; 0]);
    let page = store.list("/t/list/", List { limit: Some(0), ..List::default() }).await.unwrap();
    assert_eq!((page.entries.len(), page.remaining), (0, 5));
}

/// What changes between two pages does not show.
pub(crate) async fn list_in_pages_is_one_snapshot(store: Any) {
    for number in 0..7 {
        put(&store, &format!("/t/page/{number}"), "old").await;
    }
    let mut list = List { limit: Some(3), ..List::default() };
    let mut seen = Vec::new();
    let mut remaining = Vec::new();
    loop {
        let page = store.list("/t/page/", list.clone()).await.unwrap();
        assert_eq!(list.at.unwrap_or(page.revision), page.revision);
        seen.extend(page.entries.iter().map(|entry| text(entry)));
        remaining.push(page.remaining);
        list.at = Some(page.revision);
        list.after = page.entries.last().map(|entry| Arc::clone(&entry.key));
        if page.remaining == 0 {
            break;
        }
        put(&store, "/t/page/5", "new").await;
        put(&store, "/t/page/55", "new").await;
        remove(&store, "/t/page/6").await;
        put(&store, "/t/page/6", "new").await;
    }
    let expected: Vec<String> = (0..7).map(|number| format!("/t/page/{number}=old")).collect();
    assert_eq!(seen, expected);
    assert_eq!(remaining, [4, 1, 0]);
}

/// Each revision is what it was.
pub(crate) async fn list_at_any_kept_revision(store: Any) {
    let prefix = "/t/at/";
    let mut was = vec![(store.revision().await.unwrap(), listed(&store, prefix, None).await)];
    for step in 0..30 {
        let key = format!("{prefix}{}", step * 7 % 5);
        if step % 4 == 3 && store.get(&key).await.unwrap().is_some() {
            remove(&store, &key).await;
        } else {
            put(&store, &key, &step.to_string()).await;
        }
        was.push((store.revision().await.unwrap(), listed(&store, prefix, None).await));
    }
    for (revision, expected) in was {
        assert_eq!(listed(&store, prefix, Some(revision)).await, expected, "at {revision}");
    }
}

/// A revision that is not there yet is not guessed.
pub(crate) async fn list_of_the_future_is_refused(store: Any) {
    let current = put(&store, "/t/future/a", "1").await;
    let list = List { at: Some(current + 1), ..List::default() };
    match store.list("/t/future/", list).await {
        Err(Error::Future { requested, .. }) => assert_eq!(requested, current + 1),
        other => panic!("{other:?}"),
    }
}

/// Lists and watches of what was compacted say so, and say what is kept.
pub(crate) async fn compaction_is_a_typed_error(store: Any) {
    let first = put(&store, "/t/compact/a", "1").await;
    put(&store, "/t/compact/a", "2").await;
    let third = put(&store, "/t/compact/a", "3").await;
    store.compact(third).await.unwrap();
    store.compact(first).await.unwrap();
    match store.list("/t/compact/", List { at: Some(first), ..List::default() }).await {
        Err(Error::Compacted { requested, oldest }) => assert_eq!((requested, oldest), (first, third)),
        other => panic!("{other:?}"),
    }
    match store.watch("/t/compact/", first).await.map(|_| ()) {
        Err(Error::Compacted { requested, oldest }) => assert_eq!((requested, oldest), (first, third)),
        other => panic!("{other:?}"),
    }
    assert_eq!(listed(&store, "/t/compact/", Some(third)).await, ["/t/compact/a=3"]);
    assert!(store.watch("/t/compact/", third).await.is_ok());
    match store.compact(third + 1_000).await {
        Err(Error::Future { requested, .. }) => assert_eq!(requested, third + 1_000),
        other => panic!("{other:?}"),
    }
}

/// What lives is not history, however old.
pub(crate) async fn compaction_keeps_what_lives(store: Any) {
    let old = put(&store, "/t/keep/old", "1").await;
    put(&store, "/t/keep/gone", "1").await;
    put(&store, "/t/keep/changed", "1").await;
    put(&store, "/t/keep/changed", "2").await;
    let newest = remove(&store, "/t/keep/gone").await;
    store.compact(newest).await.unwrap();
    assert_eq!(listed(&store, "/t/keep/", None).await, ["/t/keep/changed=2", "/t/keep/old=1"]);
    assert_eq!(store.get("/t/keep/old").await.unwrap().unwrap().modified, old);
    assert_eq!(store.revision().await.unwrap(), newest);
    assert_eq!(put(&store, "/t/keep/gone", "2").await, newest + 1);
}
