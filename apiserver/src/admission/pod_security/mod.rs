//! PodSecurity (KEP-2579): the Pod Security Standards, by the labels of namespaces.
//!
//! Pods that violate what a namespace enforces are refused. What would violate is warned of, also in
//! the templates of workloads, whose pods are refused only when they are made.

mod baseline;
mod checks;
mod config;
mod policy;
mod restricted;

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use decapod_api::meta;
use decapod_api::status::Error;
use serde_json::Value;

use self::checks::{detail, violations};
pub(crate) use self::config::Config;
use self::policy::{Level, Policies, Policy};
use super::{Attributes, Operation, Plugin};
use crate::registry::core;

/// Pods of a namespace that are looked at when what it enforces changes, as many as in Kubernetes: a
/// change of a label must not take long.
const MAX_PODS: usize = 3000;

/// What the audit log is told: under which policy a pod was admitted, and what it would violate.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce-policy";
const VIOLATIONS: &str = "pod-security.kubernetes.io/audit-violations";
/// Why nothing was looked at.
const EXEMPT: &str = "pod-security.kubernetes.io/exempt";

pub(super) struct PodSecurity;

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        let call = write.call;
        if write.operation == Operation::Delete {
            return false;
        }
        if call.resource.group.is_empty() && call.resource.plural == "pods" {
            return !matches!(call.subresource.as_str(), "binding" | "eviction" | "status");
        }
        call.subresource.is_empty()
            && (write.is("", "namespaces")
                || template_path(call.resource.group, call.resource.plural).is_some())
    }

    async fn validate(&self, write: &Attributes<'_>, object: &Value) -> Result<(), Error> {
        let call = write.call;
        if write.is("", "namespaces") {
            return namespace(write, object).await;
        }
        let is_pod = call.resource.plural == "pods";
        if is_pod && write.old.is_some_and(|old| !is_significant(old, object)) {
            return Ok(());
        }
        let config = &write.registry.admission.pod_security;
        for (exempt, why) in [
            (config.exempts_namespace(&call.namespace), "namespace"),
            (config.exempts_user(&call.user.username), "user"),
        ] {
            if exempt {
                crate::audit::annotate(EXEMPT, why);
                return Ok(());
            }
        }
        let Some(namespace) = write.registry.setting(core("namespaces"), "", &call.namespace).await? else {
            return Err(Error::Internal(format!("failed to lookup namespace \"{}\"", call.namespace)));
        };
        let (policies, _) = Policies::of(&meta::labels(&namespace), config.defaults);
        let (group, plural) = (call.resource.group, call.resource.plural);
        let pod = if is_pod { Some(object) } else { template_of(group, plural, object) };
        let Some(pod) = pod.filter(|_| !policies.all_privileged()) else { return Ok(()) };
        if config.exempts_runtime(&pod["spec"]) {
            crate::audit::annotate(EXEMPT, "runtimeClass");
            return Ok(());
        }
        if is_pod {
            crate::audit::annotate(ENFORCED, policies.enforce.to_string());
            let found = told(policies.enforce, object);
            if let Some(why) = found {
                return Err(call.forbidden(format!("violates PodSecurity \"{}\": {why}", policies.enforce)));
            }
        }
        note(write, policies, pod);
        Ok(())
    }
}

/// What a pod, or a template, violates of a policy.
fn told(policy: Policy, pod: &Value) -> Option<String> {
    detail(&violations(policy, &pod["metadata"], &pod["spec"]))
}

/// Warns the client and notes for auditors what would violate.
fn note(write: &Attributes<'_>, policies: Policies, pod: &Value) {
    if let Some(why) = told(policies.warn, pod) {
        write.call.warn(format!("would violate PodSecurity \"{}\": {why}", policies.warn));
    }
    if let Some(why) = told(policies.audit, pod) {
        crate::audit::annotate(
            VIOLATIONS,
            format!("would violate PodSecurity \"{}\": {why}", policies.audit),
        );
    }
}

/// Where in a workload its pods' template is.
fn template_path(group: &str, plural: &str) -> Option<&'static str> {
    match (group, plural) {
        ("", "podtemplates") => Some("/template"),
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "daemonsets" | "statefulsets")
        | ("batch", "jobs") => Some("/spec/template"),
        ("batch", "cronjobs") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn template_of<'a>(group: &str, plural: &str, object: &'a Value) -> Option<&'a Value> {
    object.pointer(template_path(group, plural)?).filter(|template| template.is_object())
}

/// Whether an update changes what is checked of a pod: its images, or its ephemeral containers.
fn is_significant(old: &Value, new: &Value) -> bool {
    let images = |pod: &Value| -> BTreeMap<String, Value> {
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        let all = lists.iter().flat_map(|field| pod["spec"][field].as_array().into_iter().flatten());
        all.map(|container| (checks::name(container), container["image"].clone())).collect()
    };
    images(old) != images(new)
}

