//! What a request's method and path ask for, in Kubernetes' terms.

use http::Method;

use super::query::{Query, percent_decode};
use crate::auth::Attributes;

/// A request taken apart: see `k8s.io/apiserver`'s request info for the meaning of each part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// What authorization is asked about: verb, group, resource, namespace, name or path.
    pub(crate) attributes: Attributes,
    /// What follows the subresource in the path (proxies).
    pub(crate) rest: String,
    /// The decoded query.
    pub(crate) query: Query,
}

impl RequestInfo {
    pub(crate) fn parse(method: &Method, path: &str, query: Option<&str>) -> Self {
        let query = Query::parse(query);
        let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(percent_decode).collect();
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match words.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Self::plain(method, path, query),
        };
        let mut info = Self { query, ..Self::default() };
        info.attributes.group = group.to_owned();
        info.attributes.version = version.to_owned();
        info.attributes.path = path.to_owned();
        // The old way to watch: the path says so.
        let (rest, watch) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
            _ => (rest, false),
        };
        info.resource(rest);
        info.attributes.verb = if watch { "watch" } else { info.verb(method) }.to_owned();
        info.name_from_field_selector();
        info
    }

    fn plain(method: &Method, path: &str, query: Query) -> Self {
        let attributes = Attributes {
            verb: method.as_str().to_ascii_lowercase(),
            path: path.to_owned(),
            ..Attributes::default()
        };
        Self { attributes, rest: String::new(), query }
    }

    fn resource(&mut self, words: &[&str]) {
        let a = &mut self.attributes;
        let words = match words {
            // `namespaces/x` and its own subresources are about the namespace itself.
            ["namespaces", name] => {
                a.namespace = (*name).to_owned();
                words
            }
            ["namespaces", name, "status" | "finalize"] => {
                a.namespace = (*name).to_owned();
                words
            }
            ["namespaces", namespace, rest @ ..] => {
                a.namespace = (*namespace).to_owned();
                rest
            }
            _ => words,
        };
        let mut words = words.iter();
        let mut next = || words.next().map(|w| (*w).to_owned()).unwrap_or_default();
        a.resource = next();
        a.name = next();
        a.subresource = next();
        self.rest = words.copied().collect::<Vec<_>>().join("/");
    }

    fn verb(&self, method: &Method) -> &'static str {
        let named = !self.attributes.name.is_empty();
        match *method {
            Method::GET | Method::HEAD if named => "get",
            Method::GET | Method::HEAD if self.query.flag("watch") => "watch",
            Method::GET | Method::HEAD => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if named => "delete",
            Method::DELETE => "deletecollection",
            _ => "",
        }
    }

    /// A list or watch of one object by `fieldSelector=metadata.name=x` is authorized as that
    /// object's.
    fn name_from_field_selector(&mut self) {
        let a = &mut self.attributes;
        if !matches!(a.verb.as_str(), "list" | "watch" | "deletecollection") {
            return;
        }
        // A selector that cannot be read is refused later on, and allows nothing more until then.
        let selector = self.query.get("fieldSelector").and_then(|s| s.parse().ok());
        let selector: decapod_api::fields::Selector = selector.unwrap_or_default();
        if let (true, Some(name)) = (a.name.is_empty(), selector.exact("metadata.name")) {
            a.name = name.to_owned();
        }
        a.fields = selector;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> (String, RequestInfo) {
        let uri: http::Uri = uri.parse().unwrap();
        let info = RequestInfo::parse(&method.parse().unwrap(), uri.path(), uri.query());
        let a = &info.attributes;
        let text =
            [&a.verb, &a.group, &a.resource, &a.subresource, &a.namespace, &a.name].map(String::as_str);
        (text.join("|"), info)
    }

    #[test]
    fn resources() {
        for (method, uri, want) in [
            ("GET", "/api/v1/namespaces/web/pods/a", "get||pods||web|a"),
            ("GET", "/api/v1/namespaces/web/pods?watch=1", "watch||pods||web|"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list||pods|||x"),
            ("GET", "/api/v1/namespaces", "list||namespaces|||"),
            ("DELETE", "/api/v1/namespaces/web", "delete||namespaces||web|web"),
            ("PUT", "/api/v1/namespaces/web/finalize", "update||namespaces|finalize|web|web"),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/web/deployments/d/scale",
                "patch|apps|deployments|scale|web|d",
            ),
            ("DELETE", "/apis/apps/v1/namespaces/web/deployments", "deletecollection|apps|deployments||web|"),
            (
                "GET",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "get|rbac.authorization.k8s.io|clusterroles|||system:node",
            ),
            ("GET", "/api/v1/watch/pods", "watch||pods|||"),
            ("GET", "/apis/apps/v1/watch/namespaces/web/deployments/d", "watch|apps|deployments||web|d"),
            ("GET", "/api/v1/watch/namespaces/web", "watch||namespaces||web|web"),
            ("GET", "/api/v1/namespaces/status", "get||namespaces||status|status"),
        ] {
            assert_eq!(parse(method, uri).0, want, "{method} {uri}");
        }
        let (_, info) = parse("GET", "/api/v1/nodes/n1/proxy/metrics/cadvisor");
        assert_eq!((info.attributes.subresource.as_str(), info.rest.as_str()), ("proxy", "metrics/cadvisor"));
    }

    #[test]
    fn plain_paths() {
        for uri in ["/livez", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/version"] {
            let (_, info) = parse("GET", uri);
            assert!(!info.attributes.is_resource(), "{uri}");
            assert_eq!((info.attributes.verb.as_str(), info.attributes.path.as_str()), ("get", uri));
        }
    }
}
