//! API priority and fairness (KEP-1040): which requests go first when there are more than the server works on at once.
//!
//! Flow schemas sort requests into the flows of priority levels; levels have seats, and queues for who finds none. What
//! is configured is in the cluster's own objects ([`Flow::set_schema`], [`Flow::set_level`]).
//!
//! **Invariants**: a request holds at most one seat, and gives it back however it ends; no lock is held while anything
//! waits; there is a schema for every request, whatever is deleted.

mod bounds;
mod classify;
mod metrics;
mod seats;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::auth::{Attributes, UserInfo};
use bounds::Shares;
use metrics::{Metrics, Series};
use seats::{Entry, Refusal, Seats};

/// A request waits for its seat at most this part of the time that it has.
const PATIENCE: u32 = 4;
const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
const CATCH_ALL: &str = "catch-all";
const EXEMPT: &str = "exempt";

/// Priority and fairness of one server.
pub(crate) struct Flow {
    /// The seats of all levels that are not exempt.
    total: usize,
    objects: Mutex<Objects>,
    /// By precedence.
    schemas: RwLock<Arc<Vec<Arc<Schema>>>>,
    shared: Arc<Shared>,
    /// The objects changed.
    pub(crate) changed: Notify,
}

struct Shared {
    seats: Mutex<Seats>,
    metrics: Metrics,
}

/// The stored objects, by name.
#[derive(Default)]
struct Objects {
    schemas: BTreeMap<String, Arc<FlowSchema>>,
    levels: BTreeMap<String, PriorityLevelConfiguration>,
}

/// A flow schema with its level.
pub(crate) struct Schema {
    object: Arc<FlowSchema>,
    level: Arc<str>,
    exempt: bool,
    uids: [Option<HeaderValue>; 2],
    series: Series,
}

/// A seat, given back when dropped.
pub(crate) struct Seat {
    schema: Arc<Schema>,
    shared: Arc<Shared>,
    since: Instant,
    watch: bool,
}

