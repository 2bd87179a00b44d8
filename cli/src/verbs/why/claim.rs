//! Why a PersistentVolumeClaim has no volume.

use decapod_api::quantity::Quantity;
use serde_json::Value;

use super::{Finding, list, name, text, warnings};

/// What is around a claim.
#[derive(Debug, Default)]
pub(super) struct Around {
    /// Its class, if that exists.
    pub(super) class: Option<Value>,
    /// All volumes.
    pub(super) volumes: Vec<Value>,
    /// The pods of its namespace.
    pub(super) pods: Vec<Value>,
    pub(super) events: Vec<Value>,
}

/// What a volume lacks for a claim, if anything.
fn lacks(volume: &Value, claim: &Value) -> Option<String> {
    let bound = &volume["spec"]["claimRef"];
    if bound.is_object() && bound["name"] != claim["metadata"]["name"] {
        return Some(format!("is bound to {}/{}", text(bound, "namespace"), text(bound, "name")));
    }
    if text(&volume["spec"], "storageClassName") != text(&claim["spec"], "storageClassName") {
        return Some(format!("is of the class \"{}\"", text(&volume["spec"], "storageClassName")));
    }
    let modes: Vec<&Value> = list(&volume["spec"]["accessModes"]).collect();
    if let Some(mode) = list(&claim["spec"]["accessModes"]).find(|mode| !modes.contains(mode)) {
        return Some(format!("does not allow {}", mode.as_str().unwrap_or_default()));
    }
    let amount = |text: &str| text.parse::<Quantity>().ok();
    let has = text(&volume["spec"]["capacity"], "storage");
    let asks = text(&claim["spec"]["resources"]["requests"], "storage");
    if let (Some(there), Some(asked)) = (amount(has), amount(asks))
        && there < asked
    {
        return Some(format!("has {has}, asked are {asks}"));
    }
    None
}

/// What is in the way of a claim.
pub(super) fn findings(claim: &Value, around: &Around) -> Vec<Finding> {
    match text(&claim["status"], "phase") {
        "Bound" => return Vec::new(),
        "Lost" => {
            let volume = text(&claim["spec"], "volumeName");
            return vec![
                Finding::new(format!("its volume {volume} is gone"))
                    .way_out("what was on it is lost to the claim: delete the claim and make it anew, or restore the PersistentVolume object if the storage is there"),
            ];
        }
        _ => {}
    }
    let class = text(&claim["spec"], "storageClassName");
    let mut finding = match &around.class {
        None if class.is_empty() => Finding::new("it names no class, and no volume without a class fits"),
        None => Finding::new(format!("its class {class} does not exist, and no volume of that class fits"))
            .way_out(format!(
                "make the StorageClass {class}, or a claim of another class: `decapod get storageclasses`"
            )),
        Some(class) if text(class, "volumeBindingMode") == "WaitForFirstConsumer" => waits(claim, around),
        Some(object) => Finding::new(format!("{} has not made its volume yet", text(object, "provisioner")))
            .way_out("does the provisioner run?"),
    };
    for volume in &around.volumes {
        if let Some(lack) = lacks(volume, claim).filter(|lack| !lack.starts_with("is of the class")) {
            finding = finding.detail(format!("volume {} {lack}", name(volume)));
        }
    }
    for warning in warnings(&around.events) {
        finding = finding.detail(warning);
    }
    vec![finding]
}

/// The class waits for a pod.
fn waits(claim: &Value, around: &Around) -> Finding {
    let mut users = around.pods.iter().filter(|pod| {
        list(&pod["spec"]["volumes"]).any(|v| text(&v["persistentVolumeClaim"], "claimName") == name(claim))
    });
    match users.next() {
        None => {
            Finding::new("it waits for the first pod that uses it: its volume is made where that pod runs")
                .way_out("nothing is wrong: start the pod")
        }
        Some(pod) if text(&pod["spec"], "nodeName").is_empty() => {
            Finding::new(format!("it waits for a node for the pod {}", name(pod)))
                .way_out(format!("`decapod why pod/{}`", name(pod)))
        }
        Some(pod) => {
            Finding::new(format!("the pod {} has a node, and the volume is not made there yet", name(pod)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim() -> Value {
        json!({"metadata": {"name": "data"}, "status": {"phase": "Pending"},
            "spec": {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}})
    }

    #[test]
    fn a_missing_class_is_named_and_volumes_are_compared() {
        let volume = |name: &str, size: &str, mode: &str| {
            json!({"metadata": {"name": name}, "spec":
            {"storageClassName": "fast", "capacity": {"storage": size}, "accessModes": [mode]}})
        };
        let around = Around {
            volumes: vec![volume("small", "1Gi", "ReadWriteOnce"), volume("shared", "9Gi", "ReadOnlyMany")],
            ..Around::default()
        };
        let found = findings(&claim(), &around);
        assert!(found[0].what.contains("class fast does not exist"));
        assert_eq!(
            found[0].details,
            ["volume small has 1Gi, asked are 2Gi", "volume shared does not allow ReadWriteOnce"]
        );
    }

    #[test]
    fn a_claim_that_waits_for_a_pod_says_for_which() {
        let class = json!({"provisioner": "p", "volumeBindingMode": "WaitForFirstConsumer"});
        let mut around = Around { class: Some(class), ..Around::default() };
        assert!(findings(&claim(), &around)[0].what.contains("first pod"));
        around.pods = vec![
            json!({"metadata": {"name": "db"}, "spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]}}),
        ];
        assert!(findings(&claim(), &around)[0].what.contains("a node for the pod db"));
        let mut bound = claim();
        bound["status"]["phase"] = "Bound".into();
        assert!(findings(&bound, &around).is_empty());
    }
}
