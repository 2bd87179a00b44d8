//! What Kubernetes' conformance entries demand of the API server alone, each by a test of the entry's own
//! name: written from the entries' descriptions. `cargo xtask conformance` finds them by their names.
//!
//! Nothing here waits for a time to pass: that an event does not come is shown by the one that comes next.

mod accounts;
mod discovery;
mod fields;
mod flow;
mod storage;
mod watchers;

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::harness::Client;

/// Far longer than anything takes on a slow machine; only for what never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// An open watch, read event by event.
pub(crate) struct Watch {
    chunks: BoxStream<'static, kube::Result<bytes::Bytes>>,
    buffer: Vec<u8>,
}

impl Watch {
    /// Opens a watch of what the path selects; more of the query in `query`.
    pub(crate) async fn open(client: &Client, path: &str, query: &str) -> Self {
        let request = http::Request::get(format!("{path}?watch=1&{query}"));
        let response = client.0.send(request.body(kube::client::Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200, "{path}?{query}");
        let chunks = response.into_body().into_data_stream().map_err(kube::Error::from).boxed();
        Self { chunks, buffer: Vec::new() }
    }

    /// Opens a watch of what happens from now on.
    pub(crate) async fn from_now(client: &Client, path: &str, query: &str) -> Self {
        let (code, list) = client.get(&format!("{path}?limit=1&{query}")).await;
        assert_eq!(code, 200, "{list}");
        let version = list["metadata"]["resourceVersion"].as_str().unwrap();
        Self::open(client, path, &format!("{query}&resourceVersion={version}")).await
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let chunk = tokio::time::timeout(PATIENCE, self.chunks.next()).await.expect("an event in time");
            self.buffer.extend(chunk.expect("the watch goes on").unwrap());
        }
    }

    /// The next event, as its type, the object's name and its resource version.
    pub(crate) async fn brief(&mut self) -> (String, String, String) {
        let event = self.next().await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let meta = &event["object"]["metadata"];
        (text(&event["type"]), text(&meta["name"]), text(&meta["resourceVersion"]))
    }

    /// Reads one event and says what it is.
    pub(crate) async fn expect(&mut self, kind: &str, name: &str) -> Value {
        let event = self.next().await;
        let found = (&event["type"], &event["object"]["metadata"]["name"]);
        assert_eq!(found, (&json!(kind), &json!(name)), "{event}");
        event["object"].clone()
    }
}

pub(crate) fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|i| i["metadata"]["name"].as_str().unwrap()).collect()
}

/// A kind of the cluster whose entry demands its discovery and all its verbs.
pub(crate) struct Operations {
    pub(crate) group: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) subresources: &'static [&'static str],
    pub(crate) make: fn(&str) -> Value,
}

impl Operations {
    pub(crate) fn path(&self) -> String {
        format!("/apis/{}/v1/{}", self.group, self.plural)
    }

    /// The group, its version, the resource and its subresources are in the documents of discovery.
    pub(crate) async fn are_discovered(&self, admin: &Client) {
        let (_, groups) = admin.get("/apis").await;
        let group = groups["groups"].as_array().unwrap().iter().find(|one| one["name"] == self.group);
        assert!(group.is_some(), "{groups}");
        let (_, group) = admin.get(&format!("/apis/{}", self.group)).await;
        let version = format!("{}/v1", self.group);
        let mut versions = group["versions"].as_array().unwrap().iter();
        assert!(versions.any(|one| one["groupVersion"] == version.as_str()), "{group}");
        let (_, document) = admin.get(&format!("/apis/{version}")).await;
        let verbs = |name: &str| -> Vec<String> {
            let mut resources = document["resources"].as_array().unwrap().iter();
            let found = resources.find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"));
            serde_json::from_value(found["verbs"].clone()).unwrap()
        };
        assert_eq!(
            verbs(self.plural),
            ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        );
        for sub in self.subresources {
            assert_eq!(verbs(&format!("{}/{sub}", self.plural)), ["get", "patch", "update"]);
        }
    }

