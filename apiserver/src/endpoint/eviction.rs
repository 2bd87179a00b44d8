//! The Eviction API: a pod is deleted as its owner asks for, unless a disruption budget forbids it.
//!
//! **Invariant**: an eviction that is charged to a budget is charged before the pod is deleted, by
//! compare-and-swap on the budget's status: however many evictions run at once, no more go through
//! than the budget allowed when the disruption controller last looked.

use decapod_api::labels::Selector;
use decapod_api::meta;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use http::{Response, StatusCode};
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Request;
use crate::clock::rfc3339;
use crate::http::{Body, reply};
use crate::registry::object::map_mut;
use crate::registry::options::{DeleteOptions, Preconditions};
use crate::registry::update::Part;
use crate::registry::{Call, Registry, body, core, row};

/// Evictions that the disruption controller has not confirmed, in one budget. As many as Kubernetes
/// allows: more mean that the controller is away, and the object would grow without end.
const MAX_UNCONFIRMED: usize = 2000;
/// When to try again where the controller has not looked at a budget yet, as Kubernetes says.
const RETRY_SECONDS: u32 = 10;
/// Times that an eviction looks again at a pod that changes meanwhile, as often as Kubernetes does.
const TRIES: usize = 20;

/// What stands between a pod and its eviction.
#[derive(Debug)]
enum Guard {
    /// Nothing.
    None,
    /// A budget, which has to be charged.
    Budget(String),
    /// A budget that does not count this pod as long as it stays as it is.
    Unchanged(String),
    /// More budgets than one.
    Many,
}

/// Answers `POST pods/{name}/eviction`.
pub(super) async fn evict(request: &Request<'_>, bytes: &[u8]) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let mut eviction = body::parse(request.content_type(), bytes)?.value;
    let version = match eviction["apiVersion"].as_str() {
        Some("policy/v1beta1") => "policy/v1beta1",
        _ => "policy/v1",
    };
    body::check_gvk(version, "Eviction", &mut eviction)?;
    if meta::name(&eviction) != call.name {
        return Err(Error::BadRequest("name in URL does not match name in Eviction object".to_owned()));
    }
    let options = delete_options(&eviction["deleteOptions"], call.options.dry_run)?;
    let registry = &request.core.registry;
    let now = request.core.clock.now();
    for _ in 0..TRIES {
        let (pod, _) = registry.current(&call).await?.ok_or_else(|| call.not_found())?;
        match evict_as(registry, &call, &pod, &options, now).await {
            Err(Error::Conflict { .. }) if wanted_version(&options).is_none() => {}
            Ok(true) => return Ok(success()),
            Ok(false) => return Ok(too_many_budgets()),
            Err(error) => return Err(error),
        }
    }
    Err(call.conflict(crate::registry::MODIFIED))
}

/// The options of the deletion; the request and the body may both ask for a dry run.
fn delete_options(value: &Value, dry_run: bool) -> Result<DeleteOptions, Error> {
    let mut options = match value {
        Value::Null => DeleteOptions::default(),
        value => DeleteOptions::from_value(value.clone())?,
    };
    let asked = options.dry_run.iter().flatten();
    if let Some(other) = asked.clone().find(|asked| *asked != "All") {
        let why = format!("dryRun: Unsupported value: \"{other}\": supported values: \"All\"");
        return Err(Error::BadRequest(why));
    }
    options.dry = dry_run || asked.count() > 0;
    Ok(options)
}

fn wanted_version(options: &DeleteOptions) -> Option<&str> {
    options.preconditions.as_ref().and_then(|wanted| wanted.resource_version.as_deref())
}

/// Evicts a pod as it was found. `false` if more than one budget covers it.
async fn evict_as(
    registry: &Registry,
    call: &Call,
    pod: &Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Result<bool, Error> {
    let unchanged = || {
        let mut options = options.clone();
        let wanted = options.preconditions.get_or_insert_with(Preconditions::default);
        wanted
            .resource_version
            .get_or_insert_with(|| meta::text(pod, "resourceVersion").unwrap_or_default().to_owned());
        options
    };
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if meta::deleting(pod) || matches!(phase, "Succeeded" | "Failed") {
        return delete(registry, call, options.clone(), now).await.map(|()| true);
    }
    if phase == "Pending" {
        // It serves nobody yet; should it begin to meanwhile, its budget has to be asked.
        return delete(registry, call, unchanged(), now).await.map(|()| true);
    }
    match guard(pod, &budgets(registry, pod).await?) {
        Guard::None => delete(registry, call, options.clone(), now).await?,
        Guard::Many => return Ok(false),
        Guard::Budget(budget) => {
            charge(registry, &call.namespace, &budget, &call.name, options.dry, now).await?;
            delete(registry, call, options.clone(), now).await?;
        }
        Guard::Unchanged(budget) => {
            let deleted = delete(registry, call, unchanged(), now).await;
            deleted.map_err(|error| match error {
                Error::Conflict { .. } if wanted_version(options).is_none() => in_progress(&budget),
                other => other,
            })?;
        }
    }
    Ok(true)
}

fn row_of_budgets() -> &'static Resource {
    row("policy", "v1", "poddisruptionbudgets")
}

