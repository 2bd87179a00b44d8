//! Jobs: each has a selector of its own, made from its uid, unless its user takes that on.

use decapod_api::meta;
use serde_json::{Value, json};

use super::super::object::{map_mut, set_meta};
use super::super::options::Propagation;
use super::{Call, Strategy};

pub(super) struct Job;

impl Strategy for Job {
    fn prepare_create(&self, call: &Call, object: &mut Value) {
        object["status"] = json!({});
        let manual = object["spec"]["manualSelector"].as_bool().unwrap_or(false);
        if manual {
            return;
        }
        let (uid, name) = (meta::uid(object).to_owned(), call.name.clone());
        let spec = map_mut(object, "spec");
        let selector = spec.entry("selector").or_insert_with(|| json!({}));
        selector["matchLabels"]["batch.kubernetes.io/controller-uid"] = uid.clone().into();
        let template = spec.entry("template").or_insert_with(|| json!({}));
        let labels = &mut template["metadata"]["labels"];
        for (key, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("job-name", &name),
        ] {
            labels[key] = value.as_str().into();
        }
        // A Job without labels of its own has those of its pods.
        let labels = labels.clone();
        if meta::labels(object).is_empty() {
            set_meta(object, "labels", labels);
        }
    }

    /// Its pods stay, as ever in `batch/v1`; clients that know better say so.
    fn dependents(&self) -> Option<Propagation> {
        Some(Propagation::Orphan)
    }
}
