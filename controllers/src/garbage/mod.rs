//! The garbage collector: deletes what lost its last owner, holds back owners that are deleted in the
//! foreground until their dependents are gone, and cuts the ties of orphaned dependents.
//!
//! It mirrors the metadata of all kinds. The mirror only raises suspicion: that an owner does not exist,
//! and what the object says of its owners, is asked of the API server before anything is deleted, and
//! the deletion carries the uid and the revision that were looked at.

mod monitors;
mod plan;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::clock;
use decapod_client::error::ErrorExt;
use decapod_client::event::{Recorder, Severity};
use decapod_client::informer::{Change, ObjectMetadata};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::DynamicObject;
use serde_json::json;
use tokio::sync::Notify;

use crate::common::catalog::{Catalog, Kind};
use crate::common::{Context, Error, Result, Says};
use monitors::{Monitor, Monitors};
use plan::{Action, FOREGROUND, ORPHAN, Owner};

const NAME: &str = "garbage-collector-controller";

/// Discovery is looked at this often though nothing tells of a new kind (aggregated APIs tell nothing).
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);

/// How long the start, or a new kind, may hold up the work until its mirror is complete.
const SYNC_PATIENCE: Duration = Duration::from_secs(30);

/// Places where owners are known not to be. A uid never comes back, so forgetting is the only reason to bound
/// this: it saves questions, no more.
const ABSENT_REMEMBERED: usize = 10_000;

/// An object of any kind: the name of the kind in the catalog, and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Item {
    kind: Arc<str>,
    key: ObjectKey,
}

struct Collector {
    context: Context,
    catalog: Catalog,
    monitors: Monitors,
    queue: Queue<Item>,
    absent: Mutex<HashSet<Place>>,
    kinds_changed: Notify,
    recorder: Recorder,
}

/// Where an owner was looked for: its reference and the namespace of who refers to it. The same uid may
/// be absent in one namespace and alive in another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    uid: String,
    api_version: String,
    kind: String,
    name: String,
    namespace: String,
}

impl Place {
    fn new(meta: &ObjectMeta, owner: &OwnerReference) -> Self {
        Self {
            uid: owner.uid.clone(),
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
        }
    }
}

/// Starts the collector with so many workers.
pub(crate) fn start(context: &Context, catalog: &Catalog, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let collector = Arc::new(Collector {
        context: context.clone(),
        catalog: catalog.clone(),
        monitors: Monitors::default(),
        queue: queue.clone(),
        absent: Mutex::default(),
        kinds_changed: Notify::new(),
        recorder: context.recorder(NAME),
    });
    let watching = collector.clone();
    context.supervisor.spawn_until_shutdown(NAME, async move { watching.follow_discovery().await });
    reconcile::run(&context.supervisor, NAME, &queue, workers, move |item| {
        let collector = collector.clone();
        async move { collector.reconcile(&item).await }
    });
}

impl Collector {
    /// Keeps a mirror of every kind that can be listed, watched and deleted.
    async fn follow_discovery(self: Arc<Self>) {
        loop {
            match self.catalog.refresh().await {
                Ok(kinds) => self.monitor(&kinds),
                Err(error) => {
                    let error = decapod_client::error::chain(&error);
                    tracing::debug!(error, "cannot look at discovery");
                }
            }
            let known = !self.monitors.is_empty();
            let period = if known { DISCOVERY_PERIOD } else { Duration::from_secs(1) };
            let changed = self.kinds_changed.notified();
            // Both outcomes mean the same: look again.
            clock::timeout(&*self.context.clock, period, changed).await;
        }
    }

    fn monitor(self: &Arc<Self>, kinds: &[Kind]) {
        for monitor in self.monitors.update(kinds, &self.context.informers) {
            let (collector, mut changes) = (self.clone(), monitor.informer.subscribe());
            let gone = monitor.gone.clone();
            // The subscription would keep the mirror of a kind that is no longer served.
            drop(monitor.informer);
            self.context.supervisor.spawn_until_shutdown(NAME, async move {
                loop {
                    tokio::select! {
                        () = gone.cancelled() => return,
                        change = changes.next() => match change {
                            Some(change) => collector.observe(&monitor.name, &change),
                            None => return,
                        },
                    }
                }
            });
        }
    }

