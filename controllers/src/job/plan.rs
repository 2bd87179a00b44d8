//! What a Job does next: whether it has come to its end, which pods go and which are made. Pure decisions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::indexes::Indexes;
use super::pod;
use super::policy::{self, Ruling};
use super::view::{Indexed, View};
use crate::common::{pods, template};

/// Pods created or deleted in one step, as in Kubernetes: a large Job must not starve small ones.
const BURST: usize = 500;

/// The wait before a failed pod is replaced: this after the first failure, twice as long after each further one.
const BACKOFF: Duration = Duration::from_secs(10);

/// The longest such wait.
const BACKOFF_CAP: Duration = Duration::from_secs(600);

/// The longest name that the API server makes up the end of.
const GENERATED_NAME: usize = 58;

/// How the Job ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Verdict {
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Self { success: false, reason: reason.to_owned(), message: message.into() }
    }

    fn success(reason: &str, message: impl Into<String>) -> Self {
        Self { success: true, reason: reason.to_owned(), message: message.into() }
    }

    /// The condition that says so before all pods have ended, and the one that says so then.
    pub(super) fn conditions(&self) -> (&'static str, &'static str) {
        if self.success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") }
    }
}

/// Whether the Job has come to its end. What was once decided stands; a failure goes before a success.
pub(super) fn verdict(view: &View<'_>, now: Timestamp) -> Option<Verdict> {
    told(view)
        .or_else(|| by_failure_policy(view))
        .or_else(|| by_limits(view, now))
        .or_else(|| view.indexed.as_ref().and_then(|indexed| by_indexes(view, indexed)))
        .or_else(|| by_completions(view))
}

fn told(view: &View<'_>) -> Option<Verdict> {
    let conditions = view.status.conditions.as_deref().unwrap_or_default();
    let stands = |type_: &str| conditions.iter().find(|one| one.type_ == type_ && one.status == "True");
    let of = |success: bool, condition: &JobCondition| Verdict {
        success,
        reason: condition.reason.clone().unwrap_or_default(),
        message: condition.message.clone().unwrap_or_default(),
    };
    let success = stands("SuccessCriteriaMet").map(|condition| of(true, condition));
    success.or_else(|| stands("FailureTarget").map(|condition| of(false, condition)))
}

fn by_failure_policy(view: &View<'_>) -> Option<Verdict> {
    view.spec.pod_failure_policy.as_ref()?;
    let failed = view.pods.iter().filter(|pod| view.is_failed(pod));
    failed.into_iter().find_map(|pod| match view.ruling(pod) {
        Ruling::FailsJob(message) => Some(Verdict::failure("PodFailurePolicy", message)),
        _ => None,
    })
}

fn by_limits(view: &View<'_>, now: Timestamp) -> Option<Verdict> {
    if view.failed > view.backoff_limit() || restarted_too_often(view) {
        return Some(Verdict::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    let over = deadline(view, now).is_some_and(|left| left.is_zero());
    over.then(|| Verdict::failure("DeadlineExceeded", "Job was active longer than specified deadline"))
}

/// Where containers are restarted in place, restarts count as failures.
fn restarted_too_often(view: &View<'_>) -> bool {
    let template = view.spec.template.spec.as_ref();
    if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let running =
        view.pods.iter().filter(|pod| !pods::is_terminal(pod)).filter_map(|pod| pod.status.as_ref());
    let statuses = running.flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        init.chain(status.container_statuses.iter().flatten())
    });
    let restarts: i32 = statuses.map(|status| status.restart_count).sum();
    restarts >= view.backoff_limit().max(1)
}

/// The time that is left to a Job with a deadline that runs.
fn deadline(view: &View<'_>, now: Timestamp) -> Option<Duration> {
    let seconds = view.spec.active_deadline_seconds.filter(|_| !view.is_suspended())?;
    let total = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let start = view.status.start_time.as_ref().map_or(now, |time| time.0);
    let passed = Duration::try_from(now.duration_since(start)).unwrap_or_default();
    Some(total.saturating_sub(passed))
}

fn by_indexes(view: &View<'_>, indexed: &Indexed) -> Option<Verdict> {
    if let Some(failed) = indexed.failed.as_ref().map(Indexes::count) {
        if view.spec.max_failed_indexes.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Verdict::failure("MaxFailedIndexesExceeded", message));
        }
        if failed > 0 && failed + indexed.succeeded.count() >= indexed.completions {
            return Some(Verdict::failure("FailedIndexes", "Job has failed indexes"));
        }
    }
    let policy = view.spec.success_policy.as_ref();
    let met = policy::success(policy, indexed.completions, &indexed.succeeded);
    met.map(|message| Verdict::success("SuccessPolicy", message))
}

