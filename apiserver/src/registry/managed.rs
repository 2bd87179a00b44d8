//! `metadata.managedFields` of what is written: the registry's side of server-side apply.
//!
//! While a write is on its way, the managers are kept apart from the object: decoding, defaulting,
//! validation and admission neither see nor pay for them. They are put back before it is stored.

use decapod_api::apply::{self, Apply, Managers, Versions, Writer};
use decapod_api::facts::{self, Type};
use decapod_api::resource::{self, RESOURCES, Resource, Storage};
use decapod_api::status::{ApplyConflict, Error};
use serde_json::Value;

use super::object::set_meta;
use super::{Call, convert};

/// How a write says who owns what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracking {
    /// The writer owns what it changes.
    Update,
    /// The changed object carries its managers.
    Given,
    /// The managers stay as they are: what the server itself derives is nobody's.
    Keep,
}

/// The managers of an object before and after a write.
#[derive(Debug, Default)]
pub(crate) struct Tracked {
    pub(crate) live: Option<Value>,
    pub(crate) next: Option<Value>,
}

impl Tracked {
    /// Whether the write leaves them as they are; a time alone is no change.
    pub(crate) fn unchanged(&self) -> bool {
        Managers::same_but_for_times(self.live.as_ref(), self.next.as_ref())
    }
}

/// Takes the managers out of an object.
pub(crate) fn take(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

/// Puts managers into an object.
pub(crate) fn set(object: &mut Value, managed: Option<Value>) {
    if let Some(managed) = managed {
        set_meta(object, "managedFields", managed);
    }
}

/// The type of a row's objects.
pub(crate) fn type_of(resource: &Resource) -> &'static Type {
    facts::lookup(resource.type_name).expect("every row's type has facts")
}

type Paths = &'static [&'static [&'static str]];

/// What a write by a resource or subresource cannot change, and so does not own.
fn reset(resource: &Resource, subresource: &str) -> Paths {
    let with_status = resource.subresource("status").is_some();
    match (subresource, resource.group, resource.plural) {
        ("", "certificates.k8s.io", _) => &[&["spec"], &["status"]],
        ("approval", ..) => &[&["spec"], &["status", "certificate"]],
        ("status", "certificates.k8s.io", _) => &[&["spec"], &["status", "conditions"]],
        ("" | "finalize", ..) if with_status => &[&["status"]],
        ("status", "", "pods") => {
            &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]
        }
        ("status", "apps", "deployments") => &[&["spec"], &["metadata", "labels"]],
        (
            "status",
            "flowcontrol.apiserver.k8s.io"
            | "resource.k8s.io"
            | "storage.k8s.io"
            | "apiregistration.k8s.io"
            | "admissionregistration.k8s.io",
            _,
        )
        | ("status", "networking.k8s.io", "servicecidrs") => &[&["spec"], &["metadata"]],
        ("status", ..) => &[&["spec"]],
        ("ephemeralcontainers" | "resize", ..) => &[&["status"]],
        _ => &[],
    }
}

/// The rows that keep their objects at the same place.
struct Siblings(&'static Resource);

impl Versions for Siblings {
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, &'static Type)> {
        let stored_as = |row: &Resource| match row.storage {
            Storage::SharedWith(group, version) => resource::api_version(group, version),
            _ => row.api_version(),
        };
        let shared = stored_as(self.0);
        let find = |version: &str| {
            let mut rows = RESOURCES.iter().filter(|row| row.plural == self.0.plural);
            rows.find(|row| row.api_version() == version && stored_as(row) == shared)
        };
        let other = find(api_version)?;
        let from = object.get("apiVersion").and_then(Value::as_str).and_then(find).unwrap_or(self.0);
        Some((convert::served(other, convert::stored(from, object).into_owned()), type_of(other)))
    }
}

/// No other versions: those of a `Scale`.
struct Only(&'static Type, &'static str);

impl Versions for Only {
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, &'static Type)> {
        (api_version == self.1).then(|| (object.clone(), self.0))
    }
}

/// The managers of a new object.
pub(crate) fn created(call: &Call, object: &Value, now: &str) -> Option<Value> {
    let version = call.resource.api_version();
    apply::created(object, type_of(call.resource), &writer(call, &version, now)).into_value()
}

fn writer<'a>(call: &'a Call, version: &'a str, now: &'a str) -> Writer<'a> {
    Writer {
        manager: &call.manager,
        api_version: version,
        subresource: &call.subresource,
        now,
        reset: reset(call.resource, &call.subresource),
    }
}

/// The managers of an object after a write, all states without their managers.
pub(crate) fn updated(
    call: &Call,
    (old, live): (&Value, Option<&Value>),
    (new, asked): (&Value, Option<&Value>),
    now: &str,
) -> Option<Value> {
    // A subresource does not change the managers of what it does not write.
    let asked = asked.filter(|_| call.subresource.is_empty());
    let managers = Managers::proposed(asked, live);
    let version = call.resource.api_version();
    let writer = writer(call, &version, now);
    apply::updated(managers, old, new, type_of(call.resource), &writer, &Siblings(call.resource)).into_value()
}

