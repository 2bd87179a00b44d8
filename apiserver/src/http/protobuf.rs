//! Kubernetes' protobuf, as clients send it: decoded into the same JSON tree as any other body.
//!
//! kubectl's typed commands (`create configmap`, `auth can-i`) send protobuf and take JSON back.
//! The messages are facts of Kubernetes, embedded as text; there is no code per kind.
//!
//! Protobuf always carries fields that are no pointers in Go, also when they are empty. An empty
//! text, a zero and a false therefore say nothing and are left out, unless the field is a pointer, or
//! JSON carries it always, too: which those are is a part of the facts.

pub(crate) mod encode;

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::clock::{rfc3339, rfc3339_micros};

/// The media type.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const TEXT: &str = include_str!("protobuf.txt");
/// What each body starts with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages nested deeper are refused, as JSON is.
const MAX_DEPTH: usize = 100;
/// Messages that Go embeds: their fields are their parent's in JSON.
const INLINED: [&str; 10] = [
    "deviceConfiguration",
    "ephemeralContainerCommon",
    "groupResource",
    "handler",
    "ingressRuleValue",
    "localObjectReference",
    "persistentVolumeSource",
    "rule",
    "ruleWithOperations",
    "volumeSource",
];

/// Why bytes are no object.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix k8s")]
    Magic,
    #[error("the message ends early or is malformed")]
    Malformed,
    #[error("the message is nested too deeply")]
    Deep,
    #[error("no kind \"{kind}\" is registered for version \"{version}\" in protobuf")]
    Unknown { version: String, kind: String },
    #[error("a raw part is no JSON")]
    Raw(#[from] serde_json::Error),
}

#[derive(Clone, Copy, Debug)]
enum Type {
    String,
    Integer,
    Bool,
    Bytes,
    Double,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    Raw,
    Strings,
    Message(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    One,
    Many,
    Map,
}

#[derive(Debug)]
struct Field {
    name: &'static str,
    label: Label,
    ty: Type,
    /// Whether an empty value is meant.
    meant: bool,
}

static MESSAGES: LazyLock<HashMap<&'static str, BTreeMap<u64, Field>>> = LazyLock::new(|| {
    let mut messages: HashMap<&str, BTreeMap<u64, Field>> = HashMap::new();
    let mut current = "";
    for line in TEXT.lines().filter(|l| !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix("= ") {
            current = name;
            messages.insert(name, BTreeMap::new());
            continue;
        }
        let mut words = line.split(' ');
        let (Some(number), Some(name), Some(ty)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let (label, ty) = match (ty.strip_prefix('*'), ty.strip_prefix("{}")) {
            (Some(ty), _) => (Label::Many, ty),
            (_, Some(ty)) => (Label::Map, ty),
            _ => (Label::One, ty),
        };
        if let (Ok(number), Some(fields)) = (number.parse(), messages.get_mut(current)) {
            let meant = ty == "!" || ty.starts_with(|c: char| c.is_ascii_uppercase());
            fields.insert(number, Field { name, label, ty: type_of(ty), meant });
        }
    }
    messages
});

fn type_of(text: &'static str) -> Type {
    match text {
        "s" | "S" => Type::String,
        "i" | "I" => Type::Integer,
        "b" | "B" => Type::Bool,
        "y" => Type::Bytes,
        "d" | "D" => Type::Double,
        "t" => Type::Time,
        "m" => Type::MicroTime,
        "q" => Type::Quantity,
        "?" | "!" => Type::IntOrString,
        "r" => Type::Raw,
        "l" => Type::Strings,
        other => Type::Message(other.trim_start_matches('@')),
    }
}

/// Decodes a body: the envelope says which kind it is.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(envelope) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name = message_name(&version, &kind);
    let Some((&name, _)) = MESSAGES.get_key_value(name.as_str()) else {
        return Err(Error::Unknown { version, kind });
    };
    let mut object = message(name, raw, 0)?;
    object.insert("apiVersion".to_owned(), version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(Value::Object(object))
}

fn message_name(version: &str, kind: &str) -> String {
    if let "DeleteOptions" | "Status" | "PartialObjectMetadata" = kind {
        return format!("meta.v1.{kind}");
    }
    match version.split_once('/') {
        None => format!("core.{version}.{kind}"),
        Some((group, version)) => {
            let package = group.split('.').next().unwrap_or_default();
            format!("{package}.{version}.{kind}")
        }
    }
}

enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message on the wire.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Error::Malformed)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Malformed)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn fixed(&mut self, length: usize) -> Result<Wire<'a>, Error> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(self.take(length)?);
        Ok(Wire::Fixed(u64::from_le_bytes(bytes)))
    }

    fn field(&mut self) -> Result<(u64, Wire<'a>), Error> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.fixed(8)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Malformed)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => self.fixed(4)?,
            _ => return Err(Error::Malformed),
        };
        Ok((tag >> 3, wire))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn message(name: &'static str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, Error> {
    if depth > MAX_DEPTH {
        return Err(Error::Deep);
    }
    let mut object = Map::new();
    let Some(fields) = MESSAGES.get(name) else { return Ok(object) };
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let Some(field) = fields.get(&number) else { continue };
        match field.label {
            Label::One => one(&mut object, field, &wire, depth)?,
            Label::Many => many(&mut object, field, &wire, depth)?,
            Label::Map => entry(&mut object, field, &wire, depth)?,
        }
    }
    Ok(object)
}

fn one(object: &mut Map<String, Value>, field: &Field, wire: &Wire<'_>, depth: usize) -> Result<(), Error> {
    let value = value(field.ty, wire, depth)?;
    if let (Type::Message(_), true, Value::Object(inner)) = (field.ty, INLINED.contains(&field.name), &value)
    {
        object.extend(inner.clone());
        return Ok(());
    }
    let says_nothing = match &value {
        Value::Null => true,
        _ if field.meant => false,
        Value::String(text) => text.is_empty(),
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    };
    if !says_nothing {
        object.insert(field.name.to_owned(), value);
    }
    Ok(())
}

fn many(object: &mut Map<String, Value>, field: &Field, wire: &Wire<'_>, depth: usize) -> Result<(), Error> {
    let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(list) = list else { return Ok(()) };
    match (field.ty, wire) {
        // Numbers may be packed.
        (Type::Integer, Wire::Bytes(packed)) => {
            let mut packed = Fields(packed);
            while !packed.0.is_empty() {
                list.push(packed.varint()?.cast_signed().into());
            }
        }
        _ => list.push(value(field.ty, wire, depth)?),
    }
    Ok(())
}

fn entry(object: &mut Map<String, Value>, field: &Field, wire: &Wire<'_>, depth: usize) -> Result<(), Error> {
    let Wire::Bytes(bytes) = wire else { return Err(Error::Malformed) };
    let (mut key, mut found) = (String::new(), None);
    for part in Fields(bytes) {
        match part? {
            (1, Wire::Bytes(text)) => key = string(text)?,
            (2, wire) => found = Some(value(field.ty, &wire, depth)?),
            _ => {}
        }
    }
    let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(map) = map {
        let empty = || match field.ty {
            Type::String | Type::Bytes => Value::String(String::new()),
            _ => Value::Null,
        };
        map.insert(key, found.unwrap_or_else(empty));
    }
    Ok(())
}

fn value(ty: Type, wire: &Wire<'_>, depth: usize) -> Result<Value, Error> {
    Ok(match (ty, wire) {
        (Type::Integer, Wire::Varint(n)) => n.cast_signed().into(),
        (Type::Bool, Wire::Varint(n)) => (*n != 0).into(),
        (Type::Double, Wire::Fixed(bits)) => f64::from_bits(*bits).into(),
        (Type::String, Wire::Bytes(bytes)) => string(bytes)?.into(),
        (Type::Bytes, Wire::Bytes(bytes)) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        (Type::Time, Wire::Bytes(bytes)) => time(bytes)?.map_or(Value::Null, |t| rfc3339(t).into()),
        (Type::MicroTime, Wire::Bytes(bytes)) => {
            time(bytes)?.map_or(Value::Null, |t| rfc3339_micros(t).into())
        }
        (Type::Quantity, Wire::Bytes(bytes)) => text_field(bytes, 1)?.into(),
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Type::Raw, Wire::Bytes(bytes)) => raw(bytes)?,
        (Type::Strings, Wire::Bytes(bytes)) => {
            let items = Fields(bytes).map(|field| match field? {
                (1, Wire::Bytes(text)) => string(text).map(Value::from),
                _ => Err(Error::Malformed),
            });
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        (Type::Message(name), Wire::Bytes(bytes)) => Value::Object(message(name, bytes, depth + 1)?),
        _ => return Err(Error::Malformed),
    })
}

fn string(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Malformed)
}

fn text_field(bytes: &[u8], wanted: u64) -> Result<String, Error> {
    let mut text = String::new();
    for field in Fields(bytes) {
        if let (number, Wire::Bytes(bytes)) = field?
            && number == wanted
        {
            text = string(bytes)?;
        }
    }
    Ok(text)
}

