use std::collections::BTreeSet;
use std::sync::Arc;

use decapod_api::storage;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{self, Note, Plan, World, Write};

fn merged(mut base: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

fn claim(name: &str, more: Value) -> PersistentVolumeClaim {
    let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": ""});
    let claim = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": merged(spec, &more),
        "status": {"phase": "Pending"}});
    serde_json::from_value(claim).unwrap()
}

fn volume(name: &str, more: Value) -> PersistentVolume {
    let spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "persistentVolumeReclaimPolicy": "Retain"});
    let volume =
        json!({"metadata": {"name": name}, "spec": merged(spec, &more), "status": {"phase": "Available"}});
    serde_json::from_value(volume).unwrap()
}

fn class(name: &str, provisioner: &str, mode: &str) -> Arc<StorageClass> {
    let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
    Arc::new(serde_json::from_value(class).unwrap())
}

/// Everything that the binder sees, and the effect of its writes.
#[derive(Clone, Debug, Default)]
struct Cluster {
    claims: Vec<PersistentVolumeClaim>,
    volumes: Vec<Arc<PersistentVolume>>,
    classes: Vec<Arc<StorageClass>>,
}

impl Cluster {
    fn plan_claim(&self, name: &str) -> Plan {
        let claim = self.claim(name);
        plan::claim(World { volumes: &self.volumes, classes: &self.classes, waiting_pods: &[] }, claim)
            .unwrap()
    }

    fn plan_volume(&self, volume: &PersistentVolume) -> Plan {
        let uid = plan::claim_ref(volume).and_then(|reference| reference.uid.clone());
        let claim = self.claims.iter().find(|claim| uid.is_some() && claim.metadata.uid == uid);
        plan::volume(volume, claim)
    }

    fn claim(&self, name: &str) -> &PersistentVolumeClaim {
        self.claims.iter().find(|claim| claim.metadata.name.as_deref() == Some(name)).unwrap()
    }

    fn volume(&self, name: &str) -> &PersistentVolume {
        self.volumes.iter().find(|volume| volume.metadata.name.as_deref() == Some(name)).unwrap()
    }

    fn write(&mut self, write: Write) {
        match write {
            Write::Claim(new) | Write::ClaimStatus(new) => {
                let old = self.claims.iter_mut().find(|one| one.metadata.name == new.metadata.name);
                *old.unwrap() = new;
            }
            Write::Volume(new) | Write::VolumeStatus(new) => {
                let old = self.volumes.iter_mut().find(|one| one.metadata.name == new.metadata.name);
                *old.unwrap() = Arc::new(new);
            }
        }
    }

    /// Carries plans for the claim out until there is no write; the last note.
    fn settle(&mut self, name: &str) -> Option<Note> {
        for _ in 0..8 {
            let plan = self.plan_claim(name);
            match plan.write {
                Some(write) => self.write(write),
                None => return plan.note,
            }
        }
        panic!("the claim does not settle");
    }
}

fn phases(cluster: &Cluster, claim: &str, volume: &str) -> (String, String) {
    let phase = |phase: Option<&String>| phase.cloned().unwrap_or_default();
    let of_claim = cluster.claim(claim).status.as_ref().and_then(|status| status.phase.as_ref());
    let of_volume = cluster.volume(volume).status.as_ref().and_then(|status| status.phase.as_ref());
    (phase(of_claim), phase(of_volume))
}

#[test]
fn a_claim_is_bound_in_four_writes_and_then_left_alone() {
    let mut cluster = Cluster {
        claims: vec![claim("c", json!({}))],
        volumes: vec![Arc::new(volume("v", json!({})))],
        classes: Vec::new(),
    };
    let mut kinds = Vec::new();
    while let Some(write) = cluster.plan_claim("c").write {
        kinds.push(match write {
            Write::Volume(_) => "volume",
            Write::VolumeStatus(_) => "its status",
            Write::Claim(_) => "claim",
            Write::ClaimStatus(_) => "its status",
        });
        cluster.write(write);
    }
    assert_eq!(kinds, ["volume", "its status", "claim", "its status"]);
    assert_eq!(phases(&cluster, "c", "v"), ("Bound".into(), "Bound".into()));
    let bound = cluster.claim("c");
    assert!(storage::is_fully_bound(bound));
    let status = bound.status.as_ref().unwrap();
    assert_eq!(status.capacity.as_ref().unwrap()["storage"].0, "1Gi");
    assert_eq!(status.access_modes.as_deref(), Some(&["ReadWriteOnce".to_owned()][..]));
    assert_eq!(cluster.plan_volume(&cluster.volume("v").clone()), Plan::default());
}

