//! Who asks, and may they: authentication and authorization.
//!
//! **Invariant**: nothing but the health endpoints is answered before both have been passed.

mod bearer;
pub(crate) mod bootstrap;
pub(crate) mod bootstrap_token;
pub(crate) mod impersonation;
pub(crate) mod node;
pub(crate) mod rbac;
pub(crate) mod service_account;
pub(crate) mod token_file;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use decapod_api::status::Error;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::pki::MASTERS;
pub(crate) use bearer::{Authenticator, WEBSOCKET_BEARER};

/// Members of this group are every request that was authenticated.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// All service accounts are members of this group.
pub(crate) const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// Who makes a request (Kubernetes' `authentication.k8s.io` `UserInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// The name: of a person, a component, or `system:serviceaccount:<namespace>:<name>`.
    pub username: String,
    /// The unique id, if the authenticator knows one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The groups the user is a member of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What else the authenticator says, such as the pod a token is bound to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user that was authenticated by other means than the request's: a component in this
    /// process. `system:authenticated` is added to the groups.
    pub fn new(username: impl Into<String>, groups: &[&str]) -> Self {
        let mut user = Self {
            username: username.into(),
            groups: groups.iter().map(|&g| g.to_owned()).collect(),
            ..Self::default()
        };
        user.mark_authenticated();
        user
    }

    pub(crate) fn mark_authenticated(&mut self) {
        if !self.in_group(AUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
    }

    pub(crate) fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The user that a client certificate names: common name and organizations. The certificate
    /// itself was verified by TLS.
    pub(crate) fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().ok().map(str::to_owned);
        let username = subject.iter_common_name().next().and_then(text)?;
        // One that cannot be read, or another, makes the certificate nobody's.
        let uid = match subject.iter_by_oid(&UID).map(text).collect::<Option<Vec<_>>>()?.as_slice() {
            [] => String::new(),
            [uid] if !uid.is_empty() => uid.clone(),
            _ => return None,
        };
        let mut user = Self {
            username,
            uid,
            groups: subject.iter_organization().filter_map(text).collect(),
            extra: BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![fingerprint(der)])]),
        };
        user.mark_authenticated();
        Some(user)
    }
}

/// The part of a certificate's subject that holds the user's unique id (Kubernetes' own number).
const UID: x509_parser::der_parser::Oid<'static> = x509_parser::der_parser::oid!(1.3.6.1.4.1.57683.2);
/// By which credential a user came, for the audit log.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

fn fingerprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("X509SHA256={hex}")
}

/// What is asked to be done, as authorizers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// `get`, `list`, `create`, …; the lower-case HTTP method for other paths than resources.
    pub(crate) verb: String,
    /// The API group, empty for the core.
    pub(crate) group: String,
    /// The API version.
    pub(crate) version: String,
    /// The plural resource name; empty if the request is for a plain path.
    pub(crate) resource: String,
    /// The subresource, if any.
    pub(crate) subresource: String,
    /// The namespace, if any.
    pub(crate) namespace: String,
    /// The object's name, if any.
    pub(crate) name: String,
    /// The path of a request that is not for a resource.
    pub(crate) path: String,
    /// What a list, watch or collection deletion is narrowed to.
    pub(crate) fields: decapod_api::fields::Selector,
    /// Whether a resource is asked for rather than a path; a review may leave the resource out.
    pub(crate) is_resource: bool,
}

impl Attributes {
    pub(crate) fn is_resource(&self) -> bool {
        self.is_resource || !self.resource.is_empty()
    }

    /// `resource` or `resource/subresource`, as RBAC rules write it.
    pub(crate) fn combined_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }
}

/// Compares secrets in a time that does not tell how much of them agrees.
pub(crate) fn same_secret(kept: &[u8], given: &[u8]) -> bool {
    let digest = |bytes: &[u8]| ring::digest::digest(&ring::digest::SHA256, bytes);
    // Digests tell nothing about what was digested, so how they compare does not matter.
    !kept.is_empty() && digest(kept).as_ref() == digest(given).as_ref()
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// May do it; with the reason.
    Allow(String),
    /// This authorizer has no opinion; with what it found.
    NoOpinion(String),
}

impl Decision {
    pub(crate) fn allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Allow(reason) | Self::NoOpinion(reason) => reason,
        }
    }
}

/// Decides whether a user may do something.
#[async_trait]
pub(crate) trait Authorizer: Send + Sync + 'static {
    /// The decision; an error inside is a reason not to allow, never to allow.
    async fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision;
}

/// Asks several authorizers in turn: the first that allows decides.
pub(crate) struct Union(pub(crate) Vec<Arc<dyn Authorizer>>);

#[async_trait]
impl Authorizer for Union {
    async fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        let mut found = Vec::new();
        for authorizer in &self.0 {
            match authorizer.authorize(user, attributes).await {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => found.push(reason),
                allow => return allow,
            }
        }
        Decision::NoOpinion(found.join(", "))
    }
}

/// Allows all to members of `system:masters`.
pub(crate) struct Masters;

#[async_trait]
impl Authorizer for Masters {
    async fn authorize(&self, user: &UserInfo, _: &Attributes) -> Decision {
        if user.in_group(MASTERS) {
            Decision::Allow("member of system:masters".to_owned())
        } else {
            Decision::NoOpinion(String::new())
        }
    }
}

/// The refusal of what `attributes` ask for.
pub(crate) fn forbidden(user: &UserInfo, attributes: &Attributes, reason: &str) -> Error {
    let a = attributes;
    let resource = if a.group.is_empty() || a.resource.is_empty() {
        a.resource.clone()
    } else {
        format!("{}.{}", a.resource, a.group)
    };
    Error::Forbidden { resource, name: a.name.clone(), why: forbidden_message(user, a, reason) }
}

/// What the API server answers to a request that is not allowed, in Kubernetes' words.
pub(crate) fn forbidden_message(user: &UserInfo, attributes: &Attributes, reason: &str) -> String {
    let suffix = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if !attributes.is_resource() {
        return format!(
            "User \"{}\" cannot {} path \"{}\"{suffix}",
            user.username, attributes.verb, attributes.path
        );
    }
    let scope = if attributes.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", attributes.namespace)
    };
    format!(
        "User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {scope}{suffix}",
        user.username,
        attributes.verb,
        attributes.combined_resource(),
        attributes.group
    )
}