/// Seconds and nanoseconds; a message without either is no time.
fn time(bytes: &[u8]) -> Result<Option<Timestamp>, Error> {
    let (mut seconds, mut nanos) = (None, 0);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(n)) => seconds = Some(n.cast_signed()),
            (2, Wire::Varint(n)) => nanos = i32::try_from(n.cast_signed()).map_err(|_| Error::Malformed)?,
            _ => {}
        }
    }
    seconds.map(|s| Timestamp::new(s, nanos).map_err(|_| Error::Malformed)).transpose()
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(n)) => is_text = n != 0,
            (2, Wire::Varint(n)) => number = n.cast_signed(),
            (3, Wire::Bytes(bytes)) => text = string(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

fn raw(bytes: &[u8]) -> Result<Value, Error> {
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(json)) = field? {
            return Ok(if json.is_empty() { Value::Null } else { serde_json::from_slice(json)? });
        }
    }
    Ok(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut field = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        field.extend_from_slice(bytes);
        field
    }

    fn body(version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, object)].concat()
    }

    #[test]
    fn a_config_map() {
        let meta = [field(1, b"a"), field(2, b""), field(8, b"")].concat();
        let entry = [field(1, b"key"), field(2, b"value")].concat();
        let object = [field(1, &meta), field(2, &entry)].concat();
        assert_eq!(
            decode(&body("v1", "ConfigMap", &object)).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a"}, "data": {"key": "value"}})
        );
    }

    #[test]
    fn a_deployment_of_none() {
        // spec.replicas: 0 is meant, spec.minReadySeconds: 0 is not.
        let object = field(
            2,
            &[&[1 << 3, 0, 5 << 3, 0], &field(2, &field(1, &[field(1, b"a"), field(2, b"b")].concat()))[..]]
                .concat(),
        );
        assert_eq!(
            decode(&body("apps/v1", "Deployment", &object)).unwrap()["spec"],
            json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}})
        );
    }

    #[test]
    fn what_is_empty_and_meant_is_kept() {
        let of = |message: &str| -> Vec<&str> {
            MESSAGES[message].values().filter(|field| field.meant).map(|field| field.name).collect()
        };
        let job = of("batch.v1.JobSpec");
        for name in ["backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes", "parallelism", "suspend"] {
            assert!(job.contains(&name), "{name} in {job:?}");
        }
        assert_eq!(of("autoscaling.v2.HPAScalingRules"), ["selectPolicy", "stabilizationWindowSeconds"]);
        assert_eq!(
            of("apps.v1.DeploymentSpec"),
            ["replicas", "revisionHistoryLimit", "progressDeadlineSeconds"]
        );
        assert_eq!(of("apps.v1.RollingUpdateDeployment"), ["maxUnavailable", "maxSurge"]);
        // spec.backoffLimitPerIndex and spec.maxFailedIndexes, of zero.
        let object = field(2, &[12 << 3, 0, 13 << 3, 0]);
        assert_eq!(
            decode(&body("batch/v1", "Job", &object)).unwrap()["spec"],
            json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 0})
        );
    }

    #[test]
    fn refused() {
        assert!(matches!(decode(b"{}"), Err(Error::Magic)));
        assert!(matches!(decode(&body("v1", "Nope", b"")), Err(Error::Unknown { .. })));
        assert!(matches!(decode(&body("v1", "ConfigMap", &[0xff])), Err(Error::Malformed)));
    }

    #[test]
    fn every_message_that_is_named_is_there() {
        for (name, fields) in &*MESSAGES {
            for field in fields.values() {
                if let Type::Message(to) = field.ty {
                    assert!(MESSAGES.contains_key(to), "{name}.{}: {to}", field.name);
                }
            }
        }
    }

    #[test]
    fn every_field_is_one_of_its_type_in_json_or_inlined() {
        for (name, fields) in &*MESSAGES {
            let path = match name.split('.').next() {
                Some("meta") => format!("io.k8s.apimachinery.pkg.apis.{name}"),
                _ => format!("io.k8s.api.{name}"),
            };
            let Some(ty) = decapod_api::facts::lookup(&path) else { continue };
            for field in fields.values() {
                let inlined = INLINED.contains(&field.name) && matches!(field.ty, Type::Message(_));
                assert!(inlined || ty.fields.contains_key(field.name), "{name}.{}", field.name);
            }
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(&body("v1", "Pod", &bytes[..bytes.len().min(120)])));
            drop(decode(&bytes));
        }
    }
}
