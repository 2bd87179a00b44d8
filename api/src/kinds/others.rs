//! Kinds with little or no behaviour of their own.

use k8s_openapi::api::admissionregistration::v1 as admission;
use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::authorization::v1 as authorization;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Binding, Event, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::events::v1::Event as EventsEvent;
use k8s_openapi::api::flowcontrol::v1 as flowcontrol;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::api::resource::v1 as resource;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;

use super::{Kind, or, or_text};
use crate::field::{Error, Path};

super::plain!(
    APIService,
    Binding,
    CertificateSigningRequest,
    ClusterRole,
    CustomResourceDefinition,
    Event,
    EventsEvent,
    Role,
    RuntimeClass,
    admission::MutatingAdmissionPolicy,
    admission::MutatingAdmissionPolicyBinding,
    admission::MutatingWebhookConfiguration,
    admission::ValidatingAdmissionPolicy,
    admission::ValidatingAdmissionPolicyBinding,
    admission::ValidatingWebhookConfiguration,
    authentication::SelfSubjectReview,
    authentication::TokenReview,
    authorization::LocalSubjectAccessReview,
    authorization::SelfSubjectAccessReview,
    authorization::SelfSubjectRulesReview,
    authorization::SubjectAccessReview,
    flowcontrol::FlowSchema,
    flowcontrol::PriorityLevelConfiguration,
    resource::DeviceClass,
    resource::ResourceClaim,
    resource::ResourceClaimTemplate,
    resource::ResourceSlice,
    storage::CSIDriver,
    storage::CSINode,
    storage::CSIStorageCapacity,
    storage::VolumeAttachment,
    storage::VolumeAttributesClass,
);

impl Kind for Node {
    /// What a node does not reserve, it can allocate.
    fn default_fields(&mut self) {
        if let Some(status) = &mut self.status
            && let Some(capacity) = &status.capacity
        {
            let allocatable = status.allocatable.get_or_insert_default();
            for (name, amount) in capacity {
                allocatable.entry(name.clone()).or_insert_with(|| amount.clone());
            }
        }
    }

    fn validate(&self, _old: Option<&Self>, errors: &mut Vec<Error>) {
        for (i, taint) in self.spec.iter().flat_map(|s| s.taints.iter().flatten()).enumerate() {
            let at = Path::new("spec").child("taints").index(i);
            errors.extend(
                crate::names::qualified(&taint.key)
                    .into_iter()
                    .map(|why| Error::invalid(&at.child("key"), taint.key.as_str(), why)),
            );
            let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            if !known.contains(&taint.effect.as_str()) {
                errors.push(Error::not_supported(&at.child("effect"), taint.effect.as_str(), &known));
            }
        }
    }
}

impl Kind for Lease {
    fn validate(&self, _old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return };
        if let Some(seconds) = spec.lease_duration_seconds.filter(|s| *s <= 0) {
            errors.push(Error::invalid(
                &path.child("leaseDurationSeconds"),
                seconds,
                "must be greater than 0",
            ));
        }
        if let Some(n) = spec.lease_transitions.filter(|n| *n < 0) {
            errors.push(Error::invalid(
                &path.child("leaseTransitions"),
                n,
                "must be greater than or equal to 0",
            ));
        }
    }
}

impl Kind for PersistentVolume {
    fn default_fields(&mut self) {
        let Some(spec) = &mut self.spec else { return };
        or_text(&mut spec.persistent_volume_reclaim_policy, "Retain");
        or_text(&mut spec.volume_mode, "Filesystem");
        if let Some(host) = &mut spec.host_path {
            or(&mut host.type_, String::new());
        }
    }
}

impl Kind for PersistentVolumeClaim {
    fn default_fields(&mut self) {
        if let Some(spec) = &mut self.spec {
            or_text(&mut spec.volume_mode, "Filesystem");
        }
    }

    fn validate(&self, _old: Option<&Self>, errors: &mut Vec<Error>) {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else { return errors.push(Error::required(&path, "")) };
        if spec.access_modes.as_ref().is_none_or(Vec::is_empty) {
            errors.push(Error::required(&path.child("accessModes"), "at least 1 access mode is required"));
        }
        let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        if !requests.is_some_and(|r| r.contains_key("storage")) {
            errors.push(Error::required(&path.child("resources").key("storage"), ""));
        }
    }
}

impl Kind for storage::StorageClass {
    fn default_fields(&mut self) {
        or_text(&mut self.reclaim_policy, "Delete");
        or_text(&mut self.volume_binding_mode, "Immediate");
    }

    fn validate(&self, _old: Option<&Self>, errors: &mut Vec<Error>) {
        if self.provisioner.is_empty() {
            errors.push(Error::required(&Path::new("provisioner"), ""));
        }
    }
}

impl Kind for PriorityClass {
    fn default_fields(&mut self) {
        or_text(&mut self.preemption_policy, "PreemptLowerPriority");
    }

    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        /// Above this, priorities are the system's own.
        const HIGHEST_USER_PRIORITY: i32 = 1_000_000_000;
        let name = self.metadata.name.as_deref().unwrap_or_default();
        if !name.starts_with("system-") && self.value.unwrap_or_default() > HIGHEST_USER_PRIORITY {
            errors.push(Error::forbidden(
                &Path::new("value"),
                format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"),
            ));
        }
        if old.is_some_and(|o| o.value != self.value) {
            errors.push(Error::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
    }
}

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

fn default_binding(role: &mut RoleRef, subjects: &mut Option<Vec<Subject>>) {
    or_text(&mut role.api_group, RBAC_GROUP);
    for subject in subjects.iter_mut().flatten() {
        let group = if subject.kind == "ServiceAccount" { "" } else { RBAC_GROUP };
        or(&mut subject.api_group, group.to_owned());
    }
}

fn validate_binding(
    role: &RoleRef,
    old: Option<&RoleRef>,
    subjects: Option<&Vec<Subject>>,
    errors: &mut Vec<Error>,
) {
    let path = Path::new("roleRef");
    if !["Role", "ClusterRole"].contains(&role.kind.as_str()) {
        errors.push(Error::not_supported(&path.child("kind"), role.kind.as_str(), &["ClusterRole", "Role"]));
    }
    if role.name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    if old.is_some_and(|old| old != role) {
        errors.push(Error::invalid(
            &path,
            serde_json::to_value(role).unwrap_or_default(),
            "cannot change roleRef",
        ));
    }
    for (i, subject) in subjects.into_iter().flatten().enumerate() {
        let at = Path::new("subjects").index(i);
        if subject.name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        }
        let known = ["ServiceAccount", "User", "Group"];
        if !known.contains(&subject.kind.as_str()) {
            errors.push(Error::not_supported(&at.child("kind"), subject.kind.as_str(), &known));
        }
        if subject.kind == "ServiceAccount" && subject.namespace.as_deref().unwrap_or_default().is_empty() {
            errors.push(Error::required(&at.child("namespace"), ""));
        }
    }
}

impl Kind for ClusterRoleBinding {
    fn default_fields(&mut self) {
        default_binding(&mut self.role_ref, &mut self.subjects);
    }
    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        validate_binding(&self.role_ref, old.map(|o| &o.role_ref), self.subjects.as_ref(), errors);
    }
}

impl Kind for RoleBinding {
    fn default_fields(&mut self) {
        default_binding(&mut self.role_ref, &mut self.subjects);
    }
    fn validate(&self, old: Option<&Self>, errors: &mut Vec<Error>) {
        validate_binding(&self.role_ref, old.map(|o| &o.role_ref), self.subjects.as_ref(), errors);
    }
}
