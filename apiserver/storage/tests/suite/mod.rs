//! What every store must uphold, whatever it stores in.
//!
//! Each test takes a store of its own, which may hold other keys and have any revision, and works
//! under a prefix of its own. [`store_contract!`] makes a test of each for one store.

mod lists;
mod watches;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use decapod_storage::{Change, Entry, Error, Event, Precondition, Revision, Store, Watch};
use futures::StreamExt;

pub(crate) use lists::*;
pub(crate) use watches::*;
pub(crate) use writes::*;

/// Far more than any store needs: what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a test of each rule; `$make` is an async function that returns a store and whatever must
/// live as long.
#[macro_export]
macro_rules! store_contract {
    ($make:path) => {
        $crate::store_contract!(@ $make:
            create_is_exclusive,
            update_demands_the_revision,
            delete_demands_the_revision,
            a_key_that_comes_again_is_created_anew,
            each_write_makes_the_next_revision,
            sixteen_writers_lose_no_update,
            what_is_written_takes_room,
            list_is_by_key_and_by_prefix,
            list_in_pages_is_one_snapshot,
            list_at_any_kept_revision,
            list_of_the_future_is_refused,
            compaction_is_a_typed_error,
            compaction_keeps_what_lives,
            watch_resumes_from_any_revision,
            watch_tells_what_was_there_before,
            watch_sees_its_prefix_only,
            watch_of_the_future_is_refused,
            watches_under_load_miss_nothing,
            progress_reaches_quiet_watches,
            a_watch_that_compaction_overtook_has_no_gap,
        );
    };
    (@ $make:path: $($test:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $test() {
                let (store, _guard) = $make().await;
                $crate::suite::$test(store).await;
            }
        )+
    };
}

/// Any store.
pub(crate) type Any = Arc<dyn Store>;

fn value(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref())
}

fn at(revision: Revision) -> Precondition {
    Precondition::ModifiedAt(revision)
}

/// Creates, updates or replaces; returns the revision.
async fn put(store: &Any, key: &str, text: &str) -> Revision {
    match store.get(key).await.unwrap() {
        None => store.create(key, value(text)).await.unwrap().modified,
        Some(entry) => store.update(key, value(text), at(entry.modified)).await.unwrap().modified,
    }
}

async fn remove(store: &Any, key: &str) -> Revision {
    let entry = store.get(key).await.unwrap().expect("the key is there");
    store.delete(key, at(entry.modified)).await.unwrap()
}

/// Reads this many changes from a watch.
async fn take(watch: &mut Watch, count: usize) -> Vec<Change> {
    let mut changes = Vec::new();
    while changes.len() < count {
        match next(watch).await.expect("the watch goes on") {
            Event::Changes(more) => changes.extend(more),
            Event::Progress(_) => {}
        }
    }
    assert_eq!(changes.len(), count, "no more than was expected: {changes:?}");
    changes
}

async fn next(watch: &mut Watch) -> Result<Event, Error> {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("an event comes").expect("no silent end")
}

/// `+key=value@revision` or `-key@revision`.
fn describe(change: &Change) -> String {
    match change {
        Change::Put { entry, .. } => format!("+{}@{}", text(entry), entry.modified),
        Change::Delete { previous, revision } => format!("-{}@{revision}", previous.key),
    }
}

fn text(entry: &Entry) -> String {
    format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value))
}
