//! Whether a request is worked on now, later or not at all.

use std::sync::Arc;
use std::time::Duration;

use decapod_api::status::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Core, Limits};
use crate::auth::UserInfo;
use crate::flow::{Schema, Seat};
use crate::http::RequestInfo;
use crate::metrics::Slot;

/// Limits without priority and fairness: who finds no place is turned away.
pub(super) struct Plain {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl Plain {
    pub(super) fn new(limits: &Limits) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self { reads: places(limits.reads), writes: places(limits.writes) }
    }

    fn place(&self, reads: bool) -> Option<OwnedSemaphorePermit> {
        let places = if reads { &self.reads } else { &self.writes };
        places.clone().try_acquire_owned().ok()
    }
}

/// What became of a request that wants to be worked on.
pub(super) struct Admission {
    /// The flow schema by which it was classified; none where it is not subject to priority and fairness.
    pub(super) schema: Option<Arc<Schema>>,
    /// Its place, or the error that turns it away.
    pub(super) place: Result<Place, Error>,
}

/// A place among the requests that are worked on; given back when dropped.
#[derive(Default)]
pub(super) struct Place {
    _seat: Option<Seat>,
    _plain: Option<OwnedSemaphorePermit>,
    _slot: Option<Slot>,
}

/// Waits until a request that may take `limit` has its place, if it needs one: streams never do.
pub(super) async fn admit(
    core: &Core,
    info: &RequestInfo,
    user: &UserInfo,
    long: bool,
    limit: Duration,
) -> Admission {
    let a = &info.attributes;
    let watch = a.verb == "watch";
    if long && !(watch && core.limits.fairness) {
        return Admission { schema: None, place: Ok(Place::default()) };
    }
    let reads = matches!(a.verb.as_str(), "get" | "list" | "head" | "watch");
    let turned_away = || {
        let message = "The server has received too many requests and has asked us to try again later";
        Error::TooManyRequests { message: message.to_owned(), retry_after_seconds: 1 }
    };
    if !core.limits.fairness {
        let place = core.plain.place(reads).map(|permit| Place {
            _plain: Some(permit),
            _slot: Some(core.metrics.in_flight(reads)),
            ..Place::default()
        });
        return Admission { schema: None, place: place.ok_or_else(turned_away) };
    }
    let schema = core.flow.classify(user, a);
    let seat = core.flow.seat(&schema, user, a, limit).await;
    let place = seat.map_err(|_| turned_away()).map(|seat| Place {
        _seat: Some(seat),
        _slot: Some(core.metrics.in_flight(reads)),
        ..Place::default()
    });
    Admission { schema: Some(schema), place }
}
