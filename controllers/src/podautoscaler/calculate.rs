//! How many replicas a figure calls for. Pure.
//!
//! Pods that say nothing yet must not make the number swing: those without a figure count as if they spoke against
//! the change, and those that start count as idle where it would grow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use decapod_api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;

use super::samples::{Sample, Samples};
use crate::common::pods;

/// How long after its start a pod's processor time says little, as in Kubernetes.
const INITIALIZATION: Duration = Duration::from_secs(300);

/// A pod that has not been ready by this time after its start was never ready, as in Kubernetes.
const READINESS_DELAY: Duration = Duration::from_secs(30);

/// How far from the target, as a ratio, a figure may be without a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerance {
    fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What each pod should use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A share of what it requests, in per cent.
    Utilization(i32),
    /// An amount, in thousandths.
    Average(i64),
}

/// The figure that is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure<'a> {
    /// The resource, where it is one.
    pub(super) resource: Option<&'a str>,
    pub(super) container: Option<&'a str>,
    pub(super) target: Target,
    pub(super) tolerance: Tolerance,
}

/// How many replicas a figure calls for, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// On average, in thousandths.
    pub(super) average: i64,
    /// In per cent of the requests.
    pub(super) utilization: Option<i32>,
}

/// What the samples amount to: the ratio to the target, the average and the utilization.
struct Ratio {
    ratio: f64,
    average: i64,
    utilization: Option<i32>,
}

/// The pods sorted by what they say.
#[derive(Default)]
struct Groups {
    ready: usize,
    /// They start.
    unready: Vec<String>,
    /// They run, but there is no figure.
    missing: Vec<String>,
}

/// The replicas for a figure that is measured of each pod.
///
/// # Errors
/// Why it cannot be said, in Kubernetes' words.
pub(super) fn by_pods(
    current: i32,
    figure: Figure<'_>,
    mut samples: Samples,
    all: &[Arc<Pod>],
    now: Timestamp,
) -> Result<Proposal, String> {
    if all.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(figure, &mut samples, all, now);
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match figure.target {
        Target::Utilization(_) => requests(all, figure)?,
        Target::Average(_) => BTreeMap::new(),
    };
    let first = ratio(figure.target, &samples, &requests)?;
    let propose = |replicas| Proposal { replicas, average: first.average, utilization: first.utilization };
    let grows_unready = !groups.unready.is_empty() && first.ratio > 1.0;
    if !grows_unready && groups.missing.is_empty() {
        let same = figure.tolerance.covers(first.ratio);
        return Ok(propose(if same { current } else { times(first.ratio, groups.ready) }));
    }
    let idle = Sample { value: 0, at: now, window: Duration::ZERO };
    for pod in &groups.missing {
        if first.ratio < 1.0 {
            let value = match figure.target {
                Target::Utilization(target) => {
                    requests.get(pod).copied().unwrap_or(0) * i64::from(target.max(100)) / 100
                }
                Target::Average(target) => target,
            };
            samples.insert(pod.clone(), Sample { value, ..idle });
        } else if first.ratio > 1.0 {
            samples.insert(pod.clone(), idle);
        }
    }
    for pod in groups.unready.iter().filter(|_| grows_unready) {
        samples.insert(pod.clone(), idle);
    }
    let second = ratio(figure.target, &samples, &requests)?.ratio;
    let turned = (first.ratio < 1.0 && second > 1.0) || (first.ratio > 1.0 && second < 1.0);
    let replicas = times(second, samples.len());
    let against = (second < 1.0 && replicas > current) || (second > 1.0 && replicas < current);
    let same = figure.tolerance.covers(second) || turned || against;
    Ok(propose(if same { current } else { replicas }))
}

/// The replicas for a figure of something else that should have this value, in thousandths, in all.
///
/// # Errors
/// There are no pods.
pub(super) fn by_value(
    current: i32,
    (value, target): (i64, i64),
    tolerance: Tolerance,
    all: &[Arc<Pod>],
) -> Result<i32, String> {
    let ratio = value as f64 / target as f64;
    if current == 0 {
        return Ok(times(ratio, 1));
    }
    if tolerance.covers(ratio) {
        return Ok(current);
    }
    if all.is_empty() {
        return Err(
            "unable to calculate ready pods: no pods returned by selector while calculating replica count"
                .to_owned(),
        );
    }
    let ready = all.iter().filter(|pod| pods::phase(pod) == "Running" && pods::is_ready(pod));
    Ok(times(ratio, ready.count()))
}

