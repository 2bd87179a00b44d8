//! An object as the cache holds it.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use decapod_storage::encryption::undeciphered;
use decapod_storage::{Entry, Revision};

use super::Error;
use super::decode::{Decode, Decoded, Facts};
use super::marks::Marks;
use super::pairs::Pairs;

/// An object at one revision: its bytes as they are served, beside the little that selectors need.
/// The bytes are those of the store wherever they are served as they are stored; the revision is put
/// in when they are written out.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    entry: Arc<Entry>,
    body: Bytes,
    facts: Facts,
    /// Of the object as it is told: later than the entry's in the last state of one that is gone.
    revision: Revision,
    /// Where the namespace begins in the key, or the name if there is none.
    prefix: usize,
    /// The object in the encoding of machines, once one asked for it: lists are put together of these.
    /// It takes about half of the body's memory, for the kinds that such clients list.
    packed: OnceLock<Bytes>,
    /// Why the value cannot be read. Such an object is not left out silently: reading it fails.
    broken: Option<Arc<str>>,
}

impl Object {
    pub(super) fn new(entry: Arc<Entry>, prefix: usize, decoder: &dyn Decode) -> Self {
        let whole = match undeciphered(&entry.value) {
            Some(why) => Err(why.into()),
            None => decoder.decode(&entry),
        };
        let (decoded, broken) = match whole {
            Ok(decoded) => (decoded, None),
            Err(error) => {
                tracing::error!(key = &*entry.key, %error, "a stored object cannot be read");
                let facts =
                    Facts { labels: Pairs::default(), fields: Pairs::default(), splice: 0, comma: false };
                (Decoded { body: Bytes::new(), facts }, Some(error.to_string().into()))
            }
        };
        let Decoded { body, facts } = decoded;
        Self { revision: entry.modified, entry, body, facts, prefix, packed: OnceLock::new(), broken }
    }

    /// The object as it was last, told at the revision at which it went.
    pub(super) fn departed(&self, revision: Revision) -> Self {
        Self { revision, packed: OnceLock::new(), ..self.clone() }
    }

    /// The key in the store.
    pub(crate) fn key(&self) -> &Arc<str> {
        &self.entry.key
    }

    /// The object's `resourceVersion`.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// The name.
    pub(crate) fn name(&self) -> &str {
        self.own().rsplit_once('/').map_or(self.own(), |(_, name)| name)
    }

    /// The namespace; empty if the kind has none.
    pub(crate) fn namespace(&self) -> &str {
        self.own().rsplit_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The labels.
    pub(crate) fn labels(&self) -> &Pairs {
        &self.facts.labels
    }

    /// A selectable field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        match name {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => self.facts.fields.get(name),
        }
    }

    fn own(&self) -> &str {
        self.entry.key.get(self.prefix..).unwrap_or_default()
    }

    /// Fails if the value could not be read.
    pub(super) fn readable(&self) -> Result<(), Error> {
        match &self.broken {
            None => Ok(()),
            Some(why) => Err(Error::Unreadable { key: Arc::clone(self.key()), why: Arc::clone(why) }),
        }
    }

    /// How long the JSON is, at most.
    pub(crate) fn len(&self) -> usize {
        // The longest revision has 20 digits.
        self.body.len() + REVISION_HEAD.len() + 20 + REVISION_TAIL.len() + 1
    }

    /// Writes the JSON with its `resourceVersion`.
    pub(crate) fn write(&self, to: &mut BytesMut) {
        let (head, tail) = self.body.split_at(self.facts.splice.min(self.body.len()));
        to.put_slice(head);
        to.put_slice(REVISION_HEAD);
        put_number(to, self.revision);
        to.put_slice(REVISION_TAIL);
        if self.facts.comma {
            to.put_u8(b',');
        }
        to.put_slice(tail);
    }

    /// The JSON with its `resourceVersion`.
    pub(crate) fn bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.len());
        self.write(&mut bytes);
        bytes.freeze()
    }

    /// The object in the encoding of machines, made by the first who wants it.
    pub(crate) fn packed<E>(&self, make: impl FnOnce(&Self) -> Result<Bytes, E>) -> Result<Bytes, E> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed.clone());
        }
        let packed = make(self)?;
        Ok(self.packed.get_or_init(|| packed).clone())
    }

    /// The marks of its labels. One that cannot be read has all: it is in every selection.
    pub(super) fn marks(&self) -> Marks {
        if self.broken.is_some() { Marks::ALL } else { self.facts.labels.iter().collect() }
    }

    /// What it takes in memory, the body included; the same whatever was made of it since.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.body.len() + self.facts.labels.size() + self.facts.fields.size()
    }
}

const REVISION_HEAD: &[u8] = br#""resourceVersion":""#;
const REVISION_TAIL: &[u8] = b"\"";

/// Decimal digits, without a detour by a string.
fn put_number(to: &mut BytesMut, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    to.put_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::super::decode::AsStored;
    use super::*;

    fn object(key: &str, value: &str, modified: Revision) -> Object {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let entry = Arc::new(Entry { key: key.into(), value, created: 1, modified });
        Object::new(entry, "/registry/pods/".len(), &AsStored::default())
    }

    #[test]
    fn the_revision_is_put_in_and_the_rest_is_as_stored() {
        for (value, revision, expected) in [
            (
                r#"{"kind":"Pod","metadata":{"name":"a"},"x":1}"#,
                7,
                r#"{"kind":"Pod","metadata":{"resourceVersion":"7","name":"a"},"x":1}"#,
            ),
            (r#"{"metadata":{}}"#, 1_000_250, r#"{"metadata":{"resourceVersion":"1000250"}}"#),
            (r#"{"metadata":{}}"#, u64::MAX, r#"{"metadata":{"resourceVersion":"18446744073709551615"}}"#),
        ] {
            let object = object("/registry/pods/web/a", value, revision);
            assert_eq!(object.bytes(), expected);
            assert!(object.bytes().len() <= object.len());
        }
    }

    #[test]
    fn the_key_says_namespace_and_name() {
        let namespaced = object("/registry/pods/web/a.1", r#"{"metadata":{}}"#, 1);
        assert_eq!((namespaced.namespace(), namespaced.name()), ("web", "a.1"));
        let cluster = object("/registry/pods/a", r#"{"metadata":{}}"#, 1);
        assert_eq!((cluster.namespace(), cluster.name()), ("", "a"));
        assert_eq!(cluster.field("metadata.name"), Some("a"));
        assert_eq!(cluster.field("spec.nodeName"), None);
    }

    #[test]
    fn the_body_is_the_stores_own() {
        let object = object("/registry/pods/a", r#"{"metadata":{}}"#, 1);
        assert_eq!(object.body.as_ptr(), object.entry.value.as_ptr());
    }

    #[test]
    fn what_cannot_be_read_fails_when_it_is() {
        let object = object("/registry/pods/a", "rubbish", 1);
        assert!(
            matches!(object.readable(), Err(Error::Unreadable { key, .. }) if &*key == "/registry/pods/a")
        );
    }
}
