//! The schemas of kinds and of the types that they are made of.

use std::collections::BTreeMap;

use decapod_api::facts::{self, Field, ListType, Shape, Type};
use decapod_api::resource::{Gvk, Resource};
use serde_json::{Map, Value, json};

use super::Format;
use super::words::{self, Words};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Types of `meta/v1` that are kinds in every version of every group.
const EVERYWHERE: [&str; 2] = ["DeleteOptions", "WatchEvent"];
/// The others that are kinds, of `v1`.
const IN_CORE: [&str; 5] = ["APIGroup", "APIGroupList", "APIResourceList", "APIVersions", "Status"];
/// Types that are any JSON at all: they say nothing about it, not even that it is an object.
const UNTYPED: [&str; 4] =
    ["JSON", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrStringArray"];

/// The schemas of one document: kinds, and all that they refer to.
pub(super) struct Schemas<'a> {
    format: Format,
    words: &'a Words,
    done: BTreeMap<String, Value>,
}

impl<'a> Schemas<'a> {
    pub(super) fn new(format: Format, words: &'a Words) -> Self {
        Self { format, words, done: BTreeMap::new() }
    }

    /// Adds a kind, its list and the kinds of its subresources.
    pub(super) fn add_kind(&mut self, resource: &Resource) {
        self.add_named(resource.type_name);
        if resource.verbs.contains(&"list") {
            self.add_list(resource);
        }
        for sub in resource.subresources {
            if let Some(name) = sub.kind.and_then(type_of) {
                self.add_named(name);
            }
        }
    }

    /// Adds what all documents need: options, answers and events.
    pub(super) fn add_common(&mut self) {
        for name in ["DeleteOptions", "Status"] {
            self.add_named(&format!("{META}{name}"));
        }
        let object = "io.k8s.apimachinery.pkg.runtime.RawExtension";
        self.describe(object, json!({"type": "object"}));
        let patch = format!("{META}Patch");
        self.describe(&patch, json!({"type": "object"}));
        let event = format!("{META}WatchEvent");
        let whole = self.reference(object);
        self.describe(
            &event,
            json!({"type": "object", "required": ["type", "object"],
            "properties": {"object": whole, "type": {"type": "string"}}}),
        );
    }

    /// Adds what discovery answers with.
    pub(super) fn add_discovery(&mut self) {
        for name in ["APIGroupList", "APIResourceList", "APIVersions"] {
            self.describe(&format!("{META}{name}"), json!({"type": "object"}));
        }
        self.describe(&format!("{META}APIGroup"), json!({"type": "object"}));
        let text = || json!({"type": "string"});
        let fields = [
            "buildDate",
            "compiler",
            "gitCommit",
            "gitTreeState",
            "gitVersion",
            "goVersion",
            "major",
            "minor",
            "platform",
        ];
        let properties: Map<String, Value> =
            fields.iter().map(|field| ((*field).to_owned(), text())).collect();
        self.describe(
            "io.k8s.apimachinery.pkg.version.Info",
            json!({"type": "object", "required": fields,
            "properties": properties, "description": "What the server is, and how it was built."}),
        );
    }

    /// Finishes the kinds: each says which groups and versions it is a kind of.
    pub(super) fn finish(mut self, group_versions: &[(&str, &str)]) -> BTreeMap<String, Value> {
        for (name, schema) in &mut self.done {
            let kinds = kinds_of(name, group_versions);
            if !kinds.is_empty() {
                schema["x-kubernetes-group-version-kind"] = kinds.into();
            }
        }
        self.done
    }

    /// A reference to a type of the document.
    pub(super) fn reference(&self, name: &str) -> Value {
        json!({"$ref": format!("{}{name}", self.format.schemas())})
    }

    fn describe(&mut self, name: &str, mut schema: Value) {
        if schema.get("description").is_none() {
            schema["description"] = self.words.of_type(name).into();
        }
        for (field, property) in schema["properties"].as_object_mut().into_iter().flatten() {
            let said = self.words.of_field(name, field);
            if !said.is_empty() {
                property["description"] = said.into();
            }
        }
        if schema["properties"].is_null()
            && let Some(object) = schema.as_object_mut()
        {
            object.remove("properties");
        }
        self.done.insert(name.to_owned(), schema);
    }

    fn add_list(&mut self, resource: &Resource) {
        let meta = format!("{META}ListMeta");
        self.add_named(&meta);
        let type_meta = |field: &str| {
            let said = self.words.of_field(resource.type_name, field);
            json!({"type": "string", "description": said})
        };
        let mut metadata = self.field_reference(&meta);
        metadata["description"] = "Standard list metadata.".into();
        let schema = json!({
            "type": "object",
            "description": format!("{} is a list of objects of kind {}.", resource.list_kind(), resource.kind),
            "required": ["items"],
            "properties": {
                "apiVersion": type_meta("apiVersion"),
                "items": {"type": "array", "description": "The objects.",
                    "items": self.item_reference(resource.type_name)},
                "kind": type_meta("kind"),
                "metadata": metadata,
            },
        });
        self.done.insert(list_type(resource), schema);
    }

    fn add_named(&mut self, name: &str) {
        if let Some(ty) = facts::lookup(name) {
            self.add(ty);
        }
    }

    fn add(&mut self, ty: &'static Type) {
        if self.done.contains_key(ty.name) {
            return;
        }
        // Types refer to themselves (JSON schemas do): the place is taken first.
        self.done.insert(ty.name.to_owned(), Value::Null);
        let mut schema = match &ty.alias {
            Some(shape) => self.alias(ty.name, shape),
            None => self.structure(ty),
        };
        schema["description"] = self.words.of_type(ty.name).into();
        self.done.insert(ty.name.to_owned(), schema);
    }

