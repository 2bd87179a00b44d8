//! The objects that every cluster has, made at each start where they are missing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use decapod_api::meta;
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use super::peers::{self, Member};
use super::{Core, Options};
use crate::auth::bootstrap as rbac;
use crate::auth::service_account::{Lookup, Reference};
use crate::clock::rfc3339;
use crate::registry::allocate::OWN_RANGE;
use crate::registry::update::Part;
use crate::registry::{Call, Registry, core, row};

/// How often leaked addresses and ports, and old events, are looked for.
const TIDY_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// Says since when the use of tokens of Secrets is noted on them.
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// Roles and bindings that are written at once.
const AT_ONCE: usize = 32;

/// Writes what is missing, in an order in which each can be written. Returns this server's part among others that share
/// its store.
pub(super) async fn objects(
    registry: &Registry,
    options: &Options,
    port: u16,
) -> Result<Option<Member>, Error> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        ensure(registry, core("namespaces"), "", name, json!({})).await?;
    }
    for (name, value, description) in [
        (
            "system-cluster-critical",
            2_000_000_000_i64,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let class = json!({"value": value, "description": description});
        ensure(registry, row("scheduling.k8s.io", "v1", "priorityclasses"), "", name, class).await?;
    }
    let cidr = json!({"spec": {"cidrs": [options.service_cidr.to_string()]}});
    ensure(registry, row("networking.k8s.io", "v1", "servicecidrs"), "", OWN_RANGE, cidr).await?;
    own_range_ready(registry).await?;
    let since = json!({"data": {"since": registry.clock.now().strftime("%Y-%m-%d").to_string()}});
    ensure(registry, core("configmaps"), "kube-system", TRACKING, since).await?;
    super::flow::objects(registry).await?;
    policy(registry).await?;
    kubernetes_service(registry, options, port).await
}

pub(super) async fn ensure(
    registry: &Registry,
    resource: &'static Resource,
    namespace: &str,
    name: &str,
    mut object: Value,
) -> Result<(), Error> {
    let call = Call::own(resource, namespace, name);
    if registry.current(&call).await?.is_some() {
        return Ok(());
    }
    object["metadata"]["name"] = name.into();
    match registry.create(&call, object, &[]).await {
        Ok(_) | Err(Error::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The cluster's own range is ready from the first moment: the Services made below need it.
async fn own_range_ready(registry: &Registry) -> Result<(), Error> {
    let call = Call::own(row("networking.k8s.io", "v1", "servicecidrs"), "", OWN_RANGE);
    let condition = json!({"type": "Ready", "status": "True", "reason": "",
        "message": "Kubernetes default Service CIDR is ready",
        "lastTransitionTime": rfc3339(registry.clock.now())});
    let change = |old: &Value| {
        let mut new = old.clone();
        if old["status"]["conditions"].as_array().is_none_or(Vec::is_empty) {
            new["status"] = json!({"conditions": [condition]});
        }
        Ok(new)
    };
    registry.modify(&call, Part::Status, change).await.map(drop)
}

async fn policy(registry: &Registry) -> Result<(), Error> {
    let objects = stream::iter(rbac::objects()).map(|wanted| role_or_binding(registry, wanted));
    // Together, so that they share the store's commits.
    objects.buffer_unordered(AT_ONCE).try_collect().await
}

async fn role_or_binding(registry: &Registry, wanted: rbac::Wanted) -> Result<(), Error> {
    let resource = row(crate::auth::rbac::GROUP, "v1", wanted.resource);
    let (namespace, name) = (meta::namespace(&wanted.object), meta::name(&wanted.object));
    let call = Call::own(resource, namespace, name);
    match registry.current(&call).await? {
        None => ensure(registry, resource, namespace, name, wanted.object.clone()).await,
        Some((existing, _)) if rbac::reconciled(&existing, &wanted.object).is_some() => {
            let change =
                |old: &Value| Ok(rbac::reconciled(old, &wanted.object).unwrap_or_else(|| old.clone()));
            registry.modify(&call, Part::Main, change).await.map(drop)
        }
        Some(_) => Ok(()),
    }
}

/// The `kubernetes` Service in `default`, by which pods find the API server.
async fn kubernetes_service(
    registry: &Registry,
    options: &Options,
    port: u16,
) -> Result<Option<Member>, Error> {
    let address = options.service_cidr.nth(1).map(|ip| ip.to_string()).unwrap_or_default();
    registry.drop_leftover(&address, "default", "kubernetes").await?;
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({"metadata": {"labels": labels}, "spec": {
        "clusterIP": address, "type": "ClusterIP", "sessionAffinity": "None",
        "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]}});
    ensure(registry, core("services"), "default", "kubernetes", service).await?;
    let endpoint = SocketAddr::new(options.advertise, port);
    match &options.identity {
        // The address may have changed since the last start.
        None => peers::publish(registry, &BTreeSet::from([endpoint])).await.map(|()| None),
        Some(identity) => {
            let mut member = Member::new(identity, endpoint);
            member.renew(registry).await?;
            Ok(Some(member))
        }
    }
}

/// What the server does by itself from then on.
pub(super) fn keep(core: &Arc<Core>, tasks: &TaskTracker) {
    let core = core.clone();
    tasks.spawn(async move {
        let stop = core.stopping.clone();
        loop {
            if let Err(error) = core.registry.repair_allocations().await {
                tracing::warn!(%error, "cannot look for leaked Service addresses and ports");
            }
            if let Err(error) = core.registry.expire_events().await {
                tracing::warn!(%error, "cannot forget old events");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(TIDY_INTERVAL) => {}
            }
        }
    });
}

#[async_trait]
impl Lookup for Registry {
    async fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let resource = decapod_api::resource::find("", "v1", resource)?;
        match self.find(resource, namespace, name).await {
            Ok(object) => object,
            Err(error) => {
                tracing::warn!(%error, "cannot look up what a token is bound to: the token is refused");
                None
            }
        }
    }

    async fn label(&self, secret: &Reference, namespace: &str, key: &str, value: &str) {
        let call = Call::own(core("secrets"), namespace, &secret.name);
        let change = |old: &Value| {
            let mut new = old.clone();
            if meta::uid(old) == secret.uid {
                new["metadata"]["labels"][key] = value.into();
            }
            Ok(new)
        };
        if let Err(error) = self.modify(&call, Part::Main, change).await {
            tracing::warn!(%error, namespace, secret = secret.name, "cannot label a service account token");
        }
    }
}
