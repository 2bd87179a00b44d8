//! What can be removed before a pod has to go: images that nothing uses.

use std::collections::HashSet;

use decapod_client::error::chain;
use decapod_proto::cri;

use crate::shared::Shared;

/// Removes all images that no container uses, but for those that the node itself needs; true if there was one.
pub(super) async fn images(shared: &Shared) -> Result<bool, decapod_runtime::Error> {
    let containers = shared.runtime.container_list(None).await?;
    let used: HashSet<&str> = containers
        .iter()
        .flat_map(|container| [container.image_id.as_str(), container.image_ref.as_str()])
        .collect();
    let mut removed = false;
    for image in shared.runtime.image_list(None).await? {
        let names = image.repo_digests.iter().chain(&image.repo_tags).chain([&image.id]);
        if image.pinned || names.into_iter().any(|name| used.contains(name.as_str())) {
            continue;
        }
        let by_id = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
        match shared.runtime.image_remove(&by_id).await {
            Ok(()) => {
                tracing::info!(image = image.id, names = ?image.repo_tags, "removed an image that nothing uses");
                removed = true;
            }
            Err(error) => {
                tracing::warn!(image = image.id, error = chain(&error), "an image cannot be removed")
            }
        }
    }
    Ok(removed)
}
