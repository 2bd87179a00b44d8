//! The plan played through without a cluster: deeds are done at once, and the test says when pods get ready or end.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use proptest::prelude::{Just, Strategy, prop_oneof, proptest};
use serde_json::{Value, json};

use super::identity;
use super::plan::{Deed, Plan, Revision, World, plan};

struct Sim {
    set: StatefulSet,
    pods: BTreeMap<String, Pod>,
    claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    /// Templates by the names of their revisions, which are the images'.
    templates: BTreeMap<String, PodTemplateSpec>,
    made: usize,
    second: i64,
}

fn template(image: &str) -> PodTemplateSpec {
    serde_json::from_value(json!({"metadata": {"labels": {"app": "db"}},
        "spec": {"containers": [{"name": "c", "image": image}]}}))
    .unwrap()
}

impl Sim {
    fn new(spec: Value) -> Self {
        let mut all = json!({"serviceName": "db", "replicas": 3, "selector": {"matchLabels": {"app": "db"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}, "template": template("v1")});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let set =
            json!({"metadata": {"name": "db", "namespace": "n", "uid": "s", "generation": 1}, "spec": all});
        let set = serde_json::from_value(set).unwrap();
        let (pods, claims) = (BTreeMap::new(), BTreeMap::new());
        let templates = [("v1".to_owned(), template("v1"))].into();
        Self { set, pods, claims, templates, made: 0, second: 1_000 }
    }

    fn change(&mut self, change: impl FnOnce(&mut k8s_openapi::api::apps::v1::StatefulSetSpec)) {
        change(self.set.spec.as_mut().unwrap());
    }

    fn image(&mut self, image: &str) {
        self.templates.insert(image.to_owned(), template(image));
        self.change(|spec| spec.template = template(image));
    }

    fn scale(&mut self, replicas: i32) {
        self.change(|spec| spec.replicas = Some(replicas));
    }

    fn plan(&self) -> Plan {
        let spec = self.set.spec.as_ref().unwrap();
        let update = spec.template.spec.as_ref().unwrap().containers[0].image.clone().unwrap();
        let status = self.set.status.as_ref();
        let current = status.and_then(|status| status.current_revision.clone()).unwrap_or(update.clone());
        let pods: Vec<_> = self.pods.values().cloned().map(Arc::new).collect();
        let claim = |name: &str| self.claims.get(name).cloned();
        plan(&World {
            set: &self.set,
            spec,
            pods: &pods,
            claim: &claim,
            current: Revision { name: &current, template: &self.templates[&current] },
            update: Revision { name: &update, template: &spec.template },
            collisions: 0,
            now: Timestamp::from_second(self.second).unwrap(),
        })
    }

    /// Does what the plan says; the deeds in words.
    fn step(&mut self) -> String {
        let plan = self.plan();
        let mut words = Vec::new();
        for step in plan.steps {
            for claim in step.claims {
                words.push(format!("+{}", claim.name_any()));
                assert!(self.claims.insert(claim.name_any(), Arc::new(claim)).is_none());
            }
            for (claim, references) in step.owners {
                let mut owned = PersistentVolumeClaim::clone(&claim);
                let owner = references.owners.first().map(|owner| owner.name.clone()).unwrap_or_default();
                words.push(format!("{}>{owner}", claim.name_any()));
                owned.metadata.owner_references = Some(references.owners);
                self.claims.insert(claim.name_any(), Arc::new(owned));
            }
            match step.deed {
                Deed::Nothing => {}
                _ if !step.going.is_empty() => words.push(format!("?{}", step.going[0])),
                Deed::Create(pod) => {
                    let mut pod = *pod;
                    self.made += 1;
                    pod.metadata.uid = Some(format!("uid-{}", self.made));
                    words.push(format!("+{} {}", pod.name_any(), identity::revision(&pod)));
                    assert!(self.pods.insert(pod.name_any(), pod).is_none(), "it exists");
                }
                Deed::Delete(pod) => {
                    words.push(format!("-{}", pod.name_any()));
                    let known = self.pods.get_mut(&pod.name_any()).unwrap();
                    known.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
                }
                Deed::Label(pod, labels) => {
                    words.push(format!("~{}", pod.name_any()));
                    let known = self.pods.get_mut(&pod.name_any()).unwrap();
                    known.labels_mut().extend(labels);
                }
            }
        }
        self.set.status = Some(plan.status);
        words.join(" ")
    }

    fn report(&mut self, pod: &str, phase: &str, ready: bool) {
        let since = Timestamp::from_second(self.second).unwrap();
        let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" },
            "lastTransitionTime": since.to_string()});
        let status = json!({"phase": phase, "conditions": [condition]});
        self.pods.get_mut(pod).unwrap().status = Some(serde_json::from_value(status).unwrap());
    }

    fn ready(&mut self, pod: &str) {
        self.report(pod, "Running", true);
    }

    fn end(&mut self, pod: &str) {
        self.pods.remove(pod).unwrap();
    }

    /// Lets everything go as well as it can, until there is nothing to do.
    fn settle(&mut self) {
        let mut idle = 0;
        for _ in 0..200 {
            idle = if self.step().is_empty() { idle + 1 } else { 0 };
            self.pods.retain(|_, pod| pod.metadata.deletion_timestamp.is_none());
            let unready: Vec<_> = self.pods.keys().cloned().collect();
            unready.iter().for_each(|pod| self.ready(pod));
            // Once before the last ones were ready, and once after.
            if idle == 2 {
                return;
            }
        }
        panic!("it does not settle");
    }

    fn images(&self) -> String {
        let images: Vec<_> = self.pods.values().map(identity::revision).collect();
        images.join(" ")
    }
}

