//! Webhooks and admission policies.

use super::super::{At, Errors, form};
use crate::names;

/// A webhook: a fully qualified name, and one way to reach it.
pub(super) fn webhook(at: &At<'_>, errors: &mut Errors) {
    let name = at.get("name");
    if !name.is_empty() {
        errors.invalid_all(&name, names::dns_subdomain(name.text()));
        if name.text().split('.').count() < 3 {
            errors.invalid(&name, "should be a domain with at least three segments separated by dots");
        }
    }
    let client = at.get("clientConfig");
    let (url, service) = (client.get("url"), client.get("service"));
    match (url.is_set(), service.is_set()) {
        (true, true) | (false, false) => {
            errors.required(&client, "exactly one of url or service is required");
        }
        (true, false) => webhook_url(&url, errors),
        (false, true) => {
            let path = service.get("path");
            if path.is_set() && !path.text().starts_with('/') {
                errors.invalid(&path, "must start with a '/'");
            }
            let port = service.get("port");
            if port.is_set() {
                errors.invalid_all(&port, form::port(port.value));
            }
        }
    }
    let known = ["v1", "v1beta1"];
    let versions = at.get("admissionReviewVersions");
    if !versions.is_empty() && !versions.items().any(|v| known.contains(&v.text())) {
        errors.invalid(&versions, "must include at least one of v1, v1beta1");
    }
}

fn webhook_url(at: &At<'_>, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let text = at.text();
    let Some(rest) = text.strip_prefix("https://") else {
        let scheme = text.split("://").next().filter(|_| text.contains("://")).unwrap_or_default();
        return errors.invalid_value(at, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.is_empty() {
        errors.invalid_value(at, host, format!("host must be specified{FORM}"));
    }
    for (sign, why) in [
        ('@', "user information is not permitted in the URL"),
        ('#', "fragments are not permitted in the URL"),
        ('?', "query parameters are not permitted in the URL"),
    ] {
        if text.contains(sign) {
            errors.invalid_value(at, text, why);
        }
    }
}

/// Which requests a webhook or policy is for.
pub(super) fn rule(at: &At<'_>, errors: &mut Errors) {
    for (field, what) in [
        ("apiGroups", "if '*' is present, must not specify other API groups"),
        ("apiVersions", "if '*' is present, must not specify other API versions"),
        ("operations", "if '*' is present, must not specify other operations"),
    ] {
        let list = at.get(field);
        if list.len() > 1 && list.items().any(|item| item.text() == "*") {
            errors.invalid(&list, what);
        }
    }
    for version in at.get("apiVersions").items() {
        if version.is_empty() {
            errors.required(&version, "");
        }
    }
    let resources = at.get("resources");
    for resource in resources.items() {
        if resource.is_empty() {
            errors.required(&resource, "");
        }
        let text = resource.text();
        if text == "*/*" && resources.len() > 1 {
            errors.invalid(&resources, "if '*/*' is present, must not specify other resources");
        }
        if text == "*" && resources.items().any(|other| other.text() != "*" && !other.text().contains('/')) {
            let why = "if '*' is present, must not specify other resources without subresources";
            errors.invalid(&resources, why);
        }
    }
}

/// A policy checks or annotates something.
pub(super) fn policy(at: &At<'_>, errors: &mut Errors) {
    let constraints = at.get("matchConstraints");
    if constraints.is_set() && constraints.get("resourceRules").is_empty() {
        errors.required(&constraints.get("resourceRules"), "");
    }
    if at.get("validations").is_empty() && at.get("auditAnnotations").is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        errors.required(&at.get("validations"), why);
        errors.required(&at.get("auditAnnotations"), why);
    }
    for validation in at.get("validations").items() {
        let message = validation.get("message");
        if message.text().contains('\n') {
            errors.invalid(&message, "must not contain line breaks");
        }
        if message.is_empty() && validation.get("expression").text().trim().contains('\n') {
            errors.required(&message, "message must be specified if expression contains line breaks");
        }
    }
}

/// What a failed validation leads to.
pub(super) fn actions(at: &At<'_>, errors: &mut Errors) {
    let list = at.get("validationActions");
    let has = |name: &str| list.items().any(|a| a.text() == name);
    if has("Deny") && has("Warn") {
        errors.invalid(&list, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)");
    }
}

/// Which parameters a policy gets.
pub(super) fn param_ref(at: &At<'_>, errors: &mut Errors) {
    let (name, selector) = (at.get("name"), at.get("selector"));
    if !name.is_empty() {
        errors.invalid_all(&name, names::path_segment(name.text()));
        errors.forbid(&selector, "name and selector are mutually exclusive");
    } else if !selector.is_set() {
        errors.required(at, "one of name or selector must be specified");
    }
}
