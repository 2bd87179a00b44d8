//! The schemas of kinds and of the types that they are made of.

use std::collections::BTreeMap;

use decapod_api::facts::{self, Field, ListType, Shape, Type};
use decapod_api::resource::Resource;
use serde_json::{Map, Value, json};

/// The schemas of one document: kinds, and all that they refer to.
pub(super) struct Schemas {
    prefix: &'static str,
    done: BTreeMap<&'static str, Value>,
}

impl Schemas {
    pub(super) fn new(prefix: &'static str) -> Self {
        Self { prefix, done: BTreeMap::new() }
    }

    /// Adds a kind; its schema says which kind it is.
    pub(super) fn add_kind(&mut self, resource: &Resource) {
        let Some(ty) = facts::lookup(resource.type_name) else { return };
        self.add(ty);
        if let Some(schema) = self.done.get_mut(ty.name) {
            schema["x-kubernetes-group-version-kind"] =
                json!([{"group": resource.group, "version": resource.version, "kind": resource.kind}]);
        }
    }

    pub(super) fn finish(self) -> Map<String, Value> {
        self.done.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()
    }

    fn add(&mut self, ty: &'static Type) {
        if self.done.contains_key(ty.name) {
            return;
        }
        // Types refer to themselves (JSON schemas do): the place is taken first.
        self.done.insert(ty.name, Value::Null);
        let schema = match &ty.alias {
            Some(shape) => self.shape(shape),
            None => self.structure(ty),
        };
        self.done.insert(ty.name, schema);
    }

    fn structure(&mut self, ty: &'static Type) -> Value {
        let mut names: Vec<_> = ty.fields.iter().collect();
        names.sort_by_key(|(name, _)| **name);
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (name, field) in names {
            properties.insert((*name).to_owned(), self.field(field));
            if field.required {
                required.push(*name);
            }
        }
        let mut schema = json!({"type": "object", "description": "", "properties": properties});
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if ty.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        schema
    }

    fn field(&mut self, field: &'static Field) -> Value {
        let mut schema = match &field.shape {
            Shape::Ref(_) => json!({"allOf": [self.shape(&field.shape)]}),
            other => self.shape(other),
        };
        if let Some(default) = &field.default {
            schema["default"] = default.clone();
        }
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
            (true, true) => Some("merge,retainKeys"),
            (true, false) => Some("merge"),
            (false, true) => Some("retainKeys"),
            (false, false) => None,
        };
        if let Some(strategy) = strategy {
            schema["x-kubernetes-patch-strategy"] = strategy.into();
        }
        if let Some(key) = field.merge_key {
            schema["x-kubernetes-patch-merge-key"] = key.into();
        }
        schema
    }

    fn shape(&mut self, shape: &'static Shape) -> Value {
        match shape {
            Shape::String => json!({"type": "string"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Time => json!({"type": "string", "format": "date-time"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Number => json!({"type": "number", "format": "double"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Quantity => json!({"type": "string"}),
            Shape::IntOrString => json!({"type": "string", "format": "int-or-string"}),
            Shape::Any => json!({"type": "object"}),
            Shape::Ref(name) => match facts::lookup(name) {
                Some(ty) => {
                    self.add(ty);
                    json!({"$ref": format!("{}{name}", self.prefix)})
                }
                None => json!({"type": "object"}),
            },
            Shape::List(item) => {
                let items = self.item(item);
                json!({"type": "array", "items": items})
            }
            Shape::Map(item) => {
                let items = self.item(item);
                json!({"type": "object", "additionalProperties": items})
            }
        }
    }

    fn item(&mut self, shape: &'static Shape) -> Value {
        match shape {
            Shape::Ref(_) => json!({"allOf": [self.shape(shape)]}),
            other => self.shape(other),
        }
    }
}
