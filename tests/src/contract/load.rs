//! Writers and watchers that go on while the server is killed under them, and record what they see.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{
    Api, DeleteParams, ListParams, ObjectMeta, PostParams, Preconditions, WatchEvent, WatchParams,
};

use super::{Content, Item, Leg, Record, Revision, Seen, Watcher, What, Write};
use crate::server::Server;

/// The label by which all objects of the load are found.
const LABEL: &str = "contract";
/// Objects of each writer: few, so that each is written often.
const KEYS: u64 = 5;
/// How many writers there are.
const WRITERS: u64 = 3;
/// How long a client waits before it tries again to reach a server that was killed.
const AGAIN: Duration = Duration::from_millis(20);
/// How long the watchers may take to see the last write.
const CATCH_UP: Duration = Duration::from_secs(60);

/// A number for each write.
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// What a run of the load did.
#[derive(Debug)]
pub struct Outcome {
    /// All that was recorded.
    pub record: Record,
    /// How many writes were acknowledged.
    pub acknowledged: usize,
    /// How many events the watchers saw in all.
    pub events: usize,
    /// How often a watch was taken up again.
    pub resumed: usize,
}

/// Writes and watches while the server is killed this often, at random moments within `between`.
///
/// # Errors
/// That the server does not start again, or that a client was refused what it may do.
pub async fn run(server: &mut Server, kills: usize, between: Range<Duration>) -> Result<Outcome> {
    let maps: Api<ConfigMap> = Api::namespaced(server.client().await?, "default");
    let start = maps.list(&ListParams::default().limit(1)).await?.metadata.resource_version;
    let start: Revision = start.context("a list has a resourceVersion")?.parse()?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut watchers = Vec::new();
    for plan in plans() {
        let all = Api::all(server.client().await?);
        let own = Api::namespaced(server.client().await?, "default");
        watchers.push(tokio::spawn(watch(plan, if plan.everywhere { all } else { own }, start)));
    }
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let maps = Api::namespaced(server.client().await?, "default");
        writers.push(tokio::spawn(write(number, maps, Arc::clone(&stop))));
    }
    for _ in 0..kills {
        tokio::time::sleep(rand::random_range(between.clone())).await;
        server.kill()?;
        server.start().await?;
    }
    stop.store(true, Ordering::Relaxed);
    let mut record = Record::default();
    for writer in writers {
        record.writes.push(writer.await??);
    }
    record.writes.push(last_writes(&maps).await?);
    for watcher in watchers {
        let seen =
            tokio::time::timeout(CATCH_UP, watcher).await.context("a watcher does not see the last write")?;
        record.watchers.push(seen??);
    }
    let list = maps.list(&ListParams::default().labels(LABEL)).await?;
    for object in list.items {
        record.list.push((name(&object), revision(&object)?, content(&object)?));
    }
    let legs = || record.watchers.iter().flat_map(|watcher| &watcher.legs);
    let (events, resumed) = (legs().map(|leg| leg.items.len()).sum(), legs().count() - record.watchers.len());
    let acknowledged = record.writes.iter().map(Vec::len).sum();
    Ok(Outcome { record, acknowledged, events, resumed })
}

/// How a watcher watches.
#[derive(Clone, Copy, Debug)]
struct Plan {
    name: &'static str,
    prefix: &'static str,
    labels: &'static str,
    fields: Option<&'static str>,
    everywhere: bool,
    /// Starts anew each time, with the state at the beginning, instead of resuming.
    initial: bool,
}

fn plans() -> [Plan; 5] {
    let plain =
        Plan { name: "plain", prefix: "", labels: LABEL, fields: None, everywhere: false, initial: false };
    [
        plain,
        Plan { name: "everywhere", everywhere: true, ..plain },
        Plan { name: "by label", prefix: "w0-", labels: "contract=w0", ..plain },
        Plan { name: "by name", prefix: "w1-0", fields: Some("metadata.name=w1-0"), ..plain },
        Plan { name: "with the state at the beginning", initial: true, ..plain },
    ]
}

/// The last write that a watcher of this plan sees.
fn last(plan: Plan) -> &'static str {
    if plan.fields.is_some() { "w1-0" } else { "w0-last" }
}

fn object(key: &str, writer: &str, resource_version: Option<String>, end: bool) -> (ConfigMap, u64) {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // Of a random length, so that parts of two writes would not fit together.
    let filler = "x".repeat(rand::random_range(0..2_000));
    let mut data = BTreeMap::from([
        ("a".to_owned(), number.to_string()),
        ("filler".to_owned(), filler),
        ("z".to_owned(), number.to_string()),
    ]);
    if end {
        data.insert("end".to_owned(), "yes".to_owned());
    }
    let labels = BTreeMap::from([(LABEL.to_owned(), writer.to_owned())]);
    let metadata = ObjectMeta {
        name: Some(key.to_owned()),
        labels: Some(labels),
        resource_version,
        ..Default::default()
    };
    (ConfigMap { data: Some(data), metadata, ..Default::default() }, number)
}

fn name(object: &ConfigMap) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

fn revision(object: &ConfigMap) -> Result<Revision> {
    Ok(object.metadata.resource_version.as_deref().context("an object has a resourceVersion")?.parse()?)
}

fn content(object: &ConfigMap) -> Result<Content> {
    let part = |key: &str| object.data.as_ref().and_then(|data| data.get(key));
    let number = part("a").context("the object was written by the load")?.parse()?;
    Ok(Content { number, whole: part("a") == part("z") && part("filler").is_some() })
}

/// Whether an answer says that nothing was done; otherwise that is not known.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

