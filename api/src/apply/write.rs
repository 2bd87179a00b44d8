//! What a write does to the managers of an object: updates take what they change, applies own what
//! they say.

use std::sync::LazyLock;

use serde_json::Value;

use super::diff::{Diff, diff, same};
use super::entry::{Entry, Managers, Operation};
use super::owned::{named, owned};
use super::set::FieldSet;
use super::{merge, remove, validate};
use crate::facts::Type;

/// Bookkeeping that nobody owns.
const STRIPPED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];
/// Who is said to own what was there before the first apply.
const BEFORE_APPLY: &str = "before-first-apply";
/// The manager whose applies mind what client-side apply left behind.
const KUBECTL: &str = "kubectl";
/// Where client-side apply keeps what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The manager's name; empty is `unknown`.
    pub manager: &'a str,
    /// The version of the kind in which it writes.
    pub api_version: &'a str,
    /// The subresource by which it writes; empty for the object itself.
    pub subresource: &'a str,
    /// The time, RFC 3339.
    pub now: &'a str,
    /// The paths that a write of this sort cannot change, so that it does not own them either.
    pub reset: &'a [&'static [&'static str]],
}

impl Writer<'_> {
    fn entry(&self, operation: Operation, fields: FieldSet) -> Entry {
        let manager = if self.manager.is_empty() { "unknown" } else { self.manager };
        Entry {
            manager: manager.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
            time: None,
            fields,
        }
    }

    fn diff(&self, old: &Value, new: &Value, ty: &'static Type) -> Diff {
        let mut diff = diff(old, new, ty);
        self.reset.iter().for_each(|path| diff.exclude(path));
        diff
    }
}

/// The other versions of a kind.
pub trait Versions {
    /// An object of any version in another version, with that version's type; `None` if there is no
    /// such version.
    fn convert(&self, object: &Value, api_version: &str) -> Option<(Value, &'static Type)>;
}

fn strip(fields: &mut FieldSet) {
    static ALL: LazyLock<FieldSet> = LazyLock::new(|| {
        STRIPPED.iter().fold(FieldSet::default(), |all, path| all.union(&FieldSet::path(path)))
    });
    fields.subtract(&ALL);
}

/// The managers of a new object, as its creator sent it and defaults completed it.
pub fn created(object: &Value, ty: &'static Type, writer: &Writer<'_>) -> Managers {
    let (mut fields, _) = writer.diff(&Value::Object(serde_json::Map::new()), object, ty).split();
    strip(&mut fields);
    let mut managers = Managers::default();
    if !fields.is_empty() {
        let mut entry = writer.entry(Operation::Update, fields);
        entry.time = Some(writer.now.to_owned());
        managers.0.push(entry);
    }
    managers
}

/// The managers after an update from one state to another: the writer owns what it changed.
/// While nobody is known to own anything, nobody comes to.
pub fn updated(
    mut managers: Managers,
    old: &Value,
    new: &Value,
    ty: &'static Type,
    writer: &Writer<'_>,
    versions: &dyn Versions,
) -> Managers {
    if managers.is_empty() {
        return managers;
    }
    take(&mut managers, old, new, ty, writer, versions);
    managers.cap();
    managers
}

fn take(
    managers: &mut Managers,
    old: &Value,
    new: &Value,
    ty: &'static Type,
    writer: &Writer<'_>,
    versions: &dyn Versions,
) {
    let (mut written, removed) = writer.diff(old, new, ty).split();
    lose(managers, (&written, &removed), |_| false, &(old, new), writer, versions);
    strip(&mut written);
    if written.is_empty() {
        return;
    }
    let mut entry = writer.entry(Operation::Update, written);
    entry.time = Some(writer.now.to_owned());
    if let Some(known) = managers.0.iter().find(|known| known.same_as(&entry)) {
        entry.fields = entry.fields.union(&known.fields);
    }
    managers.put(entry);
}

/// Takes from all managers but the writer what a write changed.
fn lose(
    managers: &mut Managers,
    (written, removed): (&FieldSet, &FieldSet),
    is_writer: impl Fn(&Entry) -> bool,
    states: &(&Value, &Value),
    writer: &Writer<'_>,
    versions: &dyn Versions,
) {
    managers.0.retain_mut(|entry| {
        if is_writer(entry) {
            return true;
        }
        if entry.api_version == writer.api_version {
            entry.fields.subtract(written);
            entry.fields.subtract(removed);
        } else {
            let Some(other) = converted(states, &entry.api_version, versions) else { return false };
            let (written, removed) = other.split();
            entry.fields.subtract(&written);
            entry.fields.subtract(&removed);
        }
        !entry.fields.is_empty()
    });
}

fn converted((old, new): &(&Value, &Value), version: &str, versions: &dyn Versions) -> Option<Diff> {
    let (old, _) = versions.convert(old, version)?;
    let (new, ty) = versions.convert(new, version)?;
    Some(diff(&old, &new, ty))
}

/// A configuration that is to be applied.
#[derive(Clone, Copy, Debug)]
pub struct Apply<'a> {
    /// What the manager wants.
    pub config: &'a Value,
    /// Whether it takes what others own with another value.
    pub force: bool,
}

