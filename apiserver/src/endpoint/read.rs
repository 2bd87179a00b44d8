//! Get, list and watch.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use decapod_api::status::Error;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use rand::Rng;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Request;
use super::render::Wanted;
use crate::cache::Delivery;
use crate::http::accept::Form;
use crate::http::body::{self, BoxError};
use crate::http::{Body, reply};
use crate::registry::object;
use crate::registry::options::ListOptions;
use crate::registry::reads::{At, Watching, refused};
use decapod_api::resource::Resource;

/// Watches end after at least this long (and at most twice), so that they spread over servers.
const MIN_WATCH: Duration = Duration::from_secs(30 * 60);

pub(super) async fn get(request: &Request<'_>) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let wanted = Wanted::of(request.headers, &request.info.query)?;
    let key = object::key(call.resource, &call.namespace, &call.name).ok_or(Error::UnknownPath)?;
    let object =
        request.core.registry.reads.get(call.resource, &key).await?.ok_or_else(|| call.not_found())?;
    Ok(reply::bytes(StatusCode::OK, wanted.event(request.resource, &object, true)?))
}

pub(super) async fn list(request: &Request<'_>) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let wanted = Wanted::of(request.headers, &request.info.query)?;
    let options = ListOptions::parse(&request.info.query)?;
    let list = request.core.registry.list(&call, &options).await?;
    let bytes = wanted.list(request.resource, &list)?;
    let mut response = reply::bytes(StatusCode::OK, Bytes::new());
    reply::compress(request.headers, bytes, &mut response);
    Ok(response)
}

pub(super) async fn watch(request: &Request<'_>) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let wanted = Wanted::of(request.headers, &request.info.query)?;
    let options = ListOptions::parse(&request.info.query)?;
    let timeout = match options.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(MIN_WATCH.as_secs() * 2)),
        _ => MIN_WATCH + Duration::from_secs(rand::rng().random_range(0..MIN_WATCH.as_secs())),
    };
    let watching = match request.core.registry.watch(&call, &options).await {
        Ok(watching) => watching,
        // A watch from a lost revision says so in its first event, as clients expect it.
        Err(error @ Error::Expired { .. }) if options.at != At::Newest => {
            return Ok(streamed(
                stream::iter([Ok(frame("ERROR", &error.to_status().to_string().into()))]).boxed(),
            ));
        }
        Err(error) => return Err(error),
    };
    let stop = request.core.stopping.clone();
    Ok(streamed(frames(request.resource, wanted, watching, timeout, stop)))
}

fn streamed(frames: BoxStream<'static, Result<Bytes, BoxError>>) -> Response<Body> {
    let mut response = Response::new(body::stream(frames));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

struct Frames {
    resource: &'static Resource,
    wanted: Wanted,
    watching: Watching,
    end: std::pin::Pin<Box<tokio::time::Sleep>>,
    stop: CancellationToken,
    first: bool,
    done: bool,
}

fn frames(
    resource: &'static Resource,
    wanted: Wanted,
    watching: Watching,
    timeout: Duration,
    stop: CancellationToken,
) -> BoxStream<'static, Result<Bytes, BoxError>> {
    let end = Box::pin(tokio::time::sleep(timeout));
    let frames = Frames { resource, wanted, watching, end, stop, first: true, done: false };
    stream::unfold(frames, |mut frames| async move {
        let bytes = frames.next().await?;
        Some((Ok(bytes), frames))
    })
    .boxed()
}

impl Frames {
    /// The next frames: all events that are there already, together.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let batch = tokio::select! {
            () = self.stop.cancelled() => None,
            () = &mut self.end => None,
            batch = self.watching.next() => batch,
        }?;
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Some(self.fail(&refused(error))),
        };
        let mut bytes = BytesMut::new();
        for delivery in &batch {
            let frame = self.encode(delivery);
            if batch.len() == 1 {
                return Some(frame);
            }
            bytes.put_slice(&frame);
        }
        Some(bytes.freeze())
    }

    fn encode(&mut self, delivery: &Delivery) -> Bytes {
        if let Delivery::Bookmark { revision, initial_end } = delivery {
            return frame("BOOKMARK", &self.bookmark(*revision, *initial_end).to_string().into());
        }
        if let (Form::Object, Some(frame)) = (self.wanted.form, delivery.frame()) {
            return frame;
        }
        let Some((kind, object)) = delivery.object() else { return Bytes::new() };
        match self.wanted.event(self.resource, object, std::mem::take(&mut self.first)) {
            Ok(bytes) => frame(kind.as_str(), &bytes),
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &Error) -> Bytes {
        self.done = true;
        frame("ERROR", &error.to_status().to_string().into())
    }

    fn bookmark(&self, revision: u64, initial: bool) -> Value {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let (kind, version) = match self.wanted.form {
            Form::Object => (self.resource.kind, self.resource.api_version()),
            Form::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
            Form::Table => {
                return json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta,
                    "columnDefinitions": null, "rows": []});
            }
        };
        json!({"kind": kind, "apiVersion": version, "metadata": meta})
    }
}

fn frame(kind: &str, object: &Bytes) -> Bytes {
    let mut bytes = BytesMut::with_capacity(object.len() + 40);
    bytes.put_slice(b"{\"type\":\"");
    bytes.put_slice(kind.as_bytes());
    bytes.put_slice(b"\",\"object\":");
    bytes.put_slice(object);
    bytes.put_slice(b"}\n");
    bytes.freeze()
}
