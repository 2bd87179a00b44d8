//! The etcd store: for clusters whose state has outgrown one machine, or who have an etcd already.
//!
//! Keys and values lie in etcd as Kubernetes lays them: `etcdctl get --prefix /registry/` shows them, and
//! the revisions are etcd's own. Each write is one transaction that compares the key's revision. Reads
//! are linearizable. A watch finds out by itself how far it is ([`watch`]).
//!
//! **Invariants:** a write is tried again only where it is certain that the first attempt was never sent.
//! A read is answered by a member that has a leader, or not at all.

mod compact;
mod members;
mod options;
mod watch;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, GetOptions, GetResponse, KeyValue, Txn, TxnOp, TxnOpResponse};
use tokio::task::JoinHandle;

pub use members::Failure;
pub use options::{Login, Options, OptionsError, Tls};

use crate::{Entry, Error, List, Page, Precondition, Revision, Store, Watch, prefix_end};
use members::Members;
use watch::Asked;

/// How many keys are read at once: a list of many is read in parts, all at one revision, so that no
/// answer is larger than this many objects.
const PART: usize = 1_000;

/// The etcd store. Dropping it ends its compaction; its watches go on.
pub struct Etcd {
    members: Arc<Members>,
    asked: Asked,
    compactor: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("members", &self.members).finish_non_exhaustive()
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The options contradict each other or name files that cannot be used.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// No member answered in time, or one refused us.
    #[error("etcd cannot be used")]
    Unusable(#[source] Failure),
}

impl Etcd {
    /// Connects to etcd. Waits for it as long as the options say, unless it is plain that waiting is in
    /// vain.
    ///
    /// # Errors
    /// If the options are of no use, no member answers, or they refuse us.
    pub async fn open(options: &Options) -> Result<Self, OpenError> {
        let members = Arc::new(Members::new(options).await?);
        members.wait(options.patience).await.map_err(OpenError::Unusable)?;
        let compactor = options.compact_every.map(|every| {
            let members = Arc::clone(&members);
            tokio::spawn(async move { compact::for_ever(&members, every).await })
        });
        Ok(Self { members, asked: Asked::default(), compactor })
    }

    /// A range of keys, up to and without `end`.
    async fn range(&self, start: &[u8], options: GetOptions) -> Result<GetResponse, Failure> {
        self.members
            .read(|mut kv| {
                let (start, options) = (start.to_vec(), options.clone());
                async move { kv.get(start, Some(options)).await }
            })
            .await
    }

    /// Does one write; says whether its comparison held, at which revision, and what its last operation
    /// found.
    async fn transact(
        &self,
        key: &str,
        compare: CompareOp,
        revision: Revision,
        write: TxnOp,
    ) -> Result<(bool, Revision, Option<Arc<Entry>>), Error> {
        let found = |keys_only| {
            let options = GetOptions::new();
            TxnOp::get(key, Some(if keys_only { options.with_keys_only() } else { options }))
        };
        let txn = Txn::new()
            .when([Compare::mod_revision(key, compare, signed(revision))])
            .and_then([write, found(true)])
            .or_else([found(false)]);
        let response = self.members.write(|mut kv| {
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        });
        let response = response.await.map_err(failed)?;
        let at = response.header().map_or(0, |header| unsigned(header.revision()));
        let entry = match response.op_responses().pop() {
            Some(TxnOpResponse::Get(mut got)) => got.take_kvs().pop().and_then(entry),
            _ => None,
        };
        Ok((response.succeeded(), at, entry))
    }

    /// The error for a revision that etcd no longer has or does not have yet; others as they are.
    async fn refused(&self, failure: Failure, requested: Revision) -> Error {
        if failure.is_compacted() {
            return match self.oldest(requested).await {
                Ok(oldest) => Error::Compacted { requested, oldest },
                Err(error) => error,
            };
        }
        if failure.is_future() {
            return match self.revision().await {
                Ok(current) => Error::Future { requested, current },
                Err(error) => error,
            };
        }
        failed(failure)
    }

    /// The oldest kept revision, which is known to be after this one. Only a watch is told it.
    async fn oldest(&self, compacted: Revision) -> Result<Revision, Error> {
        watch::oldest(&self.members, compacted).await.map_err(failed)
    }

    /// Fails unless the store has this revision.
    async fn check(&self, revision: Revision) -> Result<(), Error> {
        // What is read does not matter, only when.
        let options = GetOptions::new().with_count_only().with_revision(first(revision));
        match self.range(b"/", options).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(self.refused(failure, revision).await),
        }
    }

    /// One part of a list: the entries, how many there are in all, and the newest revision.
    async fn part(&self, start: &[u8], end: &[u8], at: i64, limit: usize) -> Result<Part, Failure> {
        let options = GetOptions::new().with_range(end).with_revision(at);
        let options = match limit {
            0 => options.with_count_only(),
            limit => options.with_limit(limit as i64),
        };
        let mut response = self.range(start, options).await?;
        let newest = response.header().map_or(0, |header| header.revision());
        let keys = response.take_kvs();
        let total = usize::try_from(response.count()).unwrap_or_default();
        Ok(Part { last: keys.last().map(|kv| kv.key().to_vec()), keys, total, newest })
    }
}

