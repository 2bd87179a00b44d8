//! Which backend answers for a host and a path: pure.
//!
//! What always holds: a request has one answer, whatever the order in which Ingresses came. A name is matched
//! before a wildcard, and that before rules without a host; an exact path before prefixes, and longer prefixes
//! before shorter ones. Of two rules that say the same, that of the older Ingress counts.

use std::collections::HashMap;
use std::sync::Arc;

use decapod_client::ObjectKey;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend, ServiceBackendPort};

/// What answers a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Backend {
    /// A port of a Service.
    Service(ObjectKey, Port),
    /// An object of another kind, which is nothing that serves; with what to call it.
    Resource(String),
}

/// A port of a Service, as an Ingress names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Port {
    /// By its number.
    Number(i32),
    /// By its name.
    Name(String),
}

/// All rules.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Rules of a name.
    hosts: HashMap<String, Paths>,
    /// Rules of all names one label below.
    wildcards: HashMap<String, Paths>,
    /// Rules without a host.
    any: Paths,
    /// What answers where there is no rule at all.
    default: Option<Arc<Backend>>,
}

/// The rules of one host.
#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<String, Arc<Backend>>,
    /// Paths by their elements, the longest first once all are in.
    prefixes: Vec<(Vec<String>, Arc<Backend>)>,
    /// What answers where no path matches.
    default: Option<Arc<Backend>>,
}

impl Routes {
    /// The rules of these Ingresses; the order does not matter.
    pub(super) fn of<'i>(ingresses: impl Iterator<Item = &'i Ingress>) -> Self {
        let mut ingresses: Vec<_> = ingresses.collect();
        ingresses.sort_by_key(|ingress| {
            let made = ingress.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (made, ObjectKey::of(*ingress))
        });
        let mut routes = Self::default();
        ingresses.into_iter().for_each(|ingress| routes.add(ingress));
        let all = routes.hosts.values_mut().chain(routes.wildcards.values_mut()).chain([&mut routes.any]);
        // Stable: of equals the older one stays first.
        all.for_each(|paths| paths.prefixes.sort_by_key(|(path, _)| std::cmp::Reverse(path.len())));
        routes
    }

    fn add(&mut self, ingress: &Ingress) {
        let Some(spec) = &ingress.spec else { return };
        let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
        let default = spec.default_backend.as_ref().and_then(|b| backend(b, namespace)).map(Arc::new);
        let rules = spec.rules.as_deref().unwrap_or_default();
        if rules.is_empty()
            && let Some(default) = &default
        {
            self.default.get_or_insert_with(|| default.clone());
        }
        for rule in rules {
            let host = rule.host.as_deref().unwrap_or_default().to_ascii_lowercase();
            let paths = match host.strip_prefix("*.") {
                Some(parent) => self.wildcards.entry(parent.to_owned()).or_default(),
                None if host.is_empty() => &mut self.any,
                None => self.hosts.entry(host).or_default(),
            };
            if let Some(default) = &default {
                paths.default.get_or_insert_with(|| default.clone());
            }
            let http = rule.http.iter().flat_map(|http| &http.paths);
            http.for_each(|path| paths.add(path, namespace));
        }
    }

    /// What answers for a host (without a port) and a path; `None` if no rule says.
    pub(super) fn find(&self, host: &str, path: &str) -> Option<&Arc<Backend>> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let parent = || host.split_once('.').and_then(|(_, parent)| self.wildcards.get(parent));
        let paths = self.hosts.get(&host).or_else(parent).unwrap_or(&self.any);
        paths.find(path).or(paths.default.as_ref()).or(self.default.as_ref())
    }

    /// All backends that rules name.
    pub(super) fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        let all = self.hosts.values().chain(self.wildcards.values()).chain([&self.any]);
        let of_paths = all.flat_map(|paths| {
            paths.exact.values().chain(paths.prefixes.iter().map(|(_, b)| b)).chain(&paths.default)
        });
        of_paths.chain(&self.default)
    }
}

impl Paths {
    fn add(&mut self, path: &HTTPIngressPath, namespace: &str) {
        let Some(backend) = backend(&path.backend, namespace).map(Arc::new) else { return };
        let text = path.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        if path.path_type == "Exact" {
            self.exact.entry(text.to_owned()).or_insert(backend);
        } else {
            self.prefixes.push((elements(text).map(str::to_owned).collect(), backend));
        }
    }

    fn find(&self, path: &str) -> Option<&Arc<Backend>> {
        let below = |prefix: &[String]| {
            let mut asked = elements(path);
            prefix.iter().all(|element| asked.next() == Some(element))
        };
        let longest = || self.prefixes.iter().find(|(prefix, _)| below(prefix)).map(|(_, backend)| backend);
        self.exact.get(path).or_else(longest)
    }
}

/// What stands between the slashes; a slash at the end says nothing.
fn elements(path: &str) -> impl Iterator<Item = &str> {
    let inner = path.strip_prefix('/').unwrap_or(path);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    inner.split('/').take(if inner.is_empty() { 0 } else { usize::MAX })
}

