//! The one thread that writes.
//!
//! It takes all requests that wait, decides them one after the other in a draft, commits what they
//! change in one durable transaction, publishes the changes, and only then answers: group commit. While one batch is on its way to the disk the next one gathers.
//!
//! **Invariant:** nobody sees or is told of a write that is not durable, a refusal that came of one
//! included. After a failed commit it is not known what the disk holds: nothing is written any more
//! until the store is opened again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::disk::Disk;
use super::hub::Hub;
use super::state::{Draft, State, Trim};
use super::{Clock, History};
use crate::{Change, Error, Precondition, Revision};

/// How many requests may wait; further writers wait to hand theirs in.
pub(super) const INBOX: usize = 1_024;
/// How many writes go into one transaction: beyond this the time to write exceeds that of the sync.
const BATCH_WRITES: usize = 512;
/// How many bytes of values go into one transaction, so that one batch of large ones does not hold
/// up the next for long.
const BATCH_BYTES: usize = 4 << 20;
/// How many old changes are forgotten along with one batch: few, so that the batch is not delayed,
/// and more than a usual batch brings.
const TRIM_WITH_BATCH: usize = 256;
/// How many are forgotten in one transaction where a compaction was asked for.
const TRIM_ALONE: usize = 2_048;
/// By which part the history may exceed its bounds before it is trimmed: old rows lie side by side,
/// so removing many at a time touches each page once.
const SLACK_PART: usize = 8;
/// How often it is noted which revision is the newest, to know later how old it is.
const MARK_EVERY: Duration = Duration::from_secs(30);

/// What to do, and where to answer.
pub(super) enum Request {
    Write { key: Arc<str>, action: Action, reply: oneshot::Sender<Result<Change, Error>> },
    Compact { revision: Revision, reply: oneshot::Sender<Result<(), Error>> },
}

pub(super) enum Action {
    Create(Bytes),
    Update(Bytes, Precondition),
    Delete(Precondition),
}

impl Action {
    fn size(&self) -> usize {
        match self {
            Self::Create(value) | Self::Update(value, _) => value.len(),
            Self::Delete(_) => 0,
        }
    }
}

/// The store stopped writing after this failure.
#[derive(Clone, Debug, thiserror::Error)]
#[error("writing to the database failed; it has to be opened again")]
pub(super) struct Failed(#[source] Arc<redb::Error>);

pub(super) struct Writer {
    disk: Disk,
    hub: Arc<Hub>,
    inbox: mpsc::Receiver<Request>,
    ages: Ages,
    history: History,
    clock: Clock,
    failed: Option<Failed>,
}

/// A write that waits for its decision.
struct Write {
    key: Arc<str>,
    action: Action,
    reply: oneshot::Sender<Result<Change, Error>>,
}

impl Writer {
    pub(super) fn new(
        disk: Disk,
        hub: Arc<Hub>,
        inbox: mpsc::Receiver<Request>,
        history: History,
        clock: Clock,
    ) -> Self {
        Self { disk, hub, inbox, ages: Ages::default(), history, clock, failed: None }
    }

    /// Serves requests until nobody can make any more.
    pub(super) fn run(mut self) {
        let mut next = None;
        loop {
            let Some(request) = next.take().or_else(|| self.inbox.blocking_recv()) else { break };
            match request {
                Request::Compact { revision, reply } => {
                    let result = self.compact(revision);
                    // Whoever asked may have gone; the compaction took place all the same.
                    reply.send(result).ok();
                }
                Request::Write { key, action, reply } => {
                    let (writes, left) = self.gather(Write { key, action, reply });
                    self.batch(writes);
                    next = left;
                }
            }
        }
        // So that the next opening finds all of it in one place; what is in the journal is as safe.
        if self.failed.is_none()
            && let Err(error) = self.disk.carry_over()
        {
            tracing::warn!(%error, "closing the database: the journal keeps what is not in it");
        }
    }

    /// The writes that wait, and a request of another kind if one ended them.
    fn gather(&mut self, first: Write) -> (Vec<Write>, Option<Request>) {
        let mut bytes = first.action.size();
        let mut writes = vec![first];
        while writes.len() < BATCH_WRITES && bytes < BATCH_BYTES {
            match self.inbox.try_recv() {
                Ok(Request::Write { key, action, reply }) => {
                    bytes += action.size();
                    writes.push(Write { key, action, reply });
                }
                Ok(other) => return (writes, Some(other)),
                Err(_) => break,
            }
        }
        (writes, None)
    }

    fn batch(&mut self, writes: Vec<Write>) {
        let mut changes = Vec::with_capacity(writes.len());
        let mut answers = Vec::with_capacity(writes.len());
        let now = (self.clock)();
        let (hub, ages, history) = (&self.hub, &mut self.ages, &self.history);
        let trim = hub.read(|state| {
            let mut draft = Draft::new(state);
            for Write { key, action, reply } in writes {
                let answer = decide(&mut draft, key, action);
                changes.extend(answer.as_ref().ok().cloned());
                answers.push((reply, answer));
            }
            let due = ages.due(now, state.revision, history.age);
            trim_target(state, history, due).map(|target| state.trim_plan(target, TRIM_WITH_BATCH))
        });
        let result = if changes.is_empty() { self.healthy() } else { self.commit(&changes, trim) };
        for (reply, answer) in answers {
            // A writer that has gone does not learn how its write ended.
            reply.send(result.clone().map_err(unavailable).and(answer)).ok();
        }
    }

    fn healthy(&self) -> Result<(), Failed> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Makes the changes durable, then visible.
    fn commit(&mut self, changes: &[Change], trim: Option<Trim>) -> Result<(), Failed> {
        self.healthy()?;
        let oldest = trim.as_ref().map(|trim| trim.oldest);
        if let Err(error) = self.disk.commit(changes, trim) {
            tracing::error!(%error, "writing to the database failed: no more writes until it is opened again");
            let failed = Failed(Arc::new(error));
            self.failed = Some(failed.clone());
            return Err(failed);
        }
        self.hub.publish(changes, oldest);
        Ok(())
    }

    fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        loop {
            let trim = self.hub.read(|state| {
                if revision > state.revision {
                    return Err(Error::Future { requested: revision, current: state.revision });
                }
                Ok((state.oldest < revision).then(|| state.trim_plan(revision, TRIM_ALONE)))
            })?;
            match trim {
                Some(trim) => self.commit(&[], Some(trim)).map_err(unavailable)?,
                None => return Ok(()),
            }
        }
    }
}