/// The replicas for a figure of something else that should have this value, in thousandths, for each replica; and
/// what it is for each of the present ones.
pub(super) fn by_share(present: i32, (value, target): (i64, i64), tolerance: Tolerance) -> (i32, i64) {
    let ratio = value as f64 / (target as f64 * f64::from(present));
    let replicas = if tolerance.covers(ratio) { present } else { times(value as f64 / target as f64, 1) };
    (replicas, (value as f64 / f64::from(present)).ceil() as i64)
}

/// A multiple, rounded up, as a number of replicas.
fn times(ratio: f64, count: usize) -> i32 {
    // Beyond the range, and where there is no number, the conversion takes the nearest end and zero.
    (ratio * count as f64).ceil() as i32
}

/// Sorts the pods, and leaves out the samples of those that start or end.
fn group(figure: Figure<'_>, samples: &mut Samples, all: &[Arc<Pod>], now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in all {
        let name = pod.name_any();
        if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
            samples.remove(&name);
        } else if pods::phase(pod) == "Pending" {
            samples.remove(&name);
            groups.unready.push(name);
        } else if let Some(sample) = samples.get(&name) {
            if figure.resource == Some("cpu") && is_starting(pod, sample, now) {
                samples.remove(&name);
                groups.unready.push(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.push(name);
        }
    }
    groups
}

/// Whether the processor time of a pod says nothing yet.
fn is_starting(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let (Some(ready), Some(start)) = (pods::condition(pod, "Ready"), start) else { return true };
    let unready = ready.status == "False";
    let changed = ready.last_transition_time.as_ref().map_or(start, |time| time.0);
    let after = |from: Timestamp, time: Duration| from.checked_add(time).unwrap_or(Timestamp::MAX);
    if after(start, INITIALIZATION) > now {
        unready || sample.at < after(changed, sample.window)
    } else {
        unready && after(start, READINESS_DELAY) > changed
    }
}

fn ratio(target: Target, samples: &Samples, requests: &BTreeMap<String, i64>) -> Result<Ratio, String> {
    let sum = |values: &mut dyn Iterator<Item = i64>| values.fold(0, i64::saturating_add);
    match target {
        Target::Average(target) => {
            let total = sum(&mut samples.values().map(|sample| sample.value));
            let average = total / i64::try_from(samples.len()).unwrap_or(i64::MAX);
            Ok(Ratio { ratio: average as f64 / target as f64, average, utilization: None })
        }
        Target::Utilization(target) => {
            let known =
                || samples.iter().filter_map(|(pod, sample)| Some((sample.value, *requests.get(pod)?)));
            let (used, requested) = (sum(&mut known().map(|one| one.0)), sum(&mut known().map(|one| one.1)));
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = i32::try_from(used.saturating_mul(100) / requested).unwrap_or(i32::MAX);
            let average = used / i64::try_from(known().count()).unwrap_or(i64::MAX);
            let ratio = f64::from(utilization) / f64::from(target);
            Ok(Ratio { ratio, average, utilization: Some(utilization) })
        }
    }
}

/// What the pods request of the resource, in thousandths.
fn requests(all: &[Arc<Pod>], figure: Figure<'_>) -> Result<BTreeMap<String, i64>, String> {
    let resource = figure.resource.unwrap_or_default();
    all.iter().map(|pod| Ok((pod.name_any(), request(pod, resource, figure.container)?))).collect()
}

fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i64, String> {
    let (name, spec) = (pod.name_any(), pod.spec.clone().unwrap_or_default());
    let millis = |text: &str| text.parse::<Quantity>().map_or(0, |quantity| quantity.millis());
    let whole = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    if let (None, Some(whole)) = (container, whole.filter(|whole| !whole.is_empty())) {
        let amount = whole.get(resource).map(|amount| millis(&amount.0));
        return amount.ok_or_else(|| format!("missing pod-level request for {resource} in Pod {name}"));
    }
    let sidecar = |one: &&Container| one.restart_policy.as_deref() == Some("Always");
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(sidecar));
    let mut asked = all.filter(|one| container.is_none_or(|container| one.name == container)).peekable();
    if let (Some(container), None) = (container, asked.peek()) {
        return Err(format!("container {container} not found in Pod {name}"));
    }
    asked.try_fold(0_i64, |sum, one| {
        let requests = one.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let amount = requests.and_then(|requests| requests.get(resource));
        let missing = || format!("missing request for {resource} in container {} of Pod {name}", one.name);
        Ok(sum.saturating_add(millis(&amount.ok_or_else(missing)?.0)))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 10_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn pod(name: &str, phase: &str, start: i64) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "resources":
            {"requests": {"cpu": "1"}}}]}, "status": {"phase": phase, "startTime": at(start).to_string(),
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(start + 5).to_string()}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn samples(values: &[(&str, i64)]) -> Samples {
        let sample = |value| Sample { value, at: at(NOW), window: Duration::from_secs(60) };
        values.iter().map(|(name, value)| ((*name).to_owned(), sample(*value))).collect()
    }

    fn figure(target: Target) -> Figure<'static> {
        Figure { resource: Some("cpu"), container: None, target, tolerance: Tolerance { up: 0.1, down: 0.1 } }
    }

    fn replicas(target: Target, values: &[(&str, i64)], pods: &[Arc<Pod>]) -> i32 {
        let current = i32::try_from(pods.len()).unwrap();
        by_pods(current, figure(target), samples(values), pods, at(NOW)).unwrap().replicas
    }

    #[test]
    fn by_the_share_of_requests() {
        let pods = [pod("a", "Running", 0), pod("b", "Running", 0)];
        let half = Target::Utilization(50);
        assert_eq!(replicas(half, &[("a", 900), ("b", 700)], &pods), 4);
        assert_eq!(replicas(half, &[("a", 540), ("b", 540)], &pods), 2, "near enough");
        assert_eq!(replicas(half, &[("a", 100), ("b", 200)], &pods), 1);
        let found = by_pods(2, figure(half), samples(&[("a", 900), ("b", 700)]), &pods, at(NOW)).unwrap();
        assert_eq!((found.average, found.utilization), (800, Some(80)));
        assert_eq!(replicas(Target::Average(400), &[("a", 900), ("b", 700)], &pods), 4);
    }

    #[test]
    fn pods_that_say_nothing_speak_against_a_change() {
        let half = Target::Utilization(50);
        let missing = [pod("a", "Running", 0), pod("b", "Running", 0), pod("c", "Running", 0)];
        // Without it, ten would do; a third idle one makes it fewer.
        assert_eq!(replicas(half, &[("a", 1000), ("b", 1000)], &missing), 4);
        assert_eq!(replicas(half, &[("a", 100), ("b", 100)], &missing), 3, "it may be busy");
        let pending = [pod("a", "Running", 0), pod("b", "Pending", 0)];
        assert_eq!(replicas(half, &[("a", 1000)], &pending), 2);
        assert_eq!(replicas(half, &[("a", 100)], &pending), 1);
        // What a pod burns while it starts says nothing.
        let young = [pod("a", "Running", 0), pod("b", "Running", NOW - 30)];
        assert_eq!(replicas(half, &[("a", 500), ("b", 5000)], &young), 2);
        let told = |values: &[(&str, i64)], pods: &[Arc<Pod>]| {
            by_pods(1, figure(half), samples(values), pods, at(NOW)).unwrap_err()
        };
        assert_eq!(told(&[], &[]), "no pods returned by selector while calculating replica count");
        assert_eq!(told(&[], &young), "did not receive metrics for targeted pods (pods might be unready)");
        let mut plain = Pod::clone(&young[0]);
        plain.spec.as_mut().unwrap().containers[0].resources = None;
        assert_eq!(told(&[("a", 1)], &[Arc::new(plain)]), "missing request for cpu in container c of Pod a");
    }

    #[test]
    fn by_figures_of_other_things() {
        let (pods, near) =
            ([pod("a", "Running", 0), pod("b", "Running", 0)], Tolerance { up: 0.1, down: 0.1 });
        assert_eq!(by_value(2, (3_000, 1_000), near, &pods), Ok(6));
        assert_eq!(by_value(2, (1_050, 1_000), near, &pods), Ok(2));
        assert_eq!(by_value(0, (3_000, 1_000), near, &[]), Ok(3));
        assert_eq!(by_share(2, (7_000, 1_000), near), (7, 3_500));
        assert_eq!(by_share(2, (2_100, 1_000), near), (2, 1_050));
    }
}
