use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMapEnvSource, ConfigMapKeySelector, EnvFromSource, FileKeySelector, PodSpec, ResourceRequirements,
    SecretKeySelector, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;

struct Objects {
    maps: Vec<ConfigMap>,
    secrets: Vec<Secret>,
}

impl Lookup for Objects {
    fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, Error> {
        Ok(self.maps.iter().find(|m| m.metadata.name.as_deref() == Some(name)).cloned().map(Arc::new))
    }

    fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>, Error> {
        Ok(self.secrets.iter().find(|m| m.metadata.name.as_deref() == Some(name)).cloned().map(Arc::new))
    }

    fn file(&self, volume: &str, path: &str) -> Result<String, Error> {
        Ok(format!("VOLUME='{volume}'\nFILE='{path}'\n"))
    }
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some(namespace.into()), name: Some(name.into()), ..ObjectMeta::default() }
}

fn objects() -> Objects {
    let map = ConfigMap {
        metadata: meta("ns", "cm"),
        data: Some([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into()),
        ..ConfigMap::default()
    };
    let secret = Secret {
        metadata: meta("ns", "s"),
        data: Some([("k".to_owned(), ByteString(b"hidden".to_vec()))].into()),
        ..Secret::default()
    };
    Objects { maps: vec![map], secrets: vec![secret] }
}

fn pod() -> Pod {
    let mut metadata = meta("ns", "p");
    metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
    metadata.uid = Some("u-1".into());
    Pod { metadata, spec: Some(PodSpec::default()), status: None }
}

fn plain(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()), value_from: None }
}

fn sourced(name: &str, source: EnvVarSource) -> EnvVar {
    EnvVar { name: name.into(), value: None, value_from: Some(source) }
}

fn make(container: &Container, services: &[Arc<Service>]) -> Result<Vec<(String, String)>, Error> {
    let (pod, ips) = (pod(), ["10.244.0.9".to_owned()]);
    let facts = Facts { pod: &pod, pod_ips: &ips, host_ips: &[], node: None, services };
    environment(container, &facts, &objects())
}

