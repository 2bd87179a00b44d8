//! What an object says that is allowed, and most likely not what is meant: told in `Warning` headers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::field::Path;
use crate::names;
use crate::resource::Resource;

/// Node labels that other labels took the place of.
const NODE_LABELS: [(&str, &str); 7] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    (
        "failure-domain.beta.kubernetes.io/region",
        "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead",
    ),
    (
        "failure-domain.beta.kubernetes.io/zone",
        "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead",
    ),
    (
        "beta.kubernetes.io/instance-type",
        "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead",
    ),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    (
        "scheduler.alpha.kubernetes.io/preferAvoidPods",
        "deprecated since v1.22; use Taints and Tolerations instead",
    ),
];

/// Annotations of pods that do nothing any more.
const POD_ANNOTATIONS: [(&str, &str); 3] = [
    (
        "scheduler.alpha.kubernetes.io/critical-pod",
        "non-functional in v1.16+; use the \"priorityClassName\" field instead",
    ),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    (
        "security.alpha.kubernetes.io/unsafe-sysctls",
        "non-functional in v1.11+; use the \"sysctls\" field instead",
    ),
];

/// Volumes whose plugins are gone.
const VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";
const STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// What every request for a kind is answered with, as the kind itself is deprecated.
pub fn of_kind(resource: &Resource) -> Option<&'static str> {
    (resource.group.is_empty() && resource.plural == "endpoints")
        .then_some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
}

/// What there is to say of a write: of a new object, or of one that takes the place of another.
pub fn of_write(resource: &Resource, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut found = Vec::new();
    match (resource.group, resource.plural) {
        // Pods are mostly updated by components, which do not read warnings.
        ("", "pods") if old.is_some() => return found,
        ("", "pods") => {
            dns_label(new, "the Pod's hostname", &mut found);
            pod(new, &Path::root(), &mut found);
        }
        ("", "services") => service(&new["spec"], &new["metadata"], &mut found),
        ("", "persistentvolumes") => volume(new, &mut found),
        ("", "persistentvolumeclaims") => {
            annotation(
                new,
                STORAGE_CLASS,
                "deprecated since v1.8; use \"storageClassName\" attribute instead",
                &mut found,
            );
            claim(&new["spec"], &Path::new("spec"), &mut found);
        }
        ("networking.k8s.io", "ingresses") if old.is_none() => {
            const CLASS: &str = "kubernetes.io/ingress.class";
            if new["metadata"]["annotations"].get(CLASS).is_some() {
                found.push(format!(
                    "annotation \"{CLASS}\" is deprecated, please use 'spec.ingressClassName' instead"
                ));
            }
        }
        _ => template(resource, new, old, &mut found),
    }
    if (resource.group, resource.plural) == ("apps", "statefulsets")
        && new["spec"]["revisionHistoryLimit"].as_i64().is_some_and(|limit| limit < 0)
    {
        found.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".to_owned());
    }
    found
}

fn template(resource: &Resource, new: &Value, old: Option<&Value>, found: &mut Vec<String>) {
    let path: &[&str] = match (resource.group, resource.plural) {
        ("apps", "deployments" | "replicasets" | "daemonsets" | "statefulsets")
        | ("batch", "jobs")
        | ("", "replicationcontrollers") => &["spec", "template"],
        ("batch", "cronjobs") => &["spec", "jobTemplate", "spec", "template"],
        ("", "podtemplates") => &["template"],
        _ => return,
    };
    if old.is_none() && !matches!(resource.plural, "daemonsets" | "statefulsets" | "podtemplates") {
        dns_label(new, "Pod names and hostnames", found);
    }
    let template = at(new, path);
    if old.is_some_and(|old| at(old, path) == template) {
        return;
    }
    let path = path.iter().fold(Path::root(), |path, field| path.child(field));
    pod(template, &path, found);
    for (i, claimed) in items(&new["spec"]["volumeClaimTemplates"]) {
        claim(&claimed["spec"], &Path::new("spec").child("volumeClaimTemplates").index(i), found);
    }
    if resource.plural == "statefulsets"
        && new["spec"]["revisionHistoryLimit"].as_i64().is_some_and(|n| n < 0)
    {
        found.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".to_owned());
    }
    let schedule = new["spec"]["schedule"].as_str().unwrap_or_default();
    if schedule.contains("TZ") {
        found.push("CRON_TZ or TZ used in \"spec.schedule\" is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".to_owned());
    }
}