/// The budgets that cover a pod.
async fn budgets(registry: &Registry, pod: &Value) -> Result<Vec<PodDisruptionBudget>, Error> {
    let labels = meta::labels(pod);
    let mut covering = Vec::new();
    for budget in registry.all(row_of_budgets(), meta::namespace(pod)).await? {
        let budget = decoded(&budget)?;
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        // A budget with a broken selector covers nothing.
        let covers = selector
            .and_then(|selector| Selector::try_from(selector).ok())
            .is_some_and(|selector| selector.matches_with(|key| labels.get(key).copied()));
        if covers {
            covering.push(budget);
        }
    }
    Ok(covering)
}

fn decoded(budget: &Value) -> Result<PodDisruptionBudget, Error> {
    PodDisruptionBudget::deserialize(budget)
        .map_err(|e| Error::Internal(format!("a disruption budget cannot be read back: {e}")))
}

fn name_of(budget: &PodDisruptionBudget) -> String {
    budget.metadata.name.clone().unwrap_or_default()
}

fn guard(pod: &Value, budgets: &[PodDisruptionBudget]) -> Guard {
    let budget = match budgets {
        [] => return Guard::None,
        [budget] => budget,
        _ => return Guard::Many,
    };
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.clone().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let policy = budget.spec.as_ref().and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref());
    let status = budget.status.clone().unwrap_or_default();
    let desired = status.desired_healthy.unwrap_or(0);
    let enough = status.current_healthy.unwrap_or(0) >= desired && desired > 0;
    if !ready && (policy == Some("AlwaysAllow") || enough) {
        return Guard::Unchanged(name_of(budget));
    }
    Guard::Budget(name_of(budget))
}

/// Takes one disruption from a budget, or says why there is none.
async fn charge(
    registry: &Registry,
    namespace: &str,
    budget: &str,
    pod: &str,
    dry: bool,
    now: Timestamp,
) -> Result<(), Error> {
    let mut call = Call::own(row_of_budgets(), namespace, budget);
    "status".clone_into(&mut call.subresource);
    call.options.dry_run = dry;
    let change = |old: &Value| {
        if let Some(refusal) = refusal(&decoded(old)?) {
            return Err(refusal);
        }
        Ok(charged(old, pod, now))
    };
    registry.modify(&call, Part::Status, change).await.map(drop)
}

fn charged(budget: &Value, pod: &str, now: Timestamp) -> Value {
    let mut new = budget.clone();
    let left = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) - 1;
    let observed = budget["status"]["observedGeneration"].clone();
    let status = map_mut(&mut new, "status");
    status.insert("disruptionsAllowed".to_owned(), left.into());
    map_mut(&mut new["status"], "disruptedPods").insert(pod.to_owned(), rfc3339(now).into());
    if left == 0 {
        let condition = json!({"type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods",
            "message": "", "lastTransitionTime": rfc3339(now), "observedGeneration": observed});
        set_condition(&mut new, condition);
    }
    new
}

/// Why a budget allows no disruption.
fn refusal(budget: &PodDisruptionBudget) -> Option<Error> {
    let name = name_of(budget);
    let status = budget.status.clone().unwrap_or_default();
    let forbidden = |why: &str| {
        let resource = "poddisruptionbudget.policy".to_owned();
        Some(Error::Forbidden { resource, name: name.clone(), why: why.to_owned() })
    };
    if status.observed_generation.unwrap_or(0) < budget.metadata.generation.unwrap_or(0) {
        return Some(in_progress(&name));
    }
    let allowed = status.disruptions_allowed.unwrap_or(0);
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status.disrupted_pods.as_ref().is_some_and(|pods| pods.len() > MAX_UNCONFIRMED) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed > 0 {
        return None;
    }
    let (healthy, desired) = (status.current_healthy.unwrap_or(0), status.desired_healthy.unwrap_or(0));
    let told = status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == "DisruptionAllowed" && c.status == "False" && !c.message.is_empty());
    let cause = match told {
        Some(c) if c.reason == "SyncFailed" => format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
            c.message
        ),
        _ if healthy <= desired => {
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently")
        }
        Some(c) => format!(
            "The disruption budget {name} does not allow evicting pods currently ({}): {}",
            c.reason, c.message
        ),
        None => format!("The disruption budget {name} does not allow evicting pods currently"),
    };
    Some(Error::DisruptionBudget { cause, retry_after_seconds: 0 })
}

fn in_progress(budget: &str) -> Error {
    let cause = format!("The disruption budget {budget} is still being processed by the server.");
    Error::DisruptionBudget { cause, retry_after_seconds: RETRY_SECONDS }
}

