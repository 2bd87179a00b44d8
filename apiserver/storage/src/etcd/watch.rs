//! A watch of etcd that goes on where it was when the connection or the member is lost.
//!
//! How far a watch is, it finds out by itself, because etcd's answers to progress requests come too early
//! before 3.4.25 and 3.5.8. A watch of all keys sees each revision as an event. A watch of a prefix looks
//! whether anything under it changed since the last event: if no key was written later, and there are as
//! many keys as then, nothing did.
//!
//! A watch starts *at* the revision that was seen last and passes
//! over what that one changed: so etcd itself notices if anything after it was compacted. (Asked for the
//! revision after it, etcd would serve one whose deletions compaction has taken.)

use std::sync::Arc;

use std::time::Duration;

use etcd_client::{EventType, GetOptions, GetResponse, KeyValue, WatchOptions, WatchResponse, WatchStream};
use futures::stream;
use tokio::sync::watch;

use super::members::{BETWEEN, Failure, Members, START};
use super::{entry, first, signed, unsigned};
use crate::{Change, Error, Event, Revision, Watch, prefix_end};

/// How often a quiet watch finds out how far it is: so often that compaction, which keeps five minutes,
/// never overtakes one that has nothing to tell.
const SETTLE_EVERY: Duration = Duration::from_secs(60);

/// What watches were asked to reach: how often, and which revision.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked(watch::Sender<(u64, Revision)>);

impl Asked {
    /// Asks all watches to say when they have reached this revision.
    pub(super) fn ask(&self, revision: Revision) {
        self.0.send_modify(|(times, goal)| {
            *times += 1;
            *goal = revision.max(*goal);
        });
    }
}

/// Starts a watch after a revision that the store has.
pub(super) async fn start(
    members: &Arc<Members>,
    asked: &Asked,
    prefix: &str,
    after: Revision,
) -> Result<Watch, Failure> {
    let asked = asked.0.subscribe();
    let told = asked.borrow().0;
    let members = Arc::clone(members);
    let mut watcher =
        Watcher { members, asked, told, prefix: prefix.to_owned(), seen: after, stream: None, ended: false };
    watcher.connect().await?;
    Ok(Box::pin(stream::unfold(watcher, Watcher::step)))
}

/// The oldest revision that is kept, by trying to watch from one that is not.
pub(super) async fn oldest(members: &Members, compacted: Revision) -> Result<Revision, Failure> {
    let mut opened = open(members, "", first(compacted)).await?;
    loop {
        match tokio::time::timeout(START, opened.stream.message()).await {
            Ok(Ok(Some(response))) if response.compact_revision() > 0 => {
                return Ok(unsigned(response.compact_revision()));
            }
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err(members.watch_failed(opened.member, None)),
            Ok(Err(error)) => return Err(members.watch_failed(opened.member, Some(error))),
            Err(_) => return Err(members.watch_timed_out(opened.member)),
        }
    }
}

/// A stream from one member.
struct Opened {
    member: usize,
    stream: WatchStream,
}

/// Starts to watch what is under the prefix from this revision on.
async fn open(members: &Members, prefix: &str, from: i64) -> Result<Opened, Failure> {
    let (member, mut client) = members.watcher().await?;
    let options = WatchOptions::new().with_prev_key().with_start_revision(from);
    let options = match range_end(prefix) {
        Some(end) => options.with_range(end),
        None => options.with_all_keys(),
    };
    match tokio::time::timeout(START, client.watch(prefix, Some(options))).await {
        Ok(Ok(stream)) => Ok(Opened { member, stream }),
        Ok(Err(error)) => Err(members.watch_failed(member, Some(error))),
        Err(_) => Err(members.watch_timed_out(member)),
    }
}

/// Where a prefix ends for etcd; none for all keys.
fn range_end(prefix: &str) -> Option<Vec<u8>> {
    (!prefix.is_empty()).then(|| prefix_end(prefix).map_or_else(|| vec![0], String::into_bytes))
}

struct Watcher {
    members: Arc<Members>,
    asked: watch::Receiver<(u64, Revision)>,
    /// How often we were asked when we answered last.
    told: u64,
    prefix: String,
    /// Everything up to this revision was delivered.
    seen: Revision,
    stream: Option<Opened>,
    ended: bool,
}

/// What a message of etcd's means.
enum Told {
    Changes(Vec<Change>),
    Nothing,
    /// This stream is of no more use; another one may be.
    Broken(String),
}

