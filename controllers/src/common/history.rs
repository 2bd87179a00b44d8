//! The history of templates that StatefulSets and DaemonSets keep in ControllerRevisions: each holds a template as
//! a patch that brings it back, which is what `kubectl rollout undo` sends.
//!
//! A template that comes back gets its revision back, with a new number: pods that still have it are not replaced.

use std::collections::BTreeMap;
use std::sync::Arc;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::Informer;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::claim::{self, Namespaced};
use super::expect::Expectations;
use super::template::{self, same_template};
use super::{Context, Result, Says};

/// Names that are tried for one revision: each is free but for an accident of hashing, or for somebody who takes
/// them on purpose.
const NAMES: i32 = 16;

/// How the revisions of a kind are named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Naming {
    /// The label that holds the hash of the template.
    pub(crate) label: &'static str,
    /// The longest part of the owner's name that goes into the revision's, in bytes.
    pub(crate) prefix: usize,
}

/// The revisions of one kind of owner.
pub(crate) struct History {
    context: Context,
    revisions: Informer<ControllerRevision>,
    written: Expectations,
    naming: Naming,
}

/// The template as it is asked for now.
pub(crate) struct Present<'a, O> {
    pub(crate) owner: &'a O,
    pub(crate) template: &'a PodTemplateSpec,
    /// Names that were taken by other templates so far.
    pub(crate) collisions: i32,
}

/// What has to be written so that the newest revision is the present template.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing(usize),
    Renumber(usize, i64),
    Create(i64),
}

fn step(revisions: &[Arc<ControllerRevision>], template: &PodTemplateSpec) -> Step {
    let next = revisions.last().map_or(1, |newest| newest.revision + 1);
    match revisions.iter().rposition(|revision| holds(revision, template)) {
        Some(newest) if newest + 1 == revisions.len() => Step::Nothing(newest),
        Some(older) => Step::Renumber(older, next),
        None => Step::Create(next),
    }
}

/// The template that a revision holds; `None` if it holds none.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let template = revision.data.as_ref()?.0.get("spec")?.get("template")?;
    serde_json::from_value(template.clone()).ok()
}

/// Whether this is the revision of a template.
pub(crate) fn holds(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).is_some_and(|known| same_template(&known, template))
}

fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).expect("a template has string keys only");
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

impl History {
    pub(crate) fn new(context: &Context, naming: Naming) -> Self {
        let revisions = context.informers.of();
        Self { context: context.clone(), revisions, written: Expectations::default(), naming }
    }

