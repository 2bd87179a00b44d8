//! What the deletion of a namespace says of itself: conditions in Kubernetes' words.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{NamespaceCondition, NamespaceStatus};

use crate::common::condition::{self, Condition};

/// What is left in a namespace after all of it was asked to go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remains {
    /// Objects by kind and group (`pods.`, `deployments.apps`).
    pub(super) objects: BTreeMap<String, usize>,
    /// Objects that wait for a finalizer, by finalizer.
    pub(super) finalizers: BTreeMap<String, usize>,
    /// What could not be deleted or listed, and why.
    pub(super) errors: Vec<String>,
    /// Why the kinds could not all be discovered.
    pub(super) discovery: Option<String>,
}

impl Remains {
    /// Whether nothing is left, for certain.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The status of a namespace that is being deleted.
pub(super) fn status(old: Option<NamespaceStatus>, remains: &Remains, now: Timestamp) -> NamespaceStatus {
    let mut conditions = old.and_then(|old| old.conditions).unwrap_or_default();
    let mut set = |type_: &str, failure: Option<(&str, String)>, reason: &str, message: &str| {
        let condition: NamespaceCondition = match failure {
            Some((reason, message)) => Condition::new(type_, "True", reason, &message, now),
            None => Condition::new(type_, "False", reason, message, now),
        };
        condition::set_with_message(&mut conditions, condition);
    };
    set(
        "NamespaceDeletionDiscoveryFailure",
        remains
            .discovery
            .clone()
            .map(|error| ("DiscoveryFailed", format!("Discovery failed for some groups: {error}"))),
        "ResourcesDiscovered",
        "All resources successfully discovered",
    );
    set(
        "NamespaceDeletionGroupVersionParsingFailure",
        None,
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    );
    let errors = (!remains.errors.is_empty()).then(|| {
        let text = format!(
            "Failed to delete all resource types, {} remaining: {}",
            remains.errors.len(),
            remains.errors.join(", ")
        );
        ("ContentDeletionFailed", text)
    });
    set(
        "NamespaceDeletionContentFailure",
        errors,
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    );
    let objects = (!remains.objects.is_empty()).then(|| {
        let each =
            remains.objects.iter().map(|(kind, count)| format!("{kind} has {count} resource instances"));
        let text = format!("Some resources are remaining: {}", each.collect::<Vec<_>>().join(", "));
        ("SomeResourcesRemain", text)
    });
    set("NamespaceContentRemaining", objects, "ContentRemoved", "All content successfully removed");
    let finalizers = (!remains.finalizers.is_empty()).then(|| {
        let each =
            remains.finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances"));
        let text = format!(
            "Some content in the namespace has finalizers remaining: {}",
            each.collect::<Vec<_>>().join(", ")
        );
        ("SomeFinalizersRemain", text)
    });
    set(
        "NamespaceFinalizersRemaining",
        finalizers,
        "ContentHasNoFinalizers",
        "All content-preserving finalizers finished",
    );
    NamespaceStatus { phase: Some("Terminating".to_owned()), conditions: Some(conditions) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(status: &NamespaceStatus) -> BTreeMap<&str, (&str, &str)> {
        let conditions = status.conditions.iter().flatten();
        conditions.map(|one| (one.type_.as_str(), (one.status.as_str(), one.message()))).collect()
    }

    #[test]
    fn what_remains_is_told_in_kubernetes_words() {
        let remains = Remains {
            objects: [("pods.".to_owned(), 2), ("deployments.apps".to_owned(), 1)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Remains::default()
        };
        let status = status(None, &remains, Timestamp::UNIX_EPOCH);
        let texts = texts(&status);
        let expected = "Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances";
        assert_eq!(texts["NamespaceContentRemaining"], ("True", expected));
        let expected = "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances";
        assert_eq!(texts["NamespaceFinalizersRemaining"], ("True", expected));
        assert_eq!(texts["NamespaceDeletionContentFailure"].0, "False");
        assert_eq!(texts.len(), 5);
    }

    #[test]
    fn the_same_remains_make_no_change() {
        let first = status(None, &Remains::default(), Timestamp::UNIX_EPOCH);
        let second = status(Some(first.clone()), &Remains::default(), Timestamp::MAX);
        assert_eq!(first, second);
    }
}
