//! Rollouts played through without a cluster: the plan is applied to the ReplicaSets, pods come and go.

use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};

use super::*;
use crate::common::condition;

/// A Deployment and its ReplicaSets, as the API server and the ReplicaSet controller would keep them.
struct Cluster {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    second: i64,
}

impl Cluster {
    fn new(replicas: i32, strategy: &str) -> Self {
        let labels = Some([("app".to_owned(), "web".to_owned())].into());
        let spec = DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: labels.clone(), ..LabelSelector::default() },
            strategy: Some(DeploymentStrategy { type_: Some(strategy.to_owned()), rolling_update: None }),
            progress_deadline_seconds: Some(600),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels, ..ObjectMeta::default() }),
                spec: None,
            },
            ..DeploymentSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            uid: Some("d".into()),
            generation: Some(1),
            ..ObjectMeta::default()
        };
        let mut cluster = Self {
            deployment: Deployment { metadata, spec: Some(spec), status: None },
            sets: vec![],
            second: 0,
        };
        cluster.image("v1");
        cluster
    }

    fn spec(&mut self) -> &mut DeploymentSpec {
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
        self.deployment.spec.as_mut().unwrap()
    }

    fn image(&mut self, image: &str) {
        let container = Container { name: "c".into(), image: Some(image.into()), ..Container::default() };
        self.spec().template.spec = Some(PodSpec { containers: vec![container], ..PodSpec::default() });
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.second).unwrap()
    }

    fn plan(&self) -> Plan {
        let running = |set: &&ReplicaSet| set.status.as_ref().is_some_and(|status| status.replicas > 0);
        plan(World {
            deployment: &self.deployment,
            sets: self.sets.iter().cloned().map(Arc::new).collect(),
            running: self.sets.iter().filter(running).filter_map(ResourceExt::uid).collect(),
            now: self.now(),
        })
    }

    /// Plans and applies one step; whether it changed anything but the status.
    fn step(&mut self) -> bool {
        self.second += 1;
        let plan = self.plan();
        let changed = plan.create.is_some() || !plan.update.is_empty() || !plan.delete.is_empty();
        if let Some(mut set) = plan.create {
            set.metadata.uid = set.metadata.name.clone();
            set.metadata.creation_timestamp = Some(Time(self.now()));
            self.sets.push(set);
        }
        for update in plan.update {
            let set = self.sets.iter_mut().find(|set| set.metadata.uid == update.set.metadata.uid).unwrap();
            set.spec.as_mut().unwrap().replicas = Some(update.replicas.1);
            set.metadata.annotations.get_or_insert_default().extend(update.annotations);
        }
        for gone in plan.delete {
            self.sets.retain(|set| set.metadata.uid != gone.metadata.uid);
        }
        if let Some(revision) = plan.revision {
            let annotations = self.deployment.metadata.annotations.get_or_insert_default();
            annotations.insert(revision::REVISION.to_owned(), revision.to_string());
        }
        self.deployment.status = Some(plan.status);
        changed
    }

    /// The ReplicaSet controller and the kubelets do their work: all pods of healthy images get available.
    fn settle_pods(&mut self, broken: &str) {
        for set in &mut self.sets {
            let spec = set.spec.as_ref().unwrap();
            let replicas = spec.replicas.unwrap();
            let template = spec.template.as_ref().unwrap().spec.as_ref().unwrap();
            let is_broken = template.containers[0].image.as_deref() == Some(broken);
            let available = Some(if is_broken { 0 } else { replicas });
            set.status = Some(ReplicaSetStatus {
                replicas,
                ready_replicas: available,
                available_replicas: available,
                ..ReplicaSetStatus::default()
            });
        }
    }

    /// Steps until nothing changes; checks `always` after each.
    fn run(&mut self, broken: &str, always: impl Fn(&Self)) {
        for _ in 0..100 {
            let changed = self.step();
            always(self);
            if !changed {
                let before = self.sets.clone();
                self.settle_pods(broken);
                self.step();
                if before == self.sets {
                    return;
                }
            }
        }
        panic!("never settled: {:?}", self.replicas());
    }

    fn replicas(&self) -> Vec<i32> {
        self.sets.iter().map(|set| set.spec.as_ref().unwrap().replicas.unwrap()).collect()
    }

    fn progressing(&self) -> (String, String) {
        let conditions = self.deployment.status.as_ref().unwrap().conditions.as_ref().unwrap();
        let condition = condition::find(conditions, status::PROGRESSING).unwrap();
        (condition.reason.clone().unwrap(), condition.message.clone().unwrap())
    }

    fn revision(&self) -> &str {
        &self.deployment.annotations()[revision::REVISION]
    }
}