impl Drop for Writer {
    /// However the thread ends, by a panic too: nobody waits for changes that will not come.
    fn drop(&mut self) {
        self.hub.close();
    }
}

fn unavailable(failed: Failed) -> Error {
    Error::Unavailable(Box::new(failed))
}

/// What becomes of one request, after those before it.
fn decide(draft: &mut Draft<'_>, key: Arc<str>, action: Action) -> Result<Change, Error> {
    match action {
        Action::Create(value) => draft.create(key, value),
        Action::Update(value, when) => draft.update(&key, value, when),
        Action::Delete(when) => draft.delete(&key, when),
    }
}

/// Up to which revision the history is to be forgotten, if any of it is.
fn trim_target(state: &State, bounds: &History, due: Option<Revision>) -> Option<Revision> {
    let (count, bytes) = state.kept();
    let by_count = (count > bounds.changes + bounds.changes / SLACK_PART)
        .then(|| state.revision - bounds.changes as Revision);
    // Which changes take the room is not known: forget them bit by bit until they fit.
    let by_bytes = (bytes > bounds.bytes + bounds.bytes / SLACK_PART)
        .then(|| state.oldest + TRIM_WITH_BATCH as Revision);
    by_count.max(by_bytes).max(due).filter(|target| *target > state.oldest)
}

/// Which revision was the newest at what time.
#[derive(Debug, Default)]
struct Ages {
    marks: VecDeque<(Duration, Revision)>,
    due: Option<Revision>,
}

impl Ages {
    /// Notes the newest revision, and says up to which one all are older than `age`.
    fn due(&mut self, now: Duration, newest: Revision, age: Duration) -> Option<Revision> {
        if self.marks.back().is_none_or(|(at, _)| now.saturating_sub(*at) >= MARK_EVERY) {
            self.marks.push_back((now, newest));
        }
        while let Some((_, revision)) = self.marks.front().filter(|(at, _)| now.saturating_sub(*at) >= age) {
            self.due = Some(*revision);
            self.marks.pop_front();
        }
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(changes: u64) -> State {
        let mut state = State::default();
        for n in 0..changes {
            let change = Draft::new(&state).create(format!("/{n}").into(), Bytes::new()).unwrap();
            state.apply(change);
        }
        state
    }

    #[test]
    fn history_is_trimmed_in_bulk_once_it_exceeds_its_bounds() {
        let bounds = History { changes: 80, bytes: usize::MAX / 2, age: Duration::MAX };
        assert_eq!(trim_target(&state(90), &bounds, None), None);
        assert_eq!(trim_target(&state(91), &bounds, None), Some(11));
        let small = History { bytes: 80, ..bounds };
        assert_eq!(trim_target(&state(2), &small, None), Some(TRIM_WITH_BATCH as Revision));
        assert_eq!(trim_target(&state(50), &bounds, Some(20)), Some(20));
        let mut trimmed = state(50);
        trimmed.trim(20);
        assert_eq!(trim_target(&trimmed, &bounds, Some(20)), None);
    }

    #[test]
    fn revisions_are_due_once_they_are_old() {
        let mut ages = Ages::default();
        let age = Duration::from_secs(60);
        let at = Duration::from_secs;
        assert_eq!(ages.due(at(0), 5, age), None);
        assert_eq!(ages.due(at(29), 7, age), None);
        assert_eq!(ages.due(at(30), 9, age), None);
        assert_eq!(ages.due(at(60), 20, age), Some(5));
        assert_eq!(ages.due(at(91), 30, age), Some(9));
        assert!(ages.marks.len() <= 3);
    }
}