fn at<'a>(object: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(object, |value, field| &value[*field])
}

fn items(list: &Value) -> impl Iterator<Item = (usize, &Value)> {
    list.as_array().into_iter().flatten().enumerate()
}

fn dns_label(object: &Value, used_in: &str, found: &mut Vec<String>) {
    let wrong = names::dns_label(crate::meta::name(object));
    if !wrong.is_empty() {
        found.push(format!(
            "metadata.name: this is used in {used_in}, which can result in surprising behavior; a DNS label is recommended: [{}]",
            wrong.join(" ")
        ));
    }
}

fn annotation(object: &Value, key: &str, why: &str, found: &mut Vec<String>) {
    if object["metadata"]["annotations"].get(key).is_some() {
        found.push(format!("{}: {why}", Path::new("metadata").child("annotations").key(key)));
    }
}

fn node_label(key: &str) -> Option<&'static str> {
    NODE_LABELS.iter().find(|(label, _)| *label == key).map(|(_, why)| *why)
}

fn pod(pod: &Value, root: &Path, found: &mut Vec<String>) {
    let (spec, path) = (&pod["spec"], root.child("spec"));
    let annotations = pod["metadata"]["annotations"].as_object();
    scheduling(spec, &path, found);
    let at = |key: &str| root.child("metadata").child("annotations").key(key);
    let has = |key: &str| annotations.is_some_and(|a| a.contains_key(key));
    for (key, why) in POD_ANNOTATIONS.iter().filter(|(key, _)| has(key)) {
        found.push(format!("{}: {why}", at(key)));
    }
    volumes(spec, &path, found);
    duplicates(&spec["hostAliases"], &path.child("hostAliases"), "ip", found);
    duplicates(&spec["imagePullSecrets"], &path.child("imagePullSecrets"), "name", found);
    for (i, secret) in items(&spec["imagePullSecrets"]) {
        if secret["name"].as_str().unwrap_or_default().is_empty() {
            let path = path.child("imagePullSecrets").index(i).child("name");
            found.push(format!("{path}: invalid empty name \"\""));
        }
    }
    fractions(&spec["overhead"], &path.child("overhead"), found);
    const SECCOMP: &str = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    if has(SECCOMP_POD) && spec["securityContext"]["seccompProfile"].is_null() {
        found.push(format!("{}: {SECCOMP}", at(SECCOMP_POD)));
    }
    for (container, path) in containers(spec, &path) {
        let name = container["name"].as_str().unwrap_or_default();
        let context = &container["securityContext"];
        let key = format!("{SECCOMP_CONTAINER}{name}");
        if has(&key) && context["seccompProfile"].is_null() {
            found.push(format!("{}: {SECCOMP}", at(&key)));
        }
        let key = format!("{APPARMOR_CONTAINER}{name}");
        if has(&key)
            && context["appArmorProfile"].is_null()
            && spec["securityContext"]["appArmorProfile"].is_null()
        {
            found.push(format!(
                "{}: deprecated since v1.30; use the \"appArmorProfile\" field instead",
                at(&key)
            ));
        }
        let resources = path.child("resources");
        fractions(&container["resources"]["limits"], &resources.child("limits"), found);
        fractions(&container["resources"]["requests"], &resources.child("requests"), found);
        environment(container, &path, found);
    }
    ports(spec, &path, found);
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) {
        let path = path.child("terminationGracePeriodSeconds");
        found.push(format!("{path}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
}

fn scheduling(spec: &Value, path: &Path, found: &mut Vec<String>) {
    for (key, _) in spec["nodeSelector"].as_object().into_iter().flatten() {
        if let Some(why) = node_label(key) {
            found.push(format!("{}: {why}", path.child("nodeSelector").key(key)));
        }
    }
    let affinity = path.child("affinity");
    let node = &spec["affinity"]["nodeAffinity"];
    let node_path = affinity.child("nodeAffinity");
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    for (i, term) in items(&node[REQUIRED]["nodeSelectorTerms"]) {
        node_term(term, &node_path.child(REQUIRED).child("nodeSelectorTerms").index(i), found);
    }
    for (i, term) in items(&node[PREFERRED]) {
        node_term(&term["preference"], &node_path.child(PREFERRED).index(i).child("preference"), found);
    }
    const NO_MATCH: &str = "a null labelSelector results in matching no pod";
    for (i, constraint) in items(&spec["topologySpreadConstraints"]) {
        let path = path.child("topologySpreadConstraints").index(i);
        let key = constraint["topologyKey"].as_str().unwrap_or_default();
        if let Some(why) = node_label(key) {
            found.push(format!("{}: {key} is {why}", path.child("topologyKey")));
        }
        if constraint["labelSelector"].is_null() {
            found.push(format!("{}: {NO_MATCH}", path.child("labelSelector")));
        }
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (terms, path) = (&spec["affinity"][kind], affinity.child(kind));
        for (i, _) in items(&terms[REQUIRED]).filter(|(_, t)| t["labelSelector"].is_null()) {
            found.push(format!("{}: {NO_MATCH}", path.child(REQUIRED).index(i).child("labelSelector")));
        }
        for (i, _) in
            items(&terms[PREFERRED]).filter(|(_, t)| t["podAffinityTerm"]["labelSelector"].is_null())
        {
            let path = path.child(PREFERRED).index(i).child("podAffinityTerm").child("labelSelector");
            found.push(format!("{path}: {NO_MATCH}"));
        }
    }
}

fn node_term(term: &Value, path: &Path, found: &mut Vec<String>) {
    for (i, expression) in items(&term["matchExpressions"]) {
        let key = expression["key"].as_str().unwrap_or_default();
        if let Some(why) = node_label(key) {
            found.push(format!("{}: {key} is {why}", path.child("matchExpressions").index(i).child("key")));
        }
    }
}

fn volumes(spec: &Value, path: &Path, found: &mut Vec<String>) {
    for (i, volume) in items(&spec["volumes"]) {
        let path = path.child("volumes").index(i);
        for (plugin, why) in VOLUMES.iter().filter(|(plugin, _)| volume.get(plugin).is_some()) {
            found.push(format!("{}: {why}", path.child(plugin)));
        }
        let template = &volume["ephemeral"]["volumeClaimTemplate"]["spec"];
        claim(template, &path.child("ephemeral").child("volumeClaimTemplate").child("spec"), found);
    }
}

fn duplicates(list: &Value, path: &Path, field: &str, found: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, item) in items(list) {
        let text = item[field].as_str().unwrap_or_default();
        if !seen.insert(text) {
            found.push(format!("{}: duplicate {field} {text:?}", path.index(i).child(field)));
        }
    }
}

fn fraction(resources: &Value, resource: &str) -> Option<String> {
    let text = resources[resource].as_str()?;
    // Quantities are canonical here: only a fraction of a byte is written in thousandths.
    text.ends_with('m').then(|| text.to_owned())
}

fn fractions(resources: &Value, path: &Path, found: &mut Vec<String>) {
    for resource in ["memory", "ephemeral-storage"] {
        if let Some(text) = fraction(resources, resource) {
            let path = path.key(resource);
            found.push(format!("{path}: fractional byte value \"{text}\" is invalid, must be an integer"));
        }
    }
}

fn claim(spec: &Value, path: &Path, found: &mut Vec<String>) {
    for list in ["limits", "requests"] {
        if let Some(text) = fraction(&spec["resources"][list], "storage") {
            let path = path.child("resources").child(list).key("storage");
            found.push(format!("{path}: fractional byte value \"{text}\" is invalid, must be an integer"));
        }
    }
}

fn containers<'a>(spec: &'a Value, path: &Path) -> Vec<(&'a Value, Path)> {
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let all = lists.into_iter().flat_map(|list| items(&spec[list]).map(move |(i, c)| (list, i, c)));
    all.map(|(list, i, container)| (container, path.child(list).index(i))).collect()
}

