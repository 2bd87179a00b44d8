//! The cache over the embedded store in a temporary folder.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use decapod_storage::embedded::{History, Options};
use decapod_storage::{Embedded, Precondition, Revision, Store};
use tempfile::TempDir;

use super::event::Kind;
use super::*;

const PODS: &str = "/registry/pods/";
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    store: Arc<Embedded>,
    cache: Cache,
    folder: TempDir,
}

fn row(prefix: &str) -> Row {
    let fields = ["spec.nodeName", "status.phase"];
    let scanner = Scanner::new(fields.map(Field::new).to_vec());
    let fields = fields.map(str::to_owned).to_vec();
    Row {
        prefix: prefix.to_owned(),
        decoder: Arc::new(AsStored(scanner)),
        fields,
        received: prometheus_client::metrics::counter::Counter::default(),
    }
}

impl World {
    fn new() -> Self {
        Self::with(Options::default(), TempDir::new().unwrap())
    }

    fn with(options: Options, folder: TempDir) -> Self {
        let store = Arc::new(Embedded::open(&folder.path().join("db"), options).unwrap());
        let cache = Cache::new(Arc::clone(&store) as Arc<dyn Store>);
        Self { store, cache, folder }
    }

    async fn pods(&self) -> Arc<Cacher> {
        self.cache.row("v1/pods", || row(PODS)).await.unwrap()
    }

    async fn put(&self, name: &str, app: &str, node: &str) -> Revision {
        put(&*self.store, &format!("{PODS}{name}"), app, node).await
    }

    async fn delete(&self, name: &str) -> Revision {
        let key = format!("{PODS}{name}");
        let modified = self.store.get(&key).await.unwrap().unwrap().modified;
        self.store.delete(&key, Precondition::ModifiedAt(modified)).await.unwrap()
    }
}

async fn put(store: &dyn Store, key: &str, app: &str, node: &str) -> Revision {
    let name = key.rsplit('/').next().unwrap();
    let labels = if app.is_empty() { String::new() } else { format!(r#","labels":{{"app":"{app}"}}"#) };
    let value =
        format!(r#"{{"kind":"Pod","metadata":{{"name":"{name}"{labels}}},"spec":{{"nodeName":"{node}"}}}}"#);
    write(store, key, value.into()).await
}

async fn write(store: &dyn Store, key: &str, value: Bytes) -> Revision {
    match store.get(key).await.unwrap() {
        None => store.create(key, value).await.unwrap().modified,
        Some(there) => {
            store.update(key, value, Precondition::ModifiedAt(there.modified)).await.unwrap().modified
        }
    }
}

fn selection(prefix: &str, labels: &str, fields: &str) -> Selection {
    Selection { prefix: prefix.into(), labels: labels.parse().unwrap(), fields: fields.parse().unwrap() }
}

fn query(selection: Selection, at: At) -> Query {
    Query { selection, at, limit: None, after: None }
}

async fn listed(cacher: &Cacher, selection: Selection, at: At) -> (Vec<String>, Revision) {
    let view = cacher.list(&query(selection, at)).await.unwrap();
    let item =
        |object: &Arc<Object>| format!("{}@{}", object.key().strip_prefix(PODS).unwrap(), object.revision());
    (view.items.iter().map(item).collect(), view.revision)
}

/// `ADDED web/a@3`, `BOOKMARK 7`, `END 7`.
fn describe(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Bookmark { revision, initial_end: true } => format!("END {revision}"),
        Delivery::Bookmark { revision, initial_end: false } => format!("BOOKMARK {revision}"),
        other => {
            let (kind, object) = other.object().unwrap();
            let key = object.key().strip_prefix(PODS).unwrap();
            format!("{} {key}@{}", kind.as_str(), object.revision())
        }
    }
}

async fn next(watching: &mut Watching) -> Result<Vec<String>, Error> {
    let batch = tokio::time::timeout(PATIENCE, watching.next()).await.expect("a delivery").expect("no end");
    batch.map(|batch| batch.iter().map(describe).collect())
}

async fn take(watching: &mut Watching, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(next(watching).await.unwrap());
    }
    assert_eq!(all.len(), count, "{all:?}");
    all
}

#[tokio::test]
async fn reads_are_consistent_and_carry_the_stores_revision() {
    let world = World::new();
    let pods = world.pods().await;
    assert_eq!(listed(&pods, Selection::all(PODS), At::Newest).await, (vec![], 0));
    for round in 0..50 {
        let first = world.put("web/a", "x", "").await;
        let other = put(&*world.store, "/registry/other/a", "x", "").await;
        // What was just written is read, at the store's revision, whatever moved it.
        let (items, revision) = listed(&pods, Selection::all(PODS), At::Newest).await;
        assert_eq!((items, revision), (vec![format!("web/a@{first}")], other), "{round}");
        assert_eq!(pods.get("/registry/pods/web/a").await.unwrap().unwrap().revision(), first);
    }
    world.delete("web/a").await;
    assert!(pods.get("/registry/pods/web/a").await.unwrap().is_none());
    assert_eq!(listed(&pods, Selection::all(PODS), At::Newest).await.0.len(), 0);
    assert_eq!(pods.size(), (0, 0));
}

#[tokio::test]
async fn a_row_is_served_as_bytes_with_the_revision_in_it() {
    let world = World::new();
    let pods = world.pods().await;
    let revision = world.put("web/a", "x", "n1").await;
    let view = pods.list(&query(Selection::all(PODS), At::Newest)).await.unwrap();
    let mut bytes = BytesMut::new();
    view.items[0].write(&mut bytes);
    let expected = format!(
        r#"{{"kind":"Pod","metadata":{{"resourceVersion":"{revision}","name":"a","labels":{{"app":"x"}}}},"spec":{{"nodeName":"n1"}}}}"#
    );
    assert_eq!(bytes, expected);
    let got = pods.get("/registry/pods/web/a").await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&got, &view.items[0]), "the cached object itself");
}