/// What a rule names, if that is complete.
fn backend(backend: &IngressBackend, namespace: &str) -> Option<Backend> {
    if let Some(service) = &backend.service {
        let key = ObjectKey::new(namespace, &service.name);
        let port = match service.port.as_ref() {
            Some(ServiceBackendPort { name: Some(name), .. }) if !name.is_empty() => Port::Name(name.clone()),
            Some(ServiceBackendPort { number: Some(number), .. }) => Port::Number(*number),
            _ => return None,
        };
        return Some(Backend::Service(key, port));
    }
    backend
        .resource
        .as_ref()
        .map(|resource| Backend::Resource(format!("{} \"{}\"", resource.kind, resource.name)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn ingress(name: &str, made: u32, spec: Value) -> Ingress {
        let object = json!({"metadata": {"namespace": "ns", "name": name,
            "creationTimestamp": format!("2026-01-01T00:00:{made:02}Z")}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    fn to(service: &str) -> Value {
        json!({"service": {"name": service, "port": {"number": 80}}})
    }

    fn rule(host: &str, paths: &[(&str, &str, &str)]) -> Value {
        let paths: Vec<_> = paths
            .iter()
            .map(|(path, kind, service)| json!({"path": path, "pathType": kind, "backend": to(service)}))
            .collect();
        json!({"host": host, "http": {"paths": paths}})
    }

    fn found(routes: &Routes, host: &str, path: &str) -> String {
        match routes.find(host, path).map(|backend| &**backend) {
            Some(Backend::Service(key, _)) => key.name.clone(),
            Some(Backend::Resource(what)) => what.clone(),
            None => "nobody".into(),
        }
    }

    #[test]
    fn paths_match_as_kubernetes_documents_it() {
        // The table of the Ingress documentation: kind, path, asked, whether it matches.
        let table = [
            ("Prefix", "/", "/any/path", true),
            ("Exact", "/foo", "/foo", true),
            ("Exact", "/foo", "/bar", false),
            ("Exact", "/foo", "/foo/", false),
            ("Exact", "/foo/", "/foo", false),
            ("Prefix", "/foo", "/foo", true),
            ("Prefix", "/foo", "/foo/", true),
            ("Prefix", "/foo/", "/foo", true),
            ("Prefix", "/foo/", "/foo/", true),
            ("Prefix", "/aaa/bb", "/aaa/bbb", false),
            ("Prefix", "/aaa/bbb", "/aaa/bbb/ccc", true),
            ("Prefix", "/aaa/bbb/", "/aaa/bbb", true),
            ("Prefix", "/aaa/bbb", "/aaa/bbbxyz", false),
            ("ImplementationSpecific", "/foo", "/foo/bar", true),
        ];
        for (kind, path, asked, matches) in table {
            let one = ingress("one", 1, json!({"rules": [rule("a.test", &[(path, kind, "web")])]}));
            let routes = Routes::of([&one].into_iter());
            assert_eq!(found(&routes, "a.test", asked) == "web", matches, "{kind} {path} asked {asked}");
        }
    }

    #[test]
    fn the_most_specific_rule_answers() {
        let one = ingress(
            "one",
            1,
            json!({"rules": [
                rule("a.test", &[("/", "Prefix", "all"), ("/x", "Prefix", "x"), ("/x/y", "Prefix", "xy"), ("/x/y", "Exact", "exact")]),
                rule("*.test", &[("/", "Prefix", "wild")]),
                rule("", &[("/any", "Prefix", "any")]),
            ]}),
        );
        let two = ingress("two", 2, json!({"defaultBackend": to("fallback")}));
        let three = ingress("three", 3, json!({"rules": [rule("A.test", &[("/x", "Prefix", "late")])]}));
        let routes = Routes::of([&three, &two, &one].into_iter());
        for (host, path, backend) in [
            ("a.test", "/x/y", "exact"),
            ("A.TEST.", "/x/y/z", "xy"),
            ("a.test", "/x/z", "x"),
            ("a.test", "/", "all"),
            ("b.test", "/x", "wild"),
            ("c.b.test", "/any/y", "any"),
            ("test", "/", "fallback"),
            ("other", "/any", "any"),
        ] {
            assert_eq!(found(&routes, host, path), backend, "{host} {path}");
        }
        assert_eq!(routes.backends().count(), 8, "seven rules and the default");
    }

    #[test]
    fn without_a_rule_nobody_answers_and_resources_are_named() {
        let resource = json!({"resource": {"apiGroup": "x.io", "kind": "Bucket", "name": "b"}});
        let one = ingress(
            "one",
            1,
            json!({"rules": [{"host": "a.test", "http": {"paths": [
            {"path": "/b", "pathType": "Prefix", "backend": resource}]}}]}),
        );
        let routes = Routes::of([&one].into_iter());
        assert_eq!(found(&routes, "a.test", "/b"), "Bucket \"b\"");
        assert_eq!(found(&routes, "a.test", "/"), "nobody");
        assert_eq!(found(&Routes::default(), "a.test", "/"), "nobody");
    }
}
