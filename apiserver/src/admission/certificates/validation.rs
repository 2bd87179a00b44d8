//! What a certificate signing request may say, and which part of it each subresource may change.

use base64::Engine;
use decapod_api::field::{self, Path};
use decapod_api::names;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::parse;
use crate::pki::usage;

/// The signer of requests that named none, long ago; it is not to be asked for any more.
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// A certificate for less time is of no use to anybody.
const MIN_SECONDS: i64 = 600;
/// A request's decisions and its failure are final.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];

/// All that is wrong with a new request, or with a change of one.
pub(super) fn check(object: &Value, old: Option<&Value>, subresource: &str) -> Vec<field::Error> {
    let mut errors = Vec::new();
    spec(&object["spec"], old.map(|old| &old["spec"]), &mut errors);
    conditions(object, &mut errors);
    certificate(&object["status"]["certificate"], &mut errors);
    if let Some(old) = old {
        changes(object, old, subresource, &mut errors);
    }
    errors
}

fn spec(spec: &Value, old: Option<&Value>, errors: &mut Vec<field::Error>) {
    let path = Path::new("spec");
    if let Err(error) = parse(&serde_json::json!({"spec": spec})) {
        errors.push(field::Error::invalid(
            &path.child("request"),
            spec["request"].clone(),
            error.to_string(),
        ));
    }
    let usages = spec["usages"].as_array().map_or(&[][..], Vec::as_slice);
    if usages.is_empty() {
        errors.push(field::Error::required(&path.child("usages"), ""));
    }
    let known = usage::all();
    for (index, usage) in usages.iter().enumerate() {
        let path = path.child("usages").index(index);
        if !usage.as_str().is_some_and(|usage| known.contains(&usage)) {
            errors.push(field::Error::not_supported(&path, usage.clone(), &known));
        }
        if usages[..index].contains(usage) {
            errors.push(field::Error::duplicate(&path, usage.clone()));
        }
    }
    let signer = spec["signerName"].as_str().unwrap_or_default();
    let was_legacy = old.is_some_and(|old| old["signerName"] == LEGACY);
    if signer == LEGACY && !was_legacy {
        let why = "the legacy signerName is not allowed via this API version";
        errors.push(field::Error::invalid(&path.child("signerName"), signer, why));
    } else {
        signer_name(&path.child("signerName"), signer, errors);
    }
    if let Some(seconds) = spec["expirationSeconds"].as_i64().filter(|&seconds| seconds < MIN_SECONDS) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.push(field::Error::invalid(&path.child("expirationSeconds"), seconds, why));
    }
}

/// `example.com/signer-name`: a domain of at least two labels, and a path of labels.
fn signer_name(path: &Path, name: &str, errors: &mut Vec<field::Error>) {
    if name.is_empty() {
        errors.push(field::Error::required(path, ""));
        return;
    }
    let [domain, rest] = name.split('/').collect::<Vec<_>>()[..] else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(field::Error::invalid(path, name, why));
        return;
    };
    labels(path, domain, names::dns_label, errors);
    labels(path, rest, names::dns_subdomain, errors);
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        errors.push(field::Error::invalid(path, domain, why));
    }
}

/// Each label of a part must pass a check; the first that does not is named.
fn labels(path: &Path, part: &str, check: fn(&str) -> Vec<String>, errors: &mut Vec<field::Error>) {
    let mut all = part.split('.').map(|label| (label, check(label)));
    let Some((label, wrong)) = all.find(|(_, wrong)| !wrong.is_empty()) else { return };
    for why in wrong {
        errors.push(field::Error::invalid(path, part, format!("validating label \"{label}\": {why}")));
    }
}

fn list(object: &Value) -> &[Value] {
    object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice)
}

