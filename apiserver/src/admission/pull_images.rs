//! AlwaysPullImages (not on by default): every image is asked for at its registry by the pod's own credentials, so that
//! nobody runs an image only because another tenant's pod left it on the node.

use async_trait::async_trait;
use decapod_api::field::{self, Path};
use decapod_api::status::Error;
use serde_json::Value;

use super::{Attributes, Operation, Plugin};

const ALWAYS: &str = "Always";
const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub(super) struct AlwaysPullImages;

#[async_trait]
impl Plugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    fn on_by_default(&self) -> bool {
        false
    }

    fn handles(&self, write: &Attributes<'_>) -> bool {
        write.operation != Operation::Delete && write.is("", "pods")
    }

    async fn mutate(&self, write: &Attributes<'_>, pod: &mut Value) -> Result<(), Error> {
        if brings_no_image(pod, write.old) {
            return Ok(());
        }
        for list in CONTAINERS {
            for container in items_mut(pod, list) {
                container["imagePullPolicy"] = ALWAYS.into();
            }
        }
        for volume in items_mut(pod, "volumes").filter(|volume| volume["image"].is_object()) {
            volume["image"]["pullPolicy"] = ALWAYS.into();
        }
        Ok(())
    }

    async fn validate(&self, write: &Attributes<'_>, pod: &Value) -> Result<(), Error> {
        if brings_no_image(pod, write.old) {
            return Ok(());
        }
        let errors = violations(pod);
        if errors.is_empty() {
            return Ok(());
        }
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Err(write.call.forbidden(told.join(", ")))
    }
}

fn items<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod["spec"][list].as_array().into_iter().flatten()
}

fn items_mut<'a>(pod: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    let list = pod.get_mut("spec").and_then(|spec| spec.get_mut(list));
    list.and_then(Value::as_array_mut).into_iter().flatten()
}

/// Whether an update has only images that the pod had before.
fn brings_no_image(pod: &Value, old: Option<&Value>) -> bool {
    let Some(old) = old else { return false };
    let images = |pod: &Value| -> Vec<Value> {
        CONTAINERS.iter().flat_map(|list| items(pod, list)).map(|one| one["image"].clone()).collect()
    };
    let known = images(old);
    images(pod).iter().all(|image| known.contains(image))
}

fn violations(pod: &Value) -> Vec<field::Error> {
    let spec = Path::new("spec");
    let mut errors = Vec::new();
    let mut check = |at: Path, policy: &Value| {
        if policy != ALWAYS {
            errors.push(field::Error::not_supported(&at, policy.as_str().unwrap_or_default(), &[ALWAYS]));
        }
    };
    for list in CONTAINERS {
        for (index, container) in items(pod, list).enumerate() {
            check(spec.child(list).index(index).child("imagePullPolicy"), &container["imagePullPolicy"]);
        }
    }
    for (index, volume) in items(pod, "volumes").enumerate().filter(|(_, v)| v["image"].is_object()) {
        let at = spec.child("volumes").index(index).child("image").child("pullPolicy");
        check(at, &volume["image"]["pullPolicy"]);
    }
    errors
}
