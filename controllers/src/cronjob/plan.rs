//! What a CronJob does next: what has become of its Jobs, and whether it is time for another. Pure decisions.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use decapod_api::cron::{self, Schedule};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::ResourceExt;

use crate::job::finished;

/// The annotation of a Job that was made on time: for which time.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

/// How long after its time a CronJob is looked at, as in Kubernetes: clocks are never quite the same.
const DELTA: Duration = Duration::from_millis(100);

/// What is said about the CronJob: whether it is a warning, the reason and the message.
pub(super) type Note = (bool, &'static str, String);

/// What has become of the Jobs of a CronJob.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) status: CronJobStatus,
    pub(super) notes: Vec<Note>,
    /// Ended Jobs that are more than are kept, the oldest first.
    pub(super) surplus: Vec<Arc<Job>>,
}

/// Brings the status up to date by all Jobs of the CronJob. Active ones that are in neither list went missing.
///
/// A Job that was made on time but is not told by the status is one that the controller made and died before it
/// said so.
pub(super) fn account(cron: &CronJob, jobs: &[Arc<Job>], alive: &HashSet<String>) -> Account {
    let mut account = Account { status: cron.status.clone().unwrap_or_default(), ..Account::default() };
    let mut active = account.status.active.take().unwrap_or_default();
    for job in jobs {
        let (uid, name) = (job.metadata.uid.as_deref(), job.name_any());
        let known = active.iter().any(|one| one.uid.as_deref() == uid);
        let on_time = scheduled(cron, job);
        let last = account.status.last_schedule_time.as_ref().map(|time| time.0);
        if let Some(time) = on_time.filter(|time| last.is_none_or(|last| *time > last)) {
            account.status.last_schedule_time = Some(Time(time));
        }
        let Some(end) = finished(job) else {
            if !known && on_time.is_some() {
                active.push(reference(job));
            } else if !known {
                let message = format!("Saw a job that the controller did not create or forgot: {name}");
                account.notes.push((true, "UnexpectedJob", message));
            }
            continue;
        };
        if known {
            active.retain(|one| one.uid.as_deref() != uid);
            let message = format!("Saw completed job: {name}, condition: {}", end.type_);
            account.notes.push((false, "SawCompletedJob", message));
        }
        let completed = job.status.as_ref().and_then(|status| status.completion_time.as_ref());
        let best = account.status.last_successful_time.as_ref().map(|time| time.0);
        if let Some(time) = completed.filter(|time| best.is_none_or(|best| time.0 > best)) {
            account.status.last_successful_time = Some(time.clone());
        }
    }
    let there: HashSet<&str> = jobs.iter().filter_map(|job| job.metadata.uid.as_deref()).collect();
    active.retain(|one| {
        let uid = one.uid.as_deref().unwrap_or_default();
        let exists = there.contains(uid) || alive.contains(uid);
        if !exists {
            let message = format!("Active job went missing: {}", one.name.as_deref().unwrap_or_default());
            account.notes.push((false, "MissingJob", message));
        }
        exists
    });
    account.status.active = (!active.is_empty()).then_some(active);
    let limits = [
        ("Complete", cron.spec.successful_jobs_history_limit),
        ("Failed", cron.spec.failed_jobs_history_limit),
    ];
    account.surplus = limits.into_iter().flat_map(|(end, limit)| surplus(jobs, end, limit)).collect();
    account
}

/// The Jobs that came to this end and are more than the limit, the oldest first.
fn surplus(jobs: &[Arc<Job>], end: &str, limit: Option<i32>) -> Vec<Arc<Job>> {
    let Some(limit) = limit else { return Vec::new() };
    let ended = |job: &&Arc<Job>| finished(job).is_some_and(|one| one.type_ == end);
    let mut ended: Vec<_> = jobs.iter().filter(ended).cloned().collect();
    ended.sort_by_cached_key(|job| {
        let start = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
        (start.is_none(), start, job.name_any())
    });
    ended.truncate(ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0)));
    ended.retain(|job| job.metadata.deletion_timestamp.is_none());
    ended
}

/// The time for which the CronJob made this Job, if it did.
fn scheduled(cron: &CronJob, job: &Job) -> Option<Timestamp> {
    let text = job.metadata.annotations.as_ref()?.get(SCHEDULED)?;
    let time = text.parse::<Timestamp>().ok()?;
    (job.metadata.name.as_deref() == Some(job_name(cron, time).as_str())).then_some(time)
}

fn job_name(cron: &CronJob, time: Timestamp) -> String {
    format!("{}-{}", cron.name_any(), time.as_second() / 60)
}

/// A reference to a Job, as the status lists it.
pub(super) fn reference(job: &Job) -> ObjectReference {
    ObjectReference {
        api_version: Some("batch/v1".to_owned()),
        kind: Some("Job".to_owned()),
        name: job.metadata.name.clone(),
        namespace: job.metadata.namespace.clone(),
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
        field_path: None,
    }
}

