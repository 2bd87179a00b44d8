//! What the restricted level demands besides: the hardening that is best practice today.

use std::collections::BTreeSet;

use serde_json::Value;

use super::baseline::confines;
use super::checks::{Subject, Violation, containers, name, named, plural, quoted, setters};

/// Since this version what Windows does not have is not asked of its pods.
const WINDOWS_SINCE: u32 = 25;
/// Since this version a pod whose root is nobody on its node may run as root.
const OWN_USERS_SINCE: u32 = 35;

fn is_exempt_windows(pod: Subject<'_>) -> bool {
    pod.minor >= WINDOWS_SINCE && pod.is_windows()
}

fn has_own_users(pod: Subject<'_>) -> bool {
    pod.minor >= OWN_USERS_SINCE && pod.has_own_users()
}

pub(super) fn privilege_escalation(pod: Subject<'_>) -> Option<Violation> {
    if is_exempt_windows(pod) {
        return None;
    }
    let names = pod.which(|container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    let detail = || format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    (!names.is_empty()).then(|| Violation::new("allowPrivilegeEscalation != false", detail()))
}

pub(super) fn capabilities(pod: Subject<'_>) -> Option<Violation> {
    if is_exempt_windows(pod) {
        return None;
    }
    let of = |container: &Value, list: &str| -> Vec<String> {
        let list = container["securityContext"]["capabilities"][list].as_array().into_iter().flatten();
        list.filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let keeping = pod.which(|container| !of(container, "drop").iter().any(|one| one == "ALL"));
    let mut bad = BTreeSet::new();
    let adding = pod.which(|container| {
        let added: Vec<String> =
            of(container, "add").into_iter().filter(|one| one != "NET_BIND_SERVICE").collect();
        let any = !added.is_empty();
        bad.extend(added);
        any
    });
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details
            .push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    if !adding.is_empty() {
        let (who, what) = (containers(&adding), quoted(&bad));
        details.push(format!("{who} must not include {what} in securityContext.capabilities.add"));
    }
    (!details.is_empty()).then(|| Violation::new("unrestricted capabilities", details.join("; ")))
}

/// Where a volume may come from.
const SOURCES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

pub(super) fn volumes(pod: Subject<'_>) -> Option<Violation> {
    let sources = |volume: &Value| -> Vec<String> {
        let fields = volume.as_object().into_iter().flatten();
        fields.filter(|(key, value)| *key != "name" && !value.is_null()).map(|(key, _)| key.clone()).collect()
    };
    let is_bad = |volume: &&Value| !sources(volume).iter().any(|source| SOURCES.contains(&source.as_str()));
    let bad: Vec<&Value> = pod.volumes().filter(is_bad).collect();
    let names: Vec<String> = bad.iter().map(|volume| name(volume)).collect();
    let kinds = bad.iter().map(|volume| sources(volume).into_iter().next().unwrap_or("unknown".to_owned()));
    let kinds: BTreeSet<String> = kinds.collect();
    (!names.is_empty()).then(|| {
        let uses = plural("uses", "use", names.len());
        let what = plural("restricted volume type", "restricted volume types", kinds.len());
        let detail = format!("{} {uses} {what} {}", named("volume", "volumes", &names), quoted(&kinds));
        Violation::new("restricted volume types", detail)
    })
}

pub(super) fn run_as_non_root(pod: Subject<'_>) -> Option<Violation> {
    if has_own_users(pod) {
        return None;
    }
    const REASON: &str = "runAsNonRoot != true";
    let said = |holder: &Value| holder["securityContext"]["runAsNonRoot"].as_bool();
    let explicit = pod.which(|container| said(container) == Some(false));
    if let Some(who) = setters(said(pod.spec) == Some(false), &explicit) {
        return Some(Violation::new(
            REASON,
            format!("{who} must not set securityContext.runAsNonRoot=false"),
        ));
    }
    let silent = pod.which(|container| said(container).is_none());
    let missing = said(pod.spec) != Some(true) && !silent.is_empty();
    missing.then(|| {
        let who = containers(&silent);
        Violation::new(REASON, format!("pod or {who} must set securityContext.runAsNonRoot=true"))
    })
}

pub(super) fn run_as_user(pod: Subject<'_>) -> Option<Violation> {
    if has_own_users(pod) {
        return None;
    }
    let is_root = |holder: &Value| holder["securityContext"]["runAsUser"] == 0;
    let who = setters(is_root(pod.spec), &pod.which(is_root))?;
    Some(Violation::new("runAsUser=0", format!("{who} must not set runAsUser=0")))
}

pub(super) fn seccomp(pod: Subject<'_>) -> Option<Violation> {
    if is_exempt_windows(pod) {
        return None;
    }
    const REASON: &str = "seccompProfile";
    let said =
        |holder: &Value| holder["securityContext"]["seccompProfile"]["type"].as_str().map(str::to_owned);
    let loose = |holder: &Value| said(holder).filter(|kind| !confines(kind));
    let explicit = pod.which(|container| loose(container).is_some());
    if let Some(who) = setters(loose(pod.spec).is_some(), &explicit) {
        let bad = pod.containers().chain([pod.spec]).filter_map(loose);
        let bad: BTreeSet<String> = bad.collect();
        let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(&bad));
        return Some(Violation::new(REASON, detail));
    }
    let silent = pod.which(|container| said(container).is_none());
    let missing = said(pod.spec).is_none() && !silent.is_empty();
    missing.then(|| {
        let detail = format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&silent)
        );
        Violation::new(REASON, detail)
    })
}
