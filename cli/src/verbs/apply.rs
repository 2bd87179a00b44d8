//! `apply`: create what is not there, change what is.

use std::path::PathBuf;

use clap::Args;
use decapod_api::resource;
use serde_json::{Value, json};

use super::manifest::{self, Document};
use super::session::{MERGE, STRATEGIC, Session, with_query};
use super::three_way;
use crate::failure::Failure;

/// The annotation in which the last applied manifest is remembered, shared with kubectl.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How often a patch is made anew when the object changed under it.
const ATTEMPTS: usize = 5;

#[derive(Args, Debug)]
pub(crate) struct Apply {
    /// A file, a folder, or - for standard input; may be given more than once.
    #[arg(short, long = "filename", required = true)]
    filename: Vec<PathBuf>,
    /// Go into sub-folders.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Only ask the server what it would do.
    #[arg(long, value_name = "server", num_args = 0..=1, default_missing_value = "server", require_equals = true)]
    dry_run: Option<String>,
}

impl Apply {
    pub(super) async fn run(&self, session: &Session) -> Result<(), Failure> {
        if let Some(other) = self.dry_run.as_deref().filter(|d| !["server", "none"].contains(d)) {
            return Err(Failure::new(format!("--dry-run={other}: expected server or none")));
        }
        let documents = manifest::read(&self.filename, self.recursive)?;
        // One bad document does not keep the others from being applied: all errors are told.
        let mut failures = Vec::new();
        for document in &documents {
            match self.one(session, document).await {
                Ok(done) => println!("{done}"),
                Err(failure) => failures.push(failure.within(&document.source)),
            }
        }
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            n => {
                let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
                Err(Failure::new(format!("{n} of {} objects failed:\n{}", documents.len(), texts.join("\n"))))
            }
        }
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query =
            vec![("fieldManager", "decapod-apply".to_owned()), ("fieldValidation", "Strict".to_owned())];
        if self.dry_run.as_deref() == Some("server") {
            query.push(("dryRun", "All".to_owned()));
        }
        query
    }

    async fn one(&self, session: &Session, document: &Document) -> Result<String, Failure> {
        let kind = session.kinds().await?.of_manifest(document.api_version()?, document.kind()?)?;
        let name = document.name()?;
        let namespace = document.object["metadata"]["namespace"].as_str().or(session.namespace_of(kind));
        let shown = format!("{}/{name}", kind.display());
        let suffix = if self.dry_run.as_deref() == Some("server") { " (server dry run)" } else { "" };

        let mut wanted = document.object.clone();
        if let Some(annotations) = wanted.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
        {
            annotations.remove(LAST_APPLIED);
        }
        let remembered = wanted.to_string();
        wanted["metadata"]["annotations"][LAST_APPLIED] = remembered.into();

        let collection = with_query(&kind.path(namespace, None), &self.query());
        let path = kind.path(namespace, Some(name));
        let ty = resource::by_kind(&kind.group, &kind.version, &kind.kind)
            .and_then(|r| decapod_api::facts::lookup(r.type_name));
        let form = if ty.is_some() { STRATEGIC } else { MERGE };
        for _ in 0..ATTEMPTS {
            let Some(live) = session.find(&path).await? else {
                session.create(&collection, &wanted).await?;
                return Ok(format!("{shown} created{suffix}"));
            };
            let last = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or("{}");
            let last: Value = serde_json::from_str(last).unwrap_or_else(|_| json!({}));
            let mut patch = three_way::patch(&last, &wanted, &live, ty);
            if patch.as_object().is_none_or(serde_json::Map::is_empty) {
                return Ok(format!("{shown} unchanged{suffix}"));
            }
            // The patch was made against this version: against another it may be wrong.
            patch["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
            let changed = session.patch(&with_query(&path, &self.query()), form, &patch).await;
            match changed {
                Err(failure) if failure.is("Conflict") => {}
                Err(failure) => return Err(failure),
                Ok(_) => return Ok(format!("{shown} configured{suffix}")),
            }
        }
        Err(Failure::new(format!("{shown} keeps changing: tried {ATTEMPTS} times")))
    }
}
