//! `/logs/`: the files below `/var/log` of the node, and lists of its folders; and `/configz`: the settings that the
//! kubelet runs with, by the names of `KubeletConfiguration`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{self, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use crate::Options;
use crate::shared::Shared;
use decapod_cri::stream::Refusal;

/// What is served.
const ROOT: &str = "/var/log";

pub(super) async fn configz(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(json!({"kubeletconfig": config(&shared.options)}))
}

fn config(options: &Options) -> Value {
    let texts =
        |addresses: &[std::net::IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut config = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "clusterDNS": texts(&options.cluster_dns),
        "clusterDomain": options.cluster_domain,
        "maxPods": options.max_pods,
        "resolvConf": options.resolv_conf,
        "cgroupRoot": options.cgroup_root,
        "podLogsDir": crate::shared::logs_root(&options.data_dir),
        "enableServer": options.server.is_some(),
        "registerNode": true,
        "authentication": {"anonymous": {"enabled": false}},
        "containerLogMaxSize": options.logs.max_size.to_string(),
        "containerLogMaxFiles": options.logs.max_files,
        "containerLogMonitorInterval": seconds(options.logs.period),
        "evictionHard": thresholds(options, |threshold| threshold.grace.is_none()),
        "evictionPressureTransitionPeriod": seconds(options.eviction.transition),
        "evictionMaxPodGracePeriod": options.eviction.max_grace.as_secs(),
    });
    let soft = thresholds(options, |threshold| threshold.grace.is_some());
    if !soft.is_empty() {
        config["evictionSoft"] = json!(soft);
    }
    let reserved = options.reserved;
    if reserved != crate::Reserved::default() {
        config["systemReserved"] = json!({
            "cpu": format!("{}m", reserved.cpu),
            "memory": reserved.memory.to_string(),
            "ephemeral-storage": reserved.storage.to_string(),
        });
    }
    if let Some(server) = &options.server {
        config["address"] = json!(server.listen.ip().to_string());
        config["port"] = json!(server.listen.port());
    }
    if !options.taints.is_empty() {
        config["registerWithTaints"] = json!(options.taints);
    }
    config
}

fn seconds(duration: std::time::Duration) -> String {
    format!("{}s", duration.as_secs())
}

/// Eviction thresholds of one sort, as the configuration has them: amounts by signal.
fn thresholds(options: &Options, of: fn(&crate::Threshold) -> bool) -> BTreeMap<&'static str, String> {
    let of_sort = options.eviction.thresholds.iter().filter(|threshold| of(threshold));
    let amount = |threshold: &crate::Threshold| {
        let text = threshold.to_string();
        text.split_once('<').map(|(_, amount)| amount.to_owned()).unwrap_or_default()
    };
    of_sort.map(|threshold| (threshold.signal.name(), amount(threshold))).collect()
}

pub(super) async fn root() -> Result<Response, Refusal> {
    answer(Path::new(ROOT), "").await
}

pub(super) async fn below(extract::Path(path): extract::Path<String>) -> Result<Response, Refusal> {
    answer(Path::new(ROOT), &path).await
}

/// The file, or the list of the folder.
async fn answer(root: &Path, path: &str) -> Result<Response, Refusal> {
    let found = find(root, path).await?;
    let failed = |error: std::io::Error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let meta = tokio::fs::metadata(&found).await.map_err(failed)?;
    if meta.is_dir() {
        let page = list(&found).await.map_err(failed)?;
        return Ok(([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response());
    }
    if !meta.is_file() {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "neither a file nor a folder"));
    }
    let file = tokio::fs::File::open(&found).await.map_err(failed)?;
    let body = Body::from_stream(ReaderStream::new(file));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// The place that a path means; links that lead out of the root lead nowhere.
async fn find(root: &Path, path: &str) -> Result<PathBuf, Refusal> {
    let missing = |_| Refusal::new(StatusCode::NOT_FOUND, "404 page not found");
    let root = tokio::fs::canonicalize(root).await.map_err(missing)?;
    let found = tokio::fs::canonicalize(root.join(path.trim_matches('/'))).await.map_err(missing)?;
    if found.starts_with(&root) { Ok(found) } else { Err(missing(std::io::ErrorKind::NotFound.into())) }
}

/// A page of links to what is in a folder, in the order of the names; a folder's ends with a slash.
async fn list(folder: &Path) -> std::io::Result<String> {
    let mut entries = tokio::fs::read_dir(folder).await?;
    let mut names = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let slash = if entry.file_type().await?.is_dir() { "/" } else { "" };
        names.push(format!("{name}{slash}"));
    }
    names.sort();
    let lines = names.iter().map(|name| {
        let text = escaped(name);
        format!("<a href=\"{text}\">{text}</a>\n")
    });
    Ok(format!("<pre>\n{}</pre>\n", lines.collect::<String>()))
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&#34;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_below_the_root_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("pods")).unwrap();
        std::fs::write(root.join("a&b.log"), "line\n").unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        let text = async |path: &str| {
            let response = answer(&root, path).await.map_err(|refusal| refusal.status())?;
            let bytes = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
            Ok::<_, StatusCode>(String::from_utf8(bytes.to_vec()).unwrap())
        };
        let page = "<pre>\n<a href=\"a&amp;b.log\">a&amp;b.log</a>\n<a href=\"out\">out</a>\n<a href=\"pods/\">pods/</a>\n</pre>\n";
        assert_eq!(text("").await.as_deref(), Ok(page));
        assert_eq!(text("a&b.log").await.as_deref(), Ok("line\n"));
        for path in ["out", "../secret", "/../secret", "none"] {
            assert_eq!(text(path).await, Err(StatusCode::NOT_FOUND), "{path}");
        }
    }

    #[test]
    fn the_settings_by_their_names() {
        let options = Options::new("n1", vec![]);
        let config = config(&options);
        assert_eq!((&config["maxPods"], &config["clusterDomain"]), (&json!(110), &json!("cluster.local")));
        assert!(config.get("port").is_none() && config["enableServer"] == false, "{config}");
    }
}