    /// Raises suspicion: enqueues what a change may make garbage, and what waits for it.
    fn observe(&self, kind: &Arc<str>, change: &Change<ObjectMetadata>) {
        if &**kind == "customresourcedefinitions.apiextensions.k8s.io" {
            self.kinds_changed.notify_one();
        }
        let old = change.old.as_ref().map(|object| &object.metadata);
        let new = change.new.as_ref().map(|object| &object.metadata);
        if let Some(new) = new {
            let item = Item { kind: kind.clone(), key: change.key.clone() };
            let deleting = plan::is_waiting(new)
                || (new.deletion_timestamp.is_some() && plan::has_finalizer(new, ORPHAN));
            if plan::is_waiting(new) {
                self.enqueue_dependents(new);
            }
            if deleting || self.is_suspect(new) {
                self.queue.add(item);
            }
        }
        let Some(old) = old else { return };
        if new.is_none_or(|new| new.uid != old.uid) {
            self.enqueue_dependents(old);
        }
        // Owners may have waited for this object, or for a reference that it no longer has.
        let references = |meta: &ObjectMeta| meta.owner_references.clone();
        if new.is_none_or(|new| new.uid != old.uid || references(new) != references(old)) {
            self.enqueue_waiting_owners(old);
        }
    }

    /// Whether the mirrors show all owners of an object alive.
    fn is_suspect(&self, meta: &ObjectMeta) -> bool {
        meta.owner_references.iter().flatten().any(|owner| {
            let shown = self.monitors.owner(meta, owner);
            shown.is_none_or(|shown| plan::is_waiting(&shown.metadata))
        })
    }

    fn enqueue_dependents(&self, owner: &ObjectMeta) {
        let Some(uid) = &owner.uid else { return };
        for (kind, dependent) in self.monitors.dependents(uid) {
            self.queue.add(Item { kind, key: ObjectKey::of_meta(&dependent.metadata) });
        }
    }

    fn enqueue_waiting_owners(&self, meta: &ObjectMeta) {
        for owner in meta.owner_references.iter().flatten() {
            let Some((kind, key)) = self.monitors.locate(meta, owner) else { continue };
            let shown = self.monitors.get(&kind, &key);
            if shown.is_some_and(|shown| plan::is_waiting(&shown.metadata)) {
                self.queue.add(Item { kind, key });
            }
        }
    }

    async fn reconcile(&self, item: &Item) -> Result<Option<Duration>> {
        let synced = self.monitors.synced();
        if clock::timeout(&*self.context.clock, SYNC_PATIENCE, synced).await.is_none() {
            tracing::warn!(kinds = ?self.monitors.unsynced(), "not all kinds are mirrored; collecting without");
        }
        let Some(monitor) = self.monitors.find(&item.kind) else { return Ok(None) };
        let api = self.api(&monitor, &item.key);
        let live = api.get_metadata_opt(&item.key.name).await.says("look at an object")?;
        let Some(meta) = live.map(|live| live.metadata) else { return Ok(None) };
        if meta.deletion_timestamp.is_some() {
            if plan::has_finalizer(&meta, ORPHAN) {
                self.orphan(&api, &meta).await?;
            } else if plan::has_finalizer(&meta, FOREGROUND) {
                self.release_if_alone(&api, &meta).await?;
            }
            return Ok(None);
        }
        let (owners, unseen) = self.owners(&monitor.kind, &meta).await?;
        let dependents = self.monitors.dependents(meta.uid.as_deref().unwrap_or_default());
        let dependents: Vec<_> = dependents.iter().map(|(_, dependent)| &dependent.metadata).collect();
        let action = plan::decide(&meta, &owners, &dependents);
        self.apply(&api, &item.kind, &meta, action).await?;
        // An owner that exists but is not mirrored yet could go without a word: look once more.
        Ok(unseen.then_some(Duration::from_secs(2)))
    }