/// What is due.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// The time for which a Job is to be made now.
    pub(super) start: Option<Timestamp>,
    /// The Jobs that it replaces.
    pub(super) replaces: Vec<ObjectReference>,
    pub(super) notes: Vec<Note>,
    /// When to look again.
    pub(super) again: Option<Duration>,
}

/// Decides by the CronJob and its status as [`account`] left it.
pub(super) fn due(cron: &CronJob, status: &CronJobStatus, now: Timestamp) -> Due {
    if cron.metadata.deletion_timestamp.is_some() {
        return Due::default();
    }
    let warned = |reason, message| Due { notes: vec![(true, reason, message)], ..Due::default() };
    let Some(zone) = zone(cron) else {
        let name = cron.spec.time_zone.as_deref().unwrap_or_default();
        return warned("UnknownTimeZone", format!("invalid timeZone: {name:?}: unknown time zone {name}"));
    };
    if cron.spec.suspend == Some(true) {
        return Due::default();
    }
    let schedule = match Schedule::parse(&cron.spec.schedule) {
        Ok(schedule) => schedule,
        Err(error) => {
            let message = format!("unparseable schedule: {:?} : {error}", cron.spec.schedule);
            return warned("UnparseableSchedule", message);
        }
    };
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let since = status.last_schedule_time.as_ref().map_or(created, |time| time.0);
    let deadline = cron.spec.starting_deadline_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let floor = deadline.and_then(|seconds| now.checked_sub(Duration::from_secs(seconds)).ok());
    // What is exactly at the deadline is in time.
    let floor =
        floor.and_then(|floor| floor.checked_sub(Duration::from_nanos(1)).ok()).unwrap_or(Timestamp::MIN);
    let come = schedule.latest(since, Timestamp::MIN, now, &zone);
    let latest = schedule.latest(since, floor, now, &zone);
    let next = schedule.next(come.map_or(since, |come| come.time), &zone);
    let wait = next.map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default() + DELTA);
    let mut due = Due { again: wait, ..Due::default() };
    let Some(latest) = latest else { return due };
    if latest.many {
        let message =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        due.notes.push((true, "TooManyMissedTimes", message.to_owned()));
    }
    let active = status.active.as_deref().unwrap_or_default();
    let name = job_name(cron, latest.time);
    if active.iter().any(|job| job.name.as_deref() == Some(name.as_str())) {
        return due;
    }
    match cron.spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            due.notes.push((false, "JobAlreadyActive", message.to_owned()));
            return due;
        }
        Some("Replace") => due.replaces = active.to_vec(),
        _ => {}
    }
    due.start = Some(latest.time);
    due
}

/// The time zone by whose clocks the schedule goes: UTC unless the CronJob names another; `None` where it is unknown.
fn zone(cron: &CronJob) -> Option<TimeZone> {
    match cron.spec.time_zone.as_deref() {
        None | Some("" | "UTC") => Some(TimeZone::UTC),
        Some(name) => cron::zone(name),
    }
}

