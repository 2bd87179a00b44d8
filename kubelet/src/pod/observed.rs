//! What the container runtime has for one pod, in the few fields that decisions need.

use std::collections::BTreeMap;
use std::time::Duration;

use decapod_proto::cri;
use jiff::Timestamp;

use super::mark;

/// One pod sandbox.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) created_at: Timestamp,
    pub(crate) ready: bool,
    /// Addresses given by the pod network; empty on the host network.
    pub(crate) ips: Vec<String>,
}

/// The state of a container, as the runtime tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

/// One container (one attempt of it).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) sandbox_id: String,
    /// The CRI attempt, which is Kubernetes' restart count.
    pub(crate) attempt: u32,
    pub(crate) state: State,
    pub(crate) created_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) hash: String,
    /// Back-off in force when it was created: see [`super::plan`].
    pub(crate) backoff: Duration,
    pub(crate) log_path: String,
    pub(crate) user: Option<(i64, i64, Vec<i64>)>,
}

/// Everything the runtime has for one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) containers: Vec<Container>,
}

impl Observed {
    pub(crate) fn new(mut sandboxes: Vec<Sandbox>, mut containers: Vec<Container>) -> Self {
        sandboxes.sort_by_key(|s| std::cmp::Reverse((s.attempt, s.created_at)));
        containers.sort_by_key(|c| std::cmp::Reverse((c.attempt, c.created_at)));
        Self { sandboxes, containers }
    }

    /// The newest sandbox, whether it is ready or not.
    pub(crate) fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }

    /// The newest attempt of a container, in whichever sandbox.
    pub(crate) fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// The newest attempt of a container inside one sandbox.
    pub(crate) fn newest_in(&self, sandbox: &str, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name && c.sandbox_id == sandbox)
    }

    /// The attempt before the newest.
    pub(crate) fn previous(&self, name: &str) -> Option<&Container> {
        self.containers.iter().filter(|c| c.name == name).nth(1)
    }

    pub(crate) fn alive(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|c| matches!(c.state, State::Running | State::Unknown))
    }
}

/// CRI times are nanoseconds since the epoch, 0 for "not yet".
fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds != 0).then(|| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()).flatten()
}

fn seconds(annotations: &std::collections::HashMap<String, String>, key: &str) -> u64 {
    // A foreign or damaged annotation means "no back-off known", which errs to restarting early once.
    annotations.get(key).and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// The sandbox that CRI describes.
pub(crate) fn sandbox(status: &cri::PodSandboxStatus) -> Sandbox {
    let mut ips = Vec::new();
    if let Some(network) = &status.network {
        if !network.ip.is_empty() {
            ips.push(network.ip.clone());
        }
        ips.extend(network.additional_ips.iter().map(|ip| ip.ip.clone()));
    }
    Sandbox {
        id: status.id.clone(),
        attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        ready: status.state == cri::PodSandboxState::SandboxReady as i32,
        ips,
    }
}

/// The container that CRI describes; `sandbox_id` comes from the list entry, which the status lacks.
pub(crate) fn container(status: &cri::ContainerStatus, sandbox_id: &str) -> Container {
    let state = match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => State::Created,
        Ok(cri::ContainerState::ContainerRunning) => State::Running,
        Ok(cri::ContainerState::ContainerExited) => State::Exited,
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => State::Unknown,
    };
    let user = status.user.as_ref().and_then(|u| u.linux.as_ref());
    Container {
        id: status.id.clone(),
        name: status.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default(),
        sandbox_id: sandbox_id.to_owned(),
        attempt: status.metadata.as_ref().map_or(0, |m| m.attempt),
        state,
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image: status.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
        image_id: status.image_ref.clone(),
        hash: status.annotations.get(mark::HASH).cloned().unwrap_or_default(),
        backoff: Duration::from_secs(seconds(&status.annotations, mark::BACKOFF)),
        log_path: status.log_path.clone(),
        user: user.map(|u| (u.uid, u.gid, u.supplemental_groups.clone())),
    }
}

/// Who a sandbox or container belongs to, by the labels that the kubelet put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: super::Uid,
}

impl Owner {
    /// `None` when something other than a kubelet made it.
    pub(crate) fn of<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Option<Self> {
        let labels: BTreeMap<&str, &str> =
            labels.into_iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        Some(Self {
            namespace: (*labels.get(mark::POD_NAMESPACE)?).to_owned(),
            name: (*labels.get(mark::POD_NAME)?).to_owned(),
            uid: (*labels.get(mark::POD_UID)?).to_owned(),
        })
    }
}
