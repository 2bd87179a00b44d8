//! Jobs and CronJobs: every end is counted exactly once, whatever the network does and whenever the controller dies.

use std::sync::Arc;
use std::time::Duration;

use decapod_client::clock::{Clock, SystemClock};
use decapod_client::task::Supervisor;
use decapod_controllers::{Options, nodelifecycle};
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, PropagationPolicy};
use serde_json::{Value, json};

use crate::faults::{Faults, Rates};
use crate::limits::account;
use crate::support::World;

/// Lives of the controllers: each ends at another write.
const LIVES: i64 = 28;

/// The network of the lives.
const BAD: Rates = Rates { refused: 20, conflict: 20, lost: 60, ended: 20, late: 200 };

/// A clock that is ahead: no wait before a failed pod is replaced is left, and CronJobs have something to catch up on.
#[derive(Debug)]
struct Ahead(SystemClock);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        self.0.now() + Duration::from_secs(3600)
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(duration)
    }
}

/// The controllers by that clock, for which the node's heart has stopped for an hour already.
fn controllers(world: &World, faults: &Arc<Faults>) -> Supervisor {
    let grace = Duration::from_secs(24 * 3600);
    let change = |options: &mut Options| {
        options.node_lifecycle =
            nodelifecycle::Options { grace, startup_grace: grace, ..nodelifecycle::Options::default() };
    };
    world.controllers_at(faults, change, Arc::new(Ahead(SystemClock::new())))
}

fn job(name: &str, exit: &str, spec: Value) -> Value {
    let mut all = json!({"template": {"metadata": {"annotations": {"exit": exit}}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "i"}]}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"metadata": {"name": name}, "spec": all})
}

/// The Job once it has come to this end.
async fn ended(world: &World, name: &str, end: &str) -> Job {
    let what = format!("{name} to be {end}");
    world
        .until(&what, async || {
            let job = world.of::<Job>().get(name).await.unwrap();
            if condition(&job, end).is_some() { Ok(()) } else { Err(format!("{:?}", job.status)) }
        })
        .await;
    world.of::<Job>().get(name).await.unwrap()
}

/// The reason and message of a condition that stands.
fn condition(job: &Job, type_: &str) -> Option<(String, String)> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let one = conditions.iter().find(|one| one.type_ == type_ && one.status == "True")?;
    Some((one.reason.clone()?, one.message.clone()?))
}

