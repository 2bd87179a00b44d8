//! `rollout`: the state and history of the roll-outs of Deployments, StatefulSets and DaemonSets.

mod progress;

use clap::{Args, Subcommand};
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::{Value, json};

use super::kinds::Target;
use super::session::{MERGE, Session, with_query};
use crate::failure::Failure;

const REVISION: &str = "deployment.kubernetes.io/revision";
const HASH: &str = "pod-template-hash";

/// The kinds that roll a template out.
const KINDS: [&str; 3] = ["Deployment", "DaemonSet", "StatefulSet"];

#[derive(Subcommand, Debug)]
pub(crate) enum Rollout {
    /// Wait until the roll-out is done.
    Status(Status),
    /// Go back to the previous template, or to that of a revision.
    Undo(Undo),
    /// Replace all pods by the strategy of the workload.
    Restart(Named),
}

#[derive(Args, Debug)]
pub(crate) struct Named {
    /// TYPE NAME or TYPE/NAME.
    #[arg(required = true)]
    words: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Status {
    #[command(flatten)]
    named: Named,
    /// Say only how it stands now.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    watch: bool,
    /// How long to wait at most (default: for ever).
    #[arg(long)]
    timeout: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Undo {
    #[command(flatten)]
    named: Named,
    /// The revision to go back to (default: the previous one).
    #[arg(long, default_value_t = 0)]
    to_revision: i64,
}

impl Rollout {
    pub(super) async fn run(&self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Status(status) => status.run(session).await,
            Self::Undo(undo) => undo.run(session).await,
            Self::Restart(named) => restart(named, session).await,
        }
    }
}

impl Named {
    async fn target(&self, session: &Session, kinds: &[&str]) -> Result<(Target, String), Failure> {
        let mut targets = session.kinds().await?.targets(&self.words)?;
        let target = targets.pop().filter(|t| targets.is_empty() && t.names.len() == 1);
        let Some(target) = target else {
            return Err(Failure::new("name one workload, for example deployment/web"));
        };
        if !kinds.contains(&target.kind.kind.as_str()) {
            return Err(Failure::new(format!(
                "{} has no roll-outs of this sort: expected {}",
                target.kind.display(),
                kinds.join(", ")
            )));
        }
        let path =
            target.kind.path(session.namespace_of(&target.kind), target.names.first().map(String::as_str));
        Ok((target, path))
    }
}

impl Status {
    async fn run(&self, session: &Session) -> Result<(), Failure> {
        let wait = self.wait(session);
        match &self.timeout {
            None => wait.await,
            Some(limit) => {
                let limit = crate::duration::parse(limit)?;
                let late = |_| {
                    Failure::new("timed out waiting for the roll-out")
                        .hint("`decapod describe` and `decapod get pods` show what it waits for")
                };
                tokio::time::timeout(limit, wait).await.map_err(late)?
            }
        }
    }

