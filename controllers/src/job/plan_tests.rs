//! Decisions about Jobs, without a cluster.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use serde_json::{Value, json};

use super::plan::{self, Steps, Verdict};
use super::pod;
use super::track::{self, Numbers};
use super::view::View;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn job(spec: Value, status: Value) -> Job {
    let mut all = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}],
        "initContainers": [{"name": "i", "env": [{"name": "JOB_COMPLETION_INDEX", "value": "own"}]}]}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    serde_json::from_value(
        json!({"metadata": {"name": "j", "namespace": "ns"}, "spec": all, "status": status}),
    )
    .unwrap()
}

/// A pod in a phase, that ended at second 100 if it did.
fn pod_of(name: &str, phase: &str, index: Option<i32>) -> Pod {
    let annotations = index.map(|index| json!({pod::INDEX: index.to_string()}));
    let end = json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"terminated": {"exitCode": 1, "finishedAt": at(100).to_string()}}}]);
    let ended = matches!(phase, "Failed" | "Succeeded").then_some(end);
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "ns", "uid": name,
        "finalizers": [pod::FINALIZER], "annotations": annotations},
        "status": {"phase": phase, "containerStatuses": ended}}))
    .unwrap()
}

fn pods(list: &[(&str, &str, Option<i32>)]) -> Vec<Arc<Pod>> {
    list.iter().map(|(name, phase, index)| Arc::new(pod_of(name, phase, *index))).collect()
}

fn decide(job: &Job, pods: &[Arc<Pod>], now: i64) -> (Option<String>, Steps) {
    let view = View::new(job, pods).unwrap();
    let verdict = plan::verdict(&view, at(now));
    let steps = plan::steps(&view, verdict.as_ref(), at(now));
    (verdict.map(|verdict| verdict.reason), steps)
}

fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
    pods.iter().map(|pod| pod::uid(pod)).collect()
}

#[test]
fn as_many_pods_as_are_left_to_do() {
    let wide = job(json!({"completions": 5, "parallelism": 3}), json!({"succeeded": 3}));
    let (_, steps) = decide(&wide, &pods(&[("a", "Running", None)]), 1_000);
    assert_eq!((steps.start.len(), steps.drop.len()), (1, 0));
    let (_, steps) = decide(
        &wide,
        &pods(&[("a", "Running", None), ("b", "Pending", None), ("c", "Running", None)]),
        1_000,
    );
    assert_eq!((steps.start.len(), names(&steps.drop)), (0, vec!["b"]), "the least useful goes");
    // Where any success is enough, a success ends the making of pods, but not those that run.
    let any = job(json!({"parallelism": 2}), json!({"succeeded": 1}));
    let (verdict, steps) = decide(&any, &pods(&[("a", "Running", None)]), 1_000);
    assert_eq!((verdict, steps.start.len(), steps.drop.len()), (None, 0, 0));
    assert_eq!(decide(&any, &[], 1_000).0.as_deref(), Some("CompletionsReached"));
    let none = job(json!({"completions": 0}), json!({}));
    assert_eq!(decide(&none, &[], 1_000).0.as_deref(), Some("CompletionsReached"));
    let mut untracked = pod_of("u", "Running", None);
    untracked.metadata.finalizers = None;
    let (_, steps) = decide(&wide, &[Arc::new(untracked)], 1_000);
    assert_eq!(names(&steps.drop), ["u"], "its end would not be counted");
}

#[test]
fn failures_are_waited_for_longer_each_time() {
    let one = job(json!({"completions": 1}), json!({}));
    let mut failed = pods(&[("a", "Failed", None)]);
    assert_eq!(decide(&one, &failed, 104).1.again, Some(Duration::from_secs(6)));
    assert_eq!(decide(&one, &failed, 110).1.start.len(), 1);
    failed.extend(pods(&[("b", "Failed", None), ("c", "Failed", None)]));
    assert_eq!(decide(&one, &failed, 110).1.again, Some(Duration::from_secs(30)));
    let (verdict, steps) = decide(&job(json!({"backoffLimit": 2}), json!({})), &failed, 110);
    assert_eq!((verdict.as_deref(), steps.start.len()), (Some("BackoffLimitExceeded"), 0));
    let counted =
        job(json!({"backoffLimit": 2}), json!({"failed": 2, "uncountedTerminatedPods": {"failed": ["a"]}}));
    assert_eq!(decide(&counted, &[], 110).0.as_deref(), Some("BackoffLimitExceeded"), "wherever it is noted");
}

