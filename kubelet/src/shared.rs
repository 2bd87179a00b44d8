//! What all parts of one kubelet share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use decapod_client::clock::Clock;
use decapod_client::informer::Informer;
use decapod_client::task::Supervisor;
use decapod_runtime::Runtime;
use k8s_openapi::api::core::v1::{Node, Pod, Service};

use crate::Options;
use crate::cgroup::Cgroups;
use crate::eviction::Evictions;
use crate::files::Dns;
use crate::images::Images;
use crate::measures::Measures;
use crate::pod::spec;
use crate::probe::Probes;
use crate::statics::{self, Statics};
use crate::tell::Tell;
use crate::traffic::Traffic;
use crate::volume::{Folders, Volumes};
use crate::wake::Wakes;
use crate::worker::{Admitted, mirrored};

/// Handles and facts that do not change while the kubelet runs.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) client: kube::Client,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) traffic: Arc<dyn Traffic>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) supervisor: Supervisor,
    pub(crate) pods: Informer<Pod>,
    pub(crate) services: Informer<Service>,
    pub(crate) node: Informer<Node>,
    pub(crate) cgroups: Cgroups,
    pub(crate) volumes: Volumes,
    pub(crate) folders: Folders,
    pub(crate) images: Images,
    pub(crate) probes: Probes,
    pub(crate) tell: Tell,
    pub(crate) evictions: Evictions,
    pub(crate) measures: Measures,
    pub(crate) wakes: Wakes,
    pub(crate) admitted: Admitted,
    pub(crate) statics: Arc<Statics>,
    /// The node's addresses as text, the primary first.
    pub(crate) host_ips: Vec<String>,
    /// The scheme of container ids.
    pub(crate) runtime_name: String,
    /// Bytes of memory that the machine has.
    pub(crate) memory: i64,
}

impl Shared {
    /// Below this folder each pod has a folder of logs.
    pub(crate) fn logs_root(&self) -> PathBuf {
        logs_root(&self.options.data_dir)
    }

    /// The uid under which the node runs a pod: that of a mirror is the API server's alone.
    pub(crate) fn uid_here(&self, pod: &Pod) -> String {
        let own = mirrored(pod).and_then(|_| self.statics.get(&statics::key_of(pod)));
        spec::uid(own.as_deref().unwrap_or(pod)).to_owned()
    }

    /// The node's own resolv.conf; a node without one has no resolver to offer.
    pub(crate) fn node_dns(&self) -> Dns {
        match std::fs::read_to_string(&self.options.resolv_conf) {
            Ok(text) => Dns::parse(&text),
            Err(error) => {
                tracing::warn!(path = %self.options.resolv_conf.display(), %error, "no resolver of the node");
                Dns::default()
            }
        }
    }
}

/// Where logs lie below the data directory.
pub(crate) fn logs_root(data_dir: &Path) -> PathBuf {
    data_dir.join("logs/pods")
}
