//! Kubernetes Events: what happened to an object, for people who ask `kubectl describe`.
//!
//! Events are best effort by their nature: recording never blocks and never fails the caller. What
//! repeats is counted on the Event that exists, what floods is held back per object, and what the API
//! server does not take after a few tries is dropped and logged.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;

use crate::clock::Clock;
use crate::error::{self, ErrorExt};
use crate::task::Supervisor;

/// Events that wait to be written: about what a busy node says in a minute. More are dropped, because a
/// component must not grow by what it has to tell.
const BACKLOG: usize = 1000;

/// Distinct events that are remembered to count their repetitions, as many as Kubernetes remembers.
const REMEMBERED: usize = 4096;

/// Events about one object that may come at once, and the time that restores one more: Kubernetes' spam
/// filter.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// How often and how fast an event is offered to an API server that does not answer.
const TRIES: u32 = 4;
const RETRY: Duration = Duration::from_secs(2);

/// An event's message is cut to what the API server accepts.
const MESSAGE_LIMIT: usize = 1024;

/// Records Events in the name of one component. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    notes: mpsc::Sender<Note>,
}

/// Whether an Event tells of normal operation or of something that may need attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// `Normal`: for information.
    Normal,
    /// `Warning`: something did not go well.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Debug)]
struct Note {
    object: ObjectReference,
    severity: Severity,
    reason: String,
    message: String,
}

impl Recorder {
    /// A recorder for the component `component` (such as `default-scheduler`) on the node `host`, empty
    /// where the component has no node. Its writer runs as a task of `supervisor`.
    pub fn new(
        client: Client,
        component: impl Into<String>,
        host: impl Into<String>,
        supervisor: &Supervisor,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (notes, backlog) = mpsc::channel(BACKLOG);
        let writer = Writer {
            client,
            component: component.into(),
            host: host.into(),
            clock,
            known: HashMap::new(),
            budgets: HashMap::new(),
            stamp: 0,
        };
        supervisor.spawn_until_shutdown("event-recorder", writer.run(backlog));
        Self { notes }
    }

    /// Tells of normal operation on `object`: `reason` is a CamelCase word, `message` is for people.
    pub fn normal<K>(&self, object: &K, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.record(object.object_ref(&()), Severity::Normal, reason, message);
    }

    /// Warns of something about `object`.
    pub fn warning<K>(&self, object: &K, reason: &str, message: impl Into<String>)
    where
        K: Resource<DynamicType = ()>,
    {
        self.record(object.object_ref(&()), Severity::Warning, reason, message);
    }

    /// Records an event about whatever `object` refers to, for instance with the field path of a container.
    pub fn record(
        &self,
        object: ObjectReference,
        severity: Severity,
        reason: &str,
        message: impl Into<String>,
    ) {
        let note = Note { object, severity, reason: reason.to_owned(), message: message.into() };
        tracing::debug!(
            object = note.object.name,
            namespace = note.object.namespace,
            reason = note.reason,
            message = note.message,
            "event"
        );
        if let Err(error) = self.notes.try_send(note) {
            tracing::warn!(error = %error, "an event was dropped");
        }
    }
}

/// What makes two events the same: all but the time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sameness {
    uid: String,
    namespace: String,
    kind: String,
    name: String,
    field_path: String,
    severity: Severity,
    reason: String,
    message: String,
}

/// The Event that stands for all repetitions of one event.
#[derive(Debug)]
struct Known {
    name: String,
    count: i32,
    last: Duration,
}

/// What one object may still say.
#[derive(Debug)]
struct Budget {
    left: f64,
    at: Duration,
}

struct Writer {
    client: Client,
    component: String,
    host: String,
    clock: Arc<dyn Clock>,
    known: HashMap<Sameness, Known>,
    budgets: HashMap<String, Budget>,
    /// What made the last name unique: the time in nanoseconds, or one more than the last.
    stamp: i128,
}

impl Writer {
    async fn run(mut self, mut backlog: mpsc::Receiver<Note>) {
        while let Some(note) = backlog.recv().await {
            let subject = format!("{}/{}", text(&note.object.uid), text(&note.object.name));
            if !self.may_say(subject) {
                tracing::debug!(
                    object = note.object.name,
                    reason = note.reason,
                    "too many events: held back"
                );
                continue;
            }
            for attempt in 1.. {
                let Err(error) = self.write(&note).await else { break };
                let hopeless =
                    matches!(&error, kube::Error::Api(status) if status.code < 500 && status.code != 429);
                if hopeless || attempt == TRIES {
                    let error = error::chain(&error);
                    tracing::debug!(
                        object = note.object.name,
                        reason = note.reason,
                        error,
                        "an event was dropped"
                    );
                    break;
                }
                self.clock.sleep(RETRY).await;
            }
        }
    }

    /// Takes one event from the budget of `subject`.
    fn may_say(&mut self, subject: String) -> bool {
        let now = self.clock.monotonic();
        if self.budgets.len() >= REMEMBERED {
            // Whoever has a full budget again needs no entry.
            let refilled = REFILL * BURST;
            self.budgets.retain(|_, budget| now.saturating_sub(budget.at) < refilled);
        }
        let budget = self.budgets.entry(subject).or_insert(Budget { left: f64::from(BURST), at: now });
        let regained = now.saturating_sub(budget.at).as_secs_f64() / REFILL.as_secs_f64();
        budget.left = (budget.left + regained).min(f64::from(BURST));
        budget.at = now;
        let may = budget.left >= 1.0;
        if may {
            budget.left -= 1.0;
        }
        may
    }