    /// Forgets an owner that is gone.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.written.forget(key);
    }

    /// The owner's revisions from old to new, after adopting orphans.
    ///
    /// # Errors
    /// The cache lags, or an adoption was refused.
    pub(crate) async fn of<O: Namespaced>(
        &self,
        key: &ObjectKey,
        owner: &O,
        selector: &Selector,
    ) -> Result<Vec<Arc<ControllerRevision>>> {
        self.revisions.synced().await;
        let shown = || self.revisions.owned_by(owner.meta().uid.as_deref().unwrap_or_default());
        self.written.resolve(key, &self.api(key), &ListParams::default(), shown).await?;
        self.written.settled(key, &self.revisions, &*self.context.clock).await?;
        let mut claims =
            claim::plan(owner.meta(), selector, claim::candidates(&self.revisions, owner.meta()));
        // What once was a template of the owner stays that, whatever became of its labels.
        claims.release.clear();
        let claimed = claim::apply(&self.context.client, owner, claims, None).await?;
        let mut claimed = self.written.without_deleted(key, claimed);
        claimed.retain(|revision| revision.metadata.deletion_timestamp.is_none());
        claimed.sort_by_cached_key(|revision| {
            (revision.revision, revision.creation_timestamp(), revision.name_any())
        });
        Ok(claimed)
    }

    /// Makes the newest of `revisions` the one of the present template, and returns it with the collisions that
    /// were met so far.
    ///
    /// # Errors
    /// A write was refused.
    pub(crate) async fn establish<O: Namespaced>(
        &self,
        key: &ObjectKey,
        present: Present<'_, O>,
        revisions: &[Arc<ControllerRevision>],
    ) -> Result<(Arc<ControllerRevision>, i32)> {
        let collisions = present.collisions;
        match step(revisions, present.template) {
            Step::Nothing(index) => Ok((revisions[index].clone(), collisions)),
            Step::Renumber(index, number) => {
                let known = &revisions[index];
                let metadata = json!({"uid": known.uid(), "resourceVersion": known.resource_version()});
                let patch = Patch::Merge(json!({"metadata": metadata, "revision": number}));
                let patched = self.api(key).patch(&known.name_any(), &PatchParams::default(), &patch).await;
                let patched = patched.inspect_err(|error| self.written.failed(key, error));
                let patched = patched.says("give a revision a new number")?;
                self.written.wrote(key, &patched);
                Ok((Arc::new(patched), collisions))
            }
            Step::Create(number) => self.create(key, present, number).await,
        }
    }

    async fn create<O: Namespaced>(
        &self,
        key: &ObjectKey,
        present: Present<'_, O>,
        number: i64,
    ) -> Result<(Arc<ControllerRevision>, i32)> {
        let api = self.api(key);
        let last = present.collisions.saturating_add(NAMES);
        let mut collisions = present.collisions;
        loop {
            let revision = self.revision(&present, collisions, number);
            let error = match api.create(&PostParams::default(), &revision).await {
                Ok(created) => {
                    self.written.wrote(key, &created);
                    return Ok((Arc::new(created), collisions));
                }
                Err(error) if error.is_already_exists() => error,
                Err(error) => {
                    self.written.failed(key, &error);
                    return Err(error).says("create a revision");
                }
            };
            let live = api.get_opt(&revision.name_any()).await.says("look at a revision of the same name")?;
            let owner = present.owner.uid().unwrap_or_default();
            let is_ours = |live: &ControllerRevision| {
                claim::is_controlled_by(&live.metadata, &owner) && holds(live, present.template)
            };
            match live {
                // An earlier self made it; the cache will show it.
                Some(live) if is_ours(&live) => {
                    self.written.wrote(key, &live);
                    return Ok((Arc::new(live), collisions));
                }
                _ if collisions >= last => return Err(error).says("create a revision"),
                _ => collisions += 1,
            }
        }
    }

    fn revision<O: Namespaced>(
        &self,
        present: &Present<'_, O>,
        collisions: i32,
        number: i64,
    ) -> ControllerRevision {
        let (owner, template) = (present.owner, present.template);
        let hash = template::hash(template, (collisions > 0).then_some(collisions));
        let name = owner.name_any();
        let cut = name.char_indices().map(|(at, _)| at).find(|at| *at >= self.naming.prefix);
        let name = format!("{}-{hash}", &name[..cut.unwrap_or(name.len())]);
        let labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
        let mut labels: BTreeMap<_, _> = labels.unwrap_or_default();
        labels.insert(self.naming.label.to_owned(), hash);
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: owner.namespace(),
                labels: Some(labels),
                annotations: owner.meta().annotations.clone(),
                owner_references: Some(vec![claim::controller_reference(owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(data(template))),
            revision: number,
        }
    }

    /// Deletes the oldest revisions that are not `live`, beyond as many as are to be kept; a negative limit keeps
    /// all.
    ///
    /// # Errors
    /// A deletion was refused.
    pub(crate) async fn truncate(
        &self,
        key: &ObjectKey,
        revisions: &[Arc<ControllerRevision>],
        limit: i32,
        live: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<()> {
        let Ok(limit) = usize::try_from(limit) else { return Ok(()) };
        let past: Vec<_> = revisions.iter().filter(|revision| !live(revision)).collect();
        for revision in &past[..past.len().saturating_sub(limit)] {
            let preconditions = Preconditions { uid: revision.uid(), resource_version: None };
            let parameters = DeleteParams::default().preconditions(preconditions);
            match self.api(key).delete(&revision.name_any(), &parameters).await {
                Ok(_) => self.written.deleted(key, &revision.uid().unwrap_or_default()),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => {
                    self.written.failed(key, &error);
                    return Err(error).says("delete an old revision");
                }
            }
        }
        Ok(())
    }

    fn api(&self, key: &ObjectKey) -> Api<ControllerRevision> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    fn template(host: &str) -> PodTemplateSpec {
        let spec = PodSpec { hostname: Some(host.to_owned()), ..PodSpec::default() };
        PodTemplateSpec { metadata: None, spec: Some(spec) }
    }

    fn revision(number: i64, host: &str) -> Arc<ControllerRevision> {
        let data = Some(RawExtension(data(&template(host))));
        Arc::new(ControllerRevision { data, revision: number, ..ControllerRevision::default() })
    }

    #[test]
    fn a_template_that_comes_back_gets_its_revision_back() {
        let revisions = [revision(1, "a"), revision(2, "b"), revision(4, "c")];
        assert_eq!(step(&[], &template("a")), Step::Create(1));
        assert_eq!(step(&revisions, &template("c")), Step::Nothing(2));
        assert_eq!(step(&revisions, &template("a")), Step::Renumber(0, 5));
        assert_eq!(step(&revisions, &template("d")), Step::Create(5));
        assert_eq!(template_of(&revisions[1]), Some(template("b")));
    }
}
