//! Roles and bindings, flow control, certificate requests.

use super::super::{At, Errors};
use crate::names;

/// A role's rules.
pub(super) fn role(at: &At<'_>, namespaced: bool, errors: &mut Errors) {
    for rule in at.get("rules").items() {
        let (urls, resources) = (rule.get("nonResourceURLs"), rule.get("resources"));
        if !urls.is_empty() {
            if namespaced {
                errors.invalid(&urls, "namespaced rules cannot apply to non-resource URLs");
            }
            let also = ["apiGroups", "resources", "resourceNames"].iter().any(|f| !rule.get(f).is_empty());
            if also {
                errors.invalid(&urls, "rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if rule.get("apiGroups").is_empty() {
            errors.required(&rule.get("apiGroups"), "resource rules must supply at least one api group");
        }
        if resources.is_empty() {
            errors.required(&resources, "resource rules must supply at least one resource");
        }
    }
}

/// A binding: which role it binds does not change.
pub(super) fn binding(at: &At<'_>, namespaced: bool, errors: &mut Errors) {
    let reference = at.get("roleRef");
    let kinds: &[&str] = if namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
    errors.one_of(&reference.get("kind"), kinds);
    if reference.changed() {
        errors.invalid(&reference, "cannot change roleRef");
    }
    if namespaced {
        return;
    }
    for subject in at.get("subjects").items().filter(|s| s.get("kind").text() == "ServiceAccount") {
        errors.require(&subject.get("namespace"));
    }
}

/// Who a role is bound to.
pub(super) fn subject(at: &At<'_>, errors: &mut Errors) {
    let (group, name) = (at.get("apiGroup"), at.get("name"));
    match at.get("kind").text() {
        "ServiceAccount" => {
            if !name.is_empty() {
                errors.invalid_all(&name, names::dns_subdomain(name.text()));
            }
            if !group.is_empty() {
                errors.one_of(&group, &[""]);
            }
        }
        "User" | "Group" => errors.one_of(&group, &["rbac.authorization.k8s.io"]),
        _ => {}
    }
}

/// A priority level has what its type says.
pub(super) fn priority_level_spec(at: &At<'_>, errors: &mut Errors) {
    let (limited, exempt) = (at.get("limited"), at.get("exempt"));
    match at.get("type").text() {
        "Exempt" => {
            errors.forbid(&limited, "must be nil if the type is not Limited");
        }
        "Limited" => {
            errors.forbid(&exempt, "must be nil if the type is Limited");
            if !limited.is_set() {
                return errors.required(&limited, "must not be empty when type is Limited");
            }
            let response = limited.get("limitResponse");
            let queuing = response.get("queuing");
            match response.get("type").text() {
                "Reject" => {
                    errors.forbid(&queuing, "must be nil if limited.limitResponse.type is not Limited")
                }
                "Queue" if !queuing.is_set() => {
                    errors.required(&queuing, "must not be empty if limited.limitResponse.type is Limited");
                }
                _ => {}
            }
            let (hand, queues) = (queuing.get("handSize"), queuing.get("queues"));
            if hand.int() > queues.int() && queues.is_set() {
                let why = format!("should not be greater than queues ({})", queues.int().unwrap_or_default());
                errors.invalid(&hand, why);
            }
        }
        _ => {}
    }
}

/// Only the level `exempt` is exempt.
pub(super) fn priority_level(at: &At<'_>, errors: &mut Errors) {
    let exempt_name = at.at(&["metadata", "name"]).text() == "exempt";
    let ty = at.at(&["spec", "type"]);
    if exempt_name != (ty.text() == "Exempt") && matches!(ty.text(), "Exempt" | "Limited") {
        errors.invalid(&ty, "type must be 'Exempt' if and only if name is 'exempt'");
    }
}

/// A flow schema.
pub(super) fn flow_schema(at: &At<'_>, errors: &mut Errors) {
    let precedence = at.at(&["spec", "matchingPrecedence"]);
    if precedence.int() == Some(1) && at.at(&["metadata", "name"]).text() != "exempt" {
        errors.invalid(&precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    for rule in at.at(&["spec", "rules"]).items() {
        if rule.get("resourceRules").is_empty() && rule.get("nonResourceRules").is_empty() {
            let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
            errors.required(&rule, why);
        }
        for resource in rule.get("resourceRules").items() {
            if !resource.get("clusterScope").yes() && resource.get("namespaces").is_empty() {
                let why = "resource rules that are not cluster scoped must supply at least one namespace";
                errors.required(&resource.get("namespaces"), why);
            }
        }
    }
}

/// Whose requests a flow schema takes.
pub(super) fn flow_subject(at: &At<'_>, errors: &mut Errors) {
    let all = [("User", "user"), ("Group", "group"), ("ServiceAccount", "serviceAccount")];
    let kind = at.get("kind").text();
    if !all.iter().any(|(k, _)| *k == kind) {
        return;
    }
    for (of, field) in all {
        let field_at = at.get(field);
        if of == kind && !field_at.is_set() {
            errors.required(&field_at, &format!("{field} is required when subject kind is '{kind}'"));
        } else if of != kind && field_at.is_set() {
            errors.forbidden(&field_at, format!("{field} is forbidden when subject kind is not '{of}'"));
        }
    }
}

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// A request for a certificate.
pub(super) fn signing_request(at: &At<'_>, errors: &mut Errors) {
    if at.old.is_some() {
        return;
    }
    for usage in at.at(&["spec", "usages"]).items() {
        if !USAGES.contains(&usage.text()) {
            errors.one_of(&usage, &USAGES);
        }
    }
    let signer = at.at(&["spec", "signerName"]);
    match signer.text().split_once('/') {
        _ if signer.is_empty() => {}
        Some((domain, path)) => {
            errors.invalid_all(&signer, names::dns_subdomain(domain));
            if !domain.contains('.') {
                errors.invalid(&signer, "should be a domain with at least two segments separated by dots");
            }
            if path.is_empty() {
                errors.invalid(
                    &signer,
                    "must be a fully qualified domain and path of the form 'example.com/signer-name'",
                );
            }
            if signer.text() == "kubernetes.io/legacy-unknown" {
                errors.invalid(&signer, "the legacy signerName is not allowed via this API version");
            }
        }
        None => errors.invalid(
            &signer,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ),
    }
    let seconds = at.at(&["spec", "expirationSeconds"]);
    if seconds.int().is_some_and(|n| n < 600) {
        errors.invalid(&seconds, "may not specify a duration less than 600 seconds (10 minutes)");
    }
}
