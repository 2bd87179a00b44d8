//! Holds a JSON tree against the declared type before it is decoded: unknown fields are taken out and
//! named, nulls dropped, quantities made canonical, constant defaults filled in, and a value of a wrong
//! type is an error that names its field.

use serde_json::Value;

use crate::facts::{Field, Shape, Type};
use crate::quantity::Quantity;

/// Why a body is no object of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field has a value of another type.
    #[error("json: cannot unmarshal {found} into Go struct field {ty}.{path} of type {expected}")]
    Type {
        /// The type of the whole object, without its package.
        ty: String,
        /// The field's path.
        path: String,
        /// What is there.
        found: &'static str,
        /// What should be.
        expected: &'static str,
    },
    /// A field has a value of the right type and the wrong form.
    #[error("{path}: {why}")]
    Form {
        /// The field's path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl DecodeError {
    pub(super) fn from_serde(ty: &Type, error: &serde_json::Error) -> Self {
        Self::Form { path: short_name(ty).to_owned(), why: error.to_string() }
    }
}

fn short_name(ty: &Type) -> &str {
    ty.name.rsplit('.').next().unwrap_or(ty.name)
}

/// Cleans an object of this type; returns the paths of unknown fields.
pub(super) fn check(object: &mut Value, ty: &'static Type) -> Result<Vec<String>, DecodeError> {
    let mut walk = Walk { root: short_name(ty), path: String::new(), unknown: Vec::new() };
    walk.fields(object, ty)?;
    Ok(walk.unknown)
}

/// Lists that Kubernetes tells apart from absent ones when they are empty: no policy at all is a
/// mistake, where none given stands for the default ones.
const EMPTY_IS_SAID: [(&str, &str); 1] = [("io.k8s.api.autoscaling.v2.HPAScalingRules", "policies")];

/// The type of conditions of which Go's clients write a time that nobody set as null, as Kubernetes takes it.
const CONDITION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Condition";
/// That time, as Go understands it.
const NEVER: &str = "0001-01-01T00:00:00Z";

