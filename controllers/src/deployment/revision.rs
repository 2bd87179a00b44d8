//! Revisions: which ReplicaSet stands for the present template, which for earlier ones, how a template
//! is named by its hash, and the annotations that `kubectl rollout` reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::common::claim;
use crate::common::template;
pub(super) use crate::common::template::{HASH_LABEL, same_template};

/// The revision of a ReplicaSet, and the present one of its Deployment.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions of a ReplicaSet that became current again.
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// What the Deployment asked for when the ReplicaSet was scaled last, without and with surge: tells a
/// scaling apart from a rollout, and gives the shares of a proportional scaling.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a Deployment that its ReplicaSets do not inherit.
pub(super) const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    super::rollback::ANNOTATION,
];

/// The longest history that an annotation keeps, in bytes.
const HISTORY_LIMIT: usize = 2000;

/// The longest name of an object, in bytes: that of a DNS subdomain.
const NAME_LIMIT: usize = 253;

/// The ReplicaSet of the present template (the oldest, should there be several), and all others from old
/// to young.
pub(super) fn partition(
    deployment: &Deployment,
    mut sets: Vec<Arc<ReplicaSet>>,
) -> (Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>) {
    sets.sort_by_key(|set| (set.metadata.creation_timestamp.clone(), set.metadata.name.clone()));
    let wanted = deployment.spec.as_ref().map(|spec| &spec.template);
    let is_new = |set: &Arc<ReplicaSet>| {
        let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        template.zip(wanted).is_some_and(|(template, wanted)| same_template(template, wanted))
    };
    let position = sets.iter().position(is_new);
    let new = position.map(|position| sets.remove(position));
    (new, sets)
}

/// The revision of a ReplicaSet; 0 if it has none.
pub(super) fn of(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// The annotations that the ReplicaSet of the present template must gain.
pub(super) fn annotations(
    deployment: &Deployment,
    set: &BTreeMap<String, String>,
    revision: i64,
) -> BTreeMap<String, String> {
    let inherited = deployment.annotations().iter().filter(|(key, _)| !OWN.contains(&key.as_str()));
    let mut gained: BTreeMap<String, String> = inherited
        .filter(|(key, value)| set.get(*key) != Some(*value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let old = set.get(REVISION);
    if old.and_then(|old| old.parse::<i64>().ok()).is_none_or(|old| old < revision) {
        gained.insert(REVISION.to_owned(), revision.to_string());
        if let Some(old) = old {
            gained.insert(REVISION_HISTORY.to_owned(), history(set.get(REVISION_HISTORY), old));
        }
    }
    gained
}

/// The history with one more revision; the oldest are dropped where it would grow too long.
fn history(before: Option<&String>, revision: &str) -> String {
    let mut revisions: Vec<&str> = before.map(|before| before.split(',').collect()).unwrap_or_default();
    revisions.retain(|known| !known.is_empty());
    revisions.push(revision);
    while revisions.len() > 1 && revisions.join(",").len() > HISTORY_LIMIT {
        revisions.remove(0);
    }
    revisions.join(",")
}

/// The ReplicaSet for the Deployment's present template.
pub(super) fn replica_set(deployment: &Deployment, replicas: i32, revision: i64, max: i32) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template::hash(&spec.template, collisions);
    let with_hash = |labels: Option<BTreeMap<String, String>>| {
        let mut labels = labels.unwrap_or_default();
        labels.insert(HASH_LABEL.to_owned(), hash.clone());
        Some(labels)
    };
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    meta.labels = with_hash(meta.labels.take());
    let labels = meta.labels.clone();
    let mut selector = spec.selector;
    selector.match_labels = with_hash(selector.match_labels);
    let mut annotations = annotations(deployment, &BTreeMap::new(), revision);
    annotations.insert(DESIRED.to_owned(), spec.replicas.unwrap_or(1).to_string());
    annotations.insert(MAX.to_owned(), max.to_string());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(set_name(&deployment.name_any(), &hash)),
            namespace: deployment.namespace(),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![claim::controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// The name of a ReplicaSet: the Deployment's, cut where both would be too long for a name, and the hash.
fn set_name(deployment: &str, hash: &str) -> String {
    let room = NAME_LIMIT - 1 - hash.len();
    let cut = deployment.char_indices().map(|(at, _)| at).find(|at| *at >= room).unwrap_or(deployment.len());
    format!("{}-{hash}", &deployment[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_that_becomes_current_again_keeps_its_history() {
        let deployment = Deployment::default();
        let mut set: BTreeMap<_, _> = [(REVISION.to_owned(), "1".to_owned())].into();
        set.extend(annotations(&deployment, &set, 3));
        set.extend(annotations(&deployment, &set, 5));
        assert_eq!((set[REVISION].as_str(), set[REVISION_HISTORY].as_str()), ("5", "1,3"));
        assert!(annotations(&deployment, &set, 5).is_empty());
    }

    #[test]
    fn annotations_are_inherited_but_for_kubectls() {
        let mut deployment = Deployment::default();
        let annotations_of = [("team".to_owned(), "a".to_owned()), (OWN[0].to_owned(), "{}".to_owned())];
        deployment.metadata.annotations = Some(annotations_of.into());
        let gained = annotations(&deployment, &BTreeMap::new(), 1);
        assert_eq!(gained.keys().collect::<Vec<_>>(), [REVISION, "team"]);
    }
}