/// The Job for a time.
pub(super) fn job(cron: &CronJob, time: Timestamp, owner: OwnerReference) -> Job {
    let template = cron.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let local = time.to_zoned(zone(cron).unwrap_or(TimeZone::UTC));
    let form = if local.offset().is_zero() { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
    annotations.insert(SCHEDULED.to_owned(), local.strftime(form).to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, time)),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2024-05-09T{text}Z").parse().unwrap()
    }

    fn cron(spec: Value) -> CronJob {
        let mut all = json!({"schedule": "*/10 * * * *", "jobTemplate": {"metadata": {"labels": {"a": "b"}},
            "spec": {"template": {"spec": {"containers": []}}}}});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let meta =
            json!({"name": "c", "namespace": "ns", "uid": "u", "creationTimestamp": "2024-05-09T12:01:00Z"});
        serde_json::from_value(json!({"metadata": meta, "spec": all})).unwrap()
    }

    fn ended(cron: &CronJob, time: &str, end: Option<&str>) -> Arc<Job> {
        let mut job = job(cron, at(time), OwnerReference::default());
        job.metadata.uid = Some(format!("uid-{time}"));
        let conditions = end.map(|end| json!([{"type": end, "status": "True"}]));
        let completed = (end == Some("Complete")).then(|| at(time).to_string());
        let status =
            json!({"conditions": conditions, "startTime": at(time).to_string(), "completionTime": completed});
        job.status = serde_json::from_value(status).unwrap();
        Arc::new(job)
    }

    fn starts(cron: &CronJob, status: &CronJobStatus, now: &str) -> (Option<Timestamp>, Vec<&'static str>) {
        let due = due(cron, status, at(now));
        (due.start, due.notes.into_iter().map(|note| note.1).collect())
    }

    #[test]
    fn a_job_is_made_once_for_each_time() {
        let (cron, mut status) = (cron(json!({})), CronJobStatus::default());
        let early = due(&cron, &status, at("12:09:58"));
        assert_eq!((early.start, early.again), (None, Some(Duration::from_millis(2_100))));
        assert_eq!(starts(&cron, &status, "12:10:00").0, Some(at("12:10:00")));
        assert_eq!(starts(&cron, &status, "12:35:00").0, Some(at("12:30:00")), "of several missed the last");
        status.last_schedule_time = Some(Time(at("12:30:00")));
        assert_eq!(starts(&cron, &status, "12:35:00").0, None);
        let job = job(&cron, at("12:30:00"), OwnerReference::default());
        assert_eq!(job.name_any(), "c-28587630");
        assert_eq!(job.annotations()[SCHEDULED], "2024-05-09T12:30:00Z");
        assert_eq!(job.labels()["a"], "b");
    }

    #[test]
    fn what_keeps_a_job_from_being_made() {
        let none = CronJobStatus::default();
        assert_eq!(starts(&cron(json!({"suspend": true})), &none, "12:35:00"), (None, vec![]));
        let late = cron(json!({"startingDeadlineSeconds": 60}));
        assert_eq!(starts(&late, &none, "12:35:00").0, None);
        assert_eq!(starts(&late, &none, "12:31:00").0, Some(at("12:30:00")));
        assert_eq!(due(&late, &none, at("12:35:00")).again, Some(Duration::from_millis(300_100)));
        let zone = cron(json!({"timeZone": "Mars/Olympus"}));
        assert_eq!(starts(&zone, &none, "12:35:00"), (None, vec!["UnknownTimeZone"]));
        let wrong = cron(json!({"schedule": "nonsense"}));
        assert_eq!(starts(&wrong, &none, "12:35:00"), (None, vec!["UnparseableSchedule"]));
        let often = cron(json!({"schedule": "* * * * *"}));
        assert_eq!(starts(&often, &none, "23:35:00"), (Some(at("23:35:00")), vec!["TooManyMissedTimes"]));
        let running = ended(&often, "12:10:00", None);
        let busy = CronJobStatus { active: Some(vec![reference(&running)]), ..CronJobStatus::default() };
        let forbid = cron(json!({"concurrencyPolicy": "Forbid"}));
        assert_eq!(starts(&forbid, &busy, "12:35:00"), (None, vec!["JobAlreadyActive"]));
        let replace = due(&cron(json!({"concurrencyPolicy": "Replace"})), &busy, at("12:35:00"));
        assert_eq!((replace.start, replace.replaces.len()), (Some(at("12:30:00")), 1));
    }

    #[test]
    fn a_time_zone_moves_the_times() {
        let cron = cron(json!({"schedule": "30 14 * * *", "timeZone": "Europe/Berlin"}));
        assert_eq!(starts(&cron, &CronJobStatus::default(), "12:35:00").0, Some(at("12:30:00")));
        let job = job(&cron, at("12:30:00"), OwnerReference::default());
        assert_eq!(job.annotations()[SCHEDULED], "2024-05-09T14:30:00+02:00");
    }

    #[test]
    fn the_status_follows_the_jobs() {
        let mut cron = cron(json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0}));
        let (done, older) =
            (ended(&cron, "12:20:00", Some("Complete")), ended(&cron, "12:10:00", Some("Complete")));
        let (bad, running) = (ended(&cron, "12:30:00", Some("Failed")), ended(&cron, "12:40:00", None));
        let mut gone = reference(&running);
        (gone.uid, gone.name) = (Some("gone".to_owned()), Some("gone".to_owned()));
        let mut manual = Job::clone(&ended(&cron, "12:50:00", None));
        manual.metadata.name = Some("by-hand".to_owned());
        cron.status =
            Some(CronJobStatus { active: Some(vec![reference(&done), gone]), ..CronJobStatus::default() });
        let jobs = [done, older, bad, running.clone(), Arc::new(manual)];
        let account = account(&cron, &jobs, &HashSet::new());
        let surplus: Vec<_> = account.surplus.iter().map(|job| job.name_any()).collect();
        assert_eq!(surplus, ["c-28587610", "c-28587630"]);
        let status = account.status;
        assert_eq!(status.active.unwrap(), [reference(&running)], "its making was not told");
        assert_eq!(status.last_schedule_time.unwrap().0, at("12:40:00"));
        assert_eq!(status.last_successful_time.unwrap().0, at("12:20:00"));
        let notes: Vec<_> = account.notes.iter().map(|note| (note.1, note.2.as_str())).collect();
        assert_eq!(
            notes,
            [
                ("SawCompletedJob", "Saw completed job: c-28587620, condition: Complete"),
                ("UnexpectedJob", "Saw a job that the controller did not create or forgot: by-hand"),
                ("MissingJob", "Active job went missing: gone"),
            ]
        );
    }
}
