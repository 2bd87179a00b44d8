//! What this machine takes for the two steps that no API server does without: a write to the disk that stays
//! there, and a write to a connection. They say how much of the figures is the kernel's, and how busy or slow
//! the machine is in this run.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::io::AsyncReadExt;

use super::figures::say;

const SYNCS: u32 = 1_000;
const PAGE: usize = 4_096;
/// How often each connection is written to, and the time in between: as changes of what is watched.
const ROUNDS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(50);
/// About one event of a watch.
const EVENT: usize = 500;

pub(crate) fn measure() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("dcpbench").tempdir()?;
    let file = File::create(folder.path().join("synced"))?;
    file.write_all_at(&[0; PAGE], 0)?;
    let before = own()?;
    for i in 0..SYNCS {
        file.write_all_at(&[i.to_le_bytes()[0]; PAGE], 0)?;
        file.sync_data()?;
    }
    per("write and fdatasync of a page", before, SYNCS)?;

    for readers in [100, 500] {
        connections(readers)?;
    }
    Ok(())
}

/// A write to each of many connections whose readers wait: what no delivery of a watch is without where each watcher
/// has a connection of its own.
fn connections(readers: usize) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let reading = std::thread::spawn(move || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let all = (0..readers).map(|_| async move {
                let mut from = tokio::net::TcpStream::connect(address).await?;
                let mut bytes = [0; EVENT];
                for _ in 0..ROUNDS {
                    from.read_exact(&mut bytes).await?;
                }
                anyhow::Ok(())
            });
            futures::future::try_join_all(all).await.map(drop)
        })
    });
    let mut connections = Vec::new();
    for _ in 0..readers {
        let (to, _) = listener.accept()?;
        to.set_nodelay(true)?;
        connections.push(to);
    }
    let before = own()?;
    for _ in 0..ROUNDS {
        for to in &mut connections {
            to.write_all(&[0; EVENT])?;
        }
        // Until all have read, and wait again: that is part of what a write costs.
        std::thread::sleep(PAUSE);
    }
    per(&format!("write to each of {readers} connections"), before, ROUNDS * u32::try_from(readers)?)?;
    reading.join().map_err(|_| anyhow!("the reader panicked"))?.context("reading")
}

/// CPU time of this thread.
fn own() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let spent = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(spent)?))
}

fn per(what: &str, before: Duration, n: u32) -> Result<()> {
    let each = (own()? - before).as_secs_f64() * 1e6 / f64::from(n);
    say(&format!("CPU of the kernel alone per {what}"), each, "us", None);
    Ok(())
}
