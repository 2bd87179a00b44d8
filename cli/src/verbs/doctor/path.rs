//! The way to one target.

use decapod_client::reach::{self, Ask, Resolver, Step};
use http::Uri;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use serde_json::Value;

use super::super::session::{Session, escape, with_query};
use super::super::why::{self, Finding, list, text};
use super::policy::{self, Direction, End};
use super::{Doctor, about};
use crate::failure::{Failure, chain};

/// How many endpoints of a Service are tried for themselves.
const ENDPOINTS: usize = 5;

/// What is to be reached, and what it is in the cluster.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    ask: Ask,
    /// Namespace and name.
    service: Option<(String, String)>,
    pod: Option<String>,
}

fn bad(target: &str) -> Failure {
    Failure::new(format!("\"{target}\" is nothing that can be reached"))
        .hint("write http://HOST:PORT/PATH, svc/NAME:PORT, pod/NAME:PORT or HOST:PORT")
}

/// A target as it is written; `svc/` and `pod/` are of this namespace.
fn parse(written: &str, namespace: &str, tries: u8) -> Result<Target, Failure> {
    let ask = |host: &str, port: u16, scheme: &str, path: &str| Ask {
        host: host.to_owned(),
        port,
        scheme: scheme.to_owned(),
        path: path.to_owned(),
        tries: usize::from(tries),
    };
    let port_of = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| bad(written));
    let kind = written.split_once('/').filter(|(kind, _)| !kind.contains(':'));
    if let Some((kind @ ("svc" | "service" | "services" | "po" | "pod" | "pods"), rest)) = kind {
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, port_of(port)?),
            // The first that it has.
            None => (rest, 0),
        };
        let is_service = kind.starts_with('s');
        let host = format!("{name}.{namespace}.svc");
        return Ok(Target {
            ask: ask(&host, port, "", "/"),
            service: is_service.then(|| (namespace.to_owned(), name.to_owned())),
            pod: (!is_service).then(|| name.to_owned()),
        });
    }
    if written.contains("://") {
        let uri: Uri = written.parse().map_err(|_| bad(written))?;
        let scheme = uri
            .scheme_str()
            .filter(|scheme| ["http", "https"].contains(scheme))
            .ok_or_else(|| bad(written))?;
        let host = uri.host().ok_or_else(|| bad(written))?;
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        let service = service_named(host, namespace);
        return Ok(Target { ask: ask(host, port, scheme, uri.path()), service, pod: None });
    }
    let (host, port) = written.rsplit_once(':').ok_or_else(|| bad(written))?;
    let service = service_named(host, namespace);
    Ok(Target { ask: ask(host, port_of(port)?, "", "/"), service, pod: None })
}

/// The Service that a name may mean: NAME, NAME.NAMESPACE or NAME.NAMESPACE.svc and more.
fn service_named(host: &str, namespace: &str) -> Option<(String, String)> {
    let host = host.trim_matches(['[', ']']);
    if host.parse::<std::net::IpAddr>().is_ok() || host.is_empty() {
        return None;
    }
    let parts: Vec<&str> = host.trim_end_matches('.').split('.').collect();
    match parts.as_slice() {
        [name] => Some((namespace.to_owned(), (*name).to_owned())),
        [name, namespace] => Some(((*namespace).to_owned(), (*name).to_owned())),
        [name, namespace, "svc", ..] => Some(((*namespace).to_owned(), (*name).to_owned())),
        _ => None,
    }
}

/// Where it is tried from.
enum From {
    Pod { namespace: String, name: String, node: String },
    Here(Resolver),
}

impl From {
    async fn find(session: &Session, doctor: &Doctor) -> Result<Self, Failure> {
        let Some(pod) = &doctor.from else {
            let dns =
                session.find("/api/v1/namespaces/kube-system/services/kube-dns").await?.unwrap_or_default();
            let domain = &doctor.cluster_domain;
            return Ok(Self::Here(Resolver {
                servers: text(&dns["spec"], "clusterIP").parse().into_iter().collect(),
                search: vec![
                    format!("{}.svc.{domain}", session.namespace),
                    format!("svc.{domain}"),
                    domain.clone(),
                ],
            }));
        };
        let name = pod.rsplit('/').next().unwrap_or(pod);
        let path = format!("/api/v1/namespaces/{}/pods/{}", escape(&session.namespace), escape(name));
        let object = session.get(&path).await?;
        match text(&object["spec"], "nodeName") {
            "" => {
                Err(Failure::new(format!("pod {name} has no node yet"))
                    .hint(format!("`decapod why pod/{name}`")))
            }
            node => Ok(Self::Pod {
                namespace: session.namespace.clone(),
                name: name.to_owned(),
                node: node.to_owned(),
            }),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Pod { name, node, .. } => format!("pod {name} (on node {node})"),
            Self::Here(_) => "this machine".to_owned(),
        }
    }

