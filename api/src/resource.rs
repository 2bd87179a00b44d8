//! The table of built-in kinds: a kind is a row.
//!
//! Routes, discovery, OpenAPI, storage layout, garbage collection, quota and the command line are all
//! driven by [`RESOURCES`]. CRDs become rows of the same type at run time.

use crate::kinds::Ops;

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// In the cluster.
    Cluster,
}

/// A group, a version and a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gvk {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
}

/// A subresource of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// Its name in the path.
    pub name: &'static str,
    /// What its requests or answers are; `None`: the kind itself.
    pub kind: Option<Gvk>,
    /// Its verbs.
    pub verbs: &'static [&'static str],
}

/// Where objects of a kind are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nowhere: a request is answered and forgotten (reviews).
    Virtual,
    /// Under `/registry/<prefix>/`.
    Stored(&'static str),
    /// Under the prefix of the kind with the same plural in this group, which is the one stored.
    SharedWith(&'static str, &'static str),
}

/// A built-in kind.
#[derive(Clone, Copy, Debug)]
pub struct Resource {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The kind, `Pod`.
    pub kind: &'static str,
    /// The plural, as in paths: `pods`.
    pub plural: &'static str,
    /// The singular, `pod`.
    pub singular: &'static str,
    /// Short names, `po`.
    pub short_names: &'static [&'static str],
    /// Categories, `all`.
    pub categories: &'static [&'static str],
    /// Namespaced or not.
    pub scope: Scope,
    /// Its verbs.
    pub verbs: &'static [&'static str],
    /// Its subresources.
    pub subresources: &'static [Subresource],
    /// Where its objects are.
    pub storage: Storage,
    /// The OpenAPI name of its type, a key of [`crate::facts`].
    pub type_name: &'static str,
    /// What can be done with its Rust type.
    pub ops: Ops,
}

impl Resource {
    /// Its group, version and kind.
    pub const fn gvk(&self) -> Gvk {
        Gvk { group: self.group, version: self.version, kind: self.kind }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// The kind of its lists.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether its objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// `/registry/pods/`: the prefix of its keys, as Kubernetes lays them out; `None` where nothing is kept.
    pub fn key_prefix(&self) -> Option<String> {
        match self.storage {
            Storage::Virtual => None,
            Storage::Stored(prefix) => Some(format!("/registry/{prefix}/")),
            Storage::SharedWith(group, version) => find(group, version, self.plural)?.key_prefix(),
        }
    }

    /// `deployments.apps`, `pods`: how Kubernetes names a resource in its messages.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }
}

/// `v1` or `apps/v1`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The row by group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The row by group, version and kind.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.kind == kind && r.group == group && r.version == version)
}

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const CHANGE: &[&str] = &["get", "patch", "update"];

const STATUS: Subresource = Subresource { name: "status", kind: None, verbs: CHANGE };
const SCALE: Subresource =
    Subresource { name: "scale", kind: Some(gvk("autoscaling", "v1", "Scale")), verbs: CHANGE };

const fn gvk(group: &'static str, version: &'static str, kind: &'static str) -> Gvk {
    Gvk { group, version, kind }
}

const fn sub(name: &'static str, kind: Option<Gvk>, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, kind, verbs }
}

const fn core(kind: &'static str) -> Option<Gvk> {
    Some(gvk("", "v1", kind))
}

/// A row: Rust type = OpenAPI name without `io.k8s.`, singular, [short names] [categories] scope verbs
/// [subresources] storage. Group, version, kind and plural are the type's own.
macro_rules! rows {
    ($($ty:ty = $openapi:literal $singular:literal [$($short:literal)*] [$($category:literal)*]
       $scope:ident $verbs:ident [$($sub:expr),*] $storage:expr;)*) => {
        /// Every kind that Kubernetes v1.36 serves by default, in its stable versions.
        pub static RESOURCES: &[Resource] = &[$(Resource {
            group: <$ty as k8s_openapi::Resource>::GROUP,
            version: <$ty as k8s_openapi::Resource>::VERSION,
            kind: <$ty as k8s_openapi::Resource>::KIND,
            plural: <$ty as k8s_openapi::Resource>::URL_PATH_SEGMENT,
            singular: $singular, short_names: &[$($short),*], categories: &[$($category),*],
            scope: Scope::$scope, verbs: $verbs, subresources: &[$($sub),*], storage: $storage,
            type_name: concat!("io.k8s.", $openapi), ops: Ops::of::<$ty>(),
        }),*];
    };
}

use Storage::{SharedWith, Stored, Virtual};
use k8s_openapi::api;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;

