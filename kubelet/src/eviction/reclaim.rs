//! What can be removed before a pod has to go: images that nothing uses.

use decapod_client::error::chain;
use decapod_proto::cri;

use crate::images;
use crate::shared::Shared;

/// Removes all images that no pod uses, but for those that the node itself needs; true if there was one.
pub(super) async fn remove_images(shared: &Shared) -> Result<bool, decapod_runtime::Error> {
    let used = images::in_use(shared).await?;
    let mut removed = false;
    for image in shared.runtime.image_list(None).await? {
        let names = image.repo_digests.iter().chain(&image.repo_tags).chain([&image.id]);
        if image.pinned || names.into_iter().any(|name| used.contains(name)) {
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
