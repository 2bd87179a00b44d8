//! The root CA publisher: every namespace has a ConfigMap with the certificate by which pods recognise
//! the API server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::{Informer, Selection};
use decapod_client::reconcile::{self, Queue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::common::{Context, Result, Says, namespaces};

const NAME: &str = "root-ca-certificate-publisher-controller";
const MAP: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when \
     using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage \
     is guaranteed across distributions of Kubernetes clusters.";

struct Publisher {
    context: Context,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    certificate: String,
}

/// Starts the publisher of `certificate`, a bundle in PEM.
pub(crate) fn start(context: &Context, certificate: String) {
    let queue = Queue::new(context.clock.clone());
    let namespaces = context.informers.of::<Namespace>();
    let fields = format!("metadata.name={MAP}");
    let maps: Informer<ConfigMap> = context.informers.selected(Selection { fields, ..Selection::default() });
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, NAME, namespaces.subscribe(), &queue, |change| [change.key.name.clone()]);
    reconcile::feed(supervisor, NAME, maps.subscribe(), &queue, |change| [change.key.namespace.clone()]);
    let publisher = Arc::new(Publisher { context: context.clone(), namespaces, maps, certificate });
    reconcile::run(supervisor, NAME, &queue, 1, move |namespace: String| {
        let publisher = publisher.clone();
        async move { publisher.reconcile(&namespace).await }
    });
}

impl Publisher {
    async fn reconcile(&self, namespace: &str) -> Result<Option<Duration>> {
        self.maps.synced().await;
        if !namespaces::is_active(&self.namespaces, namespace) {
            return Ok(None);
        }
        let data = BTreeMap::from([(KEY.to_owned(), self.certificate.clone())]);
        let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), namespace);
        let Some(present) = self.maps.get(&ObjectKey::new(namespace, MAP)) else {
            return self.create(&api, namespace, data).await;
        };
        let described = present.annotations().get(DESCRIPTION).is_some_and(|text| text == DESCRIPTION_TEXT);
        if described && present.data.as_ref() == Some(&data) {
            return Ok(None);
        }
        // Keys that others added go as well: the map says what is trusted, and nothing else.
        let others = present.data.iter().flatten().filter(|(key, _)| *key != KEY);
        let mut patched: BTreeMap<&str, Option<&str>> = others.map(|(key, _)| (key.as_str(), None)).collect();
        patched.insert(KEY, Some(&self.certificate));
        let patch = json!({"metadata": {"annotations": {DESCRIPTION: DESCRIPTION_TEXT}}, "data": patched});
        match api.patch(MAP, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).says("restore the root CA's ConfigMap"),
        }
    }

    async fn create(
        &self,
        api: &Api<ConfigMap>,
        namespace: &str,
        data: BTreeMap<String, String>,
    ) -> Result<Option<Duration>> {
        let annotations = BTreeMap::from([(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned())]);
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(MAP.to_owned()),
                namespace: Some(namespace.to_owned()),
                annotations: Some(annotations),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..ConfigMap::default()
        };
        match api.create(&PostParams::default(), &map).await {
            Ok(_) => Ok(None),
            Err(error) if namespaces::is_over(&error) || error.is_already_exists() => Ok(None),
            Err(error) => Err(error).says("publish the root CA"),
        }
    }
}
