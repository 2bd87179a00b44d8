//! Update: the one loop by which anything that exists is changed.

use decapod_api::status::Error;
use decapod_api::validate::Scope;
use decapod_api::warnings;
use decapod_api::{field, meta};
use decapod_storage::{self as storage, Entry, Precondition};
use serde_json::Value;

use super::managed::{self, Tracked, Tracking};
use super::object::{self, copy_field, set_meta};
use super::{Call, MAX_RETRIES, MODIFIED, Registry, body, convert, generation, reads, strategy};
use crate::admission::{self, Operation};
use crate::clock::rfc3339;

/// Which part of an object a request may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but the status, where the kind has the subresource.
    Main,
    /// The status (and what the strategy allows of the metadata).
    Status,
    /// What the caller computed: subresources that know what they change.
    Whole,
}

/// What came of an update.
#[derive(Debug)]
pub(crate) struct Updated {
    /// The object as it is now.
    pub(crate) object: Value,
    /// Whether it was made by this request.
    pub(crate) created: bool,
}

impl Registry {
    /// Replaces an object (PUT).
    pub(crate) async fn replace(
        &self,
        call: &Call,
        part: Part,
        mut body: Value,
        duplicates: &[String],
    ) -> Result<Updated, Error> {
        body::check_kind(call.resource, &mut body)?;
        let object = body::normalize(call, body, duplicates)?;
        check_identity(call, &object)?;
        let unversioned = object::version(&object).is_empty();
        let creates = part == Part::Main && strategy::of(call.resource).create_on_update();
        if creates && unversioned && self.store.get(&call.key()?).await.map_err(reads::failed)?.is_none() {
            let created = self.create(call, object, duplicates).await?;
            return Ok(Updated { object: created, created: true });
        }
        if unversioned && !strategy::unconditional(call.resource) && self.current(call).await?.is_some() {
            let path = field::Path::new("metadata").child("resourceVersion");
            let error = field::Error::invalid(&path, 0, "must be specified for an update");
            return Err(call.invalid(&call.name, vec![error]));
        }
        let object = self.modify(call, part, |_| Ok(object.clone())).await?;
        Ok(Updated { object, created: false })
    }

    /// Changes an object by a function of its current state. Runs again if another write came
    /// between, unless the function's result names the version that it wants to replace.
    pub(crate) async fn modify(
        &self,
        call: &Call,
        part: Part,
        change: impl Fn(&Value) -> Result<Value, Error> + Send,
    ) -> Result<Value, Error> {
        self.modify_as(call, part, Tracking::Update, change).await
    }

    /// Changes an object, and says who owns what was changed.
    pub(crate) async fn modify_as(
        &self,
        call: &Call,
        part: Part,
        tracking: Tracking,
        change: impl Fn(&Value) -> Result<Value, Error> + Send,
    ) -> Result<Value, Error> {
        for _ in 0..MAX_RETRIES {
            let (mut old, entry) = self.current(call).await?.ok_or_else(|| call.not_found())?;
            let mut proposed = change(&old)?;
            let version = object::version(&proposed);
            let outdated = !version.is_empty() && version != entry.modified.to_string();
            check_preconditions(call, &proposed, &old, outdated)?;
            let tracked = self.track(call, tracking, &mut old, &mut proposed);
            match self.try_write(call, part, proposed, tracked, &old, &entry).await {
                Err(Attempt::Lost) => continue,
                Err(Attempt::Failed(error)) => return Err(error),
                Ok(object) => return Ok(object),
            }
        }
        Err(call.conflict(MODIFIED))
    }

    /// Takes the managers out of both states, and says what they are after the write.
    fn track(&self, call: &Call, tracking: Tracking, old: &mut Value, proposed: &mut Value) -> Tracked {
        let (live, asked) = (managed::take(old), managed::take(proposed));
        let next = match tracking {
            Tracking::Keep => live.clone(),
            Tracking::Given => asked,
            Tracking::Update => {
                let now = rfc3339(self.clock.now());
                managed::updated(call, (old, live.as_ref()), (proposed, asked.as_ref()), &now)
            }
        };
        Tracked { live, next }
    }