    async fn reach(&self, session: &Session, ask: &Ask) -> Result<Vec<Step>, Failure> {
        match self {
            Self::Here(resolver) => {
                let (ask, resolver) = (ask.clone(), resolver.clone());
                let reached = tokio::task::spawn_blocking(move || reach::reach(&ask, &resolver)).await;
                reached.map_err(|error| Failure::new(format!("the way was not tried: {}", chain(&error))))
            }
            Self::Pod { namespace, name, node } => {
                let path = format!(
                    "/api/v1/nodes/{}/proxy/reach/{}/{}",
                    escape(node),
                    escape(namespace),
                    escape(name)
                );
                let steps = session.create(&path, &serde_json::to_value(ask)?).await.map_err(|failure| {
                    failure.within(format!("the agent of node {node} does not try the way"))
                })?;
                Ok(serde_json::from_value(steps)?)
            }
        }
    }
}

fn print(steps: &[Step]) {
    for step in steps {
        let state = if step.ok { "ok" } else { "FAILED" };
        println!("  {:10} {state:6} {:>6} ms  {}", step.name, step.millis, step.said);
    }
}

/// Tries the way, prints each step, and says what drops it.
pub(super) async fn examine(
    session: &Session,
    doctor: &Doctor,
    written: &str,
) -> Result<Vec<Finding>, Failure> {
    let mut target = parse(written, &session.namespace, doctor.tries)?;
    let from = From::find(session, doctor).await?;
    let service = match &target.service {
        Some((namespace, name)) => {
            let path = format!("/api/v1/namespaces/{}/services/{}", escape(namespace), escape(name));
            session.find(&path).await?
        }
        None => None,
    };
    complete(session, &mut target, service.as_ref()).await?;
    println!("from {} to {}:{}", from.words(), target.ask.host, target.ask.port);
    let steps = from.reach(session, &target.ask).await?;
    print(&steps);
    let Some(failed) = steps.iter().find(|step| !step.ok) else { return Ok(Vec::new()) };
    let mut findings = Vec::new();
    if failed.name == "DNS" {
        findings.extend(of_dns(session, &target).await?);
    }
    let mut ends = Vec::new();
    if let Some(service) = &service {
        let kind = session.kinds().await?.resolve("services")?.remove(0);
        let name = format!("service/{}", text(&service["metadata"], "name"));
        findings
            .extend(why::explain(session, &kind, service).await?.into_iter().map(|one| about(&name, one)));
        ends = endpoints(session, service, target.ask.port).await?;
        for (pod, address, port) in ends.iter().take(ENDPOINTS) {
            println!("  its endpoint {address}:{port} (pod {})", pod.name_any());
            let ask = Ask { host: address.clone(), port: *port, ..target.ask.clone() };
            print(&from.reach(session, &ask).await?);
        }
    } else if let Some(pod) = &target.pod {
        let pods: Api<Pod> = Api::namespaced(session.client.clone(), &session.namespace);
        ends = vec![(pods.get(pod).await?, target.ask.host.clone(), target.ask.port)];
    }
    findings.extend(of_policies(session, &from, &ends).await?);
    if findings.is_empty() {
        findings.push(Finding::new(format!("{} fails", failed.name)).detail(failed.said.clone()));
    }
    Ok(findings)
}

/// Fills in the address of a pod and the first port.
async fn complete(session: &Session, target: &mut Target, service: Option<&Value>) -> Result<(), Failure> {
    if let Some(name) = &target.pod {
        let path = format!("/api/v1/namespaces/{}/pods/{}", escape(&session.namespace), escape(name));
        let pod = session.get(&path).await?;
        let address = text(&pod["status"], "podIP");
        if address.is_empty() {
            return Err(
                Failure::new(format!("pod {name} has no address")).hint(format!("`decapod why pod/{name}`"))
            );
        }
        address.clone_into(&mut target.ask.host);
        if target.ask.port == 0 {
            let mut ports = list(&pod["spec"]["containers"]).flat_map(|container| list(&container["ports"]));
            let port = ports.find_map(|port| port["containerPort"].as_u64());
            target.ask.port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
        }
    }
    if let (Some(service), 0) = (service, target.ask.port) {
        let port = list(&service["spec"]["ports"]).find_map(|port| port["port"].as_u64());
        target.ask.port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
    }
    if let (Some((namespace, name)), None, true) = (&target.service, service, target.ask.port == 0) {
        return Err(Failure::new(format!("there is no Service {name} in the namespace {namespace}")));
    }
    if target.ask.port == 0 {
        return Err(
            Failure::new("which port? none is declared").hint("write it behind the name, as NAME:8080")
        );
    }
    Ok(())
}

