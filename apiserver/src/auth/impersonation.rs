//! Acting as another: the `Impersonate-*` headers, each of which must be allowed to who asks.
//!
//! Constrained impersonation (KEP-5284) is tried first: a right to be such a user
//! (`impersonate:<mode>`) together with a right to do as such a user what is asked for
//! (`impersonate-on:<mode>:<verb>`). Then the old right, `impersonate`, which is a right to do whatever that
//! user may. **Invariant**: what no mode allows is refused, for the first reason that was given.

use decapod_api::status::Error;
use http::HeaderMap;

use super::service_account::split_username;
use super::{Attributes, Authorizer, MASTERS, UserInfo, forbidden};
use crate::http::query::percent_decode;

const PREFIX: &str = "impersonate-";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";
const ANONYMOUS: &str = "system:anonymous";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";
/// What a service account's token says of the node that its pod is on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// From so many groups or extras on, a right to all of them is asked for first.
const MANY: usize = 4;

/// The modes of constrained impersonation, in the order in which they are tried.
const MODES: [Mode; 4] = [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo];

/// A kind of user to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The node that who asks, a pod's service account, runs on.
    AssociatedNode,
    /// Any node.
    ArbitraryNode,
    ServiceAccount,
    /// Anybody else.
    UserInfo,
    /// Whoever it is, doing whatever he may.
    Legacy,
}

impl Mode {
    /// The right to be such a user.
    fn verb(self) -> &'static str {
        match self {
            Self::AssociatedNode => "impersonate:associated-node",
            Self::ArbitraryNode => "impersonate:arbitrary-node",
            Self::ServiceAccount => "impersonate:serviceaccount",
            Self::UserInfo => "impersonate:user-info",
            Self::Legacy => "impersonate",
        }
    }

    /// The right to do something as such a user.
    fn verb_on(self, verb: &str) -> String {
        format!("impersonate-on:{}:{verb}", self.verb().trim_start_matches("impersonate:"))
    }

    /// Whether it is a mode for that user, and open to who asks.
    fn is_for(self, wanted: &UserInfo, asking: &UserInfo) -> bool {
        let bare = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node_of(&wanted.username);
        let account = split_username(&wanted.username);
        match self {
            Self::AssociatedNode => {
                let own = asking.extra.get(NODE_NAME).map(Vec::as_slice);
                let pods = split_username(&asking.username).is_some();
                bare && pods && node.is_some_and(|node| own.is_some_and(|own| own == [node]))
            }
            Self::ArbitraryNode => bare && node.is_some(),
            Self::ServiceAccount => bare && account.is_some(),
            Self::UserInfo => node.is_none() && account.is_none(),
            Self::Legacy => true,
        }
    }
}

/// The name of the node that a user is.
fn node_of(username: &str) -> Option<&str> {
    let name = username.strip_prefix(NODE_PREFIX)?;
    decapod_api::names::dns_subdomain(name).is_empty().then_some(name)
}

/// The user that a request (of those attributes) is made as: who asks, unless the headers name another whom
/// they may be.
pub(crate) async fn resolve(
    user: UserInfo,
    headers: &HeaderMap,
    attributes: &Attributes,
    authorizer: &dyn Authorizer,
) -> Result<UserInfo, Error> {
    let Some(wanted) = wanted(headers)? else { return Ok(user) };
    let asking = Asking { user: &user, wanted: &wanted, attributes, authorizer };
    let mut first = None;
    for mode in MODES.into_iter().chain([Mode::Legacy]).filter(|mode| mode.is_for(&wanted, &user)) {
        match asking.check(mode).await {
            Ok(()) => {
                let constraint = (mode != Mode::Legacy).then(|| mode.verb());
                let impersonated = completed(wanted, mode);
                crate::audit::impersonated(&impersonated, constraint);
                return Ok(impersonated);
            }
            Err(refused) => first = first.or(Some(refused)),
        }
    }
    Err(first.unwrap_or(Error::Unauthorized))
}

/// Someone who wants to be another.
struct Asking<'a> {
    user: &'a UserInfo,
    wanted: &'a UserInfo,
    attributes: &'a Attributes,
    authorizer: &'a dyn Authorizer,
}