    async fn try_write(
        &self,
        call: &Call,
        part: Part,
        proposed: Value,
        tracked: Tracked,
        old: &Value,
        entry: &Entry,
    ) -> Result<Value, Attempt> {
        let resource = call.resource;
        let mut new = proposed;
        keep_system_fields(&mut new, old);
        warnings::dedup_owners(&mut new).into_iter().for_each(|warning| call.warn(warning));
        let strategy = strategy::of(resource);
        match part {
            Part::Main => {
                if strategy.has_status(resource) {
                    copy_field(&mut new, old, "status");
                }
                strategy.prepare_update(&mut new, old);
            }
            Part::Status => {
                strategy.prepare_status(resource, &mut new, old, &rfc3339(self.clock.now()));
            }
            Part::Whole => {}
        }
        generation::carry(resource, &mut new, old);
        admission::mutate(self, call, Operation::Update, &mut new, Some(old)).await?;
        let mut errors = meta::validate(&new, resource);
        errors.extend(convert::validate(resource, &new, Some(old), scope(call, part)));
        errors.extend(admission::malformed(call, &new, Some(old)));
        errors.extend(finalizers_only_go(&new, old));
        if !errors.is_empty() {
            return Err(call.invalid(&call.name, errors).into());
        }
        admission::validate(self, call, Operation::Update, &new, Some(old)).await?;
        if part == Part::Main {
            warnings::of_write(resource, &new, Some(old)).into_iter().for_each(|warning| call.warn(warning));
        }
        if new == *old && tracked.unchanged() {
            managed::set(&mut new, tracked.live);
            return Ok(new);
        }
        if done_for(&new) && strategy.may_go(&new) {
            managed::set(&mut new, tracked.next);
            return self.finish_deletion(call, new, old, entry).await;
        }
        let claim = strategy.claim(self, call, &mut new, Some(old)).await?;
        managed::set(&mut new, tracked.next);
        if call.options.dry_run {
            claim.cancel(self).await;
            return Ok(new);
        }
        let bytes = object::encode(&convert::stored(resource, &new));
        match self.store.update(&entry.key, bytes, Precondition::ModifiedAt(entry.modified)).await {
            Ok(entry) => {
                claim.keep(self).await;
                set_meta(&mut new, "resourceVersion", entry.modified.to_string().into());
                Ok(new)
            }
            Err(storage::Error::Conflict(_)) => {
                claim.cancel(self).await;
                Err(Attempt::Lost)
            }
            Err(error) => Err(reads::failed(error).into()),
        }
    }

    /// The last finalizer of an object that is being deleted was taken: it goes.
    async fn finish_deletion(
        &self,
        call: &Call,
        new: Value,
        old: &Value,
        entry: &Entry,
    ) -> Result<Value, Attempt> {
        if call.options.dry_run {
            return Ok(new);
        }
        match self.store.delete(&entry.key, Precondition::ModifiedAt(entry.modified)).await {
            Ok(_) => {
                strategy::of(call.resource).released(self, old).await;
                Ok(new)
            }
            Err(storage::Error::Conflict(_)) => Err(Attempt::Lost),
            Err(error) => Err(reads::failed(error).into()),
        }
    }
}

/// What of the object a request changes, as validation has it.
fn scope(call: &Call, part: Part) -> Scope {
    match (part, call.subresource.as_str()) {
        (Part::Main, _) => Scope::Main,
        (Part::Status, _) => Scope::Status,
        (Part::Whole, "ephemeralcontainers") => Scope::Ephemeral,
        (Part::Whole, "resize") => Scope::Resize,
        (Part::Whole, _) => Scope::Whole,
    }
}

/// Why an attempt to write came to nothing.
enum Attempt {
    /// Another write came between.
    Lost,
    /// It is refused.
    Failed(Error),
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The body names the object of the path.
pub(crate) fn check_identity(call: &Call, object: &Value) -> Result<(), Error> {
    let name = meta::name(object);
    if name != call.name {
        return Err(Error::BadRequest(if name.is_empty() {
            "metadata.name: Required value: name must be provided".to_owned()
        } else {
            format!("the name of the object ({name}) does not match the name on the URL ({})", call.name)
        }));
    }
    let namespace = meta::namespace(object);
    if call.resource.namespaced() && !namespace.is_empty() && namespace != call.namespace {
        return Err(Error::BadRequest(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the URL ({})",
            call.namespace
        )));
    }
    Ok(())
}

fn check_preconditions(call: &Call, proposed: &Value, old: &Value, outdated: bool) -> Result<(), Error> {
    let (wanted, found) = (meta::uid(proposed), meta::uid(old));
    if !wanted.is_empty() && wanted != found {
        return Err(call.conflict(format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
        )));
    }
    if outdated { Err(call.conflict(MODIFIED)) } else { Ok(()) }
}

/// What only the server sets stays as it is.
fn keep_system_fields(new: &mut Value, old: &Value) {
    const KEPT: [&str; 8] = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "generateName",
    ];
    for field in KEPT {
        set_meta(new, field, old["metadata"][field].clone());
    }
    set_meta(new, "selfLink", Value::Null);
}

/// An object that is being deleted gets no new finalizers.
fn finalizers_only_go(new: &Value, old: &Value) -> Vec<field::Error> {
    if !meta::deleting(old) {
        return Vec::new();
    }
    let before = meta::finalizers(old);
    let added: Vec<&str> = meta::finalizers(new).into_iter().filter(|f| !before.contains(f)).collect();
    if added.is_empty() {
        return Vec::new();
    }
    let path = field::Path::new("metadata").child("finalizers");
    let why = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
        added.iter().map(|finalizer| format!("{finalizer:?}")).collect::<Vec<_>>().join(", ")
    );
    vec![field::Error::forbidden(&path, why)]
}

/// Nothing holds an object any more whose deletion began.
fn done_for(object: &Value) -> bool {
    let grace = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    meta::deleting(object) && meta::finalizers(object).is_empty() && grace == 0
}
