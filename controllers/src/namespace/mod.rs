//! The namespace controller: empties a namespace that is being deleted, and lets it go when it is empty.
//!
//! Pods go first, so that nothing they use is taken from under them. The namespace goes only after a look
//! at every kind found nothing: what cannot be looked at holds it.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::{self, ErrorExt};
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, ResourceExt};

use crate::common::catalog::{Catalog, Kind};
use crate::common::{Context, Result, Says};
use plan::Remains;

const NAME: &str = "namespace-controller";

/// The finalizer of namespaces that is this controller's.
const FINALIZER: &str = "kubernetes";

/// How soon a namespace that is not empty yet is looked at again: objects go without telling the
/// namespace.
const AGAIN: Duration = Duration::from_millis(500);

/// Objects of a kind that are looked at in one list.
const PAGE: u32 = 500;

struct Controller {
    context: Context,
    catalog: Catalog,
    namespaces: Informer<Namespace>,
}

/// Starts the controller with so many workers.
pub(crate) fn start(context: &Context, catalog: &Catalog, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let namespaces = context.informers.of::<Namespace>();
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, NAME, namespaces.subscribe(), &queue, |change| {
        let is_going = |namespace: &&Arc<Namespace>| namespace.metadata.deletion_timestamp.is_some();
        change.new.as_ref().filter(is_going).map(|_| change.key.clone())
    });
    let controller = Arc::new(Controller { context: context.clone(), catalog: catalog.clone(), namespaces });
    reconcile::run(supervisor, NAME, &queue, workers, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let going = self.namespaces.get(key).filter(|one| one.metadata.deletion_timestamp.is_some());
        let Some(namespace) = going else { return Ok(None) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(None); // Others hold it, or it is about to vanish.
        }
        let remains = self.empty(&key.name).await;
        let namespace = self.write_status(&namespace, &remains).await?;
        let Some(namespace) = namespace else { return Ok(None) };
        if remains.is_empty() {
            self.finalize(namespace).await?;
            Ok(None)
        } else {
            Ok(Some(AGAIN))
        }
    }

    /// Asks everything in the namespace to go; returns what is still there.
    async fn empty(&self, namespace: &str) -> Remains {
        let mut remains = Remains::default();
        // Kinds may have come since: what is not known cannot be found empty.
        let kinds = match self.catalog.refresh().await {
            Ok(kinds) => kinds,
            Err(error) => {
                remains.discovery = Some(error::chain(&error));
                self.catalog.kinds()
            }
        };
        let deletable = kinds.iter().filter(|kind| kind.namespaced && kind.can("list") && kind.can("delete"));
        let (pods, others): (Vec<&Kind>, Vec<&Kind>) = deletable.partition(|kind| kind.name() == "pods");
        for kind in pods {
            self.empty_kind(namespace, kind, &mut remains).await;
        }
        if remains.objects.is_empty() {
            for kind in others {
                self.empty_kind(namespace, kind, &mut remains).await;
            }
        }
        remains
    }

    async fn empty_kind(&self, namespace: &str, kind: &Kind, remains: &mut Remains) {
        if let Err(error) = self.try_empty_kind(namespace, kind, remains).await {
            let refused = error.is_not_found();
            if !refused {
                remains.errors.push(format!("{}: {}", kind.name(), error::chain(&error)));
            }
        }
    }

    async fn try_empty_kind(&self, namespace: &str, kind: &Kind, remains: &mut Remains) -> kube::Result<()> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.context.client.clone(), namespace, &kind.resource);
        let list = ListParams::default().limit(PAGE);
        let present = api.list_metadata(&list).await?;
        if present.items.is_empty() {
            return Ok(());
        }
        let delete = DeleteParams::background();
        if kind.can("deletecollection") {
            api.delete_collection(&delete, &ListParams::default()).await?;
        } else {
            for object in &present.items {
                match api.delete(&object.name_any(), &delete).await {
                    Ok(_) => {}
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let left = api.list_metadata(&list).await?;
        if !left.items.is_empty() {
            let beyond = left.metadata.remaining_item_count.unwrap_or(0);
            let count = left.items.len() + usize::try_from(beyond).unwrap_or(0);
            // Kubernetes' words, in which pods are `pods.`.
            let name = format!("{}.{}", kind.resource.plural, kind.resource.group);
            remains.objects.insert(name, count);
        }
        for finalizer in left.items.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
            *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(())
    }

    /// Tells what is left; returns the namespace as it is now, if it is still there.
    async fn write_status(&self, namespace: &Namespace, remains: &Remains) -> Result<Option<Namespace>> {
        let status = plan::status(namespace.status.clone(), remains, self.context.clock.now());
        if namespace.status.as_ref() == Some(&status) {
            return Ok(Some(namespace.clone()));
        }
        let mut wanted = namespace.clone();
        wanted.status = Some(status);
        let api: Api<Namespace> = Api::all(self.context.client.clone());
        match api.replace_status(&namespace.name_any(), &PostParams::default(), &wanted).await {
            Ok(written) => Ok(Some(written)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).says("write the status of a namespace"),
        }
    }

    /// Removes this controller's finalizer.
    async fn finalize(&self, mut namespace: Namespace) -> Result<()> {
        let name = namespace.name_any();
        let spec = namespace.spec.get_or_insert_default();
        spec.finalizers.get_or_insert_default().retain(|finalizer| finalizer != FINALIZER);
        let api: Api<Namespace> = Api::all(self.context.client.clone());
        match api.replace_subresource("finalize", &name, &PostParams::default(), &namespace).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error).says("let a namespace go"),
        }
    }
}