/// Marks the pod as disrupted, and deletes it.
async fn delete(
    registry: &Registry,
    call: &Call,
    mut options: DeleteOptions,
    now: Timestamp,
) -> Result<(), Error> {
    if !options.dry {
        let mut own = Call::own(core("pods"), &call.namespace, &call.name);
        "status".clone_into(&mut own.subresource);
        let wanted = options.preconditions.clone().unwrap_or_default();
        let change = |old: &Value| {
            check(call, old, &wanted)?;
            let mut new = old.clone();
            let condition = json!({"type": "DisruptionTarget", "status": "True", "lastProbeTime": null,
                "lastTransitionTime": rfc3339(now), "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting"});
            set_condition(&mut new, condition);
            Ok(new)
        };
        let marked = registry.modify(&own, Part::Whole, change).await?;
        if let Some(wanted) = options.preconditions.as_mut().filter(|w| w.resource_version.is_some()) {
            wanted.resource_version = meta::text(&marked, "resourceVersion").map(str::to_owned);
        }
    }
    registry.delete(call, &options).await.map(drop)
}

fn check(call: &Call, pod: &Value, wanted: &Preconditions) -> Result<(), Error> {
    let (uid, version) = (meta::uid(pod), meta::text(pod, "resourceVersion").unwrap_or_default());
    if let Some(wanted) = wanted.uid.as_deref().filter(|wanted| !wanted.is_empty() && *wanted != uid) {
        return Err(call.conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        )));
    }
    let wanted = wanted.resource_version.as_deref();
    if let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty() && *wanted != version) {
        return Err(call.conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        )));
    }
    Ok(())
}

/// Sets a condition by its type; one of the same status keeps the time of its transition.
fn set_condition(object: &mut Value, mut condition: Value) {
    let status = map_mut(object, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = conditions.as_array_mut() else { return };
    match list.iter_mut().find(|known| known["type"] == condition["type"]) {
        Some(known) => {
            if known["status"] == condition["status"] {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
        None => list.push(condition),
    }
}

fn success() -> Response<Body> {
    let success =
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    reply::json(StatusCode::CREATED, &success)
}

fn too_many_budgets() -> Response<Body> {
    let message =
        "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "code": 500});
    reply::json(StatusCode::INTERNAL_SERVER_ERROR, &status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(status: Value) -> PodDisruptionBudget {
        decoded(&json!({"metadata": {"name": "b", "generation": 2}, "spec": {}, "status": status})).unwrap()
    }

    fn cause(status: Value) -> String {
        match refusal(&budget(status)) {
            Some(Error::DisruptionBudget { cause, .. }) => cause,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_budget_says_why_it_allows_nothing() {
        let status = |allowed: i32, observed: i64, healthy: i32| {
            json!({"disruptionsAllowed": allowed, "observedGeneration": observed, "currentHealthy": healthy,
                "desiredHealthy": 2, "expectedPods": 3})
        };
        assert!(refusal(&budget(status(1, 2, 3))).is_none());
        assert_eq!(cause(status(1, 1, 3)), "The disruption budget b is still being processed by the server.");
        assert_eq!(
            cause(status(0, 2, 2)),
            "The disruption budget b needs 2 healthy pods and has 2 currently"
        );
        assert_eq!(cause(status(0, 2, 3)), "The disruption budget b does not allow evicting pods currently");
        assert!(cause(status(-1, 2, 3)).contains("negative"));
        let mut failed = status(0, 2, 2);
        failed["conditions"] = json!([{"type": "DisruptionAllowed", "status": "False", "reason": "SyncFailed",
            "message": "no scale", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        assert!(cause(failed).ends_with("because it failed sync: no scale"));
    }

    #[test]
    fn the_last_disruption_changes_the_condition() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let old = json!({"metadata": {"name": "b"}, "status": {"disruptionsAllowed": 2}});
        let one = charged(&old, "p", now);
        assert_eq!(one["status"]["disruptedPods"]["p"], "2027-01-15T08:00:00Z");
        assert!(one["status"]["conditions"].is_null());
        let two = charged(&one, "q", now);
        assert_eq!(two["status"]["disruptionsAllowed"], 0);
        assert_eq!(two["status"]["disruptedPods"].as_object().unwrap().len(), 2);
        assert_eq!(two["status"]["conditions"][0]["reason"], "InsufficientPods");
    }

    #[test]
    fn an_unready_pod_is_guarded_only_while_the_application_is_disrupted() {
        let pod = |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let with = |healthy: i32| {
            vec![budget(json!({"currentHealthy": healthy, "desiredHealthy": 2, "disruptionsAllowed": 0,
                "expectedPods": 3}))]
        };
        assert!(matches!(guard(&pod("True"), &with(2)), Guard::Budget(_)));
        assert!(matches!(guard(&pod("False"), &with(2)), Guard::Unchanged(_)));
        assert!(matches!(guard(&pod("False"), &with(1)), Guard::Budget(_)));
        let mut always = with(1);
        always[0].spec.as_mut().unwrap().unhealthy_pod_eviction_policy = Some("AlwaysAllow".into());
        assert!(matches!(guard(&pod("False"), &always), Guard::Unchanged(_)));
        always.push(always[0].clone());
        assert!(matches!(guard(&pod("True"), &always), Guard::Many));
        assert!(matches!(guard(&pod("True"), &[]), Guard::None));
    }
}