fn conditions(object: &Value, errors: &mut Vec<field::Error>) {
    let path = Path::new("status").child("conditions");
    let conditions = list(object);
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    for (index, condition) in conditions.iter().enumerate() {
        let (path, kind, status) = (path.index(index), text(condition, "type"), text(condition, "status"));
        if kind.is_empty() {
            errors.push(field::Error::required(&path.child("type"), ""));
        }
        let allowed: &[&str] =
            if FINAL.contains(&kind.as_str()) { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errors.push(field::Error::required(&path.child("status"), ""));
        } else if !allowed.contains(&status.as_str()) {
            errors.push(field::Error::not_supported(&path.child("status"), status, allowed));
        }
        if conditions[..index].iter().any(|other| other["type"] == condition["type"]) {
            errors.push(field::Error::duplicate(&path.child("type"), kind));
        }
    }
    let has = |kind: &str| conditions.iter().any(|condition| condition["type"] == kind);
    if has("Approved") && has("Denied") {
        let last = conditions.iter().rfind(|c| c["type"] == "Approved" || c["type"] == "Denied");
        let kind = last.map(|c| c["type"].clone()).unwrap_or_default();
        let why = "Approved and Denied conditions are mutually exclusive";
        errors.push(field::Error::invalid(&path, kind, why));
    }
}

fn certificate(certificate: &Value, errors: &mut Vec<field::Error>) {
    let Some(text) = certificate.as_str().filter(|text| !text.is_empty()) else { return };
    let pem = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let mut found = 0;
    let mut wrong = None;
    for block in CertificateDer::pem_slice_iter(&pem) {
        found += 1;
        if !block.is_ok_and(|der| X509Certificate::from_der(&der).is_ok_and(|(rest, _)| rest.is_empty())) {
            wrong = Some("x509: malformed certificate");
        }
    }
    if found == 0 {
        wrong = Some("must contain at least one CERTIFICATE PEM block");
    } else if pem.windows(11).filter(|w| w == b"-----BEGIN ").count() > found {
        wrong = Some("only CERTIFICATE PEM blocks are allowed");
    }
    if let Some(why) = wrong {
        let path = Path::new("status").child("certificate");
        errors.push(field::Error::invalid(&path, "<certificate data>", why));
    }
}

/// The conditions of a type.
pub(super) fn conditions_of<'a>(object: &'a Value, kind: &str) -> Vec<&'a Value> {
    list(object).iter().filter(|condition| condition["type"] == kind).collect()
}

fn changes(object: &Value, old: &Value, subresource: &str, errors: &mut Vec<field::Error>) {
    let path = Path::new("status").child("conditions");
    for kind in FINAL {
        let (now, before) = (conditions_of(object, kind), conditions_of(old, kind));
        let decided_elsewhere = subresource != "approval" && kind != "Failed";
        let why = if now.len() < before.len() {
            format!("updates may not remove a condition of type \"{kind}\"")
        } else if decided_elsewhere && now.len() > before.len() {
            format!("updates may not add a condition of type \"{kind}\"")
        } else if decided_elsewhere && now != before {
            format!("updates may not modify a condition of type \"{kind}\"")
        } else {
            continue;
        };
        errors.push(field::Error::forbidden(&path, why));
    }
    let (now, before) = (&object["status"]["certificate"], &old["status"]["certificate"]);
    if now != before {
        let path = Path::new("status").child("certificate");
        if subresource != "status" {
            errors.push(field::Error::forbidden(&path, "updates may not set certificate content"));
        } else if before.as_str().is_some_and(|before| !before.is_empty()) {
            errors
                .push(field::Error::forbidden(&path, "updates may not modify existing certificate content"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signer_names() {
        let errors = |name: &str| {
            let mut errors = Vec::new();
            signer_name(&Path::new("s"), name, &mut errors);
            errors.len()
        };
        for good in ["kubernetes.io/kube-apiserver-client", "example.com/a.b-c"] {
            assert_eq!(errors(good), 0, "{good}");
        }
        for bad in ["", "example.com", "a/b/c", "example/x", "Example.com/x", "example.com/X"] {
            assert_eq!(errors(bad), 1, "{bad}");
        }
    }
}
