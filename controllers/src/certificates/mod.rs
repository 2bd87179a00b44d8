//! Certificate signing requests: approves those of kubelets that may have a certificate, signs what is
//! approved, and removes what is done with.
//!
//! The certificate authority is not the controllers': it is given to them as an [`Authority`].

mod plan;
mod serving;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use decapod_client::ObjectKey;
use decapod_client::error::ErrorExt;
use decapod_client::informer::Informer;
use decapod_client::reconcile::{self, Queue};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestStatus,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};

use crate::common::{Context, Error, Result, Says};
use plan::{Step, plan};

const NAME: &str = "certificate-controller";
/// What was not approved is looked at again: a binding that allows it may be seen a moment later.
const AGAIN: Duration = Duration::from_secs(10);

/// What a certificate signing request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The common name.
    pub common_name: String,
    /// The organizations.
    pub organizations: Vec<String>,
    /// The DNS names among the alternative names.
    pub dns_names: Vec<String>,
    /// The addresses among the alternative names.
    pub ip_addresses: Vec<IpAddr>,
    /// The email addresses among the alternative names.
    pub emails: Vec<String>,
    /// The URIs among the alternative names.
    pub uris: Vec<String>,
}

/// Why the authority did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// The certificate authority of the cluster, and the key of its service account tokens.
pub trait Authority: std::fmt::Debug + Send + Sync + 'static {
    /// Reads a certificate signing request (PEM) and verifies its signature.
    ///
    /// # Errors
    /// If it is none.
    fn inspect(&self, request: &[u8]) -> std::result::Result<Subject, Refused>;

    /// Signs a certificate signing request (PEM) as it is, for `usages` in the words of
    /// `certificates.k8s.io`; returns the certificate in PEM.
    ///
    /// # Errors
    /// If it cannot be read, or the authority cannot sign (any more).
    fn sign(
        &self,
        request: &[u8],
        usages: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> std::result::Result<String, Refused>;

    /// Signs the token of a service account that a Secret is to hold.
    ///
    /// # Errors
    /// If it cannot be signed.
    fn secret_token(
        &self,
        namespace: &str,
        account: &str,
        account_uid: &str,
        secret: &str,
    ) -> std::result::Result<String, Refused>;
}

struct Controller {
    context: Context,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    authority: Arc<dyn Authority>,
}

