//! A process that writes is killed at random moments: what it was told is durable is there.

#![expect(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use decapod_storage::embedded::{History, Options};
use decapod_storage::{Embedded, List, Precondition, Revision, Store};
use rand::Rng;
use tempfile::TempDir;

/// Set in the process that is to be killed: the file of its store.
const STORE: &str = "DECAPOD_TEST_KILL_STORE";
const WRITERS: usize = 8;
const KEYS: usize = 6;
const ROUNDS: usize = 25;

fn open(path: &Path) -> Embedded {
    // A small window, so that compaction is at work when the blow falls.
    let history = History { changes: 60, ..History::default() };
    Embedded::open(path, Options { history, ..Options::default() }).expect("the store opens")
}

/// Not a test of its own: what the killed process does. Each line on its standard output is a write
/// that was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_until_killed() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let store = Arc::new(open(Path::new(&path)));
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { write_for_ever(&store, writer).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

async fn write_for_ever(store: &Embedded, writer: usize) {
    for count in 0.. {
        let key = format!("/kill/{writer}/{}", count % KEYS);
        let value = Bytes::from(vec![b'v'; count % 3_000]);
        let revision = match store.get(&key).await.unwrap() {
            None => store.create(&key, value).await.unwrap().modified,
            Some(entry) => {
                let when = Precondition::ModifiedAt(entry.modified);
                if count % 7 == 0 {
                    let revision = store.delete(&key, when).await.unwrap();
                    say(&format!("gone {key} {revision}"));
                    continue;
                }
                store.update(&key, value, when).await.unwrap().modified
            }
        };
        say(&format!("there {key} {revision}"));
    }
}

/// One write of one line, which the pipe keeps when the process dies.
fn say(line: &str) {
    std::io::stdout().write_all(format!("\n{line} .\n").as_bytes()).unwrap();
}

/// What was acknowledged last of each key: the revision, and whether it was a deletion.
type Acknowledged = BTreeMap<String, (Revision, bool)>;

fn run_and_kill(path: &Path, acknowledged: &mut Acknowledged) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writes_until_killed", "--nocapture", "--test-threads=1"])
        .env(STORE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    // The first acknowledgements prove that it is at work; then any moment will do.
    for _ in 0..50 {
        note(&mut output, acknowledged);
    }
    let pid = child.id();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..60_000)));
        // SAFETY: the process is a child that has not been waited for, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) }, 0);
    });
    while note(&mut output, acknowledged) {}
    killer.join().unwrap();
    assert!(!child.wait().unwrap().success());
}

/// Reads a line; false at the end.
fn note(output: &mut impl BufRead, acknowledged: &mut Acknowledged) -> bool {
    let mut line = String::new();
    if output.read_line(&mut line).unwrap() == 0 {
        return false;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    if let [what @ ("there" | "gone"), key, revision, "."] = words[..] {
        acknowledged.insert(key.to_owned(), (revision.parse().unwrap(), what == "gone"));
    }
    true
}

#[tokio::test]
async fn kill_loses_nothing_acknowledged() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state.redb");
    let mut acknowledged = Acknowledged::new();
    let mut written = 0;
    for round in 0..ROUNDS {
        run_and_kill(&path, &mut acknowledged);
        let store = open(&path);
        let newest = store.revision().await.unwrap();
        let page = store.list("/kill/", List::default()).await.unwrap();
        let there: BTreeMap<&str, Revision> =
            page.entries.iter().map(|entry| (&*entry.key, entry.modified)).collect();
        // Each writer had at most one write on its way, which may have been done or not.
        let mut open_ends: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (key, (revision, gone)) in &acknowledged {
            let writer = key.split('/').nth(2).unwrap();
            match there.get(key.as_str()) {
                Some(found) if !gone && found == revision => {}
                None if *gone => {}
                None => open_ends.entry(writer).or_default().push(key),
                Some(found) => {
                    assert!(found > revision, "round {round}: {key} went back from {revision} to {found}");
                    open_ends.entry(writer).or_default().push(key);
                }
            }
            assert!(newest >= *revision, "round {round}: {newest} is behind {key}@{revision}");
        }
        for (writer, keys) in open_ends {
            assert!(keys.len() == 1, "round {round}: writer {writer} lost {keys:?}");
        }
        written += acknowledged.len();
        // What was done without being acknowledged counts from here on.
        acknowledged = there.into_iter().map(|(key, revision)| (key.to_owned(), (revision, false))).collect();
    }
    assert!(written > ROUNDS * WRITERS, "the process wrote nothing");
}
