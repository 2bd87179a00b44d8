//! Delete: at once, gracefully (pods), or once the finalizers are gone.

use decapod_api::meta;
use decapod_api::status::Error;
use decapod_storage::{self as storage, Precondition};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::object::{self, set_meta};
use super::options::{DeleteOptions, Propagation};
use super::reads::{At, Filter};
use super::{Call, MAX_RETRIES, MODIFIED, Registry, convert, generation, reads, strategy};
use crate::admission;
use crate::clock::rfc3339;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What came of a deletion.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Value),
    /// The deletion began: the object is there until its finalizers, or the grace period, are gone.
    Begun(Value),
}

/// What the next step of a deletion is.
#[derive(Debug, PartialEq)]
enum Step {
    Remove,
    Write(Value),
    Nothing,
}

impl Registry {
    /// Deletes the object that the call names.
    pub(crate) async fn delete(&self, call: &Call, options: &DeleteOptions) -> Result<Deleted, Error> {
        for _ in 0..MAX_RETRIES {
            let (old, entry) = self.current(call).await?.ok_or_else(|| call.not_found())?;
            check(call, &old, options)?;
            admission::delete(self, call, &old).await?;
            let step = plan(call, &old, options, self.clock.now());
            if call.options.dry_run || options.dry {
                return Ok(match step {
                    Step::Remove => Deleted::Gone(old),
                    Step::Write(new) => Deleted::Begun(new),
                    Step::Nothing => Deleted::Begun(old),
                });
            }
            let when = Precondition::ModifiedAt(entry.modified);
            let written = match step {
                Step::Nothing => return Ok(Deleted::Begun(old)),
                Step::Remove => match self.store.delete(&entry.key, when).await {
                    Ok(_) => {
                        strategy::of(call.resource).released(self, &old).await;
                        Ok(Deleted::Gone(old))
                    }
                    Err(error) => Err(error),
                },
                Step::Write(mut new) => {
                    let bytes = object::encode(&convert::stored(call.resource, &new));
                    self.store.update(&entry.key, bytes, when).await.map(|entry| {
                        set_meta(&mut new, "resourceVersion", entry.modified.to_string().into());
                        Deleted::Begun(new)
                    })
                }
            };
            match written {
                Ok(deleted) => return Ok(deleted),
                Err(storage::Error::Conflict(_)) => continue,
                Err(error) => return Err(reads::failed(error)),
            }
        }
        Err(call.conflict(MODIFIED))
    }

