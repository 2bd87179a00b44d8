//! Watches: every change after the revision, in order and once.

use std::collections::BTreeMap;

use futures::StreamExt;

use super::{Any, PATIENCE, describe, next, put, remove, take};
use decapod_storage::{Change, Error, Event, Revision, Watch};

/// From each revision exactly what followed it, at once and later.
pub(crate) async fn watch_resumes_from_any_revision(store: Any) {
    let prefix = "/t/resume/";
    let start = store.revision().await.unwrap();
    for step in 0..20 {
        let key = format!("{prefix}{}", step % 3);
        if step % 5 == 4 && store.get(&key).await.unwrap().is_some() {
            remove(&store, &key).await;
        } else {
            put(&store, &key, &step.to_string()).await;
        }
    }
    let end = store.revision().await.unwrap();
    let all = take(&mut store.watch(prefix, start).await.unwrap(), (end - start) as usize).await;
    let revisions: Vec<Revision> = all.iter().map(Change::revision).collect();
    assert_eq!(revisions, (start + 1..=end).collect::<Vec<_>>());
    let mut watches = Vec::new();
    for after in start..=end {
        watches.push((after, store.watch(prefix, after).await.unwrap()));
    }
    put(&store, "/t/resume/last", "!").await;
    for (after, mut watch) in watches {
        let seen = take(&mut watch, (end - after) as usize + 1).await;
        assert_eq!(seen[..seen.len() - 1], all[(after - start) as usize..], "after {after}");
        assert_eq!(&**seen.last().unwrap().key(), "/t/resume/last");
    }
}

/// Each change carries what it replaced.
pub(crate) async fn watch_tells_what_was_there_before(store: Any) {
    let start = store.revision().await.unwrap();
    let mut watch = store.watch("/t/before/", start).await.unwrap();
    let key = "/t/before/a";
    let created = put(&store, key, "1").await;
    let updated = put(&store, key, "2").await;
    let deleted = remove(&store, key).await;
    put(&store, key, "3").await;
    let changes = take(&mut watch, 4).await;
    let previous: Vec<_> =
        changes.iter().map(|change| change.previous().map(|entry| entry.modified)).collect();
    assert_eq!(previous, [None, Some(created), Some(updated), None]);
    assert_eq!(
        changes.iter().map(describe).collect::<Vec<_>>(),
        [
            format!("+{key}=1@{created}"),
            format!("+{key}=2@{updated}"),
            format!("-{key}@{deleted}"),
            format!("+{key}=3@{}", deleted + 1),
        ]
    );
    assert_eq!(&changes[2].entry().value[..], b"2");
    // The same after the fact.
    assert_eq!(take(&mut store.watch("/t/before/", start).await.unwrap(), 4).await, changes);
}

/// Neighbours and outer folders do not show.
pub(crate) async fn watch_sees_its_prefix_only(store: Any) {
    let start = store.revision().await.unwrap();
    let mut inner = store.watch("/t/prefix/b/", start).await.unwrap();
    let mut outer = store.watch("/t/prefix/", start).await.unwrap();
    for key in ["/t/prefix/a/1", "/t/prefix/b", "/t/prefix/b/1", "/t/prefix/bb/1", "/t/prefix/b/2"] {
        put(&store, key, "x").await;
    }
    let keys = |changes: Vec<Change>| -> Vec<String> {
        changes.iter().map(|change| change.key().to_string()).collect()
    };
    assert_eq!(keys(take(&mut inner, 2).await), ["/t/prefix/b/1", "/t/prefix/b/2"]);
    assert_eq!(take(&mut outer, 5).await.len(), 5);
}

/// A revision that is not there yet is not waited for.
pub(crate) async fn watch_of_the_future_is_refused(store: Any) {
    let current = put(&store, "/t/ahead/a", "1").await;
    match store.watch("/t/ahead/", current + 1).await.map(|_| ()) {
        Err(Error::Future { requested, .. }) => assert_eq!(requested, current + 1),
        other => panic!("{other:?}"),
    }
}

