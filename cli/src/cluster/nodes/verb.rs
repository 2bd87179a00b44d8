//! `decapod node`: the further nodes of a cluster on this machine.

use clap::{Args, Subcommand};

use super::Roster;
use crate::cluster::lock::Lock;
use crate::cluster::settings::{Place, Settings, Which};
use crate::cluster::up;
use crate::failure::Failure;

/// Further nodes on this machine.
#[derive(Subcommand, Debug)]
pub(crate) enum NodeVerb {
    /// Add a node to the running cluster; returns when it is ready.
    Add(Add),
    /// Move a node's pods elsewhere and take it away.
    Remove(Remove),
    /// Show the nodes of this machine beside its own.
    List {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Add {
    #[command(flatten)]
    which: Which,
    /// Its name (default: the cluster's with the next number).
    node: Option<String>,
    /// How long to wait until it is ready.
    #[arg(long, default_value = "60s")]
    wait: String,
}

#[derive(Args, Debug)]
pub(crate) struct Remove {
    #[command(flatten)]
    which: Which,
    /// Its name.
    node: String,
    /// How long its pods have to end.
    #[arg(long, default_value = "120s")]
    wait: String,
    /// Do not wait for its pods.
    #[arg(long)]
    force: bool,
}

impl NodeVerb {
    pub(crate) async fn run(&self) -> Result<(), Failure> {
        crate::cluster::require_root("node")?;
        match self {
            Self::Add(add) => {
                let limit = crate::duration::parse(&add.wait)?;
                let (place, settings) = running(&add.which)?;
                let mut roster = Roster::load_or_make(&place, &settings)?;
                let name = roster.add(&place, add.node.as_deref())?;
                roster.save(&place)?;
                up::bring_up(&place, &settings, None, limit, &add.wait).await?;
                println!("node {name} is ready");
                Ok(())
            }
            Self::Remove(remove) => {
                let grace = crate::duration::parse(&remove.wait)?;
                let (place, settings) = running(&remove.which)?;
                let client = up::client(&place).await?;
                super::remove(&place, &settings, &remove.node, &client, (!remove.force).then_some(grace))
                    .await
            }
            Self::List { which } => {
                let place = which.place()?;
                println!("{:30} {:16} AGENT", "NODE", "ADDRESS");
                for node in Roster::load(&place)?.map(|roster| roster.nodes(&place)).unwrap_or_default() {
                    let agent = Lock::holder(&node.place)?.map_or("-".to_owned(), |pid| pid.to_string());
                    println!("{:30} {:16} {agent}", node.name, node.address);
                }
                Ok(())
            }
        }
    }
}

/// The cluster, which must run.
fn running(which: &Which) -> Result<(Place, Settings), Failure> {
    let place = which.place()?;
    match (Lock::holder(&place)?, place.load()?) {
        (Some(_), Some(settings)) => Ok((place, settings)),
        _ => Err(Failure::new(format!("the cluster \"{}\" does not run", place.name()))
            .hint("`decapod up` starts it")),
    }
}
