//! What makes a pod of a StatefulSet who it is: its ordinal, from which follow its name, its host name and its claims.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::common::claim::controller_reference;

/// The label that holds the pod's own name: a Service may select a single pod by it.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label that holds the ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// The label that holds the name of the revision whose template the pod has.
const REVISION: &str = "controller-revision-hash";

/// The ordinal in a pod's name; `None` if the set has no such pods.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let ordinal: i32 = digits.parse().ok()?;
    // One name for one ordinal: neither a sign nor leading zeros.
    (ordinal >= 0 && ordinal.to_string() == digits).then_some(ordinal)
}

/// The revision whose template the pod has; empty if none.
pub(super) fn revision(pod: &Pod) -> &str {
    pod.labels().get(REVISION).map(String::as_str).unwrap_or_default()
}

/// The templates of claims.
pub(super) fn templates(spec: &StatefulSetSpec) -> &[PersistentVolumeClaim] {
    spec.volume_claim_templates.as_deref().unwrap_or_default()
}

/// The name of the claim that a template stands for.
pub(super) fn claim_name(set: &str, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{set}-{ordinal}", template.name_any())
}

/// Whether the set has claims of this name.
pub(super) fn has_claim(set: &StatefulSet, claim: &str) -> bool {
    let name = set.name_any();
    let templates = set.spec.as_ref().map(templates).unwrap_or_default();
    templates.iter().any(|template| {
        let rest = claim.strip_prefix(&template.name_any()).and_then(|rest| rest.strip_prefix('-'));
        rest.is_some_and(|pod| ordinal(&name, pod).is_some())
    })
}

/// The claim of a template, for the pod of an ordinal. It carries the labels by which the set selects.
pub(super) fn claim(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    template: &PersistentVolumeClaim,
    ordinal: i32,
) -> PersistentVolumeClaim {
    let meta = &template.metadata;
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(claim_name(&set.name_any(), template, ordinal)),
            namespace: set.namespace(),
            labels: Some(labels),
            annotations: meta.annotations.clone(),
            finalizers: meta.finalizers.clone(),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// The labels that the pod of a name and an ordinal must have.
pub(super) fn labels(name: &str, ordinal: i32) -> BTreeMap<String, String> {
    [(POD_NAME.to_owned(), name.to_owned()), (POD_INDEX.to_owned(), ordinal.to_string())].into()
}

/// Whether the pod says of itself who it is.
pub(super) fn is_labelled(pod: &Pod) -> bool {
    pod.labels().get(POD_NAME) == pod.metadata.name.as_ref()
}

/// The pod of an ordinal, by the template of a revision. Its claims are volumes by the names of their templates,
/// whatever volumes of these names the template has.
pub(super) fn pod(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    (revision, template): (&str, &PodTemplateSpec),
    ordinal: i32,
) -> Pod {
    let name = format!("{}-{ordinal}", set.name_any());
    let meta = template.metadata.clone().unwrap_or_default();
    let mut all = meta.labels.unwrap_or_default();
    all.extend(labels(&name, ordinal));
    all.insert(REVISION.to_owned(), revision.to_owned());
    let mut pod_spec = template.spec.clone().unwrap_or_default();
    pod_spec.hostname = Some(name.clone());
    pod_spec.subdomain.clone_from(&spec.service_name);
    let claimed = templates(spec);
    let volumes = pod_spec.volumes.get_or_insert_default();
    volumes.retain(|volume| claimed.iter().all(|template| template.name_any() != volume.name));
    volumes.extend(claimed.iter().map(|template| {
        let claim_name = claim_name(&set.name_any(), template, ordinal);
        let source = PersistentVolumeClaimVolumeSource { claim_name, read_only: None };
        Volume { name: template.name_any(), persistent_volume_claim: Some(source), ..Volume::default() }
    }));
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: set.namespace(),
            labels: Some(all),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: Some(pod_spec),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_names_that_the_set_would_give_have_an_ordinal() {
        assert_eq!(ordinal("web", "web-12"), Some(12));
        for other in
            ["web", "web-", "web-01", "web--1", "web-+1", "web-a", "web-0-1", "other-1", "web-99999999999"]
        {
            assert_eq!(ordinal("web", other), None, "{other}");
        }
    }

    #[test]
    fn a_pod_has_its_name_host_claims_and_labels() {
        let set: StatefulSet = serde_json::from_value(json!({"metadata": {"name": "db", "namespace": "n", "uid": "u"},
            "spec": {"serviceName": "peers", "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c"}],
                "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"tier": "gold"}}, "spec": {}}]}}))
        .unwrap();
        let spec = set.spec.as_ref().unwrap();
        let pod = pod(&set, spec, ("db-abc", &spec.template), 3);
        let pod_spec = pod.spec.as_ref().unwrap();
        assert_eq!((pod.name_any().as_str(), pod_spec.hostname.as_deref()), ("db-3", Some("db-3")));
        assert_eq!(pod_spec.subdomain.as_deref(), Some("peers"));
        let volumes = pod_spec.volumes.as_ref().unwrap();
        let claims: Vec<_> = volumes
            .iter()
            .map(|one| one.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.as_str()))
            .collect();
        assert_eq!(claims, [None, Some("data-db-3")]);
        let mut expected = labels("db-3", 3);
        expected.extend([("app", "db"), (REVISION, "db-abc")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(pod.labels(), &expected);
        assert!(is_labelled(&pod));
        let claim = claim(&set, spec, &templates(spec)[0], 3);
        assert_eq!(claim.name_any(), "data-db-3");
        assert_eq!(claim.labels().len(), 2);
        assert!(
            has_claim(&set, "data-db-3") && !has_claim(&set, "data-db-x") && !has_claim(&set, "logs-db-3")
        );
    }
}