rows! {
    api::core::v1::Binding = "api.core.v1.Binding" "binding" [] [] Namespaced CREATE [] Virtual;
    api::core::v1::ConfigMap = "api.core.v1.ConfigMap" "configmap" ["cm"] [] Namespaced ALL [] Stored("configmaps");
    api::core::v1::Endpoints = "api.core.v1.Endpoints" "endpoints" ["ep"] [] Namespaced ALL [] Stored("services/endpoints");
    api::core::v1::Event = "api.core.v1.Event" "event" ["ev"] [] Namespaced ALL [] Stored("events");
    api::core::v1::LimitRange = "api.core.v1.LimitRange" "limitrange" ["limits"] [] Namespaced ALL [] Stored("limitranges");
    api::core::v1::Namespace = "api.core.v1.Namespace" "namespace" ["ns"] [] Cluster ALL [sub("finalize", None, &["update"]), STATUS] Stored("namespaces");
    api::core::v1::Node = "api.core.v1.Node" "node" ["no"] [] Cluster ALL [sub("proxy", core("NodeProxyOptions"), PROXY), STATUS] Stored("minions");
    api::core::v1::PersistentVolumeClaim = "api.core.v1.PersistentVolumeClaim" "persistentvolumeclaim" ["pvc"] [] Namespaced ALL [STATUS] Stored("persistentvolumeclaims");
    api::core::v1::PersistentVolume = "api.core.v1.PersistentVolume" "persistentvolume" ["pv"] [] Cluster ALL [STATUS] Stored("persistentvolumes");
    api::core::v1::Pod = "api.core.v1.Pod" "pod" ["po"] ["all"] Namespaced ALL [sub("attach", core("PodAttachOptions"), CONNECT), sub("binding", core("Binding"), CREATE), sub("ephemeralcontainers", None, CHANGE), sub("eviction", Some(gvk("policy", "v1", "Eviction")), CREATE), sub("exec", core("PodExecOptions"), CONNECT), sub("log", None, &["get"]), sub("portforward", core("PodPortForwardOptions"), CONNECT), sub("proxy", core("PodProxyOptions"), PROXY), sub("resize", None, CHANGE), STATUS] Stored("pods");
    api::core::v1::PodTemplate = "api.core.v1.PodTemplate" "podtemplate" [] [] Namespaced ALL [] Stored("podtemplates");
    api::core::v1::ReplicationController = "api.core.v1.ReplicationController" "replicationcontroller" ["rc"] ["all"] Namespaced ALL [SCALE, STATUS] Stored("controllers");
    api::core::v1::ResourceQuota = "api.core.v1.ResourceQuota" "resourcequota" ["quota"] [] Namespaced ALL [STATUS] Stored("resourcequotas");
    api::core::v1::Secret = "api.core.v1.Secret" "secret" [] [] Namespaced ALL [] Stored("secrets");
    api::core::v1::ServiceAccount = "api.core.v1.ServiceAccount" "serviceaccount" ["sa"] [] Namespaced ALL [sub("token", Some(gvk("authentication.k8s.io", "v1", "TokenRequest")), CREATE)] Stored("serviceaccounts");
    api::core::v1::Service = "api.core.v1.Service" "service" ["svc"] ["all"] Namespaced ALL [sub("proxy", core("ServiceProxyOptions"), PROXY), STATUS] Stored("services/specs");
    api::admissionregistration::v1::MutatingAdmissionPolicy = "api.admissionregistration.v1.MutatingAdmissionPolicy" "mutatingadmissionpolicy" [] ["api-extensions"] Cluster ALL [] Stored("mutatingadmissionpolicies");
    api::admissionregistration::v1::MutatingAdmissionPolicyBinding = "api.admissionregistration.v1.MutatingAdmissionPolicyBinding" "mutatingadmissionpolicybinding" [] ["api-extensions"] Cluster ALL [] Stored("mutatingadmissionpolicybindings");
    api::admissionregistration::v1::MutatingWebhookConfiguration = "api.admissionregistration.v1.MutatingWebhookConfiguration" "mutatingwebhookconfiguration" [] ["api-extensions"] Cluster ALL [] Stored("mutatingwebhookconfigurations");
    api::admissionregistration::v1::ValidatingAdmissionPolicy = "api.admissionregistration.v1.ValidatingAdmissionPolicy" "validatingadmissionpolicy" [] ["api-extensions"] Cluster ALL [STATUS] Stored("validatingadmissionpolicies");
    api::admissionregistration::v1::ValidatingAdmissionPolicyBinding = "api.admissionregistration.v1.ValidatingAdmissionPolicyBinding" "validatingadmissionpolicybinding" [] ["api-extensions"] Cluster ALL [] Stored("validatingadmissionpolicybindings");
    api::admissionregistration::v1::ValidatingWebhookConfiguration = "api.admissionregistration.v1.ValidatingWebhookConfiguration" "validatingwebhookconfiguration" [] ["api-extensions"] Cluster ALL [] Stored("validatingwebhookconfigurations");
    apiextensions::CustomResourceDefinition = "apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition" "customresourcedefinition" ["crd" "crds"] ["api-extensions"] Cluster ALL [STATUS] Stored("apiextensions.k8s.io/customresourcedefinitions");
    apiregistration::APIService = "kube-aggregator.pkg.apis.apiregistration.v1.APIService" "apiservice" [] ["api-extensions"] Cluster ALL [STATUS] Stored("apiregistration.k8s.io/apiservices");
    api::apps::v1::ControllerRevision = "api.apps.v1.ControllerRevision" "controllerrevision" [] [] Namespaced ALL [] Stored("controllerrevisions");
    api::apps::v1::DaemonSet = "api.apps.v1.DaemonSet" "daemonset" ["ds"] ["all"] Namespaced ALL [STATUS] Stored("daemonsets");
    api::apps::v1::Deployment = "api.apps.v1.Deployment" "deployment" ["deploy"] ["all"] Namespaced ALL [SCALE, STATUS] Stored("deployments");
    api::apps::v1::ReplicaSet = "api.apps.v1.ReplicaSet" "replicaset" ["rs"] ["all"] Namespaced ALL [SCALE, STATUS] Stored("replicasets");
    api::apps::v1::StatefulSet = "api.apps.v1.StatefulSet" "statefulset" ["sts"] ["all"] Namespaced ALL [SCALE, STATUS] Stored("statefulsets");
    api::authentication::v1::SelfSubjectReview = "api.authentication.v1.SelfSubjectReview" "selfsubjectreview" [] [] Cluster CREATE [] Virtual;
    api::authentication::v1::TokenReview = "api.authentication.v1.TokenReview" "tokenreview" [] [] Cluster CREATE [] Virtual;
    api::authorization::v1::LocalSubjectAccessReview = "api.authorization.v1.LocalSubjectAccessReview" "localsubjectaccessreview" [] [] Namespaced CREATE [] Virtual;
    api::authorization::v1::SelfSubjectAccessReview = "api.authorization.v1.SelfSubjectAccessReview" "selfsubjectaccessreview" [] [] Cluster CREATE [] Virtual;
    api::authorization::v1::SelfSubjectRulesReview = "api.authorization.v1.SelfSubjectRulesReview" "selfsubjectrulesreview" [] [] Cluster CREATE [] Virtual;
    api::authorization::v1::SubjectAccessReview = "api.authorization.v1.SubjectAccessReview" "subjectaccessreview" [] [] Cluster CREATE [] Virtual;
    api::autoscaling::v2::HorizontalPodAutoscaler = "api.autoscaling.v2.HorizontalPodAutoscaler" "horizontalpodautoscaler" ["hpa"] ["all"] Namespaced ALL [STATUS] Stored("horizontalpodautoscalers");
    api::autoscaling::v1::HorizontalPodAutoscaler = "api.autoscaling.v1.HorizontalPodAutoscaler" "horizontalpodautoscaler" ["hpa"] ["all"] Namespaced ALL [STATUS] SharedWith("autoscaling", "v2");
    api::batch::v1::CronJob = "api.batch.v1.CronJob" "cronjob" ["cj"] ["all"] Namespaced ALL [STATUS] Stored("cronjobs");
    api::batch::v1::Job = "api.batch.v1.Job" "job" [] ["all"] Namespaced ALL [STATUS] Stored("jobs");
    api::certificates::v1::CertificateSigningRequest = "api.certificates.v1.CertificateSigningRequest" "certificatesigningrequest" ["csr"] [] Cluster ALL [sub("approval", None, CHANGE), STATUS] Stored("certificatesigningrequests");
    api::coordination::v1::Lease = "api.coordination.v1.Lease" "lease" [] [] Namespaced ALL [] Stored("leases");
    api::discovery::v1::EndpointSlice = "api.discovery.v1.EndpointSlice" "endpointslice" [] [] Namespaced ALL [] Stored("endpointslices");
    api::events::v1::Event = "api.events.v1.Event" "event" ["ev"] [] Namespaced ALL [] SharedWith("", "v1");
    api::flowcontrol::v1::FlowSchema = "api.flowcontrol.v1.FlowSchema" "flowschema" [] [] Cluster ALL [STATUS] Stored("flowschemas");
    api::flowcontrol::v1::PriorityLevelConfiguration = "api.flowcontrol.v1.PriorityLevelConfiguration" "prioritylevelconfiguration" [] [] Cluster ALL [STATUS] Stored("prioritylevelconfigurations");
    api::networking::v1::IngressClass = "api.networking.v1.IngressClass" "ingressclass" [] [] Cluster ALL [] Stored("ingressclasses");
    api::networking::v1::Ingress = "api.networking.v1.Ingress" "ingress" ["ing"] [] Namespaced ALL [STATUS] Stored("ingress");
    api::networking::v1::IPAddress = "api.networking.v1.IPAddress" "ipaddress" ["ip"] [] Cluster ALL [] Stored("ipaddresses");
    api::networking::v1::NetworkPolicy = "api.networking.v1.NetworkPolicy" "networkpolicy" ["netpol"] [] Namespaced ALL [] Stored("networkpolicies");
    api::networking::v1::ServiceCIDR = "api.networking.v1.ServiceCIDR" "servicecidr" [] [] Cluster ALL [STATUS] Stored("servicecidrs");
    api::node::v1::RuntimeClass = "api.node.v1.RuntimeClass" "runtimeclass" [] [] Cluster ALL [] Stored("runtimeclasses");
    api::policy::v1::PodDisruptionBudget = "api.policy.v1.PodDisruptionBudget" "poddisruptionbudget" ["pdb"] [] Namespaced ALL [STATUS] Stored("poddisruptionbudgets");
    api::rbac::v1::ClusterRoleBinding = "api.rbac.v1.ClusterRoleBinding" "clusterrolebinding" [] [] Cluster ALL [] Stored("clusterrolebindings");
    api::rbac::v1::ClusterRole = "api.rbac.v1.ClusterRole" "clusterrole" [] [] Cluster ALL [] Stored("clusterroles");
    api::rbac::v1::RoleBinding = "api.rbac.v1.RoleBinding" "rolebinding" [] [] Namespaced ALL [] Stored("rolebindings");
    api::rbac::v1::Role = "api.rbac.v1.Role" "role" [] [] Namespaced ALL [] Stored("roles");
    api::resource::v1::DeviceClass = "api.resource.v1.DeviceClass" "deviceclass" [] [] Cluster ALL [] Stored("deviceclasses");
    api::resource::v1::ResourceClaim = "api.resource.v1.ResourceClaim" "resourceclaim" [] [] Namespaced ALL [STATUS] Stored("resourceclaims");
    api::resource::v1::ResourceClaimTemplate = "api.resource.v1.ResourceClaimTemplate" "resourceclaimtemplate" [] [] Namespaced ALL [] Stored("resourceclaimtemplates");
    api::resource::v1::ResourceSlice = "api.resource.v1.ResourceSlice" "resourceslice" [] [] Cluster ALL [] Stored("resourceslices");
    api::scheduling::v1::PriorityClass = "api.scheduling.v1.PriorityClass" "priorityclass" ["pc"] [] Cluster ALL [] Stored("priorityclasses");
    api::storage::v1::CSIDriver = "api.storage.v1.CSIDriver" "csidriver" [] [] Cluster ALL [] Stored("csidrivers");
    api::storage::v1::CSINode = "api.storage.v1.CSINode" "csinode" [] [] Cluster ALL [] Stored("csinodes");
    api::storage::v1::CSIStorageCapacity = "api.storage.v1.CSIStorageCapacity" "csistoragecapacity" [] [] Namespaced ALL [] Stored("csistoragecapacities");
    api::storage::v1::StorageClass = "api.storage.v1.StorageClass" "storageclass" ["sc"] [] Cluster ALL [] Stored("storageclasses");
    api::storage::v1::VolumeAttachment = "api.storage.v1.VolumeAttachment" "volumeattachment" [] [] Cluster ALL [STATUS] Stored("volumeattachments");
    api::storage::v1::VolumeAttributesClass = "api.storage.v1.VolumeAttributesClass" "volumeattributesclass" ["vac"] [] Cluster ALL [] Stored("volumeattributesclasses");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn rows_are_unique_and_their_types_known() {
        let mut seen = HashSet::new();
        for r in RESOURCES {
            assert!(seen.insert((r.group, r.version, r.plural)), "{}", r.qualified());
            assert!(crate::facts::lookup(r.type_name).is_some(), "{}", r.type_name);
            assert_eq!(r.key_prefix().is_none(), r.storage == Virtual, "{}", r.qualified());
            assert!(r.type_name.ends_with(&format!(".{}", r.kind)), "{}", r.type_name);
            assert_eq!(r.singular, r.kind.to_lowercase());
        }
        assert!(RESOURCES.len() >= 65, "{}", RESOURCES.len());
    }

    #[test]
    fn prefixes_are_kubernetes_own() {
        let prefix = |g, v, p| find(g, v, p).unwrap().key_prefix().unwrap();
        assert_eq!(prefix("", "v1", "nodes"), "/registry/minions/");
        assert_eq!(prefix("", "v1", "services"), "/registry/services/specs/");
        assert_eq!(prefix("events.k8s.io", "v1", "events"), "/registry/events/");
        assert_eq!(
            prefix("autoscaling", "v1", "horizontalpodautoscalers"),
            "/registry/horizontalpodautoscalers/"
        );
        assert_eq!(prefix("networking.k8s.io", "v1", "ingresses"), "/registry/ingress/");
    }
}
