//! What each kind does differently from the others: defaulting over its Rust type.
//! What its objects must be is in [`crate::validate`].
//!
//! The generic path of the API server sees only [`Ops`], a row's set of functions on JSON trees.

mod admission;
mod autoscaling;
mod batch;
mod config;
mod decode;
mod flow;
mod others;
mod pod;
mod pod_resources;
mod service;
mod workload;

pub use decode::DecodeError;
pub(crate) use pod::qos_class_of;
pub use pod::{QosClass, qos_class};
pub use pod_resources::{Amounts, effective_limits, effective_requests, pod_amounts};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::facts::Type;
use crate::field;
use crate::validate::{self, Scope};

/// A decoded, defaulted object and what was wrong with its form.
#[derive(Debug)]
pub struct Normalized {
    /// The object: quantities canonical, absent fields defaulted, nothing unknown.
    pub object: Value,
    /// The paths of fields that its kind does not have.
    pub unknown: Vec<String>,
}

/// What can be done with objects of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Ops {
    /// Decodes an object by its kind's Rust type, defaults it and encodes it again.
    pub normalize: fn(Value) -> Result<Normalized, DecodeError>,
    /// All that is wrong with a normalized object (its metadata apart), given the one that it replaces
    /// and what of it the request changes.
    pub validate: fn(&Value, Option<&Value>, Scope) -> Vec<field::Error>,
}

impl Ops {
    pub(crate) const fn of<T: Kind>() -> Self {
        Self { normalize: normalize::<T>, validate: validate::<T> }
    }
}

/// A kind's Rust type with its own behaviour.
pub(crate) trait Kind: k8s_openapi::Resource + Serialize + DeserializeOwned + 'static {
    /// Fills in what the client left out and is no constant.
    fn default_fields(&mut self) {}
}

fn normalize<T: Kind>(mut object: Value) -> Result<Normalized, DecodeError> {
    let ty = ty::<T>();
    with_spec(&mut object, ty);
    let unknown = decode::check(&mut object, ty)?;
    let mut typed: T = serde_json::from_value(object).map_err(|e| DecodeError::from_serde(ty, &e))?;
    typed.default_fields();
    let object = serde_json::to_value(&typed).map_err(|e| DecodeError::from_serde(ty, &e))?;
    Ok(Normalized { object, unknown })
}

/// A spec that is not there is an empty one: it is defaulted and validated like any other.
fn with_spec(object: &mut Value, ty: &'static Type) {
    let has_spec = ty.fields.get("spec").is_some_and(|field| field.shape.resolve().is_some());
    if let Some(object) = object.as_object_mut().filter(|_| has_spec)
        && object.get("spec").is_none_or(Value::is_null)
    {
        object.insert("spec".to_owned(), Value::Object(serde_json::Map::new()));
    }
}

fn ty<T: Kind>() -> &'static Type {
    crate::resource::by_kind(T::GROUP, T::VERSION, T::KIND)
        .and_then(|r| crate::facts::lookup(r.type_name))
        .expect("every kind has a row, and every row's type has facts")
}

fn validate<T: Kind>(object: &Value, old: Option<&Value>, scope: Scope) -> Vec<field::Error> {
    validate::object(ty::<T>(), object, old, scope)
}

/// Sets an absent value.
fn or<T>(slot: &mut Option<T>, value: T) {
    slot.get_or_insert(value);
}

/// Sets an absent or empty text.
fn or_text(slot: &mut Option<String>, value: &str) {
    if slot.as_deref().unwrap_or_default().is_empty() {
        *slot = Some(value.to_owned());
    }
}

/// Kinds without behaviour of their own.
macro_rules! plain {
    ($($ty:ty),* $(,)?) => { $(impl crate::kinds::Kind for $ty {})* };
}
pub(crate) use plain;

#[cfg(test)]
mod tests {
    use crate::resource::{RESOURCES, find};
    use serde_json::{Value, json};

    pub(super) fn normalized(group: &str, version: &str, plural: &str, object: Value) -> Value {
        (find(group, version, plural).unwrap().ops.normalize)(object).unwrap().object
    }

    pub(super) fn errors(group: &str, version: &str, plural: &str, object: Value) -> Vec<String> {
        let row = find(group, version, plural).unwrap();
        let object = (row.ops.normalize)(object).unwrap().object;
        (row.ops.validate)(&object, None, crate::validate::Scope::Main)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_is_said_in_two_fields_is_kept_equal_and_no_spec_is_an_empty_one() {
        let node = |spec: Value| {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "spec": spec});
            normalized("", "v1", "nodes", node)["spec"].clone()
        };
        let both = json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]});
        assert_eq!(node(json!({"podCIDR": "10.1.0.0/24"})), both);
        assert_eq!(node(json!({"podCIDRs": ["10.1.0.0/24"]})), both);
        assert_eq!(node(json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.2.0.0/24"]})), both);
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}});
        assert_eq!(errors("", "v1", "services", service), ["spec.ports: Required value"]);
    }

    #[test]
    fn every_kind_normalizes_the_empty_object_and_again_to_the_same() {
        for r in RESOURCES {
            let empty = json!({"apiVersion": r.api_version(), "kind": r.kind, "metadata": {"name": "a"}});
            let once = (r.ops.normalize)(empty).unwrap_or_else(|e| panic!("{}: {e}", r.qualified())).object;
            let again = (r.ops.normalize)(once.clone()).unwrap();
            assert_eq!(again.unknown, Vec::<String>::new(), "{}", r.qualified());
            assert_eq!(again.object, once, "{}", r.qualified());
            (r.ops.validate)(&once, Some(&once), crate::validate::Scope::Main);
        }
    }
}
