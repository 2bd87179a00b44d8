//! What this machine takes for the two steps that no API server does without: a write to the disk that stays
//! there, and a write to a connection. They say how much of the figures is the kernel's, and how busy or slow
//! the machine is in this run.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::figures::say;

const SYNCS: u32 = 1_000;
const PAGE: usize = 4_096;
const WRITES: u32 = 20_000;
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

    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut to = TcpStream::connect(listener.local_addr()?)?;
    to.set_nodelay(true)?;
    let (mut from, _) = listener.accept()?;
    let reader = std::thread::spawn(move || -> std::io::Result<()> {
        let mut bytes = [0; EVENT];
        for _ in 0..WRITES {
            from.read_exact(&mut bytes)?;
        }
        Ok(())
    });
    let before = own()?;
    for _ in 0..WRITES {
        to.write_all(&[0; EVENT])?;
    }
    per("write to a connection", before, WRITES)?;
    reader.join().map_err(|_| anyhow!("the reader panicked"))?.context("reading")
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
