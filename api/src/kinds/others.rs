//! Kinds with little or no behaviour of their own.

use k8s_openapi::api::authentication::v1 as authentication;
use k8s_openapi::api::authorization::v1 as authorization;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Binding, Event, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::events::v1::Event as EventsEvent;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::api::resource::v1 as resource;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1 as storage;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;

use super::{Kind, or, or_text};

super::plain!(
    APIService,
    Binding,
    CertificateSigningRequest,
    ClusterRole,
    CustomResourceDefinition,
    Event,
    Lease,
    EventsEvent,
    Role,
    RuntimeClass,
    authentication::SelfSubjectReview,
    authentication::TokenReview,
    authorization::LocalSubjectAccessReview,
    authorization::SelfSubjectAccessReview,
    authorization::SelfSubjectRulesReview,
    authorization::SubjectAccessReview,
    resource::DeviceClass,
    resource::ResourceSlice,
    storage::CSINode,
    storage::CSIStorageCapacity,
    storage::VolumeAttachment,
    storage::VolumeAttributesClass,
);

impl Kind for Node {
    /// What a node does not reserve, it can allocate; its first network has a field of its own.
    fn default_fields(&mut self) {
        if let Some(spec) = &mut self.spec {
            let networks = spec.pod_cidrs.take().unwrap_or_default();
            let one = spec.pod_cidr.take().filter(|one| !one.is_empty());
            let networks = match one {
                Some(one) if networks.first() != Some(&one) => vec![one],
                _ => networks,
            };
            spec.pod_cidr = networks.first().cloned();
            spec.pod_cidrs = Some(networks).filter(|networks| !networks.is_empty());
        }
        if let Some(status) = &mut self.status
            && let Some(capacity) = &status.capacity
        {
            let allocatable = status.allocatable.get_or_insert_default();
            for (name, amount) in capacity {
                allocatable.entry(name.clone()).or_insert_with(|| amount.clone());
            }
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
}

impl Kind for storage::StorageClass {
    fn default_fields(&mut self) {
        or_text(&mut self.reclaim_policy, "Delete");
        or_text(&mut self.volume_binding_mode, "Immediate");
    }
}

impl Kind for storage::CSIDriver {
    fn default_fields(&mut self) {
        let spec = &mut self.spec;
        or(&mut spec.attach_required, true);
        for slot in [
            &mut spec.pod_info_on_mount,
            &mut spec.storage_capacity,
            &mut spec.requires_republish,
            &mut spec.se_linux_mount,
        ] {
            or(slot, false);
        }
        or_text(&mut spec.fs_group_policy, "ReadWriteOnceWithFSType");
        if spec.volume_lifecycle_modes.as_ref().is_none_or(Vec::is_empty) {
            spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
        }
    }
}

impl Kind for PriorityClass {
    fn default_fields(&mut self) {
        or_text(&mut self.preemption_policy, "PreemptLowerPriority");
    }
}

impl Kind for resource::ResourceClaim {
    fn default_fields(&mut self) {
        default_requests(&mut self.spec);
    }
}

impl Kind for resource::ResourceClaimTemplate {
    fn default_fields(&mut self) {
        default_requests(&mut self.spec.spec);
    }
}

/// Who asks for devices asks for one, unless they say otherwise.
fn default_requests(spec: &mut resource::ResourceClaimSpec) {
    const EXACTLY: &str = "ExactCount";
    let count = |mode: &mut Option<String>, count: &mut Option<i64>| {
        or_text(mode, EXACTLY);
        if mode.as_deref() == Some(EXACTLY) && count.unwrap_or(0) == 0 {
            *count = Some(1);
        }
    };
    let requests = spec.devices.iter_mut().flat_map(|devices| devices.requests.iter_mut().flatten());
    for request in requests {
        if let Some(exactly) = &mut request.exactly {
            count(&mut exactly.allocation_mode, &mut exactly.count);
        }
        for alternative in request.first_available.iter_mut().flatten() {
            count(&mut alternative.allocation_mode, &mut alternative.count);
        }
    }
}

const RBAC_GROUP: &str = "rbac.authorization.k8s.io";

fn default_binding(role: &mut RoleRef, subjects: &mut Option<Vec<Subject>>) {
    or_text(&mut role.api_group, RBAC_GROUP);
    for subject in subjects.iter_mut().flatten() {
        if matches!(subject.kind.as_str(), "User" | "Group") {
            or_text(&mut subject.api_group, RBAC_GROUP);
        }
    }
}

impl Kind for ClusterRoleBinding {
    fn default_fields(&mut self) {
        default_binding(&mut self.role_ref, &mut self.subjects);
    }
}

impl Kind for RoleBinding {
    fn default_fields(&mut self) {
        default_binding(&mut self.role_ref, &mut self.subjects);
    }
}