/// What a writer knows of one of its objects, once the server answers.
async fn look(maps: &Api<ConfigMap>, key: &str) -> Option<ConfigMap> {
    loop {
        match maps.get_opt(key).await {
            Ok(found) => return found,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// Writes its own objects, one write after the other, until told to stop.
async fn write(writer: u64, maps: Api<ConfigMap>, stop: Arc<AtomicBool>) -> Result<Vec<Write>> {
    let label = format!("w{writer}");
    let mut acknowledged = Vec::new();
    let mut there: BTreeMap<String, ConfigMap> = BTreeMap::new();
    for step in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("w{writer}-{}", step % KEYS);
        let old = there.remove(&key);
        let result = match old.as_ref() {
            Some(old) if step % 7 == 3 => delete(&maps, &key, old).await.map(|()| None),
            Some(old) => {
                let (new, _) = object(&key, &label, old.metadata.resource_version.clone(), false);
                maps.replace(&key, &PostParams::default(), &new).await.map(Some)
            }
            None => maps.create(&PostParams::default(), &object(&key, &label, None, false).0).await.map(Some),
        };
        let now = match result {
            Ok(now) => now,
            // A write that was on its way when the server was killed may have come in between.
            Err(error) if is_refusal(&error) => look(&maps, &key).await,
            Err(_) => look(&maps, &key).await,
        };
        acknowledged.push(note(&key, now.as_ref())?);
        there.extend(now.map(|now| (key, now)));
    }
    Ok(acknowledged)
}

async fn delete(maps: &Api<ConfigMap>, key: &str, old: &ConfigMap) -> Result<(), kube::Error> {
    let preconditions = Preconditions { resource_version: old.metadata.resource_version.clone(), uid: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    maps.delete(key, &params).await.map(drop)
}

/// What was answered, or found, counts: it must never be otherwise again.
fn note(key: &str, now: Option<&ConfigMap>) -> Result<Write> {
    let put = now.map(|now| anyhow::Ok((revision(now)?, content(now)?.number))).transpose()?;
    Ok(Write { key: key.to_owned(), put })
}

/// What the watchers wait for at the end.
async fn last_writes(maps: &Api<ConfigMap>) -> Result<Vec<Write>> {
    let mut acknowledged = Vec::new();
    let there = look(maps, "w1-0").await;
    let version = there.as_ref().and_then(|object| object.metadata.resource_version.clone());
    let (new, _) = object("w1-0", "w1", version, true);
    let done = match there {
        Some(_) => maps.replace("w1-0", &PostParams::default(), &new).await?,
        None => maps.create(&PostParams::default(), &new).await?,
    };
    acknowledged.push(note("w1-0", Some(&done))?);
    let (new, _) = object("w0-last", "w0", None, true);
    let done = maps.create(&PostParams::default(), &new).await?;
    acknowledged.push(note("w0-last", Some(&done))?);
    Ok(acknowledged)
}

/// Watches until it has seen the last write, from wherever it was when a watch broke off.
async fn watch(plan: Plan, maps: Api<ConfigMap>, start: Revision) -> Result<Watcher> {
    let mut legs = Vec::new();
    let mut reached = start;
    loop {
        let after = (!plan.initial).then_some(reached);
        let mut leg = Leg { after, items: Vec::new() };
        let done = follow(plan, &maps, &mut leg).await?;
        for item in &leg.items {
            match item {
                Item::Event(seen) => reached = seen.revision,
                Item::Bookmark(revision) => reached = *revision,
                Item::Initial(_) => {}
            }
        }
        legs.push(leg);
        if done {
            return Ok(Watcher { name: plan.name.to_owned(), prefix: plan.prefix.to_owned(), legs });
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Watches until the watch breaks off; says whether the last write was seen.
async fn follow(plan: Plan, maps: &Api<ConfigMap>, leg: &mut Leg) -> Result<bool> {
    let mut params = WatchParams::default().labels(plan.labels);
    if let Some(fields) = plan.fields {
        params = params.fields(fields);
    }
    if plan.initial {
        params = params.initial_events();
    }
    let version = leg.after.map_or_else(|| "0".to_owned(), |after| after.to_string());
    let Ok(stream) = maps.watch(&params, &version).await else { return Ok(false) };
    let mut stream = stream.boxed();
    let mut initial = plan.initial;
    let mut end = false;
    // A watch that breaks off is what this is about: it is taken up again.
    while let Ok(Some(event)) = stream.try_next().await {
        let (what, object) = match event {
            WatchEvent::Added(object) => (What::Added, object),
            WatchEvent::Modified(object) => (What::Modified, object),
            WatchEvent::Deleted(object) => (What::Deleted, object),
            WatchEvent::Bookmark(bookmark) => {
                leg.items.push(Item::Bookmark(bookmark.metadata.resource_version.parse()?));
                initial = false;
                if end {
                    return Ok(true);
                }
                continue;
            }
            WatchEvent::Error(status) if status.code == 410 => {
                bail!("resumable: {}: refused after {:?}: {}", plan.name, leg.after, status.message);
            }
            WatchEvent::Error(_) => return Ok(false),
        };
        let seen =
            Seen { revision: revision(&object)?, key: name(&object), what, content: content(&object)? };
        let last =
            seen.key == last(plan) && object.data.as_ref().is_some_and(|data| data.contains_key("end"));
        leg.items.push(if initial { Item::Initial(seen) } else { Item::Event(seen) });
        if last && !initial {
            return Ok(true);
        }
        // Among the initial events: the bookmark ends them.
        end |= last;
    }
    Ok(false)
}
