//! `[sig-apps] Job` and `[sig-apps] CronJob`, and an autoscaler: all objects are created at once, by the first of these
//! tests, and run while the tests before theirs are looked at; the last test removes them. A CronJob makes a Job a
//! minute: what is demanded of CronJobs is looked at late, so that nobody waits for it.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::poll;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{PATIENCE, Scene, deployment, owners};

/// The namespace of all of them.
const NAMESPACE: &str = "conf-jobs";

/// The tests of Jobs.
pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-apps] Job should adopt matching orphans and release non-matching pods", adopt_and_release),
    (
        "[sig-apps] Job should allow to use a pod failure policy to ignore failure matching on DisruptionTarget condition",
        ignored_disruption,
    ),
    (
        "[sig-apps] Job should allow to use the pod failure policy on exit code to fail the job early",
        early_failure,
    ),
    ("[sig-apps] Job should apply changes to a job status", status),
    (
        "[sig-apps] Job should create pods for an Indexed job with completion indexes and specified hostname",
        indexes,
    ),
    ("[sig-apps] Job should delete a job", deletion),
    (
        "[sig-apps] Job should execute all indexes despite some failing when using backoffLimitPerIndex",
        limit_per_index,
    ),
    ("[sig-apps] Job should manage the lifecycle of a job", lifecycle),
    (
        "[sig-apps] Job should mark indexes as failed when the FailIndex action is matched in podFailurePolicy",
        failed_index,
    ),
    (
        "[sig-apps] Job should run a job to completion when tasks sometimes fail and are locally restarted",
        local_restarts,
    ),
    (
        "[sig-apps] Job should terminate job execution when the number of failed indexes exceeds maxFailedIndexes",
        most_failed,
    ),
    ("[sig-apps] Job with successPolicy should succeeded when all indexes succeeded", success_of_all),
    (
        "[sig-apps] Job with successPolicy succeededCount rule should succeeded even when some indexes remain pending",
        success_of_some,
    ),
    (
        "[sig-apps] Job with successPolicy succeededIndexes rule should succeeded even when some indexes remain pending",
        success_of_these,
    ),
];

/// The tests that need time to pass since the first of [`TESTS`], and the removal of everything.
pub(super) const LATE: &[Test<Cluster>] = &[
    ("[sig-apps] CronJob should schedule multiple jobs concurrently", concurrently),
    ("[sig-apps] CronJob should not schedule new jobs when ForbidConcurrent", forbidden),
    ("[sig-apps] CronJob should replace jobs when ReplaceConcurrent", replaced),
    ("[sig-apps] CronJob should not schedule jobs when suspended", suspended),
    ("[sig-apps] CronJob should support CronJob API operations", operations),
    ("jobs::an_autoscaler_follows_the_load", autoscaler),
    ("jobs::all_of_them_go_with_their_namespace", removal),
];

/// A Job whose container runs this in a shell.
fn job(name: &str, script: &str, more: Value) -> Value {
    let mut job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {
        "template": {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": "busybox:1", "command": ["sh", "-c", script]}]}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

fn indexed(name: &str, completions: u32, script: &str, more: Value) -> Value {
    let mut job = job(name, script, more);
    job["spec"]["completionMode"] = json!("Indexed");
    job["spec"]["completions"] = json!(completions);
    if job["spec"]["parallelism"].is_null() {
        job["spec"]["parallelism"] = json!(completions);
    }
    job
}

fn cron_job(name: &str, policy: &str, script: &str) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name, "labels": {"set": "crons"}},
        "spec": {"schedule": "* * * * *", "concurrencyPolicy": policy,
            "jobTemplate": {"spec": job(name, script, json!({}))["spec"]}}})
}

