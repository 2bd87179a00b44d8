//! Keeps what decides about requests as stored objects say: the RBAC policy by roles and bindings, priority and
//! fairness by flow schemas and priority levels.

use std::sync::{Arc, PoisonError, RwLockWriteGuard};
use std::time::Duration;

use decapod_api::meta;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use decapod_storage::{Change, Entry, Event, List};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::task::TaskTracker;

use super::Core;
use crate::auth::rbac::{Binding, GROUP, Policy, Role};
use crate::registry::{object, reads, row};

/// How long a broken watch waits before it starts anew.
const RETRY: Duration = Duration::from_secs(1);

const KINDS: [(&str, &str, Put); 6] = [
    (GROUP, "clusterroles", put_role),
    (GROUP, "roles", put_role),
    (GROUP, "clusterrolebindings", put_binding),
    (GROUP, "rolebindings", put_binding),
    (super::flow::GROUP, "prioritylevelconfigurations", put_level),
    (super::flow::GROUP, "flowschemas", put_schema),
];

type Put = fn(&Core, &Value, bool);

/// Reads the whole policy, and follows it from there on.
pub(super) async fn policy(core: &Arc<Core>, tasks: &TaskTracker) -> Result<(), Error> {
    for (group, plural, put) in KINDS {
        let resource = row(group, "v1", plural);
        let revision = read(core, resource, put).await?;
        let core = core.clone();
        tasks.spawn(async move {
            let stop = core.stopping.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = follow(&core, resource, put, revision) => {}
            }
        });
    }
    Ok(())
}

async fn read(core: &Core, resource: &'static Resource, put: Put) -> Result<u64, Error> {
    let prefix = object::prefix(resource, "").ok_or(Error::UnknownPath)?;
    let page = core.registry.store.list(&prefix, List::default()).await.map_err(reads::failed)?;
    for entry in &page.entries {
        apply(core, put, entry, true);
    }
    Ok(page.revision)
}

async fn follow(core: &Core, resource: &'static Resource, put: Put, mut revision: u64) {
    let prefix = object::prefix(resource, "").expect("roles and bindings are stored");
    loop {
        match core.registry.store.watch(&prefix, revision).await {
            Ok(mut watch) => {
                while let Some(Ok(event)) = watch.next().await {
                    match event {
                        Event::Changes(changes) => {
                            for change in changes {
                                revision = change.revision();
                                let there = matches!(change, Change::Put { .. });
                                apply(core, put, change.entry(), there);
                            }
                        }
                        Event::Progress(at) => revision = at,
                    }
                }
            }
            Err(error) => {
                tracing::warn!(resource = resource.plural, %error, "cannot watch; reading anew");
            }
        }
        tokio::time::sleep(RETRY).await;
        // What was deleted meanwhile is found by the watch, unless its revision is gone.
        match read(core, resource, put).await {
            Ok(at) => revision = revision.max(at),
            Err(error) => tracing::warn!(resource = resource.plural, %error, "cannot read"),
        }
    }
}

fn apply(core: &Core, put: Put, entry: &Entry, there: bool) {
    match object::decode(&entry.value, entry.modified) {
        Ok(object) => put(core, &object, there),
        Err(error) => tracing::error!(key = &*entry.key, %error, "cannot be decoded: has no effect"),
    }
}

fn decode<T: DeserializeOwned>(object: &Value, there: bool) -> Option<T> {
    if !there {
        return None;
    }
    match serde_json::from_value(object.clone()) {
        Ok(decoded) => Some(decoded),
        Err(error) => {
            tracing::error!(name = meta::name(object), %error, "cannot be decoded: has no effect");
            None
        }
    }
}

fn policy_of(core: &Core) -> RwLockWriteGuard<'_, Policy> {
    core.rbac.0.write().unwrap_or_else(PoisonError::into_inner)
}

fn put_role(core: &Core, object: &Value, there: bool) {
    policy_of(core).set_role(meta::namespace(object), meta::name(object), decode::<Role>(object, there));
}

fn put_binding(core: &Core, object: &Value, there: bool) {
    policy_of(core).set_binding(
        meta::namespace(object),
        meta::name(object),
        decode::<Binding>(object, there),
    );
}

fn put_level(core: &Core, object: &Value, there: bool) {
    core.flow.set_level(meta::name(object), decode(object, there));
}

fn put_schema(core: &Core, object: &Value, there: bool) {
    core.flow.set_schema(meta::name(object), decode(object, there));
}