    /// What the owners of an object are, and whether one of them exists that the mirrors do not show.
    async fn owners(&self, kind: &Kind, meta: &ObjectMeta) -> Result<(Vec<(OwnerReference, Owner)>, bool)> {
        let mut owners = Vec::new();
        let mut unseen = false;
        for reference in meta.owner_references.iter().flatten() {
            let state = match self.monitors.owner(meta, reference) {
                Some(shown) if plan::is_waiting(&shown.metadata) => Owner::Waiting,
                Some(_) => Owner::Solid,
                None => {
                    let state = self.ask(kind, meta, reference).await?;
                    unseen |= state != Owner::Absent;
                    state
                }
            };
            owners.push((reference.clone(), state));
        }
        Ok((owners, unseen))
    }

    /// Asks the API server for an owner that the mirrors do not show.
    async fn ask(&self, of: &Kind, meta: &ObjectMeta, reference: &OwnerReference) -> Result<Owner> {
        let place = Place::new(meta, reference);
        if self.lock_absent().contains(&place) {
            return Ok(Owner::Absent);
        }
        let Some(kind) = self.monitors.kind_of(reference, &self.catalog.kinds()) else {
            self.kinds_changed.notify_one();
            let (api_version, kind) = (reference.api_version.clone(), reference.kind.clone());
            return Err(Error::UnknownKind { api_version, kind });
        };
        let namespace = meta.namespace.clone().unwrap_or_default();
        if kind.namespaced && namespace.is_empty() {
            // A cluster-scoped object cannot say in which namespace its owner is: never collect it.
            self.tell_invalid(of, meta, reference);
            return Ok(Owner::Solid);
        }
        let api = dynamic(&self.context, &kind, &namespace);
        let live = api.get_metadata_opt(&reference.name).await.says("look at an owner")?;
        match live.filter(|live| live.metadata.uid.as_ref() == Some(&reference.uid)) {
            Some(live) if plan::is_waiting(&live.metadata) => Ok(Owner::Waiting),
            Some(_) => Ok(Owner::Solid),
            None => {
                if self.monitors.is_elsewhere(&kind, reference) {
                    self.tell_invalid(of, meta, reference);
                }
                let mut absent = self.lock_absent();
                if absent.len() >= ABSENT_REMEMBERED {
                    absent.clear();
                }
                absent.insert(place);
                Ok(Owner::Absent)
            }
        }
    }

