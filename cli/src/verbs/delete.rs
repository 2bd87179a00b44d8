//! `delete`: objects by name, selector or manifest; waits until they are gone.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::{Value, json};

use super::kinds::Kind;
use super::manifest;
use super::session::{Session, with_query};
use crate::failure::Failure;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cascade {
    Background,
    Foreground,
    Orphan,
}

#[derive(Args, Debug)]
pub(crate) struct Delete {
    /// TYPE NAME… or TYPE/NAME….
    words: Vec<String>,
    /// Manifests whose objects are deleted.
    #[arg(short, long = "filename")]
    filename: Vec<PathBuf>,
    /// Go into sub-folders.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Only objects with these labels.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// All objects of the type.
    #[arg(long)]
    all: bool,
    /// What happens to objects that these own.
    #[arg(long, default_value = "background")]
    cascade: Cascade,
    /// Seconds that pods get to end.
    #[arg(long)]
    grace_period: Option<i64>,
    /// Do not wait for pods to end (with --grace-period=0).
    #[arg(long)]
    force: bool,
    /// No error if it is not there.
    #[arg(long)]
    ignore_not_found: bool,
    /// Wait until the objects are gone.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    wait: bool,
    /// How long to wait at most (default: for ever).
    #[arg(long)]
    timeout: Option<String>,
}

struct Doomed {
    kind: Kind,
    namespace: Option<String>,
    name: String,
}

impl Delete {
    pub(super) async fn run(&self, session: &Session) -> Result<(), Failure> {
        let mut waits = Vec::new();
        for doomed in self.find(session).await? {
            let path = doomed.kind.path(doomed.namespace.as_deref(), Some(&doomed.name));
            let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": format!("{:?}", self.cascade)});
            if let Some(seconds) = self.grace_period.or(self.force.then_some(0)) {
                options["gracePeriodSeconds"] = seconds.into();
            }
            match session.delete(&path, &options).await {
                Err(f) if self.ignore_not_found && f.is("NotFound") => continue,
                Err(f) => return Err(f),
                Ok(answer) => {
                    let place = doomed
                        .namespace
                        .as_deref()
                        .map(|n| format!(" from {n} namespace"))
                        .unwrap_or_default();
                    println!(
                        "{} \"{}\" {}deleted{place}",
                        doomed.kind.display(),
                        doomed.name,
                        if self.force { "force " } else { "" }
                    );
                    let uid = answer["details"]["uid"]
                        .as_str()
                        .unwrap_or(decapod_api::meta::uid(&answer))
                        .to_owned();
                    waits.push((path, doomed, uid));
                }
            }
        }
        if !self.wait {
            return Ok(());
        }
        let gone = async {
            for (path, doomed, uid) in &waits {
                wait_until_gone(session, path, doomed, uid).await?;
            }
            Ok(())
        };
        match &self.timeout {
            None => gone.await,
            Some(limit) => {
                let limit: Duration = crate::duration::parse(limit)?;
                let late = |_| {
                    Failure::new("timed out waiting for the objects to go")
                        .hint("`decapod describe` shows their finalizers and events")
                };
                tokio::time::timeout(limit, gone).await.map_err(late)?
            }
        }
    }

    async fn find(&self, session: &Session) -> Result<Vec<Doomed>, Failure> {
        let mut doomed = Vec::new();
        let kinds = session.kinds().await?;
        if !self.filename.is_empty() {
            for document in manifest::read(&self.filename, self.recursive)? {
                let kind = kinds.of_manifest(document.api_version()?, document.kind()?)?;
                let namespace =
                    document.object["metadata"]["namespace"].as_str().or(session.namespace_of(kind));
                doomed.push(Doomed {
                    kind: kind.clone(),
                    namespace: namespace.filter(|_| kind.namespaced).map(str::to_owned),
                    name: document.name()?.to_owned(),
                });
            }
            return Ok(doomed);
        }
        for target in kinds.targets(&self.words)? {
            let namespace = session.namespace_of(&target.kind).map(str::to_owned);
            let mut names = target.names.clone();
            if names.is_empty() {
                if !self.all && self.selector.is_none() {
                    return Err(Failure::new("resource(s) were provided, but no name was specified")
                        .hint("name the objects, or say --all or -l SELECTOR"));
                }
                let query: Vec<_> = self.selector.clone().map(|s| ("labelSelector", s)).into_iter().collect();
                let list =
                    session.get(&with_query(&target.kind.path(namespace.as_deref(), None), &query)).await?;
                let items = list["items"].as_array().into_iter().flatten();
                names = items.map(|o| decapod_api::meta::name(o).to_owned()).collect();
            }
            doomed.extend(names.into_iter().map(|name| Doomed {
                kind: target.kind.clone(),
                namespace: namespace.clone(),
                name,
            }));
        }
        Ok(doomed)
    }
}

/// Watches the object until it is gone, or is another one of the same name.
async fn wait_until_gone(session: &Session, path: &str, doomed: &Doomed, uid: &str) -> Result<(), Failure> {
    loop {
        let Some(object) = session.find(path).await? else { return Ok(()) };
        if !uid.is_empty() && decapod_api::meta::uid(&object) != uid {
            return Ok(());
        }
        let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let query = [
            ("watch", "true".to_owned()),
            ("fieldSelector", format!("metadata.name={}", doomed.name)),
            ("resourceVersion", version),
            ("timeoutSeconds", "60".to_owned()),
        ];
        let collection = doomed.kind.path(doomed.namespace.as_deref(), None);
        let mut lines = session.stream(&with_query(&collection, &query), false).await?.lines();
        while let Some(line) = lines.next().await {
            let event: Value = serde_json::from_str(&line?)?;
            if event["type"] == "DELETED" || event["type"] == "ERROR" {
                break;
            }
        }
    }
}
