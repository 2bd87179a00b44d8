use k8s_openapi::api::core::v1::{Capabilities, ContainerPort, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;

fn pod(spec: PodSpec) -> Pod {
    let metadata = ObjectMeta {
        name: Some("p".into()),
        namespace: Some("ns".into()),
        uid: Some("u".into()),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: Some(spec), status: None }
}

fn facts(pod: &Pod) -> PodFacts<'_> {
    PodFacts {
        pod,
        spec: pod.spec.as_ref().unwrap(),
        cgroup_parent: "/d/kubepods/podu".into(),
        log_directory: "/logs".into(),
        host_name: "p".into(),
        seccomp_root: "/data/seccomp".into(),
        dns: Dns::default(),
        users: None,
    }
}

fn configure(spec: PodSpec, image: &cri::Image) -> Result<cri::ContainerConfig, Error> {
    let pod = pod(spec);
    let container_spec = pod.spec.as_ref().unwrap().containers[0].clone();
    let container_facts = ContainerFacts {
        container: &container_spec,
        sort: Sort::App,
        attempt: 2,
        backoff: Duration::from_secs(20),
        image,
        environment: vec![("A".into(), "1".into())],
        command: Vec::new(),
        args: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        node_memory: 1 << 30,
        target: None,
    };
    container(&facts(&pod), container_facts)
}

fn one(context: Option<SecurityContext>) -> PodSpec {
    let container = Container { name: "c".into(), security_context: context, ..Container::default() };
    PodSpec { containers: vec![container], ..PodSpec::default() }
}

#[test]
fn the_sandbox_carries_identity_ports_and_namespaces() {
    let port = ContainerPort { container_port: 80, host_port: Some(8080), ..ContainerPort::default() };
    let mut spec = one(None);
    spec.containers[0].ports = Some(vec![port]);
    spec.share_process_namespace = Some(true);
    let config = sandbox(&facts(&pod(spec.clone())), 1);
    assert_eq!(config.metadata.unwrap().attempt, 1);
    assert_eq!(config.labels[mark::POD_UID], "u");
    assert_eq!(config.port_mappings[0].host_port, 8080);
    let linux = config.linux.unwrap();
    let namespaces = linux.security_context.unwrap().namespace_options.unwrap();
    assert_eq!(namespaces.pid(), cri::NamespaceMode::Pod);
    assert_eq!(namespaces.network(), cri::NamespaceMode::Pod);
    spec.host_network = Some(true);
    let host = sandbox(&facts(&pod(spec)), 0);
    assert!(host.port_mappings.is_empty() && host.hostname.is_empty());
}

#[test]
fn a_container_is_confined_unless_it_is_privileged() {
    let config = configure(one(None), &cri::Image::default()).unwrap();
    assert_eq!(config.log_path, "c/2.log");
    assert_eq!(config.annotations[mark::BACKOFF], "20");
    let security = config.linux.unwrap().security_context.unwrap();
    assert!(security.masked_paths.contains(&"/proc/kcore".to_owned()) && !security.no_new_privs);
    assert_eq!(security.seccomp.unwrap().profile_type(), cri::security_profile::ProfileType::RuntimeDefault);
    let context = SecurityContext { privileged: Some(true), ..SecurityContext::default() };
    let config = configure(one(Some(context)), &cri::Image::default()).unwrap();
    let security = config.linux.unwrap().security_context.unwrap();
    assert!(security.privileged && security.masked_paths.is_empty());
    assert_eq!(security.seccomp.unwrap().profile_type(), cri::security_profile::ProfileType::Unconfined);
}

#[test]
fn security_settings_reach_the_runtime() {
    let context = SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            add: Some(vec!["NET_ADMIN".into()]),
            drop: Some(vec!["ALL".into()]),
        }),
        ..SecurityContext::default()
    };
    let mut spec = one(Some(context));
    spec.security_context = Some(PodSecurityContext {
        run_as_user: Some(1000),
        fs_group: Some(2000),
        supplemental_groups: Some(vec![3000]),
        ..PodSecurityContext::default()
    });
    let limits = [("cpu", "1"), ("memory", "1Mi"), ("hugepages-2Mi", "4Mi")];
    let limits = limits.map(|(name, limit)| (name.to_owned(), Quantity(limit.into())));
    spec.containers[0].resources =
        Some(ResourceRequirements { limits: Some(limits.into()), ..ResourceRequirements::default() });
    let linux = configure(spec, &cri::Image::default()).unwrap().linux.unwrap();
    let security = linux.security_context.unwrap();
    assert!(security.no_new_privs && security.readonly_rootfs);
    assert_eq!(security.run_as_user.unwrap().value, 1000);
    assert_eq!(security.supplemental_groups, [3000, 2000]);
    assert_eq!(security.capabilities.unwrap().drop_capabilities, ["ALL"]);
    let resources = linux.resources.unwrap();
    assert_eq!((resources.cpu_quota, resources.memory_limit_in_bytes), (100_000, 1 << 20));
    assert_eq!(resources.oom_score_adj, -997);
    assert_eq!(resources.hugepage_limits, [cri::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }]);
}

#[test]
fn root_is_refused_where_the_spec_says_so() {
    let spec = |user| {
        let context =
            SecurityContext { run_as_non_root: Some(true), run_as_user: user, ..SecurityContext::default() };
        one(Some(context))
    };
    let named = cri::Image { username: "web".into(), ..Default::default() };
    let numeric = cri::Image { uid: Some(cri::Int64Value { value: 7 }), ..Default::default() };
    assert!(matches!(configure(spec(Some(0)), &numeric), Err(Error::RunsAsRoot { .. })));
    assert!(matches!(configure(spec(None), &cri::Image::default()), Err(Error::ImageRunsAsRoot { .. })));
    assert!(matches!(configure(spec(None), &named), Err(Error::ImageUserUnknown { .. })));
    assert!(configure(spec(Some(5)), &named).is_ok());
    let config = configure(spec(None), &numeric).unwrap();
    assert_eq!(config.linux.unwrap().security_context.unwrap().run_as_user.unwrap().value, 7);
}
