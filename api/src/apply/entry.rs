//! `metadata.managedFields`: one entry for each manager, operation and version.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::FieldSet;

/// The most entries of updates; the oldest are put together, as Kubernetes does.
const MAX_UPDATERS: usize = 10;
/// Under whose name the oldest updates are put together.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By any other write.
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What one manager owns by one kind of operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub manager: String,
    /// How it came to own the fields.
    pub operation: Operation,
    /// The version of the kind in which the fields are named.
    pub api_version: String,
    /// The subresource by which it wrote; empty for the object itself.
    pub subresource: String,
    /// When it last changed what it owns, RFC 3339.
    pub time: Option<String>,
    /// What it owns.
    pub fields: FieldSet,
}

impl Entry {
    /// Whether both are the same manager's, so that there can be only one of them.
    pub(super) fn same_as(&self, other: &Self) -> bool {
        self.operation == other.operation
            && self.manager == other.manager
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn parse(value: &Value, trusted: bool) -> Result<Self, String> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        if text("apiVersion").is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        if text("fieldsType") != "FieldsV1" {
            return Err(format!("invalid fieldsType \"{}\" in managed fields entry", text("fieldsType")));
        }
        let fields = match value.get("fieldsV1") {
            None | Some(Value::Null) => FieldSet::default(),
            Some(fields) if trusted => FieldSet::trusted(fields.clone()),
            Some(fields) => FieldSet::parse(fields)?,
        };
        Ok(Self {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: value.get("time").and_then(Value::as_str).map(str::to_owned),
            fields,
        })
    }

    fn into_value(self) -> Value {
        let mut map = Map::new();
        for (key, text) in [("manager", self.manager), ("subresource", self.subresource)] {
            if !text.is_empty() {
                map.insert(key.to_owned(), text.into());
            }
        }
        map.insert("operation".to_owned(), self.operation.as_str().into());
        map.insert("apiVersion".to_owned(), self.api_version.into());
        map.extend(self.time.map(|time| ("time".to_owned(), time.into())));
        map.insert("fieldsType".to_owned(), "FieldsV1".into());
        map.insert("fieldsV1".to_owned(), self.fields.into_value());
        Value::Object(map)
    }

    fn order(&self, other: &Self) -> Ordering {
        // Times are all in UTC and of one length, so their text sorts as they do.
        (self.operation, &self.time, &self.manager, &self.api_version, &self.subresource).cmp(&(
            other.operation,
            &other.time,
            &other.manager,
            &other.api_version,
            &other.subresource,
        ))
    }
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managers(pub(super) Vec<Entry>);

impl Managers {
    /// What a stored object says. What cannot be read is nobody's.
    pub fn stored(value: Option<&Value>) -> Self {
        Self::decode(value, true).unwrap_or_default()
    }

    /// What a client says.
    ///
    /// # Errors
    /// What is wrong with an entry, in words.
    pub fn parse(value: &Value) -> Result<Self, String> {
        Self::decode(Some(value), false)
    }

    fn decode(value: Option<&Value>, trusted: bool) -> Result<Self, String> {
        let entries = value.and_then(Value::as_array).into_iter().flatten();
        let mut managers = Self::default();
        for entry in entries.map(|entry| Entry::parse(entry, trusted)) {
            managers.put(entry?);
        }
        Ok(managers)
    }

    /// The managers as the state of an update that a client sent: its own word if it says something
    /// sensible, else what is live. A list of one empty entry, or none, resets them.
    pub fn proposed(asked: Option<&Value>, live: Option<&Value>) -> Self {
        match asked {
            Some(Value::Array(entries)) if is_reset(entries) => Self::default(),
            Some(asked) if Some(asked) != live => match Self::parse(asked) {
                Ok(managers) if !managers.0.is_empty() => managers,
                _ => Self::stored(live),
            },
            _ => Self::stored(live),
        }
    }

    /// Whether nobody is known to own anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries, in no order.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Adds an entry, or replaces the same manager's.
    pub(super) fn put(&mut self, entry: Entry) {
        match self.0.iter_mut().find(|known| known.same_as(&entry)) {
            Some(known) => *known = entry,
            None => self.0.push(entry),
        }
    }

    /// The stored form, in Kubernetes' order; `None` if nobody owns anything.
    pub fn into_value(mut self) -> Option<Value> {
        if self.0.is_empty() {
            return None;
        }
        self.0.sort_by(Entry::order);
        Some(Value::Array(self.0.into_iter().map(Entry::into_value).collect()))
    }

    /// Whether two stored forms say the same but for the times.
    pub fn same_but_for_times(a: Option<&Value>, b: Option<&Value>) -> bool {
        let timeless = |value: Option<&Value>| {
            let mut entries = Self::stored(value).0;
            entries.iter_mut().for_each(|entry| entry.time = None);
            entries.sort_by(Entry::order);
            entries
        };
        a == b || timeless(a) == timeless(b)
    }

    /// Puts the oldest updates together while there are too many.
    pub(super) fn cap(&mut self) {
        let is_update = |entry: &Entry| entry.operation == Operation::Update;
        let mut updaters = self.0.iter().filter(|entry| is_update(entry)).count();
        if updaters <= MAX_UPDATERS {
            return;
        }
        self.0.sort_by(Entry::order);
        let (mut kept, mut oldest): (Vec<Entry>, Vec<Entry>) =
            std::mem::take(&mut self.0).into_iter().partition(|entry| !is_update(entry));
        // Of each version, what came first, and what later ones are put into.
        let mut buckets: Vec<Entry> = Vec::new();
        while updaters > MAX_UPDATERS && !oldest.is_empty() {
            let entry = oldest.remove(0);
            match buckets.iter_mut().find(|b| b.api_version == entry.api_version) {
                Some(bucket) => {
                    bucket.fields = bucket.fields.union(&entry.fields);
                    ANCIENT.clone_into(&mut bucket.manager);
                    bucket.subresource.clear();
                    bucket.time = entry.time;
                    updaters -= 1;
                }
                None => buckets.push(entry),
            }
        }
        kept.extend(buckets);
        kept.extend(oldest);
        self.0 = kept;
    }
}

fn is_reset(entries: &[Value]) -> bool {
    match entries {
        [] => true,
        [only] => only.as_object().is_some_and(|e| e.values().all(Value::is_null)),
        _ => false,
    }
}