    /// Deletes all objects of a list; those that others delete meanwhile are no failure.
    pub(crate) async fn delete_collection(
        &self,
        call: &Call,
        filter: &Filter,
        options: &DeleteOptions,
    ) -> Result<Vec<Value>, Error> {
        let prefix = object::prefix(call.resource, &call.namespace).ok_or(Error::UnknownPath)?;
        let view = self.reads.list(call.resource, &prefix, filter, At::Newest, None, None).await?;
        let mut deleted = Vec::with_capacity(view.items.len());
        for item in view.items {
            let one =
                Call { name: item.name().to_owned(), namespace: item.namespace().to_owned(), ..call.same() };
            match self.delete(&one, options).await {
                Ok(Deleted::Gone(object) | Deleted::Begun(object)) => deleted.push(object),
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}

fn check(call: &Call, old: &Value, options: &DeleteOptions) -> Result<(), Error> {
    let Some(preconditions) = &options.preconditions else { return Ok(()) };
    for (what, wanted, field, since) in [
        ("UID", &preconditions.uid, "uid", "deleted and then recreated"),
        ("ResourceVersion", &preconditions.resource_version, "resourceVersion", "modified"),
    ] {
        let found = meta::text(old, field).unwrap_or_default();
        if let Some(wanted) = wanted
            && wanted != found
        {
            let why = format!(
                "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {since}"
            );
            let row = call.resource;
            let resource = if row.group.is_empty() {
                row.kind.to_owned()
            } else {
                format!("{}.{}", row.kind, row.group)
            };
            return Err(Error::Conflict { resource, name: call.name.clone(), why });
        }
    }
    Ok(())
}

/// The next step of a deletion, given the object as it is.
fn plan(call: &Call, old: &Value, options: &DeleteOptions, now: Timestamp) -> Step {
    let strategy = strategy::of(call.resource);
    let mut new = old.clone();
    // A negative period is the shortest.
    let asked = options.grace_period_seconds.map(|seconds| if seconds < 0 { 1 } else { seconds });
    let mut grace = strategy.grace(old, asked);
    let told = meta::finalizers(old).iter().any(|one| [ORPHAN, FOREGROUND].contains(one));
    let usual = strategy.dependents().filter(|_| !told);
    finalize(&mut new, options.propagation().or(usual));
    let held = !meta::finalizers(&new).is_empty() || !strategy.may_go(&new);
    if meta::deleting(old) {
        let before = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        // A period may only be shortened.
        let asked = asked.is_some() || grace == 0;
        grace = if asked { grace.min(before) } else { before };
        if grace == 0 && !held {
            return Step::Remove;
        }
        if grace < before {
            let end =
                meta::text(old, "deletionTimestamp").and_then(|t| t.parse::<Timestamp>().ok()).unwrap_or(now);
            let mut end = end.saturating_sub(SignedDuration::from_secs(before - grace)).unwrap_or(now);
            if end < now {
                // The shorter period is over already: the least that is still graceful.
                (end, grace) = (now, grace.min(1));
            }
            set_meta(&mut new, "deletionTimestamp", rfc3339(end).into());
            set_meta(&mut new, "deletionGracePeriodSeconds", grace.into());
        }
        return if new == *old { Step::Nothing } else { Step::Write(new) };
    }
    if grace == 0 && !held {
        return Step::Remove;
    }
    let end = now.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(now);
    set_meta(&mut new, "deletionTimestamp", rfc3339(end).into());
    set_meta(&mut new, "deletionGracePeriodSeconds", grace.into());
    generation::bump(&mut new);
    strategy.deletion_begins(&mut new);
    Step::Write(new)
}

/// Adds and takes the finalizers by which the garbage collector knows what to do.
fn finalize(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let wanted = match propagation {
        Propagation::Orphan => Some(ORPHAN),
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Background => None,
    };
    let mut finalizers: Vec<&str> =
        meta::finalizers(object).into_iter().filter(|f| ![ORPHAN, FOREGROUND].contains(f)).collect();
    finalizers.extend(wanted);
    let finalizers = if finalizers.is_empty() { Value::Null } else { json!(finalizers) };
    set_meta(object, "finalizers", finalizers);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{core, row};

    fn step(object: Value, options: DeleteOptions) -> Step {
        let call = Call::own(core("pods"), "web", "a");
        plan(&call, &object, &options, Timestamp::from_second(1_800_000_000).unwrap())
    }

    fn pod(metadata: Value, node: Option<&str>) -> Value {
        let mut pod = json!({"metadata": metadata, "spec": {"terminationGracePeriodSeconds": 30}});
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        pod
    }

    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: Some(seconds), ..DeleteOptions::default() }
    }

    #[test]
    fn pods_on_a_node_get_their_time() {
        assert_eq!(step(pod(json!({}), None), DeleteOptions::default()), Step::Remove);
        let Step::Write(new) = step(pod(json!({"generation": 1}), Some("n")), DeleteOptions::default())
        else {
            panic!()
        };
        assert_eq!(new["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(new["metadata"]["deletionTimestamp"], "2027-01-15T08:00:30Z");
        assert_eq!(new["metadata"]["generation"], 2);
        assert_eq!(step(new.clone(), DeleteOptions::default()), Step::Nothing);
        assert_eq!(step(new.clone(), grace(60)), Step::Nothing);
        let Step::Write(sooner) = step(new.clone(), grace(10)) else { panic!() };
        assert_eq!(sooner["metadata"]["deletionTimestamp"], "2027-01-15T08:00:10Z");
        assert_eq!(step(new.clone(), grace(0)), Step::Remove);
        let mut late = new;
        late["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:05Z".into();
        let Step::Write(least) = step(late, grace(10)) else { panic!() };
        assert_eq!(least["metadata"]["deletionTimestamp"], "2027-01-15T08:00:00Z");
        assert_eq!(least["metadata"]["deletionGracePeriodSeconds"], 1);
        let Step::Write(negative) = step(pod(json!({}), Some("n")), grace(-5)) else { panic!() };
        assert_eq!(negative["metadata"]["deletionGracePeriodSeconds"], 1);
    }

    #[test]
    fn finalizers_hold() {
        let held = pod(json!({"finalizers": ["x/y"]}), None);
        let Step::Write(new) = step(held, grace(0)) else { panic!() };
        assert_eq!(new["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(step(new, grace(0)), Step::Nothing);
        let foreground =
            DeleteOptions { propagation_policy: Some("Foreground".to_owned()), ..DeleteOptions::default() };
        let Step::Write(new) = step(pod(json!({}), None), foreground) else { panic!() };
        assert_eq!(new["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    }

    #[test]
    fn the_pods_of_a_job_stay_unless_it_is_said_that_they_go() {
        let call = Call::own(row("batch", "v1", "jobs"), "web", "a");
        let step = |policy: Option<&str>, finalizers: Value| {
            let options =
                DeleteOptions { propagation_policy: policy.map(str::to_owned), ..DeleteOptions::default() };
            let job = json!({"metadata": {"finalizers": finalizers}});
            match plan(&call, &job, &options, Timestamp::from_second(1_800_000_000).unwrap()) {
                Step::Write(new) => new["metadata"]["finalizers"].clone(),
                other => json!(format!("{other:?}")),
            }
        };
        assert_eq!(step(None, json!([])), json!(["orphan"]));
        assert_eq!(step(None, json!(["foregroundDeletion"])), json!(["foregroundDeletion"]));
        assert_eq!(step(Some("Background"), json!([])), json!("Remove"));
    }
}
