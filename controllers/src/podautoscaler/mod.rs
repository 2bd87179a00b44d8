//! The HorizontalPodAutoscaler controller: scales what has a `scale` by what its pods use, or by other figures.
//!
//! Figures have no events, so that each autoscaler is looked at again and again. What was called for and done lately is
//! remembered; a controller that has just begun knows only what is there, and takes its time with shrinking.

mod behavior;
mod calculate;
mod evaluate;
mod samples;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_api::labels::Selector;
use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::event::Recorder;
use decapod_client::informer::{Change, Informer};
use decapod_client::reconcile::{self, Queue};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v1::{Scale, ScaleSpec};
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::ApiResource;

use crate::common::catalog::Catalog;
use crate::common::condition::{self, Condition};
use crate::common::{Context, Result, Says};
use behavior::{Memory, WITHIN, Wish};
use evaluate::{Call, Scene};
use samples::Metrics;

const NAME: &str = "horizontal-pod-autoscaler";

/// How often the figures are looked at, as in Kubernetes.
const PERIOD: Duration = Duration::from_secs(15);

/// How often a change of the scale is tried again where somebody else changed it meanwhile.
const TRIES: usize = 5;

struct Controller {
    context: Context,
    catalog: Catalog,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    recorder: Recorder,
    known: Mutex<HashMap<ObjectKey, Known>>,
}

#[derive(Default)]
struct Known {
    memory: Memory,
    /// Which pods the target had.
    selector: Option<Selector>,
}

/// What a look at an autoscaler's target led to.
struct Outcome {
    /// The replicas that the target asked for.
    current: i32,
    /// What it asks for now.
    desired: i32,
    metrics: Vec<MetricStatus>,
    scaled: bool,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, catalog: &Catalog, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let autoscalers = context.informers.of::<HorizontalPodAutoscaler>();
    // Its status changes with each look: that is no reason for another.
    let keys = |change: &Change<HorizontalPodAutoscaler>| {
        let specs = [change.old.as_ref(), change.new.as_ref()].map(|side| side.map(|one| &one.spec));
        (specs[0] != specs[1]).then(|| change.key.clone())
    };
    reconcile::feed(&context.supervisor, NAME, autoscalers.subscribe(), &queue, keys);
    let controller = Arc::new(Controller {
        context: context.clone(),
        catalog: catalog.clone(),
        autoscalers,
        pods: context.informers.of::<Pod>(),
        recorder: context.recorder(NAME),
        known: Mutex::default(),
    });
    reconcile::run(&context.supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.pods.synced().await;
        let Some(autoscaler) = self.autoscalers.get(key) else {
            self.known().remove(key);
            return Ok(None);
        };
        let mut conditions =
            autoscaler.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let outcome = self.look(key, &autoscaler, &mut conditions).await;
        let now = self.context.clock.now();
        let old = autoscaler.status.clone().unwrap_or_default();
        let mut status = match outcome {
            Some(outcome) => HorizontalPodAutoscalerStatus {
                current_replicas: Some(outcome.current),
                desired_replicas: outcome.desired,
                current_metrics: (!outcome.metrics.is_empty()).then_some(outcome.metrics),
                last_scale_time: if outcome.scaled { Some(Time(now)) } else { old.last_scale_time.clone() },
                ..old.clone()
            },
            None => old.clone(),
        };
        status.conditions = Some(conditions);
        if status != old {
            self.write(key, &autoscaler, status).await?;
        }
        Ok(Some(PERIOD))
    }