#[test]
fn expansion_knows_escapes_and_leaves_the_unknown() {
    let get = |name: &str| (name == "A").then(|| "x".to_owned());
    for (text, expected) in [
        ("$(A)", "x"),
        ("a$(A)b$(A)", "axbx"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$x"),
        ("$(B)", "$(B)"),
        ("$(A", "$(A"),
        ("$A $", "$A $"),
        ("é$(A)é", "éxé"),
    ] {
        assert_eq!(expand(text, get), expected, "{text}");
    }
}

#[test]
fn later_definitions_win_and_see_earlier_ones() {
    let container = Container {
        env_from: Some(vec![EnvFromSource {
            config_map_ref: Some(ConfigMapEnvSource { name: "cm".into(), optional: None }),
            prefix: Some("P_".into()),
            secret_ref: None,
        }]),
        env: Some(vec![
            plain("X", "$(P_a)-$(Y)"),
            plain("Y", "y"),
            plain("Z", "$(X)$(Y)"),
            plain("P_b", "own"),
        ]),
        ..Container::default()
    };
    let all: HashMap<String, String> = make(&container, &[]).unwrap().into_iter().collect();
    assert_eq!((all["P_a"].as_str(), all["P_b"].as_str()), ("1", "own"));
    assert_eq!((all["X"].as_str(), all["Z"].as_str()), ("1-$(Y)", "1-$(Y)y"));
}

#[test]
fn missing_objects_and_keys_are_typed_unless_optional() {
    let map = |name: &str, key: &str, optional| {
        let selector = ConfigMapKeySelector { name: name.into(), key: key.into(), optional };
        let source = EnvVarSource { config_map_key_ref: Some(selector), ..EnvVarSource::default() };
        Container { env: Some(vec![sourced("V", source)]), ..Container::default() }
    };
    assert_eq!(make(&map("cm", "b", None), &[]).unwrap(), [("V".to_owned(), "2".to_owned())]);
    assert_eq!(make(&map("no", "b", None), &[]).unwrap_err().to_string(), "configmap \"no\" not found");
    assert_eq!(
        make(&map("cm", "zz", None), &[]).unwrap_err().to_string(),
        "couldn't find key zz in ConfigMap ns/cm"
    );
    assert!(make(&map("no", "b", Some(true)), &[]).unwrap().is_empty());
    assert!(make(&map("cm", "zz", Some(true)), &[]).unwrap().is_empty());
    let selector = SecretKeySelector { name: "s".into(), key: "k".into(), optional: None };
    let source = EnvVarSource { secret_key_ref: Some(selector), ..EnvVarSource::default() };
    let secret = Container { env: Some(vec![sourced("V", source)]), ..Container::default() };
    assert_eq!(make(&secret, &[]).unwrap(), [("V".to_owned(), "hidden".to_owned())]);
}

#[test]
fn fields_and_resources_come_from_the_pod() {
    let field = |path: &str| {
        let reference = ObjectFieldSelector { field_path: path.into(), api_version: None };
        sourced(path, EnvVarSource { field_ref: Some(reference), ..EnvVarSource::default() })
    };
    let reference = ResourceFieldSelector {
        resource: "limits.memory".into(),
        divisor: Some(ApiQuantity("1Mi".into())),
        ..Default::default()
    };
    let limits = [("memory".to_owned(), ApiQuantity("1537Ki".into()))].into();
    let container = Container {
        env: Some(vec![
            field("metadata.name"),
            field("metadata.labels['app']"),
            field("status.podIP"),
            sourced("mem", EnvVarSource { resource_field_ref: Some(reference), ..EnvVarSource::default() }),
        ]),
        resources: Some(ResourceRequirements { limits: Some(limits), ..ResourceRequirements::default() }),
        ..Container::default()
    };
    let values: Vec<String> = make(&container, &[]).unwrap().into_iter().map(|(_, v)| v).collect();
    assert_eq!(values, ["p", "web", "10.244.0.9", "2"]);
    let bad = Container { env: Some(vec![field("spec.bad")]), ..Container::default() };
    assert_eq!(make(&bad, &[]).unwrap_err(), Error::FieldPath("spec.bad".into()));
}

#[test]
fn services_announce_themselves() {
    let service = |namespace: &str, name: &str, ip: &str| {
        let port = ServicePort { name: Some("http-x".into()), port: 80, ..ServicePort::default() };
        Arc::new(Service {
            metadata: meta(namespace, name),
            spec: Some(ServiceSpec {
                cluster_ip: Some(ip.into()),
                ports: Some(vec![port]),
                ..Default::default()
            }),
            status: None,
        })
    };
    let services = [
        service("default", "kubernetes", "10.96.0.1"),
        service("ns", "my-web", "10.96.0.7"),
        service("ns", "headless", "None"),
    ];
    let all: HashMap<String, String> = make(&Container::default(), &services).unwrap().into_iter().collect();
    assert_eq!(all["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
    assert_eq!(all["MY_WEB_SERVICE_PORT_HTTP_X"], "80");
    assert_eq!(all["MY_WEB_PORT_80_TCP"], "tcp://10.96.0.7:80");
    assert_eq!(all["MY_WEB_PORT_80_TCP_ADDR"], "10.96.0.7");
    assert!(!all.keys().any(|k| k.starts_with("HEADLESS")));
}

#[test]
fn a_variable_may_come_from_a_file() {
    let of = |key: &str, optional: bool| {
        let reference = FileKeySelector {
            key: key.into(),
            path: "made/env".into(),
            volume_name: "v".into(),
            optional: Some(optional),
        };
        let source = EnvVarSource { file_key_ref: Some(reference), ..EnvVarSource::default() };
        let container = Container { env: Some(vec![sourced("X", source)]), ..Container::default() };
        make(&container, &[])
    };
    assert_eq!(of("FILE", false).unwrap(), [("X".to_owned(), "made/env".to_owned())]);
    assert_eq!(of("NONE", true).unwrap(), []);
    let error = of("NONE", false).unwrap_err().to_string();
    assert_eq!(error, "environment variable key \"NONE\" not found in file \"made/env\"");
}
