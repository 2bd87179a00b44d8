//! The API server in a process of its own, first with its store alone, which is what the marks of the API are about,
//! then with the scheduler and the controllers in the same process, which watch what is made.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use decapod_tests::server::Server;

use super::api::Target;
use super::figures::{Mark, percentiles};

/// What is there when the server starts anew.
const OBJECTS: usize = 10_000;
const STARTS: usize = 5;

pub(crate) async fn measure() -> Result<()> {
    println!("The API server with its store:");
    let server = started(vec!["--api-only".to_owned()]).await?;
    let api = target(&server).await?;
    api.measure().await?;
    api.selector().await?;
    drop(server);

    println!("\nWith the scheduler and the controllers:");
    let server = started(Vec::new()).await?;
    target(&server).await?.measure().await?;
    drop(server);

    let mut server = Server::prepare("dcpbench", Vec::new())?;
    server.start().await?;
    target(&server).await?.fill(OBJECTS).await?;
    starts(&mut server).await
}

/// What a watch delivery takes, and nothing else.
pub(crate) async fn deliveries() -> Result<()> {
    println!("Watches of the API server with its store:");
    let server = started(vec!["--api-only".to_owned()]).await?;
    target(&server).await?.deliveries().await
}

async fn started(flags: Vec<String>) -> Result<Server> {
    let mut server = Server::prepare("dcpbench", flags)?;
    server.start().await?;
    // What a start takes is given back.
    tokio::time::sleep(Duration::from_secs(10)).await;
    Ok(server)
}

async fn target(server: &Server) -> Result<Target> {
    let pid = server.pid().context("the server does not run")?;
    Target::new(&server.data().join("kubeconfig"), vec![pid.into()]).await
}

/// From the start of the process to the first `/readyz` that says so, after a `kill -9`.
async fn starts(server: &mut Server) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..STARTS {
        server.kill()?;
        let start = Instant::now();
        server.start().await?;
        times.push(start.elapsed());
    }
    percentiles(&format!("kill -9 to /readyz with {OBJECTS} pods"), times, Some(Mark::AtMost(500.0)), None);
    Ok(())
}
