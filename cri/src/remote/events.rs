//! What happens in a runtime: by its events, or by looking where it has none (containerd before 1.7).

use std::collections::BTreeMap;
use std::time::Duration;

use decapod_client::clock;
use decapod_client::error::chain;
use decapod_proto::cri;
use decapod_proto::cri::ContainerEventType as Kind;
use decapod_runtime::{Result, Runtime};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::{Code, Response, Status, Streaming};

use super::Remote;
use super::call::any;
use crate::status;

/// Some runtimes say nothing before the first event: one that has not refused by then has subscribed us.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// How often a runtime without events is looked at, as Kubernetes' kubelet does.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Events = BoxStream<'static, cri::ContainerEventResponse>;
type Subscribed = Result<Response<Streaming<cri::ContainerEventResponse>>, Status>;

/// The events of a runtime, from now on.
pub(super) async fn follow(remote: &Remote) -> Result<Events> {
    let mut client = remote.runtime.clone();
    let mut call = Box::pin(async move { client.get_container_events(cri::GetEventsRequest {}).await });
    match clock::timeout(&*remote.host.clock, REFUSED_WITHIN, &mut call).await {
        Some(Err(refused)) if refused.code() == Code::Unimplemented => look(remote.clone()).await,
        Some(Err(refused)) => Err(status::error(refused, any("follow the runtime's events"))),
        Some(answer) => Ok(events(answer)),
        None => Ok(stream::once(call).flat_map(events).boxed()),
    }
}

/// The events themselves; an error is their end.
fn events(answer: Subscribed) -> Events {
    let stream = match answer {
        Ok(answer) => answer.into_inner(),
        Err(error) => {
            tracing::warn!(error = chain(&error), "the runtime gives no events");
            return stream::empty().boxed();
        }
    };
    let until_error = stream.scan((), |(), event| {
        if let Err(error) = &event {
            tracing::debug!(error = chain(error), "the runtime's events ended");
        }
        std::future::ready(event.ok())
    });
    until_error.boxed()
}

/// What there is, by id: the sandbox that it belongs to, and how far it is.
type Seen = BTreeMap<String, (String, Stage)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Created,
    Running,
    Ended,
}

/// Events of what has changed between two looks.
async fn look(remote: Remote) -> Result<Events> {
    let before = seen(&remote).await?;
    let changes = stream::unfold((remote, before), |(remote, before)| async move {
        remote.host.clock.sleep(LOOK_EVERY).await;
        let now = match seen(&remote).await {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the runtime cannot be looked at");
                return None;
            }
        };
        let mut events = Vec::new();
        for (id, sandbox, kind) in changes(&before, &now) {
            events.push(event(&remote, id, &sandbox, kind).await);
        }
        Some((stream::iter(events), (remote, now)))
    });
    Ok(changes.flatten().boxed())
}

async fn seen(remote: &Remote) -> Result<Seen> {
    let mut seen = Seen::new();
    for sandbox in remote.sandbox_list(None).await? {
        let stage = match sandbox.state() {
            cri::PodSandboxState::SandboxReady => Stage::Running,
            cri::PodSandboxState::SandboxNotready => Stage::Ended,
        };
        seen.insert(sandbox.id.clone(), (sandbox.id, stage));
    }
    for container in remote.container_list(None).await? {
        let stage = match container.state() {
            cri::ContainerState::ContainerCreated => Stage::Created,
            cri::ContainerState::ContainerRunning => Stage::Running,
            cri::ContainerState::ContainerExited | cri::ContainerState::ContainerUnknown => Stage::Ended,
        };
        seen.insert(container.id, (container.pod_sandbox_id, stage));
    }
    Ok(seen)
}

/// What must have happened, each thing in the order of a life.
fn changes(before: &Seen, now: &Seen) -> Vec<(String, String, Kind)> {
    let mut changes = Vec::new();
    for (id, (sandbox, stage)) in now {
        let old = before.get(id).map(|(_, stage)| *stage);
        let lives = [
            (Stage::Created, Kind::ContainerCreatedEvent),
            (Stage::Running, Kind::ContainerStartedEvent),
            (Stage::Ended, Kind::ContainerStoppedEvent),
        ];
        for (reached, kind) in lives {
            if reached <= *stage && old.is_none_or(|old| old < reached) {
                changes.push((id.clone(), sandbox.clone(), kind));
            }
        }
    }
    for (id, (sandbox, stage)) in before {
        if !now.contains_key(id) {
            if *stage < Stage::Ended {
                changes.push((id.clone(), sandbox.clone(), Kind::ContainerStoppedEvent));
            }
            changes.push((id.clone(), sandbox.clone(), Kind::ContainerDeletedEvent));
        }
    }
    changes
}

/// An event with the statuses of this moment, as far as they can be had.
async fn event(remote: &Remote, id: String, sandbox: &str, kind: Kind) -> cri::ContainerEventResponse {
    let filter = cri::ContainerFilter { pod_sandbox_id: sandbox.to_owned(), ..Default::default() };
    let mut containers_statuses = Vec::new();
    for container in remote.container_list(Some(&filter)).await.unwrap_or_else(|_| Vec::new()) {
        // Gone meanwhile: the next look says so.
        containers_statuses.extend(remote.container_status(&container.id).await.ok());
    }
    cri::ContainerEventResponse {
        container_id: id,
        container_event_type: kind.into(),
        created_at: i64::try_from(remote.host.clock.now().as_nanosecond()).unwrap_or(i64::MAX),
        pod_sandbox_status: remote.sandbox_status(sandbox).await.ok(),
        containers_statuses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(entries: &[(&str, Stage)]) -> Seen {
        entries.iter().map(|(id, stage)| ((*id).to_owned(), ("pod".to_owned(), *stage))).collect()
    }

    #[test]
    fn what_was_missed_between_two_looks_is_told() {
        let before = seen(&[("a", Stage::Created), ("b", Stage::Running), ("c", Stage::Ended)]);
        let now = seen(&[("a", Stage::Running), ("d", Stage::Ended)]);
        let told = changes(&before, &now);
        let told: Vec<_> = told.iter().map(|(id, _, kind)| (id.as_str(), *kind)).collect();
        assert_eq!(
            told,
            [
                ("a", Kind::ContainerStartedEvent),
                ("d", Kind::ContainerCreatedEvent),
                ("d", Kind::ContainerStartedEvent),
                ("d", Kind::ContainerStoppedEvent),
                ("b", Kind::ContainerStoppedEvent),
                ("b", Kind::ContainerDeletedEvent),
                ("c", Kind::ContainerDeletedEvent),
            ]
        );
        assert!(changes(&now, &now).is_empty());
    }
}