fn omitted_empty(ty: &Type, field: &str) -> bool {
    if EMPTY_IS_SAID.contains(&(ty.name, field)) {
        return false;
    }
    ty.fields
        .get(field)
        .is_some_and(|f| !f.required && matches!(f.shape.wire(), Shape::List(_) | Shape::Map(_)))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

struct Walk {
    root: &'static str,
    path: String,
    unknown: Vec<String>,
}

impl Walk {
    fn fail(&self, value: &Value, expected: &'static str) -> DecodeError {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        DecodeError::Type { ty: self.root.to_owned(), path: self.path.clone(), found, expected }
    }

    fn within<R>(&mut self, step: &str, f: impl FnOnce(&mut Self) -> R) -> R {
        let length = self.path.len();
        if length > 0 && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        let result = f(self);
        self.path.truncate(length);
        result
    }

    fn fields(&mut self, value: &mut Value, ty: &'static Type) -> Result<(), DecodeError> {
        let Value::Object(map) = value else { return Err(self.fail(value, "object")) };
        // `apiVersion` and `kind` belong to every object that names them at its root.
        let mut unknown = Vec::new();
        for (key, value) in map.iter_mut() {
            match ty.fields.get(key.as_str()) {
                _ if value.is_null() => {}
                Some(field) => self.within(key, |walk| walk.shape(value, &field.shape))?,
                None => unknown.push(key.clone()),
            }
        }
        for key in unknown {
            map.remove(&key);
            let path = self.within(&key, |walk| walk.path.clone());
            self.unknown.push(path);
        }
        // Kubernetes' types do not write optional lists and maps that are empty, nor the zero values of
        // fields that have no other way to be absent: both are the same object.
        map.retain(|key, value| match value {
            Value::Null => false,
            Value::Array(items) => !items.is_empty() || !omitted_empty(ty, key),
            Value::Object(entries) => !entries.is_empty() || !omitted_empty(ty, key),
            zero if is_zero(zero) => !ty.fields.get(key.as_str()).is_some_and(|f| f.zero_is_none),
            _ => true,
        });
        if ty.name == CONDITION {
            map.entry("lastTransitionTime").or_insert_with(|| NEVER.into());
        }
        for (key, field) in &ty.fields {
            if let Field { default: Some(default), .. } = field
                && !map.contains_key(*key)
            {
                map.insert((*key).to_owned(), default.clone());
            }
        }
        Ok(())
    }

    fn shape(&mut self, value: &mut Value, shape: &'static Shape) -> Result<(), DecodeError> {
        if let Some(ty) = shape.resolve() {
            return self.fields(value, ty);
        }
        match (shape.wire(), &mut *value) {
            (Shape::String | Shape::Bytes | Shape::Time, Value::String(_)) => Ok(()),
            (Shape::String | Shape::Bytes, other) => Err(self.fail(other, "string")),
            (Shape::Time, other) => Err(self.fail(other, "v1.Time")),
            (Shape::Bool, Value::Bool(_)) => Ok(()),
            (Shape::Bool, other) => Err(self.fail(other, "bool")),
            (Shape::Number, Value::Number(_)) => Ok(()),
            (Shape::Number, other) => Err(self.fail(other, "float64")),
            (Shape::Int32 | Shape::Int64, _) => self.integer(value, shape),
            (Shape::IntOrString, Value::String(_)) => Ok(()),
            (Shape::IntOrString, Value::Number(_)) => self.integer(value, &Shape::Int32),
            (Shape::IntOrString, other) => Err(self.fail(other, "intstr.IntOrString")),
            (Shape::Quantity, _) => self.quantity(value),
            (Shape::List(item), Value::Array(items)) => {
                for (i, value) in items.iter_mut().enumerate() {
                    self.within(&format!("[{i}]"), |walk| walk.shape(value, item))?;
                }
                Ok(())
            }
            (Shape::List(_), other) => Err(self.fail(other, "[]")),
            (Shape::Map(item), Value::Object(map)) => {
                for (key, value) in map.iter_mut().filter(|(_, v)| !v.is_null()) {
                    self.within(key, |walk| walk.shape(value, item))?;
                }
                // A null entry is the zero value of the map's type, as Go decodes it.
                if matches!(**item, Shape::String | Shape::Bytes) {
                    map.values_mut().filter(|v| v.is_null()).for_each(|v| *v = Value::String(String::new()));
                }
                Ok(())
            }
            (Shape::Map(_), other) => Err(self.fail(other, "map[string]string")),
            (Shape::Any | Shape::Ref(_), _) => Ok(()),
        }
    }

    fn integer(&self, value: &mut Value, shape: &Shape) -> Result<(), DecodeError> {
        let narrow = *shape == Shape::Int32;
        let expected = if narrow { "int32" } else { "int64" };
        let whole = value.as_i64().or_else(|| {
            // `3.0` is a whole number to JSON.
            value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64)
        });
        match whole {
            Some(n) if !narrow || i32::try_from(n).is_ok() => {
                if !value.is_i64() {
                    *value = n.into();
                }
                Ok(())
            }
            _ => Err(self.fail(value, expected)),
        }
    }

    fn quantity(&self, value: &mut Value) -> Result<(), DecodeError> {
        let text = match &*value {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(number) => number.to_string(),
            other => return Err(self.fail(other, "resource.Quantity")),
        };
        let parsed: Quantity = text
            .parse()
            .map_err(|e| DecodeError::Form { path: self.path.clone(), why: format!("{e}: {text:?}") })?;
        let canonical = parsed.to_string();
        if value.as_str() != Some(&canonical) {
            *value = Value::String(canonical);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::lookup;
    use serde_json::json;

    fn pod() -> &'static Type {
        lookup("io.k8s.api.core.v1.Pod").unwrap()
    }

    #[test]
    fn unknown_fields_are_named_and_taken_out() {
        let mut object = json!({"metadata": {"name": "a", "nane": 1}, "spec": {"containers": [
            {"name": "c", "imag": "x", "ports": [{"containerPort": 80}],
             "resources": {"limits": {"cpu": "1000m", "memory": 1024}}}], "volumes": null}, "extra": {}});
        let mut unknown = check(&mut object, pod()).unwrap();
        unknown.sort();
        assert_eq!(unknown, ["extra", "metadata.nane", "spec.containers[0].imag"]);
        assert_eq!(
            object["spec"],
            json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1", "memory": "1024"}}}]})
        );
    }

    #[test]
    fn zero_is_none_where_nothing_else_says_none() {
        let mut object = json!({"metadata": {"name": "a", "generateName": ""}, "spec": {"hostNetwork": false,
            "hostPID": true, "nodeName": "", "priority": 0, "automountServiceAccountToken": false, "containers": [
                {"name": "", "stdin": false, "ports": [{"containerPort": 0, "hostPort": 0, "protocol": "UDP"}],
                 "livenessProbe": {"periodSeconds": 0, "failureThreshold": 2}}]}});
        check(&mut object, pod()).unwrap();
        assert_eq!(object["metadata"], json!({"name": "a"}));
        assert_eq!(
            object["spec"],
            json!({"hostPID": true, "priority": 0, "automountServiceAccountToken": false, "containers": [
                {"name": "", "ports": [{"containerPort": 0, "protocol": "UDP"}],
                 "livenessProbe": {"failureThreshold": 2}}]})
        );
    }

    #[test]
    fn a_condition_may_have_changed_never() {
        let condition =
            json!({"type": "T", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": null});
        let service = json!({"status": {"conditions": [condition]}});
        let row = crate::resource::find("", "v1", "services").unwrap();
        let object = (row.ops.normalize)(service).unwrap().object;
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], NEVER);
        assert_eq!((row.ops.normalize)(object.clone()).unwrap().object, object);
    }

    #[test]
    fn wrong_types_are_named() {
        let error = |object: Value| check(&mut object.clone(), pod()).unwrap_err().to_string();
        assert_eq!(
            error(json!({"spec": {"containers": "x"}})),
            "json: cannot unmarshal string into Go struct field Pod.spec.containers of type []"
        );
        assert_eq!(
            error(json!({"spec": {"priority": 1e12}})),
            "json: cannot unmarshal number into Go struct field Pod.spec.priority of type int32"
        );
        assert!(
            error(json!({"spec": {"overhead": {"cpu": "1x"}}}))
                .contains("spec.overhead.cpu: unable to parse")
        );
    }
}
