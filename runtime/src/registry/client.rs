//! One registry as one pull or push sees it: its mirrors, its own endpoint, and who we are to each.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::auth::{Challenge, Credentials, TokenAnswer, escape};
use super::config::{Place, Registries};
use super::error::{Error, Result};
use super::transport::{Transports, authority, whole};

/// The largest manifest: registries allow 4 MiB.
const MAX_MANIFEST: usize = 4 << 20;
/// The largest answer to a request for a token, and the most of an error that is read.
const MAX_ANSWER: usize = 1 << 20;
/// The longest message of a registry that is repeated to users, in characters.
const MAX_MESSAGE: usize = 300;
/// Redirects followed for one request, as other clients do.
const MAX_REDIRECTS: usize = 10;

/// The kinds of manifests that we understand.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json, \
                        application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pull,
    Push,
}

/// A manifest or an index, as the registry has it.
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// A registry, for the images of one repository.
pub(crate) struct Client {
    /// The registry as names of images say it.
    pub(super) registry: String,
    pub(super) repository: String,
    purpose: Purpose,
    transports: Transports,
    pub(super) endpoints: Vec<Endpoint>,
}

/// One place where the registry is asked.
pub(super) struct Endpoint {
    pub(super) place: Place,
    credentials: Option<Credentials>,
    /// The value of the header by which we are known there, once we are.
    authorization: Mutex<Option<HeaderValue>>,
    /// It did not answer: others are asked first.
    down: AtomicBool,
}

/// What is sent; a body can be sent again.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What it is about, for errors.
    pub(super) what: String,
}

impl Ask {
    pub(super) fn new(method: Method, what: impl Into<String>) -> Self {
        Self { method, headers: HeaderMap::new(), body: Bytes::new(), what: what.into() }
    }
}

impl Client {
    /// `repository` is the full name without tag, such as `docker.io/library/nginx`. `credentials` are the caller's
    /// for this registry; without them those of the file are used.
    pub(crate) fn new(
        registries: Arc<Registries>,
        repository: &str,
        credentials: Option<&Credentials>,
        insecure: bool,
        purpose: Purpose,
    ) -> Self {
        let (registry, path) = repository.split_once('/').unwrap_or((repository, ""));
        let given = credentials.filter(|credentials| !credentials.is_empty());
        let mut places = registries.places(registry, insecure);
        if purpose == Purpose::Push {
            // What is pushed goes to the registry that was named.
            places.retain(|place| place.own);
        }
        let endpoints = places.into_iter().map(|place| {
            let configured = || registries.credentials(registry, &place.authority);
            let known = match place.own {
                true => given.cloned().or_else(configured),
                // A mirror is somebody else: it gets what the file has for it.
                false => registries.credentials(&place.authority, &place.authority),
            };
            Endpoint {
                credentials: known,
                authorization: Mutex::default(),
                down: AtomicBool::new(false),
                place,
            }
        });
        Self {
            endpoints: endpoints.collect(),
            registry: registry.to_owned(),
            repository: path.to_owned(),
            purpose,
            transports: Transports::new(registries, insecure),
        }
    }

    /// The manifest of that tag or digest. Its digest is the caller's to check.
    pub(crate) async fn manifest(&self, reference: &str) -> Result<Manifest> {
        let what = format!("manifest {reference} of {}", self.repository);
        let mut ask = Ask::new(Method::GET, &what);
        ask.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
        let (_, response) = self.get(&format!("manifests/{reference}"), &ask).await?;
        let media_type =
            response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let bytes = whole(response.into_body(), MAX_MANIFEST, &self.registry, &what).await?;
        Ok(Manifest { media_type, bytes })
    }

    /// Asks the endpoints in order, those that were silent before last.
    pub(super) async fn get(&self, path: &str, ask: &Ask) -> Result<(&Endpoint, Response<Incoming>)> {
        let (down, up): (Vec<_>, Vec<_>) =
            self.endpoints.iter().partition(|endpoint| endpoint.down.load(Ordering::Relaxed));
        let mut tried: Vec<String> = Vec::new();
        let mut last: Option<Error> = None;
        // Hosts that have answered are not asked again in another way: without TLS only who has none.
        let mut answered: Vec<&str> = Vec::new();
        for endpoint in up.into_iter().chain(down) {
            if answered.contains(&endpoint.place.authority.as_str()) {
                continue;
            }
            match self.ask(endpoint, endpoint.place.url(&self.repository, path)?, ask).await {
                Ok(response) => return Ok((endpoint, response)),
                Err(error) => {
                    endpoint.down.store(error.is_unreachable(), Ordering::Relaxed);
                    if !error.is_unreachable() || error.is_distrust() {
                        answered.push(&endpoint.place.authority);
                    }
                    if !endpoint.place.own {
                        tracing::warn!(mirror = endpoint.place.authority, %error, "a mirror failed");
                        tried.push(chain(&error));
                    }
                    last = Some(error);
                }
            }
        }
        let last = last.unwrap_or_else(|| Error::Protocol {
            registry: self.registry.clone(),
            what: "there is no endpoint to ask".to_owned(),
        });
        Err(match tried.is_empty() {
            true => last,
            false => Error::Mirrors { tried: tried.join("; "), source: Box::new(last) },
        })
    }

