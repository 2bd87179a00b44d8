//! Certificate signing requests: what is well formed, who may approve and sign them, and what they may ask for
//! (Kubernetes' CertificateApproval, CertificateSigning and CertificateSubjectRestriction).

mod validation;

use async_trait::async_trait;
use decapod_api::field;
use decapod_api::status::Error;
use serde_json::{Value, json};

use super::{Attributes as Write, Operation, Plugin};
use crate::auth::{Attributes, node};
use crate::clock::rfc3339;
use crate::pki::{MASTERS, SigningRequest};
use crate::registry::{Call, Registry};

const GROUP: &str = "certificates.k8s.io";
const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// All that is special about certificate signing requests.
pub(super) struct Certificates;

#[async_trait]
impl Plugin for Certificates {
    fn name(&self) -> &'static str {
        "CertificateSigningRequests"
    }

    fn handles(&self, write: &Write<'_>) -> bool {
        let row = write.call.resource;
        write.operation != Operation::Delete
            && row.group == GROUP
            && row.plural == "certificatesigningrequests"
    }

    async fn mutate(&self, write: &Write<'_>, object: &mut Value) -> Result<(), Error> {
        mutate(write.registry, write.call, object, write.old);
        Ok(())
    }

    async fn validate(&self, write: &Write<'_>, object: &Value) -> Result<(), Error> {
        validate(write.registry, write.call, write.operation, object, write.old)
    }
}

/// What is malformed about a request for a certificate; nothing of other kinds. Told together with all else that is
/// wrong with an object, as in Kubernetes.
pub(crate) fn malformed(call: &Call, object: &Value, old: Option<&Value>) -> Vec<field::Error> {
    let row = call.resource;
    if row.group != GROUP || row.plural != "certificatesigningrequests" {
        return Vec::new();
    }
    validation::check(object, old, &call.subresource)
}

/// Completes what the subresources change: the conditions, and nothing that is not theirs.
fn mutate(registry: &Registry, call: &Call, object: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    match call.subresource.as_str() {
        "approval" => {
            let conditions = object.pointer_mut("/status/conditions").map(Value::take).unwrap_or_default();
            object["status"] = old["status"].clone();
            if conditions.is_array() {
                object["status"]["conditions"] = conditions;
            } else if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
                status.remove("conditions");
            }
        }
        "status" => {
            for kind in ["Approved", "Denied"] {
                keep_conditions(object, old, kind);
            }
        }
        _ => return,
    }
    stamp(object, old, &rfc3339(registry.clock.now()));
}

/// The conditions, if there are any: indexing would make them where there are none.
fn conditions_mut(object: &mut Value) -> impl Iterator<Item = &mut Value> {
    object.pointer_mut("/status/conditions").and_then(Value::as_array_mut).into_iter().flatten()
}

/// A signer hands decisions on as they are. If it adds or removes one, validation refuses that.
fn keep_conditions(object: &mut Value, old: &Value, kind: &str) {
    let before = validation::conditions_of(old, kind);
    if validation::conditions_of(object, kind).len() != before.len() {
        return;
    }
    let mut before = before.into_iter();
    for condition in conditions_mut(object) {
        if condition["type"] == kind
            && let Some(kept) = before.next()
        {
            *condition = kept.clone();
        }
    }
}

/// Fills in when a condition was written, and since when it is as it is.
fn stamp(object: &mut Value, old: &Value, now: &str) {
    for condition in conditions_mut(object) {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = now.into();
        }
        if condition["lastTransitionTime"].is_null() {
            let same = |c: &&Value| c["type"] == condition["type"] && c["status"] == condition["status"];
            let before = old["status"]["conditions"].as_array().into_iter().flatten().find(same);
            let since = before.map(|c| c["lastTransitionTime"].clone()).filter(Value::is_string);
            condition["lastTransitionTime"] = since.unwrap_or_else(|| json!(now));
        }
    }
}

/// Refuses what who asks may not decide.
fn validate(
    registry: &Registry,
    call: &Call,
    operation: Operation,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Error> {
    // Each of these is a plugin in Kubernetes, which may be disabled.
    let runs = |part: &str| registry.admission.plugins.runs(part);
    let signer = |object: &Value| object["spec"]["signerName"].as_str().unwrap_or_default().to_owned();
    match (operation, call.subresource.as_str(), old) {
        (Operation::Create, "", _) if runs("CertificateSubjectRestriction") => {
            subject(call, object, &signer(object))
        }
        (Operation::Update, "approval", Some(old)) if runs("CertificateApproval") => {
            let signer = signer(old);
            let why = format!("user not permitted to approve requests with signerName \"{signer}\"");
            if may(registry, call, "approve", &signer) { Ok(()) } else { Err(call.forbidden(why)) }
        }
        (Operation::Update, "status", Some(old)) if runs("CertificateSigning") => {
            let (now, before) = (&object["status"], &old["status"]);
            if now["certificate"] == before["certificate"] && now["conditions"] == before["conditions"] {
                return Ok(());
            }
            let signer = signer(old);
            let why = format!("user not permitted to sign requests with signerName \"{signer}\"");
            if may(registry, call, "sign", &signer) { Ok(()) } else { Err(call.forbidden(why)) }
        }
        _ => Ok(()),
    }
}

/// Whether who asks may do this to the requests of a signer, by its name or by its domain.
fn may(registry: &Registry, call: &Call, verb: &str, signer: &str) -> bool {
    if call.user.in_group(MASTERS) {
        return true;
    }
    let domain = signer.split('/').next().unwrap_or_default();
    let allowed = |name: String| {
        let asked = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            ..Attributes::default()
        };
        registry.policy.decide(&call.user, &asked).allowed()
    };
    allowed(signer.to_owned()) || allowed(format!("{domain}/*"))
}

fn subject(call: &Call, object: &Value, signer: &str) -> Result<(), Error> {
    // It was read by the validation already.
    let Ok(request) = parse(object) else { return Err(call.forbidden("failed to parse CSR")) };
    if signer == API_CLIENT && request.organizations.iter().any(|group| group == MASTERS) {
        return Err(
            call.forbidden(format!("use of {API_CLIENT} signer with system:masters group is not allowed"))
        );
    }
    let Some(node) = node::name_of(&call.user) else { return Ok(()) };
    if matches!(signer, KUBELET_CLIENT | KUBELET_SERVING)
        && request.common_name != format!("system:node:{node}")
    {
        return Err(call.forbidden(format!("can only create a node CSR with CN=system:node:{node}")));
    }
    Ok(())
}

fn parse(object: &Value) -> Result<SigningRequest, crate::pki::RequestError> {
    use base64::Engine;
    let text = object["spec"]["request"].as_str().unwrap_or_default();
    let pem = base64::engine::general_purpose::STANDARD.decode(text);
    SigningRequest::parse(&pem.unwrap_or_default())
}