/// The request was turned away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of the locks is held, so what it guards is whole even if it is poisoned.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Flow {
    /// With this many seats for all levels together; without objects, only with the two mandatory schemas.
    pub(crate) fn new(total: usize) -> Self {
        let flow = Self {
            total,
            objects: Mutex::default(),
            schemas: RwLock::default(),
            shared: Arc::new(Shared { seats: Mutex::default(), metrics: Metrics::new() }),
            changed: Notify::new(),
        };
        flow.digest(&lock(&flow.objects));
        flow
    }

    /// Adds what is counted to what is shown.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    /// A flow schema is stored like this now, or no more.
    pub(crate) fn set_schema(&self, name: &str, schema: Option<FlowSchema>) {
        let mut objects = lock(&self.objects);
        match schema {
            Some(schema) => objects.schemas.insert(name.to_owned(), Arc::new(schema)),
            None => objects.schemas.remove(name),
        };
        self.digest(&objects);
    }

    /// A priority level is stored like this now, or no more.
    pub(crate) fn set_level(&self, name: &str, level: Option<PriorityLevelConfiguration>) {
        let mut objects = lock(&self.objects);
        match level {
            Some(level) => objects.levels.insert(name.to_owned(), level),
            None => objects.levels.remove(name),
        };
        self.digest(&objects);
    }

    /// The names of all stored schemas, each with the level it refers to and whether that is stored.
    pub(crate) fn references(&self) -> Vec<(String, String, bool)> {
        let objects = lock(&self.objects);
        let reference = |(name, schema): (&String, &Arc<FlowSchema>)| {
            let level = refers_to(schema).to_owned();
            let there = objects.levels.contains_key(&level);
            (name.clone(), level, there)
        };
        objects.schemas.iter().map(reference).collect()
    }

    /// Makes the objects count.
    fn digest(&self, objects: &Objects) {
        let mut levels: BTreeMap<Arc<str>, (Shares, bool, Option<HeaderValue>)> = BTreeMap::new();
        for name in [EXEMPT, CATCH_ALL] {
            let shares = mandatory(name).spec.as_ref().map(Shares::of).unwrap_or_default();
            levels.insert(name.into(), (shares, name == EXEMPT, None));
        }
        for (name, level) in &objects.levels {
            let Some(spec) = &level.spec else { continue };
            let uid = header(level.metadata.uid.as_deref());
            levels.insert(name.as_str().into(), (Shares::of(spec), spec.type_ == "Exempt", uid));
        }
        let mut schemas: Vec<Arc<FlowSchema>> = objects.schemas.values().cloned().collect();
        let missing = |name: &&str| !objects.schemas.contains_key(*name);
        schemas.extend(
            [EXEMPT, CATCH_ALL].iter().filter(|name| missing(name)).map(|name| mandatory_schema(name)),
        );
        schemas.sort_by_key(|schema| {
            let precedence = schema.spec.as_ref().and_then(|spec| spec.matching_precedence);
            (precedence.unwrap_or(1_000), schema.metadata.name.clone())
        });
        let made = schemas.into_iter().filter_map(|object| {
            let (level, (_, exempt, uid)) = levels.get_key_value(refers_to(&object))?;
            let name = object.metadata.name.as_deref().unwrap_or_default();
            let series = self.shared.metrics.series(name, level);
            let uids = [header(object.metadata.uid.as_deref()), uid.clone()];
            Some(Arc::new(Schema { level: level.clone(), exempt: *exempt, uids, series, object }))
        });
        let made: Arc<Vec<Arc<Schema>>> = Arc::new(made.collect());
        let old = {
            let mut current = self.schemas.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, made.clone())
        };
        for gone in old.iter().filter(|old| !made.iter().any(|new| new.same_series(old))) {
            self.shared.metrics.forget(&gone.series);
        }
        let names: Vec<&Arc<str>> = levels.keys().collect();
        let shares: Vec<Shares> = levels.values().map(|(shares, ..)| *shares).collect();
        let bounds = bounds::divide(self.total, &shares);
        self.shared.metrics.levels(names.iter().map(|name| &***name).zip(bounds.iter().copied()));
        let limited = names.into_iter().zip(bounds).filter(|(name, _)| !levels[*name].1);
        lock(&self.shared.seats).configure(limited.map(|(name, bounds)| (name.clone(), bounds)));
        self.changed.notify_one();
    }

    /// The schema of a request.
    pub(crate) fn classify(&self, user: &UserInfo, a: &Attributes) -> Arc<Schema> {
        let schemas = self.schemas.read().unwrap_or_else(PoisonError::into_inner).clone();
        let matching = schemas
            .iter()
            .find(|schema| schema.object.spec.as_ref().is_some_and(|spec| classify::matches(spec, user, a)));
        let catch_all = || schemas.iter().find(|schema| schema.is(CATCH_ALL));
        let chosen = matching.or_else(catch_all).or(schemas.last());
        chosen.cloned().expect("the mandatory schemas are always there")
    }

    /// A seat for a request of this schema that may take `limit` altogether.
    pub(crate) async fn seat(
        &self,
        schema: &Arc<Schema>,
        user: &UserInfo,
        a: &Attributes,
        limit: Duration,
    ) -> Result<Seat, Refused> {
        let watch = a.verb == "watch";
        let started = Instant::now();
        let seat =
            || Seat { schema: schema.clone(), shared: self.shared.clone(), since: Instant::now(), watch };
        if schema.exempt {
            schema.series.seated(Duration::ZERO);
            return Ok(seat());
        }
        let mut hasher = DefaultHasher::new();
        let distinguisher = schema.object.spec.as_ref().map(|spec| classify::distinguisher(spec, user, a));
        (schema.object.metadata.name.as_deref(), distinguisher).hash(&mut hasher);
        let entry = lock(&self.shared.seats).enter(&schema.level, hasher.finish());
        let refused = match entry {
            Entry::Seated => {
                schema.series.seated(Duration::ZERO);
                return Ok(seat());
            }
            Entry::Refused(why) => why,
            Entry::Waits { ticket, go, length } => {
                schema.series.enqueued(length);
                let waiting = Waiting { schema, shared: &self.shared, ticket, go, seated: false };
                match waiting.until(started + limit / PATIENCE).await {
                    true => {
                        schema.series.seated(started.elapsed());
                        return Ok(seat());
                    }
                    false => Refusal::TimeOut,
                }
            }
        };
        schema.series.refused(refused, started.elapsed());
        Err(Refused)
    }
}

fn header(uid: Option<&str>) -> Option<HeaderValue> {
    HeaderValue::from_str(uid?).ok()
}

fn refers_to(schema: &FlowSchema) -> &str {
    schema.spec.as_ref().map_or("", |spec| &spec.priority_level_configuration.name)
}

/// A mandatory level, while it is not stored.
fn mandatory(name: &str) -> PriorityLevelConfiguration {
    let spec = if name == EXEMPT {
        serde_json::json!({"type": "Exempt"})
    } else {
        serde_json::json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5,
            "limitResponse": {"type": "Reject"}}})
    };
    serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "spec": spec}))
        .expect("a constant level")
}

/// A mandatory schema, while it is not stored.
fn mandatory_schema(name: &str) -> Arc<FlowSchema> {
    let (precedence, groups) = if name == EXEMPT {
        (1, &["system:masters"][..])
    } else {
        (10_000, &["system:unauthenticated", "system:authenticated"][..])
    };
    let subject = |group| serde_json::json!({"kind": "Group", "group": {"name": group}});
    let subjects: Vec<_> = groups.iter().map(subject).collect();
    let spec = serde_json::json!({"matchingPrecedence": precedence, "priorityLevelConfiguration": {"name": name},
        "rules": [{"subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"],
                "clusterScope": true}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]});
    let schema = serde_json::json!({"metadata": {"name": name}, "spec": spec});
    Arc::new(serde_json::from_value(schema).expect("a constant schema"))
}

impl Schema {
    fn is(&self, name: &str) -> bool {
        self.object.metadata.name.as_deref() == Some(name)
    }

