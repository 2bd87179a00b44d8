//! What a cluster serves, from its aggregated discovery; names as people write them (`deploy`,
//! `deployments.apps`, `pod/web`) resolved against it.

use serde_json::Value;

use super::session::escape;
use crate::failure::Failure;

/// A kind that the cluster serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    singular: String,
    short_names: Vec<String>,
    categories: Vec<String>,
    pub(crate) namespaced: bool,
    verbs: Vec<String>,
}

/// All kinds, in the order in which the cluster prefers them.
#[derive(Debug)]
pub(crate) struct Kinds(Vec<Kind>);

/// Objects that a command names: a kind, and names of it (none: all of them).
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) names: Vec<String>,
}

impl Kind {
    /// The path of an object, or of the collection.
    pub(crate) fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        let namespace = namespace
            .filter(|_| self.namespaced)
            .map(|n| format!("/namespaces/{}", escape(n)))
            .unwrap_or_default();
        let name = name.map(|n| format!("/{}", escape(n))).unwrap_or_default();
        format!("{root}{namespace}/{}{name}", self.plural)
    }

    /// `deployment.apps`, as kubectl names an object's kind.
    pub(crate) fn display(&self) -> String {
        if self.group.is_empty() {
            self.singular.clone()
        } else {
            format!("{}.{}", self.singular, self.group)
        }
    }

    /// Whether it is called so: plural, singular, kind or short name, with or without its group.
    fn called(&self, name: &str) -> bool {
        let (name, group) = name.split_once('.').map_or((name, None), |(n, g)| (n, Some(g)));
        let qualified = format!("{}.{}", self.version, self.group);
        let in_group = group.is_none_or(|g| g == self.group || g == qualified);
        in_group
            && (name == self.plural || name == self.singular || self.short_names.iter().any(|s| s == name))
    }
}

impl Kinds {
    /// Asks the cluster.
    pub(crate) async fn discover(client: &kube::Client) -> Result<Self, Failure> {
        let mut kinds = Vec::new();
        for path in ["/api", "/apis"] {
            let request = http::Request::get(path)
                .header(
                    "accept",
                    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                )
                .body(Vec::new())
                .map_err(|e| Failure::new(format!("discovery: {e}")))?;
            let answer: Value = client.request(request).await?;
            let groups = answer["items"]
                .as_array()
                .ok_or_else(|| Failure::new("the server does not serve aggregated discovery"))?;
            for group in groups {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                for version in list(&group["versions"]) {
                    let number = version["version"].as_str().unwrap_or_default();
                    kinds.extend(list(&version["resources"]).map(|r| kind(name, number, r)));
                }
            }
        }
        Ok(Self(kinds))
    }

