//! The environment of a container: `env`, `envFrom`, `valueFrom`, `$(VAR)` expansion, and the variables by which
//! Kubernetes announces services.
//!
//! Pure: the objects that are referred to come through [`Lookup`], so that a missing one is a typed error here and a
//! waiting container there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use decapod_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, EnvVarSource, Node, ObjectFieldSelector, Pod, ResourceFieldSelector,
    Secret, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::env_file;
use crate::pod::spec;

/// Why an environment cannot be made; the container waits with `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, namespace: String, name: String, key: String },
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    #[error("unsupported container resource : {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
    #[error("invalid divisor {0}")]
    Divisor(String),
    #[error("couldn't parse env file: {0}")]
    File(String),
    #[error("environment variable key \"{key}\" not found in file \"{file}\"")]
    NoFileKey { key: String, file: String },
}

/// What an environment is made from.
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) pod_ips: &'a [String],
    pub(crate) host_ips: &'a [String],
    pub(crate) node: Option<&'a Node>,
    /// Services of the pod's namespace, and `default/kubernetes`.
    pub(crate) services: &'a [Arc<Service>],
}

/// Access to the objects that the pod refers to, already fetched.
pub(crate) trait Lookup {
    fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, Error>;
    fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>, Error>;
    /// A file of one of the pod's volumes.
    fn file(&self, volume: &str, path: &str) -> Result<String, Error>;
}

/// Variables in the order in which they were defined.
#[derive(Debug, Default)]
struct Variables {
    order: Vec<String>,
    values: HashMap<String, String>,
}

impl Variables {
    fn set(&mut self, name: String, value: String) {
        if !self.values.contains_key(&name) {
            self.order.push(name.clone());
        }
        self.values.insert(name, value);
    }
}

/// The container's environment; the names of secrets and config maps were looked up through `lookup`.
pub(crate) fn environment(
    container: &Container,
    facts: &Facts<'_>,
    lookup: &dyn Lookup,
) -> Result<Vec<(String, String)>, Error> {
    let mut variables = Variables::default();
    for (name, value) in from_sources(container, lookup)? {
        variables.set(name, value);
    }
    let services = services(facts);
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(variable, container, facts, lookup, &variables, &services)? {
            variables.set(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !variables.values.contains_key(&name) {
            variables.set(name, value);
        }
    }
    let Variables { order, mut values } = variables;
    Ok(order.into_iter().filter_map(|name| values.remove(&name).map(|value| (name, value))).collect())
}

/// `command` and `args` with the container's own variables expanded.
pub(crate) fn expand_all(words: Option<&Vec<String>>, environment: &[(String, String)]) -> Vec<String> {
    let map: HashMap<&str, &str> = environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    words
        .into_iter()
        .flatten()
        .map(|word| expand(word, |name| map.get(name).map(|v| (*v).to_owned())))
        .collect()
}

/// Expands `$(NAME)`; `$$` is a dollar sign, and what is not defined stays as it is written.
pub(crate) fn expand(text: &str, get: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match get(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

fn from_sources(container: &Container, lookup: &dyn Lookup) -> Result<Vec<(String, String)>, Error> {
    let mut all = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match lookup.config_map(&reference.name)? {
                Some(map) => {
                    all.extend(map.data.iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), v.clone())))
                }
                None if reference.optional == Some(true) => {}
                None => return Err(not_found("configmap", &reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match lookup.secret(&reference.name)? {
                Some(secret) => all
                    .extend(secret.data.iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), text(&v.0)))),
                None if reference.optional == Some(true) => {}
                None => return Err(not_found("secret", &reference.name)),
            }
        }
    }
    Ok(all)
}

fn not_found(kind: &'static str, name: &str) -> Error {
    Error::NotFound { kind, name: name.to_owned() }
}

/// Variables are text, because they may be expanded into others: bytes that are not UTF-8 are replaced.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One variable's value; `None` where an optional source is missing.
fn value(
    variable: &EnvVar,
    container: &Container,
    facts: &Facts<'_>,
    lookup: &dyn Lookup,
    defined: &Variables,
    services: &BTreeMap<String, String>,
) -> Result<Option<String>, Error> {
    let Some(source) = &variable.value_from else {
        let get = |name: &str| defined.values.get(name).or_else(|| services.get(name)).cloned();
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), get)));
    };
    from(source, container, facts, lookup)
}