/// A live object (null: there is none) with a configuration applied, with its managers; not yet
/// decoded and defaulted.
pub(crate) fn applied(call: &Call, live: &Value, apply: Apply<'_>, now: &str) -> Result<Value, Error> {
    let mut config = apply.config.clone();
    check_config(call, call.resource.gvk(), &mut config)?;
    let mut old = if live.is_null() { serde_json::json!({}) } else { live.clone() };
    let managers = Managers::stored(take(&mut old).as_ref());
    let version = call.resource.api_version();
    let (ty, versions) = (type_of(call.resource), Siblings(call.resource));
    let apply = Apply { config: &config, ..apply };
    let applied = apply::applied(&old, managers, apply, ty, &writer(call, &version, now), &versions)
        .map_err(|e| refused(call, call.resource.gvk(), e))?;
    let mut object = applied.object.unwrap_or(old);
    set_meta(&mut object, "managedFields", applied.managers.into_value().unwrap_or_default());
    Ok(object)
}

fn check_config(call: &Call, wanted: resource::Gvk, config: &mut Value) -> Result<(), Error> {
    let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if !config.is_object()
        || version != resource::api_version(wanted.group, wanted.version)
        || kind != wanted.kind
    {
        let found = match version.split_once('/') {
            Some((group, version)) => format!("{group}/{version}, Kind={kind}"),
            None => format!("/{version}, Kind={kind}"),
        };
        return Err(Error::BadRequest(format!("invalid object type: {found}")));
    }
    if config["metadata"].get("managedFields").is_some_and(|m| !m.is_null()) {
        return Err(Error::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    if call.resource.namespaced()
        && let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.entry("namespace").or_insert_with(|| call.namespace.clone().into());
    }
    Ok(())
}

fn refused(call: &Call, gvk: resource::Gvk, error: apply::Error) -> Error {
    match error {
        apply::Error::Schema(why) => Error::Failed(format!(
            "failed to create typed patch object ({}/{}; {}/{}, Kind={}): {why}",
            call.namespace, call.name, gvk.group, gvk.version, gvk.kind
        )),
        apply::Error::Conflicts(ref conflicts) => Error::Apply {
            message: error.to_string(),
            conflicts: conflicts
                .iter()
                .map(|c| ApplyConflict { manager: c.manager.clone(), path: c.path.clone() })
                .collect(),
        },
    }
}

const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

/// A write of the `Scale` of an object.
pub(crate) enum ScaleWrite<'a> {
    /// The whole, as it is to be.
    Update(&'a Value),
    /// A configuration.
    Apply(Apply<'a>),
}

/// The `Scale` that a write makes, and the managers that the object has then.
pub(crate) fn scaled(
    call: &Call,
    object: &Value,
    scale: &Value,
    write: &ScaleWrite<'_>,
    now: &str,
) -> Result<(Value, Option<Value>), Error> {
    let ty = facts::lookup(SCALE).expect("the type of a Scale has facts");
    let version = apply::scale::API_VERSION;
    let managers = Managers::stored(object["metadata"].get("managedFields"));
    let seen = apply::scale::of_object(&managers);
    let writer =
        Writer { manager: &call.manager, api_version: version, subresource: "scale", now, reset: &[] };
    let versions = Only(ty, version);
    let (scale, seen) = match write {
        ScaleWrite::Update(new) => {
            // An object that nobody is known to own anything of stays so.
            let seen = if managers.is_empty() {
                Managers::default()
            } else if seen.is_empty() {
                apply::created(&owned_part(scale, new), ty, &writer)
            } else {
                apply::updated(seen, scale, new, ty, &writer, &versions)
            };
            ((*new).clone(), seen)
        }
        ScaleWrite::Apply(wanted) => {
            let gvk = resource::Gvk { group: "autoscaling", version: "v1", kind: "Scale" };
            let mut config = wanted.config.clone();
            check_config(call, gvk, &mut config)?;
            let wanted = Apply { config: &config, ..*wanted };
            let applied = apply::applied(scale, seen, wanted, ty, &writer, &versions)
                .map_err(|e| refused(call, gvk, e))?;
            (applied.object.unwrap_or_else(|| scale.clone()), applied.managers)
        }
    };
    let managers = apply::scale::to_object(managers, seen, &call.resource.api_version());
    Ok((scale, managers.into_value()))
}

/// What a write of a `Scale` that nobody owned yet changes: the number, if it does.
fn owned_part(old: &Value, new: &Value) -> Value {
    let replicas = &new["spec"]["replicas"];
    if *replicas == old["spec"]["replicas"] {
        return serde_json::json!({});
    }
    serde_json::json!({"spec": {"replicas": replicas}})
}

/// The manager's name where the request gives none: its user agent up to the first `/`. Components
/// in this process have none, and go by their user's name.
pub(crate) fn manager_of(user_agent: &str, user: &str) -> String {
    /// The longest name of a manager, in bytes.
    const MAX: usize = 128;
    let name = match (user_agent.split('/').next().unwrap_or_default(), user.strip_prefix("system:")) {
        ("", Some(node)) if node.starts_with("node:") => "kubelet",
        ("", Some(user)) => user.rsplit(':').next().unwrap_or_default(),
        (name, _) => name,
    };
    let mut text = String::new();
    for c in name.chars().filter(|c| !c.is_control()) {
        if text.len() + c.len_utf8() > MAX {
            break;
        }
        text.push(c);
    }
    text
}