    /// Every verb of the resource itself, on three objects that are gone afterwards.
    pub(crate) async fn all_work(&self, admin: &Client) {
        let (path, selector) = (self.path(), "labelSelector=e2e%3Dops");
        let mut watch = Watch::from_now(admin, &path, selector).await;
        for name in ["ops-a", "ops-b", "ops-c"] {
            let mut object = (self.make)(name);
            object["metadata"]["labels"] = json!({"e2e": "ops"});
            let made = admin.created(&path, object).await;
            assert!(made["metadata"]["uid"].is_string());
            watch.expect("ADDED", name).await;
        }
        let one = format!("{path}/ops-a");
        let (code, present) = admin.get(&one).await;
        assert_eq!((code, &present["metadata"]["name"]), (200, &json!("ops-a")), "{present}");
        let (_, list) = admin.get(&format!("{path}?{selector}")).await;
        assert_eq!(names(&list), ["ops-a", "ops-b", "ops-c"]);
        let patch = json!({"metadata": {"annotations": {"patched": "true"}}});
        let (code, mut patched) = admin.patch(&one, "merge-patch", patch).await;
        assert_eq!(
            (code, &patched["metadata"]["annotations"]["patched"]),
            (200, &json!("true")),
            "{patched}"
        );
        let event = watch.expect("MODIFIED", "ops-a").await;
        assert_eq!(event["metadata"]["annotations"]["patched"], "true");
        patched["metadata"]["annotations"]["updated"] = json!("true");
        let (code, updated) = admin.update(&one, patched).await;
        assert_eq!(
            (code, &updated["metadata"]["annotations"]["updated"]),
            (200, &json!("true")),
            "{updated}"
        );
        let event = watch.expect("MODIFIED", "ops-a").await;
        assert_eq!(event["metadata"]["annotations"]["updated"], "true");
        assert_eq!(admin.delete(&one).await.0, 200);
        watch.expect("DELETED", "ops-a").await;
        assert_eq!(admin.get(&one).await.0, 404);
        assert_eq!(admin.delete(&format!("{path}?{selector}")).await.0, 200);
        let mut gone = [watch.brief().await, watch.brief().await].map(|(kind, name, _)| (kind, name));
        gone.sort();
        assert_eq!(gone, ["ops-b", "ops-c"].map(|name| ("DELETED".to_owned(), name.to_owned())));
        let (_, list) = admin.get(&format!("{path}?{selector}")).await;
        assert_eq!(names(&list), [""; 0]);
    }

    /// Reads, patches and updates the status of an object of this name: each condition that is written is there.
    pub(crate) async fn status_works(&self, admin: &Client, name: &str) {
        let status = format!("{}/{name}/status", self.path());
        let (code, _) = admin.get(&status).await;
        assert_eq!(code, 200);
        let condition = |type_: &str| {
            json!({"type": type_, "status": "False", "reason": "E2E", "message": "written by a test",
                "lastTransitionTime": "2026-01-02T03:04:05Z"})
        };
        let has = |object: &Value, type_: &str| {
            let conditions = object["status"]["conditions"].as_array().unwrap();
            assert!(conditions.iter().any(|one| one["type"] == type_), "{object}");
        };
        let patch = json!({"status": {"conditions": [condition("StatusPatched")]}});
        let (code, mut present) = admin.patch(&status, "merge-patch", patch).await;
        assert_eq!(code, 200, "{present}");
        has(&present, "StatusPatched");
        present["status"]["conditions"].as_array_mut().unwrap().push(condition("StatusUpdated"));
        let (code, updated) = admin.update(&status, present).await;
        assert_eq!(code, 200, "{updated}");
        has(&updated, "StatusPatched");
        has(&updated, "StatusUpdated");
    }
}
