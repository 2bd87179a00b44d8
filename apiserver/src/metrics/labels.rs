//! The labels of a request.

use prometheus_client::encoding::EncodeLabelSet;

use crate::http::RequestInfo;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Route {
    pub(super) verb: String,
    pub(super) group: String,
    pub(super) version: String,
    pub(super) resource: String,
    subresource: String,
    scope: &'static str,
    component: &'static str,
    dry_run: &'static str,
}

/// What was asked for, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    #[prometheus(flatten)]
    pub(super) route: Route,
    pub(super) code: u16,
}

impl Labels {
    pub(crate) fn new(route: Route, code: u16) -> Self {
        Self { route, code }
    }
}

impl Route {
    pub(crate) fn of(info: &RequestInfo, apply: bool) -> Self {
        let a = &info.attributes;
        let row = decapod_api::resource::find(&a.group, &a.version, &a.resource);
        let known = row.is_some();
        let text = |t: &str| if known { t.to_owned() } else { String::new() };
        let scope = match (known, a.name.is_empty(), a.namespace.is_empty()) {
            (false, ..) => "",
            (true, false, _) => "resource",
            (true, true, false) => "namespace",
            (true, true, true) => "cluster",
        };
        let verb = match a.verb.as_str() {
            "patch" if apply => "APPLY".to_owned(),
            verb @ ("get" | "list" | "watch" | "create" | "update" | "patch" | "delete"
            | "deletecollection") => match verb {
                // Kubernetes counts methods of requests that change one object, and names of the others.
                "create" => "POST".to_owned(),
                "update" => "PUT".to_owned(),
                other => other.to_ascii_uppercase(),
            },
            "post" | "put" | "head" | "options" => a.verb.to_ascii_uppercase(),
            _ => "other".to_owned(),
        };
        let streams = matches!(a.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy" | "log");
        let known_subresource = row.is_some_and(|row| row.subresource(&a.subresource).is_some());
        Self {
            verb: if known && streams { "CONNECT".to_owned() } else { verb },
            group: text(&a.group),
            version: text(&a.version),
            resource: text(&a.resource),
            subresource: if known_subresource { a.subresource.clone() } else { String::new() },
            scope,
            component: "apiserver",
            dry_run: if info.query.get("dryRun") == Some("All") { "All" } else { "" },
        }
    }

    /// Whether Kubernetes has deprecated the API, without saying when it goes.
    pub(super) fn is_deprecated(&self) -> bool {
        self.group.is_empty() && matches!(self.resource.as_str(), "endpoints" | "componentstatuses")
    }

    /// For what has no such label.
    pub(super) fn without_dry_run(&self) -> Self {
        Self { dry_run: "", ..self.clone() }
    }
}
