//! `scale`: the number of replicas of a workload.

use clap::Args;
use serde_json::json;

use super::session::{MERGE, Session};
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct Scale {
    /// TYPE NAME… or TYPE/NAME….
    #[arg(required = true)]
    words: Vec<String>,
    /// The number of replicas.
    #[arg(long)]
    replicas: u32,
    /// Only if this is the number now.
    #[arg(long)]
    current_replicas: Option<u32>,
}

impl Scale {
    pub(super) async fn run(&self, session: &Session) -> Result<(), Failure> {
        for target in session.kinds().await?.targets(&self.words)? {
            if target.names.is_empty() {
                return Err(Failure::new(format!("name the {} to scale", target.kind.display())));
            }
            for name in &target.names {
                let path =
                    format!("{}/scale", target.kind.path(session.namespace_of(&target.kind), Some(name)));
                let mut patch = json!({"spec": {"replicas": self.replicas}});
                if let Some(expected) = self.current_replicas {
                    let scale = session.get(&path).await?;
                    let now = scale["spec"]["replicas"].as_u64().unwrap_or_default();
                    if now != u64::from(expected) {
                        return Err(Failure::new(format!("expected replicas to be {expected}, was {now}")));
                    }
                    patch["metadata"]["resourceVersion"] = scale["metadata"]["resourceVersion"].clone();
                }
                session.patch(&path, MERGE, &patch).await?;
                println!("{}/{name} scaled", target.kind.display());
            }
        }
        Ok(())
    }
}
