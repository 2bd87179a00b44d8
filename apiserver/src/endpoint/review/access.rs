//! Access reviews: what the authorizer says about somebody, without the request being made.

use decapod_api::field::{self, Path};
use decapod_api::fields::Selector;
use decapod_api::meta;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::Request;
use crate::auth::{Attributes, UserInfo};
use crate::registry::Call;

/// The status of a `SubjectAccessReview`, or of its local or self variant.
pub(super) async fn review(request: &Request<'_>, call: &Call, review: &mut Value) -> Result<Value, Error> {
    let own = call.resource.kind == "SelfSubjectAccessReview";
    let errors = validate(review, own, call);
    if !errors.is_empty() {
        return Err(call.invalid("", errors));
    }
    if call.resource.namespaced() {
        review["metadata"]["namespace"] = call.namespace.as_str().into();
    }
    let spec = &review["spec"];
    let attributes = attributes(spec);
    let user = if own { request.user.clone() } else { subject(spec) };
    let decision = request.core.authorizer.authorize(&user, &attributes).await;
    let mut status = json!({"allowed": decision.allowed()});
    if !decision.reason().is_empty() {
        status["reason"] = decision.reason().into();
    }
    Ok(status)
}

fn validate(review: &Value, own: bool, call: &Call) -> Vec<field::Error> {
    let mut errors = Vec::new();
    let (spec, path) = (&review["spec"], Path::new("spec"));
    let (resource, plain) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let both = "cannot be specified in combination with resourceAttributes";
    let one = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
    match (resource.is_object(), plain.is_object()) {
        (true, true) => {
            errors.push(field::Error::invalid(&path.child("nonResourceAttributes"), plain.clone(), both));
        }
        (false, false) => {
            errors.push(field::Error::invalid(&path.child("resourceAttributes"), Value::Null, one));
        }
        _ => {}
    }
    let nobody = spec["user"].as_str().unwrap_or_default().is_empty()
        && spec["groups"].as_array().is_none_or(Vec::is_empty);
    if !own && nobody {
        let why = "at least one of user or group must be specified";
        errors.push(field::Error::invalid(&path.child("user"), "", why));
    }
    if resource.is_object() {
        for kind in ["fieldSelector", "labelSelector"] {
            selector(&resource[kind], &path.child("resourceAttributes").child(kind), &mut errors);
        }
    }
    errors.extend(local(review, call));
    errors
}

/// What the metadata may say, and that a local review stays in its namespace.
fn local(review: &Value, call: &Call) -> Vec<field::Error> {
    let mut errors = Vec::new();
    let namespaced = call.resource.namespaced();
    let given = |(key, value): (&String, &Value)| {
        let ours = key == "managedFields" || (namespaced && key == "namespace");
        !ours && !value.is_null() && *value != json!("") && *value != json!({}) && *value != json!([])
    };
    if review["metadata"].as_object().is_some_and(|map| map.iter().any(given)) {
        let why = if namespaced { "must be empty except for namespace" } else { "must be empty" };
        errors.push(field::Error::invalid(&Path::new("metadata"), review["metadata"].clone(), why));
    }
    if !namespaced {
        return errors;
    }
    let spec = &review["spec"];
    let namespace = spec["resourceAttributes"]["namespace"].as_str().unwrap_or_default();
    let mine = meta::namespace(review);
    let mine = if mine.is_empty() { call.namespace.as_str() } else { mine };
    if spec["resourceAttributes"].is_object() && namespace != mine {
        let path = Path::new("spec").child("resourceAttributes").child("namespace");
        errors.push(field::Error::invalid(&path, namespace, "must match metadata.namespace"));
    }
    if spec["nonResourceAttributes"].is_object() {
        let path = Path::new("spec").child("nonResourceAttributes");
        let value = spec["nonResourceAttributes"].clone();
        errors.push(field::Error::invalid(&path, value, "disallowed on this kind of request"));
    }
    errors
}

fn selector(selector: &Value, path: &Path, errors: &mut Vec<field::Error>) {
    if !selector.is_object() {
        return;
    }
    let raw = selector["rawSelector"].as_str().unwrap_or_default();
    let listed = selector["requirements"].as_array().is_some_and(|list| !list.is_empty());
    if !raw.is_empty() && listed {
        let why = "may not specified at the same time as requirements";
        errors.push(field::Error::invalid(&path.child("rawSelector"), raw, why));
    }
    if raw.is_empty() && !listed {
        let why = format!("when {path} is specified, requirements or rawSelector is required");
        errors.push(field::Error::required(&path.child("requirements"), why));
    }
}

fn subject(spec: &Value) -> UserInfo {
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    let strings = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let extra = spec["extra"].as_object().into_iter().flatten();
    UserInfo {
        username: text("user"),
        uid: text("uid"),
        groups: strings(&spec["groups"]),
        extra: extra.map(|(key, values)| (key.to_lowercase(), strings(values))).collect(),
    }
}

fn attributes(spec: &Value) -> Attributes {
    let (resource, plain) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    if plain.is_object() {
        return Attributes { verb: text(plain, "verb"), path: text(plain, "path"), ..Attributes::default() };
    }
    Attributes {
        verb: text(resource, "verb"),
        group: text(resource, "group"),
        version: text(resource, "version"),
        resource: text(resource, "resource"),
        subresource: text(resource, "subresource"),
        namespace: text(resource, "namespace"),
        name: text(resource, "name"),
        path: String::new(),
        fields: fields(&resource["fieldSelector"]),
        is_resource: true,
    }
}

/// What of a field selector can narrow a decision: demands of one value. What cannot be read narrows
/// nothing, so it never allows more.
fn fields(selector: &Value) -> Selector {
    if let Some(raw) = selector["rawSelector"].as_str().filter(|raw| !raw.is_empty()) {
        return raw.parse().unwrap_or_default();
    }
    let terms = selector["requirements"].as_array().into_iter().flatten().filter_map(|term| {
        let (key, values) = (term["key"].as_str()?, term["values"].as_array()?);
        let operator = match term["operator"].as_str()? {
            "In" => "=",
            "NotIn" => "!=",
            _ => return None,
        };
        let [value] = values.as_slice() else { return None };
        let value = value.as_str()?.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        Some(format!("{key}{operator}{value}"))
    });
    terms.collect::<Vec<_>>().join(",").parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_narrow() {
        let raw = fields(&json!({"rawSelector": "spec.nodeName=n1"}));
        assert_eq!(raw.exact("spec.nodeName"), Some("n1"));
        let listed = fields(&json!({"requirements": [
            {"key": "spec.nodeName", "operator": "In", "values": ["n,1"]},
            {"key": "metadata.name", "operator": "In", "values": ["a", "b"]},
            {"key": "x", "operator": "Later", "values": ["a"]}]}));
        assert_eq!(listed.exact("spec.nodeName"), Some("n,1"));
        assert_eq!(listed.terms().len(), 1);
    }
}
