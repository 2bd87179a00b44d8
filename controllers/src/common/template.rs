//! Pod templates: which are the same, the short name that each has, and the pods that are made from them.

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The label that tells apart the pods of a Deployment's ReplicaSets.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// The letters and digits of generated names: no vowels, so that no words come out.
const SAFE: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether two templates are the same but for the hash label.
pub(crate) fn same_template(one: &PodTemplateSpec, other: &PodTemplateSpec) -> bool {
    bare(one) == bare(other)
}

fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    let labels = meta.labels.get_or_insert_default();
    labels.remove(HASH_LABEL);
    meta.annotations.get_or_insert_default();
    meta.creation_timestamp = None;
    template
}

/// A short name of a template: the same template has the same name, as long as nobody else took it
/// (`collisions` makes another one then).
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut text = serde_json::to_vec(template).expect("a template has string keys only");
    text.extend(collisions.unwrap_or(0).to_le_bytes().iter().filter(|_| collisions.is_some()));
    // FNV-1a with 32 bits, as short as Kubernetes' own.
    let hash =
        text.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let digits = hash.to_string();
    digits.bytes().map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()])).collect()
}

/// A pod as the template wants it, of the object whose metadata this is; its name is made up from that one's.
pub(crate) fn pod(of: &ObjectMeta, template: PodTemplateSpec, owner: OwnerReference) -> Pod {
    let meta = template.metadata.unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", of.name.as_deref().unwrap_or_default())),
            namespace: of.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn template(label: &str) -> PodTemplateSpec {
        let labels = [("app".to_owned(), label.to_owned())].into();
        PodTemplateSpec {
            metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
            spec: None,
        }
    }

    #[test]
    fn the_hash_label_makes_no_difference() {
        let mut labelled = template("web");
        let labels = labelled.metadata.as_mut().unwrap().labels.as_mut().unwrap();
        labels.insert(HASH_LABEL.to_owned(), "abc".to_owned());
        assert!(same_template(&labelled, &template("web")));
        assert!(!same_template(&labelled, &template("other")));
    }

    #[test]
    fn a_hash_is_stable_safe_and_changes_with_a_collision() {
        let name = hash(&template("web"), None);
        assert_eq!(name, hash(&template("web"), None));
        assert_ne!(name, hash(&template("web"), Some(1)));
        assert_ne!(name, hash(&template("other"), None));
        assert!(name.bytes().all(|letter| SAFE.contains(&letter)));
    }
}
