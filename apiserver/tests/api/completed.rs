//! What the server adds to objects as they are made and replaced, beyond the defaults of their fields.

use serde_json::{Value, json};

use crate::harness::Cluster;

const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const DAEMONS: &str = "/apis/apps/v1/namespaces/default/daemonsets";
const TEMPLATES: &str = "deprecated.daemonset.template.generation";

fn template(image: &str, policy: &str) -> Value {
    json!({"metadata": {"labels": {"a": "b"}},
        "spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": image}]}})
}

#[tokio::test]
async fn a_claim_says_in_both_fields_where_its_data_comes_from() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let claim = |name: &str, field: &str, source: &Value| {
        json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], field: source,
            "resources": {"requests": {"storage": "1Gi"}}}})
    };
    let other = json!({"kind": "PersistentVolumeClaim", "name": "other"});
    let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
    let unknown = json!({"apiGroup": "example.com", "kind": "Populator", "name": "p"});
    for (name, field, source) in [
        ("old", "dataSource", &other),
        ("new", "dataSourceRef", &snapshot),
        ("any", "dataSourceRef", &unknown),
    ] {
        let spec = admin.created(CLAIMS, claim(name, field, source)).await["spec"].clone();
        assert_eq!((&spec["dataSource"], &spec["dataSourceRef"]), (source, source), "{name}");
    }
    let spec = admin.created(CLAIMS, claim("none", "dataSource", &unknown)).await["spec"].clone();
    assert_eq!((&spec["dataSource"], &spec["dataSourceRef"]), (&Value::Null, &Value::Null));
    // A client that knows the older field only writes its claim back.
    let mine = {
        let mut claim = admin.get(&format!("{CLAIMS}/old")).await.1;
        claim["spec"].as_object_mut().unwrap().remove("dataSourceRef");
        claim["metadata"]["labels"] = json!({"a": "b"});
        claim
    };
    let (code, answer) = admin.update(&format!("{CLAIMS}/old"), mine).await;
    assert_eq!((code, &answer["spec"]["dataSourceRef"]), (200, &other), "{answer}");
}

#[tokio::test]
async fn statuses_begin_with_their_counts_and_jobs_bear_the_labels_of_their_pods() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let selector = json!({"matchLabels": {"a": "b"}});
    let spec = json!({"selector": selector, "template": template("x:1", "Always")});
    let set = admin.created(DAEMONS, json!({"metadata": {"name": "d"}, "spec": spec})).await;
    let counts = ["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"];
    assert!(counts.iter().all(|count| set["status"][*count] == 0), "{set}");
    let templates = |set: &Value| set["metadata"]["annotations"][TEMPLATES].clone();
    assert_eq!(templates(&set), "1");
    let path = format!("{DAEMONS}/d");
    let (_, same) = admin.patch(&path, "merge-patch", json!({"metadata": {"annotations": null}})).await;
    assert_eq!(templates(&same), "1", "{same}");
    let (_, next) =
        admin.patch(&path, "merge-patch", json!({"spec": {"template": template("x:2", "Always")}})).await;
    assert_eq!(templates(&next), "2", "{next}");
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": selector}});
    let budget = admin.created(budgets, budget).await;
    assert_eq!(
        (&budget["status"]["disruptionsAllowed"], &budget["status"]["expectedPods"]),
        (&json!(0), &json!(0))
    );
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let mut bare = template("x:1", "Never");
    bare.as_object_mut().unwrap().remove("metadata");
    let job = admin.created(jobs, json!({"metadata": {"name": "j"}, "spec": {"template": bare}})).await;
    assert_eq!(job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]);
    assert_eq!(job["metadata"]["labels"]["batch.kubernetes.io/job-name"], "j");
    let own = json!({"metadata": {"name": "k", "labels": {"own": "yes"}}, "spec": {"template": template("x:1", "Never")}});
    assert_eq!(admin.created(jobs, own).await["metadata"]["labels"], json!({"own": "yes"}));
}
