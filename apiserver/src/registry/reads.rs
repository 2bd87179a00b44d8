//! Reading through the watch cache: which row of it, how its values are read, and what its errors
//! are to a client.

use std::sync::Arc;

use decapod_api::resource::Resource;
use decapod_api::status::Error;
use decapod_api::{fields, labels};
use decapod_storage::{self as storage, Entry, Store};
use serde_json::Value;

use super::{convert, fields as selectable, object};
use crate::cache::{
    self, AsStored, BoxError, Cache, Cacher, Decode, Decoded, Field, Row, Scanner, Selection,
};

use crate::metrics::watches;

pub(crate) use crate::cache::{At, Object, Query, Start, View, Watching};

/// What etcd takes in one request, unless it is told otherwise.
const ETCD_REQUEST: usize = 1_536 * 1024;

/// What a list or watch selects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) labels: labels::Selector,
    pub(crate) fields: fields::Selector,
}

impl Filter {
    fn under(&self, prefix: &str) -> Selection {
        Selection { prefix: prefix.into(), labels: self.labels.clone(), fields: self.fields.clone() }
    }
}

/// Reads of all rows.
pub(crate) struct Reads {
    cache: Cache,
}

impl Reads {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { cache: Cache::new(store) }
    }

    async fn row(&self, resource: &'static Resource) -> Result<Arc<Cacher>, Error> {
        let prefix = object::prefix(resource, "").ok_or(Error::UnknownPath)?;
        let id = format!("{}/{}/{}", resource.group, resource.version, resource.plural);
        self.cache.row(&id, || make(resource, prefix)).await.map_err(refused)
    }

    /// One object, the newest.
    pub(crate) async fn get(
        &self,
        resource: &'static Resource,
        key: &str,
    ) -> Result<Option<Arc<Object>>, Error> {
        self.row(resource).await?.get(key).await.map_err(refused)
    }

    /// The objects under a prefix of the row.
    pub(crate) async fn list(
        &self,
        resource: &'static Resource,
        prefix: &str,
        filter: &Filter,
        at: At,
        limit: Option<usize>,
        after: Option<Arc<str>>,
    ) -> Result<View, Error> {
        let query = Query { selection: filter.under(prefix), at, limit, after };
        self.row(resource).await?.list(&query).await.map_err(refused)
    }

    /// Follows the objects under a prefix of the row.
    pub(crate) async fn watch(
        &self,
        resource: &'static Resource,
        prefix: &str,
        filter: &Filter,
        start: Start,
        bookmarks: bool,
    ) -> Result<Watching, Error> {
        self.row(resource).await?.watch(filter.under(prefix), start, bookmarks).await.map_err(refused)
    }
}

fn make(resource: &'static Resource, prefix: String) -> Row {
    let names = selectable::of(resource);
    let scanner = Scanner::new(names.iter().map(|name| field(name)).collect());
    let decoder: Arc<dyn Decode> = if convert::shared(resource) {
        Arc::new(Converted { resource, scanner })
    } else {
        Arc::new(AsStored(scanner))
    };
    let fields = names.iter().map(|&name| name.to_owned()).collect();
    Row { prefix, decoder, fields, received: watches::received(resource) }
}

fn field(name: &str) -> Field {
    let (path, default) = (selectable::path(name), selectable::default(name));
    let otherwise = selectable::otherwise(name).map(str::to_owned);
    Field { path: path.to_owned(), otherwise, default: default.to_owned(), ..Field::new(name) }
}

/// A row that shares its storage with another: its objects are converted when they are read.
struct Converted {
    resource: &'static Resource,
    scanner: Scanner,
}

impl Decode for Converted {
    fn decode(&self, entry: &Entry) -> Result<Decoded, BoxError> {
        let stored: Value = serde_json::from_slice(&entry.value)?;
        let body = object::encode(&convert::served(self.resource, stored));
        let facts = self.scanner.scan(&body)?;
        Ok(Decoded { body, facts })
    }
}

/// What a failure of the store is to a client.
pub(crate) fn failed(error: storage::Error) -> Error {
    refused(error.into())
}

/// What a failure of the cache is to a client.
pub(crate) fn refused(error: cache::Error) -> Error {
    match error {
        cache::Error::Expired { requested, oldest } => Error::Expired {
            message: format!("too old resource version: {requested} ({oldest})"),
            continue_token: None,
        },
        cache::Error::Ended => Error::Expired {
            message: "too old resource version: the watch must start anew".to_owned(),
            continue_token: None,
        },
        cache::Error::Future { requested, current } => Error::ResourceVersionTooLarge { requested, current },
        cache::Error::Timeout => {
            Error::Timeout("the cache did not catch up with the store in time".to_owned())
        }
        other @ cache::Error::Unreadable { .. } => {
            tracing::error!(error = %other, "an object cannot be read");
            Error::Internal(other.to_string())
        }
        cache::Error::Store(storage::Error::TooLarge) => Error::TooLarge { limit: ETCD_REQUEST },
        cache::Error::Store(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
            Error::Unavailable("the store is unavailable".to_owned())
        }
    }
}
