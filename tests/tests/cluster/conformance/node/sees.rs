//! What a container finds around it: its command, environment, user and files.

use anyhow::{Context, Result, ensure};
use decapod_tests::cluster::Cluster;
use decapod_tests::suite::Test;
use serde_json::{Value, json};

use super::{container, phase, pod, sh, stage};

pub(super) const TESTS: &[Test<Cluster>] = &[
    ("[sig-node] ConfigMap should be consumable as environment variable names with various prefixes", |c| {
        stage(c)?.says("env", "map-prefix", &["data_1=value-1", "p-data_1=value-1"])
    }),
    ("[sig-node] ConfigMap should be consumable via environment variable", |c| {
        stage(c)?.says("env", "map-one", &["ONE=value-1"])
    }),
    ("[sig-node] ConfigMap should be consumable via the environment", |c| {
        stage(c)?.says("env", "map-all", &["data_1=value-1", "data_2=value-2"])
    }),
    (
        "[sig-node] Secrets should be consumable as environment variable names variable names with various prefixes",
        |c| stage(c)?.says("env", "secret-prefix", &["key_1=hidden-1", "p-key_1=hidden-1"]),
    ),
    ("[sig-node] Secrets should be consumable from pods in env vars", |c| {
        stage(c)?.says("env", "secret-one", &["ONE=hidden-1"])
    }),
    ("[sig-node] Secrets should be consumable via the environment", |c| {
        stage(c)?.says("env", "secret-all", &["key_1=hidden-1"])
    }),
    (
        "[sig-node] Downward API should provide container's limits.cpu/memory and requests.cpu/memory as env vars",
        |c| {
            let lines =
                ["CPU_LIMIT=2", "MEMORY_LIMIT=67108864", "CPU_REQUEST=125", "MEMORY_REQUEST=33554432"];
            stage(c)?.says("env", "resources", &lines)
        },
    ),
    ("[sig-node] Downward API should provide default limits.cpu/memory from node allocatable", allocatable),
    ("[sig-node] Downward API should provide host IP as an env var", |c| {
        let address = host_ip(c)?;
        stage(c)?.says("env", "names", &[&format!("HOST_IP={address}")])
    }),
    ("[sig-node] Downward API should provide hostIPs as an env var", |c| {
        let address = host_ip(c)?;
        stage(c)?.says("env", "names", &[&format!("HOST_IPS={address}")])
    }),
    ("[sig-node] Downward API should provide pod UID as env vars", |c| {
        let uid = stage(c)?.ended("env")?["metadata"]["uid"].as_str().context("no uid")?.to_owned();
        stage(c)?.says("env", "names", &[&format!("POD_UID={uid}")])
    }),
    ("[sig-node] Downward API should provide pod name, namespace and IP address as env vars", |c| {
        let pod = stage(c)?.ended("env")?;
        let address = format!("POD_IP={}", pod["status"]["podIP"].as_str().context("no address")?);
        stage(c)?.says("env", "names", &["POD_NAME=env", "POD_NAMESPACE=conf-node", &address])
    }),
    ("[sig-node] Variable Expansion should allow composing env vars into new env vars", |c| {
        stage(c)?.says("env", "composed", &["FOOBAR=foo;;bar", "LITERAL=$(FOO)"])
    }),
    ("[sig-node] Variable Expansion should allow substituting values in a container's args", |c| {
        stage(c)?.says("words", "expanded-args", &["test-value"])
    }),
    ("[sig-node] Variable Expansion should allow substituting values in a container's command", |c| {
        stage(c)?.says("words", "expanded-command", &["test-value"])
    }),
    ("[sig-node] Pods should contain environment variables for services", services),
    ("[sig-node] Containers should use the image defaults if command and args are blank", |c| {
        let pod = stage(c)?.ended("words")?;
        // The entrypoint is a shell: without input it has nothing to do.
        let state = &container(&pod, "defaults")["state"]["terminated"];
        ensure!(state["exitCode"] == 0, "{state}");
        Ok(())
    }),
    ("[sig-node] Containers should be able to override the image's default arguments (container cmd)", |c| {
        stage(c)?.says("words", "args", &["override arguments"])
    }),
    (
        "[sig-node] Containers should be able to override the image's default command (container entrypoint)",
        |c| stage(c)?.says("words", "command", &["conf-node words"]),
    ),
    ("[sig-node] Containers should be able to override the image's default command and arguments", |c| {
        stage(c)?.says("words", "both", &["override both"])
    }),
    ("[sig-node] Kubelet when scheduling a busybox command in a pod should print the output to logs", |c| {
        ensure!(stage(c)?.said("words", "both")? == "override both\n");
        Ok(())
    }),
    (
        "[sig-node] Kubelet when scheduling an agnhost Pod with hostAliases should write entries to /etc/hosts",
        |c| stage(c)?.says("words", "hosts", &["123.45.67.89\tfoo\tbar"]),
    ),
    ("[sig-node] KubeletManagedEtcHosts should test kubelet managed /etc/hosts file", hosts_files),
    (
        "[sig-node] Security Context When creating a container with runAsUser should run the container with uid 65534",
        |c| stage(c)?.says("secure", "nobody", &["uid=65534 gid=0 groups=0"]),
    ),
    (
        "[sig-node] Security Context When creating a pod with privileged should run the container as unprivileged when false",
        |c| stage(c)?.says("secure", "unprivileged", &["denied"]),
    ),
    (
        "[sig-node] Security Context When creating a pod with readOnlyRootFilesystem should run the container with writable rootfs when readOnlyRootFilesystem=false",
        |c| stage(c)?.says("secure", "writable", &["written"]),
    ),
    (
        "[sig-node] Kubelet when scheduling a read only busybox container should not write to root filesystem",
        |c| stage(c)?.says("secure", "read-only", &["denied"]),
    ),
    (
        "[sig-node] Security Context should support container.SecurityContext.RunAsUser And container.SecurityContext.RunAsGroup",
        |c| stage(c)?.says("secure", "user-group", &["uid=1001 gid=2002 groups=2002"]),
    ),
    (
        "[sig-node] Security Context should support pod.Spec.SecurityContext.RunAsUser And pod.Spec.SecurityContext.RunAsGroup",
        |c| stage(c)?.says("secure-pod", "c", &["uid=1003 gid=2004 groups=2004,5005"]),
    ),
    (
        "[sig-node] Security Context when creating containers with AllowPrivilegeEscalation should not allow privilege escalation when false",
        |c| stage(c)?.says("secure", "no-escalation", &["NoNewPrivs:\t1"]),
    ),
    ("[sig-node] Sysctls should support sysctls", |c| stage(c)?.says("secure-pod", "sysctl", &["1"])),
    ("[sig-node] Sysctls should reject invalid sysctls", invalid_sysctls),
    ("[sig-node] Variable Expansion should allow substituting values in a volume subpath", |c| {
        stage(c)?.says("subpath", "c", &["sub=subpath"])
    }),
    ("[sig-node] Variable Expansion should succeed in writing subpaths in container", |c| {
        stage(c)?.says("subpath", "reader", &["written below"])
    }),
    (
        "[sig-node] Variable Expansion should fail substituting values in a volume subpath with backticks",
        |c| subpath_fails(c, "subpath-backticks"),
    ),
    (
        "[sig-node] Variable Expansion should fail substituting values in a volume subpath with absolute path",
        |c| subpath_fails(c, "subpath-absolute"),
    ),
    (
        "[sig-node] Variable Expansion should verify that a failing subpath expansion can be modified during the lifecycle of a container",
        |c| {
            let scene = stage(c)?;
            subpath_fails(c, "subpath-mended")?;
            scene.k(&["annotate", "pod/subpath-mended", "--overwrite", "path=mended"])?;
            ensure!(phase(&scene.ended("subpath-mended")?) == "Succeeded");
            Ok(())
        },
    ),
    ("[sig-node] Pods should get a host IP", |c| host_ip(c).map(drop)),
];