#[tokio::test]
async fn selectors_and_pages() {
    let world = World::new();
    for (name, app, node) in
        [("a/1", "x", "n1"), ("a/2", "y", "n1"), ("b/1", "x", "n2"), ("b/2", "", "n1"), ("bb/1", "x", "n1")]
    {
        world.put(name, app, node).await;
    }
    let pods = world.pods().await;
    let names = async |selection| listed(&pods, selection, At::Newest).await.0.join(" ");
    assert_eq!(names(selection(PODS, "app=x", "")).await, "a/1@1 b/1@3 bb/1@5");
    assert_eq!(names(selection(PODS, "app=x", "spec.nodeName=n1")).await, "a/1@1 bb/1@5");
    assert_eq!(names(selection("/registry/pods/b/", "", "")).await, "b/1@3 b/2@4");
    assert_eq!(names(selection(PODS, "!app", "")).await, "b/2@4");
    assert_eq!(names(selection(PODS, "", "metadata.name=1,metadata.namespace!=a")).await, "b/1@3 bb/1@5");

    // Pages of one snapshot, while the row changes.
    let mut query = Query { limit: Some(2), ..query(Selection::all(PODS), At::Newest) };
    let first = pods.list(&query).await.unwrap();
    assert_eq!((first.items.len(), first.revision, first.remaining), (2, 5, Some(3)));
    world.delete("b/1").await;
    world.put("b/0", "x", "n1").await;
    query.at = At::Exact(first.revision);
    query.after = first.next;
    let second = pods.list(&query).await.unwrap();
    let keys: Vec<&str> = second.items.iter().map(|object| &**object.key()).collect();
    assert_eq!(keys, ["/registry/pods/b/1", "/registry/pods/b/2"]);
    assert_eq!((second.revision, second.remaining), (5, Some(1)));
    query.after = second.next;
    let third = pods.list(&query).await.unwrap();
    assert_eq!((third.items.len(), third.next, third.remaining), (1, None, None));
    // With selectors only a page that has a successor says so.
    let mut query = Query { limit: Some(2), ..self::query(selection(PODS, "app=y", ""), At::Newest) };
    assert_eq!(pods.list(&query).await.unwrap().next, None);
    query.selection = selection(PODS, "app=x", "");
    let page = pods.list(&query).await.unwrap();
    assert_eq!((page.items.len(), page.next.is_some(), page.remaining), (2, true, None));
}

#[tokio::test]
async fn every_kept_revision_is_an_exact_snapshot() {
    let world = World::new();
    let pods = world.pods().await;
    let mut was = Vec::new();
    for step in 0..40_u64 {
        let name = format!("web/{}", step * 7 % 5);
        let there = world.store.get(&format!("{PODS}{name}")).await.unwrap().is_some();
        if step % 3 == 2 && there {
            world.delete(&name).await;
        } else {
            world.put(&name, "x", "").await;
        }
        was.push(listed(&pods, Selection::all(PODS), At::Newest).await);
    }
    for (items, revision) in was {
        assert_eq!(listed(&pods, Selection::all(PODS), At::Exact(revision)).await, (items, revision));
    }
}