    fn alias(&mut self, name: &str, shape: &'static Shape) -> Value {
        let last = name.rsplit('.').next().unwrap_or_default();
        match shape {
            Shape::Any if UNTYPED.contains(&last) => json!({}),
            Shape::IntOrString if self.format == Format::V3 => {
                json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
            }
            other => self.shape(other),
        }
    }

    fn structure(&mut self, ty: &'static Type) -> Value {
        let mut names: Vec<_> = ty.fields.iter().collect();
        names.sort_by_key(|(name, _)| **name);
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (name, field) in names {
            properties.insert((*name).to_owned(), self.field(ty.name, name, field));
            // Kinds always have metadata, but clients need not send it.
            let metadata = field.shape == Shape::Ref(OBJECT_META);
            if field.required && !metadata {
                required.push(*name);
            }
        }
        let mut schema = json!({"type": "object"});
        if !properties.is_empty() {
            schema["properties"] = properties.into();
        }
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if ty.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        schema
    }

    fn field(&mut self, ty: &str, name: &str, field: &'static Field) -> Value {
        let mut schema = match &field.shape {
            Shape::Ref(to) => {
                self.add_named(to);
                self.field_reference(to)
            }
            other => self.shape(other),
        };
        let said = self.words.of_field(ty, name);
        if !said.is_empty() {
            schema["description"] = said.into();
        }
        if let Some(default) = &field.default {
            schema["default"] = default.clone();
        }
        if let Some(values) = words::values(ty, name) {
            enumerate(&mut schema, values);
        }
        merging(&mut schema, field);
        schema
    }

    fn shape(&mut self, shape: &'static Shape) -> Value {
        match shape {
            Shape::String | Shape::Quantity => json!({"type": "string"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Time => json!({"type": "string", "format": "date-time"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Number => json!({"type": "number", "format": "double"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::IntOrString => json!({"type": "string", "format": "int-or-string"}),
            Shape::Any => json!({"type": "object"}),
            Shape::Ref(name) => match facts::lookup(name) {
                Some(ty) => {
                    self.add(ty);
                    self.item_reference(name)
                }
                None => json!({"type": "object"}),
            },
            Shape::List(item) => json!({"type": "array", "items": self.shape(item)}),
            Shape::Map(item) => json!({"type": "object", "additionalProperties": self.shape(item)}),
        }
    }

    fn item_reference(&self, name: &str) -> Value {
        self.reference(name)
    }

    /// A reference beside which more is said: version 3 takes nothing beside one.
    fn field_reference(&self, name: &str) -> Value {
        match self.format {
            Format::V2 => self.reference(name),
            Format::V3 => json!({"allOf": [self.reference(name)]}),
        }
    }
}

/// The OpenAPI name of a kind's lists.
pub(super) fn list_type(resource: &Resource) -> String {
    format!("{}List", resource.type_name)
}

/// The OpenAPI name of a kind that is no row of its own as well.
pub(super) fn type_of(gvk: Gvk) -> Option<&'static str> {
    let row = super::rows().find(|row| row.gvk() == gvk).map(|row| row.type_name);
    row.or(match (gvk.group, gvk.kind) {
        ("autoscaling", "Scale") => Some("io.k8s.api.autoscaling.v1.Scale"),
        ("policy", "Eviction") => Some("io.k8s.api.policy.v1.Eviction"),
        ("authentication.k8s.io", "TokenRequest") => Some("io.k8s.api.authentication.v1.TokenRequest"),
        _ => None,
    })
}

fn enumerate(schema: &mut Value, values: &[&str]) {
    let place = match schema["type"].as_str() {
        Some("array") => "items",
        Some("object") => "additionalProperties",
        _ => {
            schema["enum"] = json!(values);
            return;
        }
    };
    schema[place]["enum"] = json!(values);
}

fn merging(schema: &mut Value, field: &Field) {
    match &field.list {
        Some(ListType::Atomic) => schema["x-kubernetes-list-type"] = "atomic".into(),
        Some(ListType::Set) => schema["x-kubernetes-list-type"] = "set".into(),
        Some(ListType::Map(keys)) => {
            schema["x-kubernetes-list-type"] = "map".into();
            schema["x-kubernetes-list-map-keys"] = json!(keys);
        }
        None => {}
    }
    if field.atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    let strategy = match (field.patch_merge, field.patch_retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, true) => "retainKeys",
        (false, false) => "",
    };
    if !strategy.is_empty() {
        schema["x-kubernetes-patch-strategy"] = strategy.into();
    }
    if let Some(key) = field.merge_key {
        schema["x-kubernetes-patch-merge-key"] = key.into();
    }
}

/// The groups and versions that a type is a kind of, as far as the document is about them.
fn kinds_of(name: &str, group_versions: &[(&str, &str)]) -> Vec<Value> {
    let gvk =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    if let Some(kind) = name.strip_prefix(META) {
        return if EVERYWHERE.contains(&kind) {
            let core = (!group_versions.contains(&("", "v1"))).then_some(&("", "v1"));
            core.into_iter().chain(group_versions).map(|(group, version)| gvk(group, version, kind)).collect()
        } else if IN_CORE.contains(&kind) {
            vec![gvk("", "v1", kind)]
        } else {
            Vec::new()
        };
    }
    for row in super::rows() {
        match name.strip_prefix(row.type_name) {
            Some("") => return vec![gvk(row.group, row.version, row.kind)],
            Some("List") => return vec![gvk(row.group, row.version, &row.list_kind())],
            _ => {}
        }
        let subs = row.subresources.iter().filter_map(|sub| sub.kind);
        if let Some(sub) = subs.into_iter().find(|gvk| type_of(*gvk) == Some(name)) {
            return vec![gvk(sub.group, sub.version, sub.kind)];
        }
    }
    Vec::new()
}
