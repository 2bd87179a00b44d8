//! What becomes of an object because of its owners: pure decisions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PropagationPolicy;

/// Finalizers by which a deletion waits for the garbage collector.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// It exists.
    Solid,
    /// It is being deleted in the foreground, and waits for its dependents.
    Waiting,
    /// It does not exist: the API server said so.
    Absent,
}

/// What has to be done with an object.
#[derive(Debug, PartialEq)]
pub(super) enum Action {
    Nothing,
    /// Another owner keeps the object: drop these references (by uid).
    DropOwners(Vec<String>),
    Delete {
        policy: PropagationPolicy,
        /// Let the object's own owners go before it: breaks a circle of objects that wait for each other.
        unblock: bool,
    },
}

/// Whether the object waits for its dependents to be deleted.
pub(super) fn is_waiting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some() && has_finalizer(meta, FOREGROUND)
}

pub(super) fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|one| one == finalizer)
}

/// Decides by the owners of an object that nobody has deleted yet.
pub(super) fn decide(
    meta: &ObjectMeta,
    owners: &[(OwnerReference, Owner)],
    dependents: &[&ObjectMeta],
) -> Action {
    let of = |state: Owner| owners.iter().filter(move |(_, known)| *known == state);
    if owners.is_empty() {
        return Action::Nothing;
    }
    if of(Owner::Solid).next().is_some() {
        let gone = owners.iter().filter(|(_, state)| *state != Owner::Solid);
        let gone: Vec<_> = gone.map(|(owner, _)| owner.uid.clone()).collect();
        return if gone.is_empty() { Action::Nothing } else { Action::DropOwners(gone) };
    }
    if of(Owner::Waiting).next().is_some() && !dependents.is_empty() {
        // The owner waits for this object, so this one must wait for its own dependents.
        let unblock = dependents.iter().any(|dependent| is_waiting(dependent));
        return Action::Delete { policy: PropagationPolicy::Foreground, unblock };
    }
    let policy = if has_finalizer(meta, ORPHAN) {
        PropagationPolicy::Orphan
    } else if has_finalizer(meta, FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    };
    Action::Delete { policy, unblock: false }
}

/// Whether the deletion of the owner of this uid in the foreground waits for an object.
pub(super) fn blocks(meta: &ObjectMeta, owner: &str) -> bool {
    let mut references = meta.owner_references.iter().flatten();
    references.any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
}

/// The references that remain without those to the owners of these uids.
pub(super) fn without_owners(meta: &ObjectMeta, uids: &[String]) -> Vec<OwnerReference> {
    let references = meta.owner_references.iter().flatten();
    references.filter(|reference| !uids.contains(&reference.uid)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn owner(uid: &str, state: Owner) -> (OwnerReference, Owner) {
        (OwnerReference { uid: uid.into(), ..OwnerReference::default() }, state)
    }

    fn waiting() -> ObjectMeta {
        ObjectMeta {
            deletion_timestamp: Some(Time(jiff::Timestamp::UNIX_EPOCH)),
            finalizers: Some(vec![FOREGROUND.into()]),
            ..ObjectMeta::default()
        }
    }

    fn delete(policy: PropagationPolicy, unblock: bool) -> Action {
        Action::Delete { policy, unblock }
    }

    #[test]
    fn one_owner_is_enough_to_stay() {
        let meta = ObjectMeta::default();
        assert_eq!(decide(&meta, &[], &[]), Action::Nothing);
        assert_eq!(decide(&meta, &[owner("a", Owner::Solid)], &[]), Action::Nothing);
        let owners = [owner("a", Owner::Solid), owner("b", Owner::Absent), owner("c", Owner::Waiting)];
        assert_eq!(decide(&meta, &owners, &[]), Action::DropOwners(vec!["b".into(), "c".into()]));
    }

    #[test]
    fn without_owners_an_object_goes_as_its_finalizers_ask() {
        let absent = [owner("a", Owner::Absent)];
        let mut meta = ObjectMeta::default();
        assert_eq!(
            decide(&meta, &absent, &[&ObjectMeta::default()]),
            delete(PropagationPolicy::Background, false)
        );
        meta.finalizers = Some(vec![FOREGROUND.into()]);
        assert_eq!(decide(&meta, &absent, &[]), delete(PropagationPolicy::Foreground, false));
        meta.finalizers = Some(vec![ORPHAN.into()]);
        assert_eq!(decide(&meta, &absent, &[]), delete(PropagationPolicy::Orphan, false));
    }

    #[test]
    fn a_waiting_owner_makes_its_dependents_wait_for_theirs() {
        let owners = [owner("a", Owner::Waiting)];
        let meta = ObjectMeta::default();
        assert_eq!(decide(&meta, &owners, &[]), delete(PropagationPolicy::Background, false));
        assert_eq!(decide(&meta, &owners, &[&meta]), delete(PropagationPolicy::Foreground, false));
        assert_eq!(
            decide(&meta, &owners, &[&waiting()]),
            delete(PropagationPolicy::Foreground, true),
            "a circle"
        );
    }

    #[test]
    fn only_blocking_references_block() {
        let reference = |block| OwnerReference {
            uid: "a".into(),
            block_owner_deletion: block,
            ..OwnerReference::default()
        };
        let meta =
            |block| ObjectMeta { owner_references: Some(vec![reference(block)]), ..ObjectMeta::default() };
        assert!(blocks(&meta(Some(true)), "a"));
        assert!(!blocks(&meta(Some(true)), "b"));
        assert!(!blocks(&meta(Some(false)), "a") && !blocks(&meta(None), "a"));
    }
}