/// See [`Etcd::part`].
struct Part {
    keys: Vec<KeyValue>,
    last: Option<Vec<u8>>,
    total: usize,
    newest: i64,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(compactor) = &self.compactor {
            compactor.abort();
        }
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Error> {
        let mut response = self.range(key.as_bytes(), GetOptions::new()).await.map_err(failed)?;
        Ok(response.take_kvs().pop().and_then(entry))
    }

    async fn list(&self, prefix: &str, list: List) -> Result<Page, Error> {
        let end = prefix_end(prefix).map_or_else(|| vec![0], String::into_bytes);
        let mut start = match list.after.as_deref() {
            Some(after) if after >= prefix => successor(after.as_bytes()),
            _ if prefix.is_empty() => vec![0],
            _ => prefix.as_bytes().to_vec(),
        };
        let limit = list.limit.unwrap_or(usize::MAX);
        let mut at = list.at.map_or(0, first);
        let mut entries = Vec::new();
        // An end that is not behind the start means something else to etcd.
        if end != [0] && start >= end {
            let revision = match list.at {
                Some(at) => at,
                None => self.revision().await?,
            };
            return Ok(Page { entries, revision, remaining: 0 });
        }
        loop {
            let ask = PART.min(limit - entries.len());
            let part = match self.part(&start, &end, at, ask).await {
                Ok(part) => part,
                Err(failure) => return Err(self.refused(failure, list.at.unwrap_or(unsigned(at))).await),
            };
            if at == 0 {
                at = part.newest;
            }
            let remaining = part.total - part.keys.len();
            entries.extend(part.keys.into_iter().filter_map(entry));
            match part.last {
                Some(last) if remaining > 0 && entries.len() < limit => start = successor(&last),
                _ => return Ok(Page { entries, revision: list.at.unwrap_or(unsigned(at)), remaining }),
            }
        }
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Arc<Entry>, Error> {
        let put = TxnOp::put(key, value.to_vec(), None);
        match self.transact(key, CompareOp::Equal, 0, put).await? {
            (true, revision, _) => {
                Ok(Arc::new(Entry { key: key.into(), value, created: revision, modified: revision }))
            }
            (false, _, Some(there)) => Err(Error::Exists(there)),
            (false, _, None) => Err(malformed(key)),
        }
    }

    async fn update(&self, key: &str, value: Bytes, when: Precondition) -> Result<Arc<Entry>, Error> {
        let Precondition::ModifiedAt(expected) = when;
        let put = TxnOp::put(key, value.to_vec(), None);
        match self.transact(key, CompareOp::Equal, expected, put).await? {
            (true, _, Some(put)) => Ok(Arc::new(Entry { value, ..Arc::unwrap_or_clone(put) })),
            (true, _, None) => Err(malformed(key)),
            (false, _, there) => Err(Error::Conflict(there)),
        }
    }

    async fn delete(&self, key: &str, when: Precondition) -> Result<Revision, Error> {
        let Precondition::ModifiedAt(expected) = when;
        match self.transact(key, CompareOp::Equal, expected, TxnOp::delete(key, None)).await? {
            (true, revision, _) => Ok(revision),
            (false, _, there) => Err(Error::Conflict(there)),
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, Error> {
        self.check(after).await?;
        watch::start(&self.members, &self.asked, prefix, after).await.map_err(failed)
    }

    async fn progress(&self) -> Result<(), Error> {
        self.asked.ask(self.revision().await?);
        Ok(())
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let options = GetOptions::new().with_count_only();
        let response = self.range(b"/", options).await.map_err(failed)?;
        Ok(response.header().map_or(0, |header| unsigned(header.revision())))
    }

    async fn size(&self) -> Result<u64, Error> {
        self.members.size().await.map_err(failed)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        match self.members.compact(signed(revision)).await {
            Err(failure) if failure.is_compacted() => Ok(()),
            Err(failure) => Err(self.refused(failure, revision).await),
            Ok(()) => Ok(()),
        }
    }
}

/// An entry of etcd's; none if the key is not ours: ours are text.
fn entry(kv: KeyValue) -> Option<Arc<Entry>> {
    let (created, modified) = (unsigned(kv.create_revision()), unsigned(kv.mod_revision()));
    let (key, value) = kv.into_key_value();
    let key = String::from_utf8(key).ok()?.into();
    Some(Arc::new(Entry { key, value: value.into(), created, modified }))
}

/// The least key after this one.
fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

fn signed(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> Revision {
    Revision::try_from(revision).unwrap_or_default()
}

/// A revision as etcd counts them: its empty store is at 1, and 0 would mean the newest.
fn first(revision: Revision) -> i64 {
    signed(revision).max(1)
}

fn failed(failure: Failure) -> Error {
    if failure.is_too_large() {
        return Error::TooLarge;
    }
    Error::Unavailable(Box::new(failure))
}

fn malformed(key: &str) -> Error {
    Error::Unavailable(format!("etcd's answer to a transaction on {key} makes no sense").into())
}
