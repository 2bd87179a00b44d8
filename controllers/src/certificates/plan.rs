//! What is to be done about a certificate signing request: pure.
//!
//! The rules of the signers are Kubernetes': a kubelet's certificates name the node and nothing else, a
//! client's certificate is for clients.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};

use super::Subject;

/// What a request that names no time gets, and the longest that any gets: Kubernetes' default.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Twice what certificates are dated back by.
const MIN_LIFETIME: Duration = Duration::from_secs(10 * 60);
/// Requests that are decided and done are kept this long for those who wait for them.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// Requests that nobody decides or signs are kept this long.
const PENDING: Duration = Duration::from_secs(24 * 60 * 60);

const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// A right by which a request is approved without anybody looking at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permission {
    /// To create this subresource of certificate signing requests.
    pub(super) subresource: &'static str,
    /// What the approval says.
    pub(super) message: &'static str,
}

const SELF_NODE: Permission = Permission {
    subresource: "selfnodeclient",
    message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
};
const NODE: Permission = Permission {
    subresource: "nodeclient",
    message: "Auto approving kubelet client certificate after SubjectAccessReview.",
};

/// The next step for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// None.
    Nothing,
    /// Approve it if who made it has one of these rights.
    Review(Vec<Permission>),
    /// Approve it if its names and addresses are those of the node that asks.
    ReviewServing,
    /// Sign it.
    Sign {
        /// For how long.
        lifetime: Duration,
    },
    /// It is approved and must not be signed.
    Fail(String),
    /// Nobody needs it any more.
    Remove,
}

/// The next step, and when to look again if nothing changes until then. `subject` is missing for what
/// cannot be read.
pub(super) fn plan(
    request: &CertificateSigningRequest,
    subject: Option<&Subject>,
    now: Timestamp,
) -> (Step, Option<Duration>) {
    let left = kept_for(request, now);
    if left.is_zero() {
        return (Step::Remove, None);
    }
    (step(request, subject), Some(left))
}

fn step(request: &CertificateSigningRequest, subject: Option<&Subject>) -> Step {
    let Some(subject) = subject else { return Step::Nothing };
    let spec = &request.spec;
    let usages: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    if is_issued(request) || find(request, "Denied").is_some() || find(request, "Failed").is_some() {
        return Step::Nothing;
    }
    if find(request, "Approved").is_none() {
        let own = spec.username.as_deref() == Some(subject.common_name.as_str());
        if spec.signer_name == KUBELET_SERVING && own && kubelet_serving(subject, &usages).is_ok() {
            return Step::ReviewServing;
        }
        if spec.signer_name != KUBELET_CLIENT || kubelet_client(subject, &usages).is_err() {
            return Step::Nothing;
        }
        return Step::Review(if own { vec![SELF_NODE, NODE] } else { vec![NODE] });
    }
    let checked = match spec.signer_name.as_str() {
        API_CLIENT => client(&usages),
        KUBELET_CLIENT => kubelet_client(subject, &usages),
        KUBELET_SERVING => kubelet_serving(subject, &usages),
        LEGACY => Ok(()),
        // Somebody else's.
        _ => return Step::Nothing,
    };
    match checked {
        Ok(()) => Step::Sign { lifetime: lifetime(spec.expiration_seconds) },
        Err(why) => Step::Fail(why),
    }
}

fn lifetime(asked: Option<i32>) -> Duration {
    let asked = asked.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)));
    asked.map_or(LIFETIME, |asked| asked.clamp(MIN_LIFETIME, LIFETIME))
}

fn find<'a>(
    request: &'a CertificateSigningRequest,
    type_: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    request.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    let certificate = request.status.as_ref().and_then(|status| status.certificate.as_ref());
    certificate.is_some_and(|certificate| !certificate.0.is_empty())
}

/// How long the request is kept from now on; zero if it is to go.
fn kept_for(request: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let updated = |type_| Some(find(request, type_)?.last_update_time.as_ref()?.0);
    let approved = if is_issued(request) { KEPT } else { PENDING };
    let undecided = request.status.as_ref().is_none_or(|s| s.conditions.as_ref().is_none_or(Vec::is_empty));
    let created = request.metadata.creation_timestamp.as_ref().map(|at| at.0).filter(|_| undecided);
    let deadlines = [
        updated("Denied").map(|at| (at, KEPT)),
        updated("Failed").map(|at| (at, KEPT)),
        updated("Approved").map(|at| (at, approved)),
        created.map(|at| (at, PENDING)),
    ];
    let left = deadlines.into_iter().flatten().map(|(since, kept)| {
        // A clock that was turned back makes the age negative: it is new.
        let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        kept.saturating_sub(age)
    });
    left.min().unwrap_or(PENDING)
}

fn client(usages: &BTreeSet<&str>) -> Result<(), String> {
    let optional = ["digital signature", "key encipherment", "client auth"];
    if let Some(other) = usages.iter().find(|usage| !optional.contains(usage)) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if !usages.contains("client auth") {
        return Err("missing required usage for client certificate: client auth".to_owned());
    }
    Ok(())
}

fn kubelet_client(subject: &Subject, usages: &BTreeSet<&str>) -> Result<(), String> {
    organization(subject)?;
    for (given, what) in [
        (!subject.dns_names.is_empty(), "DNS"),
        (!subject.emails.is_empty(), "Email"),
        (!subject.ip_addresses.is_empty(), "IP"),
        (!subject.uris.is_empty(), "URI"),
    ] {
        if given {
            return Err(format!("{what} subjectAltNames are not allowed"));
        }
    }
    node_name(subject)?;
    exactly(usages, "client auth")
}

