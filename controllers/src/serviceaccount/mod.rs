//! The ServiceAccount controller: every namespace has a ServiceAccount `default`, under which pods run
//! that name none.

pub(crate) mod cleaner;
pub(crate) mod tokens;

use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Informer, Selection};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

use crate::common::{Context, Result, Says, namespaces};

const NAME: &str = "serviceaccount-controller";
const DEFAULT: &str = "default";

/// Starts the controller.
pub(crate) fn start(context: &Context) {
    let queue = Queue::new(context.clock.clone());
    let namespaces = context.informers.of::<Namespace>();
    let fields = format!("metadata.name={DEFAULT}");
    let accounts: Informer<ServiceAccount> =
        context.informers.selected(Selection { fields, ..Selection::default() });
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, NAME, namespaces.subscribe(), &queue, |change| [change.key.name.clone()]);
    reconcile::feed(supervisor, NAME, accounts.subscribe(), &queue, |change| [change.key.namespace.clone()]);
    let context = context.clone();
    reconcile::run(supervisor, NAME, &queue, 1, move |namespace: String| {
        let (context, namespaces, accounts) = (context.clone(), namespaces.clone(), accounts.clone());
        async move { reconcile(&context, &namespaces, &accounts, &namespace).await }
    });
}

async fn reconcile(
    context: &Context,
    namespaces: &Informer<Namespace>,
    accounts: &Informer<ServiceAccount>,
    namespace: &str,
) -> Result<Option<Duration>> {
    accounts.synced().await;
    let wanted = namespaces::is_active(namespaces, namespace);
    if !wanted || accounts.get(&ObjectKey::new(namespace, DEFAULT)).is_some() {
        return Ok(None);
    }
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(DEFAULT.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
    match api.create(&PostParams::default(), &account).await {
        Ok(_) => Ok(None),
        Err(error) if namespaces::is_over(&error) || error.is_already_exists() => Ok(None),
        Err(error) => Err(error).says("create the default ServiceAccount"),
    }
}
