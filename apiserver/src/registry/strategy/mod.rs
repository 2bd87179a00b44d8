//! What a kind does differently from the others when it is stored.
//!
//! Defaulting and validation over a kind's type live in `decapod-api`; a strategy is what needs
//! to know that this is a create or an update, who asks, or what else is stored.

mod job;
mod label_keys;
mod namespace;
mod pod;
pub(crate) mod service;

use async_trait::async_trait;
use decapod_api::facts::{self, Shape};
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use serde_json::{Map, Value, json};

use super::allocate::Claim;
use super::object::{copy_field, set_meta};
use super::options::Propagation;
use super::{Call, Registry};

/// A kind's own behaviour; the defaults are right for most.
#[async_trait]
pub(crate) trait Strategy: Send + Sync {
    /// Whether status is written by the `status` subresource only.
    fn has_status(&self, resource: &Resource) -> bool {
        resource.subresource("status").is_some()
    }

    /// Whether a PUT makes what is not there.
    fn create_on_update(&self) -> bool {
        false
    }

    /// Completes a new object.
    fn prepare_create(&self, call: &Call, object: &mut Value) {
        if self.has_status(call.resource) {
            object["status"] = fresh_status(call.resource);
        }
    }

    /// Completes an object that replaces another; status was put back already.
    fn prepare_update(&self, _new: &mut Value, _old: &Value) {}

    /// Completes an object of which only the status is to be changed, at the time `now`.
    fn prepare_status(&self, resource: &Resource, new: &mut Value, old: &Value, _now: &str) {
        only_status(resource, new, old);
    }

    /// Takes what a write needs besides its own key. Called last, once all else is valid.
    async fn claim(
        &self,
        _registry: &Registry,
        _call: &Call,
        _new: &mut Value,
        _old: Option<&Value>,
    ) -> Result<Claim, Error> {
        Ok(Claim::default())
    }

    /// The object is gone: gives back what it held.
    async fn released(&self, _registry: &Registry, _old: &Value) {}

    /// The grace period of a deletion in seconds, given what was asked for.
    fn grace(&self, _object: &Value, _asked: Option<i64>) -> i64 {
        0
    }

    /// Whether an object without finalizers may go.
    fn may_go(&self, _object: &Value) -> bool {
        true
    }

    /// What becomes of dependents where a deletion does not say.
    fn dependents(&self) -> Option<Propagation> {
        None
    }

    /// The deletion begins.
    fn deletion_begins(&self, _object: &mut Value) {}

    /// Whether a deletion answers with the object rather than with a `Status`.
    fn returns_deleted(&self) -> bool {
        false
    }
}

/// Counts of a status that Kubernetes always writes without requiring them.
const WRITTEN: [&str; 5] =
    ["availableReplicas", "currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"];

/// The status of a new object: the counts that it must have, or that clients find in it from the start, are zero.
fn fresh_status(resource: &Resource) -> Value {
    let status = facts::lookup(resource.type_name).and_then(|ty| ty.fields.get("status")?.shape.resolve());
    let fields = status.into_iter().flat_map(|status| &status.fields);
    let written = match resource.plural {
        "poddisruptionbudgets" | "statefulsets" => &WRITTEN[..],
        _ => &[],
    };
    let counts = fields.filter(|(name, field)| {
        matches!(field.shape, Shape::Int32 | Shape::Int64) && (field.required || written.contains(name))
    });
    counts.map(|(name, _)| ((*name).to_owned(), Value::from(0))).collect::<Map<_, _>>().into()
}

/// Everything but the status stays; annotations and finalizers may change with it.
pub(crate) fn only_status(resource: &Resource, new: &mut Value, old: &Value) {
    let fields: Vec<String> =
        new.as_object().into_iter().chain(old.as_object()).flatten().map(|(k, _)| k.clone()).collect();
    for field in fields.iter().filter(|f| !matches!(f.as_str(), "metadata" | "status")) {
        copy_field(new, old, field);
    }
    if matches!(resource.group, "apps" | "batch") {
        set_meta(new, "labels", old["metadata"]["labels"].clone());
    }
    set_meta(new, "ownerReferences", old["metadata"]["ownerReferences"].clone());
}

/// Where a volume says since when it is in its phase.
const PHASE_SINCE: &str = "lastPhaseTransitionTime";

/// The kinds without behaviour of their own.
struct Plain;

impl Strategy for Plain {}

/// Kinds that a PUT may create, as Kubernetes allows it.
struct Upsert;

impl Strategy for Upsert {
    fn create_on_update(&self) -> bool {
        true
    }
}

/// Nodes register with their status.
struct Node;

impl Strategy for Node {
    fn prepare_create(&self, _call: &Call, _object: &mut Value) {}
}

/// Claims start out pending.
struct VolumeClaim;

impl Strategy for VolumeClaim {
    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
        source(object);
    }

    fn prepare_update(&self, new: &mut Value, _old: &Value) {
        source(new);
    }

    fn returns_deleted(&self) -> bool {
        true
    }
}