#[tokio::test]
async fn objects_that_enter_and_leave_the_selection() {
    let world = World::new();
    let pods = world.pods().await;
    let watch =
        |labels: &str, fields: &str| pods.watch(selection(PODS, labels, fields), Start::After(0), false);
    let mut by_label = watch("app=x", "").await.unwrap();
    let mut by_node = watch("", "spec.nodeName=n1").await.unwrap();
    world.put("web/a", "y", "").await; // 1
    world.put("web/a", "x", "").await; // 2
    world.put("web/a", "x", "n1").await; // 3
    world.put("web/a", "z", "n1").await; // 4
    world.put("web/a", "x", "n2").await; // 5
    world.delete("web/a").await; // 6
    world.put("web/b", "x", "n1").await; // 7
    assert_eq!(
        take(&mut by_label, 6).await,
        [
            "ADDED web/a@2",
            "MODIFIED web/a@3",
            "DELETED web/a@4",
            "ADDED web/a@5",
            "DELETED web/a@6",
            "ADDED web/b@7"
        ]
    );
    assert_eq!(
        take(&mut by_node, 4).await,
        ["ADDED web/a@3", "MODIFIED web/a@4", "DELETED web/a@5", "ADDED web/b@7"]
    );
}

#[tokio::test]
async fn what_is_gone_is_told_as_it_was_last_with_the_revision_of_its_going() {
    let world = World::new();
    let pods = world.pods().await;
    let mut watching = pods.watch(selection(PODS, "app=x", ""), Start::After(0), false).await.unwrap();
    world.put("web/a", "x", "n1").await;
    world.put("web/a", "y", "n2").await;
    let mut lines = Vec::new();
    while lines.len() < 2 {
        let batch = watching.next().await.unwrap().unwrap();
        lines.extend(batch.iter().map(|delivery| delivery.frame().unwrap()));
    }
    let object = |revision: u64| {
        format!(
            r#"{{"kind":"Pod","metadata":{{"resourceVersion":"{revision}","name":"a","labels":{{"app":"x"}}}},"spec":{{"nodeName":"n1"}}}}"#
        )
    };
    assert_eq!(lines[0], format!("{{\"type\":\"ADDED\",\"object\":{}}}\n", object(1)));
    assert_eq!(lines[1], format!("{{\"type\":\"DELETED\",\"object\":{}}}\n", object(2)));
}