    async fn wait(&self, session: &Session) -> Result<(), Failure> {
        let (target, path) = self.named.target(session, &KINDS).await?;
        let (kind, name) = (target.kind.kind.as_str(), &target.names[0]);
        let mut last = String::new();
        loop {
            let object = session.get(&path).await?;
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            if report(kind, name, &object, &mut last)? || !self.watch {
                return Ok(());
            }
            let query = [
                ("watch", "true".to_owned()),
                ("fieldSelector", format!("metadata.name={name}")),
                ("resourceVersion", version),
                ("timeoutSeconds", "60".to_owned()),
            ];
            let collection = target.kind.path(session.namespace_of(&target.kind), None);
            let mut lines = session.stream(&with_query(&collection, &query), false).await?.lines();
            while let Some(line) = lines.next().await {
                let event: Value = serde_json::from_str(&line?)?;
                if event["type"] == "DELETED" {
                    return Err(Failure::new(format!("{} \"{name}\" was deleted", kind.to_lowercase())));
                }
                if event["type"] == "ERROR" {
                    break;
                }
                if report(kind, name, &event["object"], &mut last)? {
                    return Ok(());
                }
            }
        }
    }
}

/// Says how the roll-out stands, once; whether it is done.
fn report(kind: &str, name: &str, object: &Value, last: &mut String) -> Result<bool, Failure> {
    let (done, message) = progress::of(kind, name, object)?;
    if message != *last {
        println!("{message}");
        *last = message;
    }
    Ok(done)
}

impl Undo {
    async fn run(&self, session: &Session) -> Result<(), Failure> {
        let (target, path) = self.named.target(session, &KINDS).await?;
        let (kind, name) = (target.kind.kind.as_str(), &target.names[0]);
        let object = session.get(&path).await?;
        if object["spec"]["paused"] == true {
            return Err(Failure::new(format!(
                "you cannot rollback a paused deployment; resume it first with `kubectl rollout resume deployment/{name}`"
            )));
        }
        let revisions = history(session, kind, &object).await?;
        let wanted = if self.to_revision > 0 {
            revisions.iter().find(|(number, _)| *number == self.to_revision)
        } else {
            revisions.get(1)
        };
        let Some((number, template)) = wanted else {
            let known: Vec<String> = revisions.iter().rev().map(|(number, _)| number.to_string()).collect();
            let kind = kind.to_lowercase();
            return Err(Failure::new(format!(
                "no rollout history found for {kind} \"{name}\" to go back to"
            ))
            .hint(format!("its revisions are {}", known.join(", "))));
        };
        let display = target.kind.display();
        if *template == object["spec"]["template"] {
            println!(
                "{display}/{name} skipped rollback (current template already matches revision {number})"
            );
            return Ok(());
        }
        // The template is replaced whole, and only if nobody changed the object meanwhile.
        let patch = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": object["metadata"]["resourceVersion"]},
            {"op": "replace", "path": "/spec/template", "value": template},
        ]);
        session.patch(&path, "application/json-patch+json", &patch).await?;
        println!("{display}/{name} rolled back");
        Ok(())
    }
}

/// The templates that an object had, from the newest to the oldest, by their numbers.
async fn history(session: &Session, kind: &str, object: &Value) -> Result<Vec<(i64, Value)>, Failure> {
    let by_sets = kind == "Deployment";
    let kept = if by_sets { "replicasets" } else { "controllerrevisions" };
    let path = format!("/apis/apps/v1/namespaces/{}/{kept}", session.namespace);
    let uid = decapod_api::meta::uid(object);
    let list = session.get(&path).await?;
    let owned = list["items"].as_array().into_iter().flatten().filter(|one| {
        let owners = one["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.into_iter().any(|owner| owner["uid"] == uid)
    });
    let mut revisions: Vec<_> =
        owned.map(|one| if by_sets { of_set(one) } else { of_revision(one) }).collect();
    revisions.sort_by_key(|(number, _)| -number);
    Ok(revisions)
}

fn of_set(set: &Value) -> (i64, Value) {
    let number = set["metadata"]["annotations"][REVISION].as_str().and_then(|number| number.parse().ok());
    let mut template = set["spec"]["template"].clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH);
    }
    (number.unwrap_or_default(), template)
}

/// A ControllerRevision holds its template as a patch that replaces another.
fn of_revision(revision: &Value) -> (i64, Value) {
    let mut template = revision["data"]["spec"]["template"].clone();
    if let Some(fields) = template.as_object_mut() {
        fields.remove("$patch");
    }
    (revision["revision"].as_i64().unwrap_or_default(), template)
}

async fn restart(named: &Named, session: &Session) -> Result<(), Failure> {
    let (target, path) = named.target(session, &KINDS).await?;
    let now = jiff::Timestamp::now().to_string();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": now}}}}});
    session.patch(&path, MERGE, &patch).await?;
    println!("{}/{} restarted", target.kind.display(), target.names[0]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_templates_are_as_they_were() {
        let set = json!({"metadata": {"annotations": {REVISION: "3"}},
            "spec": {"template": {"metadata": {"labels": {"app": "web", HASH: "abc"}}}}});
        let template = json!({"metadata": {"labels": {"app": "web"}}});
        assert_eq!(of_set(&set), (3, template.clone()));
        let mut patch = template.clone();
        patch["$patch"] = json!("replace");
        let revision = json!({"revision": 2, "data": {"spec": {"template": patch}}});
        assert_eq!(of_revision(&revision), (2, template));
    }
}