    async fn write(&mut self, note: &Note) -> kube::Result<()> {
        let sameness = sameness(note);
        let namespace = match sameness.namespace.as_str() {
            "" => "default",
            namespace => namespace,
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let now = self.clock.now();
        let monotonic = self.clock.monotonic();
        if let Some(known) = self.known.get_mut(&sameness) {
            let count = known.count + 1;
            let patch = serde_json::json!({ "count": count, "lastTimestamp": Time(now) });
            match api.patch(&known.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    (known.count, known.last) = (count, monotonic);
                    return Ok(());
                }
                // It has expired: begin a new one.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        self.stamp = now.as_nanosecond().max(self.stamp + 1);
        let name = format!("{}.{:x}", sameness.name, self.stamp);
        let event = self.event(note, namespace, &name, Time(now));
        api.create(&PostParams::default(), &event).await?;
        self.remember(sameness, Known { name, count: 1, last: monotonic });
        Ok(())
    }

    fn remember(&mut self, sameness: Sameness, known: Known) {
        if self.known.len() >= REMEMBERED {
            // Forgets the older half at once, so that the cost is spread over many events.
            let mut ages: Vec<_> = self.known.values().map(|known| known.last).collect();
            ages.sort_unstable();
            let median = ages[ages.len() / 2];
            self.known.retain(|_, known| known.last > median);
        }
        self.known.insert(sameness, known);
    }

    fn event(&self, note: &Note, namespace: &str, name: &str, now: Time) -> Event {
        let mut message = note.message.clone();
        if message.len() > MESSAGE_LIMIT {
            let end = (0..=MESSAGE_LIMIT).rev().find(|&end| message.is_char_boundary(end));
            message.truncate(end.unwrap_or(0));
        }
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: note.object.clone(),
            type_: Some(note.severity.as_str().to_owned()),
            reason: Some(note.reason.clone()),
            message: Some(message),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: Some(self.host.clone()).filter(|host| !host.is_empty()),
            }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        }
    }
}

fn sameness(note: &Note) -> Sameness {
    Sameness {
        uid: text(&note.object.uid),
        namespace: text(&note.object.namespace),
        kind: text(&note.object.kind),
        name: text(&note.object.name),
        field_path: text(&note.object.field_path),
        severity: note.severity,
        reason: note.reason.clone(),
        message: note.message.clone(),
    }
}

fn text(field: &Option<String>) -> String {
    field.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::Value;

    use super::*;
    use crate::clock::ManualClock;
    use crate::testing::Objects;

    fn pod(name: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.namespace = Some("ns".to_owned());
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod
    }

    struct World {
        server: Objects,
        clock: Arc<ManualClock>,
        supervisor: Supervisor,
        recorder: Recorder,
    }

    fn world() -> World {
        let (server, clock) = (Objects::default(), Arc::new(ManualClock::default()));
        let supervisor = Supervisor::new();
        let recorder = Recorder::new(server.client(), "tester", "n1", &supervisor, clock.clone());
        World { server, clock, supervisor, recorder }
    }

    impl World {
        /// The events, once they are as `until` wants them.
        async fn events(&self, until: impl Fn(&[Value]) -> bool) -> Vec<Value> {
            for _ in 0..1000 {
                let events: Vec<Value> = self.server.all().into_values().collect();
                if until(&events) {
                    return events;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            panic!("not reached within 2 s: {:?}", self.server.all());
        }
    }

    #[tokio::test]
    async fn repetitions_are_counted_on_one_event() {
        let world = world();
        for _ in 0..3 {
            world.recorder.warning(&pod("p"), "Failed", "it failed");
        }
        let events = world.events(|events| events.iter().any(|event| event["count"] == 3)).await;
        assert_eq!(events.len(), 1);
        let event = &events[0];
        assert_eq!((&event["type"], &event["reason"]), (&"Warning".into(), &"Failed".into()));
        assert_eq!(event["source"], serde_json::json!({"component": "tester", "host": "n1"}));
        assert_eq!(event["involvedObject"]["kind"], "Pod");
        // An Event that has expired begins anew.
        world.server.clear();
        world.recorder.warning(&pod("p"), "Failed", "it failed");
        world.events(|events| events.len() == 1 && events[0]["count"] == 1).await;
        world.supervisor.shutdown(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn a_flood_is_held_back_per_object() {
        let world = world();
        for number in 0..40 {
            world.recorder.normal(&pod("noisy"), "Chatter", format!("number {number}"));
        }
        world.recorder.normal(&pod("quiet"), "Word", "once");
        let is_of = |event: &&Value, name: &str| event["involvedObject"]["name"] == name;
        let events = world.events(|events| events.iter().any(|event| is_of(&event, "quiet"))).await;
        assert_eq!(events.iter().filter(|event| is_of(event, "noisy")).count(), 25);
        world.clock.advance(Duration::from_secs(300));
        world.recorder.normal(&pod("noisy"), "Chatter", "again");
        world.events(|events| events.iter().any(|event| event["message"] == "again")).await;
        world.supervisor.shutdown(Duration::from_secs(5)).await;
    }
}
