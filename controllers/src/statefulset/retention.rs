//! What becomes of the claims of a StatefulSet (KEP-1847): by owner references the garbage collector deletes them
//! with the set, or with a pod that the set has become too small for.

use k8s_openapi::api::apps::v1::StatefulSetSpec;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;

/// The fate of claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// They go with the set.
    pub(super) when_deleted: bool,
    /// They go with their pod if the set becomes smaller.
    pub(super) when_scaled: bool,
}

impl Policy {
    pub(super) fn of(spec: &StatefulSetSpec) -> Self {
        let policy = spec.persistent_volume_claim_retention_policy.as_ref();
        let is_delete = |field: &Option<String>| field.as_deref() == Some("Delete");
        Self {
            when_deleted: policy.is_some_and(|policy| is_delete(&policy.when_deleted)),
            when_scaled: policy.is_some_and(|policy| is_delete(&policy.when_scaled)),
        }
    }
}

/// Who may own a claim.
#[derive(Clone, Debug)]
pub(super) struct Owners {
    pub(super) set: OwnerReference,
    /// The pod that has the claim; without uid if it does not exist.
    pub(super) pod: OwnerReference,
    /// The set has become too small for the pod.
    pub(super) condemned: bool,
}

/// The reference to a pod as the owner of its claims.
pub(super) fn pod_reference(name: &str, pod: Option<&Pod>) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.to_owned(),
        uid: pod.and_then(ResourceExt::uid).unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

fn same_name(one: &OwnerReference, other: &OwnerReference) -> bool {
    (&one.api_version, &one.kind, &one.name) == (&other.api_version, &other.kind, &other.name)
}

/// Whether the claim belongs to an earlier object of this name: the garbage collector is about to delete it.
pub(super) fn is_stale(claim: &PersistentVolumeClaim, owner: &OwnerReference) -> bool {
    claim.owner_references().iter().any(|known| same_name(known, owner) && known.uid != owner.uid)
}

/// The references that a claim is to have.
#[derive(Debug, PartialEq)]
pub(super) struct References {
    pub(super) owners: Vec<OwnerReference>,
    /// Another controller has the claim: the policy does not count for it.
    pub(super) conflict: bool,
}

/// How the owners of a claim must change; `None` if they are as the policy asks, or not the set's to touch.
pub(super) fn plan(claim: &PersistentVolumeClaim, policy: Policy, owners: &Owners) -> Option<References> {
    if is_stale(claim, &owners.set) || is_stale(claim, &owners.pod) {
        return None;
    }
    let known = claim.owner_references();
    let is_ours = |one: &OwnerReference| same_name(one, &owners.set) || same_name(one, &owners.pod);
    let scrubbed: Vec<_> = known.iter().filter(|one| !is_ours(one)).cloned().collect();
    let deletes = policy.when_deleted || policy.when_scaled;
    if deletes && scrubbed.iter().any(|one| one.controller == Some(true)) {
        return (scrubbed.len() < known.len()).then_some(References { owners: scrubbed, conflict: true });
    }
    let wanted = wanted(policy, owners);
    let right = known.iter().filter(|one| is_ours(one)).all(|one| one.controller == Some(true))
        && known.len() == scrubbed.len() + usize::from(wanted.is_some())
        && wanted.iter().all(|owner| known.iter().any(|one| one.uid == owner.uid));
    let all = scrubbed.into_iter().chain(wanted).collect();
    (!right).then_some(References { owners: all, conflict: false })
}

/// The owners that the policy asks for: a pod that is to go has its claims to itself.
pub(super) fn wanted(policy: Policy, owners: &Owners) -> Option<OwnerReference> {
    match (policy.when_scaled && owners.condemned, policy.when_deleted) {
        (true, _) => Some(owners.pod.clone()),
        (false, true) => Some(owners.set.clone()),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(kind: &str, name: &str, uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: if kind == "Pod" { "v1" } else { "apps/v1" }.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    fn owners(condemned: bool) -> Owners {
        Owners { set: reference("StatefulSet", "db", "s"), pod: reference("Pod", "db-1", "p"), condemned }
    }

    fn claim(references: &[OwnerReference]) -> PersistentVolumeClaim {
        let mut claim = PersistentVolumeClaim::default();
        claim.metadata.owner_references = Some(references.to_vec());
        claim
    }

    /// The uids of the owners that a claim with these has in the end.
    fn after<const N: usize>(
        references: [OwnerReference; N],
        when_deleted: bool,
        when_scaled: bool,
        condemned: bool,
    ) -> String {
        let policy = Policy { when_deleted, when_scaled };
        let claim = claim(&references);
        let changed = plan(&claim, policy, &owners(condemned));
        let is_changed = changed.is_some();
        let end = changed.map_or(references.to_vec(), |changed| changed.owners);
        assert!(plan(&self::claim(&end), policy, &owners(condemned)).is_none(), "planned once is done");
        let uids: Vec<_> = end.into_iter().map(|one| one.uid).collect();
        format!("{}{}", uids.join(","), if is_changed { "*" } else { "" })
    }

    #[test]
    fn owners_follow_the_policy() {
        let Owners { set, pod, .. } = owners(false);
        let other = reference("Other", "x", "o");
        let passive = OwnerReference { controller: None, ..reference("Other", "y", "q") };
        assert_eq!(after([], false, false, false), "");
        assert_eq!(after([set.clone()], false, false, false), "*");
        assert_eq!(after([passive.clone()], true, false, false), "q,s*");
        assert_eq!(after([], true, false, true), "s*");
        assert_eq!(after([pod.clone()], false, true, false), "*");
        assert_eq!(after([], false, true, true), "p*");
        assert_eq!(after([set.clone()], true, true, true), "p*");
        assert_eq!(after([pod.clone()], true, true, false), "s*");
        assert_eq!(after([set.clone()], true, true, false), "s");
        let mut weak = set.clone();
        weak.controller = None;
        assert_eq!(after([weak], true, false, false), "s*");
        assert_eq!(after([other.clone()], true, true, false), "o", "another controller's");
        assert_eq!(after([other.clone(), set], true, false, false), "o*");
        assert_eq!(after([other], false, false, false), "o");
        assert_eq!(after([reference("Pod", "db-1", "older")], true, true, false), "older", "on its way out");
    }
}