/// Everything, created by whichever test comes first.
fn jobs(cluster: &Cluster) -> Result<Scene<'_>> {
    let scene = Scene { cluster, namespace: NAMESPACE };
    if !cluster.k(&["get", "namespace", NAMESPACE, "--ignore-not-found", "-o", "name"])?.is_empty() {
        return Ok(scene);
    }
    cluster.k(&["create", "namespace", NAMESPACE])?;
    let exit = |action: &str, operator: &str| json!({"rules": [{"action": action, "onExitCodes": {"operator": operator, "values": [42]}}]});
    let rule = |rule: Value| json!({"successPolicy": {"rules": [rule]}});
    let twice = "test -e /data/tried || { touch /data/tried; exit 1; }";
    let mut restarted = job("restarted", twice, json!({"completions": 2, "parallelism": 2}));
    let pod = &mut restarted["spec"]["template"]["spec"];
    pod["restartPolicy"] = json!("OnFailure");
    pod["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    pod["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let ignore = json!({"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]});
    let (odd_fail, first_ends) =
        ("exit $((JOB_COMPLETION_INDEX % 2))", "test $JOB_COMPLETION_INDEX = 0 || sleep 3600");
    let mut suspended = cron_job("suspended", "Allow", "true");
    suspended["spec"]["suspend"] = json!(true);
    scene.create_all(vec![
        job("adopting", "sleep 3600", json!({"parallelism": 2, "completions": 2})),
        job("ignoring", "sleep 3600", json!({"backoffLimit": 0, "podFailurePolicy": ignore})),
        job("early", "exit 42", json!({"backoffLimit": 6, "podFailurePolicy": exit("FailJob", "In")})),
        job("told", "sleep 3600", json!({})),
        indexed("indexed", 4, "test $(hostname) = indexed-$JOB_COMPLETION_INDEX", json!({"parallelism": 2})),
        job("deleted", "sleep 3600", json!({"parallelism": 2, "completions": 4})),
        indexed("per-index", 4, odd_fail, json!({"backoffLimitPerIndex": 1})),
        indexed(
            "fail-index",
            2,
            "test $JOB_COMPLETION_INDEX = 0 || exit 42",
            json!({"backoffLimitPerIndex": 3, "podFailurePolicy": exit("FailIndex", "In")}),
        ),
        indexed(
            "most",
            10,
            "exit 1",
            json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 2, "parallelism": 2}),
        ),
        indexed("all-well", 2, "true", rule(json!({"succeededIndexes": "0-1", "succeededCount": 2}))),
        indexed("some-well", 2, first_ends, rule(json!({"succeededCount": 1}))),
        indexed("these-well", 2, first_ends, rule(json!({"succeededIndexes": "0"}))),
        restarted,
        suspended,
        cron_job("multiple", "Allow", "sleep 3600"),
        cron_job("forbidding", "Forbid", "sleep 3600"),
        cron_job("replacing", "Replace", "sleep 3600"),
        burner(),
    ])?;
    Ok(scene)
}

/// A Deployment that is idle, but uses all it is given while a file tells it to.
fn burner() -> Value {
    let mut burner = deployment("burner", 1, json!({}));
    let container = &mut burner["spec"]["template"]["spec"]["containers"][0];
    container["command"] = json!(["sh", "-c", "while true; do test -e /tmp/loud || sleep 1; done"]);
    container["resources"] = json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "100m"}});
    burner
}

impl Scene<'_> {
    /// The Job once it has come to this end, which is the only one.
    fn job_ended(&self, name: &str, end: &str) -> Result<Value> {
        let job = self.until(&format!("job/{name}"), &format!("the end of {name}"), |job| {
            ["Complete", "Failed"].iter().any(|end| condition(job, end).is_some())
        })?;
        ensure!(condition(&job, end).is_some(), "{name} is not {end}: {:#}", job["status"]);
        Ok(job)
    }

    /// The pods of a Job.
    fn pods_of(&self, job: &str) -> Result<Vec<Value>> {
        self.list(&["pods", "-l", &format!("batch.kubernetes.io/job-name={job}")])
    }

    /// The pods of a Job that run or will, once there are so many.
    fn active(&self, job: &str, count: usize) -> Result<Vec<Value>> {
        poll::until(&format!("{count} pods of {job}"), PATIENCE, || {
            let mut pods = self.pods_of(job)?;
            pods.retain(|pod| {
                pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running"
            });
            Ok(if pods.len() == count { Ok(pods) } else { Err(format!("{} are", pods.len())) })
        })
    }

    /// Waits until something was said about an object.
    fn announced(&self, about: &str, reason: &str) -> Result<()> {
        let fields = format!("involvedObject.name={about},reason={reason}");
        poll::until(&format!("{reason} of {about}"), PATIENCE, || {
            let events = self.list(&["events", "--field-selector", &fields])?;
            Ok(if events.is_empty() { Err("nothing said".to_owned()) } else { Ok(()) })
        })
    }
}

/// The reason of a condition that stands.
fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    let one = conditions.iter().find(|one| one["type"] == type_ && one["status"] == "True")?;
    one["reason"].as_str()
}

fn name(object: &Value) -> Result<&str> {
    object["metadata"]["name"].as_str().context("an object without a name")
}