#[test]
fn a_volume_that_is_gone_is_lost() {
    let mut cluster = Cluster {
        claims: vec![claim("c", json!({}))],
        volumes: vec![Arc::new(volume("v", json!({})))],
        classes: Vec::new(),
    };
    cluster.settle("c");
    cluster.volumes.clear();
    let plan = cluster.plan_claim("c");
    let note = plan.note.unwrap();
    assert_eq!((note.reason, note.warns), ("ClaimLost", true));
    assert_eq!(note.message, "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    cluster.write(plan.write.unwrap());
    assert_eq!(cluster.plan_claim("c"), Plan::default(), "told once");
}

#[test]
fn what_happens_to_a_released_volume_is_its_policys() {
    let reference = json!({"namespace": "n", "name": "gone", "uid": "gone"});
    let of = |policy: &str, annotations: Value| {
        let spec = json!({"claimRef": reference, "persistentVolumeReclaimPolicy": policy});
        let mut one = volume("v", spec);
        one.metadata.annotations = serde_json::from_value(annotations).unwrap();
        one.status = serde_json::from_value(json!({"phase": "Bound"})).unwrap();
        let mut cluster = Cluster { volumes: vec![Arc::new(one)], ..Cluster::default() };
        let mut notes = Vec::new();
        loop {
            let plan = cluster.plan_volume(&cluster.volume("v").clone());
            notes.extend(plan.note.map(|note| note.reason));
            match plan.write {
                Some(write) => cluster.write(write),
                None => break,
            }
        }
        (cluster.volume("v").status.as_ref().unwrap().phase.clone().unwrap(), notes)
    };
    assert_eq!(of("Retain", json!({})), ("Released".into(), vec![]));
    assert_eq!(of("Delete", json!({storage::PROVISIONED_BY: "csi.example"})), ("Released".into(), vec![]));
    assert_eq!(of("Delete", json!({})), ("Failed".into(), vec!["VolumeFailedDelete"]));
    assert_eq!(of("Recycle", json!({})), ("Failed".into(), vec!["VolumeFailedRecycle"]));
}

#[test]
fn a_claim_without_a_volume_says_what_it_waits_for() {
    let classes = vec![
        class("late", "p.example", "WaitForFirstConsumer"),
        class("now", "p.example", "Immediate"),
        class("manual", "kubernetes.io/no-provisioner", "Immediate"),
    ];
    let of = |class: &str, annotations: Value| {
        let mut one = claim("c", json!({"storageClassName": class}));
        one.metadata.annotations = serde_json::from_value(annotations).unwrap();
        let mut cluster = Cluster { claims: vec![one], volumes: Vec::new(), classes: classes.clone() };
        let note = cluster.settle("c").unwrap();
        let asked = storage::annotation(&cluster.claim("c").metadata, storage::STORAGE_PROVISIONERS[0]);
        (note.reason, note.message, asked.map(str::to_owned))
    };
    assert_eq!(of("late", Value::Null).0, "WaitForFirstConsumer");
    let asked = of("late", json!({storage::SELECTED_NODE: "n1"}));
    assert_eq!((asked.0, asked.2.as_deref()), ("ExternalProvisioning", Some("p.example")));
    assert_eq!(of("now", Value::Null).0, "ExternalProvisioning");
    assert_eq!(of("", Value::Null).0, "FailedBinding");
    let manual = of("manual", Value::Null);
    assert_eq!(manual.1, "no volume plugin matched name: kubernetes.io/no-provisioner");
    assert_eq!(of("none", Value::Null).1, "storageclass.storage.k8s.io \"none\" not found");
}

#[test]
fn a_claim_that_names_its_volume_gets_no_other() {
    let named = claim("c", json!({"volumeName": "v", "resources": {"requests": {"storage": "5Gi"}}}));
    let mut cluster =
        Cluster { claims: vec![named], volumes: vec![Arc::new(volume("w", json!({})))], classes: Vec::new() };
    assert_eq!(cluster.settle("c"), None, "it may come");
    cluster.volumes.push(Arc::new(volume("v", json!({}))));
    let note = cluster.settle("c").unwrap();
    assert_eq!(note.message, "Cannot bind to requested volume \"v\": requested PV is too small");
    let other = json!({"namespace": "n", "name": "other", "uid": "other"});
    cluster.volumes = vec![Arc::new(volume("v", json!({"claimRef": other})))];
    assert_eq!(cluster.settle("c").unwrap().message, "volume \"v\" already bound to a different claim.");
}

#[test]
fn a_claim_without_a_class_gets_the_default_one_later() {
    let mut bare = claim("c", json!({}));
    bare.spec.as_mut().unwrap().storage_class_name = None;
    let mut default = StorageClass::clone(&class("std", "p.example", "Immediate"));
    default.metadata.annotations =
        Some([("storageclass.kubernetes.io/is-default-class".to_owned(), "true".to_owned())].into());
    let mut cluster = Cluster { claims: vec![bare], volumes: Vec::new(), classes: vec![Arc::new(default)] };
    cluster.settle("c");
    assert_eq!(storage::class_of_claim(cluster.claim("c")), "std");
}

#[test]
fn a_volume_whose_claim_got_another_is_free_again() {
    let reference = json!({"namespace": "n", "name": "c", "uid": "c"});
    let mut extra = volume("extra", json!({"claimRef": reference}));
    extra.metadata.annotations = Some([(storage::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned())].into());
    let bound = claim("c", json!({"volumeName": "v"}));
    let mut cluster = Cluster { claims: vec![bound], volumes: vec![Arc::new(extra)], classes: Vec::new() };
    let plan = cluster.plan_volume(&cluster.volume("extra").clone());
    cluster.write(plan.write.unwrap());
    assert!(plan::claim_ref(cluster.volume("extra")).is_none());
    let reserved = volume("mine", json!({"claimRef": {"namespace": "n", "name": "c", "uid": "c"}}));
    let plan = cluster.plan_volume(&reserved);
    let Some(Write::Volume(unbound)) = plan.write else { panic!("{plan:?}") };
    let kept = plan::claim_ref(&unbound).unwrap();
    assert_eq!((kept.name.as_deref(), kept.uid.as_deref()), (Some("c"), None), "a user's reservation stays");
}

proptest! {
    /// Whatever the order in which claims and volumes are looked at, and however often the binder dies between two
    /// writes: no volume has two claims, and what can be bound is.
    #[test]
    fn every_order_ends_in_a_matching(
        sizes in proptest::collection::vec(1_u32..5, 1..6),
        wants in proptest::collection::vec(1_u32..5, 1..6),
        order in proptest::collection::vec((any::<bool>(), 0_usize..6), 0..60),
    ) {
        let volumes = sizes.iter().enumerate().map(|(index, size)| {
            Arc::new(volume(&format!("v{index}"), json!({"capacity": {"storage": format!("{size}Gi")}})))
        });
        let claims = wants.iter().enumerate().map(|(index, size)| {
            claim(&format!("c{index}"), json!({"resources": {"requests": {"storage": format!("{size}Gi")}}}))
        });
        let mut cluster = Cluster { claims: claims.collect(), volumes: volumes.collect(), classes: Vec::new() };
        for (of_claim, index) in order {
            let plan = if of_claim {
                cluster.plan_claim(&format!("c{}", index % wants.len()))
            } else {
                cluster.plan_volume(&cluster.volume(&format!("v{}", index % sizes.len())).clone())
            };
            if let Some(write) = plan.write {
                cluster.write(write);
            }
        }
        for index in 0..wants.len() {
            cluster.settle(&format!("c{index}"));
        }
        let mut taken = BTreeSet::new();
        for claim in &cluster.claims {
            let name = claim.spec.as_ref().unwrap().volume_name.clone().unwrap_or_default();
            if name.is_empty() {
                let wanted = storage::requested(claim);
                let left = cluster.volumes.iter().any(|volume| {
                    plan::claim_ref(volume).is_none() && storage::capacity(volume) >= wanted
                });
                prop_assert!(!left, "{claim:?} could have been bound");
                continue;
            }
            let volume = cluster.volume(&name);
            prop_assert!(taken.insert(name), "two claims on one volume");
            prop_assert!(storage::refers_to(volume, claim));
            prop_assert!(storage::capacity(volume) >= storage::requested(claim));
            prop_assert_eq!(claim.status.as_ref().unwrap().phase.as_deref(), Some("Bound"));
        }
    }
}
