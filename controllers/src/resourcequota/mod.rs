//! The resource quota controller: recalculates what the objects of a namespace use of its quotas. The API
//! server charges quotas as it admits objects; this controller alone gives back, after deletions and after
//! charges for writes that came to nothing.
//!
//! A charge precedes its object by the moment that the write takes. So that an object in flight is not
//! taken for one that is gone, nothing is given back right after a charge.

mod plan;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use decapod_api::quota::Item;
use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Change, Informer, ObjectMetadata};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use kube::api::PostParams;
use kube::{Api, Resource, ResourceExt};

use crate::common::catalog::{Catalog, Kind};
use crate::common::{Context, Result, Says};

const NAME: &str = "resourcequota-controller";

/// How long after a charge nothing is given back: far longer than an admitted write takes.
const SETTLE: Duration = Duration::from_millis(500);

/// How long giving back may be put off by ever new charges: then a busy namespace gets what is its due.
const PATIENCE: Duration = Duration::from_secs(5);

/// When quotas are recalculated without a cause, as often as in Kubernetes: pods that should long have
/// ended stop being charged as time goes by.
const RESYNC: Duration = Duration::from_secs(300);

struct Controller {
    context: Context,
    catalog: Catalog,
    queue: Queue<ObjectKey>,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    /// The kinds beside these that some quota counts, by their qualified name.
    counted: Mutex<BTreeMap<String, Counted>>,
    /// When a quota was charged last, and since when giving back has been put off.
    charges: Mutex<HashMap<ObjectKey, Charges>>,
}

