//! Volumes as a container sees them.

use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::{IMAGE, World, container, sh};

/// A claim is waited for; its volume becomes the pod's group's; an image is a volume that nobody writes to; a path in
/// a volume is what the variables say.
pub(crate) async fn claims_images_and_expanded_paths_are_mounted() {
    let world = World::new().await;
    let local = tempfile::tempdir().unwrap();
    std::fs::write(local.path().join("file"), "kept").unwrap();
    let script = "b=/bin/busybox; set -e; \
        [ \"$(/bin/cat /data/file)\" = kept ]; echo more > /data/more; \
        [ \"$($b stat -c %g /data/file)\" = 4711 ]; \
        $b cmp /image/bin/busybox /bin/busybox; if echo x > /image/x; then exit 7; fi; \
        if /image/bin/busybox true; then exit 8; fi; \
        /bin/busybox cmp /program /bin/busybox; echo here > /sub/file";
    let mut spec = sh(script);
    spec["restartPolicy"] = json!("Never");
    spec["securityContext"] = json!({"fsGroup": 4711});
    spec["volumes"] = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "image", "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}},
        {"name": "scratch", "hostPath": {"path": local.path(), "type": "Directory"}},
    ]);
    spec["containers"][0]["env"] = json!([{"name": "WHERE", "value": "deep"}]);
    spec["containers"][0]["volumeMounts"] = json!([
        {"name": "data", "mountPath": "/data"},
        {"name": "image", "mountPath": "/image"},
        {"name": "image", "mountPath": "/program", "subPath": "bin/busybox"},
        {"name": "scratch", "mountPath": "/sub", "subPathExpr": "sub/$(WHERE)"},
    ]);
    world.create("p", spec);
    world.until("p", "told of", |_| world.api.reasons("p").contains(&"FailedMount".to_owned())).await;
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {}, "spec": {
        "local": {"path": local.path()}, "claimRef": {"namespace": "default", "name": "data", "uid": "claim"}}});
    world.api.put("persistentvolumes", "", "pv", volume);
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {},
        "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
    world.api.put("persistentvolumeclaims", "default", "data", claim);
    // The volume is of the claim of this uid.
    let uid = world.api.get("persistentvolumeclaims", "default", "data").unwrap()["metadata"]["uid"].clone();
    let mut volume = world.api.get("persistentvolumes", "", "pv").unwrap();
    volume["spec"]["claimRef"]["uid"] = uid;
    world.api.put("persistentvolumes", "", "pv", volume);
    let done = world
        .until("p", "done", |p| matches!(p["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
        .await;
    assert_eq!(container(&done)["state"]["terminated"]["exitCode"], 0, "{:#}", done["status"]);
    assert_eq!(std::fs::read_to_string(local.path().join("more")).unwrap(), "more\n");
    assert_eq!(std::fs::read_to_string(local.path().join("sub/deep/file")).unwrap(), "here\n");
    assert_eq!(std::fs::metadata(local.path()).unwrap().gid(), 4711);
    world.api.delete("p", 0);
    world.until("p", "gone", Value::is_null).await;
    assert!(local.path().join("file").exists(), "what a volume stands for outlives the pod");
    world.end().await;
}