/// Why names are not told.
async fn of_dns(session: &Session, target: &Target) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    if let Some((namespace, name)) = &target.service {
        let path = format!("/api/v1/namespaces/{}/services/{}", escape(namespace), escape(name));
        if session.find(&path).await?.is_none() {
            findings.push(
                Finding::new(format!("there is no Service {name} in the namespace {namespace}"))
                    .way_out("a Service of another namespace is called NAME.NAMESPACE"),
            );
        }
    }
    let query = [("labelSelector", "kubernetes.io/service-name=kube-dns".to_owned())];
    let path = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices";
    let slices = session.get(&with_query(path, &query)).await?;
    let ready = list(&slices["items"])
        .flat_map(|slice| list(&slice["endpoints"]))
        .any(|endpoint| endpoint["conditions"]["ready"] != false);
    if !ready {
        findings.push(
            Finding::new("cluster DNS has no pod that is ready").way_out("`decapod doctor` looks at it"),
        );
    }
    Ok(findings)
}

/// The pods behind a port of a Service, with their addresses and ports.
async fn endpoints(
    session: &Session,
    service: &Value,
    port: u16,
) -> Result<Vec<(Pod, String, u16)>, Failure> {
    let metadata = &service["metadata"];
    let query = [("labelSelector", format!("kubernetes.io/service-name={}", text(metadata, "name")))];
    let namespace = text(metadata, "namespace");
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", escape(namespace));
    let slices = session.get(&with_query(&path, &query)).await?;
    let asked = list(&service["spec"]["ports"]).find(|one| one["port"] == port).unwrap_or(&Value::Null);
    let pods: Api<Pod> = Api::namespaced(session.client.clone(), namespace);
    let mut found = Vec::new();
    for slice in list(&slices["items"]) {
        let ports = list(&slice["ports"]).find(|one| text(one, "name") == text(asked, "name"));
        let Some(port) = ports.and_then(|one| u16::try_from(one["port"].as_u64()?).ok()) else { continue };
        for endpoint in list(&slice["endpoints"]) {
            let (address, pod) = (endpoint["addresses"][0].as_str(), endpoint["targetRef"]["name"].as_str());
            if let (Some(address), Some(pod)) = (address, pod)
                && let Some(pod) = pods.get_opt(pod).await?
            {
                found.push((pod, address.to_owned(), port));
            }
        }
    }
    Ok(found)
}

async fn namespace_of(client: &Client, pod: &Pod) -> Result<Namespace, Failure> {
    Ok(Api::<Namespace>::all(client.clone()).get(&pod.namespace().unwrap_or_default()).await?)
}

/// The policies that drop what goes from the pod to these ends.
async fn of_policies(
    session: &Session,
    from: &From,
    ends: &[(Pod, String, u16)],
) -> Result<Vec<Finding>, Failure> {
    let From::Pod { namespace, name, .. } = from else { return Ok(Vec::new()) };
    let client = &session.client;
    let policies = Api::<NetworkPolicy>::all(client.clone()).list(&ListParams::default()).await?.items;
    let source = Api::<Pod>::namespaced(client.clone(), namespace).get(name).await?;
    let source_namespace = namespace_of(client, &source).await?;
    let source = End { pod: &source, namespace: &source_namespace };
    let mut findings: Vec<Finding> = Vec::new();
    for (pod, _, port) in ends.iter().take(ENDPOINTS) {
        let their_namespace = namespace_of(client, pod).await?;
        let end = End { pod, namespace: &their_namespace };
        for (direction, policy) in policy::denies(&policies, Some(&source), &end, *port) {
            let what = match direction {
                Direction::Ingress => format!("NetworkPolicy {policy} does not let {name} in to its pods"),
                Direction::Egress => format!("NetworkPolicy {policy} does not let {name} out"),
            };
            if findings.iter().any(|finding| finding.what == what) {
                continue;
            }
            let rule = match direction {
                Direction::Ingress => {
                    "ingress rule that names the pod's labels (and its namespace's) under `from`"
                }
                Direction::Egress => "egress rule that names the target under `to` (and one for cluster DNS)",
            };
            findings.push(
                Finding::new(what)
                    .detail(format!("port {port} of pod {}", pod.name_any()))
                    .way_out(format!("a policy with an {rule} lets it through")),
            );
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_written_in_four_ways() {
        let read = |written: &str| parse(written, "shop", 1).unwrap();
        let service = |namespace: &str, name: &str| Some((namespace.to_owned(), name.to_owned()));
        let url = read("https://web.other:8443/x?y=1");
        assert_eq!((url.ask.port, &*url.ask.scheme, &*url.ask.path), (8443, "https", "/x"));
        assert_eq!(url.service, service("other", "web"));
        assert_eq!(
            read("http://example.com/").service,
            service("com", "example"),
            "if there is such a Service"
        );
        let svc = read("svc/web");
        assert_eq!((svc.ask.port, &*svc.ask.host), (0, "web.shop.svc"));
        assert_eq!(svc.service, service("shop", "web"));
        assert_eq!(read("pod/db-0:5432").pod.as_deref(), Some("db-0"));
        let plain = read("10.0.0.7:80");
        assert_eq!((plain.ask.port, plain.service), (80, None));
        for written in ["web", "ftp://x/", "svc/web:x", "10.0.0.7:0"] {
            assert!(parse(written, "shop", 1).is_err(), "{written}");
        }
    }
}
