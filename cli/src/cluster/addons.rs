//! What every cluster gets beside the API's own objects: cluster DNS, what agents may read, and a default class of
//! storage.

use std::time::Duration;

use decapod_client::clock::Clock;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Client;
use kube::api::DeleteParams;
use serde_json::Value;

use super::settings::Settings;
use crate::failure::Failure;

const DNS: &str = include_str!("../../../deploy/dns.yaml");
/// What nodes, and those who become nodes, may do.
pub(super) const NODES: &str = include_str!("../../../deploy/nodes.yaml");
/// The Ingress controller and its class.
const INGRESS: &str = include_str!("../../../deploy/ingress.yaml");
/// The default class of storage and what its provisioner may do.
const STORAGE: &str = include_str!("../../../deploy/storage.yaml");
/// What belongs to its users once it is there: it is made, and never brought to what this version wants.
const ONLY_MADE: [&str; 1] = ["StorageClass"];
/// Deployments of earlier versions that are DaemonSets of the same names now.
const REPLACED: [&str; 2] = ["kube-dns", "decapod-ingress"];
/// The reference of the image that is made of this binary.
pub(super) const SELF_IMAGE: &str = "decapod.internal/decapod:self";

/// How often an object is tried again, and after which time: half a minute, in which a store finds another leader.
const TRIES: usize = 150;
const AGAIN: Duration = Duration::from_millis(200);

/// Creates the objects of the add-ons, or brings them to what this version wants. A store that does not answer at the
/// moment, or another server that does the same, is no reason to end.
pub(super) async fn apply(
    client: &Client,
    settings: &Settings,
    info: &Value,
    clock: &dyn Clock,
) -> Result<(), Failure> {
    insist(client, info, clock).await.map_err(|f| f.within("cluster-info"))?;
    let text = DNS
        .replace("10.96.0.10", &settings.dns().to_string())
        .replace("cluster.local", &settings.cluster_domain);
    let ingress = settings.network.ingress().map(|(http, https)| {
        INGRESS
            .replace("port=80\"", &format!("port={http}\""))
            .replace("port: 80\n", &format!("port: {http}\n"))
            .replace("port=443\"", &format!("port={https}\""))
            .replace("port: 443\n", &format!("port: {https}\n"))
    });
    let always = [("the role of nodes", NODES), ("storage", STORAGE), ("cluster DNS", &*text)];
    for (what, text) in
        always.into_iter().chain(ingress.as_deref().map(|text| ("the Ingress controller", text)))
    {
        let objects: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|e| Failure::new(format!("the manifest of {what}: {e}")))?;
        for object in objects.iter().filter(|o| o.is_object()) {
            insist(client, object, clock).await.map_err(|f| f.within(what))?;
        }
    }
    for name in REPLACED {
        replaced_remove(client, name).await.map_err(|f| f.within(format!("the former Deployment {name}")))?;
    }
    Ok(())
}

/// Takes away what an earlier version made, with its pods; what somebody else made under this name stays.
async fn replaced_remove(client: &Client, name: &str) -> Result<(), Failure> {
    let deployments: kube::Api<Deployment> = kube::Api::namespaced(client.clone(), "kube-system");
    let Some(found) = deployments.get_opt(name).await? else { return Ok(()) };
    let pod = found.spec.and_then(|spec| spec.template.spec);
    let ours = |container: &Container| container.image.as_deref() == Some(SELF_IMAGE);
    if !pod.is_some_and(|pod| pod.containers.iter().any(ours)) {
        return Ok(());
    }
    match deployments.delete(name, &DeleteParams::background()).await {
        // Another server does the same.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => Ok(deleted.map(drop)?),
    }
}

/// Whether all is there that lets nodes in: the last of the roles of nodes.
pub(super) async fn nodes_may_join(client: &Client) -> bool {
    let bindings: kube::Api<ClusterRoleBinding> = kube::Api::all(client.clone());
    // What cannot be told now is asked again.
    bindings.get_opt("decapod:kubelet-serving-autoapprove").await.is_ok_and(|binding| binding.is_some())
}

/// The public ConfigMap by which who joins finds the cluster, and which its bootstrap tokens sign; with what all
/// nodes must agree on.
pub(super) fn cluster_info(server: &str, ca_pem: &str, settings: &Settings) -> Value {
    use base64::Engine;
    let authority = base64::engine::general_purpose::STANDARD.encode(ca_pem);
    let kubeconfig = format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {authority}\n    server: {server}\n  \
         name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\nusers: null\n"
    );
    serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", 
        "data": {"kubeconfig": kubeconfig, "pod-cidr": settings.pod_cidr.to_string(),
            "service-cidr": settings.service_cidr.to_string(), "cluster-domain": settings.cluster_domain},
        "metadata": {"name": "cluster-info", "namespace": "kube-public"}})
}