fn kubelet_serving(subject: &Subject, usages: &BTreeSet<&str>) -> Result<(), String> {
    organization(subject)?;
    if subject.dns_names.is_empty() && subject.ip_addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    for (given, what) in [(!subject.emails.is_empty(), "Email"), (!subject.uris.is_empty(), "URI")] {
        if given {
            return Err(format!("{what} subjectAltNames are not allowed"));
        }
    }
    exactly(usages, "server auth")?;
    node_name(subject)
}

fn organization(subject: &Subject) -> Result<(), String> {
    if subject.organizations == ["system:nodes"] {
        return Ok(());
    }
    Err("subject organization is not system:nodes".to_owned())
}

fn node_name(subject: &Subject) -> Result<(), String> {
    if subject.common_name.starts_with("system:node:") {
        return Ok(());
    }
    Err("subject common name does not begin with system:node:".to_owned())
}

/// The purpose and a signature's usage; key encipherment, which RSA keys need, may be there.
fn exactly(usages: &BTreeSet<&str>, purpose: &str) -> Result<(), String> {
    let needed = BTreeSet::from(["digital signature", purpose]);
    let mut wanted = needed.clone();
    wanted.insert("key encipherment");
    if *usages == needed || *usages == wanted {
        return Ok(());
    }
    let wanted: Vec<&str> = wanted.into_iter().collect();
    Err(format!("usages did not match [{}]", wanted.join(" ")))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn request(signer: &str, usages: &[&str], conditions: &[(&str, i64)]) -> CertificateSigningRequest {
        let mut request = CertificateSigningRequest::default();
        request.metadata.creation_timestamp = Some(Time(at(0)));
        request.spec.signer_name = signer.to_owned();
        request.spec.username = Some("system:node:n1".to_owned());
        request.spec.usages = Some(usages.iter().map(|&usage| usage.to_owned()).collect());
        let condition = |(type_, second): &(&str, i64)| CertificateSigningRequestCondition {
            last_update_time: Some(Time(at(*second))),
            ..super::super::condition(type_, "", String::new())
        };
        request.status.get_or_insert_default().conditions = Some(conditions.iter().map(condition).collect());
        request
    }

    fn node() -> Subject {
        Subject {
            common_name: "system:node:n1".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            ..Subject::default()
        }
    }

    const KUBELET: [&str; 2] = ["digital signature", "client auth"];

    fn next(request: &CertificateSigningRequest, subject: &Subject) -> Step {
        plan(request, Some(subject), at(10)).0
    }

    #[test]
    fn kubelets_are_approved_by_their_rights() {
        let pending = request(KUBELET_CLIENT, &KUBELET, &[]);
        assert_eq!(next(&pending, &node()), Step::Review(vec![SELF_NODE, NODE]));
        let other = Subject { common_name: "system:node:n2".to_owned(), ..node() };
        assert_eq!(next(&pending, &other), Step::Review(vec![NODE]));
        let jane = Subject { common_name: "jane".to_owned(), ..node() };
        assert_eq!(next(&pending, &jane), Step::Nothing);
        assert_eq!(next(&request(KUBELET_SERVING, &KUBELET, &[]), &node()), Step::Nothing);
        assert_eq!(plan(&pending, None, at(10)).0, Step::Nothing);
    }

    #[test]
    fn what_is_approved_is_signed_by_the_signers_rules() {
        let approved = |signer: &str, usages: &[&str]| request(signer, usages, &[("Approved", 5)]);
        let year = Step::Sign { lifetime: LIFETIME };
        assert_eq!(next(&approved(API_CLIENT, &["client auth"]), &Subject::default()), year);
        assert_eq!(next(&approved(KUBELET_CLIENT, &KUBELET), &node()), year);
        assert_eq!(next(&approved("example.com/x", &KUBELET), &node()), Step::Nothing);
        let why = |step| match step {
            Step::Fail(why) => why,
            other => panic!("{other:?}"),
        };
        let server = approved(API_CLIENT, &["server auth"]);
        assert_eq!(why(next(&server, &node())), "invalid usage for client certificate: server auth");
        let serving = approved(KUBELET_SERVING, &["digital signature", "server auth"]);
        assert_eq!(why(next(&serving, &node())), "DNS or IP subjectAltName is required");
        let named = Subject { dns_names: vec!["n1".to_owned()], ..node() };
        assert_eq!(next(&serving, &named), year);
        let client = approved(KUBELET_CLIENT, &KUBELET);
        assert_eq!(why(next(&client, &named)), "DNS subjectAltNames are not allowed");
        let mut short = approved(API_CLIENT, &["client auth"]);
        short.spec.expiration_seconds = Some(3600);
        assert_eq!(next(&short, &node()), Step::Sign { lifetime: Duration::from_secs(3600) });
    }

    #[test]
    fn what_is_done_with_goes() {
        let hour = 3600;
        let pending = request("example.com/x", &KUBELET, &[]);
        assert_eq!(plan(&pending, None, at(hour)).1, Some(Duration::from_secs(23 * 3600)));
        assert_eq!(plan(&pending, None, at(24 * hour)).0, Step::Remove);
        let mut approved = request("example.com/x", &KUBELET, &[("Approved", 0)]);
        assert_eq!(plan(&approved, None, at(2 * hour)).0, Step::Nothing);
        approved.status.get_or_insert_default().certificate = Some(ByteString(b"x".to_vec()));
        assert_eq!(plan(&approved, None, at(2 * hour)).0, Step::Remove);
        let denied = request("example.com/x", &KUBELET, &[("Denied", 0)]);
        assert_eq!(plan(&denied, Some(&node()), at(hour)).0, Step::Remove);
    }
}