/// Starts the controller.
pub(crate) fn start(context: &Context, authority: Arc<dyn Authority>, workers: usize) {
    let queue = Queue::new(context.clock.clone());
    let requests = context.informers.of::<CertificateSigningRequest>();
    let supervisor = &context.supervisor;
    reconcile::feed(supervisor, NAME, requests.subscribe(), &queue, |change| [change.key.clone()]);
    let nodes = context.informers.of::<Node>();
    // A node asks for its server's certificate as soon as it is registered, or has another address.
    let asked = requests.clone();
    reconcile::feed(supervisor, NAME, nodes.subscribe(), &queue, move |change| {
        let addresses = |node: &Option<Arc<Node>>| node.as_deref().map(serving::addresses);
        let moved = change.new.is_some() && addresses(&change.old) != addresses(&change.new);
        let user = format!("system:node:{}", change.key.name);
        let all = if moved { asked.list() } else { Vec::new() };
        let own = all.into_iter().filter(move |request| request.spec.username.as_ref() == Some(&user));
        own.map(|request| ObjectKey::of(&*request)).collect::<Vec<_>>()
    });
    let slices = context.informers.of::<EndpointSlice>();
    let controller = Arc::new(Controller { context: context.clone(), requests, nodes, slices, authority });
    reconcile::run(supervisor, NAME, &queue, workers, move |key: ObjectKey| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
}

impl Controller {
    fn api(&self) -> Api<CertificateSigningRequest> {
        Api::all(self.context.client.clone())
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>> {
        let Some(request) = self.requests.get(key) else { return Ok(None) };
        let now = self.context.clock.now();
        let subject = self.authority.inspect(&request.spec.request.0);
        let (step, again) = plan(&request, subject.as_ref().ok(), now);
        match step {
            Step::Nothing => {}
            Step::Review(permissions) => {
                if !self.review(&request, &permissions).await? {
                    return Ok(Some(AGAIN));
                }
            }
            Step::ReviewServing => {
                if !self.review_serving(&request, subject.ok().as_ref()).await? {
                    return Ok(Some(AGAIN));
                }
            }
            Step::Sign { lifetime } => self.sign(&request, lifetime, now).await?,
            Step::Fail(why) => self.fail(&request, why).await?,
            Step::Remove => self.remove(&request).await?,
        }
        Ok(again)
    }

    /// Approves the request if who made it may have such a certificate without being asked. Whether it was
    /// approved.
    async fn review(
        &self,
        request: &CertificateSigningRequest,
        permissions: &[plan::Permission],
    ) -> Result<bool> {
        for permission in permissions {
            if !self.allowed(request, permission.subresource).await? {
                continue;
            }
            return self.approve(request, permission.message).await.map(|()| true);
        }
        Ok(false)
    }

    async fn approve(&self, request: &CertificateSigningRequest, message: &str) -> Result<()> {
        let mut approved = request.clone();
        conditions(&mut approved).push(condition("Approved", "AutoApproved", message.to_owned()));
        let name = request.name_any();
        let written =
            self.api().replace_subresource("approval", &name, &PostParams::default(), &approved).await;
        written.map(drop).says("approve a certificate signing request")
    }

    /// Approves the certificate of a node's server if it is for the node alone; otherwise it is left to
    /// people. Whether it was approved.
    async fn review_serving(
        &self,
        request: &CertificateSigningRequest,
        subject: Option<&Subject>,
    ) -> Result<bool> {
        let Some(subject) = subject else { return Ok(false) };
        let servers = serving::servers(&self.slices.list());
        match serving::is_own(subject, &self.nodes.list(), &servers) {
            Ok(()) => {
                self.approve(request, "Auto approving kubelet serving certificate: it names the node alone.")
                    .await?;
                Ok(true)
            }
            Err(why) => {
                tracing::info!(request = request.name_any(), why, "a serving certificate is left to people");
                Ok(false)
            }
        }
    }

    async fn allowed(&self, request: &CertificateSigningRequest, subresource: &str) -> Result<bool> {
        let spec = &request.spec;
        let attributes = ResourceAttributes {
            group: Some("certificates.k8s.io".to_owned()),
            resource: Some("certificatesigningrequests".to_owned()),
            subresource: Some(subresource.to_owned()),
            verb: Some("create".to_owned()),
            version: Some("*".to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.context.client.clone());
        let answer = api.create(&PostParams::default(), &review).await;
        let answer = answer.says("ask whether a certificate may be had")?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn sign(
        &self,
        request: &CertificateSigningRequest,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<()> {
        let usages = request.spec.usages.clone().unwrap_or_default();
        let signed = self.authority.sign(&request.spec.request.0, &usages, lifetime, now);
        let certificate = signed.map_err(|refused| Error::Authority(refused.to_string()))?;
        let mut signed = request.clone();
        let status = signed.status.get_or_insert_default();
        status.certificate = Some(ByteString(certificate.into_bytes()));
        self.write_status(&signed).await
    }

    async fn fail(&self, request: &CertificateSigningRequest, why: String) -> Result<()> {
        let mut failed = request.clone();
        conditions(&mut failed).push(condition("Failed", "SignerValidationFailure", why));
        self.write_status(&failed).await
    }

    async fn write_status(&self, request: &CertificateSigningRequest) -> Result<()> {
        let name = request.name_any();
        let written = self.api().replace_subresource("status", &name, &PostParams::default(), request).await;
        match written {
            Err(error) if error.is_not_found() => Ok(()),
            written => written.map(drop).says("sign a certificate signing request"),
        }
    }

    async fn remove(&self, request: &CertificateSigningRequest) -> Result<()> {
        let preconditions = Preconditions { uid: request.uid(), resource_version: None };
        let parameters = DeleteParams::default().preconditions(preconditions);
        match self.api().delete(&request.name_any(), &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error).says("remove an old certificate signing request"),
        }
    }
}

fn conditions(request: &mut CertificateSigningRequest) -> &mut Vec<CertificateSigningRequestCondition> {
    let status: &mut CertificateSigningRequestStatus = request.status.get_or_insert_default();
    status.conditions.get_or_insert_default()
}

fn condition(type_: &str, reason: &str, message: String) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        ..CertificateSigningRequestCondition::default()
    }
}
