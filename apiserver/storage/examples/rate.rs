//! How many durable writes the embedded store does in a second, and how fast it opens.
//!
//! ```text
//! cargo run --release -p decapod-storage --example rate -- [FOLDER] [WRITERS] [SECONDS]
//! ```
//! Values of 1 KiB; each writer first creates its keys, then updates them round and round, which is
//! what Kubernetes does.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use decapod_storage::embedded::Options;
use decapod_storage::{Embedded, List, Precondition, Store};

const KEYS_PER_WRITER: usize = 500;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| std::env::temp_dir().display().to_string());
    let writers: usize = arguments.next().map_or(Ok(16), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let folder = Path::new(&folder).join(format!("dcp-rate-{}", std::process::id()));
    let result = measure(&folder.join("store.redb"), writers, Duration::from_secs(seconds)).await;
    std::fs::remove_dir_all(&folder)?;
    result
}

async fn measure(file: &Path, writers: usize, length: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(Embedded::open(file, Options::default())?);
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { write(&*store, writer, start, length).await })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let elapsed = start.elapsed();
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!(
        "{writers} writers, 1 KiB: {:.0} durable writes/s; p50 {:?}, p99 {:?}, max {:?}",
        times.len() as f64 / elapsed.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0),
    );
    let start = Instant::now();
    let page = store.list("/registry/", List::default()).await?;
    println!("list of {}: {:?}", page.entries.len(), start.elapsed());
    drop((page, store));
    let size = std::fs::metadata(file)?.len() >> 20;
    let start = Instant::now();
    Embedded::open(file, Options::default())?;
    println!("opening the file of {size} MiB: {:?}", start.elapsed());
    Ok(())
}

async fn write(
    store: &dyn Store,
    writer: usize,
    start: Instant,
    length: Duration,
) -> Result<Vec<Duration>, decapod_storage::Error> {
    let value = Bytes::from(vec![b'x'; 1024]);
    let mut keys: Vec<(String, u64)> = Vec::new();
    let mut times = Vec::new();
    while start.elapsed() < length {
        let begun = Instant::now();
        if keys.len() < KEYS_PER_WRITER {
            let key = format!("/registry/pods/ns-{writer}/pod-{}", keys.len());
            let entry = store.create(&key, value.clone()).await?;
            keys.push((key, entry.modified));
        } else {
            let (key, modified) = &mut keys[times.len() % KEYS_PER_WRITER];
            let when = Precondition::ModifiedAt(*modified);
            *modified = store.update(key, value.clone(), when).await?.modified;
        }
        times.push(begun.elapsed());
    }
    Ok(times)
}
