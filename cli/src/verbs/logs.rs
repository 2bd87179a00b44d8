//! `logs`: what a container wrote.

use std::io::Write;

use clap::Args;
use futures::AsyncReadExt;
use serde_json::Value;

use super::session::{Session, with_query};
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct Logs {
    /// A pod, or TYPE/NAME of a workload (then one of its pods).
    target: String,
    /// The container (default: the only one, or the first).
    #[arg(short, long)]
    container: Option<String>,
    /// Go on with what is written.
    #[arg(short, long)]
    follow: bool,
    /// The logs of the container's previous run.
    #[arg(short, long)]
    previous: bool,
    /// Only the last lines.
    #[arg(long)]
    tail: Option<u64>,
    /// Only what is younger than this (5s, 2m, 3h).
    #[arg(long)]
    since: Option<String>,
    /// With timestamps.
    #[arg(long)]
    timestamps: bool,
}

impl Logs {
    pub(super) async fn run(&self, session: &Session) -> Result<(), Failure> {
        let pod = pod_of(session, &self.target).await?;
        let mut query: Vec<(&str, String)> = Vec::new();
        match &self.container {
            Some(container) => query.push(("container", container.clone())),
            None => {
                let containers: Vec<&str> = names(&pod["spec"]["containers"]);
                if let [first, _, ..] = containers[..] {
                    eprintln!("Defaulted container \"{first}\" out of: {}", containers.join(", "));
                }
                query.extend(containers.first().map(|c| ("container", (*c).to_owned())));
            }
        }
        for (name, set) in
            [("follow", self.follow), ("previous", self.previous), ("timestamps", self.timestamps)]
        {
            query.extend(set.then(|| (name, "true".to_owned())));
        }
        query.extend(self.tail.map(|n| ("tailLines", n.to_string())));
        if let Some(since) = &self.since {
            query.push(("sinceSeconds", crate::duration::parse(since)?.as_secs().max(1).to_string()));
        }
        let path = format!("{}/log", pod_path(&pod));
        let mut stream = Box::pin(session.stream(&with_query(&path, &query), false).await?);
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            let mut out = std::io::stdout().lock();
            out.write_all(&buffer[..n])?;
            out.flush()?;
        }
    }
}

/// The names of containers.
pub(super) fn names(containers: &Value) -> Vec<&str> {
    containers.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
}

pub(super) fn pod_path(pod: &Value) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", decapod_api::meta::namespace(pod), decapod_api::meta::name(pod))
}

/// The pod that a word names: a pod, or the first running pod of a workload.
pub(super) async fn pod_of(session: &Session, target: &str) -> Result<Value, Failure> {
    let word = if target.contains('/') { target.to_owned() } else { format!("pod/{target}") };
    let targets = session.kinds().await?.targets(&[word])?;
    let [target] = &targets[..] else { return Err(Failure::new("name one object")) };
    let namespace = session.namespace_of(&target.kind);
    let object = session.get(&target.kind.path(namespace, target.names.first().map(String::as_str))).await?;
    if target.kind.kind == "Pod" {
        return Ok(object);
    }
    let selector = &object["spec"]["selector"];
    let labels = selector["matchLabels"].as_object().or(selector.as_object());
    let labels: Vec<String> =
        labels.into_iter().flatten().filter_map(|(k, v)| Some(format!("{k}={}", v.as_str()?))).collect();
    if labels.is_empty() {
        return Err(Failure::new(format!("{} selects no pods", target.kind.display())));
    }
    let path = format!("/api/v1/namespaces/{}/pods", session.namespace);
    let mut pods = session.get(&with_query(&path, &[("labelSelector", labels.join(","))])).await?;
    let Value::Array(mut pods) = pods["items"].take() else { return Err(Failure::new("no pods found")) };
    // A pod that ends has its last say only where there is no other.
    pods.sort_by_key(|p| (decapod_api::meta::deleting(p), p["status"]["phase"] != "Running"));
    let found = pods.into_iter().next();
    found.ok_or_else(|| {
        Failure::new(format!("no pods found for {}/{}", target.kind.display(), target.names.join(" ")))
    })
}