#[test]
fn pods_come_and_go_in_order() {
    let mut sim = Sim::new(json!({}));
    assert_eq!(sim.step(), "+db-0 v1");
    assert_eq!(sim.step(), "", "it waits for the first");
    sim.ready("db-0");
    assert_eq!(sim.step(), "+db-1 v1");
    sim.ready("db-1");
    assert_eq!(sim.step(), "+db-2 v1");
    sim.report("db-0", "Running", false);
    sim.ready("db-2");
    sim.scale(1);
    assert_eq!(sim.step(), "", "one that is to stay is not ready");
    sim.ready("db-0");
    assert_eq!(sim.step(), "-db-2");
    assert_eq!(sim.step(), "", "it is on its way");
    sim.end("db-2");
    assert_eq!(sim.step(), "-db-1");
    sim.end("db-1");
    assert_eq!(sim.step(), "");
    let status = sim.set.status.clone().unwrap();
    assert_eq!((status.replicas, status.ready_replicas, status.available_replicas), (1, Some(1), Some(1)));
}

#[test]
fn in_parallel_nobody_waits() {
    let mut sim = Sim::new(json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 5}}));
    assert_eq!(sim.step(), "+db-5 v1 +db-6 v1 +db-7 v1");
    sim.scale(1);
    assert_eq!(sim.step(), "-db-7 -db-6");
}

#[test]
fn nothing_runs_twice() {
    let mut sim = Sim::new(json!({}));
    sim.settle();
    sim.image("v2");
    assert_eq!(sim.step(), "-db-2");
    for _ in 0..3 {
        assert_eq!(sim.step(), "", "its node may be cut off: it may still run");
    }
    sim.end("db-2");
    assert_eq!(sim.step(), "+db-2 v2");
}

#[test]
fn a_roll_out_goes_from_the_top_and_ends_with_a_new_current_revision() {
    let mut sim = Sim::new(json!({}));
    sim.settle();
    sim.image("v2");
    assert_eq!(sim.step(), "-db-2");
    let status = sim.set.status.clone().unwrap();
    assert_eq!((status.current_replicas, status.updated_replicas), (Some(2), Some(0)));
    sim.end("db-2");
    assert_eq!(sim.step(), "+db-2 v2");
    assert_eq!(sim.step(), "");
    sim.ready("db-2");
    assert_eq!(sim.step(), "-db-1");
    assert_eq!(sim.set.status.as_ref().unwrap().current_revision.as_deref(), Some("v1"));
    sim.settle();
    let status = sim.set.status.clone().unwrap();
    assert_eq!((status.current_revision.as_deref(), status.current_replicas), (Some("v2"), Some(3)));
}

