//! Handing the cluster's keys to a server that joins.
//!
//! **Invariant**: they are for who came by a bootstrap token that was made for a server, and for nobody else: not for
//! an administrator, who may do everything with the cluster but need not hold its keys, nor as somebody else.

use decapod_api::status::Error;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use crate::auth::{UserInfo, impersonation};
use crate::http::{Body, reply};
use crate::pki::share::{PATH, SERVERS, Shared};

/// The keys, if `user` may have them: who asks with these headers.
pub(super) fn answer(
    shared: Option<&Shared>,
    user: &UserInfo,
    headers: &HeaderMap,
) -> Result<Response<Body>, Error> {
    if !user.in_group(SERVERS) || impersonation::is_asked(headers) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_the_keys_as_somebody_else() {
        let status = |user: &UserInfo, headers: &HeaderMap| answer(None, user, headers).unwrap_err().code();
        let (plain, mut impersonating) = (HeaderMap::new(), HeaderMap::new());
        impersonating.insert("impersonate-user", HeaderValue::from_static("system:bootstrap:abcdef"));
        let server = UserInfo { groups: vec![SERVERS.to_owned()], ..UserInfo::default() };
        let master = UserInfo { groups: vec!["system:masters".to_owned()], ..UserInfo::default() };
        // Who may have them hears that there are none to share.
        assert_eq!(status(&server, &plain), 400);
        assert_eq!(status(&server, &impersonating), 403);
        assert_eq!(status(&master, &plain), 403);
    }
}
