//! Reads from the runtime what it has.

use std::collections::{BTreeMap, HashMap};

use decapod_proto::cri;
use decapod_runtime::{Error, Runtime};

use crate::pod::observed::{self, Observed, Owner};
use crate::pod::{Uid, mark};

/// Everything that the runtime has for one pod.
pub(super) async fn pod(runtime: &dyn Runtime, uid: &str) -> Result<Observed, Error> {
    let labels: HashMap<String, String> = [(mark::POD_UID.to_owned(), uid.to_owned())].into();
    let filter = cri::PodSandboxFilter { label_selector: labels.clone(), ..Default::default() };
    let mut sandboxes = Vec::new();
    for sandbox in runtime.sandbox_list(Some(&filter)).await? {
        match runtime.sandbox_status(&sandbox.id).await {
            Ok(status) => sandboxes.push(observed::sandbox(&status)),
            // Removed between the list and the question.
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let filter = cri::ContainerFilter { label_selector: labels, ..Default::default() };
    let mut containers = Vec::new();
    for container in runtime.container_list(Some(&filter)).await? {
        match runtime.container_status(&container.id).await {
            Ok(status) => containers.push(observed::container(&status, &container.pod_sandbox_id)),
            Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Observed::new(sandboxes, containers))
}

/// The pods of which the runtime has anything.
pub(super) async fn owners(runtime: &dyn Runtime) -> Result<BTreeMap<Uid, Owner>, Error> {
    let mut owners = BTreeMap::new();
    let sandboxes = runtime.sandbox_list(None).await?.into_iter().map(|s| s.labels);
    let containers = runtime.container_list(None).await?.into_iter().map(|c| c.labels);
    for labels in sandboxes.chain(containers) {
        if let Some(owner) = Owner::of(&labels) {
            owners.insert(owner.uid.clone(), owner);
        }
    }
    Ok(owners)
}

/// The pod that a runtime event is about.
pub(super) fn pod_of(event: &cri::ContainerEventResponse) -> Option<Uid> {
    let sandbox = event.pod_sandbox_status.as_ref()?;
    let labelled = sandbox.labels.get(mark::POD_UID).cloned();
    labelled.or_else(|| sandbox.metadata.as_ref().map(|m| m.uid.clone())).filter(|uid| !uid.is_empty())
}