/// Watches that start at different moments of a heavy load all see all of it, in one order.
pub(crate) async fn watches_under_load_miss_nothing(store: Any) {
    const WRITERS: usize = 8;
    const EACH: usize = 60;
    let start = store.revision().await.unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Any::clone(&store);
            tokio::spawn(async move {
                for step in 0..EACH {
                    let key = format!("/t/load/{}/{writer}", step % 2);
                    put(&store, &key, &step.to_string()).await;
                }
            })
        })
        .collect();
    let watchers: Vec<_> = (0..12)
        .map(|number| {
            let store = Any::clone(&store);
            tokio::spawn(async move {
                let (prefix, count) =
                    if number % 2 == 0 { ("/t/load/", EACH) } else { ("/t/load/1/", EACH / 2) };
                // Some start when the load is on its way, from where it began.
                for _ in 0..number {
                    tokio::task::yield_now().await;
                }
                let mut watch = store.watch(prefix, start).await.unwrap();
                take(&mut watch, WRITERS * count).await
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let mut views: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for watcher in watchers {
        let changes = watcher.await.unwrap();
        assert!(changes.windows(2).all(|pair| pair[0].revision() < pair[1].revision()));
        let view: Vec<String> = changes.iter().map(describe).collect();
        assert_eq!(views.entry(view.len()).or_insert_with(|| view.clone()), &view);
    }
    assert_eq!(views.len(), 2);
}

/// A watch of which nothing changes learns how far the store is when it is asked for.
pub(crate) async fn progress_reaches_quiet_watches(store: Any) {
    let start = store.revision().await.unwrap();
    let mut quiet = store.watch("/t/quiet/", start).await.unwrap();
    let mut busy = store.watch("/t/busy/", start).await.unwrap();
    let mut current = 0;
    for step in 0..5 {
        current = put(&store, "/t/busy/a", &step.to_string()).await;
    }
    store.progress().await.unwrap();
    for watch in [&mut quiet, &mut busy] {
        let mut reached = start;
        while reached < current {
            reached = match next(watch).await.unwrap() {
                Event::Progress(revision) => revision,
                Event::Changes(changes) => changes.last().unwrap().revision(),
            };
        }
    }
    // Progress is no change: what follows it still comes.
    let last = put(&store, "/t/quiet/a", "1").await;
    assert_eq!(take(&mut quiet, 1).await[0].revision(), last);
}

/// A watch that was not read while its history was forgotten either knows all of it or ends.
pub(crate) async fn a_watch_that_compaction_overtook_has_no_gap(store: Any) {
    const CHANGES: usize = 300;
    let start = store.revision().await.unwrap();
    let mut slow = store.watch("/t/slow/", start).await.unwrap();
    let mut quiet = store.watch("/t/still/", start).await.unwrap();
    for step in 0..CHANGES {
        put(&store, "/t/slow/a", &step.to_string()).await;
    }
    store.compact(store.revision().await.unwrap()).await.unwrap();
    match drain(&mut slow, start, CHANGES).await {
        Ok(()) => {}
        Err(Error::Lagged) => {
            let end = tokio::time::timeout(PATIENCE, slow.next()).await.expect("the end comes");
            assert!(end.is_none(), "an ended watch says nothing more");
        }
        Err(other) => panic!("{other}"),
    }
    // Compaction of what does not concern a watch does not end it.
    let last = put(&store, "/t/still/a", "1").await;
    assert_eq!(take(&mut quiet, 1).await[0].revision(), last);
}

/// Reads consecutive revisions until there are as many, or an error.
async fn drain(watch: &mut Watch, start: Revision, count: usize) -> Result<(), Error> {
    let mut expected = start + 1;
    while expected <= start + count as Revision {
        if let Event::Changes(changes) = next(watch).await? {
            for change in changes {
                assert_eq!(change.revision(), expected);
                expected += 1;
            }
        }
    }
    Ok(())
}