/// The Job's numbers: succeeded and failed, as its status tells them and as its pods are.
async fn numbers(world: &World, job: &Job) -> [(i32, i32); 2] {
    let status = job.status.clone().unwrap_or_default();
    let pods: Vec<Pod> = world.list().await;
    let mine = pods
        .iter()
        .filter(|pod| pod.owner_references().iter().any(|one| Some(&one.uid) == job.metadata.uid.as_ref()));
    let count = |phase: &str| {
        let ended = mine.clone().filter(|pod| pod.status.as_ref().unwrap().phase.as_deref() == Some(phase));
        i32::try_from(ended.count()).unwrap()
    };
    [(status.succeeded.unwrap_or(0), status.failed.unwrap_or(0)), (count("Succeeded"), count("Failed"))]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_are_counted_exactly_through_a_crash_at_every_write() {
    let world = World::start().await;
    let none = Faults::new(1, Rates::default(), None);
    let healthy = world.controllers(&none);
    account(&world).await;
    healthy.shutdown(Duration::ZERO).await;
    none.quiet().await;
    let spec = json!({"completions": 16, "parallelism": 5, "backoffLimit": 1000});
    world.create::<Job>(job("plain", "some", spec)).await;
    let spec =
        json!({"completions": 10, "parallelism": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 1});
    world.create::<Job>(job("indexed", "odd", spec)).await;
    world.create::<Job>(job("limited", "3", json!({"backoffLimit": 3}))).await;
    for life in 1..=LIVES {
        let faults = Faults::new(life.unsigned_abs(), BAD, Some(life % 9 + 1));
        let doomed = controllers(&world, &faults);
        // A life that has nothing left to write ends all the same.
        tokio::select! {
            () = faults.death() => {}
            _ = join_all([("plain", "Complete"), ("indexed", "Failed"), ("limited", "Failed")].map(|(name, end)| ended(&world, name, end))) => {}
        }
        doomed.shutdown(Duration::ZERO).await;
        faults.quiet().await;
    }
    let healthy = controllers(&world, &none);
    let plain = ended(&world, "plain", "Complete").await;
    let [told, there] = numbers(&world, &plain).await;
    assert_eq!((told, told.0), (there, 16), "{:?}", plain.status);
    let indexed = ended(&world, "indexed", "Failed").await;
    assert_eq!(numbers(&world, &indexed).await, [(5, 10); 2], "{:?}", indexed.status);
    assert_eq!(condition(&indexed, "Failed").unwrap().0, "FailedIndexes");
    let status = indexed.status.unwrap();
    assert_eq!(status.completed_indexes.as_deref(), Some("0,2,4,6,8"));
    assert_eq!(status.failed_indexes.as_deref(), Some("1,3,5,7,9"));
    let limited = ended(&world, "limited", "Failed").await;
    assert_eq!(numbers(&world, &limited).await, [(0, 4); 2], "{:?}", limited.status);
    assert_eq!(condition(&limited, "Failed").unwrap().0, "BackoffLimitExceeded");
    for pod in world.list::<Pod>().await {
        assert!(pod.finalizers().is_empty(), "{} is held: {:?}", pod.name_any(), pod.finalizers());
    }
    // What is theirs goes with them.
    for name in ["plain", "indexed", "limited"] {
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..DeleteParams::default()
        };
        world.of::<Job>().delete(name, &parameters).await.unwrap();
    }
    world
        .until("the pods to go", async || {
            let left = world.list::<Pod>().await.len() + world.list::<Job>().await.len();
            if left == 0 { Ok(()) } else { Err(format!("{left} left")) }
        })
        .await;
    world.end(healthy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_follow_their_policies() {
    let world = World::start().await;
    let running = controllers(&world, &Faults::new(31, Rates::default(), None));
    account(&world).await;
    let policy = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}, "backoffLimit": 0});
    let codes = json!({"operator": "In", "values": [42]});
    world
        .create::<Job>(job("fail-job", "42", policy(json!({"action": "FailJob", "onExitCodes": codes}))))
        .await;
    let indexed = |completions: i32, more: Value| {
        let mut spec = json!({"completionMode": "Indexed", "completions": completions, "parallelism": 2});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let rule =
        json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [42]}}]});
    world
        .create::<Job>(job(
            "fail-index",
            "odd",
            indexed(4, json!({"backoffLimitPerIndex": 5, "podFailurePolicy": rule})),
        ))
        .await;
    let most = json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 1});
    world.create::<Job>(job("max-failed", "1", indexed(20, most))).await;
    let success = json!({"successPolicy": {"rules": [{"succeededIndexes": "0-2", "succeededCount": 1}]}});
    world.create::<Job>(job("success", "0", indexed(40, success))).await;
    world.create::<Job>(job("suspended", "0", json!({"suspend": true, "completions": 2}))).await;
    world.create::<Job>(job("short-lived", "0", json!({"ttlSecondsAfterFinished": 0}))).await;
    world.create::<Job>(job("elsewhere", "0", json!({"managedBy": "example.com/other"}))).await;

    let failed = ended(&world, "fail-job", "Failed").await;
    let (reason, message) = condition(&failed, "Failed").unwrap();
    assert_eq!(reason, "PodFailurePolicy");
    assert!(message.ends_with("failed with exit code 42 matching FailJob rule at index 0"), "{message}");
    assert_eq!(condition(&failed, "FailureTarget").unwrap().0, "PodFailurePolicy");
    let failed = ended(&world, "fail-index", "Failed").await;
    assert_eq!(numbers(&world, &failed).await, [(2, 2); 2]);
    assert_eq!(failed.status.unwrap().failed_indexes.as_deref(), Some("1,3"));
    let failed = ended(&world, "max-failed", "Failed").await;
    assert_eq!(condition(&failed, "Failed").unwrap().0, "MaxFailedIndexesExceeded");
    assert!(failed.status.unwrap().completion_time.is_none());
    let complete = ended(&world, "success", "Complete").await;
    let said = ("SuccessPolicy".to_owned(), "Matched rules at index 0".to_owned());
    assert_eq!(condition(&complete, "Complete"), Some(said.clone()));
    assert_eq!(condition(&complete, "SuccessCriteriaMet"), Some(said));
    let status = complete.status.unwrap();
    assert!(
        status.completion_time.is_some() && status.terminating == Some(0) && status.active.is_none(),
        "{status:?}"
    );

    let waiting = async |name: &str| {
        world
            .until("the suspension", async || {
                let job = world.of::<Job>().get(name).await.unwrap();
                condition(&job, "Suspended").map(drop).ok_or_else(|| format!("{:?}", job.status))
            })
            .await;
    };
    waiting("suspended").await;
    let there = world.of::<Job>().get("suspended").await.unwrap().status.unwrap();
    assert!(there.start_time.is_none() && there.active.is_none(), "{there:?}");
    world.patch::<Job>("suspended", json!({"spec": {"suspend": false}})).await;
    let resumed = ended(&world, "suspended", "Complete").await;
    assert_eq!(numbers(&world, &resumed).await, [(2, 0); 2]);
    assert!(condition(&resumed, "Suspended").is_none());
    world
        .until("the short-lived Job to go", async || {
            let job = world.of::<Job>().get_opt("short-lived").await.unwrap();
            job.map_or(Ok(()), |job| Err(format!("{:?}", job.status)))
        })
        .await;
    let elsewhere = world.of::<Job>().get("elsewhere").await.unwrap();
    assert_eq!(elsewhere.status.unwrap_or_default(), Default::default());
    world.end(running).await;
}