fn from(
    source: &EnvVarSource,
    container: &Container,
    facts: &Facts<'_>,
    lookup: &dyn Lookup,
) -> Result<Option<String>, Error> {
    if let Some(reference) = &source.field_ref {
        return field(reference, facts).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        return resource(reference, facts.pod, Some(container), facts.node).map(Some);
    }
    let namespace = spec::namespace(facts.pod);
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = lookup.config_map(&reference.name)? else {
            return if optional { Ok(None) } else { Err(not_found("configmap", &reference.name)) };
        };
        let value = map.data.iter().flatten().find(|(k, _)| **k == reference.key).map(|(_, v)| v.clone());
        return key(value, optional, "ConfigMap", namespace, &reference.name, &reference.key);
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(secret) = lookup.secret(&reference.name)? else {
            return if optional { Ok(None) } else { Err(not_found("secret", &reference.name)) };
        };
        let value = secret.data.iter().flatten().find(|(k, _)| **k == reference.key).map(|(_, v)| text(&v.0));
        return key(value, optional, "Secret", namespace, &reference.name, &reference.key);
    }
    if let Some(reference) = &source.file_key_ref {
        let text = lookup.file(&reference.volume_name, &reference.path)?;
        let value = env_file::find(&text, &reference.key).map_err(|e| Error::File(e.to_string()))?;
        // What is empty counts as not there, as in Kubernetes.
        return match value.filter(|v| !v.is_empty()) {
            None if reference.optional != Some(true) => {
                Err(Error::NoFileKey { key: reference.key.clone(), file: reference.path.clone() })
            }
            value => Ok(value),
        };
    }
    Ok(None)
}

fn key(
    value: Option<String>,
    optional: bool,
    kind: &'static str,
    namespace: &str,
    name: &str,
    key: &str,
) -> Result<Option<String>, Error> {
    if value.is_none() && !optional {
        return Err(Error::NoKey {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
        });
    }
    Ok(value)
}

/// The value of a `fieldRef`, as in environment and downward API volumes.
pub(crate) fn field(reference: &ObjectFieldSelector, facts: &Facts<'_>) -> Result<String, Error> {
    let path = reference.field_path.as_str();
    let pod = facts.pod;
    let meta = &pod.metadata;
    let pod_spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(Error::FieldPath(path.to_owned())),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => spec::name(pod).to_owned(),
        "metadata.namespace" => spec::namespace(pod).to_owned(),
        "metadata.uid" => spec::uid(pod).to_owned(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => pod_spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            pod_spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default()
        }
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(Error::FieldPath(path.to_owned())),
    })
}

/// Splits `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// Labels or annotations as a downward API file has them: one `key="value"` per line, sorted.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up.
pub(crate) fn resource(
    reference: &ResourceFieldSelector,
    pod: &Pod,
    container: Option<&Container>,
    node: Option<&Node>,
) -> Result<String, Error> {
    let named;
    let container = match reference.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => {
            let found = pod.spec.as_ref().and_then(|s| spec::find(s, name));
            named = found.ok_or_else(|| Error::Container(name.to_owned()))?.0;
            &named
        }
        None => container.ok_or_else(|| Error::Container(String::new()))?,
    };
    let resource = reference.resource.as_str();
    let (kind, name) = resource.split_once('.').ok_or_else(|| Error::Resource(resource.to_owned()))?;
    let resources = container.resources.as_ref();
    let map = match kind {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(Error::Resource(resource.to_owned())),
    };
    let set = map.and_then(|m| m.get(name)).and_then(|q| Quantity::try_from(q).ok());
    // Without a limit the container may use what the node has.
    let fallback = || {
        let node = node.filter(|_| kind == "limits")?.status.as_ref()?.allocatable.as_ref()?;
        Quantity::try_from(node.get(name)?).ok()
    };
    let amount = set.or_else(fallback).unwrap_or(Quantity::ZERO);
    divided(amount, reference.divisor.as_ref(), name == "cpu")
}

fn divided(amount: Quantity, divisor: Option<&ApiQuantity>, cpu: bool) -> Result<String, Error> {
    let one = Quantity::from_units(1);
    let divisor = match divisor.filter(|d| !d.0.is_empty() && d.0 != "0") {
        Some(d) => Quantity::try_from(d).map_err(|_| Error::Divisor(d.0.clone()))?,
        None => one,
    };
    let (amount, divisor) =
        if cpu { (amount.millis(), divisor.millis()) } else { (amount.units(), divisor.units()) };
    let divisor = divisor.max(1);
    Ok((amount / divisor + i64::from(amount % divisor != 0)).to_string())
}

/// The variables of all services that the pod is told of.
fn services(facts: &Facts<'_>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let links = facts.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let namespace = spec::namespace(facts.pod);
    for service in facts.services {
        let meta = &service.metadata;
        let own = meta.namespace.as_deref() == Some(namespace);
        let master =
            meta.namespace.as_deref() == Some("default") && meta.name.as_deref() == Some("kubernetes");
        if master || (own && links) {
            service_variables(service, &mut all);
        }
    }
    all
}

fn service_variables(service: &Service, all: &mut BTreeMap<String, String>) {
    let (Some(service_spec), Some(name)) = (&service.spec, &service.metadata.name) else { return };
    let Some(ip) = service_spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return;
    };
    let name = variable(name);
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    all.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    for (index, port) in service_spec.ports.iter().flatten().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            all.insert(format!("{name}_SERVICE_PORT"), port.port.to_string());
            all.insert(format!("{name}_PORT"), url.clone());
        }
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            all.insert(format!("{name}_SERVICE_PORT_{}", variable(port_name)), port.port.to_string());
        }
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        all.insert(prefix.clone(), url);
        all.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        all.insert(format!("{prefix}_PORT"), port.port.to_string());
        all.insert(format!("{prefix}_ADDR"), ip.to_owned());
    }
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
