//! A CRI runtime behind a Unix socket, as a [`decapod_runtime::Runtime`]: containerd, CRI-O, or another Decapod.

mod call;
mod events;
mod runtime;

use std::path::PathBuf;

use decapod_proto::cri::image_service_client::ImageServiceClient;
use decapod_proto::cri::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::stream::Host;

/// The largest answer: both outputs of an exec, each of the largest size that runtimes keep, and the frame around.
const ANSWER_MAX: usize = (32 << 20) + (1 << 20);

/// What cannot be an endpoint.
#[derive(Debug, thiserror::Error)]
#[error("the container runtime's endpoint {endpoint:?} is not of the form unix:///path/to/socket")]
pub struct EndpointError {
    /// As it was given.
    pub endpoint: String,
}

/// A runtime behind a socket. Connects when it is first asked, and again whenever the connection is lost. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    host: Host,
}

impl Remote {
    /// The runtime at `unix:///path`, or at a path. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the endpoint names no Unix socket by an absolute path. Whether anybody answers there, the first call says.
    pub fn new(endpoint: &str, host: Host) -> Result<Self, EndpointError> {
        let path = socket(endpoint).ok_or_else(|| EndpointError { endpoint: endpoint.to_owned() })?;
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // Names nothing: the connector knows where to go.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect);
        let runtime = RuntimeServiceClient::new(channel.clone());
        let images = ImageServiceClient::new(channel);
        Ok(Self {
            runtime: runtime.max_decoding_message_size(ANSWER_MAX),
            images: images.max_decoding_message_size(ANSWER_MAX),
            host,
        })
    }
}

fn socket(endpoint: &str) -> Option<PathBuf> {
    let path = PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    path.is_absolute().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        let path = PathBuf::from("/run/containerd/containerd.sock");
        assert_eq!(socket("unix:///run/containerd/containerd.sock"), Some(path.clone()));
        assert_eq!(socket("/run/containerd/containerd.sock"), Some(path));
        for bad in ["", "unix://run/x.sock", "tcp://127.0.0.1:1", "npipe:////./pipe/x"] {
            assert_eq!(socket(bad), None, "{bad}");
        }
    }
}