impl Asking<'_> {
    async fn check(&self, mode: Mode) -> Result<(), Error> {
        // A node agent's right does not depend on which node its pod is on.
        let mut user = self.user.clone();
        if mode == Mode::AssociatedNode {
            let keys: Vec<String> = user.extra.keys().cloned().collect();
            user.extra = [("authentication.kubernetes.io/associated-node-keys".to_owned(), keys)].into();
        }
        if mode == Mode::Legacy {
            for needed in needed(self.wanted, mode) {
                self.allowed(&user, &needed).await?;
            }
            return Ok(());
        }
        let on = Attributes { verb: mode.verb_on(&self.attributes.verb), ..self.attributes.clone() };
        self.allowed(&user, &on).await?;
        self.constrained(&user, mode).await
    }

    /// The checks of constrained impersonation, which has no old habits to keep.
    async fn constrained(&self, user: &UserInfo, mode: Mode) -> Result<(), Error> {
        let refused = |needed: &Attributes, why: &str| Err(forbidden(user, needed, why));
        let mut all = needed(self.wanted, mode);
        let groups = part(mode, "groups", "");
        if self.wanted.groups.iter().any(String::is_empty) {
            return refused(&groups, "impersonating the empty string group is not allowed");
        }
        if self.wanted.in_group(MASTERS) {
            let groups = Attributes { name: MASTERS.to_owned(), ..groups };
            return refused(&groups, "impersonating the system:masters group is not allowed");
        }
        if let Some(why) = wrong_extra(self.wanted) {
            return refused(&part(mode, "userextras", ""), &why);
        }
        let values: usize = self.wanted.extra.values().map(Vec::len).sum();
        let extras = Attributes { subresource: "*".to_owned(), ..part(mode, "userextras", "*") };
        for (many, every) in
            [(self.wanted.groups.len() >= MANY, part(mode, "groups", "*")), (values >= MANY, extras)]
        {
            if many && self.allowed(user, &every).await.is_ok() {
                all.retain(|needed| needed.resource != every.resource);
            }
        }
        for needed in &all {
            self.allowed(user, needed).await?;
        }
        Ok(())
    }

    async fn allowed(&self, user: &UserInfo, needed: &Attributes) -> Result<(), Error> {
        let decision = self.authorizer.authorize(user, needed).await;
        if decision.allowed() { Ok(()) } else { Err(forbidden(user, needed, decision.reason())) }
    }
}

/// What cannot be an extra, though the old right would let it pass.
fn wrong_extra(wanted: &UserInfo) -> Option<String> {
    wanted.extra.iter().find_map(|(key, values)| {
        let (domain, path) = key.split_once('/').unwrap_or((key, ""));
        if key.is_empty() {
            Some("impersonating the empty string key in extra is not allowed".to_owned())
        } else if path.is_empty() || !decapod_api::names::dns_subdomain(domain).is_empty() {
            Some(format!(
                "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: {key:?}: must be a domain-prefixed path (such as \"acme.io/foo\")"
            ))
        } else if values.iter().any(String::is_empty) {
            Some("impersonating the empty string value in extra is not allowed".to_owned())
        } else {
            None
        }
    })
}

/// The groups that follow from who it is.
fn completed(mut user: UserInfo, mode: Mode) -> UserInfo {
    if matches!(mode, Mode::AssociatedNode | Mode::ArbitraryNode) {
        user.groups = vec![NODES.to_owned()];
    }
    if let Some((namespace, _)) = split_username(&user.username)
        && user.groups.is_empty()
    {
        user.groups =
            vec![super::SERVICE_ACCOUNTS.to_owned(), format!("{}:{namespace}", super::SERVICE_ACCOUNTS)];
    }
    complete_groups(&mut user);
    user
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

/// Whether a request is made as somebody else than who authenticated.
pub(crate) fn is_asked(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with(PREFIX))
}