fn environment(container: &Value, path: &Path, found: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (i, variable) in items(&container["env"]) {
        let name = variable["name"].as_str().unwrap_or_default();
        if seen.insert(name) {
            continue;
        }
        let value = variable["value"].as_str().unwrap_or_default();
        let reference = format!("$({name})");
        if !variable["valueFrom"].is_null() || value == reference || !value.contains(&reference) {
            found.push(format!(
                "{}: hides previous definition of {name:?}, which may be dropped when using apply",
                path.child("env").index(i)
            ));
        }
    }
}

fn ports(spec: &Value, path: &Path, found: &mut Vec<String>) {
    let mut numbers: BTreeMap<(i64, String), Vec<(Path, &Value)>> = BTreeMap::new();
    let mut names: BTreeMap<&str, Path> = BTreeMap::new();
    let mut twice = Vec::new();
    for (container, path) in containers(spec, path) {
        for (i, port) in items(&container["ports"]) {
            let here = path.child("ports").index(i);
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
            let others = numbers.entry((port["containerPort"].as_i64().unwrap_or(0), protocol)).or_default();
            found.extend(others.iter().filter_map(|(at, other)| overlap(port, other, &here, at)));
            others.push((here.clone(), port));
            let name = port["name"].as_str().unwrap_or_default();
            match names.get(name) {
                Some(other) if !name.is_empty() => twice.push(format!(
                    "{here}: duplicate port name {name:?} with {other}, services and probes that select ports by name will use {other}"
                )),
                _ => drop(names.insert(name, here)),
            }
        }
    }
    found.extend(twice);
}