#[test]
fn a_partition_keeps_what_is_below_it() {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 2}});
    let mut sim = Sim::new(json!({"updateStrategy": rolling}));
    sim.settle();
    sim.image("v2");
    sim.settle();
    assert_eq!(sim.images(), "v1 v1 v2");
    sim.end("db-0");
    sim.settle();
    assert_eq!(sim.images(), "v1 v1 v2", "also one that is made anew");
    sim.change(|spec| spec.update_strategy = None);
    sim.settle();
    assert_eq!(sim.images(), "v2 v2 v2");
}

#[test]
fn on_delete_waits_for_somebody() {
    let mut sim = Sim::new(json!({"updateStrategy": {"type": "OnDelete"}}));
    sim.settle();
    sim.image("v2");
    assert_eq!(sim.step(), "");
    sim.end("db-1");
    sim.settle();
    assert_eq!(sim.images(), "v1 v2 v1");
}

#[test]
fn several_may_be_missing() {
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0, "maxUnavailable": 2}});
    let mut sim =
        Sim::new(json!({"updateStrategy": rolling, "podManagementPolicy": "Parallel", "replicas": 4}));
    sim.settle();
    sim.image("v2");
    assert_eq!(sim.step(), "-db-3 -db-2");
    sim.end("db-3");
    assert_eq!(sim.step(), "+db-3 v2");
    sim.ready("db-3");
    assert_eq!(sim.step(), "-db-1", "one of the two is back");
    sim.report("db-0", "Running", false);
    assert_eq!(sim.step(), "-db-0", "it is missing already");
}

