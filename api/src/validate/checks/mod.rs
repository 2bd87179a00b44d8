//! What fields must be together, by the type that has them.

mod access;
mod admission;
mod batch;
mod config;
mod container;
mod device_claim;
mod device_slice;
mod job_status;
mod metric;
mod network;
mod node;
mod placement;
mod pod;
mod pod_resources;
mod pod_update;
mod service;
mod status;
mod storage;
mod volume;
mod workload;

use serde_json::Value;

use super::{At, Errors, Scope, rules};
use crate::facts::Type;

/// The object as it is to be looked at, where that differs from how it is written.
pub(super) fn as_seen(ty: &Type, object: &Value) -> Option<Value> {
    (rules::short(ty) == "apps.v1.StatefulSet").then(|| workload::with_claims(object))?
}

/// What is wrong with a whole object, given what its request changes.
pub(super) fn run_root(at: &At<'_>, ty: &Type, scope: Scope, errors: &mut Errors) {
    match rules::short(ty) {
        "core.v1.Pod" => pod_update::pod(at, scope, errors),
        "core.v1.Namespace" => config::namespace(at, scope, errors),
        "resource.v1.ResourceClaim" if scope == Scope::Status => device_claim::status(at, errors),
        "batch.v1.Job" if scope == Scope::Status => job_status::job(at, errors),
        "core.v1.Service" if scope == Scope::Status => status::service(at, errors),
        _ if scope == Scope::Status => {}
        "core.v1.ConfigMap" => config::config_map(at, errors),
        "core.v1.Secret" => config::secret(at, errors),
        "core.v1.Service" => service::service(at, errors),
        "core.v1.Endpoints" => network::endpoints(at, errors),
        "core.v1.Event" => node::event(at, errors),
        "events.v1.Event" => node::new_event(at, errors),
        "core.v1.Node" => node::node(at, errors),
        "core.v1.PersistentVolume" => storage::volume(at, errors),
        "core.v1.PersistentVolumeClaim" => storage::claim_update(at, errors),
        "storage.v1.StorageClass" => storage::class(at, errors),
        "storage.v1.VolumeAttachment" => storage::attachment(at, errors),
        "storage.v1.CSINode" => storage::csi_node(at, errors),
        "core.v1.PodTemplate" => pod::template(&at.get("template"), errors),
        "apps.v1.StatefulSet" => workload::stateful_set_update(at, errors),
        "apps.v1.ControllerRevision" => workload::controller_revision(at, errors),
        "batch.v1.Job" => batch::job_update(at, errors),
        "batch.v1.CronJob" => batch::cron_job(at, errors),
        "scheduling.v1.PriorityClass" => node::priority_class(at, errors),
        "rbac.v1.Role" => access::role(at, true, errors),
        "rbac.v1.ClusterRole" => access::role(at, false, errors),
        "rbac.v1.RoleBinding" => access::binding(at, true, errors),
        "rbac.v1.ClusterRoleBinding" => access::binding(at, false, errors),
        "flowcontrol.v1.PriorityLevelConfiguration" => access::priority_level(at, errors),
        "flowcontrol.v1.FlowSchema" => access::flow_schema(at, errors),
        "resource.v1.ResourceClaim" | "resource.v1.ResourceClaimTemplate" => {
            errors.immutable(&at.get("spec"));
        }
        "certificates.v1.CertificateSigningRequest" => access::signing_request(at, errors),
        _ => {}
    }
}