/// Where a claim's data comes from is said in two fields: the older one takes what Kubernetes itself could always
/// copy from, and both are kept equal where both can say it.
fn source(claim: &mut Value) {
    let spec = super::object::map_mut(claim, "spec");
    let text = |of: &Value, field: &str| of[field].as_str().unwrap_or_default().to_owned();
    match (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned()) {
        (Some(source), None) => {
            let known = [("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")];
            let (group, kind) = (text(&source, "apiGroup"), text(&source, "kind"));
            if known.contains(&(group.as_str(), kind.as_str())) {
                spec.insert("dataSourceRef".to_owned(), source);
            } else {
                spec.remove("dataSource");
            }
        }
        (None, Some(reference)) if text(&reference, "namespace").is_empty() => {
            spec.insert("dataSource".to_owned(), reference);
        }
        _ => {}
    }
}

/// DaemonSets count the templates that they had, in an annotation: older clients, and the labels of pods, know them by
/// it.
struct DaemonSet;

const TEMPLATES: &str = "deprecated.daemonset.template.generation";

impl DaemonSet {
    fn count(object: &mut Value, count: u64) {
        let annotations = &mut object["metadata"]["annotations"];
        annotations[TEMPLATES] = count.to_string().into();
    }
}

impl Strategy for DaemonSet {
    fn prepare_create(&self, call: &Call, object: &mut Value) {
        object["status"] = fresh_status(call.resource);
        Self::count(object, 1);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        let before = old["metadata"]["annotations"][TEMPLATES].as_str().and_then(|text| text.parse().ok());
        let before: u64 = before.unwrap_or(1);
        let changed = new["spec"]["template"] != old["spec"]["template"];
        Self::count(new, before.saturating_add(u64::from(changed)));
    }
}

/// Volumes start out pending, and tell since when they are in their phase (KEP-3762).
struct Volume;

impl Strategy for Volume {
    fn prepare_create(&self, _call: &Call, object: &mut Value) {
        let now = object["metadata"]["creationTimestamp"].clone();
        object["status"] = json!({"phase": "Pending", PHASE_SINCE: now});
    }

    fn prepare_status(&self, resource: &Resource, new: &mut Value, old: &Value, now: &str) {
        only_status(resource, new, old);
        let (before, after) = (&old["status"], &mut new["status"]);
        if !after.is_object() {
            return;
        }
        let moved = before["phase"] != after["phase"];
        if moved && (after[PHASE_SINCE].is_null() || after[PHASE_SINCE] == before[PHASE_SINCE]) {
            after[PHASE_SINCE] = now.into();
        } else if !moved && after[PHASE_SINCE].is_null() && !before[PHASE_SINCE].is_null() {
            after[PHASE_SINCE] = before[PHASE_SINCE].clone();
        }
    }

    fn returns_deleted(&self) -> bool {
        true
    }
}

/// Certificate signing requests carry who made them.
struct SigningRequest;

impl Strategy for SigningRequest {
    fn prepare_create(&self, call: &Call, object: &mut Value) {
        object["status"] = json!({});
        let user = serde_json::to_value(&call.user).expect("a user is a plain JSON tree");
        for field in ["username", "uid", "groups", "extra"] {
            let spec = super::object::map_mut(object, "spec");
            match user.get(field) {
                Some(value) => drop(spec.insert(field.to_owned(), value.clone())),
                None => drop(spec.remove(field)),
            }
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        copy_field(new, old, "spec");
    }
}

/// The kinds whose deletion answers with the object.
struct Returning;

impl Strategy for Returning {
    fn returns_deleted(&self) -> bool {
        true
    }
}

/// Whether a PUT may leave out which version it replaces.
pub(crate) fn unconditional(resource: &Resource) -> bool {
    match (resource.group, resource.plural) {
        ("admissionregistration.k8s.io" | "apiregistration.k8s.io" | "apiextensions.k8s.io", _)
        | ("coordination.k8s.io" | "node.k8s.io", _)
        | ("policy", "poddisruptionbudgets") => false,
        ("storage.k8s.io", plural) => matches!(plural, "storageclasses" | "volumeattributesclasses"),
        _ => true,
    }
}

/// The strategy of a kind.
pub(crate) fn of(resource: &Resource) -> &'static dyn Strategy {
    match (resource.group, resource.plural) {
        ("", "pods") => &pod::Pod,
        ("", "services") => &service::Service,
        ("", "namespaces") => &namespace::Namespace,
        ("", "nodes") => &Node,
        ("", "persistentvolumes") => &Volume,
        ("", "persistentvolumeclaims") => &VolumeClaim,
        ("apps", "daemonsets") => &DaemonSet,
        ("batch", "jobs") => &job::Job,
        ("certificates.k8s.io", _) => &SigningRequest,
        ("", "endpoints" | "events" | "limitranges")
        | ("events.k8s.io", _)
        | ("coordination.k8s.io", "leases")
        | ("node.k8s.io", "runtimeclasses")
        | ("rbac.authorization.k8s.io", _) => &Upsert,
        ("", "serviceaccounts" | "resourcequotas" | "podtemplates") => &Returning,
        _ => &Plain,
    }
}
