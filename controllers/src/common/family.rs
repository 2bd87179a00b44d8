//! What every controller does that owns objects by a selector: follow owners and owned, wait until the
//! caches show its own writes, claim what belongs to the owner, write the owner's status.
//!
//! A plan is made from what [`Family::look`] returns and from nothing older.

use std::sync::Arc;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde::Serialize;

use super::claim::{self, Namespaced};
use super::expect::Expectations;
use super::{Context, Result, Says};

/// A kind whose objects own others by a label selector.
pub(crate) trait Owner: Namespaced + Serialize {
    /// The finalizer that objects get with the reference to their owner, and lose with it.
    const FINALIZER: Option<&'static str> = None;

    /// The selector; an error where it cannot be used until the object changes.
    fn selector(&self) -> Result<Selector>;
}

/// The owners `O` and the owned `K` of one controller.
pub(crate) struct Family<O: Namespaced, K: Namespaced> {
    pub(crate) context: Context,
    pub(crate) owners: Informer<O>,
    pub(crate) owned: Informer<K>,
    /// Writes of the owned.
    pub(crate) written: Expectations,
    /// Writes of the owners.
    own: Expectations,
}

impl<O: Owner, K: Namespaced> Family<O, K> {
    /// Follows both kinds: `queue` gets the keys of the owners that a change concerns.
    pub(crate) fn new(context: &Context, name: &'static str, queue: &Queue<ObjectKey>) -> Self {
        let (owners, owned) = (context.informers.of::<O>(), context.informers.of::<K>());
        reconcile::feed(&context.supervisor, name, owners.subscribe(), queue, |change| [change.key.clone()]);
        let known = owners.clone();
        reconcile::feed(&context.supervisor, name, owned.subscribe(), queue, move |change| {
            concerned(&known, change)
        });
        let context = context.clone();
        Self { context, owners, owned, written: Expectations::default(), own: Expectations::default() }
    }

    /// The owner as the controller itself wrote it last, or newer; `None` if it is gone.
    ///
    /// # Errors
    /// The caches do not show the controller's own writes in time.
    pub(crate) async fn look(&self, key: &ObjectKey) -> Result<Option<Arc<O>>> {
        self.owners.synced().await;
        self.owned.synced().await;
        self.own.settled(key, &self.owners, &*self.context.clock).await?;
        let Some(owner) = self.owners.get(key) else {
            self.written.forget(key);
            self.own.forget(key);
            return Ok(None);
        };
        let api: Api<K> = Api::namespaced(self.context.client.clone(), &key.namespace);
        let shown = || self.owned.owned_by(owner.meta().uid.as_deref().unwrap_or_default());
        self.written.resolve(key, &api, &ListParams::default(), shown).await?;
        self.written.settled(key, &self.owned, &*self.context.clock).await?;
        // It may have changed meanwhile: what is owned must not be newer than who owns it.
        Ok(self.owners.get(key))
    }

    /// What belongs to `owner`, after adopting and releasing. Objects that are not `eligible` stay whose
    /// they are.
    ///
    /// # Errors
    /// An adoption or a release was refused.
    pub(crate) async fn claim(
        &self,
        key: &ObjectKey,
        owner: &O,
        selector: &Selector,
        eligible: impl Fn(&K) -> bool,
    ) -> Result<Vec<Arc<K>>> {
        let candidates = claim::candidates(&self.owned, owner.meta());
        let mut claims = claim::plan(owner.meta(), selector, candidates);
        claims.adopt.retain(|object| eligible(object));
        claims.release.retain(|object| eligible(object));
        let claimed = claim::apply(&self.context.client, owner, claims, O::FINALIZER).await?;
        Ok(self.written.without_deleted(key, claimed))
    }

    /// Notes that the owner itself was written.
    pub(crate) fn wrote_owner(&self, key: &ObjectKey, owner: &O) {
        self.own.wrote(key, owner);
    }

    /// Replaces the status of an owner by the one that it carries.
    ///
    /// # Errors
    /// The API server refuses; not that the owner is gone.
    pub(crate) async fn write_status(&self, key: &ObjectKey, owner: &O, what: &'static str) -> Result<()> {
        let api: Api<O> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), owner).await {
            Ok(written) => {
                self.own.wrote(key, &written);
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).says(what),
        }
    }
}

/// The owners that a change of an owned object concerns: its controller before and after, or, for an
/// orphan, all that may want to adopt it.
fn concerned<O: Owner, K: Namespaced>(owners: &Informer<O>, change: &Change<K>) -> Vec<ObjectKey> {
    let mut keys: Vec<_> =
        change.sides().filter_map(|object| claim::controller_key::<O>(object.meta())).collect();
    keys.dedup();
    let orphan = change.new.as_ref().filter(|object| claim::controller_of(object.meta()).is_none());
    if let Some(object) = orphan {
        let matches = |owner: &&Arc<O>| {
            let selector = owner.selector().ok().filter(|selector| !selector.is_everything());
            selector.is_some_and(|selector| selector.matches_optional(object.meta().labels.as_ref()))
        };
        let owners = owners.list_in(&change.key.namespace);
        keys.extend(owners.iter().filter(matches).map(|owner| ObjectKey::of(&**owner)));
    }
    keys
}