    /// Looks at the target and scales it; `None` where it has no scale that can be read.
    async fn look(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        conditions: &mut Vec<HorizontalPodAutoscalerCondition>,
    ) -> Option<Outcome> {
        let (now, monotonic) = (self.context.clock.now(), self.context.clock.monotonic());
        let name = autoscaler.spec.scale_target_ref.name.as_str();
        let (api, scale) = match self.scale(key, autoscaler).await {
            Ok(found) => found,
            Err(why) => {
                self.recorder.warning(autoscaler, "FailedGetScale", why.as_str());
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {why}");
                set(conditions, "AbleToScale", "False", "FailedGetScale", &message, now);
                return None;
            }
        };
        let message = "the HPA controller was able to get the target's current scale";
        set(conditions, "AbleToScale", "True", "SucceededGetScale", message, now);
        let spec = &autoscaler.spec;
        let current = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
        let (min, max) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
        self.known().entry(key.clone()).or_default().memory.begin(current, monotonic);
        let mut outcome = Outcome { current, desired: current, metrics: Vec::new(), scaled: false };
        let why = if current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            set(conditions, "ScalingActive", "False", "ScalingDisabled", message, now);
            return Some(outcome);
        } else if current > max {
            outcome.desired = max;
            "Current number of replicas above Spec.MaxReplicas".to_owned()
        } else if current < min {
            outcome.desired = min;
            "Current number of replicas below Spec.MinReplicas".to_owned()
        } else {
            let called = self.calls(key, autoscaler, &scale, conditions).await;
            let (call, metrics) = match called {
                Ok(called) => called,
                Err(metrics) => {
                    let desired = autoscaler.status.as_ref().map_or(0, |status| status.desired_replicas);
                    return Some(Outcome { metrics, desired, ..outcome });
                }
            };
            outcome.metrics = metrics;
            let wish = Wish { current, wanted: call.replicas, min, max };
            let allowed = {
                let mut known = self.known();
                known.entry(key.clone()).or_default().memory.allow(spec.behavior.as_ref(), wish, monotonic)
            };
            set(conditions, "AbleToScale", "True", allowed.able.0, allowed.able.1, now);
            let (reason, message) = allowed.limited.unwrap_or(WITHIN);
            let limited = if allowed.limited.is_some() { "True" } else { "False" };
            set(conditions, "ScalingLimited", limited, reason, message, now);
            outcome.desired = allowed.replicas;
            if call.replicas > current {
                format!("{} above target", call.name)
            } else {
                "All metrics below target".to_owned()
            }
        };
        if outcome.desired != current {
            let change = Rescale { name, from: current, to: outcome.desired, why: &why };
            outcome.scaled = self.rescale(key, autoscaler, &api, scale, change, conditions).await;
            if !outcome.scaled {
                outcome.desired = autoscaler.status.as_ref().map_or(0, |status| status.desired_replicas);
            }
        }
        Some(outcome)
    }

    /// The scale of the target, or why there is none.
    async fn scale(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
    ) -> std::result::Result<(Api<DynamicObject>, Scale), String> {
        let target = &autoscaler.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or("v1");
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let of = |kinds: &[crate::common::catalog::Kind]| -> Option<ApiResource> {
            let found =
                kinds.iter().find(|kind| kind.resource.group == group && kind.resource.kind == target.kind);
            found.map(|kind| kind.resource.clone())
        };
        let known = of(&self.catalog.kinds());
        let resource = match known {
            Some(resource) => Some(resource),
            None => of(&self.catalog.refresh().await.map_err(|error| error::chain(&error))?),
        };
        let resource =
            resource.ok_or_else(|| format!("no matches for kind {:?} in group {group:?}", target.kind))?;
        let api = Api::namespaced_with(self.context.client.clone(), &key.namespace, &resource);
        let scale = api.get_scale(&target.name).await.map_err(|error| error::chain(&error))?;
        Ok((api, scale))
    }

    /// What the metrics call for at most, and the status of each; or, where that cannot be followed, only the latter.
    async fn calls(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        conditions: &mut Vec<HorizontalPodAutoscalerCondition>,
    ) -> std::result::Result<(Call, Vec<MetricStatus>), Vec<MetricStatus>> {
        let now = self.context.clock.now();
        let told = scale.status.as_ref();
        let selector = match self.selector(key, told.and_then(|status| status.selector.as_deref())) {
            Ok(selector) => selector,
            Err((reason, event, message, told)) => {
                self.recorder.warning(autoscaler, event, told.as_str());
                set(conditions, "ScalingActive", "False", reason, &message, now);
                self.recorder.warning(autoscaler, "FailedComputeMetricsReplicas", told);
                return Err(Vec::new());
            }
        };
        let wanted = scale.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
        let scene = Scene {
            metrics: Metrics { client: &self.context.client, namespace: &key.namespace },
            pods: self.selected(&key.namespace, &selector),
            selector,
            wanted,
            present: told.map_or(wanted, |status| status.replicas),
            tolerance: evaluate::tolerance(autoscaler.spec.behavior.as_ref()),
            now,
        };
        let (mut best, mut statuses, mut failures) = (None::<Call>, Vec::new(), Vec::new());
        for spec in autoscaler.spec.metrics.iter().flatten() {
            match evaluate::metric(&scene, spec).await {
                Ok(call) => {
                    statuses.push(call.status.clone());
                    if best.as_ref().is_none_or(|best| call.replicas > best.replicas) {
                        best = Some(call);
                    }
                }
                Err(failure) => {
                    self.recorder.warning(autoscaler, failure.reason, failure.message.as_str());
                    statuses.push(evaluate::none());
                    failures.push(failure);
                }
            }
        }
        let total = statuses.len();
        // A lower number is not followed while one of the figures is missing.
        match (best.filter(|best| failures.is_empty() || best.replicas >= wanted), failures.first()) {
            (Some(best), _) => {
                let message =
                    format!("the HPA was able to successfully calculate a replica count from {}", best.name);
                set(conditions, "ScalingActive", "True", "ValidMetricFound", &message, now);
                Ok((best, statuses))
            }
            (None, Some(first)) => {
                let message = format!("the HPA was unable to compute the replica count: {}", first.message);
                set(conditions, "ScalingActive", "False", first.reason, &message, now);
                let (count, context, message) = (failures.len(), &first.context, &first.message);
                let message = format!(
                    "invalid metrics ({count} invalid out of {total}), first error is: {context}: {message}"
                );
                self.recorder.warning(autoscaler, "FailedComputeMetricsReplicas", message);
                Err(statuses)
            }
            (None, None) => Err(statuses),
        }
    }

    /// The selector of the target's pods. Otherwise: the reason of the condition, that of the Event, and what both say.
    fn selector(
        &self,
        key: &ObjectKey,
        text: Option<&str>,
    ) -> std::result::Result<Selector, (&'static str, &'static str, String, String)> {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            let message = "the HPA target's scale is missing a selector".to_owned();
            return Err(("InvalidSelector", "SelectorRequired", message, "selector is required".to_owned()));
        };
        let selector: Selector = text.parse().map_err(|error| {
            let message =
                format!("couldn't convert selector into a corresponding internal selector object: {error}");
            ("InvalidSelector", "InvalidSelector", message.clone(), message)
        })?;
        let pods = self.selected(&key.namespace, &selector);
        let mut known = self.known();
        known.entry(key.clone()).or_default().selector = Some(selector.clone());
        let selects = |selector: &Selector| {
            pods.iter().any(|pod| selector.matches_optional(pod.metadata.labels.as_ref()))
        };
        let all = known.iter().filter(|(one, _)| one.namespace == key.namespace);
        let rivals = all.filter(|(_, known)| known.selector.as_ref().is_some_and(selects));
        let mut rivals: Vec<_> =
            rivals.map(|(one, _)| format!("{{{} {}}}", one.name, one.namespace)).collect();
        if rivals.len() < 2 {
            return Ok(selector);
        }
        rivals.sort();
        let rivals = rivals.join(" ");
        let message = format!("pods by selector {text} are controlled by multiple HPAs: [{rivals}]");
        Err(("AmbiguousSelector", "AmbiguousSelector", message.clone(), message))
    }

    fn selected(&self, namespace: &str, selector: &Selector) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.list_in(namespace);
        pods.retain(|pod| selector.matches_optional(pod.metadata.labels.as_ref()));
        pods
    }

    /// Changes the scale of the target; whether that was done.
    async fn rescale(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        api: &Api<DynamicObject>,
        scale: Scale,
        change: Rescale<'_>,
        conditions: &mut Vec<HorizontalPodAutoscalerCondition>,
    ) -> bool {
        let Rescale { from, to, why, .. } = change;
        let now = self.context.clock.now();
        match replace(api, scale, &change).await {
            Ok(()) => {
                let message = format!("the HPA controller was able to update the target scale to {to}");
                set(conditions, "AbleToScale", "True", "SucceededRescale", &message, now);
                self.recorder.normal(
                    autoscaler,
                    "SuccessfulRescale",
                    format!("New size: {to}; reason: {why}"),
                );
                let (behavior, monotonic) =
                    (autoscaler.spec.behavior.as_ref(), self.context.clock.monotonic());
                self.known().entry(key.clone()).or_default().memory.changed(behavior, from, to, monotonic);
                true
            }
            Err(error) => {
                let error = error::chain(&error);
                let told = format!("New size: {to}; reason: {why}; error: {error}");
                self.recorder.warning(autoscaler, "FailedRescale", told);
                let message = format!("the HPA controller was unable to update the target scale: {error}");
                set(conditions, "AbleToScale", "False", "FailedUpdateScale", &message, now);
                false
            }
        }
    }

    async fn write(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        status: HorizontalPodAutoscalerStatus,
    ) -> Result<()> {
        let new = HorizontalPodAutoscaler { status: Some(status), ..autoscaler.clone() };
        let api: Api<HorizontalPodAutoscaler> = Api::namespaced(self.context.client.clone(), &key.namespace);
        match api.replace_status(&key.name, &PostParams::default(), &new).await {
            Ok(_) => Ok(()),
            // It changed meanwhile, which comes as an event, or is gone.
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(()),
            Err(error) => Err(error).says("write the status of an autoscaler"),
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ObjectKey, Known>> {
        // Nothing panics while the lock is held, so the map is whole even if the lock is poisoned.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A change of the target's replicas.
struct Rescale<'a> {
    /// The target's name.
    name: &'a str,
    from: i32,
    to: i32,
    why: &'a str,
}

/// Writes the scale; where somebody else changed the target meanwhile, again.
async fn replace(api: &Api<DynamicObject>, mut scale: Scale, change: &Rescale<'_>) -> kube::Result<()> {
    for tried in 1.. {
        scale.spec = Some(ScaleSpec { replicas: Some(change.to) });
        match api.replace_scale(change.name, &PostParams::default(), &scale).await {
            Ok(_) => break,
            Err(error) if error.is_conflict() && tried < TRIES => scale = api.get_scale(change.name).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn set(
    conditions: &mut Vec<HorizontalPodAutoscalerCondition>,
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    condition::replace(
        conditions,
        HorizontalPodAutoscalerCondition::new(type_, status, reason, message, now),
    );
}
