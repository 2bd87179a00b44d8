//! Bodies: one erased type for requests and responses, and reading a request's with a bound.

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};

/// Any error of a body.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's or response's body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The default of the largest request, as in Kubernetes: etcd's limit of 1.5 MiB, doubled for JSON.
pub(crate) const MAX_REQUEST: usize = 3 * 1024 * 1024;

/// Why a request's body could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("limit is {0}")]
    TooLarge(usize),
    #[error("the body ended early")]
    Broken(#[source] BoxError),
}

/// A body of known bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The body without bytes.
pub(crate) fn empty() -> Body {
    full(Bytes::new())
}

/// A body that is sent as its chunks come.
pub(crate) fn stream(chunks: BoxStream<'static, Result<Bytes, BoxError>>) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(hyper::body::Frame::data))).boxed_unsync()
}

/// Erases a body's type.
pub(crate) fn erase<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Reads a request's body as a whole, if it has no more bytes than `limit`.
pub(crate) async fn read(mut body: Body, limit: usize) -> Result<Bytes, ReadError> {
    let mut first: Option<Bytes> = None;
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(ReadError::Broken)?.into_data() else { continue };
        if first.as_ref().map_or(0, Bytes::len) + rest.len() + data.len() > limit {
            return Err(ReadError::TooLarge(limit));
        }
        match first.take() {
            None if rest.is_empty() => first = Some(data),
            None => rest.extend_from_slice(&data),
            Some(start) => {
                rest.extend_from_slice(&start);
                rest.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| rest.freeze()))
}
