//! What every cluster gets beside the API's own objects: cluster DNS, what agents may read, and a default class of
//! storage.

use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Client;
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
/// The reference of the image that is made of this binary.
pub(super) const SELF_IMAGE: &str = "decapod.internal/decapod:self";

/// Creates the objects of the add-ons, or brings them to what this version wants.
pub(super) async fn apply(client: &Client, settings: &Settings, info: &Value) -> Result<(), Failure> {
    one(client, info).await.map_err(|f| f.within("cluster-info"))?;
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
            one(client, object).await.map_err(|f| f.within(what))?;
        }
    }
    Ok(())
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
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let kind = object["kind"].as_str().unwrap_or_default();
    let row = decapod_api::resource::by_kind(group, version, kind)
        .ok_or_else(|| Failure::new(format!("{api_version} {kind} is no built-in kind")))?;
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let namespace = decapod_api::meta::namespace(object);
    let namespace = if row.namespaced() { format!("/namespaces/{namespace}") } else { String::new() };
    let collection = format!("{root}{namespace}/{}", row.plural);
    let send = |method: http::Method, path: String, content: &'static str| {
        http::Request::builder()
            .method(method)
            .uri(format!("{path}?fieldManager=decapod-addons"))
            .header("content-type", content)
            .body(object.to_string().into_bytes())
            .map_err(|e| Failure::new(format!("{path}: {e}")))
    };
    let path = format!("{collection}/{}", decapod_api::meta::name(object));
    // Looked for first: creating a Service whose address it has itself fails for the address.
    let find =
        http::Request::get(&path).body(Vec::new()).map_err(|e| Failure::new(format!("{path}: {e}")))?;
    match client.request::<Value>(find).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            client.request::<Value>(send(http::Method::POST, collection, "application/json")?).await?;
        }
        Err(error) => return Err(error.into()),
        Ok(_) if ONLY_MADE.contains(&kind) => {}
        Ok(_) => {
            // Lists are replaced whole: a strategic patch would take DNS's two ports 53 for one.
            client.request::<Value>(send(http::Method::PATCH, path, "application/merge-patch+json")?).await?;
        }
    }
    Ok(())
}
