//! Blobs to and from a registry, in pieces, and again from where a connection broke.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderValue, Method, StatusCode, Uri};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::client::{Ask, Client, Endpoint, location};
use super::error::{Error, Result};
use super::transport::{authority, next, whole};

/// Attempts in a row that brought nothing, after which a download has failed.
const ATTEMPTS: u32 = 5;
/// The first pause after a broken connection; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(200);
/// Sent at once when a blob is pushed: registries take at least this much, and it is held in memory.
const CHUNK: usize = 8 << 20;

/// Told how many bytes have come or gone.
pub(crate) type Count = Arc<dyn Fn(u64) + Send + Sync>;

impl Client {
    /// Sends the content of a blob into a channel, from `have` bytes on, and again from where a connection broke.
    /// Returns when all has been sent, or nobody listens. What is sent is not verified.
    pub(crate) async fn blob(
        &self,
        digest: &str,
        size: u64,
        mut have: u64,
        into: &mpsc::Sender<Bytes>,
        count: &Count,
    ) -> Result<()> {
        let mut failures = 0;
        while have < size {
            let before = have;
            match self.blob_part(digest, size, &mut have, into, count).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) if error.is_transient() => {
                    // Who says nothing for long is asked once more, not for minutes.
                    let weight = if matches!(error, Error::Stalled { .. }) { ATTEMPTS / 2 + 1 } else { 1 };
                    failures = if have > before { weight } else { failures + weight };
                    if failures >= ATTEMPTS {
                        return Err(error);
                    }
                    tracing::info!(digest, have, size, %error, "a download broke off: trying again");
                    tokio::time::sleep(PAUSE * (1 << (failures - 1))).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One connection's worth; false when nobody listens any more.
    async fn blob_part(
        &self,
        digest: &str,
        size: u64,
        have: &mut u64,
        into: &mpsc::Sender<Bytes>,
        count: &Count,
    ) -> Result<bool> {
        let what = format!("blob {digest}");
        let mut ask = Ask::new(Method::GET, &what);
        if *have > 0 {
            let value = format!("bytes={have}-");
            ask.headers.insert(RANGE, HeaderValue::try_from(value).expect("digits are text"));
        }
        let (_, response) = self.get(&format!("blobs/{digest}"), &ask).await?;
        // Who knows no ranges sends all, of which the beginning is here already.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { *have };
        let mut body: Incoming = response.into_body();
        while let Some(mut piece) = next(&mut body, &self.registry, &what).await? {
            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= known as u64;
            let piece = piece.split_off(known);
            if piece.is_empty() {
                continue;
            }
            let length = piece.len() as u64;
            if *have + length > size {
                return Err(
                    self.protocol(format!("{what} is larger than the {size} bytes of its descriptor"))
                );
            }
            if into.send(piece).await.is_err() {
                return Ok(false);
            }
            *have += length;
            count(length);
        }
        if *have < size {
            return Err(Error::Broken {
                registry: self.registry.clone(),
                what,
                source: format!("{have} of {size} bytes came").into(),
            });
        }
        Ok(true)
    }

    /// A small blob as a whole. What comes is not verified.
    pub(crate) async fn document(&self, digest: &str, limit: usize) -> Result<Bytes> {
        let what = format!("blob {digest}");
        let (_, response) = self.get(&format!("blobs/{digest}"), &Ask::new(Method::GET, &what)).await?;
        whole(response.into_body(), limit, &self.registry, &what).await
    }

    /// Whether the registry has a blob.
    pub(crate) async fn has_blob(&self, digest: &str) -> Result<bool> {
        let ask = Ask::new(Method::HEAD, format!("blob {digest}"));
        match self.get(&format!("blobs/{digest}"), &ask).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends a blob unless the registry has it, or can take it from another of its repositories.
    pub(crate) async fn upload(
        &self,
        digest: &str,
        size: u64,
        other_repository: Option<&str>,
        read: &(dyn Fn(u64, usize) -> std::io::Result<Bytes> + Send + Sync),
        count: &Count,
    ) -> Result<()> {
        if self.has_blob(digest).await? {
            count(size);
            return Ok(());
        }
        let what = format!("an upload of blob {digest}");
        let start = match other_repository {
            Some(other) => format!("blobs/uploads/?mount={digest}&from={other}"),
            None => "blobs/uploads/".to_owned(),
        };
        // The look for the blob has shown which endpoint answers.
        let (endpoint, response) = self.get(&start, &Ask::new(Method::POST, &what)).await?;
        if response.status() == StatusCode::CREATED {
            count(size);
            return Ok(());
        }
        let asked = endpoint.place.url(&self.repository, &start)?;
        let mut upload = self.upload_location(&asked, &response)?;
        let mut sent = 0;
        while sent < size {
            let length = usize::try_from(size - sent).unwrap_or(CHUNK).min(CHUNK);
            let piece = read(sent, length).map_err(Error::Read)?;
            upload = self.upload_piece(endpoint, upload, sent, piece, &what).await?;
            sent += length as u64;
            count(length as u64);
        }
        let text = upload.to_string();
        let mark = if text.contains('?') { '&' } else { '?' };
        let last = format!("{text}{mark}digest={digest}");
        let last = last.parse().map_err(|_| self.protocol(format!("{last} is no URL")))?;
        let mut finish = Ask::new(Method::PUT, &what);
        finish.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        self.ask(endpoint, last, &finish).await.map(drop)
    }

    async fn upload_piece(
        &self,
        endpoint: &Endpoint,
        to: Uri,
        at: u64,
        piece: Bytes,
        what: &str,
    ) -> Result<Uri> {
        let mut ask = Ask::new(Method::PATCH, what);
        let range = format!("{at}-{}", at + piece.len() as u64 - 1);
        ask.headers.insert(CONTENT_RANGE, HeaderValue::try_from(range).expect("digits are text"));
        ask.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        ask.body = piece;
        let response = self.ask(endpoint, to.clone(), &ask).await?;
        self.upload_location(&to, &response)
    }

    fn upload_location(&self, asked: &Uri, response: &http::Response<Incoming>) -> Result<Uri> {
        let next = location(asked, response).ok_or_else(|| self.protocol("an upload without a location"))?;
        if asked.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
            return Err(self.protocol(format!("an upload to {}, which is not HTTPS", authority(&next))));
        }
        Ok(next)
    }

    /// Puts a manifest by tag or digest.
    pub(crate) async fn put_manifest(&self, reference: &str, media_type: &str, bytes: Bytes) -> Result<()> {
        let mut ask = Ask::new(Method::PUT, format!("manifest {reference} of {}", self.repository));
        let kind =
            HeaderValue::try_from(media_type).map_err(|_| self.protocol("a media type that is no text"))?;
        ask.headers.insert(CONTENT_TYPE, kind);
        ask.body = bytes;
        self.get(&format!("manifests/{reference}"), &ask).await.map(drop)
    }
}