    /// The kind of a manifest.
    pub(crate) fn of_manifest(&self, api_version: &str, kind: &str) -> Result<&Kind, Failure> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        self.0.iter().find(|k| k.kind == kind && k.group == group && k.version == version).ok_or_else(|| {
            let near = self.0.iter().find(|k| k.kind.eq_ignore_ascii_case(kind));
            let failure =
                Failure::new(format!("no matches for kind \"{kind}\" in version \"{api_version}\""));
            match near {
                Some(k) => failure.hint(format!(
                    "the cluster serves {} in {}",
                    k.kind,
                    decapod_api::resource::api_version(&k.group, &k.version)
                )),
                None => failure.hint(
                    "check the manifest's `kind`, or install the CustomResourceDefinition that defines it",
                ),
            }
        })
    }

    /// The kinds that a name stands for: one kind, or the listable members of a category such as `all`.
    pub(crate) fn resolve(&self, name: &str) -> Result<Vec<Kind>, Failure> {
        let lower = name.to_lowercase();
        if let Some(kind) = self.0.iter().find(|k| k.called(&lower)) {
            return Ok(vec![kind.clone()]);
        }
        let members =
            self.0.iter().filter(|k| k.categories.contains(&lower) && k.verbs.iter().any(|v| v == "list"));
        let mut kinds: Vec<Kind> = Vec::new();
        for kind in members {
            if !kinds.iter().any(|k| k.plural == kind.plural && k.group == kind.group) {
                kinds.push(kind.clone());
            }
        }
        if kinds.is_empty() {
            let near = self.0.iter().find(|k| k.plural.starts_with(&lower) || lower.starts_with(&k.singular));
            let failure = Failure::new(format!("the server doesn't have a resource type \"{name}\""));
            return Err(match near {
                Some(k) => failure.hint(format!("did you mean {}?", k.plural)),
                None => failure,
            });
        }
        Ok(kinds)
    }

    /// What `TYPE[,TYPE] [NAME…]` or `TYPE/NAME…` names.
    pub(crate) fn targets(&self, words: &[String]) -> Result<Vec<Target>, Failure> {
        let Some(first) = words.first() else {
            return Err(Failure::new("you must specify the type of resource")
                .hint("for example: `pods`, `deployment/web`, `svc kubernetes`"));
        };
        if first.contains('/') {
            let mut targets = Vec::new();
            for word in words {
                let Some((kind, name)) = word.split_once('/').filter(|(k, n)| !k.is_empty() && !n.is_empty())
                else {
                    return Err(Failure::new(format!(
                        "\"{word}\": there is no need to specify a resource type as a separate argument when passing arguments in resource/name form"
                    )));
                };
                let kinds = self.resolve(kind)?;
                targets.extend(kinds.into_iter().map(|kind| Target { kind, names: vec![name.to_owned()] }));
            }
            return Ok(targets);
        }
        let mut targets = Vec::new();
        for kind in first.split(',').filter(|k| !k.is_empty()) {
            targets.extend(
                self.resolve(kind)?.into_iter().map(|kind| Target { kind, names: words[1..].to_vec() }),
            );
        }
        Ok(targets)
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn texts(value: &Value) -> Vec<String> {
    list(value).filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn kind(group: &str, version: &str, resource: &Value) -> Kind {
    let text = |key: &str| resource[key].as_str().unwrap_or_default().to_owned();
    let kind = resource["responseKind"]["kind"].as_str().unwrap_or_default().to_owned();
    let singular = text("singularResource");
    Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        singular: if singular.is_empty() { kind.to_lowercase() } else { singular },
        kind,
        plural: text("resource"),
        short_names: texts(&resource["shortNames"]),
        categories: texts(&resource["categories"]),
        namespaced: resource["scope"] == "Namespaced",
        verbs: texts(&resource["verbs"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kinds() -> Kinds {
        let pods = json!({"resource": "pods", "responseKind": {"kind": "Pod"}, "scope": "Namespaced", "singularResource": "pod",
            "shortNames": ["po"], "categories": ["all"], "verbs": ["list"]});
        let deployments = json!({"resource": "deployments", "responseKind": {"kind": "Deployment"}, "scope": "Namespaced",
            "singularResource": "deployment", "shortNames": ["deploy"], "categories": ["all"], "verbs": ["list"]});
        let nodes = json!({"resource": "nodes", "responseKind": {"kind": "Node"}, "scope": "Cluster", "shortNames": ["no"], "verbs": ["list"]});
        Kinds(vec![kind("", "v1", &pods), kind("", "v1", &nodes), kind("apps", "v1", &deployments)])
    }

    fn named(words: &[&str]) -> Vec<(String, Vec<String>)> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        kinds().targets(&words).unwrap().into_iter().map(|t| (t.kind.plural, t.names)).collect()
    }

    #[test]
    fn names_as_people_write_them() {
        for name in
            ["deploy", "deployment", "deployments", "deployments.apps", "deploy.v1.apps", "Deployment"]
        {
            assert_eq!(named(&[name]), [("deployments".to_owned(), vec![])], "{name}");
        }
        assert_eq!(named(&["pod/a", "deploy/b"]).len(), 2);
        assert_eq!(named(&["po", "a", "b"]), [("pods".to_owned(), vec!["a".to_owned(), "b".to_owned()])]);
        assert_eq!(named(&["all"]).len(), 2);
        assert_eq!(named(&["po,no"]).len(), 2);
        let unknown = kinds().targets(&["podz".to_owned()]).unwrap_err().to_string();
        assert!(
            unknown.contains("doesn't have a resource type \"podz\"")
                && unknown.contains("did you mean pods?"),
            "{unknown}"
        );
    }

    #[test]
    fn paths() {
        let kinds = kinds();
        let path = |name: &str| kinds.resolve(name).unwrap()[0].path(Some("ns"), Some("a"));
        assert_eq!(path("deploy"), "/apis/apps/v1/namespaces/ns/deployments/a");
        assert_eq!(path("node"), "/api/v1/nodes/a");
    }
}