fn adopt_and_release(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    let uid = scene.get(&["job/adopting"])?["metadata"]["uid"].clone();
    let pods = scene.active("adopting", 2)?;
    let (orphan, stray) = (format!("pod/{}", name(&pods[0])?), format!("pod/{}", name(&pods[1])?));
    scene.merge(&orphan, &json!({"metadata": {"ownerReferences": null}}))?;
    scene.until(&orphan, "the adoption", |pod| owners(pod).iter().any(|owner| uid == **owner))?;
    let labels =
        ["job-name", "batch.kubernetes.io/job-name", "controller-uid", "batch.kubernetes.io/controller-uid"];
    let labels: serde_json::Map<_, _> =
        labels.iter().map(|label| ((*label).to_owned(), Value::Null)).collect();
    scene.merge(&stray, &json!({"metadata": {"labels": labels}}))?;
    scene.until(&stray, "the release", |pod| {
        owners(pod).is_empty() && pod["metadata"]["finalizers"].is_null()
    })?;
    scene.active("adopting", 2)?;
    Ok(())
}

fn ignored_disruption(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    let pods = scene.active("ignoring", 1)?;
    let evicted = name(&pods[0])?;
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": evicted, "namespace": NAMESPACE}});
    let place = format!("/api/v1/namespaces/{NAMESPACE}/pods/{evicted}/eviction");
    let file = cluster.scratch().join("eviction.json");
    std::fs::write(&file, eviction.to_string())?;
    cluster.k(&["create", "--raw", &place, "-f", &file.display().to_string()])?;
    let next = poll::until("a pod in its place", PATIENCE, || {
        let pods = scene.active("ignoring", 1)?;
        Ok(if name(&pods[0])? == evicted { Err("it is there".to_owned()) } else { Ok(pods) })
    })?;
    ensure!(name(&next[0])? != evicted);
    let job = scene.get(&["job/ignoring"])?;
    let failed = job["status"]["failed"].as_i64().unwrap_or(0);
    ensure!(failed == 0 && condition(&job, "Failed").is_none(), "{:#}", job["status"]);
    Ok(())
}

fn early_failure(cluster: &Cluster) -> Result<()> {
    let job = jobs(cluster)?.job_ended("early", "Failed")?;
    ensure!(condition(&job, "Failed") == Some("PodFailurePolicy"), "{:#}", job["status"]);
    ensure!(job["status"]["failed"] == 1, "{:#}", job["status"]);
    Ok(())
}

fn status(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    scene.active("told", 1)?;
    let more = json!({"type": "Odd", "status": "True", "reason": "Test", "message": "by a test"});
    let patch = json!([{"op": "add", "path": "/status/conditions", "value": [more]}]).to_string();
    scene.k(&["patch", "job/told", "--subresource=status", "--type=json", "-p", &patch])?;
    let job = scene.get(&["job/told", "--subresource=status"])?;
    ensure!(condition(&job, "Odd") == Some("Test"), "{:#}", job["status"]);
    // What the controller says it goes on saying.
    scene.merge("job/told", &json!({"spec": {"parallelism": 0}}))?;
    let job = scene.until("job/told", "no active pod", |job| job["status"]["active"].is_null())?;
    ensure!(condition(&job, "Odd").is_some(), "{:#}", job["status"]);
    Ok(())
}

fn indexes(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    let job = scene.job_ended("indexed", "Complete")?;
    ensure!(
        job["status"]["succeeded"] == 4 && job["status"]["completedIndexes"] == "0-3",
        "{:#}",
        job["status"]
    );
    let label = "batch.kubernetes.io/job-completion-index";
    let mut seen = Vec::new();
    for pod in scene.pods_of("indexed")? {
        let meta = &pod["metadata"];
        ensure!(meta["annotations"][label] == meta["labels"][label], "{meta:#}");
        seen.extend(meta["labels"][label].as_str().map(str::to_owned));
    }
    seen.sort();
    ensure!(seen == ["0", "1", "2", "3"], "{seen:?}");
    let wide = scene.k(&["get", "job", "indexed"])?;
    ensure!(wide.contains("Complete") && wide.contains("4/4"), "{wide}");
    Ok(())
}

fn deletion(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    scene.active("deleted", 2)?;
    scene.until("job/deleted", "two active pods", |job| {
        job["status"]["active"] == 2 && job["status"]["ready"] == 2
    })?;
    scene.k(&["delete", "job", "deleted", "--cascade=foreground"])?;
    ensure!(scene.pods_of("deleted")?.is_empty(), "pods are left");
    Ok(())
}

fn limit_per_index(cluster: &Cluster) -> Result<()> {
    let job = jobs(cluster)?.job_ended("per-index", "Failed")?;
    let status = &job["status"];
    ensure!(status["completedIndexes"] == "0,2" && status["failedIndexes"] == "1,3", "{status:#}");
    ensure!(status["succeeded"] == 2 && status["failed"] == 4, "{status:#}");
    ensure!(condition(&job, "Failed") == Some("FailedIndexes"), "{status:#}");
    Ok(())
}