fn overlap(port: &Value, other: &Value, here: &Path, at: &Path) -> Option<String> {
    let of = |p: &Value| {
        (p["hostIP"].as_str().unwrap_or_default().to_owned(), p["hostPort"].as_i64().unwrap_or(0))
    };
    let ((ip, number), (other_ip, other_number)) = (of(port), of(other));
    let what = if ip == other_ip && number == other_number {
        "duplicate port definition"
    } else if number == 0 || other_number == 0 {
        "overlapping port definition"
    } else if number == other_number && (ip.is_empty() != other_ip.is_empty()) {
        "dangerously ambiguous port definition"
    } else {
        return None;
    };
    Some(format!("{here}: {what} with {at}"))
}

fn service(spec: &Value, metadata: &Value, found: &mut Vec<String>) {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    if metadata["annotations"].get(HINTS).is_some() {
        found.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let text = |field: &str| spec[field].as_str().unwrap_or_default();
    let external = spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty());
    let kind = text("type");
    let headless = matches!(kind, "" | "ClusterIP") && text("clusterIP") == "None";
    if headless {
        let affinity = !matches!(text("sessionAffinity"), "" | "None");
        for (set, what) in [
            (!text("loadBalancerIP").is_empty(), "spec.loadBalancerIP"),
            (external, "spec.externalIPs"),
            (affinity, "spec.SessionAffinity"),
        ] {
            if set {
                found.push(format!("{what} is ignored for headless services"));
            }
        }
    }
    let by_name = kind == "ExternalName";
    if external && !headless && !by_name {
        found.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters".to_owned(),
        );
    }
    if by_name && external {
        found.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".to_owned());
    }
    if !by_name && !text("externalName").is_empty() {
        found.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".to_owned());
    }
    if text("trafficDistribution") == "PreferClose" {
        found.push(
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".to_owned(),
        );
    }
}