impl Watcher {
    async fn step(mut self) -> Option<(Result<Event, Error>, Self)> {
        if self.ended {
            return None;
        }
        let result = self.next().await;
        self.ended = result.is_err();
        Some((result, self))
    }

    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let (times, goal) = *self.asked.borrow_and_update();
            if times != self.told && self.seen >= goal {
                self.told = times;
                return Ok(Event::Progress(self.seen));
            }
            if times != self.told && self.settle(goal).await? {
                continue;
            }
            let Some(opened) = &mut self.stream else {
                self.connect().await.map_err(super::failed)?;
                continue;
            };
            let message = tokio::select! {
                message = opened.stream.message() => message,
                // The sender may go with its store; then nobody asks any more.
                Ok(()) = self.asked.changed() => continue,
                () = tokio::time::sleep(SETTLE_EVERY) => {
                    let newest = self.newest().await?;
                    self.settle(newest).await?;
                    continue;
                }
            };
            match message {
                Ok(Some(response)) => match self.read(&response)? {
                    Told::Changes(changes) => return Ok(Event::Changes(changes)),
                    Told::Nothing => {}
                    Told::Broken(reason) => self.lost(&reason),
                },
                Ok(None) => self.lost("the stream ended"),
                Err(error) => self.lost(&error.to_string()),
            }
        }
    }

    fn lost(&mut self, reason: &str) {
        if let Some(opened) = self.stream.take() {
            let failure = self.members.watch_failed(opened.member, None);
            tracing::info!(%failure, reason, seen = self.seen, "a watch of etcd is taken up elsewhere");
        }
    }

    /// Takes the watch up where it was, at any member that will have it.
    async fn connect(&mut self) -> Result<(), Failure> {
        let mut attempt = 1;
        loop {
            match open(&self.members, &self.prefix, first(self.seen)).await {
                Ok(opened) => {
                    self.stream = Some(opened);
                    return Ok(());
                }
                Err(failure) if attempt >= self.members.attempts() => return Err(failure),
                Err(_) => tokio::time::sleep(BETWEEN).await,
            }
            attempt += 1;
        }
    }

    /// Looks whether nothing under the prefix changed up to a revision that is not reached yet; then it is
    /// reached. What did change is on its way.
    async fn settle(&mut self, goal: Revision) -> Result<bool, Error> {
        let Some(end) = range_end(&self.prefix) else { return Ok(false) };
        if self.seen >= goal {
            return Ok(false);
        }
        let since = GetOptions::new().with_range(end).with_revision(signed(goal));
        let since = since.with_keys_only().with_min_mod_revision(signed(self.seen) + 1);
        let written = self.range(since.clone()).await?;
        if !written.kvs().is_empty() {
            return Ok(false);
        }
        // At the revision that is reached already, every key counts.
        let before = since.with_min_mod_revision(0).with_count_only().with_revision(first(self.seen));
        if self.range(before).await?.count() != written.count() {
            return Ok(false);
        }
        self.seen = goal;
        Ok(true)
    }

    async fn newest(&self) -> Result<Revision, Error> {
        let found = self.range(GetOptions::new().with_count_only()).await?;
        Ok(found.header().map_or(0, |header| unsigned(header.revision())))
    }

    async fn range(&self, options: GetOptions) -> Result<GetResponse, Error> {
        let read = self.members.read(|mut kv| {
            let (start, options) = (self.prefix.clone(), options.clone());
            // An empty key is none to etcd; which one is read for the newest revision does not matter.
            async move { kv.get(if start.is_empty() { "/".to_owned() } else { start }, Some(options)).await }
        });
        read.await.map_err(
            |failure| {
                if failure.is_compacted() { Error::Lagged } else { super::failed(failure) }
            },
        )
    }

    fn read(&mut self, response: &WatchResponse) -> Result<Told, Error> {
        if response.compact_revision() > 0 {
            return Err(Error::Lagged);
        }
        if response.canceled() {
            return Ok(Told::Broken(response.cancel_reason().to_owned()));
        }
        let mut changes = Vec::new();
        let mut reached = self.seen;
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let revision = unsigned(kv.mod_revision());
            // All that one revision changed comes in one message.
            if revision <= self.seen {
                continue;
            }
            reached = revision;
            if kv.key().starts_with(self.prefix.as_bytes()) {
                changes.extend(change(event.event_type(), kv, event.prev_kv())?);
            }
        }
        self.seen = reached;
        Ok(if changes.is_empty() { Told::Nothing } else { Told::Changes(changes) })
    }
}

/// The change that an event tells of; none for keys that are no text. What was there before is missing
/// only where compaction has taken it.
fn change(kind: EventType, kv: &KeyValue, previous: Option<&KeyValue>) -> Result<Option<Change>, Error> {
    let previous = previous.cloned().and_then(entry);
    match kind {
        EventType::Put => {
            if previous.is_none() && kv.create_revision() != kv.mod_revision() {
                return Err(Error::Lagged);
            }
            Ok(entry(kv.clone()).map(|entry| Change::Put { entry, previous }))
        }
        EventType::Delete => {
            let revision = unsigned(kv.mod_revision());
            match previous {
                Some(previous) => Ok(Some(Change::Delete { previous, revision })),
                None if std::str::from_utf8(kv.key()).is_err() => Ok(None),
                None => Err(Error::Lagged),
            }
        }
    }
}
