//! Forgetting history at an interval, once for all API servers of one etcd.
//!
//! They agree on who compacts as Kubernetes' do, by the key [`KEY`]: whoever finds it as it left it
//! compacts to what was the newest revision then. So ours and kube-apiserver can share an etcd.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, Txn, TxnOp, TxnOpResponse};

use super::members::{Failure, Members};

/// Kubernetes' name for it: it holds the revision of the last compaction.
const KEY: &str = "compact_rev_key";

/// What was found at the last turn.
#[derive(Debug, Default)]
struct Turn {
    version: i64,
    revision: i64,
}

/// Takes its turn at each interval.
pub(super) async fn for_ever(members: &Arc<Members>, every: Duration) {
    let mut last = Turn::default();
    loop {
        match turn(members, &last).await {
            Ok(next) => last = next,
            Err(failure) => tracing::warn!(%failure, "cannot compact etcd; trying again later"),
        }
        tokio::time::sleep(every).await;
    }
}

/// Compacts to the last turn's revision, unless another server took this turn.
async fn turn(members: &Members, last: &Turn) -> Result<Turn, Failure> {
    let txn = Txn::new()
        .when([Compare::version(KEY, CompareOp::Equal, last.version)])
        .and_then([TxnOp::put(KEY, last.revision.to_string(), None)])
        .or_else([TxnOp::get(KEY, None)]);
    let response = members.write(|mut kv| {
        let txn = txn.clone();
        async move { kv.txn(txn).await }
    });
    let response = response.await?;
    let revision = response.header().map_or(0, |header| header.revision());
    if !response.succeeded() {
        let version = match response.op_responses().pop() {
            Some(TxnOpResponse::Get(got)) => got.kvs().first().map_or(0, |kv| kv.version()),
            _ => 0,
        };
        return Ok(Turn { version, revision });
    }
    if last.revision > 0 {
        match members.compact(last.revision).await {
            Err(failure) if failure.is_compacted() => {}
            Err(failure) => return Err(failure),
            Ok(()) => tracing::debug!(revision = last.revision, "etcd's history is compacted"),
        }
    }
    Ok(Turn { version: last.version + 1, revision })
}