/// Creates an object, or brings it to what this version wants.
pub(super) async fn one(client: &Client, object: &Value) -> Result<(), Failure> {
    Ok(put(client, &collection(object)?, object).await?)
}

/// As [`one`], however often it takes.
async fn insist(client: &Client, object: &Value, clock: &dyn Clock) -> Result<(), Failure> {
    let collection = collection(object)?;
    let mut left = TRIES;
    loop {
        match put(client, &collection, object).await {
            Err(error) if left > 0 && passes(&error) => {
                left -= 1;
                tracing::debug!(collection, %error, "an object of the add-ons is tried again");
                clock.sleep(AGAIN).await;
            }
            result => return Ok(result?),
        }
    }
}

/// Whether it may be otherwise in a moment: the store or the server is busy, or somebody else was faster.
fn passes(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 429 | 500 | 503 | 504))
}

/// The path of the collection that an object belongs to.
fn collection(object: &Value) -> Result<String, Failure> {
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str().unwrap_or_default();
    let row = decapod_api::resource::by_kind(group, version, kind)
        .ok_or_else(|| Failure::new(format!("{api_version} {kind} is no built-in kind")))?;
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let namespace = decapod_api::meta::namespace(object);
    let namespace = if row.namespaced() { format!("/namespaces/{namespace}") } else { String::new() };
    Ok(format!("{root}{namespace}/{}", row.plural))
}

async fn put(client: &Client, collection: &str, object: &Value) -> Result<(), kube::Error> {
    let send = |method: http::Method, path: &str, content: &'static str| {
        http::Request::builder()
            .method(method)
            .uri(format!("{path}?fieldManager=decapod-addons"))
            .header("content-type", content)
            .body(object.to_string().into_bytes())
            .map_err(kube::Error::HttpError)
    };
    let path = format!("{collection}/{}", decapod_api::meta::name(object));
    // Looked for first: creating a Service whose address it has itself fails for the address.
    let find = http::Request::get(&path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    match client.request::<Value>(find).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            client.request::<Value>(send(http::Method::POST, collection, "application/json")?).await?;
        }
        Err(error) => return Err(error),
        Ok(_) if object["kind"].as_str().is_some_and(|kind| ONLY_MADE.contains(&kind)) => {}
        Ok(_) => {
            // Lists are replaced whole: a strategic patch would take DNS's two ports 53 for one.
            client
                .request::<Value>(send(http::Method::PATCH, &path, "application/merge-patch+json")?)
                .await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use decapod_client::clock::SystemClock;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// A client that is answered with these codes, one after the other, and what it asked for.
    fn answered(codes: &'static [u16]) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (mut codes, log) = (codes.iter().copied(), asked.clone());
        let service = tower::service_fn(move |request: http::Request<Body>| {
            log.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
            let code = codes.next().unwrap();
            let reason = if code == 404 { "NotFound" } else { "" };
            let status =
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": ""});
            let response =
                http::Response::builder().status(code).body(Body::from(status.to_string().into_bytes()));
            async move { response }
        });
        (Client::new(service, "default"), asked)
    }

    /// A client for which there is one Deployment with this image, and what it asked for.
    fn with_deployment(image: &'static str) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let log = asked.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            log.lock().unwrap().push(format!("{} {}", request.method(), request.uri().path()));
            let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "kube-dns"},
                "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
            let response = http::Response::new(Body::from(object.to_string().into_bytes()));
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        (Client::new(service, "default"), asked)
    }

    #[tokio::test]
    async fn a_deployment_is_replaced_only_if_it_was_ours() {
        let path = "/apis/apps/v1/namespaces/kube-system/deployments/kube-dns";
        let (client, asked) = with_deployment(SELF_IMAGE);
        replaced_remove(&client, "kube-dns").await.unwrap();
        assert_eq!(*asked.lock().unwrap(), [format!("GET {path}"), format!("DELETE {path}")]);
        let (client, asked) = with_deployment("coredns:1");
        replaced_remove(&client, "kube-dns").await.unwrap();
        assert_eq!(*asked.lock().unwrap(), [format!("GET {path}")]);
        let (client, asked) = answered(&[404]);
        replaced_remove(&client, "kube-dns").await.unwrap();
        assert_eq!(asked.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn what_passes_is_tried_again() {
        let object =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "b"}});
        let path = "/api/v1/namespaces/b/configmaps";
        let clock = SystemClock::new();
        // The store is away; then another server makes it at the same time.
        let (client, asked) = answered(&[503, 404, 409, 200, 200]);
        insist(&client, &object, &clock).await.unwrap();
        let expected = [
            format!("GET {path}/a"),
            format!("GET {path}/a"),
            format!("POST {path}"),
            format!("GET {path}/a"),
            format!("PATCH {path}/a"),
        ];
        assert_eq!(*asked.lock().unwrap(), expected);
        let (client, asked) = answered(&[403]);
        insist(&client, &object, &clock).await.unwrap_err();
        assert_eq!(asked.lock().unwrap().len(), 1);
    }
}
