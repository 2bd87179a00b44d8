//! `rollout`: the state and history of a Deployment's roll-outs.

use clap::{Args, Subcommand};
use futures::{AsyncBufReadExt, StreamExt};
use serde_json::{Value, json};

use super::kinds::Target;
use super::session::{MERGE, Session, with_query};
use crate::failure::Failure;

const REVISION: &str = "deployment.kubernetes.io/revision";
const HASH: &str = "pod-template-hash";

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
        let (target, path) = self.named.target(session, &["Deployment"]).await?;
        let name = &target.names[0];
        let mut last = String::new();
        loop {
            let object = session.get(&path).await?;
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            if report(name, &object, &mut last)? || !self.watch {
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
                    return Err(Failure::new(format!("deployment \"{name}\" was deleted")));
                }
                if event["type"] == "ERROR" {
                    break;
                }
                if report(name, &event["object"], &mut last)? {
                    return Ok(());
                }
            }
        }
    }
}

/// Says how the roll-out stands, once; whether it is done.
fn report(name: &str, deployment: &Value, last: &mut String) -> Result<bool, Failure> {
    let (done, message) = progress(name, deployment)?;
    if message != *last {
        println!("{message}");
        *last = message;
    }
    Ok(done)
}

fn progress(name: &str, deployment: &Value) -> Result<(bool, String), Failure> {
    let status = &deployment["status"];
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    if number(&deployment["metadata"]["generation"]) > number(&status["observedGeneration"]) {
        return Ok((false, "Waiting for deployment spec update to be observed...".to_owned()));
    }
    let progressing =
        status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Progressing");
    if progressing.is_some_and(|c| c["reason"] == "ProgressDeadlineExceeded") {
        return Err(Failure::new(format!("deployment \"{name}\" exceeded its progress deadline"))
            .hint("`decapod rollout undo` goes back to the previous revision"));
    }
    let wanted = deployment["spec"]["replicas"].as_i64().unwrap_or(1);
    let (total, updated) = (number(&status["replicas"]), number(&status["updatedReplicas"]));
    let available = number(&status["availableReplicas"]);
    let waiting =
        |rest: String| Ok((false, format!("Waiting for deployment \"{name}\" rollout to finish: {rest}...")));
    if updated < wanted {
        return waiting(format!("{updated} out of {wanted} new replicas have been updated"));
    }
    if total > updated {
        return waiting(format!("{} old replicas are pending termination", total - updated));
    }
    if available < updated {
        return waiting(format!("{available} of {updated} updated replicas are available"));
    }
    Ok((true, format!("deployment \"{name}\" successfully rolled out")))
}

impl Undo {
    async fn run(&self, session: &Session) -> Result<(), Failure> {
        let (target, path) = self.named.target(session, &["Deployment"]).await?;
        let name = &target.names[0];
        let deployment = session.get(&path).await?;
        if deployment["spec"]["paused"] == true {
            return Err(Failure::new(format!(
                "you cannot rollback a paused deployment; resume it first with `kubectl rollout resume deployment/{name}`"
            )));
        }
        let sets =
            session.get(&format!("/apis/apps/v1/namespaces/{}/replicasets", session.namespace)).await?;
        let uid = decapod_api::meta::uid(&deployment);
        let mut revisions: Vec<(i64, &Value)> = sets["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|s| {
                s["metadata"]["ownerReferences"].as_array().into_iter().flatten().any(|o| o["uid"] == uid)
            })
            .map(|s| (revision(s), s))
            .collect();
        revisions.sort_by_key(|(revision, _)| -revision);
        let wanted = if self.to_revision > 0 {
            revisions.iter().find(|(r, _)| *r == self.to_revision)
        } else {
            revisions.get(1)
        };
        let Some((_, set)) = wanted else {
            let known: Vec<String> = revisions.iter().rev().map(|(r, _)| r.to_string()).collect();
            return Err(Failure::new(format!(
                "no rollout history found for deployment \"{name}\" to go back to"
            ))
            .hint(format!("its revisions are {}", known.join(", "))));
        };
        let mut template = set["spec"]["template"].clone();
        if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.remove(HASH);
        }
        if template == deployment["spec"]["template"] {
            println!(
                "deployment.apps/{name} skipped rollback (current template already matches revision {})",
                revision(set)
            );
            return Ok(());
        }
        // The template is replaced whole, and only if nobody changed the object meanwhile.
        let patch = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": deployment["metadata"]["resourceVersion"]},
            {"op": "replace", "path": "/spec/template", "value": template},
        ]);
        session.patch(&path, "application/json-patch+json", &patch).await?;
        println!("deployment.apps/{name} rolled back");
        Ok(())
    }
}

fn revision(set: &Value) -> i64 {
    set["metadata"]["annotations"][REVISION].as_str().and_then(|r| r.parse().ok()).unwrap_or_default()
}

async fn restart(named: &Named, session: &Session) -> Result<(), Failure> {
    let (target, path) = named.target(session, &["Deployment", "DaemonSet", "StatefulSet"]).await?;
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
    fn a_rollout_in_kubectls_words() {
        let at = |status: Value| {
            progress(
                "web",
                &json!({"metadata": {"generation": 2}, "spec": {"replicas": 3}, "status": status}),
            )
        };
        let text = |status: Value| at(status).unwrap().1;
        assert_eq!(
            text(json!({"observedGeneration": 1})),
            "Waiting for deployment spec update to be observed..."
        );
        assert_eq!(
            text(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1})),
            "Waiting for deployment \"web\" rollout to finish: 1 out of 3 new replicas have been updated..."
        );
        assert_eq!(
            text(json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3})),
            "Waiting for deployment \"web\" rollout to finish: 1 old replicas are pending termination..."
        );
        assert!(
            at(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}))
                .unwrap()
                .0
        );
        assert!(at(json!({"observedGeneration": 2, "conditions": [{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]})).is_err());
    }
}
