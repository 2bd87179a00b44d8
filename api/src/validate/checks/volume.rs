//! Volumes of pods.

use super::super::{At, Errors};
use super::container::field_ref;

/// The shortest life of a projected token, in seconds, and the longest.
const TOKEN_SECONDS: (i64, i64) = (600, 1 << 32);

/// A volume: a name and one source.
pub(super) fn volume(at: &At<'_>, errors: &mut Errors) {
    let sources: Vec<&str> = at
        .value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, _)| k.as_str())
        .filter(|k| *k != "name")
        .collect();
    if sources.is_empty() {
        errors.required(at, "must specify a volume type");
    }
    for source in sources.iter().skip(1) {
        errors.forbidden(&at.get(source), "may not specify more than 1 volume type");
    }
    fibre_channel(&at.get("fc"), errors);
    let flocker = at.get("flocker");
    if flocker.is_set() {
        match flocker.present(&["datasetName", "datasetUUID"]).len() {
            0 => errors.required(&flocker, "one of datasetName and datasetUUID is required"),
            1 => {}
            _ => errors.invalid_value(
                &flocker,
                "resource",
                "datasetName and datasetUUID can not be specified simultaneously",
            ),
        }
    }
    let secret = at.at(&["csi", "nodePublishSecretRef"]);
    if secret.is_set() {
        errors.require(&secret.get("name"));
    }
}

/// Fibre channel names its target in one of two ways.
pub(super) fn fibre_channel(at: &At<'_>, errors: &mut Errors) {
    if !at.is_set() {
        return;
    }
    let names = at.get("targetWWNs");
    match (names.is_empty(), at.get("wwids").is_empty()) {
        (true, true) => errors.required(&names, "must specify either targetWWNs or wwids, but not both"),
        (false, false) => {
            errors.invalid(&names, "targetWWNs and wwids can not be specified simultaneously");
        }
        (false, true) if !at.get("lun").is_set() => {
            errors.required(&at.get("lun"), "lun is required if targetWWNs is specified");
        }
        _ => {}
    }
}

/// A file of the downward API.
pub(super) fn downward_file(at: &At<'_>, errors: &mut Errors) {
    const FIELDS: [&str; 5] =
        ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
    let resource = at.get("resourceFieldRef");
    match at.present(&["fieldRef", "resourceFieldRef"]).len() {
        0 => errors.required(at, "one of fieldRef and resourceFieldRef is required"),
        1 => {}
        _ => errors.invalid_value(
            at,
            "resource",
            "fieldRef and resourceFieldRef can not be specified simultaneously",
        ),
    }
    field_ref(&at.get("fieldRef"), &FIELDS, errors);
    if resource.is_set() {
        errors.require(&resource.get("containerName"));
    }
}

/// A volume put together from several sources.
pub(super) fn projected(at: &At<'_>, errors: &mut Errors) {
    let mut paths: Vec<&str> = Vec::new();
    for source in at.get("sources").items() {
        let kinds: Vec<&str> =
            source.value.as_object().into_iter().flatten().map(|(kind, _)| kind.as_str()).collect();
        if kinds.len() > 1 {
            errors.forbidden(&source, "may not specify more than 1 volume type per source");
        }
        let Some(kind) = kinds.first().copied() else { continue };
        let inner = source.get(kind);
        let mut files: Vec<At<'_>> = inner.get("items").items().map(|i| i.get("path")).collect();
        files.extend(
            ["path", "credentialBundlePath", "keyPath", "certificateChainPath"].map(|field| inner.get(field)),
        );
        for file in files.into_iter().filter(|f| !f.is_empty()) {
            if paths.contains(&file.text()) {
                errors.invalid_value(at, file.text(), "conflicting duplicate paths");
            }
            paths.push(file.text());
        }
        match kind {
            "serviceAccountToken" => token(&inner, errors),
            "clusterTrustBundle" => trust_bundle(&inner, errors),
            "podCertificate" => certificate(&inner, errors),
            _ => {}
        }
    }
}

fn token(at: &At<'_>, errors: &mut Errors) {
    let seconds = at.get("expirationSeconds");
    match seconds.int() {
        Some(n) if n < TOKEN_SECONDS.0 => {
            errors.invalid(&seconds, "may not specify a duration less than 10 minutes");
        }
        Some(n) if n > TOKEN_SECONDS.1 => {
            errors.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
        }
        _ => {}
    }
}

fn trust_bundle(at: &At<'_>, errors: &mut Errors) {
    match at.present(&["name", "signerName"]).len() {
        0 => errors.required(at, "either name or signerName must be specified"),
        1 => {}
        _ => errors.invalid(at, "only one of name and signerName may be used"),
    }
    if at.get("name").is_set() && at.get("labelSelector").is_set() {
        errors.invalid(&at.get("labelSelector"), "labelSelector must be unset if name is specified");
    }
}

fn certificate(at: &At<'_>, errors: &mut Errors) {
    let seconds = at.get("maxExpirationSeconds");
    if seconds.int().is_some_and(|n| n < 3600) {
        errors.invalid(&seconds, "if provided, maxExpirationSeconds must be >= 3600");
    }
    if at.present(&["credentialBundlePath", "keyPath", "certificateChainPath"]).is_empty() {
        errors
            .required(at, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath");
    }
}