/// What the pods refer to.
pub(super) fn objects() -> Vec<Value> {
    let data = json!({"data_1": "value-1", "data_2": "value-2"});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "map"}, "data": data});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"},
        "stringData": {"key_1": "hidden-1"}});
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "fooservice"},
        "spec": {"selector": {"app": "handler"}, "ports": [{"port": 8765, "targetPort": 80}]}});
    vec![map, secret, service]
}

pub(super) fn pods() -> Vec<Value> {
    vec![environments(), words(), secure(), secure_pod()]
        .into_iter()
        .chain(hosts_pods())
        .chain(subpaths())
        .collect()
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn resource(name: &str, resource: &str, divisor: &str) -> Value {
    json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": divisor}}})
}

fn environments() -> Value {
    // Without a shell, which hands on no name that it could not use itself.
    let env = |name: &str, more: Value| {
        let mut container = sh(name, "", more);
        container["command"] = json!(["env"]);
        container
    };
    let from = |kind: &str, name: &str| json!({"envFrom": [{kind: {"name": name}}, {"prefix": "p-", kind: {"name": name}}]});
    let one = |kind: &str, name: &str, key: &str| json!({"env": [{"name": "ONE", "valueFrom": {kind: {"name": name, "key": key}}}]});
    let names = [
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_UID", "metadata.uid"),
        field("POD_IP", "status.podIP"),
        field("HOST_IP", "status.hostIP"),
        field("HOST_IPS", "status.hostIPs"),
    ];
    let limits = |divisors: [&str; 2]| {
        [
            resource("CPU_LIMIT", "limits.cpu", divisors[0]),
            resource("MEMORY_LIMIT", "limits.memory", divisors[1]),
        ]
    };
    let mut resources = limits(["1", "1"]).to_vec();
    resources.push(resource("CPU_REQUEST", "requests.cpu", "1m"));
    resources.push(resource("MEMORY_REQUEST", "requests.memory", "1"));
    let amounts =
        json!({"requests": {"cpu": "125m", "memory": "32Mi"}, "limits": {"cpu": "1250m", "memory": "64Mi"}});
    let plain = |name: &str, value: &str| json!({"name": name, "value": value});
    let composed = [
        plain("FOO", "foo"),
        plain("BAR", "bar"),
        plain("FOOBAR", "$(FOO);;$(BAR)"),
        plain("LITERAL", "$$(FOO)"),
    ];
    let containers = [
        env("map-prefix", from("configMapRef", "map")),
        env("map-one", one("configMapKeyRef", "map", "data_1")),
        env("map-all", json!({"envFrom": [{"configMapRef": {"name": "map"}}]})),
        env("secret-prefix", from("secretRef", "secret")),
        env("secret-one", one("secretKeyRef", "secret", "key_1")),
        env("secret-all", json!({"envFrom": [{"secretRef": {"name": "secret"}}]})),
        env("names", json!({"env": names})),
        env("resources", json!({"env": resources, "resources": amounts})),
        env("defaults", json!({"env": limits(["1m", "1"])})),
        env("composed", json!({"env": composed})),
        env("services", json!({})),
    ];
    pod("env", json!(containers), json!({}))
}

fn words() -> Value {
    let value = json!([{"name": "TEST_VAR", "value": "test-value"}]);
    let script = "[ \"$0\" = conf-node ] && echo conf-node $1";
    let containers = json!([
        {"name": "defaults", "image": "busybox:1"},
        {"name": "args", "image": "busybox:1", "args": ["-c", "echo override arguments"]},
        {"name": "command", "image": "busybox:1", "command": ["sh", "-c", script, "conf-node", "words"]},
        {"name": "both", "image": "busybox:1", "command": ["/bin/echo"], "args": ["override", "both"]},
        {"name": "expanded-args", "image": "busybox:1", "env": value, "args": ["-c", "echo $(TEST_VAR)"]},
        {"name": "expanded-command", "image": "busybox:1", "env": value, "command": ["echo", "$(TEST_VAR)"]},
        {"name": "hosts", "image": "busybox:1", "command": ["cat", "/etc/hosts"]},
    ]);
    pod("words", containers, json!({"hostAliases": [{"ip": "123.45.67.89", "hostnames": ["foo", "bar"]}]}))
}

fn secure() -> Value {
    let with = |context: Value| json!({ "securityContext": context });
    let containers = [
        sh("nobody", "id", with(json!({"runAsUser": 65534}))),
        sh(
            "unprivileged",
            "ip link add dummy0 type dummy 2>/dev/null && echo made || echo denied",
            with(json!({"privileged": false})),
        ),
        sh(
            "writable",
            "echo written > /checkfile && cat /checkfile",
            with(json!({"readOnlyRootFilesystem": false})),
        ),
        sh(
            "read-only",
            "echo x 2>/dev/null > /checkfile && echo written || echo denied",
            with(json!({"readOnlyRootFilesystem": true})),
        ),
        sh("user-group", "id", with(json!({"runAsUser": 1001, "runAsGroup": 2002}))),
        sh(
            "no-escalation",
            "grep NoNewPrivs /proc/self/status",
            with(json!({"runAsUser": 1000, "allowPrivilegeEscalation": false})),
        ),
    ];
    pod("secure", json!(containers), json!({}))
}

fn secure_pod() -> Value {
    let containers =
        [sh("c", "id", json!({})), sh("sysctl", "cat /proc/sys/kernel/shm_rmid_forced", json!({}))];
    let context = json!({"runAsUser": 1003, "runAsGroup": 2004, "supplementalGroups": [5005],
        "sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]});
    pod("secure-pod", json!(containers), json!({"securityContext": context}))
}

fn hosts_pods() -> [Value; 2] {
    let show = "cat /etc/hosts";
    let volume = json!([{"name": "own", "hostPath": {"path": "/etc/hosts", "type": "File"}}]);
    let own = json!({"volumeMounts": [{"name": "own", "mountPath": "/etc/hosts"}]});
    let containers = json!([sh("managed", show, json!({})), sh("own", show, own)]);
    let host = pod("hosts-on-node", json!([sh("c", show, json!({}))]), json!({"hostNetwork": true}));
    [pod("hosts", containers, json!({"volumes": volume})), host]
}

fn subpaths() -> Vec<Value> {
    let mounts = |expression: &str| json!([{"name": "v", "mountPath": "/sub", "subPathExpr": expression}, {"name": "v", "mountPath": "/whole"}]);
    let volume = json!([{"name": "v", "emptyDir": {}}]);
    let one = |name: &str, path: &str, script: &str| {
        let env = json!([field("SUB", "metadata.annotations['path']")]);
        let container = sh("c", script, json!({"env": env, "volumeMounts": mounts("$(SUB)")}));
        let mut pod = pod(name, json!([container]), json!({"volumes": volume}));
        pod["metadata"]["annotations"] = json!({ "path": path });
        pod
    };
    let script = "echo sub=$SUB; echo written below > /sub/file; ls -d /whole/subpath";
    let mut good = one("subpath", "subpath", script);
    let read = "until [ -s /whole/subpath/file ]; do sleep 0.1; done; cat /whole/subpath/file";
    let reader = sh("reader", read, json!({"volumeMounts": mounts("other")}));
    good["spec"]["containers"] = json!([good["spec"]["containers"][0].clone(), reader]);
    vec![
        good,
        one("subpath-backticks", "..", "true"),
        one("subpath-absolute", "/tmp", "true"),
        one("subpath-mended", "/tmp", "true"),
    ]
}

fn host_ip(cluster: &Cluster) -> Result<String> {
    let nodes = cluster.get(&["nodes"])?;
    let mut addresses = nodes["items"][0]["status"]["addresses"].as_array().into_iter().flatten();
    let internal = addresses.find(|one| one["type"] == "InternalIP").context("no InternalIP")?;
    let address = internal["address"].as_str().context("no address")?.to_owned();
    let pod = stage(cluster)?.until("pod/env", "its host", |pod| pod["status"]["hostIP"].is_string())?;
    ensure!(pod["status"]["hostIP"] == address.as_str(), "{:#}", pod["status"]);
    Ok(address)
}

fn allocatable(cluster: &Cluster) -> Result<()> {
    let said = stage(cluster)?.said("env", "defaults")?;
    let of = |name: &str| {
        said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')?.parse::<i64>().ok())
    };
    let nodes = cluster.get(&["nodes"])?;
    let cpus = nodes["items"][0]["status"]["allocatable"]["cpu"].as_str().context("no cpu")?.to_owned();
    let millis = match cpus.strip_suffix('m') {
        Some(millis) => millis.parse::<i64>()?,
        None => cpus.parse::<i64>()? * 1000,
    };
    ensure!(of("CPU_LIMIT") == Some(millis) && of("MEMORY_LIMIT") > Some(0), "{said}");
    Ok(())
}

fn services(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    let service = scene.get(&["service/fooservice"])?;
    let address = service["spec"]["clusterIP"].as_str().context("no address")?;
    let lines = [
        format!("FOOSERVICE_SERVICE_HOST={address}"),
        "FOOSERVICE_SERVICE_PORT=8765".to_owned(),
        format!("FOOSERVICE_PORT=tcp://{address}:8765"),
        format!("FOOSERVICE_PORT_8765_TCP=tcp://{address}:8765"),
        "FOOSERVICE_PORT_8765_TCP_PROTO=tcp".to_owned(),
        "FOOSERVICE_PORT_8765_TCP_PORT=8765".to_owned(),
        format!("FOOSERVICE_PORT_8765_TCP_ADDR={address}"),
    ];
    scene.says("env", "services", &lines.each_ref().map(String::as_str))
}

fn hosts_files(cluster: &Cluster) -> Result<()> {
    const MANAGED: &str = "# Kubernetes-managed hosts file.";
    let scene = stage(cluster)?;
    ensure!(scene.said("hosts", "managed")?.contains(MANAGED));
    ensure!(!scene.said("hosts", "own")?.contains(MANAGED));
    ensure!(!scene.said("hosts-on-node", "c")?.contains(MANAGED));
    Ok(())
}

fn invalid_sysctls(cluster: &Cluster) -> Result<()> {
    let scene = stage(cluster)?;
    let sysctls =
        ["foo-", "kernel.shmmax", "safe-and-unsafe", "bar.."].map(|name| json!({"name": name, "value": "1"}));
    let context = json!({"securityContext": {"sysctls": sysctls}});
    let refused = pod("sysctls", json!([sh("c", "true", json!({}))]), context);
    let error = scene.create(&refused).err().context("it was created")?.to_string();
    for wrong in ["Invalid value: \"foo-\"", "Invalid value: \"bar..\""] {
        ensure!(error.contains(wrong), "{error}");
    }
    ensure!(!error.contains("safe-and-unsafe") && !error.contains("kernel.shmmax"), "{error}");
    Ok(())
}

fn subpath_fails(cluster: &Cluster, name: &str) -> Result<()> {
    let waits =
        |pod: &Value| container(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError";
    stage(cluster)?.until(&format!("pod/{name}"), "the refusal of its path", waits).map(drop)
}
