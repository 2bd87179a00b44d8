//! The router for components of this process: no socket, no TLS, one identity.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};

use super::{Peer, Service};
use crate::auth::UserInfo;
use crate::http::Body;
use crate::http::body::BoxError;

/// The API server's router as a tower service; see [`super::Handle::service_as`].
#[derive(Clone)]
pub struct InProcess {
    service: Service,
    user: Arc<UserInfo>,
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcess").field("user", &self.user).finish_non_exhaustive()
    }
}

impl InProcess {
    pub(super) fn new(service: Service, mut user: UserInfo) -> Self {
        user.mark_authenticated();
        Self { service, user: Arc::new(user) }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = self.service.clone();
        let peer = Peer { user: Some(self.user.clone()), ends: None, trusted: true, address: None };
        Box::pin(async move { Ok(service.handle(request, peer).await) })
    }
}
