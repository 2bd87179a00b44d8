//! Which headers pass, and which end here.

use std::net::IpAddr;

use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use crate::auth::WEBSOCKET_BEARER;

/// Who somebody claims to be, to us.
const IDENTITIES: [&str; 2] = ["impersonate-", "x-remote-"];

/// Through which addresses a request has come.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What a connection and not a message is about.
const HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The headers of an answer with which a server lets pages of other origins read it: they would mean this server.
const CORS: [&str; 7] = [
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-expose-headers",
    "access-control-allow-credentials",
    "access-control-max-age",
    "access-control-allow-private-network",
];

/// Removes what is for this hop alone.
pub(super) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP) {
        headers.remove(name);
    }
}

/// What a pod says to the client: nothing for the hop, nothing that lets other pages read it.
pub(super) fn answered(headers: &mut HeaderMap) {
    strip(headers);
    for name in CORS {
        headers.remove(name);
    }
}

/// The headers of a request as they go on: none of the client's credentials.
pub(super) fn forwarded(headers: &HeaderMap, upgrade: Option<&HeaderValue>) -> HeaderMap {
    let mut forwarded = headers.clone();
    strip(&mut forwarded);
    for name in [AUTHORIZATION, HOST, SEC_WEBSOCKET_PROTOCOL] {
        forwarded.remove(name);
    }
    let claims: Vec<HeaderName> =
        forwarded.keys().filter(|k| IDENTITIES.iter().any(|i| k.as_str().starts_with(i))).cloned().collect();
    for name in claims {
        forwarded.remove(name);
    }
    if let Some(upgrade) = upgrade {
        forwarded.insert(UPGRADE, upgrade.clone());
        forwarded.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    let offered = offered.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    let offered: Vec<&str> = offered.map(str::trim).filter(|p| !p.starts_with(WEBSOCKET_BEARER)).collect();
    if !offered.is_empty()
        && let Ok(value) = HeaderValue::from_str(&offered.join(", "))
    {
        forwarded.insert(SEC_WEBSOCKET_PROTOCOL, value);
    }
    forwarded
}

/// Adds the client's address to those that the request has come through.
pub(super) fn came_from(headers: &mut HeaderMap, client: IpAddr) {
    let earlier = headers.get_all(FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok());
    let all: Vec<String> = earlier.map(str::to_owned).chain([client.to_canonical().to_string()]).collect();
    let all =
        HeaderValue::from_str(&all.join(", ")).expect("what were headers, and an address, are a header");
    headers.insert(FORWARDED_FOR, all);
}

/// What of a request is no business of a kubelet.
pub(super) fn for_kubelet(headers: &mut HeaderMap) {
    headers.remove(COOKIE);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn credentials_stay_here() {
        let headers = headers(&[
            ("authorization", "Bearer x"),
            ("impersonate-user", "root"),
            ("x-remote-group", "system:masters"),
            ("cookie", "a=b"),
            ("sec-websocket-protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.YQ"),
        ]);
        let forwarded = forwarded(&headers, Some(&HeaderValue::from_static("websocket")));
        let mut names: Vec<&str> = forwarded.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "cookie", "sec-websocket-protocol", "upgrade"]);
        assert_eq!(forwarded["sec-websocket-protocol"], "v5.channel.k8s.io");
        assert_eq!(forwarded["connection"], "Upgrade");
    }

    #[test]
    fn the_way_of_a_request_is_added_to() {
        let mut way = headers(&[("x-forwarded-for", "10.0.0.1, 10.0.0.2")]);
        came_from(&mut way, "::ffff:10.0.0.3".parse().unwrap());
        assert_eq!(way, headers(&[("x-forwarded-for", "10.0.0.1, 10.0.0.2, 10.0.0.3")]));
    }

    #[test]
    fn what_is_for_a_hop_ends_with_it() {
        let mut said = headers(&[
            ("connection", "close, x-private"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("access-control-allow-origin", "*"),
            ("etag", "1"),
        ]);
        answered(&mut said);
        assert_eq!(said, headers(&[("etag", "1")]));
    }
}