/// [sig-apps] Job should adopt matching orphans and release non-matching pods: also over a bad network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_are_adopted_and_others_released() {
    let world = World::start().await;
    let running = controllers(&world, &Faults::new(32, BAD, None));
    account(&world).await;
    let mut endless = job("busy", "0", json!({"parallelism": 2, "completions": 2}));
    endless["spec"]["template"]["metadata"] = json!({});
    let busy: Job = world.create(endless).await;
    let pods = async |count: usize| {
        world
            .until("the pods", async || {
                let pods: Vec<Pod> = world.list().await;
                let held = pods
                    .iter()
                    .filter(|pod| pod.owner_references().iter().any(|one| one.uid == busy.uid().unwrap()));
                let held: Vec<_> =
                    held.filter(|pod| !pod.finalizers().is_empty()).map(ResourceExt::name_any).collect();
                if held.len() == count { Ok(()) } else { Err(format!("{held:?}")) }
            })
            .await;
    };
    pods(2).await;
    let names: Vec<_> = world.list::<Pod>().await.iter().map(ResourceExt::name_any).collect();
    // Without its owner it is adopted, and gets the finalizer again; without its label it is let go.
    world.patch::<Pod>(&names[0], json!({"metadata": {"ownerReferences": null, "finalizers": null}})).await;
    pods(2).await;
    let labels = json!({"job-name": null, "batch.kubernetes.io/job-name": null, "controller-uid": null,
        "batch.kubernetes.io/controller-uid": null});
    world.patch::<Pod>(&names[1], json!({"metadata": {"labels": labels}})).await;
    world
        .until("the release", async || {
            let pod = world.of::<Pod>().get(&names[1]).await.unwrap();
            let free = pod.owner_references().is_empty() && pod.finalizers().is_empty();
            if free { Ok(()) } else { Err(format!("{:?}", pod.metadata)) }
        })
        .await;
    pods(2).await;
    world.end(running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_makes_one_job_for_each_time_whenever_its_controller_dies() {
    let world = World::start().await;
    let none = Faults::new(1, Rates::default(), None);
    let cron = |name: &str, policy: &str| {
        json!({"metadata": {"name": name}, "spec": {"schedule": "0 * * * *", "concurrencyPolicy": policy,
            "jobTemplate": {"spec": job("x", "0", json!({}))["spec"]}}})
    };
    world.create::<CronJob>(cron("hourly", "Allow")).await;
    world.create::<CronJob>(cron("forbid", "Forbid")).await;
    for life in 1..=12_i64 {
        let faults = Faults::new(life.unsigned_abs(), BAD, Some(life % 4 + 1));
        // By this clock, an hour has passed: it is time for one Job of each.
        let doomed = controllers(&world, &faults);
        tokio::select! {
            () = faults.death() => {}
            () = done(&world) => {}
        }
        doomed.shutdown(Duration::ZERO).await;
        faults.quiet().await;
    }
    let healthy = controllers(&world, &none);
    done(&world).await;
    let crons: Vec<CronJob> = world.list().await;
    let jobs: Vec<Job> = world.list().await;
    for cron in crons {
        let name = cron.name_any();
        let last = cron.status.unwrap().last_schedule_time.unwrap().0;
        let mine: Vec<_> = jobs.iter().filter(|job| job.name_any().starts_with(&name)).collect();
        // The hour may have changed between the lives.
        assert!((1..=2).contains(&mine.len()), "{mine:?}");
        let expected = format!("{name}-{}", last.as_second() / 60);
        assert!(mine.iter().any(|job| job.name_any() == expected), "{expected} in {mine:?}");
        assert_eq!(last.as_second() % 3600, 0);
    }
    world.end(healthy).await;
}

/// Waits until both CronJobs tell of a Job that has succeeded, and of none that runs.
async fn done(world: &World) {
    world
        .until("the Jobs of the hour", async || {
            let crons: Vec<CronJob> = world.list().await;
            let done = |cron: &CronJob| {
                let status = cron.status.clone().unwrap_or_default();
                status.last_successful_time.is_some() && status.active.unwrap_or_default().is_empty()
            };
            if crons.iter().all(done) { Ok(()) } else { Err(format!("{:?}", crons[0].status)) }
        })
        .await;
}