#[tokio::test]
async fn all_watchers_share_one_frame() {
    let world = World::new();
    let pods = world.pods().await;
    let mut watchers = Vec::new();
    for _ in 0..3 {
        watchers.push(pods.watch(Selection::all(PODS), Start::After(0), false).await.unwrap());
    }
    world.put("web/a", "x", "").await;
    let mut frames = Vec::new();
    for watching in &mut watchers {
        frames.push(watching.next().await.unwrap().unwrap()[0].frame().unwrap().as_ptr());
    }
    assert!(frames.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn initial_events_then_their_end_then_changes() {
    let world = World::new();
    for number in 0..250 {
        world.put(&format!("web/{number:03}"), if number % 2 == 0 { "x" } else { "y" }, "").await;
    }
    let pods = world.pods().await;
    let start = Start::Initial { at: At::Newest, bookmark: true };
    let mut watching = pods.watch(selection(PODS, "app=x", ""), start, true).await.unwrap();
    let changed = world.put("web/000", "x", "n9").await;
    let seen = take(&mut watching, 127).await;
    assert_eq!(seen[0], "ADDED web/000@1");
    assert_eq!(seen[124], "ADDED web/248@249");
    assert_eq!(seen[125], "END 250");
    assert_eq!(seen[126], format!("MODIFIED web/000@{changed}"));
    // Nothing there: the end comes at once.
    let mut empty = pods.watch(selection(PODS, "app=none", ""), start, true).await.unwrap();
    assert_eq!(take(&mut empty, 1).await, [format!("END {changed}")]);
}

#[tokio::test]
async fn a_watch_resumes_from_any_revision_also_after_a_restart() {
    let mut world = World::new();
    for step in 0..20 {
        world.put(&format!("web/{}", step % 3), "x", "").await;
        put(&*world.store, "/registry/other/a", "x", "").await;
    }
    for round in 0..2 {
        let pods = world.pods().await;
        for after in 0..40 {
            let mut watching = pods.watch(Selection::all(PODS), Start::After(after), false).await.unwrap();
            let expected: Vec<String> = (after + 1..=40)
                .filter(|revision| revision % 2 == 1)
                .map(|revision| {
                    let number = (revision - 1) / 2;
                    let kind = if number < 3 { "ADDED" } else { "MODIFIED" };
                    format!("{kind} web/{}@{revision}", number % 3)
                })
                .collect();
            if !expected.is_empty() {
                assert_eq!(take(&mut watching, expected.len()).await, expected, "{round}: after {after}");
            }
        }
        if round == 0 {
            drop(pods);
            let World { store, cache, folder } = world;
            drop(cache);
            // The feed's task holds the store until it has noticed.
            let mut store = Some(store);
            let deadline = tokio::time::Instant::now() + PATIENCE;
            while let Err(back) = Arc::try_unwrap(store.take().unwrap()) {
                assert!(tokio::time::Instant::now() < deadline, "the feed does not let go of the store");
                store = Some(back);
                tokio::task::yield_now().await;
            }
            world = World::with(Options::default(), folder);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_and_lists_agree_under_load() {
    let world = Arc::new(World::new());
    let pods = world.pods().await;
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let world = Arc::clone(&world);
            tokio::spawn(async move {
                for step in 0..100 {
                    let name = format!("ns{}/{writer}-{}", step % 2, step % 5);
                    let key = format!("{PODS}{name}");
                    if step % 7 == 6 && world.store.get(&key).await.unwrap().is_some() {
                        world.delete(&name).await;
                    } else {
                        world.put(&name, if step % 3 == 0 { "x" } else { "y" }, &format!("n{writer}")).await;
                    }
                }
            })
        })
        .collect();
    // Each watcher starts with a list of its own and plays the changes on top of it.
    let selections =
        [("", ""), ("app=x", ""), ("", "spec.nodeName=n3"), ("app!=x", "metadata.namespace=ns1")];
    let mut mirrors = Vec::new();
    for (number, (labels, fields)) in selections.into_iter().cycle().take(16).enumerate() {
        let selection = selection(if number % 3 == 0 { "/registry/pods/ns1/" } else { PODS }, labels, fields);
        let start = Start::Initial { at: At::Newest, bookmark: true };
        let watching = pods.watch(selection.clone(), start, false).await.unwrap();
        mirrors.push((selection, tokio::spawn(mirror(watching))));
        tokio::task::yield_now().await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    // The last object is of interest to all: whoever saw it has seen everything.
    let last = world.put("ns1/last", "last", "last").await;
    world.put("ns1/last", "x", "n3").await;
    world.put("ns1/last", "y", "n3").await;
    for (selection, mirror) in mirrors {
        let mirrored =
            tokio::time::timeout(PATIENCE, mirror).await.expect("the mirror sees the last").unwrap();
        let view = pods.list(&query(selection, At::Newest)).await.unwrap();
        let there: BTreeMap<String, Revision> =
            view.items.iter().map(|object| (object.key().to_string(), object.revision())).collect();
        let older = |map: &BTreeMap<String, Revision>| -> BTreeMap<String, Revision> {
            map.iter().filter(|(_, at)| **at < last).map(|(key, at)| (key.clone(), *at)).collect()
        };
        assert_eq!(older(&mirrored), older(&there));
    }
}

/// Follows until it has seen something of the last object.
async fn mirror(mut watching: Watching) -> BTreeMap<String, Revision> {
    let mut there = BTreeMap::new();
    let mut newest = 0;
    loop {
        for delivery in watching.next().await.unwrap().unwrap() {
            let Some((kind, object)) = delivery.object() else { continue };
            if let Delivery::Change(_) = delivery {
                assert!(object.revision() > newest, "in order and once");
                newest = object.revision();
            }
            let known = there.remove(&object.key().to_string());
            match kind {
                Kind::Added => assert_eq!(known, None),
                Kind::Modified | Kind::Deleted => assert!(known.is_some()),
            }
            if kind != Kind::Deleted {
                there.insert(object.key().to_string(), object.revision());
            }
            if object.name() == "last" {
                return there;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn bookmarks_say_how_far_quiet_watches_are() {
    let world = World::new();
    let pods = world.pods().await;
    let mut watching = pods.watch(Selection::all(PODS), Start::After(0), true).await.unwrap();
    let first = world.put("web/a", "x", "").await;
    assert_eq!(take(&mut watching, 1).await, [format!("ADDED web/a@{first}")]);
    let other = put(&*world.store, "/registry/other/a", "x", "").await;
    listed(&pods, Selection::all(PODS), At::Newest).await;
    let begun = tokio::time::Instant::now();
    // The clock moves when nobody has anything to do.
    let batch = watching.next().await.unwrap().unwrap();
    assert_eq!(batch.iter().map(describe).collect::<Vec<_>>(), [format!("BOOKMARK {other}")]);
    assert!(begun.elapsed() <= Duration::from_secs(61), "{:?}", begun.elapsed());
    watching.next().await.unwrap().unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(119), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_watch_that_lags_is_ended_and_a_quiet_one_is_not() {
    let world = World::new();
    let pods = world.pods().await;
    world.put("web/a", "x", "").await;
    let mut slow = pods.watch(Selection::all(PODS), Start::After(0), false).await.unwrap();
    let mut quiet =
        pods.watch(selection(PODS, "", "spec.nodeName=n1"), Start::After(1), false).await.unwrap();
    let large = Bytes::from(format!(r#"{{"metadata":{{}},"x":"{}"}}"#, "x".repeat(1 << 20)));
    for _ in 0..20 {
        write(&*world.store, "/registry/pods/web/a", large.clone()).await;
    }
    listed(&pods, Selection::all(PODS), At::Newest).await;
    assert!(matches!(next(&mut slow).await, Err(Error::Expired { .. })));
    assert!(slow.next().await.is_none());
    let late = pods.watch(Selection::all(PODS), Start::After(2), false).await;
    assert!(matches!(late.map(drop), Err(Error::Expired { requested: 2, .. })));
    // What the window lost, the store still lists.
    assert_eq!(listed(&pods, Selection::all(PODS), At::Exact(1)).await.0, ["web/a@1"]);
    let revision = world.put("web/b", "x", "n1").await;
    assert_eq!(take(&mut quiet, 1).await, [format!("ADDED web/b@{revision}")]);
}

#[tokio::test(start_paused = true)]
async fn the_future_is_waited_for_but_not_for_ever() {
    let world = World::new();
    let pods = world.pods().await;
    let begun = tokio::time::Instant::now();
    let list = pods.list(&query(Selection::all(PODS), At::NotOlderThan(5))).await;
    assert!(matches!(list, Err(Error::Future { requested: 5, current: 0 })));
    let watch = pods.watch(Selection::all(PODS), Start::After(5), false).await;
    assert!(matches!(watch.map(drop), Err(Error::Future { requested: 5, current: 0 })));
    assert_eq!(begun.elapsed().as_secs(), 6);
}

#[tokio::test]
async fn a_revision_that_comes_in_time_is_waited_for() {
    let world = World::new();
    let pods = world.pods().await;
    let query = query(Selection::all(PODS), At::NotOlderThan(1));
    let (list, _) = tokio::join!(pods.list(&query), world.put("web/a", "x", ""));
    assert_eq!(list.unwrap().items.len(), 1);
}

#[tokio::test]
async fn compacted_revisions_are_expired() {
    let world = World::new();
    for _ in 0..10 {
        world.put("web/a", "x", "").await;
    }
    world.store.compact(6).await.unwrap();
    let pods = world.pods().await;
    let list = pods.list(&query(Selection::all(PODS), At::Exact(5))).await;
    assert!(matches!(list, Err(Error::Expired { requested: 5, oldest: 6 })));
    let watch = pods.watch(Selection::all(PODS), Start::After(5), false).await;
    assert!(matches!(watch.map(drop), Err(Error::Expired { requested: 5, oldest: 6 })));
    let mut watching = pods.watch(Selection::all(PODS), Start::After(6), false).await.unwrap();
    assert_eq!(take(&mut watching, 4).await[0], "MODIFIED web/a@7");
}

#[tokio::test]
async fn what_cannot_be_read_is_not_left_out() {
    let world = World::new();
    let pods = world.pods().await;
    world.put("a/1", "x", "").await;
    let mut watching = pods.watch(selection(PODS, "app=x", ""), Start::After(1), false).await.unwrap();
    write(&*world.store, "/registry/pods/b/1", Bytes::from_static(b"rubbish")).await;
    let unreadable =
        |error: Error| matches!(error, Error::Unreadable { key, .. } if &*key == "/registry/pods/b/1");
    assert!(unreadable(pods.list(&query(Selection::all(PODS), At::Newest)).await.unwrap_err()));
    assert!(unreadable(pods.get("/registry/pods/b/1").await.unwrap_err()));
    assert!(unreadable(next(&mut watching).await.unwrap_err()));
    // The rest is served.
    assert_eq!(listed(&pods, Selection::all("/registry/pods/a/"), At::Newest).await.0, ["a/1@1"]);
    // Once it is deleted, all is.
    world.delete("b/1").await;
    assert_eq!(listed(&pods, Selection::all(PODS), At::Newest).await.0, ["a/1@1"]);
}

#[tokio::test]
async fn two_rows_may_share_a_prefix() {
    let world = World::new();
    let pods = world.pods().await;
    let other = world.cache.row("v2/pods", || row(PODS)).await.unwrap();
    assert!(!Arc::ptr_eq(&pods, &other));
    assert!(Arc::ptr_eq(&pods, &world.pods().await));
    world.put("web/a", "x", "").await;
    for row in [&pods, &other] {
        assert_eq!(listed(row, Selection::all(PODS), At::Newest).await.0, ["web/a@1"]);
    }
}

#[tokio::test]
async fn a_feed_that_fell_behind_starts_all_rows_anew() {
    let history = History { changes: 40, ..History::default() };
    let world = World::with(Options { history, ..Options::default() }, TempDir::new().unwrap());
    let pods = world.pods().await;
    let mut watching = pods.watch(Selection::all(PODS), Start::After(0), false).await.unwrap();
    let store = Arc::clone(&world.store);
    // On this one thread the feed does not run meanwhile.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for number in 0..100 {
                put(&*store, &format!("{PODS}web/{number:03}"), "x", "").await;
            }
        });
    })
    .join()
    .unwrap();
    assert!(matches!(next(&mut watching).await, Err(Error::Ended)));
    assert!(matches!(pods.list(&query(Selection::all(PODS), At::Any)).await, Err(Error::Ended)));
    let again = world.pods().await;
    assert!(!Arc::ptr_eq(&pods, &again));
    assert_eq!(listed(&again, Selection::all(PODS), At::Newest).await.0.len(), 100);
    let revision = world.put("web/last", "x", "").await;
    assert!(
        listed(&again, Selection::all(PODS), At::Newest).await.0.contains(&format!("web/last@{revision}"))
    );
}

#[tokio::test]
async fn rows_are_read_while_the_store_forgets() {
    let history = History { changes: 4, ..History::default() };
    let world = World::with(Options { history, ..Options::default() }, TempDir::new().unwrap());
    let store = Arc::clone(&world.store);
    let writer = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for _ in 0..300 {
                let made =
                    store.create(&format!("{PODS}web/a"), Bytes::from_static(b"{\"metadata\":{}}")).await;
                let when = Precondition::ModifiedAt(made.unwrap().modified);
                store.delete(&format!("{PODS}web/a"), when).await.unwrap();
            }
        });
    });
    let mut rows = 0;
    while !writer.is_finished() {
        world.cache.row(&format!("row {rows}"), || row(PODS)).await.unwrap();
        rows += 1;
    }
    writer.join().unwrap();
    assert!(rows > 0, "no row was read meanwhile");
}

#[tokio::test]
async fn watchers_leave_nothing_behind() {
    let world = World::new();
    let pods = world.pods().await;
    let mut watchers = Vec::new();
    for (prefix, fields) in [
        (PODS, ""),
        ("/registry/pods/web/", ""),
        ("/registry/pods/web/", "metadata.name=a"),
        (PODS, "metadata.name=a"),
        (PODS, "spec.nodeName=n1"),
    ] {
        watchers.push(pods.watch(selection(prefix, "", fields), Start::After(0), false).await.unwrap());
    }
    assert_eq!(pods.size(), (0, 5));
    let revision = world.put("web/a", "x", "n1").await;
    for watching in &mut watchers {
        assert_eq!(take(watching, 1).await, [format!("ADDED web/a@{revision}")]);
    }
    drop(watchers);
    assert_eq!(pods.size(), (1, 0));
}