/// What came of an apply.
#[derive(Debug)]
pub struct Applied {
    /// The object; `None` if the live one is what is wanted.
    pub object: Option<Value>,
    /// Its managers.
    pub managers: Managers,
}

/// A field that another manager owns with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The manager as Kubernetes shows it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// The field, `.spec.replicas`.
    pub path: String,
}

/// Why a configuration cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration does not fit the schema.
    #[error("{0}")]
    Schema(String),
    /// Others own fields that it sets.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.path);
    }
    let mut lines = Vec::new();
    let mut last = "";
    for conflict in conflicts {
        if conflict.manager != last {
            lines.push(format!("conflicts with {}:", conflict.manager));
            last = &conflict.manager;
        }
        lines.push(format!("- {}", conflict.path));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Applies a configuration to a live object (without its `managedFields`; empty if it is new).
///
/// # Errors
/// See [`Error`].
pub fn applied(
    live: &Value,
    managers: Managers,
    apply: Apply<'_>,
    ty: &'static Type,
    writer: &Writer<'_>,
    versions: &dyn Versions,
) -> Result<Applied, Error> {
    validate::check(apply.config, ty).map_err(Error::Schema)?;
    let mut managers = managers;
    let exists = live.get("metadata").and_then(|m| m.get("uid")).is_some();
    if managers.is_empty() && exists {
        let before = Writer { manager: BEFORE_APPLY, ..*writer };
        take(&mut managers, &Value::Object(serde_json::Map::new()), live, ty, &before, versions);
    }
    let attempt = |force| once(live, managers.clone(), Apply { force, ..apply }, ty, writer, versions);
    let mut applied = match attempt(apply.force) {
        Err(Error::Conflicts(conflicts)) if writer.manager == KUBECTL => {
            let allowed = client_side(live, ty, writer.api_version).unwrap_or_default();
            let rest: Vec<Conflict> = conflicts.into_iter().filter(|c| !allowed.contains(&c.path)).collect();
            if rest.is_empty() { attempt(true)? } else { return Err(Error::Conflicts(rest)) }
        }
        other => other?,
    };
    if writer.manager == KUBECTL {
        sync_last_applied(live, &mut applied, apply.config);
    }
    Ok(applied)
}

fn last_applied(object: &Value) -> Option<&str> {
    let annotations = object.get("metadata")?.get("annotations")?;
    annotations.get(LAST_APPLIED)?.as_str().filter(|text| !text.is_empty())
}

/// What client-side apply set and is still as it set it: server-side apply by kubectl takes it over.
fn client_side(live: &Value, ty: &'static Type, api_version: &str) -> Option<Vec<String>> {
    let config: Value = serde_json::from_str(last_applied(live)?).ok()?;
    if config.get("apiVersion").and_then(Value::as_str) != Some(api_version) {
        return None;
    }
    let Diff { added, modified, removed } = diff(&config, live, ty);
    let set = owned(&config, ty).difference(&modified).difference(&added).difference(&removed);
    Some(set.paths())
}

/// Keeps the annotation of client-side apply, where there is one, at what kubectl applied last.
fn sync_last_applied(live: &Value, applied: &mut Applied, config: &Value) {
    if last_applied(applied.object.as_ref().unwrap_or(live)).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    let object = applied.object.get_or_insert_with(|| live.clone());
    object["metadata"]["annotations"][LAST_APPLIED] = format!("{config}\n").into();
}

fn once(
    live: &Value,
    mut managers: Managers,
    apply: Apply<'_>,
    ty: &'static Type,
    writer: &Writer<'_>,
    versions: &dyn Versions,
) -> Result<Applied, Error> {
    let merged = merge::merge(live, apply.config, ty);
    let mut fields = owned(apply.config, ty);
    writer.reset.iter().for_each(|path| fields.exclude(path));
    let mut entry = writer.entry(Operation::Apply, fields);
    let last = managers.0.iter().position(|known| known.same_as(&entry)).map(|at| managers.0.swap_remove(at));
    entry.time = last.as_ref().and_then(|last| last.time.clone());
    managers.0.push(entry.clone());
    let object = match last {
        Some(last) if !last.fields.is_empty() => prune(merged, &managers, &last, ty, writer, versions),
        _ => merged,
    };
    let is_writer = |known: &Entry| known.same_as(&entry);
    let (written, removed) = writer.diff(live, &object, ty).split();
    if !apply.force {
        let found = conflicts(&managers, &written, is_writer, &(live, &object), writer, versions);
        if !found.is_empty() {
            return Err(Error::Conflicts(found));
        }
    }
    lose(&mut managers, (&written, &removed), is_writer, &(live, &object), writer, versions);
    let changed = !same(live, &object);
    managers.0.retain_mut(|known| {
        if known.same_as(&entry) {
            strip(&mut known.fields);
            if changed {
                known.time = Some(writer.now.to_owned());
            }
        }
        !known.fields.is_empty()
    });
    Ok(Applied { object: changed.then_some(object), managers })
}

fn conflicts(
    managers: &Managers,
    written: &FieldSet,
    is_writer: impl Fn(&Entry) -> bool,
    states: &(&Value, &Value),
    writer: &Writer<'_>,
    versions: &dyn Versions,
) -> Vec<Conflict> {
    let mut found = Vec::new();
    for entry in managers.0.iter().filter(|entry| !is_writer(entry)) {
        let contested = if entry.api_version == writer.api_version {
            entry.fields.intersection(written)
        } else {
            let other = converted(states, &entry.api_version, versions).unwrap_or_default();
            entry.fields.intersection(&other.split().0)
        };
        let manager = shown(entry);
        found.extend(contested.paths().into_iter().map(|path| Conflict { manager: manager.clone(), path }));
    }
    // Managers in order, and the fields of each in the order of the set.
    found.sort_by(|a, b| a.manager.cmp(&b.manager));
    found
}

fn shown(entry: &Entry) -> String {
    let mut text = format!("{:?}", entry.manager);
    if !entry.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", entry.subresource));
    }
    if entry.operation == Operation::Update {
        text.push_str(&format!(" using {}", entry.api_version));
    }
    text
}