#[test]
fn a_roll_out_that_went_wrong_is_mended_by_the_next() {
    let mut sim = Sim::new(json!({}));
    sim.settle();
    sim.image("bad");
    assert_eq!(sim.step(), "-db-2");
    sim.end("db-2");
    assert_eq!(sim.step(), "+db-2 bad");
    sim.report("db-2", "Running", false);
    assert_eq!(sim.step(), "", "it may get ready yet");
    sim.image("v3");
    assert_eq!(sim.step(), "-db-2", "nobody asks for its template any more");
    sim.settle();
    assert_eq!(sim.images(), "v3 v3 v3");
    // One of the last good template is not replaced while it may recover by itself.
    sim.report("db-1", "Running", false);
    sim.image("v4");
    assert_eq!(sim.step(), "");
    sim.pods.get_mut("db-1").unwrap().status.as_mut().unwrap().container_statuses = serde_json::from_value(
        json!([{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
    )
    .unwrap();
    assert_eq!(sim.step(), "-db-1", "but it does not");
}

#[test]
fn pods_that_ended_are_made_anew() {
    for phase in ["Failed", "Succeeded"] {
        let mut sim = Sim::new(json!({}));
        sim.settle();
        sim.report("db-1", phase, false);
        assert_eq!(sim.step(), "-db-1");
        sim.end("db-1");
        assert_eq!(sim.step(), "+db-1 v1");
    }
}

#[test]
fn pods_are_available_after_their_time() {
    let mut sim = Sim::new(json!({"minReadySeconds": 10}));
    sim.step();
    sim.ready("db-0");
    sim.second += 4;
    assert_eq!(sim.plan().again.map(|again| again.as_secs()), Some(6));
    assert_eq!(sim.step(), "");
    let status = sim.set.status.clone().unwrap();
    assert_eq!((status.ready_replicas, status.available_replicas), (Some(1), Some(0)));
    sim.second += 6;
    assert_eq!(sim.step(), "+db-1 v1");
}

#[test]
fn claims_live_and_die_as_the_policy_says() {
    let claims = json!([{"metadata": {"name": "data"}, "spec": {}}]);
    let policy = json!({"whenDeleted": "Delete", "whenScaled": "Delete"});
    let spec = json!({"volumeClaimTemplates": claims, "persistentVolumeClaimRetentionPolicy": policy});
    let mut sim = Sim::new(spec);
    assert_eq!(sim.step(), "+data-db-0 +db-0 v1");
    assert_eq!(sim.claims["data-db-0"].owner_references()[0].kind, "StatefulSet");
    sim.settle();
    sim.scale(2);
    assert_eq!(sim.step(), "data-db-2>db-2 -db-2", "first the claim, then the pod");
    sim.end("db-2");
    sim.scale(3);
    assert_eq!(sim.step(), "", "the claim of the pod before is about to go");
    sim.claims.remove("data-db-2").unwrap();
    assert_eq!(sim.step(), "+data-db-2 +db-2 v1");
    sim.ready("db-2");
    sim.change(|spec| spec.persistent_volume_claim_retention_policy = None);
    assert_eq!(sim.step(), "data-db-0> data-db-1> data-db-2>");
    let mut going = PersistentVolumeClaim::clone(&sim.claims["data-db-1"]);
    going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    sim.claims.insert("data-db-1".to_owned(), Arc::new(going));
    sim.end("db-1");
    assert_eq!(sim.step(), "?data-db-1", "a pod does not get a claim that is about to go");
}

#[test]
fn a_pod_gets_the_labels_of_its_name_back() {
    let mut sim = Sim::new(json!({}));
    sim.settle();
    sim.pods.get_mut("db-1").unwrap().labels_mut().remove("statefulset.kubernetes.io/pod-name");
    assert_eq!(sim.step(), "~db-1");
    assert_eq!(sim.step(), "");
}

/// What befalls a set.
#[derive(Clone, Debug)]
enum Fate {
    Scale(i32),
    Image(&'static str),
    Ready(usize),
    Unready(usize),
    Fail(usize),
    End(usize),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        1 => (0..5).prop_map(Fate::Scale),
        1 => prop_oneof![Just("v1"), Just("v2"), Just("v3")].prop_map(Fate::Image),
        6 => (0..5_usize).prop_map(Fate::Ready),
        1 => (0..5_usize).prop_map(Fate::Unready),
        1 => (0..5_usize).prop_map(Fate::Fail),
        4 => (0..5_usize).prop_map(Fate::End),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_it_keeps_its_order_and_gets_there(fates in proptest::collection::vec(fate(), 0..60)) {
        let mut sim = Sim::new(json!({"replicas": 2}));
        for fate in fates {
            let nth = |sim: &Sim, index: usize| sim.pods.keys().nth(index).cloned();
            match fate {
                Fate::Scale(replicas) => sim.scale(replicas),
                Fate::Image(image) => sim.image(image),
                Fate::Ready(index) => if let Some(pod) = nth(&sim, index) { sim.ready(&pod) },
                Fate::Unready(index) => if let Some(pod) = nth(&sim, index) { sim.report(&pod, "Running", false) },
                Fate::Fail(index) => if let Some(pod) = nth(&sim, index) { sim.report(&pod, "Failed", false) },
                Fate::End(index) => if let Some(pod) = nth(&sim, index)
                    && sim.pods[&pod].metadata.deletion_timestamp.is_some() { sim.end(&pod) },
            }
            let before: Vec<_> = sim.pods.keys().cloned().collect();
            let deeds = sim.step();
            let deeds: Vec<_> = deeds.split(' ').filter(|word| word.starts_with(['+', '-'])).collect();
            assert!(deeds.len() <= 1, "one at a time: {deeds:?}");
            if let Some(created) = deeds.first().and_then(|deed| deed.strip_prefix('+')) {
                let ordinal = identity::ordinal("db", created).unwrap();
                for lower in 0..ordinal {
                    assert!(before.contains(&format!("db-{lower}")), "{created} before db-{lower}");
                }
            }
        }
        sim.settle();
        let replicas = sim.set.spec.as_ref().unwrap().replicas.unwrap();
        let image = sim.set.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].image.clone();
        let expected: BTreeMap<_, _> = (0..replicas).map(|n| (format!("db-{n}"), image.clone())).collect();
        let actual: BTreeMap<_, _> =
            sim.pods.iter().map(|(name, pod)| (name.clone(), Some(identity::revision(pod).to_owned()))).collect();
        assert_eq!(actual, expected);
    }
}