/// Labels must make sense; where they enforce more than before, the client learns what is there.
async fn namespace(write: &Attributes<'_>, object: &Value) -> Result<(), Error> {
    let config = &write.registry.admission.pod_security;
    let (new, errors) = Policies::of(&meta::labels(object), config.defaults);
    let before = write.old.map(|old| Policies::of(&meta::labels(old), config.defaults));
    if !errors.is_empty() && before.as_ref().is_none_or(|(_, before)| *before != errors) {
        return Err(write.call.invalid(&write.call.name, errors));
    }
    let exempt = config.exempts_namespace(&write.call.name);
    let Some((old, _)) = before else {
        if exempt {
            ignored(write, new, object);
        }
        return Ok(());
    };
    let relaxed = new.enforce.minor == old.enforce.minor && new.enforce.level <= old.enforce.level;
    if new.enforce == old.enforce || new.enforce.level == Level::Privileged || relaxed {
        return Ok(());
    }
    if exempt {
        ignored(write, new, object);
        return Ok(());
    }
    let pods = write.registry.all(core("pods"), &write.call.name).await?;
    for warning in standing_violations(&write.call.name, new.enforce, &pods) {
        write.call.warn(warning);
    }
    Ok(())
}

/// Warns that the labels of an exempt namespace have no effect.
fn ignored(write: &Attributes<'_>, policies: Policies, object: &Value) {
    if policies.all_privileged() || policies == write.registry.admission.pod_security.defaults {
        return;
    }
    let labels = meta::labels(object);
    let said = [("enforce", policies.enforce), ("audit", policies.audit), ("warn", policies.warn)]
        .into_iter()
        .filter(|(mode, policy)| {
            let keys = ["", "-version"].map(|end| format!("pod-security.kubernetes.io/{mode}{end}"));
            policy.level != Level::Privileged && keys.iter().any(|key| labels.contains_key(key.as_str()))
        })
        .map(|(mode, policy)| format!("{mode}={policy}"))
        .collect::<Vec<_>>();
    write.call.warn(format!(
        "namespace {:?} is exempt from Pod Security, and the policy ({}) will be ignored",
        write.call.name,
        said.join(", ")
    ));
}

/// What the pods of a namespace violate of what it is to enforce from now on.
fn standing_violations(namespace: &str, enforce: Policy, pods: &[Value]) -> Vec<String> {
    // Pods of one controller are alike: one of each first.
    let mut seen = HashSet::new();
    let (first, rest): (Vec<&Value>, Vec<&Value>) = pods.iter().partition(|pod| {
        let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let controller = owners.filter(|owner| owner["controller"] == true).find_map(|o| o["uid"].as_str());
        controller.is_none_or(|uid| seen.insert(uid.to_owned()))
    });
    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in first.into_iter().chain(rest).take(MAX_PODS) {
        let reasons = violations(enforce, &pod["metadata"], &pod["spec"]);
        if !reasons.is_empty() {
            let reasons: Vec<&str> = reasons.iter().map(|violation| violation.reason.as_str()).collect();
            found.entry(reasons.join(", ")).or_default().push(meta::name(pod));
        }
    }
    let mut warnings = Vec::new();
    if pods.len() > MAX_PODS {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
            pods.len()
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{enforce}\""
        ));
    }
    let mut told: Vec<String> = found
        .into_iter()
        .map(|(reasons, names)| {
            let first = names.iter().min().copied().unwrap_or_default();
            match names.len() {
                1 => format!("{first}: {reasons}"),
                2 => format!("{first} (and 1 other pod): {reasons}"),
                more => format!("{first} (and {} other pods): {reasons}", more - 1),
            }
        })
        .collect();
    told.sort();
    warnings.extend(told);
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn standing_pods_are_told_together() {
        let pod = |name: &str, owner: Value, privileged: bool| {
            json!({"metadata": {"name": name, "ownerReferences": owner}, "spec": {"containers": [
                {"name": "c", "securityContext": {"privileged": privileged}}]}})
        };
        let owner = json!([{"controller": true, "uid": "u"}]);
        let pods = [
            pod("b", owner.clone(), true),
            pod("a", owner, true),
            pod("c", Value::Null, true),
            pod("fine", Value::Null, false),
        ];
        let baseline = Policy { level: Level::Baseline, minor: None };
        assert_eq!(
            standing_violations("ns", baseline, &pods),
            [
                "existing pods in namespace \"ns\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "a (and 2 other pods): privileged"
            ]
        );
        assert!(standing_violations("ns", baseline, &pods[3..]).is_empty());
    }

    #[test]
    fn only_images_and_new_containers_matter_to_an_update() {
        let old = json!({"spec": {"containers": [{"name": "c", "image": "a"}], "nodeName": "n"}});
        let mut new = old.clone();
        new["spec"]["nodeName"] = "m".into();
        assert!(!is_significant(&old, &new));
        new["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "b"}]);
        assert!(is_significant(&old, &new));
    }
}