#[test]
fn restarts_in_place_and_deadlines_end_a_job() {
    let mut restarted = pod_of("a", "Running", None);
    restarted.status.as_mut().unwrap().container_statuses = serde_json::from_value(json!([{"name": "c",
        "image": "", "imageID": "", "ready": false, "restartCount": 2}]))
    .unwrap();
    let restarted = [Arc::new(restarted)];
    let mut spec = json!({"backoffLimit": 2});
    assert_eq!(decide(&job(spec.clone(), json!({})), &restarted, 1).0, None);
    spec["template"] = json!({"spec": {"restartPolicy": "OnFailure", "containers": []}});
    let (verdict, steps) = decide(&job(spec, json!({})), &restarted, 1);
    assert_eq!((verdict.as_deref(), names(&steps.stop)), (Some("BackoffLimitExceeded"), vec!["a"]));
    let timed = |suspend: bool| {
        job(
            json!({"activeDeadlineSeconds": 50, "suspend": suspend}),
            json!({"startTime": at(100).to_string()}),
        )
    };
    let running = pods(&[("a", "Running", None)]);
    assert_eq!(decide(&timed(false), &running, 140).1.again, Some(Duration::from_secs(10)));
    assert_eq!(decide(&timed(false), &running, 150).0.as_deref(), Some("DeadlineExceeded"));
    let (verdict, steps) = decide(&timed(true), &running, 150);
    assert_eq!((verdict, names(&steps.drop)), (None, vec!["a"]), "a suspended Job has time");
}

#[test]
fn each_index_has_one_pod() {
    let spec = json!({"completionMode": "Indexed", "completions": 6, "parallelism": 4});
    let some = job(spec.clone(), json!({"completedIndexes": "0"}));
    let (_, steps) = decide(&some, &pods(&[("a", "Running", Some(1)), ("b", "Succeeded", Some(2))]), 1_000);
    let starts: Vec<_> = steps.start.iter().filter_map(|start| start.index).collect();
    assert_eq!(starts, [3, 4, 5]);
    let double = pods(&[
        ("a", "Running", Some(1)),
        ("b", "Pending", Some(1)),
        ("c", "Running", None),
        ("d", "Running", Some(6)),
    ]);
    let (_, steps) = decide(&some, &double, 1_000);
    let mut gone = names(&steps.drop);
    gone.sort_unstable();
    assert_eq!(gone, ["b", "c", "d"]);
    let view_pods = pods(&[]);
    let view = View::new(&some, &view_pods).unwrap();
    let made = plan::pod(&view, &plan::Start { index: Some(3), after: None }, OwnerReference::default());
    assert_eq!(made.metadata.generate_name.as_deref(), Some("j-3-"));
    assert_eq!(made.metadata.labels.as_ref().unwrap()[pod::INDEX], "3");
    assert!(pod::is_tracked(&made));
    let spec = made.spec.unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("j-3"));
    let field =
        spec.containers[0].env.as_ref().unwrap()[0].value_from.as_ref().unwrap().field_ref.as_ref().unwrap();
    assert_eq!(field.field_path, "metadata.labels['batch.kubernetes.io/job-completion-index']");
    assert_eq!(spec.init_containers.unwrap()[0].env.as_ref().unwrap().len(), 1, "its own stays");
}

#[test]
fn an_index_carries_on_its_count() {
    let spec =
        json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimitPerIndex": 1});
    let (job, failed) = (job(spec, json!({})), pods(&[("a", "Failed", Some(0)), ("b", "Running", Some(1))]));
    let (verdict, steps) = decide(&job, &failed, 110);
    assert_eq!((verdict, steps.start.len()), (None, 1));
    let view = View::new(&job, &failed).unwrap();
    let numbers = Numbers { active: 1, ready: 0, terminating: 0 };
    let tracking = track::note(&view, None, numbers, at(110));
    assert!(tracking.release.is_empty(), "held until its successor is there");
    assert_eq!(tracking.status.failed_indexes.as_deref(), Some(""));
    let next = plan::pod(&view, &steps.start[0], OwnerReference::default());
    assert_eq!(pod::failures(&next), 1);
    let mut second = pod_of("c", "Failed", Some(0));
    second.metadata.annotations.as_mut().unwrap().insert(pod::FAILURES.to_owned(), "1".to_owned());
    let both = [failed[0].clone(), failed[1].clone(), Arc::new(second)];
    let view = View::new(&job, &both).unwrap();
    let tracking = track::note(&view, None, numbers, at(110));
    assert_eq!(names(&tracking.release), ["a", "c"]);
    assert_eq!(tracking.status.failed_indexes.as_deref(), Some("0"));
    assert!(decide(&job, &both, 200).1.start.is_empty(), "it failed for good");
}

#[test]
fn a_pod_on_its_way_out_is_replaced_as_the_policy_says() {
    let mut leaving = pod_of("a", "Running", None);
    leaving.metadata.deletion_timestamp = Some(Time(at(100)));
    let leaving = [Arc::new(leaving)];
    let soon = job(json!({"completions": 1, "backoffLimit": 3}), json!({}));
    assert_eq!(decide(&soon, &leaving, 200).1.start.len(), 1);
    assert_eq!(View::new(&soon, &leaving).unwrap().failed, 1);
    let late = job(json!({"completions": 1, "podReplacementPolicy": "Failed"}), json!({}));
    assert_eq!(decide(&late, &leaving, 200).1.start.len(), 0);
    assert_eq!(View::new(&late, &leaving).unwrap().failed, 0);
}