    fn same_series(&self, other: &Self) -> bool {
        self.object.metadata.name == other.object.metadata.name && self.level == other.level
    }

    /// Tells a client how its request was classified.
    pub(crate) fn mark(&self, headers: &mut HeaderMap) {
        for (name, uid) in [SCHEMA_UID, LEVEL_UID].into_iter().zip(&self.uids) {
            if let Some(uid) = uid {
                headers.insert(name, uid.clone());
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.schema.series.left(self.watch, self.since.elapsed());
        if !self.schema.exempt {
            lock(&self.shared.seats).leave(&self.schema.level);
        }
    }
}

/// A request in its queue; leaves it when dropped, as when its client goes away.
struct Waiting<'a> {
    schema: &'a Schema,
    shared: &'a Shared,
    ticket: u64,
    go: oneshot::Receiver<()>,
    seated: bool,
}

impl Waiting<'_> {
    /// Whether it got a seat before the deadline. The seat is then the caller's.
    async fn until(mut self, deadline: Instant) -> bool {
        let seated = tokio::time::timeout_at(deadline, &mut self.go).await.is_ok_and(|go| go.is_ok());
        // A seat that was given just now is not given back: there is no other way to know of it.
        self.seated = seated || self.go.try_recv().is_ok();
        self.seated
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.schema.series.dequeued();
        if self.seated {
            return;
        }
        let mut seats = lock(&self.shared.seats);
        if !seats.forget(&self.schema.level, self.ticket) && self.go.try_recv().is_ok() {
            seats.leave(&self.schema.level);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flow(seats: usize) -> Flow {
        let flow = Flow::new(seats);
        let level = json!({"metadata": {"name": "one", "uid": "level-uid"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 95, "limitResponse": {"type": "Queue",
            "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 2}}}}});
        flow.set_level("one", Some(serde_json::from_value(level).unwrap()));
        let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"],
            "clusterScope": true});
        let schema = json!({"metadata": {"name": "theirs", "uid": "schema-uid"}, "spec": {
            "matchingPrecedence": 500, "priorityLevelConfiguration": {"name": "one"},
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{"subjects": [{"kind": "Group", "group": {"name": "dev"}}], "resourceRules": [all]}]}});
        flow.set_schema("theirs", Some(serde_json::from_value(schema).unwrap()));
        flow
    }

    fn pods() -> Attributes {
        Attributes {
            verb: "get".into(),
            resource: "pods".into(),
            namespace: "a".into(),
            ..Attributes::default()
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn requests_are_classified_whatever_is_deleted() {
        let flow = flow(10);
        let of = |groups: &[&str]| {
            let mut user = UserInfo::new("jane", groups);
            user.mark_authenticated();
            flow.classify(&user, &pods())
        };
        let mut headers = HeaderMap::new();
        of(&["dev"]).mark(&mut headers);
        assert_eq!(
            (&headers[SCHEMA_UID], &headers[LEVEL_UID]),
            (&HeaderValue::from_static("schema-uid"), &HeaderValue::from_static("level-uid"))
        );
        assert!(of(&["dev", "system:masters"]).is(EXEMPT));
        assert!(of(&[]).is(CATCH_ALL));
        assert_eq!(flow.references(), [("theirs".to_owned(), "one".to_owned(), true)]);
        flow.set_level("one", None);
        assert!(of(&["dev"]).is(CATCH_ALL), "a dangling schema matches nothing");
        assert_eq!(flow.references(), [("theirs".to_owned(), "one".to_owned(), false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_seat_waits_a_while() {
        let flow = flow(1);
        let user = UserInfo::new("jane", &["dev"]);
        let (schema, pods) = (flow.classify(&user, &pods()), pods());
        let first = flow.seat(&schema, &user, &pods, MINUTE).await.ok().unwrap();
        let begin = Instant::now();
        assert!(flow.seat(&schema, &user, &pods, MINUTE).await.is_err());
        assert_eq!(begin.elapsed(), MINUTE / PATIENCE);
        {
            let second = std::pin::pin!(flow.seat(&schema, &user, &pods, MINUTE));
            let mut third = std::pin::pin!(flow.seat(&schema, &user, &pods, MINUTE));
            assert!(futures::poll!(second).is_pending());
            assert!(futures::poll!(&mut third).is_pending());
            assert_eq!(schema.series.inqueue.get(), 2);
            drop(first);
            // The second has the seat without knowing, and goes away with it.
            assert!(futures::poll!(&mut third).is_pending());
        }
        assert_eq!((schema.series.inqueue.get(), schema.series.executing.get()), (0, 0));
        assert!(flow.seat(&schema, &user, &pods, MINUTE).await.is_ok(), "the seat was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_in_the_queue_gets_the_seat() {
        let flow = flow(1);
        let user = UserInfo::new("jane", &["dev"]);
        let (schema, pods) = (flow.classify(&user, &pods()), pods());
        let first = flow.seat(&schema, &user, &pods, MINUTE).await.ok().unwrap();
        let mut second = std::pin::pin!(flow.seat(&schema, &user, &pods, MINUTE));
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        assert!(second.await.is_ok());
    }
}
