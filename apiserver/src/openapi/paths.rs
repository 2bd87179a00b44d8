//! The operations of kinds, and of what is served beside them.

use decapod_api::resource::{Gvk, Resource, Subresource};
use serde_json::{Map, Value, json};

use super::schema::{list_type, type_of};
use super::{Format, parameters};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
/// What objects are answered as.
const PRODUCES: [&str; 2] = ["application/json", "application/yaml"];
/// What watches are answered as, besides.
const STREAMS: &str = "application/json;stream=watch";
/// What patches are sent as.
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
/// Subresources that are connections, of any method.
const CONNECTIONS: [&str; 4] = ["attach", "exec", "portforward", "proxy"];
/// The methods of a proxy.
const PROXY: [&str; 5] = ["delete", "get", "patch", "post", "put"];

/// The paths of one document.
pub(super) type Paths = Vec<(String, Value)>;

/// An operation before it is written down.
struct Operation {
    action: &'static str,
    id: String,
    said: String,
    tag: String,
    gvk: Option<Gvk>,
    parameters: Vec<Value>,
    /// The type of the body, whether it must be there.
    body: Option<(String, bool)>,
    /// The codes of success, and what comes with them; nothing for text.
    answers: &'static [u16],
    answer: Option<String>,
}

/// A group and version as operations are named after it.
struct Names {
    /// `CoreV1`.
    title: String,
    /// `core_v1`.
    tag: String,
}

impl Names {
    fn of(group: &str, version: &str) -> Self {
        let group = if group.is_empty() { "core" } else { group.trim_end_matches(".k8s.io") };
        let words: String = group.split('.').map(title).collect();
        let mut tag = words.clone();
        tag[..1].make_ascii_lowercase();
        Self { title: format!("{words}{}", title(version)), tag: format!("{tag}_{version}") }
    }
}

fn title(word: &str) -> String {
    let mut word = word.to_owned();
    if let Some(first) = word.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    word
}

/// Writes the paths of one kind.
pub(super) struct Writer<'a> {
    format: Format,
    row: &'a Resource,
    names: Names,
    root: String,
    paths: Paths,
}

impl<'a> Writer<'a> {
    pub(super) fn new(format: Format, row: &'a Resource) -> Self {
        let root = format!("/{}", super::root(row.group, row.version));
        Self { format, row, names: Names::of(row.group, row.version), root, paths: Vec::new() }
    }