/// Takes out what the manager applied last time and not this time, unless another manager owns it.
fn prune(
    merged: Value,
    managers: &Managers,
    last: &Entry,
    ty: &'static Type,
    writer: &Writer<'_>,
    versions: &dyn Versions,
) -> Value {
    let at = |object: &Value, version: &str| -> Option<(Value, &'static Type)> {
        if object.get("apiVersion").and_then(Value::as_str).is_none_or(|v| v == version) {
            let ty = if version == writer.api_version { ty } else { versions.convert(object, version)?.1 };
            return Some((object.clone(), ty));
        }
        versions.convert(object, version)
    };
    let pruned = at(&merged, &last.api_version).and_then(|(there, there_type)| {
        let before = named(&last.fields, there_type);
        let mut pruned = there.clone();
        remove::remove(&mut pruned, &before, there_type);
        // What others own, each in its version, comes back...
        for version in versions_of(managers, &last.api_version) {
            let (Some((merged, ty)), Some((reduced, _))) = (at(&merged, version), at(&pruned, version))
            else {
                continue;
            };
            pruned = with_owned(merged, &reduced, &held_at(managers, version), ty);
        }
        // ...and what nobody owned, or an update set, was never this manager's to take out.
        let (pruned, _) = at(&pruned, &last.api_version)?;
        let all = named(&owned(&there, there_type), there_type);
        let gone = all.difference(&named(&owned(&pruned, there_type), there_type)).intersection(&before);
        let mut there = there;
        remove::remove(&mut there, &gone, there_type);
        at(&there, writer.api_version).map(|(object, _)| object)
    });
    pruned.unwrap_or(merged)
}

/// The versions in which managers name fields, `first` before the others.
fn versions_of<'a>(managers: &'a Managers, first: &'a str) -> Vec<&'a str> {
    let mut versions = vec![first];
    for entry in &managers.0 {
        if !versions.contains(&entry.api_version.as_str()) {
            versions.push(&entry.api_version);
        }
    }
    versions
}

fn held_at(managers: &Managers, version: &str) -> FieldSet {
    let entries = managers.0.iter().filter(|entry| entry.api_version == version);
    entries.fold(FieldSet::default(), |all, entry| all.union(&entry.fields))
}

/// The merged object without what was taken out of it, but for what is held.
fn with_owned(mut merged: Value, pruned: &Value, held: &FieldSet, ty: &'static Type) -> Value {
    let all = named(&owned(&merged, ty), ty);
    let kept = named(&owned(pruned, ty), ty).union(&named(held, ty));
    remove::remove(&mut merged, &all.difference(&kept), ty);
    merged
}