/// The user that the headers name; `None` if they name none.
fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, Error> {
    if !is_asked(headers) {
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

/// A right to be something, in the group in which the mode has it.
fn part(mode: Mode, resource: &str, name: &str) -> Attributes {
    let old = mode == Mode::Legacy && matches!(resource, "users" | "groups" | "serviceaccounts");
    Attributes {
        verb: mode.verb().to_owned(),
        group: if old { String::new() } else { AUTHENTICATION.to_owned() },
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    }
}

/// What who asks must be allowed to be that user.
fn needed(wanted: &UserInfo, mode: Mode) -> Vec<Attributes> {
    let username = match (split_username(&wanted.username), node_of(&wanted.username)) {
        (Some((namespace, name)), _) => {
            Attributes { namespace: namespace.to_owned(), ..part(mode, "serviceaccounts", name) }
        }
        // The right of an agent holds on whatever node it runs.
        (None, Some(_)) if mode == Mode::AssociatedNode => part(mode, "nodes", "*"),
        (None, Some(node)) if mode != Mode::Legacy => part(mode, "nodes", node),
        (None, _) => part(mode, "users", &wanted.username),
    };
    let mut needed = vec![username];
    if !wanted.uid.is_empty() {
        needed.push(part(mode, "uids", &wanted.uid));
    }
    needed.extend(wanted.groups.iter().map(|group| part(mode, "groups", group)));
    for (key, values) in &wanted.extra {
        let extras = values
            .iter()
            .map(|value| Attributes { subresource: key.clone(), ..part(mode, "userextras", value) });
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
        let asked: Vec<_> = needed(&user, Mode::Legacy)
            .iter()
            .map(|a| format!("{} {} {}", a.combined_resource(), a.namespace, a.name))
            .collect();
        assert_eq!(asked, ["serviceaccounts web bot", "groups  dev", "userextras/scopes/x  view"]);
    }

    /// Allows what it was told to, each as "verb resource.group namespace/name".
    struct Rights(Vec<&'static str>);

    #[async_trait::async_trait]
    impl Authorizer for Rights {
        async fn authorize(&self, _: &UserInfo, a: &Attributes) -> super::super::Decision {
            let asked =
                format!("{} {}.{} {}/{}", a.verb, a.combined_resource(), a.group, a.namespace, a.name);
            if self.0.contains(&asked.as_str()) {
                super::super::Decision::Allow(String::new())
            } else {
                super::super::Decision::NoOpinion(asked)
            }
        }
    }

    async fn acting(
        asking: &UserInfo,
        pairs: &[(&'static str, &'static str)],
        rights: &[&'static str],
    ) -> Result<UserInfo, String> {
        let listing = Attributes {
            verb: "list".to_owned(),
            resource: "pods".to_owned(),
            namespace: "web".to_owned(),
            ..Attributes::default()
        };
        let rights = Rights(rights.to_vec());
        resolve(asking.clone(), &headers(pairs), &listing, &rights).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_user_is_acted_for_in_what_was_granted() {
        let jane = UserInfo::new("jane", &[]);
        let as_joe = [("impersonate-user", "joe")];
        let be = "impersonate:user-info users.authentication.k8s.io /joe";
        let list = "impersonate-on:user-info:list pods. web/";
        let joe = acting(&jane, &as_joe, &[be, list]).await.unwrap();
        assert_eq!((joe.username.as_str(), joe.groups.len()), ("joe", 1));
        // Both rights are needed, and the first that is missing is named.
        let refused = acting(&jane, &as_joe, &[be]).await.unwrap_err();
        assert!(refused.contains("cannot impersonate-on:user-info:list resource"), "{refused}");
        let refused = acting(&jane, &as_joe, &[list]).await.unwrap_err();
        assert!(refused.contains("cannot impersonate:user-info resource \"users\""), "{refused}");
        assert!(acting(&jane, &as_joe, &["impersonate users. /joe"]).await.is_ok());
        let as_master = [("impersonate-user", "joe"), ("impersonate-group", "system:masters")];
        let master = "impersonate:user-info groups.authentication.k8s.io /system:masters";
        let refused = acting(&jane, &as_master, &[be, list, master]).await.unwrap_err();
        assert!(refused.contains("impersonating the system:masters group is not allowed"), "{refused}");
        let extra = [("impersonate-user", "joe"), ("impersonate-extra-scopes", "x")];
        let scopes = "impersonate:user-info userextras/scopes.authentication.k8s.io /x";
        assert!(acting(&jane, &extra, &[be, list, scopes]).await.is_err(), "an extra's key has a domain");
    }

    #[tokio::test]
    async fn nodes_and_service_accounts_have_modes_of_their_own() {
        let jane = UserInfo::new("jane", &[]);
        let as_node = [("impersonate-user", "system:node:n1")];
        let list = "impersonate-on:arbitrary-node:list pods. web/";
        let be = "impersonate:arbitrary-node nodes.authentication.k8s.io /n1";
        let node = acting(&jane, &as_node, &[be, list]).await.unwrap();
        assert_eq!(node.groups, ["system:nodes", "system:authenticated"]);
        let generic = [
            "impersonate:user-info users.authentication.k8s.io /system:node:n1",
            "impersonate-on:user-info:list pods. web/",
        ];
        assert!(acting(&jane, &as_node, &generic).await.is_err());

        let mut agent = UserInfo::new("system:serviceaccount:kube-system:agent", &[]);
        agent.extra.insert(NODE_NAME.to_owned(), vec!["n1".to_owned()]);
        let own = [
            "impersonate:associated-node nodes.authentication.k8s.io /*",
            "impersonate-on:associated-node:list pods. web/",
        ];
        assert!(acting(&agent, &as_node, &own).await.is_ok());
        assert!(acting(&agent, &[("impersonate-user", "system:node:n2")], &own).await.is_err());

        let as_bot = [("impersonate-user", "system:serviceaccount:web:bot")];
        let bot = [
            "impersonate:serviceaccount serviceaccounts.authentication.k8s.io web/bot",
            "impersonate-on:serviceaccount:list pods. web/",
        ];
        let bot = acting(&jane, &as_bot, &bot).await.unwrap();
        assert!(bot.in_group("system:serviceaccounts:web"));
    }

    #[tokio::test]
    async fn a_right_to_all_groups_is_a_right_to_many() {
        let jane = UserInfo::new("jane", &[]);
        let mut many = vec![("impersonate-user", "joe")];
        many.extend(["a", "b", "c", "d"].map(|group| ("impersonate-group", group)));
        let mut map = HeaderMap::new();
        for (name, value) in &many {
            map.append(*name, HeaderValue::from_static(value));
        }
        let rights = Rights(vec![
            "impersonate:user-info users.authentication.k8s.io /joe",
            "impersonate-on:user-info: . /",
            "impersonate:user-info groups.authentication.k8s.io /*",
        ]);
        let joe = resolve(jane, &map, &Attributes::default(), &rights).await.unwrap();
        assert!(joe.in_group("d"));
    }
}
