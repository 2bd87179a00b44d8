//! Reads from the runtime what it has.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

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

/// The pods that have a folder of logs: the last trace of a pod whose agent was killed while it cleaned up.
pub(super) fn logged(root: &Path) -> std::io::Result<Vec<Owner>> {
    let mut owners = Vec::new();
    for entry in std::fs::read_dir(root)? {
        owners.extend(owner_of_logs(&entry?.file_name().to_string_lossy()));
    }
    Ok(owners)
}

/// Names and uids have no underscores, so that a folder's name says whose it is.
fn owner_of_logs(folder: &str) -> Option<Owner> {
    let mut parts = folder.split('_').filter(|part| !part.is_empty()).map(str::to_owned);
    let owner = Owner { namespace: parts.next()?, name: parts.next()?, uid: parts.next()? };
    parts.next().is_none().then_some(owner)
}

/// The pod that a runtime event is about.
pub(super) fn pod_of(event: &cri::ContainerEventResponse) -> Option<Uid> {
    let sandbox = event.pod_sandbox_status.as_ref()?;
    let labelled = sandbox.labels.get(mark::POD_UID).cloned();
    labelled.or_else(|| sandbox.metadata.as_ref().map(|m| m.uid.clone())).filter(|uid| !uid.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_logs_says_whose_it_is() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["default_web-1_77-ab", "lost+found", "a_b", "a_b_c_d"] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
        }
        let owners = logged(root.path()).unwrap();
        let [owner] = owners.as_slice() else { panic!("{owners:?}") };
        assert_eq!((&*owner.namespace, &*owner.name, &*owner.uid), ("default", "web-1", "77-ab"));
    }
}