#[test]
fn a_rollout_comes_up_and_completes() {
    let mut cluster = Cluster::new(3, "RollingUpdate");
    cluster.run("", |_| {});
    assert_eq!((cluster.replicas(), cluster.revision()), (vec![3], "1"));
    let name = cluster.sets[0].name_any();
    let expected = format!("ReplicaSet {name:?} has successfully progressed.");
    assert_eq!(cluster.progressing(), ("NewReplicaSetAvailable".to_owned(), expected));
    let status = cluster.deployment.status.clone().unwrap();
    assert_eq!((status.available_replicas, status.unavailable_replicas), (Some(3), Some(0)));
    assert!(!cluster.step() && cluster.plan().again.is_none(), "a settled Deployment rests");
}

#[test]
fn a_new_template_rolls_within_the_bounds() {
    let mut cluster = Cluster::new(8, "RollingUpdate");
    cluster.run("", |_| {});
    cluster.image("v2");
    cluster.run("", |cluster| {
        let total: i32 = cluster.replicas().iter().sum();
        assert!(total <= 10, "surge: {:?}", cluster.replicas());
        let available: i32 = cluster
            .sets
            .iter()
            .map(|set| {
                let up = set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0);
                up.min(set.spec.as_ref().unwrap().replicas.unwrap())
            })
            .sum();
        assert!(available >= 6, "unavailable: {:?}", cluster.replicas());
    });
    assert_eq!((cluster.replicas(), cluster.revision()), (vec![0, 8], "2"));
}

#[test]
fn a_broken_template_stops_and_an_undo_brings_the_old_one_back() {
    let mut cluster = Cluster::new(3, "RollingUpdate");
    cluster.run("", |_| {});
    cluster.image("broken");
    cluster.run("broken", |_| {});
    assert_eq!(cluster.replicas(), [3, 1], "nothing of the old is given up");
    cluster.second += 700;
    cluster.step();
    assert_eq!(cluster.progressing().0, "ProgressDeadlineExceeded");
    cluster.image("v1");
    cluster.run("broken", |_| {});
    assert_eq!((cluster.replicas(), cluster.revision()), (vec![3, 0], "3"));
    assert_eq!(cluster.progressing().0, "NewReplicaSetAvailable");
}

#[test]
fn recreate_waits_until_all_old_pods_are_gone() {
    let mut cluster = Cluster::new(3, "Recreate");
    cluster.run("", |_| {});
    cluster.image("v2");
    assert!(cluster.step());
    assert_eq!(cluster.replicas(), [0]);
    assert!(!cluster.step(), "old pods still run");
    cluster.settle_pods("");
    assert!(cluster.step());
    assert_eq!(cluster.replicas(), [0, 3]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut cluster = Cluster::new(3, "RollingUpdate");
    cluster.run("", |_| {});
    cluster.spec().paused = Some(true);
    cluster.image("v2");
    cluster.run("", |_| {});
    assert_eq!(cluster.replicas(), [3]);
    assert_eq!(cluster.progressing(), ("DeploymentPaused".to_owned(), "Deployment is paused".to_owned()));
    cluster.spec().replicas = Some(5);
    cluster.run("", |_| {});
    assert_eq!(cluster.replicas(), [5]);
    cluster.spec().paused = None;
    cluster.run("", |_| {});
    assert_eq!(cluster.replicas(), [0, 5]);
}

#[test]
fn a_scale_is_no_rollout() {
    let mut cluster = Cluster::new(3, "RollingUpdate");
    cluster.run("", |_| {});
    cluster.spec().replicas = Some(0);
    cluster.run("", |_| {});
    assert_eq!(cluster.replicas(), [0]);
    cluster.spec().replicas = Some(6);
    cluster.run("", |_| {});
    assert_eq!((cluster.replicas(), cluster.revision()), (vec![6], "1"));
}

#[test]
fn history_beyond_its_limit_is_forgotten() {
    let mut cluster = Cluster::new(1, "RollingUpdate");
    cluster.spec().revision_history_limit = Some(2);
    for image in ["v1", "v2", "v3", "v4", "v5"] {
        cluster.image(image);
        cluster.run("", |_| {});
    }
    let revisions: Vec<_> = cluster.sets.iter().map(revision::of).collect();
    assert_eq!(revisions, [3, 4, 5]);
}