/// The status and the pods' finalizers after the controller got so many writes done, from the beginning each time.
#[test]
fn the_sum_is_the_same_after_every_write() {
    let spec = job(json!({"completions": 3, "parallelism": 3, "backoffLimit": 9}), json!({}));
    let all = pods(&[
        ("a", "Succeeded", None),
        ("b", "Failed", None),
        ("c", "Succeeded", None),
        ("d", "Running", None),
    ]);
    for writes in 0..6 {
        let (mut job, mut pods) = (spec.clone(), all.clone());
        // The last life is long enough for everything.
        for budget in [writes, writes, 100] {
            live(&mut job, &mut pods, budget);
            let view = View::new(&job, &pods).unwrap();
            assert_eq!((view.succeeded, view.failed), (2, 1), "after {writes}: {:?}", job.status);
        }
        let status = job.status.unwrap();
        assert_eq!((status.succeeded, status.failed, status.active), (Some(2), Some(1), Some(1)));
        assert_eq!(status.uncounted_terminated_pods.unwrap_or_default(), Default::default());
        assert_eq!(pods.iter().filter(|pod| pod::is_tracked(pod)).count(), 1);
    }
}

/// Does so many of the writes that a look leads to.
fn live(job: &mut Job, pods: &mut [Arc<Pod>], mut writes: usize) {
    let mut may = || {
        let may = writes > 0;
        writes = writes.saturating_sub(1);
        may
    };
    let view = View::new(job, pods).unwrap();
    let numbers = Numbers { active: 1, ready: 0, terminating: 0 };
    let tracking = track::note(&view, None, numbers, at(1_000));
    if !may() {
        return;
    }
    let mut status = tracking.status;
    job.status = Some(status.clone());
    for pod in tracking.release {
        if !may() {
            return;
        }
        let known = pods.iter_mut().find(|one| pod::uid(one) == pod::uid(&pod)).unwrap();
        *known = Arc::new(pod::untracked(&pod));
    }
    let tracked =
        pods.iter().filter(|pod| pod::is_tracked(pod)).map(|pod| pod::uid(pod).to_owned()).collect();
    track::count(&mut status, &tracked);
    if may() {
        job.status = Some(status);
    }
}

#[test]
fn a_job_ends_when_all_is_counted_and_gone() {
    let done = job(json!({"completions": 1}), json!({"startTime": at(1).to_string()}));
    let mut pods = pods(&[("a", "Succeeded", None), ("b", "Running", None)]);
    Arc::make_mut(&mut pods[1]).metadata.deletion_timestamp = Some(Time(at(5)));
    let view = View::new(&done, &pods).unwrap();
    let verdict = Verdict { success: true, reason: "CompletionsReached".into(), message: "m".into() };
    let mut numbers = Numbers { active: 0, ready: 0, terminating: 1 };
    let mut status = track::note(&view, Some(&verdict), numbers, at(9)).status;
    let types = |status: &k8s_openapi::api::batch::v1::JobStatus| {
        let conditions = status.conditions.clone().unwrap_or_default();
        conditions.iter().map(|one| one.type_.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(types(&status), "SuccessCriteriaMet");
    assert!(!track::finish(&mut status, &verdict, at(9)), "its end is not counted");
    track::count(&mut status, &Default::default());
    assert!(!track::finish(&mut status, &verdict, at(9)), "a pod is still there");
    numbers.terminating = 0;
    let mut status = track::note(&view, Some(&verdict), numbers, at(9)).status;
    track::count(&mut status, &Default::default());
    assert!(track::finish(&mut status, &verdict, at(9)));
    assert_eq!(types(&status), "SuccessCriteriaMet Complete");
    assert_eq!((status.succeeded, status.completion_time), (Some(1), Some(Time(at(9)))));
}

#[test]
fn a_suspension_is_told_once() {
    let numbers = Numbers { active: 0, ready: 0, terminating: 0 };
    let suspended = job(json!({"suspend": true}), json!({"startTime": at(1).to_string()}));
    let view = View::new(&suspended, &[]).unwrap();
    let tracking = track::note(&view, None, numbers, at(9));
    assert_eq!(tracking.event, Some(("Suspended", "Job suspended")));
    assert!(tracking.status.start_time.is_none());
    let again = Job { status: Some(tracking.status.clone()), ..suspended };
    let view = View::new(&again, &[]).unwrap();
    let second = track::note(&view, None, numbers, at(20));
    assert_eq!(second.event, None);
    assert!(track::same(&second.status, &tracking.status), "no write without a change");
    let mut resumed = again.clone();
    resumed.spec.as_mut().unwrap().suspend = Some(false);
    let view = View::new(&resumed, &[]).unwrap();
    let third = track::note(&view, None, numbers, at(30));
    assert_eq!(third.event, Some(("Resumed", "Job resumed")));
    assert_eq!(third.status.start_time, Some(Time(at(30))));
}