    /// One request at one endpoint, as whoever it wants us to be. An answer that is no success is an error.
    pub(super) async fn ask(&self, endpoint: &Endpoint, url: Uri, ask: &Ask) -> Result<Response<Incoming>> {
        let mut before = endpoint.authorization.lock().await.clone();
        for attempt in 0..2 {
            let response = self.follow(endpoint, url.clone(), ask, before.as_ref()).await?;
            if response.status() != StatusCode::UNAUTHORIZED || attempt > 0 {
                return self.success(endpoint, response, &ask.what).await;
            }
            before = match self.authorize(endpoint, &response, before.as_ref()).await? {
                Some(known) => Some(known),
                None => return self.success(endpoint, response, &ask.what).await,
            };
        }
        unreachable!("the second attempt returns")
    }

    /// Sends a request and follows redirects; only the endpoint itself is told who we are.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        mut url: Uri,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>> {
        for _ in 0..MAX_REDIRECTS {
            let mut request = Request::builder().method(ask.method.clone()).uri(url.clone());
            if let Some(headers) = request.headers_mut() {
                headers.extend(ask.headers.clone());
                headers.insert(http::header::USER_AGENT, HeaderValue::from_static("decapod"));
                if let Some(value) = authorization.filter(|_| endpoint.place.is_origin_of(&url)) {
                    headers.insert(AUTHORIZATION, value.clone());
                }
            }
            let request = request
                .body(Full::new(ask.body.clone()))
                .map_err(|error| self.protocol(format!("{url} is no URL: {error}")))?;
            let response = self.transports.send(request).await?;
            let moved = response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED;
            if !moved || !matches!(ask.method, Method::GET | Method::HEAD) {
                return Ok(response);
            }
            let next = location(&url, &response).ok_or_else(|| self.protocol("a redirect to nowhere"))?;
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(self.protocol(format!("a redirect from HTTPS to {next}, which is not safe")));
            }
            url = next;
        }
        Err(self.protocol(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// Answers a challenge; `None` where there is nothing to answer it with.
    async fn authorize(
        &self,
        endpoint: &Endpoint,
        response: &Response<Incoming>,
        before: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>> {
        let mut known = endpoint.authorization.lock().await;
        if known.as_ref() != before {
            // Another request of the same pull has done it meanwhile.
            return Ok(known.clone());
        }
        let credentials = endpoint.credentials.clone().unwrap_or_default();
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?)).next();
        let value = match challenge {
            Some(Challenge::Basic) => credentials.basic(),
            Some(Challenge::Bearer { .. }) if !credentials.registry_token.is_empty() => {
                Some(format!("Bearer {}", credentials.registry_token))
            }
            Some(Challenge::Bearer { realm, service, scope }) => Some(format!(
                "Bearer {}",
                self.token(endpoint, &credentials, &realm, &service, &scope).await?
            )),
            None => None,
        };
        let Some(value) = value else { return Ok(None) };
        let mut value = HeaderValue::try_from(value).map_err(|_| self.protocol("a token that is no text"))?;
        value.set_sensitive(true);
        *known = Some(value.clone());
        Ok(Some(value))
    }

    /// A token of the token server that the registry named.
    async fn token(
        &self,
        endpoint: &Endpoint,
        credentials: &Credentials,
        realm: &str,
        service: &str,
        scope: &str,
    ) -> Result<String> {
        let actions = match self.purpose {
            Purpose::Pull => "pull",
            Purpose::Push => "pull,push",
        };
        let own = format!("repository:{}:{actions}", self.repository);
        let scope = if scope.is_empty() { own.as_str() } else { scope };
        let what = format!("a token for {scope}");
        let mut ask = Ask::new(Method::GET, &what);
        let mut url = realm.to_owned();
        if let Some(form) = credentials.refresh_form(service, scope) {
            ask.method = Method::POST;
            ask.body = form.into();
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            ask.headers.insert(CONTENT_TYPE, form);
        } else {
            url.push(if realm.contains('?') { '&' } else { '?' });
            url.push_str(&format!("service={}&scope={}", escape(service), escape(scope)));
            if let Some(basic) = credentials.basic() {
                let value = HeaderValue::try_from(basic)
                    .map_err(|_| self.protocol("credentials that are no text"))?;
                ask.headers.insert(AUTHORIZATION, value);
            }
        }
        let url: Uri =
            url.parse().map_err(|_| self.protocol(format!("its token server {realm:?} is no URL")))?;
        if endpoint.place.scheme == "https" && url.scheme_str() != Some("https") {
            return Err(self.protocol(format!("its token server {realm} is not asked over HTTPS")));
        }
        // A redirect gets none of what is in the headers: they were for the token server.
        let mut request = Request::builder().method(ask.method.clone()).uri(url);
        if let Some(headers) = request.headers_mut() {
            headers.extend(ask.headers.clone());
        }
        let request = request
            .body(Full::new(ask.body.clone()))
            .map_err(|error| self.protocol(format!("its token server {realm} cannot be asked: {error}")))?;
        let response = self.transports.send(request).await?;
        let response = self.success(endpoint, response, &what).await?;
        let body = whole(response.into_body(), MAX_ANSWER, &self.registry, &what).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|error| self.protocol(format!("its token server {realm} gave no token: {error}")))?;
        answer.token().ok_or_else(|| self.protocol(format!("its token server {realm} gave no token")))
    }

    /// Makes an error of an answer that is no success.
    async fn success(
        &self,
        endpoint: &Endpoint,
        response: Response<Incoming>,
        what: &str,
    ) -> Result<Response<Incoming>> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let registry = endpoint.place.authority.clone();
        // The message only explains; without it the status says enough.
        let body = whole(response.into_body(), MAX_ANSWER, &registry, what).await.unwrap_or_default();
        let message = message(&body);
        let what = what.to_owned();
        Err(match status {
            StatusCode::NOT_FOUND => Error::NotFound { registry, what, message },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let given = endpoint.credentials.is_some();
                Error::Unauthorized { registry, given, message }
            }
            status => Error::Refused { registry, what, status, message },
        })
    }

    pub(super) fn protocol(&self, what: impl Into<String>) -> Error {
        Error::Protocol { registry: self.registry.clone(), what: what.into() }
    }
}

