//! The watch contract under load while the server is killed, on both stores.
//!
//! `DECAPOD_KILLS` says how often it is killed: 50 times each in `make test`, 1,000 by `cargo xtask chaos`.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use decapod_tests::contract::{check, load};
use decapod_tests::etcd::Etcd;
use decapod_tests::server::Server;

const KILLS: usize = 50;
/// How long the server lives between two kills: up to long enough for hundreds of writes.
const EMBEDDED: Range<Duration> = Duration::ZERO..Duration::from_millis(400);
/// etcd lets a watch that resumes wait for up to 100 ms, so there everything comes to life a little later.
const ETCD: Range<Duration> = Duration::from_millis(200)..Duration::from_millis(800);

fn kills() -> usize {
    std::env::var("DECAPOD_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS)
}

async fn holds(store: &str, flags: Vec<String>, between: Range<Duration>) -> Result<()> {
    let mut server = Server::prepare(&format!("contract-{store}"), flags)?;
    server.start().await?;
    let started = Instant::now();
    let outcome = load::run(&mut server, kills(), between).await?;
    println!(
        "{store}: {} kills in {:.1} s, {} writes acknowledged, {} events, {} resumptions",
        kills(),
        started.elapsed().as_secs_f64(),
        outcome.acknowledged,
        outcome.events,
        outcome.resumed
    );
    let wrong = check(&outcome.record);
    ensure!(wrong.is_empty(), "the contract was broken:\n{}", wrong.join("\n"));
    ensure!(
        outcome.acknowledged > kills() / 5,
        "the load did next to nothing: {} writes",
        outcome.acknowledged
    );
    ensure!(outcome.resumed >= kills(), "watches were hardly interrupted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_on_the_embedded_store() -> Result<()> {
    holds("embedded", Vec::new(), EMBEDDED).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holds_on_etcd() -> Result<()> {
    let etcd = Etcd::start(1, None)?;
    holds("etcd", vec![format!("--datastore=etcd={}", etcd.endpoints())], ETCD).await
}