/// A kind that is only counted.
#[derive(Clone)]
struct Counted {
    kind: Kind,
    objects: Informer<ObjectMetadata>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Charges {
    last: Option<Duration>,
    waiting_since: Option<Duration>,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, catalog: &Catalog, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let informers = &context.informers;
    let controller = Arc::new(Controller {
        context: context.clone(),
        catalog: catalog.clone(),
        queue: queue.clone(),
        quotas: informers.of(),
        pods: informers.of(),
        services: informers.of(),
        claims: informers.of(),
        counted: Mutex::default(),
        charges: Mutex::default(),
    });
    let supervisor = &context.supervisor;
    let noting = controller.clone();
    reconcile::feed(supervisor, NAME, controller.quotas.subscribe(), &queue, move |change| {
        noting.note(change);
        [change.key.clone()]
    });
    let clock = context.clock.clone();
    controller.follow(&controller.pods, move |old, new| {
        let now = clock.now();
        Item::Pod(old).usage(now) != Item::Pod(new).usage(now)
            || deadline(old).is_some() != deadline(new).is_some()
    });
    let clock = context.clock.clone();
    controller.follow(&controller.services, move |old, new| {
        Item::Service(old).usage(clock.now()) != Item::Service(new).usage(clock.now())
    });
    let clock = context.clock.clone();
    controller.follow(&controller.claims, move |old, new| {
        Item::Claim(old).usage(clock.now()) != Item::Claim(new).usage(clock.now())
    });
    reconcile::run(supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

fn deadline(pod: &Pod) -> Option<i64> {
    pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds)
}

impl Controller {
    /// Recalculates a namespace's quotas when an object goes or `differs`; when one comes, a little later:
    /// its charge is there already, and is only checked.
    fn follow<K, F>(&self, informer: &Informer<K>, differs: F)
    where
        K: Resource + Send + Sync + 'static,
        F: Fn(&K, &K) -> bool + Send + 'static,
    {
        let (quotas, queue) = (self.quotas.clone(), self.queue.clone());
        reconcile::feed(&self.context.supervisor, NAME, informer.subscribe(), &self.queue, move |change| {
            let concerned = || {
                let quotas = quotas.list_in(&change.key.namespace);
                quotas.iter().map(|quota| ObjectKey::of(&**quota)).collect::<Vec<_>>()
            };
            match (&change.old, &change.new) {
                (Some(old), Some(new)) if !differs(old, new) => Vec::new(),
                (None, Some(_)) => {
                    concerned().into_iter().for_each(|key| queue.add_after(key, SETTLE * 2));
                    Vec::new()
                }
                _ => concerned(),
            }
        });
    }

    /// Notes when a quota was charged.
    fn note(&self, change: &Change<ResourceQuota>) {
        let mut charges = lock(&self.charges);
        match (&change.old, &change.new) {
            (_, None) => drop(charges.remove(&change.key)),
            (Some(old), Some(new)) if plan::was_charged(old, new) => {
                charges.entry(change.key.clone()).or_default().last = Some(self.context.clock.monotonic());
            }
            _ => {}
        }
    }

    /// How long giving back has to wait still.
    fn must_wait(&self, key: &ObjectKey) -> Option<Duration> {
        let now = self.context.clock.monotonic();
        let mut charges = lock(&self.charges);
        let charges = charges.entry(key.clone()).or_default();
        let quiet = charges.last.map_or(SETTLE, |last| now.saturating_sub(last));
        let since = *charges.waiting_since.get_or_insert(now);
        let left = SETTLE.checked_sub(quiet).filter(|left| !left.is_zero());
        left.filter(|_| now.saturating_sub(since) < PATIENCE)
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.quotas.synced().await;
        let Some(quota) = self.quotas.get(key) else { return Ok(None) };
        if quota.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        self.pods.synced().await;
        self.services.synced().await;
        self.claims.synced().await;
        let counted = self.counted(&quota).await?;
        let used = self.used(&quota, &counted);
        if plan::gives_back(&quota, &used)
            && let Some(wait) = self.must_wait(key)
        {
            return Ok(Some(wait));
        }
        if let Some(charges) = lock(&self.charges).get_mut(key) {
            charges.waiting_since = None;
        }
        if let Some(status) = plan::status(&quota, &used) {
            let mut wanted = ResourceQuota::clone(&quota);
            wanted.status = Some(status);
            let api: Api<ResourceQuota> = Api::namespaced(self.context.client.clone(), &key.namespace);
            // The version that was looked at is the precondition: it may have been charged meanwhile.
            match api.replace_status(&key.name, &PostParams::default(), &wanted).await {
                Ok(_) => {}
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error).says("write the status of a resource quota"),
            }
        }
        Ok(Some(RESYNC))
    }

    fn used(&self, quota: &ResourceQuota, counted: &[Counted]) -> decapod_api::kinds::Amounts {
        let namespace = quota.namespace().unwrap_or_default();
        let (pod, service, claim) = (Pod::default(), Service::default(), PersistentVolumeClaim::default());
        let mut kinds = vec![Item::Pod(&pod), Item::Service(&service), Item::Claim(&claim)];
        kinds.extend(counted.iter().map(Counted::item));
        let pods = self.pods.list_in(&namespace);
        let services = self.services.list_in(&namespace);
        let claims = self.claims.list_in(&namespace);
        let items = pods.iter().map(|pod| Item::Pod(pod));
        let items = items.chain(services.iter().map(|service| Item::Service(service)));
        let items = items.chain(claims.iter().map(|claim| Item::Claim(claim)));
        let others = counted.iter().flat_map(|counted| {
            let count = counted.objects.list_in(&namespace).len();
            std::iter::repeat_n(counted.item(), count)
        });
        plan::used(quota, &kinds, items.chain(others), self.context.clock.now())
    }

    /// The kinds that this quota only counts, each with its mirror.
    async fn counted(&self, quota: &ResourceQuota) -> Result<Vec<Counted>> {
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
        let names: Vec<String> = hard.into_keys().collect();
        let mut found = Vec::new();
        for name in &names {
            let kind = name.strip_prefix("count/").unwrap_or(name);
            let own = matches!(kind, "pods" | "services" | "persistentvolumeclaims");
            let plain = !name.starts_with("count/") && (kind.contains('.') || kind.contains('/'));
            if own || plain {
                continue;
            }
            let known = lock(&self.counted).get(kind).cloned();
            match known {
                Some(counted) => found.push(counted),
                None => found.extend(self.discover(kind).await?),
            }
        }
        for counted in &found {
            counted.objects.synced().await;
        }
        Ok(found)
    }

    async fn discover(&self, name: &str) -> Result<Option<Counted>> {
        let find = |kinds: &[Kind]| {
            kinds.iter().find(|kind| kind.namespaced && kind.can("list") && kind.name() == name).cloned()
        };
        let kind = match find(&self.catalog.kinds()) {
            Some(kind) => Some(kind),
            None => find(&self.catalog.refresh().await?),
        };
        let Some(kind) = kind else { return Ok(None) };
        let objects = self.context.informers.metadata(&kind.resource);
        let counted = Counted { kind, objects };
        let mut all = lock(&self.counted);
        if !all.contains_key(name) {
            all.insert(name.to_owned(), counted.clone());
            // The objects themselves say nothing to quotas but that they are there.
            self.follow(&counted.objects, |_, _| false);
        }
        Ok(Some(counted))
    }
}

impl Counted {
    fn item(&self) -> Item<'_> {
        Item::Other(&self.kind.resource.group, &self.kind.resource.plural)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a lock is held, so what it guards is whole even if it is poisoned.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