fn lifecycle(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    let mut wanted = job("life", "true", json!({"suspend": true}));
    wanted["metadata"]["labels"] = json!({"test": "life"});
    scene.create(&wanted)?;
    let told = scene.until("job/life", "the suspension", |job| condition(job, "Suspended").is_some())?;
    ensure!(told["status"]["startTime"].is_null(), "{:#}", told["status"]);
    scene.merge("job/life", &json!({"metadata": {"annotations": {"patched": "yes"}}}))?;
    scene.merge("job/life", &json!({"spec": {"suspend": false}}))?;
    scene.k(&["wait", "job/life", "--for=condition=complete", "--timeout=180s"])?;
    let job = scene.job_ended("life", "Complete")?;
    ensure!(condition(&job, "SuccessCriteriaMet") == Some("CompletionsReached"), "{:#}", job["status"]);
    ensure!(job["metadata"]["annotations"]["patched"] == "yes");
    scene.announced("life", "Completed")?;
    let found = scene.cluster.get(&["jobs", "-A", "-l", "test=life"])?;
    ensure!(found["items"].as_array().is_some_and(|items| items.len() == 1), "{found:#}");
    scene.k(&["delete", "jobs", "-l", "test=life"])?;
    scene.until_gone("job/life")
}

fn failed_index(cluster: &Cluster) -> Result<()> {
    let job = jobs(cluster)?.job_ended("fail-index", "Failed")?;
    let status = &job["status"];
    ensure!(status["completedIndexes"] == "0" && status["failedIndexes"] == "1", "{status:#}");
    ensure!(status["succeeded"] == 1 && status["failed"] == 1, "{status:#}");
    Ok(())
}

fn local_restarts(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    let job = scene.job_ended("restarted", "Complete")?;
    ensure!(job["status"]["succeeded"] == 2 && job["status"]["failed"].is_null(), "{:#}", job["status"]);
    for pod in scene.pods_of("restarted")? {
        ensure!(pod["status"]["phase"] == "Succeeded", "{:#}", pod["status"]);
        ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 1, "{:#}", pod["status"]);
    }
    Ok(())
}

fn most_failed(cluster: &Cluster) -> Result<()> {
    let job = jobs(cluster)?.job_ended("most", "Failed")?;
    ensure!(condition(&job, "Failed") == Some("MaxFailedIndexesExceeded"), "{:#}", job["status"]);
    ensure!(
        job["status"]["failed"].as_i64().is_some_and(|failed| (3..=4).contains(&failed)),
        "{:#}",
        job["status"]
    );
    Ok(())
}

fn success_of_all(cluster: &Cluster) -> Result<()> {
    let job = jobs(cluster)?.job_ended("all-well", "Complete")?;
    ensure!(condition(&job, "SuccessCriteriaMet") == Some("SuccessPolicy"), "{:#}", job["status"]);
    ensure!(job["status"]["completedIndexes"] == "0,1", "{:#}", job["status"]);
    Ok(())
}

fn success_of_some(cluster: &Cluster) -> Result<()> {
    success_of_the_first(&jobs(cluster)?, "some-well")
}

fn success_of_these(cluster: &Cluster) -> Result<()> {
    success_of_the_first(&jobs(cluster)?, "these-well")
}

fn success_of_the_first(scene: &Scene<'_>, name: &str) -> Result<()> {
    let job = scene.job_ended(name, "Complete")?;
    let status = &job["status"];
    ensure!(condition(&job, "Complete") == Some("SuccessPolicy"), "{status:#}");
    ensure!(status["completedIndexes"] == "0" && status["succeeded"] == 1, "{status:#}");
    ensure!(status["active"].is_null() && status["terminating"] == 0 && status["ready"] == 0, "{status:#}");
    Ok(())
}

/// The Jobs that a CronJob owns.
fn jobs_of(scene: &Scene<'_>, cron: &str) -> Result<Vec<Value>> {
    let uid = scene.get(&[&format!("cronjob/{cron}")])?["metadata"]["uid"].clone();
    let mut jobs = scene.list(&["jobs"])?;
    jobs.retain(|job| owners(job).iter().any(|owner| uid == **owner));
    Ok(jobs)
}

