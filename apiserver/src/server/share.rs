//! Handing the cluster's keys to a server that joins.
//!
//! **Invariant**: they are for who came by a bootstrap token that was made for a server, and for nobody else: not for
//! an administrator, who may do everything with the cluster but need not hold its keys.

use decapod_api::status::Error;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Response, StatusCode};

use crate::auth::UserInfo;
use crate::http::{Body, reply};
use crate::pki::share::{PATH, SERVERS, Shared};

/// The keys, if `user` may have them.
pub(super) fn answer(shared: Option<&Shared>, user: &UserInfo) -> Result<Response<Body>, Error> {
    if !user.in_group(SERVERS) {
        return Err(Error::Forbidden {
            resource: String::new(),
            name: String::new(),
            why: format!(
                "User \"{}\" cannot get path \"{PATH}\": only a token for servers buys the keys",
                user.username
            ),
        });
    }
    let Some(shared) = shared else {
        return Err(Error::BadRequest(
            "this cluster keeps its objects in the embedded store, which one server alone can use".to_owned(),
        ));
    };
    let files = shared.files().map_err(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "the keys cannot be read for a server that joins"
        );
        Error::Internal("the keys cannot be read: the server's log says why".to_owned())
    })?;
    tracing::warn!(user = user.username, "the cluster's keys are handed to a server that joins");
    let mut response = reply::json(StatusCode::OK, &serde_json::json!({"files": files}));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
