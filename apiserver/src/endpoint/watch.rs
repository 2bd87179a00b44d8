//! Watch: the events of a selection as a stream of frames, over HTTP or a WebSocket.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use decapod_api::resource::Resource;
use decapod_api::status::Error;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Request;
use super::render::Wanted;
use crate::cache::{Delivery, Kind};
use crate::http::Body;
use crate::http::accept::{Encoding, Form};
use crate::http::body::{self, BoxError};
use crate::http::protobuf::encode;
use crate::metrics::watches::Sent;
use crate::registry::options::ListOptions;
use crate::registry::reads::{At, Object, Watching, refused};

/// What a stream of protobuf is answered as.
const PROTOBUF_STREAM: HeaderValue =
    HeaderValue::from_static("application/vnd.kubernetes.protobuf;stream=watch");

pub(super) async fn answer(request: &Request<'_>) -> Result<Response<Body>, Error> {
    let call = request.call()?;
    let wanted = Wanted::of(request)?;
    let options = ListOptions::parse(&request.info.query)?;
    let end = Instant::now() + duration(request.core.limits.watch, options.timeout_seconds);
    let mut watching = match request.core.registry.watch(&call, &options).await {
        Ok(watching) => watching,
        // A watch from a lost revision says so in its first event, as clients expect it.
        Err(error @ Error::Expired { .. }) if options.at != At::Newest => {
            let lost = Ok(Encoder { resource: request.resource, wanted }.error(&error));
            return Ok(streamed(wanted.encoding, stream::iter([lost]).boxed()));
        }
        Err(error) => return Err(error),
    };
    watching.end_at(end);
    let encoder = Encoder { resource: request.resource, wanted };
    let (end, stop) = (Box::pin(tokio::time::sleep_until(end)), request.core.stopping.clone());
    let stop = Box::pin(stop.cancelled_owned());
    let a = &request.info.attributes;
    let scope = match (a.name.is_empty(), a.namespace.is_empty()) {
        (false, _) => "resource",
        (true, false) => "namespace",
        (true, true) => "cluster",
    };
    let (sent, began) = (Sent::of(request.resource, scope), Instant::now());
    let frames = Frames { encoder, watching, end, stop, sent, began, first: true, done: false };
    // In a box: it goes through each step by value.
    let frames = stream::unfold(Box::new(frames), |mut frames| async move {
        let bytes = frames.next().await?;
        Some((Ok(bytes), frames))
    });
    Ok(streamed(wanted.encoding, frames.boxed()))
}

/// How long a watch lasts: as long as asked for; otherwise, and at most, up to twice the least.
fn duration(least: Duration, asked: Option<u64>) -> Duration {
    match asked {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds).min(least * 2),
        _ => least + least.mul_f64(rand::rng().random_range(0.0..1.0)),
    }
}

fn streamed(encoding: Encoding, frames: BoxStream<'static, Result<Bytes, BoxError>>) -> Response<Body> {
    let mut response = Response::new(body::stream(frames));
    let media = match encoding {
        Encoding::Protobuf => PROTOBUF_STREAM,
        _ => HeaderValue::from_static(encoding.media()),
    };
    response.headers_mut().insert(CONTENT_TYPE, media);
    response
}

struct Frames {
    encoder: Encoder,
    watching: Watching,
    end: std::pin::Pin<Box<tokio::time::Sleep>>,
    /// Kept from event to event, as the time is: to wait for it anew takes a lock that all watches share.
    stop: std::pin::Pin<Box<WaitForCancellationFutureOwned>>,
    sent: Sent,
    began: Instant,
    first: bool,
    done: bool,
}

impl Frames {
    /// The next frames: all events that are there already, together.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        // What is there goes first, without a look at the others, which share a lock: they have their turn whenever
        // nothing is there.
        let batch = tokio::select! {
            biased;
            batch = self.watching.next() => batch,
            () = &mut self.stop => None,
            () = &mut self.end => None,
        }?;
        if Instant::now() >= self.end.deadline() {
            return None;
        }
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => return Some(self.fail(&refused(error))),
        };
        let mut bytes = BytesMut::new();
        for delivery in &batch {
            let frame = match self.encoder.frame(delivery, std::mem::take(&mut self.first)) {
                Ok(frame) => frame,
                Err(error) => self.fail(&error),
            };
            self.sent.event(frame.len());
            if matches!(delivery, Delivery::Bookmark { initial_end: true, .. }) {
                self.sent.initial(self.began.elapsed());
            }
            if batch.len() == 1 {
                return Some(frame);
            }
            bytes.put_slice(&frame);
            if self.done {
                break;
            }
        }
        Some(bytes.freeze())
    }

    fn fail(&mut self, error: &Error) -> Bytes {
        self.done = true;
        self.encoder.error(error)
    }
}

/// Makes frames of events, as one client wants them.
struct Encoder {
    resource: &'static Resource,
    wanted: Wanted,
}

impl Encoder {
    /// The frame of an event; a table has its columns in the first one only.
    fn frame(&self, delivery: &Delivery, first: bool) -> Result<Bytes, Error> {
        if let Delivery::Bookmark { revision, initial_end } = delivery {
            return self.encoded("BOOKMARK", &self.bookmark(*revision, *initial_end, first));
        }
        if (self.wanted.form, self.wanted.encoding) == (Form::Object, Encoding::Json)
            && let Some(frame) = delivery.frame()
        {
            return Ok(frame);
        }
        let make = |kind: Kind, object: &Object| {
            let bytes = self.wanted.event(self.resource, object, first)?;
            match self.wanted.encoding {
                Encoding::Protobuf => self.encoded(kind.as_str(), &parse(&bytes)?),
                _ => Ok(framed(kind.as_str(), &bytes)),
            }
        };
        delivery.rendition(self.wanted.rendition(first), make).unwrap_or_else(|| Ok(Bytes::new()))
    }

    /// The frame of what is in hand as a tree.
    fn encoded(&self, kind: &str, object: &Value) -> Result<Bytes, Error> {
        match self.wanted.encoding {
            Encoding::Protobuf => {
                let object = encode::encode(object)
                    .map_err(|e| Error::Internal(format!("an event cannot be encoded: {e}")))?;
                Ok(encode::frame(kind, &object))
            }
            _ => Ok(framed(kind, object.to_string().as_bytes())),
        }
    }

    fn error(&self, error: &Error) -> Bytes {
        self.encoded("ERROR", &error.to_status()).expect("a Status has a form in every encoding")
    }

    fn bookmark(&self, revision: u64, initial: bool, first: bool) -> Value {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object =
            json!({"kind": self.resource.kind, "apiVersion": self.resource.api_version(), "metadata": meta});
        match self.wanted.form {
            Form::Object => object,
            _ => self.wanted.bookmark(self.resource, object, first),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Internal(format!("an event cannot be read: {e}")))
}

/// A frame of JSON: a line.
fn framed(kind: &str, object: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(object.len() + 40);
    bytes.put_slice(b"{\"type\":\"");
    bytes.put_slice(kind.as_bytes());
    bytes.put_slice(b"\",\"object\":");
    bytes.put_slice(object);
    bytes.put_slice(b"}\n");
    bytes.freeze()
}
