//! The fields of each kind that a field selector may name, besides `metadata.name` and
//! `metadata.namespace`.

use decapod_api::resource::Resource;

/// The fields of a kind, as dotted paths into the object.
pub(crate) fn of(resource: &Resource) -> &'static [&'static str] {
    match (resource.group, resource.plural) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "events") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "namespaces") => &["status.phase"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "replicationcontrollers") => &["status.replicas"],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        ("resource.k8s.io", "resourceslices") => &["spec.nodeName", "spec.driver"],
        _ => &[],
    }
}

/// Whether a field selector of a kind may name a field.
pub(crate) fn is_known(resource: &Resource, field: &str) -> bool {
    match (resource.group, resource.plural, field) {
        (_, _, "metadata.name") => true,
        // Kinds without namespaces do not know it, unless nothing is said of their fields.
        (_, _, "metadata.namespace") => resource.namespaced() || of(resource).is_empty(),
        // Kubernetes takes it and has no value for it: it compares as empty.
        ("", "pods", "status.podIPs") => true,
        _ => of(resource).contains(&field),
    }
}

/// The name of a field that old clients call otherwise.
pub(crate) fn renamed(resource: &Resource, field: &str) -> Option<&'static str> {
    match (resource.group, resource.plural, field) {
        ("", "pods", "spec.host") => Some("spec.nodeName"),
        _ => None,
    }
}

/// What a client is told that selects by a field that its kind has no selector for.
pub(crate) fn refusal(resource: &Resource, field: &str) -> String {
    match (resource.group, resource.plural) {
        ("batch", "jobs") => format!("field label {field:?} not supported for Job"),
        ("resource.k8s.io", "resourceslices") => format!(
            "field label not supported for resource.k8s.io/{}, Kind=ResourceSlice: {field}",
            resource.version
        ),
        _ if of(resource).is_empty() => {
            format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
        }
        _ => format!("field label not supported: {field}"),
    }
}

/// Where in the object a field is: mostly where its name says.
pub(crate) fn path(field: &str) -> &str {
    match field {
        "status.successful" => "status.succeeded",
        "source" => "source.component",
        other => other,
    }
}

/// Where a field is if it is not at its [`path`]: newer events have no `source`.
pub(crate) fn otherwise(field: &str) -> Option<&'static str> {
    (field == "source").then_some("reportingComponent")
}

/// What an absent field compares as.
pub(crate) fn default(field: &str) -> &'static str {
    match field {
        "spec.unschedulable" | "spec.hostNetwork" => "false",
        "status.replicas" | "status.successful" => "0",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{core, row};

    #[test]
    fn a_refusal_says_which_fields_there_are() {
        assert_eq!(refusal(core("pods"), "spec.x"), "field label not supported: spec.x");
        assert_eq!(
            refusal(core("configmaps"), "data.key"),
            "\"data.key\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        assert_eq!(
            refusal(row("batch", "v1", "jobs"), "spec.x"),
            "field label \"spec.x\" not supported for Job"
        );
        assert_eq!(
            refusal(row("resource.k8s.io", "v1", "resourceslices"), "spec.x"),
            "field label not supported for resource.k8s.io/v1, Kind=ResourceSlice: spec.x"
        );
    }
}
