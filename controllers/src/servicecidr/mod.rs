//! The service CIDR controller: says which ranges of Service addresses are ready, and keeps one that is to
//! go as long as a Service has an address that no other range has (KEP-1880).

mod plan;

use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::Api;
use kube::api::PostParams;

use crate::common::{Context, Result, Says};
use plan::Step;

const NAME: &str = "service-cidr-controller";

struct Controller {
    context: Context,
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context) {
    let queue = Queue::new(context.clock.clone());
    let (ranges, addresses) = (context.informers.of::<ServiceCIDR>(), context.informers.of::<IPAddress>());
    let supervisor = &context.supervisor;
    let known = ranges.clone();
    reconcile::feed(supervisor, NAME, ranges.subscribe(), &queue, move |change| {
        // Ranges that overlap with one that comes or goes may go, or may no longer: all are few.
        let mut keys: Vec<ObjectKey> = known.list().iter().map(|range| ObjectKey::of(&**range)).collect();
        keys.push(change.key.clone());
        keys
    });
    let known = ranges.clone();
    reconcile::feed(supervisor, NAME, addresses.subscribe(), &queue, move |change| {
        // Only an address that is given back lets a range go.
        let gone = change.old.as_ref().filter(|old| change.new.is_none() && plan::is_allocated(old));
        let ranges = known.list();
        let holding = gone.map(|_| plan::holding(&change.key.name, &ranges)).unwrap_or_default();
        let going = holding.into_iter().filter(|range| range.metadata.deletion_timestamp.is_some());
        going.map(|range| ObjectKey::of(&**range)).collect::<Vec<_>>()
    });
    let controller = Arc::new(Controller { context: context.clone(), ranges, addresses });
    reconcile::run(supervisor, NAME, &queue, 1, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        self.ranges.synced().await;
        self.addresses.synced().await;
        let Some(range) = self.ranges.get(key) else { return Ok(None) };
        let now = self.context.clock.now();
        let step = plan::step(&range, &self.ranges.list(), &self.addresses.list(), now);
        let api: Api<ServiceCIDR> = Api::all(self.context.client.clone());
        let mut wanted = ServiceCIDR::clone(&range);
        let finalizers = wanted.metadata.finalizers.get_or_insert_default();
        let parameters = PostParams::default();
        let written = match step {
            Step::Nothing => return Ok(None),
            Step::Wait(left) => return Ok(Some(left)),
            Step::Protect => {
                finalizers.push(plan::FINALIZER.to_owned());
                api.replace(&key.name, &parameters, &wanted).await
            }
            Step::Release => {
                finalizers.retain(|one| one != plan::FINALIZER);
                api.replace(&key.name, &parameters, &wanted).await
            }
            Step::Tell(status) => {
                wanted.status = Some(status);
                api.replace_status(&key.name, &parameters, &wanted).await
            }
        };
        match written {
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).says("write a range of Service addresses"),
        }
    }
}
