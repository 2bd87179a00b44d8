//! Acting as another: the `Impersonate-*` headers, each of which must be allowed to who asks.

use decapod_api::status::Error;
use http::HeaderMap;

use super::service_account::split_username;
use super::{Attributes, Authorizer, UserInfo, forbidden_message};
use crate::http::query::percent_decode;

const PREFIX: &str = "impersonate-";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";
const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";

/// The user that a request is made as: who asks, unless the headers name another whom they may be.
pub(crate) async fn resolve(
    user: UserInfo,
    headers: &HeaderMap,
    authorizer: &dyn Authorizer,
) -> Result<UserInfo, Error> {
    let Some(wanted) = wanted(headers)? else { return Ok(user) };
    for attributes in needed(&wanted) {
        let decision = authorizer.authorize(&user, &attributes).await;
        if !decision.allowed() {
            let why = forbidden_message(&user, &attributes, decision.reason());
            let resource = attributes.resource.clone();
            return Err(Error::Forbidden { resource, name: attributes.name, why });
        }
    }
    let mut wanted = wanted;
    if let Some((namespace, _)) = split_username(&wanted.username)
        && wanted.groups.is_empty()
    {
        wanted.groups =
            vec![super::SERVICE_ACCOUNTS.to_owned(), format!("{}:{namespace}", super::SERVICE_ACCOUNTS)];
    }
    complete_groups(&mut wanted);
    crate::audit::impersonated(&wanted);
    Ok(wanted)
}

/// Who is impersonated counts as authenticated, unless it is said or named otherwise.
fn complete_groups(user: &mut UserInfo) {
    if user.username == ANONYMOUS {
        if !user.in_group(UNAUTHENTICATED) {
            user.groups.push(UNAUTHENTICATED.to_owned());
        }
    } else if !user.in_group(UNAUTHENTICATED) {
        user.mark_authenticated();
    }
}

/// The user that the headers name; `None` if they name none.
fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, Error> {
    if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return Ok(None);
    }
    let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).unwrap_or_default();
    let mut user = UserInfo::default();
    for (name, value) in headers {
        match name.as_str() {
            "impersonate-user" => user.username = text(value),
            "impersonate-uid" => user.uid = text(value),
            "impersonate-group" => user.groups.push(text(value)),
            other => {
                if let Some(key) = other.strip_prefix(EXTRA) {
                    let key = percent_decode(key).to_lowercase();
                    user.extra.entry(key).or_default().push(text(value));
                }
            }
        }
    }
    if user.username.is_empty() {
        return Err(Error::BadRequest(
            "requested to impersonate groups, a uid or extras without impersonating a user".to_owned(),
        ));
    }
    Ok(Some(user))
}

/// What who asks must be allowed to be that user.
fn needed(wanted: &UserInfo) -> Vec<Attributes> {
    let one = |group: &str, resource: &str, namespace: &str, name: &str| Attributes {
        verb: "impersonate".to_owned(),
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    let mut needed = vec![match split_username(&wanted.username) {
        Some((namespace, name)) => one("", "serviceaccounts", namespace, name),
        None => one("", "users", "", &wanted.username),
    }];
    needed.extend(wanted.groups.iter().map(|group| one("", "groups", "", group)));
    if !wanted.uid.is_empty() {
        needed.push(one(AUTHENTICATION, "uids", "", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        let extras = values.iter().map(|value| Attributes {
            subresource: key.clone(),
            ..one(AUTHENTICATION, "userextras", "", value)
        });
        needed.extend(extras);
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn each_part_is_asked_for() {
        assert_eq!(wanted(&headers(&[("accept", "x")])).unwrap(), None);
        assert!(wanted(&headers(&[("impersonate-group", "dev")])).is_err());
        let user = wanted(&headers(&[
            ("impersonate-user", "system:serviceaccount:web:bot"),
            ("impersonate-group", "dev"),
            ("impersonate-extra-scopes%2fx", "view"),
        ]));
        let user = user.unwrap().unwrap();
        assert_eq!(user.extra["scopes/x"], ["view"]);
        let asked: Vec<_> = needed(&user)
            .iter()
            .map(|a| format!("{} {} {}", a.combined_resource(), a.namespace, a.name))
            .collect();
        assert_eq!(asked, ["serviceaccounts web bot", "groups  dev", "userextras/scopes/x  view"]);
    }
}