/// What is wrong with a struct, wherever it is.
pub(super) fn run(at: &At<'_>, ty: &Type, errors: &mut Errors) {
    match rules::short(ty) {
        "core.v1.PodSpec" => pod::spec(at, errors),
        "core.v1.PodTemplateSpec" => pod::template(at, errors),
        "core.v1.EnvVarSource" => container::env_source(at, errors),
        "core.v1.EnvFromSource" => container::env_from(at, errors),
        "core.v1.ResourceFieldSelector" => container::resource_field(at, errors),
        "core.v1.SecurityContext" => container::security_context(at, errors),
        "core.v1.SeccompProfile" => container::profile(at, "seccomp", errors),
        "core.v1.AppArmorProfile" => container::profile(at, "AppArmor", errors),
        "core.v1.ResourceRequirements" => pod_resources::requirements(at, errors),
        "core.v1.Volume" => volume::volume(at, errors),
        "core.v1.DownwardAPIVolumeFile" => volume::downward_file(at, errors),
        "core.v1.ProjectedVolumeSource" => volume::projected(at, errors),
        "core.v1.Toleration" => placement::toleration(at, errors),
        "core.v1.NodeSelectorTerm" => placement::node_term(at, errors),
        "core.v1.PreferredSchedulingTerm" | "core.v1.WeightedPodAffinityTerm" => {
            placement::weight(at, errors)
        }
        "core.v1.PodAffinityTerm" => placement::affinity_term(at, errors),
        "core.v1.TopologySpreadConstraint" => placement::spread(at, errors),
        "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector" => placement::label_selector(at, errors),
        "core.v1.LimitRangeSpec" => config::limit_range(at, errors),
        "core.v1.ResourceQuotaSpec" => config::quota(at, errors),
        "core.v1.ResourceQuotaStatus" => config::quota_status(at, errors),
        "core.v1.NodeStatus" => status::node(at, errors),
        "core.v1.PersistentVolumeClaimStatus" => status::claim(at, errors),
        "core.v1.PersistentVolumeSpec" => storage::volume_spec(at, errors),
        "core.v1.PersistentVolumeClaimSpec" => storage::claim_spec(at, errors),
        "storage.v1.CSIDriverSpec" => storage::driver(at, errors),
        "networking.v1.ServiceCIDRSpec" => network::service_cidr(at, errors),
        "core.v1.ServiceSpec" => service::spec(at, errors),
        "core.v1.EndpointSubset" => network::subset(at, errors),
        "apps.v1.DeploymentSpec" => workload::deployment(at, errors),
        "apps.v1.ReplicaSetSpec" => workload::selected(at, "deployment", errors),
        "apps.v1.StatefulSetSpec" => workload::stateful_set(at, errors),
        "apps.v1.DaemonSetSpec" => workload::daemon_set(at, errors),
        "core.v1.ReplicationControllerSpec" => workload::replication_controller(at, errors),
        "batch.v1.JobSpec" => batch::job(at, errors),
        "apps.v1.DeploymentStatus"
        | "apps.v1.ReplicaSetStatus"
        | "apps.v1.StatefulSetStatus"
        | "core.v1.ReplicationControllerStatus" => status::replicas(at, errors),
        "apps.v1.DaemonSetStatus" => status::collisions(at, errors),
        "core.v1.LoadBalancerIngress" | "networking.v1.IngressLoadBalancerIngress" => {
            status::ingress(at, errors);
        }
        "batch.v1.PodFailurePolicyRule" => batch::failure_rule(at, errors),
        "autoscaling.v1.HorizontalPodAutoscalerSpec" | "autoscaling.v2.HorizontalPodAutoscalerSpec" => {
            metric::autoscaler(at, errors);
        }
        "autoscaling.v2.HPAScalingRules" => metric::scaling_rules(at, errors),
        "policy.v1.PodDisruptionBudgetSpec" => metric::disruption_budget(at, errors),
        "discovery.v1.EndpointSlice" => network::slice(at, errors),
        "networking.v1.IngressSpec" => network::ingress(at, errors),
        "networking.v1.IngressBackend" => network::backend(at, errors),
        "networking.v1.HTTPIngressPath" => network::ingress_path(at, errors),
        "networking.v1.IngressClassSpec" => network::ingress_class(at, errors),
        "networking.v1.NetworkPolicyPort" => network::policy_port(at, errors),
        "networking.v1.NetworkPolicyPeer" => network::policy_peer(at, errors),
        "networking.v1.IPBlock" => network::ip_block(at, errors),
        "rbac.v1.Subject" => access::subject(at, errors),
        "flowcontrol.v1.PriorityLevelConfigurationSpec" => access::priority_level_spec(at, errors),
        "flowcontrol.v1.Subject" => access::flow_subject(at, errors),
        "admissionregistration.v1.ValidatingWebhook" | "admissionregistration.v1.MutatingWebhook" => {
            admission::webhook(at, errors);
        }
        "admissionregistration.v1.RuleWithOperations"
        | "admissionregistration.v1.NamedRuleWithOperations" => {
            admission::rule(at, errors);
        }
        "admissionregistration.v1.ValidatingAdmissionPolicySpec" => admission::policy(at, errors),
        "admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec" => admission::actions(at, errors),
        "resource.v1.DeviceClassSpec" => device_claim::class(at, errors),
        "resource.v1.DeviceClaim" => device_claim::claim(at, errors),
        "resource.v1.DeviceRequest" => device_claim::request(at, errors),
        "resource.v1.ExactDeviceRequest" | "resource.v1.DeviceSubRequest" => device_claim::count(at, errors),
        "resource.v1.DeviceToleration" => device_claim::toleration(at, errors),
        "resource.v1.DeviceConstraint" => device_claim::constraint(at, errors),
        "resource.v1.OpaqueDeviceConfiguration" => device_claim::opaque(at, errors),
        "resource.v1.DeviceRequestAllocationResult" | "resource.v1.AllocatedDeviceStatus" => {
            device_claim::allocated(at, errors);
        }
        "resource.v1.ResourceSliceSpec" => device_slice::slice(at, errors),
        "resource.v1.ResourcePool" => device_slice::pool(at, errors),
        "resource.v1.Device" => device_slice::device(at, errors),
        "resource.v1.DeviceAttribute" => device_slice::attribute(at, errors),
        "resource.v1.CounterSet" | "resource.v1.DeviceCounterConsumption" => {
            device_slice::counters(at, errors);
        }
        "resource.v1.DeviceCapacity" => device_slice::capacity(at, errors),
        "admissionregistration.v1.ParamRef" => admission::param_ref(at, errors),
        _ => {}
    }
}
