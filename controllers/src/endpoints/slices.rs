//! The slices that one manager keeps: what there is of a Service, and writing a plan. The controller of
//! Services and the one that mirrors Endpoints share it; each touches only slices of its own label.

use std::sync::Arc;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use super::plan::{MANAGED_LABEL, Plan, SERVICE_LABEL};
use crate::common::expect::Expectations;
use crate::common::{Context, Result, Says, namespaces};

/// The slices of one manager.
pub(super) struct Slices {
    context: Context,
    manager: &'static str,
    informer: Informer<EndpointSlice>,
    written: Expectations,
}

impl Slices {
    /// Follows the slices of `manager`: `queue` gets the keys of their Services.
    pub(super) fn new(
        context: &Context,
        name: &'static str,
        manager: &'static str,
        queue: &Queue<ObjectKey>,
    ) -> Self {
        let informer = context.informers.of::<EndpointSlice>();
        reconcile::feed(&context.supervisor, name, informer.subscribe(), queue, move |change| {
            let ours = change.sides().filter(|slice| is_of(slice, manager));
            let services = ours.filter_map(|slice| slice.labels().get(SERVICE_LABEL));
            let key = |service: &String| ObjectKey::new(change.key.namespace.clone(), service.clone());
            services.map(key).collect::<Vec<_>>()
        });
        Self { context: context.clone(), manager, informer, written: Expectations::default() }
    }

    pub(super) async fn synced(&self) {
        self.informer.synced().await;
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        self.written.forget(key);
    }

    /// The slices of a Service, with what was written of them.
    ///
    /// # Errors
    /// The cache does not show the last writes in time.
    pub(super) async fn of(&self, key: &ObjectKey) -> Result<Vec<Arc<EndpointSlice>>> {
        let labels = format!("{SERVICE_LABEL}={},{MANAGED_LABEL}={}", key.name, self.manager);
        let among = ListParams::default().labels(&labels);
        self.written.resolve(key, &self.api(key), &among, || self.shown(key)).await?;
        self.written.settled(key, &self.informer, &*self.context.clock).await?;
        Ok(self.written.without_deleted(key, self.shown(key)))
    }

    /// The slices of a Service as the cache shows them.
    fn shown(&self, key: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self.informer.list_in(&key.namespace);
        slices.retain(|slice| {
            is_of(slice, self.manager) && slice.labels().get(SERVICE_LABEL) == Some(&key.name)
        });
        slices
    }

    fn api(&self, key: &ObjectKey) -> Api<EndpointSlice> {
        Api::namespaced(self.context.client.clone(), &key.namespace)
    }

    /// Writes a plan: what comes before what goes.
    ///
    /// # Errors
    /// A write was refused, for another reason than that the namespace is on its way out.
    pub(super) async fn apply(&self, key: &ObjectKey, plan: &Plan) -> Result<()> {
        let api = self.api(key);
        let note = |error: &kube::Error| self.written.failed(key, error);
        let parameters = PostParams::default();
        for slice in &plan.create {
            match api.create(&parameters, slice).await.inspect_err(note) {
                Ok(created) => self.written.wrote(key, &created),
                Err(error) if namespaces::is_over(&error) => return Ok(()),
                Err(error) => return Err(error).says("create an EndpointSlice"),
            }
        }
        for slice in &plan.update {
            let updated = api.replace(&slice.name_any(), &parameters, slice).await.inspect_err(note);
            self.written.wrote(key, &updated.says("update an EndpointSlice")?);
        }
        for slice in &plan.delete {
            let preconditions = Preconditions { uid: slice.uid(), resource_version: None };
            let parameters = DeleteParams::default().preconditions(preconditions);
            match api.delete(&slice.name_any(), &parameters).await.inspect_err(note) {
                Ok(_) => self.written.deleted(key, &slice.uid().unwrap_or_default()),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error).says("delete an EndpointSlice"),
            }
        }
        Ok(())
    }
}

fn is_of(slice: &EndpointSlice, manager: &str) -> bool {
    slice.labels().get(MANAGED_LABEL).is_some_and(|known| known == manager)
}