fn by_completions(view: &View<'_>) -> Option<Verdict> {
    let enough = match view.spec.completions {
        Some(completions) => view.succeeded >= completions,
        None => view.succeeded > 0,
    };
    let complete = enough && view.active.is_empty();
    complete.then(|| Verdict::success("CompletionsReached", "Reached expected number of succeeded pods"))
}

/// What is to be done about the pods.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Deleted; what becomes of them counts.
    pub(super) stop: Vec<Arc<Pod>>,
    /// Let go and deleted, without being counted.
    pub(super) drop: Vec<Arc<Pod>>,
    /// Pods to make: for which index, and after which failed pod.
    pub(super) start: Vec<Start>,
    /// When to look again, if nothing happens before.
    pub(super) again: Option<Duration>,
}

/// A pod to make.
#[derive(Clone, Debug, Default)]
pub(super) struct Start {
    pub(super) index: Option<i32>,
    pub(super) after: Option<Arc<Pod>>,
}

/// Decides about the pods.
pub(super) fn steps(view: &View<'_>, verdict: Option<&Verdict>, now: Timestamp) -> Steps {
    if verdict.is_some() {
        return Steps { stop: view.active.clone(), ..Steps::default() };
    }
    if view.is_deleting() {
        return Steps::default();
    }
    let mut steps = if view.is_suspended() {
        Steps { drop: view.active.clone(), ..Steps::default() }
    } else {
        adjust(view, now)
    };
    steps.again = [steps.again, deadline(view, now)].into_iter().flatten().min();
    steps
}

fn adjust(view: &View<'_>, now: Timestamp) -> Steps {
    let active = view.active.len();
    let wanted = match view.spec.completions {
        Some(completions) => completions.saturating_sub(view.succeeded).min(view.parallelism()),
        // Once a pod has succeeded, the others end by themselves and are not replaced.
        None if view.succeeded > 0 => i32::try_from(active).unwrap_or(i32::MAX),
        None => view.parallelism(),
    };
    let wanted = usize::try_from(wanted).unwrap_or(0);
    let surplus = surplus(view, active.saturating_sub(wanted));
    if !surplus.is_empty() {
        return Steps { drop: surplus, ..Steps::default() };
    }
    let leaving = if view.replaces_only_ended() { view.terminating.len() } else { 0 };
    let lacking = wanted.saturating_sub(active + leaving).min(BURST);
    if lacking == 0 {
        return Steps::default();
    }
    if view.spec.backoff_limit_per_index.is_none() {
        let (failures, last) = failures_in_a_row(view);
        let left = backoff(failures, last, now);
        if !left.is_zero() {
            return Steps { again: Some(left), ..Steps::default() };
        }
    }
    let Some(indexed) = &view.indexed else {
        return Steps { start: vec![Start::default(); lacking], ..Steps::default() };
    };
    start_indexes(view, indexed, lacking, now)
}

fn start_indexes(view: &View<'_>, indexed: &Indexed, lacking: usize, now: Timestamp) -> Steps {
    let mut taken = indexed.succeeded.clone();
    let leaving = view.terminating.iter().filter(|_| view.replaces_only_ended());
    view.active.iter().chain(leaving).filter_map(|pod| pod::index(pod)).for_each(|index| taken.insert(index));
    if let Some(failed) = &indexed.failed {
        taken.extend(failed);
    }
    let mut steps = Steps::default();
    for index in taken.missing(indexed.completions).take(lacking) {
        let after = indexed.held.get(&index).cloned();
        let left = after.as_ref().map_or(Duration::ZERO, |pod| {
            backoff(pod::failures(pod) + pod::ignored(pod) + 1, pod::ended(pod), now)
        });
        if left.is_zero() {
            steps.start.push(Start { index: Some(index), after });
        } else {
            steps.again = Some(steps.again.map_or(left, |known| known.min(left)));
        }
    }
    steps
}

/// The failures since the last success, and when the last one was. Failed pods stay until the Job goes, so that this
/// needs no memory; a pod that was let go does not count.
fn failures_in_a_row(view: &View<'_>) -> (i32, Timestamp) {
    let succeeded = view.pods.iter().filter(|pod| pods::phase(pod) == "Succeeded");
    let success = succeeded.map(|pod| pod::ended(pod)).max();
    let counts = |pod: &&Arc<Pod>| pod::is_tracked(pod) || pod.metadata.deletion_timestamp.is_none();
    let failed = view.pods.iter().filter(|pod| view.is_failed(pod)).filter(counts);
    let ends = failed.map(|pod| pod::ended(pod)).filter(|end| success.is_none_or(|success| *end > success));
    ends.fold((0, Timestamp::UNIX_EPOCH), |(count, last), end| (count + 1, last.max(end)))
}

