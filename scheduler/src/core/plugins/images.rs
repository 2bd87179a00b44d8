//! ImageLocality: nodes that have the pod's images need not pull them.

use super::MAX_SCORE;
use crate::core::node::NodeInfo;
use crate::core::pod::PodInfo;
use crate::core::snapshot::Snapshot;

/// Below this an image is pulled in no time, above it (per container) more makes no difference: Kubernetes'
/// thresholds in bytes.
const SMALL: f64 = 23.0 * 1024.0 * 1024.0;
const LARGE: f64 = 1000.0 * 1024.0 * 1024.0;

/// More for nodes with more of the pod's images. Images that few nodes have count less, lest all pods of
/// a new image crowd on the node that pulled it first.
pub(super) fn score(pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> i64 {
    if pod.images.is_empty() || node.images.is_empty() {
        return 0;
    }
    let local = pod.images.iter().filter_map(|image| Some((image, *node.images.get(image)?)));
    let bytes: f64 = local.map(|(image, size)| size as f64 * snapshot.image_spread(image)).sum();
    let large = LARGE * pod.images.len() as f64;
    let share = (bytes.clamp(SMALL, large) - SMALL) / (large - SMALL);
    // The share lies between 0 and 1.
    (share * MAX_SCORE as f64) as i64
}