fn volume(object: &Value, found: &mut Vec<String>) {
    annotation(
        object,
        STORAGE_CLASS,
        "deprecated since v1.8; use \"storageClassName\" attribute instead",
        found,
    );
    const OPTIONS: &str = "volume.beta.kubernetes.io/mount-options";
    annotation(object, OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead", found);
    if object["spec"]["persistentVolumeReclaimPolicy"] == "Recycle" {
        found.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
    }
}

/// Takes out owners that are named twice; says which.
pub fn dedup_owners(object: &mut Value) -> Option<String> {
    let owners = object.get_mut("metadata")?.as_object_mut()?.get_mut("ownerReferences")?.as_array_mut()?;
    if owners.len() < 2 {
        return None;
    }
    let mut seen: Vec<Map<String, Value>> = Vec::with_capacity(owners.len());
    let mut twice = Vec::new();
    owners.retain(|owner| {
        let Some(owner) = owner.as_object() else { return true };
        if seen.contains(owner) {
            twice.push(owner.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned());
            return false;
        }
        seen.push(owner.clone());
        true
    });
    (!twice.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(" ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::find;
    use serde_json::json;

    fn warned(group: &str, version: &str, plural: &str, object: Value) -> Vec<String> {
        of_write(find(group, version, plural).unwrap(), &object, None)
    }

    #[test]
    fn pods() {
        let object = json!({"metadata": {"name": "a.b", "annotations": {SECCOMP_POD: "x"}}, "spec": {
            "nodeSelector": {"beta.kubernetes.io/os": "linux"}, "volumes": [{"name": "v", "glusterfs": {}}],
            "topologySpreadConstraints": [{"topologyKey": "zone"}],
            "containers": [{"name": "c", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"},
                {"name": "B", "value": "1"}, {"name": "B", "value": "$(B)2"}],
                "ports": [{"containerPort": 80, "name": "w"}, {"containerPort": 80, "name": "w"}],
                "resources": {"limits": {"memory": "100m"}}}]}});
        assert_eq!(
            warned("", "v1", "pods", object),
            [
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]",
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                "spec.volumes[0].glusterfs: deprecated in v1.25, non-functional in v1.26+",
                "metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: non-functional in v1.27+; use the \"seccompProfile\" field instead",
                "spec.containers[0].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an integer",
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply",
                "spec.containers[0].ports[1]: duplicate port definition with spec.containers[0].ports[0]",
                "spec.containers[0].ports[1]: duplicate port name \"w\" with spec.containers[0].ports[0], services and probes that select ports by name will use spec.containers[0].ports[0]",
            ]
        );
    }

    #[test]
    fn templates_are_looked_at_when_they_change() {
        let object = |replicas: i64| {
            json!({"metadata": {"name": "d"}, "spec": {"replicas": replicas, "template":
            {"metadata": {"annotations": {"scheduler.alpha.kubernetes.io/critical-pod": ""}}, "spec": {"containers": []}}}})
        };
        let row = find("apps", "v1", "deployments").unwrap();
        let want = [
            "spec.template.metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the \"priorityClassName\" field instead",
        ];
        assert_eq!(of_write(row, &object(1), None), want);
        assert!(of_write(row, &object(2), Some(&object(1))).is_empty());
    }

    #[test]
    fn services_volumes_and_owners() {
        let service = json!({"metadata": {}, "spec": {"clusterIP": "None", "type": "ClusterIP", "externalIPs": ["1.2.3.4"],
            "externalName": "x", "trafficDistribution": "PreferClose"}});
        assert_eq!(
            warned("", "v1", "services", service),
            [
                "spec.externalIPs is ignored for headless services",
                "spec.externalName is ignored when spec.type is not \"ExternalName\"",
                "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
            ]
        );
        let volume = json!({"metadata": {}, "spec": {"persistentVolumeReclaimPolicy": "Recycle"}});
        assert_eq!(warned("", "v1", "persistentvolumes", volume).len(), 1);
        let owner = json!({"kind": "ReplicaSet", "name": "r", "uid": "u1", "apiVersion": "apps/v1"});
        let mut object = json!({"metadata": {"ownerReferences": [owner, owner]}});
        assert!(dedup_owners(&mut object).unwrap().ends_with("duplicate UID(s) observed: u1"));
        assert_eq!(object["metadata"]["ownerReferences"], json!([owner]));
        assert_eq!(dedup_owners(&mut object), None);
        assert!(of_kind(find("", "v1", "endpoints").unwrap()).is_some());
    }
}
