//! OwnerReferencesPermissionEnforcement (not on by default): who may not delete an object does not hand it to an owner
//! that may go, and nobody holds up the deletion of an owner whose finalizers he may not set.

use async_trait::async_trait;
use decapod_api::resource;
use decapod_api::status::Error;
use serde_json::Value;

use super::{Attributes as Write, Operation, Plugin};
use crate::auth::{Attributes, Decision};
use crate::pki::MASTERS;

pub(super) struct OwnerReferencesPermissionEnforcement;

#[async_trait]
impl Plugin for OwnerReferencesPermissionEnforcement {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    fn on_by_default(&self) -> bool {
        false
    }

    fn handles(&self, write: &Write<'_>) -> bool {
        // The status of a pod cannot change its owners.
        write.operation != Operation::Delete && !write.is_sub("", "pods", "status")
    }

    async fn validate(&self, write: &Write<'_>, object: &Value) -> Result<(), Error> {
        let (now, before) = (owners(object), write.old.map(owners).unwrap_or_default());
        if now == before {
            return Ok(());
        }
        // Who makes an object might as well not have made it.
        if !write.creates() {
            let call = write.call;
            let delete = Attributes {
                verb: "delete".to_owned(),
                group: call.resource.group.to_owned(),
                version: call.resource.version.to_owned(),
                resource: call.resource.plural.to_owned(),
                subresource: call.subresource.clone(),
                namespace: call.namespace.clone(),
                name: call.name.clone(),
                ..Attributes::default()
            };
            if let Decision::NoOpinion(reason) = decide(write, &delete) {
                let why = format!("cannot set an ownerRef on a resource you can't delete: {reason}, <nil>");
                return Err(write.call.forbidden(why));
            }
        }
        let anything = finalizers("*", "*", "*", "", "*");
        let blocking = newly_blocking(&now, &before);
        if blocking.is_empty() || decide(write, &anything).allowed() {
            return Ok(());
        }
        for owner in blocking {
            self::blocks(write, owner)?;
        }
        Ok(())
    }
}

/// Refuses a reference that holds up the deletion of an owner whose finalizers who asks may not set.
fn blocks(write: &Write<'_>, owner: &Value) -> Result<(), Error> {
    let text = |field: &str| owner[field].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    let (group, bare) = version.split_once('/').unwrap_or(("", version));
    let Some(row) = resource::by_kind(group, bare, kind) else {
        return Err(write.call.forbidden(format!(
            "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {version} Kind {kind}: \
             no matches for kind \"{kind}\" in version \"{version}\""
        )));
    };
    // An owner with a namespace is in that of what it owns.
    let namespace = if row.namespaced() { write.call.namespace.as_str() } else { "" };
    let asked = finalizers(row.group, row.version, row.plural, namespace, text("name"));
    match decide(write, &asked) {
        Decision::Allow(_) => Ok(()),
        Decision::NoOpinion(reason) => Err(write.call.forbidden(format!(
            "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {reason}, <nil>"
        ))),
    }
}

fn decide(write: &Write<'_>, asked: &Attributes) -> Decision {
    let user = &write.call.user;
    if user.in_group(MASTERS) {
        return Decision::Allow(String::new());
    }
    write.registry.policy.decide(user, asked)
}

fn finalizers(group: &str, version: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        verb: "update".to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        resource: resource.to_owned(),
        subresource: "finalizers".to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    }
}

fn owners(object: &Value) -> Vec<Value> {
    object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default()
}

/// The references that hold up the deletion of their owners, and did not before.
fn newly_blocking<'a>(now: &'a [Value], before: &[Value]) -> Vec<&'a Value> {
    let blocks = |owner: &Value| owner["blockOwnerDeletion"] == true;
    let did = |owner: &Value| before.iter().any(|old| old["uid"] == owner["uid"] && blocks(old));
    now.iter().filter(|owner| blocks(owner) && !did(owner)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_new_blocks_count() {
        let owner = |uid: &str, blocks: Value| json!({"uid": uid, "blockOwnerDeletion": blocks});
        let (yes, no, unset) = (owner("a", json!(true)), owner("a", json!(false)), owner("a", Value::Null));
        for (now, before, count) in [
            (vec![yes.clone()], vec![], 1),
            (vec![yes.clone()], vec![no.clone()], 1),
            (vec![yes.clone()], vec![unset.clone()], 1),
            (vec![yes.clone()], vec![yes.clone()], 0),
            (vec![no], vec![], 0),
            (vec![unset], vec![], 0),
            (vec![yes.clone(), owner("b", json!(true))], vec![yes], 1),
        ] {
            assert_eq!(newly_blocking(&now, &before).len(), count, "{now:?} after {before:?}");
        }
    }
}
