"""The typed and the dynamic client: objects, patches, watches, errors, and the election of a leader."""

import json
import threading

from common import NAMESPACE, PATIENCE, check, connect, until
from kubernetes import client, dynamic, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "sleeper", "labels": {"app": "sleeper"}},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"]}],
    },
}


def typed(core):
    """Create, read, patch and delete with models."""
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="typed-"), data={"a": "1"})
    made = core.create_namespaced_config_map(NAMESPACE, body)
    name = made.metadata.name
    check("a name is generated", name.startswith("typed-") and len(name) > 6, name)
    patched = core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"b": "2"}})
    check("a patch merges", patched.data == {"a": "1", "b": "2"}, patched.data)
    patched.data["c"] = "3"
    replaced = core.replace_namespaced_config_map(name, NAMESPACE, patched)
    made.data = {}
    try:
        core.replace_namespaced_config_map(name, NAMESPACE, made)
        check("an old version is refused", False, made)
    except ApiException as error:
        check("an old version is refused", error.status == 409 and error.reason == "Conflict", error)
    listed = core.list_namespaced_config_map(NAMESPACE, field_selector=f"metadata.name={name}")
    check("a field selector finds it", [i.metadata.name for i in listed.items] == [name], listed.items)
    check("its last version is listed", listed.items[0].data == replaced.data, listed.items[0].data)
    pages, token = [], None
    while token is None or token:
        page = core.list_namespaced_config_map(NAMESPACE, limit=1, _continue=token or None)
        pages += page.items
        token = page.metadata._continue or ""
    check("pages make the whole list", len(pages) >= 2, len(pages))
    core.delete_namespaced_config_map(name, NAMESPACE)
    try:
        core.read_namespaced_config_map(name, NAMESPACE)
        check("what was deleted is gone", False, name)
    except ApiException as error:
        check("what was deleted is gone", error.status == 404 and "not found" in error.body, error.body)


def watched(core):
    """A watch tells the life of a pod in order."""
    start = core.list_namespaced_pod(NAMESPACE).metadata.resource_version
    core.create_namespaced_pod(NAMESPACE, POD)
    seen = []
    watcher = watch.Watch()
    for event in watcher.stream(
        core.list_namespaced_pod,
        NAMESPACE,
        label_selector="app=sleeper",
        resource_version=start,
        timeout_seconds=PATIENCE,
    ):
        kind, pod = event["type"], event["object"]
        seen.append(kind)
        if kind == "MODIFIED" and pod.status.phase == "Running" and not pod.metadata.deletion_timestamp:
            core.delete_namespaced_pod("sleeper", NAMESPACE)
        if kind == "DELETED":
            watcher.stop()
    check("a watch tells a pod's life", seen[0] == "ADDED" and seen[-1] == "DELETED", seen)


def dynamically(api):
    """The dynamic client discovers what there is, and applies."""
    cluster = dynamic.DynamicClient(api)
    deployments = cluster.resources.get(api_version="apps/v1", kind="Deployment")
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "dynamic", "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "dynamic"}},
            "template": {"metadata": {"labels": {"app": "dynamic"}}, "spec": POD["spec"]},
        },
    }
    deployments.create(body=body, namespace=NAMESPACE)
    until(
        "the deployment to be available",
        lambda: deployments.get(name="dynamic", namespace=NAMESPACE).status.availableReplicas == 1,
    )
    print("ok: a deployment made dynamically becomes available")
    patch = [{"op": "replace", "path": "/spec/replicas", "value": 0}]
    patched = deployments.patch(
        body=patch, name="dynamic", namespace=NAMESPACE, content_type="application/json-patch+json"
    )
    check("a JSON patch is taken", patched.spec.replicas == 0, patched.spec)
    events = cluster.resources.get(api_version="v1", kind="Event").get(namespace=NAMESPACE)
    check("events tell of it", any(e.reason == "ScalingReplicaSet" for e in events.items), len(events.items))
    deployments.delete(name="dynamic", namespace=NAMESPACE)


def elected():
    """Of two candidates one leads."""
    leading, done = [], threading.Event()

    def lead(who):
        leading.append(who)
        done.set()
        threading.Event().wait()

    for who in ["one", "two"]:
        lock = ConfigMapLock("leader", NAMESPACE, who)
        configuration = electionconfig.Config(
            lock,
            lease_duration=17,
            renew_deadline=15,
            retry_period=5,
            onstarted_leading=lambda who=who: lead(who),
            onstopped_leading=lambda: None,
        )
        election = leaderelection.LeaderElection(configuration)
        threading.Thread(target=election.run, daemon=True).start()
    check("a leader is elected", done.wait(PATIENCE), leading)
    lock = CORE.read_namespaced_config_map("leader", NAMESPACE)
    record = json.loads(lock.metadata.annotations["control-plane.alpha.kubernetes.io/leader"])
    check("and it is one", leading == [record["holderIdentity"]], (leading, record))


CORE = connect()
typed(CORE)
watched(CORE)
dynamically(CORE.api_client)
elected()
