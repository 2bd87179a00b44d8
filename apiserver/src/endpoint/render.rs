//! Objects as a client asked for them: whole, as rows of a table, or their metadata.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::http::accept::{Encoding, Form};
use crate::http::protobuf::encode;
use crate::http::{Body, reply};
use crate::registry::list::Listed;
use crate::registry::reads::Object;
use crate::table::{self, Include};

/// A client's wishes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) form: Form,
    pub(crate) include: Include,
    pub(crate) encoding: Encoding,
}

impl Wanted {
    pub(crate) fn of(request: &super::Request<'_>) -> Result<Self, Error> {
        let include = match request.info.query.get("includeObject") {
            None | Some("Metadata") => Include::Metadata,
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            Some(other) => {
                return Err(Error::BadRequest(format!("unrecognized includeObject value: \"{other}\"")));
            }
        };
        Ok(Self { form: request.accepted.form, include, encoding: request.accepted.encoding })
    }

    /// One object.
    pub(crate) fn object<'a>(&self, resource: &Resource, object: &'a Value) -> Cow<'a, Value> {
        match self.form {
            Form::Object => Cow::Borrowed(object),
            Form::Metadata => Cow::Owned(metadata(object)),
            Form::Table => {
                let objects = std::slice::from_ref(object);
                Cow::Owned(table::table(resource, objects, self.include, true, now()))
            }
        }
    }

    /// The number of this form and encoding of events, each its own.
    pub(crate) fn rendition(&self, columns: bool) -> u8 {
        let flags = [
            self.encoding == Encoding::Protobuf,
            self.form == Form::Table,
            self.form == Form::Metadata,
            columns && self.form == Form::Table,
        ];
        let flags = flags.iter().enumerate().map(|(bit, set)| u8::from(*set) << bit).sum::<u8>();
        flags | (self.include as u8) << 4
    }

    /// A bookmark that is no object: a table has it as a row, whatever else its rows have of objects.
    pub(crate) fn bookmark(&self, resource: &Resource, object: Value, columns: bool) -> Value {
        if self.form == Form::Metadata {
            return metadata(&object);
        }
        let mut whole = table::table(resource, &[object], Include::Metadata, columns, now());
        if self.include == Include::None {
            let annotated = whole["rows"][0]["object"]["metadata"]["annotations"].is_object();
            if !annotated {
                whole["rows"][0]["object"] = Value::Null;
            }
        }
        whole
    }

    /// One event's object; a table has its columns in the first one only.
    pub(crate) fn event(&self, resource: &Resource, object: &Object, first: bool) -> Result<Bytes, Error> {
        match self.form {
            Form::Object => Ok(object.bytes()),
            Form::Metadata => partial(object),
            Form::Table => {
                let object = parse(object)?;
                Ok(table::table(resource, &[object], self.include, first, now()).to_string().into())
            }
        }
    }

    /// Whether lists are put together of objects that are in protobuf already.
    pub(crate) fn packs(&self) -> bool {
        (self.form, self.encoding) == (Form::Object, Encoding::Protobuf)
    }

    /// A list in protobuf.
    pub(crate) fn packed(&self, resource: &Resource, list: &Listed) -> Result<Bytes, Error> {
        let items = list.view.items.iter().map(|object| {
            object.packed(|object| Ok::<_, Error>(encode::bare(&parse(object)?).map_err(unencodable)?.into()))
        });
        let items = items.collect::<Result<Vec<_>, _>>()?;
        let (version, kind) = (resource.api_version(), resource.list_kind());
        let whole = encode::list(&version, &kind, &list_meta(list), items.into_iter().map(Ok));
        Ok(whole.map_err(unencodable)?.into())
    }

    /// A list in JSON.
    pub(crate) fn list(&self, resource: &Resource, list: &Listed) -> Result<Bytes, Error> {
        let meta = list_meta(list);
        match self.form {
            Form::Object => {
                let items = &list.view.items;
                let size = items.iter().map(|item| item.len() + 1).sum();
                let head = head(&resource.list_kind(), &resource.api_version(), &meta);
                Ok(concatenated(&head, size, items, |item, bytes| item.write(bytes)))
            }
            Form::Metadata => {
                let items = list.view.items.iter().map(|object| partial(object));
                let items = items.collect::<Result<Vec<_>, _>>()?;
                let size = items.iter().map(|item| item.len() + 1).sum();
                let head = head("PartialObjectMetadataList", "meta.k8s.io/v1", &meta);
                Ok(concatenated(&head, size, &items, |item, bytes| bytes.put_slice(item)))
            }
            Form::Table => {
                let objects = list.view.items.iter().map(|o| parse(o)).collect::<Result<Vec<_>, _>>()?;
                let mut whole = table::table(resource, &objects, self.include, true, now());
                whole["metadata"] = meta;
                Ok(whole.to_string().into())
            }
        }
    }
}

fn list_meta(list: &Listed) -> Value {
    let mut meta = json!({"resourceVersion": list.view.revision.to_string()});
    if let Some(token) = &list.continue_token {
        meta["continue"] = token.as_str().into();
    }
    if let Some(remaining) = list.remaining {
        meta["remainingItemCount"] = remaining.into();
    }
    meta
}

fn unencodable(error: encode::Error) -> Error {
    Error::Internal(format!("the answer cannot be encoded: {error}"))
}

// The age of an object is that at which it is shown, whatever clock its timestamps are from.
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

fn parse(object: &Object) -> Result<Value, Error> {
    serde_json::from_slice(&object.bytes()).map_err(|e| unreadable(object, &e))
}

fn unreadable(object: &Object, error: &serde_json::Error) -> Error {
    Error::Internal(format!("{}: {error}", object.key()))
}

fn metadata(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// The metadata of a stored object as they are written there; nothing else of it is put together.
fn partial(object: &Object) -> Result<Bytes, Error> {
    #[derive(Deserialize)]
    struct Whole<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let bytes = object.bytes();
    let Whole { metadata } = serde_json::from_slice(&bytes).map_err(|e| unreadable(object, &e))?;
    let whole = format!(
        "{{\"apiVersion\":\"meta.k8s.io/v1\",\"kind\":\"PartialObjectMetadata\",\"metadata\":{metadata}}}"
    );
    Ok(whole.into())
}

/// The beginning of a list, up to its items.
fn head(kind: &str, version: &str, meta: &Value) -> String {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{meta},\"items\":[")
}

/// A list of items that take so many bytes with what separates them.
fn concatenated<T>(head: &str, size: usize, items: &[T], write: impl Fn(&T, &mut BytesMut)) -> Bytes {
    let mut bytes = BytesMut::with_capacity(head.len() + size + 2);
    bytes.put_slice(head.as_bytes());
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            bytes.put_u8(b',');
        }
        write(item, &mut bytes);
    }
    bytes.put_slice(b"]}");
    bytes.freeze()
}

/// The response to a write.
pub(crate) fn written(
    request: &super::Request<'_>,
    status: StatusCode,
    object: &Value,
    warnings: &[String],
) -> Result<Response<Body>, Error> {
    let wanted = Wanted::of(request)?;
    let mut response = reply::json(status, &wanted.object(request.resource, object));
    reply::warn(&mut response, warnings);
    Ok(response)
}