    /// Tells whoever made a reference to an owner in another namespace that it counts for nothing.
    fn tell_invalid(&self, kind: &Kind, meta: &ObjectMeta, owner: &OwnerReference) {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let OwnerReference { api_version, kind: owner_kind, name, uid, .. } = owner;
        let message = format!(
            "ownerRef [{api_version}/{owner_kind}, namespace: {namespace}, name: {name}, uid: {uid}] does not exist in namespace {namespace:?}"
        );
        let object = ObjectReference {
            api_version: Some(kind.resource.api_version.clone()),
            kind: Some(kind.resource.kind.clone()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        self.recorder.record(object, Severity::Warning, "OwnerRefInvalidNamespace", message);
    }

    async fn apply(
        &self,
        api: &Api<DynamicObject>,
        kind: &str,
        meta: &ObjectMeta,
        action: Action,
    ) -> Result<()> {
        match action {
            Action::Nothing => Ok(()),
            Action::DropOwners(uids) => {
                let references = some(plan::without_owners(meta, &uids));
                self.write_meta(api, meta, json!({"ownerReferences": references})).await
            }
            Action::Delete { policy, unblock } => {
                if unblock {
                    let mut references = meta.owner_references.clone().unwrap_or_default();
                    references.iter_mut().for_each(|one| one.block_owner_deletion = Some(false));
                    return self.write_meta(api, meta, json!({"ownerReferences": references})).await;
                }
                tracing::debug!(kind, name = meta.name, namespace = meta.namespace, ?policy, "collecting");
                self.delete(api, meta, policy).await
            }
        }
    }

    async fn delete(
        &self,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<()> {
        let parameters = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        match api.delete(meta.name.as_deref().unwrap_or_default(), &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).says("delete garbage"),
        }
    }

    /// Lets an owner go that was deleted in the foreground, once nothing blocks it; else sees to it that
    /// its dependents are deleted.
    async fn release_if_alone(&self, api: &Api<DynamicObject>, meta: &ObjectMeta) -> Result<()> {
        let uid = meta.uid.clone().unwrap_or_default();
        let mut blocked = false;
        for (kind, dependent) in self.monitors.dependents(&uid) {
            if plan::blocks(&dependent.metadata, &uid) {
                blocked = true;
            }
            if !plan::is_waiting(&dependent.metadata) {
                self.queue.add(Item { kind, key: ObjectKey::of_meta(&dependent.metadata) });
            }
        }
        // What the mirrors do not show yet they will, and then the owner is looked at again.
        if blocked || self.dependents_now(meta).await?.iter().any(|(_, one)| plan::blocks(one, &uid)) {
            return Ok(());
        }
        self.remove_finalizer(api, meta, FOREGROUND).await
    }

    /// Cuts the ties of all dependents, then lets the owner go.
    async fn orphan(&self, api: &Api<DynamicObject>, meta: &ObjectMeta) -> Result<()> {
        let uid = meta.uid.clone().unwrap_or_default();
        for (monitor, dependent) in self.dependents_now(meta).await? {
            let key = ObjectKey::of_meta(&dependent);
            let references = some(plan::without_owners(&dependent, std::slice::from_ref(&uid)));
            let api = self.api(&monitor, &key);
            self.write_meta(&api, &dependent, json!({"ownerReferences": references})).await?;
        }
        self.remove_finalizer(api, meta, ORPHAN).await
    }

    /// The dependents of an owner, by what exists and not by the mirrors: one that these do not show yet would
    /// outlive an owner that waits for it, or be collected though it was to be left. Those of an owner in a namespace are in it too.
    async fn dependents_now(&self, owner: &ObjectMeta) -> Result<Vec<(Monitor, ObjectMeta)>> {
        let namespace = owner.namespace.clone().unwrap_or_default();
        let mut found = Vec::new();
        for monitor in self.monitors.all() {
            if !namespace.is_empty() && !monitor.kind.namespaced {
                continue;
            }
            let api: Api<DynamicObject> = match namespace.is_empty() {
                true => Api::all_with(self.context.client.clone(), &monitor.kind.resource),
                false => dynamic(&self.context, &monitor.kind, &namespace),
            };
            let objects = match api.list_metadata(&ListParams::default()).await {
                // The kind is no longer served.
                Err(error) if error.is_not_found() => continue,
                listed => listed.says("list the dependents of an owner")?,
            };
            let owned = objects.items.into_iter().map(|object| object.metadata).filter(|meta| {
                meta.owner_references.iter().flatten().any(|one| Some(&one.uid) == owner.uid.as_ref())
            });
            found.extend(owned.map(|meta| (monitor.clone(), meta)));
        }
        Ok(found)
    }

    async fn remove_finalizer(
        &self,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
        finalizer: &str,
    ) -> Result<()> {
        let finalizers = meta.finalizers.iter().flatten().filter(|one| *one != finalizer);
        let finalizers = some(finalizers.collect());
        self.write_meta(api, meta, json!({"finalizers": finalizers})).await
    }

    /// Patches the metadata of an object as it was looked at; a change meanwhile is a conflict.
    async fn write_meta(
        &self,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
        mut fields: serde_json::Value,
    ) -> Result<()> {
        fields["uid"] = json!(meta.uid);
        fields["resourceVersion"] = json!(meta.resource_version);
        let patch = Patch::Merge(json!({"metadata": fields}));
        let name = meta.name.as_deref().unwrap_or_default();
        match api.patch_metadata(name, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).says("write the metadata of an object"),
        }
    }

    fn api(&self, monitor: &Monitor, key: &ObjectKey) -> Api<DynamicObject> {
        dynamic(&self.context, &monitor.kind, &key.namespace)
    }

    fn lock_absent(&self) -> std::sync::MutexGuard<'_, HashSet<Place>> {
        // A set of what is absent is true in any state.
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A list that is dropped from an object altogether when it is empty.
fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// The objects of a kind, in a namespace if it has any.
fn dynamic(context: &Context, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
    if kind.namespaced {
        Api::namespaced_with(context.client.clone(), namespace, &kind.resource)
    } else {
        Api::all_with(context.client.clone(), &kind.resource)
    }
}