    /// All paths of the kind.
    pub(super) fn write(mut self) -> Paths {
        let row = self.row;
        let listed = row.verbs.contains(&"list");
        let scope = if row.namespaced() { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{scope}/{}", row.plural);
        if row.namespaced() && listed {
            self.collection(&format!("/{}", row.plural), true, &["list"]);
        }
        self.collection(&collection, false, &["list", "create", "deletecollection"]);
        let one: Vec<_> = verbs(row, &["get", "update", "patch", "delete"]);
        if !one.is_empty() {
            let operations = one.iter().map(|verb| (method(verb), self.verb(verb, None))).collect();
            self.add(format!("{collection}/{{name}}"), operations, true, row.kind);
        }
        for sub in row.subresources {
            self.subresource(&format!("{collection}/{{name}}/{}", sub.name), sub);
        }
        if row.verbs.contains(&"watch") {
            if row.namespaced() {
                self.watch(&format!("/watch/{}", row.plural), "ListForAllNamespaces", false);
            }
            self.watch(&format!("/watch{collection}"), "List", false);
            self.watch(&format!("/watch{collection}/{{name}}"), "", true);
        }
        self.paths
    }

    fn add(&mut self, path: String, operations: Vec<(&str, Operation)>, named: bool, kind: &str) {
        let mut item = Map::new();
        let written: Vec<(String, Value)> =
            operations.into_iter().map(|(method, one)| (method.to_owned(), one.write(self.format))).collect();
        item.extend(written);
        let mut common = Vec::new();
        if named {
            common.push(parameters::name(kind, self.format));
        }
        if path.contains("{namespace}") {
            common.push(parameters::namespace(self.format));
        }
        if path.ends_with("{path}") {
            common.push(parameters::path(self.format));
        }
        common.push(parameters::pretty(self.format));
        item.insert("parameters".to_owned(), common.into());
        self.paths.push((format!("{}{path}", self.root), Value::Object(item)));
    }

    fn collection(&mut self, path: &str, across: bool, wanted: &[&'static str]) {
        let operations: Vec<_> = verbs(self.row, wanted)
            .into_iter()
            .map(|verb| {
                let mut operation = self.verb(verb, None);
                if across {
                    operation.id = format!("list{}{}ForAllNamespaces", self.names.title, self.row.kind);
                }
                (method(verb), operation)
            })
            .collect();
        if !operations.is_empty() {
            self.add(path.to_owned(), operations, false, self.row.kind);
        }
    }

    /// `NamespacedPod`.
    fn scoped(&self) -> String {
        let scope = if self.row.namespaced() { "Namespaced" } else { "" };
        format!("{scope}{}", self.row.kind)
    }

    fn verb(&self, verb: &'static str, sub: Option<&Subresource>) -> Operation {
        let (row, names) = (self.row, &self.names);
        let gvk = sub.and_then(|sub| sub.kind).unwrap_or(row.gvk());
        let object = type_of(gvk).unwrap_or(row.type_name).to_owned();
        let what = match sub {
            Some(sub) => format!("{} of the specified {}", sub.name, row.kind),
            None => format!("the specified {}", row.kind),
        };
        let suffix = sub.map_or(String::new(), |sub| title(sub.name));
        let id = |words: &str| format!("{words}{}{}{suffix}", names.title, self.scoped());
        let status = format!("{META}Status");
        let options = Some((format!("{META}DeleteOptions"), false));
        let (action, id, said, body, answers, answer): (_, _, _, _, &'static [u16], _) = match verb {
            "list" => (
                "list",
                id("list"),
                format!("list or watch objects of kind {}", row.kind),
                None,
                &[200],
                list_type(row),
            ),
            "create" => (
                "post",
                id("create"),
                match sub {
                    Some(sub) => format!("create {} of a {}", sub.name, row.kind),
                    None => format!("create a {}", row.kind),
                },
                Some((object.clone(), true)),
                &[200, 201, 202],
                object,
            ),
            "update" => (
                "put",
                id("replace"),
                format!("replace {what}"),
                Some((object.clone(), true)),
                &[200, 201],
                object,
            ),
            "patch" => (
                "patch",
                id("patch"),
                format!("partially update {what}"),
                Some((format!("{META}Patch"), true)),
                &[200, 201],
                object,
            ),
            "delete" => {
                let whole = crate::registry::strategy::of(row).returns_deleted();
                (
                    "delete",
                    id("delete"),
                    format!("delete a {}", row.kind),
                    options,
                    &[200, 202],
                    if whole { object } else { status },
                )
            }
            "deletecollection" => (
                "deletecollection",
                format!("delete{}Collection{}", names.title, self.scoped()),
                format!("delete collection of {}", row.kind),
                options,
                &[200],
                status,
            ),
            _ => ("get", id("read"), format!("read {what}"), None, &[200], object),
        };
        Operation {
            action,
            id,
            said,
            tag: names.tag.clone(),
            gvk: Some(gvk),
            parameters: parameters::of_verb(verb, self.format),
            body,
            answers,
            answer: Some(answer),
        }
    }

    fn subresource(&mut self, path: &str, sub: &'static Subresource) {
        let kind = sub.kind.map_or(self.row.kind, |gvk| gvk.kind);
        if CONNECTIONS.contains(&sub.name) {
            let methods: &[&str] = if sub.name == "proxy" { &PROXY } else { &["get", "post"] };
            self.connection(path, sub, methods, "");
            if sub.name == "proxy" {
                self.connection(&format!("{path}/{{path}}"), sub, methods, "WithPath");
            }
            return;
        }
        let operations: Vec<_> = sub
            .verbs
            .iter()
            .map(|&verb| {
                let mut operation = self.verb(verb, Some(sub));
                if sub.name == "log" {
                    operation.parameters = parameters::of_connection("log", kind, self.format);
                    operation.answer = None;
                }
                (method(verb), operation)
            })
            .collect();
        self.add(path.to_owned(), operations, true, kind);
    }

    fn connection(&mut self, path: &str, sub: &'static Subresource, methods: &[&'static str], suffix: &str) {
        let gvk = sub.kind.unwrap_or(self.row.gvk());
        let operations: Vec<_> = methods
            .iter()
            .map(|&method| {
                let (names, scoped) = (&self.names, self.scoped());
                let id =
                    format!("connect{}{}{scoped}{}{suffix}", names.title, title(method), title(sub.name));
                let said = format!(
                    "connect {} requests to {} of {}",
                    method.to_uppercase(),
                    sub.name,
                    self.row.kind
                );
                let parameters = parameters::of_connection(sub.name, gvk.kind, self.format);
                (
                    method,
                    Operation {
                        action: "connect",
                        id,
                        said,
                        tag: names.tag.clone(),
                        gvk: Some(gvk),
                        parameters,
                        body: None,
                        answers: &[200],
                        answer: None,
                    },
                )
            })
            .collect();
        self.add(path.to_owned(), operations, true, gvk.kind);
    }

    fn watch(&mut self, path: &str, suffix: &str, named: bool) {
        let row = self.row;
        let across = suffix.ends_with("ForAllNamespaces");
        let scoped = if across { row.kind.to_owned() } else { self.scoped() };
        let operation = Operation {
            action: if named { "watch" } else { "watchlist" },
            id: format!("watch{}{scoped}{suffix}", self.names.title),
            said: format!(
                "watch changes of objects of kind {}. Deprecated: use the parameter watch with a list.",
                row.kind
            ),
            tag: self.names.tag.clone(),
            gvk: Some(row.gvk()),
            parameters: parameters::of_verb("watch", self.format),
            body: None,
            answers: &[200],
            answer: Some(format!("{META}WatchEvent")),
        };
        self.add(path.to_owned(), vec![("get", operation)], named, row.kind);
    }
}

fn verbs(row: &Resource, wanted: &[&'static str]) -> Vec<&'static str> {
    wanted.iter().copied().filter(|verb| row.verbs.contains(verb)).collect()
}

fn method(verb: &str) -> &'static str {
    match verb {
        "create" => "post",
        "update" => "put",
        "patch" => "patch",
        "delete" | "deletecollection" => "delete",
        _ => "get",
    }
}

impl Operation {
    fn write(self, format: Format) -> Value {
        let mut operation = json!({
            "description": self.said,
            "operationId": self.id,
            "tags": [self.tag],
            "x-kubernetes-action": self.action,
        });
        if let Some(gvk) = self.gvk {
            operation["x-kubernetes-group-version-kind"] =
                json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind});
        }
        let reference = |name: &str| json!({"$ref": format!("{}{name}", format.schemas())});
        let mut produces: Vec<&str> = match self.answer {
            Some(_) => PRODUCES.to_vec(),
            None if self.action == "get" => vec!["text/plain"],
            None => vec!["*/*"],
        };
        if matches!(self.action, "list" | "watch" | "watchlist") {
            produces.push(STREAMS);
        }
        let schema = self.answer.as_deref().map_or_else(|| json!({"type": "string"}), reference);
        let mut responses = Map::new();
        for code in self.answers {
            let said = match code {
                201 => "Created",
                202 => "Accepted",
                _ => "OK",
            };
            responses.insert(
                code.to_string(),
                match format {
                    Format::V2 => json!({"description": said, "schema": schema}),
                    Format::V3 => json!({"description": said, "content": content(&produces, &schema)}),
                },
            );
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        operation["responses"] = responses.into();
        let mut parameters = self.parameters;
        let consumes: &[&str] = if self.action == "patch" { &PATCHES } else { &["*/*"] };
        if let Some((body, required)) = self.body {
            let schema = reference(&body);
            match format {
                Format::V2 => {
                    let mut body = json!({"name": "body", "in": "body", "schema": schema});
                    if required {
                        body["required"] = true.into();
                    }
                    parameters.insert(0, body);
                }
                Format::V3 => {
                    operation["requestBody"] = json!({"content": content(consumes, &schema)});
                    if required {
                        operation["requestBody"]["required"] = true.into();
                    }
                }
            }
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if format == Format::V2 {
            operation["consumes"] = json!(consumes);
            operation["produces"] = json!(produces);
            operation["schemes"] = json!(["https"]);
        }
        operation
    }
}

fn content(types: &[&str], schema: &Value) -> Value {
    types.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

/// A path of discovery: where it is, how its operation is named, what it says and answers.
fn plain(path: String, id: String, said: &str, tag: &str, answer: String, format: Format) -> (String, Value) {
    let operation = Operation {
        action: "get",
        id,
        said: said.to_owned(),
        tag: tag.to_owned(),
        gvk: None,
        parameters: Vec::new(),
        body: None,
        answers: &[200],
        answer: Some(answer),
    };
    let mut operation = operation.write(format);
    if let Some(operation) = operation.as_object_mut() {
        operation.remove("x-kubernetes-action");
    }
    (path, json!({"get": operation}))
}

/// The path of discovery that a document begins with: `/apis/apps/` for `apis/apps`.
pub(super) fn of_discovery(root: &str, format: Format) -> Option<(String, Value)> {
    let parts: Vec<&str> = root.split('/').collect();
    let path = format!("/{root}/");
    let answer = |kind: &str| format!("{META}{kind}");
    Some(match parts.as_slice() {
        ["version"] => plain(
            path,
            "getCodeVersion".to_owned(),
            "get the version information for this server",
            "version",
            "io.k8s.apimachinery.pkg.version.Info".to_owned(),
            format,
        ),
        ["api"] => plain(
            path,
            "getCoreAPIVersions".to_owned(),
            "get available API versions",
            "core",
            answer("APIVersions"),
            format,
        ),
        ["apis"] => plain(
            path,
            "getAPIVersions".to_owned(),
            "get available API versions",
            "apis",
            answer("APIGroupList"),
            format,
        ),
        ["apis", group] => {
            let names = Names::of(group, "");
            let tag = names.tag.trim_end_matches('_');
            plain(
                path,
                format!("get{}APIGroup", names.title),
                "get information of a group",
                tag,
                answer("APIGroup"),
                format,
            )
        }
        ["api", version] => resources(path, &Names::of("", version), format),
        ["apis", group, version] => resources(path, &Names::of(group, version), format),
        _ => return None,
    })
}

fn resources(path: String, names: &Names, format: Format) -> (String, Value) {
    let id = format!("get{}APIResources", names.title);
    plain(path, id, "get available resources", &names.tag, format!("{META}APIResourceList"), format)
}

/// The rows of a document: those of its group and version.
pub(super) fn rows(root: &str) -> impl Iterator<Item = &'static Resource> {
    super::rows().filter(move |row| super::root(row.group, row.version) == root)
}