fn concurrently(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    let several = |cron: &Value| cron["status"]["active"].as_array().is_some_and(|active| active.len() > 1);
    let cron = scene.until("cronjob/multiple", "two active Jobs", several)?;
    let last = cron["status"]["lastScheduleTime"].as_str().context("no time")?;
    ensure!(last.ends_with(":00Z"), "{last}");
    for job in jobs_of(&scene, "multiple")? {
        let annotation = &job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
        ensure!(annotation.is_string(), "{:#}", job["metadata"]);
    }
    Ok(())
}

fn forbidden(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    scene.announced("forbidding", "JobAlreadyActive")?;
    let jobs = jobs_of(&scene, "forbidding")?;
    ensure!(jobs.len() == 1, "{} Jobs", jobs.len());
    let cron = scene.get(&["cronjob/forbidding"])?;
    ensure!(cron["status"]["active"].as_array().is_some_and(|active| active.len() == 1), "{cron:#}");
    Ok(())
}

fn replaced(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    scene.announced("replacing", "SuccessfulDelete")?;
    let one = |cron: &Value| cron["status"]["active"].as_array().is_some_and(|active| active.len() == 1);
    scene.until("cronjob/replacing", "one active Job", one).map(drop)
}

fn suspended(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    // By now another that was created with it has had its time.
    scene.announced("multiple", "SuccessfulCreate")?;
    let jobs = jobs_of(&scene, "suspended")?;
    ensure!(jobs.is_empty(), "{jobs:#?}");
    scene.k(&["create", "job", "by-hand", "--from=cronjob/suspended"])?;
    let job = scene.job_ended("by-hand", "Complete")?;
    ensure!(job["metadata"]["annotations"]["cronjob.kubernetes.io/instantiate"] == "manual", "{job:#}");
    Ok(())
}

fn operations(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    let mut wanted = cron_job("operated", "Allow", "true");
    wanted["metadata"]["labels"] = json!({"set": "operated"});
    wanted["spec"]["schedule"] = json!("0 0 1 1 *");
    scene.create(&wanted)?;
    let found = scene.cluster.get(&["cronjobs", "-A", "-l", "set=operated"])?;
    ensure!(found["items"].as_array().is_some_and(|items| items.len() == 1), "{found:#}");
    let patched =
        scene.merge("cronjob/operated", &json!({"metadata": {"annotations": {"patched": "yes"}}}))?;
    ensure!(patched["metadata"]["annotations"]["patched"] == "yes", "{patched:#}");
    let mut update = scene.get(&["cronjob/operated"])?;
    update["metadata"]["annotations"]["updated"] = json!("yes");
    let updated = scene.send(&["replace"], &update)?;
    ensure!(updated["metadata"]["annotations"]["updated"] == "yes", "{updated:#}");
    let patch = json!({"status": {"lastScheduleTime": "2024-01-01T00:00:00Z"}}).to_string();
    scene.k(&["patch", "cronjob/operated", "--subresource=status", "--type=merge", "-p", &patch])?;
    let status = scene.get(&["cronjob/operated", "--subresource=status"])?;
    ensure!(status["status"]["lastScheduleTime"].is_string(), "{status:#}");
    scene.k(&["delete", "cronjobs", "-l", "set=operated"])?;
    scene.until_gone("cronjob/operated")
}

/// Load makes it more pods, and quiet fewer.
fn autoscaler(cluster: &Cluster) -> Result<()> {
    let scene = jobs(cluster)?;
    scene.k(&["autoscale", "deployment", "burner", "--min=1", "--max=2", "--cpu=30%"])?;
    let down = json!({"stabilizationWindowSeconds": 0, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 1}]});
    scene.merge("hpa/burner", &json!({"spec": {"behavior": {"scaleDown": down}}}))?;
    let pods = scene.list(&["pods", "-l", "app=burner"])?;
    let pod = name(pods.first().context("no pod")?)?;
    scene.cluster.exec(NAMESPACE, pod, &["touch", "/tmp/loud"])?;
    let told = scene.until("hpa/burner", "two replicas", |hpa| hpa["status"]["desiredReplicas"] == 2)?;
    ensure!(condition(&told, "ScalingActive") == Some("ValidMetricFound"), "{:#}", told["status"]);
    scene.announced("burner", "SuccessfulRescale")?;
    scene.cluster.exec(NAMESPACE, pod, &["rm", "/tmp/loud"])?;
    scene.until("hpa/burner", "one replica", |hpa| hpa["status"]["desiredReplicas"] == 1)?;
    scene.until("deployment/burner", "one pod", |one| one["status"]["replicas"] == 1).map(drop)
}

fn removal(cluster: &Cluster) -> Result<()> {
    jobs(cluster)?;
    cluster.k(&["delete", "namespace", NAMESPACE, "--timeout=180s"]).map(drop)
}