impl Place {
    /// The URL of something in a repository.
    pub(super) fn url(&self, repository: &str, path: &str) -> Result<Uri> {
        let text = format!("{}://{}{}/v2/{repository}/{path}", self.scheme, self.authority, self.prefix);
        text.parse().map_err(|_| Error::Protocol {
            registry: self.authority.clone(),
            what: format!("{text} is no URL"),
        })
    }

    /// True where a URL leads to this very endpoint.
    fn is_origin_of(&self, url: &Uri) -> bool {
        url.scheme_str() == Some(self.scheme) && authority(url) == self.authority
    }
}

/// Where an answer points, seen from the URL that was asked.
pub(super) fn location(from: &Uri, response: &Response<Incoming>) -> Option<Uri> {
    let text = response.headers().get(LOCATION)?.to_str().ok()?;
    if text.starts_with("http://") || text.starts_with("https://") {
        return text.parse().ok();
    }
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    if let Some(rest) = text.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    let path = match text.starts_with('/') {
        true => text.to_owned(),
        false => {
            let (above, _) = from.path().rsplit_once('/')?;
            format!("{above}/{text}")
        }
    };
    format!("{scheme}://{authority}{path}").parse().ok()
}

/// The registry's own words.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        errors: Vec<Item>,
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return String::new() };
    let words = answer.errors.into_iter().map(|item| match item.message.is_empty() {
        true => item.code,
        false => item.message,
    });
    let all: Vec<String> = words.chain([answer.details]).filter(|text| !text.is_empty()).collect();
    // Whatever a registry says is shown in events and statuses: one short line.
    all.join(", ").chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect()
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_short_lines() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown","detail":{}}]}"#;
        assert_eq!(message(body), "manifestunknown");
        assert_eq!(message(br#"{"details":"incorrect username"}"#), "incorrect username");
        assert_eq!(message(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(5000));
        assert_eq!(message(long.as_bytes()).len(), MAX_MESSAGE);
    }
}
