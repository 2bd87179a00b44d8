//! From bytes on a connection to a request that the registry understands, and back.

pub(crate) mod accept;
pub(crate) mod body;
pub(crate) mod info;
pub(crate) mod protobuf;
pub(crate) mod query;
pub(crate) mod reply;
pub(crate) mod yaml;

pub use body::Body;
pub(crate) use info::RequestInfo;
