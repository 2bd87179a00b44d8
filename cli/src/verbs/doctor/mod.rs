//! `doctor`: what is wrong with the cluster as a whole; or with the way to a URL, Service or address, from a pod or from
//! this machine, step by step, with what drops it.

mod cluster;
mod machine;
mod path;
mod policy;

use clap::Args;

use super::session::Session;
use super::why::Finding;
use crate::failure::Failure;

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// What should be reached: http://HOST[:PORT]/PATH, svc/NAME[:PORT], pod/NAME:PORT or HOST:PORT. Without it the whole
    /// cluster is looked at.
    target: Option<String>,
    /// The pod from which it should be reached, as the network lets it (default: this machine). It needs no program for it.
    #[arg(long, value_name = "POD", requires = "target")]
    from: Option<String>,
    /// How many connections are made, to see loss.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=20))]
    tries: u8,
    /// The cluster's domain.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
}

impl Doctor {
    /// Looks; the exit code says whether something is wrong.
    pub(super) async fn run(&self, session: Result<Session, Failure>) -> Result<i32, Failure> {
        let findings = match &self.target {
            Some(target) => path::examine(&session?, self, target).await?,
            None => whole(session).await,
        };
        for finding in &findings {
            print!("{}", finding.text());
        }
        if findings.is_empty() {
            println!("nothing is wrong");
        }
        Ok(i32::from(!findings.is_empty()))
    }
}

/// What is wrong with the cluster and with this machine. A cluster that does not answer is what is wrong, too.
async fn whole(session: Result<Session, Failure>) -> Vec<Finding> {
    let cluster = match session {
        Ok(session) => cluster::examine(&session).await,
        Err(failure) => Err(failure),
    };
    let answers = cluster.is_ok();
    let mut findings = cluster.unwrap_or_else(|failure| vec![Finding::new(failure.to_string())]);
    findings.extend(machine::examine(answers));
    findings
}

/// A finding about something.
fn about(name: &str, mut finding: Finding) -> Finding {
    finding.what = format!("{name}: {}", finding.what);
    finding
}