/// The wait that is left after so many failures, the last of them at `last`.
fn backoff(failures: i32, last: Timestamp, now: Timestamp) -> Duration {
    let Some(doublings) = u32::try_from(failures).ok().and_then(|failures| failures.checked_sub(1)) else {
        return Duration::ZERO;
    };
    let total = BACKOFF.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(BACKOFF_CAP);
    total.saturating_sub(Duration::try_from(now.duration_since(last)).unwrap_or_default())
}

/// Active pods that are not wanted: those whose end would not be counted, those of no index or of one that another
/// has, and as many as there are too many. The least useful go first.
fn surplus(view: &View<'_>, excess: usize) -> Vec<Arc<Pod>> {
    let mut ranked = view.active.clone();
    ranked.sort_by_cached_key(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (
            pods::progress(pod),
            Reverse(pods::ready_since(pod)),
            Reverse(pods::restarts(pod)),
            Reverse(created),
            pod::uid(pod).to_owned(),
        )
    });
    // Of several pods of an index the most useful stays, which is the last.
    let useful: HashSet<String> = match &view.indexed {
        Some(indexed) => {
            let of_index =
                ranked.iter().filter_map(|pod| Some((indexed.index(pod)?, pod::uid(pod).to_owned())));
            of_index.collect::<BTreeMap<_, _>>().into_values().collect()
        }
        None => ranked.iter().map(|pod| pod::uid(pod).to_owned()).collect(),
    };
    let (left, mut gone): (Vec<_>, Vec<_>) =
        ranked.into_iter().partition(|pod| pod::is_tracked(pod) && useful.contains(pod::uid(pod)));
    let more = excess.saturating_sub(gone.len());
    gone.extend(left.into_iter().take(more));
    gone.truncate(BURST);
    gone
}

/// The pod to make.
pub(super) fn pod(view: &View<'_>, start: &Start, owner: OwnerReference) -> Pod {
    let job = view.job.metadata.name.as_deref().unwrap_or_default();
    let mut pod = template::pod(&view.job.metadata, view.spec.template.clone(), owner);
    if !pod::is_tracked(&pod) {
        pod.metadata.finalizers.get_or_insert_default().push(pod::FINALIZER.to_owned());
    }
    if let Some(index) = start.index {
        give_index(&mut pod, job, index);
        if view.spec.backoff_limit_per_index.is_some() {
            carry_on_count(&mut pod, view, start.after.as_deref());
        }
    }
    pod
}

fn give_index(pod: &mut Pod, job: &str, index: i32) {
    let end = format!("-{index}-");
    let room = GENERATED_NAME.saturating_sub(end.len());
    // Names are ASCII, so that any place is one to cut at.
    pod.metadata.generate_name = Some(format!("{}{end}", job.get(..room).unwrap_or(job)));
    for map in [&mut pod.metadata.annotations, &mut pod.metadata.labels] {
        map.get_or_insert_default().insert(pod::INDEX.to_owned(), index.to_string());
    }
    let Some(spec) = &mut pod.spec else { return };
    spec.hostname = Some(format!("{job}-{index}"));
    let init = spec.init_containers.iter_mut().flatten();
    init.chain(&mut spec.containers).for_each(tell_index);
}

fn tell_index(container: &mut Container) {
    const VARIABLE: &str = "JOB_COMPLETION_INDEX";
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == VARIABLE) {
        return;
    }
    let field =
        ObjectFieldSelector { field_path: format!("metadata.labels['{}']", pod::INDEX), api_version: None };
    let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
    variables.push(EnvVar { name: VARIABLE.to_owned(), value: None, value_from: Some(source) });
}

fn carry_on_count(new: &mut Pod, view: &View<'_>, after: Option<&Pod>) {
    let (mut failures, mut ignored) = (0, 0);
    if let Some(old) = after {
        let counts = view.ruling(old).counts();
        failures = pod::failures(old) + i32::from(counts);
        ignored = pod::ignored(old) + i32::from(!counts);
    }
    let annotations = new.metadata.annotations.get_or_insert_default();
    annotations.insert(pod::FAILURES.to_owned(), failures.to_string());
    if ignored > 0 {
        annotations.insert(pod::IGNORED.to_owned(), ignored.to_string());
    }
}
