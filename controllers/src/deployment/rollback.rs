//! A rollback that is asked for by annotation. kubectl writes the old template itself; clients of the
//! long gone `extensions/v1beta1` API leave the revision in an annotation for the controller to follow.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::ResourceExt;

use super::revision;

/// The annotation that asks for a rollback to a revision; 0 is the one before the present.
pub(super) const ANNOTATION: &str = "deprecated.deployment.rollback.to";

/// What a rollback comes to.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The Deployment has to be written so.
    Template { deployment: Box<Deployment>, revision: i64 },
    /// Nothing changes but that the request is cleared.
    Nothing { reason: &'static str, message: String },
}

/// The revision that was asked for, if any. A Deployment that is being deleted goes nowhere.
pub(super) fn requested(deployment: &Deployment) -> Option<i64> {
    let going = deployment.metadata.deletion_timestamp.is_some();
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let value = deployment.annotations().get(ANNOTATION).filter(|_| !going && !paused);
    value.and_then(|value| value.parse().ok())
}

/// Decides about a rollback to `revision`.
pub(super) fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], revision: i64) -> Outcome {
    let not_found = |message: &str| Outcome::Nothing {
        reason: "DeploymentRollbackRevisionNotFound",
        message: message.to_owned(),
    };
    let wanted = if revision == 0 { last(sets) } else { revision };
    if wanted == 0 {
        return not_found("Unable to find last revision.");
    }
    let Some(set) = sets.iter().find(|set| revision::of(set) == wanted) else {
        return not_found("Unable to find the revision to rollback to.");
    };
    let mut written = deployment.clone();
    let old = set.spec.as_ref().and_then(|spec| spec.template.clone());
    let (Some(mut template), Some(spec)) = (old, written.spec.as_mut()) else {
        return not_found("Unable to find the revision to rollback to.");
    };
    if revision::same_template(&spec.template, &template) {
        let name = deployment.name_any();
        let message =
            format!("The rollback revision contains the same template as current deployment {name:?}");
        return Outcome::Nothing { reason: "DeploymentRollbackTemplateUnchanged", message };
    }
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(revision::HASH_LABEL);
    }
    spec.template = template;
    // The annotations go back with the template: the change-cause of a revision stays with it.
    let is_own = |key: &String| revision::OWN.contains(&key.as_str());
    let annotations = written.metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| is_own(key) && key != ANNOTATION);
    let others = set.annotations().iter().filter(|(key, _)| !is_own(key));
    annotations.extend(others.map(|(key, value)| (key.clone(), value.clone())));
    Outcome::Template { deployment: Box::new(written), revision: wanted }
}

/// The revision before the newest; 0 if there is none.
fn last(sets: &[Arc<ReplicaSet>]) -> i64 {
    let mut revisions: Vec<i64> = sets.iter().map(|set| revision::of(set)).collect();
    revisions.sort_unstable();
    revisions.into_iter().rev().nth(1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetSpec};
    use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};

    use super::*;

    fn template(node: &str) -> PodTemplateSpec {
        let spec = PodSpec { node_name: Some(node.to_owned()), ..PodSpec::default() };
        PodTemplateSpec { metadata: None, spec: Some(spec) }
    }

    fn set(revision: i64, cause: &str) -> Arc<ReplicaSet> {
        let mut set = ReplicaSet::default();
        let annotations =
            [(revision::REVISION.to_owned(), revision.to_string()), ("cause".to_owned(), cause.to_owned())];
        set.metadata.annotations = Some(annotations.into());
        let template = Some(template(cause));
        set.spec = Some(ReplicaSetSpec { template, ..ReplicaSetSpec::default() });
        Arc::new(set)
    }

    #[test]
    fn a_rollback_brings_template_and_annotations_of_the_revision() {
        let mut deployment = Deployment::default();
        deployment.metadata.annotations =
            Some([(ANNOTATION.to_owned(), "0".to_owned()), ("cause".to_owned(), "b".to_owned())].into());
        deployment.spec = Some(DeploymentSpec { template: template("b"), ..DeploymentSpec::default() });
        let sets = [set(1, "a"), set(2, "b")];
        assert_eq!(requested(&deployment), Some(0));
        let Outcome::Template { deployment: written, revision: 1 } = plan(&deployment, &sets, 0) else {
            panic!("no rollback to the last revision")
        };
        assert!(revision::same_template(&written.spec.as_ref().unwrap().template, &template("a")));
        assert_eq!((written.annotations()["cause"].as_str(), requested(&written)), ("a", None));
        for (revision, expected) in
            [(2, "DeploymentRollbackTemplateUnchanged"), (7, "DeploymentRollbackRevisionNotFound")]
        {
            let Outcome::Nothing { reason, .. } = plan(&deployment, &sets, revision) else {
                panic!("{revision}")
            };
            assert_eq!(reason, expected);
        }
    }
}
